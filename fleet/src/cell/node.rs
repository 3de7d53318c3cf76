//! A node: the local cell, and how it deals with the store.
//!
//! ```text
//! view       what the store has been seen to be at
//! owed       invalidations, and those that could not be delivered
//! adopt      what gets into the local cell from the store
//! elect      elections, and rights to build that nobody came for
//! ahead      elections ahead of expiry
//! conclude   how builds end
//! run        how builds run
//! look       looks without an election
//! ```
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

mod adopt;
mod ahead;
mod conclude;
mod elect;
mod look;
mod owed;
mod run;
mod view;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dogpile::{Clock, DogpileCell, Lease, Lookup, PublishOutcome, Published, Tick};

use super::worker::Worker;
use crate::access::{Access, Operation};
use crate::breaker::Kind;
use crate::codec::Codec;
use crate::error::Backoff;
use crate::policy::FleetPolicy;
use crate::store::{Current, Epoch, Invalidation, Publish, RefreshStore, Seen, StoreError, Token, Version};

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
    /// For how long the value is fresh.
    ttl: Duration,
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

    fn since(&self, tick: Tick) -> Duration {
        self.clock.now().saturating_duration_since(tick)
    }

    fn elect(&self) -> Option<Lease<'static, T, C>> {
        if let Lookup::Elected(lease) = self.local.lookup_owned() { Some(lease) } else { None }
    }

    pub(crate) fn check(&self) -> Result<(), Arc<StoreError>> {
        self.try_ask(Operation::Check, |store, name| store.check(name))
    }

    /// What was seen under `generation` is not fresh any more.
    fn outdated(&self, generation: u64) {
        if self.local.generation() == generation {
            self.local.invalidate();
        }
    }
}
