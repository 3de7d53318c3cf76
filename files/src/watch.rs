//! A value from files that change.
//!
//! # Who does what
//!
//! | thread | |
//! |---|---|
//! | of `notify` | counts the changes of names that matter ([`changes`]), and wakes the next one |
//! | `dogpile-files` | waits for changes and polls; reads the files as one state ([`reading`]); if that is not the state of the last build, it asks the refresher for one |
//! | of the [`Refresher`] | is elected like any other caller, takes the state that was read, or reads it itself, and runs the user's closure |
//!
//! A request for a build can be lost: another caller's `set` or build answers it too. So the watching thread asks again as
//! long as the state that it has read waits for a build.
//!
//! The files are read under a lock that no code of the user's is run under. The closure runs without it.

mod changes;
mod files;
mod notifier;
mod reading;
mod trail;

use std::fmt;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dogpile::{BoxError, Freshness, Handle, Refreshed, Refresher, SharedError};
use parking_lot::Mutex;

use crate::Cell;
use crate::own_thread::OwnThread;
use crate::trace;
use changes::{Changes, Stopped, after};
pub use files::{FileError, Files};
use notifier::Notifier;
use reading::{ForBuild, Limits, Reading};

/// Between two reads, however many changes there are.
const PAUSE: Duration = Duration::from_millis(50);

/// A request for a build that is not followed by one is repeated after this time, then after twice that, and so on.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// How long the first build may take to begin.
const FIRST_BUILD: Duration = Duration::from_secs(1);

/// Keeps a cell's value up to date with one or several files.
///
/// The files are read, and a closure makes the value out of them: at the start, after each change, and whenever the cell's
/// policy asks for it. A state is read only when the files have been quiet for [`debounce`](WatchOptions::debounce), and as a
/// whole: if one of them is changed while they are read, they are read again.
///
/// The folders are watched, not the files. So it does not matter how a file is replaced: written in place, renamed over,
/// deleted and created, by a symbolic link that changes (as Kubernetes does with secrets and config maps). Files and folders
/// need not be there yet. The replacement of the folder that contains a file is notified too; that of a folder further up is
/// found by the next poll.
///
/// # What readers observe
///
/// The cell is used as before: [`get`](dogpile::DogpileCell::get) returns the value. While the closure fails, because a file
/// is missing, half written or wrong, the cell goes on serving the last good value as its policy allows, and
/// [`last_error`](Watch::last_error) shows why. The next change is tried at once.
///
/// The same bytes lead to no build and no publication: a `touch`, a `chmod`, a file written anew with the same content. (After an
/// error, those of the value that is served renew it, without a call of the closure.) While
/// the cell holds a fresh value, a state that the closure refuses is tried again only when it changes, or by
/// [`reload_now`](Watch::reload_now). A file that could not be read, for want of descriptors for example, is read again by each
/// poll. If the cell is empty, or its value stale, the policy's retry pauses apply as well.
///
/// The cell's ttl is not what finds changes, and need not be short: [`Policy::never_expires`](dogpile::Policy::never_expires)
/// will do. A cell with a ttl is renewed by a look at the files, at the latest a tenth of its ttl, or a second, before it ends.
/// So a value that is not fresh says that the files could not be verified.
///
/// # Notifications and polling
///
/// The operating system notifies of changes, by the crate `notify`. Where that cannot be had (a limit on watches or threads is
/// reached, a folder cannot be read) or does not work (a network file system that is changed on another host, a file that is
/// mounted into a container by itself, a file that is written through another hard link), changes are found by looking at the
/// files every [`poll_every`](WatchOptions::poll_every). [`polls_because`](Watch::polls_because) shows the former, and the
/// feature `tracing` warns of it.
///
/// On Linux each `Watch` takes one of the user's inotify instances, of which there are 128 unless
/// `fs.inotify.max_user_instances` is raised. It takes one of the user's watches (`fs.inotify.max_user_watches`) for each folder
/// that contains a file, or a link on the way to it, and for the folder above each of these. Files that are read together need
/// one `Watch`, however many they are.
///
/// # Threads
///
/// One of its own, the [`Refresher`]'s, and `notify`'s. However many changes there are, they lead to at most 20 calls of the
/// closure a second.
///
/// # Dropping
///
/// Stops it and joins its threads, but for `notify`'s, which ends by itself at once. A closure that runs is waited for, and
/// its value published; in a task, drop it by `spawn_blocking` if the closure is slow. The cell keeps its value. Given an
/// `Arc`, it does not keep the cell alive.
///
/// In a process that was forked there are no threads of the parent's. Dropping the copy of the `Watch` there waits for nothing;
/// spawn another one.
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Policy};
/// use dogpile_files::{Files, Watch};
/// use std::time::Duration;
///
/// struct Limits {
///     requests: u32,
/// }
///
/// static LIMITS: DogpileCell<Limits> = DogpileCell::with_policy(Policy::never_expires());
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("requests");
/// std::fs::write(&path, "100")?;
///
/// let watch = Watch::files([&path]).spawn(&LIMITS, |files: &Files| {
///     files.parse(0, |text| text.trim().parse().map(|requests| Limits { requests }))
/// })?;
/// assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
/// assert_eq!(LIMITS.get().unwrap().requests, 100);
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "dropping it stops it at once; keep it in a variable with a name (`let _watch`, not `let _`)"]
pub struct Watch {
    shared: Arc<Shared>,
    // Dropped in this order: the watching thread asks the refresher for builds.
    _thread: OwnThread,
    refresher: Arc<Refresher>,
}

struct Shared {
    changes: Arc<Changes>,
    reading: Mutex<Reading>,
    /// Why changes are found by polling only. Under a lock of its own, since a read may take long.
    failure: Mutex<Option<String>>,
    /// Polling is not what was asked for.
    warns: bool,
    /// The first file, which warnings are about.
    path: PathBuf,
}

impl Shared {
    /// Reads under the lock; then says whether changes are found by polling only, if that is new.
    fn read<R>(&self, read: impl FnOnce(&mut Reading) -> R) -> R {
        let mut reading = self.reading.lock();
        let result = read(&mut reading);
        let failure = reading.failure().map(str::to_owned);
        drop(reading);
        let former = std::mem::replace(&mut *self.failure.lock(), failure.clone());
        if let (None, Some(failure), true) = (former, failure, self.warns) {
            trace::warn(&self.path, &format!("changes are found by polling only: {failure}"));
        }
        result
    }
}

/// How a [`Watch`] works. Made by [`Watch::files`].
#[derive(Clone, Debug)]
#[must_use = "nothing is watched until `spawn` is called"]
pub struct WatchOptions {
    paths: Vec<PathBuf>,
    debounce: Duration,
    poll_every: Duration,
    max_size: u64,
    only_open: bool,
    notifications: bool,
}

impl WatchOptions {
    /// How long the files must have been quiet before a change is read. Default: 300 ms.
    ///
    /// Files that are written one after the other, as a certificate and its key, are read as a pair if the time between is
    /// shorter than this. Files that never are quiet are read after ten times this.
    ///
    /// A build of another cause, the first one for example, waits so long too if the files have just been changed. Do not set
    /// the policy's [`lease_timeout`](dogpile::Policy::lease_timeout) to less than ten times this.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::time::Duration;
    ///
    /// static MOTD: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("motd");
    /// std::fs::write(&path, "hello")?;
    /// let watch = Watch::files([path])
    ///     .debounce(Duration::from_millis(50))
    ///     .poll_every(Duration::from_secs(5))
    ///     .spawn(&MOTD, |files: &Files| files.text(0).map(str::to_owned))?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
    /// assert_eq!(*MOTD.get().unwrap(), "hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn debounce(mut self, time: Duration) -> Self {
        self.debounce = time;
        self
    }

    /// How often the files are looked at, besides after notifications. Default: 30 s.
    ///
    /// A look asks for the times and sizes of the files, and reads them only if these have changed. [`Duration::MAX`]: never.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::time::Duration;
    ///
    /// static MOTD: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("motd");
    /// let watch = Watch::file(&path)
    ///     .only_poll()
    ///     .poll_every(Duration::from_millis(50))
    ///     .spawn(&MOTD, |files: &Files| files.text(0).map(str::to_owned))?;
    /// std::fs::write(&path, "hello")?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)));
    /// assert_eq!(*MOTD.get().unwrap(), "hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn poll_every(mut self, interval: Duration) -> Self {
        self.poll_every = interval;
        self
    }

    /// Asks for no notifications: changes are found by [`poll_every`](WatchOptions::poll_every).
    ///
    /// For file systems whose changes are made elsewhere, and for programs that may have no more threads.
    pub fn only_poll(mut self) -> Self {
        self.notifications = false;
        self
    }

    /// The largest size of a file that is read, in bytes. Default: 64 MiB.
    ///
    /// A larger one is an error, and none of it is read.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{FileError, Files, Watch};
    /// use std::io::ErrorKind;
    /// use std::time::Duration;
    ///
    /// static MOTD: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("motd");
    /// std::fs::write(&path, "more than ten bytes")?;
    /// let watch = Watch::files([path])
    ///     .max_size(10)
    ///     .spawn(&MOTD, |files: &Files| files.text(0).map(str::to_owned))?;
    /// # let start = std::time::Instant::now();
    /// # while watch.last_error().is_none() && start.elapsed().as_secs() < 60 { std::thread::yield_now() }
    /// // As soon as it has been looked at:
    /// let error = watch.last_error().unwrap();
    /// assert_eq!(error.downcast_ref::<FileError>().unwrap().kind(), Some(ErrorKind::FileTooLarge));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.max_size = bytes;
        self
    }

    /// The files are opened, not read: [`Files::open`] instead of [`Files::read`].
    ///
    /// For files that are mapped into memory, or read by a library. What is not read cannot be compared: a file counts as
    /// modified when its time, its size or its inode changes. Such files must be replaced (written elsewhere and renamed), not
    /// written in place: a change that is made while the closure reads is noticed afterwards only.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Drain, Policy, SyncReaderCell};
    /// use dogpile_files::{FileError, Files, Watch};
    /// use std::fs::File;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// fn open(files: &Files) -> Result<File, FileError> {
    ///     files.open(0)?.try_clone().map_err(|error| files.error(0, error)) // or map it
    /// }
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("database");
    /// std::fs::write(&path, "12 bytes now")?;
    /// let database = Arc::new(SyncReaderCell::with_policy(Policy::never_expires(), Drain::Background, drop::<File>));
    /// let watch = Watch::files([path]).only_open().spawn(&database, open)?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
    /// assert_eq!(database.get().unwrap().metadata()?.len(), 12);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn only_open(mut self) -> Self {
        self.only_open = true;
        self
    }

    /// Starts to watch, for `cell`: one in a `static` (`&CELL`), or in an [`Arc`] (`&cell`, or `cell`).
    ///
    /// Returns at once, perhaps before the files have been read: see [`wait_ready`](Watch::wait_ready). `parse` makes the
    /// value, on a thread of its own, one call at a time. It may return a value, or a [`Refreshed`]. If it panics, that is an
    /// error like others. A closure has to name the type of the value, which a function does by its return type:
    /// `|files| files.parse(0, toml::from_str::<Config>)`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if there is no file, or the cell's ttl is zero. An error of the operating system if a
    /// thread cannot be started, or a path is relative and there is no current folder. That a file is missing is no error here.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Drain, Policy, SyncReaderCell};
    /// use dogpile_files::{FileError, Files, Watch};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// // A certificate and its key: one value.
    /// struct Identity {
    ///     certificate: Vec<u8>,
    ///     key: Vec<u8>,
    /// }
    ///
    /// fn identity(files: &Files) -> Result<Identity, FileError> {
    ///     Ok(Identity { certificate: files.read(0)?.to_vec(), key: files.read(1)?.to_vec() })
    /// }
    ///
    /// let folder = tempfile::tempdir()?;
    /// let paths = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
    /// std::fs::write(&paths[0], "certificate")?;
    /// std::fs::write(&paths[1], "key")?;
    ///
    /// // Keys are overwritten when their last reader has left.
    /// let forget = |mut old: Identity| old.key.fill(0);
    /// let cell = Arc::new(SyncReaderCell::with_policy(Policy::never_expires(), Drain::Background, forget));
    /// let watch = Watch::files(&paths).spawn(&cell, identity)?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
    /// assert_eq!(cell.get().unwrap().certificate, b"certificate");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn spawn<K, R, E, F>(self, cell: impl Into<Handle<'static, K>>, mut parse: F) -> io::Result<Watch>
    where
        K: Cell,
        R: Into<Refreshed<K::Value>>,
        E: Into<BoxError>,
        F: FnMut(&Files) -> Result<R, E> + Send + 'static,
    {
        let cell = cell.into();
        let Some(path) = self.paths.first().cloned() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "`Watch::files` was given no file"));
        };
        // Relative paths mean what they mean now, wherever the program goes later.
        let absolute: io::Result<Vec<PathBuf>> = self.paths.iter().map(std::path::absolute).collect();
        let changes = Arc::new(Changes::default());
        let notifier = Notifier::new(absolute?, self.notifications, Arc::clone(&changes));
        let limits = Limits { debounce: self.debounce, max_size: self.max_size, only_open: self.only_open };
        let failure = Mutex::new(notifier.failure().map(str::to_owned));
        let reading = Reading::new(self.paths, notifier, Arc::clone(&changes), &limits);
        let builds = reading.builds();
        let reading = Mutex::new(reading);
        let shared = Arc::new(Shared { changes, reading, failure, warns: self.notifications, path });

        // Of an empty cell the refresher builds the first value without being asked.
        let is_to_be_asked = cell.look().is_some_and(|seen| seen.freshness == Freshness::Fresh);
        let ttl = cell.settings().get_ttl();
        let ahead = (ttl / 10).min(Duration::from_secs(1));

        let of_build = Arc::clone(&shared);
        let build = move |previous: Option<K::Shared>| -> Result<Refreshed<K::Value>, BoxError> {
            of_build.changes.begin();
            let has_value = previous.is_some();
            drop(previous);
            let state = match of_build.read(|reading| reading.for_build(has_value))? {
                ForBuild::NotModified => return Ok(Refreshed::NotModified),
                ForBuild::Parse(state) => state,
            };
            let made = parse(&state.files).map_err(Into::into)?;
            builds.lock().good = Some(state.digest);
            Ok(made.into())
        };
        let refresher = Arc::new(Refresher::spawn(cell, ahead, build)?);
        // Weak: in a process that was forked, the thread's share would stay, and the refresher could not be dropped.
        let (of_thread, asks) = (Arc::clone(&shared), Arc::downgrade(&refresher));
        let thread = OwnThread::spawn("dogpile-files", move || {
            // The refresher is there until this thread has been joined.
            let ask = || asks.upgrade().map(|refresher| refresher.refresh_now()).ok_or(Stopped);
            let _ = watch(&of_thread, ask, is_to_be_asked, self.poll_every);
        })?;
        Ok(Watch { shared, _thread: thread, refresher })
    }
}

/// The watching thread. `ask` asks for a build. Returns when the watch is dropped, with the error that says so.
fn watch(
    shared: &Shared,
    ask: impl Fn() -> Result<(), Stopped>,
    is_to_be_asked: bool,
    poll_every: Duration,
) -> Result<(), Stopped> {
    if !is_to_be_asked {
        // The refresher has found the cell empty, and is about to build: no need to ask for it. Unless another caller is
        // faster; so this does not wait for ever.
        shared.changes.wait_for_build(Instant::now() + FIRST_BUILD)?;
        shared.changes.wait(after(poll_every))?;
    }
    let mut ask_again = ASK_AGAIN;
    loop {
        let (was_waiting, needs_build) = shared.read(|reading| (reading.is_waiting(), reading.check()));
        if needs_build? {
            ask()?;
        }
        ask_again = if was_waiting { ask_again.saturating_mul(2).min(poll_every) } else { ASK_AGAIN };
        shared.changes.sleep_until(Instant::now() + PAUSE)?;
        let is_waiting = shared.reading.lock().is_waiting();
        shared.changes.wait(after(if is_waiting { ask_again } else { poll_every }))?;
    }
}

impl Watch {
    /// A value that is in one file: number 0 in [`Files`]. See [`WatchOptions::spawn`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Policy};
    /// use dogpile_files::{Files, Watch};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires());
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("limit");
    /// std::fs::write(&path, "100")?;
    /// let watch = Watch::file(&path).spawn(&LIMIT, |files: &Files| files.parse(0, |text| text.trim().parse::<u32>()))?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)));
    /// assert_eq!(LIMIT.get().as_deref(), Some(&100));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn file(path: impl AsRef<Path>) -> WatchOptions {
        Self::files([path])
    }

    /// The files of one value. They are numbered in [`Files`] as they are here. See [`WatchOptions::spawn`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{FileError, Files, Watch};
    /// use std::time::Duration;
    ///
    /// static PAIR: DogpileCell<[String; 2]> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let folder = tempfile::tempdir()?;
    /// let paths = ["first", "second"].map(|name| folder.path().join(name));
    /// std::fs::write(&paths[0], "1")?;
    /// std::fs::write(&paths[1], "2")?;
    /// let watch = Watch::files(&paths).spawn(&PAIR, |files: &Files| {
    ///     Ok::<_, FileError>([files.text(0)?.to_owned(), files.text(1)?.to_owned()])
    /// })?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)), "{:?}", watch.last_error());
    /// assert_eq!(*PAIR.get().unwrap(), ["1", "2"]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn files<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> WatchOptions {
        WatchOptions {
            paths: paths.into_iter().map(|path| path.as_ref().to_owned()).collect(),
            debounce: Duration::from_millis(300),
            poll_every: Duration::from_secs(30),
            max_size: 64 << 20,
            only_open: false,
            notifications: true,
        }
    }

    /// Why the files as they are now could not be made into a value; `None` if they were, or have not been read yet.
    ///
    /// Errors of files begin with their path: see [`Files::parse`]. [`SharedError::downcast_ref`] returns the closure's own
    /// error. The result of a read is noted just after its value is published, so a reader of the new value may still see
    /// the error before it.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::time::Duration;
    ///
    /// static MOTD: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("motd");
    /// let watch = Watch::files([&path]).spawn(&MOTD, |files: &Files| files.text(0).map(str::to_owned))?;
    /// # let start = std::time::Instant::now();
    /// # while watch.last_error().is_none() && start.elapsed().as_secs() < 60 { std::thread::yield_now() }
    /// // As soon as it has been looked for:
    /// let error = watch.last_error().unwrap().to_string();
    /// assert!(error.starts_with(path.to_str().unwrap()), "{error}");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn last_error(&self) -> Option<SharedError> {
        self.refresher.last_error()
    }

    /// Reads the files, as if they had just been changed: for a signal handler, or an administrator's request. Returns at once.
    ///
    /// If they are as they were, and were made into a value, nothing happens. If they were not, they are tried again.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::time::Duration;
    ///
    /// static MOTD: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("motd");
    /// std::fs::write(&path, "hello")?;
    /// let watch = Watch::files([path]).spawn(&MOTD, |files: &Files| files.text(0).map(str::to_owned))?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)));
    /// watch.reload_now();
    /// # drop(watch);
    /// assert_eq!((MOTD.generation(), MOTD.get().as_deref()), (1, Some(&"hello".to_owned())));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn reload_now(&self) {
        self.shared.changes.force();
    }

    /// Waits until the cell holds a value that may be served, but not for longer than `time` on the cell's clock. Returns
    /// whether it does.
    ///
    /// For the start of a program, and for readiness probes (with [`Duration::ZERO`]).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::time::Duration;
    ///
    /// static MOTD: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("motd");
    /// let watch = Watch::files([&path]).spawn(&MOTD, |files: &Files| files.text(0).map(str::to_owned))?;
    /// assert!(!watch.wait_ready(Duration::ZERO));
    /// std::fs::write(&path, "hello")?;
    /// assert!(watch.wait_ready(Duration::from_secs(10)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn wait_ready(&self, time: Duration) -> bool {
        self.refresher.wait_ready(time)
    }

    /// Like [`wait_ready`](Watch::wait_ready), but suspends the task instead of blocking the thread. The future can be dropped
    /// at any point.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::time::Duration;
    ///
    /// static MOTD: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("motd");
    /// std::fs::write(&path, "hello")?;
    /// let watch = Watch::file(&path).spawn(&MOTD, |files: &Files| files.text(0).map(str::to_owned))?;
    /// assert!(watch.wait_ready_async(Duration::from_secs(10)).await);
    /// assert_eq!(*MOTD.get().unwrap(), "hello");
    /// # Ok::<(), std::io::Error>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn wait_ready_async(&self, time: Duration) -> bool {
        self.refresher.wait_ready_async(time).await
    }

    /// Why changes are found by polling only; `None` if the operating system notifies of them, or the files have not been
    /// looked at yet.
    ///
    /// Notifications are asked for again at each poll.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use dogpile_files::{Files, Watch};
    /// use std::time::Duration;
    ///
    /// static MOTD: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # let folder = tempfile::tempdir()?;
    /// let watch = Watch::files([folder.path().join("motd")])
    ///     .only_poll()
    ///     .poll_every(Duration::from_secs(5))
    ///     .spawn(&MOTD, |files: &Files| files.text(0).map(str::to_owned))?;
    /// assert_eq!(watch.polls_because().unwrap(), "notifications are switched off");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn polls_because(&self) -> Option<String> {
        self.shared.failure.lock().clone()
    }
}

// What is under its locks is replaced as a whole, so a panic leaves nothing half done.
impl UnwindSafe for Watch {}
impl RefUnwindSafe for Watch {}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.changes.stop();
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    /// The refresher takes any publication for the answer to a request, one of `set` too.
    #[test]
    fn a_request_that_is_answered_by_another_publication_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "first").unwrap();
        let changes = Arc::new(Changes::default());
        let notifier = Notifier::new(vec![path.clone()], false, Arc::clone(&changes));
        let limits = Limits { debounce: Duration::ZERO, max_size: 100, only_open: false };
        let reading = Reading::new(vec![path.clone()], notifier, Arc::clone(&changes), &limits);
        let (failure, warns) = (Mutex::default(), false);
        let shared = Arc::new(Shared { changes, reading: Mutex::new(reading), failure, warns, path });

        let (asked, requests) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            watch(&of_thread, || asked.send(()).map_err(|_| Stopped), true, Duration::MAX)
        });
        // Nothing changes meanwhile, and nothing is polled.
        for _ in 0..3 {
            requests.recv_timeout(Duration::from_secs(60)).unwrap();
        }
        assert!(matches!(shared.read(|reading| reading.for_build(false)), Ok(ForBuild::Parse(_))));
        assert!(!shared.reading.lock().is_waiting(), "it goes on asking");
        shared.changes.stop();
        assert!(thread.join().unwrap().is_err());
    }
}
