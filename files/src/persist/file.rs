//! Writes the file such that at any instant there is the old one or the new one.
//!
//! # A write
//!
//! For `rates.json`, with the bytes ready:
//!
//! | step | killed after it, there are |
//! |---|---|
//! | 1. lock `rates.json.lock`, which is made if it is missing (an advisory lock, which the system takes back) | the old file |
//! | 2. look at the old file: if another process has written a newer value, end here | the old file |
//! | 3. remove a `rates.json.new` that was left behind, and create it anew: mode 0600, exclusively, so that no link is followed | the old file, an empty new one |
//! | 4. write all bytes to it | the old file, a new one that may be cut off |
//! | 5. `fsync` it | the old file, a new one that is whole on the disk too |
//! | 6. rename it to `rates.json` | the new file; after a crash of the host the old one or the new one |
//! | 7. `fsync` the folder, if it may be read | the new file, after a crash of the host too |
//! | 8. unlock | the new file |
//!
//! If the folder is missing, step 1 makes it, and those above it, and flushes each folder that has a new entry.
//!
//! A file that is left behind as `rates.json.new` is never read. If another process holds the lock, the write fails at once,
//! and is tried again after the next interval.
//!
//! A reader needs no lock: it opens either the old file or the new one, and both are whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::format::{LONGEST_LINE, Line, Unreadable};

#[cfg(unix)]
const EACCES: i32 = rustix::io::Errno::ACCESS.raw_os_error();
#[cfg(unix)]
const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();

#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    folder: PathBuf,
    lock: PathBuf,
    new: PathBuf,
}

/// Why there is nothing to be restored.
pub(super) enum NotRead {
    Missing,
    Unreadable(Unreadable),
    Io(io::Error),
}

impl From<io::Error> for NotRead {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound { Self::Missing } else { Self::Io(error) }
    }
}

impl From<Unreadable> for NotRead {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unreadable(unreadable)
    }
}

impl Place {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path of a persisted value names no file",
            ));
        };
        let beside = |extension: &str| {
            let mut name = name.to_owned();
            name.push(extension);
            folder.join(name)
        };
        Ok(Self { folder: folder.to_owned(), lock: beside(".lock"), new: beside(".new"), path })
    }

    /// The line of the file, and the file after it.
    fn read_line(&self) -> Result<(Line, File, Vec<u8>), NotRead> {
        let mut options = OpenOptions::new();
        options.read(true);
        no_link(&mut options);
        let file = options.open(&self.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
            return Err(NotRead::Io(error));
        }
        let mut start = Vec::with_capacity(LONGEST_LINE);
        (&file).take(LONGEST_LINE as u64).read_to_end(&mut start)?;
        let line = Line::read(&start)?;
        // Before anything is read of a file that may have any size.
        if metadata.len() != line.length.saturating_add(line.end as u64) {
            return Err(Unreadable::Damaged("it is cut off, or something was appended").into());
        }
        let rest = start.split_off(line.end);
        Ok((line, file, rest))
    }

    /// The line and the bytes.
    pub(super) fn read(&self) -> Result<(Line, Vec<u8>), NotRead> {
        let (line, file, mut bytes) = self.read_line()?;
        file.take(line.length.saturating_add(1)).read_to_end(&mut bytes)?;
        if line.is_of(&bytes) {
            Ok((line, bytes))
        } else {
            Err(Unreadable::Damaged("its checksum does not fit").into())
        }
    }

    /// Writes the file, unless `keeps` says that what is there is to stay. Returns whether it has written.
    pub(super) fn write(&self, file: &[u8], keeps: impl FnOnce(&Line) -> bool) -> io::Result<bool> {
        let _lock = self.lock()?;
        if self.read_line().is_ok_and(|(line, ..)| keeps(&line)) {
            return Ok(false);
        }
        let result = self.replace(file);
        if result.is_err() {
            // Not half a file in the way of others, where the disk is full.
            let _ = fs::remove_file(&self.new);
        }
        result.map(|()| true)
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        match fs::remove_file(&self.new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        private(&mut options);
        let mut file = options.open(&self.new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&self.new, &self.path)?;
        sync_folder(&self.folder)
    }

    /// Removes the file, if `is_it` says that it is the one.
    pub(super) fn remove(&self, is_it: impl FnOnce(&Line) -> bool) -> io::Result<()> {
        let _lock = self.lock()?;
        if self.read_line().is_ok_and(|(line, ..)| is_it(&line)) {
            fs::remove_file(&self.path)?;
            sync_folder(&self.folder)?;
        }
        Ok(())
    }

    fn lock(&self) -> io::Result<Lock> {
        let open = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false);
            no_link(&mut options);
            private(&mut options);
            options.open(&self.lock)
        };
        let file = open().or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            make_folder(&self.folder, sync_folder)?;
            open()
        })?;
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => Ok(Lock(file)),
            Err(fs4::TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the file is being written by another process, or another `Persist`",
            )),
            Err(error) => Err(error.into()),
        }
    }
}

/// With those above it. `sync` gets each folder that has a new entry.
fn make_folder(folder: &Path, mut sync: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)?;
    missing.into_iter().filter_map(Path::parent).try_for_each(&mut sync)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    // Windows has no such thing.
    #[cfg(unix)]
    return match File::open(folder).and_then(|folder| folder.sync_all()) {
        // A folder that may not be read, and a file system that cannot flush folders: it is written sooner or later.
        Err(error) if matches!(error.raw_os_error(), Some(EACCES | EINVAL)) => Ok(()),
        result => result,
    };
    #[cfg(not(unix))]
    {
        let _ = folder;
        Ok(())
    }
}

/// The lock, until it is dropped.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // To close the file is not enough: the lock is of the open file, which a process that was forked meanwhile has too.
        let _ = fs4::FileExt::unlock(&self.0);
    }
}

/// A symbolic link is an error, and a FIFO is not waited for.
fn no_link(options: &mut OpenOptions) {
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    }
    #[cfg(not(unix))]
    let _ = options;
}

/// For the owner only.
fn private(options: &mut OpenOptions) {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    #[cfg(not(unix))]
    let _ = options;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is flushed into a folder is lost with it, if the host crashes before the folder's own entry is on the disk.
    #[test]
    fn the_folders_that_have_a_new_entry_are_flushed_when_a_folder_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let made = || {
            let mut flushed = Vec::new();
            make_folder(&path("a/b/c"), |folder| {
                assert!(path("a/b/c").is_dir());
                flushed.push(folder.to_owned());
                Ok(())
            })
            .unwrap();
            flushed
        };
        fs::create_dir(path("a")).unwrap();
        assert_eq!(made(), [path("a/b"), path("a")]);
        fs::remove_dir(path("a/b/c")).unwrap();
        assert_eq!(made(), [path("a/b")]);
        assert!(made().is_empty());
    }

    /// A process that is forked during a write has the same open file, and may live for long.
    #[test]
    fn the_lock_ends_with_the_write_though_the_file_stays_open() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(&folder.path().join("file")).unwrap();
        let lock = place.lock().unwrap();
        assert!(place.lock().is_err());
        let _of_child = lock.0.try_clone().unwrap();
        drop(lock);
        drop(place.lock().unwrap());
    }
}
