//! `DogpileCell` and `LazyDogpile`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{
    DogpileCell, Freshness, Guard, LazyDogpile, LazyReader, Lease, Lookup, ManualClock, OwnedLease,
    OwnedLookup, OwnedPending, Policy, Reader, RefreshError, Refreshed, Refresher, SharedCell, SharedError,
    Waited,
};

use crate::harness::{Member, eventually, lock, panic_as_planned, unless_it_panics, unless_it_says};
use crate::values::{Before, Census, Value};

#[cfg(feature = "async")]
use super::tasks::{LazyAsyncCell, lazy_build};
use super::{Actor, Alone, Building, Draws, Failed, MICROSECOND, Number, OtherError, stall, whatever};

pub(super) type TestCell = DogpileCell<Value, ManualClock>;
type LazyBuild = Box<dyn Fn() -> Value + Send + Sync>;
type LazyCell = LazyDogpile<Value, LazyBuild, ManualClock>;

/// What a run of a second or two comes to many times.
pub(super) const RARE: &[&str] = &[
    "lookup: fresh",
    "lookup: stale",
    "lookup: elected",
    "lookup: pending",
    "lookup: failed",
    "waited: published",
    "shared an error",
    "wait timeout",
    "told that it would wait for itself",
    "a panic that says so",
    "a build that fails",
    "a build that panics",
    "a build that stalls",
    "a build that calls into another cell",
    "renew",
    "renew_for",
    "OwnedPending::wait",
    "get_unless_due",
    "Reader::get_unless_due",
    "a job that is dropped",
    "refresher: spawn",
    "refresher: drop",
];

thread_local! {
    /// The number of the latest value that a `LazyDogpile` has built on this thread.
    pub(super) static LAZILY_BUILT: Cell<u64> = const { Cell::new(0) };
}

enum Home {
    Shared(Arc<TestCell>),
    Lazy(Box<LazyCell>),
    #[cfg(feature = "async")]
    LazyAsync(Box<LazyAsyncCell>),
}

/// A cell, and what is known of it.
pub(super) struct Plain {
    pub(super) name: &'static str,
    home: Home,
    pub(super) clock: ManualClock,
    pub(super) census: Arc<Census>,
    pub(super) building: Arc<Building>,
    pub(super) may_overlap: bool,
    /// Which value was of which generation, of the latest ones.
    generations: Mutex<BTreeMap<u64, u64>>,
    refresher: Mutex<Option<Refresher>>,
}

pub(super) enum PlainReader<'a> {
    Shared(Reader<'a, Value, ManualClock>),
    Lazy(LazyReader<'a, Value, LazyBuild, ManualClock>),
}

/// What somebody else is to end.
pub(super) enum Given {
    Lease(Arc<Plain>, OwnedLease<Value, ManualClock>, Alone, Draws),
    Job(Box<dyn FnOnce() + Send>),
    Pending(Arc<Plain>, OwnedPending<Value, ManualClock>, Before),
}

impl Plain {
    pub(super) fn shared(name: &'static str, policy: Policy, clock: &ManualClock) -> Arc<Self> {
        let cell = TestCell::with_clock(policy, clock.clone()).named(name);
        let (census, building) = Default::default();
        Arc::new(Self::new(name, Home::Shared(Arc::new(cell)), clock, census, building, name == "timed"))
    }

    pub(super) fn lazy(name: &'static str, policy: Policy, clock: &ManualClock) -> Arc<Self> {
        let (census, building) = <(Arc<Census>, Arc<Building>)>::default();
        let build: LazyBuild = {
            let (census, building, clock) = (Arc::clone(&census), Arc::clone(&building), clock.clone());
            Box::new(move || {
                let number = census.number();
                let _alone = building.enter(false);
                let random = Draws::new(number);
                random.dawdle();
                match random.below(16) {
                    0 => panic_as_planned(),
                    1 => stall(&clock, Duration::from_nanos(random.below(200_000))),
                    _ => {}
                }
                LAZILY_BUILT.set(number);
                census.build(number)
            })
        };
        let cell = LazyDogpile::with_clock(policy, clock.clone(), build).named(name);
        Arc::new(Self::new(name, Home::Lazy(Box::new(cell)), clock, census, building, false))
    }

    #[cfg(feature = "async")]
    pub(super) fn lazy_async(name: &'static str, policy: Policy, clock: &ManualClock) -> Arc<Self> {
        let (census, building) = <(Arc<Census>, Arc<Building>)>::default();
        let build = lazy_build(&census, &building);
        let cell = LazyDogpile::with_clock(policy, clock.clone(), build).named(name);
        Arc::new(Self::new(name, Home::LazyAsync(Box::new(cell)), clock, census, building, false))
    }

    fn new(
        name: &'static str,
        home: Home,
        clock: &ManualClock,
        census: Arc<Census>,
        building: Arc<Building>,
        may_overlap: bool,
    ) -> Self {
        let clock = clock.clone();
        let (generations, refresher) = Default::default();
        Self { name, home, clock, census, building, may_overlap, generations, refresher }
    }

    pub(super) fn cell(&self) -> &TestCell {
        match &self.home {
            Home::Shared(cell) => cell,
            Home::Lazy(lazy) => lazy.cell(),
            #[cfg(feature = "async")]
            Home::LazyAsync(lazy) => lazy.cell(),
        }
    }

    pub(super) fn shared_cell(&self) -> Option<&Arc<TestCell>> {
        if let Home::Shared(cell) = &self.home { Some(cell) } else { None }
    }

    #[cfg(feature = "async")]
    pub(super) fn lazy_async_cell(&self) -> Option<&LazyAsyncCell> {
        if let Home::LazyAsync(lazy) = &self.home { Some(lazy) } else { None }
    }

    pub(super) fn reader(&self) -> PlainReader<'_> {
        if let Home::Lazy(lazy) = &self.home {
            PlainReader::Lazy(lazy.reader())
        } else {
            PlainReader::Shared(self.cell().reader())
        }
    }

    pub(super) fn enter(&self) -> Alone {
        self.building.enter(self.may_overlap)
    }

    /// A build that asks nobody anything, for those who have nobody to ask.
    fn build_alone(&self, random: &Draws) -> Result<Value, Failed> {
        let number = self.census.number();
        let _alone = self.enter();
        random.dawdle();
        match random.below(10) {
            0 => return Err(Failed),
            1 => panic_as_planned(),
            2 => stall(&self.clock, Duration::from_nanos(random.below(300_000))),
            _ => {}
        }
        Ok(self.census.build(number))
    }

    fn note_generation(&self, generation: u64, number: u64) {
        let mut generations = lock(&self.generations);
        let known = *generations.entry(generation).or_insert(number);
        assert_eq!(known, number, "{}: two values of generation {generation}", self.name);
        let before = generations.range(..generation).next_back();
        let after = generations.range(generation + 1..).next();
        let in_order = before.is_none_or(|(_, before)| *before <= number)
            && after.is_none_or(|(_, after)| *after >= number);
        assert!(in_order, "{}: {before:?} before {generation}: {number} before {after:?}", self.name);
        if generations.len() > 10_000 {
            generations.pop_first();
        }
    }

    /// Stops the refresher.
    pub(super) fn dismiss(&self, me: &Member<'_>) {
        me.doing_with(self.name, "refresher: drop");
        let refresher = lock(&self.refresher).take();
        drop(refresher);
    }

    pub(super) fn close(self: Arc<Self>) {
        let plain = Arc::into_inner(self).expect("nobody has it any more");
        let (name, cell, census) = (plain.name, plain.cell(), &plain.census);
        let stats = cell.stats();
        println!("{name}: {} values, {stats:?}", census.made());
        assert!(!cell.is_refreshing(), "{name}: a lease is lost");
        assert_eq!(stats.published, cell.generation());
        assert!(stats.builds >= stats.failed + stats.panicked + stats.abandoned);
        assert!(lock(&plain.generations).keys().all(|it| *it <= stats.published));
        let census = Arc::clone(census);
        let current = match plain.home {
            Home::Shared(cell) => Arc::into_inner(cell).expect("nobody has the cell any more").into_inner(),
            Home::Lazy(lazy) => lazy.cell().clear(),
            #[cfg(feature = "async")]
            Home::LazyAsync(lazy) => lazy.cell().clear(),
        };
        assert_eq!(census.alive(), u64::from(current.is_some()), "{name}");
        drop(current);
        eventually("nothing is alive", || census.alive() == 0);
    }
}

impl Given {
    pub(super) fn end(self, me: &Member<'_>) {
        match self {
            Self::Lease(plain, lease, alone, random) => {
                me.doing_with(plain.name, "ending a lease of another thread");
                let number = plain.census.number();
                random.dawdle();
                if random.one_in(8) {
                    stall(&plain.clock, Duration::from_nanos(random.below(300_000)));
                }
                drop(alone);
                match random.below(8) {
                    0 => drop(lease),
                    1 => drop(lease.fail(OtherError)),
                    2 | 3 => {
                        let previous = lease.previous().map(|previous| {
                            previous.vouch(number);
                            previous.number()
                        });
                        let ttl = Duration::from_nanos(random.below(1_000_000));
                        let result = if random.one_in(2) { lease.renew() } else { lease.renew_for(ttl) };
                        if let Err(lease) = renewed(previous, result) {
                            lease.publish_for(plain.census.build(number), ttl).check();
                        }
                    }
                    _ => lease.publish(plain.census.build(number)).check(),
                }
            }
            Self::Job(job) => {
                me.doing("running a job");
                whatever(job);
            }
            Self::Pending(plain, pending, before) => {
                me.doing_with(plain.name, "OwnedPending::wait_timeout");
                match pending.wait_timeout(20 * MICROSECOND) {
                    Ok(Waited::Published(value)) => before.allows(&value),
                    Ok(Waited::Reentrant) => panic!("a thread that builds nothing waits for itself"),
                    Ok(Waited::Failed(_) | Waited::Abandoned) | Err(_) => {}
                }
            }
        }
    }
}

/// What has come of a lease that was to renew the value of this number. Without one the lease comes back.
#[track_caller]
fn renewed<L>(previous: Option<u64>, result: Result<Arc<Value>, L>) -> Result<(), L> {
    match result {
        Ok(value) => {
            value.check();
            let number = value.number();
            assert!(
                previous.is_some_and(|previous| number >= previous),
                "value {number} renewed, of {previous:?}"
            );
            Ok(())
        }
        Err(lease) => {
            assert_eq!(previous, None, "it is not renewed");
            Err(lease)
        }
    }
}

/// A build, from before the call that may be elected to run it.
struct Build<'b, 'a> {
    actor: &'b Actor<'a>,
    which: usize,
    plain: &'b Arc<Plain>,
    random: Draws,
    number: Number,
    before: Before,
}

impl Build<'_, '_> {
    fn run(&self) -> Value {
        self.try_run::<Failed>(Failed).unwrap_or_else(|_| {
            self.actor.tally(self.plain.name, "a build that panics");
            panic_as_planned()
        })
    }

    fn try_run<E>(&self, error: E) -> Result<Value, E> {
        let Self { actor, plain, random, .. } = self;
        let number = plain.census.number();
        assert_eq!(self.number.0.replace(number), 0, "it runs once");
        let _alone = plain.enter();
        actor.doing(plain.name, "a build");
        random.dawdle();
        match random.below(24) {
            0 => {
                actor.doing(plain.name, "a build that stalls");
                stall(&plain.clock, Duration::from_nanos(random.below(400_000)));
            }
            1..6 => self.call_back(),
            6 => {
                actor.doing(plain.name, "a build that calls into another cell");
                actor.call_after(self.which);
            }
            _ => {}
        }
        match random.below(12) {
            0 => {
                actor.tally(plain.name, "a build that fails");
                Err(error)
            }
            1 => {
                actor.tally(plain.name, "a build that panics");
                panic_as_planned()
            }
            _ => Ok(plain.census.build(number)),
        }
    }

    /// Into its own cell (G10).
    fn call_back(&self) {
        let Self { actor, plain, random, .. } = self;
        let (cell, census) = (plain.cell(), &plain.census);
        let witness = &actor.plain[self.which];
        let before = census.before();
        actor.doing(plain.name, "a build that calls back");
        match random.below(10) {
            0 => {
                if let Some(value) = cell.get() {
                    witness.borrow_mut().sees(&value, before);
                }
            }
            1 => match cell.lookup() {
                // A lease with a timeout may have been superseded.
                Lookup::Elected(_) => assert!(plain.may_overlap, "elected inside a build"),
                Lookup::Pending(pending) => {
                    if !plain.may_overlap {
                        let waited = pending.wait_timeout(Duration::from_secs(1));
                        let is_told = matches!(
                            waited,
                            // Ended by somebody's set between the look and the wait.
                            Ok(Waited::Reentrant | Waited::Published(_) | Waited::Abandoned)
                        );
                        assert!(is_told, "{waited:?}");
                    }
                }
                Lookup::Fresh(value) | Lookup::Stale(value) => witness.borrow_mut().sees(&value, before),
                Lookup::Failed(_) => {}
            },
            2..5 => match cell.try_get_or_refresh(|| Err::<Value, _>(OtherError)) {
                Ok(value) => witness.borrow_mut().sees(&value, before),
                Err(RefreshError::Reentrant) => {
                    actor.tally(plain.name, "told that it would wait for itself");
                }
                Err(error) => assert!(plain.may_overlap, "inside a build: {error}"),
            },
            5 | 6 if !plain.may_overlap => {
                let says = ["from inside the build of the same cell"];
                let read = || cell.get_or_refresh(|| unreachable!("elected inside a build"));
                match unless_it_says(&says, read) {
                    Some(value) => witness.borrow_mut().sees(&value, before),
                    None => actor.tally(plain.name, "a panic that says so"),
                }
            }
            7 => drop(census.set(|value| cell.set(value))),
            8 => census.invalidating(|| cell.invalidate()),
            9 => drop(census.clearing(|| cell.clear())),
            _ => actor.see_snapshot(self.which),
        }
    }

    /// What the call has returned. Its own value may never have been in the cell.
    fn returned(&self, value: &Value) {
        if self.number.is_of(value) {
            value.check();
        } else {
            self.actor.plain[self.which].borrow_mut().sees(value, self.before);
        }
    }

    /// The same, where it had to be fresh.
    fn returned_fresh(&self, value: &Value) {
        self.returned(value);
        if !self.number.is_of(value) {
            self.before.allows_as_fresh(value);
        }
    }
}

impl<'a> Actor<'a> {
    fn build(&self, which: usize) -> Build<'_, 'a> {
        let plain = &self.stage.plain[which];
        Build {
            actor: self,
            which,
            plain,
            random: self.random.fork(),
            number: Number::default(),
            before: plain.census.before(),
        }
    }

    /// A read of a cell after this one, which may build.
    pub(super) fn call_after(&self, which: usize) {
        let plain = &self.stage.plain;
        let next = which + 1 + self.random.index(plain.len() + self.stage.readers.len() - which - 1);
        if next < plain.len() {
            self.read_or_build(next);
        } else {
            self.read_from_readers(next - plain.len());
        }
    }

    pub(super) fn step_plain(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let (cell, census, name) = (plain.cell(), &plain.census, plain.name);
        match self.random.below(50) {
            0..3 => {
                self.doing(name, "get");
                self.see(which, || cell.get());
            }
            3 => {
                self.doing(name, "get_unless_due");
                self.see(which, || cell.get_unless_due());
            }
            4..8 => {
                self.doing(name, "load");
                self.see(which, || cell.load());
            }
            8 => {
                self.doing(name, "Guard::into_arc");
                self.see(which, || cell.load().map(Guard::into_arc));
            }
            9..12 => self.see_snapshot(which),
            12 | 13 => {
                self.doing(name, "looking");
                let now = cell.generation();
                let _ = (cell.freshness(), cell.is_refreshing(), format!("{cell:?}"));
                assert!(cell.generation() >= now, "the generation goes back");
                assert!(cell.stats().published >= now);
            }
            14..19 => self.read_by_handle(which),
            19..31 => self.read_or_build(which),
            31..36 => self.look_up(which),
            36..38 => self.look_up_for_others(which),
            38..41 => self.read_in_the_background(which),
            41 if self.random.one_in(8) => self.see_to_the_refresher(which),
            41..45 => {
                self.doing(name, "set");
                let before = census.before();
                let value = census.set(|value| cell.set(value));
                self.plain[which].borrow_mut().sees(&value, before);
            }
            45..49 => {
                self.doing(name, "invalidate");
                census.invalidating(|| cell.invalidate());
            }
            _ => {
                self.doing(name, "clear");
                drop(census.clearing(|| cell.clear()));
            }
        }
    }

    fn see<R: Deref<Target = Value>>(&self, which: usize, read: impl FnOnce() -> Option<R>) {
        let before = self.stage.plain[which].census.before();
        if let Some(value) = read() {
            self.plain[which].borrow_mut().sees(&value, before);
            self.random.dawdle();
            value.check();
        }
    }

    fn see_snapshot(&self, which: usize) {
        let plain = &self.stage.plain[which];
        self.doing(plain.name, "snapshot");
        let (before, generation) = (plain.census.before(), plain.cell().generation());
        if let Some(shot) = plain.cell().snapshot() {
            assert!(shot.generation >= generation, "the generation goes back");
            plain.note_generation(shot.generation, shot.value.number());
            let mut witness = self.plain[which].borrow_mut();
            witness.sees(&shot.value, before);
            if shot.freshness == Freshness::Fresh {
                witness.sees_fresh(&shot.value, before);
            }
        }
    }

    fn read_by_handle(&self, which: usize) {
        let name = self.stage.plain[which].name;
        let mut handle = self.handles[which].borrow_mut();
        match (&mut *handle, self.random.below(8)) {
            (PlainReader::Shared(reader), 0) => {
                self.doing(name, "Reader::release");
                reader.release();
            }
            (PlainReader::Lazy(reader), 0) => {
                self.doing(name, "LazyReader::release");
                reader.release();
            }
            (PlainReader::Shared(reader), 1..4) => {
                self.doing(name, "Reader::get_or_refresh");
                let build = self.build(which);
                let read = || Arc::clone(reader.get_or_refresh(|| build.run()));
                if let Some(value) = unless_it_panics(read) {
                    build.returned(&value);
                }
            }
            (PlainReader::Shared(reader), 4) => {
                self.doing(name, "Reader::get_unless_due");
                self.see(which, || reader.get_unless_due().map(|value| &**value));
            }
            (PlainReader::Shared(reader), _) => {
                self.doing(name, "Reader::get");
                self.see(which, || reader.get().map(|value| &**value));
            }
            (PlainReader::Lazy(reader), _) => {
                self.doing(name, "LazyReader::get");
                self.see_lazy(which, || Arc::clone(reader.get()));
            }
        }
    }

    fn see_lazy<R: Deref<Target = Value>>(&self, which: usize, read: impl FnOnce() -> R) {
        let before = self.stage.plain[which].census.before();
        LAZILY_BUILT.set(0);
        if let Some(value) = unless_it_panics(read) {
            if LAZILY_BUILT.get() != value.number() {
                self.plain[which].borrow_mut().sees(&value, before);
            }
            value.check();
        }
    }

    pub(super) fn read_or_build(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let (cell, name) = (plain.cell(), plain.name);
        let build = self.build(which);
        let value = match self.random.below(8) {
            0 | 1 => {
                self.doing(name, "get_or_refresh");
                if let (Home::Lazy(lazy), true) = (&plain.home, self.random.one_in(2)) {
                    self.doing(name, "LazyDogpile::get");
                    if self.random.one_in(2) {
                        return self.see_lazy(which, || lazy.get());
                    }
                    return self.see_lazy(which, || lazy.load());
                }
                unless_it_panics(|| cell.get_or_refresh(|| build.run()))
            }
            2 => {
                self.doing(name, "load_or_refresh");
                unless_it_panics(|| Guard::into_arc(cell.load_or_refresh(|| build.run())))
            }
            3 => {
                self.doing(name, "get_fresh_or_refresh");
                let value = unless_it_panics(|| cell.get_fresh_or_refresh(|| build.run()));
                if let Some(value) = &value {
                    build.returned_fresh(value);
                }
                return;
            }
            4 => {
                self.doing(name, "refresh");
                let latest = plain.census.latest();
                let value = unless_it_panics(|| cell.refresh(|| build.run()));
                if let Some(value) = &value {
                    let origin = value.origin();
                    assert!(origin > latest, "{name}: refresh returns {origin}, after {latest} had begun");
                }
                value
            }
            5 => {
                self.doing(name, "try_get_or_refresh, with an error of another type");
                let read = || cell.try_get_or_refresh(|| build.try_run(OtherError));
                unless_it_panics(read).and_then(|result| self.allowed(&build, false, result))
            }
            6 => {
                self.doing(name, "try_get_or_refresh");
                let read = || cell.try_get_or_refresh(|| build.try_run(Failed));
                unless_it_panics(read).and_then(|result| self.allowed(&build, false, result))
            }
            _ => {
                self.doing(name, "try_get_or_refresh_timeout");
                let wait = if self.random.one_in(3) { Duration::ZERO } else { self.some_time(50) };
                let read = || cell.try_get_or_refresh_timeout(wait, || build.try_run(Failed));
                unless_it_panics(read).and_then(|result| self.allowed(&build, true, result))
            }
        };
        if let Some(value) = value {
            build.returned(&value);
        }
    }

    fn allowed<E>(
        &self,
        build: &Build<'_, '_>,
        has_limit: bool,
        result: Result<Arc<Value>, RefreshError<E>>,
    ) -> Option<Arc<Value>> {
        let name = build.plain.name;
        match result {
            Ok(value) => return Some(value),
            Err(RefreshError::Build(_)) if build.number.0.get() == 0 => self.tally(name, "shared an error"),
            Err(RefreshError::Build(_)) => {}
            Err(RefreshError::WaitTimeout) if has_limit => self.tally(name, "wait timeout"),
            Err(error) => panic!("{name}: {error}"),
        }
        None
    }

    fn look_up(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let name = plain.name;
        self.doing(name, "lookup");
        let before = plain.census.before();
        let witness = &self.plain[which];
        match plain.cell().lookup() {
            Lookup::Fresh(value) => {
                self.tally(name, "lookup: fresh");
                witness.borrow_mut().sees_fresh(&value, before);
            }
            Lookup::Stale(value) => {
                self.tally(name, "lookup: stale");
                witness.borrow_mut().sees(&value, before);
            }
            Lookup::Elected(lease) => {
                self.tally(name, "lookup: elected");
                self.end(plain, lease);
            }
            Lookup::Pending(pending) => {
                self.tally(name, "lookup: pending");
                self.doing(name, "Pending::wait");
                let waited = match self.random.below(4) {
                    0 => return drop(pending),
                    1 => match pending.wait_timeout(self.some_time(100)) {
                        Ok(waited) => waited,
                        Err(pending) => return drop(pending),
                    },
                    _ => pending.wait(),
                };
                self.has_waited(which, waited, before);
            }
            Lookup::Failed(error) => {
                self.tally(name, "lookup: failed");
                let is_known = error.is::<Failed>() || error.is::<OtherError>();
                // What a refresher says of its own, when its build panics, is not the cell's error.
                assert!(is_known, "{error:?}");
            }
        }
    }

    fn has_waited(&self, which: usize, waited: Waited<Value>, before: Before) {
        let name = self.stage.plain[which].name;
        match waited {
            Waited::Published(value) => {
                self.tally(name, "waited: published");
                self.plain[which].borrow_mut().sees(&value, before);
            }
            Waited::Failed(error) => {
                self.tally(name, "waited: failed");
                let other = error.downcast::<Failed>().err().map(SharedError::downcast::<OtherError>);
                assert!(!matches!(other, Some(Err(_))), "{other:?}");
            }
            Waited::Abandoned => self.tally(name, "waited: abandoned"),
            // Inside a build of another cell, never of this one.
            Waited::Reentrant => panic!("{name}: told that it waits for itself"),
        }
    }

    fn end(&self, plain: &Arc<Plain>, lease: Lease<'_, Value, ManualClock>) {
        let (census, name) = (&plain.census, plain.name);
        let alone = plain.enter();
        self.doing(name, "holding a lease");
        let number = census.number();
        self.random.dawdle();
        if self.random.one_in(8) {
            stall(&plain.clock, self.some_time(300));
        }
        drop(alone);
        match self.random.below(8) {
            0 => drop(lease),
            1 => drop(lease.fail(Failed)),
            2 => {
                let previous = lease.previous().map(|previous| {
                    previous.vouch(number);
                    previous.number()
                });
                let result = if self.random.one_in(2) {
                    self.doing(name, "renew");
                    lease.renew()
                } else {
                    self.doing(name, "renew_for");
                    lease.renew_for(self.some_time(1000))
                };
                if let Err(lease) = renewed(previous, result) {
                    lease.publish(census.build(number)).check();
                }
            }
            3 => lease.publish_for(census.build(number), self.some_time(1000)).check(),
            4 => {
                let panicked = unless_it_panics(|| {
                    let _lease = lease;
                    panic_as_planned()
                });
                debug_assert!(panicked.is_none());
            }
            _ => lease.publish(census.build(number)).check(),
        }
    }

    fn look_up_for_others(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let Some(cell) = plain.shared_cell() else { return self.look_up(which) };
        self.doing(plain.name, "lookup_owned");
        let before = plain.census.before();
        let runner = &self.jobs[self.random.index(self.jobs.len())];
        match cell.lookup_owned() {
            OwnedLookup::Fresh(value) => self.plain[which].borrow_mut().sees_fresh(&value, before),
            OwnedLookup::Stale(value) => self.plain[which].borrow_mut().sees(&value, before),
            OwnedLookup::Elected(lease) => {
                let alone = plain.enter();
                let given = Given::Lease(Arc::clone(plain), lease, alone, self.random.fork());
                self.give(runner, given);
            }
            OwnedLookup::Pending(pending) if self.random.one_in(2) => {
                self.doing(plain.name, "OwnedPending::wait");
                self.has_waited(which, pending.wait(), before);
            }
            OwnedLookup::Pending(pending) => {
                let _ = runner.try_send(Given::Pending(Arc::clone(plain), pending, before));
            }
            OwnedLookup::Failed(_) => self.tally(plain.name, "lookup: failed"),
        }
    }

    /// What is not taken is dropped here, in the order that the lease needs.
    fn give(&self, runner: &std::sync::mpsc::SyncSender<Given>, given: Given) {
        use std::sync::mpsc::TrySendError::{Disconnected, Full};
        if let Err(Full(given) | Disconnected(given)) = runner.try_send(given) {
            self.tally("", "a gift that is not taken");
            if let Given::Lease(_, lease, alone, _) = given {
                drop(alone);
                drop(lease);
            }
        }
    }

    fn read_in_the_background(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let Some(cell) = plain.shared_cell() else { return self.read_or_build(which) };
        self.doing(plain.name, "get_or_refresh_in_background");
        let before = plain.census.before();
        let number = Arc::new(Mutex::new(0));
        let build = {
            let (plain, number, random) = (Arc::clone(plain), Arc::clone(&number), self.random.fork());
            move || {
                let value = plain.build_alone(&random).unwrap_or_else(|Failed| panic_as_planned());
                *lock(&number) = value.number();
                value
            }
        };
        let fate = self.random.below(8);
        let runner = &self.jobs[self.random.index(self.jobs.len())];
        let spawn = |job: Box<dyn FnOnce() + Send>| match fate {
            0 => {
                self.tally(plain.name, "a job that is dropped");
                drop(job);
            }
            1 => {
                self.tally(plain.name, "a job that is run on the spot");
                whatever(job);
            }
            2 => {
                self.tally(plain.name, "a spawner that panics");
                panic_as_planned();
            }
            _ => {
                self.tally(plain.name, "a job that is spawned");
                self.give(runner, Given::Job(job));
            }
        };
        if let Some(value) = unless_it_panics(|| cell.get_or_refresh_in_background(spawn, build)) {
            if *lock(&number) == value.number() {
                value.check();
            } else {
                self.plain[which].borrow_mut().sees(&value, before);
            }
        }
    }

    fn see_to_the_refresher(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let Some(cell) = plain.shared_cell() else { return };
        self.doing(plain.name, "refresher");
        let mut desk = lock(&plain.refresher);
        if let Some(refresher) = &*desk {
            let _ = (refresher.last_error(), refresher.consecutive_failures(), format!("{refresher:?}"));
            if self.random.one_in(2) {
                self.doing(plain.name, "refresher: drop");
                *desk = None;
            }
            return;
        }
        self.doing(plain.name, "refresher: spawn");
        let (random, build) = (self.random.fork(), Arc::downgrade(plain));
        let ahead = self.some_time(900);
        let refresher = Refresher::spawn(cell, ahead, move |previous: Option<&Arc<Value>>| {
            // The refresher does not keep the cell alive, and neither does this.
            let plain = build.upgrade().ok_or(Failed)?;
            match previous {
                Some(previous) if random.one_in(4) => {
                    let _alone = plain.enter();
                    previous.vouch(plain.census.number());
                    Ok::<_, Failed>(Refreshed::NotModified)
                }
                _ => {
                    let value = plain.build_alone(&random)?;
                    let ttl = Duration::from_nanos(random.below(2_000_000));
                    Ok(if random.one_in(4) { Refreshed::NewFor(value, ttl) } else { Refreshed::New(value) })
                }
            }
        });
        *desk = Some(refresher.expect("a thread"));
    }
}
