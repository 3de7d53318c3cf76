//! The store, as the loads of all keys use it.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dogpile::{Clock, Tick};

use super::beats;
use crate::access::{Access, Operation};
use crate::policy::FleetPolicy;
use crate::store::{Acquire, Invalidation, Request, StoreError, Token};

/// What does not depend on the type of the values.
pub(super) struct Shared<C> {
    pub(super) name: String,
    pub(super) access: Access<C>,
    pub(super) policy: FleetPolicy,
    pub(super) clock: C,
    /// Invalidations that the store has not acknowledged.
    owed: Mutex<HashMap<String, Invalidation>>,
}

impl<C: Clock + 'static> Shared<C> {
    pub(super) fn new(name: String, access: Access<C>, policy: FleetPolicy, clock: C) -> Self {
        Self { name, access, policy, clock, owed: Mutex::default() }
    }

    pub(super) fn name_of(&self, key: &str) -> Result<String, Arc<StoreError>> {
        let name = format!("{}:{key}", self.name);
        if name.len() <= 64 && !name.chars().any(char::is_control) {
            return Ok(name);
        }
        let bytes = name.len();
        Err(self.access.report(StoreError::busy(format!(
            "the name of an entry must have at most 64 bytes and no control characters; this one has {bytes}: {name:?}. \
             Shorten the key, by a hash for instance"
        ))))
    }

    fn owed(&self) -> MutexGuard<'_, HashMap<String, Invalidation>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn acquire(&self, name: &str, request: &Request) -> Option<Acquire> {
        if !self.access.admits(Operation::Acquire) {
            return None;
        }
        let owed = self.owed().get(name).copied();
        if let Some(how) = owed {
            self.deliver(name, how).ok()?;
            self.access.counters.redelivered.count();
        }
        self.access.run(Operation::Acquire, name, |store, name| store.acquire(name, request)).ok()
    }

    pub(super) fn invalidate(&self, key: &str, how: Invalidation) -> Result<(), Arc<StoreError>> {
        let name = self.name_of(key)?;
        let how = {
            // Before the store is asked, so that it is delivered before anything else if that fails.
            let mut owed = self.owed();
            let owed = owed.entry(name.clone()).or_insert(how);
            if how == Invalidation::Hard {
                *owed = how;
            }
            *owed
        };
        self.deliver(&name, how)
    }

    fn deliver(&self, name: &str, how: Invalidation) -> Result<(), Arc<StoreError>> {
        self.access.run(Operation::Invalidate, name, |store, name| store.invalidate(name, how))?;
        let mut owed = self.owed();
        if owed.get(name) == Some(&how) {
            owed.remove(name);
        }
        Ok(())
    }

    pub(super) fn fail(&self, name: &str, token: Token, pause: Duration) {
        // If it fails the lease ends by itself.
        let _ = self.access.run(Operation::Fail, name, |store, name| store.fail(name, &token, pause));
    }

    pub(super) fn since(&self, tick: Tick) -> Duration {
        self.clock.now().saturating_duration_since(tick)
    }

    /// For how long the map is to leave a value alone that is fresh for `soft_left` after `asked`.
    pub(super) fn fresh_for(&self, soft_left: Duration, asked: Tick) -> Duration {
        soft_left.saturating_sub(self.since(asked)).min(self.policy.poll.unwrap_or(Duration::MAX))
    }

    /// The longest pause between two looks at what others do.
    pub(super) fn pause(&self) -> Duration {
        self.policy.poll.unwrap_or(Duration::from_secs(1))
    }

    /// What prolongs a lease.
    pub(super) fn beat(self: &Arc<Self>, name: &str, token: Token, lost: &Arc<AtomicBool>) -> beats::Beat
    where
        C: Send + Sync,
    {
        let (weak, name, lease) = (Arc::downgrade(self), name.to_owned(), self.policy.lease);
        let renew = move || {
            let shared = weak.upgrade()?;
            shared.access.run(Operation::Renew, &name, |store, name| store.renew(name, &token, lease)).ok()
        };
        beats::Beat::new(
            self.clock.now(),
            lease / 3,
            self.policy.build_limit,
            Box::new(renew),
            Arc::clone(lost),
        )
    }
}
