//! What a build is given: the files, as they were at one moment.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dogpile::BoxError;

/// The files of a [`Watch`](crate::Watch), all of one state: none of them was changed while they were read.
///
/// They are numbered as they were given to [`Watch::files`](crate::Watch::files). A file that is missing or cannot be read is
/// an error of that file only, so a file that need not be there is `files.read(1).ok()`.
///
/// # Panics
///
/// All methods that are given a number panic if there is no file of that number.
#[derive(Debug)]
pub struct Files {
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) content: Result<Content, FileError>,
}

#[derive(Debug)]
pub(super) enum Content {
    Bytes(Vec<u8>),
    Handle(File),
}

impl Files {
    #[track_caller]
    fn entry(&self, number: usize) -> &Entry {
        let count = self.entries.len();
        self.entries.get(number).unwrap_or_else(|| {
            panic!("no file has the number {number}: `Watch::files` was given {count}, and they are numbered from 0")
        })
    }

    /// How many files there are.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{FileError, Files, Watch};
    /// use std::time::Duration;
    ///
    /// static TOTAL: DogpileCell<usize> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// /// The bytes of all of them.
    /// fn total(files: &Files) -> Result<usize, FileError> {
    ///     (0..files.len()).map(|number| files.read(number).map(<[u8]>::len)).sum()
    /// }
    ///
    /// let folder = tempfile::tempdir()?;
    /// let paths = ["one", "two", "three"].map(|name| folder.path().join(name));
    /// for path in &paths {
    ///     std::fs::write(path, "12345")?;
    /// }
    /// let watch = Watch::files(&paths).spawn(&TOTAL, total)?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
    /// assert_eq!(*TOTAL.get().unwrap(), 15);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The path of a file, as it was given.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::convert::Infallible;
    /// use std::path::PathBuf;
    /// use std::time::Duration;
    ///
    /// static PATH: DogpileCell<PathBuf> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// // It need not be there.
    /// let watch = Watch::file("some/file").spawn(&PATH, |files: &Files| Ok::<_, Infallible>(files.path(0).to_owned()))?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)));
    /// assert_eq!(PATH.get().unwrap().to_str(), Some("some/file"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    #[must_use]
    pub fn path(&self, number: usize) -> &Path {
        &self.entry(number).path
    }

    /// The bytes of a file.
    ///
    /// # Errors
    ///
    /// The file is missing, is no regular file, is larger than [`max_size`](crate::WatchOptions::max_size), or cannot be read.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Policy};
    /// use dogpile_files::{FileError, Files, Watch};
    /// use std::time::Duration;
    ///
    /// static KEYS: DogpileCell<(usize, bool)> = DogpileCell::with_policy(Policy::never_expires());
    ///
    /// fn parse(files: &Files) -> Result<(usize, bool), FileError> {
    ///     let has_second = files.read(1).is_ok(); // need not be there
    ///     Ok((files.read(0)?.len(), has_second))
    /// }
    ///
    /// let folder = tempfile::tempdir()?;
    /// std::fs::write(folder.path().join("first"), "12345")?;
    /// let watch = Watch::files(["first", "second"].map(|name| folder.path().join(name))).spawn(&KEYS, parse)?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
    /// assert_eq!(*KEYS.get().unwrap(), (5, false));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    pub fn read(&self, number: usize) -> Result<&[u8], FileError> {
        let entry = self.entry(number);
        match &entry.content {
            Ok(Content::Bytes(bytes)) => Ok(bytes),
            Ok(Content::Handle(_)) => Err(FileError::new(
                &entry.path,
                io::Error::new(
                    io::ErrorKind::Unsupported,
                    "is opened, not read, because of `only_open`: use `open`",
                ),
            )),
            Err(error) => Err(error.clone()),
        }
    }

    /// The text of a file.
    ///
    /// # Errors
    ///
    /// As [`read`](Files::read), and if it is not UTF-8.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::time::Duration;
    ///
    /// static MOTD: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("motd");
    /// std::fs::write(&path, "hello\n")?;
    /// let watch = Watch::file(&path).spawn(&MOTD, |files: &Files| files.text(0).map(|text| text.trim().to_owned()))?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
    /// assert_eq!(*MOTD.get().unwrap(), "hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    pub fn text(&self, number: usize) -> Result<&str, FileError> {
        let bytes = self.read(number)?;
        std::str::from_utf8(bytes).map_err(|error| self.error(number, error))
    }

    /// What `parse` makes of the text of a file. Its error is preceded by the path of the file.
    ///
    /// # Errors
    ///
    /// As [`text`](Files::text), and if `parse` fails.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("limit");
    /// std::fs::write(&path, "seven")?;
    ///
    /// let limit = Arc::new(DogpileCell::<u32>::new(Duration::from_secs(60)));
    /// let watch = Watch::files([&path]).spawn(&limit, |files: &Files| files.parse(0, str::parse::<u32>))?;
    /// assert!(!watch.wait_ready(Duration::ZERO));
    /// # let start = std::time::Instant::now();
    /// # while watch.last_error().is_none() && start.elapsed().as_secs() < 60 { std::thread::yield_now() }
    /// // As soon as the file has been read:
    /// let error = watch.last_error().unwrap();
    /// assert_eq!(error.to_string(), format!("{}: invalid digit found in string", path.display()));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    pub fn parse<'a, T, E: Into<BoxError>>(
        &'a self,
        number: usize,
        parse: impl FnOnce(&'a str) -> Result<T, E>,
    ) -> Result<T, FileError> {
        parse(self.text(number)?).map_err(|error| self.error(number, error))
    }

    /// The file itself, opened for reading, under [`only_open`](crate::WatchOptions::only_open). For a file that is mapped
    /// into memory, or that is read with a library of its own.
    ///
    /// # Errors
    ///
    /// The file is missing, is no regular file, cannot be opened, or was read instead.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{FileError, Files, Watch};
    /// use std::io::{BufRead, BufReader};
    /// use std::time::Duration;
    ///
    /// static LINES: DogpileCell<usize> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// /// Counts without having all of them in memory.
    /// fn count(files: &Files) -> Result<usize, FileError> {
    ///     Ok(BufReader::new(files.open(0)?).lines().count())
    /// }
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("list");
    /// std::fs::write(&path, "one\ntwo\n")?;
    /// let watch = Watch::file(&path).only_open().spawn(&LINES, count)?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
    /// assert_eq!(*LINES.get().unwrap(), 2);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    pub fn open(&self, number: usize) -> Result<&File, FileError> {
        let entry = self.entry(number);
        match &entry.content {
            Ok(Content::Handle(file)) => Ok(file),
            Ok(Content::Bytes(_)) => Err(FileError::new(
                &entry.path,
                io::Error::new(
                    io::ErrorKind::Unsupported,
                    "is read, not opened: ask for `only_open`, or use `read`",
                ),
            )),
            Err(error) => Err(error.clone()),
        }
    }

    /// An error about a file, in words that begin with its path.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::time::Duration;
    ///
    /// static PAIR: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let folder = tempfile::tempdir()?;
    /// let paths = ["cert", "key"].map(|name| folder.path().join(name));
    /// std::fs::write(&paths[0], "1")?;
    /// std::fs::write(&paths[1], "2")?;
    /// let watch = Watch::files(&paths).spawn(&PAIR, |files: &Files| {
    ///     if files.text(0)? == files.text(1)? {
    ///         files.text(0).map(str::to_owned)
    ///     } else {
    ///         Err(files.error(1, "the key is of another certificate"))
    ///     }
    /// })?;
    /// # let start = std::time::Instant::now();
    /// # while watch.last_error().is_none() && start.elapsed().as_secs() < 60 { std::thread::yield_now() }
    /// // As soon as they have been read:
    /// let error = watch.last_error().unwrap().to_string();
    /// assert_eq!(error, format!("{}: the key is of another certificate", paths[1].display()));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    pub fn error(&self, number: usize, error: impl Into<BoxError>) -> FileError {
        FileError { path: self.path(number).to_owned(), error: error.into().into() }
    }
}

/// What is wrong with a file.
///
/// Displays as the path and the error. [`source`](Error::source) is the error.
#[derive(Clone, Debug)]
pub struct FileError {
    path: PathBuf,
    error: Arc<dyn Error + Send + Sync>,
}

impl FileError {
    pub(super) fn new(path: &Path, error: io::Error) -> Self {
        Self { path: path.to_owned(), error: Arc::new(error) }
    }

    /// The path, as it was given.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{FileError, Files, Watch};
    /// use std::time::Duration;
    ///
    /// static MOTD: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let watch = Watch::file("/no/such/file").spawn(&MOTD, |files: &Files| files.text(0).map(str::to_owned))?;
    /// # let start = std::time::Instant::now();
    /// # while watch.last_error().is_none() && start.elapsed().as_secs() < 60 { std::thread::yield_now() }
    /// // As soon as it has been looked for:
    /// let error = watch.last_error().unwrap();
    /// let path = error.downcast_ref::<FileError>().map(FileError::path);
    /// assert_eq!(path.and_then(|path| path.to_str()), Some("/no/such/file"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kind of the error, if it is an [`io::Error`].
    ///
    /// | kind | |
    /// |---|---|
    /// | `NotFound` | the file is missing |
    /// | `InvalidInput` | a folder, a FIFO, a device |
    /// | `FileTooLarge` | larger than [`max_size`](crate::WatchOptions::max_size) |
    /// | `ResourceBusy` | it went on changing while it was read |
    /// | others | as the operating system says |
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{FileError, Files, Watch};
    /// use std::io::ErrorKind;
    /// use std::time::Duration;
    ///
    /// static LOCAL: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// /// Need not be there, but must be readable if it is.
    /// fn optional(files: &Files) -> Result<String, FileError> {
    ///     match files.text(0) {
    ///         Err(error) if error.kind() == Some(ErrorKind::NotFound) => Ok("defaults".to_owned()),
    ///         text => text.map(str::to_owned),
    ///     }
    /// }
    ///
    /// let watch = Watch::file("/no/such/file").spawn(&LOCAL, optional)?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
    /// assert_eq!(*LOCAL.get().unwrap(), "defaults");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn kind(&self) -> Option<io::ErrorKind> {
        self.error.downcast_ref().map(io::Error::kind)
    }
}

// It is only read, as a `SharedError` is.
impl UnwindSafe for FileError {}
impl RefUnwindSafe for FileError {}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.error)
    }
}

impl Error for FileError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.error)
    }
}
