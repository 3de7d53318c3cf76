//! A refresher that is a task takes every kind of cell, and every kind of build.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{
    Drain, Freshness, LazyDogpile, ManualClock, Policy, ReaderArc, Refreshed, Refresher, SyncReaderCell,
};

use super::{AHEAD, DUE, spawned};
use crate::support::{Door, Hand, TTL, cell, unbuilt};

#[test]
fn a_build_returns_a_value_or_a_refreshed_or_a_result_of_one_of_them() {
    let cells = [(); 4].map(|()| cell::<u32>().0);
    let run = |task| Hand::new(task).pending().wakes();
    let refreshers = [
        Refresher::spawn_async(&cells[0], AHEAD, run, |_| async { 1 }),
        Refresher::spawn_async(&cells[1], AHEAD, run, |_| async { Refreshed::New(1) }),
        Refresher::spawn_async(&cells[2], AHEAD, run, |_| async { "1".parse::<u32>() }),
        Refresher::spawn_async(&cells[3], AHEAD, run, |_| async {
            Ok::<_, String>(Refreshed::NewFor(1, TTL))
        }),
    ];
    for (cell, refresher) in cells.iter().zip(refreshers) {
        assert!(refresher.is_ok());
        assert_eq!(cell.get().as_deref(), Some(&1));
    }
}

#[test]
fn a_lazy_cell_is_rebuilt_by_a_task() {
    let clock = ManualClock::new();
    let cell = Arc::new(LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), unbuilt::<u32>));
    let (refresher, task) = spawned(|spawn| {
        let build = |previous: Option<Arc<u32>>| async move { previous.map_or(1, |previous| *previous + 1) };
        Refresher::spawn_async(&cell, AHEAD, spawn, build).unwrap()
    });
    let mut task = Hand::new(task);
    for value in 1..=3 {
        task.pending();
        assert_eq!(*Hand::new(cell.get_or_refresh_async()).ready(), value);
        clock.advance(DUE);
    }
    drop(cell);
    task.ready();
    drop(refresher);
}

/// A `SyncReaderCell` with a refresher, whose task is polled by hand.
struct Tracked {
    clock: ManualClock,
    cell: Arc<SyncReaderCell<u32, ManualClock>>,
    door: Door,
    task: Hand<'static, ()>,
    refresher: Refresher,
    finalised: Arc<Mutex<Vec<u32>>>,
}

/// Builds 1, then what `next` makes of the previous value, when the door is open.
fn tracked(drain: Drain, next: fn(u32) -> Refreshed<u32>) -> Tracked {
    let (clock, finalised) = (ManualClock::new(), Arc::<Mutex<Vec<u32>>>::default());
    let finalizer = {
        let finalised = Arc::clone(&finalised);
        move |value| finalised.lock().unwrap().push(value)
    };
    let cell = Arc::new(SyncReaderCell::with_clock(Policy::ttl(TTL), clock.clone(), drain, finalizer));
    let door = Door::default();
    let (refresher, task) = spawned(|spawn| {
        let door = door.clone();
        let build = move |previous: Option<ReaderArc<u32>>| {
            let door = door.clone();
            async move {
                let Some(previous) = previous else { return Refreshed::New(1) };
                door.pass().await;
                next(*previous)
            }
        };
        Refresher::spawn_async(&cell, AHEAD, spawn, build).unwrap()
    });
    let mut task = Hand::new(task);
    task.pending();
    assert_eq!(cell.get().as_deref(), Some(&1));
    Tracked { clock, cell, door, task, refresher, finalised }
}

#[test]
fn under_drain_wait_the_task_waits_for_the_readers_and_finalises() {
    let Tracked { clock, cell, door, mut task, refresher, finalised } =
        tracked(Drain::Wait(Duration::MAX), |previous| Refreshed::New(previous + 1));
    let reader = cell.get().unwrap();
    clock.advance(DUE);
    task.pending();
    // The build is a reader too.
    assert!(cell.readers() > 1 && cell.is_refreshing());
    door.open();
    task.pending();
    assert_eq!((cell.get().as_deref(), cell.is_refreshing(), cell.retired()), (Some(&2), true, 1));
    let before = task.wakes();
    drop(reader);
    assert!(task.wakes() > before);
    task.pending();
    assert_eq!((cell.is_refreshing(), finalised.lock().unwrap().clone()), (false, vec![1]));
    drop(refresher);
    task.ready();
}

#[test]
fn a_task_that_is_stopped_while_it_waits_for_readers_leaves_the_rest_to_the_background() {
    let Tracked { clock, cell, door, mut task, refresher, finalised } =
        tracked(Drain::Wait(Duration::MAX), |previous| Refreshed::New(previous + 1));
    let reader = cell.get().unwrap();
    door.open();
    clock.advance(DUE);
    task.pending();
    assert_eq!((cell.generation(), cell.is_refreshing()), (2, true));
    let mut stops = Hand::new(refresher.stop_timeout_async(TTL));
    stops.pending();
    task.ready();
    assert!(stops.ready());
    assert_eq!((cell.is_refreshing(), cell.retired()), (false, 1));
    drop(reader);
    cell.synchronize();
    assert_eq!(*finalised.lock().unwrap(), [1]);
}

#[test]
fn not_modified_keeps_the_same_value_and_finalises_nothing() {
    for drain in [Drain::Background, Drain::Wait(Duration::MAX), Drain::Wait(Duration::ZERO)] {
        let Tracked { clock, cell, door, mut task, refresher, finalised } =
            tracked(drain, |_| Refreshed::NotModified);
        let reader = cell.get().unwrap();
        door.open();
        for generation in 2..=4 {
            clock.advance(DUE);
            // There is nothing to wait for, even with a reader inside.
            task.pending();
            assert_eq!((cell.generation(), cell.freshness()), (generation, Freshness::Fresh));
            assert_eq!((cell.is_refreshing(), cell.retired(), cell.readers()), (false, 0, 1));
            assert!(ReaderArc::ptr_eq(&reader, &cell.get().unwrap()));
        }
        drop(reader);
        cell.synchronize();
        assert!(finalised.lock().unwrap().is_empty());
        drop(refresher);
    }
}
