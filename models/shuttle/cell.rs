//! `DogpileCell` with more threads than loom can explore: G1 to G7.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile_under_test::{
    Clock, DogpileCell, Freshness, Guard, Job, Lookup, ManualClock, Policy, Reader, RefreshError, Refresher,
    Tick, Waited, model,
};
use shuttle::thread::yield_now;

use crate::support::{Builders, Failed, Scenario, below, block_on, fork, join_all, saw, without_pauses};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "g1_g3_g4_readers_a_builder_an_invalidator_and_a_refresher",
        executions: 12_500,
        body: readers_a_builder_an_invalidator_and_a_refresher,
        sees: &["fresh", "stale", "cleared", "built by a reader", "built by the refresher"],
    },
    Scenario {
        name: "g5_g7_builds_that_fail_panic_and_are_dropped",
        executions: 20_000,
        body: builds_that_fail_panic_and_are_dropped,
        sees: &["published", "failed", "panicked", "abandoned", "shared an error", "task dropped", "waited"],
    },
    Scenario {
        name: "g1_g4_builds_that_hang_are_superseded",
        executions: 20_000,
        body: builds_that_hang_are_superseded,
        sees: &["superseded", "timed out", "waited"],
    },
    Scenario {
        name: "g1_to_g7_everything_at_once",
        executions: 10_000,
        body: everything_at_once,
        sees: &[
            "abandoned",
            "cleared",
            "expired",
            "failed",
            "fresh",
            "handed over",
            "invalidated",
            "panicked",
            "published",
            "published for a moment",
            "built anew",
            "renewed",
            "reset",
            "restored",
            "revoked",
            "a job that is dropped",
            "a job that runs",
            "invalidated, since it was current",
            "set",
            "shared an error",
            "stale",
            "task dropped",
            "timed out",
        ],
    },
];

/// A clock that stands still.
#[derive(Clone, Copy)]
pub(crate) struct Noon;

impl Clock for Noon {
    fn now(&self) -> Tick {
        Tick::from_nanos(1_000_000)
    }
}

/// The source of values: a version that moves on. A value is the version that its build has found.
struct Source {
    version: AtomicU64,
    builders: Arc<Builders>,
}

impl Source {
    /// A build of a call before which there had been so many displacements.
    fn read(&self, before: u64) -> u64 {
        let _turn = self.builders.enter(before);
        let version = self.version.load(SeqCst);
        yield_now();
        version
    }
}

fn readers_a_builder_an_invalidator_and_a_refresher() {
    let cell = Arc::new(DogpileCell::with_clock(Policy::never_expires(), Noon));
    let source = Arc::new(Source { version: AtomicU64::new(1), builders: Arc::default() });
    let both = (Arc::clone(&cell), Arc::clone(&source));
    let clears = Arc::new(AtomicU64::new(0));
    let refresher = (below(2) == 0).then(|| {
        let source = Arc::clone(&source);
        // Asked before the election: what the refresher has done before is over by then.
        let mut before = source.builders.displacements();
        let build = move |_: Option<Arc<u64>>| {
            saw("built by the refresher");
            let value = source.read(before);
            before = source.builders.displacements();
            value
        };
        Refresher::spawn(&cell, Duration::ZERO, build).expect("a thread")
    });
    let readers = (0..4).map(|_| {
        fork(&both, |(cell, source)| {
            let mut handle = cell.reader();
            let (mut generation, mut value) = (0, 0);
            for _ in 0..4 {
                let before = source.builders.displacements();
                let is_own = Cell::new(false);
                let build = || {
                    saw("built by a reader");
                    is_own.set(true);
                    source.read(before)
                };
                // Builds that are published come one after the other, so no value is older than one that was seen before.
                let seen = match below(6) {
                    0 => *cell.get_or_refresh(build),
                    1 => **handle.get_or_refresh(build),
                    2 => *Guard::into_arc(cell.load_or_refresh(build)),
                    3 => handle.get().map_or(value, |value| **value),
                    4 => cell.get().map_or(value, |value| *value),
                    _ => cell.snapshot().map_or(value, |snapshot| {
                        assert!(snapshot.generation >= generation, "G3");
                        generation = snapshot.generation;
                        saw(if snapshot.freshness == Freshness::Fresh { "fresh" } else { "stale" });
                        *snapshot.value
                    }),
                };
                assert!(seen >= value, "{seen} after {value} (G3)");
                // The result of a build that was displaced was never published.
                if !is_own.get() || source.builders.displacements() == before {
                    value = seen;
                }
                let now = cell.generation();
                assert!(now >= generation, "{now} after {generation} (G3)");
                generation = now;
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    let invalidator = fork(&(both, Arc::clone(&clears)), |((cell, source), clears)| {
        for _ in 0..3 {
            let version = source.version.fetch_add(1, SeqCst) + 1;
            if below(3) == 0 {
                clears.fetch_add(1, SeqCst);
                source.builders.displacing(|| cell.clear());
                saw("cleared");
                assert!(cell.get().is_none_or(|value| *value >= version), "G4");
            } else {
                cell.invalidate();
            }
            if let Some(snapshot) = cell.snapshot() {
                assert!(snapshot.freshness != Freshness::Fresh || *snapshot.value >= version, "G4");
            }
            if below(2) == 0 {
                let before = source.builders.displacements();
                let fresh = cell.request().max_stale(Duration::ZERO).get(|| source.read(before));
                assert!(*fresh >= version, "G4");
            }
        }
    });
    join_all(readers);
    invalidator.join().expect("shuttle stops at the first panic");
    drop(refresher);
    // Each `clear` displaces one build at most.
    assert!(builds_kept_out(&cell) <= clears.load(SeqCst));
    assert!(!cell.is_refreshing());
}

/// Builds that were displaced: neither published nor failed.
fn builds_kept_out<T, C>(cell: &DogpileCell<T, C>) -> u64 {
    let stats = cell.stats();
    stats.builds - stats.published - stats.failed - stats.panicked - stats.abandoned
}

fn builds_that_fail_panic_and_are_dropped() {
    let cell = Arc::new(DogpileCell::with_clock(without_pauses(Policy::never_expires()), Noon));
    let both = (Arc::clone(&cell), Arc::<Builders>::default());
    let build = |builders: &Arc<Builders>| {
        let _turn = builders.enter(0);
        yield_now();
    };
    let threads = (0..3).map(|_| {
        fork(&both, move |(cell, builders)| match below(3) {
            0 => {
                let result = cell.try_get_or_refresh(|| {
                    build(&builders);
                    Err::<u64, _>(Failed)
                });
                if let Err(error) = result {
                    assert!(error.is::<Failed>(), "{error}");
                    saw("failed");
                }
            }
            1 => {
                if let Lookup::Elected(lease) = cell.lookup_owned() {
                    build(&builders);
                    if below(2) == 0 {
                        model::set_panicking(true);
                        drop(lease);
                        model::set_panicking(false);
                        saw("panicked");
                    } else {
                        drop(lease);
                        saw("abandoned");
                    }
                }
            }
            _ => {
                if let Lookup::Pending(pending) = cell.lookup_owned()
                    && let Waited::Failed(error) = pending.wait()
                {
                    assert!(error.is::<Failed>());
                    saw("shared an error");
                }
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    let tasks = (0..2).map(|_| {
        fork(&both, move |(cell, builders)| {
            let future = cell.get_or_refresh_async(|| {
                // Held over a suspension, by one at a time.
                let turn = builders.enter(0);
                async move {
                    let mut is_first = true;
                    std::future::poll_fn(move |cx| {
                        let _ = &turn;
                        if std::mem::take(&mut is_first) {
                            cx.waker().wake_by_ref();
                            return std::task::Poll::Pending;
                        }
                        std::task::Poll::Ready(())
                    })
                    .await;
                    1
                }
            });
            match block_on(future, Some(below(3))) {
                Some(value) => assert!(*value < 3),
                None => saw("task dropped"),
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    // Whatever the others do, this caller gets a value.
    let patient = fork(&both, move |(cell, builders)| {
        let value = *cell.get_or_refresh(|| {
            build(&builders);
            2
        });
        assert!(value == 1 || value == 2);
        saw("published");
    });
    join_all(threads);
    join_all(tasks);
    patient.join().expect("shuttle stops at the first panic");
    assert!(!cell.is_refreshing() && cell.get().is_some());
    assert_eq!(builds_kept_out(&cell), 0);
    if cell.stats().waits > 0 {
        saw("waited");
    }
}

const LIMIT: Duration = Duration::from_nanos(10);

fn builds_that_hang_are_superseded() {
    let clock = ManualClock::new();
    let policy = Policy::never_expires().lease_timeout(LIMIT);
    let cell = Arc::new(DogpileCell::with_clock(policy, clock.clone()));
    let numbers = Arc::new(AtomicU64::new(1));
    let both = (Arc::clone(&cell), Arc::clone(&numbers));
    // Builds are numbered when they are elected, and publish in any order; only the latest election counts.
    let builders = (0..3).map(|_| {
        fork(&both, |(cell, numbers)| {
            for _ in 0..2 {
                let value = *cell.get_or_refresh(|| {
                    let number = numbers.fetch_add(1, SeqCst);
                    for _ in 0..below(4) {
                        yield_now();
                    }
                    number
                });
                assert!(value < numbers.load(SeqCst));
            }
        })
    });
    let builders: Vec<_> = builders.collect();
    let impatient = fork(&both, |(cell, _)| {
        let result = cell.request().wait_at_most(LIMIT / 2).try_get(|| Ok::<u64, Failed>(0));
        if let Err(RefreshError::WaitTimeout) = result {
            saw("timed out");
        }
    });
    let timer = fork(&clock, |clock| {
        for _ in 0..4 {
            clock.advance(LIMIT);
            yield_now();
        }
    });
    join_all(builders);
    impatient.join().expect("shuttle stops at the first panic");
    timer.join().expect("shuttle stops at the first panic");
    let stats = cell.stats();
    if stats.superseded > 0 {
        saw("superseded");
    }
    if stats.waits > 0 {
        saw("waited");
    }
    assert_eq!(stats.published, 1, "a later caller finds it fresh");
    assert_eq!(stats.builds, 1 + stats.superseded);
    assert!(!cell.is_refreshing());
}

/// A value of [`everything_at_once`].
struct Numbered {
    /// No other value has it.
    name: u64,
    /// Drawn when its build, or its `set`, or the build that renews it, had begun.
    number: AtomicU64,
    is_set: bool,
}

impl Numbered {
    fn new(number: u64, is_set: bool) -> Self {
        Self { name: number, number: AtomicU64::new(number), is_set }
    }

    /// Whether its build, if it comes from one, began after this number was drawn.
    fn is_after(&self, number: u64) -> bool {
        self.is_set || self.number.load(SeqCst) > number
    }
}

/// What all threads of [`everything_at_once`] share.
struct World {
    cell: Arc<DogpileCell<Numbered, ManualClock>>,
    numbers: AtomicU64,
    sets: AtomicU64,
    builders: Arc<Builders>,
    /// Which value each generation was seen with.
    generations: Mutex<BTreeMap<u64, u64>>,
    /// The statistics begin anew then.
    is_reset: AtomicBool,
    jobs: Mutex<Vec<shuttle::thread::JoinHandle<()>>>,
}

impl World {
    fn draw(&self) -> u64 {
        self.numbers.fetch_add(1, SeqCst)
    }

    /// A build of a call before which there had been so many displacements.
    fn build(&self, before: u64) -> Numbered {
        let _turn = self.builders.enter(before);
        let number = self.draw();
        yield_now();
        Numbered::new(number, false)
    }
}

/// One thread of [`everything_at_once`], and what it knows.
struct Actor {
    world: Arc<World>,
    /// How many displacements there had been before its latest step.
    before: u64,
    /// Drawn before its latest `clear`: no reader may see a build that began before.
    cleared: u64,
    generation: u64,
}

impl Actor {
    fn see(&self, value: &Numbered) {
        assert!(value.is_after(self.cleared), "begun before a clear, and seen after it (G4)");
    }

    fn look(&mut self, invalidated: Option<u64>) {
        let Some(snapshot) = self.world.cell.snapshot() else { return };
        self.see(&snapshot.value);
        assert!(snapshot.generation >= self.generation, "G3");
        self.generation = snapshot.generation;
        let name = snapshot.value.name;
        let seen = *self.world.generations.lock().unwrap().entry(snapshot.generation).or_insert(name);
        assert_eq!(seen, name, "two values of one generation (G3)");
        match snapshot.freshness {
            Freshness::Fresh => {
                saw("fresh");
                let is_after = invalidated.is_none_or(|before| snapshot.value.is_after(before));
                assert!(is_after, "begun before an invalidate, and fresh (G4)");
            }
            Freshness::Stale => saw("stale"),
            _ => saw("expired"),
        }
    }

    fn lease(&self) {
        match self.world.cell.lookup_owned() {
            Lookup::Elected(lease) => {
                let value = self.world.build(self.before);
                match below(6) {
                    0 => {
                        drop(lease);
                        saw("abandoned");
                    }
                    1 => {
                        model::set_panicking(true);
                        drop(lease);
                        model::set_panicking(false);
                        saw("panicked");
                    }
                    2 => drop(lease.fail(Failed)),
                    3 => {
                        if let Some(previous) = lease.previous() {
                            previous.number.fetch_max(value.number.load(SeqCst), SeqCst);
                        }
                        match lease.renew() {
                            Ok(value) => {
                                self.see(&value);
                                saw("renewed");
                            }
                            Err(lease) => self.see(&lease.publish(value)),
                        }
                    }
                    4 => {
                        self.see(&lease.publish_for(value, Duration::from_nanos(1)));
                        saw("published for a moment");
                    }
                    _ => {
                        self.see(&lease.publish(value));
                        saw("published");
                    }
                }
            }
            Lookup::Pending(pending) => {
                let waited = match below(3) {
                    0 => return,
                    1 => pending.wait_timeout(LIMIT / 2),
                    _ => Ok(pending.wait()),
                };
                match waited {
                    Ok(Waited::Published(value)) => {
                        self.see(&value);
                        saw("handed over");
                    }
                    Ok(Waited::Failed(error)) => {
                        assert!(error.is::<Failed>());
                        saw("shared an error");
                    }
                    Ok(_) => {}
                    Err(_) => saw("timed out"),
                }
            }
            Lookup::Fresh(value) | Lookup::Stale(value) => self.see(&value),
            Lookup::Failed(_) => unreachable!("there is no retry pause"),
        }
    }

    fn try_to_build(&self, wait: Option<Duration>) {
        let fails = below(2) == 0;
        let build = || {
            let value = self.world.build(self.before);
            if fails { Err(Failed) } else { Ok(value) }
        };
        let result = match wait {
            Some(wait) => self.world.cell.request().wait_at_most(wait).try_get(build),
            None => self.world.cell.try_get_or_refresh(build),
        };
        match result {
            Ok(value) => self.see(&value),
            Err(RefreshError::Build(error)) => {
                assert!(error.is::<Failed>());
                saw("failed");
            }
            Err(RefreshError::WaitTimeout) => saw("timed out"),
            Err(other) => panic!("{other}"),
        }
    }

    /// With conditions that are drawn, on this thread or on another one.
    fn request(&self) {
        let world = &self.world;
        let mut request = world.cell.request_owned();
        if below(2) == 0 {
            request = request.max_stale(LIMIT / 2);
        }
        if below(3) == 0 {
            request = request.max_age(LIMIT);
        }
        if below(3) == 0 {
            request = request.newer_than(self.generation);
        }
        if below(3) == 0 {
            request = request.no_cache();
        }
        if below(2) == 0 {
            request = request.or_stale();
        }
        if below(2) == 0 {
            request = request.wait_at_most(LIMIT / 2);
        }
        let build = {
            let (world, before, fails) = (Arc::clone(world), self.before, below(3) == 0);
            move || {
                let value = world.build(before);
                if fails { Err(Failed) } else { Ok(value) }
            }
        };
        let result = match below(3) {
            0 => request.try_get(build),
            1 => request
                .spawn_with(|job: Job| {
                    saw("a job that is dropped");
                    drop(job);
                })
                .try_get(build),
            _ => request
                .spawn_with(|job: Job| {
                    let job = Mutex::new(Some(job));
                    let thread = shuttle::thread::spawn(move || job.into_inner().unwrap().expect("once")());
                    world.jobs.lock().unwrap().push(thread);
                    saw("a job that runs");
                })
                .try_get(build),
        };
        match result {
            Ok(value) => self.see(&value),
            Err(RefreshError::Build(error)) => assert!(error.is::<Failed>()),
            Err(RefreshError::WaitTimeout) => saw("timed out"),
            Err(RefreshError::Abandoned) => saw("told that its job was dropped"),
            Err(other) => panic!("{other}"),
        }
    }

    fn write(&mut self, world: &World) {
        let cell = &*world.cell;
        match below(7) {
            0 | 1 => {
                let before = world.draw();
                drop(world.builders.displacing(|| cell.clear()));
                self.cleared = before;
                saw("cleared");
                self.look(None);
            }
            2 => {
                world.sets.fetch_add(1, SeqCst);
                let value = Numbered::new(world.draw(), true);
                world.builders.displacing(|| match below(3) {
                    0 => drop(cell.set_for(value, LIMIT / 2)),
                    1 => drop(cell.set_arc(Arc::new(value))),
                    _ => drop(cell.set(value)),
                });
                saw("set");
            }
            3 => {
                world.sets.fetch_add(1, SeqCst);
                drop(cell.restore(Numbered::new(world.draw(), true), LIMIT / 2));
                saw("restored");
            }
            4 => {
                if world.builders.displacing(|| cell.revoke()) {
                    saw("revoked");
                }
            }
            5 => {
                let before = world.draw();
                if let Some(seen) = cell.get()
                    && cell.invalidate_if_current(&seen)
                {
                    saw("invalidated, since it was current");
                    self.look(Some(before));
                }
            }
            _ if below(4) == 0 => {
                let before = world.draw();
                world.is_reset.store(true, SeqCst);
                world.builders.displacing(|| cell.reset());
                self.cleared = before;
                saw("reset");
                self.look(None);
            }
            _ => {
                let before = world.draw();
                cell.invalidate();
                saw("invalidated");
                self.look(Some(before));
            }
        }
    }

    fn step(&mut self, world: &World, reader: &mut Reader<'_, Numbered, ManualClock>) {
        let cell = &*world.cell;
        let before = world.builders.displacements();
        self.before = before;
        match below(15) {
            0 => drop(cell.get().map(|value| self.see(&value))),
            1 => drop(cell.load().map(|guard| self.see(&guard))),
            2 => self.see(&cell.get_or_refresh(|| world.build(before))),
            3 => self.see(&cell.load_or_refresh(|| world.build(before))),
            4 => self.see(&cell.request().max_stale(Duration::ZERO).get(|| world.build(before))),
            5 => {
                let drawn = world.draw();
                let value = cell.request().no_cache().get(|| world.build(before));
                assert!(value.is_after(drawn), "begun before the call");
                self.see(&value);
                saw("built anew");
            }
            6 => self.try_to_build(None),
            7 => self.try_to_build(Some(LIMIT / 2)),
            8 => self.lease(),
            9 => self.request(),
            10 | 11 => self.write(world),
            12 => {
                if below(3) == 0 {
                    reader.release();
                }
                match below(2) {
                    0 => self.see(reader.get_or_refresh(|| world.build(before))),
                    _ => drop(reader.get().map(|value| self.see(value))),
                }
            }
            13 => {
                let future = cell.get_or_refresh_async(|| async { world.build(before) });
                match block_on(future, Some(below(2))) {
                    Some(value) => self.see(&value),
                    None => saw("task dropped"),
                }
            }
            _ => self.look(None),
        }
        let generation = cell.generation();
        assert!(generation >= self.generation, "G3");
        self.generation = generation;
    }
}

fn everything_at_once() {
    let clock = ManualClock::new();
    let policy = match below(3) {
        0 => Policy::never_expires(),
        1 => Policy::ttl(LIMIT).stale_while_refresh(LIMIT),
        _ => Policy::ttl(LIMIT).stale_while_refresh(Duration::ZERO),
    };
    let policy = without_pauses(policy);
    let world = Arc::new(World {
        cell: Arc::new(DogpileCell::with_clock(policy, clock.clone())),
        numbers: AtomicU64::new(1),
        sets: AtomicU64::new(0),
        builders: Arc::default(),
        generations: Mutex::default(),
        is_reset: AtomicBool::new(false),
        jobs: Mutex::default(),
    });
    let actors = (0..5).map(|_| {
        fork(&world, |world| {
            let mut actor = Actor { world: Arc::clone(&world), before: 0, cleared: 0, generation: 0 };
            let mut reader = world.cell.reader();
            for _ in 0..5 {
                actor.step(&world, &mut reader);
            }
        })
    });
    let actors: Vec<_> = actors.collect();
    let timer = fork(&clock, |clock| {
        for _ in 0..4 {
            clock.advance(LIMIT / 2);
            yield_now();
        }
    });
    join_all(actors);
    join_all([timer]);
    let jobs = std::mem::take(&mut *world.jobs.lock().unwrap());
    join_all(jobs);
    assert!(!world.cell.is_refreshing());
    let stats = world.cell.stats();
    let ended = stats.published + stats.failed + stats.panicked + stats.abandoned;
    let displaced = (stats.builds + world.sets.load(SeqCst)).saturating_sub(ended);
    let is_known = displaced <= stats.fenced || world.is_reset.load(SeqCst);
    assert!(is_known, "a build has gone astray: {stats:?}");
}
