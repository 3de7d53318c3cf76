//! What this crate is held to: pairs of operations, each pair measured one right after the other, round by round, so
//! that their ratio is taken under the same weather.

mod sides;

use super::{LONG, Part, bar, origin};
use crate::contest::{Contestant, Entry, STRIDE, Small, Source, WIDTHS, enter};
use crate::contestants;
use crate::contestants::caches::CachedOnce;
use crate::contestants::kovan::Kovan;
use crate::contestants::locks::StdRwLock;
use crate::contestants::own::{SyncGet, SyncLoad};
use crate::data::Table;
use dogpile::{SystemClock, TickClock};
use sides::{Exact, Get, Load, Read};
use std::hint;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What a ratio is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// The first costs at most so many times what the second costs.
    AtMost(f64),
    /// The first is at least so many times as fast as the second.
    TimesAsFast(f64),
    /// To be seen, not to be met.
    None,
}

/// A pair of operations.
pub(crate) struct Row {
    pub(crate) first: &'static str,
    pub(crate) second: &'static str,
    pub(crate) goal: Goal,
    sides: fn() -> [Side; 2],
}

impl Row {
    /// The pair that is measured in a part of its own.
    pub(crate) fn of_wakeup() -> Self {
        Self {
            first: "wake-up of 1,000 waiters",
            second: "Condvar::notify_all of 1,000",
            goal: Goal::AtMost(1.25),
            sides: || unreachable!("it is not measured in this part"),
        }
    }
}

pub(super) struct Side {
    pub(super) entry: Box<dyn Entry<Small>>,
    threads: usize,
}

pub(super) fn one(contestant: impl Contestant<Small> + 'static) -> Side {
    Side { entry: enter(contestant), threads: 1 }
}

pub(super) fn two(contestant: impl Contestant<Small> + 'static) -> Side {
    Side { entry: enter(contestant), threads: 2 }
}

/// A contestant with a value that stays up to date.
pub(super) fn fresh<K: Contestant<Small>>() -> K {
    K::new(LONG, Source::idle())
}

/// All pairs. Names that end in the same words are the same operation.
#[allow(clippy::too_many_lines, reason = "a table")]
pub(crate) fn rows() -> Vec<Row> {
    use Goal::{AtMost, None, TimesAsFast};
    type Coarse = SystemClock;
    let row = |first, second, goal, sides| Row { first, second, goal, sides };
    vec![
        row("get_or_refresh", "ArcSwapOption::load_full + coarse clock", AtMost(1.05), || {
            [one(fresh::<Get<Coarse>>()), one(fresh::<sides::BareFull>())]
        }),
        row("load_or_refresh", "ArcSwapOption::load + coarse clock", AtMost(1.05), || {
            [one(fresh::<Load<Coarse>>()), one(fresh::<sides::BareLoad>())]
        }),
        row("Reader", "arc_swap::Cache::load + coarse clock", AtMost(1.05), || {
            [one(fresh::<Read<Coarse>>()), one(fresh::<sides::BareCache<true>>())]
        }),
        row("Reader with TickClock", "arc_swap::Cache::load", AtMost(1.5), || {
            [one(fresh::<Read<TickClock>>()), one(fresh::<sides::BareCache<false>>())]
        }),
        row("Reader without a deadline", "arc_swap::Cache::load", AtMost(1.05), || {
            [one(Read(sides::State::<Coarse>::timeless())), one(fresh::<sides::BareCache<false>>())]
        }),
        row("Reader", "a version compared by hand + coarse clock", None, || {
            [one(fresh::<Read<Coarse>>()), one(fresh::<sides::ByHand<true>>())]
        }),
        row("Reader with TickClock", "a version compared by hand", None, || {
            [one(fresh::<Read<TickClock>>()), one(fresh::<sides::ByHand<false>>())]
        }),
        row("Reader without a deadline", "a version compared by hand", None, || {
            [one(Read(sides::State::<Coarse>::timeless())), one(fresh::<sides::ByHand<false>>())]
        }),
        row("get_or_refresh during a build", "get_or_refresh", AtMost(1.15), || {
            [one(Get(sides::State::<Coarse>::building())), one(fresh::<Get<Coarse>>())]
        }),
        row("load_or_refresh during a build", "load_or_refresh", AtMost(1.15), || {
            [one(Load(sides::State::<Coarse>::building())), one(fresh::<Load<Coarse>>())]
        }),
        row("Reader during a build", "Reader", AtMost(1.15), || {
            [one(Read(sides::State::<Coarse>::building())), one(fresh::<Read<Coarse>>())]
        }),
        row("get_or_refresh in a retry pause", "get_or_refresh with an exact clock", AtMost(1.15), || {
            [one(Get(sides::State::<Coarse>::pausing())), one(fresh::<Get<Exact>>())]
        }),
        row("load_or_refresh in a retry pause", "load_or_refresh with an exact clock", AtMost(1.15), || {
            [one(Load(sides::State::<Coarse>::pausing())), one(fresh::<Load<Exact>>())]
        }),
        row("Reader in a retry pause", "Reader with an exact clock", AtMost(1.15), || {
            [one(Read(sides::State::<Coarse>::pausing())), one(fresh::<Read<Exact>>())]
        }),
        row("get_or_refresh in a retry pause", "get_or_refresh", None, || {
            [one(Get(sides::State::<Coarse>::pausing())), one(fresh::<Get<Coarse>>())]
        }),
        row("load_or_refresh in a retry pause", "load_or_refresh", None, || {
            [one(Load(sides::State::<Coarse>::pausing())), one(fresh::<Load<Coarse>>())]
        }),
        row("Reader in a retry pause", "Reader", None, || {
            [one(Read(sides::State::<Coarse>::pausing())), one(fresh::<Read<Coarse>>())]
        }),
        row("SyncReaderCell::get_or_refresh", "get_or_refresh", AtMost(1.15), || {
            [one(fresh::<SyncGet<Small>>()), one(fresh::<Get<Coarse>>())]
        }),
        row("SyncReaderCell::load_or_refresh", "load_or_refresh", AtMost(1.15), || {
            [one(fresh::<SyncLoad<Small>>()), one(fresh::<Load<Coarse>>())]
        }),
        row("Reader::get_owned_or_refresh", "get_or_refresh", AtMost(0.8), || {
            [one(fresh::<sides::Own<Coarse>>()), one(fresh::<Get<Coarse>>())]
        }),
        row(
            "Reader::get_owned_or_refresh on two threads",
            "Reader::get_owned_or_refresh",
            AtMost(1.15),
            || [two(fresh::<sides::Own<Coarse>>()), one(fresh::<sides::Own<Coarse>>())],
        ),
        row("local! with", "Reader", AtMost(1.1), || {
            [one(fresh::<sides::LocalWith>()), one(fresh::<Read<Coarse>>())]
        }),
        row("local! with; no deadline", "Reader without a deadline", None, || {
            [one(fresh::<sides::LocalTimeless>()), one(Read(sides::State::<Coarse>::timeless()))]
        }),
        row("local! with on two threads", "local! with", AtMost(1.15), || {
            [two(fresh::<sides::LocalWith>()), one(fresh::<sides::LocalWith>())]
        }),
        row("#[dogpile]", "get_or_refresh", AtMost(1.05), || {
            [one(fresh::<sides::Attribute>()), one(fresh::<Get<Coarse>>())]
        }),
        row("#[dogpile] with", "Reader", AtMost(1.1), || {
            [one(fresh::<sides::AttributeWith>()), one(fresh::<Read<Coarse>>())]
        }),
        row("#[dogpile]", "cached #[once]", None, || {
            [one(fresh::<sides::Attribute>()), one(fresh::<CachedOnce<Small>>())]
        }),
        row("#[dogpile] with", "cached #[once]", TimesAsFast(2.0), || {
            [one(fresh::<sides::AttributeWith>()), one(fresh::<CachedOnce<Small>>())]
        }),
        row("#[dogpile] on two threads", "cached #[once] on two threads", None, || {
            [two(fresh::<sides::Attribute>()), two(fresh::<CachedOnce<Small>>())]
        }),
        row("#[dogpile] with on two threads", "cached #[once] on two threads", TimesAsFast(5.0), || {
            [two(fresh::<sides::AttributeWith>()), two(fresh::<CachedOnce<Small>>())]
        }),
        row("#[dogpile] with an argument", "DogpileMap::get_or_refresh", AtMost(1.05), || {
            [one(fresh::<sides::AttributeKeyed>()), one(fresh::<sides::MapKeyed>())]
        }),
        row("#[dogpile] with an argument", "cached #[cached]", TimesAsFast(1.0), || {
            [one(fresh::<sides::AttributeKeyed>()), one(fresh::<sides::CachedKeyed>())]
        }),
        row("#[dogpile] with a &str", "cached #[cached] with a &str", TimesAsFast(1.0), || {
            [one(fresh::<sides::AttributeKeyedByText>()), one(fresh::<sides::CachedKeyedByText>())]
        }),
        row("#[dogpile] with an argument on two threads", "cached #[cached] on two threads", None, || {
            [two(fresh::<sides::AttributeKeyed>()), two(fresh::<sides::CachedKeyed>())]
        }),
        row("kovan Atom::load + coarse clock", "ArcSwapOption::load + coarse clock", None, || {
            [one(fresh::<Kovan<Small>>()), one(fresh::<sides::BareLoad>())]
        }),
        row("set", "Arc::new + ArcSwap::swap + drop", AtMost(1.5), || {
            [one(fresh::<sides::Set>()), one(fresh::<sides::Swap>())]
        }),
        row("lookup; publish", "Arc::new + ArcSwap::swap + drop", None, || {
            [one(fresh::<sides::Publish>()), one(fresh::<sides::Swap>())]
        }),
        row("lookup; fail", "Arc::new + ArcSwap::swap + drop", None, || {
            [one(fresh::<sides::Fail>()), one(fresh::<sides::Swap>())]
        }),
        row("load_or_refresh", "std RwLock<(Instant; Arc)>", TimesAsFast(2.0), || {
            [one(fresh::<Load<Coarse>>()), one(fresh::<StdRwLock<Small, contestants::Exact>>())]
        }),
        row(
            "load_or_refresh on two threads",
            "std RwLock<(Instant; Arc)> on two threads",
            TimesAsFast(5.0),
            || [two(fresh::<Load<Coarse>>()), two(fresh::<StdRwLock<Small, contestants::Exact>>())],
        ),
        row("load_or_refresh", "moka get", TimesAsFast(8.0), || {
            [one(fresh::<Load<Coarse>>()), one(fresh::<sides::MokaGet>())]
        }),
        row("load_or_refresh on two threads", "load_or_refresh", AtMost(1.15), || {
            [two(fresh::<Load<Coarse>>()), one(fresh::<Load<Coarse>>())]
        }),
        row("Reader on two threads", "Reader", AtMost(1.15), || {
            [two(fresh::<Read<Coarse>>()), one(fresh::<Read<Coarse>>())]
        }),
        row("get_or_refresh on two threads", "get_or_refresh", None, || {
            [two(fresh::<Get<Coarse>>()), one(fresh::<Get<Coarse>>())]
        }),
        row(ARITHMETIC_ON_TWO, "arithmetic", None, || {
            [two(fresh::<sides::Arithmetic>()), one(fresh::<sides::Arithmetic>())]
        }),
    ]
}

/// The control: what a second thread costs that has nothing to do with the first.
pub(crate) const ARITHMETIC_ON_TWO: &str = "arithmetic on two threads";

/// What the loop costs that all operations are measured in.
pub(crate) const LOOP: &str = "the loop alone";

/// What the operations are made of.
fn references() -> Vec<(&'static str, Side)> {
    vec![
        (LOOP, one(fresh::<sides::Nothing>())),
        ("std::time::Instant::now", one(fresh::<sides::InstantNow>())),
        ("SystemClock::now", one(fresh::<sides::Now>())),
        ("CLOCK_MONOTONIC_COARSE", one(fresh::<sides::KernelCoarse>())),
        ("SystemClock::coarse_now", one(fresh::<sides::CoarseNow>())),
        ("lock and unlock a parking_lot::Mutex", one(fresh::<sides::Lock>())),
        ("Arc::new + drop", one(fresh::<sides::Allocation>())),
        ("clone + drop of an Arc", one(fresh::<sides::Count>())),
    ]
}

pub(super) fn measure(quick: bool) -> Table {
    let (rounds, turn) =
        if quick { (5, Duration::from_micros(20)) } else { (301, Duration::from_micros(200)) };
    let how = format!("{rounds} rounds, about {} µs each", turn.as_micros());
    let mut patience = if quick { Duration::ZERO } else { Duration::from_secs(30) };
    let mut table = Table::new(&origin(quick, &how), &["first", "second", "side"]);
    let rows: Vec<(Row, [Side; 2], u32)> = rows()
        .into_iter()
        .map(|row| {
            let sides = (row.sides)();
            let operations = operations(&sides, turn);
            (row, sides, operations)
        })
        .collect();
    let references: Vec<(&str, [Side; 1], u32)> = references()
        .into_iter()
        .map(|(name, side)| {
            let side = [side];
            let operations = operations(&side, turn);
            (name, side, operations)
        })
        .collect();
    let bar = bar(Part::Ratios, rounds);
    for round in 0..rounds {
        let variant = round % WIDTHS.len();
        for (row, sides, operations) in &rows {
            let mut nanos = [0.0; 2];
            // Who comes first in one round comes second four rounds later.
            let order = if (round / WIDTHS.len()).is_multiple_of(2) { [0, 1] } else { [1, 0] };
            for side in order {
                nanos[side] = sides[side].nanos(variant, *operations, &mut patience);
            }
            table.add(&[row.first, row.second, "first"], nanos[0]);
            table.add(&[row.first, row.second, "second"], nanos[1]);
        }
        for (name, [side], operations) in &references {
            table.add(&[name, "", "alone"], side.nanos(variant, *operations, &mut patience));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    table
}

/// How many operations take about as long as `turn`, for the slowest of the sides.
pub(super) fn operations(sides: &[Side], turn: Duration) -> u32 {
    const TRIAL: u32 = 20 * STRIDE;
    let mut patience = Duration::ZERO;
    let mut trial = |side: &Side| side.nanos(0, TRIAL, &mut patience);
    let cost =
        sides.iter().map(|side| (0..5).map(|_| trial(side)).fold(f64::MAX, f64::min)).fold(0.1, f64::max);
    let nanos = turn.as_secs_f64() * 1e9;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some millions at most")]
    let operations = (nanos / cost) as u32;
    (operations / STRIDE).max(2) * STRIDE
}

impl Side {
    /// Nanoseconds per operation. Spends up to `patience` on catching two threads at the same time: a figure of threads
    /// that took turns is not what it is taken for.
    pub(super) fn nanos(&self, variant: usize, operations: u32, patience: &mut Duration) -> f64 {
        if self.threads == 1 {
            let mut runner = self.entry.runner();
            runner.run(variant, 4 * STRIDE);
            let start = Instant::now();
            runner.run(variant, operations);
            return per_operation(start.elapsed(), operations);
        }
        loop {
            let began = Instant::now();
            let [first, second] = self.together(variant, operations);
            // Most of the longer of the two; else one of them has waited for a core.
            let both = first.1.min(second.1).saturating_duration_since(first.0.max(second.0));
            let longer = (first.1 - first.0).max(second.1 - second.0);
            if both > longer.mul_f64(0.8) || patience.is_zero() {
                return f64::midpoint(
                    per_operation(first.1 - first.0, operations),
                    per_operation(second.1 - second.0, operations),
                );
            }
            *patience = patience.saturating_sub(began.elapsed());
        }
    }

    /// From when to when each of two threads ran its operations.
    fn together(&self, variant: usize, operations: u32) -> [(Instant, Instant); 2] {
        // Spinning, for a wake-up takes as long as a good part of the turn. Relaxed: it orders nothing.
        let ready = AtomicUsize::new(0);
        let turn = || {
            let mut runner = self.entry.runner();
            runner.run(variant, 4 * STRIDE);
            ready.fetch_add(1, Ordering::Relaxed);
            let mut spins = 0_u32;
            while ready.load(Ordering::Relaxed) < 2 {
                hint::spin_loop();
                spins += 1;
                if spins.is_multiple_of(10_000) {
                    // Perhaps the other one waits for this core.
                    thread::yield_now();
                }
            }
            let start = Instant::now();
            runner.run(variant, operations);
            (start, Instant::now())
        };
        thread::scope(|scope| {
            let other = scope.spawn(turn);
            let own = turn();
            [own, other.join().expect("an operation does not panic")]
        })
    }
}

fn per_operation(elapsed: Duration, operations: u32) -> f64 {
    elapsed.as_secs_f64() * 1e9 / f64::from(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_has_a_name_of_its_own() {
        let rows = rows();
        for (place, row) in rows.iter().enumerate() {
            let same = |other: &Row| (other.first, other.second) == (row.first, row.second);
            assert!(!rows[place + 1..].iter().any(same), "{} / {}", row.first, row.second);
            assert!(!row.first.contains(',') && !row.second.contains(','));
        }
    }

    /// What is measured as a stale read must be one: no side ever builds after its first value, or it would measure
    /// builds.
    #[test]
    fn no_side_builds_while_it_is_measured() {
        for row in rows() {
            for (side, name) in (row.sides)().iter().zip([row.first, row.second]) {
                side.entry.runner().run(0, STRIDE);
                let before = side.entry.source().began();
                let mut patience = Duration::ZERO;
                for variant in 0..WIDTHS.len() {
                    assert!(side.nanos(variant, 20 * STRIDE, &mut patience) > 0.0);
                }
                assert_eq!(side.entry.source().began(), before, "{name}");
            }
        }
    }
}
