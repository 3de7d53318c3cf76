//! How what is done to a cell is drawn at random.
//!
//! Windows and steps of the clock are a few nanoseconds long, so that steps taken at random meet every boundary exactly, just
//! before and just after. Now and then they are a day or a century long, or for ever.

mod dogpile_cell;
mod sync_reader_cell;

use std::time::Duration;

use dogpile::Drain;
use proptest::option;
use proptest::prelude::*;

pub(crate) use self::dogpile_cell::case as case_of_dogpile_cell;
pub(crate) use self::sync_reader_cell::case as case_of_sync_reader_cell;
use crate::model::{Kind, Settings};
use crate::operations::{Build, Conditions, Newer, Operation, Outcome, Which};

fn settings(drain: impl Strategy<Value = Option<Drain>>) -> impl Strategy<Value = Settings> {
    let some_backoff = (1_u64..=6, window()).prop_map(|(first, max)| {
        let first = Duration::from_nanos(first);
        (first, max.max(first))
    });
    let backoff = prop_oneof![3 => some_backoff, 2 => Just((Duration::ZERO, Duration::ZERO))];
    let lease_timeout = window().prop_map(|window| window.max(Duration::from_nanos(1)));
    (
        window(),
        option::weighted(0.75, window()),
        option::weighted(0.75, window()),
        option::weighted(0.85, backoff),
        option::weighted(0.6, lease_timeout),
        0_u64..=6,
        drain,
    )
        .prop_map(
            |(
                ttl,
                stale_while_refresh,
                stale_if_error,
                retry_backoff,
                lease_timeout,
                coarse_period,
                drain,
            )| {
                Settings {
                    ttl,
                    stale_while_refresh,
                    stale_if_error,
                    retry_backoff,
                    lease_timeout,
                    coarse_period,
                    drain,
                }
            },
        )
}

/// A ttl, a window or a timeout.
fn window() -> impl Strategy<Value = Duration> {
    prop_oneof![
        2 => Just(Duration::ZERO),
        8 => (1_u64..=10).prop_map(Duration::from_nanos),
        2 => (1_u32..=10).prop_map(|count| MILLISECOND / 2 * count),
        1 => Just(DAY),
        1 => Just(Duration::MAX),
    ]
}

const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CENTURY: Duration = DAY.saturating_mul(36_525);

/// A step of the clock, not to the end of time.
fn short_step() -> impl Strategy<Value = Duration> {
    prop_oneof![
        60 => (1_u64..=6).prop_map(Duration::from_nanos),
        10 => (1_u32..=4).prop_map(|count| MILLISECOND / 2 * count),
        6 => Just(100 * MILLISECOND),
        4 => Just(DAY),
    ]
}

/// Of a value that is restored.
fn age() -> impl Strategy<Value = Duration> {
    prop_oneof![6 => window(), 1 => Just(CENTURY)]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Network), Just(Kind::Parse)]
}

fn conditions() -> BoxedStrategy<Conditions> {
    (
        option::weighted(0.3, prop_oneof![Just(Duration::ZERO), window()]),
        option::weighted(0.3, window()),
        option::weighted(0.3, newer()),
        prop::bool::weighted(0.25),
        option::weighted(0.5, prop_oneof![Just(Duration::ZERO), window()]),
        prop::bool::weighted(0.4),
    )
        .prop_map(|(max_stale, max_age, newer_than, no_cache, wait_at_most, or_stale)| Conditions {
            max_stale,
            max_age,
            newer_than,
            no_cache,
            wait_at_most,
            or_stale,
        })
        .boxed()
}

fn newer() -> impl Strategy<Value = Newer> {
    prop_oneof![
        4 => (0..=2_u64).prop_map(Newer::Before),
        1 => (1..=2_u64).prop_map(Newer::After),
        1 => Just(Newer::Last),
    ]
}

/// `inside`: what it does to its own cell.
fn build(inside: BoxedStrategy<Vec<Operation>>) -> BoxedStrategy<Build> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Value),
        2 => window().prop_map(Outcome::ValueFor),
        2 => (age(), option::of(window())).prop_map(|(age, ttl)| Outcome::Aged(age, ttl)),
        2 => Just(Outcome::NotModified),
        4 => Just(Outcome::Error),
        1 => Just(Outcome::Panic),
    ];
    (inside, outcome).prop_map(|(inside, outcome)| Build { inside, outcome }).boxed()
}

/// What a caller has seen.
fn seen() -> impl Strategy<Value = Which> {
    prop_oneof![Just(Which::Present), which().prop_map(Which::Kept)]
}

/// One of several things.
fn which() -> impl Strategy<Value = usize> {
    0..6_usize
}
