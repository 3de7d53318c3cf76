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
//! What the store has accepted, and nothing else; except while the store is down (or what it has is of no use here), when
//! a node builds for itself. A build that the store refuses goes to its own caller at most: another one has been elected,
//! perhaps with an older reading of the source, and this node must not go back when it takes that over.
//!
//! # Time
//!
//! A store tells what is *left*. That is counted from before the question was asked, so that a slow answer makes a value
//! expire early, never late.

#![allow(clippy::result_large_err)] // with dogpile's feature `tracing`: a lease that comes back

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dogpile::{
    BoxError, Clock, DogpileCell, Freshness, Lease, Lookup, PublishOutcome, Published, SharedError, Tick,
};

use super::build::{BuildContext, Building, Built};
use super::worker::{Beat, Watch, Worker};
use crate::breaker::Breaker;
use crate::codec::{Codec, Opened, open, seal};
use crate::error::Backoff;
use crate::policy::FleetPolicy;
use crate::stats::Counters;
use crate::store::{
    Acquire, Current, Epoch, Invalidation, LONGEST, Poll, Publication, Publish, RefreshStore, Request,
    StoreError, Token, Value, Version,
};

pub(crate) struct Node<T: 'static, C: Clock + 'static> {
    pub(crate) local: Arc<DogpileCell<T, C>>,
    pub(crate) clock: C,
    pub(crate) name: String,
    pub(crate) store: Arc<dyn RefreshStore>,
    pub(crate) codec: Box<dyn Codec<T>>,
    pub(crate) policy: FleetPolicy,
    pub(crate) breaker: Breaker,
    pub(crate) counters: Counters,
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
    pub(crate) last_error: Mutex<Option<Arc<StoreError>>>,
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
fn shared(error: BoxError) -> SharedError {
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
            clock,
            name,
            store,
            codec,
            policy,
            breaker: Breaker::new(policy.breaker),
            counters: Counters::default(),
            worker: Worker::new(),
            known: Mutex::default(),
            stash: Mutex::new(None),
            orphans: Mutex::default(),
            backoff_until: AtomicU64::new(0),
            epoch: Mutex::new(None),
            last_error: Mutex::new(None),
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

    fn register(&self, published: &Published<T>, known: Known) {
        let (PublishOutcome::Published | PublishOutcome::PublishedStale, Some(generation)) =
            (published.outcome, published.generation)
        else {
            return;
        };
        let bounded = known.hard_end.is_some();
        let mut registered = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if registered.generation < generation {
            *registered = Known { generation, ..known };
        }
        drop(registered);
        // From now on there is something to look after.
        self.worker.start(self);
        if bounded {
            self.worker.kick();
        }
    }

    /// An operation of the store, with all that is to be noted about its outcome.
    pub(crate) fn ask<R>(
        &self,
        operation: impl FnOnce(&dyn RefreshStore, &str) -> Result<R, StoreError>,
    ) -> Option<R> {
        self.try_ask(operation).ok()
    }

    pub(crate) fn try_ask<R>(
        &self,
        operation: impl FnOnce(&dyn RefreshStore, &str) -> Result<R, StoreError>,
    ) -> Result<R, Arc<StoreError>> {
        self.counters.store_operations.count();
        match operation(&*self.store, &self.name) {
            Ok(answer) => {
                self.breaker.succeeded();
                Ok(answer)
            }
            Err(error) => {
                self.counters.store_errors.count();
                self.breaker.failed(self.clock.now());
                let error = Arc::new(error);
                *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&error));
                Err(error)
            }
        }
    }

    pub(crate) fn poll(&self, known: Option<Version>) -> Option<Poll> {
        self.counters.polls.count();
        let poll = self.ask(|store, name| store.poll(name, known))?;
        self.is_epoch(poll.epoch);
        Some(poll)
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
        if self.breaker.open_until(now).is_some() {
            return Ok(self.without_store(lease));
        }
        // Relaxed: only a hint that saves a question.
        let backoff_until = Tick::from_nanos(self.backoff_until.load(Ordering::Relaxed));
        if now < backoff_until {
            let left = backoff_until.saturating_duration_since(now);
            return Ok(self.back_off(Some(lease), left, caller));
        }
        Err(lease)
    }

    pub(crate) fn acquire(self: &Arc<Self>, mut lease: Lease<'static, T, C>, caller: Caller) -> Step<T, C> {
        let mut refuse = None;
        // A second time only if the payload turns out to be of no use, and a third time if the next one is as well.
        for _ in 0..3 {
            let asked = self.clock.now();
            self.counters.acquires.count();
            let known = self.known();
            let request = Request { lease: self.policy.lease, known: known.to_store(), refuse };
            let Some(answer) = self.ask(|store, name| store.acquire(name, &request)) else {
                return self.without_store(lease);
            };
            match answer {
                Acquire::Won { token, tag, failures, current } => {
                    return Step::Build(self.won(lease, token, tag, failures, current, asked));
                }
                Acquire::Busy { left, current } => {
                    self.counters.busy.count();
                    if let Some(lease) = self.take_stale(lease, current, None, asked) {
                        self.watch(lease, left, false);
                    }
                    return Step::Again;
                }
                Acquire::Backoff { left, epoch, current } => {
                    self.counters.backoffs.count();
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
        self.counters.adopted.count();
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
        self.counters.fleet_builds.count();
        self.is_epoch(token.epoch());
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
            Opened::Damaged => self.counters.damaged.count(),
            Opened::Foreign => self.counters.foreign.count(),
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
                    self.counters.adopted.count();
                    return Taken::Over(self.publish_stale(lease, opened, value, asked).0);
                }
                let Value { version, soft_left, hard_left, .. } = *value;
                Taken::Over(self.adopt(lease, Arc::new(opened), Some(version), asked, soft_left, hard_left))
            }
            Opened::Damaged => Taken::Damaged(lease),
            Opened::Foreign => Taken::Foreign(lease, value.version, value.soft_left),
        }
    }

    /// Makes a value visible that is stale already. Returns the lease if this thread is elected again.
    fn publish_stale(
        &self,
        lease: Lease<'static, T, C>,
        opened: T,
        value: &Value,
        asked: Tick,
    ) -> (Arc<T>, Option<Lease<'static, T, C>>) {
        let hard_end = self.bound(value.soft_left, value.hard_left, asked);
        let known = Known { version: Some(value.version), soft_end: asked, hard_end, ..Known::default() };
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
                self.counters.adopted.count();
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
            self.ask(|store, name| store.fail(name, &token, Duration::ZERO));
        }
        None
    }

    /// The cell is gone: all that it holds in the store is given back, as far as that is possible at once.
    pub(crate) fn give_back(&self) {
        let stashed = self.stash.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut tokens = std::mem::take(&mut *self.orphans.lock().unwrap_or_else(PoisonError::into_inner));
        tokens.extend(stashed.map(|(won, _)| won.token));
        for token in tokens {
            if self.breaker.open_until(self.clock.now()).is_none() {
                self.ask(|store, name| store.fail(name, &token, Duration::ZERO));
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
            Ok(result) => Ok(self.conclude(ticket, result, running.epoch)),
            Err(error) => Err(self.fail(ticket, error.into())),
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
        let epoch = running.epoch;
        match result {
            Ok(result) => Ok(self.worker.run(self, move |node| node.conclude(ticket, result, epoch)).await),
            Err(error) => {
                let error = error.into();
                Err(self.worker.run(self, move |node| node.fail(ticket, error)).await)
            }
        }
    }

    fn fail(&self, ticket: Ticket<T, C>, error: BoxError) -> SharedError {
        self.counters.failed.count();
        self.note_failure(ticket.won.as_ref());
        match ticket.lease {
            Some(lease) => lease.fail(error),
            None => shared(error),
        }
    }

    fn note_failure(&self, won: Option<&Won<T>>) {
        let pause = self.policy.pause(won.map_or(1, |won| won.failures.saturating_add(1)));
        if let Some(won) = won
            && self.ask(|store, name| store.fail(name, &won.token, pause)).is_none()
        {
            self.orphaned(won.token);
        }
        self.set_backoff(pause);
    }

    /// A build has brought something.
    fn conclude(self: &Arc<Self>, ticket: Ticket<T, C>, built: Built<T>, epoch: Option<Epoch>) -> Arc<T> {
        let Ticket { lease, won, foreign } = ticket;
        let Some(won) = won else {
            let previous = lease.as_ref().and_then(|lease| lease.previous().cloned());
            return self.publish_locally(lease, built, previous, foreign, epoch);
        };
        let (soft, hard) = (self.policy.ttl, self.policy.hard());
        let payload = match &built {
            Built::Unchanged if won.has_value => None,
            Built::Unchanged => match &won.previous {
                Some(previous) => Some((seal(&*self.codec, &**previous), won.tag.as_deref())),
                None => unreachable!("{NOTHING_UNCHANGED}"),
            },
            Built::New { value, tag } => Some((seal(&*self.codec, value), tag.as_deref())),
        };
        let asked = self.clock.now();
        let publish = || match &payload {
            None => self.try_ask(|store, name| store.unchanged(name, &won.token, soft, hard)),
            Some((Ok(payload), tag)) => {
                let publication = Publication { payload, tag: *tag, soft, hard };
                self.try_ask(|store, name| store.publish(name, &won.token, &publication))
            }
            Some((Err(_), _)) => unreachable!("looked at before"),
        };
        if let Some((Err(_), _)) = &payload {
            self.counters.not_encoded.count();
            self.ask(|store, name| store.fail(name, &won.token, Duration::ZERO));
            return self.publish_locally(lease, built, won.previous, None, epoch);
        }
        // Once more if it fails: whether it has taken effect is not known, and it may be repeated.
        let answer = publish().or_else(|_| publish());
        match answer {
            Ok(Publish::Stored(version)) => {
                self.counters.published.count();
                self.backoff_until.store(0, Ordering::Relaxed);
                let soft_end = asked.saturating_add(soft);
                let known = Known { version: Some(version), soft_end, ..Known::default() };
                if let Built::Unchanged = built {
                    self.counters.unchanged.count();
                }
                self.publish_stored(lease, value(built, won.previous), known, asked)
            }
            Ok(refusal) => {
                match refusal {
                    Publish::Superseded => self.counters.superseded.count(),
                    _ => self.counters.invalidated.count(),
                }
                self.refused(lease, value(built, won.previous))
            }
            Err(_) => {
                self.orphaned(won.token);
                self.publish_locally(lease, built, won.previous, None, epoch)
            }
        }
    }

    /// The store could not be told that a build has ended. It will be, when it works again.
    fn orphaned(&self, token: Token) {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner).push(token);
        self.worker.start(self);
        self.worker.kick();
    }

    /// Gives back what could not be given back before. Returns when to try again.
    pub(crate) fn tidy_orphans(&self, now: Tick) -> Option<Tick> {
        let mut orphans = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        if orphans.is_empty() {
            return None;
        }
        if let Some(until) = self.breaker.open_until(now) {
            return Some(until);
        }
        let tokens = std::mem::take(&mut *orphans);
        drop(orphans);
        let mut failed = Vec::new();
        for token in tokens {
            if self.ask(|store, name| store.fail(name, &token, Duration::ZERO)).is_none() {
                failed.push(token);
            }
        }
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner).extend(failed);
        self.breaker.open_until(self.clock.now())
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
    fn refused(self: &Arc<Self>, lease: Option<Lease<'static, T, C>>, own: Arc<T>) -> Arc<T> {
        let asked = self.clock.now();
        let current = self.poll(self.known().to_store()).map(|poll| poll.current);
        match (current, lease.or_else(|| self.elect())) {
            (Some(Current::Newer(value)), Some(lease)) if value.hard_left > self.since(asked) => {
                if let Taken::Over(served) = self.take_over(lease, &value, asked) {
                    return served;
                }
            }
            (Some(Current::Nothing { cleared: true }), _) if self.concerns(self.epoch()) => {
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
        built: Built<T>,
        previous: Option<Arc<T>>,
        foreign: Option<(Version, Duration)>,
        epoch: Option<Epoch>,
    ) -> Arc<T> {
        self.counters.local_builds.count();
        // Up to a quarter shorter, so that the nodes of a fleet without a store do not build at the same time.
        let ttl = crate::draw::around(self.policy.ttl.mul_f64(0.875), 12);
        let ttl = foreign.map_or(ttl, |(_, left)| left.min(self.policy.ttl));
        let now = self.clock.now();
        let known = Known {
            foreign: foreign.map(|(version, _)| version),
            local_until: Some(now),
            local_epoch: epoch,
            soft_end: now.saturating_add(ttl),
            ..Known::default()
        };
        let value = value(built, previous);
        match lease.or_else(|| self.elect()) {
            Some(lease) => self.publish(lease, value, ttl, known),
            None => value,
        }
    }

    /// A look at the store while there is no election, because other nodes may have invalidated or rebuilt the value.
    pub(crate) fn look(self: &Arc<Self>) {
        let Some(snapshot) = self.local.snapshot() else { return };
        if self.breaker.open_until(self.clock.now()).is_some() {
            return;
        }
        let known = self.known();
        let asked = self.clock.now();
        let Some(poll) = self.poll(known.to_store()) else { return };
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
                self.outdated(snapshot.generation);
                if value.hard_left > self.since(asked)
                    && let Some(lease) = self.elect()
                {
                    // If it cannot be read, the next caller finds that out too, and builds.
                    drop(self.take_over(lease, &value, asked));
                }
            }
            _ if has_missed && is_fresh => self.outdated(snapshot.generation),
            _ => {}
        }
    }

    /// Invalidates the value, in the store and here.
    pub(crate) fn invalidate(&self, how: Invalidation) -> Result<(), Arc<StoreError>> {
        let told = self.try_ask(|store, name| store.invalidate(name, how));
        // After the store: nobody can take the old value over as a fresh one any more.
        match how {
            Invalidation::Soft => self.local.invalidate(),
            Invalidation::Hard => drop(self.local.clear()),
        }
        self.worker.look();
        told
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
        if let Some(until) = self.breaker.open_until(now) {
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

/// What a build has brought, or found unchanged.
fn value<T>(built: Built<T>, previous: Option<Arc<T>>) -> Arc<T> {
    match (built, previous) {
        (Built::New { value, .. }, _) => Arc::new(value),
        (Built::Unchanged, Some(previous)) => previous,
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
    /// What was known of invalidations when it began.
    epoch: Option<Epoch>,
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
            epoch: won.or_else(|| node.epoch()),
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
                self.node.counters.panicked.count();
            }
            if self.is_task {
                // The worker tells the store: a task does not wait for it here.
                if let Some(won) = ticket.won {
                    self.node.orphaned(won.token);
                }
            } else {
                self.node.note_failure(ticket.won.as_ref());
            }
        }
    }
}
