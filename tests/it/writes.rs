//! Writes from outside, and what a snapshot and a policy tell.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Freshness, Lookup, ManualClock, Policy, Stats, Waited};

use crate::support::{
    Down, LookupExt, STRICT, TICK, TTL, cell, cell_with, eventually, not_tried, panic_message, stale_cell,
    stale_cell_with, unbuilt,
};

const SECOND: Duration = Duration::from_secs(1);
/// How long past [`TTL`] a value may be served, where that is limited.
const WINDOW: Duration = Duration::from_secs(5);
const LIMITED: Policy = Policy::ttl(TTL).stale_while_refresh(WINDOW);

#[test]
fn a_value_that_is_set_may_choose_its_own_ttl() {
    let (cell, clock) = cell_with(LIMITED);
    let value = cell.set_for(1, 3 * TTL);
    assert!(Arc::ptr_eq(&value, &cell.get().unwrap()));
    clock.advance(3 * TTL);
    assert_eq!(cell.freshness(), Freshness::Fresh);
    clock.advance(TICK);
    assert_eq!(cell.freshness(), Freshness::Stale);
    // The windows of the policy apply.
    clock.advance(WINDOW);
    assert_eq!(cell.freshness(), Freshness::Expired);
    cell.set_for(2, Duration::ZERO);
    assert_eq!(cell.freshness(), Freshness::Fresh);
    clock.advance(TICK);
    assert_eq!(cell.freshness(), Freshness::Stale);
    for endless in [Duration::MAX, Duration::from_secs(u64::MAX)] {
        cell.set_for(3, endless);
        assert_eq!(cell.snapshot().unwrap().fresh_for, Duration::MAX);
    }
    // The next value has the policy's ttl again.
    cell.set(4);
    assert_eq!(cell.snapshot().unwrap().fresh_for, TTL);
    assert_eq!((cell.generation(), cell.stats().published), (5, 5));
}

#[test]
fn jitter_shortens_a_ttl_that_was_chosen_too() {
    let (cell, _clock) = cell_with(Policy::ttl(TTL).jitter(50));
    let drawn: Vec<Duration> = (0..64)
        .map(|value| {
            cell.set_for(value, 100 * TTL);
            cell.snapshot().unwrap().fresh_for
        })
        .collect();
    assert!(drawn.iter().all(|fresh_for| (50 * TTL..=100 * TTL).contains(fresh_for)), "{drawn:?}");
    // All of them alike: with a probability of 2^-60 and less.
    assert!(drawn.iter().any(|fresh_for| *fresh_for != drawn[0]));
}

#[test]
fn a_value_that_is_in_an_arc_is_set_as_it_is() {
    let (cell, clock) = cell();
    let shared = Arc::new(1);
    assert!(Arc::ptr_eq(&cell.set_arc(Arc::clone(&shared)), &shared));
    assert!(Arc::ptr_eq(&cell.get().unwrap(), &shared));
    assert_eq!(Arc::strong_count(&shared), 2);
    // The same value once more is another publication.
    clock.advance(TTL + TICK);
    let mut reader = cell.reader();
    assert_eq!(reader.get(), Some(&shared));
    cell.set_arc(Arc::clone(&shared));
    assert_eq!((cell.generation(), cell.freshness()), (2, Freshness::Fresh));
    assert_eq!(reader.get_or_refresh(unbuilt), &shared);
    cell.set(2);
    assert_eq!(**reader.get_or_refresh(unbuilt), 2);
    assert_eq!(Arc::strong_count(&shared), 1);
}

/// G4, in each of its forms: a build that runs does not displace it, and its waiters get the value.
#[test]
fn g4_every_form_of_set_comes_before_a_build_that_runs() {
    type Set = fn(&DogpileCell<u32, ManualClock>) -> Arc<u32>;
    let sets: [Set; 3] =
        [|cell| cell.set(5), |cell| cell.set_for(5, Duration::ZERO), |cell| cell.set_arc(Arc::new(5))];
    for set in sets {
        let (cell, _clock) = cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL));
        let lease = cell.lookup().elected();
        let pending = cell.lookup().pending();
        let value = set(&cell);
        assert!(matches!(pending.wait(), Waited::Published(handed) if Arc::ptr_eq(&handed, &value)));
        assert!(Arc::ptr_eq(&lease.publish(6), &value));
        assert_eq!(cell.get().as_deref(), Some(&5));
        // It ends a retry pause.
        cell.request().no_cache().lookup().elected().fail(Down(1));
        set(&cell);
        assert!(cell.last_error().is_none());
        cell.invalidate();
        assert!(matches!(cell.lookup(), Lookup::Elected(_)));
    }
}

#[test]
fn a_clear_and_an_invalidation_do_not_end_a_retry_pause() {
    let (cell, clock) = stale_cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL), 1);
    cell.lookup().elected().fail(Down(1));
    cell.invalidate();
    assert!(matches!(cell.lookup(), Lookup::Stale(_)));
    cell.clear();
    assert!(matches!(cell.lookup(), Lookup::Failed(_)));
    assert!(cell.try_get_or_refresh(not_tried).unwrap_err().is::<Down>());
    clock.advance(TTL);
    assert!(matches!(cell.lookup(), Lookup::Elected(_)));
}

/// Also with ages from before the clock's beginning, and from before all times.
#[test]
fn a_restored_value_is_as_old_as_it_was_said_to_be() {
    for uptime in [Duration::ZERO, SECOND, 1000 * TTL] {
        for (age, freshness) in [
            (Duration::ZERO, Freshness::Fresh),
            (TICK, Freshness::Fresh),
            (TTL, Freshness::Fresh),
            (TTL + TICK, Freshness::Stale),
            (TTL + WINDOW, Freshness::Stale),
            (TTL + WINDOW + TICK, Freshness::Expired),
            (1_000_000 * TTL, Freshness::Expired),
            (Duration::from_nanos(u64::MAX - 1), Freshness::Expired),
            (Duration::MAX, Freshness::Expired),
        ] {
            let (cell, clock) = cell_with(LIMITED);
            clock.advance(uptime);
            let value = cell.restore(1, age);
            let seen = cell.snapshot().unwrap();
            let context = format!("{age:?}, restored at {uptime:?}");
            assert!(Arc::ptr_eq(&value, &seen.value));
            assert_eq!((seen.freshness, cell.freshness()), (freshness, freshness), "{context}");
            assert_eq!(seen.age, age.min(Duration::from_nanos(u64::MAX)), "{context}");
            assert_eq!(seen.fresh_for, TTL.saturating_sub(age), "{context}");
            assert_eq!(seen.servable_for, (TTL + WINDOW).saturating_sub(age), "{context}");
            assert_eq!(cell.get().is_some(), freshness != Freshness::Expired, "{context}");
            assert_eq!((cell.generation(), cell.stats().published, cell.stats().builds), (1, 1, 0));
            // It is shown to the next build, however old it is.
            let lease = cell.request().no_cache().lookup().elected();
            assert_eq!(lease.previous(), Some(&value), "{context}");
        }
    }
}

#[test]
fn a_restored_value_grows_older_like_any_other() {
    let (cell, clock) = cell_with(LIMITED);
    cell.restore(1, 4 * SECOND);
    clock.advance(6 * SECOND);
    assert_eq!((cell.freshness(), cell.snapshot().unwrap().age), (Freshness::Fresh, TTL));
    assert_eq!(*cell.get_or_refresh(unbuilt), 1);
    clock.advance(TICK);
    assert_eq!(cell.freshness(), Freshness::Stale);
    clock.advance(WINDOW);
    assert_eq!(cell.freshness(), Freshness::Expired);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
}

#[test]
fn without_limits_a_value_of_any_age_is_served() {
    for age in [TTL, 1_000_000 * TTL, Duration::MAX] {
        let (cell, clock) = cell_with(Policy::never_expires());
        cell.restore(1, age);
        clock.advance(1_000_000 * TTL);
        assert_eq!(*cell.get_or_refresh(unbuilt), 1);
        assert_eq!(cell.snapshot().unwrap().fresh_for, Duration::MAX);

        let (cell, _clock) = cell_with(Policy::ttl(TTL));
        cell.restore(1, age.saturating_add(TICK));
        assert_eq!(cell.freshness(), Freshness::Stale);
        assert_eq!(cell.snapshot().unwrap().servable_for, Duration::MAX);
        assert_eq!(*cell.get_or_refresh(|| 2), 2);
    }
}

/// A build that runs brings something newer.
#[test]
fn a_restored_value_does_not_displace_a_build_that_runs() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    cell.restore(1, SECOND);
    assert!(cell.is_refreshing() && !lease.is_fenced());
    assert_eq!(cell.get().as_deref(), Some(&1));
    assert_eq!(*lease.publish(2), 2);
    assert_eq!((cell.get().as_deref(), cell.generation()), (Some(&2), 2));
    assert_eq!(cell.stats().fenced, 0);
}

/// What the build wanted to renew is not there any more.
#[test]
fn a_renewal_does_not_displace_a_value_that_was_restored_meanwhile() {
    let (cell, _clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    cell.restore(5, SECOND);
    assert_eq!(lease.renew().ok().as_deref(), Some(&5));
    assert_eq!((cell.get().as_deref(), cell.generation(), cell.is_refreshing()), (Some(&5), 2, false));
}

#[test]
fn waiters_are_handed_a_restored_value_only_if_it_may_be_served() {
    let (cell, _clock) = cell_with(LIMITED);
    let lease = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| *cell.get_or_refresh(unbuilt));
        eventually("it waits", || cell.stats().waits == 1);
        let pending = cell.lookup().pending();
        cell.restore(1, Duration::MAX);
        let pending = pending.wait_timeout(Duration::ZERO).expect_err("it has expired, so the wait goes on");
        assert!(!waiter.is_finished());
        cell.restore(2, TTL + WINDOW);
        assert!(matches!(pending.wait(), Waited::Published(value) if *value == 2));
        assert_eq!(waiter.join().unwrap(), 2);
    });
    assert_eq!(*lease.publish(3), 3);
}

/// The windows of a value that was declared stale begin then, unless it was past its ttl already.
#[test]
fn a_restored_value_can_be_declared_stale() {
    for (age, servable_for) in [(SECOND, WINDOW - TICK), (TTL + SECOND, WINDOW - SECOND)] {
        let (cell, _clock) = cell_with(LIMITED);
        cell.restore(1, age);
        cell.invalidate();
        let seen = cell.snapshot().unwrap();
        assert_eq!((seen.freshness, seen.fresh_for, seen.age), (Freshness::Stale, Duration::ZERO, age));
        assert_eq!(seen.servable_for, servable_for);
    }
}

#[test]
fn a_reset_cell_is_as_it_was_made_but_goes_on_counting() {
    let (cell, _clock) = stale_cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL), 1);
    let mut reader = cell.reader();
    assert!(reader.get().is_some());
    assert_eq!(*cell.try_get_or_refresh(|| Err(Down(1))).unwrap(), 1);
    cell.reset();
    assert_eq!((cell.get(), reader.get(), cell.freshness()), (None, None, Freshness::Empty));
    assert_eq!(cell.stats(), Stats::default());
    assert!(cell.snapshot().is_none() && cell.last_error().is_none() && !cell.is_refreshing());
    // No pause runs, and there is no previous value.
    let lease = cell.lookup().elected();
    assert!(lease.previous().is_none());
    lease.publish(2);
    assert_eq!(cell.generation(), 2);
    assert_eq!((cell.stats().builds, cell.stats().published), (1, 1));
    assert_eq!(**reader.get_or_refresh(unbuilt), 2);
    // The row of failures begins anew.
    cell.request().no_cache().lookup().elected().fail(Down(2));
    assert_eq!(cell.stats().consecutive_failures, 1);
}

#[test]
fn g4_a_build_from_before_a_reset_is_for_its_own_caller_only() {
    let (cell, _clock) = cell();
    let doomed = cell.lookup().elected();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| *cell.get_or_refresh(|| 3));
        eventually("it waits", || cell.stats().waits == 1);
        cell.reset();
        assert_eq!(waiter.join().unwrap(), 3);
    });
    assert_eq!(*doomed.publish(2), 3);
    cell.reset();
    let value = cell.get_or_refresh(|| {
        cell.reset();
        4
    });
    assert_eq!((*value, cell.get()), (4, None));
}

#[test]
fn revoke_says_whether_a_build_ran() {
    let (cell, _clock) = stale_cell(1);
    assert!(!cell.revoke());
    let lease = cell.lookup().elected();
    assert!(cell.revoke());
    assert!(!cell.revoke(), "it holds no lease any more");
    assert_eq!(*lease.publish(2), 1);
    assert_eq!((cell.generation(), cell.stats().fenced), (1, 1));
    assert!(!cell.revoke());
}

/// Only what its caller has asked for is returned in place of its own value.
#[test]
fn a_revoked_build_of_a_request_with_conditions_returns_what_meets_them() {
    let (cell, _clock) = cell();
    cell.set(1);
    let value = cell.request().no_cache().get(|| {
        assert!(cell.revoke());
        2
    });
    assert_eq!((*value, cell.get().as_deref()), (2, Some(&1)));
    let value = cell.request().newer_than(1).get(|| {
        assert!(cell.revoke());
        cell.request().no_cache().lookup().elected().publish(3);
        2
    });
    assert_eq!((*value, cell.get().as_deref()), (3, Some(&3)));
}

#[test]
fn after_a_revoke_the_next_caller_starts_anew_and_the_old_value_is_served() {
    let (cell, _clock) = stale_cell(1);
    let hangs = cell.lookup().elected();
    assert_eq!(*cell.get_or_refresh(unbuilt), 1);
    assert!(cell.revoke());
    assert_eq!(cell.get().as_deref(), Some(&1));
    let next = cell.lookup().elected();
    assert_eq!(next.previous().map(|value| **value), Some(1));
    // While it runs, the revoked one ends: its caller gets the stale value, which the cell serves now.
    assert_eq!(*hangs.publish(2), 1);
    assert!(cell.is_refreshing());
    assert_eq!(*next.publish(3), 3);
    assert_eq!(cell.get().as_deref(), Some(&3));
    assert_eq!((cell.stats().builds, cell.stats().superseded), (2, 0));
}

#[test]
fn the_caller_of_a_revoked_build_gets_what_it_has_built_if_there_is_nothing_else() {
    let (cell, _clock) = cell();
    let value = cell.get_or_refresh(|| {
        assert!(cell.revoke());
        1
    });
    assert_eq!((*value, cell.get(), cell.generation()), (1, None, 0));
    // And its own error.
    let error = cell.try_get_or_refresh(|| {
        assert!(cell.revoke());
        Err(Down(1))
    });
    assert!(error.unwrap_err().is::<Down>());
    assert!(cell.last_error().is_none());
    assert_eq!(*cell.try_get_or_refresh(|| Ok::<_, Down>(2)).unwrap(), 2);
}

#[test]
fn g7_when_a_build_is_revoked_exactly_one_waiter_is_elected_next() {
    const WAITERS: u64 = 4;
    let (cell, _clock) = cell();
    let hangs = cell.lookup().elected();
    let builds = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..WAITERS {
            scope.spawn(|| {
                assert_eq!(*cell.get_or_refresh(|| builds.fetch_add(1, Ordering::SeqCst) + 1), 1);
            });
        }
        eventually("all wait", || cell.stats().waits == WAITERS);
        assert!(cell.revoke());
    });
    assert_eq!(builds.into_inner(), 1);
    drop(hangs);
    assert_eq!(cell.get().as_deref(), Some(&1));
}

#[test]
fn a_revoked_build_that_panics_reaches_its_caller_only() {
    let (cell, _clock) = stale_cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL), 1);
    let message = panic_message(|| {
        cell.get_or_refresh(|| {
            assert!(cell.revoke());
            panic!("no")
        })
    });
    assert_eq!(message, "no");
    assert!(cell.last_error().is_none());
    assert_eq!((cell.stats().panicked, cell.stats().consecutive_failures), (1, 0));
    assert_eq!(*cell.get_or_refresh(|| 2), 2, "no pause runs");
}

/// An overdue build that no caller has superseded yet still is the one that runs.
#[test]
fn an_overdue_build_can_be_revoked() {
    let (cell, clock) = cell_with::<u32>(Policy::ttl(TTL).lease_timeout(SECOND));
    let hangs = cell.lookup().elected();
    clock.advance(2 * SECOND);
    assert!(cell.revoke());
    cell.lookup().elected().publish(1);
    assert_eq!((cell.stats().superseded, cell.stats().builds), (0, 2));
    drop(hangs);
}

/// Five requests were rejected with one and the same token, and find out one after the other: before, during and after the
/// build of the next one.
#[test]
fn five_late_rejections_of_one_token_are_one_build() {
    for policy in [Policy::ttl(TTL), Policy::never_expires()] {
        let (cell, _clock) = cell_with(policy);
        let rejected = cell.get_or_refresh(|| 1);
        assert!(cell.invalidate_if_current(&rejected));
        assert!(!cell.invalidate_if_current(&rejected));
        let build = cell.lookup().elected();
        assert!(!cell.invalidate_if_current(&rejected));
        build.publish(2);
        assert_eq!(cell.freshness(), Freshness::Fresh);
        for _ in 0..2 {
            assert!(!cell.invalidate_if_current(&rejected));
            assert_eq!(*cell.get_or_refresh(unbuilt), 2);
        }
        assert_eq!((cell.stats().builds, cell.stats().fenced), (2, 0));

        // With `invalidate`, the build would have been for nothing.
        cell.invalidate();
        let build = cell.lookup().elected();
        cell.invalidate();
        build.publish(3);
        assert_eq!((cell.freshness(), cell.stats().fenced), (Freshness::Stale, 1));
    }
}

#[test]
fn of_many_callers_that_reject_one_value_at_once_one_declares_it_stale() {
    const CALLERS: usize = if cfg!(miri) { 3 } else { 8 };
    for _ in 0..if cfg!(miri) { 2 } else { 50 } {
        let (cell, _clock) = cell();
        let rejected = cell.set(0);
        let seen = cell.generation();
        let (start, declared) = (Barrier::new(CALLERS), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    start.wait();
                    if cell.invalidate_if_current(&rejected) {
                        declared.fetch_add(1, Ordering::SeqCst);
                    }
                    assert_eq!(*cell.request().newer_than(seen).get(|| 1), 1);
                });
            }
        });
        assert_eq!(declared.into_inner(), 1);
        assert_eq!((cell.stats().builds, cell.freshness()), (1, Freshness::Fresh));
    }
}

#[test]
fn invalidate_if_current_goes_by_the_publication_not_by_equality() {
    let (cell, clock) = cell();
    let seen = cell.set(1);
    assert!(!cell.invalidate_if_current(&Arc::new(1)), "an equal value");
    // Stale by its age, but not declared stale.
    clock.advance(TTL + TICK);
    assert!(cell.invalidate_if_current(&seen));
    // Renewed: it is the value of another publication.
    cell.lookup().elected().renew().unwrap();
    assert!(cell.invalidate_if_current(&seen));
    cell.set(1);
    assert!(!cell.invalidate_if_current(&seen));
    let seen = cell.get().unwrap();
    cell.clear();
    assert!(!cell.invalidate_if_current(&seen));
    assert_eq!(cell.freshness(), Freshness::Empty);
    cell.set_arc(Arc::clone(&seen));
    assert!(cell.invalidate_if_current(&seen));
}

/// It counts as an invalidation for a build that runs: the one that the caller did not see the beginning of.
#[test]
fn invalidate_if_current_fences_a_build_that_began_before_it() {
    let (cell, _clock) = stale_cell(1);
    let seen = cell.get().unwrap();
    let build = cell.lookup().elected();
    assert!(cell.invalidate_if_current(&seen));
    build.publish(2);
    assert_eq!((cell.freshness(), cell.stats().fenced), (Freshness::Stale, 1));
}

#[test]
fn clear_if_current_goes_by_the_publication_not_by_equality() {
    let (cell, _clock) = cell();
    let seen = cell.set(1);
    assert!(!cell.clear_if_current(&Arc::new(1)), "an equal value");
    cell.set(1);
    assert!(!cell.clear_if_current(&seen), "a newer value");
    assert_eq!(cell.freshness(), Freshness::Fresh);
    let seen = cell.get().unwrap();
    assert!(cell.clear_if_current(&seen));
    assert_eq!(cell.freshness(), Freshness::Empty);
    assert!(!cell.clear_if_current(&seen), "it is gone");
}

/// As `clear` does, and only if it takes something away.
#[test]
fn clear_if_current_displaces_a_build_that_began_before_it() {
    let (cell, _clock) = stale_cell(1);
    let seen = cell.get().unwrap();
    let build = cell.lookup().elected();
    assert!(!cell.clear_if_current(&Arc::new(1)));
    assert!(!build.is_fenced());
    assert!(cell.clear_if_current(&seen));
    assert!(build.is_fenced());
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    assert_eq!(*build.publish(1), 2);
}

/// At the last tick that a snapshot tells, the value is what it is said to be, and one later it is not.
#[test]
fn the_times_in_a_snapshot_are_exact() {
    type Lead = fn(&DogpileCell<u32, ManualClock>, &ManualClock);
    let leads: [(&str, Lead); 7] = [
        ("new", |cell, _| drop(cell.set(1))),
        ("aged", |cell, clock| {
            cell.set(1);
            clock.advance(3 * SECOND);
        }),
        ("stale", |cell, clock| {
            cell.set(1);
            clock.advance(TTL + SECOND);
        }),
        ("declared stale", |cell, clock| {
            cell.set(1);
            clock.advance(SECOND);
            cell.invalidate();
            clock.advance(SECOND);
        }),
        ("with a ttl of its own", |cell, _| drop(cell.set_for(1, 3 * SECOND))),
        ("restored", |cell, _| drop(cell.restore(1, TTL + SECOND))),
        ("in a retry pause", |cell, clock| {
            cell.set(1);
            clock.advance(TTL + TICK);
            cell.lookup().elected().fail(Down(1));
        }),
    ];
    // The pause is shorter than what is left of the window for errors, or longer.
    for pause in [2 * SECOND, 100 * SECOND] {
        let policy = LIMITED.stale_if_error(3 * WINDOW).retry_backoff(pause, pause);
        for (name, lead) in leads {
            let (cell, clock) = cell_with(policy);
            lead(&cell, &clock);
            let seen = cell.snapshot().unwrap();
            assert!(cell.get().is_some() && seen.fresh_for <= seen.servable_for, "{name}");
            assert_eq!(seen.freshness == Freshness::Fresh, cell.freshness() == Freshness::Fresh, "{name}");
            if seen.freshness == Freshness::Fresh {
                clock.advance(seen.fresh_for);
                assert_eq!(cell.freshness(), Freshness::Fresh, "{name}");
                clock.advance(TICK);
            } else {
                assert_eq!(seen.fresh_for, Duration::ZERO, "{name}");
            }
            assert_eq!(cell.freshness(), Freshness::Stale, "{name}");
            let left = cell.snapshot().unwrap().servable_for;
            clock.advance(left);
            assert!(cell.get().is_some(), "{name}");
            assert_eq!(cell.snapshot().unwrap().servable_for, Duration::ZERO, "{name}");
            clock.advance(TICK);
            assert!(cell.get().is_none(), "{name}");
            let seen = cell.snapshot().unwrap();
            assert_eq!((seen.freshness, seen.servable_for), (Freshness::Expired, Duration::ZERO), "{name}");
        }
    }
}

#[test]
fn what_has_no_end_is_served_for_ever() {
    for policy in [Policy::never_expires(), Policy::ttl(Duration::MAX).jitter(100)] {
        let (cell, clock) = cell_with(policy);
        cell.set(1);
        clock.advance(1_000_000 * TTL);
        let seen = cell.snapshot().unwrap();
        assert_eq!((seen.fresh_for, seen.servable_for), (Duration::MAX, Duration::MAX));
        cell.invalidate();
        let seen = cell.snapshot().unwrap();
        assert_eq!((seen.fresh_for, seen.servable_for), (Duration::ZERO, Duration::MAX));
    }
}

#[test]
fn a_snapshot_is_cloned_without_its_value() {
    struct Opaque;
    let (cell, _clock) = cell();
    let value = cell.set(Opaque);
    let seen = cell.snapshot().unwrap();
    let copy = seen.clone();
    assert!(Arc::ptr_eq(&copy.value, &value));
    assert_eq!((copy.generation, copy.fresh_for), (seen.generation, seen.fresh_for));
    assert_eq!(
        format!("{seen:?}"),
        format!(
            "Snapshot {{ generation: 1, age: 0ns, freshness: Fresh, fresh_for: 10s, servable_for: {:?}, stale_for: 0ns, .. }}",
            Duration::MAX
        )
    );
}

#[test]
fn a_policy_tells_what_it_was_made_of() {
    const ERRORS: Duration = Duration::from_secs(30);
    const POLICY: Policy = Policy::ttl(TTL)
        .stale_while_refresh(WINDOW)
        .stale_if_error(ERRORS)
        .retry_backoff(SECOND, TTL)
        .jitter(7)
        .lease_timeout(ERRORS);
    const TTL_AT_COMPILE_TIME: Duration = POLICY.get_ttl();
    assert_eq!(TTL_AT_COMPILE_TIME, TTL);
    assert_eq!((POLICY.get_stale_while_refresh(), POLICY.get_stale_if_error()), (WINDOW, ERRORS));
    assert_eq!(POLICY.get_retry_backoff(), (SECOND, TTL));
    assert_eq!((POLICY.get_jitter(), POLICY.get_lease_timeout()), (7, ERRORS));
    assert_eq!(cell_with::<u32>(POLICY).0.policy(), POLICY);

    // By default.
    let policy = Policy::never_expires();
    assert_eq!(
        (policy.get_ttl(), policy.get_lease_timeout(), policy.get_jitter()),
        (Duration::MAX, Duration::MAX, 0)
    );
    assert_eq!(
        (policy.get_stale_while_refresh(), policy.get_stale_if_error()),
        (Duration::MAX, Duration::MAX)
    );
    assert_eq!(policy.get_retry_backoff(), (Duration::from_millis(100), TTL));
    // The window for errors follows the other one until it is set, in whichever order.
    assert_eq!(policy.stale_while_refresh(WINDOW).get_stale_if_error(), WINDOW);
    assert_eq!(policy.stale_if_error(ERRORS).stale_while_refresh(WINDOW).get_stale_if_error(), ERRORS);
    assert_eq!(STRICT.get_stale_if_error(), Duration::ZERO);
    assert_eq!(STRICT.get_retry_backoff(), (Duration::ZERO, Duration::ZERO));
    // What does not fit is for ever.
    let policy = Policy::ttl(Duration::from_secs(u64::MAX)).stale_if_error(Duration::from_nanos(u64::MAX));
    assert_eq!((policy.get_ttl(), policy.get_stale_if_error()), (Duration::MAX, Duration::MAX));
    let almost = Duration::from_nanos(u64::MAX - 1);
    assert_eq!(Policy::ttl(almost).get_ttl(), almost);
}
