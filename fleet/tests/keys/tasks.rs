//! Loads of tasks.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::task::{Context, Waker};

use dogpile_fleet::{BuildContext, Busy, FleetValue, RefreshError, Refreshed};
use futures_lite::future::block_on;

use crate::support::*;

async fn read(node: &Node, id: u64, value: &str) -> Result<Arc<FleetValue<String>>, RefreshError> {
    let load = async |id: &u64, previous| {
        let build =
            async |_: &BuildContext<'_, String>| Ok::<_, io::Error>(Refreshed::from(value.to_owned()));
        node.keys.load_with_async(&id.to_string(), previous, build).await
    };
    node.map.request(&id).try_get_with_async(load).await
}

fn sent<F: Future + Send>(future: F) -> F {
    future
}

#[test]
fn tasks_and_threads_share_their_builds() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    assert_eq!(block_on(read(&a, 7, "user 7")).unwrap().as_str(), "user 7");
    assert_eq!((b.served(7), a.served(7)), (String::from("user 7"), String::from("user 7")));
    fleet.clock.advance(11 * SECOND);
    assert_eq!(b.read(7, "newer"), "newer");
    assert_eq!(block_on(read(&a, 7, "not built")).unwrap().as_str(), "newer");
    assert_eq!((a.keys.stats().fleet_builds, b.keys.stats().fleet_builds), (1, 1));
}

#[test]
fn the_future_can_be_sent_to_another_thread() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let load = node.keys.load_with_async("7", None, async |context| {
        context.set_tag("v1");
        Ok::<_, io::Error>(Refreshed::from(String::from("value")))
    });
    block_on(sent(load)).unwrap();
    assert_eq!(fleet.way.store.entry("users:7").value.unwrap().tag.as_deref(), Some("v1"));
}

#[test]
fn a_task_is_served_before_its_build_is_stored() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY.patience(SECOND / 1000));
    let held_up = fleet.way.hold_up_a_publication();
    assert_eq!(block_on(read(&node, 7, "value")).unwrap().as_str(), "value");
    held_up.begun.recv().unwrap();
    assert_eq!(node.keys.stats().early, 1);
    held_up.go_on();
    eventually("it has its version", || node.map.get(&7).unwrap().version().is_some());
}

#[test]
fn a_task_that_is_dropped_gives_the_right_to_build_back() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    let lease = || fleet.way.store.entry("users:7").lease_until;
    let mut context = Context::from_waker(Waker::noop());
    {
        // While it builds.
        let mut load = pin!(a.keys.load_with_async("7", None, async |_| {
            std::future::pending::<()>().await;
            Ok::<_, io::Error>(Refreshed::from(String::from("never")))
        }));
        while lease() == 0 {
            assert!(load.as_mut().poll(&mut context).is_pending());
            std::thread::yield_now();
        }
        assert!(load.as_mut().poll(&mut context).is_pending());
    }
    eventually("it is given back", || lease() == 0);
    {
        // While the store is asked.
        let held_up = fleet.way.hold_up_an_election();
        let mut load = Box::pin(a.keys.load_with_async("7", None, async |_| {
            Ok::<_, io::Error>(Refreshed::from(String::from("never")))
        }));
        assert!(load.as_mut().poll(&mut context).is_pending());
        held_up.begun.recv().unwrap();
        drop(load);
        held_up.go_on();
    }
    eventually("it is given back", || lease() == 0);
    assert_eq!(b.read(7, "value"), "value");
    assert_eq!(fleet.way.store.entry("users:7").fence, 3);
}

#[test]
fn a_task_waits_for_another_node_or_is_told_that_it_builds() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    let first = a.read(7, "old");
    assert_eq!(first, "old");
    let old = a.map.get(&7).unwrap();
    fleet.clock.advance(11 * SECOND);
    let build = |_: &BuildContext<'_, String>| {
        let load =
            b.keys.load_with_async("7", Some(old), async |_| Err::<Refreshed<String>, _>("built twice"));
        let error = block_on(load).unwrap_err();
        assert!(error.is::<Busy>(), "{error}");
        Ok::<_, io::Error>(Refreshed::from(String::from("new")))
    };
    a.try_read(7, build).unwrap();

    let (begun, has_begun) = channel();
    let (end, may_end) = channel();
    std::thread::scope(|scope| {
        let (a, b) = (&a, &b);
        scope.spawn(move || {
            let build = |_: &BuildContext<'_, String>| {
                begun.send(()).unwrap();
                may_end.recv().unwrap();
                Ok::<_, io::Error>(Refreshed::from(String::from("first")))
            };
            a.try_read(8, build).unwrap();
        });
        has_begun.recv().unwrap();
        let waiter = scope.spawn(|| block_on(read(b, 8, "not built")).unwrap().to_string());
        eventually("it waits, by the store's hints", || fleet.way.lists.load(Ordering::SeqCst) == 1);
        assert!(!waiter.is_finished());
        end.send(()).unwrap();
        assert_eq!(waiter.join().unwrap(), "first");
    });
}

#[test]
fn tasks_invalidate_and_clear_and_check_as_threads_do() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    a.read(7, "old");
    b.served(7);
    block_on(sent(a.keys.invalidate_async("7"))).unwrap();
    a.map.invalidate(&7);
    fleet.clock.advance(2 * SECOND);
    assert_eq!(b.read(7, "new"), "new");
    assert_eq!(a.served(7), "new");
    block_on(sent(b.keys.clear_async("7"))).unwrap();
    assert!(fleet.way.store.entry("users:7").cleared);

    block_on(sent(a.keys.check_async())).unwrap();
    fleet.way.down.store(true, Ordering::SeqCst);
    assert_eq!(block_on(a.keys.check_async()).unwrap_err().to_string(), "the store could not be used: down");
    let too_long = "a key that is too long".repeat(10);
    assert!(block_on(a.keys.invalidate_async(&too_long)).unwrap_err().is_busy());
}

#[test]
fn a_task_that_is_dropped_loses_no_invalidation() {
    let fleet = Fleet::new();
    let a = fleet.node(POLICY);
    a.read(7, "old");
    let mut context = Context::from_waker(Waker::noop());
    let epoch = || fleet.way.store.entry("users:7").epoch;

    // Not begun, it is none.
    drop(a.keys.invalidate_async("7"));
    // No thread of the executor waits for the store, and what is begun goes on.
    let held_up = fleet.way.hold_up_an_invalidation();
    {
        let mut invalidates = pin!(a.keys.invalidate_async("7"));
        assert!(invalidates.as_mut().poll(&mut context).is_pending());
        held_up.begun.recv().unwrap();
        assert!(invalidates.as_mut().poll(&mut context).is_pending());
    }
    held_up.go_on();
    assert_eq!((epoch(), fleet.way.invalidations.load(Ordering::SeqCst)), (1, 1));

    // What fails behind it is delivered when the store works again, though the key is not used.
    for (redelivered, clears) in [(1, false), (2, true)] {
        let before = epoch();
        let held_up = fleet.way.hold_up_an_invalidation();
        {
            let invalidates = async {
                if clears { a.keys.clear_async("7").await } else { a.keys.invalidate_async("7").await }
            };
            assert!(pin!(invalidates).poll(&mut context).is_pending());
        }
        held_up.begun.recv().unwrap();
        fleet.way.down.store(true, Ordering::SeqCst);
        held_up.go_on();
        eventually("it has failed", || a.keys.last_store_error().is_some());
        assert_eq!(epoch(), before);
        fleet.way.down.store(false, Ordering::SeqCst);
        eventually("it is delivered", || {
            fleet.clock.advance(SECOND / 10);
            epoch() == before + 1
        });
        assert_eq!(fleet.way.store.entry("users:7").cleared, clears);
        // Before the next one begins, which would be the one that is acknowledged.
        eventually("it is counted", || a.keys.stats().redelivered == redelivered);
    }
}

#[test]
fn an_invalidation_of_a_task_that_is_dropped_with_its_loader_is_tried_once_more() {
    let fleet = Fleet::new();
    let a = fleet.node(POLICY);
    a.read(7, "old");
    let mut context = Context::from_waker(Waker::noop());
    let held_up = fleet.way.hold_up_an_invalidation();
    assert!(pin!(a.keys.invalidate_async("7")).poll(&mut context).is_pending());
    held_up.begun.recv().unwrap();
    drop(a);
    let again = fleet.way.hold_up_an_invalidation();
    fleet.way.down.store(true, Ordering::SeqCst);
    held_up.go_on();
    again.begun.recv().unwrap();
    fleet.way.down.store(false, Ordering::SeqCst);
    again.go_on();
    assert_eq!(fleet.way.store.entry("users:7").epoch, 1);
}

#[test]
fn an_invalidation_of_a_task_that_panics_is_owed() {
    let fleet = Fleet::new();
    let a = fleet.node(POLICY);
    a.read(7, "old");
    fleet.way.panics.store(true, Ordering::SeqCst);
    let panics = std::panic::AssertUnwindSafe(|| block_on(a.keys.invalidate_async("7")));
    std::panic::catch_unwind(panics).unwrap_err();
    eventually("it is delivered, though the key is not used", || a.keys.stats().redelivered == 1);
    assert_eq!(fleet.way.store.entry("users:7").epoch, 1);
}
