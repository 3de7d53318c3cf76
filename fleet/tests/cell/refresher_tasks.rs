//! Refreshers that are tasks.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use dogpile::{Freshness, Task};
use dogpile_fleet::{BuildContext, FleetRefresher, Refreshed};
use futures_lite::future::block_on;

use crate::support::*;

/// Three seconds ahead: due from 7 s to 7.75 s after the publication.
const AHEAD: Duration = Duration::from_secs(3);
const HANG: Duration = Duration::from_secs(60);

/// The executor: a thread for each task.
fn on_a_thread(task: Task) -> thread::JoinHandle<()> {
    thread::spawn(move || block_on(task))
}

/// A build that counts.
fn number(builds: &Arc<AtomicU32>) -> String {
    format!("build {}", builds.fetch_add(1, Ordering::SeqCst) + 1)
}

fn start(node: &Node, builds: &Arc<AtomicU32>) -> FleetRefresher {
    let builds = Arc::clone(builds);
    let build = move |_: BuildContext<'static, String>| {
        let builds = Arc::clone(&builds);
        async move { Ok::<_, io::Error>(Refreshed::from(number(&builds))) }
    };
    let refresher = FleetRefresher::spawn_async(node, AHEAD, on_a_thread, build).unwrap();
    assert!(block_on(refresher.wait_ready_async(HANG)));
    refresher
}

/// The executor is the test: the task is polled when it says so.
struct Polled(Option<Task>);

impl Polled {
    fn start<F, Fut>(node: &Node, build: F) -> (FleetRefresher, Self)
    where
        F: FnMut(BuildContext<'static, String>) -> Fut + Send + 'static,
        Fut: Future<Output = io::Result<Refreshed<String>>> + Send,
    {
        let mut task = None;
        let refresher = FleetRefresher::spawn_async(node, AHEAD, |new| task = Some(new), build).unwrap();
        (refresher, Self(task))
    }

    fn poll(&mut self) {
        let Some(task) = &mut self.0 else { panic!("the refresher has ended") };
        if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            self.0 = None;
        }
    }

    #[track_caller]
    fn poll_until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        let task = std::cell::RefCell::new(self);
        let condition = std::cell::RefCell::new(&mut condition);
        eventually(what, || {
            let mut task = task.borrow_mut();
            if task.0.is_some() {
                task.poll();
            }
            condition.borrow_mut()()
        });
    }
}

type Built = Pin<Box<dyn Future<Output = io::Result<Refreshed<String>>> + Send>>;

/// A build that says that it has begun, and goes on when it is told to.
fn held_up() -> (impl FnMut(BuildContext<'static, String>) -> Built + Send + 'static, Receiver<()>, Sender<()>)
{
    let (begun, has_begun) = channel();
    let (go_on, may_go_on) = channel();
    let (may_go_on, builds) = (Arc::new(std::sync::Mutex::new(may_go_on)), Arc::new(AtomicU32::new(0)));
    let build = move |_| -> Built {
        let (begun, may_go_on, builds) = (begun.clone(), Arc::clone(&may_go_on), Arc::clone(&builds));
        Box::pin(async move {
            begun.send(()).unwrap();
            std::future::poll_fn(|task| {
                // Nobody wakes it: it is polled until it goes on.
                task.waker().wake_by_ref();
                if may_go_on.lock().unwrap().try_recv().is_ok() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            Ok(Refreshed::from(number(&builds)))
        })
    };
    (build, has_begun, go_on)
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
    }
}

#[test]
fn a_build_is_given_its_context_and_may_find_nothing_changed() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let (seen, is_seen) = channel();
    let build = move |context: BuildContext<'static, String>| {
        let seen = seen.clone();
        async move {
            let tag = context.tag().map(str::to_owned);
            seen.send((context.fence().map(|fence| fence.number), context.previous(), tag)).unwrap();
            context.set_tag("v1");
            let unchanged = context.previous().is_some();
            Ok::<_, io::Error>(if unchanged { Refreshed::NotModified } else { Refreshed::New(text("value")) })
        }
    };
    let refresher = FleetRefresher::spawn_async(&node, AHEAD, on_a_thread, build).unwrap();
    assert!(refresher.wait_ready(HANG));
    assert_eq!(is_seen.recv_timeout(HANG).unwrap(), (Some(1), None, None));
    fleet.clock.advance(Duration::from_millis(7800));
    let (fence, previous, tag) = is_seen.recv_timeout(HANG).unwrap();
    assert_eq!((fence, tag.as_deref()), (Some(2), Some("v1")));
    assert!(Arc::ptr_eq(&previous.unwrap(), &node.get().unwrap()));
    eventually("it is found unchanged", || node.stats().unchanged == 1);
}

/// Each of these polls would block, and the test hang.
#[test]
fn no_operation_of_the_store_blocks_the_executor() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    let builds = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&builds);
    let polled = at_once("the task is polled", move || {
        let (acquires, let_acquire) = way.hold_up();
        let (publishes, let_publish) = way.hold_up_a_publication();
        let (refresher, mut task) = Polled::start(&node, move |_| {
            let builds = Arc::clone(&counted);
            async move { Ok(Refreshed::from(number(&builds))) }
        });
        task.poll();
        acquires.recv().unwrap();
        task.poll();
        let_acquire.send(()).unwrap();
        task.poll_until("it publishes", || publishes.try_recv().is_ok());
        task.poll();
        let_publish.send(()).unwrap();
        task.poll_until("it is ready", || refresher.wait_ready(Duration::ZERO));
        // Ahead of expiry, which is asked for in another way.
        let (acquires, let_acquire) = way.hold_up();
        fleet.clock.advance(Duration::from_millis(7800));
        task.poll();
        acquires.recv().unwrap();
        task.poll();
        // The build begins after this.
        refresher.refresh_now();
        let_acquire.send(()).unwrap();
        task.poll_until("it is rebuilt", || *node.get().unwrap() == "build 2");
        for _ in 0..1000 {
            task.poll();
            thread::yield_now();
        }
        node.freshness()
    });
    assert_eq!((polled, builds.load(Ordering::SeqCst)), (Freshness::Fresh, 2));
}

#[test]
fn when_it_is_stopped_its_build_is_dropped_and_another_node_builds() {
    let fleet = Fleet::new();
    let (node, other) = (fleet.node(POLICY), fleet.node(POLICY));
    let (build, has_begun, _go_on) = held_up();
    let (refresher, mut task) = Polled::start(&node, build);
    task.poll_until("it builds", || has_begun.try_recv().is_ok());
    assert!(!refresher.stop_timeout(Duration::from_millis(1)), "a build runs until the task is polled");
    task.poll();
    assert!(task.0.is_none(), "it has ended");
    eventually("the store's lease is free", || fleet.store.entry(NAME).lease_until == 0);
    assert_eq!(*other.get_or_refresh(|| text("other")), "other");
    assert_eq!(served(&node), "other");
}

#[test]
fn stopping_waits_for_the_task_and_for_no_longer_than_it_is_told() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let builds = Arc::new(AtomicU32::new(0));
    assert!(start(&node, &builds).stop_timeout(HANG));
    assert!(block_on(start(&node, &builds).stop_timeout_async(HANG)));
    let (refresher, task) = Polled::start(&node, |_| async { unreachable!("it is fresh") });
    assert!(!block_on(refresher.stop_timeout_async(Duration::from_millis(1))), "nobody polls it");
    drop(task);
}

#[test]
fn a_task_that_is_dropped_ends_the_refresher() {
    let fleet = Fleet::new();
    let (node, other) = (fleet.node(POLICY), fleet.node(POLICY));
    let (build, has_begun, _go_on) = held_up();
    let (refresher, mut task) = Polled::start(&node, build);
    task.poll_until("it builds", || has_begun.try_recv().is_ok());
    drop(task);
    assert!(
        !refresher.wait_ready(HANG) && !block_on(refresher.wait_ready_async(HANG)),
        "nobody is waited for"
    );
    eventually("the store's lease is free", || fleet.store.entry(NAME).lease_until == 0);
    assert_eq!(*other.get_or_refresh(|| text("other")), "other");
    assert!(refresher.stop_timeout(HANG));
}

/// The right to build is kept for the next caller, or given back.
#[test]
fn a_task_that_is_dropped_while_it_asks_ahead_of_expiry_leaves_nothing_behind() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    let builds = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&builds);
    let (refresher, mut task) = Polled::start(&node, move |_| {
        let builds = Arc::clone(&counted);
        async move { Ok(Refreshed::from(number(&builds))) }
    });
    task.poll_until("it is ready", || refresher.wait_ready(Duration::ZERO));
    let (acquires, let_acquire) = way.hold_up();
    fleet.clock.advance(Duration::from_millis(7800));
    at_once("the task is polled", move || task.poll_until("it asks", || acquires.try_recv().is_ok()));
    let_acquire.send(()).unwrap();
    eventually("it is elected", || node.stats().fleet_builds == 2);
    // It is stale by then.
    fleet.clock.advance(3 * SECOND);
    passes(&fleet, "a caller builds", || {
        *node.get_or_refresh(|| number(&builds)) == "build 2" && node.freshness() == Freshness::Fresh
    });
    assert_eq!(node.stats().local_builds, 0, "{:?}", node.stats());
}

#[test]
fn it_ends_with_the_cell() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let builds = Arc::new(AtomicU32::new(0));
    let refresher = start(&node, &builds);
    let (build, has_begun, _go_on) = held_up();
    let (builds_at_the_end, mut task) = Polled::start(&node, build);
    node.clear().unwrap();
    task.poll_until("both have had a turn", || {
        has_begun.try_recv().is_ok() || builds.load(Ordering::SeqCst) > 1
    });
    drop(node);
    assert!(refresher.stop_timeout(HANG));
    task.poll_until("it has ended", || true);
    assert!(task.0.is_none());
    assert!(builds_at_the_end.stop_timeout(HANG));
}

#[test]
fn a_build_that_fails_or_panics_leaves_the_value_and_is_tried_again() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let (fails, panics) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let build = {
        let (fails, panics) = (Arc::clone(&fails), Arc::clone(&panics));
        move |_: BuildContext<'static, String>| {
            let (fails, panics) = (fails.load(Ordering::SeqCst), panics.load(Ordering::SeqCst));
            async move {
                assert!(!panics, "as planned");
                if fails { Err(io::Error::other("no")) } else { Ok(Refreshed::from(text("value"))) }
            }
        }
    };
    let refresher = FleetRefresher::spawn_async(&node, AHEAD, on_a_thread, build).unwrap();
    assert!(refresher.wait_ready(HANG));
    fails.store(true, Ordering::SeqCst);
    fleet.clock.advance(Duration::from_millis(7800));
    eventually("it has failed", || refresher.last_error().is_some_and(|error| error.to_string() == "no"));
    assert_eq!((served(&node), refresher.consecutive_failures()), (text("value"), 1));
    fails.store(false, Ordering::SeqCst);
    panics.store(true, Ordering::SeqCst);
    refresher.refresh_now();
    eventually("it has panicked", || {
        refresher.last_error().is_some_and(|error| error.to_string() == "the build panicked: as planned")
    });
    assert_eq!((served(&node), refresher.consecutive_failures()), (text("value"), 2));
    panics.store(false, Ordering::SeqCst);
    refresher.refresh_now();
    passes(&fleet, "it has succeeded", || refresher.last_error().is_none());
    assert_eq!(refresher.consecutive_failures(), 0);
}

#[test]
fn what_is_asked_for_begins_after_it_and_once_for_several_requests() {
    let fleet = Fleet::new();
    let (node, other) = (fleet.node(POLICY), fleet.node(POLICY));
    let (build, has_begun, go_on) = held_up();
    let refresher = FleetRefresher::spawn_async(&node, AHEAD, on_a_thread, build).unwrap();
    let wait = || has_begun.recv_timeout(HANG).unwrap();
    wait();
    for _ in 0..3 {
        refresher.refresh_now();
    }
    go_on.send(()).unwrap();
    wait();
    go_on.send(()).unwrap();
    eventually("the second, with which all are content", || {
        node.get().is_some_and(|value| *value == "build 2")
    });
    for _ in 0..1000 {
        thread::yield_now();
    }
    assert!(has_begun.try_recv().is_err());
    assert_eq!(served(&other), "build 2", "it is shared, as any other");
}

#[test]
fn ahead_must_be_shorter_than_the_ttl() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let build =
        |_: BuildContext<'static, String>| async { Ok::<_, io::Error>(Refreshed::from(text("value"))) };
    let spawned = FleetRefresher::spawn_async(&node, 10 * SECOND, |_| panic!("not started"), build);
    assert_eq!(spawned.unwrap_err().kind(), io::ErrorKind::InvalidInput);
}
