//! The write section: how a build gets the old value for itself (G12).
//!
//! The cell has withheld the value: it is not in the slot, so no new reader gets it. The writer drops the slot's reference. The last
//! reference to be dropped moves the value into its queue entry, as with any other value. When all older and all unpublished values
//! are finalised, the writer takes it from there. If it has been cleared, the writer waits for its finalizer too, and takes nothing.
//! If the time is over before that, the value is put back into the slot: in its `Arc` if it has readers, else in a new one.

use std::time::Duration;

use crate::sync::{Arc, ThreadId, current_thread, yield_now};
use crate::time::Clock;
use crate::trace;

use super::drain::DrainTimeout;
use super::queue::Awaited;
use super::retirement::{Retirement, State, Tracked};

/// A wait for the write lock that takes longer is reported.
const SLOW_WAIT: Duration = Duration::from_secs(1);

impl<T> State<T> {
    /// All readers are in the way of a writer.
    fn write_timeout(&self) -> DrainTimeout {
        DrainTimeout { readers: self.queue.readers() + self.queue.readers_of_unpublished() }
    }
}

impl<T> Retirement<T> {
    /// The cell has withheld `value` for a writer.
    pub(super) fn withhold(&self, value: Option<Arc<Tracked<T>>>) {
        if value.is_some() {
            self.state.lock().queue.withhold();
            // As a reader does: if this is the last reference, the value goes to its queue entry, and wakes what waits for that.
            drop(value);
        }
    }

    /// Waits until there is no reader at all, and takes the value that is withheld, if there is one. Returns it with its number.
    /// `builder`: the thread that builds.
    ///
    /// # Errors
    ///
    /// There are readers at the deadline.
    pub(super) fn take_withheld<C: Clock>(
        self: &Arc<Self>,
        builder: ThreadId,
        clock: &C,
        deadline: u64,
    ) -> Result<Option<(u64, T)>, DrainTimeout> {
        if cfg!(feature = "tracing") {
            let report_at = crate::time::deadline(clock, SLOW_WAIT);
            if report_at < deadline && !self.wait(Awaited::Exclusive, clock, report_at) {
                let state = self.state.lock();
                let (name, timeout) = (state.name, state.write_timeout());
                drop(state);
                trace::write_lock_waits(name, timeout.readers);
            }
        }
        loop {
            let in_time = self.wait(Awaited::Exclusive, clock, deadline);
            let mut state = self.state.lock();
            // Perhaps no longer: the value of a build that was superseded has a reader, its caller. Or only now.
            if state.queue.is_over(Awaited::Exclusive) {
                let number = state.queue.current();
                return Ok(number.and_then(|number| Some((number, state.queue.take(number, builder)?))));
            }
            if !in_time {
                return Err(state.write_timeout());
            }
        }
    }

    /// For a build that does not get the write lock: what is withheld, to be put back into the slot. `None`: there was no value, or
    /// it has been cleared.
    pub(super) fn end_withholding(self: &Arc<Self>) -> Option<Arc<Tracked<T>>> {
        loop {
            let mut state = self.state.lock();
            let Some((number, shared)) = state.queue.withheld() else {
                // If it has been cleared, it may be ready.
                self.schedule_finalizer(state);
                return None;
            };
            if let Some(value) = shared {
                state.queue.put_back(number, &value);
                return Some(value);
            }
            let value = state.queue.take(number, current_thread().id());
            drop(state);
            match value {
                Some(value) => return Some(self.put_back(number, value)),
                // The last reader is about to move it here.
                None => yield_now(),
            }
        }
    }

    /// A value that a writer has taken, to be put back into the slot, or to be retired.
    pub(super) fn put_back(self: &Arc<Self>, number: u64, value: T) -> Arc<Tracked<T>> {
        let value = Arc::new(Tracked::numbered(value, number, self));
        self.state.lock().queue.put_back(number, &value);
        value
    }
}
