//! Where values lie at rest: bounded, concurrent, evicting.
//!
//! What the map needs of a store is [`Store`]; [`Evicting`] is the only one. All writes of a key happen under the lock of its
//! shard of flights (see [`flight`](crate::flight)); reads take none but the store's own. What a write replaces or evicts is
//! handed to the caller in [`Removed`], to be dropped after unlocking.
//!
//! Why `quick_cache`: entries are inline, with 21 bytes of overhead; it evicts by a variant of S3-FIFO, with a hit ratio not
//! below moka's; it has no threads and no queues of pending work, so that a value goes at once; it hands out what it evicts
//! instead of dropping it under its lock; it brings four crates.

use std::hash::Hash;
use std::sync::Arc;

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Lifecycle, OptionsBuilder, Weighter};

use crate::clock::NEVER;
use crate::epochs::{Epochs, Mark, Origin};
use crate::sync::{Hashes, Step};

/// What is kept for a key at rest: 32 bytes beside the key and the value.
pub(crate) struct Entry<T> {
    pub(crate) value: Arc<T>,
    pub(crate) published: i64,
    stamp: Stamp,
    /// `None` for most: the map's ttl, no weight of its own, no tags.
    extra: Option<Arc<Extra>>,
}

impl<T> Clone for Entry<T> {
    #[inline]
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), extra: self.extra.clone(), ..*self }
    }
}

struct Extra {
    fresh_end: i64,
    traits: Traits,
}

/// What the map's functions say of a value.
#[derive(Clone)]
pub(crate) struct Traits {
    pub(crate) weight: u32,
    /// The marks of its tags.
    pub(crate) tags: Option<Arc<[Arc<Mark>]>>,
}

impl Traits {
    pub(crate) const PLAIN: Self = Self { weight: 1, tags: None };

    #[inline]
    fn are_current(&self, origin: Origin) -> bool {
        self.tags.as_deref().is_none_or(|tags| tags.iter().all(|mark| mark.is_current(origin)))
    }
}

/// The origin of a value; negative if it has *lapsed*, so that one compare tells whether it is current.
///
/// An entry has lapsed if its value was declared stale ([`Entry::lapse`]), or if it is deferred to its flight
/// ([`Entry::defer`]). What a reader does is the same: it looks for a flight.
#[derive(Clone, Copy)]
struct Stamp(i64);

impl Stamp {
    fn new(origin: Origin, is_lapsed: bool) -> Self {
        Self(origin.cast_signed() | if is_lapsed { i64::MIN } else { 0 })
    }

    fn origin(self) -> Origin {
        (self.0 & i64::MAX).cast_unsigned()
    }

    fn is_lapsed(self) -> bool {
        self.0 < 0
    }
}

/// From when to when a value is fresh.
#[derive(Clone, Copy)]
pub(crate) struct Life {
    pub(crate) published: i64,
    /// Or when it was declared stale.
    pub(crate) fresh_end: i64,
    pub(crate) is_lapsed: bool,
}

/// An entry, taken apart.
pub(crate) struct Parts<T> {
    pub(crate) value: Arc<T>,
    pub(crate) life: Life,
    pub(crate) origin: Origin,
    pub(crate) traits: Traits,
}

impl<T> Entry<T> {
    /// `ttl`: the map's.
    pub(crate) fn new(parts: Parts<T>, ttl: i64) -> Self {
        let Parts { value, life, origin, traits } = parts;
        let is_plain = traits.weight == 1
            && traits.tags.is_none()
            && life.fresh_end == life.published.saturating_add(ttl);
        let extra = (!is_plain).then(|| Arc::new(Extra { fresh_end: life.fresh_end, traits }));
        Self { value, published: life.published, stamp: Stamp::new(origin, life.is_lapsed), extra }
    }

    #[inline]
    pub(crate) fn fresh_end(&self, ttl: i64) -> i64 {
        match &self.extra {
            None => self.published.saturating_add(ttl),
            Some(extra) => extra.fresh_end,
        }
    }

    /// Whether nothing has declared it stale.
    #[inline]
    pub(crate) fn is_current(&self, epochs: &Epochs) -> bool {
        self.stamp.0 >= epochs.floor().cast_signed()
            && self.extra.as_ref().is_none_or(|extra| extra.traits.are_current(self.stamp.origin()))
    }

    /// Declared stale, or deferred.
    pub(crate) fn is_lapsed(&self) -> bool {
        self.stamp.is_lapsed()
    }

    /// Whether all keys were cleared since it was made.
    pub(crate) fn is_cleared(&self, epochs: &Epochs) -> bool {
        epochs.is_cleared(self.stamp.origin())
    }

    pub(crate) fn life(&self, epochs: &Epochs, ttl: i64) -> Life {
        let origin = self.stamp.origin();
        let mut life = Life {
            published: self.published,
            fresh_end: self.fresh_end(ttl),
            is_lapsed: self.stamp.is_lapsed(),
        };
        let tags = self.extra.as_ref().and_then(|extra| extra.traits.tags.as_deref()).unwrap_or_default();
        if let Some(lapsed) = epochs.lapsed_at(origin, tags) {
            life.fresh_end = life.fresh_end.min(lapsed.max(life.published));
            life.is_lapsed = true;
        }
        life
    }

    pub(crate) fn into_parts(self, epochs: &Epochs, ttl: i64) -> Parts<T> {
        let life = self.life(epochs, ttl);
        let traits = self.extra.as_ref().map_or(Traits::PLAIN, |extra| extra.traits.clone());
        Parts { value: self.value, life, origin: self.stamp.origin(), traits }
    }

    /// Declares it stale at `now`.
    pub(crate) fn lapse(self, epochs: &Epochs, ttl: i64, now: i64) -> Self {
        let mut parts = self.into_parts(epochs, ttl);
        if !parts.life.is_lapsed {
            parts.life.fresh_end = parts.life.fresh_end.min(now.max(parts.life.published));
            parts.life.is_lapsed = true;
        }
        Self::new(parts, ttl)
    }

    /// Sends readers to the flight, which may have something newer.
    pub(crate) fn defer(self) -> Self {
        Self { stamp: Stamp::new(self.stamp.origin(), true), ..self }
    }

    fn weight(&self) -> u64 {
        self.extra.as_ref().map_or(1, |extra| u64::from(extra.traits.weight))
    }
}

impl Life {
    pub(crate) fn is_fresh(&self, now: i64) -> bool {
        !self.is_lapsed && now < self.fresh_end
    }

    /// Whether the value may be served, by a window past its end.
    pub(crate) fn is_served(&self, window: i64, now: i64) -> bool {
        self.is_fresh(now) || window == NEVER || now < self.fresh_end.saturating_add(window)
    }
}

/// What a store has let go of, to be dropped after unlocking.
pub(crate) type Removed<K, T> = Vec<(K, Entry<T>)>;

/// See the [module](self).
pub(crate) trait Store<K, T> {
    /// For a reader: it may count as a use of the key.
    fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<Entry<T>>;
    /// For a writer.
    fn peek<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<Entry<T>>;
    /// What is replaced is among what is removed.
    fn insert(&self, key: K, entry: Entry<T>, removed: &mut Removed<K, T>);
    /// Replaces an entry that is there, which does not count as a use.
    fn replace(&self, key: K, entry: Entry<T>, removed: &mut Removed<K, T>);
    fn remove<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<(K, Entry<T>)>;
    fn len(&self) -> usize;
    fn weight(&self) -> u64;
    fn iter(&self) -> impl Iterator<Item = (K, Entry<T>)>
    where
        K: Clone;
}

/// `quick_cache`: S3-FIFO.
pub(crate) struct Evicting<K, T> {
    cache: Cache<K, Entry<T>, Weights, Hashes, Collect>,
    step: Step,
}

impl<K, T> Evicting<K, T> {
    #[inline]
    fn cache(&self) -> &Cache<K, Entry<T>, Weights, Hashes, Collect> {
        self.step.take();
        &self.cache
    }
}

#[derive(Clone)]
struct Weights;

impl<K, T> Weighter<K, Entry<T>> for Weights {
    #[inline]
    fn weight(&self, _: &K, entry: &Entry<T>) -> u64 {
        entry.weight()
    }
}

#[derive(Clone)]
struct Collect;

impl<K, T> Lifecycle<K, Entry<T>> for Collect {
    type RequestState = Removed<K, T>;

    fn on_evict(&self, removed: &mut Removed<K, T>, key: K, entry: Entry<T>) {
        removed.push((key, entry));
    }
}

/// How much a store may hold.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    Entries(usize),
    Weight(u64),
}

/// Guesses, from which the store only chooses its shards and first sizes: few shards where few entries may fill it.
const USUAL_ENTRIES: usize = 10_000;
const USUAL_WEIGHT: u64 = 64;

impl<K: Eq + Hash, T> Evicting<K, T> {
    pub(crate) fn new(bound: Bound) -> Self {
        let (entries, weight) = match bound {
            Bound::Entries(entries) => (entries, entries as u64),
            Bound::Weight(weight) => {
                let entries = usize::try_from(weight / USUAL_WEIGHT).unwrap_or(USUAL_ENTRIES);
                (entries.clamp(1, USUAL_ENTRIES), weight)
            }
        };
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity(entries).weight_capacity(weight);
        if weight < 32 {
            // Of so few, a share of 97 % for hot entries rounds down to one less than there is place for.
            options.hot_allocation(1.0);
        }
        let options = options.build().expect("both capacities are set");
        Self { cache: Cache::with_options(options, Weights, Hashes::default(), Collect), step: Step::new() }
    }
}

impl<K: Eq + Hash, T> Store<K, T> for Evicting<K, T> {
    #[inline]
    fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<Entry<T>> {
        self.cache().get(key)
    }

    fn peek<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<Entry<T>> {
        self.cache().peek(key)
    }

    fn insert(&self, key: K, entry: Entry<T>, removed: &mut Removed<K, T>) {
        self.cache().insert_with_lifecycle(key, entry, removed);
    }

    fn replace(&self, key: K, entry: Entry<T>, removed: &mut Removed<K, T>) {
        if let Err(rejected) = self.cache().replace_with_lifecycle(key, entry, true, removed) {
            removed.push(rejected);
        }
    }

    fn remove<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<(K, Entry<T>)> {
        self.cache().remove(key)
    }

    fn len(&self) -> usize {
        self.cache().len()
    }

    fn weight(&self) -> u64 {
        self.cache().weight()
    }

    fn iter(&self) -> impl Iterator<Item = (K, Entry<T>)>
    where
        K: Clone,
    {
        self.cache().iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_at_rest_is_thirty_two_bytes() {
        assert_eq!(size_of::<Entry<u64>>(), 32);
    }

    fn entry(weight: u32) -> Entry<u32> {
        let life = Life { published: 0, fresh_end: 10, is_lapsed: false };
        Entry::new(Parts { value: Arc::new(0), life, origin: 1, traits: Traits { weight, tags: None } }, 10)
    }

    /// As the documentation of `Builder::max_weight` says.
    #[test]
    fn a_store_with_a_bound_by_weight_has_shards_of_two_thousand_or_more() {
        let shards = |weight| Evicting::<u32, u32>::new(Bound::Weight(weight)).cache.num_shards();
        assert_eq!(shards(4_000), 1);
        for weight in [4_100, 10_000, 100_000, 1_000_000, u64::from(u32::MAX)] {
            let shards = shards(weight);
            assert!(shards <= 256 && weight / u64::try_from(shards).unwrap() >= 1_900, "{weight}: {shards}");
        }
        let store = Evicting::<u32, u32>::new(Bound::Weight(1_000));
        for (key, weight, is_kept) in [(1, 970, true), (2, 971, false)] {
            store.insert(key, entry(weight), &mut Vec::new());
            assert_eq!(store.peek(&key).is_some(), is_kept, "{weight}");
        }
    }

    #[test]
    fn a_store_of_one_holds_one() {
        let store = Evicting::<u32, u32>::new(Bound::Entries(1));
        for key in [1, 2, 3] {
            let life = Life { published: 0, fresh_end: 10, is_lapsed: false };
            let parts = Parts { value: Arc::new(key), life, origin: 1, traits: Traits::PLAIN };
            let mut removed = Vec::new();
            store.insert(key, Entry::new(parts, 10), &mut removed);
            assert!(removed.len() <= 1);
            assert_eq!(store.len(), 1, "after {key}");
        }
    }
}
