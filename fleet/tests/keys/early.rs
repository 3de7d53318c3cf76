//! Builds that are served before they are stored.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dogpile_fleet::{
    Acquire, BuildContext, FleetPolicy, Invalidation, Publication, RefreshStore, Refreshed, Request,
};
use dogpile_map::DogpileMap;

use crate::support::*;

/// A caller that waits for no publication.
const IMPATIENT: FleetPolicy = POLICY.patience(Duration::from_millis(1));

#[test]
fn a_finished_build_was_withheld_until_it_was_stored() {
    let fleet = Fleet::new();
    let node = fleet.node(IMPATIENT);
    let held_up = fleet.way.hold_up_a_publication();
    assert_eq!(node.read(7, "value"), "value");
    held_up.begun.recv().unwrap();
    assert_eq!((node.served(7), node.map.get(&7).unwrap().version()), (String::from("value"), None));
    assert_eq!((node.keys.stats().early, node.keys.stats().published), (1, 0));
    held_up.go_on();
    eventually("it has its version", || node.map.get(&7).unwrap().version().is_some());
    assert_eq!(node.keys.stats().published, 1);
    // The next look finds it there, and it need not travel.
    fleet.clock.advance(2 * SECOND);
    assert_eq!(node.served(7), "value");
    assert_eq!((node.keys.stats().adopted, node.keys.stats().fleet_builds), (0, 1));
    assert_eq!(fleet.node(POLICY).served(7), "value");
}

#[test]
fn what_is_on_its_way_is_neither_built_again_nor_replaced_by_what_was_there() {
    let fleet = Fleet::new();
    let node = fleet.node(IMPATIENT);
    node.read(7, "old");
    eventually("it is stored", || node.keys.stats().published == 1);
    fleet.clock.advance(11 * SECOND);
    let held_up = fleet.way.hold_up_a_publication();
    assert_eq!(node.read(7, "new"), "new");
    held_up.begun.recv().unwrap();
    // The lease is this node's own, and the store still has the old value.
    fleet.clock.advance(2 * SECOND);
    assert_eq!(node.served(7), "new");
    assert_eq!(node.keys.stats().busy, 1);
    held_up.go_on();
    eventually("it is stored", || node.keys.stats().published == 2);
    fleet.clock.advance(2 * SECOND);
    assert_eq!(node.served(7), "new");
    assert_eq!(node.keys.stats().fleet_builds, 2);
}

#[test]
fn what_is_refused_late_is_fresh_no_longer_than_until_the_next_look() {
    for policy in [IMPATIENT, IMPATIENT.no_poll()] {
        let fleet = Fleet::new();
        let (a, b) = (fleet.node(policy), fleet.node(policy));
        let held_up = fleet.way.hold_up_a_publication();
        assert_eq!(a.read(7, "from before"), "from before");
        held_up.begun.recv().unwrap();
        b.keys.invalidate("7").unwrap();
        held_up.go_on();
        eventually("it is refused", || a.keys.stats().invalidated == 1);
        assert_eq!(a.served(7), "from before");
        fleet.clock.advance(SECOND + Duration::from_millis(1));
        assert_eq!(a.read(7, "from after"), "from after");
        assert_eq!(a.map.get(&7).unwrap().value().as_str(), "from after");
    }
}

#[test]
fn what_another_node_read_earlier_does_not_replace_what_is_served_early() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(IMPATIENT.lease(5 * SECOND)), fleet.node(POLICY));
    let held_up = RefCell::new(None);
    let build = |_: &BuildContext<'_, String>| {
        // As if this node had stood still for longer than its lease.
        fleet.clock.advance(6 * SECOND);
        assert_eq!(b.read(7, "read first"), "read first");
        *held_up.borrow_mut() = Some(fleet.way.hold_up_a_publication());
        fleet.clock.advance(SECOND / 100);
        Ok::<_, io::Error>(Refreshed::from(String::from("read last")))
    };
    assert_eq!(a.try_read(7, build).unwrap().value().as_str(), "read last");
    let held_up = held_up.take().unwrap();
    held_up.begun.recv().unwrap();
    fleet.clock.advance(2 * SECOND);
    assert_eq!(a.served(7), "read last", "it may be what is in the store");
    held_up.go_on();
    eventually("it is refused", || a.keys.stats().superseded == 1);
    fleet.clock.advance(2 * SECOND);
    assert_eq!(a.read(7, "newest"), "newest", "what is in the store is older");
}

#[test]
fn what_the_store_refuses_in_time_is_not_served_while_there_is_something_else() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    a.read(7, "old");
    fleet.clock.advance(11 * SECOND);
    let build = |_: &BuildContext<'_, String>| {
        b.keys.invalidate("7").unwrap();
        Ok::<_, io::Error>(Refreshed::from(String::from("refused")))
    };
    assert_eq!(a.try_read(7, build).unwrap().value().as_str(), "old");
    assert_eq!(a.map.get(&7).unwrap().value().as_str(), "old");
    // Nothing else is there: its own caller gets it, and the next one builds.
    let build = |_: &BuildContext<'_, String>| {
        b.keys.clear("7").unwrap();
        Ok::<_, io::Error>(Refreshed::from(String::from("refused")))
    };
    fleet.clock.advance(SECOND / 100);
    assert_eq!(a.try_read(7, build).unwrap().value().as_str(), "refused");
    fleet.clock.advance(SECOND / 100);
    assert_eq!(a.read(7, "newest"), "newest");
}

#[test]
fn what_the_store_refuses_is_not_served_either_if_what_the_store_has_is_damaged() {
    let fleet = Fleet::new();
    let a = fleet.node(POLICY);
    a.read(7, "old");
    fleet.clock.advance(11 * SECOND);
    let build = |_: &BuildContext<'_, String>| {
        let store = &fleet.way.store;
        store.invalidate("users:7", Invalidation::Soft).unwrap();
        let won = store.acquire("users:7", &Request::new(SECOND)).unwrap();
        let Acquire::Won { token, .. } = won else { panic!("{won:?}") };
        let rubbish = Publication { payload: b"rubbish", tag: None, soft: SECOND, hard: SECOND };
        store.publish("users:7", &token, &rubbish).unwrap();
        Ok::<_, io::Error>(Refreshed::from(String::from("refused")))
    };
    assert_eq!(a.try_read(7, build).unwrap().value().as_str(), "old");
    assert_eq!(a.map.get(&7).unwrap().value().as_str(), "old");
}

#[test]
fn an_old_value_of_the_store_replaced_what_a_node_had_built_without_it() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    a.read(7, "old");
    fleet.way.down.store(true, Ordering::SeqCst);
    fleet.clock.advance(11 * SECOND);
    let map = DogpileMap::builder(b.keys.policy()).clock(fleet.clock.clone()).max_entries(10).build();
    let b = Node { map, ..b };
    assert_eq!(b.read(7, "newer"), "newer", "it has nothing, and builds for itself");
    fleet.way.down.store(false, Ordering::SeqCst);
    b.map.invalidate(&7);
    fleet.clock.advance(2 * SECOND);
    let build = |_: &BuildContext<'_, String>| {
        assert_eq!(b.served(7), "newer", "while another node builds");
        Ok::<_, io::Error>(Refreshed::from(String::from("newest")))
    };
    assert_eq!(a.try_read(7, build).unwrap().value().as_str(), "newest");
}

#[test]
fn a_time_to_live_of_the_builds_own_is_stored() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY.no_poll()), fleet.node(POLICY.no_poll()));
    let build = |_: &BuildContext<'_, String>| {
        Ok::<_, io::Error>(Refreshed::NewFor(String::from("short"), 3 * SECOND))
    };
    a.try_read(7, build).unwrap();
    assert_eq!(b.served(7), "short");
    fleet.clock.advance(3 * SECOND + Duration::from_millis(1));
    assert_eq!((b.read(7, "next"), a.served(7)), (String::from("next"), String::from("next")));
}

#[test]
fn a_panic_of_on_error_kept_a_publication_on_its_way_for_ever() {
    let fleet = Fleet::new();
    let node = fleet.node(IMPATIENT);
    let keys = node.keys.on_error(|_| panic!("as planned: on_error"));
    let node = Node { keys, ..node };
    let held_up = fleet.way.hold_up_a_publication();
    assert_eq!(node.read(7, "value"), "value");
    held_up.begun.recv().unwrap();
    fleet.way.down.store(true, Ordering::SeqCst);
    node.keys.invalidate("7").unwrap_err();
    held_up.go_on();
    eventually("it has failed, and counts as built for this node alone", || {
        node.keys.stats().local_builds == 1
    });
}

#[test]
fn a_store_that_panicked_kept_a_publication_on_its_way_until_the_next_load() {
    let fleet = Fleet::new();
    let node = fleet.node(IMPATIENT);
    let held_up = fleet.way.hold_up_a_publication();
    assert_eq!(node.read(7, "value"), "value");
    held_up.begun.recv().unwrap();
    fleet.way.publication_panics.store(true, Ordering::SeqCst);
    held_up.go_on();
    eventually("it has failed, and counts as built for this node alone", || {
        node.keys.stats().local_builds == 1
    });
    let value = node.map.get(&7).unwrap();
    assert_eq!((value.as_str(), value.version()), ("value", None));
}

#[test]
fn a_store_that_panics_while_its_answer_is_waited_for_has_failed() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    fleet.way.publication_panics.store(true, Ordering::SeqCst);
    assert_eq!(node.read(7, "value"), "value");
    let stats = node.keys.stats();
    assert_eq!((stats.local_builds, stats.published, stats.early), (1, 0, 0));
    assert_eq!(node.map.get(&7).unwrap().version(), None);
}
