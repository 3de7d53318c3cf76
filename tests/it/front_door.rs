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
    let source = std::sync::Mutex::new(BTreeSet::from([1]));
    let fetch = || {
        fetches.fetch_add(1, Ordering::Relaxed);
        io::Result::Ok(source.lock().unwrap().clone())
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
    source.lock().unwrap().insert(2);
    clock.advance(MIN_INTERVAL);
    assert!(knows(2).unwrap());
}

/// A caller that wants a build of after its call has not asked the source yet when an older one fails.
#[test]
fn the_error_of_an_older_build_is_no_answer_to_a_no_cache_request() {
    let cell = DogpileCell::with_clock(Policy::ttl(60 * SECOND), ManualClock::new());
    let older = crate::support::LookupExt::elected(cell.lookup());
    thread::scope(|scope| {
        let caller =
            scope.spawn(|| cell.request().no_cache().try_get(|| io::Result::Ok(2)).map(|value| *value));
        eventually("the caller waits", || cell.stats().waits == 1);
        older.fail(io::Error::other("of the older build"));
        assert_eq!(caller.join().unwrap().unwrap(), 2);
    });
    assert_eq!((cell.stats().builds, cell.stats().failed), (2, 1));
}

/// Several of them share the error of the build that did begin after their calls.
#[test]
fn no_cache_requests_share_the_error_of_a_build_that_began_after_them() {
    let cell = DogpileCell::<u32, _>::with_clock(Policy::ttl(60 * SECOND), ManualClock::new());
    let older = crate::support::LookupExt::elected(cell.lookup());
    let builds = AtomicU32::new(0);
    thread::scope(|scope| {
        let ask = || {
            let build = || {
                builds.fetch_add(1, Ordering::Relaxed);
                // The other one waits for this build by now.
                eventually("the other caller waits", || cell.stats().waits == 3);
                Err(io::Error::other("down"))
            };
            cell.request().no_cache().try_get(build).unwrap_err().to_string()
        };
        let callers = [scope.spawn(ask), scope.spawn(ask)];
        eventually("both callers wait", || cell.stats().waits == 2);
        older.fail(io::Error::other("of the older build"));
        for caller in callers {
            assert_eq!(caller.join().unwrap(), "down");
        }
    });
    assert_eq!(builds.load(Ordering::Relaxed), 1);
}

/// What is restored was made before the call, whenever it is restored.
#[test]
fn a_restored_value_is_no_answer_to_a_no_cache_request() {
    let cell = DogpileCell::with_clock(Policy::ttl(60 * SECOND), ManualClock::new());
    let older = crate::support::LookupExt::elected(cell.lookup());
    thread::scope(|scope| {
        let caller = scope.spawn(|| *cell.request().no_cache().get(|| "built after the call"));
        eventually("the caller waits", || cell.stats().waits == 1);
        cell.restore("made long ago", 5 * SECOND);
        eventually("the caller waits again", || cell.stats().waits == 2);
        older.publish("begun before the call");
        assert_eq!(caller.join().unwrap(), "built after the call");
    });
}

/// A clock that advances by itself: each look takes two seconds.
#[derive(Default)]
struct Hurrying(std::sync::atomic::AtomicU64);

impl dogpile::Clock for Hurrying {
    fn now(&self) -> dogpile::Tick {
        dogpile::Tick::from_nanos(self.0.fetch_add(2_000_000_000, Ordering::Relaxed))
    }
}

/// Between the end of the time and the answer the old value may expire.
#[test]
fn a_value_that_expires_when_the_time_is_over_does_not_make_get_panic() {
    for window in 1..20 {
        let policy = Policy::ttl(Duration::ZERO).stale_while_refresh(window * SECOND);
        let cell = DogpileCell::with_clock(policy, Hurrying::default());
        cell.set(1);
        cell.invalidate();
        let lease = cell.request().max_stale(Duration::ZERO).lookup();
        thread::scope(|scope| {
            let request = cell.request().max_stale(Duration::ZERO).wait_at_most(Duration::ZERO).or_stale();
            let caller = scope.spawn(|| *request.get(|| 2));
            eventually("the caller has given up or waits", || {
                cell.stats().wait_timeouts + cell.stats().waits > 0
            });
            drop(lease);
            assert!([1, 2].contains(&caller.join().unwrap()));
        });
    }
}

/// A value whose destructor asks the cell, in a closure that is dropped before it has run.
#[test]
fn a_job_that_is_dropped_gives_the_lease_back_before_its_closure_is_dropped() {
    struct Asks(Arc<DogpileCell<u32>>);
    impl Drop for Asks {
        fn drop(&mut self) {
            assert_eq!(*self.0.get_or_refresh(|| 7), 7);
        }
    }
    let cell = Arc::new(DogpileCell::new(60 * SECOND));
    let asks = Asks(Arc::clone(&cell));
    let got = cell.request_owned().spawn_with(drop::<Job>).try_get(move || {
        let _asks = &asks;
        io::Result::Ok(1)
    });
    assert_eq!(*got.unwrap(), 7);
}

/// The conversion of a build's error is user code inside the build.
#[test]
fn g10_an_error_whose_conversion_asks_the_cell_does_not_hang() {
    struct Asks<'a>(&'a DogpileCell<u32>);
    impl From<Asks<'_>> for dogpile::BoxError {
        fn from(asks: Asks<'_>) -> Self {
            asks.0.try_get_or_refresh(|| io::Result::Ok(1)).unwrap_err().to_string().into()
        }
    }
    let cell = DogpileCell::new(60 * SECOND);
    let error = cell.try_get_or_refresh(|| Err(Asks(&cell))).unwrap_err();
    assert!(error.to_string().contains("would wait for itself"), "{error}");
}

/// A thread that sees a newer value during its own build is not given the older one.
#[test]
fn g3_a_caller_that_has_seen_a_newer_value_does_not_get_its_own_older_one() {
    let cell = Arc::new(DogpileCell::new(60 * SECOND));
    let spawner = |job: Job| {
        job();
        cell.set(2);
        assert_eq!(cell.get().as_deref(), Some(&2));
        cell.invalidate();
    };
    assert_eq!(*cell.request_owned().max_stale(Duration::ZERO).spawn_with(spawner).get(|| 1), 2);
}

/// A clock that does something once, after it was read.
struct Delayed {
    clock: ManualClock,
    after: std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl dogpile::Clock for Delayed {
    fn now(&self) -> dogpile::Tick {
        let now = self.clock.now();
        let after = self.after.lock().unwrap().take();
        if let Some(after) = after {
            after();
        }
        now
    }
}

/// An invalidation whose clock was read long before declares the value stale from its publication on, not before.
#[test]
fn an_invalidation_that_was_delayed_does_not_expire_a_newer_value() {
    let manual = ManualClock::new();
    let clock = Arc::new(Delayed { clock: manual.clone(), after: std::sync::Mutex::new(None) });
    let policy = Policy::ttl(60 * SECOND).stale_while_refresh(SECOND);
    let cell = Arc::new(DogpileCell::with_clock(policy, Arc::clone(&clock)));
    let setter = Arc::clone(&cell);
    *clock.after.lock().unwrap() = Some(Box::new(move || {
        manual.advance(10 * SECOND);
        thread::spawn(move || setter.set(1)).join().unwrap();
    }));
    cell.invalidate();
    assert_eq!((cell.freshness(), cell.get().as_deref()), (Freshness::Stale, Some(&1)));
}

/// What is handed to waiters may be served.
#[test]
fn a_waiter_that_looks_late_is_not_handed_an_expired_restored_value() {
    let policy = Policy::ttl(60 * SECOND).stale_while_refresh(Duration::ZERO);
    let cell = DogpileCell::with_clock(policy, ManualClock::new());
    let lease = crate::support::LookupExt::elected(cell.lookup());
    let pending = crate::support::LookupExt::pending(cell.lookup());
    lease.publish(1);
    cell.restore(2, 1000 * SECOND);
    assert!(matches!(pending.wait(), dogpile::Waited::Abandoned));
}

/// A build of one cell that fails because of another cell: the error is that of the source.
#[test]
fn the_error_of_a_nested_cell_keeps_its_type() {
    let inner = DogpileCell::<u32>::new(60 * SECOND);
    let outer = DogpileCell::<u32>::new(60 * SECOND);
    let build = || -> Result<u32, RefreshError> { Ok(*inner.try_get_or_refresh(down)? + 1) };
    let error = outer.try_get_or_refresh(build).unwrap_err();
    assert!(error.is::<io::Error>());
    assert!(error.build_error().unwrap().ptr_eq(&inner.last_error().unwrap()));
}

/// A clock at its last tick, and a refresher whose failure is forgotten: its own pause of no length is over.
#[test]
fn a_refresher_goes_on_at_the_last_tick_of_its_clock() {
    let clock = ManualClock::new();
    clock.advance(Duration::MAX);
    let cell = Arc::new(DogpileCell::<u32, _>::with_clock(Policy::ttl(60 * SECOND), clock));
    let builds = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&builds);
    let refresher = dogpile::Refresher::options()
        .min_interval(Duration::ZERO)
        .spawn(&cell, SECOND, move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            down()
        })
        .unwrap();
    eventually("the first build fails", || refresher.consecutive_failures() == 1);
    cell.reset();
    eventually("the next one begins", || builds.load(Ordering::Relaxed) >= 2);
}
