//! A refresher that rests while its value is not read: which reads wake it.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{Lookup, ManualClock, Policy, Reader, Refreshed, Refresher};

use super::{DUE, Polled, SECOND};
use crate::support::{Cell, Hand, TICK, TTL, unbuilt, untried};

fn resting(policy: Policy) -> Polled {
    Polled::asleep_with(Refresher::options().rest_when_unused(), policy)
}

/// One whose value was published at the tick 0, was not read since, and is due.
#[track_caller]
fn at_rest() -> Polled {
    let mut task = resting(Policy::ttl(TTL));
    task.advance(DUE);
    rests(&mut task);
    task
}

/// It has been woken, and rests: not even the clock wakes it again.
#[track_caller]
fn rests(task: &mut Polled) {
    task.goes_on();
    task.builds.none();
    let wakes = task.task.wakes();
    task.advance(100 * TTL);
    assert_eq!(task.task.wakes(), wakes);
}

fn served(lookup: Lookup<'_, u32, ManualClock>) -> u32 {
    match lookup {
        Lookup::Fresh(value) | Lookup::Stale(value) => *value,
        other => panic!("expected a value, got {other:?}"),
    }
}

fn sync_unbuilt() -> u32 {
    unreachable!("readers do not build")
}

type Read = fn(&Cell<u32>) -> u32;

const READS: [(&str, Read); 13] = [
    ("get", |cell| *cell.get().unwrap()),
    ("load", |cell| *cell.load().unwrap()),
    ("get_or_refresh", |cell| *cell.get_or_refresh(sync_unbuilt)),
    ("try_get_or_refresh", |cell| *cell.try_get_or_refresh(|| Ok::<_, &str>(sync_unbuilt())).unwrap()),
    ("load_or_refresh", |cell| *cell.load_or_refresh(sync_unbuilt)),
    ("Reader::get_or_refresh", |cell| **cell.reader().get_or_refresh(sync_unbuilt)),
    ("Reader::get", |cell| **cell.reader().get().unwrap()),
    ("lookup", |cell| served(cell.lookup())),
    ("lookup_owned", |cell| served(cell.lookup_owned())),
    ("request", |cell| *cell.request().get(sync_unbuilt)),
    ("request with conditions", |cell| *cell.request().max_age(1000 * TTL).newer_than(0).get(sync_unbuilt)),
    ("get_or_refresh_async", |cell| *Hand::new(cell.get_or_refresh_async(unbuilt)).ready()),
    ("try_get_async", |cell| *Hand::new(cell.request().try_get_async(untried)).ready().unwrap()),
];

#[test]
fn every_kind_of_read_wakes_it_and_is_served_the_stale_value() {
    for (name, read) in READS {
        let mut task = at_rest();
        let wakes = task.task.wakes();
        assert_eq!(read(&task.cell), 1, "{name}");
        assert_eq!(task.task.wakes(), wakes + 1, "{name}");
        // The reads after the first one leave it alone.
        assert_eq!(read(&task.cell), 1, "{name}");
        assert_eq!(task.task.wakes(), wakes + 1, "{name}");
        task.goes_on();
        task.builds.begun(Some(1));
        task.ends(Ok(Refreshed::New(2)));
        // One read is one build.
        task.advance(DUE);
        rests(&mut task);
    }
}

#[test]
fn a_value_that_was_read_while_it_was_fresh_is_rebuilt_ahead_of_its_end() {
    for (name, read) in READS {
        let mut task = resting(Policy::ttl(TTL));
        assert_eq!(read(&task.cell), 1, "{name}");
        // That wakes it; it is not yet time.
        task.goes_on();
        task.builds.none();
        task.advance(DUE - TICK);
        task.goes_on();
        task.builds.none();
        task.advance(TICK);
        task.goes_on();
        assert_eq!(task.cell.stats().builds, 2, "{name}");
    }
}

/// A `Reader` has the value at hand, and the mark is left all the same.
#[test]
fn a_reader_that_is_kept_wakes_it_each_time() {
    let mut task = resting(Policy::ttl(TTL));
    let cell = Arc::clone(&task.cell);
    let mut reader: Reader<'_, _, _> = cell.reader();
    for (value, end) in [(1, Refreshed::New(2)), (2, Refreshed::NotModified), (2, Refreshed::New(3))] {
        task.advance(DUE);
        rests(&mut task);
        assert_eq!(**reader.get_or_refresh(sync_unbuilt), value);
        assert_eq!(**reader.get().unwrap(), value);
        task.goes_on();
        task.builds.begun(Some(value));
        task.ends(Ok(end));
    }
    assert_eq!(cell.stats().builds, 4);
}

#[test]
fn a_value_that_is_renewed_or_set_has_to_be_read_again() {
    let mut task = at_rest();
    assert_eq!(task.cell.get().as_deref(), Some(&1));
    task.goes_on();
    task.builds.begun(Some(1));
    task.ends(Ok(Refreshed::NotModified));
    task.advance(DUE);
    rests(&mut task);
    task.cell.set(5);
    task.goes_on();
    task.builds.none();
    task.advance(DUE);
    rests(&mut task);
    assert_eq!(task.cell.get().as_deref(), Some(&5));
    task.goes_on();
    task.builds.begun(Some(5));
}

#[test]
fn an_invalidate_leaves_it_at_rest_until_the_value_is_read() {
    let mut task = resting(Policy::never_expires());
    task.cell.invalidate();
    task.goes_on();
    task.builds.none();
    assert_eq!(task.cell.get().as_deref(), Some(&1));
    task.goes_on();
    task.builds.begun(Some(1));
    task.ends(Ok(Refreshed::New(2)));
    // And one that was read is rebuilt at once.
    assert_eq!(task.cell.get().as_deref(), Some(&2));
    task.goes_on();
    task.builds.none();
    task.cell.invalidate();
    task.goes_on();
    task.builds.begun(Some(2));
}

#[test]
fn a_clear_and_refresh_now_wake_it() {
    let mut task = at_rest();
    task.refresher.refresh_now();
    task.goes_on();
    task.builds.begun(Some(1));
    task.ends(Ok(Refreshed::New(2)));
    task.cell.clear();
    task.goes_on();
    task.builds.begun(None);
}

#[test]
fn a_read_ends_no_retry_pause() {
    let mut task = at_rest();
    assert_eq!(task.cell.get().as_deref(), Some(&1));
    task.goes_on();
    task.builds.begun(Some(1));
    task.ends(Err("down"));
    task.serves(1);
    task.begins_after(SECOND / 10, Some(1));
}

#[test]
fn a_value_that_has_expired_unread_is_rebuilt_by_its_next_reader() {
    let mut task = resting(Policy::ttl(TTL).stale_while_refresh(TTL));
    task.advance(2 * TTL + TICK);
    rests(&mut task);
    assert_eq!(*Hand::new(task.cell.get_or_refresh_async(|| async { 2 })).ready(), 2);
    task.goes_on();
    task.builds.none();
    assert_eq!(task.cell.stats().builds, 2);
}

/// A read that leaves its mark does not come in the way of others.
#[test]
fn when_it_is_gone_readers_build_again() {
    let task = at_rest();
    let Polled { cell, mut task, refresher, .. } = task;
    drop(refresher);
    task.ready();
    assert_eq!(*Hand::new(cell.get_or_refresh_async(|| async { 2 })).ready(), 2);
    assert_eq!(cell.request().max_stale(Duration::ZERO).get(sync_unbuilt), cell.get().unwrap());
}
