//! With jitter a ttl and a pause are drawn at random, so only their bounds are known.

use std::time::Duration;

use dogpile::{DogpileCell, Freshness, Lookup, ManualClock, Policy};
use proptest::collection::vec;
use proptest::prelude::*;

/// A policy in nanoseconds, and when to look.
#[derive(Debug)]
pub(crate) struct Case {
    percent: u8,
    ttl: u64,
    stale_while_refresh: u64,
    /// The first pause and the longest.
    backoff: (u64, u64),
    failures: u32,
    /// Ages of the value, and times since a failure.
    ages: Vec<u64>,
}

/// What the bounds leave open, and how often it has come up.
#[derive(Debug, Default)]
pub(crate) struct Met {
    pub(crate) shorter_ttls: u32,
    pub(crate) whole_ttls: u32,
    pub(crate) longer_pauses: u32,
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    (0..=100_u8, 0..300_u64, 0..300_u64, (1..50_u64, 1..300_u64), 1..6_u32, vec(0..700_u64, 0..12)).prop_map(
        |(percent, ttl, stale_while_refresh, (first, max), failures, ages)| Case {
            percent,
            ttl,
            stale_while_refresh,
            backoff: (first, first.max(max)),
            failures,
            ages,
        },
    )
}

impl Case {
    fn cell(&self) -> (DogpileCell<u32, ManualClock>, ManualClock) {
        let nanos = Duration::from_nanos;
        let policy = Policy::ttl(nanos(self.ttl))
            .stale_while_refresh(nanos(self.stale_while_refresh))
            .retry_backoff(nanos(self.backoff.0), nanos(self.backoff.1))
            .jitter(self.percent);
        let clock = ManualClock::new();
        (DogpileCell::with_clock(policy, clock.clone()), clock)
    }

    /// The most by which so long a time is shortened or lengthened.
    fn most(&self, nanos: u64) -> u64 {
        nanos * u64::from(self.percent) / 100
    }

    /// The ages at which to look, in order: some at random, and those at the bounds.
    fn ages_and(&self, bounds: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut ages = self.ages.clone();
        ages.extend(bounds);
        ages.sort_unstable();
        ages
    }
}

/// A value of a ttl, published in one of the ways there are, is fresh for that long, less the jitter.
pub(crate) fn ttls_are_within_bounds(case: &Case, met: &mut Met) {
    let (cell, clock) = case.cell();
    let own_ttl = case.ttl / 2;
    let lease = || {
        cell.clear();
        match cell.lookup() {
            Lookup::Elected(lease) => lease,
            other => panic!("no other build runs: {other:?}"),
        }
    };
    let mut check = |ttl| {
        let latest = ttl;
        let earliest = ttl - case.most(ttl);
        let window = case.stale_while_refresh;
        let bounds = [earliest, latest, earliest + window, latest + window];
        let mut last = Freshness::Fresh;
        let mut now = 0;
        for age in case.ages_and(bounds.into_iter().flat_map(|bound| [bound, bound + 1])) {
            clock.advance(Duration::from_nanos(age - now));
            now = age;
            let freshness = cell.freshness();
            match freshness {
                Freshness::Fresh => assert!(age <= latest, "fresh at {age}, past the whole ttl of {latest}"),
                Freshness::Stale => {
                    assert!(age > earliest, "stale at {age}, before {earliest}");
                    assert!(age <= latest + window, "stale at {age}, past the whole window");
                }
                Freshness::Expired => assert!(age > earliest + window, "expired at {age}"),
                Freshness::Empty => panic!("a value was published"),
            }
            assert!(rank(freshness) >= rank(last), "{last:?}, and at {age} {freshness:?} again");
            last = freshness;
            assert_eq!(cell.snapshot().map(|shot| shot.freshness), Some(freshness));
            assert_eq!(cell.get().is_some(), freshness != Freshness::Expired);
            if age == latest && latest > 0 {
                *if freshness == Freshness::Fresh { &mut met.whole_ttls } else { &mut met.shorter_ttls } += 1;
            }
        }
    };
    cell.set(0);
    check(case.ttl);
    lease().publish(1);
    check(case.ttl);
    lease().publish_for(2, Duration::from_nanos(own_ttl));
    check(own_ttl);
    cell.request().no_cache().get(|| 3);
    check(case.ttl);
}

fn rank(freshness: Freshness) -> u8 {
    match freshness {
        Freshness::Fresh => 0,
        Freshness::Stale => 1,
        Freshness::Expired | Freshness::Empty => 2,
    }
}

/// After the first failure, the second in a row, and so on, no caller is elected for a pause, plus the jitter.
pub(crate) fn pauses_are_within_bounds(case: &Case, met: &mut Met) {
    let (cell, clock) = case.cell();
    let (mut pause, longest_pause) = case.backoff;
    for failure in 1..=case.failures {
        let Lookup::Elected(lease) = cell.lookup() else { panic!("no pause runs any more") };
        lease.fail(failure.to_string());
        let end = pause + case.most(pause);
        let mut now = 0;
        for age in case.ages_and([0, pause - 1, pause, end]) {
            clock.advance(Duration::from_nanos(age - now));
            now = age;
            match cell.lookup() {
                // Dropped: unlike a failure this changes nothing.
                Lookup::Elected(_) => assert!(age >= pause, "elected at {age}, in a pause of {pause}"),
                Lookup::Failed(error) => {
                    assert_eq!(error.to_string(), failure.to_string());
                    assert!(age < end || end == 0, "still paused at {age}, past {end}");
                    met.longer_pauses += u32::from(age >= pause);
                }
                other => panic!("there is no value and no build runs: {other:?}"),
            }
        }
        pause = (pause * 2).min(longest_pause);
    }
}
