//! What surrounds the protocol: connections, timeouts, breakers, rights, errors. Against real servers and planted faults, each
//! test under the name of a symptom.
//!
//! Where an operation used to hang, the store's timeout is an hour, or the fault lasts for one: the test fails if anything waits
//! for that, on however slow a machine.

#![cfg(all(feature = "file", feature = "redis", feature = "postgres", feature = "async"))]

mod ahead;
mod bounds;
#[cfg(feature = "redis-cluster")]
mod cluster;
mod connections;
mod files;
mod fork;
mod housekeeping;
mod keys;
mod nodes;
mod pool;
#[cfg(feature = "redis-sentinel")]
mod sentinel;
#[path = "../support/servers.rs"]
mod servers;
mod snapshots;
mod toxic;
#[cfg(feature = "tracing")]
mod traces;
mod trouble;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use dogpile::Clock;
use dogpile_fleet::{FleetCell, FleetPolicy, Plain, RefreshStore};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
const HANG: Duration = Duration::from_secs(60);

type Cell = FleetCell<String>;

/// Fresh for an hour; looks often; waits for the store for as long as it takes.
const PATIENT: FleetPolicy = FleetPolicy::ttl(HOUR).poll(Duration::from_millis(20)).patience(HOUR);

fn cell(store: impl RefreshStore + 'static, policy: FleetPolicy) -> Cell {
    FleetCell::new("name", store, Plain, policy)
}

fn text(text: &str) -> String {
    text.to_owned()
}

/// Waits for something that another thread or process is about to do.
#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let hang = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < hang, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How many hints have come, once the first one has: that one comes without a change, when the store has begun to listen.
#[track_caller]
fn hints_so_far<C: Clock + Clone + 'static>(cell: &FleetCell<String, C>) -> u64 {
    eventually("the store listens", || cell.stats().hints > 0);
    cell.stats().hints
}

/// Runs something that may hang.
#[track_caller]
fn at_once<R: Send + 'static>(what: &str, run: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, is_done) = channel();
    std::thread::spawn(move || done.send(run()));
    match is_done.recv_timeout(HANG) {
        Ok(result) => result,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// This program again, as another process that runs `child_process`. It is killed with all that it has forked if it hangs.
fn another_process(variable: &str, value: &str, preload: &Path) -> String {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60"]).arg(std::env::current_exe().unwrap());
    command.args(["child_process", "--exact", "--nocapture", "--test-threads=1"]);
    command.env(variable, value).env("LD_PRELOAD", preload);
    let output = command.output().unwrap();
    [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat()
}

/// A library to be loaded before all others, of C; its folder, and its path.
fn library(source: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    let directory = tempfile::tempdir().unwrap();
    let (file, library) = (directory.path().join("library.c"), directory.path().join("library.so"));
    std::fs::write(&file, source).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&file).status();
    if compiled.is_ok_and(|status| status.success()) {
        return Some((directory, library));
    }
    servers::skip(servers::Kind::Redis, "no C compiler");
    None
}

/// Not a test: what other processes run, which are this program again.
#[test]
fn child_process() {
    if let Ok(address) = std::env::var(bounds::SLOW_RESOLVER) {
        bounds::resolve_slowly(&address);
    }
    if let Ok(store) = std::env::var(fork::FORKS) {
        fork::fork(&store);
    }
    if let Ok(directory) = std::env::var(fork::FORKS_AND_BUILDS) {
        fork::fork_and_build(&directory);
    }
}
