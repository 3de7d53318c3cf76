//! A read that finds something to serve allocates nothing, in async code either.
//!
//! A binary of its own, since it counts what the allocator does. It counts for each thread, so tests may run beside each
//! other.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dogpile::{
    DogpileCell, Drain, LazyDogpile, ManualClock, Policy, RefreshError, SyncReaderCell, SystemClock,
};

const TTL: Duration = Duration::from_secs(10);

/// Polls `future` once: it has to be ready. Returns its output, and how often something was allocated.
#[track_caller]
fn polled<T>(future: impl Future<Output = T>) -> (T, u64) {
    let (mut output, mut future) = (Poll::Pending, pin!(future));
    let counted = allocation_counter::measure(|| {
        output = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    });
    match output {
        Poll::Ready(output) => (output, counted.count_total),
        Poll::Pending => panic!("it should have been ready"),
    }
}

#[track_caller]
fn allocates_nothing<T>(future: impl Future<Output = T>) -> T {
    let (output, allocations) = polled(future);
    assert_eq!(allocations, 0);
    output
}

async fn unreached<T>() -> T {
    unreachable!("there is something to serve")
}

type NoError<T> = Result<T, RefreshError<()>>;

#[test]
fn what_is_counted_is_what_is_allocated() {
    let cell = DogpileCell::<u32>::new(TTL);
    // The value, at least.
    let (_, allocations) = polled(cell.get_or_refresh_async(|| async { 1 }));
    assert!(allocations > 0);
}

#[test]
fn a_fresh_read() {
    let cell = DogpileCell::<u32>::new(TTL);
    // The first use on a thread takes a place for it, once.
    cell.set(1);
    assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
    assert_eq!(*allocates_nothing(cell.get_or_refresh_async(unreached)), 1);
    let served: NoError<_> = allocates_nothing(cell.try_get_or_refresh_async(unreached));
    assert_eq!(*served.unwrap(), 1);
    assert_eq!(*allocates_nothing(cell.get_fresh_or_refresh_async(unreached)), 1);
}

#[test]
fn a_fresh_read_of_a_lazy_cell() {
    let lazy = LazyDogpile::<u32, _>::with_clock(Policy::never_expires(), SystemClock, || async { 1 });
    polled(lazy.get_async());
    assert_eq!(*allocates_nothing(lazy.get_async()), 1);
}

#[test]
fn a_fresh_read_of_a_sync_reader_cell() {
    let cell = SyncReaderCell::<u32>::new(TTL, drop);
    cell.set(1);
    drop(cell.get());
    assert_eq!(*allocates_nothing(cell.get_or_refresh_async(unreached)), 1);
    let served: NoError<_> = allocates_nothing(cell.try_get_or_refresh_async(unreached));
    assert_eq!(*served.unwrap(), 1);
    assert_eq!(*allocates_nothing(cell.get_fresh_or_refresh_async(unreached)), 1);
}

#[test]
fn a_stale_read_during_a_build() {
    let clock = ManualClock::new();
    let cell = DogpileCell::with_clock(Policy::ttl(TTL), clock.clone());
    cell.set(1);
    clock.advance(2 * TTL);
    let mut builder = pin!(cell.get_or_refresh_async(std::future::pending));
    assert!(builder.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(*allocates_nothing(cell.get_or_refresh_async(unreached)), 1);
    let served: NoError<_> = allocates_nothing(cell.try_get_or_refresh_async(unreached));
    assert_eq!(*served.unwrap(), 1);
}

#[test]
fn a_stale_read_of_a_sync_reader_cell_during_a_build() {
    let clock = ManualClock::new();
    let cell = SyncReaderCell::with_clock(Policy::ttl(TTL), clock.clone(), Drain::Background, drop);
    cell.set(1);
    clock.advance(2 * TTL);
    let mut builder = pin!(cell.get_or_refresh_async(std::future::pending));
    assert!(builder.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(*allocates_nothing(cell.get_or_refresh_async(unreached)), 1);
    let served: NoError<_> = allocates_nothing(cell.try_get_or_refresh_async(unreached));
    assert_eq!(*served.unwrap(), 1);
}

#[test]
fn a_stale_read_in_a_retry_pause() {
    let clock = ManualClock::new();
    let cell = DogpileCell::with_clock(Policy::ttl(TTL).retry_backoff(TTL, TTL), clock.clone());
    cell.set(1);
    clock.advance(2 * TTL);
    let (failed, _) = polled(cell.try_get_or_refresh_async(|| async { Err("no") }));
    assert!(failed.is_err());
    assert_eq!(*allocates_nothing(cell.get_or_refresh_async(unreached)), 1);
    let served: NoError<_> = allocates_nothing(cell.try_get_or_refresh_async(unreached));
    assert_eq!(*served.unwrap(), 1);
}

#[test]
fn the_error_of_a_retry_pause() {
    let cell = DogpileCell::<u32>::with_policy(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    let (failed, _) = polled(cell.try_get_or_refresh_async(|| async { Err(()) }));
    assert!(failed.is_err());
    let again: NoError<_> = allocates_nothing(cell.try_get_or_refresh_async(unreached));
    assert!(again.is_err());
}
