//! A read with conditions.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use crate::error::{BoxError, RefreshError, SharedError};
use crate::sync::Arc;
use crate::time::{Clock, FOREVER, SystemClock, nanos};

use super::DogpileCell;
use super::build::{Job, Refreshable, Refreshed, Spawned};
use super::handle::{Handle, Kind};
use super::lease::Held;
use super::lookup::Lookup;
use super::search::{Caller, Found, Search};
use super::state::Demand;

#[cfg(feature = "async")]
use {super::build::Task, std::panic::Location};

/// A read with conditions. A finishing call, such as [`get`](Request::get) or [`try_get`](Request::try_get), does the
/// work.
///
/// [`DogpileCell::request`], [`LazyDogpile::request`](crate::LazyDogpile::request) and
/// [`SyncReaderCell::request`](crate::SyncReaderCell::request) make one. Conditions can be combined in any order. Most
/// are named after RFC 9111's request directives:
///
/// | the call returns | condition |
/// |---|---|
/// | a fresh value | [`max_stale(Duration::ZERO)`](Request::max_stale) |
/// | a value published at most `d` ago | [`max_age(d)`](Request::max_age) |
/// | a value of a later generation | [`newer_than(generation)`](Request::newer_than) |
/// | a value whose build began after the call | [`no_cache()`](Request::no_cache) |
/// | ... after at most `d` | [`wait_at_most(d)`](Request::wait_at_most) |
/// | ... or else whatever the policy may serve | [`or_stale()`](Request::or_stale) |
/// | ... built by a thread or task of its own | [`spawn_with(spawner)`](Request::spawn_with) |
///
/// **Conditions are promises**: the value that is returned meets them, or the call returns an error. `get` cannot
/// return an error, so it builds or waits until they are met. A value whose build this very call ran or started always
/// meets them, whatever happened meanwhile. A value that another caller published while this call waited is judged as
/// it was when it was published.
///
/// The usual rule applies as well: a caller that finds a stale value may be elected to rebuild it. Without conditions,
/// [`try_get`](Request::try_get) is [`DogpileCell::try_get_or_refresh`].
///
/// If no value can meet the conditions, as with `newer_than(u64::MAX)`, each call builds and returns the value of its
/// build.
///
/// # Examples
///
/// The first request returns a fresh value or an error. The second returns the old value if the new one takes too long.
/// The third leads to at most one build in 30 seconds, however often callers ask:
///
/// ```
/// use dogpile::{DogpileCell, RefreshError};
/// use std::time::Duration;
///
/// static KEYS: DogpileCell<Vec<u32>> = DogpileCell::new(Duration::from_secs(3600));
///
/// fn fetch() -> Result<Vec<u32>, std::io::Error> {
///     Ok(vec![1, 2, 3])
/// }
///
/// let fresh = KEYS.request().max_stale(Duration::ZERO).try_get(fetch)?;
///
/// let in_time = KEYS
///     .request()
///     .max_stale(Duration::ZERO)
///     .wait_at_most(Duration::from_millis(200))
///     .or_stale()
///     .spawn_with(std::thread::spawn)
///     .try_get(fetch)?;
///
/// let with_key_4 = KEYS.request().max_age(Duration::from_secs(30)).try_get(fetch)?;
/// assert_eq!(KEYS.stats().builds, 1); // the one above is not yet 30 seconds old
/// # assert_eq!((fresh, in_time), (with_key_4.clone(), with_key_4));
/// # Ok::<(), RefreshError>(())
/// ```
#[must_use = "a request does nothing until `get`, `try_get` or the like is called"]
pub struct Request<'a, T, C = SystemClock, K = DogpileCell<T, C>, S = InCaller> {
    handle: Handle<'a, K>,
    demand: Demand,
    no_cache: bool,
    patience: u64,
    or_stale: bool,
    spawner: S,
    cell: PhantomData<fn() -> (T, C)>,
}

/// The type of a [`Request`] whose builds run in the caller. See [`Request::spawn_with`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct InCaller;

/// The type of a [`Request`] whose builds are handed to a spawner. See [`Request::spawn_with`].
#[derive(Clone, Copy, Debug)]
pub struct SpawnWith<S>(pub(crate) S);

impl<K, T, C, S: Clone> Clone for Request<'_, T, C, K, S> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), spawner: self.spawner.clone(), ..*self }
    }
}

impl<K, T, C, S> fmt::Debug for Request<'_, T, C, K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

impl<'a, T, C, K> Request<'a, T, C, K> {
    pub(crate) fn new(handle: Handle<'a, K>) -> Self {
        Self {
            handle,
            demand: Demand::ANY,
            no_cache: false,
            patience: FOREVER,
            or_stale: false,
            spawner: InCaller,
            cell: PhantomData,
        }
    }
}

impl<'a, T, C, K, S> Request<'a, T, C, K, S> {
    pub(crate) fn handle(&self) -> &Handle<'a, K> {
        &self.handle
    }
}

/// Conditions.
impl<'a, T, C: Clock, K: Kind<Value = T, Clock = C>, S> Request<'a, T, C, K, S> {
    /// Accepts only a value that is past its time to live by at most `window`. [`Duration::ZERO`] accepts only a fresh
    /// value.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set(1);
    /// cell.invalidate();
    /// assert_eq!(*cell.request().max_stale(Duration::ZERO).get(|| 2), 2);
    /// ```
    pub fn max_stale(mut self, window: Duration) -> Self {
        self.demand.max_stale = nanos(window);
        self
    }

    /// Accepts only a value that was published or renewed at most `age` ago. A build that another caller runs meanwhile
    /// counts.
    ///
    /// However often callers ask, the source is asked at most once per `age`, unless the value is cleared or declared stale
    /// meanwhile. A failing source is asked as often as the
    /// [retry pauses](crate::Policy::retry_backoff) allow, and one whose values are older than `age` already
    /// ([`Refreshed::Aged`](crate::Refreshed::Aged)) by each call.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, ManualClock, Policy};
    /// use std::time::Duration;
    ///
    /// const SECOND: Duration = Duration::from_secs(1);
    ///
    /// let clock = ManualClock::new();
    /// let cell = DogpileCell::with_clock(Policy::ttl(3600 * SECOND), clock.clone());
    /// cell.set(1);
    /// assert_eq!(*cell.request().max_age(30 * SECOND).get(|| 2), 1);
    /// clock.advance(31 * SECOND);
    /// assert_eq!(*cell.request().max_age(30 * SECOND).get(|| 2), 2);
    /// ```
    pub fn max_age(mut self, age: Duration) -> Self {
        self.demand.max_age = nanos(age);
        self
    }

    /// Accepts only a value of a later generation than `generation`.
    ///
    /// Use it when the value that the caller has seen will not do: a token was rejected, a key id is unknown.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set("revoked token");
    /// let seen = cell.snapshot().unwrap();
    /// let token = cell.request().newer_than(seen.generation).get(|| "new token");
    /// assert_eq!(*token, "new token");
    /// // A caller that saw the revoked token too, and comes later:
    /// let token = cell.request().newer_than(seen.generation).get(|| unreachable!("it is there"));
    /// assert_eq!(*token, "new token");
    /// ```
    pub fn newer_than(mut self, generation: u64) -> Self {
        self.demand.newer_than = generation;
        self
    }

    /// Accepts only a value whose build or `set` began after the finishing call. So the call sees everything that was
    /// written before it.
    ///
    /// If a build is already running, the call waits for it, since there is never more than one. Then it builds, or
    /// shares the build of another caller that waited too. This is the only condition under which a caller builds
    /// during a retry pause.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set(1);
    /// assert_eq!(*cell.request().no_cache().get(|| 2), 2);
    /// ```
    pub fn no_cache(mut self) -> Self {
        self.no_cache = true;
        self
    }

    /// Waits at most `time`, on the cell's clock, for builds that the call does not run itself.
    ///
    /// After that, `try_get` returns [`RefreshError::WaitTimeout`]. With [`or_stale`](Request::or_stale) it returns the
    /// old value instead, if there is one. `get` can return no error, so without `or_stale` it goes on waiting.
    ///
    /// A build that the caller runs itself is not limited. To limit it, hand it to a [spawner](Request::spawn_with):
    /// the build then goes on after the time has passed. With [`Duration::ZERO`] such a call starts the build and waits
    /// for nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup, RefreshError};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::<u32>::new(Duration::from_secs(60));
    /// let Lookup::Elected(_lease) = cell.lookup() else { unreachable!() };
    /// let waited = cell.request().wait_at_most(Duration::ZERO).try_get(|| Err("not elected"));
    /// assert!(matches!(waited, Err(RefreshError::WaitTimeout)));
    /// ```
    pub fn wait_at_most(mut self, time: Duration) -> Self {
        self.patience = nanos(time);
        self
    }

    /// Falls back to what the policy may serve, if the conditions cannot be met: the build failed, a retry pause runs,
    /// or the time limit has passed.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set(1);
    /// cell.invalidate();
    /// let fresh = cell.request().max_stale(Duration::ZERO);
    /// assert!(fresh.clone().try_get(|| Err("no route to host")).is_err());
    /// assert_eq!(*fresh.or_stale().try_get(|| Err("no route to host"))?, 1);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    pub fn or_stale(mut self) -> Self {
        self.or_stale = true;
        self
    }

    fn demand(&self, caller: Caller) -> Demand {
        Demand {
            after: if self.no_cache { self.handle.machine().latest_origin() } else { 0 },
            builds_in_pause: self.no_cache || (caller == Caller::Infallible && !self.or_stale),
            ..self.demand
        }
    }

    /// The search, and the spawner.
    pub(crate) fn begin(self, caller: Caller) -> (Search<'a, K>, S) {
        let demand = self.demand(caller);
        let mut search = Search::new(self.handle, demand, caller);
        (search.patience, search.or_stale) = (self.patience, self.or_stale);
        (search, self.spawner)
    }
}

impl<T, C: Clock, K: Refreshable + Kind<Value = T, Clock = C>> Request<'static, T, C, K> {
    /// Hands builds to `spawner`, the first build too. They go on if their caller gives up.
    ///
    /// A caller for which there is an acceptable value gets it at once. Any other waits as it would for another
    /// caller's build. `spawner` is a function that takes a [`Job`] and runs it once. For async builds it takes a
    /// `Task` and polls it to its end. The return value of `spawner` is dropped. So these can be passed as they are:
    ///
    /// | where | `spawner` |
    /// |---|---|
    /// | a thread of its own | `std::thread::spawn` |
    /// | rayon | `rayon::spawn`, or `\|job: Job\| pool.spawn(job)` |
    /// | tokio | `tokio::task::spawn_blocking`; for async builds `tokio::spawn` |
    /// | smol | for async builds `\|task\| smol::spawn(task).detach()`; without `detach` the task is dropped |
    ///
    /// The cell must outlive the caller: use a cell in a `static`, or [`request_owned`](DogpileCell::request_owned).
    ///
    /// If a job is dropped without being run, or if the build panics, the lease is given back and another caller is
    /// elected. The call that handed the job over then returns [`RefreshError::Abandoned`]; [`get`](Request::get)
    /// panics. The panic of the build propagates in the job. If `spawner` runs the job before it returns, the call
    /// returns the new value.
    ///
    /// # Panics
    ///
    /// The finishing call panics if `spawner` panics. The lease is given back.
    ///
    /// # Deadlocks
    ///
    /// The caller must not block a thread that the job needs, such as the only thread of a pool.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Job};
    /// use std::sync::mpsc;
    /// use std::time::Duration;
    ///
    /// static REPORT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// assert_eq!(*REPORT.request().spawn_with(std::thread::spawn).get(|| 1), 1);
    ///
    /// REPORT.invalidate();
    /// let (jobs, queue) = mpsc::channel::<Job>(); // stands for a pool
    /// let report = REPORT.request().spawn_with(|job| jobs.send(job)).get(|| 2);
    /// assert_eq!(*report, 1); // the old value, at once
    /// queue.recv().unwrap()();
    /// assert_eq!(REPORT.get().as_deref(), Some(&2));
    /// ```
    pub fn spawn_with<S>(self, spawner: S) -> Request<'static, T, C, K, SpawnWith<S>> {
        let Self { handle, demand, no_cache, patience, or_stale, spawner: InCaller, cell } = self;
        Request { handle, demand, no_cache, patience, or_stale, spawner: SpawnWith(spawner), cell }
    }
}

impl<'a, T, C: Clock> Request<'a, T, C> {
    /// Looks at the cell under the conditions, and elects this caller if a build is due. See [`DogpileCell::lookup`].
    /// It never blocks.
    ///
    /// [`wait_at_most`](Request::wait_at_most) and [`or_stale`](Request::or_stale) have no effect.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set(1);
    /// assert!(matches!(cell.lookup(), Lookup::Fresh(_)));
    /// assert!(matches!(cell.request().no_cache().lookup(), Lookup::Elected(_)));
    /// ```
    pub fn lookup(self) -> Lookup<'a, T, C> {
        let demand = self.demand(Caller::Fallible);
        let decision = self.handle.machine().lookup(&demand, None);
        Lookup::new(self.handle, decision)
    }
}

/// The kinds of cells whose build is passed to each call.
///
/// This trait is sealed: no other type can implement it.
pub trait TakesBuild: Kind {}

impl<T, C: Clock> TakesBuild for DogpileCell<T, C> {}

/// Finishing calls.
impl<T, C: Clock, K: TakesBuild + Kind<Value = T, Clock = C>> Request<'_, T, C, K> {
    /// Returns the value, built by `build` if need be.
    ///
    /// Builds or waits until the conditions are met.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics, or if it calls this method on the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// assert_eq!(*cell.request().max_stale(Duration::ZERO).get(|| 1), 1);
    /// ```
    #[track_caller]
    pub fn get<F: FnOnce() -> T>(self, build: F) -> K::Shared {
        let (search, InCaller) = self.begin(Caller::Infallible);
        K::share(search.get("get", |held| held.build(build)))
    }

    /// Returns the value, built by `build` if need be, or an error.
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: the caller's own build failed, or the build that it waited for, or the latest build
    ///   while a retry pause runs; and no value that meets the conditions is within the policy's
    ///   [`stale_if_error`](crate::Policy::stale_if_error).
    /// * [`RefreshError::WaitTimeout`]: the time of [`wait_at_most`](Request::wait_at_most) is over.
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
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let limit = cell.request().no_cache().try_get(|| "7".parse::<u32>())?;
    /// assert_eq!(*limit, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    pub fn try_get<E: Into<BoxError>, F: FnOnce() -> Result<T, E>>(
        self,
        build: F,
    ) -> Result<K::Shared, RefreshError> {
        let (search, InCaller) = self.begin(Caller::Fallible);
        search.try_get(|held| held.try_build(build)).map(K::share)
    }

    /// Returns the value, built if need be by a build that is given the previous value.
    ///
    /// Use it for conditional builds (`ETag`, modification time), and for values that have a time to live of their own.
    ///
    /// The build of a [`SyncReaderCell`](crate::SyncReaderCell) is a reader of the previous value until it has ended,
    /// also if it drops the handle that it is given.
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: as for [`try_get`](Request::try_get). [`Refreshed::NotModified`] without a previous
    ///   value counts as a failed build.
    /// * [`RefreshError::WaitTimeout`]: the time of [`wait_at_most`](Request::wait_at_most) is over.
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
    /// use dogpile::{DogpileCell, Refreshed};
    /// use std::io;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// fn fetch(previous: Option<Arc<&'static str>>) -> io::Result<Refreshed<&'static str>> {
    ///     match previous {
    ///         Some(etag) if *etag == "v1" => Ok(Refreshed::NotModified),
    ///         _ => Ok(Refreshed::NewFor("v1", Duration::from_secs(300))),
    ///     }
    /// }
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let first = cell.request().try_get_with(fetch)?;
    /// cell.invalidate();
    /// let second = cell.request().try_get_with(fetch)?;
    /// assert!(Arc::ptr_eq(&first, &second));
    /// assert_eq!(cell.generation(), 2);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    pub fn try_get_with<E, F>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(Option<K::Shared>) -> Result<Refreshed<T>, E>,
    {
        let (search, InCaller) = self.begin(Caller::Fallible);
        search.try_get(|held| held.try_build_with(build)).map(K::share)
    }
}

/// Finishing calls from async code (feature `async`).
///
/// The futures run on any executor.
///
/// # Cancel safety
///
/// A future can be dropped at any point. If its caller was elected, the build is dropped and the lease is given back.
/// Any other caller gives up its place among the waiters.
#[cfg(feature = "async")]
impl<'a, T, C: Clock, K: TakesBuild + Kind<Value = T, Clock = C>> Request<'a, T, C, K> {
    /// Returns the value, built by the async `build` if need be.
    ///
    /// Like [`get`](Request::get), but suspends the task instead of blocking the thread.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics, or if it calls this method on the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// assert_eq!(*cell.request().no_cache().get_async(|| async { 1 }).await, 1);
    /// # });
    /// ```
    #[track_caller]
    pub fn get_async<F, Fut>(self, build: F) -> impl Future<Output = K::Shared> + use<'a, T, C, K, F, Fut>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        let called = Location::caller();
        async move {
            let (search, InCaller) = self.begin(Caller::Infallible);
            K::share(search.get_async("get_async", called, |held| held.build_async(build)).await)
        }
    }

    /// Returns the value, built by the async `build` if need be, or an error.
    ///
    /// Like [`try_get`](Request::try_get), but suspends the task instead of blocking the thread.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`try_get`](Request::try_get).
    ///
    /// # Panics
    ///
    /// Panics if `build` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let limit = cell.request().no_cache().try_get_async(|| async { "7".parse::<u32>() }).await?;
    /// assert_eq!(*limit, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// # }).unwrap();
    /// ```
    pub async fn try_get_async<E, F, Fut>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let (search, InCaller) = self.begin(Caller::Fallible);
        search.try_get_async(|held| held.try_build_async(build)).await.map(K::share)
    }

    /// Returns the value, built if need be by an async build that is given the previous value.
    ///
    /// Like [`try_get_with`](Request::try_get_with), but suspends the task instead of blocking the thread.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`try_get_with`](Request::try_get_with).
    ///
    /// # Panics
    ///
    /// Panics if `build` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refreshed};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let build = |_previous| async { Ok::<_, io::Error>(Refreshed::New(7)) };
    /// assert_eq!(*cell.request().try_get_with_async(build).await?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// # }).unwrap();
    /// ```
    pub async fn try_get_with_async<E, F, Fut>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(Option<K::Shared>) -> Fut,
        Fut: Future<Output = Result<Refreshed<T>, E>>,
    {
        let (search, InCaller) = self.begin(Caller::Fallible);
        search.try_get_async(|held| held.try_build_with_async(build)).await.map(K::share)
    }
}

/// What the build of a job comes to.
type Built<K> = Result<Arc<<K as Kind>::Stored>, SharedError>;

/// Runs a search whose builds are handed to a spawner.
impl<K: Refreshable> Search<'static, K> {
    /// `spawn`: hands over a job that ends with what `run` returns.
    pub(crate) fn run_spawned<R>(
        &mut self,
        spawn: impl FnOnce(Job) -> R,
        run: impl FnOnce(Held<'static, K>) -> Built<K> + Send + 'static,
    ) -> Result<Arc<K::Stored>, RefreshError> {
        let held = match self.run()? {
            Found::Served(value) => return Ok(value),
            Found::Elected(held) => held,
        };
        let (mut spawned, started) = Spawned::new(held, run);
        self.start(started);
        drop(spawn(Box::new(move || {
            let (held, run) = spawned.begin();
            let outcome = run(held);
            spawned.end(outcome);
        })));
        match self.acceptable() {
            Some(value) => Ok(value),
            None => self.run().map(Self::served),
        }
    }

    fn served(found: Found<'static, K>) -> Arc<K::Stored> {
        match found {
            Found::Served(value) => value,
            Found::Elected(_) => unreachable!("a caller that has started its build is not elected"),
        }
    }

    /// As [`run_spawned`](Search::run_spawned), for a task.
    #[cfg(feature = "async")]
    pub(crate) async fn run_spawned_async<R, Fut>(
        &mut self,
        spawn: impl FnOnce(Task) -> R,
        run: impl FnOnce(Held<'static, K>) -> Fut + Send + 'static,
    ) -> Result<Arc<K::Stored>, RefreshError>
    where
        Fut: Future<Output = Built<K>> + Send + 'static,
    {
        let held = match self.run_async().await? {
            Found::Served(value) => return Ok(value),
            Found::Elected(held) => held,
        };
        self.hand_over(held, spawn, run);
        match self.acceptable() {
            Some(value) => Ok(value),
            None => self.run_async().await.map(Self::served),
        }
    }

    /// Apart, so that neither the spawner nor what it returns is part of the future.
    #[cfg(feature = "async")]
    fn hand_over<R, Fut>(
        &mut self,
        held: Held<'static, K>,
        spawn: impl FnOnce(Task) -> R,
        run: impl FnOnce(Held<'static, K>) -> Fut + Send + 'static,
    ) where
        Fut: Future<Output = Built<K>> + Send + 'static,
    {
        let (mut spawned, started) = Spawned::new(held, run);
        self.start(started);
        drop(spawn(Box::pin(async move {
            let (held, run) = spawned.begin();
            let outcome = run(held).await;
            spawned.end(outcome);
        })));
    }
}

/// Finishing calls whose builds are handed to a spawner.
impl<T, C, K, S> Request<'static, T, C, K, SpawnWith<S>>
where
    C: Clock,
    K: Refreshable + TakesBuild + Kind<Value = T, Clock = C>,
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
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// static REPORT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// assert_eq!(*REPORT.request().spawn_with(std::thread::spawn).get(|| 7), 7);
    /// ```
    #[track_caller]
    pub fn get<F, R>(self, build: F) -> K::Shared
    where
        F: FnOnce() -> T + Send + 'static,
        S: FnOnce(Job) -> R,
    {
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Infallible);
        match search.run_spawned(spawn, |held| Ok(held.build(build))) {
            Ok(value) => K::share(value),
            Err(error) => search.cannot("get", &error),
        }
    }

    /// Returns the value, built by the spawner if need be, or an error.
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: the build of this call failed, or the build that it waited for, or the latest build
    ///   while a retry pause runs; and no value that meets the conditions is within the policy's
    ///   [`stale_if_error`](crate::Policy::stale_if_error).
    /// * [`RefreshError::WaitTimeout`]: the time of [`wait_at_most`](Request::wait_at_most) is over. The build goes on.
    /// * [`RefreshError::Abandoned`]: the spawner dropped the job, or the build panicked there.
    /// * [`RefreshError::Reentrant`]: the call came from inside the build of the same cell, while there was no value to
    ///   serve.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let dropped = LIMIT.request().spawn_with(drop).try_get(|| "7".parse::<u32>());
    /// assert!(matches!(dropped, Err(RefreshError::Abandoned)));
    ///
    /// assert_eq!(*LIMIT.request().spawn_with(std::thread::spawn).try_get(|| "7".parse::<u32>())?, 7);
    /// # Ok::<(), RefreshError>(())
    /// ```
    pub fn try_get<E, F, R>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce() -> Result<T, E> + Send + 'static,
        S: FnOnce(Job) -> R,
    {
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        search.run_spawned(spawn, |held| held.try_build(build)).map(K::share)
    }

    /// Returns the value, built if need be by a build that is given the previous value and is handed to the spawner.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`try_get_with`](Request::try_get_with) without a spawner, and [`RefreshError::Abandoned`]
    /// if the spawner dropped the job or the build panicked there.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refreshed};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// LIMIT.set(7);
    /// LIMIT.invalidate();
    /// let request = LIMIT.request().max_stale(Duration::ZERO).spawn_with(std::thread::spawn);
    /// let limit = request.try_get_with(|previous| match previous {
    ///     Some(_) => Ok(Refreshed::NotModified),
    ///     None => "7".parse::<u32>().map(Refreshed::New),
    /// })?;
    /// assert_eq!((*limit, LIMIT.generation()), (7, 2));
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    pub fn try_get_with<E, F, R>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(Option<K::Shared>) -> Result<Refreshed<T>, E> + Send + 'static,
        S: FnOnce(Job) -> R,
    {
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        search.run_spawned(spawn, |held| held.try_build_with(build)).map(K::share)
    }
}

/// Finishing calls from async code, whose builds are handed to a spawner (feature `async`).
#[cfg(feature = "async")]
impl<T, C, K, S> Request<'static, T, C, K, SpawnWith<S>>
where
    C: Clock,
    K: Refreshable + TakesBuild + Kind<Value = T, Clock = C>,
{
    /// Returns the value, built by the async `build` on the spawner's executor if need be.
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
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// static REPORT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// assert_eq!(*REPORT.request().spawn_with(tokio::spawn).get_async(|| async { 7 }).await, 7);
    /// # });
    /// ```
    #[track_caller]
    pub fn get_async<F, Fut, R>(
        self,
        build: F,
    ) -> impl Future<Output = K::Shared> + use<T, C, K, S, F, Fut, R>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
        S: FnOnce(Task) -> R,
    {
        let called = Location::caller();
        async move {
            let (mut search, SpawnWith(spawn)) = self.begin(Caller::Infallible);
            let run = |held: Held<'static, K>| async { Ok(held.build_async(build).await) };
            match search.run_spawned_async(spawn, run).await {
                Ok(value) => K::share(value),
                Err(error) => search.cannot_async("get_async", called, &error),
            }
        }
    }

    /// Returns the value, built by the async `build` on the spawner's executor if need be, or an error.
    ///
    /// If the future is dropped, the build goes on.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`try_get`](Request::try_get), and [`RefreshError::Abandoned`] if the spawner dropped the
    /// task or the build panicked there.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let request = LIMIT.request().spawn_with(tokio::spawn);
    /// assert_eq!(*request.try_get_async(|| async { "7".parse::<u32>() }).await?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// # }).unwrap();
    /// ```
    pub async fn try_get_async<E, F, Fut, R>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError> + Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        S: FnOnce(Task) -> R,
    {
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        let run = |held: Held<'static, K>| held.try_build_async(build);
        search.run_spawned_async(spawn, run).await.map(K::share)
    }

    /// Returns the value, built if need be by an async build that is given the previous value and is handed to the
    /// spawner.
    ///
    /// If the future is dropped, the build goes on.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`try_get_with`](Request::try_get_with), and [`RefreshError::Abandoned`] if the spawner
    /// dropped the task or the build panicked there.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refreshed};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let build = |_previous| async { Ok::<_, io::Error>(Refreshed::New(7)) };
    /// assert_eq!(*LIMIT.request().spawn_with(tokio::spawn).try_get_with_async(build).await?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// # }).unwrap();
    /// ```
    pub async fn try_get_with_async<E, F, Fut, R>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError> + Send + 'static,
        F: FnOnce(Option<K::Shared>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Refreshed<T>, E>> + Send + 'static,
        S: FnOnce(Task) -> R,
    {
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        let run = |held: Held<'static, K>| held.try_build_with_async(build);
        search.run_spawned_async(spawn, run).await.map(K::share)
    }
}
