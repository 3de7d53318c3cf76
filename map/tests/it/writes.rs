//! `set`, `invalidate`, `clear`, one key and many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use dogpile::{Policy, Refreshed};

use crate::support::{MINUTE, SECOND, TICK, builder, gate, map, minute, unexpected};

#[test]
fn a_stale_window_begins_when_a_value_is_invalidated() {
    let (map, clock) = map(Policy::ttl(100 * MINUTE).stale_while_refresh(MINUTE));
    for (key, invalidate) in [(1, 0), (2, 1), (3, 2)] {
        map.set(key, 10);
        clock.advance(SECOND);
        match invalidate {
            0 => map.invalidate(&key),
            1 => map.invalidate_all(),
            _ => assert_eq!(map.invalidate_if(|other, _| *other == key), 1),
        }
        clock.advance(59 * SECOND);
        assert_eq!(map.get(&key).as_deref(), Some(&10), "{key}");
        clock.advance(SECOND);
        assert_eq!(map.get(&key), None, "{key}");
    }
}

/// Not when a reader of the flight notices.
#[test]
fn a_stale_window_of_a_key_in_flight_begins_when_many_are_invalidated() {
    for is_tag in [false, true] {
        let (builder, clock) = builder(Policy::ttl(100 * MINUTE).stale_while_refresh(MINUTE));
        let map = builder.tags(|_, _| ["all"]).build();
        map.set(1, 10);
        thread::scope(|scope| {
            // Here, so that the build ends if this fails.
            let ((gate, build), map) = (gate(), &map);
            let first = scope.spawn(move || *map.request(&1).no_cache().get(|_| build()));
            gate.wait_until_started();
            if is_tag {
                map.invalidate_tag("all");
            } else {
                map.invalidate_all();
            }
            clock.advance(MINUTE - TICK);
            assert_eq!(map.get(&1).as_deref(), Some(&10));
            clock.advance(TICK);
            assert_eq!(map.get(&1), None);
            gate.finish.send(11).unwrap();
            assert_eq!(first.join().unwrap(), 11);
        });
        // It began before the invalidation, and is served from its publication on.
        clock.advance(MINUTE - TICK);
        assert_eq!(map.get(&1).as_deref(), Some(&11));
        clock.advance(TICK);
        assert_eq!(map.get(&1), None);
    }
}

#[test]
fn what_is_invalidated_twice_is_not_served_longer() {
    let (map, clock) = map(Policy::ttl(100 * MINUTE).stale_while_refresh(MINUTE));
    map.set(1, 10);
    map.invalidate(&1);
    clock.advance(30 * SECOND);
    map.invalidate(&1);
    clock.advance(29 * SECOND);
    assert_eq!(map.get(&1).as_deref(), Some(&10));
    clock.advance(SECOND);
    assert_eq!(map.get(&1), None);
}

#[test]
fn clear_all_takes_all_and_a_later_invalidation_brings_nothing_back() {
    let (map, _clock) = minute();
    for key in 0..100 {
        map.set(key, key);
    }
    map.clear_all();
    assert!((0..100).all(|key| map.get(&key).is_none()));
    map.invalidate(&1);
    map.invalidate_all();
    assert_eq!(map.get(&1), None);
    assert_eq!(map.clear(&2), None);
    assert_eq!(map.iter().count(), 0);
    // What is set afterwards can be invalidated, and is stale then, not gone.
    map.set(1, 11);
    map.invalidate(&1);
    assert_eq!(map.get(&1).as_deref(), Some(&11));
    assert_eq!(*map.get_or_refresh(&1, |_| 12), 12);
}

#[test]
fn tags_are_invalidated_together_and_apart() {
    let (builder, _clock) = builder::<u64>(Policy::ttl(MINUTE));
    let map = builder.tags(|key, value| [format!("key {}", key % 2), format!("value {value}")]).build();
    for key in 0..10 {
        map.get_or_refresh(&key, |key| key / 5);
    }
    map.invalidate_tag("key 1");
    map.invalidate_tag("nothing has this");
    for key in 0..10 {
        let expected = if key % 2 == 1 { 7 } else { key / 5 };
        assert_eq!(*map.get_or_refresh(&key, |_| 7), expected);
    }
    map.invalidate_tag("value 1");
    let rebuilt = (0..10).filter(|key| *map.get_or_refresh(key, |_| 8) == 8).count();
    assert_eq!(rebuilt, 2); // 6 and 8
    map.invalidate_tag("value 7");
    let rebuilt = (0..10).filter(|key| *map.get_or_refresh(key, |_| 9) == 9).count();
    assert_eq!(rebuilt, 5);
}

#[test]
fn a_value_that_has_been_renewed_may_be_invalidated_by_its_tag() {
    let (builder, _clock) = builder::<u64>(Policy::ttl(MINUTE));
    let map = builder.tags(|_, _| ["all"]).build();
    let first = map.set(1, 10);
    for _ in 0..3 {
        map.invalidate_tag("all");
        let renewed = map.request(&1).try_get_with(|_, previous| {
            assert!(Arc::ptr_eq(&previous.unwrap(), &first));
            Ok::<_, String>(Refreshed::NotModified)
        });
        assert!(Arc::ptr_eq(&renewed.unwrap(), &first));
        assert_eq!(*map.get_or_refresh(&1, unexpected), 10);
    }
}

#[test]
fn a_condition_may_use_the_map() {
    let (map, _clock) = minute();
    for key in 0..100 {
        map.set(key, key);
    }
    let count = map.invalidate_if(|key, value| {
        map.set(1_000 + key, 0);
        *value < 50 && *key < 100
    });
    assert!(count >= 50, "{count}");
    assert_eq!(*map.get_or_refresh(&49, |_| 0), 0);
    assert_eq!(*map.get_or_refresh(&50, unexpected), 50);
}

#[test]
fn only_the_current_value_is_invalidated_if_asked_so() {
    let (map, _clock) = minute();
    let first = map.set(1, 10);
    assert!(map.invalidate_if_current(&1, &first));
    assert!(!map.invalidate_if_current(&1, &first));
    assert!(!map.invalidate_if_current(&2, &first));
    map.set(1, 11);
    assert!(!map.invalidate_if_current(&1, &first));
    assert_eq!(*map.get_or_refresh(&1, unexpected), 11);
}

#[test]
fn a_ttl_of_its_own_is_kept_through_a_flight() {
    let (map, clock) = minute();
    map.set_for(1, 10, 10 * MINUTE);
    // In flight for a moment, without a new value.
    assert!(map.request(&1).no_cache().try_get(|_| Err("down")).is_err());
    clock.advance(9 * MINUTE);
    assert_eq!(*map.get_or_refresh(&1, unexpected), 10);
    clock.advance(MINUTE + TICK);
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
}

#[test]
fn a_value_is_weighed_and_tagged_each_time_it_is_made_or_renewed() {
    let calls = Arc::new(AtomicUsize::new(0));
    let (weighed, tagged) = (Arc::clone(&calls), Arc::clone(&calls));
    let (builder, _clock) = builder::<u64>(Policy::ttl(MINUTE));
    let map = builder
        .max_weight(100, move |_, _| {
            weighed.fetch_add(1, Ordering::Relaxed);
            1
        })
        .tags(move |_, _| {
            tagged.fetch_add(1, Ordering::Relaxed);
            ["tag"]
        })
        .build();
    map.get_or_refresh(&1, |_| 10);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    map.invalidate(&1);
    map.request(&1).try_get_with(|_, _| Ok::<_, String>(Refreshed::NotModified)).unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 4);
    map.get_or_refresh(&1, unexpected);
    assert_eq!(calls.load(Ordering::Relaxed), 4);
}
