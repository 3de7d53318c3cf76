//! Builds, from their election on, and writes.

use std::time::Duration;

use dogpile::{Freshness, PublishOutcome, Stats};

use super::drain::{Hold, Section};
use super::{BuildId, Demand, Done, Ended, FOR_EVER, Fault, Model, Number, Publication, Published};

/// A build, from its election on.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is something that has happened to it, or not
pub(super) struct Build {
    pub(super) demand: Demand,
    /// The number of the latest build or `set` when its call began.
    pub(super) called: u64,
    /// Its own.
    pub(super) begun: u64,
    pub(super) began: Duration,
    pub(super) previous: Option<Number>,
    /// The one that its value would have.
    pub(super) generation: u64,
    /// Whether `invalidate` was called since.
    pub(super) is_invalidated: bool,
    /// Whether `set`, `clear`, `revoke` or `reset` was called since.
    pub(super) is_displaced: bool,
    /// Whether another caller was elected in its place.
    pub(super) is_superseded: bool,
    /// Whether it was handed to a spawner.
    pub(super) is_job: bool,
    /// `None`: it runs, or it has leaked.
    pub(super) done: Option<Done>,
    /// It has the write lock.
    pub(super) section: Option<Section>,
}

/// The failures since the latest publication.
#[derive(Clone, Debug)]
pub(super) struct Failures {
    pub(super) count: u32,
    pub(super) latest_at: Duration,
    pub(super) latest: Fault,
    pub(super) is_panic: bool,
}

/// What happens.
impl Model {
    pub(crate) fn advance_to(&mut self, now: Duration) {
        self.now = now;
    }

    pub(super) fn elect(&mut self, demand: Demand, called: u64) -> BuildId {
        self.stats.builds += 1;
        if let Some(build) = self.lease {
            self.stats.superseded += 1;
            self.meet("build: superseding another");
            self.builds[build].is_superseded = true;
        }
        self.begun += 1;
        self.builds.push(Build {
            demand,
            called,
            begun: self.begun,
            began: self.now,
            previous: self.value(),
            generation: self.generation + 1,
            is_invalidated: false,
            is_displaced: false,
            is_superseded: false,
            is_job: false,
            done: None,
            section: None,
        });
        let build = self.builds.len() - 1;
        self.lease = Some(build);
        build
    }

    pub(crate) fn enter_closure(&mut self) {
        self.closures += 1;
    }

    pub(crate) fn leave_closure(&mut self) {
        self.closures -= 1;
    }

    /// A build ends with a value.
    pub(crate) fn publish(&mut self, build: BuildId, value: Number, ttl: Option<Duration>) -> Published {
        self.publish_aged(build, value, ttl, Duration::ZERO)
    }

    /// ... that was made `age` ago.
    pub(crate) fn publish_aged(
        &mut self,
        build: BuildId,
        value: Number,
        ttl: Option<Duration>,
        age: Duration,
    ) -> Published {
        self.conclude(build, value, ttl, age, false)
    }

    fn conclude(
        &mut self,
        build: BuildId,
        value: Number,
        ttl: Option<Duration>,
        age: Duration,
        renews: bool,
    ) -> Published {
        let was_overdue = self.is_overdue(build);
        let Build {
            demand,
            called,
            began,
            begun,
            is_invalidated,
            is_displaced,
            is_superseded,
            generation,
            ..
        } = self.builds[build];
        self.stats.last_build = Some(self.now - began);
        // Under the write lock it keeps the lease, even if it is displaced.
        let had_the_lease = self.release(build) && !is_displaced;
        // What is renewed must still be there.
        let is_gone = had_the_lease && renews && self.value() != Some(value);
        if !had_the_lease || is_gone {
            let served =
                self.value.filter(|value| self.get().is_some() && value.meets(&demand, called, self.now));
            let outcome = if is_displaced || is_gone {
                self.stats.fenced += 1;
                PublishOutcome::Displaced
            } else {
                PublishOutcome::Superseded
            };
            self.meet(match (outcome, served) {
                _ if is_gone => "fence: the value to renew is gone",
                (PublishOutcome::Displaced, Some(_)) => "fence: displaced, and another value served",
                (PublishOutcome::Displaced, None) if self.get().is_some() => {
                    "fence: displaced, and its own value served as the other does not meet the conditions"
                }
                (PublishOutcome::Displaced, None) => "fence: displaced, and its own value served",
                (_, Some(_)) => "fence: superseded, and another value served",
                (_, None) => "fence: superseded, and its own value served",
            });
            if is_displaced && is_superseded {
                self.meet("fence: superseded, and displaced too");
            }
            if is_gone {
                self.settle(Ended::Abandoned);
            }
            if renews {
                self.will_leave(value);
            } else {
                let replaced = self.fence_section(build, value);
                self.will_let_go(replaced);
            }
            let number = served.map_or(value, |served| served.value);
            self.note_end(build, Done::Value(number));
            return match served {
                Some(served) => self.published(&served, outcome),
                None => Published {
                    value,
                    generation: None,
                    fresh_for: Duration::ZERO,
                    servable_for: Duration::ZERO,
                    outcome,
                },
            };
        }
        self.meet(if was_overdue {
            "publication: of an overdue lease"
        } else {
            "publication: of the one lease"
        });
        if generation <= self.generation {
            self.meet("publication: over a restored value");
        }
        let outcome = if is_invalidated {
            self.meet("fence: published as stale");
            self.stats.fenced += 1;
            PublishOutcome::PublishedStale
        } else {
            PublishOutcome::Published
        };
        if renews {
            self.will_leave(value);
        } else {
            let replaced = self.publish_section(build);
            self.retire(replaced);
            self.will_let_go(replaced);
        }
        self.make_visible(value, ttl, age.min(FOR_EVER), begun, is_invalidated);
        let publication = self.value.expect("it has just been published");
        if !self.was_servable(&publication) {
            self.meet("publication: of what has expired");
            self.settle(Ended::Abandoned);
        }
        if !age.is_zero()
            && let Some(refresher) = &mut self.refresher
        {
            // The source has chosen how much is left.
            refresher.is_of_own_ttl = true;
        }
        self.note_end(build, Done::Value(value));
        self.published(&publication, outcome)
    }

    pub(super) fn published(&self, value: &Publication, outcome: PublishOutcome) -> Published {
        Published {
            value: value.value,
            generation: Some(value.generation),
            fresh_for: self.fresh_for(value),
            servable_for: self.servable_for(value),
            outcome,
        }
    }

    /// "Not modified." `None`: there is nothing to renew, and the build goes on.
    pub(crate) fn renew(&mut self, build: BuildId, ttl: Option<Duration>) -> Option<Published> {
        let previous = self.previous(build)?;
        Some(self.conclude(build, previous, ttl, Duration::ZERO, true))
    }

    pub(crate) fn fail(&mut self, build: BuildId, fault: Fault) {
        self.stats.failed += 1;
        self.stats.last_build = Some(self.now - self.builds[build].began);
        self.fail_section(build);
        self.will_let_go(None);
        if self.release(build) && !self.builds[build].is_displaced {
            self.meet("end: failed");
            self.count_failure(fault, false);
            self.settle(Ended::Failed(fault));
        } else {
            self.meet(self.end_without_a_lease(build, "end: failed, and was displaced"));
        }
        self.note_end(build, Done::Failed(fault));
    }

    pub(crate) fn panic(&mut self, build: BuildId, fault: Fault) {
        self.stats.panicked += 1;
        self.fail_section(build);
        self.will_let_go(None);
        if self.release(build) && !self.builds[build].is_displaced {
            self.meet("end: panicked");
            self.count_failure(fault, true);
            self.settle(Ended::Abandoned);
        } else {
            self.meet(self.end_without_a_lease(build, "end: panicked, and was displaced"));
        }
        self.note_end(build, Done::Panicked);
    }

    pub(crate) fn abandon(&mut self, build: BuildId) {
        self.stats.abandoned += 1;
        if self.release(build) {
            self.meet("end: abandoned");
            self.settle(Ended::Abandoned);
        }
        self.note_end(build, Done::Abandoned);
    }

    fn note_end(&mut self, build: BuildId, done: Done) {
        self.builds[build].done = Some(done);
        if self.builds[build].is_job {
            // Its caller may wait for it though it has lost its lease. All waiters are woken, and look again.
            self.settle(Ended::Abandoned);
        }
    }

    fn end_without_a_lease(&self, build: BuildId, displaced: &'static str) -> &'static str {
        if self.builds[build].is_displaced { displaced } else { "end: superseded" }
    }

    /// The build gives the lease back. Whether it still had it.
    fn release(&mut self, build: BuildId) -> bool {
        let holds = self.lease == Some(build);
        if holds {
            self.lease = None;
        }
        holds
    }

    /// A pause begins.
    fn count_failure(&mut self, latest: Fault, is_panic: bool) {
        let count = self.failures.as_ref().map_or(0, |failures| failures.count) + 1;
        self.failures = Some(Failures { count, latest_at: self.now, latest, is_panic });
    }

    /// Whether it is done: see [`refuses`](Model::refuses).
    pub(crate) fn set(&mut self, value: Number, ttl: Option<Duration>) -> bool {
        if self.refuses(value) {
            return false;
        }
        if self.displace() {
            self.meet("set: during a build");
        }
        self.begun += 1;
        let replaced = self.value();
        self.retire(replaced);
        self.make_visible(value, ttl, Duration::ZERO, self.begun, false);
        // Its caller gets it at the end of the wait, which makes no difference to others.
        self.hold(value, Hold::Arc);
        self.let_go(replaced);
        true
    }

    /// The value was made `age` ago. A build that runs is newer. Whether it is done.
    pub(crate) fn restore(&mut self, value: Number, age: Duration) -> bool {
        if self.refuses(value) {
            return false;
        }
        if self.lease.is_some() {
            self.meet("restore: during a build");
        }
        // What is not made just now was made before any call that waits.
        self.begun += u64::from(age.is_zero());
        let begun = if age.is_zero() { self.begun } else { 0 };
        let replaced = self.value();
        self.retire(replaced);
        self.make_visible(value, None, age.min(FOR_EVER), begun, false);
        self.meet(match self.freshness() {
            Freshness::Fresh => "restore: a fresh value",
            Freshness::Stale => "restore: a stale value",
            _ => "restore: an expired value",
        });
        self.hold(value, Hold::Arc);
        self.let_go(replaced);
        true
    }

    pub(crate) fn invalidate(&mut self) {
        for build in &mut self.builds {
            build.is_invalidated = true;
        }
        self.invalidate_sections();
        if let Some(value) = &mut self.value {
            value.declared_stale.get_or_insert(self.now);
        }
    }

    /// Whether the value was declared stale.
    pub(crate) fn invalidate_if_current(&mut self, seen: Number) -> bool {
        match &self.value {
            Some(value) if value.value == seen && value.declared_stale.is_none() => {
                self.meet("invalidate_if_current: declared stale");
                if self.lease.is_some() {
                    self.meet("invalidate_if_current: during a build");
                }
                self.invalidate();
                true
            }
            Some(value) if value.value == seen => {
                self.meet("invalidate_if_current: declared stale before");
                false
            }
            _ => {
                self.meet("invalidate_if_current: not current");
                false
            }
        }
    }

    pub(crate) fn clear(&mut self) -> Option<Number> {
        self.clear_sections();
        if self.displace() {
            self.settle(Ended::Abandoned);
        }
        let taken = self.value.take().map(|value| value.value);
        self.retire(taken);
        self.let_go(taken);
        taken
    }

    /// Whether the value was taken away.
    pub(crate) fn clear_if_current(&mut self, seen: Number) -> bool {
        let is_current = self.value() == Some(seen);
        if is_current {
            self.meet("clear_if_current: cleared");
            if self.lease.is_some() {
                self.meet("clear_if_current: during a build");
            }
            self.clear();
        } else {
            self.meet("clear_if_current: not current");
        }
        is_current
    }

    /// Whether a build did run that can be kept from being published.
    pub(crate) fn revoke(&mut self) -> bool {
        let Some(lease) = self.lease else {
            self.meet("revoke: nothing");
            return false;
        };
        if self.has_section(lease) {
            self.meet("revoke: a section");
            return false;
        }
        self.displace();
        self.settle(Ended::Abandoned);
        self.meet("revoke: a build");
        true
    }

    pub(crate) fn reset(&mut self) {
        if self.lease.is_some() {
            self.meet("reset: during a build");
        }
        if self.failures.take().is_some() {
            self.meet("reset: a cell with failures");
        }
        self.clear();
        self.stats = Stats::default();
    }

    /// No build that has begun can be published any more. Whether one has lost the lease: not if it has the write lock.
    fn displace(&mut self) -> bool {
        for build in &mut self.builds {
            build.is_displaced = true;
        }
        self.lease.take_if(|lease| self.builds[*lease].section.is_none()).is_some()
    }

    fn make_visible(
        &mut self,
        value: Number,
        ttl: Option<Duration>,
        age_then: Duration,
        begun: u64,
        is_stale: bool,
    ) {
        self.stats.published += 1;
        self.generation += 1;
        let publication = Publication {
            value,
            generation: self.generation,
            at: self.now,
            age_then,
            ttl: ttl.unwrap_or(self.settings.ttl),
            declared_stale: is_stale.then_some(self.now),
            begun,
        };
        self.value = Some(publication);
        self.failures = None;
        if let Some(refresher) = &mut self.refresher {
            refresher.is_of_own_ttl = ttl.is_some();
            // Waiters are going to read it.
            refresher.is_unread = refresher.rests && !self.is_awaited;
        }
        if self.was_servable(&publication) {
            self.settle(Ended::Published(publication));
        }
    }

    /// The waiters have their answer; later callers wait for another.
    fn settle(&mut self, ended: Ended<Publication>) {
        if let Some(open) = self.attempts.last_mut() {
            *open = Some(ended);
        }
        self.attempts.push(None);
        self.is_awaited = false;
    }
}
