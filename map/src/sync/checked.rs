//! Primitives of a model checker. It has to see the same steps in each execution: there is one shard, and keys are hashed
//! alike each time.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::atomic::Ordering;

#[cfg(dogpile_loom)]
use ::loom as checker;
#[cfg(dogpile_shuttle)]
use ::shuttle as checker;

pub(crate) use checked_thread_local as thread_local;
pub(crate) use checker::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize};
use checker::sync::{RwLockReadGuard, RwLockWriteGuard};
pub(crate) use checker::thread_local as checker_thread_local;

/// std's `thread_local`, with the checker's thread-locals.
macro_rules! checked_thread_local {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = const $value:block;)*) => {
        $crate::sync::checker_thread_local! { $($(#[$attribute])* static $name: $type = $value;)* }
    };
}
pub(crate) use checked_thread_local;

pub(crate) type Hashes = BuildHasherDefault<DefaultHasher>;

pub(crate) fn shards() -> usize {
    1
}

/// The interface of `parking_lot`'s.
pub(crate) struct RwLock<T>(checker::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(checker::sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().expect("no panic under a lock")
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().expect("no panic under a lock")
    }
}

/// Makes an operation of the store a step that the checker sees.
pub(crate) struct Step(AtomicUsize);

impl Step {
    pub(crate) fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    pub(crate) fn take(&self) {
        // Relaxed: less than the locks of the store give. A write, since loom is certain to explore the order of two accesses by
        // one thread and one by another only if all three write.
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
