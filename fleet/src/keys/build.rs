//! Builds of a load, and what becomes of them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dogpile::{BoxError, Clock, RefreshError, Refreshed, SharedError, Tick};

use super::shared::Shared;
use super::{FleetKeys, FleetValue, Won};
use crate::access::Operation;
use crate::cell::{BuildContext, IsStored, Made};
use crate::codec::seal;
use crate::draw;
use crate::store::{Current, Publication, Publish, Token};

impl<T, C> FleetKeys<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Builds for the whole fleet.
    pub(super) fn build<E, F>(
        &self,
        name: &str,
        won: Won,
        current: &Current,
        previous: Option<&FleetValue<T>>,
        asked: Tick,
        build: F,
    ) -> Result<Refreshed<FleetValue<T>>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        let shared = &*self.shared;
        shared.access.counters.fleet_builds.count();
        let Won { token, tag, failures } = won;
        let stored = match current {
            Current::Newer(value) => self.open(value, asked).ok(),
            Current::Same { .. } => previous.cloned(),
            Current::Nothing { .. } => None,
        };
        let (has_value, tag) = (stored.is_some(), tag.filter(|_| stored.is_some()));
        let cleared = matches!(current, Current::Nothing { cleared: true });
        let stored = stored.or_else(|| previous.filter(|_| !cleared).cloned());
        let given = stored.as_ref().map(|stored| &stored.value);
        let mut unless_panicked = GiveBack { shared, name, token: Some(token) };
        let result = {
            let lost = Arc::new(AtomicBool::new(false));
            let _beat = self.beats.add(self.shared.beat(name, token, &lost));
            let context = BuildContext::new(Some(token.fence), given, tag.as_deref(), &lost);
            context.made(build(&context))
        };
        unless_panicked.token = None;
        let mut made = match result {
            Ok(made) => made,
            Err(error) => {
                shared.access.counters.failed.count();
                shared.fail(name, token, shared.policy.pause(failures.saturating_add(1)));
                return Err(SharedError::new(error).into());
            }
        };
        let ttl = made.ttl(&shared.policy);
        let payload = match made.tag_to_store(has_value, tag) {
            Err(IsStored) => None,
            Ok(tag) => match seal(&*self.codec, &*made.value) {
                Ok(payload) => Some((payload, tag)),
                Err(_) => {
                    shared.access.counters.not_encoded.count();
                    shared.fail(name, token, Duration::ZERO);
                    return Ok(self.alone(made.value, ttl, None));
                }
            },
        };
        let Made { value, is_unchanged, .. } = made;
        let asked = shared.clock.now();
        let hard = shared.policy.hard(ttl);
        let publish = || {
            shared.access.run(Operation::Publish, name, |store, name| match &payload {
                None => store.unchanged(name, &token, ttl, hard),
                Some((payload, tag)) => {
                    let publication = Publication { payload, tag: tag.as_deref(), soft: ttl, hard };
                    store.publish(name, &token, &publication)
                }
            })
        };
        // Once more if it fails: whether it has taken effect is not known, and it may be repeated.
        let counters = &shared.access.counters;
        match publish().or_else(|_| publish()) {
            Ok(Publish::Stored(version)) => {
                counters.published.count();
                if is_unchanged {
                    counters.unchanged.count();
                }
                let hard_end = asked.saturating_add(hard);
                let stored = FleetValue { value, version: Some(version), alone: None, hard_end };
                Ok(Refreshed::NewFor(stored, shared.fresh_for(ttl, asked)))
            }
            Ok(refusal) => {
                if refusal == Publish::Superseded {
                    counters.superseded.count();
                } else {
                    counters.invalidated.count();
                }
                // What is there instead; else its own caller gets it, and the next one looks again.
                counters.polls.count();
                let asked = shared.clock.now();
                let poll = shared.access.run(Operation::Poll, name, |store, name| store.poll(name, None));
                let instead = poll.ok().and_then(|poll| {
                    let soft_left = poll.current.soft_left();
                    Some((self.take_stale(poll.current, asked)?, soft_left))
                });
                Ok(match instead {
                    Some((taken, soft_left)) => Refreshed::NewFor(taken, shared.fresh_for(soft_left, asked)),
                    None => {
                        let hard_end = asked.saturating_add(hard);
                        let own = FleetValue { value, version: None, alone: Some(asked), hard_end };
                        Refreshed::NewFor(own, Duration::ZERO)
                    }
                })
            }
            Err(_) => Ok(self.alone(value, ttl, None)),
        }
    }

    /// Builds for this node alone.
    pub(super) fn build_alone<E, F>(
        &self,
        previous: Option<&FleetValue<T>>,
        left: Option<Duration>,
        build: F,
    ) -> Result<Refreshed<FleetValue<T>>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        let previous = previous.map(|previous| &previous.value);
        let lost = AtomicBool::new(false);
        let context = BuildContext::new(None, previous, None, &lost);
        match context.made(build(&context)) {
            Ok(made) => {
                let ttl = made.ttl(&self.shared.policy);
                Ok(self.alone(made.value, ttl, left))
            }
            Err(error) => {
                self.shared.access.counters.failed.count();
                Err(SharedError::new(error).into())
            }
        }
    }

    /// A value that was built for this node alone.
    fn alone(&self, value: Arc<T>, ttl: Duration, left: Option<Duration>) -> Refreshed<FleetValue<T>> {
        let shared = &*self.shared;
        shared.access.counters.local_builds.count();
        // Up to a quarter shorter, so that the nodes of a fleet without a store do not build at the same time.
        let drawn = draw::around(ttl.mul_f64(0.875), 12);
        let ttl = left.map_or(drawn, |left| left.min(ttl));
        let now = shared.clock.now();
        let hard_end = now.saturating_add(ttl).saturating_add(shared.policy.stale);
        Refreshed::NewFor(FleetValue { value, version: None, alone: Some(now), hard_end }, ttl)
    }
}

/// Gives the right to build back if the build panics.
struct GiveBack<'a, C: Clock + 'static> {
    shared: &'a Shared<C>,
    name: &'a str,
    token: Option<Token>,
}

impl<C: Clock + 'static> Drop for GiveBack<'_, C> {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            self.shared.access.counters.panicked.count();
            self.shared.fail(self.name, token, Duration::ZERO);
        }
    }
}
