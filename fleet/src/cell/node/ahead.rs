//! Elections ahead of expiry, for a [`FleetRefresher`](crate::FleetRefresher).

use std::sync::Arc;
use std::time::Duration;

use dogpile::{Clock, Lease, Lookup, Tick};

use super::{Node, Step, Taken};
use crate::access::Operation;
use crate::breaker::Kind;
use crate::cell::job::Job;
use crate::error::Backoff;
use crate::store::{Acquire, Request};

/// While a caller of this node deals with the value.
const SOON: Duration = Duration::from_millis(20);

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Asks for the right to replace a value that is fresh for no longer than `ahead`. Nothing becomes of the value here unless
    /// there is another one to take its place.
    ///
    /// `Again`: the value has been taken over, or found unchanged. `Backoff`: another node builds, a pause runs, or the store does
    /// not work, and it is to be asked again after that time.
    pub(crate) fn elected_ahead(self: &Arc<Self>, ahead: Duration) -> Step<T, C> {
        let later = |left| Step::Backoff(Backoff { left });
        let now = self.clock.now();
        if let Some(left) = self.leaves_alone(now) {
            return later(left);
        }
        let left = self.backoff_left(now);
        if !left.is_zero() {
            return later(left);
        }
        let Lookup::Elected(lease) = self.local.request_owned().no_cache().lookup() else {
            return later(SOON);
        };
        if self.is_void_here(&lease) {
            return Step::Again;
        }
        let step = self.ask_ahead(lease, ahead);
        if !matches!(step, Step::Build(_)) {
            // A look that came meanwhile was too early, and its answer may have been newer than what this one has been given.
            self.mailbox.nudge(Job::Look);
        }
        step
    }

    /// The same, with the local lease.
    fn ask_ahead(self: &Arc<Self>, lease: Lease<'static, T, C>, ahead: Duration) -> Step<T, C> {
        let later = |left| Step::Backoff(Backoff { left });
        let asked = self.clock.now();
        self.access.counters.acquires.count();
        let (held, seen) = (self.held(), self.with(|state| state.seen));
        let request = Request { known: held.0.to_store(), seen, ahead, ..Request::new(self.policy.lease) };
        let Some(answer) = self.ask(Operation::Acquire, |store, name| store.acquire(name, &request)) else {
            let left = self.leaves_alone(self.clock.now());
            return later(left.unwrap_or(self.policy.breaker.0));
        };
        match answer {
            Acquire::Won { token, tag, failures, current } => {
                Step::Build(self.won(lease, token, tag, failures, current, asked))
            }
            Acquire::Busy { left, .. } => {
                self.access.counters.busy.count();
                later(left)
            }
            Acquire::Backoff { left, epoch, .. } => {
                self.access.counters.backoffs.count();
                self.with(|state| state.is_told(epoch));
                self.set_backoff(left);
                later(left)
            }
            Acquire::Fresh(current) => match self.take_fresh(lease, current, held, asked) {
                Taken::Over(_) => Step::Again,
                // What the store has is of no use here: for whoever comes when the value has expired.
                Taken::Older(_) | Taken::Damaged(_) | Taken::Foreign(..) => {
                    later(self.local.snapshot().map_or(SOON, |snapshot| snapshot.fresh_for).max(SOON))
                }
            },
        }
    }

    /// For how long the store is to be left alone, if it is.
    fn leaves_alone(&self, now: Tick) -> Option<Duration> {
        Some(self.open_until(Kind::Change, now)?.saturating_duration_since(now))
    }
}
