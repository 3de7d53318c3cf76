//! Reads while the value is replaced all the time: one build per ttl, which is as fast as it can be.

use super::{Part, bar, float, origin, read_for};
use crate::contest::{Large, STRIDE, Small, Source, Value, WIDTHS};
use crate::contestants;
use crate::data::Table;
use crate::machine::cores;
use std::time::Duration;

/// The ttl in milliseconds, and how long is read with it.
pub(crate) const EVERY: [(u64, u64); 3] = [(1, 50), (10, 60), (100, 210)];

pub(super) fn measure(quick: bool) -> Table {
    let rounds = if quick { 1 } else { 4 };
    let how = format!("{rounds} rounds, {} threads", cores());
    let mut table = Table::new(&origin(quick, &how), &["contestant", "value", "every ms", "measure"]);
    let bar = bar(Part::Refresh, rounds * EVERY.len());
    for round in 0..rounds {
        for (every, window) in EVERY {
            let window = Duration::from_millis(if quick { every.min(10) } else { window });
            turn::<Small>(every, window, round, &mut table);
            turn::<Large>(every, window, round, &mut table);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    table
}

fn turn<V: Value>(every: u64, window: Duration, round: usize, table: &mut Table) {
    for card in contestants::all::<V>() {
        let entry = card.enter(Duration::from_millis(every), Source::idle());
        let done = read_for(&*entry, cores(), round % WIDTHS.len(), 4 * STRIDE, window);
        let every = every.to_string();
        table.add(&[card.name, V::SIZE, &every, "reads per second"], float(done.reads) / done.seconds);
        let builds = float(entry.source().began());
        table.add(&[card.name, V::SIZE, &every, "builds per second"], builds / done.seconds);
    }
}
