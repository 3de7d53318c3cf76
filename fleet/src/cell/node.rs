//! A node: the local cell, and how it deals with the store.
//!
//! ```text
//! state      all that is kept, under one lock: plain functions
//! owed       invalidations, and those that could not be delivered
//! adopt      what gets into the local cell from the store
//! elect      elections, and rights to build that nobody came for
//! ahead      elections ahead of expiry
//! conclude   how builds end
//! run        how builds run
//! look       looks without an election
//! ```
//!
//! Above it is the loop around a look at the local cell ([`search`](super::search)), below it the mailbox by which it has its worker do
//! what no caller should wait for. It knows nothing of the worker. All that it keeps is one [`State`](state::State) under one lock,
//! under which nothing is called.
//!
//! # The local lease
//!
//! What holds everything together is the local cell's lease. It is held by
//!
//! * a caller, as long as it asks the store and builds;
//! * the worker ([`Watch`](super::job::Watch)), as long as another node builds, a pause runs or the store is
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
mod state;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dogpile::{Clock, DogpileCell, Lease, Lookup, PublishOutcome, Published, Tick};

use super::job::Job;
use super::mailbox::Mailbox;
use crate::access::{Access, Operation};
use crate::breaker::Kind;
use crate::codec::Codec;
use crate::error::Backoff;
use crate::policy::{FleetPolicy, Life};
use crate::store::{Current, Publish, RefreshStore, StoreError, Token, Version};

pub(crate) use look::Looked;
use state::State;
pub(crate) use state::{Began, Known};

pub(crate) struct Node<T: 'static, C: Clock + 'static> {
    pub(crate) local: Arc<DogpileCell<T, C>>,
    pub(crate) clock: C,
    pub(crate) name: String,
    pub(crate) access: Access<C>,
    pub(crate) codec: Box<dyn Codec<T>>,
    pub(crate) policy: FleetPolicy,
    pub(crate) mailbox: Arc<Mailbox<Job<T, C>, C>>,
    /// Never locked while a clock, a store or code of the user's is called.
    state: Mutex<State<T>>,
}

/// A publication, for the worker.
pub(crate) struct Delivery {
    pub(crate) token: Token,
    /// With its tag; `None`: the value was found unchanged.
    payload: Option<(Vec<u8>, Option<String>)>,
    life: Life,
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
    /// There is nothing to serve, and a pause runs. (Ahead of expiry: nothing is to be done for so long.)
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
        mailbox: Arc<Mailbox<Job<T, C>, C>>,
    ) -> Self {
        Self {
            local: Arc::new(DogpileCell::with_clock(policy.local(), clock.clone())),
            access: Access::new(store, policy.breaker, clock.clone()),
            clock,
            name,
            codec,
            policy,
            mailbox,
            state: Mutex::new(State::new()),
        }
    }

    /// Reads or changes the state.
    fn with<R>(&self, change: impl FnOnce(&mut State<T>) -> R) -> R {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    pub(crate) fn is_building_here(&self) -> bool {
        super::build::is_building(self.address())
    }

    /// This process has none of the threads that held something here.
    pub(crate) fn has_forked(&self) {
        self.with(State::has_forked);
        self.local.revoke();
    }

    pub(crate) fn can_serve(&self) -> bool {
        self.local.load().is_some()
    }

    /// What is known about the value in the local cell; nothing if there is none.
    pub(crate) fn known(&self) -> Known {
        self.held().0
    }

    /// The same, with the value. (That of a lease may be an older one: a value that is taken over stale is restored beside it.)
    fn held(&self) -> (Known, Option<Arc<T>>) {
        let snapshot = self.local.snapshot();
        let generation = snapshot.as_ref().map(|snapshot| snapshot.generation);
        (self.with(|state| state.known(generation)), snapshot.map(|snapshot| snapshot.value))
    }

    /// What is known of invalidations.
    pub(crate) fn invalidations(&self) -> Began {
        self.with(|state| Began { epoch: state.epoch, after: state.invalidations })
    }

    /// The same as `known`, for one publication.
    pub(crate) fn version_of(&self, generation: u64) -> Option<Version> {
        self.with(|state| state.known(Some(generation)).version)
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
        self.with(|state| state.has_published(generation, known));
        // From now on there is something to look after.
        self.mailbox.attach();
        if bounded {
            self.mailbox.nudge(Job::Kick);
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
