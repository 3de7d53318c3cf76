//! `SyncReaderCell`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{Drain, Policy, ReadGuard, ReaderArc, RefreshError, SyncReaderCell, Writer};

use crate::harness::{
    Failed, Member, Random, Task, alone, eventually, lock, panic_as_planned, scaled, seed, task, together,
    unless_it_panics,
};
use crate::undertaker::Undertaker;
use crate::values::{Before, Census, Inside, Value, Witness};

const READERS: usize = if cfg!(miri) { 3 } else { 8 };
/// Threads to which readers hand what they read.
const KEEPERS: usize = 2;
/// Threads that replace values.
const WRITERS: usize = 2;

#[test]
fn no_reader_sees_a_finalised_value_and_the_background_finalises() {
    stress(Drain::Background, scaled(110_000, 40));
}

#[test]
fn no_reader_sees_a_finalised_value_and_the_writer_waits_for_the_readers() {
    stress(Drain::Wait(Duration::from_micros(100)), scaled(40_000, 40));
}

type TestCell = SyncReaderCell<Value>;
type Kept = Inside<ReaderArc<Value>>;

/// How a build is to end.
#[derive(Clone, Copy)]
enum End {
    Value,
    Error,
    Panic,
}

impl End {
    fn draw(random: &mut Random) -> Self {
        match random.below(10) {
            0 => Self::Error,
            1 => Self::Panic,
            _ => Self::Value,
        }
    }
}

/// What all threads share.
struct Stage {
    cell: TestCell,
    census: Arc<Census>,
    undertaker: Arc<Undertaker>,
    /// What has been done, and how often.
    done: Mutex<BTreeMap<&'static str, u64>>,
    /// Sets, and builds that have ended.
    refreshes: AtomicU64,
    target: u64,
}

impl Stage {
    fn new(drain: Drain, target: u64) -> Self {
        let undertaker = Arc::<Undertaker>::default();
        let finalizer = {
            let undertaker = Arc::clone(&undertaker);
            move |value| undertaker.bury(value)
        };
        Self {
            cell: TestCell::with_policy(
                Policy::never_expires().retry_backoff(Duration::ZERO, Duration::ZERO),
                drain,
                finalizer,
            ),
            census: Arc::default(),
            undertaker,
            done: Mutex::default(),
            refreshes: AtomicU64::new(0),
            target,
        }
    }

    fn note(&self, what: &'static str) {
        *lock(&self.done).entry(what).or_insert(0) += 1;
    }

    fn count_refresh(&self, what: &'static str) {
        self.note(what);
        self.refreshes.fetch_add(1, Ordering::SeqCst);
    }
}

fn stress(drain: Drain, target: u64) {
    let _alone = alone();
    let seed = seed();
    let stage = Stage::new(drain, target);
    {
        let stage = &stage;
        let (keepers, inboxes): (Vec<_>, Vec<_>) = (0..KEEPERS).map(|_| sync_channel(16)).unzip();
        let mut tasks: Vec<Task<'_>> = Vec::new();
        for number in 0..READERS {
            let keepers = keepers.clone();
            tasks.push(task(format!("reader {number}"), move |me| stage.read(me, &keepers)));
        }
        for (number, inbox) in inboxes.into_iter().enumerate() {
            tasks.push(task(format!("keeper {number}"), move |me| keep(me, &inbox)));
        }
        for number in 0..WRITERS {
            tasks.push(task(format!("writer {number}"), move |me| stage.write(me)));
        }
        drop(keepers);
        together(seed, tasks);
    }
    together(seed, vec![task("the last one", |me| stage.close(me))]);
}

/// Reading.
impl Stage {
    fn read(&self, me: &mut Member<'_>, keepers: &[SyncSender<Kept>]) {
        let mut witness = Witness::default();
        while me.goes_on() {
            // With nothing in hand: a writer may be waiting for all to leave, and whoever waits for that writer with
            // something in hand waits for itself.
            match me.random.below(16) {
                0..6 => {
                    me.doing("get");
                    let before = self.census.before();
                    if let Some(value) = self.cell.get() {
                        let value = Self::enter(value, before, &mut witness);
                        self.hold_arc(me, value, &mut witness, keepers);
                    }
                }
                6..12 => {
                    me.doing("load");
                    let before = self.census.before();
                    if let Some(value) = self.cell.load() {
                        let value = Self::enter(value, before, &mut witness);
                        self.hold_guard(me, value, &mut witness);
                    }
                }
                12 => self.look(me),
                _ => self.read_or_build(me, &mut witness, keepers),
            }
            self.undertaker.check();
            me.random.dawdle();
        }
    }

    /// A value out of the cell.
    fn enter<R: Deref<Target = Value>>(value: R, before: Before, witness: &mut Witness) -> Inside<R> {
        let value = Inside::new(value, true);
        witness.sees(&value, before);
        value
    }

    fn hold_arc(
        &self,
        me: &mut Member<'_>,
        value: Kept,
        witness: &mut Witness,
        keepers: &[SyncSender<Kept>],
    ) {
        me.doing("holding a ReaderArc");
        me.random.dawdle();
        value.check();
        match me.random.below(12) {
            0 => {
                let keeper = me.random.index(keepers.len());
                // If its inbox is full, the value leaves here.
                let _ = keepers[keeper].try_send(value);
            }
            1 => {
                let clones = [value.clone(), value.clone()];
                drop(value);
                me.random.dawdle();
                drop(clones);
            }
            2 => {
                me.doing("get, while holding a ReaderArc");
                let before = self.census.before();
                let next = self.cell.get().map(|value| Self::enter(value, before, witness));
                drop(value);
                me.random.dawdle();
                drop(next);
            }
            _ => {}
        }
    }

    fn hold_guard(&self, me: &mut Member<'_>, value: Inside<ReadGuard<'_, Value>>, witness: &mut Witness) {
        me.doing("holding a ReadGuard");
        me.random.dawdle();
        value.check();
        if me.random.one_in(12) {
            me.doing("load, while holding a ReadGuard");
            let mut more = Vec::new();
            // Sometimes more than there are places for.
            for _ in 0..me.random.below(20) {
                let before = self.census.before();
                more.extend(self.cell.load().map(|value| Self::enter(value, before, witness)));
            }
            drop(value);
            me.random.dawdle();
            drop(more);
        }
    }

    fn look(&self, me: &Member<'_>) {
        me.doing("looking");
        let _ = (self.cell.freshness(), self.cell.is_refreshing(), self.cell.stats());
        let generation = self.cell.generation();
        let _ = (self.cell.readers(), self.cell.retired(), format!("{:?}", self.cell));
        assert!(self.cell.generation() >= generation);
    }

    fn read_or_build(&self, me: &mut Member<'_>, witness: &mut Witness, keepers: &[SyncSender<Kept>]) {
        let (cell, build) = (&self.cell, Build::new(self, me));
        let arc = match me.random.below(4) {
            0 => {
                me.doing("get_or_refresh");
                unless_it_panics(|| cell.get_or_refresh(|| build.run()))
            }
            1 => {
                me.doing("load_or_refresh");
                if let Some(guard) = unless_it_panics(|| cell.load_or_refresh(|| build.run())) {
                    let guard = build.enter(guard, witness);
                    self.hold_guard(me, guard, witness);
                }
                return;
            }
            2 => {
                me.doing("try_get_or_refresh");
                unless_it_panics(|| cell.try_get_or_refresh(|| build.try_run())).and_then(allowed)
            }
            _ => {
                me.doing("request: wait_at_most");
                let request = cell.request().wait_at_most(Duration::from_micros(me.random.below(200)));
                unless_it_panics(|| request.try_get(|| build.try_run())).and_then(allowed)
            }
        };
        if let Some(arc) = arc {
            let arc = build.enter(arc, witness);
            self.hold_arc(me, arc, witness, keepers);
        }
    }
}

/// A build, from before the call that may be elected to run it.
struct Build<'a> {
    stage: &'a Stage,
    end: End,
    random: RefCell<Random>,
    number: Cell<Option<u64>>,
    /// What was known when the call began.
    before: Before,
    displacements: Option<u64>,
}

impl<'a> Build<'a> {
    fn new(stage: &'a Stage, me: &mut Member<'_>) -> Self {
        Self {
            stage,
            end: End::draw(&mut me.random),
            random: RefCell::new(Random::new(me.random.next())),
            number: Cell::new(None),
            before: stage.census.before(),
            displacements: stage.census.displacements(),
        }
    }

    fn run(&self) -> Value {
        self.try_run().unwrap_or_else(|Failed| panic_as_planned())
    }

    fn try_run(&self) -> Result<Value, Failed> {
        self.begin();
        self.random.borrow_mut().dawdle();
        self.stage.count_refresh(match self.end {
            End::Value => "builds",
            End::Error => "builds that fail",
            End::Panic => "builds that panic",
        });
        self.end()
    }

    fn begin(&self) {
        self.number.set(Some(self.stage.census.number()));
    }

    fn end(&self) -> Result<Value, Failed> {
        match (self.end, self.number.get()) {
            (End::Value, Some(number)) => Ok(self.stage.census.build(number)),
            (End::Value, None) => unreachable!("it has begun"),
            (End::Error, _) => Err(Failed),
            (End::Panic, _) => panic_as_planned(),
        }
    }

    /// What the call has returned.
    fn enter<R: Deref<Target = Value>>(&self, value: R, witness: &mut Witness) -> Inside<R> {
        let is_own = self.number.get() == Some(value.number());
        let displacements = self.stage.census.displacements();
        if is_own && (displacements.is_none() || displacements != self.displacements) {
            let value = Inside::apart(value);
            value.check();
            value
        } else {
            Stage::enter(value, self.before, witness)
        }
    }
}

fn allowed(result: Result<ReaderArc<Value>, RefreshError>) -> Option<ReaderArc<Value>> {
    match result {
        Ok(value) => Some(value),
        Err(RefreshError::Build(_) | RefreshError::WaitTimeout) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Holds what readers hand over.
fn keep(me: &mut Member<'_>, inbox: &Receiver<Kept>) {
    let mut kept = Vec::new();
    loop {
        // With nothing in hand: see `Stage::read`.
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

/// Writing.
impl Stage {
    fn write(&self, me: &mut Member<'_>) {
        let mut witness = Witness::default();
        while me.goes_on() {
            match me.random.below(100) {
                0..45 => self.set(me, &mut witness),
                45..48 => {
                    me.doing("clear");
                    self.census.clearing(|| self.cell.clear());
                    self.note("clears");
                }
                48..50 => {
                    me.doing("revoke");
                    if self.census.displacing(|| self.cell.revoke()) {
                        self.note("builds that are revoked");
                    }
                }
                50..80 => {
                    me.doing("invalidate");
                    self.census.invalidating(|| self.cell.invalidate());
                    self.note("invalidations");
                    if me.random.one_in(2) {
                        self.rebuild(me, &mut witness);
                    }
                }
                80..82 => {
                    me.doing("synchronize");
                    self.cell.synchronize();
                    self.note("synchronize");
                }
                82..84 => {
                    me.doing("synchronize_timeout");
                    let _ = self.cell.synchronize_timeout(Duration::from_micros(50));
                }
                _ => self.write_section(me, &mut witness),
            }
            self.undertaker.check();
            if self.refreshes.load(Ordering::SeqCst) >= self.target {
                me.stop();
            }
        }
    }

    fn set(&self, me: &mut Member<'_>, witness: &mut Witness) {
        me.doing("set");
        let before = self.census.before();
        let way = me.random.below(8);
        let value = self.census.set(|value| {
            let value = match way {
                0 => {
                    // See `values`. It displaces a build that has the write lock too.
                    self.cell.clear();
                    self.cell.restore(value, Duration::from_secs(1))
                }
                1 => self.cell.set_for(value, Duration::from_secs(1)),
                _ => self.cell.set(value),
            };
            Inside::new(value, true)
        });
        self.count_refresh("sets");
        witness.sees(&value, before);
        if me.random.one_in(4) {
            me.random.dawdle();
        }
    }

    fn rebuild(&self, me: &mut Member<'_>, witness: &mut Witness) {
        let (cell, build) = (&self.cell, Build::new(self, me));
        let value = unless_it_panics(|| match me.random.below(4) {
            0 => {
                me.doing("request: no_cache");
                cell.request().no_cache().get(|| build.run())
            }
            1 => {
                me.doing("request: max_stale");
                cell.request().max_stale(Duration::ZERO).get(|| build.run())
            }
            _ => {
                me.doing("get_or_refresh");
                cell.get_or_refresh(|| build.run())
            }
        });
        drop(value.map(|value| build.enter(value, witness)));
    }

    fn write_section(&self, me: &mut Member<'_>, witness: &mut Witness) {
        me.doing("invalidate");
        self.census.invalidating(|| self.cell.invalidate());
        let build = Build::new(self, me);
        let is_timed = me.random.one_in(4);
        me.doing("try_get_with_writer");
        let result = unless_it_panics(|| {
            self.cell.request().try_get_with_writer(|writer| {
                build.begin();
                me.doing(if is_timed { "acquire_write_lock_timeout" } else { "acquire_write_lock" });
                let is_locked = self.inside_section(writer, is_timed, &mut build.random.borrow_mut());
                self.count_refresh(match (is_locked, build.end) {
                    (false, _) => "sections that are not granted",
                    (true, End::Value) => "sections",
                    (true, End::Error) => "sections that fail",
                    (true, End::Panic) => "sections that panic",
                });
                me.doing("the end of a build");
                build.end()
            })
        });
        drop(result.and_then(allowed).map(|value| build.enter(value, witness)));
    }

    /// Returns whether it was granted.
    fn inside_section(&self, writer: &mut Writer<'_, Value>, is_timed: bool, random: &mut Random) -> bool {
        // Without an end this is `acquire_write_lock`, but for the panic of a build that a `set` has overtaken.
        let wait = if is_timed { Duration::from_micros(random.below(300)) } else { Duration::MAX };
        let Ok(mut lock) = writer.acquire_write_lock_timeout(wait) else { return false };
        self.check_empty();
        if let Some(old) = lock.old() {
            old.check();
            assert_eq!(old.life.readers.load(Ordering::SeqCst), 0, "the old value is read in a section");
            old.change(random);
            old.check();
        }
        drop(lock);
        random.dawdle();
        self.check_empty();
        true
    }

    fn check_empty(&self) {
        assert_eq!(self.census.inside.load(Ordering::SeqCst), 0, "readers are inside a section");
        assert!(self.cell.get().is_none() && self.cell.load().is_none(), "a read gets into a section");
        assert_eq!(self.cell.readers(), 0, "readers are inside a section");
    }
}

/// The end.
impl Stage {
    fn close(self, me: &Member<'_>) {
        let Self { cell, census, undertaker, done, refreshes, target } = self;
        let (done, refreshes) = (done.into_inner().expect("nothing panics under it"), refreshes.into_inner());
        let stats = cell.stats();
        println!("{refreshes} refreshes, {} values, {} published", census.made(), stats.published);
        println!("{done:#?}\n{stats:?}");
        assert!(refreshes >= target);

        me.doing("synchronize");
        cell.synchronize();
        assert_eq!((cell.retired(), cell.readers()), (0, 0));
        assert!(!cell.is_refreshing());
        undertaker.check();
        // What never came into the cell goes by itself.
        let current = u64::from(cell.get().is_some());
        eventually("all but the current value are finalised", || {
            undertaker.count() == census.made() - current
        });
        assert_eq!(census.alive(), current);
        let known = undertaker.in_order();
        println!("{known} of them known to have been in the cell when they were finalised");
        assert!(known <= stats.published && known > target / 4, "{known} of {}", stats.published);

        // The cell goes under two readers, one of a retired value and one of the current one.
        let retired = census.set(|value| cell.set(value));
        let current = census.set(|value| cell.set(value));
        // The value before these two.
        eventually("the replaced value is finalised", || undertaker.count() == census.made() - 2);
        let before = undertaker.count();
        me.doing("dropping the cell");
        drop(cell);
        retired.check();
        current.check();
        assert_eq!(undertaker.count(), before);
        drop(retired);
        eventually("the retired value is finalised", || undertaker.count() == before + 1);
        current.check();
        drop(current);
        // The two that went by themselves, or with the cell, are dropped and not finalised.
        eventually("nothing is alive", || census.alive() == 0);
        assert_eq!(undertaker.count(), census.made() - 1);
        undertaker.check();
        eventually("the finalizer's thread is gone", || finalizer_threads() == 0);

        if !cfg!(miri) {
            for what in [
                "builds",
                "builds that fail",
                "builds that panic",
                "builds that are revoked",
                "clears",
                "sections",
                "sections that are not granted",
                "sections that fail",
                "sections that panic",
                "sets",
                "synchronize",
            ] {
                assert!(done.get(what).is_some_and(|count| *count >= 10), "hardly any: {what}");
            }
        }
    }
}

/// How many threads of cells run in this process, where that can be found out.
fn finalizer_threads() -> usize {
    if cfg!(miri) {
        return 0;
    }
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    // The kernel keeps fifteen bytes of a name.
    names.filter(|name| name.trim_end() == "dogpile-finaliz").count()
}
