//! What the cell promises, one test or more for each promise of the contract (G1 to G10 in the names).
//!
//! Time is a `ManualClock`, order is made by channels and barriers. `support::eventually` looks again and again
//! until another thread has got somewhere; its limit is a guard against hangs, not a measurement.

mod background;
mod election;
mod failure;
mod fence;
mod lazy;
mod lease;
mod misuse;
mod pages;
mod reader;
mod reads;
mod reentrancy;
mod refresher;
mod refresher_faults;
mod regressions;
mod source;
mod statics;
mod support;
mod sync_reader;
mod time;
mod traits;
mod waiting;
