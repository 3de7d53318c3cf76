//! Which caller builds, which wait, and what they are served: G1, G2, G6, G10, per key, and with eviction.

use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use dogpile::{Policy, RefreshError};
use dogpile_map::DogpileMap;

use crate::support::{MINUTE, SECOND, TICK, WaitingClock, builder, gate, map, minute, unexpected};

#[test]
fn a_fresh_value_is_not_built_again_and_a_stale_one_is() {
    let (map, clock) = minute();
    assert_eq!(*map.get_or_refresh(&1, |_| 10), 10);
    clock.advance(MINUTE);
    assert_eq!(*map.get_or_refresh(&1, unexpected), 10);
    clock.advance(TICK);
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
    let stats = map.stats();
    assert_eq!((stats.builds, stats.hits, stats.misses, stats.stale_hits, stats.in_flight), (2, 1, 2, 0, 0));
}

#[test]
fn an_expired_value_is_not_served() {
    let (map, clock) = map(Policy::ttl(MINUTE).stale_while_refresh(SECOND));
    map.set(1, 10);
    clock.advance(MINUTE + SECOND);
    assert_eq!(map.get(&1).as_deref(), Some(&10));
    clock.advance(TICK);
    assert_eq!(map.get(&1), None);
    assert_eq!(map.iter().count(), 0);
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
}

#[test]
fn keys_are_found_by_a_borrowed_form() {
    let map = DogpileMap::<String, usize>::builder(Policy::ttl(MINUTE)).build();
    assert_eq!(*map.get_or_refresh("four", |key: &String| key.len()), 4);
    assert_eq!(map.get("four").as_deref(), Some(&4));
    assert_eq!(map.with("four", |length| length + 1), Some(5));
    map.invalidate("four");
    assert_eq!(*map.request("four").get(|_| 5), 5);
    assert_eq!(map.clear("four").as_deref(), Some(&5));
}

#[test]
fn one_caller_builds_and_a_hundred_wait() {
    let (map, _clock) = minute();
    let (builds, barrier) = (AtomicUsize::new(0), Barrier::new(100));
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                barrier.wait();
                let value = map.get_or_refresh(&1, |_| builds.fetch_add(1, Ordering::Relaxed));
                assert_eq!(*value, 0);
            });
        }
    });
    assert_eq!((builds.into_inner(), map.stats().in_flight), (1, 0));
}

#[test]
fn with_a_ttl_of_zero_waiters_still_share_one_build() {
    let clock = WaitingClock::new();
    let policy = Policy::ttl(Duration::ZERO).stale_while_refresh(Duration::ZERO);
    let map = DogpileMap::<u64, u64>::builder(policy).clock(clock.clone()).build();
    let (gate, build) = gate();
    thread::scope(|scope| {
        let first = scope.spawn(|| *map.get_or_refresh(&1, |_| build()));
        gate.wait_until_started();
        let wait = || *map.request(&1).wait_at_most(MINUTE).get(unexpected);
        let waiters: Vec<_> = (0..8).map(|_| scope.spawn(wait)).collect();
        clock.wait_for_waiters(8);
        gate.finish.send(10).unwrap();
        assert_eq!(first.join().unwrap(), 10);
        assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap() == 10));
    });
    clock.advance(TICK);
    assert_eq!((map.get(&1), map.stats().in_flight), (None, 0));
}

#[test]
fn while_a_key_is_rebuilt_the_others_get_the_old_value() {
    let (map, clock) = minute();
    map.set(1, 10);
    clock.advance(MINUTE + TICK);
    let (gate, build) = gate();
    thread::scope(|scope| {
        let elected = scope.spawn(|| *map.get_or_refresh(&1, |_| build()));
        gate.wait_until_started();
        for _ in 0..1_000 {
            assert_eq!(*map.get_or_refresh(&1, unexpected), 10);
            assert_eq!(map.get(&1).as_deref(), Some(&10));
        }
        // Other keys are built meanwhile, also those of the same shard.
        for key in 2..200 {
            assert_eq!(*map.get_or_refresh(&key, |key| *key), key);
        }
        gate.finish.send(11).unwrap();
        assert_eq!(elected.join().unwrap(), 11);
    });
    assert_eq!((map.stats().stale_hits, map.stats().in_flight), (2_000, 0));
    assert_eq!(*map.get_or_refresh(&1, unexpected), 11);
}

#[test]
fn a_key_that_is_evicted_while_it_is_built_is_still_built_once() {
    let (builder, clock) = builder(Policy::ttl(MINUTE));
    let map = builder.max_entries(4).build();
    map.set(1, 10);
    clock.advance(MINUTE + TICK);
    let (gate, build) = gate();
    thread::scope(|scope| {
        let elected = scope.spawn(|| *map.get_or_refresh(&1, |_| build()));
        gate.wait_until_started();
        for key in 100..200 {
            map.set(key, key);
        }
        assert!(map.stats().evictions > 90);
        // The old value is served, though the store has lost it.
        assert_eq!(*map.get_or_refresh(&1, unexpected), 10);
        assert_eq!(map.get(&1).as_deref(), Some(&10));
        gate.finish.send(11).unwrap();
        assert_eq!(elected.join().unwrap(), 11);
    });
    assert_eq!((map.stats().builds, map.stats().in_flight), (1, 0));
    assert_eq!(map.get(&1).as_deref(), Some(&11));
}

#[test]
fn a_first_build_is_waited_for_through_evictions() {
    let (builder, _clock) = builder(Policy::ttl(MINUTE));
    let map = builder.max_entries(4).build();
    let (gate, build) = gate();
    thread::scope(|scope| {
        let elected = scope.spawn(|| *map.get_or_refresh(&1, |_| build()));
        gate.wait_until_started();
        let waiter = scope.spawn(|| *map.get_or_refresh(&1, unexpected));
        for key in 100..200 {
            map.set(key, key);
        }
        gate.finish.send(11).unwrap();
        assert_eq!((elected.join().unwrap(), waiter.join().unwrap()), (11, 11));
    });
}

#[test]
fn the_bound_is_kept() {
    let (builder, _clock) = builder(Policy::ttl(MINUTE));
    let map = builder.max_entries(100).build();
    for key in 0..10_000 {
        map.get_or_refresh(&key, |key| *key);
        assert!(map.len() <= 100);
    }
    assert!(map.len() > 50);
    assert_eq!(map.stats().evictions, 10_000 - map.len() as u64);
}

#[test]
fn weights_bound_what_is_kept() {
    let (builder, _clock) = builder::<Vec<u8>>(Policy::ttl(MINUTE));
    let map = builder.max_weight(10_000, |_, bytes| u32::try_from(bytes.len()).unwrap()).build();
    for key in 0..1_000 {
        map.get_or_refresh(&key, |key| vec![0; usize::try_from(key % 100).unwrap()]);
        assert!(map.weight() <= 10_000);
    }
    let weight: usize = map.iter().map(|(_, bytes)| bytes.len().max(1)).sum();
    assert_eq!(map.weight(), weight as u64);
    assert!(weight > 5_000, "{weight}");
    // Too heavy to be kept, but built and returned all the same.
    assert_eq!(map.get_or_refresh(&7_777, |_| vec![0; 20_000]).len(), 20_000);
    assert_eq!(map.get(&7_777), None);
}

#[test]
fn a_build_that_asks_for_its_own_key_gets_the_old_value_or_an_error() {
    let (map, clock) = minute::<u64>();
    let inner = map.clone();
    let error =
        map.try_get_or_refresh(&1, |_| inner.try_get_or_refresh(&1, |_| Ok::<_, String>(1)).map(|v| *v));
    assert!(matches!(error, Err(RefreshError::Build(_))));
    let panic = catch_unwind(AssertUnwindSafe(|| map.get_or_refresh(&2, |_| *map.get_or_refresh(&2, |_| 1))));
    let message = *panic.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("from inside the build"), "{message}");
    map.set(3, 10);
    clock.advance(MINUTE + TICK);
    assert_eq!(*map.get_or_refresh(&3, |_| *map.get_or_refresh(&3, unexpected) + 1), 11);
    // Another key is no matter.
    assert_eq!(*map.get_or_refresh(&4, |_| *map.get_or_refresh(&5, |_| 5) + 1), 6);
}

#[test]
fn a_value_is_dropped_when_it_is_replaced_and_its_last_reader_has_left() {
    let (map, _clock) = minute::<Arc<()>>();
    let value = Arc::new(());
    map.get_or_refresh(&1, |_| Arc::clone(&value));
    let reader = map.get(&1);
    assert_eq!(Arc::strong_count(&value), 2);
    map.set(1, Arc::new(()));
    assert_eq!(Arc::strong_count(&value), 2);
    drop(reader);
    assert_eq!(Arc::strong_count(&value), 1);
}

#[test]
fn ages_from_before_the_clock_began_are_kept() {
    let (map, clock) = map(Policy::ttl(100 * MINUTE).stale_while_refresh(10 * MINUTE));
    map.restore(1, 10, 99 * MINUTE);
    assert_eq!(*map.get_or_refresh(&1, unexpected), 10);
    clock.advance(MINUTE + TICK);
    assert_eq!(*map.request(&1).or_stale().get(|_| 11), 11);
    map.restore(2, 10, 109 * MINUTE);
    assert_eq!(map.get(&2).as_deref(), Some(&10));
    clock.advance(MINUTE + TICK);
    assert_eq!(map.get(&2), None);
    map.restore(3, 10, 1_000_000 * MINUTE);
    assert_eq!(map.get(&3), None);
}

#[test]
fn jitter_shortens_the_ttl_by_a_share_of_its_own_for_each_key() {
    let (map, clock) = map(Policy::ttl(100 * SECOND).jitter(50));
    for key in 0..100 {
        map.get_or_refresh(&key, |_| 0);
    }
    for key in 100..200 {
        map.set(key, 0);
    }
    // Of those that are built, and of those that are set.
    let fresh = || {
        let is_fresh = |key: &u64| *map.request(key).max_stale(Duration::ZERO).get(|_| 1) == 0;
        [(0..100).filter(is_fresh).count(), (100..200).filter(is_fresh).count()]
    };
    clock.advance(49 * SECOND);
    assert_eq!(fresh(), [100, 100]);
    clock.advance(26 * SECOND);
    let left = fresh();
    assert!(left.iter().all(|left| (20..80).contains(left)), "{left:?}");
    clock.advance(26 * SECOND);
    assert_eq!(fresh(), [0, 0]);
}

#[test]
fn jitter_lengthens_the_pauses_of_a_key_by_a_share_of_its_own() {
    let pause = 100 * SECOND;
    let (map, clock) = map(Policy::ttl(MINUTE).retry_backoff(pause, pause).jitter(50));
    for key in 0..100 {
        assert!(map.try_get_or_refresh(&key, |_| Err("down")).is_err());
    }
    let asked = || (0..100).filter(|key| map.try_get_or_refresh(key, |_| Ok::<_, String>(1)).is_ok()).count();
    clock.advance(99 * SECOND);
    assert_eq!(asked(), 0);
    clock.advance(26 * SECOND);
    let some = asked();
    assert!((20..80).contains(&some), "{some}");
    clock.advance(26 * SECOND);
    assert_eq!(asked(), 100);
}

#[test]
fn a_map_is_shared_by_threads_if_its_keys_and_values_may_be() {
    fn is_shared<T: Send + Sync + Clone + 'static>() {}
    fn is_sent<T: Send + Sync + 'static>() {}
    is_shared::<DogpileMap<String, Vec<u8>>>();
    is_shared::<DogpileMap<u64, std::sync::Mutex<std::cell::Cell<u8>>>>();
    is_sent::<dogpile_map::Batches>();
    is_sent::<dogpile_map::Stats>();
    is_sent::<dogpile_map::LeftOut>();
}

/// As a cell.
#[test]
fn a_map_may_be_used_after_a_panic() {
    fn assert<T: UnwindSafe + RefUnwindSafe>() {}
    assert::<DogpileMap<String, u64>>();
    let map = DogpileMap::<u64, u64>::builder(Policy::ttl(MINUTE)).build();
    assert!(catch_unwind(|| map.get_or_refresh(&1, unexpected)).is_err());
    assert_eq!(*map.get_or_refresh(&1, |_| 10), 10);
}
