//! How what is done to a cell is drawn at random.
//!
//! Windows and steps of the clock are a few nanoseconds long, so that steps taken at random meet every boundary exactly, just
//! before and just after.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use dogpile::Drain;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::model::Settings;
use crate::operations::{
    Afterwards, Build, By, Case, Conditions, Finish, How, Keep, Meanwhile, Operation, Outcome, Step,
};

pub(crate) fn case() -> impl Strategy<Value = Case> {
    (settings(), vec(operations(), 1..60), vec(meanwhile(), 0..6), vec(afterwards(), 0..12)).prop_map(
        |(settings, operations, meanwhile, afterwards)| Case {
            settings,
            operations: operations.concat(),
            meanwhile,
            afterwards,
            at: AtomicUsize::new(usize::MAX),
        },
    )
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let request = |conditions, finish, steps, outcome| {
        Operation::Refresh(By::Request(conditions, finish), Build { steps, outcome }, false)
    };
    let no_cache = Conditions { no_cache: true, ..Conditions::default() };
    // What is rare where it is left to chance: a read in a retry pause,
    let in_a_pause = (keep(), conditions()).prop_map(move |(keep, conditions)| {
        let fail = |conditions| request(conditions, Finish::TryGet, Vec::new(), Outcome::Error);
        vec![Operation::Set(How::AsPolicySays, keep), fail(no_cache), Operation::Invalidate, fail(conditions)]
    });
    // a value that is to be renewed, and is replaced meanwhile,
    let gone = (how(), keep()).prop_map(move |(how, keep)| {
        let replace = Step::Do(Operation::Set(how, keep));
        vec![request(no_cache, Finish::TryGetWith, vec![replace], Outcome::NotModified)]
    });
    // and a section over a fresh value that is put back.
    let put_back = prop_oneof![3 => Just(Operation::Invalidate), 1 => operation(0)].prop_map(move |inside| {
        let steps = vec![Step::Lock(None), Step::Do(inside)];
        let fails = request(no_cache, Finish::TryGetWithWriter, steps, Outcome::Error);
        vec![Operation::LeaveAll, Operation::Set(How::AsPolicySays, false), fails]
    });
    prop_oneof![
        40 => operation(2).prop_map(|operation| vec![operation]),
        1 => in_a_pause,
        1 => gone,
        1 => put_back,
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let lease_timeout = window().prop_map(|window| window.max(Duration::from_nanos(1)));
    (
        window(),
        option::weighted(0.3, window()),
        option::weighted(0.3, window()),
        // Seldom the default, whose pauses are long.
        option::weighted(0.9, prop_oneof![1 => Just((0, 0)), 1 => (1_u64..=6, 0_u64..=10)]),
        option::weighted(0.5, lease_timeout),
        prop_oneof![2 => Just(Drain::Background), 1 => patience().prop_map(Drain::Wait)],
    )
        .prop_map(|(ttl, stale_while_refresh, stale_if_error, backoff, lease_timeout, drain)| Settings {
            ttl,
            stale_while_refresh,
            stale_if_error,
            retry_backoff: backoff
                .map(|(first, more)| (Duration::from_nanos(first), Duration::from_nanos(first + more))),
            lease_timeout,
            drain,
        })
}

/// A ttl, a window or a timeout.
fn window() -> impl Strategy<Value = Duration> {
    prop_oneof![
        2 => Just(Duration::ZERO),
        9 => (1..=LONGEST_WINDOW).prop_map(Duration::from_nanos),
        1 => Just(Duration::MAX),
    ]
}

/// How long a wait may last. It has an end: there is no other thread that could end it.
fn patience() -> impl Strategy<Value = Duration> {
    prop_oneof![
        3 => Just(Duration::ZERO),
        3 => (1..=LONGEST_WINDOW).prop_map(Duration::from_nanos),
        1 => Just(Duration::from_secs(1)),
    ]
}

/// In nanoseconds, but for those without an end.
const LONGEST_WINDOW: u64 = 10;

/// `depth`: how many builds may run inside one another.
fn operation(depth: u32) -> BoxedStrategy<Operation> {
    prop_oneof![
        14 => refresh(depth),
        5 => Just(Operation::Get),
        2 => Just(Operation::Load),
        2 => which().prop_map(Operation::Clone),
        9 => which().prop_map(Operation::Leave),
        4 => which().prop_map(Operation::LeaveGuard),
        2 => Just(Operation::LeaveAll),
        1 => Just(Operation::Snapshot),
        5 => (how(), keep()).prop_map(|(how, keep)| Operation::Set(how, keep)),
        6 => Just(Operation::Invalidate),
        2 => which().prop_map(Operation::InvalidateIfCurrent),
        2 => Just(Operation::Clear),
        1 => Just(Operation::Reset),
        1 => Just(Operation::Revoke),
        2 => patience().prop_map(Operation::Synchronize),
        3 => (1_u64..=6).prop_map(|nanos| Operation::Advance(Duration::from_nanos(nanos))),
        3 => (0..4_usize, 0..=1_u64).prop_map(|(which, past)| Operation::AdvanceTo(which, past)),
    ]
    .boxed()
}

fn how() -> BoxedStrategy<How> {
    prop_oneof![
        3 => Just(How::AsPolicySays),
        1 => window().prop_map(How::For),
        // The longest is from long before the clock began.
        2 => prop_oneof![
            6 => (0..=2 * LONGEST_WINDOW).prop_map(Duration::from_nanos),
            1 => Just(Duration::from_secs(3_000_000_000)),
        ]
        .prop_map(How::Restored),
    ]
    .boxed()
}

fn conditions() -> BoxedStrategy<Conditions> {
    (
        option::weighted(0.3, window()),
        option::weighted(0.2, window()),
        option::weighted(0.3, 0..=3_u64),
        prop::bool::weighted(0.3),
        option::weighted(0.2, window()),
        prop::bool::weighted(0.4),
        option::weighted(0.2, which()),
    )
        .prop_map(|(max_stale, max_age, newer_than, no_cache, wait_at_most, or_stale, exchange)| Conditions {
            max_stale,
            max_age,
            newer_than,
            no_cache,
            wait_at_most,
            or_stale,
            exchange,
        })
        .boxed()
}

fn refresh(depth: u32) -> BoxedStrategy<Operation> {
    let request = |finish| {
        let conditions = prop_oneof![1 => Just(Conditions::default()), 3 => conditions()];
        conditions.prop_map(move |conditions| By::Request(conditions, finish)).boxed()
    };
    let calm = prop_oneof![
        2 => Just(By::GetOrRefresh),
        1 => Just(By::LoadOrRefresh),
        1 => which().prop_map(By::Exchange),
        2 => request(Finish::Get),
    ];
    let fallible = prop_oneof![1 => Just(By::TryGetOrRefresh), 2 => request(Finish::TryGet)];
    let value_or_panic = || prop_oneof![5 => Just(Outcome::Value), 1 => Just(Outcome::Panic)];
    let any_outcome =
        || prop_oneof![3 => Just(Outcome::Value), 3 => Just(Outcome::Error), 1 => Just(Outcome::Panic)];
    let conditional = prop_oneof![2 => any_outcome(), 1 => Just(Outcome::NotModified)];
    let build = (
        prop_oneof![
            3 => (calm, value_or_panic()),
            2 => (fallible, any_outcome()),
            2 => (request(Finish::TryGetWith), conditional),
            3 => (request(Finish::GetWithWriter), value_or_panic()),
            4 => (request(Finish::TryGetWithWriter), any_outcome()),
        ],
        steps(depth),
        keep(),
    );
    build
        .prop_map(|((by, outcome), steps, keep)| Operation::Refresh(by, Build { steps, outcome }, keep))
        .boxed()
}

fn steps(depth: u32) -> BoxedStrategy<Vec<Step>> {
    let lock = || {
        prop_oneof![
            4 => option::of(patience()).prop_map(Step::Lock),
            1 => Just(Step::Mark),
        ]
    };
    if depth == 0 {
        return vec(lock(), 0..2).boxed();
    }
    let inside = || operation(depth - 1).prop_map(Step::Do);
    // Time passes, and another caller builds. Rare where it is left to chance.
    let overtaken = (refresh(depth - 1), inside(), lock()).prop_map(|(refresh, inside, lock)| {
        let pass = Operation::Advance(Duration::from_nanos(LONGEST_WINDOW));
        vec![Step::Do(pass), Step::Do(refresh), inside, lock]
    });
    let inside_a_section = prop_oneof![
        1 => Just(Step::Mark),
        1 => Just(Step::Do(Operation::Clear)),
        1 => Just(Step::Do(Operation::Reset)),
        1 => Just(Step::Do(Operation::Revoke)),
        1 => Just(Step::Do(Operation::Invalidate)),
        1 => patience().prop_map(|wait| Step::Do(Operation::Synchronize(wait))),
        1 => (how(), keep()).prop_map(|(how, keep)| Step::Do(Operation::Set(how, keep))),
        2 => inside(),
    ];
    let section =
        (lock(), vec(inside_a_section, 1..4)).prop_map(|(lock, inside)| [vec![lock], inside].concat());
    let one = |step| vec![step];
    let steps = prop_oneof![
        5 => lock().prop_map(one),
        10 => inside().prop_map(one),
        3 => section,
        1 => overtaken,
    ];
    vec(steps, 0..6).prop_map(|steps| steps.concat()).boxed()
}

fn meanwhile() -> impl Strategy<Value = Meanwhile> {
    prop_oneof![3 => which().prop_map(Meanwhile::Leave), 1 => Just(Meanwhile::TimePasses)]
}

fn afterwards() -> impl Strategy<Value = Afterwards> {
    prop_oneof![1 => which().prop_map(Afterwards::Clone), 4 => which().prop_map(Afterwards::Leave)]
}

fn which() -> impl Strategy<Value = usize> {
    0..6_usize
}

fn keep() -> impl Strategy<Value = Keep> {
    prop::bool::weighted(0.3)
}
