//! G5, G7: builds that fail.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Freshness, Lookup, Policy, RefreshError, Refreshed, Waited};

use crate::support::{
    Down, LookupExt, STRICT, TICK, TTL, cell, cell_with, eventually, gate, not_tried, panic_message,
    stale_cell, stale_cell_with, unbuilt,
};

#[test]
fn g5_an_error_leaves_the_value_and_frees_the_lease() {
    let (cell, _clock) = stale_cell_with(STRICT, 1);
    let error = cell.try_get_or_refresh(|| Err(Down(1))).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Down(1)));
    assert!(cell.last_error().is_some_and(|last| last.ptr_eq(error.build_error().unwrap())));
    assert_eq!(cell.get().as_deref(), Some(&1));
    assert!(!cell.is_refreshing());
    assert_eq!(*cell.try_get_or_refresh(|| Ok::<_, Down>(2)).unwrap(), 2);
    assert_eq!((cell.stats().failed, cell.stats().builds), (1, 2));
    assert_eq!(cell.stats().served_stale_on_error, 0);
    assert!(cell.last_error().is_none());
}

/// With nothing configured, an outage is invisible to callers as long as there is a value, and asks the source a few times
/// a minute.
#[test]
#[cfg_attr(miri, ignore = "one thread, and half of the time of a schedule")]
fn g5_by_default_an_error_costs_no_caller_the_stale_value() {
    let (cell, clock) = stale_cell(1);
    let (mut builds, mut reads) = (0, 0);
    // Ten minutes, a read every 100 ms.
    for _ in 0..6000 {
        let value = cell.try_get_or_refresh(|| {
            builds += 1;
            Err(Down(builds))
        });
        assert_eq!(*value.unwrap(), 1);
        assert_eq!(*cell.get_or_refresh(unbuilt), 1);
        reads += 1;
        clock.advance(Duration::from_millis(100));
    }
    // Pauses of 0.1, 0.2, 0.4, 0.8, 1.6, 3.2 and 6.4 s, which are 12.7 s, then of 10 s.
    assert_eq!((reads, builds), (6000, 7 + 59));
    let stats = cell.stats();
    assert_eq!((stats.failed, stats.consecutive_failures), (66, 66));
    assert_eq!(stats.served_stale_on_error, 66);
    assert_eq!(cell.last_error().unwrap().downcast_ref(), Some(&Down(66)));
    clock.advance(Duration::from_secs(10));
    assert_eq!(*cell.try_get_or_refresh(|| Ok::<_, Down>(2)).unwrap(), 2);
    assert_eq!(cell.stats().consecutive_failures, 0);
    assert!(cell.last_error().is_none());
}

/// The window for errors follows the one for refreshing until it is set.
#[test]
fn by_default_a_stale_value_stands_in_for_an_error_as_long_as_it_may_be_served() {
    let policy = Policy::ttl(TTL).stale_while_refresh(TTL).retry_backoff(Duration::ZERO, Duration::ZERO);
    let (cell, clock) = cell_with(policy);
    cell.set(1);
    clock.advance(2 * TTL);
    assert_eq!(*cell.try_get_or_refresh(|| Err(Down(1))).unwrap(), 1);
    clock.advance(TICK);
    let error = cell.try_get_or_refresh(|| Err(Down(2))).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Down(2)));
    assert_eq!(cell.stats().served_stale_on_error, 1);
}

#[test]
fn g5_a_panic_leaves_the_value_and_frees_the_lease() {
    let (cell, _clock) = stale_cell_with(STRICT, 1);
    assert_eq!(panic_message(|| cell.get_or_refresh(|| panic!("no"))), "no");
    assert_eq!(cell.last_error().unwrap().to_string(), "the build panicked: no");
    assert_eq!(cell.get().as_deref(), Some(&1));
    assert!(!cell.is_refreshing());
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (1, 0));
}

#[test]
fn g5_an_abandoned_lease_leaves_the_value_and_is_free_again() {
    let (cell, _clock) = stale_cell(1);
    drop(cell.lookup().elected());
    assert_eq!(cell.get().as_deref(), Some(&1));
    cell.lookup().elected().publish(2);
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (0, 1));
}

/// A lease that is dropped while the thread unwinds for another reason than the build has not panicked.
#[test]
fn g5_a_lease_that_was_taken_during_a_panic_is_abandoned_not_panicked() {
    struct LooksUp<'a>(&'a dogpile::DogpileCell<u32>);
    impl Drop for LooksUp<'_> {
        fn drop(&mut self) {
            drop(self.0.lookup().elected());
        }
    }
    let cell = dogpile::DogpileCell::new(TTL);
    panic_message(|| {
        let _looks_up = LooksUp(&cell);
        panic!("for another reason");
    });
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (0, 1));
}

#[test]
fn g7_the_waiters_of_a_failed_build_share_its_error() {
    const WAITERS: u64 = 8;
    let (cell, _clock) = cell::<u32>();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiters: Vec<_> =
            (0..WAITERS).map(|_| scope.spawn(|| cell.try_get_or_refresh(not_tried))).collect();
        eventually("all wait", || cell.stats().waits == WAITERS);
        let error = lease.fail(Down(1));
        for waiter in waiters {
            match waiter.join().unwrap() {
                Err(RefreshError::Build(shared)) => assert!(shared.ptr_eq(&error)),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(cell.stats().builds, 1);
}

/// Whatever the error type of their closures is.
#[test]
fn g7_waiters_whose_builds_have_other_error_types_share_the_error_too() {
    let (cell, _clock) = cell::<u32>();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let parsing = scope.spawn(|| cell.try_get_or_refresh(|| "seven".parse()));
        let with_text = scope.spawn(|| cell.try_get_or_refresh(|| Err("of another type")));
        let conditional = scope.spawn(|| {
            let build = |_| -> std::io::Result<Refreshed<u32>> { unbuilt() };
            cell.request().newer_than(0).try_get_with(build)
        });
        eventually("all wait", || cell.stats().waits == 3);
        let error = lease.fail(Down(1));
        for waiter in [parsing.join(), with_text.join(), conditional.join()] {
            let shared = waiter.unwrap().unwrap_err();
            assert_eq!(shared.downcast_ref(), Some(&Down(1)));
            assert!(shared.build_error().unwrap().ptr_eq(&error));
        }
    });
    assert_eq!(cell.stats().builds, 1);
}

/// They waited for this attempt: its error concerns them, and the value that the policy lets stand in for it.
#[test]
fn g7_waiters_beside_an_old_value_share_the_error_or_are_served_by_the_policy() {
    for (policy, is_served) in [(STRICT, false), (Policy::ttl(TTL), true)] {
        let (cell, _clock) = stale_cell_with(policy.stale_while_refresh(TTL), 1);
        let (strict, lenient) = (cell.request().newer_than(1), cell.request());
        let lease = cell.lookup().elected();
        thread::scope(|scope| {
            let strict = scope.spawn(|| strict.try_get(not_tried));
            eventually("it waits", || cell.stats().waits == 1);
            let error = lease.fail(Down(1));
            // What it asked for is not there.
            let shared = strict.join().unwrap().unwrap_err();
            assert!(shared.build_error().unwrap().ptr_eq(&error));
        });
        let result = lenient.try_get(|| Err(Down(2)));
        assert_eq!(result.ok().as_deref(), is_served.then_some(&1));
    }
}

#[test]
fn g7_a_waiter_that_can_return_no_error_builds_itself() {
    let (cell, _clock) = cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.get_or_refresh(|| 1));
        eventually("it waits", || cell.stats().waits == 1);
        lease.fail(Down(1));
        assert_eq!(*waiter.join().unwrap(), 1);
    });
}

#[test]
fn g7_when_a_first_build_panics_exactly_one_waiter_is_elected_next() {
    const WAITERS: u64 = 8;
    let (cell, _clock) = cell::<u32>();
    let (first, first_keeper) = gate();
    let (second, second_keeper) = gate();
    let builds = AtomicU32::new(0);
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            panic_message(|| {
                cell.get_or_refresh(|| {
                    first.pass();
                    panic!("for my own caller")
                })
            })
        });
        first_keeper.wait_for_arrival();
        let pending = cell.lookup().pending();
        let waiters: Vec<_> = (0..WAITERS)
            .map(|_| {
                scope.spawn(|| {
                    cell.get_or_refresh(|| {
                        builds.fetch_add(1, Ordering::Relaxed);
                        second.pass();
                        2
                    })
                })
            })
            .collect();
        eventually("all wait", || cell.stats().waits == WAITERS);
        first_keeper.open();
        second_keeper.wait_for_arrival();
        eventually("the others wait again", || cell.stats().waits == 2 * WAITERS - 1);
        assert_eq!(builds.load(Ordering::Relaxed), 1);
        second_keeper.open();
        // The panic has reached its own caller only.
        assert_eq!(builder.join().unwrap(), "for my own caller");
        assert!(matches!(pending.wait(), Waited::Abandoned));
        for waiter in waiters {
            assert_eq!(*waiter.join().unwrap(), 2);
        }
    });
    assert_eq!(cell.stats().panicked, 1);
}

#[test]
fn g7_when_a_lease_is_abandoned_exactly_one_waiter_is_elected_next() {
    const WAITERS: u64 = 4;
    let (cell, _clock) = cell::<u32>();
    let lease = cell.lookup().elected();
    let builds = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..WAITERS {
            scope.spawn(|| {
                let value = cell.get_or_refresh(|| builds.fetch_add(1, Ordering::Relaxed) + 1);
                assert_eq!(*value, 1);
            });
        }
        eventually("all wait", || cell.stats().waits == WAITERS);
        drop(lease);
    });
    assert_eq!(builds.into_inner(), 1);
}

#[test]
fn after_a_failure_no_caller_is_elected_for_the_pause_which_doubles() {
    let second = Duration::from_secs(1);
    let (cell, clock) = cell_with(Policy::ttl(TTL).retry_backoff(second, 3 * second));
    cell.set(1);
    clock.advance(TTL + TICK);
    for pause in [1, 2, 3, 3] {
        cell.lookup().elected().fail(Down(pause));
        assert!(matches!(cell.lookup(), Lookup::Stale(_)));
        clock.advance(second * pause - TICK);
        assert!(matches!(cell.lookup(), Lookup::Stale(_)));
        assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
        clock.advance(TICK);
    }
    // A publication ends the row.
    cell.lookup().elected().publish(2);
    clock.advance(TTL + TICK);
    cell.lookup().elected().fail(Down(0));
    clock.advance(second);
    cell.lookup().elected().publish(3);
}

#[test]
fn a_panic_begins_a_pause_too_where_there_is_something_to_serve() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    cell.set(1);
    clock.advance(TTL + TICK);
    panic_message(|| cell.get_or_refresh(|| panic!("no")));
    assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
    clock.advance(TTL);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    // With nothing to serve and no error to show there is no use in pausing.
    cell.clear();
    panic_message(|| cell.get_or_refresh(|| panic!("no")));
    assert!(matches!(cell.lookup(), Lookup::Elected(_)));
}

#[test]
fn an_abandoned_lease_begins_no_pause() {
    let (cell, _clock) = cell_with::<u32>(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    drop(cell.lookup().elected());
    cell.lookup().elected().publish(1);
}

#[test]
fn during_a_pause_without_a_value_callers_get_the_latest_error() {
    let (cell, clock) = cell_with::<u32>(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    let error = cell.lookup().elected().fail(Down(1));
    match cell.lookup() {
        Lookup::Failed(shared) => assert!(shared.ptr_eq(&error)),
        other => panic!("{other:?}"),
    }
    match cell.try_get_or_refresh(not_tried) {
        Err(RefreshError::Build(shared)) => assert!(shared.ptr_eq(&error)),
        other => panic!("{other:?}"),
    }
    // Whatever the error type of their closures is.
    match cell.try_get_or_refresh(|| "seven".parse()) {
        Err(RefreshError::Build(shared)) => assert!(shared.ptr_eq(&error)),
        other => panic!("{other:?}"),
    }
    clock.advance(TTL);
    assert!(matches!(cell.lookup(), Lookup::Elected(_)));
}

#[test]
fn during_a_pause_without_a_value_a_caller_that_can_return_no_error_builds() {
    let (cell, _clock) = cell_with::<u32>(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    cell.lookup().elected().fail(Down(1));
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    assert_eq!(cell.freshness(), Freshness::Fresh);
}

#[test]
fn a_stale_value_is_served_instead_of_an_error_within_its_window() {
    let policy = Policy::ttl(TTL).stale_if_error(TTL).retry_backoff(Duration::ZERO, Duration::ZERO);
    let (cell, clock) = cell_with(policy);
    cell.set(1);
    clock.advance(2 * TTL);
    assert_eq!(*cell.try_get_or_refresh(|| Err(Down(1))).unwrap(), 1);
    clock.advance(TICK);
    let error = cell.try_get_or_refresh(|| Err(Down(2))).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Down(2)));
    assert_eq!((cell.stats().failed, cell.stats().served_stale_on_error), (2, 1));
}

/// The window for errors is longer than the one for refreshing: readers wait for the build, and when it fails,
/// they are served the old value, as all readers are while the pause runs.
#[test]
fn a_value_past_its_refresh_window_is_served_when_the_build_has_failed() {
    let policy = Policy::ttl(TTL)
        .stale_while_refresh(Duration::ZERO)
        .stale_if_error(TTL)
        .retry_backoff(2 * TTL, 2 * TTL);
    let (cell, clock) = cell_with(policy);
    cell.set(1);
    clock.advance(TTL + TICK);
    assert_eq!(cell.freshness(), Freshness::Expired);
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.try_get_or_refresh(not_tried));
        eventually("it waits", || cell.stats().waits == 1);
        lease.fail(Down(1));
        assert_eq!(*waiter.join().unwrap().unwrap(), 1);
    });
    assert_eq!(cell.freshness(), Freshness::Stale);
    assert_eq!(cell.get().as_deref(), Some(&1));
    assert!(matches!(cell.lookup(), Lookup::Stale(value) if *value == 1));
    clock.advance(TTL - TICK);
    assert!(matches!(cell.lookup(), Lookup::Stale(_)));
    clock.advance(TICK);
    assert!(matches!(cell.lookup(), Lookup::Failed(_)));
    assert_eq!(cell.freshness(), Freshness::Expired);
}

#[test]
fn a_failure_after_a_set_gives_its_caller_the_value_that_was_set_if_it_is_fresh() {
    let (cell, _clock) = cell();
    let result = cell.try_get_or_refresh(|| {
        cell.set(1);
        Err(Down(1))
    });
    assert_eq!(*result.unwrap(), 1);
    assert!(cell.last_error().is_none());
    assert_eq!((cell.stats().failed, cell.stats().consecutive_failures), (1, 0));
}

#[test]
fn a_superseded_failure_is_not_recorded() {
    let (cell, clock) = cell_with::<u32>(Policy::ttl(TTL).lease_timeout(TTL).retry_backoff(TTL, TTL));
    let slow = cell.lookup().elected();
    clock.advance(TTL + TICK);
    let quick = cell.lookup().elected();
    let pending = cell.lookup().pending();
    slow.fail(Down(1));
    assert!(cell.is_refreshing() && cell.last_error().is_none());
    quick.publish(2);
    assert!(matches!(pending.wait(), Waited::Published(value) if *value == 2));
    assert_eq!(cell.freshness(), Freshness::Fresh);
}
