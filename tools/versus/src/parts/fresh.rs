//! Reads of a value that is up to date: 1, 2, 4, 8 threads, small values and large ones.

use super::{LONG, Part, bar, float, origin, read_for};
use crate::contest::{Card, Entry, Large, STRIDE, Small, Source, Value, WIDTHS};
use crate::contestants;
use crate::data::Table;
use crate::machine::cores;
use anyhow::ensure;
use std::time::Duration;

pub(crate) const THREADS: [usize; 4] = [1, 2, 4, 8];

pub(super) fn measure(quick: bool) -> anyhow::Result<Table> {
    let (rounds, window) =
        if quick { (1, Duration::from_millis(1)) } else { (12, Duration::from_millis(16)) };
    let how = format!("{rounds} rounds, {} ms each", window.as_millis());
    let mut table = Table::new(&origin(quick, &how), &["contestant", "value", "threads"]);
    let (small, large) = (enter::<Small>(), enter::<Large>());
    let bar = bar(Part::Fresh, rounds * THREADS.len());
    for round in 0..rounds {
        for threads in THREADS {
            turn(&small, threads, round, window, &mut table)?;
            turn(&large, threads, round, window, &mut table)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(table)
}

type Entered<V> = Vec<(Card<V>, Box<dyn Entry<V>>)>;

fn enter<V: Value>() -> Entered<V> {
    contestants::all::<V>()
        .into_iter()
        .map(|card| {
            let entry = card.enter(LONG, Source::idle());
            (card, entry)
        })
        .collect()
}

fn turn<V: Value>(
    entered: &Entered<V>,
    threads: usize,
    round: usize,
    window: Duration,
    table: &mut Table,
) -> anyhow::Result<()> {
    for (card, entry) in entered {
        let done = read_for(&**entry, threads, round % WIDTHS.len(), 40 * STRIDE, window);
        // Of processor time, as if the threads in excess of the cores were not there: so what is seen is what the
        // threads do to each other, and not that they take turns.
        let busy = float(threads.min(cores()) as u64);
        let nanos = done.seconds * busy / float(done.reads) * 1e9;
        table.add(&[card.name, V::SIZE, &threads.to_string()], nanos);
        let builds = entry.source().began();
        ensure!(builds == 1, "{} has built {builds} times while its value was up to date", card.name);
    }
    Ok(())
}
