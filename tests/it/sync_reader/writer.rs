//! G12: builds that need the old value for themselves.

use std::thread;
use std::time::Duration;

use dogpile::{Drain, Freshness, Policy, RefreshError, SyncReaderCell};

use super::{WAIT, background, logged, strict};
use crate::support::{TICK, TTL, eventually, gate, panic_message};

#[test]
fn g12_while_the_write_lock_is_held_there_is_no_reader_inside_and_new_ones_wait() {
    let (cell, clock, log) = background();
    let reader = cell.get_or_refresh(|| 1);
    clock.advance(2 * TTL);
    let (building, building_keeper) = gate();
    let (locked, locked_keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.request().get_with_writer(|writer| {
                building.pass();
                let mut lock = writer.acquire_write_lock();
                locked.pass();
                assert_eq!(lock.old(), Some(&mut 1));
                2
            })
        });
        building_keeper.wait_for_arrival();
        // Not asked for yet: stale readers go on reading.
        assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
        building_keeper.open();
        // Asked for: new readers wait, though the old one has not left.
        eventually("new readers are held back", || cell.get().is_none());
        assert_eq!(*reader, 1);
        let late = scope.spawn(|| *cell.get_or_refresh(|| unreachable!()));
        eventually("the late reader waits", || cell.stats().waits == 1);
        drop(reader);
        locked_keeper.wait_for_arrival();
        assert_eq!((cell.readers(), cell.get().as_deref()), (0, None));
        locked_keeper.open();
        assert_eq!(*builder.join().unwrap(), 2);
        assert_eq!(late.join().unwrap(), 2);
    });
    assert_eq!((log.complete(&cell), cell.generation()), (vec![1], 2));
}

#[test]
fn g12_no_reader_comes_in_until_the_build_ends_also_when_the_lock_is_dropped_before() {
    let (cell, clock, _log) = background();
    cell.set(1);
    clock.advance(2 * TTL);
    let value = cell.request().get_with_writer(|writer| {
        {
            let mut lock = writer.acquire_write_lock();
            *lock.old().unwrap() += 10;
        }
        assert!(cell.get().is_none());
        // And it can be taken again.
        *writer.acquire_write_lock().old().unwrap() + 1
    });
    assert_eq!(*value, 12);
}

#[test]
fn g12_at_the_first_build_there_is_no_old_value() {
    let (cell, _clock, log) = background();
    let value = cell.request().get_with_writer(|writer| {
        assert!(writer.acquire_write_lock().old().is_none());
        1
    });
    assert_eq!((*value, log.entries()), (1, vec![]));
}

#[test]
fn g12_in_an_empty_cell_the_lock_waits_for_the_readers_of_what_was_cleared() {
    let (cell, _clock, log) = background();
    let mut reader = Some(cell.get_or_refresh(|| 1));
    cell.clear();
    assert_eq!(cell.readers(), 1);
    let value = cell.request().get_with_writer(|writer| {
        assert_eq!(writer.acquire_write_lock_timeout(Duration::ZERO).unwrap_err().readers, 1);
        reader = None;
        assert!(writer.acquire_write_lock().old().is_none());
        assert_eq!(log.entries(), [1]);
        2
    });
    assert_eq!(*value, 2);
}

#[test]
fn g12_after_an_error_the_old_value_is_back() {
    let (cell, clock, log) = strict();
    cell.set(1);
    clock.advance(2 * TTL);
    let result = cell.request().try_get_with_writer(|writer| {
        *writer.acquire_write_lock().old().unwrap() = 7;
        Err("no")
    });
    assert!(matches!(result, Err(RefreshError::Build(error)) if error.to_string() == "no"));
    // Changed in place, as the build left it.
    assert_eq!((cell.get().as_deref(), cell.generation(), log.entries()), (Some(&7), 1, vec![]));
    assert_eq!(cell.freshness(), Freshness::Stale);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    assert_eq!(log.complete(&cell), [7]);
}

/// With the policy's defaults.
#[test]
fn g12_after_an_error_all_callers_are_served_the_old_value() {
    let (cell, clock, _log) = background();
    cell.set(1);
    clock.advance(2 * TTL);
    let (locked, keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.request().try_get_with_writer(|writer| {
                *writer.acquire_write_lock().old().unwrap() = 7;
                locked.pass();
                Err("no")
            })
        });
        keeper.wait_for_arrival();
        let waiter = scope.spawn(|| *cell.get_or_refresh(|| unreachable!()));
        eventually("it waits", || cell.stats().waits == 1);
        keeper.open();
        assert_eq!((*builder.join().unwrap().unwrap(), waiter.join().unwrap()), (7, 7));
    });
    // A retry pause runs.
    assert_eq!(*cell.get_or_refresh(|| unreachable!()), 7);
    assert_eq!(cell.last_error().unwrap().to_string(), "no");
    assert_eq!((cell.stats().served_stale_on_error, cell.stats().consecutive_failures), (2, 1));
}

#[test]
fn g12_after_a_panic_the_old_value_is_back() {
    let (cell, clock, log) = strict();
    cell.set(1);
    clock.advance(2 * TTL);
    let message = panic_message(|| {
        cell.request().get_with_writer(|writer| {
            let _lock = writer.acquire_write_lock();
            panic!("in the section")
        })
    });
    assert_eq!(message, "in the section");
    assert_eq!((cell.get().as_deref(), cell.stats().panicked, log.entries()), (Some(&1), 1, vec![]));
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
}

#[test]
fn g12_callers_that_waited_for_a_section_that_fails_are_served_the_old_value_or_build() {
    let (cell, clock, _log) = strict();
    cell.set(1);
    clock.advance(2 * TTL);
    let (locked, keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.request().try_get_with_writer(|writer| {
                let _lock = writer.acquire_write_lock();
                locked.pass();
                Err("no")
            })
        });
        keeper.wait_for_arrival();
        let waiter = scope.spawn(|| *cell.get_or_refresh(|| 2));
        eventually("it waits", || cell.stats().waits == 1);
        keeper.open();
        // An error, unless the waiter was quick and there is a fresh value to be served instead.
        if let Ok(value) = builder.join().unwrap() {
            assert_eq!(*value, 2);
        }
        let got = waiter.join().unwrap();
        assert!(got == 1 || got == 2, "{got}");
    });
}

#[test]
fn g12_after_a_timeout_the_old_value_is_back_at_once_and_the_build_goes_on() {
    let (cell, clock, log) = background();
    let reader = cell.get_or_refresh(|| 1);
    clock.advance(2 * TTL);
    let (timed_out, keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.request().get_with_writer(|writer| {
                let timeout = writer.acquire_write_lock_timeout(WAIT).unwrap_err();
                assert_eq!(timeout.readers, 1);
                timed_out.pass();
                2
            })
        });
        eventually("new readers are held back", || cell.get().is_none());
        let waiter = scope.spawn(|| *cell.get_or_refresh(|| unreachable!()));
        eventually("it waits", || cell.stats().waits == 1);
        clock.advance(WAIT);
        keeper.wait_for_arrival();
        assert_eq!((waiter.join().unwrap(), cell.get().as_deref()), (1, Some(&1)));
        assert!(cell.is_refreshing());
        keeper.open();
        assert_eq!(*builder.join().unwrap(), 2);
    });
    assert_eq!(log.entries(), []);
    drop(reader);
    cell.synchronize();
    assert_eq!(log.entries(), [1]);
}

#[test]
fn g12_a_timeout_can_be_followed_by_another_try() {
    let (cell, clock, log) = background();
    let mut reader = Some(cell.get_or_refresh(|| 1));
    clock.advance(2 * TTL);
    let value = cell.request().get_with_writer(|writer| {
        assert_eq!(writer.acquire_write_lock_timeout(Duration::ZERO).unwrap_err().readers, 1);
        assert_eq!(cell.get().as_deref(), Some(&1));
        reader = None;
        *writer.acquire_write_lock_timeout(Duration::ZERO).unwrap().old().unwrap() + 1
    });
    assert_eq!((*value, log.complete(&cell)), (2, vec![1]));
}

#[test]
fn g12_the_lock_waits_for_the_readers_of_older_values_too() {
    let (cell, clock, log) = background();
    let older = cell.get_or_refresh(|| 1);
    cell.set(2);
    clock.advance(2 * TTL);
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.request().get_with_writer(|writer| {
                let mut lock = writer.acquire_write_lock();
                // What was retired before has gone before.
                assert_eq!((lock.old(), log.entries()), (Some(&mut 2), vec![1]));
                3
            })
        });
        eventually("new readers are held back", || cell.get().is_none());
        assert!(!builder.is_finished());
        drop(older);
        assert_eq!(*builder.join().unwrap(), 3);
    });
    assert_eq!(log.complete(&cell), [1, 2]);
}

#[test]
fn g12_while_an_older_value_is_read_the_lock_is_not_given() {
    let (cell, clock, log) = background();
    let mut older = Some(cell.get_or_refresh(|| 1));
    cell.set(2);
    clock.advance(2 * TTL);
    let value = cell.request().get_with_writer(|writer| {
        assert_eq!(writer.acquire_write_lock_timeout(Duration::ZERO).unwrap_err().readers, 1);
        older = None;
        assert_eq!((writer.acquire_write_lock().old(), log.entries()), (Some(&mut 2), vec![1]));
        3
    });
    assert_eq!(*value, 3);
}

#[test]
fn g12_set_waits_for_the_end_of_the_section() {
    let (cell, clock, log) = background();
    cell.set(1);
    clock.advance(2 * TTL);
    let (locked, keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.request().get_with_writer(|writer| {
                let _lock = writer.acquire_write_lock();
                locked.pass();
                2
            })
        });
        keeper.wait_for_arrival();
        let setter = scope.spawn(|| *cell.set(3));
        thread::yield_now();
        assert!(!setter.is_finished());
        assert!(cell.get().is_none());
        keeper.open();
        builder.join().unwrap();
        assert_eq!(setter.join().unwrap(), 3);
    });
    cell.synchronize();
    assert_eq!((cell.get().as_deref(), log.entries()), (Some(&3), vec![1, 2]));
}

#[test]
fn g12_a_set_from_inside_the_section_panics() {
    let (cell, _clock, _log) = background();
    cell.set(1);
    cell.invalidate();
    let message = panic_message(|| {
        cell.request().get_with_writer(|writer| {
            let _lock = writer.acquire_write_lock();
            *cell.set(2)
        })
    });
    assert!(message.contains("set was called from inside the build of the same cell"), "{message}");
    assert_eq!(cell.get().as_deref(), Some(&1));
}

#[test]
fn g12_a_clear_during_the_section_retires_the_old_value_instead_of_putting_it_back() {
    let (cell, _clock, log) = background();
    cell.set(1);
    cell.invalidate();
    let result = cell.request().try_get_with_writer(|writer| {
        let _lock = writer.acquire_write_lock();
        cell.clear();
        Err("no")
    });
    assert!(result.is_err());
    assert_eq!((log.complete(&cell), cell.get().as_deref(), cell.retired()), (vec![1], None, 0));
}

#[test]
fn g12_a_clear_during_the_section_keeps_the_new_value_out() {
    let (cell, _clock, log) = background();
    cell.set(1);
    cell.invalidate();
    let own = cell.request().get_with_writer(|writer| {
        let _lock = writer.acquire_write_lock();
        cell.clear();
        2
    });
    assert_eq!((*own, cell.get().as_deref(), log.complete(&cell)), (2, None, vec![1]));
    drop(own);
    eventually("it is finalised", || log.entries() == [1, 2]);
    assert_eq!(cell.retired(), 0);
}

#[test]
fn g12_a_clear_while_the_lock_is_waited_for_retires_the_old_value() {
    let (cell, clock, log) = background();
    let reader = cell.get_or_refresh(|| 1);
    cell.invalidate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.request().get_with_writer(|writer| {
                assert!(writer.acquire_write_lock_timeout(WAIT).is_err());
                assert!(cell.get().is_none());
                2
            })
        });
        eventually("new readers are held back", || cell.get().is_none());
        cell.clear();
        assert_eq!(cell.readers(), 1);
        clock.advance(WAIT);
        assert_eq!(*builder.join().unwrap(), 2);
    });
    assert_eq!((cell.retired(), cell.readers(), *reader), (1, 1, 1));
    drop(reader);
    cell.synchronize();
    assert!(log.entries().contains(&1));
}

#[test]
fn g12_an_invalidation_during_the_section_is_not_forgotten() {
    let (cell, _clock, _log) = background();
    cell.set(1);
    let result = cell.request().try_get_with_writer(|_| Ok::<_, String>(9));
    assert_eq!(*result.unwrap(), 1);
    cell.invalidate();
    cell.request().get_with_writer(|writer| {
        let _lock = writer.acquire_write_lock();
        cell.invalidate();
        2
    });
    assert_eq!(cell.freshness(), Freshness::Stale);
}

#[test]
fn g12_the_write_lock_is_refused_to_a_thread_that_holds_a_guard() {
    let (cell, _clock, _log) = strict();
    cell.set(1);
    cell.invalidate();
    let guard = cell.load().unwrap();
    let message = panic_message(|| {
        cell.request().get_with_writer(|writer| {
            let _lock = writer.acquire_write_lock();
            2
        })
    });
    assert!(message.contains("this thread holds a ReadGuard of the same cell"), "{message}");
    let value = cell.request().get_with_writer(|writer| {
        assert!(writer.acquire_write_lock_timeout(Duration::MAX).is_err());
        *cell.get().unwrap()
    });
    assert_eq!((*value, *guard), (1, 1));
}

#[test]
fn g12_a_guard_of_another_cell_is_not_in_the_way() {
    let (cell, _clock, _log) = background();
    let (other, _clock, _log) = background();
    let guard = other.load_or_refresh(|| 9);
    let value = cell.request().get_with_writer(|writer| {
        let _lock = writer.acquire_write_lock();
        *guard
    });
    assert_eq!(*value, 9);
}

#[test]
fn g12_a_build_that_was_superseded_does_not_get_the_lock() {
    let policy = Policy::ttl(TTL).lease_timeout(TTL);
    let (cell, clock, log) = logged(policy, Drain::Background);
    cell.set(1);
    cell.invalidate();
    let message = panic_message(|| {
        cell.request().get_with_writer(|writer| {
            clock.advance(TTL + TICK);
            assert_eq!(*cell.get_or_refresh(|| 2), 2);
            assert!(writer.acquire_write_lock_timeout(TTL).is_err());
            let _lock = writer.acquire_write_lock();
            3
        })
    });
    assert!(message.contains("superseded"), "{message}");
    assert_eq!((cell.get().as_deref(), log.complete(&cell)), (Some(&2), vec![1]));
}

#[test]
fn g12_a_writer_is_not_superseded() {
    let policy = Policy::ttl(TTL).lease_timeout(TTL);
    let (cell, clock, _log) = logged(policy, Drain::Background);
    let (locked, keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.request().get_with_writer(|writer| {
                let _lock = writer.acquire_write_lock();
                locked.pass();
                1
            })
        });
        keeper.wait_for_arrival();
        clock.advance(10 * TTL);
        let waiter = scope.spawn(|| *cell.get_or_refresh(|| unreachable!()));
        eventually("it waits", || cell.stats().waits == 1);
        keeper.open();
        assert_eq!((*builder.join().unwrap(), waiter.join().unwrap()), (1, 1));
    });
    assert_eq!(cell.stats().superseded, 0);
}

/// New readers are held back, so those inside run out.
#[test]
fn g12_a_stream_of_readers_does_not_starve_a_writer() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (cell, _clock, _log) = logged(Policy::never_expires(), Drain::Background);
    cell.set(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                // Each takes the next value before it leaves the last. A reader that finds a stale one may be elected.
                let again = || *cell.get().unwrap();
                let mut reader = cell.get_or_refresh(again);
                while !done.load(Ordering::Relaxed) {
                    if let Some(next) = cell.get() {
                        reader = next;
                    } else {
                        drop(reader);
                        reader = cell.get_or_refresh(again);
                    }
                }
            });
        }
        for round in 1..=if cfg!(miri) { 3 } else { 100 } {
            cell.invalidate();
            cell.request().get_with_writer(|writer| {
                let mut lock = writer.acquire_write_lock();
                assert!(lock.old().is_some());
                round
            });
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Readers of the value that was to be replaced, of older ones, and of values that were never published.
#[test]
fn g12_a_write_lock_that_is_not_had_in_time_names_the_number_of_readers() {
    let (cell, _clock, _log) = strict();
    let loose = cell.get_or_refresh(|| {
        cell.clear();
        1
    });
    let older = [cell.set(2), cell.get().unwrap()];
    let old = [cell.set(3), cell.get().unwrap(), cell.get().unwrap()];
    cell.invalidate();
    let in_the_way = |cell: &SyncReaderCell<u32, _>| {
        let mut readers = 0;
        let built = cell.request().try_get_with_writer(|writer| {
            readers = writer.acquire_write_lock_timeout(Duration::ZERO).unwrap_err().readers;
            Err("no")
        });
        assert!(built.is_err());
        readers
    };
    assert_eq!((in_the_way(&cell), cell.readers()), (6, 5));
    drop(older);
    cell.synchronize();
    // Put back, its readers are known as before.
    assert_eq!((in_the_way(&cell), cell.readers()), (4, 3));
    drop(loose);
    assert_eq!(in_the_way(&cell), 3);
    drop(old);
    let built = cell.request().try_get_with_writer(|writer| {
        drop(writer.acquire_write_lock());
        Err("no")
    });
    assert!(built.is_err());
    // It is in a new `Arc` now.
    let again = [cell.get().unwrap(), cell.get().unwrap()];
    assert_eq!(cell.readers(), 2);
    drop(again);
}

#[test]
fn looking_at_a_writer_shows_whether_it_has_the_lock() {
    let (cell, _clock, _log) = background();
    for has_old in [false, true] {
        cell.invalidate();
        cell.request().get_with_writer(|writer| {
            assert_eq!(format!("{writer:?}"), "Writer { locked: false, .. }");
            let lock = writer.acquire_write_lock();
            assert_eq!(format!("{lock:?}"), format!("WriteLock {{ has_old: {has_old}, .. }}"));
            assert_eq!(format!("{writer:?}"), "Writer { locked: true, .. }");
            1
        });
    }
}

/// What a cleared section has written in place is its finalizer's to undo, which must not meet what the next section writes.
#[test]
fn g12_the_write_lock_waits_for_the_finalizer_of_a_value_that_was_never_published() {
    for drain in [Drain::Background, Drain::Wait(Duration::MAX)] {
        let (finalizing, keeper) = gate();
        let finalizer = move |value: u32| {
            if value == 1 {
                finalizing.pass();
            }
        };
        let cell = SyncReaderCell::with_policy(Policy::ttl(TTL), drain, finalizer);
        let own = cell.get_or_refresh(|| {
            cell.clear();
            1
        });
        drop(own);
        keeper.wait_for_arrival();
        let mut is_refused = false;
        cell.request().get_with_writer(|writer| {
            is_refused = writer.acquire_write_lock_timeout(Duration::ZERO).is_err();
            keeper.open();
            assert!(writer.acquire_write_lock().old().is_none());
            2
        });
        assert!(is_refused, "{drain:?}: the finalizer ran beside the write section");
    }
}

#[test]
fn a_build_that_was_revoked_or_cleared_gets_the_write_lock_only_in_an_empty_cell_without_another_build() {
    let (cell, _clock, _log) = background();
    cell.set(1);

    // There is a value.
    cell.request().no_cache().get_with_writer(|writer| {
        assert!(cell.revoke());
        assert_eq!(writer.acquire_write_lock_timeout(Duration::ZERO).unwrap_err().readers, 0);
        2
    });
    let message = panic_message(|| {
        cell.request().no_cache().get_with_writer(|writer| {
            assert!(cell.revoke());
            let _lock = writer.acquire_write_lock();
            2
        })
    });
    assert!(message.contains("overtaken"), "{message}");
    assert_eq!(cell.get().as_deref(), Some(&1));

    // There is another build.
    let (building, building_keeper) = gate();
    thread::scope(|scope| {
        cell.request().no_cache().get_with_writer(|writer| {
            cell.reset();
            scope.spawn(|| {
                cell.get_or_refresh(|| {
                    building.pass();
                    3
                })
            });
            building_keeper.wait_for_arrival();
            assert_eq!(writer.acquire_write_lock_timeout(Duration::ZERO).unwrap_err().readers, 0);
            building_keeper.open();
            2
        });
    });
    assert_eq!(cell.get().as_deref(), Some(&3));

    // There is neither. What it builds is not published.
    let own = cell.request().no_cache().get_with_writer(|writer| {
        cell.clear();
        assert!(writer.acquire_write_lock().old().is_none());
        4
    });
    assert_eq!((*own, cell.get().as_deref()), (4, None));
    drop(own);
    let own = cell.request().get_with_writer(|writer| {
        assert!(cell.revoke());
        assert!(writer.acquire_write_lock().old().is_none());
        5
    });
    assert_eq!((*own, cell.get().as_deref()), (5, None));
}
