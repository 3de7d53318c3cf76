//! A database that stands for one of places of IP addresses: mapped into memory, read by all threads, and replaced on disk by
//! another program.
//!
//! A [`SyncReaderCell`] holds the mapping; a [`Watch`] opens the file again when it was replaced. Readers that are inside go on
//! with the old mapping. It is unmapped when the last of them has left, and not by a reader.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogpile::{Drain, Policy, SyncReaderCell};
use dogpile_files::{FileError, Files, Watch};
use memmap2::Mmap;

const MAGIC: &[u8; 8] = b"numbers1";

/// Numbers by their position, and the version of the whole.
#[derive(Debug)]
pub struct Database {
    map: Mmap,
}

impl Database {
    /// Maps a file, after a check that it is one of these.
    #[expect(unsafe_code, reason = "memmap2 cannot know whether the file is written to")]
    fn map(files: &Files) -> Result<Self, FileError> {
        let file = files.open(0)?;
        // SAFETY: As long as the mapping lives, the file must not be written to or shortened. This program never does that.
        // The program that makes the files must write each one elsewhere and rename it, as `write` does: then a file that is
        // mapped is never changed, it only loses its name.
        let map = unsafe { Mmap::map(file) }.map_err(|error| files.error(0, error))?;
        let database = Self { map };
        if !database.map.starts_with(MAGIC)
            || !database.map.len().is_multiple_of(8)
            || database.map.len() < 16
        {
            return Err(files.error(0, "is no database of numbers"));
        }
        Ok(database)
    }

    /// The version that it was written as.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.word(1).unwrap_or_default()
    }

    /// The number at a position, if there is one.
    #[must_use]
    pub fn number(&self, position: usize) -> Option<u64> {
        self.word(position.checked_add(2)?)
    }

    /// How many numbers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len() / 8 - 2
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn word(&self, number: usize) -> Option<u64> {
        let (words, _) = self.map.as_chunks();
        words.get(number).copied().map(u64::from_le_bytes)
    }
}

/// Writes a database: elsewhere, then renamed.
pub fn write(path: &Path, version: u64, numbers: impl IntoIterator<Item = u64>) -> std::io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(numbers.into_iter().flat_map(u64::to_le_bytes));
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}

/// A cell of mappings, which counts those that it has unmapped.
#[must_use]
pub fn cell(unmapped: Arc<AtomicU64>) -> Arc<SyncReaderCell<Database>> {
    let unmap = move |database: Database| {
        drop(database);
        unmapped.fetch_add(1, Ordering::SeqCst);
    };
    Arc::new(SyncReaderCell::with_policy(Policy::never_expires(), Drain::Background, unmap))
}

/// Keeps the cell up to date with a file.
pub fn watch(cell: &Arc<SyncReaderCell<Database>>, path: &Path) -> std::io::Result<Watch> {
    Watch::files([path]).only_open().debounce(Duration::from_millis(50)).spawn(cell, Database::map)
}
