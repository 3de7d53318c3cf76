//! A refresher whose builds wait until the test ends them, on a thread or as a task that is polled by hand.
//!
//! The clock shows when a thread goes to sleep, so nothing is left to chance: if the thread has looked at the present time, and
//! sleeps no longer than to the tick at which the model wants it to build, it has no more to do. (A thread that sleeps for ever
//! is not seen. If it should not, the next operation shows that.) A task is polled when it was woken, and only then.

use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dogpile::{Clock, ManualClock, Refreshed, Refresher, Tick};

#[cfg(feature = "async")]
use {
    std::future::{Future, poll_fn},
    std::pin::Pin,
    std::sync::atomic::{AtomicBool, Ordering},
    std::task::{Context, Poll, Wake, Waker},
};

use crate::model::{Activity, Number, Trouble};
use crate::panics::eventually;
use crate::runner::Dogpile;
use crate::tokens::{Ledger, NetworkError, Token};

/// What a build panics with.
const MESSAGE: &str = "as planned";

pub(crate) type Ended = Result<Refreshed<Token>, NetworkError>;

/// Ends a build, on the thread of that build.
pub(crate) type End = Box<dyn FnOnce() -> Ended + Send>;

/// The end of a build that panics.
pub(crate) fn panics() -> Ended {
    resume_unwind(Box::new(MESSAGE))
}

/// The sleep of a refresher's thread.
#[derive(Clone, Default)]
pub(crate) struct ParkedThread(Arc<Mutex<Option<Parked>>>);

#[derive(Clone, Copy, Debug)]
struct Parked {
    until: Tick,
    /// When it last looked.
    looked: Tick,
}

impl ParkedThread {
    /// [`Clock::park_until`] for that thread.
    pub(crate) fn park_until(&self, clock: &ManualClock, deadline: Tick, now: Tick) {
        let thread = std::thread::current();
        assert_eq!(thread.name(), Some("dogpile-refresher"), "no other thread waits on a clock");
        *lock(&self.0) = Some(Parked { until: deadline, looked: now });
        clock.park_until(deadline, now);
        *lock(&self.0) = None;
    }

    /// Whether the thread has looked at the present time and sleeps, and not for too long.
    fn is_parked(&self, until: Duration, clock: &ManualClock) -> bool {
        let until = Tick::default().saturating_add(until);
        let now = clock.now();
        let is_parked = lock(&self.0).is_some_and(|parked| parked.until <= until && parked.looked == now);
        if !is_parked {
            // A step of the clock between its look and its sleep has not woken it.
            clock.advance(Duration::ZERO);
        }
        is_parked
    }
}

/// A build that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) previous: Option<Number>,
}

/// Between the test and the builds.
#[derive(Default)]
struct Exchange {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Until the test looks.
    begun: Option<Begun>,
    end: Option<End>,
    /// The test is over.
    closed: bool,
    #[cfg(feature = "async")]
    waker: Option<Waker>,
}

impl Exchange {
    fn begin(&self, previous: Option<Number>) {
        let former = lock(&self.state).begun.replace(Begun { previous });
        assert!(former.is_none(), "two builds have begun");
    }

    fn wait(&self) -> Option<End> {
        let mut state = lock(&self.state);
        while state.end.is_none() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.end.take()
    }

    fn announce(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        #[cfg(feature = "async")]
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        #[cfg(feature = "async")]
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a refresher works.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    /// `None`: the default.
    pub(crate) min_interval: Option<Duration>,
    pub(crate) rests: bool,
    pub(crate) is_task: bool,
}

/// A refresher, and how it is driven.
pub(crate) struct Attached {
    exchange: Arc<Exchange>,
    parked: ParkedThread,
    refresher: Option<Refresher>,
    is_task: bool,
    #[cfg(feature = "async")]
    task: Option<Task>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Its drop waits for a build that waits for its end.
        self.exchange.announce(|state| state.closed = true);
    }
}

impl Attached {
    /// `None`: it is refused.
    pub(crate) fn attach(
        cell: &Arc<Dogpile>,
        ledger: &Arc<Ledger>,
        parked: &ParkedThread,
        ahead: Duration,
        Options { min_interval, rests, is_task }: Options,
    ) -> Option<Self> {
        let mut options = Refresher::options();
        if let Some(min_interval) = min_interval {
            options = options.min_interval(min_interval);
        }
        if rests {
            options = options.rest_when_unused();
        }
        let (exchange, ledger) = (Arc::<Exchange>::default(), Arc::clone(ledger));
        let of_build = Arc::clone(&exchange);
        #[cfg(feature = "async")]
        if is_task {
            let mut task = None;
            let spawn = |future| task = Some(Task { future, woken: Arc::new(Woken(AtomicBool::new(true))) });
            let refresher = options.spawn_async(cell, ahead, spawn, move |previous: Option<Arc<Token>>| {
                of_build.begin(previous.map(|previous| ledger.number(&previous)));
                let exchange = Arc::clone(&of_build);
                poll_fn(move |cx| {
                    let mut state = lock(&exchange.state);
                    match state.end.take() {
                        Some(end) => {
                            drop(state);
                            Poll::Ready(end())
                        }
                        None => {
                            state.waker = Some(cx.waker().clone());
                            Poll::Pending
                        }
                    }
                })
            });
            let refresher = Some(accepted(refresher)?);
            return Some(Self { exchange, parked: parked.clone(), refresher, is_task, task });
        }
        let _ = is_task; // There are no tasks.
        let refresher = options.spawn(cell, ahead, move |previous: Option<Arc<Token>>| {
            of_build.begin(previous.map(|previous| ledger.number(&previous)));
            match of_build.wait() {
                Some(end) => end(),
                None => Err(ledger.error()),
            }
        });
        let refresher = Some(accepted(refresher)?);
        Some(Self {
            exchange,
            parked: parked.clone(),
            refresher,
            is_task: false,
            #[cfg(feature = "async")]
            task: None,
        })
    }

    /// Whether it is driven by hand.
    pub(crate) fn is_task(&self) -> bool {
        self.is_task
    }

    /// Lets it run as far as it comes. `begun`: the build that it has to begin.
    pub(crate) fn run(&mut self, activity: Activity, begun: Option<Begun>, clock: &ManualClock) {
        #[cfg(feature = "async")]
        if let Some(task) = &mut self.task {
            assert!(task.run().is_pending(), "the refresher has ended");
            assert_eq!(lock(&self.exchange.state).begun.take(), begun, "the build that has begun");
            return;
        }
        let has_begun = || lock(&self.exchange.state).begun.is_some();
        match activity {
            Activity::Building(_) if begun.is_some() => {
                assert!(eventually(has_begun), "no build begins");
            }
            Activity::Building(_) | Activity::Sleeping(None) => {}
            Activity::Sleeping(Some(until)) => {
                let sleeps = || has_begun() || self.parked.is_parked(until, clock);
                assert!(
                    eventually(sleeps),
                    "it does not sleep, or for longer than until {until:?}, at {clock:?}: {:?}",
                    lock(&self.parked.0)
                );
            }
        }
        assert_eq!(lock(&self.exchange.state).begun.take(), begun, "the build that has begun");
    }

    /// Ends the running build.
    pub(crate) fn conclude(&self, end: End) {
        self.exchange.announce(|state| state.end = Some(end));
    }

    /// Drops it. If a build runs on a thread, that is done by its `end`.
    pub(crate) fn detach(mut self, end: Option<End>) {
        let refresher = self.refresher.take();
        match end {
            Some(end) if !self.is_task() => self.conclude(Box::new(move || {
                drop(refresher);
                end()
            })),
            _ => drop(refresher),
        }
        self.ends();
    }

    /// Waits for its end, which has come because it was dropped, or its cell.
    pub(crate) fn ends(mut self) {
        #[cfg(feature = "async")]
        if let Some(task) = &mut self.task {
            assert!(task.run().is_ready(), "it goes on");
            self.task = None;
        }
        // Its build owns the other one.
        let has_ended = || Arc::strong_count(&self.exchange) == 1;
        assert!(eventually(has_ended), "it goes on");
        assert_eq!(lock(&self.exchange.state).begun, None, "a build has begun");
        self.refresher = None;
    }

    pub(crate) fn refresh_now(&self) {
        self.refresher.as_ref().expect("it is attached").refresh_now();
    }

    /// For no time.
    pub(crate) fn wait_ready(&self) -> bool {
        self.refresher.as_ref().expect("it is attached").wait_ready(Duration::ZERO)
    }

    pub(crate) fn trouble(&self, ledger: &Arc<Ledger>) -> Trouble {
        let refresher = self.refresher.as_ref().expect("it is attached");
        Trouble {
            failures: refresher.consecutive_failures(),
            last_error: refresher.last_error().map(|error| ledger.fault(&error)),
        }
    }
}

fn accepted(refresher: std::io::Result<Refresher>) -> Option<Refresher> {
    refresher.map_err(|error| assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}")).ok()
}

/// A task, polled by hand.
#[cfg(feature = "async")]
struct Task {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    woken: Arc<Woken>,
}

#[cfg(feature = "async")]
struct Woken(AtomicBool);

#[cfg(feature = "async")]
impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[cfg(feature = "async")]
impl Task {
    /// Polls it as often as it is woken.
    fn run(&mut self) -> Poll<()> {
        let waker = Waker::from(Arc::clone(&self.woken));
        while self.woken.0.swap(false, Ordering::SeqCst) {
            if self.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}
