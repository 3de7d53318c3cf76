//! Refreshers: no notification is lost.

use std::sync::Arc;
use std::time::Duration;

use dogpile_under_test::Refresher;
use loom::sync::{Condvar, Mutex};

use crate::support::{Model, NoonCell, cell, fork, has_spawned, saw};

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "g4_a_refresher_notices_an_invalidate",
        preemptions: Some(2),
        body: a_refresher_notices_an_invalidate,
        sees: &["asleep", "at work"],
    },
    Model {
        name: "g4_a_refresher_notices_a_clear_and_an_invalidate",
        preemptions: Some(2),
        body: a_refresher_notices_a_clear_and_an_invalidate,
        sees: &["built once", "built twice"],
    },
    Model {
        name: "g5_a_refresher_stops",
        preemptions: None,
        body: a_refresher_stops,
        sees: &["before its build", "after its build"],
    },
    Model {
        name: "g5_a_refresher_ends_with_its_cell",
        preemptions: Some(4),
        body: a_refresher_ends_with_its_cell,
        sees: &["before its build", "after its build"],
    },
    Model {
        name: "g1_a_refresher_and_a_reader_build_once",
        preemptions: Some(3),
        body: a_refresher_and_a_reader_build_once,
        sees: &["the refresher", "the reader"],
    },
];

/// A number that a thread can wait for.
#[derive(Clone)]
struct Tally(Arc<(Mutex<u64>, Condvar)>);

impl Tally {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(0), Condvar::new())))
    }

    fn count(&self) -> u64 {
        let mut count = self.0.0.lock().unwrap();
        *count += 1;
        self.0.1.notify_all();
        *count
    }

    fn get(&self) -> u64 {
        *self.0.0.lock().unwrap()
    }

    fn wait_for(&self, target: u64) {
        let mut count = self.0.0.lock().unwrap();
        while *count < target {
            count = self.0.1.wait(count).unwrap();
        }
    }
}

/// On a thread of its own. Its builds are counted when they begin.
fn refresher(cell: &Arc<NoonCell<u64>>, begun: &Tally) -> Refresher {
    has_spawned();
    let begun = begun.clone();
    let build = move |_: Option<Arc<u64>>| begun.count();
    Refresher::spawn(cell, Duration::ZERO, build).expect("a thread")
}

fn a_refresher_notices_an_invalidate() {
    let (cell, begun) = (cell(), Tally::new());
    let refresher = refresher(&cell, &begun);
    begun.wait_for(1);
    saw(if cell.is_refreshing() { "at work" } else { "asleep" });
    cell.invalidate();
    // The build that had begun before is not enough.
    begun.wait_for(2);
    drop(refresher);
    assert_eq!(cell.get().as_deref(), Some(&2));
}

fn a_refresher_notices_a_clear_and_an_invalidate() {
    let (cell, begun) = (cell(), Tally::new());
    cell.set(0);
    let refresher = refresher(&cell, &begun);
    let other = fork(&cell, |cell| cell.invalidate());
    cell.clear();
    // No other caller builds.
    begun.wait_for(1);
    other.join().unwrap();
    drop(refresher);
    saw(["built once", "built twice", "built three times"][usize::try_from(begun.get() - 1).unwrap()]);
}

fn a_refresher_stops() {
    let (cell, begun) = (cell(), Tally::new());
    let refresher = refresher(&cell, &begun);
    drop(refresher);
    saw(if begun.get() == 0 { "before its build" } else { "after its build" });
    assert_eq!(cell.generation(), begun.get());
    assert!(!cell.is_refreshing());
}

fn a_refresher_ends_with_its_cell() {
    let (cell, begun) = (cell(), Tally::new());
    let refresher = refresher(&cell, &begun);
    // The first executions let it build before; the others do not.
    loom::thread::yield_now();
    let generation = if cell.is_refreshing() { 1 } else { cell.generation() };
    drop(cell);
    saw(if generation == 0 { "before its build" } else { "after its build" });
    // It is not stopped: its thread has to end by itself, and loom fails if it does not.
    std::mem::forget(refresher);
}

fn a_refresher_and_a_reader_build_once() {
    let (cell, begun) = (cell(), Tally::new());
    let refresher = refresher(&cell, &begun);
    let value = *cell.get_or_refresh(|| 7);
    drop(refresher);
    saw(if value == 7 { "the reader" } else { "the refresher" });
    assert_eq!((cell.stats().builds, cell.get().as_deref()), (1, Some(&value)));
}
