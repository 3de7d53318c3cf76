//! How a cell tells somebody who looks after it that something has changed.
//!
//! A [`Signal`] has two flags: *rung*, since the last look, and *stopped*, for good. Whoever rings it sets the flag first and
//! wakes the waiter after; the waiter looks at the flags before it sleeps. So no ring is lost, whenever it comes.

use crate::sync::{Arc, Mutex};
use crate::wait::{Registration, Waiter};

#[cfg(feature = "async")]
use {crate::wait::register_again, std::task::Waker};

#[derive(Default)]
pub(crate) struct Signal {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rung: bool,
    stopped: bool,
    registration: Registration,
}

impl Signal {
    /// Not to be called under a lock, as it may run a waker.
    pub(crate) fn ring(&self) {
        self.announce(|state| state.rung = true);
    }

    /// As [`ring`](Signal::ring), and for good.
    pub(crate) fn stop(&self) {
        self.announce(|state| state.stopped = true);
    }

    fn announce(&self, change: impl FnOnce(&mut State)) {
        let waiter = {
            let mut state = self.state.lock();
            if state.stopped {
                // There is nothing more to be told.
                return;
            }
            change(&mut state);
            state.registration.waiter()
        };
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// The thread that is woken from now on.
    pub(crate) fn wakes(&self, waiter: Waiter) {
        let former = self.state.lock().registration.replace(waiter);
        drop(former);
    }

    /// The same for a task, at each poll.
    #[cfg(feature = "async")]
    pub(crate) fn wakes_task(&self, waker: &Waker) {
        register_again(waker, |at| at(&mut self.state.lock().registration));
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Whether it has been rung since the last call, or stopped.
    pub(crate) fn heard(&self) -> bool {
        let mut state = self.state.lock();
        std::mem::take(&mut state.rung) || state.stopped
    }
}

/// A signal in the hands of a cell, which rings for the last time when the cell is gone.
pub(crate) struct Bell(Arc<Signal>);

impl Bell {
    pub(crate) fn new(signal: Arc<Signal>) -> Self {
        Self(signal)
    }

    pub(crate) fn signal(&self) -> &Arc<Signal> {
        &self.0
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.ring();
    }
}
