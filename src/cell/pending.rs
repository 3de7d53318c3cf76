//! Waiting for another caller's build.

use std::fmt;
use std::time::Duration;

use crate::error::{RefreshError, SharedError};
use crate::inside::is_building;
use crate::sync::Arc;
use crate::time::{Clock, FOREVER, SystemClock, deadline};

use super::DogpileCell;
use super::attempt::{Attempt, Outcome, Publication};
use super::elect::Wait;
use super::handle::Handle;
use super::machine::Machine;

#[cfg(feature = "async")]
use std::task::{Context, Poll};

/// The result of waiting for another caller's build.
#[non_exhaustive]
pub enum Waited<T> {
    /// A value was published while the caller waited. This is the newest one. It is returned even if it has expired by
    /// now.
    Published(Arc<T>),
    /// The build failed with this error.
    Failed(SharedError),
    /// The build ended without a result (it panicked, was given back or fenced off, or its value had expired already), or it
    /// has run for longer than the lease timeout. Look again.
    Abandoned,
    /// The caller is inside the build that it would wait for.
    Reentrant,
}

impl<T> fmt::Debug for Waited<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published(_) => f.debug_tuple("Published").finish_non_exhaustive(),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
            Self::Abandoned => f.write_str("Abandoned"),
            Self::Reentrant => f.write_str("Reentrant"),
        }
    }
}

/// A place among the waiters for a build, for a caller that found no value to serve.
///
/// It has no claim on the lease, and can be dropped at any time.
///
/// With the feature `async` it is also a future, for any executor. The future is ready when the build has ended, or
/// when the build has run for longer than the lease timeout. Each publication wakes all waiters, threads and tasks, so
/// no wake-up is lost if a task drops its `Pending`.
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Lookup, Waited};
/// use std::time::Duration;
///
/// let cell = DogpileCell::new(Duration::from_secs(60));
/// let Lookup::Elected(lease) = cell.lookup() else { unreachable!("the first caller is elected") };
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         let Lookup::Pending(pending) = cell.lookup() else { return };
///         assert!(matches!(pending.wait(), Waited::Published(value) if *value == 7));
///     });
///     lease.publish(7);
/// });
/// ```
#[must_use = "nothing is waited for until `wait` is called"]
pub struct Pending<'a, T, C: Clock = SystemClock> {
    handle: Handle<'a, DogpileCell<T, C>>,
    waiting: Wait<T>,
}

impl<'a, T, C: Clock> Pending<'a, T, C> {
    pub(super) fn new(handle: Handle<'a, DogpileCell<T, C>>, waiting: Wait<T>) -> Self {
        Self { handle, waiting }
    }

    /// Blocks until the build has ended.
    ///
    /// Also returns, with [`Waited::Abandoned`], when the build has run for longer than the
    /// [`lease_timeout`](crate::Policy::lease_timeout).
    ///
    /// # Deadlocks
    ///
    /// A thread that holds the [`Lease`](crate::Lease) itself waits for itself. Inside a build that runs as a closure
    /// the cell detects this and returns [`Waited::Reentrant`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup, Waited};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// let Lookup::Pending(pending) = cell.lookup() else { unreachable!() };
    /// lease.publish(7);
    /// assert!(matches!(pending.wait(), Waited::Published(value) if *value == 7));
    /// ```
    #[allow(clippy::must_use_candidate)] // it may be called to wait
    pub fn wait(mut self) -> Waited<T> {
        waited(self.waiting.wait_until(&self.handle.machine, Some(FOREVER)))
    }

    /// Blocks until the build has ended, at most for `timeout` on the cell's clock. With [`Duration::ZERO`] it only
    /// looks.
    ///
    /// # Errors
    ///
    /// Returns the place among the waiters if the time is over.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup, Waited};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::<u32>::new(Duration::from_secs(60));
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// let Lookup::Pending(pending) = cell.lookup() else { unreachable!() };
    /// let pending = pending.wait_timeout(Duration::ZERO).unwrap_err();
    /// drop(lease);
    /// assert!(matches!(pending.wait_timeout(Duration::ZERO), Ok(Waited::Abandoned)));
    /// ```
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Waited<T>, Self> {
        let machine = &self.handle.machine;
        let deadline = (!timeout.is_zero()).then(|| deadline(&machine.clock, timeout));
        match self.waiting.wait_until(machine, deadline) {
            Err(RefreshError::WaitTimeout) => Err(self),
            ended => Ok(waited(ended)),
        }
    }
}

#[cfg(feature = "async")]
impl<T, C: Clock> Future for Pending<'_, T, C> {
    type Output = Waited<T>;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Waited<T>> {
        let Self { handle, waiting } = &mut *self;
        waiting.poll(&handle.machine, FOREVER, cx).map(waited)
    }
}

impl<T, C: Clock> fmt::Debug for Pending<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

impl<T, C: Clock> Machine<T, C> {
    /// The outcome for a waiter that looks now. It may have seen a newer value since the outcome was stored, and must not go
    /// back (G3). The newest value was published while it waited as well.
    fn up_to_date(&self, outcome: &Outcome<T>) -> Outcome<T> {
        match outcome {
            Outcome::Published(publication) if self.generation() > publication.record.generation => {
                match self.newer_than(publication.record.generation) {
                    // Its origin is known under the lock only, which a thousand waiters must not queue for.
                    Some((value, record)) => Outcome::Published(Publication { value, record, origin: None }),
                    // It was taken away again, or had expired before it was published.
                    None => Outcome::Abandoned,
                }
            }
            outcome => outcome.clone(),
        }
    }
}

/// How a wait ended: with an outcome ([`Outcome::Abandoned`]: look again), or with [`RefreshError::WaitTimeout`] or
/// [`RefreshError::Reentrant`].
pub(crate) type WaitResult<T> = Result<Outcome<T>, RefreshError>;

fn waited<T>(ended: WaitResult<T>) -> Waited<T> {
    match ended {
        Ok(Outcome::Published(publication)) => Waited::Published(publication.value),
        Ok(Outcome::Failed(error)) => Waited::Failed(error),
        // Without a deadline there is always an end.
        Ok(Outcome::Abandoned) | Err(RefreshError::WaitTimeout) => Waited::Abandoned,
        Err(_) => Waited::Reentrant,
    }
}

impl<T> Wait<T> {
    /// Waits until `deadline`, or only looks if there is none.
    pub(crate) fn wait_until<C: Clock>(
        &mut self,
        machine: &Machine<T, C>,
        deadline: Option<u64>,
    ) -> WaitResult<T> {
        let outcome = |attempt: &Attempt<T>| Some(machine.up_to_date(attempt.outcome()?));
        if let Some(outcome) = outcome(self.entry.point()) {
            return Ok(outcome);
        }
        if is_building(machine) {
            return Err(RefreshError::Reentrant);
        }
        let Some(deadline) = deadline else {
            // From that tick on.
            return Self::time_over(machine, machine.now() >= self.look_again_at);
        };
        machine.counters.waits.count();
        let ended = self.entry.wait((), &machine.clock, deadline.min(self.look_again_at), outcome);
        ended.map_or_else(|| Self::time_over(machine, self.look_again_at < deadline), Ok)
    }

    /// There is no outcome yet: either it is time to look again, or the caller's time is over.
    fn time_over<C>(machine: &Machine<T, C>, looks_again: bool) -> WaitResult<T> {
        if looks_again {
            return Ok(Outcome::Abandoned);
        }
        machine.counters.wait_timeouts.count();
        Err(RefreshError::WaitTimeout)
    }

    /// As [`wait_until`](Wait::wait_until), for a task.
    #[cfg(feature = "async")]
    pub(crate) fn poll<C: Clock>(
        &mut self,
        machine: &Machine<T, C>,
        deadline: u64,
        cx: &mut Context<'_>,
    ) -> Poll<WaitResult<T>> {
        let outcome = |attempt: &Attempt<T>| Some(machine.up_to_date(attempt.outcome()?));
        if let Some(outcome) = outcome(self.entry.point()) {
            return Poll::Ready(Ok(outcome));
        }
        if is_building(machine) {
            return Poll::Ready(Err(RefreshError::Reentrant));
        }
        if !self.entry.has_joined() {
            machine.counters.waits.count();
        }
        let until = deadline.min(self.look_again_at);
        let polled = self.entry.poll((), &machine.clock, until, cx, outcome);
        polled.map(|ended| ended.map_or_else(|| Self::time_over(machine, self.look_again_at < deadline), Ok))
    }
}
