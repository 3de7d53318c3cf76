//! What the contract says a cell does, as plainly as it can be said.
//!
//! Values and errors are numbers. Time is a [`Duration`] since the clock began, an age is a difference. Nothing
//! is cached, precomputed or encoded: every question is answered from what has happened.
//!
//! There is one thread. While a call waits, the test performs other operations, and the model is asked after each of them
//! whether the call goes on waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dogpile::{Freshness, PublishOutcome, Stats};

pub(crate) type Number = usize;

const NANOSECOND: Duration = Duration::from_nanos(1);

/// When time stops. Cells take the last tick of a clock for the one before: they need it for "never".
pub(crate) const END_OF_TIME: Duration = Duration::from_nanos(u64::MAX - 1);

/// Durations from this one on mean "for ever".
const FOR_EVER: Duration = Duration::from_nanos(u64::MAX);

/// The pauses of a policy that sets no others.
const USUAL_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What a `Policy` says, and how coarse the clock is. `Duration::MAX`: for ever.
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
    pub(crate) stats: Stats,
}

/// What reads return that never build.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reads {
    pub(crate) get: Option<Number>,
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

/// A place among the waiters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    attempt: usize,
    /// The number of the build that held the lease at that time.
    begun: Option<u64>,
    /// When that may be superseded. `None`: never.
    overdue: Option<Duration>,
}

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

/// A build, from its election on.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is something that has happened to it, or not
struct Build {
    demand: Demand,
    /// The number of the latest build or `set` when its call began.
    called: u64,
    /// Its own.
    begun: u64,
    began: Duration,
    previous: Option<Number>,
    /// The one that its value would have.
    generation: u64,
    /// Whether `invalidate` was called since.
    is_invalidated: bool,
    /// Whether `set`, `clear`, `revoke` or `reset` was called since.
    is_displaced: bool,
    /// Whether another caller was elected in its place.
    is_superseded: bool,
    /// Whether it was handed to a spawner.
    is_job: bool,
    /// `None`: it runs, or it has leaked.
    done: Option<Done>,
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

/// The failures since the latest publication.
#[derive(Clone, Debug)]
struct Failures {
    count: u32,
    latest_at: Duration,
    latest: Fault,
    is_panic: bool,
}

/// A call that has begun.
#[derive(Clone, Debug)]
struct Call {
    demand: Demand,
    can_fail: bool,
    builds_in_pause: bool,
    /// The number of the latest build or `set` when it began.
    called: u64,
    /// The generation at that time: a later one has arrived while it looked or waited.
    since: u64,
    /// The build that it has handed to a spawner.
    own: Option<BuildId>,
    /// Of all its waits together, once it has waited.
    limit: Option<Limit>,
    place: Option<Place>,
    step: Option<Step>,
}

/// An attached refresher.
#[derive(Clone, Debug)]
struct Refresher {
    ahead: Duration,
    min_interval: Duration,
    rests: bool,
    /// The value has a time to live of its own.
    is_of_own_ttl: bool,
    /// It rests: the value was not read since its publication.
    is_unread: bool,
    /// A build is asked for that begins after the build or `set` of this number.
    asked_after: Option<u64>,
    /// Its running build.
    build: Option<BuildId>,
    trouble: Trouble,
    latest_failure_at: Duration,
}

/// What a refresher shows of its failures.
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
    /// What has come up, and how often.
    pub(crate) met: BTreeMap<&'static str, u64>,
}

/// What must come up in a run that is worth anything.
pub(crate) const WORTH_MEETING: &[&str] = &[
    "a read that asks no clock",
    "arrived: handed over though it has expired",
    "arrived: handed over though it meets the conditions no more",
    "arrived: does not meet the conditions",
    "build: an error, and a stale value instead",
    "build: an error, and a stale value that is too old",
    "build: an error, and a stale value that does not meet the conditions",
    "build: an error, and a value that only or_stale allows",
    "build: returned NotModified",
    "build: returned NotModified, with nothing to keep",
    "build: returned a value with a ttl",
    "call: waits",
    "call: waits again",
    "call: waited, and is elected",
    "call: waited, and shares an error",
    "call: waited, and gets a value instead of the error",
    "call: waited, and builds after an error",
    "call: waited, and ignores the failure of a build that began before it",
    "call: waited for too long",
    "call: waited for too long, and gets a stale value",
    "call: waits for ever after its time is over",
    "condition: too stale",
    "condition: too old",
    "condition: not newer",
    "condition: begun before the call",
    "end: failed",
    "end: panicked",
    "end: abandoned",
    "end: failed, and was displaced",
    "end: panicked, and was displaced",
    "end: superseded",
    "fence: published as stale",
    "fence: displaced, and another value served",
    "fence: displaced, and its own value served",
    "fence: displaced, and its own value served as the other does not meet the conditions",
    "fence: superseded, and another value served",
    "fence: superseded, and its own value served",
    "fence: superseded, and displaced too",
    "fence: the value to renew is gone",
    "invalidate_if_current: declared stale",
    "invalidate_if_current: not current",
    "invalidate_if_current: declared stale before",
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
    "publication: over a restored value",
    "reentry: a panic",
    "reentry: an error",
    "reentry: a stale value",
    "refresher: attached, on a thread",
    "refresher: attached to a stale value",
    "refresher: refused",
    "refresher: asked to build",
    "refresher: begins, as it was asked",
    "refresher: begins, as it was asked, in a retry pause",
    "refresher: begins, ahead of the end",
    "refresher: begins, at half of a life",
    "refresher: begins, without a value",
    "refresher: begins, over what was declared stale",
    "refresher: begins, after failures",
    "refresher: begins, instead of an overdue build",
    "refresher: sleeps, another caller builds",
    "refresher: sleeps, a retry pause runs",
    "refresher: sleeps, its interval after a failure runs",
    "refresher: sleeps, its interval after a publication runs",
    "refresher: sleeps, for ever",
    "refresher: found something new",
    "refresher: found something with a ttl",
    "refresher: found nothing to modify",
    "refresher: found nothing to modify, and nothing there",
    "refresher: found an error",
    "refresher: found a panic",
    "refresher: found something, and had lost its lease",
    "refresher: recovered",
    "refresher: dropped, asleep",
    "refresher: dropped from inside its build",
    "refresher: outlives the cell",
    "reset: during a build",
    "restore: a fresh value",
    "restore: a stale value",
    "restore: an expired value",
    "restore: during a build",
    "revoke: a build",
    "revoke: nothing",
    "set: during a build",
    "spawned: gets something acceptable at once",
    "spawned: gets the value of its own build, which does not meet the conditions any more",
    "spawned: its own build failed",
    "spawned: was abandoned, and gets a stale value",
    "spawned: was abandoned, an error",
    "spawned: was abandoned, a panic",
    "spawned: waits for its own build without a lease",
    "spawner: runs the build",
    "spawner: runs the build, which panics",
    "spawner: drops the build",
    "spawner: keeps the build",
    "spawner: panics",
    "job: run later",
    "job: run later, and panics",
    "job: dropped later",
    "wait: published",
    "wait: failed",
    "wait: abandoned",
    "wait: abandoned: an overdue lease",
    "wait: reentrant",
    "wait: not yet",
];

/// With the feature `async`.
#[cfg(feature = "async")]
pub(crate) const WORTH_MEETING_OF_TASKS: &[&str] = &[
    "refresher: attached, as a task",
    "refresher: asked to build, and served by another caller",
    "refresher: dropped, and its build",
    "refresher: rests",
    "refresher: woken by a read",
];
#[cfg(not(feature = "async"))]
pub(crate) const WORTH_MEETING_OF_TASKS: &[&str] = &[];

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
            met: BTreeMap::new(),
            ..*self
        }
    }

    pub(crate) fn new(settings: Settings) -> Self {
        Self {
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
            unless_due: self.get_unless_due(),
            load: self.get(),
            snapshot: self.value.map(|value| Shot {
                value: value.value,
                generation: value.generation,
                age: value.age(self.now),
                freshness: self.freshness(),
                fresh_for: self.fresh_for(&value),
                servable_for: self.servable_for(&value),
            }),
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
            stats,
        }
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

    /// The values that builds keep because they replace them. A build whose lease leaked keeps its for ever.
    pub(crate) fn kept_by_builds(&self) -> BTreeSet<Number> {
        self.builds.iter().filter(|build| build.done.is_none()).filter_map(|build| build.previous).collect()
    }

    /// The values that calls keep: of their own builds, and of those that they wait for.
    pub(crate) fn kept_by_calls(&self) -> BTreeSet<Number> {
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

    /// From which moment on another caller may be elected in place of this build. `None`: never.
    fn overdue(&self, build: BuildId) -> Option<Duration> {
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
            if has_waited {
                self.meet("call: waited, and gets a value instead of the error");
            }
            return Some(Step::Returns(value));
        }
        if self.calls[call].can_fail {
            if has_waited {
                self.meet("call: waited, and shares an error");
            }
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

    /// Whether a value was published for readers: only one that was restored may have expired by then.
    fn was_servable(&self, value: &Publication) -> bool {
        value.age_then.is_zero() || value.when_published().lateness(value.at) <= self.stale_window()
    }

    /// What may be served now and meets the conditions of the call, or has been published since the call began and met
    /// them then.
    fn acceptable(&self, call: CallId) -> Option<Number> {
        let Call { demand, called, .. } = self.calls[call];
        let value = self.value?;
        let is_acceptable = self.get().is_some() && value.meets(&demand, called, self.now);
        if is_acceptable { Some(value.value) } else { self.arrived(call) }
    }

    /// What has been published since the call began, and met its conditions then.
    fn arrived(&self, call: CallId) -> Option<Number> {
        let Call { demand, called, since, .. } = self.calls[call];
        let value = self.value.filter(|value| value.generation > since)?;
        self.was_acceptable(&value, &demand, called).then_some(value.value)
    }

    /// The table of the contract, under the conditions of the call.
    fn look(&mut self, call: CallId) -> Seen {
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

/// What happens.
impl Model {
    pub(crate) fn advance_to(&mut self, now: Duration) {
        self.now = now;
    }

    fn elect(&mut self, demand: Demand, called: u64) -> BuildId {
        self.stats.builds += 1;
        if let Some(build) = self.lease {
            self.stats.superseded += 1;
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
        self.conclude(build, value, ttl, false)
    }

    fn conclude(&mut self, build: BuildId, value: Number, ttl: Option<Duration>, renews: bool) -> Published {
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
        let had_the_lease = self.release(build);
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
        self.make_visible(value, ttl, Duration::ZERO, begun, is_invalidated);
        self.note_end(build, Done::Value(value));
        let publication = self.value.expect("it has just been published");
        self.published(&publication, outcome)
    }

    fn published(&self, value: &Publication, outcome: PublishOutcome) -> Published {
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
        Some(self.conclude(build, previous, ttl, true))
    }

    pub(crate) fn fail(&mut self, build: BuildId, fault: Fault) {
        self.stats.failed += 1;
        self.stats.last_build = Some(self.now - self.builds[build].began);
        if self.release(build) {
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
        if self.release(build) {
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

    pub(crate) fn set(&mut self, value: Number, ttl: Option<Duration>) {
        if self.displace() {
            self.meet("set: during a build");
        }
        self.begun += 1;
        self.make_visible(value, ttl, Duration::ZERO, self.begun, false);
    }

    /// The value was made `age` ago. A build that runs is newer.
    pub(crate) fn restore(&mut self, value: Number, age: Duration) {
        if self.lease.is_some() {
            self.meet("restore: during a build");
        }
        // What is not made just now was made before any call that waits.
        self.begun += u64::from(age.is_zero());
        let begun = if age.is_zero() { self.begun } else { 0 };
        self.make_visible(value, None, age.min(FOR_EVER), begun, false);
        self.meet(match self.freshness() {
            Freshness::Fresh => "restore: a fresh value",
            Freshness::Stale => "restore: a stale value",
            _ => "restore: an expired value",
        });
    }

    pub(crate) fn invalidate(&mut self) {
        for build in &mut self.builds {
            build.is_invalidated = true;
        }
        if let Some(value) = &mut self.value {
            value.declared_stale.get_or_insert(self.now);
        }
    }

    /// Whether the value was declared stale.
    pub(crate) fn invalidate_if_current(&mut self, seen: Number) -> bool {
        match &self.value {
            Some(value) if value.value == seen && value.declared_stale.is_none() => {
                self.meet("invalidate_if_current: declared stale");
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
        if self.displace() {
            self.settle(Ended::Abandoned);
        }
        self.value.take().map(|value| value.value)
    }

    /// Whether a build did run.
    pub(crate) fn revoke(&mut self) -> bool {
        if self.lease.is_none() {
            self.meet("revoke: nothing");
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
        self.clear();
        self.failures = None;
        self.stats = Stats::default();
    }

    /// No build that has begun can be published any more. Whether one has lost the lease.
    fn displace(&mut self) -> bool {
        for build in &mut self.builds {
            build.is_displaced = true;
        }
        self.lease.take().is_some()
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

/// The refresher.
impl Model {
    /// Whether it is accepted.
    pub(crate) fn attach(
        &mut self,
        ahead: Duration,
        min_interval: Duration,
        rests: bool,
        is_task: bool,
    ) -> bool {
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
        self.refresher = Some(Refresher {
            ahead,
            min_interval,
            rests,
            is_of_own_ttl: false,
            is_unread: false,
            asked_after: None,
            build: None,
            trouble: Trouble::default(),
            latest_failure_at: Duration::ZERO,
        });
        true
    }

    /// A caller asks for the value, and finds one in the cell, which it may be served or not.
    pub(crate) fn read(&mut self) {
        if self.value.is_some()
            && let Some(refresher) = &mut self.refresher
            && std::mem::take(&mut refresher.is_unread)
        {
            self.meet("refresher: woken by a read");
        }
    }

    pub(crate) fn may_rest(&self) -> bool {
        self.refresher.as_ref().is_some_and(|refresher| refresher.rests)
    }

    pub(crate) fn is_unread(&self) -> bool {
        self.refresher.as_ref().is_some_and(|refresher| refresher.is_unread)
    }

    /// `refresh_now`
    pub(crate) fn ask_to_build(&mut self) {
        // The value is asked for, as by a reader.
        self.read();
        let begun = self.begun;
        if let Some(refresher) = &mut self.refresher {
            refresher.asked_after = Some(begun);
            self.meet("refresher: asked to build");
        }
    }

    /// Whether no build keeps the refresher from beginning one.
    pub(crate) fn can_refresh_at_once(&self) -> bool {
        self.refreshers_build().is_none() && !self.lease_is_held()
    }

    /// `wait_ready(Duration::ZERO)`
    pub(crate) fn is_ready(&mut self) -> bool {
        let call = self.begin(Demand::ANYTHING, true);
        // It only looks, which is no read.
        let is_ready = self.acceptable(call).is_some();
        self.end_call(call);
        is_ready
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

    pub(crate) fn has_a_refresher(&self) -> bool {
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
        let begun = self.value.map_or(0, |value| value.begun);
        if let Some(refresher) = &mut self.refresher
            && refresher.build.is_none()
            && refresher.asked_after.is_some_and(|asked| begun > asked)
        {
            refresher.asked_after = None;
            self.meet("refresher: asked to build, and served by another caller");
        }
        if self.refresher.is_some() && self.activity().is_none() {
            let demand = Demand { no_cache: true, ..Demand::ANYTHING };
            let pause_runs = self.pause_runs();
            let (mut met, _) = self.due();
            let begun = self.elect(demand, self.begun);
            let refresher = self.refresher.as_mut().expect("just looked at");
            refresher.build = Some(begun);
            if refresher.asked_after.take().is_some() {
                met = if pause_runs {
                    "refresher: begins, as it was asked, in a retry pause"
                } else {
                    "refresher: begins, as it was asked"
                };
            }
            self.meet(met);
            if self.trouble().failures > 0 {
                self.meet("refresher: begins, after failures");
            }
            if self.builds[..begun].iter().any(|build| build.done.is_none() && !build.is_displaced) {
                self.meet("refresher: begins, instead of an overdue build");
            }
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
            let overdue = self.overdue(build).unwrap_or(Duration::MAX);
            obstacles.push((overdue, "refresher: sleeps, another caller builds"));
        }
        if refresher.asked_after.is_none() {
            if let Some(end) = self.pause_end() {
                obstacles.push((end, "refresher: sleeps, a retry pause runs"));
            }
            if refresher.trouble.failures > 0 {
                let end = refresher.latest_failure_at.saturating_add(refresher.min_interval);
                obstacles.push((end, "refresher: sleeps, its interval after a failure runs"));
            }
            if let (_, Some(due)) = self.due() {
                let met = if due > END_OF_TIME { "refresher: sleeps, for ever" } else { "refresher: sleeps" };
                obstacles.push((due, met));
            }
            if let Some(value) = &self.value
                && value.declared_stale.is_none()
                && refresher.is_of_own_ttl
            {
                let end = value.at.saturating_add(refresher.min_interval);
                obstacles.push((end, "refresher: sleeps, its interval after a publication runs"));
            }
            if self.value.is_some() && refresher.is_unread {
                obstacles.push((Duration::MAX, "refresher: rests"));
            }
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
        let Some(last) = value.last_within(Duration::ZERO) else {
            return ("refresher: begins, over what was restored as stale", None);
        };
        // It is fresh up to and including that moment.
        let end = last.saturating_add(NANOSECOND);
        if end > END_OF_TIME {
            return ("refresher: begins, never", Some(Duration::MAX));
        }
        let life = value.ttl.saturating_add(NANOSECOND);
        let half_of_life = Duration::from_nanos(u64::try_from(life.as_nanos() / 2).unwrap_or(u64::MAX));
        let half = (value.at + half_of_life).saturating_sub(value.age_then);
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
            self.meet("refresher: found something, and had lost its lease");
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
            self.fail(build, NOTHING_TO_KEEP);
            self.note(Some(NOTHING_TO_KEEP));
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
        self.panic(build, PANICKED_AS_PLANNED);
        self.note(Some(PANICKED_AS_PLANNED));
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

    /// Whether a read that is served has no need of a clock: the value has no end, or a refresher is attached and it may be
    /// served for ever.
    pub(crate) fn needs_no_clock(&self) -> bool {
        let Some(value) = &self.value else { return false };
        let has_no_end = value.declared_stale.is_none()
            && value.last_within(Duration::ZERO).is_some_and(|last| last >= END_OF_TIME);
        let is_left_to_a_refresher = self.refresher.is_some() && self.stale_window() >= FOR_EVER;
        (has_no_end || is_left_to_a_refresher) && !self.is_unread()
    }
}
