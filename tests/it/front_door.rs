//! What a new user meets first: the defaults in an outage, callers with little patience, tokens with unknown key ids.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Freshness, Job, ManualClock, Policy, RefreshError};

use crate::support::eventually;

const SECOND: Duration = Duration::from_secs(1);

fn down() -> io::Result<u32> {
    Err(io::Error::other("connection refused"))
}

/// An hour of requests, ten a second, with nothing configured but the ttl.
#[test]
fn an_outage_of_an_hour_costs_no_caller_the_value_and_asks_the_source_a_few_times_a_minute() {
    let clock = ManualClock::new();
    let cell = DogpileCell::with_clock(Policy::ttl(60 * SECOND), clock.clone());
    cell.set(1);
    let mut served = 0;
    for _ in 0..36_000 {
        clock.advance(SECOND / 10);
        served += u64::from(*cell.try_get_or_refresh(down).expect("there is a value that may be served"));
    }
    assert_eq!(served, 36_000);
    let stats = cell.stats();
    assert!((300..=400).contains(&stats.builds), "{stats:?}");
    assert_eq!((stats.failed, stats.consecutive_failures), (stats.builds, stats.builds));
    // The callers whose own build failed; the others were served in the pauses.
    assert_eq!(stats.served_stale_on_error, stats.builds);
    assert_eq!(cell.last_error().unwrap().to_string(), "connection refused");

    // The source is back: the value is new after the pause that runs.
    clock.advance(10 * SECOND);
    assert_eq!(*cell.try_get_or_refresh(|| io::Result::Ok(2)).unwrap(), 2);
    assert!(cell.last_error().is_none());
    assert_eq!((cell.freshness(), cell.stats().consecutive_failures), (Freshness::Fresh, 0));
}

/// The same with a build that cannot return an error, and panics.
#[test]
fn a_build_that_panics_beside_a_value_begins_a_pause_too() {
    let clock = ManualClock::new();
    let cell = DogpileCell::with_clock(Policy::ttl(60 * SECOND), clock.clone());
    cell.set(1);
    clock.advance(61 * SECOND);
    let panicking = || cell.get_or_refresh(|| panic!("no route"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).is_err());
    assert_eq!(cell.last_error().unwrap().to_string(), "the build panicked: no route");
    assert_eq!(*cell.get_or_refresh(|| unreachable!("a retry pause runs")), 1);
    clock.advance(SECOND / 10);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
}

/// Five hundred callers that wait for a fifth of a second each, while the first build takes a second.
#[test]
fn impatient_callers_get_their_answer_from_one_build_once_it_has_ended() {
    const CALLERS: usize = if cfg!(miri) { 5 } else { 500 };
    let clock = ManualClock::new();
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(60 * SECOND), clock.clone()));
    let (jobs, queue) = channel::<Job>();
    let ask = |cell: &Arc<DogpileCell<u32, ManualClock>>| {
        let jobs = jobs.clone();
        cell.request_owned()
            .wait_at_most(SECOND / 5)
            .spawn_with(move |job| jobs.send(job))
            .try_get(|| io::Result::Ok(7))
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(|| ask(&cell))).collect();
        eventually("all callers wait", || cell.stats().waits == CALLERS as u64);
        // Nobody's time is over yet, and then everybody's.
        clock.advance(SECOND / 5 - Duration::from_nanos(1));
        eventually("nobody has given up", || callers.iter().all(|caller| !caller.is_finished()));
        clock.advance(SECOND);
        for caller in callers {
            assert!(matches!(caller.join().unwrap(), Err(RefreshError::WaitTimeout)));
        }
    });
    // The build outlives them all.
    assert!(cell.is_refreshing());
    queue.recv().unwrap()();
    for _ in 0..CALLERS {
        assert_eq!(*ask(&cell).unwrap(), 7);
    }
    assert_eq!(cell.stats().builds, 1);
    assert!(queue.try_recv().is_err());
}

/// The soft timeout, in the four ways of waiting: for one's own spawned build and for another caller's, by a thread; the
/// ways of tasks stand in `tests/async`.
#[test]
fn a_soft_timeout_returns_the_new_value_if_it_is_quick_and_else_the_old_one() {
    for own in [true, false] {
        for quick in [true, false] {
            let clock = ManualClock::new();
            let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(60 * SECOND), clock.clone()));
            cell.set(1);
            cell.invalidate();
            let (jobs, queue) = channel::<Job>();
            let start = {
                let (cell, jobs) = (Arc::clone(&cell), jobs.clone());
                move || {
                    cell.request_owned()
                        .max_stale(Duration::ZERO)
                        .wait_at_most(SECOND / 5)
                        .or_stale()
                        .spawn_with(move |job| jobs.send(job))
                        .get(|| 2)
                }
            };
            if !own {
                assert_eq!(*cell.request_owned().spawn_with(|job| jobs.send(job)).get(|| 2), 1);
            }
            let caller = thread::spawn(start);
            eventually("the caller waits", || cell.stats().waits == 1);
            let job = queue.recv().unwrap();
            if quick {
                job();
                assert_eq!(*caller.join().unwrap(), 2, "own: {own}");
            } else {
                clock.advance(SECOND / 5);
                assert_eq!(*caller.join().unwrap(), 1, "own: {own}");
                // The build goes on.
                job();
            }
            assert_eq!(cell.get().as_deref(), Some(&2));
            assert_eq!(cell.stats().builds, 1);
        }
    }
}

/// A key set that is asked for keys it does not have.
#[test]
fn a_thousand_unknown_key_ids_are_one_fetch_and_then_at_most_one_in_thirty_seconds() {
    const MIN_INTERVAL: Duration = Duration::from_secs(30);
    let clock = ManualClock::new();
    let cell = DogpileCell::with_clock(Policy::ttl(3600 * SECOND), clock.clone());
    let fetches = AtomicU32::new(0);
    let known = std::sync::Mutex::new(BTreeSet::from([1]));
    let fetch = || {
        fetches.fetch_add(1, Ordering::Relaxed);
        io::Result::Ok(known.lock().unwrap().clone())
    };
    let knows = |id: u32| -> Result<bool, RefreshError> {
        if cell.try_get_or_refresh(fetch)?.contains(&id) {
            return Ok(true);
        }
        Ok(cell.request().max_age(MIN_INTERVAL).try_get(fetch)?.contains(&id))
    };
    assert!(knows(1).unwrap());
    clock.advance(MIN_INTERVAL + Duration::from_nanos(1));
    for id in 1000..2000 {
        assert!(!knows(id).unwrap());
    }
    assert_eq!(fetches.load(Ordering::Relaxed), 2);

    // For an hour, one in a second: the fetch of each ttl is among them.
    for id in 2000..5600 {
        clock.advance(SECOND);
        assert!(!knows(id).unwrap());
    }
    let in_an_hour = fetches.load(Ordering::Relaxed) - 2;
    assert!((100..=120).contains(&in_an_hour), "{in_an_hour}");

    // A rotation is found as soon as the interval allows.
    known.lock().unwrap().insert(2);
    clock.advance(MIN_INTERVAL);
    assert!(knows(2).unwrap());
}
