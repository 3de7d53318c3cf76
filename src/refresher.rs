//! Somebody who looks after a cell, so that no reader ever builds.
//!
//! # States
//!
//! A [`Keeper`] goes round: it asks the cell for its [`Plan`], and then *sleeps*, until the tick that the plan names or until
//! its [`Signal`] is rung (something has changed, or is to stop), or *builds*, with a lease like everybody else. So whatever
//! happens meanwhile (an `invalidate`, a build of somebody else's, a failure) leads to a new plan, and there is nothing to
//! be kept in step. It runs on a thread or as a task; only the sleep and the build differ.
//!
//! It holds the cell only from a plan to the end of a build, and the cell rings for the last time when it is dropped.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};
use std::time::Duration;

use crate::background::SharedCell;
use crate::background::sealed::Owned;
use crate::cell::Held;
use crate::cell::machine::{Decision, Demand, Home, Plan};
use crate::clock::{Clock, FOREVER, nanos};
use crate::contain::contain;
use crate::error::SharedError;
use crate::own_thread;
use crate::seats::Sleeper;
use crate::signal::Signal;
use crate::sync::{Arc, JoinHandle, Mutex, ThreadBuilder};
use crate::wait::wait_until;

#[cfg(feature = "async")]
use {
    crate::wait::Nap,
    std::pin::{Pin, pin},
    std::task::Poll,
};

/// The pauses after failures where the policy has none of its own: nobody wants a source that is down to be asked in a
/// loop.
const FIRST_PAUSE: u64 = 100_000_000;
const LONGEST_PAUSE: u64 = 10_000_000_000;

/// What a build of a [`Refresher`]'s has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed<T> {
    /// A new value.
    New(T),
    /// A new value that chooses its own time to live. See [`Lease::publish_for`](crate::Lease::publish_for).
    NewFor(T, Duration),
    /// The previous value is still right, and counts as fresh again. See [`Lease::renew`](crate::Lease::renew).
    NotModified,
}

impl<T> From<T> for Refreshed<T> {
    fn from(value: T) -> Self {
        Self::New(value)
    }
}

/// Rebuilds a cell's value before it goes out of date, so that readers never build and never see a stale value: as long as
/// builds succeed, and take less than `ahead` and than half of the value's time to live. (Slower ones are served stale
/// meanwhile.)
///
/// It builds at once if there is no value or a stale one, and then `ahead` of the end of each value's time to live,
/// but not before half of that is over. A value is fresh up to and including its ttl, so its age is then
/// `ttl - ahead` and a nanosecond, or half of the ttl, whichever is more. (A value that is published for less than a
/// millisecond, because its source says "do not keep it", is rebuilt after 100 ms.) An
/// [`invalidate`](crate::DogpileCell::invalidate) or a [`clear`](crate::DogpileCell::clear) wakes it early.
///
/// A test moves a [`ManualClock`](crate::ManualClock) by that age, after the publication, which comes after whatever the
/// build does: [how to wait for it](crate::guide::manual_clock#a-refresher-in-a-test).
///
/// # What readers observe
///
/// The cell is used as before. While a refresher is attached, readers leave building to it as long as they can be
/// served. So if staleness is not bounded ([`Policy::stale_while_refresh`](crate::Policy::stale_while_refresh)), a
/// read consults no clock at all, except for those reads that tell fresh from stale: `lookup`, `freshness`,
/// `snapshot`, `get_fresh_or_refresh`. A reader that finds nothing to serve builds, or waits for the refresher's
/// build.
///
/// # Failures
///
/// After a build that fails or panics the value stays, [`last_error`](Refresher::last_error) and
/// [`consecutive_failures`](Refresher::consecutive_failures) show it, and the next attempt waits for the policy's
/// retry pause ([`Policy::retry_backoff`](crate::Policy::retry_backoff)); without one, for 100 ms, doubled with each
/// failure up to 10 s. A panic is reported by the panic hook and goes no further. (A panic of the cell's clock ends the
/// refresher: it is shown in the same way, and readers build again.)
///
/// A build that never ends keeps the lease. With a [`lease_timeout`](crate::Policy::lease_timeout) another caller can be
/// elected in its place: one that asks for a fresh value, or any, once the value has expired. Bound the staleness, if
/// builds may hang.
///
/// # Dropping
///
/// Stops it and joins its thread, waking it if it sleeps. A build that runs is waited for, and published. If it is
/// dropped from inside a refresher's build, its own or another's, that does not wait: it stops when its build has ended. An async one is told to stop: readers build again
/// at once; but if a build runs, it has the lease until it is dropped, when the task is next polled.
///
/// Given an [`Arc`], it does not keep the cell alive: when the last user drops it, the refresher ends by itself. Drop it
/// before you take the cell out of its `Arc` ([`Arc::try_unwrap`]): it cannot find a cell that has moved, whose readers go on
/// leaving the building to it until the next `invalidate`, `set` or `clear` after its drop.
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Refresher};
/// use std::io;
/// use std::sync::{Arc, mpsc};
/// use std::time::Duration;
///
/// # fn main() -> io::Result<()> {
/// let keys = Arc::new(DogpileCell::new(Duration::from_secs(600)));
/// let (begin, begun) = mpsc::channel();
/// let build = move |previous: Option<&Arc<u32>>| {
///     begin.send(()).ok(); // it has the lease; nothing is published yet
///     Ok::<u32, io::Error>(previous.map_or(1, |number| **number + 1))
/// };
/// let refresher = Refresher::spawn(&keys, Duration::from_secs(60), build)?;
/// begun.recv().unwrap();
/// // Waits for the build, since there is nothing else to serve:
/// assert_eq!(*keys.get_or_refresh(|| unreachable!("the refresher builds")), 1);
///
/// keys.invalidate();
/// begun.recv().unwrap();
/// drop(refresher); // waits for the build, too
/// assert_eq!(keys.get().as_deref(), Some(&2));
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it stops it at once"]
pub struct Refresher {
    desk: Arc<Desk>,
    /// Tells the cell that nobody looks after it any more.
    detach: Box<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

// What is under its locks is replaced as a whole, so a panic leaves nothing half done.
impl UnwindSafe for Refresher {}
impl RefUnwindSafe for Refresher {}

/// What a refresher's owner and its thread or task share.
#[derive(Default)]
struct Desk {
    signal: Arc<Signal>,
    status: Mutex<Status>,
}

#[derive(Default)]
struct Status {
    failures: u32,
    last_error: Option<SharedError>,
}

impl Desk {
    fn show(&self, failures: u32, error: Option<SharedError>) {
        let mut status = self.status.lock();
        status.failures = failures;
        let former = std::mem::replace(&mut status.last_error, error);
        drop(status);
        // The user's: without a lock, and a panic of its drop does not end the refresher.
        contain(|| drop(former));
    }

    /// The clock has panicked, and the refresher goes no further.
    fn ended_by(&self, panic: Box<dyn Any + Send>) {
        let failures = self.status.lock().failures.saturating_add(1);
        self.show(failures, Some(told(panic)));
    }
}

impl Refresher {
    /// Starts a refresher on a thread of its own, `dogpile-refresher`.
    ///
    /// `build` is given the previous value, to find out whether that is still right, and returns a new value or a
    /// [`Refreshed`]. It is kept until the refresher is dropped, and called again even after it has panicked. Returns
    /// at once, perhaps before the first build has ended.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if `ahead` is not shorter than the policy's ttl: every value would be due as soon
    /// as it is published. (A value that is published for a shorter time of its own is due at half of that.) Or the
    /// system's, if it cannot start a thread.
    pub fn spawn<S, R, E, F>(cell: S, ahead: Duration, mut build: F) -> io::Result<Self>
    where
        S: SharedCell,
        S::Clock: Clone,
        R: Into<Refreshed<S::Value>>,
        E: Send + Sync + 'static,
        F: FnMut(Option<&Arc<S::Value>>) -> Result<R, E> + Send + 'static,
    {
        let (desk, mut keeper) = Keeper::new(cell.own(), ahead)?;
        let detach = keeper.detach();
        let status = Arc::clone(&desk);
        let work = move || {
            let signal = Arc::clone(&keeper.desk.signal);
            signal.wakes(Sleeper::this_thread());
            loop {
                match keeper.step() {
                    Step::End => return,
                    Step::Sleep(until) => {
                        wait_until(&keeper.clock, until, || signal.heard().then_some(()));
                    }
                    Step::Build(held) => {
                        let result = catch_unwind(AssertUnwindSafe(|| {
                            let found = held.run(|| build(held.previous()));
                            conclude(held, found.map(Into::into))
                        }));
                        keeper.note(result);
                    }
                }
            }
        };
        let thread = ThreadBuilder::new().name("dogpile-refresher".into()).spawn(move || {
            own_thread::begin(own_thread::Kind::Refresher);
            // With all that it holds.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                status.ended_by(panic);
            }
        })?;
        Ok(Self { desk, detach, thread: Some(thread) })
    }

    /// Starts a refresher as a task: `spawn` hands it to the executor, for example `|task| { tokio::spawn(task); }`.
    ///
    /// A task that is dropped, with its executor or by `spawn`, ends the refresher; the cell goes on without it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`], as [`spawn`](Refresher::spawn).
    #[cfg(feature = "async")]
    pub fn spawn_async<S, R, E, F, Fut>(
        cell: S,
        ahead: Duration,
        spawn: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>),
        mut build: F,
    ) -> io::Result<Self>
    where
        S: SharedCell,
        S::Clock: Clone,
        R: Into<Refreshed<S::Value>> + Send,
        E: Send + Sync + 'static,
        F: FnMut(Option<Arc<S::Value>>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, E>> + Send,
    {
        let (desk, mut keeper) = Keeper::new(cell.own(), ahead)?;
        let detach = keeper.detach();
        let status = Arc::clone(&desk);
        let work = async move {
            loop {
                match keeper.step() {
                    Step::End => return,
                    Step::Sleep(until) => keeper.sleep(until).await,
                    Step::Build(held) => {
                        let previous = held.previous().cloned();
                        let Some(result) = keeper.unless_stopped(held.run_async(|| build(previous))).await
                        else {
                            return;
                        };
                        keeper.note(match result {
                            Ok(found) => {
                                catch_unwind(AssertUnwindSafe(|| conclude(held, found.map(Into::into))))
                            }
                            Err(panic) => {
                                held.panicked();
                                Err(panic)
                            }
                        });
                    }
                }
            }
        };
        spawn(Box::pin(async move {
            if let Err(panic) = contained(pin!(work)).await {
                status.ended_by(panic);
            }
        }));
        Ok(Self { desk, detach, thread: None })
    }

    /// The error of the latest build; `None` if that succeeded, or none has ended yet.
    ///
    /// After a panic it is a [`String`] with the panic's message; so it is if the build said [`Refreshed::NotModified`] with
    /// no previous value there.
    #[must_use]
    pub fn last_error(&self) -> Option<SharedError> {
        self.desk.status.lock().last_error.clone()
    }

    /// How many builds have failed or panicked since the last one that succeeded.
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.desk.status.lock().failures
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        self.desk.signal.stop();
        // Its own thread, which cannot wait for itself, is one of these too.
        if let Some(thread) = self.thread.take().filter(|_| own_thread::kind() != own_thread::Kind::Refresher)
        {
            // It contains the panics of builds and has none of its own.
            let _ = thread.join();
        }
        // A task may not be polled again for a long time, and readers must not rely on it meanwhile.
        (self.detach)();
    }
}

impl fmt::Debug for Refresher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refresher")
            .field("consecutive_failures", &self.consecutive_failures())
            .finish_non_exhaustive()
    }
}

/// What goes round.
struct Keeper<O: Owned> {
    cell: O::Weak,
    clock: O::Clock,
    ahead: u64,
    /// Whether the policy has pauses of its own.
    has_backoff: bool,
    /// If not: no attempt before this tick.
    pause_end: u64,
    /// In a row.
    failures: u32,
    desk: Arc<Desk>,
}

enum Step<O: Owned> {
    Build(Held<O>),
    /// Until this tick, or until the signal is heard.
    Sleep(u64),
    End,
}

impl<O: Owned> Keeper<O> {
    #[allow(clippy::needless_pass_by_value)] // it is not to be held on to
    fn new(cell: O, ahead: Duration) -> io::Result<(Arc<Desk>, Self)>
    where
        O::Clock: Clone,
    {
        let machine = cell.machine();
        let ahead = nanos(ahead);
        let ttl = machine.policy.default_ttl();
        if ttl != FOREVER && ahead >= ttl {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "Refresher: `ahead` must be shorter than the policy's ttl, or every value would be due as soon as it is \
                 published",
            ));
        }
        let desk = Arc::new(Desk::default());
        let keeper = Self {
            cell: cell.downgrade(),
            clock: machine.clock.clone(),
            ahead,
            has_backoff: machine.policy.has_backoff(),
            pause_end: 0,
            failures: 0,
            desk: Arc::clone(&desk),
        };
        // Last: from here on its drop detaches it, and the clone of the clock, which is user code, may have panicked.
        machine.attach(Arc::clone(&desk.signal));
        Ok((desk, keeper))
    }

    fn detach(&self) -> Box<dyn Fn() + Send + Sync> {
        let (cell, signal) = (self.cell.clone(), Arc::clone(&self.desk.signal));
        Box::new(move || {
            if let Some(cell) = O::upgrade(&cell) {
                cell.machine().detach(&signal);
            }
        })
    }

    fn step(&self) -> Step<O> {
        loop {
            if self.desk.signal.is_stopped() {
                return Step::End;
            }
            let Some(cell) = O::upgrade(&self.cell) else { return Step::End };
            let machine = cell.machine();
            let now = machine.now();
            let origin = match machine.plan(self.ahead, now) {
                Plan::Wait(until) => return Step::Sleep(until),
                Plan::Build(_) if now < self.pause_end => return Step::Sleep(self.pause_end),
                Plan::Build(origin) => origin,
            };
            if let Decision::Elected(ticket) = machine.lookup(Demand::After(origin)) {
                return Step::Build(Held::new(cell, ticket));
            }
            // Somebody else was faster.
        }
    }

    /// Notes how a build has ended: `Err` with a panic, `Ok(Err)` with an error.
    fn note(&mut self, result: Result<Result<(), SharedError>, Box<dyn Any + Send>>) {
        let error = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(panic) => Some(told(panic)),
        };
        self.failures = if error.is_some() { self.failures.saturating_add(1) } else { 0 };
        self.pause_end = if self.failures == 0 || self.has_backoff {
            0
        } else {
            let pause = FIRST_PAUSE.saturating_mul(1 << (self.failures - 1).min(32)).min(LONGEST_PAUSE);
            self.clock.now().0.saturating_add(pause)
        };
        // The pause has begun when the failure is seen.
        self.desk.show(self.failures, error);
    }
}

#[cfg(feature = "async")]
impl<O: Owned> Keeper<O> {
    async fn sleep(&self, until: u64) {
        let signal = &self.desk.signal;
        let mut nap: Option<Nap> = None;
        std::future::poll_fn(|cx| {
            let nap = match &mut nap {
                Some(nap) => {
                    nap.renew(cx.waker(), |_, sleeper| signal.wakes_instead(sleeper));
                    nap
                }
                None => nap.insert(Nap::begin(&self.clock, until, cx.waker(), |sleeper| {
                    signal.wakes(sleeper);
                    0
                })),
            };
            if signal.heard() || nap.is_over(&self.clock, cx) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// What the build returns, or what it panics with; `None` if the refresher is to stop before it has ended.
    async fn unless_stopped<R>(
        &self,
        build: impl Future<Output = R>,
    ) -> Option<Result<R, Box<dyn Any + Send>>> {
        let build = pin!(build);
        let mut build = contained(build);
        std::future::poll_fn(|cx| {
            self.desk.signal.wakes(Sleeper::task(cx.waker()));
            if self.desk.signal.is_stopped() {
                return Poll::Ready(None);
            }
            Pin::new(&mut build).poll(cx).map(Some)
        })
        .await
    }
}

/// What the future comes to, or what it panics with.
#[cfg(feature = "async")]
fn contained<F: Future>(
    mut future: Pin<&mut F>,
) -> impl Future<Output = Result<F::Output, Box<dyn Any + Send>>> + Unpin {
    std::future::poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
}

impl<O: Owned> Drop for Keeper<O> {
    fn drop(&mut self) {
        self.detach()();
    }
}

/// Publishes what a build has found, or fails with its error.
fn conclude<H: Home, E: Send + Sync + 'static>(
    held: Held<H>,
    found: Result<Refreshed<H::Value>, E>,
) -> Result<(), SharedError> {
    // A drop of the replaced value that panics is no failure of the build: it happens here, afterwards.
    let previous = held.previous().cloned();
    match found {
        Ok(Refreshed::New(value)) => drop(held.publish(value, None)),
        Ok(Refreshed::NewFor(value, ttl)) => drop(held.publish(value, Some(nanos(ttl)))),
        Ok(Refreshed::NotModified) => {
            if let Err(held) = held.renew(None) {
                let error = "the build returned NotModified, but there is no previous value".to_owned();
                return Err(SharedError::new(held.fail(error)));
            }
        }
        Err(error) => return Err(SharedError::new(held.fail(error))),
    }
    contain(|| drop(previous));
    Ok(())
}

/// A panic's message, as an error to be shown.
fn told(panic: Box<dyn Any + Send>) -> SharedError {
    let message = match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => match panic.downcast::<&'static str>() {
            Ok(message) => (*message).to_owned(),
            Err(panic) => {
                // It may panic in turn.
                contain(|| drop(panic));
                "the build panicked".to_owned()
            }
        },
    };
    SharedError::new(Arc::new(message))
}
