//! `SyncReaderCell`: a `DogpileCell` whose replaced values are finalised when their last reader has left.
//!
//! Elections, the fence, waiting and errors are the inner cell's. What comes on top:
//!
//! ```text
//! held      which guards a thread holds
//! drain     what becomes of a replaced value, and who waits for it     G11
//! reader    ReaderArc, ReadGuard
//! writer    builds that need the old value for themselves              G12
//! ```

mod drain;
mod reader;
mod writer;

pub use drain::{Drain, DrainTimeout};
pub use reader::{ReadGuard, ReaderArc};
pub use writer::{WriteLock, Writer};

use std::fmt;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use crate::cell::{
    Awaits, Caller, Demand, DogpileCell, Found, Handle, Held, Kind, Machine, Made, NotNow, Publishes,
    Request, Search, Setting, Slot, Snapshot, TakesBuild, Ttl,
};
use crate::clock::{Clock, FOREVER, SystemClock, deadline, nanos};
use crate::error::{BoxError, RefreshError, SharedError};
use crate::inside::is_building;
use crate::policy::{Freshness, Policy};
use crate::stats::Stats;
use crate::sync::Arc;

#[cfg(feature = "async")]
use {crate::cell::Publishing, std::panic::Location};

use drain::{Room, Tracked};

/// A [`DogpileCell`] that hands each replaced value to a finalizer, when its last reader has left.
///
/// For values that stand for something outside: a data file to be deleted, a mapping to be unmapped, a connection to
/// be closed, a buffer to be used again. The model is `SyncReaderDogpile` of Python's dogpile; the
/// [guide](crate::guide::sync_reader) compares the two.
///
/// # What readers observe
///
/// As with [`DogpileCell`]. Choosing the value and registering as its reader are one step: no reader ever gets a value
/// that was retired before it came, or sees one that has been finalised.
///
/// # The finalizer
///
/// It gets every replaced value, by value, exactly once, after its last reader has left: in the order in which the
/// values were replaced, and never two at a time, even if the cell is dropped first. It runs without a lock on a thread of
/// the cell's own, `dogpile-finalizer`, which is started when it is needed and ends when nothing is left to finalise; or,
/// with [`Drain::Wait`], in the caller that waits for the readers. (If the thread cannot be started, it runs in the caller that
/// replaces the value, or in the last reader.)
///
/// A value that the fence kept out of the cell (see [`DogpileCell::clear`]) is finalised too, when the caller that
/// built it has let go of it; it has no place in the order.
///
/// The value that is in the cell when the cell is dropped is dropped, not finalised: a file that is current must
/// survive a restart.
///
/// If the finalizer panics, the panic hook reports it and the next value has its turn. A finalizer may look at the
/// cell but must not wait for it: a build that has asked for the write lock waits for the finalizer.
///
/// # Deadlocks
///
/// A build that has asked for the write lock waits for all readers, and new readers wait for that build. So a thread
/// that holds a [`ReaderArc`] must not call what may wait for a build
/// ([`get_or_refresh`](SyncReaderCell::get_or_refresh), [`set`](SyncReaderCell::set) and the like) of a cell whose
/// builds take the write lock. `handle = cell.get_or_refresh(build)` in a loop is such a call: the old handle lives until the
/// new one is there. Write `handle = cell.exchange(handle, build)` instead, which gives the old one up first. With a
/// [`ReadGuard`], which stays on its thread, the cell notices: the call panics, or
/// returns [`RefreshError::Reentrant`]. [`Drain::Wait`] has deadlocks of its own.
///
/// A finalizer must not wait for a thread that may drop the last reference to the cell: dropping it waits for the finalizer.
///
/// # Dropping
///
/// Values that have been replaced are still finalised after the cell is gone. Dropping the cell waits for the finalizers
/// whose turn has come, not for readers. (Dropped on a cell's own thread, by a finalizer, or on a
/// [`Refresher`](crate::Refresher)'s, by its build, it does not wait.)
///
/// # Examples
///
/// A new file beside the old one, which is deleted when nobody reads it any more:
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
    room: Arc<Room<T>>,
    drain: Drain,
}

// As for `DogpileCell`; and a finalizer that panics is not seen again in a state of its own making, since it is `Fn`.
impl<T: RefUnwindSafe, C: UnwindSafe> UnwindSafe for SyncReaderCell<T, C> {}
impl<T: RefUnwindSafe, C: RefUnwindSafe> RefUnwindSafe for SyncReaderCell<T, C> {}

/// Making one.
impl<T: Send + Sync + 'static> SyncReaderCell<T> {
    /// An empty cell whose values are fresh for `ttl` after their publication, and are finalised in the background.
    #[must_use]
    pub fn new(ttl: Duration, finalizer: impl Fn(T) + Send + Sync + 'static) -> Self {
        Self::with_policy(Policy::ttl(ttl), Drain::default(), finalizer)
    }

    /// An empty cell with a policy, and a choice of who waits for the readers.
    #[must_use]
    pub fn with_policy(policy: Policy, drain: Drain, finalizer: impl Fn(T) + Send + Sync + 'static) -> Self {
        Self::with_clock(policy, SystemClock, drain, finalizer)
    }
}

impl<T: Send + Sync + 'static, C> SyncReaderCell<T, C> {
    /// An empty cell with a policy, a clock, and a choice of who waits for the readers.
    #[must_use]
    pub fn with_clock(
        policy: Policy,
        clock: C,
        drain: Drain,
        finalizer: impl Fn(T) + Send + Sync + 'static,
    ) -> Self {
        Self { cell: DogpileCell::with_clock(policy, clock), room: Room::new(finalizer), drain }
    }
}

impl<T, C> SyncReaderCell<T, C> {
    /// As [`DogpileCell::named`].
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.room.set_name(name);
        self.cell.machine_mut().name = Some(name);
        self
    }
}

impl<T: Send + Sync + 'static, C: Clock> Kind for SyncReaderCell<T, C> {
    type Value = T;
    type Stored = Tracked<T>;
    type Shared = ReaderArc<T>;
    type Clock = C;

    #[inline]
    fn machine(&self) -> &Machine<Tracked<T>, C> {
        self.cell.machine()
    }

    fn share(stored: Arc<Tracked<T>>) -> ReaderArc<T> {
        ReaderArc(stored)
    }

    /// Whether waiting would deadlock on a guard that this thread holds.
    fn is_awaited(&self, awaits: Awaits) -> bool {
        match awaits {
            Awaits::Nobody => false,
            Awaits::Readers => self.room.is_read_at_all_by_this_thread(),
            Awaits::ReadersOfReplaced => {
                self.room.wait_no_more_for_this_thread();
                false
            }
        }
    }
}

impl<T: Send + Sync + 'static, C: Clock> Publishes for SyncReaderCell<T, C> {
    fn previous(held: &mut Held<'_, Self>) -> Option<Arc<Tracked<T>>> {
        held.take_previous()
    }

    /// It would count as a reader.
    fn forget_previous(held: &mut Held<'_, Self>) {
        drop(held.take_previous());
    }

    fn keep_previous(_: &Held<'_, Self>) -> Option<Arc<Tracked<T>>> {
        None
    }

    fn publish(held: Held<'_, Self>, made: Made<Self>) -> Arc<Tracked<T>> {
        // Until the finalizer has run too, which must not wait for this build either.
        let _inside = held.inside();
        match made {
            Made::New(value, ttl) => Writer::new(held).publish(value, ttl),
            Made::NotModified(value) => held.publish_again(value, Ttl::Policy),
        }
    }

    #[cfg(feature = "async")]
    fn publish_async(held: Held<'_, Self>, made: Made<Self>) -> Publishing<'_, Tracked<T>> {
        match made {
            Made::New(value, ttl) if matches!(held.handle().drain, Drain::Wait(_)) => {
                Publishing::Draining(Box::pin(Writer::new(held).publish_async(value, ttl)))
            }
            made => Publishing::Done(Self::publish(held, made)),
        }
    }
}

impl<T: Send + Sync + 'static, C: Clock> TakesBuild for SyncReaderCell<T, C> {}

/// Reads that may build.
impl<T: Send + Sync + 'static, C: Clock> SyncReaderCell<T, C> {
    /// As [`DogpileCell::get_or_refresh`]: all but the one caller that builds get the old value.
    ///
    /// # Blocking
    ///
    /// While another caller builds, if there is nothing that may be served. And the caller that has built waits for the
    /// readers of the old value, if the cell's [`Drain`] says so.
    ///
    /// # Panics
    ///
    /// If `build` panics, or if it calls this on its own cell while there is nothing to serve. And if this thread holds a
    /// [`ReadGuard`] of the cell, and would have to wait for a build that waits for the write lock.
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
            None => self.refresh(build),
        }
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn refresh(&self, build: impl FnOnce() -> T) -> ReaderArc<T> {
        let mut search = Search::new(Handle::Borrowed(self), Demand::VALUE, Caller::Infallible);
        ReaderArc(match search.run() {
            Ok(Found::Served(value)) => value,
            Ok(Found::Elected(held)) => held.build(build),
            Err(error) => search.cannot("get_or_refresh", &error),
        })
    }

    /// As [`DogpileCell::try_get_or_refresh`].
    ///
    /// # Errors
    ///
    /// As [`DogpileCell::try_get_or_refresh`]. [`RefreshError::Reentrant`] also where
    /// [`get_or_refresh`](SyncReaderCell::get_or_refresh) panics because of a [`ReadGuard`].
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
            None => self.try_refresh(build),
        }
    }

    #[cold]
    #[inline(never)]
    fn try_refresh<E: Into<BoxError>>(
        &self,
        build: impl FnOnce() -> Result<T, E>,
    ) -> Result<ReaderArc<T>, RefreshError> {
        let mut search = Search::new(Handle::Borrowed(self), Demand::ANY, Caller::Fallible);
        match search.run()? {
            Found::Served(value) => Ok(value),
            Found::Elected(held) => held.try_build(build).or_else(|error| search.instead_of(error)),
        }
        .map(ReaderArc)
    }

    /// As [`get_or_refresh`](SyncReaderCell::get_or_refresh), but touches no reference count if there is a value that
    /// is fresh, or that is stale while a build or a retry pause runs.
    ///
    /// # Panics
    ///
    /// As [`get_or_refresh`](SyncReaderCell::get_or_refresh).
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
            None => self.refresh(build).into_guard(),
        }
    }

    /// Gives `old` up, and returns the value as [`get_or_refresh`](SyncReaderCell::get_or_refresh) does.
    ///
    /// For a handle that is kept: `handle = cell.exchange(handle, build)`. With
    /// `handle = cell.get_or_refresh(build)` the thread would still be a reader of the old value while it waits, or builds:
    /// for ever, if that build waits for the readers.
    ///
    /// # Panics
    ///
    /// As [`get_or_refresh`](SyncReaderCell::get_or_refresh).
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

    /// A read with conditions. See [`Request`].
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

    /// As [`request`](SyncReaderCell::request), for a cell in an [`Arc`].
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

    #[inline]
    fn machine(&self) -> &Machine<Tracked<T>, C> {
        self.cell.machine()
    }
}

impl<T: Send + Sync + 'static, C: Clock, S> Request<'_, T, C, SyncReaderCell<T, C>, S> {
    /// Gives `old` up before it looks: for a handle that is kept. See [`SyncReaderCell::exchange`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// let mut handle = cell.get_or_refresh(|| 1);
    /// handle = cell.request().no_cache().exchange(handle).get(|| 2);
    /// assert_eq!(*handle, 2);
    /// ```
    pub fn exchange(self, old: ReaderArc<T>) -> Self {
        drop(old);
        self
    }
}

/// Builds that may ask for the write lock.
impl<T: Send + Sync + 'static, C: Clock> Request<'_, T, C, SyncReaderCell<T, C>> {
    /// As [`get`](Request::get), with a build that may ask for the write lock: for
    /// replacement in place (the same file name, one memory budget), where old and new cannot coexist.
    ///
    /// # Panics
    ///
    /// As [`SyncReaderCell::get_or_refresh`]. If the build panics under the write lock, the old value is put back.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// // One buffer, which must not be allocated twice.
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_empty: Vec<u32>| {});
    /// for round in 1..=2 {
    ///     let data = cell.request().no_cache().get_with_writer(|writer| {
    ///         let fresh = round * 100; // slow; stale readers go on reading
    ///         let mut lock = writer.acquire_write_lock(); // waits for them, holds new ones back
    ///         let mut buffer = lock.old().map(std::mem::take).unwrap_or_default();
    ///         buffer.clear();
    ///         buffer.push(fresh);
    ///         buffer
    ///     });
    ///     assert_eq!(*data, [round * 100]);
    /// }
    /// ```
    #[track_caller]
    pub fn get_with_writer<F>(self, build: F) -> ReaderArc<T>
    where
        F: FnOnce(&mut Writer<'_, T, C>) -> T,
    {
        let (mut search, _) = self.begin(Caller::Infallible);
        ReaderArc(match search.run() {
            Ok(Found::Served(value)) => value,
            Ok(Found::Elected(held)) => {
                let _inside = held.inside();
                let (value, writer) = write(held, build);
                writer.publish(value, Ttl::Policy)
            }
            Err(error) => search.cannot("get_with_writer", &error),
        })
    }

    /// As [`try_get`](Request::try_get), with a build that may ask for the write lock.
    ///
    /// # Errors
    ///
    /// As [`try_get`](Request::try_get). If the build fails under the write lock, the old value is put back.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set(1);
    /// let result = cell.request().no_cache().try_get_with_writer(|writer| {
    ///     let mut lock = writer.acquire_write_lock();
    ///     assert_eq!(lock.old(), Some(&mut 1));
    ///     Err(io::Error::other("the disk is full"))
    /// });
    /// assert_eq!(result.unwrap_err().to_string(), "the disk is full");
    /// assert_eq!(*cell.get().unwrap(), 1);
    /// ```
    pub fn try_get_with_writer<E, F>(self, build: F) -> Result<ReaderArc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&mut Writer<'_, T, C>) -> Result<T, E>,
    {
        let (mut search, _) = self.begin(Caller::Fallible);
        let held = match search.run()? {
            Found::Served(value) => return Ok(ReaderArc(value)),
            Found::Elected(held) => held,
        };
        // Until the finalizer has run too, which must not wait for this build either.
        let _inside = held.inside();
        let (result, writer) = write(held, build);
        match result {
            Ok(value) => Ok(writer.publish(value, Ttl::Policy)),
            Err(error) => Err(writer.fail(SharedError::new(error))),
        }
        .or_else(|error| search.instead_of(error))
        .map(ReaderArc)
    }
}

/// Runs a build that is given a writer. A panic is noted, and goes on.
fn write<T: Send + Sync + 'static, C: Clock, R>(
    mut held: Held<'_, SyncReaderCell<T, C>>,
    build: impl FnOnce(&mut Writer<'_, T, C>) -> R,
) -> (R, Writer<'_, T, C>) {
    Publishes::forget_previous(&mut held);
    let mut writer = Writer::new(held);
    match catch_unwind(AssertUnwindSafe(|| build(&mut writer))) {
        Ok(result) => (result, writer),
        Err(panic) => {
            writer.note_panic(&*panic);
            resume_unwind(panic)
        }
    }
}

/// Reads that never build and never block.
impl<T: Send + Sync + 'static, C: Clock> SyncReaderCell<T, C> {
    /// What may be served now, fresh or stale. Also `None` while a build waits for the write lock or holds it.
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

    /// As [`get`](SyncReaderCell::get), but touches no reference count.
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

    /// The value with its generation, its age and its freshness. See [`DogpileCell::snapshot`].
    ///
    /// It is a reader as long as it lives.
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

    /// What a read would find now.
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
}

impl<T, C> SyncReaderCell<T, C> {
    /// The number of publications so far.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.cell.generation()
    }

    /// Whether a build runs that holds the lease, or has ended and waits for the readers of what it has replaced.
    #[must_use]
    pub fn is_refreshing(&self) -> bool {
        self.cell.is_refreshing()
    }

    /// What the cell has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.cell.stats()
    }

    /// The policy that the cell was made with.
    pub const fn policy(&self) -> Policy {
        self.cell.policy()
    }

    /// Why the latest build failed: until one succeeds, or a value is set. See [`DogpileCell::last_error`].
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

    /// Outstanding [`ReaderArc`]s, of the current and of retired values.
    ///
    /// [`ReadGuard`]s keep a value from being finalised too, but are only counted once it has been replaced.
    #[must_use]
    pub fn readers(&self) -> usize {
        self.room.readers()
    }

    /// Replaced values whose finalizer has not finished.
    #[must_use]
    pub fn retired(&self) -> usize {
        self.room.retired()
    }
}

/// Waiting for the finalizer.
impl<T: Send + Sync + 'static, C: Clock> SyncReaderCell<T, C> {
    /// Waits until everything that was retired before this call is finalised.
    ///
    /// # Panics
    ///
    /// If it would wait for itself: called from inside the finalizer, by a thread that holds a [`ReadGuard`] of a value that
    /// has been replaced, or by a build under the write lock whose old value has been cleared.
    ///
    /// # Deadlocks
    ///
    /// A thread that holds a [`ReaderArc`] of such a value waits for itself, and the cell cannot notice.
    #[track_caller]
    pub fn synchronize(&self) {
        if let Err(reason) = self.room.synchronize(&self.machine().clock, FOREVER) {
            panic!("synchronize would wait for itself: {reason}");
        }
    }

    /// As [`synchronize`](SyncReaderCell::synchronize), but waits at most for `wait`, on the cell's clock.
    ///
    /// # Errors
    ///
    /// Some readers have not left in time, or it would have waited for itself.
    pub fn synchronize_timeout(&self, wait: Duration) -> Result<(), DrainTimeout> {
        let clock = &self.machine().clock;
        match self.room.synchronize(clock, deadline(clock, wait)) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(self.room.drain_timeout()),
        }
    }
}

/// Writes.
impl<T: Send + Sync + 'static, C: Clock> SyncReaderCell<T, C> {
    /// As [`DogpileCell::set`]. The value that it replaces is retired, and drained as the cell's [`Drain`] says.
    ///
    /// # Blocking
    ///
    /// If a build waits for the write lock or holds it: until that build ends. And for the readers of the old value, if the
    /// cell's [`Drain`] says so. A [`ReaderArc`] of the caller's own is waited for like any other. If the calling thread itself
    /// holds a [`ReadGuard`] of the old value, or of one replaced before, it does not wait; the value goes to the background.
    ///
    /// # Panics
    ///
    /// While a build waits for the write lock or holds it: if this is called from inside a build of the cell, or by
    /// a thread that holds a [`ReadGuard`] of the cell. It would wait for itself.
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
        self.set_setting(value, Ttl::Policy, None)
    }

    /// As [`set`](SyncReaderCell::set), with a time to live of its own instead of the policy's.
    ///
    /// # Panics
    ///
    /// As [`set`](SyncReaderCell::set).
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
        self.set_setting(value, Ttl::Own(nanos(ttl)), None)
    }

    /// Publishes a value that was made `age` ago, for a warm start. See [`DogpileCell::restore`].
    ///
    /// # Panics
    ///
    /// As [`set`](SyncReaderCell::set).
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
        self.set_setting(value, Ttl::Policy, Some(nanos(age)))
    }

    /// Publishes ahead of any build, but not into a cell whose value is being withheld: waits for the end of that build.
    #[track_caller]
    fn set_setting(&self, value: T, ttl: Ttl, age: Option<u64>) -> ReaderArc<T> {
        let machine = self.machine();
        let value = Arc::new(Tracked::new(value, &self.room));
        let note = |new: &Arc<_>, slot: &Slot<_>| self.room.published(new, slot.load().as_ref(), false);
        let mut setting = Setting { value: Arc::clone(&value), ttl, age };
        let mut leftover = loop {
            match machine.set(setting, note) {
                Ok(leftover) => break leftover,
                Err(NotNow { setting: returned, wait }) => {
                    assert!(
                        !is_building(machine),
                        "set was called from inside the build of the same cell, while the write lock is held or asked for, \
                         and would wait for the end of that; return the value from the build instead"
                    );
                    assert!(
                        !self.is_awaited(wait.awaits),
                        "set would wait for itself: this thread holds a ReadGuard of the same cell, and a build that \
                         has asked for the write lock waits for it; drop it before"
                    );
                    setting = returned;
                    wait.attempt.wait(&machine.clock, FOREVER);
                }
            }
        };
        self.room.let_go(leftover.replaced.take(), None, self.drain, &machine.clock);
        // May panic, so last.
        drop(leftover);
        ReaderArc(value)
    }

    /// Declares the value stale now. See [`DogpileCell::invalidate`].
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

    /// As [`invalidate`](SyncReaderCell::invalidate), but only if the cell still holds `seen`, and it has not been declared
    /// stale already. See [`DogpileCell::invalidate_if_current`].
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
        self.machine().invalidate_if_current(&seen.0)
    }

    /// Takes the value away now. It is retired, and drained as the cell's [`Drain`] says. See [`DogpileCell::clear`].
    ///
    /// If a build has asked for the write lock, the old value is retired instead of being put back.
    ///
    /// # Blocking
    ///
    /// For the readers of the value, as [`set`](SyncReaderCell::set), but never for a build.
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
        let cleared = self.machine().clear(|old| self.room.cleared(old));
        self.room.let_go(cleared, None, self.drain, &self.machine().clock);
    }

    /// The build that runs now can no longer be published. See [`DogpileCell::revoke`].
    ///
    /// A build that has asked for the write lock cannot be revoked: `false`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// assert!(!cell.revoke()); // no build runs
    /// ```
    pub fn revoke(&self) -> bool {
        self.machine().revoke()
    }

    /// Empties the cell, as [`clear`](SyncReaderCell::clear) does, and forgets failures and statistics. See
    /// [`DogpileCell::reset`].
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
        let cleared = self.machine().reset(|old| self.room.cleared(old));
        self.room.let_go(cleared, None, self.drain, &self.machine().clock);
    }
}

/// Reads from async code (feature `async`). As those of [`DogpileCell`], with the old value's drain
/// awaited, not blocked on: a task that is elected under [`Drain::Wait`] is suspended until the
/// readers have left. If it is dropped meanwhile, the drain goes on in the background.
///
/// A build that needs the write lock ([`Request::get_with_writer`]) blocks until the readers have left: it belongs on a
/// thread for blocking work. So does a finalizer that takes long, under [`Drain::Wait`].
///
/// # Deadlocks
///
/// A task that holds a [`ReaderArc`] or a [`ReadGuard`] while it waits for a build that needs the write
/// lock waits for itself. (A thread gets a panic or an error where it holds a `ReadGuard`; the guard may be that of
/// another task of the thread.)
#[cfg(feature = "async")]
impl<T: Send + Sync + 'static, C: Clock> SyncReaderCell<T, C> {
    /// As [`DogpileCell::get_or_refresh_async`].
    ///
    /// # Panics
    ///
    /// As [`DogpileCell::get_or_refresh_async`].
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
            let mut search = Search::new(Handle::Borrowed(self), Demand::VALUE, Caller::Infallible);
            let building = match search.run_async().await {
                Ok(Found::Served(value)) => return ReaderArc(value),
                Ok(Found::Elected(held)) => held.build_async(build),
                Err(error) => search.cannot_async("get_or_refresh_async", called, &error),
            };
            ReaderArc(building.await)
        }
    }

    /// As [`DogpileCell::try_get_or_refresh_async`].
    ///
    /// # Errors
    ///
    /// As [`DogpileCell::try_get_or_refresh_async`].
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
        let mut search = Search::new(Handle::Borrowed(self), Demand::ANY, Caller::Fallible);
        let building = match search.run_async().await? {
            Found::Served(value) => return Ok(ReaderArc(value)),
            Found::Elected(held) => held.try_build_async(build),
        };
        building.await.or_else(|error| search.instead_of(error)).map(ReaderArc)
    }

    /// As [`synchronize`](SyncReaderCell::synchronize), for a task.
    ///
    /// # Deadlocks
    ///
    /// A task that holds a [`ReaderArc`] or a [`ReadGuard`] of a value that has been replaced waits
    /// for itself; so does a finalizer that blocks on this. Unlike [`synchronize`](SyncReaderCell::synchronize) it
    /// does not notice.
    pub async fn synchronize_async(&self) {
        self.room.synchronize_async(&self.machine().clock).await;
    }
}

impl<T, C> Drop for SyncReaderCell<T, C> {
    fn drop(&mut self) {
        self.room.close();
    }
}

impl<T, C> fmt::Debug for SyncReaderCell<T, C> {
    /// Shows the state, not the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncReaderCell")
            .field("name", &self.cell.machine().name.unwrap_or_default())
            .field("generation", &self.generation())
            .field("is_refreshing", &self.is_refreshing())
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}
