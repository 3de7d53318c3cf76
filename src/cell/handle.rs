//! References to a cell, and the trait of all kinds of cells.

use crate::sync::{Arc, Weak};
use crate::time::Clock;

use super::lease::Held;
use super::machine::Machine;
use super::publish::Term;

#[cfg(feature = "async")]
use std::pin::Pin;

/// A reference to a cell: a borrow, or an [`Arc`] that keeps the cell alive.
///
/// [`Refresher::spawn`](crate::Refresher::spawn) takes everything that converts into a `Handle<'static, _>`: `&CELL` of
/// a cell in a `static`, `cell` or `&cell` of a cell in an [`Arc`].
#[derive(Debug)]
pub enum Handle<'a, K> {
    /// A borrowed cell.
    Borrowed(&'a K),
    /// A shared cell.
    Shared(Arc<K>),
}

impl<K> Clone for Handle<'_, K> {
    #[inline]
    fn clone(&self) -> Self {
        match self {
            Self::Borrowed(cell) => Self::Borrowed(cell),
            Self::Shared(cell) => Self::Shared(Arc::clone(cell)),
        }
    }
}

impl<K> std::ops::Deref for Handle<'_, K> {
    type Target = K;

    #[inline]
    fn deref(&self) -> &K {
        match self {
            Self::Borrowed(cell) => cell,
            Self::Shared(cell) => cell,
        }
    }
}

impl<K: Kind> From<&'static K> for Handle<'static, K> {
    fn from(cell: &'static K) -> Self {
        Self::Borrowed(cell)
    }
}

impl<K: Kind> From<Arc<K>> for Handle<'static, K> {
    fn from(cell: Arc<K>) -> Self {
        Self::Shared(cell)
    }
}

impl<K: Kind> From<&Arc<K>> for Handle<'static, K> {
    fn from(cell: &Arc<K>) -> Self {
        Self::Shared(Arc::clone(cell))
    }
}

impl<K> Handle<'static, K> {
    pub(crate) fn downgrade(&self) -> WeakHandle<K> {
        match self {
            Self::Borrowed(cell) => WeakHandle::Static(cell),
            Self::Shared(cell) => WeakHandle::Weak(Arc::downgrade(cell)),
        }
    }
}

/// As [`Handle`], but does not keep the cell alive.
pub(crate) enum WeakHandle<K: 'static> {
    Static(&'static K),
    Weak(Weak<K>),
}

impl<K> WeakHandle<K> {
    /// `None`: the cell is gone.
    pub(crate) fn upgrade(&self) -> Option<Handle<'static, K>> {
        match self {
            Self::Static(cell) => Some(Handle::Borrowed(cell)),
            Self::Weak(cell) => cell.upgrade().map(Handle::Shared),
        }
    }
}

/// The kinds of cells.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a cell",
    label = "neither a `DogpileCell`, nor a `LazyDogpile`, nor a `SyncReaderCell`",
    note = "of a cell in a `static` pass `&CELL`, in a `Lazy` or `LazyLock` `&*CELL`, in an `Arc` `&cell`"
)]
#[allow(unreachable_pub)] // sealed: no program can name it
pub trait Kind: Sized {
    /// What a build makes.
    type Value;
    /// What the slot holds.
    type Stored;
    /// What a caller gets.
    type Shared;
    /// The cell's clock.
    type Clock: Clock;

    /// Whether a lease keeps the previous value alive.
    const LEASE_KEEPS_PREVIOUS: bool = true;

    fn machine(&self) -> &Machine<Self::Stored, Self::Clock>;

    fn share(stored: Arc<Self::Stored>) -> Self::Shared;

    /// Ends a build with what it has made.
    fn publish(held: Held<'_, Self>, value: Self::Value, term: Term) -> Arc<Self::Stored>;

    /// As [`publish`](Kind::publish), for a task.
    #[cfg(feature = "async")]
    fn publish_async(held: Held<'_, Self>, value: Self::Value, term: Term) -> Publishing<'_, Self::Stored> {
        Publishing::Done(Self::publish(held, value, term))
    }

    /// Whether a build could make anything else than the value that is there, stale as it may be.
    fn has_news(&self) -> bool {
        true
    }

    /// Whether a build that waits until no reader is inside waits for this thread.
    fn has_guard_of_this_thread(&self) -> bool {
        false
    }

    /// A build that waits for the readers of a value which it has replaced waits no longer, if this thread is one of them.
    fn give_way(&self) {}

    /// A build has failed or panicked, and its retry pause has begun. Called without a lock, perhaps while the thread unwinds:
    /// it must not panic.
    fn has_failed(&self) {}
}

/// A value that has been published, once it is awaited.
#[cfg(feature = "async")]
#[allow(unreachable_pub)] // named by a sealed trait
pub enum Publishing<'a, T> {
    Done(Arc<T>),
    /// The task waits for the readers of the replaced value.
    Draining(Pin<Box<dyn Future<Output = Arc<T>> + Send + 'a>>),
}

#[cfg(feature = "async")]
impl<T> From<Arc<T>> for Publishing<'_, T> {
    fn from(value: Arc<T>) -> Self {
        Self::Done(value)
    }
}

#[cfg(feature = "async")]
impl<T> Publishing<'_, T> {
    pub(crate) async fn done(self) -> Arc<T> {
        match self {
            Self::Done(value) => value,
            Self::Draining(future) => future.await,
        }
    }
}
