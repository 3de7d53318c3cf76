//! A read that finds something to serve allocates nothing, in async code either.
//!
//! A binary of its own, since it counts what the allocator does. It counts for each thread, so tests may run beside each
//! other.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dogpile::{DogpileCell, Drain, LazyDogpile, ManualClock, Policy, SyncReaderCell, SystemClock, Task};

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

async fn untried<T>() -> Result<T, &'static str> {
    unreachable!("there is something to serve")
}

/// A spawner for a caller that has nothing to spawn.
fn unspawned(_: Task) {
    unreachable!("there is nothing to spawn")
}

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
    assert_eq!(*allocates_nothing(cell.try_get_or_refresh_async(untried)).unwrap(), 1);
    assert_eq!(*allocates_nothing(cell.request().max_stale(Duration::ZERO).get_async(unreached)), 1);
}

#[test]
fn a_fresh_read_of_a_lazy_cell() {
    let lazy = LazyDogpile::<u32, _>::with_clock(Policy::never_expires(), SystemClock, || async { 1 });
    polled(lazy.get_or_refresh_async());
    assert_eq!(*allocates_nothing(lazy.get_or_refresh_async()), 1);
}

#[test]
fn a_fresh_read_of_a_sync_reader_cell() {
    let cell = SyncReaderCell::<u32>::new(TTL, drop);
    cell.set(1);
    drop(cell.get());
    assert_eq!(*allocates_nothing(cell.get_or_refresh_async(unreached)), 1);
    assert_eq!(*allocates_nothing(cell.try_get_or_refresh_async(untried)).unwrap(), 1);
    assert_eq!(*allocates_nothing(cell.request().max_stale(Duration::ZERO).get_async(unreached)), 1);
}

#[test]
fn a_fresh_read_with_conditions() {
    let cell = DogpileCell::<u32>::new(TTL);
    cell.set(1);
    assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
    let request = || cell.request().max_age(TTL).newer_than(0).wait_at_most(TTL).or_stale();
    assert_eq!(*allocates_nothing(request().get_async(unreached)), 1);
    assert_eq!(*allocates_nothing(request().try_get_async(untried)).unwrap(), 1);
    let conditional = request().try_get_with_async(|_| untried());
    assert_eq!(*allocates_nothing(conditional).unwrap(), 1);
}

#[test]
fn a_read_that_has_nothing_to_spawn() {
    static CELL: DogpileCell<u32> = DogpileCell::new(TTL);
    CELL.set(1);
    assert_eq!(*CELL.get_or_refresh(|| unreachable!()), 1);
    let request = || CELL.request().wait_at_most(TTL).spawn_with(unspawned);
    assert_eq!(*allocates_nothing(request().get_async(unreached)), 1);
    // Stale, during a build.
    CELL.invalidate();
    let mut builder = pin!(CELL.get_or_refresh_async(std::future::pending));
    assert!(builder.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(*allocates_nothing(request().get_async(unreached)), 1);
    assert_eq!(*allocates_nothing(request().try_get_async(untried)).unwrap(), 1);
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
    assert_eq!(*allocates_nothing(cell.try_get_or_refresh_async(untried)).unwrap(), 1);
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
    assert_eq!(*allocates_nothing(cell.try_get_or_refresh_async(untried)).unwrap(), 1);
}

#[test]
fn a_stale_read_in_a_retry_pause() {
    let clock = ManualClock::new();
    let cell = DogpileCell::with_clock(Policy::ttl(TTL).retry_backoff(TTL, TTL), clock.clone());
    cell.set(1);
    clock.advance(2 * TTL);
    let (served, _) = polled(cell.try_get_or_refresh_async(|| async { Err("no") }));
    assert_eq!((*served.unwrap(), cell.last_error().is_some()), (1, true));
    assert_eq!(*allocates_nothing(cell.get_or_refresh_async(unreached)), 1);
    assert_eq!(*allocates_nothing(cell.try_get_or_refresh_async(untried)).unwrap(), 1);
}

#[test]
fn the_error_of_a_retry_pause() {
    let cell = DogpileCell::<u32>::with_policy(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    let (failed, _) = polled(cell.try_get_or_refresh_async(|| async { Err("no") }));
    assert!(failed.is_err());
    assert!(allocates_nothing(cell.try_get_or_refresh_async(untried)).is_err());
    assert!(allocates_nothing(cell.request().try_get_async(untried)).is_err());
}
