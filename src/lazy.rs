//! A cell that keeps its build.

use std::fmt;
use std::time::Duration;

use crate::cell::{
    BuildResult, Caller, DogpileCell, Guard, Handle, Held, InCaller, Job, Kind, Machine, Owned, Reader,
    Request, Search, Snapshot, SpawnWith, Term,
};
use crate::error::{BoxError, RefreshError};
use crate::hook::{Change, Hook};
use crate::policy::Policy;
use crate::refresher::Refresher;
use crate::subscription::Subscription;
use crate::sync::{Arc, const_fn};
use crate::time::{Clock, SystemClock};

#[cfg(feature = "async")]
use {crate::cell::Task, std::panic::Location};

/// A [`DogpileCell`] that keeps its build closure, as `once_cell::sync::Lazy` does for `OnceCell`.
///
/// It has the cell's methods, without the closure. The build may be infallible (`Fn() -> T`: use
/// [`get_or_refresh`](LazyDogpile::get_or_refresh)), fallible (`Fn() -> Result<T, E>`: use
/// [`try_get_or_refresh`](LazyDogpile::try_get_or_refresh)), or return a future of either (feature `async`).
///
/// # Examples
///
/// ```
/// use dogpile::LazyDogpile;
/// use std::time::Duration;
///
/// struct Rates(f64);
///
/// fn download_rates() -> Rates {
///     Rates(1.07) // slow
/// }
///
/// static RATES: LazyDogpile<Rates> = LazyDogpile::new(Duration::from_secs(60), download_rates);
///
/// assert_eq!(RATES.get_or_refresh().0, 1.07);
/// ```
///
/// A build that may fail:
///
/// ```
/// use dogpile::{LazyDogpile, RefreshError};
/// use std::io;
/// use std::time::Duration;
///
/// fn read_motd() -> io::Result<String> {
///     Err(io::Error::other("no such file"))
/// }
///
/// static MOTD: LazyDogpile<String, fn() -> io::Result<String>> =
///     LazyDogpile::new(Duration::from_secs(60), read_motd);
///
/// let error: RefreshError = MOTD.try_get_or_refresh().unwrap_err();
/// assert_eq!(error.to_string(), "no such file");
/// ```
pub struct LazyDogpile<T, F = fn() -> T, C = SystemClock> {
    cell: DogpileCell<T, C>,
    pub(crate) build: F,
}

impl<T, F> LazyDogpile<T, F> {
    const_fn! {
        /// Creates an empty cell whose values are made by `build` and are fresh for `ttl` after their publication.
        ///
        /// A value older than that is stale. It is served without limit while it is rebuilt. To set a limit, use
        /// [`with_policy`](LazyDogpile::with_policy).
        ///
        /// # Examples
        ///
        /// ```
        /// use dogpile::LazyDogpile;
        /// use std::time::Duration;
        ///
        /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
        ///
        /// assert_eq!(*LIMIT.get_or_refresh(), 7);
        /// ```
        #[must_use]
        pub const fn new(ttl: Duration, build: F) -> Self {
            Self::with_policy(Policy::ttl(ttl), build)
        }
    }

    const_fn! {
        /// Creates an empty cell whose values are made by `build`, with a policy.
        ///
        /// # Examples
        ///
        /// ```
        /// use dogpile::{LazyDogpile, Policy};
        /// use std::time::Duration;
        ///
        /// const POLICY: Policy = Policy::ttl(Duration::from_secs(60)).jitter(10);
        ///
        /// static LIMIT: LazyDogpile<u32> = LazyDogpile::with_policy(POLICY, || 7);
        ///
        /// assert_eq!(*LIMIT.get_or_refresh(), 7);
        /// ```
        #[must_use]
        pub const fn with_policy(policy: Policy, build: F) -> Self {
            Self::with_clock(policy, SystemClock, build)
        }
    }

    const_fn! {
        /// Creates an empty cell whose values are made by `build`, with a policy and a [name](DogpileCell::named).
        ///
        /// # Examples
        ///
        /// ```
        /// use dogpile::{LazyDogpile, Policy};
        /// use std::time::Duration;
        ///
        /// const POLICY: Policy = Policy::ttl(Duration::from_secs(60));
        ///
        /// static LIMIT: LazyDogpile<u32> = LazyDogpile::with_name("limit", POLICY, || 7);
        ///
        /// assert!(format!("{LIMIT:?}").contains("limit"));
        /// ```
        #[must_use]
        pub const fn with_name(name: &'static str, policy: Policy, build: F) -> Self {
            Self { cell: DogpileCell::with_policy(policy).named(name), build }
        }
    }
}

impl<T, F, C> LazyDogpile<T, F, C> {
    const_fn! {
        /// Creates an empty cell whose values are made by `build`, with a policy and a clock.
        ///
        /// # Examples
        ///
        /// ```
        /// use dogpile::{LazyDogpile, ManualClock, Policy};
        /// use std::time::Duration;
        ///
        /// let limit = LazyDogpile::with_clock(Policy::ttl(Duration::from_secs(60)), ManualClock::new(), || 7);
        /// assert_eq!(*limit.get_or_refresh(), 7);
        /// ```
        #[must_use]
        pub const fn with_clock(policy: Policy, clock: C, build: F) -> Self {
            Self { cell: DogpileCell::with_clock(policy, clock), build }
        }
    }

    /// Names the cell in its [`Debug`](fmt::Debug) output and in `tracing` events (feature `tracing`).
    ///
    /// In a `static`, [`with_name`](LazyDogpile::with_name) needs fewer types spelled out.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || 7).named("limit");
    /// assert_eq!(*limit.get_or_refresh(), 7);
    /// assert!(format!("{limit:?}").contains("limit"));
    /// ```
    #[must_use]
    pub const fn named(self, name: &'static str) -> Self {
        let mut this = self;
        this.cell.machine.name = Some(name);
        this
    }
}

impl<T, F, C: Clock> Kind for LazyDogpile<T, F, C> {
    type Value = T;
    type Stored = T;
    type Shared = Arc<T>;
    type Clock = C;

    fn machine(&self) -> &Machine<T, C> {
        &self.cell.machine
    }

    fn share(stored: Arc<T>) -> Arc<T> {
        stored
    }

    fn publish(held: Held<'_, Self>, value: T, term: Term) -> Arc<T> {
        held.publish_arc(Arc::new(value), term)
    }
}

/// Reads that may build, if the build cannot fail.
impl<T, F: Fn() -> T, C: Clock> LazyDogpile<T, F, C> {
    /// Returns the value, rebuilding it if it is out of date. See [`DogpileCell::get_or_refresh`].
    ///
    /// # Blocking
    ///
    /// Blocks while another caller builds, if there is no value that may be served. The elected caller runs the build
    /// itself.
    ///
    /// # Panics
    ///
    /// Panics if the build panics, or if it calls this method on the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    ///
    /// assert_eq!(*LIMIT.get_or_refresh(), 7);
    /// ```
    #[inline]
    #[track_caller]
    pub fn get_or_refresh(&self) -> Arc<T> {
        // The cell's own method would not be inlined here: 22 more instructions.
        match self.cell.machine.serve() {
            Some(value) => value,
            None => Search::refresh(&self.cell, &self.build),
        }
    }

    /// Returns a [`Guard`] of the value, rebuilding it if it is out of date. See [`DogpileCell::load_or_refresh`].
    ///
    /// Like [`get_or_refresh`](LazyDogpile::get_or_refresh), but touches no reference count if the value is fresh, or
    /// if it is stale and a build or a retry pause runs.
    ///
    /// # Panics
    ///
    /// Panics if the build panics, or if it calls this method on the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static WORDS: LazyDogpile<Vec<&str>> = LazyDogpile::new(Duration::from_secs(60), || vec!["a", "b"]);
    ///
    /// assert_eq!(WORDS.load_or_refresh().len(), 2);
    /// ```
    #[inline]
    #[track_caller]
    pub fn load_or_refresh(&self) -> Guard<'_, T> {
        self.cell.load_or_refresh(&self.build)
    }
}

/// Reads that may build, if the build may fail.
impl<T, E, F, C> LazyDogpile<T, F, C>
where
    E: Into<BoxError>,
    F: Fn() -> Result<T, E>,
    C: Clock,
{
    /// Returns the value, rebuilding it if it is out of date. See [`DogpileCell::try_get_or_refresh`].
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
    /// Panics if the build panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::num::ParseIntError;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32, fn() -> Result<u32, ParseIntError>> =
    ///     LazyDogpile::new(Duration::from_secs(60), || "7".parse());
    ///
    /// assert_eq!(*LIMIT.try_get_or_refresh()?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    #[inline]
    pub fn try_get_or_refresh(&self) -> Result<Arc<T>, RefreshError> {
        self.cell.try_get_or_refresh(&self.build)
    }
}

/// Conditions, reads that never build, and writes.
impl<T, F, C: Clock> LazyDogpile<T, F, C> {
    /// As [`DogpileCell::subscribe`]: follows the publications, and never builds.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    ///
    /// let mut subscription = LIMIT.subscribe();
    /// assert!(!subscription.has_changed());
    /// LIMIT.get_or_refresh();
    /// assert_eq!(*subscription.wait_changed(), 7);
    /// ```
    pub fn subscribe(&self) -> Subscription<'_, T, C, Self> {
        Subscription::new(Handle::Borrowed(self))
    }

    /// As [`subscribe`](LazyDogpile::subscribe); keeps the cell alive.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let limit = Arc::new(LazyDogpile::new(Duration::from_secs(60), || 7));
    /// let mut subscription = limit.subscribe_owned();
    /// limit.set(8);
    /// assert_eq!(*subscription.wait_changed(), 8);
    /// ```
    pub fn subscribe_owned(self: &Arc<Self>) -> Subscription<'static, T, C, Self> {
        Subscription::new(Handle::Shared(Arc::clone(self)))
    }

    /// As [`DogpileCell::on_publish`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || 7);
    /// let (changes, seen) = std::sync::mpsc::channel();
    /// let hook = limit.on_publish(move |snapshot| changes.send(*snapshot.value).unwrap());
    /// limit.get_or_refresh();
    /// assert_eq!(seen.recv(), Ok(7));
    /// # drop(hook);
    /// ```
    pub fn on_publish(&self, callback: impl Fn(&Snapshot<T>) + Send + Sync + 'static) -> Hook
    where
        T: Send + Sync + 'static,
    {
        self.cell.on_publish(callback)
    }

    /// As [`DogpileCell::on_change`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Change, LazyDogpile};
    /// use std::time::Duration;
    ///
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || 7);
    /// let (changes, seen) = std::sync::mpsc::channel();
    /// let hook = limit.on_change(move |change| changes.send(matches!(change, Change::Invalidated)).unwrap());
    /// limit.get_or_refresh();
    /// limit.invalidate();
    /// assert_eq!(seen.iter().take(2).collect::<Vec<_>>(), [false, true]);
    /// # drop(hook);
    /// ```
    pub fn on_change(&self, callback: impl Fn(&Change<T>) + Send + Sync + 'static) -> Hook
    where
        T: Send + Sync + 'static,
    {
        self.cell.on_change(callback)
    }

    /// Starts a read with conditions. Its finishing calls take no closure. See [`Request`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    ///
    /// assert_eq!(*LIMIT.request().no_cache().spawn_with(std::thread::spawn).get(), 7);
    /// ```
    pub fn request(&self) -> Request<'_, T, C, Self> {
        Request::new(Handle::Borrowed(self))
    }

    /// Starts a read with conditions of a cell in an [`Arc`]. Its finishing calls take no closure.
    ///
    /// The request keeps the cell alive, so it can [hand builds to a thread or a task](Request::spawn_with).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let limit = Arc::new(LazyDogpile::new(Duration::from_secs(60), || 7));
    /// assert_eq!(*limit.request_owned().spawn_with(std::thread::spawn).get(), 7);
    /// ```
    pub fn request_owned(self: &Arc<Self>) -> Request<'static, T, C, Self> {
        Request::new(Handle::Shared(Arc::clone(self)))
    }

    /// Returns the value if it may be served now, fresh or stale.
    ///
    /// It never builds and never blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || 7);
    /// assert_eq!(limit.get(), None);
    /// limit.get_or_refresh();
    /// assert_eq!(limit.get().as_deref(), Some(&7));
    /// ```
    #[must_use]
    #[inline]
    pub fn get(&self) -> Option<Arc<T>> {
        self.cell.get()
    }

    /// Publishes `value` ahead of any build, and returns it. See [`DogpileCell::set`].
    ///
    /// # Panics
    ///
    /// Panics if dropping the replaced value panics. The new value is in place by then.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || 7);
    /// limit.set(8);
    /// assert_eq!(*limit.get_or_refresh(), 8);
    /// ```
    pub fn set(&self, value: T) -> Arc<T> {
        self.cell.set(value)
    }

    /// Declares the value stale now. The next caller rebuilds it; meanwhile it is served. See
    /// [`DogpileCell::invalidate`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || 7);
    /// limit.set(8);
    /// limit.invalidate();
    /// assert_eq!(*limit.get_or_refresh(), 7);
    /// ```
    pub fn invalidate(&self) {
        self.cell.invalidate();
    }

    /// Takes the value away now, and returns it. The next callers wait for a new one. See [`DogpileCell::clear`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || 7);
    /// limit.get_or_refresh();
    /// assert_eq!(limit.clear().as_deref(), Some(&7));
    /// assert_eq!(limit.get(), None);
    /// ```
    pub fn clear(&self) -> Option<Arc<T>> {
        self.cell.clear()
    }
}

/// The cell itself, and handles.
impl<T, F, C> LazyDogpile<T, F, C> {
    /// Returns the cell, for the methods that `LazyDogpile` does not have.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    ///
    /// LIMIT.get_or_refresh();
    /// assert_eq!(LIMIT.cell().stats().builds, 1);
    /// ```
    #[must_use]
    pub const fn cell(&self) -> &DogpileCell<T, C> {
        &self.cell
    }

    /// Returns a handle that keeps the value, for a thread that reads it very often.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    ///
    /// let mut limit = LIMIT.reader();
    /// assert_eq!(**limit.get_or_refresh(), 7);
    /// ```
    #[must_use]
    pub fn reader(&self) -> LazyReader<'_, T, F, C> {
        Reader::new(&self.cell, &self.build)
    }
}

impl<T, F, C> LazyDogpile<T, F, C>
where
    T: Send + Sync + 'static,
    F: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Starts a [`Refresher`] that uses the cell's own build.
    ///
    /// This takes a cell in a `static`. For a cell in an [`Arc`] use [`Refresher::spawn`].
    ///
    /// # Errors
    ///
    /// * [`io::ErrorKind::InvalidInput`](std::io::ErrorKind::InvalidInput) if `ahead` is not shorter than the policy's
    ///   ttl.
    /// * The system's error if the thread cannot be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    ///
    /// let refresher = LIMIT.spawn_refresher(Duration::from_secs(5))?;
    /// assert!(refresher.wait_ready(Duration::from_secs(5)));
    /// assert_eq!(LIMIT.get().as_deref(), Some(&7));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn spawn_refresher<R, const FALLIBLE: bool>(
        &'static self,
        ahead: Duration,
    ) -> std::io::Result<Refresher>
    where
        F: Fn() -> R,
        R: BuildResult<T, FALLIBLE>,
    {
        Refresher::spawn(self, ahead, move |_| (self.build)())
    }
}

/// Reads that may build, if the build is a future (feature `async`).
///
/// A future can be dropped at any point. If its caller was elected, the build is dropped and the lease is given back.
/// Any other caller gives up its place among the waiters.
#[cfg(feature = "async")]
impl<T, F, Fut, C> LazyDogpile<T, F, C>
where
    F: Fn() -> Fut,
    Fut: Future,
    C: Clock,
{
    /// Returns the value, rebuilding it if it is out of date. See [`DogpileCell::get_or_refresh_async`].
    ///
    /// # Panics
    ///
    /// Panics if the build panics, or if it calls this method on the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::pin::Pin;
    /// use std::time::Duration;
    ///
    /// type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
    ///
    /// async fn download_limit() -> u32 {
    ///     7
    /// }
    ///
    /// static LIMIT: LazyDogpile<u32, fn() -> Boxed<u32>> =
    ///     LazyDogpile::new(Duration::from_secs(60), || Box::pin(download_limit()));
    ///
    /// # futures_lite::future::block_on(async {
    /// assert_eq!(*LIMIT.get_or_refresh_async().await, 7);
    /// # });
    /// ```
    #[track_caller]
    pub fn get_or_refresh_async(&self) -> impl Future<Output = Arc<T>> + use<'_, T, F, Fut, C>
    where
        Fut: Future<Output = T>,
    {
        self.cell.get_or_refresh_async(&self.build)
    }

    /// Returns the value, rebuilding it if it is out of date, or an error. See
    /// [`DogpileCell::try_get_or_refresh_async`].
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
    /// Panics if the build panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || async { "7".parse::<u32>() });
    /// assert_eq!(*limit.try_get_or_refresh_async().await?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// # }).unwrap();
    /// ```
    pub async fn try_get_or_refresh_async<E>(&self) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        Fut: Future<Output = Result<T, E>>,
    {
        self.cell.try_get_or_refresh_async(&self.build).await
    }
}

impl<T, F, C> fmt::Debug for LazyDogpile<T, F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyDogpile").field("cell", &self.cell).finish_non_exhaustive()
    }
}

/// Finishing calls for a cell that keeps its build. They are those of the other cells, without the closure.
impl<T, F, C: Clock> Request<'_, T, C, LazyDogpile<T, F, C>> {
    /// Returns the value, built if need be.
    ///
    /// Builds or waits until the conditions are met.
    ///
    /// # Panics
    ///
    /// Panics if the build panics, or if it calls this method on the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    ///
    /// assert_eq!(*LIMIT.request().no_cache().get(), 7);
    /// ```
    #[track_caller]
    #[allow(clippy::must_use_candidate)] // it may be called to build
    pub fn get(self) -> Arc<T>
    where
        F: Fn() -> T,
    {
        let handle = self.handle().clone();
        let (search, InCaller) = self.begin(Caller::Infallible);
        search.get("get", |held| held.build(|| (handle.build)()))
    }

    /// Returns the value, built if need be, or an error.
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: the caller's own build failed, or the build that it waited for, or the latest build
    ///   while a retry pause runs; and no value that meets the conditions is within the policy's
    ///   [`stale_if_error`](Policy::stale_if_error).
    /// * [`RefreshError::WaitTimeout`]: the time of [`wait_at_most`](Request::wait_at_most) is over.
    /// * [`RefreshError::Reentrant`]: the call came from inside the build of the same cell, while there was no value to
    ///   serve.
    ///
    /// # Panics
    ///
    /// Panics if the build panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::num::ParseIntError;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32, fn() -> Result<u32, ParseIntError>> =
    ///     LazyDogpile::new(Duration::from_secs(60), || "7".parse());
    ///
    /// assert_eq!(*LIMIT.request().no_cache().try_get()?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    pub fn try_get<E: Into<BoxError>>(self) -> Result<Arc<T>, RefreshError>
    where
        F: Fn() -> Result<T, E>,
    {
        let handle = self.handle().clone();
        let (search, InCaller) = self.begin(Caller::Fallible);
        search.try_get(|held| held.try_build(|| (handle.build)()))
    }

    /// Returns the value, built if need be, for a cell whose build is a future (feature `async`).
    ///
    /// Like [`get`](Request::get), but suspends the task instead of blocking the thread. The future can be dropped at
    /// any point; if its caller was elected, the build is dropped and the lease is given back.
    ///
    /// # Panics
    ///
    /// Panics if the build panics, or if it calls this method on the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || async { 7 });
    /// assert_eq!(*limit.request().no_cache().get_async().await, 7);
    /// # });
    /// ```
    #[cfg(feature = "async")]
    #[track_caller]
    pub fn get_async<Fut>(self) -> impl Future<Output = Arc<T>>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = T>,
    {
        let called = Location::caller();
        async move {
            let handle = self.handle().clone();
            let (search, InCaller) = self.begin(Caller::Infallible);
            search.get_async("get_async", called, |held| held.build_async(|| (handle.build)())).await
        }
    }

    /// Returns the value, built if need be, or an error, for a cell whose build is a future (feature `async`).
    ///
    /// Like [`try_get`](Request::try_get), but suspends the task instead of blocking the thread. The future can be
    /// dropped at any point; if its caller was elected, the build is dropped and the lease is given back.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`try_get`](Request::try_get).
    ///
    /// # Panics
    ///
    /// Panics if the build panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || async { "7".parse::<u32>() });
    /// assert_eq!(*limit.request().no_cache().try_get_async().await?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn try_get_async<E, Fut>(self) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let handle = self.handle().clone();
        let (search, InCaller) = self.begin(Caller::Fallible);
        search.try_get_async(|held| held.try_build_async(|| (handle.build)())).await
    }
}

/// Finishing calls for a cell that keeps its build, with builds that are handed to a spawner.
impl<T, F, C, S> Request<'static, T, C, LazyDogpile<T, F, C>, SpawnWith<S>>
where
    T: Send + Sync + 'static,
    F: Send + Sync + 'static,
    C: Clock + 'static,
{
    /// Returns the value, built by the spawner if need be.
    ///
    /// Builds or waits until the conditions are met.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics, or if the spawner drops the job or the build panics while this call waits for it.
    /// Also panics if it is called from inside the build of the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    ///
    /// assert_eq!(*LIMIT.request().spawn_with(std::thread::spawn).get(), 7);
    /// ```
    #[track_caller]
    pub fn get<R>(self) -> Arc<T>
    where
        F: Fn() -> T,
        S: FnOnce(Job) -> R,
    {
        let handle = self.handle().clone();
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Infallible);
        match search.run_spawned(spawn, move |held| Ok(held.build(|| (handle.build)()))) {
            Ok(value) => value,
            Err(error) => search.cannot("get", &error),
        }
    }

    /// Returns the value, built by the spawner if need be, or an error.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`try_get`](Request::try_get) without a spawner, and [`RefreshError::Abandoned`] if the
    /// spawner dropped the job or the build panicked there.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::num::ParseIntError;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32, fn() -> Result<u32, ParseIntError>> =
    ///     LazyDogpile::new(Duration::from_secs(60), || "7".parse());
    ///
    /// assert_eq!(*LIMIT.request().spawn_with(std::thread::spawn).try_get()?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    pub fn try_get<E, R>(self) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: Fn() -> Result<T, E>,
        S: FnOnce(Job) -> R,
    {
        let handle = self.handle().clone();
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        search.run_spawned(spawn, move |held| held.try_build(|| (handle.build)()))
    }

    /// Returns the value, built on the spawner's executor if need be (feature `async`).
    ///
    /// Builds or waits until the conditions are met. If the future is dropped, the build goes on.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics, or if the spawner drops the task or the build panics while this call waits for it.
    /// Also panics if it is called from inside the build of the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let limit = Arc::new(LazyDogpile::new(Duration::from_secs(60), || async { 7 }));
    /// assert_eq!(*limit.request_owned().spawn_with(tokio::spawn).get_async().await, 7);
    /// # });
    /// ```
    #[cfg(feature = "async")]
    #[track_caller]
    pub fn get_async<Fut, R>(self) -> impl Future<Output = Arc<T>>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = T> + Send + 'static,
        S: FnOnce(Task) -> R,
    {
        let called = Location::caller();
        async move {
            let handle = self.handle().clone();
            let (mut search, SpawnWith(spawn)) = self.begin(Caller::Infallible);
            let run = |held: Held<'static, LazyDogpile<T, F, C>>| async move {
                Ok(held.build_async(|| (handle.build)()).await)
            };
            match search.run_spawned_async(spawn, run).await {
                Ok(value) => value,
                Err(error) => search.cannot_async("get_async", called, &error),
            }
        }
    }

    /// Returns the value, built on the spawner's executor if need be, or an error (feature `async`).
    ///
    /// If the future is dropped, the build goes on.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`try_get_async`](Request::try_get_async) without a spawner, and
    /// [`RefreshError::Abandoned`] if the spawner dropped the task or the build panicked there.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let limit = Arc::new(LazyDogpile::new(Duration::from_secs(60), || async { "7".parse::<u32>() }));
    /// assert_eq!(*limit.request_owned().spawn_with(tokio::spawn).try_get_async().await?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn try_get_async<E, Fut, R>(self) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError> + Send + 'static,
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        S: FnOnce(Task) -> R,
    {
        let handle = self.handle().clone();
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        let run = |held: Held<'static, LazyDogpile<T, F, C>>| async move {
            held.try_build_async(|| (handle.build)()).await
        };
        search.run_spawned_async(spawn, run).await
    }
}

/// A [`Reader`] that knows the cell's build. Made by [`LazyDogpile::reader`].
///
/// # Examples
///
/// ```
/// use dogpile::LazyDogpile;
/// use std::time::Duration;
///
/// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
///
/// let mut limit = LIMIT.reader();
/// assert_eq!(**limit.get_or_refresh(), 7);
/// assert_eq!(**limit.get().unwrap(), 7);
/// ```
pub type LazyReader<'a, T, F = fn() -> T, C = SystemClock> = Reader<'a, T, C, &'a F>;

/// Reads that may build, with the build of a [`LazyDogpile`].
impl<T, F, C: Clock> Reader<'_, T, C, &F> {
    /// Returns the value, rebuilding it if it is out of date. See [`DogpileCell::get_or_refresh`].
    ///
    /// # Panics
    ///
    /// Panics if the build panics, or if it calls this method on the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || 7);
    /// let mut reader = limit.reader();
    /// assert_eq!(**reader.get_or_refresh(), 7);
    /// ```
    #[inline]
    #[track_caller]
    pub fn get_or_refresh(&mut self) -> &Arc<T>
    where
        F: Fn() -> T,
    {
        self.read(self.build)
    }

    /// The value, built if need be, of a cell whose build may fail. See [`Reader::try_get_or_refresh`].
    ///
    /// # Errors
    ///
    /// As [`DogpileCell::try_get_or_refresh`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::num::ParseIntError;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32, fn() -> Result<u32, ParseIntError>> =
    ///     LazyDogpile::new(Duration::from_secs(60), || "7".parse());
    ///
    /// let mut limit = LIMIT.reader();
    /// assert_eq!(**limit.try_get_or_refresh()?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    #[inline]
    pub fn try_get_or_refresh<E: Into<BoxError>>(&mut self) -> Result<&Arc<T>, RefreshError>
    where
        F: Fn() -> Result<T, E>,
    {
        self.try_read(self.build)
    }

    /// The value, built if need be, in an owned handle. See [`Reader::get_owned_or_refresh`].
    ///
    /// # Panics
    ///
    /// If the build panics, or if it calls this on its own cell while there is nothing to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{LazyDogpile, Owned};
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    ///
    /// let limit: Owned<u32> = LIMIT.reader().get_owned_or_refresh();
    /// assert_eq!(*limit, 7);
    /// ```
    #[inline]
    #[track_caller]
    pub fn get_owned_or_refresh(&mut self) -> Owned<T>
    where
        F: Fn() -> T,
    {
        self.read_owned(self.build)
    }
}
