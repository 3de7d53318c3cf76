//! An empty cell, and 256 threads that all want its value at once.

use super::{Part, bar, float, origin};
use crate::contest::{Card, Small, Source};
use crate::contestants;
use crate::data::Table;
use anyhow::Context;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// They do next to nothing.
/// kovan needs more than 128 KiB in a build without optimizations.
const STACK: usize = 1 << 20;

pub(super) fn measure(quick: bool) -> anyhow::Result<Table> {
    let (rounds, threads, wait) =
        if quick { (1, 32, Duration::from_millis(4)) } else { (7, 256, Duration::from_millis(20)) };
    let build = Build { wait, effort: effort_for(Duration::from_millis(1)) };
    let how = format!(
        "{rounds} rounds, {threads} threads, a build that waits for {} ms and computes for 1 ms",
        wait.as_millis()
    );
    let mut table = Table::new(&origin(quick, &how), &["contestant", "measure"]);
    let cards = contestants::all::<Small>();
    let bar = bar(Part::Stampede, rounds * cards.len());
    for _ in 0..rounds {
        for card in &cards {
            let (builds, all) = stampede(card, threads, build)?;
            table.add(&[card.name, "builds"], float(builds));
            table.add(&[card.name, "ms until all have it"], all.as_secs_f64() * 1e3);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(table)
}

/// The number of builds, and the time from the start until the last thread has the value.
fn stampede(card: &Card<Small>, threads: usize, build: Build) -> anyhow::Result<(u64, Duration)> {
    let entry = card.enter(super::LONG, Source::new(move |_| build.run()));
    let start = Barrier::new(threads + 1);
    let turn = || {
        let mut runner = entry.runner();
        start.wait();
        runner.read();
        Instant::now()
    };
    let all = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| thread::Builder::new().stack_size(STACK).spawn_scoped(scope, turn))
            .collect::<Result<_, _>>()
            .context("cannot start so many threads")?;
        let began = Instant::now();
        start.wait();
        let last = threads
            .into_iter()
            .map(|thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("a reader does not panic"))
            .max();
        anyhow::Ok(last.expect("there are threads") - began)
    })?;
    Ok((entry.source().began(), all))
}

/// What a build does: it waits, as for a database, and does something with the answer.
#[derive(Clone, Copy)]
struct Build {
    wait: Duration,
    effort: u64,
}

impl Build {
    fn run(self) {
        thread::sleep(self.wait);
        toil(self.effort);
    }
}

/// Keeps a core busy.
fn toil(effort: u64) {
    let mut state = 1_u64;
    for _ in 0..effort {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// How much of it takes so long when nothing else runs.
fn effort_for(time: Duration) -> u64 {
    const TRIAL: u64 = 200_000;
    let trial = || {
        let start = Instant::now();
        toil(TRIAL);
        start.elapsed()
    };
    let fastest = (0..20).map(|_| trial()).min().expect("there are trials");
    let times = time.as_secs_f64() / fastest.as_secs_f64();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some millions")]
    let effort = (times * float(TRIAL)) as u64;
    effort
}
