//! G1, G2: one caller builds, and the others go on reading.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Lookup, Policy};

use crate::support::{Down, GatedClock, LookupExt, TICK, TTL, cell, cell_with, eventually, gate, stale_cell};

#[test]
fn g1_one_lease_at_a_time() {
    let (cell, _) = cell::<u32>();
    let lease = cell.lookup().elected();
    assert!(cell.is_refreshing());
    assert!(matches!(cell.lookup(), Lookup::Pending(_)));
    lease.publish(1);
    assert!(!cell.is_refreshing());
    assert!(matches!(cell.lookup(), Lookup::Fresh(value) if *value == 1));
    assert_eq!(cell.stats().builds, 1);
}

#[test]
fn g1_of_many_cold_callers_one_builds() {
    const CALLERS: usize = if cfg!(miri) { 4 } else { 16 };
    let (cell, _) = cell::<u32>();
    let builds = AtomicU32::new(0);
    let barrier = Barrier::new(CALLERS);
    let values: Vec<Arc<u32>> = thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    cell.get_or_refresh(|| builds.fetch_add(1, Ordering::Relaxed))
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert_eq!(builds.into_inner(), 1);
    assert!(values.iter().all(|value| Arc::ptr_eq(value, &values[0])));
}

#[test]
fn g1_of_many_callers_at_expiry_one_builds() {
    const CALLERS: usize = if cfg!(miri) { 4 } else { 16 };
    for _ in 0..if cfg!(miri) { 2 } else { 50 } {
        let (cell, _clock) = stale_cell(0);
        let builds = AtomicU32::new(0);
        let barrier = Barrier::new(CALLERS);
        thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    barrier.wait();
                    cell.get_or_refresh(|| builds.fetch_add(1, Ordering::Relaxed) + 1);
                });
            }
        });
        assert_eq!(builds.into_inner(), 1);
    }
}

/// The caller sees the stale value of generation 1, is delayed, and wins the election after another caller has
/// published generation 2. By the clock even that is stale again: only the generation can tell.
#[test]
fn g1_the_late_winner_does_not_build_again() {
    let clock = Arc::new(GatedClock::default());
    let cell = DogpileCell::with_clock(Policy::ttl(Duration::ZERO), Arc::clone(&clock));
    cell.set(1);
    clock.manual.advance(TICK);
    let (stop, keeper) = gate();
    thread::scope(|scope| {
        let late = scope.spawn(|| {
            clock.stop_at(thread::current().id(), stop);
            cell.get_or_refresh(|| unreachable!("another caller has built meanwhile"))
        });
        keeper.wait_for_arrival();
        assert_eq!(*cell.get_or_refresh(|| 2), 2);
        clock.manual.advance(TICK);
        keeper.open();
        assert_eq!(*late.join().unwrap(), 2);
    });
    assert_eq!(cell.stats().builds, 1);
    // A caller that comes now sees generation 2, stale, and builds.
    assert_eq!(*cell.get_or_refresh(|| 3), 3);
}

/// The same for a caller that needs a fresh value: it takes what has arrived, as if it had waited for it (G6), unless that
/// was declared stale.
#[test]
fn g1_the_late_winner_of_a_fresh_value_takes_what_has_arrived() {
    for is_invalidated in [false, true] {
        let clock = Arc::new(GatedClock::default());
        let cell = DogpileCell::with_clock(Policy::ttl(Duration::ZERO), Arc::clone(&clock));
        cell.set(1);
        clock.manual.advance(TICK);
        let (stop, keeper) = gate();
        thread::scope(|scope| {
            let late = scope.spawn(|| {
                clock.stop_at(thread::current().id(), stop);
                cell.request().max_stale(Duration::ZERO).get(|| 3)
            });
            keeper.wait_for_arrival();
            cell.set(2);
            if is_invalidated {
                cell.invalidate();
            }
            clock.manual.advance(TICK);
            keeper.open();
            assert_eq!(*late.join().unwrap(), if is_invalidated { 3 } else { 2 });
        });
    }
}

#[test]
fn g2_while_one_caller_builds_all_others_read_the_old_value() {
    let (cell, _clock) = stale_cell(1);
    let (build, keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.get_or_refresh(|| {
                build.pass();
                2
            })
        });
        keeper.wait_for_arrival();
        let mut reader = cell.reader();
        for _ in 0..3 {
            assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
            assert_eq!(*cell.load_or_refresh(|| unreachable!()), 1);
            assert_eq!(**reader.get_or_refresh(|| unreachable!()), 1);
            assert_eq!(*cell.try_get_or_refresh(|| -> Result<u32, Down> { unreachable!() }).unwrap(), 1);
            assert!(matches!(cell.lookup(), Lookup::Stale(value) if *value == 1));
            assert_eq!(cell.get().as_deref(), Some(&1));
        }
        keeper.open();
        assert_eq!(*builder.join().unwrap(), 2);
    });
    assert_eq!(cell.get().as_deref(), Some(&2));
    assert_eq!(cell.stats().waits, 0);
}

#[test]
fn g2_a_stale_value_is_served_no_longer_than_its_window() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(Duration::from_secs(5)));
    cell.set(1);
    clock.advance(TTL + TICK);
    let lease = cell.lookup().elected();
    clock.advance(Duration::from_secs(5) - TICK);
    assert!(matches!(cell.lookup(), Lookup::Stale(_)));
    clock.advance(TICK);
    assert!(matches!(cell.lookup(), Lookup::Pending(_)));
    assert!(cell.get().is_none());
    assert_eq!(lease.previous().map(|value| **value), Some(1));
}

#[test]
fn a_fresh_read_does_not_wait_for_a_forced_rebuild() {
    let (cell, _clock) = cell();
    cell.set(1);
    let (build, keeper) = gate();
    thread::scope(|scope| {
        let forced = scope.spawn(|| {
            cell.request().no_cache().get(|| {
                build.pass();
                2
            })
        });
        keeper.wait_for_arrival();
        assert!(matches!(cell.lookup(), Lookup::Fresh(value) if *value == 1));
        keeper.open();
        assert_eq!(*forced.join().unwrap(), 2);
    });
    assert_eq!(cell.generation(), 2);
}

/// The value stops being fresh while a forced rebuild runs: the reads after that are stale reads.
#[test]
fn a_value_that_ages_during_a_forced_rebuild_is_served_as_stale() {
    let (cell, clock) = cell();
    cell.set(1);
    let (build, keeper) = gate();
    thread::scope(|scope| {
        let forced = scope.spawn(|| {
            cell.request().no_cache().get(|| {
                build.pass();
                2
            })
        });
        keeper.wait_for_arrival();
        clock.advance(TTL + TICK);
        for _ in 0..2 {
            assert!(matches!(cell.lookup(), Lookup::Stale(value) if *value == 1));
            assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
        }
        keeper.open();
        assert_eq!(*forced.join().unwrap(), 2);
    });
}

#[test]
fn no_cache_returns_a_value_whose_build_began_after_the_call() {
    let (cell, _clock) = cell();
    let running = cell.lookup().elected();
    thread::scope(|scope| {
        let forced = scope.spawn(|| cell.request().no_cache().get(|| 2));
        eventually("it waits for the running build", || cell.stats().waits == 1);
        running.publish(1);
        assert_eq!(*forced.join().unwrap(), 2);
    });
    assert_eq!(cell.generation(), 2);
}

#[test]
fn no_cache_callers_that_wait_for_the_same_build_share_the_next_one() {
    const CALLERS: u64 = 8;
    let (cell, _clock) = cell();
    let running = cell.lookup().elected();
    let builds = AtomicU32::new(0);
    let (build, keeper) = gate();
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let value = cell.request().no_cache().get(|| {
                    build.pass();
                    builds.fetch_add(1, Ordering::Relaxed) + 2
                });
                assert_eq!(*value, 2);
            });
        }
        eventually("all wait", || cell.stats().waits == CALLERS);
        running.publish(1);
        keeper.wait_for_arrival();
        // One builds, the others wait for it.
        eventually("the others wait again", || cell.stats().waits == 2 * CALLERS - 1);
        keeper.open();
    });
    assert_eq!(builds.into_inner(), 1);
    assert_eq!(cell.generation(), 2);
}

#[test]
fn a_caller_that_needs_a_fresh_value_waits_for_the_running_build() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let fresh = scope.spawn(|| cell.request().max_stale(Duration::ZERO).get(|| unreachable!()));
        eventually("it waits", || cell.stats().waits == 1);
        lease.publish(2);
        assert_eq!(*fresh.join().unwrap(), 2);
    });
}

#[test]
fn a_caller_that_needs_a_fresh_value_does_not_take_one_that_was_published_as_stale() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let fresh = scope.spawn(|| cell.request().max_stale(Duration::ZERO).get(|| 3));
        eventually("it waits", || cell.stats().waits == 1);
        cell.invalidate();
        lease.publish(2);
        assert_eq!(*fresh.join().unwrap(), 3);
    });
}
