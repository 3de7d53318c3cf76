//! Builds of a load, and what becomes of them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dogpile::{BoxError, Clock, Refreshed, Tick};

use super::shared::Shared;
use super::{FleetKeys, FleetValue, Won};
use crate::access::Operation;
use crate::cell::{BuildContext, Built};
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
        make: F,
    ) -> Result<Refreshed<FleetValue<T>>, BoxError>
    where
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Built<T>, E>,
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
            let (fence, tag) = (Some(token.fence), tag.as_deref());
            let context = BuildContext { fence, previous: given, tag, lost: &lost };
            let result = make(&context);
            context.check(&result);
            result
        };
        unless_panicked.token = None;
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                shared.access.counters.failed.count();
                shared.fail(name, token, shared.policy.pause(failures.saturating_add(1)));
                return Err(error.into());
            }
        };
        let (value, new_tag, is_unchanged) = match (outcome, given) {
            (Built::New { value, tag }, _) => (Arc::new(value), tag, false),
            (Built::Unchanged, Some(previous)) => (Arc::clone(previous), tag, true),
            (Built::Unchanged, None) => {
                unreachable!("an unchanged value has a previous one, as was asserted")
            }
        };
        let payload = if is_unchanged && has_value { None } else { Some(seal(&*self.codec, &*value)) };
        let Ok(payload) = payload.transpose() else {
            shared.access.counters.not_encoded.count();
            shared.fail(name, token, Duration::ZERO);
            return Ok(self.alone(value, None));
        };
        let asked = shared.clock.now();
        let (ttl, hard) = (shared.policy.ttl, shared.policy.hard());
        let publish = || {
            shared.access.run(Operation::Publish, name, |store, name| match &payload {
                None => store.unchanged(name, &token, ttl, hard),
                Some(payload) => {
                    let publication = Publication { payload, tag: new_tag.as_deref(), soft: ttl, hard };
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
            Err(_) => Ok(self.alone(value, None)),
        }
    }

    /// Builds for this node alone.
    pub(super) fn build_alone<E, F>(
        &self,
        previous: Option<&FleetValue<T>>,
        left: Option<Duration>,
        build: F,
    ) -> Result<Refreshed<FleetValue<T>>, BoxError>
    where
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Built<T>, E>,
    {
        let previous = previous.map(|previous| &previous.value);
        let lost = AtomicBool::new(false);
        let context = BuildContext { fence: None, previous, tag: None, lost: &lost };
        let result = build(&context);
        context.check(&result);
        match (result, previous) {
            (Ok(Built::New { value, .. }), _) => Ok(self.alone(Arc::new(value), left)),
            (Ok(Built::Unchanged), Some(previous)) => Ok(self.alone(Arc::clone(previous), left)),
            (Ok(Built::Unchanged), None) => unreachable!("as was asserted"),
            (Err(error), _) => {
                self.shared.access.counters.failed.count();
                Err(error.into())
            }
        }
    }

    /// A value that was built for this node alone.
    fn alone(&self, value: Arc<T>, left: Option<Duration>) -> Refreshed<FleetValue<T>> {
        let shared = &*self.shared;
        shared.access.counters.local_builds.count();
        // Up to a quarter shorter, so that the nodes of a fleet without a store do not build at the same time.
        let ttl = draw::around(shared.policy.ttl.mul_f64(0.875), 12);
        let ttl = left.map_or(ttl, |left| left.min(shared.policy.ttl));
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
