//! Rounds of recorded operations on real cells.

use std::cell::RefCell;
use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dogpile::{
    Clock, DogpileCell, Drain, Lease, Lookup, Policy, Reader, ReaderArc, RefreshError, Snapshot,
    SyncReaderCell, Tick,
};

use crate::checker::{Event, check};
use crate::harness::{Member, Random, alone, lock, scaled, seed, task, together};
use crate::model::{Operation, State};

pub(crate) const THREADS: usize = if cfg!(miri) { 3 } else { 4 };
const STEPS: usize = if cfg!(miri) { 5 } else { 8 };
/// Rounds between two starts of the threads.
const BATCH: usize = if cfg!(miri) { 3 } else { 100 };

pub(crate) type TestCell = DogpileCell<u64, Interrupter>;
pub(crate) type TestReaderCell = SyncReaderCell<u64, Interrupter>;

/// A clock that stands still, and lets others run when it is looked at: which is in the middle of an election, of a
/// publication, of an invalidation. So operations overlap on any number of processors.
pub(crate) struct Interrupter;

thread_local! {
    /// When this thread lets others run. Not in the clock, where it would order those who look.
    static INTERRUPTS: RefCell<Option<Random>> = const { RefCell::new(None) };
}

impl Interrupter {
    /// Before a thread looks at the first clock.
    fn seed(seed: u64) {
        INTERRUPTS.set(Some(Random::new(seed)));
    }

    fn interrupts() -> bool {
        INTERRUPTS.with_borrow_mut(|random| random.as_mut().expect("a seed").one_in(4))
    }
}

impl Clock for Interrupter {
    fn now(&self) -> Tick {
        if Self::interrupts() {
            thread::yield_now();
        }
        Tick::from_nanos(1)
    }
}

#[test]
fn the_same_seed_interrupts_the_same() {
    let draw = |seed| {
        let drawn = Mutex::new(Vec::new());
        together(
            seed,
            vec![task("thread", |me| {
                Interrupter::seed(me.random.next());
                lock(&drawn).extend((0..100).map(|_| Interrupter::interrupts()));
            })],
        );
        drawn.into_inner().expect("nothing panics under it")
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
}

/// Tells when things were called and returned.
#[derive(Default)]
struct Times(AtomicU64);

impl Times {
    fn now(&self) -> u64 {
        // SeqCst: what is called after this has been done is called later for everybody.
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// What one thread notes in one round.
pub(crate) struct Notes<'a> {
    pub(crate) thread: usize,
    times: &'a Times,
    events: Vec<Event<Operation>>,
    /// Of the values that this thread makes in this round.
    numbers: u64,
}

impl Notes<'_> {
    /// A number for a new value.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        (self.thread as u64 + 1) * 100 + self.numbers
    }

    fn add(&mut self, called: u64, returned: u64, operation: Operation) {
        self.events.push(Event { thread: self.thread, called, returned, operation });
    }

    /// Does something and notes it.
    pub(crate) fn note<R>(&mut self, call: impl FnOnce() -> R, operation: impl FnOnce(&R) -> Operation) -> R {
        let called = self.times.now();
        let result = call();
        let returned = self.times.now();
        self.add(called, returned, operation(&result));
        result
    }
}

/// A cell that the rounds use.
pub(crate) trait Subject: Sync {
    /// A call whose build was published returns what was published after it, if anything was.
    const RETURNS_NEWEST: bool = false;

    fn new() -> Self;
    fn set(&self, value: u64);
    fn invalidate(&self);

    /// All that a thread does in a round: so many steps.
    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>, steps: usize);

    fn at(state: State) -> Self
    where
        Self: Sized,
    {
        let cell = Self::new();
        if let Some((value, is_fresh)) = state.value {
            cell.set(value);
            if !is_fresh {
                cell.invalidate();
            }
        }
        cell
    }
}

pub(crate) fn rounds<S: Subject>(usual: u64, in_miri: u64) {
    let _alone = alone();
    let seed = seed();
    Interrupter::seed(seed);
    let batches = scaled(usual, in_miri);
    let (mut checked, mut overlapping) = (0_u64, 0_u64);
    for batch in 0..batches {
        let starts: Vec<State> = (0..BATCH)
            .map(|round| match round % 3 {
                0 => State::EMPTY,
                1 => State::holding(1, true),
                _ => State::holding(1, false),
            })
            .collect();
        let cells: Vec<S> = starts.iter().map(|start| S::at(*start)).collect();
        let times = Times::default();
        let histories: Vec<Mutex<Vec<Event<Operation>>>> = (0..BATCH).map(|_| Mutex::default()).collect();
        let (arrived, broken) = (AtomicUsize::new(0), AtomicBool::new(false));
        let play = |thread: usize, me: &mut Member<'_>| {
            let _broken = Broken(&broken);
            Interrupter::seed(me.random.next());
            for (round, cell) in cells.iter().enumerate() {
                me.doing("waiting for the others");
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < (round + 1) * THREADS {
                    if broken.load(Ordering::SeqCst) {
                        return;
                    }
                    hint::spin_loop();
                    thread::yield_now();
                }
                me.doing("a round");
                let mut notes = Notes { thread, times: &times, events: Vec::new(), numbers: 0 };
                cell.act(me, &mut notes, STEPS);
                lock(&histories[round]).extend(notes.events);
            }
        };
        let play = &play;
        let tasks =
            (0..THREADS).map(|thread| task(format!("thread {thread}"), move |me| play(thread, me))).collect();
        together(seed.wrapping_add(batch), tasks);
        for (start, history) in starts.into_iter().zip(histories) {
            let mut events = history.into_inner().expect("nothing panics under it");
            events.sort_by_key(|event| event.called);
            overlapping += overlaps(&events);
            checked += 1;
            if let Err(fault) = check(&start, &events) {
                panic!("a round that began with {start:?}: {fault:?}");
            }
        }
    }
    println!("{checked} rounds, {overlapping} pairs of operations that overlapped");
    // Where they take turns there is one order, and nothing to be found.
    assert!(overlapping > checked, "the threads took turns: {overlapping} overlaps in {checked} rounds");
}

/// A thread that panics is not waited for.
struct Broken<'a>(&'a AtomicBool);

impl Drop for Broken<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

fn overlaps(events: &[Event<Operation>]) -> u64 {
    let pairs = events
        .iter()
        .enumerate()
        .flat_map(|(number, one)| events[number + 1..].iter().filter(move |other| one.overlaps(other)));
    pairs.count() as u64
}

#[test]
fn the_history_of_a_cell_has_an_order() {
    rounds::<TestCell>(20, 2);
}

#[test]
fn the_history_of_a_cell_with_readers_has_an_order() {
    rounds::<TestReaderCell>(10, 1);
}

fn number(value: impl std::ops::Deref<Target = u64>) -> u64 {
    *value
}

/// No failure begins a pause.
fn policy() -> Policy {
    Policy::never_expires().retry_backoff(Duration::ZERO, Duration::ZERO)
}

impl Subject for TestCell {
    fn new() -> Self {
        Self::with_clock(policy(), Interrupter)
    }

    fn set(&self, value: u64) {
        TestCell::set(self, value);
    }

    fn invalidate(&self) {
        TestCell::invalidate(self);
    }

    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>, steps: usize) {
        let mut handle = self.reader();
        let mut lease: Option<Granted<'_>> = None;
        for _ in 0..steps {
            if let Some(held) = lease.take_if(|_| me.random.one_in(2)) {
                end(me, notes, held);
                continue;
            }
            step(self, me, notes, &mut handle, &mut lease);
        }
        if let Some(held) = lease {
            end(me, notes, held);
        }
    }
}

/// A lease with its number.
struct Granted<'a> {
    id: u64,
    /// Its caller needs a newer value than any that it could find.
    anew: bool,
    lease: Lease<'a, u64, Interrupter>,
}

fn step<'a>(
    cell: &'a TestCell,
    me: &mut Member<'_>,
    notes: &mut Notes<'_>,
    handle: &mut Reader<'a, u64, Interrupter>,
    lease: &mut Option<Granted<'a>>,
) {
    match me.random.below(30) {
        0..3 => drop(notes.note(|| cell.get(), |value| Operation::Get(value.as_deref().copied()))),
        3 | 4 => drop(notes.note(|| cell.load(), |value| Operation::Get(value.as_deref().copied()))),
        5..8 => {
            let shown = |shot: &Option<Snapshot<u64>>| {
                Operation::Snapshot(shot.as_ref().map(|shot| (*shot.value, shot.generation, shot.freshness)))
            };
            drop(notes.note(|| cell.snapshot(), shown));
        }
        8 => drop(notes.note(|| cell.generation(), |now| Operation::Generation(*now))),
        9 => drop(notes.note(|| cell.freshness(), |now| Operation::Looks(*now))),
        10 | 11 => {
            let read = |value: &Option<u64>| Operation::Get(*value);
            notes.note(|| handle.get().map(|value| **value), read);
        }
        12..15 => look_up(cell, me, notes, lease, false),
        15 => look_up(cell, me, notes, lease, true),
        16 | 17 if lease.is_none() => read_or_build::<TestCell>(me, notes, Operation::Pending, |build| {
            cell.request().wait_at_most(Duration::ZERO).try_get(build).map(number)
        }),
        18 if lease.is_none() => {
            read_or_build::<TestCell>(me, notes, Operation::PendingUntilFresh, |build| {
                cell.request()
                    .max_stale(Duration::ZERO)
                    .wait_at_most(Duration::ZERO)
                    .try_get(build)
                    .map(number)
            });
        }
        16..20 => {
            let value = notes.number();
            let set = |_: &Arc<u64>| Operation::Set(value);
            match me.random.below(4) {
                0 => drop(notes.note(|| cell.set_for(value, Duration::MAX), set)),
                1 => drop(notes.note(|| cell.set_arc(Arc::new(value)), set)),
                2 => drop(notes.note(|| cell.restore(value, Duration::ZERO), |_| Operation::Restore(value))),
                _ => drop(notes.note(|| cell.set(value), set)),
            }
        }
        20..23 => notes.note(|| cell.invalidate(), |()| Operation::Invalidate),
        23 => drop(notes.note(|| cell.clear(), |taken| Operation::Clear(taken.as_deref().copied()))),
        24 => notes.note(|| cell.reset(), |()| Operation::ClearUnseen),
        25 => drop(notes.note(|| cell.revoke(), |revoked| Operation::Revoke(*revoked))),
        26 | 27 => {
            let Some(seen) = notes.note(|| cell.get(), |value| Operation::Get(value.as_deref().copied()))
            else {
                return;
            };
            let declared =
                |declared: &bool| Operation::InvalidateIfCurrent { seen: *seen, declared: *declared };
            notes.note(|| cell.invalidate_if_current(&seen), declared);
        }
        28 => drop(notes.note(|| cell.is_refreshing(), |now| Operation::Refreshing(*now))),
        _ => {
            if let Some(Granted { id, lease, .. }) = lease {
                let fenced = |fenced: &bool| Operation::Fenced { id: *id, fenced: *fenced };
                notes.note(|| lease.is_fenced(), fenced);
            }
        }
    }
}

/// `anew`: it needs a newer value than any that it could find.
fn look_up<'a>(
    cell: &'a TestCell,
    me: &mut Member<'_>,
    notes: &mut Notes<'_>,
    lease: &mut Option<Granted<'a>>,
    anew: bool,
) {
    let id = notes.number();
    let looked = |found: &Lookup<'_, u64, Interrupter>| match found {
        // Of a `set` that came between the beginning of the call and its look.
        Lookup::Fresh(value) | Lookup::Stale(value) if anew => Operation::Get(Some(**value)),
        Lookup::Fresh(value) => Operation::Fresh(**value),
        Lookup::Stale(value) => Operation::Stale(**value),
        Lookup::Elected(lease) => {
            let previous = lease.previous().map(|value| **value);
            if anew { Operation::ElectedAnew { id, previous } } else { Operation::Elected { id, previous } }
        }
        Lookup::Pending(_) if anew => Operation::PendingAnew,
        Lookup::Pending(_) => Operation::Pending,
        Lookup::Failed(error) => panic!("there is no retry pause: {error:?}"),
    };
    let look = || if anew { cell.request().no_cache().lookup() } else { cell.lookup() };
    if let Lookup::Elected(granted) = notes.note(look, looked)
        && let Some(displaced) = lease.replace(Granted { id, anew, lease: granted })
    {
        assert!(displaced.lease.is_fenced(), "elected while it holds the lease");
        end(me, notes, displaced);
    }
}

/// The error of a build that is to fail.
const FAILED: &str = "the build fails";

type Attempt<'a> = Box<dyn FnOnce() -> Result<u64, &'static str> + 'a>;

/// A read that builds if it is elected is two operations: one until the build begins, and one from its end.
fn read_or_build<S: Subject>(
    me: &mut Member<'_>,
    notes: &mut Notes<'_>,
    pending: Operation,
    read: impl for<'a> FnOnce(Attempt<'a>) -> Result<u64, RefreshError>,
) {
    let (id, value) = (notes.number(), notes.number());
    let fails = me.random.one_in(4);
    let times = notes.times;
    let (mut elected, mut built) = (None, None);
    let called = times.now();
    let result = read(Box::new(|| {
        elected = Some(times.now());
        me.random.dawdle();
        built = Some(times.now());
        if fails { Err(FAILED) } else { Ok(value) }
    }));
    let returned = times.now();
    let is_fresh_only = pending == Operation::PendingUntilFresh;
    if let (Some(elected), Some(built)) = (elected, built) {
        notes.add(called, elected, Operation::ElectedUnseen(id));
        if fails {
            notes.add(built, returned, Operation::GiveBack(id));
            match result {
                // What may be served is better than an error.
                Ok(served) if is_fresh_only => notes.add(built, returned, Operation::Fresh(served)),
                Ok(served) => notes.add(built, returned, Operation::Get(Some(served))),
                Err(_) if is_fresh_only => {}
                Err(_) => notes.add(built, returned, Operation::Get(None)),
            }
        } else {
            let served = result.unwrap_or_else(|error| panic!("a build that succeeds: {error}"));
            if S::RETURNS_NEWEST && served != value {
                notes.add(built, returned, Operation::PublishUnseen { id, value });
                return notes.add(built, returned, Operation::Get(Some(served)));
            }
            let published = if is_fresh_only {
                Operation::PublishForFresh { id, value, served }
            } else {
                Operation::Publish { id, value, served }
            };
            notes.add(built, returned, published);
        }
    } else {
        match result {
            Ok(served) if is_fresh_only => notes.add(called, returned, Operation::Fresh(served)),
            Ok(served) => notes.add(called, returned, Operation::Served(served)),
            Err(RefreshError::WaitTimeout) => notes.add(called, returned, pending),
            // The end of another caller's build, for which it had come to wait: nothing that the model knows of.
            Err(_) => {}
        }
    }
}

fn end(me: &mut Member<'_>, notes: &mut Notes<'_>, Granted { id, anew, lease }: Granted<'_>) {
    let previous = lease.previous().map(|value| **value);
    match (me.random.below(8), previous) {
        (0, _) => notes.note(|| drop(lease), |()| Operation::GiveBack(id)),
        (1, _) => drop(notes.note(|| lease.fail(FAILED), |_| Operation::GiveBack(id))),
        (2 | 3, Some(previous)) if !anew => {
            let renew = || lease.renew().unwrap_or_else(|_| unreachable!("there is a previous value"));
            let renewed = |served: &Arc<u64>| Operation::Renew { id, previous, served: **served };
            drop(notes.note(renew, renewed));
        }
        (way, _) => {
            let value = notes.number();
            let published = |served: &Arc<u64>| {
                let served = **served;
                if anew {
                    Operation::PublishForNewer { id, value, served }
                } else {
                    Operation::Publish { id, value, served }
                }
            };
            let publish = || if way == 4 { lease.publish_arc(Arc::new(value)) } else { lease.publish(value) };
            drop(notes.note(publish, published));
        }
    }
}

impl Subject for TestReaderCell {
    const RETURNS_NEWEST: bool = true;

    fn new() -> Self {
        Self::with_clock(policy(), Interrupter, Drain::Background, drop)
    }

    fn set(&self, value: u64) {
        drop(TestReaderCell::set(self, value));
    }

    fn invalidate(&self) {
        TestReaderCell::invalidate(self);
    }

    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>, steps: usize) {
        for _ in 0..steps {
            match me.random.below(22) {
                0..3 => drop(notes.note(|| self.get(), |value| Operation::Get(value.as_deref().copied()))),
                3..5 => drop(notes.note(|| self.load(), |value| Operation::Get(value.as_deref().copied()))),
                5 => drop(notes.note(|| self.generation(), |now| Operation::Generation(*now))),
                6 => drop(notes.note(|| self.freshness(), |now| Operation::Looks(*now))),
                7..11 => read_or_build::<Self>(me, notes, Operation::Pending, |build| {
                    self.request().wait_at_most(Duration::ZERO).try_get(build).map(number)
                }),
                11..13 => {
                    let value = notes.number();
                    let set = |_: &ReaderArc<u64>| Operation::Set(value);
                    match me.random.below(3) {
                        0 => drop(notes.note(|| self.set_for(value, Duration::MAX), set)),
                        1 => {
                            let restored = |_: &ReaderArc<u64>| Operation::Restore(value);
                            drop(notes.note(|| self.restore(value, Duration::ZERO), restored));
                        }
                        _ => drop(notes.note(|| TestReaderCell::set(self, value), set)),
                    }
                }
                13 | 14 => notes.note(|| TestReaderCell::invalidate(self), |()| Operation::Invalidate),
                15 => notes.note(|| self.clear(), |()| Operation::ClearUnseen),
                16 => notes.note(|| self.reset(), |()| Operation::ClearUnseen),
                17 => drop(notes.note(|| self.revoke(), |revoked| Operation::Revoke(*revoked))),
                18 => drop(notes.note(|| self.is_refreshing(), |now| Operation::Refreshing(*now))),
                19 => {
                    let read = |value: &Option<ReaderArc<u64>>| Operation::Get(value.as_deref().copied());
                    let Some(seen) = notes.note(|| self.get(), read) else { continue };
                    let declared =
                        |declared: &bool| Operation::InvalidateIfCurrent { seen: *seen, declared: *declared };
                    notes.note(|| self.invalidate_if_current(&seen), declared);
                }
                _ => {
                    let shown = |shot: &Option<Snapshot<u64, ReaderArc<u64>>>| {
                        let shown = |shot: &Snapshot<u64, ReaderArc<u64>>| {
                            (*shot.value, shot.generation, shot.freshness)
                        };
                        Operation::Snapshot(shot.as_ref().map(shown))
                    };
                    drop(notes.note(|| self.snapshot(), shown));
                }
            }
        }
    }
}
