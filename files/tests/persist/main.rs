//! `Persist`, on a real file system.

#![cfg(all(unix, feature = "json", feature = "postcard"))]

mod age;
mod files;
mod kill;
mod rights;
#[path = "../support/mod.rs"]
mod support;
mod writing;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use dogpile::{DogpileCell, Policy};
use dogpile_files::{Json, Moment, Persist, Persisted, Restored, WallClock};
use tempfile::TempDir;

type Cell = Arc<DogpileCell<String>>;

const HOUR: Duration = Duration::from_secs(3600);
const NEVER: Duration = Duration::MAX;

fn cell() -> Cell {
    Arc::new(DogpileCell::with_policy(Policy::ttl(HOUR)))
}

/// A folder with a path in it.
struct Place {
    folder: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        Self { folder, path }
    }

    /// Writes only when it is asked to.
    fn persist(&self) -> Persist<Json> {
        Persist::json(&self.path).interval(NEVER)
    }

    #[track_caller]
    fn attach(&self, cell: &Cell) -> Persisted {
        self.persist().attach(cell).unwrap()
    }

    /// Has a run leave `text` behind.
    #[track_caller]
    fn leave(&self, text: &str) {
        let cell = cell();
        cell.set(text.to_owned());
        self.attach(&cell).flush().unwrap();
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

/// What the next run finds.
#[track_caller]
fn next_run(path: &Path) -> (Restored, Option<String>) {
    let cell = cell();
    let persisted = Persist::json(path).interval(NEVER).attach(&cell).unwrap();
    (persisted.restored().clone(), cell.get().map(|value| String::clone(&value)))
}

/// A wall clock that is set by hand.
#[derive(Clone)]
struct HandClock(Arc<Mutex<Moment>>);

impl HandClock {
    /// Hours since 1970, and since the host's start of a number.
    fn new(wall: u32, boot: Option<(u64, u32)>) -> Self {
        Self(Arc::new(Mutex::new(moment(wall, boot))))
    }

    fn set(&self, wall: u32, boot: Option<(u64, u32)>) {
        *self.0.lock().unwrap() = moment(wall, boot);
    }
}

impl WallClock for HandClock {
    fn now(&self) -> Moment {
        *self.0.lock().unwrap()
    }
}

fn moment(wall: u32, boot: Option<(u64, u32)>) -> Moment {
    Moment { wall: UNIX_EPOCH + HOUR * wall, boot: boot.map(|(id, time)| (id, HOUR * time)) }
}
