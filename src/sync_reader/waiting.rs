//! Waiting for values to be finalised.
//!
//! A thread that waits for itself is detected where it can be: it runs the finalizer, it holds a `ReadGuard` of an awaited value,
//! or it holds the write lock and with it an awaited value. A `ReaderArc` may have been sent to another thread, so it is not known
//! which thread holds it.

use crate::inside::any_guard;
use crate::sync::{Arc, current_thread};
use crate::time::{Clock, deadline};
use crate::wait::{Entry, WaitPoint, WaitQueue, Waiter};

#[cfg(feature = "async")]
use crate::time::FOREVER;

use super::drain::{Drain, DrainTimeout};
use super::retirement::{Awaited, Retirement, Tracked, WriteSection};

impl<T> WaitPoint for Arc<Retirement<T>> {
    type Note = Awaited;

    fn with_queue<R>(&self, access: impl FnOnce(&mut WaitQueue<Awaited>) -> R) -> R {
        access(&mut self.state.lock().waiters)
    }

    fn leave(&self, number: usize) {
        let mut state = self.state.lock();
        let left = state.waiters.leave(number);
        // A wake-up that has reached this waiter is passed on.
        self.schedule_finalizer(state);
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
    /// Drops the reference to a value that has been replaced, and waits as `drain` says. If a writer has taken the value out
    /// of its `Arc`, `taken` is its number.
    pub(crate) fn drain<C: Clock>(
        self: &Arc<Self>,
        replaced: Option<Arc<Tracked<T>>>,
        taken: Option<u64>,
        drain: Drain,
        clock: &C,
    ) {
        let Drain::Wait(wait) = drain else { return self.retire(replaced) };
        let _remainder = Remainder(self);
        if let Some(awaited) = self.begin_drain(replaced, taken) {
            self.wait(awaited, clock, deadline(clock, wait));
        }
    }

    /// Returns what to wait for, unless this thread would wait for itself.
    fn begin_drain(&self, replaced: Option<Arc<Tracked<T>>>, taken: Option<u64>) -> Option<Awaited> {
        let number = taken.or(replaced.as_ref().map(|value| value.number())).unwrap_or(0);
        self.release(replaced);
        let waits_for_itself = self.is_guarded_by_this_thread(number) || self.is_finalized_by_this_thread();
        (!waits_for_itself).then_some(Awaited::Drained(number))
    }

    /// This thread is about to wait for a build that only waits for the readers of the value that it has replaced. If this
    /// thread is one of them, the build stops waiting, as if its time were over.
    pub(crate) fn abandon_drain_that_waits_for_this_thread(&self) {
        let number = self.state.lock().build_drain.number;
        if !self.is_guarded_by_this_thread(number) {
            return;
        }
        let mut state = self.state.lock();
        if state.build_drain.number != number {
            // That build has ended.
            return;
        }
        state.build_drain.is_abandoned = true;
        let is_drainer =
            |awaited: &Awaited| matches!(awaited, Awaited::Drained(drained) if *drained == number);
        let drainers: Vec<Waiter> = state.waiters.matching(is_drainer).collect();
        drop(state);
        for drainer in drainers {
            drainer.wake();
        }
    }

    /// Whether this thread holds a `ReadGuard` of a published value with this number or a smaller one.
    fn is_guarded_by_this_thread(&self, number: u64) -> bool {
        any_guard(|address| self.state.lock().queue.has_published(number, address))
    }

    /// Whether this thread holds a `ReadGuard` of any value of the cell.
    pub(crate) fn has_guard_of_this_thread(&self) -> bool {
        self.is_guarded_by_this_thread(u64::MAX)
            || any_guard(|address| self.state.lock().queue.has_unpublished(address))
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
        let number = self.state.lock().queue.last_retired();
        match self.why_not_wait(number) {
            Some(reason) => Err(reason),
            None => Ok(self.wait(Awaited::Finalized(number), clock, deadline)),
        }
    }

    fn why_not_wait(&self, number: u64) -> Option<&'static str> {
        let this = current_thread().id();
        let holds_it = matches!(
            self.state.lock().write_section,
            WriteSection::Entered { builder, taken: Some(taken) } if builder == this && taken <= number
        );
        if self.is_finalized_by_this_thread() {
            Some("it was called from inside the finalizer")
        } else if holds_it {
            Some("it was called under the write lock, which holds a value that has been cleared")
        } else if self.is_guarded_by_this_thread(number) {
            Some("this thread holds a ReadGuard of a value that has been replaced; drop it before")
        } else {
            None
        }
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
    fn check(&self, awaited: Awaited) -> Option<()> {
        if awaited.helps() {
            self.finalize_ready();
        }
        awaited.is_over(&self.state.lock()).then_some(())
    }
}

/// For tasks.
#[cfg(feature = "async")]
impl<T> Retirement<T> {
    /// As [`drain`](Retirement::drain). While what `building` returns lives, this thread is noted as building.
    pub(crate) async fn drain_async<C: Clock, B>(
        self: &Arc<Self>,
        replaced: Option<Arc<Tracked<T>>>,
        taken: Option<u64>,
        drain: Drain,
        clock: &C,
        building: impl Fn() -> B,
    ) {
        let Drain::Wait(wait) = drain else { return self.retire(replaced) };
        let remainder = Remainder(self);
        if let Some(awaited) = self.begin_drain(replaced, taken) {
            self.wait_async(awaited, clock, deadline(clock, wait), &building).await;
        }
        let _building = building();
        drop(remainder);
    }

    /// As [`synchronize`](Retirement::synchronize), without a deadline. It does not detect a task that waits for itself.
    pub(crate) async fn synchronize_async<C: Clock>(self: &Arc<Self>, clock: &C) {
        let number = self.state.lock().queue.last_retired();
        self.wait_async(Awaited::Finalized(number), clock, FOREVER, || ()).await;
    }

    async fn wait_async<C: Clock, B>(
        self: &Arc<Self>,
        awaited: Awaited,
        clock: &C,
        deadline: u64,
        building: impl Fn() -> B,
    ) {
        let mut entry = Entry::new(self);
        std::future::poll_fn(|cx| {
            let _building = building();
            let check = |retirement: &Arc<Self>| retirement.check(awaited);
            entry.poll(awaited, clock, deadline, cx, check).map(drop)
        })
        .await;
    }
}
