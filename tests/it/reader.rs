//! The per-thread handle.

use std::sync::Arc;
use std::thread;

use dogpile::{LazyDogpile, Owned, RefreshError};

use crate::support::{Down, LookupExt, STRICT, TICK, TTL, cell, cell_with, panic_message, stale_cell};

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

#[test]
fn a_fallible_build_leaves_the_reader_as_it_was() {
    let (cell, clock) = cell_with(STRICT);
    let mut reader = cell.reader();
    let failed = reader.try_get_or_refresh(|| Err(Down(1))).map(|_| ());
    assert!(matches!(failed, Err(RefreshError::Build(error)) if error.is::<Down>()));
    cell.reset();
    assert_eq!(reader.try_get_or_refresh(|| Ok::<_, Down>(1)).map(|value| **value).unwrap(), 1);
    assert_eq!(
        reader.try_get_or_refresh(|| -> Result<i32, Down> { unreachable!() }).map(|value| **value).unwrap(),
        1
    );
    clock.advance(TTL + TICK);
    assert!(reader.try_get_or_refresh(|| Err(Down(1))).is_err());
    assert_eq!(reader.get().map(|value| **value), Some(1));
}

#[test]
fn clones_of_an_owned_value_touch_only_the_count_of_their_reader() {
    let (cell, _clock) = cell();
    let value = cell.set(1);
    let mut reader = cell.reader();
    reader.get();
    // The cell, `value` and the reader.
    assert_eq!(Arc::strong_count(&value), 3);
    let mut owned: Vec<Owned<i32>> =
        (0..10).map(|_| reader.get_owned_or_refresh(|| unreachable!())).collect();
    owned.extend(reader.get_owned());
    assert_eq!(Arc::strong_count(&value), 4);
    let clones = owned.clone();
    assert_eq!(Arc::strong_count(&value), 4);
    let other = cell.reader().get_owned();
    assert_eq!(Arc::strong_count(&value), 5);
    assert!(clones.iter().chain(&owned).chain(&other).all(|owned| Arc::ptr_eq(Owned::as_arc(owned), &value)));
    drop((owned, clones, other));
    assert_eq!(Arc::strong_count(&value), 4);
    reader.release();
    assert_eq!(Arc::strong_count(&value), 2);
}

#[test]
fn an_owned_value_is_that_of_the_publication_that_was_read() {
    let (cell, clock) = cell();
    let mut reader = cell.reader();
    assert!(reader.get_owned().is_none());
    let first = reader.get_owned_or_refresh(|| 1);
    cell.set(2);
    let second = reader.get_owned().unwrap();
    assert_eq!((*first, *second), (1, 2));
    clock.advance(TTL + TICK);
    assert_eq!(*reader.get_owned_or_refresh(|| 3), 3);
    cell.clear();
    assert!(reader.get_owned().is_none());
}

#[test]
fn a_value_that_is_renewed_keeps_its_owned_handle() {
    let (cell, clock) = cell();
    let value = cell.set(1);
    let mut reader = cell.reader();
    let first = reader.get_owned().unwrap();
    clock.advance(TTL + TICK);
    cell.lookup().elected().renew().unwrap();
    let second = reader.get_owned().unwrap();
    // The cell, `value`, the reader and its one owned handle.
    assert_eq!((Arc::strong_count(&value), *first, *second), (4, 1, 1));
}

#[test]
fn the_last_owner_of_any_kind_drops_the_value() {
    let (cell, _clock) = cell();
    let mut reader = cell.reader();
    let weak = Arc::downgrade(&cell.set(1));
    let owned = reader.get_owned().unwrap();
    cell.set(2);
    drop(reader);
    let clone = thread::spawn(move || owned.clone()).join().unwrap();
    assert!(weak.upgrade().is_some());
    thread::spawn(move || drop(clone)).join().unwrap();
    assert!(weak.upgrade().is_none());
}

#[test]
fn a_reader_of_a_lazy_cell_owns_and_fails_too() {
    let lazy = LazyDogpile::new(TTL, || 7);
    let mut reader = lazy.reader();
    assert!(reader.get_owned().is_none());
    assert_eq!((*reader.get_owned_or_refresh(), reader.get_owned().as_deref()), (7, Some(&7)));
    let failing = LazyDogpile::<i32, _>::new(TTL, || Err(Down(1)));
    assert!(failing.reader().try_get_or_refresh().is_err());
}
