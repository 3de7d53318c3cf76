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

use tokio::runtime::{Builder, Runtime};

use crate::servers::{Kind, server_or_skip};
use crate::{HANG, HOUR, SECOND, eventually};

type Node = FleetCell<String, ManualClock>;

fn on_a_thread(node: &Node, builds: &Arc<AtomicU32>) -> FleetRefresher {
    let builds = Arc::clone(builds);
    let build = move |_: &BuildContext<'_, String>| Ok::<_, io::Error>(number(&builds));
    FleetRefresher::spawn(node, 3 * SECOND, build).unwrap()
}

fn as_a_task(runtime: &Runtime, node: &Node, builds: &Arc<AtomicU32>) -> FleetRefresher {
    let builds = Arc::clone(builds);
    let build = move |_: BuildContext<'static, String>| {
        let builds = Arc::clone(&builds);
        async move { Ok::<_, io::Error>(number(&builds)) }
    };
    FleetRefresher::spawn_async(node, 3 * SECOND, |task| runtime.spawn(task), build).unwrap()
}

fn number(builds: &AtomicU32) -> Refreshed<String> {
    Refreshed::from(format!("build {}", builds.fetch_add(1, Ordering::SeqCst) + 1))
}

fn callers_built_or_waited_when_a_value_expired(
    store: impl RefreshStore + 'static,
    clock: &ManualClock,
    start: impl Fn(&Node, &Arc<AtomicU32>) -> FleetRefresher,
) {
    let store: Arc<dyn RefreshStore> = Arc::new(store);
    let builds = Arc::new(AtomicU32::new(0));
    let policy = FleetPolicy::ttl(10 * SECOND).patience(HOUR).no_poll();
    let nodes: Vec<Node> = (0..3)
        .map(|_| FleetCell::with_clock("name", Arc::clone(&store), Plain, policy, clock.clone()))
        .collect();
    let refreshers: Vec<FleetRefresher> = nodes.iter().map(|node| start(node, &builds)).collect();
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

fn redis(clock: &ManualClock, start: impl Fn(&Node, &Arc<AtomicU32>) -> FleetRefresher) {
    let server = server_or_skip!(Kind::Redis);
    clock.advance(HOUR);
    let store = RedisStore::new(&server.address()).unwrap().with_clock(clock.clone()).timeout(HANG);
    callers_built_or_waited_when_a_value_expired(store, clock, start);
}

fn postgres(clock: &ManualClock, start: impl Fn(&Node, &Arc<AtomicU32>) -> FleetRefresher) {
    let server = server_or_skip!(Kind::Postgres);
    clock.advance(HOUR);
    let store = PostgresStore::new(&server.address()).unwrap().with_clock(clock.clone()).timeout(HANG);
    callers_built_or_waited_when_a_value_expired(store, clock, start);
}

/// One thread for all tasks: an operation that blocks it would hold up all refreshers.
fn executor() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).build().unwrap()
}

#[test]
fn redis_callers_built_or_waited_when_a_value_expired() {
    redis(&ManualClock::new(), on_a_thread);
}

#[test]
fn postgres_callers_built_or_waited_when_a_value_expired() {
    postgres(&ManualClock::new(), on_a_thread);
}

#[test]
fn redis_refreshers_that_are_tasks() {
    let runtime = executor();
    redis(&ManualClock::new(), |node, builds| as_a_task(&runtime, node, builds));
}

#[test]
fn postgres_refreshers_that_are_tasks() {
    let runtime = executor();
    postgres(&ManualClock::new(), |node, builds| as_a_task(&runtime, node, builds));
}
