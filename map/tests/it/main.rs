//! What the map promises, by behaviour.

#![allow(clippy::unnecessary_wraps)] // loaders that could fail

mod aged;
mod batches;
mod destructors;
mod failure;
mod fence;
mod many;
mod reads;
mod request;
mod support;
#[cfg(feature = "async")]
mod tasks;
mod writes;
