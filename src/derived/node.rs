//! The cell of a derived value, what its value was made from, and its links to that.
//!
//! # The protocol
//!
//! A publication of a source only declares the derived value stale; the next read makes it again. G15 follows from three
//! things:
//!
//! * An evaluation takes each source's value once (see [`cx`](super::cx)), and notes the generation: a [`Stamp`].
//! * The node is linked to each source *before* it publishes, and looks *under its cell's lock* whether the stamps are the sources'
//!   current generations. If not, the value is published as stale. So a source's publication is either seen by that look, or its
//!   notification comes after it and declares the value stale.
//! * The notification of a link compares the stamps of the value that is published. It fences no build: a build that is made from
//!   the new value counts as fresh, even if it caused the source's build itself.
//!
//! A value inherits the time at which the first of its sources goes stale, as a tick. Sources that go stale without a new value
//! (nothing refreshes them, or their source is down) would have it made again at each read, from the same: so before an election
//! the node asks its sources ([`Node::settled`]).
//!
//! # Locks
//!
//! The lock of a node's inputs is taken under the lock of its cell, never the other way round. Under both, only the records of
//! cells are read, which takes no lock.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "async")]
use std::pin::Pin as Pinned;

use crate::cell::{
    BuildOutput, Caller, Concluded, Decision, Demand, DogpileCell, Found, Handle, Held, Kind, Listener,
    Machine, Made, Notified, Publishes, Record, Search, Slot, Ttl,
};
use crate::contain::contain;
use crate::error::{BoxError, RefreshError, SharedError};
use crate::policy::{Freshness, Policy};
use crate::sync::{Arc, Mutex, Ordering, PlainBool, Weak};
use crate::time::Clock;
use crate::trace;

use super::cx::Cx;
use super::source::{
    AnySource, AnyValue, Followed, Pin, Source, Stamp, Stamps, Taken, UNPUBLISHED, are_current, erase,
    fresh_until, id_of,
};

/// A closure that makes a value in the thread that asks.
#[allow(missing_debug_implementations)] // named by a type that no program needs to name
pub struct InThread<T>(pub(super) Box<Make<T>>);

pub(super) type Make<T> = dyn Fn(&Cx) -> Result<T, BoxError> + Send + Sync;

/// A closure that makes a value in a task.
#[cfg(feature = "async")]
#[allow(missing_debug_implementations)] // as above
pub struct InTask<T>(pub(super) Box<MakeAsync<T>>);

#[cfg(feature = "async")]
pub(super) type MakeAsync<T> = dyn Fn(Cx) -> Making<T> + Send + Sync;

#[cfg(feature = "async")]
pub(super) type Making<T> = Pinned<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// What a [`Derived`](crate::Derived) value and its links share.
#[allow(missing_debug_implementations)] // as above
pub struct Node<T, C, B> {
    cell: DogpileCell<T, C>,
    build: B,
    inputs: Mutex<Inputs>,
    /// Listeners of this cell that have followed a change of a source, and are not notified yet.
    followed: Mutex<Vec<Notified<T>>>,
    me: Weak<Self>,
}

struct Inputs {
    /// What the value of this generation was made from.
    generation: u64,
    stamps: Arc<[Stamp]>,
    /// What the latest build that failed had taken.
    failed: Arc<[Stamp]>,
    links: Vec<Linked>,
    /// How many builds are about to publish, or to fail: their links are kept.
    ending: usize,
}

struct Linked {
    source: Arc<dyn AnySource>,
    link: Arc<Link>,
    /// The generation at the latest notification.
    seen: u64,
}

/// A node's entry among the listeners of a source.
pub(super) struct Link {
    node: Weak<dyn Dependent>,
    source: usize,
    is_detached: PlainBool,
}

trait Dependent: Send + Sync {
    /// Declares the value stale if it is. What listens to it is notified later.
    fn source_changed(&self, source: usize);

    fn notify(&self);
}

impl Link {
    fn with_node(&self, call: impl FnOnce(&(dyn Dependent + 'static))) {
        // The clock is asked, and the last reference to the node may be dropped here, and with it what is the user's.
        contain(|| {
            if let Some(node) = self.node.upgrade() {
                call(&*node);
            }
        });
    }
}

impl<T> Listener<T> for Link {
    fn follow(&self) {
        self.with_node(|node| node.source_changed(self.source));
    }

    fn notify(&self) {
        self.with_node(Dependent::notify);
    }

    fn is_detached(&self) -> bool {
        // Relaxed: a hint; what is seen late is removed later.
        self.is_detached.load(Ordering::Relaxed)
    }
}

/// What a build has made.
#[allow(missing_debug_implementations)] // as above
pub struct Computed<T> {
    value: T,
    stamps: Vec<Stamp>,
}

impl<T, C, B> Node<T, C, B> {
    pub(super) fn new(policy: Policy, clock: C, build: B) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            cell: DogpileCell::with_clock(policy, clock),
            build,
            inputs: Mutex::new(Inputs {
                generation: 0,
                stamps: Arc::new([]),
                failed: Arc::new([]),
                links: Vec::new(),
                ending: 0,
            }),
            followed: Mutex::new(Vec::new()),
            me: Weak::clone(me),
        })
    }

    pub(super) fn cell(&self) -> &DogpileCell<T, C> {
        &self.cell
    }
}

impl<T, C: Clock, B> Kind for Node<T, C, B> {
    type Value = Computed<T>;
    type Stored = T;
    type Shared = Arc<T>;
    type Clock = C;

    #[inline]
    fn machine(&self) -> &Machine<T, C> {
        self.cell.machine()
    }

    fn share(stored: Arc<T>) -> Arc<T> {
        stored
    }

    fn has_failed(&self) {
        // The clock is asked.
        contain(|| {
            let failed = Arc::clone(&self.inputs.lock().failed);
            // If one of its sources has published meanwhile, the failure begins no pause. A source that publishes after this check
            // ends the pause: the links to the sources are there, see `note_failure`.
            if !are_current(&failed)
                && let Some(notified) = self.machine().source_changed(true, false, || false)
            {
                notified.notify();
            }
        });
    }
}

/// A build is about to publish or to fail: its links are kept until this is dropped.
struct Ending<'a, T, C, B>(&'a Node<T, C, B>);

impl<T, C, B> Drop for Ending<'_, T, C, B> {
    fn drop(&mut self) {
        let mut inputs = self.0.inputs.lock();
        inputs.ending -= 1;
        if inputs.ending > 0 {
            return;
        }
        let Inputs { stamps, failed, links, .. } = &mut *inputs;
        let is_used = |linked: &mut Linked| {
            let id = linked.link.source;
            !stamps.iter().chain(&**failed).any(|stamp| stamp.source.id() == id)
        };
        let unused: Vec<Linked> = links.extract_if(.., is_used).collect();
        drop(inputs);
        detach(unused);
    }
}

fn detach(links: Vec<Linked>) {
    for Linked { source, link, .. } in links {
        link.is_detached.store(true, Ordering::Relaxed);
        source.detach(&link);
    }
}

impl<T, C, B> Drop for Node<T, C, B> {
    fn drop(&mut self) {
        let links = std::mem::take(&mut self.inputs.lock().links);
        detach(links);
    }
}

/// How a build has been published.
struct Outcome<T> {
    /// What it has made.
    made: Arc<T>,
    /// What its caller gets.
    served: Arc<T>,
    /// [`UNPUBLISHED`]: it was displaced.
    generation: u64,
    stamps: Arc<[Stamp]>,
}

impl<T, C, B> Node<T, C, B>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
    B: Send + Sync + 'static,
{
    /// Links the node to each of these sources.
    fn link(&self, stamps: &[Stamp]) -> Ending<'_, T, C, B> {
        let mut inputs = self.inputs.lock();
        inputs.ending += 1;
        let ending = Ending(self);
        let is_linked = |links: &[Linked], id: usize| links.iter().any(|linked| linked.link.source == id);
        let missing: Vec<_> =
            stamps.iter().filter(|stamp| !is_linked(&inputs.links, stamp.source.id())).collect();
        drop(inputs);
        let made = missing.into_iter().map(|Stamp { source, .. }| {
            let (seen, _) = source.state();
            let node: Weak<dyn Dependent> = Weak::<Self>::clone(&self.me);
            let link = Arc::new(Link { node, source: source.id(), is_detached: PlainBool::new(false) });
            source.attach(&link);
            Linked { source: Arc::clone(source), link, seen }
        });
        let made: Vec<Linked> = made.collect();
        let mut inputs = self.inputs.lock();
        let mut superfluous = Vec::new();
        for linked in made {
            if is_linked(&inputs.links, linked.link.source) {
                superfluous.push(linked);
            } else {
                inputs.links.push(linked);
            }
        }
        drop(inputs);
        detach(superfluous);
        ending
    }

    /// A build has taken these, and fails or panics.
    fn note_failure(&self, stamps: Vec<Stamp>) {
        let stamps: Arc<[Stamp]> = stamps.into();
        let ending = self.link(&stamps);
        let former = std::mem::replace(&mut self.inputs.lock().failed, stamps);
        drop(ending);
        drop(former);
    }

    fn publish_computed(mut held: Held<'_, Self>, Computed { value, stamps }: Computed<T>) -> Outcome<T> {
        let node = held.handle().clone();
        let stamps: Arc<[Stamp]> = stamps.into();
        let ending = node.link(&stamps);
        let made = Arc::new(value);
        let looked_at = Arc::clone(&stamps);
        let output = BuildOutput {
            value: Arc::clone(&made),
            ttl: Ttl::Policy,
            renews: false,
            release: true,
            fresh_until: Some(Arc::new(move || fresh_until(&looked_at))),
        };
        // What is under the lock now; to be dropped without it.
        let mut former = None;
        let Concluded { served, record, ending: how, leftover, .. } =
            held.conclude(output, |_, slot: &Slot<T>| {
                let mut inputs = node.inputs.lock();
                inputs.generation = slot.read_record().0.generation + 1;
                let stamps = std::mem::replace(&mut inputs.stamps, Arc::clone(&stamps));
                let failed = std::mem::replace(&mut inputs.failed, Arc::new([]));
                former = Some((stamps, failed));
            });
        drop(ending);
        drop(former);
        let generation = match (how, record) {
            (trace::Ending::Published | trace::Ending::PublishedStale, Some(record)) => record.generation,
            _ => UNPUBLISHED,
        };
        // The previous value first; what is dropped last may panic.
        drop(held);
        drop(leftover);
        Outcome { made, served, generation, stamps }
    }

    /// The value, if it is only out of date because a source is, and no source has a newer one.
    ///
    /// Asks the sources that know how to refresh themselves, which is user code.
    pub(super) fn settled(&self) -> Option<Arc<T>> {
        let machine = self.machine();
        let seen = machine.snapshot()?;
        match seen.freshness {
            Freshness::Fresh => return Some(seen.value),
            Freshness::Stale => {}
            _ => return None,
        }
        let stamps = {
            let inputs = self.inputs.lock();
            (inputs.generation == seen.record.generation).then(|| Arc::clone(&inputs.stamps))
        }?;
        let is_settled = !self.is_due(&seen.record, &stamps) && stamps.iter().all(Stamp::holds_after_refresh);
        is_settled.then_some(seen.value)
    }

    /// Whether the value is out of date, and not only because a source is.
    fn is_due(&self, record: &Record, stamps: &[Stamp]) -> bool {
        let machine = self.machine();
        let now = machine.now();
        // If its sources are fresh, it should be. Either its own time to live is over (the policy's, a drawn one, or that of a
        // `set_for`), or it was published while one of them was being published, or it was set, which has no sources.
        machine.is_out_of_date_itself(record) || (now >= record.fresh_end() && now < fresh_until(stamps))
    }

    /// The cached value, if what it was made from fits into an evaluation.
    fn absorb(&self, own: &Arc<dyn AnySource>, cx: &Cx) -> Option<Pin> {
        loop {
            let machine = self.machine();
            let (value, record) = machine.held()?;
            let Some(Stamps(stamps)) = self.stamps_of(record.generation) else {
                // A later one is published by now.
                continue;
            };
            if self.is_due(&record, &stamps) || !cx.accepts(&stamps) {
                return None;
            }
            return Some(self.pin(own, value, record.generation, record.generation, &stamps));
        }
    }

    /// `before`: the generation before it was made.
    fn pin(
        &self,
        own: &Arc<dyn AnySource>,
        value: Arc<T>,
        generation: u64,
        before: u64,
        stamps: &[Stamp],
    ) -> Pin {
        // What is made from an unpublished value is out of date when another one is published.
        let follows = if generation == UNPUBLISHED { before } else { generation };
        let own = Stamp { source: Arc::clone(own), generation: follows, has_value: true };
        let value: AnyValue = value;
        let stamps = stamps.iter().cloned().chain([own]).collect();
        Pin { id: id_of(self), generation, value: Ok(value), stamps }
    }

    /// What the value of this generation was made from; [`None`]: a later one is published.
    fn stamps_of(&self, generation: u64) -> Option<Stamps> {
        let inputs = self.inputs.lock();
        match inputs.generation.cmp(&generation) {
            // It was set.
            Less => Some(Stamps(Arc::new([]))),
            Equal => Some(Stamps(Arc::clone(&inputs.stamps))),
            Greater => None,
        }
    }
}

impl<T, C, B> Dependent for Node<T, C, B>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
    B: Send + Sync + 'static,
{
    fn source_changed(&self, source: usize) {
        let (is_published, is_derived) = {
            let mut inputs = self.inputs.lock();
            let Some(linked) = inputs.links.iter_mut().find(|linked| linked.link.source == source) else {
                return;
            };
            let (generation, _) = linked.source.state();
            let is_published = generation != linked.seen && generation != 0;
            linked.seen = generation;
            (is_published, linked.source.is_derived())
        };
        // A refresher that waits for it is notified once, by the link to the source itself, not once for each way to it.
        let notifies = is_published && !is_derived;
        let is_outdated = || {
            let inputs = self.inputs.lock();
            let (record, _) = self.machine().record();
            // One that was set is served until a source publishes.
            if record.generation == inputs.generation {
                fresh_until(&inputs.stamps) == 0
            } else {
                is_published
            }
        };
        if let Some(notified) = self.machine().source_changed(is_published, notifies, is_outdated) {
            notified.follow();
            self.followed.lock().push(notified);
        }
    }

    fn notify(&self) {
        let followed = std::mem::take(&mut *self.followed.lock());
        followed.into_iter().for_each(Notified::notify);
    }
}

impl<T, C, B> Publishes for Node<T, C, B>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
    B: Send + Sync + 'static,
{
    fn publish(held: Held<'_, Self>, made: Made<Self>) -> Arc<T> {
        match made {
            Made::New(computed, _) => Self::publish_computed(held, computed).served,
            Made::NotModified(value) => held.publish_again(value, Ttl::Policy),
        }
    }

    fn has_news(&self) -> bool {
        // A panic of a source's build is seen again by the build of this value.
        catch_unwind(AssertUnwindSafe(|| self.settled().is_none())).unwrap_or(true)
    }
}

/// An evaluation that runs. If it has the lease and does not end with a value, what it has taken is noted as that of a failure: a
/// pause begins, and is to end when one of them publishes. Without the lease no pause begins, and what another one waits for stays.
struct Running<'a, T, C, B>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
    B: Send + Sync + 'static,
{
    node: &'a Node<T, C, B>,
    cx: Cx,
    notes_failure: bool,
}

impl<T, C, B> Running<'_, T, C, B>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
    B: Send + Sync + 'static,
{
    fn end(mut self, result: Result<T, BoxError>) -> Result<Computed<T>, BoxError> {
        self.notes_failure &= result.is_err();
        result.map(|value| Computed { value, stamps: self.cx.stamps() })
    }
}

impl<T, C, B> Drop for Running<'_, T, C, B>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
    B: Send + Sync + 'static,
{
    fn drop(&mut self) {
        if self.notes_failure {
            self.node.note_failure(self.cx.stamps());
        }
    }
}

impl<T, C> Node<T, C, InThread<T>>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
{
    /// Runs the closure.
    fn evaluate(&self, cx: Cx, has_lease: bool) -> Result<Computed<T>, BoxError> {
        let running = Running { node: self, cx, notes_failure: has_lease };
        let result = (self.build.0)(&running.cx);
        running.end(result)
    }

    /// In an evaluation of its own.
    pub(super) fn evaluate_alone(&self) -> Result<Computed<T>, BoxError> {
        self.evaluate(Cx::new(id_of(self)), true)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn refresh(self: &Arc<Self>) -> Result<Arc<T>, RefreshError> {
        if let Some(value) = self.settled() {
            return Ok(value);
        }
        let mut search = Search::new(Handle::Shared(Arc::clone(self)), Demand::ANY, Caller::Fallible);
        let found = search.run().and_then(|found| match found {
            Found::Served(value) => Ok(value),
            Found::Elected(held) => {
                held.try_build(|| self.evaluate_alone()).or_else(|error| search.instead_of(error))
            }
        });
        found.map_err(of_source)
    }
}

#[cfg(feature = "async")]
impl<T, C> Node<T, C, InTask<T>>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
{
    /// Runs the closure.
    async fn evaluate(&self, cx: Cx, has_lease: bool) -> Result<Computed<T>, BoxError> {
        let running = Running { node: self, cx, notes_failure: has_lease };
        let result = (self.build.0)(running.cx.clone()).await;
        running.end(result)
    }

    /// In an evaluation of its own.
    pub(super) async fn evaluate_alone(&self) -> Result<Computed<T>, BoxError> {
        self.evaluate(Cx::new(id_of(self)), true).await
    }

    pub(super) async fn refresh(self: Arc<Self>) -> Result<Arc<T>, RefreshError> {
        if let Some(value) = self.settled() {
            return Ok(value);
        }
        let mut search = Search::new(Handle::Shared(Arc::clone(&self)), Demand::ANY, Caller::Fallible);
        let found = match search.run_async().await {
            Ok(Found::Served(value)) => Ok(value),
            Ok(Found::Elected(held)) => {
                let built = held.try_build_async(|| self.evaluate_alone()).await;
                built.or_else(|error| search.instead_of(error))
            }
            Err(error) => Err(error),
        };
        found.map_err(of_source)
    }

    /// As [`Source::take`].
    pub(super) async fn take(handle: &Handle<'static, Self>, cx: &Cx) -> Result<Taken, RefreshError> {
        let own = erase::<Self, ()>(handle);
        match handle.begin(handle, &own, cx)? {
            Begun::Cached(pin) => Ok(Taken(pin)),
            Begun::Makes { held: Some(mut held), inside, before } => {
                let result = held.run_async(|| handle.evaluate(inside, true)).await;
                handle.end(&own, Some(held), before, result)
            }
            Begun::Makes { held: None, inside, before } => {
                let result = handle.evaluate(inside, false).await;
                handle.end(&own, None, before, result)
            }
        }
    }
}

/// The error of an evaluation that has passed on what [`Cx::try_get`] returned.
fn of_source(error: RefreshError) -> RefreshError {
    match error.downcast_ref::<RefreshError>() {
        Some(error) => error.clone(),
        None => error,
    }
}

/// How an evaluation comes to the value of a derived source.
#[allow(clippy::large_enum_variant)] // it is moved once
enum Begun<T, C, B>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
    B: Send + Sync + 'static,
{
    Cached(Pin),
    /// Makes it here. Without the lease it is for this evaluation only: another thread makes it, perhaps from other values, or the
    /// cached one was made from newer ones.
    Makes {
        held: Option<Held<'static, Node<T, C, B>>>,
        inside: Cx,
        /// The generation before that.
        before: u64,
    },
}

impl<T, C, B> Node<T, C, B>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
    B: Send + Sync + 'static,
{
    fn begin(
        &self,
        handle: &Handle<'static, Self>,
        own: &Arc<dyn AnySource>,
        cx: &Cx,
    ) -> Result<Begun<T, C, B>, RefreshError> {
        let id = id_of(self);
        if cx.is_inside(id) {
            return Err(RefreshError::Reentrant);
        }
        if let Some(pin) = self.absorb(own, cx) {
            return Ok(Begun::Cached(pin));
        }
        let machine = self.machine();
        let (before, _) = own.state();
        if let Some(error) = machine.paused_by() {
            return Err(self.refuse(error, cx));
        }
        match machine.lookup(&Demand::ANY, None) {
            Decision::Elected(ticket) => {
                let held = Some(Held::new(handle.clone(), ticket));
                Ok(Begun::Makes { held, inside: cx.inside(id), before })
            }
            Decision::Failed(error) => Err(self.refuse(error, cx)),
            Decision::Fresh(_) | Decision::Stale(_) | Decision::Pending(_) => {
                Ok(Begun::Makes { held: None, inside: cx.inside(id), before })
            }
        }
    }

    /// In a retry pause. What asks fails for want of what the failed build had asked for, and is to try again when that changes.
    fn refuse(&self, error: SharedError, cx: &Cx) -> RefreshError {
        let failed = Arc::clone(&self.inputs.lock().failed);
        cx.note(&failed);
        of_source(RefreshError::Build(error))
    }

    fn end(
        &self,
        own: &Arc<dyn AnySource>,
        held: Option<Held<'_, Self>>,
        before: u64,
        result: Result<Computed<T>, BoxError>,
    ) -> Result<Taken, RefreshError> {
        let pin = match (result, held) {
            (Ok(computed), Some(held)) if are_current(&computed.stamps) => {
                let Outcome { made, generation, stamps, .. } = Self::publish_computed(held, computed);
                self.pin(own, made, generation, before, &stamps)
            }
            (Ok(Computed { value, stamps }), held) => {
                // Only what asks for it has still to do with what it was made from.
                held.into_iter().for_each(Held::abandon);
                self.pin(own, Arc::new(value), UNPUBLISHED, before, &stamps)
            }
            (Err(error), held) => {
                let error = SharedError::new(error);
                let error = match held {
                    Some(held) => held.fail(error),
                    None => error,
                };
                return Err(of_source(RefreshError::Build(error)));
            }
        };
        Ok(Taken(pin))
    }
}

impl<T, C, B> Followed<()> for Node<T, C, B>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
    B: Send + Sync + 'static,
{
    const IS_DERIVED: bool = true;
    const FRESH_WHEN_EMPTY: u64 = 0;

    fn refresh(&self, generation: u64, has_value: bool) -> bool {
        let machine = self.machine();
        if !has_value {
            // In a pause it makes none.
            return machine.holds(generation) && machine.paused_by().is_some();
        }
        let (record, is_there) = machine.record();
        is_there
            && record.generation == generation
            && self.stamps_of(generation).is_some_and(|Stamps(stamps)| !self.is_due(&record, &stamps))
    }

    fn made_from(&self, generation: u64) -> Option<Stamps> {
        self.stamps_of(generation)
    }
}

impl<T, C> Source<()> for Node<T, C, InThread<T>>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
{
    fn take(handle: &Handle<'static, Self>, cx: &Cx) -> Result<Taken, RefreshError> {
        let own = erase::<Self, ()>(handle);
        match handle.begin(handle, &own, cx)? {
            Begun::Cached(pin) => Ok(Taken(pin)),
            Begun::Makes { held: Some(mut held), inside, before } => {
                let result = held.run(|| handle.evaluate(inside, true));
                handle.end(&own, Some(held), before, result)
            }
            Begun::Makes { held: None, inside, before } => {
                let result = handle.evaluate(inside, false);
                handle.end(&own, None, before, result)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::SystemClock;

    type TestCell = Arc<DogpileCell<u32>>;

    fn cells<const N: usize>() -> [TestCell; N] {
        std::array::from_fn(|number| {
            let cell = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
            cell.set(u32::try_from(number).unwrap());
            cell
        })
    }

    fn node(make: impl Fn(&Cx) -> u32 + Send + Sync + 'static) -> Arc<Node<u32, SystemClock, InThread<u32>>> {
        let make = move |cx: &Cx| Ok(make(cx));
        Node::new(Policy::never_expires(), SystemClock, InThread(Box::new(make)))
    }

    fn links(cells: &[TestCell]) -> Vec<usize> {
        cells.iter().map(|cell| cell.machine().listener_count()).collect()
    }

    #[test]
    fn a_node_is_linked_to_what_its_latest_value_was_made_from() {
        let cells = cells::<3>();
        let made = node({
            let [which, left, right] = cells.clone();
            move |cx| if *cx.get(&which) == 0 { *cx.get(&left) } else { *cx.get(&right) }
        });
        assert_eq!(links(&cells), [0, 0, 0]);
        assert_eq!((*made.refresh().unwrap(), links(&cells)), (1, vec![1, 1, 0]));
        cells[0].set(1);
        assert_eq!((*made.refresh().unwrap(), links(&cells)), (2, vec![1, 0, 1]));
        // A panic: what it has taken, and what the value that stays was made from.
        cells[0].set(2);
        cells[2].clear();
        assert!(catch_unwind(AssertUnwindSafe(|| made.refresh())).is_err());
        assert_eq!(links(&cells), [1, 0, 1]);
        drop(made);
        assert_eq!(links(&cells), [0, 0, 0]);
        // No list is left either.
        assert!(cells.iter().all(|cell| !cell.machine().has_listeners()));
    }

    #[test]
    fn many_nodes_come_and_go() {
        let [source] = cells();
        for _ in 0..10 {
            let nodes: Vec<_> = (0..10)
                .map(|_| {
                    let source = Arc::clone(&source);
                    node(move |cx| *cx.get(&source))
                })
                .collect();
            for node in &nodes {
                drop(node.refresh());
            }
            assert_eq!(source.machine().listener_count(), 10);
        }
        assert_eq!(source.machine().listener_count(), 0);
    }
}
