//! A node: the local cell, and how it deals with the store.
//!
//! # The local lease
//!
//! What holds everything together is the local cell's lease. It is held by
//!
//! * a caller, as long as it asks the store and builds;
//! * the worker thread ([`Watch`](super::worker::Watch)), as long as another node builds, a pause runs or the store is
//!   down. Readers are served the stale value meanwhile, without a lock. A caller that finds nothing to serve waits for the
//!   lease as for a local build, and is handed the value when the worker takes it over.
//!
//! So no more than one thread of a process deals with the store for an election, and no thread that has something to serve
//! waits for another node. After a `clear` the lease from before it is void: the next caller is elected at once, also while
//! a build from before the `clear` still runs, which the store will refuse.
//!
//! The local cell has no retry pause and no `stale_if_error` of its own: both are the fleet's, and kept here.
//!
//! # What gets into the local cell
//!
//! What the store has accepted; and what this node has built while the store was down, was slower than the policy's patience,
//! or had nothing that can be used here. The latter counts as built for this node alone until the store's answer is there. A
//! build that the store refuses in time goes to its own caller at most: another one has been elected, perhaps with an older
//! reading of the source, and this node must not go back when it takes that over.
//!
//! # Operations that end a build
//!
//! A caller never waits for them longer than the patience. They are jobs of the worker, which goes on with them when the caller
//! has gone:
//!
//! | job | answer in time | answer later |
//! |---|---|---|
//! | publish, `Stored` | published here with its version | what is here gets its version |
//! | publish, refused | what the store has, or else the caller's own | what is here is stale |
//! | publish, failed | published for this node alone; the lease is given back when the store works again | the same |
//! | fail | | given back when the store works again |
//!
//! # Invalidations
//!
//! An invalidation is *owed* from before the store is asked until the store has acknowledged it. While one is owed that nobody
//! is delivering at that moment, each operation delivers it first, and fails if that fails. So nothing that the store had
//! before it can be taken over as fresh here, however long the store was away.
//!
//! # A store that goes back in time
//!
//! The node keeps the latest epoch and version of the incarnation that it has seen. An entry that is behind them has been
//! restored from something older: what a look finds in it does not count, and the next election tells the store, which
//! begins a new incarnation.
//!
//! # Time
//!
//! A store tells what is *left*. That is counted from before the question was asked, so that a slow answer makes a value
//! expire early, never late.

#![allow(clippy::result_large_err)] // with dogpile's feature `tracing`: a lease that comes back

mod ahead;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dogpile::{
    BoxError, Clock, DogpileCell, Freshness, Lease, Lookup, PublishOutcome, Published, SharedError, Tick,
};

use super::build::{BuildContext, Building, Built};
use super::reply::NoAnswer;
use super::worker::{Beat, Watch, Worker};
use crate::access::{Access, Operation};
use crate::breaker::Kind;
use crate::codec::{Codec, Opened, open, seal};
use crate::error::Backoff;
use crate::policy::FleetPolicy;
use crate::store::{
    Acquire, Current, Epoch, Invalidation, LONGEST, Poll, Publication, Publish, RefreshStore, Request, Seen,
    StoreError, Token, Value, Version,
};

pub(crate) use ahead::Ahead;

pub(crate) struct Node<T: 'static, C: Clock + 'static> {
    pub(crate) local: Arc<DogpileCell<T, C>>,
    pub(crate) clock: C,
    pub(crate) name: String,
    pub(crate) access: Access<C>,
    pub(crate) codec: Box<dyn Codec<T>>,
    pub(crate) policy: FleetPolicy,
    pub(crate) worker: Worker<T, C>,
    known: Mutex<Known>,
    /// A right to build whose caller had no patience.
    stash: Mutex<Option<(Won<T>, Tick)>>,
    /// Rights to build that have ended while the store was down; others are kept waiting for them.
    orphans: Mutex<Vec<Token>>,
    /// Nobody asks the store for the right to build before this tick.
    backoff_until: AtomicU64,
    /// The epoch that the store told last.
    epoch: Mutex<Option<Epoch>>,
    seen: Mutex<Option<Seen>>,
    owed: Mutex<Owed>,
    /// Whose turn it is to deliver what is owed. The others wait, as they would have to deliver it too.
    turn: Mutex<()>,
}

/// Invalidations that the store has not acknowledged yet. One stands for several: a hard one for soft ones too.
#[derive(Debug, Default)]
struct Owed {
    how: Option<Invalidation>,
    /// How many invalidations this node has begun in all.
    number: u64,
    /// How many callers of `invalidate` are delivering: what they find here when they come back they make stale themselves.
    delivering: u32,
}

/// A publication, for the worker.
pub(crate) struct Delivery {
    pub(crate) token: Token,
    /// With its tag; `None`: the value was found unchanged.
    payload: Option<(Vec<u8>, Option<String>)>,
}

/// What became of a publication.
pub(crate) struct Delivered {
    answer: Result<Publish, Arc<StoreError>>,
    /// When it was asked for.
    asked: Tick,
    /// If it was refused: what the store has instead, and when that was asked for.
    instead: Option<(Current, Tick)>,
}

/// The answer to a publication whose caller has gone, and the value that was served meanwhile: whichever comes last deals with
/// both.
#[derive(Default)]
pub(crate) struct Late(Mutex<Meeting>);

#[derive(Default)]
enum Meeting {
    #[default]
    Nobody,
    /// The generation of the value.
    Served(u64),
    Answered(Delivered),
}

/// What is known about the value in the local cell.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// Which publication of the local cell this is about.
    generation: u64,
    pub(crate) version: Option<Version>,
    /// The store has this version, but it cannot be read here: the value was built for this node alone.
    foreign: Option<Version>,
    /// When the build for this node alone had ended.
    local_until: Option<Tick>,
    /// The epoch in which that build began, as far as it was known.
    local_epoch: Option<Epoch>,
    /// How many invalidations this node had begun by then.
    local_after: u64,
    /// When it stopped or stops being fresh, unless it was invalidated.
    pub(crate) soft_end: Tick,
    /// When it must not be served any more, if that is earlier than the local cell knows.
    pub(crate) hard_end: Option<Tick>,
}

impl Known {
    /// What the store is told to be known.
    pub(crate) fn to_store(self) -> Option<Version> {
        self.version.or(self.foreign)
    }

    /// Whether the value was built for this node alone, and the store has nothing that could tell whether it still counts.
    fn is_alone(self) -> bool {
        self.local_until.is_some() && self.foreign.is_none()
    }

    /// Whether the value was built for this node alone, and something may have been invalidated since.
    fn has_missed(self, epoch: Epoch) -> bool {
        self.is_alone() && self.local_epoch != Some(epoch)
    }
}

/// The right to build for the fleet.
pub(crate) struct Won<T> {
    token: Token,
    tag: Option<String>,
    failures: u32,
    previous: Option<Arc<T>>,
    /// The store has the previous value too.
    has_value: bool,
}

/// The right to build.
pub(crate) struct Ticket<T: 'static, C: Clock + 'static> {
    /// `None` if another thread has been elected in between. Then this one builds all the same.
    lease: Option<Lease<'static, T, C>>,
    /// `None` for a build for this node alone.
    won: Option<Won<T>>,
    /// A version of the store that cannot be read here, and how long it is fresh.
    foreign: Option<(Version, Duration)>,
}

/// What an election has come to.
#[allow(clippy::large_enum_variant)] // handed on at once, never kept
pub(crate) enum Step<T: 'static, C: Clock + 'static> {
    /// Look again.
    Again,
    Build(Ticket<T, C>),
    /// There is nothing to serve, and a pause runs.
    Backoff(Backoff),
}

/// An error that no lease ends with.
pub(crate) fn shared(error: BoxError) -> SharedError {
    let cell = DogpileCell::<()>::new(Duration::ZERO);
    match cell.lookup() {
        Lookup::Elected(lease) => lease.fail(error),
        _ => unreachable!("the first caller is elected"),
    }
}

/// Whether a pause after a failed build keeps the caller from building.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// It can be told.
    Tries,
    /// It has to return a value.
    Insists,
}

/// What became of a value of the store.
enum Taken<T: 'static, C: Clock + 'static> {
    /// It is in the local cell.
    Over(Arc<T>),
    /// It is older than what this node has built for itself.
    Older(Lease<'static, T, C>),
    Damaged(Lease<'static, T, C>),
    /// Not for this node, for as long as it is fresh.
    Foreign(Lease<'static, T, C>, Version, Duration),
}

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    pub(crate) fn new(
        name: String,
        store: Arc<dyn RefreshStore>,
        codec: Box<dyn Codec<T>>,
        policy: FleetPolicy,
        clock: C,
    ) -> Self {
        Self {
            local: Arc::new(DogpileCell::with_clock(policy.local(), clock.clone())),
            access: Access::new(store, policy.breaker, clock.clone()),
            clock,
            name,
            codec,
            policy,
            worker: Worker::new(),
            known: Mutex::default(),
            stash: Mutex::new(None),
            orphans: Mutex::default(),
            backoff_until: AtomicU64::new(0),
            epoch: Mutex::new(None),
            seen: Mutex::new(None),
            owed: Mutex::default(),
            turn: Mutex::new(()),
        }
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    pub(crate) fn is_building_here(&self) -> bool {
        super::build::is_building(self.address())
    }

    pub(crate) fn can_serve(&self) -> bool {
        self.local.load().is_some()
    }

    /// What is known about the value in the local cell; nothing if there is none.
    pub(crate) fn known(&self) -> Known {
        let generation = self.local.snapshot().map(|snapshot| snapshot.generation);
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if generation == Some(known.generation) { known } else { Known::default() }
    }

    /// The same, for one publication.
    pub(crate) fn version_of(&self, generation: u64) -> Option<Version> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.version.filter(|_| known.generation == generation)
    }

    /// Publishes `value` for `ttl`, and records what is known about it, unless the fence keeps it out of the local cell.
    fn publish(&self, lease: Lease<'static, T, C>, value: Arc<T>, ttl: Duration, known: Known) -> Arc<T> {
        let published = lease.publish_snapshot(value, Some(ttl));
        self.register(&published, known);
        published.value
    }

    /// Returns the generation, if it was published.
    fn register(&self, published: &Published<T>, known: Known) -> Option<u64> {
        let (PublishOutcome::Published | PublishOutcome::PublishedStale, Some(generation)) =
            (published.outcome, published.generation)
        else {
            return None;
        };
        self.register_generation(generation, known);
        Some(generation)
    }

    fn register_generation(&self, generation: u64, known: Known) {
        let bounded = known.hard_end.is_some();
        let mut registered = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if registered.generation < generation {
            *registered = Known { generation, ..known };
        }
        drop(registered);
        // From now on there is something to look after.
        self.worker.start(self);
        if bounded {
            self.worker.kick(self);
        }
    }

    /// Until when the store is to be left alone, if it is.
    pub(crate) fn open_until(&self, kind: Kind, now: Tick) -> Option<Tick> {
        self.access.open_until(kind, now)
    }

    /// An operation of the store. `None` too if the store is left alone.
    pub(crate) fn ask<R>(
        &self,
        operation: Operation,
        run: impl FnOnce(&dyn RefreshStore, &str) -> Result<R, StoreError>,
    ) -> Option<R> {
        if !self.access.admits(operation) {
            return None;
        }
        if self.is_owing() {
            self.deliver().ok()?;
        }
        self.try_ask(operation, run).ok()
    }

    pub(crate) fn try_ask<R>(
        &self,
        operation: Operation,
        run: impl FnOnce(&dyn RefreshStore, &str) -> Result<R, StoreError>,
    ) -> Result<R, Arc<StoreError>> {
        self.access.run(operation, &self.name, run)
    }

    pub(crate) fn poll(&self, known: Option<Version>) -> Option<Poll> {
        self.access.counters.polls.count();
        let mut poll = self.ask(Operation::Poll, |store, name| store.poll(name, known))?;
        let version = poll.current.newer().map(|value| value.version).or(match poll.current {
            Current::Same { .. } => known,
            _ => None,
        });
        if self.has_gone_back(poll.epoch, version) {
            self.access.counters.gone_back.count();
            poll.current = Current::Nothing { cleared: false };
        } else {
            self.sees(poll.epoch, version);
        }
        self.is_epoch(poll.epoch);
        Some(poll)
    }

    /// Whether an entry is behind what this node has seen of it.
    fn has_gone_back(&self, epoch: Epoch, version: Option<Version>) -> bool {
        self.seen().is_some_and(|seen| {
            seen.epoch.incarnation == epoch.incarnation
                && (epoch.number < seen.epoch.number
                    || version.is_some_and(|version| version.number < seen.version))
        })
    }

    fn seen(&self) -> Option<Seen> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store is at this epoch, and at this version at least.
    fn sees(&self, epoch: Epoch, version: Option<Version>) {
        if epoch.incarnation == 0 {
            return;
        }
        let number = version.filter(|version| version.incarnation == epoch.incarnation);
        let number = number.map_or(0, |version| version.number);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *seen {
            Some(seen) if seen.epoch.incarnation == epoch.incarnation => {
                seen.epoch.number = seen.epoch.number.max(epoch.number);
                seen.version = seen.version.max(number);
            }
            other => *other = Some(Seen { epoch, version: number }),
        }
    }

    fn is_epoch(&self, epoch: Epoch) {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch);
    }

    fn epoch(&self) -> Option<Epoch> {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since(&self, tick: Tick) -> Duration {
        self.clock.now().saturating_duration_since(tick)
    }

    /// The local cell has elected a caller: what is it to do?
    pub(crate) fn elected(self: &Arc<Self>, lease: Lease<'static, T, C>, caller: Caller) -> Step<T, C> {
        self.elected_here(lease, caller).unwrap_or_else(|lease| self.acquire(lease, caller))
    }

    /// The same, as far as it can be decided without the store; else the lease comes back.
    pub(crate) fn elected_here(
        self: &Arc<Self>,
        lease: Lease<'static, T, C>,
        caller: Caller,
    ) -> Result<Step<T, C>, Lease<'static, T, C>> {
        let now = self.clock.now();
        if self.known().hard_end.is_some_and(|end| end <= now) {
            drop(self.local.clear());
            return Ok(Step::Again);
        }
        if let Some(won) = self.unstash() {
            return Ok(Step::Build(Ticket { lease: Some(lease), won: Some(won), foreign: None }));
        }
        if self.open_until(Kind::Change, now).is_some() {
            return Ok(self.without_store(lease));
        }
        let left = self.backoff_left(now);
        if !left.is_zero() {
            return Ok(self.back_off(Some(lease), left, caller));
        }
        Err(lease)
    }

    /// How long the pause after a failed build lasts, as far as it is known here.
    pub(crate) fn backoff_left(&self, now: Tick) -> Duration {
        // Relaxed: only a hint that saves a question.
        Tick::from_nanos(self.backoff_until.load(Ordering::Relaxed)).saturating_duration_since(now)
    }

    pub(crate) fn acquire(self: &Arc<Self>, mut lease: Lease<'static, T, C>, caller: Caller) -> Step<T, C> {
        let mut refuse = None;
        // A second time only if the payload turns out to be of no use, and a third time if the next one is as well.
        for _ in 0..3 {
            let asked = self.clock.now();
            self.access.counters.acquires.count();
            let known = self.known();
            let (known_version, seen) = (known.to_store(), self.seen());
            let request = Request { known: known_version, refuse, seen, ..Request::new(self.policy.lease) };
            let answer = self.ask(Operation::Acquire, |store, name| store.acquire(name, &request));
            let Some(answer) = answer else {
                return self.without_store(lease);
            };
            match answer {
                Acquire::Won { token, tag, failures, current } => {
                    return Step::Build(self.won(lease, token, tag, failures, current, asked));
                }
                Acquire::Busy { left, current } => {
                    self.access.counters.busy.count();
                    if let Some(lease) = self.take_stale(lease, current, None, asked) {
                        self.watch(lease, left, false);
                    }
                    return Step::Again;
                }
                Acquire::Backoff { left, epoch, current } => {
                    self.access.counters.backoffs.count();
                    self.is_epoch(epoch);
                    let lease = self.take_stale(lease, current, Some(epoch), asked);
                    self.set_backoff(left);
                    return self.back_off(lease, left, caller);
                }
                Acquire::Fresh(current) => {
                    let soft_left = current.soft_left();
                    let version = current.newer().map(|value| value.version);
                    match self.take_fresh(lease, current, known, asked) {
                        Taken::Over(_) => return Step::Again,
                        Taken::Older(lease) if self.can_serve() => {
                            self.watch(lease, soft_left, true);
                            return Step::Again;
                        }
                        Taken::Foreign(lease, version, left) => {
                            let foreign = Some((version, left));
                            return Step::Build(Ticket { lease: Some(lease), won: None, foreign });
                        }
                        // Damaged, or older than what this node does not serve any more.
                        Taken::Older(returned) | Taken::Damaged(returned) => {
                            lease = returned;
                            refuse = version;
                        }
                    }
                }
            }
        }
        self.without_store(lease)
    }

    /// Takes over the store's fresh value. `known` is what the store was told.
    fn take_fresh(
        &self,
        lease: Lease<'static, T, C>,
        current: Current,
        known: Known,
        asked: Tick,
    ) -> Taken<T, C> {
        let (soft_left, hard_left) = match current {
            Current::Newer(value) => return self.take_over(lease, &value, asked),
            Current::Same { soft_left, hard_left } => (soft_left, hard_left),
            Current::Nothing { .. } => (Duration::ZERO, Duration::ZERO),
        };
        if let (None, Some(version)) = (known.version, known.foreign) {
            return Taken::Foreign(lease, version, soft_left);
        }
        // It is here already, and has been found unchanged. Or it was, a moment ago.
        let Some(held) = lease.previous().cloned() else { return Taken::Older(lease) };
        Taken::Over(self.adopt(lease, held, known.version, asked, soft_left, hard_left))
    }

    /// Publishes the store's value for as long as it is fresh there.
    fn adopt(
        &self,
        lease: Lease<'static, T, C>,
        value: Arc<T>,
        version: Option<Version>,
        asked: Tick,
        soft_left: Duration,
        hard_left: Duration,
    ) -> Arc<T> {
        self.access.counters.adopted.count();
        let soft_end = asked.saturating_add(soft_left);
        let hard_end = self.bound(soft_left, hard_left, asked);
        let known = Known { version, soft_end, hard_end, ..Known::default() };
        let served = self.publish(lease, value, soft_left.saturating_sub(self.since(asked)), known);
        self.backoff_until.store(0, Ordering::Relaxed);
        served
    }

    fn won(
        self: &Arc<Self>,
        lease: Lease<'static, T, C>,
        token: Token,
        tag: Option<String>,
        failures: u32,
        current: Current,
        asked: Tick,
    ) -> Ticket<T, C> {
        self.access.counters.fleet_builds.count();
        self.is_epoch(token.epoch());
        self.sees(token.epoch(), current.newer().map(|value| value.version));
        let mut won =
            Won { token, tag: None, failures, previous: lease.previous().cloned(), has_value: false };
        let mut lease = Some(lease);
        match current {
            Current::Same { .. } => {
                // Or it is a version that cannot be read here, and this node has one of its own.
                won.has_value = won.previous.is_some() && self.known().version.is_some();
            }
            Current::Newer(value) => {
                if let Opened::Value(opened) = self.open(&value) {
                    won.has_value = true;
                    let servable = value.hard_left > self.since(asked);
                    won.previous = match lease.take() {
                        Some(held) if servable && !self.is_older(&value, asked) => {
                            let (served, again) = self.publish_stale(held, opened, &value, asked);
                            lease = again;
                            Some(served)
                        }
                        held => {
                            lease = held;
                            Some(Arc::new(opened))
                        }
                    };
                }
            }
            Current::Nothing { cleared } => {
                if cleared && self.concerns(Some(token.epoch())) {
                    drop(self.local.clear());
                    won.previous = None;
                    lease = self.elect();
                }
            }
        }
        if won.has_value {
            won.tag = tag;
        }
        Ticket { lease, won: Some(won), foreign: None }
    }

    fn open(&self, value: &Value) -> Opened<T> {
        let opened = open(&*self.codec, &value.payload);
        match opened {
            Opened::Value(_) => {}
            Opened::Damaged => self.access.counters.damaged.count(),
            Opened::Foreign => self.access.counters.foreign.count(),
        }
        opened
    }

    /// Whether this node has built something for itself, and `value` may be from an older reading of the source: its
    /// builder was elected before that build had ended.
    fn is_older(&self, value: &Value, asked: Tick) -> bool {
        let built = self.known().local_until;
        built.is_some_and(|built| value.age > asked.saturating_duration_since(built))
    }

    /// Whether it is this node's value that was cleared, in `epoch` at the latest: what it has built for itself since then
    /// was not. An epoch that is not known will be at the next look.
    fn concerns(&self, epoch: Option<Epoch>) -> bool {
        let known = self.known();
        !known.is_alone() || epoch.is_some_and(|epoch| known.has_missed(epoch))
    }

    fn elect(&self) -> Option<Lease<'static, T, C>> {
        if let Lookup::Elected(lease) = self.local.lookup_owned() { Some(lease) } else { None }
    }

    /// Puts a value of the store into the local cell.
    fn take_over(&self, lease: Lease<'static, T, C>, value: &Value, asked: Tick) -> Taken<T, C> {
        if self.is_older(value, asked) {
            return Taken::Older(lease);
        }
        match self.open(value) {
            Opened::Value(opened) => {
                if value.soft_left <= self.since(asked) {
                    self.access.counters.adopted.count();
                    return Taken::Over(self.publish_stale(lease, opened, value, asked).0);
                }
                let Value { version, soft_left, hard_left, .. } = *value;
                Taken::Over(self.adopt(lease, Arc::new(opened), Some(version), asked, soft_left, hard_left))
            }
            Opened::Damaged => Taken::Damaged(lease),
            Opened::Foreign => Taken::Foreign(lease, value.version, value.soft_left),
        }
    }

    /// Makes a value visible that is stale already. Returns the lease, if this thread still has it or is elected again.
    fn publish_stale(
        &self,
        lease: Lease<'static, T, C>,
        opened: T,
        value: &Value,
        asked: Tick,
    ) -> (Arc<T>, Option<Lease<'static, T, C>>) {
        let (ttl, stale) = (self.policy.ttl, self.policy.stale);
        let left = value.hard_left.saturating_sub(self.since(asked));
        let known = Known { version: Some(value.version), soft_end: asked, ..Known::default() };
        if ttl < LONGEST && stale < LONGEST {
            // With the age at which the cell itself stops serving it, when the time comes: it asks nobody for that.
            let age = ttl.saturating_add(stale.saturating_sub(left)).saturating_add(Duration::from_nanos(1));
            let served = self.local.restore(opened, age);
            if let Some(snapshot) = self.local.snapshot()
                && Arc::ptr_eq(&snapshot.value, &served)
            {
                self.register_generation(snapshot.generation, known);
            }
            if lease.is_fenced() {
                // Cleared meanwhile, perhaps before this was put there.
                drop(self.local.clear());
            }
            return (served, Some(lease));
        }
        let hard_end = self.bound(value.soft_left, value.hard_left, asked);
        let known = Known { hard_end, ..known };
        let served = self.publish(lease, Arc::new(opened), Duration::ZERO, known);
        // A time to live of zero lasts until the clock moves.
        self.local.invalidate_if_current(&served);
        (served, self.elect())
    }

    /// When a value stops being servable, if that is earlier than the local cell would know by its own policy.
    fn bound(&self, soft_left: Duration, hard_left: Duration, asked: Tick) -> Option<Tick> {
        let known_to_cell = soft_left.saturating_add(self.policy.stale);
        (hard_left < known_to_cell && hard_left < LONGEST / 2).then(|| asked.saturating_add(hard_left))
    }

    /// Takes over what the store has besides "somebody else builds". `None`: the lease is in other hands.
    pub(crate) fn take_stale(
        &self,
        lease: Lease<'static, T, C>,
        current: Current,
        epoch: Option<Epoch>,
        asked: Tick,
    ) -> Option<Lease<'static, T, C>> {
        match current {
            Current::Newer(value) if value.hard_left > self.since(asked) => {
                if self.is_older(&value, asked) {
                    return Some(lease);
                }
                let Opened::Value(opened) = self.open(&value) else { return Some(lease) };
                self.access.counters.adopted.count();
                self.publish_stale(lease, opened, &value, asked).1
            }
            Current::Nothing { cleared: true } if self.concerns(epoch) => {
                drop(self.local.clear());
                self.elect()
            }
            _ => Some(lease),
        }
    }

    fn watch(self: &Arc<Self>, lease: Lease<'static, T, C>, left: Duration, is_idle: bool) {
        self.worker.watch(self, Watch::new(lease, self.clock.now(), left, is_idle));
    }

    fn without_store(self: &Arc<Self>, lease: Lease<'static, T, C>) -> Step<T, C> {
        if self.can_serve() {
            self.watch(lease, Duration::ZERO, false);
            return Step::Again;
        }
        Step::Build(Ticket { lease: Some(lease), won: None, foreign: None })
    }

    fn back_off(
        self: &Arc<Self>,
        lease: Option<Lease<'static, T, C>>,
        left: Duration,
        caller: Caller,
    ) -> Step<T, C> {
        let Some(lease) = lease else { return Step::Again };
        if self.can_serve() {
            self.watch(lease, left, true);
            Step::Again
        } else if caller == Caller::Insists {
            Step::Build(Ticket { lease: Some(lease), won: None, foreign: None })
        } else {
            let backoff = Backoff { left };
            lease.fail(backoff);
            Step::Backoff(backoff)
        }
    }

    fn set_backoff(&self, left: Duration) {
        let until = self.clock.now().saturating_add(left).as_nanos();
        self.backoff_until.fetch_max(until, Ordering::Relaxed);
    }

    /// Keeps what an impatient caller did not wait for.
    pub(crate) fn unclaimed(&self, step: Step<T, C>) {
        if let Step::Build(Ticket { won: Some(won), .. }) = step {
            let mut stash = self.stash.lock().unwrap_or_else(PoisonError::into_inner);
            *stash = Some((won, self.clock.now()));
        }
    }

    fn unstash(&self) -> Option<Won<T>> {
        let (won, since) = self.stash.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        (self.since(since) < self.policy.lease / 2).then_some(won)
    }

    /// Gives a right to build back that nobody came for. Returns when there will be one to be given back.
    pub(crate) fn tidy_stash(&self, now: Tick) -> Option<Tick> {
        let mut stash = self.stash.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, since) = stash.as_ref()?;
        let due = since.saturating_add(self.policy.lease / 4);
        if now < due {
            return Some(due);
        }
        let token = stash.take().map(|(won, _)| won.token);
        drop(stash);
        if let Some(token) = token {
            self.ask(Operation::Fail, |store, name| store.fail(name, &token, Duration::ZERO));
        }
        None
    }

    /// The cell is gone: all that it holds in the store is given back, as far as that is possible at once.
    pub(crate) fn give_back(&self) {
        let stashed = self.stash.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut tokens = std::mem::take(&mut *self.orphans.lock().unwrap_or_else(PoisonError::into_inner));
        tokens.extend(stashed.map(|(won, _)| won.token));
        if self.is_owing() && self.deliver().is_err() {
            return;
        }
        for token in tokens {
            if self.open_until(Kind::Change, self.clock.now()).is_none() {
                self.ask(Operation::Fail, |store, name| store.fail(name, &token, Duration::ZERO));
            }
        }
    }

    /// Runs a build.
    pub(crate) fn build<E: Into<BoxError>>(
        self: &Arc<Self>,
        ticket: Ticket<T, C>,
        build: impl FnOnce(&BuildContext<'_, T>) -> Result<Built<T>, E>,
    ) -> Result<Arc<T>, SharedError> {
        let mut running = Running::new(self, ticket, false);
        let result = running.run(build);
        let Some(ticket) = running.ticket.take() else { unreachable!("taken only here") };
        running.stop_beat();
        match result {
            Ok(result) => Ok(match self.prepare(ticket, result, running.began, false) {
                Prepared::Published(value) => value,
                Prepared::Deliver(concluding, delivery) => {
                    let delivered = self.worker.deliver(self, delivery, &concluding.late);
                    self.conclude(concluding, delivered.wait(self.policy.patience))
                }
            }),
            Err(error) => {
                let pause = self.pauses(&ticket);
                if let Some(won) = &ticket.won {
                    let _ = self.worker.end(self, won.token, pause).wait(self.policy.patience);
                }
                Err(self.fail(ticket, error.into()))
            }
        }
    }

    /// The same, with a build that is a future.
    #[cfg(feature = "async")]
    pub(crate) async fn build_async<E, F>(
        self: &Arc<Self>,
        ticket: Ticket<T, C>,
        build: F,
    ) -> Result<Arc<T>, SharedError>
    where
        E: Into<BoxError>,
        F: AsyncFnOnce(&BuildContext<'_, T>) -> Result<Built<T>, E>,
    {
        let mut running = Running::new(self, ticket, true);
        let result = {
            let context = running.context();
            let address = self.address();
            let mut build = std::pin::pin!(build(&context));
            let result = std::future::poll_fn(|task| {
                // Each time it is polled, and only then, this thread builds.
                let _building = Building::of(address);
                build.as_mut().poll(task)
            })
            .await;
            context.check(&result);
            result
        };
        let Some(ticket) = running.ticket.take() else { unreachable!("taken only here") };
        running.stop_beat();
        let began = running.began;
        match result {
            Ok(result) => match self.prepare(ticket, result, began, true) {
                Prepared::Published(value) => Ok(value),
                Prepared::Deliver(concluding, delivery) => {
                    let delivered = self.worker.deliver(self, delivery, &concluding.late);
                    let answer = delivered.wait_async(self.policy.patience).await;
                    Ok(self.conclude(concluding, answer))
                }
            },
            Err(error) => {
                let error = error.into();
                let pause = self.pauses(&ticket);
                if let Some(won) = &ticket.won {
                    let ended = self.worker.end(self, won.token, pause);
                    let _ = ended.wait_async(self.policy.patience).await;
                }
                Err(self.fail(ticket, error))
            }
        }
    }

    /// The pause after a build that has failed. It runs here from now on.
    fn pauses(&self, ticket: &Ticket<T, C>) -> Duration {
        let pause = self.policy.pause(ticket.won.as_ref().map_or(1, |won| won.failures.saturating_add(1)));
        self.set_backoff(pause);
        pause
    }

    fn fail(&self, ticket: Ticket<T, C>, error: BoxError) -> SharedError {
        self.access.counters.failed.count();
        match ticket.lease {
            Some(lease) => lease.fail(error),
            None => shared(error),
        }
    }

    /// A build has brought something: what is to be told to the store?
    fn prepare(
        self: &Arc<Self>,
        ticket: Ticket<T, C>,
        built: Built<T>,
        began: Began,
        is_task: bool,
    ) -> Prepared<T, C> {
        let Ticket { lease, won, foreign } = ticket;
        let is_unchanged = matches!(built, Built::Unchanged);
        let Some(won) = won else {
            let previous = lease.as_ref().and_then(|lease| lease.previous().cloned());
            let value = value(built, previous).0;
            return Prepared::Published(self.publish_locally(lease, value, foreign, began));
        };
        let (value, tag) = value(built, won.previous);
        let payload = if is_unchanged && won.has_value {
            None
        } else {
            let tag = if is_unchanged { won.tag } else { tag };
            match seal(&*self.codec, &*value) {
                Ok(payload) => Some((payload, tag)),
                Err(_) => {
                    self.access.counters.not_encoded.count();
                    let ended = self.worker.end(self, won.token, Duration::ZERO);
                    if !is_task {
                        let _ = ended.wait(self.policy.patience);
                    }
                    return Prepared::Published(self.publish_locally(lease, value, None, began));
                }
            }
        };
        let concluding = Concluding { lease, value, began, is_unchanged, late: Arc::default() };
        Prepared::Deliver(concluding, Delivery { token: won.token, payload })
    }

    /// Publishes, for the worker: what the store says to what a build has brought.
    pub(crate) fn deliver_build(&self, delivery: &Delivery) -> Delivered {
        let (soft, hard) = (self.policy.ttl, self.policy.hard());
        let token = &delivery.token;
        let asked = self.clock.now();
        let publish = || {
            if self.is_owing() {
                self.deliver()?;
            }
            self.try_ask(Operation::Publish, |store, name| match &delivery.payload {
                None => store.unchanged(name, token, soft, hard),
                Some((payload, tag)) => {
                    let publication = Publication { payload, tag: tag.as_deref(), soft, hard };
                    store.publish(name, token, &publication)
                }
            })
        };
        // Once more if it fails: whether it has taken effect is not known, and it may be repeated.
        let answer = publish().or_else(|_| publish());
        let mut instead = None;
        match &answer {
            Ok(Publish::Stored(version)) => {
                self.access.counters.published.count();
                self.backoff_until.store(0, Ordering::Relaxed);
                self.sees(token.epoch(), Some(*version));
            }
            Ok(Publish::Superseded | Publish::Invalidated) => {
                match answer {
                    Ok(Publish::Superseded) => self.access.counters.superseded.count(),
                    _ => self.access.counters.invalidated.count(),
                }
                let asked = self.clock.now();
                instead = self.poll(self.known().to_store()).map(|poll| (poll.current, asked));
            }
            Err(_) => self.orphaned(*token),
        }
        Delivered { answer, asked, instead }
    }

    /// The end of a build, for the worker.
    pub(crate) fn end_build(&self, token: Token, pause: Duration) {
        if self.ask(Operation::Fail, |store, name| store.fail(name, &token, pause)).is_none() {
            self.orphaned(token);
        }
    }

    /// A build has brought something, and the store has said something to that, or not in time.
    fn conclude(
        self: &Arc<Self>,
        concluding: Concluding<T, C>,
        delivered: Result<Delivered, NoAnswer>,
    ) -> Arc<T> {
        let Concluding { lease, value, began, is_unchanged, late } = concluding;
        match delivered {
            Ok(Delivered { answer: Ok(Publish::Stored(version)), asked, .. }) => {
                if is_unchanged {
                    self.access.counters.unchanged.count();
                }
                let soft_end = asked.saturating_add(self.policy.ttl);
                let known = Known { version: Some(version), soft_end, ..Known::default() };
                self.publish_stored(lease, value, known, asked)
            }
            Ok(Delivered { answer: Ok(_), instead, .. }) => self.refused(lease, value, instead),
            Ok(Delivered { answer: Err(_), .. }) | Err(NoAnswer::Lost) => {
                self.publish_locally(lease, value, None, began)
            }
            Err(NoAnswer::TooLate) => {
                self.access.counters.early.count();
                let now = self.clock.now();
                let soft_end = now.saturating_add(self.policy.ttl);
                let known = Known { soft_end, ..began.alone(now) };
                let Some(lease) = lease.or_else(|| self.elect()) else { return value };
                let published = lease.publish_snapshot(value, Some(self.policy.ttl));
                if let Some(generation) = self.register(&published, known) {
                    self.meets(&late, Meeting::Served(generation));
                }
                published.value
            }
        }
    }

    /// The store's answer to a publication whose caller has gone.
    pub(crate) fn answered_late(&self, late: &Late, delivered: Delivered) {
        self.meets(late, Meeting::Answered(delivered));
    }

    fn meets(&self, late: &Late, arriving: Meeting) {
        let mut meeting = late.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (std::mem::take(&mut *meeting), arriving) {
            (Meeting::Served(generation), Meeting::Answered(delivered))
            | (Meeting::Answered(delivered), Meeting::Served(generation)) => {
                drop(meeting);
                self.settle(generation, &delivered);
            }
            (_, arriving) => *meeting = arriving,
        }
    }

    /// What is served as `generation` has been answered to by the store.
    fn settle(&self, generation: u64, delivered: &Delivered) {
        match delivered.answer {
            Ok(Publish::Stored(version)) => {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                if known.generation == generation {
                    let soft_end = known.soft_end;
                    *known = Known { generation, version: Some(version), soft_end, ..Known::default() };
                }
            }
            Ok(Publish::Superseded | Publish::Invalidated) => self.outdated(generation),
            Err(_) => self.access.counters.local_builds.count(),
        }
    }

    /// The store could not be told that a build has ended. It will be, when it works again.
    fn orphaned(&self, token: Token) {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner).push(token);
        self.worker.start(self);
        self.worker.kick(self);
    }

    /// Gives back what could not be given back before. Returns when to try again.
    pub(crate) fn tidy_orphans(&self, now: Tick) -> Option<Tick> {
        let mut orphans = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        if orphans.is_empty() {
            return None;
        }
        if let Some(until) = self.open_until(Kind::Change, now) {
            return Some(until);
        }
        let tokens = std::mem::take(&mut *orphans);
        drop(orphans);
        let mut failed = Vec::new();
        for token in tokens {
            if self.ask(Operation::Fail, |store, name| store.fail(name, &token, Duration::ZERO)).is_none() {
                failed.push(token);
            }
        }
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner).extend(failed);
        self.open_until(Kind::Change, self.clock.now())
    }

    /// The store has accepted `value`. Without a lease it is only for the caller: another thread of this process is elected,
    /// and will find the value in the store.
    fn publish_stored(
        &self,
        lease: Option<Lease<'static, T, C>>,
        value: Arc<T>,
        known: Known,
        asked: Tick,
    ) -> Arc<T> {
        match lease.or_else(|| self.elect()) {
            Some(lease) => {
                self.publish(lease, value, self.policy.ttl.saturating_sub(self.since(asked)), known)
            }
            None => value,
        }
    }

    /// The store does not take what was built. See the module's documentation.
    fn refused(
        self: &Arc<Self>,
        lease: Option<Lease<'static, T, C>>,
        own: Arc<T>,
        instead: Option<(Current, Tick)>,
    ) -> Arc<T> {
        match (instead, lease.or_else(|| self.elect())) {
            (Some((Current::Newer(value), asked)), Some(lease)) if value.hard_left > self.since(asked) => {
                if let Taken::Over(served) = self.take_over(lease, &value, asked) {
                    return served;
                }
            }
            (Some((Current::Nothing { cleared: true }, _)), _) if self.concerns(self.epoch()) => {
                drop(self.local.clear());
            }
            (_, lease) => drop(lease),
        }
        self.local.get().unwrap_or(own)
    }

    /// For this node alone.
    fn publish_locally(
        &self,
        lease: Option<Lease<'static, T, C>>,
        value: Arc<T>,
        foreign: Option<(Version, Duration)>,
        began: Began,
    ) -> Arc<T> {
        self.access.counters.local_builds.count();
        // Up to a quarter shorter, so that the nodes of a fleet without a store do not build at the same time.
        let ttl = crate::draw::around(self.policy.ttl.mul_f64(0.875), 12);
        let ttl = foreign.map_or(ttl, |(_, left)| left.min(self.policy.ttl));
        let now = self.clock.now();
        let foreign = foreign.map(|(version, _)| version);
        let known = Known { foreign, soft_end: now.saturating_add(ttl), ..began.alone(now) };
        match lease.or_else(|| self.elect()) {
            Some(lease) => self.publish(lease, value, ttl, known),
            None => value,
        }
    }

    /// A look at the store while there is no election, because other nodes may have invalidated or rebuilt the value.
    pub(crate) fn look(self: &Arc<Self>) {
        let Some(snapshot) = self.local.snapshot() else { return };
        let invalidations = self.invalidations();
        let known = self.known();
        let asked = self.clock.now();
        let Some(poll) = self.poll(known.to_store()) else { return };
        // The look may have delivered an invalidation that was owed, which is older than what was built here since.
        let known = if self.local.generation() == snapshot.generation { self.known() } else { known };
        let has_missed = known.has_missed(poll.epoch);
        let is_fresh = snapshot.freshness == Freshness::Fresh;
        match poll.current {
            // Also while this node builds: what it builds from before will be refused.
            Current::Nothing { cleared: true }
                if (has_missed || !known.is_alone()) && self.local.generation() == snapshot.generation =>
            {
                drop(self.local.clear());
            }
            // All else its build will find out.
            _ if self.local.is_refreshing() => {}
            Current::Same { soft_left, .. } if soft_left.is_zero() && is_fresh => {
                self.outdated(snapshot.generation);
            }
            Current::Nothing { cleared: false } if known.to_store().is_some() && is_fresh => {
                self.outdated(snapshot.generation);
            }
            // Unless it came by another way, and what is known about it has only been noted down since.
            Current::Newer(value)
                if self.known().version != Some(value.version) && !self.is_older(&value, asked) =>
            {
                // Elected also if the value is fresh here: until the newer one is there, no caller is to ask for it.
                if value.hard_left > self.since(asked)
                    && let Lookup::Elected(lease) = self.local.request_owned().no_cache().lookup()
                    // Else the answer may be from before an invalidation, and the lease is from after it.
                    && self.invalidations() == invalidations
                    && let Taken::Over(_) = self.take_over(lease, &value, asked)
                {
                    return;
                }
                // If it cannot be read, the next caller finds that out too, and builds.
                self.outdated(snapshot.generation);
            }
            _ if has_missed && is_fresh => self.outdated(snapshot.generation),
            _ => {}
        }
    }

    /// Invalidates the value, in the store and here.
    pub(crate) fn invalidate(&self, how: Invalidation) -> Result<(), Arc<StoreError>> {
        {
            // Before the store is asked: what is asked of it from now on delivers this first, should it fail.
            let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
            owed.number += 1;
            owed.how = Some(if owed.how == Some(Invalidation::Hard) { Invalidation::Hard } else { how });
            owed.delivering += 1;
        }
        let told = self.deliver_owed();
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).delivering -= 1;
        // After the store: nobody can take the old value over as a fresh one any more.
        match how {
            Invalidation::Soft => self.local.invalidate(),
            Invalidation::Hard => drop(self.local.clear()),
        }
        if told.is_err() {
            self.worker.start(self);
            self.worker.kick(self);
        }
        self.worker.look(self);
        told
    }

    pub(crate) fn check(&self) -> Result<(), Arc<StoreError>> {
        self.try_ask(Operation::Check, |store, name| store.check(name))
    }

    /// How many invalidations this node has begun.
    fn invalidations(&self) -> u64 {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).number
    }

    /// Whether there is an invalidation that the store has not acknowledged, and that nobody is delivering.
    fn is_owing(&self) -> bool {
        let owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        owed.how.is_some() && owed.delivering == 0
    }

    /// Delivers what is owed from before.
    fn deliver(&self) -> Result<(), Arc<StoreError>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_owing() {
            return Ok(());
        }
        self.deliver_owed()?;
        self.access.counters.redelivered.count();
        Ok(())
    }

    fn deliver_owed(&self) -> Result<(), Arc<StoreError>> {
        let (how, number) = {
            let owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(how) = owed.how else { return Ok(()) };
            (how, owed.number)
        };
        self.try_ask(Operation::Invalidate, |store, name| store.invalidate(name, how))?;
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        if owed.number == number {
            owed.how = None;
        }
        drop(owed);
        self.has_delivered(number);
        Ok(())
    }

    /// The store's epoch is one more than it was, at least.
    fn has_delivered(&self, number: u64) {
        if let Some(epoch) = &mut *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) {
            epoch.number += 1;
        }
        if let Some(seen) = &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner) {
            seen.epoch.number += 1;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Built here after it had begun: it is not what was invalidated.
        if known.local_after >= number
            && let Some(epoch) = &mut known.local_epoch
        {
            epoch.number += 1;
        }
    }

    /// Delivers what could not be delivered before. Returns when to try again.
    pub(crate) fn tidy_owed(&self, now: Tick) -> Option<Tick> {
        if !self.is_owing() {
            return None;
        }
        if let Some(until) = self.open_until(Kind::Change, now) {
            return Some(until);
        }
        self.deliver().err()?;
        let now = self.clock.now();
        Some(self.open_until(Kind::Change, now).unwrap_or(now.saturating_add(self.policy.breaker.0)))
    }

    /// What was seen under `generation` is not fresh any more.
    fn outdated(&self, generation: u64) {
        if self.local.generation() == generation {
            self.local.invalidate();
        }
    }

    /// One look of the worker, which holds the lease because another node builds, a pause runs or the store is down.
    /// Returns what is left to watch.
    pub(crate) fn watch_on(self: &Arc<Self>, mut watch: Watch<T, C>) -> Option<Watch<T, C>> {
        if watch.lease.is_fenced() {
            // The value was cleared: the next caller is elected.
            return None;
        }
        let now = self.clock.now();
        if self.known().hard_end.is_some_and(|end| end <= now) {
            drop(self.local.clear());
            return None;
        }
        let longest = self.policy.poll.unwrap_or(Duration::from_secs(1));
        if let Some(until) = self.open_until(Kind::Look, now) {
            // A caller that finds nothing to serve builds.
            return self.can_serve().then(|| {
                watch.next = until.min(now.saturating_add(longest));
                watch
            });
        }
        let known = self.known();
        let Some(Poll { current, epoch, lease_left, retry_left }) = self.poll(known.to_store()) else {
            watch.next = now.saturating_add(longest);
            return Some(watch).filter(|_| self.can_serve());
        };
        let mut lease = watch.lease;
        if current.soft_left() > Duration::ZERO {
            match self.take_fresh(lease, current, known, now) {
                Taken::Older(returned) if self.can_serve() => lease = returned,
                // What cannot be used is for the next caller to deal with.
                _ => return None,
            }
        } else {
            lease = self.take_stale(lease, current, Some(epoch), now)?;
            let is_paused = !retry_left.is_zero() && lease_left.is_zero();
            if self.open_until(Kind::Change, now).is_some() && self.can_serve() {
                // It answers looks, and is asked for no changes: there may be a value of another node.
                return Some(Watch { lease, next: now.saturating_add(longest), ..watch });
            }
            if (lease_left.is_zero() && !is_paused) || (is_paused && !self.can_serve()) {
                // The next caller is elected, and gets the right to build.
                if is_paused {
                    self.set_backoff(retry_left);
                }
                return None;
            }
        }
        let left = if lease_left.is_zero() { retry_left } else { lease_left };
        let left = if left.is_zero() { longest } else { left };
        Some(Watch { lease, next: now, is_idle: lease_left.is_zero(), ..watch }.later(now, left.min(longest)))
    }
}

/// A build that is over, while the store is told.
struct Concluding<T: 'static, C: Clock + 'static> {
    lease: Option<Lease<'static, T, C>>,
    value: Arc<T>,
    began: Began,
    is_unchanged: bool,
    late: Arc<Late>,
}

#[allow(clippy::large_enum_variant)] // handed on at once, never kept
enum Prepared<T: 'static, C: Clock + 'static> {
    /// It does not concern the store.
    Published(Arc<T>),
    Deliver(Concluding<T, C>, Delivery),
}

/// What was known of invalidations when a build began.
#[derive(Clone, Copy, Debug)]
struct Began {
    epoch: Option<Epoch>,
    /// How many this node had begun.
    after: u64,
}

impl Began {
    /// Of a value that is this node's alone, and whose build has ended `now`.
    fn alone(self, now: Tick) -> Known {
        Known { local_until: Some(now), local_epoch: self.epoch, local_after: self.after, ..Known::default() }
    }
}

/// What a build has brought, or found unchanged, and the builder's note.
fn value<T>(built: Built<T>, previous: Option<Arc<T>>) -> (Arc<T>, Option<String>) {
    match (built, previous) {
        (Built::New { value, tag }, _) => (Arc::new(value), tag),
        (Built::Unchanged, Some(previous)) => (previous, None),
        (Built::Unchanged, None) => unreachable!("{NOTHING_UNCHANGED}"),
    }
}

const NOTHING_UNCHANGED: &str = "an unchanged value has a previous one, as was asserted after the build";

/// A build that runs. If it panics, the store is told and the lease given back.
struct Running<'a, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    node: &'a Arc<Node<T, C>>,
    ticket: Option<Ticket<T, C>>,
    began: Began,
    done: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
    /// Not a thread, which may be kept waiting.
    is_task: bool,
}

impl<'a, T, C> Running<'a, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    fn new(node: &'a Arc<Node<T, C>>, ticket: Ticket<T, C>, is_task: bool) -> Self {
        let began = node.clock.now();
        let won = ticket.won.as_ref().map(|won| won.token.epoch());
        let running = Self {
            node,
            began: Began { epoch: won.or_else(|| node.epoch()), after: node.invalidations() },
            ticket: Some(ticket),
            done: Arc::new(AtomicBool::new(false)),
            lost: Arc::new(AtomicBool::new(false)),
            is_task,
        };
        if let Some(won) = running.ticket.as_ref().and_then(|ticket| ticket.won.as_ref()) {
            let policy = &node.policy;
            node.worker.beat(
                node,
                Beat {
                    token: won.token,
                    next: began.saturating_add(policy.lease / 3),
                    stop: began.saturating_add(policy.build_limit),
                    done: Arc::clone(&running.done),
                    lost: Arc::clone(&running.lost),
                },
            );
        }
        running
    }

    fn context(&self) -> BuildContext<'_, T> {
        let ticket = self.ticket.as_ref();
        let won = ticket.and_then(|ticket| ticket.won.as_ref());
        let local = ticket.and_then(|ticket| ticket.lease.as_ref()).and_then(Lease::previous);
        BuildContext {
            fence: won.map(|won| won.token.fence),
            previous: won.map_or(local, |won| won.previous.as_ref()),
            tag: won.and_then(|won| won.tag.as_deref()),
            lost: &self.lost,
        }
    }

    fn run<E>(&self, build: impl FnOnce(&BuildContext<'_, T>) -> Result<Built<T>, E>) -> Result<Built<T>, E> {
        let context = self.context();
        let result = {
            let _building = Building::of(self.node.address());
            build(&context)
        };
        context.check(&result);
        result
    }

    fn stop_beat(&self) {
        // Relaxed: it carries nothing; a beat too many is refused or does no harm.
        self.done.store(true, Ordering::Relaxed);
    }
}

impl<T, C> Drop for Running<'_, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    fn drop(&mut self) {
        self.stop_beat();
        if let Some(ticket) = self.ticket.take() {
            if std::thread::panicking() {
                self.node.access.counters.panicked.count();
            }
            if self.is_task {
                // The worker tells the store: a task does not wait for it here.
                if let Some(won) = ticket.won {
                    self.node.orphaned(won.token);
                }
            } else {
                let (node, pause) = (self.node, self.node.pauses(&ticket));
                if let Some(won) = ticket.won {
                    let _ = node.worker.end(node, won.token, pause).wait(node.policy.patience);
                }
            }
        }
    }
}
