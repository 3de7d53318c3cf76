//! What the cell promises, one test or more for each promise of the contract (G1 to G10 in the names).
//!
//! Time is a `ManualClock`, order is made by channels and barriers. `support::eventually` looks again and again
//! until another thread has got somewhere; its limit is a guard against hangs, not a measurement.

mod aged;
mod derived;
mod derived_faults;
mod derived_settled;
mod election;
mod errors;
mod failure;
mod fence;
mod front_door;
mod hook;
mod lazy;
mod lease;
mod local;
mod misuse;
mod pages;
mod reader;
mod reads;
mod reentrancy;
mod refresher;
mod refresher_faults;
mod regressions;
mod request;
mod source;
mod spawn;
mod statics;
mod subscription;
mod support;
mod sync_reader;
mod time;
mod traits;
mod waiting;
mod writes;
