//! The state machine: who may build, what becomes of the result, and who is told.
//!
//! # States
//!
//! The cell is described by three things that change under one lock, [`State`], and are mirrored into the
//! [`Slot`] for those who read without it:
//!
//! * the value: none, or one with its [`Record`]; by the clock it is fresh, stale or expired;
//! * the lease: free, or held by one build since some tick;
//! * the latest failure: none, or a count, a retry pause and perhaps an error to show.
//!
//! | event | value | lease | failure | waiters |
//! |---|---|---|---|---|
//! | elect ([`Machine::decide`]) | as it is | free to held (or held too long: to the next holder) | | |
//! | publish, renew | replaced / extended | released | forgotten | handed the value |
//! | ... after `invalidate` | replaced, as stale | released | forgotten | handed the value |
//! | ... after `set` or `clear` | as it is | released | as it is | look up again |
//! | ... after being superseded | as it is | as it is | as it is | go on waiting |
//! | fail | as it is | released | counted, pause begins | share the error |
//! | panic | as it is | released | counted, pause begins | look up again |
//! | abandon | as it is | released | as it is | look up again |
//! | `set` | replaced | as it is | forgotten | handed the value |
//! | `invalidate` | declared stale | as it is | as it is | go on waiting |
//! | `clear` | taken away | as it is | as it is | go on waiting |
//!
//! # Rules
//!
//! * The fence (G4) is two counters. A [`Ticket`] remembers both from the moment of its election, and its
//!   result is weighed against them when it comes: `invalidations` moved on: published as stale;
//!   `displacements` (sets and clears) moved on: not published.
//! * A result is published and the lease released in one critical section: nobody sees the one without the other
//!   (G9).
//! * No user code runs under the lock (G9): the clock is asked before, and what may be dropped (old values,
//!   errors) and who is to be woken leaves the section in an [`Aftermath`].
//! * A caller remembers the generation from before it first looked at the clock. If that has moved when it has
//!   the lock, somebody has published meanwhile, and it takes that value instead of building again (G1).

use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};

use crate::clock::{Clock, FOREVER, nanos};
use crate::contain::contain;
use crate::error::SharedError;
use crate::policy::{Freshness, Policy};
use crate::signal::{Bell, Signal};
use crate::stats::Counters;
use crate::sync::{Arc, AtomicBool, Mutex, MutexGuard, Ordering, SlotGuard, const_fn, into_arc};

use crate::trace::{Beginning, Cause, Ending};

use super::attempt::{Attempt, Outcome, Publication};
use super::slot::{Key, Reading, Record, Slot};

/// What the lock guards. What readers need of it is mirrored in the [`Slot`].
pub(crate) struct State<T> {
    /// Opens the slot to whoever has the lock.
    key: Key,
    lease: Option<Grant>,
    /// Numbers builds and `set`s, in the order in which they began.
    origins: u64,
    /// Where the value in the slot comes from.
    origin: u64,
    invalidations: u64,
    displacements: u64,
    /// In a box, as it is rare.
    failure: Option<Box<Failure>>,
    /// Made by the first waiter; taken by whoever ends the wait.
    attempt: Option<Arc<Attempt<T>>>,
    /// Those who look after the cell: while there is one, readers leave building to it as long as they can be served.
    keepers: Vec<Bell>,
}

/// The lease, as the cell sees it.
struct Grant {
    origin: u64,
    supersede_at: u64,
    awaits: Awaits,
}

/// For whom the holder of the lease waits, if it does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaits {
    /// It builds.
    Nobody,
    /// It has taken the value out of the slot, to put it back or another one in its place, and waits for all readers.
    Readers,
    /// Its build is over, and it may wait for the readers of what it has replaced.
    ReadersOfReplaced,
}

/// Failures since the latest publication.
pub(crate) struct Failure {
    count: u32,
    /// Nobody is elected before this tick.
    retry_at: u64,
    /// `None` after a panic.
    error: Option<SharedError>,
}

impl Grant {
    fn withholds(&self) -> bool {
        self.awaits == Awaits::Readers
    }
}

impl<T> State<T> {
    const fn new() -> Self {
        Self {
            key: Key::new(),
            lease: None,
            origins: 0,
            origin: 0,
            invalidations: 0,
            displacements: 0,
            failure: None,
            attempt: None,
            keepers: Vec::new(),
        }
    }

    /// Those who are to hear of a change, when the lock has been released.
    fn keepers(&self) -> Rung {
        Rung(self.keepers.iter().map(|bell| Arc::clone(bell.signal())).collect())
    }

    fn next_origin(&mut self) -> u64 {
        self.origins += 1;
        self.origins
    }

    fn is_held_by(&self, ticket: &Ticket<T>) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.origin == ticket.origin)
    }

    /// Releases the lease, unless it has passed to somebody else. Returns whether it was released.
    fn release(&mut self, ticket: &Ticket<T>) -> bool {
        self.lease.take_if(|lease| lease.origin == ticket.origin).is_some()
    }

    /// When the running retry pause ends, if one runs.
    fn pause(&self, now: u64) -> Option<u64> {
        self.failure.as_ref().map(|failure| failure.retry_at).filter(|retry_at| now < *retry_at)
    }
}

/// The lease, as its holder sees it.
pub(crate) struct Ticket<T> {
    origin: u64,
    began: u64,
    /// What its caller wants.
    demand: Demand,
    invalidations: u64,
    displacements: u64,
    /// The build has had its result; the lease is only held on to.
    concluded: bool,
    pub(crate) beginning: Beginning,
    pub(crate) previous: Option<Arc<T>>,
}

impl<T> Ticket<T> {
    pub(crate) fn is_concluded(&self) -> bool {
        self.concluded
    }
}

/// What a build's result has come to.
pub(crate) struct Concluded<T> {
    /// What the build's caller gets.
    pub(crate) served: Arc<T>,
    pub(crate) ending: Ending,
    /// How long the build took.
    pub(crate) nanos: u64,
    pub(crate) leftover: Leftover<T>,
}

/// What is left of a build that has ended without a value.
#[must_use]
pub(crate) struct GivenBack<T> {
    /// What it had withheld, and is not put back because it was cleared meanwhile.
    pub(crate) rejected: Option<Arc<T>>,
    /// How long it took.
    pub(crate) nanos: u64,
}

/// What is to be dropped, without a lock and last of all: both are user code and may panic.
#[must_use]
pub(crate) struct Leftover<T> {
    /// A value that is not in the cell any more, or never was.
    pub(crate) replaced: Option<Arc<T>>,
    _failure: Option<Box<Failure>>,
}

/// A value that the holder of the lease has taken out of the slot.
pub(crate) struct Withheld<T> {
    pub(crate) value: Option<Arc<T>>,
    pub(crate) place: Place,
}

/// What belongs to a withheld value, to put it back.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    record: Record,
    supersede_at: u64,
    displacements: u64,
}

/// A place among those who wait.
pub(crate) struct Wait<T> {
    pub(crate) attempt: Arc<Attempt<T>>,
    /// When the build that is waited for may be superseded: then it is time to look up again.
    pub(crate) look_again_at: u64,
    pub(crate) awaits: Awaits,
}

/// What the caller wants.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// What may be served, or the error of the latest build while a retry pause runs.
    Servable,
    /// What may be served; a retry pause without a value to serve does not keep the caller from building.
    Value,
    /// A fresh value.
    Fresh,
    /// A value whose build began after the build or `set` of this number.
    After(u64),
}

/// What [`Machine::decide`] decided.
pub(crate) enum Decision<T> {
    Fresh(Arc<T>),
    Stale(Arc<T>),
    Elected(Ticket<T>),
    Pending(Wait<T>),
    Failed(SharedError),
}

/// Those who look after the cell, to be told of a change without a lock.
#[must_use]
struct Rung(Vec<Arc<Signal>>);

impl Rung {
    fn ring(self) {
        for signal in self.0 {
            signal.ring();
        }
    }
}

/// What is left to do when the lock has been released.
#[must_use]
struct Aftermath<T> {
    settle: Option<(Arc<Attempt<T>>, Outcome<T>)>,
    leftover: Leftover<T>,
}

impl<T> Aftermath<T> {
    fn settle(settle: Option<(Arc<Attempt<T>>, Outcome<T>)>) -> Self {
        Self { settle, leftover: Leftover { replaced: None, _failure: None } }
    }

    /// Releases the lock and wakes those who wait. What is left is for the caller to drop, when it has nothing more to
    /// do.
    fn finish(self, state: MutexGuard<'_, State<T>>) -> Leftover<T> {
        let keepers = state.keepers();
        drop(state);
        if let Some((attempt, outcome)) = self.settle {
            attempt.settle(outcome);
        }
        keepers.ring();
        self.leftover
    }
}

/// See the module's documentation.
// On a cache line of its own, and in this order: what reads load, what nobody writes, and what they leave alone.
#[repr(C, align(64))]
#[allow(unreachable_pub, missing_debug_implementations)] // see `Home`
pub struct Machine<T, C> {
    slot: Slot<T>,
    pub(crate) policy: Policy,
    pub(crate) clock: C,
    state: Mutex<State<T>>,
    pub(crate) counters: Counters,
    pub(crate) name: Option<&'static str>,
    /// Whether the lease is held; for those who ask without the lock.
    refreshing: AtomicBool,
}

// A panic in a build leaves the machine as it was; that is what leases are for. What a value looks like after a
// panic that happened while somebody used it is the value's own affair.
impl<T: RefUnwindSafe, C: UnwindSafe> UnwindSafe for Machine<T, C> {}
impl<T: RefUnwindSafe, C: RefUnwindSafe> RefUnwindSafe for Machine<T, C> {}

impl<T, C> Machine<T, C> {
    const_fn! {
        pub(crate) const fn new(policy: Policy, clock: C) -> Self {
            Self {
                slot: Slot::empty(),
                state: Mutex::new(State::new()),
                refreshing: AtomicBool::new(false),
                counters: Counters::new(),
                name: None,
                policy,
                clock,
            }
        }
    }

    pub(crate) fn into_inner(self) -> Option<Arc<T>> {
        self.slot.into_inner()
    }

    pub(crate) fn is_refreshing(&self) -> bool {
        // Acquire: pairs with the Release in `mirror`. Who sees the end of a build sees its publication.
        self.refreshing.load(Ordering::Acquire)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.slot.read().record.generation
    }

    /// Where the next build will be counted from: see [`Demand::After`].
    pub(crate) fn latest_origin(&self) -> u64 {
        self.state.lock().origins
    }

    /// Changes with every change of the state. See [`Slot::sequence`].
    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        self.slot.sequence()
    }

    /// The sequence and the [`quiet_end`](Slot::quiet_end) at which `value` is what the cell holds, if it is.
    pub(crate) fn place_of(&self, value: &Arc<T>) -> Option<(u64, u64)> {
        let sequence = self.slot.sequence();
        let quiet_end = self.slot.quiet_end();
        // As long as the caller has the value, no other one can have its address.
        let is_held = self.slot.load().as_ref().is_some_and(|held| Arc::ptr_eq(held, value));
        (is_held && sequence.is_multiple_of(2) && self.slot.sequence() == sequence)
            .then_some((sequence, quiet_end))
    }

    pub(crate) fn has_value(&self) -> bool {
        self.slot.load().is_some()
    }
}

/// Whatever keeps a machine alive: a borrow of it or of its cell, or a shared cell.
// Nameable nowhere outside, but known to `SharedCell`, as the machine is by it.
#[allow(unreachable_pub)]
pub trait Home {
    type Value;
    type Clock: Clock;
    fn machine(&self) -> &Machine<Self::Value, Self::Clock>;
}

impl<T, C: Clock> Home for &Machine<T, C> {
    type Value = T;
    type Clock = C;
    fn machine(&self) -> &Machine<T, C> {
        self
    }
}

/// Out of the way of those who keep it.
#[cold]
#[inline(never)]
fn let_go<R>(loaded: R) {
    drop(loaded);
}

/// Reads: no lock, no write to shared memory.
impl<T, C: Clock> Machine<T, C> {
    /// What may be served without another question, as an owned reference.
    #[inline]
    pub(crate) fn serve(&self) -> Option<Arc<T>> {
        self.serve_with(Slot::load_full)?
    }

    /// What may be served without another question, as a borrow. The guard may turn out to be empty.
    #[inline]
    pub(crate) fn serve_guard(&self) -> Option<SlotGuard<T>> {
        self.serve_with(Slot::load)
    }

    #[inline(always)]
    #[allow(clippy::inline_always)] // a call would be 20 instructions more: `cargo run --release -p instructions`
    fn serve_with<R>(&self, load: impl FnOnce(&Slot<T>) -> R) -> Option<R> {
        // Before the tick and the value: as long as it is even and stands still, they belong together. (A tick alone would
        // not tell: several values may have the same one, and one between them may have been stale from the beginning.)
        let sequence = self.slot.sequence();
        if !self.is_before(self.slot.quiet_end()) {
            return None;
        }
        let loaded = load(&self.slot);
        // Never, if it was odd.
        if self.slot.sequence() == sequence & !1 {
            Some(loaded)
        } else {
            let_go(loaded);
            None
        }
    }

    /// Whether it is still before `tick`.
    #[inline]
    pub(crate) fn is_before(&self, tick: u64) -> bool {
        if tick == FOREVER {
            return true;
        }
        let coarse = self.clock.coarse_now().0;
        if coarse.saturating_add(nanos(self.clock.coarse_lag())) < tick {
            return true;
        }
        coarse < tick && self.is_exactly_before(tick)
    }

    #[cold]
    #[inline(never)]
    fn is_exactly_before(&self, tick: u64) -> bool {
        self.now() < tick
    }

    /// What may be served now, stale or not.
    pub(crate) fn servable(&self) -> Option<SlotGuard<T>> {
        if let Some(guard) = self.serve_guard() {
            return guard.is_some().then_some(guard);
        }
        let Reading { guard, record, .. } = self.slot.read();
        let stale = || self.is_before(self.policy.stale_end(record.lapse));
        (guard.is_some() && (self.is_before(record.fresh_end) || stale())).then_some(guard)
    }

    pub(crate) fn freshness(&self) -> Freshness {
        let reading = self.slot.read();
        self.classify(&reading, |tick| self.is_before(tick))
    }

    /// The value with its record, its age and its freshness.
    pub(crate) fn snapshot(&self) -> Option<(Arc<T>, Record, u64, Freshness)> {
        let reading = self.slot.read();
        let now = self.now();
        let freshness = self.classify(&reading, |tick| now < tick);
        let value = into_arc(reading.guard)?;
        Some((value, reading.record, now.saturating_sub(reading.record.published), freshness))
    }

    fn classify(&self, reading: &Reading<T>, is_before: impl Fn(u64) -> bool) -> Freshness {
        if reading.guard.is_none() {
            Freshness::Empty
        } else if is_before(reading.record.fresh_end) {
            Freshness::Fresh
        } else if is_before(self.policy.stale_end(reading.record.lapse)) || is_before(reading.quiet_end) {
            Freshness::Stale
        } else {
            Freshness::Expired
        }
    }

    /// Never [`FOREVER`], so that it is before what is.
    pub(crate) fn now(&self) -> u64 {
        self.clock.now().0.min(FOREVER - 1)
    }
}

/// Elections.
impl<T, C: Clock> Machine<T, C> {
    /// Looks the value up: without the lock if it can be served, else by election.
    pub(crate) fn lookup(&self, demand: Demand) -> Decision<T> {
        // Before the clock: see the rule on generations (G1).
        let Reading { guard, record, quiet_end } = self.slot.read();
        let seen = record.generation;
        if guard.is_some() && matches!(demand, Demand::Servable | Demand::Value | Demand::Fresh) {
            if self.is_before(record.fresh_end) {
                return into_arc(guard).map_or_else(|| unreachable!("looked at before"), Decision::Fresh);
            }
            if demand != Demand::Fresh && self.is_before(quiet_end) {
                return into_arc(guard).map_or_else(|| unreachable!("looked at before"), Decision::Stale);
            }
        }
        let now = self.now();
        let is_servable = guard.is_some() && now < self.policy.stale_end(record.lapse);
        // It may be the last reference, and a drop is user code: not between an election and its lease.
        drop(guard);
        if is_servable && matches!(demand, Demand::Servable | Demand::Value) {
            // Nobody who has something to serve waits for the lock (G2). It is held for a few instructions by somebody
            // who elects, publishes or invalidates; the next read finds out what came of it.
            if let Some(state) = self.state.try_lock() {
                return self.decide(state, demand, seen, now);
            }
            // What is there by now may be another value, and fresh.
            match self.snapshot() {
                Some((value, .., Freshness::Fresh)) => return Decision::Fresh(value),
                Some((value, .., Freshness::Stale)) => return Decision::Stale(value),
                _ => {}
            }
        }
        self.decide(self.state.lock(), demand, seen, now)
    }

    /// The decision table of the contract, under the lock.
    fn decide(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        demand: Demand,
        seen: u64,
        now: u64,
    ) -> Decision<T> {
        let record = self.slot.record(&state.key);
        let held = self.slot.load_full();
        if let Some(value) = &held {
            let fresh = now < record.fresh_end;
            let arrived = record.generation != seen;
            let serve = match demand {
                Demand::Servable | Demand::Value => arrived || now < self.quiet_end(&state, record),
                Demand::Fresh => fresh || (arrived && record.fresh_end != 0),
                Demand::After(origin) => state.origin > origin,
            };
            if serve {
                let value = Arc::clone(value);
                return if fresh { Decision::Fresh(value) } else { Decision::Stale(value) };
            }
        }
        if let Some(lease) = &state.lease {
            let look_again_at = lease.supersede_at;
            if now < look_again_at {
                let awaits = lease.awaits;
                let attempt = Arc::clone(state.attempt.get_or_insert_with(Attempt::open));
                return Decision::Pending(Wait { attempt, look_again_at, awaits });
            }
        }
        if demand == Demand::Servable
            && state.pause(now).is_some()
            && let Some(error) = state.failure.as_ref().and_then(|failure| failure.error.clone())
        {
            return Decision::Failed(error);
        }
        // Elected.
        let supersedes = state.lease.is_some();
        if supersedes {
            self.counters.superseded.count_locked();
        }
        let cause = match &held {
            None => Cause::First,
            Some(_) if now < record.fresh_end => Cause::Forced,
            Some(_) if record.fresh_end == 0 => Cause::Invalidated,
            Some(_) => Cause::Expired,
        };
        let origin = state.next_origin();
        state.lease =
            Some(Grant { origin, supersede_at: self.policy.supersede_at(now), awaits: Awaits::Nobody });
        self.mirror(&mut state);
        self.counters.builds.count_locked();
        Decision::Elected(Ticket {
            origin,
            began: now,
            demand,
            invalidations: state.invalidations,
            displacements: state.displacements,
            concluded: false,
            beginning: Beginning { cause, generation: record.generation + 1, supersedes },
            previous: held,
        })
    }

    /// Mirrors the state into what is read without the lock.
    fn mirror(&self, state: &mut State<T>) {
        let quiet_end = if self.slot.is_empty(&state.key) {
            0
        } else {
            self.quiet_end(state, self.slot.record(&state.key))
        };
        if self.slot.quiet_end() != quiet_end {
            self.slot.set_quiet_end(&mut state.key, quiet_end);
        }
        // Release: pairs with the Acquire in `is_refreshing`.
        self.refreshing.store(state.lease.is_some(), Ordering::Release);
    }

    /// How long a value with this record is served without another question: as long as it is fresh, or somebody
    /// builds or looks after the cell, or a retry pause runs. See [`Slot::quiet_end`].
    fn quiet_end(&self, state: &State<T>, record: Record) -> u64 {
        let build = state
            .lease
            .as_ref()
            .map_or(0, |lease| self.policy.stale_end(record.lapse).min(lease.supersede_at));
        let pause = state
            .failure
            .as_ref()
            .map_or(0, |failure| self.policy.pause_end(record.lapse).min(failure.retry_at));
        // One that has been stopped is still there if it did not find the cell, which has been taken out of its `Arc`.
        let is_kept = state.keepers.iter().any(|bell| !bell.signal().is_stopped());
        let kept = if is_kept { self.policy.stale_end(record.lapse) } else { 0 };
        record.fresh_end.max(build).max(pause).max(kept)
    }
}

/// How builds end.
impl<T, C: Clock> Machine<T, C> {
    /// Publishes the result of a build, as far as the fence allows.
    ///
    /// Unless it is to `release` the lease, that is held until [`give_back`](Machine::give_back). `note` is called
    /// under the lock with the value that becomes visible and the slot, which still holds the one that it replaces.
    pub(crate) fn conclude(
        &self,
        ticket: &mut Ticket<T>,
        value: Arc<T>,
        ttl: Option<u64>,
        release: bool,
        note: impl FnOnce(&Arc<T>, &Slot<T>),
    ) -> Concluded<T> {
        let ttl = self.draw_ttl(ttl);
        let now = self.now();
        ticket.concluded = true;
        let mut state = self.state.lock();
        let holds = state.is_held_by(ticket);
        let nanos = now.saturating_sub(ticket.began);
        self.counters.build_took(nanos);
        let (ending, instead, aftermath) = if !holds {
            // Superseded.
            let record = self.slot.record(&state.key);
            let meets_demand = match ticket.demand {
                Demand::Servable | Demand::Value => {
                    now < self.policy.stale_end(record.lapse).max(self.quiet_end(&state, record))
                }
                Demand::Fresh => now < record.fresh_end,
                Demand::After(origin) => state.origin > origin,
            };
            let instead = if meets_demand { self.slot.load_full() } else { None };
            (Ending::TooLate, instead, Aftermath::settle(None))
        } else if state.displacements != ticket.displacements {
            self.counters.fenced.count_locked();
            let settle = Self::take_waiters(&mut state, Outcome::Abandoned);
            (Ending::Displaced, self.slot.load_full(), Aftermath::settle(settle))
        } else {
            let generation = self.slot.record(&state.key).generation + 1;
            let (ending, record) = if state.invalidations == ticket.invalidations {
                (Ending::Published, Record::fresh(generation, now, ttl))
            } else {
                self.counters.fenced.count_locked();
                (Ending::PublishedStale, Record::stale(generation, now))
            };
            (ending, None, self.make_visible(&mut state, Arc::clone(&value), record, ticket.origin, note))
        };
        if holds && release {
            state.lease = None;
        } else if let Some(lease) = state.lease.as_mut().filter(|_| holds) {
            // The build is over: nobody takes its place.
            (lease.awaits, lease.supersede_at) = (Awaits::ReadersOfReplaced, FOREVER);
        }
        self.mirror(&mut state);
        let mut leftover = aftermath.finish(state);
        match instead {
            Some(served) => {
                leftover.replaced = Some(value);
                Concluded { served, ending, nanos, leftover }
            }
            None => Concluded { served: value, ending, nanos, leftover },
        }
    }

    /// The build failed with `error`, and puts back what it has withheld, which is asked for after the clock: until then it
    /// is where its owner looks for it if the clock panics.
    pub(crate) fn fail(
        &self,
        ticket: &mut Ticket<T>,
        error: SharedError,
        withheld: impl FnOnce() -> Option<Withheld<T>>,
    ) -> GivenBack<T> {
        let now = self.now();
        let draw = self.draw();
        let withheld = withheld();
        ticket.concluded = true;
        let mut state = self.state.lock();
        let nanos = now.saturating_sub(ticket.began);
        self.counters.failed.count_locked();
        self.counters.build_took(nanos);
        let rejected = withheld.and_then(|withheld| self.restore(&mut state, withheld));
        let aftermath = if state.release(ticket) {
            let outcome = Outcome::Failed(error.clone());
            self.record_failure(&mut state, ticket, Some(error), outcome, now, draw)
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
        ticket: Ticket<T>,
        panicked: bool,
        withheld: Option<Withheld<T>>,
    ) -> GivenBack<T> {
        // Called from a destructor, perhaps because the clock has panicked: the lease must come back all the same. The
        // panic has been reported by the panic hook.
        let now = catch_unwind(AssertUnwindSafe(|| self.now())).unwrap_or(ticket.began);
        let draw = self.draw();
        let mut state = self.state.lock();
        if !ticket.concluded {
            if panicked { &self.counters.panicked } else { &self.counters.abandoned }.count_locked();
        }
        let rejected = withheld.and_then(|withheld| self.restore(&mut state, withheld));
        let aftermath = if !state.release(&ticket) {
            Aftermath::settle(None)
        } else if panicked && !ticket.concluded {
            self.record_failure(&mut state, &ticket, None, Outcome::Abandoned, now, draw)
        } else {
            Aftermath::settle(Self::take_waiters(&mut state, Outcome::Abandoned))
        };
        self.mirror(&mut state);
        let leftover = aftermath.finish(state);
        let nanos = now.saturating_sub(ticket.began);
        // Their drops are user code, and the thread may be panicking already.
        contain(|| drop(leftover));
        contain(|| drop(ticket));
        GivenBack { rejected, nanos }
    }

    /// What the callers of a build that failed get instead of its error, if the policy allows it.
    pub(crate) fn instead_of_error(&self) -> Option<Arc<T>> {
        let Reading { guard, record, .. } = self.slot.read();
        if self.is_before(record.fresh_end) || self.is_before(self.policy.error_end(record.lapse)) {
            into_arc(guard)
        } else {
            None
        }
    }

    /// Makes a value visible to readers and takes the waiters out, who will get it too.
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
        let lapsed = record.fresh_end == 0;
        let settle = state.attempt.take().map(|attempt| {
            let publication =
                Publication { value: Arc::clone(&value), generation: record.generation, origin, lapsed };
            (attempt, Outcome::Published(publication))
        });
        let quiet_end = self.quiet_end(state, record);
        note(&value, &self.slot);
        let replaced = if self.slot.holds(&state.key, &value) {
            self.slot.amend(&mut state.key, record, quiet_end);
            Some(value)
        } else {
            self.slot.replace(&mut state.key, Some(value), record, quiet_end)
        };
        Aftermath { settle, leftover: Leftover { replaced, _failure: failure } }
    }

    fn record_failure(
        &self,
        state: &mut State<T>,
        ticket: &Ticket<T>,
        error: Option<SharedError>,
        outcome: Outcome<T>,
        now: u64,
        draw: u64,
    ) -> Aftermath<T> {
        let settle = Self::take_waiters(state, outcome);
        if state.origin > ticket.origin {
            // A value was set meanwhile: it is not the one that could not be replaced.
            return Aftermath::settle(settle);
        }
        let count = state.failure.as_ref().map_or(0, |failure| failure.count).saturating_add(1);
        // Never, without a pause: there are callers who looked at the clock before now.
        let pause = self.policy.retry_pause(count, draw);
        let retry_at = if pause == 0 { 0 } else { now.saturating_add(pause) };
        let failure = state.failure.replace(Box::new(Failure { count, retry_at, error }));
        Aftermath { settle, leftover: Leftover { replaced: None, _failure: failure } }
    }

    fn take_waiters(state: &mut State<T>, outcome: Outcome<T>) -> Option<(Arc<Attempt<T>>, Outcome<T>)> {
        state.attempt.take().map(|attempt| (attempt, outcome))
    }

    /// A random number for the jitter; 0 without one.
    fn draw(&self) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        // Each `RandomState` hashes with keys of its own, which is all the randomness that jitter needs.
        if self.policy.has_jitter() { RandomState::new().hash_one(0) } else { 0 }
    }

    fn draw_ttl(&self, ttl: Option<u64>) -> u64 {
        self.policy.jittered_ttl(ttl.unwrap_or(self.policy.default_ttl()), self.draw())
    }
}

/// A value that cannot be set yet, and a place to wait for the end of the build that withholds the old one.
pub(crate) struct NotNow<T> {
    pub(crate) value: Arc<T>,
    pub(crate) wait: Wait<T>,
}

/// Writes from outside.
impl<T, C: Clock> Machine<T, C> {
    /// Publishes `value` ahead of any build and returns what it replaces. See [`conclude`](Machine::conclude) for
    /// `note`.
    ///
    /// # Errors
    ///
    /// If a build withholds the old value.
    pub(crate) fn set(
        &self,
        value: Arc<T>,
        note: impl FnOnce(&Arc<T>, &Slot<T>),
    ) -> Result<Leftover<T>, NotNow<T>> {
        let ttl = self.draw_ttl(None);
        let now = self.now();
        let mut state = self.state.lock();
        if state.lease.as_ref().is_some_and(Grant::withholds) {
            let attempt = Arc::clone(state.attempt.get_or_insert_with(Attempt::open));
            return Err(NotNow {
                value,
                wait: Wait { attempt, look_again_at: FOREVER, awaits: Awaits::Readers },
            });
        }
        state.displacements += 1;
        let origin = state.next_origin();
        let record = Record::fresh(self.slot.record(&state.key).generation + 1, now, ttl);
        let aftermath = self.make_visible(&mut state, value, record, origin, note);
        Ok(aftermath.finish(state))
    }

    pub(crate) fn invalidate(&self) {
        let now = self.now();
        let mut state = self.state.lock();
        state.invalidations += 1;
        if self.slot.load().is_some() {
            let record = self.slot.record(&state.key).lapsed(now);
            let quiet_end = self.quiet_end(&state, record);
            self.slot.amend(&mut state.key, record, quiet_end);
        }
        drop(Aftermath::settle(None).finish(state));
    }

    /// Takes the value away. `note` is called under the lock with the value that is there.
    pub(crate) fn clear(&self, note: impl FnOnce(Option<&Arc<T>>)) -> Option<Arc<T>> {
        let mut state = self.state.lock();
        state.displacements += 1;
        note(self.slot.load().as_ref());
        let record = self.slot.record(&state.key);
        let cleared = self.slot.replace(&mut state.key, None, record, 0);
        drop(Aftermath::settle(None).finish(state));
        cleared
    }
}

/// A source whose values live for less than this says "do not keep it", and is not asked in a loop: those who look after
/// the cell replace such a value after [`UNKEPT_PAUSE`].
const SHORTEST_LIFE: u64 = 1_000_000;
const UNKEPT_PAUSE: u64 = 100_000_000;

/// What somebody who looks after the cell is to do.
pub(crate) enum Plan {
    /// Build, unless a value comes whose build or `set` began after that of this number.
    Build(u64),
    /// Nothing before this tick, or the next change.
    Wait(u64),
}

/// Those who look after the cell.
impl<T, C: Clock> Machine<T, C> {
    /// From now on `signal` is rung at each change, and readers leave building to whoever it wakes as long as they can be
    /// served.
    pub(crate) fn attach(&self, signal: Arc<Signal>) {
        let bell = Bell::new(signal);
        let mut state = self.state.lock();
        state.keepers.push(bell);
        self.mirror(&mut state);
    }

    pub(crate) fn detach(&self, signal: &Arc<Signal>) {
        let mut state = self.state.lock();
        let position = state.keepers.iter().position(|bell| Arc::ptr_eq(bell.signal(), signal));
        let bell = position.map(|position| state.keepers.swap_remove(position));
        self.mirror(&mut state);
        drop(state);
        // It rings, which must not be under the lock.
        drop(bell);
    }

    /// What is to be done `now`, so that the value is replaced `ahead` of its end: but not before half of its life.
    pub(crate) fn plan(&self, ahead: u64, now: u64) -> Plan {
        let state = self.state.lock();
        if let Some(lease) = state.lease.as_ref().filter(|lease| now < lease.supersede_at) {
            return Plan::Wait(lease.supersede_at);
        }
        if let Some(retry_at) = state.pause(now) {
            return Plan::Wait(retry_at);
        }
        let Record { published, fresh_end, .. } = self.slot.record(&state.key);
        // What was declared stale has a `fresh_end` of 0.
        let due = if self.slot.is_empty(&state.key) || fresh_end == 0 {
            0
        } else if fresh_end == FOREVER {
            FOREVER
        } else if fresh_end - published < SHORTEST_LIFE {
            published.saturating_add(UNKEPT_PAUSE)
        } else {
            fresh_end.saturating_sub(ahead).max(published.midpoint(fresh_end))
        };
        if now < due { Plan::Wait(due) } else { Plan::Build(state.origin) }
    }
}

/// A build that needs the old value for itself.
impl<T, C: Clock> Machine<T, C> {
    /// Takes the value out of the slot for the holder of the lease, who cannot be superseded from now on. Until it
    /// [puts it back](Machine::put_back) or the build ends, others find an empty cell in which somebody builds, and
    /// wait.
    ///
    /// `None` if the build has been overtaken: superseded, or by a `set`, whose value is not its to replace (G4).
    pub(crate) fn withhold(&self, ticket: &Ticket<T>) -> Option<Withheld<T>> {
        let mut state = self.state.lock();
        if state.displacements != ticket.displacements && !self.slot.is_empty(&state.key) {
            return None;
        }
        let lease = state.lease.as_mut().filter(|lease| lease.origin == ticket.origin)?;
        lease.awaits = Awaits::Readers;
        let supersede_at = std::mem::replace(&mut lease.supersede_at, FOREVER);
        let record = self.slot.record(&state.key);
        let value = self.slot.replace(&mut state.key, None, record, 0);
        let place = Place { record, supersede_at, displacements: state.displacements };
        // Those who wait look again, and see for whom they wait.
        let settle = Self::take_waiters(&mut state, Outcome::Abandoned);
        drop(Aftermath::settle(settle).finish(state));
        Some(Withheld { value, place })
    }

    /// Puts a withheld value back into service; the build goes on. Returns it if it has been cleared meanwhile.
    pub(crate) fn put_back(&self, withheld: Withheld<T>) -> Option<Arc<T>> {
        let mut state = self.state.lock();
        let rejected = self.restore(&mut state, withheld);
        // Those who wait may be served again; they look.
        let settle = Self::take_waiters(&mut state, Outcome::Abandoned);
        drop(Aftermath::settle(settle).finish(state));
        rejected
    }

    fn restore(&self, state: &mut State<T>, withheld: Withheld<T>) -> Option<Arc<T>> {
        let Withheld { value, place } = withheld;
        if let Some(lease) = state.lease.as_mut().filter(|lease| lease.withholds()) {
            (lease.awaits, lease.supersede_at) = (Awaits::Nobody, place.supersede_at);
        }
        let value = value?;
        if state.displacements != place.displacements {
            return Some(value);
        }
        // Only builds that were elected because the value was stale can withhold it, so an `invalidate` since then changes
        // nothing. (Those of `refresh`, elected beside a fresh value, are given no `Writer`.)
        let quiet_end = self.quiet_end(state, place.record);
        let replaced = self.slot.replace(&mut state.key, Some(value), place.record, quiet_end);
        debug_assert!(replaced.is_none(), "nothing is published while a value is withheld");
        None
    }
}

impl<T> Wait<T> {
    /// Blocks until the build has an outcome, or until `deadline`, or until it is time to look up again, which
    /// counts as [`Outcome::Abandoned`]. `None`: the deadline came first.
    pub(crate) fn wait<C: Clock>(&self, machine: &Machine<T, C>, deadline: u64) -> Option<Outcome<T>> {
        match self.attempt.wait(&machine.clock, deadline.min(self.look_again_at)) {
            Some(outcome) => Some(machine.up_to_date(outcome)),
            None if deadline <= self.look_again_at => None,
            None => Some(Outcome::Abandoned),
        }
    }
}

impl<T, C> Machine<T, C> {
    /// What a waiter makes of an outcome, which may be of long ago: it may have seen newer values since, and must not
    /// go back (G3). The newest one was published while it waited as well.
    pub(crate) fn up_to_date(&self, outcome: &Outcome<T>) -> Outcome<T> {
        let Outcome::Published(publication) = outcome else { return outcome.clone() };
        let Reading { guard, record, .. } = self.slot.read();
        if record.generation <= publication.generation {
            return outcome.clone();
        }
        match into_arc(guard) {
            Some(value) => Outcome::Published(Publication {
                value,
                generation: record.generation,
                // Or later.
                origin: publication.origin,
                lapsed: record.fresh_end == 0,
            }),
            None => Outcome::Abandoned,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;
    use crate::sync::{PlainOnceCell, Weak};

    fn machine() -> (Machine<u32, ManualClock>, ManualClock) {
        let clock = ManualClock::new();
        (Machine::new(Policy::ttl(Duration::from_nanos(10)), clock.clone()), clock)
    }

    /// Each of these would hang if it took the lock.
    fn read_in_every_way(machine: &Machine<u32, ManualClock>) {
        assert_eq!(machine.generation(), 1);
        assert!(machine.has_value());
        assert_eq!(machine.servable().as_deref().and_then(Option::as_deref), Some(&1));
        assert!(machine.snapshot().is_some());
        let _ = (machine.freshness(), machine.is_refreshing(), machine.counters.read(), machine.sequence());
        assert!(matches!(machine.lookup(Demand::Servable), Decision::Fresh(_) | Decision::Stale(_)));
        assert!(matches!(machine.lookup(Demand::Value), Decision::Fresh(_) | Decision::Stale(_)));
    }

    #[test]
    fn g2_reads_of_what_may_be_served_take_no_lock() {
        let (machine, clock) = machine();
        drop(machine.set(Arc::new(1), |_, _| ()).unwrap_or_else(|_| unreachable!()));
        {
            let _locked = machine.state.lock();
            read_in_every_way(&machine);
            assert!(machine.serve().is_some());
        }
        // Stale, and nobody builds yet: whoever finds the lock taken leaves the election to the next read.
        clock.advance(Duration::from_nanos(11));
        {
            let _locked = machine.state.lock();
            read_in_every_way(&machine);
        }
        // Stale, while somebody builds.
        let Decision::Elected(ticket) = machine.lookup(Demand::Servable) else { panic!("nobody builds yet") };
        {
            let _locked = machine.state.lock();
            read_in_every_way(&machine);
            assert!(machine.serve().is_some());
            assert!(machine.serve_guard().is_some());
        }
        assert!(machine.give_back(ticket, false, None).rejected.is_none());
    }

    #[test]
    fn the_place_of_a_value_is_known_while_the_cell_holds_it() {
        let (machine, _clock) = machine();
        let (first, second) = (Arc::new(1), Arc::new(1));
        assert_eq!(machine.place_of(&first), None);
        drop(machine.set(Arc::clone(&first), |_, _| ()).unwrap_or_else(|_| unreachable!()));
        let place = machine.place_of(&first);
        assert_eq!(place, Some((machine.sequence(), 11)));
        assert_eq!(machine.place_of(&second), None);
        drop(machine.set(second, |_, _| ()).unwrap_or_else(|_| unreachable!()));
        assert_eq!(machine.place_of(&first), None);
        let sequence = machine.sequence();
        assert!(sequence.is_multiple_of(2) && Some(sequence) > place.map(|(before, _)| before));
    }

    /// A clock that, when it is looked at for the first time since it was armed, sees to it that a new value has been set
    /// and the lock is taken: as if by a thread that is just setting the next one.
    #[derive(Default)]
    struct Meddler {
        machine: PlainOnceCell<Weak<Machine<u32, Meddler>>>,
        is_armed: AtomicBool,
    }

    impl Clock for Meddler {
        fn now(&self) -> crate::Tick {
            if self.is_armed.swap(false, Ordering::Relaxed)
                && let Some(machine) = self.machine.get().and_then(Weak::upgrade)
            {
                drop(machine.set(Arc::new(2), |_, _| ()).unwrap_or_else(|_| unreachable!()));
                std::mem::forget(machine.state.lock());
            }
            crate::Tick::from_nanos(5)
        }
    }

    #[test]
    fn a_look_that_finds_the_lock_taken_calls_a_fresh_value_fresh() {
        let machine = Arc::new(Machine::new(Policy::never_expires(), Meddler::default()));
        drop(machine.set(Arc::new(1), |_, _| ()).unwrap_or_else(|_| unreachable!()));
        machine.invalidate();
        assert!(machine.clock.machine.set(Arc::downgrade(&machine)).is_ok());
        machine.clock.is_armed.store(true, Ordering::Relaxed);
        match machine.lookup(Demand::Servable) {
            Decision::Fresh(value) => assert_eq!(*value, 2),
            Decision::Stale(value) => panic!("{value} has just been set and is called stale"),
            _ => panic!("there is a value to serve"),
        }
    }

    /// When a keeper that builds `ahead` of the end is to look again; `None`: it is to build at once.
    fn next(machine: &Machine<u32, ManualClock>, ahead: u64, now: u64) -> Option<u64> {
        match machine.plan(ahead, now) {
            Plan::Wait(until) => Some(until),
            Plan::Build(_) => None,
        }
    }

    #[test]
    fn a_plan_names_the_tick_from_which_there_is_something_to_do() {
        const TTL: u64 = 1_000_000_000;
        let clock = ManualClock::new();
        let ms = |number: u64| Duration::from_millis(number);
        let policy = Policy::ttl(ms(1000)).lease_timeout(ms(10)).retry_backoff(ms(20), ms(20));
        let machine = Machine::new(policy, clock.clone());
        assert_eq!(next(&machine, 100, 0), None, "there is no value");

        let value = Arc::new(1);
        drop(machine.set(Arc::clone(&value), |_, _| ()).unwrap_or_else(|_| unreachable!()));
        // Fresh up to and including its ttl.
        let end = TTL + 1;
        assert_eq!(next(&machine, 100, 0), Some(end - 100));
        assert_eq!(next(&machine, 100, end - 101), Some(end - 100));
        assert_eq!(next(&machine, 100, end - 100), None);
        assert_eq!(next(&machine, TTL, 0), Some(end / 2), "not before half of its life");
        machine.invalidate();
        assert_eq!(next(&machine, 100, 0), None, "it is stale");

        // Somebody builds, until the tick at which it may be superseded.
        let Decision::Elected(mut ticket) = machine.lookup(Demand::Fresh) else { panic!("nobody builds") };
        assert_eq!(next(&machine, 100, 0), Some(10_000_001));
        assert_eq!(next(&machine, 100, 10_000_000), Some(10_000_001));
        assert_eq!(next(&machine, 100, 10_000_001), None);
        // It fails, and a pause runs.
        let error = SharedError::new(Arc::new("no"));
        assert!(machine.fail(&mut ticket, error, || None).rejected.is_none());
        assert_eq!(next(&machine, 100, 0), Some(20_000_000));
        assert_eq!(next(&machine, 100, 20_000_000), None);
        drop(ticket);

        // Values that are published for less than a millisecond are rebuilt ten times a second.
        clock.advance(ms(20));
        for (ttl, expected) in [(999_998, 120_000_000), (999_999, 20_500_000), (FOREVER, FOREVER)] {
            let Decision::Elected(mut ticket) = machine.lookup(Demand::After(machine.latest_origin())) else {
                panic!("nobody builds")
            };
            let concluded = machine.conclude(&mut ticket, Arc::new(2), Some(ttl), true, |_, _| ());
            drop(concluded.leftover);
            assert_eq!(next(&machine, TTL - 1, 20_000_000), Some(expected));
        }
    }

    /// A clock that, when it is looked at, has another thread take the lock, for a while.
    #[derive(Default)]
    struct Intruder {
        machine: PlainOnceCell<Weak<Machine<u32, Intruder>>>,
        is_armed: AtomicBool,
        thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    }

    impl Clock for Intruder {
        fn now(&self) -> crate::Tick {
            if self.is_armed.swap(false, Ordering::Relaxed)
                && let Some(machine) = self.machine.get().and_then(Weak::upgrade)
            {
                let is_taken = Arc::new(AtomicBool::new(false));
                let taken = Arc::clone(&is_taken);
                *self.thread.lock() = Some(std::thread::spawn(move || {
                    let _locked = machine.state.lock();
                    taken.store(true, Ordering::Release);
                    for _ in 0..1000 {
                        std::thread::yield_now();
                    }
                }));
                while !is_taken.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            }
            crate::Tick::from_nanos(5)
        }
    }

    /// Only who may be served the old value goes away with it if the lock is taken.
    #[test]
    fn a_look_for_a_fresh_value_that_finds_the_lock_taken_waits_for_it() {
        for demand in [Demand::Fresh, Demand::After(1)] {
            let machine = Arc::new(Machine::new(Policy::never_expires(), Intruder::default()));
            drop(machine.set(Arc::new(1), |_, _| ()).unwrap_or_else(|_| unreachable!()));
            machine.invalidate();
            assert!(machine.clock.machine.set(Arc::downgrade(&machine)).is_ok());
            machine.clock.is_armed.store(true, Ordering::Relaxed);
            assert!(matches!(machine.lookup(demand), Decision::Elected(_)));
            machine.clock.thread.lock().take().expect("it has looked at the clock").join().unwrap();
        }
    }

    #[test]
    fn what_a_read_loads_shares_a_cache_line_and_a_cell_has_at_most_384_bytes() {
        type Usual = Machine<u64, crate::SystemClock>;
        assert_eq!(align_of::<Usual>(), 64);
        assert_eq!(std::mem::offset_of!(Usual, slot), 0);
        const { assert!(Slot::<u64>::HOT <= 64) };
        // The words that elections and waiters write are on other lines.
        assert!(std::mem::offset_of!(Usual, state) >= 128);
        assert!(size_of::<Usual>() <= 384 || cfg!(dogpile_oracle), "{}", size_of::<Usual>());
    }

    /// So that a run with the oracle, which counts its tests, is one.
    #[cfg(dogpile_oracle)]
    #[test]
    fn the_slot_of_the_oracle_has_a_lock() {
        assert!(size_of::<Machine<u64, crate::SystemClock>>() > 384);
    }
}
