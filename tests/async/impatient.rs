//! G13: a first build that is slower than any of its callers is patient. Without a spawner each caller that gives up would
//! take its build with it, and none would ever end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dogpile::{ManualClock, RefreshError, Task};

use crate::executors::{Executor, Spawner};
use crate::support::{Cell, Door, Hand, cell, until};

const CLIENTS: usize = if cfg!(miri) { 20 } else { 500 };
const PATIENCE: Duration = Duration::from_millis(50);
/// How often all clients ask in vain.
const ROUNDS: usize = 4;

/// A source that takes longer than any client waits.
#[derive(Clone, Default)]
struct Slow {
    begun: Arc<AtomicUsize>,
    door: Door,
}

impl Slow {
    async fn build(self) -> Result<u32, &'static str> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.door.pass().await;
        Ok(7)
    }
}

/// One question of one client.
fn ask<S>(
    cell: &Cell<u32>,
    slow: &Slow,
    spawn: impl FnOnce(Task) -> S + Send,
) -> impl Future<Output = Result<Arc<u32>, RefreshError>> + Send {
    let slow = slow.clone();
    cell.request_owned().wait_at_most(PATIENCE).spawn_with(spawn).try_get_async(move || slow.build())
}

#[test]
fn five_hundred_impatient_clients_are_answered_by_one_build() {
    let (cell, clock) = cell();
    let slow = Slow::default();
    let tasks = std::sync::Mutex::new(Vec::new());
    let ask = || ask(&cell, &slow, |task| tasks.lock().unwrap().push(task));
    for _ in 0..ROUNDS {
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| Hand::new(ask())).collect();
        for client in &mut clients {
            client.pending();
        }
        clock.advance(PATIENCE);
        for client in &mut clients {
            assert!(matches!(client.ready(), Err(RefreshError::WaitTimeout)));
            assert!(!client.is_listed());
        }
    }
    let mut build = Hand::new(tasks.lock().unwrap().pop().expect("the first client is elected"));
    build.pending();
    // Some are still waiting when the build ends, others come later.
    let mut waiting: Vec<_> = (0..CLIENTS / 2).map(|_| Hand::new(ask())).collect();
    for client in &mut waiting {
        client.pending();
    }
    slow.door.open();
    build.ready();
    for mut client in waiting {
        assert!(client.wakes() > 0);
        assert_eq!(*client.ready().unwrap(), 7);
    }
    for _ in 0..CLIENTS / 2 {
        assert_eq!(*Hand::new(ask()).ready().unwrap(), 7);
    }
    assert!(tasks.lock().unwrap().is_empty());
    assert_eq!((slow.begun.load(Ordering::SeqCst), cell.stats().builds, cell.stats().abandoned), (1, 1, 0));
}

/// The same where clients and build are tasks of an executor, and each client asks until it is answered.
async fn on_an_executor(spawner: Spawner) {
    let (cell, clock) = cell();
    let slow = Slow::default();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (cell, slow, builds) = (Arc::clone(&cell), slow.clone(), spawner.clone());
            spawner.spawn(async move {
                let mut timeouts = 0;
                loop {
                    match ask(&cell, &slow, |task| builds.spawn(task)).await {
                        Ok(value) => return (*value, timeouts),
                        Err(RefreshError::WaitTimeout) => timeouts += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    let all = u64::try_from(CLIENTS).unwrap();
    for round in 1..=ROUNDS as u64 {
        until("all clients wait", || cell.stats().waits >= round * all).await;
        advance(&clock, &cell, round * all).await;
    }
    slow.door.open();
    let mut in_vain = 0;
    for client in clients {
        let (value, timeouts) = client.join().await;
        assert_eq!(value, 7);
        in_vain += timeouts;
    }
    assert!(in_vain >= ROUNDS * CLIENTS);
    assert_eq!((slow.begun.load(Ordering::SeqCst), cell.stats().builds), (1, 1));
}

/// Moves the clock on until the time of `all` waits is over.
async fn advance(clock: &ManualClock, cell: &Cell<u32>, all: u64) {
    until("all have given up", || {
        clock.advance(PATIENCE);
        cell.stats().wait_timeouts >= all
    })
    .await;
}

#[test]
fn on_tokio_with_threads() {
    Executor::Threads.run(on_an_executor);
}

#[test]
fn on_smol() {
    Executor::Smol.run(on_an_executor);
}
