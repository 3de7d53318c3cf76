//! What this crate asks of a cell, whatever its kind.

use std::time::Duration;

use dogpile::{Clock, DogpileCell, Freshness, LazyDogpile, Policy, Refreshable, SyncReaderCell};

/// The cells of [`dogpile`]: a [`DogpileCell`], a [`LazyDogpile`] or a [`SyncReaderCell`], of a value that is
/// `Send + Sync + 'static`.
///
/// Pass a cell in a `static` as `&CELL`, one in a `Lazy` or `LazyLock` as `&*CELL`, one in an `Arc` as `&cell`. The trait is
/// sealed: no other type can implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a cell that a thread of its own can use",
    label = "neither a `DogpileCell`, nor a `LazyDogpile`, nor a `SyncReaderCell`, of a value that is `Send + Sync + 'static`",
    note = "of a cell in a `static` pass `&CELL`, in a `Lazy` or `LazyLock` `&*CELL`, in an `Arc` `&cell`"
)]
pub trait Cell: Refreshable<Clock: Clone> {
    #[doc(hidden)]
    fn settings(&self) -> Policy;
    #[doc(hidden)]
    fn published(&self) -> u64;
    #[doc(hidden)]
    fn look(&self) -> Option<Seen<Self::Shared>>;
    /// Whether a cell that seems to be empty may hold a value that a writer has taken out, and that comes back if its build
    /// fails.
    #[doc(hidden)]
    fn may_be_withheld(&self) -> bool {
        false
    }
    #[doc(hidden)]
    fn value(shared: &Self::Shared) -> &Self::Value;
    /// Restores a value, unless the cell holds one, or may; declares it stale if `stale`. Returns the generation of that
    /// publication.
    #[doc(hidden)]
    fn put_back(&self, value: Self::Value, age: Duration, stale: bool) -> Option<u64>;
}

/// A value and what belongs to it.
#[doc(hidden)]
#[derive(Debug)]
pub struct Seen<S> {
    pub(crate) value: S,
    pub(crate) generation: u64,
    pub(crate) age: Duration,
    pub(crate) freshness: Freshness,
    pub(crate) fresh_for: Duration,
}

/// The same for all kinds; `$cell` is where the methods are.
macro_rules! cell {
    ($self:ident: $cell:expr) => {
        fn settings(&$self) -> Policy {
            $cell.policy()
        }

        fn published(&$self) -> u64 {
            $cell.generation()
        }

        fn look(&$self) -> Option<Seen<Self::Shared>> {
            // No read: a refresher that rests is to go on resting.
            $cell.peek().map(|seen| Seen {
                value: seen.value,
                generation: seen.generation,
                age: seen.age,
                freshness: seen.freshness,
                fresh_for: seen.fresh_for,
            })
        }

        fn value(shared: &Self::Shared) -> &Self::Value {
            shared
        }

        fn put_back(&$self, value: Self::Value, age: Duration, stale: bool) -> Option<u64> {
            let before = $cell.generation();
            // `restore` replaces whatever is there. While a value is withheld it waits for the end of the build, and
            // replaces its result. A publication between this look and `restore` is replaced: see `Persist::attach`.
            if $cell.peek().is_some() || $self.may_be_withheld() {
                return None;
            }
            let restored = $cell.restore(value, age);
            if stale {
                // Only this value: one that was published meanwhile is newer.
                $cell.invalidate_if_current(&restored);
            }
            let seen = $cell.peek();
            Some(match seen {
                Some(seen) if std::ptr::eq::<Self::Value>(&*seen.value, &*restored) => seen.generation,
                // Another one has been published since, and is to be written.
                _ => before,
            })
        }
    };
}

impl<T: Send + Sync + 'static, C: Clock + Clone + 'static> Cell for DogpileCell<T, C> {
    cell!(self: self);
}

impl<T: Send + Sync + 'static, F: Send + Sync + 'static, C: Clock + Clone + 'static> Cell
    for LazyDogpile<T, F, C>
{
    cell!(self: self.cell());
}

impl<T: Send + Sync + 'static, C: Clock + Clone + 'static> Cell for SyncReaderCell<T, C> {
    cell!(self: self);

    fn may_be_withheld(&self) -> bool {
        self.is_refreshing()
    }
}
