//! A store that is down.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use dogpile::Freshness;

use crate::support::*;

#[test]
fn stale_as_long_as_allowed_then_one_build_per_process_then_back_to_the_fleet() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    node.get_or_refresh(|| text("old"));
    way.down.store(true, Ordering::SeqCst);
    fleet.clock.advance(11 * SECOND);
    for _ in 0..100 {
        assert_eq!(served(&node), "old");
    }
    assert!(node.is_store_down());
    // An election, and perhaps a look, which are counted apart.
    assert!((1..=2).contains(&node.stats().store_errors), "the breaker is open");
    assert!(node.last_store_error().unwrap().to_string().ends_with("down"));

    // Past the bound.
    fleet.clock.advance(110 * SECOND);
    let builds = std::sync::atomic::AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let value = node.get_or_refresh(|| {
                    builds.fetch_add(1, Ordering::SeqCst);
                    text("local")
                });
                assert_eq!(*value, "local");
            });
        }
    });
    assert_eq!(builds.load(Ordering::SeqCst), 1);
    assert_eq!((node.stats().local_builds, node.freshness()), (1, Freshness::Fresh));
    assert!(node.snapshot().unwrap().version.is_none());

    way.down.store(false, Ordering::SeqCst);
    fleet.clock.advance(15 * SECOND);
    eventually("the store is used again", || {
        fleet.clock.advance(SECOND / 10);
        *node.get_or_refresh(|| text("shared")) == "shared"
    });
    assert!(!node.is_store_down());
    let newcomer = fleet.node(POLICY);
    assert_eq!(served(&newcomer), "shared");
}

#[test]
fn waiters_do_not_wait_for_a_store_that_is_down() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    way.down.store(true, Ordering::SeqCst);
    // Nothing to serve, and the clock stands still.
    assert_eq!(*node.get_or_refresh(|| text("local")), "local");
    // The worker watches a value that goes out of its bound while callers wait.
    fleet.clock.advance(11 * SECOND);
    assert_eq!(served(&node), "local");
    fleet.clock.advance(110 * SECOND);
    assert_eq!(*node.get_or_refresh(|| text("local again")), "local again");
}

#[test]
fn a_store_that_fails_at_publishing_leaves_the_value_to_this_node() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    let value = node.get_or_refresh(|| {
        way.down.store(true, Ordering::SeqCst);
        text("value")
    });
    assert_eq!(*value, "value");
    assert_eq!(node.freshness(), Freshness::Fresh);
    let stats = node.stats();
    assert_eq!((stats.published, stats.local_builds, stats.store_errors), (0, 1, 2), "{stats:?}");
}

#[test]
fn what_a_node_built_for_itself_is_not_replaced_by_something_older() {
    let fleet = Fleet::new();
    // The fleet's value is fresh for longer than this node's own.
    let long = POLICY.stale_while_refresh(Duration::from_secs(1000));
    let writer = fleet.node(dogpile_fleet::FleetPolicy::ttl(Duration::from_secs(60)).no_poll());
    let (node, way) = fleet.disturbed(long);
    writer.get_or_refresh(|| text("older"));
    fleet.clock.advance(SECOND);
    way.down.store(true, Ordering::SeqCst);
    assert_eq!(*node.get_or_refresh(|| text("newer")), "newer");
    way.down.store(false, Ordering::SeqCst);
    fleet.clock.advance(15 * SECOND);
    for _ in 0..100 {
        fleet.clock.advance(SECOND / 10);
        assert_eq!(served(&node), "newer");
    }
    writer.invalidate().unwrap();
    writer.get_or_refresh(|| text("newest"));
    eventually("the new value arrives", || {
        fleet.clock.advance(SECOND / 10);
        served(&node) == "newest"
    });
}

#[test]
fn an_invalidation_that_cannot_be_told_is_an_error_and_counts_here() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    node.get_or_refresh(|| text("old"));
    way.down.store(true, Ordering::SeqCst);
    assert!(node.invalidate().is_err());
    assert_eq!(node.freshness(), Freshness::Stale);
    assert!(node.clear().is_err());
    assert_eq!(node.freshness(), Freshness::Empty);
}

#[test]
fn the_others_do_not_wait_for_a_lease_that_could_not_be_given_back() {
    let fleet = Fleet::new();
    let policy = POLICY.lease(Duration::from_secs(3600));
    let other = fleet.node(policy);
    let (node, way) = fleet.disturbed(policy);
    node.get_or_refresh(|| {
        way.down.store(true, Ordering::SeqCst);
        text("local")
    });
    way.down.store(false, Ordering::SeqCst);
    eventually("it is given back", || {
        fleet.clock.advance(SECOND / 10);
        fleet.store.entry(NAME).lease_until == 0
    });
    assert_eq!(*other.get_or_refresh(|| text("shared")), "shared");
}
