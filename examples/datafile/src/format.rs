//! The data file: pages of a fixed size, each with a checksum and the number of the generation that it belongs to.
//!
//! | page | what it holds |
//! |---|---|
//! | 0 | the header: how many pages there are of each other kind |
//! | 1.. | the words in the order of their bytes, each with its count and the number of its first position |
//! | then | the positions of all words, in the same order, [`POSITIONS_PER_PAGE`] to a page |
//!
//! Every page begins alike; numbers are little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | CRC-32 of all that follows in the page |
//! | 4..8 | the number of the page, from 0 |
//! | 8..16 | the generation |
//! | 16..18 | the kind of page |
//! | 18..20 | how many entries it has |
//! | 20..24 | zero |
//!
//! A lookup copies each page out of the mapping, checks the copy and then reads that: what has been checked is what
//! is read. It checks every page that it touches, at least the header, one page of words and one of positions: the
//! checksum, the number, the kind, and that the generation is the one of the value that the reader holds.

use crate::index::{Answer, Index, Position};
use anyhow::Context;
use std::cmp::Ordering;
use std::fmt;

/// The size of a page.
pub(crate) const PAGE: usize = 4096;
const HEAD: usize = 24;
const BODY: usize = PAGE - HEAD;
const POSITIONS_PER_PAGE: u32 = 509;
const _: () = assert!(POSITIONS_PER_PAGE as usize * 8 <= BODY);
const MAGIC: [u8; 8] = *b"dogwords";
const VERSION: u32 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Header = 1,
    Words = 2,
    Positions = 3,
}

/// Why a lookup is bad. None of these can be, as long as nobody touches a file that is being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// The value has no mapping any more.
    Unmapped,
    /// The mapping ends before this page, or not where the header says.
    Length { page: u32 },
    /// The page is not what was written.
    Checksum { page: u32 },
    /// The page was written for another generation than the value that the reader holds.
    Generation { page: u32, found: u64, expected: u64 },
    /// The page is sound, but belongs elsewhere, or what it holds makes no sense.
    Misplaced { page: u32 },
    /// All pages are sound, but what they say about the word is not what was written.
    WrongAnswer { word: String, found: Option<Answer> },
    /// A thread that had seen a generation got an older one.
    WentBack { found: u64, seen: u64 },
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmapped => write!(f, "the file is not mapped any more"),
            Self::Length { page } => write!(f, "the file has another length than it should at page {page}"),
            Self::Checksum { page } => write!(f, "page {page} does not match its checksum"),
            Self::Generation { page, found, expected } => {
                write!(f, "page {page} is of generation {found}, the reader holds generation {expected}")
            }
            Self::Misplaced { page } => write!(f, "page {page} is not the page that belongs there"),
            Self::WrongAnswer { word, found: Some(Answer { count, first }) } => {
                let Position { text, line } = first;
                write!(f, "\"{word}\" is said to be there {count} times, first in text {text}, line {line}")
            }
            Self::WrongAnswer { word, found: None } => write!(f, "\"{word}\" is not found"),
            Self::WentBack { found, seen } => write!(f, "generation {found} was served after {seen}"),
        }
    }
}

/// The data file as it is to be written.
pub(crate) fn encode(index: &Index, generation: u64) -> anyhow::Result<Vec<u8>> {
    let mut pages = Pages { bytes: vec![0; PAGE], generation };

    let (mut body, mut entries, mut next) = (Vec::with_capacity(BODY), 0, 0_u32);
    for (word, positions) in index.words() {
        let length = u8::try_from(word.len()).context("a word is too long")?;
        let count = u32::try_from(positions.len()).context("a word is there too often")?;
        if body.len() + 1 + word.len() + 8 > BODY {
            pages.push(Kind::Words, entries, &body)?;
            body.clear();
            entries = 0;
        }
        body.push(length);
        body.extend_from_slice(word.as_bytes());
        body.extend_from_slice(&next.to_le_bytes());
        body.extend_from_slice(&count.to_le_bytes());
        entries += 1;
        next = next.checked_add(count).context("too many words")?;
    }
    if entries > 0 {
        pages.push(Kind::Words, entries, &body)?;
    }
    let word_pages = pages.count()? - 1;

    body.clear();
    entries = 0;
    for position in index.words().flat_map(|(_, positions)| positions) {
        body.extend_from_slice(&position.text.to_le_bytes());
        body.extend_from_slice(&position.line.to_le_bytes());
        entries += 1;
        if u32::from(entries) == POSITIONS_PER_PAGE {
            pages.push(Kind::Positions, entries, &body)?;
            body.clear();
            entries = 0;
        }
    }
    if entries > 0 {
        pages.push(Kind::Positions, entries, &body)?;
    }
    let position_pages = pages.count()? - 1 - word_pages;

    let mut header = MAGIC.to_vec();
    for number in [VERSION, word_pages, position_pages, index.occurrences()] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    pages.seal(0, Kind::Header, 1, &header);
    Ok(pages.bytes)
}

/// Pages as they are written.
struct Pages {
    bytes: Vec<u8>,
    generation: u64,
}

impl Pages {
    fn count(&self) -> anyhow::Result<u32> {
        u32::try_from(self.bytes.len() / PAGE).context("too many pages")
    }

    fn push(&mut self, kind: Kind, entries: u16, body: &[u8]) -> anyhow::Result<()> {
        let number = self.count()?;
        self.bytes.resize(self.bytes.len() + PAGE, 0);
        self.seal(number, kind, entries, body);
        Ok(())
    }

    fn seal(&mut self, number: u32, kind: Kind, entries: u16, body: &[u8]) {
        let start = number as usize * PAGE;
        let page = &mut self.bytes[start..start + PAGE];
        page[4..8].copy_from_slice(&number.to_le_bytes());
        page[8..16].copy_from_slice(&self.generation.to_le_bytes());
        page[16..18].copy_from_slice(&(kind as u16).to_le_bytes());
        page[18..20].copy_from_slice(&entries.to_le_bytes());
        page[HEAD..HEAD + body.len()].copy_from_slice(body);
        let checksum = crc32fast::hash(&page[4..]);
        page[..4].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// What the file says about a word, `None` if it is not there; or why it is not to be trusted.
pub(crate) fn lookup(file: &[u8], generation: u64, word: &str) -> Result<Option<Answer>, Bad> {
    let mut page = Page { bytes: [0; PAGE] };
    let header = Header::of(&page.read(file, generation, 0, Kind::Header)?)?;
    let pages = 1 + u64::from(header.word_pages) + u64::from(header.position_pages);
    if file.len() as u64 != pages * PAGE as u64 {
        return Err(Bad::Length { page: 0 });
    }
    let (mut from, mut to) = (1, 1 + header.word_pages);
    while from < to {
        let middle = from + (to - from) / 2;
        match page.read(file, generation, middle, Kind::Words)?.search(word)? {
            Place::Before => to = middle,
            Place::After => from = middle + 1,
            Place::Gap => return Ok(None),
            Place::Here { next, count } => {
                let number = 1 + header.word_pages + next / POSITIONS_PER_PAGE;
                let positions = page.read(file, generation, number, Kind::Positions)?;
                let first = positions.position(next % POSITIONS_PER_PAGE)?;
                return Ok(Some(Answer { count, first }));
            }
        }
    }
    Ok(None)
}

/// A copy of a page.
struct Page {
    bytes: [u8; PAGE],
}

impl Page {
    /// Copies a page and checks the copy.
    fn read(&mut self, file: &[u8], generation: u64, number: u32, kind: Kind) -> Result<Body<'_>, Bad> {
        let start = number as usize * PAGE;
        let source = file.get(start..start + PAGE).ok_or(Bad::Length { page: number })?;
        self.bytes.copy_from_slice(source);
        let (head, rest) = Head::of(&self.bytes).ok_or(Bad::Misplaced { page: number })?;
        if head.checksum != crc32fast::hash(&self.bytes[4..]) {
            Err(Bad::Checksum { page: number })
        } else if head.generation != generation {
            Err(Bad::Generation { page: number, found: head.generation, expected: generation })
        } else if (head.number, head.kind) != (number, kind as u16) {
            Err(Bad::Misplaced { page: number })
        } else {
            Ok(Body { page: number, entries: head.entries, rest })
        }
    }
}

/// How every page begins.
struct Head {
    checksum: u32,
    number: u32,
    generation: u64,
    kind: u16,
    entries: u16,
}

impl Head {
    /// The head of a page, and what comes after it.
    fn of(page: &[u8]) -> Option<(Self, &[u8])> {
        let (mut rest, body) = page.split_at_checked(HEAD)?;
        let rest = &mut rest;
        let head = Self {
            checksum: take_u32(rest)?,
            number: take_u32(rest)?,
            generation: take(rest).map(u64::from_le_bytes)?,
            kind: take_u16(rest)?,
            entries: take_u16(rest)?,
        };
        Some((head, body))
    }
}

/// What a page holds, of which all has been checked.
struct Body<'p> {
    page: u32,
    entries: u16,
    rest: &'p [u8],
}

/// Where a word is, seen from a page of words.
enum Place {
    Before,
    Here {
        next: u32,
        count: u32,
    },
    /// It would be on this page.
    Gap,
    After,
}

impl Body<'_> {
    fn search(mut self, word: &str) -> Result<Place, Bad> {
        let misplaced = Bad::Misplaced { page: self.page };
        for number in 0..self.entries {
            let Some((entry, next, count)) = self.entry() else { return Err(misplaced) };
            match entry.cmp(word.as_bytes()) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(Place::Here { next, count }),
                Ordering::Greater if number == 0 => return Ok(Place::Before),
                Ordering::Greater => return Ok(Place::Gap),
            }
        }
        Ok(Place::After)
    }

    fn entry(&mut self) -> Option<(&[u8], u32, u32)> {
        let [length] = take(&mut self.rest)?;
        let (word, rest) = self.rest.split_at_checked(length.into())?;
        self.rest = rest;
        Some((word, take_u32(&mut self.rest)?, take_u32(&mut self.rest)?))
    }

    fn position(&self, number: u32) -> Result<Position, Bad> {
        let read = || {
            let mut rest = self.rest.get(number as usize * 8..)?;
            Some(Position { text: take_u32(&mut rest)?, line: take_u32(&mut rest)? })
        };
        let position = if number < self.entries.into() { read() } else { None };
        position.ok_or(Bad::Misplaced { page: self.page })
    }
}

struct Header {
    word_pages: u32,
    position_pages: u32,
}

impl Header {
    fn of(body: &Body<'_>) -> Result<Self, Bad> {
        let read = || {
            let rest = &mut { body.rest };
            let (magic, version) = (take(rest)?, take_u32(rest)?);
            let header = Self { word_pages: take_u32(rest)?, position_pages: take_u32(rest)? };
            (magic == MAGIC && version == VERSION).then_some(header)
        };
        read().ok_or(Bad::Misplaced { page: 0 })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(*first)
}

fn take_u16(rest: &mut &[u8]) -> Option<u16> {
    take(rest).map(u16::from_le_bytes)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take(rest).map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of several pages; one of them has positions of several pages.
    fn index() -> Index {
        let mut index = Index::default();
        for number in 0..1000 {
            let line = format!("word{number:04} often often\n");
            index.add(number, &line).expect("few words");
        }
        index
    }

    /// What is wrong with it, over all words.
    fn check(file: &[u8], generation: u64) -> Vec<Bad> {
        index().vocabulary().iter().filter_map(|known| lookup(file, generation, &known.word).err()).collect()
    }

    /// Puts a page right again that has been tampered with.
    fn seal(file: &mut [u8], number: usize) {
        let page = &mut file[number * PAGE..(number + 1) * PAGE];
        let checksum = crc32fast::hash(&page[4..]);
        page[..4].copy_from_slice(&checksum.to_le_bytes());
    }

    #[test]
    fn every_word_is_found_with_its_count_and_its_first_position() {
        let file = encode(&index(), 7).expect("few words");
        assert!(file.len() > 8 * PAGE, "several pages of each kind");
        let vocabulary = index().vocabulary();
        assert_eq!(vocabulary.len(), 1001);
        for known in vocabulary {
            assert_eq!(lookup(&file, 7, &known.word), Ok(Some(known.answer)), "{}", known.word);
        }
        let often = Answer { count: 2000, first: Position { text: 0, line: 1 } };
        assert_eq!(lookup(&file, 7, "often"), Ok(Some(often)));
    }

    #[test]
    fn a_word_that_is_not_there_is_not_found() {
        let file = encode(&index(), 7).expect("few words");
        for known in index().vocabulary() {
            for other in [format!("{}!", known.word), format!("!{}", known.word)] {
                assert_eq!(lookup(&file, 7, &other), Ok(None), "{other}");
            }
        }
        for other in ["", "zzz", "öl"] {
            assert_eq!(lookup(&file, 7, other), Ok(None), "{other}");
        }
    }

    #[test]
    fn an_index_without_words_is_a_header() {
        let file = encode(&Index::default(), 1).expect("no words");
        assert_eq!(file.len(), PAGE);
        assert_eq!(lookup(&file, 1, "word"), Ok(None));
    }

    #[test]
    fn the_longest_words_fit() {
        let mut index = Index::default();
        for number in 0..200 {
            index.add(0, &format!("{number:0>64}")).expect("few words");
        }
        let file = encode(&index, 1).expect("few words");
        for known in index.vocabulary() {
            assert_eq!(lookup(&file, 1, &known.word), Ok(Some(known.answer)));
        }
    }

    /// Wherever a byte is changed, some lookup notices, and none is answered wrongly.
    #[test]
    fn a_changed_byte_is_noticed() {
        let file = encode(&index(), 7).expect("few words");
        let vocabulary = index().vocabulary();
        // Two pages of six have nothing but further positions of the word that is there often: they are not read.
        let unread = file.len() - 5 * PAGE..file.len() - 3 * PAGE;
        for offset in (0..file.len()).step_by(499) {
            let page = u32::try_from(offset / PAGE).expect("few pages");
            let mut damaged = file.clone();
            damaged[offset] ^= 0x10;
            let mut noticed = false;
            for known in vocabulary.iter().step_by(7) {
                match lookup(&damaged, 7, &known.word) {
                    Ok(answer) => assert_eq!(answer, Some(known.answer)),
                    Err(bad) => {
                        assert_eq!(bad, Bad::Checksum { page });
                        noticed = true;
                    }
                }
            }
            assert_eq!(noticed, !unread.contains(&offset), "byte {offset}");
        }
    }

    #[test]
    fn another_generation_is_noticed() {
        let file = encode(&index(), 8).expect("few words");
        let bad = check(&file, 7);
        assert_eq!(bad.len(), 1001, "every lookup");
        assert!(bad.iter().all(|bad| *bad == Bad::Generation { page: 0, found: 8, expected: 7 }));
    }

    #[test]
    fn one_page_of_another_generation_is_noticed() {
        let (mut file, newer) =
            (encode(&index(), 7).expect("few words"), encode(&index(), 8).expect("few words"));
        file[2 * PAGE..3 * PAGE].copy_from_slice(&newer[2 * PAGE..3 * PAGE]);
        let bad = check(&file, 7);
        assert!(!bad.is_empty());
        assert!(bad.iter().all(|bad| *bad == Bad::Generation { page: 2, found: 8, expected: 7 }), "{bad:?}");
    }

    #[test]
    fn pages_in_each_others_place_are_noticed() {
        let mut file = encode(&index(), 7).expect("few words");
        let (first, second) = file.split_at_mut(2 * PAGE);
        first[PAGE..].swap_with_slice(&mut second[..PAGE]);
        let bad = check(&file, 7);
        assert!(!bad.is_empty());
        assert!(bad.iter().all(|bad| matches!(bad, Bad::Misplaced { page: 1 | 2 })), "{bad:?}");
    }

    #[test]
    fn a_file_of_another_length_is_noticed() {
        let file = encode(&index(), 7).expect("few words");
        for length in [0, 1, PAGE - 1, PAGE, file.len() - PAGE, file.len() - 1] {
            let bad = check(&file[..length], 7);
            assert_eq!(bad.len(), 1001, "every lookup");
            assert!(bad.iter().all(|bad| *bad == Bad::Length { page: 0 }), "{length}: {bad:?}");
        }
        let longer = [&file[..], &[0; PAGE]].concat();
        assert_eq!(check(&longer, 7).len(), 1001);
    }

    /// Sound pages that make no sense: bad, never a panic.
    #[test]
    fn nonsense_under_a_right_checksum_is_noticed() {
        let file = encode(&index(), 7).expect("few words");
        let vocabulary = index().vocabulary();
        for page in 0..file.len() / PAGE {
            for range in [16..18, 18..20, 24..28, 24..PAGE] {
                let mut nonsense = file.clone();
                nonsense[page * PAGE..(page + 1) * PAGE][range].fill(0xff);
                seal(&mut nonsense, page);
                for known in vocabulary.iter().step_by(7) {
                    let _no_panic = lookup(&nonsense, 7, &known.word);
                }
            }
        }
        for range in [16..18, 24..PAGE] {
            let mut nonsense = file.clone();
            nonsense[range].fill(0xff);
            seal(&mut nonsense, 0);
            assert!(check(&nonsense, 7).iter().all(|bad| *bad == Bad::Misplaced { page: 0 }));
        }
    }
}
