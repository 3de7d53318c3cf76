//! Subscriptions: the latest publication, once, and never an older one.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Drain, LazyDogpile, ManualClock, Policy, SyncReaderCell};

use crate::support::{LookupExt, PATIENCE, TICK, TTL, cell, eventually, gate, panic_message, unbuilt};

#[test]
fn a_new_subscription_has_seen_nothing() {
    let (cell, _clock) = cell();
    let mut subscription = cell.subscribe();
    assert!(!subscription.has_changed());
    assert_eq!(subscription.wait_changed_timeout(Duration::ZERO), None);
    cell.set(1);
    assert!(subscription.has_changed());
    let mut later = cell.subscribe();
    assert!(later.has_changed());
    assert_eq!((*subscription.wait_changed(), *later.wait_changed()), (1, 1));
    assert_eq!((subscription.seen(), later.seen()), (1, 1));
    assert!(!subscription.has_changed() && !later.has_changed());
}

#[test]
fn each_publication_is_returned_once_and_the_latest_one_only() {
    let (cell, _clock) = cell();
    let mut subscription = cell.subscribe();
    for value in 1..=3 {
        cell.set(value);
    }
    assert_eq!((*subscription.wait_changed(), subscription.seen()), (3, 3));
    assert_eq!(subscription.wait_changed_timeout(Duration::ZERO), None);
    // A build, and a renewal: the same value as a new publication.
    cell.invalidate();
    assert_eq!(*cell.get_or_refresh(|| 4), 4);
    assert_eq!(*subscription.wait_changed(), 4);
    cell.invalidate();
    cell.lookup().elected().renew().unwrap();
    assert_eq!((*subscription.wait_changed(), subscription.seen()), (4, 5));
}

#[test]
fn invalidate_and_clear_are_no_publications() {
    let (cell, _clock) = cell();
    cell.set(1);
    let mut subscription = cell.subscribe();
    subscription.wait_changed();
    cell.invalidate();
    assert!(!subscription.has_changed());
    cell.clear();
    assert!(!subscription.has_changed());
    assert_eq!(subscription.wait_changed_timeout(Duration::ZERO), None);
    // What was cleared before it was seen is gone.
    cell.set(2);
    cell.clear();
    assert!(!subscription.has_changed());
    cell.set(3);
    assert_eq!((*subscription.wait_changed(), subscription.seen()), (3, 3));
}

#[test]
fn a_value_that_has_expired_since_is_returned() {
    let clock = ManualClock::new();
    let policy = Policy::ttl(TTL).stale_while_refresh(Duration::ZERO);
    let cell = DogpileCell::with_clock(policy, clock.clone());
    cell.set(1);
    clock.advance(TTL + TICK);
    assert_eq!(cell.get(), None);
    assert_eq!(*cell.subscribe().wait_changed(), 1);
    // But not one that was expired when it was restored: it never could be served.
    cell.restore(2, 2 * TTL);
    let mut subscription = cell.subscribe();
    assert!(!subscription.has_changed());
    assert_eq!(subscription.wait_changed_timeout(Duration::ZERO), None);
}

#[test]
fn a_result_that_is_fenced_off_is_no_publication() {
    let (cell, _clock) = cell();
    let mut subscription = cell.subscribe();
    let lease = cell.lookup().elected();
    cell.set(2);
    assert_eq!(*lease.publish(1), 2);
    assert_eq!((*subscription.wait_changed(), subscription.seen()), (2, 1));
    assert!(!subscription.has_changed());
}

#[test]
fn a_thread_that_waits_is_woken_by_a_publication_and_by_nothing_else() {
    let (cell, _clock) = cell();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| *cell.subscribe().wait_changed());
        eventually("it waits", || cell.stats().waits == 1);
        cell.invalidate();
        drop(cell.lookup().elected());
        cell.lookup().elected().fail("no");
        cell.clear();
        assert!(!waiter.is_finished());
        cell.set(7);
        assert_eq!(waiter.join().unwrap(), 7);
    });
    assert_eq!(cell.stats().builds, 2, "it never builds");
}

#[test]
fn many_threads_are_woken_by_one_publication() {
    let (cell, _clock) = cell();
    cell.set(0);
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut subscription = cell.subscribe();
                    assert_eq!(*subscription.wait_changed(), 0);
                    *subscription.wait_changed()
                })
            })
            .collect();
        eventually("they wait", || cell.stats().waits == 8);
        cell.set(1);
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), 1);
        }
    });
}

#[test]
fn a_wait_ends_exactly_when_its_time_is_over() {
    let (cell, clock) = cell::<u32>();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.subscribe().wait_changed_timeout(TTL));
        eventually("it waits", || cell.stats().waits == 1);
        clock.advance(TTL - TICK);
        assert!(!waiter.is_finished());
        clock.advance(TICK);
        assert_eq!(waiter.join().unwrap(), None);
    });
    assert_eq!(cell.stats().wait_timeouts, 1);
}

#[test]
fn a_static_subscription_keeps_its_cell_alive() {
    let cell = Arc::new(DogpileCell::new(TTL));
    let mut subscription = cell.subscribe_owned();
    let weak = Arc::downgrade(&cell);
    cell.set(1);
    drop(cell);
    assert_eq!(*subscription.wait_changed(), 1);
    drop(subscription);
    assert!(weak.upgrade().is_none());
}

#[test]
fn a_clone_goes_on_from_what_the_original_has_seen() {
    let (cell, _clock) = cell();
    cell.set(1);
    let mut subscription = cell.subscribe();
    subscription.wait_changed();
    let mut clone = subscription.clone();
    assert_eq!((clone.seen(), clone.has_changed()), (1, false));
    cell.set(2);
    assert_eq!((*clone.wait_changed(), subscription.seen()), (2, 1));
    assert_eq!(*subscription.wait_changed(), 2);
}

#[test]
fn g10_a_build_that_would_wait_for_itself_panics_or_is_not_kept_waiting() {
    let (cell, _clock) = cell::<u32>();
    let message = panic_message(|| cell.get_or_refresh(|| *cell.subscribe().wait_changed()));
    assert!(message.contains("inside a build of the same cell"), "{message}");
    let found = cell.get_or_refresh(|| {
        assert_eq!(cell.subscribe().wait_changed_timeout(Duration::MAX), None);
        // What another has published meanwhile is there at once.
        cell.set(5);
        *cell.subscribe().wait_changed() + 1
    });
    assert_eq!(*found, 5);
}

#[test]
fn of_a_lazy_cell_and_of_a_sync_reader_cell() {
    let lazy = Arc::new(LazyDogpile::new(TTL, || 7));
    let mut subscription = lazy.subscribe_owned();
    assert!(!subscription.has_changed() && !lazy.subscribe().has_changed());
    lazy.get_or_refresh();
    assert_eq!(*subscription.wait_changed(), 7);

    let cell = Arc::new(SyncReaderCell::with_policy(Policy::ttl(TTL), Drain::default(), drop::<u32>));
    let mut subscription = cell.subscribe_owned();
    cell.set(1);
    let reader = subscription.wait_changed();
    assert_eq!((*reader, cell.readers()), (1, 1));
    cell.set(2);
    drop(reader);
    assert_eq!(*subscription.wait_changed(), 2);
    assert_eq!(cell.readers(), 0, "the subscription keeps none");
}

/// What was withheld for the write lock, and is put back, has not been missed.
#[test]
fn a_value_that_is_put_back_wakes_a_subscription_that_has_not_seen_it() {
    let cell = SyncReaderCell::with_policy(Policy::ttl(TTL), Drain::default(), drop::<u32>);
    cell.set(1);
    let (locked, gatekeeper) = gate();
    thread::scope(|scope| {
        let cell = &cell;
        scope.spawn(move || {
            let failed = cell.request().no_cache().try_get_with_writer(|writer| {
                let lock = writer.acquire_write_lock();
                locked.pass();
                drop(lock);
                Err::<u32, _>("no")
            });
            assert_eq!(failed.unwrap_err().to_string(), "no");
        });
        gatekeeper.wait_for_arrival();
        let waiter = scope.spawn(move || {
            let mut subscription = cell.subscribe();
            assert!(!subscription.has_changed());
            *subscription.wait_changed_timeout(PATIENCE).unwrap()
        });
        eventually("it waits", || cell.stats().waits == 1);
        gatekeeper.open();
        assert_eq!(waiter.join().unwrap(), 1);
    });
}

#[test]
fn what_is_subscribed_is_read() {
    let (cell, clock) = cell();
    let cell = Arc::new(cell);
    let refresher = dogpile::Refresher::options()
        .rest_when_unused()
        .spawn(&cell, TTL / 2, |previous: Option<Arc<u32>>| previous.map_or(1, |previous| *previous + 1))
        .unwrap();
    let mut subscription = cell.subscribe();
    assert_eq!(*subscription.wait_changed(), 1);
    // Read by the subscription, so it is rebuilt.
    eventually("it is rebuilt", || {
        clock.advance(TTL);
        cell.generation() >= 2
    });
    assert!(*subscription.wait_changed() >= 2);
    drop(refresher);
}

#[test]
fn g2_looking_at_a_subscription_does_not_build() {
    let lazy = LazyDogpile::<u32>::new(TTL, unbuilt);
    let mut subscription = lazy.subscribe();
    assert!(!subscription.has_changed());
    assert!(subscription.wait_changed_timeout(Duration::ZERO).is_none());
    assert!(format!("{subscription:?}").contains("seen: 0"));
}
