//! A thousand threads wait, one publishes: when does the last one run?
//!
//! Three ways to wait, in turns, with the same threads: a place among those who wait for a cell's first value; a bare
//! `parking_lot::Condvar`; and parking without anything, where the waker knows whom to wake, which is the least that a
//! thousand wake-ups can cost.

use super::{Part, bar, float, origin};
use crate::data::Table;
use anyhow::{Context, bail, ensure};
use dogpile::{DogpileCell, Lookup, Waited};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

const STACK: usize = 64 << 10;
/// By then those who are about to sleep are asleep.
const SETTLE: Duration = Duration::from_millis(15);

#[derive(Clone, Copy)]
enum Way {
    Cell,
    Condvar,
    Park,
}

impl Way {
    const ALL: [Self; 3] = [Self::Cell, Self::Condvar, Self::Park];

    const fn name(self) -> &'static str {
        match self {
            Self::Cell => "cell",
            Self::Condvar => "condvar",
            Self::Park => "park",
        }
    }
}

/// What the threads of one turn wait for: each turn has one of its own.
#[derive(Default)]
struct Turn {
    /// For [`Way::Condvar`]: whether it is time.
    open: Mutex<bool>,
    opened: Condvar,
    /// For [`Way::Park`].
    unparked: AtomicUsize,
    /// Threads that have begun to wait, in these two ways.
    waiting: AtomicUsize,
    /// Threads that have not run again.
    left: AtomicUsize,
    /// When the last one ran again, in nanoseconds since the start of it all.
    last: AtomicU64,
    /// Of [`Way::Cell`]: callers that got something else than a value to wait for.
    astray: AtomicUsize,
}

struct Field {
    start: Instant,
    cells: Vec<DogpileCell<u64>>,
    turns: Vec<Turn>,
    /// The turn that runs, from 1.
    turn: AtomicUsize,
    main: Thread,
}

impl Field {
    fn way(turn: usize) -> Way {
        // Each in each place of a round.
        let (round, place) = (turn / Way::ALL.len(), turn % Way::ALL.len());
        Way::ALL[(round + place) % Way::ALL.len()]
    }

    /// A waiting thread, over all turns.
    fn wait(&self) {
        for (number, turn) in self.turns.iter().enumerate() {
            // Acquire, here and below: pairs with the Release in `run`.
            while self.turn.load(Ordering::Acquire) <= number {
                thread::park();
            }
            match Self::way(number) {
                Way::Cell => {
                    let waited = match self.cells[number].lookup() {
                        Lookup::Pending(pending) => pending.wait(),
                        _ => Waited::Abandoned,
                    };
                    if !matches!(waited, Waited::Published(_)) {
                        turn.astray.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Way::Condvar => {
                    let mut open = turn.open.lock();
                    turn.waiting.fetch_add(1, Ordering::Relaxed);
                    while !*open {
                        turn.opened.wait(&mut open);
                    }
                }
                Way::Park => {
                    turn.waiting.fetch_add(1, Ordering::Relaxed);
                    while turn.unparked.load(Ordering::Acquire) == 0 {
                        thread::park();
                    }
                }
            }
            let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            turn.last.fetch_max(now, Ordering::Relaxed);
            // AcqRel: the last one has seen what all of them have written, and shows it.
            if turn.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.main.unpark();
            }
        }
    }

    /// The thread that publishes, for one turn.
    fn run(&self, number: usize, threads: &[Thread]) -> anyhow::Result<Duration> {
        let (way, turn, cell) = (Self::way(number), &self.turns[number], &self.cells[number]);
        turn.left.store(threads.len(), Ordering::Relaxed);
        let lease = match (way, cell.lookup()) {
            (Way::Cell, Lookup::Elected(lease)) => Some(lease),
            (Way::Cell, other) => bail!("an empty cell elects its first caller, not: {other:?}"),
            _ => None,
        };
        self.turn.store(number + 1, Ordering::Release);
        threads.iter().for_each(Thread::unpark);
        let patience = Instant::now() + Duration::from_mins(1);
        loop {
            let waiting = match way {
                Way::Cell => usize::try_from(cell.stats().waits)?,
                _ => turn.waiting.load(Ordering::Relaxed),
            };
            if waiting == threads.len() {
                break;
            }
            ensure!(Instant::now() < patience, "only {waiting} threads have come to wait");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(SETTLE);
        let before = self.start.elapsed();
        match (way, lease) {
            (Way::Cell, Some(lease)) => drop(lease.publish(1)),
            (Way::Condvar, _) => {
                *turn.open.lock() = true;
                turn.opened.notify_all();
            }
            _ => {
                turn.unparked.store(1, Ordering::Release);
                threads.iter().for_each(Thread::unpark);
            }
        }
        while turn.left.load(Ordering::Acquire) > 0 {
            thread::park();
        }
        let astray = turn.astray.load(Ordering::Relaxed);
        ensure!(astray == 0, "{astray} threads have not waited");
        Ok(Duration::from_nanos(turn.last.load(Ordering::Relaxed)).saturating_sub(before))
    }
}

pub(super) fn measure(quick: bool) -> anyhow::Result<Table> {
    let (rounds, waiters) = if quick { (1, 50) } else { (61, 1000) };
    let how = format!("{rounds} rounds, {waiters} waiters");
    let mut table = Table::new(&origin(quick, &how), &["way"]);
    let bar = bar(Part::Wakeup, rounds * Way::ALL.len());
    let turns = rounds * Way::ALL.len();
    let field = Arc::new(Field {
        start: Instant::now(),
        cells: (0..turns).map(|_| DogpileCell::new(super::LONG)).collect(),
        turns: (0..turns).map(|_| Turn::default()).collect(),
        turn: AtomicUsize::new(0),
        main: thread::current(),
    });
    // Not scoped: should a turn fail, they are left where they are.
    let waiting: Vec<thread::JoinHandle<()>> = (0..waiters)
        .map(|_| {
            let field = Arc::clone(&field);
            thread::Builder::new().stack_size(STACK).spawn(move || field.wait())
        })
        .collect::<Result<_, _>>()
        .context("cannot start so many threads")?;
    let threads: Vec<Thread> = waiting.iter().map(|thread| thread.thread().clone()).collect();
    for number in 0..turns {
        let time = field.run(number, &threads)?;
        let nanos = u64::try_from(time.as_nanos())?;
        table.add(&[Field::way(number).name()], float(nanos) / 1e6);
        bar.inc(1);
    }
    for thread in waiting {
        thread.join().expect("a waiter does not panic");
    }
    bar.finish_and_clear();
    Ok(table)
}
