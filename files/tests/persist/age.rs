//! How old a restored value is.

use std::sync::Arc;

use dogpile::{DogpileCell, Freshness, ManualClock, Policy, Refreshed};
use dogpile_files::{Persist, Restored};

use super::{HOUR, HandClock, NEVER, Place, cell};

/// A value of two hours, left behind at 1000 hours since 1970, ten hours after the host was started for the first time.
fn left_behind(boot: bool) -> Place {
    let place = Place::new();
    let clock = ManualClock::new();
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(HOUR), clock.clone()));
    let wall = HandClock::new(1000, boot.then_some((1, 10)));
    let persisted = place.persist().wall_clock(wall).attach(&cell).unwrap();
    cell.set("value".to_owned());
    clock.advance(2 * HOUR);
    persisted.flush().unwrap();
    place
}

#[track_caller]
fn age(place: &Place, wall: u32, boot: Option<(u64, u32)>) -> Option<u32> {
    let cell = cell();
    let persisted = place.persist().wall_clock(HandClock::new(wall, boot)).attach(&cell).unwrap();
    let Restored::Value { age } = *persisted.restored() else { panic!("{persisted:?}") };
    // To the nearest hour: the cell's clock is real where the test does not set it.
    let hours = age.map(|age| u32::try_from((age.as_secs() + 1800) / 3600).unwrap());
    let seen = cell.snapshot().unwrap();
    match age {
        Some(age) => assert!(seen.age >= age),
        None => assert!(seen.age > 1_000_000 * HOUR, "{seen:?}"),
    }
    assert_eq!(seen.freshness, Freshness::Stale);
    hours
}

#[test]
fn it_is_the_time_since_the_value_was_made() {
    let place = left_behind(true);
    assert_eq!(age(&place, 1001, Some((1, 11))), Some(3));
    // After a restart of the host.
    assert_eq!(age(&place, 1024, Some((2, 0))), Some(26));
    let place = left_behind(false);
    assert_eq!(age(&place, 1001, None), Some(3));
}

#[test]
fn a_clock_that_was_set_back_makes_nothing_younger() {
    let place = left_behind(true);
    assert_eq!(age(&place, 500, Some((1, 11))), Some(3), "the host has not been restarted");
    assert_eq!(age(&place, 500, Some((2, 0))), None, "nothing is known");
    assert_eq!(age(&place, 0, Some((2, 0))), None, "a host without a battery");
    assert_eq!(age(&left_behind(false), 500, None), None);
}

#[test]
fn a_clock_that_was_set_forward_makes_it_older_at_most() {
    assert_eq!(age(&left_behind(true), 2000, Some((1, 11))), Some(1002));
    assert_eq!(age(&left_behind(false), 2000, None), Some(1002));
}

#[test]
fn an_unknown_age_is_served_if_the_policy_sets_no_limit() {
    let place = left_behind(false);
    let cell =
        Arc::new(DogpileCell::<String>::with_policy(Policy::ttl(HOUR).stale_while_refresh(1000 * HOUR)));
    let persisted = place.persist().wall_clock(HandClock::new(0, None)).attach(&cell).unwrap();
    assert!(matches!(persisted.restored(), Restored::Value { age: None }));
    assert_eq!(cell.get(), None, "older than the policy allows");
    drop(persisted);

    let cell = Arc::new(DogpileCell::<String>::with_policy(Policy::never_expires()));
    let persisted = place.persist().wall_clock(HandClock::new(0, None)).attach(&cell).unwrap();
    assert_eq!(cell.get().as_deref().map(String::as_str), Some("value"));
    drop(persisted);
}

#[test]
fn a_clock_that_is_set_right_while_the_program_runs_is_written_down() {
    let place = Place::new();
    let cell = cell();
    // A host that has no battery, and asks for the time after its start.
    let wall = HandClock::new(0, Some((1, 1)));
    let persisted = place.persist().wall_clock(wall.clone()).attach(&cell).unwrap();
    cell.set("value".to_owned());
    persisted.flush().unwrap();
    assert_eq!(persisted.writes(), 1);
    wall.set(1000, Some((1, 2)));
    persisted.flush().unwrap();
    assert_eq!(persisted.writes(), 2, "the time in the file is wrong");
    persisted.flush().unwrap();
    assert_eq!(persisted.writes(), 2);
    drop(persisted);
    // It was made an hour before.
    assert_eq!(age_of_fresh(&place, 1000, Some((2, 0))), Some(1));

    // And the other way: it was ahead.
    let place = Place::new();
    let wall = HandClock::new(1100, Some((1, 1)));
    let persisted = place.persist().wall_clock(wall.clone()).attach(&cell).unwrap();
    persisted.flush().unwrap();
    wall.set(1000, Some((1, 1)));
    drop(persisted);
    assert_eq!(
        age_of_fresh(&place, 1003, Some((2, 0))),
        Some(3),
        "by the wrong clock it is not even made yet"
    );
}

#[track_caller]
fn age_of_fresh(place: &Place, wall: u32, boot: Option<(u64, u32)>) -> Option<u64> {
    let cell = cell();
    let persisted = place.persist().wall_clock(HandClock::new(wall, boot)).attach(&cell).unwrap();
    let Restored::Value { age } = *persisted.restored() else { panic!("{persisted:?}") };
    age.map(|age| (age.as_secs() + 1800) / 3600)
}

#[test]
fn a_suspended_host_does_not_make_a_value_younger() {
    for has_boot in [true, false] {
        let boot = |hours| has_boot.then_some((1, hours));
        let place = Place::new();
        let cell = cell();
        let wall = HandClock::new(1000, boot(10));
        let persisted = place.persist().wall_clock(wall.clone()).attach(&cell).unwrap();
        cell.set("value".to_owned());
        // The cell's clock stands still meanwhile.
        wall.set(1008, boot(18));
        persisted.flush().unwrap();
        drop(persisted);
        assert_eq!(age(&place, 1009, boot(19)), Some(9), "{has_boot}");
    }
}

#[test]
fn a_value_that_is_renewed_is_written_again_and_is_younger() {
    let place = Place::new();
    let clock = ManualClock::new();
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(HOUR), clock.clone()));
    let wall = HandClock::new(1000, Some((1, 10)));
    let persisted = place.persist().wall_clock(wall.clone()).attach(&cell).unwrap();
    cell.set("value".to_owned());
    persisted.flush().unwrap();
    clock.advance(5 * HOUR);
    wall.set(1005, Some((1, 15)));
    persisted.flush().unwrap();
    assert_eq!(persisted.writes(), 1, "nothing has happened");
    cell.request().try_get_with(|_previous| Ok::<_, std::io::Error>(Refreshed::NotModified)).unwrap();
    persisted.flush().unwrap();
    assert_eq!(persisted.writes(), 2);
    drop(persisted);
    assert_eq!(age_of_fresh(&place, 1006, Some((1, 16))), Some(1));
}

#[test]
fn a_restored_value_goes_on_ageing_from_run_to_run() {
    let place = left_behind(true);
    for (wall, expected) in [(1001, 3), (1002, 4), (1010, 12)] {
        // Each run restores it, writes nothing, and ends.
        assert_eq!(age(&place, wall, Some((1, wall - 990))), Some(expected));
    }
}

#[test]
fn what_was_declared_stale_comes_back_stale() {
    for policy in [Policy::ttl(HOUR), Policy::never_expires()] {
        let place = Place::new();
        let cell = Arc::new(DogpileCell::with_policy(policy));
        let persisted = place.attach(&cell);
        cell.set("value".to_owned());
        persisted.flush().unwrap();
        cell.invalidate();
        drop(persisted);

        let cell = Arc::new(DogpileCell::<String>::with_policy(policy));
        let persisted = place.attach(&cell);
        assert!(matches!(persisted.restored(), Restored::Value { age: Some(_) }));
        assert_eq!(cell.freshness(), Freshness::Stale);
        persisted.flush().unwrap();
        assert_eq!(persisted.writes(), 0);
        // Until it has been built anew.
        cell.set("value".to_owned());
        drop(persisted);
        let cell = Arc::new(DogpileCell::<String>::with_policy(policy));
        let persisted = place.attach(&cell);
        assert_eq!(cell.freshness(), Freshness::Fresh);
        drop(persisted);
    }
}

#[test]
fn a_value_with_a_shorter_ttl_of_its_own_comes_back_stale() {
    for (policy, ttl, expected) in [
        (Policy::ttl(HOUR), Some(HOUR / 60), Freshness::Stale),
        (Policy::ttl(HOUR), Some(10 * HOUR), Freshness::Fresh),
        (Policy::never_expires(), Some(HOUR), Freshness::Stale),
        // The policy's own, however much of it is left.
        (Policy::ttl(HOUR).jitter(50), None, Freshness::Fresh),
        (Policy::ttl(HOUR).jitter(50), Some(HOUR / 4), Freshness::Stale),
        (Policy::ttl(HOUR), None, Freshness::Fresh),
        (Policy::never_expires(), None, Freshness::Fresh),
    ] {
        let place = Place::new();
        let cell = Arc::new(DogpileCell::with_policy(policy));
        let persisted = place.attach(&cell);
        match ttl {
            Some(ttl) => cell.set_for("value".to_owned(), ttl),
            None => cell.set("value".to_owned()),
        };
        drop(persisted);
        let cell = Arc::new(DogpileCell::<String>::with_policy(policy));
        let persisted = place.attach(&cell);
        assert_eq!((cell.freshness(), cell.get().is_some()), (expected, true), "{policy:?}, {ttl:?}");
        drop(persisted);
    }
}

#[test]
fn a_source_that_is_down_at_the_start_costs_nothing() {
    let place = Place::new();
    place.leave("of yesterday");
    let cell = cell();
    let persisted = Persist::json(&place.path).interval(NEVER).attach(&cell).unwrap();
    cell.invalidate();
    let value = cell.try_get_or_refresh(|| Err("connection refused")).unwrap();
    assert_eq!(*value, "of yesterday");
    drop(persisted);
}
