//! Elections: which caller builds.

use crate::error::SharedError;
use crate::sync::{Arc, MutexGuard, Ordering, into_arc, spin_a_moment};
use crate::time::{Clock, FOREVER};
use crate::wait::Entry;

use super::attempt::Attempt;
use super::machine::Machine;
use super::slot::{Reading, Record};
use super::state::{Awaits, Demand, LeaseState, State, Verdict, verdict};

/// The lease, as its holder sees it.
pub(crate) struct Ticket<T> {
    pub(super) origin: u64,
    pub(super) began: u64,
    /// What its caller asks for.
    pub(super) demand: Demand,
    pub(super) progress: Progress,
    /// Why it builds, for its span.
    pub(crate) cause: &'static str,
    /// The generation that its value will have.
    pub(crate) generation: u64,
    /// It takes the place of a build that ran for longer than the lease timeout.
    pub(crate) supersedes: bool,
    pub(crate) previous: Option<Arc<T>>,
    /// What the build has panicked with.
    pub(crate) panic: Option<SharedError>,
}

impl<T> Ticket<T> {
    pub(crate) fn demand(&self) -> &Demand {
        &self.demand
    }

    /// How long the build has run.
    pub(super) fn nanos(&self, now: u64) -> u64 {
        now.saturating_sub(self.began)
    }
}

/// How far a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Building,
    /// Its result was handed in. The lease is held on to: it waits for the readers of what it has replaced.
    Draining,
    /// Its result was handed in, published or not, and the lease was released.
    Ended,
}

/// A place among the waiters; a wait of a thread or of a task.
pub(crate) struct Wait<T> {
    pub(super) entry: Entry<Arc<Attempt<T>>>,
    /// When the build that is waited for may be superseded: then it is time to look again.
    pub(crate) look_again_at: u64,
    pub(crate) awaits: Awaits,
    /// The number of the build that is waited for; 0: none runs.
    pub(crate) origin: u64,
    /// The generation from before the look. A greater one was published during the wait.
    pub(crate) seen: u64,
}

/// What a look found. See [`Lookup`](crate::Lookup).
pub(crate) enum Decision<T> {
    Fresh(Arc<T>),
    Stale(Arc<T>),
    Elected(Ticket<T>),
    Pending(Wait<T>),
    Failed(SharedError),
}

impl<T> Decision<T> {
    fn serve(value: Option<Arc<T>>, is_fresh: bool) -> Self {
        match value {
            Some(value) if is_fresh => Self::Fresh(value),
            Some(value) => Self::Stale(value),
            None => unreachable!("the slot was seen to hold a value"),
        }
    }
}

/// How often a reader that has something to serve tries to get the lock: for some microseconds. The lock is held for less than
/// one, unless its holder is descheduled.
const TRIES: u32 = if cfg!(any(dogpile_loom, dogpile_shuttle)) { 3 } else { 256 };

impl<T, C: Clock> Machine<T, C> {
    /// Looks at the cell: without the lock if there is something to serve, else by election.
    ///
    /// `since`: the generation that the caller saw when it first looked; `None`: this is its first look. What was published
    /// since then is served even if it has expired (G6).
    pub(crate) fn lookup(&self, demand: &Demand, since: Option<u64>) -> Decision<T> {
        // Before the clock: see the rule on generations (G1).
        let Reading { guard, record, due_at } = self.slot.read();
        let since = since.unwrap_or(record.generation);
        if guard.is_some() && demand.is_plain() {
            let is_fresh = self.is_before(record.fresh_end());
            if is_fresh || self.is_before(due_at) {
                self.mark_read(due_at);
                return Decision::serve(into_arc(guard), is_fresh);
            }
        }
        let now = self.now();
        let is_servable = guard.is_some() && now < self.servable_end(&record);
        // It may be the last reference. A drop is user code, which must not run between an election and its lease.
        drop(guard);
        // A read without the lock does not know origins.
        if is_servable && demand.after == 0 && demand.accepts(&record, u64::MAX, now) {
            return self.lookup_with_something_to_serve(demand, since, now);
        }
        self.decide(self.state.lock(), demand, since, now)
    }

    /// A caller that has something to serve never waits for the lock (G2). But some caller has to be elected: this one tries
    /// again until it has the lock, or sees the result of the critical section that held it.
    fn lookup_with_something_to_serve(&self, demand: &Demand, since: u64, now: u64) -> Decision<T> {
        let mut tries = 0;
        loop {
            if demand.is_plain() || tries > 0 {
                if let Some(state) = self.state.try_lock() {
                    return self.decide(state, demand, since, now);
                }
                spin_a_moment();
            }
            let Reading { guard, record, due_at } = self.slot.read();
            let is_servable = guard.is_some() && now < self.servable_end(&record).max(due_at);
            if !is_servable || !demand.accepts(&record, u64::MAX, now) {
                drop(guard);
                return self.decide(self.state.lock(), demand, since, now);
            }
            let is_fresh = now < record.fresh_end();
            if is_fresh || now < due_at || tries == TRIES {
                self.mark_read(due_at);
                return Decision::serve(into_arc(guard), is_fresh);
            }
            tries += 1;
        }
    }

    /// The decision table, under the lock.
    fn decide(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        demand: &Demand,
        since: u64,
        now: u64,
    ) -> Decision<T> {
        let record = self.slot.record(&state.key);
        let held = self.slot.load_full();
        let is_first_read = held.is_some() && state.listeners.mark_read();
        let notified = if is_first_read { state.listeners.notified(false) } else { None };
        if is_first_read {
            self.mirror(&mut state);
        }
        let is_fresh = now < record.fresh_end();
        // Published while the caller looked or waited: it counts as it was then (G6).
        let arrived = record.generation > since || (demand.after != 0 && state.origin > demand.after);
        let is_served = held.is_some()
            && ((arrived && self.did_meet(demand, &record, state.origin))
                || (now < state.due_at(&self.policy, &record) && demand.accepts(&record, state.origin, now)));
        let is_held = now < state.lease.held_until();
        let is_failed = state.paused_by(now).is_some_and(|failure| !failure.is_panic);
        let decision = match (verdict(is_served, is_held, is_failed, demand), held) {
            (Verdict::Serve, Some(value)) => {
                drop(state);
                Decision::serve(Some(value), is_fresh)
            }
            (Verdict::Fail, held) => {
                let error = state.failure.as_ref().map(|failure| failure.error.clone());
                drop(state);
                // It may be the last reference, and a drop is user code.
                drop(held);
                error.map_or_else(|| unreachable!("a failure has an error"), Decision::Failed)
            }
            (Verdict::Elect, held) => Decision::Elected(self.elect(state, demand, now, record, held)),
            (Verdict::Wait | Verdict::Serve, held) => {
                let look_again_at = if is_held { state.lease.held_until() } else { FOREVER };
                let awaits = state.lease.awaits();
                let origin = state.lease.origin().unwrap_or(0);
                let attempt = state.open_attempt();
                drop(state);
                drop(held);
                let entry = Entry::new(attempt);
                Decision::Pending(Wait { entry, look_again_at, awaits, origin, seen: since })
            }
        };
        if let Some(notified) = notified {
            notified.notify();
        }
        decision
    }

    fn elect(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        demand: &Demand,
        now: u64,
        record: Record,
        previous: Option<Arc<T>>,
    ) -> Ticket<T> {
        let supersedes = !state.lease.is_free();
        if supersedes {
            self.counters.superseded.count_locked();
        }
        let cause = match &previous {
            None => "first",
            Some(_) if record.is_declared_stale() => "invalidated",
            Some(_) if now < record.fresh_end() => "forced",
            Some(_) => "ttl",
        };
        let origin = state.next_origin();
        state.lease = LeaseState::Building { origin, supersede_at: self.policy.supersede_at(now) };
        self.mirror(&mut state);
        self.counters.builds.count_locked();
        Ticket {
            origin,
            began: now,
            demand: *demand,
            progress: Progress::Building,
            cause,
            generation: record.generation + 1,
            supersedes,
            previous,
            panic: None,
        }
    }

    /// Mirrors the state into what is read without the lock.
    pub(super) fn mirror(&self, state: &mut State<T>) {
        let due_at = if self.slot.is_empty(&state.key) {
            0
        } else {
            state.due_at(&self.policy, &self.slot.record(&state.key))
        };
        if self.slot.due_at() != due_at {
            self.slot.set_due_at(&mut state.key, due_at);
        }
        self.mirror_lease(state);
    }

    pub(super) fn mirror_lease(&self, state: &State<T>) {
        self.mirror_unread(state);
        // Release: pairs with the Acquire in `is_refreshing`.
        self.refreshing.store(!state.lease.is_free(), Ordering::Release);
    }

    /// Before a value is made visible that is unread.
    pub(super) fn mirror_unread(&self, state: &State<T>) {
        // Relaxed: see `mark_read`.
        self.unread.store(state.listeners.is_unread(), Ordering::Relaxed);
    }

    /// What the caller of a build that failed gets in place of the error. With `or_stale`, whatever the policy may serve.
    pub(crate) fn instead_of_error(&self, demand: &Demand, or_stale: bool) -> Option<Arc<T>> {
        let (Reading { guard, record, .. }, origin) = self.read_for(demand);
        let value = into_arc(guard)?;
        let now = self.now();
        let in_window = |window| now < record.stale_end(window);
        let is_served = (in_window(self.policy.error_window()) && demand.accepts(&record, origin, now))
            || (or_stale && in_window(self.policy.pause_window()));
        if !is_served {
            return None;
        }
        if now >= record.fresh_end() {
            self.counters.served_stale_on_error.count();
        }
        Some(value)
    }

    /// The value, with its origin as far as the demand asks for it.
    fn read_for(&self, demand: &Demand) -> (Reading<T>, u64) {
        if demand.after == 0 {
            return (self.slot.read(), u64::MAX);
        }
        // Value and origin belong together under the lock only.
        let state = self.state.lock();
        (self.slot.read(), state.origin)
    }

    /// The number of the build or `set` that made the value of this generation, if it is still there.
    pub(super) fn origin_of(&self, generation: u64) -> Option<u64> {
        let state = self.state.lock();
        (self.slot.record(&state.key).generation == generation).then_some(state.origin)
    }

    /// A value that meets the demand and may be served now, or could be when it was published after `since` (G6).
    pub(crate) fn acceptable(&self, demand: &Demand, since: Option<u64>) -> Option<Arc<T>> {
        let (Reading { guard, record, due_at }, origin) = self.read_for(demand);
        let value = into_arc(guard)?;
        let now = self.now();
        let arrived = since.is_some_and(|since| record.generation > since);
        self.mark_read(due_at);
        let is_acceptable = (arrived && self.did_meet(demand, &record, origin))
            || (now < self.servable_end(&record).max(due_at) && demand.accepts(&record, origin, now));
        is_acceptable.then_some(value)
    }

    /// Whether a value could be served when it was published, and met the demand then.
    fn did_meet(&self, demand: &Demand, record: &Record, origin: u64) -> bool {
        self.was_servable(record) && demand.accepts(record, origin, record.published)
    }

    /// What the policy allows to serve now.
    pub(crate) fn servable_arc(&self) -> Option<Arc<T>> {
        self.servable().and_then(into_arc)
    }
}
