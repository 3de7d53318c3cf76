//! Random operations.

use std::time::Duration;

use dogpile_fleet::Invalidation;
use dogpile_fleet::conformance::Operation;
use proptest::prelude::*;

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        1 => Just(Duration::ZERO),
        6 => (1u64..50).prop_map(Duration::from_micros),
        1 => (1u64..50).prop_map(Duration::from_secs),
        1 => Just(Duration::MAX),
    ]
}

fn index() -> impl Strategy<Value = usize> {
    // The newest is what matters most: indices wrap around from the end as well.
    prop_oneof![Just(usize::MAX), 0usize..8]
}

fn operation(lose: u32) -> impl Strategy<Value = Operation> {
    let known = || prop::option::of(index());
    let tag = prop::option::of(prop_oneof![Just(String::new()), "[a-z\u{fc}\"']{1,3}"]);
    let payload = prop_oneof![4 => prop::collection::vec(any::<u8>(), 0..4), 1 => Just(vec![b'x'; 3000])];
    prop_oneof![
        6 => (0u64..60).prop_map(|by| Operation::Advance(Duration::from_micros(by))),
        2 => known().prop_map(|known| Operation::Poll { known }),
        8 => (duration(), known(), prop::option::weighted(0.2, index()), prop::option::weighted(0.3, (index(), 0u64..3, 0u64..4)),
              prop_oneof![3 => Just(Duration::ZERO), 1 => duration()])
            .prop_map(|(lease, known, refuse, seen, ahead)| Operation::Acquire { lease, known, refuse, seen, ahead }),
        6 => (index(), payload, tag, duration(), duration())
            .prop_map(|(token, payload, tag, soft, hard)| Operation::Publish { token, payload, tag, soft, hard }),
        2 => (index(), duration(), duration())
            .prop_map(|(token, soft, hard)| Operation::Unchanged { token, soft, hard }),
        2 => (index(), duration()).prop_map(|(token, pause)| Operation::Fail { token, pause }),
        2 => (index(), duration()).prop_map(|(token, lease)| Operation::Renew { token, lease }),
        2 => prop_oneof![Just(Invalidation::Soft), Just(Invalidation::Hard)].prop_map(Operation::Invalidate),
        lose => Just(Operation::Lose),
    ]
}

/// Lists of operations, in some of which the store loses its entry.
pub(crate) fn operations() -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(operation(1), 1..60)
}
