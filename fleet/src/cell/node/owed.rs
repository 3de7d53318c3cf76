//! Invalidations, and those that are owed. See the head of the [module](super).

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, PoisonError};

use dogpile::{Clock, Tick};

use super::Node;
use super::state::State;
use crate::access::Operation;
use crate::breaker::Kind;
use crate::cell::job::Job;
use crate::store::{Invalidation, StoreError};

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Invalidates the value, in the store and here.
    pub(crate) fn invalidate(&self, how: Invalidation) -> Result<(), Arc<StoreError>> {
        self.invalidate_by(how, || self.deliver_owed())
    }

    /// The same on a thread that others wait for. While the store is left alone it is delivered later.
    #[cfg(feature = "async")]
    pub(crate) fn invalidate_soon(&self, how: Invalidation) -> Result<(), Arc<StoreError>> {
        self.invalidate_by(how, || self.access.left_alone().map_or_else(|| self.deliver_owed(), Err))
    }

    fn invalidate_by(
        &self,
        how: Invalidation,
        deliver: impl FnOnce() -> Result<(), Arc<StoreError>>,
    ) -> Result<(), Arc<StoreError>> {
        // Before the store is asked: what is asked of it from now on delivers this first, should it fail.
        self.with(|state| state.owes(how));
        let told = catch_unwind(AssertUnwindSafe(deliver));
        self.with(State::has_tried);
        // After the store: nobody can take the old value over as a fresh one any more.
        match how {
            Invalidation::Soft => self.local.invalidate(),
            Invalidation::Hard => drop(self.local.clear()),
        }
        if !matches!(told, Ok(Ok(()))) {
            self.mailbox.attach();
            self.mailbox.nudge(Job::Kick);
        }
        self.mailbox.nudge(Job::Look);
        told.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Whether there is an invalidation that the store has not acknowledged, and that nobody is delivering.
    pub(super) fn is_owing(&self) -> bool {
        self.with(|state| state.is_owing())
    }

    /// Delivers what is owed from before.
    pub(super) fn deliver(&self) -> Result<(), Arc<StoreError>> {
        let turn = self.with(|state| Arc::clone(&state.turn));
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_owing() {
            return Ok(());
        }
        self.deliver_owed()?;
        self.access.counters.redelivered.count();
        Ok(())
    }

    fn deliver_owed(&self) -> Result<(), Arc<StoreError>> {
        let Some(owing) = self.with(|state| state.owed()) else { return Ok(()) };
        let epoch = self.try_ask(Operation::Invalidate, |store, name| store.invalidate(name, owing.how))?;
        self.with(|state| state.has_delivered(owing, epoch));
        Ok(())
    }

    /// Delivers what could not be delivered before. Returns when to try again.
    pub(crate) fn tidy_owed(&self, now: Tick) -> Option<Tick> {
        if !self.is_owing() {
            return None;
        }
        if let Some(until) = self.open_until(Kind::Change, now) {
            return Some(until);
        }
        self.deliver().err()?;
        let now = self.clock.now();
        Some(self.open_until(Kind::Change, now).unwrap_or(now.saturating_add(self.policy.breaker.0)))
    }
}
