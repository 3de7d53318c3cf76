//! G4: what began before an `invalidate`, a `clear` or a `set` does not undo it.

use std::sync::Arc;
use std::time::Duration;

use dogpile::Freshness;

use crate::support::{Cell, Door, Hand, LookupExt, cell, never, stale_cell, untried};

/// A task that builds 1, and is suspended in it until the door is opened.
fn builder<'a>(cell: &'a Cell<u32>, door: &'a Door) -> Hand<'a, Arc<u32>> {
    let mut builder = Hand::new(cell.get_or_refresh_async(|| async {
        door.pass().await;
        1
    }));
    builder.pending();
    builder
}

#[test]
fn an_invalidate_during_a_build_makes_its_value_stale() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let mut builder = builder(&cell, &door);
    let mut waits = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    let mut wants_fresh = Hand::new(cell.request().max_stale(Duration::ZERO).get_async(|| async { 2 }));
    waits.pending();
    wants_fresh.pending();
    cell.invalidate();
    assert_eq!((waits.wakes(), wants_fresh.wakes()), (0, 0));
    door.open();
    assert_eq!(*builder.ready(), 1);
    assert_eq!((cell.freshness(), cell.stats().fenced), (Freshness::Stale, 1));
    // Good enough for the one, not for the other.
    assert_eq!(*waits.ready(), 1);
    assert_eq!((wants_fresh.wakes(), *wants_fresh.ready()), (1, 2));
    assert_eq!(cell.freshness(), Freshness::Fresh);
}

#[test]
fn a_clear_during_a_build_leaves_its_value_to_its_caller() {
    let (cell, _clock) = stale_cell(0);
    let door = Door::default();
    let mut builder = builder(&cell, &door);
    assert_eq!(cell.clear().as_deref(), Some(&0));
    assert!(!cell.is_refreshing());
    door.open();
    assert_eq!((*builder.ready(), cell.get(), cell.stats().fenced), (1, None, 1));
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { 2 })).ready(), 2);
}

/// G1: a build that can no longer be published makes no caller wait.
#[test]
fn a_clear_during_a_build_lets_the_next_caller_build_at_once() {
    let ends: [fn(&Cell<u32>); 2] = [|cell| drop(cell.clear()), |cell| assert!(cell.revoke())];
    for end in ends {
        let (cell, _clock) = cell();
        let door = Door::default();
        let mut builder = builder(&cell, &door);
        let mut waits = Hand::new(cell.get_or_refresh_async(|| async { 2 }));
        waits.pending();
        end(&cell);
        // The waiter looks again, and is elected.
        let value = waits.ready();
        assert_eq!((waits.wakes(), *value, cell.is_refreshing()), (1, 2, false));
        // The caller of the late build gets what the cell serves by now.
        door.open();
        assert!(Arc::ptr_eq(&builder.ready(), &value));
        assert_eq!((cell.generation(), cell.stats().fenced), (1, 1));
    }
}

#[test]
fn the_failure_of_a_build_that_was_revoked_is_its_callers_only() {
    let (cell, _clock) = cell::<u32>();
    let door = Door::default();
    let mut builder = Hand::new(cell.try_get_or_refresh_async(|| async {
        door.pass().await;
        Err("no")
    }));
    builder.pending();
    assert!(cell.revoke());
    let mut next = Hand::new(cell.try_get_or_refresh_async(never::<Result<u32, &str>>));
    next.pending();
    let mut waits = Hand::new(cell.try_get_or_refresh_async(untried));
    waits.pending();
    door.open();
    assert_eq!(builder.ready().unwrap_err().to_string(), "no");
    // It begins no pause, is no error of the cell's, and takes no lease away.
    waits.pending();
    assert!(cell.is_refreshing() && cell.last_error().is_none());
    drop(next);
    assert!(waits.wakes() > 0);
}

#[test]
fn a_set_during_a_build_stays() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let mut builder = builder(&cell, &door);
    let mut waits = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    let mut tries = Hand::new(cell.try_get_or_refresh_async(|| async { Err("no") }));
    waits.pending();
    tries.pending();
    let value = cell.set(7);
    // The waiters have it at once, and the build holds no lease any more.
    assert_eq!((waits.wakes(), tries.wakes()), (1, 1));
    assert!(Arc::ptr_eq(&waits.ready(), &value) && Arc::ptr_eq(&tries.ready().unwrap(), &value));
    assert!(!cell.is_refreshing());
    door.open();
    assert!(Arc::ptr_eq(&builder.ready(), &value));
    assert_eq!((cell.generation(), cell.is_refreshing()), (1, false));
}

#[test]
fn an_error_after_a_set_is_its_callers_only() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let mut builder = Hand::new(cell.try_get_or_refresh_async(|| async {
        door.pass().await;
        Err("no")
    }));
    builder.pending();
    cell.set(7);
    door.open();
    // The value is fresh: the caller gets it in place of the error.
    assert_eq!(*builder.ready().unwrap(), 7);
    assert!(cell.last_error().is_none());
    cell.clear();
    assert_eq!(*Hand::new(cell.try_get_or_refresh_async(|| async { Ok::<_, &str>(8) })).ready().unwrap(), 8);
}

#[test]
fn a_value_that_is_set_before_a_cancelled_build_stays() {
    let (cell, _clock) = stale_cell(0);
    let door = Door::default();
    let builder = builder(&cell, &door);
    cell.set(7);
    drop(builder);
    assert_eq!((cell.get().as_deref(), cell.freshness()), (Some(&7), Freshness::Fresh));
}

/// G3: a task that was woken by a build long ago does not go back.
#[test]
fn a_task_that_is_polled_late_gets_the_newest_value() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    let mut tries = Hand::new(cell.try_get_or_refresh_async(untried));
    task.pending();
    tries.pending();
    lease.publish(1);
    cell.set(2);
    assert_eq!((*task.ready(), *tries.ready().unwrap()), (2, 2));
}

#[test]
fn a_task_that_is_polled_after_a_clear_builds() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 3 }));
    task.pending();
    lease.publish(1);
    cell.set(2);
    cell.clear();
    assert_eq!(*task.ready(), 3);
}

#[test]
fn a_task_that_is_polled_late_and_wants_a_fresh_value_takes_no_newer_one_that_is_stale() {
    for (is_invalidated, expected) in [(false, 3), (true, 2)] {
        let (cell, _clock) = cell();
        let door = Door::default();
        let mut builder = builder(&cell, &door);
        let mut wants_fresh = Hand::new(cell.request().max_stale(Duration::ZERO).get_async(|| async { 2 }));
        wants_fresh.pending();
        door.open();
        assert_eq!(*builder.ready(), 1);
        cell.set(3);
        if is_invalidated {
            cell.invalidate();
        }
        assert_eq!(*wants_fresh.ready(), expected);
    }
}
