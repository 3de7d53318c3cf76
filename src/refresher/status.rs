//! What a refresher's owner and its thread or task share, and how the latter is notified.
//!
//! A [`Status`] has two flags: *notified*, since the last look, and *stopped*, for good. A notification sets the flag first and
//! wakes the queue after; the loop joins the queue first, and then looks at the flags. So no notification is lost.

use std::any::Any;

use crate::cell::{Attempt, Listener, Outcome};
use crate::contain::contain;
use crate::error::SharedError;
use crate::sync::{Arc, Mutex};
use crate::wait::{WaitPoint, WaitQueue, Waiter};

/// The status of a refresher, and its entry among the listeners of its cell.
pub(crate) struct Status {
    pub(super) state: Mutex<State>,
    /// It does not rebuild a value that has not been read.
    pub(super) rests: bool,
    /// Settled when the thread or task has ended.
    pub(super) ended: Arc<Attempt<()>>,
}

#[derive(Default)]
pub(super) struct State {
    notified: bool,
    stopped: bool,
    waiters: WaitQueue<()>,
    /// A build is asked for that begins after the build or `set` of this number.
    pub(super) refresh_after: Option<u64>,
    /// In a row.
    pub(super) failures: u32,
    pub(super) last_error: Option<SharedError>,
}

impl Status {
    pub(crate) fn new(rests: bool) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), rests, ended: Attempt::open() })
    }

    /// Not to be called under a lock, as it may run a waker.
    pub(super) fn notify(&self) {
        self.change(|state| state.notified = true);
    }

    /// As [`notify`](Status::notify), and for good.
    pub(super) fn stop(&self) {
        self.change(|state| state.stopped = true);
    }

    /// As [`notify`](Status::notify), and asks for a build that begins after the build or `set` of this number.
    pub(super) fn ask_for(&self, after: u64) {
        self.change(|state| {
            state.refresh_after = Some(after);
            state.notified = true;
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        if state.stopped {
            // Nothing changes any more.
            return;
        }
        change(&mut state);
        let waiters: Vec<Waiter> = state.waiters.matching(|()| true).collect();
        drop(state);
        for waiter in waiters {
            waiter.wake();
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Whether it has been notified since the last call, or stopped.
    pub(crate) fn take_notified(&self) -> bool {
        let mut state = self.state.lock();
        std::mem::take(&mut state.notified) || state.stopped
    }

    /// What was asked for is there or begins, unless there was another request since.
    pub(super) fn answered(&self, after: Option<u64>) {
        let mut state = self.state.lock();
        if state.refresh_after == after {
            state.refresh_after = None;
        }
    }

    /// A build has ended: with this error, or without one.
    pub(super) fn show(&self, error: Option<SharedError>) {
        let mut state = self.state.lock();
        state.failures = if error.is_some() { state.failures.saturating_add(1) } else { 0 };
        let former = std::mem::replace(&mut state.last_error, error);
        drop(state);
        // The user's: without a lock, and a panic of its drop does not end the refresher.
        contain(|| drop(former));
    }
}

impl WaitPoint for Status {
    type Note = ();

    fn with_queue<R>(&self, access: impl FnOnce(&mut WaitQueue<()>) -> R) -> R {
        access(&mut self.state.lock().waiters)
    }
}

impl<T> Listener<T> for Status {
    fn notify(&self) {
        Self::notify(self);
    }

    fn close(&self) {
        Self::notify(self);
    }

    /// A stopped one may remain attached, if the cell was moved out of its `Arc`.
    fn rebuilds(&self) -> bool {
        !self.is_stopped()
    }

    fn rests(&self) -> bool {
        self.rests
    }
}

/// Settles [`Status::ended`] when it is dropped: after all that the thread or task has held.
pub(super) struct Ended(pub(super) Arc<Status>);

impl Ended {
    /// The clock has panicked, and the refresher goes no further.
    pub(super) fn by(&self, panic: Box<dyn Any + Send>) {
        self.0.show(Some(SharedError::of_panic("clock", &*panic)));
        contain(|| drop(panic));
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.complete(Outcome::Abandoned);
    }
}
