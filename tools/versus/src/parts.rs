//! The workloads. Each goes over all contestants again and again, so that a noisy moment hits them alike.

mod building;
mod fresh;
pub(crate) mod keyed;
pub(crate) mod notify;
mod ratios;
mod refresh;
mod stampede;
mod wakeup;

pub(crate) use fresh::THREADS;
pub(crate) use ratios::{ARITHMETIC_ON_TWO, Goal, LOOP, Row, rows};
pub(crate) use refresh::EVERY;

use crate::contest::Entry;
use crate::data::Table;
use crate::machine;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A part of the comparison, with a CSV file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Part {
    /// What this crate is held to: pairs, measured side by side
    Ratios,
    /// A thousand waiters, and one publication
    Wakeup,
    /// Reads of a value that is up to date
    Fresh,
    /// Reads while another thread builds
    Building,
    /// Reads while the value is replaced every 1, 10, 100 ms
    Refresh,
    /// 256 threads and an empty cell
    Stampede,
    /// Caches of many keys
    Keyed,
    /// Subscriptions beside tokio's watch, and derived values
    Notify,
}

impl Part {
    pub(crate) const ALL: [Self; 8] = [
        Self::Ratios,
        Self::Wakeup,
        Self::Fresh,
        Self::Building,
        Self::Refresh,
        Self::Stampede,
        Self::Keyed,
        Self::Notify,
    ];

    /// As it is called on the command line, and its files.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ratios => "ratios",
            Self::Wakeup => "wakeup",
            Self::Fresh => "fresh",
            Self::Building => "building",
            Self::Refresh => "refresh",
            Self::Stampede => "stampede",
            Self::Keyed => "keyed",
            Self::Notify => "notify",
        }
    }

    pub(crate) fn measure(self, quick: bool) -> anyhow::Result<Table> {
        match self {
            Self::Ratios => Ok(ratios::measure(quick)),
            Self::Wakeup => wakeup::measure(quick),
            Self::Fresh => fresh::measure(quick),
            Self::Building => building::measure(quick),
            Self::Refresh => Ok(refresh::measure(quick)),
            Self::Stampede => stampede::measure(quick),
            Self::Keyed => keyed::measure(quick),
            Self::Notify => notify::measure(quick),
        }
    }
}

/// Long enough that nothing is ever out of date.
pub(crate) const LONG: Duration = Duration::from_hours(1);

fn origin(quick: bool, how: &str) -> String {
    let quick = if quick { "quick, the figures mean little: " } else { "" };
    format!("{}; {quick}{how}", machine::describe())
}

fn bar(part: Part, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:8} {wide_bar} {pos}/{len}  {eta}")
        .expect("a template that is written here");
    ProgressBar::new(length as u64).with_style(style).with_prefix(part.name())
}

/// What came of a while of reading.
struct While {
    reads: u64,
    seconds: f64,
}

/// Lets `threads` threads read for `duration`, `batch` reads between two looks at the flag that stops them.
fn read_for<V>(
    entry: &dyn Entry<V>,
    threads: usize,
    variant: usize,
    batch: u32,
    duration: Duration,
) -> While {
    let (start, stop) = (Barrier::new(threads + 1), AtomicBool::new(false));
    let turn = || {
        let mut runner = entry.runner();
        runner.read();
        start.wait();
        let began = Instant::now();
        let mut reads = 0;
        // Relaxed: it orders nothing.
        while !stop.load(Ordering::Relaxed) {
            runner.run(variant, batch);
            reads += u64::from(batch);
        }
        (began, Instant::now(), reads)
    };
    let turns: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(turn)).collect();
        start.wait();
        thread::sleep(duration);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("a reader does not panic")).collect()
    });
    let began = turns.iter().map(|(began, ..)| *began).min().expect("at least one thread");
    let ended = turns.iter().map(|(_, ended, _)| *ended).max().expect("at least one thread");
    While { reads: turns.iter().map(|(.., reads)| reads).sum(), seconds: (ended - began).as_secs_f64() }
}

#[allow(clippy::cast_precision_loss, reason = "what is counted here is far below 2^52")]
fn float(number: u64) -> f64 {
    number as f64
}
