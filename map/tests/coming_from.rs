//! The claims of the README's section "Coming from": a test for each row, which goes red if the row is false.
//!
//! Above each test stand the rows that it is about, as `// heading | first column`. That none is missing is a test too. What is
//! said of moka and `quick_cache` is tested with them; of the others only what is said of this crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use dogpile::{Job, ManualClock, Policy, Refreshed};
use dogpile_map::DogpileMap;

const TTL: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_nanos(1);
/// Real time, as a guard against hangs.
const PATIENCE: Duration = Duration::from_secs(120);

type Map = DogpileMap<u64, u64, ManualClock>;

fn map_with(policy: Policy) -> (Map, ManualClock) {
    let clock = ManualClock::new();
    (DogpileMap::<u64, u64>::builder(policy).clock(clock.clone()).build(), clock)
}

fn map() -> (Map, ManualClock) {
    map_with(Policy::ttl(TTL))
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as a build
fn unbuildable<T>(_: &u64) -> T {
    unreachable!("this call must not build")
}

type Nothing = Result<[(u64, u64); 0], String>;

/// Runs `first` until it is inside its build, then `meanwhile`, then ends the build with 10.
fn beside<R: Send>(first: impl FnOnce(&dyn Fn() -> u64) -> R + Send, meanwhile: impl FnOnce()) -> R {
    let (start, started) = mpsc::channel();
    let (finish, finished) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let first = scope.spawn(move || {
            first(&move || {
                start.send(()).unwrap();
                finished.recv_timeout(PATIENCE).unwrap();
                10
            })
        });
        started.recv_timeout(PATIENCE).unwrap();
        meanwhile();
        finish.send(()).unwrap();
        first.join().unwrap()
    })
}

// moka | `get_with(key, init)`
// `cached` | `#[cached(ttl_secs = 60)] fn f(id: u64)`
// dogpile.cache's regions | `region.get_or_create(key, creator)`
#[test]
fn a_value_is_built_once() {
    let cache = moka::sync::Cache::<u64, u64>::new(10);
    assert_eq!((cache.get_with(1, || 10), cache.get_with(1, || 11)), (10, 10));
    let (map, _clock) = map();
    let builds = AtomicU32::new(0);
    let start = std::sync::Barrier::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                map.get_or_refresh(&1, |_| u64::from(builds.fetch_add(1, Ordering::Relaxed)))
            });
        }
    });
    assert_eq!(builds.into_inner(), 1);
}

// moka | when a ttl is over, all readers of the key wait for the new value
#[test]
fn readers_of_a_stale_key() {
    let cache = moka::sync::Cache::<u64, u64>::builder().time_to_live(Duration::from_nanos(1)).build();
    cache.insert(1, 9);
    while cache.contains_key(&1) {}
    // There is no old value to be had while the key is rebuilt.
    let rebuilt = beside(|build| cache.get_with(1, build), || assert_eq!(cache.get(&1), None));
    assert_eq!(rebuilt, 10);

    let (map, clock) = map();
    map.set(1, 9);
    clock.advance(TTL + TICK);
    let meanwhile = || assert_eq!(*map.get_or_refresh(&1, unbuildable), 9);
    assert_eq!(*beside(|build| map.get_or_refresh(&1, |_| build()), meanwhile), 10);
}

// moka | `try_get_with`: waiters share the error, the next caller tries again at once
// quick_cache | a build whose closure returns an error: the next waiter tries, one after the other
#[test]
fn errors() {
    let cache = moka::sync::Cache::<u64, u64>::new(10);
    assert!(cache.try_get_with(1, || Err("down")).is_err());
    assert_eq!(cache.try_get_with(1, || Ok::<_, String>(10)), Ok(10));

    let cache = quick_cache::sync::Cache::<u64, u64>::new(10);
    assert!(cache.get_or_insert_with(&1, || Err("down")).is_err());
    assert_eq!(cache.get_or_insert_with(&1, || Ok::<_, String>(10)), Ok(10));
    let second = thread::scope(|scope| {
        let mut waiter = None;
        let first = beside(
            |build| cache.get_or_insert_with(&2, || Err::<u64, _>(build())),
            || waiter = Some(scope.spawn(|| cache.get_or_insert_with(&2, || Err::<u64, _>(11)))),
        );
        assert_eq!(first, Err(10));
        waiter.unwrap().join().unwrap()
    });
    assert_eq!(second, Err(11)); // an error of its own

    let (map, clock) = map();
    let failed = map.try_get_or_refresh(&1, |_| Err("down")).unwrap_err();
    // In the pause, the same one; that waiters share it too is in tests/it/failure.rs.
    let paused = map.try_get_or_refresh(&1, unbuildable::<Result<_, String>>).unwrap_err();
    assert!(paused.build_error().unwrap().ptr_eq(failed.build_error().unwrap()));
    clock.advance(Duration::from_secs(1));
    assert_eq!(*map.try_get_or_refresh(&1, |_| Ok::<_, String>(10)).unwrap(), 10);
}

// moka | `invalidate(&key)` takes the value away
#[test]
fn soft_and_hard() {
    let cache = moka::sync::Cache::<u64, u64>::new(10);
    cache.insert(1, 10);
    cache.invalidate(&1);
    assert_eq!(cache.get(&1), None);
    let (map, _clock) = map();
    map.set(1, 10);
    map.invalidate(&1);
    assert_eq!(map.get(&1).as_deref(), Some(&10));
    map.clear(&1);
    assert_eq!(map.get(&1), None);
}

// moka | a build that began before `invalidate` is kept as if nothing had been
#[test]
fn the_fence() {
    let cache = moka::sync::Cache::<u64, u64>::new(10);
    beside(|build| cache.get_with(1, build), || cache.invalidate(&1));
    assert_eq!(cache.get_with(1, || 11), 10);

    let (map, _clock) = map();
    beside(|build| map.get_or_refresh(&1, |_| build()), || map.invalidate(&1));
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
    beside(|build| map.request(&2).get(|_| build()), || drop(map.clear(&2)));
    assert_eq!(map.get(&2), None);
}

// moka | `invalidate_entries_if`
#[test]
fn predicates_and_tags() {
    let cache = moka::sync::Cache::<u64, u64>::builder().support_invalidation_closures().build();
    cache.insert(1, 10);
    cache.invalidate_entries_if(|_, value| *value == 10).unwrap();
    assert_eq!(cache.get(&1), None);
    let map = DogpileMap::<u64, u64>::builder(Policy::ttl(TTL)).tags(|key, _| [format!("tag {key}")]).build();
    map.set(1, 10);
    map.set(2, 10);
    assert_eq!(map.invalidate_if(|key, _| *key == 1), 1);
    map.invalidate_tag("tag 2");
    assert_eq!((*map.get_or_refresh(&1, |_| 11), *map.get_or_refresh(&2, |_| 12)), (11, 12));
}

// moka | `weigher`
#[test]
fn weights() {
    let cache = moka::sync::Cache::builder().max_capacity(100).weigher(|_: &u64, _: &u64| 30).build();
    (0..10).for_each(|key| cache.insert(key, key));
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), 3);
    let map = DogpileMap::<u64, u64>::builder(Policy::ttl(TTL)).max_weight(100, |_, _| 30).build();
    (0..10).for_each(|key| drop(map.set(key, key)));
    assert_eq!((map.len(), map.weight()), (3, 90));
}

// moka | `Expiry`, a ttl per entry
#[test]
fn a_ttl_per_entry() {
    let (map, clock) = map();
    map.set_for(1, 10, 10 * TTL);
    map.request(&2).try_get_with(|_, _| Ok::<_, String>(Refreshed::NewFor(20, 10 * TTL))).unwrap();
    clock.advance(9 * TTL);
    assert_eq!((*map.get_or_refresh(&1, unbuildable), *map.get_or_refresh(&2, unbuildable)), (10, 20));
    clock.advance(TTL + TICK);
    assert_eq!((*map.get_or_refresh(&1, |_| 11), *map.get_or_refresh(&2, |_| 21)), (11, 21));
}

// moka | eviction listener, time to idle
#[test]
fn what_there_is_not() {
    // That an entry goes when it was not read for a while, there is nothing for: it stays.
    let (map, clock) = map();
    map.set(1, 10);
    clock.advance(1_000 * TTL);
    assert_eq!((map.len(), map.get(&1).as_deref()), (1, Some(&10)));
}

// quick_cache | no ttl
#[test]
fn a_ttl() {
    let (map, clock) = map();
    map.set(1, 10);
    clock.advance(TTL + TICK);
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
}

// quick_cache | `get_or_insert_with`: one caller builds, the others wait
#[test]
fn a_missing_key_is_waited_for() {
    let cache = quick_cache::sync::Cache::<u64, u64>::new(10);
    let (map, clock) = map();
    let wait = || {
        thread::scope(|scope| {
            let mut waiters = None;
            beside(
                |build| (cache.get_or_insert_with(&1, || Ok::<_, String>(build())).unwrap(), ()),
                || {
                    waiters = Some(
                        scope.spawn(|| cache.get_or_insert_with(&1, || Ok::<_, String>(unbuildable(&1)))),
                    );
                },
            );
            assert_eq!(waiters.unwrap().join().unwrap(), Ok(10));
            let mut waiters = None;
            beside(
                |build| map.get_or_refresh(&1, |_| build()),
                || waiters = Some(scope.spawn(|| map.get_or_refresh(&1, unbuildable))),
            );
            assert_eq!(*waiters.unwrap().join().unwrap(), 10);
        });
    };
    wait();
    clock.advance(TTL + TICK);
    let meanwhile = || assert_eq!(*map.get_or_refresh(&1, unbuildable), 10);
    beside(|build| map.get_or_refresh(&1, |_| build() + 1), meanwhile);
    assert_eq!(map.get(&1).as_deref(), Some(&11));
}

// `cached` | `result_fallback`
#[test]
fn the_old_value_in_place_of_an_error() {
    for (policy, falls_back) in
        [(Policy::ttl(TTL), true), (Policy::ttl(TTL).stale_if_error(Duration::ZERO), false)]
    {
        let (map, clock) = map_with(policy);
        map.set(1, 10);
        clock.advance(TTL + TICK);
        let found = map.try_get_or_refresh(&1, |_| Err("down"));
        assert_eq!(found.ok().as_deref(), falls_back.then_some(&10));
    }
}

// Caffeine's `LoadingCache` | `refreshAfterWrite`, `expireAfterWrite`
#[test]
fn windows() {
    let (map, clock) = map_with(Policy::ttl(TTL).stale_while_refresh(TTL));
    map.set(1, 10);
    clock.advance(TTL + TICK);
    assert_eq!(map.get(&1).as_deref(), Some(&10));
    clock.advance(TTL);
    assert_eq!(map.get(&1), None);
}

// Caffeine's `LoadingCache` | `getAll`, `loadAll`
// dogpile.cache's regions | `get_or_create_multi(keys, creator)`
#[test]
fn many_keys_are_one_load_and_each_is_built_once() {
    let (map, _clock) = map();
    let load = |due: &[u64]| {
        assert_eq!(due, [2]);
        Ok::<_, String>([(2, 20)])
    };
    thread::scope(|scope| {
        let mut many = None;
        beside(
            |build| map.get_or_refresh(&1, |_| build()),
            || {
                many = Some(scope.spawn(|| map.get_many(&[1, 2], load)));
            },
        );
        let found = many.unwrap().join().unwrap().unwrap();
        assert_eq!(found.iter().map(|value| **value.as_ref().unwrap()).collect::<Vec<_>>(), [10, 20]);
    });
    assert_eq!(map.stats().builds, 2);
}

// Caffeine's `LoadingCache` | a reload runs on an executor
#[test]
fn a_spawner() {
    let (map, clock) = map();
    map.set(1, 10);
    clock.advance(TTL + TICK);
    let (jobs, queue) = mpsc::channel::<Job>();
    assert_eq!(*map.request(&1).spawn_with(|job| jobs.send(job)).get(|_| 11), 10);
    queue.recv().unwrap()();
    assert_eq!(*map.get_or_refresh(&1, unbuildable), 11);
    clock.advance(TTL + TICK);
    let caller = thread::current().id();
    map.get_or_refresh(&1, |_| {
        assert_eq!(thread::current().id(), caller);
        12
    });
}

// Caffeine's `LoadingCache` | `CacheLoader.reload(key, oldValue)`
#[test]
fn the_old_value_for_the_build() {
    let (map, _clock) = map();
    let old = map.set(1, 10);
    map.invalidate(&1);
    let build = |key: &u64, previous: Option<Arc<u64>>| {
        assert_eq!((*key, previous.as_ref()), (1, Some(&old)));
        Ok::<_, String>(Refreshed::New(11))
    };
    assert_eq!(*map.request(&1).try_get_with(build).unwrap(), 11);
}

// dogpile.cache's regions | `invalidate(hard=False)`, `invalidate(hard=True)`
#[test]
fn all_keys_soft_and_hard() {
    let (map, _clock) = map();
    map.set(1, 10);
    map.invalidate_all();
    assert_eq!(map.get(&1).as_deref(), Some(&10));
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
    map.clear_all();
    assert_eq!(map.get(&1), None);
}

// dogpile.cache's regions | compares creation times with the invalidation's time
#[test]
fn invalidations_are_counted() {
    // The clock stands still.
    let (map, _clock) = map();
    beside(|build| map.get_or_refresh(&1, |_| build()), || map.invalidate_all());
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
    assert_eq!(*map.get_or_refresh(&1, unbuildable), 11);
}

// dogpile.cache's regions | `expiration_time` per call
#[test]
fn an_age_per_call() {
    let (map, clock) = map();
    map.set(1, 10);
    clock.advance(TTL / 2);
    assert_eq!(*map.request(&1).max_age(TTL).get(unbuildable), 10);
    assert_eq!(*map.request(&1).max_age(TTL / 4).get(|_| 11), 11);
}

// DataLoader | keys of one tick are collected, and loaded with one call
#[test]
fn stale_keys_are_collected() {
    let (map, clock) = map();
    let (call, calls) = mpsc::channel();
    let loader = move |due: &[u64]| {
        call.send(due.to_vec()).unwrap();
        Ok::<_, String>(due.iter().map(|key| (*key, 11)).collect::<Vec<_>>())
    };
    let _batches = map.refresh_in_batches(2, TTL, loader).unwrap();
    map.set(1, 10);
    map.set(2, 10);
    clock.advance(TTL + TICK);
    assert_eq!((*map.get_or_refresh(&1, unbuildable), *map.get_or_refresh(&2, unbuildable)), (10, 10));
    assert_eq!(calls.recv_timeout(PATIENCE).unwrap(), [1, 2]);
}

// DataLoader | a cache for one request
#[test]
fn a_bound() {
    let map = DogpileMap::<u64, u64>::builder(Policy::ttl(TTL)).max_entries(10).build();
    (0..1_000).for_each(|key| drop(map.get_or_refresh(&key, |key| *key)));
    assert!(map.len() <= 10);
}

// DataLoader | an error of one key
#[test]
fn a_key_without_a_value() {
    let (map, _clock) = map();
    assert_eq!(map.get_many(&[1], |_| -> Nothing { Ok([]) }).unwrap(), [None]);
    assert!(map.get_many(&[1, 2], |_| -> Nothing { Err(String::from("down")) }).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| map.get(&1))).is_ok());
}

#[test]
fn each_row_has_a_test() {
    let readme = include_str!("../README.md");
    let section = readme.split("\n## Coming from\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let (mut heading, mut rows) = ("", Vec::new());
    for line in section.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            heading = title;
        } else if let Some(first) = line.strip_prefix("| ").and_then(|row| row.split(" | ").next())
            && first != "there"
        {
            rows.push(format!("// {heading} | {first}"));
        }
    }
    let tests: Vec<&str> = include_str!("coming_from.rs")
        .lines()
        .filter(|line| line.starts_with("// ") && line.contains(" | "))
        .collect();
    for row in &rows {
        assert!(tests.contains(&row.as_str()), "there is no test of: {row}");
    }
    for test in &tests {
        assert!(rows.iter().any(|row| row == test), "there is no such row: {test}");
    }
    assert!(rows.len() > 20);
}
