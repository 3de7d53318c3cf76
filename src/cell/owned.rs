//! Leases and places that own their cell, to be handed to threads and tasks that outlive the caller.

use std::fmt;
use std::time::Duration;

use crate::clock::{Clock, SystemClock, nanos};
use crate::error::SharedError;
use crate::sync::Arc;

use super::DogpileCell;
use super::lease::{Held, lease_methods};
use super::machine::{Decision, Home, Machine};
use super::pending::{Waited, Waiting, pending_methods};

impl<T, C: Clock> Home for Arc<DogpileCell<T, C>> {
    type Value = T;
    type Clock = C;
    fn machine(&self) -> &Machine<T, C> {
        &self.machine
    }
}

impl<T, C: Clock> Home for &DogpileCell<T, C> {
    type Value = T;
    type Clock = C;
    fn machine(&self) -> &Machine<T, C> {
        &self.machine
    }
}

/// A [`Lease`](crate::Lease) that keeps its cell alive.
///
/// # Examples
///
/// A stale value is rebuilt on another thread:
///
/// ```
/// use dogpile::{DogpileCell, OwnedLookup};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// let cell = Arc::new(DogpileCell::new(Duration::from_secs(60)));
/// cell.set(1);
/// cell.invalidate();
///
/// let OwnedLookup::Elected(lease) = cell.lookup_owned() else { unreachable!() };
/// let builder = std::thread::spawn(move || lease.publish(2));
/// assert_eq!(*builder.join().unwrap(), 2);
/// assert_eq!(cell.get().as_deref(), Some(&2));
/// ```
#[must_use = "a lease that is dropped is given back: somebody else will be elected"]
pub struct OwnedLease<T, C: Clock = SystemClock>(Held<Arc<DogpileCell<T, C>>>);

lease_methods!(OwnedLease);

/// A [`Pending`](crate::Pending) that keeps its cell alive.
#[must_use = "nothing is waited for until `wait` is called"]
pub struct OwnedPending<T, C: Clock = SystemClock>(Waiting<Arc<DogpileCell<T, C>>>);

pending_methods!(OwnedPending);

/// A [`Lookup`](crate::Lookup) whose lease and place keep the cell alive.
#[must_use = "if the caller was elected, this holds its lease, and dropping it gives the lease back"]
pub enum OwnedLookup<T, C: Clock = SystemClock> {
    /// A fresh value.
    Fresh(Arc<T>),
    /// A value that may be served; somebody else builds, or a retry pause runs.
    Stale(Arc<T>),
    /// The caller is to build.
    Elected(OwnedLease<T, C>),
    /// There is nothing to serve, and somebody else builds.
    Pending(OwnedPending<T, C>),
    /// There is nothing to serve, the latest build failed with this error, and a retry pause runs.
    Failed(SharedError),
}

impl<T, C: Clock> OwnedLookup<T, C> {
    pub(super) fn new(cell: &Arc<DogpileCell<T, C>>, decision: Decision<T>) -> Self {
        match decision {
            Decision::Fresh(value) => Self::Fresh(value),
            Decision::Stale(value) => Self::Stale(value),
            Decision::Elected(ticket) => Self::Elected(OwnedLease(Held::new(Arc::clone(cell), ticket))),
            Decision::Pending(wait) => Self::Pending(OwnedPending(Waiting::new(Arc::clone(cell), wait))),
            Decision::Failed(error) => Self::Failed(error),
        }
    }
}

impl<T, C: Clock> fmt::Debug for OwnedLookup<T, C> {
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
