//! The files as one state.
//!
//! # What is one state
//!
//! A read is: *look* where all paths lead and what stands there ([`Print`]), open and read all files, look again. If the
//! second look finds what the first one did, no file and no link was changed between the two, and what was read is one state.
//! If not, all of it is read again.
//!
//! That is not enough for two reasons. A file system takes its time stamps from a clock that moves in steps of some
//! milliseconds, so two changes can have the same stamp. And between the writes of two files, as of a certificate and its key,
//! there is a state that is not meant to be read. So a state is read only when it is *settled*: its prints have been the same,
//! and there was no notification, for the time of `debounce`. The first state is also settled if it is older than that by the
//! time of day, and a state that was settled stays so until its prints change or there is a notification. Files that never
//! settle are read after ten times `debounce`; if they change during that read too, the read is an error.
//!
//! # When it is read again
//!
//! - After a change that no read covers (see [`super::changes`]).
//! - At a poll, if the prints differ from those of the last read; and at each poll until the same prints have been read again
//!   two seconds later, since a change within one step of the file system's clock leaves the same prints.
//! - At each poll, as long as a file could not be read for a reason that can pass without a change of the file.
//! - By a build that needs the content, because there is no value, or the last one was made from other content.
//!
//! # Not modified
//!
//! A state has a digest: of the contents, and of the error of each file that cannot be read. The watching thread asks for a
//! build only if the digest differs from that of the state which the last build was given. So the same bytes lead to no build
//! and no publication. (The digest has 64 bits and a random key: a change is missed with a probability of 2^-64.)
//!
//! A build that has another cause (the policy's ttl, `invalidate`) returns `NotModified` if there is a value, and the digest is
//! that of the last state that was parsed successfully.

use std::fs::{self, File, FileType, OpenOptions};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use dogpile::BoxError;
use parking_lot::Mutex;

use super::changes::{Changes, Stopped};
use super::files::{Content, Entry, FileError, Files};
use super::notifier::Notifier;
use super::trail::{Print, Stat};

/// After the time for settling is over.
const MAX_READS: u32 = 5;

/// The longest step of a file system's clock: that of FAT.
const STAMP: Duration = Duration::from_secs(2);

/// One state of all the files, for a build.
pub(super) struct State {
    pub(super) digest: u64,
    pub(super) files: Files,
}

/// The last read.
struct Known {
    prints: Vec<Print>,
    /// `false`: they were read because the time for settling was over.
    is_settled: bool,
    /// When these prints were first read.
    since: Instant,
    /// They were read once more, [`STAMP`] later: a change since then has left other prints. Not if there was an error that can
    /// pass without a change.
    is_confirmed: bool,
    digest: u64,
    /// Until a build is given them, or needs them no more.
    files: Option<Files>,
    /// A call of `reload_now` led to this read, or to one before it, and waits for a build.
    is_forced: bool,
}

/// What the builds have made of the states, which are told apart by their digests. Under a lock of its own, since a build that
/// has ended waits for no read.
#[derive(Clone, Copy, Default)]
pub(super) struct Builds {
    /// The state of the last build; `None` if it could not read one.
    given: Option<u64>,
    /// The state that the cell's value was made from; `None` if that is not known.
    pub(super) good: Option<u64>,
}

/// What a build has to do.
pub(super) enum ForBuild {
    NotModified,
    Parse(State),
}

/// Reads the files. Under one lock, so that the watching thread and a build do not read at the same time.
pub(super) struct Reading {
    /// As they were given.
    paths: Vec<PathBuf>,
    notifier: Notifier,
    changes: Arc<Changes>,
    debounce: Duration,
    max_size: u64,
    only_open: bool,
    keys: RandomState,
    known: Option<Known>,
    builds: Arc<Mutex<Builds>>,
}

pub(super) struct Limits {
    pub(super) debounce: Duration,
    pub(super) max_size: u64,
    pub(super) only_open: bool,
}

enum Failed {
    Stopped,
    Busy(FileError),
}

impl Known {
    /// What it was kept for.
    fn needs_no_build(&mut self) -> Option<Files> {
        self.is_forced = false;
        self.files.take()
    }
}

impl From<Stopped> for Failed {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

impl Reading {
    pub(super) fn new(
        paths: Vec<PathBuf>,
        notifier: Notifier,
        changes: Arc<Changes>,
        limits: &Limits,
    ) -> Self {
        let &Limits { debounce, max_size, only_open } = limits;
        Self {
            paths,
            notifier,
            changes,
            debounce,
            max_size,
            only_open,
            keys: RandomState::new(),
            known: None,
            builds: Arc::default(),
        }
    }

    /// Why changes are found by polling only, as of the last look.
    pub(super) fn failure(&self) -> Option<&str> {
        self.notifier.failure()
    }

    pub(super) fn builds(&self) -> Arc<Mutex<Builds>> {
        Arc::clone(&self.builds)
    }

    /// Whether a state waits for a build that was asked for.
    pub(super) fn is_waiting(&self) -> bool {
        self.known.as_ref().is_some_and(|known| known.files.is_some())
    }

    /// By the watching thread, after a change or at a poll. Returns whether a build is to be asked for. After a call of
    /// `reload_now`, that is so for a state that could not be parsed, too.
    pub(super) fn check(&mut self) -> Result<bool, Stopped> {
        if self.changes.are_covered()
            && let Some(known) = &self.known
            && known.is_confirmed
        {
            let prints = self.notifier.look();
            // Looking may have taken long: what has changed meanwhile is not covered.
            if self.known.as_ref().is_some_and(|known| known.prints == prints) && self.changes.are_covered() {
                // The request may have been answered by another publication.
                return Ok(self.is_waiting());
            }
        }
        let builds = self.builds();
        match self.read() {
            Ok(known) => {
                let digest = Some(known.digest);
                let Builds { given, good } = *builds.lock();
                let is_needed = given != digest || (known.is_forced && good != digest);
                if !is_needed {
                    // Also if it has gone there and back since the last build.
                    known.needs_no_build();
                }
                Ok(is_needed)
            }
            Err(Failed::Stopped) => Err(Stopped),
            // The build will find out the same, and it can tell.
            Err(Failed::Busy(_)) => Ok(true),
        }
    }

    /// By a build. `has_value`: the cell's value can be renewed.
    pub(super) fn for_build(&mut self, has_value: bool) -> Result<ForBuild, BoxError> {
        let good = {
            let mut builds = self.builds.lock();
            if !has_value {
                builds.good = None;
            }
            builds.good
        };
        let prints = self.notifier.look();
        let is_current = self.changes.are_covered();
        let suffices = |known: &&mut Known| {
            is_current && known.prints == prints && (known.files.is_some() || good == Some(known.digest))
        };
        let known = match self.known.as_mut().filter(suffices) {
            Some(known) => known,
            None => match self.read() {
                Ok(known) => known,
                Err(Failed::Stopped) if good.is_some() => return Ok(ForBuild::NotModified),
                Err(Failed::Stopped) => return Err("the watch was dropped while it read the files".into()),
                Err(Failed::Busy(error)) => {
                    self.builds.lock().given = None;
                    return Err(error.into());
                }
            },
        };
        let digest = known.digest;
        let files = known.needs_no_build();
        self.builds.lock().given = Some(digest);
        Ok(match files {
            Some(files) if good != Some(digest) => ForBuild::Parse(State { digest, files }),
            // Without files it is the good one.
            _ => ForBuild::NotModified,
        })
    }

    fn read(&mut self) -> Result<&mut Known, Failed> {
        let end = Instant::now().checked_add(self.debounce.saturating_mul(10));
        let mut late = 0;
        let mut first = None;
        loop {
            let (prints, is_settled) = self.settle(first.take(), end)?;
            let count = self.changes.count();
            let files = Files {
                entries: self
                    .paths
                    .iter()
                    .zip(&prints)
                    .map(|(path, print)| Entry { path: path.clone(), content: self.content(path, print) })
                    .collect(),
            };
            let again = self.notifier.look();
            if again == prints {
                let was_forced = self.known.as_ref().is_some_and(|known| known.is_forced);
                let is_forced = self.changes.cover(count) || was_forced;
                let digest = self.digest(&files, &prints);
                let now = Instant::now();
                let former = self.known.as_ref().filter(|known| known.prints == prints);
                let since = former.map_or(now, |known| known.since);
                let is_confirmed = is_settled && now.duration_since(since) >= STAMP && !can_pass(&files);
                let files = Some(files);
                let known = Known { prints, is_settled, since, is_confirmed, digest, files, is_forced };
                return Ok(self.known.insert(known));
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                late += 1;
                if late == MAX_READS {
                    let number = again.iter().zip(&prints).position(|(again, print)| again != print);
                    let busy =
                        io::Error::new(io::ErrorKind::ResourceBusy, "went on changing while it was read");
                    return Err(Failed::Busy(FileError::new(&self.paths[number.unwrap_or(0)], busy)));
                }
            }
            first = Some(again);
        }
    }

    /// Waits until a state is settled, until `end` at the latest. `seen`: what the last look has found. Returns the prints, and
    /// whether they are settled.
    fn settle(
        &mut self,
        seen: Option<Vec<Print>>,
        end: Option<Instant>,
    ) -> Result<(Vec<Print>, bool), Stopped> {
        let mut since = Instant::now();
        let mut prints = seen.unwrap_or_else(|| self.notifier.look());
        let is_settled = match &self.known {
            // A change within one step of the file system's clock leaves the same prints; a notification may tell of it.
            Some(known) => {
                let latest = self.changes.latest();
                let is_quiet = latest.is_none_or(|latest| latest.elapsed() >= self.debounce);
                known.is_settled && known.prints == prints && is_quiet
            }
            None => {
                let now = SystemTime::now();
                prints.iter().all(|print| print.is_older_than(self.debounce, now))
            }
        };
        if is_settled {
            return Ok((prints, true));
        }
        loop {
            let quiet_since = self.changes.latest().map_or(since, |latest| latest.max(since));
            let until = quiet_since.checked_add(self.debounce);
            let now = Instant::now();
            let is_over = end.is_some_and(|end| now >= end);
            let is_quiet = until.is_some_and(|until| now >= until);
            if is_quiet || is_over {
                let again = self.notifier.look();
                let is_settled = is_quiet && again == prints;
                if is_settled || is_over {
                    return Ok((again, is_settled));
                }
                prints = again;
                since = Instant::now();
            } else {
                // Neither exists only if `debounce` is longer than the clock can tell.
                let wake = [until, end].into_iter().flatten().min();
                self.changes.sleep_until(wake.unwrap_or(now + Duration::from_secs(3600)))?;
            }
        }
    }

    fn content(&self, path: &Path, print: &Print) -> Result<Content, FileError> {
        let read = || {
            let (file, length) = open(&print.real, print.stat.as_ref())?;
            if self.only_open {
                return Ok(Content::Handle(file));
            }
            let max = self.max_size;
            let too_large = |length: &str| {
                let text = format!("has {length} bytes, and {max} are allowed: see `max_size`");
                io::Error::new(io::ErrorKind::FileTooLarge, text)
            };
            if length > max {
                return Err(too_large(&length.to_string()));
            }
            // Not as many as it says: a file of `/proc` says that it has none.
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX))?;
            file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > max {
                return Err(too_large("more"));
            }
            Ok(Content::Bytes(bytes))
        };
        read().map_err(|error| FileError::new(path, error))
    }

    fn digest(&self, files: &Files, prints: &[Print]) -> u64 {
        let mut hasher = self.keys.build_hasher();
        for (entry, print) in files.entries.iter().zip(prints) {
            match &entry.content {
                Ok(Content::Bytes(bytes)) => (0, bytes).hash(&mut hasher),
                Ok(Content::Handle(_)) => (1, print).hash(&mut hasher),
                Err(error) => (2, error.to_string()).hash(&mut hasher),
            }
        }
        hasher.finish()
    }
}

/// Whether a file had an error that says nothing about the file: too many descriptors, an input/output error.
fn can_pass(files: &Files) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidInput, NotFound};
    let errors = files.entries.iter().filter_map(|entry| entry.content.as_ref().err());
    errors.filter_map(FileError::kind).any(|kind| !matches!(kind, NotFound | InvalidInput | FileTooLarge))
}

/// Opens a regular file, and nothing else: to open a FIFO would wait for a writer, to open a device may do anything.
fn open(path: &Path, stat: Option<&Stat>) -> io::Result<(File, u64)> {
    let metadata = fs::metadata(path)?;
    check_type(metadata.file_type())?;
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // In case it has become a FIFO since.
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    check_type(metadata.file_type())?;
    if stat.is_none() {
        // It was not there at the look, which is going to be repeated.
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok((file, metadata.len()))
}

fn check_type(kind: FileType) -> io::Result<()> {
    if kind.is_file() {
        return Ok(());
    }
    #[cfg(unix)]
    let special = {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            Some("a FIFO")
        } else if kind.is_socket() {
            Some("a socket")
        } else if kind.is_block_device() || kind.is_char_device() {
            Some("a device")
        } else {
            None
        }
    };
    #[cfg(not(unix))]
    let special = None;
    let what = special.unwrap_or(if kind.is_dir() { "a folder" } else { "something else" });
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("is {what}, not a regular file")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn reading_of(path: &Path) -> Reading {
        let changes = Arc::new(Changes::default());
        let paths = vec![path.to_owned()];
        let notifier = Notifier::new(paths.clone(), false, Arc::clone(&changes));
        let limits = Limits { debounce: Duration::ZERO, max_size: 100, only_open: false };
        Reading::new(paths, notifier, changes, &limits)
    }

    impl Reading {
        #[track_caller]
        fn asks(&mut self) -> bool {
            self.check().unwrap()
        }

        #[track_caller]
        fn build(&mut self) -> State {
            let state = self.build_that_fails();
            self.builds.lock().good = Some(state.digest);
            state
        }

        #[track_caller]
        fn build_that_fails(&mut self) -> State {
            let Ok(ForBuild::Parse(state)) = self.for_build(true) else {
                panic!("there is nothing to be parsed")
            };
            state
        }
    }

    /// A file system whose clock moves in long steps cannot be had here, so the prints are made the same by hand.
    #[test]
    fn a_change_that_leaves_the_same_prints_is_found_by_the_first_polls() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("file");
        fs::write(&path, "first").unwrap();
        let mut reading = reading_of(&path);
        assert_eq!(reading.build().files.read(0).unwrap(), b"first");
        assert!(!reading.asks());

        fs::write(&path, "other").unwrap();
        reading.known.as_mut().unwrap().prints = reading.notifier.look();
        assert!(reading.asks());
        assert_eq!(reading.build().files.read(0).unwrap(), b"other");

        // Later than any step the prints tell, and a poll reads no more.
        reading.known.as_mut().unwrap().since = Instant::now().checked_sub(STAMP).unwrap();
        assert!(!reading.asks());
        assert!(reading.known.as_ref().unwrap().is_confirmed);
        fs::write(&path, "third").unwrap();
        reading.known.as_mut().unwrap().prints = reading.notifier.look();
        assert!(!reading.asks(), "it was read");
        // A notification is always a reason.
        reading.changes.add();
        assert!(reading.asks());
    }

    #[test]
    fn a_change_and_its_reversal_are_no_reason_for_a_build() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("file");
        fs::write(&path, "first").unwrap();
        let mut reading = reading_of(&path);
        reading.build();
        fs::write(&path, "second").unwrap();
        assert!(reading.asks() && reading.is_waiting());
        fs::write(&path, "first").unwrap();
        assert!(!reading.asks() && !reading.is_waiting());
        assert!(matches!(reading.for_build(true), Ok(ForBuild::NotModified)));
        assert!(
            matches!(reading.for_build(false), Ok(ForBuild::Parse(_))),
            "there is no value to be renewed"
        );
    }

    /// A read covers the changes that are counted while it waits for quiet, not only those before.
    #[test]
    fn a_call_of_reload_now_while_a_change_is_read_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("file");
        fs::write(&path, "bad").unwrap();
        let mut reading = reading_of(&path);
        reading.build_that_fails();
        // The parser fails. A touch is no reason to try it again; that it is called for is.
        reading.changes.add();
        assert!(!reading.asks());
        reading.changes.add();
        reading.changes.wait(Some(Instant::now())).unwrap();
        reading.changes.force();
        assert!(reading.asks());
        // Once.
        reading.build_that_fails();
        reading.changes.add();
        assert!(!reading.asks());
    }

    /// The step of a file system's clock may be longer than the time for which a state has been quiet.
    #[test]
    fn a_state_is_settled_anew_after_a_notification_and_if_it_was_not_settled_when_it_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("file");
        fs::write(&path, "first").unwrap();
        for (is_notified, was_settled) in [(false, true), (true, true), (false, false)] {
            let mut reading = reading_of(&path);
            reading.build();
            reading.known.as_mut().unwrap().is_settled &= was_settled;
            reading.debounce = Duration::from_secs(3600);
            if is_notified {
                reading.changes.add();
            }
            // Whatever waits ends at once.
            reading.changes.stop();
            assert_eq!(reading.check().is_err(), is_notified || !was_settled, "{is_notified}, {was_settled}");
        }
    }

    /// Another publication can answer a request in place of a build, at any time.
    #[test]
    fn a_state_is_asked_for_until_a_build_is_given_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("file");
        fs::write(&path, "first").unwrap();
        let mut reading = reading_of(&path);
        reading.build();
        fs::write(&path, "second").unwrap();
        assert!(reading.asks());
        reading.known.as_mut().unwrap().since = Instant::now().checked_sub(STAMP).unwrap();
        assert!(reading.asks());
        assert!(reading.known.as_ref().unwrap().is_confirmed);
        assert!(reading.asks(), "it is not read again, and is still to be asked for");
        assert_eq!(reading.build().files.read(0).unwrap(), b"second");
        assert!(!reading.asks());
    }

    #[test]
    fn a_call_of_reload_now_asks_until_a_build_is_given_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("file");
        fs::write(&path, "bad").unwrap();
        let mut reading = reading_of(&path);
        reading.build_that_fails();
        reading.changes.force();
        assert!(reading.asks());
        // It is read again, since it is not confirmed yet.
        assert!(reading.asks());
        reading.build_that_fails();
        assert!(!reading.asks());
    }

    /// An error that comes and goes leaves no other prints, as when the process has no more descriptors.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_could_not_be_read_is_read_again_at_each_poll() {
        // At its beginning there is nothing that could be read.
        let mut reading = reading_of(Path::new("/proc/self/mem"));
        let state = reading.build();
        let error = state.files.read(0).unwrap_err();
        assert_eq!(error.to_string(), "/proc/self/mem: Input/output error (os error 5)");
        reading.known.as_mut().unwrap().since = Instant::now().checked_sub(STAMP).unwrap();
        assert!(!reading.asks());
        assert!(!reading.known.as_ref().unwrap().is_confirmed, "the next poll reads it no more");

        // A file that is missing is found by its print.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("file");
        let mut missing = reading_of(&path);
        assert!(missing.build().files.read(0).is_err());
        missing.known.as_mut().unwrap().since = Instant::now().checked_sub(STAMP).unwrap();
        assert!(!missing.asks());
        assert!(missing.known.as_ref().unwrap().is_confirmed);
    }
}
