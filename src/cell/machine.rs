//! The state machine of a cell: its parts, and the reads that take no lock.
//!
//! # States
//!
//! Three things change under one lock, [`State`]. What reads need of them is mirrored into the [`Slot`], which they read
//! without the lock:
//!
//! * the value: none, or one with its [`Record`]; by the clock it is fresh, stale or expired;
//! * the lease: see [`LeaseState`](super::state::LeaseState);
//! * the failures since the latest publication: none, or a count, a retry pause and the latest error.
//!
//! | event | value | lease | failures | waiters |
//! |---|---|---|---|---|
//! | elect (`elect.rs`) | unchanged | Free, or held too long, to Building | | |
//! | publish, renew (`publish.rs`) | replaced / renewed | released | forgotten | handed the value, if it may be served |
//! | ... after `invalidate` | replaced, as stale | released | forgotten | handed the value |
//! | ... by a build that has lost the lease | unchanged | unchanged | unchanged | go on waiting |
//! | fail | unchanged | released | counted, pause begins | share the error |
//! | panic | unchanged | released | counted, pause begins | look again |
//! | give back | unchanged | released | unchanged | look again |
//! | `set` | replaced | Building to Free | forgotten | handed the value |
//! | `restore` | replaced | unchanged | forgotten | handed the value, if it may be served |
//! | `invalidate` | declared stale | unchanged | unchanged | go on waiting |
//! | `clear` | removed | Building to Free | unchanged | look again |
//! | `revoke` | unchanged | Building to Free | unchanged | look again |
//! | `reset` | removed | Building to Free | forgotten | look again |
//!
//! # Rules
//!
//! * The fence (G4): builds, `set`s and the like are numbered in the order in which they begin. A result is published if its
//!   build still holds the lease and was not displaced, and, if it renews a value, that is still there; as stale, if an
//!   `invalidate` came after its number.
//! * Publishing and releasing the lease are one critical section (G9).
//! * No user code runs under the lock (G9): the clock is read before; what may be dropped (old values, errors) and the waiters
//!   leave the section, and are dropped and woken after unlocking ([`unlock`](super::publish::unlock)).
//! * A caller remembers the generation from before it first read the clock. If that has moved when it has the lock, a value
//!   was published meanwhile, and it takes that value instead of building again (G1).

use std::panic::{RefUnwindSafe, UnwindSafe};

use crate::policy::{Freshness, Policy};
use crate::stats::{Counters, Stats};
use crate::sync::{Arc, AtomicBool, Mutex, MutexGuard, Ordering, PlainBool, SlotGuard, const_fn, into_arc};
use crate::time::{Clock, FOREVER, nanos};

use super::slot::{Reading, Record, Seen, Slot, Version};
use super::state::State;

/// See the module's documentation.
// On cache lines of its own, in this order: what reads load, what is never written, and what reads do not use.
#[repr(C, align(64))]
#[allow(unreachable_pub, missing_debug_implementations)] // public only because a sealed trait's methods name it
pub struct Machine<T, C> {
    pub(super) slot: Slot<T>,
    pub(crate) policy: Policy,
    pub(crate) clock: C,
    pub(super) state: Mutex<State<T>>,
    pub(crate) counters: Counters,
    pub(crate) name: Option<&'static str>,
    /// Whether the lease is held; for callers that ask without the lock.
    pub(super) refreshing: AtomicBool,
    /// Whether the next read has to be marked, because a refresher rests until then.
    pub(super) unread: PlainBool,
}

// A lease restores the machine when its build panics. Whether a value is in order after a panic while it was in use is the
// value's own concern.
impl<T: RefUnwindSafe, C: UnwindSafe> UnwindSafe for Machine<T, C> {}
impl<T: RefUnwindSafe, C: RefUnwindSafe> RefUnwindSafe for Machine<T, C> {}

impl<T, C> Machine<T, C> {
    const_fn! {
        pub(crate) const fn new(policy: Policy, clock: C) -> Self {
            Self {
                slot: Slot::empty(),
                state: Mutex::new(State::new()),
                refreshing: AtomicBool::new(false),
                unread: PlainBool::new(false),
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
        // Acquire: pairs with the Release in `mirror`. A caller that sees the end of a build sees its publication.
        self.refreshing.load(Ordering::Acquire)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.slot.read().record.generation
    }

    /// The number of the latest build or `set`. See [`Demand::after`](super::state::Demand::after).
    pub(crate) fn latest_origin(&self) -> u64 {
        self.state.lock().last_origin
    }

    pub(crate) fn last_error(&self) -> Option<crate::SharedError> {
        self.state.lock().failure.as_ref().map(|failure| failure.error.clone())
    }

    pub(crate) fn stats(&self) -> Stats {
        let consecutive_failures = self.state.lock().failure.as_ref().map_or(0, |failure| failure.count);
        self.counters.read(consecutive_failures)
    }

    /// Moves when the value, its record or its [`due_at`](Slot::due_at) changes. See [`Slot::version`].
    #[inline]
    pub(crate) fn version(&self) -> Version {
        self.slot.version()
    }

    /// The version and the [`due_at`](Slot::due_at) at which `value` is the cell's, if it is.
    pub(crate) fn version_of(&self, value: &Arc<T>) -> Option<(Version, u64)> {
        let version = self.slot.version();
        let due_at = self.slot.due_at();
        // As long as the caller has the value, no other one can have its address.
        let is_held = self.slot.load().as_ref().is_some_and(|held| Arc::ptr_eq(held, value));
        (is_held && self.slot.is_stable_at(version)).then_some((version, due_at))
    }

    pub(crate) fn has_value(&self) -> bool {
        self.slot.load().is_some()
    }

    /// The value, whether it may be served or not.
    pub(crate) fn stored(&self) -> Option<Arc<T>> {
        self.slot.load_full()
    }
}

/// Outlined, so that the common path stays small.
#[cold]
#[inline(never)]
fn let_go<R>(loaded: R) {
    drop(loaded);
}

/// Reads: no lock, no write to shared memory.
impl<T, C: Clock> Machine<T, C> {
    /// The value, if it may be served without further checks, as an owned reference.
    #[inline(always)]
    #[allow(clippy::inline_always)] // as `serve_with`
    pub(crate) fn serve(&self) -> Option<Arc<T>> {
        self.serve_with(Slot::load_full)?
    }

    /// The same as a borrow. The guard may turn out to be empty.
    #[inline(always)]
    #[allow(clippy::inline_always)] // as `serve_with`
    pub(crate) fn serve_guard(&self) -> Option<SlotGuard<T>> {
        self.serve_with(Slot::load)
    }

    #[inline(always)]
    #[allow(clippy::inline_always)] // a call would be 20 instructions more: `cargo run --release -p instructions`
    fn serve_with<R>(&self, load: impl FnOnce(&Slot<T>) -> R) -> Option<R> {
        // Before the tick and the value: while it is settled and does not change, they belong together. (A tick alone would
        // not tell: several values may have the same one, and one between them may have been stale from the beginning.)
        let version = self.slot.version();
        if !self.is_before(self.slot.due_at()) {
            return None;
        }
        let loaded = load(&self.slot);
        if self.slot.is_stable_at(version) {
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
        // Relaxed: see `mark_read`.
        if self.unread.load(Ordering::Relaxed) {
            // `due_at` is 0 until the read is marked.
            self.mark_first_read(self.state.try_lock());
            if let Some(guard) = self.serve_guard() {
                return guard.is_some().then_some(guard);
            }
        }
        let Reading { guard, record, due_at } = self.slot.read();
        let may_be_served =
            guard.is_some() && (self.is_before(self.servable_end(&record)) || self.is_before(due_at));
        may_be_served.then_some(guard)
    }

    /// Whether there is a value that may be served. This does not count as a read.
    pub(crate) fn is_servable(&self) -> bool {
        matches!(self.freshness(), Freshness::Fresh | Freshness::Stale)
    }

    /// As [`mark_read`](Machine::mark_read), also if it has to wait for the lock: for a caller that may not read again before
    /// the next publication, which a resting refresher would not make.
    pub(super) fn mark_read_for_certain(&self, due_at: u64) {
        // Relaxed: see `mark_read`.
        if due_at == 0 && self.unread.load(Ordering::Relaxed) {
            self.mark_first_read(Some(self.state.lock()));
        }
    }

    /// A value with this `due_at` was read; a refresher may wait for that.
    pub(super) fn mark_read(&self, due_at: u64) {
        // Relaxed: it was stored before the `due_at` of 0 that was seen with Acquire.
        if due_at == 0 && self.unread.load(Ordering::Relaxed) {
            self.mark_first_read(self.state.try_lock());
        }
    }

    /// As [`serve`](Machine::serve), and marks the read, for a caller that does nothing else.
    #[inline]
    pub(crate) fn serve_and_mark(&self) -> Option<Arc<T>> {
        self.serve().or_else(|| self.serve_unread())
    }

    #[cold]
    fn serve_unread(&self) -> Option<Arc<T>> {
        // Relaxed: see `mark_read`.
        if !self.unread.load(Ordering::Relaxed) {
            return None;
        }
        self.mark_first_read(self.state.try_lock());
        self.serve()
    }

    /// `state`: `None` if the lock is taken. Then the next read is marked instead.
    #[cold]
    fn mark_first_read(&self, state: Option<MutexGuard<'_, State<T>>>) {
        if let Some(mut state) = state
            && state.listeners.mark_read()
        {
            self.mirror(&mut state);
            let notified = state.listeners.notified(false);
            drop(state);
            if let Some(notified) = notified {
                notified.notify();
            }
        }
    }

    pub(crate) fn freshness(&self) -> Freshness {
        let Reading { guard, record, due_at } = self.read_with_due_at();
        if guard.is_none() {
            Freshness::Empty
        } else if self.is_before(record.fresh_end()) {
            Freshness::Fresh
        } else if self.is_before(self.servable_end(&record)) || self.is_before(due_at) {
            Freshness::Stale
        } else {
            Freshness::Expired
        }
    }

    /// As [`Slot::read`], with the true `due_at` also while the next read has to be marked.
    fn read_with_due_at(&self) -> Reading<T> {
        let reading = self.slot.read();
        // Relaxed: see `mark_read`.
        if reading.due_at != 0 || !self.unread.load(Ordering::Relaxed) {
            return reading;
        }
        let state = self.state.lock();
        let reading = self.slot.read();
        Reading { due_at: state.due_at_when_read(&self.policy, &reading.record), ..reading }
    }

    /// The value with its record, at which tick, and its freshness.
    pub(crate) fn snapshot(&self) -> Option<Seen<T>> {
        // It is a read; a refresher may wait for that.
        self.mark_read(self.slot.due_at());
        self.peek()
    }

    /// As [`snapshot`](Machine::snapshot), but does not count as a read.
    pub(crate) fn peek(&self) -> Option<Seen<T>> {
        let Reading { guard, record, due_at } = self.read_with_due_at();
        let now = self.now();
        let value = into_arc(guard)?;
        Some(Seen { value, record, servable_end: self.servable_end(&record).max(due_at), now })
    }

    /// Up to when a value may be served if nothing happens.
    pub(super) fn servable_end(&self, record: &Record) -> u64 {
        record.stale_end(self.policy.stale_window())
    }

    /// Whether a value could be served when it was published: only what was old already may have expired by then.
    pub(super) fn was_servable(&self, record: &Record) -> bool {
        record.initial_age == 0 || record.published < self.servable_end(record)
    }

    /// Less than [`FOREVER`], so that it is before a deadline that never comes.
    pub(crate) fn now(&self) -> u64 {
        self.clock.now().0.min(FOREVER - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::elect::Decision;
    use super::super::publish::Term;
    use super::super::state::Demand;
    use super::*;
    use crate::sync::{PlainOnceCell, Weak};
    use crate::time::ManualClock;

    fn set<C: Clock>(machine: &Machine<u32, C>, value: u32) {
        set_arc(machine, &Arc::new(value));
    }

    fn set_arc<C: Clock>(machine: &Machine<u32, C>, value: &Arc<u32>) {
        drop(machine.set(Arc::clone(value), Term::POLICY, true, &()));
    }

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
        let _ = (machine.freshness(), machine.is_refreshing(), machine.counters.read(0), machine.version());
        assert!(matches!(machine.lookup(&Demand::ANY, None), Decision::Fresh(_) | Decision::Stale(_)));
        assert!(matches!(machine.lookup(&Demand::VALUE, None), Decision::Fresh(_) | Decision::Stale(_)));
    }

    #[test]
    fn g2_reads_of_what_may_be_served_take_no_lock() {
        let (machine, clock) = machine();
        set(&machine, 1);
        {
            let _locked = machine.state.lock();
            read_in_every_way(&machine);
            assert!(machine.serve().is_some());
        }
        // Stale, and no build runs: a caller that finds the lock taken for long leaves the election to the next read.
        clock.advance(Duration::from_nanos(11));
        {
            let _locked = machine.state.lock();
            read_in_every_way(&machine);
        }
        // Stale, while a build runs.
        let Decision::Elected(ticket) = machine.lookup(&Demand::ANY, None) else {
            panic!("nobody builds yet")
        };
        {
            let _locked = machine.state.lock();
            read_in_every_way(&machine);
            assert!(machine.serve().is_some());
            assert!(machine.serve_guard().is_some());
        }
        assert!(machine.give_back(ticket, false, None, 11).is_none());
    }

    #[test]
    fn the_version_of_a_value_is_known_while_the_cell_holds_it() {
        let (machine, _clock) = machine();
        let (first, second) = (Arc::new(1), Arc::new(1));
        assert_eq!(machine.version_of(&first), None);
        set_arc(&machine, &first);
        let before = machine.version();
        assert_eq!(machine.version_of(&first), Some((before, 11)));
        assert_eq!(machine.version_of(&second), None);
        set_arc(&machine, &second);
        drop(second);
        assert_eq!(machine.version_of(&first), None);
        assert!(machine.slot.is_stable_at(machine.version()) && machine.version() != before);
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
                set(&machine, 2);
                std::mem::forget(machine.state.lock());
            }
            crate::Tick::from_nanos(5)
        }
    }

    #[test]
    fn a_look_that_finds_the_lock_taken_calls_a_fresh_value_fresh() {
        let machine = Arc::new(Machine::new(Policy::never_expires(), Meddler::default()));
        set(&machine, 1);
        machine.invalidate();
        assert!(machine.clock.machine.set(Arc::downgrade(&machine)).is_ok());
        machine.clock.is_armed.store(true, Ordering::Relaxed);
        match machine.lookup(&Demand::ANY, None) {
            Decision::Fresh(value) => assert_eq!(*value, 2),
            Decision::Stale(value) => panic!("{value} has just been set and is called stale"),
            _ => panic!("there is a value to serve"),
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

    /// Only a caller that may be served the old value goes away with it if the lock is taken.
    #[test]
    fn a_look_for_a_fresh_value_that_finds_the_lock_taken_waits_for_it() {
        for demand in [Demand { max_stale: 0, ..Demand::ANY }, Demand::after(2)] {
            let machine = Arc::new(Machine::new(Policy::never_expires(), Intruder::default()));
            set(&machine, 1);
            machine.invalidate();
            assert!(machine.clock.machine.set(Arc::downgrade(&machine)).is_ok());
            machine.clock.is_armed.store(true, Ordering::Relaxed);
            assert!(matches!(machine.lookup(&demand, None), Decision::Elected(_)));
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
