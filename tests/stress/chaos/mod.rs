//! Everything at once.
//!
//! Eight threads, each doing whatever it draws, with cells of all kinds: every public operation of `DogpileCell`,
//! `LazyDogpile`, `SyncReaderCell`, their handles, leases and places, requests with random conditions, builds in the hands of
//! spawners, refreshers, and with the feature `async` tasks that are dropped at random. Builds fail, panic, stall until their
//! lease is out of date, lose it to a `set`, `clear`, `revoke` or `reset`, call back into their own cell and into others, and
//! take the write lock. Time is a [`ManualClock`] that one more thread moves, mostly by
//! microseconds and now and then by an hour.
//!
//! # What is checked, all the time
//!
//! | | promise |
//! |---|---|
//! | two builds run at once only if one of them was displaced, or a lease has a timeout | G1 |
//! | what a thread sees, by whichever way, does not go back; nor behind what others had seen before | G3 |
//! | a generation is of one value, and greater ones are of later values | G3 |
//! | nothing is fresh whose build began before an `invalidate` that has returned; nothing is there after a `clear` | G4 |
//! | `no_cache` returns a value whose build began after the call | G4 |
//! | each waiter is woken: else the watchdog names the thread and what it does | G5 G6 G7 |
//! | a build that would wait for itself gets an error or a panic | G10 |
//! | no value is read after its finalizer, which runs once, in order, alone, and without a reader inside | G11 |
//! | in a write section no reader is inside, and the old value is there unchanged afterwards | G12 |
//!
//! And at the end: leases are back, statistics agree, no value, no cell and no thread is left.
//!
//! # Which thread may wait for which
//!
//! A thread that waits for ever is a fault of the cells, because this test makes no circle of waits: a build calls only into
//! its own cell, which refuses to wait, and into cells that come after it in [`Stage`]. A thread that holds a `ReaderArc` does
//! nothing that may wait. The threads that end the leases, jobs and places of others wait for nothing but time. And time goes
//! on until all have left.

mod names;
mod plain;
mod readers;
#[cfg(feature = "async")]
mod tasks;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use dogpile::{Clock, Drain, ManualClock, Policy};
#[cfg(target_os = "linux")]
use dogpile::{Refresher, SyncReaderCell};

use crate::harness::{Member, Random, Task, alone, eventually, lock, seed, task, together, unless_it_panics};
use crate::values::Census;
use plain::{Given, Plain, PlainReader};
use readers::{Kept, Readers};

const ACTORS: usize = if cfg!(miri) { 3 } else { 8 };
/// Threads that end what others have begun.
const RUNNERS: usize = if cfg!(miri) { 1 } else { 2 };
/// Threads that hold on to what others read.
const KEEPERS: usize = if cfg!(miri) { 1 } else { 2 };

const MICROSECOND: Duration = Duration::from_micros(1);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn chaos() {
    let _alone = alone();
    let seconds = std::env::var("DOGPILE_CHAOS")
        .map_or(2, |text| text.parse().expect("DOGPILE_CHAOS: a number of seconds"));
    let length = if cfg!(miri) { Length::Steps(15) } else { Length::Time(Duration::from_secs(seconds)) };
    run(seed(), length);
}

/// Else a printed seed would be worth nothing.
///
/// How much a step draws depends on what it meets, so each stream is compared as far as both runs went.
#[test]
fn the_same_seed_draws_the_same() {
    let _alone = alone();
    let steps = if cfg!(miri) { 1 } else { 200 };
    let [first, second, other] = [7, 7, 8].map(|seed| run(seed, Length::Steps(steps)));
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(first.begun, second.begun);
        let mut compared = 0;
        for (stream, one) in &first.drawn {
            let Some(two) = second.drawn.get(stream) else { continue };
            let both = one.len().min(two.len());
            assert_eq!(one[..both], two[..both], "of stream {stream:?}");
            compared += both as u64;
        }
        // Of each step at least what it is, and the moment after it.
        assert!(compared >= 2 * steps, "{compared} draws in {steps} steps");
    }
    for (first, other) in first.iter().zip(&other) {
        assert_ne!(first.drawn[&vec![0]][0], other.drawn[&vec![0]][0]);
    }
}

#[derive(Clone, Copy)]
enum Length {
    Time(Duration),
    /// Of each actor.
    Steps(u64),
}

/// The error of calls that have nothing to do with [`Failed`](crate::harness::Failed).
#[derive(Debug)]
struct OtherError;

impl std::fmt::Display for OtherError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("another build fails")
    }
}

impl std::error::Error for OtherError {}

/// What all share. The cells are in the order in which builds may call from one into another.
struct Stage {
    clock: ManualClock,
    plain: Vec<Arc<Plain>>,
    readers: Vec<Arc<Readers>>,
    length: Length,
    /// Actors, and all but the one that moves the clock.
    acting: AtomicUsize,
    present: AtomicUsize,
    tally: Mutex<Tally>,
}

type Tally = BTreeMap<(&'static str, &'static str), u64>;

/// Returns what is to be the same in every run with this seed, of each actor: nothing if the run is timed.
fn run(seed: u64, length: Length) -> Vec<Trace> {
    let clock = ManualClock::new();
    let policy =
        Policy::ttl(1000 * MICROSECOND).jitter(20).retry_backoff(20 * MICROSECOND, 300 * MICROSECOND);
    let strict = policy.stale_while_refresh(1000 * MICROSECOND).stale_if_error(2000 * MICROSECOND);
    let hasty = policy
        .stale_while_refresh(1000 * MICROSECOND)
        .stale_if_error(Duration::ZERO)
        .retry_backoff(Duration::ZERO, Duration::ZERO);
    let stage = Stage {
        plain: vec![
            Plain::shared("strict", strict, &clock),
            Plain::shared("timed", strict.lease_timeout(200 * MICROSECOND), &clock),
            Plain::lazy("lazy", hasty, &clock),
            Plain::lazy_fallible("lazy fallible", policy, &clock),
            #[cfg(feature = "async")]
            Plain::lazy_async("lazy async", policy.stale_while_refresh(1000 * MICROSECOND), &clock),
        ],
        readers: vec![
            Readers::new("background", policy, Drain::Background, &clock),
            Readers::new(
                "waiting",
                policy.lease_timeout(500 * MICROSECOND),
                Drain::Wait(100 * MICROSECOND),
                &clock,
            ),
        ],
        clock,
        length,
        acting: AtomicUsize::new(ACTORS),
        present: AtomicUsize::new(ACTORS + RUNNERS + KEEPERS),
        tally: Mutex::default(),
    };
    let traces: Vec<Arc<Mutex<Trace>>> = (0..ACTORS).map(|_| Arc::default()).collect();
    {
        let stage = &stage;
        let (jobs, inboxes): (Vec<_>, Vec<_>) = (0..RUNNERS).map(|_| sync_channel::<Given>(4)).unzip();
        let (shelves, kept): (Vec<_>, Vec<_>) = (0..KEEPERS).map(|_| sync_channel::<Kept>(16)).unzip();
        let mut tasks: Vec<Task<'_>> = Vec::new();
        for (number, trace) in traces.iter().enumerate() {
            let (jobs, shelves) = (jobs.clone(), shelves.clone());
            let trace = matches!(length, Length::Steps(_)).then(|| Arc::clone(trace));
            tasks.push(task(format!("actor {number}"), move |me| {
                let _left = Left(&[&stage.acting, &stage.present]);
                stage.act(me, &jobs, &shelves, trace);
            }));
        }
        for (number, inbox) in inboxes.into_iter().enumerate() {
            tasks.push(task(format!("runner {number}"), move |me| {
                let _left = Left(&[&stage.present]);
                stage.run_for_others(me, &inbox);
            }));
        }
        for (number, kept) in kept.into_iter().enumerate() {
            tasks.push(task(format!("keeper {number}"), move |me| {
                let _left = Left(&[&stage.present]);
                readers::keep(me, &kept);
            }));
        }
        tasks.push(task("time", |me| stage.pass_time(me)));
        drop((jobs, shelves));
        together(seed, tasks);
    }
    stage.close();
    traces.iter().map(|trace| std::mem::take(&mut *lock(trace))).collect()
}

/// Counts that a thread has left, however it ends.
struct Left<'a>(&'a [&'a AtomicUsize]);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        for count in self.0 {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Stage {
    fn pass_time(&self, me: &mut Member<'_>) {
        let start = Instant::now();
        while self.present.load(Ordering::SeqCst) > 0 {
            me.waiting("moving the clock");
            self.clock.advance(match me.random.below(4000) {
                0 => HOUR,
                1..40 => Duration::from_micros(me.random.below(2000)),
                _ => Duration::from_nanos(me.random.below(4000)),
            });
            me.random.dawdle();
            if let Length::Time(length) = self.length
                && start.elapsed() >= length
            {
                me.stop();
            }
        }
    }

    fn act(
        &self,
        me: &mut Member<'_>,
        jobs: &[SyncSender<Given>],
        shelves: &[SyncSender<Kept>],
        trace: Option<Arc<Mutex<Trace>>>,
    ) {
        let seed = me.random.next();
        let handles = self.plain.iter().map(|plain| RefCell::new(plain.reader())).collect();
        let mut actor = Actor {
            me,
            stage: self,
            step: 0,
            random: Draws::new(0),
            trace,
            jobs,
            shelves,
            handles,
            plain: self.plain.iter().map(|_| RefCell::default()).collect(),
            readers: self.readers.iter().map(|_| RefCell::default()).collect(),
            tally: RefCell::default(),
        };
        for step in 0.. {
            if !me.goes_on() || matches!(self.length, Length::Steps(steps) if step >= steps) {
                break;
            }
            // Each step draws from a seed of its own, so that how far one draws does not change the next.
            actor.step = step;
            actor.random = Draws::noted(seed ^ Random::new(step).next(), vec![step], actor.trace.clone());
            actor.step();
            for readers in &self.readers {
                readers.undertaker.check();
            }
        }
        drop(actor.handles);
        let mut all = lock(&self.tally);
        for (what, count) in actor.tally.into_inner() {
            *all.entry(what).or_insert(0) += count;
        }
    }

    /// Ends the leases and waits at the places of other threads, and runs their jobs.
    fn run_for_others(&self, me: &mut Member<'_>, inbox: &Receiver<Given>) {
        loop {
            me.waiting("waiting for something to do");
            let Ok(given) = inbox.recv() else { break };
            given.end(me);
        }
        // All actors have left. The builds that may be going on need the clock, so here and not at the end.
        eventually("the actors have left", || self.acting.load(Ordering::SeqCst) == 0);
        for plain in &self.plain {
            plain.dismiss(me);
        }
        for readers in &self.readers {
            readers.dismiss(me);
        }
    }

    fn close(self) {
        let Self { plain, readers, tally, clock, length, .. } = self;
        let tally = tally.into_inner().expect("nothing panics under it");
        let steps: u64 = tally.iter().filter(|((_, what), _)| *what == "step").map(|(_, count)| count).sum();
        println!("{steps} steps, {:?} on the clock", clock.now());
        let mut cells: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((cell, what), count) in &tally {
            cells.entry(cell).or_default().push(format!("{what} {count}"));
        }
        for (cell, done) in cells {
            println!("{cell}: {}", done.join("; "));
        }
        for plain in plain {
            plain.close();
        }
        for readers in readers {
            readers.close();
        }
        for name in [FINALIZER, REFRESHER] {
            eventually("the cells' threads are gone", || threads_named(name) == 0);
        }
        let Length::Time(length) = length else { return };
        // Fifty times as many are usual, and five times as many under a sanitizer.
        let fewest = if cfg!(miri) || length < Duration::from_secs(10) { 0 } else { length.as_secs() * 2000 };
        assert!(steps >= fewest, "{steps} steps in {length:?}: some thread does next to nothing");
        // A short run, or a machine that is slow, need not come to everything.
        if steps > 100_000 {
            #[cfg(feature = "async")]
            let of_tasks = tasks::RARE;
            #[cfg(not(feature = "async"))]
            let of_tasks: &[&str] = &[];
            for what in plain::RARE.iter().chain(readers::RARE).chain(of_tasks) {
                let count: u64 =
                    tally.iter().filter(|((_, done), _)| done == what).map(|(_, count)| count).sum();
                assert!(count > 0, "it never came to this: {what}");
            }
        }
    }
}

/// Else it would be no wonder that they are gone.
#[cfg(target_os = "linux")]
#[test]
#[cfg_attr(miri, ignore = "does not read /proc")]
fn the_threads_of_cells_are_counted_by_name() {
    let _alone = alone();
    let cell = Arc::new(dogpile::DogpileCell::<u64>::new(HOUR));
    let refresher = Refresher::spawn(&cell, MICROSECOND, |_: Option<Arc<u64>>| 1);
    eventually("a refresher is counted", || threads_named(REFRESHER) > 0);
    drop(refresher);
    eventually("it is gone", || threads_named(REFRESHER) == 0);

    let cell = SyncReaderCell::<u64>::new(HOUR, drop);
    // It is replaced while it is read, so the thread has something to wait for.
    let reader = cell.set(1);
    drop(cell.set(2));
    eventually("a cell's own thread is counted", || threads_named(FINALIZER) > 0);
    drop((reader, cell));
    eventually("it is gone", || threads_named(FINALIZER) == 0);
}

/// What the kernel keeps of the names of the crate's threads: fifteen bytes.
const FINALIZER: &str = "dogpile-finaliz";
const REFRESHER: &str = "dogpile-refresh";

/// How many threads have this name, where that can be found out.
fn threads_named(name: &str) -> usize {
    if cfg!(miri) {
        return 0;
    }
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|known| known.trim_end() == name).count()
}

/// One of the eight.
struct Actor<'a> {
    me: &'a Member<'a>,
    stage: &'a Stage,
    step: u64,
    random: Draws,
    trace: Option<Arc<Mutex<Trace>>>,
    jobs: &'a [SyncSender<Given>],
    shelves: &'a [SyncSender<Kept>],
    handles: Vec<RefCell<PlainReader<'a>>>,
    plain: Vec<RefCell<crate::values::Witness>>,
    readers: Vec<RefCell<crate::values::Witness>>,
    tally: RefCell<Tally>,
}

impl Actor<'_> {
    fn step(&self) {
        self.tally("", "step");
        match self.random.below(100) {
            #[cfg(feature = "async")]
            0..4 => self.run_tasks(),
            0..60 => self.step_plain(self.random.index(self.stage.plain.len())),
            60..95 => self.step_readers(self.random.index(self.stage.readers.len())),
            _ => {
                self.doing("", "advance");
                self.stage.clock.advance(Duration::from_nanos(self.random.below(2000)));
            }
        }
        self.random.dawdle();
    }

    fn tally(&self, cell: &'static str, what: &'static str) {
        *self.tally.borrow_mut().entry((cell, what)).or_insert(0) += 1;
    }

    /// Notes what is being done, for the watchdog and for the tally.
    fn doing(&self, cell: &'static str, what: &'static str) {
        self.me.doing_with(cell, what);
        self.tally(cell, what);
        if let Some(trace) = &self.trace {
            lock(trace).begun.entry(self.step).or_insert((cell, what));
        }
    }

    /// A wait on the clock, up to so many microseconds.
    fn some_time(&self, micros: u64) -> Duration {
        Duration::from_nanos(self.random.below(micros * 1000))
    }
}

/// What an actor does with a seed, whatever the others do.
#[derive(Default)]
struct Trace {
    /// What each step did first, which is before it looked at a cell.
    begun: BTreeMap<u64, (&'static str, &'static str)>,
    /// What each stream has drawn: that of a step, or one that was forked off, which is named after where and at which draw.
    drawn: BTreeMap<Vec<u64>, Vec<u64>>,
}

/// Draws through a shared reference, for closures.
struct Draws {
    random: RefCell<Random>,
    count: Cell<u64>,
    /// By which name, and where, its draws are noted.
    stream: Vec<u64>,
    trace: Option<Arc<Mutex<Trace>>>,
}

impl Draws {
    fn new(seed: u64) -> Self {
        Self::noted(seed, Vec::new(), None)
    }

    fn noted(seed: u64, stream: Vec<u64>, trace: Option<Arc<Mutex<Trace>>>) -> Self {
        Self { random: RefCell::new(Random::new(seed)), count: Cell::new(0), stream, trace }
    }

    fn fork(&self) -> Self {
        let seed = self.next();
        let stream =
            if self.trace.is_some() { [&*self.stream, &[self.count.get()]].concat() } else { Vec::new() };
        Self::noted(seed, stream, self.trace.clone())
    }

    /// All draws come from here.
    fn next(&self) -> u64 {
        let drawn = self.random.borrow_mut().next();
        self.count.set(self.count.get() + 1);
        if let Some(trace) = &self.trace {
            lock(trace).drawn.entry(self.stream.clone()).or_default().push(drawn);
        }
        drawn
    }

    fn below(&self, end: u64) -> u64 {
        self.next() % end
    }

    fn index(&self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("smaller than a length")
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// What draws as much as it likes, of one draw of this.
    fn one_off(&self) -> Random {
        Random::new(self.next())
    }

    fn dawdle(&self) {
        self.one_off().dawdle();
    }
}

/// Waits until the clock has moved on by `duration`.
fn stall(clock: &ManualClock, duration: Duration) {
    let end = clock.now().saturating_add(duration);
    while clock.now() < end {
        thread::yield_now();
    }
}

/// The builds that run.
#[derive(Default)]
struct Building {
    /// By number: how many displacements had ended when the call began that runs the build.
    running: Mutex<BTreeMap<u64, u64>>,
    numbers: AtomicU64,
}

/// A build that runs, as long as this lives.
struct Alone(Option<(Arc<Building>, u64)>);

impl Building {
    /// `may_overlap`: leases have a timeout, so others may be elected meanwhile. `before`: how many displacements had ended
    /// before the call that may be elected. A build that a displacement has come over runs beside the next one.
    #[track_caller]
    fn enter(self: &Arc<Self>, may_overlap: bool, census: &Census, before: u64) -> Alone {
        if may_overlap {
            return Alone(None);
        }
        let mut running = lock(&self.running);
        let (begun, _) = census.displacement_counts();
        for other in running.values() {
            assert!(begun > before.min(*other), "two builds run, and neither was displaced");
        }
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        running.insert(number, before);
        drop(running);
        Alone(Some((Arc::clone(self), number)))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Some((building, number)) = &self.0 {
            lock(&building.running).remove(number);
        }
    }
}

/// The number of a build; 0 before it has begun.
#[derive(Default)]
struct Number(Cell<u64>);

impl Number {
    fn is_of(&self, value: &crate::values::Value) -> bool {
        self.0.get() == value.number()
    }
}

/// Runs what may panic as planned.
fn whatever(f: impl FnOnce()) {
    let _ = unless_it_panics(f);
}

/// Adds conditions that are drawn to a request. (A macro, since requests of each kind of cell have a type of their own.)
macro_rules! with_conditions {
    ($actor:expr, $request:expr, $generation:expr) => {{
        let (actor, mut request) = ($actor, $request);
        if actor.random.one_in(3) {
            request = request.max_stale(actor.some_time(300));
        }
        if actor.random.one_in(3) {
            request = request.max_age(actor.some_time(2000));
        }
        if actor.random.one_in(3) {
            request = request.newer_than($generation.saturating_sub(actor.random.below(3)));
        }
        if actor.random.one_in(4) {
            request = request.no_cache();
        }
        if actor.random.one_in(3) {
            request = request.or_stale();
        }
        if actor.random.one_in(3) {
            let wait = if actor.random.one_in(3) { Duration::ZERO } else { actor.some_time(50) };
            request = request.wait_at_most(wait);
        }
        request
    }};
}
use with_conditions;
