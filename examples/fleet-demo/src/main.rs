//! Eight processes that need the same value, first each for itself, then as a fleet, then as a fleet in which the
//! process that builds is killed again and again, then as a fleet whose Redis fails over to another server.
//!
//! ```sh
//! cargo run --release -p fleet-demo
//! cargo run --release -p fleet-demo -- --store redis://127.0.0.1:6379/
//! cargo run --release -p fleet-demo -- --store postgres://user@127.0.0.1/database
//! ```

mod failover;
mod log;
mod node;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use log::Log;
use node::{Mode, Settings};

const PROCESSES: usize = 8;
const USAGE: &str = "usage: fleet-demo [--store DIRECTORY | redis://... | postgres://...] [--seconds N]";

struct Arguments {
    store: Option<String>,
    seconds: u64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--node", settings)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return report(Settings::parse(settings).and_then(|settings| node::run(&settings)));
    }
    report(arguments(&words).and_then(|arguments| show(&arguments)))
}

fn report(outcome: Result<(), Box<dyn Error>>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fleet-demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(words: &[String]) -> Result<Arguments, Box<dyn Error>> {
    let mut arguments = Arguments { store: None, seconds: 5 };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match (word.as_str(), words.next()) {
            ("--store", Some(store)) => arguments.store = Some(store.clone()),
            ("--seconds", Some(seconds)) => arguments.seconds = seconds.parse().map_err(|_| USAGE)?,
            _ => return Err(USAGE.into()),
        }
    }
    Ok(arguments)
}

fn show(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let in_file = directory.path().join("store").display().to_string();
    let store = arguments.store.clone().unwrap_or(in_file);
    // A fleet goes on without its store, which would show nothing here.
    node::open_store(&store)?.poll("fleet-demo", None)?;
    let kind = store.split_once(':').map_or("a file", |(scheme, _)| scheme);
    println!(
        "{PROCESSES} processes with {} threads each read a value that is fresh for {:?} and takes {:?} to build.\n\
         Each part takes {} s. The store is {kind}.\n",
        node::THREADS,
        node::TTL,
        node::BUILD,
        arguments.seconds
    );
    println!(
        "{:34} {:>8} {:>7} {:>18} {:>7} {:>14}",
        "", "expiries", "builds", "builds per expiry", "killed", "oldest read"
    );
    let row = |title: &str, log: &Log, killed: usize| {
        let (expiries, builds) = (log.expiries(node::TTL), log.builds());
        println!(
            "{title:34} {expiries:>8} {builds:>7} {:>18.2} {killed:>7} {:>11} ms",
            log::ratio(builds, expiries),
            log.oldest_read().as_millis()
        );
    };
    for (title, mode, kills) in [
        ("each process for itself", Mode::Alone, false),
        ("as a fleet", Mode::Fleet, false),
        ("as a fleet, its builders killed", Mode::Fleet, true),
    ] {
        let log = directory.path().join(if kills { "kills" } else { mode.name() });
        let killed = run(&store, mode, &log, kills, Duration::from_secs(arguments.seconds))?;
        row(title, &Log::read(&log)?, killed);
    }
    let outcome = if failover::is_installed() {
        let log = directory.path().join("fail-over");
        let outcome = fail_over(&log, Duration::from_secs(arguments.seconds))?;
        row("as a fleet, its Redis fails over", &Log::read(&log)?, 1);
        Some(outcome)
    } else {
        None
    };
    println!(
        "\nAn expiry is a build together with all others that begin while its value would still be fresh. The oldest \
         read:\nhow long ago the value that a thread was given had been read from its source, at most."
    );
    match outcome {
        Some(outcome) => println!(
            "\nThe Redis of the last part is two servers of its own behind one address. In the middle the first one is killed, \
             and\nthe second one takes over {} ms later. The first value that it stored came {} ms after that.",
            outcome.without.as_millis(),
            outcome.until_stored.as_millis()
        ),
        None => println!("\nThere is no `redis-server` here, so that no fail-over is shown."),
    }
    Ok(())
}

/// Runs the processes on a Redis that fails over in the middle.
fn fail_over(log: &Path, duration: Duration) -> Result<failover::Outcome, Box<dyn Error>> {
    let mut servers = failover::Pair::start()?;
    let name = format!("fleet-demo-{}", std::process::id());
    let settings =
        Settings { store: servers.store(), mode: Mode::Fleet, log: log.to_owned(), name: name.clone() };
    let mut fleet = Fleet { settings, processes: Vec::new() };
    for _ in 0..PROCESSES {
        fleet.start()?;
    }
    std::thread::sleep(duration / 2);
    // Longer than a value is fresh: they have to do without the store.
    let outcome = servers.fail_over(&name, 2 * node::TTL)?;
    std::thread::sleep(duration / 2);
    Ok(outcome)
}

/// Runs the processes for a while. Returns how many of them were killed on the way.
fn run(
    store: &str,
    mode: Mode,
    log: &Path,
    kills: bool,
    duration: Duration,
) -> Result<usize, Box<dyn Error>> {
    let settings = Settings { store: store.to_owned(), mode, log: log.to_owned(), name: name(mode, kills) };
    let mut fleet = Fleet { settings, processes: Vec::new() };
    for _ in 0..PROCESSES {
        fleet.start()?;
    }
    let end = Instant::now() + duration;
    let (mut killed, mut last) = (0, None);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
        if !kills {
            continue;
        }
        // Every other build is left in peace.
        if let Some(build) = Log::read(log)?.running()
            && last != Some(build.number)
        {
            last = Some(build.number);
            if build.number % 2 == 1 && fleet.kill(build.process)? {
                killed += 1;
                fleet.start()?;
            }
        }
    }
    Ok(killed)
}

/// A name of its own for each part and run, also in a store that others use.
fn name(mode: Mode, kills: bool) -> String {
    format!("fleet-demo-{}-{}-{kills}", std::process::id(), mode.name())
}

struct Fleet {
    settings: Settings,
    processes: Vec<Child>,
}

impl Fleet {
    fn start(&mut self) -> Result<(), Box<dyn Error>> {
        let program: PathBuf = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.arg("--node").args(self.settings.words()).stdin(Stdio::piped());
        self.processes.push(command.spawn()?);
        Ok(())
    }

    /// `kill -9`
    fn kill(&mut self, id: u32) -> Result<bool, Box<dyn Error>> {
        let Some(position) = self.processes.iter().position(|process| process.id() == id) else {
            return Ok(false);
        };
        let mut process = self.processes.swap_remove(position);
        let killed = process.kill();
        process.wait()?;
        killed?;
        Ok(true)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // They end when their input does.
            drop(process.stdin.take());
        }
        for process in &mut self.processes {
            let _ = process.wait();
        }
    }
}
