//! How builds end. See the table at the head of the [module](super).

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use dogpile::{Clock, Lease, Tick};

use super::state::Began;
use super::{Delivered, Delivery, Known, Late, Meeting, Node, Taken, Ticket};
use crate::access::Operation;
use crate::breaker::Kind;
use crate::cell::build::{IsStored, Made};
use crate::cell::job::Job;
use crate::cell::reply::NoAnswer;
use crate::codec::seal;
use crate::policy::Life;
use crate::store::{Current, Publication, Publish, Token, Version};

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// A build has brought something: what is to be told to the store?
    pub(super) fn prepare(
        self: &Arc<Self>,
        ticket: Ticket<T, C>,
        mut made: Made<T>,
        began: Began,
        is_task: bool,
    ) -> Prepared<T, C> {
        let Ticket { lease, won, foreign } = ticket;
        let life = made.life(&self.policy);
        let Some(won) = won else {
            return Prepared::Published(self.publish_locally(lease, made.value, life, foreign, began));
        };
        let payload = match made.tag_to_store(won.has_value, won.tag.as_deref()) {
            Err(IsStored) => None,
            Ok(tag) => match seal(&*self.codec, &*made.value) {
                Ok(payload) => Some((payload, tag)),
                Err(_) => {
                    self.access.counters.not_encoded.count();
                    let ended = self.hand_over_end(won.token, Duration::ZERO);
                    if !is_task {
                        let _ = ended.wait(self.policy.patience);
                    }
                    return Prepared::Published(self.publish_locally(lease, made.value, life, None, began));
                }
            },
        };
        let Made { value, is_unchanged, .. } = made;
        let concluding = Concluding { lease, value, life, began, is_unchanged, late: Arc::default() };
        Prepared::Deliver(concluding, Delivery { token: won.token, payload, life })
    }

    /// Publishes, for the worker: what the store says to what a build has brought.
    pub(crate) fn deliver_build(&self, delivery: &Delivery) -> Delivered {
        let Life { soft, hard } = delivery.life;
        let token = &delivery.token;
        let asked = self.clock.now();
        let publish = || {
            if self.is_owing() {
                self.deliver()?;
            }
            self.try_ask(Operation::Publish, |store, name| match &delivery.payload {
                None => store.unchanged(name, token, soft, hard),
                Some((payload, tag)) => {
                    let publication = Publication { payload, tag: tag.as_deref(), soft, hard };
                    store.publish(name, token, &publication)
                }
            })
        };
        // Once more if it fails: whether it has taken effect is not known, and it may be repeated.
        let answer = publish().or_else(|_| publish());
        let mut instead = None;
        match &answer {
            Ok(Publish::Stored(version)) => {
                self.access.counters.published.count();
                self.with(|state| {
                    state.paused_until = Tick::default();
                    state.sees(token.epoch(), Some(*version));
                });
            }
            Ok(Publish::Superseded | Publish::Invalidated) => {
                match answer {
                    Ok(Publish::Superseded) => self.access.counters.superseded.count(),
                    _ => self.access.counters.invalidated.count(),
                }
                let asked = self.clock.now();
                instead = self.poll(self.known().to_store()).map(|poll| (poll.current, asked));
            }
            Err(_) => self.orphaned(*token),
        }
        Delivered { answer, asked, instead }
    }

    /// The end of a build, for the worker.
    pub(crate) fn end_build(&self, token: Token, pause: Duration) {
        if self.ask(Operation::Fail, |store, name| store.fail(name, &token, pause)).is_none() {
            self.orphaned(token);
        }
    }

    /// A build has brought something, and the store has said something to that, or not in time.
    pub(super) fn conclude(
        self: &Arc<Self>,
        concluding: Concluding<T, C>,
        delivered: Result<Delivered, NoAnswer>,
    ) -> Arc<T> {
        let Concluding { lease, value, life, began, is_unchanged, late } = concluding;
        match delivered {
            Ok(Delivered { answer: Ok(Publish::Stored(version)), asked, .. }) => {
                if is_unchanged {
                    self.access.counters.unchanged.count();
                }
                let soft_end = asked.saturating_add(life.soft);
                let hard_end = self.bound(life.soft, life.hard, asked);
                let known = Known { version: Some(version), soft_end, hard_end, ..Known::default() };
                self.publish_stored(lease, value, life.soft, known, asked)
            }
            Ok(Delivered { answer: Ok(_), instead, .. }) => self.refused(lease, value, instead),
            Ok(Delivered { answer: Err(_), .. }) | Err(NoAnswer::Lost) => {
                self.publish_locally(lease, value, life, None, began)
            }
            Err(NoAnswer::TooLate) => {
                self.access.counters.early.count();
                let now = self.clock.now();
                let soft_end = now.saturating_add(life.soft);
                let hard_end = self.bound(life.soft, life.hard, now);
                let known = Known { alone: Some((now, began)), soft_end, hard_end, ..Known::default() };
                let Some(lease) = lease.or_else(|| self.elect()) else { return value };
                let (served, generation) = self.publish_built(lease, value, life.soft, known);
                if let Some(generation) = generation {
                    self.meets(&late, Meeting::Served(generation));
                }
                served
            }
        }
    }

    /// The store's answer to a publication whose caller has gone.
    pub(crate) fn answered_late(&self, late: &Late, delivered: Delivered) {
        self.meets(late, Meeting::Answered(delivered));
    }

    pub(super) fn meets(&self, late: &Late, arriving: Meeting) {
        let mut meeting = late.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (std::mem::take(&mut *meeting), arriving) {
            (Meeting::Served(generation), Meeting::Answered(delivered))
            | (Meeting::Answered(delivered), Meeting::Served(generation)) => {
                drop(meeting);
                self.settle(generation, &delivered);
            }
            (_, arriving) => *meeting = arriving,
        }
    }

    /// What is served as `generation` has been answered to by the store.
    pub(super) fn settle(&self, generation: u64, delivered: &Delivered) {
        match delivered.answer {
            Ok(Publish::Stored(version)) => {
                self.with(|state| state.has_stored(generation, version));
            }
            Ok(Publish::Superseded | Publish::Invalidated) => self.outdated(generation),
            Err(_) => self.access.counters.local_builds.count(),
        }
    }

    /// The store could not be told that a build has ended. It will be, when it works again.
    pub(super) fn orphaned(&self, token: Token) {
        self.with(|state| state.orphans.push(token));
        self.mailbox.attach();
        self.mailbox.nudge(Job::Kick);
    }

    /// Gives back what could not be given back before. Returns when to try again.
    pub(crate) fn tidy_orphans(&self, now: Tick) -> Option<Tick> {
        if self.with(|state| state.orphans.is_empty()) {
            return None;
        }
        if let Some(until) = self.open_until(Kind::Change, now) {
            return Some(until);
        }
        let tokens = self.with(|state| std::mem::take(&mut state.orphans));
        let mut failed = Vec::new();
        for token in tokens {
            if self.ask(Operation::Fail, |store, name| store.fail(name, &token, Duration::ZERO)).is_none() {
                failed.push(token);
            }
        }
        self.with(|state| state.orphans.extend(failed));
        self.open_until(Kind::Change, self.clock.now())
    }

    /// The store has accepted `value`. Without a lease it is only for the caller: another thread of this process is elected,
    /// and will find the value in the store.
    pub(super) fn publish_stored(
        &self,
        lease: Option<Lease<'static, T, C>>,
        value: Arc<T>,
        ttl: Duration,
        known: Known,
        asked: Tick,
    ) -> Arc<T> {
        match lease.or_else(|| self.elect()) {
            Some(lease) => self.publish_built(lease, value, ttl.saturating_sub(self.since(asked)), known).0,
            None => value,
        }
    }

    /// The store does not take what was built. See the module's documentation.
    pub(super) fn refused(
        self: &Arc<Self>,
        lease: Option<Lease<'static, T, C>>,
        own: Arc<T>,
        instead: Option<(Current, Tick)>,
    ) -> Arc<T> {
        match (instead, lease.or_else(|| self.elect())) {
            (Some((Current::Newer(value), asked)), Some(lease)) if value.hard_left > self.since(asked) => {
                if let Taken::Over(served) = self.take_over(lease, &value, asked) {
                    return served;
                }
            }
            (Some((Current::Nothing { cleared: true }, _)), _)
                if self.concerns(self.with(|state| state.epoch)) =>
            {
                drop(self.local.clear());
            }
            (_, lease) => drop(lease),
        }
        self.local.get().unwrap_or(own)
    }

    /// For this node alone.
    pub(super) fn publish_locally(
        &self,
        lease: Option<Lease<'static, T, C>>,
        value: Arc<T>,
        life: Life,
        foreign: Option<(Version, Duration)>,
        began: Began,
    ) -> Arc<T> {
        self.access.counters.local_builds.count();
        // Up to a quarter shorter, so that the nodes of a fleet without a store do not build at the same time.
        let drawn = crate::draw::around(life.soft.mul_f64(0.875), 12);
        let ttl = foreign.map_or(drawn, |(_, left)| left.min(life.soft));
        let now = self.clock.now();
        let foreign = foreign.map(|(version, _)| version);
        let (alone, soft_end) = (Some((now, began)), now.saturating_add(ttl));
        let hard_end = self.bound(life.soft, life.hard, now);
        let known = Known { foreign, alone, soft_end, hard_end, ..Known::default() };
        match lease.or_else(|| self.elect()) {
            Some(lease) => self.publish_built(lease, value, ttl, known).0,
            None => value,
        }
    }
}

/// A build that is over, while the store is told.
pub(super) struct Concluding<T: 'static, C: Clock + 'static> {
    lease: Option<Lease<'static, T, C>>,
    value: Arc<T>,
    life: Life,
    began: Began,
    is_unchanged: bool,
    pub(super) late: Arc<Late>,
}

#[allow(clippy::large_enum_variant)] // handed on at once, never kept
pub(super) enum Prepared<T: 'static, C: Clock + 'static> {
    /// It does not concern the store.
    Published(Arc<T>),
    Deliver(Concluding<T, C>, Delivery),
}
