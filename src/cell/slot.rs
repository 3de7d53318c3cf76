//! The value and the record of its publication, readable together without a lock.
//!
//! # What a read needs, and what it costs
//!
//! A read usually needs three words, `sequence`, `due_at` and `value`; a [`Reader`](crate::Reader) needs `sequence` only.
//! They share a cache line, which is written when the state changes and at no other time.
//!
//! From the tick `due_at` on, a refresh is due. Before it, a read serves what the slot holds without further checks. It is the
//! end of the value's freshness; while a build, a retry pause or a refresher covers the stale value, the end of that or of the
//! policy's window ([`State::due_at`](super::state::State::due_at)). 0: there is no value, it is declared stale, or the first
//! read has to be marked. So a stale read during a build takes the same few instructions as a fresh one.
//!
//! # Who may write, and in which order
//!
//! Only the holder of the cell's lock writes: the methods that write, and those that read without a check, take the [`Key`],
//! which is guarded by that lock. A change of the record has these steps:
//!
//! 1. `sequence` becomes odd,
//! 2. the bank that is *not* current takes the new record, with the address of the value it describes,
//! 3. `value` is swapped (unless only the record changes),
//! 4. `due_at` is set,
//! 5. `sequence` becomes even, which makes that bank the current one.
//!
//! When the lease or a retry pause begins or ends, only `due_at` changes; `sequence` moves after it, and the same bank stays
//! current. It is one word that changes, so `sequence` need not be odd before: a reader that sees the new tick under the old
//! sequence still gets a correct answer. While `sequence` does not move, nothing changes but such a tick.
//!
//! # Why a reader that never waits gets a matching pair
//!
//! It loads `sequence`, then `value`, then the bank that is current at that `sequence`. If the bank has the address of the
//! value, they belong together: two values that a reader can load under one `sequence` are alive at the same time, so their
//! addresses differ. If not, the writer is between steps 3 and 5, and the other bank, complete since before the swap, is the
//! match. A bank is only overwritten by the second change after that, which cannot begin before `sequence` has moved; so a
//! pair that was read under one unchanged `sequence` is consistent. A writer that is suspended anywhere blocks no reader, and
//! a reader starts over only if a change was completed meanwhile.

use crate::policy::Freshness;
use crate::sync::{Arc, ArcSlot, AtomicU64, AtomicUsize, Ordering, SlotGuard, const_fn};
use crate::time::FOREVER;

/// Guarded by the cell's lock: a caller that has it holds that lock.
pub(crate) struct Key(());

impl Key {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

/// What is known of a publication. All times are ticks or nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Number of publications up to and including this one.
    pub(crate) generation: u64,
    pub(crate) published: u64,
    /// Its age at that tick: zero, unless it was restored, or its build said that it is old already.
    pub(crate) initial_age: u64,
    /// Its time to live. [`FOREVER`]: without a deadline.
    pub(crate) ttl: u64,
    /// When it was declared stale. [`FOREVER`]: never.
    pub(crate) declared_stale: u64,
}

impl Record {
    pub(crate) const NONE: Self =
        Self { generation: 0, published: 0, initial_age: 0, ttl: 0, declared_stale: FOREVER };

    /// A value published `now`, fresh for `ttl`: up to and including that age.
    pub(crate) fn fresh(generation: u64, now: u64, ttl: u64) -> Self {
        Self { generation, published: now, ttl, ..Self::NONE }
    }

    /// The same publication, declared stale at `now`.
    pub(crate) fn declared_stale_at(self, now: u64) -> Self {
        // Not before it was published: the clock may have been read long ago.
        Self { declared_stale: self.declared_stale.min(now.max(self.published)), ..self }
    }

    pub(crate) fn is_declared_stale(&self) -> bool {
        self.declared_stale != FOREVER
    }

    pub(crate) fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.published).saturating_add(self.initial_age)
    }

    /// Fresh before this tick. 0: stale at every tick. [`FOREVER`]: without a deadline.
    pub(crate) fn fresh_end(&self) -> u64 {
        if self.is_declared_stale() {
            0
        } else if self.ttl == FOREVER {
            FOREVER
        } else if self.initial_age > self.ttl {
            0
        } else {
            self.published.saturating_add(self.ttl - self.initial_age).saturating_add(1)
        }
    }

    /// The time since the first tick at which it was stale; 0: there is none, or it is that tick.
    pub(crate) fn stale_for(&self, now: u64) -> u64 {
        let natural =
            if self.ttl == FOREVER { 0 } else { self.age(now).saturating_sub(self.ttl).saturating_sub(1) };
        // Declared [`FOREVER`], it is never.
        natural.max(now.saturating_sub(self.declared_stale))
    }

    /// Before this tick it is fresh, or stale for `window` at most. Not before [`fresh_end`](Record::fresh_end).
    pub(crate) fn stale_end(&self, window: u64) -> u64 {
        if window == FOREVER {
            return FOREVER;
        }
        if self.initial_age <= self.ttl || self.ttl == FOREVER {
            let natural = Self { declared_stale: FOREVER, ..*self }.fresh_end();
            return natural.min(self.declared_stale).saturating_add(window);
        }
        // Restored after its end, which perhaps came before the clock's tick 0.
        let end = i128::from(self.published) + i128::from(self.ttl) + 1 - i128::from(self.initial_age);
        let end = end.min(i128::from(self.declared_stale)) + i128::from(window);
        u64::try_from(end.max(0)).unwrap_or(FOREVER)
    }
}

/// A value and what belongs to it.
pub(crate) struct Reading<T> {
    pub(crate) guard: SlotGuard<T>,
    pub(crate) record: Record,
    /// The value's own; 0 while it is being published.
    pub(crate) due_at: u64,
}

/// A value and what belongs to it, at a tick.
pub(crate) struct Seen<T> {
    pub(crate) value: Arc<T>,
    pub(crate) record: Record,
    pub(crate) servable_end: u64,
    pub(crate) now: u64,
}

impl<T> Seen<T> {
    pub(crate) fn freshness(&self) -> Freshness {
        if self.now < self.record.fresh_end() {
            Freshness::Fresh
        } else if self.now < self.servable_end {
            Freshness::Stale
        } else {
            Freshness::Expired
        }
    }
}

/// One of the two places for a record.
struct Bank {
    /// Address of the value that the record describes; 0: no value.
    address: AtomicUsize,
    generation: AtomicU64,
    published: AtomicU64,
    initial_age: AtomicU64,
    ttl: AtomicU64,
    declared_stale: AtomicU64,
}

impl Bank {
    const_fn! {
        const fn new() -> Self {
            Self {
                address: AtomicUsize::new(0),
                generation: AtomicU64::new(0),
                published: AtomicU64::new(0),
                initial_age: AtomicU64::new(0),
                ttl: AtomicU64::new(0),
                declared_stale: AtomicU64::new(FOREVER),
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
            initial_age: self.initial_age.load(Ordering::Acquire),
            ttl: self.ttl.load(Ordering::Acquire),
            declared_stale: self.declared_stale.load(Ordering::Acquire),
        })
    }

    fn write(&self, address: usize, record: Record) {
        // Release, each: pairs with the Acquire in `read`; the odd `sequence` was stored before.
        self.address.store(address, Ordering::Release);
        self.generation.store(record.generation, Ordering::Release);
        self.published.store(record.published, Ordering::Release);
        self.initial_age.store(record.initial_age, Ordering::Release);
        self.ttl.store(record.ttl, Ordering::Release);
        self.declared_stale.store(record.declared_stale, Ordering::Release);
    }
}

/// Moves with every change of the slot. Only the holder of the cell's lock stores.
///
/// | bits | meaning |
/// |---|---|
/// | 0 | the value or its record is being changed |
/// | 1 | which bank is current |
/// | 2.. | counts the changes |
struct Sequence(AtomicU64);

/// A [`Sequence`] as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version(u64);

impl Version {
    /// Equal to no version that a slot reaches.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    #[inline]
    pub(crate) fn is_stable(self) -> bool {
        self == self.stable()
    }

    /// The version that this one equals if nothing was being changed.
    #[inline]
    fn stable(self) -> Self {
        Self(self.0 & !1)
    }

    #[inline]
    fn current_bank(self) -> usize {
        usize::from(self.0 & 2 != 0)
    }
}

impl Sequence {
    const_fn! {
        const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    #[inline]
    fn load(&self) -> Version {
        // Acquire: pairs with the Releases below. A value loaded after this is at least as new.
        Version(self.0.load(Ordering::Acquire))
    }

    /// For a holder of the lock.
    #[inline]
    fn load_locked(&self) -> Version {
        // Relaxed: only holders of the lock store it, and the lock orders them.
        Version(self.0.load(Ordering::Relaxed))
    }

    /// A change of the value or its record begins. Returns the bank that takes the new record.
    #[inline]
    fn begin_change(&self) -> usize {
        let version = self.load_locked();
        // Release: pairs with the Acquire in `load`. A reader of the odd number sees the whole change before this one.
        // Conversely, the Release stores that follow and the swap ensure that a reader that observes any part of this change
        // also observes the odd number.
        self.0.store(version.0 + 1, Ordering::Release);
        1 - version.current_bank()
    }

    /// The bank that has taken the record is the current one.
    #[inline]
    fn end_change(&self) {
        // Release: pairs with the Acquire in `load`. A reader of the even number sees the whole change.
        self.0.store(self.load_locked().0 + 1, Ordering::Release);
    }

    /// `due_at` alone has changed.
    #[inline]
    fn advance(&self) {
        // Release: pairs with the Acquire in `load`. A reader of the new number sees the new tick.
        self.0.store(self.load_locked().0 + 4, Ordering::Release);
    }
}

/// See the module's documentation.
#[repr(C)] // in this order: the words that reads load come first, on the cache line on which the slot begins
pub(crate) struct Slot<T> {
    value: ArcSlot<T>,
    due_at: AtomicU64,
    sequence: Sequence,
    banks: [Bank; 2],
}

/// 0: no value.
pub(super) fn address_of<T>(value: Option<&Arc<T>>) -> usize {
    value.map_or(0, |value| Arc::as_ptr(value).addr())
}

impl<T> Slot<T> {
    const_fn! {
        pub(crate) const fn empty() -> Self {
            Self {
                value: ArcSlot::empty(),
                due_at: AtomicU64::new(0),
                sequence: Sequence::new(),
                banks: [Bank::new(), Bank::new()],
            }
        }
    }

    /// Before this tick no refresh is due: serve what [`load`](Slot::load) gives. [`FOREVER`]: without a look at the clock.
    #[inline]
    pub(crate) fn due_at(&self) -> u64 {
        // Acquire: pairs with the Release in `set_due_at` and `write`. A value loaded after this is at least as new
        // as the one that the tick was set for.
        self.due_at.load(Ordering::Acquire)
    }

    /// A value loaded after this is at least as new. While the version is stable and does not change, neither do the value
    /// and its record, nor `due_at` but for a change that is not over yet.
    #[inline]
    pub(crate) fn version(&self) -> Version {
        self.sequence.load()
    }

    /// Whether `version` was stable, and is the version still.
    #[inline]
    pub(crate) fn is_stable_at(&self, version: Version) -> bool {
        self.sequence.load() == version.stable()
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
            let before = self.version();
            // Before the value: one that is already the next value's is only seen together with that value.
            let due_at = self.due_at();
            let guard = self.load();
            let address = address_of(guard.as_ref());
            let current = before.current_bank();
            let reading = match self.banks[current].read(address) {
                Some(record) => Some((record, due_at)),
                // The value is being published; what is known of its predecessor does not count for it.
                None => self.banks[1 - current].read(address).map(|record| (record, 0)),
            };
            // The loads above were Acquire, so this one cannot have been done before them.
            if let Some((record, due_at)) = reading
                && self.version() == before
            {
                return Reading { guard, record, due_at };
            }
        }
    }

    /// The record, and whether there is a value. It does not load the value, so it drops nothing and may be called under a
    /// lock. The value itself may be newer by one publication that is not over yet.
    pub(crate) fn read_record(&self) -> (Record, bool) {
        loop {
            let before = self.version();
            let bank = &self.banks[before.current_bank()];
            // Acquire: pairs with the Release in `Bank::write`.
            let address = bank.address.load(Ordering::Acquire);
            // The loads were Acquire, so the check cannot have been done before them.
            if let Some(record) = bank.read(address)
                && self.version() == before
            {
                return (record, address != 0);
            }
        }
    }

    /// Makes `value` with its `record` visible and returns what it replaces, to be dropped after unlocking.
    pub(crate) fn replace(
        &self,
        _locked: &mut Key,
        value: Option<Arc<T>>,
        record: Record,
        due_at: u64,
    ) -> Option<Arc<T>> {
        let address = address_of(value.as_ref());
        self.write(address, record, due_at, || self.value.swap(value))
    }

    /// Changes the record of the value that is there.
    pub(crate) fn amend(&self, _locked: &mut Key, record: Record, due_at: u64) {
        let address = self.current_bank().address.load(Ordering::Relaxed);
        self.write(address, record, due_at, || ());
    }

    fn write<R>(&self, address: usize, record: Record, due_at: u64, swap: impl FnOnce() -> R) -> R {
        let other_bank = self.sequence.begin_change();
        self.banks[other_bank].write(address, record);
        let replaced = swap();
        // Release: pairs with the Acquire in `due_at`.
        self.due_at.store(due_at, Ordering::Release);
        self.sequence.end_change();
        replaced
    }

    /// The current bank, for a holder of the lock.
    fn current_bank(&self) -> &Bank {
        &self.banks[self.sequence.load_locked().current_bank()]
    }

    /// The record of the value that is there.
    pub(crate) fn record(&self, _locked: &Key) -> Record {
        // Relaxed, here and below: only holders of the lock write it, and it orders them.
        let bank = self.current_bank();
        Record {
            generation: bank.generation.load(Ordering::Relaxed),
            published: bank.published.load(Ordering::Relaxed),
            initial_age: bank.initial_age.load(Ordering::Relaxed),
            ttl: bank.ttl.load(Ordering::Relaxed),
            declared_stale: bank.declared_stale.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_due_at(&self, _locked: &mut Key, tick: u64) {
        // Release: pairs with the Acquire in `due_at`.
        self.due_at.store(tick, Ordering::Release);
        self.sequence.advance();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_value_may_be_older_than_the_clock() {
        let restored = |initial_age, ttl| Record { initial_age, ..Record::fresh(1, 100, ttl) };
        assert_eq!(restored(0, 50).fresh_end(), 151);
        assert_eq!(restored(50, 50).fresh_end(), 101);
        assert_eq!(restored(51, 50).fresh_end(), 0);
        assert_eq!(restored(51, 50).stale_end(0), 100);
        assert_eq!(restored(1_000, 50).stale_end(900), 51);
        assert_eq!(restored(1_000, 50).stale_end(800), 0);
        assert_eq!(restored(u64::MAX, 50).stale_end(u64::MAX - 1), 150);
        assert_eq!(restored(u64::MAX, FOREVER).fresh_end(), FOREVER);
        assert_eq!(restored(u64::MAX, 0).age(200), u64::MAX);
        assert_eq!(restored(7, 50).age(110), 17);
        assert_eq!(restored(7, 50).declared_stale_at(120).stale_end(5), 125);
        assert_eq!(restored(70, 50).declared_stale_at(120).stale_end(5), 86);
        assert_eq!(restored(0, FOREVER).declared_stale_at(120).stale_end(5), 125);
        assert_eq!((restored(0, 50).stale_for(151), restored(0, 50).stale_for(152)), (0, 1));
        assert_eq!(
            (restored(1_000, 50).stale_for(110), restored(7, 50).declared_stale_at(120).stale_for(125)),
            (959, 5)
        );
        assert_eq!(
            (restored(70, 50).declared_stale_at(120).stale_for(125), restored(9, FOREVER).stale_for(200)),
            (44, 0)
        );
    }
}
