//! The loops around a lookup: serve, build, or wait and look again.
//!
//! All of them have the same shape, and none of them trusts a wake-up: whatever a wait brings, the next step is
//! decided by another lookup, or by a value that was handed over.
//!
//! What it means to build is the caller's: `run` gets the lease and ends it.

use std::time::Duration;

use crate::clock::{Clock, FOREVER};
use crate::error::{RefreshError, SharedError};
use crate::sync::Arc;

use super::building::is_building;
use super::lease::Lease;
use super::lookup::Lookup;
use super::machine::{Demand, Leftover, Machine, NotNow};
use super::pending::{Ended, Pending};
use super::slot::Slot;

impl<T, C: Clock> Machine<T, C> {
    pub(crate) fn lookup_for(&self, demand: Demand) -> Lookup<'_, T, C> {
        Lookup::new(self, self.lookup(demand))
    }

    /// The slow half of `get_or_refresh`.
    #[cold]
    #[inline(never)]
    #[track_caller]
    pub(crate) fn get_or_refresh(&self, build: impl FnOnce() -> T) -> Arc<T> {
        self.refresh_for(Demand::Value, "get_or_refresh", || false, |lease| lease.0.build(build))
    }

    /// Returns a value that meets `demand`, built by `run` if this caller is elected. `reads`: whether this thread
    /// reads something that a build which withholds the value waits for.
    #[track_caller]
    pub(crate) fn refresh_for<'a>(
        &'a self,
        demand: Demand,
        name: &str,
        reads: impl Fn() -> bool,
        run: impl FnOnce(Lease<'a, T, C>) -> Arc<T>,
    ) -> Arc<T> {
        loop {
            let pending = match self.lookup_for(demand) {
                Lookup::Fresh(value) | Lookup::Stale(value) => return value,
                Lookup::Elected(lease) => return run(lease),
                Lookup::Pending(pending) => pending,
                // No demand but `Servable` is answered so.
                Lookup::Failed(_) => continue,
            };
            assert!(
                !(pending.0.is_withheld() && reads()),
                "{name} would wait for itself: this thread holds a ReadGuard of the same cell, and a build that has \
                 asked for the write lock waits for it; drop it before"
            );
            match pending.0.wait_until(Some(FOREVER)) {
                Some(Ended::Published(publication)) => {
                    let accepted = match demand {
                        Demand::Servable | Demand::Value => true,
                        Demand::Fresh => !publication.lapsed,
                        Demand::After(origin) => publication.origin > origin,
                    };
                    if accepted {
                        return publication.value;
                    }
                }
                Some(Ended::Reentrant) => panic!(
                    "{name} was called from inside the build of the same cell, which must not wait for a value of \
                     that cell; inside a build use `get`, or `try_get_or_refresh`, which returns \
                     `RefreshError::Reentrant`"
                ),
                Some(Ended::Failed(_) | Ended::Abandoned) | None => {}
            }
        }
    }

    /// The slow half of `try_get_or_refresh` and its kin. `limit`: how long it may wait.
    #[cold]
    #[inline(never)]
    pub(crate) fn try_get_or_refresh<E>(
        &self,
        limit: Option<Duration>,
        build: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
    {
        self.try_refresh(limit, || false, |lease| lease.0.try_build(build))
    }

    pub(crate) fn try_refresh<'a, E>(
        &'a self,
        limit: Option<Duration>,
        reads: impl Fn() -> bool,
        run: impl FnOnce(Lease<'a, T, C>) -> Result<Arc<T>, Arc<E>>,
    ) -> Result<Arc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
    {
        let mut demand = Demand::Servable;
        // All waits of one call together take no longer than the limit.
        let mut deadline = None;
        let mut wait = |pending: &Pending<'_, T, C>| {
            let deadline = *deadline
                .get_or_insert_with(|| limit.map_or(Some(FOREVER), |limit| pending.0.deadline(limit)));
            pending.0.wait_until(deadline)
        };
        loop {
            let error = match self.lookup_for(demand) {
                Lookup::Fresh(value) | Lookup::Stale(value) => return Ok(value),
                Lookup::Elected(lease) => {
                    return run(lease)
                        .or_else(|error| self.instead_of_error().ok_or(RefreshError::Build(error)));
                }
                Lookup::Failed(error) => error,
                Lookup::Pending(pending) if pending.0.is_withheld() && reads() => {
                    return Err(RefreshError::Reentrant);
                }
                Lookup::Pending(pending) => match wait(&pending) {
                    None => return Err(RefreshError::WaitTimeout),
                    Some(Ended::Published(publication)) => return Ok(publication.value),
                    Some(Ended::Reentrant) => return Err(RefreshError::Reentrant),
                    Some(Ended::Abandoned) => continue,
                    Some(Ended::Failed(error)) => error,
                },
            };
            if let Some(value) = self.instead_of_error() {
                return Ok(value);
            }
            match SharedError::downcast::<E>(error) {
                Ok(error) => return Err(RefreshError::Build(error)),
                // The error of somebody else's type means nothing to this caller: it builds, pause or not.
                Err(_) => demand = Demand::Value,
            }
        }
    }

    /// Publishes `value` ahead of any build, but not into a cell whose value is being withheld: waits for the end
    /// of that build. Returns what it replaces.
    #[track_caller]
    pub(crate) fn set_when_open(
        &self,
        mut value: Arc<T>,
        reads: impl Fn() -> bool,
        note: impl Fn(&Arc<T>, &Slot<T>),
    ) -> Leftover<T> {
        loop {
            match self.set(value, &note) {
                Ok(leftover) => return leftover,
                Err(NotNow { value: returned, wait }) => {
                    assert!(
                        !is_building(self),
                        "set was called from inside the build that holds the write lock of the same cell, and would \
                         wait for its end; return the value from the build instead"
                    );
                    assert!(
                        !reads(),
                        "set would wait for itself: this thread holds a ReadGuard of the same cell, and a build that \
                         has asked for the write lock waits for it; drop it before"
                    );
                    value = returned;
                    wait.wait(self, FOREVER);
                }
            }
        }
    }
}
