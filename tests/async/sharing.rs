//! Tasks and threads share one cell and one lease.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dogpile::{Freshness, Policy, RefreshError, SharedError};

use crate::support::{
    Cell, Door, Hand, LookupExt, Room, TTL, cell, cell_with, eventually, joined, never, panic_as_planned,
    panics_as_planned, stale_cell, untried,
};

/// A thread that waits for the build of another caller, or builds `own`.
fn waiting_thread(cell: &Cell<u32>, own: u32) -> JoinHandle<Arc<u32>> {
    let before = cell.stats().waits;
    let thread = {
        let cell = Arc::clone(cell);
        thread::spawn(move || cell.get_or_refresh(|| own))
    };
    eventually("the thread waits", || cell.stats().waits > before);
    thread
}

#[test]
fn a_lease_wakes_threads_and_tasks() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let thread = waiting_thread(&cell, 0);
    let mut tasks = [1, 2, 3].map(|_| Hand::new(cell.get_or_refresh_async(|| async { 0 })));
    for task in &mut tasks {
        task.pending();
    }
    let value = lease.publish(7);
    for task in &mut tasks {
        assert_eq!(task.wakes(), 1);
        assert!(Arc::ptr_eq(&task.ready(), &value));
    }
    assert!(Arc::ptr_eq(&joined(thread), &value));
    assert_eq!((cell.stats().builds, cell.stats().waits), (1, 4));
}

#[test]
fn a_thread_builds_and_a_task_waits() {
    let (cell, _clock) = cell();
    let (arrived, arrivals) = channel();
    let (open, opened) = channel();
    let builder = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || {
            cell.get_or_refresh(|| {
                arrived.send(()).unwrap();
                opened.recv().unwrap();
                7
            })
        })
    };
    arrivals.recv().unwrap();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    assert_eq!(task.pending().wakes(), 0);
    let thread = waiting_thread(&cell, 0);
    open.send(()).unwrap();
    let value = joined(builder);
    assert_eq!(task.wakes(), 1);
    assert!(Arc::ptr_eq(&task.ready(), &value));
    assert!(Arc::ptr_eq(&joined(thread), &value));
    assert_eq!(cell.stats().builds, 1);
}

#[test]
fn a_task_builds_and_a_thread_waits() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let mut builder = Hand::new(cell.get_or_refresh_async(|| async {
        door.pass().await;
        7
    }));
    builder.pending();
    let thread = waiting_thread(&cell, 0);
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    task.pending();
    door.open();
    assert_eq!((builder.wakes(), task.wakes()), (1, 0));
    let value = builder.ready();
    assert_eq!(task.wakes(), 1);
    assert!(Arc::ptr_eq(&task.ready(), &value));
    assert!(Arc::ptr_eq(&joined(thread), &value));
    assert_eq!(cell.stats().builds, 1);
}

#[test]
fn a_set_wakes_threads_and_tasks() {
    let (cell, _clock) = cell();
    let _lease = cell.lookup().elected();
    let thread = waiting_thread(&cell, 0);
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    task.pending();
    let value = cell.set(7);
    assert_eq!(task.wakes(), 1);
    assert!(Arc::ptr_eq(&task.ready(), &value));
    assert!(Arc::ptr_eq(&joined(thread), &value));
}

#[test]
fn the_first_error_is_shared_by_threads_and_tasks() {
    let (cell, _clock) = cell::<u32>();
    let door = Door::default();
    let mut builder = Hand::new(cell.try_get_or_refresh_async(|| async {
        door.pass().await;
        Err(io::Error::from(ErrorKind::HostUnreachable))
    }));
    builder.pending();
    // Whatever the error types of their own builds are.
    let mut task = Hand::new(cell.try_get_or_refresh_async(untried));
    task.pending();
    let thread = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || cell.try_get_or_refresh(|| -> Result<_, String> { unreachable!() }))
    };
    eventually("the thread waits", || cell.stats().waits == 2);
    door.open();
    let error = |result| match result {
        Err(RefreshError::Build(error)) => error,
        other => panic!("expected the error of the build, got {other:?}"),
    };
    let first: SharedError = error(builder.ready());
    assert_eq!(first.downcast_ref::<io::Error>().unwrap().kind(), ErrorKind::HostUnreachable);
    assert!(error(task.ready()).ptr_eq(&first));
    assert!(error(joined(thread)).ptr_eq(&first));
    assert_eq!((cell.stats().builds, cell.stats().failed), (1, 1));
}

#[test]
fn the_error_of_a_thread_is_shared_by_tasks() {
    let (cell, _clock) = cell::<u32>();
    let lease = cell.lookup().elected();
    let mut shares = Hand::new(cell.try_get_or_refresh_async(untried));
    let mut other_type = Hand::new(cell.try_get_or_refresh_async(never::<Result<u32, io::Error>>));
    let mut shows_none = Hand::new(cell.get_or_refresh_async(|| async { 1 }));
    shares.pending();
    other_type.pending();
    shows_none.pending();
    let error = lease.fail("first");
    assert!(matches!(shares.ready(), Err(RefreshError::Build(same)) if same.ptr_eq(&error)));
    assert!(matches!(other_type.ready(), Err(RefreshError::Build(same)) if same.ptr_eq(&error)));
    // This one can return no error, and builds.
    assert_eq!(*shows_none.ready(), 1);
    assert_eq!(cell.stats().builds, 2);
}

/// `end` ends the first build without a result. Of two tasks and two threads that wait for it, exactly one builds.
#[track_caller]
fn one_is_next(cell: &Cell<u32>, end: impl FnOnce()) {
    let (room, builds, door) = (Room::default(), Arc::new(AtomicUsize::new(0)), Door::default());
    let mut tasks = [1, 2].map(|_| {
        Hand::new(cell.get_or_refresh_async(|| async {
            builds.fetch_add(1, Ordering::SeqCst);
            let _inside = room.enter();
            door.pass().await;
            7
        }))
    });
    for task in &mut tasks {
        task.pending();
    }
    let threads = [1, 2].map(|_| {
        let before = cell.stats().waits;
        let (cell, room, builds) = (Arc::clone(cell), room.clone(), Arc::clone(&builds));
        let thread = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                cell.get_or_refresh(|| {
                    builds.fetch_add(1, Ordering::SeqCst);
                    let _inside = room.enter();
                    7
                })
            })
        };
        eventually("the thread waits", || cell.stats().waits > before);
        thread
    });
    end();
    let mut values = Vec::new();
    let mut waiting = Vec::from(tasks);
    assert!(waiting.iter().all(|task| task.wakes() == 1));
    // The first one to look is elected: one of the tasks, unless a thread has been quicker.
    waiting.retain_mut(|task| match task.poll() {
        Poll::Ready(value) => {
            values.push(value);
            false
        }
        Poll::Pending => true,
    });
    door.open();
    for mut task in waiting {
        // The one that has built wakes the other, or they are woken by a thread.
        eventually("the task is woken", || task.wakes() >= 2);
        values.push(task.ready());
    }
    values.extend(threads.map(joined));
    assert_eq!(builds.load(Ordering::SeqCst), 1);
    assert!(values.iter().all(|value| Arc::ptr_eq(value, &values[0])));
}

#[test]
fn after_a_panic_of_a_task_exactly_one_waiter_is_elected() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let mut builder = Hand::new(cell.get_or_refresh_async(|| async {
        door.pass().await;
        panic_as_planned()
    }));
    builder.pending();
    one_is_next(&cell, || {
        door.open();
        panics_as_planned(|| builder.poll());
    });
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (1, 0));
}

#[test]
fn after_a_panic_of_a_thread_exactly_one_waiter_is_elected() {
    let (cell, _clock) = cell();
    let (panic, panics) = channel();
    let builder = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || {
            panics_as_planned(|| {
                cell.get_or_refresh(|| {
                    panics.recv().unwrap();
                    panic_as_planned()
                })
            });
        })
    };
    eventually("it builds", || cell.is_refreshing());
    one_is_next(&cell, || {
        panic.send(()).unwrap();
        joined(builder);
    });
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (1, 0));
}

#[test]
fn after_an_abandoned_lease_exactly_one_waiter_is_elected() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    one_is_next(&cell, || drop(lease));
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (0, 1));
}

#[test]
fn after_a_cancelled_build_exactly_one_waiter_is_elected() {
    let (cell, _clock) = cell();
    let mut builder = Hand::new(cell.get_or_refresh_async(never));
    builder.pending();
    one_is_next(&cell, || drop(builder));
    assert_eq!((cell.stats().panicked, cell.stats().abandoned), (0, 1));
}

/// Callers that can return no error build again after one, and are no serial herd either.
#[test]
fn after_an_error_exactly_one_waiter_that_can_return_none_is_elected() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    one_is_next(&cell, || drop(lease.fail("no")));
}

/// Waits that ask for a fresh value: a task's and a thread's.
#[test]
fn a_fresh_value_is_shared_by_threads_and_tasks() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    let mut task = Hand::new(cell.request().max_stale(Duration::ZERO).get_async(|| async { 0 }));
    task.pending();
    let thread = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || cell.request().max_stale(Duration::ZERO).get(|| 0))
    };
    eventually("the thread waits", || cell.stats().waits == 2);
    let value = lease.publish(2);
    assert!(Arc::ptr_eq(&task.ready(), &value));
    assert!(Arc::ptr_eq(&joined(thread), &value));
}

/// G6: handed over even if it has expired by then.
#[test]
fn with_a_ttl_of_zero_all_waiters_share_one_build() {
    let policy = Policy::ttl(Duration::ZERO).stale_while_refresh(Duration::ZERO);
    let (cell, clock) = cell_with(policy);
    let door = Door::default();
    let mut builder = Hand::new(cell.get_or_refresh_async(|| async {
        door.pass().await;
        7
    }));
    builder.pending();
    let mut tasks: Vec<_> = (0..100).map(|_| Hand::new(cell.get_or_refresh_async(|| async { 0 }))).collect();
    for task in &mut tasks {
        task.pending();
    }
    let mut fresh = Hand::new(cell.request().max_stale(Duration::ZERO).get_async(|| async { 0 }));
    fresh.pending();
    let thread = waiting_thread(&cell, 0);
    door.open();
    let value = builder.ready();
    clock.advance(TTL);
    assert_eq!(cell.freshness(), Freshness::Expired);
    for mut task in tasks {
        assert!(Arc::ptr_eq(&task.ready(), &value));
    }
    assert!(Arc::ptr_eq(&fresh.ready(), &value));
    assert!(Arc::ptr_eq(&joined(thread), &value));
    assert_eq!(cell.stats().builds, 1);
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { 8 })).ready(), 8);
}
