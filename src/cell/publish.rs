//! How builds end, and writes from outside.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::contain::contain;
use crate::error::SharedError;
use crate::sync::{Arc, MutexGuard};
use crate::time::{Clock, FOREVER};
use crate::trace::Ending;

use super::attempt::{Attempt, Outcome, Publication};
use super::elect::{Stage, Ticket, Wait};
use super::listeners::{Noted, Notified};
use super::machine::Machine;
use super::slot::{Reading, Record, Slot, address_of};
use super::state::{Awaits, Failure, LeaseState, State, Withheld};
use crate::sync::into_arc;

/// How a build's result was published.
pub(crate) struct Concluded<T> {
    /// What the build's caller gets.
    pub(crate) served: Arc<T>,
    /// Of what it gets; `None`: it was never published.
    pub(crate) record: Option<Record>,
    /// Up to when that may be served if nothing happens.
    pub(crate) served_end: u64,
    pub(crate) ending: Ending,
    /// When it ended.
    pub(crate) now: u64,
    /// How long the build took.
    pub(crate) nanos: u64,
    pub(crate) leftover: Leftover<T>,
}

/// What remains of a build that has ended without a value.
#[must_use]
pub(crate) struct GivenBack<T> {
    /// The value that it had withheld, if that was cleared meanwhile and is not put back.
    pub(crate) rejected: Option<Arc<T>>,
    /// How long it took.
    pub(crate) nanos: u64,
}

/// Dropped without a lock, after everything else is done: both drops are user code and may panic.
#[must_use]
pub(crate) struct Leftover<T> {
    /// A value that is not in the cell any more, or never was.
    pub(crate) replaced: Option<Arc<T>>,
    _failure: Option<Box<Failure>>,
}

/// What is left to do after unlocking.
#[must_use]
pub(super) struct Aftermath<T> {
    settle: Option<(Arc<Attempt<T>>, Outcome<T>)>,
    leftover: Leftover<T>,
}

impl<T> Aftermath<T> {
    pub(super) fn settle(settle: Option<(Arc<Attempt<T>>, Outcome<T>)>) -> Self {
        Self { settle, leftover: Leftover { replaced: None, _failure: None } }
    }

    /// Releases the lock, wakes the waiters and notifies the listeners. The caller drops what is returned, when it has nothing more to do.
    pub(super) fn finish(self, mut state: MutexGuard<'_, State<T>>) -> Leftover<T> {
        let notified = state.listeners.notified(true);
        drop(state);
        notified.follow();
        if let Some((attempt, outcome)) = self.settle {
            attempt.settle(outcome);
        }
        notified.notify();
        self.leftover
    }
}

/// A time to live for one publication.
#[derive(Clone, Copy)]
#[allow(unreachable_pub)] // named by a sealed trait
pub enum Ttl {
    Policy,
    Own(u64),
}

/// What a build has made.
pub(crate) struct BuildOutput<T> {
    pub(crate) value: Arc<T>,
    pub(crate) ttl: Ttl,
    /// It is the previous value.
    pub(crate) renews: bool,
    /// Whether the lease is released; else it is held until [`give_back`](Machine::give_back).
    pub(crate) release: bool,
    /// Up to when what it was made from is fresh; 0: it is not. Called under the lock: runs no user code.
    pub(crate) fresh_until: Option<Arc<dyn Fn() -> u64 + Send + Sync>>,
}

/// How builds end.
impl<T, C: Clock> Machine<T, C> {
    /// Publishes the result of a build, as far as the fence allows.
    ///
    /// `note` is called under the lock with the value that becomes visible, and the slot, which still holds the old one.
    pub(crate) fn conclude(
        &self,
        ticket: &mut Ticket<T>,
        BuildOutput { value, ttl, renews, release, fresh_until }: BuildOutput<T>,
        note: impl FnOnce(&Arc<T>, &Slot<T>),
    ) -> Concluded<T> {
        let own_ttl = matches!(ttl, Ttl::Own(_)) || fresh_until.is_some();
        let ttl = self.draw_ttl(ttl);
        let now = self.now();
        ticket.stage = if release { Stage::Ended } else { Stage::Draining };
        let mut state = self.state.lock();
        let holds = state.lease.origin() == Some(ticket.origin);
        // What is renewed must still be there: a `restore` displaces no build.
        let is_gone = renews && !self.slot.holds(&state.key, &value);
        let is_displaced = state.displaced >= ticket.origin || (holds && is_gone);
        let nanos = now.saturating_sub(ticket.began);
        self.counters.build_took(nanos);
        let (ending, record, instead, aftermath) = if holds && !is_displaced {
            let fresh_until = fresh_until.as_ref().map_or(FOREVER, |fresh_until| fresh_until());
            // Fresh up to and including its ttl.
            let ttl = if fresh_until == FOREVER { ttl } else { ttl.min(fresh_until.saturating_sub(now + 1)) };
            let record = Record::fresh(self.slot.record(&state.key).generation + 1, now, ttl);
            let (ending, record) = if state.invalidated < ticket.origin && now < fresh_until {
                (Ending::Published, record)
            } else {
                self.counters.fenced.count_locked();
                (Ending::PublishedStale, record.lapsed(now))
            };
            self.note_publication(&mut state, own_ttl);
            let aftermath = self.make_visible(&mut state, Arc::clone(&value), record, ticket.origin, note);
            (ending, Some(record), None, aftermath)
        } else {
            let ending = if is_displaced {
                self.counters.fenced.count_locked();
                Ending::Displaced
            } else {
                Ending::TooLate
            };
            // What the cell serves now, if that meets the caller's conditions; else what it has built, which always does.
            let record = self.slot.record(&state.key);
            let is_served = now < self.served_end(&record).max(self.quiet_end(&state, record))
                && ticket.demand.accepts(&record, state.origin, now);
            let instead = if is_served { self.slot.load_full() } else { None };
            let settle = if holds { state.take_waiters(Outcome::Abandoned) } else { None };
            (ending, instead.as_ref().map(|_| record), instead, Aftermath::settle(settle))
        };
        if holds {
            // The build is over even if the lease is held on to: another build cannot take its place meanwhile.
            state.lease =
                if release { LeaseState::Free } else { LeaseState::Draining { origin: ticket.origin } };
        }
        self.mirror(&mut state);
        let served_end =
            record.map_or(0, |record| self.served_end(&record).max(self.quiet_end_when_read(&state, record)));
        let mut leftover = aftermath.finish(state);
        let served = match instead {
            Some(served) => {
                leftover.replaced = Some(value);
                served
            }
            None => value,
        };
        Concluded { served, record, served_end, ending, now, nanos, leftover }
    }

    /// The build failed with `error`, and puts back what it has withheld. `withheld` is called after the clock was read: if
    /// the clock panics, the value stays with its owner.
    pub(crate) fn fail(
        &self,
        ticket: &mut Ticket<T>,
        error: SharedError,
        withheld: impl FnOnce() -> Option<Withheld<T>>,
    ) -> GivenBack<T> {
        let now = self.now();
        let draw = self.draw();
        let withheld = withheld();
        ticket.stage = Stage::Ended;
        let mut state = self.state.lock();
        let nanos = now.saturating_sub(ticket.began);
        self.counters.failed.count_locked();
        self.counters.build_took(nanos);
        let (holds, rejected) = self.release(&mut state, ticket, withheld);
        let is_displaced = state.displaced >= ticket.origin;
        let aftermath = if holds && is_displaced {
            // It had the write lock of a value that was cleared meanwhile: there is no value that a pause would protect.
            Aftermath::settle(state.take_waiters(Outcome::Failed(error)))
        } else if holds {
            let outcome = Outcome::Failed(error.clone());
            self.record_failure(&mut state, (error, false), outcome, now, draw)
        } else {
            Aftermath::settle(None)
        };
        self.mirror(&mut state);
        drop(aftermath.finish(state));
        GivenBack { rejected, nanos }
    }

    /// The lease comes back, without a result or after it was held on to, with what the build has withheld.
    pub(crate) fn give_back(
        &self,
        mut ticket: Ticket<T>,
        panicked: bool,
        withheld: Option<Withheld<T>>,
    ) -> GivenBack<T> {
        // Called from a destructor, perhaps because the clock has panicked. The lease must come back all the same; the panic
        // hook has reported the panic.
        let now = catch_unwind(AssertUnwindSafe(|| self.now())).unwrap_or(ticket.began);
        let draw = self.draw();
        let is_building = ticket.stage == Stage::Building;
        let panic = (panicked && is_building)
            .then(|| ticket.panic.take().unwrap_or_else(SharedError::of_unknown_panic));
        let mut state = self.state.lock();
        if is_building {
            if panicked { &self.counters.panicked } else { &self.counters.abandoned }.count_locked();
        }
        let (holds, rejected) = self.release(&mut state, &ticket, withheld);
        let aftermath = if !holds {
            Aftermath::settle(None)
        } else if let Some(panic) = panic.filter(|_| state.displaced < ticket.origin) {
            self.record_failure(&mut state, (panic, true), Outcome::Abandoned, now, draw)
        } else {
            Aftermath::settle(state.take_waiters(Outcome::Abandoned))
        };
        self.mirror(&mut state);
        let leftover = aftermath.finish(state);
        let nanos = now.saturating_sub(ticket.began);
        // Their drops are user code, and the thread may be panicking already.
        contain(|| drop(leftover));
        contain(|| drop(ticket));
        GivenBack { rejected, nanos }
    }

    /// Puts back what the build has withheld, and releases the lease, unless the build has lost it. Returns whether it had
    /// it, and what could not be put back.
    fn release(
        &self,
        state: &mut State<T>,
        ticket: &Ticket<T>,
        withheld: Option<Withheld<T>>,
    ) -> (bool, Option<Arc<T>>) {
        // Before the value is put back: that frees the lease of a displaced build, whose waiters have to look again.
        let holds = state.lease.origin() == Some(ticket.origin);
        let rejected = withheld.and_then(|withheld| self.restore_withheld(state, withheld));
        if holds {
            state.lease = LeaseState::Free;
        }
        (holds, rejected)
    }

    /// Whether the result of the build can no longer be published.
    pub(crate) fn is_fenced(&self, ticket: &Ticket<T>) -> bool {
        let state = self.state.lock();
        state.lease.origin() != Some(ticket.origin) || state.displaced >= ticket.origin
    }

    /// Wakes all waiters, which look again: the event that one of them waits for changes nothing in the state.
    pub(crate) fn wake_waiters(&self) {
        let mut state = self.state.lock();
        let settle = state.take_waiters(Outcome::Abandoned);
        drop(Aftermath::settle(settle).finish(state));
    }

    /// A value is about to be made visible.
    fn note_publication(&self, state: &mut State<T>, has_own_ttl: bool) {
        if state.listeners.are_there() {
            state.listeners.note_publication(has_own_ttl, state.attempt.is_some());
            self.mirror_unread(state);
        }
    }

    /// Makes a value visible to readers, and takes the waiters out, which get it too.
    fn make_visible(
        &self,
        state: &mut State<T>,
        value: Arc<T>,
        record: Record,
        origin: u64,
        note: impl FnOnce(&Arc<T>, &Slot<T>),
    ) -> Aftermath<T> {
        self.counters.published.count_locked();
        state.origin = origin;
        let failure = state.failure.take();
        // Waiters get what may have been served when it was published. (Only what is restored may have expired by then.)
        let settle = if state.attempt.is_some() && self.was_servable(&record) {
            let publication = Publication { value: Arc::clone(&value), record, origin: Some(origin) };
            state.take_waiters(Outcome::Published(publication))
        } else {
            None
        };
        let quiet_end = self.quiet_end(state, record);
        note(&value, &self.slot);
        let replaced = if self.slot.holds(&state.key, &value) {
            self.slot.amend(&mut state.key, record, quiet_end);
            Some(value)
        } else {
            self.slot.replace(&mut state.key, Some(value), record, quiet_end)
        };
        if state.listeners.are_there() {
            self.note_published(state, record);
        }
        Aftermath { settle, leftover: Leftover { replaced, _failure: failure } }
    }

    #[cold]
    #[inline(never)]
    fn note_published(&self, state: &State<T>, record: Record) {
        if let Some(value) = self.slot.load_full() {
            let served_end = self.served_end(&record).max(self.quiet_end_when_read(state, record));
            state.listeners.note(&Noted::Published { value: &value, record, served_end });
            // Not the last reference: the slot has one, and does not change under the lock.
        }
    }

    fn record_failure(
        &self,
        state: &mut State<T>,
        (error, is_panic): (SharedError, bool),
        outcome: Outcome<T>,
        now: u64,
        draw: u64,
    ) -> Aftermath<T> {
        let settle = state.take_waiters(outcome);
        let count = state.failure.as_ref().map_or(0, |failure| failure.count).saturating_add(1);
        let pause = self.policy.retry_pause(count, draw);
        // 0 means no pause; using `now` could reject callers with an older reading.
        let retry_at = if pause == 0 { 0 } else { now.saturating_add(pause) };
        let failure = state.failure.replace(Box::new(Failure { count, retry_at, error, is_panic }));
        Aftermath { settle, leftover: Leftover { replaced: None, _failure: failure } }
    }

    /// A random number for the jitter; 0 without one.
    fn draw(&self) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        // Each `RandomState` hashes with keys of its own, which is all the randomness that jitter needs.
        if self.policy.has_jitter() { RandomState::new().hash_one(0) } else { 0 }
    }

    fn draw_ttl(&self, ttl: Ttl) -> u64 {
        let ttl = match ttl {
            Ttl::Policy => self.policy.default_ttl(),
            Ttl::Own(ttl) => ttl,
        };
        self.policy.jittered_ttl(ttl, self.draw())
    }
}

/// What is set, and how old it is.
pub(crate) struct Setting<T> {
    pub(crate) value: Arc<T>,
    pub(crate) ttl: Ttl,
    /// [`Some`]: it is restored, and was made that long ago. A build that runs is newer.
    pub(crate) age: Option<u64>,
}

/// A value that cannot be set yet, and a place to wait for the end of the build that withholds the old one.
pub(crate) struct NotNow<T> {
    pub(crate) setting: Setting<T>,
    pub(crate) wait: Wait<T>,
}

/// Writes from outside.
impl<T, C: Clock> Machine<T, C> {
    /// Publishes a value ahead of any build and returns what it replaces. See [`conclude`](Machine::conclude) for
    /// `note`.
    ///
    /// # Errors
    ///
    /// If a build withholds the old value.
    pub(crate) fn set(
        &self,
        setting: Setting<T>,
        note: impl FnOnce(&Arc<T>, &Slot<T>),
    ) -> Result<Leftover<T>, NotNow<T>> {
        let ttl = self.draw_ttl(setting.ttl);
        let now = self.now();
        let mut state = self.state.lock();
        if let LeaseState::Exclusive { .. } = state.lease {
            let attempt = state.open_attempt();
            let wait = Wait {
                attempt,
                look_again_at: FOREVER,
                awaits: Awaits::Readers,
                origin: state.lease.origin().unwrap_or(0),
                seen: self.slot.record(&state.key).generation,
            };
            return Err(NotNow { setting, wait });
        }
        let Setting { value, ttl: own_ttl, age } = setting;
        let mut origin = state.next_origin();
        if age.is_some_and(|age| age > 0) {
            // It was made before: no request that asks for a later build accepts it.
            origin = 0;
        }
        if age.is_none() && state.displace() {
            self.mirror_lease(&state);
        }
        let generation = self.slot.record(&state.key).generation + 1;
        let record = Record { initial_age: age.unwrap_or(0), ..Record::fresh(generation, now, ttl) };
        self.note_publication(&mut state, matches!(own_ttl, Ttl::Own(_)));
        let aftermath = self.make_visible(&mut state, value, record, origin, note);
        Ok(aftermath.finish(state))
    }

    pub(crate) fn invalidate(&self) {
        let now = self.now();
        self.invalidate_if(now, |_| true);
    }

    /// Only if the cell still holds `seen`, and it is not declared stale. Returns whether it was.
    pub(crate) fn invalidate_if_current(&self, seen: &Arc<T>) -> bool {
        let now = self.now();
        self.invalidate_if(now, |state| match state.lease {
            // Perhaps it is put back.
            LeaseState::Exclusive { address, declared_stale, .. } => {
                address == address_of(Some(seen)) && declared_stale == FOREVER
            }
            _ => self.slot.holds(&state.key, seen) && !self.slot.record(&state.key).is_declared_stale(),
        })
    }

    fn invalidate_if(&self, now: u64, condition: impl FnOnce(&State<T>) -> bool) -> bool {
        let mut state = self.state.lock();
        if !condition(&state) {
            return false;
        }
        state.invalidated = state.origins;
        if let LeaseState::Exclusive { declared_stale, .. } = &mut state.lease {
            *declared_stale = now.min(*declared_stale);
        }
        if !self.slot.is_empty(&state.key) {
            let record = self.slot.record(&state.key).lapsed(now);
            let quiet_end = self.quiet_end(&state, record);
            self.slot.amend(&mut state.key, record, quiet_end);
        }
        state.listeners.note(&Noted::Invalidated);
        // No value becomes available.
        let notified = state.listeners.notified(false);
        drop(state);
        notified.follow();
        notified.notify();
        true
    }

    /// Something that the value was made from has changed. Declares the value stale if it `is_outdated`, which is asked under the
    /// lock, and runs no user code. That fences no build: what a build is made from is looked at when it is published. `retries`:
    /// ends a retry pause. Returns the listeners that are to follow and to be notified: if something has changed here, or
    /// `in_any_case`.
    pub(crate) fn source_changed(
        &self,
        retries: bool,
        in_any_case: bool,
        is_outdated: impl FnOnce() -> bool,
    ) -> Option<Notified<T>> {
        let now = self.now();
        let mut state = self.state.lock();
        let mut has_changed = in_any_case;
        if retries
            && let Some(failure) = &mut state.failure
            && failure.retry_at != 0
        {
            failure.retry_at = 0;
            self.mirror(&mut state);
            has_changed = true;
        }
        let record = self.slot.record(&state.key);
        if !self.slot.is_empty(&state.key) && !record.is_declared_stale() && is_outdated() {
            let record = record.lapsed(now);
            let quiet_end = self.quiet_end(&state, record);
            self.slot.amend(&mut state.key, record, quiet_end);
            state.listeners.note(&Noted::Invalidated);
            has_changed = true;
        }
        has_changed.then(|| state.listeners.notified(false))
    }

    /// Whether the value, published with this record, is out of date for a reason of its own: it was invalidated, or its time to
    /// live by the policy is over.
    pub(crate) fn is_out_of_date_itself(&self, record: &Record) -> bool {
        let own_end =
            Record { ttl: self.policy.default_ttl(), declared_stale: FOREVER, ..*record }.fresh_end();
        let now = self.now();
        let state = self.state.lock();
        now >= own_end || state.origin <= state.invalidated
    }

    /// The error of the latest build, while a retry pause runs after it.
    pub(crate) fn paused_by(&self) -> Option<SharedError> {
        let now = self.now();
        let state = self.state.lock();
        let failure = state.failure.as_ref().filter(|failure| now < failure.retry_at)?;
        // After a panic there is a pause only beside a value.
        (!failure.is_panic || !self.slot.is_empty(&state.key)).then(|| failure.error.clone())
    }

    /// Takes the value away. `note` is called under the lock with the value that is there.
    pub(crate) fn clear(&self, note: impl FnOnce(Option<&Arc<T>>)) -> Option<Arc<T>> {
        self.clear_and(note, |_| None)
    }

    /// Only if the cell still holds `seen`. Returns whether it did.
    pub(crate) fn clear_if_current(&self, seen: &Arc<T>) -> bool {
        let state = self.state.lock();
        if !self.slot.holds(&state.key, seen) {
            return false;
        }
        drop(self.clear_locked(state, |_| (), |_| None));
        true
    }

    /// As [`clear`](Machine::clear), and forgets failures and statistics.
    pub(crate) fn reset(&self, note: impl FnOnce(Option<&Arc<T>>)) -> Option<Arc<T>> {
        self.clear_and(note, |state| {
            self.counters.reset();
            state.failure.take()
        })
    }

    fn clear_and(
        &self,
        note: impl FnOnce(Option<&Arc<T>>),
        forget: impl FnOnce(&mut State<T>) -> Option<Box<Failure>>,
    ) -> Option<Arc<T>> {
        self.clear_locked(self.state.lock(), note, forget)
    }

    fn clear_locked(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        note: impl FnOnce(Option<&Arc<T>>),
        forget: impl FnOnce(&mut State<T>) -> Option<Box<Failure>>,
    ) -> Option<Arc<T>> {
        note(self.slot.load().as_ref());
        let record = self.slot.record(&state.key);
        let cleared = self.slot.replace(&mut state.key, None, record, 0);
        let failure = forget(&mut state);
        // The waiters of a build that has lost its lease look again, and one of them builds.
        let settle = if state.displace() { state.take_waiters(Outcome::Abandoned) } else { None };
        self.mirror(&mut state);
        state.listeners.note(&Noted::Cleared);
        drop(Aftermath::settle(settle).finish(state));
        drop(failure);
        cleared
    }

    /// The build that runs can no longer be published. Returns whether one did run.
    pub(crate) fn revoke(&self) -> bool {
        let mut state = self.state.lock();
        if !matches!(state.lease, LeaseState::Building { .. }) {
            return false;
        }
        state.displace();
        let settle = state.take_waiters(Outcome::Abandoned);
        self.mirror(&mut state);
        drop(Aftermath::settle(settle).finish(state));
        true
    }
}

impl<T, C: Clock> Machine<T, C> {
    /// The outcome for a waiter that looks now. It may have seen a newer value since the outcome was stored, and must not go
    /// back (G3). The newest value was published while it waited as well.
    pub(crate) fn up_to_date(&self, outcome: &Outcome<T>) -> Outcome<T> {
        let Outcome::Published(publication) = outcome else { return outcome.clone() };
        match self.newest_since(publication.record.generation) {
            Newest::Same => outcome.clone(),
            // Its origin is known under the lock only, which a thousand waiters must not queue for.
            Newest::Later(value, record) => Outcome::Published(Publication { value, record, origin: None }),
            Newest::None => Outcome::Abandoned,
        }
    }

    /// The number of the build or `set` that made the value of this generation, if it is still there.
    pub(super) fn origin_of(&self, generation: u64) -> Option<u64> {
        let state = self.state.lock();
        (self.slot.record(&state.key).generation == generation).then_some(state.origin)
    }

    /// What was published after the value of this generation, and may be handed to a caller that waits since then.
    pub(crate) fn newest_since(&self, generation: u64) -> Newest<T> {
        let Reading { guard, record, .. } = self.slot.read();
        if record.generation <= generation {
            return Newest::Same;
        }
        match into_arc(guard).filter(|_| self.was_servable(&record)) {
            Some(value) => Newest::Later(value, record),
            None => Newest::None,
        }
    }
}

/// See [`Machine::newest_since`].
pub(crate) enum Newest<T> {
    /// There is no later one.
    Same,
    Later(Arc<T>, Record),
    /// It was taken away again, or had expired before it was restored.
    None,
}
