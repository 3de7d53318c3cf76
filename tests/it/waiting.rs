//! G6: waiting, and what waiters are handed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, DogpileCell, Lookup, Policy, RefreshError, Tick, Waited};

use crate::support::{Down, GatedClock, LookupExt, TICK, TTL, cell, cell_with, eventually, gate, not_tried};

/// The value is expired as soon as the clock moves; the waiters get it all the same.
#[test]
fn g6_with_a_ttl_of_zero_a_hundred_waiters_share_one_build() {
    const WAITERS: u64 = if cfg!(miri) { 5 } else { 100 };
    let policy = Policy::ttl(Duration::ZERO).stale_while_refresh(Duration::ZERO);
    let (cell, clock) = cell_with(policy);
    let builds = AtomicU32::new(0);
    let (build, keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.get_or_refresh(|| {
                build.pass();
                builds.fetch_add(1, Ordering::Relaxed)
            })
        });
        keeper.wait_for_arrival();
        let waiters: Vec<_> = (0..WAITERS)
            .map(|_| scope.spawn(|| cell.get_or_refresh(|| unreachable!("one build is enough"))))
            .collect();
        eventually("all wait", || cell.stats().waits == WAITERS);
        keeper.open();
        let value = builder.join().unwrap();
        clock.advance(TICK);
        for waiter in waiters {
            assert!(Arc::ptr_eq(&waiter.join().unwrap(), &value));
        }
    });
    assert_eq!(builds.into_inner(), 1);
    assert!(cell.get().is_none());
}

#[test]
fn g6_a_waiter_is_handed_a_value_that_has_expired_by_the_time_it_wakes() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO));
    let lease = cell.lookup().elected();
    let pending = cell.lookup().pending();
    lease.publish(1);
    clock.advance(10 * TTL);
    assert!(cell.get().is_none());
    assert!(matches!(pending.wait(), Waited::Published(value) if *value == 1));
}

/// A clock on which each look takes a tick.
#[derive(Default)]
struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn now(&self) -> Tick {
        Tick::from_nanos(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// If it looked again, the value would have expired.
#[test]
fn g6_a_caller_that_has_waited_takes_what_it_is_handed() {
    let policy = Policy::ttl(Duration::ZERO).stale_while_refresh(Duration::ZERO);
    let cell = DogpileCell::with_clock(policy, Ticking::default());
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| *cell.get_or_refresh(|| unreachable!("one build is enough")));
        eventually("it waits", || cell.stats().waits == 1);
        lease.publish(1);
        assert_eq!(waiter.join().unwrap(), 1);
    });
}

#[test]
fn g6_a_waiter_is_not_woken_by_a_stray_token() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            // A token that is there before the wait begins.
            thread::current().unpark();
            cell.get_or_refresh(|| unreachable!())
        });
        eventually("it waits", || cell.stats().waits == 1);
        // And some during the wait.
        for _ in 0..if cfg!(miri) { 5 } else { 100 } {
            waiter.thread().unpark();
            thread::yield_now();
        }
        assert!(!waiter.is_finished());
        lease.publish(1);
        assert_eq!(*waiter.join().unwrap(), 1);
    });
}

/// It would be `Abandoned`. A caller that loops could hide that.
#[test]
fn g6_a_place_among_the_waiters_outlasts_a_stray_token() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            thread::current().unpark();
            cell.lookup().pending().wait()
        });
        eventually("it waits", || cell.stats().waits == 1);
        for _ in 0..if cfg!(miri) { 5 } else { 100 } {
            waiter.thread().unpark();
            thread::yield_now();
        }
        lease.publish(1);
        assert!(matches!(waiter.join().unwrap(), Waited::Published(value) if *value == 1));
    });
}

#[test]
fn a_timeout_follows_the_cells_clock() {
    let (cell, clock) = cell::<u32>();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.request().wait_at_most(TTL).try_get(not_tried));
        eventually("it waits", || cell.stats().waits == 1);
        clock.advance(TTL - TICK);
        assert!(!waiter.is_finished());
        clock.advance(TICK);
        assert!(matches!(waiter.join().unwrap(), Err(RefreshError::WaitTimeout)));
    });
    assert_eq!(cell.stats().wait_timeouts, 1);
    // The late success still counts.
    lease.publish(1);
    assert_eq!(cell.get().as_deref(), Some(&1));
}

#[test]
fn a_timeout_of_zero_never_waits() {
    let (cell, _clock) = cell::<u32>();
    let lease = cell.lookup().elected();
    let result = cell.request().wait_at_most(Duration::ZERO).try_get(not_tried);
    assert!(matches!(result, Err(RefreshError::WaitTimeout)));
    let pending = cell.lookup().pending().wait_timeout(Duration::ZERO).unwrap_err();
    assert_eq!((cell.stats().waits, cell.stats().wait_timeouts), (0, 2));
    lease.publish(1);
    assert!(matches!(pending.wait_timeout(Duration::ZERO), Ok(Waited::Published(_))));
}

#[test]
fn a_timeout_of_zero_builds_if_elected() {
    let (cell, _clock) = cell();
    let result = cell.request().wait_at_most(Duration::ZERO).try_get(|| Ok::<_, Down>(1));
    assert_eq!(*result.unwrap(), 1);
}

#[test]
fn an_endless_timeout_does_not_overflow() {
    let (cell, clock) = cell();
    clock.advance(Duration::from_secs(1));
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.request().wait_at_most(Duration::MAX).try_get(not_tried));
        eventually("it waits", || cell.stats().waits == 1);
        lease.publish(1);
        assert_eq!(*waiter.join().unwrap().unwrap(), 1);
    });
}

/// All waits of one call together are bounded, not each of them: the first build is abandoned after most of the
/// time, and only the rest is waited for the second.
#[test]
fn a_timeout_covers_all_waits_of_a_call() {
    let clock = Arc::new(GatedClock::default());
    let cell = DogpileCell::<u32, _>::with_clock(Policy::ttl(TTL), Arc::clone(&clock));
    let first = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            cell.request()
                .wait_at_most(TTL)
                .try_get(|| -> Result<u32, Down> { unreachable!("another one is elected") })
        });
        eventually("it waits", || cell.stats().waits == 1);
        clock.manual.advance(TTL - TICK);
        // When it has been woken and is about to look again, it stops until the lease is taken.
        let (stop, keeper) = gate();
        clock.stop_at(waiter.thread().id(), stop);
        drop(first);
        keeper.wait_for_arrival();
        let second = cell.lookup().elected();
        keeper.open();
        eventually("it waits again", || cell.stats().waits == 2);
        clock.manual.advance(TICK);
        assert!(matches!(waiter.join().unwrap(), Err(RefreshError::WaitTimeout)));
        drop(second);
    });
}

#[test]
fn a_timed_wait_can_be_taken_up_again() {
    let (cell, clock) = cell();
    let lease = cell.lookup().elected();
    let mut pending = cell.lookup().pending();
    for _ in 0..3 {
        pending = pending.wait_timeout(Duration::ZERO).unwrap_err();
        clock.advance(TTL);
    }
    lease.publish(1);
    assert!(matches!(pending.wait(), Waited::Published(value) if *value == 1));
}

#[test]
fn a_pending_place_can_be_given_up() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    drop(cell.lookup().pending());
    lease.publish(1);
    assert!(matches!(cell.lookup(), Lookup::Fresh(_)));
}

/// The waiters of a build that hangs look again when the lease times out, and one of them takes its place.
#[test]
fn waiters_take_the_place_of_a_leaked_lease() {
    const WAITERS: u64 = 4;
    let (cell, clock) = cell_with::<u32>(Policy::ttl(TTL).lease_timeout(Duration::from_secs(1)));
    std::mem::forget(cell.lookup().elected());
    let builds = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..WAITERS {
            scope.spawn(|| {
                let value = cell.get_or_refresh(|| builds.fetch_add(1, Ordering::Relaxed) + 1);
                assert_eq!(*value, 1);
            });
        }
        eventually("all wait", || cell.stats().waits == WAITERS);
        clock.advance(Duration::from_secs(1) + TICK);
    });
    assert_eq!(builds.into_inner(), 1);
    assert_eq!(cell.stats().superseded, 1);
}

/// A limit of its own that is later does not keep a waiter from looking again when the build may be superseded.
#[test]
fn a_waiter_with_time_left_supersedes_a_build_that_hangs() {
    const LIMIT: Duration = Duration::from_secs(1);
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(LIMIT));
    let hangs = cell.lookup().elected();
    let pending = cell.lookup().pending();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.request().wait_at_most(10 * LIMIT).try_get(|| Ok::<u32, Down>(2)));
        let looker = scope.spawn(|| pending.wait_timeout(10 * LIMIT));
        eventually("both wait", || cell.stats().waits == 2);
        clock.advance(LIMIT + TICK);
        assert_eq!(waiter.join().unwrap().ok().as_deref(), Some(&2));
        assert!(matches!(looker.join().unwrap(), Ok(Waited::Abandoned | Waited::Published(_))));
    });
    drop(hangs);
}
