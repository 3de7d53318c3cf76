//! Many threads, few places, keys that fail, panic, stall and are cancelled, all writes at once: what must hold all the same.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, ManualClock, Policy, Tick};
use dogpile_map::DogpileMap;

/// A random number generator of Marsaglia's, so that a seed is a run.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// How many values live, and how many builds of each key run.
#[derive(Default)]
struct Census {
    alive: AtomicI64,
    builds: Mutex<HashMap<u64, u32>>,
}

struct Value {
    census: Arc<Census>,
}

impl Drop for Value {
    fn drop(&mut self) {
        self.census.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Census {
    fn value(self: &Arc<Self>) -> Value {
        self.alive.fetch_add(1, Ordering::Relaxed);
        Value { census: Arc::clone(self) }
    }
}

const KEYS: u64 = 40;
const ROUNDS: u64 = if cfg!(miri) { 30 } else { 20_000 };

/// Single flight per key holds through eviction, as long as nothing displaces a build: no `set`, no `clear`.
#[test]
fn no_key_is_built_twice_at_once_though_there_are_ten_places_for_forty_keys() {
    let census = Arc::new(Census::default());
    let clock = ManualClock::new();
    let policy = Policy::ttl(Duration::from_nanos(50)).retry_backoff(Duration::ZERO, Duration::ZERO);
    let map = DogpileMap::<u64, Value>::builder(policy).max_entries(10).clock(clock.clone()).build();
    let overlaps = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 1..=8 {
            let (map, census, clock, overlaps) = (&map, &census, &clock, &overlaps);
            scope.spawn(move || {
                let mut random = Random(seed * 0x9E37_79B9);
                let enter = |key: u64| {
                    let mut builds = census.builds.lock().unwrap();
                    let count = builds.entry(key).or_default();
                    *count += 1;
                    if *count > 1 {
                        overlaps.fetch_add(1, Ordering::Relaxed);
                    }
                };
                let leave = |key: u64| *census.builds.lock().unwrap().get_mut(&key).unwrap() -= 1;
                for _ in 0..ROUNDS {
                    let (key, what) = (random.next(KEYS), random.next(100));
                    let fate = random.next(10);
                    let build = |key: &u64| {
                        enter(*key);
                        if fate == 0 {
                            thread::yield_now();
                        }
                        leave(*key);
                        match fate {
                            1 => Err("down"),
                            2 => panic!("as asked"),
                            _ => Ok(census.value()),
                        }
                    };
                    match what {
                        0..60 => {
                            _ = catch_unwind(AssertUnwindSafe(|| {
                                map.try_get_or_refresh(&key, build).is_ok()
                            }));
                        }
                        60..70 => {
                            _ = catch_unwind(AssertUnwindSafe(|| {
                                map.request(&key).no_cache().try_get(build).is_ok()
                            }));
                        }
                        70..80 => {
                            let keys: Vec<u64> = (0..4).map(|_| random.next(KEYS)).collect();
                            let found = map.get_many(&keys, |due| {
                                for key in due {
                                    enter(*key);
                                }
                                for key in due {
                                    leave(*key);
                                }
                                Ok::<_, String>(
                                    due.iter().map(|key| (*key, census.value())).collect::<Vec<_>>(),
                                )
                            });
                            drop(found);
                        }
                        80..85 => map.invalidate(&key),
                        85 => map.invalidate_all(),
                        86 => _ = map.invalidate_if(|other, _| other % 3 == key % 3),
                        87..90 => clock.advance(Duration::from_nanos(random.next(30))),
                        _ => drop(map.get(&key)),
                    }
                }
            });
        }
    });
    assert_eq!(overlaps.into_inner(), 0);
    assert!(map.stats().evictions > 0 && map.stats().builds > ROUNDS);
    assert_eq!(map.stats().in_flight, 0);
    assert!(census.alive.load(Ordering::Relaxed) <= 10);
    drop(map);
    assert_eq!(census.alive.load(Ordering::Relaxed), 0);
}

/// Nothing hangs and nothing leaks, whatever is done.
#[test]
fn everything_at_once_leaks_nothing() {
    let census = Arc::new(Census::default());
    let clock = ManualClock::new();
    let policy = Policy::ttl(Duration::from_nanos(50))
        .retry_backoff(Duration::from_nanos(10), Duration::from_nanos(100));
    let builder =
        DogpileMap::<u64, Value>::builder(policy).max_entries(10).max_failing(8).clock(clock.clone());
    let map = builder.tags(|key, _| [format!("tag {}", key % 3)]).build();
    thread::scope(|scope| {
        for seed in 1..=8 {
            let (map, census, clock) = (&map, &census, &clock);
            scope.spawn(move || {
                let mut random = Random(seed * 0xA5A5_5A5A);
                for _ in 0..ROUNDS {
                    let (key, what, fate) = (random.next(KEYS), random.next(24), random.next(5));
                    let build = |_: &u64| if fate == 0 { Err("down") } else { Ok(census.value()) };
                    match what {
                        0..10 => drop(map.try_get_or_refresh(&key, build)),
                        10 => drop(map.set(key, census.value())),
                        11 => drop(map.clear(&key)),
                        12 => map.invalidate(&key),
                        13 => map.invalidate_tag(&format!("tag {}", key % 3)),
                        14 => drop(map.request(&key).max_age(Duration::from_nanos(20)).try_get(build)),
                        15 => drop(
                            map.request(&key)
                                .spawn_with(|job: dogpile::Job| {
                                    if fate != 1 {
                                        job();
                                    }
                                })
                                .try_get({
                                    let census = Arc::clone(census);
                                    move |_| Ok::<_, String>(census.value())
                                }),
                        ),
                        16 => clock.advance(Duration::from_nanos(random.next(60))),
                        17 => drop(map.get_many(&[key, key + 1], |due| {
                            Ok::<_, String>(
                                due.iter().skip(1).map(|key| (*key, census.value())).collect::<Vec<_>>(),
                            )
                        })),
                        18 => drop(map.restore(key, census.value(), Duration::from_nanos(random.next(100)))),
                        19 if fate == 0 => map.clear_all(),
                        _ => drop(map.get(&key)),
                    }
                }
            });
        }
    });
    clock.advance(Duration::from_secs(1));
    (0..1_000).for_each(|key| drop(map.get_or_refresh(&key, |_| census.value())));
    assert_eq!(map.stats().in_flight, 0);
    assert!(map.len() <= 10);
    let alive = census.alive.load(Ordering::Relaxed);
    assert!(alive <= 10, "{alive}");
    drop(map);
    assert_eq!(census.alive.load(Ordering::Relaxed), 0);
}

/// A clock that notices when it is asked under a lock: then another thread, which uses the same keys, cannot get on.
#[derive(Clone)]
struct Asking {
    time: ManualClock,
    ask: Arc<Mutex<Option<Ask>>>,
    is_busy: Arc<AtomicBool>,
}

impl Clock for Asking {
    fn now(&self) -> Tick {
        if !self.is_busy.swap(true, Ordering::SeqCst) {
            if let Some(ask) = &*self.ask.lock().unwrap() {
                ask();
            }
            self.is_busy.store(false, Ordering::SeqCst);
        }
        self.time.now()
    }
}

/// Uses every shard of the map from another thread; hangs if the caller holds a lock.
fn use_from_another_thread<C: Clock + Clone + 'static>(map: &DogpileMap<u64, Asks, C>) {
    let map = map.clone();
    let (done, is_done) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for key in 1_000..1_100 {
            map.invalidate(&key);
            drop(map.get(&key));
        }
        map.invalidate_tag("tag");
        let _ = map.stats();
        _ = done.send(());
    });
    assert!(is_done.recv_timeout(Duration::from_secs(20)).is_ok(), "user code runs under a lock");
}

type Ask = Arc<dyn Fn() + Send + Sync>;

/// A value whose drop uses the map.
struct Asks(Option<Ask>);

impl Drop for Asks {
    fn drop(&mut self) {
        if let Some(ask) = self.0.take() {
            ask();
        }
    }
}

/// Whatever makes the map let go of a value: its drop may use the map, and nothing is locked meanwhile.
#[test]
fn values_are_dropped_and_the_clock_is_asked_without_a_lock() {
    let asks = Arc::new(AtomicUsize::new(0));
    let time = ManualClock::new();
    let clock = Asking { time: time.clone(), ask: Arc::default(), is_busy: Arc::default() };
    let policy =
        Policy::ttl(Duration::from_secs(60)).retry_backoff(Duration::from_secs(1), Duration::from_secs(1));
    let map = DogpileMap::<u64, Asks, _>::builder(policy)
        .max_entries(8)
        .max_failing(4)
        .clock(clock.clone())
        .tags(|_, _| ["tag"])
        .build();
    let value = {
        let (map, asks) = (map.clone(), Arc::clone(&asks));
        let ask: Ask = Arc::new(move || {
            asks.fetch_add(1, Ordering::Relaxed);
            use_from_another_thread(&map);
        });
        move || Asks(Some(Arc::clone(&ask)))
    };
    {
        let map = map.clone();
        *clock.ask.lock().unwrap() = Some(Arc::new(move || use_from_another_thread(&map)));
    }
    let mut dropped = 0;
    let mut drops = |what: &str, run: &dyn Fn()| {
        run();
        let now = asks.load(Ordering::Relaxed);
        assert!(now > dropped, "{what} dropped nothing");
        dropped = now;
    };
    map.set(1, value());
    drops("a set", &|| drop(map.set(1, value())));
    drops("a set beside a flight", &|| {
        map.get_or_refresh(&2, |_| {
            map.set(2, value());
            value()
        });
    });
    drops("a rebuild", &|| drop(map.request(&1).no_cache().get(|_| value())));
    drops("a clear", &|| drop(map.clear(&1)));
    drops("a clear beside a flight", &|| {
        map.set(1, value());
        drop(map.request(&1).no_cache().get(|_| {
            drop(map.clear(&1));
            value()
        }));
        drop(map.clear(&1));
    });
    drops("evictions", &|| (0..100).for_each(|key| drop(map.get_or_refresh(&key, |_| value()))));
    drops("failures that are forgotten", &|| {
        for key in 0..100 {
            map.set(key, value());
            map.invalidate(&key);
            drop(map.try_get_or_refresh(&key, |_| Err::<Asks, _>("down")));
        }
        time.advance(Duration::from_secs(10));
        (0..100).for_each(|key| drop(map.get_or_refresh(&key, |_| value())));
    });
    drops("a loader that leaves a key out", &|| {
        map.set(1, value());
        map.invalidate(&1);
        drop(map.get_many(&[1], |_| Ok::<[(u64, Asks); 0], String>([])));
    });
    drops("an expired value", &|| {
        map.set(1, value());
        time.advance(Duration::from_secs(100));
        drop(map.get_or_refresh(&1, |_| value()));
    });
    *clock.ask.lock().unwrap() = None;
}
