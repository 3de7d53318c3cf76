//! Tasks among the waiters and futures that are dropped: G5, G6.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use dogpile_under_test::{DogpileCell, Lookup, ManualClock, Policy, Waited};
use loom::sync::Notify;

use crate::support::{Model, cell, elect, fork, saw};

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "g6_a_task_and_a_thread_wait_for_one_build",
        preemptions: Some(2),
        body: a_task_and_a_thread_wait_for_one_build,
        sees: &["both waited"],
    },
    Model {
        name: "g5_a_task_that_waits_is_dropped",
        preemptions: Some(2),
        body: a_task_that_waits_is_dropped,
        sees: &["dropped as a waiter", "built"],
    },
    Model {
        name: "g6_a_place_that_was_given_up_is_reused_while_the_build_ends",
        preemptions: Some(2),
        body: a_place_that_was_given_up_is_reused_while_the_build_ends,
        sees: &["given up", "three waited", "too late to wait"],
    },
    Model {
        name: "g5_a_task_that_builds_is_dropped",
        preemptions: Some(3),
        body: a_task_that_builds_is_dropped,
        sees: &["handed on", "not elected"],
    },
    Model {
        name: "g6_the_latest_waker_is_woken",
        preemptions: None,
        body: the_latest_waker_is_woken,
        sees: &["woken", "ready at the second poll"],
    },
    Model {
        name: "g1_a_task_supersedes_a_build_that_hangs",
        preemptions: None,
        body: a_task_supersedes_a_build_that_hangs,
        sees: &["superseded after a wait", "superseded at once"],
    },
];

/// Wakes the thread that polls.
#[derive(Default)]
struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => {
                saw("suspended");
                bell.0.wait();
            }
        }
    }
}

pub(crate) fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&Waker::from(Arc::new(Bell::default()))))
}

fn a_task_and_a_thread_wait_for_one_build() {
    let cell = cell();
    let lease = elect(&cell);
    let task = fork(&cell, |cell| *block_on(cell.get_or_refresh_async(|| async { 2 })));
    let thread = fork(&cell, |cell| *cell.get_or_refresh(|| 3));
    lease.publish(1);
    assert_eq!((task.join().unwrap(), thread.join().unwrap()), (1, 1));
    if cell.stats().waits == 2 {
        saw("both waited");
    }
}

fn a_task_that_waits_is_dropped() {
    let cell = cell();
    let lease = elect(&cell);
    let task = fork(&cell, |cell| match poll_once(pin!(cell.get_or_refresh_async(|| async { 2 }))) {
        Poll::Pending => saw("dropped as a waiter"),
        Poll::Ready(value) => saw(if *value == 2 { "built" } else { "served" }),
    });
    let thread = fork(&cell, |cell| *cell.get_or_refresh(|| 3));
    drop(lease);
    task.join().unwrap();
    let value = thread.join().unwrap();
    assert_eq!(cell.get().as_deref(), Some(&value));
    assert_eq!(cell.stats().published, 1);
}

/// Two waiters, one of which gives up; a third one takes the free place. No wake-up is lost, whenever the build ends.
fn a_place_that_was_given_up_is_reused_while_the_build_ends() {
    let cell = cell();
    let lease = elect(&cell);
    let [first, second] = [(); 2].map(|()| match cell.lookup_owned() {
        Lookup::Pending(pending) => pending,
        other => panic!("{other:?}"),
    });
    let fickle = fork(&cell, move |cell| {
        {
            let mut first = pin!(first);
            if poll_once(first.as_mut()).is_pending() {
                saw("given up");
            }
        }
        *block_on(cell.get_or_refresh_async(|| async { unreachable!("another caller builds") }))
    });
    let thread = fork(&(), move |()| match second.wait() {
        Waited::Published(value) => *value,
        other => panic!("{other:?}"),
    });
    lease.publish(1);
    assert_eq!((fickle.join().unwrap(), thread.join().unwrap()), (1, 1));
    match cell.stats().waits {
        0 => saw("too late to wait"),
        3 => saw("three waited"),
        _ => {}
    }
}

fn a_task_that_builds_is_dropped() {
    let cell = cell();
    let task = fork(&cell, |cell| {
        let build = std::future::pending;
        match poll_once(pin!(cell.get_or_refresh_async(build))) {
            Poll::Pending => {}
            Poll::Ready(value) => {
                assert_eq!(*value, 3);
                saw("not elected");
            }
        }
    });
    assert_eq!(*cell.get_or_refresh(|| 3), 3);
    task.join().unwrap();
    if cell.stats().waits > 0 && cell.stats().abandoned == 1 {
        saw("handed on");
    }
    assert!(!cell.is_refreshing());
}

fn the_latest_waker_is_woken() {
    let cell = cell();
    let lease = elect(&cell);
    let Lookup::Pending(pending) = cell.lookup_owned() else { unreachable!("a build runs") };
    let builder = fork(&Arc::new(std::sync::Mutex::new(Some(lease))), |lease| {
        let lease = lease.lock().unwrap().take().expect("only here");
        lease.publish(1);
    });
    let mut pending = pin!(pending);
    let waited = match poll_once(pending.as_mut()) {
        Poll::Ready(waited) => waited,
        // From now on the first waker wakes no thread.
        Poll::Pending => {
            let bell = Arc::new(Bell::default());
            let waker = Waker::from(Arc::clone(&bell));
            let mut polls = 0;
            loop {
                polls += 1;
                match pending.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(waited) => {
                        saw(if polls == 1 { "ready at the second poll" } else { "woken" });
                        break waited;
                    }
                    Poll::Pending => bell.0.wait(),
                }
            }
        }
    };
    assert!(matches!(waited, Waited::Published(value) if *value == 1));
    builder.join().unwrap();
}

fn a_task_supersedes_a_build_that_hangs() {
    let limit = Duration::from_nanos(10);
    let clock = ManualClock::new();
    let policy = Policy::never_expires().lease_timeout(limit);
    let cell = Arc::new(DogpileCell::with_clock(policy, clock.clone()));
    let hangs = elect(&cell);
    let task = fork(&cell, |cell| *block_on(cell.get_or_refresh_async(|| async { 2 })));
    clock.advance(2 * limit);
    assert_eq!(task.join().unwrap(), 2);
    saw(if cell.stats().waits > 0 { "superseded after a wait" } else { "superseded at once" });
    assert_eq!(*hangs.publish(1), 2);
}
