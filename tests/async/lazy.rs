//! `LazyDogpile::get_async`, in a `static`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dogpile::LazyDogpile;

use crate::executors::{Executor, Spawner};
use crate::support::{Hand, panic_message, run};

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
    let tasks: Vec<_> = (0..100).map(|_| spawner.spawn(NUMBER.get_async())).collect();
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
    assert_eq!(NUMBER.cell().get().as_deref(), Some(&1));
}

static NESTED: LazyDogpile<u32, fn() -> Boxed<u32>> =
    LazyDogpile::new(Duration::from_secs(3600), || Box::pin(asks_itself()));

static LINE: AtomicU32 = AtomicU32::new(0);

async fn asks_itself() -> u32 {
    LINE.store(line!() + 1, Ordering::SeqCst);
    let own = NESTED.get_async();
    *own.await
}

#[test]
fn a_build_that_asks_itself_is_told_where() {
    let message = panic_message(|| run(NESTED.get_async()));
    assert!(message.contains(&format!("at {}:{}:", file!(), LINE.load(Ordering::SeqCst))), "{message}");
}

/// The build is the cell's own, so it outlives the future that runs it.
#[test]
fn a_read_that_is_dropped_leaves_the_build_to_the_next() {
    let lazy = LazyDogpile::<u32, _>::new(Duration::from_secs(3600), || async {
        futures_lite::future::yield_now().await;
        7
    });
    let mut first = Hand::new(lazy.get_async());
    first.pending();
    drop(first);
    let value = run(lazy.get_async());
    assert_eq!((*value, lazy.cell().stats().builds), (7, 2));
    assert!(Arc::ptr_eq(&value, &lazy.cell().get().unwrap()));
}
