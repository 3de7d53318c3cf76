//! Drives cells with random operations, and compares each answer with a plain model of the contract.
//!
//! One thread, and a clock that moves only when it is told to, so that the contract leaves exactly one answer to
//! every question. The [model](model) is written from the contract, not from the implementation, and shares no
//! idea with it: it asks what has happened and how old things are, where the cell looks at ticks that it has
//! computed beforehand, mirrors and counters.
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
//! * exactly which values are alive. At the end nothing is, and everything was dropped once, but for what a
//!   leaked lease keeps.
//!
//! The cell's clock has a coarse reading that lags as far as it may. That must not show in any result.
//!
//! # What is left out
//!
//! * Whatever takes a second thread: calls that would block are not made, but the model has to foresee that they
//!   would. (A [watchdog](panics::Watchdog) ends the process if it is mistaken.) Threads: `tests/it`, loom.
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

mod jitter;
mod model;
mod operations;
mod panics;
mod runner;
mod tokens;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use crate::model::WORTH_MEETING;
use crate::panics::{Watchdog, reported};

/// Seconds, not minutes, also without optimisation.
const CASES: u32 = 2000;

/// Runs a property. Returns whether it was with as many cases as usual.
fn holds<Case>(cases: impl Strategy<Value = Case>, property: impl Fn(&Case)) -> bool
where
    Case: Debug + Send + Sync + 'static,
{
    let default = Config::default();
    let config = Config {
        cases: if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { CASES },
        max_shrink_iters: 100_000,
        // `main.regressions`. The default would be a folder beside this one.
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file!()),
        ..default
    };
    let is_long = config.cases >= CASES;
    let result = TestRunner::new(config).run(&cases, |case| {
        let case = Arc::new(case);
        let _watchdog = Watchdog::over(&case);
        reported(|| property(&case)).map_err(TestCaseError::fail)
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    is_long
}

#[test]
fn a_cell_does_what_the_model_does() {
    let met = RefCell::new(BTreeMap::<&str, u64>::new());
    let is_long = holds(operations::case(), |case| {
        for (what, count) in runner::run(case) {
            *met.borrow_mut().entry(what).or_insert(0) += count;
        }
    });
    let met = met.into_inner();
    println!("{met:#?}");
    for what in WORTH_MEETING {
        assert!(met.contains_key(what) || !is_long, "has not come up: {what}");
    }
}

#[test]
fn jitter_keeps_its_bounds() {
    let met = RefCell::new(jitter::Met::default());
    let is_long = holds(jitter::case(), |case| {
        jitter::ttls_are_within_bounds(case, &mut met.borrow_mut());
        jitter::pauses_are_within_bounds(case, &mut met.borrow_mut());
    });
    let met = met.into_inner();
    println!("{met:#?}");
    assert!(!is_long || (met.shorter_ttls > 0 && met.whole_ttls > 0 && met.longer_pauses > 0), "{met:?}");
}
