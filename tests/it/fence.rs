//! G4: what began before an invalidation, a clear or a set never undoes it.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Freshness, Lookup, ManualClock, Policy};

use crate::support::{LookupExt, TICK, TTL, cell, cell_with, eventually, stale_cell};

#[test]
fn g4_a_build_from_before_an_invalidation_is_published_as_stale() {
    for policy in [Policy::ttl(TTL), Policy::never_expires(), Policy::ttl(Duration::MAX)] {
        let (cell, _clock) = cell_with(policy);
        let lease = cell.lookup().elected();
        cell.invalidate();
        assert_eq!(*lease.publish(1), 1);
        assert_eq!(cell.generation(), 1);
        assert_eq!(cell.freshness(), Freshness::Stale);
        assert_eq!(cell.get().as_deref(), Some(&1));
        // The next caller builds, and that counts.
        cell.lookup().elected().publish(2);
        assert_eq!(cell.freshness(), Freshness::Fresh);
        assert_eq!(cell.stats().fenced, 1);
    }
}

#[test]
fn g4_an_invalidation_from_before_the_build_does_not_touch_it() {
    let (cell, _clock) = cell();
    cell.set(1);
    cell.invalidate();
    assert_eq!(cell.freshness(), Freshness::Stale);
    cell.lookup().elected().publish(2);
    assert_eq!(cell.freshness(), Freshness::Fresh);
    assert_eq!(cell.stats().fenced, 0);
}

#[test]
fn g4_a_renewal_from_before_an_invalidation_is_stale_too() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    cell.invalidate();
    let renewed = lease.renew().unwrap();
    assert_eq!(*renewed, 1);
    assert_eq!(cell.freshness(), Freshness::Stale);
    assert_eq!(cell.generation(), 2);
}

#[test]
fn g4_a_ttl_of_its_own_does_not_get_round_the_fence() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    cell.invalidate();
    lease.publish_for(1, Duration::MAX);
    assert_eq!(cell.freshness(), Freshness::Stale);
}

#[test]
fn g4_an_invalidated_value_is_served_while_it_is_rebuilt_and_no_longer_than_its_window() {
    let (cell, clock) = cell_with(Policy::never_expires().stale_while_refresh(TTL));
    cell.set(1);
    clock.advance(Duration::from_secs(1000));
    cell.invalidate();
    let lease = cell.lookup().elected();
    clock.advance(TTL - TICK);
    assert!(matches!(cell.lookup(), Lookup::Stale(_)));
    clock.advance(TICK);
    assert!(matches!(cell.lookup(), Lookup::Pending(_)));
    drop(lease);
}

#[test]
fn g4_a_second_invalidation_does_not_lengthen_the_window() {
    let (cell, clock) = cell_with(Policy::never_expires().stale_while_refresh(TTL));
    cell.set(1);
    cell.invalidate();
    clock.advance(TTL - TICK);
    cell.invalidate();
    clock.advance(TICK);
    assert_eq!(cell.freshness(), Freshness::Expired);
}

#[test]
fn g4_a_build_from_before_a_clear_is_for_its_own_caller_only() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    assert_eq!(cell.clear().as_deref(), Some(&1));
    assert_eq!(*lease.publish(2), 2);
    assert_eq!(cell.get(), None);
    assert_eq!(cell.generation(), 1);
    assert_eq!(cell.freshness(), Freshness::Empty);
    assert_eq!(cell.stats().fenced, 1);
    assert!(cell.lookup().elected().previous().is_none());
}

#[test]
fn g4_a_renewal_from_before_a_clear_does_not_bring_the_value_back() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    cell.clear();
    assert_eq!(*lease.renew().unwrap(), 1);
    assert_eq!(cell.get(), None);
}

/// Who waits for a build that a clear has fenced off does not get its result: one of them builds again.
#[test]
fn g4_waiters_do_not_get_what_a_clear_has_fenced_off() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    cell.clear();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.get_or_refresh(|| 3));
        eventually("it waits", || cell.stats().waits == 1);
        assert_eq!(*lease.publish(2), 2);
        assert_eq!(*waiter.join().unwrap(), 3);
    });
    assert_eq!(cell.get().as_deref(), Some(&3));
}

#[test]
fn g4_a_build_from_before_a_set_does_not_displace_it() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    let set = cell.set(2);
    assert!(Arc::ptr_eq(&lease.publish(3), &set));
    assert!(Arc::ptr_eq(&cell.get().unwrap(), &set));
    assert_eq!(cell.freshness(), Freshness::Fresh);
    assert_eq!(cell.generation(), 2);
    assert!(!cell.is_refreshing());
}

#[test]
fn g4_a_renewal_from_before_a_set_does_not_displace_it() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    let set = cell.set(2);
    assert!(Arc::ptr_eq(&lease.renew().unwrap(), &set));
    assert!(Arc::ptr_eq(&cell.get().unwrap(), &set));
}

#[test]
fn g4_a_set_that_was_cleared_again_leaves_the_build_to_its_own_caller() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    cell.set(1);
    cell.clear();
    assert_eq!(*lease.publish(2), 2);
    assert_eq!(cell.get(), None);
}

#[test]
fn g4_waiters_get_the_value_that_is_set_while_they_wait() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.get_or_refresh(|| unreachable!()));
        eventually("it waits", || cell.stats().waits == 1);
        cell.set(1);
        assert_eq!(*waiter.join().unwrap(), 1);
    });
    drop(lease);
}

#[test]
fn g4_a_superseded_build_is_fenced_off() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(Duration::from_secs(1)));
    let slow = cell.lookup().elected();
    clock.advance(Duration::from_secs(1) + TICK);
    let quick = cell.lookup().elected();
    assert_eq!(cell.stats().superseded, 1);
    let published = quick.publish(2);
    assert!(Arc::ptr_eq(&slow.publish(1), &published));
    assert_eq!(cell.get().as_deref(), Some(&2));
    assert_eq!(cell.generation(), 1);
}

#[test]
fn g4_a_superseded_build_without_a_successor_yet_is_for_its_own_caller() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(Duration::from_secs(1)));
    let slow = cell.lookup().elected();
    clock.advance(Duration::from_secs(1) + TICK);
    let quick = cell.lookup().elected();
    assert_eq!(*slow.publish(1), 1);
    assert_eq!(cell.get(), None);
    assert!(cell.is_refreshing());
    quick.publish(2);
    assert_eq!(cell.get().as_deref(), Some(&2));
}

/// If its successor's value is one that its caller may be served when it ends, at the last moment too; else its own.
#[test]
fn g4_a_superseded_build_gets_what_its_caller_may_be_served() {
    const SECOND: Duration = Duration::from_secs(1);
    type Read = fn(&DogpileCell<u32, ManualClock>, &mut dyn FnMut() -> u32) -> Arc<u32>;
    let reads: [(Read, Duration); 3] = [
        (|cell, build| cell.get_or_refresh(build), TTL + SECOND),
        (|cell, build| cell.get_fresh_or_refresh(build), TTL),
        // Any whose build began after the call.
        (|cell, build| cell.refresh(build), 1000 * TTL),
    ];
    for (number, (read, until)) in reads.into_iter().enumerate() {
        for (age, expected) in [(until, 2), (until + TICK, if number == 2 { 2 } else { 1 })] {
            let policy = Policy::ttl(TTL).stale_while_refresh(SECOND).lease_timeout(SECOND);
            let (cell, clock) = cell_with(policy);
            let value = read(&cell, &mut || {
                clock.advance(SECOND + TICK);
                cell.lookup().elected().publish(2);
                clock.advance(age);
                1
            });
            assert_eq!(*value, expected, "read {number}, at the age of {age:?}");
        }
    }
}

#[test]
fn g3_a_clear_does_not_begin_to_count_anew() {
    let (cell, _clock) = cell();
    cell.set(1);
    cell.clear();
    assert_eq!(cell.generation(), 1);
    cell.set(2);
    assert_eq!(cell.generation(), 2);
}

#[test]
fn a_clear_of_an_empty_cell_and_an_invalidation_of_one_do_nothing() {
    let (cell, _clock) = cell::<u32>();
    assert_eq!(cell.clear(), None);
    cell.invalidate();
    assert_eq!(cell.freshness(), Freshness::Empty);
    assert_eq!(*cell.get_or_refresh(|| 1), 1);
    assert_eq!(cell.freshness(), Freshness::Fresh);
}
