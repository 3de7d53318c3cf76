//! A refresher whose builds wait for what they are to find, on a thread or as a task that is polled by hand.
//!
//! A thread is seen going to sleep by the clock, so nothing is left to chance: if it has looked at the present time, and
//! sleeps no longer than to the tick at which the model wants it to build, it has no more to do. (One that sleeps for ever cannot be seen. What it would
//! do wrong shows at the next operation.) A task is polled when it was woken, and only then.

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
use crate::runner::TestCell;
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

/// Where a refresher's thread sleeps.
#[derive(Clone, Default)]
pub(crate) struct Bed(Arc<Mutex<Option<Nap>>>);

#[derive(Clone, Copy, Debug)]
struct Nap {
    until: Tick,
    /// When the sleeper last looked.
    looked: Tick,
}

impl Bed {
    /// [`Clock::park_until`] for any thread.
    pub(crate) fn park_until(&self, clock: &ManualClock, deadline: Tick, now: Tick) {
        let is_refresher = std::thread::current().name() == Some("dogpile-refresher");
        if is_refresher {
            *lock(&self.0) = Some(Nap { until: deadline, looked: now });
        }
        clock.park_until(deadline, now);
        if is_refresher {
            *lock(&self.0) = None;
        }
    }

    /// Whether somebody who has looked at the present time sleeps, and not for too long.
    fn is_slept_in(&self, until: Duration, clock: &ManualClock) -> bool {
        let until = Tick::default().saturating_add(until);
        let now = clock.now();
        let is_slept_in = lock(&self.0).is_some_and(|nap| nap.until <= until && nap.looked == now);
        if !is_slept_in {
            // A step of the clock between the sleeper's look and its lying down has not woken it.
            clock.advance(Duration::ZERO);
        }
        is_slept_in
    }
}

/// A build that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) previous: Option<Number>,
}

/// Between the test and the builds.
#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Until somebody looks.
    begun: Option<Begun>,
    end: Option<End>,
    /// The test is over.
    closed: bool,
    #[cfg(feature = "async")]
    waker: Option<Waker>,
}

impl Desk {
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
    desk: Arc<Desk>,
    bed: Bed,
    refresher: Option<Refresher>,
    is_task: bool,
    #[cfg(feature = "async")]
    task: Option<Task>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Its drop waits for a build that waits for its end.
        self.desk.announce(|state| state.closed = true);
    }
}

impl Attached {
    /// `None`: it is refused.
    pub(crate) fn attach(
        cell: &Arc<TestCell>,
        ledger: &Arc<Ledger>,
        bed: &Bed,
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
        let (desk, ledger) = (Arc::<Desk>::default(), Arc::clone(ledger));
        let at_desk = Arc::clone(&desk);
        #[cfg(feature = "async")]
        if is_task {
            let mut task = None;
            let spawn = |future| task = Some(Task { future, woken: Arc::new(Woken(AtomicBool::new(true))) });
            let refresher = options.spawn_async(cell, ahead, spawn, move |previous: Option<Arc<Token>>| {
                at_desk.begin(previous.map(|previous| ledger.number(&previous)));
                let desk = Arc::clone(&at_desk);
                poll_fn(move |cx| {
                    let mut state = lock(&desk.state);
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
            return Some(Self { desk, bed: bed.clone(), refresher, is_task, task });
        }
        let _ = is_task; // There are no tasks.
        let refresher = options.spawn(cell, ahead, move |previous: Option<Arc<Token>>| {
            at_desk.begin(previous.map(|previous| ledger.number(&previous)));
            match at_desk.wait() {
                Some(end) => end(),
                None => Err(ledger.error()),
            }
        });
        let refresher = Some(accepted(refresher)?);
        Some(Self {
            desk,
            bed: bed.clone(),
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
            assert_eq!(lock(&self.desk.state).begun.take(), begun, "the build that has begun");
            return;
        }
        let has_begun = || lock(&self.desk.state).begun.is_some();
        match activity {
            Activity::Building(_) if begun.is_some() => {
                assert!(eventually(has_begun), "no build begins");
            }
            Activity::Building(_) | Activity::Sleeping(None) => {}
            Activity::Sleeping(Some(until)) => {
                let sleeps = || has_begun() || self.bed.is_slept_in(until, clock);
                assert!(
                    eventually(sleeps),
                    "it does not sleep, or for longer than until {until:?}, at {clock:?}: {:?}",
                    lock(&self.bed.0)
                );
            }
        }
        assert_eq!(lock(&self.desk.state).begun.take(), begun, "the build that has begun");
    }

    /// Ends the running build.
    pub(crate) fn conclude(&self, end: End) {
        self.desk.announce(|state| state.end = Some(end));
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
        let has_ended = || Arc::strong_count(&self.desk) == 1;
        assert!(eventually(has_ended), "it goes on");
        assert_eq!(lock(&self.desk.state).begun, None, "a build has begun");
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
