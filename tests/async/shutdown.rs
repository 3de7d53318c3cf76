//! An executor that goes away in mid-build: the lease comes back, and the waiters go on.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dogpile::{Drain, Policy, SyncReaderCell};

use crate::support::{Cell, Hand, TTL, cell, eventually, guarded, joined};

/// A build that says that it has begun, and never ends.
async fn endless<T>(begun: std::sync::mpsc::Sender<()>) -> T {
    begun.send(()).unwrap();
    std::future::pending().await
}

/// A thread that waits for it.
fn waiting_thread(cell: &Cell<u32>) -> JoinHandle<Arc<u32>> {
    let thread = {
        let cell = Arc::clone(cell);
        thread::spawn(move || cell.get_or_refresh(|| 7))
    };
    eventually("the thread waits", || cell.stats().waits == 1);
    thread
}

/// The waiters go on, thread and task.
fn goes_on(shut_down: impl FnOnce(&Cell<u32>) -> Box<dyn FnOnce()>) {
    let (cell, _clock) = cell();
    let shut_down = shut_down(&cell);
    assert!(cell.is_refreshing());
    let thread = waiting_thread(&cell);
    let mut task = Hand::new(cell.get_or_refresh_async(|| async { 7 }));
    task.pending();
    shut_down();
    assert!(task.wakes() > 0);
    assert_eq!(*joined(thread), 7);
    assert_eq!(*task.ready(), 7);
    let stats = cell.stats();
    assert_eq!((stats.abandoned, stats.panicked, stats.builds), (1, 0, 2));
}

#[test]
fn tokio_with_threads() {
    guarded(|| {
        goes_on(|cell| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
            let (begun, begins) = channel();
            let cell = Arc::clone(cell);
            runtime.spawn(async move { cell.get_or_refresh_async(|| endless(begun)).await });
            begins.recv().unwrap();
            Box::new(move || drop(runtime))
        });
    });
}

#[test]
fn tokio_on_one_thread() {
    guarded(|| {
        goes_on(|cell| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (begun, begins) = channel();
            let cell = Arc::clone(cell);
            runtime.spawn(async move { cell.get_or_refresh_async(|| endless(begun)).await });
            runtime.block_on(async {
                while begins.try_recv().is_err() {
                    tokio::task::yield_now().await;
                }
            });
            Box::new(move || drop(runtime))
        });
    });
}

#[test]
fn smol() {
    guarded(|| {
        goes_on(|cell| {
            let executor = smol::Executor::new();
            let (begun, begins) = channel();
            let cell = Arc::clone(cell);
            executor.spawn(async move { cell.get_or_refresh_async(|| endless(begun)).await }).detach();
            while executor.try_tick() {}
            begins.recv().unwrap();
            Box::new(move || drop(executor))
        });
    });
}

#[test]
fn a_task_that_is_aborted() {
    guarded(|| {
        goes_on(|cell| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
            let (begun, begins) = channel();
            let builds = Arc::clone(cell);
            let task = runtime.spawn(async move { builds.get_or_refresh_async(|| endless(begun)).await });
            begins.recv().unwrap();
            Box::new(move || {
                task.abort();
                let ended = runtime.block_on(task);
                assert!(ended.unwrap_err().is_cancelled());
            })
        });
    });
}

/// A thread that blocks on a future is woken though the executor whose task builds has gone.
#[test]
fn between_executors() {
    guarded(|| {
        let (cell, _clock) = cell();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (begun, begins) = channel();
        {
            let cell = Arc::clone(&cell);
            runtime.spawn(async move { cell.get_or_refresh_async(|| endless(begun)).await });
        }
        begins.recv().unwrap();
        let other = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || smol::block_on(cell.get_or_refresh_async(|| async { 7 })))
        };
        eventually("the other one waits", || cell.stats().waits == 1);
        drop(runtime);
        assert_eq!(*joined(other), 7);
    });
}

/// In the middle of a drain: the lease comes back, the old value goes to the background.
#[test]
fn in_a_drain() {
    guarded(|| {
        let (report, log) = channel();
        let drain = Drain::Wait(Duration::MAX);
        let finalizer = move |value| report.send(value).unwrap();
        let cell = Arc::new(SyncReaderCell::with_policy(Policy::ttl(TTL), drain, finalizer));
        let reader = cell.set(1);
        cell.invalidate();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        {
            let cell = Arc::clone(&cell);
            runtime.spawn(async move { drop(cell.get_or_refresh_async(|| async { 2 }).await) });
        }
        eventually("the new value is out", || cell.generation() == 2);
        assert!(cell.is_refreshing());
        drop(runtime);
        assert!(!cell.is_refreshing());
        assert_eq!(cell.retired(), 1);
        drop(reader);
        assert_eq!(log.recv(), Ok(1));
        cell.synchronize();
    });
}
