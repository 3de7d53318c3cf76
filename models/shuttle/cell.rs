//! `DogpileCell` with more threads than loom can explore: G1 to G7.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use dogpile_under_test::{
    Clock, DogpileCell, Freshness, Guard, ManualClock, OwnedLookup, Policy, RefreshError, Refresher, Tick,
    Waited, model,
};
use shuttle::thread::yield_now;

use crate::support::{Scenario, below, block_on, fork, join_all, saw};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "g1_g3_g4_readers_a_builder_an_invalidator_and_a_refresher",
        executions: 25_000,
        body: readers_a_builder_an_invalidator_and_a_refresher,
        sees: &["fresh", "stale", "cleared", "built by a reader", "built by the refresher"],
    },
    Scenario {
        name: "g5_g7_builds_that_fail_panic_and_are_dropped",
        executions: 40_000,
        body: builds_that_fail_panic_and_are_dropped,
        sees: &["published", "failed", "panicked", "abandoned", "shared an error", "task dropped", "waited"],
    },
    Scenario {
        name: "g1_g4_builds_that_hang_are_superseded",
        executions: 40_000,
        body: builds_that_hang_are_superseded,
        sees: &["superseded", "timed out", "waited"],
    },
];

/// A clock that stands still.
#[derive(Clone, Copy)]
pub(crate) struct Noon;

impl Clock for Noon {
    fn now(&self) -> Tick {
        Tick::from_nanos(1_000_000)
    }
}

/// Where values come from: a version that moves on. A value is the version that its build has found.
struct Source {
    version: AtomicU64,
    builders: AtomicUsize,
}

impl Source {
    /// What a build does: two at a time are a fault.
    fn read(&self) -> u64 {
        assert_eq!(self.builders.fetch_add(1, SeqCst), 0, "two leases at a time (G1)");
        let version = self.version.load(SeqCst);
        yield_now();
        self.builders.fetch_sub(1, SeqCst);
        version
    }
}

fn readers_a_builder_an_invalidator_and_a_refresher() {
    let cell = Arc::new(DogpileCell::with_clock(Policy::never_expires(), Noon));
    let source = Arc::new(Source { version: AtomicU64::new(1), builders: AtomicUsize::new(0) });
    let both = (Arc::clone(&cell), Arc::clone(&source));
    let clears = Arc::new(AtomicU64::new(0));
    let refresher = (below(2) == 0).then(|| {
        let source = Arc::clone(&source);
        let build = move |_: Option<&Arc<u64>>| {
            saw("built by the refresher");
            Ok::<u64, ()>(source.read())
        };
        Refresher::spawn(&cell, Duration::ZERO, build).expect("a thread")
    });
    let readers = (0..4).map(|_| {
        fork(&both, |(cell, source)| {
            let mut handle = cell.reader();
            let (mut generation, mut value) = (0, 0);
            for _ in 0..4 {
                let build = || {
                    saw("built by a reader");
                    source.read()
                };
                // One build after the other, each with what it finds: no value is older than one that was seen before.
                let seen = match below(6) {
                    0 => *cell.get_or_refresh(build),
                    1 => **handle.get_or_refresh(build),
                    2 => *Guard::into_arc(cell.load_or_refresh(build)),
                    3 => handle.get().map_or(value, |value| **value),
                    4 => cell.get().map_or(value, |value| *value),
                    _ => cell.snapshot().map_or(value, |snapshot| {
                        assert!(snapshot.generation >= generation, "G3");
                        generation = snapshot.generation;
                        saw(if snapshot.freshness == Freshness::Fresh { "fresh" } else { "stale" });
                        *snapshot.value
                    }),
                };
                assert!(seen >= value, "{seen} after {value} (G3)");
                value = seen;
                let now = cell.generation();
                assert!(now >= generation, "{now} after {generation} (G3)");
                generation = now;
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    let invalidator = fork(&(both, Arc::clone(&clears)), |((cell, source), clears)| {
        for _ in 0..3 {
            let version = source.version.fetch_add(1, SeqCst) + 1;
            if below(3) == 0 {
                clears.fetch_add(1, SeqCst);
                cell.clear();
                saw("cleared");
                assert!(cell.get().is_none_or(|value| *value >= version), "G4");
            } else {
                cell.invalidate();
            }
            if let Some(snapshot) = cell.snapshot() {
                assert!(snapshot.freshness != Freshness::Fresh || *snapshot.value >= version, "G4");
            }
            if below(2) == 0 {
                assert!(*cell.get_fresh_or_refresh(|| source.read()) >= version, "G4");
            }
        }
    });
    join_all(readers);
    invalidator.join().expect("shuttle stops at the first panic");
    drop(refresher);
    // Each `clear` keeps out one build at most.
    assert!(builds_kept_out(&cell) <= clears.load(SeqCst));
    assert!(!cell.is_refreshing());
}

/// Builds that were fenced off by a `clear`: neither published nor failed.
fn builds_kept_out<T, C>(cell: &DogpileCell<T, C>) -> u64 {
    let stats = cell.stats();
    stats.builds - stats.published - stats.failed - stats.panicked - stats.abandoned
}

fn builds_that_fail_panic_and_are_dropped() {
    let cell = Arc::new(DogpileCell::with_clock(Policy::never_expires(), Noon));
    let builders = Arc::new(AtomicUsize::new(0));
    let both = (Arc::clone(&cell), builders);
    let build = |builders: &AtomicUsize| {
        assert_eq!(builders.fetch_add(1, SeqCst), 0, "two leases at a time (G1)");
        yield_now();
        builders.fetch_sub(1, SeqCst);
    };
    let threads = (0..3).map(|_| {
        fork(&both, move |(cell, builders)| match below(3) {
            0 => {
                let result = cell.try_get_or_refresh(|| {
                    build(&builders);
                    Err::<u64, u64>(7)
                });
                if let Err(RefreshError::Build(error)) = result {
                    assert_eq!(*error, 7);
                    saw("failed");
                }
            }
            1 => {
                if let OwnedLookup::Elected(lease) = cell.lookup_owned() {
                    build(&builders);
                    if below(2) == 0 {
                        model::set_panicking(true);
                        drop(lease);
                        model::set_panicking(false);
                        saw("panicked");
                    } else {
                        drop(lease);
                        saw("abandoned");
                    }
                }
            }
            _ => {
                if let OwnedLookup::Pending(pending) = cell.lookup_owned()
                    && let Waited::Failed(error) = pending.wait()
                {
                    assert_eq!(error.downcast::<u64>().ok().as_deref(), Some(&7));
                    saw("shared an error");
                }
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    let tasks = (0..2).map(|_| {
        fork(&both, move |(cell, builders)| {
            let future = cell.get_or_refresh_async(|| {
                // Held over a suspension, by one at a time.
                let turn = Turn::begin(builders);
                async move {
                    let mut is_first = true;
                    std::future::poll_fn(move |cx| {
                        let _ = &turn;
                        if std::mem::take(&mut is_first) {
                            cx.waker().wake_by_ref();
                            return std::task::Poll::Pending;
                        }
                        std::task::Poll::Ready(())
                    })
                    .await;
                    1
                }
            });
            match block_on(future, Some(below(3))) {
                Some(value) => assert!(*value < 3),
                None => saw("task dropped"),
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    // Whatever the others do, this one comes to an end.
    let patient = fork(&both, move |(cell, builders)| {
        let value = *cell.get_or_refresh(|| {
            build(&builders);
            2
        });
        assert!(value == 1 || value == 2);
        saw("published");
    });
    join_all(threads);
    join_all(tasks);
    patient.join().expect("shuttle stops at the first panic");
    assert!(!cell.is_refreshing() && cell.get().is_some());
    assert_eq!(builds_kept_out(&cell), 0);
    if cell.stats().waits > 0 {
        saw("waited");
    }
}

/// As long as it lives, somebody builds.
struct Turn(Arc<AtomicUsize>);

impl Turn {
    fn begin(builders: Arc<AtomicUsize>) -> Self {
        assert_eq!(builders.fetch_add(1, SeqCst), 0, "two leases at a time (G1)");
        Self(builders)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

const LIMIT: Duration = Duration::from_nanos(10);

fn builds_that_hang_are_superseded() {
    let clock = ManualClock::new();
    let policy = Policy::never_expires().lease_timeout(LIMIT);
    let cell = Arc::new(DogpileCell::with_clock(policy, clock.clone()));
    let numbers = Arc::new(AtomicU64::new(1));
    let both = (Arc::clone(&cell), Arc::clone(&numbers));
    // Builds are numbered when they are elected, and publish in any order; only the latest election counts.
    let builders = (0..3).map(|_| {
        fork(&both, |(cell, numbers)| {
            for _ in 0..2 {
                let value = *cell.get_or_refresh(|| {
                    let number = numbers.fetch_add(1, SeqCst);
                    for _ in 0..below(4) {
                        yield_now();
                    }
                    number
                });
                assert!(value < numbers.load(SeqCst));
            }
        })
    });
    let builders: Vec<_> = builders.collect();
    let impatient = fork(&both, |(cell, _)| {
        let result = cell.try_get_or_refresh_timeout(LIMIT / 2, || Ok::<u64, ()>(0));
        if let Err(RefreshError::WaitTimeout) = result {
            saw("timed out");
        }
    });
    let timer = fork(&clock, |clock| {
        for _ in 0..4 {
            clock.advance(LIMIT);
            yield_now();
        }
    });
    join_all(builders);
    impatient.join().expect("shuttle stops at the first panic");
    timer.join().expect("shuttle stops at the first panic");
    let stats = cell.stats();
    if stats.superseded > 0 {
        saw("superseded");
    }
    if stats.waits > 0 {
        saw("waited");
    }
    assert_eq!(stats.published, 1, "whoever comes later finds it fresh");
    assert_eq!(stats.builds, 1 + stats.superseded);
    assert!(!cell.is_refreshing());
}
