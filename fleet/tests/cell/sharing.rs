//! Who builds, and what the others get.

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use dogpile::Freshness;
use dogpile_fleet::{RefreshError, Refreshed};

use crate::support::*;

#[test]
fn one_node_builds_and_the_others_take_it_over() {
    let fleet = Fleet::new();
    let nodes: Vec<Node> = (0..8).map(|_| fleet.quiet(POLICY)).collect();
    for round in 0..3 {
        for (number, node) in nodes.iter().enumerate() {
            let build =
                || if number == 0 { format!("value {round}") } else { panic!("node {number} builds") };
            assert_eq!(*node.get_or_refresh(build), format!("value {round}"));
        }
        fleet.clock.advance(10 * SECOND + Duration::from_millis(1));
    }
    let stats = nodes[0].stats();
    assert_eq!((stats.fleet_builds, stats.published, stats.adopted), (3, 3, 0));
    let stats = nodes[1].stats();
    assert_eq!((stats.fleet_builds, stats.adopted, stats.acquires), (0, 3, 3));
    assert_eq!(nodes[0].snapshot().unwrap().version, nodes[7].snapshot().unwrap().version);
    assert_eq!(nodes[0].snapshot().unwrap().version.unwrap().number, 3);
}

#[test]
fn fresh_reads_do_not_talk_to_the_store() {
    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY);
    node.get_or_refresh(|| text("value"));
    let before = node.stats();
    for _ in 0..100 {
        served(&node);
        node.try_get_with::<&str, _>(|_| panic!("fresh")).unwrap();
    }
    let mut reader = node.reader();
    assert_eq!(**reader.get().unwrap(), "value");
    assert_eq!(*reader.get_or_refresh(|| panic!("fresh")), "value");
    assert_eq!(node.stats(), before);
}

#[test]
fn while_another_node_builds_the_stale_value_is_served_and_the_new_one_taken_over() {
    let fleet = Fleet::new();
    let (builder, other) = (fleet.node(POLICY), fleet.node(POLICY));
    builder.get_or_refresh(|| text("old"));
    assert_eq!(served(&other), "old");
    fleet.clock.advance(11 * SECOND);
    let new = builder.get_or_refresh(|| {
        for _ in 0..100 {
            assert_eq!(served(&other), "old");
        }
        assert_eq!(other.freshness(), Freshness::Stale);
        text("new")
    });
    assert_eq!(*new, "new");
    // The clock stands still: what wakes the one that watches is a hint, or that it has begun to listen.
    eventually("the new value arrives", || other.get().is_some_and(|value| *value == "new"));
    assert_eq!(other.freshness(), Freshness::Fresh);
    let stats = other.stats();
    assert_eq!((stats.acquires, stats.busy, stats.fleet_builds), (2, 1, 0), "{stats:?}");
}

#[test]
fn without_hints_it_arrives_by_polling() {
    let fleet = Fleet::new();
    let builder = fleet.node(POLICY);
    let (other, way) = fleet.disturbed(POLICY);
    way.hints.store(false, Ordering::SeqCst);
    builder.get_or_refresh(|| text("old"));
    assert_eq!(served(&other), "old");
    fleet.clock.advance(11 * SECOND);
    builder.get_or_refresh(|| {
        assert_eq!(served(&other), "old");
        text("new")
    });
    assert_eq!(other.get().as_deref().map(String::as_str), Some("old"));
    eventually("the new value arrives", || {
        fleet.clock.advance(Duration::from_millis(1));
        other.get().is_some_and(|value| *value == "new")
    });
    assert_eq!(other.stats().hints, 0);
}

#[test]
fn with_nothing_to_serve_all_threads_of_all_nodes_wait_for_the_one_build() {
    let fleet = Fleet::new();
    let nodes: Vec<Node> = (0..4).map(|_| fleet.node(POLICY)).collect();
    let (entered, has_entered) = channel();
    let (let_go, may_go) = channel::<()>();
    thread::scope(|scope| {
        let first = &nodes[0];
        scope.spawn(move || {
            first.get_or_refresh(|| {
                entered.send(()).unwrap();
                may_go.recv().unwrap();
                text("value")
            })
        });
        has_entered.recv().unwrap();
        let waiters: Vec<_> = nodes
            .iter()
            .skip(1)
            .flat_map(|node| [node; 3])
            .map(|node| scope.spawn(|| served(node)))
            .collect();
        for node in &nodes[1..] {
            eventually("somebody asks", || node.stats().busy == 1);
        }
        let_go.send(()).unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), "value");
        }
    });
    for node in &nodes[1..] {
        assert_eq!(node.stats().acquires, 1, "{:?}", node.stats());
    }
}

#[test]
fn a_new_node_serves_the_stale_value_of_the_fleet_at_once() {
    let fleet = Fleet::new();
    let (builder, newcomer) = (fleet.node(POLICY), fleet.node(POLICY));
    builder.get_or_refresh(|| text("old"));
    fleet.clock.advance(50 * SECOND);
    builder.get_or_refresh(|| {
        assert_eq!(served(&newcomer), "old");
        text("new")
    });
    eventually("the new value arrives", || newcomer.get().is_some_and(|value| *value == "new"));
}

#[test]
fn a_value_that_came_stale_is_not_served_past_the_fleets_bound() {
    let fleet = Fleet::new();
    let (builder, newcomer) = (fleet.node(POLICY), fleet.node(POLICY));
    builder.get_or_refresh(|| text("old"));
    fleet.clock.advance(100 * SECOND);
    let (entered, has_entered) = channel();
    let (let_go, may_go) = channel::<()>();
    thread::scope(|scope| {
        let builder = &builder;
        let builder = scope.spawn(move || {
            builder.get_or_refresh(|| {
                entered.send(()).unwrap();
                may_go.recv().unwrap();
                text("new")
            })
        });
        has_entered.recv().unwrap();
        assert_eq!(served(&newcomer), "old");
        // Its own policy would allow a hundred seconds from now; the fleet's value has ten left.
        fleet.clock.advance(9 * SECOND);
        assert_eq!(newcomer.get().as_deref().map(String::as_str), Some("old"));
        fleet.clock.advance(SECOND + Duration::from_millis(1));
        eventually("it is gone", || newcomer.get().is_none());
        let_go.send(()).unwrap();
        builder.join().unwrap();
    });
    assert_eq!(served(&newcomer), "new");
}

#[test]
fn a_value_is_as_fresh_as_the_store_says_and_not_as_new_as_it_is_here() {
    let fleet = Fleet::new();
    let (builder, other) = (fleet.node(POLICY), fleet.node(POLICY));
    builder.get_or_refresh(|| text("value"));
    fleet.clock.advance(9 * SECOND);
    assert_eq!(served(&other), "value");
    assert_eq!(other.freshness(), Freshness::Fresh);
    fleet.clock.advance(SECOND + Duration::from_micros(1));
    assert_eq!(other.freshness(), Freshness::Stale);
}

#[test]
fn a_slow_answer_makes_a_value_expire_early_never_late() {
    let fleet = Fleet::new();
    let builder = fleet.node(POLICY);
    let (other, way) = fleet.disturbed(POLICY);
    builder.get_or_refresh(|| text("value"));
    let (begun, let_go) = way.hold_up();
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(served(&other), "value"));
        begun.recv().unwrap();
        // The way there takes four seconds. The store says: six seconds left. It could as well have been the way back.
        fleet.clock.advance(4 * SECOND);
        let_go.send(()).unwrap();
    });
    assert_eq!(other.freshness(), Freshness::Fresh);
    fleet.clock.advance(2 * SECOND + Duration::from_micros(1));
    assert_eq!(other.freshness(), Freshness::Stale);
}

#[test]
fn a_caller_without_patience_is_served_and_the_next_one_builds() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY.patience(Duration::ZERO));
    // A hint at its own publication makes it look, and nobody else is elected during that.
    way.hints.store(false, Ordering::SeqCst);
    node.get_or_refresh(|| text("old"));
    eventually("it is published", || node.stats().published == 1);
    fleet.clock.advance(11 * SECOND);
    let (begun, let_go) = way.hold_up();
    assert_eq!(served(&node), "old");
    begun.recv().unwrap();
    // The answer is on its way: nobody else asks.
    assert_eq!(served(&node), "old");
    assert_eq!(node.stats().impatient, 1);
    let_go.send(()).unwrap();
    eventually("the right to build is kept", || *node.get_or_refresh(|| text("new")) == "new");
    eventually("it is published too", || node.stats().published == 2);
    let stats = node.stats();
    assert_eq!((stats.acquires, stats.fleet_builds, stats.published), (2, 2, 2), "{stats:?}");
}

#[test]
fn a_right_to_build_that_nobody_comes_for_is_given_back() {
    let fleet = Fleet::new();
    let other = fleet.node(POLICY);
    let (node, way) = fleet.disturbed(POLICY.patience(Duration::ZERO));
    // A hint at its own publication makes it look, and nobody else is elected during that.
    way.hints.store(false, Ordering::SeqCst);
    node.get_or_refresh(|| text("old"));
    eventually("it is published", || node.stats().published == 1);
    fleet.clock.advance(11 * SECOND);
    let (begun, let_go) = way.hold_up();
    assert_eq!(served(&node), "old");
    begun.recv().unwrap();
    let_go.send(()).unwrap();
    eventually("the lease is held", || fleet.store.entry(NAME).lease_until != 0);
    eventually("the lease is given back", || {
        fleet.clock.advance(Duration::from_millis(10));
        fleet.store.entry(NAME).lease_until == 0
    });
    assert_eq!(*other.get_or_refresh(|| text("new")), "new");
}

#[test]
fn an_unchanged_value_is_fresh_again_on_all_nodes_under_the_same_version() {
    let fleet = Fleet::new();
    let (builder, other) = (fleet.quiet(POLICY), fleet.quiet(POLICY));
    let build = |context: &dogpile_fleet::BuildContext<'_, String>| {
        if context.tag() == Some("v1") {
            assert_eq!(*context.previous().unwrap(), "value");
            return Ok::<_, &str>(Refreshed::NotModified);
        }
        context.set_tag("v1");
        Ok(Refreshed::New(text("value")))
    };
    let first = builder.try_get_with(build).unwrap();
    assert_eq!(served(&other), "value");
    let version = builder.snapshot().unwrap().version;
    fleet.clock.advance(11 * SECOND);
    let second = builder.try_get_with(build).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &second));
    assert_eq!(builder.freshness(), Freshness::Fresh);
    assert_eq!(served(&other), "value");
    assert_eq!(other.freshness(), Freshness::Fresh);
    assert_eq!((builder.snapshot().unwrap().version, other.snapshot().unwrap().version), (version, version));
    assert_eq!(builder.stats().unchanged, 1);
    // Also when the node that finds it unchanged has only just come, and the value is too old to be served.
    fleet.clock.advance(200 * SECOND);
    let newcomer = fleet.node(POLICY);
    assert_eq!(*newcomer.try_get_with(build).unwrap(), "value");
    assert_eq!(newcomer.freshness(), Freshness::Fresh);
    assert_eq!(newcomer.snapshot().unwrap().version, version);
}

#[test]
fn a_value_that_was_too_old_to_be_served_is_fresh_once_it_is_found_unchanged() {
    let fleet = Fleet::new();
    let (builder, newcomer) = (fleet.quiet(POLICY), fleet.quiet(POLICY));
    builder.get_or_refresh(|| text("value"));
    fleet.clock.advance(111 * SECOND);
    let value = newcomer.try_get_with(|context| {
        assert_eq!(*context.previous().unwrap(), "value");
        assert!(newcomer.get().is_none());
        Ok::<_, &str>(Refreshed::NotModified)
    });
    assert_eq!(*value.unwrap(), "value");
    assert_eq!(newcomer.freshness(), Freshness::Fresh);
    assert_eq!(newcomer.snapshot().unwrap().version.unwrap().number, 1);
    assert_eq!(served(&builder), "value");
}

#[test]
fn a_long_build_keeps_its_lease() {
    let fleet = Fleet::new();
    let policy = POLICY.lease(3 * SECOND);
    let (builder, other) = (fleet.node(policy), fleet.node(policy));
    builder.get_or_refresh(|| text("old"));
    assert_eq!(served(&other), "old");
    fleet.clock.advance(11 * SECOND);
    builder.get_or_refresh(|| {
        for _ in 0..10 {
            let before = fleet.store.entry(NAME).lease_until;
            fleet.clock.advance(SECOND + Duration::from_millis(100));
            eventually("a heart-beat", || fleet.store.entry(NAME).lease_until > before);
            assert_eq!(served(&other), "old");
        }
        text("new")
    });
    assert_eq!(builder.stats().published, 2);
    assert_eq!(other.stats().fleet_builds, 0);
}

#[test]
fn a_build_beyond_its_limit_loses_its_lease() {
    let fleet = Fleet::new();
    let policy = POLICY.lease(3 * SECOND).build_limit(5 * SECOND);
    let (builder, other) = (fleet.node(policy), fleet.node(policy));
    let value = builder
        .try_get_with::<&str, _>(|context| {
            assert!(!context.is_superseded());
            fleet.clock.advance(9 * SECOND);
            assert_eq!(*other.get_or_refresh(|| text("quick")), "quick");
            Ok(text("slow").into())
        })
        .unwrap();
    assert_eq!(*value, "quick");
    assert_eq!(builder.stats().superseded, 1);
    assert_eq!(builder.snapshot().unwrap().version, other.snapshot().unwrap().version);
}

#[test]
fn a_build_that_calls_its_own_cell_gets_the_old_value_or_an_error() {
    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY);
    let value = node.get_or_refresh(|| {
        let inner = node.try_get_with::<&str, _>(|_| panic!("two at a time"));
        assert!(matches!(inner, Err(RefreshError::Reentrant)));
        text("first")
    });
    assert_eq!(*value, "first");
    fleet.clock.advance(11 * SECOND);
    let value = node.get_or_refresh(|| {
        assert_eq!(served(&node), "first");
        text("second")
    });
    assert_eq!(*value, "second");
}

#[test]
fn fences_differ_and_only_grow() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.quiet(POLICY), fleet.quiet(POLICY));
    let mut fences = Vec::new();
    for node in [&one, &other, &one] {
        node.try_get_with::<&str, _>(|context| {
            fences.push(context.fence().unwrap());
            Ok(text("value").into())
        })
        .unwrap();
        fleet.clock.advance(11 * SECOND);
    }
    assert!(fences.windows(2).all(|pair| pair[0].number < pair[1].number), "{fences:?}");
    assert!(fences.windows(2).all(|pair| pair[0].incarnation == pair[1].incarnation));
    assert!(fences[0].to_string().ends_with("-1"), "{}", fences[0]);
}

/// It was made stale first, so that a reader in that moment was elected, and asked the store.
#[test]
fn a_fresh_value_is_fresh_until_the_newer_one_of_another_node_is_there() {
    use dogpile_fleet::{
        Acquire, CodecError, FleetCell, Functions, Publication, Publish, RefreshStore, Request,
    };
    use std::sync::{Arc, Mutex, OnceLock};

    let fleet = Fleet::new();
    // What is decoded is about to be taken over.
    let node: Arc<OnceLock<Node>> = Arc::default();
    let found = Arc::new(Mutex::new(Vec::new()));
    let codec = {
        let (node, found) = (Arc::downgrade(&node), Arc::clone(&found));
        let decode = move |bytes: &[u8]| {
            let node = node.upgrade().ok_or_else(|| CodecError::new("no node"))?;
            found.lock().unwrap().extend(node.get().map(FleetCell::freshness));
            String::from_utf8(bytes.to_vec()).map_err(CodecError::new)
        };
        Functions::new(|value: &String| Ok(value.as_bytes().to_vec()), decode)
    };
    let made = FleetCell::with_clock(NAME, Arc::clone(&fleet.store), codec, POLICY, fleet.clock.clone());
    let node = {
        node.set(made).unwrap();
        node
    };
    let cell = node.get().unwrap();
    cell.get_or_refresh(|| text("value"));
    let payload = fleet.store.entry(NAME).value.unwrap().payload;
    let request = Request { ahead: 100 * SECOND, ..Request::new(SECOND) };
    let Acquire::Won { token, .. } = fleet.store.acquire(NAME, &request).unwrap() else {
        panic!("not elected")
    };
    let publication = Publication { payload: &payload, tag: None, soft: 10 * SECOND, hard: 10 * SECOND };
    let published = fleet.store.publish(NAME, &token, &publication).unwrap();
    let Publish::Stored(version) = published else { panic!("{published:?}") };
    eventually("it is taken over", || cell.snapshot().unwrap().version == Some(version));
    assert_eq!(*found.lock().unwrap(), [Freshness::Fresh]);
}
