//! What is done to a `SyncReaderCell`.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use dogpile::Drain;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{age, build, conditions, kind, seen, settings, short_step, which, window};
use crate::model::Kind;
use crate::operations::{
    Build, Case, Conditions, Finish, Keep, Operation, Outcome, Peek, Read, Request, Set,
};

pub(crate) fn case() -> impl Strategy<Value = Case> {
    let drain = prop_oneof![2 => Just(Drain::Background), 1 => patience().prop_map(Drain::Wait)];
    let settings = settings(drain.prop_map(Some));
    (settings, vec(operations(), 1..60), vec(meanwhile(), 0..20), vec(afterwards(), 0..12)).prop_map(
        |(settings, operations, meanwhile, afterwards)| Case {
            settings,
            operations: operations.concat(),
            meanwhile,
            afterwards,
            cell_goes_first: false,
            at: AtomicUsize::new(usize::MAX),
        },
    )
}

/// While the one thread waits: a reader leaves, or the time is up.
fn meanwhile() -> impl Strategy<Value = Vec<Operation>> {
    prop_oneof![3 => which().prop_map(|which| vec![Operation::DropHandle(which)]), 1 => Just(Vec::new())]
}

fn afterwards() -> impl Strategy<Value = Operation> {
    prop_oneof![1 => which().prop_map(Operation::CloneHandle), 4 => which().prop_map(Operation::DropHandle)]
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let no_cache = Conditions { no_cache: true, ..Conditions::default() };
    // What is rare where it is left to chance: a read in a retry pause,
    let in_a_pause = (keep(), conditions()).prop_map(move |(keep, conditions)| {
        let fail = |conditions| {
            let finish = Finish::TryGet(Kind::Network);
            request(conditions, finish, Build { inside: Vec::new(), outcome: Outcome::Error })
        };
        vec![Operation::Set(Set::New, keep), fail(no_cache), Operation::Invalidate, fail(conditions)]
    });
    // a value that is to be renewed, and is replaced meanwhile,
    let gone = (set(), keep()).prop_map(move |(set, keep)| {
        let inside = vec![Operation::Set(set, keep)];
        let finish = Finish::TryGetWith(Kind::Network);
        vec![request(no_cache, finish, Build { inside, outcome: Outcome::NotModified })]
    });
    // and a section over a fresh value that is put back.
    let put_back = prop_oneof![3 => Just(Operation::Invalidate), 1 => operation(0)].prop_map(move |inside| {
        let inside = vec![Operation::Lock(None), inside];
        let finish = Finish::TryGetWithWriter(Kind::Network);
        let fails = request(no_cache, finish, Build { inside, outcome: Outcome::Error });
        vec![Operation::DropAll, Operation::Set(Set::New, false), fails]
    });
    prop_oneof![
        40 => operation(2).prop_map(|operation| vec![operation]),
        1 => in_a_pause.boxed(),
        1 => gone.boxed(),
        1 => put_back.boxed(),
    ]
}

fn request(conditions: Conditions, finish: Finish, build: Build) -> Operation {
    let request = Request { conditions, finish, owned: false, spawner: None, exchange: None };
    Operation::Read(Read::Request(request), build, false)
}

/// How long a wait for readers may last. It has an end: there is no other thread that could end it.
fn patience() -> impl Strategy<Value = Duration> {
    prop_oneof![
        3 => Just(Duration::ZERO),
        3 => (1_u64..=10).prop_map(Duration::from_nanos),
        1 => Just(Duration::from_secs(1)),
    ]
}

/// `depth`: how many builds may run inside one another.
fn operation(depth: u32) -> BoxedStrategy<Operation> {
    prop_oneof![
        14 => read(depth),
        5 => Just(Operation::Peek(Peek::Get, true)),
        2 => Just(Operation::Peek(Peek::Load, true)),
        1 => Just(Operation::Peek(Peek::Snapshot, true)),
        2 => which().prop_map(Operation::CloneHandle),
        9 => which().prop_map(Operation::DropHandle),
        4 => which().prop_map(Operation::DropGuard),
        2 => Just(Operation::DropAll),
        5 => (set(), keep()).prop_map(|(set, keep)| Operation::Set(set, keep)),
        2 => keep().prop_map(Operation::Changed),
        6 => Just(Operation::Invalidate),
        2 => seen().prop_map(Operation::InvalidateIfCurrent),
        2 => Just(Operation::Clear),
        1 => Just(Operation::Reset),
        1 => Just(Operation::Revoke),
        2 => patience().prop_map(Operation::Synchronize),
        3 => short_step().prop_map(Operation::Advance),
        3 => (0..4_usize, 0..=1_u64).prop_map(|(which, past)| Operation::AdvanceTo(which, past)),
    ]
    .boxed()
}

fn set() -> BoxedStrategy<Set> {
    prop_oneof![
        3 => Just(Set::New),
        1 => window().prop_map(Set::NewFor),
        2 => age().prop_map(Set::Restored),
    ]
    .boxed()
}

fn read(depth: u32) -> BoxedStrategy<Operation> {
    let finish = prop_oneof![
        2 => Just(Finish::Get),
        2 => kind().prop_map(Finish::TryGet),
        2 => kind().prop_map(Finish::TryGetWith),
        3 => Just(Finish::GetWithWriter),
        4 => kind().prop_map(Finish::TryGetWithWriter),
    ];
    let conditions = prop_oneof![1 => Just(Conditions::default()), 3 => conditions()];
    let request = (conditions, finish, any::<bool>(), option::weighted(0.2, which())).prop_map(
        |(conditions, finish, owned, exchange)| Request {
            conditions,
            finish,
            owned,
            spawner: None,
            exchange,
        },
    );
    let read = prop_oneof![
        2 => Just(Read::GetOrRefresh),
        1 => Just(Read::LoadOrRefresh),
        1 => kind().prop_map(Read::TryGetOrRefresh),
        1 => which().prop_map(Read::Exchange),
        12 => request.prop_map(Read::Request).boxed(),
    ];
    (read, build(inside(depth)), keep())
        .prop_map(|(read, build, keep)| Operation::Read(read, build, keep))
        .boxed()
}

/// What a build does that may be given a writer.
fn inside(depth: u32) -> BoxedStrategy<Vec<Operation>> {
    let lock = || {
        prop_oneof![
            4 => option::of(patience()).prop_map(Operation::Lock),
            1 => Just(Operation::Mark),
        ]
    };
    if depth == 0 {
        return vec(lock(), 0..2).boxed();
    }
    let any = || operation(depth - 1);
    // Time passes, and another caller builds. Rare where it is left to chance.
    let overtaken = (read(depth - 1), any(), lock()).prop_map(|(read, any, lock)| {
        let pass = Operation::Advance(Duration::from_nanos(10));
        vec![pass, read, any, lock]
    });
    let inside_a_section = prop_oneof![
        1 => Just(Operation::Mark),
        1 => Just(Operation::Clear),
        1 => Just(Operation::Reset),
        1 => Just(Operation::Revoke),
        1 => Just(Operation::Invalidate),
        1 => patience().prop_map(Operation::Synchronize),
        1 => (set(), keep()).prop_map(|(set, keep)| Operation::Set(set, keep)),
        2 => any(),
    ];
    let section =
        (lock(), vec(inside_a_section, 1..4)).prop_map(|(lock, inside)| [vec![lock], inside].concat());
    let one = |operation| vec![operation];
    let some = prop_oneof![
        5 => lock().prop_map(one),
        10 => any().prop_map(one),
        3 => section,
        1 => overtaken,
    ];
    vec(some, 0..6).prop_map(|some| some.concat()).boxed()
}

fn keep() -> impl Strategy<Value = Keep> {
    prop::bool::weighted(0.3)
}
