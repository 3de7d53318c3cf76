//! Values that are rebuilt ahead of expiry.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use dogpile::{Clock, Freshness, ManualClock};
use dogpile_fleet::{BuildContext, FleetPolicy, FleetRefresher, Refreshed};

use crate::support::*;

/// Three seconds ahead: due from 7 s to 7.75 s after the publication.
const AHEAD: Duration = Duration::from_secs(3);

/// A build that counts.
fn numbered(
    builds: &Arc<AtomicU32>,
) -> impl FnMut(&BuildContext<'_, String>) -> io::Result<Refreshed<String>> + Send + 'static {
    let builds = Arc::clone(builds);
    move |_| Ok(Refreshed::from(format!("build {}", builds.fetch_add(1, Ordering::SeqCst) + 1)))
}

fn start(node: &Node, builds: &Arc<AtomicU32>) -> FleetRefresher {
    let refresher = FleetRefresher::spawn(node, AHEAD, numbered(builds)).unwrap();
    assert!(refresher.wait_ready(Duration::from_secs(60)));
    refresher
}

#[test]
fn no_caller_builds_or_waits_and_the_fleet_builds_once_per_expiry() {
    let fleet = Fleet::new();
    let builds = Arc::new(AtomicU32::new(0));
    let nodes: Vec<Node> = (0..4).map(|_| fleet.node(POLICY)).collect();
    let _refreshers: Vec<FleetRefresher> = nodes.iter().map(|node| start(node, &builds)).collect();
    for round in 1..6 {
        assert_eq!(builds.load(Ordering::SeqCst), round, "one build in the whole fleet");
        for node in &nodes {
            let value = format!("build {round}");
            eventually("each node has it", || node.get().is_some_and(|held| *held == value));
            assert_eq!((node.freshness(), served(node)), (Freshness::Fresh, value));
        }
        fleet.clock.advance(Duration::from_millis(7800));
        // A refresher that is behind counts its pause after the last build from now on.
        passes(&fleet, "it is rebuilt ahead of expiry", || builds.load(Ordering::SeqCst) > round);
    }
    for node in &nodes {
        assert_eq!((node.stats().store_errors, node.stats().local_builds), (0, 0), "{:?}", node.stats());
        // Noted down after the publication.
        eventually("it is the store's", || node.snapshot().unwrap().version.is_some());
    }
}

#[test]
fn nothing_is_built_before_it_is_due() {
    let fleet = Fleet::new();
    let builds = Arc::new(AtomicU32::new(0));
    let node = fleet.node(POLICY);
    let _refresher = start(&node, &builds);
    let acquires = node.stats().acquires;
    // It has planned for the value when it asks the clock for a wake-up; a change makes it plan anew.
    fleet.clock.advance(Duration::from_millis(6900));
    for _ in 0..1000 {
        std::thread::yield_now();
    }
    assert_eq!((builds.load(Ordering::SeqCst), node.stats().acquires), (1, acquires));
}

#[test]
fn readers_are_served_the_fresh_value_while_it_is_rebuilt_and_then_the_stale_one() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let (begun, has_begun) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let build = move |context: &BuildContext<'_, String>| {
        if context.previous().is_some() {
            begun.send(context.fence().is_some()).unwrap();
            let _ = may_go_on.recv();
            return Ok::<_, io::Error>(Refreshed::from(text("second")));
        }
        Ok(Refreshed::from(text("first")))
    };
    let refresher = FleetRefresher::spawn(&node, AHEAD, build).unwrap();
    assert!(refresher.wait_ready(Duration::from_secs(60)));
    fleet.clock.advance(Duration::from_millis(7800));
    assert!(has_begun.recv().unwrap(), "it has the right to build of the whole fleet");
    assert_eq!((served(&node), node.freshness()), (text("first"), Freshness::Fresh));
    fleet.clock.advance(Duration::from_secs(4));
    assert_eq!((served(&node), node.freshness()), (text("first"), Freshness::Stale));
    go_on.send(()).unwrap();
    eventually("the second", || served(&node) == "second");
    assert_eq!(node.freshness(), Freshness::Fresh);
}

#[test]
fn an_invalidation_elsewhere_is_rebuilt_at_once() {
    let fleet = Fleet::new();
    let builds = Arc::new(AtomicU32::new(0));
    let (node, other) = (fleet.node(POLICY), fleet.node(POLICY));
    let _refresher = start(&node, &builds);
    other.invalidate().unwrap();
    eventually("rebuilt", || *node.get().unwrap() == "build 2");
    other.clear().unwrap();
    eventually("rebuilt", || node.get().is_some_and(|value| *value == "build 3"));
}

#[test]
fn a_build_that_fails_or_panics_leaves_the_value_and_is_tried_again() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let (fails, panics) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let attempts = Arc::new(AtomicU32::new(0));
    let build = {
        let (fails, panics, attempts) = (Arc::clone(&fails), Arc::clone(&panics), Arc::clone(&attempts));
        move |_: &BuildContext<'_, String>| {
            attempts.fetch_add(1, Ordering::SeqCst);
            assert!(!panics.load(Ordering::SeqCst), "as planned");
            if fails.load(Ordering::SeqCst) {
                Err(io::Error::other("no"))
            } else {
                Ok(Refreshed::from(text("value")))
            }
        }
    };
    let refresher = FleetRefresher::spawn(&node, AHEAD, build).unwrap();
    assert!(refresher.wait_ready(Duration::from_secs(60)));

    fails.store(true, Ordering::SeqCst);
    fleet.clock.advance(Duration::from_millis(7800));
    eventually("it has failed", || refresher.last_error().is_some_and(|error| error.to_string() == "no"));
    assert_eq!((served(&node), node.freshness()), (text("value"), Freshness::Fresh));
    assert_eq!(attempts.load(Ordering::SeqCst), 2, "not before a pause");

    fails.store(false, Ordering::SeqCst);
    panics.store(true, Ordering::SeqCst);
    // Not as far as the end of the value, however long the refresher's thread takes.
    let start = fleet.clock.now();
    let pass_until = |end: Duration| {
        if fleet.clock.now() < start.saturating_add(end) {
            fleet.clock.advance(Duration::from_millis(10));
        }
    };
    eventually("it has panicked", || {
        pass_until(SECOND);
        refresher.last_error().is_some_and(|error| error.to_string() == "the build panicked: as planned")
    });
    assert_eq!(served(&node), "value");

    panics.store(false, Ordering::SeqCst);
    eventually("it has succeeded", || {
        pass_until(2 * SECOND);
        refresher.last_error().is_none()
    });
    assert_eq!(node.freshness(), Freshness::Fresh);
}

#[test]
fn when_the_builder_dies_another_node_builds_ahead_of_expiry() {
    let fleet = Fleet::new();
    let builds = Arc::new(AtomicU32::new(0));
    let (node, dies) = (fleet.node(POLICY.lease(SECOND)), fleet.quiet(POLICY.lease(SECOND)));
    let _refresher = start(&node, &builds);
    served(&dies);
    // As if the other node had been elected, and killed.
    let request = dogpile_fleet::Request { ahead: 10 * SECOND, ..dogpile_fleet::Request::new(SECOND) };
    let won = dogpile_fleet::RefreshStore::acquire(&*fleet.store, NAME, &request).unwrap();
    assert!(matches!(won, dogpile_fleet::Acquire::Won { .. }));
    // Due at 7.75 s at the latest, with another second for the lease; not as far as the end of the value.
    let start = fleet.clock.now();
    eventually("the lease has ended", || {
        if fleet.clock.now() < start.saturating_add(9 * SECOND) {
            fleet.clock.advance(Duration::from_millis(50));
        }
        builds.load(Ordering::SeqCst) == 2
    });
    eventually("it is published", || *node.get().unwrap() == "build 2");
    assert_eq!(node.freshness(), Freshness::Fresh);
}

#[test]
fn it_goes_on_without_the_store_as_callers_do_and_returns_to_it() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY.stale_while_refresh(SECOND));
    let builds = Arc::new(AtomicU32::new(0));
    let _refresher = start(&node, &builds);
    way.down.store(true, Ordering::SeqCst);
    eventually("it is too old to be served, and built for this node alone", || {
        fleet.clock.advance(SECOND / 10);
        node.stats().local_builds > 0
    });
    way.down.store(false, Ordering::SeqCst);
    eventually("it is shared again", || {
        fleet.clock.advance(SECOND / 10);
        node.snapshot().is_some_and(|snapshot| snapshot.version.is_some())
    });
}

#[test]
fn it_ends_with_the_cell_and_when_it_is_dropped() {
    let fleet = Fleet::new();
    let builds = Arc::new(AtomicU32::new(0));
    let node = fleet.node(POLICY);
    let (build, alive) = {
        let alive = Arc::new(());
        let (weak, mut build) = (Arc::downgrade(&alive), numbered(&builds));
        (
            move |context: &BuildContext<'_, String>| {
                let _ = &alive;
                build(context)
            },
            weak,
        )
    };
    let refresher = FleetRefresher::spawn(&node, AHEAD, build).unwrap();
    assert!(refresher.wait_ready(Duration::from_secs(60)));
    // Most likely it sleeps by then; it has to end in any case.
    for _ in 0..1000 {
        std::thread::yield_now();
    }
    drop(node);
    eventually("it has ended", || alive.strong_count() == 0);
    drop(refresher);

    let node = fleet.node(POLICY);
    drop(start(&node, &builds));
    fleet.clock.advance(Duration::from_secs(9));
    assert_eq!(builds.load(Ordering::SeqCst), 1, "nothing refreshes it any more");
}

#[test]
fn ahead_must_be_shorter_than_the_ttl() {
    let fleet = Fleet::new();
    let node: dogpile_fleet::FleetCell<String, ManualClock> = fleet.node(FleetPolicy::ttl(SECOND));
    let error = FleetRefresher::spawn(&node, SECOND, numbered(&Arc::default())).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn what_is_asked_for_is_built_although_the_value_is_fresh() {
    let fleet = Fleet::new();
    let builds = Arc::new(AtomicU32::new(0));
    let (node, other) = (fleet.node(POLICY), fleet.node(POLICY));
    let refresher = start(&node, &builds);
    assert_eq!(served(&other), "build 1");
    for round in 2..5 {
        refresher.refresh_now();
        let value = format!("build {round}");
        eventually("rebuilt, and taken over by the other node", || {
            [&node, &other].into_iter().all(|node| node.get().is_some_and(|held| *held == value))
        });
    }
    assert_eq!((node.stats().store_errors, node.stats().local_builds), (0, 0), "{:?}", node.stats());
}

/// What another node has begun before may be from an older reading of the source.
#[test]
fn what_is_asked_for_while_another_node_builds_is_built_after_that() {
    let fleet = Fleet::new();
    let builds = Arc::new(AtomicU32::new(0));
    let (node, other) = (fleet.node(POLICY), fleet.node(POLICY));
    let refresher = start(&node, &builds);
    other.invalidate().unwrap();
    eventually("rebuilt", || node.get().is_some_and(|value| *value == "build 2"));
    let request = dogpile_fleet::Request { ahead: 10 * SECOND, ..dogpile_fleet::Request::new(10 * SECOND) };
    let won = dogpile_fleet::RefreshStore::acquire(&*fleet.store, NAME, &request).unwrap();
    let dogpile_fleet::Acquire::Won { token, .. } = won else { panic!("{won:?}") };
    let busy = node.stats().busy;
    refresher.refresh_now();
    // The node may still be looking at a hint, which the refresher leaves 20 ms for.
    passes(&fleet, "it is busy", || node.stats().busy > busy);
    assert_eq!(builds.load(Ordering::SeqCst), 2);
    dogpile_fleet::RefreshStore::fail(&*fleet.store, NAME, &token, Duration::ZERO).unwrap();
    passes(&fleet, "built here", || builds.load(Ordering::SeqCst) == 3);
}

#[test]
fn stopping_waits_for_a_build_and_for_no_longer_than_it_is_told() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let (begun, has_begun) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let build = move |_: &BuildContext<'_, String>| {
        begun.send(()).unwrap();
        let _ = may_go_on.recv();
        Ok::<_, io::Error>(Refreshed::from(text("value")))
    };
    let refresher = FleetRefresher::spawn(&node, AHEAD, build).unwrap();
    has_begun.recv().unwrap();
    assert!(!refresher.wait_ready(Duration::from_millis(1)));
    assert!(!refresher.stop_timeout(Duration::from_millis(1)), "it builds");
    go_on.send(()).unwrap();
    eventually("what it builds is published", || served_if_there(&node) == Some(text("value")));
    let builds = Arc::new(AtomicU32::new(0));
    assert!(start(&node, &builds).stop_timeout(Duration::from_secs(60)), "it sleeps");
}

fn served_if_there(node: &Node) -> Option<String> {
    node.get().map(|value| value.to_string())
}

/// A value that arrives stale was built again at once, for ever.
#[test]
fn a_value_that_is_stale_already_is_not_built_again_and_again() {
    type Make = fn(String) -> Refreshed<String>;
    let aged: Make = |value| Refreshed::Aged { value, age: 20 * SECOND, ttl: None };
    let brief: Make = |value| Refreshed::NewFor(value, Duration::ZERO);
    for make in [aged, brief] {
        let fleet = Fleet::new();
        let (node, other) = (fleet.node(POLICY), fleet.node(POLICY));
        let builds = Arc::new(AtomicU32::new(0));
        let build = {
            let builds = Arc::clone(&builds);
            move |_: &BuildContext<'_, String>| {
                make(format!("build {}", builds.fetch_add(1, Ordering::SeqCst) + 1))
            }
        };
        let refresher = FleetRefresher::spawn(&node, AHEAD, build).unwrap();
        let is_at = |count: u32| {
            eventually("built", || node.get().is_some_and(|value| *value == format!("build {count}")));
            for _ in 0..1000 {
                std::thread::yield_now();
            }
            assert_eq!(builds.load(Ordering::SeqCst), count);
        };
        is_at(1);
        refresher.refresh_now();
        is_at(2);
        node.invalidate().unwrap();
        is_at(3);
        other.clear().unwrap();
        is_at(4);
        fleet.clock.advance(Duration::from_millis(99));
        is_at(4);
        fleet.clock.advance(Duration::from_millis(1));
        is_at(5);
    }
}
