//! A future that is dropped gives back what it holds: the lease, or its place. The others go on.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::support::{Cell, Door, Hand, LookupExt, Room, TTL, cell, eventually, joined, never, stale_cell};

/// A task that waits for the build of another caller.
#[track_caller]
fn waiting(cell: &Cell<u32>) -> Hand<'_, Arc<u32>> {
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 7 }));
    assert_eq!(task.pending().wakes(), 0);
    task
}

#[test]
fn before_the_first_poll_there_is_nothing_to_give_back() {
    let (cell, _clock) = cell::<u32>();
    drop(cell.get_or_refresh_async(never));
    drop(cell.request().max_stale(Duration::ZERO).get_async(never));
    drop(cell.try_get_or_refresh_async(never::<Result<u32, &str>>));
    drop(cell.request_owned().spawn_with(|_| unreachable!()).get_async(never));
    let stats = cell.stats();
    assert_eq!((stats.builds, stats.waits, stats.abandoned), (0, 0, 0));
    assert!(!cell.is_refreshing());
}

#[test]
fn while_it_waits_it_gives_up_its_place() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let (first, mut second, third) = (waiting(&cell), waiting(&cell), waiting(&cell));
    let wakes = [first.wakes_handle(), third.wakes_handle()];
    drop(first);
    drop(third);
    // Nothing of them is kept, and no other task is woken.
    assert!(wakes.iter().all(|wakes| Arc::strong_count(wakes) == 1 && wakes.count() == 0));
    assert_eq!(second.wakes(), 0);
    lease.publish(1);
    assert!(wakes.iter().all(|wakes| wakes.count() == 0));
    assert_eq!((second.wakes(), *second.ready()), (1, 1));
}

type Builder = fn(&Cell<u32>) -> Hand<'_, ()>;

#[test]
fn while_it_builds_it_gives_back_the_lease() {
    let builders: [Builder; 4] = [
        |cell| Hand::new(async { drop(cell.get_or_refresh_async(never).await) }),
        |cell| Hand::new(async { drop(cell.request().max_stale(Duration::ZERO).get_async(never).await) }),
        |cell| Hand::new(async { drop(cell.try_get_or_refresh_async(never::<Result<u32, &str>>).await) }),
        |cell| {
            let build = |_| never::<Result<_, &str>>();
            Hand::new(async move { drop(cell.request().wait_at_most(TTL).try_get_with_async(build).await) })
        },
    ];
    for builder in builders {
        let (cell, _clock) = cell();
        let mut builder = builder(&cell);
        builder.pending();
        assert!(cell.is_refreshing());
        let mut waits = waiting(&cell);
        drop(builder);
        assert!(!cell.is_refreshing());
        assert_eq!((waits.wakes(), *waits.ready()), (1, 7));
        let stats = cell.stats();
        assert_eq!((stats.builds, stats.abandoned, stats.panicked), (2, 1, 0));
    }
}

#[test]
fn while_it_builds_the_stale_value_stays() {
    let (cell, _clock) = stale_cell(1);
    let mut builder = Hand::new(cell.get_or_refresh_async(never));
    builder.pending();
    drop(builder);
    assert_eq!(cell.get().as_deref(), Some(&1));
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { 2 })).ready(), 2);
}

/// A build with several await points, dropped at each of them.
#[test]
fn at_every_await_point_of_a_build_it_gives_back_the_lease() {
    const STEPS: usize = 5;
    for polls in 0..=STEPS {
        let (cell, _clock) = cell();
        let room = Room::default();
        let mut builder = Hand::new(cell.get_or_refresh_async(|| async {
            let _inside = room.enter();
            for _ in 0..STEPS {
                futures_lite::future::yield_now().await;
            }
            1
        }));
        for _ in 0..polls {
            builder.pending();
        }
        assert_eq!((cell.is_refreshing(), room.is_empty()), (polls > 0, polls == 0));
        drop(builder);
        assert!(!cell.is_refreshing() && room.is_empty());
        assert_eq!(cell.stats().abandoned, u64::from(polls > 0));
        assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { 2 })).ready(), 2);
    }
}

/// What the build holds is gone before the next one can begin.
#[test]
fn the_build_is_dropped_before_the_lease_comes_back() {
    struct Witness<'a>(&'a Cell<u32>);
    impl Drop for Witness<'_> {
        fn drop(&mut self) {
            assert!(self.0.is_refreshing());
        }
    }
    let (cell, _clock) = cell();
    let mut builder = Hand::new(cell.get_or_refresh_async(|| async {
        let _witness = Witness(&cell);
        never().await
    }));
    builder.pending();
    drop(builder);
    assert!(!cell.is_refreshing());
}

#[test]
fn after_it_was_woken_by_an_abandoned_build_another_one_is_elected() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let (first, mut second) = (waiting(&cell), waiting(&cell));
    drop(lease);
    assert_eq!((first.wakes(), second.wakes()), (1, 1));
    drop(first);
    assert_eq!(*second.ready(), 7);
}

#[test]
fn after_it_was_woken_by_an_abandoned_build_a_thread_is_elected() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let task = waiting(&cell);
    let thread = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || cell.get_or_refresh(|| 8))
    };
    eventually("the thread waits", || cell.stats().waits == 2);
    drop(lease);
    assert_eq!(task.wakes(), 1);
    drop(task);
    assert_eq!(*joined(thread), 8);
}

#[test]
fn after_it_was_woken_by_a_publish_nothing_is_kept() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let (first, mut second) = (waiting(&cell), waiting(&cell));
    let value = lease.publish(1);
    drop(first);
    assert!(Arc::ptr_eq(&second.ready(), &value));
    drop(second);
    // The cell's and this one.
    assert_eq!(Arc::strong_count(&value), 2);
}

#[test]
fn when_it_has_taken_its_turn_after_a_cancelled_build_it_can_be_dropped_too() {
    let (cell, _clock) = cell();
    let mut builder = Hand::new(cell.get_or_refresh_async(never));
    builder.pending();
    let mut tasks: Vec<_> = (0..4).map(|_| Hand::new(cell.get_or_refresh_async(never))).collect();
    for task in &mut tasks {
        task.pending();
    }
    drop(builder);
    let mut last = Hand::new(cell.get_or_refresh_async(|| async { 7 }));
    while let Some(mut task) = tasks.pop() {
        // It builds, or waits for the one that does.
        task.pending();
        drop(task);
    }
    assert_eq!(*last.ready(), 7);
}

#[test]
fn a_wait_for_a_fresh_value_can_be_given_up() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    let mut task = Hand::new(cell.request().max_stale(Duration::ZERO).get_async(|| async { 0 }));
    task.pending();
    let wakes = task.wakes_handle();
    drop(task);
    lease.publish(2);
    assert_eq!((Arc::strong_count(&wakes), wakes.count()), (1, 0));
}

#[test]
fn places_can_be_given_up() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut borrowed = Hand::new(cell.lookup().pending());
    let mut owned = Hand::new(cell.lookup_owned().pending());
    borrowed.pending();
    owned.pending();
    let wakes = [borrowed.wakes_handle(), owned.wakes_handle()];
    drop((borrowed, owned));
    assert!(wakes.iter().all(|wakes| Arc::strong_count(wakes) == 1));
    // The one that keeps the cell alive has let go of it.
    lease.publish(1);
    assert_eq!(Arc::strong_count(&cell), 1);
}

/// The build has what it needs and is dropped before it is polled again.
#[test]
fn a_build_that_could_go_on_is_dropped() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let mut builder = Hand::new(cell.get_or_refresh_async(|| async {
        door.pass().await;
        1
    }));
    builder.pending();
    let mut waits = waiting(&cell);
    door.open();
    assert_eq!(builder.wakes(), 1);
    drop(builder);
    assert_eq!((waits.wakes(), *waits.ready()), (1, 7));
}

/// A cancelled build is no failure: no retry pause begins.
#[test]
fn a_cancelled_build_begins_no_retry_pause() {
    let (cell, _clock) = crate::support::cell_with(dogpile::Policy::ttl(TTL).retry_backoff(TTL, TTL));
    cell.set(1);
    cell.invalidate();
    let mut builder = Hand::new(cell.get_or_refresh_async(never));
    builder.pending();
    drop(builder);
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { 2 })).ready(), 2);
}
