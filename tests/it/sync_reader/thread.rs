//! G11: under `Drain::Background` the finalizer runs on the cell's own thread only, which ends when it has nothing to do.

use std::cell::RefCell;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use dogpile::SyncReaderCell;

use super::Log;
use crate::support::{Gatekeeper, PATIENCE, TTL, eventually, gate};

const HOUR: Duration = Duration::from_secs(3600);

type Way = (&'static str, fn(&SyncReaderCell<u32>));

/// What leaves a value to finalise. The cell is not empty before and after.
const WAYS_TO_REPLACE: [Way; 9] = [
    ("set", |cell| drop(cell.set(1))),
    ("set_for", |cell| drop(cell.set_for(1, TTL))),
    ("restore", |cell| drop(cell.restore(1, TTL))),
    ("clear", |cell| {
        cell.clear();
        cell.set(1);
    }),
    ("reset", |cell| {
        cell.reset();
        cell.set(1);
    }),
    ("an elected caller", |cell| {
        cell.invalidate();
        drop(cell.get_or_refresh(|| 1));
    }),
    ("a request", |cell| drop(cell.request().no_cache().try_get(|| Ok::<_, String>(1)))),
    ("a reader that leaves", |cell| {
        let reader = cell.get();
        cell.set(1);
        drop(reader);
    }),
    ("a guard that is dropped", |cell| {
        let guard = cell.load();
        cell.set(1);
        drop(guard);
    }),
];

/// The write lock waits for what was replaced before, and so for the finalizer.
const WAYS_WITH_THE_WRITE_LOCK: [Way; 2] = [
    ("a build with the write lock", |cell| {
        cell.request().no_cache().get_with_writer(|writer| {
            drop(writer.acquire_write_lock());
            1
        });
    }),
    ("a write section that fails after a clear", |cell| {
        let failed = cell.request().no_cache().try_get_with_writer(|writer| {
            drop(writer.acquire_write_lock());
            cell.clear();
            Err("no")
        });
        assert!(failed.is_err());
        cell.set(1);
    }),
];

#[test]
fn g11_no_caller_and_no_reader_runs_the_finalizer() {
    let (sender, calls) = channel();
    let cell = SyncReaderCell::new(HOUR, move |_: u32| {
        sender.send((thread::current().id(), thread::current().name().map(str::to_owned))).unwrap();
    });
    cell.set(0);
    for (way, replace) in WAYS_TO_REPLACE.into_iter().chain(WAYS_WITH_THE_WRITE_LOCK) {
        replace(&cell);
        let (thread, name) = calls.recv_timeout(PATIENCE).unwrap();
        assert_ne!(thread, thread::current().id(), "{way}");
        assert_eq!(name.as_deref(), Some("dogpile-finalizer"), "{way}");
    }
}

#[test]
fn g11_a_caller_that_waits_for_the_write_lock_does_not_run_the_finalizer() {
    let finalizer = Arc::new(OnceLock::new());
    let ran = Arc::clone(&finalizer);
    let cell = SyncReaderCell::new(HOUR, move |value: u32| {
        if value == 1 {
            ran.set(thread::current().id()).unwrap();
        }
    });
    let older = cell.set(1);
    cell.set(2);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            cell.request().no_cache().get_with_writer(|writer| {
                drop(writer.acquire_write_lock());
                // What was retired before has been finalised before.
                assert_ne!(*finalizer.get().unwrap(), thread::current().id());
                3
            })
        });
        eventually("new readers are held back", || cell.get().is_none());
        drop(older);
        assert_eq!(*writer.join().unwrap(), 3);
    });
}

/// A cell whose finalizer stops at a gate when it is given 0.
fn stopped() -> (Arc<SyncReaderCell<u32>>, Gatekeeper, Log) {
    let log = Log::default();
    let (finalizing, keeper) = gate();
    let finalized = log.clone();
    let cell = SyncReaderCell::new(HOUR, move |value| {
        if value == 0 {
            finalizing.pass();
        }
        finalized.0.lock().unwrap().push(value);
    });
    (Arc::new(cell), keeper, log)
}

/// Runs `f` on a thread of its own, so that a test whose `f` hangs ends.
fn in_time<R: Send + 'static>(what: &str, f: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, result): (_, Receiver<R>) = channel();
    let thread = thread::spawn(move || sender.send(f()));
    match result.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => panic!("{what} hangs"),
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Ok(sent) => unreachable!("{what}: {:?}", sent.is_ok()),
            Err(panic) => resume_unwind(panic),
        },
    }
}

#[test]
fn g11_a_finalizer_that_blocks_delays_no_caller_and_no_reader() {
    let (cell, keeper, log) = stopped();
    let replaced = in_time("a caller, while the finalizer is blocked,", {
        let cell = Arc::clone(&cell);
        move || {
            cell.set(0);
            cell.set(1);
            keeper.wait_for_arrival();
            for (_, replace) in WAYS_TO_REPLACE {
                replace(&cell);
            }
            let retired = cell.retired();
            assert!(cell.synchronize_timeout(Duration::ZERO).is_err());
            keeper.open();
            retired
        }
    });
    let finalized = log.complete(&cell);
    assert_eq!((replaced, finalized[0]), (finalized.len(), 0));
    assert!(finalized.len() > WAYS_TO_REPLACE.len());
}

#[test]
fn g11_a_lock_that_both_the_finalizer_and_its_callers_take_does_not_deadlock() {
    let users = Arc::new(Mutex::new(()));
    let log = Log::default();
    let cell = {
        let (users, finalized) = (Arc::clone(&users), log.clone());
        Arc::new(SyncReaderCell::new(HOUR, move |value| {
            let _locked = users.lock().unwrap();
            finalized.0.lock().unwrap().push(value);
        }))
    };
    in_time("a caller that holds the lock", {
        let cell = Arc::clone(&cell);
        move || {
            cell.set(0);
            for (_, replace) in WAYS_TO_REPLACE {
                let _locked = users.lock().unwrap();
                replace(&cell);
            }
        }
    });
    assert!(log.complete(&cell).len() >= WAYS_TO_REPLACE.len());
}

/// The threads on which finalizers have run, and how many of those have ended.
#[derive(Default)]
struct Threads {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// Dropped when its thread ends.
struct Ending(Arc<Threads>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

thread_local! {
    static ENDING: RefCell<Option<Ending>> = const { RefCell::new(None) };
}

/// A cell whose finalizer notes its thread.
fn counted(threads: &Arc<Threads>) -> SyncReaderCell<u32> {
    let threads = Arc::clone(threads);
    SyncReaderCell::new(HOUR, move |_| {
        ENDING.with_borrow_mut(|ending| {
            ending.get_or_insert_with(|| {
                threads.begun.fetch_add(1, Ordering::SeqCst);
                Ending(Arc::clone(&threads))
            });
        });
    })
}

#[test]
fn g11_a_cell_with_nothing_to_finalise_has_no_thread() {
    const CELLS: usize = if cfg!(miri) { 4 } else { 200 };
    let threads = Arc::<Threads>::default();
    let cells: Vec<_> = (0..CELLS).map(|_| counted(&threads)).collect();
    for round in 1..=3 {
        for cell in &cells {
            cell.set(1);
            cell.set(2);
            cell.clear();
        }
        for cell in &cells {
            cell.synchronize();
        }
        let begun = threads.begun.load(Ordering::SeqCst);
        assert!(begun >= round * CELLS, "{begun} threads for {CELLS} cells in round {round}");
        eventually("all threads end", || threads.ended.load(Ordering::SeqCst) == begun);
    }
    assert_eq!(threads.begun.load(Ordering::SeqCst), threads.ended.load(Ordering::SeqCst));
}

#[test]
fn g11_a_thread_ends_after_the_last_reader_of_a_dropped_cell_has_left() {
    let threads = Arc::<Threads>::default();
    let cell = counted(&threads);
    let readers = [cell.set(1), cell.set(2)];
    cell.set(3);
    drop(cell);
    assert_eq!(threads.begun.load(Ordering::SeqCst), 0);
    drop(readers);
    eventually("both are finalised, and the thread has ended", || {
        let begun = threads.begun.load(Ordering::SeqCst);
        begun > 0 && threads.ended.load(Ordering::SeqCst) == begun
    });
}
