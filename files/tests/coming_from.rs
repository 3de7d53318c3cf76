//! The claims of `docs/coming_from.md`: a test for each row, which goes red if the right column is false.
//!
//! Above each test stand the rows that it is about, as `// section | first column`. That none is missing is a test too.

#![cfg(all(unix, feature = "watch"))]

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use dogpile::{DogpileCell, Policy};
use dogpile_files::{FileError, Files, Watch};
use notify::{Event, EventKind, RecursiveMode, Watcher};
use support::{PATIENCE, eventually};
use tempfile::TempDir;

const DEBOUNCE: Duration = Duration::from_millis(100);

const PAGE: &str = include_str!("../docs/coming_from.md");

#[test]
fn every_row_has_a_test() {
    let tests = concat!(include_str!("coming_from.rs"), include_str!("../src/watch/notifier.rs"));
    let mut section = "";
    let mut rows = Vec::new();
    for line in PAGE.lines() {
        if let Some(title) = line.strip_prefix("## ... ") {
            section = match title {
                "`arc-swap` and `notify`, by hand" => "by hand",
                "`config` or `figment`" => "config",
                "`certwatcher`" => "certwatcher",
                _ => panic!("a section that this test does not know: {title}"),
            };
        } else if let Some((first, _)) = line.strip_prefix("| ").and_then(|line| line.split_once(" | "))
            && first != "there"
        {
            rows.push(format!("// {section} | {first}\n"));
        }
    }
    assert!(rows.len() > 15, "only {} rows were found", rows.len());
    let missing: Vec<_> = rows.iter().filter(|row| !tests.contains(&***row)).collect();
    assert!(missing.is_empty(), "rows without a test: {missing:#?}");
    let gone: Vec<_> = tests
        .lines()
        .map(str::trim_start)
        .filter(|line| {
            line.starts_with("// ") && line.contains(" | ") && !rows.contains(&format!("{line}\n"))
        })
        .collect();
    assert!(gone.is_empty(), "tests of rows that are gone: {gone:#?}");
}

type Text = Arc<DogpileCell<String>>;

struct Bench {
    folder: TempDir,
    cell: Text,
    watch: Watch,
}

impl Bench {
    /// Follows `file`, whose text must end with a full stop.
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        Self::of(&["file"], prepare, |files| {
            files.parse(0, |text| text.strip_suffix('.').map(str::to_owned).ok_or("no full stop"))
        })
    }

    fn of(
        names: &[&str],
        prepare: impl FnOnce(&Path),
        parse: impl FnMut(&Files) -> Result<String, FileError> + Send + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let cell: Text = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
        let watch = Watch::files(names.iter().map(|name| folder.path().join(name)))
            .debounce(DEBOUNCE)
            .poll_every(Duration::MAX)
            .spawn(&cell, parse)
            .unwrap();
        Self { folder, cell, watch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn rename_over(&self, name: &str, text: &str) {
        self.write("new", text);
        fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        eventually(text, || self.cell.get().is_some_and(|value| *value == text));
    }

    #[track_caller]
    fn fails(&self, text: &str) {
        eventually(text, || self.watch.last_error().is_some_and(|error| error.to_string().contains(text)));
    }
}

fn write_file(text: &str) -> impl FnOnce(&Path) {
    move |folder| fs::write(folder.join("file"), text).unwrap()
}

/// What `notify` reports of `path` while `change` runs. The events of one watcher come in their order, so those of a file
/// that is written at last are the end.
fn events(path: &Path, change: impl FnOnce()) -> Vec<Event> {
    let (send, receive) = mpsc::channel();
    let end = tempfile::tempdir().unwrap();
    let mut watcher = notify::recommended_watcher(send).unwrap();
    watcher.watch(end.path(), RecursiveMode::NonRecursive).unwrap();
    watcher.watch(path, RecursiveMode::NonRecursive).unwrap();
    change();
    fs::write(end.path().join("end"), "").unwrap();
    let mut events = Vec::new();
    loop {
        let event: Event = receive.recv_timeout(PATIENCE).unwrap().unwrap();
        if event.paths.iter().any(|path| path.ends_with("end")) {
            return events;
        }
        events.push(event);
    }
}

// by hand | the file is watched: after the first rename over it the watch is that of the old file, and nothing is notified any more
#[test]
fn a_file_is_renamed_over_twice() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let rename_over = |text: &str| {
        fs::write(folder.path().join("new"), text).unwrap();
        fs::rename(folder.path().join("new"), &file).unwrap();
    };
    rename_over("first.");
    let seen = events(&file, || {
        rename_over("second.");
        rename_over("third.");
        fs::write(&file, "fourth.").unwrap();
    });
    assert!(
        !seen.iter().any(|event| event.kind.is_modify()
            && matches!(event.kind, EventKind::Modify(notify::event::ModifyKind::Data(_)))),
        "{seen:?}"
    );

    let bench = Bench::new(write_file("first."));
    for text in ["first", "second", "third"] {
        bench.rename_over("file", &format!("{text}."));
        bench.shows(text);
    }
    bench.write("file", "fourth.");
    bench.shows("fourth");
}

// by hand | a file that is missing when the watch begins is an error
// certwatcher | `New` fails if the files are not there
#[test]
fn a_file_is_missing_at_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut watcher = notify::recommended_watcher(|_event: notify::Result<Event>| ()).unwrap();
    watcher.watch(&folder.path().join("file"), RecursiveMode::NonRecursive).unwrap_err();

    let bench = Bench::new(|_| ());
    assert!(!bench.watch.wait_ready(Duration::ZERO));
    bench.write("file", "first.");
    assert!(bench.watch.wait_ready(PATIENCE));
}

// by hand | a Kubernetes secret changes without an event for the file: `..data` is replaced
#[test]
fn a_link_on_the_way_is_replaced() {
    let prepare = |folder: &Path| {
        for version in ["1", "2"] {
            fs::create_dir(folder.join(format!("..{version}"))).unwrap();
            fs::write(folder.join(format!("..{version}/file")), format!("{version}.")).unwrap();
        }
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/file", folder.join("file")).unwrap();
    };
    let swap = |folder: &Path| {
        symlink("..2", folder.join("tmp")).unwrap();
        fs::rename(folder.join("tmp"), folder.join("..data")).unwrap();
    };
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let seen = events(&folder.path().join("file"), || swap(folder.path()));
    assert!(seen.is_empty(), "{seen:?}");

    let bench = Bench::new(prepare);
    bench.shows("1");
    swap(bench.folder.path());
    bench.shows("2");
}

// by hand | a read between two writes sees half a file; `unwrap` ends the notifier's thread
#[test]
fn a_file_is_half_written() {
    let bench = Bench::new(write_file("first."));
    bench.shows("first");
    bench.write("file", "sec");
    bench.fails("file: no full stop");
    assert_eq!(*bench.cell.get().unwrap(), "first");
    bench.write("file", "second.");
    bench.shows("second");
}

fn both(files: &Files) -> Result<String, FileError> {
    Ok(format!("{}{}", files.text(0)?, files.text(1)?))
}

// by hand | certificate and key are read one after the other, and may be of two states
// config | each file is read for itself
// certwatcher | each event is a read: between the two writes, too
#[test]
fn two_files_are_written_one_after_the_other() {
    let prepare = |folder: &Path| {
        fs::write(folder.join("cert"), "1").unwrap();
        fs::write(folder.join("key"), "1").unwrap();
    };
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let bench = Bench::of(&["cert", "key"], prepare, move |files| {
        counted.fetch_add(1, Ordering::SeqCst);
        both(files)
    });
    bench.shows("11");
    for number in 2.. {
        let (calls_before, start) = (calls.load(Ordering::SeqCst), Instant::now());
        bench.rename_over("cert", &number.to_string());
        bench.rename_over("key", &number.to_string());
        let between = start.elapsed();
        bench.shows(&format!("{number}{number}"));
        // On a machine so busy that the pair took longer to write than it has to be quiet, another round tells.
        if between < DEBOUNCE {
            assert_eq!(calls.load(Ordering::SeqCst), calls_before + 1);
            return;
        }
    }
}

// by hand | reading a file is an event too (`Access`): a handler for all events calls itself for ever
#[test]
fn a_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write_file("first.")(folder.path());
    let read = || drop(fs::read(folder.path().join("file")).unwrap());
    if cfg!(target_os = "linux") {
        let seen = events(folder.path(), read);
        assert!(seen.iter().any(|event| event.kind.is_access()), "{seen:?}");
    }
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let bench = Bench::of(&["file"], write_file("first."), move |files| {
        counted.fetch_add(1, Ordering::SeqCst);
        files.text(0).map(str::to_owned)
    });
    bench.shows("first.");
    for _ in 0..100 {
        fs::read(bench.path("file")).unwrap();
    }
    bench.write("file", "second.");
    bench.shows("second.");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

// by hand | the first load is written a second time, for the start
// by hand | `ArcSwap::load_full`
// config | a configuration is read once; a new one is a new call of yours
// certwatcher | `RegisterCallback`
#[test]
fn the_first_value_is_built_like_the_others() {
    let bench = Bench::new(write_file("first."));
    assert!(bench.watch.wait_ready(PATIENCE));
    let called = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&called);
    let _hook = bench.cell.on_publish(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let first: Arc<String> = bench.cell.get().unwrap();
    assert_eq!((first.as_str(), bench.cell.load().unwrap().as_str()), ("first", "first"));
    bench.write("file", "second.");
    bench.shows("second");
    assert_eq!(*first, "first");
    eventually("the hook is called", || called.load(Ordering::SeqCst) == 1);
}

// config | `File::with_name("local").required(false)`, or `Toml::file`, which may be missing
#[test]
fn a_layer_need_not_be_there() {
    let prepare = |folder: &Path| fs::write(folder.join("base"), "base").unwrap();
    let bench = Bench::of(&["base", "local"], prepare, |files| {
        if let Err(error) = files.read(1) {
            assert_eq!(error.kind(), Some(std::io::ErrorKind::NotFound));
        }
        Ok(files.text(0)?.to_owned() + files.text(1).ok().unwrap_or_default())
    });
    bench.shows("base");
    bench.write("local", ", local");
    bench.shows("base, local");
}

// config | files are found by their name in parent folders
#[test]
fn a_path_is_taken_as_it_is() {
    let bench =
        Bench::of(&["sub/file"], write_file("in the parent."), |files| files.text(0).map(str::to_owned));
    bench.fails("sub/file: No such file");
}

// config | environment variables are a layer
#[test]
fn the_closure_adds_what_it_likes() {
    let environment = "from the environment".to_owned();
    let bench =
        Bench::of(&["file"], write_file("file "), move |files| Ok(files.text(0)?.to_owned() + &environment));
    bench.shows("file from the environment");
}

// config | an error says the key, and perhaps the file
#[test]
fn an_error_begins_with_the_path() {
    let bench = Bench::of(&["file"], write_file("a = 1\nb = \n"), |files| {
        files.parse(0, toml::from_str::<toml::Table>).map(|table| table.to_string())
    });
    let path = bench.path("file");
    bench.fails(&format!("{}: TOML parse error at line 2, column 5", path.display()));
}

// certwatcher | `GetCertificate` returns the certificate as it is now
// certwatcher | a pair that does not match is an error in the log, and the old pair stays
#[test]
fn a_pair_that_does_not_match_is_refused() {
    let prepare = |folder: &Path| {
        fs::write(folder.join("cert"), "1").unwrap();
        fs::write(folder.join("key"), "1").unwrap();
    };
    let bench = Bench::of(&["cert", "key"], prepare, |files| {
        let pair = both(files)?;
        let (cert, key) = pair.split_at(1);
        if cert == key { Ok(pair) } else { Err(files.error(1, "the key is not that of the certificate")) }
    });
    bench.shows("11");
    bench.write("cert", "2");
    bench.fails("key: the key is not that of the certificate");
    assert_eq!(*bench.cell.get().unwrap(), "11");
    bench.write("key", "2");
    bench.shows("22");
}

// certwatcher | polls every 10 s besides
#[test]
fn polls_are_as_often_as_it_is_said() {
    let options = Watch::files(["file"]);
    assert!(format!("{options:?}").contains("poll_every: 30s"), "{options:?}");
    let folder = tempfile::tempdir().unwrap();
    write_file("first.")(folder.path());
    let cell: Text = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    let watch = Watch::files([folder.path().join("file")])
        .only_poll()
        .poll_every(Duration::from_millis(20))
        .spawn(&cell, |files: &Files| files.text(0).map(str::to_owned))
        .unwrap();
    eventually("the first", || cell.get().is_some());
    write_file("second.")(folder.path());
    eventually("the second", || *cell.get().unwrap() == "second.");
    drop(watch);
}
