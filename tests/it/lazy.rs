//! The cell that keeps its build.

use std::num::ParseIntError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Job, LazyDogpile, ManualClock, Policy, RefreshError};

use crate::support::{Down, TICK, TTL, eventually};

static BUILDS: AtomicU32 = AtomicU32::new(0);
static NUMBER: LazyDogpile<u32> = LazyDogpile::new(TTL, || BUILDS.fetch_add(1, Ordering::Relaxed));

#[test]
fn a_static_one_builds_once_for_all_threads() {
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert_eq!(*NUMBER.get_or_refresh(), 0);
                assert_eq!(*NUMBER.load_or_refresh(), 0);
                assert_eq!(**NUMBER.reader().get_or_refresh(), 0);
            });
        }
    });
    assert_eq!(BUILDS.load(Ordering::Relaxed), 1);
    assert_eq!(NUMBER.cell().stats().builds, 1);
}

#[test]
fn a_closure_may_capture() {
    let clock = ManualClock::new();
    let count = AtomicU32::new(0);
    let lazy =
        LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), || count.fetch_add(1, Ordering::Relaxed));
    let mut reader = lazy.reader();
    assert_eq!((*lazy.get_or_refresh(), **reader.get_or_refresh()), (0, 0));
    clock.advance(TTL + TICK);
    assert_eq!((**reader.get_or_refresh(), *lazy.load_or_refresh()), (1, 1));
    lazy.invalidate();
    assert_eq!(*lazy.get_or_refresh(), 2);
    let kept = Arc::downgrade(reader.get_or_refresh());
    lazy.set(3);
    assert!(kept.upgrade().is_some(), "the reader keeps what it has seen");
    reader.release();
    assert!(kept.upgrade().is_none());
    assert_eq!(**reader.get_or_refresh(), 3);
    assert!(format!("{lazy:?}").contains("generation: 4"));
    assert_eq!(format!("{reader:?}"), "Reader { holds_a_value: true, .. }");
}

#[test]
fn get_never_builds() {
    let clock = ManualClock::new();
    let policy = Policy::ttl(TTL).stale_while_refresh(TTL);
    let lazy = LazyDogpile::with_clock(policy, clock.clone(), || 1);
    let mut reader = lazy.reader();
    assert_eq!((lazy.get(), reader.get()), (None, None));
    lazy.get_or_refresh();
    clock.advance(TTL + TICK);
    assert_eq!((lazy.get().as_deref(), reader.get().map(|value| **value)), (Some(&1), Some(1)));
    clock.advance(TTL);
    assert_eq!((lazy.get(), reader.get()), (None, None));
    assert_eq!(lazy.cell().stats().builds, 1);
}

#[test]
fn a_build_that_fails_returns_its_error_and_is_tried_again() {
    static SOURCE: AtomicU32 = AtomicU32::new(0);
    static LIMIT: LazyDogpile<u32, fn() -> Result<u32, Down>> = LazyDogpile::with_policy(
        Policy::never_expires().retry_backoff(Duration::ZERO, Duration::ZERO).stale_if_error(Duration::ZERO),
        || match SOURCE.load(Ordering::Relaxed) {
            0 => Err(Down(7)),
            limit => Ok(limit),
        },
    );
    let error: RefreshError = LIMIT.try_get_or_refresh().unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Down(7)));
    SOURCE.store(3, Ordering::Relaxed);
    assert_eq!(*LIMIT.try_get_or_refresh().unwrap(), 3);
    SOURCE.store(0, Ordering::Relaxed);
    assert_eq!(*LIMIT.try_get_or_refresh().unwrap(), 3);
    assert!(LIMIT.request().no_cache().try_get().is_err());
    assert_eq!(*LIMIT.request().no_cache().or_stale().try_get().unwrap(), 3);
    assert_eq!(LIMIT.cell().stats().builds, 4);
}

#[test]
fn a_request_takes_no_closure() {
    let clock = ManualClock::new();
    let count = AtomicU32::new(1);
    let lazy =
        LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), || count.fetch_add(1, Ordering::Relaxed));
    assert_eq!(*lazy.request().get(), 1);
    assert_eq!(*lazy.request().max_age(TTL).get(), 1);
    assert_eq!(*lazy.request().newer_than(1).get(), 2);
    assert_eq!(*lazy.request().no_cache().get(), 3);
    clock.advance(TTL + TICK);
    assert_eq!(*lazy.request().max_stale(Duration::ZERO).get(), 4);
    lazy.clear();
    assert_eq!(*lazy.request().wait_at_most(Duration::ZERO).get(), 5);
}

#[test]
fn a_request_hands_the_build_of_the_cell_to_a_spawner() {
    static LIMIT: LazyDogpile<u32, fn() -> Result<u32, ParseIntError>> =
        LazyDogpile::new(TTL, || "7".parse());
    assert_eq!(*LIMIT.request().spawn_with(thread::spawn).try_get().unwrap(), 7);

    let clock = ManualClock::new();
    let count = AtomicU32::new(1);
    let build = move || count.fetch_add(1, Ordering::Relaxed);
    let lazy = Arc::new(LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), build));
    assert_eq!(*lazy.request_owned().spawn_with(thread::spawn).get(), 1);
    clock.advance(TTL + TICK);
    let mut jobs: Vec<Job> = Vec::new();
    assert_eq!(*lazy.request_owned().spawn_with(|job| jobs.push(job)).get(), 1);
    // The job keeps the cell alive, and its build.
    let weak = Arc::downgrade(&lazy);
    let mut reader = lazy.reader();
    assert_eq!(**reader.get().unwrap(), 1);
    drop(lazy);
    let lazy = weak.upgrade().expect("the job keeps it");
    jobs.pop().unwrap()();
    assert_eq!(lazy.get().as_deref(), Some(&2));
    drop(lazy);
    // The thread of the first job may just be ending.
    eventually("the jobs let go of the cell", || weak.upgrade().is_none());
}

#[test]
fn a_static_one_may_have_a_name() {
    static NAMED: LazyDogpile<u32> = LazyDogpile::with_name("limit", Policy::never_expires(), || 7);
    assert!(format!("{NAMED:?}").contains("limit"));
    assert_eq!(*NAMED.get_or_refresh(), 7);
}
