//! What a cache stampede does to a database, and what a `DogpileCell` does about it.
//!
//! Many clients ask for a report that takes some time to make: from a timed cache, from one with a mutex around cache and
//! query, from a `DogpileCell`, and from one with a `Refresher`. `cargo run --release -p stampede` prints what came of
//! it; with `--save` it draws `docs/stampede.svg` too, and with `--live` it serves a page that shows the four loads while
//! they run. `--help` shows what may be changed.

mod args;
mod database;
mod live;
mod load;
mod picture;
mod report;
mod strategies;

use anyhow::{Context, anyhow, bail, ensure};
use args::{Args, Refusal};
use database::Database;
use dogpile::Policy;
use indicatif::{ProgressBar, ProgressStyle};
use load::Plan;
use report::Summary;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use strategies::{Dogpile, MutexedCache, NothingShared, Refreshed, Strategy, TimedCache};

fn main() -> ExitCode {
    let outcome = match Args::from_command_line() {
        Ok(args) if args.live => live::serve(&args),
        Ok(args) => measure(&args),
        Err(Refusal::Information(text)) => write!(stdout(), "{text}").context("cannot print"),
        Err(Refusal::Wrong(line)) => {
            eprintln!("stampede: {line}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What SQLite says may quote the query, line breaks and all.
            let line = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
            eprintln!("stampede: {line}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> anyhow::Result<()> {
    let picture = args.picture();
    // Before the work, not after it.
    if let Some(picture) = &picture {
        let folder =
            picture.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ensure!(!picture.is_dir(), "cannot save the picture: {} is a folder", picture.display());
        ensure!(folder.is_dir(), "cannot save the picture: there is no folder {}", folder.display());
    }
    if args.seconds <= args.ttl {
        eprintln!(
            "note: no report expires within --seconds {}: --ttl is {}",
            args.seconds.as_secs_f64(),
            report::time(args.ttl),
        );
    }
    let database = open(args)?;
    let (rows, alone) = try_out(&database, args.query_timeout)?;

    let plan = Plan { clients: args.clients, rate: args.rate(), window: args.seconds, grace: args.seconds };
    let ttl = args.ttl;
    // A query that fails ends the run, as it does with the other strategies; without this it would be hidden.
    let strict = Policy::ttl(ttl).stale_if_error(Duration::ZERO);
    let mut runs = Runs { plan, database: &database, summaries: Vec::new() };
    runs.add(&|_| Ok(TimedCache::new(ttl)))?;
    runs.add(&|_| Ok(MutexedCache::new(ttl)))?;
    runs.add(&|_| Ok(Dogpile::new(strict)))?;
    runs.add(&|stop| {
        let refreshed = Refreshed::start(ttl, database.connect(stop)?, true)?;
        if !refreshed.wait_ready(args.query_timeout) {
            stop.store(true, Ordering::Relaxed);
            bail!("the Refresher's first query has not ended within {}", report::time(args.query_timeout));
        }
        Ok(refreshed)
    })?;
    runs.add(&|_| Ok(NothingShared::new(ttl + alone, args.clients)))?;

    let [nothing, mutex, cell, refresher, _] = &runs.summaries[..] else { unreachable!("five runs") };
    let results = report::results(nothing, mutex, cell, refresher);
    let text = text(plan, ttl, rows, alone, &runs.summaries);
    // A reader that has seen enough must not cost the picture.
    let printed = write!(stdout(), "{}\n\n{text}", results.join("\n"));
    if let Some(picture) = &picture {
        picture::draw(picture, &runs.summaries[..4], args.seconds)?;
        let beside = picture.with_extension("md");
        let name = picture.file_name().unwrap_or_default().display();
        let results = report::wrapped(&results.join(" "), "");
        let page = format!(
            "# A cache stampede, measured\n\n![How long requests wait for a cached report]({name})\n\n{results}\n\n{text}\n\
             {LIVE}"
        );
        std::fs::write(&beside, page).with_context(|| format!("cannot write {}", beside.display()))?;
    }
    printed
        .and_then(|()| match &picture {
            Some(picture) => {
                writeln!(stdout(), "\nSaved {} and the page beside it.", picture.display())
            }
            None => Ok(()),
        })
        .context("cannot print the table")
}

/// On the saved page, below the figures.
const LIVE: &str = "\
## A page that shows it while it runs

`cargo run --release -p stampede -- --live`

This serves a page on 127.0.0.1 and prints its address. The four loads run side by side until Ctrl-C. The page
draws latencies and query runs ten times a second. One button makes the source fail, another makes it slow. If it
fails, a cache and a mutex pass the error to their callers; a `DogpileCell` goes on serving the report that it has.

Four loads on one processor would disturb each other if they computed something. So the source is simulated here:
each load has one of its own, which takes 80 ms for a query and runs two of them at a time. A client gives up a
request that is 10 s late. `--clients`, `--rate` and `--ttl` change the load, `--port` the address.
";

fn open(args: &Args) -> anyhow::Result<Database> {
    if let (Some(file), Some(sql)) = (&args.db, &args.query) {
        return Database::existing(file, sql);
    }
    let program = std::env::current_exe().context("cannot tell where to keep the database")?;
    let folder = program.parent().unwrap_or(Path::new("."));
    let bar = bar("{msg} {wide_bar} {human_pos}/{human_len}").with_message("making the orders");
    let database = Database::built_in(folder, args.rows, args.query.as_deref(), &bar);
    bar.finish_and_clear();
    database
}

/// Runs the query once, for itself: how many rows it has, and how long it takes.
fn try_out(database: &Database, timeout: Duration) -> anyhow::Result<(usize, Duration)> {
    let spinner = bar("{spinner} the report, alone: {elapsed}");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let start = Instant::now();
    let report = database.check(timeout);
    let alone = start.elapsed();
    spinner.finish_and_clear();
    Ok((report?.rows.len(), alone))
}

/// One run after the other, and what they came to.
struct Runs<'a> {
    plan: Plan,
    database: &'a Database,
    summaries: Vec<Summary>,
}

impl Runs<'_> {
    const NUMBER: usize = 5;

    fn add<S: Strategy>(
        &mut self,
        make: &dyn Fn(&Arc<AtomicBool>) -> anyhow::Result<S>,
    ) -> anyhow::Result<()> {
        let plan = self.plan;
        let stop = Arc::new(AtomicBool::new(false));
        let queries =
            (0..plan.clients).map(|_| self.database.connect(&stop)).collect::<anyhow::Result<Vec<_>>>()?;
        let strategy = make(&stop)?;
        let place = format!("{} of {}, {}", self.summaries.len() + 1, Self::NUMBER, strategy.name());
        let bar = bar("{prefix} {wide_bar} {msg}").with_prefix(place.clone());
        bar.set_length(u64::try_from(plan.window.as_millis())?);
        if !stderr().is_terminal() {
            eprintln!("{place}: {}", report::time(plan.window));
        }
        let first = self.database.connect(&stop).map(|query| load::warm_up(&strategy, query))?;
        let first = first.map_err(|failure| anyhow!("the query failed: {failure}"))?;
        let record = load::run(&strategy, plan, queries, &stop, |progress| {
            bar.set_position(u64::try_from(progress.elapsed.as_millis()).unwrap_or(u64::MAX));
            let rate = report::rate(progress.answers_per_second());
            bar.set_message(format!("{:.1} s, {rate} answers/s", progress.elapsed.as_secs_f64()));
        });
        bar.finish_and_clear();
        let record = record
            .map_err(|failure| anyhow!("the query failed: {failure}"))
            .with_context(|| format!("the run ended early ({})", strategy.name()))?;
        let expiry = strategy.ttl().map(|ttl| ((first + ttl).saturating_duration_since(record.start), ttl));
        self.summaries.push(Summary::new(&strategy, plan, expiry, &record.traces));
        Ok(())
    }
}

fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a template that is written here");
    ProgressBar::new(0).with_style(style)
}

/// The command of this run, quoted for a shell.
fn command() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let separator = if words.is_empty() { "" } else { " -- " };
    format!("cargo run --release -p stampede{separator}{}", shell_words::join(words))
}

/// What is printed after the results: the table, how the numbers came about, and what they mean.
fn text(plan: Plan, ttl: Duration, rows: usize, alone: Duration, summaries: &[Summary]) -> String {
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".into(), |cores| cores.to_string());
    let machine = format!(
        "{cores} cores, {} {}; {} clients; a report of {} that takes {} alone; up to date for {}",
        std::env::consts::OS,
        std::env::consts::ARCH,
        plan.clients,
        report::number_of(rows, "row", "rows"),
        report::time(alone),
        report::time(ttl),
    );
    let mut lines = vec![report::table(summaries)];
    let verdicts: Vec<String> = summaries.iter().filter_map(report::verdict).collect();
    lines.push(verdicts.join("\n"));
    lines.push(format!("`{}`", command()));
    lines.push(report::wrapped(&machine, ""));
    if cfg!(debug_assertions) {
        lines.push("Built without optimisation: the numbers mean little.".into());
    }
    lines.push(report::footnotes(plan, ttl));
    lines.join("\n\n")
}
