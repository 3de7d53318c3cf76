//! What all handles of a map share.

use std::borrow::Borrow;
use std::hash::Hash;
use std::ops::Deref;
use std::panic::RefUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dogpile::{Clock, Freshness, Policy, Snapshot};
use parking_lot::RwLock;

use crate::batches::Queue;
use crate::clock::{self, freshness, moment, nanos};
use crate::epochs::{Epochs, Origin};
use crate::flight::{Cell, FlightRef, Flights, Made, Progress};
use crate::stats::Counters;
use crate::store::{Bound, Entry, Evicting, Life, Parts, Store, Traits};

pub(crate) type Weigh<K, T> = Box<dyn Fn(&K, &T) -> u32 + Send + Sync>;
pub(crate) type Tag<K, T> = Box<dyn Fn(&K, &T) -> Vec<Box<str>> + Send + Sync>;

pub(crate) struct Inner<K, T, C> {
    pub(crate) store: Evicting<K, T>,
    pub(crate) flights: Flights<K, T, C>,
    pub(crate) epochs: Epochs,
    pub(crate) policy: Policy,
    /// The policy's, as [`freshness`].
    pub(crate) ttl: i64,
    /// For how long past its end a value may be served while it is rebuilt.
    stale_window: i64,
    /// The longer one of both windows.
    pub(crate) longest_window: i64,
    lag: i64,
    pub(crate) clock: C,
    pub(crate) name: Option<&'static str>,
    pub(crate) weigh: Option<Weigh<K, T>>,
    pub(crate) tag: Option<Tag<K, T>>,
    pub(crate) stats: Counters,
    /// Whether `queue` is set.
    is_batched: AtomicBool,
    queue: RwLock<Option<Arc<Queue<K>>>>,
}

// As for a cell: a build that panics gives its lease back, and the user's functions run under no lock. Whether a key or a value is
// in order after a panic while it was in use is its own concern.
impl<K: RefUnwindSafe, T: RefUnwindSafe, C: RefUnwindSafe> RefUnwindSafe for Inner<K, T, C> {}

/// What is at rest, or in flight.
pub(crate) enum Look<T> {
    Fresh(Arc<T>),
    /// It may be served. At rest: unless a flight says otherwise.
    Stale(Arc<T>),
    Nothing,
}

impl<T> Look<T> {
    /// At what a flight may serve.
    fn at(held: Option<Snapshot<Made<T>>>) -> Self {
        let Some(seen) = held else { return Self::Nothing };
        let value = Arc::clone(&seen.value.value);
        if seen.freshness == Freshness::Fresh { Self::Fresh(value) } else { Self::Stale(value) }
    }

    pub(crate) fn freshness(&self) -> Freshness {
        match self {
            Self::Fresh(_) => Freshness::Fresh,
            Self::Stale(_) => Freshness::Stale,
            Self::Nothing => Freshness::Empty,
        }
    }

    pub(crate) fn value(self) -> Option<Arc<T>> {
        match self {
            Self::Fresh(value) | Self::Stale(value) => Some(value),
            Self::Nothing => None,
        }
    }
}

/// Whether a value is fresh, or has not been stale for longer than `window`.
pub(crate) fn is_within<T>(seen: &Snapshot<T>, window: Duration) -> bool {
    seen.freshness == Freshness::Fresh || window == Duration::MAX || seen.stale_for < window
}

/// What [`Inner::new`] is given.
pub(crate) struct Setup<K, T, C> {
    pub(crate) policy: Policy,
    pub(crate) bound: Bound,
    pub(crate) parked: usize,
    pub(crate) clock: C,
    pub(crate) name: Option<&'static str>,
    pub(crate) weigh: Option<Weigh<K, T>>,
    pub(crate) tag: Option<Tag<K, T>>,
}

impl<K: Eq + Hash + Clone, T, C: Clock + Clone> Inner<K, T, C> {
    pub(crate) fn new(setup: Setup<K, T, C>) -> Self {
        let Setup { policy, bound, parked, clock, name, weigh, tag } = setup;
        let stale_window = nanos(policy.get_stale_while_refresh());
        Self {
            store: Evicting::new(bound),
            flights: Flights::new(parked),
            epochs: Epochs::new(),
            ttl: freshness(policy.get_ttl()),
            stale_window,
            longest_window: stale_window.max(nanos(policy.get_stale_if_error())),
            lag: nanos(clock.coarse_lag()),
            policy,
            clock,
            name,
            weigh,
            tag,
            stats: Counters::default(),
            is_batched: AtomicBool::new(false),
            queue: RwLock::new(None),
        }
    }

    /// Looks at the store only.
    #[inline]
    pub(crate) fn look<Q>(&self, key: &Q) -> Look<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let Some(entry) = self.store.get(key) else { return Look::Nothing };
        self.judge(entry)
    }

    #[inline]
    fn judge(&self, entry: Entry<T>) -> Look<T> {
        if entry.is_current(&self.epochs) && self.is_before(entry.fresh_end(self.ttl)) {
            return Look::Fresh(entry.value);
        }
        self.look_at_stale(entry)
    }

    #[cold]
    fn look_at_stale(&self, entry: Entry<T>) -> Look<T> {
        let life = entry.life(&self.epochs, self.ttl);
        let is_served =
            !entry.is_cleared(&self.epochs) && life.is_served(self.stale_window, moment(self.clock.now()));
        if is_served { Look::Stale(entry.value) } else { Look::Nothing }
    }

    /// Whether that moment is still to come. The exact clock is asked only where the coarse one's lag matters.
    #[inline]
    fn is_before(&self, end: i64) -> bool {
        let coarse = moment(self.clock.coarse_now());
        coarse.saturating_add(self.lag) < end || self.is_exactly_before(coarse, end)
    }

    #[cold]
    fn is_exactly_before(&self, coarse: i64, end: i64) -> bool {
        coarse < end && moment(self.clock.now()) < end
    }

    /// A fresh value at rest that was published at most `max_age` ago.
    pub(crate) fn fresh_and_young<Q>(&self, key: &Q, max_age: i64) -> Option<Arc<T>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let entry = self.store.get(key)?;
        let now = moment(self.clock.now());
        let is_accepted = entry.is_current(&self.epochs)
            && now < entry.fresh_end(self.ttl)
            && now.saturating_sub(entry.published) <= max_age;
        is_accepted.then_some(entry.value)
    }

    /// What may be served now, without a build.
    pub(crate) fn servable<Q>(&self, key: &Q) -> Option<Arc<T>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Look::Fresh(value) = self.look(key) {
            self.stats.count_hit();
            return Some(value);
        }
        let found = self.peek(key);
        self.stats.count_read(found.freshness());
        found.value()
    }

    /// As [`servable`](Self::servable), and neither counts as a use nor is counted.
    pub(crate) fn peek<Q>(&self, key: &Q) -> Look<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some(fresh @ Look::Fresh(_)) = self.store.peek(key).map(|entry| self.judge(entry)) {
            return fresh;
        }
        match self.flights.find(key) {
            Some(flight) => Look::at(self.held(&flight.cell)),
            // Again, since a flight may have ended in between.
            None => self.store.peek(key).map_or(Look::Nothing, |entry| self.judge(entry)),
        }
    }

    /// What a flight may serve without a build.
    pub(crate) fn held(&self, cell: &Cell<T, C>) -> Option<Snapshot<Made<T>>> {
        let mut lapsed = None;
        loop {
            let seen = cell.snapshot().filter(|seen| seen.freshness != Freshness::Expired)?;
            if self.accepts(cell, &seen.value, &mut lapsed) {
                return Some(seen);
            }
        }
    }

    /// Whether a value that the cell has served will do, with regard to invalidations of many keys, of which the cell does
    /// not know. If not, it is declared stale there, and the call looks again.
    ///
    /// `lapsed`: what this call has declared stale before. If the cell serves that again, it serves it as stale. A value that
    /// another call has declared stale may have been looked at before that, as a fresh one.
    pub(crate) fn accepts(
        &self,
        cell: &Cell<T, C>,
        made: &Arc<Made<T>>,
        lapsed: &mut Option<Arc<Made<T>>>,
    ) -> bool {
        let Some(moment) = self.lapsed_at(made) else { return true };
        if lapsed.as_ref().is_some_and(|lapsed| Arc::ptr_eq(lapsed, made)) {
            return true;
        }
        // The windows begin when it was declared stale, not when this call notices. A flight's cell has no listeners, whose code
        // would see that time too.
        clock::at(moment, || cell.invalidate_if_current(made));
        *lapsed = Some(Arc::clone(made));
        false
    }

    /// Whether no invalidation of many keys has overtaken it.
    pub(crate) fn is_current(&self, made: &Made<T>) -> bool {
        self.lapsed_at(made).is_none()
    }

    /// See [`Epochs::lapsed_at`].
    fn lapsed_at(&self, made: &Made<T>) -> Option<i64> {
        self.epochs.lapsed_at(made.origin, made.traits.tags.as_deref().unwrap_or_default())
    }

    /// What the user's functions say of a value. Not under a lock.
    pub(crate) fn traits(&self, key: &K, value: &T) -> Traits {
        let weight = self.weigh.as_ref().map_or(1, |weigh| weigh(key, value).max(1));
        let tags = self.tag.as_ref().map(|tag| tag(key, value)).filter(|tags| !tags.is_empty());
        Traits { weight, tags: tags.map(|tags| self.epochs.marks(&tags)) }
    }

    /// An entry that was published at `now`, but `age` before.
    pub(crate) fn entry(&self, made: Made<T>, ttl: Duration, age: Duration, now: i64) -> Entry<T> {
        let published = now.saturating_sub(nanos(age));
        let life = Life { published, fresh_end: published.saturating_add(freshness(ttl)), is_lapsed: false };
        let Made { value, origin, traits } = made;
        Entry::new(Parts { value, life, origin, traits }, self.ttl)
    }

    /// A build of `key` begins.
    pub(crate) fn begin<'b>(&'b self, key: &'b K) -> Building<'b, K, T, C> {
        self.stats.builds.count();
        // Before the build reads anything.
        Building { map: self, key, origin: self.epochs.origin(), is_over: false }
    }

    pub(crate) fn queue(&self) -> Option<Arc<Queue<K>>> {
        // Relaxed: a caller that sees it late builds for itself once more.
        if !self.is_batched.load(Ordering::Relaxed) {
            return None;
        }
        self.queue.read().clone()
    }

    /// Returns whether there was none.
    pub(crate) fn attach(&self, queue: &Arc<Queue<K>>) -> bool {
        let mut place = self.queue.write();
        let is_free = place.is_none();
        if is_free {
            *place = Some(Arc::clone(queue));
            self.is_batched.store(true, Ordering::Relaxed);
        }
        is_free
    }

    /// If it is the one that is attached.
    pub(crate) fn detach(&self, queue: &Arc<Queue<K>>) {
        let mut place = self.queue.write();
        let detached = place.take_if(|attached| Arc::ptr_eq(attached, queue));
        if detached.is_some() {
            self.is_batched.store(false, Ordering::Relaxed);
        }
        drop(place);
        drop(detached);
    }

    /// If stale keys are rebuilt in batches: a value to serve, which is counted, and its key has been noted if that is stale.
    pub(crate) fn leave_to_batch<Q>(&self, key: &Q) -> Option<Arc<T>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let queue = self.queue()?;
        let found = match self.flights.find(key) {
            Some(flight) => Look::at(self.held(&flight.cell)),
            None => self.look(key),
        };
        let is_served = match found {
            Look::Fresh(_) => true,
            Look::Stale(_) => queue.push(key),
            Look::Nothing => false,
        };
        if !is_served {
            return None;
        }
        self.stats.count_read(found.freshness());
        found.value()
    }
}

/// A build that runs, to be counted and numbered.
pub(crate) struct Building<'b, K, T, C> {
    map: &'b Inner<K, T, C>,
    key: &'b K,
    origin: Origin,
    is_over: bool,
}

impl<K: Eq + Hash + Clone, T, C: Clock + Clone> Building<'_, K, T, C> {
    pub(crate) fn finish(mut self, value: Arc<T>) -> Made<T> {
        let traits = self.map.traits(self.key, &value);
        self.is_over = true;
        Made { value, origin: self.origin, traits }
    }

    pub(crate) fn fail(mut self) {
        self.is_over = true;
        self.map.stats.failures.count();
    }

    /// It is over, and neither a value nor an error came of it.
    pub(crate) fn end(mut self) {
        self.is_over = true;
    }

    /// As [`finish`](Self::finish) or [`fail`](Self::fail).
    pub(crate) fn conclude<E>(self, result: Result<T, E>) -> Result<Made<T>, E> {
        match result {
            Ok(value) => Ok(self.finish(Arc::new(value))),
            Err(error) => {
                self.fail();
                Err(error)
            }
        }
    }
}

impl<K, T, C> Drop for Building<'_, K, T, C> {
    fn drop(&mut self) {
        if !self.is_over {
            let stats = &self.map.stats;
            if std::thread::panicking() { &stats.failures } else { &stats.abandoned }.count();
        }
    }
}

impl<K, T, C, H> FlightRef<K, T, C, H>
where
    K: Eq + Hash + Clone,
    C: Clock + Clone,
    H: Deref<Target = Inner<K, T, C>>,
{
    /// The build of this call begins.
    pub(crate) fn begin(&self) -> Building<'_, K, T, C> {
        self.set_progress(Progress::Building);
        self.map.begin(&self.flight.key)
    }

    pub(crate) fn build(&self, build: impl FnOnce(&K) -> T) -> Made<T> {
        let building = self.begin();
        building.finish(Arc::new(build(&self.flight.key)))
    }

    pub(crate) fn try_build<E>(&self, build: impl FnOnce(&K) -> Result<T, E>) -> Result<Made<T>, E> {
        let building = self.begin();
        building.conclude(build(&self.flight.key))
    }

    /// The end of each call that has entered a flight: counts it by what was there for it, if that is what it was served.
    pub(crate) fn count(&self, found: Freshness) {
        let found = if self.progress() == Progress::Building { Freshness::Empty } else { found };
        self.map.stats.count_read(found);
    }
}
