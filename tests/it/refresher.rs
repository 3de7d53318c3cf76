//! A refresher on a thread of its own.
//!
//! Each build waits for its result, which the test hands over ([`Builds`]); the clock shows until when the refresher sleeps
//! ([`Bed`]). So "not a tick earlier" is seen, not waited for: at that tick the thread has looked, and has gone back to
//! sleep.

use std::any::Any;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use dogpile::{
    Clock, DogpileCell, Freshness, Lease, Lookup, ManualClock, Policy, RefreshError, Refreshed, Refresher,
    RefresherOptions, SharedError, Tick,
};

use crate::support::{LookupExt, PATIENCE, TICK, TTL, eventually, panic_message};

mod control;
mod kinds;
mod options;

/// How long before the end of a value the refresher of a [`Rig`] begins.
const AHEAD: Duration = Duration::from_secs(4);
/// The age at which that is: a value is fresh up to and including its ttl.
const DUE: Duration = Duration::from_nanos(6_000_000_001);
const SECOND: Duration = Duration::from_secs(1);

/// No retry pauses, and no stale value in place of an error.
const fn plain(policy: Policy) -> Policy {
    policy.retry_backoff(Duration::ZERO, Duration::ZERO).stale_if_error(Duration::ZERO)
}

/// A manual clock that shows which threads sleep on it.
#[derive(Clone, Default)]
struct Bed {
    manual: ManualClock,
    naps: Arc<Mutex<HashMap<ThreadId, Nap>>>,
    /// How often refreshers have gone to sleep.
    count: Arc<AtomicU64>,
}

#[derive(Clone, Copy, Debug)]
struct Nap {
    is_refresher: bool,
    until: Tick,
    /// When the sleeper last looked.
    looked: Tick,
}

impl Clock for Bed {
    fn now(&self) -> Tick {
        self.manual.now()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        let thread = thread::current();
        let is_refresher = thread.name() == Some("dogpile-refresher");
        self.naps.lock().unwrap().insert(thread.id(), Nap { is_refresher, until: deadline, looked: now });
        if is_refresher {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        self.manual.park_until(deadline, now);
        self.naps.lock().unwrap().remove(&thread.id());
    }
}

impl Bed {
    fn time(&self) -> Duration {
        Duration::from_nanos(self.now().as_nanos())
    }

    /// Waits until the refresher has looked at the present time and sleeps until `time`.
    #[track_caller]
    fn sleeps_until(&self, time: Duration) {
        self.sleep_until(time, 1);
    }

    fn refreshers(&self) -> Vec<Nap> {
        self.naps.lock().unwrap().values().filter(|nap| nap.is_refresher).copied().collect()
    }

    /// Waits until `thread` has looked at the present time and sleeps until `time`.
    #[track_caller]
    fn waits_until(&self, thread: ThreadId, time: Duration) {
        let until = Tick::default().saturating_add(time);
        eventually("the thread waits", || {
            self.wake();
            let nap = self.naps.lock().unwrap().get(&thread).copied();
            nap.is_some_and(|nap| nap.until == until && nap.looked == self.now())
        });
    }

    #[track_caller]
    fn sleep_until(&self, time: Duration, sleepers: usize) {
        let start = Instant::now();
        loop {
            let naps = self.refreshers();
            let until = Tick::default().saturating_add(time);
            if naps.len() == sleepers && naps.iter().all(|nap| nap.until == until && nap.looked == self.now())
            {
                return;
            }
            self.wake();
            assert!(
                start.elapsed() < PATIENCE,
                "{sleepers} should sleep until {time:?} at {:?}: {naps:?}",
                self.time()
            );
            thread::yield_now();
        }
    }

    /// Until when the only refresher sleeps, when it has looked at the present time.
    #[track_caller]
    fn nap_end(&self) -> Duration {
        let start = Instant::now();
        loop {
            if let Some(nap) = self.refreshers().first()
                && nap.looked == self.now()
            {
                return nap.until.saturating_duration_since(Tick::default());
            }
            self.wake();
            assert!(start.elapsed() < PATIENCE, "no refresher sleeps");
            thread::yield_now();
        }
    }

    /// Makes the sleepers look again. A step of the clock between a sleeper's look and its sleep has not woken it.
    fn wake(&self) {
        self.manual.advance(Duration::ZERO);
    }
}

type Ended = Result<Refreshed<u32>, &'static str>;

/// The builds of a refresher: each shows the previous value and waits for its result.
struct Builds<P = Arc<u32>> {
    begun: Receiver<Option<P>>,
    results: Sender<Box<dyn FnOnce() -> Ended + Send>>,
    /// Counts the owners of what the build owns.
    kept: Weak<()>,
}

impl<P: Deref<Target = u32> + Send + 'static> Builds<P> {
    fn new() -> (Self, impl FnMut(Option<P>) -> Ended + Send + 'static) {
        let (show, begun) = channel();
        let (results, result) = channel::<Box<dyn FnOnce() -> Ended + Send>>();
        let owned = Arc::new(());
        let kept = Arc::downgrade(&owned);
        let build = move |previous: Option<P>| {
            assert_eq!(Arc::strong_count(&owned), 1);
            show.send(previous).ok();
            // None, if the test has ended early by a panic of its own.
            result.recv_timeout(PATIENCE).map_or(Err("no result"), |result| result())
        };
        (Self { begun, results, kept }, build)
    }

    /// Waits for the next build and returns the previous value that it is given.
    #[track_caller]
    fn previous(&self) -> Option<P> {
        match self.begun.recv_timeout(PATIENCE) {
            Ok(previous) => previous,
            Err(RecvTimeoutError::Timeout) => panic!("no build begins"),
            Err(RecvTimeoutError::Disconnected) => panic!("the refresher has ended"),
        }
    }

    #[track_caller]
    fn begins(&self, previous: Option<u32>) {
        assert_eq!(self.previous().as_deref().copied(), previous);
    }

    #[track_caller]
    fn none(&self) {
        assert!(self.begun.try_recv().is_err(), "there should have been no build");
    }

    fn ends(&self, result: Ended) {
        self.ends_with(move || result);
    }

    fn ends_with(&self, result: impl FnOnce() -> Ended + Send + 'static) {
        self.results.send(Box::new(result)).unwrap();
    }

    /// Whether the refresher has let go of its build, as it does when it has ended.
    fn are_over(&self) -> bool {
        self.kept.strong_count() == 0
    }

    #[track_caller]
    fn end(&self) {
        eventually("the refresher ends", || self.are_over());
    }
}

type Cell = DogpileCell<u32, Bed>;

/// A cell with a refresher.
struct Rig {
    clock: Bed,
    cell: Arc<Cell>,
    // Before the refresher, which waits for a build that waits for its result.
    builds: Builds,
    refresher: Refresher,
}

fn rig() -> Rig {
    rig_with(Policy::ttl(TTL), AHEAD)
}

fn rig_with(policy: Policy, ahead: Duration) -> Rig {
    let clock = Bed::default();
    let cell = Arc::new(Cell::with_clock(policy, clock.clone()));
    rig_of(clock, cell, ahead)
}

fn rig_of(clock: Bed, cell: Arc<Cell>, ahead: Duration) -> Rig {
    rig_with_options(Refresher::options(), clock, cell, ahead)
}

fn rig_with_options(options: RefresherOptions, clock: Bed, cell: Arc<Cell>, ahead: Duration) -> Rig {
    let (builds, build) = Builds::new();
    let refresher = options.spawn(&cell, ahead, build).unwrap();
    Rig { clock, cell, builds, refresher }
}

impl Rig {
    /// A rig whose refresher has published 1 at the tick 0 and sleeps.
    #[track_caller]
    fn asleep(policy: Policy) -> Self {
        Self::asleep_with(Refresher::options(), policy)
    }

    #[track_caller]
    fn asleep_with(options: RefresherOptions, policy: Policy) -> Self {
        let clock = Bed::default();
        let cell = Arc::new(Cell::with_clock(policy, clock.clone()));
        let rig = rig_with_options(options, clock, cell, AHEAD);
        rig.builds.begins(None);
        rig.builds.ends(Ok(Refreshed::New(1)));
        rig.clock.sleeps_until(DUE);
        rig
    }

    fn advance(&self, by: Duration) {
        self.clock.manual.advance(by);
    }

    /// The next build begins exactly in `pause`.
    #[track_caller]
    fn begins_after(&self, pause: Duration, previous: Option<u32>) {
        let due = self.clock.time() + pause;
        self.clock.sleeps_until(due);
        self.advance(pause - TICK);
        self.clock.sleeps_until(due);
        self.builds.none();
        self.advance(TICK);
        self.builds.begins(previous);
    }

    /// The next build begins exactly in `interval`, though the policy's `pause` is over before.
    #[track_caller]
    fn holds_back(&self, pause: Duration, interval: Duration, previous: Option<u32>) {
        self.clock.sleeps_until(self.clock.time() + pause);
        self.advance(pause);
        self.begins_after(interval - pause, previous);
    }

    /// As [`begins_after`](Rig::begins_after), and it ends with `result`.
    #[track_caller]
    fn builds_after(&self, pause: Duration, previous: Option<u32>, result: Ended) {
        self.begins_after(pause, previous);
        self.builds.ends(result);
    }

    /// What every read that takes a stale value is served, without building.
    #[track_caller]
    fn serves(&self, value: u32) {
        serves(&self.cell, value);
    }

    /// The last error, when there are so many failures.
    #[track_caller]
    fn error(&self, failures: u32) -> SharedError {
        eventually("the failure is noted", || self.refresher.consecutive_failures() == failures);
        self.refresher.last_error().expect("there should be an error")
    }

    #[track_caller]
    fn fails(&self, failures: u32, message: &str) {
        assert_eq!(self.error(failures).to_string(), message);
    }

    #[track_caller]
    fn no_error(&self) {
        eventually("the success is noted", || self.refresher.consecutive_failures() == 0);
        assert!(self.refresher.last_error().is_none());
    }
}

fn unbuilt() -> u32 {
    unreachable!("readers do not build")
}

fn untried() -> Result<u32, &'static str> {
    unreachable!("readers do not build")
}

#[track_caller]
fn serves<C: Clock>(cell: &DogpileCell<u32, C>, value: u32) {
    reads(cell, value);
    assert!(matches!(cell.lookup(), Lookup::Fresh(served) | Lookup::Stale(served) if *served == value));
    let request = || cell.request().wait_at_most(Duration::ZERO);
    assert_eq!(*request().get(unbuilt), value);
    assert_eq!(*request().try_get(untried).unwrap(), value);
}

/// The same without `lookup` and `request`, which tell a fresh value from a stale one and so need the time.
#[track_caller]
fn reads<C: Clock>(cell: &DogpileCell<u32, C>, value: u32) {
    assert_eq!(*cell.get_or_refresh(unbuilt), value);
    assert_eq!(*cell.load_or_refresh(unbuilt), value);
    assert_eq!(*cell.try_get_or_refresh(untried).unwrap(), value);
    let mut reader = cell.reader();
    assert_eq!((**reader.get_or_refresh(unbuilt), **reader.get_or_refresh(unbuilt)), (value, value));
    assert_eq!(cell.get().as_deref(), Some(&value));
}

/// A panic of the build that does not trouble the hook.
fn panicking(payload: impl Any + Send) -> impl FnOnce() -> Ended + Send {
    move || resume_unwind(Box::new(payload))
}

// When it builds.

#[test]
fn the_first_build_begins_at_once() {
    let rig = rig();
    rig.builds.begins(None);
    assert!(rig.cell.is_refreshing());
    assert_eq!(rig.cell.freshness(), Freshness::Empty);
    rig.builds.ends(Ok(Refreshed::New(1)));
    rig.clock.sleeps_until(DUE);
    rig.serves(1);
    assert_eq!((rig.cell.stats().builds, rig.cell.generation()), (1, 1));
}

#[test]
fn each_next_build_begins_exactly_ahead_of_the_end() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    for value in 1..=3 {
        rig.builds_after(DUE, Some(value), Ok(Refreshed::New(value + 1)));
        eventually("it is published", || rig.cell.get().as_deref() == Some(&(value + 1)));
        rig.clock.sleeps_until(rig.clock.time() + DUE);
        assert_eq!(rig.cell.freshness(), Freshness::Fresh);
    }
    assert_eq!(rig.cell.stats().builds, 4);
}

#[test]
fn g8_the_time_of_a_slow_build_does_not_count() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.advance(3 * TTL);
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.clock.sleeps_until(DUE + 3 * TTL + DUE);
    assert_eq!(rig.cell.freshness(), Freshness::Fresh);
}

#[test]
fn readers_never_see_a_stale_value_if_builds_are_fast_enough() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    for value in 1..=20 {
        rig.advance(DUE);
        rig.builds.begins(Some(value));
        // The slowest that is.
        rig.advance(AHEAD - TICK);
        assert_eq!(rig.cell.freshness(), Freshness::Fresh);
        assert_eq!(*rig.cell.request().max_stale(Duration::ZERO).get(unbuilt), value);
        rig.serves(value);
        rig.builds.ends(Ok(Refreshed::New(value + 1)));
        rig.clock.sleeps_until(rig.clock.time() + DUE);
    }
    assert_eq!((rig.cell.stats().builds, rig.cell.stats().waits), (21, 0));
}

#[test]
fn a_build_never_begins_before_half_of_a_values_life() {
    let rig = rig_with(Policy::ttl(TTL), TTL - TICK);
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(1)));
    rig.clock.sleeps_until(TTL / 2);
    rig.builds_after(TTL / 2, Some(1), Ok(Refreshed::New(2)));
    rig.clock.sleeps_until(TTL);
}

#[test]
fn ahead_may_be_zero() {
    let rig = rig_with(Policy::ttl(TTL), Duration::ZERO);
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(1)));
    rig.clock.sleeps_until(TTL + TICK);
    rig.builds_after(TTL + TICK, Some(1), Ok(Refreshed::New(2)));
}

#[test]
fn a_value_may_choose_its_own_time_to_live() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    // Shorter than `ahead`: at half of it.
    rig.builds_after(DUE, Some(1), Ok(Refreshed::NewFor(2, 2 * SECOND)));
    rig.clock.sleeps_until(DUE + SECOND);
    // Longer than the policy's.
    rig.builds_after(SECOND, Some(2), Ok(Refreshed::NewFor(3, 10 * TTL)));
    let now = rig.clock.time();
    rig.clock.sleeps_until(now + 10 * TTL + TICK - AHEAD);
    // And the policy's again.
    rig.builds_after(10 * TTL + TICK - AHEAD, Some(3), Ok(Refreshed::New(4)));
    rig.clock.sleeps_until(rig.clock.time() + DUE);
}

#[test]
fn a_value_that_chooses_to_live_for_ever_is_never_due() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.builds_after(DUE, Some(1), Ok(Refreshed::NewFor(2, Duration::MAX)));
    eventually("it is published", || rig.cell.generation() == 2);
    rig.advance(100 * TTL);
    rig.cell.invalidate();
    rig.builds.begins(Some(2));
    assert_eq!((rig.cell.stats().builds, rig.cell.generation()), (3, 2));
    rig.builds.ends(Ok(Refreshed::New(3)));
    rig.clock.sleeps_until(rig.clock.time() + DUE);
}

#[test]
fn what_never_expires_is_built_once_and_then_after_each_invalidate() {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    // No `ahead` is too long.
    let rig = rig_with(Policy::never_expires(), Duration::MAX);
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(0)));
    for round in 0..3 {
        let generation = u64::from(round) + 1;
        eventually("it is published", || rig.cell.generation() == generation && !rig.cell.is_refreshing());
        rig.advance(CENTURY);
        rig.builds.none();
        assert_eq!(rig.cell.stats().builds, generation);
        rig.cell.invalidate();
        rig.builds.begins(Some(round));
        rig.builds.ends(Ok(Refreshed::New(round + 1)));
    }
    // It never slept until a tick.
    assert_eq!(rig.clock.count.load(Ordering::SeqCst), 0);
}

#[test]
fn a_jittered_value_is_replaced_ahead_of_its_own_end() {
    let rig = rig_with(Policy::ttl(TTL).jitter(50), SECOND);
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(0)));
    let mut lives = Vec::new();
    for value in 0..8 {
        let born = rig.clock.time();
        eventually("it is published", || rig.cell.get().as_deref() == Some(&value));
        let life = rig.clock.nap_end() - born + SECOND;
        assert!((TTL / 2..=TTL + TICK).contains(&life), "{life:?}");
        rig.advance(life - SECOND);
        rig.builds.begins(Some(value));
        // The build takes just as long as it may.
        rig.advance(SECOND - TICK);
        assert_eq!(rig.cell.freshness(), Freshness::Fresh);
        rig.advance(TICK);
        assert_eq!(rig.cell.freshness(), Freshness::Stale);
        rig.builds.ends(Ok(Refreshed::New(value + 1)));
        lives.push(life);
    }
    // Each is drawn anew: all alike has a probability of less than 2^-200.
    assert!(lives.iter().any(|life| *life != lives[0]), "{lives:?}");
}

/// Jitter may make a life shorter than `ahead`: then half of that counts.
#[test]
fn a_jittered_value_is_not_replaced_before_half_of_its_life() {
    let rig = rig_with(Policy::ttl(TTL).jitter(50), TTL - TICK);
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(0)));
    for value in 0..4 {
        let born = rig.clock.time();
        eventually("it is published", || rig.cell.get().as_deref() == Some(&value));
        let half = rig.clock.nap_end() - born;
        rig.advance(half);
        rig.builds.begins(Some(value));
        rig.advance(half - TICK);
        assert_eq!(rig.cell.freshness(), Freshness::Fresh);
        // Halves are rounded down.
        rig.advance(2 * TICK);
        assert_eq!(rig.cell.freshness(), Freshness::Stale);
        rig.builds.ends(Ok(Refreshed::New(value + 1)));
    }
}

#[test]
fn a_value_that_is_there_already_is_left_its_time() {
    let clock = Bed::default();
    let cell = Arc::new(Cell::with_clock(Policy::ttl(TTL), clock.clone()));
    cell.set(7);
    clock.manual.advance(SECOND);
    let rig = rig_of(clock, cell, AHEAD);
    rig.clock.sleeps_until(DUE);
    rig.builds_after(DUE - SECOND, Some(7), Ok(Refreshed::New(8)));
    rig.clock.sleeps_until(DUE + DUE);
}

#[test]
fn a_stale_value_that_is_there_already_is_replaced_at_once() {
    let clock = Bed::default();
    let cell = Arc::new(Cell::with_clock(Policy::ttl(TTL), clock.clone()));
    cell.set(7);
    clock.manual.advance(TTL + TICK);
    let rig = rig_of(clock, cell, AHEAD);
    rig.builds.begins(Some(7));
    rig.serves(7);
    rig.builds.ends(Ok(Refreshed::New(8)));
    rig.clock.sleeps_until(TTL + TICK + DUE);
}

/// A source may say that its answer is not to be kept (`max-age=0`). It is not asked in a loop.
#[test]
fn a_value_without_any_time_to_live_is_not_rebuilt_in_a_loop() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.builds_after(DUE, Some(1), Ok(Refreshed::NewFor(2, Duration::ZERO)));
    rig.builds_after(SECOND / 10, Some(2), Ok(Refreshed::NewFor(3, TICK)));
    rig.builds_after(SECOND / 10, Some(3), Ok(Refreshed::NewFor(4, SECOND)));
    rig.begins_after(SECOND / 2, Some(4));
}

// What readers observe.

/// Counts how often one thread asks.
#[derive(Clone)]
struct Watched {
    bed: Bed,
    thread: ThreadId,
    asked: Arc<AtomicU64>,
}

impl Clock for Watched {
    fn now(&self) -> Tick {
        if thread::current().id() == self.thread {
            self.asked.fetch_add(1, Ordering::SeqCst);
        }
        self.bed.now()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        self.bed.park_until(deadline, now);
    }
}

#[test]
fn while_it_is_attached_reads_consult_no_clock_if_staleness_is_unbounded() {
    let asked = Arc::new(AtomicU64::new(0));
    let clock = Watched { bed: Bed::default(), thread: thread::current().id(), asked: Arc::clone(&asked) };
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), clock.clone()));
    let asked = || asked.swap(0, Ordering::SeqCst);
    let (builds, build) = Builds::new();
    let refresher = Refresher::spawn(&cell, AHEAD, build).unwrap();
    builds.begins(None);
    builds.ends(Ok(Refreshed::New(1)));
    let naps = || clock.bed.sleeps_until(DUE);
    naps();
    asked();
    // Fresh.
    reads(&cell, 1);
    assert_eq!(asked(), 0);
    // Fresh and stale, while it builds.
    clock.bed.manual.advance(DUE);
    builds.begins(Some(1));
    reads(&cell, 1);
    clock.bed.manual.advance(TTL);
    reads(&cell, 1);
    assert_eq!(asked(), 0);
    // Stale, in the pause after a failure.
    builds.ends(Err("down"));
    clock.bed.sleeps_until(DUE + TTL + SECOND / 10);
    reads(&cell, 1);
    assert_eq!(asked(), 0);
    // Stale, in the pause after a failure, and then declared stale.
    cell.invalidate();
    asked();
    reads(&cell, 1);
    assert_eq!(asked(), 0);
    // Without a refresher they do, and build when the pause is over.
    drop((builds, refresher));
    clock.bed.manual.advance(SECOND / 10);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
    reads(&cell, 2);
    assert!(asked() > 0);
}

#[test]
fn reads_consult_no_clock_from_the_moment_at_which_it_is_attached() {
    let asked = Arc::new(AtomicU64::new(0));
    let clock = Watched { bed: Bed::default(), thread: thread::current().id(), asked: Arc::clone(&asked) };
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), clock));
    cell.set(1);
    let (builds, build) = Builds::new();
    let refresher = Refresher::spawn(&cell, AHEAD, build).unwrap();
    asked.store(0, Ordering::SeqCst);
    reads(&cell, 1);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    drop(refresher);
    reads(&cell, 1);
    assert!(asked.load(Ordering::SeqCst) > 0);
    builds.none();
}

#[test]
fn readers_never_build_while_it_is_attached() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    // Its build is late, and fails in the end: the lease is free, and no reader takes it.
    rig.advance(TTL);
    assert_eq!(rig.cell.freshness(), Freshness::Stale);
    rig.serves(1);
    rig.builds.ends(Err("down"));
    rig.clock.sleeps_until(rig.clock.time() + SECOND / 10);
    assert!(!rig.cell.is_refreshing());
    rig.serves(1);
    let request = rig.cell.request_owned().spawn_with(|_| unreachable!("readers spawn nothing"));
    assert_eq!(*request.get(unbuilt), 1);
    // Also through a handle that has cached the value.
    let mut reader = rig.cell.reader();
    assert_eq!(**reader.get_or_refresh(unbuilt), 1);
    rig.cell.invalidate();
    rig.serves(1);
    assert_eq!(**reader.get_or_refresh(unbuilt), 1);
    // When it is gone they do again.
    drop((rig.builds, rig.refresher));
    rig.clock.manual.advance(SECOND / 10);
    assert_eq!(**reader.get_or_refresh(|| 2), 2);
    assert_eq!(rig.cell.stats().builds, 3);
}

/// Callers that ask for more than what may be served build as ever, and the refresher takes note of it.
#[test]
fn readers_that_want_a_fresh_value_build_if_it_does_not() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.advance(TTL);
    rig.builds.ends(Err("down"));
    let pause_end = rig.clock.time() + SECOND / 10;
    rig.clock.sleeps_until(pause_end);
    assert_eq!(*rig.cell.request().max_stale(Duration::ZERO).get(|| 2), 2);
    rig.clock.sleeps_until(rig.clock.time() + DUE);
    assert_eq!(*rig.cell.request().no_cache().get(|| 3), 3);
    rig.clock.sleeps_until(rig.clock.time() + DUE);
    rig.builds_after(DUE, Some(3), Ok(Refreshed::New(4)));
}

#[test]
fn a_reader_without_a_value_waits_for_its_build() {
    let rig = rig();
    rig.builds.begins(None);
    let reader = {
        let cell = Arc::clone(&rig.cell);
        thread::spawn(move || *cell.get_or_refresh(unbuilt))
    };
    eventually("it waits", || rig.cell.stats().waits == 1);
    rig.builds.ends(Ok(Refreshed::New(1)));
    assert_eq!(reader.join().unwrap(), 1);
}

#[test]
fn g7_a_reader_without_a_value_shares_its_error() {
    let rig = rig();
    rig.builds.begins(None);
    let reader = {
        let cell = Arc::clone(&rig.cell);
        thread::spawn(move || cell.try_get_or_refresh(untried))
    };
    eventually("it waits", || rig.cell.stats().waits == 1);
    rig.builds.ends(Err("down"));
    let Err(RefreshError::Build(shared)) = reader.join().unwrap() else { panic!("it should have failed") };
    assert!(shared.ptr_eq(&rig.error(1)));
    // In the pause others get it too; a reader that can return no error builds.
    let later = rig.cell.try_get_or_refresh(untried).unwrap_err();
    assert!(later.build_error().unwrap().ptr_eq(&shared));
    assert_eq!(*rig.cell.get_or_refresh(|| 5), 5);
    rig.clock.sleeps_until(DUE);
}

#[test]
fn when_staleness_is_bounded_a_reader_takes_over_after_the_bound() {
    let rig = Rig::asleep(Policy::ttl(TTL).stale_while_refresh(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.advance(2 * TTL - DUE);
    rig.builds.ends(Err("down"));
    let pause_end = 2 * TTL + SECOND / 10;
    rig.clock.sleeps_until(pause_end);
    rig.serves(1);
    rig.advance(TICK);
    assert_eq!(rig.cell.freshness(), Freshness::Expired);
    assert!(rig.cell.get().is_none());
    assert_eq!(*rig.cell.get_or_refresh(|| 2), 2);
    assert_eq!(rig.cell.stats().builds, 3);
    // The refresher goes on from there.
    rig.clock.sleeps_until(2 * TTL + TICK + DUE);
    rig.builds_after(DUE, Some(2), Ok(Refreshed::New(3)));
}

#[test]
fn when_staleness_is_bounded_a_reader_waits_for_its_build_after_the_bound() {
    let rig = Rig::asleep(Policy::ttl(TTL).stale_while_refresh(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.advance(2 * TTL + TICK - DUE);
    let reader = {
        let cell = Arc::clone(&rig.cell);
        thread::spawn(move || *cell.get_or_refresh(unbuilt))
    };
    eventually("it waits", || rig.cell.stats().waits == 1);
    rig.builds.ends(Ok(Refreshed::New(2)));
    assert_eq!(reader.join().unwrap(), 2);
}

#[test]
fn when_staleness_is_bounded_the_policys_pause_shows_its_error_after_the_bound() {
    let rig = Rig::asleep(Policy::ttl(TTL).stale_while_refresh(TTL).retry_backoff(5 * TTL, 5 * TTL));
    rig.builds_after(DUE, Some(1), Err("down"));
    rig.clock.sleeps_until(DUE + 5 * TTL);
    rig.advance(2 * TTL + TICK - DUE);
    let result = rig.cell.try_get_or_refresh(untried);
    let Err(RefreshError::Build(shared)) = result else { panic!("there is nothing to serve") };
    assert!(shared.ptr_eq(&rig.error(1)));
}

// What builds are given, and what they say.

#[test]
fn the_build_is_given_the_previous_value() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    let previous = rig.builds.previous().unwrap();
    assert!(Arc::ptr_eq(&previous, &rig.cell.get().unwrap()));
    rig.builds.ends(Err("down"));
    // Again after a failure, but not after it has been cleared.
    rig.begins_after(SECOND / 10, Some(1));
    rig.cell.clear();
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(3)));
    rig.clock.sleeps_until(rig.clock.time() + DUE);
    rig.serves(3);
}

#[test]
fn an_expired_value_is_still_shown_to_the_build() {
    let rig = Rig::asleep(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.advance(10 * TTL);
    rig.builds.ends(Err("down"));
    rig.begins_after(SECOND / 10, Some(1));
    assert!(rig.cell.get().is_none());
    rig.builds.ends(Ok(Refreshed::NotModified));
    rig.clock.sleeps_until(rig.clock.time() + DUE);
    rig.serves(1);
}

#[test]
fn not_modified_renews_the_previous_value() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    let value = rig.cell.get().unwrap();
    for generation in 2..=4 {
        rig.builds_after(DUE, Some(1), Ok(Refreshed::NotModified));
        rig.clock.sleeps_until(rig.clock.time() + DUE);
        assert!(Arc::ptr_eq(&value, &rig.cell.get().unwrap()));
        assert_eq!((rig.cell.generation(), rig.cell.freshness()), (generation, Freshness::Fresh));
    }
    rig.no_error();
}

#[test]
fn not_modified_without_a_previous_value_is_a_failure() {
    let rig = rig();
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::NotModified));
    rig.fails(1, "the build returned NotModified, but there is no previous value");
    assert_eq!((rig.cell.stats().failed, rig.cell.generation()), (1, 0));
    rig.begins_after(SECOND / 10, None);
    rig.builds.ends(Ok(Refreshed::New(1)));
    rig.clock.sleeps_until(SECOND / 10 + DUE);
    rig.no_error();
}

#[test]
fn a_plain_value_is_a_new_one() {
    static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires());
    let build = |previous: Option<Arc<u32>>| previous.map_or(1, |previous| *previous + 1);
    let refresher = Refresher::spawn(&CELL, SECOND, build).unwrap();
    eventually("the first build", || CELL.get().as_deref() == Some(&1));
    CELL.invalidate();
    eventually("the second build", || CELL.get().as_deref() == Some(&2));
    drop(refresher);
    assert_eq!(CELL.stats().builds, 2);
}

// Failures.

#[test]
fn the_last_error_and_the_number_of_failures_are_on_view() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.no_error();
    rig.builds_after(DUE, Some(1), Err("first"));
    rig.fails(1, "first");
    rig.begins_after(SECOND / 10, Some(1));
    // The former one, while the next build runs.
    rig.fails(1, "first");
    rig.builds.ends(Err("second"));
    rig.fails(2, "second");
    assert!(format!("{:?}", rig.refresher).contains("consecutive_failures: 2"));
    rig.begins_after(SECOND / 5, Some(1));
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.no_error();
    assert_eq!((rig.cell.stats().failed, rig.cell.stats().builds), (2, 4));
}

#[test]
fn an_error_is_whatever_converts_into_a_boxed_error() {
    fn fails<E: Into<dogpile::BoxError>>(error: impl Fn() -> E + Send + 'static) -> SharedError {
        let cell = Arc::new(DogpileCell::<u32>::new(TTL));
        let refresher = Refresher::spawn(&cell, SECOND, move |_| Err::<u32, E>(error())).unwrap();
        eventually("it fails", || refresher.last_error().is_some());
        let (own, of_the_cell) = (refresher.last_error().unwrap(), cell.last_error().unwrap());
        assert!(own.ptr_eq(&of_the_cell));
        own
    }
    assert_eq!(fails(|| "text").to_string(), "text");
    assert_eq!(fails(|| String::from("owned")).to_string(), "owned");
    assert_eq!(fails(|| dogpile::BoxError::from("boxed")).to_string(), "boxed");
    let error = fails(|| std::io::Error::from(ErrorKind::NotFound));
    assert_eq!(error.downcast_ref::<std::io::Error>().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn without_a_pause_in_the_policy_each_failure_is_followed_by_the_least_interval() {
    let rig = Rig::asleep(plain(Policy::ttl(TTL)));
    rig.builds_after(DUE, Some(1), Err("down"));
    for _ in 0..4 {
        rig.builds_after(SECOND / 10, Some(1), Err("down"));
    }
    rig.begins_after(SECOND / 10, Some(1));
    rig.builds.ends_with(panicking("no"));
    rig.builds_after(SECOND / 10, Some(1), Ok(Refreshed::New(2)));
    rig.begins_after(DUE, Some(2));
}

#[test]
fn by_default_pauses_double_from_100_ms_to_10_s() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.builds_after(DUE, Some(1), Err("down"));
    for pause in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
        rig.begins_after(Duration::from_millis(pause), Some(1));
        rig.builds.ends(Err("down"));
    }
    rig.begins_after(10 * SECOND, Some(1));
    rig.serves(1);
    // A success ends the row.
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.begins_after(DUE, Some(2));
    rig.builds.ends(Err("down"));
    rig.begins_after(SECOND / 10, Some(2));
    rig.fails(1, "down");
}

#[test]
fn the_policys_pauses_count() {
    let rig = Rig::asleep(Policy::ttl(TTL).retry_backoff(SECOND, 4 * SECOND));
    rig.builds_after(DUE, Some(1), Err("down"));
    for pause in [1, 2, 4, 4] {
        rig.begins_after(pause * SECOND, Some(1));
        rig.builds.ends(Err("down"));
    }
    // A panic is a failure like any other.
    rig.begins_after(4 * SECOND, Some(1));
    rig.builds.ends_with(panicking("no"));
    rig.begins_after(4 * SECOND, Some(1));
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.begins_after(DUE, Some(2));
    rig.builds.ends(Err("down"));
    rig.begins_after(SECOND, Some(2));
}

#[test]
fn no_pause_is_shorter_than_the_least_interval() {
    const FIRST: Duration = Duration::from_millis(1);
    let rig = Rig::asleep(Policy::ttl(TTL).retry_backoff(FIRST, 200 * FIRST));
    rig.builds_after(DUE, Some(1), Err("down"));
    for doublings in 0..7 {
        rig.holds_back(2_u32.pow(doublings) * FIRST, SECOND / 10, Some(1));
        rig.builds.ends(Err("down"));
    }
    rig.builds_after(128 * FIRST, Some(1), Err("down"));
    rig.begins_after(200 * FIRST, Some(1));
}

#[test]
fn the_policys_pauses_are_jittered() {
    let rig = rig_with(Policy::never_expires().retry_backoff(SECOND, SECOND).jitter(100), SECOND);
    rig.builds.begins(None);
    rig.builds.ends(Err("down"));
    let mut pauses = Vec::new();
    for failures in 1..8 {
        rig.fails(failures, "down");
        let end = rig.clock.nap_end();
        let pause = end - rig.clock.time();
        assert!((SECOND..=2 * SECOND).contains(&pause), "{pause:?}");
        pauses.push(pause);
        rig.advance(pause);
        rig.builds.begins(None);
        rig.builds.ends(Err("down"));
    }
    assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{pauses:?}");
}

#[test]
fn the_pause_after_the_failure_of_another_caller_counts() {
    let clock = Bed::default();
    let policy = Policy::ttl(TTL).retry_backoff(SECOND, SECOND);
    let cell = Arc::new(Cell::with_clock(policy, clock.clone()));
    let lease = owned_lease(&cell);
    let rig = rig_of(clock, cell, AHEAD);
    lease.fail("elsewhere");
    rig.begins_after(SECOND, None);
    assert_eq!(rig.refresher.consecutive_failures(), 0);
}

#[test]
fn a_panic_is_contained_and_reported() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.builds.ends_with(panicking("a literal"));
    rig.fails(1, "the build panicked: a literal");
    rig.begins_after(SECOND / 10, Some(1));
    rig.builds.ends_with(panicking(format!("formatted {}", 7)));
    rig.fails(2, "the build panicked: formatted 7");
    rig.begins_after(SECOND / 5, Some(1));
    rig.builds.ends_with(panicking(7_u8));
    rig.fails(3, "the build panicked");
    rig.serves(1);
    assert_eq!((rig.cell.stats().panicked, rig.cell.stats().failed), (3, 0));
    // The same thread goes on.
    rig.begins_after(2 * SECOND / 5, Some(1));
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.clock.sleeps_until(rig.clock.time() + DUE);
    rig.no_error();
}

#[test]
fn a_panic_before_there_is_a_value_is_contained() {
    let rig = rig();
    rig.builds.begins(None);
    rig.builds.ends_with(panicking("no"));
    rig.begins_after(SECOND / 10, None);
    rig.builds.ends(Ok(Refreshed::New(1)));
    rig.clock.sleeps_until(SECOND / 10 + DUE);
}

#[test]
fn what_a_build_panics_with_may_panic_in_turn() {
    struct Nasty;
    impl Drop for Nasty {
        fn drop(&mut self) {
            resume_unwind(Box::new("again"));
        }
    }
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.builds.ends_with(panicking(Nasty));
    rig.fails(1, "the build panicked");
    rig.begins_after(SECOND / 10, Some(1));
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.clock.sleeps_until(rig.clock.time() + DUE);
}

#[test]
fn a_replaced_value_may_panic_when_it_is_dropped() {
    struct Nasty(bool);
    impl Drop for Nasty {
        fn drop(&mut self) {
            if self.0 && !thread::panicking() {
                resume_unwind(Box::new("the value"));
            }
        }
    }
    let clock = Bed::default();
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), clock.clone()));
    let mut nasty = true;
    let refresher = Refresher::spawn(&cell, AHEAD, move |_| Nasty(std::mem::take(&mut nasty))).unwrap();
    clock.sleeps_until(DUE);
    clock.manual.advance(DUE);
    // It has been published, and the thread lives.
    clock.sleeps_until(DUE + DUE);
    assert_eq!((cell.generation(), cell.is_refreshing()), (2, false));
    clock.manual.advance(DUE);
    clock.sleeps_until(3 * DUE);
    assert_eq!(cell.generation(), 3);
    drop(refresher);
}

#[test]
fn g10_a_build_that_waits_for_itself_fails() {
    let cell = Arc::new(DogpileCell::<u32>::new(TTL));
    let inner = Arc::downgrade(&cell);
    let refresher = Refresher::spawn(&cell, SECOND, move |_| {
        let cell = inner.upgrade().expect("the build holds it");
        cell.try_get_or_refresh(untried).map(|value| *value)
    })
    .unwrap();
    eventually("it fails", || refresher.last_error().is_some());
    let error = refresher.last_error().unwrap();
    assert!(matches!(error.downcast_ref(), Some(RefreshError::Reentrant)), "{error}");
    drop(refresher);
}

// What wakes it.

#[test]
fn an_invalidate_wakes_it_at_once() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(SECOND);
    rig.cell.invalidate();
    rig.builds.begins(Some(1));
    rig.serves(1);
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.clock.sleeps_until(SECOND + DUE);
    assert_eq!((rig.cell.freshness(), rig.cell.stats().builds), (Freshness::Fresh, 2));
}

#[test]
fn a_clear_wakes_it_at_once() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(SECOND);
    rig.cell.clear();
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.clock.sleeps_until(SECOND + DUE);
    rig.serves(2);
}

#[test]
fn g4_an_invalidate_during_its_build_asks_for_another() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.cell.invalidate();
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.builds.begins(Some(2));
    rig.serves(2);
    assert_eq!(rig.cell.freshness(), Freshness::Stale);
    rig.builds.ends(Ok(Refreshed::New(3)));
    rig.clock.sleeps_until(DUE + DUE);
    rig.serves(3);
    assert_eq!((rig.cell.stats().builds, rig.cell.stats().fenced), (3, 1));
}

#[test]
fn g4_a_clear_during_its_build_asks_for_another() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.cell.clear();
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.builds.begins(None);
    assert_eq!(rig.cell.generation(), 1);
    rig.builds.ends(Ok(Refreshed::New(3)));
    rig.clock.sleeps_until(DUE + DUE);
    rig.serves(3);
}

#[test]
fn g1_a_build_that_can_no_longer_be_published_makes_no_reader_wait() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.cell.clear();
    assert!(!rig.cell.is_refreshing());
    assert_eq!(*rig.cell.get_or_refresh(|| 5), 5);
    // Its failure is its own: it begins no pause of the cell's.
    rig.builds.ends(Err("late"));
    rig.fails(1, "late");
    assert!(rig.cell.last_error().is_none());
    rig.cell.clear();
    assert_eq!(*rig.cell.try_get_or_refresh(|| Ok::<_, &str>(6)).unwrap(), 6);
    rig.clock.sleeps_until(DUE + DUE);
    rig.builds_after(DUE, Some(6), Ok(Refreshed::New(7)));
}

#[test]
fn g4_a_set_during_its_build_wins() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.advance(SECOND);
    rig.cell.set(7);
    rig.advance(SECOND);
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.clock.sleeps_until(DUE + SECOND + DUE);
    rig.serves(7);
    rig.no_error();
    rig.builds_after(DUE - SECOND, Some(7), Ok(Refreshed::New(8)));
}

#[test]
fn a_set_moves_the_time_at_which_it_builds() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(SECOND);
    rig.cell.set(7);
    rig.clock.sleeps_until(SECOND + DUE);
    rig.builds_after(DUE, Some(7), Ok(Refreshed::New(8)));
    // Earlier too: after a value for a long time comes one for the policy's.
    rig.clock.sleeps_until(SECOND + DUE + DUE);
    rig.cell.invalidate();
    rig.builds.begins(Some(8));
    rig.builds.ends(Ok(Refreshed::NewFor(9, 10 * TTL)));
    let now = rig.clock.time();
    rig.clock.sleeps_until(now + 10 * TTL + TICK - AHEAD);
    rig.cell.set(10);
    rig.clock.sleeps_until(now + DUE);
}

#[test]
fn an_invalidate_does_not_end_a_pause() {
    for policy in [Policy::ttl(TTL), Policy::ttl(TTL).retry_backoff(SECOND / 10, SECOND)] {
        let rig = Rig::asleep(policy);
        rig.builds_after(DUE, Some(1), Err("down"));
        rig.clock.sleeps_until(DUE + SECOND / 10);
        let naps = rig.clock.count.load(Ordering::SeqCst);
        rig.cell.invalidate();
        eventually("it looks", || rig.clock.count.load(Ordering::SeqCst) > naps);
        rig.builds.none();
        rig.begins_after(SECOND / 10, Some(1));
    }
}

#[test]
fn a_set_ends_a_pause() {
    for policy in [Policy::ttl(TTL), Policy::ttl(TTL).retry_backoff(SECOND / 10, SECOND)] {
        let rig = Rig::asleep(policy);
        rig.builds_after(DUE, Some(1), Err("down"));
        rig.clock.sleeps_until(DUE + SECOND / 10);
        rig.cell.set(7);
        rig.clock.sleeps_until(DUE + DUE);
        rig.builds_after(DUE, Some(7), Ok(Refreshed::New(8)));
    }
}

// Other builders.

#[track_caller]
fn owned_lease(cell: &Arc<Cell>) -> Lease<'static, u32, Bed> {
    cell.lookup_owned().elected()
}

#[test]
fn the_build_of_another_caller_is_waited_for() {
    const LIMIT: Duration = Duration::from_secs(100);
    let rig = Rig::asleep(Policy::ttl(TTL).lease_timeout(LIMIT));
    let (show, begun) = channel();
    let (end, ended) = channel();
    let other = {
        let cell = Arc::clone(&rig.cell);
        thread::spawn(move || {
            *cell.request().no_cache().get(|| {
                show.send(()).unwrap();
                ended.recv().unwrap()
            })
        })
    };
    begun.recv_timeout(PATIENCE).unwrap();
    // It is due, and past its end.
    rig.advance(DUE);
    rig.clock.sleeps_until(LIMIT + TICK);
    rig.advance(TTL);
    rig.clock.sleeps_until(LIMIT + TICK);
    rig.builds.none();
    rig.serves(1);
    end.send(2).unwrap();
    assert_eq!(other.join().unwrap(), 2);
    rig.clock.sleeps_until(DUE + TTL + DUE);
    assert_eq!((rig.cell.stats().builds, rig.cell.stats().superseded), (2, 0));
}

#[test]
fn a_lease_that_is_given_back_passes_to_it() {
    let clock = Bed::default();
    let cell = Arc::new(Cell::with_clock(Policy::ttl(TTL), clock.clone()));
    let lease = owned_lease(&cell);
    let rig = rig_of(clock, cell, AHEAD);
    drop(lease);
    rig.builds.begins(None);
    assert_eq!(rig.cell.stats().builds, 2);
}

#[test]
fn it_supersedes_a_build_that_never_ends() {
    let clock = Bed::default();
    let cell = Arc::new(Cell::with_clock(Policy::ttl(TTL).lease_timeout(SECOND), clock.clone()));
    std::mem::forget(cell.lookup().elected());
    let rig = rig_of(clock, cell, AHEAD);
    rig.begins_after(SECOND + TICK, None);
    rig.builds.ends(Ok(Refreshed::New(1)));
    rig.clock.sleeps_until(SECOND + TICK + DUE);
    assert_eq!(rig.cell.stats().superseded, 1);
}

#[test]
fn g4_a_build_that_never_ends_is_superseded_by_a_caller_that_wants_a_fresh_value() {
    let rig = Rig::asleep(Policy::ttl(TTL).lease_timeout(SECOND));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.advance(TTL);
    rig.serves(1);
    assert_eq!(*rig.cell.request().max_stale(Duration::ZERO).get(|| 2), 2);
    assert_eq!(rig.cell.stats().superseded, 1);
    // It ends after all: fenced off.
    rig.advance(SECOND);
    rig.builds.ends(Ok(Refreshed::New(3)));
    rig.clock.sleeps_until(DUE + TTL + DUE);
    rig.serves(2);
    assert_eq!(rig.cell.generation(), 2);
    rig.no_error();
    rig.builds_after(DUE - SECOND, Some(2), Ok(Refreshed::New(4)));
}

#[test]
fn g4_a_build_that_never_ends_is_superseded_by_any_caller_after_the_bound() {
    let rig = Rig::asleep(Policy::ttl(TTL).stale_while_refresh(TTL).lease_timeout(SECOND));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    rig.advance(2 * TTL - DUE);
    rig.serves(1);
    rig.advance(TICK);
    assert_eq!(*rig.cell.get_or_refresh(|| 2), 2);
    // It fails after all, which no caller of the cell sees.
    rig.builds.ends(Err("down"));
    rig.fails(1, "down");
    rig.clock.sleeps_until(2 * TTL + TICK + DUE);
    rig.serves(2);
}

/// A second refresher for the cell of `rig`, whose build is the same.
fn two_of_one_build() -> (Rig, Refresher) {
    let clock = Bed::default();
    let cell = Arc::new(Cell::with_clock(Policy::ttl(TTL).lease_timeout(SECOND), clock.clone()));
    let (builds, build) = Builds::new();
    let shared = Arc::new(Mutex::new(build));
    let spawn = || {
        let shared = Arc::clone(&shared);
        let build = move |previous: Option<Arc<u32>>| match shared.try_lock() {
            Ok(mut build) => build(previous),
            Err(_) => Err("two build at a time"),
        };
        Refresher::spawn(&cell, AHEAD, build).unwrap()
    };
    let (refresher, second) = (spawn(), spawn());
    builds.begins(None);
    builds.ends(Ok(Refreshed::New(1)));
    clock.sleep_until(DUE, 2);
    (Rig { clock, cell, builds, refresher }, second)
}

#[test]
fn g1_two_on_one_cell_build_once() {
    let (rig, second) = two_of_one_build();
    for value in 1..=20 {
        rig.advance(DUE);
        rig.builds.begins(Some(value));
        // The other one waits, at most until it may take its place.
        rig.clock.sleeps_until(rig.clock.time() + SECOND + TICK);
        rig.builds.ends(Ok(Refreshed::New(value + 1)));
        rig.clock.sleep_until(rig.clock.time() + DUE, 2);
    }
    assert_eq!((rig.cell.stats().builds, rig.cell.generation()), (21, 21));
    assert_eq!(rig.refresher.consecutive_failures() + second.consecutive_failures(), 0);
    // One is enough, and changes still wake it.
    drop(second);
    rig.builds_after(DUE, Some(21), Ok(Refreshed::New(20)));
    rig.clock.sleeps_until(rig.clock.time() + DUE);
    rig.cell.invalidate();
    rig.builds.begins(Some(20));
    rig.builds.ends(Ok(Refreshed::New(21)));
    rig.builds_after(DUE, Some(21), Err("down"));
    rig.clock.sleeps_until(rig.clock.time() + SECOND / 10);
    rig.advance(SECOND / 10 - TICK);
    rig.serves(21);
    // Without any, readers build.
    drop((rig.builds, rig.refresher));
    rig.clock.manual.advance(TTL);
    assert_eq!(*rig.cell.get_or_refresh(|| 22), 22);
}

#[test]
fn of_two_on_one_cell_one_takes_the_place_of_the_other_that_hangs() {
    let clock = Bed::default();
    let cell = Arc::new(Cell::with_clock(Policy::ttl(TTL).lease_timeout(SECOND), clock.clone()));
    let first = rig_of(clock.clone(), Arc::clone(&cell), AHEAD);
    first.builds.begins(None);
    let second = rig_of(clock, cell, AHEAD);
    second.begins_after(SECOND + TICK, None);
    second.builds.ends(Ok(Refreshed::New(2)));
    second.clock.sleeps_until(SECOND + TICK + DUE);
    // The first one ends after all.
    first.builds.ends(Ok(Refreshed::New(1)));
    first.clock.sleep_until(SECOND + TICK + DUE, 2);
    first.serves(2);
    assert_eq!((first.cell.generation(), first.cell.stats().superseded), (1, 1));
}

// Bad input.

#[test]
fn ahead_must_be_shorter_than_the_ttl() {
    let cell = Arc::new(Cell::with_clock(Policy::ttl(TTL), Bed::default()));
    let zero = Arc::new(Cell::with_clock(Policy::ttl(Duration::ZERO), Bed::default()));
    let half = Arc::new(Cell::with_clock(Policy::ttl(Duration::MAX - TTL), Bed::default()));
    for (cell, ahead) in
        [(&cell, TTL), (&cell, TTL + TICK), (&cell, Duration::MAX), (&zero, Duration::ZERO), (&zero, TICK)]
    {
        let (builds, build) = Builds::new();
        let error = Refresher::spawn(cell, ahead, build).expect_err("it should have been refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(
            error.to_string(),
            "Refresher: `ahead` must be shorter than the policy's ttl, or every value would be due as soon as it is \
             published"
        );
        // Nothing has been begun, and readers build as ever.
        assert!(builds.are_over());
        cell.set(1);
        cell.invalidate();
        assert_eq!(*cell.get_or_refresh(|| 2), 2);
    }
    // More than 584 years are for ever.
    drop(Refresher::spawn(&half, Duration::MAX, |_| 1).unwrap());
}

// How it ends.

#[test]
fn dropping_it_stops_it_in_a_sleep() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    drop(rig.refresher);
    // Joined: its build is gone with the thread.
    assert!(rig.builds.are_over());
    rig.clock.manual.advance(TTL + TICK);
    assert_eq!(*rig.cell.get_or_refresh(|| 2), 2);
}

#[test]
fn dropping_it_stops_it_in_a_sleep_without_an_end() {
    let rig = rig_with(Policy::never_expires(), SECOND);
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(1)));
    eventually("it is published", || rig.cell.generation() == 1);
    drop(rig.refresher);
    assert!(rig.builds.are_over());
    rig.cell.invalidate();
    assert_eq!(*rig.cell.get_or_refresh(|| 2), 2);
}

#[test]
fn dropping_it_stops_it_in_a_pause() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.builds_after(DUE, Some(1), Err("down"));
    rig.clock.sleeps_until(DUE + SECOND / 10);
    drop(rig.refresher);
    assert!(rig.builds.are_over());
    rig.clock.manual.advance(TTL);
    assert_eq!(*rig.cell.get_or_refresh(|| 2), 2);
}

/// On a clock that it sleeps on for real, with days to go.
#[test]
fn dropping_it_stops_it_in_a_sleep_on_the_systems_clock() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let cell = Arc::new(DogpileCell::<u32>::new(DAY));
    let (builds, build) = Builds::new();
    let refresher = Refresher::spawn(&cell, SECOND, build).unwrap();
    builds.begins(None);
    builds.ends(Ok(Refreshed::New(1)));
    eventually("it is published", || cell.generation() == 1);
    let start = Instant::now();
    drop(refresher);
    assert!(start.elapsed() < PATIENCE);
    assert!(builds.are_over());
}

#[test]
fn dropping_it_waits_for_its_build_which_is_published() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.clock.manual.advance(DUE);
    rig.builds.begins(Some(1));
    let (dropping, about_to_drop) = channel();
    rig.builds.ends_with(move || {
        about_to_drop.recv().unwrap();
        // A drop that does not wait has time to be seen.
        for _ in 0..if cfg!(miri) { 10 } else { 1000 } {
            thread::yield_now();
        }
        Ok(Refreshed::New(2))
    });
    dropping.send(()).unwrap();
    drop(rig.refresher);
    assert!(rig.builds.are_over());
    assert_eq!((rig.cell.generation(), rig.cell.is_refreshing()), (2, false));
    serves(&rig.cell, 2);
    rig.clock.manual.advance(TTL + TICK);
    assert_eq!(*rig.cell.get_or_refresh(|| 3), 3);
}

#[test]
fn dropping_it_waits_for_a_build_that_fails_or_panics() {
    let ends: [Box<dyn FnOnce() -> Ended + Send>; 2] = [Box::new(|| Err("down")), Box::new(panicking("no"))];
    for end in ends {
        let rig = Rig::asleep(Policy::ttl(TTL));
        rig.advance(DUE);
        rig.builds.begins(Some(1));
        rig.builds.ends_with(end);
        drop(rig.refresher);
        assert!(rig.builds.are_over());
        assert!(!rig.cell.is_refreshing());
        assert_eq!(rig.cell.stats().failed + rig.cell.stats().panicked, 1);
    }
}

#[test]
fn dropped_from_inside_its_own_build_it_stops_when_that_has_ended() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    let Rig { refresher, builds, cell, clock } = rig;
    builds.ends_with(move || {
        drop(refresher);
        Ok(Refreshed::New(2))
    });
    builds.end();
    // Published, and no refresher is attached any more.
    assert_eq!((cell.generation(), cell.is_refreshing()), (2, false));
    serves(&cell, 2);
    clock.manual.advance(TTL + TICK);
    eventually("readers build again", || *cell.get_or_refresh(|| 3) == 3);
}

#[test]
fn dropped_by_a_build_that_panics_it_stops_too() {
    let rig = rig();
    rig.builds.begins(None);
    let Rig { refresher, builds, cell, .. } = rig;
    builds.ends_with(move || {
        drop(refresher);
        resume_unwind(Box::new("no"))
    });
    builds.end();
    assert_eq!(*cell.get_or_refresh(|| 3), 3);
    cell.invalidate();
    eventually("readers build again", || *cell.get_or_refresh(|| 4) == 4);
}

#[test]
fn dropping_it_at_once_is_no_race() {
    for _ in 0..50 {
        let cell = Arc::new(DogpileCell::<u32>::new(TTL));
        drop(Refresher::spawn(&cell, SECOND, |_| 1).unwrap());
        assert!(!cell.is_refreshing());
        cell.set(2);
        cell.invalidate();
        assert_eq!(*cell.get_or_refresh(|| 3), 3);
        assert_eq!(Arc::strong_count(&cell), 1);
    }
}

#[test]
fn asleep_it_does_not_hold_the_cell() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    assert_eq!(Arc::strong_count(&rig.cell), 1);
    let value = Arc::downgrade(&rig.cell.get().unwrap());
    drop(rig.cell);
    assert_eq!(value.strong_count(), 0);
    // It has been woken, and ends by itself.
    rig.builds.end();
    assert_eq!(rig.refresher.consecutive_failures(), 0);
}

#[test]
fn when_the_last_user_drops_the_cell_it_ends_from_a_sleep_without_an_end() {
    let rig = rig_with(Policy::never_expires(), SECOND);
    rig.builds.begins(None);
    rig.builds.ends(Ok(Refreshed::New(1)));
    eventually("it is published", || rig.cell.generation() == 1);
    drop(rig.cell);
    rig.builds.end();
}

#[test]
fn when_the_last_user_drops_the_cell_it_ends_from_a_pause() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.builds_after(DUE, Some(1), Err("down"));
    rig.fails(1, "down");
    drop(rig.cell);
    rig.builds.end();
    // The error can still be read.
    assert_eq!(rig.refresher.consecutive_failures(), 1);
    assert_eq!(rig.refresher.last_error().unwrap().to_string(), "down");
}

#[test]
fn when_the_last_user_drops_the_cell_it_ends_after_its_build() {
    let rig = Rig::asleep(Policy::ttl(TTL));
    rig.advance(DUE);
    rig.builds.begins(Some(1));
    let cell = Arc::downgrade(&rig.cell);
    drop(rig.cell);
    // The build goes on, and has a cell to publish to.
    assert_eq!(cell.strong_count(), 1);
    assert!(!rig.builds.are_over());
    rig.builds.ends(Ok(Refreshed::New(2)));
    rig.builds.end();
    assert_eq!(cell.strong_count(), 0);
}

/// It may be kept by the value that it rebuilds.
#[test]
fn it_may_live_in_its_own_cell() {
    struct Value(Mutex<Option<Refresher>>);
    let cell = Arc::new(DogpileCell::<Value>::new(TTL));
    let kept = Arc::new(());
    let ended = Arc::downgrade(&kept);
    let refresher = Refresher::spawn(&cell, SECOND, move |_| {
        assert_eq!(Arc::strong_count(&kept), 1);
        Value(Mutex::new(None))
    })
    .unwrap();
    eventually("the first build", || cell.get().is_some());
    *cell.get().unwrap().0.lock().unwrap() = Some(refresher);
    drop(cell);
    eventually("the refresher ends", || ended.strong_count() == 0);
}

#[test]
fn a_static_cell() {
    static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires());
    let (builds, build) = Builds::new();
    let refresher = Refresher::spawn(&CELL, SECOND, build).unwrap();
    builds.begins(None);
    builds.ends(Ok(Refreshed::New(1)));
    eventually("it is published", || CELL.generation() == 1);
    CELL.invalidate();
    builds.begins(Some(1));
    serves(&CELL, 1);
    builds.ends(Ok(Refreshed::New(2)));
    drop(refresher);
    assert!(builds.are_over());
    serves(&CELL, 2);
    CELL.invalidate();
    assert_eq!(*CELL.get_or_refresh(|| 3), 3);
}

/// Real time: nothing is measured, but it has to come round again and again.
#[test]
fn on_the_systems_clock_it_comes_round() {
    let cell = Arc::new(DogpileCell::<u32>::new(Duration::from_millis(20)));
    let build = |previous: Option<Arc<u32>>| previous.map_or(0, |value| *value) + 1;
    let refresher = Refresher::spawn(&cell, Duration::from_millis(15), build).unwrap();
    eventually("five rounds", || cell.get().is_some_and(|value| *value >= 5));
    drop(refresher);
    assert_eq!(cell.stats().builds, cell.generation());
}

#[test]
fn it_runs_on_a_thread_of_its_own_name() {
    let cell = Arc::new(DogpileCell::<String>::new(TTL));
    let name = |_| thread::current().name().unwrap_or_default().to_owned();
    let refresher = Refresher::spawn(&cell, SECOND, name).unwrap();
    eventually("the first build", || cell.get().is_some());
    assert_eq!(*cell.get().unwrap(), "dogpile-refresher");
    drop(refresher);
}

/// Builds, readers and everything that wakes it, all at once: no two builds at a time, no wake-up lost, an end.
#[test]
fn under_load_it_builds_after_each_invalidate() {
    const ROUNDS: u32 = if cfg!(miri) { 3 } else { 300 };
    let cell = Arc::new(DogpileCell::<u32>::with_policy(Policy::never_expires()));
    let source = Arc::new(AtomicU64::new(0));
    let inside = Arc::new(AtomicBool::new(false));
    let refresher = {
        let (source, inside) = (Arc::clone(&source), Arc::clone(&inside));
        Refresher::spawn(&cell, SECOND, move |_| {
            assert!(!inside.swap(true, Ordering::SeqCst));
            let value = u32::try_from(source.load(Ordering::SeqCst)).unwrap();
            thread::yield_now();
            inside.store(false, Ordering::SeqCst);
            value
        })
        .unwrap()
    };
    eventually("the first build", || cell.get().is_some());
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut seen, start) = (0, Instant::now());
            while seen < ROUNDS {
                assert!(start.elapsed() < PATIENCE, "hangs at {seen}");
                let value = *cell.get_or_refresh(unbuilt);
                assert!(value >= seen);
                seen = value;
                thread::yield_now();
            }
        });
        for round in 1..=ROUNDS {
            source.store(u64::from(round), Ordering::SeqCst);
            cell.invalidate();
            eventually("it builds", || *cell.get_or_refresh(unbuilt) == round);
        }
    });
    assert_eq!(refresher.consecutive_failures(), 0);
    drop(refresher);
    assert_eq!(cell.stats().builds, cell.generation());
}

// Types.

#[test]
fn it_can_be_sent_and_shared() {
    fn both<T: Send + Sync>() {}
    both::<Refresher>();
    both::<Refreshed<u32>>();
}

#[test]
fn what_a_build_has_found_is_plain_data() {
    fn plain<T: Copy + std::fmt::Debug + Eq>(value: T) -> T {
        value
    }
    let new: Refreshed<u32> = 7.into();
    assert_eq!(plain(new), Refreshed::New(7));
    assert_eq!(new, new.clone());
    assert_ne!(new, Refreshed::NewFor(7, SECOND));
    assert_ne!(Refreshed::NewFor(7, SECOND), Refreshed::NewFor(7, TTL));
    assert_eq!(format!("{:?}", Refreshed::<u32>::NotModified), "NotModified");
    let message = panic_message(|| assert_eq!(Refreshed::New(1), Refreshed::New(2)));
    assert!(message.contains("New(1)"), "{message}");
}
