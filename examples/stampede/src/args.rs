//! The command line: what may be asked for, and one clear line for what may not.

use clap::Parser;
use clap::error::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More requests than this are refused: each is kept, so that the percentiles are exact.
const MOST_REQUESTS: f64 = 3_000_000.0;

/// A client of the page that one can watch asks so often in a second: there are four loads at once.
const LIVE_RATE: f64 = 20.0;

/// Lets many clients ask for one expensive report: from a timed cache, through a mutex, through a `DogpileCell`, and
/// through one with a `Refresher`. Prints how often the query ran and how long they waited.
#[derive(Debug, Parser)]
#[command(name = "stampede", version, about, max_term_width = 80)]
pub(crate) struct Args {
    /// Clients that ask for the report, each a thread with a database connection of its own
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) clients: u32,

    /// Requests that fall due for each client in a second, whether or not the earlier ones are answered
    /// [default: 200; with --live 20]
    #[arg(long, value_name = "PER_SECOND", value_parser = positive)]
    rate: Option<f64>,

    /// Length of each of the five runs
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    pub(crate) seconds: Duration,

    /// How long a cached report is up to date
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub(crate) ttl: Duration,

    /// A database of the user's own
    #[arg(
        long,
        value_name = "FILE",
        requires = "query",
        help = "An SQLite database of your own, opened read-only; needs --query"
    )]
    pub(crate) db: Option<PathBuf>,

    /// The report: one SQL query over `--db`, or over the built-in table `orders`
    #[arg(long, value_name = "SQL")]
    pub(crate) query: Option<String>,

    /// How long the query may take when it is tried once, alone, before the runs
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) query_timeout: Duration,

    /// Orders in the built-in table, which is made once and kept beside the program
    #[arg(long, value_name = "N", default_value_t = 350_000, conflicts_with = "db",
          value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub(crate) rows: u32,

    /// Saves the picture, and a page with the figures beside it as `.md`. Without this nothing is written
    /// [default FILE: docs/stampede.svg where there is a folder `docs`, else stampede.svg]
    #[arg(long, value_name = "FILE", num_args = 0..=1, value_parser = svg)]
    #[expect(clippy::option_option, reason = "clap's form of an option whose value may be left out")]
    save: Option<Option<PathBuf>>,

    /// Serves a page on this machine that shows the four loads while they run, until Ctrl-C. The source of the report
    /// is simulated, and can be made slow or made to fail
    #[arg(long, conflicts_with_all = ["db", "query", "query_timeout", "rows", "seconds", "save"])]
    pub(crate) live: bool,

    /// The page's port on 127.0.0.1 [default: a free one]
    #[arg(long, value_name = "PORT", requires = "live", default_value_t = 0, hide_default_value = true)]
    pub(crate) port: u16,
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
        let requests = f64::from(args.clients) * args.rate() * args.seconds.as_secs_f64();
        if !args.live && requests > MOST_REQUESTS {
            return Err(Refusal::Wrong(format!(
                "{requests:.0} requests a run are too many to keep (at most {MOST_REQUESTS:.0}): \
                 lower --clients, --rate or --seconds"
            )));
        }
        Ok(args)
    }

    /// Requests per second of each client.
    pub(crate) fn rate(&self) -> f64 {
        self.rate.unwrap_or(if self.live { LIVE_RATE } else { 200.0 })
    }

    /// Where the picture goes, if it is asked for.
    pub(crate) fn picture(&self) -> Option<PathBuf> {
        let named = self.save.as_ref()?;
        Some(named.clone().unwrap_or_else(|| {
            let docs = Path::new("docs");
            if docs.is_dir() { docs.join("stampede.svg") } else { PathBuf::from("stampede.svg") }
        }))
    }
}

/// The first paragraph of what clap says, on one line: the usage that follows is a flag away.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let said = said.join(" ");
    format!("{} (see --help)", said.strip_prefix("error: ").unwrap_or(&said))
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e6 => Ok(number),
        Ok(_) => Err("must be more than 0 and at most 1000000".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.001..=86_400.0).contains(&number) => Ok(Duration::from_secs_f64(number)),
        Ok(_) => Err("must be between 0.001 and 86400".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn svg(text: &str) -> Result<PathBuf, String> {
    let file = PathBuf::from(text);
    // Another ending may be the one of the table, which goes beside it.
    if file.extension().is_some_and(|ending| ending == "svg") {
        Ok(file)
    } else {
        Err("must end in .svg".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Args, Refusal> {
        Args::read([&["stampede"], words].concat())
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
        assert_eq!((args.clients, args.rows), (64, 350_000));
        assert!((args.rate() - 200.0).abs() < f64::EPSILON);
        assert_eq!((args.seconds, args.ttl), (Duration::from_secs(15), Duration::from_secs(2)));
        assert_eq!((args.picture(), args.live), (None, false));
        assert_eq!((args.db, args.query), (None, None));

        let live = read(&["--live"]).expect("no other flag is needed");
        assert!((live.rate() - 20.0).abs() < f64::EPSILON);
    }

    #[test]
    fn the_picture_goes_where_it_is_asked_for() {
        let named = read(&["--save", "own.svg"]).expect("a file").picture();
        assert_eq!(named, Some(PathBuf::from("own.svg")));
        let default = read(&["--save"]).expect("the default").picture();
        assert!(default.is_some_and(|file| file.ends_with("stampede.svg")));
    }

    #[test]
    fn every_refusal_is_one_line_that_names_the_flag() {
        for (words, named) in [
            (&["--wrong"] as &[&str], "--wrong"),
            (&["--clients", "0"], "--clients"),
            (&["--clients", "many"], "--clients"),
            (&["--rate", "0"], "--rate"),
            (&["--rate", "NaN"], "--rate"),
            (&["--seconds=-1"], "--seconds"),
            (&["--seconds", "inf"], "--seconds"),
            (&["--ttl", "0"], "--ttl"),
            (&["--db", "x.sqlite"], "--query"),
            (&["--db", "x.sqlite", "--query", "SELECT 1", "--rows", "5"], "--rows"),
            (&["--clients", "4096", "--rate", "1e5"], "--rate"),
            (&["--save", "table.md"], "--save"),
            (&["--live", "--save"], "--live"),
            (&["--port", "8080"], "--live"),
            (&["--live", "--port", "65536"], "--port"),
            (&["--live", "--query", "SELECT 1"], "--query"),
            (&["--query-timeout", "0"], "--query-timeout"),
            (&["stray"], "stray"),
        ] {
            let line = refusal(words);
            assert!(line.contains(named), "{words:?}: {line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }

    #[test]
    fn help_is_no_error() {
        assert!(
            matches!(read(&["--help"]), Err(Refusal::Information(text)) if text.contains("--clients <N>"))
        );
    }
}
