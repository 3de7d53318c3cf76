//! Waiting for values to be finalised.
//!
//! A thread that waits for itself is detected where it can be: it runs the finalizer, it holds a `ReadGuard` of an awaited value,
//! or it holds the write lock and with it an awaited value. A `ReaderArc` may have been sent to another thread, so it is not known
//! which thread holds it.

use std::time::Duration;

use crate::inside::any_guard;
use crate::sync::{Arc, current_thread};
use crate::time::{Clock, deadline};
use crate::wait::{Entry, WaitPoint, WaitQueue};

#[cfg(feature = "async")]
use crate::time::FOREVER;

use super::drain::{Drain, DrainTimeout};
use super::finalizer::wake_waiters;
use super::queue::Awaited;
use super::retirement::{Retirement, State, Tracked};

impl<T> WaitPoint for Arc<Retirement<T>> {
    type Note = Awaited;

    fn with_queue<R>(&self, access: impl FnOnce(&mut WaitQueue<Awaited>) -> R) -> R {
        access(&mut self.state.lock().waiters)
    }

    fn leave(&self, number: usize) {
        let mut state = self.state.lock();
        let left = state.waiters.leave(number);
        if state.queue.is_ready() {
            // A wake-up that has reached this waiter is passed on.
            self.schedule_finalizer(state);
        } else {
            drop(state);
        }
        drop(left);
    }
}

/// Leaves what is left to the background when it is dropped: also if a clock panics or a task is dropped.
struct Remainder<'a, T>(&'a Arc<Retirement<T>>);

impl<T> Drop for Remainder<'_, T> {
    fn drop(&mut self) {
        self.0.retire(None);
    }
}

/// Draining.
impl<T> Retirement<T> {
    /// Drops the reference to a value that has been replaced, and waits as the cell's [`Drain`] says.
    pub(crate) fn drain<C: Clock>(self: &Arc<Self>, replaced: Option<Arc<Tracked<T>>>, clock: &C) {
        let _remainder = Remainder(self);
        if let Some((awaited, time)) = self.begin_drain(replaced) {
            self.wait(awaited, clock, deadline(clock, time));
        }
    }

    /// Returns what to wait for, and for how long at most; `None` in the background, or if this thread would wait for itself.
    fn begin_drain(&self, replaced: Option<Arc<Tracked<T>>>) -> Option<(Awaited, Duration)> {
        let number = replaced.as_ref().map_or(0, |value| value.number());
        self.release(replaced);
        let Drain::Wait(time) = self.drain else { return None };
        let waits_for_itself =
            self.state.lock().is_guarded_by_this_thread(number) || self.is_finalized_by_this_thread();
        (!waits_for_itself).then_some((Awaited::Drained(number), time))
    }

    /// This thread is about to wait for a build that only waits for the readers of the value that it has replaced. If this
    /// thread is one of them, the build stops waiting, as if its time were over.
    pub(crate) fn abandon_drain_that_waits_for_this_thread(&self) {
        let mut state = self.state.lock();
        if state.is_guarded_by_this_thread(state.queue.build_drain()) {
            state.queue.abandon_build_drain();
            wake_waiters(state);
        }
    }

    /// Whether this thread holds a `ReadGuard` of any value of the cell.
    pub(crate) fn has_guard_of_this_thread(&self) -> bool {
        let state = self.state.lock();
        state.is_guarded_by_this_thread(u64::MAX) || any_guard(|address| state.queue.has_unpublished(address))
    }
}

impl<T> State<T> {
    /// Whether this thread holds a `ReadGuard` of a published value with this number or a smaller one.
    fn is_guarded_by_this_thread(&self, number: u64) -> bool {
        any_guard(|address| self.queue.has_published(number, address))
    }

    fn why_not_wait(&self, number: u64) -> Option<&'static str> {
        let this = current_thread().id();
        if self.queue.finalizing() == Some(this) {
            Some("it was called from inside the finalizer")
        } else if self.queue.has_taken(number, this) {
            Some("it was called under the write lock, which holds a value that has been cleared")
        } else if self.is_guarded_by_this_thread(number) {
            Some("this thread holds a ReadGuard of a value that has been replaced; drop it before")
        } else {
            None
        }
    }
}

/// Synchronising.
impl<T> Retirement<T> {
    /// Waits until all values that have been retired by now are finalised, or until `deadline`. `Err`: why it cannot wait.
    pub(crate) fn synchronize<C: Clock>(
        self: &Arc<Self>,
        clock: &C,
        deadline: u64,
    ) -> Result<bool, &'static str> {
        let state = self.state.lock();
        let number = state.queue.last_retired();
        if let Some(reason) = state.why_not_wait(number) {
            return Err(reason);
        }
        drop(state);
        Ok(self.wait(Awaited::Finalized(number), clock, deadline))
    }

    /// What a call reports that has not waited for long enough.
    pub(crate) fn drain_timeout(&self) -> DrainTimeout {
        DrainTimeout { readers: self.state.lock().queue.readers_of_retired() }
    }
}

impl<T> Retirement<T> {
    /// Waits until it is over. Returns whether that is before the deadline.
    pub(super) fn wait<C: Clock>(self: &Arc<Self>, awaited: Awaited, clock: &C, deadline: u64) -> bool {
        let check = |retirement: &Arc<Self>| retirement.check(awaited);
        Entry::new(self).wait(awaited, clock, deadline, check).is_some()
    }

    /// What a waiter does when it has joined the queue or has been woken. `Some`: its wait is over.
    fn check(self: &Arc<Self>, awaited: Awaited) -> Option<()> {
        if self.helps(awaited) {
            self.finalize_ready();
        }
        let state = self.state.lock();
        if state.queue.is_over(awaited) {
            return Some(());
        }
        if state.queue.is_ready() {
            // A `clear` has retired a value without readers that a writer has withheld. The thread that clears runs callbacks before it
            // comes to this, and they may wait for the writer.
            self.schedule_finalizer(state);
        }
        None
    }

    /// Whether a waiter runs the finalizer itself.
    pub(super) fn helps(&self, awaited: Awaited) -> bool {
        self.drain != Drain::Background && !matches!(awaited, Awaited::Finalized(_))
    }
}

/// For tasks.
#[cfg(feature = "async")]
impl<T> Retirement<T> {
    /// As [`drain`](Retirement::drain).
    pub(crate) async fn drain_async<C: Clock>(
        self: &Arc<Self>,
        replaced: Option<Arc<Tracked<T>>>,
        clock: &C,
    ) {
        let _remainder = Remainder(self);
        if let Some((awaited, time)) = self.begin_drain(replaced) {
            self.wait_async(awaited, clock, deadline(clock, time)).await;
        }
    }

    /// As [`synchronize`](Retirement::synchronize), without a deadline. It does not detect a task that waits for itself.
    pub(crate) async fn synchronize_async<C: Clock>(self: &Arc<Self>, clock: &C) {
        let number = self.state.lock().queue.last_retired();
        self.wait_async(Awaited::Finalized(number), clock, FOREVER).await;
    }

    async fn wait_async<C: Clock>(self: &Arc<Self>, awaited: Awaited, clock: &C, deadline: u64) {
        let check = |retirement: &Arc<Self>| retirement.check(awaited);
        Entry::new(self).wait_async(awaited, clock, deadline, check).await;
    }
}
