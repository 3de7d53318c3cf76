//! Refreshing ahead of expiry, against real servers, by a clock that the test moves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dogpile::{Freshness, ManualClock};
use dogpile_fleet::{
    BuildContext, FleetCell, FleetPolicy, FleetRefresher, Plain, PostgresStore, RedisStore, RefreshStore,
    Refreshed,
};

use crate::servers::{Kind, server_or_skip};
use crate::{HANG, HOUR, SECOND, eventually};

fn callers_built_or_waited_when_a_value_expired(store: impl RefreshStore + 'static, clock: &ManualClock) {
    let store: Arc<dyn RefreshStore> = Arc::new(store);
    let builds = Arc::new(AtomicU32::new(0));
    let policy = FleetPolicy::ttl(10 * SECOND).patience(HOUR).no_poll();
    let nodes: Vec<FleetCell<String, ManualClock>> = (0..3)
        .map(|_| FleetCell::with_clock("name", Arc::clone(&store), Plain, policy, clock.clone()))
        .collect();
    let refreshers: Vec<FleetRefresher> = nodes
        .iter()
        .map(|node| {
            let builds = Arc::clone(&builds);
            let build = move |_: &BuildContext<'_, String>| {
                Ok::<_, io::Error>(Refreshed::from(format!(
                    "build {}",
                    builds.fetch_add(1, Ordering::SeqCst) + 1
                )))
            };
            FleetRefresher::spawn(node, 3 * SECOND, build).unwrap()
        })
        .collect();
    for refresher in &refreshers {
        assert!(refresher.wait_ready(HANG));
    }
    for round in 1..6 {
        let value = format!("build {round}");
        eventually("all nodes have it", || {
            nodes.iter().all(|node| node.get().is_some_and(|held| *held == value))
        });
        for node in &nodes {
            let read = node.get_or_refresh(|| panic!("no caller builds"));
            assert_eq!((&*read, node.freshness()), (&value, Freshness::Fresh));
        }
        assert_eq!(builds.load(Ordering::SeqCst), round, "one build in the whole fleet");
        clock.advance(Duration::from_millis(7800));
    }
}

#[test]
fn redis_callers_built_or_waited_when_a_value_expired() {
    let server = server_or_skip!(Kind::Redis);
    let clock = ManualClock::new();
    clock.advance(HOUR);
    let store = RedisStore::new(&server.address()).unwrap().with_clock(clock.clone()).timeout(HANG);
    callers_built_or_waited_when_a_value_expired(store, &clock);
}

#[test]
fn postgres_callers_built_or_waited_when_a_value_expired() {
    let server = server_or_skip!(Kind::Postgres);
    let clock = ManualClock::new();
    clock.advance(HOUR);
    let store = PostgresStore::new(&server.address()).unwrap().with_clock(clock.clone()).timeout(HANG);
    callers_built_or_waited_when_a_value_expired(store, &clock);
}
