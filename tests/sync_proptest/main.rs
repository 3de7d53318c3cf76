//! Drives a [`SyncReaderCell`](dogpile::SyncReaderCell) with random operations, and compares what becomes of every
//! value with a plain model of the contract.
//!
//! There is one thread, a clock that moves only when the test moves it, and the cell's own thread, which is given the time that
//! it needs. Where the one thread waits, for readers or for a time, the clock lets happen what another thread would do:
//! a reader leaves, or the time is up. So the contract leaves exactly one answer to every question. The [model](model)
//! is written from the contract, not from the implementation: it keeps a list of readers, and a line of replaced values.
//!
//! # What is checked
//!
//! After each operation, those inside a build included:
//!
//! * which values have been finalised, and in which order (G11); that never two were at a time; on which thread: under
//!   `Drain::Background` always the cell's own; under `Drain::Wait` the caller's, as long as nothing has been left to the
//!   background; never one from which a reader leaves;
//! * which values are alive, and that each reader finds its value alive, and as the latest write section left it;
//! * the result: which value, which error, a panic of the build, or the panic of a call that would wait for itself
//!   (and which line that blames); under conditions in random combinations, those of builds that may ask for the write lock
//!   included;
//! * whether the build ran at all, whether it got the write lock (G12), and over which old value, or else how many
//!   readers `DrainTimeout` names;
//! * that no call waits without need, or for longer than it has to: when a value is replaced
//!   ([`Drain::Wait`](dogpile::Drain)), for the write lock, to synchronize;
//! * `get`, `load`, `snapshot`, `freshness`, `generation`, `is_refreshing`, `readers`, `retired`, `last_error` and all of `stats`.
//!
//! Then the cell is dropped, with readers alive, which go on for a while. At the end nothing is alive, and no thread of
//! the cells is left. The finalizer panics over every eighth value.
//!
//! # What is left out
//!
//! * Whatever takes a second thread, or waits without end: `tests/it/sync_reader`, `tests/stress.rs`.
//! * What is async: `tests/async/sync_reader.rs`.
//! * Spawned builds and refreshers, which have threads of their own.
//! * What the inner cell promises, as far as values and readers do not come into it: `tests/proptest`.
//! * `ReadGuard`s are not counted before their value is replaced, except where they were made of a `ReaderArc`;
//!   `load_or_refresh` does either. So here `readers` has bounds.
//!
//! # Running it
//!
//! `PROPTEST_CASES` scales it. `-- --nocapture` shows how often each situation has come up; each must, at least once,
//! in a run of the usual length. A failure is shrunk and its seed is written to `main.regressions` beside this file,
//! to be committed and run first from then on. A seed means something only to the strategies that it was found with,
//! so what it has shown also becomes a test by name in `tests/it/sync_reader/regressions.rs`.
//!
//! The fuzz target `sync_reader` (`fuzz/`) has the same model and runner, and draws the operations from bytes.

mod model;
mod operations;
#[path = "../shared/panics.rs"]
mod panics;
#[path = "../shared/property.rs"]
mod property;
mod runner;
mod strategies;
mod tokens;

use crate::model::WORTH_MEETING;
use crate::panics::eventually;
use crate::property::holds_and_meets;

/// Seconds, not minutes, also without optimisation.
const CASES: u32 = 1500;

#[test]
fn values_go_when_the_model_says() {
    holds_and_meets(CASES, file!(), &WORTH_MEETING, strategies::case(), runner::run);
    assert!(
        eventually(|| runner::finalizer_threads() == 0),
        "{} of the cells' threads are left",
        runner::finalizer_threads()
    );
}
