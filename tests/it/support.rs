//! What the tests share.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use dogpile::{Clock, DogpileCell, Lease, Lookup, ManualClock, Pending, Policy, Tick};

pub(crate) const TTL: Duration = Duration::from_secs(10);
pub(crate) const TICK: Duration = Duration::from_nanos(1);
/// Real time, as a guard against hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(if cfg!(miri) { 1200 } else { 120 });

/// Without retry pauses, and with an error for the caller whose build fails, whatever value there is.
pub(crate) const STRICT: Policy =
    Policy::ttl(TTL).retry_backoff(Duration::ZERO, Duration::ZERO).stale_if_error(Duration::ZERO);

/// What a build fails with.
#[derive(Debug, PartialEq)]
pub(crate) struct Down(pub(crate) u32);

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the source is down ({})", self.0)
    }
}

impl Error for Down {}

/// A build that must not run.
pub(crate) fn unbuilt<T>() -> T {
    unreachable!("this build must not run")
}

/// As [`unbuilt`], for calls whose builds may fail.
pub(crate) fn not_tried<T>() -> Result<T, Down> {
    unreachable!("this build must not run")
}

/// A cell with a ttl of [`TTL`] and its clock.
pub(crate) fn cell<T>() -> (DogpileCell<T, ManualClock>, ManualClock) {
    cell_with(Policy::ttl(TTL))
}

pub(crate) fn cell_with<T>(policy: Policy) -> (DogpileCell<T, ManualClock>, ManualClock) {
    let clock = ManualClock::new();
    (DogpileCell::with_clock(policy, clock.clone()), clock)
}

/// A cell that holds `value`, which has just become stale.
pub(crate) fn stale_cell<T>(value: T) -> (DogpileCell<T, ManualClock>, ManualClock) {
    stale_cell_with(Policy::ttl(TTL), value)
}

/// As [`stale_cell`], with a policy whose ttl is [`TTL`].
pub(crate) fn stale_cell_with<T>(policy: Policy, value: T) -> (DogpileCell<T, ManualClock>, ManualClock) {
    let (cell, clock) = cell_with(policy);
    cell.set(value);
    clock.advance(TTL + TICK);
    (cell, clock)
}

/// Looks until `condition` holds.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "hangs: {what}");
        thread::yield_now();
    }
}

pub(crate) trait LookupExt<'a, T, C: Clock> {
    fn elected(self) -> Lease<'a, T, C>;
    fn pending(self) -> Pending<'a, T, C>;
}

impl<'a, T, C: Clock> LookupExt<'a, T, C> for Lookup<'a, T, C> {
    #[track_caller]
    fn elected(self) -> Lease<'a, T, C> {
        match self {
            Lookup::Elected(lease) => lease,
            other => panic!("expected to be elected, got {other:?}"),
        }
    }

    #[track_caller]
    fn pending(self) -> Pending<'a, T, C> {
        match self {
            Lookup::Pending(pending) => pending,
            other => panic!("expected to be pending, got {other:?}"),
        }
    }
}

/// Two ends of a gate: the thread that arrives at it waits until it is opened.
pub(crate) struct Gate {
    arrived: Sender<()>,
    opened: Mutex<Receiver<()>>,
}

pub(crate) struct Gatekeeper {
    arrived: Receiver<()>,
    opened: Sender<()>,
}

pub(crate) fn gate() -> (Gate, Gatekeeper) {
    let (arrive, arrived) = channel();
    let (open, opened) = channel();
    (Gate { arrived: arrive, opened: Mutex::new(opened) }, Gatekeeper { arrived, opened: open })
}

impl Gate {
    pub(crate) fn pass(&self) {
        self.arrived.send(()).unwrap();
        self.opened.lock().unwrap().recv().unwrap();
    }
}

impl Gatekeeper {
    pub(crate) fn wait_for_arrival(&self) {
        self.arrived.recv_timeout(PATIENCE).expect("no thread arrives at the gate");
    }

    pub(crate) fn open(&self) {
        self.opened.send(()).unwrap();
    }
}

/// A manual clock at which chosen threads stop when they ask for the time.
#[derive(Default)]
pub(crate) struct GatedClock {
    pub(crate) manual: ManualClock,
    gates: Mutex<HashMap<ThreadId, Gate>>,
}

impl GatedClock {
    /// The next time that `thread` asks for the time, it stops at `gate` first.
    pub(crate) fn stop_at(&self, thread: ThreadId, gate: Gate) {
        self.gates.lock().unwrap().insert(thread, gate);
    }
}

impl Clock for GatedClock {
    fn now(&self) -> Tick {
        let gate = self.gates.lock().unwrap().remove(&thread::current().id());
        if let Some(gate) = gate {
            gate.pass();
        }
        self.manual.now()
    }

    fn coarse_now(&self) -> Tick {
        self.manual.now()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        self.manual.park_until(deadline, now);
    }
}

/// Runs `f`, which is expected to panic, and returns the message.
pub(crate) fn panic_message<R>(f: impl FnOnce() -> R) -> String {
    let panic =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).err().expect("it should have panicked");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().expect("a panic with a message")).to_owned(),
    }
}
