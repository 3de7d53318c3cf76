//! The readers: threads that look words up as fast as they can, and believe nothing.
//!
//! A reader takes the current generation, looks up a handful of words, and leaves. Every other time it does so with a
//! `ReaderArc`, and builds if it is elected; the other times with a `ReadGuard`, which never waits, as long as there
//! is something to be read. It holds nothing while it asks, so it never waits for itself.

use crate::format::Bad;
use crate::store::{DataFile, Store};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often the progress is shown, and how late at most a failure ends the run.
const TICK: Duration = Duration::from_millis(100);

/// At most so many words are looked up before the reader leaves.
const WORDS_PER_VISIT: u64 = 16;

/// One lookup in so many is for a word that is not there.
const ONE_ABSENT_IN: u64 = 16;

/// Who reads, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) threads: u32,
    pub(crate) window: Duration,
}

/// What the readers have seen; first each for itself, then all together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) elapsed: Duration,
    pub(crate) lookups: u64,
    pub(crate) bad: u64,
    pub(crate) first_bad: Option<Bad>,
    /// The longest that a thread which did not build was inside a call for a reader.
    pub(crate) longest_wait: Duration,
    /// The longest time between two looks at the clock with nothing in between, made as often.
    pub(crate) longest_pause: Duration,
    /// The longest that a reader was inside.
    pub(crate) longest_visit: Duration,
}

impl Tally {
    fn lookup(&mut self, outcome: Result<(), Bad>) {
        self.lookups += 1;
        if let Err(bad) = outcome {
            self.bad += 1;
            self.first_bad.get_or_insert(bad);
        }
    }

    fn add(&mut self, other: Self) {
        self.lookups += other.lookups;
        self.bad += other.bad;
        self.first_bad = self.first_bad.take().or(other.first_bad);
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.longest_pause = self.longest_pause.max(other.longest_pause);
        self.longest_visit = self.longest_visit.max(other.longest_visit);
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate to be read by people")]
    pub(crate) fn lookups_per_second(&self) -> f64 {
        self.lookups as f64 / self.elapsed.as_secs_f64().max(0.001)
    }
}

/// A counter on a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Counter(AtomicU64);

/// Lets the threads read until the window closes, or something fails.
///
/// If no generation has been replaced by then, which would prove nothing, it goes on until one has.
pub(crate) fn run(
    store: &Store,
    plan: Plan,
    mut show: impl FnMut(Duration, u64, u64),
) -> anyhow::Result<Tally> {
    // The first build is not what is measured.
    drop(store.get_or_refresh()?);
    let first = store.generation();
    let stop = AtomicBool::new(false);
    let counters: Vec<Counter> = (0..plan.threads).map(|_| Counter::default()).collect();
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0_u64..)
            .zip(&counters)
            .map(|(number, counter)| {
                let reader = Reader { store, stop: &stop, counter, random: Random(number) };
                scope.spawn(|| {
                    // Also if it panics.
                    let _stop = StopAll(reader.stop).unless_over();
                    reader.work()
                })
            })
            .collect();
        // Relaxed, here and everywhere: the flag only says "enough", nothing is read on the strength of it.
        while !stop.load(Ordering::Relaxed) {
            let elapsed = start.elapsed();
            let lookups = counters.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
            show(elapsed.min(plan.window), lookups, store.generation());
            let left = plan.window.saturating_sub(elapsed);
            if left.is_zero() && store.generation() > first {
                stop.store(true, Ordering::Relaxed);
                break;
            }
            thread::sleep(if left.is_zero() { TICK / 10 } else { left.min(TICK) });
        }
        let mut tally = Tally { elapsed: start.elapsed(), ..Tally::default() };
        for thread in threads {
            tally.add(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(tally)
    })
}
