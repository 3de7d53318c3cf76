//! How what is done to a cell is drawn at random.
//!
//! Windows and steps of the clock are a few nanoseconds long, so that steps taken at random meet every boundary exactly, just
//! before and just after. Now and then they are a day or a century long, or for ever.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::model::{Kind, Patience, Settings};
use crate::operations::{
    Ahead, Build, Case, Conditions, Does, End, Finish, Found, Newer, Operation, Outcome, Peek, READERS, Read,
    Request, Set, Spawner,
};

pub(crate) fn case() -> impl Strategy<Value = Case> {
    (settings(), vec(operation(2), 1..80), vec(vec(operation(1), 1..4), 0..20), any::<bool>()).prop_map(
        |(settings, operations, meanwhile, cell_goes_first)| Case {
            settings,
            operations,
            meanwhile,
            cell_goes_first,
            at: AtomicUsize::new(usize::MAX),
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
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
        2 => (1_u32..=10).prop_map(|count| MILLISECOND / 2 * count),
        1 => Just(DAY),
        1 => Just(Duration::MAX),
    ]
}

const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CENTURY: Duration = DAY.saturating_mul(36_525);

fn step() -> impl Strategy<Value = Duration> {
    prop_oneof![
        60 => (1_u64..=6).prop_map(Duration::from_nanos),
        10 => (1_u32..=4).prop_map(|count| MILLISECOND / 2 * count),
        6 => Just(100 * MILLISECOND),
        4 => Just(DAY),
        2 => Just(CENTURY),
        1 => Just(Duration::MAX),
    ]
}

/// Of a value that is restored.
fn age() -> impl Strategy<Value = Duration> {
    prop_oneof![6 => window(), 1 => Just(CENTURY)]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Network), Just(Kind::Parse)]
}

/// `depth`: how many builds may run inside one another.
fn operation(depth: u32) -> BoxedStrategy<Operation> {
    prop_oneof![
        8 => (plain_read(), build(depth)).prop_map(|(read, build)| Operation::Read(read, build)),
        14 => (request(depth), build(depth))
            .prop_map(|(request, build)| Operation::Read(Read::Request(request), build)),
        2 => overtaken(),
        8 => (any::<bool>(), option::weighted(0.5, conditions()))
            .prop_map(|(owned, conditions)| Operation::Lookup { owned, conditions }),
        6 => (0..4_usize, end()).prop_map(|(which, end)| Operation::EndLease(which, end)),
        4 => (0..4_usize, patience()).prop_map(|(which, patience)| Operation::Wait(which, patience)),
        1 => (0..4_usize).prop_map(Operation::Leave),
        3 => (0..4_usize).prop_map(Operation::RunJob),
        1 => (0..4_usize).prop_map(Operation::DropJob),
        2 => peek().prop_map(Operation::Peek),
        2 => (0..READERS).prop_map(Operation::ReaderGet),
        1 => (0..READERS).prop_map(Operation::ReaderGetUnlessDue),
        1 => (0..READERS).prop_map(Operation::ReaderRelease),
        5 => set().prop_map(Operation::Set),
        2 => Just(Operation::Invalidate),
        2 => any::<bool>().prop_map(|remembered| Operation::InvalidateIfCurrent { remembered }),
        1 => Just(Operation::Remember),
        2 => Just(Operation::Clear),
        2 => Just(Operation::Revoke),
        1 => Just(Operation::Reset),
        2 => attach(),
        1 => Just(Operation::RefreshNow),
        1 => Just(Operation::WaitReady),
        1 => (1..=9_u32).prop_map(Operation::Outage),
        5 => found().prop_map(Operation::Conclude),
        1 => found().prop_map(Operation::Detach),
        4 => step().prop_map(Operation::Advance),
        5 => (0..4_usize, 0..=1_u64).prop_map(|(which, past)| Operation::AdvanceTo(which, past)),
    ]
    .boxed()
}

fn plain_read() -> impl Strategy<Value = Read> {
    prop_oneof![
        2 => Just(Read::GetOrRefresh),
        1 => Just(Read::LoadOrRefresh),
        3 => kind().prop_map(Read::TryGetOrRefresh),
        2 => (0..READERS).prop_map(Read::Reader),
    ]
}

fn request(depth: u32) -> impl Strategy<Value = Request> {
    let finish = prop_oneof![
        1 => Just(Finish::Get),
        1 => kind().prop_map(Finish::TryGet),
        1 => kind().prop_map(Finish::TryGetWith),
    ];
    (conditions(), finish, any::<bool>(), option::of(spawner(depth)))
        .prop_map(|(conditions, finish, owned, spawner)| Request { conditions, finish, owned, spawner })
}

fn conditions() -> impl Strategy<Value = Conditions> {
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
}

fn newer() -> impl Strategy<Value = Newer> {
    prop_oneof![
        4 => (0..=2_u64).prop_map(Newer::Before),
        1 => (1..=2_u64).prop_map(Newer::After),
        1 => Just(Newer::Last),
    ]
}

fn spawner(depth: u32) -> BoxedStrategy<Spawner> {
    let does = prop_oneof![
        4 => Just(Does::Run),
        2 => Just(Does::Drop),
        4 => Just(Does::Keep),
        1 => Just(Does::Panic),
    ];
    (some(depth), does, some(depth)).prop_map(|(before, does, after)| Spawner { before, does, after }).boxed()
}

fn build(depth: u32) -> BoxedStrategy<Build> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Value),
        2 => window().prop_map(Outcome::ValueFor),
        2 => Just(Outcome::NotModified),
        4 => Just(Outcome::Error),
        1 => Just(Outcome::Panic),
    ];
    (some(depth), outcome).prop_map(|(inside, outcome)| Build { inside, outcome }).boxed()
}

/// Operations inside another.
fn some(depth: u32) -> BoxedStrategy<Vec<Operation>> {
    match depth {
        0 => Just(Vec::new()).boxed(),
        _ => prop_oneof![2 => Just(Vec::new()), 1 => vec(operation(depth - 1), 1..5)].boxed(),
    }
}

/// A build that takes so long that another caller is elected: rare enough to be drawn as a whole.
fn overtaken() -> impl Strategy<Value = Operation> {
    (plain_read(), step(), any::<bool>()).prop_map(|(read, step, owned)| {
        let inside = vec![Operation::Advance(step), Operation::Lookup { owned, conditions: None }];
        Operation::Read(read, Build { inside, outcome: Outcome::Value })
    })
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        4 => Just(End::Publish),
        3 => window().prop_map(End::PublishFor),
        1 => Just(End::PublishArc),
        3 => option::of(window()).prop_map(End::PublishSnapshot),
        2 => Just(End::Renew),
        1 => window().prop_map(End::RenewFor),
        3 => kind().prop_map(End::Fail),
        1 => Just(End::Drop),
        1 => Just(End::DropInAPanic),
        1 => Just(End::Forget),
    ]
}

fn peek() -> impl Strategy<Value = Peek> {
    prop_oneof![Just(Peek::Get), Just(Peek::Load), Just(Peek::GetUnlessDue)]
}

fn set() -> impl Strategy<Value = Set> {
    prop_oneof![
        2 => Just(Set::New),
        2 => window().prop_map(Set::NewFor),
        1 => Just(Set::Shared),
        1 => Just(Set::Again),
        4 => age().prop_map(Set::Restored),
    ]
}

fn attach() -> impl Strategy<Value = Operation> {
    let ahead = prop_oneof![1 => window().prop_map(Ahead::By), 4 => (0..=110_u32).prop_map(Ahead::Percent)];
    (ahead, prop::bool::weighted(0.7), prop::bool::weighted(0.4), option::of(window()))
        .prop_map(|(ahead, task, rests, min_interval)| Operation::Attach { ahead, task, rests, min_interval })
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
        3 => window().prop_map(Patience::For),
        2 => Just(Patience::Endless),
    ]
}
