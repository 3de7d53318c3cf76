//! `Watch`, on a real file system with real notifications.

#![cfg(all(unix, feature = "watch"))]

mod cells;
mod lifetime;
mod pairs;
mod places;
mod polling;
mod replacing;
mod special;
mod state;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dogpile::{DogpileCell, Policy};
use dogpile_files::{FileError, Files, Watch, WatchOptions};
use support::eventually;
use tempfile::TempDir;

type Text = Arc<DogpileCell<String>>;

fn cell() -> Text {
    Arc::new(DogpileCell::with_policy(Policy::never_expires()))
}

/// Whole files end with a full stop.
fn parse(files: &Files) -> Result<String, FileError> {
    files.parse(0, |text| match text.strip_suffix('.') {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("line {}: no full stop", text.lines().count())),
    })
}

/// A folder with a file `file`, and a cell that follows it.
struct Bench {
    folder: TempDir,
    file: PathBuf,
    cell: Text,
    watch: Watch,
}

fn options(path: &Path) -> WatchOptions {
    // Polls are out of the way of what is to be notified.
    Watch::files([path]).debounce(Duration::from_millis(100)).poll_every(Duration::MAX)
}

impl Bench {
    /// `text` is in the file and in the cell.
    #[track_caller]
    fn new(text: &str) -> Self {
        let bench = Self::of(tempfile::tempdir().unwrap(), "file", |file| {
            fs::write(file, format!("{text}.")).unwrap();
        });
        bench.shows(text);
        bench
    }

    #[track_caller]
    fn of(folder: TempDir, file: &str, prepare: impl FnOnce(&Path)) -> Self {
        let file = folder.path().join(file);
        prepare(&file);
        let cell = cell();
        let watch = options(&file).spawn(&cell, parse).unwrap();
        Self { folder, file, cell, watch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        eventually(&format!("{text:?} is published: {:?}, {:?}", self.cell.get(), self.error()), || {
            self.cell.get().is_some_and(|value| *value == text)
        });
        eventually("no error is left", || self.error().is_none());
    }

    /// Waits for an error that contains `text`, and sees to it that `value` is served meanwhile.
    #[track_caller]
    fn fails(&self, text: &str, value: &str) {
        eventually(&format!("an error with {text:?}"), || {
            assert_eq!(self.cell.get().as_deref().map(String::as_str), Some(value));
            self.error().is_some_and(|error| error.contains(text))
        });
        assert_eq!(self.cell.last_error().unwrap().to_string(), self.error().unwrap());
    }

    fn error(&self) -> Option<String> {
        self.watch.last_error().map(|error| error.to_string())
    }
}
