//! The value and the record of its publication, readable together without a lock.
//!
//! # What a read needs, and what it costs
//!
//! The usual read needs two words, `quiet_end` and `value`, and a [`Reader`](crate::Reader) needs `sequence`. They
//! share a cache line, together with one of the banks; only a change of state writes it.
//!
//! `quiet_end` is the one question of the hot path: *before this tick, serve what the slot holds and ask
//! nothing else*. While a value is fresh it is the end of its freshness; while somebody builds, the end of the
//! time that the stale value may be served; while a retry pause runs, its end; otherwise 0. So a stale read
//! during a build is the same few instructions as a fresh one.
//!
//! # Who may write, and in which order
//!
//! Only who holds the cell's lock: the methods that write, and those that read without a check, take the [`Key`] that lies
//! under it.
//! A change of the record goes
//!
//! 1. `sequence` becomes odd,
//! 2. the bank that is *not* current takes the new record, with the address of the value it describes,
//! 3. `value` is swapped (unless only the record changes),
//! 4. `quiet_end` is set,
//! 5. `sequence` becomes even, which makes that bank the current one.
//!
//! `quiet_end` alone also changes when the lease or a retry pause begins or ends; `sequence` moves after it, by twice as
//! much, so that the same bank stays current. It need not be odd before that: it is one word that changes, and who has
//! read the new one under the old `sequence` has read what is true. So as long as `sequence` stands still, everything does,
//! but for a tick whose change is not over yet.
//!
//! # Why a reader that never waits gets a matching pair
//!
//! It loads `sequence`, then `value`, then the bank that `sequence` calls current. If the bank names the
//! address of the value, they belong together: two values that a reader can meet under one `sequence` are
//! alive at once, so their addresses differ. If not, the writer stands between 3 and 5, and the other bank,
//! complete since before the swap, is the match. A bank is only overwritten by the second change from here,
//! which cannot begin before `sequence` has moved; so a pair read under one unchanged `sequence` is whole.
//! A writer that is stopped anywhere stops no reader, and a reader starts over only because a change was
//! completed meanwhile.

use crate::clock::FOREVER;
use crate::sync::{Arc, ArcSlot, AtomicU64, AtomicUsize, Ordering, SlotGuard, const_fn};

/// Lies under the cell's lock: whoever can show it holds that lock.
pub(crate) struct Key(());

impl Key {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

/// What is known of a publication. All times are ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// Number of publications up to and including this one.
    pub(crate) generation: u64,
    pub(crate) published: u64,
    /// Fresh before this tick. 0: declared stale, whatever the clock says. [`FOREVER`]: without a deadline.
    pub(crate) fresh_end: u64,
    /// When it lapses or lapsed: the windows in which it may be served all the same count from here.
    pub(crate) lapse: u64,
}

impl Record {
    /// A value published `now`, fresh for `ttl`: up to and including that age.
    pub(crate) fn fresh(generation: u64, now: u64, ttl: u64) -> Self {
        let end = if ttl == FOREVER { FOREVER } else { now.saturating_add(ttl).saturating_add(1) };
        Self { generation, published: now, fresh_end: end, lapse: end }
    }

    /// A value published `now`, stale from the beginning.
    pub(crate) fn stale(generation: u64, now: u64) -> Self {
        Self { generation, published: now, fresh_end: 0, lapse: now }
    }

    /// The same publication, declared stale at `now`.
    pub(crate) fn lapsed(self, now: u64) -> Self {
        Self { fresh_end: 0, lapse: self.lapse.min(now), ..self }
    }
}

/// A value and what belongs to it.
pub(crate) struct Reading<T> {
    pub(crate) guard: SlotGuard<T>,
    pub(crate) record: Record,
    /// The value's own; 0 while it is being published.
    pub(crate) quiet_end: u64,
}

/// One of the two places that a record may stand in.
struct Bank {
    /// Address of the value that the record describes; 0: no value.
    address: AtomicUsize,
    generation: AtomicU64,
    published: AtomicU64,
    fresh_end: AtomicU64,
    lapse: AtomicU64,
}

impl Bank {
    const_fn! {
        const fn new() -> Self {
            Self {
                address: AtomicUsize::new(0),
                generation: AtomicU64::new(0),
                published: AtomicU64::new(0),
                fresh_end: AtomicU64::new(0),
                lapse: AtomicU64::new(0),
            }
        }
    }

    /// The record, if the bank describes the value at `address`.
    fn read(&self, address: usize) -> Option<Record> {
        // Acquire, each: pairs with the Release in `write`. A load that sees a later change's word therefore
        // also makes that change's odd `sequence` visible to the check that follows.
        (self.address.load(Ordering::Acquire) == address).then(|| Record {
            generation: self.generation.load(Ordering::Acquire),
            published: self.published.load(Ordering::Acquire),
            fresh_end: self.fresh_end.load(Ordering::Acquire),
            lapse: self.lapse.load(Ordering::Acquire),
        })
    }

    fn write(&self, address: usize, record: Record) {
        // Release, each: pairs with the Acquire in `read`; the odd `sequence` was stored before.
        self.address.store(address, Ordering::Release);
        self.generation.store(record.generation, Ordering::Release);
        self.published.store(record.published, Ordering::Release);
        self.fresh_end.store(record.fresh_end, Ordering::Release);
        self.lapse.store(record.lapse, Ordering::Release);
    }
}

/// See the module's documentation.
#[repr(C)] // in this order: the words that reads load come first, on the cache line on which the slot begins
pub(crate) struct Slot<T> {
    value: ArcSlot<T>,
    quiet_end: AtomicU64,
    /// Moves with every change: odd while one of the value or its record is going on; the bit above that tells which bank is
    /// current.
    sequence: AtomicU64,
    banks: [Bank; 2],
}

fn address_of<T>(value: Option<&Arc<T>>) -> usize {
    value.map_or(0, |value| Arc::as_ptr(value).addr())
}

impl<T> Slot<T> {
    const_fn! {
        pub(crate) const fn empty() -> Self {
            Self {
                value: ArcSlot::empty(),
                quiet_end: AtomicU64::new(0),
                sequence: AtomicU64::new(0),
                banks: [Bank::new(), Bank::new()],
            }
        }
    }

    /// Before this tick: serve what [`load`](Slot::load) gives. [`FOREVER`]: without a look at the clock.
    #[inline]
    pub(crate) fn quiet_end(&self) -> u64 {
        // Acquire: pairs with the Release in `set_quiet_end` and `write`. A value loaded after this is at least as new
        // as the one that the tick was set for.
        self.quiet_end.load(Ordering::Acquire)
    }

    /// Even and unchanged: so are the value and its record, and `quiet_end` but for a change that is not over yet. Odd:
    /// they may be changing.
    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        // Acquire: pairs with the Release in `write`. A value loaded after this is at least as new.
        self.sequence.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn load(&self) -> SlotGuard<T> {
        self.value.load()
    }

    #[inline]
    pub(crate) fn load_full(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }

    /// The value with its own record.
    pub(crate) fn read(&self) -> Reading<T> {
        loop {
            let before = self.sequence();
            // Before the value: one that is already the next value's is only seen together with that value.
            let quiet_end = self.quiet_end();
            let guard = self.load();
            let address = address_of(guard.as_ref());
            let current = Self::bank_index(before);
            let reading = match self.banks[current].read(address) {
                Some(record) => Some((record, quiet_end)),
                // The value is being published; what is known of its predecessor does not count for it.
                None => self.banks[1 - current].read(address).map(|record| (record, 0)),
            };
            // The loads above were Acquire, so this one cannot have been done before them.
            if let Some((record, quiet_end)) = reading
                && self.sequence() == before
            {
                return Reading { guard, record, quiet_end };
            }
        }
    }

    /// The bank that is current at `sequence`.
    fn bank_index(sequence: u64) -> usize {
        usize::from(!(sequence / 2).is_multiple_of(2))
    }

    /// Makes `value` with its `record` visible and returns what it replaces, to be dropped after unlocking.
    pub(crate) fn replace(
        &self,
        _locked: &mut Key,
        value: Option<Arc<T>>,
        record: Record,
        quiet_end: u64,
    ) -> Option<Arc<T>> {
        let address = address_of(value.as_ref());
        self.write(address, record, quiet_end, || self.value.swap(value))
    }

    /// Changes the record of the value that is there.
    pub(crate) fn amend(&self, _locked: &mut Key, record: Record, quiet_end: u64) {
        let address = self.current_bank().address.load(Ordering::Relaxed);
        self.write(address, record, quiet_end, || ());
    }

    fn write<R>(&self, address: usize, record: Record, quiet_end: u64, swap: impl FnOnce() -> R) -> R {
        // Relaxed: only holders of the lock write it, and it orders them.
        let sequence = self.sequence.load(Ordering::Relaxed);
        // Release: pairs with the Acquire in `sequence`. Who reads the odd number sees the change before this one
        // whole. The other way round, that who sees a part of this change sees the odd number, is what the Release
        // stores that follow and the swap are for.
        self.sequence.store(sequence + 1, Ordering::Release);
        self.banks[1 - Self::bank_index(sequence)].write(address, record);
        let replaced = swap();
        // Release: pairs with the Acquire in `quiet_end`.
        self.quiet_end.store(quiet_end, Ordering::Release);
        // Release: pairs with the Acquire in `sequence`.
        self.sequence.store(sequence + 2, Ordering::Release);
        replaced
    }

    /// The current bank, for a holder of the lock.
    fn current_bank(&self) -> &Bank {
        &self.banks[Self::bank_index(self.sequence.load(Ordering::Relaxed))]
    }

    /// The record of the value that is there.
    pub(crate) fn record(&self, _locked: &Key) -> Record {
        // Relaxed, here and below: only holders of the lock write it, and it orders them.
        let bank = self.current_bank();
        Record {
            generation: bank.generation.load(Ordering::Relaxed),
            published: bank.published.load(Ordering::Relaxed),
            fresh_end: bank.fresh_end.load(Ordering::Relaxed),
            lapse: bank.lapse.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_quiet_end(&self, _locked: &mut Key, tick: u64) {
        // Release: pairs with the Acquire in `quiet_end`.
        self.quiet_end.store(tick, Ordering::Release);
        // Relaxed: only holders of the lock write it, and it orders them.
        let sequence = self.sequence.load(Ordering::Relaxed);
        // Release: pairs with the Acquire in `sequence`. Who reads the new number sees the new tick.
        self.sequence.store(sequence + 4, Ordering::Release);
    }

    /// Whether `value` is the one that is there.
    pub(crate) fn holds(&self, _locked: &Key, value: &Arc<T>) -> bool {
        self.current_bank().address.load(Ordering::Relaxed) == address_of(Some(value))
    }

    /// Whether there is no value.
    pub(crate) fn is_empty(&self, _locked: &Key) -> bool {
        // Relaxed: only holders of the lock write it, and it orders them.
        self.current_bank().address.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn into_inner(self) -> Option<Arc<T>> {
        self.value.into_inner()
    }

    /// Bytes from the beginning to the end of what reads load.
    #[cfg(test)]
    pub(crate) const HOT: usize = std::mem::offset_of!(Self, banks);
}
