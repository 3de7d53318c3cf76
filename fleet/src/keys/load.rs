//! The loop of a load, for threads and for tasks: what the store's answer to an election means to a key.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dogpile::{Clock, RefreshError, Refreshed, Tick};

use super::build::Building;
use super::shared::Answer;
use super::value::Origin;
use super::{FleetKeys, FleetValue};
use crate::cell::reply::{Awaited, Reply, reply};
use crate::codec::{Opened, open};
use crate::error::{Backoff, Busy};
use crate::store::{Current, RefreshStore, Request, Subscription, Value, Version};

/// A load that looks for a value.
pub(super) struct Search<'a, T: 'static, C: Clock + 'static> {
    keys: &'a FleetKeys<T, C>,
    pub(super) name: String,
    /// What this node has.
    held: Option<Arc<FleetValue<T>>>,
    /// A version of the store that is of no use here.
    refuse: Option<Version>,
    /// When the store was asked.
    asked: Tick,
    /// How long the next wait for another node is.
    wait: Duration,
    hints: Option<Hints>,
}

/// What a load does next.
pub(super) enum Next<'a, T: 'static, C: Clock + 'static> {
    Again,
    /// Asks again after this time, or at a hint.
    Wait(Duration),
    Build(Building<'a, T, C>),
    Return(Result<Refreshed<FleetValue<T>>, RefreshError>),
}

/// A value of the store that is of no use here.
pub(super) enum Useless {
    Damaged,
    Foreign,
}

impl<'a, T, C> Search<'a, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    pub(super) fn new(keys: &'a FleetKeys<T, C>, name: String, held: Option<Arc<FleetValue<T>>>) -> Self {
        let asked = keys.shared.clock.now();
        Self { keys, name, held, refuse: None, asked, wait: Duration::from_millis(2), hints: None }
    }

    /// What the store is to be asked for now.
    pub(super) fn request(&mut self) -> Request {
        if let Some(hints) = &mut self.hints {
            hints.arm();
        }
        let shared = &self.keys.shared;
        self.asked = shared.clock.now();
        let known = self.held.as_ref().and_then(|held| held.version());
        let seen = shared.seen.of(&self.name);
        Request { known, refuse: self.refuse, seen, ..Request::new(shared.policy.lease) }
    }

    /// The store has answered, or could not be used.
    pub(super) fn answered(&mut self, answer: Option<Answer<C>>) -> Next<'a, T, C> {
        let (keys, asked) = (self.keys, self.asked);
        let shared = &keys.shared;
        let held = self.held.as_ref();
        let serves = held.is_some_and(|held| asked < held.hard_end);
        match answer {
            None if serves => Next::Return(Err(Busy { left: shared.pause() }.into())),
            None => Next::Build(keys.building_alone(self.held.clone(), None)),
            Some(Answer::Won(won, current)) => {
                Next::Build(keys.building(won, &current, self.held.clone(), &self.name, asked))
            }
            Some(Answer::Fresh(Current::Newer(value))) => self.newer(&value, serves),
            Some(Answer::Fresh(Current::Same { soft_left, hard_left })) => match held {
                Some(held) => {
                    let hard_end = asked.saturating_add(hard_left);
                    let same = FleetValue { hard_end, ..(**held).clone() };
                    Next::Return(Ok(shared.for_map(same, shared.fresh_for(soft_left, asked))))
                }
                // It has gone in the very moment.
                None => Next::Again,
            },
            Some(Answer::Fresh(Current::Nothing { .. })) => Next::Again,
            Some(Answer::Busy(left, current)) => {
                shared.access.counters.busy.count();
                if let Some(taken) = keys.take_stale(current, held.map(|held| &**held), asked) {
                    return Next::Return(Ok(shared.for_map(taken, Duration::ZERO)));
                }
                if serves {
                    return Next::Return(Err(Busy { left }.into()));
                }
                if self.hints.is_none() {
                    // Before the store is asked once more: what happens after that is hinted at.
                    self.hints = Some(Hints::new(&*shared.access.store, &self.name));
                    return Next::Again;
                }
                let wait = self.wait;
                self.wait = (wait * 2).min(shared.pause());
                Next::Wait(wait.min(left.saturating_add(Duration::from_millis(1))))
            }
            Some(Answer::Backoff(left, current)) => {
                shared.access.counters.backoffs.count();
                Next::Return(match keys.take_stale(current, held.map(|held| &**held), asked) {
                    Some(taken) => Ok(shared.for_map(taken, Duration::ZERO)),
                    None => Err(Backoff { left }.into()),
                })
            }
        }
    }

    /// The store has another value, which is fresh.
    fn newer(&mut self, value: &Value, serves: bool) -> Next<'a, T, C> {
        let (keys, asked) = (self.keys, self.asked);
        let shared = &keys.shared;
        let held = self.held.as_ref();
        let is_older = held.is_some_and(|held| held.is_newer_than(value, asked));
        match keys.open(value, asked) {
            // It may be the very value that this node has just published.
            Ok(_) if is_older && serves && held.is_some_and(|held| held.is_on_its_way()) => {
                Next::Return(Err(Busy { left: shared.pause() }.into()))
            }
            Ok(taken) if !is_older => {
                shared.access.counters.adopted.count();
                Next::Return(Ok(shared.for_map(taken, shared.fresh_for(value.soft_left, asked))))
            }
            Ok(_) | Err(Useless::Damaged) => {
                self.refuse = Some(value.version);
                Next::Again
            }
            Err(Useless::Foreign) => {
                Next::Build(keys.building_alone(self.held.clone(), Some(value.soft_left)))
            }
        }
    }

    pub(super) fn wait(&mut self, time: Duration) {
        if let Some(awaited) = self.awaited() {
            let _ = awaited.wait(time);
        }
    }

    #[cfg(feature = "async")]
    pub(super) async fn wait_async(&mut self, time: Duration) {
        if let Some(awaited) = self.awaited() {
            let _ = awaited.wait_async(time).await;
        }
    }

    fn awaited(&mut self) -> Option<Awaited<()>> {
        self.hints.as_mut()?.awaited.take()
    }
}

/// Hints, for a load that waits for another node.
struct Hints {
    next: Arc<Mutex<Option<Reply<()>>>>,
    awaited: Option<Awaited<()>>,
    _subscription: Option<Subscription>,
}

impl Hints {
    fn new(store: &dyn RefreshStore, name: &str) -> Self {
        let next = Arc::new(Mutex::new(None::<Reply<()>>));
        let hinted = Arc::clone(&next);
        let hint = Box::new(move || {
            let reply = hinted.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(reply) = reply {
                let _ = reply.send(());
            }
        });
        Self { next, awaited: None, _subscription: store.subscribe(name, hint) }
    }

    /// A hint that comes from now on ends the next wait.
    fn arm(&mut self) {
        let (reply, awaited) = reply();
        let before = self.next.lock().unwrap_or_else(PoisonError::into_inner).replace(reply);
        drop(before);
        self.awaited = Some(awaited);
    }
}

impl<T, C> FleetKeys<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    pub(super) fn open(&self, value: &Value, asked: Tick) -> Result<FleetValue<T>, Useless> {
        let counters = &self.shared.access.counters;
        match open(&*self.codec, &value.payload) {
            Opened::Value(opened) => {
                let hard_end = asked.saturating_add(value.hard_left);
                let origin = Origin::Stored(value.version);
                Ok(FleetValue { value: Arc::new(opened), origin, hard_end })
            }
            Opened::Damaged => {
                counters.damaged.count();
                Err(Useless::Damaged)
            }
            Opened::Foreign => {
                counters.foreign.count();
                Err(Useless::Foreign)
            }
        }
    }

    /// A value of the store that this node does not have, and that may be served though it is stale.
    pub(super) fn take_stale(
        &self,
        current: Current,
        held: Option<&FleetValue<T>>,
        asked: Tick,
    ) -> Option<FleetValue<T>> {
        let Current::Newer(value) = current else { return None };
        if held.is_some_and(|held| held.is_newer_than(&value, asked)) {
            return None;
        }
        let left = value.hard_left.saturating_sub(self.shared.since(asked));
        let taken = if left.is_zero() { None } else { self.open(&value, asked).ok() }?;
        self.shared.access.counters.adopted.count();
        Some(taken)
    }
}
