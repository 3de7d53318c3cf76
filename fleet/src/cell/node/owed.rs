//! Invalidations, and those that are owed. See the head of the [module](super).

use std::sync::{Arc, PoisonError};

use dogpile::{Clock, Tick};

use super::Node;
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
        {
            // Before the store is asked: what is asked of it from now on delivers this first, should it fail.
            let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
            owed.number += 1;
            owed.how = Some(if owed.how == Some(Invalidation::Hard) { Invalidation::Hard } else { how });
            owed.delivering += 1;
        }
        let told = self.deliver_owed();
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).delivering -= 1;
        // After the store: nobody can take the old value over as a fresh one any more.
        match how {
            Invalidation::Soft => self.local.invalidate(),
            Invalidation::Hard => drop(self.local.clear()),
        }
        if told.is_err() {
            self.mailbox.attach();
            self.mailbox.nudge(Job::Kick);
        }
        self.mailbox.nudge(Job::Look);
        told
    }

    /// How many invalidations this node has begun.
    pub(super) fn invalidations(&self) -> u64 {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).number
    }

    /// Whether there is an invalidation that the store has not acknowledged, and that nobody is delivering.
    pub(super) fn is_owing(&self) -> bool {
        let owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        owed.how.is_some() && owed.delivering == 0
    }

    /// Delivers what is owed from before.
    pub(super) fn deliver(&self) -> Result<(), Arc<StoreError>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_owing() {
            return Ok(());
        }
        self.deliver_owed()?;
        self.access.counters.redelivered.count();
        Ok(())
    }

    pub(super) fn deliver_owed(&self) -> Result<(), Arc<StoreError>> {
        let (how, number) = {
            let owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(how) = owed.how else { return Ok(()) };
            (how, owed.number)
        };
        self.try_ask(Operation::Invalidate, |store, name| store.invalidate(name, how))?;
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        if owed.number == number {
            owed.how = None;
        }
        drop(owed);
        self.has_delivered(number);
        Ok(())
    }

    /// The store's epoch is one more than it was, at least.
    pub(super) fn has_delivered(&self, number: u64) {
        if let Some(epoch) = &mut *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) {
            epoch.number += 1;
        }
        if let Some(seen) = &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner) {
            seen.epoch.number += 1;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Built here after it had begun: it is not what was invalidated.
        if known.local_after >= number
            && let Some(epoch) = &mut known.local_epoch
        {
            epoch.number += 1;
        }
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
