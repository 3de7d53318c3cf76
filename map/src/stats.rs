//! What a map has done so far.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dogpile::Freshness;

use crate::store::Removed;

/// What a map has done since it was made. See [`DogpileMap::stats`](crate::DogpileMap::stats).
///
/// The numbers are read one after the other: while others use the map, they need not add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Reads that were served a fresh value without a build or a wait. Counted without a locked instruction: where more than
    /// 64 threads have used maps, two may share a counter, and miss a few.
    pub hits: u64,
    /// Reads that were served a stale value that was there, because it is being rebuilt or a retry pause runs.
    pub stale_hits: u64,
    /// Reads that built, that were served what came while they waited, or that found nothing.
    pub misses: u64,
    /// Builds that began. A call of a loader counts once for each key that it was asked for.
    pub builds: u64,
    /// Builds that ended with an error or a panic.
    pub failures: u64,
    /// Builds that were given up: their future was dropped.
    pub abandoned: u64,
    /// Values that were evicted to make place for others.
    pub evictions: u64,
    /// How many keys are in flight at this moment: they are being built or changed, or the latest build has failed and is still
    /// remembered, for its retry pause and about as long again.
    pub in_flight: usize,
}

/// So many threads count hits without sharing a counter.
const STRIPES: usize = 64;

/// A counter with a cache line of its own.
#[repr(align(64))]
struct Stripe(AtomicU64);

pub(crate) struct Counters {
    hits: [Stripe; STRIPES],
    stale_hits: Counter,
    misses: Counter,
    pub(crate) builds: Counter,
    pub(crate) failures: Counter,
    pub(crate) abandoned: Counter,
    evictions: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn count(&self) {
        // Relaxed, here and below: a statistic orders nothing.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

thread_local! {
    static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
}

#[cold]
fn choose_stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let stripe = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    STRIPE.set(stripe);
    stripe
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            hits: [const { Stripe(AtomicU64::new(0)) }; STRIPES],
            stale_hits: Counter::default(),
            misses: Counter::default(),
            builds: Counter::default(),
            failures: Counter::default(),
            abandoned: Counter::default(),
            evictions: AtomicU64::new(0),
        }
    }
}

impl Counters {
    #[inline]
    pub(crate) fn count_hit(&self) {
        let mut stripe = STRIPE.get();
        if stripe >= STRIPES {
            stripe = choose_stripe();
        }
        let hits = &self.hits[stripe].0;
        // In two steps: the counter is this thread's own, as a rule, and a locked instruction would be a fifth of a hit.
        hits.store(hits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Counts a read by what was there for it.
    pub(crate) fn count_read(&self, found: Freshness) {
        match found {
            Freshness::Fresh => self.count_hit(),
            Freshness::Stale => self.stale_hits.count(),
            _ => self.misses.count(),
        }
    }

    /// Counts what left the store on behalf of `key`, unless it is what was replaced.
    pub(crate) fn count_evictions<K, Q, T>(&self, key: &Q, removed: &Removed<K, T>)
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let evicted = removed.iter().filter(|(other, _)| other.borrow() != key).count();
        if evicted > 0 {
            self.evictions.fetch_add(evicted as u64, Ordering::Relaxed);
        }
    }

    /// All of them are zero. What is counted meanwhile may be counted before or after.
    pub(crate) fn reset(&self) {
        let Self { hits, stale_hits, misses, builds, failures, abandoned, evictions } = self;
        // Relaxed, as all accesses: they order nothing.
        for stripe in hits {
            stripe.0.store(0, Ordering::Relaxed);
        }
        for counter in [stale_hits, misses, builds, failures, abandoned] {
            counter.0.store(0, Ordering::Relaxed);
        }
        evictions.store(0, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, in_flight: usize) -> Stats {
        Stats {
            hits: self.hits.iter().map(|stripe| stripe.0.load(Ordering::Relaxed)).sum(),
            stale_hits: self.stale_hits.get(),
            misses: self.misses.get(),
            builds: self.builds.get(),
            failures: self.failures.get(),
            abandoned: self.abandoned.get(),
            evictions: self.evictions.load(Ordering::Relaxed),
            in_flight,
        }
    }
}
