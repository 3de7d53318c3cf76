//! Reads while one thread builds: what everybody else gets done, and how long their reads take.

use super::{Part, bar, float, origin};
use crate::contest::{Card, Entry, STRIDE, Small, Source, WIDTHS};
use crate::contestants;
use crate::data::Table;
use crate::machine::cores;
use anyhow::bail;
use hdrhistogram::Histogram;
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Short, so that the value is soon out of date; not so short that a coarse clock takes a new value for an old one.
const TTL: Duration = Duration::from_millis(20);
/// By then every clock has noticed, the coarse ones too.
const EXPIRY: Duration = Duration::from_millis(45);
/// Longer than any read takes.
const LONGEST: u64 = 60_000_000_000;
/// Builds to try until anybody else has read during one.
const TRIES: usize = 20;
/// The build that is watched; the first one fills the cell.
const WATCHED: u64 = 2;

pub(super) fn measure(quick: bool) -> anyhow::Result<Table> {
    let (rounds, build) =
        if quick { (1, Duration::from_millis(10)) } else { (6, Duration::from_millis(100)) };
    // One of them builds, and sleeps: the others have a core each.
    let readers = cores() + 1;
    let how = format!(
        "{rounds} rounds for the throughput and {rounds} for the latency, {readers} threads, of which one builds, for {} ms",
        build.as_millis()
    );
    let mut table = Table::new(&origin(quick, &how), &["contestant", "measure"]);
    let cards: Vec<Card<Small>> =
        contestants::all().into_iter().filter(|card: &Card<Small>| card.traits.expires).collect();
    let bar = bar(Part::Building, rounds * cards.len());
    for round in 0..rounds {
        for card in &cards {
            let name = card.name;
            let reads = Window::new(card, build).count(readers, round % WIDTHS.len())?;
            table.add(&[name, "reads per second"], reads);
            let (latencies, builds) = timed(card, build, readers)?;
            for (measure, value) in [
                ("p50 ns", latencies.value_at_quantile(0.5)),
                ("p99 ns", latencies.value_at_quantile(0.99)),
                ("p99.9 ns", latencies.value_at_quantile(0.999)),
                ("max ns", latencies.max()),
            ] {
                table.add(&[name, measure], float(value));
            }
            table.add(&[name, "builds"], float(builds));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(table)
}

/// How long the reads of all but the builder take, and how many builds there are.
fn timed(card: &Card<Small>, build: Duration, readers: usize) -> anyhow::Result<(Histogram<u64>, u64)> {
    for _ in 0..TRIES {
        let window = Window::new(card, build);
        let latencies = window.time(readers)?;
        if !latencies.is_empty() {
            return Ok((latencies, window.entry.source().began() - 1));
        }
        // Nobody else had a core during the build.
    }
    bail!("{}: nobody but the builder has read in {TRIES} builds", card.name)
}

/// A cell whose value is out of date, and whose next build takes its time.
struct Window {
    entry: Box<dyn Entry<Small>>,
    /// When the watched build began.
    began: Arc<OnceLock<Instant>>,
    start: Barrier,
}

impl Window {
    fn new(card: &Card<Small>, build: Duration) -> Self {
        let began = Arc::new(OnceLock::new());
        let note = Arc::clone(&began);
        let source = Source::new(move |number| {
            if number >= WATCHED {
                note.get_or_init(Instant::now);
                // Not spinning: the value comes from elsewhere.
                thread::sleep(build);
            }
        });
        let entry = card.enter(TTL, source);
        entry.runner().read();
        thread::sleep(EXPIRY);
        Self { entry, began, start: Barrier::new(cores() + 1) }
    }

    fn is_open(&self) -> bool {
        self.entry.source().ended() < WATCHED
    }

    /// Reads per second of all but the builder, in batches.
    fn count(&self, readers: usize, variant: usize) -> anyhow::Result<f64> {
        let turn = || {
            let mut runner = self.entry.runner();
            self.start.wait();
            let mut reads = 0;
            loop {
                runner.run(variant, 4 * STRIDE);
                // A batch that has waited for the end of the build has done nothing during it.
                if !self.is_open() {
                    break;
                }
                reads += u64::from(4 * STRIDE);
            }
            (reads, Source::<Small>::was_built_here(WATCHED), Instant::now())
        };
        let turns = on_threads(readers, turn);
        let ended = turns.iter().map(|(.., ended)| *ended).min().expect("there are readers");
        let Some(began) = self.began.get() else { bail!("the value was never out of date") };
        let reads: u64 = turns.iter().filter(|(_, builder, _)| !builder).map(|(reads, ..)| reads).sum();
        Ok(float(reads) / (ended - *began).as_secs_f64())
    }

    /// How long the reads of all but the builder take, in nanoseconds.
    fn time(&self, readers: usize) -> anyhow::Result<Histogram<u64>> {
        let turn = || {
            let mut runner = self.entry.runner();
            let mut latencies = Histogram::<u64>::new_with_max(LONGEST, 3).expect("three digits are allowed");
            self.start.wait();
            // One look at the clock for each read: where one ends, the next begins.
            let mut before = Instant::now();
            while self.is_open() {
                runner.read();
                let now = Instant::now();
                if !Source::<Small>::was_built_here(WATCHED) {
                    let nanos = u64::try_from((now - before).as_nanos()).unwrap_or(u64::MAX);
                    latencies.saturating_record(nanos);
                }
                before = now;
            }
            latencies
        };
        let mut all = Histogram::<u64>::new_with_max(LONGEST, 3)?;
        for latencies in on_threads(readers, turn) {
            all.add(latencies)?;
        }
        Ok(all)
    }
}

fn on_threads<R: Send>(threads: usize, turn: impl Fn() -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(&turn)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a reader does not panic")).collect()
    })
}
