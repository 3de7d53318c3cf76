//! Flights: the keys that are not at rest. This page is the protocol of the crate.
//!
//! # States of a key
//!
//! | state | where its value is | what a read uses |
//! |---|---|---|
//! | absent | nowhere | nothing |
//! | at rest | in the store: `(Arc<T>, published, origin)` inline | the store |
//! | in flight | in a [`DogpileCell`], made for it; perhaps in the store too | the cell |
//!
//! A key is put in flight by the first caller that finds nothing fresh, or asks for something newer than it finds, or by a
//! write that meets a flight. The cell is given the value at rest with its past ([`clock::at`]). The cell then
//! decides what may be served, which caller builds, and which callers wait or share an error (G1 to G7, G10). **While a flight
//! is registered it is the authority on its key.** If the store evicts the key meanwhile, readers find nothing there and ask
//! the flight. (A map of cells would lose the cell, and with it the lease and the fence.)
//!
//! # Rules
//!
//! 1. A flight is registered and removed under the lock of its shard; so is each write to the store of a key of that shard.
//!    Lock order: a flight's shard, then the store's. No build, no destructor, no clock, no waker runs under them: keys and
//!    values that are replaced or evicted are collected and dropped after unlocking; a cell is looked at under the lock only through
//!    [`clock::at`], which does not ask the user's clock.
//! 2. A flight has a count of users: callers between [`Flights::enter`] and the drop of their [`FlightRef`]. It is raised under
//!    the lock, and a flight is removed only at zero. So builds, waiters and leases of one key are always in one cell, and
//!    a cell that is not registered has none. The caller that brings the count to zero sees to the removal: exactly one does. A
//!    future that is dropped drops its `FlightRef`.
//! 3. A call that has built, or tried to, copies the cell's state to the store before it returns ([`Flights::sync`]): under the lock,
//!    from a look at the cell under that lock. So of two publications the later one is what stays.
//! 4. A change is a `set`, an `invalidate`, a `clear`, or a read that asks for something newer than a fresh value. From the
//!    beginning of a change to the end of the last one, readers ask the flight, so no thread sees the new value and then the old
//!    one (G3):
//!    * At the beginning, the entry at rest is *deferred*: a reader does not take it as fresh, and looks for a flight.
//!    * The change takes effect in the cell, at one point.
//!    * At the end, if no other change runs, the cell's state is copied back. If a build runs then, which is going to change the
//!      cell, the copy is deferred too, until the end of that build.
//! 5. Without a flight, a write changes the store under the lock; there is no build that it would have to fence.
//!
//! # Invalidations of many keys
//!
//! They raise a mark ([`epochs`](crate::epochs)) and tell no cell. A caller that is served by a cell compares the value with
//! the marks; if it is older, the caller declares it stale there (only if the cell still holds it) and looks again. A build
//! that an invalidation overtakes is published with its old origin, so it is compared in the same way (G4). `clear_all`
//! raises a mark for the keys at rest, and clears each flight: their waiters have to look again.
//!
//! # Failures
//!
//! A flight whose last build failed is *parked* instead of removed: its cell holds the error and the retry pause. It is removed
//! when the pause is over and as long again has passed (so that the back-off grows for a key that is asked for steadily).
//! Parked flights are in a queue of each shard, which has a bound: the oldest is removed when there are more. So a flood of
//! unknown keys that fail costs a bounded amount of memory. There is no timer: the removal is done by the next caller that
//! puts a key of the same shard in flight, or that builds or changes one there. A shard without such calls keeps its parked
//! flights, up to the bound.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dogpile::{Clock, DogpileCell, Freshness, Policy, RefreshError, Snapshot};

use crate::clock::{self, FlightClock, NEVER, moment, nanos};
use crate::epochs::Origin;
use crate::error::LeftOut;
use crate::inner::Inner;
use crate::many::is_loading;
use crate::store::{Entry, Life, Parts, Removed, Store, Traits};
use crate::sync::{AtomicBool, AtomicI64, AtomicU8, AtomicUsize, Hashes, RwLock, shards};

/// What a flight's cell holds.
pub(crate) struct Made<T> {
    pub(crate) value: Arc<T>,
    pub(crate) origin: Origin,
    pub(crate) traits: Traits,
}

pub(crate) type Cell<T, C> = DogpileCell<Made<T>, FlightClock<C>>;

/// A key in flight.
pub(crate) struct Flight<K, T, C> {
    pub(crate) key: K,
    pub(crate) cell: Arc<Cell<T, C>>,
    /// See rule 2. Raised under the shard's lock.
    users: AtomicUsize,
    /// Changes under way. Changed under the shard's lock, exclusively held.
    changes: AtomicUsize,
    /// It failed, and is in the queue or waits to be removed from it. Written under the lock.
    is_parked: AtomicBool,
    /// When it may be forgotten, if it is parked. Under the lock.
    forget_at: AtomicI64,
}

/// The flights of some of the keys.
pub(crate) struct Shard<K, T, C> {
    flights: HashMap<K, Arc<Flight<K, T, C>>, Hashes>,
    /// Each flight at most once.
    parked: VecDeque<Arc<Flight<K, T, C>>>,
    /// Before that, none of those may be forgotten.
    sweep_at: i64,
}

/// What a shard has let go of, to be dropped after unlocking: the keys too, whose destructors are user code.
type Swept<K, T, C> = Vec<(Option<K>, Arc<Flight<K, T, C>>)>;

pub(crate) struct Flights<K, T, C> {
    shards: Box<[RwLock<Shard<K, T, C>>]>,
    hasher: Hashes,
    /// The most that are parked in each shard.
    parked: usize,
}

/// What a call returns.
pub(crate) type Answer<T> = Result<Arc<T>, RefreshError>;

/// What a caller wants of a flight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// What is there, or to rebuild it if it is not fresh.
    Read,
    /// To replace what is there, even if it is fresh. See rule 4.
    Change,
}

/// What [`Flights::enter`] leads to.
pub(crate) enum Entered<K, T, C, H>
where
    K: Eq + Hash + Clone,
    C: Clock + Clone,
    H: Deref<Target = Inner<K, T, C>>,
{
    /// Another caller has published meanwhile.
    Fresh(Arc<T>),
    Flight(FlightRef<K, T, C, H>),
    /// A loader on this thread builds the key: the caller must not wait for it.
    Loading(FlightRef<K, T, C, H>),
}

impl<K, T, C, H> Entered<K, T, C, H>
where
    K: Eq + Hash + Clone,
    C: Clock + Clone,
    H: Deref<Target = Inner<K, T, C>>,
{
    fn new(map: H, flight: Arc<Flight<K, T, C>>, purpose: Purpose) -> Self {
        let flight = FlightRef::new(map, flight, purpose);
        if is_loading(flight.cell()) { Self::Loading(flight) } else { Self::Flight(flight) }
    }

    /// `Err`: a value that is there, without a flight, or that there must be no wait. What is served instead of a wait meets
    /// the caller's conditions: it `accepts` that.
    pub(crate) fn flight(
        self,
        accepts: impl FnOnce(&Snapshot<Made<T>>) -> bool,
    ) -> Result<FlightRef<K, T, C, H>, Answer<T>> {
        match self {
            Self::Flight(flight) => Ok(flight),
            Self::Fresh(value) => Err(Ok(value)),
            Self::Loading(flight) => {
                let seen = flight.map.held(flight.cell()).filter(accepts);
                flight.count(seen.as_ref().map_or(Freshness::Empty, |seen| seen.freshness));
                Err(seen.map(|seen| Arc::clone(&seen.value.value)).ok_or(RefreshError::Reentrant))
            }
        }
    }
}

impl<K: Eq + Hash + Clone, T, C: Clock + Clone> Flights<K, T, C> {
    pub(crate) fn new(parked: usize) -> Self {
        let count = shards();
        let shard = || {
            let flights = HashMap::with_hasher(Hashes::default());
            RwLock::new(Shard { flights, parked: VecDeque::new(), sweep_at: NEVER })
        };
        Self {
            shards: (0..count).map(|_| shard()).collect(),
            hasher: Hashes::default(),
            parked: parked.div_ceil(count),
        }
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> &RwLock<Shard<K, T, C>> {
        // The upper half: a shard's own table uses the lower bits.
        let hash = self.hasher.hash_one(key) >> 32;
        &self.shards[usize::try_from(hash).unwrap_or(0) & (self.shards.len() - 1)]
    }

    /// The registered flight of a key, to look at only.
    pub(crate) fn find<Q>(&self, key: &Q) -> Option<Arc<Flight<K, T, C>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shard(key).read().flights.get(key).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().flights.len()).sum()
    }

    /// The keys that are in flight now.
    pub(crate) fn all(&self) -> Vec<Arc<Flight<K, T, C>>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.read().flights.values().cloned());
        }
        all
    }
}

impl<K: Eq + Hash + Clone, T, C: Clock + Clone> Inner<K, T, C> {
    /// Joins the key's flight, or puts the key in flight.
    pub(crate) fn enter<Q, H>(map: H, key: &Q, purpose: Purpose) -> Entered<K, T, C, H>
    where
        H: Deref<Target = Self>,
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if purpose == Purpose::Read {
            let shard = map.flights.shard(key).read();
            if let Some(flight) = shard.flights.get(key) {
                let flight = flight.joined();
                drop(shard);
                return Entered::new(map, flight, purpose);
            }
        }
        match map.put_in_flight(key.to_owned(), purpose) {
            Ok(flight) => Entered::new(map, flight, purpose),
            Err(value) => {
                map.stats.count_hit();
                Entered::Fresh(value)
            }
        }
    }

    /// `Err`: there is a fresh value, which is all that the caller wants.
    fn put_in_flight(&self, key: K, purpose: Purpose) -> Result<Arc<Flight<K, T, C>>, Arc<T>> {
        let now = moment(self.clock.now());
        let policy = self.flight_policy();
        let (copy, mut changed) = (key.clone(), (purpose == Purpose::Change).then(|| key.clone()));
        // Declared before the guard, so that they are dropped after unlocking.
        let clock = self.clock.clone();
        let (mut removed, mut swept) = (Vec::new(), Vec::new());
        let mut entry = None;
        let mut shard = self.flights.shard(&key).write();
        let flight = if let Some(registered) = shard.flights.get(&key) {
            registered.joined()
        } else {
            entry = self.store.peek(&key);
            let there = entry.as_ref().filter(|entry| !entry.is_cleared(&self.epochs));
            if purpose == Purpose::Read
                && let Some(there) = there
                && there.life(&self.epochs, self.ttl).is_fresh(now)
            {
                return Err(Arc::clone(&there.value));
            }
            let seed = there.map(|there| there.clone().into_parts(&self.epochs, self.ttl));
            let flight = Flight::new(key, policy, self.name, clock, seed);
            shard.flights.insert(copy, Arc::clone(&flight));
            shard.sweep(now, &mut swept);
            flight
        };
        if purpose == Purpose::Change {
            self.begin_change(&flight, &mut changed, &mut removed);
        }
        drop(shard);
        drop((removed, swept, entry));
        Ok(flight)
    }

    /// Defers the entry at rest, under the lock. `key`: the flight's, cloned before; what is left of it is dropped after
    /// unlocking.
    fn begin_change(&self, flight: &Flight<K, T, C>, key: &mut Option<K>, removed: &mut Removed<K, T>) {
        // Relaxed: under the lock.
        flight.changes.fetch_add(1, Ordering::Relaxed);
        let Some(entry) = self.store.peek(&flight.key) else { return };
        let Some(key) = key.take() else { return };
        if entry.is_lapsed() {
            removed.push((key, entry));
        } else {
            self.store.replace(key, entry.defer(), removed);
        }
    }

    /// For a change of a key from outside: joins its flight, or else runs `direct` on the store, under the lock.
    pub(crate) fn change<Q, R>(
        &self,
        key: &Q,
        direct: impl FnOnce(&mut Removed<K, T>) -> R,
    ) -> Result<FlightRef<K, T, C, &Self>, R>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let mut owned = Some(key.to_owned());
        let mut removed = Vec::new();
        let shard = self.flights.shard(key).write();
        let Some(flight) = shard.flights.get(key).map(Flight::joined) else {
            let done = direct(&mut removed);
            drop(shard);
            self.stats.count_evictions(key, &removed);
            return Err(done);
        };
        self.begin_change(&flight, &mut owned, &mut removed);
        drop(shard);
        Ok(FlightRef::new(self, flight, Purpose::Change))
    }

    /// The policy of a flight: jitter is drawn once for it.
    fn flight_policy(&self) -> Policy {
        let policy = self.policy;
        if policy.get_jitter() == 0 {
            return policy;
        }
        let (first, max) = policy.get_retry_backoff();
        let draw = draw();
        let longer = |pause: Duration| pause.saturating_add(self.share(pause, draw));
        let ttl = policy.get_ttl();
        let drawn = Policy::ttl(ttl.saturating_sub(self.share(ttl, draw)))
            .stale_while_refresh(policy.get_stale_while_refresh())
            .stale_if_error(policy.get_stale_if_error())
            .retry_backoff(longer(first), longer(max));
        match policy.get_lease_timeout() {
            Duration::MAX => drawn,
            timeout => drawn.lease_timeout(timeout),
        }
    }

    /// A ttl, shortened by jitter.
    pub(crate) fn drawn_ttl(&self, ttl: Duration) -> Duration {
        if self.policy.get_jitter() == 0 { ttl } else { ttl.saturating_sub(self.share(ttl, draw())) }
    }

    /// The share of a time that `draw` takes of the policy's jitter. None of a time without end.
    fn share(&self, time: Duration, draw: u32) -> Duration {
        if time == Duration::MAX {
            return Duration::ZERO;
        }
        let most = time.as_nanos() / 100 * u128::from(self.policy.get_jitter());
        Duration::from_nanos(u64::try_from((most * (u128::from(draw) + 1)) >> 32).unwrap_or(u64::MAX))
    }

    /// Copies what the cell holds to the store, under the lock. `key`: the flight's, cloned before. What is left of it, and what
    /// is returned, is dropped after unlocking.
    fn sync(
        &self,
        flight: &Flight<K, T, C>,
        key: &mut Option<K>,
        now: i64,
        removed: &mut Removed<K, T>,
    ) -> Option<Arc<Made<T>>> {
        let Some(seen) = clock::at(now, || flight.cell.snapshot()) else {
            removed.extend(self.store.remove(&flight.key));
            return None;
        };
        let published = now.saturating_sub(nanos(seen.age));
        let is_lapsed = seen.freshness != Freshness::Fresh;
        let fresh_end = if is_lapsed {
            now.saturating_sub(nanos(seen.stale_for))
        } else {
            // `fresh_for` ends at the last fresh tick.
            now.saturating_add(nanos(seen.fresh_for)).saturating_add(1)
        };
        let life = Life { published, fresh_end, is_lapsed };
        if is_lapsed && !life.is_served(self.longest_window, now) {
            removed.extend(self.store.remove(&flight.key));
        } else if let Some(key) = key.take() {
            let Made { value, origin, traits } = &*seen.value;
            let parts = Parts { value: Arc::clone(value), life, origin: *origin, traits: traits.clone() };
            let entry = Entry::new(parts, self.ttl);
            // A build that runs beside a fresh value (a `restore` displaces none) publishes to the cell before its call copies that.
            let entry = if flight.cell.is_refreshing() { entry.defer() } else { entry };
            self.store.insert(key, entry, removed);
        }
        Some(seen.value)
    }

    /// The end of a [`FlightRef`].
    fn leave(&self, flight: &Arc<Flight<K, T, C>>, purpose: Purpose, progress: Progress) {
        if purpose == Purpose::Read && progress == Progress::Served {
            // Release: what the user did with the cell is before the removal. Acquire: of all users.
            // A flight that is parked is removed by a sweep. Relaxed: the sweep takes it out of the queue, and then looks at
            // the count with a read-modify-write (`forget`), as this is one. If that one comes later, it sees this user gone,
            // and removes the flight. If it came before, this one acquires it, and the flight is seen as not parked.
            if flight.users.fetch_sub(1, Ordering::AcqRel) > 1 || flight.is_parked.load(Ordering::Relaxed) {
                return;
            }
            let (now, mut swept) = (self.now_in_drop(), Vec::new());
            let mut shard = self.flights.shard(&flight.key).write();
            shard.retire(flight, now, self.flights.parked, &mut swept);
            drop(shard);
            return;
        }
        let (now, mut key) = (self.now_in_drop(), Some(flight.key.clone()));
        let (mut removed, mut swept, mut synced) = (Vec::new(), Vec::new(), None);
        let mut shard = self.flights.shard(&flight.key).write();
        // Relaxed, all: under the lock.
        if purpose == Purpose::Change {
            flight.changes.fetch_sub(1, Ordering::Relaxed);
        }
        if flight.changes.load(Ordering::Relaxed) == 0
            && (purpose == Purpose::Change || progress != Progress::Served)
        {
            synced = self.sync(flight, &mut key, now, &mut removed);
        }
        // There is no failure to remember any more. Before `retire`, which would leave a flight that it removes in the queue.
        if flight.is_parked.load(Ordering::Relaxed) && pause_of(flight) == 0 {
            flight.is_parked.store(false, Ordering::Relaxed);
            shard.parked.retain(|parked| !Arc::ptr_eq(parked, flight));
        }
        // AcqRel: as above. After `is_parked`: a user that leaves later sees it.
        flight.users.fetch_sub(1, Ordering::AcqRel);
        shard.retire(flight, now, self.flights.parked, &mut swept);
        shard.sweep(now, &mut swept);
        drop(shard);
        self.stats.count_evictions(&flight.key, &removed);
        drop((removed, swept, synced));
    }

    /// The time, for a destructor: a clock that panics must not end the process.
    fn now_in_drop(&self) -> i64 {
        // The fallback makes of a value that is copied then one of the far past: it is built anew.
        catch_unwind(AssertUnwindSafe(|| moment(self.clock.now()))).unwrap_or(0)
    }
}

fn draw() -> u32 {
    // Each `RandomState` hashes with keys of its own, which is all the randomness that jitter needs.
    u32::try_from(std::hash::RandomState::new().hash_one(0) >> 32).unwrap_or(0)
}

/// How long a flight without users is kept after its latest failure, in nanoseconds; 0: it need not be kept.
fn pause_of<K, T, C: Clock>(flight: &Flight<K, T, C>) -> i64 {
    let failures = flight.cell.stats().consecutive_failures;
    let (first, max) = flight.cell.policy().get_retry_backoff();
    // Both are read without the user's clock. That a loader left a key out is no failure to remember.
    if failures == 0 || first.is_zero() || flight.cell.last_error().is_none_or(|error| error.is::<LeftOut>())
    {
        return 0;
    }
    let doublings = u32::try_from(failures - 1).unwrap_or(u32::MAX).min(62);
    nanos(first).saturating_mul(1 << doublings).min(nanos(max)).saturating_mul(2)
}

impl<K: Eq + Hash, T, C: Clock> Shard<K, T, C> {
    /// Removes a flight without users, or parks it.
    fn retire(&mut self, flight: &Arc<Flight<K, T, C>>, now: i64, most: usize, swept: &mut Swept<K, T, C>) {
        // Relaxed, all: under the lock, and the count is raised under it.
        if !self.is_registered(flight) || flight.users.load(Ordering::Acquire) > 0 {
            return;
        }
        let pause = pause_of(flight);
        if pause == 0 {
            self.remove(flight, swept);
            return;
        }
        let forget_at = now.saturating_add(pause);
        flight.forget_at.store(forget_at, Ordering::Relaxed);
        self.sweep_at = self.sweep_at.min(forget_at);
        if !flight.is_parked.swap(true, Ordering::Relaxed) {
            self.parked.push_back(Arc::clone(flight));
        }
        if self.parked.len() > most
            && let Some(oldest) = self.parked.pop_front()
        {
            oldest.is_parked.store(false, Ordering::Relaxed);
            self.forget(&oldest, swept);
            swept.push((None, oldest));
        }
    }

    /// Removes a flight that is not in the queue any more, unless it is in use: then its last user sees to it.
    fn forget(&mut self, flight: &Arc<Flight<K, T, C>>, swept: &mut Swept<K, T, C>) {
        // A read-modify-write, not a load: see `leave`, whose `fetch_sub` it pairs with. With a load, the last user could leave
        // unseen, and still see the flight as parked: nobody would remove it.
        if flight.users.fetch_add(0, Ordering::AcqRel) == 0 {
            self.remove(flight, swept);
        }
    }

    fn is_registered(&self, flight: &Arc<Flight<K, T, C>>) -> bool {
        self.flights.get(&flight.key).is_some_and(|registered| Arc::ptr_eq(registered, flight))
    }

    /// Never another flight of its key, which may be in use.
    fn remove(&mut self, flight: &Arc<Flight<K, T, C>>, swept: &mut Swept<K, T, C>) {
        if !self.is_registered(flight) {
            return;
        }
        let removed = self.flights.remove_entry(&flight.key);
        swept.extend(removed.map(|(key, flight)| (Some(key), flight)));
    }

    /// Forgets the failures whose time has come.
    fn sweep(&mut self, now: i64, swept: &mut Swept<K, T, C>) {
        if now < self.sweep_at {
            return;
        }
        self.sweep_at = NEVER;
        for _ in 0..self.parked.len() {
            let Some(flight) = self.parked.pop_front() else { break };
            let forget_at = flight.forget_at.load(Ordering::Relaxed);
            if now < forget_at {
                self.sweep_at = self.sweep_at.min(forget_at);
                self.parked.push_back(flight);
            } else {
                flight.is_parked.store(false, Ordering::Relaxed);
                self.forget(&flight, swept);
                swept.push((None, flight));
            }
        }
    }
}

impl<K, T, C: Clock> Flight<K, T, C> {
    /// With one user.
    fn new(
        key: K,
        policy: Policy,
        name: Option<&'static str>,
        clock: C,
        seed: Option<Parts<T>>,
    ) -> Arc<Self> {
        let mut cell = DogpileCell::with_clock(policy, FlightClock(clock));
        if let Some(name) = name {
            cell = cell.named(name);
        }
        if let Some(Parts { value, life, origin, traits }) = seed {
            let Life { published, fresh_end, is_lapsed } = life;
            let made = Made { value, origin, traits };
            clock::at(published, || drop(cell.set_for(made, clock::ttl(published, fresh_end))));
            if is_lapsed {
                clock::at(fresh_end.max(published), || cell.invalidate());
            }
        }
        Arc::new(Self {
            key,
            cell: Arc::new(cell),
            users: AtomicUsize::new(1),
            changes: AtomicUsize::new(0),
            is_parked: AtomicBool::new(false),
            forget_at: AtomicI64::new(NEVER),
        })
    }

    /// Under the shard's lock.
    fn joined(self: &Arc<Self>) -> Arc<Self> {
        // Relaxed: the lock orders it before a removal.
        self.users.fetch_add(1, Ordering::Relaxed);
        Arc::clone(self)
    }
}

/// How far the call behind a [`FlightRef`] has come.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Progress {
    /// It has not begun to build.
    Served = 0,
    Building = 1,
    /// A spawner has its build.
    HandedOver = 2,
}

/// A user of a flight.
pub(crate) struct FlightRef<K, T, C, H>
where
    K: Eq + Hash + Clone,
    C: Clock + Clone,
    H: Deref<Target = Inner<K, T, C>>,
{
    pub(crate) map: H,
    pub(crate) flight: Arc<Flight<K, T, C>>,
    purpose: Purpose,
    progress: AtomicU8,
}

impl<K, T, C, H> FlightRef<K, T, C, H>
where
    K: Eq + Hash + Clone,
    C: Clock + Clone,
    H: Deref<Target = Inner<K, T, C>>,
{
    fn new(map: H, flight: Arc<Flight<K, T, C>>, purpose: Purpose) -> Self {
        Self { map, flight, purpose, progress: AtomicU8::new(Progress::Served as u8) }
    }

    pub(crate) fn cell(&self) -> &Arc<Cell<T, C>> {
        &self.flight.cell
    }

    pub(crate) fn progress(&self) -> Progress {
        // Relaxed, here and below: a call's build runs on its own thread, or is ordered by its end.
        match self.progress.load(Ordering::Relaxed) {
            0 => Progress::Served,
            1 => Progress::Building,
            _ => Progress::HandedOver,
        }
    }

    pub(crate) fn set_progress(&self, progress: Progress) {
        self.progress.store(progress as u8, Ordering::Relaxed);
    }

    /// Whether a value that the cell has served to this call will do. If not, the call looks again. See [`Inner::accepts`].
    pub(crate) fn accepts(&self, made: &Arc<Made<T>>, lapsed: &mut Option<Arc<Made<T>>>) -> bool {
        self.progress() != Progress::Served || self.map.accepts(&self.flight.cell, made, lapsed)
    }
}

impl<K, T, C, H> Drop for FlightRef<K, T, C, H>
where
    K: Eq + Hash + Clone,
    C: Clock + Clone,
    H: Deref<Target = Inner<K, T, C>>,
{
    fn drop(&mut self) {
        self.map.leave(&self.flight, self.purpose, self.progress());
    }
}
