//! A read that finds something to serve is ready at the first poll, and has nothing to do with a waker.

use std::future::Future;
use std::time::Duration;

use dogpile::{DogpileCell, Drain, ManualClock, Policy, RefreshError, SyncReaderCell};

use crate::support::{
    Cell, Hand, LookupExt, TICK, TTL, cell, cell_with, never, stale_cell, unbuilt, untried,
};

/// Polls `future` once: it has to be ready, and to leave the waker alone.
#[track_caller]
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut hand = Hand::new(future);
    let value = hand.ready();
    assert_eq!(hand.wakes(), 0);
    assert!(!hand.is_listed());
    value
}

/// Each read that takes a stale value.
#[track_caller]
fn serves(cell: &DogpileCell<u32, ManualClock>, value: u32) {
    assert_eq!(*at_once(cell.get_or_refresh_async(unbuilt)), value);
    assert_eq!(*at_once(cell.try_get_or_refresh_async(untried)).unwrap(), value);
    assert_eq!(*at_once(cell.request().get_async(unbuilt)), value);
    let conditional = cell.request().wait_at_most(TTL).try_get_with_async(|_| untried());
    assert_eq!(*at_once(conditional).unwrap(), value);
}

#[test]
fn a_fresh_read_is_ready_at_once() {
    let (cell, clock) = cell();
    cell.set(1);
    clock.advance(TTL);
    serves(&cell, 1);
    assert_eq!(*at_once(cell.request().max_stale(Duration::ZERO).get_async(unbuilt)), 1);
}

#[test]
fn a_fresh_read_without_a_deadline_is_ready_at_once() {
    let (cell, clock) = cell_with(Policy::never_expires());
    cell.set(1);
    clock.advance(Duration::MAX);
    serves(&cell, 1);
    assert_eq!(*at_once(cell.request().max_stale(Duration::ZERO).get_async(unbuilt)), 1);
}

#[test]
fn a_stale_read_during_a_build_is_ready_at_once() {
    let (cell, _clock) = stale_cell(1);
    // A task that builds, and a lease in other hands.
    let mut builder = Hand::new(cell.get_or_refresh_async(never));
    builder.pending();
    serves(&cell, 1);
    drop(builder);
    let lease = cell.lookup().elected();
    serves(&cell, 1);
    lease.publish(2);
    serves(&cell, 2);
    assert_eq!(cell.stats().waits, 0);
}

#[test]
fn a_stale_read_in_a_retry_pause_is_ready_at_once() {
    let policy = Policy::ttl(TTL).retry_backoff(TTL, TTL).stale_if_error(Duration::ZERO);
    let (cell, clock) = cell_with(policy);
    cell.set(1);
    clock.advance(TTL + TICK);
    let failed = at_once(cell.try_get_or_refresh_async(|| async { Err("no") }));
    assert!(matches!(failed, Err(RefreshError::Build(_))));
    serves(&cell, 1);
    // The pause is over, if not before.
    clock.advance(TTL);
    assert_eq!(*at_once(cell.get_or_refresh_async(|| async { 2 })), 2);
}

#[test]
fn the_error_of_a_retry_pause_is_ready_at_once() {
    let (cell, _clock): (Cell<u32>, _) = cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    let Err(RefreshError::Build(first)) = at_once(cell.try_get_or_refresh_async(|| async { Err("no") }))
    else {
        panic!("it fails")
    };
    let second = at_once(cell.try_get_or_refresh_async(untried));
    assert!(matches!(second, Err(RefreshError::Build(second)) if first.ptr_eq(&second)));
    // Whatever the error type of the caller's own build is.
    let other = at_once(cell.try_get_or_refresh_async(never::<Result<u32, std::io::Error>>));
    assert!(matches!(other, Err(RefreshError::Build(error)) if first.ptr_eq(&error)));
    // This one can return no error, and builds.
    assert_eq!(*at_once(cell.get_or_refresh_async(|| async { 1 })), 1);
    assert_eq!(cell.stats().builds, 2);
}

#[test]
fn a_stale_value_is_served_in_place_of_an_error() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_if_error(TTL));
    cell.set(1);
    clock.advance(TTL + TICK);
    let served = at_once(cell.try_get_or_refresh_async(|| async { Err("no") }));
    assert_eq!((*served.unwrap(), cell.stats().served_stale_on_error), (1, 1));
    assert_eq!(cell.last_error().unwrap().to_string(), "no");
    clock.advance(TTL);
    let failed = at_once(cell.try_get_or_refresh_async(|| async { Err("no") }));
    assert!(matches!(failed, Err(RefreshError::Build(_))));
}

#[test]
fn nothing_happens_before_the_first_poll() {
    let (cell, _clock) = cell::<u32>();
    let future =
        cell.get_or_refresh_async(|| -> std::future::Ready<u32> { unreachable!("it is not polled") });
    let fresh = cell
        .request()
        .max_stale(Duration::ZERO)
        .get_async(|| -> std::future::Ready<u32> { unreachable!("as above") });
    assert_eq!((cell.stats().builds, cell.is_refreshing()), (0, false));
    drop((future, fresh));
    // It looks at the cell when it is polled, not when it is made.
    let mut late = Hand::new(cell.get_or_refresh_async(unbuilt));
    cell.set(1);
    assert_eq!(*late.ready(), 1);
}

#[test]
fn reads_of_a_sync_reader_cell_are_ready_at_once() {
    let clock = ManualClock::new();
    let cell = SyncReaderCell::with_clock(Policy::ttl(TTL), clock.clone(), Drain::Background, drop::<u32>);
    let serves = |value| {
        assert_eq!(*at_once(cell.get_or_refresh_async(unbuilt)), value);
        assert_eq!(*at_once(cell.try_get_or_refresh_async(untried)).unwrap(), value);
        assert_eq!(*at_once(cell.request().get_async(unbuilt)), value);
    };
    cell.set(1);
    serves(1);
    assert_eq!(*at_once(cell.request().max_stale(Duration::ZERO).get_async(unbuilt)), 1);
    clock.advance(TTL + TICK);
    let mut builder = Hand::new(cell.get_or_refresh_async(never));
    builder.pending();
    serves(1);
    // Nothing is retired.
    at_once(cell.synchronize_async());
    drop(builder);
    // Not even the finalizer of the old value comes in the way, which runs on the cell's own thread.
    assert_eq!(*at_once(cell.get_or_refresh_async(|| async { 2 })), 2);
    Hand::new(cell.synchronize_async()).eventually_ready();
    at_once(cell.synchronize_async());
}
