//! The readers: threads that look words up as fast as they can, and believe nothing.
//!
//! A reader takes the current generation, looks up a handful of words, and leaves. Every other time it does so with a
//! `ReaderArc`, and builds if it is elected; the other times with a `ReadGuard`, which never waits, as long as there
//! is something to be read. It holds nothing while it asks, so it never waits for itself.

use crate::format::Bad;
use crate::index::Known;
use crate::store::{DataFile, Store};
use anyhow::Context;
use dogpile::{Drain, Policy, SyncReaderCell};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often the progress is shown, and how late at most a failure ends the run.
const TICK: Duration = Duration::from_millis(100);

/// At most so many words are looked up before the reader leaves.
const WORDS_PER_VISIT: u64 = 16;

/// One lookup in so many is for a word that is not there.
const ONE_ABSENT_IN: u64 = 16;

/// Who reads, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) threads: u32,
    pub(crate) window: Duration,
}

/// What the readers have seen; first each for itself, then all together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) elapsed: Duration,
    pub(crate) lookups: u64,
    pub(crate) bad: u64,
    pub(crate) first_bad: Option<Bad>,
    /// The longest that a thread which did not build was inside a call for a reader.
    pub(crate) longest_wait: Duration,
    /// The longest of as many such calls on a cell where there is nothing to wait for.
    pub(crate) longest_own: Duration,
    /// The longest that a reader was inside.
    pub(crate) longest_visit: Duration,
}

impl Tally {
    fn check(&mut self, outcome: Result<(), Bad>) {
        if let Err(bad) = outcome {
            self.bad += 1;
            self.first_bad.get_or_insert(bad);
        }
    }

    fn add(&mut self, other: Self) {
        self.lookups += other.lookups;
        self.bad += other.bad;
        self.first_bad = self.first_bad.take().or(other.first_bad);
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.longest_own = self.longest_own.max(other.longest_own);
        self.longest_visit = self.longest_visit.max(other.longest_visit);
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate to be read by people")]
    pub(crate) fn lookups_per_second(&self) -> f64 {
        self.lookups as f64 / self.elapsed.as_secs_f64().max(0.001)
    }
}

/// A counter on a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Counter(AtomicU64);

/// A reader that ends, for whatever reason, a panic among them, ends the run.
struct StopAll<'a>(&'a AtomicBool);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets the threads read until the window closes, or something fails.
///
/// If no generation has been replaced by then, which would prove nothing, it goes on until one has. In the end, every
/// word of the last generation is looked up once more.
pub(crate) fn run(
    store: &Store,
    plan: Plan,
    mut show: impl FnMut(Duration, u64, u64),
) -> anyhow::Result<Tally> {
    // The first build is not what is measured.
    drop(store.get_or_refresh()?);
    let first = store.generation();
    let stop = AtomicBool::new(false);
    let counters: Vec<Counter> = (0..plan.threads).map(|_| Counter::default()).collect();
    let start = Instant::now();
    let mut tally = thread::scope(|scope| {
        let threads: Vec<_> = (0_u64..)
            .zip(&counters)
            .map(|(number, counter)| {
                let reader = Reader { store, stop: &stop, counter, random: Random(number) };
                scope.spawn(move || reader.work())
            })
            .collect();
        // Relaxed, here and everywhere: the flag only says "enough", nothing is read on the strength of it.
        while !stop.load(Ordering::Relaxed) {
            let elapsed = start.elapsed();
            let lookups = counters.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
            show(elapsed.min(plan.window), lookups, store.generation());
            let left = plan.window.saturating_sub(elapsed);
            if left.is_zero() && store.generation() > first {
                stop.store(true, Ordering::Relaxed);
                break;
            }
            thread::sleep(if left.is_zero() { TICK / 10 } else { left.min(TICK) });
        }
        let mut tally = Tally { elapsed: start.elapsed(), ..Tally::default() };
        for thread in threads {
            tally.add(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        anyhow::Ok(tally)
    })?;
    let last = store.load().context("there is no generation left")?;
    for known in last.vocabulary() {
        tally.check(look_up_known(&last, known));
    }
    Ok(tally)
}

struct Reader<'a> {
    store: &'a Store,
    stop: &'a AtomicBool,
    counter: &'a Counter,
    random: Random,
}

impl Reader<'_> {
    fn work(mut self) -> anyhow::Result<Tally> {
        let _stop = StopAll(self.stop);
        let mut tally = Tally::default();
        let mut seen = 0;
        let mut takes_guard = false;
        let own = SyncReaderCell::with_policy(Policy::never_expires(), Drain::default(), drop::<()>);
        own.set(());
        while !self.stop.load(Ordering::Relaxed) {
            takes_guard = !takes_guard;
            let before = Instant::now();
            if takes_guard {
                drop(own.load());
            } else {
                drop(own.get_or_refresh(|| ()));
            }
            let asked = Instant::now();
            let at_once = if takes_guard { self.store.load() } else { None };
            let (file, has_built) = match at_once {
                Some(file) => (file, false),
                None => self.store.get_or_refresh()?,
            };
            let entered = Instant::now();
            tally.longest_own = tally.longest_own.max(asked - before);
            if !has_built {
                tally.longest_wait = tally.longest_wait.max(entered - asked);
            }
            let generation = file.generation();
            if generation < seen {
                tally.check(Err(Bad::WentBack { found: generation, seen }));
            }
            seen = generation;
            for _ in 0..=self.random.below(WORDS_PER_VISIT - 1) {
                tally.check(self.look_up(&file));
                tally.lookups += 1;
            }
            drop(file);
            tally.longest_visit = tally.longest_visit.max(entered.elapsed());
            self.counter.0.store(tally.lookups, Ordering::Relaxed);
        }
        Ok(tally)
    }

    /// Looks one word up, and compares the answer with what is known about this generation.
    fn look_up(&mut self, file: &DataFile) -> Result<(), Bad> {
        let words = file.vocabulary();
        let known = &words[self.random.index(words.len())];
        if self.random.below(ONE_ABSENT_IN) == 0 {
            let absent = format!("{}'", known.word);
            return match file.lookup(&absent)? {
                None => Ok(()),
                found => Err(Bad::WrongAnswer { word: absent, found }),
            };
        }
        look_up_known(file, known)
    }
}

fn look_up_known(file: &DataFile, known: &Known) -> Result<(), Bad> {
    match file.lookup(&known.word)? {
        Some(answer) if answer == known.answer => Ok(()),
        found => Err(Bad::WrongAnswer { word: known.word.to_string(), found }),
    }
}

/// `SplitMix64`: which words are asked for is the same in every run, as far as the scheduler lets it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Way;
    use std::fs;
    use std::path::PathBuf;

    const HOUR: Duration = Duration::from_secs(3600);

    fn store(way: Way, folder: &tempfile::TempDir, ttl: Duration) -> Store {
        let (data, text) = (folder.path().join("data"), folder.path().join("text"));
        fs::create_dir(&data).expect("a folder");
        let words: Vec<String> = (0..3000).map(|number| format!("word{number}")).collect();
        fs::write(&text, words.join(" ")).expect("a file");
        Store::new(way, data, vec![text], ttl)
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    #[test]
    fn no_lookup_is_bad_while_generations_come_and_go() {
        for way in [Way::Beside, Way::InPlace] {
            let folder = folder();
            let store = store(way, &folder, Duration::from_millis(1));
            let plan = Plan { threads: 8, window: Duration::from_millis(300) };
            let tally = run(&store, plan, |_, _, _| {}).expect("nothing fails");
            assert!(tally.lookups > 0);
            assert_eq!((tally.bad, tally.first_bad), (0, None), "{way:?}");
            assert!(store.generation() > 1);
            let measured = store.close().expect("all is well");
            assert_eq!(measured.finalized, measured.generations - 1);
            assert_eq!(measured.most_files, if way == Way::Beside { 2 } else { 1 });
        }
    }

    #[test]
    fn a_window_without_a_replacement_is_prolonged() {
        let folder = folder();
        let store = store(Way::Beside, &folder, HOUR);
        let plan = Plan { threads: 2, window: Duration::ZERO };
        let mut shown = 0;
        let tally = run(&store, plan, |_, _, generation| {
            shown += 1;
            assert!(generation == 1 || shown > 3);
            if shown == 3 {
                store.invalidate();
            }
        });
        assert_eq!(tally.expect("nothing fails").bad, 0);
        assert_eq!(store.generation(), 2);
    }

    #[test]
    fn a_build_that_fails_ends_the_run() {
        let folder = folder();
        let store = store(Way::InPlace, &folder, HOUR);
        let plan = Plan { threads: 4, window: HOUR };
        let text: PathBuf = folder.path().join("text");
        let failed = run(&store, plan, |_, _, _| {
            if fs::remove_file(&text).is_ok() {
                store.invalidate();
            }
        });
        let said = failed.map(|_| ()).expect_err("the text is gone").to_string();
        assert!(said.contains("cannot read"), "{said}");
    }

    /// What the first test rests on: that the readers would notice. Somebody writes the next generation over the
    /// file as the store does, but without the write lock. (The file is not made shorter before, which would be the
    /// end of this process, not of the lookup alone.)
    #[cfg(unix)]
    #[test]
    fn readers_notice_a_file_that_is_rewritten_without_the_write_lock() {
        use crate::format::encode;
        use crate::index::Index;
        use std::os::unix::fs::FileExt;

        let folder = folder();
        let store = store(Way::InPlace, &folder, HOUR);
        let plan = Plan { threads: 4, window: Duration::ZERO };
        let index = Index::of(&[folder.path().join("text")]).expect("it has words");
        let other = encode(&index, 2).expect("few words");
        let mut at = None;
        let tally = run(&store, plan, |_, lookups, _| match at {
            None => {
                let file = fs::File::options().write(true).open(folder.path().join("data/words"));
                file.expect("it is there").write_all_at(&other, 0).expect("there is room");
                at = Some(lookups);
            }
            // All visits that had begun before are over by now.
            Some(at) if lookups > at + 10 * 4 * WORDS_PER_VISIT => store.invalidate(),
            Some(_) => {}
        });
        let tally = tally.expect("nothing fails");
        assert!(tally.bad > 0);
        assert!(matches!(tally.first_bad, Some(Bad::Generation { .. } | Bad::Checksum { .. })));
    }
}
