//! `LazyDogpile` with a build that is a future, in a `static`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dogpile::{LazyDogpile, ManualClock, Policy, RefreshError, Task};

use crate::executors::{Executor, Spawner};
use crate::support::{Door, Hand, TICK, TTL, panic_message, run};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

static BUILDS: AtomicU32 = AtomicU32::new(0);

async fn build() -> u32 {
    for _ in 0..10 {
        futures_lite::future::yield_now().await;
    }
    BUILDS.fetch_add(1, Ordering::SeqCst) + 1
}

static NUMBER: LazyDogpile<u32, fn() -> Boxed<u32>> =
    LazyDogpile::new(Duration::from_secs(3600), || Box::pin(build()));

async fn scenario(spawner: Spawner) {
    let tasks: Vec<_> = (0..100).map(|_| spawner.spawn(NUMBER.get_or_refresh_async())).collect();
    for task in tasks {
        assert_eq!(*task.join().await, 1);
    }
}

#[test]
fn a_static_cell_is_built_once_by_the_tasks_of_several_executors() {
    Executor::Threads.run(scenario);
    Executor::Smol.run(scenario);
    Executor::OneThread.run(scenario);
    assert_eq!((BUILDS.load(Ordering::SeqCst), NUMBER.cell().stats().builds), (1, 1));
    assert_eq!(NUMBER.get().as_deref(), Some(&1));
}

static NESTED: LazyDogpile<u32, fn() -> Boxed<u32>> =
    LazyDogpile::new(Duration::from_secs(3600), || Box::pin(asks_itself()));

static LINE: AtomicU32 = AtomicU32::new(0);

async fn asks_itself() -> u32 {
    LINE.store(line!() + 1, Ordering::SeqCst);
    let own = NESTED.get_or_refresh_async();
    *own.await
}

#[test]
fn a_build_that_asks_itself_panics_at_the_line_of_the_call() {
    let message = panic_message(|| run(NESTED.get_or_refresh_async()));
    assert!(message.contains(&format!("at {}:{}:", file!(), LINE.load(Ordering::SeqCst))), "{message}");
}

/// The build is the cell's own, so it outlives the future that runs it.
#[test]
fn a_read_that_is_dropped_leaves_the_build_to_the_next() {
    let lazy = LazyDogpile::<u32, _>::new(Duration::from_secs(3600), || async {
        futures_lite::future::yield_now().await;
        7
    });
    let mut first = Hand::new(lazy.get_or_refresh_async());
    first.pending();
    drop(first);
    let value = run(lazy.get_or_refresh_async());
    assert_eq!((*value, lazy.cell().stats().builds), (7, 2));
    assert!(Arc::ptr_eq(&value, &lazy.cell().get().unwrap()));
}

#[test]
fn a_build_that_may_fail_returns_its_error() {
    let is_down = AtomicU32::new(1);
    let clock = ManualClock::new();
    let lazy = LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), || async {
        if is_down.load(Ordering::SeqCst) == 0 { Ok(7) } else { Err("down") }
    });
    let error = run(lazy.try_get_or_refresh_async()).unwrap_err();
    assert_eq!((error.to_string(), lazy.get()), ("down".to_owned(), None));
    is_down.store(0, Ordering::SeqCst);
    // In the retry pause the error is returned without a build; `no_cache` builds all the same.
    assert!(matches!(run(lazy.try_get_or_refresh_async()), Err(RefreshError::Build(_))));
    assert_eq!(*run(lazy.request().no_cache().try_get_async()).unwrap(), 7);
    assert_eq!(lazy.cell().stats().builds, 2);
    // Beside a value, an error costs no caller that value.
    is_down.store(1, Ordering::SeqCst);
    clock.advance(TTL + TICK);
    assert_eq!(*run(lazy.try_get_or_refresh_async()).unwrap(), 7);
    let fresh = run(lazy.request().max_stale(Duration::ZERO).try_get_async());
    assert!(matches!(fresh, Err(RefreshError::Build(_))));
}

#[test]
fn a_request_hands_the_cells_own_build_to_a_spawner() {
    let door = Door::default();
    let build = {
        let door = door.clone();
        move || {
            let door = door.clone();
            async move {
                door.pass().await;
                7
            }
        }
    };
    let lazy = Arc::new(LazyDogpile::<u32, _>::new(Duration::from_secs(3600), build));
    let mut tasks = Vec::new();
    let request = lazy.request_owned().wait_at_most(Duration::ZERO);
    let spawn = |task: Task| tasks.push(Hand::new(task));
    let mut caller = Hand::new(request.clone().spawn_with(spawn).get_async());
    caller.pending();
    drop(caller);
    let mut task = tasks.pop().expect("the caller is elected");
    task.pending();
    door.open();
    task.ready();
    assert_eq!((*run(request.get_async()), lazy.cell().stats().builds), (7, 1));
}
