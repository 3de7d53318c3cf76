//! The errors that only a fleet has. All others are those of the build, and of [`dogpile`].

use std::error::Error;
use std::fmt;
use std::time::Duration;

use dogpile::{RefreshError, SharedError};

/// The latest build has failed, here or on another node, and the pause after it runs.
///
/// Found in a [`RefreshError::Build`]. See [`FleetPolicy::retry_backoff`](crate::FleetPolicy::retry_backoff).
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{Backoff, FleetCell, FleetPolicy, MemoryStore, Plain, RefreshError};
/// use std::time::Duration;
///
/// let minute = Duration::from_secs(60);
/// let policy = FleetPolicy::ttl(minute).retry_backoff(minute, minute);
/// let page: FleetCell<String> = FleetCell::new("page", MemoryStore::new(), Plain, policy);
/// let read = || -> Result<_, RefreshError> { page.try_get_with(|_| Err("no route to host")) };
///
/// assert_eq!(read().unwrap_err().to_string(), "no route to host");
/// let error = read().unwrap_err();
/// let Backoff { left, .. } = error.downcast_ref().unwrap();
/// assert!(*left > minute / 2);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backoff {
    /// How long the pause lasts from now.
    pub left: Duration,
}

/// Another node builds, or the store does not work, and there is an old value to serve meanwhile.
///
/// Found in a [`RefreshError::Build`] that [`FleetKeys::load`](crate::FleetKeys::load) returns: the map serves the old value in
/// its place.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{Busy, FleetKeys, FleetPolicy, MemoryStore, Plain, Refreshed};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// let store = Arc::new(MemoryStore::new());
/// let node = || FleetKeys::new("users", Arc::clone(&store), Plain, FleetPolicy::ttl(Duration::from_secs(60)));
/// let (a, b) = (node(), node());
/// let first = a.load_with("7", None, |_| Ok::<_, &str>(Refreshed::NewFor(String::from("old"), Duration::ZERO)))?;
/// let Refreshed::NewFor(old, _) = first else { unreachable!("a load says how long its value is fresh") };
///
/// a.load_with("7", None, |_| {
///     let error = b.load::<&str, _>("7", Some(Arc::new(old)), || unreachable!("a builds")).unwrap_err();
///     assert!(error.is::<Busy>());
///     Ok::<_, &str>(Refreshed::New(String::from("new")))
/// })?;
/// # Ok::<(), dogpile_fleet::RefreshError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Busy {
    /// How long the other node's lease lasts from now, at least.
    pub left: Duration,
}

impl fmt::Display for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { left } = self;
        write!(f, "the build of the value failed a moment ago, and is not tried again for {left:?}")
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another node builds the value, or the store does not work")
    }
}

impl Error for Backoff {}

impl Error for Busy {}

impl From<Backoff> for RefreshError {
    fn from(backoff: Backoff) -> Self {
        Self::Build(SharedError::new(backoff))
    }
}

impl From<Busy> for RefreshError {
    fn from(busy: Busy) -> Self {
        Self::Build(SharedError::new(busy))
    }
}
