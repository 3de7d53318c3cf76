//! Which callers wait for the readers of a replaced value.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Drain, Policy};

use super::{WAIT, background, logged};
use crate::support::{TICK, TTL, eventually};

#[test]
fn in_the_background_a_caller_that_still_holds_the_old_value_is_not_hung() {
    let (cell, clock, log) = background();
    let reader = cell.get_or_refresh(|| 1);
    clock.advance(2 * TTL);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    let guard = cell.load().unwrap();
    clock.advance(2 * TTL);
    assert_eq!(*cell.get_or_refresh(|| 3), 3);
    assert_eq!((*reader, *guard, log.entries(), cell.is_refreshing()), (1, 2, vec![], false));
}

#[test]
fn waiting_the_elected_caller_finalises_after_the_last_reader_has_left() {
    let (cell, clock, log) = logged(Policy::ttl(TTL), Drain::Wait(Duration::MAX));
    let reader = cell.get_or_refresh(|| 1);
    clock.advance(2 * TTL);
    let returned = AtomicBool::new(false);
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            let value = cell.get_or_refresh(|| 2);
            returned.store(true, Ordering::SeqCst);
            assert_eq!(log.entries(), [1]);
            value
        });
        // Published before it waits: readers of the new value do not wait.
        eventually("the new value is out", || cell.generation() == 2);
        assert_eq!(*cell.get_or_refresh(|| unreachable!()), 2);
        assert!(cell.is_refreshing(), "the lease stays taken while the old value drains");
        assert!(!returned.load(Ordering::SeqCst));
        assert_eq!(log.entries(), []);
        drop(reader);
        assert_eq!(*builder.join().unwrap(), 2);
    });
    assert!(!cell.is_refreshing());
    assert_eq!(cell.stats().abandoned, 0);
}

/// At most two generations are alive: while the old value drains, no other caller is elected.
#[test]
fn waiting_the_lease_stays_taken() {
    let (cell, clock, _log) = logged(Policy::ttl(TTL), Drain::Wait(Duration::MAX));
    let reader = cell.get_or_refresh(|| 1);
    clock.advance(2 * TTL);
    thread::scope(|scope| {
        scope.spawn(|| cell.get_or_refresh(|| 2));
        eventually("the new value is out", || cell.generation() == 2);
        clock.advance(2 * TTL);
        assert_eq!(*cell.get_or_refresh(|| unreachable!("the old value is still draining")), 2);
        drop(reader);
    });
    assert_eq!(*cell.get_or_refresh(|| 3), 3);
}

#[test]
fn waiting_is_bounded_and_what_is_left_goes_to_the_background() {
    let (cell, clock, log) = logged(Policy::ttl(TTL), Drain::Wait(WAIT));
    let reader = cell.get_or_refresh(|| 1);
    clock.advance(2 * TTL);
    thread::scope(|scope| {
        let builder = scope.spawn(|| cell.get_or_refresh(|| 2));
        eventually("the new value is out", || cell.generation() == 2);
        while !builder.is_finished() {
            clock.advance(WAIT);
            thread::yield_now();
        }
        assert_eq!(*builder.join().unwrap(), 2);
    });
    assert_eq!((cell.retired(), log.entries(), cell.is_refreshing()), (1, vec![], false));
    drop(reader);
    cell.synchronize();
    assert_eq!(log.entries(), [1]);
}

#[test]
fn waiting_for_no_time_is_the_background() {
    let (cell, _clock, log) = logged(Policy::ttl(TTL), Drain::Wait(Duration::ZERO));
    let reader = cell.set(1);
    cell.set(2);
    assert_eq!((cell.retired(), log.entries()), (1, vec![]));
    drop(reader);
    cell.synchronize();
    assert_eq!(log.entries(), [1]);
}

#[test]
fn waiting_a_thread_that_holds_a_guard_of_the_old_value_does_not_wait_for_itself() {
    let (cell, clock, log) = logged(Policy::ttl(TTL), Drain::Wait(Duration::MAX));
    cell.set(1);
    clock.advance(2 * TTL);
    let guard = cell.load().unwrap();
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    assert_eq!((*guard, cell.retired(), log.entries()), (1, 1, vec![]));
    drop(guard);
    cell.synchronize();
    assert_eq!(log.entries(), [1]);
}

#[test]
fn waiting_set_and_clear_wait_too_each_in_its_turn() {
    let (cell, _clock, log) = logged(Policy::ttl(TTL), Drain::Wait(Duration::MAX));
    let first = cell.set(1);
    thread::scope(|scope| {
        let setter = scope.spawn(|| drop(cell.set(2)));
        eventually("2 is out", || cell.get().as_deref() == Some(&2));
        let clearer = scope.spawn(|| cell.clear());
        eventually("2 is gone", || cell.get().is_none());
        assert!(!setter.is_finished() && !clearer.is_finished());
        assert_eq!(log.entries(), []);
        drop(first);
        setter.join().unwrap();
        clearer.join().unwrap();
    });
    assert_eq!(log.entries(), [1, 2]);
}

#[test]
fn a_clear_during_a_drain_takes_the_new_value_away_and_keeps_the_order() {
    let (cell, clock, log) = logged(Policy::ttl(TTL), Drain::Wait(WAIT));
    let reader = cell.get_or_refresh(|| 1);
    clock.advance(2 * TTL);
    thread::scope(|scope| {
        let builder = scope.spawn(|| drop(cell.get_or_refresh(|| 2)));
        eventually("the new value is out", || cell.generation() == 2);
        let clearer = scope.spawn(|| cell.clear());
        eventually("the new value is gone", || cell.get().is_none());
        // A caller that comes now waits: the lease is still held.
        let waiter = scope.spawn(|| cell.get_or_refresh(|| 3));
        eventually("it waits", || cell.stats().waits == 1);
        assert_eq!(log.entries(), []);
        drop(reader);
        builder.join().unwrap();
        clearer.join().unwrap();
        assert_eq!(*waiter.join().unwrap(), 3);
    });
    assert_eq!(log.entries(), [1, 2]);
}

#[test]
fn an_expired_wait_does_not_keep_others_waiting() {
    let (cell, clock, _log) = logged(Policy::ttl(TTL).stale_while_refresh(TICK), Drain::Wait(WAIT));
    let reader = cell.get_or_refresh(|| 1);
    clock.advance(2 * TTL);
    thread::scope(|scope| {
        let builder = scope.spawn(|| drop(cell.get_or_refresh(|| 2)));
        eventually("the new value is out", || cell.generation() == 2);
        // The new value has expired before the old one is drained: this caller waits for the lease.
        clock.advance(TTL + TICK + TICK);
        let waiter = scope.spawn(|| *cell.get_or_refresh(|| 3));
        // Then it is elected, and waits for the readers itself.
        while !builder.is_finished() || !waiter.is_finished() {
            clock.advance(WAIT);
            thread::yield_now();
        }
        assert_eq!(waiter.join().unwrap(), 3);
    });
    drop(reader);
}
