//! How what is done to a cell is drawn at random.
//!
//! Windows and steps of the clock are a few nanoseconds long, so that steps taken at random meet every boundary exactly, just
//! before and just after. Now and then they are a day or a century long, or for ever.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::model::{Kind, Patience, SHORTEST_LIFE, Settings, UNKEPT_PAUSE};
use crate::operations::{Ahead, Build, By, Case, End, Found, Operation, Outcome, READERS};

pub(crate) fn case() -> impl Strategy<Value = Case> {
    (settings(), vec(operation(2), 1..80), any::<bool>()).prop_map(
        |(settings, operations, cell_goes_first)| Case {
            settings,
            operations,
            cell_goes_first,
            at: AtomicUsize::new(usize::MAX),
        },
    )
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
        3 => (1_u32..=10).prop_map(|count| SHORTEST_LIFE / 2 * count),
        1 => (1_u64..=2).prop_map(|less| SHORTEST_LIFE - Duration::from_nanos(less)),
        1 => Just(DAY),
        1 => Just(Duration::MAX),
    ]
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CENTURY: Duration = DAY.saturating_mul(36_525);

fn step() -> impl Strategy<Value = Duration> {
    prop_oneof![
        60 => (1_u64..=6).prop_map(Duration::from_nanos),
        12 => (1_u32..=4).prop_map(|count| SHORTEST_LIFE / 2 * count),
        6 => Just(UNKEPT_PAUSE),
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
        1 => (0..READERS).prop_map(Operation::ReaderGetUnlessDue),
        1 => (0..READERS).prop_map(Operation::ReaderRelease),
        2 => Just(Operation::Set),
        2 => Just(Operation::Invalidate),
        2 => Just(Operation::Clear),
        2 => (ahead(), prop::bool::weighted(0.7)).prop_map(|(ahead, task)| Operation::Attach { ahead, task }),
        1 => (1..=9_u32).prop_map(Operation::Outage),
        5 => found().prop_map(Operation::Conclude),
        1 => found().prop_map(Operation::Detach),
        4 => step().prop_map(Operation::Advance),
        5 => (0..4_usize, 0..=1_u64).prop_map(|(which, past)| Operation::AdvanceTo(which, past)),
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
        2 => Just(End::Renew),
        1 => window().prop_map(End::RenewFor),
        3 => kind().prop_map(End::Fail),
        1 => Just(End::Drop),
        1 => Just(End::DropInAPanic),
        1 => Just(End::Forget),
    ]
}

fn ahead() -> impl Strategy<Value = Ahead> {
    prop_oneof![1 => window().prop_map(Ahead::By), 4 => (0..=110_u32).prop_map(Ahead::Percent)]
}

fn found() -> impl Strategy<Value = Found> {
    prop_oneof![
        4 => Just(Found::New),
        2 => window().prop_map(Found::NewFor),
        2 => Just(Found::NotModified),
        3 => Just(Found::Error),
        1 => Just(Found::Panic),
    ]
}

fn patience() -> impl Strategy<Value = Patience> {
    prop_oneof![
        6 => Just(Patience::For(Duration::ZERO)),
        2 => window().prop_map(Patience::For),
        2 => Just(Patience::Endless),
    ]
}
