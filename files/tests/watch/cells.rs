//! Whatever else happens to the cell.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{DogpileCell, Drain, Freshness, LazyDogpile, ManualClock, Policy, Refreshed, SyncReaderCell};
use dogpile_files::{FileError, Files, Watch};

use super::support::eventually;
use super::{Bench, options, parse};

#[test]
fn an_invalidated_value_is_verified_and_a_cleared_one_is_made_anew() {
    let bench = Bench::new("first");
    let first = bench.cell.get().unwrap();
    bench.cell.invalidate();
    eventually("it is fresh again", || bench.cell.freshness() == Freshness::Fresh);
    assert!(Arc::ptr_eq(&first, &bench.cell.get().unwrap()));
    bench.cell.clear();
    eventually("it is there again", || bench.cell.get().is_some());
    assert!(!Arc::ptr_eq(&first, &bench.cell.get().unwrap()));
    bench.shows("first");
}

#[test]
fn a_value_that_was_set_stays_until_the_files_change() {
    let bench = Bench::new("first");
    bench.cell.set("by hand".to_owned());
    bench.watch.reload_now();
    fs::write(bench.path("other"), "of no concern").unwrap();
    assert_eq!(*bench.cell.get().unwrap(), "by hand");
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
    assert_eq!(bench.cell.generation(), 3);
}

#[test]
fn a_fresh_value_that_was_there_before_gives_way_to_that_of_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let cell = super::cell();
    cell.restore("from the last run".to_owned(), Duration::from_secs(5));
    let watch = options(&file).spawn(&cell, parse).unwrap();
    let bench = Bench { folder, file, cell, watch };
    bench.shows("first");
}

#[test]
fn a_ttl_is_renewed_without_reading_or_parsing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let clock = ManualClock::new();
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(Duration::from_secs(100)), clock.clone()));
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let watch = options(&file)
        .spawn(&cell, move |files: &Files| {
            counted.fetch_add(1, Ordering::SeqCst);
            parse(files)
        })
        .unwrap();
    eventually("the value", || cell.get().is_some());
    for round in 2..5 {
        // Less than a second before it ends.
        clock.advance(Duration::from_millis(99_500));
        eventually("it is renewed", || cell.generation() == round);
        assert_eq!(cell.freshness(), Freshness::Fresh);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    fs::remove_file(&file).unwrap();
    eventually("it is noticed", || watch.last_error().is_some());
    clock.advance(Duration::from_secs(101));
    assert_eq!(cell.freshness(), Freshness::Stale, "it could not be verified");
    assert_eq!(*cell.get().unwrap(), "first");
}

#[test]
fn the_parser_may_choose_a_ttl_or_keep_the_value() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let cell = super::cell();
    let watch = options(&file)
        .spawn(&cell, |files: &Files| {
            Ok::<_, FileError>(match parse(files)?.as_str() {
                "keep" => Refreshed::NotModified,
                text => Refreshed::NewFor(text.to_owned(), Duration::from_secs(3600)),
            })
        })
        .unwrap();
    let bench = Bench { folder, file, cell, watch };
    bench.shows("first");
    assert!(bench.cell.snapshot().unwrap().fresh_for <= Duration::from_secs(3600));
    let first = bench.cell.get().unwrap();
    fs::write(&bench.file, "keep.").unwrap();
    eventually("it is asked", || bench.cell.generation() == 2);
    assert!(Arc::ptr_eq(&first, &bench.cell.get().unwrap()));
}

#[test]
fn a_lazy_cell_in_a_static() {
    static LAZY: LazyDogpile<String> = LazyDogpile::new(Duration::from_secs(3600), || "built".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    assert_eq!(*LAZY.get_or_refresh(), "built");
    let watch = options(&file).spawn(&LAZY, parse).unwrap();
    eventually("the file's", || LAZY.get().is_some_and(|value| *value == "first"));
    drop(watch);
}

#[test]
fn a_replaced_database_is_finalised_when_its_last_reader_has_left() {
    /// Stands for a mapping.
    struct Database {
        file: fs::File,
        version: String,
    }
    fn open(files: &Files) -> Result<Database, FileError> {
        use std::io::Read;
        let file = files.open(0)?.try_clone().map_err(|error| files.error(0, error))?;
        let mut version = String::new();
        (&file).read_to_string(&mut version).map_err(|error| files.error(0, error))?;
        Ok(Database { file, version })
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("database");
    fs::write(&path, "1").unwrap();
    let finalised = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&finalised);
    let cell = Arc::new(SyncReaderCell::with_policy(
        Policy::never_expires(),
        Drain::Background,
        move |database: Database| {
            drop(database.file);
            kept.lock().unwrap().push(database.version);
        },
    ));
    let watch = Watch::files([&path])
        .debounce(Duration::from_millis(50))
        .poll_every(Duration::MAX)
        .only_open()
        .spawn(&cell, open)
        .unwrap();
    eventually("the first", || cell.get().is_some());
    let reader = cell.get().unwrap();
    for version in ["2", "3"] {
        fs::write(folder.path().join("new"), version).unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        eventually("the next", || cell.get().unwrap().version == version);
    }
    assert_eq!(reader.version, "1");
    assert!(finalised.lock().unwrap().is_empty(), "the first is read, and the others wait their turn");
    drop(reader);
    cell.synchronize();
    assert_eq!(*finalised.lock().unwrap(), ["1", "2"]);
    drop(watch);
}
