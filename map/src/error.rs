//! The one error of the map's own.

use std::error::Error;
use std::fmt;

/// The loader of [`get_many`](crate::DogpileMap::get_many) returned no value for this key.
///
/// The call that ran the loader gets `None` for the key. Callers that waited for the same key in
/// [`try_get_or_refresh`](crate::DogpileMap::try_get_or_refresh) get this error, as a
/// [`RefreshError::Build`](dogpile::RefreshError::Build).
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
    /// For a build of one key that finds that there is no such thing: the map does not pause for it, as it does for other
    /// errors.
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
