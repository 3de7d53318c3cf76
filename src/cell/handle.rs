//! What a lease, a place among the waiters, a request or a refresher knows of its cell.

use crate::clock::Clock;
use crate::error::SharedError;
use crate::sync::{Arc, Weak};

use super::lease::Held;
use super::machine::Machine;
use super::publish::Ttl;
use super::state::Awaits;

#[cfg(feature = "async")]
use std::pin::Pin;

/// A reference to a cell: borrowed, or one that keeps the cell alive.
///
/// A [`Refresher`](crate::Refresher) takes whatever converts into a `Handle<'static, _>`: a cell in a `static` (`&CELL`), or
/// one in an [`Arc`] (`&cell`, or `cell`).
#[derive(Debug)]
pub enum Handle<'a, K> {
    /// A borrow of the cell.
    Borrowed(&'a K),
    /// A share of the cell.
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

impl<K> Clone for WeakHandle<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Static(cell) => Self::Static(cell),
            Self::Weak(cell) => Self::Weak(cell.clone()),
        }
    }
}

/// The cells that a thread or a task of its own can use: a [`DogpileCell`](crate::DogpileCell), a
/// [`LazyDogpile`](crate::LazyDogpile) or a [`SyncReaderCell`](crate::SyncReaderCell), of a value that is
/// `Send + Sync + 'static`.
///
/// It is sealed: no other type can implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a cell that a thread or a task of its own can use",
    label = "neither a `DogpileCell`, nor a `LazyDogpile`, nor a `SyncReaderCell`, of a value that is `Send + Sync + 'static`",
    note = "of a cell in a `static` pass `&CELL`, in a `Lazy` or `LazyLock` `&*CELL`, in an `Arc` `&cell`"
)]
pub trait Refreshable:
    Kind<Stored: Send + Sync, Shared: Send, Value: Send, Clock: 'static> + Send + Sync + 'static
{
}

impl<K> Refreshable for K where
    K: Kind<Stored: Send + Sync, Shared: Send, Value: Send, Clock: 'static> + Send + Sync + 'static
{
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

        fn machine(&self) -> &Machine<Self::Stored, Self::Clock>;

        fn share(stored: Arc<Self::Stored>) -> Self::Shared;

        /// Asked before this thread blocks until a build has ended: whether that build waits for this thread.
        fn is_awaited(&self, awaits: Awaits) -> bool {
            let _ = awaits;
            false
        }

        /// The previous value, for a build that is given it.
        fn previous(held: &mut Held<'_, Self>) -> Option<Arc<Self::Stored>> {
            held.previous().cloned()
        }

        /// A build begins that is not given the previous value.
        fn forget_previous(held: &mut Held<'_, Self>) {
            let _ = held;
        }

        /// Keeps the previous value alive beyond the build, where that is not a reader: a refresher is to drop it.
        fn keep_previous(held: &Held<'_, Self>) -> Option<Arc<Self::Stored>> {
            held.previous().cloned()
        }

        /// Publishes what a build has made.
        fn publish(held: Held<'_, Self>, made: Made<Self>) -> Arc<Self::Stored>;

        /// As [`publish`](Kind::publish), for a task.
        #[cfg(feature = "async")]
        fn publish_async(held: Held<'_, Self>, made: Made<Self>) -> Publishing<'_, Self::Stored> {
            Publishing::Done(Self::publish(held, made))
        }
    }
}

use sealed::Kind;

/// What a build has made, to be published.
#[allow(unreachable_pub)] // named by a sealed trait
pub enum Made<K: Kind> {
    New(K::Value, Ttl),
    /// The value that the cell holds already.
    NotModified(Arc<K::Stored>),
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
impl<T> Publishing<'_, T> {
    pub(crate) async fn done(self) -> Arc<T> {
        match self {
            Self::Done(value) => value,
            Self::Draining(future) => future.await,
        }
    }
}

/// How a cell publishes whose slot holds the value itself.
pub(crate) fn publish_in_arc<K: Kind<Stored = <K as Kind>::Value>>(
    held: Held<'_, K>,
    made: Made<K>,
) -> Arc<K::Value> {
    match made {
        Made::New(value, ttl) => held.publish_arc(Arc::new(value), ttl),
        Made::NotModified(value) => held.publish_again(value, Ttl::Policy),
    }
}

/// The error of a build that returned `NotModified`, with nothing to be modified.
pub(crate) fn nothing_to_keep() -> SharedError {
    SharedError::new("the build returned NotModified, but there is no previous value")
}
