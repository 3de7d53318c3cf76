//! Builds that fail.

use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;
use std::thread;

use dogpile_fleet::{Backoff, FleetPolicy, RefreshError, Refreshed};

use crate::support::*;

const PAUSE: FleetPolicy = POLICY.retry_backoff(SECOND, SECOND);

fn failing(node: &Node) -> RefreshError {
    node.try_get_with(|_| Err("no route to host")).unwrap_err()
}

fn refused(node: &Node) {
    let error = node.try_get_with::<&str, _>(|_| panic!("a pause runs")).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(Backoff { left, .. }) if !left.is_zero() && *left <= 2 * SECOND),
        "{error:?}"
    );
}

#[test]
fn a_failure_pauses_the_whole_fleet() {
    let fleet = Fleet::new();
    let nodes: Vec<Node> = (0..4).map(|_| fleet.node(PAUSE)).collect();
    let RefreshError::Build(error) = failing(&nodes[0]) else { panic!("another error") };
    assert_eq!(error.to_string(), "no route to host");
    for node in &nodes {
        for _ in 0..3 {
            refused(node);
        }
        // A node that knows of the pause does not ask again.
        assert!(node.stats().acquires <= 1, "{:?}", node.stats());
    }
    fleet.clock.advance(2 * SECOND);
    assert_eq!(*nodes[2].get_or_refresh(|| text("value")), "value");
    assert_eq!(served(&nodes[0]), "value");
}

#[test]
fn a_caller_that_has_to_return_a_value_builds_for_its_own_node_in_a_pause() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.node(PAUSE), fleet.node(PAUSE));
    failing(&one);
    assert_eq!(*other.get_or_refresh(|| text("value")), "value");
    let stats = other.stats();
    assert_eq!((stats.fleet_builds, stats.local_builds, stats.published), (0, 1, 0));
    assert!(other.snapshot().unwrap().version.is_none());
}

#[test]
fn a_stale_value_is_served_while_the_pause_runs() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.node(PAUSE), fleet.node(PAUSE));
    one.get_or_refresh(|| text("old"));
    assert_eq!(served(&other), "old");
    fleet.clock.advance(11 * SECOND);
    assert!(matches!(failing(&one), RefreshError::Build(_)));
    for node in [&one, &other] {
        for _ in 0..10 {
            assert_eq!(*node.try_get_with::<&str, _>(|_| panic!("a pause runs")).unwrap(), "old");
        }
    }
    assert_eq!(other.stats().acquires, 2, "one for the first value, and one that found the pause");
    eventually("the pause is over", || {
        fleet.clock.advance(SECOND / 10);
        *other.get_or_refresh(|| text("new")) == "new"
    });
}

#[test]
fn the_callers_of_a_failed_build_get_the_stale_value_if_the_policy_says_so() {
    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY.stale_if_error(5 * SECOND));
    node.get_or_refresh(|| text("old"));
    fleet.clock.advance(14 * SECOND);
    assert_eq!(*node.try_get_with(|_| Err("no")).unwrap(), "old");
    fleet.clock.advance(2 * SECOND);
    assert!(matches!(failing(&node), RefreshError::Build(_)));
}

/// Whether the second thread came before the build had failed, and did not build itself.
fn shares_the_error() -> bool {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let (calls, is_calling) = channel();
    let (entered, has_entered) = channel();
    let (let_go, may_go) = channel::<()>();
    thread::scope(|scope| {
        let node = &node;
        let first = scope.spawn(move || {
            node.try_get_with(|_| {
                entered.send(()).unwrap();
                may_go.recv().unwrap();
                Err("no")
            })
        });
        has_entered.recv().unwrap();
        let second = scope.spawn(move || {
            calls.send(()).unwrap();
            node.try_get_with(|_| Err("it has come too late, and builds itself"))
        });
        is_calling.recv().unwrap();
        for _ in 0..100 {
            thread::yield_now();
        }
        let_go.send(()).unwrap();
        let [first, second] = [first, second].map(|thread| thread.join().unwrap().unwrap_err().to_string());
        assert_eq!(first, "no");
        second == "no"
    })
}

#[test]
fn threads_that_wait_on_the_same_node_share_the_error() {
    eventually("the second thread waits, and shares the error", shares_the_error);
}

#[test]
fn without_a_retry_backoff_the_next_caller_builds_at_once_and_gets_its_error() {
    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY);
    for attempts in 1..=2 {
        assert!(matches!(failing(&node), RefreshError::Build(_)));
        assert_eq!(node.stats().failed, attempts, "the clock has not moved");
    }
    node.get_or_refresh(|| text("old"));
    fleet.clock.advance(11 * SECOND);
    for attempts in 3..=4 {
        assert!(
            matches!(failing(&node), RefreshError::Build(_)),
            "the stale value is no answer to a failed build"
        );
        assert_eq!(node.stats().failed, attempts, "the clock has not moved");
    }
    assert_eq!(*node.get_or_refresh(|| text("new")), "new");
}

#[test]
fn an_error_converts_into_a_boxed_error_and_shows_the_text_and_the_type_of_the_builds_error() {
    let fleet = Fleet::new();
    let node = fleet.node(PAUSE);
    let read = || -> Result<(), Box<dyn Error + Send + Sync>> {
        node.try_get_with(|_| Err(io::Error::new(io::ErrorKind::NotFound, "no such table")))?;
        Ok(())
    };
    let error = *read().unwrap_err().downcast::<RefreshError>().unwrap();
    assert_eq!(error.to_string(), "no such table");
    assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::NotFound);
    let error = *read().unwrap_err().downcast::<RefreshError>().unwrap();
    assert!(error.is::<Backoff>());
    assert!(error.to_string().starts_with("the build of the value failed a moment ago"), "{error}");
}

#[test]
fn a_panic_gives_the_lease_back_to_the_fleet() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.node(POLICY), fleet.node(POLICY));
    let panicked = catch_unwind(AssertUnwindSafe(|| one.get_or_refresh(|| panic!("as intended"))));
    assert!(panicked.is_err());
    assert_eq!(one.stats().panicked, 1);
    assert_eq!(*other.get_or_refresh(|| text("value")), "value");
    assert_eq!(served(&one), "value");
}

#[test]
fn not_modified_without_a_previous_value_is_a_failed_build() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.node(POLICY), fleet.node(POLICY));
    let error = one.try_get_with::<&str, _>(|_| Ok(Refreshed::NotModified)).unwrap_err();
    assert_eq!(error.to_string(), "the build returned NotModified, but there is no previous value");
    assert_eq!(one.stats().failed, 1);
    assert_eq!(*other.get_or_refresh(|| text("value")), "value");
}
