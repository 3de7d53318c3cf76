//! Writes beside a build that runs: G3, G4.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, ManualClock, Policy, RefreshError, Tick};
use dogpile_map::DogpileMap;

use crate::support::{MINUTE, Map, TICK, builder, gate, map, minute, strict, unexpected};

/// Runs a build of key 1, lets `meanwhile` happen, ends the build with 10, and returns what its caller got.
fn beside(map: &Map, meanwhile: impl FnOnce()) -> u64 {
    let (gate, build) = gate();
    thread::scope(|scope| {
        let elected = scope.spawn(|| *map.get_or_refresh(&1, |_| build()));
        gate.wait_until_started();
        meanwhile();
        gate.finish.send(10).unwrap();
        elected.join().unwrap()
    })
}

fn tagged() -> Map {
    builder(Policy::ttl(MINUTE)).0.tags(|_, _| ["tag"]).build()
}

#[test]
fn a_build_that_was_invalidated_is_stale() {
    type Invalidate = fn(&Map);
    let ways: [(&str, Invalidate); 4] = [
        ("invalidate", |map| map.invalidate(&1)),
        ("invalidate_all", |map| map.invalidate_all()),
        ("invalidate_tag", |map| map.invalidate_tag("tag")),
        ("invalidate_if", |map| _ = map.invalidate_if(|_, _| false)),
    ];
    for (name, invalidate) in ways {
        let map = tagged();
        assert_eq!(beside(&map, || invalidate(&map)), 10, "{name}");
        assert_eq!(map.get(&1).as_deref(), Some(&10), "{name}");
        assert_eq!(*map.get_or_refresh(&1, |_| 11), 11, "{name}");
        assert_eq!(*map.get_or_refresh(&1, unexpected), 11, "{name}");
        assert_eq!(map.stats().in_flight, 0, "{name}");
    }
}

/// The flight outlives the build here: it has another user.
#[test]
fn a_build_that_was_invalidated_is_stale_also_for_those_who_find_it_in_the_flight() {
    for by_tag in [false, true] {
        let map = tagged();
        let ((first, build), (second, other_build)) = (gate(), gate());
        let other_build = Mutex::new(Some(other_build));
        thread::scope(|scope| {
            let elected = scope.spawn(|| *map.get_or_refresh(&1, |_| build()));
            first.wait_until_started();
            // It waits for key 1, but loads key 2 first.
            let many = scope.spawn(|| {
                map.get_many(&[1, 2], |due| {
                    assert_eq!(due, [2]);
                    let build = other_build.lock().unwrap().take().unwrap();
                    Ok::<_, String>([(2, build())])
                })
            });
            second.wait_until_started();
            if by_tag {
                map.invalidate_tag("tag");
            } else {
                map.invalidate_all();
            }
            first.finish.send(10).unwrap();
            assert_eq!(elected.join().unwrap(), 10);
            assert_eq!(map.stats().in_flight, 2);
            assert_eq!(*map.request(&1).max_stale(Duration::ZERO).get(|_| 11), 11);
            assert_eq!(*map.get_or_refresh(&1, unexpected), 11);
            second.finish.send(20).unwrap();
            let found = many.join().unwrap().unwrap();
            assert_eq!(found.iter().map(|value| **value.as_ref().unwrap()).collect::<Vec<_>>(), [11, 20]);
        });
        assert_eq!(map.stats().in_flight, 0);
    }
}

/// The same for a value that is not in the store: it was evicted.
#[test]
fn a_value_that_only_a_flight_holds_is_invalidated_by_a_condition() {
    let map = builder(Policy::ttl(MINUTE)).0.max_entries(4).build();
    let ((first, build), (second, other_build)) = (gate(), gate());
    let other_build = Mutex::new(Some(other_build));
    thread::scope(|scope| {
        let elected = scope.spawn(|| *map.get_or_refresh(&1, |_| build()));
        first.wait_until_started();
        // It waits for key 1, but loads key 2 first.
        let many = scope.spawn(|| {
            map.get_many(&[1, 2], |due| {
                assert_eq!(due, [2]);
                let build = other_build.lock().unwrap().take().unwrap();
                Ok::<_, String>([(2, build())])
            })
        });
        second.wait_until_started();
        first.finish.send(10).unwrap();
        assert_eq!(elected.join().unwrap(), 10);
        (100..200).for_each(|key| drop(map.set(key, key)));
        assert!(map.iter().all(|(key, _)| key != 1));
        assert_eq!(map.get(&1).as_deref(), Some(&10));
        assert_eq!(map.invalidate_if(|key, value| (*key, *value) == (1, 11)), 0);
        assert_eq!(*map.request(&1).max_stale(Duration::ZERO).get(unexpected), 10);
        assert_eq!(map.invalidate_if(|key, value| (*key, *value) == (1, 10)), 1);
        assert_eq!(*map.request(&1).max_stale(Duration::ZERO).get(|_| 11), 11);
        second.finish.send(20).unwrap();
        many.join().unwrap().unwrap();
    });
    assert_eq!(map.stats().in_flight, 0);
}

#[test]
fn a_build_is_stale_if_its_key_was_evicted_and_invalidated() {
    let (builder, clock) = builder(Policy::ttl(MINUTE));
    let map = builder.max_entries(4).build();
    map.set(1, 9);
    clock.advance(MINUTE + TICK);
    beside(&map, || {
        (100..200).for_each(|key| drop(map.set(key, key)));
        map.invalidate(&1);
    });
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
}

#[test]
fn a_build_that_was_cleared_goes_to_its_caller_only() {
    for all in [false, true] {
        let (map, _clock) = minute();
        let seen = beside(&map, || {
            if all {
                map.clear_all();
            } else {
                drop(map.clear(&1));
            }
            assert_eq!(map.get(&1), None);
        });
        assert_eq!((seen, map.get(&1), map.stats().in_flight), (10, None, 0));
    }
}

#[test]
fn waiters_of_a_cleared_build_build_anew_at_once() {
    for all in [false, true] {
        let (map, _clock) = minute();
        let (gate, build) = gate();
        thread::scope(|scope| {
            let doomed = scope.spawn(|| *map.get_or_refresh(&1, |_| build()));
            gate.wait_until_started();
            let waiter = scope.spawn(|| *map.get_or_refresh(&1, |_| 11));
            // Before or after the waiter has come: it does not wait for the doomed build.
            if all {
                map.clear_all();
            } else {
                drop(map.clear(&1));
            }
            assert_eq!(waiter.join().unwrap(), 11);
            assert_eq!(map.get(&1).as_deref(), Some(&11));
            gate.finish.send(10).unwrap();
            assert_eq!(doomed.join().unwrap(), 11);
        });
        assert_eq!((map.get(&1).as_deref(), map.stats().in_flight), (Some(&11), 0));
    }
}

#[test]
fn a_value_that_was_set_is_not_displaced() {
    let (map, _clock) = minute();
    assert_eq!(beside(&map, || drop(map.set(1, 11))), 11);
    assert_eq!(*map.get_or_refresh(&1, unexpected), 11);
    // Also of an evicted key.
    let (builder, _clock) = builder(Policy::ttl(MINUTE));
    let map = builder.max_entries(4).build();
    beside(&map, || {
        map.set(1, 11);
        (100..200).for_each(|key| drop(map.set(key, key)));
    });
    assert_eq!(map.get(&1).as_deref(), Some(&11));
}

#[test]
fn a_restored_value_is_displaced() {
    let (map, _clock) = minute();
    assert_eq!(beside(&map, || drop(map.restore(1, 9, 2 * MINUTE))), 10);
    assert_eq!(*map.get_or_refresh(&1, unexpected), 10);
}

/// One key, one writer whose numbers grow, and readers: what a reader sees is never older than what it has seen before (G3),
/// nor than a write that had returned before it asked. With other keys that evict this one, or without.
#[test]
fn no_thread_sees_the_new_value_and_then_the_old_one() {
    let rounds = if cfg!(miri) { 20 } else { 2_000 };
    for evicts in [false, true] {
        let (builder, _clock) = builder(Policy::ttl(MINUTE).retry_backoff(Duration::ZERO, Duration::ZERO));
        let map = builder.max_entries(if evicts { 2 } else { 16 }).build();
        map.set(1, 0);
        let written = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut last = 0;
                    while written.load(Ordering::Acquire) < rounds {
                        let refresh =
                            || map.try_get_or_refresh(&1, |_| Err("only the writer has a newer one")).ok();
                        for read in [&refresh as &dyn Fn() -> _, &|| map.get(&1), &|| map.get(&1)] {
                            let returned = written.load(Ordering::Acquire);
                            let Some(seen) = read() else {
                                assert!(evicts, "nothing takes it away");
                                continue;
                            };
                            assert!(*seen >= last, "{seen} after {last}");
                            assert!(*seen >= returned, "{seen} though the write of {returned} had returned");
                            last = *seen;
                        }
                    }
                });
            }
            if evicts {
                scope.spawn(|| {
                    for key in (100..200).cycle() {
                        if written.load(Ordering::Acquire) >= rounds {
                            break;
                        }
                        map.set(key, 0);
                    }
                });
            }
            scope.spawn(|| {
                for round in 1..=rounds {
                    match round % 4 {
                        0 => drop(map.set(1, round)),
                        1 => drop(map.request(&1).no_cache().get(|_| round)),
                        2 => drop(map.request(&1).max_age(Duration::ZERO).no_cache().get(|_| round)),
                        _ => {
                            map.invalidate(&1);
                            map.set(1, round);
                        }
                    }
                    written.store(round, Ordering::Release);
                }
            });
        });
        assert_eq!(map.stats().in_flight, 0);
    }
}

/// With the policy [`strict`]: while key 1 is in flight, all keys are invalidated; then `look` runs.
fn invalidated_in_flight<C: Clock + Clone + 'static>(
    map: &DogpileMap<u64, u64, C>,
    invalidate: impl FnOnce(),
    look: impl FnOnce(),
) {
    let (gate, build) = gate();
    map.set(1, 1);
    thread::scope(|scope| {
        // Dropped if `look` panics: then the build ends too.
        let gate = gate;
        scope.spawn(|| map.request(&1).no_cache().get(|_| build()));
        gate.wait_until_started();
        invalidate();
        look();
        gate.finish.send(2).unwrap();
    });
}

#[test]
fn what_was_invalidated_is_not_handed_out_by_a_flight() {
    for by_tag in [false, true] {
        let map = builder(strict()).0.tags(|_, _| ["tag"]).build();
        let invalidate = || if by_tag { map.invalidate_tag("tag") } else { map.invalidate_all() };
        invalidated_in_flight(&map, invalidate, || {
            assert_eq!(map.get(&1), None);
            assert_eq!(map.with(&1, |value| *value), None);
            assert_eq!(map.iter().count(), 0);
        });
    }
}

#[test]
fn what_was_invalidated_is_not_served_to_a_loader_that_asks_for_its_own_key() {
    let (map, _clock) = map(strict());
    let found = map.get_many(&[1], |_| {
        map.set(1, 1);
        map.invalidate_all();
        let error = map.try_get_or_refresh(&1, |_| Ok::<_, String>(2)).unwrap_err();
        assert!(matches!(error, RefreshError::Reentrant), "{error}");
        Ok::<_, String>([(1, 3)])
    });
    assert!(found.is_ok());
}

/// Calls a function each time it is asked.
#[derive(Clone)]
struct HookedClock {
    time: ManualClock,
    hook: Arc<dyn Fn() + Send + Sync>,
}

impl Clock for HookedClock {
    fn now(&self) -> Tick {
        (self.hook)();
        self.time.now()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        self.time.park_until(deadline, now);
    }
}

thread_local! {
    /// How often this thread asks the clock until the hook acts.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// One reader looks at the cell; before it goes on, the other one finds the value out of date, and declares it stale.
#[test]
fn of_two_readers_neither_is_served_what_was_invalidated() {
    fn read(map: &DogpileMap<u64, u64, HookedClock>) -> Result<Arc<u64>, RefreshError> {
        let request = map.request(&1).max_stale(Duration::ZERO).wait_at_most(Duration::ZERO);
        request.try_get(unexpected::<Result<_, String>>)
    }
    for nth in 0.. {
        let shared = Arc::new(OnceLock::<DogpileMap<u64, u64, HookedClock>>::new());
        let other = Arc::clone(&shared);
        let hook = Arc::new(move || match LEFT.take() {
            None => {}
            Some(0) => {
                let map = other.get().unwrap().clone();
                assert!(thread::spawn(move || read(&map)).join().unwrap().is_err());
            }
            Some(left) => LEFT.set(Some(left - 1)),
        });
        let clock = HookedClock { time: ManualClock::new(), hook };
        let map = shared.get_or_init(|| DogpileMap::builder(strict()).clock(clock).build());
        let mut has_acted = false;
        invalidated_in_flight(
            map,
            || map.invalidate_all(),
            || {
                LEFT.set(Some(nth));
                let found = read(map);
                has_acted = LEFT.take().is_none();
                assert!(found.is_err(), "{found:?}, where the clock is asked for the time no. {nth}");
            },
        );
        if !has_acted {
            assert!(nth > 0);
            break;
        }
    }
}

/// The build's call looks at the clock once more when its value is published already, and before it copies that to the store.
#[test]
fn what_is_built_beside_a_restored_value_replaces_it_for_all_at_once() {
    thread_local! {
        static LOOKS: Cell<bool> = const { Cell::new(false) };
    }
    let seen: Arc<Mutex<Vec<Option<u64>>>> = Arc::default();
    let place: Arc<OnceLock<DogpileMap<u64, u64, HookedClock>>> = Arc::default();
    let hook = {
        let (seen, place) = (Arc::clone(&seen), Arc::clone(&place));
        move || {
            // The look asks the clock in turn.
            if LOOKS.take() {
                seen.lock().unwrap().push(place.get().unwrap().get(&1).map(|value| *value));
                LOOKS.set(true);
            }
        }
    };
    let clock = HookedClock { time: ManualClock::new(), hook: Arc::new(hook) };
    let map = place.get_or_init(|| DogpileMap::builder(Policy::ttl(MINUTE)).clock(clock).build());
    map.get_or_refresh(&1, |_| {
        map.restore(1, 10, Duration::ZERO);
        LOOKS.set(true);
        20
    });
    LOOKS.set(false);
    let seen = seen.lock().unwrap();
    assert_eq!((seen.first(), seen.last()), (Some(&Some(10)), Some(&Some(20))));
    assert!(seen.is_sorted(), "{seen:?}");
}
