//! The same work through a `DogpileCell` and through what one would pick instead.
//!
//! `cargo run --release -p versus` measures every part in a process of its own, prints what came of it, and writes
//! `docs/benchmarks.md` with its pictures and its raw data beside it; `--help` shows what may be chosen.

#![allow(
    clippy::inline_always,
    reason = "what is measured must not hang on what the compiler finds worth inlining"
)]

mod args;
mod contest;
mod contestants;
mod data;
mod machine;
mod parts;
mod picture;
mod report;

use anyhow::{Context, ensure};
use args::{Args, Refusal};
use data::Table;
use parts::Part;
use std::io::{Write, stdout};
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let outcome = match Args::from_command_line() {
        Ok(args) => run(&args),
        Err(Refusal::Information(text)) => write!(stdout(), "{text}").context("cannot print"),
        Err(Refusal::Wrong(line)) => {
            eprintln!("versus: {line}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("versus: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(cache) = &args.fill {
        let bytes = parts::keyed::fill(cache, args.entries)?;
        return writeln!(stdout(), "{bytes}").context("cannot print");
    }
    let folder = args.folder();
    let beside = folder.join("benchmarks");
    std::fs::create_dir_all(&beside).with_context(|| format!("cannot make {}", beside.display()))?;
    if args.here {
        for &part in &args.parts() {
            part.measure(args.quick)?.save(&file(&beside, part))?;
        }
        return Ok(());
    }
    for part in args.parts() {
        measure_elsewhere(part, args.quick, &folder)?;
    }
    let tables: Vec<(Part, Table)> = Part::ALL
        .into_iter()
        .filter_map(|part| Table::load(&file(&beside, part)).map(|table| Some((part, table?))).transpose())
        .collect::<anyhow::Result<_>>()?;
    let page = report::page(&tables);
    let page_file = folder.join("benchmarks.md");
    std::fs::write(&page_file, &page).with_context(|| format!("cannot write {}", page_file.display()))?;
    let mut printed = page;
    if let Some((_, table)) = tables.iter().find(|(part, _)| *part == Part::Notify) {
        let page = report::notify::page(table);
        let page_file = beside.join(report::notify::FILE);
        std::fs::write(&page_file, &page).with_context(|| format!("cannot write {}", page_file.display()))?;
        printed += &page;
    }
    report::draw(&tables, &beside)?;
    write!(stdout(), "{printed}\nSaved {} and {}.\n", page_file.display(), beside.display())
        .context("cannot print the page")
}

fn file(beside: &Path, part: Part) -> std::path::PathBuf {
    beside.join(part.name()).with_extension("csv")
}

/// In a process of its own: what one part leaves behind (a clock's thread, a thousand threads' places in lists that
/// are walked by each publication) is no burden to the next.
fn measure_elsewhere(part: Part, quick: bool, folder: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["--here", part.name(), "--out"]).arg(folder);
    if quick {
        command.arg("--quick");
    }
    let status = command.status().context("cannot start this program again")?;
    ensure!(status.success(), "the part {} has failed: {status}", part.name());
    Ok(())
}
