//! Values as bytes.

use dogpile::BoxError;

/// How values become bytes and values again.
///
/// # Examples
///
/// ```
/// use dogpile::{BoxError, DogpileCell};
/// use dogpile_files::{Codec, Persist, Restored};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// struct BigEndian;
///
/// impl Codec<u32> for BigEndian {
///     fn name(&self) -> &str {
///         "big-endian"
///     }
///     fn encode(&self, value: &u32) -> Result<Vec<u8>, BoxError> {
///         Ok(value.to_be_bytes().to_vec())
///     }
///     fn decode(&self, bytes: &[u8]) -> Result<u32, BoxError> {
///         Ok(u32::from_be_bytes(bytes.try_into()?))
///     }
/// }
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("limit");
/// let limit = Arc::new(DogpileCell::new(Duration::from_secs(60)));
/// let persisted = Persist::with_codec(&path, BigEndian).attach(&limit)?;
/// assert!(matches!(persisted.restored(), Restored::Nothing));
/// limit.set(7);
/// drop(persisted); // writes what has not been written yet
///
/// let next_run = Arc::new(DogpileCell::new(Duration::from_secs(60)));
/// let persisted = Persist::with_codec(&path, BigEndian).attach(&next_run)?;
/// assert_eq!(next_run.get().as_deref(), Some(&7));
/// # drop(persisted);
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait Codec<T>: Send + 'static {
    /// The name of the format, which stands in the file: ASCII letters, digits, `-`, `_`, `.`, at most 32. A file of another
    /// name is not decoded.
    fn name(&self) -> &str;

    /// The bytes of a value. A panic counts as an error.
    fn encode(&self, value: &T) -> Result<Vec<u8>, BoxError>;

    /// The value of some bytes, which may have been written by another version of the program. A panic counts as an error.
    fn decode(&self, bytes: &[u8]) -> Result<T, BoxError>;
}

/// JSON, by serde (feature `json`). See [`Persist::json`](crate::Persist::json).
#[cfg(feature = "json")]
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Json;

#[cfg(feature = "json")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Json {
    fn name(&self) -> &'static str {
        "json"
    }
    fn encode(&self, value: &T) -> Result<Vec<u8>, BoxError> {
        Ok(serde_json::to_vec(value)?)
    }
    fn decode(&self, bytes: &[u8]) -> Result<T, BoxError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// Postcard, by serde (feature `postcard`). See [`Persist::postcard`](crate::Persist::postcard).
#[cfg(feature = "postcard")]
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Postcard;

#[cfg(feature = "postcard")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Postcard {
    fn name(&self) -> &'static str {
        "postcard"
    }
    fn encode(&self, value: &T) -> Result<Vec<u8>, BoxError> {
        postcard::to_allocvec(value).map_err(|error| error.to_string().into())
    }
    fn decode(&self, bytes: &[u8]) -> Result<T, BoxError> {
        postcard::from_bytes(bytes).map_err(|error| error.to_string().into())
    }
}
