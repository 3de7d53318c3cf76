//! Many keys of one store: a loader for `dogpile-map`, or for cells that come and go.
//!
//! # What keeps what
//!
//! The map keeps the values, elects one caller per key and process, and serves the old value to the others. A load is what that
//! one caller does: it asks the store for the right to build, and builds, takes over, waits or fails. Nothing is kept here
//! between two loads but invalidations that could not be delivered.
//!
//! ```text
//! acquire --> fresh, the same  --> the previous value, fresh for a while
//!         --> fresh, another   --> that one
//!         --> won              --> build --> publish --> stored: it | refused: what the store has, or else it, stale
//!         --> another builds   --> with a value to serve: an error, which costs no caller that value; else wait, and again
//!         --> a pause runs     --> an error
//!         --> no answer        --> with a value to serve: an error; else a build for this node alone
//! ```

mod beats;
mod build;
mod shared;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use dogpile::{BoxError, Clock, Policy, RefreshError, Refreshed, SystemClock, Tick};

use crate::access::{Access, Operation};
use crate::cell::BuildContext;
use crate::codec::{Codec, Opened, open};
use crate::error::{Backoff, Busy};
use crate::policy::FleetPolicy;
use crate::stats::FleetStats;
use crate::store::{
    Acquire, Current, Invalidation, RefreshStore, Request, StoreError, Token, Value, Version,
};
use beats::Beats;
use shared::Shared;

/// A value of a key, with what its node knows about it. Dereferences to the value.
pub struct FleetValue<T> {
    value: Arc<T>,
    version: Option<Version>,
    /// When it was built, if it was built for this node alone.
    alone: Option<Tick>,
    /// When it must not be served any more.
    hard_end: Tick,
}

impl<T> FleetValue<T> {
    /// The value.
    #[must_use]
    pub fn value(&self) -> &Arc<T> {
        &self.value
    }

    /// The store's version of it. `None` if it was built for this node alone.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.version
    }
}

impl<T> Deref for FleetValue<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Clone for FleetValue<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), ..*self }
    }
}

impl<T> fmt::Debug for FleetValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetValue").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The loader of a map whose builds are shared by all processes that use the same store.
///
/// `dogpile-map` keeps the values, within its bound, and lets one caller per process load a key. That caller passes its build
/// through [`load`](FleetKeys::load), which runs it only if the store elects this process. No key has a thread, a connection or
/// a poll of its own: a hundred thousand keys use the two connections of their store.
///
/// A [`FleetCell`](crate::FleetCell) is for one value that matters: it polls and is hinted while nobody reads, and serves a
/// finished build before it is stored. Here a key is dealt with only when it is read:
///
/// * The map counts a value as fresh for the policy's [`poll`](FleetPolicy::poll), or for as long as the store does, if that is
///   less. After that the next caller of the key asks the store whether the value is still the newest: one round trip, during which
///   the others are served the old one. So an invalidation on another node is noticed by the first read after `poll`.
/// * A caller that finds nothing to serve while another node builds waits for that build; the store's hint wakes it.
/// * A build is stored before it is served, within the store's timeout.
/// * An invalidation that could not be delivered is delivered when its key is next used on this node.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{BuildContext, FleetKeys, FleetPolicy, FleetValue, MemoryStore, Plain, Refreshed};
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
///         let build = |_: &BuildContext<'_, String>| Ok::<_, io::Error>(Refreshed::from(format!("user {id}")));
///         keys.load(&id.to_string(), previous, build)
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
    beats: Arc<Beats>,
}

/// A right to build.
struct Won {
    token: Token,
    tag: Option<String>,
    failures: u32,
}

/// A value of the store that is of no use here.
enum Useless {
    Damaged,
    Foreign,
}

impl<T: Send + Sync + 'static> FleetKeys<T> {
    /// Keys that share their builds with all `FleetKeys` of the same name in the store. The entry of a key has the name
    /// `<name>:<key>`.
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
    pub fn with_clock(
        name: impl Into<String>,
        store: impl RefreshStore + 'static,
        codec: impl Codec<T> + 'static,
        policy: FleetPolicy,
        clock: C,
    ) -> Self {
        let access = Access::new(Arc::new(store), policy.breaker, clock.clone());
        let shared = Shared::new(name.into(), access, policy, clock);
        Self { shared: Arc::new(shared), codec: Box::new(codec), beats: Arc::default() }
    }

    /// Calls `report` with each error of the store, on the thread that came across it. Of several the first one stays.
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
    /// `previous` is the value that the map has, if it has one.
    ///
    /// # Errors
    ///
    /// [`RefreshError::Build`] with
    ///
    /// * the error of `build`;
    /// * [`Backoff`]: the latest build failed, on whatever node, and the pause after it runs;
    /// * [`Busy`]: another node builds, or the store does not work, and `previous` may be served meanwhile.
    ///
    /// The map serves the old value in place of an error, as far as its policy allows.
    ///
    /// # Blocking
    ///
    /// Until the store has answered, or its timeout has passed, and while `build` runs. With nothing to serve, while another
    /// node builds.
    ///
    /// # Panics
    ///
    /// If `build` panics. The right to build is given back.
    #[allow(clippy::needless_pass_by_value)] // as a map gives it
    pub fn load<E, F>(
        &self,
        key: &str,
        previous: Option<Arc<FleetValue<T>>>,
        build: F,
    ) -> Result<Refreshed<FleetValue<T>>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        let (shared, previous) = (&*self.shared, previous.as_deref());
        let Ok(name) = shared.name_of(key) else { return self.build_alone(previous, None, build) };
        let (hinted, hints) = channel();
        let mut subscription = None;
        let mut wait = Duration::from_millis(2);
        let mut refuse = None;
        loop {
            let asked = shared.clock.now();
            let serves = previous.filter(|previous| asked < previous.hard_end);
            let known = previous.and_then(|previous| previous.version);
            let request = Request { known, refuse, ..Request::new(shared.policy.lease) };
            shared.access.counters.acquires.count();
            let answer = match shared.acquire(&name, &request) {
                Some(answer) => answer,
                None if serves.is_some() => return Err(Busy { left: shared.pause() }.into()),
                None => return self.build_alone(previous, None, build),
            };
            match answer {
                Acquire::Won { token, tag, failures, current } => {
                    let won = Won { token, tag, failures };
                    return self.build(&name, won, &current, previous, asked, build);
                }
                Acquire::Fresh(Current::Newer(value)) => {
                    let is_older = previous.and_then(|previous| previous.alone).is_some_and(|built| {
                        // Its builder was elected before this node's own build had ended.
                        value.age > asked.saturating_duration_since(built)
                    });
                    match self.open(&value, asked) {
                        Ok(_) if is_older => refuse = Some(value.version),
                        Ok(taken) => {
                            shared.access.counters.adopted.count();
                            return Ok(Refreshed::NewFor(taken, shared.fresh_for(value.soft_left, asked)));
                        }
                        Err(Useless::Damaged) => refuse = Some(value.version),
                        Err(Useless::Foreign) => {
                            return self.build_alone(previous, Some(value.soft_left), build);
                        }
                    }
                }
                Acquire::Fresh(Current::Same { soft_left, hard_left }) => {
                    // Else it has gone in the very moment.
                    if let Some(previous) = previous {
                        let hard_end = asked.saturating_add(hard_left);
                        let same = FleetValue { hard_end, ..previous.clone() };
                        return Ok(Refreshed::NewFor(same, shared.fresh_for(soft_left, asked)));
                    }
                }
                Acquire::Fresh(Current::Nothing { .. }) => {}
                Acquire::Busy { left, current } => {
                    shared.access.counters.busy.count();
                    if let Some(taken) = self.take_stale(current, asked) {
                        return Ok(Refreshed::NewFor(taken, Duration::ZERO));
                    }
                    if serves.is_some() {
                        return Err(Busy { left }.into());
                    }
                    if subscription.is_none() {
                        // Before the store is asked once more: what happens after that is hinted at.
                        let hinted = hinted.clone();
                        let hint = Box::new(move || {
                            let _ = hinted.send(());
                        });
                        subscription = Some(shared.access.store.subscribe(&name, hint));
                        continue;
                    }
                    let _ = hints.recv_timeout(wait.min(left.saturating_add(Duration::from_millis(1))));
                    wait = (wait * 2).min(shared.pause());
                }
                Acquire::Backoff { left, current, .. } => {
                    shared.access.counters.backoffs.count();
                    if let Some(taken) = self.take_stale(current, asked) {
                        return Ok(Refreshed::NewFor(taken, Duration::ZERO));
                    }
                    return Err(Backoff { left }.into());
                }
            }
        }
    }

    /// Declares the value of a key stale, on all nodes, as [`FleetCell::invalidate`](crate::FleetCell::invalidate) does. To be
    /// called after the change of the source has been committed, and before the map's own `invalidate`. (The map's before it as well,
    /// where this node should not serve the old value as fresh while the store is asked.)
    ///
    /// # Errors
    ///
    /// If the store could not be told. It will be before this node asks it for the key again.
    pub fn invalidate(&self, key: &str) -> Result<(), Arc<StoreError>> {
        self.shared.invalidate(key, Invalidation::Soft)
    }

    /// Takes the value of a key away, on all nodes. To be called before the map's own `clear`.
    ///
    /// # Errors
    ///
    /// As for [`invalidate`](FleetKeys::invalidate).
    pub fn clear(&self, key: &str) -> Result<(), Arc<StoreError>> {
        self.shared.invalidate(key, Invalidation::Hard)
    }

    /// As [`FleetCell::check`](crate::FleetCell::check), with the name `<name>:check`.
    ///
    /// # Errors
    ///
    /// What the store or the system has said.
    pub fn check(&self) -> Result<(), Arc<StoreError>> {
        let name = self.shared.name_of("check")?;
        self.shared.access.run(Operation::Check, &name, |store, name| store.check(name))
    }

    /// What this node has done so far, for all keys.
    #[must_use]
    pub fn stats(&self) -> FleetStats {
        self.shared.access.counters.read()
    }

    /// The latest error of the store.
    #[must_use]
    pub fn last_store_error(&self) -> Option<Arc<StoreError>> {
        self.shared.access.last_error()
    }

    fn open(&self, value: &Value, asked: Tick) -> Result<FleetValue<T>, Useless> {
        let counters = &self.shared.access.counters;
        match open(&*self.codec, &value.payload) {
            Opened::Value(opened) => {
                let hard_end = asked.saturating_add(value.hard_left);
                Ok(FleetValue {
                    value: Arc::new(opened),
                    version: Some(value.version),
                    alone: None,
                    hard_end,
                })
            }
            Opened::Damaged => {
                counters.damaged.count();
                Err(Useless::Damaged)
            }
            Opened::Foreign => {
                counters.foreign.count();
                Err(Useless::Foreign)
            }
        }
    }

    /// A value that this node does not have, and that may be served though it is stale.
    fn take_stale(&self, current: Current, asked: Tick) -> Option<FleetValue<T>> {
        let Current::Newer(value) = current else { return None };
        let left = value.hard_left.saturating_sub(self.shared.since(asked));
        let taken = if left.is_zero() { None } else { self.open(&value, asked).ok() }?;
        self.shared.access.counters.adopted.count();
        Some(taken)
    }
}

impl<T: 'static, C: Clock + 'static> Drop for FleetKeys<T, C> {
    fn drop(&mut self) {
        self.beats.close();
    }
}

impl<T: 'static, C: Clock + 'static> fmt::Debug for FleetKeys<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetKeys").field("name", &self.shared.name).finish_non_exhaustive()
    }
}
