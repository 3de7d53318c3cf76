//! Replaced values: retired, drained, finalised; and the write lock: G11, G12.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use dogpile_under_test::{Clock, Drain, ManualClock, Policy, ReaderArc, SyncReaderCell};

use crate::support::{Model, Noon, fork, saw};
use crate::tasks::{block_on, poll_once};

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "g11_a_late_reader_gets_no_value_that_is_gone",
        preemptions: Some(3),
        body: a_late_reader_gets_no_value_that_is_gone,
        sees: &["the old value", "the new value"],
    },
    Model {
        name: "g11_a_late_guard_gets_no_value_that_is_gone",
        preemptions: Some(3),
        body: a_late_guard_gets_no_value_that_is_gone,
        sees: &["the old value", "the new value"],
    },
    Model {
        name: "g11_the_last_reader_leaves_while_the_value_is_retired",
        preemptions: Some(3),
        body: the_last_reader_leaves_while_the_value_is_retired,
        sees: &["finalised by then", "finalised later"],
    },
    Model {
        name: "g11_two_readers_leave_while_the_value_is_waited_for",
        preemptions: Some(2),
        body: two_readers_leave_while_the_value_is_waited_for,
        sees: &["no reader was left", "readers were left"],
    },
    Model {
        name: "g11_values_are_finalised_in_order",
        preemptions: Some(2),
        body: values_are_finalised_in_order,
        sees: &["the second left first"],
    },
    Model {
        name: "g11_the_last_reader_leaves_while_a_thread_waits_for_all",
        preemptions: Some(3),
        body: the_last_reader_leaves_while_a_thread_waits_for_all,
        sees: &["finalised before", "waited"],
    },
    Model {
        name: "g11_a_value_that_is_fenced_off_is_finalised_too",
        preemptions: Some(2),
        body: a_value_that_is_fenced_off_is_finalised_too,
        sees: &["kept out", "cleared", "built after"],
    },
    Model {
        name: "g11_the_cell_is_dropped_during_a_drain",
        preemptions: Some(3),
        body: the_cell_is_dropped_during_a_drain,
        sees: &["dropped first", "left first"],
    },
    Model {
        name: "g11_a_wait_for_readers_ends_in_time_and_the_value_goes_on",
        preemptions: Some(3),
        body: a_wait_for_readers_ends_in_time,
        sees: &["in time", "too late"],
    },
    Model {
        name: "g11_a_task_that_waits_for_readers_is_dropped",
        preemptions: Some(3),
        body: a_task_that_waits_for_readers_is_dropped,
        sees: &["dropped while it waited", "ended"],
    },
    Model {
        name: "g11_a_task_waits_for_readers",
        preemptions: Some(3),
        body: a_task_waits_for_readers,
        sees: &["suspended"],
    },
    Model {
        name: "g12_the_write_lock_against_entering_readers",
        preemptions: Some(2),
        body: the_write_lock_against_entering_readers,
        sees: &["the old value", "the new value", "kept out"],
    },
    Model {
        name: "g12_the_write_lock_against_entering_readers_and_the_background",
        preemptions: Some(1),
        body: the_write_lock_against_entering_readers_and_the_background,
        sees: &["the old value", "the new value", "kept out"],
    },
    Model {
        name: "g12_a_reader_that_waits_for_the_writer",
        preemptions: Some(2),
        body: a_reader_that_waits_for_the_writer,
        sees: &["the old value", "waited"],
    },
    Model {
        name: "g12_a_section_that_fails_puts_the_value_back",
        preemptions: Some(2),
        body: a_section_that_fails_puts_the_value_back,
        sees: &["the old value", "a value of its own", "waited"],
    },
    Model {
        name: "g12_a_write_lock_is_given_up_in_time",
        preemptions: Some(2),
        body: a_write_lock_is_given_up_in_time,
        sees: &["in time", "too late"],
    },
    Model {
        name: "g12_clear_while_a_writer_is_inside",
        preemptions: Some(2),
        body: clear_while_a_writer_is_inside,
        sees: &["cleared before", "cleared inside"],
    },
    Model {
        name: "g5_g12_a_waiter_of_a_section_that_is_cleared_and_fails_is_woken",
        preemptions: Some(2),
        body: a_waiter_of_a_section_that_is_cleared_and_fails_is_woken,
        sees: &["waited", "built at once"],
    },
    Model {
        name: "g12_set_while_a_writer_is_inside",
        preemptions: Some(2),
        body: set_while_a_writer_is_inside,
        sees: &["served", "overtaken", "set after"],
    },
];

type Cell<C> = SyncReaderCell<u64, C>;

/// The values that were finalised, in order. Loom sees each look at it.
#[derive(Clone)]
struct Log(Arc<loom::sync::Mutex<Vec<u64>>>);

impl Log {
    fn new() -> Self {
        Self(Arc::new(loom::sync::Mutex::new(Vec::new())))
    }

    fn get(&self) -> Vec<u64> {
        self.0.lock().unwrap().clone()
    }

    fn has(&self, value: u64) -> bool {
        self.0.lock().unwrap().contains(&value)
    }
}

/// A cell that holds 1, fresh.
fn cell_with<C: Clock>(clock: C, drain: Drain) -> (Arc<Cell<C>>, Log) {
    let log = Log::new();
    let finalizer = {
        let log = log.clone();
        move |value| log.0.lock().unwrap().push(value)
    };
    let cell = Arc::new(SyncReaderCell::with_clock(Policy::never_expires(), clock, drain, finalizer));
    cell.set(1);
    (cell, log)
}

fn cell(drain: Drain) -> (Arc<Cell<Noon>>, Log) {
    cell_with(Noon, drain)
}

/// All replaced values are finalised, and no other.
fn settled<C: Clock>(cell: &Cell<C>, log: &Log, expected: &[u64]) {
    cell.synchronize();
    assert_eq!(log.get(), expected);
    assert_eq!((cell.retired(), cell.readers(), cell.is_refreshing()), (0, 0, false));
}

/// Steps beside the moment at which a reference is given up, which loom does not see itself.
fn leave<C>(cell: &Cell<C>, reader: ReaderArc<u64>) {
    let _ = cell.readers();
    drop(reader);
}

fn a_late_reader_gets_no_value_that_is_gone() {
    let (cell, log) = cell(Drain::Background);
    let late = fork(&(Arc::clone(&cell), log.clone()), |(cell, log)| {
        let reader = cell.get().expect("never empty");
        assert!(!log.has(*reader), "finalised, and still read");
        saw(if *reader == 1 { "the old value" } else { "the new value" });
        leave(&cell, reader);
    });
    drop(cell.set(2));
    late.join().unwrap();
    settled(&cell, &log, &[1]);
}

fn a_late_guard_gets_no_value_that_is_gone() {
    let (cell, log) = cell(Drain::Background);
    let late = fork(&(Arc::clone(&cell), log.clone()), |(cell, log)| {
        let guard = cell.load().expect("never empty");
        assert!(!log.has(*guard), "finalised, and still read");
        saw(if *guard == 1 { "the old value" } else { "the new value" });
        let _ = cell.readers();
    });
    drop(cell.set(2));
    late.join().unwrap();
    settled(&cell, &log, &[1]);
}

fn the_last_reader_leaves_while_the_value_is_retired() {
    let (cell, log) = cell(Drain::Background);
    let reader = cell.get().expect("never empty");
    let writer = fork(&(Arc::clone(&cell), log.clone()), |(cell, log)| {
        drop(cell.set(2));
        saw(if log.has(1) { "finalised by then" } else { "finalised later" });
    });
    leave(&cell, reader);
    writer.join().unwrap();
    settled(&cell, &log, &[1]);
}

fn two_readers_leave_while_the_value_is_waited_for() {
    let (cell, log) = cell(Drain::Wait(Duration::MAX));
    let reader = cell.get().expect("never empty");
    let other = fork(&(Arc::clone(&cell), reader.clone()), |(cell, reader)| leave(&cell, reader));
    let writer = fork(&(Arc::clone(&cell), log.clone()), |(cell, log)| {
        saw(if cell.readers() == 0 { "no reader was left" } else { "readers were left" });
        drop(cell.set(2));
        assert_eq!(log.get(), [1], "it was waited for");
    });
    leave(&cell, reader);
    other.join().unwrap();
    writer.join().unwrap();
    settled(&cell, &log, &[1]);
}

fn values_are_finalised_in_order() {
    let (cell, log) = cell(Drain::Background);
    let one = cell.get().expect("never empty");
    let two = cell.set(2);
    drop(cell.set(3));
    let other = fork(&(Arc::clone(&cell), log.clone(), one), |(cell, log, one)| {
        if cell.readers() == 1 {
            saw("the second left first");
        }
        assert!(!log.has(1) && !log.has(2));
        leave(&cell, one);
    });
    leave(&cell, two);
    other.join().unwrap();
    settled(&cell, &log, &[1, 2]);
}

fn the_last_reader_leaves_while_a_thread_waits_for_all() {
    let (cell, log) = cell(Drain::Background);
    let reader = cell.get().expect("never empty");
    drop(cell.set(2));
    let other = fork(&(Arc::clone(&cell), reader), |(cell, reader)| leave(&cell, reader));
    saw(if log.has(1) { "finalised before" } else { "waited" });
    cell.synchronize();
    assert_eq!(log.get(), [1]);
    other.join().unwrap();
    settled(&cell, &log, &[1]);
}

fn a_value_that_is_fenced_off_is_finalised_too() {
    let (cell, log) = cell(Drain::Background);
    cell.invalidate();
    let other = fork(&cell, |cell| *cell.get_or_refresh(|| 2));
    cell.clear();
    let value = other.join().unwrap();
    let (what, expected): (_, &[u64]) = match (value, cell.get().is_some()) {
        (1, false) => ("served", &[1]),
        (2, true) => ("built after", &[1]),
        (2, false) => (if cell.stats().fenced > 0 { "kept out" } else { "cleared" }, &[1, 2]),
        other => panic!("{other:?}"),
    };
    saw(what);
    if what == "kept out" {
        // It was never published, so it has no place in the order, and only the cell's own thread waits for it.
        drop(cell);
        let mut all = log.get();
        all.sort_unstable();
        assert_eq!(all, expected);
    } else {
        settled(&cell, &log, expected);
    }
}

/// Checks the log when the last reference to it is dropped.
struct AtTheEnd(Log, &'static [u64]);

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.0.get(), self.1);
        }
    }
}

fn the_cell_is_dropped_during_a_drain() {
    let log = Log::new();
    let end = AtTheEnd(log.clone(), &[1]);
    let finalizer = {
        let log = log.clone();
        move |value| {
            let _ = &end;
            log.0.lock().unwrap().push(value);
        }
    };
    let cell: Cell<Noon> =
        SyncReaderCell::with_clock(Policy::never_expires(), Noon, Drain::Background, finalizer);
    let reader = cell.set(1);
    drop(cell.set(2));
    let other = fork(&(reader, log.clone()), |(reader, log)| {
        assert!(!log.has(*reader));
        drop(reader);
    });
    let _ = cell.readers();
    drop(cell);
    saw(if log.has(1) { "left first" } else { "dropped first" });
    other.join().unwrap();
}

const LIMIT: Duration = Duration::from_nanos(10);

fn a_wait_for_readers_ends_in_time() {
    let clock = ManualClock::new();
    let (cell, log) = cell_with(clock.clone(), Drain::Wait(LIMIT));
    let reader = cell.get().expect("never empty");
    let writer = fork(&(Arc::clone(&cell), log.clone()), |(cell, log)| {
        drop(cell.set(2));
        saw(if log.has(1) { "in time" } else { "too late" });
    });
    clock.advance(LIMIT);
    leave(&cell, reader);
    writer.join().unwrap();
    settled(&cell, &log, &[1]);
}

fn a_task_that_waits_for_readers_is_dropped() {
    let (cell, log) = cell(Drain::Wait(Duration::MAX));
    let reader = cell.get().expect("never empty");
    cell.invalidate();
    let task = fork(&cell, |cell| match poll_once(pin!(cell.get_or_refresh_async(|| async { 2 }))) {
        Poll::Pending => saw("dropped while it waited"),
        Poll::Ready(value) => {
            assert_eq!(*value, 2);
            saw("ended");
        }
    });
    leave(&cell, reader);
    task.join().unwrap();
    settled(&cell, &log, &[1]);
}

fn a_task_waits_for_readers() {
    let (cell, log) = cell(Drain::Wait(Duration::MAX));
    let reader = cell.get().expect("never empty");
    cell.invalidate();
    let task = fork(&(Arc::clone(&cell), log.clone()), |(cell, log)| {
        assert_eq!(*block_on(cell.get_or_refresh_async(|| async { 2 })), 2);
        assert_eq!(log.get(), [1], "it was waited for");
    });
    leave(&cell, reader);
    task.join().unwrap();
    settled(&cell, &log, &[1]);
}

/// Replaces in place: no reader sees what the section writes.
fn rebuild(cell: &Cell<Noon>, inside: &loom::sync::Mutex<bool>) -> u64 {
    *cell.request().get_with_writer(|writer| {
        let mut lock = writer.acquire_write_lock();
        *inside.lock().unwrap() = true;
        if let Some(old) = lock.old() {
            *old = 100;
        }
        *inside.lock().unwrap() = false;
        2
    })
}

/// The writer finalises what it replaces itself.
fn the_write_lock_against_entering_readers() {
    read_beside_a_writer(Drain::Wait(Duration::MAX));
}

/// The cell's own thread does.
fn the_write_lock_against_entering_readers_and_the_background() {
    read_beside_a_writer(Drain::Background);
}

fn read_beside_a_writer(drain: Drain) {
    let (cell, log) = cell(drain);
    cell.invalidate();
    let inside = Arc::new(loom::sync::Mutex::new(false));
    let late = fork(&(Arc::clone(&cell), Arc::clone(&inside)), |(cell, inside)| match cell.get() {
        Some(reader) => {
            let value = *reader;
            assert!(!*inside.lock().unwrap() && *reader == value, "read under the write lock");
            saw(match value {
                1 => "the old value",
                2 => "the new value",
                other => panic!("{other}"),
            });
            leave(&cell, reader);
        }
        None => saw("kept out"),
    });
    assert_eq!(rebuild(&cell, &inside), 2);
    late.join().unwrap();
    settled(&cell, &log, &[100]);
}

fn a_reader_that_waits_for_the_writer() {
    let (cell, log) = cell(Drain::Wait(Duration::MAX));
    cell.invalidate();
    let inside = Arc::new(loom::sync::Mutex::new(false));
    let writer = fork(&(Arc::clone(&cell), Arc::clone(&inside)), |(cell, inside)| rebuild(&cell, &inside));
    let reader = cell.request().get_with_writer(|_| 3);
    assert!(!*inside.lock().unwrap(), "read under the write lock");
    match *reader {
        1 => saw("the old value"),
        2 if cell.stats().waits > 0 => saw("waited"),
        2 => saw("the new value"),
        // This caller was elected, and replaced the value that the other one has to wait for.
        3 => saw("a value of its own"),
        other => panic!("{other}"),
    }
    leave(&cell, reader);
    writer.join().unwrap();
    let expected: &[u64] = if cell.stats().builds == 2 { &[1, 100] } else { &[100] };
    let expected = if cell.get().is_some_and(|value| *value == 3) { &[1][..] } else { expected };
    settled(&cell, &log, expected);
}

fn a_section_that_fails_puts_the_value_back() {
    let (cell, log) = cell(Drain::Wait(Duration::MAX));
    cell.invalidate();
    let writer = fork(&cell, |cell| {
        let _ = cell.request().try_get_with_writer(|writer| {
            let _lock = writer.acquire_write_lock();
            Err("the section fails")
        });
    });
    let reader = cell.get_or_refresh(|| 3);
    match *reader {
        1 => saw("the old value"),
        3 => saw("a value of its own"),
        other => panic!("{other}"),
    }
    if cell.stats().waits > 0 {
        saw("waited");
    }
    let built = *reader == 3;
    leave(&cell, reader);
    writer.join().unwrap();
    settled(&cell, &log, if built { &[1] } else { &[] });
    assert!(cell.get().is_some());
}

fn a_write_lock_is_given_up_in_time() {
    let clock = ManualClock::new();
    let (cell, log) = cell_with(clock.clone(), Drain::Wait(Duration::MAX));
    let reader = cell.get().expect("never empty");
    cell.invalidate();
    let writer = fork(&cell, |cell| {
        drop(cell.request().get_with_writer(|writer| match writer.acquire_write_lock_timeout(LIMIT) {
            Ok(_) => {
                saw("in time");
                2
            }
            Err(_) => {
                saw("too late");
                3
            }
        }));
    });
    clock.advance(LIMIT);
    leave(&cell, reader);
    writer.join().unwrap();
    settled(&cell, &log, &[1]);
}

fn clear_while_a_writer_is_inside() {
    let (cell, log) = cell(Drain::Wait(Duration::MAX));
    cell.invalidate();
    let writer = fork(&cell, |cell| {
        let _ = cell.request().try_get_with_writer(|writer| {
            let mut lock = writer.acquire_write_lock();
            saw(if lock.old().is_some() { "cleared inside" } else { "cleared before" });
            Err("the section fails")
        });
    });
    cell.clear();
    writer.join().unwrap();
    assert!(cell.get().is_none());
    settled(&cell, &log, &[1]);
}

fn a_waiter_of_a_section_that_is_cleared_and_fails_is_woken() {
    let (cell, log) = cell(Drain::Wait(Duration::MAX));
    cell.invalidate();
    let writer = fork(&cell, |cell| {
        let _ = cell.request().try_get_with_writer(|writer| {
            let _ = writer.acquire_write_lock_timeout(Duration::MAX);
            Err("the section fails")
        });
    });
    cell.clear();
    assert_eq!(*cell.get_or_refresh(|| 3), 3, "it waits for the section, and then it builds");
    saw(if cell.stats().waits > 0 { "waited" } else { "built at once" });
    writer.join().unwrap();
    settled(&cell, &log, &[1]);
}

fn set_while_a_writer_is_inside() {
    let (cell, log) = cell(Drain::Wait(Duration::MAX));
    cell.invalidate();
    let writer = fork(&cell, |cell| {
        let mut is_overtaken = false;
        let value = cell.request().get_with_writer(|writer| {
            is_overtaken = writer.acquire_write_lock_timeout(Duration::MAX).is_err();
            if is_overtaken {
                return 3;
            }
            assert!(cell.get().is_none(), "a value is served under the write lock");
            2
        });
        (*value, is_overtaken)
    });
    drop(cell.set(9));
    let (value, is_overtaken) = writer.join().unwrap();
    assert_eq!(cell.get().map(|value| *value), Some(9));
    if is_overtaken {
        saw("overtaken");
        assert_eq!(value, 9);
        // It was never published, so it has no place in the order, and only the cell's own thread waits for it.
        drop(cell);
        let mut all = log.get();
        all.sort_unstable();
        return assert_eq!(all, [1, 3]);
    }
    let is_built = cell.stats().builds > 0;
    saw(if is_built { "set after" } else { "served" });
    assert!(value == 9 || value == if is_built { 2 } else { 1 }, "{value}");
    settled(&cell, &log, if is_built { &[1, 2] } else { &[1] });
}
