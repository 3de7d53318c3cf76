//! Reads of a `SyncReaderCell`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Drain, Freshness, Policy, ReaderArc, RefreshError, SyncReaderCell};

use super::{background, logged};
use crate::support::{TTL, eventually, gate, panic_message};

#[test]
fn it_reads_like_a_dogpile_cell() {
    let (cell, clock, log) = background();
    assert!(cell.get().is_none() && cell.load().is_none());
    assert_eq!((cell.freshness(), cell.generation()), (Freshness::Empty, 0));
    assert_eq!(*cell.get_or_refresh(|| 1), 1);
    assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
    assert_eq!(*cell.load_or_refresh(|| unreachable!()), 1);
    assert_eq!(*cell.try_get_or_refresh(|| -> Result<u32, String> { unreachable!() }).unwrap(), 1);
    clock.advance(2 * TTL);
    assert_eq!(*cell.load_or_refresh(|| 2), 2);
    cell.invalidate();
    assert_eq!(cell.freshness(), Freshness::Stale);
    assert_eq!(*cell.request().max_stale(Duration::ZERO).get(|| 3), 3);
    assert_eq!(*cell.request().no_cache().get(|| 4), 4);
    assert_eq!((cell.generation(), cell.stats().builds, log.complete(&cell)), (4, 4, vec![1, 2, 3]));
    assert!(!cell.is_refreshing());
}

#[test]
fn stale_readers_are_not_blocked_while_a_build_runs() {
    let (cell, clock, _log) = background();
    cell.set(1);
    clock.advance(2 * TTL);
    let (build, keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.get_or_refresh(|| {
                build.pass();
                2
            })
        });
        keeper.wait_for_arrival();
        assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
        assert_eq!(*cell.load_or_refresh(|| unreachable!()), 1);
        keeper.open();
        assert_eq!(*builder.join().unwrap(), 2);
    });
}

#[test]
fn errors_are_shared_and_timeouts_kept_as_in_the_inner_cell() {
    let (cell, _clock, _log) = background();
    let error = cell.try_get_or_refresh(|| Err("no")).unwrap_err();
    assert!(matches!(error, RefreshError::Build(error) if error.to_string() == "no"));
    assert_eq!(cell.last_error().unwrap().to_string(), "no");
    cell.get_or_refresh(|| {
        let inner = cell.request().wait_at_most(TTL).try_get(|| Ok::<_, String>(2));
        assert!(matches!(inner, Err(RefreshError::Reentrant)));
        1
    });
}

#[test]
fn a_reader_arc_can_be_cloned_sent_and_kept_beyond_the_cell() {
    let (cell, _clock, _log) = background();
    let reader = cell.get_or_refresh(|| 7);
    let clone = reader.clone();
    assert!(ReaderArc::ptr_eq(&reader, &clone));
    assert_eq!(cell.readers(), 2);
    drop(cell);
    assert_eq!(thread::spawn(move || *clone).join().unwrap(), *reader);
}

#[test]
fn a_value_held_through_a_guard_counts_as_read() {
    let (cell, _clock, log) = background();
    cell.set(1);
    let guard = cell.load().unwrap();
    cell.set(2);
    assert_eq!((*guard, log.entries(), cell.readers()), (1, vec![], 1));
    drop(guard);
    cell.synchronize();
    assert_eq!(log.entries(), [1]);
}

#[test]
fn more_guards_than_there_are_places_for_are_fine() {
    let (cell, _clock, log) = background();
    let mut guards = Vec::new();
    for number in 0..50 {
        cell.set(number);
        guards.push(cell.load().unwrap());
        guards.push(cell.load_or_refresh(|| unreachable!()));
    }
    assert!(guards.iter().enumerate().all(|(index, guard)| **guard as usize == index / 2));
    guards.truncate(2);
    assert_eq!(log.entries(), []);
    guards.clear();
    cell.synchronize();
    assert_eq!(log.entries(), (0..49).collect::<Vec<_>>());
}

#[test]
fn synchronize_panics_on_a_thread_that_holds_a_guard_of_a_replaced_value() {
    let (cell, _clock, _log) = background();
    cell.set(1);
    let guard = cell.load().unwrap();
    // Of the current value: nothing to wait for.
    cell.synchronize();
    cell.set(2);
    assert!(cell.synchronize_timeout(Duration::MAX).is_err());
    assert!(panic_message(|| cell.synchronize()).contains("holds a ReadGuard"));
    drop(guard);
    cell.synchronize();
}

#[test]
fn looking_at_one_shows_no_value() {
    let (cell, _clock, _log) = logged(Policy::ttl(TTL), Drain::Background);
    let reader = cell.get_or_refresh(|| 1);
    let text = format!("{cell:?} {reader:?} {:?}", cell.load().unwrap());
    assert!(
        text.contains("generation: 1") && text.contains("ReaderArc") && text.contains("ReadGuard"),
        "{text}"
    );
}

/// A value that knows whether it has been finalised; the finalizer keeps it, so that a late reader would see it.
#[test]
fn g11_no_reader_ever_sees_a_finalised_value() {
    const VALUES: usize = if cfg!(miri) { 20 } else { 5_000 };
    struct Poisoned(AtomicBool);
    let graveyard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let buried = std::sync::Arc::clone(&graveyard);
    let cell = SyncReaderCell::new(Duration::from_secs(3600), move |value: Poisoned| {
        value.0.store(true, Ordering::SeqCst);
        buried.lock().unwrap().push(value);
    });
    cell.set(Poisoned(AtomicBool::new(false)));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let reader = cell.get().unwrap();
                    let guard = cell.load().unwrap();
                    for _ in 0..10 {
                        assert!(!reader.0.load(Ordering::SeqCst), "a finalised value is being read");
                        assert!(!guard.0.load(Ordering::SeqCst), "a finalised value is being read");
                    }
                }
            });
        }
        for _ in 0..VALUES {
            cell.set(Poisoned(AtomicBool::new(false)));
        }
        done.store(true, Ordering::Relaxed);
    });
    cell.synchronize();
    assert_eq!(graveyard.lock().unwrap().len(), VALUES);
    eventually("nothing is left", || cell.retired() == 0);
}

#[test]
fn ptr_eq_is_of_the_value_not_of_what_it_is_equal_to() {
    let (cell, _clock, _log) = background();
    let first = cell.set(1);
    assert!(ReaderArc::ptr_eq(&first, &cell.get().unwrap()));
    assert!(!ReaderArc::ptr_eq(&first, &cell.set(1)));
}
