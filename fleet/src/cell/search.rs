//! The loop around a look at the local cell, for threads and for tasks.

use std::sync::Arc;

use dogpile::{BoxError, Clock, Lookup, RefreshError, Refreshed, SharedError, Waited};

use super::build::BuildContext;
use super::node::{Caller, Node, Step};

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// A value that may be served, from wherever it has to come.
    pub(crate) fn search<E, F>(self: &Arc<Self>, caller: Caller, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        loop {
            let error = match self.local.lookup_owned() {
                Lookup::Fresh(value) | Lookup::Stale(value) => return Ok(value),
                Lookup::Failed(error) => error,
                Lookup::Pending(pending) => {
                    if self.is_building_here() {
                        return Err(RefreshError::Reentrant);
                    }
                    self.worker.kick(self);
                    match pending.wait() {
                        Waited::Published(value) => return Ok(value),
                        Waited::Failed(error) => error,
                        Waited::Reentrant => return Err(RefreshError::Reentrant),
                        // It ended without a result.
                        _ => continue,
                    }
                }
                Lookup::Elected(lease) => {
                    let step = match self.elected_here(lease, caller) {
                        Ok(step) => step,
                        Err(lease) if self.can_serve() => {
                            let patience = self.policy.patience;
                            self.worker.elected(self, lease, caller, patience).unwrap_or_else(|| {
                                self.access.counters.impatient.count();
                                Step::Again
                            })
                        }
                        Err(lease) => self.acquire(lease, caller),
                    };
                    match step {
                        Step::Again => match self.local.get() {
                            Some(value) => return Ok(value),
                            None => continue,
                        },
                        Step::Backoff(backoff) => return Err(backoff.into()),
                        Step::Build(ticket) => {
                            return self.build(ticket, build).or_else(|error| self.instead_of(error));
                        }
                    }
                }
            };
            if let Some(outcome) = self.weigh(error, caller) {
                return outcome;
            }
        }
    }

    /// What the caller makes of the error of a build that it waited for. `None`: it looks again.
    fn weigh(&self, error: SharedError, caller: Caller) -> Option<Result<Arc<T>, RefreshError>> {
        (caller == Caller::Tries).then(|| self.instead_of(error))
    }

    /// What the callers get that ran a build which failed, or waited for it, or for one that a pause keeps from running.
    pub(crate) fn instead_of(&self, error: SharedError) -> Result<Arc<T>, RefreshError> {
        let late = self.clock.now().saturating_duration_since(self.known().soft_end);
        let stale = self.local.get().filter(|_| late <= self.policy.stale_if_error);
        stale.filter(|_| !self.policy.stale_if_error.is_zero()).ok_or(RefreshError::Build(error))
    }

    /// As [`search`](Node::search), for a task.
    #[cfg(feature = "async")]
    pub(crate) async fn search_async<E, F>(
        self: &Arc<Self>,
        caller: Caller,
        build: F,
    ) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: AsyncFnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        loop {
            let error = match self.local.lookup_owned() {
                Lookup::Fresh(value) | Lookup::Stale(value) => return Ok(value),
                Lookup::Failed(error) => error,
                Lookup::Pending(pending) => {
                    if self.is_building_here() {
                        return Err(RefreshError::Reentrant);
                    }
                    self.worker.kick(self);
                    match pending.await {
                        Waited::Published(value) => return Ok(value),
                        Waited::Failed(error) => error,
                        Waited::Reentrant => return Err(RefreshError::Reentrant),
                        // It ended without a result.
                        _ => continue,
                    }
                }
                Lookup::Elected(lease) => {
                    let step = match self.elected_here(lease, caller) {
                        Ok(step) => step,
                        Err(lease) => {
                            let patience = self.can_serve().then_some(self.policy.patience);
                            let step = self.worker.elected_async(self, lease, caller, patience).await;
                            step.unwrap_or_else(|| {
                                self.access.counters.impatient.count();
                                Step::Again
                            })
                        }
                    };
                    match step {
                        Step::Again => match self.local.get() {
                            Some(value) => return Ok(value),
                            None => continue,
                        },
                        Step::Backoff(_) if caller == Caller::Insists => continue,
                        Step::Backoff(backoff) => return Err(backoff.into()),
                        Step::Build(ticket) => {
                            let outcome = self.build_async(ticket, build).await;
                            return outcome.or_else(|error| self.instead_of(error));
                        }
                    }
                }
            };
            if let Some(outcome) = self.weigh(error, caller) {
                return outcome;
            }
        }
    }
}
