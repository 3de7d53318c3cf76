//! What only a `SyncReaderCell` has: readers that are counted, values that are finalised in order when they have no
//! reader any more, the write lock, and waits for readers.
//!
//! The readers are a list. Which values are to be finalised, and when, is asked of that list anew each time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::ops::RangeInclusive;
use std::time::Duration;

use dogpile::{Drain, Freshness};

use super::{BuildId, Model, Number, Publication};

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

/// What has happened while the one thread waited for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A reader of this has left.
    Left(Number),
    /// The clock moved on to the end of the wait.
    TimeIsUp,
}

/// A build has the write lock, and the old value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    old: Option<Publication>,
    /// The old value is not to be put back.
    cleared: bool,
}

/// What a call has still to do when its build has ended.
#[derive(Clone, Copy, Debug)]
enum Unfinished {
    /// Lets go of this value, which was replaced, if any was.
    LetGo(Option<Number>),
    /// Drops its handle to the previous value, which it kept for "not modified".
    Leave(Number),
}

/// The readers, and the values that were replaced. Empty for a `DogpileCell`.
#[derive(Clone, Debug, Default)]
pub(super) struct Draining {
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
    unfinished: Option<Unfinished>,
}

impl Draining {
    pub(super) fn new(drain: Option<Drain>) -> Self {
        Self { background: drain == Some(Drain::Background), ..Self::default() }
    }

    fn is_read(&self, number: Number) -> bool {
        self.readers.iter().any(|reader| reader.0 == number)
    }
}

/// Questions.
impl Model {
    pub(crate) fn is_of_sync_readers(&self) -> bool {
        self.settings.drain.is_some()
    }

    /// Replaced values whose finalizer has not finished.
    pub(crate) fn retired(&self) -> usize {
        self.draining.line.len()
    }

    /// Readers of the current and of retired values.
    pub(crate) fn readers(&self) -> RangeInclusive<usize> {
        let current = self.value();
        let retired = self.readers_of_retired();
        let readers = &self.draining.readers;
        let with = |hold| readers.iter().filter(move |reader| Some(reader.0) == current && reader.1 == hold);
        let counted = with(Hold::Arc).count() + *retired.start();
        counted..=counted + with(Hold::CountedGuard).count()
    }

    /// Readers of values that were replaced; here guards count as well.
    fn readers_of_retired(&self) -> RangeInclusive<usize> {
        let Draining { readers, line, .. } = &self.draining;
        let count = readers.iter().filter(|(number, _)| line.contains(number)).count();
        count..=count
    }

    /// In the order in which they have to be; all but the strays, which have no place in it.
    pub(crate) fn finalized(&self) -> &[Number] {
        &self.draining.finalized
    }

    pub(crate) fn finalized_strays(&self) -> &BTreeSet<Number> {
        &self.draining.finalized_strays
    }

    pub(crate) fn drain(&self) -> Option<Drain> {
        self.settings.drain
    }

    pub(crate) fn is_left_to_the_background(&self) -> bool {
        self.draining.background
    }

    /// The values of a `SyncReaderCell` that are alive.
    pub(super) fn not_finalized(&self) -> BTreeSet<Number> {
        let Draining { line, strays, orphan, .. } = &self.draining;
        let withheld = self.builds.iter().filter_map(|build| build.section?.old);
        let in_place = withheld.chain(self.value).map(|publication| publication.value);
        in_place.chain(line.iter().copied()).chain(strays.clone()).chain(*orphan).collect()
    }

    /// How often a build has changed this value in place.
    pub(crate) fn marks(&self, number: Number) -> u32 {
        self.draining.marks.get(&number).copied().unwrap_or(0)
    }

    pub(crate) fn guards(&self) -> usize {
        self.draining.readers.iter().filter(|(_, hold)| *hold != Hold::Arc).count()
    }

    /// Whether a build keeps a value that was cleared out of its section.
    fn is_withheld(&self, number: Number) -> bool {
        let mut sections = self.builds.iter().filter_map(|build| build.section);
        sections.any(|section| section.old.is_some_and(|old| old.value == number))
    }
}

/// Readers.
impl Model {
    pub(crate) fn hold(&mut self, number: Number, hold: Hold) {
        if !self.is_of_sync_readers() {
            return;
        }
        self.draining.readers.push((number, hold));
        if hold == Hold::Guard {
            self.meet("guard: not counted");
        }
    }

    pub(crate) fn leave(&mut self, number: Number, hold: Hold) {
        if !self.is_of_sync_readers() {
            return;
        }
        self.forget_reader(number, hold);
        if self.finalize() > 0 {
            self.meet("finalised: when its last reader left");
        }
        self.leave_to_the_background();
        if self.draining.orphan == Some(number) && !self.draining.is_read(number) {
            self.draining.orphan = None;
        }
    }

    fn forget_reader(&mut self, number: Number, hold: Hold) {
        let readers = &mut self.draining.readers;
        let position = readers.iter().position(|reader| *reader == (number, hold));
        readers.swap_remove(position.expect("it reads this"));
    }

    /// What has come to its turn, and has no reader any more, is finalised. Returns how many those are.
    fn finalize(&mut self) -> usize {
        let before = self.draining.finalized.len();
        while let Some(&first) = self.draining.line.front()
            && !self.draining.is_read(first)
            && !self.is_withheld(first)
        {
            self.draining.line.pop_front();
            self.draining.finalized.push(first);
        }
        let strays = mem::take(&mut self.draining.strays);
        let (held, gone): (_, BTreeSet<_>) =
            strays.into_iter().partition(|number| self.draining.is_read(*number));
        self.draining.strays = held;
        if !gone.is_empty() {
            self.meet("finalised: a stray");
            self.draining.finalized_strays.extend(gone);
        }
        let count = self.draining.finalized.len() - before;
        if count > 1 {
            self.meet("finalised: several at once");
        }
        count
    }

    /// What cannot be finalised yet.
    fn leave_to_the_background(&mut self) {
        let Draining { line, strays, background, .. } = &mut self.draining;
        *background |= !line.is_empty() || !strays.is_empty();
    }

    /// This was replaced, and is to be finalised after what was replaced before it.
    pub(super) fn retire(&mut self, replaced: Option<Number>) {
        if self.is_of_sync_readers() {
            self.draining.line.extend(replaced);
        }
    }

    /// This was replaced, if anything was, and its caller sees to it as far as that goes at once, or waits for its readers
    /// if it is to: but not for itself.
    pub(super) fn let_go(&mut self, replaced: Option<Number>) {
        if self.finalize() > 0 {
            self.meet("finalised: at once when it was replaced");
        }
        let line = &self.draining.line;
        if let Some(Drain::Wait(patience)) = self.settings.drain
            && let Some(replaced) = replaced
            && let Some(place) = line.iter().position(|number| *number == replaced)
        {
            let is_ahead = |number: &Number| line.iter().take(place + 1).any(|ahead| ahead == number);
            let is_own_guard = |(number, hold): &(Number, Hold)| *hold != Hold::Arc && is_ahead(number);
            if self.draining.readers.iter().any(is_own_guard) {
                self.meet("drain: would wait for a guard of its own");
            } else {
                let end = self.now + patience;
                while self.draining.line.contains(&replaced) && self.now < end {
                    self.let_happen(end);
                }
                self.meet(if self.draining.line.contains(&replaced) {
                    "drain: given up"
                } else {
                    "drain: the readers have left"
                });
            }
        }
        self.leave_to_the_background();
    }

    /// A build has ended. Its call does the rest before it returns: it may wait for readers.
    pub(super) fn will_let_go(&mut self, replaced: Option<Number>) {
        self.draining.unfinished = Some(Unfinished::LetGo(replaced));
    }

    /// The build of a call that has been given `previous`, a handle, has renewed that.
    pub(super) fn will_leave(&mut self, previous: Number) {
        self.draining.unfinished = Some(Unfinished::Leave(previous));
    }

    /// A call that may have built returns, with this value if it returns one, which its caller holds.
    pub(crate) fn call_returns(&mut self, value: Option<Number>, hold: Hold) {
        if let Some(number) = value {
            self.hold(number, hold);
        }
        match self.draining.unfinished.take() {
            Some(Unfinished::LetGo(replaced)) => self.let_go(replaced),
            Some(Unfinished::Leave(previous)) => self.leave(previous, Hold::Arc),
            None => {}
        }
    }

    /// What the runner has seen happen during a wait that comes now.
    pub(crate) fn has_seen(&mut self, events: impl IntoIterator<Item = Event>) {
        self.draining.events.extend(events);
    }

    /// There was no reason to wait for more than that.
    pub(crate) fn check_events(&self) {
        let events = &self.draining.events;
        assert!(events.is_empty(), "it waits longer than it has to: {events:?} is left");
    }

    /// The next thing that happens during a wait until `end`, which has a reason.
    fn let_happen(&mut self, end: Duration) {
        match self.draining.events.pop_front().expect("it does not wait, or not long enough") {
            Event::TimeIsUp => self.now = end,
            Event::Left(number) => {
                self.forget_reader(number, Hold::Arc);
                self.finalize();
            }
        }
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
        let Draining { readers, line, .. } = &self.draining;
        let is_of_retired = |reader: &(Number, Hold)| reader.1 != Hold::Arc && line.contains(&reader.0);
        let (met, synchronized) = if line.is_empty() {
            ("synchronize: done", Synchronized::Done)
        } else if readers.iter().any(is_of_retired) {
            let readers = self.readers_of_retired();
            ("synchronize: would wait for a guard of its own", Synchronized::ForItself(readers))
        } else if line.iter().any(|number| self.is_withheld(*number)) {
            let readers = self.readers_of_retired();
            ("synchronize: would wait for its own section", Synchronized::ForItself(readers))
        } else {
            ("synchronize: readers", Synchronized::Not(self.readers_of_retired()))
        };
        self.meet(met);
        synchronized
    }
}

/// The write lock.
impl Model {
    /// Whether what is in the cell is not for this build to replace. A build whose value was taken away may still write, if
    /// no other has begun: there is nothing to protect.
    fn is_overtaken(&self, build: BuildId) -> bool {
        match self.lease {
            Some(lease) => lease != build,
            None => !self.builds[build].is_displaced || self.value.is_some(),
        }
    }

    /// Whose readers the lock has to wait for.
    fn in_the_way(&self) -> [(&'static str, bool); 3] {
        let Draining { readers, line, strays, .. } = &self.draining;
        let current = self.value();
        let are_read = |numbers: &dyn Fn(Number) -> bool| readers.iter().any(|reader| numbers(reader.0));
        [
            ("lock: readers of the current value", are_read(&|number| Some(number) == current)),
            ("lock: readers of a retired value", are_read(&|number| line.contains(&number))),
            ("lock: readers of a stray", are_read(&|number| strays.contains(&number))),
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
            let met = match self.value {
                _ if !self.builds[build].is_displaced => "lock: superseded",
                Some(value) if value.begun > self.builds[build].begun => "lock: overtaken by a set",
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
            let Draining { readers: all, strays, .. } = &self.draining;
            let strays = all.iter().filter(|reader| strays.contains(&reader.0)).count();
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
        let freshness = self.freshness();
        if self.lease.replace(build).is_none() {
            self.meet("lock: granted to a build without a lease");
        }
        if freshness == Freshness::Fresh && self.builds[build].demand.no_cache {
            self.meet("condition: no_cache, and a section over a fresh value");
        }
        let met = match freshness {
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
        *self.draining.marks.entry(old.value).or_insert(0) += 1;
        Some(old.value)
    }

    pub(super) fn has_section(&self, build: BuildId) -> bool {
        self.builds[build].section.is_some()
    }

    /// The section of a build that publishes ends. What is replaced: what it had withheld, or what is in the cell.
    pub(super) fn publish_section(&mut self, build: BuildId) -> Option<Number> {
        match self.builds[build].section.take() {
            Some(section) => {
                self.meet("section: published");
                section.old.map(|old| old.value)
            }
            None => self.value(),
        }
    }

    /// ... of a build whose value is not published: its own, which no reader has seen. What it had withheld was cleared.
    pub(super) fn fence_section(&mut self, build: BuildId, value: Number) -> Option<Number> {
        if self.is_of_sync_readers() {
            self.draining.strays.insert(value);
        }
        let section = self.builds[build].section.take()?;
        if section.cleared {
            self.meet("section: cleared, and fenced");
        }
        section.old.map(|old| old.value)
    }

    /// ... of a build that fails: it does not replace the old value.
    pub(super) fn fail_section(&mut self, build: BuildId) {
        let Some(Section { old, cleared }) = self.builds[build].section.take() else { return };
        if cleared {
            self.meet("section: cleared, and failed");
            // It cannot be put back, and its caller does not wait for it.
            self.draining.background = true;
        } else if let Some(old) = old {
            self.meet(match self.marks(old.value) {
                0 => "section: put back",
                _ => "section: put back, changed",
            });
            self.value = Some(old);
        }
    }

    /// `clear`, as far as the old values of sections come into it.
    pub(super) fn clear_sections(&mut self) {
        for build in &mut self.builds {
            if let Some(section) = &mut build.section
                && !mem::replace(&mut section.cleared, true)
            {
                self.draining.line.extend(section.old.map(|old| old.value));
            }
        }
    }

    /// `invalidate`, likewise.
    pub(super) fn invalidate_sections(&mut self) {
        for build in &mut self.builds {
            if let Some(Section { old: Some(old), .. }) = &mut build.section {
                old.declared_stale.get_or_insert(self.now);
            }
        }
    }

    /// Whether a `set` is refused, as it is from inside a section. The value is then finalised like any that never came into
    /// the cell.
    pub(super) fn refuses(&mut self, value: Number) -> bool {
        if self.builds.iter().all(|build| build.section.is_none()) {
            return false;
        }
        self.meet("section: a set from inside");
        self.draining.background = true;
        self.draining.finalized_strays.insert(value);
        true
    }
}

/// The end of the cell.
impl Model {
    /// The cell is dropped.
    pub(crate) fn drop_cell(&mut self) {
        let value = self.value.take().map(|value| value.value);
        self.draining.orphan = value.filter(|value| self.draining.is_read(*value));
        self.meet(match (value, self.draining.orphan) {
            (None, _) => "drop: an empty cell",
            (Some(_), None) => "drop: the value goes with the cell",
            (Some(_), Some(_)) => "drop: the value is still read",
        });
        if !self.draining.line.is_empty() {
            self.meet("drop: retired values are still read");
        }
    }
}
