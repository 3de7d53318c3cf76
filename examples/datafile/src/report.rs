//! The numbers of both ways, as a table, and what each line of it means.

use crate::load::Tally;
use crate::store::{Measured, Way};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{BinaryBytes, HumanCount};
use std::time::Duration;

/// The numbers of one way to replace the file.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) way: Way,
    pub(crate) tally: Tally,
    pub(crate) measured: Measured,
    /// Calls that had to wait for a build.
    pub(crate) waits: u64,
}

/// The table in Markdown, one column for each way.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(std::iter::once("").chain(outcomes.iter().map(|outcome| outcome.way.name())));
    let mut line = |label: &str, value: &dyn Fn(&Outcome) -> String| {
        table.add_row(std::iter::once(label.to_owned()).chain(outcomes.iter().map(value)));
    };
    line("lookups/s [1]", &|o| rate(o.tally.lookups_per_second()));
    line("lookups", &|o| count(o.tally.lookups));
    line("bad lookups [2]", &|o| count(o.tally.bad));
    line("generations [3]", &|o| count(o.measured.generations));
    line("finalised [4]", &|o| count(o.measured.finalized));
    line("longest rebuild [5]", &|o| time(o.measured.longest_build));
    line("calls that waited for a build [6]", &|o| count(o.waits));
    line("longest reader wait [7]", &|o| time(o.tally.longest_wait));
    line("longest wait for nothing [8]", &|o| time(o.tally.longest_own));
    line("longest visit [9]", &|o| time(o.tally.longest_visit));
    line("longest drain [10]", &|o| time(o.measured.longest_drain));
    line("longest under the write lock [11]", &|o| o.measured.longest_section.map_or("–".into(), time));
    line("one generation", &|o| bytes(o.measured.most_bytes_of_one));
    line("bytes on disk at most [12]", &|o| bytes(o.measured.most_bytes));
    line("files at most [12]", &|o| o.measured.most_files.to_string());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// What the lines of the table mean, as a Markdown list.
pub(crate) const FOOTNOTES: &str = "\
- (a) Each generation is a file of its own, `words.<generation>`. The finalizer deletes the old file when its last
  reader has left. `Drain::Wait`, 20 s at most: the next build does not begin before that, so there are never more
  than two files. (b) The file `words` is truncated and rewritten under the write lock.
- [1] All threads together. A thread takes a reader, looks up 1 to 16 words, drops the reader, and starts again: every
  other time with a `ReaderArc`, the other times with a `ReadGuard`.
- [2] A lookup copies every page that it touches (the header, some pages of words, one of positions). It verifies the
  checksum of the copy, its place, and that it belongs to the generation of the reader. Then it compares the answer
  with what was written. Before a file is deleted, it is overwritten with zeros, since a mapping would not notice the
  deletion. A generation older than the one that the thread has seen before is bad too.
- [3] Built and published; the first one before the clock starts.
- [4] All but the last one, which is still current and survives the cell. Any other number ends the program with an
  error, and so does a file that is left over.
- [5] From the beginning of the build to the publication: reading the texts, indexing, writing. In (b) this includes
  the drain.
- [6] Counted by the cell: there was no value to serve, since a writer was inside.
- [7] The longest time that a thread which did not build was inside the call that gives it a reader.
- [8] The longest of as many calls on another cell of the thread's own, whose value never expires. A thread that is
  preempted in the middle of a call is late without waiting for another thread. How late is chance; [7] includes it
  too. If [6] is 0, no thread has waited for a build.
- [9] From taking a reader to dropping it.
- [10] (a) From the end of the build, just before the publication, to the finalizer: until the last reader of the old
  file has left. (b) From asking for the write lock to having it.
- [11] From having the write lock to the end of the build: no reader is inside, and new readers wait.
- [12] In the data folder, measured when a new file is complete and before an old one is deleted, when there is most.
";

/// How many, with separators.
pub(crate) fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

fn rate(number: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is not negative")]
    let whole = number.round() as u64;
    count(whole)
}

fn bytes(number: u64) -> String {
    format!("{} ({})", count(number), BinaryBytes(number))
}

/// A time with three digits, in the unit that suits it.
pub(crate) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (number, unit) = match seconds {
        s if s < 999.5e-6 => (s * 1e6, "µs"),
        s if s < 999.5e-3 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let decimals = match number {
        n if n < 9.995 => 2,
        n if n < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{number:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (nanos, expected) in [
            (0, "0 µs"),
            (1_234, "1.23 µs"),
            (999_400, "999 µs"),
            (999_600, "1 ms"),
            (12_345_678, "12.3 ms"),
            (1_000_000_000, "1 s"),
            (20_000_000_000, "20 s"),
        ] {
            assert_eq!(time(Duration::from_nanos(nanos)), expected);
        }
    }

    #[test]
    fn every_footnote_is_referred_to_and_every_reference_has_one() {
        let outcome = |way| Outcome { way, tally: Tally::default(), measured: Measured::default(), waits: 0 };
        let table = table(&[outcome(Way::Beside), outcome(Way::InPlace)]);
        for number in 1..=20 {
            let (reference, footnote) = (format!(" [{number}] "), format!("- [{number}] "));
            assert_eq!(table.contains(&reference), FOOTNOTES.contains(&footnote), "[{number}]");
        }
    }
}
