//! What its owner asks of a refresher: `refresh_now`, `wait_ready`, `stop_timeout`.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dogpile::{Freshness, Policy, Refreshed, Refresher};

use super::{Cell, DUE, Rig, SECOND, panicking, plain, rig, rig_with, serves};
use crate::support::{LookupExt, TICK, TTL, eventually};

// `refresh_now`

#[test]
fn refresh_now_rebuilds_a_fresh_value_at_once() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(SECOND);
    rig.refresher.refresh_now();
    rig.builds.begins(Some(1));
    rig.serves(1);
    assert_eq!(rig.cell.freshness(), Freshness::Fresh);
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.clock.sleeps_until(SECOND + DUE);
    rig.serves(2);
    assert_eq!(rig.cell.stats().builds, 2);
}

#[test]
fn refresh_now_rebuilds_a_value_that_never_expires() {
    let rig = rig_with(Policy::never_expires(), SECOND);
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(1)));
    eventually("it is published", || rig.cell.generation() == 1);
    rig.refresher.refresh_now();
    rig.builds.begins(Some(1));
    rig.builds.ends(Ok(Refreshed::New(2)));
    eventually("it is published", || rig.cell.generation() == 2);
}

#[test]
fn refresh_now_ends_a_retry_pause() {
    for (policy, next_pause) in [
        (Policy::ttl(TTL), SECOND / 5),
        (Policy::ttl(TTL).retry_backoff(SECOND, 4 * SECOND), 2 * SECOND),
        (plain(Policy::ttl(TTL)), SECOND / 10),
    ] {
        let rig = Rig::asleep(policy);
        rig.builds_after(DUE, Some(1), Err("down"));
        rig.fails(1, "down");
        rig.refresher.refresh_now();
        rig.builds.begins(Some(1));
        // It is no loop: the next pause is as long as after any second failure.
        rig.builds.ends(Err("still down"));
        rig.fails(2, "still down");
        rig.begins_after(next_pause, Some(1));
        rig.serves(1);
    }
}

#[test]
fn refresh_now_during_its_build_asks_for_another() {
    let ends: [(_, Option<u32>); 2] = [(Ok(Refreshed::New(2)), Some(2)), (Err("down"), Some(1))];
    for (end, previous) in ends {
        let rig = Rig::asleep(Policy::ttl(TTL));
        rig.advance(DUE);
        rig.builds.begins(Some(1));
        // Several requests are one.
        for _ in 0..3 {
            rig.refresher.refresh_now();
        }
        rig.builds.none();
        rig.builds.ends(end);
        rig.builds.begins(previous);
        rig.builds.ends(Ok(Refreshed::New(3)));
        rig.clock.sleeps_until(DUE + DUE);
        assert_eq!(rig.cell.stats().builds, 3);
        rig.serves(3);
    }
}

#[test]
fn refresh_now_waits_for_the_build_of_another_caller_and_asks_for_another() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    let lease = rig.cell.request_owned().no_cache().lookup().elected();
    rig.refresher.refresh_now();
    rig.serves(1);
    rig.builds.none();
    lease.publish(2);
    rig.builds.begins(Some(2));
    rig.builds.ends(Ok(Refreshed::New(3)));
    rig.clock.sleeps_until(DUE);
    rig.serves(3);
}

#[test]
fn refresh_now_without_a_cell_does_nothing() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    drop(rig.cell);
    rig.builds.end();
    rig.refresher.refresh_now();
    assert_eq!(rig.refresher.consecutive_failures(), 0);
}

// `wait_ready`

/// A thread that waits for `time` until there is a value.
fn waiting(refresher: &Arc<Refresher>, cell: &Cell, time: Duration) -> JoinHandle<bool> {
    let before = cell.stats().waits;
    let refresher = Arc::clone(refresher);
    let thread = thread::spawn(move || refresher.wait_ready(time));
    eventually("the thread waits", || cell.stats().waits > before);
    thread
}

#[test]
fn wait_ready_returns_at_once_if_there_is_a_value() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    assert!(rig.refresher.wait_ready(Duration::ZERO));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.advance(10 * TTL);
    assert_eq!(rig.cell.freshness(), Freshness::Stale);
    assert!(rig.refresher.wait_ready(Duration::ZERO));
    assert_eq!(rig.cell.stats().waits, 0);
}

#[test]
fn wait_ready_waits_for_the_first_build() {
    let Rig { cell, builds, refresher, .. } = rig();
    let refresher = Arc::new(refresher);
    builds.begins(None);
    assert!(!refresher.wait_ready(Duration::ZERO));
    let waits = waiting(&refresher, &cell, Duration::MAX);
    builds.ends(Ok(Refreshed::New(1)));
    assert!(waits.join().unwrap());
}

#[test]
fn wait_ready_waits_through_failures() {
    let Rig { clock, cell, builds, refresher } = rig();
    let refresher = Arc::new(refresher);
    builds.begins(None);
    let waits = waiting(&refresher, &cell, TTL);
    let mut waited = cell.stats().waits;
    let mut goes_on = || {
        eventually("the thread waits again", || cell.stats().waits > waited);
        waited = cell.stats().waits;
        assert!(!waits.is_finished());
    };
    builds.ends(Err("down"));
    goes_on();
    clock.sleeps_until(SECOND / 10);
    clock.manual.advance(SECOND / 10);
    builds.begins(None);
    builds.ends_with(panicking("no"));
    goes_on();
    clock.sleeps_until(3 * SECOND / 10);
    clock.manual.advance(SECOND / 5);
    builds.begins(None);
    builds.ends(Ok(Refreshed::New(1)));
    assert!(waits.join().unwrap());
}

#[test]
fn wait_ready_takes_a_value_that_is_set() {
    let Rig { cell, builds, refresher, .. } = rig();
    let refresher = Arc::new(refresher);
    builds.begins(None);
    let waits = waiting(&refresher, &cell, Duration::MAX);
    cell.set(7);
    assert!(waits.join().unwrap());
    builds.ends(Err("late"));
}

#[test]
fn wait_ready_returns_false_exactly_when_the_time_is_over() {
    let Rig { clock, cell, builds, refresher } = rig();
    let refresher = Arc::new(refresher);
    builds.begins(None);
    let waits = waiting(&refresher, &cell, TTL);
    let thread = waits.thread().id();
    clock.waits_until(thread, TTL);
    clock.manual.advance(TTL - TICK);
    clock.waits_until(thread, TTL);
    assert!(!waits.is_finished());
    clock.manual.advance(TICK);
    assert!(!waits.join().unwrap());
    // The build goes on.
    builds.ends(Ok(Refreshed::New(1)));
    eventually("it is published", || cell.generation() == 1);
    assert!(refresher.wait_ready(Duration::ZERO));
}

#[test]
fn an_expired_value_is_not_ready() {
    let rig = Rig::asleep(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.advance(TTL);
    assert_eq!(rig.cell.freshness(), Freshness::Expired);
    assert!(!rig.refresher.wait_ready(Duration::ZERO));
}

#[test]
fn g10_wait_ready_inside_the_build_returns_false() {
    let Rig { cell, builds, refresher, .. } = rig();
    let refresher = Arc::new(refresher);
    builds.begins(None);
    let own = Arc::clone(&refresher);
    builds.ends_with(move || {
        assert!(!own.wait_ready(Duration::MAX));
        Ok(Refreshed::New(1))
    });
    eventually("it is published", || cell.generation() == 1);
    assert_eq!(refresher.consecutive_failures(), 0);
}

#[test]
fn wait_ready_without_a_cell_returns_false() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    drop(rig.cell);
    rig.builds.end();
    assert!(!rig.refresher.wait_ready(Duration::MAX));
}

// `stop_timeout`

#[test]
fn stop_timeout_ends_a_sleep_and_a_pause() {
    for pauses in [false, true] {
        let rig = Rig::asleep(Policy::ttl(TTL));
        if pauses {
            rig.builds_after(DUE, Some(1), Err("down"));
            rig.clock.sleeps_until(DUE + SECOND / 10);
        }
        assert!(rig.refresher.stop_timeout(Duration::MAX));
        assert!(rig.builds.are_over());
        rig.clock.manual.advance(TTL + TICK);
        assert_eq!(*rig.cell.get_or_refresh(|| 2), 2);
    }
}

#[test]
fn stop_timeout_returns_false_while_a_build_runs_and_readers_build_meanwhile() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    assert!(!rig.refresher.stop_timeout(Duration::ZERO));
    // The running build has the lease.
    assert!(rig.cell.is_refreshing());
    serves(&rig.cell, 1);
    // What takes the lease from it shows that readers build again.
    rig.cell.set(7);
    rig.cell.invalidate();
    assert_eq!(*rig.cell.get_or_refresh(|| 8), 8);
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.builds.end();
    assert_eq!((rig.cell.get().as_deref(), rig.cell.generation()), (Some(&8), 3));
}

#[test]
fn a_build_that_ends_after_stop_timeout_is_published() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.clock.manual.advance(DUE);
    rig.builds.begins(Some(1));
    assert!(!rig.refresher.stop_timeout(Duration::ZERO));
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.builds.end();
    assert_eq!((rig.cell.generation(), rig.cell.freshness()), (2, Freshness::Fresh));
    serves(&rig.cell, 2);
    rig.clock.manual.advance(TTL + TICK);
    assert_eq!(*rig.cell.get_or_refresh(|| 3), 3);
}

#[test]
fn stop_timeout_returns_false_exactly_when_the_time_is_over() {
    let Rig { clock, cell, builds, refresher } = rig();
    builds.begins(None);
    let stops = thread::spawn(move || refresher.stop_timeout(TTL));
    let thread = stops.thread().id();
    clock.waits_until(thread, TTL);
    clock.manual.advance(TTL - TICK);
    clock.waits_until(thread, TTL);
    assert!(!stops.is_finished());
    clock.manual.advance(TICK);
    assert!(!stops.join().unwrap());
    builds.ends(Ok(Refreshed::New(1)));
    builds.end();
    assert_eq!(cell.get().as_deref(), Some(&1));
}

#[test]
fn stop_timeout_returns_true_when_the_build_has_ended_in_time() {
    for end in [Ok(Refreshed::New(1)), Err("down")] {
        let Rig { clock, cell, builds, refresher } = rig();
        builds.begins(None);
        let stops = thread::spawn(move || refresher.stop_timeout(TTL));
        clock.waits_until(stops.thread().id(), TTL);
        builds.ends(end);
        assert!(stops.join().unwrap());
        assert!(builds.are_over());
        assert_eq!(cell.generation(), u64::from(end.is_ok()));
    }
}

#[test]
fn stop_timeout_from_inside_its_build_does_not_wait() {
    let rig = rig();
    rig.builds.begins(None);
    let Rig { refresher, builds, cell, .. } = rig;
    builds.ends_with(move || {
        assert!(!refresher.stop_timeout(Duration::MAX));
        Ok(Refreshed::New(1))
    });
    builds.end();
    serves(&cell, 1);
    cell.invalidate();
    eventually("readers build again", || *cell.get_or_refresh(|| 2) == 2);
}

#[test]
fn stop_timeout_without_a_cell_returns_true() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    drop(rig.cell);
    assert!(rig.refresher.stop_timeout(Duration::MAX));
    assert!(rig.builds.are_over());
}
