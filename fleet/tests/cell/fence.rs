//! Invalidations, and what comes too late.

use std::thread;

use dogpile::Freshness;

use crate::support::*;

#[test]
fn an_invalidation_is_seen_by_every_node_that_polls() {
    let fleet = Fleet::new();
    let policy = POLICY.poll(SECOND);
    let writer = fleet.node(policy);
    let (other, way) = fleet.disturbed(policy);
    way.hints.store(false, std::sync::atomic::Ordering::SeqCst);
    writer.get_or_refresh(|| text("old"));
    assert_eq!(served(&other), "old");
    writer.invalidate().unwrap();
    assert_eq!(writer.freshness(), Freshness::Stale);
    assert_eq!(other.freshness(), Freshness::Fresh, "it has not looked yet");
    eventually("it looks", || {
        fleet.clock.advance(SECOND / 10);
        other.freshness() == Freshness::Stale
    });
    // A read that finds the cell's lock taken, by the thread that has just declared the value stale, is served the old value.
    eventually("it is elected", || *other.get_or_refresh(|| text("new")) == "new");
    assert_eq!(other.stats().fleet_builds, 1);
}

#[test]
fn a_hint_makes_it_seen_at_once() {
    let fleet = Fleet::new();
    let policy = POLICY.poll(SECOND);
    let (writer, other) = (fleet.node(policy), fleet.node(policy));
    writer.get_or_refresh(|| text("old"));
    assert_eq!(served(&other), "old");
    // The thread that listens starts with the first value.
    eventually("it listens", || {
        writer.invalidate().unwrap();
        other.freshness() == Freshness::Stale
    });
    assert_eq!(*writer.get_or_refresh(|| text("new")), "new");
    eventually("the new value arrives", || other.get().is_some_and(|value| *value == "new"));
    assert_eq!(other.freshness(), Freshness::Fresh);
}

#[test]
fn a_build_that_was_invalidated_is_not_accepted_and_not_kept() {
    let fleet = Fleet::new();
    let (builder, writer) = (fleet.quiet(POLICY), fleet.quiet(POLICY));
    builder.get_or_refresh(|| text("first"));
    assert_eq!(served(&writer), "first");
    fleet.clock.advance(11 * SECOND);
    let value = builder.get_or_refresh(|| {
        writer.invalidate().unwrap();
        text("too early")
    });
    assert_eq!(*value, "first", "what may be served is served");
    assert_eq!(builder.get().as_deref().map(String::as_str), Some("first"));
    assert_ne!(builder.freshness(), Freshness::Fresh);
    assert_eq!(builder.stats().invalidated, 1);
    assert_eq!(*builder.get_or_refresh(|| text("second")), "second");
    assert_eq!(served(&writer), "second");
}

#[test]
fn with_nothing_else_to_return_its_own_caller_gets_it() {
    let fleet = Fleet::new();
    let (builder, writer) = (fleet.node(POLICY), fleet.node(POLICY));
    let value = builder.get_or_refresh(|| {
        writer.invalidate().unwrap();
        text("too early")
    });
    assert_eq!(*value, "too early");
    assert_eq!(builder.freshness(), Freshness::Empty);
    assert_eq!(*writer.get_or_refresh(|| text("value")), "value");
    assert_eq!(served(&builder), "value");
}

#[test]
fn a_value_that_was_cleared_is_gone_from_every_node_that_looks() {
    let fleet = Fleet::new();
    let policy = POLICY.poll(SECOND);
    let (writer, other) = (fleet.node(policy), fleet.node(policy));
    writer.get_or_refresh(|| text("old"));
    assert_eq!(served(&other), "old");
    writer.clear().unwrap();
    assert!(writer.get().is_none());
    eventually("it looks", || {
        fleet.clock.advance(SECOND / 10);
        other.get().is_none()
    });
    assert_eq!(*other.get_or_refresh(|| text("new")), "new");
    // And of one that does not look, when it asks: it is elected, but must not serve what it has.
    let sleeper = fleet.node(POLICY);
    assert_eq!(served(&sleeper), "new");
    writer.clear().unwrap();
    fleet.clock.advance(11 * SECOND);
    let value = sleeper
        .try_get_with::<&str, _>(|context| {
            assert!(context.previous().is_none());
            assert!(sleeper.get().is_none());
            Ok(text("newer").into())
        })
        .unwrap();
    assert_eq!(*value, "newer");
}

#[test]
fn after_a_clear_the_next_caller_of_the_node_builds_at_once_beside_the_build_that_came_too_early() {
    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY);
    let value = node.get_or_refresh(|| {
        node.clear().unwrap();
        thread::scope(|scope| {
            let next = scope.spawn(|| node.get_or_refresh(|| text("new")));
            assert_eq!(*next.join().unwrap(), "new");
        });
        text("too early")
    });
    assert_eq!(*value, "new", "what the cell serves by now");
    let snapshot = node.snapshot().unwrap();
    assert_eq!((&**snapshot.value, snapshot.freshness), ("new", Freshness::Fresh));
    assert_eq!(snapshot.version.unwrap().number, 1);
    let stats = node.stats();
    assert_eq!((stats.fleet_builds, stats.invalidated, stats.published), (2, 1, 1), "{stats:?}");
}

#[test]
fn a_build_that_is_overtaken_takes_over_what_overtook_it() {
    let fleet = Fleet::new();
    let (builder, writer) = (fleet.quiet(POLICY), fleet.quiet(POLICY));
    builder.get_or_refresh(|| text("old"));
    fleet.clock.advance(11 * SECOND);
    let value = builder.get_or_refresh(|| {
        writer.invalidate().unwrap();
        assert_eq!(*writer.get_or_refresh(|| text("newest")), "newest");
        text("slow")
    });
    assert_eq!(*value, "newest");
    assert_eq!(builder.freshness(), Freshness::Fresh);
    assert_eq!(builder.snapshot().unwrap().version, writer.snapshot().unwrap().version);
}

#[test]
fn a_store_that_has_lost_everything_counts_as_an_invalidation() {
    let fleet = Fleet::new();
    let policy = POLICY.poll(SECOND);
    let (one, other) = (fleet.node(policy), fleet.node(policy));
    one.get_or_refresh(|| text("old"));
    assert_eq!(served(&other), "old");
    fleet.store.forget();
    eventually("both look", || {
        fleet.clock.advance(SECOND / 10);
        one.freshness() == Freshness::Stale && other.freshness() == Freshness::Stale
    });
    assert_eq!(*one.get_or_refresh(|| text("new")), "new");
    eventually("the new value arrives", || {
        fleet.clock.advance(SECOND / 10);
        other.get().is_some_and(|value| *value == "new")
    });
}

#[test]
fn a_build_from_before_the_loss_is_not_accepted() {
    let fleet = Fleet::new();
    let (slow, quick) = (fleet.node(POLICY), fleet.node(POLICY));
    let value = slow.get_or_refresh(|| {
        fleet.store.forget();
        assert_eq!(*quick.get_or_refresh(|| text("quick")), "quick");
        text("slow")
    });
    assert_eq!(*value, "quick");
    assert_eq!(slow.stats().invalidated, 1);
}
