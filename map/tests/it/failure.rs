//! Builds that fail: G5, G7, pauses, and what is left of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{ManualClock, Policy, RefreshError, Refreshed};
use dogpile_map::{DogpileMap, LeftOut};

use crate::support::{MINUTE, Map, SECOND, TICK, WaitingClock, builder, gate, map, minute, unexpected};

fn fails(map: &Map, key: u64) -> String {
    map.try_get_or_refresh(&key, |_| Err("down")).unwrap_err().to_string()
}

#[test]
fn an_error_beside_an_old_value_is_not_seen() {
    let (map, clock) = minute();
    map.set(1, 10);
    clock.advance(MINUTE + TICK);
    assert_eq!(*map.try_get_or_refresh(&1, |_| Err("down")).unwrap(), 10);
    // The pause runs.
    assert_eq!(*map.try_get_or_refresh(&1, unexpected::<Result<_, String>>).unwrap(), 10);
    assert_eq!(map.get(&1).as_deref(), Some(&10));
    clock.advance(SECOND);
    assert_eq!(*map.try_get_or_refresh(&1, |_| Ok::<_, String>(11)).unwrap(), 11);
    let stats = map.stats();
    assert_eq!((stats.failures, stats.builds, stats.in_flight), (1, 2, 0));
}

#[test]
fn without_stale_if_error_the_elected_caller_gets_the_error() {
    let (map, clock) = map(Policy::ttl(MINUTE).stale_if_error(Duration::ZERO));
    map.set(1, 10);
    clock.advance(MINUTE + TICK);
    assert_eq!(fails(&map, 1), "down");
    let many = map.get_many(&[1], |_| -> Result<[(u64, u64); 0], String> { unreachable!("the pause runs") });
    assert_eq!(many.unwrap()[0].as_deref(), Some(&10));
    clock.advance(MINUTE + TICK);
    let many = map.get_many(&[1], |_| Err::<[(u64, u64); 0], _>("down"));
    assert_eq!(many.unwrap_err().to_string(), "down");
}

#[test]
fn a_failing_key_pauses_longer_and_longer() {
    let (map, clock) = map(Policy::ttl(MINUTE).retry_backoff(SECOND, 8 * SECOND));
    let mut asked = Vec::new();
    for second in 0..60 {
        let mut was_asked = false;
        let result = map.try_get_or_refresh(&1, |_| {
            was_asked = true;
            Err::<u64, _>("down")
        });
        assert_eq!(result.unwrap_err().to_string(), "down");
        if was_asked {
            asked.push(second);
        }
        // Others come and go meanwhile.
        map.get_or_refresh(&(1_000 + second), |key| *key);
        clock.advance(SECOND);
    }
    assert_eq!(asked, [0, 1, 3, 7, 15, 23, 31, 39, 47, 55]);
}

#[test]
fn waiters_share_the_error_of_the_attempt_they_waited_for() {
    let clock = WaitingClock::new();
    let map = DogpileMap::<u64, u64>::builder(Policy::ttl(MINUTE)).clock(clock.clone()).build();
    let (gate, build) = gate::<Result<u64, String>>();
    thread::scope(|scope| {
        let first = scope.spawn(|| map.try_get_or_refresh(&1, |_| build()).unwrap_err());
        gate.wait_until_started();
        let wait =
            || map.request(&1).wait_at_most(MINUTE).try_get(unexpected::<Result<_, String>>).unwrap_err();
        let waiters: Vec<_> = (0..8).map(|_| scope.spawn(wait)).collect();
        clock.wait_for_waiters(8);
        gate.finish.send(Err(String::from("down"))).unwrap();
        let RefreshError::Build(first) = first.join().unwrap() else { panic!("it is the build's") };
        for waiter in waiters {
            let RefreshError::Build(error) = waiter.join().unwrap() else { panic!("it is the build's") };
            assert!(error.ptr_eq(&first));
        }
    });
    assert_eq!(map.stats().builds, 1);
}

#[test]
fn after_a_panic_one_of_the_waiters_builds() {
    let clock = WaitingClock::new();
    let map = DogpileMap::<u64, u64>::builder(Policy::ttl(MINUTE)).clock(clock.clone()).build();
    let (gate, build) = gate::<bool>();
    let builds = AtomicUsize::new(0);
    thread::scope(|scope| {
        let panics = || assert!(build(), "as asked");
        let first = scope.spawn(|| {
            catch_unwind(AssertUnwindSafe(|| {
                map.get_or_refresh(&1, |_| {
                    panics();
                    0
                })
            }))
            .is_err()
        });
        gate.wait_until_started();
        let wait = || {
            *map.request(&1).wait_at_most(MINUTE).get(|_| {
                builds.fetch_add(1, Ordering::Relaxed);
                11
            })
        };
        let waiters: Vec<_> = (0..8).map(|_| scope.spawn(wait)).collect();
        clock.wait_for_waiters(8);
        gate.finish.send(false).unwrap();
        assert!(first.join().unwrap());
        assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap() == 11));
    });
    assert_eq!((builds.into_inner(), map.stats().failures, map.stats().in_flight), (1, 1, 0));
}

#[test]
fn a_flood_of_unknown_keys_that_fail_leaves_no_lasting_memory() {
    const KEYS: u64 = if cfg!(miri) { 500 } else { 100_000 };
    let (builder, clock) = builder::<u64>(Policy::ttl(MINUTE));
    let map = builder.max_failing(64).build();
    let alive = Arc::new(());
    for key in 0..KEYS {
        let held = Held(Arc::clone(&alive));
        assert!(map.try_get_or_refresh(&key, |_| Err::<u64, _>(held)).is_err());
        assert!(map.stats().in_flight <= 2 * 64);
    }
    // Errors are kept for so many keys, and not longer than their pauses.
    assert!(Arc::strong_count(&alive) <= 2 * 64 + 1);
    clock.advance(MINUTE + TICK);
    for key in KEYS..KEYS + 1_000 {
        map.get_or_refresh(&key, |key| *key);
    }
    assert_eq!((map.stats().in_flight, Arc::strong_count(&alive)), (0, 1));
}

#[derive(Debug)]
struct Held(#[allow(dead_code)] Arc<()>);

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("unknown")
    }
}

impl std::error::Error for Held {}

#[test]
fn without_pauses_nothing_is_left_of_a_failure() {
    let (map, _clock) = map(Policy::ttl(MINUTE).retry_backoff(Duration::ZERO, Duration::ZERO));
    for key in 0..100 {
        fails(&map, key);
    }
    assert_eq!((map.stats().in_flight, map.stats().failures), (0, 100));
}

#[test]
fn a_value_that_is_set_ends_a_pause() {
    let (map, clock) = minute();
    fails(&map, 1);
    map.set(1, 10);
    assert_eq!(*map.get_or_refresh(&1, unexpected), 10);
    assert_eq!(map.stats().in_flight, 0);
    clock.advance(MINUTE + TICK);
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
}

/// Of a key whose build failed before that.
#[test]
fn a_key_that_is_left_out_after_a_failure_does_not_take_its_next_flight_along() {
    for is_many in [false, true] {
        let (map, clock) = map(Policy::ttl(MINUTE).retry_backoff(SECOND, SECOND));
        fails(&map, 1);
        clock.advance(SECOND);
        if is_many {
            assert_eq!(map.get_many(&[1], |_| Ok::<[(u64, u64); 0], String>([])).unwrap(), [None]);
        } else {
            assert!(map.try_get_or_refresh(&1, |_| Err(LeftOut::new())).unwrap_err().is::<LeftOut>());
        }
        assert_eq!(map.stats().in_flight, 0);
        thread::scope(|scope| {
            // Here, so that the build ends if this fails.
            let ((gate, build), map) = (gate(), &map);
            let first = scope.spawn(move || *map.get_or_refresh(&1, |_| build()));
            gate.wait_until_started();
            // The failure may be forgotten now, and each change looks for those.
            clock.advance(SECOND);
            map.invalidate(&1);
            assert_eq!(map.stats().in_flight, 1, "its build runs");
            map.set(1, 9);
            gate.finish.send(10).unwrap();
            assert_eq!(first.join().unwrap(), 9);
        });
        assert_eq!(map.get(&1).as_deref(), Some(&9), "the build began before that was set");
        assert_eq!((map.stats().in_flight, map.stats().builds), (0, 3));
    }
}

#[test]
fn clearing_a_failing_key_leaves_its_pause() {
    let (map, _clock) = minute();
    map.set(1, 10);
    map.invalidate(&1);
    assert_eq!(*map.try_get_or_refresh(&1, |_| Err("down")).unwrap(), 10);
    assert_eq!(map.clear(&1).as_deref(), Some(&10));
    assert!(map.try_get_or_refresh(&1, unexpected::<Result<_, String>>).is_err());
    // A call that can return no error builds.
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
}

#[test]
fn a_hot_failing_key_is_served_stale_by_many_threads() {
    let (map, clock): (Map, ManualClock) = minute();
    map.set(1, 10);
    clock.advance(MINUTE + TICK);
    assert_eq!(*map.try_get_or_refresh(&1, |_| Err("down")).unwrap(), 10);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    assert_eq!(*map.try_get_or_refresh(&1, unexpected::<Result<_, String>>).unwrap(), 10);
                }
            });
        }
    });
    clock.advance(MINUTE + TICK);
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
    assert_eq!(map.stats().in_flight, 0);
}

/// A minute fresh, ten seconds stale, no pauses. There is room for one key.
fn one_for_ten_seconds() -> (Map, ManualClock) {
    let policy = Policy::ttl(MINUTE).stale_while_refresh(10 * SECOND);
    let (builder, clock) = builder(policy.retry_backoff(Duration::ZERO, Duration::ZERO));
    (builder.max_entries(1).build(), clock)
}

#[test]
fn a_value_that_is_evicted_while_its_build_fails_does_not_come_back_after_its_end() {
    let (map, clock) = one_for_ten_seconds();
    map.set(1, 10);
    clock.advance(65 * SECOND);
    let failed = map.try_get_or_refresh(&1, |_| {
        clock.advance(35 * SECOND);
        map.set(2, 20);
        Err("down")
    });
    assert!(failed.is_err());
    assert_eq!(map.get(&1), None);
}

#[test]
fn a_value_that_is_evicted_while_its_build_fails_is_served_as_long_as_before() {
    let (map, clock) = one_for_ten_seconds();
    map.set(1, 10);
    clock.advance(62 * SECOND);
    let failed = map.try_get_or_refresh(&1, |_| {
        clock.advance(3 * SECOND);
        map.set(2, 20);
        Err("down")
    });
    assert_eq!(*failed.unwrap(), 10);
    clock.advance(5 * SECOND);
    assert_eq!(map.get(&1).as_deref(), Some(&10));
    clock.advance(SECOND);
    assert_eq!(map.get(&1), None);
}

#[test]
fn a_loader_that_fails_is_covered_by_stale_if_error_after_an_eviction_too() {
    let (map, clock) = one_for_ten_seconds();
    map.set(1, 10);
    clock.advance(65 * SECOND);
    let load = |_: &[u64]| {
        map.set(2, 20);
        Err::<[(u64, u64); 0], _>("down")
    };
    assert_eq!(map.get_many(&[1], load).unwrap()[0].as_deref(), Some(&10));
    clock.advance(6 * SECOND);
    map.set(2, 20);
    assert!(map.get_many(&[1], load).is_err());
}

#[test]
fn a_value_that_is_invalidated_as_it_is_renewed_is_stale_from_then_on() {
    let (map, clock) = one_for_ten_seconds();
    map.set(1, 10);
    clock.advance(65 * SECOND);
    let renewed = map.request(&1).try_get_with(|key, _| {
        map.invalidate(key);
        Ok::<_, String>(Refreshed::NotModified)
    });
    assert_eq!(*renewed.unwrap(), 10);
    clock.advance(10 * SECOND - TICK);
    assert_eq!(map.get(&1).as_deref(), Some(&10));
    clock.advance(TICK);
    assert_eq!(map.get(&1), None);
}
