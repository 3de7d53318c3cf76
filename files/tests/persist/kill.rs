//! Real processes, killed at random instants.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dogpile::DogpileCell;
use dogpile_files::{Persist, Persisted, Restored};

use super::support::{given_folder, number, test_process};
use super::{HOUR, NEVER};

/// As many as the number says of the number, so that a mixture would be noticed; sometimes many.
type Value = Vec<u64>;

fn value(number: u64) -> Value {
    vec![number; usize::try_from(1 + number % 7 * 2000).unwrap()]
}

fn attach(path: &Path, interval: Duration) -> (Arc<DogpileCell<Value>>, Persisted) {
    let cell = Arc::new(DogpileCell::new(HOUR));
    let persisted = Persist::postcard(path).interval(interval).attach(&cell).unwrap();
    (cell, persisted)
}

/// What a new process finds: nothing, or the number of a whole value.
#[track_caller]
fn found(path: &Path) -> Option<u64> {
    let (cell, persisted) = attach(path, NEVER);
    match persisted.restored() {
        Restored::Nothing => None,
        Restored::Value { age: Some(_) } => {
            let restored = cell.get().unwrap();
            let number = restored[0];
            assert_eq!(*restored, value(number), "torn");
            Some(number)
        }
        other => panic!("{other:?}"),
    }
}

fn random(below: u64) -> u64 {
    RandomState::new().build_hasher().finish() % below
}

struct Writer {
    child: Child,
    reports: BufReader<std::process::ChildStdout>,
}

impl Writer {
    fn start(folder: &Path) -> Self {
        let mut child =
            test_process("kill::child_that_writes", folder).stdout(Stdio::piped()).spawn().unwrap();
        let reports = BufReader::new(child.stdout.take().unwrap());
        Self { child, reports }
    }

    /// Waits until it has written something; then kills it after `time`. Returns the last number that it has reported as
    /// written.
    fn kill_after(mut self, time: Duration) -> u64 {
        let mut line = String::new();
        let mut last = 0;
        let mut read = |line: &mut String| -> bool {
            line.clear();
            let is_there = self.reports.read_line(line).unwrap() > 0;
            // A line may be cut off where the process was killed.
            if let Some(number) = line.strip_prefix("written ").and_then(|rest| rest.strip_suffix('\n')) {
                last = number.parse().unwrap();
            }
            is_there
        };
        while !line.starts_with("written") {
            assert!(read(&mut line), "it has ended by itself");
        }
        std::thread::sleep(time);
        self.child.kill().unwrap(); // SIGKILL
        self.child.wait().unwrap();
        while read(&mut line) {}
        last
    }
}

#[test]
#[ignore = "run by another test, and killed"]
fn child_that_writes() {
    let path = given_folder().unwrap().join("state");
    let (cell, persisted) = attach(&path, Duration::from_millis(10));
    let first = cell.get().map_or(0, |value| value[0]);
    for number in first + 1.. {
        cell.set(value(number));
        if number % 2 == 0 {
            persisted.flush().unwrap();
            let mut out = std::io::stdout().lock();
            writeln!(out, "written {number}").unwrap();
            out.flush().unwrap();
        }
    }
}

#[test]
fn killed_at_any_instant_it_leaves_the_old_file_or_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut last = 0;
    for _ in 0..number("DOGPILE_FILES_KILLS", 30) {
        let reported = Writer::start(folder.path()).kill_after(Duration::from_micros(random(20_000)));
        let found = found(&path).expect("nothing is left");
        assert!(found >= reported, "{reported} was written, and {found} is left");
        assert!(reported > last);
        last = found;
    }
}

#[test]
fn two_processes_use_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    for _ in 0..number("DOGPILE_FILES_KILLS", 30) / 6 {
        let [one, two] = [(); 2].map(|()| Writer::start(folder.path()));
        // They count from the same number or nearly so, and what is newer by the clock stays: so no number is promised.
        one.kill_after(Duration::from_micros(random(20_000)));
        assert!(found(&path).is_some());
        two.kill_after(Duration::from_micros(random(20_000)));
        assert!(found(&path).is_some());
    }
}
