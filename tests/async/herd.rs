//! Ten thousand tasks on a cold cell: one build.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::executors::{Executor, Spawner};
use crate::support::{Door, cell, until};

const TASKS: u64 = 10_000;

async fn ten_thousand(spawner: Spawner) {
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
    let mut value = None;
    for task in tasks {
        let built = task.join().await;
        assert!(Arc::ptr_eq(value.get_or_insert_with(|| Arc::clone(&built)), &built));
    }
    assert_eq!((builds.load(Ordering::SeqCst), cell.stats().builds), (1, 1));
    // The cell's and this one: no task has kept another.
    assert_eq!(value.as_ref().map(Arc::strong_count), Some(2));
}

#[test]
fn on_tokio_with_threads() {
    Executor::Threads.run(ten_thousand);
}

#[test]
fn on_smol() {
    Executor::Smol.run(ten_thousand);
}
