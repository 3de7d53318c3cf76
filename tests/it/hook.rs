//! Hooks: each change, once, in order, without a lock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dogpile::{Change, DogpileCell, Freshness, Hook, LazyDogpile, Policy, SyncReaderCell};

use crate::support::{LookupExt, TTL, cell, eventually, gate, unbuilt};

/// What a hook was called with.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn push(&self, entry: impl Into<String>) {
        self.0.lock().unwrap().push(entry.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn told(change: &Change<u32>) -> String {
    match change {
        Change::Published(snapshot) => {
            format!("{} as {}, {:?}", snapshot.value, snapshot.generation, snapshot.freshness)
        }
        Change::Invalidated => "invalidated".into(),
        Change::Cleared => "cleared".into(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_change_is_reported_after_it_is_visible_and_before_its_call_returns() {
    let (cell, _clock) = cell();
    let cell = Arc::new(cell);
    cell.set(0);
    let log = Log::default();
    let hook = cell.on_change({
        let (log, cell) = (log.clone(), Arc::downgrade(&cell));
        move |change| {
            // No lock is held: the cell can be used in every way.
            let cell = cell.upgrade().unwrap();
            log.push(format!("{}; {:?}", told(change), cell.get().as_deref()));
            drop(cell.lookup());
            assert!(cell.last_error().is_none());
        }
    });
    assert!(log.take().is_empty(), "not for what was there already");
    cell.set(1);
    assert_eq!(log.take(), ["1 as 2, Fresh; Some(1)"]);
    cell.invalidate();
    assert_eq!(log.take(), ["invalidated; Some(1)"]);
    assert!(cell.invalidate_if_current(&Arc::new(1)) || log.take().is_empty());
    cell.get_or_refresh(|| 2);
    assert_eq!(log.take(), ["2 as 3, Fresh; Some(2)"]);
    cell.invalidate();
    let lease = cell.lookup().elected();
    cell.invalidate();
    log.take();
    lease.publish(3);
    assert_eq!(log.take(), ["3 as 4, Stale; Some(3)"]);
    cell.lookup().elected().renew().unwrap();
    assert_eq!(log.take(), ["3 as 5, Fresh; Some(3)"]);
    cell.clear();
    assert_eq!(log.take(), ["cleared; None"]);
    cell.restore(4, 2 * TTL);
    assert_eq!(log.take(), ["4 as 6, Stale; Some(4)"]);
    cell.reset();
    assert_eq!(log.take(), ["cleared; None"]);
    // No changes: a read, a failure, a lease that is given back, a build that is revoked.
    drop(cell.lookup().elected());
    cell.lookup().elected().fail("no");
    cell.reset();
    log.take();
    let lease = cell.lookup().elected();
    cell.revoke();
    lease.publish(5);
    assert!(log.take().is_empty());
    drop(hook);
    cell.set(6);
    assert!(log.take().is_empty());
}

#[test]
fn on_publish_is_called_for_publications_only() {
    let (cell, _clock) = cell::<u32>();
    let log = Log::default();
    let hook = cell.on_publish({
        let log = log.clone();
        move |snapshot| {
            assert_eq!((snapshot.age, snapshot.fresh_for), (Duration::ZERO, TTL));
            log.push(snapshot.value.to_string());
        }
    });
    cell.set(1);
    cell.invalidate();
    cell.clear();
    cell.set(2);
    assert_eq!(log.take(), ["1", "2"]);
    drop(hook);
}

#[test]
fn of_every_kind_of_cell() {
    let log = Log::default();
    let lazy = LazyDogpile::<u32, _>::new(TTL, || 1);
    let sync = SyncReaderCell::new(TTL, drop::<u32>);
    let hooks = [
        lazy.on_publish({
            let log = log.clone();
            move |snapshot| log.push(snapshot.value.to_string())
        }),
        lazy.on_change({
            let log = log.clone();
            move |change| log.push(told(change))
        }),
        sync.on_publish({
            let log = log.clone();
            move |snapshot| log.push(format!("reader of {}", *snapshot.value))
        }),
        sync.on_change({
            let log = log.clone();
            move |change| log.push(format!("{change:?}").chars().take(9).collect::<String>())
        }),
    ];
    lazy.get_or_refresh();
    assert_eq!(log.take(), ["1", "1 as 1, Fresh"]);
    sync.set(2);
    assert_eq!(log.take(), ["reader of 2", "Published"]);
    assert_eq!(sync.readers(), 0, "no reader is left inside");
    sync.clear();
    assert_eq!(log.take(), ["Cleared"]);
    drop(hooks);
    sync.synchronize();
}

#[test]
fn a_panic_is_contained_and_the_others_are_called() {
    let (cell, _clock) = cell();
    let log = Log::default();
    let hooks = [0, 1, 2].map(|number| {
        let log = log.clone();
        cell.on_publish(move |snapshot| {
            log.push(format!("{number}: {}", snapshot.value));
            assert!(number != 1, "a planned panic");
        })
    });
    assert_eq!(*cell.set(7), 7);
    assert_eq!(*cell.set(8), 8);
    assert_eq!(log.take(), ["0: 7", "1: 7", "2: 7", "0: 8", "1: 8", "2: 8"]);
    drop(hooks);
}

#[test]
fn a_callback_that_sets_its_cell_does_not_recurse() {
    let (cell, _clock) = cell::<u32>();
    let cell = Arc::new(cell);
    let (log, depth) = (Log::default(), AtomicU32::new(0));
    let hook = cell.on_publish({
        let (log, cell) = (log.clone(), Arc::downgrade(&cell));
        move |snapshot| {
            assert_eq!(depth.fetch_add(1, Ordering::Relaxed), 0, "recursion");
            if *snapshot.value < 1000 {
                cell.upgrade().unwrap().set(*snapshot.value + 1);
            }
            log.push(snapshot.value.to_string());
            depth.fetch_sub(1, Ordering::Relaxed);
        }
    });
    cell.set(1);
    // All of them have been reported when the outermost call returns.
    assert_eq!(log.take(), (1..=1000).map(|number| number.to_string()).collect::<Vec<_>>());
    drop(hook);
}

#[test]
fn a_hook_that_is_dropped_by_its_callback_is_called_for_the_last_time() {
    let (cell, _clock) = cell();
    let (slot, calls) = (Arc::new(Mutex::new(None::<Hook>)), Arc::new(AtomicU32::new(0)));
    let captured = Arc::new(());
    let hook = cell.on_publish({
        let (slot, calls, captured) = (Arc::clone(&slot), Arc::clone(&calls), Arc::clone(&captured));
        move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            drop(slot.lock().unwrap().take());
            assert_eq!(Arc::strong_count(&captured), 2, "it is not dropped while it runs");
        }
    });
    *slot.lock().unwrap() = Some(hook);
    cell.set(1);
    cell.set(2);
    assert_eq!((calls.load(Ordering::Relaxed), Arc::strong_count(&captured)), (1, 1));
}

#[test]
fn a_callback_may_drop_the_last_handle_of_its_cell() {
    let cell = Arc::new(DogpileCell::new(TTL));
    let (weak, slot) = (Arc::downgrade(&cell), Arc::new(Mutex::new(None)));
    let hook = cell.on_publish({
        let slot = Arc::clone(&slot);
        move |_| drop(slot.lock().unwrap().take())
    });
    let lease = cell.lookup_owned().elected();
    *slot.lock().unwrap() = Some(cell);
    // The lease has a handle too, until it has ended.
    lease.publish(1);
    assert!(weak.upgrade().is_none());
    // Detached from nothing.
    drop(hook);
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(thread::panicking(), "a planned panic");
    }
}

#[test]
fn what_a_callback_captures_is_dropped_with_its_hook() {
    let (cell, _clock) = cell::<u32>();
    let captured = Arc::new(());
    let hook = cell.on_publish({
        let captured = Arc::clone(&captured);
        move |_| drop(Arc::clone(&captured))
    });
    assert_eq!(Arc::strong_count(&captured), 2);
    drop(hook);
    assert_eq!(Arc::strong_count(&captured), 1);
    // ... also if it panics.
    let bomb = Bomb;
    let hook = cell.on_publish(move |_| {
        let _ = &bomb;
    });
    assert!(catch_unwind(AssertUnwindSafe(|| drop(hook))).is_err());
    cell.set(1);
}

#[test]
fn a_drop_waits_for_the_callback_that_another_thread_runs() {
    let (cell, _clock) = cell();
    let (inside, gatekeeper) = gate();
    let returned = Arc::new(AtomicBool::new(false));
    let hook = cell.on_publish({
        let returned = Arc::clone(&returned);
        move |_| {
            inside.pass();
            returned.store(true, Ordering::Relaxed);
        }
    });
    thread::scope(|scope| {
        scope.spawn(|| cell.set(1));
        gatekeeper.wait_for_arrival();
        let (send, receive) = channel();
        let dropping = scope.spawn({
            let returned = Arc::clone(&returned);
            move || {
                send.send(()).unwrap();
                drop(hook);
                assert!(returned.load(Ordering::Relaxed), "the drop has not waited");
            }
        });
        receive.recv().unwrap();
        gatekeeper.open();
        dropping.join().unwrap();
    });
}

/// Two publications overlap: the second one does not wait for the callback of the first, which then gets it too, in order.
#[test]
fn overlapping_publications_are_reported_in_order_by_the_first_publisher() {
    let (cell, _clock) = cell();
    let (inside, gatekeeper) = gate();
    let log = Log::default();
    let hook = cell.on_publish({
        let log = log.clone();
        move |snapshot| {
            if *snapshot.value == 1 {
                inside.pass();
            }
            log.push(format!("{} on {}", snapshot.value, thread::current().name().unwrap_or_default()));
        }
    });
    thread::scope(|scope| {
        let cell = &cell;
        thread::Builder::new().name("first".into()).spawn_scoped(scope, move || cell.set(1)).unwrap();
        gatekeeper.wait_for_arrival();
        // Returns, and does not call back.
        cell.set(2);
        cell.set(3);
        assert!(log.take().is_empty());
        gatekeeper.open();
    });
    assert_eq!(log.take(), ["1 on first", "2 on first", "3 on first"]);
    drop(hook);
}

#[test]
fn many_hooks_come_and_go() {
    let (cell, _clock) = cell();
    let calls = Arc::new(AtomicU32::new(0));
    let mut hooks = Vec::new();
    for round in 0..100_u32 {
        hooks.push(cell.on_publish({
            let calls = Arc::clone(&calls);
            move |_| {
                calls.fetch_add(1, Ordering::Relaxed);
            }
        }));
        if round % 3 == 0 {
            drop(hooks.swap_remove(hooks.len() / 2));
        }
    }
    cell.set(1);
    assert_eq!(calls.load(Ordering::Relaxed) as usize, hooks.len());
    drop(hooks);
    cell.set(2);
    assert_eq!(calls.load(Ordering::Relaxed), 66);
}

/// A hook delays its publisher, but nobody else.
#[test]
fn readers_and_waiters_are_served_while_a_callback_runs() {
    let (cell, _clock) = cell::<u32>();
    let (inside, gatekeeper) = gate();
    let hook = cell.on_publish(move |_| inside.pass());
    thread::scope(|scope| {
        let cell = &cell;
        let lease = cell.lookup().elected();
        let waiter = scope.spawn(move || *cell.get_or_refresh(unbuilt));
        let subscriber = scope.spawn(move || *cell.subscribe().wait_changed());
        eventually("they wait", || cell.stats().waits == 2);
        let publisher = scope.spawn(move || *lease.publish(1));
        gatekeeper.wait_for_arrival();
        assert_eq!((waiter.join().unwrap(), subscriber.join().unwrap()), (1, 1));
        assert_eq!(cell.freshness(), Freshness::Fresh);
        assert!(!cell.is_refreshing());
        gatekeeper.open();
        assert_eq!(publisher.join().unwrap(), 1);
    });
    drop(hook);
}

/// As of a cell in a static.
#[test]
fn a_hook_of_a_static_cell() {
    static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires());
    static LATEST: AtomicU32 = AtomicU32::new(0);
    let hook = CELL.on_publish(|snapshot| LATEST.store(*snapshot.value, Ordering::Relaxed));
    CELL.set(3);
    assert_eq!(LATEST.load(Ordering::Relaxed), 3);
    drop(hook);
    CELL.set(4);
    assert_eq!(LATEST.load(Ordering::Relaxed), 3);
}

#[test]
fn a_hook_that_is_forgotten_is_called_for_as_long_as_the_cell_lives() {
    let calls = Arc::new(AtomicU32::new(0));
    let cell = DogpileCell::new(Duration::from_secs(60));
    std::mem::forget(cell.on_publish({
        let calls = Arc::clone(&calls);
        move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
        }
    }));
    cell.set(1);
    cell.set(2);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    drop(cell);
}
