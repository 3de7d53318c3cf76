//! A refresher takes every kind of cell, and every kind of build.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dogpile::{
    DogpileCell, Drain, Freshness, LazyDogpile, ManualClock, Policy, ReaderArc, Refreshed, Refresher,
    SyncReaderCell,
};

use super::{AHEAD, Bed, Builds, DUE, Ended, SECOND, panicking, unbuilt};
use crate::support::{TICK, TTL, eventually};

// What a build returns, and how its cell is given.

#[test]
fn a_build_returns_a_value_or_a_refreshed_or_a_result_of_one_of_them() {
    let values = || Arc::new(DogpileCell::<u32>::new(TTL));
    let cells = [values(), values(), values(), values()];
    let refreshers = [
        Refresher::spawn(&cells[0], SECOND, |_| 1),
        Refresher::spawn(&cells[1], SECOND, |_| Refreshed::New(1)),
        Refresher::spawn(&cells[2], SECOND, |_| "1".parse::<u32>()),
        Refresher::spawn(&cells[3], SECOND, |_| Ok::<_, String>(Refreshed::NewFor(1, TTL))),
    ];
    for (cell, refresher) in cells.iter().zip(refreshers) {
        assert!(refresher.unwrap().wait_ready(Duration::MAX));
        assert_eq!(cell.get().as_deref(), Some(&1));
    }
}

#[test]
fn a_cell_is_given_as_a_static_or_as_an_arc_or_a_reference_to_one() {
    static CELL: DogpileCell<u32> = DogpileCell::new(TTL);
    let cell = Arc::new(DogpileCell::<u32>::new(TTL));
    let moved = Arc::clone(&cell);
    for refresher in [
        Refresher::spawn(&CELL, SECOND, |_| 1),
        Refresher::spawn(&cell, SECOND, |_| 1),
        Refresher::spawn(moved, SECOND, |_| 1),
    ] {
        assert!(refresher.unwrap().wait_ready(Duration::MAX));
    }
    // It keeps none of them alive.
    eventually("it is let go of", || Arc::strong_count(&cell) == 1);
}

// `LazyDogpile`

#[test]
fn a_lazy_cell_is_rebuilt_by_its_own_build() {
    static BUILT: AtomicU32 = AtomicU32::new(0);
    static CELL: LazyDogpile<u32> =
        LazyDogpile::with_policy(Policy::never_expires(), || BUILT.fetch_add(1, Ordering::SeqCst) + 1);
    let refresher = CELL.spawn_refresher(SECOND).unwrap();
    assert!(refresher.wait_ready(Duration::MAX));
    assert_eq!(
        (*CELL.get_or_refresh(), *CELL.load_or_refresh(), **CELL.reader().get_or_refresh()),
        (1, 1, 1)
    );
    CELL.invalidate();
    eventually("it is rebuilt", || CELL.get().as_deref() == Some(&2));
    refresher.refresh_now();
    eventually("it is rebuilt", || CELL.get().as_deref() == Some(&3));
    assert_eq!(CELL.cell().stats().builds, 3);
    drop(refresher);
    CELL.invalidate();
    assert_eq!(*CELL.get_or_refresh(), 4);
}

#[test]
fn a_lazy_cell_whose_build_fails_shows_its_error() {
    static IS_DOWN: AtomicU32 = AtomicU32::new(1);
    static CELL: LazyDogpile<u32, fn() -> io::Result<u32>> = LazyDogpile::new(TTL, || {
        if IS_DOWN.load(Ordering::SeqCst) == 0 { Ok(1) } else { Err(ErrorKind::NotFound.into()) }
    });
    let refresher = CELL.spawn_refresher(SECOND).unwrap();
    eventually("it fails", || refresher.last_error().is_some_and(|error| error.is::<io::Error>()));
    assert!(!refresher.wait_ready(Duration::ZERO));
    IS_DOWN.store(0, Ordering::SeqCst);
    refresher.refresh_now();
    assert!(refresher.wait_ready(Duration::MAX));
    assert_eq!(*CELL.try_get_or_refresh().unwrap(), 1);
}

#[test]
fn a_lazy_cell_is_rebuilt_by_another_build_that_is_given_the_previous_value() {
    let clock = Bed::default();
    let cell = Arc::new(LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), unbuilt));
    let (builds, build) = Builds::new();
    let refresher = Refresher::spawn(&cell, AHEAD, build).unwrap();
    builds.begins(None);
    builds.ends(Ok(Refreshed::New(1)));
    clock.sleeps_until(DUE);
    clock.manual.advance(DUE);
    builds.begins(Some(1));
    clock.manual.advance(TTL);
    assert_eq!((*cell.get_or_refresh(), **cell.reader().get_or_refresh()), (1, 1));
    builds.ends(Ok(Refreshed::NotModified));
    clock.sleeps_until(DUE + TTL + DUE);
    assert_eq!((*cell.get_or_refresh(), cell.cell().generation()), (1, 2));
    drop(cell);
    builds.end();
    drop(refresher);
}

#[test]
fn the_cell_inside_a_lazy_one_is_rebuilt() {
    static CELL: LazyDogpile<u32> = LazyDogpile::with_policy(Policy::never_expires(), unbuilt);
    let refresher = Refresher::spawn(CELL.cell(), SECOND, |_| 1).unwrap();
    assert!(refresher.wait_ready(Duration::MAX));
    CELL.invalidate();
    assert_eq!(*CELL.get_or_refresh(), 1);
}

// `SyncReaderCell`

type Log = Arc<Mutex<Vec<(u32, Option<String>)>>>;

/// A `SyncReaderCell` with a refresher that has published 1 at the tick 0 and sleeps.
struct Tracked {
    clock: Bed,
    cell: Arc<SyncReaderCell<u32, Bed>>,
    builds: Builds<ReaderArc<u32>>,
    refresher: Refresher,
    /// What was finalised, and the name of the thread that did it.
    log: Log,
}

const DRAINS: [Drain; 3] = [Drain::Background, Drain::Wait(Duration::MAX), Drain::Wait(Duration::ZERO)];

impl Tracked {
    #[track_caller]
    fn asleep(drain: Drain) -> Self {
        Self::asleep_with(drain, |cell, build| Refresher::spawn(cell, AHEAD, build).unwrap())
    }

    #[track_caller]
    fn asleep_with(
        drain: Drain,
        spawn: impl FnOnce(&Arc<SyncReaderCell<u32, Bed>>, TrackedBuild) -> Refresher,
    ) -> Self {
        let (clock, log) = (Bed::default(), Log::default());
        let finalizer = {
            let log = Arc::clone(&log);
            move |value| {
                let thread = thread::current().name().map(str::to_owned);
                log.lock().unwrap().push((value, thread));
            }
        };
        let cell = SyncReaderCell::with_clock(Policy::ttl(TTL), clock.clone(), drain, finalizer);
        let cell = Arc::new(cell);
        let (builds, build) = Builds::new();
        let refresher = spawn(&cell, Box::new(build));
        let this = Self { clock, cell, builds, refresher, log };
        this.builds.begins(None);
        this.builds.ends(Ok(Refreshed::New(1)));
        this.clock.sleeps_until(DUE);
        this
    }

    fn finalised(&self) -> Vec<u32> {
        self.log.lock().unwrap().iter().map(|(value, _)| *value).collect()
    }

    #[track_caller]
    fn serves(&self, value: u32) {
        assert_eq!(*self.cell.get_or_refresh(unbuilt), value);
        assert_eq!(*self.cell.load_or_refresh(unbuilt), value);
        assert_eq!(self.cell.get().as_deref(), Some(&value));
    }
}

type TrackedBuild = Box<dyn FnMut(Option<ReaderArc<u32>>) -> Ended + Send>;

#[test]
fn a_sync_reader_cell_is_rebuilt_and_its_old_values_are_finalised() {
    for drain in DRAINS {
        let tracked = Tracked::asleep(drain);
        for value in 1..=3 {
            tracked.clock.manual.advance(DUE);
            // The build is a reader of the previous value.
            let previous = tracked.builds.previous();
            assert_eq!((previous.as_deref(), tracked.cell.readers() > 0), (Some(&value), true));
            drop(previous);
            tracked.serves(value);
            tracked.builds.ends(Ok(Refreshed::New(value + 1)));
            tracked.clock.sleeps_until(tracked.clock.time() + DUE);
            tracked.serves(value + 1);
        }
        tracked.cell.synchronize();
        assert_eq!(tracked.finalised(), [1, 2, 3]);
        assert_eq!((tracked.cell.readers(), tracked.cell.retired(), tracked.cell.stats().builds), (0, 0, 4));
        // Only one that waits for the readers finalises itself.
        let by_itself = |name: &Option<String>| name.as_deref() == Some("dogpile-refresher");
        let log = tracked.log.lock().unwrap();
        match drain {
            Drain::Background => assert!(!log.iter().any(|(_, name)| by_itself(name)), "{log:?}"),
            Drain::Wait(Duration::MAX) => assert!(log.iter().all(|(_, name)| by_itself(name)), "{log:?}"),
            _ => {}
        }
    }
}

#[test]
fn not_modified_keeps_the_same_value_and_finalises_nothing() {
    for drain in DRAINS {
        for is_read in [false, true] {
            let tracked = Tracked::asleep(drain);
            let reader = tracked.cell.get().unwrap();
            let held = is_read.then(|| reader.clone());
            for generation in 2..=4 {
                tracked.clock.manual.advance(DUE);
                tracked.builds.begins(Some(1));
                tracked.builds.ends(Ok(Refreshed::NotModified));
                // There is nothing to wait for, even with a reader inside.
                tracked.clock.sleeps_until(tracked.clock.time() + DUE);
                assert_eq!(
                    (tracked.cell.generation(), tracked.cell.freshness()),
                    (generation, Freshness::Fresh)
                );
                assert!(ReaderArc::ptr_eq(&reader, &tracked.cell.get().unwrap()));
            }
            drop((reader, held));
            assert_eq!((tracked.cell.readers(), tracked.cell.retired()), (0, 0));
            tracked.cell.synchronize();
            assert_eq!(tracked.finalised(), []);
            assert_eq!(tracked.refresher.consecutive_failures(), 0);
            // Replaced by a new one, it is finalised once.
            tracked.clock.manual.advance(DUE);
            tracked.builds.begins(Some(1));
            tracked.builds.ends(Ok(Refreshed::New(2)));
            tracked.clock.sleeps_until(tracked.clock.time() + DUE);
            tracked.cell.synchronize();
            assert_eq!(tracked.finalised(), [1]);
        }
    }
}

#[test]
fn under_drain_wait_it_waits_for_the_readers_of_the_value_that_it_has_replaced() {
    let tracked = Tracked::asleep(Drain::Wait(Duration::MAX));
    let reader = tracked.cell.get().unwrap();
    tracked.clock.manual.advance(DUE);
    tracked.builds.begins(Some(1));
    tracked.builds.ends(Ok(Refreshed::New(2)));
    eventually("it is published", || tracked.cell.generation() == 2);
    tracked.serves(2);
    // At most two generations are alive: the next build does not begin before the reader has left.
    tracked.clock.manual.advance(10 * TTL);
    tracked.serves(2);
    assert_eq!((tracked.cell.is_refreshing(), tracked.cell.retired()), (true, 1));
    tracked.builds.none();
    assert_eq!((*reader, tracked.finalised()), (1, vec![]));
    drop(reader);
    tracked.builds.begins(Some(2));
    assert_eq!(tracked.finalised(), [1]);
}

#[test]
fn a_build_that_fails_or_panics_leaves_the_value_of_a_sync_reader_cell_in_place() {
    for drain in DRAINS {
        let tracked = Tracked::asleep(drain);
        tracked.clock.manual.advance(DUE);
        tracked.builds.begins(Some(1));
        tracked.builds.ends(Err("down"));
        tracked.clock.sleeps_until(DUE + SECOND / 10);
        tracked.serves(1);
        tracked.clock.manual.advance(SECOND / 10);
        tracked.builds.begins(Some(1));
        tracked.builds.ends_with(panicking("no"));
        tracked.clock.sleeps_until(DUE + 3 * SECOND / 10);
        tracked.serves(1);
        assert_eq!(tracked.refresher.last_error().unwrap().to_string(), "the build panicked: no");
        assert_eq!((tracked.cell.readers(), tracked.finalised()), (0, vec![]));
    }
}

#[test]
fn one_that_waits_for_readers_has_not_ended() {
    let tracked = Tracked::asleep(Drain::Wait(Duration::MAX));
    let reader = tracked.cell.get().unwrap();
    tracked.clock.manual.advance(DUE);
    tracked.builds.begins(Some(1));
    tracked.builds.ends(Ok(Refreshed::New(2)));
    eventually("it is published", || tracked.cell.generation() == 2);
    let Tracked { cell, builds, refresher, log, .. } = tracked;
    assert!(!refresher.stop_timeout(Duration::ZERO));
    assert!(log.lock().unwrap().is_empty());
    drop(reader);
    builds.end();
    assert!(!cell.is_refreshing());
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[test]
fn wait_ready_leaves_no_reader_in_a_sync_reader_cell() {
    let cell = Arc::new(SyncReaderCell::with_clock(
        Policy::ttl(TTL),
        ManualClock::new(),
        Drain::Wait(Duration::MAX),
        drop::<u32>,
    ));
    let refresher = Refresher::spawn(&cell, SECOND, |_| 1).unwrap();
    assert!(refresher.wait_ready(Duration::MAX));
    assert!(refresher.wait_ready(Duration::ZERO));
    // The refresher itself may still be about to drop what it has published.
    eventually("there is no reader", || cell.readers() == 0);
}

#[test]
fn asleep_it_does_not_hold_a_sync_reader_cell() {
    let tracked = Tracked::asleep(Drain::Background);
    assert_eq!(Arc::strong_count(&tracked.cell), 1);
    drop(tracked.cell);
    tracked.builds.end();
    // The value that was current is dropped, not finalised.
    assert!(tracked.log.lock().unwrap().is_empty());
}

#[test]
fn every_read_of_a_sync_reader_cell_wakes_one_that_rests() {
    let reads: [fn(&SyncReaderCell<u32, Bed>); 6] = [
        |cell| drop(cell.get()),
        |cell| drop(cell.load()),
        |cell| drop(cell.get_or_refresh(unbuilt)),
        |cell| drop(cell.load_or_refresh(unbuilt)),
        |cell| drop(cell.try_get_or_refresh(super::untried)),
        |cell| drop(cell.request().get(unbuilt)),
    ];
    for read in reads {
        let tracked = Tracked::asleep_with(Drain::Wait(Duration::MAX), |cell, build| {
            Refresher::options().rest_when_unused().spawn(cell, AHEAD, build).unwrap()
        });
        tracked.clock.manual.advance(DUE + TTL + TICK);
        eventually("it rests", || tracked.clock.refreshers().is_empty());
        assert_eq!(tracked.cell.stats().builds, 1);
        // A read that finds the lock taken leaves the waking to the next one.
        let has_begun = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !has_begun.load(Ordering::Relaxed) {
                    read(&tracked.cell);
                    thread::yield_now();
                }
            });
            tracked.builds.begins(Some(1));
            has_begun.store(true, Ordering::Relaxed);
        });
    }
}
