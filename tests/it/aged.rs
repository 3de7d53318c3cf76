//! `Refreshed::Aged`: builds whose values are old already.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{
    Cx, Derived, Drain, Freshness, LazyDogpile, ManualClock, Policy, Refreshed, SyncReaderCell, Waited,
};

use crate::support::{Down, LookupExt, TICK, TTL, cell_with, unbuilt};

const SECOND: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(5);
const LIMITED: Policy = Policy::ttl(TTL).stale_while_refresh(WINDOW);
const HUGE: Duration = Duration::from_secs(u64::MAX);

/// What a build returns.
#[allow(clippy::unnecessary_wraps)] // as a build
fn aged(value: u32, age: Duration, ttl: Option<Duration>) -> Result<Refreshed<u32>, Down> {
    Ok(Refreshed::Aged { value, age, ttl })
}

/// As a value that was restored, in every kind of cell.
#[test]
fn the_age_of_a_build_counts_up_to_the_last_tick() {
    for uptime in [Duration::ZERO, 100 * TTL] {
        for (age, freshness) in [
            (Duration::ZERO, Freshness::Fresh),
            (TICK, Freshness::Fresh),
            (TTL, Freshness::Fresh),
            (TTL + TICK, Freshness::Stale),
            (TTL + WINDOW, Freshness::Stale),
            (TTL + WINDOW + TICK, Freshness::Expired),
            (HUGE, Freshness::Expired),
            (Duration::MAX, Freshness::Expired),
        ] {
            let (cell, clock) = cell_with(LIMITED);
            let readers = SyncReaderCell::with_clock(LIMITED, clock.clone(), Drain::Background, |_: u32| {});
            clock.advance(uptime);
            // The caller that built is served in any case.
            let built = cell.request().try_get_with(|_| aged(1, age, None)).unwrap();
            assert_eq!(*readers.request().try_get_with(|_| aged(1, age, None)).unwrap(), 1);
            let seen = cell.snapshot().unwrap();
            let context = format!("{age:?}, built at {uptime:?}");
            assert!(Arc::ptr_eq(&built, &seen.value));
            let each = (cell.freshness(), readers.freshness());
            assert_eq!((seen.freshness, each), (freshness, (freshness, freshness)), "{context}");
            assert_eq!(seen.age, age.min(Duration::from_nanos(u64::MAX)), "{context}");
            assert_eq!(seen.fresh_for, TTL.saturating_sub(age), "{context}");
            assert_eq!(seen.servable_for, (TTL + WINDOW).saturating_sub(age), "{context}");
            let overdue = seen.age.saturating_sub(TTL + TICK);
            assert_eq!(seen.stale_for, overdue, "{context}");
            assert_eq!(cell.get().is_some(), freshness != Freshness::Expired, "{context}");
            assert_eq!(readers.get().is_some(), freshness != Freshness::Expired, "{context}");
            assert_eq!((cell.generation(), cell.stats().published, cell.stats().builds), (1, 1, 1));
        }
    }
}

#[test]
fn a_time_to_live_of_its_own_is_counted_from_when_the_value_was_made() {
    for (age, ttl, fresh_for, stale_for) in [
        (4 * SECOND, 7 * SECOND, 3 * SECOND, Duration::ZERO),
        (7 * SECOND + TICK, 7 * SECOND, Duration::ZERO, Duration::ZERO),
        (8 * SECOND + TICK, 7 * SECOND, Duration::ZERO, SECOND),
        (4 * SECOND, HUGE, Duration::MAX, Duration::ZERO),
    ] {
        let (cell, _clock) = cell_with(LIMITED);
        cell.request().try_get_with(|_| aged(1, age, Some(ttl))).unwrap();
        let seen = cell.snapshot().unwrap();
        assert_eq!((seen.fresh_for, seen.stale_for), (fresh_for, stale_for), "{age:?} of {ttl:?}");
    }
}

#[test]
fn it_grows_older_and_is_replaced_like_any_other() {
    let (cell, clock) = cell_with(LIMITED);
    cell.request().try_get_with(|_| aged(1, 4 * SECOND, None)).unwrap();
    clock.advance(6 * SECOND);
    assert_eq!(*cell.get_or_refresh(unbuilt), 1);
    clock.advance(TICK);
    assert_eq!(cell.freshness(), Freshness::Stale);
    clock.advance(WINDOW);
    assert_eq!(cell.freshness(), Freshness::Expired);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    // What is renewed is of now.
    cell.request().no_cache().try_get_with(|_| aged(3, 4 * SECOND, None)).unwrap();
    cell.request().no_cache().try_get_with(|_| Ok::<_, Down>(Refreshed::NotModified)).unwrap();
    assert_eq!(cell.snapshot().unwrap().age, Duration::ZERO);
}

/// They would wait for ever, or be served what has expired.
#[test]
fn waiters_are_served_what_may_be_served_and_else_look_again() {
    for (age, is_served) in [(TTL + WINDOW, true), (TTL + WINDOW + TICK, false)] {
        let (cell, _clock) = cell_with(LIMITED);
        let mut waits = None;
        let build = |_| {
            waits = Some(cell.lookup().pending());
            aged(1, age, None)
        };
        assert_eq!(*cell.request().try_get_with(build).unwrap(), 1);
        let waited = waits.unwrap().wait_timeout(Duration::ZERO).unwrap();
        assert_eq!(matches!(waited, Waited::Published(_)), is_served, "{waited:?}");
        if !is_served {
            assert!(matches!(waited, Waited::Abandoned), "{waited:?}");
            assert_eq!(*cell.get_or_refresh(|| 2), 2);
        }
    }
}

#[test]
fn the_caller_that_built_is_served_whatever_its_conditions_are() {
    let (cell, _clock) = cell_with(LIMITED);
    let request = || cell.request().max_age(SECOND).max_stale(Duration::ZERO).no_cache();
    assert_eq!(*request().try_get_with(|_| aged(1, 2 * SECOND, None)).unwrap(), 1);
    // For others its age counts.
    assert_eq!(*cell.request().max_age(2 * SECOND).get(unbuilt), 1);
    assert_eq!(*cell.request().max_age(SECOND).get(|| 2), 2);
}

#[test]
fn an_invalidation_during_its_build_does_not_lengthen_its_life() {
    for (age, servable_for) in [(SECOND, WINDOW - TICK), (TTL + 2 * SECOND, WINDOW - 2 * SECOND)] {
        let (cell, _clock) = cell_with(LIMITED);
        let build = |_| {
            cell.invalidate();
            aged(1, age, None)
        };
        cell.request().try_get_with(build).unwrap();
        let seen = cell.snapshot().unwrap();
        assert_eq!((seen.freshness, seen.servable_for), (Freshness::Stale, servable_for));
    }
}

#[test]
fn what_is_derived_from_it_is_out_of_date_with_it() {
    let clock = ManualClock::new();
    let source = Arc::new(LazyDogpile::with_clock(LIMITED, clock.clone(), || 2));
    source.cell().request().try_get_with(|_| aged(1, 4 * SECOND, None)).unwrap();
    let of = Arc::clone(&source);
    let make = move |cx: &Cx| Ok::<_, Down>(*cx.get(&of) * 10);
    let derived = Derived::with_clock(Policy::never_expires(), clock.clone(), make);
    assert_eq!(*derived.get(), 10);
    clock.advance(6 * SECOND);
    assert_eq!(*derived.get(), 10);
    clock.advance(TICK);
    assert_eq!(*derived.get(), 20);
}

#[test]
fn a_snapshot_says_since_when_its_value_is_stale() {
    let (cell, clock) = cell_with(LIMITED);
    cell.set(1);
    let stale_for = || cell.snapshot().unwrap().stale_for;
    for (advance, expected) in
        [(TTL, Duration::ZERO), (TICK, Duration::ZERO), (SECOND, SECOND), (100 * SECOND, 101 * SECOND)]
    {
        clock.advance(advance);
        assert_eq!(stale_for(), expected);
    }
    cell.set(2);
    clock.advance(SECOND);
    cell.invalidate();
    assert_eq!(stale_for(), Duration::ZERO);
    clock.advance(SECOND);
    cell.invalidate();
    assert_eq!(stale_for(), SECOND);
}

#[cfg(feature = "async")]
#[test]
fn a_build_that_is_a_future_may_be_old_too() -> Result<(), dogpile::RefreshError> {
    let (cell, clock) = cell_with(LIMITED);
    let readers = SyncReaderCell::with_clock(LIMITED, clock, Drain::Background, |_: u32| {});
    futures_lite::future::block_on(async {
        cell.request().try_get_with_async(async |_| aged(1, TTL + SECOND, None)).await?;
        readers.request().try_get_with_async(async |_| aged(1, TTL + SECOND, None)).await?;
        Ok::<_, dogpile::RefreshError>(())
    })?;
    assert_eq!((cell.freshness(), readers.freshness()), (Freshness::Stale, Freshness::Stale));
    assert_eq!(cell.snapshot().unwrap().servable_for, WINDOW - SECOND);
    Ok(())
}
