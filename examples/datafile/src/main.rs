//! A memory-mapped data file that is replaced while many threads read it.
//!
//! An index of words is built from text files, written to a data file and mapped into memory. While threads look
//! words up in it, it is rebuilt: first each generation is a new file beside the old one, which the finalizer of a
//! `SyncReaderCell` deletes when its last reader has left; then the same file is replaced in place, under the write
//! lock. Every lookup verifies what it reads, so a torn or deleted file would be seen.
//!
//! `cargo run --release -p datafile` prints what came of it; `--help` shows what may be changed.
//!
//! ```text
//! args      the command line
//! index     the words of the texts
//! format    the data file: pages, checksums, lookups
//! mapped    a file in memory; the one `unsafe`
//! store     the file in its cell; the two ways to replace it      what to read first
//! load      the readers
//! report    the table
//! ```

mod args;
mod format;
mod index;
mod load;
mod mapped;
mod report;
mod store;

use anyhow::{Context, bail};
use args::{Args, Refusal};
use index::Index;
use indicatif::{ProgressBar, ProgressStyle};
use load::Plan;
use report::Outcome;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use store::{Store, Way};

fn main() -> ExitCode {
    let outcome = match Args::from_command_line() {
        Ok(args) => measure(&args),
        Err(Refusal::Information(text)) => write!(stdout(), "{text}").context("cannot print"),
        Err(Refusal::Wrong(line)) => {
            eprintln!("datafile: {line}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // File names may have line breaks.
            let line = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
            eprintln!("datafile: {line}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> anyhow::Result<()> {
    let (texts, whose) = args.texts()?;
    // Before the work, not after it.
    let index = Index::of(&texts)?;
    let about = format!(
        "{} {whose}: {} words, {} different ones",
        if texts.len() == 1 { "1 file".into() } else { format!("{} files", texts.len()) },
        report::count(index.occurrences().into()),
        report::count(index.len() as u64)
    );
    drop(index);
    let about = format!("{about}; {}", busy());
    let folder = data_folder(args.dir.as_deref())?;

    let mut outcomes = Vec::new();
    for (way, place) in [(Way::Beside, "1 of 2"), (Way::InPlace, "2 of 2")] {
        let outcome = one_way(args, way, folder.path(), &texts, place)
            .with_context(|| format!("the run {} ended early", way.name()))?;
        outcomes.push(outcome);
    }
    folder.close().context("cannot remove the data files")?;

    let text = text(args, &about, &outcomes);
    let printed = write!(stdout(), "{text}").context("cannot print the table");
    // Only a run in the repository's root folder; others leave nothing behind.
    let page = Path::new("docs").join(args::PAGE);
    if Path::new("examples/datafile/Cargo.toml").is_file() {
        let content = format!("# A data file that is replaced while it is read\n\n{text}");
        std::fs::write(&page, content).with_context(|| format!("cannot write {}", page.display()))?;
    }
    printed?;
    let first_bad = outcomes.iter().find_map(|outcome| outcome.tally.first_bad.as_ref());
    match first_bad {
        Some(bad) => bail!("{} bad lookups; the first one: {bad}", bad_lookups(&outcomes)),
        None => Ok(()),
    }
}

/// How much the machine has had to do in the last minute: threads that run beside the readers make all times longer.
fn busy() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").ok();
    match load.as_deref().and_then(|load| load.split_whitespace().next()) {
        Some(load) => format!("load average {load} before the run"),
        None => "load before the run not known".to_owned(),
    }
}

/// A folder of this run's own, that only its owner may enter; removed when dropped.
fn data_folder(parent: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("datafile-");
    match parent {
        Some(parent) => builder
            .tempdir_in(parent)
            .with_context(|| format!("cannot make a folder for the data files in {}", parent.display())),
        None => builder.tempdir().context("cannot make a folder for the data files"),
    }
}

fn one_way(args: &Args, way: Way, folder: &Path, texts: &[PathBuf], place: &str) -> anyhow::Result<Outcome> {
    let folder = folder.join(match way {
        Way::Beside => "beside",
        Way::InPlace => "in-place",
    });
    std::fs::create_dir(&folder).context("cannot make a folder for the data file")?;
    let store = Store::new(way, folder, texts.to_vec(), args.every);
    let plan = Plan { threads: args.threads, window: args.window() };
    let bar = bar("{prefix} {wide_bar} {msg}").with_prefix(format!("{place}, {}", way.name()));
    bar.set_length(u64::try_from(plan.window.as_millis())?);
    let tally = load::run(&store, plan, |elapsed, lookups, generation| {
        bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        bar.set_message(format!("generation {generation}, {} lookups", report::count(lookups)));
    });
    bar.finish_and_clear();
    let tally = tally?;
    let waits = store.waits();
    let measured = store.close()?;
    Ok(Outcome { way, tally, measured, waits })
}

fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a template that is written here");
    ProgressBar::new(0).with_style(style)
}

fn bad_lookups(outcomes: &[Outcome]) -> u64 {
    outcomes.iter().map(|outcome| outcome.tally.bad).sum()
}

/// All that is printed: the numbers, how they came about, and what they mean.
fn text(args: &Args, about: &str, outcomes: &[Outcome]) -> String {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if !words.is_empty() {
        words.insert(0, "--".into());
    }
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".into(), |cores| cores.to_string());
    let command = ["cargo run --release -p datafile".to_owned()].into_iter().chain(words).collect::<Vec<_>>();
    let mut lines = vec![
        format!("`{}`", command.join(" ")),
        format!(
            "{cores} cores, {} {}; {about}; {} threads; up to date for {}; {} each way",
            std::env::consts::OS,
            std::env::consts::ARCH,
            args.threads,
            report::time(args.every),
            report::time(args.window()),
        ),
    ];
    if cfg!(debug_assertions) {
        lines.push("Built without optimisation: the numbers mean little.".into());
    }
    lines.push(report::table(outcomes));
    lines.push(report::FOOTNOTES.trim_end().to_owned());
    let lookups: u64 = outcomes.iter().map(|outcome| outcome.tally.lookups).sum();
    lines.push(format!(
        "{} bad lookups of {}\n",
        report::count(bad_lookups(outcomes)),
        report::count(lookups)
    ));
    lines.join("\n\n")
}
