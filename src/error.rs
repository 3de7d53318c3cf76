//! What can go wrong, and the error that all waiters of a failed build share.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};

use crate::sync::Arc;

/// A boxed error. The error type of a build must convert into it.
///
/// Every type that implements [`Error`] and is `Send + Sync + 'static` does. So do `anyhow::Error`, `String` and
/// `&str`.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The error of a read that returns no value.
///
/// It is one concrete type, whatever the error type of the build is. `?` converts it into `anyhow::Error`,
/// `eyre::Report`, `Box<dyn Error + Send + Sync>`, or a variant with thiserror's `#[from]`.
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, RefreshError};
/// use std::num::ParseIntError;
/// use std::time::Duration;
///
/// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
///
/// let error: RefreshError = LIMIT.try_get_or_refresh(|| "many".parse::<u32>()).unwrap_err();
/// assert_eq!(error.to_string(), "invalid digit found in string");
/// assert!(error.is::<ParseIntError>());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RefreshError {
    /// The build failed, and the policy allows no value to be served instead.
    ///
    /// This is the error of the caller's own build, of the build that the caller waited for, or of the latest build
    /// while a retry pause runs. It displays as that error does, and has the same [`source`](Error::source).
    Build(SharedError),
    /// The time limit of [`Request::wait_at_most`](crate::Request::wait_at_most) has passed.
    WaitTimeout,
    /// The caller would wait for itself. Either it called from inside the build of the same cell, or its thread holds a
    /// [`ReadGuard`](crate::ReadGuard), and a build that has asked for the write lock waits for that guard.
    Reentrant,
    /// The build that this call handed to a spawner was dropped before it ended, or it panicked there.
    Abandoned,
    /// There is no value, and the call had no way to build one.
    Empty,
}

impl RefreshError {
    /// Returns the build's error, if this is one.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::<u32>::new(Duration::from_secs(60));
    /// let error = cell.try_get_or_refresh(|| Err("no route to host")).unwrap_err();
    /// assert_eq!(error.build_error().unwrap().to_string(), "no route to host");
    /// assert!(RefreshError::WaitTimeout.build_error().is_none());
    /// ```
    #[must_use]
    pub fn build_error(&self) -> Option<&SharedError> {
        if let Self::Build(error) = self { Some(error) } else { None }
    }

    /// Returns whether the build failed with an `E`.
    ///
    /// The same exceptions apply as to [`SharedError::is`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, RefreshError};
    /// use std::num::ParseIntError;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::<u32>::new(Duration::from_secs(60));
    /// let error = cell.try_get_or_refresh(|| "many".parse::<u32>()).unwrap_err();
    /// assert!(error.is::<ParseIntError>());
    /// assert!(!RefreshError::WaitTimeout.is::<ParseIntError>());
    /// ```
    #[must_use]
    pub fn is<E: Error + 'static>(&self) -> bool {
        self.downcast_ref::<E>().is_some()
    }

    /// Returns the build's error, if it is an `E`.
    ///
    /// The same exceptions apply as to [`SharedError::is`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::<u32>::new(Duration::from_secs(60));
    /// let build = || Err(io::Error::from(io::ErrorKind::NotFound));
    /// let error = cell.try_get_or_refresh(build).unwrap_err();
    /// assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::NotFound);
    /// ```
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.build_error()?.downcast_ref()
    }
}

impl From<SharedError> for RefreshError {
    fn from(error: SharedError) -> Self {
        Self::Build(error)
    }
}

impl fmt::Display for RefreshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Build(error) => return fmt::Display::fmt(error, f),
            Self::WaitTimeout => "no value was built within the time allowed for waiting",
            Self::Reentrant => {
                "the caller would wait for itself: it is inside the build of the same cell, or holds a ReadGuard that the \
                 build waits for"
            }
            Self::Abandoned => "the build was dropped or panicked in the spawner that it was handed to",
            Self::Empty => "there is no value, and nothing that could build one",
        })
    }
}

impl Error for RefreshError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.build_error()?.source()
    }
}

/// The error of a failed build, with its type erased. All callers that waited for the build share it.
///
/// It is cheap to clone. It displays as the error itself does, and has the same [`source`](Error::source).
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Lookup};
/// use std::io;
/// use std::time::Duration;
///
/// let cell = DogpileCell::<u32>::new(Duration::from_secs(60));
/// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
/// let error = lease.fail(io::Error::new(io::ErrorKind::NotFound, "no such table"));
///
/// assert_eq!(error.to_string(), "no such table");
/// assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::NotFound);
/// assert!(error.ptr_eq(&cell.last_error().unwrap()));
/// ```
#[derive(Clone)]
pub struct SharedError(Arc<dyn Error + Send + Sync>);

// It is only read. What an error looks like after a panic that happened while it was in use is its own affair.
impl UnwindSafe for SharedError {}
impl RefUnwindSafe for SharedError {}

impl SharedError {
    /// Wraps an error without a build, for a cache built on top of this crate.
    ///
    /// A `SharedError`, or the one in a [`RefreshError::Build`], is not wrapped again.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SharedError;
    ///
    /// let error = SharedError::new("no route to host");
    /// assert_eq!(error.to_string(), "no route to host");
    /// assert!(SharedError::new(error.clone()).ptr_eq(&error));
    /// ```
    #[must_use]
    pub fn new(error: impl Into<BoxError>) -> Self {
        // Of a build that reads another cell: the error of that cell's build.
        match error.into().downcast::<RefreshError>() {
            Ok(error) => match *error {
                RefreshError::Build(error) => error,
                other => Self(Arc::new(other)),
            },
            Err(error) => match error.downcast::<Self>() {
                Ok(error) => *error,
                Err(error) => Self(Arc::from(error)),
            },
        }
    }

    /// A panic of user code: `what` that was.
    pub(crate) fn of_panic(what: &'static str, panic: &(dyn Any + Send)) -> Self {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
        Self(Arc::new(Panicked { what, message: message.map(str::to_owned) }))
    }

    /// A build panicked, and its message is not known.
    pub(crate) fn of_unknown_panic() -> Self {
        Self(Arc::new(Panicked { what: "build", message: None }))
    }

    /// Returns whether the error is an `E`.
    ///
    /// Returns `false` for a `String` or `&str`, and for the errors inside an `anyhow::Error`. The latter keeps its
    /// text and its chain of causes when it is converted, but not its type.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SharedError;
    /// use std::io;
    ///
    /// assert!(SharedError::new(io::Error::other("no route to host")).is::<io::Error>());
    /// assert!(!SharedError::new("no route to host").is::<io::Error>());
    /// ```
    #[must_use]
    pub fn is<E: Error + 'static>(&self) -> bool {
        self.0.is::<E>()
    }

    /// Returns the error, if it is an `E`. The same exceptions apply as to [`is`](SharedError::is).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SharedError;
    /// use std::io;
    ///
    /// let error = SharedError::new(io::Error::from(io::ErrorKind::NotFound));
    /// assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::NotFound);
    /// ```
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }

    /// Returns whether both are clones of the same error, that is, of the error of the same build.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SharedError;
    ///
    /// let error = SharedError::new("no route to host");
    /// assert!(error.ptr_eq(&error.clone()));
    /// assert!(!error.ptr_eq(&SharedError::new("no route to host")));
    /// ```
    #[must_use]
    pub fn ptr_eq(&self, other: &Self) -> bool {
        // The data's address alone: two crates may have different tables of the same type.
        std::ptr::addr_eq(Arc::as_ptr(&self.0), Arc::as_ptr(&other.0))
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Error for SharedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// User code panicked; with its message, if it is known.
#[derive(Debug)]
struct Panicked {
    what: &'static str,
    message: Option<String>,
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} panicked", self.what)?;
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

impl Error for Panicked {}
