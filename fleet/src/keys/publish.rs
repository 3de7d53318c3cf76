//! Publications, which go on behind their callers.
//!
//! A caller waits for the store's answer no longer than the policy's patience. The publication is a job of the
//! [pool](super::pool), and goes on when the caller has gone:
//!
//! | answer | in time | later |
//! |---|---|---|
//! | `Stored` | the value with its version | the value gets its version |
//! | refused | what the store has, or what is here already, or else the caller's own, stale | the value was fresh for `poll` at most; the next load asks the store |
//! | failed, or the store has panicked | a value for this node alone | the same as if it was refused |
//!
//! The map cannot be told of a late answer. So a value that is served early is fresh for no longer than the policy's `poll`, which is
//! also how soon this node notices what others invalidate.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{Clock, Refreshed, Tick};

use super::shared::Shared;
use super::value::{Origin, Verdict};
use super::{FleetKeys, FleetValue};
use crate::access::Operation;
use crate::cell::reply::{Awaited, NoAnswer, Reply, reply};
use crate::draw;
use crate::policy::Life;
use crate::store::{Current, Publication, Publish, StoreError, Token};

/// What the store is asked to publish.
pub(super) struct Delivery {
    pub(super) name: String,
    pub(super) token: Token,
    /// With its tag; `None`: the value was found unchanged.
    pub(super) payload: Option<(Vec<u8>, Option<String>)>,
    pub(super) life: Life,
}

/// What became of it.
pub(super) struct Delivered {
    answer: Result<Publish, Arc<StoreError>>,
    asked: Tick,
    /// If it was refused: what the store has instead, and when that was asked for.
    instead: Option<(Current, Tick)>,
}

impl<C: Clock + 'static> Shared<C> {
    /// Has a thread publish.
    pub(super) fn publish(self: &Arc<Self>, delivery: Delivery, verdict: Arc<Verdict>) -> Awaited<Delivered> {
        let (reply, awaited) = reply();
        let mut answering = Answering { shared: Arc::clone(self), verdict, reply: Some(reply) };
        self.pool.submit(Box::new(move || {
            let delivered = answering.shared.deliver_build(&delivery);
            answering.answer(delivered);
        }));
        awaited
    }

    fn deliver_build(&self, delivery: &Delivery) -> Delivered {
        let Delivery { name, token, payload, life: Life { soft, hard } } = delivery;
        let (soft, hard) = (*soft, *hard);
        let asked = self.clock.now();
        let publish = || {
            // Or what was built before it would be accepted.
            self.deliver_owed(name)?;
            self.access.run(Operation::Publish, name, |store, name| match payload {
                None => store.unchanged(name, token, soft, hard),
                Some((payload, tag)) => {
                    let publication = Publication { payload, tag: tag.as_deref(), soft, hard };
                    store.publish(name, token, &publication)
                }
            })
        };
        // Others wait for a thread while the store does not work: each of them would take it for a timeout.
        let left_alone = if self.pool.is_crowded() { self.access.left_alone() } else { None };
        // Once more if it fails: whether it has taken effect is not known, and it may be repeated.
        let answer = left_alone.map_or_else(|| publish().or_else(|_| publish()), Err);
        let counters = &self.access.counters;
        let refused = match answer {
            Ok(Publish::Stored(_)) => {
                counters.published.count();
                false
            }
            Ok(Publish::Superseded) => {
                counters.superseded.count();
                true
            }
            Ok(Publish::Invalidated) => {
                counters.invalidated.count();
                true
            }
            Err(_) => false,
        };
        let instead = if refused {
            counters.polls.count();
            let asked = self.clock.now();
            let poll = self.access.run(Operation::Poll, name, |store, name| store.poll(name, None));
            poll.ok().map(|poll| (poll.current, asked))
        } else {
            None
        };
        Delivered { answer, asked, instead }
    }

    /// Has a thread tell the store that a build has ended without a value.
    pub(super) fn end(self: &Arc<Self>, name: String, token: Token, pause: Duration) -> Awaited<()> {
        let (reply, awaited) = reply();
        let shared = Arc::clone(self);
        self.pool.submit(Box::new(move || {
            // If it fails the lease ends by itself.
            let _ = shared.access.run(Operation::Fail, &name, |store, name| store.fail(name, &token, pause));
            let _ = reply.send(());
        }));
        awaited
    }
}

/// A publication under way: the caller of the build waits for its answer, or is served the value already, whose verdict it is. Dropped
/// without an answer, it has failed: the store has panicked.
struct Answering<C: Clock + 'static> {
    shared: Arc<Shared<C>>,
    verdict: Arc<Verdict>,
    /// Until there is an answer.
    reply: Option<Reply<Delivered>>,
}

impl<C: Clock + 'static> Answering<C> {
    fn answer(&mut self, delivered: Delivered) {
        let Some(reply) = self.reply.take() else { return };
        let stored = match delivered.answer {
            Ok(Publish::Stored(version)) => Some(version),
            _ => None,
        };
        // For a value that is served already. It has not been set before.
        let _ = self.verdict.set(stored);
        if let Some(Delivered { answer: Err(_), .. }) = reply.send(delivered) {
            self.shared.access.counters.local_builds.count();
        }
    }
}

impl<C: Clock + 'static> Drop for Answering<C> {
    fn drop(&mut self) {
        let error = || Arc::new(StoreError::new("the store has panicked"));
        if self.reply.is_some() {
            self.answer(Delivered { answer: Err(error()), asked: Tick::default(), instead: None });
        }
    }
}

/// A build that is over, while the store is told.
pub(super) struct Publishing<'a, T: 'static, C: Clock + 'static> {
    pub(super) keys: &'a FleetKeys<T, C>,
    pub(super) value: Arc<T>,
    pub(super) life: Life,
    pub(super) is_unchanged: bool,
    /// What this node has.
    pub(super) previous: Option<Arc<FleetValue<T>>>,
    pub(super) verdict: Arc<Verdict>,
}

impl<T, C> Publishing<'_, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// The store has said something, or not in time.
    pub(super) fn conclude(self, delivered: Result<Delivered, NoAnswer>) -> Refreshed<FleetValue<T>> {
        let Self { keys, value, life, is_unchanged, .. } = &self;
        let (shared, value) = (&*keys.shared, Arc::clone(value));
        match delivered {
            Ok(Delivered { answer: Ok(Publish::Stored(version)), asked, .. }) => {
                if *is_unchanged {
                    shared.access.counters.unchanged.count();
                }
                let hard_end = asked.saturating_add(life.hard);
                let stored = FleetValue { value, origin: Origin::Stored(version), hard_end };
                shared.for_map(stored, shared.fresh_for(life.soft, asked))
            }
            Ok(Delivered { answer: Ok(_), instead, .. }) => self.refused(instead),
            Ok(Delivered { answer: Err(_), .. }) | Err(NoAnswer::Lost) => keys.alone(value, *life, None),
            Err(NoAnswer::TooLate) => {
                shared.access.counters.early.count();
                let now = shared.clock.now();
                let origin = Origin::Early(now, Arc::clone(&self.verdict));
                let early = FleetValue { value, origin, hard_end: now.saturating_add(life.hard) };
                shared.for_map(early, life.soft.min(shared.pause()))
            }
        }
    }

    /// What is there instead; else what is here; else its own caller gets it. The next one looks again.
    fn refused(self, instead: Option<(Current, Tick)>) -> Refreshed<FleetValue<T>> {
        let Self { keys, value, life, previous, .. } = self;
        let shared = &*keys.shared;
        let is_cleared = matches!(instead, Some((Current::Nothing { cleared: true }, _)));
        if let Some((current, asked)) = instead {
            let soft_left = current.soft_left();
            if let Some(taken) = keys.take_stale(current, previous.as_deref(), asked) {
                return shared.for_map(taken, shared.fresh_for(soft_left, asked));
            }
        }
        let now = shared.clock.now();
        let previous = previous.filter(|previous| !is_cleared && now < previous.hard_end);
        let own = || {
            let hard_end = now.saturating_add(life.hard);
            FleetValue { value, origin: Origin::Alone(now), hard_end }
        };
        shared.for_map(previous.map_or_else(own, |previous| (*previous).clone()), Duration::ZERO)
    }
}

impl<T, C> FleetKeys<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// A value that was built for this node alone.
    pub(super) fn alone(
        &self,
        value: Arc<T>,
        life: Life,
        left: Option<Duration>,
    ) -> Refreshed<FleetValue<T>> {
        let shared = &*self.shared;
        shared.access.counters.local_builds.count();
        // Up to a quarter shorter, so that the nodes of a fleet without a store do not build at the same time.
        let drawn = draw::around(life.soft.mul_f64(0.875), 12);
        let soft = left.map_or(drawn, |left| left.min(life.soft));
        let now = shared.clock.now();
        let hard_end = now.saturating_add(life.hard.min(soft.saturating_add(shared.policy.stale)));
        shared.for_map(FleetValue { value, origin: Origin::Alone(now), hard_end }, soft)
    }
}
