//! Values as bytes.
//!
//! Around what the codec makes of a value a cell puts an envelope: a mark, the codec's schema, and a checksum. What comes
//! back from a store is one of three things: a value; *damaged*, if envelope or checksum do not fit; or *foreign*, if they
//! do but the codec cannot read it: it was written by another version of the program.

use std::error::Error;
use std::fmt;

/// A codec could not do its work.
#[derive(Debug)]
pub struct CodecError(Box<dyn Error + Send + Sync>);

impl CodecError {
    /// Wraps the codec's own error.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the value could not be encoded or decoded: {}", self.0)
    }
}

impl Error for CodecError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// How values become bytes and values again.
///
/// It runs on the callers' threads, and on those that all cells share: it must not wait for a cell.
pub trait Codec<T>: Send + Sync {
    /// A number that changes whenever the format of the bytes does. A payload of another schema is not decoded.
    fn schema(&self) -> u32 {
        0
    }

    /// The bytes of a value.
    fn encode(&self, value: &T) -> Result<Vec<u8>, CodecError>;

    /// The value of some bytes, which may have been written by another version of the program.
    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError>;
}

/// A [`Codec`] made of two functions.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{Codec, CodecError, Functions};
///
/// let codec = Functions::new(
///     |limit: &u32| Ok(limit.to_be_bytes().to_vec()),
///     |bytes: &[u8]| Ok(u32::from_be_bytes(bytes.try_into().map_err(CodecError::new)?)),
/// );
/// assert_eq!(codec.decode(&codec.encode(&7)?)?, 7);
/// # Ok::<(), CodecError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Functions<E, D> {
    encode: E,
    decode: D,
    schema: u32,
}

impl<E, D> Functions<E, D> {
    /// A codec of schema 0.
    pub const fn new<T>(encode: E, decode: D) -> Self
    where
        E: Fn(&T) -> Result<Vec<u8>, CodecError>,
        D: Fn(&[u8]) -> Result<T, CodecError>,
    {
        Self { encode, decode, schema: 0 }
    }

    /// Sets the [schema](Codec::schema).
    #[must_use]
    pub const fn schema(mut self, schema: u32) -> Self {
        self.schema = schema;
        self
    }
}

impl<T, E, D> Codec<T> for Functions<E, D>
where
    E: Fn(&T) -> Result<Vec<u8>, CodecError> + Send + Sync,
    D: Fn(&[u8]) -> Result<T, CodecError> + Send + Sync,
{
    fn schema(&self) -> u32 {
        self.schema
    }
    fn encode(&self, value: &T) -> Result<Vec<u8>, CodecError> {
        (self.encode)(value)
    }
    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError> {
        (self.decode)(bytes)
    }
}

impl<E, D> fmt::Debug for Functions<E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Functions").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// Bytes and strings as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Codec<Vec<u8>> for Plain {
    fn encode(&self, value: &Vec<u8>) -> Result<Vec<u8>, CodecError> {
        Ok(value.clone())
    }
    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.to_vec())
    }
}

impl Codec<String> for Plain {
    fn encode(&self, value: &String) -> Result<Vec<u8>, CodecError> {
        Ok(value.clone().into_bytes())
    }
    fn decode(&self, bytes: &[u8]) -> Result<String, CodecError> {
        String::from_utf8(bytes.to_vec()).map_err(CodecError::new)
    }
}

/// JSON, by serde.
#[cfg(feature = "json")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Json {
    schema: u32,
}

#[cfg(feature = "json")]
impl Json {
    /// JSON, with the [schema](Codec::schema) of what is written.
    #[must_use]
    pub const fn schema(schema: u32) -> Self {
        Self { schema }
    }
}

#[cfg(feature = "json")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Json {
    fn schema(&self) -> u32 {
        self.schema
    }
    fn encode(&self, value: &T) -> Result<Vec<u8>, CodecError> {
        serde_json::to_vec(value).map_err(CodecError::new)
    }
    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError> {
        serde_json::from_slice(bytes).map_err(CodecError::new)
    }
}

/// Postcard, by serde: compact, but it does not describe itself. Change the [schema](Postcard::schema) with the type.
#[cfg(feature = "postcard")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Postcard {
    schema: u32,
}

#[cfg(feature = "postcard")]
impl Postcard {
    /// Postcard, with the [schema](Codec::schema) of what is written.
    #[must_use]
    pub const fn schema(schema: u32) -> Self {
        Self { schema }
    }
}

#[cfg(feature = "postcard")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Postcard {
    fn schema(&self) -> u32 {
        self.schema
    }
    fn encode(&self, value: &T) -> Result<Vec<u8>, CodecError> {
        postcard::to_allocvec(value).map_err(|error| CodecError::new(error.to_string()))
    }
    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError> {
        postcard::from_bytes(bytes).map_err(|error| CodecError::new(error.to_string()))
    }
}

const MARK: [u8; 4] = *b"DPF1";
const ENVELOPE: usize = 12;

/// What became of a payload.
pub(crate) enum Opened<T> {
    Value(T),
    /// Bytes that nobody has written like this.
    Damaged,
    /// Somebody else's.
    Foreign,
}

/// The payload of a value. A codec that panics cannot write it.
pub(crate) fn seal<T>(codec: &dyn Codec<T>, value: &T) -> Result<Vec<u8>, CodecError> {
    let encode = std::panic::AssertUnwindSafe(|| codec.encode(value));
    let bytes = match std::panic::catch_unwind(encode) {
        Ok(bytes) => bytes?,
        Err(_) => return Err(CodecError::new("the codec has panicked: see its message")),
    };
    let schema = codec.schema().to_le_bytes();
    let mut payload = Vec::with_capacity(ENVELOPE + bytes.len());
    payload.extend(MARK);
    payload.extend(schema);
    payload.extend(checksum(schema, &bytes));
    payload.extend(bytes);
    Ok(payload)
}

/// The value of a payload. A codec that panics cannot read it.
pub(crate) fn open<T>(codec: &dyn Codec<T>, payload: &[u8]) -> Opened<T> {
    let Some((envelope, bytes)) = payload.split_at_checked(ENVELOPE) else { return Opened::Damaged };
    let mut schema = [0; 4];
    schema.copy_from_slice(&envelope[4..8]);
    if envelope[..4] != MARK || envelope[8..] != checksum(schema, bytes) {
        return Opened::Damaged;
    }
    if u32::from_le_bytes(schema) != codec.schema() {
        return Opened::Foreign;
    }
    let decode = std::panic::AssertUnwindSafe(|| codec.decode(bytes));
    match std::panic::catch_unwind(decode) {
        Ok(Ok(value)) => Opened::Value(value),
        Ok(Err(_)) | Err(_) => Opened::Foreign,
    }
}

fn checksum(schema: [u8; 4], bytes: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&schema);
    hasher.update(bytes);
    hasher.finalize().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_can_be_opened_and_every_flipped_or_missing_byte_is_noticed() {
        let payload = seal(&Plain, &"value".to_owned()).unwrap();
        let Opened::Value(value) = open::<String>(&Plain, &payload) else { panic!("not opened") };
        assert_eq!(value, "value");
        for position in 0..payload.len() {
            let mut flipped = payload.clone();
            flipped[position] ^= 1;
            assert!(matches!(open::<String>(&Plain, &flipped), Opened::Damaged), "byte {position}");
            assert!(matches!(open::<String>(&Plain, &payload[..position]), Opened::Damaged));
        }
    }

    #[test]
    fn what_another_version_has_written_is_foreign() {
        let number = |schema| {
            Functions::new(
                |value: &u8| Ok(vec![*value]),
                |bytes: &[u8]| match bytes {
                    [value] => Ok(*value),
                    [] => panic!("a codec that does not expect this"),
                    _ => Err(CodecError::new("not one byte")),
                },
            )
            .schema(schema)
        };
        let payload = seal(&number(1), &7).unwrap();
        assert!(matches!(open(&number(1), &payload), Opened::Value(7)));
        assert!(matches!(open(&number(2), &payload), Opened::Foreign));
        let two_bytes = seal(&Plain, &vec![1u8, 2]).unwrap();
        assert!(matches!(open(&number(0), &two_bytes), Opened::Foreign));
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        assert!(matches!(open(&number(0), &seal(&Plain, &Vec::<u8>::new()).unwrap()), Opened::Foreign));
        std::panic::set_hook(hook);
    }

    #[cfg(all(feature = "json", feature = "postcard"))]
    #[test]
    fn serde_codecs_round_trip() {
        let value = (7u32, String::from("seven"));
        let json: &dyn Codec<(u32, String)> = &Json::schema(3);
        assert_eq!(json.decode(&json.encode(&value).unwrap()).unwrap(), value);
        assert_eq!(json.schema(), 3);
        let postcard: &dyn Codec<(u32, String)> = &Postcard::schema(4);
        assert_eq!(postcard.decode(&postcard.encode(&value).unwrap()).unwrap(), value);
        assert!(postcard.decode(&[]).is_err());
    }
}
