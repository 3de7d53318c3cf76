//! Tasks.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Waker};
use std::thread;

use dogpile_fleet::{Backoff, BuildContext, RefreshError, Refreshed};
use futures_lite::future::{block_on, yield_now};

use crate::support::*;

/// Polls once.
fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn tasks_and_threads_of_all_nodes_share_a_build() {
    let fleet = Fleet::new();
    let nodes: Vec<Node> = (0..4).map(|_| fleet.quiet(POLICY)).collect();
    for round in 0..3 {
        let value = format!("value {round}");
        let built = block_on(nodes[0].get_or_refresh_async(|| async {
            yield_now().await;
            value.clone()
        }));
        assert_eq!(*built, value);
        thread::scope(|scope| {
            for node in &nodes[1..] {
                scope.spawn(|| {
                    let read = node.get_or_refresh_async(|| async { panic!("not to be built here") });
                    assert_eq!(*block_on(read), value);
                    assert_eq!(served(node), value);
                });
            }
        });
        fleet.clock.advance(11 * SECOND);
    }
    assert_eq!(nodes[0].stats().published, 3);
}

#[test]
fn a_task_waits_for_a_build_of_another_node() {
    let fleet = Fleet::new();
    let (builder, other) = (fleet.node(POLICY), fleet.node(POLICY));
    thread::scope(|scope| {
        builder.get_or_refresh(|| {
            let waiting = other.get_or_refresh_async(|| async { panic!("not to be built here") });
            scope.spawn(|| assert_eq!(*block_on(waiting), "value"));
            eventually("it asks", || other.stats().busy == 1);
            text("value")
        });
    });
}

#[test]
fn a_build_is_given_its_context_and_may_fail_or_find_nothing_changed() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY.retry_backoff(SECOND, SECOND));
    let error =
        block_on(node.try_get_with_async(async |_: &BuildContext<'_, String>| Err("no"))).unwrap_err();
    assert!(matches!(error, RefreshError::Build(error) if error.to_string() == "no"));
    let refused =
        node.try_get_with_async(async |_: &BuildContext<'_, String>| Err::<Refreshed<_>, _>("never"));
    assert!(block_on(refused).unwrap_err().is::<Backoff>());
    fleet.clock.advance(2 * SECOND);
    let first = block_on(node.get_or_refresh_async(|| async { text("value") }));
    fleet.clock.advance(11 * SECOND);
    let second = block_on(node.try_get_with_async(async |context: &BuildContext<'_, String>| {
        yield_now().await;
        assert_eq!(context.fence().unwrap().number, 3);
        assert!(context.previous().is_some());
        Ok::<_, &str>(Refreshed::NotModified)
    }));
    assert!(Arc::ptr_eq(&first, &second.unwrap()));
}

#[test]
fn a_task_that_is_dropped_while_it_builds_gives_both_leases_back() {
    let fleet = Fleet::new();
    let (node, other) = (fleet.node(POLICY), fleet.node(POLICY));
    {
        let begun = AtomicBool::new(false);
        let mut read = pin!(node.get_or_refresh_async(|| async {
            begun.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
            unreachable!("never goes on")
        }));
        assert!(poll(read.as_mut()).is_pending());
        eventually("it is elected", || fleet.store.entry(NAME).lease_until != 0);
        // The answer may still be on its way.
        while !begun.load(Ordering::SeqCst) {
            assert!(poll(read.as_mut()).is_pending());
        }
    }
    eventually("the store's lease is free", || fleet.store.entry(NAME).lease_until == 0);
    assert_eq!(node.stats().panicked, 0);
    assert_eq!(*other.get_or_refresh(|| text("value")), "value");
    assert_eq!(served(&node), "value");
}

/// It counted as a panic of the build, after which the whole fleet paused.
#[test]
fn a_task_that_is_dropped_by_an_unrelated_panic_is_no_build_that_panicked() {
    let fleet = Fleet::new();
    let policy = POLICY.retry_backoff(10 * SECOND, 10 * SECOND);
    let (node, other) = (Arc::new(fleet.node(policy)), fleet.node(policy));
    let begun = Arc::new(AtomicBool::new(false));
    let mut read = Box::pin({
        let (node, begun) = (Arc::clone(&node), Arc::clone(&begun));
        async move {
            node.get_or_refresh_async(|| async {
                begun.store(true, Ordering::SeqCst);
                std::future::pending::<String>().await
            })
            .await
        }
    });
    while !begun.load(Ordering::SeqCst) {
        assert!(poll(read.as_mut()).is_pending());
        thread::yield_now();
    }
    let unrelated = catch_unwind(AssertUnwindSafe(move || {
        let _read = read;
        panic!("as planned");
    }));
    unrelated.unwrap_err();
    eventually("the store's lease is free", || fleet.store.entry(NAME).lease_until == 0);
    assert_eq!(node.stats().panicked, 0);
    assert_eq!(*other.try_get_or_refresh(|| Ok::<_, &str>(text("value"))).unwrap(), "value");
}

#[test]
fn a_task_that_is_dropped_before_the_answer_leaves_it_to_the_next_caller() {
    for answered in [false, true] {
        let fleet = Fleet::new();
        let (node, way) = fleet.disturbed(POLICY);
        let (begun, let_go) = way.hold_up();
        {
            let mut read = pin!(node.get_or_refresh_async(|| async { panic!("dropped before") }));
            assert!(poll(read.as_mut()).is_pending());
            begun.recv().unwrap();
            if answered {
                let_go.send(()).unwrap();
                eventually("the answer is there", || fleet.store.entry(NAME).lease_until != 0);
            }
        }
        if !answered {
            let_go.send(()).unwrap();
        }
        assert_eq!(*node.get_or_refresh(|| text("value")), "value");
        let stats = node.stats();
        assert_eq!((stats.acquires, stats.fleet_builds, stats.published), (1, 1, 1), "{stats:?}");
    }
}

#[test]
fn a_build_that_awaits_its_own_value_gets_an_error() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let value = block_on(node.get_or_refresh_async(|| async {
        yield_now().await;
        let inner =
            node.try_get_with_async(async |_: &BuildContext<'_, String>| Err::<Refreshed<_>, _>("not built"));
        assert!(matches!(inner.await, Err(RefreshError::Reentrant)));
        text("value")
    }));
    assert_eq!(*value, "value");
}

#[test]
fn a_store_that_is_down_is_no_obstacle_for_tasks() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    way.down.store(true, Ordering::SeqCst);
    assert_eq!(*block_on(node.get_or_refresh_async(|| async { text("local") })), "local");
    assert_eq!(node.stats().local_builds, 1);
}

#[test]
fn its_futures_can_be_sent() {
    fn sent<F: Future + Send>(future: F) {
        drop(future);
    }
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    sent(node.get_or_refresh_async(|| async { text("value") }));
    sent(node.try_get_with_async(async |_: &BuildContext<'_, String>| Err::<Refreshed<_>, _>("not built")));
}

#[test]
fn tasks_that_waited_for_a_failed_build_share_its_error_whatever_their_own_error_type_is() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let (waits, is_waiting) = channel();
    thread::scope(|scope| {
        let mut waiter = None;
        let error = node
            .try_get_with(|_| {
                let (waits, node) = (waits.clone(), &node);
                waiter = Some(scope.spawn(move || {
                    let never = async |_: &BuildContext<'_, String>| Err::<Refreshed<_>, _>(fmt::Error);
                    let mut read = pin!(node.try_get_with_async(never));
                    assert!(poll(read.as_mut()).is_pending());
                    waits.send(()).unwrap();
                    block_on(read).unwrap_err()
                }));
                is_waiting.recv().unwrap();
                Err(io::Error::from(io::ErrorKind::TimedOut))
            })
            .unwrap_err();
        assert!(error.is::<io::Error>());
        let (own, shared) = (error.build_error().unwrap(), waiter.unwrap().join().unwrap());
        assert!(shared.build_error().unwrap().ptr_eq(own), "{shared:?}");
    });
    let stats = node.stats();
    assert_eq!((stats.acquires, stats.failed), (1, 1), "{stats:?}");
}

#[test]
fn a_build_of_a_task_that_panics_begins_a_pause_on_all_nodes() {
    let fleet = Fleet::new();
    let [one, other] = [0; 2].map(|_| fleet.node(POLICY.retry_backoff(SECOND, SECOND)));
    let build = async |_: &BuildContext<'_, String>| -> Result<Refreshed<String>, io::Error> {
        panic!("as intended")
    };
    catch_unwind(AssertUnwindSafe(|| block_on(one.try_get_with_async(build)))).unwrap_err();
    assert_eq!(one.stats().panicked, 1);
    eventually("the store is told", || fleet.store.entry(NAME).failures == 1);
    let error = other.try_get_with::<io::Error, _>(|_| panic!("it is tried too early")).unwrap_err();
    assert!(error.is::<Backoff>(), "{error:?}");
}

#[test]
fn a_build_of_a_plain_value_needs_no_context() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let build = || async { Ok::<_, io::Error>(text("first")) };
    assert_eq!(*block_on(node.try_get_or_refresh_async(build)).unwrap(), "first");
    fleet.clock.advance(11 * SECOND);
    let build = || Ok::<_, io::Error>(text("second"));
    let read = node.spawn_with(|job: dogpile::Job| job()).try_get_async(build);
    assert_eq!(*block_on(read).unwrap(), "second");
    node.clear().unwrap();
    let error = block_on(node.try_get_or_refresh_async(|| async { Err("no") })).unwrap_err();
    assert_eq!(error.to_string(), "no");
}
