//! Runs a property over many cases.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use crate::panics::{Watchdog, reported};

/// Runs a property over so many cases, or as many as `PROPTEST_CASES` says. Returns whether there were as many as usual.
///
/// What fails is shrunk, and its seed is written to `main.regressions` beside the `file` of the caller, a `main.rs`.
pub(crate) fn holds<Case>(
    usual: u32,
    file: &'static str,
    cases: impl Strategy<Value = Case>,
    property: impl Fn(&Case),
) -> bool
where
    Case: Debug + Send + Sync + 'static,
{
    // The defaults are what the environment says, where it does.
    let default = Config::default();
    let unless_said = |variable, said, ours| if std::env::var_os(variable).is_some() { said } else { ours };
    let config = Config {
        cases: unless_said("PROPTEST_CASES", default.cases, usual),
        max_shrink_iters: unless_said("PROPTEST_MAX_SHRINK_ITERS", default.max_shrink_iters, 100_000),
        // In milliseconds. What does not happen at all is waited for each time.
        max_shrink_time: unless_said("PROPTEST_MAX_SHRINK_TIME", default.max_shrink_time, 60_000),
        // The default would be a folder beside the one of the tests.
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file),
        ..default
    };
    let is_long = config.cases >= usual;
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

/// As [`holds`]. The property returns what has come up, and how often; all of `worth_meeting` must, in a run of the usual
/// length.
pub(crate) fn holds_and_meets<Case>(
    usual: u32,
    file: &'static str,
    worth_meeting: &[&str],
    cases: impl Strategy<Value = Case>,
    property: impl Fn(&Case) -> BTreeMap<&'static str, u64>,
) where
    Case: Debug + Send + Sync + 'static,
{
    let met = RefCell::new(BTreeMap::<&str, u64>::new());
    let is_long = holds(usual, file, cases, |case| {
        for (what, count) in property(case) {
            *met.borrow_mut().entry(what).or_insert(0) += count;
        }
    });
    let met = met.into_inner();
    println!("{met:#?}");
    for what in worth_meeting {
        assert!(met.contains_key(what) || !is_long, "has not come up: {what}");
    }
}
