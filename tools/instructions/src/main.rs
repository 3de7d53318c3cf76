//! Counts the instructions of every read and write of the crate, and compares them with the kept ones.
//!
//! Times differ from run to run and from machine to machine; the number of instructions does not, as long as compiler,
//! libc and dependencies are the same. So it can be kept in a file (`benches/instructions.txt`), and a read that has
//! grown by one instruction is seen. What the figures mean: `docs/internals/reads.md`.
//!
//! ```sh
//! cargo run --release -p instructions              # counts and compares
//! cargo run --release -p instructions -- --update  # counts and keeps
//! cargo run --release -p instructions -- --table   # counts and prints a Markdown table
//! ```
//!
//! Ends with status 0 if nothing has grown, 1 if something has, 77 if there is nothing to compare with (another
//! compiler or libc than that of the kept figures, or no valgrind), 2 if something went wrong.
//!
//! # How
//!
//! The program runs itself under `valgrind --tool=callgrind`. There it does each subject 1000 and then 2000 times, with
//! a call of `section_ends` after each, at which callgrind writes down what has been counted since the last: the
//! difference is 1000 times the subject, without what surrounds it. The loop's own share is taken off as well.
//!
//! And it runs itself under `valgrind --tool=lackey --trace-mem=yes`, which prints the address of each store. Those that
//! fall into the cell or into the allocation of its value are the stores to memory that other threads read.

mod count;
mod record;
mod subjects;

use std::path::Path;
use std::process::ExitCode;

use count::Failure;
use record::Record;

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/instructions.txt");

const GROWN: u8 = 1;
const BROKEN: u8 = 2;
const SKIPPED: u8 = 77;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if !count::is_as_released() {
        return finish(Err(Failure::Broken(
            "counts what is released: cargo run --release -p instructions".into(),
        )));
    }
    match arguments[..] {
        [count::INSIDE, times] => {
            count::inside(times.parse().expect("a number of times"));
            ExitCode::SUCCESS
        }
        [] => finish(compare()),
        ["--update"] => finish(update()),
        ["--table"] => finish(count::all().map(|record| {
            print!("{}", record.to_markdown());
            ExitCode::SUCCESS
        })),
        _ => {
            eprintln!("usage: instructions [--update | --table]");
            ExitCode::from(BROKEN)
        }
    }
}

fn finish(result: Result<ExitCode, Failure>) -> ExitCode {
    result.unwrap_or_else(|failure| match failure {
        Failure::Impossible(reason) => {
            println!("SKIPPED: INSTRUCTIONS WERE NOT COUNTED: {reason}");
            ExitCode::from(SKIPPED)
        }
        Failure::Broken(reason) => {
            eprintln!("instructions: {reason}");
            ExitCode::from(BROKEN)
        }
    })
}

fn update() -> Result<ExitCode, Failure> {
    let record = count::all()?;
    std::fs::write(KEPT, record.to_text()).map_err(|error| Failure::Broken(format!("{KEPT}: {error}")))?;
    println!("{} figures kept in {}", record.figures.len(), shown(KEPT));
    Ok(ExitCode::SUCCESS)
}

fn compare() -> Result<ExitCode, Failure> {
    let text = std::fs::read_to_string(KEPT)
        .map_err(|error| Failure::Broken(format!("{}: {error}", shown(KEPT))))?;
    let kept =
        Record::from_text(&text).map_err(|error| Failure::Broken(format!("{}: {error}", shown(KEPT))))?;
    let made_with = count::environment();
    if kept.environment != made_with {
        return Err(Failure::Impossible(format!(
            "the kept figures are of another compiler or libc\n  kept: {}\n  here: {made_with}",
            kept.environment
        )));
    }
    let comparison = kept.compare(&count::all()?);
    print!("{}", comparison.report);
    Ok(if comparison.has_grown { ExitCode::from(GROWN) } else { ExitCode::SUCCESS })
}

/// The name of a file, as seen from the root of the repository.
fn shown(path: &str) -> String {
    let path = Path::new(path);
    path.components()
        .rev()
        .take(2)
        .collect::<Vec<_>>()
        .iter()
        .rev()
        .collect::<std::path::PathBuf>()
        .display()
        .to_string()
}
