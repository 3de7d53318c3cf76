//! Builds of a load: what they are given, and how they end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dogpile::{BoxError, Clock, RefreshError, Refreshed, SharedError, Tick};

use super::beats::Beating;
use super::publish::{Delivered, Delivery, Publishing};
use super::shared::Won;
use super::{FleetKeys, FleetValue};
use crate::cell::reply::Awaited;
use crate::cell::{BuildContext, IsStored, Made};
use crate::codec::seal;
use crate::store::Current;

/// A build that is about to run, or runs.
pub(super) struct Building<'a, T: 'static, C: Clock + 'static> {
    keys: &'a FleetKeys<T, C>,
    kind: Kind<'a, C>,
    /// What this node has.
    held: Option<Arc<FleetValue<T>>>,
    /// What the build is given.
    previous: Option<Arc<T>>,
    tag: Option<String>,
    lost: Arc<AtomicBool>,
}

enum Kind<'a, C: Clock + 'static> {
    Fleet {
        won: Won<C>,
        /// The store has the previous value too.
        has_value: bool,
        _beat: Beating<'a, C>,
    },
    /// For this node alone. Fresh for no longer than this, if the store has something that cannot be read here.
    Alone(Option<Duration>),
}

/// How a load ends, when its build is over.
pub(super) enum Ending<'a, T: 'static, C: Clock + 'static> {
    /// The result, for which the store is not needed; it may be told of the end of the build first.
    Over(Option<Awaited<()>>, Result<Refreshed<FleetValue<T>>, RefreshError>),
    Publishing(Publishing<'a, T, C>, Awaited<Delivered>),
}

impl<T, C> FleetKeys<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// A build for the whole fleet.
    pub(super) fn building(
        &self,
        mut won: Won<C>,
        current: &Current,
        held: Option<Arc<FleetValue<T>>>,
        name: &str,
        asked: Tick,
    ) -> Building<'_, T, C> {
        self.shared.access.counters.fleet_builds.count();
        let stored = match current {
            Current::Newer(value) => self.open(value, asked).ok().map(|stored| stored.value),
            Current::Same { .. } => held.as_ref().map(|held| Arc::clone(&held.value)),
            Current::Nothing { .. } => None,
        };
        let has_value = stored.is_some();
        let tag = won.tag.take().filter(|_| has_value);
        let is_cleared = matches!(current, Current::Nothing { cleared: true });
        let own = held.as_ref().filter(|_| !is_cleared).map(|held| Arc::clone(&held.value));
        let lost = Arc::new(AtomicBool::new(false));
        let beat = self.beats.add(self.shared.beat(name, won.token(), &lost));
        let kind = Kind::Fleet { won, has_value, _beat: beat };
        Building { keys: self, kind, previous: stored.or(own), held, tag, lost }
    }

    /// A build for this node alone.
    pub(super) fn building_alone(
        &self,
        held: Option<Arc<FleetValue<T>>>,
        left: Option<Duration>,
    ) -> Building<'_, T, C> {
        let previous = held.as_ref().map(|held| Arc::clone(&held.value));
        Building { keys: self, kind: Kind::Alone(left), held, previous, tag: None, lost: Arc::default() }
    }
}

impl<'a, T, C> Building<'a, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    pub(super) fn context(&self) -> BuildContext<'_, T> {
        let fence = match &self.kind {
            Kind::Fleet { won, .. } => Some(won.token().fence),
            Kind::Alone(_) => None,
        };
        BuildContext::new(fence, self.previous.as_ref(), self.tag.as_deref(), &self.lost)
    }

    /// The build is over.
    pub(super) fn end(self, result: Result<Made<T>, BoxError>) -> Ending<'a, T, C> {
        let Self { keys, kind, held, tag, .. } = self;
        let shared = &keys.shared;
        let mut made = match result {
            Ok(made) => made,
            Err(error) => {
                shared.access.counters.failed.count();
                let ended = match kind {
                    Kind::Fleet { won, .. } => {
                        let pause = shared.policy.pause(won.failures.saturating_add(1));
                        let (name, token) = won.end();
                        Some(shared.end(name, token, pause))
                    }
                    Kind::Alone(_) => None,
                };
                return Ending::Over(ended, Err(SharedError::new(error).into()));
            }
        };
        let life = made.life(&shared.policy);
        let (won, has_value) = match kind {
            Kind::Alone(left) => return Ending::Over(None, Ok(keys.alone(made.value, life, left))),
            Kind::Fleet { won, has_value, .. } => (won, has_value),
        };
        let (name, token) = won.end();
        let payload = match made.tag_to_store(has_value, tag.as_deref()) {
            Err(IsStored) => None,
            Ok(tag) => match seal(&*keys.codec, &*made.value) {
                Ok(payload) => Some((payload, tag)),
                Err(_) => {
                    shared.access.counters.not_encoded.count();
                    let ended = shared.end(name, token, Duration::ZERO);
                    return Ending::Over(Some(ended), Ok(keys.alone(made.value, life, None)));
                }
            },
        };
        let Made { value, is_unchanged, .. } = made;
        let publishing =
            Publishing { keys, value, life, is_unchanged, previous: held, verdict: Arc::default() };
        let verdict = Arc::clone(&publishing.verdict);
        let delivered = shared.publish(Delivery { name, token, payload, life }, verdict);
        Ending::Publishing(publishing, delivered)
    }
}

impl<T, C> Ending<'_, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// What the load returns, when the caller has waited for the store, but no longer than `patience`.
    pub(super) fn wait(self, patience: Duration) -> Result<Refreshed<FleetValue<T>>, RefreshError> {
        match self {
            Self::Over(ended, result) => {
                if let Some(ended) = ended {
                    let _ = ended.wait(patience);
                }
                result
            }
            Self::Publishing(publishing, delivered) => Ok(publishing.conclude(delivered.wait(patience))),
        }
    }

    /// The same, for a task.
    #[cfg(feature = "async")]
    pub(super) async fn wait_async(
        self,
        patience: Duration,
    ) -> Result<Refreshed<FleetValue<T>>, RefreshError> {
        match self {
            Self::Over(ended, result) => {
                if let Some(ended) = ended {
                    let _ = ended.wait_async(patience).await;
                }
                result
            }
            Self::Publishing(publishing, delivered) => {
                let answer = delivered.wait_async(patience).await;
                Ok(publishing.conclude(answer))
            }
        }
    }
}
