//! Threads and descriptors, however many changes there are. Alone in its binary: it counts those of the process.

#![cfg(all(target_os = "linux", feature = "watch", feature = "json"))]

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{DogpileCell, Policy};
use dogpile_files::{FileError, Files, Persist, Watch};
use support::{eventually, number};

fn count(what: &str) -> usize {
    fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
}

/// How many folders are watched.
const WATCHES: usize = 2;

/// Watches of inotify.
fn watches() -> usize {
    let is_watch = |text: String| text.lines().filter(|line| line.starts_with("inotify wd:")).count();
    let infos = fs::read_dir("/proc/self/fdinfo").unwrap();
    infos.filter_map(|info| fs::read_to_string(info.unwrap().path()).ok()).map(is_watch).sum()
}

/// In pages.
fn resident() -> u64 {
    fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn threads_descriptors_and_memory_are_constant() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("sub")).unwrap();
    let before = (count("task"), count("fd"));

    let cell: Arc<DogpileCell<u64>> = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    let persisted = Persist::json(path("state")).interval(Duration::from_millis(10)).attach(&cell).unwrap();
    let watch = Watch::files([path("sub/file")])
        .debounce(Duration::ZERO)
        .spawn(&cell, |files: &Files| {
            let number: u64 = files.parse(0, str::parse)?;
            Ok::<_, FileError>(number)
        })
        .unwrap();
    let change = |number: u64| {
        // Each in another way.
        match number % 4 {
            0 => fs::write(path("sub/file"), number.to_string()).unwrap(),
            1 => {
                fs::write(path("new"), number.to_string()).unwrap();
                fs::rename(path("new"), path("sub/file")).unwrap();
            }
            2 => {
                fs::remove_dir_all(path("sub")).unwrap();
                fs::create_dir(path("sub")).unwrap();
                fs::write(path("sub/file"), number.to_string()).unwrap();
            }
            _ => {
                fs::rename(path("sub"), path("old")).unwrap();
                fs::create_dir(path("sub")).unwrap();
                fs::write(path("sub/file"), number.to_string()).unwrap();
                fs::remove_dir_all(path("old")).unwrap();
            }
        }
    };
    let seen = |number: u64| {
        eventually(&format!("{number}: {:?}", watch.last_error()), || cell.get().as_deref() == Some(&number));
        persisted.flush().unwrap();
    };
    for number in 1..=8 {
        change(number);
        seen(number);
    }
    // The watching thread, the refresher's, notify's, and the writer's.
    let (during, memory) = ((count("task"), count("fd")), resident());
    assert_eq!(during.0, before.0 + 4);

    // Some are seen one by one, most are not.
    let last = number("DOGPILE_FILES_CHANGES", 2000);
    for number in 9..=last {
        change(number);
        if number % 500 == 0 {
            seen(number);
        }
    }
    seen(last);
    assert_eq!((count("task"), count("fd")), during);
    let more = resident().saturating_sub(memory);
    assert!(more < 1024, "{more} pages more");

    // Folders that are moved away take no watch along.
    for number in 1..=20 {
        fs::rename(path("sub"), path(&format!("sub{number}"))).unwrap();
        fs::create_dir(path("sub")).unwrap();
        fs::write(path("sub/file"), (last + number).to_string()).unwrap();
        seen(last + number);
    }
    // Those of the folder of the file, and of the folder that this is in. A value may be seen a moment before they are.
    eventually("no watch is left behind, and none is missing", || watches() == WATCHES);

    drop((watch, persisted));
    // notify's thread is not joined.
    eventually("all threads end", || (count("task"), count("fd")) == before);
    println!("{last} changes: {} threads, {} descriptors, {more} pages more", during.0, during.1);
}
