//! A cell that keeps its build.

use std::fmt;
use std::time::Duration;

use crate::cell::{
    BuildResult, Caller, DogpileCell, Found, Guard, Handle, Held, InCaller, Job, Kind, Machine, Made,
    Publishes, Reader, Request, SpawnWith, publish_in_arc,
};
use crate::clock::{Clock, SystemClock};
use crate::error::{BoxError, RefreshError};
use crate::policy::Policy;
use crate::refresher::Refresher;
use crate::sync::{Arc, const_fn};

#[cfg(feature = "async")]
use {crate::cell::Task, std::panic::Location};

/// A [`DogpileCell`] that keeps its build closure: what `once_cell::sync::Lazy` is to `OnceCell`.
///
/// Its methods are the cell's, without the closure. The build may be infallible (`Fn() -> T`: use
/// [`get_or_refresh`](LazyDogpile::get_or_refresh)), fallible (`Fn() -> Result<T, E>`: use
/// [`try_get_or_refresh`](LazyDogpile::try_get_or_refresh)), or a future of either.
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
    build: F,
}

impl<T, F> LazyDogpile<T, F> {
    const_fn! {
        /// A cell whose values are made by `build` and are fresh for `ttl`. See [`DogpileCell::new`].
        #[must_use]
        pub const fn new(ttl: Duration, build: F) -> Self {
            Self::with_policy(Policy::ttl(ttl), build)
        }
    }

    const_fn! {
        /// A cell whose values are made by `build`, with a policy.
        #[must_use]
        pub const fn with_policy(policy: Policy, build: F) -> Self {
            Self::with_clock(policy, SystemClock, build)
        }
    }

    const_fn! {
        /// A cell whose values are made by `build`, with a policy and a [name](DogpileCell::named).
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
        /// A cell whose values are made by `build`, with a policy and a clock.
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

    /// As [`DogpileCell::named`]. In a `static`, [`with_name`](LazyDogpile::with_name) needs fewer types spelled out.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// let limit = LazyDogpile::new(Duration::from_secs(60), || 7).named("limit");
    /// assert_eq!(*limit.get_or_refresh(), 7);
    /// ```
    #[must_use]
    pub const fn named(self, name: &'static str) -> Self {
        let mut this = self;
        this.cell.machine_mut().name = Some(name);
        this
    }

    /// The cell, for everything that is not here.
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

    pub(crate) fn builder(&self) -> &F {
        &self.build
    }

    /// A handle for a thread that reads the value very often: it keeps it at hand.
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
        LazyReader { reader: self.cell.reader(), build: &self.build }
    }
}

impl<T, F, C: Clock> Kind for LazyDogpile<T, F, C> {
    type Value = T;
    type Stored = T;
    type Shared = Arc<T>;
    type Clock = C;

    fn machine(&self) -> &Machine<T, C> {
        self.cell.machine()
    }

    fn share(stored: Arc<T>) -> Arc<T> {
        stored
    }
}

impl<T, F, C: Clock> Publishes for LazyDogpile<T, F, C> {
    fn publish(held: Held<'_, Self>, made: Made<Self>) -> Arc<T> {
        publish_in_arc(held, made)
    }
}

/// Reads that may build, with a build that cannot fail.
impl<T, F: Fn() -> T, C: Clock> LazyDogpile<T, F, C> {
    /// The value, built if need be. See [`DogpileCell::get_or_refresh`].
    ///
    /// # Panics
    ///
    /// If the build panics, or if it calls this on its own cell while there is nothing to serve.
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
        self.cell.get_or_refresh(&self.build)
    }

    /// As [`get_or_refresh`](LazyDogpile::get_or_refresh), but touches no reference count if there is a value that may be
    /// served. See [`DogpileCell::load_or_refresh`].
    ///
    /// # Panics
    ///
    /// If the build panics, or if it calls this on its own cell while there is nothing to serve.
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

/// Reads that may build, with a build that may fail.
impl<T, E, F, C> LazyDogpile<T, F, C>
where
    E: Into<BoxError>,
    F: Fn() -> Result<T, E>,
    C: Clock,
{
    /// The value, built if need be. See [`DogpileCell::try_get_or_refresh`].
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
    /// assert_eq!(*LIMIT.try_get_or_refresh()?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    #[inline]
    pub fn try_get_or_refresh(&self) -> Result<Arc<T>, RefreshError> {
        self.cell.try_get_or_refresh(&self.build)
    }
}

/// Everything else.
impl<T, F, C: Clock> LazyDogpile<T, F, C> {
    /// A read with conditions. Its finishing calls take no closure. See [`Request`].
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

    /// As [`request`](LazyDogpile::request), for a cell in an [`Arc`].
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

    /// What may be served now, fresh or stale; never builds. See [`DogpileCell::get`].
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

    /// Publishes `value`. See [`DogpileCell::set`].
    ///
    /// # Panics
    ///
    /// If dropping the replaced value panics. The new one is in place by then.
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

    /// Declares the value stale now. See [`DogpileCell::invalidate`].
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

    /// Takes the value away now. See [`DogpileCell::clear`].
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

impl<T, F, C> LazyDogpile<T, F, C>
where
    T: Send + Sync + 'static,
    F: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Starts a [`Refresher`] that uses the cell's own build.
    ///
    /// For a cell in a `static`; of one in an [`Arc`] use [`Refresher::spawn`].
    ///
    /// # Errors
    ///
    /// As [`Refresher::spawn`].
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
    pub fn spawn_refresher<R, M>(&'static self, ahead: Duration) -> std::io::Result<Refresher>
    where
        F: Fn() -> R,
        R: BuildResult<T, M>,
    {
        Refresher::spawn(self, ahead, move |_| (self.build)())
    }
}

/// With a build that is a future (feature `async`).
#[cfg(feature = "async")]
impl<T, F, Fut, C> LazyDogpile<T, F, C>
where
    F: Fn() -> Fut,
    Fut: Future,
    C: Clock,
{
    /// The value, built if need be. See [`DogpileCell::get_or_refresh_async`].
    ///
    /// # Panics
    ///
    /// If the build panics, or if it calls this on its own cell while there is nothing to serve.
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

    /// The value, built if need be. See [`DogpileCell::try_get_or_refresh_async`].
    ///
    /// # Errors
    ///
    /// As [`DogpileCell::try_get_or_refresh_async`].
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

/// Finishing calls of a cell that keeps its build. They are those of the other cells, without the closure.
impl<T, F, C: Clock> Request<'_, T, C, LazyDogpile<T, F, C>> {
    /// The value, built if need be. Goes on building or waiting until the conditions are met.
    ///
    /// # Panics
    ///
    /// If the build panics, or if it calls this on its own cell while there is nothing to serve.
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
        let (mut search, InCaller) = self.begin(Caller::Infallible);
        match search.run() {
            Ok(Found::Served(value)) => value,
            Ok(Found::Elected(held)) => held.build(|| (handle.builder())()),
            Err(error) => search.cannot("get", &error),
        }
    }

    /// The value, built if need be.
    ///
    /// # Errors
    ///
    /// As the `try_get` of a `DogpileCell`'s request.
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
        let (mut search, InCaller) = self.begin(Caller::Fallible);
        match search.run()? {
            Found::Served(value) => Ok(value),
            Found::Elected(held) => {
                held.try_build(|| (handle.builder())()).or_else(|error| search.instead_of(error))
            }
        }
    }

    /// As [`get`](Request::get), of a cell whose build is a future (feature `async`).
    ///
    /// # Panics
    ///
    /// If the build panics, or if it calls this on its own cell while there is nothing to serve.
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
            let (mut search, InCaller) = self.begin(Caller::Infallible);
            let building = match search.run_async().await {
                Ok(Found::Served(value)) => return value,
                Ok(Found::Elected(held)) => held.build_async(|| (handle.builder())()),
                Err(error) => search.cannot_async("get_async", called, &error),
            };
            building.await
        }
    }

    /// As [`try_get`](Request::try_get), of a cell whose build is a future (feature `async`).
    ///
    /// # Errors
    ///
    /// As the `try_get` of a `DogpileCell`'s request.
    #[cfg(feature = "async")]
    pub async fn try_get_async<E, Fut>(self) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let handle = self.handle().clone();
        let (mut search, InCaller) = self.begin(Caller::Fallible);
        let building = match search.run_async().await? {
            Found::Served(value) => return Ok(value),
            Found::Elected(held) => held.try_build_async(|| (handle.builder())()),
        };
        building.await.or_else(|error| search.instead_of(error))
    }
}

/// The same, with builds that are handed to a spawner.
impl<T, F, C, S> Request<'static, T, C, LazyDogpile<T, F, C>, SpawnWith<S>>
where
    T: Send + Sync + 'static,
    F: Send + Sync + 'static,
    C: Clock + 'static,
{
    /// As the `get` of a request without a spawner.
    ///
    /// # Panics
    ///
    /// If the spawner panics; if it drops the job or the build panics while this call waits for it; if the build calls this on
    /// its own cell while there is nothing to serve.
    #[track_caller]
    pub fn get<R>(self) -> Arc<T>
    where
        F: Fn() -> T,
        S: FnOnce(Job) -> R,
    {
        let handle = self.handle().clone();
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Infallible);
        match search.run_spawned(spawn, move |held| Ok(held.build(|| (handle.builder())()))) {
            Ok(value) => value,
            Err(error) => search.cannot("get", &error),
        }
    }

    /// As the `try_get` of a request without a spawner.
    ///
    /// # Errors
    ///
    /// As there, and [`RefreshError::Abandoned`]: the spawner dropped the job, or the build panicked there.
    pub fn try_get<E, R>(self) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: Fn() -> Result<T, E>,
        S: FnOnce(Job) -> R,
    {
        let handle = self.handle().clone();
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        search.run_spawned(spawn, move |held| held.try_build(|| (handle.builder())()))
    }

    /// As the `get_async` of a request without a spawner (feature `async`).
    ///
    /// # Panics
    ///
    /// If the spawner panics; if it drops the task or the build panics while this call waits for it; if the build calls this on
    /// its own cell while there is nothing to serve.
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
                Ok(held.build_async(|| (handle.builder())()).await)
            };
            match search.run_spawned_async(spawn, run).await {
                Ok(value) => value,
                Err(error) => search.cannot_async("get_async", called, &error),
            }
        }
    }

    /// As the `try_get_async` of a request without a spawner (feature `async`).
    ///
    /// # Errors
    ///
    /// As there, and [`RefreshError::Abandoned`]: the spawner dropped the task, or the build panicked there.
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
            held.try_build_async(|| (handle.builder())()).await
        };
        search.run_spawned_async(spawn, run).await
    }
}

/// A [`Reader`] that knows its build. Made by [`LazyDogpile::reader`].
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
pub struct LazyReader<'a, T, F = fn() -> T, C = SystemClock> {
    reader: Reader<'a, T, C>,
    build: &'a F,
}

impl<T, F, C: Clock> LazyReader<'_, T, F, C> {
    /// The value, built if need be. See [`Reader::get_or_refresh`].
    ///
    /// # Panics
    ///
    /// If the build panics, or if it calls this on its own cell while there is nothing to serve.
    #[inline]
    #[track_caller]
    pub fn get_or_refresh(&mut self) -> &Arc<T>
    where
        F: Fn() -> T,
    {
        self.reader.get_or_refresh(self.build)
    }

    /// What may be served now; never builds. See [`Reader::get`].
    #[inline]
    pub fn get(&mut self) -> Option<&Arc<T>> {
        self.reader.get()
    }

    /// Lets go of the value that the handle keeps. See [`Reader::release`].
    pub fn release(&mut self) {
        self.reader.release();
    }
}

impl<T, F, C> fmt::Debug for LazyReader<'_, T, F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyReader").field("reader", &self.reader).finish_non_exhaustive()
    }
}
