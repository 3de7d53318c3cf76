//! Looks without an election: at a value that is fresh here, and while the worker holds the lease.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{Clock, Freshness, Lookup};

use super::state::has_gone_back;
use super::{Node, Taken};
use crate::access::Operation;
use crate::breaker::Kind;
use crate::cell::job::Watch;
use crate::store::{Current, Poll, Version};

/// What has come of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    /// What it was for.
    Done,
    /// Nothing as yet: somebody of this node has the local lease, or the store did not answer. If nothing is built with that lease, the
    /// next look is due when it is given back.
    TooEarly,
    /// Nothing: what has happened here since may be newer than the answer. The next look is due at once.
    TooLate,
}

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Asks what there is. What has gone back in time does not count.
    pub(super) fn poll(&self, known: Option<Version>) -> Option<Poll> {
        self.access.counters.polls.count();
        // An answer is judged by what was seen before the question: an invalidation of this node may come meanwhile.
        let seen = self.with(|state| state.seen);
        let mut poll = self.ask(Operation::Poll, |store, name| store.poll(name, known))?;
        let version = poll.current.newer().map(|value| value.version).or(match poll.current {
            Current::Same { .. } => known,
            _ => None,
        });
        let has_gone_back = has_gone_back(seen, poll.epoch, version);
        self.with(|state| {
            state.is_told(poll.epoch);
            if !has_gone_back {
                state.sees(poll.epoch, version);
            }
        });
        if has_gone_back {
            self.access.counters.gone_back.count();
            poll.current = Current::Nothing { cleared: false };
        }
        Some(poll)
    }

    /// A look at the store while there is no election, because other nodes may have invalidated or rebuilt the value.
    pub(crate) fn look(self: &Arc<Self>) -> Looked {
        let Some(snapshot) = self.local.snapshot() else { return Looked::TooEarly };
        let invalidations = self.with(|state| state.invalidations);
        let known = self.known();
        let asked = self.clock.now();
        let Some(poll) = self.poll(known.to_store()) else { return Looked::TooEarly };
        // The look may have delivered an invalidation that was owed, which is older than what was built here since.
        let known = if self.local.generation() == snapshot.generation { self.known() } else { known };
        let has_missed = known.has_missed(poll.epoch);
        let is_fresh = snapshot.freshness == Freshness::Fresh;
        match poll.current {
            // Also while this node builds: what it builds from before will be refused.
            Current::Nothing { cleared: true }
                if (has_missed || !known.is_alone()) && self.local.generation() == snapshot.generation =>
            {
                drop(self.local.clear());
            }
            // All else its build will find out, unless the store was asked for the right to build before this look.
            _ if self.local.is_refreshing() => return Looked::TooEarly,
            Current::Same { soft_left, .. } if soft_left.is_zero() && is_fresh => {
                self.outdated(snapshot.generation);
            }
            Current::Nothing { cleared: false } if known.to_store().is_some() && is_fresh => {
                self.outdated(snapshot.generation);
            }
            // Unless it came by another way, and what is known about it has only been noted down since.
            Current::Newer(value)
                if self.known().version != Some(value.version) && !self.is_older(&value, asked) =>
            {
                if value.hard_left > self.since(asked) {
                    // Elected also if the value is fresh here: until the newer one is there, no caller is to ask for it.
                    let Lookup::Elected(lease) = self.local.request_owned().no_cache().lookup() else {
                        return Looked::TooEarly;
                    };
                    // What is here may be newer than the answer, which in turn may be from before an invalidation, and the lease
                    // from after it. While it is held, nothing else comes.
                    if self.local.generation() != snapshot.generation
                        || self.with(|state| state.invalidations) != invalidations
                    {
                        return Looked::TooLate;
                    }
                    if let Taken::Over(_) = self.take_over(lease, &value, asked) {
                        return Looked::Done;
                    }
                }
                // If it cannot be read, the next caller finds that out too, and builds.
                self.outdated(snapshot.generation);
            }
            _ if has_missed && is_fresh => self.outdated(snapshot.generation),
            _ => {}
        }
        Looked::Done
    }

    /// One look of the worker, which holds the lease because another node builds, a pause runs or the store is down.
    /// Returns what is left to watch.
    pub(crate) fn watch_on(self: &Arc<Self>, mut watch: Watch<T, C>) -> Option<Watch<T, C>> {
        if watch.lease.is_fenced() {
            // The value was cleared: the next caller is elected.
            return None;
        }
        let now = self.clock.now();
        if self.known().hard_end.is_some_and(|end| end <= now) {
            drop(self.local.clear());
            return None;
        }
        let longest = self.policy.poll.unwrap_or(Duration::from_secs(1));
        if let Some(until) = self.open_until(Kind::Look, now) {
            // A caller that finds nothing to serve builds.
            return self.can_serve().then(|| {
                watch.next = until.min(now.saturating_add(longest));
                watch
            });
        }
        let held = self.held();
        let Some(Poll { current, epoch, lease_left, retry_left }) = self.poll(held.0.to_store()) else {
            watch.next = now.saturating_add(longest);
            return Some(watch).filter(|_| self.can_serve());
        };
        let mut lease = watch.lease;
        if current.soft_left() > Duration::ZERO {
            match self.take_fresh(lease, current, held, now) {
                Taken::Older(returned) if self.can_serve() => lease = returned,
                // What cannot be used is for the next caller to deal with.
                _ => return None,
            }
        } else {
            lease = self.take_stale(lease, current, Some(epoch), now)?;
            let is_paused = !retry_left.is_zero() && lease_left.is_zero();
            if self.open_until(Kind::Change, now).is_some() && self.can_serve() {
                // It answers looks, and is asked for no changes: there may be a value of another node.
                return Some(Watch { lease, next: now.saturating_add(longest), ..watch });
            }
            if (lease_left.is_zero() && !is_paused) || (is_paused && !self.can_serve()) {
                // The next caller is elected, and gets the right to build.
                if is_paused {
                    self.set_backoff(retry_left);
                }
                return None;
            }
        }
        let left = if lease_left.is_zero() { retry_left } else { lease_left };
        let left = if left.is_zero() { longest } else { left };
        Some(Watch { lease, next: now, is_idle: lease_left.is_zero(), ..watch }.later(now, left.min(longest)))
    }
}
