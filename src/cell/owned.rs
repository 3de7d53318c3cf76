//! A handle that owns the value, and shares its count with one reader only.

use std::fmt;
use std::ops::Deref;

use crate::sync::Arc;

/// An owned handle to a value, whose reference count is shared by the clones of one [`Reader`](crate::Reader) only.
///
/// An [`Arc`] of the value has one count for the whole process, so threads that clone and drop it contend for one cache
/// line. A reader makes an `Owned` once for each publication that it sees, and hands out clones of that: threads with
/// readers of their own touch no common memory.
///
/// It may be sent to other threads and kept for as long as one likes. The value is dropped when the last handle of any kind is
/// gone: an `Owned`, an `Arc`, a [`Guard`](crate::Guard), or the cell. A handle that is dropped on another thread is still
/// counted with its reader's, and costs that reader the contention.
///
/// Made by [`Reader::get_owned`](crate::Reader::get_owned) and
/// [`Reader::get_owned_or_refresh`](crate::Reader::get_owned_or_refresh).
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Owned};
/// use std::thread;
/// use std::time::Duration;
///
/// static WORDS: DogpileCell<Vec<&str>> = DogpileCell::new(Duration::from_secs(60));
///
/// let mut reader = WORDS.reader();
/// let words: Owned<Vec<&str>> = reader.get_owned_or_refresh(|| vec!["a", "b"]);
/// let length = thread::spawn(move || words.len()).join().unwrap();
/// assert_eq!(length, 2);
/// ```
pub struct Owned<T> {
    shared: Arc<Shared<T>>,
}

/// Aligned, so that the counts of two readers are never in one cache line.
#[repr(align(64))]
struct Shared<T>(Arc<T>);

impl<T> Owned<T> {
    pub(super) fn new(value: Arc<T>) -> Self {
        Self { shared: Arc::new(Shared(value)) }
    }

    /// The value as an `Arc`. To clone it touches the count that all readers share.
    ///
    /// An associated function, so that it hides no method of `T`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Owned};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let value: Arc<u32> = cell.set(7);
    /// let owned = cell.reader().get_owned().expect("it was set");
    /// assert!(Arc::ptr_eq(Owned::as_arc(&owned), &value));
    /// ```
    #[must_use]
    pub fn as_arc(owned: &Self) -> &Arc<T> {
        &owned.shared.0
    }
}

impl<T> Clone for Owned<T> {
    #[inline]
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.shared.0
    }
}

impl<T> fmt::Debug for Owned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").finish_non_exhaustive()
    }
}
