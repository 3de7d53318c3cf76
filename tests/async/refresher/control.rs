//! What its owner asks of a refresher: `refresh_now`, `wait_ready_async`, `stop_timeout_async`.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{Policy, Refreshed, Refresher};

use super::{AHEAD, DUE, Polled, SECOND, is_left_alone, panicking, serves, spawned};
use crate::executors::{Executor, Spawner};
use crate::support::{
    Door, Hand, LookupExt, PATIENCE, TICK, TTL, cell, eventually, guarded, joined, never, unbuilt, until,
};

// `refresh_now`

#[test]
fn refresh_now_rebuilds_a_fresh_value_at_once() {
    for policy in [Policy::ttl(TTL), Policy::never_expires()] {
        let mut task = Polled::asleep(policy);
        task.refresher.refresh_now();
        task.goes_on();
        task.builds.begun(Some(1));
        task.serves(1);
        task.ends(Ok(Refreshed::New(2)));
        task.builds.none();
        task.serves(2);
    }
}

#[test]
fn refresh_now_ends_a_retry_pause_and_begins_the_next_one() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.builds_after(DUE, Some(1), Err("down"));
    task.refresher.refresh_now();
    task.goes_on();
    task.builds.begun(Some(1));
    task.ends(Err("still down"));
    task.builds.none();
    task.fails(2, "still down");
    task.begins_after(SECOND / 5, Some(1));
}

#[test]
fn refresh_now_during_its_build_asks_for_one_more() {
    for end in [Ok(Refreshed::New(2)), Ok(Refreshed::NotModified), Err("down")] {
        let mut task = Polled::asleep(Policy::ttl(TTL));
        task.begins_after(DUE, Some(1));
        for _ in 0..3 {
            task.refresher.refresh_now();
            task.goes_on();
            task.builds.none();
        }
        task.ends(end);
        task.builds.begun(Some(if end == Ok(Refreshed::New(2)) { 2 } else { 1 }));
        task.ends(Ok(Refreshed::New(3)));
        task.builds.none();
        assert_eq!(task.cell.stats().builds, 3);
    }
}

#[test]
fn refresh_now_after_a_panic_of_a_running_build_asks_for_one_more() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.begins_after(DUE, Some(1));
    task.refresher.refresh_now();
    task.goes_on();
    task.ends_with(panicking("no"));
    task.builds.begun(Some(1));
}

#[test]
fn refresh_now_waits_for_a_build_that_another_caller_began_before() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    let lease = task.cell.request_owned().no_cache().lookup().elected();
    task.refresher.refresh_now();
    task.goes_on();
    task.builds.none();
    lease.publish(2);
    task.goes_on();
    task.builds.begun(Some(2));
}

/// What began after the call is what was asked for.
#[test]
fn refresh_now_is_content_with_a_build_that_another_caller_begins_after_it() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.refresher.refresh_now();
    let lease = task.cell.request_owned().no_cache().lookup().elected();
    task.goes_on();
    task.builds.none();
    lease.publish(2);
    task.goes_on();
    task.builds.none();
    task.refresher.refresh_now();
    task.cell.set(3);
    task.goes_on();
    task.builds.none();
    task.builds_after(DUE, Some(3), Ok(Refreshed::New(4)));
    assert_eq!(task.cell.stats().builds, 3);
}

// `wait_ready_async`

#[test]
fn wait_ready_async_is_woken_by_the_first_build() {
    let Polled { cell, builds, mut task, refresher, .. } = Polled::new(Policy::ttl(TTL));
    let mut waits = Hand::new(refresher.wait_ready_async(Duration::MAX));
    waits.pending();
    task.pending();
    builds.end_with(|| Ok(Refreshed::New(1)));
    task.pending();
    assert!(waits.wakes() > 0 && waits.ready());
    assert!(Hand::new(refresher.wait_ready_async(Duration::ZERO)).ready());
    assert!(!waits.is_listed());
    serves(&cell, 1);
}

#[test]
fn wait_ready_async_waits_through_failures_until_the_time_is_over() {
    let Polled { cell: _cell, clock, builds, mut task, refresher, .. } = Polled::new(Policy::ttl(TTL));
    let mut waits = Hand::new(refresher.wait_ready_async(TTL));
    assert!(!Hand::new(refresher.wait_ready_async(Duration::ZERO)).ready());
    task.pending();
    waits.pending();
    builds.end_with(|| Err("down"));
    task.pending();
    waits.pending();
    clock.advance(SECOND);
    task.pending();
    builds.end_with(panicking("no"));
    task.pending();
    waits.pending();
    // The time runs from its beginning, whatever happened meanwhile.
    clock.advance(TTL - SECOND - TICK);
    task.pending();
    waits.pending();
    let before = waits.wakes();
    clock.advance(TICK);
    assert!(waits.wakes() > before);
    assert!(!waits.ready());
    assert!(!waits.is_listed());
}

#[test]
fn wait_ready_async_can_be_dropped() {
    let Polled { cell: _cell, builds, mut task, refresher, .. } = Polled::new(Policy::ttl(TTL));
    let mut waits = Hand::new(refresher.wait_ready_async(TTL));
    task.pending();
    waits.pending();
    let wakes = waits.wakes_handle();
    drop(waits);
    assert_eq!(Arc::strong_count(&wakes), 1);
    builds.end_with(|| Ok(Refreshed::New(1)));
    task.pending();
    assert_eq!(wakes.count(), 0);
}

#[test]
fn wait_ready_async_without_a_cell_returns_false() {
    let Polled { cell, refresher, .. } = Polled::new(Policy::ttl(TTL));
    drop(cell);
    assert!(!Hand::new(refresher.wait_ready_async(Duration::MAX)).ready());
}

// `stop_timeout_async`

#[test]
fn stop_timeout_async_ends_a_task_that_sleeps() {
    let Polled { cell, mut task, answered, refresher, .. } = Polled::asleep(Policy::ttl(TTL));
    let mut stops = Hand::new(refresher.stop_timeout_async(Duration::MAX));
    stops.pending();
    // Readers build again at once.
    is_left_alone(&cell);
    assert!(task.wakes() > answered);
    task.ready();
    assert!(stops.wakes() > 0 && stops.ready());
}

#[test]
fn stop_timeout_async_ends_a_task_that_builds_when_it_is_next_polled() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.begins_after(DUE, Some(1));
    let Polled { cell, builds, mut task, refresher, .. } = task;
    let mut stops = Hand::new(refresher.stop_timeout_async(TTL));
    stops.pending();
    assert!(cell.is_refreshing());
    task.ready();
    assert_eq!((builds.dropped(), cell.is_refreshing()), (2, false));
    assert!(stops.wakes() > 0 && stops.ready());
    is_left_alone(&cell);
}

#[test]
fn stop_timeout_async_returns_false_exactly_when_the_time_is_over() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.begins_after(DUE, Some(1));
    let Polled { cell, clock, mut task, refresher, .. } = task;
    let mut stops = Hand::new(refresher.stop_timeout_async(TTL));
    stops.pending();
    clock.advance(TTL - TICK);
    stops.pending();
    let before = stops.wakes();
    clock.advance(TICK);
    assert!(stops.wakes() > before && !stops.ready());
    assert!(!stops.is_listed());
    // The build has the lease until the task is polled; then it is dropped.
    serves(&cell, 1);
    task.ready();
    is_left_alone(&cell);
}

#[test]
fn stop_timeout_async_with_no_time_only_looks() {
    let task = Polled::asleep(Policy::ttl(TTL));
    let Polled { cell, mut task, refresher, .. } = task;
    assert!(!Hand::new(refresher.stop_timeout_async(Duration::ZERO)).ready());
    task.ready();
    is_left_alone(&cell);
    // One whose task is gone already.
    let Polled { cell: _cell, task, refresher, .. } = Polled::asleep(Policy::ttl(TTL));
    drop(task);
    assert!(Hand::new(refresher.stop_timeout_async(Duration::ZERO)).ready());
}

#[test]
fn stop_timeout_of_a_task_returns_true_when_that_has_ended() {
    let Polled { cell: _cell, mut task, refresher, .. } = Polled::asleep(Policy::ttl(TTL));
    let stops = std::thread::spawn(move || refresher.stop_timeout(Duration::MAX));
    eventually("the task is stopped", || task.poll().is_ready());
    assert!(joined(stops));
    let mut building = Polled::asleep(Policy::ttl(TTL));
    building.begins_after(DUE, Some(1));
    assert!(!building.refresher.stop_timeout(Duration::ZERO));
    building.task.ready();
}

#[test]
fn stop_timeout_async_that_is_dropped_has_stopped_it_all_the_same() {
    let Polled { cell, mut task, refresher, .. } = Polled::asleep(Policy::ttl(TTL));
    let mut stops = Hand::new(refresher.stop_timeout_async(TTL));
    stops.pending();
    let wakes = stops.wakes_handle();
    drop(stops);
    assert_eq!(Arc::strong_count(&wakes), 1);
    task.ready();
    assert_eq!(wakes.count(), 0);
    is_left_alone(&cell);
}

#[test]
fn stop_timeout_async_of_a_thread_is_woken_when_its_build_has_ended() {
    let (cell, clock) = cell::<u32>();
    let (show, begun) = channel();
    let (end, ended) = channel::<u32>();
    let build = move |_| {
        show.send(()).unwrap();
        ended.recv_timeout(PATIENCE)
    };
    let refresher = Refresher::spawn(&cell, AHEAD, build).unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    let mut stops = Hand::new(refresher.stop_timeout_async(TTL));
    stops.pending();
    end.send(1).unwrap();
    eventually("the task is woken", || stops.wakes() > 0);
    assert!(stops.ready());
    assert_eq!((cell.get().as_deref(), cell.is_refreshing()), (Some(&1), false));
    is_left_alone(&cell);
    clock.advance(TTL);
}

#[test]
fn stop_timeout_async_of_a_thread_whose_build_goes_on_returns_false() {
    let (cell, clock) = cell::<u32>();
    let (show, begun) = channel();
    let (end, ended) = channel::<u32>();
    let build = move |_| {
        show.send(()).unwrap();
        ended.recv_timeout(PATIENCE)
    };
    let refresher = Refresher::spawn(&cell, AHEAD, build).unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    let mut stops = Hand::new(refresher.stop_timeout_async(TTL));
    stops.pending();
    clock.advance(TTL);
    assert!(!stops.ready());
    // Its build is published when it ends; a reader waits for it.
    let mut reader = Hand::new(cell.get_or_refresh_async(unbuilt));
    reader.pending();
    end.send(1).unwrap();
    assert_eq!(*reader.eventually_ready(), 1);
}

/// It would wait for itself; it is dropped instead, with the build that awaits it.
#[test]
fn a_build_that_awaits_the_end_of_its_own_refresher_is_dropped() {
    let (cell, _clock) = cell::<u32>();
    let own = Arc::new(Mutex::new(None::<Refresher>));
    let (refresher, task) = spawned(|spawn| {
        let own = Arc::clone(&own);
        Refresher::spawn_async(&cell, AHEAD, spawn, move |_| {
            let refresher = own.lock().unwrap().take().expect("a build begins once");
            async move {
                refresher.stop_timeout_async(Duration::MAX).await;
                never::<u32>().await
            }
        })
        .unwrap()
    });
    *own.lock().unwrap() = Some(refresher);
    let mut task = Hand::new(task);
    task.pending();
    assert!(task.wakes() > 0);
    task.ready();
    assert_eq!((cell.is_refreshing(), cell.stats().abandoned), (false, 1));
    is_left_alone(&cell);
}

// Real executors.

async fn begins_and_stops(spawner: Spawner) {
    let (cell, _clock) = cell::<u32>();
    let door = Door::default();
    let build = {
        let door = door.clone();
        move |_| {
            let door = door.clone();
            async move {
                door.pass().await;
                7
            }
        }
    };
    let refresher = Refresher::spawn_async(&cell, AHEAD, |task| spawner.spawn(task), build).unwrap();
    let refresher = Arc::new(refresher);
    let waits: Vec<_> = (0..3)
        .map(|_| {
            let refresher = Arc::clone(&refresher);
            spawner.spawn(async move { refresher.wait_ready_async(Duration::MAX).await })
        })
        .collect();
    until("all wait", || cell.stats().waits >= 3).await;
    door.open();
    for waits in waits {
        assert!(waits.join().await);
    }
    assert_eq!(cell.get().as_deref(), Some(&7));
    let refresher = loop {
        // A task that has ended may not be dropped yet.
        if Arc::strong_count(&refresher) == 1 {
            break Arc::into_inner(refresher).unwrap();
        }
        futures_lite::future::yield_now().await;
    };
    assert!(refresher.stop_timeout_async(Duration::MAX).await);
    is_left_alone(&cell);
}

#[test]
fn on_every_executor() {
    for executor in [Executor::Threads, Executor::OneThread, Executor::Smol, Executor::Bare] {
        executor.run(begins_and_stops);
    }
}

#[test]
fn on_the_systems_clock_the_time_runs_out() {
    guarded(|| {
        let cell = Arc::new(dogpile::DogpileCell::<u32>::new(TTL));
        let build = |_| never::<u32>();
        let refresher =
            Refresher::spawn_async(&cell, SECOND, |task| smol::spawn(task).detach(), build).unwrap();
        futures_lite::future::block_on(async {
            assert!(!refresher.wait_ready_async(Duration::from_millis(20)).await);
            assert!(refresher.stop_timeout_async(Duration::MAX).await);
        });
    });
}
