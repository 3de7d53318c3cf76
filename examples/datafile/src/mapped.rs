//! A file in memory: the one place where this program says `unsafe`.
//!
//! Whoever has a [`MappedFile`] may read its bytes; to change, shorten or delete the file one must give it away.
//! With a plain `Arc<MappedFile>` nobody who shares it ever could: that is what the `SyncReaderCell` is for. It hands
//! a value that has been replaced to the finalizer, by value, when the last reader has left; and it lends the value
//! to the holder of the write lock, as `&mut`, when no reader is inside.

use memmap2::Mmap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that this program has written, and its mapping. When it is dropped, the file stays.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Makes a file that is not there yet, and maps it.
    pub(crate) fn create(path: PathBuf, content: &[u8]) -> io::Result<Self> {
        // Never a file that somebody has already, or it could be mapped twice.
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Self::fill(path, file, content)
    }

    /// Replaces the content in place: the same file, not another one of the same name.
    ///
    /// # Errors
    ///
    /// The old content is lost then, and the file may hold a part of the new one.
    pub(crate) fn rewrite(self, content: &[u8]) -> io::Result<Self> {
        let Self { path, map } = self;
        drop(map);
        let file = File::options().read(true).write(true).open(&path)?;
        file.set_len(0)?;
        Self::fill(path, file, content)
    }

    /// Deletes the file.
    ///
    /// A deleted file lives on as long as it is mapped. A reader that was still inside would read on and notice
    /// nothing: therefore it is overwritten with zeros first, which no reader takes for a page.
    pub(crate) fn delete(self) -> io::Result<()> {
        let Self { path, map } = self;
        let length = map.len();
        drop(map);
        overwrite_and_delete(&path, length)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    #[expect(unsafe_code, reason = "memmap2 cannot know who writes to the file; this type does")]
    fn fill(path: PathBuf, mut file: File, content: &[u8]) -> io::Result<Self> {
        file.write_all(content)?;
        // SAFETY: As long as the mapping lives, nobody may write to the file or shorten it.
        //
        // It lives in the `MappedFile`, and only there. Within this program the file is written to by `create`,
        // which maps it afterwards; by `rewrite` and `delete`, which take the `MappedFile` by value and unmap it
        // before they open the file; and by nobody else, since `create` refuses a file that exists already. To call
        // `rewrite` or `delete` one must therefore own the value, with no borrow of its bytes left. Values that are
        // shared with readers are in a `SyncReaderCell`, which gives them up in two places: to the finalizer, after
        // the last reader has left, and through `WriteLock::old`, while no reader is inside.
        //
        // Other programs are kept out as far as a program can: the file is in a folder that was made for this run,
        // under a name that nobody knows, and that only its owner may enter.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { path, map })
    }
}

fn overwrite_and_delete(path: &Path, length: usize) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.write_all(&vec![0; length])?;
    drop(file);
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Bad, encode, lookup};
    use crate::index::Index;

    fn content(generation: u64) -> Vec<u8> {
        let words: Vec<String> = (0..2000).map(|number| format!("word{number}")).collect();
        let mut index = Index::default();
        index.add(0, &words.join(" ")).expect("few words");
        encode(&index, generation).expect("few words")
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    /// What a reader finds, over words of all pages.
    fn read(file: &MappedFile, generation: u64) -> Vec<Bad> {
        let words = (0..2000).map(|number| format!("word{number}"));
        words.filter_map(|word| lookup(file.bytes(), generation, &word).err()).collect()
    }

    #[test]
    fn a_file_is_not_made_twice() {
        let folder = folder();
        let path = folder.path().join("words");
        let file = MappedFile::create(path.clone(), &content(1)).expect("a file");
        let second = MappedFile::create(path, &content(2)).map(|_| ());
        assert_eq!(second.map_err(|error| error.kind()), Err(io::ErrorKind::AlreadyExists));
        assert_eq!(read(&file, 1), []);
    }

    #[test]
    fn a_file_that_is_dropped_stays_and_one_that_is_deleted_does_not() {
        let folder = folder();
        let path = |name| folder.path().join(name);
        drop(MappedFile::create(path("stays"), &content(1)).expect("a file"));
        MappedFile::create(path("goes"), &content(1)).expect("a file").delete().expect("it is there");
        assert_eq!(fs::read(path("stays")).expect("a file"), content(1));
        assert!(!path("goes").exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_is_rewritten_in_place() {
        use std::os::unix::fs::MetadataExt;

        let folder = folder();
        let path = folder.path().join("words");
        let inode = || fs::metadata(&path).expect("a file").ino();
        let file = MappedFile::create(path.clone(), &content(1)).expect("a file");
        let before = inode();
        let file = file.rewrite(&content(2)).expect("it is there");
        assert_eq!(inode(), before);
        assert_eq!(read(&file, 2), []);
    }

    // What the program relies on: that it would notice. The tests below do what `fill` forbids, behind the back of a
    // reader that is inside; on one thread, and with no borrow of the bytes that lasts. On Windows the system does
    // not let them.

    /// Truncated and written anew without the write lock, as far as `pages` says; the rest is zero.
    #[cfg(unix)]
    fn rewrite_under_the_reader(path: &Path, content: &[u8], pages: usize) {
        let mut file = File::options().write(true).open(path).expect("it is there");
        file.set_len(0).expect("it can be shortened");
        file.set_len(content.len() as u64).expect("it can be extended");
        file.write_all(&content[..pages * crate::format::PAGE]).expect("there is room");
    }

    #[cfg(unix)]
    #[test]
    fn a_reader_notices_that_the_file_was_rewritten_without_the_lock() {
        let folder = folder();
        let path = folder.path().join("words");
        let file = MappedFile::create(path.clone(), &content(1)).expect("a file");
        assert_eq!(read(&file, 1), [], "all is well before");
        let all = content(2).len() / crate::format::PAGE;
        rewrite_under_the_reader(&path, &content(2), all);
        let bad = read(&file, 1);
        assert_eq!(bad.len(), 2000, "every lookup");
        assert!(bad.iter().all(|bad| *bad == Bad::Generation { page: 0, found: 2, expected: 1 }), "{bad:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_reader_notices_a_file_that_is_half_of_the_old_and_half_of_the_new_generation() {
        let folder = folder();
        let path = folder.path().join("words");
        let file = MappedFile::create(path.clone(), &content(1)).expect("a file");
        // Generation 1 again, but for the pages from the fourth one on, which are those of generation 2.
        let torn = [&content(1)[..3 * crate::format::PAGE], &content(2)[3 * crate::format::PAGE..]].concat();
        rewrite_under_the_reader(&path, &torn, torn.len() / crate::format::PAGE);
        let bad = read(&file, 1);
        assert!(!bad.is_empty());
        let of_another = |bad: &Bad| matches!(bad, Bad::Generation { page: 3.., found: 2, expected: 1 });
        assert!(bad.iter().all(of_another), "{bad:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_reader_notices_a_file_of_which_only_a_part_is_written() {
        let folder = folder();
        let path = folder.path().join("words");
        let file = MappedFile::create(path.clone(), &content(1)).expect("a file");
        rewrite_under_the_reader(&path, &content(1), 3);
        let bad = read(&file, 1);
        assert!(!bad.is_empty());
        assert!(bad.iter().all(|bad| matches!(bad, Bad::Checksum { page: 3.. })), "{bad:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_reader_notices_that_the_file_was_deleted() {
        let folder = folder();
        let path = folder.path().join("words");
        let file = MappedFile::create(path.clone(), &content(1)).expect("a file");
        overwrite_and_delete(&path, content(1).len()).expect("it is there");
        let bad = read(&file, 1);
        assert_eq!(bad.len(), 2000, "every lookup");
        assert!(bad.iter().all(|bad| *bad == Bad::Checksum { page: 0 }), "{bad:?}");
    }
}
