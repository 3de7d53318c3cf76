//! A value that survives the process.
//!
//! # Who does what
//!
//! `attach` reads the file on the caller's thread ([`file`] says what it may find), and restores the value with its age
//! ([`time`]). From then on a thread of its own, `dogpile-persist`, looks at the cell once per second or interval, whichever is
//! shorter. If the last write was an interval ago, it writes what is new ([`Writer::step`]):
//!
//! | the cell | the file |
//! |---|---|
//! | holds the value that is in the file, restored or written | stays |
//! | ... which was declared stale since | is written, and says so |
//! | holds another one, or the same one renewed | is written, with the moment at which that was made |
//! | is empty, and held what is in the file: it was cleared | is removed |
//! | ... while a build runs that may have taken the value out (`SyncReaderCell`) | stays until that has ended |
//! | ... and that value has not been written, or was declared stale since | ... and a flush waits for the end |
//! | ... and that value was cleared | is removed |
//! | is empty, and has held no value since `attach` | stays, even if it could not be restored |
//!
//! The codec and the wall clock are code of the user's. They run on that thread, or in `attach`, and under no lock.

mod codec;
mod error;
mod file;
mod format;
mod time;

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use dogpile::{BoxError, Freshness, Handle};
use parking_lot::{Condvar, Mutex};

use crate::Cell;
use crate::cell::Followed;
use crate::own_thread::OwnThread;
use crate::trace;
pub use codec::Codec;
#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "postcard")]
pub use codec::Postcard;
pub use error::{PersistError, PersistErrorKind};
use file::{NotRead, Place};
use format::{Header, is_name};
use time::STEP;
pub use time::{Moment, SystemWallClock, WallClock};

/// No interval is shorter.
const SHORTEST: Duration = Duration::from_millis(10);

/// How often the cell is looked at, if the interval is not shorter.
const LOOK: Duration = Duration::from_secs(1);

/// How long the last write, and one that is asked for, waits for another process that writes, and for a build that may have
/// taken the value out of the cell.
const PATIENCE: Duration = Duration::from_secs(1);

/// Writes a cell's value to a file, and restores it when the program starts: a warm start.
///
/// # What is restored
///
/// [`attach`](Persist::attach) reads the file, and restores the value with its true age, however long the program was not
/// running: it is fresh, stale or expired by the cell's policy, as if it had been in the cell all the time. So a program whose
/// source is down when it starts serves what it served before, if the policy allows values of that age. The age is at least
/// what the clocks tell, and unlimited if they cannot: see [`WallClock`]. A value that was declared stale
/// ([`invalidate`](dogpile::DogpileCell::invalidate)) comes back stale, and so does one whose own ttl is shorter than the
/// policy's, since that ttl cannot be restored.
///
/// A file that is damaged, of another program, codec or schema, or of a later version of this crate is ignored:
/// [`restored`](Persisted::restored) shows it, and the feature `tracing` warns of it. It stays until there is a value that
/// replaces it.
///
/// # What is written
///
/// The newest value, at most once per [`interval`](Persist::interval), on a thread of its own; also when the value is renewed,
/// since it is younger then. A restored value is not written. A cell that is cleared loses its file.
///
/// The file is written beside the old one, flushed and renamed. A process that is killed at any instant, or a host that
/// crashes, leaves the old file or the new one, as far as its file system keeps what was flushed. On Unix, file mode 0600; a
/// symbolic link in place of the file itself is replaced, not followed; those on the way to its folder are followed. A folder
/// that is missing is made, with mode 0700. Beside `rates.json` there is `rates.json.lock`, which stays, and during a write
/// `rates.json.new`. A process that is killed leaves that behind until the next write.
///
/// Two processes may use one file. The newest value wins. Do not use one file for two cells: it would hold the value of either,
/// and be refused by the other one if that has another type.
///
/// # Dropping
///
/// Dropping the [`Persisted`] writes what has not been written yet, as [`flush`](Persisted::flush) does, and joins the thread.
/// Until then it keeps the cell alive. An error is only warned of: call `flush` before to know it.
///
/// In a process that was forked there is no thread of the parent's. The copy of the `Persisted` writes nothing there, and
/// dropping it waits for nothing. Attach the cell to a file of the child's own.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "json")] {
/// use dogpile::DogpileCell;
/// use dogpile_files::Persist;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("state/rates.json");
/// let rates = Arc::new(DogpileCell::<Vec<f64>>::new(Duration::from_secs(5)));
/// let persisted = Persist::json(&path).attach(&rates)?;
/// assert!(rates.get().is_none()); // the first run
/// rates.get_or_refresh(|| vec![1.0, 0.87]);
/// drop(persisted);
///
/// // The next run.
/// let rates = Arc::new(DogpileCell::<Vec<f64>>::new(Duration::from_secs(5)));
/// let persisted = Persist::json(&path).attach(&rates)?;
/// assert_eq!(*rates.get().unwrap(), [1.0, 0.87]);
/// # drop(persisted);
/// # }
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "nothing is written until `attach` is called"]
pub struct Persist<C, W = SystemWallClock> {
    path: PathBuf,
    codec: C,
    clock: W,
    interval: Duration,
    schema: u32,
}

#[cfg(feature = "json")]
impl Persist<Json> {
    /// The value as JSON, by serde (feature `json`).
    ///
    /// JSON has no numbers that are infinite or NaN: serde writes `null`, which the next run refuses to read as a number. Maps
    /// whose keys are neither strings nor numbers are an error when they are written.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::DogpileCell;
    /// use dogpile_files::Persist;
    /// use std::time::Duration;
    ///
    /// static NAMES: DogpileCell<Vec<String>> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("names.json");
    /// let persisted = Persist::json(&path).attach(&NAMES)?;
    /// NAMES.set(vec!["Ada".to_owned()]);
    /// persisted.flush()?;
    /// // After a line that says how old it is.
    /// assert!(std::fs::read_to_string(&path)?.ends_with(r#"["Ada"]"#));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn json(path: impl AsRef<Path>) -> Self {
        Self::with_codec(path, Json)
    }
}

#[cfg(feature = "postcard")]
impl Persist<Postcard> {
    /// The value as postcard, by serde (feature `postcard`): compact, but it does not describe itself. Change the
    /// [`schema`](Persist::schema) with the type.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "postcard")] {
    /// use dogpile::DogpileCell;
    /// use dogpile_files::Persist;
    /// use std::time::Duration;
    ///
    /// static LIMITS: DogpileCell<(u32, f64)> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("limits");
    /// let persisted = Persist::postcard(&path).attach(&LIMITS)?;
    /// LIMITS.set((7, f64::INFINITY));
    /// drop(persisted);
    /// LIMITS.clear(); // stands for the end of the program
    /// let persisted = Persist::postcard(&path).attach(&LIMITS)?;
    /// assert_eq!(*LIMITS.get().unwrap(), (7, f64::INFINITY));
    /// # }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn postcard(path: impl AsRef<Path>) -> Self {
        Self::with_codec(path, Postcard)
    }
}

impl<C> Persist<C> {
    /// With a codec of your own. See [`Codec`].
    pub fn with_codec(path: impl AsRef<Path>, codec: C) -> Self {
        let path = path.as_ref().to_owned();
        Self { path, codec, clock: SystemWallClock, interval: Duration::from_secs(1), schema: 0 }
    }
}

impl<C, W: WallClock> Persist<C, W> {
    /// The value is written at most once in this time. Default: 1 s; at least 10 ms. [`Duration::MAX`]: only by
    /// [`flush`](Persisted::flush) and on drop.
    ///
    /// A value that is published after a longer time without a write is written within a second. One that is replaced before it
    /// could be written never is.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::DogpileCell;
    /// use dogpile_files::Persist;
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(5));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("limit.json");
    /// let persisted = Persist::json(&path).interval(Duration::from_secs(5)).attach(&LIMIT)?;
    /// LIMIT.set(7);
    /// drop(persisted); // does not wait for the interval
    /// assert!(path.exists());
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(SHORTEST);
        self
    }

    /// A number that stands in the file, and that you change when the type changes in a way that old files do not fit. A file
    /// of another schema is not decoded. Default: 0.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Persist, PersistErrorKind, Restored};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(5));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("limit.json");
    /// LIMIT.set(7);
    /// Persist::json(&path).attach(&LIMIT)?.flush()?;
    /// LIMIT.clear();
    ///
    /// let next_version = Persist::json(&path).schema(1).attach(&LIMIT)?;
    /// let Restored::Ignored(error) = next_version.restored() else { unreachable!() };
    /// assert_eq!(error.kind(), PersistErrorKind::Foreign);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn schema(mut self, schema: u32) -> Self {
        self.schema = schema;
        self
    }

    /// With another clock, for tests.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::{DogpileCell, Freshness};
    /// use dogpile_files::{Moment, Persist, SystemWallClock, WallClock};
    /// use std::time::Duration;
    ///
    /// const HOUR: Duration = Duration::from_secs(3600);
    ///
    /// struct InAnHour;
    ///
    /// impl WallClock for InAnHour {
    ///     fn now(&self) -> Moment {
    ///         Moment { wall: SystemWallClock.now().wall + HOUR, boot: None }
    ///     }
    /// }
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("limit.json");
    /// LIMIT.set(7);
    /// drop(Persist::json(&path).attach(&LIMIT)?);
    /// LIMIT.clear(); // stands for the end of the program
    /// let persisted = Persist::json(&path).wall_clock(InAnHour).attach(&LIMIT)?;
    /// assert_eq!((LIMIT.get().as_deref(), LIMIT.freshness()), (Some(&7), Freshness::Stale));
    /// # }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn wall_clock<V: WallClock>(self, clock: V) -> Persist<C, V> {
        let Self { path, codec, interval, schema, .. } = self;
        Persist { path, codec, clock, interval, schema }
    }

    /// Restores the value, and writes the file from now on, for `cell`: one in a `static` (`&CELL`), or in an [`Arc`]
    /// (`&cell`, or `cell`).
    ///
    /// Call it before the cell is used, and before a [`Refresher`](dogpile::Refresher) is spawned for it: a cell that holds a
    /// value keeps that, and nothing is restored; nor is it into a [`SyncReaderCell`](dogpile::SyncReaderCell) that is being
    /// refreshed. Blocks while it reads and decodes the file.
    ///
    /// # Concurrent calls
    ///
    /// A value that is published while the file is read and decoded is kept. After that there is a last look at the cell. A
    /// value that is published between this look and the restoring, some instructions later, is replaced by the older one.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if the path names no file, or the codec's name cannot stand in it. An error of the
    /// operating system if the thread cannot be started. A file that cannot be read, or not be written, is no error here.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::{DogpileCell, Policy};
    /// use dogpile_files::{Persist, Restored};
    /// use std::time::Duration;
    ///
    /// const DAY: Duration = Duration::from_secs(86_400);
    ///
    /// static RATES: DogpileCell<f64> =
    ///     DogpileCell::with_policy(Policy::ttl(Duration::from_secs(60)).stale_while_refresh(DAY));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("rates.json");
    /// # RATES.set(0.87);
    /// # drop(Persist::json(&path).attach(&RATES)?);
    /// # RATES.clear();
    /// let persisted = Persist::json(&path).attach(&RATES)?;
    /// assert!(matches!(persisted.restored(), Restored::Value { .. })); // of the last run
    /// RATES.invalidate();
    /// let rates = RATES.try_get_or_refresh(|| Err("the source is down"))?;
    /// assert_eq!(*rates, 0.87);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn attach<K>(self, cell: impl Into<Handle<'static, K>>) -> io::Result<Persisted>
    where
        K: Cell,
        C: Codec<K::Value>,
    {
        let cell = cell.into();
        let Self { path, codec, clock, interval, schema } = self;
        let name = codec.name().to_owned();
        if !is_name(&name) {
            let text =
                format!("a codec cannot be named {name:?}: 1 to 32 ASCII letters, digits, `-`, `_`, `.`");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let place = Place::new(&path)?;
        let as_given = path.clone();
        let tick = (Instant::now(), clock.now());
        // Before the value is restored, which is a publication.
        let followed = cell.follow();
        let mut writer = Writer {
            cell,
            followed,
            codec,
            name,
            clock,
            schema,
            place,
            path,
            on_file: None,
            empty_at: 0,
            sight: None,
            tick,
        };
        let restored = writer.restore();
        if let Restored::Ignored(error) = &restored {
            trace::warn(&writer.path, &format!("nothing is restored: {}", text_of(error)));
        }
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = OwnThread::spawn("dogpile-persist", move || of_thread.run(&mut writer, interval))?;
        Ok(Persisted { path: as_given, restored, shared, thread })
    }
}

/// What [`Persist::attach`] has restored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Restored {
    /// A value.
    Value {
        /// How old it is; `None` if the clocks cannot tell, which counts as older than any limit.
        age: Option<Duration>,
    },
    /// There is no file.
    Nothing,
    /// There is one that cannot be used. It stays until there is a value that replaces it.
    Ignored(PersistError),
    /// The cell holds a value already, or is a [`SyncReaderCell`](dogpile::SyncReaderCell) that is being refreshed.
    NotNeeded,
}

/// A cell whose value is written to a file. See [`Persist`].
#[must_use = "dropping it ends the writing; keep it in a variable with a name (`let _persisted`, not `let _`)"]
pub struct Persisted {
    path: PathBuf,
    restored: Restored,
    shared: Arc<Shared>,
    thread: OwnThread,
}

impl Persisted {
    /// What was restored.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Persist, Restored};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(5));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("limit.json");
    /// let persisted = Persist::json(&path).attach(&LIMIT)?;
    /// assert!(matches!(persisted.restored(), Restored::Nothing));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn restored(&self) -> &Restored {
        &self.restored
    }

    /// Why the latest write failed; `None` if it succeeded. The next interval brings another try.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Persist, PersistErrorKind};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(5));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("limit.json");
    /// std::fs::create_dir(&path)?; // in the way
    /// let persisted = Persist::json(&path).interval(Duration::MAX).attach(&LIMIT)?;
    /// LIMIT.set(7);
    /// assert!(persisted.flush().is_err());
    /// assert_eq!(persisted.last_error().unwrap().kind(), PersistErrorKind::Io);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn last_error(&self) -> Option<PersistError> {
        self.shared.state.lock().last_error.clone()
    }

    /// How often the file has been written.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::DogpileCell;
    /// use dogpile_files::Persist;
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(5));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("limit.json");
    /// let persisted = Persist::json(&path).interval(Duration::MAX).attach(&LIMIT)?;
    /// LIMIT.set(7);
    /// persisted.flush()?;
    /// persisted.flush()?; // nothing is new
    /// assert_eq!(persisted.writes(), 1);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.shared.state.lock().writes
    }

    /// Writes what has not been written yet, and waits for that, whatever the interval.
    ///
    /// # Errors
    ///
    /// Why it could not be written; in a process that was forked, always. Another process that is writing, and a build of a
    /// [`SyncReaderCell`](dogpile::SyncReaderCell) that may have taken out a value that was not written, or was declared stale
    /// since, are waited for. After a second it is an error of the kind [`Io`](PersistErrorKind::Io), whose source is
    /// [`WouldBlock`](io::ErrorKind::WouldBlock).
    ///
    /// # Concurrent calls
    ///
    /// Calls that arrive while another one waits are answered together by the next attempt, which begins when that one has ended
    /// and may wait for a second in turn. So such a call may wait for up to two seconds.
    ///
    /// # Deadlocks
    ///
    /// None: called by the codec, it returns an error.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "json")] {
    /// use dogpile::DogpileCell;
    /// use dogpile_files::Persist;
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(5));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("limit.json");
    /// let persisted = Persist::json(&path).attach(&LIMIT)?;
    /// LIMIT.set(7);
    /// persisted.flush()?;
    /// assert!(std::fs::read_to_string(&path)?.ends_with("\n7"));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn flush(&self) -> Result<(), PersistError> {
        if self.thread.is_of_another_process() {
            let error = io::Error::other("it is written by the process that this one was forked from");
            return Err(PersistError::io(&self.path, error));
        }
        if self.thread.is_current() {
            let error = "it cannot be flushed by its own codec";
            return Err(PersistError::new(&self.path, PersistErrorKind::Codec, error));
        }
        self.shared.flush(&self.path)
    }
}

// What is under its lock is replaced as a whole, so a panic leaves nothing half done.
impl UnwindSafe for Persisted {}
impl RefUnwindSafe for Persisted {}

impl Drop for Persisted {
    fn drop(&mut self) {
        self.shared.state.lock().is_stopped = true;
        self.shared.condvar.notify_all();
        // Then `thread` is dropped, which joins it.
    }
}

impl fmt::Debug for Persisted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Persisted")
            .field("path", &self.path)
            .field("restored", &self.restored)
            .finish_non_exhaustive()
    }
}

impl<C, W> fmt::Debug for Persist<C, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Persist")
            .field("path", &self.path)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

/// What the owner and the thread share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a flush is asked for or has ended, and when the thread is to stop or has ended.
    condvar: Condvar,
}

#[derive(Default)]
struct State {
    is_stopped: bool,
    has_ended: bool,
    /// Flushes that were asked for, and those that have ended.
    asked: u64,
    answered: u64,
    last_error: Option<PersistError>,
    writes: u64,
}

/// Why the thread writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    /// It is time for a look.
    Look,
    Flush,
    Stop,
}

impl Shared {
    /// Waits for something that may have to be written.
    ///
    /// Today the cell is looked at from time to time. A cell that can notify of its publications would be waited for here, and
    /// nowhere else.
    fn wait_for_news(&self, interval: Duration) -> News {
        let is_looking = interval < Duration::MAX;
        let deadline = is_looking.then(|| Instant::now() + interval.min(LOOK));
        let mut state = self.state.lock();
        loop {
            if state.is_stopped {
                return News::Stop;
            }
            if state.asked > state.answered {
                return News::Flush;
            }
            match deadline {
                Some(deadline) if self.condvar.wait_until(&mut state, deadline).timed_out() => {
                    return if state.is_stopped { News::Stop } else { News::Look };
                }
                Some(_) => {}
                None => self.condvar.wait(&mut state),
            }
        }
    }

    fn run<K: Cell, C: Codec<K::Value>, W: WallClock>(
        &self,
        writer: &mut Writer<K, C, W>,
        interval: Duration,
    ) {
        let _ended = Ended(self);
        let mut latest: Option<Instant> = None;
        let mut warnings = Warnings::default();
        loop {
            let news = self.wait_for_news(interval);
            if news == News::Look && latest.is_some_and(|latest| latest.elapsed() < interval) {
                continue;
            }
            // Flushes that are asked for from now on may be about a later value.
            let asked = self.state.lock().asked;
            let mut result = writer.contained_step(news);
            let end = Instant::now() + PATIENCE;
            while news != News::Look && result.as_ref().is_err_and(is_busy) && Instant::now() < end {
                thread::sleep(SHORTEST);
                result = writer.contained_step(news);
            }
            // Where something was in the way, the next look is another try.
            if !matches!(result, Ok(false)) && !result.as_ref().is_err_and(is_busy) {
                latest = Some(Instant::now());
            }
            let error = result.as_ref().err();
            let may_pass = news == News::Look && error.is_some_and(is_busy);
            if let Some(text) = warnings.of(error, may_pass) {
                trace::warn(&writer.path, &format!("the value could not be written: {text}"));
            }
            self.note(result, asked);
            if news == News::Stop {
                return;
            }
        }
    }

    fn note(&self, result: Result<bool, PersistError>, asked: u64) {
        let mut state = self.state.lock();
        state.answered = asked;
        state.writes += u64::from(matches!(result, Ok(true)));
        let former = std::mem::replace(&mut state.last_error, result.err());
        drop(state);
        self.condvar.notify_all();
        // Not under the lock: it may be an error of the codec's, whose drop may panic.
        let _ = contained("the drop of an error", || {
            drop(former);
            Ok(())
        });
    }

    fn flush(&self, path: &Path) -> Result<(), PersistError> {
        let mut state = self.state.lock();
        state.asked += 1;
        let number = state.asked;
        self.condvar.notify_all();
        while state.answered < number && !state.has_ended {
            self.condvar.wait(&mut state);
        }
        if state.answered < number {
            return Err(PersistError::io(path, io::Error::other("the thread that writes it has ended")));
        }
        state.last_error.clone().map_or(Ok(()), Err)
    }
}

/// Another process, or another writer of this one, holds the lock; or a build may have taken the value out.
fn is_busy(error: &PersistError) -> bool {
    error.kind() == PersistErrorKind::Io
        && std::error::Error::source(error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Which errors are warned of: each once, as long as it lasts. One that may pass by itself, if it is still there the next time.
#[derive(Default)]
struct Warnings {
    /// The last error, as text.
    text: Option<String>,
    is_warned: bool,
}

impl Warnings {
    fn of(&mut self, error: Option<&PersistError>, may_pass: bool) -> Option<&str> {
        let text = error.map(text_of);
        let is_new = text != self.text;
        if is_new {
            *self = Self { text, is_warned: false };
        }
        if self.is_warned || is_new && may_pass {
            return None;
        }
        self.is_warned = true;
        self.text.as_deref()
    }
}

/// On drop, marks the thread as ended, so that no flush waits for it.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state.lock().has_ended = true;
        self.0.condvar.notify_all();
    }
}

/// What the file is known to hold.
struct OnFile {
    /// The cell's generation.
    generation: u64,
    made: Moment,
    is_stale: bool,
    is_restored: bool,
    /// Of the whole file; `None` if another process has written it.
    checksum: Option<u32>,
}

/// The thread's.
struct Writer<K: Cell, C, W> {
    cell: Handle<'static, K>,
    /// [`None`]: no value of this kind of cell may be withheld.
    followed: Option<Followed>,
    codec: C,
    name: String,
    clock: W,
    schema: u32,
    place: Place,
    /// As it was given.
    path: PathBuf,
    on_file: Option<OnFile>,
    /// The generation at which the cell was last known to be empty, with no value taken out.
    empty_at: u64,
    /// The generation that was seen last, and when it was made.
    sight: Option<(u64, Moment)>,
    /// The last look at the clocks.
    tick: (Instant, Moment),
}

impl<K: Cell, C: Codec<K::Value>, W: WallClock> Writer<K, C, W> {
    fn restore(&mut self) -> Restored {
        if self.cell.look().is_some() {
            return Restored::NotNeeded;
        }
        let (line, bytes) = match self.place.read() {
            Ok(read) => read,
            Err(NotRead::Missing) => return Restored::Nothing,
            Err(NotRead::Unreadable(why)) => {
                return Restored::Ignored(PersistError::unreadable(&self.path, why));
            }
            Err(NotRead::Io(error)) => return Restored::Ignored(PersistError::io(&self.path, error)),
        };
        let Header { codec, schema, made, is_stale } = line.header;
        if codec != self.name || schema != self.schema {
            let text = format!(
                "it holds schema {schema} of codec {codec:?}; this program reads schema {} of {:?}",
                self.schema, self.name
            );
            return Restored::Ignored(PersistError::new(&self.path, PersistErrorKind::Foreign, text));
        }
        let value = match contained("the codec", || self.codec.decode(&bytes)) {
            Ok(value) => value,
            Err(error) => {
                return Restored::Ignored(PersistError::new(&self.path, PersistErrorKind::Codec, error));
            }
        };
        let age = self.clock.now().age_since(made);
        let Some(generation) = self.cell.put_back(value, age.unwrap_or(Duration::MAX), is_stale) else {
            return Restored::NotNeeded;
        };
        let checksum = Some(line.checksum);
        self.on_file = Some(OnFile { generation, made, is_stale, is_restored: true, checksum });
        self.sight = Some((generation, made));
        Restored::Value { age }
    }

    /// As [`step`](Writer::step). A panic of the user's code is an error, and the thread goes on.
    fn contained_step(&mut self, news: News) -> Result<bool, PersistError> {
        contained("the wall clock, or the drop of the value,", || Ok(self.step(news))).unwrap_or_else(
            |error| {
                // It may have come before anything was written, or after.
                Err(PersistError::new(&self.path, PersistErrorKind::Codec, error))
            },
        )
    }

    /// Looks at the cell, and writes what there is to be written. Returns whether it has written.
    fn step(&mut self, news: News) -> Result<bool, PersistError> {
        let now = self.clock.now();
        let (instant, moment) = std::mem::replace(&mut self.tick, (Instant::now(), now));
        // The cell's clock stands still while the host is suspended. Where only the time of day can tell, a clock that was set
        // looks the same, and makes the value older.
        let elapsed = now.elapsed_since(moment).or_else(|| now.wall.duration_since(moment.wall).ok());
        let suspended = elapsed.unwrap_or_default().saturating_sub(instant.elapsed());

        let published = self.cell.published();
        let seen = match self.cell.look() {
            None if self.cell.may_be_withheld() => {
                let latest = self.followed.as_ref().map(Followed::latest).unwrap_or_default();
                // No build puts back what was cleared.
                let is_cleared = latest.is_cleared && latest.generation == published;
                if is_cleared || self.empty_at == published {
                    return self.remove(published).map(|()| false);
                }
                // Neither to clear a value nor to declare it stale changes the generation.
                let is_written = self.on_file.as_ref().is_some_and(|on_file| {
                    on_file.generation == published
                        && !latest.is_cleared
                        && (on_file.is_stale || !latest.is_declared_stale)
                });
                // Another look comes by itself.
                if news == News::Look || is_written {
                    return Ok(false);
                }
                let text = "a build may have taken the value out of the cell";
                let error = io::Error::new(io::ErrorKind::WouldBlock, text);
                return Err(PersistError::io(&self.path, error));
            }
            // A writer may have put it back since.
            None => self.cell.look(),
            seen => seen,
        };
        let Some(seen) = seen else {
            return self.remove(published).map(|()| false);
        };
        let generation = seen.generation;
        if self.empty_at == generation {
            // A value was put back, and taken out again, between two looks at the cell.
            self.empty_at = 0;
        }
        let made = match self.sight {
            Some((of, made)) if of == generation => made.corrected(now),
            _ => now.before(seen.age.saturating_add(suspended)),
        };
        self.sight = Some((generation, made));
        // The shortest that the policy's own ttl can be. A value that is stale sooner was declared so, or will be by a ttl of
        // its own, which cannot be restored.
        let policy = self.cell.settings();
        let least = policy.get_ttl() / 100 * (100 - u32::from(policy.get_jitter()).min(100));
        let is_fresh = seen.freshness == Freshness::Fresh;
        let fresh_until = if is_fresh { seen.age.saturating_add(seen.fresh_for) } else { seen.age };
        let is_stale = fresh_until < least;

        if let Some(on_file) = &self.on_file
            && on_file.generation == generation
            && (on_file.made == made || on_file.is_restored)
            && (on_file.is_stale || !is_stale)
        {
            return Ok(false);
        }
        let bytes = contained("the codec", || self.codec.encode(K::value(&seen.value)));
        // Before the write, which may take long: of a `SyncReaderCell` this is a reader.
        drop(seen);
        let bytes = bytes.map_err(|error| PersistError::new(&self.path, PersistErrorKind::Codec, error))?;
        let header = Header { codec: self.name.clone(), schema: self.schema, made, is_stale };
        let (file, checksum) = header.seal(&bytes);
        let own = self.on_file.as_ref().and_then(|on_file| on_file.checksum);
        let has_written = self
            .place
            .write(&file, |line| {
                let Header { codec, schema, made: theirs, .. } = &line.header;
                let is_comparable = *codec == header.codec && *schema == header.schema;
                // A time that is still to come is a clock that was set back, and no reason to keep a file.
                let is_past = theirs.wall <= now.wall + STEP;
                Some(line.checksum) != own && is_comparable && is_past && theirs.wall > made.wall
            })
            .map_err(|error| PersistError::io(&self.path, error))?;
        let checksum = has_written.then_some(checksum);
        self.on_file = Some(OnFile { generation, made, is_stale, is_restored: false, checksum });
        Ok(has_written)
    }

    /// The cell was cleared, after the generation `published`.
    fn remove(&mut self, published: u64) -> Result<(), PersistError> {
        self.empty_at = published;
        self.sight = None;
        if let Some(OnFile { checksum: Some(checksum), .. }) = self.on_file {
            self.place
                .remove(|line| line.checksum == checksum)
                .map_err(|error| PersistError::io(&self.path, error))?;
        }
        self.on_file = None;
        Ok(())
    }
}

/// What the user's code returns; a panic, which the hook has reported, as an error.
fn contained<R>(whose: &str, code: impl FnOnce() -> Result<R, BoxError>) -> Result<R, BoxError> {
    catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|panic| {
        let text = text_of_panic(&*panic);
        // It may panic in turn.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
        Err(format!("{whose} panicked: {text}").into())
    })
}

/// What an error says, or that it cannot be displayed: it may be one of the codec's.
fn text_of(error: &PersistError) -> String {
    contained("the `Display` of an error", || Ok(error.to_string())).unwrap_or_else(|error| error.to_string())
}

fn text_of_panic(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "with no text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever ends it: no flush may say that it has written.
    #[test]
    fn a_flush_that_the_thread_does_not_answer_is_an_error() {
        let persisted = Persisted {
            path: PathBuf::from("file"),
            restored: Restored::Nothing,
            shared: Arc::default(),
            thread: OwnThread::spawn("dogpile-persist", || {}).unwrap(),
        };
        drop(Ended(&persisted.shared));
        for _ in 0..2 {
            let error = persisted.flush().unwrap_err();
            assert_eq!(error.to_string(), "file: the thread that writes it has ended");
        }
    }

    #[test]
    fn an_error_is_warned_of_once_and_one_that_may_pass_if_it_goes_on() {
        let full = PersistError::io(Path::new("file"), io::ErrorKind::StorageFull.into());
        let busy = PersistError::io(Path::new("file"), io::ErrorKind::WouldBlock.into());
        let mut warnings = Warnings::default();
        for (error, may_pass, is_warned) in [
            (Some(&full), false, true),
            (Some(&full), false, false),
            (None, false, false),
            (Some(&full), false, true),
            (Some(&busy), true, false),
            (None, false, false),
            (Some(&busy), true, false),
            (Some(&busy), true, true),
            (Some(&busy), true, false),
            (Some(&full), false, true),
            // The last attempt, or one that was asked for.
            (Some(&busy), false, true),
            (Some(&busy), true, false),
        ] {
            assert_eq!(warnings.of(error, may_pass).is_some(), is_warned, "{error:?}, {may_pass}");
        }
    }
}
