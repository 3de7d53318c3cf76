//! Rounds of recorded operations on real cells.

use std::cell::RefCell;
use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dogpile::{
    Clock, DogpileCell, Drain, Lease, Lookup, Policy, Reader, RefreshError, Snapshot, SyncReaderCell, Tick,
};

use crate::checker::{Event, check};
use crate::harness::{Member, Random, alone, lock, scaled, seed, task, together};
use crate::model::{Operation, State};

const THREADS: usize = if cfg!(miri) { 3 } else { 4 };
const STEPS: usize = if cfg!(miri) { 5 } else { 8 };
/// Rounds between two starts of the threads.
const BATCH: usize = if cfg!(miri) { 3 } else { 100 };

type TestCell = DogpileCell<u64, Interrupter>;
type TestReaderCell = SyncReaderCell<u64, Interrupter>;

/// A clock that stands still, and lets others run when it is looked at: which is in the middle of an election, of a
/// publication, of an invalidation. So operations overlap on any number of processors.
struct Interrupter;

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
struct Notes<'a> {
    thread: usize,
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
    fn note<R>(&mut self, call: impl FnOnce() -> R, operation: impl FnOnce(&R) -> Operation) -> R {
        let called = self.times.now();
        let result = call();
        let returned = self.times.now();
        self.add(called, returned, operation(&result));
        result
    }
}

/// What the rounds are about.
trait Subject: Sync {
    fn new() -> Self;
    fn set(&self, value: u64);
    fn invalidate(&self);

    /// All that a thread does in a round.
    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>);

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

fn rounds<S: Subject>(usual: u64, in_miri: u64) {
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
                cell.act(me, &mut notes);
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

impl Subject for TestCell {
    fn new() -> Self {
        Self::with_clock(Policy::never_expires(), Interrupter)
    }

    fn set(&self, value: u64) {
        TestCell::set(self, value);
    }

    fn invalidate(&self) {
        TestCell::invalidate(self);
    }

    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>) {
        let mut handle = self.reader();
        let mut lease: Option<Lease<'_, u64, Interrupter>> = None;
        for _ in 0..STEPS {
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

fn step<'a>(
    cell: &'a TestCell,
    me: &mut Member<'_>,
    notes: &mut Notes<'_>,
    handle: &mut Reader<'a, u64, Interrupter>,
    lease: &mut Option<Lease<'a, u64, Interrupter>>,
) {
    match me.random.below(24) {
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
        12..16 => look_up(cell, notes, lease),
        16 | 17 if lease.is_none() => read_or_build(me, notes, |build| {
            cell.try_get_or_refresh_timeout(Duration::ZERO, build).map(number)
        }),
        16..20 => {
            let value = notes.number();
            notes.note(|| cell.set(value), |_| Operation::Set(value));
        }
        20..23 => notes.note(|| cell.invalidate(), |()| Operation::Invalidate),
        _ => drop(notes.note(|| cell.clear(), |taken| Operation::Clear(taken.as_deref().copied()))),
    }
}

fn look_up<'a>(cell: &'a TestCell, notes: &mut Notes<'_>, lease: &mut Option<Lease<'a, u64, Interrupter>>) {
    let looked = |found: &Lookup<'_, u64, Interrupter>| match found {
        Lookup::Fresh(value) => Operation::Fresh(**value),
        Lookup::Stale(value) => Operation::Stale(**value),
        Lookup::Elected(lease) => Operation::Elected(lease.previous().map(|value| **value)),
        Lookup::Pending(_) => Operation::Pending,
        Lookup::Failed(error) => panic!("there is no retry pause: {error:?}"),
    };
    if let Lookup::Elected(granted) = notes.note(|| cell.lookup(), looked) {
        assert!(lease.is_none(), "elected while it holds the lease");
        *lease = Some(granted);
    }
}

/// A build that is to fail.
struct Failed;

type Attempt<'a> = Box<dyn FnOnce() -> Result<u64, Failed> + 'a>;

/// A read that builds if it is elected is two operations: one until the build begins, and one from its end.
fn read_or_build(
    me: &mut Member<'_>,
    notes: &mut Notes<'_>,
    read: impl for<'a> FnOnce(Attempt<'a>) -> Result<u64, RefreshError<Failed>>,
) {
    let value = notes.number();
    let fails = me.random.one_in(4);
    let times = notes.times;
    let (mut elected, mut built) = (None, None);
    let called = times.now();
    let result = read(Box::new(|| {
        elected = Some(times.now());
        me.random.dawdle();
        built = Some(times.now());
        if fails { Err(Failed) } else { Ok(value) }
    }));
    let returned = times.now();
    if let (Some(elected), Some(built)) = (elected, built) {
        notes.add(called, elected, Operation::ElectedUnseen);
        if fails {
            notes.add(built, returned, Operation::GiveBack);
            // There may be a fresh value by now, which is better than an error.
            if let Ok(served) = result {
                notes.add(built, returned, Operation::Fresh(served));
            }
        } else {
            let served = result.unwrap_or_else(|error| panic!("a build that succeeds: {error}"));
            notes.add(built, returned, Operation::Publish { value, served });
        }
    } else {
        match result {
            Ok(served) => notes.add(called, returned, Operation::Served(served)),
            Err(RefreshError::WaitTimeout) => notes.add(called, returned, Operation::Pending),
            // The end of somebody else's build, which it had come to wait for: nothing that the model knows of.
            Err(_) => {}
        }
    }
}

fn end(me: &mut Member<'_>, notes: &mut Notes<'_>, lease: Lease<'_, u64, Interrupter>) {
    let previous = lease.previous().map(|value| **value);
    match (me.random.below(8), previous) {
        (0, _) => notes.note(|| drop(lease), |()| Operation::GiveBack),
        (1, _) => drop(notes.note(|| lease.fail("no luck"), |_| Operation::GiveBack)),
        (2 | 3, Some(previous)) => {
            let renew = || lease.renew().unwrap_or_else(|_| unreachable!("there is a previous value"));
            let renewed = |served: &Arc<u64>| Operation::Renew { previous, served: **served };
            drop(notes.note(renew, renewed));
        }
        _ => {
            let value = notes.number();
            let published = |served: &Arc<u64>| Operation::Publish { value, served: **served };
            drop(notes.note(|| lease.publish(value), published));
        }
    }
}

impl Subject for TestReaderCell {
    fn new() -> Self {
        Self::with_clock(Policy::never_expires(), Interrupter, Drain::Background, drop)
    }

    fn set(&self, value: u64) {
        drop(TestReaderCell::set(self, value));
    }

    fn invalidate(&self) {
        TestReaderCell::invalidate(self);
    }

    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>) {
        for _ in 0..STEPS {
            match me.random.below(16) {
                0..3 => drop(notes.note(|| self.get(), |value| Operation::Get(value.as_deref().copied()))),
                3..5 => drop(notes.note(|| self.load(), |value| Operation::Get(value.as_deref().copied()))),
                5 => drop(notes.note(|| self.generation(), |now| Operation::Generation(*now))),
                6 => drop(notes.note(|| self.freshness(), |now| Operation::Looks(*now))),
                7..11 => read_or_build(me, notes, |build| {
                    self.try_get_or_refresh_timeout(Duration::ZERO, build).map(number)
                }),
                11..13 => {
                    let value = notes.number();
                    drop(notes.note(|| TestReaderCell::set(self, value), |_| Operation::Set(value)));
                }
                13 | 14 => notes.note(|| TestReaderCell::invalidate(self), |()| Operation::Invalidate),
                _ => notes.note(|| self.clear(), |()| Operation::ClearUnseen),
            }
        }
    }
}
