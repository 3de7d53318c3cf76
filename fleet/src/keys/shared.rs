//! The store, as the loads of all keys use it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dogpile::{Clock, Refreshed, Tick};

use super::FleetValue;
use super::beats;
use super::owed::Owed;
use super::pool::Pool;
use super::seen::SeenEpochs;
use crate::access::{Access, Operation};
#[cfg(feature = "async")]
use crate::cell::reply::reply;
use crate::policy::FleetPolicy;
use crate::store::{Acquire, Current, LONGEST, Request, StoreError, Token};

/// What does not depend on the type of the values.
pub(super) struct Shared<C> {
    pub(super) name: String,
    pub(super) access: Access<C>,
    pub(super) policy: FleetPolicy,
    pub(super) clock: C,
    /// For what no caller is to wait for.
    pub(super) pool: Arc<Pool>,
    pub(super) owed: Owed,
    pub(super) seen: SeenEpochs,
}

impl<C: Clock + 'static> Shared<C> {
    pub(super) fn new(name: String, access: Access<C>, policy: FleetPolicy, clock: C) -> Self {
        Self {
            name,
            access,
            policy,
            clock,
            pool: Arc::default(),
            owed: Owed::default(),
            seen: SeenEpochs::default(),
        }
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

    /// Asks for the right to build. `None`: the store does not work, or is left alone.
    pub(super) fn acquire(self: &Arc<Self>, name: &str, request: &Request) -> Option<Answer<C>> {
        if !self.access.admits(Operation::Acquire) {
            return None;
        }
        self.access.counters.acquires.count();
        self.deliver_owed(name).ok()?;
        let answer =
            self.access.run(Operation::Acquire, name, |store, name| store.acquire(name, request)).ok()?;
        Some(match answer {
            Acquire::Won { token, tag, failures, current } => {
                let (shared, name) = (Arc::clone(self), name.to_owned());
                Answer::Won(Won { shared, name, token: Some(token), tag, failures }, current)
            }
            Acquire::Fresh(current) => Answer::Fresh(current),
            Acquire::Busy { left, current } => Answer::Busy(left, current),
            Acquire::Backoff { left, current, .. } => Answer::Backoff(left, current),
        })
    }

    /// The same for a task. If it is dropped, a right to build that was granted is given back.
    #[cfg(feature = "async")]
    pub(super) async fn acquire_async(self: &Arc<Self>, name: &str, request: Request) -> Option<Answer<C>> {
        if self.access.left_alone().is_some() {
            // Without a turn in the queue.
            return None;
        }
        let (reply, awaited) = reply();
        let (shared, name) = (Arc::clone(self), name.to_owned());
        self.pool.submit(Box::new(move || drop(reply.send(shared.acquire(&name, &request)))));
        (&awaited).await.flatten()
    }

    pub(super) fn since(&self, tick: Tick) -> Duration {
        self.clock.now().saturating_duration_since(tick)
    }

    /// For how long the map is to leave a value alone that is fresh for `soft_left` after `asked`.
    pub(super) fn fresh_for(&self, soft_left: Duration, asked: Tick) -> Duration {
        soft_left.saturating_sub(self.since(asked)).min(self.policy.poll.unwrap_or(Duration::MAX))
    }

    /// A value as a build of the map returns it: fresh there for `fresh_for` at most, and served by the map's policy no longer than
    /// the value may be.
    pub(super) fn for_map<T>(&self, value: FleetValue<T>, fresh_for: Duration) -> Refreshed<FleetValue<T>> {
        let (ttl, stale) = (self.policy.ttl, self.policy.stale);
        let left = value.hard_end.saturating_duration_since(self.clock.now());
        if stale >= LONGEST || left >= fresh_for.saturating_add(stale) {
            return Refreshed::NewFor(value, fresh_for);
        }
        // At that end itself it is not served any more, and a cell serves a value up to and including the tick at which its time is
        // over.
        let left = left.saturating_sub(Duration::from_nanos(1));
        match left.checked_sub(stale) {
            Some(fresh_for) => Refreshed::NewFor(value, fresh_for),
            // It has been stale for a part of its window.
            None => Refreshed::Aged { value, age: ttl.saturating_add(stale - left), ttl: Some(ttl) },
        }
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

/// The store's answer to an election.
pub(super) enum Answer<C: Clock + 'static> {
    Won(Won<C>, Current),
    Fresh(Current),
    /// Another node builds, and its lease lasts for this long.
    Busy(Duration, Current),
    /// A pause runs for this long.
    Backoff(Duration, Current),
}

/// A right to build. Dropped, it is given back: by a build that panicked, by a task that was dropped.
pub(super) struct Won<C: Clock + 'static> {
    shared: Arc<Shared<C>>,
    name: String,
    token: Option<Token>,
    pub(super) tag: Option<String>,
    pub(super) failures: u32,
}

impl<C: Clock + 'static> Won<C> {
    pub(super) fn token(&self) -> Token {
        self.token.unwrap_or_else(|| unreachable!("taken at the end only"))
    }

    /// The build is over: its name and its token, to tell the store with.
    pub(super) fn end(mut self) -> (String, Token) {
        let token = self.token();
        self.token = None;
        (std::mem::take(&mut self.name), token)
    }
}

impl<C: Clock + 'static> Drop for Won<C> {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            if std::thread::panicking() {
                self.shared.access.counters.panicked.count();
            }
            drop(self.shared.end(std::mem::take(&mut self.name), token, Duration::ZERO));
        }
    }
}
