//! `Request::spawn_with` in async code: builds that are futures and are handed to a spawner, the first one too.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use dogpile::{
    Clock, DogpileCell, Freshness, Job, ManualClock, Policy, RefreshError, Refreshed, SyncReaderCell, Task,
    Tick,
};

use crate::support::{
    Cell, Door, Hand, LookupExt, PATIENCE, TICK, TTL, cell, cell_with, eventually, guarded, joined, never,
    panic_as_planned, panic_message, panics_as_planned, plain, stale_cell, unbuilt, until, untried,
};

/// A spawner for a caller that has nothing to spawn.
fn unspawned(_: Task) {
    unreachable!("there is nothing to spawn")
}

/// A spawner that runs the task on the spot.
fn run(task: Task) {
    Hand::new(task).ready();
}

/// A spawner that keeps its tasks until the test takes them.
#[derive(Clone, Default)]
struct Queue(Arc<Mutex<VecDeque<Task>>>);

impl Queue {
    fn spawner(&self) -> impl FnOnce(Task) + Send + use<> {
        let queue = Arc::clone(&self.0);
        move |task| queue.lock().unwrap().push_back(task)
    }

    #[track_caller]
    fn take(&self) -> Hand<'static, ()> {
        let task = self.0.lock().unwrap().pop_front().expect("the caller should have been elected");
        self.none();
        Hand::new(task)
    }

    #[track_caller]
    fn none(&self) {
        assert!(self.0.lock().unwrap().is_empty(), "no caller should have been elected");
    }
}

/// What a caller is served at once, with nothing to spawn.
#[track_caller]
fn served(cell: &Cell<u32>) -> u32 {
    *Hand::new(cell.request_owned().spawn_with(unspawned).get_async(unbuilt)).ready()
}

/// The task that a caller spawns, which gets the old value at once.
#[track_caller]
fn stale_task<F>(cell: &Cell<u32>, old: u32, build: impl FnOnce() -> F + Send + 'static) -> Hand<'static, ()>
where
    F: Future<Output = u32> + Send + 'static,
{
    let queue = Queue::default();
    let request = cell.request_owned().spawn_with(queue.spawner());
    assert_eq!(*Hand::new(request.get_async(build)).ready(), old);
    queue.take()
}

type Outcome = Result<Arc<u32>, RefreshError>;

/// A caller that waits for the first build, and the task that it has spawned.
#[track_caller]
fn first<F>(
    cell: &Cell<u32>,
    build: impl FnOnce() -> F + Send + 'static,
) -> (Hand<'static, Outcome>, Hand<'static, ()>)
where
    F: Future<Output = Result<u32, &'static str>> + Send + 'static,
{
    let queue = Queue::default();
    let mut caller = Hand::new(cell.request_owned().spawn_with(queue.spawner()).try_get_async(build));
    caller.pending();
    (caller, queue.take())
}

/// A build that waits at `door`.
fn behind(door: &Door, value: u32) -> impl FnOnce() -> BoxedBuild + Send + use<> {
    let door = door.clone();
    move || {
        Box::pin(async move {
            door.pass().await;
            Ok(value)
        })
    }
}

type BoxedBuild = std::pin::Pin<Box<dyn Future<Output = Result<u32, &'static str>> + Send>>;

// The first build.

#[test]
fn the_first_build_is_spawned_and_all_callers_wait_for_it() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let (mut caller, mut task) = first(&cell, behind(&door, 1));
    // Spawned, not begun; others wait with its caller.
    assert!(cell.is_refreshing());
    let mut other = Hand::new(cell.request_owned().spawn_with(unspawned).get_async(unbuilt));
    let mut own = Hand::new(cell.get_or_refresh_async(unbuilt));
    other.pending();
    own.pending();
    task.pending();
    door.open();
    task.ready();
    assert_eq!((caller.wakes() > 0, other.wakes(), own.wakes()), (true, 1, 1));
    let value = caller.ready().unwrap();
    assert!(Arc::ptr_eq(&other.ready(), &value) && Arc::ptr_eq(&own.ready(), &value));
    assert_eq!((*value, cell.stats().builds), (1, 1));
}

#[test]
fn a_first_build_that_has_ended_before_its_caller_waits_is_served_at_once() {
    let (cell, _clock) = cell();
    let mut caller = Hand::new(cell.request_owned().spawn_with(run).get_async(|| async { 1 }));
    assert_eq!((*caller.ready(), caller.wakes(), cell.stats().waits), (1, 0, 0));
    assert!(!caller.is_listed());
}

#[test]
fn nothing_happens_before_the_first_poll() {
    let (cell, _clock) = stale_cell(1);
    drop(cell.request_owned().spawn_with(unspawned).get_async(unbuilt));
    assert_eq!((cell.stats().builds, cell.is_refreshing()), (0, false));
}

#[test]
fn a_static_cell() {
    static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires());
    let call = |build: u32| {
        let request = CELL.request().spawn_with(run);
        *Hand::new(request.get_async(move || async move { build })).ready()
    };
    assert_eq!(call(1), 1);
    assert_eq!(call(2), 1);
    CELL.invalidate();
    assert_eq!(call(3), 3);
}

#[test]
fn g7_the_error_of_the_first_build_is_shared() {
    let (cell, clock) = cell::<u32>();
    let (mut caller, mut task) = first(&cell, || async { Err("down") });
    let mut other = Hand::new(cell.try_get_or_refresh_async(untried));
    let mut shows_none = Hand::new(cell.get_or_refresh_async(|| async { 1 }));
    other.pending();
    shows_none.pending();
    task.ready();
    let error = caller.ready().unwrap_err();
    let error = error.build_error().expect("the error of the build");
    assert_eq!(error.to_string(), "down");
    assert!(other.ready().unwrap_err().build_error().unwrap().ptr_eq(error));
    assert!(cell.last_error().unwrap().ptr_eq(error));
    // In the retry pause a caller that spawns its build gets it too.
    let later = cell.request_owned().spawn_with(unspawned).try_get_async(untried);
    assert!(Hand::new(later).ready().unwrap_err().build_error().unwrap().ptr_eq(error));
    assert_eq!(*shows_none.ready(), 1);
    clock.advance(TTL + TICK);
    assert_eq!(cell.stats().builds, 2);
}

/// A `get` has no error to return; its build is spent, so another caller has to build.
#[test]
fn a_get_whose_first_build_fails_panics_with_its_error() {
    let (cell, _clock) = cell::<u32>();
    let queue = Queue::default();
    let mut caller = Hand::new(cell.request_owned().spawn_with(queue.spawner()).get_async(unbuilt));
    caller.pending();
    // It waits for a build of another kind, which fails, and goes on with its own.
    let task = queue.take();
    drop(task);
    let message = panic_message(|| caller.poll());
    assert!(message.starts_with("get_async, at ") && message.contains(file!()), "{message}");
    assert!(message.contains("was dropped or panicked"), "{message}");
}

// Callers that give up (G13).

#[test]
fn g13_the_first_build_outlives_a_caller_that_is_cancelled() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let (caller, mut task) = first(&cell, behind(&door, 1));
    let mut other = Hand::new(cell.get_or_refresh_async(unbuilt));
    other.pending();
    task.pending();
    let wakes = caller.wakes_handle();
    drop(caller);
    assert_eq!(Arc::strong_count(&wakes), 1);
    assert!(cell.is_refreshing());
    door.open();
    task.ready();
    assert_eq!((wakes.count(), other.wakes(), *other.ready()), (0, 1, 1));
    assert_eq!((cell.stats().builds, cell.stats().abandoned), (1, 0));
}

/// Cancelled at each point of the build: the build goes on, nothing of the caller is left.
#[test]
fn g13_at_every_await_point_a_cancelled_caller_leaves_lease_and_queue_clean() {
    const STEPS: usize = 5;
    for polls in 0..=STEPS {
        for ends in [true, false] {
            let (cell, _clock) = cell();
            let (caller, mut task) = first(&cell, || async {
                for _ in 0..STEPS {
                    futures_lite::future::yield_now().await;
                }
                Ok(1)
            });
            let mut other = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
            other.pending();
            for _ in 0..polls {
                task.pending();
            }
            let wakes = caller.wakes_handle();
            drop(caller);
            assert_eq!((Arc::strong_count(&wakes), cell.is_refreshing()), (1, true));
            if ends {
                for _ in polls..STEPS {
                    task.pending();
                }
                task.ready();
            }
            // If the task has not ended, it is cancelled as well.
            drop(task);
            assert!(!cell.is_refreshing());
            assert_eq!(*other.ready(), if ends { 1 } else { 2 });
            assert_eq!((wakes.count(), cell.stats().abandoned), (0, u64::from(!ends)));
            drop(other);
            assert_eq!(Arc::strong_count(&cell), 1);
        }
    }
}

#[test]
fn g13_the_first_build_outlives_a_caller_whose_time_is_over() {
    let (cell, clock) = cell();
    let queue = Queue::default();
    let door = Door::default();
    let request = cell.request_owned().wait_at_most(TTL);
    let mut caller = Hand::new(request.spawn_with(queue.spawner()).try_get_async(behind(&door, 1)));
    caller.pending();
    let mut task = queue.take();
    task.pending();
    clock.advance(TTL - TICK);
    caller.pending();
    clock.advance(TICK);
    assert!(matches!(caller.ready(), Err(RefreshError::WaitTimeout)));
    assert!(!caller.is_listed() && cell.is_refreshing());
    door.open();
    task.ready();
    assert_eq!((cell.get().as_deref(), cell.stats().builds, cell.stats().wait_timeouts), (Some(&1), 1, 1));
}

#[test]
fn a_caller_that_waits_for_nothing_only_starts_the_first_build() {
    let (cell, _clock) = cell();
    let queue = Queue::default();
    let request = cell.request_owned().wait_at_most(Duration::ZERO);
    let mut caller =
        Hand::new(request.spawn_with(queue.spawner()).try_get_async(|| async { Ok::<_, &str>(1) }));
    assert!(matches!(caller.ready(), Err(RefreshError::WaitTimeout)));
    queue.take().ready();
    assert_eq!(served(&cell), 1);
}

// Spawners that misbehave.

#[test]
fn g5_a_spawner_that_drops_the_first_build_gives_the_lease_back() {
    let (cell, _clock) = cell::<u32>();
    for attempt in 1..=3 {
        let mut caller = Hand::new(cell.request_owned().spawn_with(drop).try_get_async(untried));
        assert!(matches!(caller.ready(), Err(RefreshError::Abandoned)));
        assert_eq!((cell.is_refreshing(), cell.stats().abandoned), (false, attempt));
    }
    // No pause begins.
    assert!(cell.last_error().is_none());
    assert_eq!(*Hand::new(cell.request_owned().spawn_with(run).get_async(|| async { 2 })).ready(), 2);
}

#[test]
fn g5_a_first_build_that_is_dropped_later_gives_the_lease_back_and_a_waiter_builds() {
    for begins in [false, true] {
        let (cell, _clock) = cell();
        let (mut caller, mut task) = first(&cell, never);
        let mut others = [1, 2, 3].map(|_| Hand::new(cell.get_or_refresh_async(|| async { 7 })));
        for other in &mut others {
            other.pending();
        }
        if begins {
            task.pending();
        }
        drop(task);
        assert!(caller.wakes() > 0);
        assert!(matches!(caller.ready(), Err(RefreshError::Abandoned)));
        for other in &mut others {
            assert!(other.wakes() > 0);
            assert_eq!(*other.ready(), 7);
        }
        assert_eq!((cell.stats().builds, cell.stats().abandoned), (2, 1));
    }
}

/// The value of the waiter that was elected instead is as good.
#[test]
fn a_caller_whose_build_was_dropped_takes_what_another_has_published_meanwhile() {
    let (cell, _clock) = cell();
    let (mut caller, task) = first(&cell, never);
    let mut other = Hand::new(cell.get_or_refresh_async(|| async { 7 }));
    other.pending();
    drop(task);
    assert_eq!(*other.ready(), 7);
    assert_eq!(*caller.ready().unwrap(), 7);
}

#[test]
fn g5_a_first_build_that_panics_is_abandoned_and_panics_on_in_its_task() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let (mut caller, mut task) = first(&cell, {
        let door = door.clone();
        || async move {
            door.pass().await;
            panic_as_planned()
        }
    });
    let mut other = Hand::new(cell.get_or_refresh_async(|| async { 7 }));
    other.pending();
    task.pending();
    door.open();
    panics_as_planned(|| task.poll());
    drop(task);
    assert!(caller.wakes() > 0);
    assert!(matches!(caller.ready(), Err(RefreshError::Abandoned)));
    assert_eq!(cell.last_error().unwrap().to_string(), "the build panicked");
    assert_eq!((other.wakes() > 0, *other.ready()), (true, 7));
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (1, 0));
}

#[test]
fn a_get_whose_first_build_panics_panics_at_its_own_line() {
    let (cell, _clock) = cell::<u32>();
    let queue = Queue::default();
    let line = line!() + 1;
    let caller = cell.request_owned().spawn_with(queue.spawner()).get_async(|| async { panic_as_planned() });
    let mut caller = Hand::new(caller);
    caller.pending();
    let mut task = queue.take();
    panics_as_planned(|| task.poll());
    drop(task);
    let message = panic_message(|| caller.poll());
    assert!(message.starts_with(&format!("get_async, at {}:{line}:", file!())), "{message}");
}

#[test]
fn g5_a_spawner_that_panics_gives_the_lease_back() {
    for (cell, _clock) in [stale_cell(1), cell()] {
        let request = cell.request_owned().spawn_with(|_| panic_as_planned());
        let mut caller = Hand::new(request.get_async(unbuilt));
        panics_as_planned(|| caller.poll());
        // No build has begun, so none has panicked, and no pause begins.
        assert_eq!((cell.is_refreshing(), cell.stats().panicked, cell.stats().abandoned), (false, 0, 1));
        assert!(cell.last_error().is_none());
        assert_eq!(*Hand::new(cell.request_owned().spawn_with(run).get_async(|| async { 2 })).ready(), 2);
    }
}

#[test]
fn a_spawner_that_is_shut_down_drops_the_build() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let handle = runtime.handle().clone();
    drop(runtime);
    let (cell, _clock) = stale_cell(1);
    let request = cell.request_owned().spawn_with(|task| handle.spawn(task));
    assert_eq!(*Hand::new(request.get_async(unbuilt)).ready(), 1);
    assert_eq!((cell.is_refreshing(), cell.stats().abandoned), (false, 1));
    cell.clear();
    let request = cell.request_owned().spawn_with(|task| handle.spawn(task));
    assert!(matches!(Hand::new(request.try_get_async(untried)).ready(), Err(RefreshError::Abandoned)));
    assert!(!cell.is_refreshing());
}

#[test]
fn a_runtime_that_is_shut_down_in_mid_build_drops_the_build() {
    guarded(|| {
        let (cell, _clock) = cell();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (begun, begins) = channel();
        let handle = runtime.handle().clone();
        let request = cell.request_owned().spawn_with(move |task| handle.spawn(task));
        let mut caller = Hand::new(request.try_get_async(move || {
            begun.send(()).unwrap();
            never::<Result<u32, &str>>()
        }));
        caller.pending();
        begins.recv_timeout(PATIENCE).unwrap();
        let mut other = Hand::new(cell.get_or_refresh_async(|| async { 7 }));
        other.pending();
        caller.pending();
        drop(runtime);
        assert!(caller.wakes() > 0);
        assert!(matches!(caller.ready(), Err(RefreshError::Abandoned)));
        assert_eq!((other.wakes() > 0, *other.ready()), (true, 7));
    });
}

/// `smol::spawn` returns a task that is cancelled when it is dropped. Detach it.
#[test]
fn a_spawner_whose_handle_cancels_when_it_is_dropped_drops_the_build() {
    let (cell, _clock) = cell::<u32>();
    let executor = smol::Executor::new();
    let request = cell.request_owned().spawn_with(|task| executor.spawn(task));
    let mut caller = Hand::new(request.try_get_async(never::<Result<u32, &str>>));
    let _ = caller.poll();
    while executor.try_tick() {}
    assert!(matches!(caller.ready(), Err(RefreshError::Abandoned)));
    assert!(!cell.is_refreshing());
}

// A stale value.

#[test]
fn g2_a_stale_read_spawns_a_build_and_is_ready_at_once() {
    let (cell, _clock) = stale_cell(1);
    let door = Door::default();
    let mut task = stale_task(&cell, 1, {
        let door = door.clone();
        || async move {
            door.pass().await;
            2
        }
    });
    // Spawned, not begun; one task, however many callers come.
    assert!(cell.is_refreshing());
    assert_eq!(served(&cell), 1);
    task.pending();
    assert_eq!(served(&cell), 1);
    let unspawned = |_| unreachable!("a build runs");
    assert_eq!(*cell.request_owned().spawn_with(unspawned).get(|| unreachable!("a build runs")), 1);
    door.open();
    assert_eq!(task.wakes(), 1);
    task.ready();
    assert_eq!(served(&cell), 2);
    assert_eq!((cell.stats().builds, cell.stats().waits), (1, 0));
}

#[test]
fn g5_a_spawner_that_drops_a_build_costs_no_caller_the_stale_value() {
    let (cell, _clock) = stale_cell(1);
    for attempt in 1..=3 {
        let request = cell.request_owned().spawn_with(drop);
        assert_eq!(*Hand::new(request.get_async(unbuilt)).ready(), 1);
        assert!(!cell.is_refreshing());
        assert_eq!((cell.stats().builds, cell.stats().abandoned), (attempt, attempt));
    }
    assert_eq!(*Hand::new(cell.request_owned().spawn_with(run).get_async(|| async { 2 })).ready(), 2);
}

#[test]
fn g5_a_task_that_is_dropped_midway_gives_the_lease_back() {
    let (cell, _clock) = stale_cell(1);
    let mut midway = stale_task(&cell, 1, never);
    midway.pending();
    drop(midway);
    assert_eq!((cell.is_refreshing(), cell.stats().abandoned), (false, 1));
    stale_task(&cell, 1, || async { 2 }).ready();
    assert_eq!(served(&cell), 2);
}

#[test]
fn g3_a_task_that_is_run_on_the_spot_serves_what_it_has_built() {
    let (cell, _clock) = stale_cell(1);
    let value = Hand::new(cell.request_owned().spawn_with(run).get_async(|| async { 2 })).ready();
    assert_eq!(*value, 2);
    assert!(Arc::ptr_eq(&value, &cell.get().unwrap()));
    // After a failure on the spot, its caller is served the stale value, or gets the error if that is ruled out.
    cell.invalidate();
    let request = || cell.request_owned().spawn_with(run);
    assert_eq!(*Hand::new(request().try_get_async(|| async { Err("down") })).ready().unwrap(), 2);
    let fresh = cell.request_owned().no_cache().spawn_with(run);
    let error = Hand::new(fresh.try_get_async(|| async { Err("still down") })).ready().unwrap_err();
    assert_eq!(error.to_string(), "still down");
}

#[test]
fn g5_a_panic_of_a_spawned_build_leaves_the_value_and_frees_the_lease() {
    let (cell, clock) = stale_cell(1);
    let door = Door::default();
    let mut panicking = stale_task(&cell, 1, {
        let door = door.clone();
        || async move {
            door.pass().await;
            panic_as_planned()
        }
    });
    panicking.pending();
    door.open();
    panics_as_planned(|| panicking.poll());
    drop(panicking);
    assert_eq!((cell.is_refreshing(), cell.stats().panicked, cell.stats().abandoned), (false, 1, 0));
    // A panic of the closure that makes the future, which the task calls.
    clock.advance(TTL);
    let mut panicking = stale_task(&cell, 1, || -> std::future::Ready<u32> { panic_as_planned() });
    panics_as_planned(|| panicking.poll());
    clock.advance(TTL);
    stale_task(&cell, 1, || async { 2 }).ready();
    assert_eq!(served(&cell), 2);
}

#[test]
fn a_panic_of_a_spawned_build_begins_the_retry_pause_where_there_is_a_value() {
    const PAUSE: Duration = Duration::from_secs(1);
    let (cell, clock) = cell_with(Policy::ttl(TTL).retry_backoff(PAUSE, PAUSE));
    cell.set(1);
    clock.advance(TTL + TICK);
    let mut panicking = stale_task(&cell, 1, || async { panic_as_planned() });
    panics_as_planned(|| panicking.poll());
    clock.advance(PAUSE - TICK);
    assert_eq!(served(&cell), 1);
    clock.advance(TICK);
    stale_task(&cell, 1, || async { 2 }).ready();
    assert_eq!(served(&cell), 2);
}

#[test]
fn a_caller_that_finds_an_expired_value_waits_for_its_build() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(TTL));
    cell.set(1);
    clock.advance(2 * TTL + TICK);
    let (mut caller, mut task) = first(&cell, || async { Ok(3) });
    task.ready();
    assert_eq!(*caller.ready().unwrap(), 3);
}

#[test]
fn g6_a_value_that_expires_meanwhile_makes_callers_wait_for_the_task() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(TTL));
    cell.set(1);
    clock.advance(2 * TTL);
    let mut job = stale_task(&cell, 1, || async { 2 });
    clock.advance(TICK);
    let mut task = Hand::new(cell.request_owned().spawn_with(unspawned).get_async(unbuilt));
    task.pending();
    let thread = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || *cell.request_owned().spawn_with(|_| unreachable!()).get(|| 0))
    };
    eventually("both wait", || cell.stats().waits == 2);
    job.ready();
    assert_eq!(task.wakes(), 1);
    assert_eq!((*task.ready(), joined(thread)), (2, 2));
}

#[test]
fn g2_other_callers_are_served_while_a_task_is_queued() {
    let (cell, _clock) = stale_cell(1);
    let mut task = stale_task(&cell, 1, || async { 2 });
    assert_eq!(*cell.get_or_refresh(|| unreachable!("a build runs")), 1);
    assert_eq!(*Hand::new(cell.get_or_refresh_async(unbuilt)).ready(), 1);
    let mut fresh = Hand::new(cell.request().max_stale(Duration::ZERO).get_async(unbuilt));
    fresh.pending();
    task.ready();
    assert_eq!(*fresh.ready(), 2);
}

// The fence, and leases that are lost.

#[test]
fn g4_a_task_that_is_kept_for_ever_is_superseded() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
    cell.set(1);
    clock.advance(TTL + TICK);
    let door = Door::default();
    let mut kept = stale_task(&cell, 1, {
        let door = door.clone();
        || async move {
            door.pass().await;
            2
        }
    });
    kept.pending();
    clock.advance(TTL);
    assert_eq!(served(&cell), 1);
    clock.advance(TICK);
    let mut next = stale_task(&cell, 1, || async { 3 });
    // It ends after all, before the one in its place: fenced off.
    door.open();
    kept.ready();
    assert_eq!((served(&cell), cell.is_refreshing()), (1, true));
    next.ready();
    assert_eq!((served(&cell), cell.generation(), cell.stats().superseded), (3, 2, 1));
}

/// Its closure is spent, so the caller is not elected again. It takes what comes first.
#[test]
fn the_caller_of_a_first_build_that_is_superseded_takes_the_other_value() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
    let (mut caller, kept) = first(&cell, || async { Ok(1) });
    clock.advance(TTL + TICK);
    assert!(caller.wakes() > 0);
    caller.pending();
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { 2 })).ready(), 2);
    assert_eq!(*caller.ready().unwrap(), 2);
    drop(kept);
}

#[test]
fn g4_the_fence_holds_for_tasks() {
    let (cell, _clock) = stale_cell(1);
    let mut first = stale_task(&cell, 1, || async { 2 });
    cell.invalidate();
    first.ready();
    assert_eq!((cell.freshness(), cell.get().as_deref()), (Freshness::Stale, Some(&2)));
    let mut second = stale_task(&cell, 2, || async { 3 });
    cell.set(4);
    second.ready();
    assert_eq!(served(&cell), 4);
}

#[test]
fn a_set_serves_the_caller_of_a_first_build_before_that_has_ended() {
    let (cell, _clock) = cell();
    let (mut caller, mut task) = first(&cell, || async { Ok(1) });
    let value = cell.set(7);
    assert!(caller.wakes() > 0);
    assert!(Arc::ptr_eq(&caller.ready().unwrap(), &value));
    task.ready();
    assert_eq!((served(&cell), cell.generation()), (7, 1));
}

/// The value of the build that it started is its own, though no other caller gets it.
#[test]
fn a_clear_leaves_the_value_of_a_first_build_to_its_caller() {
    let ends: [fn(&Cell<u32>); 2] = [|cell| drop(cell.clear()), |cell| assert!(cell.revoke())];
    for end in ends {
        let (cell, _clock) = cell();
        let (mut caller, mut task) = first(&cell, || async { Ok(1) });
        end(&cell);
        caller.pending();
        task.ready();
        assert!(caller.wakes() > 0);
        assert_eq!((*caller.ready().unwrap(), cell.get()), (1, None));
    }
}

/// Conditions are met by the value of the build that the call has started, whatever happened meanwhile.
#[test]
fn a_value_of_its_own_build_is_accepted_though_it_is_published_as_stale() {
    let (cell, _clock) = stale_cell(1);
    let queue = Queue::default();
    let request = cell.request_owned().max_stale(Duration::ZERO).spawn_with(queue.spawner());
    let mut caller = Hand::new(request.try_get_async(|| async { Ok::<_, &str>(2) }));
    caller.pending();
    let mut task = queue.take();
    cell.invalidate();
    task.ready();
    assert_eq!((*caller.ready().unwrap(), cell.freshness()), (2, Freshness::Stale));
    queue.none();
}

#[test]
fn with_a_ttl_of_zero_the_value_of_its_own_build_is_accepted() {
    let (cell, clock) = cell_with(Policy::ttl(Duration::ZERO).stale_while_refresh(Duration::ZERO));
    let (mut caller, mut task) = first(&cell, || async { Ok(1) });
    task.ready();
    clock.advance(TTL);
    assert_eq!(*caller.ready().unwrap(), 1);
}

#[test]
fn a_task_keeps_its_cell_alive() {
    let (cell, _clock) = stale_cell(1);
    let weak = Arc::downgrade(&cell);
    let mut task = stale_task(&cell, 1, || async { 2 });
    drop(cell);
    assert!(weak.upgrade().is_some());
    task.ready();
    // The future still has to be dropped, but has let go.
    assert!(weak.upgrade().is_none());
}

#[test]
fn a_request_keeps_its_cell_alive_while_its_caller_waits() {
    let (cell, _clock) = cell::<u32>();
    let weak = Arc::downgrade(&cell);
    let (mut caller, mut task) = first(&cell, || async { Ok(1) });
    drop(cell);
    task.ready();
    drop(task);
    assert!(weak.upgrade().is_some());
    assert_eq!(*caller.ready().unwrap(), 1);
    assert!(weak.upgrade().is_none());
}

#[test]
fn g10_inside_its_own_build_a_caller_without_a_value_panics() {
    let (cell, _clock) = cell::<u32>();
    let inner = Arc::clone(&cell);
    let build = move || async move {
        let request = inner.request_owned().spawn_with(unspawned);
        assert!(matches!(request.try_get_async(untried).await, Err(RefreshError::Reentrant)));
        *inner.request_owned().spawn_with(unspawned).get_async(unbuilt).await
    };
    let queue = Queue::default();
    let mut caller = Hand::new(cell.request_owned().spawn_with(queue.spawner()).get_async(build));
    caller.pending();
    let mut task = queue.take();
    let message = panic_message(|| task.poll());
    assert!(message.starts_with("get_async, at ") && message.contains(file!()), "{message}");
    assert!(message.contains("from inside the build of the same cell"), "{message}");
}

/// After a task that was polled on the spot, its caller is not inside the build.
#[test]
fn a_caller_whose_spawner_polls_the_task_once_waits_as_any_other() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let queue = Queue::default();
    let push = queue.spawner();
    let poll_once = |mut task: Task| {
        let polled = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
        push(task);
    };
    let mut caller = Hand::new(cell.request_owned().spawn_with(poll_once).try_get_async(behind(&door, 1)));
    caller.pending();
    let mut task = queue.take();
    door.open();
    task.ready();
    assert_eq!(*caller.ready().unwrap(), 1);
}

#[test]
fn a_caller_that_waited_for_a_build_that_was_abandoned_spawns_its_own() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let queue = Queue::default();
    let mut caller = Hand::new(cell.request_owned().spawn_with(queue.spawner()).get_async(|| async { 1 }));
    caller.pending();
    queue.none();
    drop(lease);
    caller.pending();
    queue.take().ready();
    assert_eq!(*caller.ready(), 1);
}

// Conditional builds.

#[test]
fn a_spawned_build_is_given_the_previous_value() {
    let (cell, _clock) = stale_cell(1);
    let value = cell.get().unwrap();
    let queue = Queue::default();
    let conditional = |end: Refreshed<u32>| {
        let request = cell.request_owned().spawn_with(queue.spawner());
        request.try_get_with_async(move |previous: Option<Arc<u32>>| async move {
            assert_eq!(previous.as_deref(), Some(&1));
            Ok::<_, &str>(end)
        })
    };
    assert_eq!(*Hand::new(conditional(Refreshed::NotModified)).ready().unwrap(), 1);
    queue.take().ready();
    assert!(Arc::ptr_eq(&value, &cell.get().unwrap()));
    assert_eq!((cell.generation(), cell.freshness()), (2, Freshness::Fresh));
    cell.invalidate();
    assert_eq!(*Hand::new(conditional(Refreshed::NewFor(2, 5 * TTL))).ready().unwrap(), 1);
    queue.take().ready();
    assert_eq!(cell.snapshot().unwrap().fresh_for, 5 * TTL);
}

#[test]
fn not_modified_without_a_previous_value_is_a_failure_of_the_spawned_build() {
    let (cell, _clock) = cell::<u32>();
    let request = cell.request_owned().spawn_with(run);
    let build = |_| async { Ok::<_, &str>(Refreshed::NotModified) };
    let error = Hand::new(request.try_get_with_async(build)).ready().unwrap_err();
    assert_eq!(error.to_string(), "the build returned NotModified, but there is no previous value");
}

// Real executors.

/// The caller is served while its build is stopped; and a first build outlives a caller that is dropped.
async fn on_an_executor<S>(spawn: impl Fn(Task) -> S + Send + Copy) {
    let (cell, _clock) = stale_cell(1);
    let door = Door::default();
    let begun = Arc::new(AtomicBool::new(false));
    let build = {
        let (door, begun) = (door.clone(), Arc::clone(&begun));
        move || async move {
            begun.store(true, Ordering::SeqCst);
            door.pass().await;
            2
        }
    };
    assert_eq!(*cell.request_owned().spawn_with(spawn).get_async(build).await, 1);
    until("the task begins", || begun.load(Ordering::SeqCst)).await;
    assert_eq!(*cell.request_owned().spawn_with(unspawned).get_async(unbuilt).await, 1);
    door.open();
    until("the task ends", || !cell.is_refreshing()).await;
    assert_eq!(*cell.request_owned().spawn_with(unspawned).get_async(unbuilt).await, 2);

    // A caller that waits for its first build.
    cell.clear();
    let third = cell.request_owned().spawn_with(spawn).try_get_async(|| async {
        futures_lite::future::yield_now().await;
        Ok::<_, &str>(3)
    });
    assert_eq!(*third.await.unwrap(), 3);

    // One that gives up.
    cell.clear();
    let door = Door::default();
    let request = cell.request_owned().wait_at_most(Duration::ZERO).spawn_with(spawn);
    assert!(matches!(request.try_get_async(behind(&door, 4)).await, Err(RefreshError::WaitTimeout)));
    door.open();
    assert_eq!(*cell.request_owned().spawn_with(unspawned).get_async(unbuilt).await, 4);
    assert_eq!((cell.stats().builds, cell.stats().abandoned), (3, 0));
}

#[test]
fn g13_tasks_of_tokio() {
    guarded(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(on_an_executor(tokio::spawn));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(on_an_executor(tokio::spawn));
        // The caller is a task too, so the futures can be sent.
        runtime.block_on(runtime.spawn(on_an_executor(tokio::spawn))).unwrap();
    });
}

#[test]
fn g13_tasks_of_smol() {
    guarded(|| smol::block_on(on_an_executor(|task| smol::spawn(task).detach())));
}

#[test]
fn g13_a_thread_that_blocks_on_the_task() {
    guarded(|| {
        let spawn = |task| thread::spawn(|| futures_lite::future::block_on(task));
        futures_lite::future::block_on(on_an_executor(spawn));
    });
}

#[test]
fn g13_a_blocking_thread_of_tokio_that_blocks_on_the_task() {
    guarded(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let spawn = |task| tokio::task::spawn_blocking(|| futures_lite::future::block_on(task));
        runtime.block_on(on_an_executor(spawn));
    });
}

/// A build that blocks, for an async caller that has a stale value: `spawn_blocking` as it is.
#[test]
fn g2_a_blocking_build_is_handed_to_spawn_blocking() {
    guarded(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (cell, _clock) = stale_cell(1);
            let (end, ended) = channel::<u32>();
            let request = cell.request_owned().spawn_with(tokio::task::spawn_blocking::<Job, ()>);
            assert_eq!(*request.get(move || ended.recv_timeout(PATIENCE).unwrap()), 1);
            assert!(cell.is_refreshing());
            // Tasks wait for it like for any other build.
            let mut fresh = Hand::new(cell.request().max_stale(Duration::ZERO).get_async(unbuilt));
            fresh.pending();
            end.send(2).unwrap();
            assert_eq!(*fresh.eventually_ready(), 2);
        });
    });
}

#[test]
fn a_first_blocking_build_is_handed_to_spawn_blocking_by_a_thread_and_awaited_by_a_task() {
    guarded(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (cell, _clock) = cell();
        let (end, ended) = channel::<u32>();
        let thread = {
            let (cell, handle) = (Arc::clone(&cell), runtime.handle().clone());
            thread::spawn(move || {
                let request = cell.request_owned().spawn_with(|job: Job| handle.spawn_blocking(job));
                *request.get(move || ended.recv_timeout(PATIENCE).unwrap())
            })
        };
        eventually("it builds", || cell.is_refreshing());
        let mut task = Hand::new(cell.get_or_refresh_async(unbuilt));
        task.pending();
        end.send(1).unwrap();
        assert_eq!((joined(thread), *task.eventually_ready()), (1, 1));
    });
}

// The end of a build between two looks of its caller.

/// A clock at which one thread runs something the next time that it asks for the time.
#[derive(Clone, Default)]
struct Meddling {
    manual: ManualClock,
    deed: Arc<Mutex<Option<(ThreadId, Deed)>>>,
}

type Deed = Box<dyn FnOnce() + Send>;

impl Meddling {
    fn on_next_look(&self, deed: impl FnOnce() + Send + 'static) {
        *self.deed.lock().unwrap() = Some((thread::current().id(), Box::new(deed)));
    }
}

impl Clock for Meddling {
    fn now(&self) -> Tick {
        let mut deed = self.deed.lock().unwrap();
        let is_due = deed.as_ref().is_some_and(|(thread, _)| *thread == thread::current().id());
        let taken = if is_due { deed.take() } else { None };
        drop(deed);
        if let Some((_, deed)) = taken {
            deed();
        }
        self.manual.now()
    }

    fn coarse_now(&self) -> Tick {
        self.manual.now()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        self.manual.park_until(deadline, now);
    }
}

/// How a first build ends while its caller is between its look at the outcome and its look at the cell.
const ENDS: [fn(Hand<'static, ()>); 3] = [
    drop,
    |mut task| {
        task.ready();
    },
    |mut task| panics_as_planned(|| task.poll()),
];

/// The caller has looked whether its build has ended, and is about to wait: the end must not be lost.
#[test]
fn a_first_build_that_ends_just_before_its_caller_waits_is_noticed() {
    for (number, end) in ENDS.into_iter().enumerate() {
        let clock = Meddling::default();
        let cell = Arc::new(DogpileCell::<u32, _>::with_clock(plain(Policy::ttl(TTL)), clock.clone()));
        let meddling = clock.clone();
        let spawn = move |task: Task| {
            meddling.on_next_look(move || end(Hand::new(task)));
        };
        let build = move || async move { if number == 2 { panic_as_planned() } else { Err("down") } };
        let mut caller = Hand::new(cell.request_owned().spawn_with(spawn).try_get_async(build));
        let outcome = match caller.poll() {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => {
                assert!(clock.deed.lock().unwrap().is_none(), "the build has not ended");
                assert!(caller.wakes() > 0, "end {number}: the caller waits for ever");
                caller.ready()
            }
        };
        match (number, outcome) {
            (1, Err(RefreshError::Build(error))) => assert_eq!(error.to_string(), "down"),
            (0 | 2, Err(RefreshError::Abandoned)) => {}
            (_, other) => panic!("end {number}: {other:?}"),
        }
    }
}

/// The same for a thread.
#[test]
fn a_first_build_that_ends_just_before_its_thread_waits_is_noticed() {
    let clock = Meddling::default();
    let cell = Arc::new(DogpileCell::<u32, _>::with_clock(plain(Policy::ttl(TTL)), clock.clone()));
    let thread = thread::spawn(move || {
        let spawn = move |job: Job| clock.on_next_look(job);
        let outcome = cell.request_owned().spawn_with(spawn).try_get(|| Err::<u32, _>("down"));
        outcome.map(|value| *value).map_err(|error| error.to_string())
    });
    assert_eq!(joined(thread), Err("down".to_owned()));
}

#[test]
fn a_thread_that_awaits_a_task_sees_its_panic_as_abandoned() {
    guarded(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (cell, _clock) = cell::<u32>();
        let mut task = None;
        let outcome = {
            let request = cell.request_owned().spawn_with(|job| task = Some(runtime.spawn(job)));
            futures_lite::future::block_on(request.try_get_async(|| async {
                tokio::task::yield_now().await;
                if true {
                    panic_as_planned();
                }
                Ok::<u32, &str>(1)
            }))
        };
        assert!(matches!(outcome, Err(RefreshError::Abandoned)));
        let panic = runtime.block_on(task.unwrap()).unwrap_err().into_panic();
        if !crate::support::is_planned(&*panic) {
            resume_unwind(panic);
        }
    });
}

/// It may be in the queue of a busy executor for long.
#[test]
fn g12_a_task_that_has_not_begun_is_no_reader() {
    let cell = Arc::new(SyncReaderCell::new(TTL, drop));
    cell.set(1);
    cell.invalidate();
    let queue = Queue::default();
    let request = cell.request_owned().spawn_with(queue.spawner());
    assert_eq!(*Hand::new(request.get_async(async || 2)).ready(), 1);
    let mut task = queue.take();
    assert!(cell.is_refreshing());
    assert_eq!(cell.readers(), 0);
    task.ready();
    assert_eq!(cell.get().as_deref(), Some(&2));
}
