//! What this crate asks of a cell, whatever its kind.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{
    Change, Clock, DogpileCell, Freshness, Hook, LazyDogpile, Policy, Refreshable, SyncReaderCell,
};
use parking_lot::Mutex;

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
    /// Follows what happens to values that [may be withheld](Cell::may_be_withheld): a look at the cell does not show it then.
    #[doc(hidden)]
    fn follow(&self) -> Option<Followed> {
        None
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

/// The latest publication, and what was done to its value since.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Latest {
    pub(crate) generation: u64,
    pub(crate) is_cleared: bool,
    pub(crate) is_declared_stale: bool,
}

impl Latest {
    fn note<T, S>(&mut self, change: &Change<T, S>) {
        match change {
            Change::Published(seen) => *self = Self { generation: seen.generation, ..Self::default() },
            Change::Invalidated => self.is_declared_stale = true,
            Change::Cleared => self.is_cleared = true,
            _ => {}
        }
    }
}

/// A cell whose changes are noted, in their order, until this is dropped.
///
/// A change is noted before the call that made it returns; if another thread is noting one, as soon as that has been noted.
#[doc(hidden)]
#[derive(Debug)]
pub struct Followed {
    latest: Arc<Mutex<Latest>>,
    _hook: Hook,
}

impl Followed {
    pub(crate) fn latest(&self) -> Latest {
        *self.latest.lock()
    }
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

    fn follow(&self) -> Option<Followed> {
        // Before the hook is attached: if a value is published in between, what is noted counts for the one before.
        let generation = self.generation();
        let latest = Arc::new(Mutex::new(Latest { generation, ..Latest::default() }));
        let noted = Arc::clone(&latest);
        let hook = self.on_change(move |change| noted.lock().note(change));
        Some(Followed { latest, _hook: hook })
    }
}
