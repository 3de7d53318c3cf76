//! The one error of the map's own.

use std::error::Error;
use std::fmt;

/// The loader of [`get_many`](crate::DogpileMap::get_many) returned no value for this key.
///
/// The call that ran the loader gets `None` for the key. Callers that waited for the same key in
/// [`try_get_or_refresh`](crate::DogpileMap::try_get_or_refresh) get this error, as a
/// [`RefreshError::Build`](dogpile::RefreshError::Build).
///
/// The map does not remember it, as it does other errors: when no call of the key is under way any more, the next call asks the
/// source at once. Calls that overlap with those before them share the error during the retry pause, as they do other errors.
///
/// # Examples
///
/// ```
/// let error = dogpile::SharedError::new(dogpile_map::LeftOut::new());
/// assert!(error.is::<dogpile_map::LeftOut>());
/// assert_eq!(error.to_string(), "the loader returned no value for this key");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut;

impl LeftOut {
    /// For a build of one key that finds that there is no such thing. See [`LeftOut`] for how the map treats it.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::{DogpileMap, LeftOut};
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// assert!(map.try_get_or_refresh(&7, |_| Err(LeftOut::new())).is_err());
    /// assert_eq!(*map.try_get_or_refresh(&7, |_| Ok::<_, LeftOut>(49))?, 49); // there is no pause
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the loader returned no value for this key")
    }
}

impl Error for LeftOut {}
