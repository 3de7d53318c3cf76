//! What is written, and when.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use dogpile::{
    BoxError, DogpileCell, Freshness, LazyDogpile, ManualClock, Policy, Refresher, SyncReaderCell,
};
use dogpile_files::{
    Codec, Json, Moment, Persist, PersistError, PersistErrorKind, Persisted, Restored, SystemWallClock,
    WallClock,
};
use serde::{Deserialize, Serialize};

use super::support::{PATIENCE, eventually};
use super::{HOUR, NEVER, Place, cell, next_run};

#[test]
fn a_publication_is_written_within_the_interval_and_by_itself() {
    let place = Place::new();
    let cell = cell();
    let persisted = Persist::json(&place.path).interval(Duration::from_millis(20)).attach(&cell).unwrap();
    assert!(matches!(persisted.restored(), Restored::Nothing));
    for text in ["first", "second"] {
        cell.get_or_refresh(|| text.to_owned());
        eventually("it is written", || next_run(&place.path).1.as_deref() == Some(text));
        cell.clear();
    }
}

#[test]
fn the_first_publication_does_not_wait_for_a_long_interval() {
    let place = Place::new();
    let cell = cell();
    let persisted = Persist::json(&place.path).interval(HOUR).attach(&cell).unwrap();
    cell.set("first".to_owned());
    eventually("it is written", || persisted.writes() == 1);
    cell.set("second".to_owned());
    drop(persisted);
    assert_eq!(next_run(&place.path).1.unwrap(), "second");
}

#[test]
fn the_newest_value_wins_and_most_are_never_written() {
    const INTERVAL: Duration = Duration::from_millis(20);
    let place = Place::new();
    let cell = cell();
    let start = Instant::now();
    let persisted = Persist::json(&place.path).interval(INTERVAL).attach(&cell).unwrap();
    for number in 0..100_000 {
        cell.set(number.to_string());
    }
    persisted.flush().unwrap();
    let most = 1 + start.elapsed().as_millis() / INTERVAL.as_millis();
    let writes = persisted.writes();
    assert!((1..=most).contains(&u128::from(writes)), "{writes} writes, {most} at most");
    assert_eq!(next_run(&place.path).1.unwrap(), "99999");
    persisted.flush().unwrap();
    assert_eq!(persisted.writes(), writes, "nothing has changed");
}

#[test]
fn the_drop_writes_what_has_not_been_written_yet() {
    let place = Place::new();
    let cell = cell();
    let persisted = place.attach(&cell);
    cell.set("last".to_owned());
    assert!(!place.path.exists());
    drop(persisted);
    assert_eq!(next_run(&place.path).1.unwrap(), "last");
    assert_eq!(Arc::strong_count(&cell), 1);
}

#[test]
fn a_restored_value_is_not_written() {
    let place = Place::new();
    place.leave("of yesterday");
    let before = (place.bytes(), fs::metadata(&place.path).unwrap().ino());
    let cell = cell();
    let persisted = Persist::json(&place.path).interval(Duration::from_millis(10)).attach(&cell).unwrap();
    assert_eq!(*cell.get().unwrap(), "of yesterday");
    for _ in 0..3 {
        persisted.flush().unwrap();
    }
    assert_eq!(persisted.writes(), 0);
    drop(persisted);
    assert_eq!(before, (place.bytes(), fs::metadata(&place.path).unwrap().ino()));
}

#[test]
fn a_cell_that_holds_a_value_keeps_it() {
    let place = Place::new();
    place.leave("of yesterday");
    let cell = cell();
    cell.set("newer".to_owned());
    let persisted = place.attach(&cell);
    assert!(matches!(persisted.restored(), Restored::NotNeeded));
    assert_eq!(*cell.get().unwrap(), "newer");
    drop(persisted);
    assert_eq!(next_run(&place.path).1.unwrap(), "newer");
}

/// Publishes another value while it decodes, as a refresher does that is quicker.
struct Overtaken(Arc<DogpileCell<String>>);

impl Codec<String> for Overtaken {
    fn name(&self) -> &'static str {
        "json"
    }
    fn encode(&self, value: &String) -> Result<Vec<u8>, BoxError> {
        Ok(format!("{value:?}").into())
    }
    fn decode(&self, _: &[u8]) -> Result<String, BoxError> {
        self.0.set("newer".to_owned());
        Ok("older".to_owned())
    }
}

#[test]
fn a_value_that_is_published_while_the_file_is_decoded_is_kept() {
    let place = Place::new();
    place.leave("of yesterday");
    let cell = cell();
    let codec = Overtaken(Arc::clone(&cell));
    let persisted = Persist::with_codec(&place.path, codec).interval(NEVER).attach(&cell).unwrap();
    assert_eq!((cell.get().unwrap().as_str(), cell.generation()), ("newer", 1));
    assert!(matches!(persisted.restored(), Restored::NotNeeded));
    drop(persisted);
    assert_eq!(next_run(&place.path).1.unwrap(), "newer");
}

#[test]
fn a_cell_that_is_cleared_loses_its_file() {
    let place = Place::new();
    place.leave("of yesterday");
    let cell = cell();
    let persisted = place.attach(&cell);
    cell.clear();
    persisted.flush().unwrap();
    assert!(!place.path.exists());
    cell.set("new".to_owned());
    persisted.flush().unwrap();
    assert!(place.path.exists());
    cell.clear();
    drop(persisted);
    assert!(matches!(next_run(&place.path), (Restored::Nothing, None)));
}

/// For as long as a writer is inside, the cell seems to be empty.
#[test]
fn a_value_that_is_taken_out_for_a_writer_keeps_its_file() {
    let place = Place::new();
    let cell = Arc::new(SyncReaderCell::new(HOUR, drop::<String>));
    let persisted = place.persist().attach(&cell).unwrap();
    cell.set("value".to_owned());
    persisted.flush().unwrap();
    let result = cell.request().no_cache().try_get_with_writer(|writer| {
        let mut lock = writer.acquire_write_lock();
        assert_eq!(lock.old().unwrap(), "value");
        persisted.flush().unwrap();
        Err::<String, _>("this error is part of the test")
    });
    assert!(result.is_err());
    assert_eq!(next_run(&place.path).1.unwrap(), "value");
    persisted.flush().unwrap();
    assert_eq!(persisted.writes(), 1);
    // Nor is it replaced by that of the file.
    let result = cell.request().no_cache().try_get_with_writer(|writer| {
        let _lock = writer.acquire_write_lock();
        assert!(matches!(place.persist().attach(&cell).unwrap().restored(), Restored::NotNeeded));
        Err::<String, _>("this error is part of the test")
    });
    assert!(result.is_err());
    assert_eq!((cell.get().unwrap().as_str(), cell.generation()), ("value", 1));
    // A cleared one does not.
    cell.clear();
    persisted.flush().unwrap();
    assert!(!place.path.exists());
    drop(persisted);
}

/// Counts the looks at it: one at each attempt to write, and one by `attach`.
struct CountingClock(Arc<AtomicU64>);

impl WallClock for CountingClock {
    fn now(&self) -> Moment {
        self.0.fetch_add(1, Ordering::SeqCst);
        SystemWallClock.now()
    }
}

#[test]
fn a_value_that_is_taken_out_before_it_was_written_is_waited_for() {
    for dropped in [false, true] {
        let place = Place::new();
        let cell = Arc::new(SyncReaderCell::new(HOUR, drop::<String>));
        let looks = Arc::new(AtomicU64::new(0));
        let clock = CountingClock(Arc::clone(&looks));
        let persisted = place.persist().wall_clock(clock).attach(&cell).unwrap();
        cell.set("value".to_owned());
        std::thread::scope(|scope| {
            let result = cell.request().no_cache().try_get_with_writer(|writer| {
                let _lock = writer.acquire_write_lock();
                let persisted = persisted;
                scope.spawn(move || if dropped { drop(persisted) } else { persisted.flush().unwrap() });
                eventually("it tries to write", || looks.load(Ordering::SeqCst) > 1);
                Err::<String, _>("this error is part of the test")
            });
            assert!(result.is_err());
        });
        assert_eq!(next_run(&place.path).1.unwrap(), "value");
    }
}

#[test]
fn a_flush_of_a_value_that_stays_taken_out_is_an_error() {
    let place = Place::new();
    let cell = Arc::new(SyncReaderCell::new(HOUR, drop::<String>));
    let persisted = place.persist().attach(&cell).unwrap();
    // Of a cell that never held a value there is nothing to be written, whatever it builds.
    assert_eq!(*cell.get_or_refresh(|| persisted.flush().map(|()| "value".to_owned()).unwrap()), "value");
    let result = cell.request().no_cache().try_get_with_writer(|writer| {
        let _lock = writer.acquire_write_lock();
        let error = persisted.flush().unwrap_err();
        assert!(error.to_string().ends_with("a build may have taken the value out of the cell"), "{error}");
        assert_eq!(error.kind(), PersistErrorKind::Io);
        Err::<String, _>("this error is part of the test")
    });
    assert!(result.is_err());
    persisted.flush().unwrap();
    assert_eq!(next_run(&place.path).1.unwrap(), "value");
    // Nor is there anything of a cell that was empty when it was looked at last.
    cell.clear();
    persisted.flush().unwrap();
    assert_eq!(*cell.get_or_refresh(|| persisted.flush().map(|()| "next".to_owned()).unwrap()), "next");
}

/// Neither clearing nor declaring stale changes the generation.
#[test]
fn a_cell_that_is_cleared_loses_its_file_while_a_build_runs() {
    for number in 0..8 {
        let [restored, locked, dropped] = [1, 2, 4].map(|bit| number & bit != 0);
        let place = Place::new();
        if restored {
            place.leave("value");
        }
        let cell = Arc::new(SyncReaderCell::new(HOUR, drop::<String>));
        let persisted = place.persist().attach(&cell).unwrap();
        if !restored {
            cell.set("value".to_owned());
            persisted.flush().unwrap();
        }
        assert!(place.path.exists());
        if !locked {
            cell.clear();
        }
        let result = cell.request().no_cache().try_get_with_writer(|writer| {
            let _lock = locked.then(|| writer.acquire_write_lock());
            if locked {
                cell.clear();
            }
            if dropped {
                drop(persisted);
            } else {
                persisted.flush().unwrap();
            }
            assert!(!place.path.exists(), "restored: {restored}, locked: {locked}, dropped: {dropped}");
            Err::<String, _>("this error is part of the test")
        });
        assert!(result.is_err());
    }
}

#[test]
fn a_value_that_is_taken_out_and_declared_stale_since_it_was_written_is_waited_for() {
    for number in 0..8 {
        let [restored, locked, dropped] = [1, 2, 4].map(|bit| number & bit != 0);
        let place = Place::new();
        if restored {
            place.leave("value");
        }
        let cell = Arc::new(SyncReaderCell::new(HOUR, drop::<String>));
        let looks = Arc::new(AtomicU64::new(0));
        let clock = CountingClock(Arc::clone(&looks));
        let persisted = place.persist().wall_clock(clock).attach(&cell).unwrap();
        if !restored {
            cell.set("value".to_owned());
            persisted.flush().unwrap();
        }
        if !locked {
            cell.invalidate();
        }
        let has_ended = AtomicBool::new(false);
        let (looks, has_ended) = (&*looks, &has_ended);
        std::thread::scope(|scope| {
            let result = cell.request().no_cache().try_get_with_writer(|writer| {
                let _lock = writer.acquire_write_lock();
                if locked {
                    cell.invalidate();
                }
                let before = looks.load(Ordering::SeqCst);
                let persisted = persisted;
                scope.spawn(move || {
                    if dropped {
                        drop(persisted);
                    } else {
                        persisted.flush().unwrap();
                    }
                    has_ended.store(true, Ordering::SeqCst);
                });
                // More than once, if it waits.
                eventually("it tries to write", || {
                    has_ended.load(Ordering::SeqCst) || looks.load(Ordering::SeqCst) > before + 1
                });
                Err::<String, _>("this error is part of the test")
            });
            assert!(result.is_err());
        });
        let next = super::cell();
        let _persisted = place.attach(&next);
        let found = (next.get().as_deref().cloned(), next.freshness());
        assert_eq!(found, (Some("value".to_owned()), Freshness::Stale), "{restored}, {locked}, {dropped}");
    }
}

#[test]
fn a_file_that_could_not_be_removed_is_removed_while_a_build_runs() {
    let place = Place::new();
    let cell = Arc::new(SyncReaderCell::new(HOUR, drop::<String>));
    let persisted = place.persist().attach(&cell).unwrap();
    cell.set("value".to_owned());
    persisted.flush().unwrap();
    let lock = fs::File::create(place.beside("state.json.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    cell.clear();
    assert!(persisted.flush().is_err());
    cell.get_or_refresh(|| {
        drop(lock);
        persisted.flush().unwrap();
        assert!(!place.path.exists());
        "next".to_owned()
    });
    drop(persisted);
    assert_eq!(next_run(&place.path).1.unwrap(), "next");
}

#[test]
fn a_flush_of_a_value_that_is_stale_in_the_file_does_not_wait_for_the_build() {
    let place = Place::new();
    let cell = Arc::new(SyncReaderCell::new(HOUR, drop::<String>));
    let persisted = place.persist().attach(&cell).unwrap();
    cell.set("value".to_owned());
    cell.invalidate();
    persisted.flush().unwrap();
    cell.invalidate();
    let result = cell.request().no_cache().try_get_with_writer(|writer| {
        let _lock = writer.acquire_write_lock();
        persisted.flush().unwrap();
        Ok::<_, BoxError>("newer".to_owned())
    });
    assert_eq!(*result.unwrap(), "newer");
    persisted.flush().unwrap();
    assert_eq!(persisted.writes(), 2);
    // What was declared stale is the value before.
    let result = cell.request().no_cache().try_get_with_writer(|writer| {
        let _lock = writer.acquire_write_lock();
        persisted.flush().unwrap();
        cell.invalidate();
        let error = persisted.flush().unwrap_err();
        assert!(error.to_string().ends_with("a build may have taken the value out of the cell"), "{error}");
        Err::<String, _>("this error is part of the test")
    });
    assert!(result.is_err());
}

#[test]
fn a_file_that_another_cell_has_written_since_is_not_removed() {
    let place = Place::new();
    place.leave("of yesterday");
    let cell = cell();
    let persisted = place.attach(&cell);
    place.leave("of another process");
    cell.clear();
    drop(persisted);
    assert_eq!(next_run(&place.path).1.unwrap(), "of another process");
}

#[test]
fn a_newer_value_of_another_process_is_kept() {
    let place = Place::new();
    let old = cell();
    let persisted = place.attach(&old);
    old.restore("old".to_owned(), HOUR / 2);
    place.leave("new");
    persisted.flush().unwrap();
    assert_eq!((persisted.writes(), next_run(&place.path).1.unwrap()), (0, "new".to_owned()));
    // Until there is something newer still.
    old.set("newest".to_owned());
    drop(persisted);
    assert_eq!(next_run(&place.path).1.unwrap(), "newest");
}

#[test]
fn all_kinds_of_cells() {
    static LAZY: LazyDogpile<u32> = LazyDogpile::new(HOUR, || 7);
    static CELL: DogpileCell<u32> = DogpileCell::new(HOUR);
    let place = Place::new();
    let path = |name: &str| place.beside(name);
    let lazy = Persist::json(path("lazy")).attach(&LAZY).unwrap();
    LAZY.get_or_refresh();
    lazy.flush().unwrap();
    let fixed = Persist::json(path("lazy")).attach(&CELL).unwrap();
    assert_eq!(CELL.get().as_deref(), Some(&7));

    let finalised = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&finalised);
    let make = move |kept: Arc<Mutex<Vec<u32>>>| {
        Arc::new(SyncReaderCell::new(HOUR, move |value: u32| kept.lock().unwrap().push(value)))
    };
    let cell = make(Arc::clone(&kept));
    let persisted = Persist::postcard(path("sync")).attach(&cell).unwrap();
    cell.set(1);
    persisted.flush().unwrap();
    cell.set(2);
    drop(persisted);
    assert_eq!((cell.readers(), cell.retired()), (0, cell.retired()), "the writer is no reader any more");
    cell.synchronize();
    assert_eq!(*finalised.lock().unwrap(), [1]);
    let next = make(kept);
    let persisted = Persist::postcard(path("sync")).attach(&next).unwrap();
    assert_eq!(*next.get().unwrap(), 2);
    drop((persisted, fixed, lazy));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Rates {
    names: Vec<String>,
    values: Vec<f64>,
}

#[test]
fn serde_values_of_any_size() {
    let place = Place::new();
    let rates = || Rates {
        names: (0..100_000).map(|number| format!("rate \"{number}\"\n")).collect(),
        values: (0..100_000).map(f64::from).collect(),
    };
    for postcard in [false, true] {
        let path = place.beside(if postcard { "postcard" } else { "json" });
        let attach = |cell: &Arc<DogpileCell<Rates>>| -> Persisted {
            if postcard { Persist::postcard(&path).attach(cell) } else { Persist::json(&path).attach(cell) }
                .unwrap()
        };
        let cell = Arc::new(DogpileCell::new(HOUR));
        let persisted = attach(&cell);
        cell.set(rates());
        drop(persisted);
        let cell = Arc::new(DogpileCell::new(HOUR));
        let persisted = attach(&cell);
        assert_eq!(*cell.get().unwrap(), rates());
        drop(persisted);
    }
}

#[test]
fn a_write_that_another_process_was_in_the_way_of_does_not_wait_for_a_long_interval() {
    let place = Place::new();
    let cell = cell();
    let persisted = Persist::json(&place.path).interval(HOUR).attach(&cell).unwrap();
    let lock = fs::File::create(place.beside("state.json.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    cell.set("value".to_owned());
    eventually("it has been tried", || persisted.last_error().is_some());
    let error = persisted.last_error().unwrap().to_string();
    assert!(error.ends_with("the file is being written by another process, or another `Persist`"), "{error}");
    drop(lock);
    eventually("it is written", || persisted.writes() == 1);
    assert!(persisted.last_error().is_none());
    drop(persisted);
}

#[test]
fn what_json_cannot_hold_is_an_error_or_is_refused_by_the_next_run() {
    let place = Place::new();
    let cell = Arc::new(DogpileCell::new(HOUR));
    let persisted = place.persist().attach(&cell).unwrap();
    cell.set(vec![1.0, f64::NAN]);
    persisted.flush().unwrap();
    drop(persisted);
    let cell = Arc::new(DogpileCell::<Vec<f64>>::new(HOUR));
    let persisted = place.persist().attach(&cell).unwrap();
    let Restored::Ignored(error) = persisted.restored() else { panic!("{persisted:?}") };
    assert_eq!(error.kind(), PersistErrorKind::Codec);
    assert!(error.to_string().contains("invalid type: null, expected f64"), "{error}");

    let path = place.beside("map");
    let cell = Arc::new(DogpileCell::new(HOUR));
    let persisted = Persist::json(&path).interval(NEVER).attach(&cell).unwrap();
    cell.set(std::collections::BTreeMap::from([((1, 2), 3)]));
    let error = persisted.flush().unwrap_err();
    assert!(error.to_string().ends_with("key must be a string"), "{error}");
    assert!(!path.exists());
    drop(persisted);
}

/// A refresher that rests while its value is not read. Another one, which does not rest, tells when its time has come.
#[test]
fn a_value_that_is_written_does_not_count_as_read() {
    let place = Place::new();
    let clock = ManualClock::new();
    let cells = [(); 2].map(|()| Arc::new(DogpileCell::with_clock(Policy::ttl(HOUR), clock.clone())));
    let build = |previous: Option<Arc<u64>>| previous.map_or(1, |number| *number + 1);
    let rests = Refresher::options().rest_when_unused().spawn(&cells[0], HOUR / 10, build).unwrap();
    let works = Refresher::spawn(&cells[1], HOUR / 10, build).unwrap();
    assert!(rests.wait_ready(PATIENCE) && works.wait_ready(PATIENCE));
    let persisted = Persist::json(&place.path).interval(NEVER).attach(&cells[0]).unwrap();
    for round in 2..8 {
        persisted.flush().unwrap();
        clock.advance(HOUR);
        persisted.flush().unwrap();
        eventually("the next build", || cells[1].generation() == round);
    }
    drop((rests, works));
    assert_eq!((cells[0].generation(), persisted.writes()), (1, 1));
    drop(persisted);
}

/// Looks at its own writer when it is displayed, and when it is dropped.
#[derive(Debug)]
struct Curious(Arc<OnceLock<Persisted>>);

impl std::fmt::Display for Curious {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "after {} writes", self.0.get().unwrap().writes())
    }
}

impl std::error::Error for Curious {}

impl Drop for Curious {
    fn drop(&mut self) {
        let _ = self.0.get().unwrap().writes();
    }
}

impl Codec<String> for Curious {
    fn name(&self) -> &'static str {
        "curious"
    }
    fn encode(&self, value: &String) -> Result<Vec<u8>, BoxError> {
        if value == "good" { Ok(value.clone().into()) } else { Err(Curious(Arc::clone(&self.0)).into()) }
    }
    fn decode(&self, _: &[u8]) -> Result<String, BoxError> {
        Err("it is not decoded".into())
    }
}

#[test]
fn the_codecs_errors_are_displayed_and_dropped_under_no_lock() {
    let place = Place::new();
    let cell = cell();
    let own = Arc::new(OnceLock::new());
    let codec = Curious(Arc::clone(&own));
    let persisted = Persist::with_codec(&place.path, codec).interval(NEVER).attach(&cell).unwrap();
    own.set(persisted).unwrap();
    let (done, end) = mpsc::channel();
    let of_thread = Arc::clone(&own);
    std::thread::spawn(move || {
        let persisted = of_thread.get().unwrap();
        for value in ["bad", "worse", "good"] {
            cell.set(value.to_owned());
            let result = persisted.flush();
            assert_eq!(result.is_ok(), value == "good");
        }
        done.send(()).unwrap();
    });
    end.recv_timeout(PATIENCE).unwrap();
    assert_eq!(own.get().unwrap().writes(), 1);
}

/// Fails, panics, or asks for a flush of its own writer, as the value says.
#[derive(Default)]
struct Naughty {
    own: Arc<OnceLock<Persisted>>,
    calls: Arc<AtomicU64>,
}

impl Codec<String> for Naughty {
    fn name(&self) -> &'static str {
        "naughty"
    }
    fn encode(&self, value: &String) -> Result<Vec<u8>, BoxError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match value.as_str() {
            "fail" => Err("this error is part of the test".into()),
            "panic" => panic!("this panic is part of the test"),
            "flush" => {
                let error = self.own.get().unwrap().flush().unwrap_err();
                Err(error.to_string().into())
            }
            _ => Ok(value.clone().into_bytes()),
        }
    }
    fn decode(&self, bytes: &[u8]) -> Result<String, BoxError> {
        assert!(bytes != b"undecodable", "this panic is part of the test");
        Ok(String::from_utf8(bytes.to_vec())?)
    }
}

#[test]
fn a_codec_that_fails_or_panics_leaves_the_old_file() {
    let place = Place::new();
    let cell = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    let codec = Naughty::default();
    let own = Arc::clone(&codec.own);
    let persisted = Persist::with_codec(&place.path, codec).interval(NEVER).attach(&cell).unwrap();
    own.set(persisted).unwrap();
    let persisted = own.get().unwrap();
    cell.set("good".to_owned());
    persisted.flush().unwrap();
    let before = place.bytes();
    for (value, text) in [
        ("fail", "this error is part of the test"),
        ("panic", "the codec panicked: this panic is part of the test"),
        ("flush", "it cannot be flushed by its own codec"),
    ] {
        cell.set(value.to_owned());
        let error = persisted.flush().unwrap_err();
        assert_eq!(error.kind(), PersistErrorKind::Codec);
        assert!(error.to_string().ends_with(text), "{error}");
        assert!(error.to_string().contains("state.json"), "{error}");
        assert_eq!(persisted.last_error().unwrap().to_string(), error.to_string());
        assert_eq!(place.bytes(), before);
    }
    cell.set("undecodable".to_owned());
    persisted.flush().unwrap();
    assert!(persisted.last_error().is_none());

    let cell = Arc::new(DogpileCell::<String>::with_policy(Policy::never_expires()));
    let next = Persist::with_codec(&place.path, Naughty::default()).interval(NEVER).attach(&cell).unwrap();
    let Restored::Ignored(error) = next.restored() else { panic!("{next:?}") };
    assert_eq!(error.kind(), PersistErrorKind::Codec);
    assert_eq!(cell.get(), None);
}

/// An error that panics when it is displayed, or when it is dropped.
#[derive(Debug)]
enum Explosive {
    Displayed,
    Dropped,
}

impl std::fmt::Display for Explosive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        assert!(!matches!(self, Self::Displayed), "this panic is part of the test");
        f.write_str("explosive")
    }
}

impl std::error::Error for Explosive {}

impl Drop for Explosive {
    fn drop(&mut self) {
        assert!(!matches!(self, Self::Dropped), "this panic is part of the test");
    }
}

/// Has such errors.
struct Failing;

impl Codec<String> for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }
    fn encode(&self, value: &String) -> Result<Vec<u8>, BoxError> {
        match value.as_str() {
            "displayed" => Err(Explosive::Displayed.into()),
            "dropped" => Err(Explosive::Dropped.into()),
            _ => Ok(value.clone().into()),
        }
    }
    fn decode(&self, _: &[u8]) -> Result<String, BoxError> {
        Err(Explosive::Displayed.into())
    }
}

#[test]
fn errors_of_the_codec_that_panic_end_nothing() {
    let place = Place::new();
    let cell = cell();
    let attach = || Persist::with_codec(&place.path, Failing).interval(NEVER).attach(&cell).unwrap();
    let persisted = attach();
    for (number, value) in ["displayed", "dropped"].into_iter().enumerate() {
        cell.set(value.to_owned());
        assert_eq!(persisted.flush().unwrap_err().kind(), PersistErrorKind::Codec);
        cell.set("good".to_owned());
        persisted.flush().unwrap();
        assert_eq!(persisted.writes(), number as u64 + 1);
    }
    drop(persisted);
    cell.clear();
    let Restored::Ignored(error) = attach().restored().clone() else { panic!("it is decoded") };
    assert_eq!(error.kind(), PersistErrorKind::Codec);
}

/// Panics at its second look.
struct BrokenClock(AtomicU64);

impl WallClock for BrokenClock {
    fn now(&self) -> Moment {
        assert!(self.0.fetch_add(1, Ordering::SeqCst) != 1, "this panic is part of the test");
        SystemWallClock.now()
    }
}

#[test]
fn a_wall_clock_that_panics_is_an_error_and_ends_nothing() {
    let place = Place::new();
    let cell = cell();
    let persisted = place.persist().wall_clock(BrokenClock(AtomicU64::new(0))).attach(&cell).unwrap();
    cell.set("value".to_owned());
    let error = persisted.flush().unwrap_err();
    assert!(error.to_string().ends_with("panicked: this panic is part of the test"), "{error}");
    assert_eq!(error.kind(), PersistErrorKind::Codec);
    assert!(!place.path.exists());
    persisted.flush().unwrap();
    assert_eq!(next_run(&place.path).1.unwrap(), "value");
    drop(persisted);
}

/// Panics when it is dropped, if it says so.
struct Fragile(bool);

impl Drop for Fragile {
    fn drop(&mut self) {
        assert!(!self.0, "this panic is part of the test");
    }
}

/// Says when it begins to encode a fragile value, and waits.
struct Slow(mpsc::Sender<()>, mpsc::Receiver<()>);

impl Codec<Fragile> for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }
    fn encode(&self, value: &Fragile) -> Result<Vec<u8>, BoxError> {
        if value.0 {
            self.0.send(())?;
            self.1.recv_timeout(PATIENCE)?;
        }
        Ok(vec![u8::from(value.0)])
    }
    fn decode(&self, _: &[u8]) -> Result<Fragile, BoxError> {
        Ok(Fragile(false))
    }
}

#[test]
fn a_value_that_panics_when_the_writer_drops_it_is_an_error_and_ends_nothing() {
    let place = Place::new();
    let cell = Arc::new(DogpileCell::new(HOUR));
    let ((begun, begins), (go_on, wait)) = (mpsc::channel(), mpsc::channel());
    let codec = Slow(begun, wait);
    let persisted = Persist::with_codec(&place.path, codec).interval(NEVER).attach(&cell).unwrap();
    cell.set(Fragile(true));
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| persisted.flush());
        begins.recv_timeout(PATIENCE).unwrap();
        // From now on the writer has the only reference to the old one.
        cell.set(Fragile(false));
        go_on.send(()).unwrap();
        let error = flush.join().unwrap().unwrap_err();
        assert!(error.to_string().ends_with("panicked: this panic is part of the test"), "{error}");
    });
    persisted.flush().unwrap();
    assert!(place.bytes().ends_with(b"\n\0"));
    drop(persisted);
}

#[test]
fn what_makes_no_sense_is_an_error() {
    struct Nameless;
    impl Codec<String> for Nameless {
        fn name(&self) -> &'static str {
            "two words"
        }
        fn encode(&self, _: &String) -> Result<Vec<u8>, BoxError> {
            unreachable!("it is not attached")
        }
        fn decode(&self, _: &[u8]) -> Result<String, BoxError> {
            unreachable!("it is not attached")
        }
    }
    let error = Persist::with_codec("file", Nameless).attach(cell()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("two words"), "{error}");
    let error = Persist::json("/").attach(cell()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn it_is_send_sync_and_unwind_safe() {
    fn is_all<T: Send + Sync + UnwindSafe + RefUnwindSafe>() {}
    is_all::<Persist<Json>>();
    is_all::<Persisted>();
    is_all::<Restored>();
    is_all::<PersistError>();
}
