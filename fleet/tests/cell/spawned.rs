//! Builds that run elsewhere.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dogpile::Job;
use dogpile_fleet::{BuildContext, RefreshError, Refreshed};

use crate::support::*;

/// A spawner that keeps its jobs, and where they are.
fn pool() -> (impl Fn(Job), Receiver<Job>) {
    let (spawn, jobs) = channel();
    (move |job| spawn.send(job).unwrap(), jobs)
}

fn build(
    value: &str,
) -> impl FnOnce(&BuildContext<'_, String>) -> io::Result<Refreshed<String>> + Send + 'static {
    let value = text(value);
    move |_| Ok(Refreshed::from(value))
}

#[test]
fn a_caller_with_an_old_value_gets_it_at_once_and_the_store_is_asked_by_the_job() {
    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY);
    node.get_or_refresh(|| text("old"));
    fleet.clock.advance(11 * SECOND);
    let operations = node.stats().store_operations;
    let (spawn, jobs) = pool();
    assert_eq!(*node.spawn_with(&spawn).try_get_with(build("new")).unwrap(), "old");
    assert_eq!(node.stats().store_operations, operations);
    // One job, whoever else comes.
    assert_eq!(*node.spawn_with(&spawn).try_get_with(build("not built")).unwrap(), "old");
    jobs.recv().unwrap()();
    assert_eq!(served(&node), "new");
    assert!(jobs.try_recv().is_err());
    let other = fleet.node(POLICY);
    assert_eq!(served(&other), "new");
}

#[test]
fn a_job_that_is_run_at_once_gives_its_caller_the_new_value() {
    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY);
    node.get_or_refresh(|| text("old"));
    fleet.clock.advance(11 * SECOND);
    assert_eq!(*node.spawn_with(|job: Job| job()).try_get_with(build("new")).unwrap(), "new");
}

#[test]
fn a_caller_that_gives_up_does_not_stop_the_build() {
    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY);
    let (spawn, jobs) = pool();
    let outcome = node.spawn_with(spawn).wait_at_most(Duration::ZERO).try_get_with(build("value"));
    assert!(matches!(outcome, Err(RefreshError::WaitTimeout)), "{outcome:?}");
    jobs.recv().unwrap()();
    assert_eq!(served(&node), "value");
}

#[test]
fn a_caller_with_nothing_to_serve_waits_for_its_job_and_others_for_the_same() {
    let fleet = Fleet::new();
    let node = Arc::new(fleet.quiet(POLICY));
    let (spawn, jobs) = pool();
    let spawn = Arc::new(Mutex::new(spawn));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (node, spawn) = (Arc::clone(&node), Arc::clone(&spawn));
            thread::spawn(move || {
                node.spawn_with(|job| spawn.lock().unwrap()(job)).try_get_with(build("value")).unwrap()
            })
        })
        .collect();
    jobs.recv().unwrap()();
    for caller in callers {
        assert_eq!(*caller.join().unwrap(), "value");
    }
    assert_eq!(node.stats().fleet_builds, 1);
}

#[test]
fn a_job_that_is_dropped_gives_the_right_to_build_back() {
    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY);
    let outcome = node.spawn_with(drop::<Job>).try_get_with(build("value"));
    assert!(matches!(outcome, Err(RefreshError::Abandoned)), "{outcome:?}");
    assert_eq!(*node.get_or_refresh(|| text("by the next caller")), "by the next caller");
}

#[test]
fn the_error_of_a_build_reaches_its_caller_and_those_that_wait() {
    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY);
    let fails = |_: &BuildContext<'_, String>| Err::<Refreshed<String>, _>(io::Error::other("no"));
    let error = node.spawn_with(thread::spawn).try_get_with(fails).unwrap_err();
    assert_eq!(error.to_string(), "no");
    assert!(error.is::<io::Error>());
}

#[test]
fn a_job_that_finds_another_node_building_is_made_again_when_that_one_has_died() {
    let fleet = Fleet::new();
    let node = Arc::new(fleet.node(POLICY.lease(SECOND).poll(SECOND)));
    let request = dogpile_fleet::Request::new(SECOND);
    dogpile_fleet::RefreshStore::acquire(&*fleet.store, NAME, &request).unwrap();
    let caller = {
        let node = Arc::clone(&node);
        thread::spawn(move || node.spawn_with(thread::spawn).try_get_with(build("value")).unwrap())
    };
    eventually("it has found the other node building", || node.stats().busy > 0);
    eventually("the lease of the dead node has ended", || {
        fleet.clock.advance(SECOND / 10);
        caller.is_finished()
    });
    assert_eq!(*caller.join().unwrap(), "value");
}

#[cfg(feature = "async")]
#[test]
fn a_task_that_is_dropped_does_not_stop_the_build() {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    let fleet = Fleet::new();
    let node = fleet.quiet(POLICY);
    let (spawn, jobs) = pool();
    {
        let mut read = pin!(node.spawn_with(&spawn).try_get_with_async(build("value")));
        assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    jobs.recv().unwrap()();
    assert_eq!(served(&node), "value");
    fleet.clock.advance(11 * SECOND);
    let stale = futures_lite::future::block_on(node.spawn_with(&spawn).try_get_with_async(build("newer")));
    assert_eq!(*stale.unwrap(), "value");
    jobs.recv().unwrap()();
    assert_eq!(served(&node), "newer");
    node.clear().unwrap();
    let timed_out = node.spawn_with(&spawn).wait_at_most(Duration::ZERO).try_get_with_async(build("x"));
    assert!(matches!(futures_lite::future::block_on(timed_out), Err(RefreshError::WaitTimeout)));
}
