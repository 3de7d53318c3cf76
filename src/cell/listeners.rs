//! What a publisher does after unlocking: the listeners of a cell, in one list.
//!
//! | listener | is notified of | and then |
//! |---|---|---|
//! | a refresher's [`Status`](crate::refresher) | each change | plans anew |
//! | a [`Hook`](crate::Hook) | each change, with what has changed | calls back |
//! | a [`Derived`](crate::Derived) value | each change | goes stale, if it was made from another value |
//! | the *watchers* ([`Subscription`](crate::Subscription), `wait_ready`) | what may make a value available | look again |
//!
//! A cell without listeners has no list: a publication pays one check. The watchers share one [`Attempt`], which the first of
//! them makes and the publisher takes, as with the waiters of a build. So the list goes away when nothing listens any more.
//!
//! A change is *noted* under the lock, in the order of changes, and without user code; after unlocking (G9) derived values
//! *follow* it, and then its waiters are woken and its listeners are *notified*.

use crate::sync::Arc;

use super::attempt::{Attempt, Outcome};
use super::slot::Seen;

/// A change, as it is noted under the lock.
pub(crate) enum Noted<T> {
    /// As the value was when it was published.
    Published(Seen<T>),
    Invalidated,
    Cleared,
}

impl<T> Clone for Noted<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Published(seen) => Self::Published(Seen { value: Arc::clone(&seen.value), ..*seen }),
            Self::Invalidated => Self::Invalidated,
            Self::Cleared => Self::Cleared,
        }
    }
}

pub(crate) trait Listener<T>: Send + Sync {
    /// Called under the cell's lock, in the order of changes. It must not run user code or drop a user's value.
    fn note(&self, change: &Noted<T>) {
        let _ = change;
    }

    /// Called after unlocking, before waiters are woken and callbacks run: code that a change wakes finds the values that were made
    /// from the old one stale. It does not panic.
    fn follow(&self) {}

    /// Called after that. It does not panic.
    fn notify(&self);

    /// Whether it rebuilds a stale value.
    fn rebuilds(&self) -> bool {
        false
    }

    /// Whether it does not rebuild a value that was not read since its publication.
    fn rests(&self) -> bool {
        false
    }

    /// Whether it can be removed. Its drop runs no user code then.
    fn is_detached(&self) -> bool {
        false
    }

    /// The cell is gone.
    fn close(&self) {}
}

/// The listeners of a cell; no list, if there are none.
// Boxed, because most cells have none.
pub(super) struct Listeners<T>(Option<Box<List<T>>>);

/// Besides the listeners, it has what only refreshers need to know of the value in the slot. For a value that was published
/// before the first refresher was attached, these are the defaults.
struct List<T> {
    entries: Vec<Arc<dyn Listener<T>>>,
    /// Settled at the next change that may make a value available.
    watchers: Option<Arc<Attempt<()>>>,
    /// It was not read since its publication, and a refresher rests until then.
    is_unread: bool,
    /// It has a time to live of its own, not the policy's.
    has_own_ttl: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), watchers: None, is_unread: false, has_own_ttl: false }
    }
}

impl<T> List<T> {
    fn is_unused(&self) -> bool {
        self.entries.is_empty() && self.watchers.is_none()
    }
}

impl<T> Drop for List<T> {
    fn drop(&mut self) {
        for listener in &self.entries {
            listener.close();
        }
    }
}

impl<T> Listeners<T> {
    pub(super) const fn new() -> Self {
        Self(None)
    }

    #[inline]
    pub(super) fn are_there(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn attach(&mut self, listener: Arc<dyn Listener<T>>) {
        let list = self.0.get_or_insert_default();
        if list.entries.len() == list.entries.capacity() {
            list.entries.retain(|listener| !listener.is_detached());
        }
        list.entries.push(listener);
    }

    /// Returns the listener, to be dropped after unlocking.
    #[must_use = "it is to be dropped without a lock"]
    pub(super) fn detach<L>(&mut self, listener: &Arc<L>) -> Option<Arc<dyn Listener<T>>> {
        let list = self.0.as_deref_mut()?;
        let address = Arc::as_ptr(listener).addr();
        let position = list.entries.iter().position(|other| Arc::as_ptr(other).addr() == address)?;
        let listener = list.entries.swap_remove(position);
        if list.is_unused() {
            self.0 = None;
        }
        Some(listener)
    }

    /// The next change that may make a value available.
    pub(super) fn next_change(&mut self) -> Arc<Attempt<()>> {
        Arc::clone(self.0.get_or_insert_default().watchers.get_or_insert_with(Attempt::open))
    }

    /// Notes a change. Its listeners are to be [notified](Listeners::notified) after unlocking.
    pub(super) fn note(&self, change: &Noted<T>) {
        if let Some(list) = &self.0 {
            list.entries.iter().for_each(|listener| listener.note(change));
        }
    }

    /// To be notified of a change after unlocking, and the watchers too if it may make a value available.
    #[inline]
    pub(super) fn notified(&mut self, wakes_watchers: bool) -> Option<Box<Notified<T>>> {
        if self.0.is_none() { None } else { self.collect(wakes_watchers) }
    }

    #[cold]
    #[inline(never)]
    fn collect(&mut self, wakes_watchers: bool) -> Option<Box<Notified<T>>> {
        let list = self.0.as_deref_mut()?;
        list.entries.retain(|listener| !listener.is_detached());
        let notified = Notified {
            watchers: if wakes_watchers { list.watchers.take() } else { None },
            entries: list.entries.clone(),
        };
        if list.is_unused() {
            self.0 = None;
        }
        Some(Box::new(notified))
    }

    /// Whether a refresher is attached that rebuilds a stale value.
    pub(super) fn rebuild(&self) -> bool {
        self.0.as_deref().is_some_and(|list| list.entries.iter().any(|listener| listener.rebuilds()))
    }

    /// A value is published. `is_awaited`: there are waiters, which will read it.
    pub(super) fn note_publication(&mut self, has_own_ttl: bool, is_awaited: bool) {
        if let Some(list) = self.0.as_deref_mut() {
            list.is_unread = !is_awaited && list.entries.iter().any(|listener| listener.rests());
            list.has_own_ttl = has_own_ttl;
        }
    }

    pub(super) fn has_own_ttl(&self) -> bool {
        self.0.as_deref().is_some_and(|list| list.has_own_ttl)
    }

    /// Whether the next read has to be marked: a refresher rests until then.
    pub(super) fn is_unread(&self) -> bool {
        self.0.as_deref().is_some_and(|list| list.is_unread)
    }

    /// The value is read. Returns whether that is the first time, and a refresher waits for it.
    pub(super) fn mark_read(&mut self) -> bool {
        self.0.as_deref_mut().is_some_and(|list| std::mem::take(&mut list.is_unread))
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.as_deref().map_or(0, |list| list.entries.len())
    }
}

/// Listeners to be notified of a change, without a lock.
// Boxed, because most cells have none: a pointer is what a publication without listeners pays.
pub(crate) struct Notified<T> {
    watchers: Option<Arc<Attempt<()>>>,
    entries: Vec<Arc<dyn Listener<T>>>,
}

impl<T> Notified<T> {
    /// Before the waiters of the cell are woken.
    #[cold]
    #[inline(never)]
    pub(crate) fn follow(&self) {
        for listener in &self.entries {
            listener.follow();
        }
    }

    /// After [`follow`](Notified::follow), if the value has changed.
    #[cold]
    #[inline(never)]
    pub(crate) fn notify(self) {
        // First: hooks may take long.
        if let Some(watchers) = self.watchers {
            watchers.complete(Outcome::Abandoned);
        }
        for listener in self.entries {
            listener.notify();
        }
    }
}
