//! A read with conditions.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use crate::clock::{Clock, FOREVER, SystemClock, nanos};
use crate::error::{BoxError, RefreshError, SharedError};
use crate::sync::Arc;

use super::DogpileCell;
use super::build::{Job, Publishes, Refreshable, Refreshed, Work};
use super::handle::Handle;
use super::handle::sealed::Kind;
use super::lookup::Lookup;
use super::search::{Caller, Found, Search};
use super::state::Demand;

#[cfg(feature = "async")]
use {super::build::Task, std::panic::Location};

/// A read with conditions, to be finished by a call that does the work.
///
/// [`DogpileCell::request`], [`LazyDogpile::request`](crate::LazyDogpile::request) and
/// [`SyncReaderCell::request`](crate::SyncReaderCell::request) make one. The conditions compose, in any order; most have the
/// names of RFC 9111's request directives:
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
/// **Conditions are promises**: what is returned meets them, or the call returns an error. (`get`, which cannot return one,
/// goes on building or waiting.) A value whose build this very call ran or started always meets them, whatever
/// happened meanwhile. A value that another caller published while this one waited is judged by what it was then.
///
/// Conditions come on top of the usual rule: a caller that finds a stale value may be elected to rebuild it. Without
/// conditions, [`try_get`](Request::try_get) is [`DogpileCell::try_get_or_refresh`].
///
/// Conditions that no value can meet (`newer_than(u64::MAX)`) lead to a build by each call, and to that build's value.
///
/// # Examples
///
/// A fresh value or an error; the old value if the new one takes too long; at most one build in 30 seconds, however often
/// callers ask for something newer:
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
    conditions: Conditions,
    spawner: S,
    cell: PhantomData<fn() -> (T, C)>,
}

/// Builds run in the caller. See [`Request::spawn_with`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct InCaller;

/// Builds run where this spawner runs them. See [`Request::spawn_with`].
#[derive(Clone, Copy, Debug)]
pub struct SpawnWith<S>(pub(crate) S);

#[derive(Clone, Copy)]
struct Conditions {
    max_stale: u64,
    max_age: u64,
    newer_than: u64,
    no_cache: bool,
    patience: u64,
    or_stale: bool,
}

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
        let conditions = Conditions {
            max_stale: FOREVER,
            max_age: FOREVER,
            newer_than: 0,
            no_cache: false,
            patience: FOREVER,
            or_stale: false,
        };
        Self { handle, conditions, spawner: InCaller, cell: PhantomData }
    }
}

impl<'a, T, C, K, S> Request<'a, T, C, K, S> {
    pub(crate) fn handle(&self) -> &Handle<'a, K> {
        &self.handle
    }
}

/// Conditions.
impl<'a, T, C: Clock, K: Kind<Value = T, Clock = C>, S> Request<'a, T, C, K, S> {
    /// Only a value that is not past its time to live by more than `window`. [`Duration::ZERO`]: only a fresh one.
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
        self.conditions.max_stale = nanos(window);
        self
    }

    /// Only a value that was published or renewed at most `age` ago. A build that other callers run meanwhile counts.
    ///
    /// So however often callers ask, the source is asked at most once in `age`, and a failing source as often as the
    /// [retry pauses](crate::Policy::retry_backoff) allow.
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
        self.conditions.max_age = nanos(age);
        self
    }

    /// Only a value of a later generation: what the caller has seen will not do (a 401, an unknown key id).
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
        self.conditions.newer_than = generation;
        self
    }

    /// Only a value whose build, or whose `set`, began after the finishing call: reads what was written before it.
    ///
    /// A build that runs already is waited for, since there are never two at a time; then the caller builds, or shares the
    /// build of another caller that waited too. The one condition that asks the source in a retry pause as well.
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
        self.conditions.no_cache = true;
        self
    }

    /// The call waits at most so long, on the cell's clock, for builds that it does not run itself. When the time is over,
    /// `try_get` returns [`RefreshError::WaitTimeout`]; with [`or_stale`](Request::or_stale), the old value, if there is one.
    ///
    /// A build that the caller runs itself is not bounded: hand it to a [spawner](Request::spawn_with) for that. It then goes
    /// on when the time is over. With [`Duration::ZERO`] the call starts the build, and waits for nothing.
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
        self.conditions.patience = nanos(time);
        self
    }

    /// Where the conditions cannot be met (the build failed, a retry pause runs, the time is over): what the policy may
    /// serve, in place of the error.
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
        self.conditions.or_stale = true;
        self
    }

    fn demand(&self, caller: Caller) -> Demand {
        let Conditions { max_stale, max_age, newer_than, no_cache, or_stale, .. } = self.conditions;
        Demand {
            max_stale,
            max_age,
            newer_than,
            after: if no_cache { self.handle.machine().latest_origin() } else { 0 },
            builds_in_pause: no_cache || (caller == Caller::Infallible && !or_stale),
            may_build: true,
        }
    }

    /// The search, and the spawner.
    pub(crate) fn begin(self, caller: Caller) -> (Search<'a, K>, S) {
        let demand = self.demand(caller);
        let Self { handle, conditions, spawner, .. } = self;
        let search =
            Search::new(handle, demand, caller).patience(conditions.patience).or_stale(conditions.or_stale);
        (search, spawner)
    }
}

impl<T, C: Clock, K: Refreshable + Kind<Value = T, Clock = C>> Request<'static, T, C, K> {
    /// Builds are handed to `spawner`, the first one too: they go on when their caller has given up.
    ///
    /// A caller that has something acceptable gets it at once; any other waits as it would for another caller's build.
    /// `spawner` is a function that takes a [`Job`] (in [`get`](Request::get) and the like) or, for builds that are futures, a
    /// `Task`, and runs it once. What it returns is ignored. So these fit as they are:
    ///
    /// | where | `spawner` |
    /// |---|---|
    /// | a thread of its own | `std::thread::spawn` |
    /// | rayon | `rayon::spawn`, or `\|job: Job\| pool.spawn(job)` |
    /// | tokio | `tokio::task::spawn_blocking`; for futures `tokio::spawn` |
    /// | smol | for futures `\|task\| smol::spawn(task).detach()`; without `detach` it drops the task |
    ///
    /// It needs a cell that outlives the caller: one in a `static`, or [`request_owned`](DogpileCell::request_owned).
    ///
    /// A job that is dropped instead of run gives the lease back, and another caller is elected; the caller that was elected
    /// gets [`RefreshError::Abandoned`], or panics in [`get`](Request::get). The same if the build panics; the panic itself goes
    /// on in the job. A job that `spawner` runs on the spot gives its caller the new value.
    ///
    /// # Panics
    ///
    /// The finishing call, if `spawner` panics. The lease is given back.
    ///
    /// # Deadlocks
    ///
    /// If the caller waits on a thread that the job needs: the only thread of a pool.
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
        let Self { handle, conditions, cell, .. } = self;
        Request { handle, conditions, spawner: SpawnWith(spawner), cell }
    }
}

impl<'a, T, C: Clock> Request<'a, T, C> {
    /// Looks at the cell. See [`DogpileCell::lookup`]. Never blocks.
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

/// The kinds of cells whose build is given with each call.
///
/// It is sealed: no other type can implement it.
pub trait TakesBuild: Publishes {}

impl<T, C: Clock> TakesBuild for DogpileCell<T, C> {}

/// Finishing calls.
impl<T, C: Clock, K: TakesBuild + Kind<Value = T, Clock = C>> Request<'_, T, C, K> {
    /// The value, built by `build` if need be.
    ///
    /// Goes on building or waiting until the conditions are met.
    ///
    /// # Panics
    ///
    /// If `build` panics, or if it calls this on its own cell while there is nothing to serve.
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
        let (mut search, InCaller) = self.begin(Caller::Infallible);
        K::share(match search.run() {
            Ok(Found::Served(value)) => value,
            Ok(Found::Elected(held)) => held.build(build),
            Err(error) => search.cannot("get", &error),
        })
    }

    /// The value, built by `build` if need be.
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: the caller's own build failed, or the one that it waited for, or the latest one while a
    ///   retry pause runs; and no value that meets the conditions is within the policy's
    ///   [`stale_if_error`](crate::Policy::stale_if_error).
    /// * [`RefreshError::WaitTimeout`]: the time of [`wait_at_most`](Request::wait_at_most) is over.
    /// * [`RefreshError::Reentrant`]: called from inside the build of the same cell, with nothing to serve.
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
        let (mut search, InCaller) = self.begin(Caller::Fallible);
        match search.run()? {
            Found::Served(value) => Ok(value),
            Found::Elected(held) => held.try_build(build).or_else(|error| search.instead_of(error)),
        }
        .map(K::share)
    }

    /// As [`try_get`](Request::try_get), with a build that is given the previous value: for conditional builds (`ETag`,
    /// modification time), and for values with a time to live of their own.
    ///
    /// Of a [`SyncReaderCell`](crate::SyncReaderCell) the build is a reader of the previous value until it has ended, also if it
    /// drops the handle that it is given.
    ///
    /// # Errors
    ///
    /// As [`try_get`](Request::try_get). [`Refreshed::NotModified`] without a previous value is a failure of the build.
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
        let (mut search, InCaller) = self.begin(Caller::Fallible);
        match search.run()? {
            Found::Served(value) => Ok(value),
            Found::Elected(held) => held
                .try_build_with(|previous| build(previous).map_err(Into::into))
                .or_else(|error| search.instead_of(error)),
        }
        .map(K::share)
    }
}

/// Finishing calls from async code (feature `async`).
///
/// The futures run on any executor, and can be dropped at any point: an elected one gives the lease back, any other gives up
/// its place.
#[cfg(feature = "async")]
impl<'a, T, C: Clock, K: TakesBuild + Kind<Value = T, Clock = C>> Request<'a, T, C, K> {
    /// As [`get`](Request::get), with a build that is a future.
    ///
    /// # Panics
    ///
    /// If `build` panics, or if it calls this on its own cell while there is nothing to serve.
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
            let (mut search, InCaller) = self.begin(Caller::Infallible);
            let building = match search.run_async().await {
                Ok(Found::Served(value)) => return K::share(value),
                Ok(Found::Elected(held)) => held.build_async(build),
                Err(error) => search.cannot_async("get_async", called, &error),
            };
            K::share(building.await)
        }
    }

    /// As [`try_get`](Request::try_get), with a build that is a future.
    ///
    /// # Errors
    ///
    /// As [`try_get`](Request::try_get).
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
        let (mut search, InCaller) = self.begin(Caller::Fallible);
        let building = match search.run_async().await? {
            Found::Served(value) => return Ok(K::share(value)),
            Found::Elected(held) => held.try_build_async(build),
        };
        building.await.or_else(|error| search.instead_of(error)).map(K::share)
    }

    /// As [`try_get_with`](Request::try_get_with), with a build that is a future.
    ///
    /// # Errors
    ///
    /// As [`try_get_with`](Request::try_get_with).
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
        let (mut search, InCaller) = self.begin(Caller::Fallible);
        let building = match search.run_async().await? {
            Found::Served(value) => return Ok(K::share(value)),
            Found::Elected(held) => held.try_build_with_async(build),
        };
        building.await.or_else(|error| search.instead_of(error)).map(K::share)
    }
}

/// What a job does with the lease.
type Outcome<K> = Result<Arc<<K as Kind>::Stored>, SharedError>;

/// Runs a search whose builds are handed to a spawner.
impl<K: Refreshable> Search<'static, K> {
    /// `spawn`: hands over a job that ends with what `run` returns.
    pub(crate) fn run_spawned<R>(
        &mut self,
        spawn: impl FnOnce(Job) -> R,
        run: impl FnOnce(Held<K>) -> Outcome<K> + Send + 'static,
    ) -> Result<Arc<K::Stored>, RefreshError> {
        let held = match self.run()? {
            Found::Served(value) => return Ok(value),
            Found::Elected(held) => held,
        };
        let (work, started) = Work::new(held, run);
        self.start(started);
        drop(spawn(Box::new(move || {
            let (mut spawned, run) = work.begin();
            let outcome = run(spawned.begin());
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
        run: impl FnOnce(Held<K>) -> Fut + Send + 'static,
    ) -> Result<Arc<K::Stored>, RefreshError>
    where
        Fut: Future<Output = Outcome<K>> + Send + 'static,
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
        held: Held<K>,
        spawn: impl FnOnce(Task) -> R,
        run: impl FnOnce(Held<K>) -> Fut + Send + 'static,
    ) where
        Fut: Future<Output = Outcome<K>> + Send + 'static,
    {
        let (work, started) = Work::new(held, run);
        self.start(started);
        drop(spawn(Box::pin(async move {
            let (mut spawned, run) = work.begin();
            let outcome = run(spawned.begin()).await;
            spawned.end(outcome);
        })));
    }
}

type Held<K> = super::lease::Held<'static, K>;

/// Finishing calls whose builds are handed to a spawner.
impl<T, C, K, S> Request<'static, T, C, K, SpawnWith<S>>
where
    C: Clock,
    K: Refreshable + TakesBuild + Kind<Value = T, Clock = C>,
{
    /// As the `get` of a request without a spawner.
    ///
    /// # Panics
    ///
    /// If the spawner panics; if it drops the job or the build panics while this call waits for it; if the build calls this on
    /// its own cell while there is nothing to serve.
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

    /// As the `try_get` of a request without a spawner.
    ///
    /// # Errors
    ///
    /// As there, and [`RefreshError::Abandoned`]: the spawner dropped the job, or the build panicked there.
    pub fn try_get<E, F, R>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce() -> Result<T, E> + Send + 'static,
        S: FnOnce(Job) -> R,
    {
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        search.run_spawned(spawn, |held| held.try_build(build)).map(K::share)
    }

    /// As the `try_get_with` of a request without a spawner.
    ///
    /// # Errors
    ///
    /// As there, and [`RefreshError::Abandoned`]: the spawner dropped the job, or the build panicked there.
    pub fn try_get_with<E, F, R>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(Option<K::Shared>) -> Result<Refreshed<T>, E> + Send + 'static,
        S: FnOnce(Job) -> R,
    {
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        let run = |held: Held<K>| held.try_build_with(|previous| build(previous).map_err(Into::into));
        search.run_spawned(spawn, run).map(K::share)
    }
}

/// Finishing calls from async code, whose builds are handed to a spawner (feature `async`).
#[cfg(feature = "async")]
impl<T, C, K, S> Request<'static, T, C, K, SpawnWith<S>>
where
    C: Clock,
    K: Refreshable + TakesBuild + Kind<Value = T, Clock = C>,
{
    /// As the `get_async` of a request without a spawner.
    ///
    /// # Panics
    ///
    /// If the spawner panics; if it drops the task or the build panics while this call waits for it; if the build calls this on
    /// its own cell while there is nothing to serve.
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
            let run = |held: Held<K>| async { Ok(held.build_async(build).await) };
            match search.run_spawned_async(spawn, run).await {
                Ok(value) => K::share(value),
                Err(error) => search.cannot_async("get_async", called, &error),
            }
        }
    }

    /// As the `try_get_async` of a request without a spawner.
    ///
    /// # Errors
    ///
    /// As there, and [`RefreshError::Abandoned`]: the spawner dropped the task, or the build panicked there.
    pub async fn try_get_async<E, F, Fut, R>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError> + Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        S: FnOnce(Task) -> R,
    {
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        let run = |held: Held<K>| held.try_build_async(build);
        search.run_spawned_async(spawn, run).await.map(K::share)
    }

    /// As the `try_get_with_async` of a request without a spawner.
    ///
    /// # Errors
    ///
    /// As there, and [`RefreshError::Abandoned`]: the spawner dropped the task, or the build panicked there.
    pub async fn try_get_with_async<E, F, Fut, R>(self, build: F) -> Result<K::Shared, RefreshError>
    where
        E: Into<BoxError> + Send + 'static,
        F: FnOnce(Option<K::Shared>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Refreshed<T>, E>> + Send + 'static,
        S: FnOnce(Task) -> R,
    {
        let (mut search, SpawnWith(spawn)) = self.begin(Caller::Fallible);
        let run = |held: Held<K>| held.try_build_with_async(build);
        search.run_spawned_async(spawn, run).await.map(K::share)
    }
}
