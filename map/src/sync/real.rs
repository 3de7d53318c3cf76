//! The primitives that users get.

pub(crate) use parking_lot::RwLock;
pub(crate) use quick_cache::DefaultHashBuilder as Hashes;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize};
pub(crate) use std::thread_local;

/// How many shards the flights are in.
pub(crate) fn shards() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (4 * cores).next_power_of_two().max(16)
}

/// A point where a model checker may switch to another thread. Here there is nothing to do.
pub(crate) struct Step;

impl Step {
    pub(crate) fn new() -> Self {
        Self
    }

    #[inline]
    #[allow(clippy::unused_self)] // the checkers' has something to do
    pub(crate) fn take(&self) {}
}
