//! The model and the runner of `tests/proptest`, with operations on a `SyncReaderCell` drawn from bytes.
#![no_main]
// The property tests use all of it.
#![allow(dead_code)]

mod draw;
#[path = "../../tests/proptest/model/mod.rs"]
mod model;
#[path = "../../tests/proptest/operations.rs"]
mod operations;
#[path = "../../tests/shared/panics.rs"]
mod panics;
#[path = "../../tests/proptest/refresher.rs"]
mod refresher;
#[path = "../../tests/proptest/runner/mod.rs"]
mod runner;
#[path = "../../tests/proptest/tokens.rs"]
mod tokens;

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use dogpile::Drain;
use libfuzzer_sys::fuzz_target;

use crate::draw::{conditions, kind, list, outcome, perhaps, seen, settings, which, window};
use crate::operations::{Build, Case, Finish, Keep, Operation, Peek, Read, Request, Set};

fuzz_target!(|case: Case| draw::run(&case, |case| drop(runner::run(case))));

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let drain = if u.arbitrary()? { Drain::Background } else { Drain::Wait(patience(u)?) };
        Ok(Self {
            settings: settings(u, Some(drain))?,
            cell_goes_first: false,
            // A reader leaves, or the time is up.
            meanwhile: list(u, 20, |u| {
                Ok(if u.ratio(1, 4)? { Vec::new() } else { vec![Operation::DropHandle(which(u)?)] })
            })?,
            afterwards: list(u, 12, |u| {
                let which = which(u)?;
                Ok(if u.ratio(1, 4)? { Operation::CloneHandle(which) } else { Operation::DropHandle(which) })
            })?,
            operations: list(u, 150, |u| operation(u, 2))?,
            at: AtomicUsize::new(usize::MAX),
        })
    }
}

/// How long a wait for readers may last; it has an end.
fn patience(u: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(match u.int_in_range(0..=15)? {
        15 => Duration::from_secs(1),
        nanos => Duration::from_nanos(nanos / 2),
    })
}

/// `depth`: how many builds may run inside one another.
fn operation(u: &mut Unstructured<'_>, depth: u32) -> Result<Operation> {
    Ok(match u.int_in_range(0..=39)? {
        0..=9 => Operation::Read(read(u)?, build(u, depth)?, keep(u)?),
        10..=12 => Operation::Peek(Peek::Get, true),
        13 => Operation::Peek(Peek::Load, true),
        14 => Operation::Peek(Peek::Snapshot, true),
        15 => Operation::CloneHandle(which(u)?),
        16..=19 => Operation::DropHandle(which(u)?),
        20..=21 => Operation::DropGuard(which(u)?),
        22 => Operation::DropAll,
        23..=26 => Operation::Set(set(u)?, keep(u)?),
        27..=29 => Operation::Invalidate,
        30 => Operation::InvalidateIfCurrent(seen(u)?),
        31 => Operation::Clear,
        32 => Operation::Reset,
        33 if u.arbitrary()? => Operation::Changed(keep(u)?),
        33 => Operation::Revoke,
        34 => Operation::Synchronize(patience(u)?),
        35..=36 => Operation::Advance(Duration::from_nanos(u.int_in_range(1..=10)?)),
        _ => Operation::AdvanceTo(which(u)?, u.int_in_range(0..=1)?),
    })
}

fn keep(u: &mut Unstructured<'_>) -> Result<Keep> {
    u.ratio(1, 3)
}

fn set(u: &mut Unstructured<'_>) -> Result<Set> {
    Ok(match u.int_in_range(0..=5)? {
        0..=2 => Set::New,
        3 => Set::NewFor(window(u)?),
        // The longest is from long before the clock began.
        _ => Set::Restored(match u.int_in_range(0..=23)? {
            21.. => Duration::from_secs(3_000_000_000),
            nanos => Duration::from_nanos(nanos),
        }),
    })
}

fn read(u: &mut Unstructured<'_>) -> Result<Read> {
    Ok(match u.int_in_range(0..=15)? {
        0..=1 => Read::GetOrRefresh,
        2 => Read::TryGetOrRefresh(kind(u)?),
        3 => Read::LoadOrRefresh,
        4 => Read::Exchange(which(u)?),
        finish => Read::Request(Request {
            conditions: conditions(u)?,
            finish: match finish {
                5..=6 => Finish::Get,
                7..=8 => Finish::TryGet(kind(u)?),
                9..=10 => Finish::TryGetWith(kind(u)?),
                11..=12 => Finish::GetWithWriter,
                _ => Finish::TryGetWithWriter(kind(u)?),
            },
            owned: u.arbitrary()?,
            spawner: None,
            exchange: perhaps(u, which)?,
        }),
    })
}

fn build(u: &mut Unstructured<'_>, depth: u32) -> Result<Build> {
    let inside = list(u, 6, |u| {
        Ok(match u.int_in_range(0..=7)? {
            0..=1 => Operation::Lock(perhaps(u, patience)?),
            2 => Operation::Mark,
            _ if depth == 0 => Operation::Mark,
            _ => operation(u, depth - 1)?,
        })
    })?;
    Ok(Build { inside, outcome: outcome(u)? })
}
