//! `DogpileCell` and `LazyDogpile`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{
    DogpileCell, Freshness, Guard, Job, LazyDogpile, LazyReader, Lease, Lookup, ManualClock, Owned, Pending,
    Policy, PublishOutcome, Published, Reader, RefreshError, Refreshed, Refresher, SharedError, Waited,
};

use crate::harness::{Failed, Member, eventually, lock, panic_as_planned, unless_it_panics, unless_it_says};
use crate::values::{Before, Census, Value};

#[cfg(feature = "async")]
use super::tasks::{LazyAsyncCell, lazy_build};
use super::{
    Actor, Alone, Building, Draws, MICROSECOND, Number, OtherError, stall, whatever, with_conditions,
};

pub(super) type TestCell = DogpileCell<Value, ManualClock>;
type LazyBuild = Box<dyn Fn() -> Value + Send + Sync>;
type LazyCell = LazyDogpile<Value, LazyBuild, ManualClock>;
type FallibleBuild = Box<dyn Fn() -> Result<Value, Failed> + Send + Sync>;
type FallibleCell = LazyDogpile<Value, FallibleBuild, ManualClock>;

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
    "publish_arc",
    "publish_snapshot",
    "a lease that is fenced",
    "a build that was revoked",
    "lookup_owned: pending",
    "get_unless_due",
    "Reader::get_unless_due",
    "request: get",
    "request: try_get",
    "request: try_get_with",
    "request: not modified",
    "request: lookup",
    "a job that is dropped",
    "a job that is run on the spot",
    "a job that is spawned",
    "its own job was dropped",
    "LazyDogpile::try_get_or_refresh",
    "LazyDogpile::request",
    "restore",
    "reset",
    "declared stale, since it was current",
    "cleared, since it was current",
    "refresher: spawn",
    "refresher: drop",
    "refresher: stop_timeout",
    "refresher: refresh_now",
    "refresher: ready",
];

thread_local! {
    /// The number of the latest value that a `LazyDogpile` has built on this thread.
    pub(super) static LAZILY_BUILT: Cell<u64> = const { Cell::new(0) };
    /// How many displacements had ended before this thread called the `LazyDogpile`.
    pub(super) static LAZILY_CALLED: Cell<u64> = const { Cell::new(0) };
}

enum Home {
    Shared(Arc<TestCell>),
    Lazy(Arc<LazyCell>),
    Fallible(Arc<FallibleCell>),
    #[cfg(feature = "async")]
    LazyAsync(Arc<LazyAsyncCell>),
}

/// A cell, and what is known of it.
pub(super) struct Plain {
    pub(super) name: &'static str,
    home: Home,
    pub(super) clock: ManualClock,
    pub(super) census: Arc<Census>,
    pub(super) building: Arc<Building>,
    pub(super) may_overlap: bool,
    /// Its statistics begin anew now and then.
    is_reset: bool,
    /// Which value was of which generation, of the latest ones.
    generations: Mutex<BTreeMap<u64, u64>>,
    refresher: Mutex<Option<Refresher>>,
    /// Refreshers whose threads or tasks have not ended.
    pub(super) refreshing: Arc<AtomicUsize>,
}

/// A refresher whose thread or task has not ended: part of its build.
pub(super) struct Refreshing(Arc<AtomicUsize>);

impl Refreshing {
    pub(super) fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(super) enum PlainReader<'a> {
    Shared(Reader<'a, Value, ManualClock>),
    Lazy(LazyReader<'a, Value, LazyBuild, ManualClock>),
}

/// Work that another thread ends.
pub(super) enum Given {
    Lease(Arc<Plain>, Lease<'static, Value, ManualClock>, Alone, Draws),
    Job(Job),
    Pending(Arc<Plain>, Pending<'static, Value, ManualClock>, Before),
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
                build_lazily(&census, &building, &clock).unwrap_or_else(|Failed| panic_as_planned())
            })
        };
        let cell = LazyDogpile::with_clock(policy, clock.clone(), build).named(name);
        Arc::new(Self::new(name, Home::Lazy(Arc::new(cell)), clock, census, building, false))
    }

    pub(super) fn lazy_fallible(name: &'static str, policy: Policy, clock: &ManualClock) -> Arc<Self> {
        let (census, building) = <(Arc<Census>, Arc<Building>)>::default();
        let build: FallibleBuild = {
            let (census, building, clock) = (Arc::clone(&census), Arc::clone(&building), clock.clone());
            Box::new(move || build_lazily(&census, &building, &clock))
        };
        let cell = LazyDogpile::with_clock(policy, clock.clone(), build).named(name);
        Arc::new(Self::new(name, Home::Fallible(Arc::new(cell)), clock, census, building, false))
    }

    #[cfg(feature = "async")]
    pub(super) fn lazy_async(name: &'static str, policy: Policy, clock: &ManualClock) -> Arc<Self> {
        let (census, building) = <(Arc<Census>, Arc<Building>)>::default();
        let build = lazy_build(&census, &building);
        let cell = LazyDogpile::with_clock(policy, clock.clone(), build).named(name);
        Arc::new(Self::new(name, Home::LazyAsync(Arc::new(cell)), clock, census, building, false))
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
        let (generations, refresher, refreshing) = Default::default();
        let is_reset = matches!(name, "timed" | "lazy");
        Self {
            name,
            home,
            clock,
            census,
            building,
            may_overlap,
            is_reset,
            generations,
            refresher,
            refreshing,
        }
    }

    pub(super) fn cell(&self) -> &TestCell {
        match &self.home {
            Home::Shared(cell) => cell,
            Home::Lazy(lazy) => lazy.cell(),
            Home::Fallible(lazy) => lazy.cell(),
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

    /// How many displacements have ended: before a call that may build.
    pub(super) fn displaced(&self) -> u64 {
        self.census.displacement_counts().1
    }

    /// `before`: [`displaced`](Plain::displaced), before the call.
    pub(super) fn enter(&self, before: u64) -> Alone {
        self.building.enter(self.may_overlap, &self.census, before)
    }

    /// A build that calls into no cell.
    fn build_alone(&self, random: &Draws, before: u64) -> Result<Value, Failed> {
        let number = self.census.number();
        let _alone = self.enter(before);
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
        eventually("all refreshers have ended", || self.refreshing.load(Ordering::SeqCst) == 0);
    }

    pub(super) fn close(self: Arc<Self>) {
        let plain = Arc::into_inner(self).expect("no thread has it any more");
        let (name, cell, census) = (plain.name, plain.cell(), &plain.census);
        let stats = cell.stats();
        println!("{name}: {} values, {stats:?}", census.made());
        assert!(!cell.is_refreshing(), "{name}: a lease is lost");
        if !plain.is_reset {
            assert_eq!(stats.published, cell.generation());
            assert!(stats.builds >= stats.failed + stats.panicked + stats.abandoned);
        }
        assert!(lock(&plain.generations).keys().all(|it| *it <= cell.generation()));
        let census = Arc::clone(census);
        let current = match plain.home {
            Home::Shared(cell) => {
                Arc::into_inner(cell).expect("no thread has the cell any more").into_inner()
            }
            Home::Lazy(lazy) => lazy.clear(),
            Home::Fallible(lazy) => lazy.clear(),
            #[cfg(feature = "async")]
            Home::LazyAsync(lazy) => lazy.cell().clear(),
        };
        assert_eq!(census.alive(), u64::from(current.is_some()), "{name}");
        drop(current);
        eventually("nothing is alive", || census.alive() == 0);
    }
}

/// What a `LazyDogpile` builds.
fn build_lazily(
    census: &Arc<Census>,
    building: &Arc<Building>,
    clock: &ManualClock,
) -> Result<Value, Failed> {
    let number = census.number();
    let _alone = building.enter(false, census, LAZILY_CALLED.get());
    let random = Draws::new(number);
    random.dawdle();
    match random.below(16) {
        0 => return Err(Failed),
        1 => panic_as_planned(),
        2 => stall(clock, Duration::from_nanos(random.below(200_000))),
        _ => {}
    }
    LAZILY_BUILT.set(number);
    Ok(census.build(number))
}

/// Whether it is the error of a build of this test.
pub(super) fn is_known(error: &SharedError) -> bool {
    error.is::<Failed>() || error.downcast_ref::<OtherError>().is_some()
}

impl Plain {
    fn publish_snapshot(&self, lease: Lease<'_, Value, ManualClock>, number: u64, random: &Draws) {
        let ttl = random.one_in(2).then(|| Duration::from_nanos(random.below(1_000_000)));
        let Published { value, generation, fresh_for, servable_for, outcome, .. } =
            lease.publish_snapshot(Arc::new(self.census.build(number)), ttl);
        value.check();
        assert!(fresh_for <= servable_for);
        if let Some(generation) = generation {
            self.note_generation(generation, value.number());
        }
        if let PublishOutcome::Published | PublishOutcome::PublishedStale = outcome {
            assert!(value.number() == number && generation.is_some(), "{}: {outcome:?}", self.name);
        }
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
                    1 => {
                        let error = lease.fail(OtherError);
                        assert!(error.ptr_eq(&error.clone()));
                    }
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
                    4 => lease.publish_arc(Arc::new(plain.census.build(number))).check(),
                    5 => plain.publish_snapshot(lease, number, &random),
                    _ => lease.publish(plain.census.build(number)).check(),
                }
            }
            Self::Job(job) => {
                me.doing("running a job");
                whatever(job);
            }
            Self::Pending(plain, pending, before) => {
                me.doing_with(plain.name, "waiting at the place of another thread");
                match pending.wait_timeout(20 * MICROSECOND) {
                    Ok(Waited::Published(value)) => before.allows(&value),
                    Ok(Waited::Reentrant) => panic!("a thread that builds nothing waits for itself"),
                    Ok(_) | Err(_) => {}
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
    /// [`Plain::displaced`].
    displaced: u64,
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
        let _alone = plain.enter(self.displaced);
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
                // The build may have lost its lease.
                Lookup::Elected(_) => assert!(self.may_be_displaced(), "elected inside a build"),
                Lookup::Pending(pending) => {
                    if !self.may_be_displaced() {
                        let waited = pending.wait_timeout(Duration::from_secs(1));
                        let is_ended = matches!(
                            waited,
                            // Ended by the `set` of another thread between the look and the wait.
                            Ok(Waited::Reentrant | Waited::Published(_) | Waited::Abandoned)
                        );
                        assert!(is_ended || self.may_be_displaced(), "{waited:?}");
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
                Err(error) => assert!(self.may_be_displaced(), "inside a build: {error}"),
            },
            5 | 6 if !plain.may_overlap => {
                let says = ["from inside the build of the same cell"];
                // If it has lost its lease, it may be elected.
                let read = || {
                    cell.get_or_refresh(|| {
                        assert!(self.may_be_displaced(), "elected inside a build");
                        panic_as_planned()
                    })
                };
                match unless_it_says(&says, read) {
                    Some(value) => witness.borrow_mut().sees(&value, before),
                    None => actor.tally(plain.name, "a panic that says so"),
                }
            }
            7 => drop(census.set(|value| cell.set(value))),
            8 => census.invalidating(|| cell.invalidate()),
            9 => {
                if random.one_in(2) {
                    drop(census.clearing(|| cell.clear()));
                } else if census.displacing(|| cell.revoke()) {
                    actor.tally(plain.name, "a build that was revoked");
                }
            }
            _ => actor.see_snapshot(self.which),
        }
    }

    /// Whether it may have lost its lease.
    fn may_be_displaced(&self) -> bool {
        self.plain.may_overlap || self.plain.census.displacement_counts().0 > self.displaced
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
            displaced: plain.displaced(),
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
        match self.random.below(58) {
            0..3 => {
                self.doing(name, "get");
                match &plain.home {
                    Home::Lazy(lazy) => self.see(which, || lazy.get()),
                    _ => self.see(which, || cell.get()),
                }
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
                let _ = (cell.freshness(), cell.is_refreshing(), format!("{cell:?}"), cell.last_error());
                assert!(cell.generation() >= now, "the generation goes back");
                assert!(plain.is_reset || cell.stats().published >= now);
                let policy = cell.policy();
                let windows = (policy.get_stale_while_refresh(), policy.get_stale_if_error());
                assert!(policy.get_ttl() <= windows.0 || windows.0 <= windows.1 || windows.1.is_zero());
                assert!(
                    policy.get_retry_backoff().0 <= policy.get_lease_timeout() && policy.get_jitter() == 20
                );
            }
            14..19 => self.read_by_handle(which),
            19..31 => self.read_or_build(which),
            31..36 => self.look_up(which),
            36..38 => self.look_up_for_others(which),
            38..41 => self.read_with_a_spawner(which),
            41 if self.random.one_in(8) => self.see_to_the_refresher(which),
            41..45 => self.set(which),
            45..49 => {
                self.doing(name, "invalidate");
                census.invalidating(|| match &plain.home {
                    Home::Lazy(lazy) => lazy.invalidate(),
                    _ => cell.invalidate(),
                });
            }
            49 => {
                self.doing(name, "clear");
                drop(census.clearing(|| match &plain.home {
                    Home::Lazy(lazy) => lazy.clear(),
                    _ => cell.clear(),
                }));
            }
            50 if self.random.one_in(2) => {
                self.doing(name, "clear_if_current");
                let latest = census.latest();
                let Some(seen) = cell.get() else { return };
                self.random.dawdle();
                census.clearing_if(latest, || {
                    let cleared = cell.clear_if_current(&seen);
                    if cleared {
                        self.tally(name, "cleared, since it was current");
                    }
                    cleared
                });
            }
            50 => {
                self.doing(name, "revoke");
                if census.displacing(|| cell.revoke()) {
                    self.tally(name, "a build that was revoked");
                }
            }
            51 | 52 => {
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
            53 if plain.is_reset => {
                self.doing(name, "reset");
                census.clearing(|| cell.reset());
            }
            _ => self.request(which),
        }
    }

    fn set(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let (cell, census, name) = (plain.cell(), &plain.census, plain.name);
        self.doing(name, "set");
        let before = census.before();
        let (way, time) = (self.random.below(8), self.some_time(1500));
        let value = census.set(|value| match (way, &plain.home) {
            (0, _) => cell.set_for(value, time),
            (1, _) => cell.set_arc(Arc::new(value)),
            (2, _) => {
                self.tally(name, "restore");
                // See `values`.
                cell.revoke();
                cell.restore(value, time)
            }
            (_, Home::Lazy(lazy)) => lazy.set(value),
            _ => cell.set(value),
        });
        self.plain[which].borrow_mut().sees(&value, before);
    }

    /// With conditions that are drawn.
    fn request(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let (cell, name) = (plain.cell(), plain.name);
        if let (Home::Lazy(lazy), true) = (&plain.home, self.random.one_in(2)) {
            self.doing(name, "LazyDogpile::request");
            let request = with_conditions!(self, lazy.request(), cell.generation());
            return self.see_lazy(which, || request.get());
        }
        if let (Home::Fallible(lazy), true) = (&plain.home, self.random.one_in(2)) {
            self.doing(name, "LazyDogpile::request");
            let request = with_conditions!(self, lazy.request(), cell.generation());
            return self.see_lazily_tried(which, || request.try_get());
        }
        let build = self.build(which);
        let request = with_conditions!(self, cell.request(), cell.generation());
        let value = match self.random.below(8) {
            0 | 1 => {
                self.doing(name, "request: get");
                unless_it_panics(|| request.get(|| build.run()))
            }
            2..4 => {
                self.doing(name, "request: try_get");
                let read = || request.clone().try_get(|| build.try_run(Failed));
                unless_it_panics(read).and_then(|result| self.allowed(&build, true, result))
            }
            4 | 5 => {
                self.doing(name, "request: lookup");
                let before = plain.census.before();
                return self.looked_up(which, request.lookup(), before, build.displaced);
            }
            _ => {
                self.doing(name, "request: try_get_with");
                let renews = Cell::new(false);
                let read = || {
                    request.try_get_with(|previous| {
                        let value = build.try_run(Failed)?;
                        match previous {
                            Some(previous) if build.random.one_in(2) => {
                                previous.vouch(value.number());
                                renews.set(true);
                                Ok(Refreshed::NotModified)
                            }
                            _ if build.random.one_in(2) => Ok(Refreshed::NewFor(value, 100 * MICROSECOND)),
                            _ => Ok::<_, Failed>(Refreshed::New(value)),
                        }
                    })
                };
                let value = unless_it_panics(read).and_then(|result| self.allowed(&build, true, result));
                if let (Some(value), true) = (&value, renews.get()) {
                    self.tally(name, "request: not modified");
                    // If the build was displaced, the value may not be in the cell any more.
                    return value.check();
                }
                value
            }
        };
        if let Some(value) = value {
            build.returned(&value);
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
        let is_a_read = self.random.one_in(2);
        let (before, generation) = (plain.census.before(), plain.cell().generation());
        if let Some(shot) = if is_a_read { plain.cell().snapshot() } else { plain.cell().peek() } {
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
        match (&mut *handle, self.random.below(10)) {
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
            (PlainReader::Shared(reader), 8) => {
                self.doing(name, "Reader::get_owned_or_refresh");
                let build = self.build(which);
                let read = || Arc::clone(Owned::as_arc(&reader.get_owned_or_refresh(|| build.run())));
                if let Some(value) = unless_it_panics(read) {
                    build.returned(&value);
                }
            }
            (PlainReader::Shared(reader), 9) => {
                self.doing(name, "Reader::get_owned");
                self.see(which, || reader.get_owned());
            }
            (PlainReader::Shared(reader), 4) => {
                self.doing(name, "Reader::get_unless_due");
                self.see(which, || reader.get_unless_due().map(|value| &**value));
            }
            (PlainReader::Shared(reader), _) => {
                self.doing(name, "Reader::get");
                self.see(which, || reader.get().map(|value| &**value));
            }
            (PlainReader::Lazy(reader), 1..4) => {
                self.doing(name, "LazyReader::get_or_refresh");
                self.see_lazy(which, || Arc::clone(reader.get_or_refresh()));
            }
            (PlainReader::Lazy(reader), 8) => {
                self.doing(name, "LazyReader::get_owned_or_refresh");
                self.see_lazy(which, || reader.get_owned_or_refresh());
            }
            (PlainReader::Lazy(reader), 9) => {
                self.doing(name, "LazyReader::get_owned");
                self.see(which, || reader.get_owned());
            }
            (PlainReader::Lazy(reader), _) => {
                self.doing(name, "LazyReader::get");
                self.see(which, || reader.get().map(|value| &**value));
            }
        }
    }

    fn see_lazily_tried(&self, which: usize, read: impl FnOnce() -> Result<Arc<Value>, RefreshError>) {
        self.see_lazily(which, || match read() {
            Ok(value) => Some(value),
            Err(RefreshError::WaitTimeout) => None,
            Err(error) => {
                assert!(error.build_error().is_some_and(is_known), "{error}");
                None
            }
        });
    }

    fn see_lazy<R: Deref<Target = Value>>(&self, which: usize, read: impl FnOnce() -> R) {
        self.see_lazily(which, || Some(read()));
    }

    fn see_lazily<R: Deref<Target = Value>>(&self, which: usize, read: impl FnOnce() -> Option<R>) {
        let plain = &self.stage.plain[which];
        let before = plain.census.before();
        LAZILY_BUILT.set(0);
        LAZILY_CALLED.set(plain.displaced());
        let value = unless_it_panics(read).flatten();
        // For a build that this thread runs for others.
        LAZILY_CALLED.set(0);
        if let Some(value) = value {
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
                    self.doing(name, "LazyDogpile::get_or_refresh");
                    if self.random.one_in(2) {
                        return self.see_lazy(which, || lazy.get_or_refresh());
                    }
                    return self.see_lazy(which, || lazy.load_or_refresh());
                }
                if let (Home::Fallible(lazy), true) = (&plain.home, self.random.one_in(2)) {
                    self.doing(name, "LazyDogpile::try_get_or_refresh");
                    return self.see_lazily_tried(which, || lazy.try_get_or_refresh());
                }
                unless_it_panics(|| cell.get_or_refresh(|| build.run()))
            }
            2 => {
                self.doing(name, "load_or_refresh");
                unless_it_panics(|| Guard::into_arc(cell.load_or_refresh(|| build.run())))
            }
            3 => {
                self.doing(name, "request: max_stale");
                let request = cell.request().max_stale(Duration::ZERO);
                let value = unless_it_panics(|| request.get(|| build.run()));
                if let Some(value) = &value {
                    build.returned_fresh(value);
                }
                return;
            }
            4 => {
                self.doing(name, "request: no_cache");
                let latest = plain.census.latest();
                let value = unless_it_panics(|| cell.request().no_cache().get(|| build.run()));
                if let Some(value) = &value {
                    let origin = value.origin();
                    assert!(origin > latest, "{name}: no_cache returns {origin}, after {latest} had begun");
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
                self.doing(name, "request: wait_at_most");
                let wait = if self.random.one_in(3) { Duration::ZERO } else { self.some_time(50) };
                let read = || cell.request().wait_at_most(wait).try_get(|| build.try_run(Failed));
                unless_it_panics(read).and_then(|result| self.allowed(&build, true, result))
            }
        };
        if let Some(value) = value {
            build.returned(&value);
        }
    }

    fn allowed(
        &self,
        build: &Build<'_, '_>,
        has_limit: bool,
        result: Result<Arc<Value>, RefreshError>,
    ) -> Option<Arc<Value>> {
        let name = build.plain.name;
        match result {
            Ok(value) => return Some(value),
            Err(error) if error.is::<Failed>() || error.downcast_ref::<OtherError>().is_some() => {
                if build.number.0.get() == 0 {
                    self.tally(name, "shared an error");
                }
            }
            Err(RefreshError::WaitTimeout) if has_limit => self.tally(name, "wait timeout"),
            Err(error) => panic!("{name}: {error}"),
        }
        None
    }

    fn look_up(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let name = plain.name;
        self.doing(name, "lookup");
        let (before, displaced) = (plain.census.before(), plain.displaced());
        self.looked_up(which, plain.cell().lookup(), before, displaced);
    }

    fn looked_up(&self, which: usize, found: Lookup<'_, Value, ManualClock>, before: Before, displaced: u64) {
        let plain = &self.stage.plain[which];
        let name = plain.name;
        let witness = &self.plain[which];
        match found {
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
                self.end(plain, lease, displaced);
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
                // A panic is shared with no other caller.
                assert!(is_known(&error), "{error:?}");
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
                assert!(is_known(&error), "{error:?}");
            }
            Waited::Abandoned => self.tally(name, "waited: abandoned"),
            // Inside a build of another cell, never of this one.
            Waited::Reentrant => panic!("{name}: told that it waits for itself"),
            other => unreachable!("{other:?}"),
        }
    }

    fn end(&self, plain: &Arc<Plain>, lease: Lease<'_, Value, ManualClock>, displaced: u64) {
        let (census, name) = (&plain.census, plain.name);
        let alone = plain.enter(displaced);
        self.doing(name, "holding a lease");
        assert!(lease.generation() > 0);
        let number = census.number();
        self.random.dawdle();
        if self.random.one_in(8) {
            stall(&plain.clock, self.some_time(300));
        }
        if lease.is_fenced() {
            let (begun, _) = census.displacement_counts();
            assert!(plain.may_overlap || begun > displaced, "{name}: fenced, and was never displaced");
            self.tally(name, "a lease that is fenced");
        }
        drop(alone);
        match self.random.below(10) {
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
            5 => {
                self.doing(name, "publish_arc");
                lease.publish_arc(Arc::new(census.build(number))).check();
            }
            6 => {
                self.doing(name, "publish_snapshot");
                plain.publish_snapshot(lease, number, &self.random);
            }
            _ => lease.publish(census.build(number)).check(),
        }
    }

    fn look_up_for_others(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let Some(cell) = plain.shared_cell() else { return self.look_up(which) };
        self.doing(plain.name, "lookup_owned");
        let (before, displaced) = (plain.census.before(), plain.displaced());
        let runner = &self.jobs[self.random.index(self.jobs.len())];
        match cell.lookup_owned() {
            Lookup::Fresh(value) => self.plain[which].borrow_mut().sees_fresh(&value, before),
            Lookup::Stale(value) => self.plain[which].borrow_mut().sees(&value, before),
            Lookup::Elected(lease) => {
                let alone = plain.enter(displaced);
                let given = Given::Lease(Arc::clone(plain), lease, alone, self.random.fork());
                self.give(runner, given);
            }
            Lookup::Pending(pending) if self.random.one_in(2) => {
                self.doing(plain.name, "lookup_owned: pending");
                self.has_waited(which, pending.wait(), before);
            }
            Lookup::Pending(pending) => {
                let _ = runner.try_send(Given::Pending(Arc::clone(plain), pending, before));
            }
            Lookup::Failed(_) => self.tally(plain.name, "lookup: failed"),
        }
    }

    /// What is not taken is dropped here, in the order that the lease needs.
    pub(super) fn give(&self, runner: &std::sync::mpsc::SyncSender<Given>, given: Given) {
        use std::sync::mpsc::TrySendError::{Disconnected, Full};
        if let Err(Full(given) | Disconnected(given)) = runner.try_send(given) {
            self.tally("", "a gift that is not taken");
            if let Given::Lease(_, lease, alone, _) = given {
                drop(alone);
                drop(lease);
            }
        }
    }

    /// The build runs where a spawner lets it.
    fn read_with_a_spawner(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let name = plain.name;
        self.doing(name, "request: spawn_with");
        let fate = self.random.below(8);
        let runner = &self.jobs[self.random.index(self.jobs.len())];
        let spawn = |job: Job| match fate {
            0 => {
                self.tally(name, "a job that is dropped");
                drop(job);
            }
            1 => {
                self.tally(name, "a job that is run on the spot");
                whatever(job);
            }
            2 => {
                self.tally(name, "a spawner that panics");
                panic_as_planned();
            }
            _ => {
                self.tally(name, "a job that is spawned");
                self.give(runner, Given::Job(job));
            }
        };
        let before = plain.census.before();
        let generation = plain.cell().generation();
        let number = Arc::new(Mutex::new(0));
        let build = {
            let (plain, number, random) = (Arc::clone(plain), Arc::clone(&number), self.random.fork());
            let displaced = plain.displaced();
            move || {
                let value = plain.build_alone(&random, displaced)?;
                *lock(&number) = value.number();
                Ok::<_, Failed>(value)
            }
        };
        // What `get` says if its job was dropped, or has panicked.
        let says = ["in the spawner that it was handed to"];
        let result = match &plain.home {
            Home::Shared(cell) if self.random.one_in(3) => {
                let request = with_conditions!(self, cell.request_owned(), generation).spawn_with(spawn);
                unless_it_says(&says, || {
                    request.get(move || build().unwrap_or_else(|Failed| panic_as_planned()))
                })
                .map(Ok)
            }
            Home::Shared(cell) if self.random.one_in(2) => {
                let request = with_conditions!(self, cell.request_owned(), generation).spawn_with(spawn);
                unless_it_panics(|| request.try_get_with(move |_| build().map(Refreshed::New)))
            }
            Home::Shared(cell) => {
                let request = with_conditions!(self, cell.request_owned(), generation).spawn_with(spawn);
                unless_it_panics(|| request.try_get(build))
            }
            // What others build lazily has no number here, and may be displaced.
            Home::Lazy(lazy) => {
                let request = lazy.request_owned().wait_at_most(self.some_time(50)).or_stale();
                let request = request.spawn_with(spawn);
                unless_it_says(&says, || request.get().check());
                return;
            }
            Home::Fallible(lazy) => {
                let request = with_conditions!(self, lazy.request_owned(), generation).spawn_with(spawn);
                let read = || request.try_get().map(|value| value.check());
                drop(unless_it_panics(read));
                return;
            }
            #[cfg(feature = "async")]
            Home::LazyAsync(_) => return self.read_or_build(which),
        };
        match result {
            None => {}
            Some(Ok(value)) if *lock(&number) == value.number() => value.check(),
            Some(Ok(value)) => self.plain[which].borrow_mut().sees(&value, before),
            Some(Err(RefreshError::WaitTimeout)) => self.tally(name, "wait timeout"),
            Some(Err(RefreshError::Abandoned)) => self.tally(name, "its own job was dropped"),
            Some(Err(error)) => assert!(error.build_error().is_some_and(is_known), "{name}: {error}"),
        }
    }

    fn see_to_the_refresher(&self, which: usize) {
        let plain = &self.stage.plain[which];
        let name = plain.name;
        self.doing(name, "refresher");
        let mut desk = lock(&plain.refresher);
        if let Some(refresher) = &*desk {
            let _ = (refresher.last_error(), refresher.consecutive_failures(), format!("{refresher:?}"));
            match self.random.below(5) {
                0 | 1 => {
                    self.doing(name, "refresher: drop");
                    *desk = None;
                }
                2 => {
                    self.doing(name, "refresher: stop_timeout");
                    let refresher = desk.take().expect("just now");
                    if refresher.stop_timeout(self.some_time(100)) {
                        self.tally(name, "refresher: stopped in time");
                    }
                }
                3 => {
                    self.doing(name, "refresher: refresh_now");
                    refresher.refresh_now();
                }
                _ => {
                    self.doing(name, "refresher: wait_ready");
                    if refresher.wait_ready(self.some_time(100)) {
                        self.tally(name, "refresher: ready");
                    }
                }
            }
            return;
        }
        self.doing(name, "refresher: spawn");
        let (random, weak) = (self.random.fork(), Arc::downgrade(plain));
        let refreshing = Refreshing::begin(&plain.refreshing);
        // Before the first election; a smaller number than a later one only allows more.
        let displaced = plain.displaced();
        let ahead = self.some_time(900);
        let build = move |previous: Option<Arc<Value>>| {
            let _ = &refreshing;
            // The refresher does not keep the cell alive, and neither does this.
            let plain = weak.upgrade().ok_or(Failed)?;
            match previous {
                Some(previous) if random.one_in(4) => {
                    let _alone = plain.enter(displaced);
                    previous.vouch(plain.census.number());
                    Ok::<_, Failed>(Refreshed::NotModified)
                }
                _ => {
                    let value = plain.build_alone(&random, displaced)?;
                    let ttl = Duration::from_nanos(random.below(2_000_000));
                    Ok(if random.one_in(4) { Refreshed::NewFor(value, ttl) } else { Refreshed::New(value) })
                }
            }
        };
        let mut options = Refresher::options().min_interval(self.some_time(200));
        if self.random.one_in(2) {
            options = options.rest_when_unused();
        }
        let refresher = match &plain.home {
            Home::Shared(cell) if self.random.one_in(2) => Refresher::spawn(cell, ahead, build),
            Home::Shared(cell) => options.spawn(cell, ahead, build),
            Home::Lazy(lazy) => options.spawn(lazy, ahead, build),
            Home::Fallible(lazy) => options.spawn(lazy, ahead, build),
            #[cfg(feature = "async")]
            Home::LazyAsync(lazy) => options.spawn(lazy, ahead, build),
        };
        *desk = Some(refresher.expect("a thread"));
    }
}

/// A cell in a static, whose own build a refresher uses.
#[test]
fn a_refresher_of_a_static_cell_builds_and_stops() {
    static NUMBERS: LazyDogpile<u64> = LazyDogpile::new(Duration::from_secs(3600), || 7);
    let refresher = NUMBERS.spawn_refresher(MICROSECOND).expect("a thread");
    assert!(refresher.wait_ready(Duration::MAX));
    assert_eq!(NUMBERS.get().as_deref(), Some(&7));
    assert!(refresher.stop_timeout(Duration::MAX));
}
