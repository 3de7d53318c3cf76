//! `RefresherOptions`: one that rests while its value is not read, and the least interval between builds.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{Freshness, Policy, Refreshed, Refresher};

use super::{AHEAD, Bed, Cell, DUE, Rig, SECOND, panicking, plain, rig_with_options, serves};
use crate::support::{TICK, TTL, eventually};

// `rest_when_unused`

/// A rig that rests: 1 was published at the tick 0, was not read since, and is due.
#[track_caller]
fn at_rest(policy: Policy) -> Rig {
    let rig = Rig::asleep_with(Refresher::options().rest_when_unused(), policy);
    rig.advance(DUE);
    rests(&rig);
    rig
}

/// It has looked, and sleeps until it is woken: the clock does not wake it.
#[track_caller]
fn rests(rig: &Rig) {
    eventually("it rests", || rig.clock.refreshers().is_empty());
}

#[test]
fn a_value_that_is_not_read_is_not_rebuilt() {
    let rig = at_rest(Policy::ttl(TTL));
    rig.advance(100 * TTL);
    rig.builds.none();
    assert_eq!((rig.cell.stats().builds, rig.cell.freshness()), (1, Freshness::Stale));
    // The next reader is served the stale value, and wakes it.
    assert_eq!(rig.cell.get().as_deref(), Some(&1));
    rig.builds.begins(Some(1));
    assert_eq!(rig.cell.stats().builds, 2);
    rig.builds.ends(Ok(Refreshed::New(2)));
    // It is not read again, and not rebuilt.
    rig.clock.sleeps_until(rig.clock.time() + DUE);
    rig.advance(DUE);
    rests(&rig);
    rig.builds.none();
    assert_eq!(rig.cell.stats().builds, 2);
}

#[test]
fn a_peek_is_no_read_and_a_snapshot_is_one() {
    let rig = at_rest(Policy::ttl(TTL));
    rig.advance(TTL);
    let seen = rig.cell.peek().unwrap();
    assert_eq!((*seen.value, seen.generation, seen.freshness), (1, 1, Freshness::Stale));
    rests(&rig);
    rig.builds.none();
    assert_eq!(*rig.cell.snapshot().unwrap().value, 1);
    rig.builds.begins(Some(1));
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.clock.sleeps_until(rig.clock.time() + DUE);
    // Nor is one before it is due.
    assert_eq!(rig.cell.peek().unwrap().generation, 2);
    rig.advance(DUE);
    rests(&rig);
    rig.builds.none();
}

#[test]
fn a_value_that_is_read_is_rebuilt_ahead_of_its_end() {
    let rig = Rig::asleep_with(Refresher::options().rest_when_unused(), Policy::ttl(TTL));
    for value in 1..=3 {
        rig.serves(value);
        rig.begins_after(rig.clock.nap_end() - rig.clock.time(), Some(value));
        assert_eq!(rig.cell.freshness(), Freshness::Fresh);
        rig.builds.ends(Ok(Refreshed::New(value + 1)));
        eventually("it is published", || rig.cell.get().as_deref() == Some(&(value + 1)));
        rig.clock.sleeps_until(rig.clock.time() + DUE);
    }
}

#[test]
fn refresh_now_and_a_clear_wake_it_though_the_value_was_not_read() {
    let rig = at_rest(Policy::ttl(TTL));
    rig.refresher.refresh_now();
    rig.builds.begins(Some(1));
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.clock.sleeps_until(DUE + DUE);
    rig.cell.clear();
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(3)));
    rig.clock.sleeps_until(DUE + DUE);
}

#[test]
fn a_reader_that_finds_an_expired_value_builds() {
    let rig = at_rest(Policy::ttl(TTL).stale_while_refresh(TTL));
    rig.advance(2 * TTL + TICK);
    assert_eq!(rig.cell.freshness(), Freshness::Expired);
    assert_eq!(*rig.cell.get_or_refresh(|| 2), 2);
    rig.clock.sleeps_until(rig.clock.time() + DUE);
}

#[test]
fn one_that_rests_is_dropped_and_stopped_at_once() {
    let rig = at_rest(Policy::ttl(TTL));
    assert!(rig.refresher.stop_timeout(Duration::MAX));
    assert!(rig.builds.are_over());
    rig.clock.manual.advance(TTL);
    assert_eq!(*rig.cell.get_or_refresh(|| 2), 2);
    let rig = at_rest(Policy::ttl(TTL));
    drop(rig.refresher);
    assert!(rig.builds.are_over());
    let rig = at_rest(Policy::ttl(TTL));
    drop(rig.cell);
    rig.builds.end();
}

#[test]
fn with_another_that_does_not_rest_the_value_is_rebuilt() {
    let clock = Bed::default();
    let cell = Arc::new(Cell::with_clock(Policy::ttl(TTL), clock.clone()));
    cell.set(1);
    let resting = Refresher::options().rest_when_unused();
    let rests = rig_with_options(resting, clock.clone(), Arc::clone(&cell), AHEAD);
    let works = rig_with_options(Refresher::options(), clock.clone(), Arc::clone(&cell), AHEAD);
    cell.set(2);
    clock.sleep_until(DUE, 2);
    clock.manual.advance(DUE);
    works.builds.begins(Some(2));
    rests.builds.none();
    works.builds.ends(Ok(Refreshed::New(3)));
    eventually("it is published", || cell.generation() == 3);
    drop(works.refresher);
    serves(&cell, 3);
}

// `min_interval`

#[test]
fn a_time_to_live_that_the_source_chose_leads_to_one_build_in_the_least_interval() {
    let options = Refresher::options().min_interval(3 * SECOND);
    let rig = Rig::asleep_with(options, Policy::ttl(TTL));
    rig.builds_after(DUE, Some(1), Ok(Refreshed::NewFor(2, Duration::ZERO)));
    rig.builds_after(3 * SECOND, Some(2), Ok(Refreshed::NewFor(3, SECOND)));
    rig.builds_after(3 * SECOND, Some(3), Ok(Refreshed::NewFor(4, 5 * SECOND)));
    // Due at half of its life, which is less than the interval.
    rig.builds_after(3 * SECOND, Some(4), Ok(Refreshed::NewFor(5, 8 * SECOND)));
    rig.builds_after(4 * SECOND + TICK, Some(5), Ok(Refreshed::New(6)));
    rig.begins_after(DUE, Some(6));
}

/// How much of the policy's is left, the source has chosen too.
#[test]
fn a_value_that_is_old_already_leads_to_one_build_in_the_least_interval() {
    let options = Refresher::options().min_interval(3 * SECOND);
    let rig = Rig::asleep_with(options, Policy::ttl(TTL));
    let aged = |value, age| Ok(Refreshed::Aged { value, age, ttl: None });
    rig.builds_after(DUE, Some(1), aged(2, 2 * TTL));
    rig.builds_after(3 * SECOND, Some(2), aged(3, TTL - SECOND));
    rig.builds_after(3 * SECOND, Some(3), aged(4, SECOND));
    rig.begins_after(DUE - SECOND, Some(4));
}

#[test]
fn a_value_that_is_set_for_a_short_time_is_rebuilt_after_the_least_interval() {
    let options = Refresher::options().min_interval(3 * SECOND);
    let rig = Rig::asleep_with(options, Policy::ttl(TTL));
    rig.cell.set_for(7, SECOND);
    rig.begins_after(3 * SECOND, Some(7));
}

#[test]
fn the_least_interval_does_not_hold_back_the_policys_own_time_to_live() {
    let clock = Bed::default();
    let cell = Arc::new(Cell::with_clock(Policy::ttl(SECOND), clock.clone()));
    let options = Refresher::options().min_interval(TTL);
    let rig = rig_with_options(options, clock, cell, Duration::ZERO);
    rig.builds.begins(None);
    for value in 1..=3 {
        rig.builds.ends(Ok(Refreshed::New(value)));
        rig.begins_after(SECOND + TICK, Some(value));
    }
    // Nor that of a value that is renewed.
    rig.builds.ends(Ok(Refreshed::NewFor(4, TICK)));
    rig.begins_after(TTL, Some(4));
    rig.builds.ends(Ok(Refreshed::NotModified));
    rig.begins_after(SECOND + TICK, Some(4));
}

#[test]
fn the_least_interval_holds_back_neither_an_invalidate_nor_a_clear_nor_refresh_now() {
    let options = Refresher::options().min_interval(3 * SECOND);
    let rig = Rig::asleep_with(options, Policy::ttl(TTL));
    rig.builds_after(DUE, Some(1), Ok(Refreshed::NewFor(2, Duration::ZERO)));
    rig.clock.sleeps_until(DUE + 3 * SECOND);
    rig.cell.invalidate();
    rig.builds.begins(Some(2));
    rig.builds.ends(Ok(Refreshed::NewFor(3, Duration::ZERO)));
    rig.clock.sleeps_until(DUE + 3 * SECOND);
    rig.refresher.refresh_now();
    rig.builds.begins(Some(3));
    rig.builds.ends(Ok(Refreshed::NewFor(4, Duration::ZERO)));
    rig.clock.sleeps_until(DUE + 3 * SECOND);
    rig.cell.clear();
    rig.builds.begins(None);
}

#[test]
fn the_least_interval_is_the_least_pause_after_a_failure() {
    let options = Refresher::options().min_interval(3 * SECOND);
    let rig = Rig::asleep_with(options, plain(Policy::ttl(TTL)));
    rig.builds_after(DUE, Some(1), Err("down"));
    rig.begins_after(3 * SECOND, Some(1));
    rig.builds.ends_with(panicking("no"));
    rig.begins_after(3 * SECOND, Some(1));
    let rig = Rig::asleep_with(options, Policy::ttl(TTL).retry_backoff(SECOND, SECOND));
    rig.builds_after(DUE, Some(1), Err("down"));
    rig.holds_back(SECOND, 3 * SECOND, Some(1));
    rig.builds.ends_with(panicking("no"));
    rig.holds_back(SECOND, 3 * SECOND, Some(1));
    let rig = Rig::asleep_with(options, Policy::ttl(TTL).retry_backoff(TTL, TTL));
    rig.builds_after(DUE, Some(1), Err("down"));
    rig.begins_after(TTL, Some(1));
}
