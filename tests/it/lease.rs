//! Leases: moved, dropped, leaked, renewed, owned.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Freshness, Lookup, OwnedLookup, Policy, Waited};

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
fn an_overdue_lease_counts_if_nobody_took_its_place() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(Duration::from_secs(1)));
    let lease = cell.lookup().elected();
    clock.advance(TTL);
    lease.publish(1);
    assert_eq!(cell.freshness(), Freshness::Fresh);
    assert_eq!(cell.stats().superseded, 0);
}

#[test]
fn an_abandoned_lease_that_was_superseded_does_not_free_its_successors() {
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
    let OwnedLookup::Elected(lease) = cell.lookup_owned() else { panic!("the first caller is elected") };
    let OwnedLookup::Pending(pending) = cell.lookup_owned() else { panic!("the second one waits") };
    assert!(lease.previous().is_none());
    let waiter = thread::spawn(move || pending.wait());
    let builder = thread::spawn(move || lease.publish(1));
    assert!(matches!(waiter.join().unwrap(), Waited::Published(value) if *value == 1));
    builder.join().unwrap();
    assert!(matches!(cell.lookup_owned(), OwnedLookup::Fresh(value) if *value == 1));
}

#[test]
fn owned_leases_fail_renew_and_are_given_back_like_others() {
    let policy = Policy::ttl(TTL).stale_while_refresh(Duration::ZERO).retry_backoff(TTL, TTL);
    let (cell, clock) = cell_with(policy);
    let cell = Arc::new(cell);
    let elected = || match cell.lookup_owned() {
        OwnedLookup::Elected(lease) => lease,
        other => panic!("{other:?}"),
    };
    drop(elected());
    assert_eq!(*elected().fail("no"), "no");
    assert!(matches!(cell.lookup_owned(), OwnedLookup::Failed(_)));
    clock.advance(TTL);
    elected().publish_for(1, Duration::ZERO);
    clock.advance(TICK);
    let lease = elected();
    let OwnedLookup::Pending(pending) = cell.lookup_owned() else { panic!("somebody builds") };
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
    let OwnedLookup::Elected(lease) = cell.lookup_owned() else { unreachable!() };
    let weak = Arc::downgrade(&cell);
    drop(cell);
    assert_eq!(*lease.publish(1), 1);
    assert!(weak.upgrade().is_none());
}
