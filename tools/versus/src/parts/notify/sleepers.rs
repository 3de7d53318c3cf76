//! Threads and tasks that sleep until a value is published.
//!
//! The sleepers of one row at a time: a publication looks through a list that has an entry for each thread that has read any
//! cell, and an entry stays when its thread ends.

use super::super::float;
use crate::machine::cores;
use anyhow::{Context as _, anyhow, ensure};
use dogpile::{DogpileCell, Policy};
use futures_lite::future::block_on;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

const STACK: usize = 128 << 10;
/// By then those that have begun to wait are asleep.
const SETTLE: Duration = Duration::from_millis(2);
/// The value that ends them.
const END: u64 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Threads,
    Tasks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    One,
    Hundred,
}

impl Count {
    const fn number(self) -> usize {
        match self {
            Self::One => 1,
            Self::Hundred => 100,
        }
    }
}

/// What the sleepers of one side share.
struct Board {
    start: Instant,
    /// How often one of them has begun to wait.
    waits: AtomicUsize,
    /// Those that have not got the latest value.
    left: AtomicUsize,
    /// When the latest of them got it, in nanoseconds since the start.
    last: AtomicU64,
    main: Thread,
}

impl Board {
    fn nanos(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A sleeper has the value.
    fn has_it(&self) {
        self.last.fetch_max(self.nanos(), Ordering::Relaxed);
        // AcqRel: the last one has seen what all of them have written, and shows it to the publisher.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.main.unpark();
        }
    }

    /// Counts, when it is first pending.
    async fn counted<F: Future>(&self, wait: F) -> F::Output {
        let (mut wait, mut has_waited) = (pin!(wait), false);
        poll_fn(|cx| {
            let polled = wait.as_mut().poll(cx);
            if polled.is_pending() && !std::mem::replace(&mut has_waited, true) {
                // Relaxed: it is only counted.
                self.waits.fetch_add(1, Ordering::Relaxed);
            }
            polled
        })
        .await
    }
}

/// What one publication took, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waking {
    pub(super) publish: f64,
    pub(super) until_all: f64,
}

/// The sleepers of one side.
struct Team {
    count: usize,
    board: Arc<Board>,
    publish: Box<dyn Fn(u64)>,
    threads: Vec<thread::JoinHandle<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// How often each has been woken.
    rounds: std::cell::Cell<usize>,
}

impl Team {
    fn new(count: Count, publish: impl Fn(u64) + 'static) -> Self {
        let board = Board {
            start: Instant::now(),
            waits: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            main: thread::current(),
        };
        Self {
            count: count.number(),
            board: Arc::new(board),
            publish: Box::new(publish),
            threads: Vec::new(),
            tasks: Vec::new(),
            rounds: std::cell::Cell::new(0),
        }
    }

    /// Subscriptions of this crate.
    fn own(kind: Kind, count: Count, runtime: &Runtime) -> anyhow::Result<Self> {
        let cell = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
        let mut team = Self::new(count, {
            let cell = Arc::clone(&cell);
            move |number| drop(cell.set(number))
        });
        for _ in 0..team.count {
            let (board, mut subscription) = (Arc::clone(&team.board), cell.subscribe_owned());
            match kind {
                Kind::Tasks => team.tasks.push(runtime.spawn(async move {
                    while *board.counted(subscription.changed()).await != END {
                        board.has_it();
                    }
                })),
                Kind::Threads => team.threads.push(spawn(move || {
                    loop {
                        // Counted before it is, as there is no hook into a blocking call; it sleeps by the time it is settled.
                        board.waits.fetch_add(1, Ordering::Relaxed);
                        if *subscription.wait_changed() == END {
                            break;
                        }
                        board.has_it();
                    }
                })?),
            }
        }
        Ok(team)
    }

    /// Receivers of tokio's `watch`.
    fn other(kind: Kind, count: Count, runtime: &Runtime) -> anyhow::Result<Self> {
        let sender = Arc::new(watch::Sender::new(u64::MAX));
        let mut team = Self::new(count, {
            let sender = Arc::clone(&sender);
            move |number| {
                sender.send_replace(number);
            }
        });
        for _ in 0..team.count {
            let (board, mut receiver) = (Arc::clone(&team.board), sender.subscribe());
            let follow = async move {
                loop {
                    let changed = board.counted(receiver.changed()).await;
                    if changed.is_err() || *receiver.borrow_and_update() == END {
                        break;
                    }
                    board.has_it();
                }
            };
            match kind {
                Kind::Tasks => team.tasks.push(runtime.spawn(follow)),
                Kind::Threads => team.threads.push(spawn(move || block_on(follow))?),
            }
        }
        Ok(team)
    }

    /// When all of them are asleep.
    fn settle(&self) -> anyhow::Result<()> {
        let all = (self.rounds.get() + 1) * self.count;
        let patience = Instant::now() + Duration::from_mins(1);
        // Relaxed: it is only a count.
        while self.board.waits.load(Ordering::Relaxed) < all {
            ensure!(Instant::now() < patience, "not all of {} sleepers have come to wait", self.count);
            thread::sleep(Duration::from_micros(100));
        }
        thread::sleep(SETTLE);
        Ok(())
    }

    fn wake(&self) -> anyhow::Result<Waking> {
        self.settle()?;
        let board = &self.board;
        board.left.store(self.count, Ordering::Relaxed);
        let number = u64::try_from(self.rounds.get())? + 1;
        let before = board.nanos();
        (self.publish)(number);
        let published = board.nanos();
        // Acquire: pairs with the AcqRel in `has_it`.
        while board.left.load(Ordering::Acquire) > 0 {
            thread::park();
        }
        let last = board.last.load(Ordering::Relaxed);
        self.rounds.set(self.rounds.get() + 1);
        Ok(Waking { publish: float(published - before), until_all: float(last - before) })
    }

    fn end(self, runtime: &Runtime) -> anyhow::Result<()> {
        (self.publish)(END);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a sleeper has panicked"))?;
        }
        for task in self.tasks {
            runtime.block_on(task).context("a sleeper has panicked")?;
        }
        Ok(())
    }
}

fn spawn(run: impl FnOnce() + Send + 'static) -> anyhow::Result<thread::JoinHandle<()>> {
    thread::Builder::new().stack_size(STACK).spawn(run).context("cannot start so many threads")
}

/// How long publications take, of this crate and of `watch`, with so many sleepers on each side. `done` is called after each
/// round.
pub(super) fn measure(
    kind: Kind,
    count: Count,
    rounds: usize,
    done: impl Fn(),
) -> anyhow::Result<Vec<[Waking; 2]>> {
    let runtime = Builder::new_multi_thread().worker_threads(cores()).build()?;
    let teams = [Team::own(kind, count, &runtime)?, Team::other(kind, count, &runtime)?];
    let mut all = Vec::new();
    for round in 0..rounds {
        let mut wakings = [Waking { publish: 0.0, until_all: 0.0 }; 2];
        for side in super::order(round) {
            wakings[side] = teams[side].wake()?;
        }
        all.push(wakings);
        done();
    }
    for team in teams {
        team.end(&runtime)?;
    }
    Ok(all)
}
