//! The primitives that users get.

use super::Arc;

pub(crate) use once_cell::sync::OnceCell;
pub(crate) use parking_lot::{Mutex, MutexGuard};
#[cfg(not(target_has_atomic = "64"))]
pub(crate) use portable_atomic::AtomicU64;
#[cfg(target_has_atomic = "64")]
pub(crate) use std::sync::atomic::AtomicU64;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize};
pub(crate) use std::thread::{
    Builder as ThreadBuilder, JoinHandle, Thread, ThreadId, current as current_thread, panicking, park,
    park_timeout, yield_now,
};
pub(crate) use std::thread_local;

#[cfg(not(dogpile_oracle))]
type Strategy = arc_swap::DefaultStrategy;
#[cfg(dogpile_oracle)]
type Strategy = std::sync::RwLock<()>;

type Swap<T> = arc_swap::ArcSwapAny<Option<Arc<T>>, Strategy>;

/// A borrow of the value that the slot held when it was loaded. Usually costs no reference count: see [`ArcSlot::load`].
pub(crate) type SlotGuard<T> = arc_swap::Guard<Option<Arc<T>>, Strategy>;

/// An atomically replaceable `Option<Arc<T>>`.
///
/// All operations are sequentially consistent (arc-swap promises that since 1.9.0). So a load also acquires what the thread
/// that stored the pointer had written before.
#[cfg(not(dogpile_oracle))]
pub(crate) struct ArcSlot<T>(Swap<T>);
/// Made by the first use: with a lock it cannot be made at compile time.
#[cfg(dogpile_oracle)]
pub(crate) struct ArcSlot<T>(OnceCell<Swap<T>>);

#[cfg(not(dogpile_oracle))]
impl<T> ArcSlot<T> {
    pub(crate) const fn empty() -> Self {
        Self(Swap::const_empty())
    }

    #[inline]
    fn swap_cell(&self) -> &Swap<T> {
        &self.0
    }

    pub(crate) fn into_inner(self) -> Option<Arc<T>> {
        self.0.into_inner()
    }
}

#[cfg(dogpile_oracle)]
impl<T> ArcSlot<T> {
    pub(crate) const fn empty() -> Self {
        Self(OnceCell::new())
    }

    fn swap_cell(&self) -> &Swap<T> {
        self.0.get_or_init(|| Swap::with_strategy(None, Strategy::default()))
    }

    pub(crate) fn into_inner(self) -> Option<Arc<T>> {
        self.0.into_inner().and_then(Swap::into_inner)
    }
}

impl<T> ArcSlot<T> {
    /// A borrow that costs no reference count, as long as this thread holds fewer than eight of them.
    #[inline]
    pub(crate) fn load(&self) -> SlotGuard<T> {
        self.swap_cell().load()
    }

    /// An owned reference.
    #[inline]
    pub(crate) fn load_full(&self) -> Option<Arc<T>> {
        self.swap_cell().load_full()
    }

    pub(crate) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
        self.swap_cell().swap(value)
    }
}

/// Between two attempts to take a lock that is held for a few instructions.
pub(crate) fn spin_a_moment() {
    std::hint::spin_loop();
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
