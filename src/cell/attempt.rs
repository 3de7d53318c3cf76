//! One attempt to build, as those see it who wait for it.
//!
//! An [`Attempt`] is made by the first waiter and has two states: open, and settled with an [`Outcome`] that
//! never changes again (a `OnceCell`). Whoever ends the build takes the attempt out of the cell under the
//! cell's lock, so that later callers find a new one, and settles it after unlocking.
//!
//! Waiters park on their own thread's token and read the outcome without a lock (G6): waking a thousand of
//! them makes no queue in front of anything. A wake-up is never trusted: they look at the outcome again, and
//! the outcome is stored before the list of waiters is taken, so a waiter that enrols too late to be in the
//! list finds it when it looks.

use crate::clock::Clock;
use crate::error::SharedError;
use crate::seats::{Seats, Sleeper};
use crate::sync::{Arc, Mutex, OnceCell};
use crate::wait::wait_until;

#[cfg(feature = "async")]
use {
    crate::wait::Nap,
    std::task::{Context, Waker},
};

/// How a build ended, for those who waited.
pub(crate) enum Outcome<T> {
    Published(Publication<T>),
    Failed(SharedError),
    /// It ended without a result for them. They look up again, and one of them is elected.
    Abandoned,
}

/// A value handed to waiters, even if it has expired by the time they wake (G6).
pub(crate) struct Publication<T> {
    pub(crate) value: Arc<T>,
    pub(crate) generation: u64,
    /// The number of the build or the `set` that it comes from.
    pub(crate) origin: u64,
    /// Published as already stale, because an `invalidate` came during the build.
    pub(crate) lapsed: bool,
}

impl<T> Clone for Publication<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), ..*self }
    }
}

impl<T> Clone for Outcome<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Published(publication) => Self::Published(publication.clone()),
            Self::Failed(error) => Self::Failed(error.clone()),
            Self::Abandoned => Self::Abandoned,
        }
    }
}

pub(crate) struct Attempt<T> {
    outcome: OnceCell<Outcome<T>>,
    waiters: Mutex<Seats<()>>,
}

impl<T> Attempt<T> {
    pub(crate) fn open() -> Arc<Self> {
        Arc::new(Self { outcome: OnceCell::new(), waiters: Mutex::default() })
    }

    pub(crate) fn outcome(&self) -> Option<&Outcome<T>> {
        self.outcome.get()
    }

    /// Stores the outcome and wakes everybody. Called once, without a lock.
    pub(crate) fn settle(&self, outcome: Outcome<T>) {
        let first = self.outcome.set(outcome).is_ok();
        debug_assert!(first, "an attempt is settled by the one who took it out of the cell");
        let waiters = self.waiters.lock().take_all();
        for (_, waiter, ()) in waiters {
            waiter.wake();
        }
    }

    /// Blocks until there is an outcome, or until `clock` shows `deadline`.
    pub(crate) fn wait<C: Clock>(&self, clock: &C, deadline: u64) -> Option<&Outcome<T>> {
        let number = self.waiters.lock().take(Sleeper::this_thread(), ());
        let _seat = Seat { attempt: self, number };
        wait_until(clock, deadline, || self.outcome())
    }

    fn leave(&self, number: u64) {
        // A settled attempt wakes nobody any more. Not locking then is what lets a thousand waiters leave
        // without queueing.
        if self.outcome().is_none() {
            let left = self.waiters.lock().leave(number);
            drop(left);
        }
    }
}

/// A place in the list of those to be woken, given up when dropped.
struct Seat<'a, T> {
    attempt: &'a Attempt<T>,
    number: u64,
}

impl<T> Drop for Seat<'_, T> {
    fn drop(&mut self) {
        self.attempt.leave(self.number);
    }
}

/// A task's place in that list, likewise.
#[cfg(feature = "async")]
pub(crate) struct TaskSeat<T> {
    attempt: Arc<Attempt<T>>,
    nap: Nap,
}

#[cfg(feature = "async")]
impl<T> TaskSeat<T> {
    /// Takes a place; whatever is settled from now on wakes the task, or did before and is seen by a look.
    pub(crate) fn take<C: Clock>(attempt: &Arc<Attempt<T>>, clock: &C, deadline: u64, waker: &Waker) -> Self {
        let take = |sleeper| attempt.waiters.lock().take(sleeper, ());
        Self { nap: Nap::begin(clock, deadline, waker, take), attempt: Arc::clone(attempt) }
    }

    pub(crate) fn renew(&mut self, waker: &Waker) {
        let Self { attempt, nap } = self;
        nap.renew(waker, |number, sleeper| attempt.waiters.lock().exchange(number, sleeper));
    }

    /// See [`Nap::is_over`].
    pub(crate) fn is_over<C: Clock>(&mut self, clock: &C, cx: &mut Context<'_>) -> bool {
        self.nap.is_over(clock, cx)
    }
}

#[cfg(feature = "async")]
impl<T> Drop for TaskSeat<T> {
    /// A settled attempt has woken everybody: a wake-up that reaches nobody any more was not meant for another.
    fn drop(&mut self) {
        self.attempt.leave(self.nap.number());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn who_gives_up_leaves_the_list() {
        let attempt = Attempt::<u32>::open();
        assert!(attempt.wait(&ManualClock::new(), 0).is_none());
        assert!(attempt.waiters.lock().take_all().is_empty());
        // After the end there is nothing to leave, and the outcome is there at once.
        attempt.settle(Outcome::Abandoned);
        assert!(matches!(attempt.wait(&ManualClock::new(), 0), Some(Outcome::Abandoned)));
    }

    #[cfg(feature = "async")]
    #[test]
    fn a_task_that_gives_up_leaves_the_list() {
        let attempt = Attempt::<u32>::open();
        let seat = TaskSeat::take(&attempt, &ManualClock::new(), 1, Waker::noop());
        assert_eq!(attempt.waiters.lock().those(|()| true).count(), 1);
        drop(seat);
        assert!(attempt.waiters.lock().take_all().is_empty());
    }

    #[test]
    fn g6_who_leaves_a_settled_attempt_takes_no_lock() {
        let attempt = Attempt::<u32>::open();
        let number = attempt.waiters.lock().take(Sleeper::this_thread(), ());
        let seat = Seat { attempt: &attempt, number };
        attempt.settle(Outcome::Abandoned);
        let _locked = attempt.waiters.lock();
        // It would hang.
        drop(seat);
    }
}
