//! Drives a [`SyncReaderCell`](dogpile::SyncReaderCell) with random operations, and compares what becomes of every
//! value with a plain model of the contract.
//!
//! One thread, a clock that moves only when it is told to, and the cell's own thread, which is given the time that
//! it needs. So the contract leaves exactly one answer to every question. The [model](model) is written from the
//! contract, not from the implementation: it keeps a list of who reads which value, and a line of those that were
//! replaced.
//!
//! # What is checked
//!
//! After each operation, those inside a build included:
//!
//! * which values have been finalised, and in which order (G11); that never two were at a time; on which thread: the
//!   caller's, as long as nothing has been left to the background, and never one from which a reader leaves;
//! * which values are alive, and that whoever reads one finds it alive, and as the latest write section left it;
//! * the result: which value, which error, a panic of the build, or the panic of a call that would wait for itself
//!   (and whose line it blames);
//! * whether the build ran at all, whether it got the write lock (G12), and over which old value, or else how many
//!   readers `DrainTimeout` names;
//! * `get`, `load`, `freshness`, `generation`, `is_refreshing`, `readers`, `retired`, and what `stats` counts of builds.
//!
//! Then the cell is dropped, with readers alive, who go on for a while. At the end nothing is alive, and no thread of
//! the cells is left. The finalizer panics over every eighth value.
//!
//! # What is left out
//!
//! * Whatever takes a second thread, or blocks: `tests/it/sync_reader`, `tests/stress.rs`.
//! * What the inner cell promises, as far as values and readers do not come into it: `tests/proptest`.
//! * `ReadGuard`s are not counted before their value is replaced, except where they came by way of a `ReaderArc`;
//!   which way `load_or_refresh` takes is its own affair. So here `readers` has bounds.
//!
//! # Running it
//!
//! `PROPTEST_CASES` scales it. `-- --nocapture` shows how often each situation has come up; each must, at least once,
//! in a run of the usual length. A failure is shrunk and its seed is written to `main.regressions` beside this file,
//! to be committed and run first from then on. A seed means something only to the strategies that it was found with,
//! so what it has shown also becomes a test by name in `tests/it/sync_reader/regressions.rs`.

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
use crate::panics::{Watchdog, eventually, reported};

/// Seconds, not minutes, also without optimisation.
const CASES: u32 = 1500;

#[test]
fn values_go_when_the_model_says() {
    let default = Config::default();
    let config = Config {
        cases: if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { CASES },
        max_shrink_iters: 100_000,
        // In milliseconds. A value that is not finalised at all is waited for each time.
        max_shrink_time: 60_000,
        // `main.regressions`. The default would be a folder beside this one.
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file!()),
        ..default
    };
    let is_long = config.cases >= CASES;
    let met = RefCell::new(BTreeMap::<&str, u64>::new());
    let result = TestRunner::new(config).run(&operations::case(), |case| {
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
    let met = met.into_inner();
    println!("{met:#?}");
    for what in WORTH_MEETING {
        assert!(met.contains_key(what) || !is_long, "has not come up: {what}");
    }
    assert!(
        eventually(|| finalizer_threads() == 0),
        "{} of the cells' threads are left",
        finalizer_threads()
    );
}

/// How many threads of cells run in this process, where that can be found out.
fn finalizer_threads() -> usize {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    // The kernel keeps fifteen bytes of a name.
    names.filter(|name| name.trim_end() == "dogpile-finaliz").count()
}
