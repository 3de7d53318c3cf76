//! G3 and the reads that never build.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Freshness, Guard, Policy};

use crate::support::{LookupExt, TICK, TTL, cell, cell_with, stale_cell};

#[test]
fn an_empty_cell_has_nothing_to_show() {
    let (cell, _clock) = cell::<u32>();
    assert_eq!(cell.get(), None);
    assert!(cell.load().is_none());
    assert!(cell.snapshot().is_none());
    assert_eq!(cell.freshness(), Freshness::Empty);
    assert_eq!(cell.generation(), 0);
    assert!(!cell.is_refreshing());
    assert_eq!(cell.stats(), dogpile::Stats::default());
    assert_eq!(cell.into_inner(), None);
}

#[test]
fn what_may_be_served_is_served_without_building() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(TTL));
    cell.set(1);
    for _ in 0..2 {
        assert_eq!(cell.get().as_deref(), Some(&1));
        assert_eq!(cell.load().as_deref(), Some(&1));
        clock.advance(2 * TTL);
    }
    clock.advance(TICK);
    assert_eq!(cell.get(), None);
    assert!(cell.load().is_none());
    assert_eq!(cell.stats().builds, 0);
    assert_eq!(cell.into_inner().as_deref(), Some(&1));
}

#[test]
fn a_snapshot_belongs_to_one_publication() {
    let (cell, clock) = cell();
    cell.set(1);
    clock.advance(Duration::from_secs(3));
    let snapshot = cell.snapshot().unwrap();
    assert_eq!((*snapshot.value, snapshot.generation), (1, 1));
    assert_eq!((snapshot.age, snapshot.freshness), (Duration::from_secs(3), Freshness::Fresh));
    cell.invalidate();
    let snapshot = cell.snapshot().unwrap();
    assert_eq!((snapshot.generation, snapshot.freshness), (1, Freshness::Stale));
    assert_eq!(snapshot.age, Duration::from_secs(3));
    cell.clear();
    assert!(cell.snapshot().is_none());
    assert_eq!(cell.generation(), 1);
}

#[test]
fn g3_no_thread_sees_a_generation_go_back_in_whichever_way_it_looks() {
    const LAST: u64 = 20_000;
    let (cell, _clock) = cell_with(Policy::never_expires());
    cell.set(1_u64);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut seen = 0;
                let mut see = |generation: u64, way: &str| {
                    assert!(generation >= seen, "{way} shows {generation} after {seen}");
                    seen = generation;
                };
                let mut reader = cell.reader();
                while !done.load(Ordering::Relaxed) {
                    // The value is its own generation.
                    see(*cell.get().unwrap(), "get");
                    see(cell.generation(), "generation");
                    see(**reader.get_or_refresh(|| unreachable!()), "Reader");
                    see(*cell.load().unwrap(), "load");
                    let snapshot = cell.snapshot().unwrap();
                    assert_eq!(
                        *snapshot.value, snapshot.generation,
                        "value and generation of two publications"
                    );
                    see(snapshot.generation, "snapshot");
                    see(**reader.get().unwrap(), "Reader::get");
                    see(*cell.get_or_refresh(|| unreachable!()), "get_or_refresh");
                }
            });
        }
        for generation in 2..=LAST {
            cell.set(generation);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(cell.generation(), LAST);
}

#[test]
fn a_guard_keeps_its_value() {
    let (cell, _clock) = stale_cell(String::from("old"));
    let guard = cell.load().unwrap();
    cell.set(String::from("new"));
    assert_eq!(*guard, "old");
    let kept = Guard::into_arc(guard);
    assert_eq!(Arc::strong_count(&kept), 1);
}

#[test]
fn many_guards_at_once_are_fine() {
    let (cell, _clock) = cell_with(Policy::never_expires());
    let mut guards = Vec::new();
    for generation in 0..100 {
        cell.set(generation);
        guards.push((generation, cell.load_or_refresh(|| unreachable!())));
    }
    for (generation, guard) in guards {
        assert_eq!(*guard, generation);
    }
}

#[test]
fn a_guard_of_a_build_is_a_guard_like_any_other() {
    let (cell, _clock) = cell();
    let guard = cell.load_or_refresh(|| 1);
    assert_eq!(*guard, 1);
    assert!(Arc::ptr_eq(&Guard::into_arc(guard), &cell.get().unwrap()));
}

#[test]
fn looking_at_a_cell_in_a_debugger_shows_no_value_and_does_not_block() {
    struct Opaque;
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let text = format!("{cell:?} {lease:?} {:?} {:?}", cell.lookup(), cell.reader());
    assert!(text.contains("is_refreshing: true"), "{text}");
    lease.publish(Opaque);
    let text = format!("{:?} {:?} {:?}", cell.lookup(), cell.load().unwrap(), cell.snapshot().unwrap());
    assert!(text.contains("generation: 1"), "{text}");
}
