//! Fleets of nodes in one process, on a clock that stands still.

mod damage;
mod down;
mod failure;
mod fence;
mod regressions;
mod sharing;
mod support;
#[cfg(feature = "async")]
mod tasks;
