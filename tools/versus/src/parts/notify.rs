//! Subscriptions beside tokio's `watch`, and derived values beside plain ones: in pairs, as in [`ratios`](super::ratios).

mod sides;
mod sleepers;

use super::ratios::{Goal, Side, fresh, one, operations, two};
use super::{Part, bar, origin};
use crate::contest::WIDTHS;
use crate::data::Table;
use sleepers::{Count, Kind};
use std::time::Duration;

/// What a row is about: a section of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Reads,
    Publishing,
    Derived,
}

/// A pair: what this crate does, and what it is held against.
pub(crate) struct Row {
    pub(crate) subject: Subject,
    pub(crate) first: &'static str,
    pub(crate) second: &'static str,
    pub(crate) goal: Goal,
    how: How,
}

enum How {
    Sides(fn() -> [Side; 2]),
    /// What the publisher's call takes.
    Publish(Kind, Count),
    /// The time from the beginning of that call until the last sleeper has the value.
    UntilAll(Kind, Count),
}

/// The rows with many threads come last.
const SLEEPERS: [(Kind, Count); 4] = [
    (Kind::Threads, Count::One),
    (Kind::Tasks, Count::One),
    (Kind::Tasks, Count::Hundred),
    (Kind::Threads, Count::Hundred),
];

/// All pairs.
#[allow(clippy::too_many_lines, reason = "a table")]
pub(crate) fn rows() -> Vec<Row> {
    use Goal::{AtMost, None};
    use Subject::{Derived, Publishing, Reads};
    let row =
        |subject, first, second, goal, sides| Row { subject, first, second, goal, how: How::Sides(sides) };
    let asleep = |first, second, how| Row { subject: Publishing, first, second, goal: None, how };
    vec![
        row(Reads, "Reader::get", "borrow", None, || {
            [one(fresh::<sides::Get>()), one(fresh::<sides::Borrow>())]
        }),
        row(Reads, "Reader::get on two threads", "borrow on two threads", None, || {
            [two(fresh::<sides::Get>()), two(fresh::<sides::Borrow>())]
        }),
        row(Reads, "Reader::get", "borrow_and_update", None, || {
            [one(fresh::<sides::Get>()), one(fresh::<sides::BorrowAndUpdate>())]
        }),
        row(Reads, "Reader::get on two threads", "borrow_and_update on two threads", None, || {
            [two(fresh::<sides::Get>()), two(fresh::<sides::BorrowAndUpdate>())]
        }),
        row(Reads, "load", "borrow", None, || [one(fresh::<sides::Load>()), one(fresh::<sides::Borrow>())]),
        row(Reads, "load on two threads", "borrow on two threads", None, || {
            [two(fresh::<sides::Load>()), two(fresh::<sides::Borrow>())]
        }),
        row(Reads, "has_changed", "has_changed of watch", None, || {
            [one(fresh::<sides::OwnHasChanged>()), one(fresh::<sides::WatchHasChanged>())]
        }),
        row(Reads, "has_changed on two threads", "has_changed of watch on two threads", None, || {
            [two(fresh::<sides::OwnHasChanged>()), two(fresh::<sides::WatchHasChanged>())]
        }),
        row(Reads, "changed; given up", "changed of watch; given up", None, || {
            [one(fresh::<sides::OwnGivenUp>()), one(fresh::<sides::WatchGivenUp>())]
        }),
        row(
            Reads,
            "changed; given up; on two threads",
            "changed of watch; given up; on two threads",
            None,
            || [two(fresh::<sides::OwnGivenUp>()), two(fresh::<sides::WatchGivenUp>())],
        ),
        row(Reads, "set; changed", "send_replace; changed; borrow_and_update", None, || {
            [one(fresh::<sides::OwnRound>()), one(fresh::<sides::WatchRound>())]
        }),
        row(Publishing, "set", "send_replace; no receiver", None, || {
            [one(fresh::<sides::Set>()), one(fresh::<sides::Send>())]
        }),
        row(Publishing, "set; a subscription; awake", "send_replace; a receiver; awake", None, || {
            [one(fresh::<sides::SetFollowed>()), one(fresh::<sides::SendFollowed>())]
        }),
        row(Publishing, "set; a hook", "set", None, || {
            [one(fresh::<sides::SetHooked>()), one(fresh::<sides::Set>())]
        }),
        row(Publishing, "set; a derived value", "set", None, || {
            [one(fresh::<sides::SetDerived>()), one(fresh::<sides::Set>())]
        }),
        asleep(
            "set; 1 thread asleep",
            "send_replace; 1 thread asleep",
            How::Publish(Kind::Threads, Count::One),
        ),
        asleep("set; 1 task asleep", "send_replace; 1 task asleep", How::Publish(Kind::Tasks, Count::One)),
        asleep(
            "set; 100 threads asleep",
            "send_replace; 100 threads asleep",
            How::Publish(Kind::Threads, Count::Hundred),
        ),
        asleep(
            "set; 100 tasks asleep",
            "send_replace; 100 tasks asleep",
            How::Publish(Kind::Tasks, Count::Hundred),
        ),
        asleep(
            "until 1 thread has it",
            "watch: until 1 thread has it",
            How::UntilAll(Kind::Threads, Count::One),
        ),
        asleep("until 1 task has it", "watch: until 1 task has it", How::UntilAll(Kind::Tasks, Count::One)),
        asleep(
            "until 100 threads have it",
            "watch: until 100 threads have it",
            How::UntilAll(Kind::Threads, Count::Hundred),
        ),
        asleep(
            "until 100 tasks have it",
            "watch: until 100 tasks have it",
            How::UntilAll(Kind::Tasks, Count::Hundred),
        ),
        row(Derived, "DerivedReader::get", "Reader::get_or_refresh", AtMost(1.1), || {
            [one(fresh::<sides::DerivedRead>()), one(fresh::<sides::PlainRead>())]
        }),
        row(
            Derived,
            "DerivedReader::get; no deadline",
            "Reader::get_or_refresh; no deadline",
            AtMost(1.1),
            || [one(sides::DerivedRead::timeless()), one(sides::PlainRead::timeless())],
        ),
        row(Derived, "Derived::get", "get_or_refresh", AtMost(1.1), || {
            [one(fresh::<sides::DerivedGet>()), one(fresh::<sides::PlainGet>())]
        }),
    ]
}

pub(super) fn measure(quick: bool) -> anyhow::Result<Table> {
    let (rounds, turn, wakings) =
        if quick { (5, Duration::from_micros(20), 3) } else { (201, Duration::from_micros(200), 101) };
    let how = format!(
        "{rounds} rounds of about {} µs each; {wakings} publications with sleepers",
        turn.as_micros()
    );
    let mut table = Table::new(&origin(quick, &how), &["first", "second", "side"]);
    let mut patience = if quick { Duration::ZERO } else { Duration::from_mins(1) };
    let bar = bar(Part::Notify, rounds + wakings * SLEEPERS.len());
    let rows = rows();
    let pairs: Vec<(&Row, [Side; 2], u32)> = rows
        .iter()
        .filter_map(|row| {
            let How::Sides(sides) = row.how else { return None };
            let sides = sides();
            let operations = operations(&sides, turn);
            Some((row, sides, operations))
        })
        .collect();
    for round in 0..rounds {
        let variant = round % WIDTHS.len();
        for (row, sides, operations) in &pairs {
            let mut nanos = [0.0; 2];
            for side in order(round / WIDTHS.len()) {
                nanos[side] = sides[side].nanos(variant, *operations, &mut patience);
            }
            table.add(&[row.first, row.second, "first"], nanos[0]);
            table.add(&[row.first, row.second, "second"], nanos[1]);
        }
        bar.inc(1);
    }
    drop(pairs);
    for (kind, count) in SLEEPERS {
        for waking in sleepers::measure(kind, count, wakings, || bar.inc(1))? {
            for row in &rows {
                let nanos = match row.how {
                    How::Publish(of, number) if (of, number) == (kind, count) => {
                        waking.map(|side| side.publish)
                    }
                    How::UntilAll(of, number) if (of, number) == (kind, count) => {
                        waking.map(|side| side.until_all)
                    }
                    _ => continue,
                };
                table.add(&[row.first, row.second, "first"], nanos[0]);
                table.add(&[row.first, row.second, "second"], nanos[1]);
            }
        }
    }
    bar.finish_and_clear();
    Ok(table)
}

/// Which side comes first: each in turn.
fn order(round: usize) -> [usize; 2] {
    if round.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::STRIDE;

    #[test]
    fn each_pair_has_a_name_of_its_own() {
        let rows = rows();
        for (place, row) in rows.iter().enumerate() {
            let same = |other: &Row| (other.first, other.second) == (row.first, row.second);
            assert!(!rows[place + 1..].iter().any(same), "{} / {}", row.first, row.second);
            assert!(!row.first.contains(',') && !row.second.contains(','));
        }
    }

    #[test]
    fn each_side_does_what_it_says() {
        for row in rows() {
            let How::Sides(sides) = row.how else { continue };
            for (side, name) in sides().iter().zip([row.first, row.second]) {
                let mut runner = side.entry.runner();
                let before = runner.read();
                runner.run(1, STRIDE);
                let after = runner.read();
                // What was published last is what is seen, and nothing else is published.
                let is_publisher = name.starts_with("set") || name.starts_with("send");
                let publications = if is_publisher { u64::from(STRIDE) + 1 } else { 0 };
                assert_eq!(after - before, publications, "{name}");
            }
        }
    }

    #[test]
    fn all_that_sleep_are_woken() {
        for (kind, count) in SLEEPERS {
            let wakings = sleepers::measure(kind, count, 3, || ()).expect("all are woken, and end");
            assert_eq!(wakings.len(), 3);
            assert!(wakings.iter().flatten().all(|waking| waking.publish > 0.0 && waking.until_all > 0.0));
        }
    }
}
