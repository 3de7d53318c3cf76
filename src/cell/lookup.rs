//! The outcome of a look at a cell.

use std::fmt;

use crate::clock::{Clock, SystemClock};
use crate::error::SharedError;
use crate::sync::Arc;

use super::lease::{Held, Lease};
use super::machine::{Decision, Machine};
use super::pending::{Pending, Waiting};

/// What [`DogpileCell::lookup`](crate::DogpileCell::lookup) found: everything else is built on it.
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
/// Three refinements. A caller that was overtaken (somebody published, or was about to elect or publish, while it
/// looked) gets `Stale` with what may be served. While a retry pause runs, a value also counts as stale, not as expired,
/// up to the policy's `stale_if_error`. And after a panic there is no error to show: where the table says `Failed`, the
/// caller is elected.
#[must_use = "if the caller was elected, this holds its lease, and dropping it gives the lease back"]
pub enum Lookup<'a, T, C: Clock = SystemClock> {
    /// A fresh value.
    Fresh(Arc<T>),
    /// A value that may be served; somebody else builds, or a retry pause runs.
    Stale(Arc<T>),
    /// The caller is to build.
    Elected(Lease<'a, T, C>),
    /// There is nothing to serve, and somebody else builds.
    Pending(Pending<'a, T, C>),
    /// There is nothing to serve, the latest build failed with this error, and a retry pause runs.
    Failed(SharedError),
}

impl<'a, T, C: Clock> Lookup<'a, T, C> {
    pub(crate) fn new(machine: &'a Machine<T, C>, decision: Decision<T>) -> Self {
        match decision {
            Decision::Fresh(value) => Self::Fresh(value),
            Decision::Stale(value) => Self::Stale(value),
            Decision::Elected(ticket) => Self::Elected(Lease(Held::new(machine, ticket))),
            Decision::Pending(wait) => Self::Pending(Pending(Waiting::new(machine, wait))),
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
