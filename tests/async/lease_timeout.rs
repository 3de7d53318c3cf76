//! A build that never ends is superseded, and its late result fenced off.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{DogpileCell, Drain, Freshness, ManualClock, Policy, RefreshError, SyncReaderCell, Waited};

use crate::support::{Cell, Door, Hand, LookupExt, TICK, TTL, cell_with, eventually, guarded, joined, never};

const LEASE: Duration = Duration::from_secs(3);

fn impatient() -> (Cell<u32>, ManualClock) {
    cell_with(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO).lease_timeout(LEASE))
}

#[test]
fn tasks_that_wait_are_woken_when_the_time_is_over_and_one_supersedes() {
    let (cell, clock) = impatient();
    let door = Door::default();
    let mut builder = Hand::new(cell.get_or_refresh_async(|| async {
        door.pass().await;
        1
    }));
    builder.pending();
    let second = Door::default();
    let build = || async {
        second.pass().await;
        2
    };
    let mut tasks: Vec<_> = (0..5).map(|_| Hand::new(cell.get_or_refresh_async(build))).collect();
    for task in &mut tasks {
        task.pending();
    }
    clock.advance(LEASE);
    for task in &mut tasks {
        // Woken or not, it is not yet time.
        task.pending();
    }
    assert_eq!(cell.stats().builds, 1);
    let before: Vec<_> = tasks.iter().map(Hand::wakes).collect();
    clock.advance(TICK);
    assert!(tasks.iter().zip(before).all(|(task, before)| task.wakes() > before));
    for task in &mut tasks {
        task.pending();
    }
    assert_eq!((cell.stats().builds, cell.stats().superseded), (2, 1));
    second.open();
    let value = tasks[0].ready();
    assert_eq!(*value, 2);
    for task in &mut tasks[1..] {
        assert!(Arc::ptr_eq(&task.ready(), &value));
    }
    // The late one does not count; its caller gets what the cell has.
    door.open();
    assert!(Arc::ptr_eq(&builder.ready(), &value));
    assert_eq!((cell.generation(), cell.get().as_deref()), (1, Some(&2)));
}

#[test]
fn a_late_error_does_not_count_either() {
    let (cell, clock) = impatient();
    let door = Door::default();
    let mut builder = Hand::new(cell.try_get_or_refresh_async(|| async {
        door.pass().await;
        Err("late")
    }));
    builder.pending();
    clock.advance(LEASE + TICK);
    let mut second = Hand::new(cell.get_or_refresh_async(never));
    second.pending();
    let mut waits = Hand::new(cell.try_get_or_refresh_async(|| async { Ok::<_, &str>(3) }));
    waits.pending();
    door.open();
    assert!(matches!(builder.ready(), Err(RefreshError::Build(_))));
    // No waiter of the other build is woken by it.
    assert_eq!(waits.pending().wakes(), 0);
    assert!(cell.is_refreshing());
    drop(second);
    assert_eq!(*waits.ready().unwrap(), 3);
}

#[test]
fn a_superseded_build_that_is_cancelled_takes_no_lease_away() {
    let (cell, clock) = impatient();
    let mut first = Hand::new(cell.get_or_refresh_async(never));
    first.pending();
    clock.advance(LEASE + TICK);
    let door = Door::default();
    let mut second = Hand::new(cell.get_or_refresh_async(|| async {
        door.pass().await;
        2
    }));
    second.pending();
    let mut waits = Hand::new(cell.get_or_refresh_async(|| async { 3 }));
    waits.pending();
    drop(first);
    assert!(cell.is_refreshing());
    waits.pending();
    door.open();
    assert_eq!((*second.ready(), *waits.ready()), (2, 2));
}

#[test]
fn every_lease_is_timed_anew() {
    let (cell, clock) = impatient();
    let mut builders = Vec::new();
    for round in 1..=4 {
        let mut builder = Hand::new(cell.get_or_refresh_async(never));
        builder.pending();
        builders.push(builder);
        assert_eq!(cell.stats().builds, round);
        clock.advance(LEASE + TICK);
    }
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { 7 })).ready(), 7);
    assert_eq!(cell.stats().superseded, 4);
}

#[test]
fn a_place_is_abandoned_when_the_time_is_over() {
    let (cell, clock) = impatient();
    let lease = cell.lookup().elected();
    let mut owned = Hand::new(cell.lookup_owned().pending());
    let mut borrowed = Hand::new(cell.lookup().pending());
    owned.pending();
    borrowed.pending();
    clock.advance(LEASE + TICK);
    assert!(owned.wakes() > 0 && borrowed.wakes() > 0);
    assert!(matches!(owned.ready(), Waited::Abandoned));
    assert!(matches!(borrowed.ready(), Waited::Abandoned));
    drop(lease);
}

#[test]
fn a_task_that_has_gone_leaves_nothing_with_the_clock() {
    let (cell, clock) = impatient();
    let _lease = cell.lookup().elected();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    task.pending();
    let wakes = task.wakes_handle();
    drop(task);
    clock.advance(LEASE + TICK);
    assert_eq!((Arc::strong_count(&wakes), wakes.count()), (1, 0));
}

#[test]
fn a_thread_and_a_task_are_woken_by_the_same_clock() {
    let (cell, clock) = impatient();
    let mut builder = Hand::new(cell.get_or_refresh_async(never));
    builder.pending();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 7 }));
    task.pending();
    let thread = {
        let cell = Arc::clone(&cell);
        std::thread::spawn(move || cell.get_or_refresh(|| 7))
    };
    eventually("the thread waits", || cell.stats().waits == 2);
    clock.advance(LEASE + TICK);
    assert!(task.wakes() > 0);
    let value = loop {
        // The thread may be the one that supersedes.
        if let std::task::Poll::Ready(value) = task.poll() {
            break value;
        }
        eventually("the thread publishes", || cell.freshness() == Freshness::Fresh);
    };
    assert!(Arc::ptr_eq(&value, &joined(thread)));
    assert_eq!((cell.stats().builds, cell.stats().superseded), (2, 1));
}

#[test]
fn a_build_of_a_sync_reader_cell_is_superseded_and_what_comes_late_is_finalised() {
    let (clock, log) = (ManualClock::new(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let finalizer = {
        let log = Arc::clone(&log);
        move |value| log.lock().unwrap().push(value)
    };
    let policy = Policy::ttl(TTL).lease_timeout(LEASE);
    let cell = SyncReaderCell::with_clock(policy, clock.clone(), Drain::Wait(Duration::MAX), finalizer);
    let door = Door::default();
    let mut late = Hand::new(cell.get_or_refresh_async(|| async {
        door.pass().await;
        1
    }));
    late.pending();
    let mut second = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
    second.pending();
    clock.advance(LEASE + TICK);
    assert_eq!((second.wakes() > 0, *second.ready()), (true, 2));
    door.open();
    assert_eq!(*late.ready(), 2);
    cell.synchronize();
    eventually("what was not published is finalised", || *log.lock().unwrap() == [1]);
    assert!(!cell.is_refreshing());
}

/// With the clock of the system, whose alarm is a timer of its own: no executor has to have one.
#[test]
fn with_the_clock_of_the_system_it_works_on_any_executor() {
    guarded(|| {
        let policy = Policy::ttl(TTL).lease_timeout(Duration::from_millis(20));
        let cell = DogpileCell::with_policy(policy);
        let mut builder = Hand::new(cell.get_or_refresh_async(never));
        builder.pending();
        let value = futures_lite::future::block_on(cell.get_or_refresh_async(|| async { 7 }));
        assert_eq!((*value, cell.stats().superseded), (7, 1));
        // A drain that takes too long, likewise.
        let drain = Drain::Wait(Duration::from_millis(20));
        let cell = SyncReaderCell::with_policy(Policy::ttl(TTL), drain, drop::<u32>);
        let reader = cell.set(1);
        cell.invalidate();
        assert_eq!(*futures_lite::future::block_on(cell.get_or_refresh_async(|| async { 2 })), 2);
        assert_eq!((*reader, cell.retired()), (1, 1));
    });
}
