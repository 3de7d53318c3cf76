//! How builds end: with a value, an error or a panic, or unused.

use std::time::Duration;

use crate::contain::contain;
use crate::error::SharedError;
use crate::sync::{Arc, MutexGuard};
use crate::time::{Clock, FOREVER, nanos};
use crate::trace::PublishOutcome;

use super::attempt::{Outcome, Publication};
use super::elect::{Progress, Ticket};
use super::listeners::Noted;
use super::machine::Machine;
use super::slot::{Record, Seen};
use super::state::{Failure, LeaseState, State, Waiters};

/// How a build's result was published.
pub(crate) struct Concluded<T> {
    /// What the build's caller gets.
    pub(crate) served: Arc<T>,
    /// Of what it gets; `None`: it was never published.
    pub(crate) record: Option<Record>,
    /// Up to when that may be served if nothing happens.
    pub(crate) servable_end: u64,
    pub(crate) outcome: PublishOutcome,
    /// When it ended.
    pub(crate) now: u64,
    pub(crate) leftover: Leftover<T>,
}

/// Dropped without a lock, after everything else is done: both drops are user code and may panic.
#[must_use]
pub(crate) struct Leftover<T> {
    /// A value that is not in the cell any more, or never was.
    pub(crate) replaced: Option<Arc<T>>,
    _failure: Option<Box<Failure>>,
}

/// Releases the lock, gives the waiters their outcome and notifies the listeners.
pub(super) fn unlock<T>(mut state: MutexGuard<'_, State<T>>, waiters: Waiters<T>) {
    let notified = state.listeners.notified(true);
    drop(state);
    if let Some(notified) = &notified {
        notified.follow();
    }
    if let Some((attempt, outcome)) = waiters.map(|waiters| *waiters) {
        attempt.complete(outcome);
    }
    if let Some(notified) = notified {
        notified.notify();
    }
}

/// For how long a value is fresh that a build has made, and since when. In nanoseconds.
#[derive(Clone, Copy, Debug)]
#[allow(unreachable_pub)] // named by a sealed trait
pub struct Term {
    /// `None`: the policy's.
    pub(crate) ttl: Option<u64>,
    /// How old it is already.
    pub(crate) age: u64,
}

impl Term {
    /// What the policy says, from now on.
    pub(crate) const POLICY: Self = Self { ttl: None, age: 0 };

    pub(crate) fn of(ttl: Option<Duration>) -> Self {
        Self { ttl: ttl.map(nanos), age: 0 }
    }
}

/// What a build has made.
pub(crate) struct BuildOutput<T> {
    pub(crate) value: Arc<T>,
    pub(crate) term: Term,
    /// It is the previous value.
    pub(crate) renews: bool,
    /// Whether the lease is released; else it is held until [`give_back`](Machine::give_back).
    pub(crate) release: bool,
}

impl<T> BuildOutput<T> {
    /// A new value, whose publication releases the lease.
    pub(crate) fn new(value: Arc<T>, term: Term) -> Self {
        Self { value, term, renews: false, release: true }
    }
}

/// What a kind of cell keeps beside the value, and changes together with it.
///
/// Called under the cell's lock, before readers can see the change: it runs no user code, and drops nothing that is the user's.
/// A cell that keeps nothing has `()`. What is to happen after the change is the affair of a
/// [`Listener`](super::listeners::Listener).
pub(crate) trait Observer<T> {
    /// Up to when what the value was made from is fresh. 0: it is not.
    fn fresh_until(&self) -> u64 {
        FOREVER
    }

    /// `value` is about to be published, with this generation. `drains`: its build keeps the lease, and waits for the readers of
    /// the value that it replaces.
    fn publishes(&self, value: &Arc<T>, generation: u64, drains: bool) {
        let _ = (value, generation, drains);
    }

    /// The value is about to be taken away, if there is one: out of the slot, or from the build that has withheld it.
    fn clears(&self) {}
}

impl<T> Observer<T> for () {}

/// How builds end. `now` is a parameter because the clock is the user's and may panic: the owner of the lease reads it before
/// anything is taken out of its hands.
impl<T, C: Clock> Machine<T, C> {
    /// Publishes the result of a build, as far as the fence allows.
    pub(crate) fn conclude(
        &self,
        ticket: &mut Ticket<T>,
        BuildOutput { value, term, renews, release }: BuildOutput<T>,
        observer: &impl Observer<T>,
        now: u64,
    ) -> Concluded<T> {
        let Term { ttl, age } = term;
        // Of a value that is old already, what is left of the policy's is not the policy's either.
        let has_own_ttl = ttl.is_some() || age > 0;
        let ttl = self.draw_ttl(ttl);
        ticket.progress = if release { Progress::Ended } else { Progress::Draining };
        let mut state = self.state.lock();
        let holds = state.lease.origin() == Some(ticket.origin);
        // What is renewed must still be there: a `restore` displaces no build.
        let is_gone = renews && !self.slot.holds(&state.key, &value);
        let is_displaced = state.displaced_up_to >= ticket.origin || (holds && is_gone);
        self.counters.build_took(ticket.nanos(now));
        let (outcome, record, instead, waiters, mut leftover) = if holds && !is_displaced {
            let fresh_until = observer.fresh_until();
            // Fresh up to and including its ttl.
            let ttl = if fresh_until == FOREVER {
                ttl
            } else {
                ttl.min(fresh_until.saturating_sub(now + 1).saturating_add(age))
            };
            let generation = self.slot.record(&state.key).generation + 1;
            let record = Record { initial_age: age, ..Record::fresh(generation, now, ttl) };
            let (outcome, record) = if state.invalidated_up_to < ticket.origin && now < fresh_until {
                (PublishOutcome::Published, record)
            } else {
                self.counters.fenced.count_locked();
                (PublishOutcome::PublishedStale, record.declared_stale_at(now))
            };
            self.note_publication(&mut state, has_own_ttl || fresh_until != FOREVER);
            observer.publishes(&value, record.generation, !release);
            let (waiters, leftover) =
                self.make_visible(&mut state, Arc::clone(&value), record, ticket.origin);
            // What had expired when it was built is not for them: they look again.
            let waiters = waiters.or_else(|| state.take_waiters(Outcome::Abandoned));
            (outcome, Some(record), None, waiters, leftover)
        } else {
            let outcome = if is_displaced {
                self.counters.fenced.count_locked();
                PublishOutcome::Displaced
            } else {
                PublishOutcome::Superseded
            };
            // What the cell serves now, if that meets the caller's conditions; else what it has built, which always does.
            let record = self.slot.record(&state.key);
            let is_served = now < self.servable_end(&record).max(state.due_at(&self.policy, &record))
                && ticket.demand.accepts(&record, state.origin, now);
            let instead = if is_served { self.slot.load_full() } else { None };
            let record = instead.as_ref().map(|_| record);
            let waiters = if holds { state.take_waiters(Outcome::Abandoned) } else { None };
            (outcome, record, instead, waiters, Leftover { replaced: None, _failure: None })
        };
        if holds {
            // The build is over even if the lease is held on to: another build cannot take its place meanwhile.
            state.lease =
                if release { LeaseState::FREE } else { LeaseState::Draining { origin: ticket.origin } };
        }
        self.mirror(&mut state);
        let servable_end = record.map_or(0, |record| {
            self.servable_end(&record).max(state.due_at_when_read(&self.policy, &record))
        });
        unlock(state, waiters);
        let served = match instead {
            Some(served) => {
                leftover.replaced = Some(value);
                served
            }
            None => value,
        };
        Concluded { served, record, servable_end, outcome, now, leftover }
    }

    /// The build failed with `error`. What it has withheld is put back, or returned if it was cleared meanwhile.
    pub(crate) fn fail(
        &self,
        ticket: &mut Ticket<T>,
        error: SharedError,
        withheld: Option<Arc<T>>,
        now: u64,
    ) -> Option<Arc<T>> {
        let draw = self.draw();
        ticket.progress = Progress::Ended;
        let state = self.state.lock();
        self.counters.failed.count_locked();
        self.counters.build_took(ticket.nanos(now));
        let (rejected, former) = self.release(state, ticket, withheld, Some((error, false)), now, draw);
        drop(former);
        rejected
    }

    /// The lease comes back, without a result or after it was held on to, with what the build has withheld. Called from a
    /// destructor, perhaps while the thread unwinds.
    pub(crate) fn give_back(
        &self,
        mut ticket: Ticket<T>,
        panicked: bool,
        withheld: Option<Arc<T>>,
        now: u64,
    ) -> Option<Arc<T>> {
        let draw = self.draw();
        let is_building = ticket.progress == Progress::Building;
        let panic = (panicked && is_building)
            .then(|| ticket.panic.take().unwrap_or_else(SharedError::of_unknown_panic));
        let state = self.state.lock();
        if is_building {
            if panicked { &self.counters.panicked } else { &self.counters.abandoned }.count_locked();
        }
        let failure = panic.map(|panic| (panic, true));
        let (rejected, former) = self.release(state, &ticket, withheld, failure, now, draw);
        // Their drops are user code, and the thread may be panicking already.
        contain(|| drop(former));
        contain(|| drop(ticket));
        rejected
    }

    /// A build has ended without a result: puts back what it has withheld, and releases the lease, unless the build has lost it. If it
    /// has failed, or panicked (`true`), a retry pause begins. Returns the value that could not be put back, and the failure before,
    /// to be dropped.
    fn release(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        ticket: &Ticket<T>,
        withheld: Option<Arc<T>>,
        mut failure: Option<(SharedError, bool)>,
        now: u64,
        draw: u64,
    ) -> (Option<Arc<T>>, Option<Box<Failure>>) {
        // Before the value is put back: that frees the lease of a displaced build, whose waiters have to look again.
        let holds = state.lease.origin() == Some(ticket.origin);
        let rejected = self.restore_withheld(&mut state, ticket, withheld);
        let mut waiters = None;
        if holds {
            state.lease = LeaseState::FREE;
            waiters = state.take_waiters(match &failure {
                Some((error, false)) => Outcome::Failed(error.clone()),
                _ => Outcome::Abandoned,
            });
        }
        let mut former = None;
        // Displaced, it had the write lock of a value that was cleared meanwhile: there is no value that a pause would protect.
        if holds
            && state.displaced_up_to < ticket.origin
            && let Some((error, is_panic)) = failure.take()
        {
            let count = state.failure.as_ref().map_or(0, |failure| failure.count).saturating_add(1);
            let pause = self.policy.retry_pause(count, draw);
            // 0 means no pause; using `now` could reject callers with an older reading.
            let retry_at = if pause == 0 { 0 } else { now.saturating_add(pause) };
            former = state.failure.replace(Box::new(Failure { count, retry_at, error, is_panic }));
        }
        self.mirror(&mut state);
        unlock(state, waiters);
        (rejected, former)
    }

    /// Whether the result of the build can no longer be published.
    pub(crate) fn is_fenced(&self, ticket: &Ticket<T>) -> bool {
        let state = self.state.lock();
        state.lease.origin() != Some(ticket.origin) || state.displaced_up_to >= ticket.origin
    }

    /// Wakes all waiters, which look again: the event that one of them waits for changes nothing in the state.
    pub(crate) fn wake_waiters(&self) {
        let mut state = self.state.lock();
        let waiters = state.take_waiters(Outcome::Abandoned);
        unlock(state, waiters);
    }

    /// A value is about to be made visible.
    pub(super) fn note_publication(&self, state: &mut State<T>, has_own_ttl: bool) {
        if state.listeners.are_there() {
            state.listeners.note_publication(has_own_ttl, state.attempt.is_some());
            self.mirror_unread(state);
        }
    }

    /// Makes a value visible to readers, and takes the waiters out, which get it too.
    pub(super) fn make_visible(
        &self,
        state: &mut State<T>,
        value: Arc<T>,
        record: Record,
        origin: u64,
    ) -> (Waiters<T>, Leftover<T>) {
        self.counters.published.count_locked();
        state.origin = origin;
        state.lease.unsettle();
        let failure = state.failure.take();
        // Waiters get what may have been served when it was published. (Only what was old already may have expired by then.)
        let waiters = if state.attempt.is_some() && self.was_servable(&record) {
            let publication = Publication { value: Arc::clone(&value), record, origin: Some(origin) };
            state.take_waiters(Outcome::Published(publication))
        } else {
            None
        };
        let due_at = state.due_at(&self.policy, &record);
        let replaced = if self.slot.holds(&state.key, &value) {
            self.slot.amend(&mut state.key, record, due_at);
            Some(value)
        } else {
            self.slot.replace(&mut state.key, Some(value), record, due_at)
        };
        if state.listeners.are_there() {
            self.note_published(state, record);
        }
        (waiters, Leftover { replaced, _failure: failure })
    }

    #[cold]
    #[inline(never)]
    fn note_published(&self, state: &State<T>, record: Record) {
        if let Some(value) = self.slot.load_full() {
            let servable_end = self.servable_end(&record).max(state.due_at_when_read(&self.policy, &record));
            let now = record.published;
            state.listeners.note(&Noted::Published(Seen { value, record, servable_end, now }));
            // Not the last reference: the slot has one, and does not change under the lock.
        }
    }

    /// A random number for the jitter; 0 without one.
    fn draw(&self) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        // Each `RandomState` hashes with keys of its own, which is all the randomness that jitter needs.
        if self.policy.has_jitter() { RandomState::new().hash_one(0) } else { 0 }
    }

    /// `own`: the publication's own time to live, in place of the policy's.
    pub(super) fn draw_ttl(&self, own: Option<u64>) -> u64 {
        self.policy.jittered_ttl(own.unwrap_or(self.policy.default_ttl()), self.draw())
    }
}
