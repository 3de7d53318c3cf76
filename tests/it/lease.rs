//! Leases: moved, dropped, leaked, renewed, owned.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Freshness, Lookup, Policy, PublishOutcome, Waited};

use crate::support::{LookupExt, TICK, TTL, cell, cell_with, stale_cell};

#[test]
fn a_lease_can_be_ended_on_another_thread() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        scope.spawn(move || lease.publish(1));
        // The thread that was elected may wait for the one that builds in its place.
        assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
    });
}

#[test]
fn a_lease_can_be_dropped_on_another_thread() {
    let (cell, _clock) = cell::<u32>();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        scope.spawn(move || drop(lease));
    });
    assert!(matches!(cell.lookup(), Lookup::Elected(_)));
}

#[test]
fn a_leaked_lease_is_superseded_after_its_timeout() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(Duration::from_secs(1)));
    cell.set(1);
    clock.advance(TTL + TICK);
    thread::scope(|scope| {
        scope.spawn(|| std::mem::forget(cell.lookup().elected()));
    });
    clock.advance(Duration::from_secs(1));
    assert!(matches!(cell.lookup(), Lookup::Stale(_)));
    clock.advance(TICK);
    cell.lookup().elected().publish(2);
    assert_eq!(cell.stats().superseded, 1);
}

#[test]
fn an_overdue_lease_counts_if_no_other_took_its_place() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(Duration::from_secs(1)));
    let lease = cell.lookup().elected();
    clock.advance(TTL);
    lease.publish(1);
    assert_eq!(cell.freshness(), Freshness::Fresh);
    assert_eq!(cell.stats().superseded, 0);
}

#[test]
fn an_abandoned_lease_that_was_superseded_does_not_release_its_successor() {
    let (cell, clock) = cell_with::<u32>(Policy::ttl(TTL).lease_timeout(Duration::from_secs(1)));
    let slow = cell.lookup().elected();
    clock.advance(Duration::from_secs(1) + TICK);
    let quick = cell.lookup().elected();
    drop(slow);
    assert!(cell.is_refreshing());
    assert!(matches!(cell.lookup(), Lookup::Pending(_)));
    drop(quick);
    assert!(!cell.is_refreshing());
}

#[test]
fn renewing_keeps_the_arc_and_counts_as_a_publication() {
    let (cell, clock) = stale_cell(1);
    let before = cell.get().unwrap();
    let lease = cell.lookup().elected();
    assert!(Arc::ptr_eq(lease.previous().unwrap(), &before));
    let renewed = lease.renew().unwrap();
    assert!(Arc::ptr_eq(&renewed, &before));
    assert_eq!((cell.generation(), cell.freshness()), (2, Freshness::Fresh));
    assert_eq!(cell.snapshot().unwrap().age, Duration::ZERO);
    clock.advance(TTL);
    assert_eq!(cell.freshness(), Freshness::Fresh);
}

#[test]
fn a_renewed_value_may_choose_its_own_ttl() {
    let (cell, clock) = stale_cell(1);
    let before = cell.get().unwrap();
    let renewed = cell.lookup().elected().renew_for(TTL / 2).unwrap();
    assert!(Arc::ptr_eq(&renewed, &before));
    clock.advance(TTL / 2);
    assert_eq!((cell.generation(), cell.freshness()), (2, Freshness::Fresh));
    clock.advance(TICK);
    assert_eq!(cell.freshness(), Freshness::Stale);
    // The next one has the policy's again.
    cell.lookup().elected().renew().unwrap();
    clock.advance(TTL);
    assert_eq!(cell.freshness(), Freshness::Fresh);
    clock.advance(TICK);
    // And the fence applies.
    let lease = cell.lookup().elected();
    cell.invalidate();
    lease.renew_for(TTL).unwrap();
    assert_eq!(cell.freshness(), Freshness::Stale);
}

#[test]
fn there_is_nothing_to_renew_in_an_empty_cell() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected().renew().unwrap_err();
    let lease = lease.renew_for(TTL).unwrap_err();
    assert!(cell.is_refreshing());
    lease.publish(1);
    assert_eq!(cell.stats().abandoned, 0);
}

#[test]
fn waiters_are_handed_a_renewed_value() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO));
    cell.set(1);
    clock.advance(TTL + TICK);
    let lease = cell.lookup().elected();
    let pending = cell.lookup().pending();
    lease.renew().unwrap();
    assert!(matches!(pending.wait(), Waited::Published(value) if *value == 1));
}

#[test]
fn a_build_keeps_no_replaced_value_alive() {
    let (cell, _clock) = stale_cell(String::from("old"));
    let old = cell.get().unwrap();
    cell.lookup().elected().publish(String::from("new"));
    assert_eq!(Arc::strong_count(&old), 1);
}

#[test]
fn owned_leases_outlive_the_borrow() {
    let cell = Arc::new(DogpileCell::new(TTL));
    let Lookup::Elected(lease) = cell.lookup_owned() else { panic!("the first caller is elected") };
    let Lookup::Pending(pending) = cell.lookup_owned() else { panic!("the second one waits") };
    assert!(lease.previous().is_none());
    let waiter = thread::spawn(move || pending.wait());
    let builder = thread::spawn(move || lease.publish(1));
    assert!(matches!(waiter.join().unwrap(), Waited::Published(value) if *value == 1));
    builder.join().unwrap();
    assert!(matches!(cell.lookup_owned(), Lookup::Fresh(value) if *value == 1));
}

#[test]
fn owned_leases_fail_renew_and_are_given_back_like_others() {
    let policy = Policy::ttl(TTL).stale_while_refresh(Duration::ZERO).retry_backoff(TTL, TTL);
    let (cell, clock) = cell_with(policy);
    let cell = Arc::new(cell);
    let elected = || match cell.lookup_owned() {
        Lookup::Elected(lease) => lease,
        other => panic!("{other:?}"),
    };
    drop(elected());
    assert_eq!(elected().fail("no").to_string(), "no");
    assert!(matches!(cell.lookup_owned(), Lookup::Failed(_)));
    clock.advance(TTL);
    elected().publish_for(1, Duration::ZERO);
    clock.advance(TICK);
    let lease = elected();
    let Lookup::Pending(pending) = cell.lookup_owned() else { panic!("a build runs") };
    let pending = pending.wait_timeout(Duration::ZERO).unwrap_err();
    lease.renew().unwrap();
    assert!(matches!(pending.wait_timeout(Duration::ZERO), Ok(Waited::Published(_))));
    clock.advance(TTL + TICK);
    cell.invalidate();
    drop(elected());
    cell.set(2);
    cell.invalidate();
    assert!(elected().renew_for(TTL).is_ok());
    assert_eq!(cell.stats().abandoned, 2);
}

#[test]
fn an_owned_lease_keeps_its_cell_alive() {
    let cell = Arc::new(DogpileCell::new(TTL));
    let Lookup::Elected(lease) = cell.lookup_owned() else { unreachable!() };
    let weak = Arc::downgrade(&cell);
    drop(cell);
    assert_eq!(*lease.publish(1), 1);
    assert!(weak.upgrade().is_none());
}

/// Of a cell in a `static` or in an `Arc`, one type fits all places.
#[test]
fn a_borrowed_and_an_owned_lease_have_one_type() {
    static CELL: DogpileCell<u32> = DogpileCell::new(TTL);
    let mut leases = vec![CELL.lookup().elected(), Arc::new(DogpileCell::new(TTL)).lookup_owned().elected()];
    for lease in leases.drain(..) {
        assert_eq!(*lease.publish(1), 1);
    }
    assert_eq!(CELL.get().as_deref(), Some(&1));
}

#[test]
fn a_lease_knows_the_generation_that_its_value_will_have() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    assert_eq!(lease.generation(), 1);
    lease.publish(1);
    cell.set(2);
    cell.clear();
    let lease = cell.lookup().elected();
    assert_eq!((lease.generation(), cell.generation()), (3, 2));
    lease.publish(3);
    assert_eq!(cell.generation(), 3);
}

#[test]
fn an_invalidation_does_not_fence_a_lease_but_a_successor_does() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
    let slow = cell.lookup().elected();
    cell.invalidate();
    assert!(!slow.is_fenced());
    clock.advance(TTL + TICK);
    // It is overdue, but no other caller has taken its place.
    assert!(!slow.is_fenced());
    let quick = cell.lookup().elected();
    assert!(slow.is_fenced() && !quick.is_fenced());
    // A second loss does not matter, nor that the successor has ended.
    quick.publish(2);
    assert!(slow.is_fenced());
    assert_eq!(*slow.publish(1), 2);
}

#[test]
fn a_value_that_is_in_an_arc_is_published_as_it_is() {
    let (cell, _clock) = cell();
    let shared = Arc::new(1);
    let published = cell.lookup().elected().publish_arc(Arc::clone(&shared));
    assert!(Arc::ptr_eq(&published, &shared));
    assert!(Arc::ptr_eq(&cell.get().unwrap(), &shared));
    assert_eq!(Arc::strong_count(&shared), 3);
}

#[test]
fn publish_snapshot_tells_what_has_become_of_the_value() {
    const WINDOW: Duration = Duration::from_secs(3);
    let policy = Policy::ttl(TTL).stale_while_refresh(WINDOW).lease_timeout(TTL);
    let (cell, clock) = cell_with(policy);

    let published = cell.lookup().elected().publish_snapshot(Arc::new(1), None);
    assert_eq!((*published.value, published.generation), (1, Some(1)));
    assert_eq!((published.fresh_for, published.servable_for), (TTL, TTL + WINDOW));
    assert_eq!(published.outcome, PublishOutcome::Published);

    clock.advance(TTL + TICK);
    let published = cell.lookup().elected().publish_snapshot(Arc::new(2), Some(2 * TTL));
    assert_eq!((published.generation, published.fresh_for), (Some(2), 2 * TTL));

    clock.advance(2 * TTL + TICK);
    let lease = cell.lookup().elected();
    cell.invalidate();
    let published = lease.publish_snapshot(Arc::new(3), None);
    assert_eq!((*published.value, published.generation), (3, Some(3)));
    assert_eq!(published.fresh_for, Duration::ZERO);
    // Up to the last tick before the end of the window, which begins at the invalidation.
    assert_eq!(published.servable_for, WINDOW - TICK);
    assert_eq!(published.outcome, PublishOutcome::PublishedStale);

    // Displaced, with something to serve instead, and without.
    let lease = cell.lookup().elected();
    let set = cell.set(4);
    clock.advance(TICK);
    let published = lease.publish_snapshot(Arc::new(5), None);
    assert!(Arc::ptr_eq(&published.value, &set));
    assert_eq!((published.generation, published.outcome), (Some(4), PublishOutcome::Displaced));
    assert_eq!(published.fresh_for, TTL - TICK);
    let lease = cell.request().no_cache().lookup().elected();
    cell.clear();
    let published = lease.publish_snapshot(Arc::new(6), None);
    assert_eq!((*published.value, published.generation), (6, None));
    assert_eq!((published.fresh_for, published.servable_for), (Duration::ZERO, Duration::ZERO));
    assert_eq!(published.outcome, PublishOutcome::Displaced);

    let slow = cell.lookup().elected();
    clock.advance(TTL + TICK);
    let quick = cell.lookup().elected();
    let published = slow.publish_snapshot(Arc::new(7), None);
    assert_eq!((*published.value, published.generation), (7, None));
    assert_eq!(published.outcome, PublishOutcome::Superseded);
    let published = quick.publish_snapshot(Arc::new(8), Some(Duration::MAX));
    assert_eq!((published.fresh_for, published.servable_for), (Duration::MAX, Duration::MAX));
    assert_eq!(format!("{published:?}"), "Published { generation: Some(5), outcome: Published, .. }");
}
