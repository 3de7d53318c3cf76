//! What the contract says a cell does, for one thread, as plainly as it can be said.
//!
//! Values are numbers. Time is a [`Duration`] since the clock began, an age is a difference. Who reads which value is
//! a list; who is to be finalised, and when, is asked of that list anew each time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

use dogpile::{Drain, Freshness, Stats};

pub(crate) type Number = usize;
pub(crate) type BuildId = usize;

const NANOSECOND: Duration = Duration::from_nanos(1);

/// What the cell is made with. `Duration::MAX`: for ever.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// What may be served, or that the latest build failed, while a retry pause runs.
    ValueOrError,
    /// What may be served.
    Value,
    Fresh,
    /// A value whose build began after the call.
    New,
}

/// What a look at the cell finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Value(Number),
    Elected(BuildId),
    /// There is nothing to serve, and somebody builds.
    Pending,
    /// There is nothing to serve, and a retry pause runs.
    Failed,
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
    pub(crate) stats: Stats,
}

/// A value that was published.
#[derive(Clone, Copy, Debug)]
struct Publication {
    value: Number,
    at: Duration,
    declared_stale: Option<Duration>,
}

/// A build, from its election on.
#[derive(Debug)]
struct Build {
    want: Want,
    began: Duration,
    /// The cell's generation when it began.
    generation: u64,
    /// Whether `invalidate` was called since.
    invalidated: bool,
    /// Whether `set` or `clear` was called since.
    displaced: bool,
    section: Option<Section>,
}

/// The failures since the latest publication.
#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    latest_at: Duration,
    /// It was an error, not a panic.
    is_error: bool,
}

/// What has happened while the one thread waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody who read this has left.
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
    stats: Stats,
    failures: Option<Failures>,
    builds: Vec<Build>,
    /// Who holds the lease.
    lease: Option<BuildId>,
    /// How many builds are on the stack of the one thread.
    closures: usize,
    /// Everybody who reads something.
    readers: Vec<(Number, Hold)>,
    /// What was replaced and is not finalised yet, in the order in which it was replaced.
    line: VecDeque<Number>,
    /// What was replaced and is finalised, in the order in which that was done.
    finalized: Vec<Number>,
    /// What never came into the cell: still held, and finalised.
    strays: BTreeSet<Number>,
    finalized_strays: BTreeSet<Number>,
    /// What was in the cell when it was dropped, as long as somebody reads it.
    orphan: Option<Number>,
    /// Something has been left for the cell's own thread to finalise.
    background: bool,
    marks: BTreeMap<Number, u32>,
    /// What has happened during the wait that the model is to follow.
    events: VecDeque<Event>,
    /// What has come up, and how often.
    pub(crate) met: BTreeMap<&'static str, u64>,
}

/// What must come up in a run that is worth anything.
pub(crate) const WORTH_MEETING: [&str; 51] = [
    "build: elected",
    "build: elected over a value",
    "build: superseding another",
    "build: not elected, would wait for itself",
    "build: not elected, a retry pause runs",
    "drain: given up",
    "drain: the readers have left",
    "drain: would wait for a guard of its own",
    "drop: an empty cell",
    "drop: the value goes with the cell",
    "drop: the value is still read",
    "drop: retired values are still read",
    "end: error",
    "end: error, and a stale value instead",
    "end: fenced, by a clear",
    "end: fenced, by a set",
    "end: panic",
    "end: published",
    "end: published as stale",
    "end: superseded",
    "end: superseded, and its own value served",
    "finalised: when its last reader left",
    "finalised: at once when it was replaced",
    "finalised: several at once",
    "finalised: a stray",
    "guard: not counted",
    "lock: given up",
    "lock: the readers have left",
    "lock: granted over an old value",
    "lock: granted over an expired value",
    "lock: granted over nothing",
    "lock: granted again",
    "lock: would wait for a guard of its own",
    "lock: overtaken by a set",
    "lock: readers of the current value",
    "lock: readers of a retired value",
    "lock: readers of a stray",
    "lock: readers of several",
    "lock: superseded",
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
        Self {
            settings,
            now: Duration::ZERO,
            value: None,
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
            background: false,
            marks: BTreeMap::new(),
            events: VecDeque::new(),
            met: BTreeMap::new(),
        }
    }

    pub(crate) fn view(&self) -> View {
        View {
            get: self.get(),
            load: self.get(),
            freshness: self.freshness(),
            generation: self.stats.published,
            is_refreshing: self.lease.is_some(),
            retired: self.retired(),
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
        let by_age = (self.now - value.at).saturating_sub(self.settings.ttl);
        // The moment at which it is declared stale is the first at which it is not fresh, as the nanosecond after
        // the ttl is otherwise.
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
        self.failures.is_some_and(|failures| self.now - failures.latest_at < self.pause(failures.count))
    }

    /// The pause after so many failures in a row.
    fn pause(&self, failures: u32) -> Duration {
        let Some((first, max)) = self.settings.retry_backoff else { return Duration::ZERO };
        (1..failures).fold(first, |pause, _| (pause * 2).min(max))
    }

    /// Whether somebody else may be elected in its place. Not under the write lock.
    fn is_overdue(&self, build: BuildId) -> bool {
        let Build { began, section, .. } = &self.builds[build];
        let timeout = self.settings.lease_timeout.unwrap_or(Duration::MAX);
        section.is_none() && self.now - *began > timeout
    }

    fn lease_is_held(&self) -> bool {
        self.lease.is_some_and(|build| !self.is_overdue(build))
    }

    /// What the caller of a build that failed gets instead of the error.
    fn instead_of_error(&self) -> Option<Number> {
        self.value.filter(|value| self.lateness(value) <= self.error_window()).map(|value| value.value)
    }

    /// The moments, yet to come, at which something changes by itself.
    pub(crate) fn moments(&self) -> Vec<Duration> {
        let mut moments = BTreeSet::new();
        if let Some(value) = &self.value {
            let end = value.at.saturating_add(self.settings.ttl);
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
    pub(crate) fn lookup(&mut self, want: Want) -> Seen {
        let freshness = self.freshness();
        if let Some(value) = self.value {
            let may_be_served = match want {
                Want::ValueOrError | Want::Value => {
                    let is_dealt_with = self.lease_is_held() || self.pause_runs();
                    freshness == Freshness::Fresh || (freshness == Freshness::Stale && is_dealt_with)
                }
                Want::Fresh => freshness == Freshness::Fresh,
                Want::New => false,
            };
            if may_be_served {
                return Seen::Value(value.value);
            }
        }
        if self.lease_is_held() {
            self.meet("build: not elected, would wait for itself");
            return Seen::Pending;
        }
        if want == Want::ValueOrError
            && self.pause_runs()
            && self.failures.is_some_and(|failures| failures.is_error)
            && freshness != Freshness::Stale
        {
            self.meet("build: not elected, a retry pause runs");
            return Seen::Failed;
        }
        self.meet(if self.value.is_some() { "build: elected over a value" } else { "build: elected" });
        self.stats.builds += 1;
        if self.lease.is_some() {
            self.meet("build: superseding another");
            self.stats.superseded += 1;
        }
        self.builds.push(Build {
            want,
            began: self.now,
            generation: self.stats.published,
            invalidated: false,
            displaced: false,
            section: None,
        });
        let build = self.builds.len() - 1;
        self.lease = Some(build);
        Seen::Elected(build)
    }

    pub(crate) fn enter_closure(&mut self) {
        self.closures += 1;
    }

    pub(crate) fn leave_closure(&mut self) {
        self.closures -= 1;
    }

    /// Whether what is in the cell is not for this build to replace.
    fn is_overtaken(&self, build: BuildId) -> bool {
        self.lease != Some(build) || (self.builds[build].displaced && self.value.is_some())
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
            let met = if self.lease == Some(build) { "lock: overtaken by a set" } else { "lock: superseded" };
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
        let has_the_lease = self.end(build);
        let Build { began, invalidated, displaced, .. } = self.builds[build];
        self.stats.last_build = Some(self.now - began);
        let section = self.builds[build].section.take();
        let mut replaced = section.and_then(|section| section.old).map(|old| old.value);
        let served = if !has_the_lease {
            self.strays.insert(value);
            self.meet("end: superseded");
            let served = self.instead_of_a_late_result(build);
            if served.is_none() {
                self.meet("end: superseded, and its own value served");
            }
            served.unwrap_or(value)
        } else if displaced {
            self.strays.insert(value);
            self.stats.fenced += 1;
            self.put_back(section);
            self.meet(match (section, &self.value) {
                (Some(section), _) if section.cleared => "section: cleared, and fenced",
                (_, None) => "end: fenced, by a clear",
                (_, Some(_)) => "end: fenced, by a set",
            });
            self.value.map_or(value, |value| value.value)
        } else {
            let old = match section {
                Some(section) => {
                    self.meet("section: published");
                    section.old
                }
                None => self.value,
            };
            replaced = old.map(|old| old.value);
            self.line.extend(replaced);
            self.meet(if invalidated { "end: published as stale" } else { "end: published" });
            self.stats.fenced += u64::from(invalidated);
            self.make_visible(value, invalidated.then_some(self.now));
            value
        };
        self.hold(served, hold);
        self.let_go(replaced);
        served
    }

    /// What the caller of a build that was superseded gets instead of its own value: what it asked for, if the cell
    /// has that.
    fn instead_of_a_late_result(&self, build: BuildId) -> Option<Number> {
        let Build { want, generation, .. } = self.builds[build];
        let is_what_it_asked_for = match want {
            Want::ValueOrError | Want::Value => self.get().is_some(),
            Want::Fresh => self.freshness() == Freshness::Fresh,
            // A value that is newer than the call, of whatever age: it is handed over, as to one who has waited.
            Want::New => self.stats.published > generation,
        };
        self.value.filter(|_| is_what_it_asked_for).map(|value| value.value)
    }

    /// A build ends with an error. What its caller gets instead, and holds.
    pub(crate) fn fail(&mut self, build: BuildId) -> Option<Number> {
        self.stats.failed += 1;
        self.stats.last_build = Some(self.now - self.builds[build].began);
        self.give_up(build, true);
        let instead = self.instead_of_error();
        if let Some(number) = instead {
            self.meet("end: error, and a stale value instead");
            self.hold(number, Hold::Arc);
        } else {
            self.meet("end: error");
        }
        instead
    }

    pub(crate) fn panic(&mut self, build: BuildId) {
        self.stats.panicked += 1;
        self.meet("end: panic");
        self.give_up(build, false);
    }

    fn give_up(&mut self, build: BuildId, is_error: bool) {
        let has_the_lease = self.end(build);
        let section = self.builds[build].section.take();
        self.put_back(section);
        // A value that was set meanwhile is not the one that could not be replaced.
        if has_the_lease && self.builds[build].generation == self.stats.published {
            let count = self.failures.map_or(0, |failures| failures.count) + 1;
            self.failures = Some(Failures { count, latest_at: self.now, is_error });
        }
        self.let_go(None);
    }

    /// What a section does with the old value that it does not replace.
    fn put_back(&mut self, section: Option<Section>) {
        let Some(Section { old, cleared }) = section else { return };
        if cleared {
            self.meet("section: cleared, and failed");
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

    fn make_visible(&mut self, value: Number, declared_stale: Option<Duration>) {
        self.stats.published += 1;
        self.failures = None;
        self.value = Some(Publication { value, at: self.now, declared_stale });
    }
}

/// Writes.
impl Model {
    pub(crate) fn advance_to(&mut self, now: Duration) {
        self.now = now;
    }

    /// Whether it is done. Else, which is from inside a section, the value is finalised like any that never came into
    /// the cell.
    pub(crate) fn set(&mut self, value: Number) -> bool {
        if self.builds.iter().any(|build| build.section.is_some()) {
            self.meet("section: a set from inside");
            self.background = true;
            self.finalized_strays.insert(value);
            return false;
        }
        for build in &mut self.builds {
            build.displaced = true;
        }
        let replaced = self.value.map(|old| old.value);
        self.line.extend(replaced);
        self.make_visible(value, None);
        // Its caller gets it at the end of the wait, which nobody can tell.
        self.hold(value, Hold::Arc);
        self.let_go(replaced);
        true
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

    pub(crate) fn clear(&mut self) {
        for build in &mut self.builds {
            build.displaced = true;
            if let Some(section) = &mut build.section
                && !std::mem::replace(&mut section.cleared, true)
            {
                self.line.extend(section.old.map(|old| old.value));
            }
        }
        let replaced = self.value.take().map(|old| old.value);
        self.line.extend(replaced);
        self.let_go(replaced);
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
