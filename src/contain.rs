//! Panics that end where they happen.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a user callback and ends its panic, which the panic hook has reported.
///
/// For callbacks that the current caller has not passed in (a finalizer, a waker), never for a build: its panic reaches the
/// caller that runs it.
pub(crate) fn contain(code: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(code))
        // The drop of the payload may panic in turn.
        && let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(panic)))
    {
        std::mem::forget(panic);
    }
}
