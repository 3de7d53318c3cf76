//! What gets into the local cell from the store.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{Clock, Lease, Tick};

use super::{Known, Node, Taken};
use crate::codec::{Opened, open};
use crate::store::{Current, Epoch, LONGEST, Value, Version};

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Takes over the store's fresh value. `held` is what was here when the store was asked, and what it was told of that.
    pub(super) fn take_fresh(
        &self,
        lease: Lease<'static, T, C>,
        current: Current,
        (known, held): (Known, Option<Arc<T>>),
        asked: Tick,
    ) -> Taken<T, C> {
        let (soft_left, hard_left) = match current {
            Current::Newer(value) => return self.take_over(lease, &value, asked),
            Current::Same { soft_left, hard_left } => (soft_left, hard_left),
            Current::Nothing { .. } => (Duration::ZERO, Duration::ZERO),
        };
        if let (None, Some(version)) = (known.version, known.foreign) {
            return Taken::Foreign(lease, version, soft_left);
        }
        // It is here already, and has been found unchanged. Or it was, a moment ago.
        let Some(held) = held else { return Taken::Older(lease) };
        Taken::Over(self.adopt(lease, held, known.version, asked, soft_left, hard_left))
    }

    /// Publishes the store's value for as long as it is fresh there.
    pub(super) fn adopt(
        &self,
        lease: Lease<'static, T, C>,
        value: Arc<T>,
        version: Option<Version>,
        asked: Tick,
        soft_left: Duration,
        hard_left: Duration,
    ) -> Arc<T> {
        self.access.counters.adopted.count();
        let soft_end = asked.saturating_add(soft_left);
        let hard_end = self.bound(soft_left, hard_left, asked);
        let known = Known { version, soft_end, hard_end, ..Known::default() };
        let served = self.publish(lease, value, soft_left.saturating_sub(self.since(asked)), known);
        self.with(|state| state.paused_until = Tick::default());
        served
    }

    pub(super) fn open(&self, value: &Value) -> Opened<T> {
        let opened = open(&*self.codec, &value.payload);
        match opened {
            Opened::Value(_) => {}
            Opened::Damaged => self.access.counters.damaged.count(),
            Opened::Foreign => self.access.counters.foreign.count(),
        }
        opened
    }

    /// Whether this node has built something for itself, and `value` may be from an older reading of the source: its
    /// builder was elected before that build had ended.
    pub(super) fn is_older(&self, value: &Value, asked: Tick) -> bool {
        let alone = self.known().alone;
        alone.is_some_and(|(built, _)| value.age > asked.saturating_duration_since(built))
    }

    /// Whether it is this node's value that was cleared, in `epoch` at the latest: what it has built for itself since then
    /// was not. An epoch that is not known will be at the next look.
    pub(super) fn concerns(&self, epoch: Option<Epoch>) -> bool {
        let known = self.known();
        !known.is_alone() || epoch.is_some_and(|epoch| known.has_missed(epoch))
    }

    /// Puts a value of the store into the local cell.
    pub(super) fn take_over(&self, lease: Lease<'static, T, C>, value: &Value, asked: Tick) -> Taken<T, C> {
        if self.is_older(value, asked) {
            return Taken::Older(lease);
        }
        match self.open(value) {
            Opened::Value(opened) => {
                if value.soft_left <= self.since(asked) {
                    self.access.counters.adopted.count();
                    return Taken::Over(self.publish_stale(lease, opened, value, asked).0);
                }
                let Value { version, soft_left, hard_left, .. } = *value;
                Taken::Over(self.adopt(lease, Arc::new(opened), Some(version), asked, soft_left, hard_left))
            }
            Opened::Damaged => Taken::Damaged(lease),
            Opened::Foreign => Taken::Foreign(lease, value.version, value.soft_left),
        }
    }

    /// Makes a value visible that is stale already. Returns the lease, if this thread still has it or is elected again.
    pub(super) fn publish_stale(
        &self,
        lease: Lease<'static, T, C>,
        opened: T,
        value: &Value,
        asked: Tick,
    ) -> (Arc<T>, Option<Lease<'static, T, C>>) {
        let (ttl, stale) = (self.policy.ttl, self.policy.stale);
        let left = value.hard_left.saturating_sub(self.since(asked));
        let known = Known { version: Some(value.version), soft_end: asked, ..Known::default() };
        if ttl < LONGEST && stale < LONGEST {
            let served = self.restore(&lease, opened, left, known).0;
            return (served, Some(lease));
        }
        let hard_end = self.bound(value.soft_left, value.hard_left, asked);
        let known = Known { hard_end, ..known };
        let served = self.publish(lease, Arc::new(opened), Duration::ZERO, known);
        // A time to live of zero lasts until the clock moves.
        self.local.invalidate_if_current(&served);
        (served, self.elect())
    }

    /// Puts a stale value into the local cell that may be served for so long: with the age at which the cell itself stops serving it,
    /// when the time comes. It asks nobody for that. Returns the generation too, if it is there.
    fn restore(
        &self,
        lease: &Lease<'static, T, C>,
        value: T,
        left: Duration,
        known: Known,
    ) -> (Arc<T>, Option<u64>) {
        let (ttl, stale) = (self.policy.ttl, self.policy.stale);
        let age = ttl.saturating_add(stale.saturating_sub(left)).saturating_add(Duration::from_nanos(1));
        let served = self.local.restore(value, age);
        let snapshot = self.local.snapshot().filter(|snapshot| Arc::ptr_eq(&snapshot.value, &served));
        let generation = snapshot.map(|snapshot| snapshot.generation);
        if let Some(generation) = generation {
            self.register_generation(generation, known);
        }
        if lease.is_fenced() {
            // Cleared meanwhile, perhaps before this was put there.
            drop(self.local.clear());
        }
        (served, generation)
    }

    /// Publishes what was built here, which is fresh for `ttl`. Returns the generation too, if it is there.
    pub(super) fn publish_built(
        &self,
        lease: Lease<'static, T, C>,
        value: Arc<T>,
        ttl: Duration,
        known: Known,
    ) -> (Arc<T>, Option<u64>) {
        let is_local = self.policy.ttl < LONGEST && self.policy.stale < LONGEST;
        let value = match known.hard_end.filter(|_| ttl.is_zero() && is_local && !lease.is_fenced()) {
            // It was older than its ttl when it was built. No one else has it yet.
            Some(end) => match Arc::try_unwrap(value) {
                Ok(value) => {
                    let left = end.saturating_duration_since(self.clock.now());
                    return self.restore(&lease, value, left, Known { hard_end: None, ..known });
                }
                Err(value) => value,
            },
            None => value,
        };
        let published = lease.publish_snapshot(value, Some(ttl));
        let generation = self.register(&published, known);
        (published.value, generation)
    }

    /// When a value stops being servable, if that is earlier than the local cell would know by its own policy.
    pub(super) fn bound(&self, soft_left: Duration, hard_left: Duration, asked: Tick) -> Option<Tick> {
        let known_to_cell = soft_left.saturating_add(self.policy.stale);
        (hard_left < known_to_cell && hard_left < LONGEST / 2).then(|| asked.saturating_add(hard_left))
    }

    /// Takes over what the store has besides "somebody else builds". `None`: the lease is in other hands.
    pub(crate) fn take_stale(
        &self,
        lease: Lease<'static, T, C>,
        current: Current,
        epoch: Option<Epoch>,
        asked: Tick,
    ) -> Option<Lease<'static, T, C>> {
        match current {
            Current::Newer(value) if value.hard_left > self.since(asked) => {
                if self.is_older(&value, asked) {
                    return Some(lease);
                }
                let Opened::Value(opened) = self.open(&value) else { return Some(lease) };
                self.access.counters.adopted.count();
                self.publish_stale(lease, opened, &value, asked).1
            }
            Current::Nothing { cleared: true } if self.concerns(epoch) => {
                drop(self.local.clear());
                self.elect()
            }
            _ => Some(lease),
        }
    }
}
