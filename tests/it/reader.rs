//! The per-thread handle.

use std::sync::Arc;

use crate::support::{LookupExt, STRICT, TICK, TTL, cell, cell_with, panic_message, stale_cell};

#[test]
fn a_reader_builds_like_the_cell_and_keeps_what_it_got() {
    let (cell, clock) = cell();
    let mut reader = cell.reader();
    assert!(reader.get().is_none());
    let first = Arc::clone(reader.get_or_refresh(|| 1));
    assert_eq!(**reader.get_or_refresh(|| unreachable!()), 1);
    // The cell, the handle and `first`: reading again has taken no further reference.
    assert_eq!(Arc::strong_count(&first), 3);
    clock.advance(TTL + TICK);
    assert_eq!(**reader.get_or_refresh(|| 2), 2);
    assert_eq!(Arc::strong_count(&first), 1);
}

#[test]
fn a_reader_sees_every_change() {
    let (cell, _clock) = cell();
    let mut reader = cell.reader();
    cell.set(1);
    assert_eq!(reader.get().map(|value| **value), Some(1));
    cell.set(2);
    assert_eq!(reader.get().map(|value| **value), Some(2));
    assert_eq!(**reader.get_or_refresh(|| unreachable!()), 2);
    cell.invalidate();
    assert_eq!(reader.get().map(|value| **value), Some(2));
    assert_eq!(**reader.get_or_refresh(|| 3), 3);
    cell.clear();
    assert!(reader.get().is_none());
    assert_eq!(**reader.get_or_refresh(|| 4), 4);
}

#[test]
fn a_reader_serves_the_stale_value_while_a_build_runs() {
    let (cell, _clock) = stale_cell(1);
    let mut reader = cell.reader();
    let lease = cell.lookup().elected();
    for _ in 0..3 {
        assert_eq!(**reader.get_or_refresh(|| unreachable!()), 1);
    }
    lease.publish(2);
    assert_eq!(**reader.get_or_refresh(|| unreachable!()), 2);
}

#[test]
fn a_reader_does_not_hold_on_to_an_unpublished_value() {
    let (cell, _clock) = cell();
    let mut reader = cell.reader();
    let own = reader.get_or_refresh(|| {
        cell.clear();
        cell.set(0);
        cell.clear();
        1
    });
    assert_eq!(**own, 1);
    assert_eq!(**reader.get_or_refresh(|| 2), 2);
}

#[test]
fn a_reader_lets_go() {
    let (cell, _clock) = cell();
    let value = cell.set(1);
    let mut reader = cell.reader();
    reader.get();
    assert_eq!(Arc::strong_count(&value), 3);
    reader.release();
    assert_eq!(Arc::strong_count(&value), 2);
    assert_eq!(**reader.get_or_refresh(|| unreachable!()), 1);
}

#[test]
fn a_reader_survives_a_panicking_build() {
    let (cell, clock) = cell_with(STRICT);
    let mut reader = cell.reader();
    reader.get_or_refresh(|| 1);
    clock.advance(TTL + TICK);
    panic_message(|| reader.get_or_refresh(|| panic!("no")));
    assert_eq!(reader.get().map(|value| **value), Some(1));
    assert_eq!(**reader.get_or_refresh(|| 2), 2);
}
