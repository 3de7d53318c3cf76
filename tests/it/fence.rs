//! G4, and G1 of doomed builds: what began before an invalidation, a clear or a set never undoes it.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Freshness, Lookup, ManualClock, Policy, Waited};

use crate::support::{Down, LookupExt, TICK, TTL, cell, cell_with, eventually, panic_message, stale_cell};

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
    assert!(!cell.is_refreshing());
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

/// The waiters of a build that a clear has doomed do not wait for its end: one of them builds at once.
#[test]
fn g1_waiters_do_not_wait_for_a_build_that_a_clear_has_doomed() {
    const WAITERS: u64 = 4;
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..WAITERS).map(|_| scope.spawn(|| *cell.get_or_refresh(|| 3))).collect();
        eventually("all wait", || cell.stats().waits == WAITERS);
        cell.clear();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), 3);
        }
    });
    assert_eq!(cell.stats().builds, 2);
    // Its own caller gets what the cell serves now.
    assert!(lease.is_fenced());
    assert_eq!(*lease.publish(2), 3);
    assert_eq!(cell.get().as_deref(), Some(&3));
}

/// What takes the lease away from a running build, whether its waiters get a value by it, and the value there is then.
#[test]
fn g1_a_doomed_build_holds_no_lease() {
    type Doom = fn(&DogpileCell<u32, ManualClock>);
    let dooms: [(&str, Doom, Option<u32>); 4] = [
        ("set", |cell| drop(cell.set(5)), Some(5)),
        ("clear", |cell| drop(cell.clear()), None),
        ("revoke", |cell| assert!(cell.revoke()), Some(1)),
        ("reset", |cell| cell.reset(), None),
    ];
    for (name, doom, value) in dooms {
        let (cell, _clock) = stale_cell(1);
        let doomed = cell.lookup().elected();
        assert!(cell.is_refreshing() && !doomed.is_fenced(), "{name}");
        doom(&cell);
        assert!(!cell.is_refreshing() && doomed.is_fenced(), "{name}");
        assert_eq!(cell.get().as_deref().copied(), value, "{name}");
        // The next caller that needs a build is elected at once, while the doomed build still runs.
        let next = cell.request().no_cache().lookup().elected();
        assert!(cell.is_refreshing(), "{name}");
        // The end of the doomed build does not give back the lease of the next one.
        assert_eq!(*doomed.publish(2), value.unwrap_or(2), "{name}");
        assert!(cell.is_refreshing() && !next.is_fenced(), "{name}");
        assert_eq!(*next.publish(3), 3, "{name}");
        assert_eq!((cell.get().as_deref(), cell.is_refreshing()), (Some(&3), false), "{name}");
    }
}

/// A doomed build that fails leaves no trace: no retry pause, no error, and no waiter is woken by it.
#[test]
fn g1_the_failure_of_a_doomed_build_is_not_recorded() {
    for fails in [true, false] {
        let (cell, _clock) = cell_with::<u32>(Policy::ttl(TTL).retry_backoff(TTL, TTL));
        let doomed = cell.lookup().elected();
        cell.clear();
        let next = cell.lookup().elected();
        let pending = cell.lookup().pending();
        if fails {
            doomed.fail(Down(1));
        } else {
            panic_message(move || {
                let _doomed = doomed;
                panic!("no")
            });
        }
        assert!(cell.last_error().is_none());
        assert_eq!(cell.stats().consecutive_failures, 0);
        let pending = pending.wait_timeout(Duration::ZERO).expect_err("the next build still runs");
        drop(next);
        assert!(matches!(pending.wait(), Waited::Abandoned));
        // No pause runs.
        drop(cell.lookup().elected());
    }
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

/// The value of its successor, up to the last tick at which that may be served and meets the conditions; after that its own.
#[test]
fn g4_a_superseded_build_gets_what_its_caller_may_be_served() {
    const SECOND: Duration = Duration::from_secs(1);
    type Read = fn(&DogpileCell<u32, ManualClock>, &mut dyn FnMut() -> u32) -> Arc<u32>;
    let reads: [(Read, Duration); 5] = [
        (|cell, build| cell.get_or_refresh(build), TTL + SECOND),
        (|cell, build| cell.request().max_stale(Duration::ZERO).get(build), TTL),
        (|cell, build| cell.request().max_age(TTL / 2).get(build), TTL / 2),
        (|cell, build| cell.request().newer_than(0).get(build), TTL + SECOND),
        (|cell, build| cell.request().no_cache().get(build), TTL + SECOND),
    ];
    for (number, (read, until)) in reads.into_iter().enumerate() {
        for (age, expected) in [(until, 2), (until + TICK, 1)] {
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
