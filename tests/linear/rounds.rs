//! Rounds of recorded operations: what is common to all that they are done on.

use std::cell::RefCell;
use std::hint;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, Policy, RefreshError, Tick};

use crate::checker::{Event, check};
use crate::harness::{Member, Random, alone, lock, scaled, seed, task, together};
use crate::model::{Operation, State};

pub(crate) const THREADS: usize = if cfg!(miri) { 3 } else { 4 };
const STEPS: usize = if cfg!(miri) { 5 } else { 8 };
/// Rounds between two starts of the threads.
const BATCH: usize = if cfg!(miri) { 3 } else { 100 };

/// A clock that stands still, and lets others run when it is looked at: which is in the middle of an election, of a
/// publication, of an invalidation. So operations overlap on any number of processors.
#[derive(Clone)]
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
    pub(crate) fn number(&mut self) -> u64 {
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
    /// How often the value may be evicted in a round, unseen.
    const EVICTIONS: u64 = 0;

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
            // At any time.
            events.extend((0..S::EVICTIONS).map(|_| Event {
                thread: THREADS,
                called: 0,
                returned: u64::MAX,
                operation: Operation::Evict,
            }));
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
        .filter(|(_, one)| one.thread < THREADS)
        .flat_map(|(number, one)| events[number + 1..].iter().filter(move |other| one.overlaps(other)));
    pairs.count() as u64
}

/// No failure begins a pause.
pub(crate) fn policy() -> Policy {
    Policy::never_expires().retry_backoff(Duration::ZERO, Duration::ZERO)
}

/// The error of a build that is to fail.
pub(crate) const FAILED: &str = "the build fails";

pub(crate) type Attempt<'a> = Box<dyn FnOnce() -> Result<u64, &'static str> + 'a>;

/// A read that builds if it is elected is two operations: one until the build begins, and one from its end.
pub(crate) fn read_or_build<S: Subject>(
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
