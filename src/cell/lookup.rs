//! The outcome of a look at a cell.

use std::fmt;

use crate::clock::{Clock, SystemClock};
use crate::error::SharedError;
use crate::sync::Arc;

use super::DogpileCell;
use super::elect::Decision;
use super::handle::Handle;
use super::lease::{Held, Lease};
use super::pending::Pending;

/// What [`DogpileCell::lookup`](crate::DogpileCell::lookup) found. Every other read is built on it.
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
/// Three refinements:
///
/// * A caller that was overtaken (another published while it looked) gets what was published.
/// * While a retry pause runs, a value also counts as stale, not as expired, up to the policy's `stale_if_error`.
/// * After a panic no error is passed on: where the table says `Failed`, the caller is elected.
///
/// Under the conditions of a [`Request`](crate::Request), a value that does not meet them counts as none. What a build
/// that is [`Pending`] then publishes may not meet them either: look again.
///
/// It borrows the cell; that of [`lookup_owned`](crate::DogpileCell::lookup_owned), or of a cell in a `static`, is a
/// `Lookup<'static, _, _>`.
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
    /// A value that may be served; a build or a retry pause runs.
    Stale(Arc<T>),
    /// The caller is to build.
    Elected(Lease<'a, T, C>),
    /// There is nothing to serve, and another caller builds.
    Pending(Pending<'a, T, C>),
    /// There is nothing to serve, the latest build failed with this error, and a retry pause runs.
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
