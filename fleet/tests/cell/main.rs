//! Fleets of nodes in one process, on a clock that stands still.

mod builds;
mod damage;
mod down;
mod failure;
mod fence;
mod refresher;
#[cfg(feature = "async")]
mod refresher_tasks;
mod regressions;
mod sharing;
mod spawned;
mod support;
#[cfg(feature = "async")]
mod tasks;
