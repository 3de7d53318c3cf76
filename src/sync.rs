//! The primitives, and the only file that names where they come from.
//!
//! Everything else in the crate imports them from here, so that a model checker can take their place in one
//! spot. `tests/it/source.rs` keeps it so.

pub(crate) use once_cell::sync::OnceCell;
pub(crate) use parking_lot::{Mutex, MutexGuard};
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Weak};
pub(crate) use std::thread::{
    Builder as ThreadBuilder, JoinHandle, Thread, ThreadId, current as current_thread, park, park_timeout,
};

use arc_swap::ArcSwapOption;

/// A borrow of what the slot held when it was loaded. Usually costs no reference count; see [`ArcSlot::load`].
pub(crate) type SlotGuard<T> = arc_swap::Guard<Option<Arc<T>>>;

/// An atomically replaceable `Option<Arc<T>>`.
///
/// All operations are sequentially consistent (arc-swap's promise since 1.9.0), so a load also acquires
/// whatever the thread that stored the pointer had written before.
pub(crate) struct ArcSlot<T>(ArcSwapOption<T>);

impl<T> ArcSlot<T> {
    pub(crate) const fn empty() -> Self {
        Self(ArcSwapOption::const_empty())
    }

    /// A borrow that costs no reference count, as long as this thread holds fewer than eight of them.
    #[inline]
    pub(crate) fn load(&self) -> SlotGuard<T> {
        self.0.load()
    }

    /// An owned reference.
    #[inline]
    pub(crate) fn load_full(&self) -> Option<Arc<T>> {
        self.0.load_full()
    }

    pub(crate) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
        self.0.swap(value)
    }

    pub(crate) fn into_inner(self) -> Option<Arc<T>> {
        self.0.into_inner()
    }
}

/// A guard over a value that did not come out of the slot.
pub(crate) fn guard_of<T>(value: Arc<T>) -> SlotGuard<T> {
    SlotGuard::from_inner(Some(value))
}

/// The value behind a guard, as an owned reference.
#[inline]
pub(crate) fn into_arc<T>(guard: SlotGuard<T>) -> Option<Arc<T>> {
    SlotGuard::into_inner(guard)
}
