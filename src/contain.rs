//! Panics that end where they happen.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs somebody's code whose panic is nobody else's affair: the panic hook has reported it, and there it ends.
///
/// For code that is owed to others (a finalizer, a waker), never for a build, whose panic belongs to its caller.
pub(crate) fn contain(code: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(code))
        // What it panicked with may panic in turn, when it is dropped.
        && let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(panic)))
    {
        std::mem::forget(panic);
    }
}
