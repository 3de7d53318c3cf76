//! Caches of many keys: hits, memory, hit ratio, and reads while a hot key is rebuilt.

use super::{Part, bar, float, origin};
use crate::data::Table;
use anyhow::Context;
use dashmap::DashMap;
use dogpile::{Clock, DogpileCell, Policy, SystemClock};
use dogpile_map::DogpileMap;
use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use super::LONG;

/// Those of the hits.
const KEYS: u64 = 1_000;
/// A power of two, so that a key costs a mask.
const ORDER: usize = 8_192;

pub(crate) const MAP: &str = "DogpileMap";
pub(crate) const MOKA: &str = "moka with a ttl";
pub(crate) const BARE: &str = "quick_cache alone";
pub(crate) const CELLS: &str = "DashMap of DogpileCells";
pub(crate) const DEADLINES: &str = "quick_cache with deadlines";
pub(crate) const FOYER: &str = "foyer-memory alone";
pub(crate) const CACHED: &str = "cached with a ttl";
pub(crate) const ALL: [&str; 7] = [MAP, MOKA, BARE, DEADLINES, FOYER, CACHED, CELLS];
/// Each is filled in a process of its own.
const FILLED: [&str; 6] = [MAP, MOKA, BARE, FOYER, CACHED, CELLS];

/// A cache of `u64`s in `Arc`s.
trait Cache: Send + Sync {
    /// The value, built by doubling the key.
    fn get(&self, key: u64, build: &dyn Fn(u64) -> u64) -> u64;
    fn contains(&self, key: u64) -> bool;
}

struct Map(DogpileMap<u64, u64>);

impl Cache for Map {
    #[inline]
    fn get(&self, key: u64, build: &dyn Fn(u64) -> u64) -> u64 {
        *self.0.get_or_refresh(&key, |key| build(*key))
    }
    fn contains(&self, key: u64) -> bool {
        self.0.get(&key).is_some()
    }
}

struct Moka(moka::sync::Cache<u64, Arc<u64>>);

impl Cache for Moka {
    #[inline]
    fn get(&self, key: u64, build: &dyn Fn(u64) -> u64) -> u64 {
        *self.0.get_with(key, || Arc::new(build(key)))
    }
    fn contains(&self, key: u64) -> bool {
        self.0.get(&key).is_some()
    }
}

struct Bare(quick_cache::sync::Cache<u64, Arc<u64>>);

impl Cache for Bare {
    #[inline]
    fn get(&self, key: u64, build: &dyn Fn(u64) -> u64) -> u64 {
        if let Some(value) = self.0.get(&key) {
            return *value;
        }
        let value = build(key);
        self.0.insert(key, Arc::new(value));
        value
    }
    fn contains(&self, key: u64) -> bool {
        self.0.get(&key).is_some()
    }
}

/// What a ttl costs at the least: a deadline beside the value, and a look at the coarse clock.
struct Deadlines(quick_cache::sync::Cache<u64, (Arc<u64>, u64)>);

impl Cache for Deadlines {
    #[inline]
    fn get(&self, key: u64, build: &dyn Fn(u64) -> u64) -> u64 {
        let now = SystemClock.coarse_now().as_nanos();
        if let Some((value, end)) = self.0.get(&key)
            && now < end
        {
            return *value;
        }
        let value = build(key);
        self.0.insert(key, (Arc::new(value), now.saturating_add(u64::MAX / 4)));
        value
    }
    fn contains(&self, key: u64) -> bool {
        self.0.get(&key).is_some()
    }
}

/// `foyer_memory::Cache`, which has no ttl, and no build without a future.
struct Foyer(foyer_memory::Cache<u64, Arc<u64>>);

impl Cache for Foyer {
    #[inline]
    fn get(&self, key: u64, build: &dyn Fn(u64) -> u64) -> u64 {
        if let Some(entry) = self.0.get(&key) {
            return **entry.value();
        }
        **self.0.insert(key, Arc::new(build(key))).value()
    }
    fn contains(&self, key: u64) -> bool {
        self.0.contains(&key)
    }
}

/// The store of `cached` for threads, with a bound and a ttl: what is behind its attribute `#[concurrent_cached]`.
struct Cached(cached::ShardedLruTtlCache<u64, Arc<u64>>);

impl Cache for Cached {
    #[inline]
    fn get(&self, key: u64, build: &dyn Fn(u64) -> u64) -> u64 {
        *self.0.get_or_set_with(key, || Arc::new(build(key)))
    }
    fn contains(&self, key: u64) -> bool {
        self.0.contains(&key)
    }
}

/// Bounded by nothing.
struct Cells(DashMap<u64, Arc<DogpileCell<u64>>>);

impl Cache for Cells {
    #[inline]
    fn get(&self, key: u64, build: &dyn Fn(u64) -> u64) -> u64 {
        let cell = match self.0.get(&key) {
            Some(cell) => Arc::clone(&cell),
            None => Arc::clone(&self.0.entry(key).or_insert_with(|| Arc::new(DogpileCell::new(LONG)))),
        };
        *cell.get_or_refresh(|| build(key))
    }
    fn contains(&self, key: u64) -> bool {
        self.0.get(&key).is_some_and(|cell| cell.get().is_some())
    }
}

fn map(entries: usize, ttl: Duration) -> Map {
    Map(DogpileMap::builder(Policy::ttl(ttl)).max_entries(entries).build())
}

fn moka(entries: usize, ttl: Duration) -> Moka {
    Moka(moka::sync::Cache::builder().max_capacity(entries as u64).time_to_live(ttl).build())
}

fn bare(entries: usize) -> Bare {
    Bare(quick_cache::sync::Cache::new(entries))
}

fn foyer(entries: usize) -> Foyer {
    Foyer(foyer_memory::CacheBuilder::new(entries).build())
}

fn cached(entries: usize, ttl: Duration) -> Cached {
    Cached(cached::ShardedLruTtlCache::new(entries, ttl))
}

pub(super) fn measure(quick: bool) -> anyhow::Result<Table> {
    let (rounds, duration, fills, draws) = if quick {
        (1, Duration::from_millis(5), 10_000, 20_000)
    } else {
        (9, Duration::from_millis(150), 1_000_000, 4_000_000)
    };
    let how = format!("{rounds} rounds of {} ms for the hits", duration.as_millis());
    let mut table = Table::new(&origin(quick, &how), &["contestant", "measure"]);
    let bar = bar(Part::Keyed, rounds + 3);
    let (own, moka_cache, bare_cache) = (map(10_000, LONG), moka(10_000, LONG), bare(10_000));
    let (foyer_cache, cached_cache) = (foyer(10_000), cached(10_000, LONG));
    let (deadlines, cells) = (Deadlines(quick_cache::sync::Cache::new(10_000)), Cells(DashMap::new()));
    let turns = if quick { 1_000 } else { 20_000 };
    for round in 0..rounds {
        for threads in [1, 2] {
            for (keys, what) in [(KEYS, "of 1000 keys"), (1, "of one key")] {
                let measure = format!("ns per hit {what} by {threads}");
                let order = order(keys, round as u64);
                table.add(&[MAP, &measure], hits(&own, &order, threads, duration));
                table.add(&[MOKA, &measure], hits(&moka_cache, &order, threads, duration));
                table.add(&[BARE, &measure], hits(&bare_cache, &order, threads, duration));
                table.add(&[DEADLINES, &measure], hits(&deadlines, &order, threads, duration));
                table.add(&[FOYER, &measure], hits(&foyer_cache, &order, threads, duration));
                table.add(&[CACHED, &measure], hits(&cached_cache, &order, threads, duration));
                table.add(&[CELLS, &measure], hits(&cells, &order, threads, duration));
            }
        }
        // Keys that were never asked for: each is built, stored, and evicted again.
        table.add(&[MAP, "ns per miss"], misses(&map(1_000, LONG), turns));
        table.add(&[MOKA, "ns per miss"], misses(&moka(1_000, LONG), turns));
        table.add(&[BARE, "ns per miss"], misses(&bare(1_000), turns));
        table.add(&[FOYER, "ns per miss"], misses(&foyer(1_000), turns));
        table.add(&[CACHED, "ns per miss"], misses(&cached(1_000, LONG), turns));
        bar.inc(1);
    }
    for name in FILLED {
        table.add(&[name, "resident bytes per entry"], in_another_process(name, fills)?);
    }
    bar.inc(1);
    let sequence = zipf(fills, draws);
    let places = fills / 10;
    table.add(&[MAP, "hit ratio"], hit_ratio(&map(places, LONG), &sequence));
    table.add(&[MOKA, "hit ratio"], hit_ratio(&moka(places, LONG), &sequence));
    table.add(&[BARE, "hit ratio"], hit_ratio(&bare(places), &sequence));
    table.add(&[FOYER, "hit ratio"], hit_ratio(&foyer(places), &sequence));
    table.add(&[CACHED, "hit ratio"], hit_ratio(&cached(places, LONG), &sequence));
    bar.inc(1);
    let ttl = Duration::from_millis(20);
    let build = if quick { Duration::from_millis(10) } else { Duration::from_millis(100) };
    for _ in 0..rounds {
        // Not the others: they do not see that a build runs, and build beside it.
        for (name, (reads, waits)) in
            [(MAP, rebuild(&map(100, ttl), ttl, build)), (MOKA, rebuild(&moka(100, ttl), ttl, build))]
        {
            table.add(&[name, "reads during a rebuild"], float(reads));
            table.add(&[name, "reads that wait for it"], float(waits));
        }
    }
    // Last of all: what so many threads leave behind is a burden to what comes after them.
    for round in 0..rounds {
        let order = order(KEYS, round as u64);
        beside(if quick { 16 } else { 512 }, || {
            let measure = "ns per hit beside 512 threads";
            table.add(&[MAP, measure], hits(&own, &order, 1, duration));
            table.add(&[MOKA, measure], hits(&moka_cache, &order, 1, duration));
            table.add(&[BARE, measure], hits(&bare_cache, &order, 1, duration));
            table.add(&[FOYER, measure], hits(&foyer_cache, &order, 1, duration));
            table.add(&[CACHED, measure], hits(&cached_cache, &order, 1, duration));
            table.add(&[CELLS, measure], hits(&cells, &order, 1, duration));
            let measure = "ns per miss beside 512 threads";
            table.add(&[MAP, measure], misses(&map(1_000, LONG), turns));
            table.add(&[MOKA, measure], misses(&moka(1_000, LONG), turns));
            table.add(&[BARE, measure], misses(&bare(1_000), turns));
            table.add(&[FOYER, measure], misses(&foyer(1_000), turns));
            table.add(&[CACHED, measure], misses(&cached(1_000, LONG), turns));
        });
    }
    bar.finish_and_clear();
    Ok(table)
}

/// Keys in an order that no prefetcher knows.
fn order(keys: u64, seed: u64) -> Vec<u64> {
    let mut random = Random(seed + 1);
    (0..ORDER).map(|_| random.next() % keys).collect()
}

struct Random(u64);

impl Random {
    /// `SplitMix64`.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn share(&mut self) -> f64 {
        float(self.next() >> 12) / float(1 << 52)
    }
}

/// Nanoseconds for which a thread is busy with one hit.
fn hits<T: Cache>(cache: &T, order: &[u64], threads: usize, duration: Duration) -> f64 {
    for &key in order {
        cache.get(key, &|key| 2 * key);
    }
    let (start, stop) = (Barrier::new(threads), AtomicBool::new(false));
    let turn = |thread: usize| {
        start.wait();
        let watch = Watch::start();
        let (mut reads, mut position) = (0_u64, thread * 1_031);
        // Relaxed: it orders nothing.
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..256 {
                position = (position + 1) % ORDER;
                black_box(cache.get(order[position], &|_| unreachable!("it is there")));
            }
            reads += 256;
            if thread == 0 && watch.began.elapsed() > duration {
                stop.store(true, Ordering::Relaxed);
            }
        }
        watch.nanos() / float(reads)
    };
    let turn = &turn;
    let each: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || turn(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a reader does not panic")).collect()
    });
    each.iter().sum::<f64>() / float(threads as u64)
}

/// Nanoseconds for which this thread is busy with one read of a key that is not there.
fn misses<T: Cache>(cache: &T, turns: u64) -> f64 {
    let watch = Watch::start();
    for key in 0..turns {
        black_box(cache.get(key, &|key| 2 * key));
    }
    watch.nanos() / float(turns)
}

/// Runs `measure` while so many threads are alive that have used a cell: each has a place in a list that is walked by each
/// publication of a cell.
fn beside(threads: usize, measure: impl FnOnce()) {
    let cell = DogpileCell::new(LONG);
    cell.set(1);
    let (ready, end) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                black_box(cell.get());
                ready.wait();
                end.wait();
            });
        }
        ready.wait();
        measure();
        end.wait();
    });
}

/// Measures for how long this thread is busy, where the kernel tells; else the time that goes by. Others use the cores too.
struct Watch {
    began: Instant,
    was_busy: Option<u64>,
}

impl Watch {
    fn start() -> Self {
        Self { began: Instant::now(), was_busy: busy() }
    }

    fn nanos(&self) -> f64 {
        match (self.was_busy, busy()) {
            (Some(before), Some(after)) if after > before => float(after - before),
            _ => self.began.elapsed().as_secs_f64() * 1e9,
        }
    }
}

/// For how many nanoseconds this thread has been on a core.
fn busy() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse().ok()
}

/// Fills a cache in a process of its own, and says by how many bytes that has grown.
fn in_another_process(name: &str, entries: usize) -> anyhow::Result<f64> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let output = Command::new(program).args(["--fill", name, "--entries", &entries.to_string()]).output()?;
    let text = String::from_utf8(output.stdout)?;
    text.trim().parse().with_context(|| format!("{name}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Resident bytes per entry.
pub(crate) fn fill(name: &str, entries: usize) -> anyhow::Result<f64> {
    let before = resident()?;
    let cache: Box<dyn Cache> = match name {
        MAP => Box::new(map(entries, LONG)),
        MOKA => Box::new(moka(entries, LONG)),
        BARE => Box::new(bare(entries)),
        FOYER => Box::new(foyer(entries)),
        CACHED => Box::new(cached(entries, LONG)),
        CELLS => Box::new(Cells(DashMap::new())),
        _ => anyhow::bail!("there is no {name}"),
    };
    for key in 0..entries as u64 {
        cache.get(key, &|key| 2 * key);
    }
    let grown = resident()?.saturating_sub(before);
    let held = (0..entries as u64).filter(|key| cache.contains(*key)).count();
    anyhow::ensure!(10 * held > 8 * entries, "{name} holds {held} of {entries}");
    Ok(float(grown) / float(held as u64))
}

fn resident() -> anyhow::Result<u64> {
    let status =
        std::fs::read_to_string("/proc/self/status").context("resident memory is known on Linux only")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(1_024 * kilobytes)
}

/// Keys whose frequency falls with the 0.9th power of their rank.
fn zipf(keys: usize, draws: usize) -> Vec<u64> {
    let mut sums = Vec::with_capacity(keys);
    let mut sum = 0.0;
    for rank in 1..=keys {
        sum += float(rank as u64).powf(-0.9);
        sums.push(sum);
    }
    let mut random = Random(7);
    (0..draws)
        .map(|_| {
            let share = random.share() * sum;
            sums.partition_point(|below| *below < share) as u64
        })
        .collect()
}

fn hit_ratio<T: Cache>(cache: &T, sequence: &[u64]) -> f64 {
    let builds = AtomicU64::new(0);
    for &key in sequence {
        cache.get(key, &|key| {
            builds.fetch_add(1, Ordering::Relaxed);
            2 * key
        });
    }
    1.0 - float(builds.into_inner()) / float(sequence.len() as u64)
}

/// While one thread rebuilds a hot key: how many reads another one gets done, and how many of them take as long as half the
/// build.
fn rebuild<T: Cache>(cache: &T, ttl: Duration, build: Duration) -> (u64, u64) {
    cache.get(1, &|_| 0);
    thread::sleep(2 * ttl);
    let (has_begun, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            cache.get(1, &|_| {
                has_begun.store(true, Ordering::Release);
                thread::sleep(build);
                // Not later: what is read from then on may be the new value.
                is_over.store(true, Ordering::Release);
                1
            });
        });
        while !has_begun.load(Ordering::Acquire) {
            thread::yield_now();
        }
        let (mut reads, mut waits) = (0, 0);
        while !is_over.load(Ordering::Acquire) {
            let began = Instant::now();
            black_box(cache.get(1, &|_| 2));
            reads += 1;
            waits += u64::from(began.elapsed() > build / 2);
        }
        (reads, waits)
    })
}
