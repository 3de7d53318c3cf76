//! How old values are: what a node takes over has been stale for a while, and what it builds may be old already.

use std::io;
use std::time::Duration;

use dogpile_fleet::{BuildContext, FleetPolicy, Refreshed};

use crate::support::*;

const TICK: Duration = Duration::from_nanos(1);

/// Ten seconds fresh, a hundred more stale. A failure pauses the fleet for longer than that.
const PAUSING: FleetPolicy = POLICY.retry_backoff(Duration::from_secs(1000), Duration::from_secs(1000));

fn held(node: &Node) -> Option<String> {
    node.map.get(&7).map(|value| value.value().to_string())
}

/// Up to the end of the window that began 20 seconds ago.
#[track_caller]
fn is_served_up_to_the_end(fleet: &Fleet, node: &Node) {
    assert_eq!(node.served(7), "old");
    for _ in 0..79 {
        fleet.clock.advance(SECOND);
        assert_eq!((node.served(7), held(node)), ("old".into(), Some("old".into())));
    }
    fleet.clock.advance(SECOND - TICK);
    assert_eq!((node.served(7), held(node)), ("old".into(), Some("old".into())));
    fleet.clock.advance(TICK);
    assert_eq!(held(node), None);
}

#[test]
fn a_stale_value_taken_over_while_another_node_builds_was_served_for_a_whole_window_more() {
    let fleet = Fleet::new();
    // The clock advances faster than leases are prolonged.
    let (a, b) = (fleet.node(POLICY.lease(1000 * SECOND)), fleet.node(POLICY));
    a.read(7, "old");
    fleet.clock.advance(30 * SECOND);
    let build = |_: &BuildContext<'_, String>| {
        is_served_up_to_the_end(&fleet, &b);
        Ok::<_, io::Error>(Refreshed::from(String::from("new")))
    };
    assert_eq!(a.try_read(7, build).unwrap().value().as_str(), "new");
    assert_eq!(b.served(7), "new");
}

#[test]
fn a_stale_value_taken_over_while_builds_fail_was_served_for_a_whole_window_more() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(PAUSING), fleet.node(PAUSING));
    a.read(7, "old");
    fleet.clock.advance(30 * SECOND);
    a.try_read(7, |_| Err(io::Error::other("no"))).unwrap();
    is_served_up_to_the_end(&fleet, &b);
    assert!(b.try_read::<io::Error>(7, |_| panic!("not to be built here")).is_err());
}

#[test]
fn a_value_that_is_kept_as_the_store_refuses_a_newer_one_was_served_for_a_whole_window_more() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    a.read(7, "old");
    fleet.clock.advance(30 * SECOND);
    let build = |_: &BuildContext<'_, String>| {
        b.keys.invalidate("7").unwrap();
        Ok::<_, io::Error>(Refreshed::from(String::from("refused")))
    };
    assert_eq!(a.try_read(7, build).unwrap().value().as_str(), "old");
    fleet.clock.advance(80 * SECOND - TICK);
    assert_eq!(held(&a), Some("old".into()));
    fleet.clock.advance(TICK);
    assert_eq!(held(&a), None);
}

#[test]
fn a_fresh_value_of_a_node_with_a_shorter_window_is_served_no_longer_than_there() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY.stale_while_refresh(5 * SECOND)), fleet.node(POLICY.no_poll()));
    a.read(7, "old");
    assert_eq!(b.served(7), "old");
    fleet.way.down.store(true, std::sync::atomic::Ordering::SeqCst);
    fleet.clock.advance(15 * SECOND - TICK);
    assert_eq!(held(&b), Some("old".into()));
    fleet.clock.advance(TICK);
    assert_eq!(held(&b), None);
}

#[test]
fn the_age_that_a_build_returns_counts_on_all_nodes() {
    for (age, fresh_for, served_for) in [(4, 6, 106), (30, 0, 80)] {
        let fleet = Fleet::new();
        let (a, b) = (fleet.node(POLICY.no_poll()), fleet.node(POLICY.no_poll()));
        let aged = |_: &BuildContext<'_, String>| {
            let value = String::from("old");
            Ok::<_, io::Error>(Refreshed::Aged { value, age: age * SECOND, ttl: None })
        };
        assert_eq!(a.try_read(7, aged).unwrap().value().as_str(), "old");
        let entry = fleet.way.store.entry("users:7");
        let value = entry.value.unwrap();
        let now = u64::try_from(Duration::from_secs(1000).as_micros()).unwrap();
        assert_eq!(value.soft_until - now, fresh_for * 1_000_000);
        assert_eq!(value.hard_until - now, served_for * 1_000_000);
        if fresh_for > 0 {
            assert_eq!(b.served(7), "old");
            fleet.clock.advance(Duration::from_secs(fresh_for));
            assert_eq!((a.served(7), b.served(7)), ("old".into(), "old".into()));
        }
        fleet.clock.advance(Duration::from_secs(served_for - fresh_for) - TICK);
        assert_eq!(held(&a), Some("old".into()));
        fleet.clock.advance(2 * TICK);
        assert_eq!((held(&a), held(&b)), (None, None));
    }
}
