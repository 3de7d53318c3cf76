//! Drives cells of both kinds with random operations, and compares each answer with a plain model of the contract.
//!
//! One thread, perhaps a [refresher](refresher) that has nothing to do while that thread goes on, the own thread of a
//! `SyncReaderCell`, which is given the time that it needs, and a clock that moves only when it is advanced: so the contract
//! leaves exactly one answer to every question. The [model](model) is written from the contract, not from the implementation,
//! and shares no idea with it: it asks what has happened and how old things are, where the cell looks at ticks that it has
//! computed beforehand, mirrors and counters. There is one model, as a `SyncReaderCell` does what a `DogpileCell` does. What it
//! does beyond that is in files of its own: `model/drain.rs` (a list of readers, and a line of replaced values) and
//! `runner/drain.rs`.
//!
//! What other threads would do happens in three places: inside a build; inside the function that a build is handed to
//! (`spawn_with`); and while the one thread waits, since it waits on the clock of the test. While it waits for a build, that
//! performs the next operations of the case before it returns. While it waits for readers, one of them leaves, or the time is
//! up.
//!
//! # What is checked
//!
//! After each operation, also inside of builds, spawners and waits for a build:
//!
//! * the result: which value (by its number; and it must be where it was before, as after `renew`), which
//!   error (likewise), a panic of the build, or the panic of a call that would wait for itself, or whose build was abandoned
//!   (and which line it blames);
//! * whether the build ran at all, and which previous value it was given;
//! * each combination of a request's conditions, with each of its finishing calls, with a spawner and without;
//! * `get`, `load`, `freshness`, `generation`, `is_refreshing`, `last_error`, all of `snapshot`, `peek` and `stats`;
//! * what a subscription returns without a wait, and whether it says that there is something;
//! * that no clock is asked by reads of what has no end, or of what a refresher rebuilds and may be served for ever;
//! * exactly which values are alive. At the end none is, and each was dropped once, but for what a
//!   leaked lease keeps.
//!
//! Of a `DogpileCell` also:
//!
//! * `previous`, `generation` and `is_fenced` of every lease that is out, and all of what `publish_snapshot` returns;
//! * when a wait ends;
//! * what a refresher does: whether it builds, sleeps or rests, and does not sleep for too long; with which previous value; how
//!   many failures it shows, and which last error; that it ends when it is dropped, or when its cell is.
//!
//! Of a `SyncReaderCell` also:
//!
//! * which values have been finalised, and in which order (G11); that never two were at a time; on which thread: under
//!   `Drain::Background` always the cell's own; under `Drain::Wait` the caller's, as long as nothing has been left to the
//!   background; never one from which a reader leaves. The finalizer panics over every eighth token;
//! * that each reader finds its value alive, and as the latest write section left it;
//! * whether a build got the write lock (G12), and over which old value, or else how many readers `DrainTimeout` names;
//! * that no call waits for readers without need, or for longer than it has to: when a value is replaced
//!   ([`Drain::Wait`](dogpile::Drain)), for the write lock, to synchronize;
//! * `readers` and `retired`.
//!
//! Then this cell is dropped, with readers alive, which go on for a while. No thread of the cells is left at the end.
//!
//! The cells' clock has a coarse reading that lags as far as it may. That must not show in any result.
//!
//! # What is left out
//!
//! * Threads: `tests/it`, `tests/stress`, `models`. So that no call waits for ever here, the model finds out beforehand what it
//!   will do; a call that nothing would end is not made. (A [watchdog](panics::Watchdog) ends the process if the model is
//!   mistaken.)
//! * More than one refresher at a time; those of a `LazyDogpile` or of a `static`; one on a thread that rests: `tests/it`.
//! * Spawned builds and refreshers of a `SyncReaderCell`, and its waits without end: `tests/it/sync_reader`.
//! * Jitter, where only bounds are known: [a property of its own](jitter).
//! * `Guard`s that are kept, owned leases that are leaked (they leak the cell), destructors that panic or call
//!   back, and calls while the thread unwinds: `tests/it`.
//! * `LazyDogpile`, which only forwards; futures: `tests/async`.
//! * `ReadGuard`s are not counted before their value is replaced, except where they were made of a `ReaderArc`;
//!   `load_or_refresh` does either. So here `readers` has bounds.
//!
//! # Running it
//!
//! `PROPTEST_CASES` scales it. `-- --nocapture` shows how often each situation has come up; each must, at least
//! once, in a run of the usual length. A failure is shrunk and its seed is written to `main.regressions` beside
//! this file, to be committed and run first from then on. A seed means something only to the strategies that it
//! was found with, so what it has shown also becomes a test by name in `tests/it/regressions.rs` or
//! `tests/it/sync_reader/regressions.rs`.
//!
//! The fuzz targets `cell` and `sync_reader` (`fuzz/`) have the same model and runner, and draw the operations from bytes.

mod derived;
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

use crate::model::met::worth_meeting;
use crate::panics::eventually;
use crate::property::{holds, holds_and_meets};

/// Seconds, not minutes, also without optimisation.
const CASES: u32 = 1500;

#[test]
fn a_cell_does_what_the_model_does() {
    holds_and_meets(CASES, file!(), &worth_meeting(false), strategies::case_of_dogpile_cell(), runner::run);
}

#[test]
fn a_sync_reader_cell_does_what_the_model_does() {
    holds_and_meets(
        CASES,
        file!(),
        &worth_meeting(true),
        strategies::case_of_sync_reader_cell(),
        runner::run,
    );
    assert!(
        eventually(|| runner::drain::finalizer_threads() == 0),
        "{} of the cells' threads are left",
        runner::drain::finalizer_threads()
    );
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
