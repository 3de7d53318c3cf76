//! The command line: what may be asked for, and one clear line for what may not.

use anyhow::{Context, ensure};
use clap::Parser;
use clap::error::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The page that a run in the repository's root folder writes; not among the texts, or each run would read the last.
pub(crate) const PAGE: &str = "datafile.md";

/// Makes an index of the words in some texts, maps it into memory, and lets many threads look words up in it while it
/// is rebuilt: first as a new file beside the old one, then in place. Every lookup verifies what it reads. Prints a
/// table; the last line tells how many lookups were bad.
#[derive(Debug, Parser)]
#[command(name = "datafile", version, about)]
pub(crate) struct Args {
    /// The text files [default: the repository's own docs]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Threads that look words up
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: u32,

    /// How long all of it takes: half of the time for each way to replace the file
    #[arg(long, value_name = "TIME", default_value = "10", value_parser = time)]
    pub(crate) seconds: Duration,

    /// How long a data file is up to date, as `1s`, `250ms` or a number of seconds
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    pub(crate) every: Duration,

    /// The folder in which the data files are made; they are removed at the end [default: the system's folder for
    /// temporary files]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) dir: Option<PathBuf>,
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
        if args.every >= args.window() {
            return Err(Refusal::Wrong(format!(
                "nothing would be rebuilt: --every ({:?}) must be less than half of --seconds ({:?})",
                args.every,
                args.window()
            )));
        }
        Ok(args)
    }

    /// How long each way to replace the file has.
    pub(crate) fn window(&self) -> Duration {
        self.seconds / 2
    }

    /// What is to be indexed, and what to call it.
    pub(crate) fn texts(&self) -> anyhow::Result<(Vec<PathBuf>, &'static str)> {
        if !self.files.is_empty() {
            return Ok((self.files.clone(), "named by the user"));
        }
        let docs = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs"));
        let mut texts = Vec::new();
        pages(docs, &mut texts).context("cannot read the repository's docs; name the files to be indexed")?;
        texts.sort();
        ensure!(!texts.is_empty(), "the repository has no docs; name the files to be indexed");
        Ok((texts, "of the repository's docs"))
    }
}

/// All pages in a folder and in those below it.
fn pages(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let (kind, path) = entry.and_then(|entry| Ok((entry.file_type()?, entry.path())))?;
        if kind.is_dir() {
            pages(&path, found)?;
        } else if path.extension().is_some_and(|ending| ending == "md") && !path.ends_with(PAGE) {
            found.push(path);
        }
    }
    Ok(())
}

/// The first paragraph of what clap says, on one line: the usage that follows is a flag away.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let said = said.join(" ");
    format!("{} (see --help)", said.strip_prefix("error: ").unwrap_or(&said))
}

fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    match number.parse::<f64>() {
        Ok(number) if (0.001..=86_400.0).contains(&(number * unit)) => {
            Ok(Duration::from_secs_f64(number * unit))
        }
        Ok(_) => Err("must be between 1ms and 86400s".into()),
        Err(_) => Err("must be a time, as 1s, 250ms or 1.5".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Args, Refusal> {
        Args::read([&["datafile"], words].concat())
    }

    fn refusal(words: &[&str]) -> String {
        match read(words) {
            Err(Refusal::Wrong(line)) => line,
            other => panic!("{words:?} must be refused, not {other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let args = read(&[]).expect("no flag is needed");
        assert_eq!((args.threads, args.dir.as_deref()), (8, None));
        assert_eq!((args.seconds, args.every), (Duration::from_secs(10), Duration::from_secs(1)));
        assert_eq!(args.window(), Duration::from_secs(5));
        let (texts, _) = args.texts().expect("the repository has docs");
        assert!(texts.iter().all(|text| text.is_file() && !text.ends_with(PAGE)), "{texts:?}");
    }

    #[test]
    fn times_have_units() {
        let args = read(&["--seconds", "1.5", "--every", "250ms"]).expect("they are right");
        assert_eq!((args.seconds, args.every), (Duration::from_millis(1500), Duration::from_millis(250)));
        let args = read(&["--seconds", "3s", "--every", "1s", "text"]).expect("they are right");
        assert_eq!((args.seconds, args.every), (Duration::from_secs(3), Duration::from_secs(1)));
        assert_eq!(args.texts().expect("it is named").0, [Path::new("text")]);
    }

    #[test]
    fn every_refusal_is_one_line_that_names_the_flag() {
        for (words, named) in [
            (&["--wrong"] as &[&str], "--wrong"),
            (&["--threads", "0"], "--threads"),
            (&["--threads", "many"], "--threads"),
            (&["--seconds", "0"], "--seconds"),
            (&["--seconds=-1"], "--seconds"),
            (&["--seconds", "inf"], "--seconds"),
            (&["--every", "NaN"], "--every"),
            (&["--every", "1h"], "--every"),
            (&["--every", "0.1ms"], "--every"),
            (&["--seconds", "2", "--every", "1s"], "--every"),
        ] {
            let line = refusal(words);
            assert!(line.contains(named), "{words:?}: {line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }

    #[test]
    fn help_is_no_error() {
        assert!(
            matches!(read(&["--help"]), Err(Refusal::Information(text)) if text.contains("--threads <N>"))
        );
    }
}
