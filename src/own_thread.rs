//! The crate's own threads, and which of them may join which.
//!
//! There are two kinds: finalizer threads and refresher threads. Both run user code, which may drop a cell or a
//! [`Refresher`](crate::Refresher), and such a drop joins a thread. A refresher thread joins no other thread; a finalizer
//! thread joins refresher threads only. So drops on these threads cannot deadlock.

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
