//! Where cells do not do what the words of the contract say.
//!
//! `true`: the test keeps out of the way of the difference. `false`: as the contract says. Once a difference is
//! mended, its line goes, and with it what the test does for its sake.

/// A build that began before a `set` "does not displace" the value that was set (G4), and if it "fails (error,
/// panic, timeout), the old value is put back and served again" (G12). But if it asks for the write lock after the
/// `set`, that value is gone in any case: finalised if the build succeeds or fails, and if the lock is not granted
/// in time it is neither in the cell nor counted by `retired`. Here such a build does not ask.
pub(crate) const A_VALUE_SET_BEFORE_THE_LOCK_IS_LOST: bool = true;
