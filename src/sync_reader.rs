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
mod held;
mod reader;
mod writer;

pub use drain::{Drain, DrainTimeout};
pub use reader::{ReadGuard, ReaderArc};
pub use writer::{WriteLock, Writer};

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Duration;

use crate::cell::machine::{Awaits, Demand, Machine};
use crate::cell::{DogpileCell, Slot, Turn, try_turn, turn};
use crate::clock::{Clock, FOREVER, SystemClock, deadline};
use crate::error::RefreshError;
use crate::policy::{Freshness, Policy};
use crate::stats::Stats;
use crate::sync::Arc;

#[cfg(feature = "async")]
use {
    crate::cell::{try_turn_async, turn_async},
    std::panic::Location,
};

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
/// values were replaced, and never two at a time, even if the cell is dropped first. It runs without a lock: in a
/// caller that replaces a value, in one that waits for the readers, or on a thread of the cell's own,
/// `dogpile-finalizer`, which is started when it is first needed. (If that cannot be started, it runs in the last
/// reader.) See [`Drain`].
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
/// ([`get_or_refresh`](SyncReaderCell::get_or_refresh), [`set`](SyncReaderCell::set) and their kin) of a cell whose
/// builds take the write lock. With a [`ReadGuard`], which stays on its thread, the cell notices: the call panics, or
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

/// Reads that may build.
impl<T, C: Clock> SyncReaderCell<T, C> {
    /// As [`DogpileCell::get_or_refresh`]: everybody but the one caller that builds gets the old value.
    ///
    /// # Blocking
    ///
    /// As there. And the caller that has built waits for the readers of the old value, if the cell's [`Drain`] says so.
    ///
    /// # Panics
    ///
    /// As there. And if this thread holds a [`ReadGuard`] of the cell, and it would have to wait for a build that waits for
    /// the write lock.
    #[inline]
    #[track_caller]
    pub fn get_or_refresh<F: FnOnce() -> T>(&self, build: F) -> ReaderArc<T> {
        match self.machine().serve() {
            Some(value) => ReaderArc(value),
            None => self.get_or_refresh_with(|_| build()),
        }
    }

    /// As [`DogpileCell::try_get_or_refresh`].
    ///
    /// # Errors
    ///
    /// As there. [`RefreshError::Reentrant`] also where [`get_or_refresh`](SyncReaderCell::get_or_refresh) panics because
    /// of a [`ReadGuard`].
    #[inline]
    pub fn try_get_or_refresh<E, F>(&self, build: F) -> Result<ReaderArc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce() -> Result<T, E>,
    {
        match self.machine().serve() {
            Some(value) => Ok(ReaderArc(value)),
            None => self.try_get_or_refresh_with(|_| build()),
        }
    }

    /// As [`get_or_refresh`](SyncReaderCell::get_or_refresh), with a build that may ask for the write lock: for
    /// replacement in place (the same file name, one memory budget), where old and new cannot coexist.
    ///
    /// # Panics
    ///
    /// As there. If the build panics under the write lock, the old value is put back.
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
    ///     cell.invalidate();
    ///     let data = cell.get_or_refresh_with(|writer| {
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
    pub fn get_or_refresh_with<F>(&self, build: F) -> ReaderArc<T>
    where
        F: FnOnce(&mut Writer<'_, T, C>) -> T,
    {
        ReaderArc(self.refresh_for(Demand::Value, "get_or_refresh", build))
    }

    /// As [`try_get_or_refresh`](SyncReaderCell::try_get_or_refresh), with a build that may ask for the write lock.
    ///
    /// # Errors
    ///
    /// As there. If the build fails under the write lock, the old value is put back.
    pub fn try_get_or_refresh_with<E, F>(&self, build: F) -> Result<ReaderArc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce(&mut Writer<'_, T, C>) -> Result<T, E>,
    {
        self.try_refresh(None, build)
    }

    /// As [`DogpileCell::try_get_or_refresh_timeout`].
    ///
    /// # Errors
    ///
    /// As there, and as [`try_get_or_refresh`](SyncReaderCell::try_get_or_refresh).
    #[inline]
    pub fn try_get_or_refresh_timeout<E, F>(
        &self,
        wait: Duration,
        build: F,
    ) -> Result<ReaderArc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce() -> Result<T, E>,
    {
        match self.machine().serve() {
            Some(value) => Ok(ReaderArc(value)),
            None => self.try_refresh(Some(wait), |_| build()),
        }
    }

    /// As [`DogpileCell::get_fresh_or_refresh`]: never a stale value.
    ///
    /// # Panics
    ///
    /// As there, and as [`get_or_refresh`](SyncReaderCell::get_or_refresh).
    #[track_caller]
    pub fn get_fresh_or_refresh<F: FnOnce() -> T>(&self, build: F) -> ReaderArc<T> {
        ReaderArc(self.refresh_for(Demand::Fresh, "get_fresh_or_refresh", |_| build()))
    }

    /// As [`DogpileCell::refresh`]: a value whose build began after this call.
    ///
    /// # Panics
    ///
    /// As there, and as [`get_or_refresh`](SyncReaderCell::get_or_refresh).
    #[track_caller]
    pub fn refresh<F: FnOnce() -> T>(&self, build: F) -> ReaderArc<T> {
        let demand = Demand::After(self.machine().latest_origin());
        ReaderArc(self.refresh_for(demand, "refresh", |_| build()))
    }

    /// As [`get_or_refresh`](SyncReaderCell::get_or_refresh), but touches no reference count if there is a value that
    /// is fresh, or that is stale while somebody builds or a retry pause runs.
    ///
    /// # Panics
    ///
    /// As there.
    #[inline]
    #[track_caller]
    pub fn load_or_refresh<F: FnOnce() -> T>(&self, build: F) -> ReadGuard<'_, T> {
        match self.machine().serve_guard().and_then(ReadGuard::new) {
            Some(guard) => guard,
            None => self.get_or_refresh(build).into_guard(),
        }
    }

    fn try_refresh<E, F>(&self, limit: Option<Duration>, build: F) -> Result<ReaderArc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce(&mut Writer<'_, T, C>) -> Result<T, E>,
    {
        let held = match try_turn(self.machine(), limit, |awaits| self.is_awaited(awaits))? {
            Turn::Served(value) => return Ok(ReaderArc(value)),
            Turn::Elected(held) => held,
        };
        // Until the finalizer has run too, which must not wait for this build either.
        let _inside = held.inside();
        let mut writer = Writer::new(&self.room, held);
        let result = match build(&mut writer) {
            Ok(value) => Ok(writer.publish(value, self.drain)),
            Err(error) => Err(writer.fail(error)),
        };
        self.machine().or_instead(result).map(ReaderArc)
    }

    #[track_caller]
    fn refresh_for<F>(&self, demand: Demand, name: &str, build: F) -> Arc<Tracked<T>>
    where
        F: FnOnce(&mut Writer<'_, T, C>) -> T,
    {
        match turn(self.machine(), demand, name, |awaits| self.is_awaited(awaits)) {
            Turn::Served(value) => value,
            Turn::Elected(held) => {
                let _inside = held.inside();
                let mut writer = Writer::new(&self.room, held);
                let value = build(&mut writer);
                writer.publish(value, self.drain)
            }
        }
    }

    /// Whether a build that awaits these, and for whose end this thread is about to wait, waits for this thread.
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

    #[inline]
    fn machine(&self) -> &Machine<Tracked<T>, C> {
        self.cell.machine()
    }
}

/// Reads that never build and never block.
impl<T, C: Clock> SyncReaderCell<T, C> {
    /// What may be served now, fresh or stale. Also `None` while a build waits for the write lock or holds it.
    #[must_use]
    #[inline]
    pub fn get(&self) -> Option<ReaderArc<T>> {
        self.cell.get().map(ReaderArc)
    }

    /// As [`get`](SyncReaderCell::get), but touches no reference count.
    #[must_use]
    #[inline]
    pub fn load(&self) -> Option<ReadGuard<'_, T>> {
        self.machine().servable().and_then(ReadGuard::new)
    }

    /// What a read would find now.
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

    /// Whether somebody builds at the moment, or has built and waits for the readers of what that has replaced.
    #[must_use]
    pub fn is_refreshing(&self) -> bool {
        self.cell.is_refreshing()
    }

    /// What the cell has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.cell.stats()
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
impl<T, C: Clock> SyncReaderCell<T, C> {
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
impl<T, C: Clock> SyncReaderCell<T, C> {
    /// As [`DogpileCell::set`]. The value that it replaces is retired, and let go of as the cell's [`Drain`] says.
    ///
    /// # Blocking
    ///
    /// If a build waits for the write lock or holds it: until that build ends. And for the readers of the old value, if the
    /// cell's [`Drain`] says so. A [`ReaderArc`] of the caller's own is waited for like any other. A [`ReadGuard`] of its own
    /// is not: if it is one of the old value, or of one replaced before, nobody is waited for, and the value goes to the
    /// background at once.
    ///
    /// # Panics
    ///
    /// While a build waits for the write lock or holds it, and only then: if it is called from inside a build of the cell, or by
    /// a thread that holds a [`ReadGuard`] of the cell. It would wait for itself.
    #[track_caller]
    pub fn set(&self, value: T) -> ReaderArc<T> {
        let value = Arc::new(Tracked::new(value, &self.room));
        let note = |new: &Arc<_>, slot: &Slot<_>| self.room.published(new, slot.load().as_ref(), false);
        let mut leftover =
            self.machine().set_when_open(Arc::clone(&value), |awaits| self.is_awaited(awaits), note);
        self.room.let_go(leftover.replaced.take(), None, self.drain, &self.machine().clock);
        // May panic, so last.
        drop(leftover);
        ReaderArc(value)
    }

    /// As [`DogpileCell::invalidate`].
    pub fn invalidate(&self) {
        self.cell.invalidate();
    }

    /// As [`DogpileCell::clear`]. The value is retired, and let go of as the cell's [`Drain`] says.
    ///
    /// If a build has asked for the write lock, the old value is retired instead of being put back.
    ///
    /// # Blocking
    ///
    /// For the readers of the value, as [`set`](SyncReaderCell::set), but never for a build.
    pub fn clear(&self) {
        let cleared = self.machine().clear(|old| self.room.cleared(old));
        self.room.let_go(cleared, None, self.drain, &self.machine().clock);
    }
}

/// Reads from async code (feature `async`). As those of [`DogpileCell`], with the old value's drain
/// awaited, not blocked on: a task that is elected under [`Drain::Wait`] is suspended until the
/// readers have left. If it is dropped meanwhile, the drain goes on in the background.
///
/// The finalizer runs where it does without async, perhaps in the task that is elected: one that takes long belongs on a
/// thread for blocking work. So does a build that needs the write lock
/// ([`get_or_refresh_with`](SyncReaderCell::get_or_refresh_with)): it blocks until the readers have left.
///
/// # Deadlocks
///
/// A task that holds a [`ReaderArc`] or a [`ReadGuard`] while it waits for a build that needs the write
/// lock waits for itself. (A thread is told so where it holds a `ReadGuard`; among tasks it may be another one's.)
#[cfg(feature = "async")]
impl<T, C: Clock> SyncReaderCell<T, C> {
    /// As [`DogpileCell::get_or_refresh_async`].
    ///
    /// # Panics
    ///
    /// As there.
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
            match self.machine().serve() {
                Some(value) => ReaderArc(value),
                None => self.refresh_async(Demand::Value, "get_or_refresh_async", called, build).await,
            }
        }
    }

    /// As [`DogpileCell::try_get_or_refresh_async`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn try_get_or_refresh_async<E, F, Fut>(&self, build: F) -> Result<ReaderArc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        if let Some(value) = self.machine().serve() {
            return Ok(ReaderArc(value));
        }
        let held = match try_turn_async(self.machine()).await? {
            Turn::Served(value) => return Ok(ReaderArc(value)),
            Turn::Elected(held) => held,
        };
        let writer = Writer::new(&self.room, held);
        let result = match writer.held().run_async(build).await {
            Ok(value) => Ok(writer.publish_async(value, self.drain).await),
            Err(error) => Err(writer.fail(error)),
        };
        self.machine().or_instead(result).map(ReaderArc)
    }

    /// As [`DogpileCell::get_fresh_or_refresh_async`].
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub fn get_fresh_or_refresh_async<F, Fut>(
        &self,
        build: F,
    ) -> impl Future<Output = ReaderArc<T>> + use<'_, T, C, F, Fut>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        self.refresh_async(Demand::Fresh, "get_fresh_or_refresh_async", Location::caller(), build)
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

    async fn refresh_async<F, Fut>(
        &self,
        demand: Demand,
        name: &str,
        called: &'static Location<'static>,
        build: F,
    ) -> ReaderArc<T>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        match turn_async(self.machine(), demand, name, called).await {
            Turn::Served(value) => ReaderArc(value),
            Turn::Elected(held) => {
                let writer = Writer::new(&self.room, held);
                let value = writer.held().run_async(build).await;
                ReaderArc(writer.publish_async(value, self.drain).await)
            }
        }
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
