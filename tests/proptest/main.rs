//! Drives cells with random operations, and compares each answer with a plain model of the contract.
//!
//! One thread, perhaps a [refresher](refresher) that has nothing to do while that thread goes on, and a clock that moves
//! only when it is told to, so that the contract leaves exactly one answer to every question. The [model](model) is
//! written from the contract, not from the implementation, and shares no idea with it: it asks what has happened and how
//! old things are, where the cell looks at ticks that it has computed beforehand, mirrors and counters.
//!
//! # What is checked
//!
//! After each operation, those inside a build included:
//!
//! * the result: which value (by its number; and it must be in the same `Arc` as ever, as after `renew`), which
//!   error (likewise), a panic of the build, or the panic of a call that would wait for itself (and whose line it
//!   blames);
//! * whether the build ran at all;
//! * `get`, `load`, `freshness`, `generation`, `is_refreshing`, all of `snapshot` and all of `stats`;
//! * `Lease::previous` of every lease that is out;
//! * what a refresher does: whether it builds or sleeps, and not for too long; with which previous value; how many failures
//!   it tells, and which last error; that it goes when it is dropped, or when its cell is;
//! * that no clock is asked by reads of what has no end, or of what a refresher looks after and may be served for ever;
//! * exactly which values are alive. At the end nothing is, and everything was dropped once, but for what a
//!   leaked lease keeps.
//!
//! The cell's clock has a coarse reading that lags as far as it may. That must not show in any result.
//!
//! # What is left out
//!
//! * Whatever takes a second thread: calls that would block are not made, but the model has to foresee that they
//!   would. (A [watchdog](panics::Watchdog) ends the process if it is mistaken.) Threads: `tests/it`, loom.
//! * More than one refresher at a time; those of a `LazyDogpile` or of a `static`: `tests/it`.
//! * Jitter, where only bounds are known: [a property of its own](jitter).
//! * `Guard`s that are kept, owned leases that are leaked (they leak the cell), destructors that panic or call
//!   back, and calls while the thread unwinds: `tests/it`.
//! * `LazyDogpile`, which only forwards.
//!
//! # Running it
//!
//! `PROPTEST_CASES` scales it. `-- --nocapture` shows how often each situation has come up; each must, at least
//! once, in a run of the usual length. A failure is shrunk and its seed is written to `main.regressions` beside
//! this file, to be committed and run first from then on. A seed means something only to the strategies that it
//! was found with, so what it has shown also becomes a test by name in `tests/it/regressions.rs`.
//!
//! The fuzz target `cell` (`fuzz/`) has the same model and runner, and draws the operations from bytes.

mod jitter;
mod model;
mod operations;
#[path = "../shared/panics.rs"]
mod panics;
#[path = "../shared/property.rs"]
mod property;
mod refresher;
mod runner;
mod strategies;
mod tokens;

use std::cell::RefCell;

use crate::model::{WORTH_MEETING, WORTH_MEETING_OF_TASKS};
use crate::property::{holds, holds_and_meets};

/// Seconds, not minutes, also without optimisation.
const CASES: u32 = 1500;

#[test]
fn a_cell_does_what_the_model_does() {
    let worth_meeting = [WORTH_MEETING, WORTH_MEETING_OF_TASKS].concat();
    holds_and_meets(CASES, file!(), &worth_meeting, strategies::case(), runner::run);
}

#[test]
fn jitter_keeps_its_bounds() {
    let met = RefCell::new(jitter::Met::default());
    let is_long = holds(CASES, file!(), jitter::case(), |case| {
        jitter::ttls_are_within_bounds(case, &mut met.borrow_mut());
        jitter::pauses_are_within_bounds(case, &mut met.borrow_mut());
    });
    let met = met.into_inner();
    println!("{met:#?}");
    assert!(!is_long || (met.shorter_ttls > 0 && met.whole_ttls > 0 && met.longer_pauses > 0), "{met:?}");
}
