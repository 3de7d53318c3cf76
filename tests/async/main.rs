//! The feature `async`: one cell and one lease for tasks and threads, on any executor.
//!
//! Most tests poll their futures by hand, each with a waker that counts ([`support::Hand`]), so that the order is
//! the test's. Real executors where they are the point: [`executors`], [`herd`], [`spawn`], [`shutdown`], [`load`]. Time is
//! a `ManualClock`; real time is a guard against hangs.

mod bounds;
mod cancellation;
mod derived;
mod executors;
mod fence;
mod herd;
mod impatient;
mod lazy;
mod lease_timeout;
mod load;
mod pending;
mod reads;
mod reentrancy;
mod refresher;
mod request;
mod sharing;
mod shutdown;
mod spawn;
mod subscription;
mod support;
mod sync_reader;
mod wakers;
