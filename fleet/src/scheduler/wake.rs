//! What wakes a thread that sleeps by a clock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Thread;

use dogpile::{Clock, Tick};

/// What wakes a thread that sleeps by a clock.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    thread: Mutex<Option<Thread>>,
    notified: AtomicBool,
}

impl Wake {
    pub(crate) fn notify(&self) {
        // Release: pairs with the Acquire in `take`: what the thread is woken for has happened.
        self.notified.store(true, Ordering::Release);
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }

    /// From now on this thread is the one that is woken.
    pub(crate) fn wakes_this_thread(&self) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
    }

    fn take(&self) -> bool {
        // Acquire: pairs with the Release in `notify`.
        self.notified.swap(false, Ordering::Acquire)
    }

    /// Sleeps until it is notified, or until `until`.
    pub(crate) fn sleep<C: Clock>(&self, clock: &C, until: Option<Tick>) {
        while !self.take() {
            let now = clock.now();
            match until {
                None => std::thread::park(),
                Some(until) if until <= now => return,
                Some(until) => clock.park_until(until, now),
            }
        }
    }
}
