//! Values in the hands of readers.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use crate::inside::{guard_dropped, guard_taken};
use crate::sync::{Arc, SlotGuard, guard_of};

use super::retirement::Tracked;

/// A counted reference to a value of a [`SyncReaderCell`](crate::SyncReaderCell).
///
/// The value is not finalised as long as one clone lives. A `ReaderArc` can be kept for any time, sent to other
/// threads, and outlive the cell.
///
/// A leaked one ([`std::mem::forget`]) is a reader for ever: its value, and all values replaced after it, are never
/// finalised. [`synchronize_timeout`](crate::SyncReaderCell::synchronize_timeout) shows that.
///
/// # Examples
///
/// ```
/// use dogpile::SyncReaderCell;
/// use std::time::Duration;
///
/// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
/// let reader = cell.get_or_refresh(|| 7);
/// cell.set(8);
/// assert_eq!(*reader, 7); // replaced, but not finalised
/// assert_eq!(cell.retired(), 1);
/// ```
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
    /// Returns whether both refer to the same value (not merely to equal ones).
    ///
    /// This is an associated function, so that it hides no method of `T`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{ReaderArc, SyncReaderCell};
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// let first = cell.set(7);
    /// assert!(ReaderArc::ptr_eq(&first, &cell.get().unwrap()));
    /// assert!(!ReaderArc::ptr_eq(&first, &cell.set(7)));
    /// ```
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
/// The value is not finalised as long as the guard lives. The guard stays on its thread, so the cell can detect that a
/// thread which asks for the write lock holds one. Hold it briefly, like a [`Guard`](crate::Guard).
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
