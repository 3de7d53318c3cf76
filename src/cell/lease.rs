//! The right to build.
//!
//! A lease ends in exactly one way: [`publish`](Lease::publish), [`publish_for`](Lease::publish_for),
//! [`renew`](Lease::renew), [`renew_for`](Lease::renew_for), [`fail`](Lease::fail), or by being dropped. Each hands the ticket back to the state
//! machine; whether the result still counts is decided there.

use std::fmt;
use std::time::Duration;

use crate::clock::{Clock, SystemClock, nanos};
use crate::error::SharedError;
use crate::sync::{Arc, panicking};
use crate::trace::{self, Ending, Span};

use super::building::Building;
use super::machine::{Concluded, GivenBack, Home, Machine, Ticket, Withheld};
use super::slot::Slot;

/// The right to build the next value, held by one caller at a time.
///
/// [`DogpileCell::lookup`](crate::DogpileCell::lookup) gives it to the caller that it elects. It can be sent to
/// another thread and ended there. Dropping it gives the right back without a result: those who wait look up
/// again, and one of them is elected. If it is dropped because the thread unwinds, the build counts as
/// panicked.
///
/// # Deadlocks
///
/// A thread that keeps a lease and waits without a timeout for a value of the same cell waits for itself. For
/// builds that run as a closure (`get_or_refresh` and its kin) this is detected; for a lease it cannot be,
/// since it may be in other hands by now. A leaked lease ([`std::mem::forget`]) is never given back: see
/// [`Policy::lease_timeout`](crate::Policy::lease_timeout).
///
/// # Examples
///
/// A conditional build, as HTTP's `304 Not Modified` makes it possible:
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
#[must_use = "a lease that is dropped is given back: somebody else will be elected"]
pub struct Lease<'a, T, C: Clock = SystemClock>(pub(super) Held<&'a Machine<T, C>>);

/// What [`Lease`] and [`OwnedLease`](crate::OwnedLease) are made of.
pub(crate) struct Held<H: Home> {
    home: H,
    /// `None` only while the lease is dropped.
    ticket: Option<Ticket<H::Value>>,
    span: Span,
    /// Whether the thread was unwinding already when the lease was granted.
    was_panicking: bool,
}

/// This thread is inside a build.
pub(crate) struct Inside {
    _building: Building,
    _span: trace::Inside,
}

impl<H: Home> Held<H> {
    pub(crate) fn new(home: H, ticket: Ticket<H::Value>) -> Self {
        let beginning = ticket.beginning;
        let mut held = Self { home, ticket: Some(ticket), span: Span::none(), was_panicking: panicking() };
        // A subscriber may panic: then the lease comes back.
        held.span = Span::begin(held.home.machine().name, beginning);
        held
    }

    pub(crate) fn previous(&self) -> Option<&Arc<H::Value>> {
        self.ticket.as_ref()?.previous.as_ref()
    }

    pub(crate) fn publish(self, value: H::Value, ttl: Option<u64>) -> Arc<H::Value> {
        self.publish_arc(Arc::new(value), ttl)
    }

    fn publish_arc(mut self, value: Arc<H::Value>, ttl: Option<u64>) -> Arc<H::Value> {
        let concluded = self.conclude(value, ttl, true, |_, _| ());
        // The previous value first; what is dropped last may panic.
        drop(self);
        drop(concluded.leftover);
        concluded.served
    }

    pub(crate) fn renew(self, ttl: Option<u64>) -> Result<Arc<H::Value>, Self> {
        match self.previous().cloned() {
            Some(previous) => Ok(self.publish_arc(previous, ttl)),
            None => Err(self),
        }
    }

    pub(crate) fn fail<E: Send + Sync + 'static>(mut self, error: E) -> Arc<E> {
        self.fail_with(error, || None).0
    }

    /// Runs `build` and publishes what it returns. If it panics, the lease is given back.
    pub(crate) fn build(self, build: impl FnOnce() -> H::Value) -> Arc<H::Value> {
        let value = self.run(build);
        self.publish(value, None)
    }

    /// Runs `build` and publishes what it returns, or fails with its error.
    pub(crate) fn try_build<E>(
        self,
        build: impl FnOnce() -> Result<H::Value, E>,
    ) -> Result<Arc<H::Value>, Arc<E>>
    where
        E: Send + Sync + 'static,
    {
        match self.run(build) {
            Ok(value) => Ok(self.publish(value, None)),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Publishes `value` as far as the fence allows; unless it is to `release` the lease, that goes on.
    ///
    /// The ticket stays where it is meanwhile: if the clock panics, the lease is given back.
    pub(crate) fn conclude(
        &mut self,
        value: Arc<H::Value>,
        ttl: Option<u64>,
        release: bool,
        note: impl FnOnce(&Arc<H::Value>, &Slot<H::Value>),
    ) -> Concluded<H::Value> {
        let Self { home, ticket, span, .. } = self;
        let concluded = home.machine().conclude(unended(ticket), value, ttl, release, note);
        span.end(concluded.ending, concluded.nanos);
        concluded
    }

    /// As [`fail`](Held::fail), for a build that may have withheld something. Returns what could not be put back.
    pub(crate) fn fail_with<E: Send + Sync + 'static>(
        &mut self,
        error: E,
        withheld: impl FnOnce() -> Option<Withheld<H::Value>>,
    ) -> (Arc<E>, Option<Arc<H::Value>>) {
        let Self { home, ticket, span, .. } = self;
        let error = Arc::new(error);
        let shared = SharedError::new(Arc::clone(&error));
        let GivenBack { rejected, nanos } = home.machine().fail(unended(ticket), shared.clone(), withheld);
        span.fail(&shared, nanos);
        (error, rejected)
    }

    /// Gives the lease back, with what the build has withheld. Returns what could not be put back.
    pub(crate) fn give_back(&mut self, withheld: Option<Withheld<H::Value>>) -> Option<Arc<H::Value>> {
        self.end_without(panicking() && !self.was_panicking, withheld)
    }

    fn end_without(&mut self, panicked: bool, withheld: Option<Withheld<H::Value>>) -> Option<Arc<H::Value>> {
        let ticket = self.ticket.take()?;
        let concluded = ticket.is_concluded();
        let GivenBack { rejected, nanos } = self.home.machine().give_back(ticket, panicked, withheld);
        if !concluded {
            self.span.end(if panicked { Ending::Panicked } else { Ending::Abandoned }, nanos);
        }
        rejected
    }

    /// Notes, as long as what it returns lives, that this thread runs the build.
    pub(crate) fn inside(&self) -> Inside {
        Inside { _building: Building::of(self.home.machine()), _span: self.span.enter() }
    }

    pub(crate) fn ticket(&self) -> &Ticket<H::Value> {
        self.ticket.as_ref().expect("the lease has not ended yet")
    }

    /// Lets go of the previous value.
    pub(crate) fn forget_previous(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            ticket.previous = None;
        }
    }

    /// Gives the lease back unused, also if the thread unwinds: for another reason than the build, which has not begun.
    pub(crate) fn abandon(mut self) {
        drop(self.end_without(false, None));
    }

    /// Gives the lease back after a panic of the build that has been contained.
    #[cfg(feature = "async")]
    pub(crate) fn panicked(mut self) {
        drop(self.end_without(true, None));
    }

    pub(crate) fn run<R>(&self, build: impl FnOnce() -> R) -> R {
        let _inside = self.inside();
        build()
    }
}

fn unended<T>(ticket: &mut Option<Ticket<T>>) -> &mut Ticket<T> {
    ticket.as_mut().expect("the ticket is there until the lease is dropped")
}

impl<H: Home> Held<H> {
    pub(crate) fn home(&self) -> &H {
        &self.home
    }
}

impl<H: Home> Drop for Held<H> {
    fn drop(&mut self) {
        drop(self.give_back(None));
    }
}

/// The methods of [`Lease`] and [`OwnedLease`](crate::OwnedLease), whose only field is a [`Held`].
macro_rules! lease_methods {
    ($Lease:ident $(<$lifetime:lifetime>)?) => {
        impl<$($lifetime,)? T, C: Clock> $Lease<$($lifetime,)? T, C> {
            /// The value that the build is to replace, fresh or not: for builds that only have to find out
            /// whether it is still right (`ETag`, modification time).
            ///
            /// `None` if there is none, or none since a `clear`.
            #[must_use]
            pub fn previous(&self) -> Option<&Arc<T>> {
                self.0.previous()
            }

            /// Publishes `value` and returns what the cell serves now.
            ///
            /// Usually that is `value`. If something happened during the build, the fence decides:
            ///
            /// * `invalidate`: `value` is published, but as already stale.
            /// * `clear`: `value` is not published; only this caller gets it.
            /// * `set`: `value` is not published; the caller gets the value that was set.
            /// * The lease timed out and somebody else was elected: `value` is not published; the caller gets
            ///   what the cell may serve, or else `value`.
            ///
            /// # Panics
            ///
            /// If dropping the replaced value panics. The new one is in place and the lease released by then.
            pub fn publish(self, value: T) -> Arc<T> {
                self.0.publish(value, None)
            }

            /// As [`publish`](Self::publish), with a time to live of its own instead of the policy's.
            ///
            /// The policy's jitter and windows apply to it as to any other.
            pub fn publish_for(self, value: T, ttl: Duration) -> Arc<T> {
                self.0.publish(value, Some(nanos(ttl)))
            }

            /// "Not modified": publishes the previous value anew, as a new generation with the same `Arc`.
            ///
            /// The fence applies as to [`publish`](Self::publish).
            ///
            /// # Errors
            ///
            /// The lease itself, if there is no previous value to renew.
            #[allow(clippy::result_large_err)] // with `tracing`; it is the caller's own
            pub fn renew(self) -> Result<Arc<T>, Self> {
                self.0.renew(None).map_err(Self)
            }

            /// As [`renew`](Self::renew), with a time to live of its own instead of the policy's.
            ///
            /// # Errors
            ///
            /// As there.
            #[allow(clippy::result_large_err)] // as there
            pub fn renew_for(self, ttl: Duration) -> Result<Arc<T>, Self> {
                self.0.renew(Some(nanos(ttl))).map_err(Self)
            }

            /// Ends the build with an error, which those who wait for it share.
            ///
            /// The value in the cell, if there is one, stays. The policy's retry pause begins.
            pub fn fail<E: Send + Sync + 'static>(self, error: E) -> Arc<E> {
                self.0.fail(error)
            }
        }

        impl<$($lifetime,)? T, C: Clock> fmt::Debug for $Lease<$($lifetime,)? T, C> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($Lease)).finish_non_exhaustive()
            }
        }
    };
}
pub(super) use lease_methods;

lease_methods!(Lease<'a>);
