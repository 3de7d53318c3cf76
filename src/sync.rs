//! The primitives. This module and its parts are the only files that name where they come from.
//!
//! Everything else in the crate imports them from here, so that a model checker can replace them in one place.
//! `tests/it/source.rs` checks that. There are three sets:
//!
//! | `--cfg` | primitives | file | what it is for |
//! |---|---|---|---|
//! | none | std, `parking_lot`, `once_cell`, arc-swap | `real.rs` | users get these |
//! | `dogpile_loom` | loom | `loom.rs`, `checked.rs` | every interleaving, and every value that a load may return by its ordering |
//! | `dogpile_shuttle` | shuttle | `shuttle.rs`, `checked.rs` | random interleavings |
//!
//! `checked.rs` has what neither checker offers, written with what both offer. `dogpile_oracle` is the first set with the
//! other strategy of arc-swap, a lock, in place of its lock-free one: a test that fails only without it has found a fault of
//! arc-swap, not of this crate.
//!
//! The models are in `models/`. `docs/testing.md` says what they leave out, since some primitives have stand-ins and some
//! are not replaced.

#[cfg(any(dogpile_loom, dogpile_shuttle))]
mod checked;
#[cfg(dogpile_loom)]
mod loom;
#[cfg(not(any(dogpile_loom, dogpile_shuttle)))]
mod real;
#[cfg(dogpile_shuttle)]
mod shuttle;

#[cfg(any(dogpile_loom, dogpile_shuttle))]
pub(crate) use checked::*;
#[cfg(dogpile_loom)]
pub(crate) use loom::*;
#[cfg(not(any(dogpile_loom, dogpile_shuttle)))]
pub(crate) use real::*;
#[cfg(dogpile_shuttle)]
pub(crate) use shuttle::*;

// Never replaced: there are methods that take `self: &Arc<Self>`.
pub(crate) use std::sync::{Arc, Weak};

pub(crate) use std::sync::atomic::Ordering;

// Never replaced: for statistics and hints, and for what belongs to the process, not to a cell.
pub(crate) use once_cell::sync::OnceCell as PlainOnceCell;
#[cfg(not(target_has_atomic = "64"))]
pub(crate) use portable_atomic::AtomicU64 as PlainU64;
pub(crate) use std::sync::atomic::AtomicBool as PlainBool;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use std::sync::atomic::AtomicU8 as PlainU8;
#[cfg(target_has_atomic = "64")]
pub(crate) use std::sync::atomic::AtomicU64 as PlainU64;

/// A `const fn`, or a plain one under a model checker, whose primitives cannot be made at compile time.
macro_rules! const_fn {
    ($(#[$attribute:meta])* $visibility:vis const fn $($rest:tt)*) => {
        #[cfg(not(any(dogpile_loom, dogpile_shuttle)))]
        $(#[$attribute])* $visibility const fn $($rest)*
        #[cfg(any(dogpile_loom, dogpile_shuttle))]
        $(#[$attribute])* $visibility fn $($rest)*
    };
}
pub(crate) use const_fn;
