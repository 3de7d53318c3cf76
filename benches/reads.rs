//! What reads cost, with 1, 2, 4 and 8 threads.
//!
//! ```sh
//! cargo bench --bench reads
//! ```
//!
//! A line is the time of 1000 reads on one thread: its microseconds are the nanoseconds of a read. A sample is a
//! hundred of these in a row, so that it takes much longer than the threads need to get going.
//!
//! Measured with divan, because it starts the threads itself, lets them begin each sample together, and reports all
//! of them; criterion has no such thing. Instructions, which do not depend on the machine's mood, are counted
//! elsewhere: `tools/instructions`. Comparisons with other crates: `tools/versus`.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use divan::{Bencher, black_box};
use dogpile::{LazyDogpile, SystemClock, TickClock};

use support::{FRESH, HOUR, STATES, State, THREADS, leak};

/// Reads in one iteration: more than one, so that what a per-thread handle costs at its first read does not show.
const BATCH: u32 = 1000;

fn main() {
    divan::main();
}

fn batch<R>(mut read: impl FnMut() -> R) {
    for _ in 0..BATCH {
        black_box(read());
    }
}

fn shared<R>(bencher: Bencher<'_, '_>, read: impl Fn() -> R + Sync) {
    bencher.bench(|| batch(&read));
}

/// With a handle for each thread.
fn per_thread<H, R>(
    bencher: Bencher<'_, '_>,
    handle: impl Fn() -> H + Sync,
    read: impl Fn(&mut H) -> R + Sync,
) {
    let read = &read;
    bencher
        .with_inputs(|| {
            let mut handle = handle();
            read(&mut handle);
            handle
        })
        .bench_refs(move |handle| batch(|| read(handle)));
}

/// `DogpileCell`.
#[divan::bench_group(threads = THREADS, sample_count = 20, sample_size = 100)]
mod cell {
    use super::{Bencher, FRESH, STATES, State, SystemClock, per_thread, shared};

    #[divan::bench(args = STATES)]
    fn get_or_refresh(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.cell(SystemClock);
        shared(bencher, || *cell.get_or_refresh(|| unreachable!()));
    }

    #[divan::bench(args = STATES)]
    fn load_or_refresh(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.cell(SystemClock);
        shared(bencher, || *cell.load_or_refresh(|| unreachable!()));
    }

    #[divan::bench(args = STATES)]
    fn get(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.cell(SystemClock);
        shared(bencher, || *cell.get().expect(FRESH));
    }

    #[divan::bench(args = STATES)]
    fn load(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.cell(SystemClock);
        shared(bencher, || *cell.load().expect(FRESH));
    }

    #[divan::bench(args = STATES)]
    fn reader_get_or_refresh(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.cell(SystemClock);
        per_thread(bencher, || cell.reader(), |reader| **reader.get_or_refresh(|| unreachable!()));
    }

    #[divan::bench(args = STATES)]
    fn reader_get(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.cell(SystemClock);
        per_thread(bencher, || cell.reader(), |reader| **reader.get().expect(FRESH));
    }

    #[divan::bench(args = STATES)]
    fn reader_get_owned_or_refresh(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.cell(SystemClock);
        per_thread(bencher, || cell.reader(), |reader| reader.get_owned_or_refresh(|| unreachable!()));
    }
}

/// `DogpileCell` with a `TickClock`.
#[divan::bench_group(threads = THREADS, sample_count = 20, sample_size = 100)]
mod tick_clock {
    use super::{Bencher, State, TickClock, per_thread, shared};

    /// The states in which a read asks a clock.
    const STATES: [State; 3] = [State::Fresh, State::BuildRunsBounded, State::RetryPause];

    #[divan::bench(args = STATES)]
    fn get_or_refresh(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.cell(TickClock);
        shared(bencher, || *cell.get_or_refresh(|| unreachable!()));
    }

    #[divan::bench(args = STATES)]
    fn load_or_refresh(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.cell(TickClock);
        shared(bencher, || *cell.load_or_refresh(|| unreachable!()));
    }

    #[divan::bench(args = STATES)]
    fn reader_get_or_refresh(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.cell(TickClock);
        per_thread(bencher, || cell.reader(), |reader| **reader.get_or_refresh(|| unreachable!()));
    }
}

/// `LazyDogpile`.
#[divan::bench_group(threads = THREADS, sample_count = 20, sample_size = 100)]
mod lazy {
    use super::{Bencher, HOUR, LazyDogpile, leak, per_thread, shared};

    fn lazy() -> &'static LazyDogpile<u64> {
        leak(LazyDogpile::new(HOUR, || 1))
    }

    #[divan::bench]
    fn get_or_refresh(bencher: Bencher<'_, '_>) {
        let lazy = lazy();
        shared(bencher, || *lazy.get_or_refresh());
    }

    #[divan::bench]
    fn load_or_refresh(bencher: Bencher<'_, '_>) {
        let lazy = lazy();
        shared(bencher, || *lazy.load_or_refresh());
    }

    #[divan::bench]
    fn reader_get_or_refresh(bencher: Bencher<'_, '_>) {
        let lazy = lazy();
        per_thread(bencher, || lazy.reader(), |reader| **reader.get_or_refresh());
    }

    #[divan::bench]
    fn local_with(bencher: Bencher<'_, '_>) {
        static LAZY: LazyDogpile<u64> = LazyDogpile::new(HOUR, || 1);
        dogpile::local!(static LOCAL: u64 = LAZY);
        shared(bencher, || LOCAL.with(|value| *value));
    }
}

/// `SyncReaderCell`.
#[divan::bench_group(threads = THREADS, sample_count = 20, sample_size = 100)]
mod sync_reader {
    use super::{Bencher, FRESH, STATES, State, shared};

    #[divan::bench(args = STATES)]
    fn get_or_refresh(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.sync_cell();
        shared(bencher, || *cell.get_or_refresh(|| unreachable!()));
    }

    #[divan::bench(args = STATES)]
    fn load_or_refresh(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.sync_cell();
        shared(bencher, || *cell.load_or_refresh(|| unreachable!()));
    }

    #[divan::bench(args = STATES)]
    fn get(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.sync_cell();
        shared(bencher, || *cell.get().expect(FRESH));
    }

    #[divan::bench(args = STATES)]
    fn load(bencher: Bencher<'_, '_>, state: State) {
        let cell = state.sync_cell();
        shared(bencher, || *cell.load().expect(FRESH));
    }
}

/// What is at the bottom of all these: arc-swap, and the clocks.
#[divan::bench_group(threads = THREADS, sample_count = 20, sample_size = 100)]
mod floor {
    use super::{AtomicU64, Bencher, FRESH, Ordering, SystemClock, TickClock, leak, per_thread, shared};
    use arc_swap::{ArcSwapOption, Cache};
    use dogpile::Clock;

    fn slot() -> &'static ArcSwapOption<u64> {
        leak(ArcSwapOption::from_pointee(1))
    }

    fn coarse() -> u64 {
        SystemClock.coarse_now().as_nanos()
    }

    /// A deadline by hand: one word, and the coarse clock.
    fn deadline() -> AtomicU64 {
        AtomicU64::new(u64::MAX)
    }

    fn check(deadline: &AtomicU64) {
        assert!(coarse() < deadline.load(Ordering::Acquire));
    }

    #[divan::bench]
    fn nothing(bencher: Bencher<'_, '_>) {
        shared(bencher, || 1_u64);
    }

    #[divan::bench]
    fn load_full(bencher: Bencher<'_, '_>) {
        let slot = slot();
        shared(bencher, || *slot.load_full().expect(FRESH));
    }

    #[divan::bench]
    fn load_full_and_coarse_clock(bencher: Bencher<'_, '_>) {
        let (slot, deadline) = (slot(), deadline());
        shared(bencher, || {
            check(&deadline);
            *slot.load_full().expect(FRESH)
        });
    }

    #[divan::bench]
    fn load(bencher: Bencher<'_, '_>) {
        let slot = slot();
        shared(bencher, || **slot.load().as_ref().expect(FRESH));
    }

    #[divan::bench]
    fn load_and_coarse_clock(bencher: Bencher<'_, '_>) {
        let (slot, deadline) = (slot(), deadline());
        shared(bencher, || {
            check(&deadline);
            **slot.load().as_ref().expect(FRESH)
        });
    }

    #[divan::bench]
    fn cache_load(bencher: Bencher<'_, '_>) {
        let slot = slot();
        per_thread(bencher, || Cache::new(slot), |cache| **cache.load().as_ref().expect(FRESH));
    }

    #[divan::bench]
    fn cache_load_and_coarse_clock(bencher: Bencher<'_, '_>) {
        let (slot, deadline) = (slot(), deadline());
        per_thread(
            bencher,
            || Cache::new(slot),
            |cache| {
                check(&deadline);
                **cache.load().as_ref().expect(FRESH)
            },
        );
    }

    #[divan::bench]
    fn coarse_clock(bencher: Bencher<'_, '_>) {
        shared(bencher, || SystemClock.coarse_now());
    }

    #[divan::bench]
    fn exact_clock(bencher: Bencher<'_, '_>) {
        shared(bencher, || SystemClock.now());
    }

    #[divan::bench]
    fn tick_clock(bencher: Bencher<'_, '_>) {
        shared(bencher, || TickClock.coarse_now());
    }
}
