//! `DogpileCell`: thin methods over the state machine.
//!
//! One direction: a file imports only from those above it. There are two exceptions: handles of a [`DogpileCell`] name that type,
//! and a [`Kind`] of cells, beside the handles, names the lease that it publishes with.
//!
//! ```text
//! slot        the value and its record, read without a lock        G2 G3
//! attempt     the waiters of one build                             G6 G7
//! listeners   what is notified of each change                      G9
//! state       what the lock guards; the decision table             G1
//! machine     the parts, and the reads that take no lock
//! elect       which caller builds                                  G1 G2
//! publish     how builds end                                       G4 G5 G8 G9
//! write       set, invalidate, clear and their like                G4
//! exclusive   the write lock
//! listening   attaching listeners, and what they ask of the cell
//! handle      a reference to a cell, borrowed or shared; the kinds of cells
//! lease       the right to build
//! pending     waiting for another caller's build
//! lookup      the outcome of a look
//! search      the one loop around a look
//! build       what runs while the lease is held
//! request     a read with conditions                               G13 G14
//! guard, owned, reader
//! cell        this file
//! ```

mod attempt;
mod build;
mod elect;
mod exclusive;
mod guard;
mod handle;
mod lease;
mod listeners;
mod listening;
mod lookup;
mod machine;
mod owned;
mod pending;
mod publish;
mod reader;
mod request;
mod search;
mod slot;
mod state;
mod write;

#[cfg(feature = "async")]
pub use build::Task;
pub use build::{BuildResult, Job, Refreshable, Refreshed};
pub use guard::Guard;
pub use handle::Handle;
pub use lease::{Lease, Published};
pub use lookup::Lookup;
pub use owned::Owned;
pub use pending::{Pending, Waited};
pub use reader::Reader;
pub use request::{InCaller, Request, SpawnWith, TakesBuild};

use std::fmt;
#[cfg(feature = "async")]
use std::panic::Location;
use std::time::Duration;

use crate::error::{BoxError, RefreshError, SharedError};
use crate::policy::{Freshness, Policy};
use crate::stats::Stats;
use crate::sync::{Arc, const_fn};
use crate::time::{Clock, SystemClock, nanos};

pub(crate) use attempt::{Attempt, Outcome};
pub(crate) use elect::Decision;
#[cfg(feature = "async")]
pub(crate) use handle::Publishing;
pub(crate) use handle::{Kind, WeakHandle};
pub(crate) use lease::Held;
pub(crate) use listeners::{Listener, Noted, Notified};
pub(crate) use listening::Plan;
pub(crate) use machine::Machine;
pub(crate) use publish::{BuildOutput, Concluded, Observer, Term};
pub(crate) use reader::Currency;
pub(crate) use search::{Caller, Search};
pub(crate) use slot::{Record, Seen, Version};
pub(crate) use state::Demand;

/// A cell for one value that is expensive to make, read by many threads, and out of date after a while.
///
/// When the value goes out of date, **one** caller rebuilds it, and all others keep using the old one. Callers wait
/// only if there is no value that may be served. They then share one build.
///
/// The value is held in an [`Arc`], so a reader can keep the value that it got.
///
/// # What readers observe
///
/// The generation that a thread sees never goes back, whichever methods it uses. The same holds between threads that
/// synchronise with each other. A build that began before an [`invalidate`](DogpileCell::invalidate), a
/// [`clear`](DogpileCell::clear) or a [`set`](DogpileCell::set) never undoes it.
///
/// # Blocking
///
/// A caller blocks only while another caller builds and there is no value that it may be served: the cell is empty, the
/// value has expired, or the conditions of its [`request`](DogpileCell::request) rule the value out. The caller that is
/// elected runs the build itself. A stale read takes no lock, also while a build runs. A build that fails, panics or is
/// abandoned leaves no waiter blocked and does not poison the cell.
///
/// By default a stale value is served **without limit**: while it is rebuilt, and while builds fail. [`Policy`] sets
/// limits.
///
/// # Cost
///
/// A fresh or stale read takes a reference to the value and compares one word with the coarse clock. If the value has
/// no deadline, it consults no clock. A publication walks a list with one entry for every thread that uses `arc-swap`.
/// Cells are meant for values that are built seconds apart, not for thousands of cells that are set all the time.
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
/// Threads can share a cell if they can share its value:
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
    pub(crate) machine: Machine<T, C>,
}

/// Constructors.
impl<T> DogpileCell<T> {
    const_fn! {
        /// Creates an empty cell whose values are fresh for `ttl`, counted from their publication.
        ///
        /// A value older than that is stale. It is served without limit while it is rebuilt. To set a limit, use
        /// [`with_policy`](DogpileCell::with_policy).
        ///
        /// # Examples
        ///
        /// ```
        /// use dogpile::DogpileCell;
        /// use std::time::Duration;
        ///
        /// static RATES: DogpileCell<f64> = DogpileCell::new(Duration::from_secs(60));
        ///
        /// assert_eq!(*RATES.get_or_refresh(|| 1.07), 1.07);
        /// ```
        #[must_use]
        pub const fn new(ttl: Duration) -> Self {
            Self::with_policy(Policy::ttl(ttl))
        }
    }

    const_fn! {
        /// Creates an empty cell with a policy.
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

/// Constructors with a clock, and the name.
impl<T, C> DogpileCell<T, C> {
    const_fn! {
        /// Creates an empty cell with a policy and a clock.
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

    /// Names the cell in its [`Debug`](fmt::Debug) output and in `tracing` events (feature `tracing`).
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
}

impl<T, C: Clock> Kind for DogpileCell<T, C> {
    type Value = T;
    type Stored = T;
    type Shared = Arc<T>;
    type Clock = C;

    #[inline]
    fn machine(&self) -> &Machine<T, C> {
        &self.machine
    }

    fn share(stored: Arc<T>) -> Arc<T> {
        stored
    }

    fn publish(held: Held<'_, Self>, value: T, term: Term) -> Arc<T> {
        held.publish_arc(Arc::new(value), term)
    }
}

/// Reads that may build.
impl<T, C: Clock> DogpileCell<T, C> {
    /// Returns the value, rebuilding it if it is out of date.
    ///
    /// If it is stale, one caller runs `build` and returns the result. All others immediately return the old value. If
    /// it has expired, or there is none, the others wait for that build and return its result.
    ///
    /// # Blocking
    ///
    /// Blocks while another caller builds, if there is no value that may be served. The elected caller runs `build`
    /// itself.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics. Only the caller that ran the build panics. The old value stays; if there is none, one
    /// of the waiters is elected next. Also panics if it is called from inside the build of the same cell while there
    /// is no value to serve, since it would wait for itself.
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
            None => Search::refresh(self, build),
        }
    }

    /// Returns the value, rebuilding it with a build that may fail if it is out of date.
    ///
    /// Elections, waiting and blocking are those of [`get_or_refresh`](DogpileCell::get_or_refresh). If the build
    /// fails, the old value is returned as long as the policy's [`stale_if_error`](Policy::stale_if_error) allows,
    /// which is without limit by default. [`last_error`](DogpileCell::last_error) then returns the error.
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: the caller's own build failed, or the build that it waited for, or the latest build
    ///   while a retry pause runs; and the policy allows no value to be served instead. All callers that waited for one
    ///   build share its error.
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
    /// use dogpile::{DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// fn limit(text: &str) -> Result<u32, RefreshError> {
    ///     Ok(*LIMIT.try_get_or_refresh(|| text.parse::<u32>())?)
    /// }
    ///
    /// assert_eq!(limit("seven").unwrap_err().to_string(), "invalid digit found in string");
    /// # std::thread::sleep(Duration::from_millis(110));
    /// // 100 ms later:
    /// assert_eq!(limit("7").unwrap(), 7);
    /// ```
    #[inline]
    pub fn try_get_or_refresh<E: Into<BoxError>, F: FnOnce() -> Result<T, E>>(
        &self,
        build: F,
    ) -> Result<Arc<T>, RefreshError> {
        match self.machine.serve() {
            Some(value) => Ok(value),
            None => Search::try_refresh(self, build),
        }
    }

    /// Returns a [`Guard`] of the value, rebuilding it if it is out of date.
    ///
    /// Like [`get_or_refresh`](DogpileCell::get_or_refresh), but touches no reference count if the value is fresh, or
    /// if it is stale and a build or a retry pause runs.
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
    /// let words = cell.load_or_refresh(|| vec!["a", "b"]);
    /// assert_eq!(words.len(), 2);
    /// ```
    #[inline]
    #[track_caller]
    pub fn load_or_refresh<F: FnOnce() -> T>(&self, build: F) -> Guard<'_, T> {
        match self.machine.serve_guard().and_then(Guard::new) {
            Some(guard) => guard,
            None => Guard::of(Search::refresh(self, build)),
        }
    }

    /// Starts a read with conditions: on the value's freshness or age, on how long to wait, on where the build runs.
    ///
    /// For a cell in a `static` this is a `Request<'static, _>`, which can [hand builds to a thread or a
    /// task](Request::spawn_with).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set("old");
    /// assert_eq!(*cell.request().no_cache().get(|| "new"), "new");
    /// ```
    pub fn request(&self) -> Request<'_, T, C> {
        Request::new(Handle::Borrowed(self))
    }

    /// Starts a read with conditions of a cell in an [`Arc`].
    ///
    /// The request keeps the cell alive, so it can [hand builds to a thread or a task](Request::spawn_with).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let cell = Arc::new(DogpileCell::new(Duration::from_secs(60)));
    /// assert_eq!(*cell.request_owned().spawn_with(std::thread::spawn).get(|| 7), 7);
    /// ```
    pub fn request_owned(self: &Arc<Self>) -> Request<'static, T, C> {
        Request::new(Handle::Shared(Arc::clone(self)))
    }

    /// Looks at the cell, and elects this caller if a build is due.
    ///
    /// Every other read is built on this one. Use it for what they do not cover. It never blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// match cell.lookup() {
    ///     Lookup::Elected(lease) => assert_eq!(*lease.publish(7), 7),
    ///     other => unreachable!("the cell is empty, and no build runs: {other:?}"),
    /// }
    /// ```
    #[inline]
    pub fn lookup(&self) -> Lookup<'_, T, C> {
        Lookup::new(Handle::Borrowed(self), self.machine.lookup(&Demand::ANY, None))
    }

    /// Looks at a cell in an [`Arc`], and elects this caller if a build is due.
    ///
    /// Like [`lookup`](DogpileCell::lookup), but the [`Lease`] or [`Pending`] keeps the cell alive. It never blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let cell = Arc::new(DogpileCell::new(Duration::from_secs(60)));
    /// let Lookup::Elected(lease) = cell.lookup_owned() else { unreachable!() };
    /// std::thread::spawn(move || lease.publish(7)).join().unwrap();
    /// assert_eq!(cell.get().as_deref(), Some(&7));
    /// ```
    pub fn lookup_owned(self: &Arc<Self>) -> Lookup<'static, T, C> {
        Lookup::new(Handle::Shared(Arc::clone(self)), self.machine.lookup(&Demand::ANY, None))
    }
}

/// Handles for threads that read very often.
impl<T, C> DogpileCell<T, C> {
    /// Returns a handle that keeps the value, for a thread that reads the cell very often.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let mut limit = LIMIT.reader();
    /// assert_eq!(**limit.get_or_refresh(|| 7), 7);
    /// ```
    #[must_use]
    pub fn reader(&self) -> Reader<'_, T, C> {
        Reader::new(self, ())
    }
}

/// Reads that never build and never block.
impl<T, C: Clock> DogpileCell<T, C> {
    /// Returns the value if it may be served now, fresh or stale.
    ///
    /// It never builds and never blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// assert_eq!(cell.get(), None);
    /// cell.set(1);
    /// cell.invalidate();
    /// assert_eq!(cell.get().as_deref(), Some(&1));
    /// ```
    #[must_use]
    #[inline]
    pub fn get(&self) -> Option<Arc<T>> {
        self.load().map(Guard::into_arc)
    }

    /// Returns the value if no refresh is due: a fresh value, or a stale one while a build or a retry pause runs or a
    /// [`Refresher`](crate::Refresher) is attached.
    ///
    /// Returns `None` if [`lookup`](DogpileCell::lookup) would elect this caller, make it wait or return an error, or
    /// if the value changed at this very moment. Use it as a fast path before `lookup`: it costs no more than
    /// [`get_or_refresh`](DogpileCell::get_or_refresh).
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
    /// assert_eq!(cell.get_unless_due().as_deref(), Some(&1), "a build runs");
    /// # drop(lease);
    /// ```
    #[must_use]
    #[inline]
    pub fn get_unless_due(&self) -> Option<Arc<T>> {
        self.machine.serve_and_mark()
    }

    /// Returns a [`Guard`] of the value if it may be served now, fresh or stale.
    ///
    /// Like [`get`](DogpileCell::get), but touches no reference count.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set("value");
    /// assert_eq!(cell.load().unwrap().len(), 5);
    /// ```
    #[must_use]
    #[inline]
    pub fn load(&self) -> Option<Guard<'_, T>> {
        self.machine.servable().and_then(Guard::new)
    }

    /// Returns the value with its generation, age and freshness, all of one publication.
    ///
    /// It also returns an expired value, with [`Freshness::Expired`]. ([`get`](DogpileCell::get) does not.)
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Freshness, ManualClock, Policy};
    /// use std::time::Duration;
    ///
    /// const SECOND: Duration = Duration::from_secs(1);
    ///
    /// let clock = ManualClock::new();
    /// let policy = Policy::ttl(60 * SECOND).stale_while_refresh(30 * SECOND);
    /// let cell = DogpileCell::with_clock(policy, clock.clone());
    /// cell.set("value");
    /// clock.advance(20 * SECOND);
    ///
    /// let seen = cell.snapshot().unwrap();
    /// assert_eq!((seen.generation, seen.age, seen.freshness), (1, 20 * SECOND, Freshness::Fresh));
    /// assert_eq!((seen.fresh_for, seen.servable_for), (40 * SECOND, 70 * SECOND));
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot<T>> {
        self.machine.snapshot().map(|seen| Snapshot::new(seen, |value| value))
    }

    /// Like [`snapshot`](DogpileCell::snapshot), but does not count as a read: a refresher that
    /// [rests](crate::RefresherOptions::rest_when_unused) while the value is not read goes on resting.
    ///
    /// For code that observes the cell and does not use its value: metrics, health checks, a copy on disk.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// assert!(cell.peek().is_none());
    /// cell.set(7);
    /// let seen = cell.peek().unwrap();
    /// assert_eq!((*seen.value, seen.generation), (7, 1));
    /// ```
    #[must_use]
    pub fn peek(&self) -> Option<Snapshot<T>> {
        self.machine.peek().map(|seen| Snapshot::new(seen, |value| value))
    }

    /// Returns what a read would find now: no value, a fresh, a stale or an expired one.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Freshness};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// assert_eq!(cell.freshness(), Freshness::Empty);
    /// cell.set(1);
    /// assert_eq!(cell.freshness(), Freshness::Fresh);
    /// cell.invalidate();
    /// assert_eq!(cell.freshness(), Freshness::Stale);
    /// ```
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        self.machine.freshness()
    }
}

/// Writes, which never wait for a build.
impl<T, C: Clock> DogpileCell<T, C> {
    /// Publishes `value` ahead of any build, and returns it.
    ///
    /// A build that runs now does not displace `value`. That build loses its lease, and its waiters get `value`. A
    /// retry pause ends.
    ///
    /// # Panics
    ///
    /// Panics if dropping the replaced value panics. The new value is in place by then.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let built = cell.get_or_refresh(|| {
    ///     cell.set("set meanwhile");
    ///     "built"
    /// });
    /// assert_eq!(*built, "set meanwhile");
    /// ```
    pub fn set(&self, value: T) -> Arc<T> {
        self.publish_ahead(Arc::new(value), Term::POLICY, true)
    }

    /// Publishes `value` with a time to live of its own instead of the policy's, and returns it.
    ///
    /// Otherwise like [`set`](DogpileCell::set).
    ///
    /// # Panics
    ///
    /// Panics if dropping the replaced value panics. The new value is in place by then.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set_for("token", Duration::from_secs(3600));
    /// assert!(cell.snapshot().unwrap().fresh_for > Duration::from_secs(60));
    /// ```
    pub fn set_for(&self, value: T, ttl: Duration) -> Arc<T> {
        self.publish_ahead(Arc::new(value), Term::of(Some(ttl)), true)
    }

    /// Publishes a value that is already in an [`Arc`], and returns it.
    ///
    /// Otherwise like [`set`](DogpileCell::set).
    ///
    /// # Panics
    ///
    /// Panics if dropping the replaced value panics. The new value is in place by then.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let shared = Arc::new("made elsewhere");
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set_arc(Arc::clone(&shared));
    /// assert!(Arc::ptr_eq(&cell.get().unwrap(), &shared));
    /// ```
    pub fn set_arc(&self, value: Arc<T>) -> Arc<T> {
        self.publish_ahead(value, Term::POLICY, true)
    }

    /// Publishes a value that was made `age` ago, for a warm start. Its age decides whether it is fresh, stale or
    /// expired.
    ///
    /// The age may exceed the uptime of the machine. Unlike [`set`](DogpileCell::set), it does not displace a build that
    /// runs, since the result of that build is newer. An expired value is not handed to waiters.
    ///
    /// # Panics
    ///
    /// Panics if dropping the replaced value panics. The new value is in place by then.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Freshness};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.restore("from a file of yesterday", Duration::from_secs(86_400));
    /// assert_eq!(cell.freshness(), Freshness::Stale);
    /// assert!(cell.snapshot().unwrap().age >= Duration::from_secs(86_400));
    /// ```
    pub fn restore(&self, value: T, age: Duration) -> Arc<T> {
        self.publish_ahead(Arc::new(value), Term { age: nanos(age), ..Term::POLICY }, false)
    }

    fn publish_ahead(&self, value: Arc<T>, term: Term, displaces: bool) -> Arc<T> {
        match self.machine.set(Arc::clone(&value), term, displaces, &()) {
            Ok(leftover) => drop(leftover),
            Err(_) => unreachable!("no build has the write lock of a cell without one"),
        }
        value
    }

    /// Declares the value stale now. The next caller rebuilds it; meanwhile it is served.
    ///
    /// A build that runs now may have read what is no longer true. Its result is published, but as already stale. This
    /// works without a ttl too. The windows in which the stale value may be served begin now. A retry pause goes on.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set("old");
    /// cell.invalidate();
    /// assert_eq!(cell.get().as_deref(), Some(&"old"));
    /// assert_eq!(*cell.get_or_refresh(|| "new"), "new");
    /// ```
    pub fn invalidate(&self) {
        self.machine.invalidate();
    }

    /// Declares the value stale if the cell still holds `seen` and `seen` has not been declared stale. Returns whether
    /// it did.
    ///
    /// Use it when a caller finds out, perhaps late, that the value it used is wrong. Five requests that were rejected
    /// with the same token lead to one build, and do not fence that build off. Otherwise it is like
    /// [`invalidate`](DogpileCell::invalidate).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(3600));
    /// let token = cell.get_or_refresh(|| "token 1");
    /// assert!(cell.invalidate_if_current(&token)); // 401
    /// assert!(!cell.invalidate_if_current(&token)); // 401, a moment later
    /// cell.get_or_refresh(|| "token 2");
    /// assert!(!cell.invalidate_if_current(&token)); // 401, much later
    /// assert_eq!(cell.stats().builds, 2);
    /// ```
    pub fn invalidate_if_current(&self, seen: &Arc<T>) -> bool {
        self.machine.invalidate_if_current(seen)
    }

    /// Takes the value away now, and returns it. The next callers wait for a new one.
    ///
    /// The result of a build that runs now is not published; only its own caller gets it. That build loses its lease,
    /// so the next caller builds without waiting for it. A retry pause goes on.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set(1);
    /// assert_eq!(cell.clear().as_deref(), Some(&1));
    /// assert_eq!(cell.get(), None);
    /// ```
    pub fn clear(&self) -> Option<Arc<T>> {
        self.machine.clear(&())
    }

    /// Takes the value away if the cell still holds `seen`. Returns whether it did.
    ///
    /// Use it when the source says that what a caller has seen does not exist any more, and another caller may have set a
    /// newer value meanwhile: that one stays. Otherwise it is like [`clear`](DogpileCell::clear).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let seen = cell.set("old");
    /// cell.set("new");
    /// assert!(!cell.clear_if_current(&seen)); // 404, late
    /// let seen = cell.get().unwrap();
    /// assert!(cell.clear_if_current(&seen));
    /// assert_eq!(cell.get(), None);
    /// ```
    pub fn clear_if_current(&self, seen: &Arc<T>) -> bool {
        self.machine.clear_if_current(seen)
    }

    /// Gives up the build that runs now: it can no longer be published. Returns whether a build was running.
    ///
    /// The build loses its lease, so the next caller builds without waiting for it, and its waiters look again at once.
    /// The caller of the revoked build gets what the cell serves when its build ends, or else what it has built. The
    /// value in the cell stays. Go's `singleflight` calls this `Forget`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let Lookup::Elected(hanging) = cell.lookup() else { unreachable!() };
    /// assert!(cell.revoke());
    /// assert_eq!(*cell.get_or_refresh(|| "built anew"), "built anew");
    /// assert_eq!(*hanging.publish("too late"), "built anew");
    /// assert!(!cell.revoke());
    /// ```
    pub fn revoke(&self) -> bool {
        self.machine.revoke()
    }

    /// Empties the cell: value, failures, retry pause and statistics are gone. A build that runs now is not published.
    ///
    /// Use it in tests of code with statics. The generation goes on counting.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Stats};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// LIMIT.get_or_refresh(|| 7);
    /// LIMIT.reset();
    /// assert_eq!((LIMIT.get(), LIMIT.stats()), (None, Stats::default()));
    /// ```
    pub fn reset(&self) {
        drop(self.machine.reset(&()));
    }
}

/// State and statistics.
impl<T, C> DogpileCell<T, C> {
    /// Returns the error of the latest build, until a build succeeds or a value is set.
    ///
    /// A caller that was served a stale value can find out why. A panic shows as "the build panicked: ...".
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
    /// assert_eq!(*cell.try_get_or_refresh(|| Err("no route to host"))?, 1);
    /// assert_eq!(cell.last_error().unwrap().to_string(), "no route to host");
    /// cell.set(2);
    /// assert!(cell.last_error().is_none());
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    #[must_use]
    pub fn last_error(&self) -> Option<SharedError> {
        self.machine.last_error()
    }

    /// Returns counters of what the cell has done since it was made or [`reset`](DogpileCell::reset).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.get_or_refresh(|| 1);
    /// assert_eq!((cell.stats().builds, cell.stats().failed), (1, 0));
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.machine.stats()
    }

    /// Returns the number of publications so far. 0 means that nothing has been published yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// assert_eq!(cell.generation(), 0);
    /// cell.set(1);
    /// assert_eq!(cell.generation(), 1);
    /// ```
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.machine.generation()
    }

    /// Returns whether a build runs that holds the lease.
    ///
    /// A build that can no longer be published, for example after [`revoke`](DogpileCell::revoke), holds no lease.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.get_or_refresh(|| assert!(cell.is_refreshing()));
    /// assert!(!cell.is_refreshing());
    /// ```
    #[must_use]
    pub fn is_refreshing(&self) -> bool {
        self.machine.is_refreshing()
    }

    /// Returns the policy that the cell was made with.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Policy};
    /// use std::time::Duration;
    ///
    /// let policy = Policy::ttl(Duration::from_secs(60)).jitter(10);
    /// assert_eq!(DogpileCell::<u32>::with_policy(policy).policy(), policy);
    /// ```
    pub const fn policy(&self) -> Policy {
        self.machine.policy
    }

    /// Consumes the cell and returns its value, fresh or not.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set(1);
    /// assert_eq!(cell.into_inner().as_deref(), Some(&1));
    /// ```
    #[must_use]
    pub fn into_inner(self) -> Option<Arc<T>> {
        self.machine.into_inner()
    }
}

/// Reads from async code (feature `async`).
///
/// The futures run on any executor. Tasks and threads share one cell and one lease. The same publication wakes
/// suspended tasks and blocked threads. A read that finds a value to serve does not suspend the task and allocates
/// nothing.
///
/// # Cancel safety
///
/// A future can be dropped at any point. If its caller was elected, the build is dropped and the lease is given back;
/// one of the waiters is elected next. Any other caller gives up its place among the waiters. To let the build go on,
/// hand it to a spawner with [`Request::spawn_with`]. To limit the wait, use [`Request::wait_at_most`]: an executor's
/// timeout around the future drops the build too.
#[cfg(feature = "async")]
impl<T, C: Clock> DogpileCell<T, C> {
    /// Returns the value, rebuilding it with an async build if it is out of date.
    ///
    /// Like [`get_or_refresh`](DogpileCell::get_or_refresh), but suspends the task instead of blocking the thread.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics, or if it calls this method on the same cell while there is no value to serve. The
    /// second is detected only if the build itself makes the call.
    ///
    /// # Deadlocks
    ///
    /// A build that waits for another task which reads the same cell waits for ever, unless a [`lease_timeout`] ends
    /// that.
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
            if let Some(value) = self.machine.serve() {
                return value;
            }
            let search = Search::plain(Handle::Borrowed(self), Caller::Infallible);
            search.get_async("get_or_refresh_async", called, |held| held.build_async(build)).await
        }
    }

    /// Returns the value, rebuilding it with an async build that may fail if it is out of date.
    ///
    /// Like [`try_get_or_refresh`](DogpileCell::try_get_or_refresh), but suspends the task instead of blocking the
    /// thread.
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
    /// Panics if `build` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let cell = DogpileCell::<u32>::new(Duration::from_secs(60));
    /// let error = cell.try_get_or_refresh_async(|| async { Err("no route to host") }).await.unwrap_err();
    /// assert_eq!(error.to_string(), "no route to host");
    /// # });
    /// ```
    pub async fn try_get_or_refresh_async<E, F, Fut>(&self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        if let Some(value) = self.machine.serve() {
            return Ok(value);
        }
        let search = Search::plain(Handle::Borrowed(self), Caller::Fallible);
        search.try_get_async(|held| held.try_build_async(build)).await
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

/// A value with its generation, age and freshness, all of one publication.
///
/// `S` is what a read of the cell returns: an `Arc<T>`, or a [`ReaderArc<T>`](crate::ReaderArc). The latter counts as a
/// reader as long as the snapshot lives.
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Freshness};
/// use std::time::Duration;
///
/// let cell = DogpileCell::new(Duration::from_secs(60));
/// cell.set("value");
/// let seen = cell.snapshot().unwrap();
/// assert_eq!((*seen.value, seen.generation, seen.freshness), ("value", 1, Freshness::Fresh));
///
/// cell.restore("of yesterday", Duration::from_secs(86_400));
/// let seen = cell.snapshot().unwrap();
/// assert!(seen.fresh_for.is_zero() && seen.stale_for >= Duration::from_secs(86_000));
/// ```
#[non_exhaustive]
pub struct Snapshot<T, S = Arc<T>> {
    /// The value.
    pub value: S,
    /// The number of its publication, counted from 1.
    pub generation: u64,
    /// The time since its publication. For a [restored](DogpileCell::restore) value, and one that its build has returned as
    /// [`Refreshed::Aged`], the time since it was made.
    pub age: Duration,
    /// Whether it is fresh, stale or expired.
    pub freshness: Freshness,
    /// How much longer it is fresh; zero if it is not. [`Duration::MAX`] means until it is replaced or declared stale.
    pub fresh_for: Duration,
    /// How much longer it may be served; zero if it has expired. [`Duration::MAX`] means until it is replaced.
    pub servable_for: Duration,
    /// How long ago it became stale; zero if it is fresh.
    pub stale_for: Duration,
    of: std::marker::PhantomData<fn() -> T>,
}

impl<T, S> Snapshot<T, S> {
    pub(crate) fn new<R>(seen: Seen<R>, share: impl FnOnce(Arc<R>) -> S) -> Self {
        let freshness = seen.freshness();
        let Seen { value, record, servable_end, now } = seen;
        Self {
            value: share(value),
            generation: record.generation,
            age: Duration::from_nanos(record.age(now)),
            freshness,
            fresh_for: lease::left(record.fresh_end(), now),
            servable_for: lease::left(servable_end, now),
            stale_for: Duration::from_nanos(record.stale_for(now)),
            of: std::marker::PhantomData,
        }
    }
}

impl<T, S: Clone> Clone for Snapshot<T, S> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), ..*self }
    }
}

impl<T, S> fmt::Debug for Snapshot<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.generation)
            .field("age", &self.age)
            .field("freshness", &self.freshness)
            .field("fresh_for", &self.fresh_for)
            .field("servable_for", &self.servable_for)
            .field("stale_for", &self.stale_for)
            .finish_non_exhaustive()
    }
}
