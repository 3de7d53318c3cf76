//! Calls that may build, and waits.

use std::time::Duration;

use dogpile::Freshness;

use super::builds::Failures;
use super::{
    BuildId, CallId, Demand, Done, END_OF_TIME, Ended, FOR_EVER, Fault, Limit, Model, Number, Patience,
    Publication, Refused, Seen, Step,
};

/// A place among the waiters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(super) attempt: usize,
    /// The number of the build that held the lease at that time.
    pub(super) begun: Option<u64>,
    /// When that may be superseded. `None`: never.
    pub(super) overdue: Option<Duration>,
}

/// A call that has begun.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) demand: Demand,
    pub(super) can_fail: bool,
    pub(super) builds_in_pause: bool,
    /// The number of the latest build or `set` when it began.
    pub(super) called: u64,
    /// The generation at that time: a later one has arrived while it looked or waited.
    pub(super) since: u64,
    /// The build that it has handed to a spawner.
    pub(super) own: Option<BuildId>,
    /// Of all its waits together, once it has waited.
    pub(super) limit: Option<Limit>,
    pub(super) place: Option<Place>,
    pub(super) step: Option<Step>,
}

/// Calls that may build.
impl Model {
    pub(crate) fn begin(&mut self, demand: Demand, can_fail: bool) -> CallId {
        self.calls.push(Call {
            demand,
            can_fail,
            // It can return no error.
            builds_in_pause: demand.no_cache || !(can_fail || demand.or_stale),
            called: self.begun,
            since: self.generation,
            own: None,
            limit: None,
            place: None,
            step: None,
        });
        self.calls.len() - 1
    }

    /// The latest call has returned.
    pub(crate) fn end_call(&mut self, call: CallId) {
        assert_eq!(call + 1, self.calls.len(), "another call has begun");
        self.calls.pop();
    }

    /// What the call does next, as far as that is known.
    pub(crate) fn step_of(&self, call: CallId) -> Option<Step> {
        self.calls[call].step
    }

    /// Looks, until it returns, builds or waits.
    pub(crate) fn step(&mut self, call: CallId) -> Step {
        let step = self.search(call);
        self.calls[call].step = Some(step);
        if !matches!(step, Step::Waits(_)) {
            self.calls[call].place = None;
        }
        step
    }

    fn search(&mut self, call: CallId) -> Step {
        loop {
            if let Some(step) = self.of_own_build(call) {
                return step;
            }
            match self.look(call) {
                Seen::Fresh(value) | Seen::Stale(value) => return Step::Returns(value),
                Seen::Elected(build) => {
                    if self.calls[call].place.is_some() {
                        self.meet("call: waited, and is elected");
                    }
                    return Step::Builds(build);
                }
                Seen::Failed(fault) => {
                    if let Some(step) = self.after_failure(call, fault) {
                        return step;
                    }
                }
                Seen::Pending => {
                    let place = self.take_place();
                    if self.calls[call].place.replace(place).is_some() {
                        self.meet("call: waits again");
                    }
                    let limit = self.limit(call);
                    match self.begin_wait(place, limit) {
                        None => {
                            self.meet("call: waits");
                            return Step::Waits(until(place, limit));
                        }
                        Some(ended) => {
                            if let Some(step) = self.after_wait(call, ended) {
                                return step;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Something may have happened to a call that waits.
    pub(crate) fn wake(&mut self, call: CallId) -> Step {
        let Some(Step::Waits(_)) = self.calls[call].step else { unreachable!("it waits") };
        let place = self.calls[call].place.expect("it waits");
        let limit = self.limit(call);
        let ended = self.check_wait(place, limit);
        let step = match ended {
            Some(ended) => self.after_wait(call, ended),
            None => match self.of_own_build(call) {
                None => Some(Step::Waits(until(place, limit))),
                step => step,
            },
        };
        let Some(step) = step else { return self.step(call) };
        self.calls[call].step = Some(step);
        if !matches!(step, Step::Waits(_)) {
            self.calls[call].place = None;
        }
        step
    }

    fn limit(&mut self, call: CallId) -> Limit {
        let patience = self.calls[call].demand.wait_at_most;
        let limit = self.deadline(patience);
        *self.calls[call].limit.get_or_insert(limit)
    }

    fn deadline(&self, patience: Duration) -> Limit {
        match patience {
            Duration::ZERO => Limit::Now,
            patience if patience >= FOR_EVER => Limit::Never,
            patience => Limit::Until(self.now.saturating_add(patience).min(END_OF_TIME)),
        }
    }

    /// What the end of a wait leads to; `None`: to another look.
    fn after_wait(&mut self, call: CallId, ended: Ended<Publication>) -> Option<Step> {
        let Call { demand, can_fail, called, .. } = self.calls[call];
        match ended {
            Ended::Published(publication) => {
                if self.was_acceptable(&publication, &demand, called) {
                    self.meet_arrival(&publication, &demand, called);
                    return Some(Step::Returns(publication.value));
                }
                self.meet("arrived: does not meet the conditions");
                None
            }
            Ended::Failed(fault) => {
                let begun = self.calls[call].place.and_then(|place| place.begun);
                if demand.no_cache && begun.is_some_and(|begun| begun <= called) {
                    // Its value would not have done either.
                    self.meet("call: waited, and ignores the failure of a build that began before it");
                    return None;
                }
                self.after_failure(call, fault)
            }
            Ended::Abandoned => None,
            Ended::Reentrant => {
                let step = self.refuse(call, Refused::Reentrant);
                self.meet(match step {
                    Step::Returns(_) => "reentry: a stale value",
                    _ if can_fail => "reentry: an error",
                    _ => "reentry: a panic",
                });
                Some(step)
            }
            Ended::NotYet => {
                let can_return = can_fail || (demand.or_stale && self.get().is_some());
                if !can_return {
                    // It can return no error.
                    self.meet("call: waits for ever after its time is over");
                    self.calls[call].limit = Some(Limit::Never);
                    return None;
                }
                let step = self.refuse(call, Refused::WaitTimeout);
                self.meet(match step {
                    Step::Returns(_) => "call: waited for too long, and gets a stale value",
                    _ => "call: waited for too long",
                });
                Some(step)
            }
        }
    }

    /// The build that the call waited for has failed, or a retry pause runs. `None`: it looks again, to build.
    fn after_failure(&mut self, call: CallId, fault: Fault) -> Option<Step> {
        let has_waited = self.calls[call].place.is_some();
        if let Some(value) = self.instead_of_error(call) {
            self.meet(if has_waited {
                "call: waited, and gets a value instead of the error"
            } else {
                "call: gets a value instead of the error of a retry pause"
            });
            return Some(Step::Returns(value));
        }
        if self.calls[call].can_fail {
            self.meet(if has_waited {
                "call: waited, and shares an error"
            } else {
                "call: gets the error of a retry pause"
            });
            return Some(Step::Refuses(Refused::Build(fault)));
        }
        if has_waited {
            self.meet("call: waited, and builds after an error");
        }
        self.calls[call].builds_in_pause = true;
        None
    }

    /// What the end of the build that the call has handed over leads to; `None`: it has not ended.
    fn of_own_build(&mut self, call: CallId) -> Option<Step> {
        let done = self.builds[self.calls[call].own?].done?;
        Some(match done {
            // It may have seen a newer one that will do.
            Done::Value(value) => Step::Returns(self.acceptable(call).unwrap_or_else(|| {
                self.meet(
                    "spawned: gets the value of its own build, which does not meet the conditions any more",
                );
                value
            })),
            Done::Failed(fault) => {
                self.meet("spawned: its own build failed");
                let instead = self.instead_of_error(call);
                instead.map_or(Step::Refuses(Refused::Build(fault)), Step::Returns)
            }
            Done::Panicked | Done::Abandoned => {
                self.read();
                if let Some(value) = self.acceptable(call) {
                    return Some(Step::Returns(value));
                }
                let step = self.refuse(call, Refused::Abandoned);
                self.meet(match step {
                    Step::Returns(_) => "spawned: was abandoned, and gets a stale value",
                    _ if self.calls[call].can_fail => "spawned: was abandoned, an error",
                    _ => "spawned: was abandoned, a panic",
                });
                step
            }
        })
    }

    fn refuse(&mut self, call: CallId, refused: Refused) -> Step {
        if !self.calls[call].demand.or_stale {
            return Step::Refuses(refused);
        }
        self.read();
        self.get().map_or(Step::Refuses(refused), Step::Returns)
    }

    /// What the caller of a build that failed gets instead of the error.
    pub(crate) fn instead_of_error(&mut self, call: CallId) -> Option<Number> {
        let Call { demand, called, .. } = self.calls[call];
        let value = self.value?;
        let lateness = value.lateness(self.now);
        let is_met = value.meets(&demand, called, self.now);
        let is_usual = is_met && lateness <= self.error_window();
        let is_or_stale = demand.or_stale && lateness <= self.pause_window();
        if is_usual || is_or_stale {
            if !is_usual {
                self.meet("build: an error, and a value that only or_stale allows");
            }
            if !lateness.is_zero() {
                self.stats.served_stale_on_error += 1;
                self.meet("build: an error, and a stale value instead");
            } else if self.is_fresh() {
                self.meet("build: an error, and a fresh value instead");
            }
            return Some(value.value);
        }
        self.meet(if is_met {
            "build: an error, and a stale value that is too old"
        } else {
            "build: an error, and a stale value that does not meet the conditions"
        });
        None
    }

    /// Whether a value that was published while the call looked or waited met its conditions then.
    fn was_acceptable(&self, value: &Publication, demand: &Demand, called: u64) -> bool {
        self.was_servable(value) && value.when_published().meets(demand, called, value.at)
    }

    /// Whether a value was published for readers: only one that was old already may have expired by then.
    pub(super) fn was_servable(&self, value: &Publication) -> bool {
        value.age_then.is_zero() || value.when_published().lateness(value.at) <= self.stale_window()
    }

    /// What may be served now and meets the conditions of the call, or has been published since the call began and met
    /// them then.
    pub(super) fn acceptable(&self, call: CallId) -> Option<Number> {
        let Call { demand, called, .. } = self.calls[call];
        let value = self.value?;
        let is_acceptable = self.get().is_some() && value.meets(&demand, called, self.now);
        if is_acceptable { Some(value.value) } else { self.arrived(call) }
    }

    /// What has been published since the call began, and met its conditions then.
    pub(super) fn arrived(&self, call: CallId) -> Option<Number> {
        let Call { demand, called, since, .. } = self.calls[call];
        let value = self.value.filter(|value| value.generation > since)?;
        self.was_acceptable(&value, &demand, called).then_some(value.value)
    }

    /// The table of the contract, under the conditions of the call.
    pub(super) fn look(&mut self, call: CallId) -> Seen {
        self.read();
        let Call { demand, builds_in_pause, called, own, .. } = self.calls[call];
        let arrived = self.arrived(call);
        if let (Some(number), Some(value)) = (self.acceptable(call), self.value) {
            if self.is_fresh() {
                self.meet("lookup: fresh");
                return Seen::Fresh(number);
            }
            if arrived.is_some() {
                self.meet_arrival(&value, &demand, called);
                return Seen::Stale(number);
            }
            if self.lease_is_held() {
                self.meet("lookup: stale, a build runs");
                return Seen::Stale(number);
            }
            if self.pause_runs() {
                self.meet("lookup: stale, a retry pause runs");
                if value.lateness(self.now) > self.stale_window() {
                    self.meet("lookup: stale for an error only");
                }
                return Seen::Stale(number);
            }
            if self.refresher.is_some() {
                self.meet("lookup: stale, a refresher is there");
                return Seen::Stale(number);
            }
            if own.is_some() {
                return Seen::Stale(number);
            }
        } else if self.lease_is_held() {
            self.meet_unmet(call);
            self.meet("lookup: pending");
            return Seen::Pending;
        } else if self.pause_runs()
            && !builds_in_pause
            && let Some(Failures { latest, is_panic: false, .. }) = self.failures
        {
            self.meet_unmet(call);
            self.meet("lookup: failed");
            return Seen::Failed(latest);
        } else if own.is_some() {
            self.meet("spawned: waits for its own build without a lease");
            return Seen::Pending;
        }
        self.meet_unmet(call);
        self.meet(match self.freshness() {
            Freshness::Empty => "lookup: elected without a value",
            Freshness::Expired => "lookup: elected with an expired value",
            Freshness::Stale => "lookup: elected with a stale value",
            Freshness::Fresh => "lookup: elected with a fresh value",
        });
        if self.pause_runs() {
            self.meet("lookup: elected during a retry pause");
        }
        Seen::Elected(self.elect(demand, called))
    }

    /// `lookup` does not wait, and returns no value in place of another outcome.
    pub(crate) fn lookup(&mut self, demand: Demand) -> Seen {
        let call = self.begin(demand, true);
        let seen = self.look(call);
        self.end_call(call);
        seen
    }

    fn meet_arrival(&mut self, value: &Publication, demand: &Demand, called: u64) {
        if self.get().is_none() {
            self.meet("arrived: handed over though it has expired");
        } else if !value.meets(demand, called, self.now) {
            self.meet("arrived: handed over though it meets the conditions no more");
        }
    }

    /// Which conditions rule out a value that might be served.
    fn meet_unmet(&mut self, call: CallId) {
        let Call { demand, called, .. } = self.calls[call];
        let Some(value) = self.value.filter(|_| self.get().is_some()) else { return };
        if self.is_fresh() {
            self.meet("condition: not met by a fresh value");
        }
        if value.lateness(self.now) > demand.max_stale {
            self.meet("condition: too stale");
        }
        if value.age(self.now) > demand.max_age {
            self.meet("condition: too old");
        }
        if value.generation <= demand.newer_than {
            self.meet("condition: not newer");
        }
        if demand.no_cache && value.begun <= called {
            self.meet("condition: begun before the call");
        }
    }

    /// The call has handed its build to a spawner.
    pub(crate) fn hand_over(&mut self, call: CallId) -> BuildId {
        let Some(Step::Builds(build)) = self.calls[call].step else {
            panic!("a spawner is called, but the call is not elected")
        };
        self.calls[call].own = Some(build);
        self.builds[build].is_job = true;
        build
    }

    /// The build that the call has handed to a spawner.
    pub(crate) fn own_build(&self, call: CallId) -> Option<BuildId> {
        self.calls[call].own
    }

    /// The spawner has returned.
    pub(crate) fn after_spawner(&mut self, call: CallId) -> Step {
        self.read();
        if let Some(value) = self.acceptable(call) {
            if self.builds[self.calls[call].own.expect("it has handed its build over")].done.is_none() {
                self.meet("spawned: gets something acceptable at once");
            }
            let step = Step::Returns(value);
            self.calls[call].step = Some(step);
            return step;
        }
        self.step(call)
    }
}

/// Up to when a wait lasts if nothing happens.
fn until(place: Place, limit: Limit) -> Option<Duration> {
    match (limit, place.overdue) {
        (Limit::Until(end), Some(overdue)) => Some(end.min(overdue)),
        (Limit::Until(end), None) => Some(end),
        (_, overdue) => overdue,
    }
}

/// Waits.
impl Model {
    /// A caller that saw `Pending` takes a place among the waiters.
    pub(crate) fn take_place(&mut self) -> Place {
        self.is_awaited = true;
        let overdue = self.lease.and_then(|build| self.overdue(build)).filter(|_| self.lease_is_held());
        let begun = self.lease.map(|build| self.builds[build].begun);
        Place { attempt: self.attempts.len() - 1, begun, overdue }
    }

    /// How what a place waits for has ended. A value: the newest there is by now, which is read then; if that was taken away
    /// again, or was published for no reader, none.
    fn newest(&mut self, place: Place) -> Option<Ended<Publication>> {
        let ended = self.attempts[place.attempt]?;
        let Ended::Published(publication) = ended else { return Some(ended) };
        if publication.generation == self.generation {
            return Some(ended);
        }
        let Some(newest) = self.value.filter(|value| self.was_servable(value)) else {
            return Some(Ended::Abandoned);
        };
        self.read();
        Some(Ended::Published(newest))
    }

    /// A wait begins; `None`: it goes on.
    fn begin_wait(&mut self, place: Place, limit: Limit) -> Option<Ended<Publication>> {
        if let Some(ended) = self.newest(place) {
            return Some(ended);
        }
        if self.is_inside_a_build() {
            return Some(Ended::Reentrant);
        }
        if limit != Limit::Now {
            self.stats.waits += 1;
        }
        self.check_wait(place, limit)
    }

    /// Whether a wait has ended; `None`: it goes on.
    fn check_wait(&mut self, place: Place, limit: Limit) -> Option<Ended<Publication>> {
        if let Some(ended) = self.newest(place) {
            return Some(ended);
        }
        let is_overdue = place.overdue.is_some_and(|overdue| overdue <= self.now);
        let is_over = match (limit, place.overdue) {
            (Limit::Now, _) => !is_overdue,
            (Limit::Until(end), Some(overdue)) => end <= self.now && end <= overdue,
            (Limit::Until(end), None) => end <= self.now,
            (Limit::Never, _) => false,
        };
        if is_over {
            self.stats.wait_timeouts += 1;
            return Some(Ended::NotYet);
        }
        is_overdue.then(|| {
            self.meet("wait: abandoned: an overdue lease");
            Ended::Abandoned
        })
    }

    /// Waits at a place that was kept. Returns when it is over if nothing happens, and how it has ended, if it has.
    pub(crate) fn wait(&mut self, place: Place, patience: Patience) -> (Limit, Option<Ended>) {
        let limit = match patience {
            Patience::For(time) => self.deadline(time),
            Patience::Endless => Limit::Never,
        };
        let ended = self.begin_wait(place, limit);
        (limit, self.note_wait(ended))
    }

    /// Whether that wait has ended by now.
    pub(crate) fn wake_place(&mut self, place: Place, limit: Limit) -> Option<Ended> {
        let ended = self.check_wait(place, limit);
        self.note_wait(ended)
    }

    /// Up to when that wait lasts if nothing happens; `None`: for ever.
    pub(crate) fn wait_end(place: Place, limit: Limit) -> Option<Duration> {
        until(place, limit)
    }

    fn note_wait(&mut self, ended: Option<Ended<Publication>>) -> Option<Ended> {
        let (met, ended) = match ended? {
            Ended::Published(publication) => ("wait: published", Ended::Published(publication.value)),
            Ended::Failed(fault) => ("wait: failed", Ended::Failed(fault)),
            Ended::Abandoned => ("wait: abandoned", Ended::Abandoned),
            Ended::Reentrant => ("wait: reentrant", Ended::Reentrant),
            Ended::NotYet => ("wait: not yet", Ended::NotYet),
        };
        self.meet(met);
        Some(ended)
    }
}
