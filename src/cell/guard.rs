//! A borrow of the value that costs no reference count.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use crate::sync::{Arc, SlotGuard, guard_of, into_arc};

/// A borrow of the value, without a reference count.
///
/// It keeps the value alive, also if another value is published meanwhile. It cannot outlive the cell.
///
/// Hold it briefly. A thread has eight slots for guards, over all cells and all other uses of `arc-swap` in the
/// process. From the ninth guard on, taking one costs a reference count. To keep the value, or to hold it across a
/// build, take the [`Arc`](Guard::into_arc).
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Guard};
/// use std::time::Duration;
///
/// let cell = DogpileCell::new(Duration::from_secs(60));
/// let guard = cell.load_or_refresh(|| String::from("value"));
/// assert_eq!(guard.len(), 5);
/// let kept = Guard::into_arc(guard);
/// assert_eq!(*kept, "value");
/// ```
///
/// It cannot outlive the cell, so the way in which the cell reclaims values may change:
///
/// ```compile_fail,E0597
/// use dogpile::DogpileCell;
/// use std::time::Duration;
///
/// let guard;
/// {
///     let cell = DogpileCell::new(Duration::from_secs(60));
///     guard = cell.load_or_refresh(|| 1);
/// }
/// assert_eq!(*guard, 1);
/// ```
///
/// ```
/// use dogpile::DogpileCell;
/// use std::time::Duration;
///
/// let guard;
/// let cell = DogpileCell::new(Duration::from_secs(60));
/// {
///     guard = cell.load_or_refresh(|| 1);
/// }
/// assert_eq!(*guard, 1);
/// ```
#[must_use = "a guard that is not looked at has been taken for nothing"]
pub struct Guard<'a, T> {
    /// Never empty.
    guard: SlotGuard<T>,
    cell: PhantomData<&'a T>,
}

impl<T> Guard<'_, T> {
    /// `None` if the slot was empty.
    #[inline]
    pub(crate) fn new(guard: SlotGuard<T>) -> Option<Self> {
        guard.is_some().then_some(Self { guard, cell: PhantomData })
    }

    pub(crate) fn of(value: Arc<T>) -> Self {
        Self { guard: guard_of(value), cell: PhantomData }
    }

    /// Converts the guard into an `Arc`, which can be kept for any time.
    ///
    /// This is an associated function, so that it hides no method of `T`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Guard};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let set = cell.set(7);
    /// assert!(Arc::ptr_eq(&Guard::into_arc(cell.load().unwrap()), &set));
    /// ```
    #[must_use]
    #[inline]
    pub fn into_arc(guard: Self) -> Arc<T> {
        match into_arc(guard.guard) {
            Some(value) => value,
            None => unreachable!("a guard is made of a value"),
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        match &*self.guard {
            Some(value) => value,
            None => unreachable!("a guard is made of a value"),
        }
    }
}

impl<T> fmt::Debug for Guard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}
