//! What an evaluation has taken from its sources, and how they tell that it is not current any more: without their types.

use std::any::Any;

use crate::cell::Listener;
use crate::contain::contain;
use crate::error::RefreshError;
use crate::sync::{Arc, AtomicU64, Ordering, Weak};
use crate::time::FOREVER;

/// A value of any source, as its slot holds it.
pub(super) type AnyValue = Arc<dyn Any + Send + Sync>;

/// What a value was made from: a publication of a source, or that it gave no value.
#[derive(Clone)]
#[allow(unreachable_pub, missing_debug_implementations)] // named by a sealed trait
pub struct Stamp {
    pub(super) source: Arc<dyn AnySource>,
    pub(super) generation: u64,
    pub(super) gave: Gave,
}

/// What a source gave for a value that was made from it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(unreachable_pub, missing_debug_implementations)] // named by a sealed trait
pub enum Gave {
    /// The value of that publication.
    Published,
    /// A value that is in no cell, since it was made for one evaluation after that publication. What was made from it does not
    /// go together with the one that was published.
    Unpublished,
    /// No value: there was none, it could not be served, or it could not be made.
    Nothing,
}

impl Stamp {
    /// Lets a source that knows how to refresh itself do so, if it is due. Returns whether the source still gives what this stamp
    /// notes. Makes no derived value.
    pub(super) fn holds_after_refresh(&self) -> bool {
        self.source.holds_after_refresh(self)
    }
}

/// A value that an evaluation has taken: the same one, whatever asks for it in this evaluation.
#[derive(Clone)]
#[allow(unreachable_pub, missing_debug_implementations)] // named by a sealed trait
pub struct Pinned {
    /// What is made from it is made from this.
    pub(super) stamp: Stamp,
    /// Or why there is none.
    pub(super) value: Result<AnyValue, RefreshError>,
    /// All that a derived value was made from. What is made from the value is made from these too.
    pub(super) made_from: Arc<[Stamp]>,
}

impl Pinned {
    /// Of a source that is not derived, or gives no value.
    pub(super) fn of_source(stamp: Stamp, value: Result<AnyValue, RefreshError>) -> Self {
        Self { stamp, value, made_from: Arc::new([]) }
    }

    pub(super) fn id(&self) -> usize {
        self.stamp.source.id()
    }

    /// Whether another value, made from what this stamp notes, may be used beside this one (G15).
    pub(super) fn fits(&self, stamp: &Stamp) -> bool {
        // Two unpublished values may differ.
        stamp.gave != Gave::Unpublished
            && (stamp.generation, stamp.gave) == (self.stamp.generation, self.stamp.gave)
    }
}

/// A source, its type erased.
pub(super) trait AnySource: Send + Sync {
    /// Its address: of two sources that are alive, these differ.
    fn id(&self) -> usize;

    /// The generation of its value, or 0 without one, and up to when what is made from that is fresh. Runs no user code.
    fn state(&self) -> (u64, u64);

    /// See [`Stamp::holds_after_refresh`].
    fn holds_after_refresh(&self, stamp: &Stamp) -> bool;

    /// See [`Followed::settled_until`].
    fn settled_until(&self, stamp: &Stamp, now: u64) -> u64;

    /// What it gives, if that is still what the stamp notes.
    fn pin(&self, stamp: &Stamp) -> Option<Pinned>;

    fn attach(&self, link: &Arc<Link>);
    fn detach(&self, link: &Arc<Link>);

    fn is_derived(&self) -> bool;
}

/// Whether all that a value was made from is still there.
pub(super) fn are_current(stamps: &[Stamp]) -> bool {
    stamps.iter().all(|stamp| stamp.source.state().0 == stamp.generation)
}

/// Up to when all that a value was made from is fresh; 0: it is not. Runs no user code.
pub(super) fn fresh_until(stamps: &[Stamp]) -> u64 {
    let end = |stamp: &Stamp| match stamp.source.state() {
        (generation, end) if generation == stamp.generation => end,
        _ => 0,
    };
    stamps.iter().map(end).min().unwrap_or(FOREVER)
}

/// A node's entry among the listeners of a source. It owns neither: a publisher that notifies it, or drops it, drops no user's value.
pub(super) struct Link {
    node: Weak<dyn Dependent>,
    source: Weak<dyn AnySource>,
    /// The generation of the source at the latest notification.
    seen: AtomicU64,
}

/// A link that is there until this is dropped.
pub(super) struct Linked {
    source: Arc<dyn AnySource>,
    link: Arc<Link>,
}

impl Linked {
    pub(super) fn new(node: Weak<dyn Dependent>, source: Arc<dyn AnySource>) -> Arc<Self> {
        let (seen, _) = source.state();
        let link = Arc::new(Link { node, source: Arc::downgrade(&source), seen: AtomicU64::new(seen) });
        let linked = Arc::new(Self { source, link });
        // `linked` is made before, and so detaches the link if this panics.
        linked.source.attach(&linked.link);
        linked
    }

    pub(super) fn source(&self) -> &dyn AnySource {
        &*self.source
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.source.detach(&self.link);
    }
}

/// A derived value, its type erased.
pub(super) trait Dependent: Send + Sync {
    /// Declares the value stale if it is. `is_published`: the source has published one since the latest notification. What listens to
    /// the value is notified later.
    fn source_changed(&self, source: &dyn AnySource, is_published: bool);

    fn notify(&self);
}

impl Link {
    /// Whether the source has published a value since the latest notification. (Its value may also be taken away, or withheld by a
    /// build that may put it back.)
    fn is_published(&self, source: &dyn AnySource) -> bool {
        let (generation, _) = source.state();
        // Relaxed: it orders nothing. Of two notifications at a time the one that comes first has seen the publication.
        self.seen.fetch_max(generation, Ordering::Relaxed) < generation
    }
}

impl<T> Listener<T> for Link {
    fn follow(&self) {
        // The clock is asked, and the last references may be dropped here, and with them what is the user's.
        contain(|| {
            if let (Some(node), Some(source)) = (self.node.upgrade(), self.source.upgrade()) {
                node.source_changed(&*source, self.is_published(&*source));
            }
        });
    }

    fn notify(&self) {
        // The last reference may be dropped here.
        contain(|| {
            if let Some(node) = self.node.upgrade() {
                node.notify();
            }
        });
    }
}
