//! What an evaluation has taken from its sources, and how they tell that it is not current any more: without their types.

use std::any::Any;

use crate::cell::Listener;
use crate::contain::contain;
use crate::error::RefreshError;
use crate::sync::{Arc, Weak};
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
        self.source.holds_after_refresh(self.generation, self.gave)
    }

    /// What the source gives, if that is still the same.
    pub(super) fn pin(&self) -> Option<Pinned> {
        self.source.pin_at(self.generation, self.gave)
    }
}

/// Of a derived value that was made in an evaluation and never published: no publication has this generation.
pub(super) const UNPUBLISHED: u64 = u64::MAX;

/// A value that an evaluation has taken: the same one, whatever asks for it in this evaluation.
#[derive(Clone)]
#[allow(unreachable_pub, missing_debug_implementations)] // named by a sealed trait
pub struct Pinned {
    pub(super) id: usize,
    /// Or [`UNPUBLISHED`].
    pub(super) generation: u64,
    /// Or why there is none.
    pub(super) value: Result<AnyValue, RefreshError>,
    /// The publications that what is made from it is made from: its own, and if it is derived, all that it was made from.
    pub(super) stamps: Arc<[Stamp]>,
}

/// A source, its type erased.
pub(super) trait AnySource: Send + Sync {
    /// Its address: of two sources that are alive, these differ.
    fn id(&self) -> usize;

    /// The generation of its value, or 0 without one, and up to when what is made from that is fresh. Runs no user code.
    fn state(&self) -> (u64, u64);

    /// See [`Stamp::holds_after_refresh`].
    fn holds_after_refresh(&self, generation: u64, gave: Gave) -> bool;

    /// See [`Followed::settled_until`].
    fn settled_until(&self, gave: Gave, now: u64) -> u64;

    /// See [`Stamp::pin`].
    fn pin_at(&self, generation: u64, gave: Gave) -> Option<Pinned>;

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

/// A node's entry among the listeners of a source.
pub(super) struct Link {
    pub(super) node: Weak<dyn Dependent>,
    /// Its address.
    pub(super) source: usize,
}

/// A derived value, its type erased.
pub(super) trait Dependent: Send + Sync {
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
}
