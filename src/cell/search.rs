//! The one loop around a look: serve, build, or wait and look again.
//!
//! [`Search::get`], [`Search::try_get`], their async forms and [`Search::run_spawned`] are what every read that may build comes
//! to. (`lookup`, a refresher and a derived value's sources call [`Machine::lookup`] themselves.) Inside,
//! [`Search::step`] looks; [`Search::resume`] weighs the end of a wait. Both are the same for threads and tasks, which differ
//! only in how they wait: [`Search::run`] blocks, [`Search::run_async`] suspends. No wake-up is trusted: what follows a wait
//! is decided by another look, or by a value that was handed over.
//!
//! # A build that was handed to a spawner
//!
//! The caller that has started it waits in the same loop, but is not elected again, since its closure is gone. It takes the
//! first of: the outcome of its own build ([`Started`]), and a value that meets its demand. The job wakes all waiters after it
//! has stored the outcome.

use std::fmt;
use std::ops::ControlFlow;
#[cfg(feature = "async")]
use std::panic::Location;
use std::time::Duration;

use crate::error::{RefreshError, SharedError};
use crate::sync::{Arc, OnceCell};
use crate::time::{FOREVER, deadline};

use super::attempt::{Outcome, Publication};
use super::elect::{Decision, Wait};
use super::handle::{Handle, Kind};
use super::lease::Held;
use super::machine::Machine;
use super::pending::WaitResult;
use super::state::{Awaits, Demand};

/// The outcome of a build that a call has handed to a spawner.
pub(crate) type Started<T> = Arc<OnceCell<Result<Arc<T>, RefreshError>>>;

/// How a search ended.
pub(crate) enum Found<'a, K: Kind> {
    /// A value that meets the demand.
    Served(Arc<K::Stored>),
    /// It is the caller's turn to build.
    Elected(Held<'a, K>),
}

type Done<'a, K> = Result<Found<'a, K>, RefreshError>;

pub(crate) struct Search<'a, K: Kind> {
    handle: Handle<'a, K>,
    demand: Demand,
    caller: Caller,
    /// Where the demand cannot be met: whatever the policy may serve.
    pub(super) or_stale: bool,
    /// In nanoseconds, from its first wait on. 0: it only looks. [`FOREVER`]: without end.
    pub(crate) patience: u64,
    /// When that is over, once it has waited.
    deadline: Option<u64>,
    /// The generation that it saw first.
    since: Option<u64>,
    /// The number of the build that it waits for.
    awaited: u64,
    started: Option<Started<K::Stored>>,
    /// Why it would wait for itself: this thread holds a `ReadGuard` that the build waits for.
    is_guarded: bool,
}

/// What a caller can do without a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// It can return no error: it goes on building or waiting.
    Infallible,
    /// It returns the error.
    Fallible,
}

impl<'a, K: Kind> Search<'a, K> {
    pub(crate) fn new(handle: Handle<'a, K>, demand: Demand, caller: Caller) -> Self {
        Self {
            handle,
            demand,
            caller,
            or_stale: false,
            patience: FOREVER,
            deadline: None,
            since: None,
            awaited: 0,
            started: None,
            is_guarded: false,
        }
    }

    /// Without conditions.
    pub(crate) fn plain(handle: Handle<'a, K>, caller: Caller) -> Self {
        let demand = if caller == Caller::Infallible { Demand::VALUE } else { Demand::ANY };
        Self::new(handle, demand, caller)
    }

    fn machine(&self) -> &Machine<K::Stored, K::Clock> {
        self.handle.machine()
    }

    /// The caller has handed its build to a spawner.
    pub(crate) fn start(&mut self, started: Started<K::Stored>) {
        self.demand.may_build = false;
        self.started = Some(started);
    }

    /// A value that meets the demand and may be served, without an election.
    pub(crate) fn acceptable(&self) -> Option<Arc<K::Stored>> {
        self.machine().acceptable(&self.demand, self.since)
    }

    /// Looks. It ends here, or continues with a wait.
    fn step(&mut self) -> ControlFlow<Done<'a, K>, Wait<K::Stored>> {
        loop {
            if let Some(done) = self.started_has_ended() {
                return ControlFlow::Break(done);
            }
            match self.machine().lookup(&self.demand, self.since) {
                Decision::Fresh(value) | Decision::Stale(value) => {
                    return ControlFlow::Break(Ok(Found::Served(value)));
                }
                Decision::Elected(ticket) => {
                    // What is published from now on is newer (G3).
                    self.since.get_or_insert(ticket.generation - 1);
                    return ControlFlow::Break(Ok(Found::Elected(Held::new(self.handle.clone(), ticket))));
                }
                Decision::Pending(wait) => {
                    self.since.get_or_insert(wait.seen);
                    self.awaited = wait.origin;
                    // Again, now that there is an attempt for the job to settle: it stores the outcome first.
                    return match self.started_has_ended() {
                        Some(done) => ControlFlow::Break(done),
                        None => ControlFlow::Continue(wait),
                    };
                }
                Decision::Failed(error) => {
                    if let Some(done) = self.failed(error) {
                        return ControlFlow::Break(done);
                    }
                }
            }
        }
    }

    /// The outcome of the build that was handed to a spawner, if it has ended.
    fn started_has_ended(&self) -> Option<Done<'a, K>> {
        let outcome = self.started.as_ref()?.get()?.clone();
        Some(self.of_own_build(outcome))
    }

    /// What the end of a wait leads to; `None`: to another look.
    fn resume(&mut self, ended: WaitResult<K::Stored>) -> Option<Done<'a, K>> {
        match ended {
            Ok(Outcome::Published(publication)) => {
                self.accepts(&publication).then(|| Ok(Found::Served(publication.value)))
            }
            // Its value would not have done either: this caller has not asked the source yet.
            Ok(Outcome::Failed(_)) if self.awaited != 0 && self.awaited <= self.demand.after => None,
            Ok(Outcome::Failed(error)) => self.failed(error),
            Ok(Outcome::Abandoned) => None,
            Err(RefreshError::WaitTimeout) if self.caller == Caller::Infallible => {
                // There is no error to return, so it goes on.
                self.patience = FOREVER;
                self.refuse(RefreshError::WaitTimeout).ok().map(Ok)
            }
            Err(error) => Some(self.refuse(error)),
        }
    }

    /// Whether what was published during the wait met the demand at that time (G6).
    fn accepts(&self, publication: &Publication<K::Stored>) -> bool {
        let Publication { record, origin, .. } = publication;
        let origin = match origin {
            _ if self.demand.after == 0 => Some(u64::MAX),
            None => self.machine().origin_of(record.generation),
            origin => *origin,
        };
        self.machine().was_servable(record)
            && origin.is_some_and(|origin| self.demand.accepts(record, origin, record.published))
    }

    fn refuse(&self, error: RefreshError) -> Done<'a, K> {
        let stale = if self.or_stale { self.machine().servable_arc() } else { None };
        stale.map(Found::Served).ok_or(error)
    }

    /// The build that was waited for has failed, or a retry pause runs. `None`: this caller builds all the same.
    fn failed(&mut self, error: SharedError) -> Option<Done<'a, K>> {
        match self.instead_of(error) {
            Ok(value) => Some(Ok(Found::Served(value))),
            Err(error) if self.caller == Caller::Fallible => Some(Err(error)),
            Err(_) => {
                self.demand.builds_in_pause = true;
                None
            }
        }
    }

    /// What the caller of a build that failed gets: the error, or what the policy and the demand allow to serve instead.
    pub(crate) fn instead_of(&self, error: SharedError) -> Result<Arc<K::Stored>, RefreshError> {
        let instead = self.machine().instead_of_error(&self.demand, self.or_stale);
        instead.ok_or(RefreshError::Build(error))
    }

    fn of_own_build(&self, outcome: Result<Arc<K::Stored>, RefreshError>) -> Done<'a, K> {
        match outcome {
            // This thread may have seen a newer one (G3).
            Ok(value) => Ok(Found::Served(self.acceptable().unwrap_or(value))),
            Err(RefreshError::Build(error)) => self.instead_of(error).map(Found::Served),
            Err(error) => match self.acceptable() {
                Some(value) => Ok(Found::Served(value)),
                None => self.refuse(error),
            },
        }
    }

    /// Asked before this thread blocks until a build has ended: whether that build waits for this thread.
    fn waits_for_itself(&self, awaits: Awaits) -> bool {
        match awaits {
            Awaits::Nobody => false,
            Awaits::Readers => self.handle.has_guard_of_this_thread(),
            Awaits::ReadersOfReplaced => {
                self.handle.give_way();
                false
            }
        }
    }

    /// Up to when it waits; [`None`]: it only looks.
    fn deadline(&mut self) -> Option<u64> {
        let clock = &self.handle.machine().clock;
        match self.patience {
            0 => None,
            FOREVER => Some(FOREVER),
            patience => {
                Some(*self.deadline.get_or_insert_with(|| deadline(clock, Duration::from_nanos(patience))))
            }
        }
    }

    /// Looks, and blocks while others build, until there is a value that meets the demand, or the caller is elected.
    pub(crate) fn run(&mut self) -> Done<'a, K> {
        loop {
            let mut waiting = match self.step() {
                ControlFlow::Break(done) => return done,
                ControlFlow::Continue(waiting) => waiting,
            };
            let deadline = self.deadline();
            let awaits = waiting.awaits;
            if deadline.is_some() && self.waits_for_itself(awaits) {
                self.is_guarded = true;
                return self.refuse(RefreshError::Reentrant);
            }
            let ended = waiting.wait_until(self.machine(), deadline);
            if let Some(done) = self.resume(ended) {
                return done;
            }
        }
    }

    /// As [`run`](Search::run), for a task.
    #[cfg(feature = "async")]
    pub(crate) async fn run_async(&mut self) -> Done<'a, K> {
        loop {
            let mut waiting = match self.step() {
                ControlFlow::Break(done) => return done,
                ControlFlow::Continue(waiting) => waiting,
            };
            let ended = match self.deadline() {
                None => waiting.wait_until(self.machine(), None),
                Some(deadline) => {
                    let machine = self.machine();
                    std::future::poll_fn(|cx| waiting.poll(machine, deadline, cx)).await
                }
            };
            drop(waiting);
            if let Some(done) = self.resume(ended) {
                return done;
            }
        }
    }

    /// Returns the value that is served, or else what `build` makes with the lease. `name` is that of the method that was called.
    #[track_caller]
    pub(crate) fn get(
        mut self,
        name: &str,
        build: impl FnOnce(Held<'a, K>) -> Arc<K::Stored>,
    ) -> Arc<K::Stored> {
        match self.run() {
            Ok(Found::Served(value)) => value,
            Ok(Found::Elected(held)) => build(held),
            Err(error) => self.cannot(name, &error),
        }
    }

    /// As [`get`](Search::get), with a build that may fail.
    pub(crate) fn try_get(
        mut self,
        build: impl FnOnce(Held<'a, K>) -> Result<Arc<K::Stored>, SharedError>,
    ) -> Result<Arc<K::Stored>, RefreshError> {
        match self.run()? {
            Found::Served(value) => Ok(value),
            Found::Elected(held) => build(held).or_else(|error| self.instead_of(error)),
        }
    }

    /// As [`get`](Search::get), for a task. `called`: where the method was called.
    #[cfg(feature = "async")]
    pub(crate) async fn get_async<F: Future<Output = Arc<K::Stored>>>(
        mut self,
        name: &str,
        called: &Location<'_>,
        build: impl FnOnce(Held<'a, K>) -> F,
    ) -> Arc<K::Stored> {
        // In two statements: what a look returns need not be kept while the task waits for its build.
        let building = match self.run_async().await {
            Ok(Found::Served(value)) => return value,
            Ok(Found::Elected(held)) => build(held),
            Err(error) => self.cannot_async(name, called, &error),
        };
        building.await
    }

    /// As [`try_get`](Search::try_get), for a task.
    #[cfg(feature = "async")]
    pub(crate) async fn try_get_async<F: Future<Output = Result<Arc<K::Stored>, SharedError>>>(
        mut self,
        build: impl FnOnce(Held<'a, K>) -> F,
    ) -> Result<Arc<K::Stored>, RefreshError> {
        let building = match self.run_async().await? {
            Found::Served(value) => return Ok(value),
            Found::Elected(held) => build(held),
        };
        building.await.or_else(|error| self.instead_of(error))
    }

    /// For a caller that can return no error: panics at its line.
    #[cold]
    #[track_caller]
    pub(crate) fn cannot(&self, name: impl fmt::Display, error: &RefreshError) -> ! {
        match error {
            RefreshError::Reentrant if self.is_guarded => panic!(
                "{name} would wait for itself: this thread holds a ReadGuard of the same cell, and a build that has asked \
                 for the write lock waits for it; drop it before"
            ),
            RefreshError::Reentrant => panic!(
                "{name} was called from inside the build of the same cell, which must not wait for a value of that cell; \
                 inside a build use `get`, or `try_get_or_refresh`, which returns `RefreshError::Reentrant`"
            ),
            error => panic!("{name}: {error}; a method that returns a `Result` tells it as an error"),
        }
    }

    /// As [`cannot`](Search::cannot), for a future, whose caller is not on the stack.
    #[cfg(feature = "async")]
    pub(crate) fn cannot_async(&self, name: &str, called: &Location<'_>, error: &RefreshError) -> ! {
        self.cannot(format_args!("{name}, at {called},"), error)
    }
}
