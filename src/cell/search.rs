//! The one loop around a look: serve, build, or wait and look again.
//!
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
#[cfg(feature = "async")]
use std::panic::Location;
use std::time::Duration;

use crate::error::{RefreshError, SharedError};
use crate::sync::{Arc, OnceCell};
use crate::time::{FOREVER, deadline};

use super::attempt::Publication;
use super::elect::Decision;
use super::handle::Handle;
use super::handle::sealed::Kind;
use super::lease::Held;
use super::machine::Machine;
use super::pending::{Ended, Waiting};
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

enum Step<'a, K: Kind> {
    Done(Done<'a, K>),
    Wait(Waiting<K::Stored>),
}

pub(crate) struct Search<'a, K: Kind> {
    handle: Handle<'a, K>,
    demand: Demand,
    caller: Caller,
    /// Where the demand cannot be met: whatever the policy may serve.
    or_stale: bool,
    patience: Patience,
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

/// How long a caller waits, all in all.
#[derive(Clone, Copy)]
enum Patience {
    /// From its first wait on. [`FOREVER`]: without end.
    For(u64),
    Until(u64),
    /// It only looks.
    None,
}

impl<'a, K: Kind> Search<'a, K> {
    pub(crate) fn new(handle: Handle<'a, K>, demand: Demand, caller: Caller) -> Self {
        Self {
            handle,
            demand,
            caller,
            or_stale: false,
            patience: Patience::For(FOREVER),
            since: None,
            awaited: 0,
            started: None,
            is_guarded: false,
        }
    }

    /// In nanoseconds. [`FOREVER`]: without end.
    pub(crate) fn patience(self, patience: u64) -> Self {
        Self { patience: Patience::For(patience), ..self }
    }

    pub(crate) fn or_stale(self, or_stale: bool) -> Self {
        Self { or_stale, ..self }
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

    fn step(&mut self) -> Step<'a, K> {
        loop {
            if let Some(done) = self.started_has_ended() {
                return Step::Done(done);
            }
            match self.machine().lookup(&self.demand, self.since) {
                Decision::Fresh(value) | Decision::Stale(value) => {
                    return Step::Done(Ok(Found::Served(value)));
                }
                Decision::Elected(ticket) => {
                    // What is published from now on is newer (G3).
                    self.since.get_or_insert(ticket.beginning.generation - 1);
                    return Step::Done(Ok(Found::Elected(Held::new(self.handle.clone(), ticket))));
                }
                Decision::Pending(wait) => {
                    self.since.get_or_insert(wait.seen);
                    self.awaited = wait.origin;
                    // Again, now that there is an attempt for the job to settle: it stores the outcome first.
                    return match self.started_has_ended() {
                        Some(done) => Step::Done(done),
                        None => Step::Wait(Waiting::new(wait)),
                    };
                }
                Decision::Failed(error) => {
                    if let Some(done) = self.failed(error) {
                        return Step::Done(done);
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

    /// What the end of a wait leads to; `None`: to another look. `ended`: `None` if the time is over.
    fn resume(&mut self, ended: Option<Ended<K::Stored>>) -> Option<Done<'a, K>> {
        match ended {
            Some(Ended::Published(publication)) => {
                self.accepts(&publication).then(|| Ok(Found::Served(publication.value)))
            }
            // Its value would not have done either: this caller has not asked the source yet.
            Some(Ended::Failed(_)) if self.awaited != 0 && self.awaited <= self.demand.after => None,
            Some(Ended::Failed(error)) => self.failed(error),
            Some(Ended::Abandoned) => None,
            Some(Ended::Reentrant) => Some(self.refuse(RefreshError::Reentrant)),
            None if self.caller == Caller::Infallible => {
                let stale = if self.or_stale { self.machine().servable_arc() } else { None };
                // There is no error to return, so it goes on.
                self.patience = Patience::For(FOREVER);
                stale.map(|value| Ok(Found::Served(value)))
            }
            None => Some(self.refuse(RefreshError::WaitTimeout)),
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

    fn deadline(&mut self) -> Option<u64> {
        if let Patience::For(nanos) = self.patience {
            self.patience = match nanos {
                0 => Patience::None,
                FOREVER => Patience::Until(FOREVER),
                _ => Patience::Until(deadline(&self.machine().clock, Duration::from_nanos(nanos))),
            };
        }
        match self.patience {
            Patience::Until(tick) => Some(tick),
            Patience::None | Patience::For(_) => None,
        }
    }

    /// Looks, and blocks while others build, until there is a value that meets the demand, or the caller is elected.
    pub(crate) fn run(&mut self) -> Done<'a, K> {
        loop {
            let mut waiting = match self.step() {
                Step::Done(done) => return done,
                Step::Wait(waiting) => waiting,
            };
            let deadline = self.deadline();
            let awaits = waiting.awaits;
            if deadline.is_some() && awaits != Awaits::Nobody && self.handle.is_awaited(awaits) {
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
                Step::Done(done) => return done,
                Step::Wait(waiting) => waiting,
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
