//! What the tests share.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dogpile::{Clock, DogpileCell, Lease, Lookup, ManualClock, Pending, Policy};

pub(crate) const TTL: Duration = Duration::from_secs(10);
pub(crate) const TICK: Duration = Duration::from_nanos(1);

/// Real time, as a guard against a hang, not as a measure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(if cfg!(miri) { 1200 } else { 30 });

pub(crate) type Cell<T> = Arc<DogpileCell<T, ManualClock>>;

/// A cell with a ttl of [`TTL`] and its clock.
pub(crate) fn cell<T>() -> (Cell<T>, ManualClock) {
    cell_with(Policy::ttl(TTL))
}

pub(crate) fn cell_with<T>(policy: Policy) -> (Cell<T>, ManualClock) {
    let clock = ManualClock::new();
    (Arc::new(DogpileCell::with_clock(policy, clock.clone())), clock)
}

/// No retry pauses, and no stale value in place of an error.
pub(crate) const fn plain(policy: Policy) -> Policy {
    policy.retry_backoff(Duration::ZERO, Duration::ZERO).stale_if_error(Duration::ZERO)
}

/// A cell that holds `value`, which has just become stale.
pub(crate) fn stale_cell<T>(value: T) -> (Cell<T>, ManualClock) {
    let (cell, clock) = cell();
    cell.set(value);
    clock.advance(TTL + TICK);
    (cell, clock)
}

pub(crate) trait LookupExt<'a, T, C: Clock> {
    fn elected(self) -> Lease<'a, T, C>;
    fn pending(self) -> Pending<'a, T, C>;
}

impl<'a, T, C: Clock> LookupExt<'a, T, C> for Lookup<'a, T, C> {
    #[track_caller]
    fn elected(self) -> Lease<'a, T, C> {
        match self {
            Lookup::Elected(lease) => lease,
            other => panic!("expected to be elected, got {other:?}"),
        }
    }

    #[track_caller]
    fn pending(self) -> Pending<'a, T, C> {
        match self {
            Lookup::Pending(pending) => pending,
            other => panic!("expected to be pending, got {other:?}"),
        }
    }
}

/// A waker that counts how often it is called.
#[derive(Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wakes {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A future that is polled by hand.
pub(crate) struct Hand<'a, T> {
    future: Pin<Box<dyn Future<Output = T> + 'a>>,
    wakes: Arc<Wakes>,
}

impl<'a, T> Hand<'a, T> {
    pub(crate) fn new(future: impl Future<Output = T> + 'a) -> Self {
        Self { future: Box::pin(future), wakes: Arc::default() }
    }

    pub(crate) fn poll(&mut self) -> Poll<T> {
        let waker = Waker::from(Arc::clone(&self.wakes));
        self.poll_with(&waker)
    }

    pub(crate) fn poll_with(&mut self, waker: &Waker) -> Poll<T> {
        self.future.as_mut().poll(&mut Context::from_waker(waker))
    }

    /// Polls it, and it has to be pending.
    #[track_caller]
    pub(crate) fn pending(&mut self) -> &mut Self {
        assert!(self.poll().is_pending(), "it should have been pending");
        self
    }

    /// Polls it, and it has to be ready.
    #[track_caller]
    pub(crate) fn ready(&mut self) -> T {
        match self.poll() {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it should have been ready"),
        }
    }

    /// Polls it until it is ready: another thread is about to see to that.
    pub(crate) fn eventually_ready(&mut self) -> T {
        let mut value = None;
        eventually("it is ready", || {
            if let Poll::Ready(ready) = self.poll() {
                value = Some(ready);
            }
            value.is_some()
        });
        value.unwrap()
    }

    pub(crate) fn wakes(&self) -> usize {
        self.wakes.count()
    }

    /// What is left of it when it has been dropped.
    pub(crate) fn wakes_handle(&self) -> Arc<Wakes> {
        Arc::clone(&self.wakes)
    }

    /// Whether the waker is kept anywhere.
    pub(crate) fn is_listed(&self) -> bool {
        Arc::strong_count(&self.wakes) > 1
    }
}

/// Polls `future` for as long as it is woken. It has to end by itself: nothing else wakes it.
#[track_caller]
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let mut hand = Hand::new(future);
    loop {
        let before = hand.wakes();
        match hand.poll() {
            Poll::Ready(output) => return output,
            Poll::Pending => assert!(hand.wakes() > before, "it waits for ever"),
        }
    }
}

/// Something to wait for: tasks are suspended at it until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Door(Arc<Mutex<DoorState>>);

#[derive(Default)]
struct DoorState {
    is_open: bool,
    waiting: Vec<Waker>,
}

impl Door {
    pub(crate) fn open(&self) {
        let waiting = {
            let mut state = self.0.lock().unwrap();
            state.is_open = true;
            std::mem::take(&mut state.waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }

    pub(crate) async fn pass(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock().unwrap();
            if state.is_open {
                return Poll::Ready(());
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Counts the builds that run; there is room for one.
#[derive(Clone, Default)]
pub(crate) struct Room(Arc<AtomicUsize>);

pub(crate) struct Inside(Arc<AtomicUsize>);

impl Room {
    #[track_caller]
    pub(crate) fn enter(&self) -> Inside {
        let inside = Inside(Arc::clone(&self.0));
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst), 0, "two build at a time");
        inside
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A build for a caller that is not to build.
pub(crate) async fn unbuilt<T>() -> T {
    unreachable!("it is served, or waits for another build")
}

/// As [`unbuilt`], for one that may fail.
pub(crate) async fn untried<T>() -> Result<T, &'static str> {
    unreachable!("it is served, or waits for another build")
}

/// A build that never ends.
pub(crate) async fn never<T>() -> T {
    std::future::pending().await
}

/// Looks until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "hangs: {what}");
        thread::yield_now();
    }
}

/// The same, for a task.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "hangs: {what}");
        futures_lite::future::yield_now().await;
    }
}

/// The result of a thread, which must not hang.
#[track_caller]
pub(crate) fn joined<T>(thread: JoinHandle<T>) -> T {
    eventually("the thread", || thread.is_finished());
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Runs `f` on a thread of its own, which must not hang.
pub(crate) fn guarded<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = channel();
    let thread = thread::spawn(move || drop(sender.send(f())));
    match receiver.recv_timeout(2 * PATIENCE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => panic!("hangs"),
        Err(RecvTimeoutError::Disconnected) => resume_unwind(thread.join().expect_err("it has sent nothing")),
    }
}

/// The payload of the panics that tests raise.
pub(crate) struct Planned;

/// Panics without troubling the hook.
pub(crate) fn panic_as_planned() -> ! {
    resume_unwind(Box::new(Planned))
}

/// Whether `panic` is one of those.
pub(crate) fn is_planned(panic: &(dyn Any + Send)) -> bool {
    panic.is::<Planned>()
}

/// Runs `f`, which is expected to panic as planned.
#[track_caller]
pub(crate) fn panics_as_planned<R>(f: impl FnOnce() -> R) {
    let panic = catch_unwind(AssertUnwindSafe(f)).err().expect("it should have panicked");
    if !is_planned(&*panic) {
        resume_unwind(panic);
    }
}

/// Runs `f`, which is expected to panic, and returns the message.
#[track_caller]
pub(crate) fn panic_message<R>(f: impl FnOnce() -> R) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).err().expect("it should have panicked");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().expect("a panic with a message")).to_owned(),
    }
}
