//! What is mapped, and for how long.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mapped_reload::{cell, watch, write};

const NUMBERS: u64 = 100_000;
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "hangs: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How many mappings of a file this process has, under its name or the name that it had.
fn mappings(path: &Path) -> usize {
    let name = path.parent().unwrap().to_str().unwrap();
    fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(name)).count()
}

#[test]
fn readers_keep_the_old_mapping_and_it_goes_with_the_last_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("numbers");
    let make = |version: u64| write(&path, version, (0..NUMBERS).map(|number| number * version)).unwrap();
    make(1);
    let unmapped = Arc::new(AtomicU64::new(0));
    let cell = cell(Arc::clone(&unmapped));
    let watch = watch(&cell, &path).unwrap();
    assert!(watch.wait_ready(PATIENCE), "{:?}", watch.last_error());

    let old = cell.get().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut last = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let database = cell.load().unwrap();
                        let version = database.version();
                        assert!(version >= last, "version {version} after {last}");
                        last = version;
                        for number in (0..NUMBERS).step_by(997) {
                            assert_eq!(
                                database.number(usize::try_from(number).unwrap()),
                                Some(number * version)
                            );
                        }
                    }
                })
            })
            .collect();
        for version in 2..=5 {
            make(version);
            eventually("the next version", || cell.get().unwrap().version() == version);
        }
        // What is no database replaces nothing.
        fs::write(folder.path().join("other"), "no database").unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        eventually("it is refused", || watch.last_error().is_some());
        assert!(watch.last_error().unwrap().to_string().ends_with("numbers: is no database of numbers"));
        stop.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    assert_eq!((old.version(), old.number(3)), (1, Some(3)));
    assert_eq!(unmapped.load(Ordering::SeqCst), 0, "the first is read, and the others wait their turn");
    if cfg!(target_os = "linux") {
        assert_eq!(mappings(&path), 5);
    }
    drop(old);
    cell.synchronize();
    assert_eq!(unmapped.load(Ordering::SeqCst), 4);
    if cfg!(target_os = "linux") {
        assert_eq!(mappings(&path), 1);
    }
}
