//! How threads and tasks wait for an event, or for a deadline.
//!
//! An [`Entry`] is a waiter's place in the queue of a [`WaitPoint`]. A waiter joins the queue before it checks whether the
//! event has happened, and whatever makes an event happen wakes the queue afterwards: so no wake-up is lost.

mod queue;

use std::ops::Deref;
use std::panic::{RefUnwindSafe, UnwindSafe};

use crate::sync::park;
use crate::time::{Clock, FOREVER, Tick};

pub(crate) use queue::{WaitQueue, Waiter};

#[cfg(feature = "async")]
use {
    crate::time::Alarm,
    std::task::{Context, Poll},
};

/// What threads and tasks wait at.
pub(crate) trait WaitPoint {
    /// What a waiter waits for.
    type Note: Copy;

    /// Runs `access` under the lock of the queue.
    fn with_queue<R>(&self, access: impl FnOnce(&mut WaitQueue<Self::Note>) -> R) -> R;

    /// A waiter leaves.
    fn leave(&self, number: usize) {
        let left = self.with_queue(|queue| queue.leave(number));
        // A drop of a waker is user code: without the lock.
        drop(left);
    }
}

/// A waiter's place in the queue, given up when dropped.
pub(crate) struct Entry<P: Deref<Target: WaitPoint>> {
    point: P,
    /// Its number in the queue, while it waits.
    number: Option<usize>,
    /// The deadline of a task that waits, if there is one.
    #[cfg(feature = "async")]
    alarm: Option<(Tick, Alarm)>,
}

impl<P: Deref<Target: WaitPoint>> Entry<P> {
    /// Joins the queue when the wait begins.
    pub(crate) fn new(point: P) -> Self {
        Self {
            point,
            number: None,
            #[cfg(feature = "async")]
            alarm: None,
        }
    }

    pub(crate) fn point(&self) -> &P::Target {
        &self.point
    }

    /// Blocks until `check` yields something, or until `clock` shows `deadline`.
    pub(crate) fn wait<C: Clock, R>(
        &mut self,
        note: <P::Target as WaitPoint>::Note,
        clock: &C,
        deadline: u64,
        mut check: impl FnMut(&P::Target) -> Option<R>,
    ) -> Option<R> {
        self.number = Some(self.point.with_queue(|queue| queue.join(Waiter::this_thread(), note)));
        let result = loop {
            // The clock first: between the check and the parking nothing may run that could take the thread's token,
            // with which it may just have been woken.
            let now = if deadline == FOREVER { Tick(0) } else { clock.now() };
            if let Some(result) = check(&self.point) {
                break Some(result);
            }
            if deadline == FOREVER {
                park();
            } else if now >= Tick(deadline) {
                break None;
            } else {
                clock.park_until(Tick(deadline), now);
            }
        };
        self.leave();
        result
    }

    /// Ends a wait, if there is one; another one can begin.
    pub(crate) fn leave(&mut self) {
        if let Some(number) = self.number.take() {
            self.point.leave(number);
        }
        #[cfg(feature = "async")]
        {
            // It keeps a waker as well.
            self.alarm = None;
        }
    }
}

/// For tasks.
#[cfg(feature = "async")]
impl<P: Deref<Target: WaitPoint>> Entry<P> {
    /// Whether a wait has begun and not ended.
    pub(crate) fn has_joined(&self) -> bool {
        self.number.is_some()
    }

    /// As [`wait`](Entry::wait). A poll after it was ready begins another wait.
    pub(crate) fn poll<C: Clock, R>(
        &mut self,
        note: <P::Target as WaitPoint>::Note,
        clock: &C,
        deadline: u64,
        cx: &mut Context<'_>,
        check: impl FnOnce(&P::Target) -> Option<R>,
    ) -> Poll<Option<R>> {
        if let Some(number) = self.number {
            if !self.point.with_queue(|queue| queue.will_wake(number, cx.waker())) {
                let waiter = Waiter::Task(cx.waker().clone());
                let unused = self.point.with_queue(|queue| queue.register(number, waiter));
                // Without the lock.
                drop(unused);
            }
        } else {
            let until = Tick(deadline);
            self.alarm = (deadline != FOREVER).then(|| (until, clock.sleep_until(until, clock.now())));
            let waiter = Waiter::Task(cx.waker().clone());
            self.number = Some(self.point.with_queue(|queue| queue.join(waiter, note)));
        }
        let result = check(&self.point);
        if result.is_none() && !self.is_over(clock, cx) {
            return Poll::Pending;
        }
        self.leave();
        Poll::Ready(result)
    }

    /// Whether the deadline has come; if not, the task is woken when it does.
    fn is_over<C: Clock>(&mut self, clock: &C, cx: &mut Context<'_>) -> bool {
        let Some((deadline, alarm)) = &mut self.alarm else { return false };
        if alarm.as_mut().poll(cx).is_pending() {
            return false;
        }
        let now = clock.now();
        if now >= *deadline {
            return true;
        }
        // The alarm was early: the next poll starts another one. (Not in a loop: a clock whose alarms are always early would
        // never yield to other tasks.)
        *alarm = clock.sleep_until(*deadline, now);
        cx.waker().wake_by_ref();
        false
    }

    /// As [`wait`](Entry::wait), for a task that does nothing else.
    pub(crate) async fn wait_async<C: Clock, R>(
        mut self,
        note: <P::Target as WaitPoint>::Note,
        clock: &C,
        deadline: u64,
        mut check: impl FnMut(&P::Target) -> Option<R>,
    ) -> Option<R> {
        std::future::poll_fn(|cx| self.poll(note, clock, deadline, cx, &mut check)).await
    }
}

// After a panic an entry is what it was, and its drop leaves the queue.
impl<P: Deref<Target: WaitPoint>> UnwindSafe for Entry<P> {}
impl<P: Deref<Target: WaitPoint>> RefUnwindSafe for Entry<P> {}

impl<P: Deref<Target: WaitPoint>> Drop for Entry<P> {
    fn drop(&mut self) {
        self.leave();
    }
}
