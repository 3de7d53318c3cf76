//! The command line: what may be asked for, and one clear line for what may not.

use crate::parts::Part;
use clap::Parser;
use clap::error::ErrorKind;
use std::path::{Path, PathBuf};

/// Runs the same work through this crate's cells and through what one would pick instead, and writes down what came
/// of it: a page with tables, pictures and raw data.
#[derive(Debug, Parser)]
#[command(name = "versus", version, about)]
pub(crate) struct Args {
    /// What to measure [default: everything]; of the rest, the page shows what was measured before
    #[arg(value_name = "PART", conflicts_with = "page_only")]
    parts: Vec<Part>,

    /// Measure nothing: write the page and the pictures anew, from the raw data that is there
    #[arg(long)]
    page_only: bool,

    /// Only to see that everything works: a few seconds, and figures that mean little
    #[arg(long)]
    pub(crate) quick: bool,

    /// Where benchmarks.md and the folder benchmarks go [default: docs, where there is such a folder]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// In this process, and the raw data only
    #[arg(long, hide = true)]
    pub(crate) here: bool,

    /// Only fill this cache of many keys, and print what it takes
    #[arg(long, hide = true, value_name = "CACHE")]
    pub(crate) fill: Option<String>,

    /// How many entries to fill it with
    #[arg(long, hide = true, default_value_t = 0)]
    pub(crate) entries: usize,
}

/// Why the program ends before it has begun.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Not an error: the text that `--help` or `--version` asked for.
    Information(String),
    /// The command line is wrong; one line that says what is.
    Wrong(String),
}

impl Args {
    /// Reads the command line of this process.
    pub(crate) fn from_command_line() -> Result<Self, Refusal> {
        Self::read(std::env::args_os())
    }

    fn read(words: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>) -> Result<Self, Refusal> {
        let args = Self::try_parse_from(words).map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Refusal::Information(error.to_string()),
            _ => Refusal::Wrong(one_line(&error)),
        })?;
        match &args.out {
            Some(folder) if !folder.is_dir() => {
                Err(Refusal::Wrong(format!("there is no folder {}", folder.display())))
            }
            _ => Ok(args),
        }
    }

    /// What is to be measured.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let mut parts = match &self.parts[..] {
            _ if self.page_only => Vec::new(),
            [] => Part::ALL.to_vec(),
            chosen => chosen.to_vec(),
        };
        parts.sort();
        parts.dedup();
        parts
    }

    /// Where the page goes.
    pub(crate) fn folder(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| {
            let docs = Path::new("docs");
            if docs.is_dir() { docs.to_owned() } else { PathBuf::from(".") }
        })
    }
}

/// The first paragraph of what clap says, on one line: the usage that follows is a flag away.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let said = said.join(" ");
    format!("{} (see --help)", said.strip_prefix("error: ").unwrap_or(&said))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Args, Refusal> {
        Args::read([&["versus"], words].concat())
    }

    fn parts(words: &[&str]) -> Vec<Part> {
        read(words).expect("a good command line").parts()
    }

    #[test]
    fn everything_is_measured_unless_parts_are_named() {
        assert_eq!(parts(&[]), Part::ALL);
        assert_eq!(parts(&["--quick"]), Part::ALL);
        assert_eq!(parts(&["stampede", "ratios", "stampede"]), [Part::Ratios, Part::Stampede]);
        assert_eq!(parts(&["--page-only"]), []);
    }

    #[test]
    fn every_refusal_is_one_line_that_names_what_is_wrong() {
        for (words, named) in [
            (&["--wrong"] as &[&str], "--wrong"),
            (&["speed"], "speed"),
            (&["fresh", "--page-only"], "--page-only"),
            (&["--out", "no/such/folder"], "no/such/folder"),
        ] {
            match read(words) {
                Err(Refusal::Wrong(line)) => {
                    assert!(line.contains(named) && line.lines().count() == 1, "{words:?}: {line}");
                }
                other => panic!("{words:?} must be refused, not {other:?}"),
            }
        }
    }

    #[test]
    fn help_is_no_error() {
        assert!(matches!(read(&["--help"]), Err(Refusal::Information(text)) if text.contains("--quick")));
    }
}
