//! What counts as a change, and when an attempt is made.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use dogpile::{DogpileCell, Policy};
use dogpile_files::{FileError, Files, Watch};

use super::support::{PATIENCE, eventually};
use super::{Bench, cell, options, parse};

#[test]
fn the_same_bytes_are_no_publication() {
    let bench = Bench::new("first");
    // This one sees any change: of a file that is only opened, the time tells.
    let times = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    let watch = options(&bench.file)
        .only_open()
        .spawn(&times, |files: &Files| files.open(0).map(|file| file.metadata().unwrap().modified().unwrap()))
        .unwrap();
    eventually("the time is seen", || times.get().is_some());

    let changes: [&dyn Fn(); 4] = [
        &|| File::options().write(true).open(&bench.file).unwrap().set_modified(SystemTime::now()).unwrap(),
        &|| fs::write(&bench.file, "first.").unwrap(),
        &|| fs::set_permissions(&bench.file, fs::Permissions::from_mode(0o640)).unwrap(),
        &|| {
            fs::write(bench.path("new"), "first.").unwrap();
            fs::rename(bench.path("new"), &bench.file).unwrap();
        },
    ];
    for change in changes {
        let before = times.generation();
        change();
        eventually("the change is seen", || times.generation() > before);
        bench.watch.reload_now();
    }
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
    assert_eq!(bench.cell.generation(), 2);
    assert_eq!(bench.cell.stats().builds, 2);
    drop(watch);
}

#[test]
fn a_change_is_tried_at_once_however_long_the_retry_pause_is() {
    let hour = Duration::from_secs(3600);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let policy = Policy::never_expires().retry_backoff(hour, hour);
    let cell = Arc::new(DogpileCell::with_policy(policy));
    let watch = options(&file).spawn(&cell, parse).unwrap();
    let bench = Bench { folder, file, cell, watch };
    bench.shows("first");
    for text in ["second", "third"] {
        let before = bench.cell.get().unwrap();
        fs::write(&bench.file, "half").unwrap();
        bench.fails("no full stop", &before);
        assert!(bench.watch.last_error().is_some());
        fs::write(&bench.file, format!("{text}.")).unwrap();
        bench.shows(text);
    }
}

#[test]
fn a_state_that_failed_is_tried_again_when_it_is_asked_for_only() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let cell = cell();
    let (refuses, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (says_no, counted) = (Arc::clone(&refuses), Arc::clone(&calls));
    let watch = Watch::files([&file])
        .debounce(Duration::from_millis(50))
        .poll_every(Duration::from_millis(20))
        .spawn(&cell, move |files: &Files| {
            counted.fetch_add(1, Ordering::SeqCst);
            if says_no.load(Ordering::SeqCst) {
                Err("not now".to_owned())
            } else {
                parse(files).map_err(|error| error.to_string())
            }
        })
        .unwrap();
    let bench = Bench { folder, file, cell, watch };
    bench.shows("first");
    refuses.store(true, Ordering::SeqCst);
    fs::write(&bench.file, "second.").unwrap();
    bench.fails("not now", "first");
    let before = calls.load(Ordering::SeqCst);
    refuses.store(false, Ordering::SeqCst);
    bench.watch.reload_now();
    bench.shows("second");
    assert_eq!(calls.load(Ordering::SeqCst), before + 1, "polls have tried it too");
}

#[test]
fn a_parser_that_panics_is_an_error_like_others() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let cell = cell();
    let watch = options(&file)
        .spawn(&cell, |files: &Files| {
            assert!(files.text(0)?.contains('.'), "this panic is part of the test");
            parse(files)
        })
        .unwrap();
    let bench = Bench { folder, file, cell, watch };
    bench.shows("first");
    fs::write(&bench.file, "half").unwrap();
    bench.fails("this panic is part of the test", "first");
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
}

#[test]
fn a_storm_of_changes_is_a_handful_of_reads() {
    let changes = u32::try_from(super::support::number("DOGPILE_FILES_STORM", 2000)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let cell = cell();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let watch = Watch::files([&file])
        .debounce(Duration::ZERO)
        .spawn(&cell, move |files: &Files| {
            counted.fetch_add(1, Ordering::SeqCst);
            parse(files)
        })
        .unwrap();
    let bench = Bench { folder, file, cell, watch };
    bench.shows("first");
    let start = Instant::now();
    for number in 0..changes {
        fs::write(&bench.file, format!("{number}.")).unwrap();
        fs::write(bench.path("other"), "of no concern").unwrap();
    }
    bench.shows(&(changes - 1).to_string());
    // The watching thread rests 50 ms after each look, and asks for one build for each. Some more for what the cell asks for.
    let most = 2 + u32::try_from(start.elapsed().as_millis() / 50).unwrap();
    let calls = calls.load(Ordering::SeqCst);
    println!("{calls} calls for {changes} changes in {:?}", start.elapsed());
    assert!((2..=most).contains(&calls), "{calls} reads of {changes} changes, {most} at most");
}

#[test]
fn a_file_that_never_is_quiet_is_read_all_the_same() {
    let bench = Bench::new("first");
    let start = Instant::now();
    let mut number = 0;
    // Changed more often than it has to be quiet, so that it never is.
    while bench.cell.generation() == 1 {
        assert!(start.elapsed() < PATIENCE, "hangs: {:?}", bench.error());
        number += 1;
        fs::write(bench.path("new"), format!("{number}.")).unwrap();
        fs::rename(bench.path("new"), &bench.file).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(number > 10, "it was read when it was not quiet");
    bench.shows(&number.to_string());
}

/// Stops a thread, when it is dropped.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn files_that_change_while_they_are_read_are_an_error_that_says_so() {
    // Between the first and the last file there is much to be read, so that no read is quick enough.
    const BETWEEN: usize = 300;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["first", "between", "last"] {
        fs::write(path(name), "0").unwrap();
    }
    let mut paths = vec![path("first")];
    paths.extend(vec![path("between"); BETWEEN]);
    paths.push(path("last"));
    let cell: Arc<DogpileCell<u64>> = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The writer stops if this fails, too.
        let stopping = Stopping(&stop);
        let writer = scope.spawn(|| {
            for number in 1u64.. {
                // Renamed, so that each of them is whole.
                for name in ["first", "last"] {
                    fs::write(path("new"), number.to_string()).unwrap();
                    fs::rename(path("new"), path(name)).unwrap();
                }
                if stop.load(Ordering::SeqCst) {
                    return number;
                }
            }
            unreachable!()
        });
        let mixed = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&mixed);
        let watch = Watch::files(paths)
            .debounce(Duration::ZERO)
            .poll_every(Duration::from_millis(1))
            .spawn(&cell, move |files: &Files| {
                let first: u64 = files.parse(0, str::parse)?;
                let last: u64 = files.parse(BETWEEN + 1, str::parse)?;
                // One state, though perhaps one between the two writes.
                if first != last && first != last + 1 {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
                Ok::<_, FileError>(first)
            })
            .unwrap();
        eventually("an error", || {
            watch.last_error().is_some_and(|error| {
                let kind = error.downcast_ref::<FileError>().and_then(FileError::kind);
                assert_eq!(kind, Some(std::io::ErrorKind::ResourceBusy), "{error}");
                assert!(error.to_string().ends_with("went on changing while it was read"), "{error}");
                true
            })
        });
        drop(stopping);
        let last = writer.join().unwrap();
        eventually("the last state", || cell.get().is_some_and(|number| *number == last));
        eventually("no error is left", || watch.last_error().is_none());
        assert_eq!(mixed.load(Ordering::SeqCst), 0, "states that never were there");
    });
}

#[test]
fn the_error_of_files_that_change_while_they_are_read_ends_though_their_bytes_are_as_before() {
    const BETWEEN: usize = 300;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["file", "between"] {
        fs::write(path(name), "value.").unwrap();
    }
    let mut paths = vec![path("file"); 2];
    paths.splice(1..1, vec![path("between"); BETWEEN]);
    let cell = cell();
    let watch = Watch::files(paths)
        .debounce(Duration::ZERO)
        .poll_every(Duration::from_millis(1))
        .spawn(&cell, parse)
        .unwrap();
    eventually("the value", || cell.get().is_some());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The writer stops if this fails, too.
        let stopping = Stopping(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                fs::write(path("new"), "value.").unwrap();
                fs::rename(path("new"), path("file")).unwrap();
            }
        });
        // A read that succeeds asks for no build, and one that fails does.
        eventually("an error", || watch.last_error().is_some());
        drop(stopping);
    });
    eventually("no error is left", || watch.last_error().is_none());
    assert_eq!(*cell.get().unwrap(), "value");
}
