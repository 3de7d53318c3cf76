//! How a [`Refresher`](crate::Refresher)'s thread or task is notified of a change.
//!
//! A [`Signal`] has two flags: *notified*, since the last look, and *stopped*, for good. A notification sets the flag first and
//! wakes the waiter after; the waiter looks at the flags before it sleeps. So no notification is lost.

use crate::sync::Mutex;
use crate::wait::{Registration, Waiter};

#[cfg(feature = "async")]
use {crate::wait::register_again, std::task::Waker};

#[derive(Default)]
pub(crate) struct Signal {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    notified: bool,
    stopped: bool,
    waiter: Registration,
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
        let waiter = {
            let mut state = self.state.lock();
            if state.stopped {
                // Nothing changes any more.
                return;
            }
            change(&mut state);
            state.waiter.waiter()
        };
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// The thread that is woken from now on.
    pub(crate) fn wakes(&self, waiter: Waiter) {
        let former = self.state.lock().waiter.replace(waiter);
        drop(former);
    }

    /// The same for a task, at each poll.
    #[cfg(feature = "async")]
    pub(crate) fn wakes_task(&self, waker: &Waker) {
        register_again(waker, |at| at(&mut self.state.lock().waiter));
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
