//! What can go wrong, and the error that all waiters of a failed build share.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};

use crate::sync::Arc;

/// Any error, boxed: what a build's error type must convert into.
///
/// Every type that implements [`Error`] and is `Send + Sync + 'static` does, and so do `anyhow::Error`, `String` and `&str`.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// Why a read returned no value.
///
/// One concrete type, whatever the build's error type is, so `?` converts it into `anyhow::Error`, `eyre::Report`,
/// `Box<dyn Error + Send + Sync>`, or a variant with thiserror's `#[from]`.
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
    /// It is the error of the caller's own build, of the build that the caller waited for, or of the latest build while a
    /// retry pause runs. Displays as that error does, and has the same [`source`](Error::source).
    Build(SharedError),
    /// The time allowed by [`Request::wait_at_most`](crate::Request::wait_at_most) is over.
    WaitTimeout,
    /// The caller would wait for itself: it was called from inside the build of the same cell, or by a thread that holds a
    /// [`ReadGuard`](crate::ReadGuard) for which a build that has asked for the write lock waits.
    Reentrant,
    /// The build that this call handed to a spawner was dropped before it ended, or panicked there.
    Abandoned,
    /// A value was asked for where nothing can build one.
    Empty,
}

impl RefreshError {
    /// The build's error, if there is one.
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

    /// Whether the build failed with an `E`. See [`SharedError::is`].
    #[must_use]
    pub fn is<E: Error + 'static>(&self) -> bool {
        self.downcast_ref::<E>().is_some()
    }

    /// The build's error, if it is an `E`. See [`SharedError::downcast_ref`].
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

/// The error of a failed build, shared by all callers that waited for that build, its type erased.
///
/// Cheap to clone. Displays as the error itself, and has the same [`source`](Error::source).
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
    /// For a cache built on top that reports an error without a lease to fail.
    ///
    /// A `SharedError`, or the one in a [`RefreshError::Build`], stays what it is.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SharedError;
    ///
    /// assert_eq!(SharedError::new("no route to host").to_string(), "no route to host");
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

    /// Whether the error is an `E`.
    ///
    /// `false` for the errors inside an `anyhow::Error`, which converts with its chain of causes and its text, but without its
    /// type; and for a `String` or `&str`.
    #[must_use]
    pub fn is<E: Error + 'static>(&self) -> bool {
        self.0.is::<E>()
    }

    /// The error, if it is an `E`. See [`is`](SharedError::is).
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }

    /// Whether both are clones of one error: the error of one build.
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
