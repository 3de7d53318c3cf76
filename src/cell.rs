//! `DogpileCell`: thin methods over the state machine.
//!
//! One direction: a file imports only from those above it.
//!
//! ```text
//! slot        the value and its record, read without a lock      G2 G3
//! attempt     those who wait for one build                       G6 G7
//! machine     the state: elections, the fence, ends of builds    G1 G4 G5 G8 G9
//! building    which builds run on this thread                    G10
//! lease       the right to build
//! pending     a place among those who wait
//! lookup      the outcome of a look
//! refresh     the loops around a look
//! guard, reader
//! cell        this file
//! owned       leases and places for cells in an `Arc`
//! asynchronous   the same for tasks (feature `async`)
//! ```

#[cfg(feature = "async")]
mod asynchronous;
mod attempt;
mod building;
mod guard;
mod lease;
mod lookup;
pub(crate) mod machine;
mod owned;
mod pending;
mod reader;
mod refresh;
mod slot;

pub use guard::Guard;
pub use lease::Lease;
pub use lookup::Lookup;
pub use owned::{OwnedLease, OwnedLookup, OwnedPending};
pub use pending::{Pending, Waited};
pub use reader::Reader;

use std::fmt;
#[cfg(feature = "async")]
use std::panic::Location;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::error::RefreshError;
use crate::policy::{Freshness, Policy};
use crate::stats::Stats;
use crate::sync::{Arc, const_fn};

#[cfg(feature = "async")]
pub(crate) use asynchronous::{try_turn_async, turn_async};
pub(crate) use lease::Held;
pub(crate) use machine::Machine;
pub(crate) use refresh::{Turn, try_turn, turn};
pub(crate) use slot::Slot;

use machine::Demand;

/// A cell that owns a value which is expensive to make, read by many, and out of date after a while.
///
/// When the value goes out of date, **one** caller rebuilds it, while everybody else keeps using the old one.
/// Only when there is nothing that may be served do callers wait, and then they share one build.
///
/// The value is held in an [`Arc`], so a reader keeps what it got for as long as it likes.
///
/// # What readers observe
///
/// The generation that a thread sees never goes back, whichever method it uses; nor does it between threads that
/// synchronise. A build that began before an [`invalidate`](DogpileCell::invalidate), a [`clear`](DogpileCell::clear)
/// or a [`set`](DogpileCell::set) never undoes it.
///
/// # Blocking
///
/// A caller blocks only if there is nothing that it may be served and somebody else builds (or if it asks for more than
/// what may be served: [`get_fresh_or_refresh`](DogpileCell::get_fresh_or_refresh), [`refresh`](DogpileCell::refresh)).
/// A stale read takes no lock, also while a build runs. A build that fails, panics or is abandoned strands nobody and poisons
/// nothing.
///
/// # Cost
///
/// A fresh or stale read compares one word with the coarse clock (and asks no clock at all if the value has no
/// deadline) and takes a reference. A publication walks over a list with a place for every thread that uses
/// `arc-swap`: make cells for values that are built seconds apart, not thousands of cells that are set all the time.
///
/// # Examples
///
/// ```
/// use dogpile::DogpileCell;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// struct Rates(f64);
///
/// fn download_rates() -> Rates {
///     Rates(1.07) // slow
/// }
///
/// static RATES: DogpileCell<Rates> = DogpileCell::new(Duration::from_secs(60));
///
/// let rates: Arc<Rates> = RATES.get_or_refresh(|| download_rates());
/// assert_eq!(rates.0, 1.07);
/// ```
///
/// A cell can be shared by threads if its value can:
///
/// ```compile_fail,E0277
/// use dogpile::DogpileCell;
///
/// static CELL: DogpileCell<std::cell::Cell<u32>> = DogpileCell::new(std::time::Duration::ZERO);
/// # fn main() { CELL.get(); }
/// ```
///
/// ```
/// use dogpile::DogpileCell;
///
/// static CELL: DogpileCell<std::sync::Mutex<u32>> = DogpileCell::new(std::time::Duration::ZERO);
/// # fn main() { CELL.get(); }
/// ```
pub struct DogpileCell<T, C = SystemClock> {
    machine: Machine<T, C>,
}

/// Making one.
impl<T> DogpileCell<T> {
    const_fn! {
        /// An empty cell whose values are fresh for `ttl` after their publication. After that they are served,
        /// without limit, while they are rebuilt. See [`Policy`] for more.
        #[must_use]
        pub const fn new(ttl: Duration) -> Self {
            Self::with_policy(Policy::ttl(ttl))
        }
    }

    const_fn! {
        /// An empty cell with a policy.
        ///
        /// # Examples
        ///
        /// ```
        /// use dogpile::{DogpileCell, Policy};
        /// use once_cell::sync::Lazy;
        /// use std::time::Duration;
        ///
        /// fn policy_from_env() -> Policy {
        ///     let seconds = std::env::var("KEYS_TTL").ok().and_then(|ttl| ttl.parse().ok()).unwrap_or(60);
        ///     Policy::ttl(Duration::from_secs(seconds))
        /// }
        ///
        /// static KEYS: Lazy<DogpileCell<Vec<u8>>> = Lazy::new(|| DogpileCell::with_policy(policy_from_env()));
        ///
        /// assert_eq!(*KEYS.get_or_refresh(|| vec![1, 2, 3]), [1, 2, 3]);
        /// ```
        #[must_use]
        pub const fn with_policy(policy: Policy) -> Self {
            Self::with_clock(policy, SystemClock)
        }
    }
}

/// Making one with a clock of one's own.
impl<T, C> DogpileCell<T, C> {
    const_fn! {
        /// An empty cell with a policy and a clock.
        ///
        /// # Examples
        ///
        /// ```
        /// use dogpile::{DogpileCell, Policy, TickClock};
        /// use std::time::Duration;
        ///
        /// static HOT: DogpileCell<u64, TickClock> =
        ///     DogpileCell::with_clock(Policy::ttl(Duration::from_secs(1)), TickClock);
        ///
        /// assert_eq!(*HOT.get_or_refresh(|| 7), 7);
        /// ```
        #[must_use]
        pub const fn with_clock(policy: Policy, clock: C) -> Self {
            Self { machine: Machine::new(policy, clock) }
        }
    }

    /// Gives the cell a name: for [`Debug`](fmt::Debug), and for `tracing` (feature `tracing`).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// static RATES: DogpileCell<f64> = DogpileCell::new(Duration::from_secs(60)).named("rates");
    ///
    /// assert!(format!("{RATES:?}").contains("rates"));
    /// ```
    #[must_use]
    pub const fn named(mut self, name: &'static str) -> Self {
        self.machine.name = Some(name);
        self
    }

    /// The value, fresh or not.
    #[must_use]
    pub fn into_inner(self) -> Option<Arc<T>> {
        self.machine.into_inner()
    }

    /// Whether somebody builds at the moment.
    #[must_use]
    pub fn is_refreshing(&self) -> bool {
        self.machine.is_refreshing()
    }

    /// The number of publications so far; 0 means that nothing has been published yet.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.machine.generation()
    }

    /// What the cell has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.machine.counters.read()
    }

    /// A handle for a thread that reads the cell very often: it keeps the value at hand.
    #[must_use]
    pub fn reader(&self) -> Reader<'_, T, C> {
        Reader::new(&self.machine)
    }
}

impl<T, C> DogpileCell<T, C> {
    pub(crate) const fn machine_mut(&mut self) -> &mut Machine<T, C> {
        &mut self.machine
    }

    #[inline]
    pub(crate) fn machine(&self) -> &Machine<T, C> {
        &self.machine
    }
}

/// Reads that may build.
impl<T, C: Clock> DogpileCell<T, C> {
    /// The value: if it is fresh, as it is. If it is stale, the one caller that is elected runs `build` and gets what
    /// that returns, and everybody else gets the old value.
    ///
    /// If it has expired, or there is none, everybody else waits, and gets the value that the elected caller has
    /// built.
    ///
    /// # Blocking
    ///
    /// For as long as somebody else builds, if there is nothing that may be served. The elected caller runs
    /// `build` itself.
    ///
    /// # Panics
    ///
    /// If `build` panics. The panic reaches this caller only; the old value stays, or one of those who wait is elected
    /// next. Also if it is called from inside the build of the same cell while there is nothing to serve: it would
    /// wait for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// assert_eq!(*cell.get_or_refresh(|| "built"), "built");
    /// assert_eq!(*cell.get_or_refresh(|| unreachable!("still fresh")), "built");
    /// ```
    #[inline]
    #[track_caller]
    pub fn get_or_refresh<F: FnOnce() -> T>(&self, build: F) -> Arc<T> {
        match self.machine.serve() {
            Some(value) => value,
            None => self.machine.get_or_refresh(build),
        }
    }

    /// As [`get_or_refresh`](DogpileCell::get_or_refresh), with a build that may fail.
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: the caller's own build failed, or the one that it waited for, or the latest one
    ///   while a retry pause runs; and there is no value that the policy's `stale_if_error` allows to serve.
    ///   Those who waited for the same build share its error. A caller whose `E` is another type than that of
    ///   the build that failed builds itself.
    /// * [`RefreshError::Reentrant`]: called from inside the build of the same cell, with nothing to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let error = cell.try_get_or_refresh(|| "seven".parse::<i32>()).unwrap_err();
    /// assert!(matches!(error, RefreshError::Build(_)));
    /// assert_eq!(*cell.try_get_or_refresh(|| "7".parse::<i32>())?, 7);
    /// # Ok::<(), RefreshError<std::num::ParseIntError>>(())
    /// ```
    #[inline]
    pub fn try_get_or_refresh<E, F>(&self, build: F) -> Result<Arc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce() -> Result<T, E>,
    {
        match self.machine.serve() {
            Some(value) => Ok(value),
            None => self.machine.try_get_or_refresh(None, build),
        }
    }

    /// As [`try_get_or_refresh`](DogpileCell::try_get_or_refresh), but waits at most `wait` for somebody else's
    /// build, on the cell's clock. [`Duration::ZERO`] means never to wait.
    ///
    /// The time that the caller's own build takes does not count. A caller that is not elected never builds.
    ///
    /// # Errors
    ///
    /// As there, and [`RefreshError::WaitTimeout`] when the time is over.
    #[inline]
    pub fn try_get_or_refresh_timeout<E, F>(
        &self,
        wait: Duration,
        build: F,
    ) -> Result<Arc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce() -> Result<T, E>,
    {
        match self.machine.serve() {
            Some(value) => Ok(value),
            None => self.machine.try_get_or_refresh(Some(wait), build),
        }
    }

    /// As [`get_or_refresh`](DogpileCell::get_or_refresh), but never a stale value: waits for the running build
    /// instead, or builds.
    ///
    /// A value that was published while the caller waited is accepted even if it has expired by then, but not
    /// if an `invalidate` came during its build. If one comes during the caller's own build, the caller gets
    /// what it has built all the same; if a `set` does, the value that was set.
    ///
    /// # Panics
    ///
    /// If `build` panics, or if it is called from inside the build of the same cell.
    #[track_caller]
    pub fn get_fresh_or_refresh<F: FnOnce() -> T>(&self, build: F) -> Arc<T> {
        turn(&self.machine, Demand::Fresh, "get_fresh_or_refresh", |_| false).build(build)
    }

    /// Rebuilds even if the value is fresh: returns a value whose build began after this call.
    ///
    /// If a build runs already, it is waited for, since there are never two at a time; then the caller builds, or
    /// shares the build of another caller that waited too. A value that was `set` after this call is as good. If one
    /// is set during the caller's own build, the caller gets that one.
    ///
    /// # Panics
    ///
    /// If `build` panics, or if it is called from inside the build of the same cell.
    #[track_caller]
    pub fn refresh<F: FnOnce() -> T>(&self, build: F) -> Arc<T> {
        let demand = Demand::After(self.machine.latest_origin());
        turn(&self.machine, demand, "refresh", |_| false).build(build)
    }

    /// As [`get_or_refresh`](DogpileCell::get_or_refresh), but touches no reference count if there is a value
    /// that is fresh, or that is stale while somebody builds or a retry pause runs.
    ///
    /// # Panics
    ///
    /// As there.
    #[inline]
    #[track_caller]
    pub fn load_or_refresh<F: FnOnce() -> T>(&self, build: F) -> Guard<'_, T> {
        match self.machine.serve_guard().and_then(Guard::new) {
            Some(guard) => guard,
            None => Guard::of(self.machine.get_or_refresh(build)),
        }
    }

    /// Looks at the cell: every other method is built on this one.
    ///
    /// It is for what they do not cover: conditional builds, values that choose their own time to live, builds that
    /// somebody else runs. Never blocks.
    #[inline]
    pub fn lookup(&self) -> Lookup<'_, T, C> {
        self.machine.lookup_for(Demand::Servable)
    }

    /// As [`lookup`](DogpileCell::lookup), for a cell in an [`Arc`]: the lease and the place among those who wait keep the
    /// cell alive.
    pub fn lookup_owned(self: &Arc<Self>) -> OwnedLookup<T, C> {
        OwnedLookup::new(self, self.machine.lookup(Demand::Servable))
    }
}

/// Reads that never build and never block.
impl<T, C: Clock> DogpileCell<T, C> {
    /// What may be served now, fresh or stale.
    #[must_use]
    #[inline]
    pub fn get(&self) -> Option<Arc<T>> {
        self.load().map(Guard::into_arc)
    }

    /// The value, unless there is something to be done about it: a fresh one, or a stale one while somebody builds or a
    /// retry pause runs.
    ///
    /// `None` if [`lookup`](DogpileCell::lookup) would elect this caller, make it wait or show it an error; or if there
    /// was a change at this very moment. For those who go on by another way then, and want the usual read to cost no more
    /// than [`get_or_refresh`](DogpileCell::get_or_refresh) does.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set(1);
    /// assert_eq!(cell.get_unless_due().as_deref(), Some(&1));
    ///
    /// cell.invalidate();
    /// assert_eq!(cell.get_unless_due(), None);
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// assert_eq!(cell.get_unless_due().as_deref(), Some(&1), "it is being dealt with");
    /// # drop(lease);
    /// ```
    #[must_use]
    #[inline]
    pub fn get_unless_due(&self) -> Option<Arc<T>> {
        self.machine.serve()
    }

    /// As [`get`](DogpileCell::get), but touches no reference count.
    #[must_use]
    #[inline]
    pub fn load(&self) -> Option<Guard<'_, T>> {
        self.machine.servable().and_then(Guard::new)
    }

    /// The value with its generation, its age and its freshness: all of one and the same publication.
    ///
    /// Shows an expired value too, and says so; [`get`](DogpileCell::get) does not serve one.
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot<T>> {
        self.machine.snapshot().map(|(value, record, age, freshness)| Snapshot {
            value,
            generation: record.generation,
            age: Duration::from_nanos(age),
            freshness,
        })
    }

    /// What a read would find now.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        self.machine.freshness()
    }
}

/// Writes.
impl<T, C: Clock> DogpileCell<T, C> {
    /// Publishes `value`, ahead of any build: one that runs now does not displace it, and those who wait get it.
    ///
    /// # Panics
    ///
    /// If dropping the replaced value panics. The new one is in place by then.
    pub fn set(&self, value: T) -> Arc<T> {
        let value = Arc::new(value);
        drop(self.machine.set_when_open(Arc::clone(&value), |_| false, |_, _| ()));
        value
    }

    /// Declares the value stale now: the next caller rebuilds it, meanwhile it is served.
    ///
    /// A build that runs now has perhaps seen what is no longer true: its result is published, but as already
    /// stale. Works without a ttl too. A retry pause goes on.
    pub fn invalidate(&self) {
        self.machine.invalidate();
    }

    /// Takes the value away now, and returns it: the next callers wait for a new one.
    ///
    /// The result of a build that runs now is not published: only its own caller gets it. A retry pause goes on.
    pub fn clear(&self) -> Option<Arc<T>> {
        self.machine.clear(|_| ())
    }
}

/// Reads from async code (feature `async`).
///
/// The futures run on any executor. Tasks and threads share one cell and one lease: a task that is suspended and a thread
/// that is blocked are woken by the same publish. A read that finds something to serve does not suspend the task and
/// allocates nothing.
///
/// # Cancellation
///
/// A future can be dropped at any point. The elected one gives the lease back (one of those who wait is elected next),
/// any other gives up its place. Nothing else is lost, so the executor's own timeout is all that is needed to limit a
/// wait.
#[cfg(feature = "async")]
impl<T, C: Clock> DogpileCell<T, C> {
    /// As [`get_or_refresh`](DogpileCell::get_or_refresh), with a build that is a future.
    ///
    /// # Panics
    ///
    /// As there. A call from inside the build of the same cell is noticed if the build makes it itself. A build that
    /// waits for another task, which asks the same cell, waits for ever (unless a [`lease_timeout`] ends that).
    ///
    /// [`lease_timeout`]: crate::Policy::lease_timeout
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// static RATES: DogpileCell<f64> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// async fn download() -> f64 {
    ///     1.07
    /// }
    ///
    /// # futures_lite::future::block_on(async {
    /// let rates = RATES.get_or_refresh_async(|| download()).await;
    /// assert_eq!(*rates, 1.07);
    /// # });
    /// ```
    #[track_caller]
    pub fn get_or_refresh_async<F, Fut>(
        &self,
        build: F,
    ) -> impl Future<Output = Arc<T>> + use<'_, T, C, F, Fut>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        let called = Location::caller();
        async move {
            match self.machine().serve() {
                Some(value) => value,
                None => {
                    let turn =
                        turn_async(self.machine(), Demand::Value, "get_or_refresh_async", called).await;
                    turn.build_async(build).await
                }
            }
        }
    }

    /// As [`try_get_or_refresh`](DogpileCell::try_get_or_refresh), with a build that is a future.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn try_get_or_refresh_async<E, F, Fut>(&self, build: F) -> Result<Arc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        if let Some(value) = self.machine().serve() {
            return Ok(value);
        }
        match try_turn_async(self.machine()).await? {
            Turn::Served(value) => Ok(value),
            Turn::Elected(held) => self.machine().or_instead(held.try_build_async(build).await),
        }
    }

    /// As [`get_fresh_or_refresh`](DogpileCell::get_fresh_or_refresh), with a build that is a future.
    ///
    /// # Panics
    ///
    /// As [`get_or_refresh_async`](DogpileCell::get_or_refresh_async).
    #[track_caller]
    pub fn get_fresh_or_refresh_async<F, Fut>(
        &self,
        build: F,
    ) -> impl Future<Output = Arc<T>> + use<'_, T, C, F, Fut>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        let called = Location::caller();
        async move {
            let turn = turn_async(self.machine(), Demand::Fresh, "get_fresh_or_refresh_async", called).await;
            turn.build_async(build).await
        }
    }
}

impl<T, C> fmt::Debug for DogpileCell<T, C> {
    /// Shows the state, not the value, and never blocks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DogpileCell")
            .field("name", &self.machine.name.unwrap_or_default())
            .field("generation", &self.generation())
            .field("has_value", &self.machine.has_value())
            .field("is_refreshing", &self.is_refreshing())
            .finish_non_exhaustive()
    }
}

/// A value and what belongs to it, all of one and the same publication.
pub struct Snapshot<T> {
    /// The value.
    pub value: Arc<T>,
    /// The number of its publication.
    pub generation: u64,
    /// The time since its publication.
    pub age: Duration,
    /// Fresh, stale or expired.
    pub freshness: Freshness,
}

impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), ..*self }
    }
}

impl<T> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.generation)
            .field("age", &self.age)
            .field("freshness", &self.freshness)
            .finish_non_exhaustive()
    }
}
