//! What the tests share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dogpile::{Clock, ManualClock, Policy, Tick};
use dogpile_map::{Builder, DogpileMap};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
/// The shortest time there is: a value whose age is its ttl is still fresh.
pub(crate) const TICK: Duration = Duration::from_nanos(1);

pub(crate) type Map<T = u64> = DogpileMap<u64, T, ManualClock>;

pub(crate) fn builder<T>(policy: Policy) -> (Builder<u64, T, ManualClock>, ManualClock) {
    let clock = ManualClock::new();
    (DogpileMap::<u64, T>::builder(policy).clock(clock.clone()), clock)
}

pub(crate) fn map<T>(policy: Policy) -> (Map<T>, ManualClock) {
    let (builder, clock) = builder(policy);
    (builder.build(), clock)
}

/// A minute fresh, then served without end.
pub(crate) fn minute<T>() -> (Map<T>, ManualClock) {
    map(Policy::ttl(MINUTE))
}

/// No value is served that is not fresh.
pub(crate) fn strict() -> Policy {
    Policy::ttl(MINUTE).stale_while_refresh(Duration::ZERO).stale_if_error(Duration::ZERO)
}

/// A build that says when it runs, and waits until it may end.
pub(crate) struct Gate<T> {
    pub(crate) started: mpsc::Receiver<()>,
    pub(crate) finish: mpsc::Sender<T>,
}

/// The gate, and the build.
pub(crate) fn gate<T: Send + 'static>() -> (Gate<T>, impl FnOnce() -> T + Send) {
    let (start, started) = mpsc::channel();
    let (finish, finished) = mpsc::channel();
    let build = move || {
        start.send(()).unwrap();
        finished.recv_timeout(MINUTE).expect("the test ends the build")
    };
    (Gate { started, finish }, build)
}

impl<T> Gate<T> {
    pub(crate) fn wait_until_started(&self) {
        self.started.recv_timeout(MINUTE).expect("the build starts");
    }
}

/// Waits until `condition` holds; a hang guard, not a measurement.
pub(crate) fn wait_until(condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < MINUTE, "it does not happen");
        std::thread::yield_now();
    }
}

/// Runs `work` on a thread of its own; a hang guard.
pub(crate) fn does_not_hang(work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    let ended = is_done.recv_timeout(10 * SECOND);
    assert_ne!(ended, Err(mpsc::RecvTimeoutError::Timeout), "it hangs");
    worker.join().unwrap();
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as a build
pub(crate) fn unexpected<T>(_: &u64) -> T {
    panic!("this build was not to run")
}

/// Counts the threads that wait with a timeout: each blocks here.
#[derive(Clone, Default)]
pub(crate) struct WaitingClock {
    time: Option<ManualClock>,
    waits: Arc<AtomicUsize>,
}

impl WaitingClock {
    pub(crate) fn new() -> Self {
        Self { time: Some(ManualClock::new()), ..Self::default() }
    }

    fn time(&self) -> &ManualClock {
        self.time.as_ref().unwrap()
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.time().advance(time);
    }

    pub(crate) fn wait_for_waiters(&self, count: usize) {
        wait_until(|| self.waits.load(Ordering::SeqCst) >= count);
    }
}

impl Clock for WaitingClock {
    fn now(&self) -> Tick {
        self.time().now()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        self.waits.fetch_add(1, Ordering::SeqCst);
        self.time().park_until(deadline, now);
    }
}
