//! Many keys: maps of several nodes that share a store, on a clock that stands still.

mod ages;
mod early;
mod loads;
mod owed;
mod support;
#[cfg(feature = "async")]
mod tasks;
