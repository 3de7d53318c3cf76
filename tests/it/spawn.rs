//! `Request::spawn_with`: builds that are handed to a spawner, the first one too (G13).

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use dogpile::{
    Clock, DogpileCell, Drain, Freshness, Job, LazyDogpile, Lookup, ManualClock, Policy, RefreshError,
    Refreshed, Request, SyncReaderCell,
};

use crate::support::{
    Down, LookupExt, STRICT, TICK, TTL, cell, cell_with, eventually, gate, not_tried, panic_message,
    stale_cell, stale_cell_with, unbuilt,
};

type Manual = Arc<DogpileCell<u32, ManualClock>>;

fn shared((cell, clock): (DogpileCell<u32, ManualClock>, ManualClock)) -> (Manual, ManualClock) {
    (Arc::new(cell), clock)
}

/// A spawner for a call that has nothing to hand over.
fn no_spawner(_: Job) {
    unreachable!("there is nothing to hand over")
}

fn on_the_spot(job: Job) {
    job();
}

/// The job that a call hands over, whose caller gets the old value meanwhile.
#[track_caller]
fn job<C: Clock + 'static>(
    cell: &Arc<DogpileCell<u32, C>>,
    old: u32,
    build: impl FnOnce() -> u32 + Send + 'static,
) -> Job {
    let mut job = None;
    let value = cell.request_owned().spawn_with(|spawned: Job| job = Some(spawned)).get(build);
    assert_eq!(*value, old);
    job.expect("the caller should have been elected")
}

/// A thread that makes a call whose job it sends here, and waits for its value.
struct Calling<R> {
    thread: thread::JoinHandle<R>,
    job: Job,
}

/// Starts one, and waits until it waits.
fn caller<R: Send + 'static>(
    cell: &Manual,
    read: impl FnOnce(Manual, mpsc::Sender<Job>) -> R + Send + 'static,
) -> Calling<R> {
    let waits = cell.stats().waits;
    let (jobs, queue) = mpsc::channel();
    let thread = {
        let cell = Arc::clone(cell);
        thread::spawn(move || read(cell, jobs))
    };
    let job = queue.recv().expect("a job is handed over");
    eventually("its caller waits", || cell.stats().waits == waits + 1);
    Calling { thread, job }
}

/// Runs `f`, which is expected to panic with `payload`; the panic hook is not called.
#[track_caller]
fn panics_with<R>(payload: &str, f: impl FnOnce() -> R) {
    let panic = catch_unwind(AssertUnwindSafe(f)).err().expect("it should have panicked");
    assert_eq!(*panic.downcast::<&str>().expect("the payload of the test"), payload);
}

fn panic_with(payload: &'static str) -> ! {
    resume_unwind(Box::new(payload))
}

/// From the first build to the second. `age` makes the value out of date.
fn course<C: Clock + 'static>(
    request: impl Fn() -> Request<'static, u32, C>,
    is_refreshing: impl Fn() -> bool,
    age: impl Fn(),
) {
    let caller = thread::current().id();
    let first = request().spawn_with(thread::spawn).get(move || {
        assert_ne!(thread::current().id(), caller);
        1
    });
    assert_eq!(*first, 1);
    eventually("the job ends", || !is_refreshing());
    assert_eq!(*request().spawn_with(no_spawner).get(unbuilt), 1);
    age();
    let mut jobs: Vec<Job> = Vec::new();
    assert_eq!(*request().spawn_with(|job| jobs.push(job)).get(|| 2), 1);
    // One job, however many calls there are.
    for _ in 0..3 {
        assert_eq!(*request().spawn_with(no_spawner).get(unbuilt), 1);
    }
    assert!(is_refreshing());
    let job = jobs.pop().unwrap();
    thread::spawn(job).join().unwrap();
    assert!(!is_refreshing());
    assert_eq!(*request().spawn_with(no_spawner).get(unbuilt), 2);
}

#[test]
fn a_cell_in_an_arc() {
    let (cell, clock) = shared(cell());
    course(|| cell.request_owned(), || cell.is_refreshing(), || clock.advance(TTL + TICK));
    assert_eq!((cell.stats().builds, cell.stats().published), (2, 2));
}

#[test]
fn a_cell_in_a_static() {
    static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires());
    course(|| CELL.request(), || CELL.is_refreshing(), || CELL.invalidate());
    assert_eq!((CELL.stats().builds, CELL.stats().published), (2, 2));
}

#[test]
fn cells_of_the_other_kinds() {
    let lazy = Arc::new(LazyDogpile::new(TTL, || 1));
    assert_eq!(*lazy.request_owned().spawn_with(thread::spawn).get(), 1);

    let latest = Arc::new(AtomicU32::new(0));
    let note = Arc::clone(&latest);
    let drain = Drain::Wait(Duration::MAX);
    let finalizer = move |value| note.store(value, Ordering::SeqCst);
    let cell = Arc::new(SyncReaderCell::with_policy(Policy::ttl(TTL), drain, finalizer));
    assert_eq!(*cell.request_owned().spawn_with(thread::spawn).get(|| 1), 1);
    let second = cell.request_owned().no_cache().spawn_with(on_the_spot).try_get(|| Ok::<_, Down>(2));
    assert_eq!(*second.unwrap(), 2);
    assert_eq!(latest.load(Ordering::SeqCst), 1);
}

/// The build ends only after the caller has been served.
fn served_before_it_is_built<R>(spawner: impl FnOnce(Job) -> R) {
    let (cell, _clock) = shared(stale_cell(1));
    let (stop, keeper) = gate();
    let caller = thread::current().id();
    let value = cell.request_owned().spawn_with(spawner).get(move || {
        assert_ne!(thread::current().id(), caller);
        stop.pass();
        2
    });
    assert_eq!(*value, 1);
    keeper.wait_for_arrival();
    assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 1);
    assert_eq!(cell.freshness(), Freshness::Stale);
    keeper.open();
    // The job runs to its end also when no caller waits for it.
    eventually("the job ends", || !cell.is_refreshing());
    assert_eq!(*cell.get_or_refresh(unbuilt), 2);
    assert_eq!((cell.stats().builds, cell.stats().waits), (1, 0));
}

#[test]
fn g2_a_thread_of_its_own() {
    served_before_it_is_built(thread::spawn);
}

#[test]
fn g2_the_pool_of_rayon() {
    served_before_it_is_built(rayon::spawn);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    served_before_it_is_built(|job| pool.spawn(job));
}

#[test]
fn g2_a_blocking_task_of_tokio() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    served_before_it_is_built(tokio::task::spawn_blocking);
    served_before_it_is_built(|job| runtime.handle().spawn_blocking(job));
}

#[test]
fn g13_the_first_build_runs_where_the_spawner_runs_it() {
    for spawner in [|job| drop(thread::spawn(job)), |job: Job| rayon::spawn(job)] {
        let (cell, _clock) = shared(cell());
        let caller = thread::current().id();
        let request = cell.request_owned().spawn_with(spawner);
        let value = request.clone().try_get(move || {
            assert_ne!(thread::current().id(), caller);
            Ok::<_, Down>(1)
        });
        assert!(Arc::ptr_eq(&value.unwrap(), &cell.get().unwrap()));
        assert_eq!(*request.get(unbuilt), 1);
        assert_eq!((cell.stats().builds, cell.stats().panicked), (1, 0));
    }
}

#[test]
fn g13_the_first_build_goes_on_when_its_caller_gives_up() {
    let (cell, clock) = shared(cell());
    let (stop, keeper) = gate();
    let giving_up = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || {
            cell.request_owned().wait_at_most(TTL).spawn_with(thread::spawn).try_get(move || {
                stop.pass();
                Ok::<_, Down>(1)
            })
        })
    };
    keeper.wait_for_arrival();
    eventually("it waits", || cell.stats().waits == 1);
    clock.advance(TTL - TICK);
    assert!(!giving_up.is_finished());
    clock.advance(TICK);
    assert!(matches!(giving_up.join().unwrap(), Err(RefreshError::WaitTimeout)));
    assert!(cell.is_refreshing());
    // The next caller gives up at once, and another waits for the same build.
    let at_once = cell.request_owned().wait_at_most(Duration::ZERO).spawn_with(no_spawner).try_get(not_tried);
    assert!(matches!(at_once, Err(RefreshError::WaitTimeout)));
    let waiter = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || *cell.get_or_refresh(unbuilt))
    };
    eventually("the other one waits", || cell.stats().waits == 2);
    keeper.open();
    assert_eq!(waiter.join().unwrap(), 1);
    assert_eq!((cell.stats().builds, cell.stats().wait_timeouts), (1, 2));
}

#[test]
fn g13_without_patience_the_first_build_is_started_and_not_waited_for() {
    let (cell, _clock) = shared(cell());
    let (jobs, queue) = mpsc::channel::<Job>();
    let request = cell.request_owned().wait_at_most(Duration::ZERO).spawn_with(|job| jobs.send(job));
    let started = request.try_get(|| Ok::<_, Down>(1));
    assert!(matches!(started, Err(RefreshError::WaitTimeout)));
    assert_eq!(cell.stats().waits, 0);
    queue.recv().unwrap()();
    assert_eq!(cell.get().as_deref(), Some(&1));
}

/// As `g13_the_first_build_goes_on_when_its_caller_gives_up`, with an old value that is better than none.
#[test]
fn a_soft_timeout_returns_the_old_value_when_the_time_is_over() {
    for is_fallible in [false, true] {
        let (cell, clock) = shared(stale_cell(1));
        let soft =
            |cell: &Manual| cell.request_owned().max_stale(Duration::ZERO).wait_at_most(TTL).or_stale();
        let late = caller(&cell, move |cell, jobs| {
            let request = soft(&cell).spawn_with(move |job| jobs.send(job));
            if is_fallible { request.try_get(|| Ok::<_, Down>(2)).unwrap() } else { request.get(|| 2) }
        });
        clock.advance(TTL - TICK);
        assert!(!late.thread.is_finished());
        clock.advance(TICK);
        assert_eq!(*late.thread.join().unwrap(), 1);
        // The build goes on, and the next caller is in time.
        assert!(cell.is_refreshing());
        let in_time = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || *soft(&cell).spawn_with(no_spawner).get(unbuilt))
        };
        eventually("it waits", || cell.stats().waits == 2);
        (late.job)();
        assert_eq!(in_time.join().unwrap(), 2);
        assert_eq!(cell.stats().builds, 1);
    }
}

#[test]
fn a_soft_timeout_without_a_value_to_fall_back_on() {
    let (cell, clock) = shared(cell());
    let with_error = caller(&cell, |cell, jobs| {
        let request = cell.request_owned().wait_at_most(TTL).or_stale().spawn_with(move |job| jobs.send(job));
        request.try_get(|| Ok::<_, Down>(1))
    });
    // A call that can return no error goes on waiting.
    let without = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || {
            *cell.request_owned().wait_at_most(TTL).or_stale().spawn_with(no_spawner).get(unbuilt)
        })
    };
    eventually("both wait", || cell.stats().waits == 2);
    clock.advance(TTL);
    assert!(matches!(with_error.thread.join().unwrap(), Err(RefreshError::WaitTimeout)));
    eventually("it waits again", || cell.stats().waits == 3);
    (with_error.job)();
    assert_eq!(without.join().unwrap(), 1);
}

#[test]
fn g1_of_many_callers_one_hands_a_job_over() {
    const CALLERS: usize = 8;
    let (cell, _clock) = shared(stale_cell(1));
    let start = Barrier::new(CALLERS);
    let jobs: Mutex<Vec<Job>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                start.wait();
                for _ in 0..50 {
                    let spawner = |job| jobs.lock().unwrap().push(job);
                    assert_eq!(*cell.request_owned().spawn_with(spawner).get(|| 2), 1);
                }
            });
        }
    });
    let mut jobs = jobs.into_inner().unwrap();
    assert_eq!(jobs.len(), 1);
    jobs.pop().unwrap()();
    assert_eq!(cell.get().as_deref(), Some(&2));
}

#[test]
fn g1_of_many_callers_without_a_value_one_hands_a_job_over_and_all_get_its_value() {
    const CALLERS: u64 = 8;
    let (cell, _clock) = shared(cell());
    let jobs: Mutex<Vec<Job>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let spawner = |job| jobs.lock().unwrap().push(job);
                assert_eq!(*cell.request_owned().spawn_with(spawner).get(|| 1), 1);
            });
        }
        eventually("all wait", || cell.stats().waits == CALLERS);
        let mut handed_over = std::mem::take(&mut *jobs.lock().unwrap());
        assert_eq!(handed_over.len(), 1);
        handed_over.pop().unwrap()();
    });
    assert_eq!(cell.stats().builds, 1);
}

#[test]
fn callers_without_a_value_wait_for_a_build_that_was_not_handed_over() {
    let (cell, _clock) = shared(cell());
    let lease = cell.lookup().elected();
    let waiter = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || *cell.request_owned().spawn_with(no_spawner).get(unbuilt))
    };
    eventually("it waits", || cell.stats().waits == 1);
    lease.publish(1);
    assert_eq!(waiter.join().unwrap(), 1);
}

/// A value that expires while the job waits to be run is not served any more: callers wait for the job.
#[test]
fn g6_a_value_that_expires_meanwhile_makes_callers_wait_for_the_job() {
    let (cell, clock) = shared(cell_with(Policy::ttl(TTL).stale_while_refresh(TTL)));
    cell.set(1);
    clock.advance(2 * TTL);
    let job = job(&cell, 1, || 2);
    clock.advance(TICK);
    let waiter = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || *cell.request_owned().spawn_with(no_spawner).get(unbuilt))
    };
    eventually("it waits", || cell.stats().waits == 1);
    job();
    assert_eq!(waiter.join().unwrap(), 2);
}

#[test]
fn g6_the_caller_of_a_job_gets_its_value_even_if_that_has_expired_by_then() {
    let (cell, clock) = shared(cell_with(Policy::ttl(Duration::ZERO).stale_while_refresh(Duration::ZERO)));
    let caller =
        caller(&cell, |cell, jobs| *cell.request_owned().spawn_with(move |job| jobs.send(job)).get(|| 1));
    (caller.job)();
    clock.advance(TICK);
    assert_eq!(caller.thread.join().unwrap(), 1);
}

#[test]
fn g5_a_spawner_that_drops_the_job_gives_the_lease_back() {
    let (cell, _clock) = shared(stale_cell(1));
    for attempt in 1..=3 {
        assert_eq!(*cell.request_owned().spawn_with(drop::<Job>).get(unbuilt), 1);
        assert!(!cell.is_refreshing());
        assert_eq!((cell.stats().builds, cell.stats().abandoned), (attempt, attempt));
    }
    assert_eq!(*cell.request_owned().spawn_with(on_the_spot).get(|| 2), 2);
}

#[test]
fn g5_without_a_value_the_caller_of_a_dropped_job_gets_an_error() {
    let (cell, _clock) = shared(cell());
    let request = cell.request_owned().spawn_with(drop::<Job>);
    let error = request.clone().try_get(not_tried::<u32>).unwrap_err();
    assert!(matches!(error, RefreshError::Abandoned));
    assert_eq!(error.to_string(), "the build was dropped or panicked in the spawner that it was handed to");
    let error = request.clone().or_stale().try_get(not_tried::<u32>).unwrap_err();
    assert!(matches!(error, RefreshError::Abandoned));
    let message = panic_message(|| request.get(unbuilt));
    assert!(message.starts_with("get: the build was dropped or panicked in the spawner"), "{message}");
    assert_eq!((cell.stats().abandoned, cell.stats().panicked, cell.is_refreshing()), (3, 0, false));
    assert!(cell.last_error().is_none());
    // No pause runs.
    assert_eq!(*cell.request_owned().spawn_with(on_the_spot).try_get(|| Ok::<_, Down>(1)).unwrap(), 1);
}

#[test]
fn g5_a_dropped_job_beside_a_value_that_does_not_meet_the_conditions() {
    let (cell, _clock) = shared(stale_cell(1));
    let fresh = cell.request_owned().max_stale(Duration::ZERO);
    let error = fresh.clone().spawn_with(drop::<Job>).try_get(not_tried::<u32>).unwrap_err();
    assert!(matches!(error, RefreshError::Abandoned));
    let fresh = fresh.or_stale().spawn_with(drop::<Job>);
    assert_eq!(*fresh.clone().try_get(not_tried).unwrap(), 1);
    assert_eq!(*fresh.get(unbuilt), 1);
}

#[test]
fn g5_a_job_that_is_dropped_later_gives_the_lease_back() {
    let (cell, _clock) = shared(stale_cell(1));
    let job = job(&cell, 1, unbuilt);
    assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 1);
    thread::spawn(move || drop(job)).join().unwrap();
    assert_eq!(*cell.request_owned().spawn_with(on_the_spot).get(|| 2), 2);
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (0, 1));
}

/// Its own caller has no closure any more. The other waiters have theirs, and one of them is elected.
#[test]
fn g7_when_a_first_build_is_dropped_or_panics_in_its_job_one_waiter_is_elected_next() {
    const WAITERS: u64 = 4;
    for panics in [false, true] {
        let (cell, _clock) = shared(cell());
        let first = caller(&cell, |cell, jobs| {
            let build = || -> Result<u32, Down> { panic_with("no route") };
            cell.request_owned().spawn_with(move |job| jobs.send(job)).try_get(build)
        });
        let (stop, keeper) = gate();
        let builds = AtomicU32::new(0);
        thread::scope(|scope| {
            let waiters: Vec<_> = (0..WAITERS)
                .map(|_| {
                    scope.spawn(|| {
                        *cell.get_or_refresh(|| {
                            stop.pass();
                            builds.fetch_add(1, Ordering::SeqCst) + 1
                        })
                    })
                })
                .collect();
            eventually("all wait", || cell.stats().waits == 1 + WAITERS);
            if panics {
                panics_with("no route", first.job);
            } else {
                drop(first.job);
            }
            keeper.wait_for_arrival();
            assert!(matches!(first.thread.join().unwrap(), Err(RefreshError::Abandoned)));
            keeper.open();
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap(), 1);
            }
        });
        let stats = cell.stats();
        assert_eq!(
            (stats.builds, stats.panicked, stats.abandoned),
            (2, u64::from(panics), u64::from(!panics))
        );
    }
}

#[test]
fn g5_a_spawner_that_panics_gives_the_lease_back() {
    for is_first in [false, true] {
        let (cell, _clock) = shared(if is_first { cell() } else { stale_cell(1) });
        let request = cell.request_owned().spawn_with(|_: Job| panic_with("no thread"));
        panics_with("no thread", || request.clone().get(unbuilt));
        panics_with("no thread", || request.try_get(not_tried));
        assert!(!cell.is_refreshing());
        assert_eq!(cell.get().as_deref(), if is_first { None } else { Some(&1) });
        assert_eq!(*cell.request_owned().spawn_with(on_the_spot).get(|| 2), 2);
    }
}

/// No build has failed: the next caller does not wait for the policy's pause.
#[test]
fn a_spawner_that_panics_begins_no_retry_pause() {
    let (cell, _clock) = shared(stale_cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL), 1));
    let request = cell.request_owned().spawn_with(|_: Job| panic_with("no thread"));
    panics_with("no thread", || request.get(unbuilt));
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (0, 1));
    assert!(cell.last_error().is_none());
    job(&cell, 1, || 2)();
    assert_eq!(cell.get().as_deref(), Some(&2));
}

/// A job that was queued before the spawner panics is as good as any.
#[test]
fn a_spawner_that_panics_may_have_kept_the_job() {
    for is_first in [false, true] {
        let (cell, _clock) = shared(if is_first { cell() } else { stale_cell(1) });
        let mut queue: Vec<Job> = Vec::new();
        panics_with("after all", || {
            let spawner = |job| {
                queue.push(job);
                panic_with("after all")
            };
            cell.request_owned().spawn_with(spawner).get(|| 2)
        });
        assert!(cell.is_refreshing());
        queue.pop().unwrap()();
        assert_eq!(*cell.get_or_refresh(unbuilt), 2);
    }
}

#[test]
fn g3_a_job_that_is_run_on_the_spot_gives_its_caller_the_new_value() {
    for is_first in [false, true] {
        let (cell, _clock) = shared(if is_first { cell() } else { stale_cell(1) });
        let value = cell.request_owned().spawn_with(on_the_spot).get(|| 2);
        assert_eq!(*value, 2);
        assert!(Arc::ptr_eq(&value, &cell.get().unwrap()));
        assert!(!cell.is_refreshing());
        assert_eq!(cell.stats().waits, 0);
    }
}

#[test]
fn a_job_that_fails_on_the_spot() {
    let (cell, clock) = shared(cell_with(Policy::ttl(TTL).stale_if_error(TTL).retry_backoff(TICK, TICK)));
    let request = cell.request_owned().spawn_with(on_the_spot);
    // Without a value: the error. It begins a pause, in which nothing is handed over.
    let error = request.clone().try_get(|| Err::<u32, _>(Down(1))).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Down(1)));
    let error = cell.request_owned().spawn_with(no_spawner).try_get(not_tried).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Down(1)));
    // `get` builds all the same.
    assert_eq!(*request.clone().get(|| 1), 1);
    // With a value: that, as long as the policy allows.
    clock.advance(2 * TTL);
    assert_eq!(*request.clone().try_get(|| Err(Down(2))).unwrap(), 1);
    assert_eq!(cell.last_error().unwrap().downcast_ref(), Some(&Down(2)));
    let fresh = request.max_stale(Duration::ZERO);
    clock.advance(TICK);
    assert_eq!(fresh.clone().try_get(|| Err(Down(3))).unwrap_err().downcast_ref(), Some(&Down(3)));
    clock.advance(TICK);
    assert_eq!(*fresh.or_stale().try_get(|| Err(Down(4))).unwrap(), 1);
}

/// The caller and the waiters share the error of a job.
#[test]
fn g7_the_error_of_a_job_reaches_its_caller_and_the_waiters() {
    let (cell, _clock) = shared(cell());
    let first = caller(&cell, |cell, jobs| {
        cell.request_owned().spawn_with(move |job| jobs.send(job)).try_get(|| Err::<u32, _>(Down(1)))
    });
    let waiter = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || cell.try_get_or_refresh(|| "seven".parse()))
    };
    eventually("it waits", || cell.stats().waits == 2);
    (first.job)();
    let errors = [first.thread.join().unwrap().unwrap_err(), waiter.join().unwrap().unwrap_err()];
    let [mine, shared] = errors.each_ref().map(|error| error.build_error().unwrap());
    assert!(mine.ptr_eq(shared) && mine.is::<Down>());
    assert_eq!((cell.stats().builds, cell.stats().failed), (1, 1));
}

/// The stale value, where the policy lets it stand in for the error: to a caller that would have liked a newer one too.
#[test]
fn the_caller_of_a_job_that_fails_is_served_what_the_policy_allows() {
    for (policy, is_served) in [(Policy::ttl(TTL), true), (STRICT, false)] {
        let (cell, clock) =
            shared(cell_with(policy.stale_while_refresh(Duration::ZERO).stale_if_error(if is_served {
                TTL
            } else {
                Duration::ZERO
            })));
        cell.set(1);
        clock.advance(TTL + TICK);
        let caller = caller(&cell, |cell, jobs| {
            cell.request_owned().spawn_with(move |job| jobs.send(job)).try_get(|| Err(Down(1)))
        });
        (caller.job)();
        let result = caller.thread.join().unwrap();
        assert_eq!(result.ok().as_deref(), is_served.then_some(&1));
        assert_eq!(cell.stats().served_stale_on_error, u64::from(is_served));
    }
}

#[test]
fn g3_a_value_set_by_the_spawner_is_served() {
    for is_first in [false, true] {
        let (cell, _clock) = shared(if is_first { cell() } else { stale_cell(1) });
        let spawner = |job: Job| drop((job, cell.set(3)));
        assert_eq!(*cell.request_owned().spawn_with(spawner).get(unbuilt), 3);
    }
}

/// The job is doomed, but its value still is the caller's.
#[test]
fn a_spawner_that_clears_the_cell_gives_its_caller_the_value_of_the_job() {
    let (cell, _clock) = shared(stale_cell(1));
    let spawner = |job: Job| {
        assert_eq!(cell.clear().as_deref(), Some(&1));
        thread::spawn(job)
    };
    assert_eq!(*cell.request_owned().spawn_with(spawner).get(|| 2), 2);
    assert!(cell.get().is_none());
    // And if there is no job either, there is nothing to be had.
    cell.set(3);
    let spawner = |job: Job| drop((job, cell.clear()));
    let error = cell.request_owned().no_cache().spawn_with(spawner).try_get(not_tried).unwrap_err();
    assert!(matches!(error, RefreshError::Abandoned));
}

#[test]
fn a_panic_on_the_spot_reaches_the_caller() {
    for is_first in [false, true] {
        let (cell, _clock) = shared(if is_first { cell() } else { stale_cell(1) });
        let request = cell.request_owned().spawn_with(on_the_spot);
        panics_with("no route", || request.get(|| panic_with("no route")));
        assert_eq!(cell.get().as_deref(), if is_first { None } else { Some(&1) });
        assert!(!cell.is_refreshing());
        assert_eq!((cell.stats().panicked, cell.stats().abandoned), (1, 0));
        assert_eq!(cell.last_error().unwrap().to_string(), "the build panicked: no route");
    }
}

#[test]
fn g5_a_panic_of_the_first_build_in_its_job_is_an_error_for_its_caller() {
    let (cell, _clock) = shared(cell());
    let (ended, end) = mpsc::channel();
    let spawner = |job: Job| {
        thread::spawn(move || {
            // It goes on in the job, after the lease has come back.
            panics_with("no route", job);
            ended.send(()).unwrap();
        })
    };
    let request = cell.request_owned().spawn_with(spawner);
    let error = request.clone().try_get(|| -> Result<u32, Down> { panic_with("no route") }).unwrap_err();
    assert!(matches!(error, RefreshError::Abandoned));
    end.recv().unwrap();
    let message = panic_message(|| request.get(|| panic_with("no route")));
    assert!(message.starts_with("get: the build was dropped or panicked"), "{message}");
    end.recv().unwrap();
    assert_eq!((cell.stats().panicked, cell.stats().abandoned, cell.is_refreshing()), (2, 0, false));
    assert_eq!(cell.last_error().unwrap().to_string(), "the build panicked: no route");
    assert_eq!(*cell.request_owned().spawn_with(on_the_spot).get(|| 1), 1);
}

#[test]
fn g5_a_panic_in_a_job_leaves_the_value_and_frees_the_lease() {
    let (cell, _clock) = shared(stale_cell_with(STRICT, 1));
    let panicking = job(&cell, 1, || panic_with("no route"));
    assert!(thread::spawn(panicking).join().is_err());
    assert_eq!(cell.stats().panicked, 1);
    // Without a pause in the policy the next caller is elected.
    job(&cell, 1, || 2)();
    assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 2);
}

#[test]
fn a_panic_in_a_job_begins_the_retry_pause() {
    const PAUSE: Duration = Duration::from_secs(1);
    let (cell, clock) = shared(stale_cell_with(Policy::ttl(TTL).retry_backoff(PAUSE, 2 * PAUSE), 1));
    for pause in [PAUSE, 2 * PAUSE, 2 * PAUSE] {
        let failing = job(&cell, 1, || panic_with("no route"));
        panics_with("no route", failing);
        clock.advance(pause - TICK);
        assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 1);
        clock.advance(TICK);
    }
    job(&cell, 1, || 2)();
    assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 2);
}

#[test]
fn a_job_that_is_kept_for_ever_is_superseded() {
    const LIMIT: Duration = Duration::from_secs(3);
    let (cell, clock) = shared(stale_cell_with(Policy::ttl(TTL).lease_timeout(LIMIT), 1));
    let kept = job(&cell, 1, || 2);
    clock.advance(LIMIT);
    assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 1);
    clock.advance(TICK);
    let next = job(&cell, 1, || 3);
    assert_eq!(cell.stats().superseded, 1);
    next();
    // Long afterwards: fenced off.
    kept();
    assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 3);
    assert_eq!((cell.generation(), cell.stats().builds), (2, 2));
}

/// Its caller waits on, and takes the value of the build in its place.
#[test]
fn the_caller_of_a_first_build_that_is_kept_for_ever_gets_the_value_of_its_successor() {
    const LIMIT: Duration = Duration::from_secs(3);
    let (cell, clock) = shared(cell_with(Policy::ttl(TTL).lease_timeout(LIMIT)));
    let kept =
        caller(&cell, |cell, jobs| *cell.request_owned().spawn_with(move |job| jobs.send(job)).get(unbuilt));
    clock.advance(LIMIT + TICK);
    eventually("it looks again and waits", || cell.stats().waits == 2);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    assert_eq!(kept.thread.join().unwrap(), 2);
    drop(kept.job);
}

/// It ends late, but while the build in its place has not ended yet either.
#[test]
fn a_late_job_does_not_release_the_lease_of_the_next() {
    let (cell, clock) = shared(stale_cell_with(Policy::ttl(TTL).lease_timeout(TTL), 1));
    let late = job(&cell, 1, || 2);
    clock.advance(TTL + TICK);
    let next = job(&cell, 1, || 3);
    late();
    assert!(cell.is_refreshing());
    assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 1);
    next();
    assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 3);
    assert_eq!(cell.generation(), 2);
}

#[test]
fn g4_the_fence_holds_for_jobs() {
    // `invalidate`: published as stale, and the next caller is elected.
    let (cell, _clock) = shared(stale_cell(1));
    let first = job(&cell, 1, || 2);
    cell.invalidate();
    first();
    assert_eq!((cell.freshness(), cell.get().as_deref()), (Freshness::Stale, Some(&2)));
    // `set`: what was set stays.
    let second = job(&cell, 2, || 3);
    cell.set(4);
    second();
    assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 4);
    // `clear`: nothing is published.
    cell.invalidate();
    let third = job(&cell, 4, || 5);
    cell.clear();
    third();
    assert!(cell.get().is_none());
    assert_eq!((cell.stats().fenced, cell.generation()), (3, 3));
}

/// Whatever happens meanwhile, a caller that has started a build accepts its value, and does not wait for another.
#[test]
fn the_value_of_a_job_meets_the_conditions_of_its_caller() {
    type Call = fn(Request<'static, u32, ManualClock>) -> Request<'static, u32, ManualClock>;
    type Meanwhile = fn(&Manual, &ManualClock);
    let calls: [Call; 7] = [
        |request| request,
        |request| request.max_stale(Duration::ZERO),
        |request| request.max_age(Duration::ZERO),
        |request| request.newer_than(1),
        |request| request.newer_than(u64::MAX),
        |request| request.no_cache(),
        |request| request.no_cache().newer_than(u64::MAX).max_age(Duration::ZERO).max_stale(Duration::ZERO),
    ];
    let meanwhile: [Meanwhile; 4] = [
        |_, _| (),
        |cell, clock| {
            cell.invalidate();
            clock.advance(TICK);
        },
        |cell, _| drop(cell.clear()),
        |cell, _| assert!(cell.revoke()),
    ];
    for ttl in [TTL, Duration::ZERO] {
        for (number, call) in calls.into_iter().enumerate() {
            for (event, meanwhile) in meanwhile.into_iter().enumerate() {
                let policy = Policy::ttl(ttl).stale_while_refresh(Duration::ZERO);
                let (cell, clock) = shared(cell_with(policy));
                cell.set(1);
                clock.advance(TTL + TICK);
                let caller = caller(&cell, move |cell, jobs| {
                    *call(cell.request_owned()).spawn_with(move |job| jobs.send(job)).get(|| 2)
                });
                meanwhile(&cell, &clock);
                (caller.job)();
                clock.advance(TICK);
                assert_eq!(caller.thread.join().unwrap(), 2, "call {number}, event {event}, ttl {ttl:?}");
                assert_eq!(cell.stats().builds, 1);
            }
        }
    }
}

/// Of a value that was set meanwhile it takes notice only if that meets the conditions.
#[test]
fn a_value_that_is_set_while_the_job_waits_is_taken_if_it_meets_the_conditions() {
    for (newer_than, expected) in [(0, 5), (1, 2)] {
        let (cell, _clock) = shared(cell());
        let caller = caller(&cell, move |cell, jobs| {
            *cell.request_owned().newer_than(newer_than).spawn_with(move |job| jobs.send(job)).get(|| 2)
        });
        cell.set(5);
        (caller.job)();
        assert_eq!(caller.thread.join().unwrap(), expected);
        assert_eq!(cell.get().as_deref(), Some(&5));
    }
}

/// The caller has waited for another caller's build first, and is elected after it.
#[test]
fn a_caller_that_is_elected_after_a_wait_hands_its_build_over() {
    let (cell, _clock) = shared(cell());
    let running = cell.lookup().elected();
    let waiter = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || *cell.request_owned().no_cache().spawn_with(thread::spawn).get(|| 2))
    };
    eventually("it waits", || cell.stats().waits == 1);
    running.publish(1);
    assert_eq!(waiter.join().unwrap(), 2);
    assert_eq!(cell.stats().builds, 2);
}

#[test]
fn a_conditional_build_is_given_the_previous_value_in_its_job() {
    let (cell, clock) = shared(cell());
    let request = || cell.request_owned().spawn_with(thread::spawn);
    let nothing_to_keep = request().try_get_with(|previous| {
        assert!(previous.is_none());
        Ok::<_, Down>(Refreshed::NotModified)
    });
    assert!(matches!(nothing_to_keep, Err(RefreshError::Build(_))));
    clock.advance(TTL);
    let first = request().try_get_with(|_| Ok::<_, Down>(Refreshed::NewFor(1, 2 * TTL))).unwrap();
    assert_eq!(cell.snapshot().unwrap().fresh_for, 2 * TTL);
    cell.invalidate();
    let kept =
        cell.request_owned().max_stale(Duration::ZERO).spawn_with(thread::spawn).try_get_with(|previous| {
            assert_eq!(previous.as_deref(), Some(&1));
            Ok::<_, Down>(Refreshed::NotModified)
        });
    assert!(Arc::ptr_eq(&kept.unwrap(), &first));
    assert_eq!((cell.generation(), cell.snapshot().unwrap().fresh_for), (2, TTL));
}

#[test]
fn a_job_keeps_its_cell_alive_and_the_build_until_it_is_run() {
    let (cell, _clock) = shared(stale_cell(1));
    let weak = Arc::downgrade(&cell);
    let kept = Arc::new(());
    let job = {
        let kept = Arc::clone(&kept);
        job(&cell, 1, move || {
            drop(kept);
            2
        })
    };
    assert_eq!(Arc::strong_count(&kept), 2);
    drop(cell);
    assert!(weak.upgrade().is_some());
    job();
    assert!(weak.upgrade().is_none());
    assert_eq!(Arc::strong_count(&kept), 1);
}

#[test]
fn a_request_keeps_its_cell_alive() {
    let (cell, _clock) = shared(cell());
    let weak = Arc::downgrade(&cell);
    let request = cell.request_owned();
    drop(cell);
    assert_eq!(*request.spawn_with(on_the_spot).get(|| 1), 1);
    assert!(weak.upgrade().is_none());
}

#[test]
fn g10_a_call_from_inside_a_job_without_a_value_panics_or_gets_an_error() {
    let (cell, _clock) = shared(cell());
    let inner = Arc::clone(&cell);
    let message = panic_message(|| {
        cell.request_owned()
            .spawn_with(on_the_spot)
            .get(move || *inner.request_owned().spawn_with(no_spawner).get(unbuilt))
    });
    assert!(message.starts_with("get was called from inside the build of the same cell"), "{message}");
    let inner = Arc::clone(&cell);
    let value = cell.request_owned().spawn_with(thread::spawn).try_get(move || {
        let nested = inner.request_owned().spawn_with(no_spawner).try_get(not_tried);
        assert!(matches!(nested, Err(RefreshError::Reentrant)));
        Ok::<_, Down>(1)
    });
    assert_eq!(*value.unwrap(), 1);
    // The stale value, if there is one.
    cell.invalidate();
    let inner = Arc::clone(&cell);
    job(&cell, 1, move || *inner.request_owned().spawn_with(no_spawner).get(unbuilt) + 1)();
    assert_eq!(*cell.get_or_refresh(unbuilt), 2);
}

/// The caller is not inside the build while it only hands it over.
#[test]
fn g10_a_spawner_may_use_the_cell() {
    let (cell, _clock) = shared(stale_cell(1));
    let spawner = |job: Job| {
        assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 1);
        assert!(matches!(cell.lookup(), Lookup::Stale(_)));
        job();
        assert_eq!(*cell.request_owned().spawn_with(no_spawner).get(unbuilt), 2);
    };
    assert_eq!(*cell.request_owned().spawn_with(spawner).get(|| 2), 2);
}

/// All callers share one lease, whichever way they build.
#[test]
fn other_callers_are_served_while_a_job_waits_to_be_run() {
    let (cell, _clock) = shared(stale_cell(1));
    let job = job(&cell, 1, || 2);
    assert_eq!(*cell.get_or_refresh(unbuilt), 1);
    assert_eq!(*cell.load_or_refresh(unbuilt), 1);
    assert_eq!(*cell.try_get_or_refresh(not_tried).unwrap(), 1);
    let fresh = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || *cell.request().max_stale(Duration::ZERO).get(unbuilt))
    };
    eventually("it waits", || cell.stats().waits == 1);
    job();
    assert_eq!(fresh.join().unwrap(), 2);
}

/// A pool that refuses work drops it: after it was shut down, or at its limit.
#[test]
fn a_runtime_that_is_shut_down_drops_the_job() {
    let (cell, _clock) = shared(stale_cell(1));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let handle = runtime.handle().clone();
    drop(runtime);
    let ran = Arc::new(AtomicBool::new(false));
    let build = {
        let ran = Arc::clone(&ran);
        move || {
            ran.store(true, Ordering::SeqCst);
            2
        }
    };
    let value = cell.request_owned().spawn_with(|job| handle.spawn_blocking(job)).get(build);
    assert_eq!(*value, 1);
    assert!(!ran.load(Ordering::SeqCst));
    assert!(!cell.is_refreshing());
    // A first build too.
    cell.clear();
    let first = cell.request_owned().spawn_with(|job| handle.spawn_blocking(job)).try_get(not_tried);
    assert!(matches!(first, Err(RefreshError::Abandoned)));
    job_of_a_first_build_is_free(&cell);
}

fn job_of_a_first_build_is_free(cell: &Manual) {
    assert!(!cell.is_refreshing());
    assert_eq!(*cell.request_owned().spawn_with(on_the_spot).get(|| 2), 2);
}
