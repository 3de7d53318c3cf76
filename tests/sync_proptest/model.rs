//! What the contract says a cell does, for one thread, as plainly as it can be said.
//!
//! Values are numbers. Time is a [`Duration`] since the clock began, an age is a difference. The readers are a list; which
//! values are to be finalised, and when, is asked of that list anew each time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

use dogpile::{Drain, Freshness, Stats};

use crate::operations::{By, Conditions, Finish, How};

pub(crate) type Number = usize;
pub(crate) type BuildId = usize;

const NANOSECOND: Duration = Duration::from_nanos(1);

/// The text of a build's error.
pub(crate) const FAILED: &str = "a planned failure";
/// What a panic of a build is shown as, whose payload is no text.
const PANICKED: &str = "the build panicked";
/// What "not modified" comes to without a previous value.
const NOTHING_TO_KEEP: &str = "the build returned NotModified, but there is no previous value";

/// What the cell is made with. `Duration::MAX`: for ever; `None`: the policy's default.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) ttl: Duration,
    pub(crate) stale_while_refresh: Option<Duration>,
    pub(crate) stale_if_error: Option<Duration>,
    /// The first pause and the longest.
    pub(crate) retry_backoff: Option<(Duration, Duration)>,
    pub(crate) lease_timeout: Option<Duration>,
    pub(crate) drain: Drain,
}

/// What a caller asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    max_stale: Duration,
    max_age: Duration,
    newer_than: u64,
    /// From a build or `set` that began after this one.
    after: usize,
    or_stale: bool,
    /// In a retry pause as well.
    builds_in_pause: bool,
    /// It can return an error.
    is_fallible: bool,
}

impl Demand {
    pub(crate) fn is_fallible(&self) -> bool {
        self.is_fallible
    }
}

/// What a look at the cell finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Value(Number),
    Elected(BuildId),
    /// There is nothing to serve, and a build runs.
    Pending,
    /// There is nothing to serve, and a retry pause runs.
    Failed(&'static str),
}

/// How a value is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// As a `ReaderArc`.
    Arc,
    /// As a `ReadGuard` that `load` has returned.
    Guard,
    /// As one that `load_or_refresh` has returned. If it came by way of a `ReaderArc`, it is counted as one.
    CountedGuard,
}

/// What `synchronize` would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Synchronized {
    Done,
    /// It would wait for these readers.
    Not(RangeInclusive<usize>),
    /// It would wait for a guard of its own thread, among these.
    ForItself(RangeInclusive<usize>),
}

/// What asking for the write lock comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Locked {
    /// Granted, over this old value.
    Over(Option<Number>),
    /// These readers would have to leave.
    StillRead(RangeInclusive<usize>),
    /// One of them is a guard of the same thread.
    ForItself(RangeInclusive<usize>),
    /// What is in the cell is not for this build to replace.
    Overtaken(RangeInclusive<usize>),
}

/// What can be seen of a cell from outside without changing it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) get: Option<Number>,
    pub(crate) load: Option<Number>,
    pub(crate) freshness: Freshness,
    pub(crate) generation: u64,
    pub(crate) is_refreshing: bool,
    pub(crate) retired: usize,
    pub(crate) last_error: Option<String>,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) stats: Stats,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) value: Number,
    pub(crate) generation: u64,
    pub(crate) age: Duration,
    pub(crate) freshness: Freshness,
    pub(crate) fresh_for: Duration,
    pub(crate) servable_for: Duration,
}

/// A value that was published.
#[derive(Clone, Copy, Debug)]
struct Publication {
    value: Number,
    generation: u64,
    /// The number of the build or `set` that has published it.
    origin: usize,
    at: Duration,
    /// Its age when it was published.
    initial_age: Duration,
    ttl: Duration,
    declared_stale: Option<Duration>,
}

/// A build, from its election on.
#[derive(Debug)]
struct Build {
    demand: Demand,
    began: Duration,
    origin: usize,
    /// Whether `invalidate` was called since.
    invalidated: bool,
    /// Whether there was a `set`, a `clear`, a `revoke` or a `reset` since.
    displaced: bool,
    section: Option<Section>,
}

/// The failures since the latest publication.
#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    latest_at: Duration,
    /// The latest one.
    error: &'static str,
}

/// What has happened while the one thread waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A reader of this has left.
    Left(Number),
    /// The clock moved on to the end of the wait.
    TimeIsUp,
}

/// A build has the write lock, and the old value.
#[derive(Clone, Copy, Debug)]
struct Section {
    old: Option<Publication>,
    /// The old value is not to be put back.
    cleared: bool,
}

#[derive(Debug)]
pub(crate) struct Model {
    settings: Settings,
    now: Duration,
    value: Option<Publication>,
    generation: u64,
    /// Builds and `set`s so far.
    origins: usize,
    stats: Stats,
    failures: Option<Failures>,
    builds: Vec<Build>,
    /// The build that holds the lease.
    lease: Option<BuildId>,
    /// How many builds are on the stack of the one thread.
    closures: usize,
    /// All readers, of whatever value.
    readers: Vec<(Number, Hold)>,
    /// What was replaced and is not finalised yet, in the order in which it was replaced.
    line: VecDeque<Number>,
    /// What was replaced and is finalised, in the order in which that was done.
    finalized: Vec<Number>,
    /// What never came into the cell: still held, and finalised.
    strays: BTreeSet<Number>,
    finalized_strays: BTreeSet<Number>,
    /// What was in the cell when it was dropped, as long as it is read.
    orphan: Option<Number>,
    /// Something has been left for the cell's own thread to finalise. Always under [`Drain::Background`].
    background: bool,
    marks: BTreeMap<Number, u32>,
    /// What has happened during the wait that the model is to follow.
    events: VecDeque<Event>,
    /// What has come up, and how often.
    pub(crate) met: BTreeMap<&'static str, u64>,
}

/// What must come up in a run that is worth anything.
pub(crate) const WORTH_MEETING: [&str; 84] = [
    "build: elected",
    "build: elected in a retry pause",
    "build: elected over a value",
    "build: superseding another",
    "build: not elected, would wait for itself",
    "build: not elected, a retry pause runs",
    "build: not elected, a retry pause runs, an old value instead",
    "condition: a fresh value is too old",
    "condition: max_age",
    "condition: max_stale",
    "condition: met by a fresh value",
    "condition: met by a stale value",
    "condition: newer_than",
    "condition: no_cache",
    "condition: no_cache, and a section over a fresh value",
    "drain: given up",
    "drain: the readers have left",
    "drain: would wait for a guard of its own",
    "drop: an empty cell",
    "drop: the value goes with the cell",
    "drop: the value is still read",
    "drop: retired values are still read",
    "end: error",
    "end: error, and a fresh value instead",
    "end: error, and a stale value instead",
    "end: error of a displaced build",
    "end: fenced, and its own value served",
    "end: fenced, and the cell's value served",
    "end: fenced, and the cell's value will not do",
    "end: panic",
    "end: published",
    "end: published as stale",
    "end: published over a restored value",
    "end: renewed",
    "end: renewed, and gone from the cell",
    "end: renewed, where nothing was",
    "end: superseded",
    "end: superseded, and its own value served",
    "exchange: a handle",
    "finalised: when its last reader left",
    "finalised: at once when it was replaced",
    "finalised: several at once",
    "finalised: a stray",
    "guard: not counted",
    "invalidate_if_current: done",
    "invalidate_if_current: done before",
    "invalidate_if_current: not current",
    "invalidate_if_current: during a build",
    "lock: given up",
    "lock: the readers have left",
    "lock: granted over an old value",
    "lock: granted over an expired value",
    "lock: granted over nothing",
    "lock: granted again",
    "lock: granted to a build without a lease",
    "lock: would wait for a guard of its own",
    "lock: overtaken by a set",
    "lock: overtaken, because it was revoked",
    "lock: readers of the current value",
    "lock: readers of a retired value",
    "lock: readers of a stray",
    "lock: readers of several",
    "lock: superseded",
    "or_stale: instead of waiting for itself",
    "reset: a cell with failures",
    "reset: during a build",
    "restore: expired",
    "restore: fresh",
    "restore: stale",
    "restore: under a build",
    "revoke: a build",
    "revoke: a section",
    "section: published",
    "section: put back",
    "section: put back, changed",
    "section: cleared, and failed",
    "section: cleared, and fenced",
    "section: a set from inside",
    "synchronize: done",
    "synchronize: given up",
    "synchronize: the readers have left",
    "synchronize: readers",
    "synchronize: would wait for a guard of its own",
    "synchronize: would wait for its own section",
];

/// Questions.
impl Model {
    pub(crate) fn new(settings: Settings) -> Self {
        let background = settings.drain == Drain::Background;
        Self {
            settings,
            now: Duration::ZERO,
            value: None,
            generation: 0,
            origins: 1,
            stats: Stats::default(),
            failures: None,
            builds: Vec::new(),
            lease: None,
            closures: 0,
            readers: Vec::new(),
            line: VecDeque::new(),
            finalized: Vec::new(),
            strays: BTreeSet::new(),
            finalized_strays: BTreeSet::new(),
            orphan: None,
            background,
            marks: BTreeMap::new(),
            events: VecDeque::new(),
            met: BTreeMap::new(),
        }
    }

    pub(crate) fn view(&self) -> View {
        let consecutive_failures = self.failures.map_or(0, |failures| failures.count.into());
        let mut stats = self.stats;
        stats.consecutive_failures = consecutive_failures;
        View {
            get: self.get(),
            load: self.get(),
            freshness: self.freshness(),
            generation: self.generation,
            is_refreshing: self.lease.is_some(),
            retired: self.retired(),
            last_error: self.failures.map(|failures| failures.error.to_owned()),
            snapshot: self.snapshot(),
            stats,
        }
    }

    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        let value = self.value.as_ref()?;
        let stale_end = self.left_of(value, self.stale_window());
        let pause_end = self.left_of(value, self.pause_window()).min(self.left_of_pause());
        Some(Snapshot {
            value: value.value,
            generation: value.generation,
            age: self.age(value),
            freshness: self.freshness(),
            fresh_for: if self.lateness(value) == Duration::ZERO {
                self.left_of(value, Duration::ZERO)
            } else {
                Duration::ZERO
            },
            servable_for: stale_end.max(pause_end),
        })
    }

    /// How much longer the value is not past its time by more than `window`.
    fn left_of(&self, value: &Publication, window: Duration) -> Duration {
        match self.lateness(value) {
            _ if window == Duration::MAX => Duration::MAX,
            Duration::ZERO if value.ttl == Duration::MAX => Duration::MAX,
            Duration::ZERO => value.ttl - self.age(value) + window,
            lateness => window.saturating_sub(lateness),
        }
    }

    /// How much longer the retry pause runs: up to the last moment before its end.
    fn left_of_pause(&self) -> Duration {
        let Some(failures) = self.failures else { return Duration::ZERO };
        let end = failures.latest_at + self.pause(failures.count);
        end.saturating_sub(self.now).saturating_sub(NANOSECOND)
    }

    /// What may be served now.
    pub(crate) fn get(&self) -> Option<Number> {
        match self.freshness() {
            Freshness::Fresh | Freshness::Stale => self.value.map(|value| value.value),
            Freshness::Empty | Freshness::Expired => None,
        }
    }

    /// Replaced values whose finalizer has not finished.
    pub(crate) fn retired(&self) -> usize {
        self.line.len()
    }

    /// Readers of the current and of retired values.
    pub(crate) fn readers(&self) -> RangeInclusive<usize> {
        let current = self.value.map(|value| value.value);
        let retired = self.readers_of_retired();
        let with =
            |hold| self.readers.iter().filter(move |reader| Some(reader.0) == current && reader.1 == hold);
        let counted = with(Hold::Arc).count() + *retired.start();
        counted..=counted + with(Hold::CountedGuard).count()
    }

    /// Readers of values that were replaced; here guards count as well.
    fn readers_of_retired(&self) -> RangeInclusive<usize> {
        let count = self.readers.iter().filter(|(number, _)| self.line.contains(number)).count();
        count..=count
    }

    /// In the order in which they have to be; all but the strays, which have no place in it.
    pub(crate) fn finalized(&self) -> &[Number] {
        &self.finalized
    }

    pub(crate) fn finalized_strays(&self) -> &BTreeSet<Number> {
        &self.finalized_strays
    }

    pub(crate) fn drain(&self) -> Drain {
        self.settings.drain
    }

    /// The value in the cell, of whatever age.
    pub(crate) fn current(&self) -> Option<Number> {
        self.value.map(|value| value.value)
    }

    pub(crate) fn is_left_to_the_background(&self) -> bool {
        self.background
    }

    pub(crate) fn alive(&self) -> BTreeSet<Number> {
        let withheld = self.builds.iter().filter_map(|build| build.section?.old);
        let in_place = withheld.chain(self.value).map(|publication| publication.value);
        in_place.chain(self.line.iter().copied()).chain(self.strays.clone()).chain(self.orphan).collect()
    }

    pub(crate) fn marks(&self, number: Number) -> u32 {
        self.marks.get(&number).copied().unwrap_or(0)
    }

    pub(crate) fn is_inside_a_build(&self) -> bool {
        self.closures > 0
    }

    pub(crate) fn guards(&self) -> usize {
        self.readers.iter().filter(|(_, hold)| *hold != Hold::Arc).count()
    }

    fn is_read(&self, number: Number) -> bool {
        self.readers.iter().any(|reader| reader.0 == number)
    }

    /// Whether a build keeps a value that was cleared out of its section.
    fn is_withheld(&self, number: Number) -> bool {
        let sections = self.builds.iter().filter_map(|build| build.section);
        sections.into_iter().any(|section| section.old.is_some_and(|old| old.value == number))
    }

    fn freshness(&self) -> Freshness {
        let Some(value) = &self.value else { return Freshness::Empty };
        // While a retry pause runs a value may be served for as long as either window allows.
        let window = if self.pause_runs() { self.pause_window() } else { self.stale_window() };
        match self.lateness(value) {
            Duration::ZERO => Freshness::Fresh,
            lateness if lateness <= window => Freshness::Stale,
            _ => Freshness::Expired,
        }
    }

    /// How far past its time a value is; zero: it is fresh.
    fn lateness(&self, value: &Publication) -> Duration {
        let by_age = self.age(value).saturating_sub(value.ttl);
        // The moment at which it is declared stale is the first at which it is not fresh, as the nanosecond after
        // the ttl is otherwise.
        let by_word = value.declared_stale.map_or(Duration::ZERO, |at| self.now - at + NANOSECOND);
        by_age.max(by_word)
    }

    fn age(&self, value: &Publication) -> Duration {
        self.now - value.at + value.initial_age
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
        self.failures.is_some_and(|failures| self.now - failures.latest_at < self.pause(failures.count))
    }

    /// The pause after so many failures in a row.
    fn pause(&self, failures: u32) -> Duration {
        let default = (Duration::from_millis(100), Duration::from_secs(10));
        let (first, max) = self.settings.retry_backoff.unwrap_or(default);
        (1..failures).fold(first, |pause, _| (pause * 2).min(max))
    }

    /// Whether another caller may be elected in its place. Not under the write lock.
    fn is_overdue(&self, build: BuildId) -> bool {
        let Build { began, section, .. } = &self.builds[build];
        let timeout = self.settings.lease_timeout.unwrap_or(Duration::MAX);
        section.is_none() && self.now - *began > timeout
    }

    fn lease_is_held(&self) -> bool {
        self.lease.is_some_and(|build| !self.is_overdue(build))
    }

    /// What a caller gets in place of the error of a build.
    fn instead_of_error(&mut self, demand: &Demand) -> Option<Number> {
        let value = self.value?;
        let lateness = self.lateness(&value);
        let is_within = |window| lateness == Duration::ZERO || lateness <= window;
        let is_served = self.accepts(demand, &value) && is_within(self.error_window())
            || demand.or_stale && is_within(self.pause_window());
        if is_served && lateness > Duration::ZERO {
            self.stats.served_stale_on_error += 1;
        }
        is_served.then_some(value.value)
    }

    /// Whether it meets the caller's conditions now.
    fn accepts(&self, demand: &Demand, value: &Publication) -> bool {
        self.unmet(demand, value).is_none()
    }

    /// The condition that it does not meet.
    fn unmet(&self, demand: &Demand, value: &Publication) -> Option<&'static str> {
        if demand.after != 0 && value.origin <= demand.after {
            Some("condition: no_cache")
        } else if value.generation <= demand.newer_than {
            Some("condition: newer_than")
        } else if self.age(value) > demand.max_age {
            Some("condition: max_age")
        } else if self.lateness(value) > demand.max_stale {
            Some("condition: max_stale")
        } else {
            None
        }
    }

    /// What a call asks for that is made now.
    pub(crate) fn demand(&self, by: By) -> Demand {
        let (conditions, is_fallible) = match by {
            By::GetOrRefresh | By::LoadOrRefresh | By::Exchange(_) => (Conditions::default(), false),
            By::TryGetOrRefresh => (Conditions::default(), true),
            By::Request(conditions, Finish::Get | Finish::GetWithWriter) => (conditions, false),
            By::Request(conditions, _) => (conditions, true),
        };
        let Conditions { max_stale, max_age, newer_than, no_cache, or_stale, .. } = conditions;
        Demand {
            max_stale: max_stale.unwrap_or(Duration::MAX),
            max_age: max_age.unwrap_or(Duration::MAX),
            newer_than: newer_than.map_or(0, |back| self.newer_than(back)),
            after: if no_cache { self.origins } else { 0 },
            or_stale,
            builds_in_pause: no_cache || !(is_fallible || or_stale),
            is_fallible,
        }
    }

    /// The generation that a caller names: the next one, the current one, or one so far back.
    pub(crate) fn newer_than(&self, back: u64) -> u64 {
        (self.generation + 1).saturating_sub(back)
    }

    /// The moments, yet to come, at which something changes by itself.
    pub(crate) fn moments(&self) -> Vec<Duration> {
        let mut moments = BTreeSet::new();
        if let Some(value) = &self.value {
            let end = value.at.saturating_add(value.ttl).saturating_sub(value.initial_age);
            let late_since = value.declared_stale.map_or(end, |at| end.min(at));
            let windows = [self.settings.stale_while_refresh, self.settings.stale_if_error];
            moments.insert(end);
            moments.extend(windows.into_iter().flatten().map(|window| late_since.saturating_add(window)));
        }
        if let Some(failures) = &self.failures {
            moments.insert(failures.latest_at.saturating_add(self.pause(failures.count)));
        }
        if let (Some(build), Some(timeout)) = (self.lease, self.settings.lease_timeout) {
            moments.insert(self.builds[build].began.saturating_add(timeout));
        }
        moments.into_iter().filter(|moment| *moment >= self.now).collect()
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    pub(crate) fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_insert(0) += 1;
    }
}

/// Readers.
impl Model {
    pub(crate) fn hold(&mut self, number: Number, hold: Hold) {
        self.readers.push((number, hold));
        if hold == Hold::Guard {
            self.meet("guard: not counted");
        }
    }

    pub(crate) fn leave(&mut self, number: Number, hold: Hold) {
        self.forget_reader(number, hold);
        if self.settle() > 0 {
            self.meet("finalised: when its last reader left");
        }
        self.leave_to_the_background();
        if self.orphan == Some(number) && !self.is_read(number) {
            self.orphan = None;
        }
    }

    /// What has come to its turn, and has no reader any more, is finalised. Returns how many those are.
    fn settle(&mut self) -> usize {
        let before = self.finalized.len();
        while let Some(&first) = self.line.front()
            && !self.is_read(first)
            && !self.is_withheld(first)
        {
            self.line.pop_front();
            self.finalized.push(first);
        }
        let strays = std::mem::take(&mut self.strays);
        let (held, gone): (_, BTreeSet<_>) = strays.into_iter().partition(|number| self.is_read(*number));
        self.strays = held;
        if !gone.is_empty() {
            self.meet("finalised: a stray");
            self.finalized_strays.extend(gone);
        }
        let count = self.finalized.len() - before;
        if count > 1 {
            self.meet("finalised: several at once");
        }
        count
    }

    /// What cannot be finalised yet.
    fn leave_to_the_background(&mut self) {
        self.background |= !self.line.is_empty() || !self.strays.is_empty();
    }

    /// This was replaced, if anything was, and its caller sees to it as far as that goes at once, or waits for its readers
    /// if it is to: but not for itself.
    fn let_go(&mut self, replaced: Option<Number>) {
        if self.settle() > 0 {
            self.meet("finalised: at once when it was replaced");
        }
        if let Drain::Wait(patience) = self.settings.drain
            && let Some(replaced) = replaced
            && let Some(place) = self.line.iter().position(|number| *number == replaced)
        {
            let is_ahead = |number: &Number| self.line.iter().take(place + 1).any(|ahead| ahead == number);
            let is_own_guard = |(number, hold): &(Number, Hold)| *hold != Hold::Arc && is_ahead(number);
            if self.readers.iter().any(is_own_guard) {
                self.meet("drain: would wait for a guard of its own");
            } else {
                let end = self.now + patience;
                while self.line.contains(&replaced) && self.now < end {
                    self.let_happen(end);
                }
                self.meet(if self.line.contains(&replaced) {
                    "drain: given up"
                } else {
                    "drain: the readers have left"
                });
            }
        }
        self.leave_to_the_background();
    }

    /// What the runner has seen happen during a wait that comes now.
    pub(crate) fn has_seen(&mut self, events: impl IntoIterator<Item = Event>) {
        self.events.extend(events);
    }

    /// There was no reason to wait for more than that.
    pub(crate) fn check_events(&self) {
        assert!(self.events.is_empty(), "it waits longer than it has to: {:?} is left", self.events);
    }

    /// The next thing that happens during a wait until `end`, which has a reason.
    fn let_happen(&mut self, end: Duration) {
        match self.events.pop_front().expect("it does not wait, or not long enough") {
            Event::TimeIsUp => self.now = end,
            Event::Left(number) => {
                self.forget_reader(number, Hold::Arc);
                self.settle();
            }
        }
    }

    fn forget_reader(&mut self, number: Number, hold: Hold) {
        let position = self.readers.iter().position(|reader| *reader == (number, hold));
        self.readers.swap_remove(position.expect("it reads this"));
    }

    /// Waits until everything that is replaced by now is finalised.
    pub(crate) fn synchronize_within(&mut self, patience: Duration) -> Synchronized {
        let end = self.now + patience;
        let mut synchronized = self.synchronize();
        let has_waited = matches!(synchronized, Synchronized::Not(_)) && self.now < end;
        while matches!(synchronized, Synchronized::Not(_)) && self.now < end {
            self.let_happen(end);
            synchronized = self.synchronize();
        }
        if has_waited {
            self.meet(match synchronized {
                Synchronized::Done => "synchronize: the readers have left",
                _ => "synchronize: given up",
            });
        }
        synchronized
    }

    fn synchronize(&mut self) -> Synchronized {
        let is_of_retired = |reader: &(Number, Hold)| reader.1 != Hold::Arc && self.line.contains(&reader.0);
        let (met, synchronized) = if self.line.is_empty() {
            ("synchronize: done", Synchronized::Done)
        } else if self.readers.iter().any(is_of_retired) {
            let readers = self.readers_of_retired();
            ("synchronize: would wait for a guard of its own", Synchronized::ForItself(readers))
        } else if self.line.iter().any(|number| self.is_withheld(*number)) {
            let readers = self.readers_of_retired();
            ("synchronize: would wait for its own section", Synchronized::ForItself(readers))
        } else {
            ("synchronize: readers", Synchronized::Not(self.readers_of_retired()))
        };
        self.meet(met);
        synchronized
    }
}

/// Builds.
impl Model {
    pub(crate) fn lookup(&mut self, demand: Demand) -> Seen {
        let freshness = self.freshness();
        if let Some(value) = self.value {
            // A stale value is served while a build or a retry pause runs. Else this caller builds.
            let is_quiet = self.lease_is_held() || self.pause_runs();
            let is_fresh = freshness == Freshness::Fresh;
            if is_fresh || (freshness == Freshness::Stale && is_quiet) {
                match self.unmet(&demand, &value) {
                    None => {
                        self.meet(if is_fresh {
                            "condition: met by a fresh value"
                        } else {
                            "condition: met by a stale value"
                        });
                        return Seen::Value(value.value);
                    }
                    Some(unmet) => {
                        self.meet(unmet);
                        if is_fresh {
                            self.meet("condition: a fresh value is too old");
                        }
                    }
                }
            }
        }
        if self.lease_is_held() {
            self.meet("build: not elected, would wait for itself");
            return match self.get() {
                Some(number) if demand.or_stale => {
                    self.meet("or_stale: instead of waiting for itself");
                    Seen::Value(number)
                }
                _ => Seen::Pending,
            };
        }
        if self.pause_runs()
            && let Some(failures) = self.failures
            && failures.error != PANICKED
            && !demand.builds_in_pause
        {
            if let Some(number) = self.instead_of_error(&demand) {
                self.meet("build: not elected, a retry pause runs, an old value instead");
                return Seen::Value(number);
            }
            if demand.is_fallible {
                self.meet("build: not elected, a retry pause runs");
                return Seen::Failed(failures.error);
            }
        }
        if self.pause_runs() {
            self.meet("build: elected in a retry pause");
        }
        self.meet(if self.value.is_some() { "build: elected over a value" } else { "build: elected" });
        self.stats.builds += 1;
        if self.lease.is_some() {
            self.meet("build: superseding another");
            self.stats.superseded += 1;
        }
        let origin = self.next_origin();
        self.builds.push(Build {
            demand,
            began: self.now,
            origin,
            invalidated: false,
            displaced: false,
            section: None,
        });
        let build = self.builds.len() - 1;
        self.lease = Some(build);
        Seen::Elected(build)
    }

    fn next_origin(&mut self) -> usize {
        self.origins += 1;
        self.origins
    }

    pub(crate) fn enter_closure(&mut self) {
        self.closures += 1;
    }

    pub(crate) fn leave_closure(&mut self) {
        self.closures -= 1;
    }

    /// Whether what is in the cell is not for this build to replace. A build whose value was taken away may still write, if
    /// no other has begun: there is nothing to protect.
    fn is_overtaken(&self, build: BuildId) -> bool {
        match self.lease {
            Some(lease) => lease != build,
            None => !self.builds[build].displaced || self.value.is_some(),
        }
    }

    /// Whose readers the lock has to wait for.
    fn in_the_way(&self) -> [(&'static str, bool); 3] {
        let current = self.value.map(|value| value.value);
        let are_read = |numbers: &dyn Fn(Number) -> bool| self.readers.iter().any(|reader| numbers(reader.0));
        [
            ("lock: readers of the current value", are_read(&|number| Some(number) == current)),
            ("lock: readers of a retired value", are_read(&|number| self.line.contains(&number))),
            ("lock: readers of a stray", are_read(&|number| self.strays.contains(&number))),
        ]
    }

    /// Whether [`lock`](Model::lock) would have to wait.
    pub(crate) fn would_block(&self, build: BuildId) -> bool {
        self.guards() == 0
            && self.builds[build].section.is_none()
            && !self.is_overtaken(build)
            && self.in_the_way().iter().any(|(_, are_there)| *are_there)
    }

    pub(crate) fn lock(&mut self, build: BuildId) -> Locked {
        let is_overtaken = self.is_overtaken(build);
        let readers = self.in_the_way();
        let readers = readers.into_iter().filter_map(|(met, are_there)| are_there.then_some(met));
        let readers = readers.collect::<Vec<_>>();
        let (met, locked) = if self.guards() > 0 {
            // At least the guard.
            let counted = self.readers();
            let readers = (*counted.start()).max(1)..=(*counted.end()).max(1);
            ("lock: would wait for a guard of its own", Locked::ForItself(readers))
        } else if let Some(section) = self.builds[build].section {
            ("lock: granted again", Locked::Over(section.old.map(|old| old.value)))
        } else if is_overtaken {
            let Build { origin, displaced, .. } = self.builds[build];
            let met = match self.value {
                _ if !displaced => "lock: superseded",
                Some(value) if value.origin > origin => "lock: overtaken by a set",
                _ => "lock: overtaken, because it was revoked",
            };
            // They are not what is in the way.
            (met, Locked::Overtaken(0..=*self.readers().end()))
        } else if readers.is_empty() {
            self.enter_section(build)
        } else {
            for met in &readers {
                self.meet(met);
            }
            let strays = self.readers.iter().filter(|reader| self.strays.contains(&reader.0)).count();
            let others = self.readers();
            let count = others.start() + strays..=others.end() + strays;
            (
                if readers.len() > 1 { "lock: readers of several" } else { "lock: readers" },
                Locked::StillRead(count),
            )
        };
        self.meet(met);
        locked
    }

    /// Waits for the lock.
    pub(crate) fn lock_within(&mut self, build: BuildId, patience: Duration) -> Locked {
        let end = self.now + patience;
        let mut locked = self.lock(build);
        let has_waited = matches!(locked, Locked::StillRead(_)) && self.now < end;
        while matches!(locked, Locked::StillRead(_)) && self.now < end {
            self.let_happen(end);
            locked = self.lock(build);
        }
        if has_waited {
            self.meet(match locked {
                Locked::StillRead(_) => "lock: given up",
                _ => "lock: the readers have left",
            });
        }
        locked
    }

    fn enter_section(&mut self, build: BuildId) -> (&'static str, Locked) {
        let met = match self.freshness() {
            Freshness::Empty => "lock: granted over nothing",
            Freshness::Expired => "lock: granted over an expired value",
            Freshness::Fresh | Freshness::Stale => "lock: granted over an old value",
        };
        if self.lease.replace(build).is_none() {
            self.meet("lock: granted to a build without a lease");
        }
        if met == "lock: granted over an old value"
            && self.freshness() == Freshness::Fresh
            && self.builds[build].demand.after > 0
        {
            self.meet("condition: no_cache, and a section over a fresh value");
        }
        let old = self.value.take();
        self.builds[build].section = Some(Section { old, cleared: false });
        (met, Locked::Over(old.map(|old| old.value)))
    }

    /// Changes the old value in place. Its number, if the build has the lock and there is one.
    pub(crate) fn mark(&mut self, build: BuildId) -> Option<Number> {
        let old = self.builds[build].section?.old?;
        *self.marks.entry(old.value).or_insert(0) += 1;
        Some(old.value)
    }

    /// A build ends with a value. What its caller gets, and holds.
    pub(crate) fn publish(&mut self, build: BuildId, value: Number, hold: Hold) -> Number {
        self.note_duration(build);
        let has_the_lease = self.end(build);
        let Build { invalidated, displaced, origin, .. } = self.builds[build];
        let section = self.builds[build].section.take();
        let mut replaced = section.and_then(|section| section.old).map(|old| old.value);
        let served = if displaced || !has_the_lease {
            self.strays.insert(value);
            // If it has the write lock, the old value was cleared.
            self.not_published(build, value, section)
        } else {
            let old = match section {
                Some(section) => {
                    self.meet("section: published");
                    section.old
                }
                None => self.value,
            };
            if old.is_some_and(|old| old.origin == 0 || old.origin > origin) {
                self.meet("end: published over a restored value");
            }
            replaced = old.map(|old| old.value);
            self.line.extend(replaced);
            self.meet(if invalidated { "end: published as stale" } else { "end: published" });
            self.stats.fenced += u64::from(invalidated);
            let declared_stale = invalidated.then_some(self.now);
            self.make_visible(Publication { declared_stale, ..self.publication(value, origin) });
            value
        };
        self.hold(served, hold);
        self.let_go(replaced);
        served
    }

    /// A build ends with "not modified". What its caller gets, and holds. The build has `previous` in its hands until now.
    pub(crate) fn renew(&mut self, build: BuildId, previous: Number) -> Number {
        self.note_duration(build);
        let has_the_lease = self.end(build);
        let Build { invalidated, displaced, origin, .. } = self.builds[build];
        let is_gone = has_the_lease && self.value.is_none_or(|value| value.value != previous);
        let served = if is_gone && !displaced {
            self.meet("end: renewed, and gone from the cell");
            self.stats.fenced += 1;
            self.acceptable(build).unwrap_or(previous)
        } else if displaced || !has_the_lease {
            self.not_published(build, previous, None)
        } else {
            self.meet("end: renewed");
            self.stats.fenced += u64::from(invalidated);
            let declared_stale = invalidated.then_some(self.now);
            self.make_visible(Publication { declared_stale, ..self.publication(previous, origin) });
            previous
        };
        self.hold(served, Hold::Arc);
        self.leave(previous, Hold::Arc);
        served
    }

    /// What the caller of a build gets whose result cannot be published: what the cell serves, if that will do.
    fn not_published(&mut self, build: BuildId, value: Number, section: Option<Section>) -> Number {
        let instead = self.acceptable(build);
        let met = if self.builds[build].displaced {
            self.stats.fenced += 1;
            match (section, instead) {
                (Some(Section { cleared: true, .. }), _) => Some("section: cleared, and fenced"),
                (_, Some(_)) => Some("end: fenced, and the cell's value served"),
                (_, None) if self.get().is_some() => Some("end: fenced, and the cell's value will not do"),
                (_, None) => Some("end: fenced, and its own value served"),
            }
        } else {
            self.meet("end: superseded");
            instead.is_none().then_some("end: superseded, and its own value served")
        };
        if let Some(met) = met {
            self.meet(met);
        }
        instead.unwrap_or(value)
    }

    /// What the cell serves now, if the build's caller accepts it.
    fn acceptable(&self, build: BuildId) -> Option<Number> {
        let value = self.value.filter(|value| self.accepts(&self.builds[build].demand, value))?;
        self.get().filter(|number| *number == value.value)
    }

    fn note_duration(&mut self, build: BuildId) {
        self.stats.last_build = Some(self.now - self.builds[build].began);
    }

    /// A build ends with an error. What its caller gets instead, and holds.
    pub(crate) fn fail(&mut self, build: BuildId) -> Result<Number, &'static str> {
        self.fail_with(build, FAILED)
    }

    /// A build ends with "not modified", and there was nothing before.
    pub(crate) fn renew_nothing(&mut self, build: BuildId) -> Result<Number, &'static str> {
        self.meet("end: renewed, where nothing was");
        self.fail_with(build, NOTHING_TO_KEEP)
    }

    fn fail_with(&mut self, build: BuildId, error: &'static str) -> Result<Number, &'static str> {
        self.stats.failed += 1;
        self.note_duration(build);
        self.give_up(build, error);
        let demand = self.builds[build].demand;
        let is_fresh = self.freshness() == Freshness::Fresh;
        let Some(number) = self.instead_of_error(&demand) else {
            self.meet("end: error");
            return Err(error);
        };
        self.meet(if is_fresh {
            "end: error, and a fresh value instead"
        } else {
            "end: error, and a stale value instead"
        });
        self.hold(number, Hold::Arc);
        Ok(number)
    }

    pub(crate) fn panic(&mut self, build: BuildId) {
        self.stats.panicked += 1;
        self.meet("end: panic");
        self.give_up(build, PANICKED);
    }

    fn give_up(&mut self, build: BuildId, error: &'static str) {
        let has_the_lease = self.end(build);
        let section = self.builds[build].section.take();
        self.put_back(section);
        if self.builds[build].displaced {
            self.meet("end: error of a displaced build");
        } else if has_the_lease {
            let count = self.failures.map_or(0, |failures| failures.count) + 1;
            self.failures = Some(Failures { count, latest_at: self.now, error });
        }
        self.let_go(None);
    }

    /// What a section does with the old value that it does not replace.
    fn put_back(&mut self, section: Option<Section>) {
        let Some(Section { old, cleared }) = section else { return };
        if cleared {
            self.meet("section: cleared, and failed");
            // It cannot be put back, and its caller does not wait for it.
            self.background = true;
        } else if let Some(old) = old {
            self.meet(match self.marks(old.value) {
                0 => "section: put back",
                _ => "section: put back, changed",
            });
            self.value = Some(old);
        }
    }

    /// The build lets go of the lease. Whether it still had it.
    fn end(&mut self, build: BuildId) -> bool {
        self.lease.take_if(|lease| *lease == build).is_some()
    }

    /// What is published now as usual, and is the next generation then.
    fn publication(&self, value: Number, origin: usize) -> Publication {
        Publication {
            value,
            generation: self.generation + 1,
            origin,
            at: self.now,
            initial_age: Duration::ZERO,
            ttl: self.settings.ttl,
            declared_stale: None,
        }
    }

    fn make_visible(&mut self, publication: Publication) {
        self.stats.published += 1;
        self.generation += 1;
        self.failures = None;
        self.value = Some(publication);
    }
}

/// Writes.
impl Model {
    pub(crate) fn advance_to(&mut self, now: Duration) {
        self.now = now;
    }

    /// Whether it is done. Else, which is from inside a section, the value is finalised like any that never came into
    /// the cell.
    pub(crate) fn set(&mut self, value: Number, how: How) -> bool {
        if self.builds.iter().any(|build| build.section.is_some()) {
            self.meet("section: a set from inside");
            self.background = true;
            self.finalized_strays.insert(value);
            return false;
        }
        let origin = self.next_origin();
        let mut publication = self.publication(value, origin);
        match how {
            How::AsPolicySays => self.displace(),
            How::For(ttl) => {
                publication.ttl = ttl;
                self.displace();
            }
            How::Restored(age) => {
                publication.initial_age = age;
                if !age.is_zero() {
                    // It was made before any call.
                    publication.origin = 0;
                }
                if self.lease.is_some() {
                    self.meet("restore: under a build");
                }
            }
        }
        let replaced = self.value.map(|old| old.value);
        self.line.extend(replaced);
        self.make_visible(publication);
        if let How::Restored(_) = how {
            self.meet(match self.freshness() {
                Freshness::Fresh => "restore: fresh",
                Freshness::Stale => "restore: stale",
                _ => "restore: expired",
            });
        }
        // Its caller gets it at the end of the wait, which makes no difference to others.
        self.hold(value, Hold::Arc);
        self.let_go(replaced);
        true
    }

    /// No build that runs can be published any more. It loses the lease, unless it has the write lock.
    fn displace(&mut self) {
        for build in &mut self.builds {
            build.displaced = true;
        }
        self.lease = self.lease.filter(|lease| self.builds[*lease].section.is_some());
    }

    pub(crate) fn invalidate(&mut self) {
        for build in &mut self.builds {
            build.invalidated = true;
        }
        let withheld = self.builds.iter_mut().filter_map(|build| build.section.as_mut()?.old.as_mut());
        for publication in withheld.chain(&mut self.value) {
            publication.declared_stale.get_or_insert(self.now);
        }
    }

    pub(crate) fn invalidate_if_current(&mut self, seen: Number) -> bool {
        let (met, is_done) = match self.value {
            Some(value) if value.value != seen => ("invalidate_if_current: not current", false),
            None => ("invalidate_if_current: not current", false),
            Some(value) if value.declared_stale.is_some() => ("invalidate_if_current: done before", false),
            Some(_) if self.lease.is_some() => ("invalidate_if_current: during a build", true),
            Some(_) => ("invalidate_if_current: done", true),
        };
        self.meet(met);
        if is_done {
            self.invalidate();
        }
        is_done
    }

    pub(crate) fn clear(&mut self) {
        for build in &mut self.builds {
            if let Some(section) = &mut build.section
                && !std::mem::replace(&mut section.cleared, true)
            {
                self.line.extend(section.old.map(|old| old.value));
            }
        }
        self.displace();
        let replaced = self.value.take().map(|old| old.value);
        self.line.extend(replaced);
        self.let_go(replaced);
    }

    pub(crate) fn reset(&mut self) {
        if self.failures.take().is_some() {
            self.meet("reset: a cell with failures");
        }
        if self.lease.is_some() {
            self.meet("reset: during a build");
        }
        self.stats = Stats::default();
        self.clear();
    }

    /// Whether a build runs that can be kept from being published.
    pub(crate) fn revoke(&mut self) -> bool {
        let Some(lease) = self.lease else { return false };
        if self.builds[lease].section.is_some() {
            self.meet("revoke: a section");
            return false;
        }
        self.meet("revoke: a build");
        self.displace();
        true
    }

    /// The cell is dropped.
    pub(crate) fn drop_cell(&mut self) {
        let value = self.value.take().map(|value| value.value);
        self.orphan = value.filter(|value| self.is_read(*value));
        self.meet(match (value, self.orphan) {
            (None, _) => "drop: an empty cell",
            (Some(_), None) => "drop: the value goes with the cell",
            (Some(_), Some(_)) => "drop: the value is still read",
        });
        if !self.line.is_empty() {
            self.meet("drop: retired values are still read");
        }
    }
}
