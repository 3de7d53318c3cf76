//! Which thread runs the finalizer.
//!
//! Never two at a time. Under [`Drain::Wait`](super::Drain::Wait): the caller that waits for the readers of the value that it has
//! replaced, or for the write lock. Otherwise: the cell's own thread, which is started when it is needed and ends when nothing is
//! left to finalise. No other caller and no reader that leaves ever runs it, except where that thread cannot be started.
//!
//! # Wake-ups
//!
//! When a value is ready, because it was retired and it is its turn and its last reader has left, one thread is woken: a waiter that
//! helps, or else the cell's own thread. The last reader of the value that a writer waits for wakes that writer. The end of a
//! finalizer wakes the waiters whose wait is over.

use crate::contain::contain;
use crate::own_thread;
use crate::sync::{Arc, MutexGuard, Thread, current_thread, park};
use crate::trace::{self, Moment};
use crate::wait::Waiter;

use super::queue::Awaited;
use super::retirement::{Retirement, State};

/// Wakes the waiters whose wait is over.
pub(super) fn wake_waiters<T>(mut state: MutexGuard<'_, State<T>>) {
    let State { queue, waiters, .. } = &mut *state;
    let woken: Vec<Waiter> = waiters.matching(|awaited| queue.is_over(*awaited)).collect();
    drop(state);
    for waiter in woken {
        waiter.wake();
    }
}

impl<T> Retirement<T> {
    /// If a value is ready, wakes the thread that finalises it. If no reader is left, wakes the writer that waits for that.
    pub(super) fn schedule_finalizer(self: &Arc<Self>, mut state: MutexGuard<'_, State<T>>) {
        if !state.queue.is_ready() {
            // Only then, as there may be many waiters: the others wait for the end of a finalizer.
            if state.queue.is_over(Awaited::Exclusive) {
                wake_waiters(state);
            }
            return;
        }
        // One is enough: a waiter that helps and leaves without having done it calls this again. Nothing waits for a cell that
        // has been dropped: a waiter that is still in the queue is a leaked task's.
        let is_closed = state.is_closed;
        let helper = state.waiters.matching(|awaited| self.helps(*awaited) && !is_closed).next();
        let waiter = helper.or_else(|| self.start_thread(&mut state).map(Waiter::Thread));
        drop(state);
        match waiter {
            Some(waiter) => waiter.wake(),
            // The thread cannot be started.
            None => self.finalize_ready(),
        }
    }

    /// Runs the finalizer as long as a value is ready.
    ///
    /// A panic of the finalizer ends here, after the panic hook has reported it: it must not cost the caller its result, nor
    /// the later values their finalizer (G11).
    pub(super) fn finalize_ready(&self) {
        while let Some((number, value)) = self.begin_finalizer() {
            let begun = Moment::now();
            contain(|| (self.finalizer)(value));
            let mut state = self.state.lock();
            state.queue.end_finalizer(number);
            let name = state.name;
            wake_waiters(state);
            trace::finalized(name, number, begun);
        }
    }

    fn begin_finalizer(&self) -> Option<(u64, T)> {
        self.state.lock().queue.begin_finalizer(current_thread().id())
    }

    pub(crate) fn is_finalized_by_this_thread(&self) -> bool {
        self.state.lock().queue.finalizing() == Some(current_thread().id())
    }
}

/// The cell's own thread.
impl<T> Retirement<T> {
    /// Starts the thread unless it runs. `None`: it cannot be started.
    pub(super) fn start_thread(self: &Arc<Self>, state: &mut State<T>) -> Option<Thread> {
        if state.thread.is_none() {
            state.thread = (self.start)(Arc::clone(self)).ok();
        }
        state.thread.as_ref().map(|handle| handle.thread().clone())
    }

    /// What the thread does. When the cell has been dropped, the thread does not wait for readers: the last one of a value starts
    /// it again.
    pub(super) fn run_thread(&self) {
        loop {
            self.finalize_ready();
            let mut state = self.state.lock();
            if state.queue.is_ready() {
                continue;
            }
            if state.is_closed || state.queue.finalized() == state.queue.last_retired() {
                // Nothing is left to finalise. When something is, the thread is started again.
                state.thread = None;
                return;
            }
            drop(state);
            // Between the check and this nothing runs that could take the thread's token.
            park();
        }
    }

    /// The cell is being dropped. What is ready is still finalised, by the cell's own thread. That is joined, but not by another
    /// of the crate's threads (see [`own_thread`]).
    pub(crate) fn close(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.is_closed = true;
        self.schedule_finalizer(state);
        // A last reader may start another thread from now on. Both do what is ready, and end.
        let thread = self.state.lock().thread.take();
        if let Some(thread) = thread {
            thread.thread().unpark();
            if own_thread::role() == own_thread::Role::Foreign {
                // It contains the panics of finalizers and has none of its own.
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Drain;
    use super::super::SyncReaderCell;
    use super::super::queue::Awaited;
    use super::*;
    use crate::policy::Policy;
    use crate::sync::yield_now;

    fn cell() -> SyncReaderCell<u32> {
        SyncReaderCell::new(Duration::MAX, drop)
    }

    fn has_thread(retirement: &Retirement<u32>) -> bool {
        retirement.state.lock().thread.is_some()
    }

    fn finalized(retirement: &Retirement<u32>) -> u64 {
        retirement.state.lock().queue.finalized()
    }

    #[test]
    fn the_thread_runs_while_something_is_left_to_finalise_and_no_longer() {
        let cell = cell();
        for value in 0..10 {
            cell.set(value);
        }
        cell.synchronize();
        while has_thread(&cell.retirement) {
            yield_now();
        }
        let reader = cell.get();
        cell.set(10);
        assert!(has_thread(&cell.retirement));
        drop(reader);
        cell.synchronize();
        while has_thread(&cell.retirement) {
            yield_now();
        }
    }

    #[test]
    fn a_dropped_cell_keeps_no_thread_for_a_reader() {
        let cell = cell();
        let retirement = Arc::clone(&cell.retirement);
        let reader = cell.set(1);
        cell.set(2);
        assert!(has_thread(&retirement));
        drop(cell);
        while has_thread(&retirement) {
            yield_now();
        }
        drop(reader);
        while finalized(&retirement) < 1 {
            yield_now();
        }
    }

    /// Without a thread the last reader runs the finalizer, or else the drop of the cell.
    #[test]
    fn a_cell_without_a_thread_finalises_what_a_leaked_task_was_to_finalise() {
        let drain = Drain::Wait(Duration::ZERO);
        let mut cell = SyncReaderCell::with_policy(Policy::ttl(Duration::MAX), drain, drop);
        let start = |_| Err(std::io::ErrorKind::Unsupported.into());
        Arc::get_mut(&mut cell.retirement).expect("there is no value yet").start = start;
        let retirement = Arc::clone(&cell.retirement);
        let reader = cell.set(1);
        retirement.state.lock().waiters.join(Waiter::this_thread(), Awaited::Drained(1));
        cell.set(2);
        drop(reader);
        assert_eq!(finalized(&retirement), 0);
        drop(cell);
        assert_eq!(finalized(&retirement), 1);
    }

    #[test]
    fn unpublished_values_are_forgotten_when_they_are_gone() {
        let cell = cell();
        for value in 0..10 {
            cell.get_or_refresh(|| {
                cell.clear();
                value
            });
        }
        while !cell.retirement.state.lock().queue.is_over(Awaited::Exclusive) {
            yield_now();
        }
    }
}
