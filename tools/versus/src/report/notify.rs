//! The page of the part `notify`, and its picture.

use super::{COMMAND, quotients};
use crate::data::{Spread, Table, median, readable};
use crate::machine;
use crate::parts::Goal;
use crate::parts::notify::{Row, Subject, rows};
use crate::picture::{Line, Picture};
use std::fmt::Write as _;
use std::path::Path;

/// The file of the page, beside the raw data.
pub(crate) const FILE: &str = "notify.md";

/// The whole page.
pub(crate) fn page(table: &Table) -> String {
    let mut page = format!(
        "# Subscriptions and derived values\n\nSubscriptions beside `tokio::sync::watch`, and derived values beside \
         plain cells, in one run: `{COMMAND} -- notify`. The raw data is in [notify.csv](notify.csv), the method is \
         that of [the other comparisons](../benchmarks.md): the two sides of a row are measured one right after the \
         other, the ratio is taken in each round, and the table shows medians, and in brackets the middle half of the \
         ratios.\n\nMeasured on: {}. tokio {}.\n\n![Times beside those of watch](notify.svg)\n\n",
        table.origin,
        machine::version("tokio"),
    );
    for (subject, before, after) in SECTIONS {
        page += before;
        page += HEAD;
        for row in rows().iter().filter(|row| row.subject == subject) {
            if let Some((first, second)) = pair(table, row) {
                page += &line(row, first, second);
            }
        }
        page += after;
    }
    page
}

const HEAD: &str =
    "| operation | time | held against | time | ratio | goal | reached |\n|---|--:|---|--:|--:|--:|---|\n";

/// What stands before each table, and after it.
const SECTIONS: [(Subject, &str, &str); 3] = [
    (
        Subject::Reads,
        "## Reading, and looking whether there is something new\n\nNothing is published meanwhile, except in the last \
         row. The values do not expire, as those of `watch` do not. Each thread has a `Reader`, a `Subscription`, or a \
         `Receiver` of its own.\n\n",
        "\n- `borrow` takes a read lock, whose counter the threads share. A `Reader` keeps the value, and loads one word \
         that nothing writes between two publications; so does `has_changed`. `load` needs no handle of its own.\n\
         - *given up*: a `changed()` that is polled once and dropped, as in a `select!` that another branch wins. It joins a \
         queue and leaves it. Here a cell has one queue, under one lock; `watch` spreads its receivers over eight.\n\
         - *set; changed*: one thread publishes, and returns the value from a subscription, which does not have to wait. \
         A subscription returns an `Arc`; `watch` lends what its lock protects.\n\n",
    ),
    (
        Subject::Publishing,
        "## Publishing, while others sleep\n\n*Asleep*: what the publisher's call takes, with so many sleepers. *Until*: the \
         time from the beginning of that call until the last sleeper has the value. Threads use `wait_changed`; with \
         `watch`, `changed` under a `block_on`. Tasks run on tokio's runtime, with a worker for each core.\n\n",
        "\n- `send_replace` overwrites a value under a lock. `set` allocates the `Arc` that its readers keep, reads the clock \
         from which the ttl counts, and replaces the old value without waiting for a reader. A `watch::Ref` that is held stops \
         the publisher.\n\
         - A publication wakes whatever sleeps before the call returns. The sleepers run on the same cores as the publisher, so \
         with a hundred of them the figures depend on the scheduler. `set` also looks through a list of arc-swap, which has an \
         entry for each thread that reads cells.\n\
         - A hook is called, and a derived value is declared stale, before `set` returns.\n\n",
    ),
    (
        Subject::Derived,
        "## Reading a derived value\n\nA `Derived` that is made from one cell, beside a cell that holds a value itself.\n\n",
        "\n",
    ),
];

fn pair<'a>(table: &'a Table, row: &Row) -> Option<(&'a [f64], &'a [f64])> {
    let side = |side| table.get(&[row.first, row.second, side]);
    Some((side("first")?, side("second")?))
}

fn line(row: &Row, first: &[f64], second: &[f64]) -> String {
    let ratio = Spread::of(&quotients(first, second, row.goal));
    let (goal, verdict) = match row.goal {
        Goal::AtMost(most) => (format!("≤ {most}"), if ratio.median <= most { "yes" } else { "**no**" }),
        Goal::TimesAsFast(_) | Goal::None => ("–".to_owned(), ""),
    };
    let mut line = String::new();
    let _ = writeln!(
        line,
        "| {} | {} | {} | {} | {} ({} to {}) | {goal} | {verdict} |",
        row.first,
        time(median(first)),
        row.second,
        time(median(second)),
        readable(ratio.median),
        readable(ratio.low),
        readable(ratio.high),
    );
    line
}

fn time(nanos: f64) -> String {
    if nanos < 999.5 { format!("{} ns", readable(nanos)) } else { format!("{} µs", readable(nanos / 1e3)) }
}

/// Beside `watch`, whatever is held against it.
pub(crate) fn draw(table: &Table, beside: &Path) -> anyhow::Result<()> {
    let lines = rows().into_iter().filter_map(|row| {
        let is_beside_watch = match row.subject {
            Subject::Reads => true,
            Subject::Publishing => row.second != "set",
            Subject::Derived => false,
        };
        let (first, second) = pair(table, &row).filter(|_| is_beside_watch)?;
        let dots = vec![Some(Spread::of(first)), Some(Spread::of(second))];
        let against = row.second.split([';', ' ']).next().unwrap_or(row.second);
        let name = if row.subject == Subject::Reads && !row.second.contains(';') {
            format!("{} / {against}", row.first)
        } else {
            row.first.to_owned()
        };
        Some(Line { name, own: false, dots, goal: None })
    });
    Picture {
        title: "Subscriptions beside tokio's watch",
        axis: "nanoseconds (further left is faster)",
        legend: &["this crate", "tokio's watch"],
        rows: lines.collect(),
    }
    .save(&beside.join("notify.svg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(cost: f64) -> Table {
        let mut table = Table::new("a machine; 3 rounds", &["first", "second", "side"]);
        for row in rows() {
            for round in [1.0, 2.0, 3.0] {
                table.add(&[row.first, row.second, "first"], cost * round);
                table.add(&[row.first, row.second, "second"], 1_000.0 * round);
            }
        }
        table
    }

    #[test]
    fn each_pair_has_a_row_with_its_ratio() {
        let text = page(&table(2_000.0));
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
        assert_eq!(lines.len(), rows().len() + SECTIONS.len());
        for row in rows() {
            let begin =
                format!("| {} | 4.00 µs | {} | 2.00 µs | 2.00 (2.00 to 2.00) |", row.first, row.second);
            assert!(lines.iter().any(|line| line.starts_with(&begin)), "{begin} is missing in: {text}");
        }
        assert!(text.contains("**no**") && !text.contains("| yes |"), "{text}");
        assert!(!page(&table(500.0)).contains("**no**"));
    }
}
