//! A build that needs the old value for itself: the write lock of a [`SyncReaderCell`](crate::SyncReaderCell).

use crate::sync::Arc;
use crate::time::Clock;

use super::attempt::Outcome;
use super::elect::Ticket;
use super::machine::Machine;
use super::publish::unlock;
use super::slot::address_of;
use super::state::{LeaseState, Place, State, Withheld};

impl<T, C: Clock> Machine<T, C> {
    /// Takes the value out of the slot for the holder of the lease, which cannot be superseded from now on. Until it
    /// [puts the value back](Machine::put_back) or the build ends, other callers find an empty cell in which a build runs,
    /// and wait.
    ///
    /// A build that was displaced by a `clear` also succeeds if no other build has begun: the cell is empty, so it replaces
    /// nothing.
    ///
    /// `None` if the build has been superseded, or displaced by a `set`, whose value it must not replace (G4), or if another
    /// build has begun.
    pub(crate) fn withhold(&self, ticket: &Ticket<T>) -> Option<Withheld<T>> {
        let mut state = self.state.lock();
        let is_displaced = state.displaced >= ticket.origin;
        let supersede_at = match state.lease {
            LeaseState::Building { origin, supersede_at } if origin == ticket.origin => supersede_at,
            LeaseState::Free { .. } if is_displaced && self.slot.is_empty(&state.key) => {
                self.policy.supersede_at(ticket.began)
            }
            _ => return None,
        };
        let record = self.slot.record(&state.key);
        let value = self.slot.replace(&mut state.key, None, record, 0);
        state.lease = LeaseState::Exclusive {
            origin: ticket.origin,
            address: address_of(value.as_ref()),
            declared_stale: record.declared_stale,
        };
        let place = Place { record, supersede_at, was_displaced: is_displaced };
        self.mirror_lease(&state);
        // The waiters look again, and see what the build waits for.
        let waiters = state.take_waiters(Outcome::Abandoned);
        unlock(state, waiters);
        Some(Withheld { value, place })
    }

    /// Puts a withheld value back into service; the build goes on. Returns it if it has been cleared meanwhile.
    pub(crate) fn put_back(&self, withheld: Withheld<T>) -> Option<Arc<T>> {
        let mut state = self.state.lock();
        let rejected = self.restore_withheld(&mut state, withheld);
        self.mirror_lease(&state);
        // The waiters look again: there may be something to serve.
        let waiters = state.take_waiters(Outcome::Abandoned);
        unlock(state, waiters);
        rejected
    }

    pub(super) fn restore_withheld(&self, state: &mut State<T>, withheld: Withheld<T>) -> Option<Arc<T>> {
        let Withheld { value, place } = withheld;
        let mut is_cleared = place.was_displaced;
        let mut record = place.record;
        if let LeaseState::Exclusive { origin, declared_stale, .. } = state.lease {
            is_cleared = state.displaced >= origin;
            record = record.lapsed(declared_stale);
            // A build that can no longer be published holds no lease.
            state.lease = if is_cleared {
                LeaseState::FREE
            } else {
                LeaseState::Building { origin, supersede_at: place.supersede_at }
            };
        }
        let value = value?;
        if is_cleared {
            return Some(value);
        }
        let due_at = state.due_at(&self.policy, &record);
        let replaced = self.slot.replace(&mut state.key, Some(value), record, due_at);
        debug_assert!(replaced.is_none(), "nothing is published while a value is withheld");
        None
    }
}
