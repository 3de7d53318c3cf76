//! `SyncReaderCell`: the old value's drain is awaited, not blocked on.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use dogpile::{
    Clock, Drain, Freshness, ManualClock, Policy, ReaderArc, RefreshError, Refreshed, SyncReaderCell, Task,
    Tick,
};

use crate::support::{Hand, LookupExt, PATIENCE, TICK, TTL, eventually, guarded, joined, never, unbuilt};

const WAIT: Duration = Duration::from_secs(5);

type Cell = Arc<SyncReaderCell<u32, ManualClock>>;

/// What the finalizer got, and where.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Entries>>);

type Entries = Vec<(u32, ThreadId)>;

impl Log {
    fn entries(&self) -> Vec<u32> {
        self.0.lock().unwrap().iter().map(|(value, _)| *value).collect()
    }

    fn is_of_another_thread(&self) -> bool {
        self.0.lock().unwrap().iter().all(|(_, thread)| *thread != thread::current().id())
    }

    /// Whether all of it was finalised on this thread.
    fn is_of_this_thread(&self) -> bool {
        self.0.lock().unwrap().iter().all(|(_, thread)| *thread == thread::current().id())
    }
}

fn logged(drain: Drain) -> (Cell, ManualClock, Log) {
    let (clock, log) = (ManualClock::new(), Log::default());
    let finalizer = {
        let log = log.clone();
        move |value| log.0.lock().unwrap().push((value, thread::current().id()))
    };
    let cell = SyncReaderCell::with_clock(Policy::ttl(TTL), clock.clone(), drain, finalizer);
    (Arc::new(cell), clock, log)
}

/// A task that replaces 1 by 2 and waits for the reader of 1, which is returned too.
fn draining(cell: &Cell) -> (Hand<'_, ReaderArc<u32>>, ReaderArc<u32>) {
    let reader = cell.set(1);
    cell.invalidate();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
    task.pending();
    assert_eq!((cell.generation(), cell.is_refreshing(), cell.retired()), (2, true, 1));
    (task, reader)
}

#[test]
fn the_task_that_has_built_waits_for_the_readers_and_finalises() {
    let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
    let (mut task, reader) = draining(&cell);
    let other = reader.clone();
    drop(reader);
    assert_eq!(task.pending().wakes(), 0);
    // Readers of the new value do not wait.
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { unreachable!() })).ready(), 2);
    assert_eq!(
        *Hand::new(cell.request().max_stale(Duration::ZERO).get_async(|| async { unreachable!() })).ready(),
        2
    );
    assert_eq!(log.entries(), []);
    drop(other);
    assert_eq!((task.wakes(), log.entries()), (1, vec![]));
    assert_eq!(*task.ready(), 2);
    assert_eq!((log.entries(), log.is_of_this_thread()), (vec![1], true));
    assert_eq!((cell.is_refreshing(), cell.retired(), cell.stats().abandoned), (false, 0, 0));
}

#[test]
fn every_method_waits() {
    let reads: [fn(&Cell) -> Hand<'_, u32>; 4] = [
        |cell| Hand::new(async { *cell.get_or_refresh_async(|| async { 2 }).await }),
        |cell| Hand::new(async { *cell.request().max_stale(Duration::ZERO).get_async(|| async { 2 }).await }),
        |cell| {
            let build = |_| async { Ok::<_, &str>(Refreshed::NewFor(2, TTL)) };
            Hand::new(async move { *cell.request().try_get_with_async(build).await.unwrap() })
        },
        |cell| {
            Hand::new(async { *cell.try_get_or_refresh_async(|| async { Ok::<_, &str>(2) }).await.unwrap() })
        },
    ];
    for read in reads {
        let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
        let reader = cell.set(1);
        cell.invalidate();
        let mut task = read(&cell);
        task.pending();
        drop(reader);
        assert_eq!((task.wakes(), task.ready(), log.entries()), (1, 2, vec![1]));
    }
}

#[test]
fn without_a_reader_it_does_not_wait() {
    for drain in [Drain::Wait(Duration::MAX), Drain::Wait(WAIT)] {
        let (cell, _clock, log) = logged(drain);
        drop(cell.set(1));
        cell.invalidate();
        let mut task = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
        assert_eq!((*task.ready(), log.entries(), log.is_of_this_thread()), (2, vec![1], true));
        assert!(!task.is_listed());
    }
}

/// A slow finalizer costs no caller anything.
#[test]
fn in_the_background_no_task_runs_the_finalizer() {
    let (cell, _clock, log) = logged(Drain::Background);
    drop(cell.set(1));
    cell.invalidate();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
    drop(task.ready());
    assert!(!task.is_listed());
    cell.set(3);
    Hand::new(cell.synchronize_async()).eventually_ready();
    assert_eq!((log.entries(), log.is_of_another_thread()), (vec![1, 2], true));
}

/// The build of a task is given the previous value, which is a reader while the build has it.
#[test]
fn not_modified_keeps_the_same_value_and_waits_for_no_reader() {
    for drain in [Drain::Wait(Duration::MAX), Drain::Wait(WAIT), Drain::Background] {
        let (cell, _clock, log) = logged(drain);
        let reader = cell.set(1);
        cell.invalidate();
        let build = |previous: Option<ReaderArc<u32>>| {
            assert!(cell.readers() > 1);
            async move { if previous.is_some() { Ok(Refreshed::NotModified) } else { Err("no value") } }
        };
        let mut task = Hand::new(cell.request().try_get_with_async(build));
        assert!(ReaderArc::ptr_eq(&task.ready().unwrap(), &reader));
        assert_eq!((cell.generation(), cell.retired(), cell.is_refreshing()), (2, 0, false));
        drop(reader);
        cell.synchronize();
        assert_eq!((cell.readers(), log.entries()), (0, vec![]));
    }
}

/// A build that is handed to a task drains there; its caller takes the new value at once.
#[test]
fn a_task_that_was_spawned_waits_for_the_readers() {
    let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
    let reader = cell.set(1);
    cell.invalidate();
    let mut spawned = None;
    {
        let request = cell.request_owned().max_stale(Duration::ZERO);
        let spawn = |task: Task| spawned = Some(task);
        let mut caller = Hand::new(request.clone().spawn_with(spawn).get_async(|| async { 2 }));
        caller.pending();
        drop(caller);
        let mut task = Hand::new(spawned.take().expect("the caller is elected"));
        task.pending();
        assert_eq!((cell.generation(), cell.is_refreshing(), cell.retired()), (2, true, 1));
        assert_eq!(*Hand::new(request.get_async(unbuilt)).ready(), 2);
        drop(reader);
        assert_eq!(task.wakes(), 1);
        task.ready();
    }
    assert_eq!((log.entries(), cell.is_refreshing()), (vec![1], false));
}

#[test]
fn in_the_background_it_does_not_wait() {
    let (cell, _clock, log) = logged(Drain::Background);
    let reader = cell.set(1);
    cell.invalidate();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
    assert_eq!((*task.ready(), cell.is_refreshing(), log.entries()), (2, false, vec![]));
    let mut synchronizer = Hand::new(cell.synchronize_async());
    synchronizer.pending();
    drop(reader);
    eventually("the task is woken", || synchronizer.wakes() > 0);
    synchronizer.ready();
    assert_eq!((log.entries(), log.is_of_this_thread()), (vec![1], false));
}

#[test]
fn the_wait_is_bounded_and_what_is_left_goes_to_the_background() {
    let (cell, clock, log) = logged(Drain::Wait(WAIT));
    let (mut task, reader) = draining(&cell);
    clock.advance(WAIT - TICK);
    task.pending();
    let before = task.wakes();
    clock.advance(TICK);
    assert!(task.wakes() > before);
    assert_eq!(*task.ready(), 2);
    assert_eq!((cell.is_refreshing(), cell.retired(), log.entries()), (false, 1, vec![]));
    assert!(!task.is_listed());
    drop(reader);
    cell.synchronize();
    assert_eq!((log.entries(), log.is_of_this_thread()), (vec![1], false));
}

#[test]
fn a_task_that_is_cancelled_in_the_drain_releases_the_lease_and_leaves_the_rest_to_the_background() {
    let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
    let (task, reader) = draining(&cell);
    let wakes = task.wakes_handle();
    drop(task);
    assert_eq!((cell.is_refreshing(), cell.retired(), cell.readers()), (false, 1, 1));
    assert_eq!((cell.get().as_deref(), cell.stats().abandoned), (Some(&2), 0));
    drop(reader);
    cell.synchronize();
    assert_eq!((log.entries(), log.is_of_this_thread()), (vec![1], false));
    assert_eq!((Arc::strong_count(&wakes), wakes.count()), (1, 0));
}

/// When the cell is gone no other task is there to be woken.
#[test]
fn a_task_that_is_leaked_in_the_drain_of_a_cell_that_is_dropped_is_not_counted_on() {
    let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
    let (task, reader) = draining(&cell);
    std::mem::forget(task);
    drop(cell);
    drop(reader);
    eventually("it is finalised", || log.entries() == [1]);
    assert!(!log.is_of_this_thread());
}

/// The last reader has woken it, and it is dropped: the wake-up is passed on.
#[test]
fn a_task_that_is_cancelled_when_the_readers_have_left_passes_the_wake_up_on() {
    let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
    let (task, reader) = draining(&cell);
    drop(reader);
    assert_eq!((task.wakes(), log.entries()), (1, vec![]));
    drop(task);
    assert!(!cell.is_refreshing());
    eventually("it is finalised", || log.entries() == [1]);
    assert!(!log.is_of_this_thread());
}

#[test]
fn a_wake_up_is_passed_on_to_a_thread_that_drains() {
    let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
    let (first, reader) = draining(&cell);
    // A clear drains too, on a thread of its own.
    let clearer = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || cell.clear())
    };
    eventually("the new value is gone", || cell.get().is_none() && cell.retired() == 2);
    drop(reader);
    drop(first);
    joined(clearer);
    assert_eq!(log.entries(), [1, 2]);
}

#[test]
fn values_are_finalised_in_order_by_the_callers_that_drain() {
    let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
    let (mut second, first_reader) = draining(&cell);
    let second_reader = cell.get().unwrap();
    let clearer = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || cell.clear())
    };
    eventually("the new value is gone", || cell.get().is_none() && cell.retired() == 2);
    // Nothing is built before the lease is free.
    let mut third = Hand::new(cell.get_or_refresh_async(|| async { 3 }));
    third.pending();
    // The later one's reader leaves first. (The task has the other handle of it.)
    drop(second_reader);
    assert_eq!(log.entries(), []);
    drop(first_reader);
    // By the task, or by the thread, which may have been about to wait.
    let reader = second.eventually_ready();
    assert_eq!((*reader, log.entries()), (2, vec![1]));
    assert_eq!((third.wakes(), *third.ready()), (1, 3));
    drop(reader);
    joined(clearer);
    assert_eq!(log.entries(), [1, 2]);
}

#[test]
fn the_lease_stays_taken_while_the_old_value_drains() {
    let (cell, clock, log) = logged(Drain::Wait(Duration::MAX));
    let (mut task, reader) = draining(&cell);
    // The new value is stale before the old one has gone: no caller is elected, so that at most two are alive.
    clock.advance(2 * TTL);
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { unreachable!() })).ready(), 2);
    let mut fresh = Hand::new(cell.request().max_stale(Duration::ZERO).get_async(|| async { 3 }));
    fresh.pending();
    drop(reader);
    drop(task.ready());
    assert_eq!((fresh.wakes(), *fresh.ready(), log.entries()), (1, 3, vec![1, 2]));
}

/// A cancelled drain releases the lease: the next caller builds, and waits for the readers in turn.
#[test]
fn after_a_cancelled_drain_the_callers_that_wait_for_the_lease_go_on() {
    let (cell, clock, log) = logged(Drain::Wait(Duration::MAX));
    let (task, reader) = draining(&cell);
    clock.advance(2 * TTL);
    let mut fresh = Hand::new(cell.request().max_stale(Duration::ZERO).get_async(|| async { 3 }));
    fresh.pending();
    drop(task);
    assert_eq!(fresh.wakes(), 1);
    fresh.pending();
    assert_eq!((cell.generation(), cell.retired()), (3, 2));
    drop(reader);
    assert_eq!((fresh.wakes(), *fresh.ready(), log.entries()), (2, 3, vec![1, 2]));
}

#[test]
fn other_tasks_of_the_thread_run_meanwhile() {
    guarded(|| {
        let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
        let reader = cell.set(1);
        cell.invalidate();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ticks = Arc::new(AtomicUsize::new(0));
        runtime.block_on(async {
            let builder = {
                let cell = Arc::clone(&cell);
                tokio::spawn(async move { *cell.get_or_refresh_async(|| async { 2 }).await })
            };
            let holder = {
                let ticks = Arc::clone(&ticks);
                tokio::spawn(async move {
                    for _ in 0..100 {
                        tokio::task::yield_now().await;
                        ticks.fetch_add(1, Ordering::SeqCst);
                    }
                    drop(reader);
                })
            };
            assert_eq!(builder.await.unwrap(), 2);
            assert_eq!(ticks.load(Ordering::SeqCst), 100);
            holder.await.unwrap();
        });
        assert_eq!((log.entries(), log.is_of_this_thread()), (vec![1], true));
    });
}

/// With a guard, which stays on its thread, the old value goes to the background at once, as without async.
#[test]
fn a_thread_that_holds_a_guard_of_the_old_value_does_not_wait_for_itself() {
    let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
    drop(cell.set(1));
    cell.invalidate();
    let guard = cell.load().unwrap();
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { 2 })).ready(), 2);
    assert_eq!((*guard, cell.retired(), log.entries()), (1, 1, vec![]));
    drop(guard);
    cell.synchronize();
    assert_eq!(log.entries(), [1]);
}

#[test]
fn tasks_wait_for_the_finalizer() {
    let (cell, _clock, log) = logged(Drain::Background);
    let first = cell.set(1);
    let second = cell.set(2);
    let (mut one, mut other) = (Hand::new(cell.synchronize_async()), Hand::new(cell.synchronize_async()));
    one.pending();
    let third = cell.set(3);
    // Retired before its first poll, so waited for.
    other.pending();
    drop(first);
    eventually("the first task is woken", || one.wakes() > 0);
    one.ready();
    assert_eq!(log.entries(), [1]);
    assert!(other.poll().is_pending());
    // One that gives up leaves nothing behind.
    let mut gives_up = Hand::new(cell.synchronize_async());
    gives_up.pending();
    let wakes = gives_up.wakes_handle();
    drop(gives_up);
    assert_eq!(Arc::strong_count(&wakes), 1);
    drop(second);
    eventually("the other task is woken", || log.entries() == [1, 2] && cell.retired() == 0);
    other.ready();
    assert_eq!(*third, 3);
}

fn reported() -> (SyncReaderCell<u32, ManualClock>, Receiver<u32>) {
    let (report, log) = channel();
    let finalizer = move |value| report.send(value).unwrap();
    let drain = Drain::Wait(Duration::MAX);
    (SyncReaderCell::with_clock(Policy::ttl(TTL), ManualClock::new(), drain, finalizer), log)
}

#[test]
fn after_a_cancelled_drain_the_cell_can_be_dropped() {
    let (cell, log) = reported();
    let reader = cell.set(1);
    cell.invalidate();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
    task.pending();
    drop(task);
    drop(cell);
    assert!(log.try_recv().is_err());
    drop(reader);
    // The old value is finalised, the current one is not; and then the finalizer is gone.
    assert_eq!(log.recv_timeout(PATIENCE), Ok(1));
    assert_eq!(log.recv_timeout(PATIENCE), Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn after_a_drain_the_cell_can_be_dropped() {
    let (cell, log) = reported();
    let reader = cell.set(1);
    cell.invalidate();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
    task.pending();
    drop(reader);
    let current = task.ready();
    drop(task);
    drop(cell);
    assert_eq!(log.recv_timeout(PATIENCE), Ok(1));
    drop(current);
    assert_eq!(log.recv_timeout(PATIENCE), Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn a_build_that_is_cancelled_leaves_everything_as_it_was() {
    let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
    drop(cell.set(1));
    cell.invalidate();
    let mut task = Hand::new(cell.get_or_refresh_async(never));
    task.pending();
    let mut fresh = Hand::new(cell.request().max_stale(Duration::ZERO).get_async(|| async { 2 }));
    fresh.pending();
    drop(task);
    assert_eq!((cell.readers(), cell.get().as_deref(), log.entries()), (0, Some(&1), vec![]));
    assert_eq!((fresh.wakes(), *fresh.ready(), log.entries()), (1, 2, vec![1]));
}

/// What the fence keeps out is finalised all the same, when its caller has dropped it.
#[test]
fn what_a_clear_keeps_out_is_finalised_out_of_turn() {
    let (cell, _clock, log) = logged(Drain::Wait(Duration::MAX));
    let door = crate::support::Door::default();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async {
        door.pass().await;
        1
    }));
    task.pending();
    cell.clear();
    door.open();
    let loose = task.ready();
    assert_eq!((*loose, cell.get().is_none(), cell.is_refreshing()), (1, true, false));
    drop(loose);
    eventually("it is finalised", || log.entries() == [1]);
}

/// Tasks wait for a build that holds the write lock, as threads do.
#[test]
fn a_task_waits_for_the_end_of_a_write_section() {
    let (cell, _clock, _log) = logged(Drain::Background);
    drop(cell.set(1));
    cell.invalidate();
    let (inside, is_inside) = channel();
    let (leave, leaves) = channel();
    let writer = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || {
            drop(cell.request().get_with_writer(|writer| {
                let mut lock = writer.acquire_write_lock();
                let next = *lock.old().unwrap() + 1;
                inside.send(()).unwrap();
                leaves.recv().unwrap();
                next
            }));
        })
    };
    is_inside.recv_timeout(PATIENCE).unwrap();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    assert_eq!(task.pending().wakes(), 0);
    leave.send(()).unwrap();
    joined(writer);
    assert_eq!((task.wakes(), *task.ready()), (1, 2));
}

/// G10: a finalizer that runs in a task which holds the lease must not wait for that lease.
#[test]
fn a_finalizer_that_reads_during_a_drain_gets_an_error() {
    type Own = Arc<OnceLock<Arc<SyncReaderCell<u32, ManualClock>>>>;
    let (own, refused): (Own, _) = (Arc::default(), Arc::new(AtomicBool::new(false)));
    let finalizer = {
        let (own, refused) = (Arc::clone(&own), Arc::clone(&refused));
        move |value| {
            if value == 1 {
                refused.store(is_refused(own.get().unwrap()), Ordering::SeqCst);
            }
        }
    };
    let (policy, clock) = (Policy::ttl(TTL).stale_while_refresh(Duration::ZERO), ManualClock::new());
    let drain = Drain::Wait(Duration::MAX);
    let cell =
        own.get_or_init(|| Arc::new(SyncReaderCell::with_clock(policy, clock.clone(), drain, finalizer)));
    let (mut task, reader) = draining(cell);
    // There is nothing to serve to it.
    clock.advance(2 * TTL);
    assert!(cell.get().is_none());
    drop(reader);
    assert_eq!(task.wakes(), 1);
    drop(task.ready());
    assert!(refused.load(Ordering::SeqCst), "it would have waited for itself");
}

/// Whether a read that would wait for a build is refused because it would wait for itself.
fn is_refused<C: Clock>(cell: &SyncReaderCell<u32, C>) -> bool {
    let request = cell.request().wait_at_most(Duration::ZERO);
    let read = request.try_get(|| -> Result<_, &str> { unreachable!("the lease is held") });
    matches!(read, Err(RefreshError::Reentrant))
}

type Alarm = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

type Deed = Box<dyn FnOnce() + Send>;

/// A clock whose alarms are `early` for once, or do something first.
#[derive(Default)]
struct Alarming {
    manual: ManualClock,
    early: AtomicBool,
    first: Arc<Mutex<Option<Deed>>>,
}

impl Clock for Alarming {
    fn now(&self) -> Tick {
        self.manual.now()
    }

    fn sleep_until(&self, deadline: Tick, now: Tick) -> Alarm {
        if self.early.swap(false, Ordering::SeqCst) {
            return Box::pin(std::future::ready(()));
        }
        let (alarm, first) = (self.manual.sleep_until(deadline, now), Arc::clone(&self.first));
        Box::pin(async move {
            first.lock().unwrap().take().into_iter().for_each(|first| first());
            alarm.await;
        })
    }
}

/// "May be ready early; callers look at the clock again."
#[test]
fn an_alarm_that_is_early_ends_no_drain() {
    let clock = Arc::new(Alarming::default());
    let cell =
        SyncReaderCell::with_clock(Policy::ttl(TTL), Arc::clone(&clock), Drain::Wait(WAIT), drop::<u32>);
    let reader = cell.set(1);
    cell.invalidate();
    clock.early.store(true, Ordering::SeqCst);
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
    assert!(task.poll().is_pending(), "the clock does not show the deadline");
    clock.manual.advance(WAIT);
    assert_eq!((*task.ready(), *reader), (2, 1));
}

/// The same of a wait for a build.
#[test]
fn an_alarm_that_is_early_supersedes_no_build() {
    let clock = Arc::new(Alarming::default());
    let policy = Policy::ttl(TTL).lease_timeout(WAIT);
    let cell = Arc::new(dogpile::DogpileCell::with_clock(policy, Arc::clone(&clock)));
    let lease = cell.lookup().elected();
    clock.early.store(true, Ordering::SeqCst);
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    task.pending();
    clock.early.store(true, Ordering::SeqCst);
    let mut place = Hand::new(cell.lookup_owned().pending());
    assert!(place.poll().is_pending(), "the build has not run for longer than the lease timeout");
    lease.publish(1);
    assert_eq!(*task.ready(), 1);
}

/// The time is over and the last reader leaves, both at once. The thread that finalises then still has the lease.
#[test]
fn a_finalizer_that_reads_at_the_end_of_a_bounded_drain_gets_an_error() {
    type Own = Arc<OnceLock<SyncReaderCell<u32, Arc<Alarming>>>>;
    let own: Own = Arc::default();
    let outcome = Arc::new(Mutex::new(None));
    let finalizer = {
        let (own, outcome, here) = (Arc::clone(&own), Arc::clone(&outcome), thread::current().id());
        move |value| {
            if value == 1 {
                // On the cell's own thread it is no fault to wait, or to build.
                let is_fine = thread::current().id() != here || is_refused(own.get().unwrap());
                *outcome.lock().unwrap() = Some(is_fine);
            }
        }
    };
    let clock = Arc::new(Alarming::default());
    let cell = own.get_or_init(|| {
        let policy = Policy::ttl(TTL).stale_while_refresh(Duration::ZERO);
        SyncReaderCell::with_clock(policy, Arc::clone(&clock), Drain::Wait(2 * TTL), finalizer)
    });
    let reader = cell.set(1);
    cell.invalidate();
    let manual = clock.manual.clone();
    *clock.first.lock().unwrap() = Some(Box::new(move || {
        // The new value expires too, so that there is nothing to serve.
        manual.advance(2 * TTL);
        drop(reader);
    }));
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { 2 })).ready(), 2);
    eventually("it is finalised", || outcome.lock().unwrap().is_some());
    assert_eq!(*outcome.lock().unwrap(), Some(true), "it would have waited for itself");
}

/// Sets a value when it is first called, and notes how many readers there are then.
struct Setting {
    cell: Cell,
    readers: OnceLock<usize>,
}

impl Wake for Setting {
    fn wake(self: Arc<Self>) {
        if self.readers.get().is_none() {
            self.cell.set(5);
            let _ = self.readers.set(self.cell.readers());
        }
    }
}

/// Between the writer's giving it up and its retirement a `set` was enough to lose sight of it, and `synchronize` waited for
/// a guard of its own thread.
#[test]
fn readers_of_a_value_that_a_writer_gives_up_are_known_all_the_time() {
    let (cell, clock, log) = logged(Drain::Background);
    let reader = cell.set(1);
    cell.invalidate();
    let setting = Arc::new(Setting { cell: Arc::clone(&cell), readers: OnceLock::new() });
    let writer = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || {
            cell.request().get_with_writer(|writer| {
                assert_eq!(writer.acquire_write_lock_timeout(WAIT).unwrap_err().readers, 1);
                2
            });
        })
    };
    eventually("the writer waits", || cell.get().is_none());
    // Woken by the writer when it gives up.
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { unreachable!("there is a 5") }));
    assert!(task.poll_with(&Waker::from(Arc::clone(&setting))).is_pending());
    cell.clear();
    clock.advance(2 * WAIT);
    joined(writer);
    // And perhaps what the writer has in its hand.
    assert!(matches!(setting.readers.get(), Some(1 | 2)));
    assert_eq!(*task.ready(), 5);
    drop((task, reader));
    cell.synchronize();
    eventually("all but the 5 are finalised", || log.entries().len() == 2);
}

/// The value of a build that was superseded may be where the one was that a writer has taken out of its `Arc`.
#[test]
fn g4_a_value_that_was_never_published_was_taken_for_the_one_in_the_cell() {
    let clock = ManualClock::new();
    let policy = Policy::ttl(TTL).lease_timeout(TICK);
    let cell = SyncReaderCell::with_clock(policy, clock.clone(), Drain::Background, drop::<[u64; 40]>);
    cell.set([1; 40]);
    clock.advance(2 * TTL);
    let is_made = AtomicBool::new(false);
    let mut superseded = pin!(cell.get_or_refresh_async(|| {
        poll_fn(|_| if is_made.load(Ordering::Relaxed) { Poll::Ready([2; 40]) } else { Poll::Pending })
    }));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(superseded.as_mut().poll(&mut cx).is_pending());
    clock.advance(2 * TICK);
    let mut invalidated = None;
    cell.request().no_cache().get_with_writer(|writer| {
        let _lock = writer.acquire_write_lock();
        is_made.store(true, Ordering::Relaxed);
        let Poll::Ready(value) = superseded.as_mut().poll(&mut cx) else { panic!("it is made") };
        invalidated = Some(cell.invalidate_if_current(&value));
        [3; 40]
    });
    assert_eq!((invalidated, cell.freshness()), (Some(false), Freshness::Fresh));
}
