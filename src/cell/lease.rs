//! The right to build.
//!
//! A lease ends once: by one of the methods that publish ([`publish`](Lease::publish)), by one that renews
//! ([`renew`](Lease::renew)), by [`fail`](Lease::fail), or by being dropped. Each hands the ticket back to the state machine;
//! whether the result still counts is decided there.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use crate::contain::contain;
use crate::error::{BoxError, SharedError};
use crate::inside::Building;
use crate::sync::{Arc, panicking};
use crate::time::{Clock, FOREVER, SystemClock};
use crate::trace::{self, PublishOutcome, Span};

use super::DogpileCell;
use super::elect::{Progress, Ticket};
use super::handle::{Handle, Kind};
use super::machine::Machine;
use super::publish::{BuildOutput, Concluded, Observer, Term};

/// The right to build the next value, held by one caller at a time.
///
/// [`DogpileCell::lookup`](crate::DogpileCell::lookup) gives it to the caller that it elects. It can be sent to another
/// thread and ended there. Dropping it gives the right back without a result: the waiters look again, and one of them
/// is elected. If it is dropped because the thread unwinds, the build counts as panicked.
///
/// A `Lease` borrows its cell. For a cell in a `static`, and from
/// [`DogpileCell::lookup_owned`](crate::DogpileCell::lookup_owned), it is a `Lease<'static, _, _>`, which can outlive
/// the caller.
///
/// # Deadlocks
///
/// A thread that keeps a lease, and waits without a timeout for a value of the same cell, waits for itself. The cell
/// detects this for builds that run as a closure (as in `get_or_refresh`). It cannot detect it for a lease, which may
/// have been sent to another thread.
///
/// A leaked lease ([`std::mem::forget`]) is never given back. [`Policy::lease_timeout`](crate::Policy::lease_timeout)
/// and [`DogpileCell::revoke`](crate::DogpileCell::revoke) help then.
///
/// # Examples
///
/// A conditional build, like HTTP's `304 Not Modified`:
///
/// ```
/// use dogpile::{DogpileCell, Lookup};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// struct Keys {
///     etag: String,
/// }
///
/// /// `None`: not modified.
/// fn fetch_if_changed(etag: Option<&str>) -> Option<Keys> {
///     (etag != Some("v1")).then(|| Keys { etag: "v1".to_owned() })
/// }
///
/// fn keys(cell: &DogpileCell<Keys>) -> Arc<Keys> {
///     match cell.lookup() {
///         Lookup::Elected(lease) => {
///             let etag = lease.previous().map(|keys| keys.etag.as_str());
///             match fetch_if_changed(etag) {
///                 Some(keys) => lease.publish(keys),
///                 None => lease.renew().expect("only a previous value can be unmodified"),
///             }
///         }
///         Lookup::Fresh(keys) | Lookup::Stale(keys) => keys,
///         other => unreachable!("only one thread here, and no error: {other:?}"),
///     }
/// }
///
/// let cell = DogpileCell::new(Duration::from_secs(60));
/// let first = keys(&cell);
/// cell.invalidate();
/// let second = keys(&cell);
/// assert!(Arc::ptr_eq(&first, &second));
/// assert_eq!(cell.generation(), 2);
/// ```
#[must_use = "a lease that is dropped is given back: another caller will be elected"]
pub struct Lease<'a, T, C: Clock = SystemClock>(pub(super) Held<'a, DogpileCell<T, C>>);

impl<T, C: Clock> Lease<'_, T, C> {
    /// Returns the value that the build is to replace, whether it may still be served or not.
    ///
    /// A build can ask the source whether that value is still right (`ETag`, modification time). Returns `None` if
    /// there was no value, or if it has been cleared.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set("old");
    /// cell.invalidate();
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// assert_eq!(lease.previous().map(|value| **value), Some("old"));
    /// ```
    #[must_use]
    pub fn previous(&self) -> Option<&Arc<T>> {
        self.0.previous()
    }

    /// Returns the generation that the value will have, unless another value is published before it.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// assert_eq!((lease.generation(), cell.generation()), (1, 0));
    /// lease.publish("value");
    /// assert_eq!(cell.generation(), 1);
    /// ```
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.ticket().generation
    }

    /// Returns whether the result can no longer be published. A long build can check this, and stop.
    ///
    /// That is the case after a `set`, a `clear`, a `revoke` or a `reset`, and after the lease has timed out and
    /// another caller was elected.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// assert!(!lease.is_fenced());
    /// cell.set("newer");
    /// assert!(lease.is_fenced());
    /// assert_eq!(*lease.publish("older"), "newer");
    /// ```
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.0.machine().is_fenced(self.0.ticket())
    }

    /// Publishes `value`, and returns it, or what the cell serves if `value` cannot be published.
    ///
    /// The fence decides, if something happened during the build:
    ///
    /// * After an `invalidate`, `value` is published, but as already stale.
    /// * After a `clear`, a `revoke`, a `reset` or a `set`, and after the lease has timed out and another caller was
    ///   elected, `value` is not published. The caller gets what the cell serves now, or else `value`.
    ///
    /// # Panics
    ///
    /// Panics if dropping the replaced value panics. The new value is in place and the lease released by then.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Freshness, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// cell.invalidate();
    /// assert_eq!(*lease.publish("perhaps out of date"), "perhaps out of date");
    /// assert_eq!(cell.freshness(), Freshness::Stale);
    /// ```
    pub fn publish(self, value: T) -> Arc<T> {
        self.0.publish_arc(Arc::new(value), Term::POLICY)
    }

    /// Publishes `value` with a time to live of its own instead of the policy's.
    ///
    /// Otherwise like [`publish`](Self::publish). The policy's jitter and windows apply to it too.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// lease.publish_for("token", Duration::from_secs(3600));
    /// assert!(cell.snapshot().unwrap().fresh_for > Duration::from_secs(60));
    /// ```
    pub fn publish_for(self, value: T, ttl: Duration) -> Arc<T> {
        self.0.publish_arc(Arc::new(value), Term::of(Some(ttl)))
    }

    /// Publishes a value that is already in an [`Arc`].
    ///
    /// Otherwise like [`publish`](Self::publish).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let shared = Arc::new("made elsewhere");
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// assert!(Arc::ptr_eq(&lease.publish_arc(Arc::clone(&shared)), &shared));
    /// ```
    pub fn publish_arc(self, value: Arc<T>) -> Arc<T> {
        self.0.publish_arc(value, Term::POLICY)
    }

    /// Publishes `value`, and returns whether and how it was published.
    ///
    /// This is for caches built on top of this crate, which keep records of their own beside the cell's. If `ttl` is
    /// [`None`], the policy's is used. Otherwise like [`publish`](Self::publish).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup, PublishOutcome};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// const MINUTE: Duration = Duration::from_secs(60);
    ///
    /// let cell = DogpileCell::new(MINUTE);
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// let published = lease.publish_snapshot(Arc::new(1), None);
    /// assert_eq!((*published.value, published.generation), (1, Some(1)));
    /// assert_eq!((published.outcome, published.fresh_for), (PublishOutcome::Published, MINUTE));
    /// assert_eq!(published.servable_for, Duration::MAX);
    /// ```
    pub fn publish_snapshot(mut self, value: Arc<T>, ttl: Option<Duration>) -> Published<T> {
        let Concluded { served, record, servable_end, outcome, now, leftover, .. } =
            self.0.conclude(BuildOutput::new(value, Term::of(ttl)), &());
        let left = |end: Option<u64>| end.map_or(Duration::ZERO, |end| left(end, now));
        let published = Published {
            value: served,
            generation: record.map(|record| record.generation),
            fresh_for: left(record.map(|record| record.fresh_end())),
            servable_for: left(record.map(|_| servable_end)),
            outcome,
        };
        // The previous value first; what is dropped last may panic.
        drop(self);
        drop(leftover);
        published
    }

    /// Publishes the previous value again ("not modified"), as a new generation with the same `Arc`.
    ///
    /// The fence applies as to [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// Returns the lease if there is no previous value to renew.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Freshness, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set(1);
    /// cell.invalidate();
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// assert_eq!(*lease.renew().unwrap(), 1);
    /// assert_eq!((cell.freshness(), cell.generation()), (Freshness::Fresh, 2));
    /// ```
    #[allow(clippy::result_large_err)] // with `tracing`; it is the caller's own
    pub fn renew(self) -> Result<Arc<T>, Self> {
        self.0.renew(Term::POLICY).map_err(Self)
    }

    /// Publishes the previous value again, with a time to live of its own instead of the policy's.
    ///
    /// Otherwise like [`renew`](Self::renew).
    ///
    /// # Errors
    ///
    /// Returns the lease if there is no previous value to renew.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set("token");
    /// cell.invalidate();
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// assert_eq!(*lease.renew_for(Duration::from_secs(3600)).unwrap(), "token");
    /// assert!(cell.snapshot().unwrap().fresh_for > Duration::from_secs(60));
    /// ```
    #[allow(clippy::result_large_err)] // with `tracing`; it is the caller's own
    pub fn renew_for(self, ttl: Duration) -> Result<Arc<T>, Self> {
        self.0.renew(Term::of(Some(ttl))).map_err(Self)
    }

    /// Ends the build with an error, which all its waiters share.
    ///
    /// The value in the cell, if there is one, stays. The policy's retry pause begins.
    /// [`last_error`](crate::DogpileCell::last_error) returns the error until a value is published. If the build can no
    /// longer be published (see [`is_fenced`](Self::is_fenced)), the failure is not recorded.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup, Waited};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::<u32>::new(Duration::from_secs(60));
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// let Lookup::Pending(pending) = cell.lookup() else { unreachable!() };
    /// lease.fail("no route to host");
    /// let Waited::Failed(error) = pending.wait() else { unreachable!() };
    /// assert_eq!(error.to_string(), "no route to host");
    /// ```
    // Not `#[must_use]`: the waiters have it.
    #[allow(clippy::must_use_candidate)]
    pub fn fail<E: Into<BoxError>>(self, error: E) -> SharedError {
        self.0.fail(SharedError::new(error))
    }
}

impl<T, C: Clock> fmt::Debug for Lease<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

/// The result of [`Lease::publish_snapshot`].
#[non_exhaustive]
pub struct Published<T> {
    /// What [`Lease::publish`] returns.
    pub value: Arc<T>,
    /// The generation of `value`, or `None` if it was never published.
    pub generation: Option<u64>,
    /// How much longer it is fresh; zero if it is stale or was never published. [`Duration::MAX`] means without end.
    pub fresh_for: Duration,
    /// How much longer it may be served; zero if it was never published. [`Duration::MAX`] means without end.
    pub servable_for: Duration,
    /// Whether and how the value of the build was published.
    pub outcome: PublishOutcome,
}

impl<T> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published")
            .field("generation", &self.generation)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

/// The lease of a cell of any kind.
#[allow(unreachable_pub, missing_debug_implementations)] // named by a sealed trait
pub struct Held<'a, K: Kind> {
    handle: Handle<'a, K>,
    /// `None` only while it is being ended.
    ticket: Option<Ticket<K::Stored>>,
    span: Span,
    /// The thread was unwinding when it got the lease, so that it unwinds is no sign of a panic of the build.
    was_panicking: bool,
}

impl<'a, K: Kind> Held<'a, K> {
    pub(crate) fn new(handle: Handle<'a, K>, mut ticket: Ticket<K::Stored>) -> Self {
        let (cause, generation, supersedes) = (ticket.cause, ticket.generation, ticket.supersedes);
        let unkept = if K::LEASE_KEEPS_PREVIOUS { None } else { ticket.previous.take() };
        let mut held = Self { handle, ticket: Some(ticket), span: Span::none(), was_panicking: panicking() };
        // From here on the lease comes back if something panics: a drop, or a subscriber.
        drop(unkept);
        held.span = Span::begin(held.machine().name, cause, generation, supersedes);
        held
    }

    pub(crate) fn handle(&self) -> &Handle<'a, K> {
        &self.handle
    }

    pub(crate) fn machine(&self) -> &Machine<K::Stored, K::Clock> {
        self.handle.machine()
    }

    pub(crate) fn previous(&self) -> Option<&Arc<K::Stored>> {
        self.ticket.as_ref()?.previous.as_ref()
    }

    pub(crate) fn publish_arc(self, value: Arc<K::Stored>, term: Term) -> Arc<K::Stored> {
        self.publish_output(BuildOutput::new(value, term))
    }

    /// Publishes the previous value anew.
    pub(crate) fn publish_again(self, value: Arc<K::Stored>, term: Term) -> Arc<K::Stored> {
        self.publish_output(BuildOutput { renews: true, ..BuildOutput::new(value, term) })
    }

    fn publish_output(mut self, output: BuildOutput<K::Stored>) -> Arc<K::Stored> {
        let concluded = self.conclude(output, &());
        // The previous value first; what is dropped last may panic.
        drop(self);
        drop(concluded.leftover);
        concluded.served
    }

    #[allow(clippy::result_large_err)] // with `tracing`; it is the caller's own
    pub(crate) fn renew(self, term: Term) -> Result<Arc<K::Stored>, Self> {
        match self.previous().cloned() {
            Some(previous) => Ok(self.publish_again(previous, term)),
            None => Err(self),
        }
    }

    pub(crate) fn fail(mut self, error: SharedError) -> SharedError {
        let now = self.machine().now();
        drop(self.fail_with(&error, None, now));
        error
    }

    /// Publishes what was built as far as the fence allows.
    ///
    /// The ticket stays where it is meanwhile: if the clock panics, the lease is given back.
    pub(crate) fn conclude(
        &mut self,
        output: BuildOutput<K::Stored>,
        observer: &impl Observer<K::Stored>,
    ) -> Concluded<K::Stored> {
        let Self { handle, ticket, span, .. } = self;
        let (machine, ticket) = (handle.machine(), unended(ticket));
        let concluded = machine.conclude(ticket, output, observer, machine.now());
        span.end(concluded.outcome, ticket.nanos(concluded.now));
        concluded
    }

    /// As [`fail`](Held::fail), for a build that may have withheld something, which fails `now`. Returns what could not be put back.
    pub(crate) fn fail_with(
        &mut self,
        error: &SharedError,
        withheld: Option<Arc<K::Stored>>,
        now: u64,
    ) -> Option<Arc<K::Stored>> {
        let Self { handle, ticket, span, .. } = self;
        let ticket = unended(ticket);
        let rejected = handle.machine().fail(ticket, error.clone(), withheld, now);
        span.fail(error, ticket.nanos(now));
        handle.has_failed();
        rejected
    }

    /// Gives the lease back, with what the build has withheld. Returns what could not be put back.
    pub(crate) fn give_back(&mut self, withheld: Option<Arc<K::Stored>>) -> Option<Arc<K::Stored>> {
        self.end_without(panicking() && !self.was_panicking, withheld)
    }

    fn end_without(&mut self, panicked: bool, withheld: Option<Arc<K::Stored>>) -> Option<Arc<K::Stored>> {
        let ticket = self.ticket.take()?;
        if ticket.progress == Progress::Ended {
            // Of the previous value: the thread may be panicking already.
            contain(|| drop(ticket));
            return None;
        }
        let is_building = ticket.progress == Progress::Building;
        // It may have been contained.
        let panicked = panicked || ticket.panic.is_some();
        // Perhaps it is the clock that has panicked. The lease comes back all the same; the panic hook has reported the panic.
        let now = catch_unwind(AssertUnwindSafe(|| self.machine().now())).unwrap_or(ticket.began);
        let nanos = ticket.nanos(now);
        let rejected = self.machine().give_back(ticket, panicked, withheld, now);
        if is_building {
            self.span.give_back(panicked, nanos);
            if panicked {
                self.handle.has_failed();
            }
        }
        rejected
    }

    /// This thread runs the build until the returned guard is dropped.
    pub(crate) fn inside(&self) -> (Building, trace::Inside) {
        (Building::of(self.machine()), self.span.enter())
    }

    pub(crate) fn ticket(&self) -> &Ticket<K::Stored> {
        self.ticket.as_ref().expect("the lease has not ended yet")
    }

    /// Gives the lease back unused, also if the thread unwinds: for another reason than the build, which has not begun.
    pub(crate) fn abandon(mut self) {
        drop(self.end_without(false, None));
    }

    /// The error that the build's panic is shown as when the lease is given back.
    pub(crate) fn note_panic(&mut self, panic: &(dyn Any + Send)) {
        if let Some(ticket) = &mut self.ticket {
            ticket.panic = Some(SharedError::of_panic("build", panic));
        }
    }

    /// Runs `build`. A panic is noted, and goes on.
    pub(crate) fn run<R>(&mut self, build: impl FnOnce() -> R) -> R {
        let inside = self.inside();
        let result = catch_unwind(AssertUnwindSafe(build));
        drop(inside);
        match result {
            Ok(result) => result,
            Err(panic) => {
                self.note_panic(&*panic);
                resume_unwind(panic)
            }
        }
    }
}

/// The time up to the last tick before `end`.
pub(super) fn left(end: u64, now: u64) -> Duration {
    if end == FOREVER {
        Duration::MAX
    } else {
        Duration::from_nanos(end.saturating_sub(1).saturating_sub(now))
    }
}

fn unended<T>(ticket: &mut Option<Ticket<T>>) -> &mut Ticket<T> {
    ticket.as_mut().expect("the ticket is there until the lease is dropped")
}

impl<K: Kind> Drop for Held<'_, K> {
    fn drop(&mut self) {
        drop(self.give_back(None));
    }
}
