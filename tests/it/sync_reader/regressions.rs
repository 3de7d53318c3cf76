//! Faults that were found by attacking the cell, each by its symptom.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use dogpile::{
    Change, Clock, DogpileCell, Drain, ManualClock, Policy, RefreshError, Refresher, SyncReaderCell, Tick,
    Writer,
};

use super::{Log, STRICT, WAIT, background, logged, strict};
use crate::support::{GatedClock, PATIENCE, TICK, TTL, eventually, gate, panic_message};

/// A build that was overtaken by a `set` does not get at the value that was set.
#[test]
fn g4_a_value_that_was_set_before_the_write_lock_was_lost() {
    // With a timeout: refused, and the caller gets what was set.
    let (cell, _clock, log) = background();
    cell.set(1);
    cell.invalidate();
    let value = cell.request().get_with_writer(|writer| {
        cell.set(2);
        assert!(writer.acquire_write_lock_timeout(Duration::MAX).is_err());
        assert_eq!(cell.get().as_deref(), Some(&2));
        3
    });
    cell.synchronize();
    assert_eq!((*value, cell.get().as_deref(), cell.retired()), (2, Some(&2), 0));
    eventually("both are finalised", || log.entries() == [1, 3]);
    drop(value);

    // Without one: a panic.
    cell.invalidate();
    let message = panic_message(|| {
        cell.request().get_with_writer(|writer| {
            cell.set(4);
            let _lock = writer.acquire_write_lock();
            5
        })
    });
    assert!(message.contains("overtaken"), "{message}");
    assert_eq!((cell.get().as_deref(), cell.is_refreshing()), (Some(&4), false));
    assert_eq!(log.complete(&cell), [1, 3, 2]);
}

#[test]
fn a_value_that_was_set_and_cleared_before_the_write_lock_is_not_in_the_way() {
    let (cell, _clock, log) = background();
    cell.set(1);
    cell.invalidate();
    let own = cell.request().get_with_writer(|writer| {
        cell.set(2);
        cell.clear();
        assert!(writer.acquire_write_lock().old().is_none());
        3
    });
    assert_eq!((*own, cell.get().as_deref(), log.entries()), (3, None, vec![1, 2]));
}

/// Panics when it is dropped, unless the thread panics already.
#[derive(Debug)]
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(thread::panicking(), "the drop of a bomb panics");
    }
}

impl fmt::Display for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bomb")
    }
}

impl std::error::Error for Bomb {}

fn explosive(drain: Drain) -> (SyncReaderCell<u32>, Log) {
    let log = Log::default();
    let finalized = log.clone();
    let cell = SyncReaderCell::with_policy(Policy::ttl(TTL), drain, move |value| {
        if value == 1 {
            panic_any(Bomb);
        }
        finalized.0.lock().unwrap().push(value);
    });
    (cell, log)
}

#[test]
fn g11_a_panic_whose_payload_panics_when_dropped_ended_the_thread() {
    let (cell, log) = explosive(Drain::Background);
    let first = cell.get_or_refresh(|| 1);
    let second = cell.set(2);
    cell.set(3);
    drop(first);
    drop(second);
    assert_eq!(log.complete(&cell), [2]);
    // In the caller.
    let (cell, log) = explosive(Drain::Wait(Duration::MAX));
    cell.set(1);
    cell.set(2);
    cell.set(3);
    assert_eq!((cell.retired(), log.entries()), (0, vec![2]));
}

/// A cell that has the last reference to an error whose drop panics.
fn with_an_error_that_panics(drain: Drain) -> (SyncReaderCell<u32, ManualClock>, Log) {
    let (cell, _clock, log) = logged(STRICT, drain);
    cell.set(1);
    cell.invalidate();
    drop(cell.try_get_or_refresh(|| Err(Bomb)));
    (cell, log)
}

#[test]
fn g11_an_error_whose_drop_panics_kept_the_replaced_value_from_being_finalised() {
    for drain in [Drain::Background, Drain::Wait(Duration::MAX)] {
        let (cell, log) = with_an_error_that_panics(drain);
        assert_eq!(panic_message(|| cell.get_or_refresh(|| 2)), "the drop of a bomb panics");
        assert_eq!((cell.get().as_deref(), cell.is_refreshing()), (Some(&2), false));
        assert_eq!((log.complete(&cell), cell.retired(), cell.readers()), (vec![1], 0, 0));

        let (cell, log) = with_an_error_that_panics(drain);
        assert_eq!(panic_message(|| cell.set(2)), "the drop of a bomb panics");
        assert_eq!((log.complete(&cell), cell.retired(), cell.readers()), (vec![1], 0, 0));

        let (cell, log) = with_an_error_that_panics(drain);
        panic_message(|| {
            cell.request().get_with_writer(|writer| {
                let _lock = writer.acquire_write_lock();
                2
            })
        });
        assert_eq!((cell.get().as_deref(), cell.is_refreshing()), (Some(&2), false));
        assert_eq!((log.complete(&cell), cell.retired()), (vec![1], 0));
    }
}

/// The waiter is stopped when it has been woken; until it goes on, the build has ended altogether.
#[test]
fn g7_a_section_that_failed_did_not_share_its_error() {
    let clock = Arc::new(GatedClock::default());
    let cell = SyncReaderCell::with_clock(STRICT, Arc::clone(&clock), Drain::Background, |_: u32| {});
    let builds = AtomicU32::new(0);
    let (locked, locked_keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.request().try_get_with_writer(|writer| {
                builds.fetch_add(1, Ordering::SeqCst);
                let _lock = writer.acquire_write_lock();
                locked.pass();
                Err("no")
            })
        });
        locked_keeper.wait_for_arrival();
        let waiter = scope.spawn(|| {
            cell.try_get_or_refresh(|| {
                builds.fetch_add(1, Ordering::SeqCst);
                Err("another one")
            })
        });
        eventually("it waits", || cell.stats().waits == 1);
        locked_keeper.open();
        let error = |result| match result {
            Err(RefreshError::Build(error)) => error,
            other => panic!("{other:?}"),
        };
        let first = error(builder.join().unwrap());
        let second = error(waiter.join().unwrap());
        assert!(first.ptr_eq(&second));
    });
    assert_eq!(builds.into_inner(), 1);
}

#[test]
fn a_thread_with_a_guard_that_read_again_while_a_writer_waited_hung() {
    let (cell, _clock, _log) = background();
    cell.set(1);
    thread::scope(|scope| {
        let guard = cell.load().unwrap();
        cell.invalidate();
        scope.spawn(|| {
            cell.request().get_with_writer(|writer| {
                let _lock = writer.acquire_write_lock();
                2
            })
        });
        eventually("new readers are held back", || cell.get().is_none());
        assert!(panic_message(|| cell.get_or_refresh(|| 3)).contains("holds a ReadGuard"));
        assert!(panic_message(|| cell.set(3)).contains("holds a ReadGuard"));
        let result = cell.try_get_or_refresh(|| Ok::<_, String>(3));
        assert!(matches!(result, Err(RefreshError::Reentrant)));
        drop(guard);
    });
    assert_eq!(cell.get().as_deref(), Some(&2));
}

/// It waits for a build already when that asks for the write lock.
#[test]
fn a_thread_with_a_guard_that_waited_for_a_build_hung_when_that_asked_for_the_write_lock() {
    let (cell, clock, _log) = logged(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO), Drain::Background);
    cell.set(1);
    let (building, keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            let guard = cell.load().unwrap();
            clock.advance(TTL + TICK);
            building.pass();
            let result = cell.try_get_or_refresh(|| Ok::<_, String>(3));
            assert_eq!(*guard, 1);
            matches!(result, Err(RefreshError::Reentrant))
        });
        keeper.wait_for_arrival();
        let value = cell.request().get_with_writer(|writer| {
            keeper.open();
            eventually("the other one waits", || cell.stats().waits == 1);
            let _lock = writer.acquire_write_lock();
            2
        });
        assert_eq!(*value, 2);
        assert!(builder.join().unwrap());
    });
}

type Shared = Arc<OnceLock<Weak<SyncReaderCell<u32>>>>;

/// A cell whose finalizer does something with it when it is given 1, and sends the message of the panic that follows.
fn meddling<R>(
    drain: Drain,
    meddle: impl Fn(&SyncReaderCell<u32>) -> R + Send + Sync + 'static,
) -> (Arc<SyncReaderCell<u32>>, Receiver<String>) {
    let shared = Shared::default();
    let itself = Arc::clone(&shared);
    let (sender, messages) = channel();
    let cell = Arc::new(SyncReaderCell::with_policy(Policy::ttl(TTL), drain, move |value| {
        if value == 1
            && let Some(cell) = itself.get().and_then(Weak::upgrade)
        {
            sender.send(panic_message(|| meddle(&cell))).unwrap();
        }
    }));
    shared.set(Arc::downgrade(&cell)).unwrap();
    (cell, messages)
}

#[test]
fn a_finalizer_that_asked_for_the_write_lock_hung() {
    for drain in [Drain::Background, Drain::Wait(Duration::MAX)] {
        let (cell, messages) = meddling(drain, |cell| {
            cell.invalidate();
            cell.request().get_with_writer(|writer| {
                assert!(writer.acquire_write_lock_timeout(Duration::MAX).is_err());
                let _lock = writer.acquire_write_lock();
                9
            })
        });
        cell.set(1);
        cell.set(2);
        let message = messages.recv_timeout(PATIENCE).unwrap();
        assert!(message.contains("from inside the finalizer"), "{message}");
        cell.synchronize();
        assert_eq!((cell.get().as_deref(), cell.retired()), (Some(&2), 0));
    }
}

#[test]
fn a_finalizer_that_forced_a_rebuild_hung_where_its_own_thread_had_the_lease() {
    let (cell, messages) =
        meddling(Drain::Wait(Duration::from_secs(3600)), |cell| cell.request().no_cache().get(|| 9));
    cell.set(1);
    assert_eq!(*cell.request().no_cache().get(|| 2), 2);
    let message = messages.recv_timeout(PATIENCE).unwrap();
    assert!(message.contains("get was called from inside the build"), "{message}");
    assert_eq!(cell.retired(), 0);
}

#[test]
fn a_build_that_cleared_and_synchronised_under_the_write_lock_hung() {
    let (cell, _clock, log) = background();
    cell.set(1);
    cell.invalidate();
    let message = panic_message(|| {
        cell.request().get_with_writer(|writer| {
            let _lock = writer.acquire_write_lock();
            cell.clear();
            assert!(cell.synchronize_timeout(Duration::MAX).is_err());
            cell.synchronize();
            2
        })
    });
    assert!(message.contains("under the write lock"), "{message}");
    // And the thread does not count as a writer any more.
    assert_eq!((log.complete(&cell), cell.get().as_deref(), cell.retired()), (vec![1], None, 0));
}

#[test]
fn a_writer_that_waited_for_older_readers_was_counted_as_one() {
    let (cell, _clock, _log) = background();
    let older = cell.get_or_refresh(|| 1);
    cell.set(2);
    cell.invalidate();
    thread::scope(|scope| {
        scope.spawn(|| {
            cell.request().get_with_writer(|writer| {
                let _lock = writer.acquire_write_lock();
                3
            })
        });
        eventually("new readers are held back", || cell.get().is_none());
        eventually("only the older reader is counted", || cell.readers() == 1);
        drop(older);
    });
}

#[test]
fn a_guard_of_a_value_that_was_never_published_made_synchronize_panic() {
    let (cell, _clock, log) = background();
    let guard = cell.load_or_refresh(|| {
        cell.clear();
        1
    });
    cell.synchronize();
    assert_eq!(*guard, 1);
    drop(guard);
    eventually("it is finalised", || log.entries() == [1]);
}

/// What a cleared section has written in place is read by its own caller: a reader like any other for the next writer.
#[test]
fn g12_the_write_lock_did_not_wait_for_readers_of_values_that_were_never_published() {
    let (cell, _clock, log) = background();
    let own = cell.get_or_refresh(|| {
        cell.clear();
        1
    });
    let (refused, keeper) = gate();
    let locked = thread::scope(|scope| {
        let builder = scope.spawn(|| {
            cell.request().get_with_writer(|writer| {
                assert_eq!(writer.acquire_write_lock_timeout(Duration::ZERO).unwrap_err().readers, 1);
                refused.pass();
                let _lock = writer.acquire_write_lock();
                assert_eq!(log.entries(), [1]);
                2
            })
        });
        keeper.wait_for_arrival();
        keeper.open();
        assert_eq!(*own, 1);
        drop(own);
        builder.join().unwrap()
    });
    assert_eq!(*locked, 2);
}

#[test]
fn a_timeout_because_of_a_guard_of_ones_own_spoke_of_no_readers() {
    let (cell, _clock, _log) = background();
    cell.set(1);
    cell.invalidate();
    let guard = cell.load().unwrap();
    cell.request().get_with_writer(|writer| {
        assert_eq!(writer.acquire_write_lock_timeout(Duration::ZERO).unwrap_err().readers, 1);
        2
    });
    drop(guard);
}

#[test]
fn a_lease_that_timed_out_during_the_drain_let_a_third_generation_in() {
    let policy = Policy::ttl(TTL).lease_timeout(TTL);
    let (cell, clock, _log) = logged(policy, Drain::Wait(Duration::MAX));
    let reader = cell.set(1);
    cell.invalidate();
    thread::scope(|scope| {
        scope.spawn(|| drop(cell.get_or_refresh(|| 2)));
        eventually("the new value is out", || cell.generation() == 2);
        clock.advance(10 * TTL);
        assert_eq!(*cell.get_or_refresh(|| unreachable!("the old value is still draining")), 2);
        drop(reader);
    });
    assert_eq!(cell.stats().superseded, 0);
}

/// The last reader of a value that was never published leaves while a writer is about to give up its place in the queue.
#[test]
fn g11_a_value_that_was_never_published_was_sometimes_not_finalised() {
    for _ in 0..if cfg!(miri) { 3 } else { 2_000 } {
        let (cell, _clock, log) = strict();
        let own = cell.get_or_refresh(|| {
            cell.clear();
            1
        });
        let start = std::sync::Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                drop(own);
            });
            start.wait();
            for _ in 0..3 {
                drop(cell.request().try_get_with_writer(|writer| {
                    let _ = writer.acquire_write_lock_timeout(Duration::ZERO);
                    Err("no")
                }));
            }
        });
        drop(cell);
        eventually("it is finalised", || log.entries() == [1]);
    }
}

/// Panics once: at the last of so many looks (0: never), or at the first one after a sleep.
#[derive(Default)]
struct Panicking {
    time: ManualClock,
    looks_left: AtomicU32,
}

impl Clock for Panicking {
    fn now(&self) -> Tick {
        let left = self.looks_left.load(Ordering::SeqCst);
        self.looks_left.store(left.saturating_sub(1), Ordering::SeqCst);
        assert!(left != 1, "the clock panics");
        self.time.now()
    }
    fn park_until(&self, _deadline: Tick, _now: Tick) {
        self.looks_left.store(1, Ordering::SeqCst);
    }
}

type PanickingCell = SyncReaderCell<u32, Arc<Panicking>>;

fn panicking(drain: Drain) -> (PanickingCell, Arc<Panicking>, Log) {
    let clock = Arc::new(Panicking::default());
    let log = Log::default();
    let entries = Arc::clone(&log.0);
    let finalizer = move |value: u32| entries.lock().unwrap().push(value);
    let policy =
        Policy::never_expires().retry_backoff(Duration::ZERO, Duration::ZERO).stale_if_error(Duration::ZERO);
    (SyncReaderCell::with_clock(policy, Arc::clone(&clock), drain, finalizer), clock, log)
}

#[test]
fn a_clock_that_panics_while_a_writer_waits_loses_no_value() {
    let (cell, _clock, log) = panicking(Drain::Background);
    let reader = cell.set(1);
    cell.invalidate();
    let result = catch_unwind(AssertUnwindSafe(|| {
        cell.request().get_with_writer(|writer| {
            let _ = writer.acquire_write_lock_timeout(TTL);
            2
        })
    }));
    assert!(result.is_err());
    assert_eq!((cell.get().as_deref(), cell.is_refreshing(), cell.retired()), (Some(&1), false, 0));
    drop(reader);
    cell.set(3);
    assert_eq!(log.complete(&cell), [1]);
}

#[test]
fn g12_a_clock_that_panicked_while_a_writer_waited_lost_the_value_if_the_build_went_on() {
    for succeeds in [false, true] {
        let (cell, _clock, log) = panicking(Drain::Background);
        let reader = cell.set(1);
        cell.invalidate();
        let built = cell.request().try_get_with_writer(|writer| {
            let lock = catch_unwind(AssertUnwindSafe(|| writer.acquire_write_lock_timeout(TTL).map(drop)));
            assert!(lock.is_err());
            if succeeds {
                return Ok(2);
            }
            assert_eq!(writer.acquire_write_lock_timeout(Duration::ZERO).unwrap_err().readers, 1);
            Err("no")
        });
        let current = if succeeds { 2 } else { 1 };
        assert_eq!((built.is_ok(), cell.get().as_deref()), (succeeds, Some(&current)));
        assert_eq!(
            (cell.readers(), cell.retired(), log.entries()),
            (1 + usize::from(succeeds), usize::from(succeeds), vec![])
        );
        drop((built, reader));
        cell.synchronize();
        assert_eq!(log.entries(), if succeeds { vec![1] } else { vec![] });
    }
}

#[test]
fn g11_a_clock_that_panicked_after_a_publication_kept_the_old_value_from_being_finalised() {
    let replace: [fn(&PanickingCell); 2] = [
        |cell| drop(cell.set(2)),
        |cell| {
            cell.request().get_with_writer(|writer| {
                drop(writer.acquire_write_lock());
                2
            });
        },
    ];
    for replace in replace {
        let mut published = 0;
        for looks in 1..10 {
            let (cell, clock, log) = panicking(Drain::Wait(WAIT));
            cell.set(1);
            cell.invalidate();
            clock.looks_left.store(looks, Ordering::SeqCst);
            let panicked = catch_unwind(AssertUnwindSafe(|| replace(&cell))).is_err();
            clock.looks_left.store(0, Ordering::SeqCst);
            cell.synchronize();
            let is_published = cell.generation() == 2;
            published += u32::from(panicked && is_published);
            // If it is not published, 2 is finalised out of turn, at some time.
            assert_eq!(log.entries().contains(&1), is_published);
        }
        assert!(published > 0);
    }
}

/// A thread with a guard of a withheld value that was cleared hung, since the cell did not know that guard.
#[test]
fn g10_a_guard_of_a_value_that_is_cleared_while_a_writer_waits_for_it_is_known() {
    let (cell, _clock, log) = background();
    let cell = Arc::new(cell);
    cell.set(1);
    let guard = cell.load().unwrap();
    cell.invalidate();
    let writer = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || {
            *cell.request().get_with_writer(|writer| {
                drop(writer.acquire_write_lock());
                2
            })
        })
    };
    eventually("the writer waits", || cell.get().is_none());
    cell.clear();
    let result = cell.try_get_or_refresh(|| Err("no"));
    assert!(matches!(result, Err(RefreshError::Reentrant)));
    drop(guard);
    assert_eq!(writer.join().unwrap(), 2);
    cell.synchronize();
    // What was built meanwhile is not published, and finalised too, out of turn.
    eventually("both are finalised", || log.entries().len() == 2);
    assert_eq!((cell.readers(), cell.retired()), (0, 0));
}

/// For the same reason its readers were not counted.
#[test]
fn g11_a_reader_of_a_value_that_is_cleared_while_a_writer_waits_for_it_is_counted() {
    for fails in [false, true] {
        let (cell, _clock, log) = background();
        let cell = Arc::new(cell);
        cell.set(1);
        let reader = cell.get().unwrap();
        cell.invalidate();
        let writer = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                let built = cell.request().try_get_with_writer(|writer| {
                    assert!(writer.acquire_write_lock().old().is_none(), "it was cleared");
                    if fails { Err("no") } else { Ok(2) }
                });
                built.map(|value| *value).ok()
            })
        };
        eventually("the writer waits", || cell.get().is_none());
        cell.clear();
        assert_eq!((cell.readers(), cell.retired()), (1, 1));
        assert_eq!(cell.synchronize_timeout(Duration::ZERO).unwrap_err().readers, 1);
        drop(reader);
        assert_eq!(writer.join().unwrap(), (!fails).then_some(2));
        cell.synchronize();
        // What was built meanwhile is not published, and finalised too.
        let finalised = if fails { 1 } else { 2 };
        eventually("it is finalised", || log.entries().len() == finalised);
        assert_eq!((cell.readers(), cell.retired()), (0, 0));
    }
}

/// Not twice: it is retired, and in the slot's place no more.
#[test]
fn g11_readers_of_a_value_that_is_cleared_while_a_writer_gives_up_are_counted_once() {
    let (cell, clock, log) = background();
    let readers = (cell.set(1), cell.get().unwrap());
    cell.invalidate();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            cell.request().get_with_writer(|writer| {
                assert_eq!(writer.acquire_write_lock_timeout(TTL).unwrap_err().readers, 2);
                2
            })
        });
        eventually("the writer waits", || cell.get().is_none());
        cell.clear();
        clock.advance(2 * TTL);
        drop(writer.join().unwrap());
    });
    assert_eq!((cell.readers(), cell.retired()), (2, 1));
    drop(readers);
    cell.synchronize();
    assert_eq!((cell.readers(), cell.retired()), (0, 0));
    // What was built meanwhile is not published, and finalised too, out of turn.
    eventually("both are finalised", || log.entries().len() == 2);
}

#[test]
fn g10_a_guard_of_a_value_that_was_never_published_is_known_to_the_write_lock() {
    let (cell, _clock, _log) = background();
    let guard = cell.load_or_refresh(|| {
        cell.clear();
        1
    });
    let message = panic_message(|| {
        cell.request().get_with_writer(|writer| {
            drop(writer.acquire_write_lock());
            2
        })
    });
    assert!(message.contains("this thread holds a ReadGuard"), "{message}");
    drop(guard);
    assert_eq!(*cell.get_or_refresh(|| 3), 3);
}

/// The value had no owner while the clock was asked after the build had failed.
#[test]
fn g12_a_clock_that_panics_when_a_write_section_fails_lost_the_value() {
    let (cell, clock, log) = panicking(Drain::Background);
    cell.set(1);
    cell.invalidate();
    let result = catch_unwind(AssertUnwindSafe(|| {
        cell.request().try_get_with_writer(|writer| {
            drop(writer.acquire_write_lock());
            clock.looks_left.store(1, Ordering::SeqCst);
            Err("no")
        })
    }));
    assert!(result.is_err());
    assert_eq!((cell.get().as_deref(), cell.is_refreshing(), cell.retired()), (Some(&1), false, 0));
    drop(cell);
    assert_eq!(log.entries(), []);
}

/// A thread waited for the end of a build, and the build's caller waited for that thread's guard.
#[test]
fn g10_a_thread_with_a_guard_that_waited_for_a_build_that_drained_hung() {
    type Drained = SyncReaderCell<u32, ManualClock>;
    let waits: [fn(&Drained, &ManualClock) -> u32; 3] = [
        |cell, _| {
            cell.invalidate();
            *cell.request().max_stale(Duration::ZERO).get(|| {
                // Others go on waiting for what the build does not wait for any more.
                let others = || cell.synchronize_timeout(Duration::ZERO);
                assert!(thread::scope(|scope| scope.spawn(others).join().unwrap()).is_err());
                3
            })
        },
        |cell, _| {
            cell.clear();
            *cell.try_get_or_refresh(|| Ok::<_, String>(3)).unwrap()
        },
        |cell, clock| {
            clock.advance(3 * TTL);
            *cell.get_or_refresh(|| 3)
        },
    ];
    for wait in waits {
        let policy = Policy::ttl(TTL).stale_while_refresh(TTL);
        let (cell, clock, log) = logged(policy, Drain::Wait(Duration::MAX));
        cell.set(1);
        let guard = cell.load().unwrap();
        cell.invalidate();
        thread::scope(|scope| {
            let drainer = scope.spawn(|| *cell.get_or_refresh(|| 2));
            eventually("the new value is there", || cell.generation() == 2);
            assert_eq!(wait(&cell, &clock), 3);
            // It went to the background.
            assert_eq!(drainer.join().unwrap(), 2);
            assert_eq!((*guard, log.entries()), (1, vec![]));
            drop(guard);
        });
        cell.synchronize();
        assert_eq!(log.entries(), [1, 2]);
    }
}

/// A guard of the value that has just been published delays no build.
#[test]
fn a_build_goes_on_waiting_for_others_if_a_reader_of_the_new_value_waits() {
    let (cell, _clock, log) = logged(Policy::ttl(TTL), Drain::Wait(Duration::MAX));
    let reader = cell.set(1);
    cell.invalidate();
    thread::scope(|scope| {
        let drainer = scope.spawn(|| *cell.get_or_refresh(|| 2));
        eventually("the new value is there", || cell.generation() == 2);
        let guard = cell.load().unwrap();
        cell.invalidate();
        let fresh = cell.request().wait_at_most(Duration::ZERO).try_get(|| Ok::<_, String>(3)).unwrap();
        assert_eq!((*guard, *fresh, cell.is_refreshing(), cell.retired()), (2, 2, true, 1));
        cell.clear();
        let none = cell.request().wait_at_most(Duration::ZERO).try_get(|| Ok::<_, String>(3));
        assert!(matches!(none, Err(RefreshError::WaitTimeout)));
        assert!(cell.is_refreshing());
        drop((fresh, guard, reader));
        assert_eq!(drainer.join().unwrap(), 2);
    });
    cell.synchronize();
    assert_eq!(log.entries(), [1, 2]);
}

/// Each was about to join the other's thread.
#[test]
fn a_finalizer_that_drops_a_refresher_that_drops_the_cell_hung() {
    let finalised = Arc::new(AtomicU32::new(0));
    let cell = {
        let finalised = Arc::clone(&finalised);
        Arc::new(SyncReaderCell::new(TTL, move |refresher: Option<Refresher>| {
            drop(refresher);
            finalised.fetch_add(1, Ordering::SeqCst);
        }))
    };
    let other = Arc::new(DogpileCell::new(TTL));
    let refresher = {
        let cell = Arc::clone(&cell);
        let build = move |_| u32::try_from(cell.generation()).unwrap();
        Refresher::spawn(&other, Duration::from_secs(1), build).unwrap()
    };
    eventually("it has built", || other.get().is_some());
    let reader = cell.set(Some(refresher));
    cell.set(None);
    // The last reference is the refresher's, which the cell's own thread stops.
    drop(cell);
    drop(reader);
    eventually("it is finalised", || finalised.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_build_whose_write_lock_another_thread_has_asked_for_waited_for_itself() {
    let (cell, _clock, _log) = background();
    cell.set(1);
    cell.invalidate();
    let message = panic_message(|| {
        cell.request().get_with_writer(|writer| {
            thread::scope(|scope| scope.spawn(|| drop(writer.acquire_write_lock())).join().unwrap());
            cell.clear();
            cell.synchronize();
            2
        })
    });
    assert!(message.contains("under the write lock"), "{message}");
}

/// It was counted where there was no reader, or readers that it did not wait for.
#[test]
fn a_caller_that_would_wait_for_itself_is_not_counted_as_a_reader() {
    // A build that has been overtaken.
    let (cell, _clock, _log) = background();
    cell.set(1);
    cell.invalidate();
    let mut reader = None;
    cell.request().get_with_writer(|writer| {
        reader = Some(cell.set(2));
        assert_eq!(writer.acquire_write_lock_timeout(TTL).unwrap_err().readers, 0);
        3
    });

    // A finalizer.
    let own: Arc<OnceLock<Weak<SyncReaderCell<u32>>>> = Arc::default();
    let readers = Arc::new(AtomicU32::new(u32::MAX));
    let cell = Arc::new(SyncReaderCell::new(TTL, {
        let (own, readers) = (Arc::clone(&own), Arc::clone(&readers));
        move |value| {
            if value == 1 {
                let cell = own.get().and_then(Weak::upgrade).unwrap();
                cell.request().get_with_writer(|writer| {
                    let timeout = writer.acquire_write_lock_timeout(TTL).unwrap_err();
                    readers.store(timeout.readers.try_into().unwrap(), Ordering::SeqCst);
                    2
                });
            }
        }
    }));
    own.set(Arc::downgrade(&cell)).unwrap();
    cell.set(1);
    cell.clear();
    cell.synchronize();
    assert_eq!(readers.load(Ordering::SeqCst), 0);
}

/// A clock that runs what a thread has left for it, at each look, until that returns `true`.
#[derive(Clone, Default)]
struct Running(ManualClock);

thread_local! {
    static LEFT: RefCell<Option<Box<dyn FnMut() -> bool>>> = const { RefCell::new(None) };
}

impl Clock for Running {
    fn now(&self) -> Tick {
        if let Some(mut left) = LEFT.take()
            && !left()
        {
            LEFT.set(Some(left));
        }
        self.0.now()
    }
}

/// An error whose drop panics.
#[derive(Debug)]
struct BadError;

impl fmt::Display for BadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bad error")
    }
}

impl std::error::Error for BadError {}

impl Drop for BadError {
    fn drop(&mut self) {
        assert!(thread::panicking(), "a planned panic of a drop");
    }
}

/// A value without readers is cleared while a writer is about to take it. The thread that clears it runs user code before it comes to
/// the finalizer: a callback, which waits for the writer, or the drop of an error, which panics.
#[test]
fn g5_a_writer_waited_for_ever_for_a_value_that_was_cleared_meanwhile() {
    for waits in [false, true] {
        let log = Log::default();
        let finalizer = {
            let log = Arc::clone(&log.0);
            move |value| log.lock().unwrap().push(value)
        };
        let cell = SyncReaderCell::with_clock(STRICT, Running::default(), Drain::Background, finalizer);
        let cell = Arc::new(cell);
        cell.set(1);
        cell.invalidate();
        if !waits {
            drop(cell.try_get_or_refresh(|| Err(BadError)));
        }
        let (is_withheld, withheld) = channel();
        let (go_on, is_cleared) = channel();
        let hook = cell.on_change({
            let (weak, go_on) = (Arc::downgrade(&cell), go_on.clone());
            move |change| {
                if let (true, Change::Cleared, Some(cell)) = (waits, change, weak.upgrade()) {
                    go_on.send(()).unwrap();
                    // What the writer makes can no longer be published.
                    assert_eq!(*cell.get_or_refresh(|| 5), 5);
                }
            }
        });
        let writer = thread::spawn({
            let cell = Arc::clone(&cell);
            move || {
                let build = |writer: &mut Writer<'_, u32, Running>| {
                    let looked = Arc::clone(&cell);
                    let pauses = move || {
                        let is_withheld_now = looked.get().is_none();
                        if is_withheld_now {
                            is_withheld.send(()).unwrap();
                            is_cleared.recv().unwrap();
                        }
                        is_withheld_now
                    };
                    LEFT.set(Some(Box::new(pauses)));
                    writer.acquire_write_lock_timeout(Duration::from_secs(3600)).unwrap().old().copied()
                };
                let mut old = None;
                cell.request().get_with_writer(|writer| {
                    old = build(writer);
                    7
                });
                old
            }
        });
        withheld.recv().unwrap();
        let reset = catch_unwind(AssertUnwindSafe(|| cell.reset()));
        assert_eq!(reset.is_err(), !waits);
        let _ = go_on.send(());
        assert_eq!(writer.join().unwrap(), None, "it was cleared");
        assert_eq!(cell.get().as_deref(), waits.then_some(&5));
        cell.synchronize();
        eventually("both are finalised", || log.entries() == [1, 7]);
        drop(hook);
    }
}
