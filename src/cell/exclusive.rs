//! A build that needs the old value for itself: the write lock of a [`SyncReaderCell`](crate::SyncReaderCell).

use crate::sync::Arc;
use crate::time::Clock;

use super::attempt::Outcome;
use super::elect::Ticket;
use super::machine::Machine;
use super::publish::unlock;
use super::slot::address_of;
use super::state::{LeaseState, State};

impl<T, C: Clock> Machine<T, C> {
    /// Takes the value out of the slot for the holder of the lease, which cannot be superseded from now on. Until it
    /// [puts the value back](Machine::put_back) or the build ends, other callers find an empty cell in which a build runs,
    /// and wait.
    ///
    /// A build that was displaced by a `clear` also succeeds if no other build has begun: the cell is empty, so it replaces
    /// nothing.
    ///
    /// # Errors
    ///
    /// If the build has been superseded, or displaced by a `set`, whose value it must not replace (G4), or if another build has begun.
    pub(crate) fn withhold(&self, ticket: &Ticket<T>) -> Result<Option<Arc<T>>, ()> {
        let mut state = self.state.lock();
        let is_displaced = state.displaced_up_to >= ticket.origin;
        let supersede_at = match state.lease {
            LeaseState::Building { origin, supersede_at } if origin == ticket.origin => supersede_at,
            LeaseState::Free { .. } if is_displaced && self.slot.is_empty(&state.key) => {
                self.policy.supersede_at(ticket.began)
            }
            _ => return Err(()),
        };
        let record = self.slot.record(&state.key);
        let value = self.slot.replace(&mut state.key, None, record, 0);
        state.lease = LeaseState::Exclusive {
            origin: ticket.origin,
            address: address_of(value.as_ref()),
            supersede_at,
        };
        self.mirror_lease(&state);
        // The waiters look again, and see what the build waits for.
        let waiters = state.take_waiters(Outcome::Abandoned);
        unlock(state, waiters);
        Ok(value)
    }

    /// Puts a withheld value back into service; the build goes on. Returns it if it has been cleared meanwhile.
    pub(crate) fn put_back(&self, ticket: &Ticket<T>, value: Option<Arc<T>>) -> Option<Arc<T>> {
        let mut state = self.state.lock();
        let rejected = self.restore_withheld(&mut state, ticket, value);
        self.mirror_lease(&state);
        // The waiters look again: there may be something to serve.
        let waiters = state.take_waiters(Outcome::Abandoned);
        unlock(state, waiters);
        rejected
    }

    /// Does nothing unless the build has taken the slot for itself, even if it was empty then.
    pub(super) fn restore_withheld(
        &self,
        state: &mut State<T>,
        ticket: &Ticket<T>,
        value: Option<Arc<T>>,
    ) -> Option<Arc<T>> {
        let LeaseState::Exclusive { origin, supersede_at, .. } = state.lease else { return value };
        if origin != ticket.origin {
            return value;
        }
        let is_cleared = state.displaced_up_to >= origin;
        // A build that can no longer be published holds no lease.
        state.lease =
            if is_cleared { LeaseState::FREE } else { LeaseState::Building { origin, supersede_at } };
        let value = value?;
        if is_cleared {
            return Some(value);
        }
        // Nothing was published meanwhile, so the record is still the value's.
        let record = self.slot.record(&state.key);
        let due_at = state.due_at(&self.policy, &record);
        let replaced = self.slot.replace(&mut state.key, Some(value), record, due_at);
        debug_assert!(replaced.is_none(), "nothing is published while a value is withheld");
        None
    }
}
