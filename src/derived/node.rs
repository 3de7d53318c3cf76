//! The cell of a derived value, what its value was made from, and its links to that. How it is made: [`evaluate`](super::evaluate).
//!
//! # The protocol
//!
//! A publication of a source only declares the derived value stale; the next read makes it again. G15 follows from three
//! things:
//!
//! * An evaluation takes each source's value once (see [`cx`](super::cx)), and notes the generation: a [`Stamp`].
//! * The node is linked to each source *before* it publishes, and looks *under its cell's lock* whether the stamps are the sources'
//!   current generations. If not, the value is published as stale. So a source's publication is either seen by that look, or its
//!   notification comes after it and declares the value stale. A link is there as long as something notes what it took from its
//!   source ([`Taken`]): a build that ends, the value, or the latest failure.
//! * The notification of a link compares the stamps of the value that is published. It fences no build: a build that is made from
//!   the new value counts as fresh, even if it caused the source's build itself.
//!
//! A value inherits the time at which the first of its sources goes stale, as a tick. Sources that go stale without a new value
//! (nothing refreshes them, or their source is down) would have it made again at each read, from the same: so before an election
//! the node asks its sources ([`Node::settled`]). If none has anything newer, the value is *settled*: its cell serves it as it
//! is, without a lock, until a source changes or would have to be asked again (its retry pause is over). That too is decided
//! under the cell's lock, so a change is either seen there or notified of after it.
//!
//! # Locks
//!
//! The lock of a node's inputs is taken under the lock of its cell, never the other way round. Under both, only the records of
//! cells are read, which takes no lock.

use std::cell::Cell;
use std::cmp::Ordering::{Equal, Greater, Less};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::cell::{
    BuildOutput, Concluded, DogpileCell, Held, Kind, Machine, Notified, Observer, Record, Term,
};
use crate::contain::contain;
use crate::policy::{Freshness, Policy};
use crate::sync::{Arc, Mutex, Weak};
use crate::time::{Clock, FOREVER};
use crate::trace::PublishOutcome;

use super::source::Followed;
use super::stamp::{AnySource, Dependent, Gave, Linked, Stamp, are_current, fresh_until};

/// What a [`Derived`](crate::Derived) value and its links share.
#[allow(missing_debug_implementations)] // named by a sealed trait
pub struct Node<T, C, B> {
    cell: DogpileCell<T, C>,
    pub(super) build: B,
    inputs: Mutex<Inputs>,
    /// Listeners of this cell that have followed a change of a source, and are not notified yet.
    followed: Mutex<Vec<Notified<T>>>,
    me: Weak<dyn Dependent>,
}

#[derive(Default)]
struct Inputs {
    /// What the value of this generation was made from.
    generation: u64,
    made_from: Taken,
    /// What the latest build that failed had taken.
    failed: Taken,
}

/// What a build has taken from its sources, and the node's links to these.
#[derive(Default)]
struct Taken {
    stamps: Arc<[Stamp]>,
    /// One for each stamp.
    links: Vec<Arc<Linked>>,
}

/// What a build has made.
#[allow(missing_debug_implementations)] // named by a sealed trait
pub struct Computed<T> {
    pub(super) value: Arc<T>,
    pub(super) stamps: Arc<[Stamp]>,
}

impl<T: Send + Sync + 'static, C: Clock + 'static, B: Send + Sync + 'static> Node<T, C, B> {
    pub(super) fn new(policy: Policy, clock: C, build: B) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            cell: DogpileCell::with_clock(policy, clock),
            build,
            inputs: Mutex::default(),
            followed: Mutex::default(),
            me: Weak::<Self>::clone(me),
        })
    }
}

impl<T, C, B> Node<T, C, B> {
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
        &self.cell.machine
    }

    fn share(stored: Arc<T>) -> Arc<T> {
        stored
    }

    fn publish(held: Held<'_, Self>, computed: Computed<T>, _: Term) -> Arc<T> {
        Self::publish_computed(held, &computed).0
    }

    fn has_news(&self) -> bool {
        // A panic of a source's build is seen again by the build of this value.
        catch_unwind(AssertUnwindSafe(|| self.settled().is_none())).unwrap_or(true)
    }

    fn has_failed(&self) {
        // The clock is asked.
        contain(|| {
            let failed = self.failed();
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

/// What a value was made from, to be noted when it is published.
struct MadeFrom<'a> {
    stamps: &'a [Stamp],
    inputs: &'a Mutex<Inputs>,
    /// What takes the place of the inputs; then what these were, to be dropped without the lock.
    exchanged: Cell<Inputs>,
}

impl<T> Observer<T> for MadeFrom<'_> {
    fn fresh_until(&self) -> u64 {
        fresh_until(self.stamps)
    }

    fn publishes(&self, _value: &Arc<T>, generation: u64, _drains: bool) {
        let new = Inputs { generation, ..self.exchanged.take() };
        let former = std::mem::replace(&mut *self.inputs.lock(), new);
        self.exchanged.set(former);
    }
}

impl<T, C, B> Node<T, C, B> {
    /// Links the node to each of these sources, unless it is linked already.
    fn link(&self, stamps: Arc<[Stamp]>) -> Taken {
        let known: Vec<_> = {
            let Inputs { made_from, failed, .. } = &*self.inputs.lock();
            let find = |stamp: &Stamp| {
                let id = stamp.source.id();
                made_from.links.iter().chain(&failed.links).find(|link| link.source().id() == id).cloned()
            };
            stamps.iter().map(find).collect()
        };
        let new = |stamp: &Stamp| Linked::new(Weak::clone(&self.me), Arc::clone(&stamp.source));
        let links = known.into_iter().zip(&*stamps).map(|(known, stamp)| known.unwrap_or_else(|| new(stamp)));
        Taken { links: links.collect(), stamps }
    }

    /// A build has taken these, and fails or panics.
    pub(super) fn note_failure(&self, stamps: Vec<Stamp>) {
        let taken = self.link(stamps.into());
        let former = std::mem::replace(&mut self.inputs.lock().failed, taken);
        drop(former);
    }

    /// What the value of this generation was made from; [`None`]: a later one is published.
    pub(super) fn stamps_of(&self, generation: u64) -> Option<Arc<[Stamp]>> {
        let inputs = self.inputs.lock();
        match inputs.generation.cmp(&generation) {
            // It was set.
            Less => Some(Arc::new([])),
            Equal => Some(Arc::clone(&inputs.made_from.stamps)),
            Greater => None,
        }
    }

    /// What the latest build that failed had taken.
    pub(super) fn failed(&self) -> Arc<[Stamp]> {
        Arc::clone(&self.inputs.lock().failed.stamps)
    }
}

impl<T, C: Clock, B> Node<T, C, B> {
    /// Publishes what a build has made. Returns what its caller gets, and the generation of what it has made ([`None`]: it was
    /// displaced).
    pub(super) fn publish_computed(
        mut held: Held<'_, Self>,
        Computed { value, stamps }: &Computed<T>,
    ) -> (Arc<T>, Option<u64>) {
        let node = held.handle().clone();
        let inputs = Inputs { made_from: node.link(Arc::clone(stamps)), ..Inputs::default() };
        let output = BuildOutput::new(Arc::clone(value), Term::POLICY);
        let observer = MadeFrom { stamps, inputs: &node.inputs, exchanged: Cell::new(inputs) };
        let Concluded { served, record, outcome, leftover, .. } = held.conclude(output, &observer);
        drop(observer);
        let is_published = matches!(outcome, PublishOutcome::Published | PublishOutcome::PublishedStale);
        let generation = record.filter(|_| is_published).map(|record| record.generation);
        // The previous value first; what is dropped last may panic.
        drop(held);
        drop(leftover);
        (served, generation)
    }

    /// The value, if it is only out of date because a source is, and no source has a newer one.
    ///
    /// Asks the sources that know how to refresh themselves, which is user code.
    pub(super) fn settled(&self) -> Option<Arc<T>> {
        let machine = self.machine();
        let seen = machine.snapshot()?;
        match seen.freshness() {
            Freshness::Fresh => return Some(seen.value),
            Freshness::Stale => {}
            _ => return None,
        }
        let stamps = self.stamps_of(seen.record.generation)?;
        if self.is_due(&seen.record, &stamps) || !stamps.iter().all(Stamp::holds_after_refresh) {
            return None;
        }
        // The next reads take no lock. Under this one, so that a change of a source is either seen here, or notified of after it.
        let is_still_there = machine.settle(seen.record.generation, || {
            if !are_current(&stamps) {
                return 0;
            }
            let ends = stamps.iter().map(|stamp| stamp.source.settled_until(stamp, seen.now));
            ends.min().unwrap_or(FOREVER).min(machine.own_end(&seen.record))
        });
        // A derived source can be due without a new generation. That shows only under the lock of its own cell, which must not be
        // taken under this one's. So it is asked once more here: its notification came before, and is seen now, or comes later,
        // and unsettles the value.
        let mut derived = stamps.iter().filter(|stamp| stamp.source.is_derived());
        if !derived.all(Stamp::holds_after_refresh) {
            machine.unsettle();
            return None;
        }
        // A build of a source may have led to another one (G3).
        is_still_there.then_some(seen.value)
    }

    /// Whether the value is out of date, and not only because a source is.
    pub(super) fn is_due(&self, record: &Record, stamps: &[Stamp]) -> bool {
        let machine = self.machine();
        let now = machine.now();
        // If its sources are fresh, it should be. Either its own time to live is over (the policy's, a drawn one, or that of a
        // `set_for`), or it was published while one of them was being published, or it was set, which has no sources.
        machine.is_out_of_date_itself(record) || (now >= record.fresh_end() && now < fresh_until(stamps))
    }
}

impl<T: Send + Sync + 'static, C: Clock + 'static, B: Send + Sync + 'static> Dependent for Node<T, C, B> {
    fn source_changed(&self, source: &dyn AnySource, is_published: bool) {
        // A refresher that waits for it is notified once, by the link to the source itself, not once for each way to it.
        let notifies = is_published && !source.is_derived();
        let is_outdated = || {
            let inputs = self.inputs.lock();
            let (record, _) = self.machine().record();
            // One that was set is served until a source publishes.
            if record.generation == inputs.generation {
                fresh_until(&inputs.made_from.stamps) == 0
            } else {
                is_published
            }
        };
        if let Some(notified) = self.machine().source_changed(is_published, notifies, is_outdated) {
            notified.follow();
            self.followed.lock().push(*notified);
        }
    }

    fn notify(&self) {
        let followed = std::mem::take(&mut *self.followed.lock());
        followed.into_iter().for_each(Notified::notify);
    }
}

impl<T: Send + Sync + 'static, C: Clock + 'static, B: Send + Sync + 'static> Followed<false>
    for Node<T, C, B>
{
    const IS_DERIVED: bool = true;
    const FRESH_WHEN_EMPTY: u64 = 0;

    fn refresh(&self, &Stamp { generation, gave, .. }: &Stamp) -> bool {
        let machine = self.machine();
        if gave == Gave::Nothing {
            // In a pause it makes none.
            return machine.holds(generation) && machine.paused_by().is_some();
        }
        let (record, is_there) = machine.record();
        is_there
            && record.generation == generation
            && self.stamps_of(generation).is_some_and(|stamps| !self.is_due(&record, &stamps))
    }

    fn settled_until(&self, stamp: &Stamp, now: u64) -> u64 {
        let (record, _) = self.machine().record();
        let (own_end, fresh_end) = (self.machine().own_end(&record), record.fresh_end());
        match stamp.gave {
            Gave::Nothing => 0,
            // Perhaps by a time to live of its own.
            _ if now < fresh_end => own_end.min(fresh_end),
            _ => own_end,
        }
    }

    fn made_from(&self, generation: u64) -> Option<Arc<[Stamp]>> {
        self.stamps_of(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cx::Cx;
    use super::super::evaluate::InThread;
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
