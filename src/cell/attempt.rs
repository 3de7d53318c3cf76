//! One attempt to build, as its waiters see it.
//!
//! An [`Attempt`] is made by the first waiter and has two states: open, and completed with an [`Outcome`] that
//! never changes again (a `OnceCell`). The thread that ends the build takes the attempt out of the cell under the
//! cell's lock, so that later callers find a new one, and completes it after unlocking.
//!
//! Waiters read the outcome without a lock (G6): a thousand of them that wake do not queue for one. No wake-up is trusted: a
//! waiter looks at the outcome again. The outcome is stored before the waiters are taken out of the queue, so a waiter that
//! joins too late to be woken finds it when it looks.

use crate::error::SharedError;
use crate::sync::{Arc, Mutex, OnceCell};
use crate::time::Clock;
use crate::wait::{Entry, WaitPoint, WaitQueue};

use super::slot::Record;

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
    waiters: Mutex<WaitQueue<()>>,
}

impl<T> Attempt<T> {
    pub(crate) fn open() -> Arc<Self> {
        Arc::new(Self { outcome: OnceCell::new(), waiters: Mutex::default() })
    }

    pub(crate) fn outcome(&self) -> Option<&Outcome<T>> {
        self.outcome.get()
    }

    /// Stores the outcome and wakes all waiters. Called once, without a lock.
    pub(crate) fn complete(&self, outcome: Outcome<T>) {
        let first = self.outcome.set(outcome).is_ok();
        debug_assert!(first, "an attempt is completed by the thread that took it out of the cell");
        let waiters = self.waiters.lock().drain();
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// Blocks until there is an outcome, or until `clock` shows `deadline`. Returns whether there is one.
    pub(crate) fn wait<C: Clock>(&self, clock: &C, deadline: u64) -> bool {
        Entry::new(self).wait((), clock, deadline, Self::completed).is_some()
    }

    /// As [`wait`](Attempt::wait), for a task.
    #[cfg(feature = "async")]
    pub(crate) async fn wait_async<C: Clock>(self: Arc<Self>, clock: &C, deadline: u64) -> bool {
        Entry::new(self).wait_async((), clock, deadline, Self::completed).await.is_some()
    }

    /// `Some`: there is an outcome.
    pub(crate) fn completed(&self) -> Option<()> {
        self.outcome().map(|_| ())
    }
}

impl<T> WaitPoint for Attempt<T> {
    type Note = ();

    fn with_queue<R>(&self, access: impl FnOnce(&mut WaitQueue<()>) -> R) -> R {
        access(&mut self.waiters.lock())
    }

    fn leave(&self, number: usize) {
        // A completed attempt has taken its waiters out. Not locking then is what lets a thousand waiters leave without
        // queueing. No wake-up is lost by that, since all waiters are woken.
        if self.outcome().is_none() {
            let left = self.with_queue(|queue| queue.leave(number));
            drop(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::ManualClock;
    use crate::wait::Waiter;

    #[test]
    fn a_thread_that_gives_up_leaves_the_queue() {
        let attempt = Attempt::<u32>::open();
        assert!(!attempt.wait(&ManualClock::new(), 0));
        assert_eq!(attempt.waiters.lock().len(), 0);
        // After the end there is nothing to leave, and the outcome is there at once.
        attempt.complete(Outcome::Abandoned);
        assert!(attempt.wait(&ManualClock::new(), 0));
    }

    #[cfg(feature = "async")]
    #[test]
    fn a_task_that_gives_up_leaves_the_queue() {
        let attempt = Attempt::<u32>::open();
        let mut entry = Entry::new(Arc::clone(&attempt));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(entry.poll((), &ManualClock::new(), 1, &mut cx, |_| None::<()>).is_pending());
        assert_eq!(attempt.waiters.lock().len(), 1);
        drop(entry);
        assert_eq!(attempt.waiters.lock().len(), 0);
    }

    #[test]
    fn g6_leaving_a_completed_attempt_takes_no_lock() {
        let attempt = Attempt::<u32>::open();
        let number = attempt.waiters.lock().join(Waiter::this_thread(), ());
        attempt.complete(Outcome::Abandoned);
        let _locked = attempt.waiters.lock();
        // It would hang.
        attempt.leave(number);
    }
}
