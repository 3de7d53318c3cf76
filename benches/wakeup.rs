//! How long it takes until the last of N waiters has what was published.
//!
//! ```sh
//! cargo bench --bench wakeup
//! ```
//!
//! N threads wait for the first value of a cell. A sample begins when it is published and ends when all of them have it;
//! beside it the same with a bare `Condvar`, each waiter of which takes the value under its mutex.
//!
//! Why divan: see `reads.rs`.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use divan::Bencher;
use dogpile::{DogpileCell, Lookup};
use parking_lot::{Condvar, Mutex};

use support::{HOUR, leak};

const WAITERS: [usize; 4] = [1, 10, 100, 1000];

/// Waiting for the first time costs a thread its stack pages; more is not needed.
const STACK: usize = 64 << 10;

fn main() {
    divan::main();
}

/// Counts the waiters that have woken; the last one unparks the thread that measures.
struct Latch {
    missing: AtomicUsize,
    observer: Thread,
}

impl Latch {
    fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { missing: AtomicUsize::new(count), observer: thread::current() })
    }

    fn arrive(&self) {
        // AcqRel: what each has seen happens before the end of the sample.
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.observer.unpark();
        }
    }

    fn wait(&self) {
        // Acquire: pairs with `arrive`.
        while self.missing.load(Ordering::Acquire) > 0 {
            thread::park();
        }
    }
}

/// Starts threads that `wait` for something, and gives them time to fall asleep: a thread that is still awake is not woken.
fn waiters(
    count: usize,
    waiting: impl Fn() -> usize,
    wait: impl Fn() + Send + Sync + 'static,
) -> (Arc<Latch>, Vec<JoinHandle<()>>) {
    let latch = Latch::new(count);
    let wait = Arc::new(wait);
    let start = |_| {
        let (latch, wait) = (Arc::clone(&latch), Arc::clone(&wait));
        let waiter = move || {
            wait();
            latch.arrive();
        };
        thread::Builder::new().stack_size(STACK).spawn(waiter).expect("the system has threads enough")
    };
    let threads = (0..count).map(start).collect();
    while waiting() < count {
        thread::yield_now();
    }
    thread::sleep(Duration::from_millis(20));
    (latch, threads)
}

/// What is dropped after the sample: the threads end first.
struct Ended(Vec<JoinHandle<()>>);

impl Drop for Ended {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            thread.join().expect("a waiter does not panic");
        }
    }
}

#[divan::bench(args = WAITERS, sample_count = 20, sample_size = 1)]
fn publish(bencher: Bencher<'_, '_>, count: usize) {
    bencher
        .with_inputs(|| {
            let cell: &'static DogpileCell<u64> = leak(DogpileCell::new(HOUR));
            let Lookup::Elected(lease) = cell.lookup() else { unreachable!("the first caller is elected") };
            let waiting = || usize::try_from(cell.stats().waits).expect("as many as threads");
            let (latch, threads) = waiters(count, waiting, || {
                divan::black_box(cell.get_or_refresh(|| unreachable!("another thread builds")));
            });
            (lease, latch, threads)
        })
        .bench_values(|(lease, latch, threads)| {
            lease.publish(1);
            latch.wait();
            Ended(threads)
        });
}

#[derive(Default)]
struct Shared {
    state: Mutex<(usize, Option<Arc<u64>>)>,
    published: Condvar,
}

#[divan::bench(args = WAITERS, sample_count = 20, sample_size = 1)]
fn floor_condvar_notify_all(bencher: Bencher<'_, '_>, count: usize) {
    bencher
        .with_inputs(|| {
            let shared: &'static Shared = leak(Shared::default());
            let (latch, threads) = waiters(
                count,
                || shared.state.lock().0,
                || {
                    let mut state = shared.state.lock();
                    state.0 += 1;
                    shared.published.wait_while(&mut state, |(_, value)| value.is_none());
                    divan::black_box(state.1.clone());
                },
            );
            (shared, latch, threads)
        })
        .bench_values(|(shared, latch, threads)| {
            shared.state.lock().1 = Some(Arc::new(1));
            shared.published.notify_all();
            latch.wait();
            Ended(threads)
        });
}
