//! What the contract says a cell does, for one thread, as plainly as it can be said.
//!
//! Values and errors are numbers. Time is a [`Duration`] since the clock began, an age is a difference. Nothing
//! is cached, precomputed or encoded: every question is answered from what has happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dogpile::{Freshness, Stats};

pub(crate) type Number = usize;

const NANOSECOND: Duration = Duration::from_nanos(1);

/// When time stops. Cells take the last tick of a clock for the one before: they need it for "never".
pub(crate) const END_OF_TIME: Duration = Duration::from_nanos(u64::MAX - 1);

/// A value that is published for less than this is one that its source does not want to be kept.
pub(crate) const SHORTEST_LIFE: Duration = Duration::from_millis(1);

/// A refresher replaces such a value after this time.
pub(crate) const UNKEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a `Policy` says, and how coarse the clock is. `Duration::MAX`: for ever.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) ttl: Duration,
    pub(crate) stale_while_refresh: Option<Duration>,
    pub(crate) stale_if_error: Option<Duration>,
    /// The first pause and the longest.
    pub(crate) retry_backoff: Option<(Duration, Duration)>,
    pub(crate) lease_timeout: Option<Duration>,
    /// The coarse reading of the clock only moves every so many nanoseconds.
    pub(crate) coarse_period: u64,
}

/// An error of a build. There are two types of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) number: Number,
    /// `None`: a text that a refresher has made, which has no number.
    pub(crate) kind: Option<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Network,
    Parse,
}

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// `lookup`, `try_get_or_refresh`: what may be served, or the latest error while a retry pause runs.
    ValueOrError,
    /// `get_or_refresh`: what may be served.
    Value,
    /// `get_fresh_or_refresh`.
    Fresh,
    /// `refresh`.
    New,
}

/// What a look at the cell finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Fresh(Number),
    Stale(Number),
    Elected(BuildId),
    Pending,
    Failed(Fault),
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Published(Number),
    Failed(Fault),
    Abandoned,
    Reentrant,
    NotYet,
}

/// How long a wait may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// `wait_timeout`
    For(Duration),
    /// `wait`
    Endless,
}

/// What can be seen of a cell from outside without changing it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) get: Option<Number>,
    pub(crate) unless_due: Option<Number>,
    pub(crate) load: Option<Number>,
    pub(crate) freshness: Freshness,
    pub(crate) snapshot: Option<Shot>,
    pub(crate) generation: u64,
    pub(crate) is_refreshing: bool,
    pub(crate) stats: Stats,
}

/// What a `Snapshot` shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shot {
    pub(crate) value: Number,
    pub(crate) generation: u64,
    pub(crate) age: Duration,
    pub(crate) freshness: Freshness,
}

pub(crate) type BuildId = usize;

/// A place among those who wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    attempt: usize,
    /// The build that held the lease when the place was taken.
    build: BuildId,
}

/// The value in the cell.
#[derive(Clone, Copy, Debug)]
struct Publication {
    value: Number,
    generation: u64,
    at: Duration,
    ttl: Duration,
    /// When it was declared stale.
    declared_stale: Option<Duration>,
}

/// A build, from its election on.
#[derive(Debug)]
struct Build {
    want: Want,
    began: Duration,
    previous: Option<Number>,
    /// The cell's generation when it began.
    generation: u64,
    /// Whether `invalidate` was called since.
    invalidated: bool,
    /// Whether `set` or `clear` was called since.
    displaced: bool,
    ended: bool,
}

/// The failures since the latest publication.
#[derive(Debug)]
struct Failures {
    count: u32,
    latest_at: Duration,
    /// `None`: it was a panic.
    latest: Option<Fault>,
}

/// Somebody who looks after the cell.
#[derive(Debug)]
struct Refresher {
    ahead: Duration,
    /// Its running build.
    build: Option<BuildId>,
    trouble: Trouble,
    latest_failure_at: Duration,
}

/// What a refresher tells of its failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Since its last success.
    pub(crate) failures: u32,
    pub(crate) last_error: Option<Fault>,
}

/// What a refresher does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    Building(BuildId),
    /// Until then; `None`: until something happens.
    Sleeping(Option<Duration>),
}

#[derive(Debug)]
pub(crate) struct Model {
    settings: Settings,
    now: Duration,
    value: Option<Publication>,
    stats: Stats,
    builds: Vec<Build>,
    /// Who holds the lease.
    lease: Option<BuildId>,
    failures: Option<Failures>,
    /// What became of each thing that could be waited for, and the generation at that time. The last is still open.
    attempts: Vec<Option<(Ended, u64)>>,
    /// How many builds, as closures, are on the stack of the one thread.
    closures: usize,
    refresher: Option<Refresher>,
    /// What has come up, and how often.
    pub(crate) met: BTreeMap<&'static str, u64>,
}

/// What must come up in a run that is worth anything.
pub(crate) const WORTH_MEETING: [&str; 61] = [
    "abandoned: an overdue lease",
    "a read that asks no clock",
    "build: an error, and a stale value instead",
    "build: an error, and a stale value that is too old",
    "end: failed",
    "end: panicked",
    "end: abandoned",
    "end: superseded",
    "fence: published as stale",
    "fence: cleared",
    "fence: set",
    "fence: superseded, and another value served",
    "fence: superseded, and its own value served",
    "fence: superseded, and its own value served as the newer one",
    "lookup: fresh",
    "lookup: stale, a build runs",
    "lookup: stale, a retry pause runs",
    "lookup: stale for an error only",
    "lookup: elected without a value",
    "lookup: elected with an expired value",
    "lookup: elected with a stale value",
    "lookup: elected with a fresh value",
    "lookup: elected during a retry pause",
    "lookup: pending",
    "lookup: failed",
    "lookup: stale, a refresher is there",
    "publication: of the one lease",
    "publication: of an overdue lease",
    "reentry: a panic",
    "reentry: an error",
    "refresher: attached, on a thread",
    "refresher: attached to a stale value",
    "refresher: refused",
    "refresher: begins, ahead of the end",
    "refresher: begins, at half of a life",
    "refresher: begins, of what was not to be kept",
    "refresher: begins, without a value",
    "refresher: begins, over what was declared stale",
    "refresher: begins, after failures",
    "refresher: begins, instead of an overdue build",
    "refresher: sleeps, somebody else builds",
    "refresher: sleeps, a retry pause runs",
    "refresher: sleeps, a pause of its own runs",
    "refresher: sleeps, its own longest pause runs",
    "refresher: sleeps, for ever",
    "refresher: found something new",
    "refresher: found something with a ttl",
    "refresher: found nothing to modify",
    "refresher: found nothing to modify, and nothing there",
    "refresher: found an error",
    "refresher: found a panic",
    "refresher: found something, and was superseded",
    "refresher: recovered",
    "refresher: dropped, asleep",
    "refresher: dropped from inside its build",
    "refresher: outlives the cell",
    "wait: published",
    "wait: failed",
    "wait: abandoned",
    "wait: reentrant",
    "wait: not yet",
];

/// With the feature `async`.
#[cfg(feature = "async")]
pub(crate) const WORTH_MEETING_OF_TASKS: [&str; 2] =
    ["refresher: attached, as a task", "refresher: dropped, and its build"];
#[cfg(not(feature = "async"))]
pub(crate) const WORTH_MEETING_OF_TASKS: [&str; 0] = [];

/// Questions.
impl Model {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: Duration::ZERO,
            value: None,
            stats: Stats::default(),
            builds: Vec::new(),
            lease: None,
            failures: None,
            attempts: vec![None],
            closures: 0,
            refresher: None,
            met: BTreeMap::new(),
        }
    }

    pub(crate) fn view(&self) -> View {
        View {
            get: self.get(),
            unless_due: self.get_unless_due(),
            load: self.get(),
            freshness: self.freshness(),
            snapshot: self.value.map(|value| Shot {
                value: value.value,
                generation: value.generation,
                age: self.now - value.at,
                freshness: self.freshness(),
            }),
            generation: self.stats.published,
            is_refreshing: self.lease.is_some(),
            stats: self.stats,
        }
    }

    /// What may be served now.
    pub(crate) fn get(&self) -> Option<Number> {
        match self.freshness() {
            Freshness::Fresh | Freshness::Stale => self.value.map(|value| value.value),
            Freshness::Empty | Freshness::Expired => None,
        }
    }

    /// The same, unless something is to be done about it, and nobody does.
    pub(crate) fn get_unless_due(&self) -> Option<Number> {
        let is_dealt_with = self.lease_is_held() || self.pause_runs() || self.refresher.is_some();
        self.get().filter(|_| is_dealt_with || self.freshness() == Freshness::Fresh)
    }

    /// The value, whether it may be served or not.
    pub(crate) fn value(&self) -> Option<Number> {
        self.value.map(|value| value.value)
    }

    pub(crate) fn previous(&self, build: BuildId) -> Option<Number> {
        self.builds[build].previous
    }

    pub(crate) fn is_inside_a_build(&self) -> bool {
        self.closures > 0
    }

    /// The values that builds keep because they replace them. A build whose lease leaked keeps its for ever.
    pub(crate) fn kept_by_builds(&self) -> BTreeSet<Number> {
        self.builds.iter().filter(|build| !build.ended).filter_map(|build| build.previous).collect()
    }

    /// The value that a place among those who wait keeps.
    pub(crate) fn kept_by(&self, place: Place) -> Option<Number> {
        match self.attempts[place.attempt] {
            Some((Ended::Published(value), _)) => Some(value),
            _ => None,
        }
    }

    fn freshness(&self) -> Freshness {
        let Some(value) = &self.value else { return Freshness::Empty };
        // While a retry pause runs a value may be served for as long as either window allows.
        let window = if self.pause_runs() {
            self.stale_window().max(self.error_window())
        } else {
            self.stale_window()
        };
        match self.lateness(value) {
            Duration::ZERO => Freshness::Fresh,
            lateness if lateness <= window => Freshness::Stale,
            _ => Freshness::Expired,
        }
    }

    /// How far past its time a value is; zero: it is fresh.
    fn lateness(&self, value: &Publication) -> Duration {
        let by_age = (self.now - value.at).saturating_sub(value.ttl);
        // The moment at which it is declared stale is the first at which it is not fresh, as the nanosecond after
        // the ttl is otherwise. So with a window of zero it may not be served at that moment either.
        let by_word = value.declared_stale.map_or(Duration::ZERO, |at| self.now - at + NANOSECOND);
        by_age.max(by_word)
    }

    fn stale_window(&self) -> Duration {
        self.settings.stale_while_refresh.unwrap_or(Duration::MAX)
    }

    fn error_window(&self) -> Duration {
        self.settings.stale_if_error.unwrap_or(Duration::ZERO)
    }

    fn pause_runs(&self) -> bool {
        self.failures
            .as_ref()
            .is_some_and(|failures| self.now - failures.latest_at < self.pause(failures.count))
    }

    /// The pause after so many failures in a row.
    fn pause(&self, failures: u32) -> Duration {
        let Some((first, max)) = self.settings.retry_backoff else { return Duration::ZERO };
        let mut pause = first;
        for _ in 1..failures {
            pause = pause.saturating_mul(2).min(max);
        }
        pause
    }

    /// Whether a build is so old that somebody else may be elected in its place.
    fn is_overdue(&self, build: BuildId) -> bool {
        let timeout = self.settings.lease_timeout.unwrap_or(Duration::MAX);
        self.now - self.builds[build].began > timeout
    }

    /// Somebody builds, and is not overdue.
    fn lease_is_held(&self) -> bool {
        self.lease.is_some_and(|build| !self.is_overdue(build))
    }

    /// What the caller of a build that failed gets instead of the error.
    pub(crate) fn instead_of_error(&mut self) -> Option<Number> {
        let value = self.value?;
        let lateness = self.lateness(&value);
        if lateness > self.error_window() {
            self.meet("build: an error, and a stale value that is too old");
            return None;
        }
        if !lateness.is_zero() {
            self.meet("build: an error, and a stale value instead");
        }
        Some(value.value)
    }

    /// The moments, yet to come, at which something changes by itself.
    pub(crate) fn moments(&self) -> Vec<Duration> {
        let mut moments = BTreeSet::new();
        if let Some(value) = &self.value {
            let end = value.at.saturating_add(value.ttl);
            let late_since = value.declared_stale.map_or(end, |at| end.min(at));
            moments.insert(end);
            for window in
                [self.settings.stale_while_refresh, self.settings.stale_if_error].into_iter().flatten()
            {
                moments.insert(late_since.saturating_add(window));
            }
        }
        if let Some(failures) = &self.failures {
            moments.insert(failures.latest_at.saturating_add(self.pause(failures.count)));
        }
        if let (Some(build), Some(timeout)) = (self.lease, self.settings.lease_timeout) {
            moments.insert(self.builds[build].began.saturating_add(timeout));
        }
        moments.extend(self.next_attempt());
        moments.into_iter().filter(|moment| *moment >= self.now).collect()
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    pub(crate) fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_insert(0) += 1;
    }
}

/// What happens.
impl Model {
    pub(crate) fn advance_to(&mut self, now: Duration) {
        self.now = now;
    }

    /// The table of the contract. A `Pending` changes nothing.
    pub(crate) fn lookup(&mut self, want: Want) -> Seen {
        let freshness = self.freshness();
        let may_be_served = match want {
            Want::ValueOrError | Want::Value => matches!(freshness, Freshness::Fresh | Freshness::Stale),
            Want::Fresh => freshness == Freshness::Fresh,
            Want::New => false,
        };
        if may_be_served && let Some(value) = self.value {
            if freshness == Freshness::Fresh {
                self.meet("lookup: fresh");
                return Seen::Fresh(value.value);
            }
            if self.lease_is_held() {
                self.meet("lookup: stale, a build runs");
                return Seen::Stale(value.value);
            }
            if self.pause_runs() {
                self.meet("lookup: stale, a retry pause runs");
                if self.lateness(&value) > self.stale_window() {
                    self.meet("lookup: stale for an error only");
                }
                return Seen::Stale(value.value);
            }
            if self.refresher.is_some() {
                self.meet("lookup: stale, a refresher is there");
                return Seen::Stale(value.value);
            }
        } else if self.lease_is_held() {
            self.meet("lookup: pending");
            return Seen::Pending;
        } else if self.pause_runs()
            && want == Want::ValueOrError
            && let Some(fault) = self.failures.as_ref().and_then(|failures| failures.latest)
        {
            self.meet("lookup: failed");
            return Seen::Failed(fault);
        }
        self.meet(match freshness {
            Freshness::Empty => "lookup: elected without a value",
            Freshness::Expired => "lookup: elected with an expired value",
            Freshness::Stale => "lookup: elected with a stale value",
            Freshness::Fresh => "lookup: elected with a fresh value",
        });
        if self.pause_runs() {
            self.meet("lookup: elected during a retry pause");
        }
        Seen::Elected(self.elect(want))
    }

    fn elect(&mut self, want: Want) -> BuildId {
        self.stats.builds += 1;
        if self.lease.is_some() {
            self.stats.superseded += 1;
        }
        self.builds.push(Build {
            want,
            began: self.now,
            previous: self.value(),
            generation: self.stats.published,
            invalidated: false,
            displaced: false,
            ended: false,
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

    /// A build ends with a value. What its caller gets.
    pub(crate) fn publish(&mut self, build: BuildId, value: Number, ttl: Option<Duration>) -> Number {
        let was_overdue = self.is_overdue(build);
        let had_the_lease = self.end(build);
        let Build { began, invalidated, displaced, .. } = self.builds[build];
        self.stats.last_build = Some(self.now - began);
        if !had_the_lease {
            let served = self.instead_of_a_late_result(build);
            self.meet(match (served, self.get()) {
                (Some(_), _) => "fence: superseded, and another value served",
                (None, None) => "fence: superseded, and its own value served",
                (None, Some(_)) => "fence: superseded, and its own value served as the newer one",
            });
            return served.unwrap_or(value);
        }
        if displaced {
            self.stats.fenced += 1;
            self.settle(Ended::Abandoned);
            self.meet(if self.value.is_some() { "fence: set" } else { "fence: cleared" });
            return self.value().unwrap_or(value);
        }
        self.meet(if was_overdue {
            "publication: of an overdue lease"
        } else {
            "publication: of the one lease"
        });
        self.make_visible(value, ttl.unwrap_or(self.settings.ttl));
        if invalidated {
            self.meet("fence: published as stale");
            self.stats.fenced += 1;
            self.declare_stale();
        }
        value
    }

    /// What the caller of a build that was superseded gets instead of its own value: what it asked for, if the
    /// cell has that.
    fn instead_of_a_late_result(&self, build: BuildId) -> Option<Number> {
        let Build { want, generation, .. } = self.builds[build];
        let value = self.value?;
        let is_what_it_asked_for = match want {
            Want::ValueOrError | Want::Value => self.get().is_some(),
            Want::Fresh => self.lateness(&value).is_zero(),
            // A value that is newer than the call, of whatever age: it is handed over, as to one who has waited.
            Want::New => value.generation > generation,
        };
        is_what_it_asked_for.then_some(value.value)
    }

    /// "Not modified." `None`: there is nothing to renew, and the build goes on.
    pub(crate) fn renew(&mut self, build: BuildId, ttl: Option<Duration>) -> Option<Number> {
        let previous = self.previous(build)?;
        Some(self.publish(build, previous, ttl))
    }

    pub(crate) fn fail(&mut self, build: BuildId, fault: Fault) {
        self.stats.failed += 1;
        self.stats.last_build = Some(self.now - self.builds[build].began);
        if self.end(build) {
            self.meet("end: failed");
            self.count_failure(build, Some(fault));
            self.settle(Ended::Failed(fault));
        } else {
            self.meet("end: superseded");
        }
    }

    pub(crate) fn panic(&mut self, build: BuildId) {
        self.stats.panicked += 1;
        if self.end(build) {
            self.meet("end: panicked");
            self.count_failure(build, None);
            self.settle(Ended::Abandoned);
        } else {
            self.meet("end: superseded");
        }
    }

    pub(crate) fn abandon(&mut self, build: BuildId) {
        self.stats.abandoned += 1;
        if self.end(build) {
            self.meet("end: abandoned");
            self.settle(Ended::Abandoned);
        } else {
            self.meet("end: superseded");
        }
    }

    /// The build lets go of the lease. Whether it still had it.
    fn end(&mut self, build: BuildId) -> bool {
        self.builds[build].ended = true;
        if self.lease == Some(build) {
            self.lease = None;
            return true;
        }
        false
    }

    /// A pause begins; but not for a value that was set meanwhile: it is not the one that could not be replaced.
    fn count_failure(&mut self, build: BuildId, latest: Option<Fault>) {
        if self.builds[build].generation < self.stats.published {
            return;
        }
        let count = self.failures.as_ref().map_or(0, |failures| failures.count) + 1;
        self.failures = Some(Failures { count, latest_at: self.now, latest });
    }

    pub(crate) fn set(&mut self, value: Number) {
        for build in &mut self.builds {
            build.displaced = true;
        }
        self.make_visible(value, self.settings.ttl);
    }

    pub(crate) fn invalidate(&mut self) {
        for build in &mut self.builds {
            build.invalidated = true;
        }
        self.declare_stale();
    }

    pub(crate) fn clear(&mut self) -> Option<Number> {
        for build in &mut self.builds {
            build.displaced = true;
        }
        self.value.take().map(|value| value.value)
    }

    fn make_visible(&mut self, value: Number, ttl: Duration) {
        self.stats.published += 1;
        let generation = self.stats.published;
        self.value = Some(Publication { value, generation, at: self.now, ttl, declared_stale: None });
        self.failures = None;
        self.settle(Ended::Published(value));
    }

    /// From now on, unless it was before.
    fn declare_stale(&mut self) {
        if let Some(value) = &mut self.value {
            value.declared_stale.get_or_insert(self.now);
        }
    }

    /// Those who wait have their answer; who comes later waits for another.
    fn settle(&mut self, ended: Ended) {
        if let Some(open) = self.attempts.last_mut() {
            *open = Some((ended, self.stats.published));
        }
        self.attempts.push(None);
    }

    /// A wait that was not allowed to begin.
    pub(crate) fn give_up_waiting(&mut self) {
        self.stats.wait_timeouts += 1;
    }

    /// Somebody who saw `Pending` takes a place among those who wait.
    pub(crate) fn take_place(&self) -> Place {
        Place { attempt: self.attempts.len() - 1, build: self.lease.expect("somebody builds") }
    }

    /// How what a place waits for has ended. A value: the newest there is by now; if that was taken away again, none.
    fn newest(&self, place: Place) -> Option<Ended> {
        let (ended, generation) = self.attempts[place.attempt]?;
        let is_outdated = matches!(ended, Ended::Published(_)) && generation < self.stats.published;
        if is_outdated { Some(self.value().map_or(Ended::Abandoned, Ended::Published)) } else { Some(ended) }
    }

    /// Waits. `None`: it would be for ever, since there is no other thread that could end it.
    pub(crate) fn wait(&mut self, place: Place, patience: Patience) -> Option<Ended> {
        let is_a_look = patience == Patience::For(Duration::ZERO);
        let is_endless = matches!(patience, Patience::Endless | Patience::For(Duration::MAX));
        let ended = if let Some(ended) = self.newest(place) {
            ended
        } else if self.is_inside_a_build() {
            Ended::Reentrant
        } else if self.is_overdue(place.build) {
            self.meet("abandoned: an overdue lease");
            if !is_a_look {
                self.stats.waits += 1; // It begins, though it ends at once.
            }
            Ended::Abandoned
        } else if is_a_look {
            self.stats.wait_timeouts += 1;
            Ended::NotYet
        } else if self.now == END_OF_TIME && !is_endless {
            self.stats.waits += 1;
            self.stats.wait_timeouts += 1;
            Ended::NotYet
        } else {
            return None;
        };
        self.meet(match ended {
            Ended::Published(_) => "wait: published",
            Ended::Failed(_) => "wait: failed",
            Ended::Abandoned => "wait: abandoned",
            Ended::Reentrant => "wait: reentrant",
            Ended::NotYet => "wait: not yet",
        });
        Some(ended)
    }
}

/// The refresher.
impl Model {
    /// Whether it is accepted.
    pub(crate) fn attach(&mut self, ahead: Duration, is_task: bool) -> bool {
        let is_for_ever = self.settings.ttl == Duration::MAX;
        if !is_for_ever && ahead >= self.settings.ttl {
            self.meet("refresher: refused");
            return false;
        }
        self.meet(if is_task {
            "refresher: attached, as a task"
        } else {
            "refresher: attached, on a thread"
        });
        if self.freshness() == Freshness::Stale {
            self.meet("refresher: attached to a stale value");
        }
        let trouble = Trouble::default();
        self.refresher = Some(Refresher { ahead, build: None, trouble, latest_failure_at: Duration::ZERO });
        true
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.settings.ttl
    }

    /// When the refresher, which sleeps, will build if nothing else happens.
    pub(crate) fn next_attempt(&self) -> Option<Duration> {
        match self.activity() {
            Some(Activity::Sleeping(until)) => until,
            _ => None,
        }
    }

    pub(crate) fn is_looked_after(&self) -> bool {
        self.refresher.is_some()
    }

    pub(crate) fn trouble(&self) -> Trouble {
        self.refresher.as_ref().map(|refresher| refresher.trouble).unwrap_or_default()
    }

    /// The running build of the refresher.
    pub(crate) fn refreshers_build(&self) -> Option<BuildId> {
        self.refresher.as_ref()?.build
    }

    /// Lets the refresher begin what it has to. What it does then; `None`: there is none.
    pub(crate) fn let_it_act(&mut self) -> Option<Activity> {
        if self.refresher.is_some() && self.activity().is_none() {
            let begun = self.elect(Want::New);
            self.refresher.as_mut().expect("just looked at").build = Some(begun);
            let trouble = self.trouble();
            if trouble.failures > 0 {
                self.meet("refresher: begins, after failures");
            }
            if self.builds[..begun].iter().any(|build| !build.ended) {
                self.meet("refresher: begins, instead of an overdue build");
            }
            let (met, _) = self.due();
            self.meet(met);
        }
        for (_, met) in self.obstacles() {
            self.meet(met);
        }
        self.activity()
    }

    /// `None`: there is none, or it has to begin a build now.
    fn activity(&self) -> Option<Activity> {
        if let Some(build) = self.refresher.as_ref()?.build {
            return Some(Activity::Building(build));
        }
        let (until, _) = self.obstacles().into_iter().max()?;
        Some(Activity::Sleeping((until <= END_OF_TIME).then_some(until)))
    }

    /// What keeps a refresher that does not build from building, and until when.
    fn obstacles(&self) -> Vec<(Duration, &'static str)> {
        let mut obstacles = Vec::new();
        let Some(refresher) = self.refresher.as_ref().filter(|refresher| refresher.build.is_none()) else {
            return obstacles;
        };
        if let Some(build) = self.lease {
            let timeout = self.settings.lease_timeout.unwrap_or(Duration::MAX);
            let overdue = self.builds[build].began.saturating_add(timeout).saturating_add(NANOSECOND);
            obstacles.push((overdue, "refresher: sleeps, somebody else builds"));
        }
        if let Some(failures) = &self.failures {
            let end = failures.latest_at.saturating_add(self.pause(failures.count));
            obstacles.push((end, "refresher: sleeps, a retry pause runs"));
        }
        if let (_, Some(due)) = self.due() {
            let met = if due > END_OF_TIME { "refresher: sleeps, for ever" } else { "refresher: sleeps" };
            obstacles.push((due, met));
        }
        // Nobody wants a source that is down to be asked in a loop: 100 ms, 200 ms, and so on up to 10 s.
        if self.settings.retry_backoff.is_none() && refresher.trouble.failures > 0 {
            let doubled = 100 << (refresher.trouble.failures - 1).min(20);
            let met = match doubled {
                0..10_000 => "refresher: sleeps, a pause of its own runs",
                _ => "refresher: sleeps, its own longest pause runs",
            };
            let pause = Duration::from_millis(doubled.min(10_000));
            obstacles.push((refresher.latest_failure_at.saturating_add(pause), met));
        }
        obstacles.retain(|(until, _)| self.now < *until);
        obstacles
    }

    /// What calls for the next build, and from when on; `None`: it does already.
    fn due(&self) -> (&'static str, Option<Duration>) {
        let ahead = self.refresher.as_ref().map_or(Duration::ZERO, |refresher| refresher.ahead);
        let Some(value) = &self.value else { return ("refresher: begins, without a value", None) };
        if value.declared_stale.is_some() {
            return ("refresher: begins, over what was declared stale", None);
        }
        // It is fresh up to and including its ttl.
        let life = value.ttl.saturating_add(NANOSECOND);
        let end = value.at.saturating_add(life);
        if end > END_OF_TIME {
            return ("refresher: begins, never", Some(Duration::MAX));
        }
        if life < SHORTEST_LIFE {
            let due = value.at.saturating_add(UNKEPT_PAUSE);
            return ("refresher: begins, of what was not to be kept", Some(due));
        }
        let half = value.at + Duration::from_nanos(u64::try_from(life.as_nanos() / 2).unwrap_or(u64::MAX));
        match end.checked_sub(ahead) {
            Some(due) if due > half => ("refresher: begins, ahead of the end", Some(due)),
            _ => ("refresher: begins, at half of a life", Some(half)),
        }
    }

    /// The refresher's build returns something new, and whether that has a ttl of its own.
    pub(crate) fn conclude_new(&mut self, value: Number, ttl: Option<Duration>) {
        let build = self.end_refreshers_build();
        self.meet(match ttl {
            None => "refresher: found something new",
            Some(_) => "refresher: found something with a ttl",
        });
        if self.lease != Some(build) {
            self.meet("refresher: found something, and was superseded");
        }
        self.publish(build, value, ttl);
        self.note(None);
    }

    pub(crate) fn conclude_not_modified(&mut self) {
        let build = self.end_refreshers_build();
        if self.renew(build, None).is_some() {
            self.meet("refresher: found nothing to modify");
            self.note(None);
        } else {
            self.meet("refresher: found nothing to modify, and nothing there");
            self.fail(build, TEXT);
            self.note(Some(TEXT));
        }
    }

    pub(crate) fn conclude_error(&mut self, fault: Fault) {
        let build = self.end_refreshers_build();
        self.meet("refresher: found an error");
        self.fail(build, fault);
        self.note(Some(fault));
    }

    pub(crate) fn conclude_panic(&mut self) {
        let build = self.end_refreshers_build();
        self.meet("refresher: found a panic");
        self.panic(build);
        self.note(Some(TEXT));
    }

    fn end_refreshers_build(&mut self) -> BuildId {
        self.refresher.as_mut().and_then(|refresher| refresher.build.take()).expect("it builds")
    }

    fn note(&mut self, error: Option<Fault>) {
        let now = self.now;
        let refresher = self.refresher.as_mut().expect("it builds");
        let former = refresher.trouble;
        refresher.trouble =
            Trouble { failures: if error.is_some() { former.failures + 1 } else { 0 }, last_error: error };
        refresher.latest_failure_at = now;
        if error.is_none() && former.failures > 0 {
            self.meet("refresher: recovered");
        }
    }

    /// The refresher is dropped, and its build with it, if one runs.
    pub(crate) fn detach(&mut self) {
        let Some(refresher) = self.refresher.take() else { return };
        match refresher.build {
            None => self.meet("refresher: dropped, asleep"),
            Some(build) => {
                self.meet("refresher: dropped, and its build");
                self.abandon(build);
            }
        }
    }

    /// The refresher was dropped from inside its build, which has just ended.
    pub(crate) fn detach_from_inside(&mut self) {
        self.refresher = None;
        self.meet("refresher: dropped from inside its build");
    }

    /// Whether a read that is served has no need of a clock: the value has no end, or somebody looks after it and it may be
    /// served for ever.
    pub(crate) fn needs_no_clock(&self) -> bool {
        let Some(value) = &self.value else { return false };
        let has_no_end = value.declared_stale.is_none() && value.at.saturating_add(value.ttl) >= END_OF_TIME;
        let is_looked_after = self.refresher.is_some() && self.stale_window() == Duration::MAX;
        has_no_end || is_looked_after
    }
}

const TEXT: Fault = Fault { number: Number::MAX, kind: None };
