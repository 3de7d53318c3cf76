//! Handles that are kept, and given up for the next value: `exchange`.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Drain, ManualClock, Policy, ReaderArc, SyncReaderCell};

use super::{Log, logged};
use crate::support::{TTL, eventually, panic_message};

type Cell = SyncReaderCell<u32, ManualClock>;

fn waiting() -> (Cell, Log) {
    let (cell, _clock, log) = logged(Policy::ttl(TTL), Drain::Wait(Duration::MAX));
    (cell, log)
}

/// How a thread gets the next value for the handle that it keeps.
type Exchange = fn(&Cell, ReaderArc<u32>, u32) -> ReaderArc<u32>;

const WAYS: [(&str, Exchange); 5] = [
    ("exchange", |cell, old, next| cell.exchange(old, || next)),
    ("a request", |cell, old, next| cell.request().exchange(old).get(|| next)),
    ("a fresh value", |cell, old, next| {
        cell.request().max_stale(Duration::ZERO).exchange(old).try_get(|| Ok::<_, String>(next)).unwrap()
    }),
    ("a new value", |cell, old, next| cell.request().no_cache().exchange(old).get(|| next)),
    ("the write lock", |cell, old, next| {
        cell.request().no_cache().exchange(old).get_with_writer(|writer| {
            assert!(writer.acquire_write_lock().old().is_some());
            next
        })
    }),
];

/// With `get_or_refresh` in its place, the thread would wait for its own handle.
#[test]
fn a_loop_that_exchanges_its_handle_does_not_wait_for_itself() {
    for (way, exchange) in WAYS {
        let (cell, log) = waiting();
        let mut handle = cell.get_or_refresh(|| 0);
        for round in 1..=10 {
            cell.invalidate();
            handle = exchange(&cell, handle, round);
            assert_eq!((*handle, cell.readers()), (round, 1), "{way}");
        }
        assert_eq!(log.entries(), (0..10).collect::<Vec<_>>(), "{way}");
    }
}

#[test]
fn the_old_handle_is_given_up_before_the_build_runs() {
    let (cell, _log) = waiting();
    let handle = cell.set(1);
    cell.invalidate();
    assert_eq!(cell.readers(), 1);
    let handle = cell.exchange(handle, || {
        assert_eq!(cell.readers(), 0);
        2
    });
    let handle = cell.request().no_cache().exchange(handle).get(|| {
        assert_eq!(cell.readers(), 0);
        3
    });
    assert_eq!((*handle, cell.readers()), (3, 1));
}

/// So it is if the build fails: the caller is left without a handle, and the cell keeps the value.
#[test]
fn a_handle_that_was_exchanged_for_a_panic_is_gone_and_its_value_is_not() {
    let (cell, log) = waiting();
    let handle = cell.set(1);
    cell.invalidate();
    assert_eq!(panic_message(|| cell.exchange(handle, || panic!("no"))), "no");
    assert_eq!((cell.readers(), cell.get().as_deref(), log.entries()), (0, Some(&1), vec![]));
}

/// Each thread keeps a handle in a loop, while the value is declared stale again and again. A thread that is elected waits for
/// the handles of all others.
#[test]
fn threads_that_exchange_their_handles_in_a_loop_wait_for_each_other_and_none_for_itself() {
    const ROUNDS: u32 = if cfg!(miri) { 5 } else { 300 };
    for (way, exchange) in WAYS {
        let (cell, log) = waiting();
        let next = AtomicU32::new(0);
        let build = || next.fetch_add(1, Ordering::SeqCst);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut handle = cell.get_or_refresh(build);
                        for _ in 0..ROUNDS {
                            handle = exchange(&cell, handle, build());
                            assert!(*handle < next.load(Ordering::SeqCst));
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    cell.invalidate();
                    thread::yield_now();
                }
            });
            eventually(way, || threads.iter().all(thread::ScopedJoinHandle::is_finished));
            done.store(true, Ordering::SeqCst);
        });
        let finalized = log.complete(&cell);
        assert_eq!(finalized.len() as u64, cell.generation() - 1, "{way}");
    }
}
