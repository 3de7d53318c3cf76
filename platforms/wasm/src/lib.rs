//! What the crate does on `wasm32-unknown-unknown`, where there are no threads. `run.mjs` calls the exported functions.
//!
//! Each returns 0, or the number of the line whose condition does not hold.

// `no_mangle` is an unsafe attribute: two functions of one name would be undefined behaviour. There is one of each.
#![allow(unsafe_code)]

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dogpile::{
    Clock, DogpileCell, Freshness, Policy, RefreshError, Refresher, SyncReaderCell, SystemClock, TickClock,
};

macro_rules! check {
    ($condition:expr) => {
        if !$condition {
            return line!();
        }
    };
}

/// `run.mjs` waits longer than that between `first` and `later`.
const TTL: Duration = Duration::from_millis(50);

static CELL: DogpileCell<u32> = DogpileCell::new(TTL);
static TICKING: DogpileCell<u32, TickClock> = DogpileCell::with_clock(Policy::ttl(TTL), TickClock);

/// A value is built once and stays fresh.
#[unsafe(no_mangle)]
pub extern "C" fn first() -> u32 {
    check!(*CELL.get_or_refresh(|| 1) == 1);
    check!(*CELL.get_or_refresh(|| 2) == 1);
    check!(CELL.freshness() == Freshness::Fresh);
    check!(*TICKING.get_or_refresh(|| 1) == 1);
    check!(*TICKING.get_or_refresh(|| 2) == 1);
    check!(SystemClock.coarse_now() <= SystemClock.now());
    0
}

/// Time passes, with both clocks of the system.
#[unsafe(no_mangle)]
pub extern "C" fn later() -> u32 {
    check!(CELL.snapshot().is_some_and(|snapshot| snapshot.age > TTL));
    check!(*CELL.get_or_refresh(|| 3) == 3);
    check!(*TICKING.get_or_refresh(|| 3) == 3);
    0
}

/// What needs a thread returns an error.
#[unsafe(no_mangle)]
pub extern "C" fn without_threads() -> u32 {
    check!(Refresher::spawn(&CELL, TTL / 2, |_| 4).is_err());
    // And leaves the cell as it was: readers build.
    CELL.invalidate();
    check!(*CELL.get_or_refresh(|| 5) == 5);
    0
}

/// Without a thread to run the finalizer, the caller runs it.
#[unsafe(no_mangle)]
pub extern "C" fn finalizer() -> u32 {
    static FINALIZED: AtomicU32 = AtomicU32::new(0);
    let cell = SyncReaderCell::new(TTL, |value: u32| FINALIZED.store(value, Ordering::Relaxed));
    cell.set(7);
    let Some(reader) = cell.get() else { return line!() };
    cell.set(8);
    check!(FINALIZED.load(Ordering::Relaxed) == 0);
    drop(reader);
    check!(FINALIZED.load(Ordering::Relaxed) == 7);
    cell.synchronize();
    0
}

/// A build that reads its own cell gets an error, and a task gets a value.
#[unsafe(no_mangle)]
pub extern "C" fn builds() -> u32 {
    let cell = DogpileCell::new(TTL);
    let mut inner = None;
    let built = cell.try_get_or_refresh(|| {
        inner = Some(cell.try_get_or_refresh(|| Ok::<u32, String>(1)));
        Ok::<u32, String>(2)
    });
    check!(matches!(inner, Some(Err(RefreshError::Reentrant))));
    check!(built.is_ok_and(|value| *value == 2));

    let cell = DogpileCell::new(TTL);
    let mut task = pin!(cell.get_or_refresh_async(|| async { 3 }));
    let poll = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    check!(matches!(poll, Poll::Ready(value) if *value == 3));
    0
}
