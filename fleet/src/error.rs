//! What can go wrong.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use dogpile::SharedError;

/// Why a read returned no value.
///
/// One concrete type, whatever the build's error type is, so `?` converts it into `anyhow::Error`, `Box<dyn Error + Send +
/// Sync>`, or a variant with thiserror's `#[from]`.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{Built, FleetCell, FleetError, FleetPolicy, MemoryStore, Plain};
/// use std::io;
/// use std::time::Duration;
///
/// fn download() -> io::Result<String> {
///     Err(io::ErrorKind::TimedOut.into())
/// }
///
/// let page = FleetCell::new("page", MemoryStore::new(), Plain, FleetPolicy::ttl(Duration::from_secs(60)));
/// let error: FleetError = page.try_get_or_refresh(|_| download().map(Built::from)).unwrap_err();
/// assert_eq!(error.to_string(), "timed out");
/// assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::TimedOut);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FleetError {
    /// The caller's own build failed, or the build of this process that it waited for.
    ///
    /// Displays as the build's error does, and has the same [`source`](Error::source).
    Build(SharedError),
    /// The latest build, here or on another node, has failed, and the pause after it runs.
    Backoff {
        /// How long the pause lasts from now.
        left: Duration,
    },
    /// Another node builds, or the store does not work, and there is an old value to serve meanwhile. Only
    /// [`FleetKeys::load`](crate::FleetKeys::load) returns it, for the map to serve that value.
    Busy {
        /// How long the other node's lease lasts from now, at least.
        left: Duration,
    },
    /// Called from inside the build of the same cell, with nothing to serve.
    Reentrant,
    /// The time that the call was to wait at most is over; the build goes on. See
    /// [`FleetSpawn::wait_at_most`](crate::FleetSpawn::wait_at_most).
    WaitTimeout,
    /// The spawner has dropped the build, or the build has panicked there. See
    /// [`FleetCell::spawn_with`](crate::FleetCell::spawn_with).
    Abandoned,
}

impl FleetError {
    /// The build's error, if there is one.
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

impl From<SharedError> for FleetError {
    fn from(error: SharedError) -> Self {
        Self::Build(error)
    }
}

/// A retry pause that runs; also the error that the local waiters share then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) left: Duration,
}

impl From<Backoff> for FleetError {
    fn from(Backoff { left }: Backoff) -> Self {
        Self::Backoff { left }
    }
}

impl fmt::Display for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { left } = self;
        write!(f, "the build of the value failed a moment ago, and is not tried again for {left:?}")
    }
}

impl Error for Backoff {}

impl fmt::Display for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build(error) => fmt::Display::fmt(error, f),
            Self::Backoff { left } => fmt::Display::fmt(&Backoff { left: *left }, f),
            Self::Busy { .. } => f.write_str("another node builds the value, or the store does not work"),
            Self::Reentrant => {
                f.write_str("the caller would wait for itself, as it is inside the build of the same cell")
            }
            Self::WaitTimeout => f.write_str("there was no value within the time that the caller could wait"),
            Self::Abandoned => {
                f.write_str("the spawner has dropped the build, or the build has panicked: see its message")
            }
        }
    }
}

impl Error for FleetError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.build_error()?.source()
    }
}
