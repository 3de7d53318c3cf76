//! The model and the runner of `tests/proptest`, with operations drawn from bytes.
#![no_main]
// The property tests use all of it.
#![allow(dead_code)]

mod draw;
#[path = "../../tests/proptest/model.rs"]
mod model;
#[path = "../../tests/proptest/operations.rs"]
mod operations;
#[path = "../../tests/shared/panics.rs"]
mod panics;
#[path = "../../tests/proptest/refresher.rs"]
mod refresher;
#[path = "../../tests/proptest/runner.rs"]
mod runner;
#[path = "../../tests/proptest/tokens.rs"]
mod tokens;

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;

use crate::draw::{list, perhaps, step, window, window_that_is_not_zero};
use crate::model::{Kind, Patience, Settings};
use crate::operations::{Ahead, Build, By, Case, End, Found, Operation, Outcome, READERS};

fuzz_target!(|case: Case| draw::run(&case, |case| drop(runner::run(case))));

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self {
            settings: settings(u)?,
            cell_goes_first: u.arbitrary()?,
            operations: list(u, 200, |u| operation(u, 2))?,
            at: AtomicUsize::new(usize::MAX),
        })
    }
}

fn settings(u: &mut Unstructured<'_>) -> Result<Settings> {
    Ok(Settings {
        ttl: window(u)?,
        stale_while_refresh: perhaps(u, window)?,
        stale_if_error: perhaps(u, window)?,
        retry_backoff: perhaps(u, |u| {
            let first = Duration::from_nanos(u.int_in_range(1..=6)?);
            Ok((first, window(u)?.max(first)))
        })?,
        lease_timeout: perhaps(u, window_that_is_not_zero)?,
        coarse_period: u.int_in_range(0..=6)?,
    })
}

/// `depth`: how many builds may run inside one another.
fn operation(u: &mut Unstructured<'_>, depth: u32) -> Result<Operation> {
    Ok(match u.int_in_range(0..=31)? {
        0..=4 => Operation::Refresh(by(u)?, build(u, depth, false)?),
        5..=8 => Operation::TryRefresh(kind(u)?, perhaps(u, window)?, build(u, depth, true)?),
        9..=12 => Operation::Lookup { owned: u.arbitrary()? },
        13..=15 => Operation::EndLease(which(u)?, end(u)?),
        16..=17 => Operation::Wait(which(u)?, patience(u)?),
        18 => Operation::Leave(which(u)?),
        19 => Operation::ReaderGet(u.int_in_range(0..=READERS - 1)?),
        20 => Operation::ReaderGetUnlessDue(u.int_in_range(0..=READERS - 1)?),
        21 => Operation::ReaderRelease(u.int_in_range(0..=READERS - 1)?),
        22 => Operation::Set,
        23 => Operation::Invalidate,
        24 => Operation::Clear,
        // Threads are slow.
        25 => Operation::Attach { ahead: ahead(u)?, task: u.ratio(15, 16)? },
        26 => Operation::Conclude(found(u)?),
        27 => Operation::Outage(u.int_in_range(1..=9)?),
        28 => Operation::Detach(found(u)?),
        29 => Operation::Advance(step(u)?),
        _ => Operation::AdvanceTo(which(u)?, u.int_in_range(0..=1)?),
    })
}

fn which(u: &mut Unstructured<'_>) -> Result<usize> {
    u.int_in_range(0..=3)
}

fn kind(u: &mut Unstructured<'_>) -> Result<Kind> {
    Ok(if u.arbitrary()? { Kind::Network } else { Kind::Parse })
}

fn by(u: &mut Unstructured<'_>) -> Result<By> {
    Ok(match u.int_in_range(0..=7)? {
        0..=1 => By::GetOrRefresh,
        2 => By::LoadOrRefresh,
        3 => By::GetFreshOrRefresh,
        4 => By::Refresh,
        _ => By::Reader(u.int_in_range(0..=READERS - 1)?),
    })
}

fn build(u: &mut Unstructured<'_>, depth: u32, may_fail: bool) -> Result<Build> {
    let inside =
        if depth == 0 || u.arbitrary()? { Vec::new() } else { list(u, 5, |u| operation(u, depth - 1))? };
    let result = match u.int_in_range(0..=8)? {
        0 => Outcome::Panic,
        1..=4 if may_fail => Outcome::Error,
        _ => Outcome::Value,
    };
    Ok(Build { inside, result })
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
        0..=3 => End::Publish,
        4..=5 => End::PublishFor(window(u)?),
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
