//! Invalidations that the store has not acknowledged.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use dogpile_fleet::{BuildContext, Refreshed};

use crate::support::*;

#[test]
fn an_invalidation_that_failed_during_a_build_was_delivered_after_it_was_stored() {
    let fleet = Fleet::new();
    let a = fleet.node(POLICY);
    let build = |_: &BuildContext<'_, String>| {
        fleet.way.down.store(true, Ordering::SeqCst);
        a.keys.invalidate("7").unwrap_err();
        fleet.way.down.store(false, Ordering::SeqCst);
        Ok::<_, io::Error>(Refreshed::from(String::from("from before")))
    };
    a.try_read(7, build).unwrap();
    let stats = a.keys.stats();
    assert_eq!((stats.redelivered, stats.invalidated, stats.published), (1, 1, 0));
    assert_eq!(fleet.node(POLICY).read(7, "from after"), "from after");
}

#[test]
fn an_invalidation_that_failed_was_forgotten_when_an_earlier_one_of_the_same_key_was_acknowledged() {
    let fleet = Fleet::new();
    let a = fleet.node(POLICY);
    a.read(7, "old");
    let earlier = fleet.way.hold_up_an_invalidation();
    thread::scope(|scope| {
        let acknowledged = scope.spawn(|| a.keys.invalidate("7"));
        earlier.begun.recv().unwrap();
        fleet.way.down.store(true, Ordering::SeqCst);
        a.keys.invalidate("7").unwrap_err();
        fleet.way.down.store(false, Ordering::SeqCst);
        earlier.go_on();
        acknowledged.join().unwrap().unwrap();
    });
    a.map.invalidate(&7);
    fleet.clock.advance(11 * SECOND);
    assert_eq!(a.read(7, "new"), "new");
    eventually("it is counted", || a.keys.stats().redelivered == 1);
}

#[test]
fn an_invalidation_that_failed_was_forgotten_when_one_that_was_delivered_late_was_acknowledged() {
    let fleet = Fleet::new();
    let a = fleet.node(POLICY);
    a.read(7, "old");
    let fails = || {
        fleet.way.down.store(true, Ordering::SeqCst);
        a.keys.invalidate("7").unwrap_err();
        fleet.way.down.store(false, Ordering::SeqCst);
    };
    fails();
    // Delivered once more, and held up.
    let late = fleet.way.hold_up_an_invalidation();
    fleet.clock.advance(11 * SECOND);
    late.begun.recv().unwrap();
    // The key owes nothing after the first of these, and another one after the second.
    a.keys.invalidate("7").unwrap();
    fails();
    late.go_on();
    eventually("the last one is delivered", || {
        fleet.clock.advance(SECOND);
        fleet.way.store.entry("users:7").epoch == 3
    });
    eventually("and counted", || a.keys.stats().redelivered == 1);
}

#[test]
fn a_load_delivered_an_invalidation_that_was_being_delivered() {
    let fleet = Fleet::new();
    let a = fleet.node(POLICY);
    a.read(7, "old");
    let held_up = fleet.way.hold_up_an_invalidation();
    thread::scope(|scope| {
        let invalidates = scope.spawn(|| a.keys.invalidate("7"));
        held_up.begun.recv().unwrap();
        fleet.clock.advance(2 * SECOND);
        assert_eq!(a.served(7), "old", "the store has not been told yet");
        held_up.go_on();
        invalidates.join().unwrap().unwrap();
    });
    fleet.clock.advance(2 * SECOND);
    assert_eq!(a.read(7, "new"), "new");
    assert_eq!((a.keys.stats().redelivered, fleet.way.store.entry("users:7").epoch), (0, 1));
}

#[test]
fn an_invalidation_that_panics_is_owed() {
    let fleet = Fleet::new();
    let a = fleet.node(POLICY);
    a.read(7, "old");
    fleet.way.panics.store(true, Ordering::SeqCst);
    catch_unwind(AssertUnwindSafe(|| a.keys.invalidate("7"))).unwrap_err();
    fleet.clock.advance(2 * SECOND);
    assert_eq!(a.read(7, "new"), "new");
    assert_eq!(a.keys.stats().redelivered, 1);
}

#[test]
fn invalidations_that_had_failed_waited_until_their_keys_were_used() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    let keys = [1, 2, 3];
    for id in keys {
        a.read(id, "old");
        b.served(id);
    }
    fleet.way.down.store(true, Ordering::SeqCst);
    for id in keys {
        a.keys.invalidate(&id.to_string()).unwrap_err();
    }
    a.keys.clear("2").unwrap_err();
    let told = fleet.way.invalidations.load(Ordering::SeqCst);
    fleet.clock.advance(2 * SECOND);
    eventually("one is tried when the breaker lets it", || {
        fleet.way.invalidations.load(Ordering::SeqCst) == told + 1 && a.keys.stats().store_errors == 5
    });
    fleet.way.down.store(false, Ordering::SeqCst);
    eventually("all are delivered when the store works", || {
        fleet.clock.advance(SECOND / 10);
        a.keys.stats().redelivered == 3
    });
    fleet.clock.advance(2 * SECOND);
    for id in keys {
        assert_eq!(b.read(id, "new"), "new");
        let entry = fleet.way.store.entry(&format!("users:{id}"));
        assert_eq!(entry.epoch, 1);
    }
    assert_eq!(fleet.way.invalidations.load(Ordering::SeqCst), told + 4);
}

#[test]
fn what_is_owed_is_tried_once_more_when_the_loader_is_dropped() {
    for is_down in [false, true] {
        let fleet = Fleet::new();
        let a = fleet.node(POLICY);
        let keys = [1, 2, 3];
        for id in keys {
            a.read(id, "old");
        }
        fleet.way.down.store(true, Ordering::SeqCst);
        for id in keys {
            a.keys.invalidate(&id.to_string()).unwrap_err();
        }
        fleet.way.down.store(is_down, Ordering::SeqCst);
        drop(a);
        eventually("the loader is gone", || Arc::strong_count(&fleet.way) == 1);
        let epochs = keys.map(|id| fleet.way.store.entry(&format!("users:{id}")).epoch);
        assert_eq!(epochs, [u64::from(!is_down); 3]);
        let tried = if is_down { 1 } else { 3 };
        assert_eq!(fleet.way.invalidations.load(Ordering::SeqCst), 3 + tried, "up to the first failure");
    }
}
