//! What publishing, failing and invalidating cost.
//!
//! ```sh
//! cargo bench --bench writes
//! ```
//!
//! Why divan: see `reads.rs`. Waking waiters has a bench of its own, `wakeup.rs`: each thread that ever read
//! a cell makes all later publications slower, and that bench starts thousands.

mod support;

use std::sync::{Arc, Barrier};
use std::time::Duration;

use divan::Bencher;
use dogpile::{DogpileCell, Lookup, Policy, SystemClock};

use support::{HOUR, Leaping, State, THREADS, leak};

fn main() {
    // A swap visits each thread that ever used arc-swap. All of them from the beginning, so that no line is measured
    // among fewer than the next.
    let threads = THREADS.into_iter().max().unwrap_or(1);
    let all_here = Barrier::new(threads);
    let slot = arc_swap::ArcSwapOption::from_pointee(1_u64);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                drop(slot.load());
                all_here.wait();
            });
        }
    });
    divan::main();
}

/// The bottom of a publication: a new `Arc`, the swap, the old value dropped.
#[divan::bench(threads = THREADS, sample_size = 1000)]
fn floor_arc_new_and_swap(bencher: Bencher<'_, '_>) {
    let slot = leak(arc_swap::ArcSwapOption::from_pointee(1_u64));
    bencher.bench(|| slot.swap(Some(Arc::new(1))));
}

#[divan::bench(threads = THREADS, sample_size = 1000)]
fn set(bencher: Bencher<'_, '_>) {
    let cell = State::Fresh.cell(SystemClock);
    bencher.bench(|| cell.set(1));
}

#[divan::bench(threads = THREADS, sample_size = 1000)]
fn set_no_deadline(bencher: Bencher<'_, '_>) {
    let cell = State::NoDeadline.cell(SystemClock);
    bencher.bench(|| cell.set(1));
}

#[divan::bench(threads = THREADS, sample_size = 1000)]
fn invalidate(bencher: Bencher<'_, '_>) {
    let cell = State::Fresh.cell(SystemClock);
    bencher.bench(|| cell.invalidate());
}

#[divan::bench(threads = THREADS, sample_size = 1000)]
fn set_sync_reader(bencher: Bencher<'_, '_>) {
    let cell = State::Fresh.sync_cell();
    bencher.bench(|| cell.set(1));
}

/// A cell whose clock is moved past the deadline before each use. By one thread: of several, one would be elected
/// and the others served.
fn overdue() -> (&'static Leaping, &'static DogpileCell<u64, &'static Leaping>) {
    let clock = leak(Leaping::default());
    (clock, State::Fresh.cell(clock))
}

#[divan::bench(sample_size = 1000)]
fn lookup_and_publish(bencher: Bencher<'_, '_>) {
    let (clock, cell) = overdue();
    bencher.bench(|| {
        clock.leap();
        let Lookup::Elected(lease) = cell.lookup() else { unreachable!("overdue") };
        lease.publish(1)
    });
}

#[divan::bench(sample_size = 1000)]
fn lookup_and_renew(bencher: Bencher<'_, '_>) {
    let (clock, cell) = overdue();
    bencher.bench(|| {
        clock.leap();
        let Lookup::Elected(lease) = cell.lookup() else { unreachable!("overdue") };
        lease.renew().is_ok()
    });
}

#[divan::bench(sample_size = 1000)]
fn lookup_and_fail(bencher: Bencher<'_, '_>) {
    // Without retry pauses, so that each lookup is elected.
    let policy = Policy::ttl(HOUR).retry_backoff(Duration::ZERO, Duration::ZERO);
    let cell = leak(DogpileCell::with_policy(policy));
    cell.set(1_u64);
    cell.invalidate();
    bencher.bench(|| {
        let Lookup::Elected(lease) = cell.lookup() else { unreachable!("stale") };
        lease.fail(std::fmt::Error)
    });
}

#[divan::bench(sample_size = 1000)]
fn get_or_refresh_that_builds(bencher: Bencher<'_, '_>) {
    let (clock, cell) = overdue();
    bencher.bench(|| {
        clock.leap();
        cell.get_or_refresh(|| 1)
    });
}
