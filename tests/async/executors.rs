//! Every method on every kind of executor.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use dogpile::{DogpileCell, Drain, LazyDogpile, ManualClock, Policy, RefreshError, SyncReaderCell, Waited};
use futures_lite::FutureExt as _;

use crate::support::{
    Door, LookupExt, Room, TICK, TTL, cell, guarded, is_planned, panic_as_planned, stale_cell, unbuilt,
    until, untried,
};

/// What runs a scenario.
#[derive(Clone, Copy)]
pub(crate) enum Executor {
    /// Tokio, with worker threads.
    Threads,
    /// Tokio, all on one thread.
    OneThread,
    /// Smol's executor, run by two threads.
    Smol,
    /// None: each task has a thread of its own and blocks it.
    Bare,
}

/// Starts tasks.
#[derive(Clone)]
pub(crate) enum Spawner {
    Tokio(tokio::runtime::Handle),
    Smol(Arc<smol::Executor<'static>>),
    Bare,
}

impl Executor {
    /// Runs `scenario`, which must not hang.
    pub(crate) fn run<F: Future<Output = ()> + 'static>(self, scenario: fn(Spawner) -> F) {
        guarded(move || match self {
            Self::Threads => {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
                runtime.block_on(scenario(Spawner::Tokio(runtime.handle().clone())));
            }
            Self::OneThread => {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(scenario(Spawner::Tokio(runtime.handle().clone())));
            }
            Self::Smol => {
                let executor = Arc::new(smol::Executor::new());
                let (stop, stopped) = smol::channel::bounded::<()>(1);
                let other = {
                    let executor = Arc::clone(&executor);
                    std::thread::spawn(move || smol::block_on(executor.run(stopped.recv())))
                };
                smol::block_on(executor.run(scenario(Spawner::Smol(Arc::clone(&executor)))));
                drop(stop);
                assert!(other.join().unwrap().is_err());
            }
            Self::Bare => futures_lite::future::block_on(scenario(Spawner::Bare)),
        });
    }
}

type Outcome<T> = std::thread::Result<T>;

/// The result of a task, to be awaited.
pub(crate) struct Spawned<T>(Arc<Mutex<Parcel<T>>>);

/// Once it is there, and the waker of the task that waits for it.
type Parcel<T> = (Option<Outcome<T>>, Option<Waker>);

impl Spawner {
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Spawned<T> {
        let result = Arc::new(Mutex::new((None, None::<Waker>)));
        let task = {
            let result = Arc::clone(&result);
            async move {
                let outcome = AssertUnwindSafe(future).catch_unwind().await;
                let waker = {
                    let mut result = result.lock().unwrap();
                    result.0 = Some(outcome);
                    result.1.take()
                };
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        };
        match self {
            Self::Tokio(handle) => drop(handle.spawn(task)),
            Self::Smol(executor) => executor.spawn(task).detach(),
            Self::Bare => drop(std::thread::spawn(|| futures_lite::future::block_on(task))),
        }
        Spawned(result)
    }
}

impl<T> Spawned<T> {
    /// The result, or the panic.
    pub(crate) async fn outcome(self) -> Outcome<T> {
        std::future::poll_fn(|cx| {
            let mut result = self.0.lock().unwrap();
            result.0.take().map_or_else(
                || {
                    result.1 = Some(cx.waker().clone());
                    Poll::Pending
                },
                Poll::Ready,
            )
        })
        .await
    }

    pub(crate) async fn join(self) -> T {
        self.outcome().await.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// Makes of each scenario a test on each executor.
macro_rules! on_every_executor {
    ($($scenario:ident,)*) => {$(
        mod $scenario {
            use super::Executor;

            #[test]
            fn on_tokio_with_threads() {
                Executor::Threads.run(super::$scenario);
            }

            #[test]
            fn on_tokio_on_one_thread() {
                Executor::OneThread.run(super::$scenario);
            }

            #[test]
            fn on_smol() {
                Executor::Smol.run(super::$scenario);
            }

            #[test]
            fn on_none() {
                Executor::Bare.run(super::$scenario);
            }
        }
    )*};
}

on_every_executor! {
    tasks_share_one_build,
    a_stale_value_is_served_while_a_task_builds,
    tasks_share_one_error,
    a_fresh_value_is_waited_for,
    after_a_panic_one_task_is_next,
    pendings_are_awaited,
    a_thread_and_tasks_take_turns,
    a_lazy_cell_is_built_once,
    a_sync_reader_cell_is_read_and_drained,
    a_sync_reader_cell_shares_one_error,
}

const TASKS: u64 = 12;

async fn tasks_share_one_build(spawner: Spawner) {
    let (cell, _clock) = cell();
    let (builds, door) = (Arc::new(AtomicUsize::new(0)), Door::default());
    let tasks = (0..TASKS).map(|_| {
        let (cell, builds, door) = (Arc::clone(&cell), Arc::clone(&builds), door.clone());
        spawner.spawn(async move {
            cell.get_or_refresh_async(|| async {
                builds.fetch_add(1, Ordering::SeqCst);
                door.pass().await;
                7
            })
            .await
        })
    });
    let tasks: Vec<_> = tasks.collect();
    until("all but one wait", || cell.stats().waits == TASKS - 1).await;
    door.open();
    let mut values = Vec::new();
    for task in tasks {
        values.push(task.join().await);
    }
    assert_eq!(*values[0], 7);
    assert!(values.iter().all(|value| Arc::ptr_eq(value, &values[0])));
    assert_eq!((builds.load(Ordering::SeqCst), cell.stats().builds), (1, 1));
}

async fn a_stale_value_is_served_while_a_task_builds(spawner: Spawner) {
    let (cell, _clock) = stale_cell(1);
    let door = Door::default();
    let builder = {
        let (cell, door) = (Arc::clone(&cell), door.clone());
        spawner.spawn(async move {
            cell.get_or_refresh_async(|| async move {
                door.pass().await;
                2
            })
            .await
        })
    };
    until("a task builds", || cell.is_refreshing()).await;
    assert_eq!(*cell.get_or_refresh_async(unbuilt).await, 1);
    assert_eq!(*cell.try_get_or_refresh_async(untried).await.unwrap(), 1);
    door.open();
    assert_eq!(*builder.join().await, 2);
    assert_eq!(cell.stats().waits, 0);
}

async fn tasks_share_one_error(spawner: Spawner) {
    let (cell, clock) = cell::<u32>();
    let door = Door::default();
    let tasks = (0..TASKS).map(|_| {
        let (cell, door) = (Arc::clone(&cell), door.clone());
        spawner.spawn(async move {
            cell.try_get_or_refresh_async(|| async {
                door.pass().await;
                Err("no route")
            })
            .await
        })
    });
    let tasks: Vec<_> = tasks.collect();
    until("all but one wait", || cell.stats().waits == TASKS - 1).await;
    door.open();
    let mut errors = Vec::new();
    for task in tasks {
        match task.join().await {
            Err(RefreshError::Build(error)) => errors.push(error),
            other => panic!("expected the error of the build, got {other:?}"),
        }
    }
    assert!(errors.iter().all(|error| error.ptr_eq(&errors[0])));
    assert_eq!(cell.stats().builds, 1);
    // In the retry pause others get it too.
    let later = cell.try_get_or_refresh_async(untried).await.unwrap_err();
    assert!(later.build_error().unwrap().ptr_eq(&errors[0]));
    clock.advance(TTL);
    let built = cell.try_get_or_refresh_async(|| async { Ok::<_, &str>(1) }).await;
    assert_eq!(*built.unwrap(), 1);
}

async fn a_fresh_value_is_waited_for(spawner: Spawner) {
    let (cell, _clock) = stale_cell(1);
    let door = Door::default();
    let tasks = (0..TASKS).map(|_| {
        let (cell, door) = (Arc::clone(&cell), door.clone());
        spawner.spawn(async move {
            cell.request()
                .max_stale(Duration::ZERO)
                .get_async(|| async {
                    door.pass().await;
                    2
                })
                .await
        })
    });
    let tasks: Vec<_> = tasks.collect();
    until("all but one wait", || cell.stats().waits == TASKS - 1).await;
    door.open();
    for task in tasks {
        assert_eq!(*task.join().await, 2);
    }
    assert_eq!(cell.stats().builds, 1);
}

async fn after_a_panic_one_task_is_next(spawner: Spawner) {
    let (cell, _clock) = cell();
    let (builds, door, room) = (Arc::new(AtomicUsize::new(0)), Door::default(), Room::default());
    let tasks = (0..TASKS).map(|_| {
        let (cell, builds) = (Arc::clone(&cell), Arc::clone(&builds));
        let (door, room) = (door.clone(), room.clone());
        spawner.spawn(async move {
            cell.get_or_refresh_async(|| async {
                let _inside = room.enter();
                door.pass().await;
                if builds.fetch_add(1, Ordering::SeqCst) == 0 {
                    panic_as_planned();
                }
                7
            })
            .await
        })
    });
    let tasks: Vec<_> = tasks.collect();
    until("all but one wait", || cell.stats().waits == TASKS - 1).await;
    door.open();
    let mut panics = 0;
    for task in tasks {
        match task.outcome().await {
            Ok(value) => assert_eq!(*value, 7),
            Err(panic) if is_planned(&*panic) => panics += 1,
            Err(panic) => resume_unwind(panic),
        }
    }
    assert_eq!((panics, builds.load(Ordering::SeqCst)), (1, 2));
}

async fn pendings_are_awaited(spawner: Spawner) {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let owned = spawner.spawn(cell.lookup_owned().pending());
    let borrowed = {
        let cell = Arc::clone(&cell);
        spawner.spawn(async move { cell.lookup().pending().await })
    };
    until("both wait", || cell.stats().waits == 2).await;
    let value = lease.publish(7);
    for waited in [owned.join().await, borrowed.join().await] {
        assert!(matches!(waited, Waited::Published(published) if Arc::ptr_eq(&published, &value)));
    }
}

async fn a_thread_and_tasks_take_turns(spawner: Spawner) {
    let (cell, _clock) = cell();
    let door = Door::default();
    let builder = {
        let (cell, door) = (Arc::clone(&cell), door.clone());
        spawner.spawn(async move {
            cell.get_or_refresh_async(|| async move {
                door.pass().await;
                7
            })
            .await
        })
    };
    until("a task builds", || cell.is_refreshing()).await;
    let thread = {
        let cell = Arc::clone(&cell);
        std::thread::spawn(move || cell.get_or_refresh(|| unreachable!("a task builds")))
    };
    until("the thread waits", || cell.stats().waits == 1).await;
    door.open();
    let value = builder.join().await;
    until("the thread is woken", || thread.is_finished()).await;
    assert!(Arc::ptr_eq(&thread.join().unwrap(), &value));
    // And the other way round.
    cell.clear();
    let (open, opened) = std::sync::mpsc::channel();
    let thread = {
        let cell = Arc::clone(&cell);
        std::thread::spawn(move || {
            cell.get_or_refresh(|| {
                opened.recv().unwrap();
                8
            })
        })
    };
    until("the thread builds", || cell.is_refreshing()).await;
    let task = {
        let cell = Arc::clone(&cell);
        spawner.spawn(async move { cell.get_or_refresh_async(|| async { 0 }).await })
    };
    until("the task waits", || cell.stats().waits == 2).await;
    open.send(()).unwrap();
    assert_eq!(*task.join().await, 8);
    until("the thread is done", || thread.is_finished()).await;
    assert_eq!((*thread.join().unwrap(), cell.stats().builds), (8, 2));
}

async fn a_lazy_cell_is_built_once(spawner: Spawner) {
    let (builds, door) = (Arc::new(AtomicUsize::new(0)), Door::default());
    let build = {
        let (builds, door) = (Arc::clone(&builds), door.clone());
        move || {
            let (builds, door) = (Arc::clone(&builds), door.clone());
            async move {
                door.pass().await;
                builds.fetch_add(1, Ordering::SeqCst)
            }
        }
    };
    let lazy = Arc::new(LazyDogpile::new(Duration::from_secs(3600), build));
    let tasks = (0..TASKS).map(|_| {
        let lazy = Arc::clone(&lazy);
        spawner.spawn(async move { lazy.get_or_refresh_async().await })
    });
    let tasks: Vec<_> = tasks.collect();
    until("all but one wait", || lazy.cell().stats().waits == TASKS - 1).await;
    door.open();
    for task in tasks {
        assert_eq!(*task.join().await, 0);
    }
    lazy.cell().invalidate();
    assert_eq!((*lazy.get_or_refresh_async().await, builds.load(Ordering::SeqCst)), (1, 2));
}

type Numbers = Arc<SyncReaderCell<u32, ManualClock>>;

/// A cell whose callers wait for the readers, its clock, and what its finalizer got.
fn draining() -> (Numbers, ManualClock, Arc<Mutex<Vec<u32>>>) {
    let (clock, log) = (ManualClock::new(), Arc::new(Mutex::new(Vec::new())));
    let finalizer = {
        let log = Arc::clone(&log);
        move |value| log.lock().unwrap().push(value)
    };
    let drain = Drain::Wait(Duration::MAX);
    let cell = SyncReaderCell::with_clock(Policy::ttl(TTL), clock.clone(), drain, finalizer);
    (Arc::new(cell), clock, log)
}

async fn a_sync_reader_cell_is_read_and_drained(spawner: Spawner) {
    let (cell, clock, log) = draining();
    let readers = (0..TASKS).map(|_| {
        let cell = Arc::clone(&cell);
        spawner.spawn(async move { cell.get_or_refresh_async(|| async { 1 }).await })
    });
    let mut held = Vec::new();
    for reader in readers {
        held.push(reader.join().await);
    }
    assert_eq!((cell.readers() as u64, cell.stats().builds), (TASKS, 1));
    clock.advance(TTL + TICK);
    let builder = {
        let cell = Arc::clone(&cell);
        spawner
            .spawn(async move { *cell.request().max_stale(Duration::ZERO).get_async(|| async { 2 }).await })
    };
    until("the new value is out", || cell.generation() == 2).await;
    let synchronizer = {
        let (cell, log) = (Arc::clone(&cell), Arc::clone(&log));
        spawner.spawn(async move {
            cell.synchronize_async().await;
            log.lock().unwrap().clone()
        })
    };
    // Readers of the new one do not wait.
    assert_eq!(*cell.get_or_refresh_async(unbuilt).await, 2);
    while let Some(reader) = held.pop() {
        assert_eq!((*reader, log.lock().unwrap().len(), cell.is_refreshing()), (1, 0, true));
        drop(reader);
        futures_lite::future::yield_now().await;
    }
    assert_eq!((builder.join().await, cell.is_refreshing()), (2, false));
    assert_eq!(synchronizer.join().await, [1]);
    let third = cell.try_get_or_refresh_async(|| async { Err::<u32, _>("it is fresh") }).await;
    assert_eq!(*third.unwrap(), 2);
}

async fn a_sync_reader_cell_shares_one_error(spawner: Spawner) {
    let (cell, _clock, log) = draining();
    let door = Door::default();
    let tasks = (0..TASKS).map(|_| {
        let (cell, door) = (Arc::clone(&cell), door.clone());
        spawner.spawn(async move {
            cell.try_get_or_refresh_async(|| async {
                door.pass().await;
                Err("no route")
            })
            .await
        })
    });
    let tasks: Vec<_> = tasks.collect();
    until("all but one wait", || cell.stats().waits == TASKS - 1).await;
    door.open();
    let mut errors = Vec::new();
    for task in tasks {
        match task.join().await {
            Err(RefreshError::Build(error)) => errors.push(error),
            other => panic!("expected the error of the build, got {other:?}"),
        }
    }
    assert!(errors.iter().all(|error| error.ptr_eq(&errors[0])));
    assert_eq!((cell.stats().builds, log.lock().unwrap().len()), (1, 0));
}

/// Values and builds that are not `Send`, on one thread.
mod local {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::{DogpileCell, Duration, guarded};

    /// A value that no thread could share, and builds that hold on to what they must not send.
    async fn scenario() {
        let cell: Rc<DogpileCell<Rc<Cell<u32>>>> = Rc::new(DogpileCell::new(Duration::from_secs(3600)));
        let mine = Rc::new(Cell::new(1));
        let build = || async {
            let held = Rc::clone(&mine);
            futures_lite::future::yield_now().await;
            held
        };
        let (first, second) =
            futures_lite::future::zip(cell.get_or_refresh_async(build), cell.get_or_refresh_async(build))
                .await;
        mine.set(2);
        assert_eq!((first.get(), second.get(), cell.stats().builds), (2, 2, 1));
    }

    #[test]
    fn on_a_local_set() {
        guarded(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async { tokio::task::spawn_local(scenario()).await.unwrap() });
        });
    }

    #[test]
    fn on_a_local_executor() {
        guarded(|| {
            let executor = smol::LocalExecutor::new();
            let task = executor.spawn(scenario());
            futures_lite::future::block_on(executor.run(task));
        });
    }

    #[test]
    fn on_none() {
        guarded(|| futures_lite::future::block_on(scenario()));
    }
}
