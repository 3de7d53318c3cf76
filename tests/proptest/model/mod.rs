//! What the contract says a cell does, as plainly as it can be said: a `DogpileCell`, or a `SyncReaderCell`, which does the
//! same and [more](drain).
//!
//! Values and errors are numbers. Time is a [`Duration`] since the clock began, an age is a difference. Nothing
//! is cached, precomputed or encoded: every question is answered from what has happened.
//!
//! There is one thread. While a call waits, the test performs other operations, and the model is asked after each of them
//! whether the call goes on waiting.

mod builds;
mod calls;
mod drain;
pub(crate) mod met;
mod refresher;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dogpile::{Drain, Freshness, PublishOutcome, Stats};

use self::builds::{Build, Failures};
use self::calls::Call;
pub(crate) use self::calls::Place;
use self::drain::Draining;
pub(crate) use self::drain::{Event, Hold, Locked, Synchronized};
use self::refresher::Refresher;
pub(crate) use self::refresher::{Activity, Trouble};

pub(crate) type Number = usize;

const NANOSECOND: Duration = Duration::from_nanos(1);

/// When time stops. Cells take the last tick of a clock for the one before: they need it for "never".
pub(crate) const END_OF_TIME: Duration = Duration::from_nanos(u64::MAX - 1);

/// Durations from this one on mean "for ever".
const FOR_EVER: Duration = Duration::from_nanos(u64::MAX);

/// The pauses of a policy that sets no others.
const USUAL_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What a `Policy` says, how coarse the clock is, and which kind of cell it is. `Duration::MAX`: for ever.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) ttl: Duration,
    pub(crate) stale_while_refresh: Option<Duration>,
    pub(crate) stale_if_error: Option<Duration>,
    /// The first pause and the longest. Zero: none.
    pub(crate) retry_backoff: Option<(Duration, Duration)>,
    pub(crate) lease_timeout: Option<Duration>,
    /// The coarse reading of the clock only moves every so many nanoseconds.
    pub(crate) coarse_period: u64,
    /// Of a `SyncReaderCell`. `None`: it is a `DogpileCell`.
    pub(crate) drain: Option<Drain>,
}

/// Why a build failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An error of the test.
    Error(Number, Kind),
    /// An error of the library, by its text.
    Text(&'static str),
}

/// What the library says about a panic without a message.
pub(crate) const PANICKED: Fault = Fault::Text("the build panicked");

/// ... about a panic of a refresher's build.
pub(crate) const PANICKED_AS_PLANNED: Fault = Fault::Text("the build panicked: as planned");

/// ... about a build that returned `NotModified` without a previous value.
pub(crate) const NOTHING_TO_KEEP: Fault =
    Fault::Text("the build returned NotModified, but there is no previous value");

/// There are two types of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Network,
    Parse,
}

/// The conditions of a request. `Duration::MAX`, 0 and `false`: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) max_stale: Duration,
    pub(crate) max_age: Duration,
    pub(crate) newer_than: u64,
    pub(crate) no_cache: bool,
    pub(crate) wait_at_most: Duration,
    pub(crate) or_stale: bool,
}

impl Demand {
    /// Whatever may be served.
    pub(crate) const ANYTHING: Self = Self {
        max_stale: Duration::MAX,
        max_age: Duration::MAX,
        newer_than: 0,
        no_cache: false,
        wait_at_most: Duration::MAX,
        or_stale: false,
    };
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

/// What a call does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Returns(Number),
    Builds(BuildId),
    Refuses(Refused),
    /// At most until then; `None`: until something happens.
    Waits(Option<Duration>),
}

/// Why a call returns no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Build(Fault),
    WaitTimeout,
    Reentrant,
    Abandoned,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended<V = Number> {
    Published(V),
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

/// When a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// It does not begin.
    Now,
    Until(Duration),
    Never,
}

/// What can be seen of a cell from outside without changing it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) reads: Option<Reads>,
    pub(crate) freshness: Freshness,
    pub(crate) generation: u64,
    pub(crate) is_refreshing: bool,
    pub(crate) last_error: Option<Fault>,
    /// What `peek` shows, which is no read.
    pub(crate) peek: Option<Shot>,
    /// Of a `SyncReaderCell`; else 0.
    pub(crate) retired: usize,
    pub(crate) stats: Stats,
}

/// What reads return that never build.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reads {
    pub(crate) get: Option<Number>,
    /// Of a `DogpileCell`; else `None`.
    pub(crate) unless_due: Option<Number>,
    pub(crate) load: Option<Number>,
    pub(crate) snapshot: Option<Shot>,
}

/// What a `Snapshot` shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shot {
    pub(crate) value: Number,
    pub(crate) generation: u64,
    pub(crate) age: Duration,
    pub(crate) freshness: Freshness,
    pub(crate) fresh_for: Duration,
    pub(crate) servable_for: Duration,
    pub(crate) stale_for: Duration,
}

/// What a `Published` shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) value: Number,
    pub(crate) generation: Option<u64>,
    pub(crate) fresh_for: Duration,
    pub(crate) servable_for: Duration,
    pub(crate) outcome: PublishOutcome,
}

pub(crate) type BuildId = usize;
pub(crate) type CallId = usize;

/// A value that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Publication {
    value: Number,
    generation: u64,
    at: Duration,
    /// How old it was then.
    age_then: Duration,
    ttl: Duration,
    /// When it was declared stale.
    declared_stale: Option<Duration>,
    /// The number of the build or `set` that it comes from. A value that was restored is older than all of them.
    begun: u64,
}

impl Publication {
    fn age(&self, now: Duration) -> Duration {
        (now - self.at).saturating_add(self.age_then).min(FOR_EVER)
    }

    fn has_no_end(&self) -> bool {
        self.ttl >= FOR_EVER
    }

    /// How far past its time it is; zero: it is fresh.
    fn lateness(&self, now: Duration) -> Duration {
        let by_age = if self.has_no_end() { Duration::ZERO } else { self.age(now).saturating_sub(self.ttl) };
        // The moment at which it is declared stale is the first at which it is not fresh, as the nanosecond after
        // the ttl is otherwise. So with a window of zero it may not be served at that moment either.
        let by_word = self.declared_stale.map_or(Duration::ZERO, |at| now - at + NANOSECOND);
        by_age.max(by_word)
    }

    /// The last moment at which it is not late by more than `window`. `None`: it always is.
    fn last_within(&self, window: Duration) -> Option<Duration> {
        let by_age = if self.has_no_end() {
            Duration::MAX
        } else {
            self.at.saturating_add(self.ttl.saturating_add(window).checked_sub(self.age_then)?)
        };
        let by_word = match self.declared_stale {
            Some(at) => at.saturating_add(window).checked_sub(NANOSECOND)?,
            None => Duration::MAX,
        };
        Some(by_age.min(by_word))
    }

    /// Whether it meets the conditions of a call, which began after the build or `set` of the number `called`.
    fn meets(&self, demand: &Demand, called: u64, now: Duration) -> bool {
        self.lateness(now) <= demand.max_stale
            && (demand.max_age >= FOR_EVER || self.age(now) <= demand.max_age)
            && self.generation > demand.newer_than
            && (!demand.no_cache || self.begun > called)
    }

    /// As it was at the moment of its publication. (If it was declared stale at that very moment, it was stale.)
    fn when_published(self) -> Self {
        Self { declared_stale: self.declared_stale.filter(|at| *at == self.at), ..self }
    }
}

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// What its caller gets.
    Value(Number),
    Failed(Fault),
    Panicked,
    Abandoned,
}

#[derive(Debug)]
pub(crate) struct Model {
    settings: Settings,
    now: Duration,
    value: Option<Publication>,
    generation: u64,
    stats: Stats,
    /// How many builds and `set`s have begun.
    begun: u64,
    builds: Vec<Build>,
    /// The build that holds the lease.
    lease: Option<BuildId>,
    failures: Option<Failures>,
    /// What became of each thing that could be waited for. The last is still open.
    attempts: Vec<Option<Ended<Publication>>>,
    /// Whether a caller has taken a place to wait for that one.
    is_awaited: bool,
    /// Those that have not returned: each was made while the one before it built or waited.
    calls: Vec<Call>,
    /// How many builds, as closures, are on the stack of the one thread.
    closures: usize,
    refresher: Option<Refresher>,
    draining: Draining,
    /// What has come up, and how often.
    pub(crate) met: BTreeMap<&'static str, u64>,
}

/// Questions.
impl Model {
    /// A copy, to find out what would happen.
    pub(crate) fn trial(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            builds: self.builds.clone(),
            failures: self.failures.clone(),
            attempts: self.attempts.clone(),
            calls: self.calls.clone(),
            refresher: self.refresher.clone(),
            draining: self.draining.clone(),
            met: BTreeMap::new(),
            ..*self
        }
    }

    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            draining: Draining::new(settings.drain),
            settings,
            now: Duration::ZERO,
            value: None,
            generation: 0,
            stats: Stats::default(),
            begun: 0,
            builds: Vec::new(),
            lease: None,
            failures: None,
            attempts: vec![None],
            is_awaited: false,
            calls: Vec::new(),
            closures: 0,
            refresher: None,
            met: BTreeMap::new(),
        }
    }

    pub(crate) fn view(&self) -> View {
        let reads = Reads {
            get: self.get(),
            unless_due: self.get_unless_due().filter(|_| !self.is_of_sync_readers()),
            load: self.get(),
            snapshot: self.shot(),
        };
        let mut stats = self.stats;
        stats.consecutive_failures = self.failures.as_ref().map_or(0, |failures| failures.count.into());
        View {
            // A read would wake a refresher that rests.
            reads: (!self.is_unread()).then_some(reads),
            freshness: self.freshness(),
            generation: self.generation,
            is_refreshing: self.lease.is_some(),
            last_error: self.failures.as_ref().map(|failures| failures.latest),
            peek: self.shot(),
            retired: self.retired(),
            stats,
        }
    }

    fn shot(&self) -> Option<Shot> {
        let value = self.value?;
        Some(Shot {
            value: value.value,
            generation: value.generation,
            age: value.age(self.now),
            freshness: self.freshness(),
            fresh_for: self.fresh_for(&value),
            servable_for: self.servable_for(&value),
            stale_for: value.lateness(self.now).saturating_sub(NANOSECOND),
        })
    }

    /// What may be served now.
    pub(crate) fn get(&self) -> Option<Number> {
        match self.freshness() {
            Freshness::Fresh | Freshness::Stale => self.value(),
            Freshness::Empty | Freshness::Expired => None,
        }
    }

    /// The same, unless a refresh is due.
    pub(crate) fn get_unless_due(&self) -> Option<Number> {
        let is_dealt_with = self.lease_is_held() || self.pause_runs() || self.refresher.is_some();
        self.get().filter(|_| is_dealt_with || self.freshness() == Freshness::Fresh)
    }

    /// The value, whether it may be served or not.
    pub(crate) fn value(&self) -> Option<Number> {
        self.value.map(|value| value.value)
    }

    /// What a subscription returns that has returned this generation, and its generation: whatever was published for readers,
    /// even if it has expired since.
    pub(crate) fn published_after(&self, seen: u64) -> Option<(Number, u64)> {
        let value = self.value.filter(|value| value.generation > seen && self.was_servable(value))?;
        Some((value.value, value.generation))
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn previous(&self, build: BuildId) -> Option<Number> {
        self.builds[build].previous
    }

    /// What the value of this build would be numbered.
    pub(crate) fn generation_of(&self, build: BuildId) -> u64 {
        self.builds[build].generation
    }

    /// Whether the result of this build can no longer be published.
    pub(crate) fn is_fenced(&self, build: BuildId) -> bool {
        self.builds[build].is_displaced || self.lease != Some(build)
    }

    pub(crate) fn done(&self, build: BuildId) -> Option<Done> {
        self.builds[build].done
    }

    pub(crate) fn is_inside_a_build(&self) -> bool {
        self.closures > 0
    }

    /// The values that are alive, but for those that the test itself keeps.
    pub(crate) fn alive(&self) -> BTreeSet<Number> {
        if self.is_of_sync_readers() {
            return self.not_finalized();
        }
        let mut alive = self.kept_by_builds();
        alive.extend(self.kept_by_calls());
        alive.extend(self.value());
        alive
    }

    /// The values that builds keep because they replace them. A build whose lease leaked keeps its for ever.
    pub(crate) fn kept_by_builds(&self) -> BTreeSet<Number> {
        self.builds.iter().filter(|build| build.done.is_none()).filter_map(|build| build.previous).collect()
    }

    /// The values that calls keep: of their own builds, and of those that they wait for.
    fn kept_by_calls(&self) -> BTreeSet<Number> {
        let of_own = |call: &Call| match self.builds[call.own?].done {
            Some(Done::Value(value)) => Some(value),
            _ => None,
        };
        let of_waits = |call: &Call| call.place.and_then(|place| self.kept_by(place));
        self.calls.iter().flat_map(|call| [of_own(call), of_waits(call)]).flatten().collect()
    }

    /// The value that a place among the waiters keeps.
    pub(crate) fn kept_by(&self, place: Place) -> Option<Number> {
        match self.attempts[place.attempt] {
            Some(Ended::Published(publication)) => Some(publication.value),
            _ => None,
        }
    }

    fn freshness(&self) -> Freshness {
        let Some(value) = &self.value else { return Freshness::Empty };
        // While a retry pause runs a value may be served for as long as either window allows.
        let window = if self.pause_runs() { self.pause_window() } else { self.stale_window() };
        match value.lateness(self.now) {
            Duration::ZERO => Freshness::Fresh,
            lateness if lateness <= window => Freshness::Stale,
            _ => Freshness::Expired,
        }
    }

    fn is_fresh(&self) -> bool {
        self.freshness() == Freshness::Fresh
    }

    fn fresh_for(&self, value: &Publication) -> Duration {
        self.left(value.last_within(Duration::ZERO))
    }

    /// How long a value may be served if nothing happens.
    fn servable_for(&self, value: &Publication) -> Duration {
        let in_pause = self.pause_end().filter(|_| self.pause_runs()).and_then(|end| {
            let last = end.checked_sub(NANOSECOND)?;
            Some(value.last_within(self.pause_window())?.min(last))
        });
        self.left(value.last_within(self.stale_window()).max(in_pause))
    }

    /// The time that is left up to and including the moment `last`.
    fn left(&self, last: Option<Duration>) -> Duration {
        match last {
            Some(last) if last >= END_OF_TIME => Duration::MAX,
            Some(last) => last.saturating_sub(self.now),
            None => Duration::ZERO,
        }
    }

    fn stale_window(&self) -> Duration {
        self.settings.stale_while_refresh.unwrap_or(Duration::MAX)
    }

    fn error_window(&self) -> Duration {
        self.settings.stale_if_error.unwrap_or(self.stale_window())
    }

    fn pause_window(&self) -> Duration {
        self.stale_window().max(self.error_window())
    }

    fn pause_runs(&self) -> bool {
        self.pause_end().is_some_and(|end| self.now < end)
    }

    fn pause_end(&self) -> Option<Duration> {
        let failures = self.failures.as_ref()?;
        Some(failures.latest_at.saturating_add(self.pause(failures.count)))
    }

    /// The pause after so many failures in a row.
    fn pause(&self, failures: u32) -> Duration {
        let (first, max) = self.settings.retry_backoff.unwrap_or(USUAL_BACKOFF);
        let mut pause = first;
        for _ in 1..failures {
            pause = pause.saturating_mul(2).min(max);
        }
        pause
    }

    /// From which moment on another caller may be elected in place of this build. `None`: never, as under the write lock.
    fn overdue(&self, build: BuildId) -> Option<Duration> {
        if self.has_section(build) {
            return None;
        }
        let timeout = self.settings.lease_timeout?;
        let overdue = self.builds[build].began.saturating_add(timeout).saturating_add(NANOSECOND);
        (overdue <= END_OF_TIME).then_some(overdue)
    }

    fn is_overdue(&self, build: BuildId) -> bool {
        self.overdue(build).is_some_and(|overdue| overdue <= self.now)
    }

    /// A build runs, and is not overdue.
    fn lease_is_held(&self) -> bool {
        self.lease.is_some_and(|build| !self.is_overdue(build))
    }

    /// The moments, yet to come, at which something changes by itself.
    pub(crate) fn moments(&self) -> Vec<Duration> {
        let mut moments = BTreeSet::new();
        if let Some(value) = &self.value {
            let windows = [self.stale_window(), self.error_window(), Duration::ZERO];
            moments.extend(windows.into_iter().filter_map(|window| value.last_within(window)));
        }
        moments.extend(self.pause_end());
        // The last moment before that.
        moments.extend(self.lease.and_then(|build| self.overdue(build)).map(|overdue| overdue - NANOSECOND));
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
