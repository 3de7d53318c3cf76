//! What is done to a `DogpileCell`.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{CENTURY, age, build, conditions, kind, seen, settings, short_step, which, window};
use crate::model::Patience;
use crate::operations::{
    Ahead, Build, Case, Does, End, Finish, Found, Keep, Operation, Outcome, Peek, READERS, Read, Request,
    Set, Spawner,
};

pub(crate) fn case() -> impl Strategy<Value = Case> {
    (settings(Just(None)), vec(operation(2), 1..80), vec(vec(operation(1), 1..4), 0..20), any::<bool>())
        .prop_map(|(settings, operations, meanwhile, cell_goes_first)| Case {
            settings,
            operations,
            meanwhile,
            afterwards: Vec::new(),
            cell_goes_first,
            at: AtomicUsize::new(usize::MAX),
        })
}

/// `depth`: how many builds may run inside one another.
fn operation(depth: u32) -> BoxedStrategy<Operation> {
    prop_oneof![
        8 => (plain_read(), build(some(depth)), keep())
            .prop_map(|(read, build, keep)| Operation::Read(read, build, keep)),
        14 => (request(depth), build(some(depth)), keep())
            .prop_map(|(request, build, keep)| Operation::Read(Read::Request(request), build, keep)),
        2 => overtaken(),
        8 => (any::<bool>(), option::weighted(0.5, conditions()))
            .prop_map(|(owned, conditions)| Operation::Lookup { owned, conditions }),
        6 => (0..4_usize, end()).prop_map(|(which, end)| Operation::EndLease(which, end)),
        4 => (0..4_usize, patience()).prop_map(|(which, patience)| Operation::Wait(which, patience)),
        1 => (0..4_usize).prop_map(Operation::LeavePlace),
        3 => (0..4_usize).prop_map(Operation::RunJob),
        1 => (0..4_usize).prop_map(Operation::DropJob),
        2 => (peek(), keep()).prop_map(|(peek, keep)| Operation::Peek(peek, keep)),
        1 => Just(Operation::Peek(Peek::Snapshot, true)),
        1 => which().prop_map(Operation::CloneHandle),
        2 => which().prop_map(Operation::DropHandle),
        1 => Just(Operation::DropAll),
        2 => (0..READERS).prop_map(Operation::ReaderGet),
        1 => (0..READERS).prop_map(Operation::ReaderGetUnlessDue),
        1 => (0..READERS).prop_map(Operation::ReaderRelease),
        5 => (set(), keep()).prop_map(|(set, keep)| Operation::Set(set, keep)),
        2 => keep().prop_map(Operation::Changed),
        2 => Just(Operation::Invalidate),
        2 => seen().prop_map(Operation::InvalidateIfCurrent),
        1 => seen().prop_map(Operation::ClearIfCurrent),
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

fn step() -> impl Strategy<Value = Duration> {
    prop_oneof![80 => short_step(), 2 => Just(CENTURY), 1 => Just(Duration::MAX)]
}

fn keep() -> impl Strategy<Value = Keep> {
    prop::bool::weighted(0.05)
}

fn plain_read() -> impl Strategy<Value = Read> {
    prop_oneof![
        2 => Just(Read::GetOrRefresh),
        1 => Just(Read::LoadOrRefresh),
        3 => kind().prop_map(Read::TryGetOrRefresh),
        2 => (0..READERS).prop_map(Read::Reader),
        1 => (0..READERS, kind()).prop_map(|(which, kind)| Read::ReaderTry(which, kind)),
    ]
}

fn request(depth: u32) -> impl Strategy<Value = Request> {
    let finish = prop_oneof![
        1 => Just(Finish::Get),
        1 => kind().prop_map(Finish::TryGet),
        1 => kind().prop_map(Finish::TryGetWith),
    ];
    (conditions(), finish, any::<bool>(), option::of(spawner(depth))).prop_map(
        |(conditions, finish, owned, spawner)| Request { conditions, finish, owned, spawner, exchange: None },
    )
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
        Operation::Read(read, Build { inside, outcome: Outcome::Value }, false)
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
        2 => (age(), option::of(window())).prop_map(|(age, ttl)| Found::Aged(age, ttl)),
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
