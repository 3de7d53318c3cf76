//! What a cache stampede does to a database, and what a `DogpileCell` does about it.
//!
//! Many clients ask for a report that takes some hundred milliseconds to make: first everybody makes their own, then
//! a mutex guards a timed cache, then a `DogpileCell` holds the report. `cargo run --release -p stampede` prints what
//! came of it and draws `docs/stampede.svg`; `--help` shows what may be changed.

mod args;
mod database;
mod load;
mod picture;
mod report;
mod strategies;

use anyhow::{Context, anyhow, ensure};
use args::{Args, Refusal};
use database::Database;
use indicatif::{ProgressBar, ProgressStyle};
use load::Plan;
use report::Summary;
use std::io::{Write, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use strategies::{Dogpile, MutexedCache, NothingShared, Strategy, Unprotected};

fn main() -> ExitCode {
    let outcome = match Args::from_command_line() {
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
    let folder = picture.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Before the work, not after it.
    ensure!(!picture.is_dir(), "cannot save the picture: {} is a folder", picture.display());
    ensure!(folder.is_dir(), "cannot save the picture: there is no folder {}", folder.display());
    let database = open(args)?;
    let (rows, alone) = try_out(&database)?;

    let plan = Plan { clients: args.clients, rate: args.rate, window: args.seconds };
    let nothing_shared = NothingShared::new(args.ttl + alone, args.clients);
    let cache = MutexedCache::new(args.ttl);
    let dogpile = Dogpile::new(args.ttl);
    let ttl = Some(args.ttl);
    let strategies: [(&dyn Strategy, Option<Duration>); 4] =
        [(&Unprotected, None), (&cache, ttl), (&dogpile, ttl), (&nothing_shared, None)];

    let mut summaries = Vec::new();
    for (number, (strategy, ttl)) in strategies.into_iter().enumerate() {
        let place = format!("{} of {}", number + 1, strategies.len());
        let summary = one_run(strategy, plan, ttl, &database, &place)
            .with_context(|| format!("the run with {} ended early", strategy.name()))?;
        summaries.push(summary);
    }

    let text = text(args, plan, rows, alone, &summaries);
    // A reader that has seen enough must not cost the picture.
    let printed = write!(stdout(), "{text}");
    let drawn: Vec<&Summary> = summaries.iter().take(3).collect();
    picture::draw(&picture, &drawn, args.seconds)?;
    let beside = picture.with_extension("md");
    let name = picture.file_name().unwrap_or_default().display();
    let page = format!("# A cache stampede, measured\n\n![How long each request waited]({name})\n\n{text}");
    std::fs::write(&beside, page).with_context(|| format!("cannot write {}", beside.display()))?;
    printed
        .and_then(|()| writeln!(stdout(), "\nSaved {} and {}.", picture.display(), beside.display()))
        .context("cannot print the table")
}

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
fn try_out(database: &Database) -> anyhow::Result<(usize, Duration)> {
    let spinner = bar("{spinner} the report, alone: {elapsed}");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let start = Instant::now();
    let report = database.check();
    let alone = start.elapsed();
    spinner.finish_and_clear();
    Ok((report?.rows.len(), alone))
}

fn one_run(
    strategy: &dyn Strategy,
    plan: Plan,
    ttl: Option<Duration>,
    database: &Database,
    place: &str,
) -> anyhow::Result<Summary> {
    let stop = Arc::new(AtomicBool::new(false));
    let queries = (0..plan.clients).map(|_| database.connect(&stop)).collect::<anyhow::Result<Vec<_>>>()?;
    let bar = bar("{prefix} {wide_bar} {msg}").with_prefix(format!("{place}, {}", strategy.name()));
    bar.set_length(u64::try_from(plan.window.as_millis())?);
    let traces = load::run(strategy, plan, queries, &stop, |progress| {
        bar.set_position(u64::try_from(progress.elapsed.as_millis()).unwrap_or(u64::MAX));
        let rate = report::rate(progress.answers_per_second());
        bar.set_message(format!("{:.1} s, {rate} answers/s", progress.elapsed.as_secs_f64()));
    });
    bar.finish_and_clear();
    let traces = traces.map_err(|failure| anyhow!("the query failed: {failure}"))?;
    Ok(Summary::new(strategy.name(), plan, ttl, &traces))
}

fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a template that is written here");
    ProgressBar::new(0).with_style(style)
}

/// All that is printed, and saved beside the picture: the numbers, how they came about, and what they mean.
fn text(args: &Args, plan: Plan, rows: usize, alone: Duration, summaries: &[Summary]) -> String {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if !words.is_empty() {
        words.insert(0, "--".into());
    }
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".into(), |cores| cores.to_string());
    let command = ["cargo run --release -p stampede".to_owned()].into_iter().chain(words).collect::<Vec<_>>();
    let mut lines = vec![
        format!("`{}`", command.join(" ")),
        format!(
            "{cores} cores, {} {}; a report of {rows} rows that takes {} alone; up to date for {}",
            std::env::consts::OS,
            std::env::consts::ARCH,
            report::time(alone),
            report::time(args.ttl),
        ),
    ];
    if cfg!(debug_assertions) {
        lines.push("Built without optimisation: the numbers mean little.".into());
    }
    lines.push(report::table(summaries));
    let verdicts: Vec<String> = summaries.iter().filter_map(report::verdict).collect();
    lines.push(verdicts.join("\n"));
    lines.push(report::footnotes(plan, args.ttl));
    lines.join("\n\n")
}
