//! The model and the runner of `tests/sync_proptest`, with operations drawn from bytes.
#![no_main]
// The property tests use all of it.
#![allow(dead_code)]

mod draw;
#[path = "../../tests/sync_proptest/model.rs"]
mod model;
#[path = "../../tests/sync_proptest/operations.rs"]
mod operations;
#[path = "../../tests/shared/panics.rs"]
mod panics;
#[path = "../../tests/sync_proptest/runner.rs"]
mod runner;
#[path = "../../tests/sync_proptest/tokens.rs"]
mod tokens;

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use dogpile::Drain;
use libfuzzer_sys::fuzz_target;

use crate::draw::{list, perhaps};
use crate::model::Settings;
use crate::operations::{
    Afterwards, Build, By, Case, Conditions, Finish, How, Keep, Meanwhile, Operation, Outcome, Step,
};

fuzz_target!(|case: Case| draw::run(&case, |case| drop(runner::run(case))));

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self {
            settings: settings(u)?,
            meanwhile: list(u, 6, |u| {
                Ok(if u.ratio(1, 4)? { Meanwhile::TimePasses } else { Meanwhile::Leave(which(u)?) })
            })?,
            afterwards: list(u, 12, |u| {
                Ok(if u.ratio(1, 4)? { Afterwards::Clone(which(u)?) } else { Afterwards::Leave(which(u)?) })
            })?,
            operations: list(u, 150, |u| operation(u, 2))?,
            at: AtomicUsize::new(usize::MAX),
        })
    }
}

fn settings(u: &mut Unstructured<'_>) -> Result<Settings> {
    Ok(Settings {
        ttl: window(u)?,
        stale_while_refresh: perhaps(u, window)?,
        stale_if_error: perhaps(u, window)?,
        // `None`: the default, whose pauses are long.
        retry_backoff: match u.int_in_range(0..=4)? {
            0 => None,
            1..=2 => Some((Duration::ZERO, Duration::ZERO)),
            _ => {
                let first = u.int_in_range(1..=6)?;
                let most = first + u.int_in_range(0..=10)?;
                Some((Duration::from_nanos(first), Duration::from_nanos(most)))
            }
        },
        lease_timeout: perhaps(u, |u| Ok(window(u)?.max(Duration::from_nanos(1))))?,
        drain: if u.arbitrary()? { Drain::Background } else { Drain::Wait(patience(u)?) },
    })
}

/// A ttl, a window or a timeout: short, or without an end.
fn window(u: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(match u.int_in_range(0..=11)? {
        11 => Duration::MAX,
        nanos => Duration::from_nanos(nanos),
    })
}

/// How long a wait may last; it has an end.
fn patience(u: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(match u.int_in_range(0..=15)? {
        15 => Duration::from_secs(1),
        nanos => Duration::from_nanos(nanos / 2),
    })
}

/// `depth`: how many builds may run inside one another.
fn operation(u: &mut Unstructured<'_>, depth: u32) -> Result<Operation> {
    Ok(match u.int_in_range(0..=39)? {
        0..=9 => {
            let by = by(u)?;
            Operation::Refresh(by, build(u, by, depth)?, keep(u)?)
        }
        10..=12 => Operation::Get,
        13 => Operation::Load,
        14 => Operation::Snapshot,
        15 => Operation::Clone(which(u)?),
        16..=19 => Operation::Leave(which(u)?),
        20..=21 => Operation::LeaveGuard(which(u)?),
        22 => Operation::LeaveAll,
        23..=26 => Operation::Set(how(u)?, keep(u)?),
        27..=29 => Operation::Invalidate,
        30 => Operation::InvalidateIfCurrent(which(u)?),
        31 => Operation::Clear,
        32 => Operation::Reset,
        33 => Operation::Revoke,
        34 => Operation::Synchronize(patience(u)?),
        35..=36 => Operation::Advance(Duration::from_nanos(u.int_in_range(1..=10)?)),
        _ => Operation::AdvanceTo(which(u)?, u.int_in_range(0..=1)?),
    })
}

fn which(u: &mut Unstructured<'_>) -> Result<usize> {
    u.int_in_range(0..=5)
}

fn keep(u: &mut Unstructured<'_>) -> Result<Keep> {
    u.ratio(1, 3)
}

fn how(u: &mut Unstructured<'_>) -> Result<How> {
    Ok(match u.int_in_range(0..=5)? {
        0..=2 => How::AsPolicySays,
        3 => How::For(window(u)?),
        // The longest is from long before the clock began.
        _ => How::Restored(match u.int_in_range(0..=23)? {
            21.. => Duration::from_secs(3_000_000_000),
            nanos => Duration::from_nanos(nanos),
        }),
    })
}

fn by(u: &mut Unstructured<'_>) -> Result<By> {
    Ok(match u.int_in_range(0..=15)? {
        0..=1 => By::GetOrRefresh,
        2 => By::TryGetOrRefresh,
        3 => By::LoadOrRefresh,
        4 => By::Exchange(which(u)?),
        finish => {
            let finish = match finish {
                5..=6 => Finish::Get,
                7..=8 => Finish::TryGet,
                9..=10 => Finish::TryGetWith,
                11..=12 => Finish::GetWithWriter,
                _ => Finish::TryGetWithWriter,
            };
            By::Request(conditions(u)?, finish)
        }
    })
}

fn conditions(u: &mut Unstructured<'_>) -> Result<Conditions> {
    // One byte says which there are.
    let made: u8 = u.arbitrary()?;
    let is_made = |bit: u8| made & (1 << bit) != 0;
    Ok(Conditions {
        max_stale: is_made(0).then(|| window(u)).transpose()?,
        max_age: is_made(1).then(|| window(u)).transpose()?,
        newer_than: is_made(2).then(|| u.int_in_range(0..=3)).transpose()?,
        no_cache: is_made(3),
        wait_at_most: is_made(4).then(|| window(u)).transpose()?,
        or_stale: is_made(5),
        exchange: is_made(6).then(|| which(u)).transpose()?,
    })
}

fn build(u: &mut Unstructured<'_>, by: By, depth: u32) -> Result<Build> {
    let (may_fail, may_renew) = match by {
        By::TryGetOrRefresh | By::Request(_, Finish::TryGet | Finish::TryGetWithWriter) => (true, false),
        By::Request(_, Finish::TryGetWith) => (true, true),
        _ => (false, false),
    };
    let steps = list(u, 6, |u| step(u, depth))?;
    let outcome = match u.int_in_range(0..=10)? {
        0 => Outcome::Panic,
        1..=4 if may_fail => Outcome::Error,
        5..=6 if may_renew => Outcome::NotModified,
        _ => Outcome::Value,
    };
    Ok(Build { steps, outcome })
}

fn step(u: &mut Unstructured<'_>, depth: u32) -> Result<Step> {
    Ok(match u.int_in_range(0..=7)? {
        0..=1 => Step::Lock(perhaps(u, patience)?),
        2 => Step::Mark,
        _ if depth == 0 => Step::Mark,
        _ => Step::Do(operation(u, depth - 1)?),
    })
}
