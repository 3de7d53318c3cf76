//! How a [`Refresher`](crate::Refresher)'s thread or task is notified of a change.
//!
//! A [`Signal`] has two flags: *notified*, since the last look, and *stopped*, for good. Whatever waits for it joins its queue first,
//! and then looks at the flags. A notification sets the flag first and wakes the queue after. So no notification is lost.

use crate::sync::Mutex;
use crate::wait::{WaitPoint, WaitQueue, Waiter};

#[derive(Default)]
pub(crate) struct Signal {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    notified: bool,
    stopped: bool,
    waiters: WaitQueue<()>,
}

impl Signal {
    /// Not to be called under a lock, as it may run a waker.
    pub(crate) fn notify(&self) {
        self.change(|state| state.notified = true);
    }

    /// As [`notify`](Signal::notify), and for good.
    pub(crate) fn stop(&self) {
        self.change(|state| state.stopped = true);
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

    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Whether it has been notified since the last call, or stopped.
    pub(crate) fn take_notified(&self) -> bool {
        let mut state = self.state.lock();
        std::mem::take(&mut state.notified) || state.stopped
    }
}

impl WaitPoint for Signal {
    type Note = ();

    fn with_queue<R>(&self, access: impl FnOnce(&mut WaitQueue<()>) -> R) -> R {
        access(&mut self.state.lock().waiters)
    }
}
