//! The outcome of a look at a cell.

use std::fmt;

use crate::error::SharedError;
use crate::sync::Arc;
use crate::time::{Clock, SystemClock};

use super::DogpileCell;
use super::elect::Decision;
use super::handle::Handle;
use super::lease::{Held, Lease};
use super::pending::Pending;

/// The result of [`DogpileCell::lookup`](crate::DogpileCell::lookup), on which every other read is built.
///
/// | value | lease | retry pause | outcome |
/// |---|---|---|---|
/// | fresh | any | any | `Fresh` |
/// | stale | held, or a retry pause runs | | `Stale` |
/// | stale | free | none | `Elected` |
/// | none / expired | held | | `Pending` |
/// | none / expired | free | runs | `Failed` |
/// | none / expired | free | none | `Elected` |
///
/// Four refinements:
///
/// * While a [`Refresher`](crate::Refresher) is attached, a value that is stale within `stale_while_refresh` is `Stale`, not
///   `Elected`. So is that of a [`Derived`](crate::Derived) value whose sources have nothing newer.
/// * If another caller published a value while this one looked, this one gets that value, unless it had expired before
///   it was published ([`Refreshed::Aged`](crate::Refreshed::Aged)).
/// * While a retry pause runs, a value counts as stale and not as expired, up to the policy's `stale_if_error`.
/// * If the latest build panicked, the caller is elected where the table says `Failed`.
///
/// Under the conditions of a [`Request`](crate::Request), a value that does not meet them counts as none. The value
/// that a [`Pending`] build publishes may not meet them either; then look again.
///
/// A `Lookup` borrows the cell. For a cell in a `static`, and from [`lookup_owned`](crate::DogpileCell::lookup_owned),
/// it is a `Lookup<'static, _, _>`.
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Lookup};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// let cell = Arc::new(DogpileCell::new(Duration::from_secs(60)));
/// cell.set(1);
/// cell.invalidate();
///
/// let Lookup::Elected(lease) = cell.lookup_owned() else { unreachable!() };
/// let builder = std::thread::spawn(move || lease.publish(2));
/// assert_eq!(*builder.join().unwrap(), 2);
/// assert_eq!(cell.get().as_deref(), Some(&2));
/// ```
#[must_use = "if the caller was elected, this holds its lease, and dropping it gives the lease back"]
pub enum Lookup<'a, T, C: Clock = SystemClock> {
    /// A fresh value.
    Fresh(Arc<T>),
    /// A value that may be served. It is stale, and a build or a retry pause runs, or a [`Refresher`](crate::Refresher) is
    /// attached, or it is that of a [`Derived`](crate::Derived) value whose sources have nothing newer, or the cell's lock could
    /// not be had at once.
    Stale(Arc<T>),
    /// The caller has been elected and should build.
    Elected(Lease<'a, T, C>),
    /// There is no value to serve, and another caller builds.
    Pending(Pending<'a, T, C>),
    /// There is no value to serve, the latest build failed with this error, and a retry pause runs.
    Failed(SharedError),
}

impl<'a, T, C: Clock> Lookup<'a, T, C> {
    pub(crate) fn new(handle: Handle<'a, DogpileCell<T, C>>, decision: Decision<T>) -> Self {
        match decision {
            Decision::Fresh(value) => Self::Fresh(value),
            Decision::Stale(value) => Self::Stale(value),
            Decision::Elected(ticket) => Self::Elected(Lease(Held::new(handle, ticket))),
            Decision::Pending(wait) => Self::Pending(Pending::new(handle, wait)),
            Decision::Failed(error) => Self::Failed(error),
        }
    }
}

impl<T, C: Clock> fmt::Debug for Lookup<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh(_) => f.debug_tuple("Fresh").finish_non_exhaustive(),
            Self::Stale(_) => f.debug_tuple("Stale").finish_non_exhaustive(),
            Self::Elected(lease) => f.debug_tuple("Elected").field(lease).finish(),
            Self::Pending(pending) => f.debug_tuple("Pending").field(pending).finish(),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}
