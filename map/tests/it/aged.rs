//! Values that are old already when they are published: `Refreshed::Aged`, `restore`.

use std::time::Duration;

use dogpile::{Policy, Refreshed};

use crate::support::{MINUTE, Map, SECOND, TICK, map, unexpected};

/// A minute fresh, then stale for ten seconds.
fn limited() -> (Map, dogpile::ManualClock) {
    map(Policy::ttl(MINUTE).stale_while_refresh(10 * SECOND))
}

fn build(map: &Map, value: u64, age: Duration, ttl: Option<Duration>) -> u64 {
    let aged = |_: &u64, _| Ok::<_, String>(Refreshed::Aged { value, age, ttl });
    *map.request(&1).no_cache().try_get_with(aged).unwrap()
}

#[test]
fn a_build_that_says_how_old_its_value_is_shortens_its_life_by_that() {
    for (age, ttl, fresh_for, served_for) in [
        (Duration::ZERO, None, MINUTE, 70 * SECOND),
        (20 * SECOND, None, 40 * SECOND, 50 * SECOND),
        (20 * SECOND, Some(30 * SECOND), 10 * SECOND, 20 * SECOND),
        (MINUTE, None, Duration::ZERO, 10 * SECOND),
    ] {
        let (map, clock) = limited();
        assert_eq!(build(&map, 7, age, ttl), 7);
        clock.advance(fresh_for);
        assert_eq!(*map.get_or_refresh(&1, unexpected), 7);
        clock.advance(served_for - fresh_for);
        assert_eq!(map.get(&1).as_deref(), Some(&7), "{age:?} of {ttl:?}");
        clock.advance(TICK);
        assert_eq!(map.get(&1), None, "{age:?} of {ttl:?}");
        assert_eq!(*map.get_or_refresh(&1, |_| 8), 8);
    }
}

#[test]
fn what_is_stale_when_it_is_built_is_served_for_what_is_left_of_its_window() {
    let (map, clock) = limited();
    assert_eq!(build(&map, 7, MINUTE + 4 * SECOND + TICK, None), 7);
    for _ in 0..5 {
        assert_eq!(map.get(&1).as_deref(), Some(&7));
        // A build that fails copies it once more.
        assert_eq!(*map.try_get_or_refresh(&1, |_| Err::<u64, _>("no")).unwrap(), 7);
        clock.advance(SECOND);
    }
    clock.advance(SECOND - TICK);
    assert_eq!(map.get(&1).as_deref(), Some(&7));
    clock.advance(TICK);
    assert_eq!(map.get(&1), None);
    assert!(map.try_get_or_refresh(&1, |_| Err::<u64, _>("no")).is_err());
}

#[test]
fn what_has_expired_when_it_is_built_is_for_its_own_caller() {
    let (map, _clock) = limited();
    assert_eq!(build(&map, 7, 70 * SECOND + TICK, None), 7);
    assert_eq!((map.get(&1), map.len()), (None, 0));
    assert_eq!(*map.get_or_refresh(&1, |_| 8), 8);
}

#[test]
fn max_age_counts_from_when_the_value_was_made() {
    let (map, clock) = limited();
    build(&map, 7, 20 * SECOND, None);
    clock.advance(SECOND);
    assert_eq!(*map.request(&1).max_age(21 * SECOND).get(unexpected), 7);
    assert_eq!(*map.request(&1).max_age(20 * SECOND).get(|_| 8), 8);
}

#[test]
fn a_stale_value_that_was_restored_beside_a_build_was_served_from_then_on() {
    // Without a pause no flight outlasts the build that fails.
    let policy = Policy::ttl(MINUTE).stale_while_refresh(10 * SECOND);
    let (map, clock) = map(policy.retry_backoff(Duration::ZERO, Duration::ZERO));
    let fails = |_: &u64| {
        map.restore(1, 7, MINUTE + 4 * SECOND + TICK);
        Err::<u64, _>("no")
    };
    assert_eq!(*map.try_get_or_refresh(&1, fails).unwrap(), 7);
    clock.advance(6 * SECOND - TICK);
    assert_eq!(map.get(&1).as_deref(), Some(&7));
    clock.advance(TICK);
    assert_eq!(map.get(&1), None);
}
