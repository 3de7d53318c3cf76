//! An entry as bytes, with a checksum of its header and one of its value.

use crate::rules::{Entry, Micros, Stored};

/// The beginning of an entry. All numbers are little-endian.
pub(crate) struct Header {
    /// Era, incarnation, epoch, fence, version, lease, pause, elected, began, soft, hard, length of the payload.
    pub(crate) numbers: [u64; 12],
    pub(crate) failures: u32,
    pub(crate) has_value: bool,
    pub(crate) has_tag: bool,
    pub(crate) cleared: bool,
    pub(crate) tag_length: u32,
    pub(crate) body_checksum: u32,
}

const MAGIC: &[u8; 8] = b"dogpile1";

impl Header {
    /// Among the numbers.
    #[cfg(feature = "file")]
    pub(crate) const LEASE: usize = 5;
    pub(crate) const NUMBERS: usize = 8 + 12 * 8;
    pub(crate) const LENGTH: usize = Self::NUMBERS + 5 * 4;

    pub(crate) fn encode(entry: &Entry, era: u64) -> Vec<u8> {
        let value = entry.value.as_ref();
        let tag = value.and_then(|value| value.tag.as_deref());
        let payload = value.map_or(&[][..], |value| &value.payload);
        let numbers = [
            era,
            entry.incarnation,
            entry.epoch,
            entry.fence,
            entry.version,
            entry.lease_until,
            entry.retry_at,
            entry.elected,
            value.map_or(0, |value| value.began),
            value.map_or(0, |value| value.soft_until),
            value.map_or(0, |value| value.hard_until),
            payload.len() as u64,
        ];
        let flags =
            u32::from(value.is_some()) | u32::from(tag.is_some()) << 1 | u32::from(entry.cleared) << 2;
        let tag = tag.unwrap_or_default().as_bytes();
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(tag);
        checksum.update(payload);
        let mut bytes = MAGIC.to_vec();
        for number in numbers {
            bytes.extend(number.to_le_bytes());
        }
        let tag_length = u32::try_from(tag.len()).unwrap_or(u32::MAX);
        for number in [entry.failures, flags, tag_length, checksum.finalize()] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// `None` if it is damaged.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (bytes, rest) = bytes.get(..Self::LENGTH)?.split_at(Self::LENGTH - 4);
        if !bytes.starts_with(MAGIC) || crc32fast::hash(bytes).to_le_bytes() != rest {
            return None;
        }
        let mut numbers = [0; 12];
        for (number, bytes) in numbers.iter_mut().zip(bytes[8..Self::NUMBERS].chunks_exact(8)) {
            *number = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        let mut small = [0; 4];
        for (number, bytes) in small.iter_mut().zip(bytes[Self::NUMBERS..].chunks_exact(4)) {
            *number = u32::from_le_bytes(bytes.try_into().ok()?);
        }
        let [failures, flags, tag_length, body_checksum] = small;
        Some(Self {
            numbers,
            failures,
            has_value: flags & 1 != 0,
            has_tag: flags & 2 != 0,
            cleared: flags & 4 != 0,
            tag_length,
            body_checksum,
        })
    }

    /// Tag and payload. `None` if they are damaged.
    pub(crate) fn body(&self, bytes: &[u8]) -> Option<(String, Vec<u8>)> {
        let length = u64::from(self.tag_length).checked_add(self.numbers[11])?;
        if bytes.len() as u64 != length || crc32fast::hash(bytes) != self.body_checksum {
            return None;
        }
        let (tag, payload) = bytes.split_at(self.tag_length as usize);
        Some((String::from_utf8(tag.to_vec()).ok()?, payload.to_vec()))
    }

    pub(crate) fn entry(&self, body: Option<(String, Vec<u8>)>, now_era: u64) -> Entry {
        let [era, incarnation, epoch, fence, version, lease_until, retry_at, elected, began, soft, hard, _] =
            self.numbers;
        // Times of another era say nothing.
        let time = |time: Micros| if era == now_era { time } else { 0 };
        let value = body.filter(|_| self.has_value).map(|(tag, payload)| Stored {
            payload,
            tag: self.has_tag.then_some(tag),
            began: time(began),
            soft_until: time(soft),
            hard_until: time(hard),
        });
        Entry {
            incarnation,
            epoch,
            fence,
            elected: time(elected),
            version,
            value,
            cleared: self.cleared,
            lease_until: time(lease_until),
            retry_at: time(retry_at),
            failures: self.failures,
        }
    }
}

/// An entry as a whole.
pub(crate) fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = Header::encode(entry, 0);
    if let Some(value) = &entry.value {
        bytes.extend(value.tag.as_deref().unwrap_or_default().as_bytes());
        bytes.extend(&value.payload);
    }
    bytes
}

/// `None` if it is damaged.
pub(crate) fn decode(bytes: &[u8]) -> Option<Entry> {
    let header = Header::decode(bytes)?;
    let body = header.body(&bytes[Header::LENGTH..])?;
    Some(header.entry(Some(body), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back_as_it_was_and_every_flipped_or_missing_byte_is_noticed() {
        let stored = |tag: Option<&str>| Stored {
            payload: b"value".to_vec(),
            tag: tag.map(ToOwned::to_owned),
            began: 1,
            soft_until: 2,
            hard_until: 3,
        };
        let numbers = Entry {
            incarnation: 4,
            epoch: 5,
            fence: 6,
            elected: 7,
            version: 8,
            lease_until: 9,
            retry_at: 10,
            failures: 11,
            cleared: true,
            value: None,
        };
        for value in [None, Some(stored(None)), Some(stored(Some("tag"))), Some(stored(Some("")))] {
            let entry = Entry { value, ..numbers.clone() };
            let bytes = encode(&entry);
            assert_eq!(decode(&bytes), Some(entry));
            for position in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1;
                assert_eq!(decode(&flipped), None, "byte {position}");
                assert_eq!(decode(&bytes[..position]), None);
            }
        }
    }
}
