//! `Request`: each condition alone, and the main combinations (G14).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use dogpile::{
    Clock, DogpileCell, Freshness, Lookup, ManualClock, Policy, RefreshError, Refreshed, Request, Tick,
};

use crate::support::{
    Down, LookupExt, STRICT, TICK, TTL, cell, cell_with, eventually, gate, not_tried, panic_message,
    stale_cell, stale_cell_with, unbuilt,
};

const SECOND: Duration = Duration::from_secs(1);
/// How long past [`TTL`] a value may be served, where that is limited.
const WINDOW: Duration = Duration::from_secs(5);
/// Longer than any clock runs, but not the longest.
const HUGE: Duration = Duration::from_secs(u64::MAX);

type Cell = DogpileCell<u32, ManualClock>;
type Plain<'a> = Request<'a, u32, ManualClock>;
/// Adds conditions.
type Conditions = for<'a> fn(Plain<'a>) -> Plain<'a>;

/// Whether a value of generation 1 which was there before the call meets the conditions at an age.
type IsMet = fn(Duration) -> bool;

const EACH: [(&str, Conditions, IsMet); 20] = [
    ("none", |request| request, |_| true),
    ("max_stale(0)", |request| request.max_stale(Duration::ZERO), |age| age <= TTL),
    ("max_stale(2 s)", |request| request.max_stale(2 * SECOND), |age| age <= TTL + 2 * SECOND),
    ("max_stale(1 h)", |request| request.max_stale(3600 * SECOND), |_| true),
    ("max_stale(huge)", |request| request.max_stale(HUGE), |_| true),
    ("max_stale(MAX)", |request| request.max_stale(Duration::MAX), |_| true),
    ("max_age(0)", |request| request.max_age(Duration::ZERO), |age| age.is_zero()),
    ("max_age(3 s)", |request| request.max_age(3 * SECOND), |age| age <= 3 * SECOND),
    ("max_age(12 s)", |request| request.max_age(12 * SECOND), |age| age <= 12 * SECOND),
    ("max_age(huge)", |request| request.max_age(HUGE), |_| true),
    ("max_age(MAX)", |request| request.max_age(Duration::MAX), |_| true),
    ("newer_than(0)", |request| request.newer_than(0), |_| true),
    ("newer_than(1)", |request| request.newer_than(1), |_| false),
    ("newer_than(u64::MAX)", |request| request.newer_than(u64::MAX), |_| false),
    ("no_cache", |request| request.no_cache(), |_| false),
    // These do not change what is acceptable.
    ("wait_at_most(0)", |request| request.wait_at_most(Duration::ZERO), |_| true),
    ("or_stale", |request| request.or_stale(), |_| true),
    // All conditions must be met.
    (
        "max_age and max_stale",
        |request| request.max_age(12 * SECOND).max_stale(SECOND),
        |age| age <= TTL + SECOND,
    ),
    ("newer_than and max_age", |request| request.newer_than(0).max_age(SECOND), |age| age <= SECOND),
    ("all", |request| request.no_cache().newer_than(0).max_age(HUGE).max_stale(HUGE), |_| false),
];

/// Fresh, stale and expired, up to the last tick of each.
const AGES: [Duration; 9] = [
    Duration::ZERO,
    TICK,
    Duration::from_secs(3),
    Duration::from_nanos(3_000_000_001),
    TTL,
    Duration::from_nanos(10_000_000_001),
    Duration::from_secs(12),
    Duration::from_secs(15),
    Duration::from_nanos(15_000_000_001),
];

/// What a look finds, in one word.
fn word<C: Clock>(lookup: &Lookup<'_, u32, C>) -> &'static str {
    match lookup {
        Lookup::Fresh(_) => "fresh",
        Lookup::Stale(_) => "stale",
        Lookup::Elected(_) => "elected",
        Lookup::Pending(_) => "pending",
        Lookup::Failed(_) => "failed",
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lease {
    Free,
    Held,
    /// Free, and a retry pause runs.
    Paused,
}

/// A cell in that state, with a value of that age.
fn cell_in(lease: Lease, age: Duration) -> (Cell, ManualClock) {
    let policy = Policy::ttl(TTL).stale_while_refresh(WINDOW).retry_backoff(100 * TTL, 100 * TTL);
    let (cell, clock) = cell_with(policy);
    cell.set(1);
    clock.advance(age);
    match lease {
        Lease::Free => {}
        Lease::Held => std::mem::forget(cell.request().no_cache().lookup().elected()),
        Lease::Paused => drop(cell.request().no_cache().lookup().elected().fail(Down(1))),
    }
    (cell, clock)
}

#[test]
fn each_condition_at_each_age_in_each_state_of_the_lease() {
    for (name, conditions, is_met) in EACH {
        for age in AGES {
            for lease in [Lease::Free, Lease::Held, Lease::Paused] {
                let (cell, _clock) = cell_in(lease, age);
                let is_fresh = age <= TTL;
                let is_acceptable = age <= TTL + WINDOW && is_met(age);
                let expected = match lease {
                    _ if is_fresh && is_acceptable => "fresh",
                    Lease::Free => "elected",
                    _ if is_acceptable => "stale",
                    Lease::Held => "pending",
                    Lease::Paused if name == "no_cache" || name == "all" => "elected",
                    Lease::Paused => "failed",
                };
                let found = conditions(cell.request()).lookup();
                assert_eq!(word(&found), expected, "{name} at the age of {age:?}, {lease:?}");
            }
        }
    }
}

#[test]
fn each_condition_without_a_value() {
    for (name, conditions, _) in EACH {
        let (cell, _clock) = cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL));
        let lease = cell.lookup().elected();
        let request = || conditions(cell.request());
        assert_eq!(word(&request().lookup()), "pending", "{name}");
        lease.fail(Down(1));
        let expected = if name == "no_cache" || name == "all" { "elected" } else { "failed" };
        assert_eq!(word(&request().lookup()), expected, "{name}");
        // A call that returns an error returns this one, or builds; one that cannot, builds.
        let tried = request().try_get(|| Ok::<_, Down>(1));
        assert_eq!(tried.is_ok(), expected == "elected", "{name}");
        cell.clear();
        assert_eq!(*request().get(|| 2), 2, "{name}");
    }
}

/// `get`, `try_get` and `try_get_with` return the old value, or the one that they build: as `lookup` says.
#[test]
fn each_finishing_call_serves_or_builds() {
    type Call = fn(Plain<'_>) -> Arc<u32>;
    let calls: [Call; 3] = [
        |request| request.get(|| 2),
        |request| request.try_get(|| Ok::<_, Down>(2)).unwrap(),
        |request| {
            let build = |previous: Option<Arc<u32>>| Ok::<_, Down>(Refreshed::New(*previous.unwrap() + 1));
            request.try_get_with(build).unwrap()
        },
    ];
    for (name, conditions, is_met) in EACH {
        for age in AGES {
            for call in calls {
                let (cell, _clock) = cell_in(Lease::Free, age);
                let expected = if age <= TTL && is_met(age) { 1 } else { 2 };
                let value = call(conditions(cell.request()));
                assert_eq!(*value, expected, "{name} at the age of {age:?}");
                assert_eq!(cell.stats().builds, u64::from(expected - 1));
                assert_eq!(cell.freshness(), Freshness::Fresh);
            }
        }
    }
}

#[test]
fn in_a_retry_pause_get_builds_where_nothing_acceptable_may_be_served() {
    for (name, conditions, is_met) in EACH {
        for age in AGES {
            let (cell, _clock) = cell_in(Lease::Paused, age);
            let is_acceptable = age <= TTL + WINDOW && is_met(age);
            let expected = if is_acceptable { 1 } else { 2 };
            assert_eq!(*conditions(cell.request()).get(|| 2), expected, "{name} at the age of {age:?}");
        }
    }
}

#[test]
fn in_a_retry_pause_try_get_returns_the_error_without_building_unless_it_is_no_cache() {
    for (name, conditions, is_met) in EACH {
        for age in AGES {
            let (cell, _clock) = cell_in(Lease::Paused, age);
            let is_acceptable = age <= TTL + WINDOW && is_met(age);
            let asks_the_source = name == "no_cache" || name == "all";
            match conditions(cell.request()).try_get(|| Ok::<_, Down>(2)) {
                Ok(value) if asks_the_source => assert_eq!(*value, 2),
                Ok(value) => assert!(is_acceptable && *value == 1, "{name} at the age of {age:?}"),
                Err(error) => {
                    assert!(!is_acceptable && !asks_the_source, "{name} at the age of {age:?}");
                    assert_eq!(error.downcast_ref(), Some(&Down(1)));
                }
            }
            assert_eq!(cell.stats().builds, if asks_the_source { 2 } else { 1 });
        }
    }
}

/// Without a condition, `request().try_get` is `try_get_or_refresh`.
#[test]
fn a_request_without_conditions_is_the_plain_read() {
    for policy in [Policy::ttl(TTL), STRICT] {
        let (cell, clock) = cell_with(policy);
        assert_eq!(*cell.request().try_get(|| Ok::<_, Down>(1)).unwrap(), 1);
        assert_eq!(*cell.request().try_get(not_tried).unwrap(), 1);
        clock.advance(TTL + TICK);
        let lease = cell.lookup().elected();
        assert_eq!(*cell.request().get(unbuilt), 1);
        drop(lease);
        let failing = cell.request().try_get(|| Err(Down(1)));
        assert_eq!(failing.is_ok(), policy != STRICT);
        assert_eq!(cell.stats().served_stale_on_error, u64::from(policy != STRICT));
    }
}

#[test]
fn what_a_failed_build_comes_to_under_each_condition() {
    for (name, conditions, is_met) in EACH {
        for age in AGES {
            for or_stale in [false, true] {
                let (cell, _clock) = cell_in(Lease::Free, age);
                let request = conditions(cell.request());
                let request = if or_stale { request.or_stale() } else { request };
                let or_stale = or_stale || name == "or_stale";
                let may_be_served = age <= TTL + WINDOW;
                match request.try_get(|| Err(Down(1))) {
                    Ok(value) => {
                        assert_eq!(*value, 1);
                        assert!(may_be_served && (is_met(age) || or_stale), "{name} at the age of {age:?}");
                    }
                    Err(error) => {
                        assert!(
                            !(may_be_served && (is_met(age) || or_stale)),
                            "{name} at the age of {age:?}"
                        );
                        assert_eq!(error.downcast_ref(), Some(&Down(1)));
                    }
                }
            }
        }
    }
}

/// `or_stale` goes by what the policy may serve, not by its window for errors alone.
#[test]
fn or_stale_goes_by_both_windows_of_the_policy() {
    let short = Policy::ttl(TTL).stale_while_refresh(SECOND).stale_if_error(WINDOW);
    let strict = Policy::ttl(TTL).stale_while_refresh(WINDOW).stale_if_error(Duration::ZERO);
    for policy in [short, strict] {
        let (cell, clock) = cell_with(policy.retry_backoff(Duration::ZERO, Duration::ZERO));
        cell.set(1);
        clock.advance(TTL + WINDOW);
        let request = cell.request().max_stale(Duration::ZERO).or_stale();
        assert_eq!(*request.clone().try_get(|| Err(Down(1))).unwrap(), 1);
        clock.advance(TICK);
        assert_eq!(request.try_get(|| Err(Down(2))).unwrap_err().downcast_ref(), Some(&Down(2)));
    }
}

#[test]
fn or_stale_serves_in_a_retry_pause_and_does_not_build() {
    let conditions: [Conditions; 3] = [
        |request| request.max_stale(Duration::ZERO),
        |request| request.max_age(Duration::ZERO),
        |request| request.newer_than(1),
    ];
    for conditions in conditions {
        let (cell, clock) = cell_in(Lease::Paused, TTL + TICK);
        let request = || conditions(cell.request()).or_stale();
        assert_eq!(*request().try_get(not_tried).unwrap(), 1);
        assert_eq!(*request().get(unbuilt), 1);
        assert_eq!(*request().try_get_with(|_| -> Result<Refreshed<u32>, Down> { unbuilt() }).unwrap(), 1);
        // With nothing left to serve, the error; a call that cannot return it builds.
        clock.advance(WINDOW);
        assert_eq!(request().try_get(not_tried).unwrap_err().downcast_ref(), Some(&Down(1)));
        assert_eq!(*request().get(|| 2), 2);
    }
}

#[test]
fn no_cache_asks_the_source_in_a_retry_pause_too() {
    let (cell, _clock) = cell_in(Lease::Paused, TTL + TICK);
    let request = cell.request().no_cache();
    let error = request.clone().try_get(|| Err(Down(2))).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Down(2)));
    assert_eq!(*request.clone().or_stale().try_get(|| Err(Down(3))).unwrap(), 1);
    assert_eq!(cell.stats().failed, 3);
    assert_eq!(*request.try_get(|| Ok::<_, Down>(2)).unwrap(), 2);
}

#[test]
fn max_age_asks_the_source_at_most_once_in_its_interval() {
    let (cell, clock) = cell();
    let mut builds = 0;
    // A thousand tokens with unknown key ids, ten a second.
    for _ in 0..1000 {
        cell.request().max_age(30 * SECOND).get(|| {
            builds += 1;
            builds
        });
        // The usual rule is in force too: the ttl is shorter.
        clock.advance(SECOND / 10);
    }
    assert_eq!(builds, 10);

    let (cell, clock) = cell_with(Policy::never_expires());
    let mut builds = 0;
    for _ in 0..1000 {
        cell.request().max_age(30 * SECOND).get(|| {
            builds += 1;
            builds
        });
        clock.advance(SECOND / 10);
    }
    assert_eq!(builds, 4);
}

#[test]
fn under_max_age_a_failing_source_is_asked_as_often_as_the_pauses_allow() {
    let (cell, clock) = cell_with(Policy::never_expires().retry_backoff(SECOND, 8 * SECOND));
    cell.set(0);
    clock.advance(31 * SECOND);
    let mut builds = 0;
    for _ in 0..600 {
        let error = cell.request().max_age(30 * SECOND).try_get(|| {
            builds += 1;
            Err(Down(builds))
        });
        assert_eq!(error.unwrap_err().downcast_ref(), Some(&Down(builds)));
        clock.advance(SECOND / 10);
    }
    // At 0, 1, 3, 7, 15, 23, 31, 39, 47 and 55 s.
    assert_eq!(builds, 10);
}

#[test]
fn g14_a_thousand_requests_for_something_newer_are_one_build() {
    const THREADS: u32 = if cfg!(miri) { 3 } else { 8 };
    const CALLS: u32 = if cfg!(miri) { 3 } else { 125 };
    type Ask = fn(&Cell, u64) -> Plain<'_>;
    let ways: [Ask; 2] =
        [|cell, _| cell.request().max_age(30 * SECOND), |cell, seen| cell.request().newer_than(seen)];
    for ask in ways {
        let (cell, clock) = cell_with(Policy::never_expires());
        cell.set(0);
        clock.advance(31 * SECOND);
        let seen = cell.generation();
        let builds = AtomicU32::new(0);
        let start = Barrier::new(THREADS as usize);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..CALLS {
                        assert_eq!(*ask(&cell, seen).get(|| builds.fetch_add(1, Ordering::SeqCst) + 1), 1);
                    }
                });
            }
        });
        assert_eq!(builds.into_inner(), 1);
    }
}

/// What a running build publishes, whether it was declared stale meanwhile, and whether it meets the conditions of a caller
/// that waits for it.
#[test]
fn a_waiter_takes_what_another_caller_publishes_if_it_meets_the_conditions() {
    let conditions: [(&str, Conditions, bool, bool); 9] = [
        ("none", |request| request, true, true),
        ("max_stale(0)", |request| request.max_stale(Duration::ZERO), true, false),
        ("max_age(0)", |request| request.max_age(Duration::ZERO), true, true),
        ("newer_than(0)", |request| request.newer_than(0), true, true),
        ("newer_than(1)", |request| request.newer_than(1), true, true),
        ("newer_than(2)", |request| request.newer_than(2), false, false),
        ("newer_than(u64::MAX)", |request| request.newer_than(u64::MAX), false, false),
        ("no_cache", |request| request.no_cache(), false, false),
        ("both", |request| request.max_age(Duration::ZERO).max_stale(Duration::ZERO), true, false),
    ];
    for (name, conditions, if_fresh, if_declared_stale) in conditions {
        for (is_declared_stale, is_taken) in [(false, if_fresh), (true, if_declared_stale)] {
            let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(WINDOW));
            cell.set(1);
            clock.advance(TTL + WINDOW + TICK);
            let lease = cell.lookup().elected();
            thread::scope(|scope| {
                let waiter = scope.spawn(|| *conditions(cell.request()).get(|| 3));
                eventually("it waits", || cell.stats().waits == 1);
                if is_declared_stale {
                    cell.invalidate();
                }
                lease.publish(2);
                // By its age alone it would not do any more. It is judged by what it was when it was published.
                clock.advance(TICK);
                let expected = if is_taken { 2 } else { 3 };
                assert_eq!(waiter.join().unwrap(), expected, "{name}, declared stale: {is_declared_stale}");
            });
        }
    }
}

/// A `set` began after the call, whenever the running build began.
#[test]
fn a_value_that_is_set_meets_no_cache() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| *cell.request().no_cache().get(unbuilt));
        eventually("it waits", || cell.stats().waits == 1);
        cell.set(2);
        assert_eq!(waiter.join().unwrap(), 2);
    });
    drop(lease);
    // One that was set before does not.
    assert_eq!(*cell.request().no_cache().get(|| 3), 3);
}

#[test]
fn a_waiter_looks_again_after_a_clear_and_a_revoke() {
    for revokes in [false, true] {
        for (name, conditions, _) in EACH {
            let (cell, _clock) = cell_in(Lease::Free, TTL + WINDOW + TICK);
            let doomed = cell.lookup().elected();
            thread::scope(|scope| {
                let waiter = scope.spawn(|| *conditions(cell.request()).get(|| 3));
                eventually("it waits", || cell.stats().waits == 1);
                if revokes {
                    assert!(cell.revoke());
                } else {
                    cell.clear();
                }
                assert_eq!(waiter.join().unwrap(), 3, "{name}");
            });
            assert_eq!(*doomed.publish(2), 3, "{name}");
        }
    }
}

/// They wait for this attempt: its error is theirs. (But of a request that no value of this attempt would have met.)
#[test]
fn a_waiter_shares_the_error_of_the_build_that_it_waited_for() {
    for (name, conditions, _) in
        EACH.into_iter().filter(|(name, ..)| !["wait_at_most(0)", "no_cache", "all"].contains(name))
    {
        let (cell, _clock) = cell_in(Lease::Free, TTL + WINDOW + TICK);
        let lease = cell.lookup().elected();
        let (build, keeper) = gate();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| conditions(cell.request()).try_get(not_tried));
            // A call that can return no error builds.
            let building = scope.spawn(|| {
                *conditions(cell.request()).get(|| {
                    build.pass();
                    2
                })
            });
            eventually("both wait", || cell.stats().waits == 2);
            let error = lease.fail(Down(1));
            let shared = waiter.join().unwrap().unwrap_err();
            assert!(shared.build_error().unwrap().ptr_eq(&error), "{name}");
            keeper.wait_for_arrival();
            keeper.open();
            assert_eq!(building.join().unwrap(), 2, "{name}");
        });
    }
}

#[test]
fn or_stale_stands_in_for_the_error_of_another_callers_build() {
    let (cell, _clock) = stale_cell_with(STRICT, 1);
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let fresh = || cell.request().max_stale(Duration::ZERO);
        let lenient = scope.spawn(move || fresh().or_stale().try_get(not_tried));
        let lenient_too = scope.spawn(move || fresh().or_stale().get(unbuilt));
        let strict = scope.spawn(move || fresh().try_get(not_tried));
        eventually("all wait", || cell.stats().waits == 3);
        lease.fail(Down(1));
        assert_eq!(*lenient.join().unwrap().unwrap(), 1);
        assert_eq!(*lenient_too.join().unwrap(), 1);
        assert!(strict.join().unwrap().unwrap_err().is::<Down>());
    });
    assert_eq!(cell.stats().served_stale_on_error, 2);
}

#[test]
fn wait_at_most_bounds_the_waits_of_try_get() {
    let (cell, clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let fresh = || cell.request().max_stale(Duration::ZERO).wait_at_most(SECOND);
        let strict = scope.spawn(move || fresh().try_get(not_tried));
        let lenient = scope.spawn(move || fresh().or_stale().try_get(not_tried));
        let lenient_too = scope.spawn(move || fresh().or_stale().get(unbuilt));
        eventually("all wait", || cell.stats().waits == 3);
        clock.advance(SECOND - TICK);
        assert!(!strict.is_finished() && !lenient.is_finished() && !lenient_too.is_finished());
        clock.advance(TICK);
        assert!(matches!(strict.join().unwrap(), Err(RefreshError::WaitTimeout)));
        assert_eq!(*lenient.join().unwrap().unwrap(), 1);
        assert_eq!(*lenient_too.join().unwrap(), 1);
    });
    drop(lease);
    assert_eq!(cell.stats().wait_timeouts, 3);
}

/// It has nothing to return when the time is over.
#[test]
fn wait_at_most_does_not_end_a_get_that_has_nothing_to_return() {
    let (cell, clock) = cell();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| *cell.request().wait_at_most(SECOND).get(unbuilt));
        let or_stale = scope.spawn(|| *cell.request().wait_at_most(Duration::ZERO).or_stale().get(unbuilt));
        eventually("both wait", || cell.stats().waits == 2);
        clock.advance(SECOND);
        eventually("one waits again", || cell.stats().waits == 3);
        clock.advance(3600 * SECOND);
        assert!(!waiter.is_finished() && !or_stale.is_finished());
        lease.publish(1);
        assert_eq!((waiter.join().unwrap(), or_stale.join().unwrap()), (1, 1));
    });
}

#[test]
fn without_patience_a_call_never_waits() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    let fresh = || cell.request().max_stale(Duration::ZERO).wait_at_most(Duration::ZERO);
    assert!(matches!(fresh().try_get(not_tried), Err(RefreshError::WaitTimeout)));
    assert_eq!(*fresh().or_stale().try_get(not_tried).unwrap(), 1);
    assert_eq!(*fresh().or_stale().get(unbuilt), 1);
    drop(lease);
    assert_eq!((cell.stats().waits, cell.stats().wait_timeouts), (0, 3));
    // If it is elected, it builds.
    assert_eq!(*fresh().get(|| 2), 2);
}

#[test]
fn a_thread_that_holds_the_lease_itself_waits_until_the_time_is_over() {
    let (cell, clock) = cell();
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        scope.spawn(|| {
            eventually("it waits", || cell.stats().waits == 1);
            clock.advance(SECOND);
        });
        let waited = cell.request().wait_at_most(SECOND).try_get(not_tried);
        assert!(matches!(waited, Err(RefreshError::WaitTimeout)));
    });
    lease.publish(1);
}

/// dogpile.cache's expiry per call: an older value is served while another caller builds.
#[test]
fn a_caller_may_have_an_expiry_of_its_own_and_wait_for_nothing() {
    let (cell, clock) = cell_with(Policy::never_expires());
    let request = || cell.request().max_age(SECOND).wait_at_most(Duration::ZERO).or_stale();
    assert_eq!(*request().get(|| 1), 1);
    clock.advance(SECOND + TICK);
    let (build, keeper) = gate();
    thread::scope(|scope| {
        let builder = scope.spawn(|| {
            *request().get(|| {
                build.pass();
                2
            })
        });
        keeper.wait_for_arrival();
        assert_eq!(*request().get(unbuilt), 1);
        assert_eq!(*request().try_get(not_tried).unwrap(), 1);
        keeper.open();
        assert_eq!(builder.join().unwrap(), 2);
    });
    assert_eq!(*request().get(unbuilt), 2);
    assert_eq!(cell.stats().waits, 0);
}

#[test]
fn huge_waits_do_not_overflow() {
    for time in [Duration::MAX, HUGE, Duration::from_nanos(u64::MAX), Duration::from_nanos(u64::MAX - 1)] {
        let (cell, clock) = cell();
        clock.advance(SECOND);
        let lease = cell.lookup().elected();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| cell.request().wait_at_most(time).try_get(not_tried));
            eventually("it waits", || cell.stats().waits == 1);
            clock.advance(3600 * SECOND);
            lease.publish(1);
            assert_eq!(*waiter.join().unwrap().unwrap(), 1);
        });
    }
}

/// A value whose build this very call ran always meets its conditions, whatever happened meanwhile: no call loops.
#[test]
fn the_value_of_the_callers_own_build_meets_every_condition() {
    type Meanwhile = fn(&Cell, &ManualClock);
    let impossible: [Conditions; 8] = [
        |request| request.newer_than(u64::MAX),
        |request| request.max_age(Duration::ZERO).max_stale(Duration::ZERO),
        |request| request.no_cache().newer_than(u64::MAX).max_age(Duration::ZERO).max_stale(Duration::ZERO),
        |request| request.max_stale(Duration::ZERO),
        |request| request.max_age(Duration::ZERO),
        |request| request.no_cache(),
        |request| request.newer_than(u64::MAX).or_stale(),
        |request| request.newer_than(u64::MAX).wait_at_most(Duration::ZERO),
    ];
    let meanwhile: [Meanwhile; 5] = [
        |_, _| (),
        |cell, _| cell.invalidate(),
        |_, clock| clock.advance(100 * TTL),
        |cell, _| drop(cell.clear()),
        |cell, _| cell.reset(),
    ];
    for policy in [Policy::ttl(TTL), Policy::ttl(Duration::ZERO).stale_while_refresh(Duration::ZERO)] {
        for (number, conditions) in impossible.into_iter().enumerate() {
            for (event, meanwhile) in meanwhile.into_iter().enumerate() {
                let (cell, clock) = cell_with(policy);
                cell.set(1);
                clock.advance(TTL + TICK);
                let mut builds = 0;
                let mut build = || {
                    builds += 1;
                    meanwhile(&cell, &clock);
                    2
                };
                let context = format!("conditions {number}, event {event}");
                assert_eq!(*conditions(cell.request()).get(&mut build), 2, "{context}");
                clock.advance(TTL + TICK);
                let tried = conditions(cell.request()).try_get(|| Ok::<_, Down>(build()));
                assert_eq!(*tried.unwrap(), 2, "{context}");
                clock.advance(TTL + TICK);
                let tried = conditions(cell.request()).try_get_with(|_| Ok::<_, Down>(build().into()));
                assert_eq!(*tried.unwrap(), 2, "{context}");
                assert_eq!(builds, 3, "{context}");
            }
        }
    }
}

/// As a plain read returns it.
#[test]
fn a_value_that_is_set_during_the_callers_own_build_is_returned_if_it_meets_the_conditions() {
    let conditions: [(Conditions, u32); 6] = [
        (|request| request, 5),
        (|request| request.max_stale(Duration::ZERO).max_age(Duration::ZERO), 5),
        (|request| request.newer_than(1), 5),
        (|request| request.no_cache(), 5),
        (|request| request.newer_than(2), 2),
        (|request| request.newer_than(u64::MAX), 2),
    ];
    for (number, (conditions, expected)) in conditions.into_iter().enumerate() {
        let (cell, _clock) = stale_cell(1);
        let value = conditions(cell.request()).get(|| {
            cell.set(5);
            2
        });
        assert_eq!(*value, expected, "conditions {number}");
        assert_eq!(cell.get().as_deref(), Some(&5));
    }
}

/// Conditions that no value can meet: each call builds once, also if it has waited for another one first.
#[test]
fn callers_with_conditions_that_no_value_meets_build_once_each() {
    const CALLERS: u32 = if cfg!(miri) { 3 } else { 8 };
    let (cell, _clock) = cell();
    let builds = AtomicU32::new(0);
    let start = Barrier::new(CALLERS as usize);
    let mut values: Vec<u32> = thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    *cell.request().newer_than(u64::MAX).get(|| builds.fetch_add(1, Ordering::SeqCst))
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    values.sort_unstable();
    assert!(values.into_iter().eq(0..CALLERS));
    assert_eq!(cell.stats().builds, u64::from(CALLERS));
}

/// A clock on which each look takes a tick: whatever is looked at again has expired.
#[derive(Default)]
struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn now(&self) -> Tick {
        Tick::from_nanos(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

#[test]
fn with_a_ttl_of_zero_and_a_clock_that_never_stands_still_no_call_loops() {
    let policy = Policy::ttl(Duration::ZERO).stale_while_refresh(Duration::ZERO);
    for strictness in 0..3 {
        let cell = DogpileCell::with_clock(policy, Ticking::default());
        let request = || match strictness {
            0 => cell.request().max_stale(Duration::ZERO),
            1 => cell.request().max_age(Duration::ZERO),
            _ => cell.request().no_cache().max_age(Duration::ZERO).newer_than(u64::MAX),
        };
        assert_eq!(*request().get(|| 1), 1);
        assert_eq!(*request().try_get(|| Ok::<_, Down>(2)).unwrap(), 2);
        assert_eq!(cell.stats().builds, 2);
        // A waiter takes what was acceptable at its publication.
        if strictness < 2 {
            let lease = cell.lookup().elected();
            thread::scope(|scope| {
                let waiter = scope.spawn(|| *request().get(unbuilt));
                eventually("it waits", || cell.stats().waits == 1);
                lease.publish(3);
                assert_eq!(waiter.join().unwrap(), 3);
            });
        }
    }
}

#[test]
fn a_build_that_panics_under_each_condition_reaches_its_caller_and_costs_nothing_else() {
    for (name, conditions, is_met) in EACH {
        for age in AGES {
            let is_built = age > TTL || !is_met(age);
            if !is_built {
                continue;
            }
            let (cell, _clock) = cell_in(Lease::Free, age);
            let request = || conditions(cell.request());
            let context = format!("{name} at the age of {age:?}");
            assert_eq!(panic_message(|| request().get(|| panic!("no"))), "no", "{context}");
            assert!(!cell.is_refreshing(), "{context}");
            assert_eq!(cell.last_error().unwrap().to_string(), "the build panicked: no");
            let may_be_served = age <= TTL + WINDOW;
            assert_eq!(cell.get().as_deref(), may_be_served.then_some(&1), "{context}");
            // A pause runs for callers that have something acceptable. The others build: there is no error to be shown.
            let expected = if may_be_served && is_met(age) { 1 } else { 2 };
            let tried = request().try_get(|| Ok::<_, Down>(2));
            assert_eq!(*tried.unwrap(), expected, "{context}");
            assert_eq!((cell.stats().panicked, cell.stats().builds), (1, u64::from(expected)), "{context}");
        }
    }
}

#[test]
fn g7_when_the_build_that_a_request_waited_for_panics_it_builds() {
    for (name, conditions, _) in EACH {
        let (cell, _clock) = cell_in(Lease::Free, TTL + WINDOW + TICK);
        let (build, keeper) = gate();
        thread::scope(|scope| {
            let builder = scope.spawn(|| {
                panic_message(|| {
                    cell.get_or_refresh(|| {
                        build.pass();
                        panic!("no")
                    })
                })
            });
            keeper.wait_for_arrival();
            let waiter = scope.spawn(|| *conditions(cell.request()).get(|| 2));
            eventually("it waits", || cell.stats().waits == 1);
            keeper.open();
            assert_eq!(builder.join().unwrap(), "no");
            assert_eq!(waiter.join().unwrap(), 2, "{name}");
        });
    }
}

#[test]
fn a_conditional_build_is_given_the_previous_value_whatever_its_age() {
    for age in AGES {
        let (cell, _clock) = cell_in(Lease::Free, age);
        let first = cell.snapshot().unwrap().value;
        let kept = cell.request().no_cache().try_get_with(|previous| {
            assert!(Arc::ptr_eq(&previous.unwrap(), &first));
            Ok::<_, Down>(Refreshed::NotModified)
        });
        assert!(Arc::ptr_eq(&kept.unwrap(), &first));
        let snapshot = cell.snapshot().unwrap();
        assert_eq!((snapshot.generation, snapshot.age, snapshot.fresh_for), (2, Duration::ZERO, TTL));
    }
}

/// What is not modified was renewed: it is as good as a new value, for its own caller and for waiters.
#[test]
fn a_value_that_is_not_modified_meets_the_conditions() {
    let conditions: [Conditions; 4] = [
        |request| request.max_stale(Duration::ZERO),
        |request| request.max_age(Duration::ZERO),
        |request| request.newer_than(1),
        |request| request.no_cache(),
    ];
    for conditions in conditions {
        let (cell, _clock) = stale_cell(1);
        let renewed = conditions(cell.request()).try_get_with(|_| Ok::<_, Down>(Refreshed::NotModified));
        assert_eq!(*renewed.unwrap(), 1);
        assert_eq!((cell.generation(), cell.stats().builds), (2, 1));
    }
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| *cell.request().newer_than(1).get(unbuilt));
        eventually("it waits", || cell.stats().waits == 1);
        assert!(lease.renew().is_ok());
        assert_eq!(waiter.join().unwrap(), 1);
    });
}

#[test]
fn nothing_can_be_kept_where_there_is_no_previous_value() {
    let (cell, _clock) = cell_with::<u32>(STRICT);
    let keep = |_| Ok::<_, Down>(Refreshed::NotModified);
    let error = cell.request().try_get_with(keep).unwrap_err();
    assert_eq!(error.to_string(), "the build returned NotModified, but there is no previous value");
    assert!(!error.is::<Down>() && !cell.is_refreshing());
    assert!(cell.last_error().unwrap().ptr_eq(error.build_error().unwrap()));
    cell.set(1);
    cell.clear();
    assert!(cell.request().try_get_with(keep).is_err());
    assert_eq!(cell.stats().failed, 2);
}

#[test]
fn a_conditional_build_chooses_a_ttl_of_its_own() {
    for (ttl, fresh_for) in [(Duration::ZERO, Duration::ZERO), (3 * TTL, 3 * TTL), (HUGE, Duration::MAX)] {
        let (cell, _clock) = cell();
        let value = cell.request().try_get_with(|_| Ok::<_, Down>(Refreshed::NewFor(1, ttl)));
        assert_eq!(*value.unwrap(), 1);
        assert_eq!(cell.snapshot().unwrap().fresh_for, fresh_for);
    }
}

/// The last call of one name counts, and the order of the others does not matter.
#[test]
fn conditions_compose_in_any_order() {
    let (cell, clock) = cell_with(Policy::never_expires());
    cell.set(1);
    clock.advance(2 * SECOND);
    let request = cell.request().max_age(SECOND).newer_than(7).max_age(3 * SECOND).newer_than(0);
    assert_eq!(*request.clone().get(unbuilt), 1);
    assert_eq!(*request.clone().max_stale(Duration::ZERO).get(unbuilt), 1);
    assert_eq!(*request.max_age(Duration::ZERO).max_stale(HUGE).get(|| 2), 2);
    assert_eq!(
        *cell.request().or_stale().newer_than(2).wait_at_most(SECOND).try_get(|| Err(Down(1))).unwrap(),
        2
    );
    assert_eq!(format!("{:?}", cell.request().no_cache()), "Request { .. }");
}

/// The demand is made when the call begins, not when the request is made.
#[test]
fn no_cache_counts_from_the_finishing_call() {
    let (cell, _clock) = cell();
    let request = cell.request().no_cache();
    cell.set(1);
    assert_eq!(*request.clone().get(|| 2), 2);
    assert_eq!(*request.get(|| 3), 3);
}

/// A `lookup` under conditions that finds a build running: what it publishes may not meet them, and another look says so.
#[test]
fn what_a_pending_lookup_waits_for_may_not_meet_the_conditions() {
    let (cell, _clock) = stale_cell(1);
    let request = cell.request().newer_than(2);
    let lease = cell.lookup().elected();
    let pending = request.clone().lookup().pending();
    lease.publish(2);
    assert!(matches!(pending.wait(), dogpile::Waited::Published(value) if *value == 2));
    request.lookup().elected().publish(3);
    assert_eq!(cell.get().as_deref(), Some(&3));
}

/// A restored value is as old as it was said to be.
#[test]
fn conditions_go_by_the_age_of_a_restored_value() {
    let (cell, _clock) = cell();
    cell.restore(1, TTL + 2 * SECOND);
    let lease = cell.lookup().elected();
    let finds = |request: Plain<'_>| word(&request.lookup());
    assert_eq!(finds(cell.request().max_stale(2 * SECOND)), "stale");
    assert_eq!(finds(cell.request().max_stale(2 * SECOND - TICK)), "pending");
    assert_eq!(finds(cell.request().max_age(TTL + 2 * SECOND)), "stale");
    assert_eq!(finds(cell.request().max_age(TTL + 2 * SECOND - TICK)), "pending");
    drop(lease);
}

/// Declared stale, a value is past its ttl from that moment on, however young it is.
#[test]
fn max_stale_counts_from_an_invalidation() {
    let (cell, clock) = cell();
    cell.set(1);
    cell.invalidate();
    let lease = cell.lookup().elected();
    let finds = |request: Plain<'_>| word(&request.lookup());
    assert_eq!(finds(cell.request().max_stale(Duration::ZERO)), "pending");
    clock.advance(2 * SECOND - TICK);
    assert_eq!(finds(cell.request().max_stale(2 * SECOND)), "stale");
    assert_eq!(finds(cell.request().max_age(2 * SECOND)), "stale");
    clock.advance(TICK);
    assert_eq!(finds(cell.request().max_stale(2 * SECOND)), "pending");
    drop(lease);
}

/// At the last tick of the clock too.
#[test]
fn conditions_at_the_end_of_time() {
    let (cell, clock) = cell_with(Policy::never_expires());
    cell.set(1);
    clock.advance(Duration::MAX);
    for request in [cell.request().max_stale(Duration::ZERO), cell.request().max_age(HUGE)] {
        assert_eq!(*request.get(unbuilt), 1);
    }
    assert_eq!(*cell.request().max_age(Duration::ZERO).get(|| 2), 2);
    assert_eq!(*cell.request().max_age(Duration::ZERO).get(unbuilt), 2);
    assert_eq!(*cell.request().no_cache().wait_at_most(HUGE).get(|| 3), 3);
}
