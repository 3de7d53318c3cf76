//! The write section: how a build gets the old value for itself (G12).
//!
//! The cell has withheld the value: it is not in the slot, so no new reader gets it. The writer waits until all older values
//! are finalised. Then it drops its own reference and waits for the last reader, which hands the value over. If the time is over
//! before that, the writer takes its reference back, and the value can be put back into the slot.

use std::time::Duration;

use crate::sync::{Arc, ThreadId, Weak, current_thread, yield_now};
use crate::time::Clock;
use crate::trace;
use crate::wait::wait_until;

use super::drain::{Drain, DrainTimeout};
use super::retirement::{Awaited, Retirement, Tracked, WriteSection};

/// A wait for the write lock that takes longer is reported.
const SLOW_WAIT: Duration = Duration::from_secs(1);

/// Where the old value is while a writer waits for it.
pub(super) enum OldValue<T> {
    /// There is none.
    None,
    /// The writer holds a reference.
    Held(Arc<Tracked<T>>),
    /// Only readers hold references. The last one hands the value over.
    Shared { number: u64, value: Weak<Tracked<T>> },
}

impl<T> OldValue<T> {
    /// The writer drops its reference. Returns whether there is a last reader to wait for.
    fn share(&mut self, retirement: &Retirement<T>) -> bool {
        if let Self::Held(held) = self {
            let (number, value) = (held.number(), Arc::downgrade(held));
            let mut state = retirement.state.lock();
            state.queue.set_held(number, false);
            state.write_section = WriteSection::Waiting { number, writer: current_thread() };
            drop(state);
            *self = Self::Shared { number, value };
        }
        matches!(self, Self::Shared { .. })
    }

    /// Ends the wait for the last reader. Returns the value and its number if that reader has left; otherwise the writer holds
    /// a reference again.
    fn end_wait(&mut self, retirement: &Retirement<T>) -> Option<(u64, T)> {
        let Self::Shared { number, value } = self else { return None };
        loop {
            let mut state = retirement.state.lock();
            match std::mem::replace(&mut state.write_section, WriteSection::None) {
                WriteSection::HandedOver(value) => {
                    let number = *number;
                    *self = Self::None;
                    return Some((number, value));
                }
                waiting => {
                    if let Some(value) = value.upgrade() {
                        state.queue.set_held(*number, true);
                        *self = Self::Held(value);
                        return None;
                    }
                    // The last reference is gone, and the value is about to be handed over.
                    state.write_section = waiting;
                }
            }
            drop(state);
            yield_now();
        }
    }

    /// For a build that does not replace the value: what is to be put back.
    pub(super) fn into_shared(mut self, retirement: &Arc<Retirement<T>>) -> Option<Arc<Tracked<T>>> {
        if let Some((number, value)) = self.end_wait(retirement) {
            return Some(Arc::new(Tracked::numbered(value, number, retirement)));
        }
        if let Self::Held(value) = self { Some(value) } else { None }
    }
}

impl<T> Retirement<T> {
    /// Waits until there is no reader at all, and takes the old value, which the cell has withheld, out of its `Arc`. Returns
    /// it with its number.
    ///
    /// # Errors
    ///
    /// There are readers at the deadline. Then `old` still has the value, as it has if the clock panics.
    pub(super) fn enter_write_section<C: Clock>(
        self: &Arc<Self>,
        old: &mut OldValue<T>,
        builder: ThreadId,
        drain: Drain,
        clock: &C,
        deadline: u64,
    ) -> Result<Option<(u64, T)>, DrainTimeout> {
        let older = match &*old {
            OldValue::Held(value) => value.number() - 1,
            OldValue::None | OldValue::Shared { .. } => self.state.lock().queue.last_retired(),
        };
        let awaited = Awaited::Exclusive { older, helps: drain != Drain::Background };
        let is_over = self.wait_and_report(clock, deadline, |deadline| {
            let has_shared = matches!(old, OldValue::Shared { .. });
            (has_shared || self.wait(awaited, clock, deadline))
                && (!old.share(self) || self.wait_for_last_reader(clock, deadline))
        });
        let taken = old.end_wait(self);
        if !is_over && taken.is_none() {
            return Err(self.write_timeout());
        }
        let number = taken.as_ref().map(|(number, _)| *number);
        self.state.lock().write_section = WriteSection::Entered { builder, taken: number };
        Ok(taken)
    }

    /// Waits until the deadline. If the wait takes long, it is reported on the way.
    fn wait_and_report<C: Clock>(&self, clock: &C, deadline: u64, mut wait: impl FnMut(u64) -> bool) -> bool {
        if cfg!(feature = "tracing") {
            let report_at = crate::time::deadline(clock, SLOW_WAIT);
            if report_at < deadline {
                if wait(report_at) {
                    return true;
                }
                trace::write_lock_waits(self.name(), self.write_timeout().readers);
            }
        }
        wait(deadline)
    }

    fn wait_for_last_reader<C: Clock>(&self, clock: &C, deadline: u64) -> bool {
        let is_handed_over = || matches!(self.state.lock().write_section, WriteSection::HandedOver(_));
        wait_until(clock, deadline, || is_handed_over().then_some(())).is_some()
    }

    /// All readers are in the way of a writer.
    fn write_timeout(&self) -> DrainTimeout {
        let state = self.state.lock();
        DrainTimeout { readers: state.queue.readers() + state.queue.readers_of_unpublished() }
    }

    /// A build that has asked for the write lock ends without a new value, or gives up its wait. The old one is `shared` again.
    pub(super) fn abandon_write_section(&self, shared: Option<&Arc<Tracked<T>>>) {
        let mut state = self.state.lock();
        state.write_section = WriteSection::None;
        if let Some(value) = shared {
            state.queue.put_back(value.number(), value);
        }
    }

    /// A build that had the write lock has replaced the `old` value, whose number is returned.
    pub(super) fn end_write_section(&self, old: Option<(u64, T)>) -> Option<u64> {
        let mut state = self.state.lock();
        // The lease may have been released before: then the next build may already wait for the write lock.
        if let WriteSection::Entered { .. } = state.write_section {
            state.write_section = WriteSection::None;
        }
        let (number, value) = old?;
        // Address 0: the value was moved out of its `Arc`.
        let _ = state.queue.drained(number, 0, value);
        Some(number)
    }

    /// The old value was cleared meanwhile, and is not put back.
    pub(super) fn retire_withheld(self: &Arc<Self>, value: Arc<Tracked<T>>) {
        self.state.lock().queue.set_held(value.number(), false);
        self.retire(Some(value));
    }
}
