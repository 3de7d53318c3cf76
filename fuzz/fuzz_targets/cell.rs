//! The model and the runner of `tests/proptest`, with operations on a `DogpileCell` drawn from bytes.
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
use libfuzzer_sys::fuzz_target;

use crate::draw::{conditions, kind, list, outcome, perhaps, seen, settings, step, which, window};
use crate::model::Patience;
use crate::operations::{
    Ahead, Build, Case, Does, End, Finish, Found, Keep, Operation, Peek, READERS, Read, Request, Set, Spawner,
};

fuzz_target!(|case: Case| draw::run(&case, |case| drop(runner::run(case))));

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self {
            settings: settings(u, None)?,
            cell_goes_first: u.arbitrary()?,
            meanwhile: list(u, 20, |u| list(u, 3, |u| operation(u, 1)))?,
            afterwards: Vec::new(),
            operations: list(u, 200, |u| operation(u, 2))?,
            at: AtomicUsize::new(usize::MAX),
        })
    }
}

/// `depth`: how many builds may run inside one another.
fn operation(u: &mut Unstructured<'_>, depth: u32) -> Result<Operation> {
    Ok(match u.int_in_range(0..=49)? {
        0..=4 => Operation::Read(plain_read(u)?, build(u, depth)?, keep(u)?),
        5..=12 => Operation::Read(Read::Request(request(u, depth)?), build(u, depth)?, keep(u)?),
        13..=16 => Operation::Lookup { owned: u.arbitrary()?, conditions: perhaps(u, conditions)? },
        17..=20 => Operation::EndLease(which(u)?, end(u)?),
        21..=22 => Operation::Wait(which(u)?, patience(u)?),
        23 => Operation::LeavePlace(which(u)?),
        24..=25 => Operation::RunJob(which(u)?),
        26 => Operation::DropJob(which(u)?),
        27 => Operation::Peek(
            *u.choose(&[Peek::Get, Peek::Load, Peek::GetUnlessDue, Peek::Snapshot])?,
            u.arbitrary()?,
        ),
        28 => Operation::ReaderGet(reader(u)?),
        29 => Operation::ReaderGetUnlessDue(reader(u)?),
        30 => Operation::ReaderRelease(reader(u)?),
        31..=33 => Operation::Set(set(u)?, keep(u)?),
        34 => Operation::Invalidate,
        35 => Operation::InvalidateIfCurrent(seen(u)?),
        36 => match u.int_in_range(0..=3)? {
            0 => Operation::CloneHandle(which(u)?),
            1..=2 => Operation::DropHandle(which(u)?),
            _ => Operation::DropAll,
        },
        37 => Operation::Clear,
        38 => Operation::Revoke,
        39 => Operation::Reset,
        // Threads are slow.
        40 => Operation::Attach {
            ahead: ahead(u)?,
            task: u.ratio(15, 16)?,
            rests: u.arbitrary()?,
            min_interval: perhaps(u, window)?,
        },
        41 => match u.arbitrary()? {
            true => Operation::RefreshNow,
            false => Operation::WaitReady,
        },
        42 => Operation::Conclude(found(u)?),
        43 => Operation::Outage(u.int_in_range(1..=9)?),
        44 => Operation::Detach(found(u)?),
        45 => Operation::Advance(step(u)?),
        46 => Operation::ClearIfCurrent(seen(u)?),
        47 => Operation::Changed(keep(u)?),
        _ => Operation::AdvanceTo(which(u)?, u.int_in_range(0..=1)?),
    })
}

fn keep(u: &mut Unstructured<'_>) -> Result<Keep> {
    u.ratio(1, 16)
}

fn reader(u: &mut Unstructured<'_>) -> Result<usize> {
    u.int_in_range(0..=READERS - 1)
}

fn plain_read(u: &mut Unstructured<'_>) -> Result<Read> {
    Ok(match u.int_in_range(0..=7)? {
        0..=1 => Read::GetOrRefresh,
        2 => Read::LoadOrRefresh,
        3 => Read::ReaderTry(reader(u)?, kind(u)?),
        4..=5 => Read::TryGetOrRefresh(kind(u)?),
        _ => Read::Reader(reader(u)?),
    })
}

fn request(u: &mut Unstructured<'_>, depth: u32) -> Result<Request> {
    Ok(Request {
        conditions: conditions(u)?,
        finish: match u.int_in_range(0..=2)? {
            0 => Finish::Get,
            1 => Finish::TryGet(kind(u)?),
            _ => Finish::TryGetWith(kind(u)?),
        },
        owned: u.arbitrary()?,
        exchange: None,
        spawner: perhaps(u, |u| {
            Ok(Spawner {
                before: some(u, depth)?,
                does: match u.int_in_range(0..=9)? {
                    0..=3 => Does::Run,
                    4..=5 => Does::Drop,
                    6..=8 => Does::Keep,
                    _ => Does::Panic,
                },
                after: some(u, depth)?,
            })
        })?,
    })
}

fn build(u: &mut Unstructured<'_>, depth: u32) -> Result<Build> {
    Ok(Build { inside: some(u, depth)?, outcome: outcome(u)? })
}

/// Operations inside another.
fn some(u: &mut Unstructured<'_>, depth: u32) -> Result<Vec<Operation>> {
    if depth == 0 || u.ratio(2, 3)? { Ok(Vec::new()) } else { list(u, 5, |u| operation(u, depth - 1)) }
}

fn set(u: &mut Unstructured<'_>) -> Result<Set> {
    Ok(match u.int_in_range(0..=9)? {
        0..=1 => Set::New,
        2..=3 => Set::NewFor(window(u)?),
        4 => Set::Shared,
        5 => Set::Again,
        6..=8 => Set::Restored(window(u)?),
        _ => Set::Restored(step(u)?),
    })
}

fn ahead(u: &mut Unstructured<'_>) -> Result<Ahead> {
    Ok(match u.int_in_range(0..=110_u32)? {
        100 => Ahead::By(window(u)?),
        percent => Ahead::Percent(percent),
    })
}

fn found(u: &mut Unstructured<'_>) -> Result<Found> {
    Ok(match u.int_in_range(0..=7)? {
        0..=2 => Found::New,
        3 => Found::NewFor(window(u)?),
        4 => Found::NotModified,
        5..=6 => Found::Error,
        _ => Found::Panic,
    })
}

fn end(u: &mut Unstructured<'_>) -> Result<End> {
    Ok(match u.int_in_range(0..=15)? {
        0..=2 => End::Publish,
        3 => End::PublishArc,
        4 => End::PublishFor(window(u)?),
        5 => End::PublishSnapshot(perhaps(u, window)?),
        6..=7 => End::Renew,
        8 => End::RenewFor(window(u)?),
        9..=12 => End::Fail(kind(u)?),
        13 => End::Drop,
        14 => End::DropInAPanic,
        _ => End::Forget,
    })
}

fn patience(u: &mut Unstructured<'_>) -> Result<Patience> {
    Ok(match u.int_in_range(0..=3)? {
        0..=1 => Patience::For(Duration::ZERO),
        2 => Patience::For(window(u)?),
        _ => Patience::Endless,
    })
}
