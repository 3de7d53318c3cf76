//! What is done to a cell, and how it is drawn at random.
//!
//! Windows and steps are a few nanoseconds long, so that steps taken at random meet every boundary exactly, just
//! before and just after. Now and then they are a day or a century long, or for ever.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::model::{Kind, Patience, Settings};

/// How many long-lived `Reader`s there are.
pub(crate) const READERS: usize = 2;

/// One case: a cell, and what is done to it.
pub(crate) struct Case {
    pub(crate) settings: Settings,
    pub(crate) operations: Vec<Operation>,
    /// Which of them runs: for the watchdog, which cannot ask the thread that hangs.
    pub(crate) at: AtomicUsize,
}

impl fmt::Debug for Case {
    /// One operation on a line, and a mark at the one that runs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.settings)?;
        for (number, operation) in self.operations.iter().enumerate() {
            let mark = if number == self.at.load(Ordering::Relaxed) { "=>" } else { "  " };
            write!(f, "\n{mark}{number:4} {operation:?}")?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// A read that cannot report an error.
    Refresh(By, Build),
    /// `try_get_or_refresh`; with a time, `try_get_or_refresh_timeout`.
    TryRefresh(Kind, Option<Duration>, Build),
    /// `lookup` or `lookup_owned`. A lease or a place is kept for later.
    Lookup {
        owned: bool,
    },
    /// Ends one of the kept leases. (Here and below: the number is taken modulo how many there are.)
    EndLease(usize, End),
    /// Waits at one of the kept places. Where nothing has ended yet it stays.
    Wait(usize, Patience),
    /// Drops one of the kept places.
    Leave(usize),
    ReaderGet(usize),
    ReaderRelease(usize),
    Set,
    Invalidate,
    Clear,
    Advance(Duration),
    /// To one of the next moments at which something changes by itself, and so many nanoseconds past it.
    AdvanceTo(usize, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    GetOrRefresh,
    LoadOrRefresh,
    GetFreshOrRefresh,
    Refresh,
    Reader(usize),
}

/// A closure that builds.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    /// What it does to its own cell. Steps of the clock make it slow.
    pub(crate) inside: Vec<Operation>,
    pub(crate) result: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Value,
    /// Only where the closure can return one.
    Error,
    Panic,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Publish,
    PublishFor(Duration),
    Renew,
    Fail(Kind),
    Drop,
    DropInAPanic,
    /// `mem::forget`. An owned lease is dropped instead: it would leak the cell.
    Forget,
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    (settings(), vec(operation(2), 1..80)).prop_map(|(settings, operations)| Case {
        settings,
        operations,
        at: AtomicUsize::new(usize::MAX),
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    let backoff = (1_u64..=6, window()).prop_map(|(first, max)| {
        let first = Duration::from_nanos(first);
        (first, max.max(first))
    });
    let lease_timeout = window().prop_map(|window| window.max(Duration::from_nanos(1)));
    (
        window(),
        option::weighted(0.75, window()),
        option::weighted(0.75, window()),
        option::weighted(0.75, backoff),
        option::weighted(0.6, lease_timeout),
        0_u64..=6,
    )
        .prop_map(
            |(ttl, stale_while_refresh, stale_if_error, retry_backoff, lease_timeout, coarse_period)| {
                Settings {
                    ttl,
                    stale_while_refresh,
                    stale_if_error,
                    retry_backoff,
                    lease_timeout,
                    coarse_period,
                }
            },
        )
}

/// A ttl, a window or a timeout.
fn window() -> impl Strategy<Value = Duration> {
    prop_oneof![
        2 => Just(Duration::ZERO),
        8 => (1_u64..=10).prop_map(Duration::from_nanos),
        1 => Just(DAY),
        1 => Just(Duration::MAX),
    ]
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CENTURY: Duration = DAY.saturating_mul(36_525);

fn step() -> impl Strategy<Value = Duration> {
    prop_oneof![
        60 => (1_u64..=6).prop_map(Duration::from_nanos),
        4 => Just(DAY),
        2 => Just(CENTURY),
        1 => Just(Duration::MAX),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Network), Just(Kind::Parse)]
}

/// `depth`: how many builds may run inside one another.
fn operation(depth: u32) -> BoxedStrategy<Operation> {
    prop_oneof![
        6 => (by(), build(depth, false)).prop_map(|(by, build)| Operation::Refresh(by, build)),
        2 => overtaken(),
        6 => (kind(), option::weighted(0.3, window()), build(depth, true))
            .prop_map(|(kind, wait, build)| Operation::TryRefresh(kind, wait, build)),
        8 => any::<bool>().prop_map(|owned| Operation::Lookup { owned }),
        6 => (0..4_usize, end()).prop_map(|(which, end)| Operation::EndLease(which, end)),
        4 => (0..4_usize, patience()).prop_map(|(which, patience)| Operation::Wait(which, patience)),
        1 => (0..4_usize).prop_map(Operation::Leave),
        2 => (0..READERS).prop_map(Operation::ReaderGet),
        1 => (0..READERS).prop_map(Operation::ReaderRelease),
        2 => Just(Operation::Set),
        2 => Just(Operation::Invalidate),
        2 => Just(Operation::Clear),
        4 => step().prop_map(Operation::Advance),
        4 => (0..4_usize, 0..=1_u64).prop_map(|(which, past)| Operation::AdvanceTo(which, past)),
    ]
    .boxed()
}

fn by() -> impl Strategy<Value = By> {
    prop_oneof![
        2 => Just(By::GetOrRefresh),
        1 => Just(By::LoadOrRefresh),
        1 => Just(By::GetFreshOrRefresh),
        1 => Just(By::Refresh),
        2 => (0..READERS).prop_map(By::Reader),
    ]
}

fn build(depth: u32, may_fail: bool) -> BoxedStrategy<Build> {
    let result = if may_fail {
        prop_oneof![4 => Just(Outcome::Value), 4 => Just(Outcome::Error), 1 => Just(Outcome::Panic)].boxed()
    } else {
        prop_oneof![4 => Just(Outcome::Value), 1 => Just(Outcome::Panic)].boxed()
    };
    let inside = match depth {
        0 => Just(Vec::new()).boxed(),
        _ => prop_oneof![2 => Just(Vec::new()), 1 => vec(operation(depth - 1), 1..5)].boxed(),
    };
    (inside, result).prop_map(|(inside, result)| Build { inside, result }).boxed()
}

/// A build that takes so long that somebody else is elected: rare enough to be drawn as a whole.
fn overtaken() -> impl Strategy<Value = Operation> {
    (by(), step(), any::<bool>()).prop_map(|(by, step, owned)| {
        let inside = vec![Operation::Advance(step), Operation::Lookup { owned }];
        Operation::Refresh(by, Build { inside, result: Outcome::Value })
    })
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        4 => Just(End::Publish),
        3 => window().prop_map(End::PublishFor),
        3 => Just(End::Renew),
        3 => kind().prop_map(End::Fail),
        1 => Just(End::Drop),
        1 => Just(End::DropInAPanic),
        1 => Just(End::Forget),
    ]
}

fn patience() -> impl Strategy<Value = Patience> {
    prop_oneof![
        6 => Just(Patience::For(Duration::ZERO)),
        2 => window().prop_map(Patience::For),
        2 => Just(Patience::Endless),
    ]
}
