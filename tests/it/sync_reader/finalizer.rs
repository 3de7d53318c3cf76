//! G11: the finalizer, once, in order, after the last reader.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use dogpile::{Drain, DrainTimeout, Policy, ReaderArc, SyncReaderCell};

use super::{Log, background, logged, strict};
use crate::support::{TTL, eventually, gate, panic_message};

#[test]
fn g11_publish_then_last_reader_out_then_finalizer() {
    let (cell, _clock, log) = background();
    let reader = cell.get_or_refresh(|| 1);
    let second = reader.clone();
    cell.set(2);
    assert_eq!(cell.get().as_deref(), Some(&2));
    assert_eq!((log.entries(), cell.retired(), cell.readers()), (vec![], 1, 2));
    drop(reader);
    assert_eq!((log.entries(), *second), (vec![], 1));
    drop(second);
    cell.synchronize();
    assert_eq!((log.entries(), cell.retired(), cell.readers()), (vec![1], 0, 0));
}

#[test]
fn g11_under_drain_wait_the_finalizer_runs_in_the_caller_that_replaced_the_value() {
    let finalizer = Arc::new(OnceLock::new());
    let ran = Arc::clone(&finalizer);
    let finalizer_of_the_cell = move |_: u32| ran.set(thread::current().id()).unwrap();
    let cell =
        SyncReaderCell::with_policy(Policy::ttl(TTL), Drain::Wait(Duration::MAX), finalizer_of_the_cell);
    cell.set(1);
    drop(cell.request().no_cache().get(|| 2));
    assert_eq!(finalizer.get(), Some(&thread::current().id()));
}

#[test]
fn g11_with_a_reader_the_finalizer_runs_on_the_cells_own_thread() {
    let (sender, receiver) = channel();
    let cell = SyncReaderCell::new(TTL, move |_: u32| {
        sender.send((thread::current().id(), thread::current().name().map(str::to_owned))).unwrap();
    });
    let mut reader = cell.set(0);
    // More than once: the thread may have something to do already when it begins, or before it goes to sleep.
    for round in 1..=if cfg!(miri) { 5 } else { 100 } {
        let next = cell.set(round);
        thread::scope(|scope| {
            scope.spawn(move || drop(reader));
        });
        let (thread, name) = receiver.recv().unwrap();
        assert_ne!(thread, thread::current().id());
        assert_eq!(name.as_deref(), Some("dogpile-finalizer"));
        reader = next;
    }
    drop(reader);
}

#[test]
fn g11_values_are_finalised_in_the_order_in_which_they_were_replaced() {
    let (cell, _clock, log) = background();
    let first = cell.get_or_refresh(|| 1);
    cell.set(2);
    let third = cell.set(3);
    cell.set(4);
    cell.clear();
    cell.set(5);
    // 2 and 4 have no readers any more, but it is not their turn.
    assert_eq!((log.entries(), cell.retired()), (vec![], 4));
    drop(third);
    assert_eq!((log.entries(), cell.retired()), (vec![], 4));
    drop(first);
    cell.synchronize();
    assert_eq!((log.entries(), cell.retired()), (vec![1, 2, 3, 4], 0));
}

#[test]
fn g11_two_generations_replaced_in_quick_succession_are_finalised_once_each() {
    let (cell, _clock, log) = background();
    let last = if cfg!(miri) { 9 } else { 99 };
    for number in 0..=last {
        cell.set(number);
    }
    assert_eq!(log.complete(&cell), (0..last).collect::<Vec<_>>());
}

#[test]
fn g11_never_two_finalizers_at_a_time() {
    const VALUES: u32 = if cfg!(miri) { 5 } else { 500 };
    let inside = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU32::new(0));
    let cell = {
        let (inside, count) = (Arc::clone(&inside), Arc::clone(&count));
        SyncReaderCell::new(Duration::from_secs(3600), move |_: u32| {
            assert!(!inside.swap(true, Ordering::SeqCst), "two at a time");
            thread::yield_now();
            inside.store(false, Ordering::SeqCst);
            count.fetch_add(1, Ordering::SeqCst);
        })
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for number in 0..VALUES {
                    let reader = cell.set(number);
                    let _ = cell.get();
                    drop(reader);
                }
            });
        }
    });
    cell.synchronize();
    assert_eq!(count.load(Ordering::SeqCst), 4 * VALUES - 1);
}

#[test]
fn g11_a_value_that_was_never_published_waits_for_the_finalizer_that_runs() {
    let (finalizing, keeper) = gate();
    let log = Log::default();
    let cell = {
        let log = log.clone();
        SyncReaderCell::new(Duration::from_secs(3600), move |value| {
            if value == 1 {
                finalizing.pass();
            }
            log.0.lock().unwrap().push(value);
        })
    };
    let own = cell.get_or_refresh(|| {
        cell.clear();
        7
    });
    cell.set(1);
    cell.set(2);
    keeper.wait_for_arrival();
    drop(own);
    cell.set(3);
    let meanwhile = log.entries();
    keeper.open();
    assert_eq!(meanwhile, []);
    eventually("all are finalised", || log.entries().len() == 3);
    assert_eq!(log.entries()[0], 1);
}

#[test]
fn g11_the_value_in_a_dropped_cell_is_dropped_not_finalised() {
    struct Noisy(Arc<AtomicU32>);
    impl Drop for Noisy {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (dropped, finalized) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let cell = {
        let finalized = Arc::clone(&finalized);
        SyncReaderCell::new(TTL, move |value: Noisy| {
            finalized.fetch_add(1, Ordering::SeqCst);
            std::mem::forget(value);
        })
    };
    let reader = cell.get_or_refresh(|| Noisy(Arc::clone(&dropped)));
    drop(cell);
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    drop(reader);
    assert_eq!((dropped.load(Ordering::SeqCst), finalized.load(Ordering::SeqCst)), (1, 0));
}

#[test]
fn g11_what_is_retired_when_the_cell_is_dropped_is_still_finalised() {
    let (cell, _clock, log) = background();
    let first = cell.get_or_refresh(|| 1);
    let second = cell.set(2);
    let third = cell.set(3);
    drop(cell);
    assert_eq!(*first + *second + *third, 6);
    drop(third);
    drop(second);
    assert_eq!(log.entries(), []);
    drop(first);
    eventually("the rest is finalised", || log.entries() == [1, 2]);
}

#[test]
fn g11_dropping_a_cell_waits_for_the_finalizer_that_runs_and_for_no_reader() {
    let (begun, has_begun) = channel();
    let (go, gone) = channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let done = Arc::new(AtomicBool::new(false));
    let cell = {
        let done = Arc::clone(&done);
        SyncReaderCell::new(TTL, move |_: u32| {
            begun.send(()).unwrap();
            gone.lock().unwrap().recv().unwrap();
            done.store(true, Ordering::SeqCst);
        })
    };
    let reader = cell.get_or_refresh(|| 1);
    // Of the next value: it delays no finalizer yet.
    let other = cell.set(2);
    cell.set(3);
    drop(reader);
    has_begun.recv().unwrap();
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(cell);
            gone.store(true, Ordering::SeqCst);
            assert!(done.load(Ordering::SeqCst), "the cell was gone before its finalizer had finished");
        });
        // Long enough to see one that does not wait.
        for _ in 0..1000 {
            assert!(!gone.load(Ordering::SeqCst));
            thread::yield_now();
        }
        go.send(()).unwrap();
    });
    drop(other);
    has_begun.recv().unwrap();
    go.send(()).unwrap();
}

#[test]
fn g11_a_panicking_finalizer_loses_nothing_else() {
    let log = Log::default();
    let finalized = log.clone();
    let cell = SyncReaderCell::new(TTL, move |value: u32| {
        assert!(value != 2 && value != 4, "the finalizer of {value} panics");
        finalized.0.lock().unwrap().push(value);
    });
    cell.set(1);
    cell.set(2);
    assert_eq!(*cell.set(3), 3);
    let reader = cell.set(4);
    cell.set(5);
    cell.set(6);
    drop(reader);
    assert_eq!(log.complete(&cell), [1, 3, 5]);
    cell.set(7);
    assert_eq!(log.complete(&cell), [1, 3, 5, 6]);
    assert_eq!(cell.retired(), 0);
}

#[test]
fn g11_a_value_that_was_fenced_off_is_finalised_when_its_caller_lets_go_of_it() {
    let (cell, _clock, log) = background();
    let own = cell.get_or_refresh(|| {
        cell.clear();
        1
    });
    assert_eq!(cell.get().as_deref(), None);
    assert_eq!((*own, log.entries()), (1, vec![]));
    drop(own);
    eventually("it is finalised", || log.entries() == [1]);

    // Displaced by a set: no caller ever gets it.
    let set = cell.get_or_refresh(|| {
        cell.set(2);
        3
    });
    assert_eq!(*set, 2);
    eventually("it is finalised", || log.entries() == [1, 3]);
}

#[test]
fn g11_a_value_replaced_by_a_build_waits_for_its_readers() {
    let (cell, clock, log) = background();
    let reader = cell.get_or_refresh(|| 1);
    clock.advance(2 * TTL);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    assert_eq!(log.entries(), []);
    drop(reader);
    cell.synchronize();
    assert_eq!(log.entries(), [1]);
}

#[test]
fn g11_a_failed_build_retires_nothing() {
    let (cell, clock, log) = strict();
    cell.set(1);
    clock.advance(2 * TTL);
    assert!(cell.try_get_or_refresh(|| Err("no")).is_err());
    panic_message(|| cell.get_or_refresh(|| panic!("no")));
    assert_eq!((cell.get().as_deref(), cell.retired(), log.entries()), (Some(&1), 0, vec![]));
}

#[test]
fn a_leaked_reader_is_shown() {
    let (cell, clock, log) = background();
    std::mem::forget(cell.get_or_refresh(|| 1));
    cell.set(2);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.synchronize_timeout(TTL));
        while !waiter.is_finished() {
            clock.advance(TTL);
            thread::yield_now();
        }
        let timeout = waiter.join().unwrap().unwrap_err();
        assert_eq!(timeout.readers, 1);
        assert_eq!(timeout.to_string(), "1 reader has not left within the time allowed");
    });
    assert_eq!((log.entries(), cell.retired()), (vec![], 1));
}

#[test]
fn a_timeout_says_how_many_readers_are_left() {
    let (cell, _clock, _log) = background();
    let timeout = |readers: usize, text: &str| {
        let timeout: DrainTimeout = cell.synchronize_timeout(Duration::ZERO).unwrap_err();
        assert_eq!((timeout.readers, timeout.to_string().as_str()), (readers, text));
    };
    let mut readers = vec![cell.set(1)];
    cell.set(2);
    timeout(1, "1 reader has not left within the time allowed");
    readers.push(readers[0].clone());
    timeout(2, "2 readers have not left within the time allowed");
    // A build that has been overtaken: no reader is in its way.
    let mut refused = None;
    cell.request().no_cache().get_with_writer(|writer| {
        cell.set(3);
        refused = writer.acquire_write_lock_timeout(TTL).err();
        4
    });
    assert!(refused.unwrap().to_string().contains("the build has been overtaken"));
}

#[test]
fn a_timeout_says_that_a_finalizer_has_not_ended() {
    let (finalizing, keeper) = gate();
    let cell = SyncReaderCell::new(Duration::MAX, move |_: u32| finalizing.pass());
    cell.set(1);
    cell.set(2);
    keeper.wait_for_arrival();
    let waited = cell.synchronize_timeout(Duration::ZERO).unwrap_err();
    let mut refused = None;
    cell.request().no_cache().get_with_writer(|writer| {
        refused = writer.acquire_write_lock_timeout(Duration::ZERO).err();
        3
    });
    for timeout in [waited, refused.unwrap()] {
        assert_eq!((timeout.readers, timeout.to_string().contains("a finalizer has not ended")), (0, true));
    }
    // That of the first value; and of the second one, which the build has replaced.
    keeper.open();
    keeper.wait_for_arrival();
    keeper.open();
    cell.synchronize();
}

#[test]
fn synchronize_waits_for_what_was_retired_before_it_only() {
    let (cell, _clock, log) = background();
    let first = cell.get_or_refresh(|| 1);
    cell.set(2);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| cell.synchronize());
        let second = cell.get().unwrap();
        thread::yield_now();
        cell.set(3);
        drop(first);
        // If the waiter came after the set, it waits for 2 as well, which goes only now.
        drop(second);
        waiter.join().unwrap();
    });
    assert_eq!(log.entries()[0], 1);
}

#[test]
fn synchronize_does_not_wait_for_the_current_value() {
    let (cell, _clock, log) = background();
    let reader = cell.get_or_refresh(|| 1);
    cell.synchronize();
    cell.synchronize_timeout(Duration::ZERO).unwrap();
    drop(reader);
    cell.synchronize();
    assert_eq!(log.entries(), []);
}

#[test]
fn the_finalizer_may_look_at_the_cell_and_gets_a_panic_where_it_would_wait_for_itself() {
    let shared: Arc<OnceLock<Weak<SyncReaderCell<u32>>>> = Arc::default();
    let message = Arc::new(OnceLock::new());
    let cell = {
        let (shared, message) = (Arc::clone(&shared), Arc::clone(&message));
        Arc::new(SyncReaderCell::new(TTL, move |_| {
            let Some(cell) = shared.get().and_then(Weak::upgrade) else { return };
            let _ = (cell.get(), cell.retired(), cell.readers(), cell.stats(), format!("{cell:?}"));
            assert!(cell.synchronize_timeout(Duration::MAX).is_err());
            let _ = message.set(panic_message(|| cell.synchronize()));
        }))
    };
    shared.set(Arc::downgrade(&cell)).unwrap();
    cell.set(1);
    cell.set(2);
    cell.synchronize();
    assert!(message.get().unwrap().contains("from inside the finalizer"), "{message:?}");
    assert_eq!(cell.retired(), 0);
}

#[test]
fn the_finalizer_may_drop_the_cell() {
    let shared: Arc<std::sync::Mutex<Option<Arc<SyncReaderCell<u32>>>>> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let cell = {
        let (shared, done) = (Arc::clone(&shared), Arc::clone(&done));
        Arc::new(SyncReaderCell::new(TTL, move |_| {
            let cell = shared.lock().unwrap().take();
            drop(cell);
            done.store(true, Ordering::SeqCst);
        }))
    };
    let reader = cell.set(1);
    cell.set(2);
    *shared.lock().unwrap() = Some(cell);
    drop(reader);
    eventually("the finalizer has dropped the cell", || done.load(Ordering::SeqCst));
}

#[test]
fn with_clear_the_value_is_retired_too() {
    let (cell, _clock, log) = logged(Policy::never_expires(), Drain::Background);
    let reader: ReaderArc<u32> = cell.get_or_refresh(|| 1);
    cell.clear();
    assert_eq!((cell.get().as_deref(), cell.retired()), (None, 1));
    drop(reader);
    assert_eq!(log.complete(&cell), [1]);
    cell.set(2);
    cell.clear();
    assert_eq!(log.complete(&cell), [1, 2]);
}

#[test]
fn g11_two_cells_that_are_dropped_by_each_others_finalizers_do_not_wait_for_each_other() {
    struct Owner(Option<Arc<SyncReaderCell<Owner>>>);
    let (done, is_done) = channel();
    let both = Arc::new(Barrier::new(2));
    let [first, second] = [(); 2].map(|()| {
        let (done, both) = (done.clone(), Arc::clone(&both));
        Arc::new(SyncReaderCell::new(TTL, move |Owner(other)| {
            if other.is_some() {
                both.wait();
                drop(other);
                done.send(()).unwrap();
            }
        }))
    });
    let readers = [(&first, &second), (&second, &first)].map(|(cell, other)| {
        let reader = cell.set(Owner(Some(Arc::clone(other))));
        cell.set(Owner(None));
        reader
    });
    drop((first, second));
    drop(readers);
    for _ in 0..2 {
        is_done.recv().unwrap();
    }
}
