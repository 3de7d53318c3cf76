//! `SyncReaderCell`: a `DogpileCell` whose replaced values are finalised when their last reader has left.
//!
//! Elections, the fence, waiting and errors are the inner cell's. What comes on top:
//!
//! ```text
//! drain        Drain, DrainTimeout
//! queue        the published values in order                             G11
//! retirement   the state of all values, and how they come and go         G11
//! finalizer    which thread runs the finalizer                           G11
//! waiting      how callers wait for replaced values to be finalised
//! exclusive    how a build gets the old value for itself                 G12
//! reader       ReaderArc, ReadGuard
//! writer       Writer, WriteLock                                         G12
//! request      builds that may ask for the write lock
//! ```

mod drain;
mod exclusive;
mod finalizer;
mod queue;
mod reader;
mod request;
mod retirement;
mod waiting;
mod writer;

pub use drain::{Drain, DrainTimeout};
pub use reader::{ReadGuard, ReaderArc};
pub use writer::{WriteLock, Writer};

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Duration;

use crate::cell::{DogpileCell, Handle, Held, Kind, Machine, Request, Search, Snapshot, TakesBuild, Term};
use crate::error::{BoxError, RefreshError, SharedError};
use crate::hook::{Change, Hook, hook_on_change, hook_on_publish};
use crate::inside::is_building;
use crate::policy::{Freshness, Policy};
use crate::stats::Stats;
use crate::subscription::Subscription;
use crate::sync::Arc;
use crate::time::{Clock, FOREVER, SystemClock, deadline, nanos};

#[cfg(feature = "async")]
use {
    crate::cell::{Caller, Publishing},
    std::panic::Location,
};

use retirement::{Retirement, Tracked};

/// A [`DogpileCell`] that passes each replaced value to a finalizer when its last reader has left.
///
/// Use it for values that stand for something outside the program's memory: a data file to be deleted, a mapping to be
/// unmapped, a connection to be closed, a buffer to be used again. The model is `SyncReaderDogpile` of Python's
/// dogpile; the [guide](crate::guide::sync_reader) compares the two.
///
/// # What readers observe
///
/// Elections, waiting and errors are those of [`DogpileCell`]. A read chooses the value and registers as its reader in
/// one step. So a reader never gets a value that was retired before the read began, and never sees one that has been
/// finalised.
///
/// # The finalizer
///
/// The finalizer gets every replaced value once, by value, after its last reader has left. Values are finalised in the
/// order in which they were replaced and never two at a time, also if the cell is dropped first. The finalizer runs
/// without a lock held.
///
/// By default it runs on the cell's own thread, `dogpile-finalizer`. That thread is started when a value is replaced,
/// and ends when nothing is left to finalise. If it cannot be started, the finalizer runs in the caller that replaces
/// the value, or in the last reader. With [`Drain::Wait`] it runs in the caller that waits for the readers.
///
/// A value that the fence kept out of the cell (see [`DogpileCell::clear`]) is finalised too, when the caller that
/// built it drops it. It has no place in the order.
///
/// The value that is in the cell when the cell is dropped is dropped, not finalised: a file that is current must
/// survive a restart.
///
/// If the finalizer panics, the panic hook reports it and the next value is finalised. A finalizer may read the cell
/// without waiting, with [`get`](SyncReaderCell::get) for example. It must not wait for a build: a build that has asked
/// for the write lock waits for the finalizer.
///
/// # Deadlocks
///
/// A build that has asked for the write lock waits for all readers, and new readers wait for that build. If builds take
/// the write lock, a thread that holds a [`ReaderArc`] of the cell must therefore not call a method that may wait for a
/// build, such as [`get_or_refresh`](SyncReaderCell::get_or_refresh) or [`set`](SyncReaderCell::set).
/// `handle = cell.get_or_refresh(build)` in a loop is such a call, since the old handle lives until the new one is
/// there. Write `handle = cell.exchange(handle, build)` instead, which drops the old handle first.
///
/// A [`ReadGuard`] stays on its thread, so the cell detects it: the call panics, or returns
/// [`RefreshError::Reentrant`].
///
/// [`Drain::Wait`] has deadlocks of its own.
///
/// A finalizer must not wait for a thread that may drop the last reference to the cell, since that drop waits for the
/// finalizer.
///
/// # Dropping
///
/// Values that have been replaced are still finalised after the cell is dropped. The drop waits for the finalizers
/// whose turn has come, but not for readers. It does not wait if it happens inside a finalizer on a cell's own thread,
/// or inside a build on the thread of a [`Refresher`](crate::Refresher).
///
/// # Examples
///
/// A new file is written beside the old one, and the old one is deleted when its last reader has left:
///
/// ```
/// use dogpile::SyncReaderCell;
/// use std::fs::File;
/// use std::path::PathBuf;
/// use std::time::Duration;
///
/// struct DataFile {
///     path: PathBuf,
///     file: File,
/// }
///
/// # let folder = std::env::temp_dir().join(format!("dogpile-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// # let build = |number: u32| {
/// #     let path = folder.join(format!("data.{number}"));
/// #     DataFile { file: File::create(&path).unwrap(), path }
/// # };
/// let cell = SyncReaderCell::new(Duration::from_secs(60), |old: DataFile| {
///     drop(old.file);
///     let _ = std::fs::remove_file(old.path);
/// });
///
/// let reader = cell.get_or_refresh(|| build(1));
/// cell.set(build(2));
/// assert!(reader.path.exists()); // still being read
/// let path = reader.path.clone();
/// drop(reader);
/// cell.synchronize();
/// assert!(!path.exists());
/// # drop(cell);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct SyncReaderCell<T, C = SystemClock> {
    cell: DogpileCell<Tracked<T>, C>,
    retirement: Arc<Retirement<T>>,
}

// As for `DogpileCell`; and a finalizer that panics is not seen again in a state of its own making, since it is `Fn`.
impl<T: RefUnwindSafe, C: UnwindSafe> UnwindSafe for SyncReaderCell<T, C> {}
impl<T: RefUnwindSafe, C: RefUnwindSafe> RefUnwindSafe for SyncReaderCell<T, C> {}

/// Constructors.
impl<T: Send + Sync + 'static> SyncReaderCell<T> {
    /// Creates an empty cell whose values are fresh for `ttl` after their publication, and are finalised on the cell's
    /// own thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::sync::mpsc;
    /// use std::time::Duration;
    ///
    /// let (sender, finalised) = mpsc::channel();
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), move |old: u32| sender.send(old).unwrap());
    /// cell.set(1);
    /// cell.set(2);
    /// assert_eq!(finalised.recv(), Ok(1));
    /// ```
    #[must_use]
    pub fn new(ttl: Duration, finalizer: impl Fn(T) + Send + Sync + 'static) -> Self {
        Self::with_policy(Policy::ttl(ttl), Drain::default(), finalizer)
    }

    /// Creates an empty cell with a policy. `drain` decides which thread waits for the readers of a replaced value.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Drain, Policy, SyncReaderCell};
    /// use std::time::Duration;
    ///
    /// let policy = Policy::ttl(Duration::from_secs(60));
    /// let cell = SyncReaderCell::with_policy(policy, Drain::Wait(Duration::MAX), |_old: u32| {});
    /// cell.set(1);
    /// cell.set(2); // has finalised 1 when it returns
    /// assert_eq!(cell.retired(), 0);
    /// ```
    #[must_use]
    pub fn with_policy(policy: Policy, drain: Drain, finalizer: impl Fn(T) + Send + Sync + 'static) -> Self {
        Self::with_clock(policy, SystemClock, drain, finalizer)
    }
}

impl<T: Send + Sync + 'static, C> SyncReaderCell<T, C> {
    /// Creates an empty cell with a policy and a clock. `drain` decides which thread waits for the readers of a
    /// replaced value.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Drain, Freshness, ManualClock, Policy, SyncReaderCell};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// let policy = Policy::ttl(Duration::from_secs(60));
    /// let cell = SyncReaderCell::with_clock(policy, clock.clone(), Drain::Background, |_old: u32| {});
    /// cell.set(1);
    /// clock.advance(Duration::from_secs(61));
    /// assert_eq!(cell.freshness(), Freshness::Stale);
    /// ```
    #[must_use]
    pub fn with_clock(
        policy: Policy,
        clock: C,
        drain: Drain,
        finalizer: impl Fn(T) + Send + Sync + 'static,
    ) -> Self {
        Self { cell: DogpileCell::with_clock(policy, clock), retirement: Retirement::new(drain, finalizer) }
    }
}

impl<T, C> SyncReaderCell<T, C> {
    /// Names the cell in its [`Debug`](fmt::Debug) output and in `tracing` events (feature `tracing`).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {}).named("words");
    /// assert!(format!("{cell:?}").contains("words"));
    /// ```
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.retirement.state.lock().name = Some(name);
        self.cell.machine.name = Some(name);
        self
    }
}

impl<T: Send + Sync + 'static, C: Clock> Kind for SyncReaderCell<T, C> {
    type Value = T;
    type Stored = Tracked<T>;
    type Shared = ReaderArc<T>;
    type Clock = C;

    /// It would count as a reader, also while a spawner's queue holds the build.
    const LEASE_KEEPS_PREVIOUS: bool = false;

    #[inline]
    fn machine(&self) -> &Machine<Tracked<T>, C> {
        &self.cell.machine
    }

    fn share(stored: Arc<Tracked<T>>) -> ReaderArc<T> {
        ReaderArc(stored)
    }

    fn publish(held: Held<'_, Self>, value: T, term: Term) -> Arc<Tracked<T>> {
        // Until the finalizer has run too, which must not wait for this build either.
        let _inside = held.inside();
        Writer::new(held).publish(value, term)
    }

    #[cfg(feature = "async")]
    fn publish_async(held: Held<'_, Self>, value: T, term: Term) -> Publishing<'_, Tracked<T>> {
        match held.handle().retirement.drain {
            Drain::Wait(_) => Publishing::Draining(Box::pin(Writer::new(held).publish_async(value, term))),
            Drain::Background => Publishing::Done(Self::publish(held, value, term)),
        }
    }

    fn has_guard_of_this_thread(&self) -> bool {
        self.retirement.has_guard_of_this_thread()
    }

    fn give_way(&self) {
        self.retirement.abandon_drain_that_waits_for_this_thread();
    }
}

impl<T: Send + Sync + 'static, C: Clock> TakesBuild for SyncReaderCell<T, C> {}

/// Reads that may build.
impl<T: Send + Sync + 'static, C: Clock> SyncReaderCell<T, C> {
    /// Returns the value, rebuilding it if it is out of date.
    ///
    /// If it is stale, one caller runs `build` and returns the result. All others immediately return the old value. If
    /// it has expired, or there is none, the others wait for that build and return its result.
    ///
    /// # Blocking
    ///
    /// Blocks while another caller builds, if there is no value that may be served. The elected caller runs `build`
    /// itself. Under [`Drain::Wait`] it then waits for the readers of the old value.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics, or if it calls this method on the same cell while there is no value to serve. Also
    /// panics if this thread holds a [`ReadGuard`] of the cell and would wait for a build that waits for the write
    /// lock.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert_eq!(*cell.get_or_refresh(|| 7), 7);
    /// ```
    #[inline]
    #[track_caller]
    pub fn get_or_refresh<F: FnOnce() -> T>(&self, build: F) -> ReaderArc<T> {
        match self.machine().serve() {
            Some(value) => ReaderArc(value),
            None => ReaderArc(Search::refresh(self, build)),
        }
    }

    /// Returns the value, rebuilding it with a build that may fail if it is out of date.
    ///
    /// Elections, waiting and blocking are those of [`get_or_refresh`](SyncReaderCell::get_or_refresh). If the build
    /// fails, the old value is returned as long as the policy's [`stale_if_error`](Policy::stale_if_error) allows.
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: the caller's own build failed, or the build that it waited for, or the latest build
    ///   while a retry pause runs; and the policy allows no value to be served instead. All callers that waited for one
    ///   build share its error.
    /// * [`RefreshError::Reentrant`]: the caller would wait for itself. It called from inside the build of the same
    ///   cell while there was no value to serve, or it holds a [`ReadGuard`] that a build waits for which has asked for
    ///   the write lock.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// let error = cell.try_get_or_refresh(|| Err("no such file")).unwrap_err();
    /// assert_eq!(error.to_string(), "no such file");
    /// ```
    #[inline]
    pub fn try_get_or_refresh<E: Into<BoxError>, F: FnOnce() -> Result<T, E>>(
        &self,
        build: F,
    ) -> Result<ReaderArc<T>, RefreshError> {
        match self.machine().serve() {
            Some(value) => Ok(ReaderArc(value)),
            None => Search::try_refresh(self, build).map(ReaderArc),
        }
    }

    /// Returns a [`ReadGuard`] of the value, rebuilding it if it is out of date.
    ///
    /// Like [`get_or_refresh`](SyncReaderCell::get_or_refresh), but touches no reference count if the value is fresh,
    /// or if it is stale and a build or a retry pause runs.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics, or if it calls this method on the same cell while there is no value to serve. Also
    /// panics if this thread holds a [`ReadGuard`] of the cell and would wait for a build that waits for the write
    /// lock.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert_eq!(*cell.load_or_refresh(|| 7), 7);
    /// ```
    #[inline]
    #[track_caller]
    pub fn load_or_refresh<F: FnOnce() -> T>(&self, build: F) -> ReadGuard<'_, T> {
        match self.machine().serve_guard().and_then(ReadGuard::new) {
            Some(guard) => guard,
            None => ReaderArc(Search::refresh(self, build)).into_guard(),
        }
    }

    /// Drops `old`, then returns the value as [`get_or_refresh`](SyncReaderCell::get_or_refresh) does.
    ///
    /// Use it for a handle that is kept: `handle = cell.exchange(handle, build)`. With
    /// `handle = cell.get_or_refresh(build)` the thread is still a reader of the old value while it builds or waits. If
    /// that build waits for the readers, it never ends.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics, or if it calls this method on the same cell while there is no value to serve. Also
    /// panics if this thread holds a [`ReadGuard`] of the cell and would wait for a build that waits for the write
    /// lock.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Drain, Policy, SyncReaderCell};
    /// use std::time::Duration;
    ///
    /// let policy = Policy::ttl(Duration::from_secs(60));
    /// let cell = SyncReaderCell::with_policy(policy, Drain::Wait(Duration::MAX), |_old: u32| {});
    /// let mut handle = cell.get_or_refresh(|| 1);
    /// cell.invalidate();
    /// handle = cell.exchange(handle, || 2); // waits for the readers of 1
    /// assert_eq!(*handle, 2);
    /// ```
    #[track_caller]
    pub fn exchange<F: FnOnce() -> T>(&self, old: ReaderArc<T>, build: F) -> ReaderArc<T> {
        drop(old);
        self.get_or_refresh(build)
    }

    /// Starts a read with conditions: on the value's freshness or age, on how long to wait, on where the build runs.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set(1);
    /// assert_eq!(*cell.request().no_cache().get(|| 2), 2);
    /// ```
    pub fn request(&self) -> Request<'_, T, C, Self> {
        Request::new(Handle::Borrowed(self))
    }

    /// Starts a read with conditions of a cell in an [`Arc`].
    ///
    /// The request keeps the cell alive, so it can [hand builds to a thread or a task](Request::spawn_with).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let cell = Arc::new(SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {}));
    /// assert_eq!(*cell.request_owned().spawn_with(std::thread::spawn).get(|| 7), 7);
    /// ```
    pub fn request_owned(self: &Arc<Self>) -> Request<'static, T, C, Self> {
        Request::new(Handle::Shared(Arc::clone(self)))
    }
}

/// Reads that never build and never block.
impl<T: Send + Sync + 'static, C: Clock> SyncReaderCell<T, C> {
    /// Returns the value if it may be served now, fresh or stale.
    ///
    /// It never builds and never blocks. It also returns `None` while a build waits for the write lock or holds it.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert!(cell.get().is_none());
    /// cell.set(7);
    /// assert_eq!(*cell.get().unwrap(), 7);
    /// ```
    #[must_use]
    #[inline]
    pub fn get(&self) -> Option<ReaderArc<T>> {
        self.cell.get().map(ReaderArc)
    }

    /// Returns a [`ReadGuard`] of the value if it may be served now, fresh or stale.
    ///
    /// Like [`get`](SyncReaderCell::get), but touches no reference count.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set(7);
    /// assert_eq!(*cell.load().unwrap(), 7);
    /// ```
    #[must_use]
    #[inline]
    pub fn load(&self) -> Option<ReadGuard<'_, T>> {
        self.machine().servable().and_then(ReadGuard::new)
    }

    /// Returns the value with its generation, age and freshness, all of one publication.
    ///
    /// It also returns an expired value, with [`Freshness::Expired`]. The snapshot counts as a reader as long as it
    /// lives.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set(7);
    /// let seen = cell.snapshot().unwrap();
    /// assert_eq!((*seen.value, seen.generation, cell.readers()), (7, 1, 1));
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot<T, ReaderArc<T>>> {
        self.machine().snapshot().map(|seen| Snapshot::new(seen, ReaderArc))
    }

    /// Like [`snapshot`](SyncReaderCell::snapshot), but does not count as a read: a refresher that
    /// [rests](crate::RefresherOptions::rest_when_unused) while the value is not read goes on resting.
    ///
    /// It counts as a reader all the same, as long as it lives: the value is not finalised.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set(7);
    /// let seen = cell.peek().unwrap();
    /// assert_eq!((*seen.value, cell.readers()), (7, 1));
    /// ```
    #[must_use]
    pub fn peek(&self) -> Option<Snapshot<T, ReaderArc<T>>> {
        self.machine().peek().map(|seen| Snapshot::new(seen, ReaderArc))
    }

    /// Returns what a read would find now: no value, a fresh, a stale or an expired one.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Freshness, SyncReaderCell};
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert_eq!(cell.freshness(), Freshness::Empty);
    /// ```
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        self.cell.freshness()
    }

    /// As [`DogpileCell::subscribe`]: follows the publications, and never builds.
    ///
    /// A value that it returns is a reader, as any other [`ReaderArc`]: the subscription itself keeps none.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), drop::<u32>);
    /// let mut subscription = cell.subscribe();
    /// cell.set(7);
    /// assert_eq!(*subscription.wait_changed(), 7);
    /// assert_eq!(cell.readers(), 0);
    /// ```
    pub fn subscribe(&self) -> Subscription<'_, T, C, Self> {
        Subscription::new(Handle::Borrowed(self))
    }

    /// As [`subscribe`](SyncReaderCell::subscribe); keeps the cell alive.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let cell = Arc::new(SyncReaderCell::new(Duration::from_secs(60), drop::<u32>));
    /// let mut subscription = cell.subscribe_owned();
    /// let waiter = std::thread::spawn(move || *subscription.wait_changed());
    /// cell.set(7);
    /// assert_eq!(waiter.join().unwrap(), 7);
    /// ```
    pub fn subscribe_owned(self: &Arc<Self>) -> Subscription<'static, T, C, Self> {
        Subscription::new(Handle::Shared(Arc::clone(self)))
    }

    /// As [`DogpileCell::on_publish`].
    ///
    /// # Deadlocks
    ///
    /// The callback is a reader of the value that it is given. Under [`Drain::Wait`] it must not replace that value: it would wait
    /// for itself, for as long as the cell waits for readers.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), drop::<u32>);
    /// let (changes, seen) = std::sync::mpsc::channel();
    /// let hook = cell.on_publish(move |snapshot| changes.send(*snapshot.value).unwrap());
    /// cell.set(7);
    /// assert_eq!(seen.recv(), Ok(7));
    /// # drop(hook);
    /// ```
    pub fn on_publish(&self, callback: impl Fn(&Snapshot<T, ReaderArc<T>>) + Send + Sync + 'static) -> Hook {
        hook_on_publish::<Self, _>(self, callback)
    }

    /// As [`DogpileCell::on_change`].
    ///
    /// # Deadlocks
    ///
    /// As with [`on_publish`](SyncReaderCell::on_publish). [`clear`](SyncReaderCell::clear) drops its reference to the value after the
    /// callbacks: one that is called for it must not wait for a build that has asked for the write lock.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Change, SyncReaderCell};
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), drop::<u32>);
    /// cell.set(7);
    /// let (changes, seen) = std::sync::mpsc::channel();
    /// let hook = cell.on_change(move |change| changes.send(matches!(change, Change::Cleared)).unwrap());
    /// cell.clear();
    /// assert_eq!(seen.recv(), Ok(true));
    /// # drop(hook);
    /// ```
    pub fn on_change(&self, callback: impl Fn(&Change<T, ReaderArc<T>>) + Send + Sync + 'static) -> Hook {
        hook_on_change::<Self, _>(self, callback)
    }
}

/// Writes.
impl<T: Send + Sync + 'static, C: Clock> SyncReaderCell<T, C> {
    /// Publishes `value` ahead of any build, and returns it. The replaced value is retired.
    ///
    /// A build that runs now does not displace `value`. That build loses its lease, and its waiters get `value`. A
    /// retry pause ends.
    ///
    /// # Blocking
    ///
    /// If a build waits for the write lock or holds it, blocks until that build ends. Under [`Drain::Wait`] also blocks
    /// until the readers of the old value have left, at most for the time given there. A [`ReaderArc`] that the caller
    /// holds itself counts as such a reader. If the calling thread holds a [`ReadGuard`] of the old value, or of one
    /// replaced before, it does not wait; the value goes to the cell's own thread.
    ///
    /// # Panics
    ///
    /// While a build waits for the write lock or holds it, panics if it is called from inside a build of the cell, or
    /// by a thread that holds a [`ReadGuard`] of the cell: it would wait for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert_eq!(*cell.set(7), 7);
    /// ```
    #[track_caller]
    pub fn set(&self, value: T) -> ReaderArc<T> {
        self.publish_ahead(value, Term::POLICY, true)
    }

    /// Publishes `value` with a time to live of its own instead of the policy's, and returns it.
    ///
    /// Otherwise like [`set`](SyncReaderCell::set), which describes when it blocks.
    ///
    /// # Panics
    ///
    /// While a build waits for the write lock or holds it, panics if it is called from inside a build of the cell, or
    /// by a thread that holds a [`ReadGuard`] of the cell: it would wait for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set_for(7, Duration::from_secs(3600));
    /// assert!(cell.snapshot().unwrap().fresh_for > Duration::from_secs(60));
    /// ```
    #[track_caller]
    pub fn set_for(&self, value: T, ttl: Duration) -> ReaderArc<T> {
        self.publish_ahead(value, Term::of(Some(ttl)), true)
    }

    /// Publishes a value that was made `age` ago, for a warm start. Its age decides whether it is fresh, stale or
    /// expired.
    ///
    /// Unlike [`set`](SyncReaderCell::set), it does not displace a build that runs, since the result of that build is
    /// newer. It blocks like `set`.
    ///
    /// # Panics
    ///
    /// While a build waits for the write lock or holds it, panics if it is called from inside a build of the cell, or
    /// by a thread that holds a [`ReadGuard`] of the cell: it would wait for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Freshness, SyncReaderCell};
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.restore(7, Duration::from_secs(61));
    /// assert_eq!(cell.freshness(), Freshness::Stale);
    /// ```
    #[track_caller]
    pub fn restore(&self, value: T, age: Duration) -> ReaderArc<T> {
        self.publish_ahead(value, Term { age: nanos(age), ..Term::POLICY }, false)
    }

    /// Publishes ahead of any build, but not into a cell whose value is being withheld: waits for the end of that build.
    #[track_caller]
    fn publish_ahead(&self, value: T, term: Term, displaces: bool) -> ReaderArc<T> {
        let machine = self.machine();
        let value = Arc::new(Tracked::new(value, &self.retirement));
        let mut leftover = loop {
            match machine.set(Arc::clone(&value), term, displaces, &*self.retirement) {
                Ok(leftover) => break leftover,
                Err(attempt) => {
                    assert!(
                        !is_building(machine),
                        "set was called from inside the build of the same cell, while the write lock is held or asked for, \
                         and would wait for the end of that; return the value from the build instead"
                    );
                    assert!(
                        !self.has_guard_of_this_thread(),
                        "set would wait for itself: this thread holds a ReadGuard of the same cell, and a build that \
                         has asked for the write lock waits for it; drop it before"
                    );
                    attempt.wait(&machine.clock, FOREVER);
                }
            }
        };
        self.retirement.drain(leftover.replaced.take(), &machine.clock);
        // May panic, so last.
        drop(leftover);
        ReaderArc(value)
    }

    /// Declares the value stale now. The next caller rebuilds it; meanwhile it is served.
    ///
    /// The result of a build that runs now is published, but as already stale. If a build has the write lock and fails,
    /// the value is put back as stale. A retry pause goes on.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set(1);
    /// cell.invalidate();
    /// assert_eq!(*cell.get_or_refresh(|| 2), 2);
    /// ```
    pub fn invalidate(&self) {
        self.cell.invalidate();
    }

    /// Declares the value stale if the cell still holds `seen` and `seen` has not been declared stale. Returns whether
    /// it did.
    ///
    /// Use it when a caller finds out, perhaps late, that the value it used is wrong. Otherwise it is like
    /// [`invalidate`](SyncReaderCell::invalidate).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// let seen = cell.set(1);
    /// assert!(cell.invalidate_if_current(&seen));
    /// assert!(!cell.invalidate_if_current(&seen));
    /// ```
    pub fn invalidate_if_current(&self, seen: &ReaderArc<T>) -> bool {
        // One that was never published may be at the address of the value that a build has taken out.
        seen.0.number() != 0 && self.machine().invalidate_if_current(&seen.0)
    }

    /// Takes the value away now and retires it. The next callers wait for a new one.
    ///
    /// The result of a build that runs now is not published; only its own caller gets it. If a build has asked for the
    /// write lock, the old value is retired instead of being put back.
    ///
    /// # Blocking
    ///
    /// Under [`Drain::Wait`] blocks until the readers of the value have left, as [`set`](SyncReaderCell::set) does. It
    /// never waits for a build.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |old: u32| assert_eq!(old, 7));
    /// cell.set(7);
    /// cell.clear();
    /// cell.synchronize();
    /// assert_eq!(cell.retired(), 0);
    /// ```
    pub fn clear(&self) {
        let cleared = self.machine().clear(&*self.retirement);
        self.retirement.drain(cleared, &self.machine().clock);
    }

    /// Gives up the build that runs now: it can no longer be published. Returns whether it gave one up.
    ///
    /// The build loses its lease, so the next caller builds without waiting for it. Its caller gets what the cell
    /// serves when its build ends, or else what it has built. A build that has asked for the write lock, or that waits
    /// for readers of the value it has replaced, cannot be revoked; then this returns `false`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert!(!cell.revoke()); // no build runs
    /// cell.get_or_refresh(|| {
    ///     assert!(cell.revoke());
    ///     7
    /// });
    /// assert!(cell.get().is_none()); // it was not published
    /// ```
    pub fn revoke(&self) -> bool {
        self.machine().revoke()
    }

    /// Empties the cell: value, failures, retry pause and statistics are gone. The value is retired.
    ///
    /// The result of a build that runs now is not published. The generation goes on counting. Use it in tests of code
    /// with statics.
    ///
    /// # Blocking
    ///
    /// Under [`Drain::Wait`] blocks until the readers of the value have left, as [`set`](SyncReaderCell::set) does. It
    /// never waits for a build.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Stats, SyncReaderCell};
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.get_or_refresh(|| 7);
    /// cell.reset();
    /// assert!(cell.get().is_none());
    /// assert_eq!(cell.stats(), Stats::default());
    /// ```
    pub fn reset(&self) {
        let cleared = self.machine().reset(&*self.retirement);
        self.retirement.drain(cleared, &self.machine().clock);
    }
}

/// Waiting for the finalizer.
impl<T: Send + Sync + 'static, C: Clock> SyncReaderCell<T, C> {
    /// Waits until every value that was retired before this call is finalised.
    ///
    /// # Panics
    ///
    /// Panics if it would wait for itself: it was called from inside the finalizer, by a thread that holds a
    /// [`ReadGuard`] of a value that has been replaced, or by a build that holds the write lock and whose old value has
    /// been cleared.
    ///
    /// # Deadlocks
    ///
    /// A thread that holds a [`ReaderArc`] of such a value waits for itself. The cell cannot detect this.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set(1);
    /// cell.set(2);
    /// cell.synchronize();
    /// assert_eq!(cell.retired(), 0);
    /// ```
    #[track_caller]
    pub fn synchronize(&self) {
        if let Err(reason) = self.retirement.synchronize(&self.machine().clock, FOREVER) {
            panic!("synchronize would wait for itself: {reason}");
        }
    }

    /// Waits until every value that was retired before this call is finalised, at most for `wait` on the cell's clock.
    ///
    /// # Errors
    ///
    /// [`DrainTimeout`] if some readers have not left in time or a finalizer has not ended, or if the call would wait for itself
    /// (see [`synchronize`](SyncReaderCell::synchronize)).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// let reader = cell.set(1);
    /// cell.set(2);
    /// let timeout = cell.synchronize_timeout(Duration::from_millis(1)).unwrap_err();
    /// assert_eq!(timeout.readers, 1);
    /// drop(reader);
    /// assert!(cell.synchronize_timeout(Duration::MAX).is_ok());
    /// ```
    pub fn synchronize_timeout(&self, wait: Duration) -> Result<(), DrainTimeout> {
        let clock = &self.machine().clock;
        match self.retirement.synchronize(clock, deadline(clock, wait)) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(self.retirement.drain_timeout()),
        }
    }
}

/// State and statistics.
impl<T, C> SyncReaderCell<T, C> {
    /// Returns the number of publications so far. 0 means that nothing has been published yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert_eq!(cell.generation(), 0);
    /// cell.set(1);
    /// assert_eq!(cell.generation(), 1);
    /// ```
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.cell.generation()
    }

    /// Returns whether the lease is held: by a build that runs, or by one that has ended and waits for the readers of
    /// the value it has replaced.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: bool| {});
    /// assert!(*cell.get_or_refresh(|| cell.is_refreshing()));
    /// assert!(!cell.is_refreshing());
    /// ```
    #[must_use]
    pub fn is_refreshing(&self) -> bool {
        self.cell.is_refreshing()
    }

    /// Returns counters of what the cell has done since it was made or [`reset`](SyncReaderCell::reset).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.get_or_refresh(|| 7);
    /// assert_eq!((cell.stats().builds, cell.stats().failed), (1, 0));
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.cell.stats()
    }

    /// Returns the policy that the cell was made with.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Policy, SyncReaderCell};
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert_eq!(cell.policy(), Policy::ttl(Duration::from_secs(60)));
    /// ```
    pub const fn policy(&self) -> Policy {
        self.cell.policy()
    }

    /// Returns the error of the latest build, until a build succeeds or a value is set.
    ///
    /// A panic shows as "the build panicked: ...".
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.try_get_or_refresh(|| Err("no such file")).unwrap_err();
    /// assert_eq!(cell.last_error().unwrap().to_string(), "no such file");
    /// ```
    #[must_use]
    pub fn last_error(&self) -> Option<SharedError> {
        self.cell.last_error()
    }

    /// Returns the number of outstanding [`ReaderArc`]s, of the current value and of retired ones.
    ///
    /// A [`ReadGuard`] keeps a value from being finalised too, but is counted only once that value has been replaced.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// let reader = cell.set(1);
    /// let clone = reader.clone();
    /// assert_eq!(cell.readers(), 2);
    /// ```
    #[must_use]
    pub fn readers(&self) -> usize {
        self.retirement.readers()
    }

    /// Returns the number of replaced values whose finalizer has not finished.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// let reader = cell.set(1);
    /// cell.set(2);
    /// assert_eq!(cell.retired(), 1);
    /// drop(reader);
    /// cell.synchronize();
    /// assert_eq!(cell.retired(), 0);
    /// ```
    #[must_use]
    pub fn retired(&self) -> usize {
        self.retirement.retired()
    }
}

/// Reads from async code (feature `async`).
///
/// The futures run on any executor. Under [`Drain::Wait`] the elected task is suspended until the readers of the old
/// value have left. If it is dropped meanwhile, the value goes to the cell's own thread.
///
/// A build that needs the write lock ([`Request::get_with_writer`]) blocks until the readers have left. Run it on a
/// thread for blocking work. Under [`Drain::Wait`] do the same with a finalizer that takes long.
///
/// # Cancel safety
///
/// A future can be dropped at any point. If its caller was elected, the build is dropped and the lease is given back.
/// Any other caller gives up its place among the waiters.
///
/// # Deadlocks
///
/// A task that holds a [`ReaderArc`] or a [`ReadGuard`] while it waits for a build that needs the write lock waits for
/// itself. The cell does not detect this for a task, since the guard may belong to another task of the thread.
#[cfg(feature = "async")]
impl<T: Send + Sync + 'static, C: Clock> SyncReaderCell<T, C> {
    /// Returns the value, rebuilding it with an async build if it is out of date.
    ///
    /// Like [`get_or_refresh`](SyncReaderCell::get_or_refresh), but suspends the task instead of blocking the thread.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics, or if it calls this method on the same cell while there is no value to serve. The
    /// second is detected only if the build itself makes the call.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert_eq!(*cell.get_or_refresh_async(|| async { 7 }).await, 7);
    /// # });
    /// ```
    #[track_caller]
    pub fn get_or_refresh_async<F, Fut>(
        &self,
        build: F,
    ) -> impl Future<Output = ReaderArc<T>> + use<'_, T, C, F, Fut>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        let called = Location::caller();
        async move {
            if let Some(value) = self.machine().serve() {
                return ReaderArc(value);
            }
            let search = Search::plain(Handle::Borrowed(self), Caller::Infallible);
            let value = search.get_async("get_or_refresh_async", called, |held| held.build_async(build));
            ReaderArc(value.await)
        }
    }

    /// Returns the value, rebuilding it with an async build that may fail if it is out of date.
    ///
    /// Like [`try_get_or_refresh`](SyncReaderCell::try_get_or_refresh), but suspends the task instead of blocking the
    /// thread.
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: the caller's own build failed, or the build that it waited for, or the latest build
    ///   while a retry pause runs; and the policy allows no value to be served instead.
    /// * [`RefreshError::Reentrant`]: the call came from inside the build of the same cell, while there was no value to
    ///   serve.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert!(cell.try_get_or_refresh_async(|| async { Err("no such file") }).await.is_err());
    /// # });
    /// ```
    pub async fn try_get_or_refresh_async<E, F, Fut>(&self, build: F) -> Result<ReaderArc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        if let Some(value) = self.machine().serve() {
            return Ok(ReaderArc(value));
        }
        let search = Search::plain(Handle::Borrowed(self), Caller::Fallible);
        search.try_get_async(|held| held.try_build_async(build)).await.map(ReaderArc)
    }

    /// Waits until every value that was retired before this call is finalised, suspending the task instead of blocking
    /// the thread.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any point; nothing is lost.
    ///
    /// # Deadlocks
    ///
    /// A task that holds a [`ReaderArc`] or a [`ReadGuard`] of a value that has been replaced waits for itself. So does
    /// a finalizer that blocks on this. Unlike [`synchronize`](SyncReaderCell::synchronize), this method does not
    /// detect it.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set(1);
    /// cell.set(2);
    /// cell.synchronize_async().await;
    /// assert_eq!(cell.retired(), 0);
    /// # });
    /// ```
    pub async fn synchronize_async(&self) {
        self.retirement.synchronize_async(&self.machine().clock).await;
    }
}

impl<T, C> Drop for SyncReaderCell<T, C> {
    fn drop(&mut self) {
        self.retirement.close();
    }
}

impl<T, C> fmt::Debug for SyncReaderCell<T, C> {
    /// Shows the state, not the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncReaderCell")
            .field("name", &self.cell.machine.name.unwrap_or_default())
            .field("generation", &self.generation())
            .field("is_refreshing", &self.is_refreshing())
            .field("drain", &self.retirement.drain)
            .finish_non_exhaustive()
    }
}
