//! Wakers are code of the executor: called without a lock, the latest one only, and none at the cost of another.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use cooked_waker::IntoWaker as _;
use dogpile::{DogpileCell, Drain, ManualClock, Policy, SyncReaderCell};

use crate::support::{
    Cell, Hand, LookupExt, TICK, TTL, Wakes, cell, cell_with, eventually, guarded, joined, panic_as_planned,
};

fn counting() -> (Arc<Wakes>, Waker) {
    let counter = Arc::<Wakes>::default();
    let waker = Waker::from(Arc::clone(&counter));
    (counter, waker)
}

#[test]
fn only_the_latest_waker_is_called() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    let (first, second, third) = (counting(), counting(), counting());
    for (_, waker) in [&first, &second, &third] {
        assert!(task.poll_with(waker).is_pending());
    }
    // Nothing is kept of the others.
    let kept = |(counter, _): &(Arc<Wakes>, Waker)| Arc::strong_count(counter) - 2;
    assert_eq!((kept(&first), kept(&second)), (0, 0));
    assert!(kept(&third) > 0);
    assert_eq!(cell.stats().waits, 1);
    lease.publish(1);
    assert_eq!((first.0.count(), second.0.count(), third.0.count()), (0, 0, 1));
    assert_eq!(*task.ready(), 1);
}

#[test]
fn a_waker_that_stays_the_same_is_kept_once() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    let (counter, waker) = counting();
    for _ in 0..5 {
        assert!(task.poll_with(&waker).is_pending());
        // This one, the task's, and the one in `waker`.
        assert_eq!(Arc::strong_count(&counter), 3);
    }
    lease.publish(1);
    assert_eq!(counter.count(), 1);
}

#[test]
fn only_the_latest_waker_is_called_when_the_lease_times_out() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
    let _lease = cell.lookup().elected();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 1 }));
    let (first, second) = (counting(), counting());
    assert!(task.poll_with(&first.1).is_pending());
    assert!(task.poll_with(&second.1).is_pending());
    clock.advance(TTL + TICK);
    assert_eq!((first.0.count(), second.0.count()), (0, 1));
    assert_eq!(*task.ready(), 1);
}

#[test]
fn only_the_latest_waker_is_called_at_the_end_of_a_drain() {
    let drain = Drain::Wait(TTL);
    let cell = SyncReaderCell::with_clock(Policy::ttl(TTL), ManualClock::new(), drain, drop::<u32>);
    let reader = cell.set(1);
    cell.invalidate();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
    let (first, second) = (counting(), counting());
    assert!(task.poll_with(&first.1).is_pending());
    assert!(task.poll_with(&second.1).is_pending());
    drop(reader);
    assert_eq!((first.0.count(), second.0.count()), (0, 1));
    assert_eq!(*task.ready(), 2);
}

/// A waker that panics when it is called.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic_as_planned();
    }
}

#[test]
fn a_waker_that_panics_keeps_no_other_task_asleep() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut before = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    let mut panics = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    let mut after = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    before.pending();
    assert!(panics.poll_with(&Waker::from(Arc::new(Panics))).is_pending());
    after.pending();
    let thread = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || cell.get_or_refresh(|| 0))
    };
    eventually("the thread waits", || cell.stats().waits == 4);
    // Nor does the panic reach the one that publishes.
    lease.publish(7);
    assert_eq!((before.wakes(), after.wakes()), (1, 1));
    assert_eq!((*before.ready(), *panics.ready(), *after.ready(), *joined(thread)), (7, 7, 7, 7));
}

#[test]
fn a_waker_that_panics_stops_no_clock() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
    let _lease = cell.lookup().elected();
    let mut panics = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    let mut after = Hand::new(cell.get_or_refresh_async(|| async { 1 }));
    assert!(panics.poll_with(&Waker::from(Arc::new(Panics))).is_pending());
    after.pending();
    clock.advance(TTL + TICK);
    assert_eq!((after.wakes(), *after.ready()), (1, 1));
}

#[test]
fn a_waker_that_panics_loses_no_finalizer() {
    let cell = SyncReaderCell::with_policy(Policy::ttl(TTL), Drain::Background, drop::<u32>);
    let reader = cell.set(1);
    cell.set(2);
    let mut panics = Hand::new(cell.synchronize_async());
    let mut after = Hand::new(cell.synchronize_async());
    assert!(panics.poll_with(&Waker::from(Arc::new(Panics))).is_pending());
    after.pending();
    drop(reader);
    eventually("the other one is woken", || after.wakes() > 0);
    after.ready();
    panics.ready();
}

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task that does what it does right where it is woken.
struct Inline {
    what: fn(&Arc<Self>),
    future: Mutex<Option<Boxed>>,
    neighbours: Mutex<Vec<Arc<Inline>>>,
    done: AtomicBool,
}

impl Inline {
    fn new(what: fn(&Arc<Self>), future: impl Future<Output = ()> + Send + 'static) -> Arc<Self> {
        let future = Mutex::new(Some(Box::pin(future) as Boxed));
        Arc::new(Self { what, future, neighbours: Mutex::default(), done: AtomicBool::new(false) })
    }

    /// Polls the future, unless it is being polled already.
    fn poll(self: &Arc<Self>) {
        let Some(mut future) = self.future.lock().unwrap().take() else { return };
        let waker = Waker::from(Arc::clone(self));
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => self.done.store(true, Ordering::SeqCst),
            Poll::Pending => *self.future.lock().unwrap() = Some(future),
        }
    }

    /// Drops the future.
    fn cancel(self: &Arc<Self>) {
        let future = self.future.lock().unwrap().take();
        drop(future);
    }

    /// Drops the futures of all its neighbours, and its own.
    fn cancel_all(self: &Arc<Self>) {
        for neighbour in std::mem::take(&mut *self.neighbours.lock().unwrap()) {
            neighbour.cancel();
        }
        self.cancel();
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }
}

impl Wake for Inline {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        (self.what)(self);
    }
}

/// Tasks that wait for the build of another caller. What they get is added up.
fn inline_readers(what: fn(&Arc<Inline>), cell: &Cell<usize>, sum: &Arc<AtomicUsize>) -> Vec<Arc<Inline>> {
    let reader = || {
        let (cell, sum) = (Arc::clone(cell), Arc::clone(sum));
        let task = Inline::new(what, async move {
            let value = cell.get_or_refresh_async(|| async { 100 }).await;
            sum.fetch_add(*value, Ordering::SeqCst);
        });
        task.poll();
        assert!(!task.is_done());
        task
    };
    (0..3).map(|_| reader()).collect()
}

#[test]
fn a_waker_that_polls_at_once_does_not_deadlock() {
    guarded(|| {
        let (cell, _clock) = cell();
        let sum = Arc::default();
        let lease = cell.lookup().elected();
        let tasks = inline_readers(Inline::poll, &cell, &sum);
        lease.publish(1);
        assert!(tasks.iter().all(|task| task.is_done()));
        assert_eq!(sum.load(Ordering::SeqCst), 3);
        // An abandoned build wakes them too: the first one builds, inside the drop of the lease.
        cell.clear();
        let lease = cell.lookup().elected();
        let tasks = inline_readers(Inline::poll, &cell, &sum);
        drop(lease);
        assert!(tasks.iter().all(|task| task.is_done()));
        assert_eq!((sum.load(Ordering::SeqCst), cell.stats().builds), (303, 3));
        // And a set.
        cell.clear();
        let lease = cell.lookup().elected();
        let tasks = inline_readers(Inline::poll, &cell, &sum);
        cell.set(10);
        assert!(tasks.iter().all(|task| task.is_done()));
        assert_eq!(sum.load(Ordering::SeqCst), 333);
        drop(lease);
    });
}

#[test]
fn a_waker_that_drops_its_future_at_once_does_not_deadlock() {
    guarded(|| {
        let (cell, _clock) = cell();
        let sum = Arc::default();
        let lease = cell.lookup().elected();
        let tasks = inline_readers(Inline::cancel, &cell, &sum);
        let mut other = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
        other.pending();
        lease.publish(1);
        assert!(tasks.iter().all(|task| !task.is_done() && task.future.lock().unwrap().is_none()));
        assert_eq!((other.wakes(), *other.ready(), sum.load(Ordering::SeqCst)), (1, 1, 0));
    });
}

#[test]
fn a_waker_that_drops_the_futures_of_others_does_not_deadlock() {
    guarded(|| {
        let (cell, _clock) = cell();
        let sum = Arc::default();
        let lease = cell.lookup().elected();
        let tasks = inline_readers(Inline::cancel_all, &cell, &sum);
        tasks[0].neighbours.lock().unwrap().extend(tasks[1..].iter().cloned());
        let mut other = Hand::new(cell.get_or_refresh_async(|| async { 7 }));
        other.pending();
        drop(lease);
        assert_eq!((other.wakes(), *other.ready()), (1, 7));
    });
}

#[test]
fn a_waker_that_polls_at_once_may_be_called_by_a_clock() {
    guarded(|| {
        let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
        let sum = Arc::default();
        let lease = cell.lookup().elected();
        let tasks = inline_readers(Inline::poll, &cell, &sum);
        clock.advance(TTL + TICK);
        assert!(tasks.iter().all(|task| task.is_done()));
        assert_eq!((sum.load(Ordering::SeqCst), cell.stats().superseded), (300, 1));
        drop(lease);
    });
}

#[test]
fn a_waker_that_polls_at_once_may_be_called_by_a_reader_that_leaves() {
    guarded(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let finalizer = {
            let log = Arc::clone(&log);
            move |value| log.lock().unwrap().push(value)
        };
        let drain = Drain::Wait(Duration::MAX);
        let cell =
            Arc::new(SyncReaderCell::with_clock(Policy::ttl(TTL), ManualClock::new(), drain, finalizer));
        let reader = cell.set(1);
        cell.invalidate();
        let builder = {
            let cell = Arc::clone(&cell);
            Inline::new(Inline::poll, async move {
                assert_eq!(*cell.get_or_refresh_async(|| async { 2 }).await, 2);
            })
        };
        let synchronizer = {
            let cell = Arc::clone(&cell);
            Inline::new(Inline::poll, async move { cell.synchronize_async().await })
        };
        builder.poll();
        synchronizer.poll();
        assert!(cell.is_refreshing() && !synchronizer.is_done());
        drop(reader);
        assert!(builder.is_done() && synchronizer.is_done() && !cell.is_refreshing());
        assert_eq!(*log.lock().unwrap(), [1]);
    });
}

/// A waker that uses the cell each time that it is cloned, called or dropped, and counts these times.
struct Meddler {
    cell: Arc<DogpileCell<u32, ManualClock>>,
    numbers: Option<Arc<SyncReaderCell<u32, ManualClock>>>,
    times: Arc<[AtomicUsize; 3]>,
    /// Not within itself.
    inside: Arc<AtomicBool>,
}

impl Meddler {
    fn meddle(&self, what: usize) {
        self.times[what].fetch_add(1, Ordering::SeqCst);
        if self.inside.swap(true, Ordering::SeqCst) {
            return;
        }
        // Each takes a lock: of the cell, of the attempt that is waited for, of the clock.
        self.cell.invalidate();
        drop(self.cell.lookup());
        let mut task = Hand::new(self.cell.request().max_stale(Duration::ZERO).get_async(|| async { 9 }));
        let _ = task.poll();
        drop(task);
        if let Some(numbers) = &self.numbers {
            let _ = (numbers.readers(), numbers.retired());
            let mut task = Hand::new(numbers.synchronize_async());
            let _ = task.poll();
        }
        self.inside.store(false, Ordering::SeqCst);
    }
}

impl Clone for Meddler {
    fn clone(&self) -> Self {
        self.meddle(0);
        Self {
            cell: Arc::clone(&self.cell),
            numbers: self.numbers.clone(),
            times: Arc::clone(&self.times),
            inside: Arc::clone(&self.inside),
        }
    }
}

impl cooked_waker::WakeRef for Meddler {
    fn wake_by_ref(&self) {
        self.meddle(1);
    }
}

impl cooked_waker::Wake for Meddler {}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.meddle(2);
    }
}

fn meddler(
    cell: &Cell<u32>,
    numbers: Option<&Arc<SyncReaderCell<u32, ManualClock>>>,
) -> (Waker, Arc<[AtomicUsize; 3]>) {
    let times = Arc::<[AtomicUsize; 3]>::default();
    let meddler = Meddler {
        cell: Arc::clone(cell),
        numbers: numbers.cloned(),
        times: Arc::clone(&times),
        inside: Arc::default(),
    };
    (Box::new(meddler).into_waker(), times)
}

/// Cloned, called and dropped, each at least so often.
#[track_caller]
fn was_used(times: &[AtomicUsize; 3]) {
    for (times, what) in times.iter().zip(["cloned", "called", "dropped"]) {
        assert!(times.load(Ordering::SeqCst) > 0, "never {what}");
    }
}

#[test]
fn a_waker_may_use_the_cell_that_it_waits_for() {
    guarded(|| {
        let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
        let (first, first_times) = meddler(&cell, None);
        let (second, second_times) = meddler(&cell, None);
        let lease = cell.lookup().elected();
        let mut task = Hand::new(cell.get_or_refresh_async(|| async { 1 }));
        // One takes the place of the other, twice.
        for waker in [&first, &second, &first, &second] {
            assert!(task.poll_with(waker).is_pending());
        }
        lease.publish(7);
        // The wakers have invalidated it, and built it anew.
        assert!([1, 7, 9].contains(&*task.ready()));
        drop(task);
        // By the clock.
        cell.clear();
        let lease = cell.lookup().elected();
        let mut task = Hand::new(cell.get_or_refresh_async(|| async { 1 }));
        for waker in [&second, &first] {
            assert!(task.poll_with(waker).is_pending());
        }
        clock.advance(TTL + TICK);
        drop(lease);
        let _ = task.ready();
        // Given up.
        cell.clear();
        let _lease = cell.lookup().elected();
        let mut task = Hand::new(cell.get_or_refresh_async(|| async { 1 }));
        assert!(task.poll_with(&second).is_pending());
        drop(task);
        drop((first, second));
        was_used(&first_times);
        was_used(&second_times);
    });
}

#[test]
fn a_waker_may_use_the_cell_whose_drain_it_waits_for() {
    guarded(|| {
        let clock = ManualClock::new();
        let drain = Drain::Wait(TTL);
        let numbers =
            Arc::new(SyncReaderCell::with_clock(Policy::ttl(TTL), clock.clone(), drain, drop::<u32>));
        let (cell, _clock) = cell();
        cell.set(1);
        let (first, first_times) = meddler(&cell, Some(&numbers));
        let (second, second_times) = meddler(&cell, Some(&numbers));
        for (end, wakers) in [(true, [&first, &second]), (false, [&second, &first])] {
            let reader = numbers.set(1);
            numbers.invalidate();
            let mut task = Hand::new(numbers.get_or_refresh_async(|| async { 2 }));
            for waker in wakers.into_iter().cycle().take(4) {
                assert!(task.poll_with(waker).is_pending());
            }
            if end {
                drop(reader);
                assert_eq!(*task.ready(), 2);
            } else {
                // The clock first, and then it is given up.
                clock.advance(TTL - TICK);
                drop(task);
                drop(reader);
            }
        }
        drop((first, second));
        was_used(&first_times);
        was_used(&second_times);
    });
}

type Deed = Box<dyn FnOnce() + Send>;

/// A waker that does something each time that it is cloned: what others may do just then.
#[derive(Default)]
struct OnClone {
    deeds: Arc<Mutex<VecDeque<Deed>>>,
    wakes: Arc<Wakes>,
}

impl OnClone {
    /// `deed` is done at clone number `number`, counted from 0.
    fn waker(number: usize, deed: impl FnOnce() + Send + 'static) -> (Waker, Arc<Wakes>) {
        let this = Self::default();
        {
            let mut deeds = this.deeds.lock().unwrap();
            deeds.extend((0..number).map(|_| Box::new(|| ()) as Deed));
            deeds.push_back(Box::new(deed));
        }
        let counter = Arc::clone(&this.wakes);
        (Box::new(this).into_waker(), counter)
    }
}

impl Clone for OnClone {
    fn clone(&self) -> Self {
        let deed = self.deeds.lock().unwrap().pop_front();
        if let Some(deed) = deed {
            deed();
        }
        Self { deeds: Arc::clone(&self.deeds), wakes: Arc::clone(&self.wakes) }
    }
}

impl cooked_waker::WakeRef for OnClone {
    fn wake_by_ref(&self) {
        Wake::wake_by_ref(&self.wakes);
    }
}

impl cooked_waker::Wake for OnClone {}

/// It wakes no task, since none is on the list yet.
#[test]
fn what_is_published_while_a_task_takes_its_place_is_seen() {
    guarded(|| {
        let (cell, _clock) = cell();
        let lease = cell.lookup_owned().elected();
        let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
        let (waker, counter) = OnClone::waker(0, || drop(lease.publish(7)));
        assert!(matches!(task.poll_with(&waker), Poll::Ready(value) if *value == 7));
        assert_eq!((counter.count(), cell.stats().waits), (0, 1));
    });
}

/// The waker that was on the list is called, or the new one, or it is seen at once: not lost in between.
#[test]
fn what_is_published_while_a_task_changes_its_waker_is_seen() {
    guarded(|| {
        let (cell, _clock) = cell();
        let lease = cell.lookup_owned().elected();
        let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
        task.pending();
        let (waker, _) = OnClone::waker(0, || drop(lease.publish(7)));
        assert!(matches!(task.poll_with(&waker), Poll::Ready(value) if *value == 7));
    });
}

#[test]
fn a_time_that_comes_while_a_task_takes_its_place_is_seen() {
    guarded(|| {
        // The task's waker is cloned for the list, and for the clock.
        for number in 0..2 {
            let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
            let _lease = cell.lookup().elected();
            let mut task = Hand::new(cell.get_or_refresh_async(|| async { 7 }));
            let (waker, counter) = OnClone::waker(number, move || clock.advance(TTL + TICK));
            match task.poll_with(&waker) {
                Poll::Ready(value) => assert_eq!(*value, 7),
                Poll::Pending => assert!(counter.count() > 0, "it sleeps for ever"),
            }
        }
    });
}

#[test]
fn readers_that_leave_while_a_task_takes_its_place_are_seen() {
    guarded(|| {
        for changes in [false, true] {
            let drain = Drain::Wait(Duration::MAX);
            let cell = SyncReaderCell::with_clock(Policy::ttl(TTL), ManualClock::new(), drain, drop::<u32>);
            let reader = cell.set(1);
            cell.invalidate();
            let mut task = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
            if changes {
                task.pending();
            }
            let (waker, _) = OnClone::waker(0, || drop(reader));
            // It finalises at once what is ready then; or the cell's own thread has begun to, and wakes it.
            if task.poll_with(&waker).is_pending() {
                cell.synchronize();
                task.ready();
            }
            assert_eq!((cell.generation(), cell.retired()), (2, 0));
        }
    });
}

/// The last reference to a waker may be the list's, if the future is dropped when it is woken. Some wakers drop their
/// whole task then.
#[test]
fn a_waker_whose_drop_panics_keeps_no_other_task_asleep() {
    struct Bomb(Mutex<Option<Boxed>>);
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            self.wake_by_ref();
        }

        fn wake_by_ref(self: &Arc<Self>) {
            let future = self.0.lock().unwrap().take();
            drop(future);
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_as_planned();
        }
    }
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let bomb = Arc::new(Bomb(Mutex::default()));
    {
        let cell = Arc::clone(&cell);
        let mut future: Boxed =
            Box::pin(async move { drop(cell.get_or_refresh_async(|| async { 0 }).await) });
        let waker = Waker::from(Arc::clone(&bomb));
        assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        *bomb.0.lock().unwrap() = Some(future);
    }
    drop(bomb);
    let mut after = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    after.pending();
    // Whether the panic reaches the caller that publishes or not, ...
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lease.publish(7)));
    // ... the other one is woken.
    assert_eq!((after.wakes(), *after.ready()), (1, 7));
}
