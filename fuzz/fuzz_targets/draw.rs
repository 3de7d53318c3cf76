//! What the targets draw alike, and how they run a case.

use std::fmt::Debug;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use dogpile::Drain;

use crate::model::{Kind, Settings};
use crate::operations::{Conditions, Newer, Outcome, Which};
use crate::panics::reported;

const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs a case. What the model finds is a panic outside of it, for libFuzzer.
pub(crate) fn run<Case: Debug>(case: &Case, property: impl FnOnce(&Case)) {
    if let Err(report) = reported(|| property(case)) {
        panic!("{report}\n{case:?}");
    }
}

/// A ttl, a window or a timeout: mostly a few nanoseconds, so that steps taken at random meet every boundary.
pub(crate) fn window(u: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(match u.int_in_range(0..=19)? {
        0..=1 => Duration::ZERO,
        nanos @ 2..=12 => Duration::from_nanos(nanos - 1),
        13..=15 => MILLISECOND / 2 * u.int_in_range(1..=10_u32)?,
        16 => MILLISECOND - Duration::from_nanos(u.int_in_range(1..=2)?),
        17 => DAY,
        _ => Duration::MAX,
    })
}

pub(crate) fn window_that_is_not_zero(u: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(window(u)?.max(Duration::from_nanos(1)))
}

pub(crate) fn perhaps<R>(
    u: &mut Unstructured<'_>,
    draw: impl FnOnce(&mut Unstructured<'_>) -> Result<R>,
) -> Result<Option<R>> {
    u.arbitrary::<bool>()?.then(|| draw(u)).transpose()
}

/// How far the clock moves.
pub(crate) fn step(u: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(match u.int_in_range(0..=15)? {
        nanos @ 0..=7 => Duration::from_nanos(nanos + 1),
        8..=10 => MILLISECOND / 2 * u.int_in_range(1..=4_u32)?,
        11..=12 => MILLISECOND * 100,
        13 => DAY,
        14 => DAY * 36_525,
        _ => Duration::MAX,
    })
}

/// As many as the bytes give, up to a bound.
pub(crate) fn list<R>(
    u: &mut Unstructured<'_>,
    most: usize,
    mut draw: impl FnMut(&mut Unstructured<'_>) -> Result<R>,
) -> Result<Vec<R>> {
    let mut list = Vec::new();
    while list.len() < most && !u.is_empty() && u.ratio(15, 16)? {
        list.push(draw(u)?);
    }
    Ok(list)
}

pub(crate) fn settings(u: &mut Unstructured<'_>, drain: Option<Drain>) -> Result<Settings> {
    Ok(Settings {
        ttl: window(u)?,
        stale_while_refresh: perhaps(u, window)?,
        stale_if_error: perhaps(u, window)?,
        retry_backoff: perhaps(u, |u| {
            let first = Duration::from_nanos(u.int_in_range(0..=6)?);
            // Without a first pause there is none.
            let longest = if first.is_zero() { first } else { window(u)?.max(first) };
            Ok((first, longest))
        })?,
        lease_timeout: perhaps(u, window_that_is_not_zero)?,
        coarse_period: u.int_in_range(0..=6)?,
        drain,
    })
}

pub(crate) fn kind(u: &mut Unstructured<'_>) -> Result<Kind> {
    Ok(if u.arbitrary()? { Kind::Network } else { Kind::Parse })
}

pub(crate) fn conditions(u: &mut Unstructured<'_>) -> Result<Conditions> {
    // One byte says which there are.
    let made: u8 = u.arbitrary()?;
    let is_made = |bit: u8| made & (1 << bit) != 0;
    Ok(Conditions {
        max_stale: is_made(0).then(|| window(u)).transpose()?,
        max_age: is_made(1).then(|| window(u)).transpose()?,
        newer_than: is_made(2)
            .then(|| {
                Ok(match u.int_in_range(0..=7)? {
                    count @ 0..=4 => Newer::Before(count / 2),
                    count @ 5..=6 => Newer::After(count - 4),
                    _ => Newer::Last,
                })
            })
            .transpose()?,
        no_cache: is_made(3) && is_made(6),
        wait_at_most: is_made(4).then(|| window(u)).transpose()?,
        or_stale: is_made(5),
    })
}

pub(crate) fn outcome(u: &mut Unstructured<'_>) -> Result<Outcome> {
    Ok(match u.int_in_range(0..=11)? {
        0 => Outcome::Panic,
        1..=4 => Outcome::Error,
        5..=6 => Outcome::NotModified,
        7..=8 => Outcome::ValueFor(window(u)?),
        _ => Outcome::Value,
    })
}

pub(crate) fn seen(u: &mut Unstructured<'_>) -> Result<Which> {
    Ok(if u.arbitrary()? { Which::Present } else { Which::Kept(which(u)?) })
}

pub(crate) fn which(u: &mut Unstructured<'_>) -> Result<usize> {
    u.int_in_range(0..=5)
}
