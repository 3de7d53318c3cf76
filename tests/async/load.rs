//! Many tasks and threads that are cancelled, fail and panic at random: no task is left asleep, no two build at a time,
//! nothing is kept.
//!
//! `DOGPILE_SEED` repeats the draws of a run, though not what the scheduler does. The seed is printed, which the test
//! harness shows if the test fails; a hang is ended by `guarded`.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use dogpile::{
    DogpileCell, Drain, Lookup, ManualClock, Policy, RefreshError, Refreshed, SyncReaderCell, Waited,
};
use futures_lite::FutureExt as _;
use futures_lite::future::yield_now;

use crate::executors::{Executor, Spawner};
use crate::support::{Room, TICK, TTL, is_planned, panic_as_planned, plain, until};

fn seed() -> u64 {
    let seed = match std::env::var("DOGPILE_SEED") {
        Ok(text) => text.parse().expect("DOGPILE_SEED: a number"),
        Err(_) => RandomState::new().hash_one(0),
    };
    println!("DOGPILE_SEED={seed}");
    seed
}

/// `SplitMix64`.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A value that is counted as long as it lives.
struct Token(Arc<AtomicUsize>);

impl Token {
    fn new(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(alive))
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is built, and what is counted on the way.
#[derive(Clone, Default)]
struct Stage {
    alive: Arc<AtomicUsize>,
    room: Room,
    builds: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
    completed: Arc<AtomicUsize>,
}

impl Stage {
    /// A build that takes a few turns, and sometimes fails or panics.
    async fn build(&self, mut random: Random) -> Result<Token, &'static str> {
        let _inside = self.room.enter();
        self.builds.fetch_add(1, Ordering::SeqCst);
        for _ in 0..random.below(4) {
            yield_now().await;
            // Where each task has a thread of its own, this is what lets others come.
            std::thread::yield_now();
        }
        if random.one_in(8) {
            panic_as_planned();
        }
        if random.one_in(6) { Err("as planned") } else { Ok(Token::new(&self.alive)) }
    }

    async fn build_value(&self, random: Random) -> Token {
        self.build(random).await.unwrap_or_else(|_| panic_as_planned())
    }

    /// Awaits `future`, or polls it a few times and drops it. Panics that are planned end here.
    async fn perhaps<T>(&self, random: &mut Random, future: impl Future<Output = T>) -> Option<T> {
        let mut left = if random.one_in(2) { None } else { Some(random.below(4)) };
        let mut future = pin!(AssertUnwindSafe(future).catch_unwind());
        let outcome = std::future::poll_fn(|cx| {
            if let Some(left) = &mut left {
                if *left == 0 {
                    return Poll::Ready(None);
                }
                *left -= 1;
            }
            let polled = future.as_mut().poll(cx).map(Some);
            if left.is_some() && polled.is_pending() {
                // It is polled for other reasons than a wake-up of the future.
                cx.waker().wake_by_ref();
            }
            polled
        })
        .await;
        match outcome {
            None => {
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                None
            }
            Some(Ok(output)) => {
                self.completed.fetch_add(1, Ordering::SeqCst);
                Some(output)
            }
            Some(Err(panic)) if is_planned(&*panic) => None,
            Some(Err(panic)) => resume_unwind(panic),
        }
    }

    /// The same for a thread, which cannot be cancelled.
    fn unless_it_panics<T>(&self, f: impl FnOnce() -> T) {
        match catch_unwind(AssertUnwindSafe(f)) {
            Ok(_) => {
                self.completed.fetch_add(1, Ordering::SeqCst);
            }
            Err(panic) if is_planned(&*panic) => {}
            Err(panic) => resume_unwind(panic),
        }
    }

    #[track_caller]
    fn close(&self) {
        let (cancelled, completed) =
            (self.cancelled.load(Ordering::SeqCst), self.completed.load(Ordering::SeqCst));
        let builds = self.builds.load(Ordering::SeqCst);
        println!("{builds} builds, {completed} reads completed, {cancelled} cancelled");
        assert!(builds > 100 && completed > 500 && cancelled > 500, "it was not much of a load");
        assert!(self.room.is_empty());
        assert_eq!(self.alive.load(Ordering::SeqCst), 0, "a value is alive that is in no cell");
    }
}

const TASKS: u64 = 24;
const ROUNDS: u64 = 600;
const THREADS: u64 = 2;

type Cell = Arc<DogpileCell<Token, ManualClock>>;

/// One read of any kind, and now and then something that makes the next one wait. `displaces`: also what takes the lease
/// from a running build, so that the next one runs beside it.
async fn step(cell: &Cell, clock: &ManualClock, stage: &Stage, displaces: bool, random: &mut Random) {
    let draws = Random(random.next());
    match random.below(10) {
        0 | 1 => drop(stage.perhaps(random, cell.get_or_refresh_async(|| stage.build_value(draws))).await),
        2 | 3 => drop(stage.perhaps(random, cell.try_get_or_refresh_async(|| stage.build(draws))).await),
        4 => drop(
            stage
                .perhaps(
                    random,
                    cell.request().max_stale(Duration::ZERO).get_async(|| stage.build_value(draws)),
                )
                .await,
        ),
        5 => match cell.lookup_owned() {
            Lookup::Pending(pending) => {
                if let Some(waited) = stage.perhaps(random, pending).await {
                    assert!(!matches!(waited, Waited::Reentrant));
                }
            }
            Lookup::Elected(lease) => {
                // Held for a while, and given back or used.
                let built = stage.perhaps(random, stage.build_value(draws)).await;
                if let Some(token) = built {
                    lease.publish(token);
                }
            }
            _ => {}
        },
        6 => clock.advance(TTL + TICK),
        7 => {
            let build = |_| async { stage.build(draws).await.map(Refreshed::New) };
            let request = cell.request().no_cache().or_stale();
            drop(stage.perhaps(random, request.try_get_with_async(build)).await);
        }
        8 => {
            // The clock may stand still from now on, if this is the last task: it waits for nothing.
            let request = cell.request().wait_at_most(Duration::ZERO);
            let read = stage.perhaps(random, request.try_get_async(|| stage.build(draws))).await;
            assert!(!matches!(read, Some(Err(RefreshError::Reentrant | RefreshError::Abandoned))));
        }
        _ if displaces && random.one_in(2) => drop(cell.clear()),
        _ if displaces && random.one_in(4) => drop(cell.revoke()),
        _ => cell.invalidate(),
    }
    if random.one_in(3) {
        yield_now().await;
    }
}

async fn cancelled_at_random(spawner: Spawner) {
    let mut seeds = Random(seed());
    let clock = ManualClock::new();
    // Expired at once, so that some wait.
    let policy = plain(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO));
    let cell: Cell = Arc::new(DogpileCell::with_clock(policy, clock.clone()));
    let stage = Stage::default();
    // So that some wait, however they are scheduled.
    let Lookup::Elected(first) = cell.lookup_owned() else { panic!("the first caller is elected") };
    let tasks = (0..TASKS).map(|_| {
        let (cell, clock, stage) = (Arc::clone(&cell), clock.clone(), stage.clone());
        let mut random = Random(seeds.next());
        spawner.spawn(async move {
            for _ in 0..ROUNDS {
                step(&cell, &clock, &stage, false, &mut random).await;
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let threads = (0..THREADS).map(|_| {
        let (cell, clock, stage) = (Arc::clone(&cell), clock.clone(), stage.clone());
        let mut random = Random(seeds.next());
        std::thread::spawn(move || {
            for _ in 0..ROUNDS {
                let draws = Random(random.next());
                let build = || futures_lite::future::block_on(stage.build_value(draws.clone()));
                if random.one_in(4) {
                    clock.advance(TTL + TICK);
                } else {
                    stage.unless_it_panics(|| cell.get_or_refresh(build));
                }
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    until("some wait", || cell.stats().waits >= TASKS).await;
    drop(first);
    for task in tasks {
        task.join().await;
    }
    for thread in threads {
        thread.join().unwrap_or_else(|panic| resume_unwind(panic));
    }
    let stats = cell.stats();
    assert!(!cell.is_refreshing() && stats.waits > 0 && stats.abandoned > 0, "{stats:?}");
    assert_eq!(stats.superseded, 0);
    assert_eq!(Arc::strong_count(&cell), 1, "a task that has ended keeps the cell");
    if let Some(value) = cell.clear() {
        assert_eq!(Arc::strong_count(&value), 1, "the value is kept");
    }
    drop(cell);
    stage.close();
}

#[test]
fn on_tokio_with_threads() {
    Executor::Threads.run(cancelled_at_random);
}

#[test]
fn on_tokio_on_one_thread() {
    Executor::OneThread.run(cancelled_at_random);
}

#[test]
fn on_smol() {
    Executor::Smol.run(cancelled_at_random);
}

#[test]
fn on_none() {
    Executor::Bare.run(cancelled_at_random);
}

/// The same with leases that time out or are taken away, where late builds go on beside the one that counts.
async fn superseded_at_random(spawner: Spawner) {
    let mut seeds = Random(seed());
    let clock = ManualClock::new();
    let policy = plain(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO)).lease_timeout(TTL);
    let cell: Cell = Arc::new(DogpileCell::with_clock(policy, clock.clone()));
    // Not one at a time: a room for each build.
    let stage = Stage::default();
    let tasks = (0..TASKS).map(|_| {
        let (cell, clock) = (Arc::clone(&cell), clock.clone());
        let stage = Stage { room: Room::default(), ..stage.clone() };
        let mut random = Random(seeds.next());
        spawner.spawn(async move {
            for _ in 0..ROUNDS {
                step(&cell, &clock, &stage, true, &mut random).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.join().await;
    }
    let stats = cell.stats();
    assert!(!cell.is_refreshing() && stats.superseded > 0, "{stats:?}");
    assert_eq!(Arc::strong_count(&cell), 1, "a task that has ended keeps the cell");
    drop(cell);
    stage.close();
}

#[test]
fn with_leases_that_time_out() {
    Executor::Threads.run(superseded_at_random);
}

/// Drains that are cancelled: each value is finalised once, in order, without a reader.
async fn drains_cancelled_at_random(spawner: Spawner) {
    let mut seeds = Random(seed());
    let clock = ManualClock::new();
    let stage = Stage::default();
    let undertaken = Arc::new(AtomicUsize::new(0));
    let finalizing = Room::default();
    let finalizer = {
        let (undertaken, finalizing) = (Arc::clone(&undertaken), finalizing.clone());
        move |token: Token| {
            let _inside = finalizing.enter();
            undertaken.fetch_add(1, Ordering::SeqCst);
            drop(token);
        }
    };
    let policy = plain(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO));
    let cell = Arc::new(SyncReaderCell::with_clock(policy, clock.clone(), Drain::Wait(TTL), finalizer));
    let tasks = (0..TASKS).map(|_| {
        let (cell, clock, stage) = (Arc::clone(&cell), clock.clone(), stage.clone());
        let mut random = Random(seeds.next());
        spawner.spawn(async move {
            for _ in 0..ROUNDS {
                let draws = Random(random.next());
                match random.below(8) {
                    0..=2 => {
                        let read = cell.get_or_refresh_async(|| stage.build_value(draws));
                        let reader = stage.perhaps(&mut random, read).await;
                        // Held for a while, by some.
                        if random.one_in(4) {
                            yield_now().await;
                        }
                        drop(reader);
                    }
                    3 | 4 => {
                        let read = cell.try_get_or_refresh_async(|| stage.build(draws));
                        let reader = stage.perhaps(&mut random, read).await;
                        assert!(!matches!(reader, Some(Err(RefreshError::WaitTimeout))));
                    }
                    5 => {
                        let read =
                            cell.request().max_stale(Duration::ZERO).get_async(|| stage.build_value(draws));
                        drop(stage.perhaps(&mut random, read).await);
                    }
                    6 => drop(stage.perhaps(&mut random, cell.synchronize_async()).await),
                    _ if random.one_in(2) => clock.advance(TTL + TICK),
                    _ => cell.invalidate(),
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.join().await;
    }
    cell.synchronize_async().await;
    assert!(!cell.is_refreshing());
    assert_eq!((cell.retired(), cell.readers()), (0, 0));
    // All but the one that is there.
    let published = usize::try_from(cell.stats().published).unwrap();
    assert_eq!(undertaken.load(Ordering::SeqCst), published - 1);
    drop(cell);
    stage.close();
}

#[test]
fn drains_on_tokio_with_threads() {
    Executor::Threads.run(drains_cancelled_at_random);
}

#[test]
fn drains_on_smol() {
    Executor::Smol.run(drains_cancelled_at_random);
}
