//! What can go wrong with a persisted value.

use std::error::Error;
use std::fmt;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dogpile::BoxError;

use super::format::Unreadable;

/// Why a value could not be restored or written. Displays as the path and the reason.
#[derive(Clone, Debug)]
pub struct PersistError {
    path: PathBuf,
    kind: PersistErrorKind,
    error: Arc<dyn Error + Send + Sync>,
}

/// What is wrong. See [`PersistError::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PersistErrorKind {
    /// The file is cut off, or its checksum does not fit.
    Damaged,
    /// The file was written by something else: another program, another codec, another schema.
    Foreign,
    /// The file was written by a later version of this crate.
    Newer,
    /// The codec could not encode the value or decode the bytes, or it panicked. So did the wall clock, or the value's `drop`.
    Codec,
    /// The operating system reports an error: [`source`](Error::source) is an [`io::Error`].
    Io,
}

impl PersistError {
    pub(super) fn new(path: &Path, kind: PersistErrorKind, error: impl Into<BoxError>) -> Self {
        Self { path: path.to_owned(), kind, error: error.into().into() }
    }

    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        Self::new(path, PersistErrorKind::Io, error)
    }

    pub(super) fn unreadable(path: &Path, why: Unreadable) -> Self {
        match why {
            Unreadable::Damaged(text) => Self::new(path, PersistErrorKind::Damaged, text),
            Unreadable::Foreign(text) => Self::new(path, PersistErrorKind::Foreign, text),
            Unreadable::Newer(version) => {
                let text = format!("it was written by a later version of this crate, in format {version}");
                Self::new(path, PersistErrorKind::Newer, text)
            }
        }
    }

    /// The file.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Persist, Restored};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("limit.json");
    /// std::fs::write(&path, "7")?;
    /// let persisted = Persist::json(&path).attach(&LIMIT)?;
    /// let Restored::Ignored(error) = persisted.restored() else { unreachable!() };
    /// assert_eq!(error.path(), path);
    /// # }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Persist, PersistErrorKind, Restored};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("limit.json");
    /// std::fs::write(&path, "7")?;
    /// let persisted = Persist::json(&path).attach(&LIMIT)?;
    /// let Restored::Ignored(error) = persisted.restored() else { unreachable!() };
    /// assert_eq!(error.kind(), PersistErrorKind::Foreign);
    /// # }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn kind(&self) -> PersistErrorKind {
        self.kind
    }
}

// It is only read, as a `SharedError` is.
impl UnwindSafe for PersistError {}
impl RefUnwindSafe for PersistError {}

impl fmt::Display for PersistError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.error)
    }
}

impl Error for PersistError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.error)
    }
}
