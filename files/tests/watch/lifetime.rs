//! Its beginning and its end.

use std::fs;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dogpile::{DogpileCell, Policy};
use dogpile_files::{FileError, Files, Watch, WatchOptions};

use super::support::{PATIENCE, eventually};
use super::{Bench, cell, options, parse};

#[test]
fn the_drop_ends_a_wait_for_quiet() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let (done, end) = mpsc::channel();
    std::thread::spawn(move || {
        let cell = cell();
        let day = Duration::from_secs(86_400);
        let watch = Watch::files([&file]).debounce(day).spawn(&cell, parse).unwrap();
        eventually("the first build waits", || cell.is_refreshing());
        drop(watch);
        assert_eq!(cell.get(), None);
        assert!(cell.last_error().unwrap().to_string().contains("dropped"));
        done.send(()).unwrap();
    });
    end.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn after_the_drop_nothing_is_read_and_the_cell_keeps_its_value() {
    let bench = Bench::new("first");
    let Bench { folder: _folder, file, cell, watch } = bench;
    drop(watch);
    fs::write(&file, "second.").unwrap();
    assert_eq!(Arc::strong_count(&cell), 1);
    assert_eq!(*cell.get().unwrap(), "first");
}

#[test]
fn a_closure_that_drops_its_own_watch_does_not_wait_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let cell = cell();
    let (give, take) = mpsc::channel::<Watch>();
    let watch = options(&file)
        .spawn(&cell, move |files: &Files| {
            drop(take.recv_timeout(PATIENCE).unwrap());
            parse(files)
        })
        .unwrap();
    give.send(watch).unwrap();
    eventually("the value", || cell.get().is_some());
}

#[test]
fn it_does_not_keep_the_cell_alive() {
    let bench = Bench::new("first");
    let Bench { folder: _folder, file, cell, watch } = bench;
    let weak = Arc::downgrade(&cell);
    drop(cell);
    assert!(weak.upgrade().is_none());
    fs::write(&file, "second.").unwrap();
    assert!(!watch.wait_ready(Duration::ZERO));
}

#[cfg(feature = "async")]
#[test]
fn a_task_that_waits_does_not_block_its_thread() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let cell = cell();
    let watch = options(&file).spawn(&cell, parse).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ready = runtime.block_on(async {
        let write = async { fs::write(&file, "first.").unwrap() };
        assert!(!watch.wait_ready_async(Duration::ZERO).await);
        tokio::join!(watch.wait_ready_async(PATIENCE), write).0
    });
    assert!(ready);
    assert_eq!(*cell.get().unwrap(), "first");
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let cell = cell();
    let none: [&str; 0] = [];
    let error = Watch::files(none).spawn(&cell, parse).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("no file"), "{error}");

    let never_fresh: Arc<DogpileCell<String>> =
        Arc::new(DogpileCell::with_policy(Policy::ttl(Duration::ZERO)));
    let error = Watch::files(["file"]).spawn(&never_fresh, parse).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn it_is_send_sync_and_unwind_safe_and_says_what_it_watches() {
    fn is_all<T: Send + Sync + UnwindSafe + RefUnwindSafe>() {}
    is_all::<Watch>();
    is_all::<WatchOptions>();
    is_all::<Files>();
    is_all::<FileError>();
    let bench = Bench::new("first");
    assert!(format!("{:?}", bench.watch).contains("file"));
}
