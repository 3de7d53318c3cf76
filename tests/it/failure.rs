//! G5, G7: builds that fail.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Freshness, Lookup, Policy, RefreshError, Waited};

use crate::support::{LookupExt, TICK, TTL, cell, cell_with, eventually, gate, panic_message, stale_cell};

#[derive(Debug, PartialEq)]
struct Down(u32);

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the source is down ({})", self.0)
    }
}

impl Error for Down {}

#[test]
fn g5_an_error_leaves_the_value_and_frees_the_lease() {
    let (cell, _clock) = stale_cell(1);
    let error = cell.try_get_or_refresh(|| Err(Down(1))).unwrap_err();
    assert!(matches!(error, RefreshError::Build(error) if *error == Down(1)));
    assert_eq!(cell.get().as_deref(), Some(&1));
    assert!(!cell.is_refreshing());
    assert_eq!(*cell.try_get_or_refresh(|| Ok::<_, Down>(2)).unwrap(), 2);
    assert_eq!((cell.stats().failed, cell.stats().builds), (1, 2));
}

#[test]
fn g5_a_panic_leaves_the_value_and_frees_the_lease() {
    let (cell, _clock) = stale_cell(1);
    assert_eq!(panic_message(|| cell.get_or_refresh(|| panic!("no"))), "no");
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
fn g7_those_who_wait_for_a_failed_build_share_its_error() {
    const WAITERS: u64 = 8;
    let (cell, _clock) = cell::<u32>();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..WAITERS)
            .map(|_| scope.spawn(|| cell.try_get_or_refresh(|| -> Result<u32, Down> { unreachable!() })))
            .collect();
        eventually("all wait", || cell.stats().waits == WAITERS);
        let error = lease.fail(Down(1));
        for waiter in waiters {
            match waiter.join().unwrap() {
                Err(RefreshError::Build(shared)) => assert!(Arc::ptr_eq(&shared, &error)),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(cell.stats().builds, 1);
}

#[test]
fn g7_a_waiter_with_another_type_of_error_builds_itself() {
    let (cell, _clock) = cell::<u32>();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.try_get_or_refresh(|| Err("of another type")));
        eventually("it waits", || cell.stats().waits == 1);
        lease.fail(Down(1));
        let error = waiter.join().unwrap().unwrap_err();
        assert!(matches!(error, RefreshError::Build(error) if *error == "of another type"));
    });
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
fn after_a_failure_nobody_is_elected_for_the_pause_which_doubles() {
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
        Lookup::Failed(shared) => assert!(Arc::ptr_eq(&shared.downcast::<Down>().unwrap(), &error)),
        other => panic!("{other:?}"),
    }
    match cell.try_get_or_refresh(|| -> Result<u32, Down> { unreachable!() }) {
        Err(RefreshError::Build(shared)) => assert!(Arc::ptr_eq(&shared, &error)),
        other => panic!("{other:?}"),
    }
    clock.advance(TTL);
    assert!(matches!(cell.lookup(), Lookup::Elected(_)));
}

#[test]
fn during_a_pause_without_a_value_those_who_can_return_no_such_error_build() {
    let (cell, _clock) = cell_with::<u32>(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    cell.lookup().elected().fail(Down(1));
    let other = cell.try_get_or_refresh(|| Err::<u32, _>("of another type")).unwrap_err();
    assert!(matches!(other, RefreshError::Build(error) if *error == "of another type"));
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    assert_eq!(cell.freshness(), Freshness::Fresh);
}

#[test]
fn a_stale_value_is_served_instead_of_an_error_within_its_window() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_if_error(TTL));
    cell.set(1);
    clock.advance(2 * TTL);
    assert_eq!(*cell.try_get_or_refresh(|| Err(Down(1))).unwrap(), 1);
    clock.advance(TICK);
    let error = cell.try_get_or_refresh(|| Err(Down(2))).unwrap_err();
    assert!(matches!(error, RefreshError::Build(error) if *error == Down(2)));
    assert_eq!(cell.stats().failed, 2);
}

/// The window for errors is longer than the one for refreshing: readers wait for the build, and when it fails,
/// they are served the old value, as is everybody while the pause runs.
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
        let waiter = scope.spawn(|| cell.try_get_or_refresh(|| -> Result<u32, Down> { unreachable!() }));
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
}

#[test]
fn a_superseded_failure_disturbs_nobody() {
    let (cell, clock) = cell_with::<u32>(Policy::ttl(TTL).lease_timeout(TTL).retry_backoff(TTL, TTL));
    let slow = cell.lookup().elected();
    clock.advance(TTL + TICK);
    let quick = cell.lookup().elected();
    let pending = cell.lookup().pending();
    slow.fail(Down(1));
    assert!(cell.is_refreshing());
    quick.publish(2);
    assert!(matches!(pending.wait(), Waited::Published(value) if *value == 2));
    assert_eq!(cell.freshness(), Freshness::Fresh);
}

#[test]
fn errors_show_their_cause() {
    let error = RefreshError::Build(Arc::new(Down(7)));
    assert_eq!(error.to_string(), "the build of the value failed");
    assert_eq!(error.source().unwrap().to_string(), "the source is down (7)");
    for error in [RefreshError::<Down>::WaitTimeout, RefreshError::Reentrant] {
        assert!(error.source().is_none());
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn a_shared_error_shows_the_type_of_the_error() {
    let (cell, _clock) = cell::<u32>();
    let lease = cell.lookup().elected();
    let pending = cell.lookup().pending();
    lease.fail(7_u16);
    let Waited::Failed(error) = pending.wait() else { panic!("it has failed") };
    assert_eq!(format!("{error:?}"), "SharedError { type: \"u16\", .. }");
}
