//! A store within one process.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use dogpile::{Clock, SystemClock};

use crate::draw;
use crate::rules::{Entry, Micros};
use crate::store::{
    Acquire, Epoch, Hint, Invalidation, Poll, Publication, Publish, RefreshStore, Request, StoreError,
    Subscription, Token, Version,
};

/// The [rules](crate::rules) under a lock: for tests, and for fleets of threads.
///
/// Gives hints at once, on the thread that makes the change.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{Acquire, MemoryStore, RefreshStore, Request};
/// use std::time::Duration;
///
/// let store = MemoryStore::new();
/// let request = Request::new(Duration::from_secs(5));
/// assert!(matches!(store.acquire("rates", &request)?, Acquire::Won { .. }));
/// assert!(matches!(store.acquire("rates", &request)?, Acquire::Busy { .. }));
/// # Ok::<(), dogpile_fleet::StoreError>(())
/// ```
pub struct MemoryStore<C = SystemClock> {
    clock: C,
    entries: Mutex<HashMap<String, Entry>>,
    listeners: Mutex<Vec<(String, Weak<Hint>)>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(SystemClock)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Clock> MemoryStore<C> {
    /// An empty store that goes by `clock`.
    pub fn with_clock(clock: C) -> Self {
        Self { clock, entries: Mutex::default(), listeners: Mutex::default() }
    }

    /// The entry of a name, as it is.
    #[must_use]
    pub fn entry(&self, name: &str) -> Entry {
        self.with(name, |entry, _| entry.clone())
    }

    /// Forgets everything, as a Redis does that is flushed.
    pub fn forget(&self) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn with<R>(&self, name: &str, operation: impl FnOnce(&mut Entry, Micros) -> R) -> R {
        let now = self.clock.now().as_nanos() / 1000;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        operation(entries.entry(name.to_owned()).or_default(), now)
    }

    fn tell(&self, name: &str) {
        let mut hints = Vec::new();
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).retain(|(listened, hint)| {
            let hint = hint.upgrade();
            if listened == name {
                hints.extend(hint.clone());
            }
            hint.is_some()
        });
        for hint in hints {
            hint();
        }
    }
}

impl<C: Clock> RefreshStore for MemoryStore<C> {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        Ok(self.with(name, |entry, now| entry.poll(now, known)))
    }

    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        Ok(self.with(name, |entry, now| entry.acquire(now, request, draw::incarnation())))
    }

    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        let answer = self.with(name, |entry, now| entry.publish(now, token, publication));
        self.tell(name);
        Ok(answer)
    }

    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        let answer = self.with(name, |entry, now| entry.unchanged(now, token, soft, hard));
        self.tell(name);
        Ok(answer)
    }

    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        let answer = self.with(name, |entry, now| entry.fail(now, token, pause));
        self.tell(name);
        Ok(answer)
    }

    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        Ok(self.with(name, |entry, now| entry.renew(now, token, lease)))
    }

    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
        let epoch = self.with(name, |entry, now| entry.invalidate(now, how, draw::incarnation()));
        self.tell(name);
        Ok(epoch)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.tell(name);
        Ok(())
    }

    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        let hint = Arc::new(hint);
        let listener = (name.to_owned(), Arc::downgrade(&hint));
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        Some(Subscription::new(hint))
    }
}

impl<C> fmt::Debug for MemoryStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
