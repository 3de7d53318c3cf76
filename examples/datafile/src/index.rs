//! The words of the texts: which there are, how often, and where.

use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longer ones are no words. In bytes.
pub(crate) const LONGEST_WORD: usize = 64;

/// Where a word stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// Which of the texts, from 0.
    pub(crate) text: u32,
    /// Which line of it, from 1.
    pub(crate) line: u32,
}

/// What a lookup tells about a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) count: u32,
    pub(crate) first: Position,
}

/// A word, and what a lookup must say about it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) word: Box<str>,
    pub(crate) answer: Answer,
}

/// All words with all their positions, in the order of their bytes.
///
/// A word is a run of letters and digits, in lower case, of at most [`LONGEST_WORD`] bytes.
#[derive(Debug, Default)]
pub(crate) struct Index {
    words: BTreeMap<String, Vec<Position>>,
    occurrences: u32,
}

impl Index {
    /// Reads the texts.
    pub(crate) fn of(texts: &[PathBuf]) -> anyhow::Result<Self> {
        let mut index = Self::default();
        for (number, path) in (0..).zip(texts) {
            let text = read(path).with_context(|| format!("cannot read {}", path.display()))?;
            index.add(number, &text).with_context(|| format!("cannot index {}", path.display()))?;
        }
        ensure!(index.occurrences > 0, "there are no words in {}", list(texts));
        Ok(index)
    }

    /// Takes in a text.
    pub(crate) fn add(&mut self, number: u32, text: &str) -> anyhow::Result<()> {
        for (line, content) in text.lines().enumerate() {
            let line = u32::try_from(line + 1).context("it has too many lines")?;
            for run in content.split(|letter: char| !letter.is_alphanumeric()) {
                let word = run.to_lowercase();
                if word.is_empty() || word.len() > LONGEST_WORD {
                    continue;
                }
                self.occurrences = self.occurrences.checked_add(1).context("too many words")?;
                self.words.entry(word).or_default().push(Position { text: number, line });
            }
        }
        Ok(())
    }

    /// How many words the texts have.
    pub(crate) fn occurrences(&self) -> u32 {
        self.occurrences
    }

    /// How many different ones.
    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    /// In order.
    pub(crate) fn words(&self) -> impl Iterator<Item = (&str, &[Position])> {
        self.words.iter().map(|(word, positions)| (word.as_str(), positions.as_slice()))
    }

    /// What lookups must find.
    pub(crate) fn vocabulary(&self) -> Vec<Known> {
        let answer = |positions: &[Position]| {
            let count = u32::try_from(positions.len()).ok()?;
            Some(Answer { count, first: *positions.first()? })
        };
        self.words()
            .filter_map(|(word, positions)| Some(Known { word: word.into(), answer: answer(positions)? }))
            .collect()
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path)?;
    // Nor a device, of which there may be no end.
    ensure!(file.metadata()?.is_file(), "not a file");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn list(texts: &[PathBuf]) -> String {
    match texts {
        [] => "no files".to_owned(),
        [one] => one.display().to_string(),
        [first, others @ ..] => format!("{} and {} more", first.display(), others.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_digits_in_lower_case() {
        let mut index = Index::default();
        index.add(0, "One two\n\n  TWO-three, öl_Öl: x1!").expect("few words");
        index.add(1, "three").expect("few words");
        let at = |text, line| Position { text, line };
        let expected: [(&str, &[Position]); 5] = [
            ("one", &[at(0, 1)]),
            ("three", &[at(0, 3), at(1, 1)]),
            ("two", &[at(0, 1), at(0, 3)]),
            ("x1", &[at(0, 3)]),
            ("öl", &[at(0, 3), at(0, 3)]),
        ];
        assert_eq!(index.words().collect::<Vec<_>>(), expected);
        assert_eq!((index.len(), index.occurrences()), (5, 8));
        let two = &index.vocabulary()[2];
        assert_eq!((&*two.word, two.answer), ("two", Answer { count: 2, first: at(0, 1) }));
    }

    #[test]
    fn what_is_too_long_is_no_word() {
        let mut index = Index::default();
        let longest = "x".repeat(LONGEST_WORD);
        index.add(0, &format!("{longest} {longest}x")).expect("few words");
        assert_eq!(index.words().map(|(word, _)| word).collect::<Vec<_>>(), [longest]);
    }

    #[test]
    fn text_that_is_not_utf8_is_read_as_far_as_it_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("text");
        std::fs::write(&path, b"before \xff\xfe after").expect("a file");
        let index = Index::of(&[path]).expect("it has words");
        assert_eq!(index.words().map(|(word, _)| word).collect::<Vec<_>>(), ["after", "before"]);
    }
}
