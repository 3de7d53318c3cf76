//! Payloads that cannot be used.

use std::sync::Arc;

use dogpile_fleet::{Acquire, FleetCell, Functions, Publication, Publish, RefreshStore, Request};

use crate::support::*;

/// Somebody publishes these bytes.
fn publish(fleet: &Fleet, payload: &[u8]) {
    let request = Request::new(SECOND);
    let Acquire::Won { token, .. } = fleet.store.acquire(NAME, &request).unwrap() else { panic!("not won") };
    let publication = Publication { payload, tag: Some("tag"), soft: 10 * SECOND, hard: 100 * SECOND };
    let answer = fleet.store.publish(NAME, &token, &publication).unwrap();
    assert!(matches!(answer, Publish::Stored(_)));
}

#[test]
fn a_damaged_payload_is_rebuilt_for_all() {
    for damaged in [&b""[..], b"DPF1", b"DPF1\0\0\0\0\0\0\0\0value", &[0xff; 100]] {
        let fleet = Fleet::new();
        let (one, other) = (fleet.node(POLICY), fleet.node(POLICY));
        publish(&fleet, damaged);
        let value = one
            .try_get_with::<&str, _>(|context| {
                assert_eq!((context.previous(), context.tag()), (None, None));
                Ok(text("value").into())
            })
            .unwrap();
        assert_eq!(*value, "value");
        assert_eq!(one.stats().damaged, 2, "when it was fresh, and when it was refused");
        assert_eq!(served(&other), "value");
        assert_eq!(other.stats().damaged, 0);
    }
}

#[test]
fn a_node_that_holds_a_good_value_keeps_it_until_the_damaged_one_is_rebuilt() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.quiet(POLICY), fleet.node(POLICY));
    one.get_or_refresh(|| text("good"));
    assert_eq!(served(&other), "good");
    fleet.clock.advance(11 * SECOND);
    publish(&fleet, b"damaged");
    one.get_or_refresh(|| {
        assert_eq!(served(&other), "good");
        text("new")
    });
    eventually("the new value arrives", || other.get().is_some_and(|value| *value == "new"));
}

#[test]
fn a_payload_of_another_version_of_the_program_is_left_alone_and_built_here() {
    let fleet = Fleet::new();
    let codec = |schema| {
        Functions::new(
            |value: &u32| Ok(value.to_be_bytes().to_vec()),
            |bytes: &[u8]| Ok(u32::from_be_bytes(bytes.try_into().map_err(dogpile_fleet::CodecError::new)?)),
        )
        .schema(schema)
    };
    let node = |schema| {
        FleetCell::with_clock(NAME, Arc::clone(&fleet.store), codec(schema), POLICY, fleet.clock.clone())
    };
    let (new, old) = (node(2), node(1));
    assert_eq!(*new.get_or_refresh(|| 2), 2);
    for _ in 0..3 {
        assert_eq!(*old.get_or_refresh(|| 1), 1);
    }
    let stats = old.stats();
    assert_eq!((stats.foreign, stats.local_builds, stats.fleet_builds), (1, 1, 0), "{stats:?}");
    assert!(old.snapshot().unwrap().version.is_none());
    // The others are not disturbed.
    assert_eq!(fleet.store.entry(NAME).version, 1);
    assert_eq!(*node(2).get_or_refresh(|| panic!("it is in the store")), 2);
    // It looks again when the fleet's value is due.
    fleet.clock.advance(11 * SECOND);
    assert_eq!(*old.get_or_refresh(|| 11), 11);
    assert_eq!(old.stats().fleet_builds, 1);
}

#[test]
fn a_value_that_cannot_be_encoded_stays_here() {
    let fleet = Fleet::new();
    let codec = Functions::new(
        |_: &String| Err(dogpile_fleet::CodecError::new("too long")),
        |_: &[u8]| Ok(String::new()),
    );
    let node = FleetCell::with_clock(NAME, Arc::clone(&fleet.store), codec, POLICY, fleet.clock.clone());
    assert_eq!(*node.get_or_refresh(|| text("value")), "value");
    let stats = node.stats();
    assert_eq!((stats.not_encoded, stats.local_builds, stats.published), (1, 1, 0));
    assert_eq!(fleet.store.entry(NAME).lease_until, 0, "others may build");
}
