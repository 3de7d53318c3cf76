//! The map.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{BoxError, Clock, Policy, RefreshError, SystemClock};

use crate::builder::Builder;
use crate::clock::moment;
use crate::flight::{Answer, Entered, FlightRef, Made, Purpose};
use crate::inner::{Inner, Look};
use crate::request::Request;
use crate::stats::Stats;
use crate::store::Store;

/// Many keys, each with a value that is expensive to make: a bounded cache in which one caller rebuilds a key while all
/// others go on using its old value.
///
/// For each key it is what a [`DogpileCell`](dogpile::DogpileCell) is for one value, with the same [`Policy`], also for a key
/// that is evicted, invalidated or cleared while it is being built. It is a handle: cloning it is cheap, and all clones are
/// one map.
///
/// Keys are looked up by a borrowed form, as in the standard library's maps: `&str` for a `String`. A key has to be `Clone`.
///
/// # Examples
///
/// ```
/// use dogpile::Policy;
/// use dogpile_map::DogpileMap;
/// use std::time::Duration;
///
/// let greetings = DogpileMap::<String, String>::builder(Policy::ttl(Duration::from_secs(60))).max_entries(1_000).build();
///
/// let greeting = greetings.get_or_refresh("Ada", |name| format!("Hello, {name}!"));
/// assert_eq!(*greeting, "Hello, Ada!");
/// assert_eq!(greetings.stats().builds, 1);
/// ```
pub struct DogpileMap<K, T, C = SystemClock> {
    pub(crate) inner: Arc<Inner<K, T, C>>,
}

impl<K, T, C> Clone for DogpileMap<K, T, C> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K, T> DogpileMap<K, T> {
    /// Begins a map whose values live as `policy` says.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let policy = Policy::ttl(Duration::from_secs(60)).stale_while_refresh(Duration::from_secs(600)).jitter(10);
    /// let map = DogpileMap::<u64, String>::builder(policy).max_entries(100_000).build();
    /// assert_eq!(map.policy(), policy);
    /// ```
    pub fn builder(policy: Policy) -> Builder<K, T> {
        Builder::new(policy)
    }
}

pub(crate) type Reading<'m, K, T, C> = FlightRef<K, T, C, &'m Inner<K, T, C>>;

/// Reads.
impl<K, T, C> DogpileMap<K, T, C>
where
    K: Hash + Eq + Clone,
    C: Clock + Clone,
{
    /// The key's value, built by `build` if there is none that may be served, or if it is stale and this caller is elected.
    ///
    /// At most one caller at a time builds a key. While it does, the others get the old value at once; if there is none, they
    /// wait for the new one.
    ///
    /// # Blocking
    ///
    /// While another caller builds the key and there is nothing to serve. Never because of other keys.
    ///
    /// # Deadlocks
    ///
    /// If two builds on two threads ask for each other's keys, and neither key has a value to serve.
    ///
    /// # Panics
    ///
    /// If `build` panics; the next caller builds. If `build` calls this for its own key while there is nothing to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let squares = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// assert_eq!(*squares.get_or_refresh(&7, |n| n * n), 49);
    /// assert_eq!(*squares.get_or_refresh(&7, |_| unreachable!("it is fresh")), 49);
    /// ```
    #[inline]
    #[track_caller]
    pub fn get_or_refresh<Q, F>(&self, key: &Q, build: F) -> Arc<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce(&K) -> T,
    {
        match self.inner.look(key) {
            Look::Fresh(value) => {
                self.inner.stats.count_hit();
                value
            }
            look => self.get_or_build(key, look, build),
        }
    }

    #[cold]
    #[track_caller]
    fn get_or_build<Q, F>(&self, key: &Q, look: Look<T>, build: F) -> Arc<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce(&K) -> T,
    {
        let had_stale = matches!(look, Look::Stale(_));
        drop(look);
        let mut build = Some(build);
        let mut lapsed = None;
        loop {
            let flight = match self.enter(key, had_stale) {
                Ok(flight) => flight,
                Err(Ok(value)) => return value,
                Err(Err(_)) => cannot("get_or_refresh", "`get`, or `try_get_or_refresh`"),
            };
            let found = flight.cell().freshness();
            let made = flight.cell().get_or_refresh(|| flight.build(taken(&mut build)));
            if flight.accepts(&made, &mut lapsed) {
                flight.count(found);
                return Arc::clone(&made.value);
            }
        }
    }

    /// As [`get_or_refresh`](Self::get_or_refresh), with a build that may fail.
    ///
    /// Callers that wait for a build share its error. A failing key is left alone for a while, as the policy's
    /// [`retry_backoff`](Policy::retry_backoff) says: meanwhile its callers get the error at once, or the old value, as far as
    /// the policy's [`stale_if_error`](Policy::stale_if_error) allows.
    ///
    /// # Errors
    ///
    /// [`RefreshError::Build`] if the build failed, or the pause after a failure runs, and there is nothing to serve;
    /// [`RefreshError::Reentrant`] if `build` calls this for its own key while there is nothing to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let limits = DogpileMap::<String, u32>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// assert_eq!(*limits.try_get_or_refresh("7", |text| text.parse::<u32>())?, 7);
    ///
    /// let error = limits.try_get_or_refresh("seven", |text| text.parse::<u32>()).unwrap_err();
    /// assert!(error.is::<std::num::ParseIntError>());
    /// // Not asked again so soon:
    /// assert!(limits.try_get_or_refresh("seven", |_| Ok::<_, String>(unreachable!())).is_err());
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    #[inline]
    pub fn try_get_or_refresh<Q, E, F>(&self, key: &Q, build: F) -> Result<Arc<T>, RefreshError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        E: Into<BoxError>,
        F: FnOnce(&K) -> Result<T, E>,
    {
        match self.inner.look(key) {
            Look::Fresh(value) => {
                self.inner.stats.count_hit();
                Ok(value)
            }
            look => self.try_get_or_build(key, look, build),
        }
    }

    #[cold]
    fn try_get_or_build<Q, E, F>(&self, key: &Q, look: Look<T>, build: F) -> Result<Arc<T>, RefreshError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        E: Into<BoxError>,
        F: FnOnce(&K) -> Result<T, E>,
    {
        let had_stale = matches!(look, Look::Stale(_));
        drop(look);
        let mut build = Some(build);
        let mut lapsed = None;
        loop {
            let flight = match self.enter(key, had_stale) {
                Ok(flight) => flight,
                Err(found) => return found,
            };
            let found = flight.cell().freshness();
            let made = flight.cell().try_get_or_refresh(|| flight.try_build(taken(&mut build)));
            if made.as_ref().is_ok_and(|made| !flight.accepts(made, &mut lapsed)) {
                continue;
            }
            flight.count(found);
            return made.map(|made| Arc::clone(&made.value));
        }
    }

    /// `Err`: there is no need to look at the flight, or this thread must not wait for it.
    fn enter<Q>(&self, key: &Q, had_stale: bool) -> Result<Reading<'_, K, T, C>, Answer<T>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if had_stale && let Some(value) = self.inner.leave_to_batch(key) {
            return Err(Ok(value));
        }
        Inner::enter(&*self.inner, key, Purpose::Read).flight(|_| true)
    }

    /// Begins a read with conditions, to be finished by a call that does the work.
    ///
    /// # Examples
    ///
    /// A value of at most thirty seconds, however long the policy's time to live is:
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(3600))).build();
    /// map.set(7, 1);
    /// let young = map.request(&7).max_age(Duration::from_secs(30));
    /// assert_eq!(*young.clone().get(|_| 2), 1);
    /// assert_eq!(*young.no_cache().get(|_| 2), 2);
    /// ```
    pub fn request<'m, 'q, Q>(&'m self, key: &'q Q) -> Request<'m, 'q, K, Q, T, C>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        Request::new(self, key)
    }

    /// What may be served for the key now, fresh or stale. Never builds, and never waits for a build.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, &str>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// assert_eq!(map.get(&7), None);
    /// map.set(7, "seven");
    /// map.invalidate(&7);
    /// assert_eq!(map.get(&7).as_deref(), Some(&"seven"));
    /// ```
    #[must_use]
    pub fn get<Q>(&self, key: &Q) -> Option<Arc<T>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.inner.servable(key)
    }

    /// As [`get`](Self::get), for a look at the value. `read` runs without a lock: it may use the map.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, String>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// map.set(7, String::from("seven"));
    /// assert_eq!(map.with(&7, |name| name.len()), Some(5));
    /// ```
    pub fn with<Q, R>(&self, key: &Q, read: impl FnOnce(&T) -> R) -> Option<R>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get(key).map(|value| read(&value))
    }
}

/// Reads from async code (feature `async`).
///
/// The futures run on any executor. Tasks and threads share one map: a task that is suspended and a thread that is blocked are
/// woken by the same build.
///
/// # Cancellation
///
/// A future can be dropped at any point. If it was building, one of the waiters is elected next, and nothing remains of the
/// flight. To let the build go on, hand it to a spawner: [`Request::spawn_with`].
#[cfg(feature = "async")]
impl<K, T, C> DogpileMap<K, T, C>
where
    K: Hash + Eq + Clone,
    C: Clock + Clone,
{
    /// As [`get_or_refresh`](Self::get_or_refresh), with a build that is a future.
    ///
    /// # Panics
    ///
    /// If `build` panics, or if it calls this for its own key while there is nothing to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let squares = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// assert_eq!(*squares.get_or_refresh_async(&7, async |n| n * n).await, 49);
    /// # });
    /// ```
    pub async fn get_or_refresh_async<Q, F>(&self, key: &Q, build: F) -> Arc<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: AsyncFnOnce(&K) -> T,
    {
        let had_stale = match self.inner.look(key) {
            Look::Fresh(value) => {
                self.inner.stats.count_hit();
                return value;
            }
            look => matches!(look, Look::Stale(_)),
        };
        let mut build = Some(build);
        let mut lapsed = None;
        loop {
            let flight = match self.enter(key, had_stale) {
                Ok(flight) => flight,
                Err(Ok(value)) => return value,
                Err(Err(_)) => cannot("get_or_refresh_async", "`get`, or `try_get_or_refresh_async`"),
            };
            let found = flight.cell().freshness();
            let made = flight
                .cell()
                .get_or_refresh_async(|| async {
                    let building = flight.begin();
                    building.finish(Arc::new(taken(&mut build)(&flight.flight.key).await))
                })
                .await;
            if flight.accepts(&made, &mut lapsed) {
                flight.count(found);
                return Arc::clone(&made.value);
            }
        }
    }

    /// As [`try_get_or_refresh`](Self::try_get_or_refresh), with a build that is a future.
    ///
    /// # Errors
    ///
    /// As [`try_get_or_refresh`](Self::try_get_or_refresh).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let limits = DogpileMap::<String, u32>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// let limit = limits.try_get_or_refresh_async("seven", async |text| text.parse::<u32>()).await;
    /// assert!(limit.unwrap_err().is::<std::num::ParseIntError>());
    /// # });
    /// ```
    pub async fn try_get_or_refresh_async<Q, E, F>(&self, key: &Q, build: F) -> Result<Arc<T>, RefreshError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        E: Into<BoxError>,
        F: AsyncFnOnce(&K) -> Result<T, E>,
    {
        let had_stale = match self.inner.look(key) {
            Look::Fresh(value) => {
                self.inner.stats.count_hit();
                return Ok(value);
            }
            look => matches!(look, Look::Stale(_)),
        };
        let mut build = Some(build);
        let mut lapsed = None;
        loop {
            let flight = match self.enter(key, had_stale) {
                Ok(flight) => flight,
                Err(found) => return found,
            };
            let found = flight.cell().freshness();
            let made = flight
                .cell()
                .try_get_or_refresh_async(|| async {
                    let building = flight.begin();
                    building.conclude(taken(&mut build)(&flight.flight.key).await)
                })
                .await;
            if made.as_ref().is_ok_and(|made| !flight.accepts(made, &mut lapsed)) {
                continue;
            }
            flight.count(found);
            return made.map(|made| Arc::clone(&made.value));
        }
    }
}

/// Writes.
impl<K, T, C> DogpileMap<K, T, C>
where
    K: Hash + Eq + Clone,
    C: Clock + Clone,
{
    /// Publishes a value for the key. A build of the key that began before does not displace it. An invalidation of many keys
    /// that comes while this runs concerns the value.
    ///
    /// Callers that wait for the key get it.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, &str>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// map.set(7, "seven");
    /// assert_eq!(*map.get_or_refresh(&7, |_| unreachable!("it is fresh")), "seven");
    /// ```
    pub fn set(&self, key: K, value: T) -> Arc<T> {
        self.publish(key, value, Setting::Set(None))
    }

    /// As [`set`](Self::set), with a time to live of its own.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{ManualClock, Policy};
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// const MINUTE: Duration = Duration::from_secs(60);
    ///
    /// let clock = ManualClock::new();
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(MINUTE)).clock(clock.clone()).build();
    /// map.set_for(7, 1, 60 * MINUTE);
    /// clock.advance(59 * MINUTE);
    /// assert_eq!(*map.get_or_refresh(&7, |_| 2), 1);
    /// ```
    pub fn set_for(&self, key: K, value: T, ttl: Duration) -> Arc<T> {
        self.publish(key, value, Setting::Set(Some(ttl)))
    }

    /// Publishes a value that was made `age` ago, for a warm start: it is fresh, stale or expired, as its age says.
    ///
    /// Unlike [`set`](Self::set) it does not displace a build that runs, which is going to bring something newer.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, &str>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// map.restore(7, "from a file of yesterday", Duration::from_secs(86_400));
    /// assert!(map.get(&7).is_some());
    /// assert_eq!(*map.get_or_refresh(&7, |_| "of today"), "of today");
    /// ```
    pub fn restore(&self, key: K, value: T, age: Duration) -> Arc<T> {
        self.publish(key, value, Setting::Restored(age))
    }

    fn publish(&self, key: K, value: T, setting: Setting) -> Arc<T> {
        let inner = &*self.inner;
        let (origin, value) = (inner.epochs.origin(), Arc::new(value));
        let made = Made { value: Arc::clone(&value), origin, traits: inner.traits(&key, &value) };
        let (copy, now) = (key.clone(), moment(inner.clock.now()));
        let ttl = inner.drawn_ttl(match setting {
            Setting::Set(Some(ttl)) => ttl,
            Setting::Set(None) | Setting::Restored(_) => inner.policy.get_ttl(),
        });
        let age = match setting {
            Setting::Set(_) => Duration::ZERO,
            Setting::Restored(age) => age,
        };
        let mut made = Some(made);
        let direct = |removed: &mut _| {
            if let Some(made) = made.take() {
                inner.store.insert(key, inner.entry(made, ttl, age, now), removed);
            }
        };
        if let (Ok(flight), Some(made)) = (inner.change(&copy, direct), made) {
            match setting {
                Setting::Set(_) => drop(flight.cell().set_for(made, ttl)),
                Setting::Restored(age) => drop(flight.cell().restore(made, age)),
            }
        }
        value
    }

    /// Declares the key's value stale: it may still be served, and one caller rebuilds it. A build that runs does not count
    /// as fresh either.
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
    /// assert_eq!(map.get(&7).as_deref(), Some(&1));
    /// assert_eq!(*map.get_or_refresh(&7, |_| 2), 2);
    /// ```
    pub fn invalidate<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Ok(flight) = self.lapse(key, |_| true) {
            flight.cell().invalidate();
        }
    }

    /// As [`invalidate`](Self::invalidate), but only if the map still holds `seen` for the key, and it has not been declared
    /// stale already. Returns whether it was declared stale.
    ///
    /// For callers that find out that what they got is wrong, perhaps late: five requests that were rejected with the same
    /// token lead to one build.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let tokens = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(3600))).build();
    /// let token = tokens.get_or_refresh(&7, |_| 1);
    /// assert!(tokens.invalidate_if_current(&7, &token)); // 401
    /// tokens.get_or_refresh(&7, |_| 2);
    /// assert!(!tokens.invalidate_if_current(&7, &token)); // 401, late
    /// assert_eq!(tokens.stats().builds, 2);
    /// ```
    pub fn invalidate_if_current<Q>(&self, key: &Q, seen: &Arc<T>) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        match self.lapse(key, |value| Arc::ptr_eq(value, seen)) {
            Ok(flight) => match flight.cell().snapshot() {
                Some(held) if Arc::ptr_eq(&held.value.value, seen) => {
                    self.inner.is_current(&held.value) && flight.cell().invalidate_if_current(&held.value)
                }
                _ => false,
            },
            Err(lapsed) => lapsed,
        }
    }

    /// Declares the value at rest stale if `condition` holds, unless there is a flight. Returns whether it was current.
    fn lapse<Q>(&self, key: &Q, condition: impl FnOnce(&Arc<T>) -> bool) -> Result<Reading<'_, K, T, C>, bool>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let inner = &*self.inner;
        let now = moment(inner.clock.now());
        // What is left of it is dropped after unlocking.
        let mut owned = Some(key.to_owned());
        inner.change(key, |removed| {
            let Some(entry) = inner.store.peek(key) else { return false };
            let Some(owned) = owned.take() else { return false };
            if !entry.is_current(&inner.epochs) || !condition(&entry.value) {
                removed.push((owned, entry));
                return false;
            }
            inner.store.replace(owned, entry.lapse(&inner.epochs, inner.ttl, now), removed);
            true
        })
    }

    /// Takes the key's value away, and returns it. A build that runs is not published: only its own caller gets it, and the
    /// next caller builds at once.
    ///
    /// The pause of a failing key goes on.
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
    /// assert_eq!(map.clear(&7).as_deref(), Some(&1));
    /// assert_eq!(map.get(&7), None);
    /// ```
    pub fn clear<Q>(&self, key: &Q) -> Option<Arc<T>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let inner = &*self.inner;
        match inner.change(key, |_| inner.store.remove(key)) {
            Ok(flight) => flight.cell().clear().map(|made| Arc::clone(&made.value)),
            Err(removed) => {
                removed.filter(|(_, entry)| !entry.is_cleared(&inner.epochs)).map(|(_, entry)| entry.value)
            }
        }
    }

    /// Declares all values stale. A build that runs does not count as fresh either.
    ///
    /// # Cost
    ///
    /// Constant: no key is visited. Where the policy's windows have an end, they begin at the latest such call, or at an earlier
    /// one; those of a build that was overtaken begin when it is published.
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
    /// map.invalidate_all();
    /// assert_eq!(map.get(&7).as_deref(), Some(&1));
    /// assert_eq!(*map.get_or_refresh(&7, |_| 2), 2);
    /// ```
    pub fn invalidate_all(&self) {
        self.inner.epochs.invalidate_all(moment(self.inner.clock.now()));
    }

    /// Takes all values away. Builds that run are not published. A value that is [`set`](Self::set) while this runs may be taken
    /// away too, also a moment after both calls have returned.
    ///
    /// # Cost
    ///
    /// That of the keys that are in flight. The others are not visited: their values go when their keys are asked for or
    /// written, or when they are evicted. Until then [`len`](Self::len) counts them.
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
    /// map.clear_all();
    /// assert_eq!(map.get(&7), None);
    /// ```
    pub fn clear_all(&self) {
        self.inner.epochs.clear_all();
        for flight in self.inner.flights.all() {
            drop(self.clear(&flight.key));
        }
    }

    /// Forgets everything but its settings: values, failures, retry pauses and statistics. Builds that run are not published.
    ///
    /// For tests of code that keeps a map in a `static`.
    ///
    /// # Cost
    ///
    /// Visits all keys.
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
    /// assert!(map.try_get_or_refresh(&8, |_| Err("no route to host")).is_err());
    /// map.reset();
    /// assert!(map.is_empty());
    /// // There is no retry pause:
    /// assert_eq!(*map.try_get_or_refresh(&8, |_| Ok::<_, String>(2))?, 2);
    /// assert_eq!(map.stats().builds, 1);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    pub fn reset(&self) {
        // First, so that a build which has begun is not published.
        self.clear_all();
        for flight in self.inner.flights.all() {
            if let Entered::Flight(flight) = Inner::enter(&*self.inner, &flight.key, Purpose::Change) {
                flight.cell().reset();
            }
        }
        for (key, _) in self.inner.store.iter() {
            drop(self.clear(&key));
        }
        self.inner.stats.reset();
    }

    /// Declares the values with this tag stale. A build that runs, and gives its value this tag, does not count as fresh
    /// either. See [`Builder::tags`].
    ///
    /// # Cost
    ///
    /// Constant: no key is visited.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let pages = DogpileMap::<String, u32>::builder(Policy::ttl(Duration::from_secs(60)))
    ///     .tags(|path, _| path.split('/').map(String::from).collect::<Vec<_>>())
    ///     .build();
    /// pages.set(String::from("news/today"), 1);
    /// pages.set(String::from("about"), 1);
    /// pages.invalidate_tag("news");
    /// assert_eq!(*pages.get_or_refresh("news/today", |_| 2), 2);
    /// assert_eq!(*pages.get_or_refresh("about", |_| 2), 1);
    /// ```
    pub fn invalidate_tag(&self, tag: &str) {
        self.inner.epochs.invalidate_tag(tag, moment(self.inner.clock.now()));
    }

    /// Declares the values stale for which `condition` holds, and returns how many those are. Builds that run, whose values
    /// are not known yet, do not count as fresh either.
    ///
    /// # Cost
    ///
    /// Visits all keys. `condition` runs without a lock: it may use the map.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// for key in 0..10 {
    ///     map.set(key, key * key);
    /// }
    /// assert_eq!(map.invalidate_if(|_, square| *square > 50), 2);
    /// assert_eq!(*map.get_or_refresh(&9, |_| 0), 0);
    /// ```
    // Not `#[must_use]`: most callers do not need the number.
    #[allow(clippy::must_use_candidate)]
    pub fn invalidate_if(&self, condition: impl Fn(&K, &T) -> bool) -> usize {
        let mut count = 0;
        // Before the keys at rest: what such a build publishes meanwhile is stale already.
        for flight in self.inner.flights.all() {
            // Takes the cell's lock: a build that begins after that reads what was written before it.
            drop(flight.cell.last_error());
            if flight.cell.is_refreshing() {
                self.invalidate(&flight.key);
            } else if let Some(held) = flight.cell.get()
                && condition(&flight.key, &held.value)
            {
                // It need not be at rest: not yet, or not any more, since it was evicted.
                count += usize::from(self.invalidate_if_current(&flight.key, &held.value));
            }
        }
        let matching = self.inner.store.iter().filter(|(key, entry)| condition(key, &entry.value));
        for (key, entry) in matching {
            count += usize::from(self.invalidate_if_current(&key, &entry.value));
        }
        count
    }
}

/// The map as a whole.
impl<K, T, C> DogpileMap<K, T, C>
where
    K: Hash + Eq + Clone,
    C: Clock + Clone,
{
    /// The keys that may be served now, fresh or stale, with their values. Does not count as a use of them.
    ///
    /// No lock is held between two items. Keys that come or go meanwhile may be missed.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// map.set(7, 49);
    /// let all: Vec<_> = map.iter().map(|(key, value)| (key, *value)).collect();
    /// assert_eq!(all, [(7, 49)]);
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (K, Arc<T>)> + '_ {
        self.inner.store.iter().filter_map(|(key, _)| {
            let value = self.inner.peek(&key).value()?;
            Some((key, value))
        })
    }

    /// How many values the map holds, fresh or not. See also [`clear_all`](Self::clear_all).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).max_entries(100).build();
    /// for key in 0..1_000 {
    ///     map.get_or_refresh(&key, |key| key * key);
    /// }
    /// assert!(map.len() <= 100);
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.store.len()
    }

    /// Whether [`len`](Self::len) is zero. After [`clear_all`](Self::clear_all) it need not be: values that have been taken away
    /// are counted until they are dropped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What its values weigh together. See [`Builder::max_weight`].
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.inner.store.weight()
    }

    /// The policy that it was made with.
    pub fn policy(&self) -> Policy {
        self.inner.policy
    }

    /// What the map has done since it was made.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use dogpile_map::DogpileMap;
    /// use std::time::Duration;
    ///
    /// let map = DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).build();
    /// map.get_or_refresh(&7, |_| 1);
    /// map.get_or_refresh(&7, |_| 2);
    /// let stats = map.stats();
    /// assert_eq!((stats.misses, stats.builds, stats.hits, stats.in_flight), (1, 1, 1, 0));
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.stats.read(self.inner.flights.len())
    }
}

impl<K, T, C> fmt::Debug for DogpileMap<K, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DogpileMap")
            .field("name", &self.inner.name.unwrap_or_default())
            .field("policy", &self.inner.policy)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
enum Setting {
    /// With a ttl of its own.
    Set(Option<Duration>),
    /// Made so long ago.
    Restored(Duration),
}

/// For a caller that can return no error, and would wait for itself.
#[cold]
#[track_caller]
pub(crate) fn cannot(name: &str, instead: &str) -> ! {
    panic!(
        "{name} was called by a loader for one of the keys that it is loading, and there is no value that it could return; use \
         {instead}, which returns `RefreshError::Reentrant`"
    )
}

/// A call's closure, which runs at most once: a call that has built is done.
pub(crate) fn taken<F>(build: &mut Option<F>) -> F {
    build.take().unwrap_or_else(|| unreachable!("a call that has built is done"))
}
