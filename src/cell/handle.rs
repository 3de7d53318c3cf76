//! References to a cell, and the trait of all kinds of cells.

use crate::sync::{Arc, Weak};
use crate::time::Clock;

use super::machine::Machine;

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

pub(crate) mod sealed {
    #[allow(clippy::wildcard_imports)]
    use super::*;

    /// The kinds of cells.
    #[diagnostic::on_unimplemented(
        message = "`{Self}` is not a cell",
        label = "neither a `DogpileCell`, nor a `LazyDogpile`, nor a `SyncReaderCell`",
        note = "of a cell in a `static` pass `&CELL`, in a `Lazy` or `LazyLock` `&*CELL`, in an `Arc` `&cell`"
    )]
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
}

use sealed::Kind;
