//! One attempt to build, as its waiters see it.
//!
//! An [`Attempt`] is made by the first waiter and has two states: open, and settled with an [`Outcome`] that
//! never changes again (a `OnceCell`). The thread that ends the build takes the attempt out of the cell under the
//! cell's lock, so that later callers find a new one, and settles it after unlocking.
//!
//! Waiters park on their own thread's token and read the outcome without a lock (G6): waking a thousand of
//! them makes no queue in front of a lock. No wake-up is trusted: a waiter looks at the outcome again. The outcome is
//! stored before the list of waiters is taken, so a waiter that joins too late to be in the list finds it when it
//! looks.

use crate::clock::Clock;
use crate::error::SharedError;
use crate::seats::{Seats, Sleeper};
use crate::sync::{Arc, Mutex, OnceCell};
use crate::wait::wait_until;

use super::slot::Record;

#[cfg(feature = "async")]
use {
    crate::seats::renew,
    crate::wait::Nap,
    std::task::{Context, Poll},
};

/// How a build ended, for its waiters.
pub(crate) enum Outcome<T> {
    Published(Publication<T>),
    Failed(SharedError),
    /// It ended without a result for them. They look again, and one of them is elected.
    Abandoned,
}

/// A value handed to waiters, even if it has expired by the time they wake (G6).
pub(crate) struct Publication<T> {
    pub(crate) value: Arc<T>,
    pub(crate) record: Record,
    /// The number of the build or the `set` that it comes from. `None`: see [`Machine::origin_of`].
    ///
    /// [`Machine::origin_of`]: super::machine::Machine::origin_of
    pub(crate) origin: Option<u64>,
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

    /// Stores the outcome and wakes all waiters. Called once, without a lock.
    pub(crate) fn settle(&self, outcome: Outcome<T>) {
        let first = self.outcome.set(outcome).is_ok();
        debug_assert!(first, "an attempt is settled by the thread that took it out of the cell");
        let waiters = self.waiters.lock().take_all();
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// Blocks until there is an outcome, or until `clock` shows `deadline`.
    pub(crate) fn wait<C: Clock>(&self, clock: &C, deadline: u64) -> Option<&Outcome<T>> {
        let number = self.waiters.lock().take(Sleeper::this_thread(), ());
        let _seat = Seat { attempt: self, number };
        wait_until(clock, deadline, || self.outcome())
    }

    fn leave(&self, number: usize) {
        // A settled attempt wakes nobody any more. Not locking then is what lets a thousand waiters leave
        // without queueing.
        if self.outcome().is_none() {
            let left = self.waiters.lock().leave(number);
            drop(left);
        }
    }
}

/// A place in the list of waiters, given up when dropped.
struct Seat<'a, T> {
    attempt: &'a Attempt<T>,
    number: usize,
}

impl<T> Drop for Seat<'_, T> {
    fn drop(&mut self) {
        self.attempt.leave(self.number);
    }
}

/// A task's wait, and its place in that list, likewise.
#[cfg(feature = "async")]
pub(crate) struct TaskSeat<T> {
    pub(crate) attempt: Arc<Attempt<T>>,
    /// From the first poll on that finds no outcome.
    taken: Option<(usize, Nap)>,
}

#[cfg(feature = "async")]
impl<T> TaskSeat<T> {
    pub(crate) fn new(attempt: Arc<Attempt<T>>) -> Self {
        Self { attempt, taken: None }
    }

    pub(crate) fn is_taken(&self) -> bool {
        self.taken.is_some()
    }

    /// As [`wait`](Attempt::wait): ready with what `look` makes of the outcome, or with `None` at the deadline.
    pub(crate) fn poll<C: Clock, R>(
        &mut self,
        clock: &C,
        deadline: u64,
        cx: &mut Context<'_>,
        look: impl Fn(&Outcome<T>) -> R,
    ) -> Poll<Option<R>> {
        let Self { attempt, taken } = self;
        let (_, nap) = match taken {
            Some(taken) => {
                let number = taken.0;
                renew(cx.waker(), |at| {
                    if let Some(sleeping) = attempt.waiters.lock().at(number) {
                        at(sleeping);
                    }
                });
                taken
            }
            None => {
                let nap = Nap::begin(clock, deadline);
                let sleeper = Sleeper::task(cx.waker());
                let number = attempt.waiters.lock().take(sleeper, ());
                taken.insert((number, nap))
            }
        };
        // What was settled before the place was taken is seen now, what is settled later wakes the task.
        match attempt.outcome() {
            Some(outcome) => Poll::Ready(Some(look(outcome))),
            None if nap.is_over(clock, cx) => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// Gives the place up. Another poll begins anew.
    pub(crate) fn leave(&mut self) {
        // A settled attempt has woken all its waiters: a wake-up that reaches nobody any more was not meant for another.
        if let Some((number, _)) = self.taken.take() {
            self.attempt.leave(number);
        }
    }
}

#[cfg(feature = "async")]
impl<T> Drop for TaskSeat<T> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_thread_that_gives_up_leaves_the_list() {
        let attempt = Attempt::<u32>::open();
        assert!(attempt.wait(&ManualClock::new(), 0).is_none());
        assert_eq!(attempt.waiters.lock().take_all().count(), 0);
        // After the end there is nothing to leave, and the outcome is there at once.
        attempt.settle(Outcome::Abandoned);
        assert!(matches!(attempt.wait(&ManualClock::new(), 0), Some(Outcome::Abandoned)));
    }

    #[cfg(feature = "async")]
    #[test]
    fn a_task_that_gives_up_leaves_the_list() {
        let attempt = Attempt::<u32>::open();
        let mut seat = TaskSeat::new(Arc::clone(&attempt));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(seat.poll(&ManualClock::new(), 1, &mut cx, |_| ()).is_pending());
        assert_eq!(attempt.waiters.lock().len(), 1);
        drop(seat);
        assert_eq!(attempt.waiters.lock().take_all().count(), 0);
    }

    #[test]
    fn g6_leaving_a_settled_attempt_takes_no_lock() {
        let attempt = Attempt::<u32>::open();
        let number = attempt.waiters.lock().take(Sleeper::this_thread(), ());
        let seat = Seat { attempt: &attempt, number };
        attempt.settle(Outcome::Abandoned);
        let _locked = attempt.waiters.lock();
        // It would hang.
        drop(seat);
    }
}
