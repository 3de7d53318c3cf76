//! Writes by callers that do not build: `set`, `restore`, `invalidate`, `clear`, `revoke`, `reset`.
//!
//! What they mean for the build that runs (G4): `set`, `clear`, `revoke` and `reset` displace it, so that it can no longer be
//! published. After an `invalidate` it is published as stale. A `restore` changes nothing for it.

use crate::sync::{Arc, MutexGuard};
use crate::time::Clock;

use super::attempt::{Attempt, Outcome};
use super::listeners::{Noted, Notified};
use super::machine::Machine;
use super::publish::{Leftover, Observer, Term, unlock};
use super::slot::{Record, address_of};
use super::state::{LeaseState, State};

impl<T, C: Clock> Machine<T, C> {
    /// Publishes a value ahead of any build and returns what it replaces.
    ///
    /// # Errors
    ///
    /// If a build has the write lock, or waits for it: what is set, and the end of that build to wait for.
    pub(crate) fn set(
        &self,
        value: Arc<T>,
        term: Term,
        displaces: bool,
        observer: &impl Observer<T>,
    ) -> Result<Leftover<T>, Arc<Attempt<T>>> {
        let ttl = self.draw_ttl(term.ttl);
        let now = self.now();
        let mut state = self.state.lock();
        if let LeaseState::Exclusive { .. } = state.lease {
            return Err(state.open_attempt());
        }
        let mut origin = state.next_origin();
        if term.age > 0 {
            // It was made before: no request that asks for a later build accepts it.
            origin = 0;
        }
        if displaces && state.displace() {
            self.mirror_lease(&state);
        }
        let generation = self.slot.record(&state.key).generation + 1;
        let record = Record { initial_age: term.age, ..Record::fresh(generation, now, ttl) };
        self.note_publication(&mut state, term.ttl.is_some());
        observer.publishes(&value, generation, false);
        let (waiters, leftover) = self.make_visible(&mut state, value, record, origin);
        unlock(state, waiters);
        Ok(leftover)
    }

    pub(crate) fn invalidate(&self) {
        self.invalidate_if(|_| true);
    }

    /// Only if the cell still holds `seen`, and it is not declared stale. Returns whether it was.
    pub(crate) fn invalidate_if_current(&self, seen: &Arc<T>) -> bool {
        let is_held = |state: &State<T>| match state.lease {
            // Perhaps it is put back.
            LeaseState::Exclusive { address, .. } => address == address_of(Some(seen)),
            _ => self.slot.holds(&state.key, seen),
        };
        self.invalidate_if(|state| is_held(state) && !self.slot.record(&state.key).is_declared_stale())
    }

    fn invalidate_if(&self, condition: impl FnOnce(&State<T>) -> bool) -> bool {
        let now = self.now();
        let mut state = self.state.lock();
        if !condition(&state) {
            return false;
        }
        state.invalidated_up_to = state.last_origin;
        state.lease.unsettle();
        // Also that of a value which a build has taken out, and may put back.
        let record = self.slot.record(&state.key).declared_stale_at(now);
        let due_at = if self.slot.is_empty(&state.key) { 0 } else { state.due_at(&self.policy, &record) };
        self.slot.amend(&mut state.key, record, due_at);
        state.listeners.note(&Noted::Invalidated);
        // No value becomes available.
        let notified = state.listeners.notified(false);
        drop(state);
        if let Some(notified) = notified {
            notified.follow();
            notified.notify();
        }
        true
    }

    /// Something that the value was made from has changed. Declares the value stale if it `is_outdated`, which is asked under the
    /// lock, and runs no user code. That fences no build: what a build is made from is looked at when it is published. `retries`:
    /// ends a retry pause. Returns the listeners that are to follow and to be notified: if something has changed here, or
    /// `in_any_case`.
    pub(crate) fn source_changed(
        &self,
        retries: bool,
        in_any_case: bool,
        is_outdated: impl FnOnce() -> bool,
    ) -> Option<Box<Notified<T>>> {
        let now = self.now();
        let mut state = self.state.lock();
        let mut has_changed = in_any_case;
        let mut is_due_sooner = state.lease.unsettle();
        if retries
            && let Some(failure) = &mut state.failure
            && failure.retry_at != 0
        {
            failure.retry_at = 0;
            is_due_sooner = true;
            has_changed = true;
        }
        if is_due_sooner {
            self.mirror(&mut state);
        }
        let record = self.slot.record(&state.key);
        if !self.slot.is_empty(&state.key) && !record.is_declared_stale() && is_outdated() {
            let record = record.declared_stale_at(now);
            let due_at = state.due_at(&self.policy, &record);
            self.slot.amend(&mut state.key, record, due_at);
            state.listeners.note(&Noted::Invalidated);
            has_changed = true;
        }
        if has_changed { state.listeners.notified(false) } else { None }
    }

    /// Takes the value away.
    pub(crate) fn clear(&self, observer: &impl Observer<T>) -> Option<Arc<T>> {
        self.clear_locked(self.state.lock(), observer, false)
    }

    /// Only if the cell still holds `seen`. Returns whether it did.
    pub(crate) fn clear_if_current(&self, seen: &Arc<T>) -> bool {
        let state = self.state.lock();
        if !self.slot.holds(&state.key, seen) {
            return false;
        }
        drop(self.clear_locked(state, &(), false));
        true
    }

    /// As [`clear`](Machine::clear), and forgets failures and statistics.
    pub(crate) fn reset(&self, observer: &impl Observer<T>) -> Option<Arc<T>> {
        self.clear_locked(self.state.lock(), observer, true)
    }

    fn clear_locked(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        observer: &impl Observer<T>,
        resets: bool,
    ) -> Option<Arc<T>> {
        observer.clears();
        state.lease.unsettle();
        let record = self.slot.record(&state.key);
        let cleared = self.slot.replace(&mut state.key, None, record, 0);
        let failure = if resets {
            self.counters.reset();
            state.failure.take()
        } else {
            None
        };
        // The waiters of a build that has lost its lease look again, and one of them builds.
        let waiters = if state.displace() { state.take_waiters(Outcome::Abandoned) } else { None };
        self.mirror(&mut state);
        state.listeners.note(&Noted::Cleared);
        unlock(state, waiters);
        drop(failure);
        cleared
    }

    /// The build that runs can no longer be published. Returns whether one did run.
    pub(crate) fn revoke(&self) -> bool {
        let mut state = self.state.lock();
        if !matches!(state.lease, LeaseState::Building { .. }) {
            return false;
        }
        state.displace();
        let waiters = state.take_waiters(Outcome::Abandoned);
        self.mirror(&mut state);
        unlock(state, waiters);
        true
    }
}
