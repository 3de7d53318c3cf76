//! A read with conditions.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{BoxError, Clock, Freshness, Job, RefreshError, Refreshed, Snapshot, SystemClock, Tick};
use parking_lot::Mutex;

use crate::clock::{FlightClock, nanos};
use crate::flight::{Answer, Cell, Entered, FlightRef, Made, Progress, Purpose};
use crate::inner::{Building, Inner, is_within};
use crate::map::{DogpileMap, Reading, cannot, taken};

#[cfg(feature = "async")]
use dogpile::Task;

/// A read with conditions, to be finished by a call that does the work.
///
/// [`DogpileMap::request`] makes one. The conditions are those of [`dogpile::Request`], and mean the same, for one key:
///
/// | the call returns | condition |
/// |---|---|
/// | a fresh value | [`max_stale(Duration::ZERO)`](Request::max_stale) |
/// | a value published at most `d` ago | [`max_age(d)`](Request::max_age) |
/// | a value whose build began after the call | [`no_cache()`](Request::no_cache) |
/// | ... after at most `d` | [`wait_at_most(d)`](Request::wait_at_most) |
/// | ... or else whatever the policy may serve | [`or_stale()`](Request::or_stale) |
/// | ... built by a thread or task of its own | [`spawn_with(spawner)`](Request::spawn_with) |
///
/// **Conditions are promises**: what is returned meets them, or the call returns an error. (`get`, which cannot return one,
/// goes on building or waiting.) A value whose build this very call ran or started always meets them.
///
/// # Examples
///
/// A fresh value within 200 ms, else the old one. The build goes on:
///
/// ```
/// use dogpile::{Policy, RefreshError};
/// use dogpile_map::DogpileMap;
/// use std::time::Duration;
///
/// let prices = DogpileMap::<String, u32>::builder(Policy::ttl(Duration::from_secs(60))).build();
/// let price = prices
///     .request("bread")
///     .max_stale(Duration::ZERO)
///     .wait_at_most(Duration::from_millis(200))
///     .or_stale()
///     .spawn_with(std::thread::spawn)
///     .try_get(|name| Ok::<_, std::io::Error>(name.len() as u32));
/// # let price = match price { Err(RefreshError::WaitTimeout) => return Ok(()), price => price };
/// assert_eq!(*price?, 5);
/// # Ok::<(), RefreshError>(())
/// ```
#[must_use = "a request does nothing until `get`, `try_get` or the like is called"]
pub struct Request<'m, 'q, K, Q: ?Sized, T, C = SystemClock, S = InCaller> {
    map: &'m DogpileMap<K, T, C>,
    key: &'q Q,
    conditions: Conditions,
    spawner: S,
}

/// Builds run in the caller. See [`Request::spawn_with`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct InCaller;

/// Builds run where this spawner runs them. See [`Request::spawn_with`].
#[derive(Clone, Copy, Debug)]
pub struct SpawnWith<S>(S);

#[derive(Clone, Copy)]
struct Conditions {
    max_stale: Duration,
    max_age: Duration,
    no_cache: bool,
    wait_at_most: Option<Duration>,
    /// When that is over, once the call has looked.
    deadline: Option<Tick>,
    or_stale: bool,
}

impl<K, Q: ?Sized, T, C, S: Clone> Clone for Request<'_, '_, K, Q, T, C, S> {
    fn clone(&self) -> Self {
        Self { spawner: self.spawner.clone(), ..*self }
    }
}

impl<K, Q: ?Sized, T, C, S> fmt::Debug for Request<'_, '_, K, Q, T, C, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

impl<'m, 'q, K, Q: ?Sized, T, C> Request<'m, 'q, K, Q, T, C> {
    pub(crate) fn new(map: &'m DogpileMap<K, T, C>, key: &'q Q) -> Self {
        let conditions = Conditions {
            max_stale: Duration::MAX,
            max_age: Duration::MAX,
            no_cache: false,
            wait_at_most: None,
            deadline: None,
            or_stale: false,
        };
        Self { map, key, conditions, spawner: InCaller }
    }
}

/// Conditions.
impl<'m, 'q, K, Q: ?Sized, T, C, S> Request<'m, 'q, K, Q, T, C, S> {
    /// Only a value that is not past its time to live by more than `window`. [`Duration::ZERO`]: only a fresh one.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// map.set(7, 1);
    /// map.invalidate(&7);
    /// let fresh = map.request(&7).max_stale(Duration::ZERO);
    /// assert!(fresh.clone().try_get(|_| Err("no route to host")).is_err());
    /// assert_eq!(*fresh.or_stale().try_get(|_| Err("no route to host"))?, 1);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    pub fn max_stale(mut self, window: Duration) -> Self {
        self.conditions.max_stale = window;
        self
    }

    /// Only a value that was published or renewed at most `age` ago. A build that other callers run meanwhile counts.
    ///
    /// However often callers ask, the source is asked for a key at most once in `age`, unless the value is evicted, cleared or
    /// declared stale meanwhile. A failing source is asked as often as the policy's retry pauses allow, and one whose values are older
    /// than `age` already (`Refreshed::Aged`) by each call.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{ManualClock, Policy};
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// const SECOND: Duration = Duration::from_secs(1);
    ///
    /// let clock = ManualClock::new();
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(3600 * SECOND)).clock(clock.clone()).build();
    /// map.set(7, 1);
    /// clock.advance(31 * SECOND);
    /// assert_eq!(*map.request(&7).max_age(60 * SECOND).get(|_| 2), 1);
    /// assert_eq!(*map.request(&7).max_age(30 * SECOND).get(|_| 2), 2);
    /// ```
    pub fn max_age(mut self, age: Duration) -> Self {
        self.conditions.max_age = age;
        self
    }

    /// Only a value whose build, or whose `set`, began after the finishing call: reads what was written before it.
    ///
    /// A build that runs already is waited for, since there are never two of one key at a time; then the caller builds, or
    /// shares the build of another caller that waited too. The one condition that asks the source in a retry pause as well.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// map.set(7, 1);
    /// assert_eq!(*map.request(&7).no_cache().get(|_| 2), 2);
    /// ```
    pub fn no_cache(mut self) -> Self {
        self.conditions.no_cache = true;
        self
    }

    /// The call waits at most so long, on the map's clock, for builds that it does not run itself. Then `try_get` returns
    /// [`RefreshError::WaitTimeout`]; with [`or_stale`](Request::or_stale), the old value, if there is one.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Policy, RefreshError};
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// let job = std::cell::Cell::new(None);
    /// let started = map.request(&7).wait_at_most(Duration::ZERO).spawn_with(|build| job.set(Some(build)));
    /// assert!(matches!(started.try_get(|_| Ok::<_, String>(49)), Err(RefreshError::WaitTimeout)));
    ///
    /// job.take().unwrap()(); // the build goes on
    /// assert_eq!(map.get(&7).as_deref(), Some(&49));
    /// ```
    pub fn wait_at_most(mut self, time: Duration) -> Self {
        self.conditions.wait_at_most = Some(time);
        self
    }

    /// Where the conditions cannot be met (the build failed, a retry pause runs, the time is over): what the policy may
    /// serve, in place of the error. See [`max_stale`](Request::max_stale) for an example.
    pub fn or_stale(mut self) -> Self {
        self.conditions.or_stale = true;
        self
    }

    /// Builds are handed to `spawner`, the first one of a key too: they go on when their caller has given up.
    ///
    /// A caller that has something acceptable gets it at once. The spawner is a function that takes a [`Job`] or, for builds
    /// that are futures, a `Task`, and runs it once; what it returns is ignored. So `std::thread::spawn`, `rayon::spawn`,
    /// `tokio::task::spawn_blocking` and (for futures) `tokio::spawn` fit as they are. See
    /// [`dogpile::Request::spawn_with`] for what happens when a job is dropped or panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// assert_eq!(*map.request(&7).spawn_with(std::thread::spawn).get(|n| n * n), 49);
    /// ```
    pub fn spawn_with<S2>(self, spawner: S2) -> Request<'m, 'q, K, Q, T, C, SpawnWith<S2>> {
        let Self { map, key, conditions, .. } = self;
        Request { map, key, conditions, spawner: SpawnWith(spawner) }
    }
}

/// The cell's request, of whatever spawner.
type CellRequest<'a, T, C> = dogpile::Request<'a, Made<T>, FlightClock<C>>;

impl Conditions {
    /// To the flight's cell, for one look of the call.
    fn apply<'a, T, C: Clock>(
        &mut self,
        clock: &C,
        mut request: CellRequest<'a, T, C>,
    ) -> CellRequest<'a, T, C> {
        if self.max_stale < Duration::MAX {
            request = request.max_stale(self.max_stale);
        }
        if self.max_age < Duration::MAX {
            request = request.max_age(self.max_age);
        }
        if self.no_cache {
            request = request.no_cache();
        }
        if let Some(time) = self.wait_at_most {
            let now = clock.now();
            let deadline = *self.deadline.get_or_insert(now.saturating_add(time));
            request = request.wait_at_most(deadline.saturating_duration_since(now));
        }
        if self.or_stale { request.or_stale() } else { request }
    }

    /// A value at rest that will do.
    fn at_rest<K, Q, T, C>(&self, map: &Inner<K, T, C>, key: &Q) -> Option<Arc<T>>
    where
        K: Borrow<Q> + Hash + Eq + Clone,
        Q: Hash + Eq + ?Sized,
        C: Clock + Clone,
    {
        if self.no_cache {
            return None;
        }
        let found = map.fresh_and_young(key, nanos(self.max_age));
        if found.is_some() {
            map.stats.count_hit();
        }
        found
    }

    /// Whether a value meets them, which was there before the call.
    fn accept<T>(&self, seen: &Snapshot<T>) -> bool {
        !self.no_cache && seen.age <= self.max_age && is_within(seen, self.max_stale)
    }

    /// Whether a fresh value may have to be replaced.
    fn purpose(&self) -> Purpose {
        if self.no_cache || self.max_age < Duration::MAX { Purpose::Change } else { Purpose::Read }
    }
}

impl<'m, K, Q, T, C, S> Request<'m, '_, K, Q, T, C, S>
where
    K: Borrow<Q> + Hash + Eq + Clone,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    C: Clock + Clone,
{
    /// Enters a flight. `Err`: a value that is there, or that there must be no wait.
    fn enter(&self) -> Result<Reading<'m, K, T, C>, Answer<T>> {
        let entered = Inner::enter(&*self.map.inner, self.key, self.conditions.purpose());
        entered.flight(|seen| self.conditions.or_stale || self.conditions.accept(seen))
    }

    fn at_rest(&self) -> Option<Arc<T>> {
        self.conditions.at_rest(&*self.map.inner, self.key)
    }
}

/// Enters a flight, or returns the value that is there, or panics. A macro, so that the panic has the line of the call.
macro_rules! enter {
    ($request:expr, $name:literal, $instead:literal) => {
        match $request.enter() {
            Ok(flight) => flight,
            Err(Ok(value)) => return value,
            Err(Err(_)) => cannot($name, $instead),
        }
    };
}

/// Enters a flight, or returns what there is in place of it.
macro_rules! try_enter {
    ($request:expr) => {
        match $request.enter() {
            Ok(flight) => flight,
            Err(found) => return found,
        }
    };
}

/// What a flight's cell held before a call looked at it.
struct Found {
    /// 0: nothing. It is compared only.
    address: usize,
    freshness: Freshness,
}

impl Found {
    fn of<T, C: Clock>(cell: &Cell<T, C>) -> Self {
        match cell.peek() {
            Some(seen) => Self { address: Arc::as_ptr(&seen.value).addr(), freshness: seen.freshness },
            None => Self { address: 0, freshness: Freshness::Empty },
        }
    }

    /// What there was for a call that was served this in the end.
    fn served<T>(&self, made: Option<&Arc<Made<T>>>) -> Freshness {
        let is_same = made.is_some_and(|made| Arc::as_ptr(made).addr() == self.address);
        if is_same { self.freshness } else { Freshness::Empty }
    }
}

/// What a build returned, as the flight's cell takes it.
fn refreshed<K, T, C, E>(
    map: &Inner<K, T, C>,
    building: Building<'_, K, T, C>,
    previous: Option<&Arc<Made<T>>>,
    result: Result<Refreshed<T>, E>,
) -> Result<Refreshed<Made<T>>, E>
where
    K: Hash + Eq + Clone,
    C: Clock + Clone,
{
    let refreshed = match result {
        Ok(refreshed) => refreshed,
        Err(error) => {
            building.fail();
            return Err(error);
        }
    };
    Ok(match (refreshed, previous) {
        (Refreshed::New(value), _) => Refreshed::New(building.finish(Arc::new(value))),
        (Refreshed::NewFor(value, ttl), _) => {
            Refreshed::NewFor(building.finish(Arc::new(value)), map.drawn_ttl(ttl))
        }
        (Refreshed::Aged { value, age, ttl }, _) => {
            let value = building.finish(Arc::new(value));
            Refreshed::Aged { value, age, ttl: ttl.map(|ttl| map.drawn_ttl(ttl)) }
        }
        // Anew, since it is as good as one that was built now: it has the origin of this build.
        (_, Some(previous)) => Refreshed::New(building.finish(Arc::clone(&previous.value))),
        (_, None) => {
            building.fail();
            Refreshed::NotModified
        }
    })
}

fn value_of<T>(previous: Option<&Arc<Made<T>>>) -> Option<Arc<T>> {
    previous.map(|made| Arc::clone(&made.value))
}

/// Finishing calls.
impl<K, Q, T, C> Request<'_, '_, K, Q, T, C>
where
    K: Borrow<Q> + Hash + Eq + Clone,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    C: Clock + Clone,
{
    /// The value, built by `build` if need be.
    ///
    /// # Panics
    ///
    /// If `build` panics, or if it calls this for its own key while there is nothing to serve. So does the loader of a
    /// [`get_many`](DogpileMap::get_many) that calls this for one of its keys, if no value of it meets the conditions.
    #[track_caller]
    pub fn get<F: FnOnce(&K) -> T>(mut self, build: F) -> Arc<T> {
        if let Some(value) = self.at_rest() {
            return value;
        }
        let mut build = Some(build);
        let mut lapsed = None;
        loop {
            let flight = enter!(self, "get", "`try_get`");
            let found = Found::of(flight.cell());
            let request = self.conditions.apply(&self.map.inner.clock, flight.cell().request());
            let made = request.get(|| flight.build(taken(&mut build)));
            if flight.accepts(&made, &mut lapsed) {
                flight.count(found.served(Some(&made)));
                return Arc::clone(&made.value);
            }
        }
    }

    /// As [`get`](Request::get), with a build that may fail.
    ///
    /// # Errors
    ///
    /// As [`DogpileMap::try_get_or_refresh`], and [`RefreshError::WaitTimeout`].
    pub fn try_get<E, F>(self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&K) -> Result<T, E>,
    {
        self.try_get_with(|key, _| build(key).map(Refreshed::New))
    }

    /// As [`try_get`](Request::try_get), with a build that is given the previous value, and may find that it has not changed,
    /// or choose a time to live, or say how old its value is already.
    ///
    /// # Errors
    ///
    /// As [`try_get`](Request::try_get).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Policy, Refreshed};
    /// use dogpile_map::DogpileMap;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, String>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// let first = map.set(7, String::from("seven"));
    /// map.invalidate(&7);
    /// let again = map.request(&7).try_get_with(|_, previous| {
    ///     assert!(previous.is_some());
    ///     Ok::<_, String>(Refreshed::NotModified) // a 304
    /// })?;
    /// assert!(Arc::ptr_eq(&first, &again));
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    pub fn try_get_with<E, F>(mut self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&K, Option<Arc<T>>) -> Result<Refreshed<T>, E>,
    {
        if let Some(value) = self.at_rest() {
            return Ok(value);
        }
        let mut build = Some(build);
        let mut lapsed = None;
        loop {
            let flight = try_enter!(self);
            let found = Found::of(flight.cell());
            let request = self.conditions.apply(&self.map.inner.clock, flight.cell().request());
            let made = request.try_get_with(|previous| {
                let building = flight.begin();
                let result = taken(&mut build)(&flight.flight.key, value_of(previous.as_ref()));
                refreshed(flight.map, building, previous.as_ref(), result)
            });
            if made.as_ref().is_ok_and(|made| !flight.accepts(made, &mut lapsed)) {
                continue;
            }
            flight.count(found.served(made.as_ref().ok()));
            return made.map(|made| Arc::clone(&made.value));
        }
    }
}

/// Finishing calls whose build is a future.
#[cfg(feature = "async")]
impl<K, Q, T, C> Request<'_, '_, K, Q, T, C>
where
    K: Borrow<Q> + Hash + Eq + Clone,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    C: Clock + Clone,
{
    /// As [`get`](Request::get).
    ///
    /// # Panics
    ///
    /// As [`get`](Request::get).
    pub async fn get_async<F: AsyncFnOnce(&K) -> T>(mut self, build: F) -> Arc<T> {
        if let Some(value) = self.at_rest() {
            return value;
        }
        let mut build = Some(build);
        let mut lapsed = None;
        loop {
            let flight = enter!(self, "get_async", "`try_get_async`");
            let found = Found::of(flight.cell());
            let request = self.conditions.apply(&self.map.inner.clock, flight.cell().request());
            let made = request
                .get_async(|| async {
                    let building = flight.begin();
                    building.finish(Arc::new(taken(&mut build)(&flight.flight.key).await))
                })
                .await;
            if flight.accepts(&made, &mut lapsed) {
                flight.count(found.served(Some(&made)));
                return Arc::clone(&made.value);
            }
        }
    }

    /// As [`try_get`](Request::try_get).
    ///
    /// # Errors
    ///
    /// As [`try_get`](Request::try_get).
    pub async fn try_get_async<E, F>(self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: AsyncFnOnce(&K) -> Result<T, E>,
    {
        self.try_get_with_async(async |key: &K, _| build(key).await.map(Refreshed::New)).await
    }

    /// As [`try_get_with`](Request::try_get_with).
    ///
    /// # Errors
    ///
    /// As [`try_get`](Request::try_get).
    pub async fn try_get_with_async<E, F>(mut self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: AsyncFnOnce(&K, Option<Arc<T>>) -> Result<Refreshed<T>, E>,
    {
        if let Some(value) = self.at_rest() {
            return Ok(value);
        }
        let mut build = Some(build);
        let mut lapsed = None;
        loop {
            let flight = try_enter!(self);
            let found = Found::of(flight.cell());
            let request = self.conditions.apply(&self.map.inner.clock, flight.cell().request());
            let (flight_ref, build_ref) = (&flight, &mut build);
            let made = request
                .try_get_with_async(|previous| async move {
                    let building = flight_ref.begin();
                    let result = taken(build_ref)(&flight_ref.flight.key, value_of(previous.as_ref())).await;
                    refreshed(flight_ref.map, building, previous.as_ref(), result)
                })
                .await;
            if made.as_ref().is_ok_and(|made| !flight.accepts(made, &mut lapsed)) {
                continue;
            }
            flight.count(found.served(made.as_ref().ok()));
            return made.map(|made| Arc::clone(&made.value));
        }
    }
}

/// What a call that hands its build to a spawner needs, once for each look.
struct Spawning<F, S> {
    /// Taken by the job.
    build: Arc<Mutex<Option<F>>>,
    spawn: Option<S>,
}

impl<F, S> Spawning<F, S> {
    fn new(build: F, spawn: S) -> Self {
        Self { build: Arc::new(Mutex::new(Some(build))), spawn: Some(spawn) }
    }
}

fn taken_by_job<F>(build: &Mutex<Option<F>>) -> F {
    let build = build.lock().take();
    build.unwrap_or_else(|| unreachable!("a job runs once"))
}

/// The job's use of the flight: from before it is handed over until it is over.
type OfJob<K, T, C> = FlightRef<K, T, C, Arc<Inner<K, T, C>>>;

/// Finishing calls whose build is handed to a spawner.
impl<K, Q, T, C, S> Request<'_, '_, K, Q, T, C, SpawnWith<S>>
where
    K: Borrow<Q> + Hash + Eq + Clone + Send + Sync + 'static,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// As [`Request::get`] without a spawner. The build is given the key.
    ///
    /// # Panics
    ///
    /// If the build panics or is dropped before there is a value, or if the spawner panics.
    #[track_caller]
    pub fn get<F, R>(self, build: F) -> Arc<T>
    where
        F: FnOnce(&K) -> T + Send + 'static,
        S: FnOnce(Job) -> R,
    {
        if let Some(value) = self.at_rest() {
            return value;
        }
        let Self { map, key, conditions, spawner: SpawnWith(spawn) } = self;
        let mut this = Request { map, key, conditions, spawner: InCaller };
        let mut spawning = Spawning::new(build, spawn);
        let mut lapsed = None;
        loop {
            let flight = enter!(this, "get", "`try_get`");
            let found = Found::of(flight.cell());
            let (job, build) = (this.of_job(), Arc::clone(&spawning.build));
            let (owner, held) = (Arc::clone(&this.map.inner), Arc::clone(&flight.flight));
            let made = this
                .conditions
                .apply(&this.map.inner.clock, Cell::request_owned(flight.cell()))
                .spawn_with(|work: Job| {
                    flight.set_progress(Progress::HandedOver);
                    let handed_over = HandedOver { work, job };
                    spawner(&mut spawning.spawn)(Box::new(|| handed_over.run()))
                });
            let made = made.get(move || {
                let building = owner.begin(&held.key);
                let value = taken_by_job(&build)(&held.key);
                building.finish(Arc::new(value))
            });
            if flight.accepts(&made, &mut lapsed) {
                flight.count(found.served(Some(&made)));
                return Arc::clone(&made.value);
            }
        }
    }

    /// As [`Request::try_get`] without a spawner.
    ///
    /// # Errors
    ///
    /// As [`DogpileMap::try_get_or_refresh`], [`RefreshError::WaitTimeout`], and [`RefreshError::Abandoned`] if the spawner
    /// dropped the build, or it panicked.
    ///
    /// # Panics
    ///
    /// If the spawner panics.
    pub fn try_get<E, F, R>(self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&K) -> Result<T, E> + Send + 'static,
        S: FnOnce(Job) -> R,
    {
        self.try_get_with(|key, _| build(key).map(Refreshed::New))
    }

    /// As [`Request::try_get_with`] without a spawner.
    ///
    /// # Errors
    ///
    /// As [`try_get`](Request::try_get).
    ///
    /// # Panics
    ///
    /// If the spawner panics.
    pub fn try_get_with<E, F, R>(self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&K, Option<Arc<T>>) -> Result<Refreshed<T>, E> + Send + 'static,
        S: FnOnce(Job) -> R,
    {
        if let Some(value) = self.at_rest() {
            return Ok(value);
        }
        let Self { map, key, conditions, spawner: SpawnWith(spawn) } = self;
        let mut this = Request { map, key, conditions, spawner: InCaller };
        let mut spawning = Spawning::new(build, spawn);
        let mut lapsed = None;
        loop {
            let flight = try_enter!(this);
            let found = Found::of(flight.cell());
            let (job, build) = (this.of_job(), Arc::clone(&spawning.build));
            let (owner, held) = (Arc::clone(&this.map.inner), Arc::clone(&flight.flight));
            let made = this
                .conditions
                .apply(&this.map.inner.clock, Cell::request_owned(flight.cell()))
                .spawn_with(|work: Job| {
                    flight.set_progress(Progress::HandedOver);
                    let handed_over = HandedOver { work, job };
                    spawner(&mut spawning.spawn)(Box::new(|| handed_over.run()))
                });
            let made = made.try_get_with(move |previous| {
                let building = owner.begin(&held.key);
                let result = taken_by_job(&build)(&held.key, value_of(previous.as_ref()));
                refreshed(&owner, building, previous.as_ref(), result)
            });
            if made.as_ref().is_ok_and(|made| !flight.accepts(made, &mut lapsed)) {
                continue;
            }
            flight.count(found.served(made.as_ref().ok()));
            return made.map(|made| Arc::clone(&made.value));
        }
    }
}

impl<K, Q, T, C> Request<'_, '_, K, Q, T, C>
where
    K: Borrow<Q> + Hash + Eq + Clone,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    C: Clock + Clone,
{
    /// The caller is in the flight, so this is the same one. As a change: the job publishes when its caller may be gone.
    fn of_job(&self) -> Option<OfJob<K, T, C>> {
        match Inner::enter(Arc::clone(&self.map.inner), self.key, Purpose::Change) {
            Entered::Flight(flight) => Some(flight),
            Entered::Fresh(_) | Entered::Loading(_) => None,
        }
    }
}

/// What a spawner gets, with its use of the flight.
///
/// Work that is dropped unrun gives the lease back. The end of the use copies the cell's state, so it comes after that: the fields
/// are dropped in this order.
struct HandedOver<W, K, T, C>
where
    K: Hash + Eq + Clone,
    C: Clock + Clone,
{
    work: W,
    job: Option<OfJob<K, T, C>>,
}

impl<K, T, C> HandedOver<Job, K, T, C>
where
    K: Hash + Eq + Clone,
    C: Clock + Clone,
{
    fn run(self) {
        // Dropped after the work, also if that panics.
        let _job = self.job;
        (self.work)();
    }
}

#[cfg(feature = "async")]
impl<K, T, C> HandedOver<Task, K, T, C>
where
    K: Hash + Eq + Clone,
    C: Clock + Clone,
{
    async fn run(self) {
        // Dropped after the work, also if the task is dropped before its end.
        let _job = self.job;
        self.work.await;
    }
}

fn spawner<S>(spawn: &mut Option<S>) -> S {
    spawn.take().unwrap_or_else(|| unreachable!("a call that has handed its build over is done"))
}

/// Finishing calls whose build is a future, and is handed to a spawner.
#[cfg(feature = "async")]
impl<K, Q, T, C, S> Request<'_, '_, K, Q, T, C, SpawnWith<S>>
where
    K: Borrow<Q> + Hash + Eq + Clone + Send + Sync + 'static,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// As [`Request::get_async`] without a spawner. The build is given a key of its own.
    ///
    /// # Panics
    ///
    /// If the build panics or is dropped before there is a value, or if the spawner panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// let square = map.request(&7).spawn_with(tokio::spawn).get_async(async |n| n * n).await;
    /// assert_eq!(*square, 49);
    /// # });
    /// ```
    pub async fn get_async<F, Fut, R>(self, build: F) -> Arc<T>
    where
        F: FnOnce(K) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
        S: FnOnce(Task) -> R,
    {
        let found = self
            .try_get_async(|key| {
                let build = build(key);
                async { Ok::<T, RefreshError>(build.await) }
            })
            .await;
        match found {
            Ok(value) => value,
            Err(error) => panic!("get_async: {error}; `try_get_async` returns it as an error"),
        }
    }

    /// As [`Request::try_get_async`] without a spawner.
    ///
    /// # Errors
    ///
    /// As [`DogpileMap::try_get_or_refresh`], [`RefreshError::WaitTimeout`], and [`RefreshError::Abandoned`] if the spawner
    /// dropped the build, or it panicked.
    pub async fn try_get_async<E, F, Fut, R>(self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError> + Send + 'static,
        F: FnOnce(K) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        S: FnOnce(Task) -> R,
    {
        self.try_get_with_async(|key, _| {
            let build = build(key);
            async { build.await.map(Refreshed::New) }
        })
        .await
    }

    /// As [`Request::try_get_with_async`] without a spawner.
    ///
    /// # Errors
    ///
    /// As [`try_get_async`](Request::try_get_async).
    pub async fn try_get_with_async<E, F, Fut, R>(self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError> + Send + 'static,
        F: FnOnce(K, Option<Arc<T>>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Refreshed<T>, E>> + Send + 'static,
        S: FnOnce(Task) -> R,
    {
        if let Some(value) = self.at_rest() {
            return Ok(value);
        }
        let Self { map, key, conditions, spawner: SpawnWith(spawn) } = self;
        let mut this = Request { map, key, conditions, spawner: InCaller };
        let mut spawning = Spawning::new(build, spawn);
        let mut lapsed = None;
        loop {
            let flight = try_enter!(this);
            let found = Found::of(flight.cell());
            let (job, build) = (this.of_job(), Arc::clone(&spawning.build));
            let (owner, held) = (Arc::clone(&this.map.inner), Arc::clone(&flight.flight));
            let (flight_ref, spawn) = (&flight, &mut spawning.spawn);
            let made = this
                .conditions
                .apply(&this.map.inner.clock, Cell::request_owned(flight.cell()))
                .spawn_with(|work: Task| {
                    flight_ref.set_progress(Progress::HandedOver);
                    spawner(spawn)(Box::pin(HandedOver { work, job }.run()))
                });
            let made = made
                .try_get_with_async(move |previous| async move {
                    let building = owner.begin(&held.key);
                    let build = taken_by_job(&build);
                    let result = build(held.key.clone(), value_of(previous.as_ref())).await;
                    refreshed(&owner, building, previous.as_ref(), result)
                })
                .await;
            if made.as_ref().is_ok_and(|made| !flight.accepts(made, &mut lapsed)) {
                continue;
            }
            flight.count(found.served(made.as_ref().ok()));
            return made.map(|made| Arc::clone(&made.value));
        }
    }
}
