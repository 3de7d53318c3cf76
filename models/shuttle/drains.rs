//! `SyncReaderCell` with more threads than loom can explore: G11, G12.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use dogpile_under_test::{Drain, ManualClock, Policy, RefreshError, SyncReaderCell};
use shuttle::thread::yield_now;

use crate::cell::Noon;
use crate::support::{Failed, Scenario, below, block_on, fork, join_all, saw, without_pauses};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "g11_g12_a_writer_readers_and_tasks_that_are_dropped",
        executions: 20_000,
        body: a_writer_readers_and_tasks_that_are_dropped,
        sees: &[
            "locked",
            "failed under the lock",
            "overtaken",
            "read",
            "kept out",
            "task dropped",
            "cleared",
            "set",
        ],
    },
    Scenario {
        name: "g11_the_cell_is_dropped_while_values_drain",
        executions: 30_000,
        body: the_cell_is_dropped_while_values_drain,
        sees: &["with readers", "without readers"],
    },
    Scenario {
        name: "g11_g12_everything_at_once",
        executions: 10_000,
        body: everything_at_once,
        sees: &[
            "cleared",
            "failed",
            "failed under the lock",
            "kept out",
            "locked",
            "no lock in time",
            "not finalised in time",
            "read",
            "read by another thread",
            "reset",
            "revoked",
            "set",
            "task dropped",
            "timed out",
        ],
    },
];

/// A value that knows whether it may be read.
struct Value {
    number: u64,
    /// Finalised, or in the hands of a writer.
    is_out: AtomicBool,
}

/// What was finalised.
#[derive(Default)]
struct Log {
    finalized: Mutex<Vec<u64>>,
    at_once: AtomicBool,
}

impl Log {
    fn finalize(&self, value: &Value) {
        assert!(!self.at_once.swap(true, SeqCst), "two at a time (G11)");
        value.is_out.store(true, SeqCst);
        yield_now();
        let mut finalized = self.finalized.lock().unwrap();
        assert!(!finalized.contains(&value.number), "{} twice (G11)", value.number);
        finalized.push(value.number);
        drop(finalized);
        self.at_once.store(false, SeqCst);
    }
}

type Cell = SyncReaderCell<Value, Noon>;

fn cell(drain: Drain) -> (Arc<Cell>, Arc<Log>) {
    let log = Arc::new(Log::default());
    let finalizer = {
        let log = Arc::clone(&log);
        move |value: Value| log.finalize(&value)
    };
    let cell = SyncReaderCell::with_clock(without_pauses(Policy::never_expires()), Noon, drain, finalizer);
    (Arc::new(cell), log)
}

fn value(number: u64) -> Value {
    Value { number, is_out: AtomicBool::new(false) }
}

/// What a reader does for a while.
fn read(value: &Value) {
    for _ in 0..2 {
        assert!(!value.is_out.load(SeqCst), "{} is read after it has gone (G11, G12)", value.number);
        yield_now();
    }
    assert!(!value.is_out.load(SeqCst), "{} is read after it has gone (G11, G12)", value.number);
    saw("read");
}

fn a_writer_readers_and_tasks_that_are_dropped() {
    let drain = if below(2) == 0 { Drain::Background } else { Drain::Wait(Duration::MAX) };
    let (cell, log) = cell(drain);
    let numbers = Arc::new(AtomicU64::new(1));
    cell.set(value(0));
    let both = (Arc::clone(&cell), Arc::clone(&numbers));
    let writer = fork(&both, |(cell, numbers)| {
        for _ in 0..2 {
            cell.invalidate();
            let result = cell.request().try_get_with_writer(|writer| {
                let Ok(mut lock) = writer.acquire_write_lock_timeout(Duration::MAX) else {
                    saw("overtaken");
                    return Err(Failed);
                };
                saw("locked");
                if let Some(old) = lock.old() {
                    old.is_out.store(true, SeqCst);
                    yield_now();
                    old.is_out.store(false, SeqCst);
                }
                if below(2) == 0 {
                    saw("failed under the lock");
                    return Err(Failed);
                }
                Ok(value(numbers.fetch_add(1, SeqCst)))
            });
            if let Ok(value) = result {
                read(&value);
            }
        }
    });
    let readers = (0..3).map(|_| {
        fork(&both, |(cell, numbers)| {
            for _ in 0..2 {
                match below(3) {
                    0 => match cell.get() {
                        Some(reader) => read(&reader),
                        None => saw("kept out"),
                    },
                    1 => match cell.load() {
                        Some(guard) => read(&guard),
                        None => saw("kept out"),
                    },
                    _ => read(&cell.get_or_refresh(|| value(numbers.fetch_add(1, SeqCst)))),
                }
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    let task = fork(&both, |(cell, numbers)| {
        let future = cell.get_or_refresh_async(|| async { value(numbers.fetch_add(1, SeqCst)) });
        match block_on(future, Some(below(2))) {
            Some(value) => read(&value),
            None => saw("task dropped"),
        }
    });
    let setter = fork(&both, |(cell, numbers)| {
        if below(2) == 0 {
            cell.clear();
            saw("cleared");
        } else {
            drop(cell.set(value(numbers.fetch_add(1, SeqCst))));
            saw("set");
        }
    });
    join_all(readers);
    join_all([writer, task, setter]);
    cell.synchronize();
    assert_eq!((cell.readers(), cell.retired(), cell.is_refreshing()), (0, 0, false));
    let current = cell.get().map(|value| value.number);
    drop(cell);
    drop(both);
    let mut all = log.finalized.lock().unwrap().clone();
    all.extend(current);
    all.sort_unstable();
    let expected: Vec<u64> = (0..numbers.load(SeqCst)).collect();
    assert_eq!(all, expected, "each value is finalised once, or current (G11)");
}

fn the_cell_is_dropped_while_values_drain() {
    let (cell, log) = cell(Drain::Background);
    // Shuttle takes an execution with only one thread for a mistake, and without readers there would be one.
    let bystander = fork(&(), |()| yield_now());
    let mut readers = vec![bystander];
    for number in 0..4 {
        let reader = cell.set(value(number));
        if below(2) == 0 {
            let holder = fork(&reader, |reader| {
                read(&reader);
                if below(2) == 0 {
                    let other = reader.clone();
                    drop(reader);
                    read(&other);
                }
            });
            readers.push(holder);
        }
    }
    saw(if cell.readers() > 0 { "with readers" } else { "without readers" });
    drop(cell);
    join_all(readers);
    // The cell's thread, if it has one, ends by itself; its last act may still be under way.
    while Arc::strong_count(&log) > 1 {
        yield_now();
    }
    assert_eq!(*log.finalized.lock().unwrap(), [0, 1, 2], "in order, and not the current one (G11)");
}

const LIMIT: Duration = Duration::from_nanos(10);

/// What all threads of [`everything_at_once`] share.
struct World {
    cell: SyncReaderCell<Value, ManualClock>,
    numbers: AtomicU64,
}

impl World {
    fn value(&self) -> Value {
        yield_now();
        value(self.numbers.fetch_add(1, SeqCst))
    }

    fn replace_in_place(&self) {
        let result = self.cell.request().try_get_with_writer(|writer| {
            let wait = if below(2) == 0 { LIMIT } else { Duration::MAX };
            let Ok(mut lock) = writer.acquire_write_lock_timeout(wait) else {
                saw("no lock in time");
                return if below(2) == 0 { Ok(self.value()) } else { Err(Failed) };
            };
            saw("locked");
            if let Some(old) = lock.old() {
                old.is_out.store(true, SeqCst);
                yield_now();
                old.is_out.store(false, SeqCst);
            }
            if below(2) == 0 {
                saw("failed under the lock");
                return Err(Failed);
            }
            Ok(self.value())
        });
        if let Ok(value) = result {
            read(&value);
        }
    }

    /// No thread that holds a value waits for others, so none waits for ever.
    fn step(&self, readers: &mut Vec<shuttle::thread::JoinHandle<()>>) {
        let cell = &self.cell;
        match below(12) {
            0 => match cell.get() {
                Some(reader) => read(&reader),
                None => saw("kept out"),
            },
            1 => match cell.load() {
                Some(guard) => read(&guard),
                None => saw("kept out"),
            },
            2 => {
                let reader = cell.get_or_refresh(|| self.value());
                readers.push(fork(&reader, |reader| {
                    read(&reader);
                    saw("read by another thread");
                }));
            }
            3 => read(&cell.request().max_stale(Duration::ZERO).get(|| self.value())),
            4 => {
                let result = cell.request().wait_at_most(LIMIT / 2).try_get(|| Err(Failed));
                saw(match result {
                    Ok(_) => "served",
                    Err(RefreshError::Build(_)) => "failed",
                    Err(RefreshError::WaitTimeout) => "timed out",
                    Err(other) => panic!("{other}"),
                });
            }
            5 => {
                let future = cell.get_or_refresh_async(|| async { self.value() });
                match block_on(future, Some(below(2))) {
                    Some(value) => read(&value),
                    None => saw("task dropped"),
                }
            }
            6 => match below(4) {
                0 => {
                    cell.reset();
                    saw("reset");
                }
                1 => {
                    if cell.revoke() {
                        saw("revoked");
                    }
                }
                _ => {
                    cell.clear();
                    saw("cleared");
                }
            },
            7 => {
                match below(3) {
                    0 => read(&cell.set_for(self.value(), LIMIT / 2)),
                    1 => read(&cell.restore(self.value(), LIMIT / 2)),
                    _ => read(&cell.set(self.value())),
                }
                saw("set");
            }
            8 => {
                if cell.synchronize_timeout(LIMIT).is_err() {
                    saw("not finalised in time");
                }
            }
            9 => cell.synchronize(),
            _ => {
                cell.invalidate();
                self.replace_in_place();
            }
        }
    }
}

fn everything_at_once() {
    let drain = [Drain::Background, Drain::Wait(LIMIT), Drain::Wait(Duration::MAX)]
        [usize::try_from(below(3)).expect("small")];
    let policy = match below(3) {
        0 => Policy::never_expires(),
        1 => Policy::ttl(LIMIT),
        _ => Policy::never_expires().lease_timeout(LIMIT),
    };
    let clock = ManualClock::new();
    let log = Arc::new(Log::default());
    let finalizer = {
        let log = Arc::clone(&log);
        move |value: Value| log.finalize(&value)
    };
    let cell = SyncReaderCell::with_clock(without_pauses(policy), clock.clone(), drain, finalizer);
    let world = Arc::new(World { cell, numbers: AtomicU64::new(0) });
    let actors = (0..4).map(|_| {
        fork(&world, |world| {
            let mut readers = Vec::new();
            for _ in 0..4 {
                world.step(&mut readers);
            }
            join_all(readers);
        })
    });
    let actors: Vec<_> = actors.collect();
    let timer = fork(&clock, |clock| {
        for _ in 0..3 {
            clock.advance(LIMIT);
            yield_now();
        }
    });
    join_all(actors);
    join_all([timer]);
    let cell = &world.cell;
    cell.synchronize();
    assert_eq!((cell.readers(), cell.retired(), cell.is_refreshing()), (0, 0, false));
    let current = cell.get().map(|value| value.number);
    let expected: Vec<u64> = (0..world.numbers.load(SeqCst)).collect();
    // Only the cell's own thread waits for what was never published.
    drop(world);
    let mut all = log.finalized.lock().unwrap().clone();
    all.extend(current);
    all.sort_unstable();
    assert_eq!(all, expected, "each value is finalised once, or current (G11)");
}
