//! Elections: what a caller that the local cell has elected is to do, and rights to build that nobody came for.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{Clock, Lease, Tick};

use super::{Caller, Node, Step, Taken, Ticket, Won};
use crate::access::Operation;
use crate::breaker::Kind;
use crate::cell::job::{Job, Watch};
use crate::codec::Opened;
use crate::error::Backoff;
use crate::store::{Acquire, Current, Request, Token};

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// The local cell has elected a caller: what is it to do?
    pub(crate) fn elected(self: &Arc<Self>, lease: Lease<'static, T, C>, caller: Caller) -> Step<T, C> {
        self.elected_here(lease, caller).unwrap_or_else(|lease| self.acquire(lease, caller))
    }

    /// The same, as far as it can be decided without the store; else the lease comes back.
    pub(crate) fn elected_here(
        self: &Arc<Self>,
        lease: Lease<'static, T, C>,
        caller: Caller,
    ) -> Result<Step<T, C>, Lease<'static, T, C>> {
        if self.is_void_here(&lease) {
            return Ok(Step::Again);
        }
        let now = self.clock.now();
        if self.known().hard_end.is_some_and(|end| end <= now) {
            drop(self.local.clear());
            return Ok(Step::Again);
        }
        if let Some(won) = self.unstash() {
            return Ok(Step::Build(Ticket { lease: Some(lease), won: Some(won), foreign: None }));
        }
        if self.open_until(Kind::Change, now).is_some() {
            return Ok(self.without_store(lease));
        }
        let left = self.backoff_left(now);
        if !left.is_zero() {
            return Ok(self.back_off(Some(lease), left, caller));
        }
        Err(lease)
    }

    /// Before the store is asked: in a process that was forked, what threads of its parent held is given back, and this lease with
    /// it. What would be built with it could not be published here.
    pub(super) fn is_void_here(&self, lease: &Lease<'static, T, C>) -> bool {
        self.mailbox.attach();
        lease.is_fenced()
    }

    pub(crate) fn acquire(self: &Arc<Self>, mut lease: Lease<'static, T, C>, caller: Caller) -> Step<T, C> {
        let mut refuse = None;
        // A second time only if the payload turns out to be of no use, and a third time if the next one is as well.
        for _ in 0..3 {
            let asked = self.clock.now();
            self.access.counters.acquires.count();
            let held = self.held();
            let (known, seen) = (held.0.to_store(), self.with(|state| state.seen));
            let request = Request { known, refuse, seen, ..Request::new(self.policy.lease) };
            let answer = self.ask(Operation::Acquire, |store, name| store.acquire(name, &request));
            let Some(answer) = answer else {
                return self.without_store(lease);
            };
            match answer {
                Acquire::Won { token, tag, failures, current } => {
                    return Step::Build(self.won(lease, token, tag, failures, current, asked));
                }
                Acquire::Busy { left, current } => {
                    self.access.counters.busy.count();
                    if let Some(lease) = self.take_stale(lease, current, None, asked) {
                        self.watch(lease, left, false);
                    }
                    return Step::Again;
                }
                Acquire::Backoff { left, epoch, current } => {
                    self.access.counters.backoffs.count();
                    self.with(|state| state.is_told(epoch));
                    let lease = self.take_stale(lease, current, Some(epoch), asked);
                    self.set_backoff(left);
                    return self.back_off(lease, left, caller);
                }
                Acquire::Fresh(current) => {
                    let soft_left = current.soft_left();
                    let version = current.newer().map(|value| value.version);
                    match self.take_fresh(lease, current, held, asked) {
                        Taken::Over(_) => return Step::Again,
                        Taken::Older(lease) if self.can_serve() => {
                            self.watch(lease, soft_left, true);
                            return Step::Again;
                        }
                        Taken::Foreign(lease, version, left) => {
                            let foreign = Some((version, left));
                            return Step::Build(Ticket { lease: Some(lease), won: None, foreign });
                        }
                        // Damaged, or older than what this node does not serve any more.
                        Taken::Older(returned) | Taken::Damaged(returned) => {
                            lease = returned;
                            refuse = version;
                        }
                    }
                }
            }
        }
        self.without_store(lease)
    }

    pub(super) fn won(
        self: &Arc<Self>,
        lease: Lease<'static, T, C>,
        token: Token,
        tag: Option<String>,
        failures: u32,
        current: Current,
        asked: Tick,
    ) -> Ticket<T, C> {
        self.access.counters.fleet_builds.count();
        self.with(|state| {
            state.is_told(token.epoch());
            state.sees(token.epoch(), current.newer().map(|value| value.version));
        });
        let mut won =
            Won { token, tag: None, failures, previous: lease.previous().cloned(), has_value: false };
        let mut lease = Some(lease);
        match current {
            Current::Same { .. } => {
                // Or it is a version that cannot be read here, and this node has one of its own.
                won.has_value = won.previous.is_some() && self.known().version.is_some();
            }
            Current::Newer(value) => {
                if let Opened::Value(opened) = self.open(&value) {
                    won.has_value = true;
                    let servable = value.hard_left > self.since(asked);
                    won.previous = match lease.take() {
                        Some(held) if servable && !self.is_older(&value, asked) => {
                            let (served, again) = self.publish_stale(held, opened, &value, asked);
                            lease = again;
                            Some(served)
                        }
                        held => {
                            lease = held;
                            Some(Arc::new(opened))
                        }
                    };
                }
            }
            Current::Nothing { cleared } => {
                if cleared && self.concerns(Some(token.epoch())) {
                    drop(self.local.clear());
                    won.previous = None;
                    lease = self.elect();
                }
            }
        }
        if won.has_value {
            won.tag = tag;
        }
        Ticket { lease, won: Some(won), foreign: None }
    }

    pub(super) fn without_store(self: &Arc<Self>, lease: Lease<'static, T, C>) -> Step<T, C> {
        if self.can_serve() {
            self.watch(lease, Duration::ZERO, false);
            return Step::Again;
        }
        Step::Build(Ticket { lease: Some(lease), won: None, foreign: None })
    }

    pub(super) fn back_off(
        self: &Arc<Self>,
        lease: Option<Lease<'static, T, C>>,
        left: Duration,
        caller: Caller,
    ) -> Step<T, C> {
        let Some(lease) = lease else { return Step::Again };
        if self.can_serve() {
            self.watch(lease, left, true);
            Step::Again
        } else if caller == Caller::Insists {
            Step::Build(Ticket { lease: Some(lease), won: None, foreign: None })
        } else {
            let backoff = Backoff { left };
            lease.fail(backoff);
            Step::Backoff(backoff)
        }
    }

    /// How long the pause after a failed build lasts, as far as it is known here.
    pub(crate) fn backoff_left(&self, now: Tick) -> Duration {
        self.with(|state| state.paused_until.saturating_duration_since(now))
    }

    pub(super) fn set_backoff(&self, left: Duration) {
        let until = self.clock.now().saturating_add(left);
        self.with(|state| state.paused_until = state.paused_until.max(until));
    }

    /// Keeps what an impatient caller did not wait for.
    pub(crate) fn unclaimed(&self, step: Step<T, C>) {
        if let Step::Build(Ticket { won: Some(won), .. }) = step {
            let now = self.clock.now();
            drop(self.with(|state| state.stash.replace((won, now))));
        }
    }

    pub(super) fn unstash(&self) -> Option<Won<T>> {
        let (won, since) = self.with(|state| state.stash.take())?;
        (self.since(since) < self.policy.lease / 2).then_some(won)
    }

    /// Gives a right to build back that nobody came for. Returns when there will be one to be given back.
    pub(crate) fn tidy_stash(&self, now: Tick) -> Option<Tick> {
        let (won, due) = self.with(|state| state.take_stash_if_due(now, self.policy.lease));
        if let Some(won) = won {
            self.ask(Operation::Fail, |store, name| store.fail(name, &won.token, Duration::ZERO));
        }
        due
    }

    /// The cell is gone: all that it holds in the store is given back, as far as that is possible at once.
    pub(crate) fn give_back(&self) {
        let (stashed, mut tokens) =
            self.with(|state| (state.stash.take(), std::mem::take(&mut state.orphans)));
        tokens.extend(stashed.map(|(won, _)| won.token));
        if self.is_owing() && self.deliver().is_err() {
            return;
        }
        for token in tokens {
            if self.open_until(Kind::Change, self.clock.now()).is_none() {
                self.ask(Operation::Fail, |store, name| store.fail(name, &token, Duration::ZERO));
            }
        }
    }

    pub(super) fn watch(self: &Arc<Self>, lease: Lease<'static, T, C>, left: Duration, is_idle: bool) {
        if !self.submit(Job::Watch(Watch::new(lease, self.clock.now(), left, is_idle))) {
            // Without a thread nobody waits for another node: the lease is given back, and each caller asks anew.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
