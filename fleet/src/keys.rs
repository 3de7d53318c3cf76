//! Many keys of one store: a loader for `dogpile-map`, or for cells that come and go.
//!
//! # What keeps what
//!
//! The map keeps the values, elects one caller per key and process, and serves the old value to the others. A load is what that
//! one caller does: it asks the store for the right to build, and builds, takes over, waits or fails. Nothing is kept here
//! between two loads but invalidations that could not be delivered, the epochs of those that were, and publications that go on.
//!
//! ```text
//! acquire --> fresh, the same  --> the previous value, fresh for a while
//!         --> fresh, another   --> that one
//!         --> won              --> build --> publish: stored | refused | failed | no answer within the patience
//!         --> another builds   --> with a value to serve: an error, which costs no caller that value; else wait, and again
//!         --> a pause runs     --> an error
//!         --> no answer        --> with a value to serve: an error; else a build for this node alone
//! ```
//!
//! ```text
//! value         a value, and what its node knows about it
//! load          the loop around the question
//! build         what a build is given, and how it ends
//! publish       what becomes of a publication, in time or later
//! shared        the store, as all keys use it
//! owed          invalidations that the store has not acknowledged
//! seen          the epochs of those that it has
//! beats         what prolongs leases, and delivers what is owed
//! pool          threads for what no caller is to wait for
//! asynchronous  invalidations and checks for tasks
//! ```

#[cfg(feature = "async")]
mod asynchronous;
mod beats;
mod build;
mod load;
mod owed;
mod pool;
mod publish;
mod seen;
mod shared;
mod value;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{BoxError, Clock, Policy, RefreshError, Refreshed, SystemClock};

use crate::access::{Access, Operation};
use crate::cell::BuildContext;
use crate::codec::Codec;
use crate::policy::FleetPolicy;
use crate::stats::FleetStats;
use crate::store::{Invalidation, RefreshStore, StoreError};
use beats::Beats;
use load::{Next, Search};
use owed::Delivering;
use shared::Shared;

pub use value::FleetValue;

/// The loader of a map whose builds are shared by all processes that use the same store.
///
/// `dogpile-map` keeps the values, within its bound, and lets one caller per process load a key. That caller passes its build
/// through [`load`](FleetKeys::load), which runs it only if the store elects this process. No key has a thread, a connection or
/// a poll of its own: a hundred thousand keys use the two connections of their store.
///
/// A [`FleetCell`](crate::FleetCell) is for one value that matters: it polls and is hinted while nobody reads. Here a key is dealt
/// with only when it is read:
///
/// * The map counts a value as fresh for the policy's [`poll`](FleetPolicy::poll), or for as long as the store does, if that is
///   less. After that the next caller of the key asks the store whether the value is still the newest: one round trip, during which
///   the others are served the old one. So an invalidation on another node is noticed by the first read after `poll`.
/// * A caller that finds nothing to serve while another node builds waits for that build; the store's hint wakes it.
/// * A finished build is served when the policy's [`patience`](FleetPolicy::patience) has passed, and its publication goes on behind
///   it. Until the next read after `poll` such a value is fresh here, whatever the store says to it.
/// * An invalidation that could not be delivered is delivered when the store works again, and before it is asked for the key. When
///   the loader is dropped it is tried once more.
/// * A stale value that is taken over from the store, because another node builds or because builds fail, is served for what is left
///   of the policy's [`stale_while_refresh`](FleetPolicy::stale_while_refresh): a load returns it as
///   [`Refreshed::Aged`](crate::Refreshed::Aged).
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{FleetKeys, FleetPolicy, FleetValue, MemoryStore, Plain};
/// use dogpile_map::DogpileMap;
/// use std::io;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// let store = Arc::new(MemoryStore::new()); // or Redis, or PostgreSQL
/// let keys = FleetKeys::new("users", store, Plain, FleetPolicy::ttl(Duration::from_secs(60)));
/// let users = DogpileMap::<u64, FleetValue<String>>::builder(keys.policy()).max_entries(100_000).build();
///
/// let read = |id: u64| {
///     users.request(&id).try_get_with(|id, previous| {
///         keys.load(&id.to_string(), previous, || Ok::<_, io::Error>(format!("user {id}")))
///     })
/// };
/// assert_eq!(**read(7)?, "user 7");
///
/// // After a change of user 7. First the store, then the map:
/// keys.invalidate("7")?;
/// users.invalidate(&7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FleetKeys<T: 'static, C: Clock + 'static = SystemClock> {
    shared: Arc<Shared<C>>,
    codec: Box<dyn Codec<T>>,
    beats: Arc<Beats<C>>,
}

impl<T: Send + Sync + 'static> FleetKeys<T> {
    /// Keys that share their builds with all `FleetKeys` of the same name in the store. The entry of a key has the name
    /// `<name>:<key>`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let keys: FleetKeys<String> = FleetKeys::new("users", MemoryStore::new(), Plain, policy);
    /// assert_eq!(keys.stats().store_operations, 0);
    /// ```
    pub fn new(
        name: impl Into<String>,
        store: impl RefreshStore + 'static,
        codec: impl Codec<T> + 'static,
        policy: FleetPolicy,
    ) -> Self {
        Self::with_clock(name, store, codec, policy, SystemClock)
    }
}

impl<T, C> FleetKeys<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// As [`new`](FleetKeys::new), with the clock that the map has.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// let (clock, policy) = (dogpile::ManualClock::new(), FleetPolicy::ttl(Duration::from_secs(60)));
    /// let store = MemoryStore::with_clock(clock.clone());
    /// let keys: FleetKeys<String, _> = FleetKeys::with_clock("users", store, Plain, policy, clock);
    /// assert!(keys.check().is_ok());
    /// ```
    pub fn with_clock(
        name: impl Into<String>,
        store: impl RefreshStore + 'static,
        codec: impl Codec<T> + 'static,
        policy: FleetPolicy,
        clock: C,
    ) -> Self {
        let access = Access::new(Arc::new(store), policy.breaker, clock.clone());
        let store = access.store_number();
        let shared = Arc::new(Shared::new(name.into(), access, policy, clock.clone()));
        let weak = Arc::downgrade(&shared);
        let beats = Beats::new(clock, store, Box::new(move || weak.upgrade()?.deliver_next()));
        Self { shared, codec: Box::new(codec), beats }
    }

    /// Calls `report` with each error of the store, on the thread that came across it. It must not use the loader, nor wait for one
    /// that does. If it panics, that is the end of that call, and of nothing else. Of several the first one stays.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain};
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let errors = Arc::new(AtomicU32::new(0));
    /// let counts = Arc::clone(&errors);
    /// let keys: FleetKeys<String> = FleetKeys::new("users", MemoryStore::new(), Plain, policy)
    ///     .on_error(move |_| drop(counts.fetch_add(1, Ordering::Relaxed)));
    ///
    /// keys.invalidate(&"a key that is too long".repeat(10)).unwrap_err();
    /// assert_eq!(errors.load(Ordering::Relaxed), 1);
    /// ```
    #[must_use]
    pub fn on_error(self, report: impl Fn(&Arc<StoreError>) + Send + Sync + 'static) -> Self {
        self.shared.access.on_error(Box::new(report));
        self
    }

    /// The policy for the map: it counts a value as fresh for no longer than [`load`](FleetKeys::load) says, and serves the old
    /// one when a load fails, which it does while another node builds.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60)).poll(Duration::from_secs(5));
    /// let keys = FleetKeys::<String>::new("users", MemoryStore::new(), Plain, policy);
    /// assert_eq!(keys.policy().get_ttl(), Duration::from_secs(60));
    /// ```
    pub fn policy(&self) -> Policy {
        let policy = &self.shared.policy;
        let longest = self.shared.pause();
        Policy::ttl(policy.ttl)
            .stale_while_refresh(policy.stale)
            .stale_if_error(policy.stale)
            .retry_backoff(longest.min(Duration::from_millis(100)), longest)
    }

    /// What a build of the map is to return: the newest value of `key`, from the store, or from `build` if this process is
    /// elected.
    ///
    /// `previous` is the value that the map has, if it has one. A build that is to be given the fleet's previous value, or that returns a
    /// [`Refreshed`], goes to [`load_with`](FleetKeys::load_with).
    ///
    /// # Errors
    ///
    /// [`RefreshError::Build`] with
    ///
    /// * the error of `build`;
    /// * [`Backoff`](crate::Backoff): the latest build failed, on whatever node, and the pause after it runs;
    /// * [`Busy`](crate::Busy): another node builds, or the store does not work, and `previous` may be served meanwhile.
    ///
    /// The map serves the old value in place of an error, as far as its policy allows.
    ///
    /// # Blocking
    ///
    /// * Until the store has said who builds, or its timeout has passed: also if `previous` may be served. The map serves that to its
    ///   other callers meanwhile; the one that runs the load waits, unless its request hands the load over (`spawn_with`). A load that
    ///   runs into the timeout opens the breaker, and those after it do not ask. If an invalidation of the key is owed, it is delivered
    ///   before: one more operation.
    /// * While `build` runs.
    /// * After that until the value is stored, but no longer than the policy's [`patience`](FleetPolicy::patience).
    /// * While another node builds, if there is nothing to serve.
    ///
    /// # Panics
    ///
    /// If `build` panics. The right to build is given back.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, FleetValue, MemoryStore, Plain};
    /// use dogpile_map::DogpileMap;
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// fn read_from_database(id: u64) -> io::Result<String> {
    ///     Ok(format!("user {id}"))
    /// }
    ///
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, FleetPolicy::ttl(Duration::from_secs(60)));
    /// let users = DogpileMap::<u64, FleetValue<String>>::builder(keys.policy()).max_entries(1000).build();
    ///
    /// let user = users.request(&7).try_get_with(|id, previous| {
    ///     keys.load(&id.to_string(), previous, || read_from_database(*id))
    /// })?;
    /// assert_eq!(**user, "user 7");
    /// # Ok::<(), dogpile_fleet::RefreshError>(())
    /// ```
    pub fn load<E, F>(
        &self,
        key: &str,
        previous: Option<Arc<FleetValue<T>>>,
        build: F,
    ) -> Result<Refreshed<FleetValue<T>>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce() -> Result<T, E>,
    {
        self.load_with(key, previous, |_| build().map(Refreshed::New))
    }

    /// As [`load`](FleetKeys::load), with a build that is given a context, with the fleet's previous value and its tag, and that may find
    /// the value unchanged, or choose a time to live.
    ///
    /// # Errors
    ///
    /// Those of [`load`](FleetKeys::load).
    ///
    /// # Panics
    ///
    /// If `build` panics. The right to build is given back.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetKeys, FleetPolicy, FleetValue, MemoryStore, Plain, Refreshed};
    /// use dogpile_map::DogpileMap;
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// /// Asks the source whether the user is still the same.
    /// fn read(id: u64, context: &BuildContext<'_, String>) -> io::Result<Refreshed<String>> {
    ///     if context.tag() == Some("v1") {
    ///         return Ok(Refreshed::NotModified);
    ///     }
    ///     context.set_tag("v1");
    ///     Ok(Refreshed::New(format!("user {id}")))
    /// }
    ///
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, FleetPolicy::ttl(Duration::from_secs(60)));
    /// let users = DogpileMap::<u64, FleetValue<String>>::builder(keys.policy()).max_entries(1000).build();
    /// let user = || {
    ///     users.request(&7).try_get_with(|id, previous| {
    ///         keys.load_with(&id.to_string(), previous, |context| read(*id, context))
    ///     })
    /// };
    /// assert_eq!(**user()?, "user 7");
    /// keys.invalidate("7")?;
    /// users.invalidate(&7);
    /// assert_eq!(**user()?, "user 7");
    /// assert_eq!(keys.stats().unchanged, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load_with<E, F>(
        &self,
        key: &str,
        previous: Option<Arc<FleetValue<T>>>,
        build: F,
    ) -> Result<Refreshed<FleetValue<T>>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        let building = match self.shared.name_of(key) {
            Err(_) => self.building_alone(previous, None),
            Ok(name) => {
                let mut search = Search::new(self, name, previous);
                loop {
                    let request = search.request();
                    let answer = self.shared.acquire(&search.name, &request);
                    match search.answered(answer) {
                        Next::Again => {}
                        Next::Wait(time) => search.wait(time),
                        Next::Build(building) => break building,
                        Next::Return(result) => return result,
                    }
                }
            }
        };
        let made = {
            let context = building.context();
            context.made(build(&context))
        };
        building.end(made).wait(self.shared.policy.patience)
    }

    /// As [`load`](FleetKeys::load), for tasks and with a build that is a future: for the asynchronous requests of a map.
    ///
    /// No thread of the executor is kept waiting: what talks to the store runs on threads of the loader. A future that is dropped
    /// gives the right to build back; a publication that has begun goes on.
    ///
    /// # Errors
    ///
    /// Those of [`load`](FleetKeys::load).
    ///
    /// # Panics
    ///
    /// If `build` panics. The right to build is given back.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, FleetValue, MemoryStore, Plain};
    /// use dogpile_map::DogpileMap;
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// async fn read_from_database(id: u64) -> io::Result<String> {
    ///     Ok(format!("user {id}"))
    /// }
    ///
    /// # futures_lite::future::block_on(async {
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, FleetPolicy::ttl(Duration::from_secs(60)));
    /// let users = DogpileMap::<u64, FleetValue<String>>::builder(keys.policy()).max_entries(1000).build();
    ///
    /// let load = async |id: &u64, previous| {
    ///     keys.load_async(&id.to_string(), previous, async || read_from_database(*id).await).await
    /// };
    /// let user = users.request(&7).try_get_with_async(load).await?;
    /// assert_eq!(**user, "user 7");
    /// # Ok::<(), dogpile_fleet::RefreshError>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn load_async<E, F>(
        &self,
        key: &str,
        previous: Option<Arc<FleetValue<T>>>,
        build: F,
    ) -> Result<Refreshed<FleetValue<T>>, RefreshError>
    where
        E: Into<BoxError>,
        F: AsyncFnOnce() -> Result<T, E>,
    {
        self.load_with_async(key, previous, async |_| build().await.map(Refreshed::New)).await
    }

    /// As [`load_with`](FleetKeys::load_with), for tasks, as [`load_async`](FleetKeys::load_async).
    ///
    /// # Errors
    ///
    /// Those of [`load`](FleetKeys::load).
    ///
    /// # Panics
    ///
    /// If `build` panics. The right to build is given back.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetKeys, FleetPolicy, MemoryStore, Plain, Refreshed};
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, FleetPolicy::ttl(Duration::from_secs(60)));
    /// let short = async |_: &BuildContext<'_, String>| Ok::<_, &str>(Refreshed::NewFor(String::from("user 7"), Duration::from_secs(1)));
    /// let loaded = keys.load_with_async("7", None, short).await?;
    /// assert!(matches!(loaded, Refreshed::NewFor(user, ttl) if **user == *"user 7" && ttl <= Duration::from_secs(1)));
    /// # Ok::<(), dogpile_fleet::RefreshError>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn load_with_async<E, F>(
        &self,
        key: &str,
        previous: Option<Arc<FleetValue<T>>>,
        build: F,
    ) -> Result<Refreshed<FleetValue<T>>, RefreshError>
    where
        E: Into<BoxError>,
        F: AsyncFnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        let building = match self.shared.name_of(key) {
            Err(_) => self.building_alone(previous, None),
            Ok(name) => {
                let mut search = Search::new(self, name, previous);
                loop {
                    let request = search.request();
                    let answer = self.shared.acquire_async(&search.name, request).await;
                    match search.answered(answer) {
                        Next::Again => {}
                        Next::Wait(time) => search.wait_async(time).await,
                        Next::Build(building) => break building,
                        Next::Return(result) => return result,
                    }
                }
            }
        };
        let made = {
            let context = building.context();
            context.made(build(&context).await)
        };
        building.end(made).wait_async(self.shared.policy.patience).await
    }

    /// Declares the value of a key stale, on all nodes, as [`FleetCell::invalidate`](crate::FleetCell::invalidate) does. To be
    /// called after the change of the source has been committed, and before the map's own `invalidate`. (The map's before it as well,
    /// where this node should not serve the old value as fresh while the store is asked.)
    ///
    /// # Errors
    ///
    /// If the store could not be told. It will be when it works again, and before this node asks it for the key.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain, Refreshed};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, policy);
    /// keys.load("7", None, || Ok::<_, &str>(String::from("old")))?;
    ///
    /// // After the change of the source:
    /// keys.invalidate("7")?;
    /// keys.load("7", None, || Ok::<_, &str>(String::from("new")))?;
    /// assert_eq!(keys.stats().fleet_builds, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn invalidate(&self, key: &str) -> Result<(), Arc<StoreError>> {
        self.invalidate_as(key, Invalidation::Soft)
    }

    /// Takes the value of a key away, on all nodes. To be called before the map's own `clear`.
    ///
    /// # Errors
    ///
    /// As for [`invalidate`](FleetKeys::invalidate).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain, Refreshed};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, policy);
    /// keys.load("7", None, || Ok::<_, &str>(String::from("old")))?;
    ///
    /// keys.clear("7")?;
    /// keys.load_with("7", None, |context| {
    ///     assert!(context.previous().is_none());
    ///     Ok::<_, &str>(Refreshed::New(String::from("new")))
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear(&self, key: &str) -> Result<(), Arc<StoreError>> {
        self.invalidate_as(key, Invalidation::Hard)
    }

    fn invalidate_as(&self, key: &str, how: Invalidation) -> Result<(), Arc<StoreError>> {
        Delivering::begin(&self.shared, &self.beats, key, how)?.run()
    }

    /// As [`FleetCell::check`](crate::FleetCell::check), with the name `<name>:check`.
    ///
    /// # Errors
    ///
    /// What the store or the system has said.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let keys: FleetKeys<String> = FleetKeys::new("users", MemoryStore::new(), Plain, policy);
    /// assert!(keys.check().is_ok());
    /// ```
    pub fn check(&self) -> Result<(), Arc<StoreError>> {
        let name = self.shared.name_of("check")?;
        self.shared.access.run(Operation::Check, &name, |store, name| store.check(name))
    }

    /// What this node has done so far, for all keys.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain, Refreshed};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, policy);
    /// keys.load("7", None, || Ok::<_, &str>(String::from("user 7")))?;
    /// assert_eq!(keys.stats().fleet_builds, 1);
    /// # Ok::<(), dogpile_fleet::RefreshError>(())
    /// ```
    #[must_use]
    pub fn stats(&self) -> FleetStats {
        self.shared.access.counters.read()
    }

    /// The latest error of the store.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let keys: FleetKeys<String> = FleetKeys::new("users", MemoryStore::new(), Plain, policy);
    /// assert!(keys.last_store_error().is_none());
    /// ```
    #[must_use]
    pub fn last_store_error(&self) -> Option<Arc<StoreError>> {
        self.shared.access.last_error()
    }
}

impl<T: 'static, C: Clock + 'static> Drop for FleetKeys<T, C> {
    fn drop(&mut self) {
        self.beats.close();
        self.shared.try_once_more();
        self.shared.pool.close();
    }
}

impl<T: 'static, C: Clock + 'static> fmt::Debug for FleetKeys<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetKeys").field("name", &self.shared.name).finish_non_exhaustive()
    }
}
