//! The loops around a lookup: served, elected, or wait and look again.
//!
//! All of them have the same shape, and none of them trusts a wake-up: whatever a wait brings, the next step is
//! decided by another lookup, or by a value that was handed over. They end in a [`Turn`]; what it means to build is the
//! caller's. The loops for tasks, in `asynchronous.rs`, are made of the same steps.

use std::fmt;
use std::time::Duration;

use crate::clock::{Clock, FOREVER};
use crate::error::{RefreshError, SharedError};
use crate::sync::Arc;

use super::building::is_building;
use super::lease::Held;
use super::lookup::Lookup;
use super::machine::{Awaits, Decision, Demand, Home, Leftover, Machine, NotNow};
use super::pending::{Ended, Waiting};
use super::slot::Slot;

/// How a loop around lookups ended.
pub(crate) enum Turn<H: Home> {
    /// There is a value that meets the demand.
    Served(Arc<H::Value>),
    /// It is the caller's turn to build.
    Elected(Held<H>),
}

impl<H: Home> Turn<H> {
    /// The value, built by `build` if it has to be.
    pub(crate) fn build(self, build: impl FnOnce() -> H::Value) -> Arc<H::Value> {
        match self {
            Self::Served(value) => value,
            Self::Elected(held) => held.build(build),
        }
    }
}

/// Where a wait has led.
pub(super) enum Verdict<T> {
    Served(Arc<T>),
    LookAgain,
    /// The caller waits for itself.
    Reentrant,
}

impl Demand {
    /// What a caller with this demand makes of the end of a wait.
    pub(super) fn weigh<T>(self, ended: Ended<T>) -> Verdict<T> {
        match ended {
            Ended::Published(publication) => {
                let accepted = match self {
                    Self::Servable | Self::Value => true,
                    Self::Fresh => !publication.lapsed,
                    Self::After(origin) => publication.origin > origin,
                };
                if accepted { Verdict::Served(publication.value) } else { Verdict::LookAgain }
            }
            Ended::Reentrant => Verdict::Reentrant,
            Ended::Failed(_) | Ended::Abandoned => Verdict::LookAgain,
        }
    }
}

/// G10, where there is no error to return.
#[cold]
#[track_caller]
pub(super) fn reentrant(name: impl fmt::Display) -> ! {
    panic!(
        "{name} was called from inside the build of the same cell, which must not wait for a value of that cell; \
         inside a build use `get`, or `try_get_or_refresh`, which returns `RefreshError::Reentrant`"
    )
}

/// Looks, and waits for the builds of others, until there is a value that meets `demand` or the caller is elected.
/// `is_awaited`: asked before this thread waits for a build, whether that waits for this thread.
#[track_caller]
pub(crate) fn turn<H: Home>(
    home: H,
    demand: Demand,
    name: &str,
    is_awaited: impl Fn(Awaits) -> bool,
) -> Turn<H> {
    loop {
        let pending = match home.machine().lookup(demand) {
            Decision::Fresh(value) | Decision::Stale(value) => return Turn::Served(value),
            Decision::Elected(ticket) => return Turn::Elected(Held::new(home, ticket)),
            Decision::Pending(wait) => Waiting::new(home.machine(), wait),
            // No demand but `Servable` is answered so.
            Decision::Failed(_) => continue,
        };
        assert!(
            !is_awaited(pending.awaits()),
            "{name} would wait for itself: this thread holds a ReadGuard of the same cell, and a build that has \
             asked for the write lock waits for it; drop it before"
        );
        match pending.wait_until(Some(FOREVER)).map(|ended| demand.weigh(ended)) {
            Some(Verdict::Served(value)) => return Turn::Served(value),
            Some(Verdict::Reentrant) => reentrant(name),
            Some(Verdict::LookAgain) | None => {}
        }
    }
}

/// As [`turn`], for callers who can be told of an error. `limit`: how long they may wait, all in all.
pub(crate) fn try_turn<H: Home, E: Send + Sync + 'static>(
    home: H,
    limit: Option<Duration>,
    is_awaited: impl Fn(Awaits) -> bool,
) -> Result<Turn<H>, RefreshError<E>> {
    let mut demand = Demand::Servable;
    let mut deadline = None;
    loop {
        let error = match home.machine().lookup(demand) {
            Decision::Fresh(value) | Decision::Stale(value) => return Ok(Turn::Served(value)),
            Decision::Elected(ticket) => return Ok(Turn::Elected(Held::new(home, ticket))),
            Decision::Failed(error) => error,
            Decision::Pending(wait) => {
                let pending = Waiting::new(home.machine(), wait);
                if is_awaited(pending.awaits()) {
                    return Err(RefreshError::Reentrant);
                }
                let deadline = *deadline
                    .get_or_insert_with(|| limit.map_or(Some(FOREVER), |limit| pending.deadline(limit)));
                match pending.wait_until(deadline) {
                    None => return Err(RefreshError::WaitTimeout),
                    Some(Ended::Published(publication)) => return Ok(Turn::Served(publication.value)),
                    Some(Ended::Reentrant) => return Err(RefreshError::Reentrant),
                    Some(Ended::Abandoned) => continue,
                    Some(Ended::Failed(error)) => error,
                }
            }
        };
        match home.machine().instead_of(error) {
            Ok(value) => return Ok(Turn::Served(value)),
            Err(Some(error)) => return Err(RefreshError::Build(error)),
            // The error of somebody else's type means nothing to this caller: it builds, pause or not.
            Err(None) => demand = Demand::Value,
        }
    }
}

impl<T, C: Clock> Machine<T, C> {
    pub(crate) fn lookup_for(&self, demand: Demand) -> Lookup<'_, T, C> {
        Lookup::new(self, self.lookup(demand))
    }

    /// The slow half of `get_or_refresh`.
    #[cold]
    #[inline(never)]
    #[track_caller]
    pub(crate) fn get_or_refresh(&self, build: impl FnOnce() -> T) -> Arc<T> {
        turn(self, Demand::Value, "get_or_refresh", |_| false).build(build)
    }

    /// The slow half of `try_get_or_refresh` and its kin. `limit`: how long it may wait.
    #[cold]
    #[inline(never)]
    pub(crate) fn try_get_or_refresh<E: Send + Sync + 'static>(
        &self,
        limit: Option<Duration>,
        build: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, RefreshError<E>> {
        match try_turn(self, limit, |_| false)? {
            Turn::Served(value) => Ok(value),
            Turn::Elected(held) => self.or_instead(held.try_build(build)),
        }
    }

    /// What the caller of a build that failed gets: its error, or what the policy allows to serve instead.
    pub(crate) fn or_instead<E>(&self, built: Result<Arc<T>, Arc<E>>) -> Result<Arc<T>, RefreshError<E>> {
        built.or_else(|error| self.instead_of_error().ok_or(RefreshError::Build(error)))
    }

    /// As [`or_instead`](Machine::or_instead), for the error of somebody else; `Err(None)` if it is of another type.
    pub(super) fn instead_of<E: Send + Sync + 'static>(
        &self,
        error: SharedError,
    ) -> Result<Arc<T>, Option<Arc<E>>> {
        self.instead_of_error().ok_or_else(|| error.downcast::<E>().ok())
    }

    /// Publishes `value` ahead of any build, but not into a cell whose value is being withheld: waits for the end
    /// of that build. Returns what it replaces.
    #[track_caller]
    pub(crate) fn set_when_open(
        &self,
        mut value: Arc<T>,
        is_awaited: impl Fn(Awaits) -> bool,
        note: impl Fn(&Arc<T>, &Slot<T>),
    ) -> Leftover<T> {
        loop {
            match self.set(value, &note) {
                Ok(leftover) => return leftover,
                Err(NotNow { value: returned, wait }) => {
                    assert!(
                        !is_building(self),
                        "set was called from inside the build of the same cell, while the write lock is held or asked for, \
                         and would wait for the end of that; return the value from the build instead"
                    );
                    assert!(
                        !is_awaited(wait.awaits),
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
