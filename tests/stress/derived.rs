//! Derived values: a chain, a diamond and direct edges, read while their sources are published (G15).
//!
//! ```text
//! a ──► b ──► d ──► e ◄── a, other
//! └───► c ────┘
//!
//! f ◄── d, c, b
//! ```
//!
//! Each value carries the number of the source's value that it was made from, so that a mixture shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use dogpile::{Derived, DogpileCell, Policy};

use crate::harness::{Random, alone, scaled, seed};

const READERS: u64 = if cfg!(miri) { 2 } else { 4 };
const WRITERS: u64 = 2;
/// Fewer reads would show little.
const LEAST_READS: u64 = if cfg!(miri) { 10 } else { 10_000 };

struct Graph {
    a: Arc<DogpileCell<u64>>,
    other: Arc<DogpileCell<u64>>,
    b: Derived<u64>,
    d: Derived<(u64, u64)>,
    e: Derived<((u64, u64), u64, u64)>,
    /// What it asks for is cached, as a rule, but perhaps not made from the same.
    f: Derived<[u64; 4]>,
    /// As `d`, but made with plain cells: what the naive way does.
    naive: Arc<DogpileCell<(u64, u64)>>,
    c: Derived<u64>,
}

impl Graph {
    #[allow(clippy::many_single_char_names)] // as in the figure
    fn new() -> Self {
        let cell = || Arc::new(DogpileCell::with_policy(Policy::never_expires()));
        let (a, other) = (cell(), cell());
        a.set(0);
        other.set(0);
        let b = Derived::new({
            let a = Arc::clone(&a);
            move |cx| {
                let value = *cx.get(&a);
                thread::yield_now();
                value
            }
        });
        let c = Derived::new({
            let a = Arc::clone(&a);
            move |cx| *cx.get(&a)
        });
        let d = Derived::new({
            let (b, c) = (b.clone(), c.clone());
            move |cx| (*cx.get(&b), *cx.get(&c))
        });
        let e = Derived::new({
            let (d, a, other) = (d.clone(), Arc::clone(&a), Arc::clone(&other));
            move |cx| (*cx.get(&d), *cx.get(&a), *cx.get(&other))
        });
        let f = Derived::new({
            let (b, c, d) = (b.clone(), c.clone(), d.clone());
            move |cx| {
                let (d, c, b) = (cx.get(&d), cx.get(&c), cx.get(&b));
                [d.0, d.1, *c, *b]
            }
        });
        Self { a, other, b, d, e, f, naive: Arc::new(DogpileCell::with_policy(Policy::never_expires())), c }
    }
}

/// Reads that were checked, those that mixed, and those that were older than an earlier one of the same thread.
#[derive(Default)]
struct Found {
    reads: AtomicU64,
    mixed: AtomicU64,
    back: AtomicU64,
    naive: AtomicU64,
    naive_mixed: AtomicU64,
}

#[test]
fn g15_nothing_is_mixed_and_nothing_goes_back() {
    let _alone = alone();
    let seed = seed();
    let graph = Graph::new();
    let hook = graph.a.on_publish({
        let naive = Arc::downgrade(&graph.naive);
        move |_| naive.upgrade().into_iter().for_each(|naive| naive.invalidate())
    });
    let (found, stop, published) = (Found::default(), AtomicBool::new(false), AtomicU64::new(0));
    let target = scaled(60_000, 60);
    thread::scope(|scope| {
        let (graph, found, stop, published) = (&graph, &found, &stop, &published);
        for writer in 0..WRITERS {
            scope.spawn(move || {
                let mut random = Random::new(seed ^ writer);
                while published.load(Ordering::Relaxed) < target
                    || found.reads.load(Ordering::Relaxed) < LEAST_READS
                {
                    // The number is drawn under the source's own order: the value is the generation.
                    let value = published.fetch_add(1, Ordering::Relaxed);
                    if writer == 0 {
                        graph.a.set(value);
                    } else {
                        graph.other.set(value);
                    }
                    if random.one_in(4) {
                        random.dawdle();
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
        for reader in 0..READERS {
            scope.spawn(move || read(graph, found, stop, Random::new(seed ^ (reader << 32))));
        }
    });
    drop(hook);
    let Found { reads, mixed, back, naive, naive_mixed } = found;
    let [reads, mixed, back, naive, naive_mixed] =
        [reads, mixed, back, naive, naive_mixed].map(AtomicU64::into_inner);
    println!(
        "{reads} checked reads, {mixed} mixed, {back} went back; the naive way: {naive} reads, {naive_mixed} mixed"
    );
    assert_eq!((mixed, back), (0, 0));

    // After the last publication the next read is made from the newest.
    let (a, other) = (*graph.a.get().unwrap(), *graph.other.get().unwrap());
    assert_eq!(*graph.e.get(), ((a, a), a, other));
    assert_eq!((*graph.d.get(), *graph.b.get()), ((a, a), a));
    assert_eq!(*graph.f.get(), [a; 4]);
    // What it was made from may have been made for that read only, and is published by a read of its own. When each is published
    // after its sources, nothing is made any more.
    drop((graph.b.get(), graph.c.get(), graph.d.get(), graph.e.get(), graph.f.get()));
    let builds = || [&graph.b, &graph.c].map(|made| made.cell().stats().builds);
    let before = (builds(), graph.e.cell().stats().builds);
    for _ in 0..100 {
        graph.e.get();
        graph.d.get();
    }
    assert_eq!((builds(), graph.e.cell().stats().builds), before);
}

fn read(graph: &Graph, found: &Found, stop: &AtomicBool, mut random: Random) {
    let (mut in_b, mut in_d, mut in_e, mut in_f) = (0, 0, (0, 0), 0);
    let mut reader = graph.e.reader();
    while !stop.load(Ordering::Relaxed) {
        let count = |counter: &AtomicU64, is_so: bool| {
            counter.fetch_add(u64::from(is_so), Ordering::Relaxed);
        };
        let b = *graph.b.get();
        count(&found.back, b < in_b);
        in_b = b;
        let d = *graph.d.get();
        count(&found.mixed, d.0 != d.1);
        count(&found.back, d.0 < in_d);
        in_d = d.0;
        let (d, a, other) = if random.one_in(2) { *graph.e.get() } else { **reader.get() };
        count(&found.mixed, d != (a, a));
        count(&found.back, a < in_e.0 || other < in_e.1);
        in_e = (a, other);
        let f = *graph.f.get();
        count(&found.mixed, f != [f[0]; 4]);
        count(&found.back, f[0] < in_f);
        in_f = f[0];
        found.reads.fetch_add(4, Ordering::Relaxed);
        let naive = *graph.naive.get_or_refresh(|| (*graph.b.get(), *graph.c.get()));
        found.naive.fetch_add(1, Ordering::Relaxed);
        count(&found.naive_mixed, naive.0 != naive.1);
    }
}
