//! How a cell tells somebody who looks after it that something has changed.
//!
//! A [`Signal`] has two flags: *rung*, since the last look, and *stopped*, for good. Whoever rings it sets the flag first and
//! wakes the sleeper after; the sleeper looks at the flags before it sleeps. So no ring is lost, whenever it comes.

use crate::seats::{Sleeper, Sleeping};
use crate::sync::{Arc, Mutex};

#[cfg(feature = "async")]
use {crate::seats::renew, std::task::Waker};

#[derive(Default)]
pub(crate) struct Signal {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rung: bool,
    stopped: bool,
    sleeping: Sleeping,
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
        let sleeper = {
            let mut state = self.state.lock();
            if state.stopped {
                // There is nothing more to be told.
                return;
            }
            change(&mut state);
            state.sleeping.rouse()
        };
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// The thread that is woken from now on.
    pub(crate) fn wakes(&self, sleeper: Sleeper) {
        let former = self.state.lock().sleeping.replace(sleeper);
        drop(former);
    }

    /// The same for a task, at each poll.
    #[cfg(feature = "async")]
    pub(crate) fn wakes_task(&self, waker: &Waker) {
        renew(waker, |at| at(&mut self.state.lock().sleeping));
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
