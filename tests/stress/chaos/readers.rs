//! `SyncReaderCell`.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{
    Drain, Freshness, Job, ManualClock, Policy, ReadGuard, ReaderArc, RefreshError, Refreshed, Refresher,
    SyncReaderCell, Writer,
};

use crate::harness::{Failed, Member, eventually, lock, panic_as_planned, unless_it_panics, unless_it_says};
use crate::undertaker::Undertaker;
use crate::values::{Before, Census, Inside, Value};

use super::plain::{Given, Refreshing, is_known};
use super::{Actor, Building, Draws, Number, OtherError, stall, whatever, with_conditions};

pub(super) type TestCell = SyncReaderCell<Value, ManualClock>;
pub(super) type Kept = Inside<ReaderArc<Value>>;

/// What a run of a second or two comes to many times.
pub(super) const RARE: &[&str] = &[
    "synchronize",
    "a section",
    "a section that is not granted",
    "a section that fails",
    "a section that panics",
    "a section under which the cell is cleared",
    "a reader that is kept",
    "ReaderArc::ptr_eq",
    "told that it would wait for itself",
    "exchange",
    "request: exchange",
    "request: try_get",
    "request: try_get_with",
    "a build that was revoked",
    "declared stale, since it was current",
    "restore",
    "reset",
    "snapshot",
    "a job that is spawned",
    "refresher: spawn",
    "refresher: drop",
];

/// A cell, and what is known of it.
pub(super) struct Readers {
    pub(super) name: &'static str,
    pub(super) cell: Arc<TestCell>,
    pub(super) clock: ManualClock,
    pub(super) census: Arc<Census>,
    pub(super) undertaker: Arc<Undertaker>,
    pub(super) building: Arc<Building>,
    pub(super) may_overlap: bool,
    refresher: Mutex<Option<Refresher>>,
    /// Refreshers whose threads have not ended.
    refreshing: Arc<AtomicUsize>,
}

impl Readers {
    pub(super) fn new(name: &'static str, policy: Policy, drain: Drain, clock: &ManualClock) -> Arc<Self> {
        let undertaker = Arc::<Undertaker>::default();
        let finalizer = {
            let undertaker = Arc::clone(&undertaker);
            move |value| undertaker.bury(value)
        };
        Arc::new(Self {
            name,
            cell: Arc::new(TestCell::with_clock(policy, clock.clone(), drain, finalizer).named(name)),
            clock: clock.clone(),
            census: Arc::default(),
            undertaker,
            building: Arc::default(),
            may_overlap: name == "waiting",
            refresher: Mutex::default(),
            refreshing: Arc::default(),
        })
    }

    /// How many displacements have ended: before a call that may build.
    pub(super) fn displaced(&self) -> u64 {
        self.census.displacement_counts().1
    }

    /// Stops the refresher.
    pub(super) fn dismiss(&self, me: &Member<'_>) {
        me.doing_with(self.name, "refresher: drop");
        let refresher = lock(&self.refresher).take();
        drop(refresher);
        eventually("all refreshers have ended", || self.refreshing.load(Ordering::SeqCst) == 0);
    }

    pub(super) fn close(self: Arc<Self>) {
        let Self { name, cell, census, undertaker, may_overlap, .. } =
            Arc::into_inner(self).expect("no thread has it any more");
        let stats = cell.stats();
        println!("{name}: {} values, {} finalised, {stats:?}", census.made(), undertaker.count());
        cell.synchronize();
        assert_eq!((cell.retired(), cell.readers()), (0, 0), "{name}");
        assert!(!cell.is_refreshing(), "{name}: a lease is lost");
        // The other one's statistics begin anew now and then.
        assert!(may_overlap || stats.published == cell.generation());
        let current = u64::from(cell.freshness() != Freshness::Empty);
        // What never came into the cell goes by itself.
        eventually("all but the current value are finalised", || {
            undertaker.count() == census.made() - current
        });
        assert_eq!(census.alive(), current);
        drop(Arc::into_inner(cell).expect("no thread has the cell any more"));
        eventually("nothing is alive", || census.alive() == 0);
        assert_eq!(undertaker.count(), census.made() - current, "{name}: the current value is finalised");
        undertaker.check();
    }

    /// A value out of the cell.
    fn enter<R: Deref<Target = Value>>(
        actor: &Actor<'_>,
        which: usize,
        value: R,
        before: Before,
    ) -> Inside<R> {
        let value = Inside::new(value, true);
        actor.readers[which].borrow_mut().sees(&value, before);
        value
    }
}

/// Holds what others hand over, in both senses.
pub(super) fn keep(me: &mut Member<'_>, inbox: &Receiver<Kept>) {
    let mut kept = Vec::new();
    loop {
        // With nothing in hand: see the module.
        me.waiting("waiting for something to keep");
        let Ok(first) = inbox.recv() else { return };
        kept.push(first);
        while let Ok(next) = inbox.try_recv() {
            me.doing("keeping");
            kept.push(next);
            me.random.dawdle();
            if kept.len() > 3 {
                let which = me.random.index(kept.len());
                kept.swap_remove(which);
            }
        }
        kept.clear();
    }
}

#[derive(Clone, Copy)]
enum End {
    Value,
    Error,
    Panic,
}

/// A build, from before the call that may be elected to run it.
struct Build<'b, 'a> {
    actor: &'b Actor<'a>,
    which: usize,
    readers: &'b Arc<Readers>,
    random: Draws,
    end: End,
    number: Number,
    before: Before,
    displacements: Option<u64>,
    /// [`Readers::displaced`].
    displaced: u64,
}

impl Build<'_, '_> {
    fn begin(&self) {
        assert_eq!(self.number.0.replace(self.readers.census.number()), 0, "it runs once");
    }

    fn run(&self) -> Value {
        self.try_run(Failed).unwrap_or_else(|_| panic_as_planned())
    }

    fn try_run<E>(&self, error: E) -> Result<Value, E> {
        let Self { actor, readers, random, .. } = self;
        self.begin();
        let _alone = readers.building.enter(readers.may_overlap, &readers.census, self.displaced);
        actor.doing(readers.name, "a build");
        random.dawdle();
        match random.below(24) {
            0 => {
                actor.doing(readers.name, "a build that stalls");
                stall(&readers.clock, Duration::from_nanos(random.below(700_000)));
            }
            1..4 => self.call_back(),
            4 if self.which + 1 < actor.stage.readers.len() => {
                actor.doing(readers.name, "a build that calls into another cell");
                actor.read_from_readers(self.which + 1);
            }
            _ => {}
        }
        self.end(error)
    }

    /// For a build that is given the previous value: it is a reader, so it waits for nothing.
    fn try_run_as_reader(&self) -> Result<Value, Failed> {
        let Self { readers, random, number, .. } = self;
        assert_eq!(number.0.replace(readers.census.try_number().ok_or(Failed)?), 0, "it runs once");
        let _alone = readers.building.enter(readers.may_overlap, &readers.census, self.displaced);
        random.dawdle();
        self.end(Failed)
    }

    fn end<E>(&self, error: E) -> Result<Value, E> {
        match self.end {
            End::Value => Ok(self.readers.census.build(self.number.0.get())),
            End::Error => Err(error),
            End::Panic => panic_as_planned(),
        }
    }

    /// Into its own cell (G10).
    fn call_back(&self) {
        let Self { actor, which, readers, random, .. } = self;
        let (cell, census) = (&readers.cell, &readers.census);
        let before = census.before();
        actor.doing(readers.name, "a build that calls back");
        match random.below(6) {
            0 => drop(cell.get().map(|value| Readers::enter(actor, *which, value, before))),
            1 => drop(cell.load().map(|value| Readers::enter(actor, *which, value, before))),
            2 | 3 => match cell.try_get_or_refresh(|| Err::<Value, _>(OtherError)) {
                Ok(value) => drop(Readers::enter(actor, *which, value, before)),
                Err(RefreshError::Reentrant) => {
                    actor.tally(readers.name, "told that it would wait for itself");
                }
                Err(error) => assert!(self.may_be_displaced(), "inside a build: {error}"),
            },
            4 => census.invalidating(|| cell.invalidate()),
            _ if random.one_in(2) => census.clearing(|| cell.clear()),
            _ => {
                if census.displacing(|| cell.revoke()) {
                    actor.tally(readers.name, "a build that was revoked");
                }
            }
        }
    }

    /// Whether it may have lost its lease.
    fn may_be_displaced(&self) -> bool {
        self.readers.may_overlap || self.readers.census.displacement_counts().0 > self.displaced
    }

    /// What the call has returned.
    fn enter<R: Deref<Target = Value>>(&self, value: R) -> Inside<R> {
        let displacements = self.readers.census.displacements();
        let is_own = self.number.is_of(&value);
        if is_own
            && (self.readers.may_overlap || displacements.is_none() || displacements != self.displacements)
        {
            let value = Inside::apart(value);
            value.check();
            value
        } else {
            Readers::enter(self.actor, self.which, value, self.before)
        }
    }

    /// A build that needs the old value for itself. Returns whether it was granted.
    fn section(&self, writer: &mut Writer<'_, Value, ManualClock>, is_timed: bool) -> bool {
        let Self { actor, readers, random, .. } = self;
        let name = readers.name;
        let lock = if is_timed {
            actor.doing(name, "acquire_write_lock_timeout");
            writer.acquire_write_lock_timeout(actor.some_time(200)).ok()
        } else {
            actor.doing(name, "acquire_write_lock");
            Some(writer.acquire_write_lock())
        };
        let Some(mut lock) = lock else { return false };
        actor.doing(name, "a section");
        self.check_empty();
        if let Some(old) = lock.old() {
            old.check();
            assert_eq!(
                old.life.readers.load(Ordering::SeqCst),
                0,
                "{name}: the old value is read in a section"
            );
            random.dawdle();
            old.change(&mut random.one_off());
            old.check();
        }
        drop(lock);
        match random.below(16) {
            0 => stall(&readers.clock, Duration::from_nanos(random.below(700_000))),
            1 => {
                actor.doing(name, "a section under which the cell is cleared");
                // Not counted from the numbers, which a `set` may hold that waits for this section.
                readers.census.displacing(|| readers.cell.clear());
            }
            2 => readers.cell.invalidate(),
            4 => assert!(!readers.cell.revoke(), "{name}: a build that has the write lock is revoked"),
            3 => {
                let result = readers.cell.try_get_or_refresh(|| Err::<Value, _>(OtherError));
                assert!(matches!(result, Err(RefreshError::Reentrant)), "{name}: served in a section");
                actor.tally(name, "told that it would wait for itself");
            }
            _ => random.dawdle(),
        }
        self.check_empty();
        true
    }

    fn check_empty(&self) {
        let Readers { name, cell, census, .. } = &**self.readers;
        assert_eq!(census.inside.load(Ordering::SeqCst), 0, "{name}: readers are inside a section");
        assert!(cell.get().is_none() && cell.load().is_none(), "{name}: a read gets into a section");
        assert_eq!(cell.readers(), 0, "{name}: readers are counted in a section");
    }
}

impl<'a> Actor<'a> {
    fn build_for_readers(&self, which: usize) -> Build<'_, 'a> {
        let readers = &self.stage.readers[which];
        let end = match self.random.below(10) {
            0 => End::Error,
            1 => End::Panic,
            _ => End::Value,
        };
        Build {
            actor: self,
            which,
            readers,
            random: self.random.fork(),
            end,
            number: Number::default(),
            before: readers.census.before(),
            displacements: readers.census.displacements(),
            displaced: readers.displaced(),
        }
    }

    pub(super) fn step_readers(&self, which: usize) {
        let readers = &self.stage.readers[which];
        let Readers { name, cell, census, .. } = &**readers;
        match self.random.below(48) {
            0..6 => {
                self.doing(name, "get");
                let before = census.before();
                if let Some(value) = cell.get() {
                    self.hold_arc(which, Readers::enter(self, which, value, before));
                }
            }
            6..12 => {
                self.doing(name, "load");
                let before = census.before();
                if let Some(value) = cell.load() {
                    self.hold_guard(which, &Readers::enter(self, which, value, before));
                }
            }
            12..14 => {
                self.doing(name, "looking");
                let now = cell.generation();
                let _ = (cell.freshness(), cell.is_refreshing(), cell.readers(), cell.retired());
                let _ = (format!("{cell:?}"), cell.last_error(), cell.policy());
                assert!(cell.generation() >= now, "the generation goes back");
                assert!(readers.may_overlap || cell.stats().published >= now);
            }
            14..24 => self.read_from_readers(which),
            24..28 => self.set_readers(which),
            28..32 => {
                self.doing(name, "invalidate");
                census.invalidating(|| cell.invalidate());
            }
            32 => {
                self.doing(name, "clear");
                census.clearing(|| cell.clear());
            }
            33 => {
                self.doing(name, "synchronize");
                cell.synchronize();
            }
            34 => {
                self.doing(name, "synchronize_timeout");
                let _ = cell.synchronize_timeout(self.some_time(50));
            }
            35 => {
                self.doing(name, "revoke");
                if census.displacing(|| cell.revoke()) {
                    self.tally(name, "a build that was revoked");
                }
            }
            36 => {
                self.doing(name, "invalidate_if_current");
                let latest = census.latest();
                let Some(seen) = cell.get() else { return };
                self.random.dawdle();
                census.invalidating_if(latest, || {
                    let declared = cell.invalidate_if_current(&seen);
                    if declared {
                        self.tally(name, "declared stale, since it was current");
                    }
                    declared
                });
            }
            37 => {
                self.doing(name, "snapshot");
                let is_a_read = self.random.one_in(2);
                let (before, generation) = (census.before(), cell.generation());
                if let Some(shot) = if is_a_read { cell.snapshot() } else { cell.peek() } {
                    assert!(shot.generation >= generation, "{name}: the generation goes back");
                    let value = Readers::enter(self, which, shot.value, before);
                    if shot.freshness == Freshness::Fresh {
                        before.allows_as_fresh(&value);
                    }
                }
            }
            38 if readers.may_overlap => {
                self.doing(name, "reset");
                census.clearing(|| cell.reset());
            }
            39 | 40 => self.exchange(which),
            41 | 42 => self.request_from_readers(which),
            43 => self.read_from_readers_with_a_spawner(which),
            44 if self.random.one_in(8) => self.see_to_the_refresher_of_readers(which),
            _ => self.write(which),
        }
    }

    fn set_readers(&self, which: usize) {
        let Readers { name, cell, census, .. } = &*self.stage.readers[which];
        self.doing(name, "set");
        let before = census.before();
        let (way, time) = (self.random.below(8), self.some_time(1500));
        let value = census.set(|value| {
            let value = match way {
                0 => {
                    self.tally(name, "restore");
                    // See `values`. It displaces a build that has the write lock too.
                    cell.clear();
                    cell.restore(value, time)
                }
                1 => cell.set_for(value, time),
                _ => cell.set(value),
            };
            Inside::new(value, true)
        });
        self.readers[which].borrow_mut().sees(&value, before);
        self.hold_arc(which, value);
    }

    /// A value for another one.
    fn exchange(&self, which: usize) {
        let Readers { name, cell, .. } = &*self.stage.readers[which];
        self.doing(name, "exchanging");
        let build = self.build_for_readers(which);
        let Some(old) = cell.get() else { return };
        let value = if self.random.one_in(2) {
            self.doing(name, "exchange");
            unless_it_panics(|| cell.exchange(old, || build.run()))
        } else {
            self.doing(name, "request: exchange");
            unless_it_panics(|| cell.request().exchange(old).try_get(|| build.try_run(Failed)))
                .and_then(|result| allowed(&build, false, result))
        };
        if let Some(value) = value {
            self.hold_arc(which, build.enter(value));
        }
    }

    /// With conditions that are drawn.
    fn request_from_readers(&self, which: usize) {
        let Readers { name, cell, .. } = &*self.stage.readers[which];
        let build = self.build_for_readers(which);
        let request = with_conditions!(self, cell.request(), cell.generation());
        let value = if self.random.one_in(2) {
            self.doing(name, "request: try_get");
            unless_it_panics(|| request.try_get(|| build.try_run(Failed)))
        } else {
            self.doing(name, "request: try_get_with");
            unless_it_panics(|| {
                request.try_get_with(|previous| {
                    if let Some(previous) = previous {
                        previous.check();
                    }
                    let value = build.try_run_as_reader()?;
                    let time = self.some_time(300);
                    Ok::<_, Failed>(if self.random.one_in(2) {
                        Refreshed::NewFor(value, time)
                    } else {
                        Refreshed::New(value)
                    })
                })
            })
        };
        if let Some(value) = value.and_then(|result| allowed(&build, true, result)) {
            self.hold_arc(which, build.enter(value));
        }
    }

    /// The build runs where a spawner lets it.
    fn read_from_readers_with_a_spawner(&self, which: usize) {
        let readers = &self.stage.readers[which];
        let name = readers.name;
        self.doing(name, "request: spawn_with");
        let (random, displaced) = (self.random.fork(), readers.displaced());
        let build = {
            let readers = Arc::clone(readers);
            move || {
                let number = readers.census.number();
                let _alone = readers.building.enter(readers.may_overlap, &readers.census, displaced);
                random.dawdle();
                match random.below(6) {
                    0 => Err(Failed),
                    1 => panic_as_planned(),
                    _ => Ok(readers.census.build(number)),
                }
            }
        };
        let runs_here = self.random.one_in(4);
        let runner = &self.jobs[self.random.index(self.jobs.len())];
        let spawn = |job: Job| {
            self.tally(name, "a job that is spawned");
            if runs_here { whatever(job) } else { self.give(runner, Given::Job(job)) }
        };
        let request = readers.cell.request_owned().wait_at_most(self.some_time(100)).spawn_with(spawn);
        match unless_it_panics(|| request.try_get(build)) {
            // It may have been displaced, and never have been in the cell.
            Some(Ok(value)) => Inside::apart(value).check(),
            Some(Err(RefreshError::WaitTimeout | RefreshError::Abandoned)) | None => {}
            Some(Err(error)) => assert!(error.build_error().is_some_and(is_known), "{name}: {error}"),
        }
    }

    fn see_to_the_refresher_of_readers(&self, which: usize) {
        let readers = &self.stage.readers[which];
        let name = readers.name;
        self.doing(name, "refresher");
        let mut desk = lock(&readers.refresher);
        if desk.is_some() {
            self.doing(name, "refresher: drop");
            *desk = None;
            return;
        }
        self.doing(name, "refresher: spawn");
        let (random, weak) = (self.random.fork(), Arc::downgrade(readers));
        let refreshing = Refreshing::begin(&readers.refreshing);
        // Before the first election; a smaller number than a later one only allows more.
        let displaced = readers.displaced();
        let build = move |previous: Option<ReaderArc<Value>>| {
            let _ = &refreshing;
            // The refresher does not keep the cell alive, and neither does this.
            let readers = weak.upgrade().ok_or(Failed)?;
            if let Some(previous) = previous {
                previous.check();
            }
            // Such a build is a reader.
            let number = readers.census.try_number().ok_or(Failed)?;
            let _alone = readers.building.enter(readers.may_overlap, &readers.census, displaced);
            random.dawdle();
            match random.below(6) {
                0 => Err(Failed),
                1 => panic_as_planned(),
                _ => Ok(readers.census.build(number)),
            }
        };
        *desk = Some(Refresher::spawn(&readers.cell, self.some_time(900), build).expect("a thread"));
    }

    fn hold_arc(&self, which: usize, value: Kept) {
        let Readers { name, cell, census, .. } = &*self.stage.readers[which];
        self.doing(name, "holding a ReaderArc");
        self.random.dawdle();
        value.check();
        match self.random.below(12) {
            0 | 1 => {
                self.tally(name, "a reader that is kept");
                // If the shelf is full, it leaves here.
                let _ = self.shelves[self.random.index(self.shelves.len())].try_send(value);
            }
            2 => {
                let clones = [value.clone(), value.clone()];
                assert!(
                    ReaderArc::ptr_eq(clones[0].held(), value.held()),
                    "{name}: a clone is of another value"
                );
                drop(value);
                self.random.dawdle();
                drop(clones);
            }
            3 => {
                let before = census.before();
                let next = cell.get().map(|value| Readers::enter(self, which, value, before));
                if let Some(next) = &next {
                    self.doing(name, "ReaderArc::ptr_eq");
                    let is_same = ReaderArc::ptr_eq(next.held(), value.held());
                    assert_eq!(is_same, next.number() == value.number(), "{name}: two values of one number");
                }
                drop(value);
                self.random.dawdle();
                drop(next);
            }
            _ => {}
        }
    }

    fn hold_guard(&self, which: usize, value: &Inside<ReadGuard<'_, Value>>) {
        let Readers { name, cell, census, .. } = &*self.stage.readers[which];
        self.doing(name, "holding a ReadGuard");
        self.random.dawdle();
        value.check();
        match self.random.below(16) {
            0 => {
                // Sometimes more than there are places for.
                let more: Vec<_> = (0..self.random.below(20))
                    .filter_map(|_| {
                        let before = census.before();
                        cell.load().map(|value| Readers::enter(self, which, value, before))
                    })
                    .collect();
                self.random.dawdle();
                drop(more);
            }
            1 => {
                // Whatever it may come to, it does not hang: a writer may be waiting for this guard.
                let read = || cell.try_get_or_refresh(|| Err::<Value, _>(OtherError));
                match unless_it_panics(read) {
                    Some(Err(RefreshError::Reentrant)) => {
                        self.tally(name, "told that it would wait for itself");
                    }
                    Some(Ok(value)) => drop(value),
                    _ => {}
                }
            }
            _ => {}
        }
        value.check();
    }

    pub(super) fn read_from_readers(&self, which: usize) {
        let readers = &self.stage.readers[which];
        let (cell, name) = (&readers.cell, readers.name);
        let build = self.build_for_readers(which);
        let value = match self.random.below(9) {
            0 | 1 => {
                self.doing(name, "get_or_refresh");
                unless_it_panics(|| cell.get_or_refresh(|| build.run()))
            }
            2 => {
                self.doing(name, "load_or_refresh");
                if let Some(guard) = unless_it_panics(|| cell.load_or_refresh(|| build.run())) {
                    let guard = build.enter(guard);
                    guard.check();
                }
                return;
            }
            3 => {
                self.doing(name, "request: max_stale");
                let request = cell.request().max_stale(Duration::ZERO);
                let value = unless_it_panics(|| request.get(|| build.run()));
                if let Some(value) = value.as_ref().filter(|value| !build.number.is_of(value)) {
                    build.before.allows_as_fresh(value);
                }
                value
            }
            4 => {
                self.doing(name, "request: no_cache");
                let latest = readers.census.latest();
                let value = unless_it_panics(|| cell.request().no_cache().get(|| build.run()));
                if let Some(value) = &value {
                    let number = value.number();
                    assert!(number > latest, "{name}: no_cache returns {number}, after {latest} had begun");
                }
                value
            }
            5 | 6 => {
                self.doing(name, "try_get_or_refresh");
                let read = || cell.try_get_or_refresh(|| build.try_run(Failed));
                unless_it_panics(read).and_then(|result| allowed(&build, false, result))
            }
            7 => {
                self.doing(name, "try_get_or_refresh, with an error of another type");
                let read = || cell.try_get_or_refresh(|| build.try_run(OtherError));
                unless_it_panics(read).and_then(|result| allowed(&build, false, result))
            }
            _ => {
                self.doing(name, "request: wait_at_most");
                let wait = if self.random.one_in(3) { Duration::ZERO } else { self.some_time(50) };
                let read = || cell.request().wait_at_most(wait).try_get(|| build.try_run(Failed));
                unless_it_panics(read).and_then(|result| allowed(&build, true, result))
            }
        };
        if let Some(value) = value {
            self.hold_arc(which, build.enter(value));
        }
    }

    fn write(&self, which: usize) {
        let readers = &self.stage.readers[which];
        let (cell, name) = (&readers.cell, readers.name);
        self.doing(name, "invalidate");
        readers.census.invalidating(|| cell.invalidate());
        let build = self.build_for_readers(which);
        let is_timed = self.random.one_in(3);
        let run = |writer: &mut Writer<'_, Value, ManualClock>| {
            build.begin();
            let _alone = readers.building.enter(readers.may_overlap, &readers.census, build.displaced);
            let is_granted = build.section(writer, is_timed);
            let what = match (is_granted, build.end) {
                (false, _) => "a section that is not granted",
                (true, End::Value) => "a section that succeeds",
                (true, End::Error) => "a section that fails",
                (true, End::Panic) => "a section that panics",
            };
            self.tally(name, what);
            build.end(Failed)
        };
        // A build gets this panic if a `set` or another build has overtaken it.
        let says = ["has been overtaken"];
        let value = if self.random.one_in(3) {
            self.doing(name, "request: get_with_writer");
            unless_it_says(&says, || {
                let build =
                    |writer: &mut Writer<'_, _, _>| run(writer).unwrap_or_else(|Failed| panic_as_planned());
                cell.request().no_cache().get_with_writer(build)
            })
        } else {
            self.doing(name, "request: try_get_with_writer");
            unless_it_says(&says, || cell.request().try_get_with_writer(run))
                .and_then(|result| allowed(&build, false, result))
        };
        if let Some(value) = value {
            self.hold_arc(which, build.enter(value));
        }
    }
}

fn allowed(
    build: &Build<'_, '_>,
    has_limit: bool,
    result: Result<ReaderArc<Value>, RefreshError>,
) -> Option<ReaderArc<Value>> {
    let name = build.readers.name;
    match result {
        Ok(value) => return Some(value),
        Err(RefreshError::Build(_)) if build.number.0.get() == 0 => {
            build.actor.tally(name, "shared an error");
        }
        Err(RefreshError::Build(_)) => {}
        Err(RefreshError::WaitTimeout) if has_limit => build.actor.tally(name, "wait timeout"),
        Err(error) => panic!("{name}: {error}"),
    }
    None
}
