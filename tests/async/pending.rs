//! `Pending` is a future, borrowed or `'static`.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{Policy, Waited};

use crate::support::{Cell, Hand, LookupExt, TICK, TTL, cell, cell_with, eventually, joined};

#[test]
fn a_place_is_ready_when_the_build_has_ended() {
    let ends: [fn(dogpile::Lease<'_, u32, dogpile::ManualClock>); 3] =
        [|lease| drop(lease.publish(7)), |lease| drop(lease.fail("no")), |lease| drop(lease)];
    for (number, end) in ends.into_iter().enumerate() {
        let (cell, _clock) = cell();
        let lease = cell.lookup().elected();
        let mut borrowed = Hand::new(cell.lookup().pending());
        let mut owned = Hand::new(cell.lookup_owned().pending());
        borrowed.pending();
        owned.pending();
        end(lease);
        assert_eq!((borrowed.wakes(), owned.wakes()), (1, 1));
        for waited in [borrowed.ready(), owned.ready()] {
            match (number, waited) {
                (0, Waited::Published(value)) => assert_eq!(*value, 7),
                (1, Waited::Failed(error)) => assert_eq!(error.to_string(), "no"),
                (2, Waited::Abandoned) => {}
                (_, other) => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_build_that_has_ended_before_the_first_poll_is_seen() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut place = Hand::new(cell.lookup().pending());
    lease.publish(7);
    assert!(matches!(place.ready(), Waited::Published(value) if *value == 7));
    assert_eq!((place.wakes(), place.is_listed(), cell.stats().waits), (0, false, 0));
}

/// What a wait that was too long gives back is still a place.
#[test]
fn a_place_can_be_awaited_after_a_wait_that_timed_out() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let Err(borrowed) = cell.lookup().pending().wait_timeout(Duration::ZERO) else {
        panic!("the build runs")
    };
    let Err(owned) = cell.lookup_owned().pending().wait_timeout(Duration::ZERO) else {
        panic!("the build runs")
    };
    let Err(dropped) = cell.lookup().pending().wait_timeout(Duration::ZERO) else { panic!("the build runs") };
    drop(dropped);
    let (mut borrowed, mut owned) = (Hand::new(borrowed), Hand::new(owned));
    borrowed.pending();
    owned.pending();
    lease.publish(7);
    assert!(matches!(borrowed.ready(), Waited::Published(value) if *value == 7));
    assert!(matches!(owned.ready(), Waited::Published(value) if *value == 7));
    drop((borrowed, owned));
    assert_eq!(Arc::strong_count(&cell), 1);
}

/// Polled by a task, then blocked on by a thread: it has left the task's waker nothing to do.
#[test]
fn a_place_that_was_polled_can_be_blocked_on() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let (mut polled, counter) = (cell.lookup_owned().pending(), Arc::<crate::support::Wakes>::default());
    let waker = std::task::Waker::from(Arc::clone(&counter));
    let mut cx = std::task::Context::from_waker(&waker);
    assert!(std::pin::Pin::new(&mut polled).poll(&mut cx).is_pending());
    let Err(polled) = polled.wait_timeout(Duration::ZERO) else { panic!("the build runs") };
    let thread = std::thread::spawn(move || polled.wait());
    eventually("the thread waits", || cell.stats().waits == 2);
    lease.publish(7);
    assert!(matches!(joined(thread), Waited::Published(value) if *value == 7));
    drop(waker);
    assert_eq!(Arc::strong_count(&counter), 1);
}

/// A future is not to be polled after it was ready. This one says the same again.
#[test]
fn a_place_that_is_polled_again_is_ready_again() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut place = Hand::new(cell.lookup().pending());
    place.pending();
    lease.publish(7);
    for _ in 0..3 {
        assert!(matches!(place.ready(), Waited::Published(value) if *value == 7));
    }
    assert!(!place.is_listed());
    // The newest one, as a wait has it.
    cell.set(8);
    assert!(matches!(place.ready(), Waited::Published(value) if *value == 8));
}

#[test]
fn a_place_that_is_polled_again_after_the_lease_has_timed_out_is_ready_again() {
    let (cell, clock): (Cell<u32>, _) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
    let lease = cell.lookup().elected();
    let mut place = Hand::new(cell.lookup().pending());
    place.pending();
    clock.advance(TTL + TICK);
    for _ in 0..3 {
        assert!(matches!(place.ready(), Waited::Abandoned));
    }
    assert!(!place.is_listed());
    lease.publish(7);
    assert!(matches!(place.ready(), Waited::Published(value) if *value == 7));
}

#[test]
fn an_owned_place_keeps_the_cell_alive_and_moves_between_tasks() {
    let (cell, _clock) = cell();
    let lease = cell.lookup_owned().elected();
    let mut place = cell.lookup_owned().pending();
    drop(cell);
    let tasks = [1, 2, 3].map(|_| Arc::<crate::support::Wakes>::default());
    for task in &tasks {
        let waker = std::task::Waker::from(Arc::clone(task));
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(std::pin::Pin::new(&mut place).poll(&mut cx).is_pending());
    }
    lease.publish(7);
    assert_eq!(tasks.each_ref().map(|task| task.count()), [0, 0, 1]);
    assert!(matches!(futures_lite::future::block_on(place), Waited::Published(value) if *value == 7));
}

#[test]
fn a_place_is_as_good_as_the_newest_value() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut place = Hand::new(cell.lookup().pending());
    place.pending();
    lease.publish(1);
    cell.set(2);
    assert!(matches!(place.ready(), Waited::Published(value) if *value == 2));
}
