//! Cells in a `static`, with `once_cell` and without.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Policy, TickClock};
use once_cell::sync::Lazy;

const MINUTE: Duration = Duration::from_secs(60);
const THREADS: usize = if cfg!(miri) { 3 } else { 16 };

static PLAIN: DogpileCell<String> = DogpileCell::new(MINUTE);
static WITH_POLICY: DogpileCell<u32> = DogpileCell::with_policy(
    Policy::ttl(MINUTE)
        .stale_while_refresh(MINUTE)
        .stale_if_error(MINUTE)
        .retry_backoff(Duration::from_secs(1), MINUTE)
        .jitter(10)
        .lease_timeout(MINUTE),
);
static TICKING: DogpileCell<u32, TickClock> = DogpileCell::with_clock(Policy::ttl(MINUTE), TickClock);
#[allow(clippy::non_std_lazy_statics)] // that it works with once_cell is what is tested
static LAZY: Lazy<DogpileCell<u32>> = Lazy::new(|| DogpileCell::with_policy(Policy::ttl(MINUTE).jitter(5)));

/// Reads from many threads at once and returns how often it was built.
fn hammer<T: Send + Sync>(read: impl Fn(&AtomicU32) -> T + Sync) -> u32 {
    let builds = AtomicU32::new(0);
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait();
                read(&builds)
            });
        }
    });
    builds.into_inner()
}

#[test]
fn a_static_cell_is_built_once_by_many_threads() {
    let built = hammer(|builds| {
        let value = PLAIN.get_or_refresh(|| {
            builds.fetch_add(1, Ordering::Relaxed);
            String::from("built")
        });
        assert_eq!(*value, "built");
    });
    assert_eq!(built, 1);
}

#[test]
fn a_static_cell_may_have_a_policy_and_a_clock() {
    assert_eq!(hammer(|builds| *WITH_POLICY.get_or_refresh(|| builds.fetch_add(1, Ordering::Relaxed))), 1);
    assert_eq!(hammer(|builds| *TICKING.get_or_refresh(|| builds.fetch_add(1, Ordering::Relaxed))), 1);
}

#[test]
fn a_lazily_made_cell_is_built_once_by_many_threads() {
    assert_eq!(hammer(|builds| *LAZY.get_or_refresh(|| builds.fetch_add(1, Ordering::Relaxed))), 1);
}

#[test]
fn a_lease_of_a_static_cell_needs_no_arc() {
    static CELL: DogpileCell<u32> = DogpileCell::new(MINUTE);
    let dogpile::Lookup::Elected(lease) = CELL.lookup() else { panic!("the first caller is elected") };
    thread::spawn(move || lease.publish(1)).join().unwrap();
    assert_eq!(CELL.get().as_deref(), Some(&1));
}
