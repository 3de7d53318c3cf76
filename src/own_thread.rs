//! Threads of the crate's own, and which of them may wait for the end of which.
//!
//! On both kinds code of the user's runs, which may drop a cell or a [`Refresher`](crate::Refresher) and so wait for the
//! end of such a thread. A refresher's thread waits for none, a finalizer's for a refresher's only, so no two of them come to
//! wait for each other by what they drop.

use std::cell::Cell;

use crate::sync::thread_local;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not one of the crate's.
    Foreign,
    Finalizer,
    Refresher,
}

thread_local! {
    static KIND: Cell<Kind> = const { Cell::new(Kind::Foreign) };
}

/// Called by a thread of this kind when it begins.
pub(crate) fn begin(kind: Kind) {
    KIND.with(|this| this.set(kind));
}

/// Of the thread that asks.
pub(crate) fn kind() -> Kind {
    KIND.with(Cell::get)
}
