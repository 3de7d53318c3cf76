//! Builds that are handed to somebody else: the caller that is elected gets the old value at once.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, Weak};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, DogpileCell, Freshness, Lookup, ManualClock, Policy, RefreshError, SharedCell, Tick};

use crate::support::{LookupExt, TICK, TTL, cell, cell_with, eventually, gate, panic_message, stale_cell};

type Job = Box<dyn FnOnce() + Send>;

/// A spawner for a caller that has nothing to hand over.
fn nobody(_: Job) {
    unreachable!("there is nothing to hand over")
}

fn unbuilt() -> u32 {
    unreachable!("somebody else builds, or nobody has to")
}

/// The job that a caller hands over, who gets the old value meanwhile.
#[track_caller]
fn job<C: Clock + 'static>(
    cell: &Arc<DogpileCell<u32, C>>,
    old: u32,
    build: impl FnOnce() -> u32 + Send + 'static,
) -> Job {
    let mut job = None;
    let value = cell.get_or_refresh_in_background(|spawned| job = Some(spawned), build);
    assert_eq!(*value, old);
    job.expect("the caller should have been elected")
}

/// Runs `f`, which is expected to panic with the payload `payload`; the hook is not troubled.
#[track_caller]
fn panics_with<R>(payload: &str, f: impl FnOnce() -> R) {
    let panic = catch_unwind(AssertUnwindSafe(f)).err().expect("it should have panicked");
    assert_eq!(*panic.downcast::<&str>().expect("the payload of the test"), payload);
}

fn panic_with(payload: &'static str) -> ! {
    resume_unwind(Box::new(payload))
}

/// The whole course of things, for each kind of cell. `age` lets the value go out of date.
fn course(cell: impl SharedCell<Value = u32>, is_refreshing: impl Fn() -> bool, age: impl Fn()) {
    let caller = thread::current().id();
    let first = cell.get_or_refresh_in_background(nobody, move || {
        assert_eq!(thread::current().id(), caller);
        1
    });
    assert_eq!(*first, 1);
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
    age();
    let mut jobs: Vec<Job> = Vec::new();
    assert_eq!(*cell.get_or_refresh_in_background(|job| jobs.push(job), || 2), 1);
    // One job, however many ask.
    for _ in 0..3 {
        assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
    }
    assert!(is_refreshing());
    let job = jobs.pop().unwrap();
    thread::spawn(job).join().unwrap();
    assert!(!is_refreshing());
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 2);
}

#[test]
fn a_cell_in_an_arc() {
    let (cell, clock) = cell();
    let cell = Arc::new(cell);
    course(&cell, || cell.is_refreshing(), || clock.advance(TTL + TICK));
    assert_eq!((cell.stats().builds, cell.stats().published), (2, 2));
}

#[test]
fn a_cell_in_a_static() {
    static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires());
    course(&CELL, || CELL.is_refreshing(), || CELL.invalidate());
    assert_eq!((CELL.stats().builds, CELL.stats().published), (2, 2));
}

/// The build ends only after the caller has been served.
fn served_before_it_is_built(spawn: impl FnOnce(Job)) {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let (stop, keeper) = gate();
    let caller = thread::current().id();
    let value = cell.get_or_refresh_in_background(spawn, move || {
        assert_ne!(thread::current().id(), caller);
        stop.pass();
        2
    });
    assert_eq!(*value, 1);
    keeper.wait_for_arrival();
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
    assert_eq!(cell.freshness(), Freshness::Stale);
    keeper.open();
    // The job runs to its end also when nobody waits for it.
    eventually("the job ends", || !cell.is_refreshing());
    assert_eq!(*cell.get_or_refresh(unbuilt), 2);
    assert_eq!((cell.stats().builds, cell.stats().waits), (1, 0));
}

#[test]
fn g2_a_thread_of_its_own() {
    served_before_it_is_built(|job| drop(thread::spawn(job)));
}

#[test]
fn g2_a_rayon_pool() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    served_before_it_is_built(|job| pool.spawn(job));
}

#[test]
fn g2_a_blocking_task_of_tokio() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    served_before_it_is_built(|job| drop(runtime.handle().spawn_blocking(job)));
}

#[test]
fn g1_of_many_callers_one_hands_a_job_over() {
    const CALLERS: usize = 8;
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let start = Barrier::new(CALLERS);
    let jobs: Mutex<Vec<Job>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                start.wait();
                for _ in 0..50 {
                    let spawn = |job| jobs.lock().unwrap().push(job);
                    assert_eq!(*cell.get_or_refresh_in_background(spawn, || 2), 1);
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
fn callers_without_a_value_wait_for_the_first_build() {
    let (cell, _clock) = cell();
    let cell = Arc::new(cell);
    let lease = cell.lookup().elected();
    let waiter = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || *cell.get_or_refresh_in_background(nobody, unbuilt))
    };
    eventually("it waits", || cell.stats().waits == 1);
    lease.publish(1);
    assert_eq!(waiter.join().unwrap(), 1);
}

#[test]
fn an_expired_value_is_rebuilt_in_the_caller() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(TTL));
    let cell = Arc::new(cell);
    cell.set(1);
    clock.advance(2 * TTL);
    drop(job(&cell, 1, || 2));
    clock.advance(TICK);
    assert_eq!(*cell.get_or_refresh_in_background(nobody, || 3), 3);
}

/// A value that expires while the job is about is not served any more: those who ask wait for the job.
#[test]
fn g6_a_value_that_expires_meanwhile_makes_callers_wait_for_the_job() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(TTL));
    let cell = Arc::new(cell);
    cell.set(1);
    clock.advance(2 * TTL);
    let job = job(&cell, 1, || 2);
    clock.advance(TICK);
    let waiter = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || *cell.get_or_refresh_in_background(nobody, unbuilt))
    };
    eventually("it waits", || cell.stats().waits == 1);
    job();
    assert_eq!(waiter.join().unwrap(), 2);
}

#[test]
fn g5_a_spawner_that_drops_the_job_gives_the_lease_back() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    for attempt in 1..=3 {
        assert_eq!(*cell.get_or_refresh_in_background(drop, unbuilt), 1);
        assert!(!cell.is_refreshing());
        assert_eq!((cell.stats().builds, cell.stats().abandoned), (attempt, attempt));
    }
    assert_eq!(*cell.get_or_refresh_in_background(|job| job(), || 2), 2);
}

#[test]
fn g5_a_job_that_is_dropped_later_gives_the_lease_back() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let job = job(&cell, 1, unbuilt);
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
    thread::spawn(move || drop(job)).join().unwrap();
    assert_eq!(*cell.get_or_refresh_in_background(|job| job(), || 2), 2);
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (0, 1));
}

#[test]
fn g5_a_spawner_that_panics_gives_the_lease_back() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    panics_with("no thread", || cell.get_or_refresh_in_background(|_| panic_with("no thread"), unbuilt));
    assert!(!cell.is_refreshing());
    assert_eq!(cell.get().as_deref(), Some(&1));
    assert_eq!(*cell.get_or_refresh_in_background(|job| job(), || 2), 2);
}

/// No build has failed: the next caller does not wait for the policy's pause.
#[test]
fn a_spawner_that_panics_begins_no_retry_pause() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    let cell = Arc::new(cell);
    cell.set(1);
    clock.advance(TTL + TICK);
    panics_with("no thread", || cell.get_or_refresh_in_background(|_| panic_with("no thread"), unbuilt));
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (0, 1));
    job(&cell, 1, || 2)();
    assert_eq!(cell.get().as_deref(), Some(&2));
}

/// A job that has been queued before the spawner panics is as good as any.
#[test]
fn a_spawner_that_panics_may_have_kept_the_job() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let mut queue: Vec<Job> = Vec::new();
    panics_with("after all", || {
        cell.get_or_refresh_in_background(
            |job| {
                queue.push(job);
                panic_with("after all")
            },
            || 2,
        )
    });
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
    queue.pop().unwrap()();
    assert_eq!(*cell.get_or_refresh(unbuilt), 2);
}

#[test]
fn g3_a_job_that_is_run_on_the_spot_serves_what_it_has_built() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let value = cell.get_or_refresh_in_background(|job| job(), || 2);
    assert_eq!(*value, 2);
    assert!(Arc::ptr_eq(&value, &cell.get().unwrap()));
    assert!(!cell.is_refreshing());
}

#[test]
fn g3_a_value_set_by_the_spawner_is_served() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let value = cell.get_or_refresh_in_background(|job| drop((job, cell.set(3))), unbuilt);
    assert_eq!(*value, 3);
}

/// What the caller was elected with is still there for it if the cell has been emptied by the time it returns.
#[test]
fn a_spawner_that_clears_the_cell_is_served_the_old_value() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    assert_eq!(*cell.get_or_refresh_in_background(|job| drop((job, cell.clear())), unbuilt), 1);
    assert!(cell.get().is_none());
}

#[test]
fn a_panic_on_the_spot_reaches_the_caller() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    panics_with("no route", || cell.get_or_refresh_in_background(|job| job(), || panic_with("no route")));
    assert_eq!(cell.get().as_deref(), Some(&1));
    assert!(!cell.is_refreshing());
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (1, 0));
}

#[test]
fn a_panic_of_the_first_build_reaches_the_caller() {
    let (cell, _clock) = cell();
    let cell = Arc::new(cell);
    panics_with("no route", || cell.get_or_refresh_in_background(nobody, || panic_with("no route")));
    assert_eq!(*cell.get_or_refresh_in_background(nobody, || 1), 1);
}

#[test]
fn g5_a_panic_in_the_background_leaves_the_value_and_frees_the_lease() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let job_1 = job(&cell, 1, || panic_with("no route"));
    assert!(thread::spawn(job_1).join().is_err());
    assert_eq!(cell.stats().panicked, 1);
    // Without a pause in the policy the next caller is elected.
    job(&cell, 1, || 2)();
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 2);
}

#[test]
fn a_panic_in_the_background_begins_the_retry_pause() {
    const PAUSE: Duration = Duration::from_secs(1);
    let (cell, clock) = cell_with(Policy::ttl(TTL).retry_backoff(PAUSE, 2 * PAUSE));
    let cell = Arc::new(cell);
    cell.set(1);
    clock.advance(TTL + TICK);
    for pause in [PAUSE, 2 * PAUSE, 2 * PAUSE] {
        let failing = job(&cell, 1, || panic_with("no route"));
        panics_with("no route", failing);
        clock.advance(pause - TICK);
        assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
        clock.advance(TICK);
    }
    job(&cell, 1, || 2)();
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 2);
}

#[test]
fn a_job_that_is_kept_for_ever_is_superseded() {
    const LIMIT: Duration = Duration::from_secs(3);
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(LIMIT));
    let cell = Arc::new(cell);
    cell.set(1);
    clock.advance(TTL + TICK);
    let kept = job(&cell, 1, || 2);
    clock.advance(LIMIT);
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
    clock.advance(TICK);
    let next = job(&cell, 1, || 3);
    assert_eq!(cell.stats().superseded, 1);
    next();
    // Long afterwards: fenced off.
    kept();
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 3);
    assert_eq!((cell.generation(), cell.stats().builds), (2, 2));
}

/// Late, but while the one in its place has not ended yet either.
#[test]
fn a_late_job_does_not_release_the_lease_of_the_next() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
    let cell = Arc::new(cell);
    cell.set(1);
    clock.advance(TTL + TICK);
    let late = job(&cell, 1, || 2);
    clock.advance(TTL + TICK);
    let next = job(&cell, 1, || 3);
    late();
    assert!(cell.is_refreshing());
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
    next();
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 3);
    assert_eq!(cell.generation(), 2);
}

#[test]
fn g4_the_fence_holds_for_jobs() {
    // `invalidate`: published as stale, and the next caller is elected.
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let first = job(&cell, 1, || 2);
    cell.invalidate();
    first();
    assert_eq!((cell.freshness(), cell.get().as_deref()), (Freshness::Stale, Some(&2)));
    // `set`: what was set stays.
    let second = job(&cell, 2, || 3);
    cell.set(4);
    second();
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 4);
    // `clear`: nothing is published.
    cell.invalidate();
    let third = job(&cell, 4, || 5);
    cell.clear();
    third();
    assert!(cell.get().is_none());
    assert_eq!((cell.stats().fenced, cell.generation()), (3, 3));
}

#[test]
fn a_job_keeps_its_cell_alive_and_the_build_until_it_is_run() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let weak = Arc::downgrade(&cell);
    let kept = Arc::new(());
    let job = {
        let kept = Arc::clone(&kept);
        job(&cell, 1, move || {
            drop(kept);
            2
        })
    };
    assert_eq!((Arc::strong_count(&cell), Arc::strong_count(&kept)), (2, 2));
    drop(cell);
    assert!(weak.upgrade().is_some());
    job();
    assert!(weak.upgrade().is_none());
    assert_eq!(Arc::strong_count(&kept), 1);
}

#[test]
fn g10_inside_its_own_build_a_caller_without_a_value_is_told() {
    let (cell, _clock) = cell();
    let cell = Arc::new(cell);
    let inner = Arc::clone(&cell);
    let message = panic_message(|| {
        cell.get_or_refresh_in_background(nobody, move || {
            *inner.get_or_refresh_in_background(nobody, unbuilt)
        })
    });
    assert!(
        message.starts_with("get_or_refresh_in_background was called from inside the build"),
        "{message}"
    );
    // The stale value, if there is one.
    cell.set(1);
    cell.invalidate();
    let inner = Arc::clone(&cell);
    job(&cell, 1, move || *inner.get_or_refresh_in_background(nobody, unbuilt) + 1)();
    assert_eq!(*cell.get_or_refresh(unbuilt), 2);
}

/// A job is not inside the build while it is only handed over.
#[test]
fn g10_a_spawner_may_use_the_cell() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let spawn = |job: Job| {
        assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
        assert!(matches!(cell.lookup(), Lookup::Stale(_)));
        job();
        assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 2);
    };
    assert_eq!(*cell.get_or_refresh_in_background(spawn, || 2), 2);
}

/// All callers share one lease, whichever way they build.
#[test]
fn other_callers_are_served_while_a_job_is_about() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
    let job = job(&cell, 1, || 2);
    assert_eq!(*cell.get_or_refresh(unbuilt), 1);
    assert_eq!(*cell.load_or_refresh(unbuilt), 1);
    let served: Result<_, RefreshError<()>> = cell.try_get_or_refresh(|| unreachable!());
    assert_eq!(*served.unwrap(), 1);
    let fresh = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || *cell.get_fresh_or_refresh(unbuilt))
    };
    eventually("it waits", || cell.stats().waits == 1);
    job();
    assert_eq!(fresh.join().unwrap(), 2);
}

/// Shows on each look at the clock how many own the cell.
#[derive(Default)]
struct Census {
    time: ManualClock,
    cell: Mutex<Weak<DogpileCell<u32, Arc<Census>>>>,
    looks: AtomicU32,
    most: AtomicUsize,
}

impl Clock for Census {
    fn now(&self) -> Tick {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.most.fetch_max(self.cell.lock().unwrap().strong_count(), Ordering::SeqCst);
        self.time.now()
    }
}

impl Census {
    /// The looks since the last call, and the most owners at one of them.
    fn taken(&self) -> (u32, usize) {
        (self.looks.swap(0, Ordering::SeqCst), self.most.swap(0, Ordering::SeqCst))
    }
}

#[test]
fn a_fresh_read_leaves_the_reference_count_of_the_cell_alone() {
    let clock = Arc::new(Census::default());
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), Arc::clone(&clock)));
    *clock.cell.lock().unwrap() = Arc::downgrade(&cell);
    cell.set(1);
    clock.taken();
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
    assert_eq!(clock.taken(), (1, 1));
    // A stale one needs an owner for the job. The first job is dropped.
    clock.time.advance(TTL + TICK);
    assert_eq!(*cell.get_or_refresh_in_background(drop, unbuilt), 1);
    assert_eq!(clock.taken().1, 2);
    // And one during a build asks nothing at all.
    let job = job(&cell, 1, || 2);
    clock.taken();
    assert_eq!(*cell.get_or_refresh_in_background(nobody, unbuilt), 1);
    assert_eq!(clock.taken(), (0, 0));
    job();
}

/// A pool that refuses work drops it: with the executor, or at its limit.
#[test]
fn a_runtime_that_is_shut_down_drops_the_job() {
    let (cell, _clock) = stale_cell(1);
    let cell = Arc::new(cell);
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
    let value = cell.get_or_refresh_in_background(|job| drop(handle.spawn_blocking(job)), build);
    assert_eq!(*value, 1);
    assert!(!ran.load(Ordering::SeqCst));
    assert!(!cell.is_refreshing());
    job(&cell, 1, || 2)();
    assert_eq!(cell.get().as_deref(), Some(&2));
}
