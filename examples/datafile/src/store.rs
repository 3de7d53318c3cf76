//! The data file in its cell: the two ways to replace it.
//!
//! | | beside | in place |
//! |---|---|---|
//! | the new generation | a file of its own, `words.<generation>` | the same file, `words`, written anew |
//! | readers of the old one | read on | have left, or there would be nothing to read on |
//! | readers that come | get the new one as soon as it is published | wait for the end of the build |
//! | the old generation | is deleted by the finalizer when its last reader has left | is gone already |
//! | room on disk | two generations | one |
//!
//! *Beside* uses [`Drain::Wait`], so that "two generations" holds: the lease stays taken until the old file is
//! deleted. With `Drain::Background` a third one may be built while a reader keeps the first. The wait is bounded by
//! [`PATIENCE`]: a reader that never leaves shall cost disk, not the readers' thread that happens to be elected. No
//! thread asks for a refresh while it holds a reader itself, so none waits for itself.
//!
//! A build that fails is an error of its caller ([`Policy::stale_if_error`] is zero), since this program is a test of the
//! cell. A service would keep the default, which serves the old file until a build succeeds.

use crate::format::{Bad, encode, lookup};
use crate::index::{Answer, Index, Known};
use crate::mapped::MappedFile;
use anyhow::{Context, anyhow, ensure};
use dogpile::{Drain, Policy, ReadGuard, ReaderArc, SyncReaderCell, Writer};
use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the elected caller waits for readers of the old file at most. They stay for microseconds, or for some
/// time slices of the scheduler.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a generation takes the place of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Beside,
    InPlace,
}

impl Way {
    /// What the table calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Beside => "(a) beside, then delete",
            Self::InPlace => "(b) in place, write lock",
        }
    }
}

/// A generation of the index: what the cell holds.
pub(crate) struct DataFile {
    generation: u64,
    /// `None` once the write lock's holder has taken it.
    file: Option<MappedFile>,
    vocabulary: Vec<Known>,
}

impl DataFile {
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The words of this generation, and what is true about them; kept in memory to compare with.
    pub(crate) fn vocabulary(&self) -> &[Known] {
        &self.vocabulary
    }

    pub(crate) fn lookup(&self, word: &str) -> Result<Option<Answer>, Bad> {
        let file = self.file.as_ref().ok_or(Bad::Unmapped)?;
        lookup(file.bytes(), self.generation, word)
    }
}

/// What has been measured around the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// Generations that were begun.
    pub(crate) generations: u64,
    pub(crate) finalized: u64,
    /// From publication to the finalizer (beside), or from asking for the write lock to having it (in place).
    pub(crate) longest_drain: Duration,
    /// From having the write lock to the end of the build.
    pub(crate) longest_section: Option<Duration>,
    /// Indexing and writing.
    pub(crate) longest_build: Duration,
    /// The largest generation.
    pub(crate) most_bytes_of_one: u64,
    pub(crate) most_bytes: u64,
    pub(crate) most_files: usize,
    /// Old generations, by number, and when their successors were published.
    replaced: BTreeMap<u64, Instant>,
    /// Why a file could not be deleted; the first time.
    failure: Option<String>,
}

impl Measured {
    fn weigh(&mut self, folder: &Path) -> std::io::Result<()> {
        let (mut bytes, mut files) = (0, 0);
        for entry in fs::read_dir(folder)? {
            bytes += entry?.metadata()?.len();
            files += 1;
        }
        self.most_bytes = self.most_bytes.max(bytes);
        self.most_files = self.most_files.max(files);
        Ok(())
    }
}

/// What the cell and its finalizer share.
struct Desk {
    folder: PathBuf,
    measured: Mutex<Measured>,
}

impl Desk {
    fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The finalizer.
    fn finalize(&self, old: DataFile) {
        let mut measured = self.measured();
        measured.finalized += 1;
        if let Some(published) = measured.replaced.remove(&old.generation) {
            measured.longest_drain = measured.longest_drain.max(published.elapsed());
        }
        // In place, there is nothing left of it.
        if let Some(file) = old.file {
            let outcome = measured.weigh(&self.folder).and_then(|()| file.delete());
            if let Err(error) = outcome {
                measured
                    .failure
                    .get_or_insert(format!("cannot delete generation {}: {error}", old.generation));
            }
        }
    }
}

/// A data file that is always there, and never older than it should be for long.
pub(crate) struct Store {
    way: Way,
    cell: SyncReaderCell<DataFile>,
    texts: Vec<PathBuf>,
    desk: Arc<Desk>,
}

/// A generation in the hands of a reader.
pub(crate) enum Held<'a> {
    Counted(ReaderArc<DataFile>),
    Guarded(ReadGuard<'a, DataFile>),
}

impl Deref for Held<'_> {
    type Target = DataFile;

    fn deref(&self) -> &DataFile {
        match self {
            Self::Counted(file) => file,
            Self::Guarded(file) => file,
        }
    }
}

impl Store {
    /// An empty one, whose files go into `folder`.
    pub(crate) fn new(way: Way, folder: PathBuf, texts: Vec<PathBuf>, ttl: Duration) -> Self {
        let desk = Arc::new(Desk { folder, measured: Mutex::default() });
        let finalizer = Arc::clone(&desk);
        let policy = Policy::ttl(ttl).stale_if_error(Duration::ZERO);
        let cell = SyncReaderCell::with_policy(policy, Drain::Wait(PATIENCE), move |old| {
            finalizer.finalize(old);
        });
        Self { way, cell, texts, desk }
    }

    /// The current generation; builds it if it is this caller's turn, and tells whether it was.
    pub(crate) fn get_or_refresh(&self) -> anyhow::Result<(Held<'_>, bool)> {
        let mut has_built = false;
        let file = match self.way {
            Way::Beside => self.cell.try_get_or_refresh(|| {
                has_built = true;
                self.build(|generation, content| {
                    let name = format!("words.{generation}");
                    Ok((MappedFile::create(self.desk.folder.join(name), content)?, None))
                })
            }),
            Way::InPlace => self.cell.request().try_get_with_writer(|writer| {
                has_built = true;
                self.build(|_, content| self.replace_in_place(writer, content))
            }),
        }?;
        Ok((Held::Counted(file), has_built))
    }

    /// What is there, without waiting and without a reference count; `None` while there is nothing.
    pub(crate) fn load(&self) -> Option<Held<'_>> {
        self.cell.load().map(Held::Guarded)
    }

    /// Makes the next generation; `write` brings it to disk, and tells since when it has had the write lock.
    ///
    /// All that takes long is done before `write`: under the write lock there is nothing left but writing.
    fn build(
        &self,
        write: impl FnOnce(u64, &[u8]) -> anyhow::Result<(MappedFile, Option<Instant>)>,
    ) -> anyhow::Result<DataFile> {
        let began = Instant::now();
        let generation = {
            let mut measured = self.desk.measured();
            measured.generations += 1;
            measured.generations
        };
        let index = Index::of(&self.texts)?;
        let content = encode(&index, generation)?;
        let vocabulary = index.vocabulary();
        let (file, locked) = write(generation, &content)
            .with_context(|| format!("cannot write generation {generation} of the data file"))?;

        let mut measured = self.desk.measured();
        measured.weigh(&self.desk.folder)?;
        measured.most_bytes_of_one = measured.most_bytes_of_one.max(content.len() as u64);
        let now = Instant::now();
        // What is left to be done until it is published takes no time.
        measured.longest_build = measured.longest_build.max(now - began);
        measured.longest_section = measured.longest_section.max(locked.map(|locked| now - locked));
        if self.way == Way::Beside {
            measured.replaced.insert(generation - 1, now);
        }
        Ok(DataFile { generation, file: Some(file), vocabulary })
    }

    fn replace_in_place(
        &self,
        writer: &mut Writer<'_, DataFile>,
        content: &[u8],
    ) -> anyhow::Result<(MappedFile, Option<Instant>)> {
        let asked = Instant::now();
        let mut lock = writer.acquire_write_lock();
        let locked = Instant::now();
        let file = match lock.old().and_then(|old| old.file.take()) {
            Some(old) => old.rewrite(content)?,
            None => MappedFile::create(self.desk.folder.join("words"), content)?,
        };
        let mut measured = self.desk.measured();
        measured.longest_drain = measured.longest_drain.max(locked - asked);
        Ok((file, Some(locked)))
    }

    /// Has it rebuilt now.
    #[cfg(test)]
    pub(crate) fn invalidate(&self) {
        self.cell.invalidate();
    }

    pub(crate) fn generation(&self) -> u64 {
        self.cell.generation()
    }

    /// How often a caller had to wait for a build.
    pub(crate) fn waits(&self) -> u64 {
        self.cell.stats().waits
    }

    /// Ends it, when no reader is left: all generations but the last one must have been finalised, once each, and
    /// nothing but the last one be left on disk.
    pub(crate) fn close(self) -> anyhow::Result<Measured> {
        let Self { cell, desk, .. } = self;
        cell.synchronize_timeout(PATIENCE).context("the old generations cannot be finalised")?;
        let published = cell.generation();
        // It is the current one, and survives.
        drop(cell);
        let measured = desk.measured().clone();
        if let Some(failure) = measured.failure {
            return Err(anyhow!(failure));
        }
        ensure!(
            measured.finalized + 1 == published,
            "{} generations were finalised, not all {published} but the last one",
            measured.finalized
        );
        let left = fs::read_dir(&desk.folder)?.count();
        ensure!(left == 1, "there are {left} files left, not the last one alone");
        Ok(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder for the data files, and a text with words.
    fn folder(text: &str) -> (tempfile::TempDir, PathBuf, Vec<PathBuf>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (data, file) = (folder.path().join("data"), folder.path().join("text"));
        fs::create_dir(&data).expect("a folder");
        fs::write(&file, text).expect("a file");
        (folder, data, vec![file])
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<String> =
            names.map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn get(store: &Store) -> Held<'_> {
        store.get_or_refresh().expect("it can be built").0
    }

    #[test]
    fn beside_the_old_file_stays_until_its_last_reader_has_left() {
        let (_folder, data, texts) = folder("some words");
        let mut store = Store::new(Way::Beside, data.clone(), texts, HOUR);
        // One thread plays all the parts.
        store.cell = {
            let desk = Arc::clone(&store.desk);
            SyncReaderCell::new(HOUR, move |old| desk.finalize(old))
        };
        let reader = get(&store);
        assert_eq!(files(&data), ["words.1"]);
        store.invalidate();
        assert_eq!(get(&store).generation(), 2);
        assert_eq!(files(&data), ["words.1", "words.2"]);
        assert!(matches!(reader.lookup("words"), Ok(Some(_))), "it reads on");
        drop(reader);
        store.cell.synchronize();
        assert_eq!(files(&data), ["words.2"]);
        let measured = store.close().expect("all is well");
        assert_eq!((measured.generations, measured.finalized, measured.most_files), (2, 1, 2));
        assert_eq!(measured.most_bytes, 2 * measured.most_bytes_of_one);
        assert_eq!(files(&data), ["words.2"], "the current file survives");
    }

    #[test]
    fn in_place_there_is_one_file_and_it_is_the_same() {
        let (_folder, data, texts) = folder("some words");
        let store = Store::new(Way::InPlace, data.clone(), texts, HOUR);
        for generation in 1..=3 {
            store.invalidate();
            let file = get(&store);
            assert_eq!(file.generation(), generation);
            assert!(matches!(file.lookup("words"), Ok(Some(_))));
            assert_eq!(files(&data), ["words"]);
        }
        let measured = store.close().expect("all is well");
        assert_eq!((measured.generations, measured.finalized, measured.most_files), (3, 2, 1));
        assert_eq!(measured.most_bytes, measured.most_bytes_of_one);
        assert_eq!(files(&data), ["words"], "the current file survives");
    }

    #[test]
    fn a_text_that_has_changed_is_in_the_next_generation() {
        for way in [Way::Beside, Way::InPlace] {
            let (_folder, data, texts) = folder("old");
            let store = Store::new(way, data, texts.clone(), HOUR);
            assert_eq!(get(&store).lookup("new"), Ok(None));
            fs::write(&texts[0], "new").expect("a file");
            store.invalidate();
            assert!(matches!(get(&store).lookup("new"), Ok(Some(_))));
            assert_eq!(get(&store).lookup("old"), Ok(None));
        }
    }

    #[test]
    fn a_text_that_has_gone_is_an_error_and_the_old_generation_goes_on() {
        for way in [Way::Beside, Way::InPlace] {
            let (_folder, data, texts) = folder("words");
            let store = Store::new(way, data, texts.clone(), HOUR);
            drop(get(&store));
            fs::remove_file(&texts[0]).expect("it is there");
            store.invalidate();
            let said = store.get_or_refresh().map(|_| ()).expect_err("it cannot be built").to_string();
            assert!(said.contains("cannot read") && said.contains("text"), "{said}");
            let file = store.load().expect("the old one");
            assert!(matches!(file.lookup("words"), Ok(Some(_))));
        }
    }
}
