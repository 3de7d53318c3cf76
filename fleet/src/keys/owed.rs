//! Invalidations of keys that the store has not acknowledged.
//!
//! | an entry is here | since | until |
//! |---|---|---|
//! | `owed` | before the store is asked | it has acknowledged this invalidation, or a later one |
//! | not `owed` | an invalidation was acknowledged while an earlier one was being delivered | that one is over |
//!
//! What a caller of `invalidate` is delivering nobody else delivers: a thread, or for a task a job of the [pool](super::pool), which
//! goes on when the task has been dropped. When that is over, and the store has not acknowledged it, it is *left*, and delivered by
//! what comes first: the next use of its key, which asks the store for nothing else before; a step of [`beats`](super::beats), when
//! the breaker lets the store be used; or the end of the loader, which tries once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dogpile::{Clock, Tick};

use super::beats::Beats;
use super::shared::Shared;
use crate::access::Operation;
use crate::breaker::Kind;
use crate::store::{Invalidation, StoreError};

#[derive(Default)]
pub(super) struct Owed(Mutex<State>);

#[derive(Default)]
struct State {
    entries: HashMap<String, Entry>,
    /// Names of what was left. Some of it may be delivered by now.
    left: VecDeque<String>,
    /// How many invalidations there were, of all keys: the number of the latest one.
    last: u64,
}

#[derive(Default)]
struct Entry {
    /// One stands for several: a hard one for soft ones too.
    owed: Option<Invalidation>,
    /// The number of the latest invalidation of this key.
    number: u64,
    /// How many callers of `invalidate` are delivering.
    delivering: u32,
    /// Its name is among those of what was left.
    is_listed: bool,
    /// Held while what was left is delivered: what needs it waits, and finds it delivered.
    turn: Arc<Mutex<()>>,
}

impl Entry {
    fn left(&self) -> Option<Owing> {
        let how = self.owed.filter(|_| self.delivering == 0)?;
        Some(Owing { how, number: self.number })
    }
}

impl State {
    fn list(&mut self, name: &str) {
        let entry = self.entries.get_mut(name);
        if let Some(entry) = entry.filter(|entry| !entry.is_listed && entry.left().is_some()) {
            entry.is_listed = true;
            self.left.push_back(name.to_owned());
        }
    }

    fn take_listed(&mut self) -> Option<String> {
        let name = self.left.pop_front()?;
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.is_listed = false;
        }
        Some(name)
    }
}

/// An invalidation for the store.
struct Owing {
    how: Invalidation,
    number: u64,
}

impl Owed {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something was left, and perhaps not delivered yet.
    pub(super) fn has_left(&self) -> bool {
        !self.lock().left.is_empty()
    }

    /// A caller begins to deliver an invalidation.
    fn begin(&self, name: &str, how: Invalidation) -> Owing {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        let entry = state.entries.entry(name.to_owned()).or_default();
        let how = if entry.owed == Some(Invalidation::Hard) { Invalidation::Hard } else { how };
        (entry.owed, entry.number) = (Some(how), number);
        entry.delivering += 1;
        Owing { how, number }
    }

    /// Its caller does not deliver it any more.
    fn end(&self, name: &str) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(name) else { return };
        entry.delivering -= 1;
        if entry.owed.is_none() && entry.delivering == 0 {
            state.entries.remove(name);
        }
        state.list(name);
    }

    /// The store has acknowledged an invalidation. Returns whether nothing of the key is owed since then.
    fn is_acknowledged(&self, name: &str, number: u64) -> bool {
        let mut state = self.lock();
        // Another one that has begun since is owed until it is acknowledged itself.
        let Some(entry) = state.entries.get_mut(name).filter(|entry| entry.number == number) else {
            return false;
        };
        let was_owed = entry.owed.take().is_some();
        if entry.delivering == 0 {
            state.entries.remove(name);
        }
        was_owed
    }
}

/// A caller that delivers an invalidation, on whatever thread.
pub(super) struct Delivering<C: Clock + Clone + 'static> {
    shared: Arc<Shared<C>>,
    beats: Arc<Beats<C>>,
    name: String,
    owing: Owing,
}

impl<C: Clock + Clone + 'static> Delivering<C> {
    /// It is owed from now on: before the store is asked, so that it is delivered before anything else if that fails.
    pub(super) fn begin(
        shared: &Arc<Shared<C>>,
        beats: &Arc<Beats<C>>,
        key: &str,
        how: Invalidation,
    ) -> Result<Self, Arc<StoreError>> {
        let name = shared.name_of(key)?;
        let owing = shared.owed.begin(&name, how);
        Ok(Self { shared: Arc::clone(shared), beats: Arc::clone(beats), name, owing })
    }

    pub(super) fn run(self) -> Result<(), Arc<StoreError>> {
        self.shared.deliver(&self.name, &self.owing).map(drop)
    }

    /// The same on a thread that others wait for. While the store is left alone it is delivered later.
    #[cfg(feature = "async")]
    pub(super) fn run_soon(self) -> Result<(), Arc<StoreError>> {
        self.shared.access.left_alone().map_or_else(|| self.run(), Err)
    }
}

impl<C: Clock + Clone + 'static> Drop for Delivering<C> {
    /// Whatever has come of it: a panic too.
    fn drop(&mut self) {
        self.shared.owed.end(&self.name);
        if self.beats.is_closed() {
            // The loader has gone meanwhile.
            self.shared.try_once_more();
        } else if self.shared.owed.has_left() {
            // Without a thread it is delivered when the key is next used.
            self.beats.rouse();
        }
    }
}

impl<C: Clock + 'static> Shared<C> {
    fn deliver(&self, name: &str, owing: &Owing) -> Result<bool, Arc<StoreError>> {
        let epoch =
            self.access.run(Operation::Invalidate, name, |store, name| store.invalidate(name, owing.how))?;
        self.seen.note(name, epoch);
        Ok(self.owed.is_acknowledged(name, owing.number))
    }

    /// Delivers what was left of a key.
    pub(super) fn deliver_owed(&self, name: &str) -> Result<(), Arc<StoreError>> {
        let left = |entry: &Entry| entry.left().map(|_| Arc::clone(&entry.turn));
        let Some(turn) = self.owed.lock().entries.get(name).and_then(left) else { return Ok(()) };
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let owing = self.owed.lock().entries.get(name).and_then(Entry::left);
        if let Some(owing) = owing
            && self.deliver(name, &owing)?
        {
            self.access.counters.redelivered.count();
        }
        Ok(())
    }

    /// Delivers what was left of one key, if the store may be used. Returns when to go on, if there is more.
    pub(super) fn deliver_next(&self) -> Option<Tick> {
        let now = self.clock.now();
        let until = self.access.open_until(Kind::Change, now);
        let mut owed = self.owed.lock();
        let name = loop {
            let name = owed.left.front()?;
            let is_left = owed.entries.get(name).and_then(Entry::left).is_some();
            if is_left && until.is_some() {
                return until;
            }
            let name = owed.take_listed()?;
            if is_left {
                break name;
            }
        };
        drop(owed);
        if self.deliver_owed(&name).is_ok() {
            return self.owed.has_left().then_some(now);
        }
        self.owed.lock().list(&name);
        let now = self.clock.now();
        let pause = now.saturating_add(self.policy.breaker.0);
        Some(self.access.open_until(Kind::Change, now).unwrap_or(pause))
    }

    /// Has a thread deliver what was left, for the last time: the loader ends.
    pub(super) fn try_once_more(self: &Arc<Self>) {
        if self.owed.has_left() {
            let shared = Arc::clone(self);
            self.pool.submit(Box::new(move || shared.deliver_last()));
        }
    }

    /// Up to the first failure.
    fn deliver_last(&self) {
        loop {
            let Some(name) = self.owed.lock().take_listed() else { return };
            if self.deliver_owed(&name).is_err() {
                return;
            }
        }
    }
}
