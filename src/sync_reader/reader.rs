//! Values in the hands of readers.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use crate::inside::{guard_dropped, guard_taken};
use crate::sync::{Arc, SlotGuard, guard_of};

use super::drain::Tracked;

/// A reader's hold on a value of a [`SyncReaderCell`](crate::SyncReaderCell).
///
/// As long as one clone lives, the reader is inside: the value is not finalised. It may be kept for as long as one
/// likes, sent to other threads, and outlive the cell.
///
/// One that is leaked ([`std::mem::forget`]) is a reader for ever: its value, and all that are replaced after it,
/// are never finalised. [`synchronize_timeout`](crate::SyncReaderCell::synchronize_timeout) shows it.
pub struct ReaderArc<T>(pub(super) Arc<Tracked<T>>);

impl<T> Clone for ReaderArc<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for ReaderArc<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0.value()
    }
}

impl<T> ReaderArc<T> {
    /// Whether both hold the same value: the same one, not an equal one.
    ///
    /// An associated function, so that it hides no method of `T`.
    #[must_use]
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        Arc::ptr_eq(&this.0, &other.0)
    }

    pub(super) fn into_guard<'a>(self) -> ReadGuard<'a, T> {
        match ReadGuard::new(guard_of(self.0)) {
            Some(guard) => guard,
            None => unreachable!("it was made of a value"),
        }
    }
}

impl<T> fmt::Debug for ReaderArc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderArc").finish_non_exhaustive()
    }
}

/// A borrow of a value of a [`SyncReaderCell`](crate::SyncReaderCell), without a reference count.
///
/// The reader is inside as long as it lives. It stays on its thread, so that a thread which asks for the write lock
/// while it holds one can be told. To be held briefly: see [`Guard`](crate::Guard).
///
/// ```compile_fail,E0277
/// # let cell = dogpile::SyncReaderCell::new(std::time::Duration::from_secs(60), drop::<u32>);
/// let guard = cell.load_or_refresh(|| 1);
/// std::thread::scope(|scope| {
///     scope.spawn(move || drop(guard));
/// });
/// ```
///
/// ```
/// # let cell = dogpile::SyncReaderCell::new(std::time::Duration::from_secs(60), drop::<u32>);
/// let guard = cell.get_or_refresh(|| 1);
/// std::thread::scope(|scope| {
///     scope.spawn(move || drop(guard));
/// });
/// ```
#[must_use = "a guard that is not looked at has been taken for nothing"]
pub struct ReadGuard<'a, T> {
    /// Never empty.
    guard: SlotGuard<Tracked<T>>,
    /// Lives no longer than the cell, and stays on its thread.
    cell: PhantomData<(&'a T, *const ())>,
}

impl<T> ReadGuard<'_, T> {
    /// `None` if the slot was empty.
    #[inline]
    pub(super) fn new(guard: SlotGuard<Tracked<T>>) -> Option<Self> {
        guard_taken(Arc::as_ptr(guard.as_ref()?).addr());
        Some(Self { guard, cell: PhantomData })
    }
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        match &*self.guard {
            Some(value) => value.value(),
            None => unreachable!("a guard is made of a value"),
        }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(value) = &*self.guard {
            guard_dropped(Arc::as_ptr(value).addr());
        }
    }
}

impl<T> fmt::Debug for ReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadGuard").finish_non_exhaustive()
    }
}
