//! Drives a cell with random operations and compares it, after each of them, with a plain model of the contract.
mod model;
mod operations;
mod panics;
mod runner;
mod tokens;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use crate::model::WORTH_MEETING;
use crate::panics::{Watchdog, reported};

const CASES: u32 = 1000;

fn config() -> Config {
    let default = Config::default();
    Config {
        cases: if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { CASES },
        max_shrink_iters: 100_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file!()),
        ..default
    }
}

#[test]
fn a_cell_does_what_the_model_does() {
    let config = config();
    let is_a_full_run = config.cases >= CASES;
    let met = RefCell::new(BTreeMap::<&str, u64>::new());
    let mut runner = TestRunner::new(config);
    let result = runner.run(&operations::case(), |case| {
        let case = Arc::new(case);
        let _watchdog = Watchdog::over(&case);
        reported(|| {
            for (what, count) in runner::run(&case) {
                *met.borrow_mut().entry(what).or_insert(0) += count;
            }
        })
        .map_err(TestCaseError::fail)
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    println!("{met:#?}");
    if is_a_full_run {
        for what in WORTH_MEETING {
            assert!(met.borrow().contains_key(what), "{what}: has not come up");
        }
    }
}
