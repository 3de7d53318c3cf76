//! G10: a build that reads its own cell gets the old value or an error; it never hangs. Also when it is a future.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, RefreshError, Waited};
use futures_lite::future::{yield_now, zip};

use crate::support::{
    Cell, Door, Hand, LookupExt, cell, guarded, panic_as_planned, panic_message, panics_as_planned, run,
    stale_cell, unbuilt, untried,
};

#[test]
fn a_build_that_asks_gets_the_stale_value() {
    let (cell, _clock) = stale_cell(1);
    let value = run(cell.get_or_refresh_async(|| async {
        yield_now().await;
        assert_eq!(*cell.get_or_refresh_async(unbuilt).await, 1);
        assert_eq!(*cell.try_get_or_refresh_async(untried).await.unwrap(), 1);
        assert_eq!(*cell.request().get_async(unbuilt).await, 1);
        assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
        *cell.get().unwrap() + 1
    }));
    assert_eq!(*value, 2);
}

/// The message names the method and the place of the call, which a task's backtrace would not show.
#[track_caller]
fn names(message: &str, method: &str, line: &AtomicU32) {
    let named = format!("{method}, at {}:{}:", file!(), line.load(Ordering::SeqCst));
    assert!(message.contains(&named), "{named} is not in: {message}");
    assert!(message.contains("from inside the build of the same cell"), "{message}");
    assert!(message.contains("use `get`"), "{message}");
}

#[test]
fn without_a_value_get_or_refresh_async_panics_and_says_where() {
    let (cell, _clock) = cell::<u32>();
    let line = AtomicU32::new(0);
    let message = panic_message(|| {
        run(cell.get_or_refresh_async(|| async {
            line.store(line!() + 1, Ordering::SeqCst);
            let own = cell.get_or_refresh_async(|| async { 1 });
            *own.await
        }))
    });
    names(&message, "get_or_refresh_async", &line);
    assert_eq!((cell.stats().panicked, cell.stats().waits), (1, 0));
    // Nothing is lost.
    assert_eq!(*run(cell.get_or_refresh_async(|| async { 2 })), 2);
}

#[test]
fn get_async_panics_and_says_where() {
    let (cell, _clock) = stale_cell(1);
    let line = AtomicU32::new(0);
    let message = panic_message(|| {
        run(cell.request().max_stale(Duration::ZERO).get_async(|| async {
            yield_now().await;
            line.store(line!() + 1, Ordering::SeqCst);
            let own = cell.request().max_stale(Duration::ZERO).get_async(|| async { 1 });
            *own.await
        }))
    });
    names(&message, "get_async", &line);
    assert_eq!(*run(cell.request().max_stale(Duration::ZERO).get_async(|| async { 2 })), 2);
}

#[test]
fn without_a_value_try_get_or_refresh_async_returns_an_error() {
    let (cell, _clock) = cell::<u32>();
    let value = run(cell.try_get_or_refresh_async(|| async {
        yield_now().await;
        let result = cell.try_get_or_refresh_async(untried).await;
        assert!(matches!(result, Err(RefreshError::Reentrant)));
        Ok::<_, &str>(1)
    }));
    assert_eq!(*value.unwrap(), 1);
    assert_eq!(cell.stats().waits, 0);
}

#[test]
fn a_build_of_a_sync_reader_cell_gets_an_error_too() {
    let cell = Arc::new(dogpile::SyncReaderCell::new(Duration::from_secs(3600), drop::<u32>));
    let value = run(cell.get_or_refresh_async(|| async {
        yield_now().await;
        let result = cell.try_get_or_refresh_async(untried).await;
        assert!(matches!(result, Err(RefreshError::Reentrant)));
        1
    }));
    assert_eq!(*value, 1);
    cell.clear();
    let line = AtomicU32::new(0);
    let message = panic_message(|| {
        run(cell.get_or_refresh_async(|| async {
            line.store(line!() + 1, Ordering::SeqCst);
            let own = cell.get_or_refresh_async(|| async { 1 });
            *own.await
        }))
    });
    names(&message, "get_or_refresh_async", &line);
    let message = panic_message(|| {
        run(cell.request().max_stale(Duration::ZERO).get_async(|| async {
            line.store(line!() + 1, Ordering::SeqCst);
            let own = cell.request().max_stale(Duration::ZERO).get_async(|| async { 1 });
            *own.await
        }))
    });
    names(&message, "get_async", &line);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
}

#[test]
fn a_pending_that_is_awaited_inside_the_build_is_reentrant() {
    let (cell, _clock) = cell();
    run(cell.get_or_refresh_async(|| async {
        yield_now().await;
        assert!(matches!(cell.lookup().pending().await, Waited::Reentrant));
        assert!(matches!(cell.lookup().pending().wait(), Waited::Reentrant));
        1
    }));
    assert_eq!(cell.stats().waits, 0);
}

#[test]
fn the_closure_that_makes_the_future_is_inside_too() {
    let (cell, _clock) = cell::<u32>();
    let value = run(cell.get_or_refresh_async(|| {
        let result = cell.try_get_or_refresh(|| -> Result<_, &str> { unreachable!() });
        assert!(matches!(result, Err(RefreshError::Reentrant)));
        async { 1 }
    }));
    assert_eq!(*value, 1);
}

#[test]
fn a_build_of_a_thread_that_runs_a_task_gets_an_error_and_so_does_the_reverse() {
    let (cell, _clock) = cell::<u32>();
    // A thread's build that runs a future.
    let value = cell.get_or_refresh(|| {
        run(async {
            let result = cell.try_get_or_refresh_async(untried).await;
            assert!(matches!(result, Err(RefreshError::Reentrant)));
        });
        1
    });
    assert_eq!(*value, 1);
    cell.clear();
    // A task's build that would block.
    let value = run(cell.get_or_refresh_async(|| async {
        yield_now().await;
        let result = cell.try_get_or_refresh(|| -> Result<_, &str> { unreachable!() });
        assert!(matches!(result, Err(RefreshError::Reentrant)));
        2
    }));
    assert_eq!(*value, 2);
}

/// A build may go on on another thread than it began on.
#[test]
fn a_build_that_moves_to_another_thread_gets_an_error_there_and_callers_here_wait() {
    let (cell, _clock) = cell::<u32>();
    let door = Door::default();
    let mut builder: Pin<Box<dyn Future<Output = Arc<u32>> + Send>> = {
        let (cell, door) = (Arc::clone(&cell), door.clone());
        Box::pin(async move {
            cell.get_or_refresh_async(|| async {
                door.pass().await;
                let result = cell.try_get_or_refresh_async(untried).await;
                assert!(matches!(result, Err(RefreshError::Reentrant)));
                1
            })
            .await
        })
    };
    let poll = |builder: &mut Pin<Box<dyn Future<Output = Arc<u32>> + Send>>| {
        builder.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    };
    assert!(poll(&mut builder).is_pending());
    // This thread does not build while it does not poll.
    let mut waits = Hand::new(cell.get_or_refresh_async(|| async { 0 }));
    waits.pending();
    door.open();
    let value = thread::spawn(move || match poll(&mut builder) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the door is open"),
    })
    .join()
    .unwrap();
    assert!(Arc::ptr_eq(&value, &waits.ready()));
}

#[test]
fn builds_of_two_cells_may_be_nested() {
    let ((outer, _), (inner, _)) = (cell(), cell());
    let value = run(outer.get_or_refresh_async(|| async {
        let nested = inner.get_or_refresh_async(|| async {
            yield_now().await;
            // Inside both.
            let result = outer.try_get_or_refresh_async(untried).await;
            assert!(matches!(result, Err(RefreshError::Reentrant)));
            1
        });
        *nested.await + 1
    }));
    assert_eq!((*value, inner.get().as_deref()), (2, Some(&1)));
}

/// Two builds that take turns on one thread, each of which reads the other's cell in the end.
#[test]
fn interleaved_builds_are_not_taken_for_nested() {
    let ((left, _), (right, _)) = (cell(), cell());
    let door = Door::default();
    let left_build = || async {
        door.pass().await;
        1
    };
    let right_build = || async {
        yield_now().await;
        // The build of another caller, which is suspended.
        *left.get_or_refresh_async(unbuilt).await + 10
    };
    let mut both =
        Hand::new(zip(left.get_or_refresh_async(left_build), right.get_or_refresh_async(right_build)));
    both.pending().pending().pending();
    assert_eq!((left.stats().waits, right.stats().waits), (1, 0));
    door.open();
    let (left, right) = both.ready();
    assert_eq!((*left, *right), (1, 11));
}

#[test]
fn two_reads_of_one_task_are_not_taken_for_nested() {
    let (cell, _clock) = cell();
    let build = || async {
        yield_now().await;
        1
    };
    let (first, second) = run(zip(cell.get_or_refresh_async(build), cell.get_or_refresh_async(build)));
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(cell.stats().builds, 1);
}

#[test]
fn after_a_panic_the_thread_is_not_taken_for_building() {
    let (cell, _clock) = cell::<u32>();
    let mut builder = Hand::new(cell.get_or_refresh_async(|| async {
        yield_now().await;
        panic_as_planned()
    }));
    builder.pending();
    panics_as_planned(|| builder.poll());
    drop(builder);
    panics_as_planned(|| {
        let mut builder =
            Hand::new(cell.get_or_refresh_async(|| -> std::future::Ready<u32> { panic_as_planned() }));
        builder.poll()
    });
    let lease = cell.lookup().elected();
    Hand::new(cell.get_or_refresh_async(|| async { 0 })).pending();
    lease.publish(1);
}

/// Reads the cell when it is dropped, without waiting, and notes whether that was refused.
struct Asks<'a> {
    cell: &'a DogpileCell<u32, dogpile::ManualClock>,
    refused: &'a AtomicBool,
}

impl Drop for Asks<'_> {
    fn drop(&mut self) {
        let request = self.cell.request().wait_at_most(Duration::ZERO);
        let result = request.try_get(|| -> Result<_, &str> { unreachable!("the lease is held") });
        self.refused.store(matches!(result, Err(RefreshError::Reentrant)), Ordering::SeqCst);
    }
}

/// What a build holds is dropped with it, before the lease comes back: a read of the cell would wait for itself then.
#[test]
fn a_build_that_reads_while_it_is_cancelled_gets_an_error() {
    let (cell, _clock) = cell();
    let refused = AtomicBool::new(false);
    let mut builder = Hand::new(cell.get_or_refresh_async(|| async {
        let _asks = Asks { cell: &cell, refused: &refused };
        std::future::pending().await
    }));
    builder.pending();
    drop(builder);
    assert!(refused.into_inner(), "it would have waited for itself");
}

/// The same when it has ended, for a future that keeps something until it is dropped.
#[test]
fn a_build_that_reads_when_it_is_dropped_after_its_end_gets_an_error() {
    struct Keeps<'a>(Asks<'a>);
    impl Future for Keeps<'_> {
        type Output = u32;
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u32> {
            let _ = self.0.refused;
            Poll::Ready(1)
        }
    }
    let (cell, _clock) = cell();
    let refused = AtomicBool::new(false);
    let value = run(cell.get_or_refresh_async(|| Keeps(Asks { cell: &cell, refused: &refused })));
    assert_eq!(*value, 1);
    assert!(refused.into_inner(), "it would have waited for itself");
}

/// What it holds is dropped during the panic.
#[test]
fn a_build_that_reads_while_it_unwinds_gets_an_error() {
    let (cell, _clock) = cell();
    let refused = AtomicBool::new(false);
    panics_as_planned(|| {
        run(cell.get_or_refresh_async(|| async {
            let _asks = Asks { cell: &cell, refused: &refused };
            yield_now().await;
            panic_as_planned()
        }))
    });
    assert!(refused.into_inner(), "it would have waited for itself");
}

/// A task that a build waits for is not inside that build: it waits, and a lease timeout ends that.
#[test]
fn another_task_that_the_build_awaits_waits_like_any_other() {
    guarded(|| {
        let (cell, _clock): (Cell<u32>, _) = cell();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let value = runtime.block_on(cell.get_or_refresh_async(|| async {
            let task = {
                let cell = Arc::clone(&cell);
                tokio::spawn(AssertUnwindSafe(async move { *cell.get_or_refresh_async(unbuilt).await }))
            };
            while cell.stats().waits == 0 {
                yield_now().await;
            }
            assert!(!task.is_finished());
            cell.set(7);
            assert_eq!(task.await.unwrap(), 7);
            1
        }));
        assert_eq!(*value, 7);
    });
}
