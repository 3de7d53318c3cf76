//! What stands in the file.
//!
//! One line of text, then the codec's bytes:
//!
//! ```text
//! dogpile-files 1 codec=json schema=0 made=1764392277.123456789 boot=1f3a...:5123.000000001 stale=0 length=27 crc32=89abcdef
//! {"usd":1.0,"eur":0.87}
//! ```
//!
//! The checksum is that of everything else: of the line as far as ` crc32=`, and of the bytes. The line ends with `\n`. A
//! later version may have any line after its number, so a version is the only thing that is read of it.

use std::time::{Duration, UNIX_EPOCH};

use super::time::Moment;

const MARK: &str = "dogpile-files ";
const VERSION: u32 = 1;

/// No line is longer.
pub(super) const LONGEST_LINE: usize = 512;

/// What is known of a value besides its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) codec: String,
    pub(super) schema: u32,
    pub(super) made: Moment,
    /// The value was declared stale before its time, or has a ttl of its own that ends before the policy's.
    pub(super) is_stale: bool,
}

/// A line that has been read; not yet compared with the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) header: Header,
    pub(super) length: u64,
    /// Of the whole file.
    pub(super) checksum: u32,
    /// Of the line.
    hasher: u32,
    /// Where the line ends and the bytes begin.
    pub(super) end: usize,
}

/// Why a file is not one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    Damaged(&'static str),
    Foreign(String),
    Newer(u32),
}

impl Header {
    /// The whole file.
    pub(super) fn seal(&self, bytes: &[u8]) -> (Vec<u8>, u32) {
        let made = seconds(self.made.wall.duration_since(UNIX_EPOCH).unwrap_or_default());
        let boot = match self.made.boot {
            Some((id, time)) => format!("{id:x}:{}", seconds(time)),
            None => "-".to_owned(),
        };
        let line = format!(
            "{MARK}{VERSION} codec={} schema={} made={made} boot={boot} stale={} length={}",
            self.codec,
            self.schema,
            u8::from(self.is_stale),
            bytes.len()
        );
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(line.as_bytes());
        hasher.update(bytes);
        let checksum = hasher.finalize();
        let mut file = format!("{line} crc32={checksum:08x}\n").into_bytes();
        file.extend_from_slice(bytes);
        (file, checksum)
    }
}

impl Line {
    /// Reads the line at the beginning of `file`, of which `LONGEST_LINE` bytes are enough.
    pub(super) fn read(file: &[u8]) -> Result<Self, Unreadable> {
        if file.is_empty() {
            return Err(Unreadable::Damaged("it is empty"));
        }
        let Some(rest) = file.strip_prefix(MARK.as_bytes()) else {
            // The beginning of the mark, and no more, is a file that was cut off.
            return Err(if MARK.as_bytes().starts_with(file) {
                Unreadable::Damaged("it is cut off")
            } else {
                Unreadable::Foreign("it was not written by this crate".to_owned())
            });
        };
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let version = std::str::from_utf8(&rest[..digits]).ok().and_then(|text| text.parse().ok());
        match version {
            Some(VERSION) => {}
            // The number may go on where the file is cut off.
            Some(version) if version > VERSION && rest.len() > digits => {
                return Err(Unreadable::Newer(version));
            }
            _ => return Err(Unreadable::Damaged("it has no version")),
        }
        let end = file.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n');
        let end = end.ok_or(Unreadable::Damaged("its first line is cut off"))?;
        let text = std::str::from_utf8(&file[..end]);
        let text = text.map_err(|_| Unreadable::Damaged("its first line is no text"))?;
        Self::parse(text).ok_or(Unreadable::Damaged("its first line is not as it must be"))
    }

    fn parse(text: &str) -> Option<Self> {
        let (line, checksum) = text.rsplit_once(" crc32=")?;
        let mut fields = line.strip_prefix(MARK)?.split(' ');
        fields.next()?;
        let mut field = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
        let codec = field("codec")?.to_owned();
        let schema = field("schema")?.parse().ok()?;
        let wall = UNIX_EPOCH.checked_add(duration(field("made")?)?)?;
        let boot = match field("boot")? {
            "-" => None,
            boot => {
                let (id, time) = boot.split_once(':')?;
                Some((u64::from_str_radix(id, 16).ok()?, duration(time)?))
            }
        };
        let is_stale = match field("stale")? {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        let length = field("length")?.parse().ok()?;
        // In the one form that is written.
        let checksum =
            u32::from_str_radix(checksum, 16).ok().filter(|number| format!("{number:08x}") == checksum)?;
        Some(Self {
            header: Header { codec, schema, made: Moment { wall, boot }, is_stale },
            length,
            checksum,
            hasher: crc32fast::hash(line.as_bytes()),
            end: text.len() + 1,
        })
    }

    /// Whether these are the bytes that the line is about.
    pub(super) fn is_of(&self, bytes: &[u8]) -> bool {
        let line = (self.end - 1 - " crc32=00000000".len()) as u64;
        let mut hasher = crc32fast::Hasher::new_with_initial_len(self.hasher, line);
        hasher.update(bytes);
        bytes.len() as u64 == self.length && hasher.finalize() == self.checksum
    }
}

fn seconds(time: Duration) -> String {
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}

fn duration(text: &str) -> Option<Duration> {
    let (seconds, nanos) = text.split_once('.')?;
    let nanos = nanos.parse().ok().filter(|_| nanos.len() == 9)?;
    Some(Duration::new(seconds.parse().ok()?, nanos))
}

/// Whether a codec's name can stand in the line.
pub(super) fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let wall = UNIX_EPOCH + Duration::new(1_764_392_277, 5);
        let made = Moment { wall, boot: Some((0xabc, Duration::new(12, 34))) };
        Header { codec: "json".to_owned(), schema: 3, made, is_stale: true }
    }

    /// As a file is read.
    fn open(file: &[u8]) -> Result<Header, Unreadable> {
        let line = Line::read(file)?;
        if line.is_of(&file[line.end..]) { Ok(line.header) } else { Err(Unreadable::Damaged("the bytes")) }
    }

    #[test]
    fn what_is_sealed_can_be_opened_and_every_flipped_or_missing_byte_is_noticed() {
        for made in [header().made, Moment { boot: None, ..header().made }] {
            let header = Header { made, ..header() };
            let (file, _) = header.seal(b"{\"usd\":1}");
            assert_eq!(open(&file).unwrap(), header);
            for position in 0..file.len() {
                let mut flipped = file.clone();
                flipped[position] ^= 1;
                assert!(open(&flipped).is_err(), "byte {position}");
                assert!(
                    matches!(open(&file[..position]), Err(Unreadable::Damaged(_))),
                    "cut off at {position}: {:?}",
                    open(&file[..position])
                );
            }
            let mut longer = file.clone();
            longer.push(b' ');
            assert!(matches!(open(&longer), Err(Unreadable::Damaged(_))));
        }
    }

    #[test]
    fn later_versions_and_other_files_are_told_apart() {
        assert_eq!(open(b"dogpile-files 2 whatever"), Err(Unreadable::Newer(2)));
        assert_eq!(open(b"dogpile-files 12\n"), Err(Unreadable::Newer(12)));
        assert!(matches!(open(b"{\"usd\":1}"), Err(Unreadable::Foreign(_))));
        assert!(matches!(open(&[0; 600]), Err(Unreadable::Foreign(_))));
        let endless = [b"dogpile-files 1 ".to_vec(), vec![b'x'; 1000]].concat();
        assert!(matches!(open(&endless), Err(Unreadable::Damaged(_))));
    }

    #[test]
    fn names_keep_the_line_in_one_piece() {
        assert!(is_name("json") && is_name("My_codec-2.1"));
        for name in ["", "two words", "line\n", "caf\u{e9}", &"x".repeat(33)] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
