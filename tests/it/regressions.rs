//! Faults that were found by attacking the crate, each by its symptom.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, DogpileCell, Freshness, Lookup, ManualClock, Policy, Tick, Waited};

use crate::support::{Down, Gate, GatedClock, LookupExt, TICK, TTL, cell, cell_with, gate, panic_message};

const SECOND: Duration = Duration::from_secs(1);

/// A value past the window for refreshing, but within the one for errors, and a long retry pause.
const PAUSED: Policy = Policy::ttl(TTL)
    .stale_while_refresh(Duration::ZERO)
    .stale_if_error(Duration::MAX)
    .retry_backoff(Duration::from_secs(100), Duration::from_secs(100))
    .lease_timeout(SECOND);

/// A caller that was delayed holds the last reference to a value that has been cleared meanwhile.
#[test]
fn a_drop_that_panics_during_a_lookup_took_the_lease_for_ever() {
    struct Bomb(u32);
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(self.0 != 1, "the drop of 1 panics");
        }
    }
    let clock = Arc::new(GatedClock::default());
    let cell = DogpileCell::with_clock(Policy::ttl(TTL), Arc::clone(&clock));
    cell.set(Bomb(1));
    clock.manual.advance(TTL + TICK);
    let (stop, keeper) = gate();
    thread::scope(|scope| {
        let late = scope.spawn(|| {
            clock.stop_at(thread::current().id(), stop);
            panic_message(|| cell.lookup())
        });
        keeper.wait_for_arrival();
        drop(cell.clear());
        keeper.open();
        assert_eq!(late.join().unwrap(), "the drop of 1 panics");
    });
    assert!(!cell.is_refreshing());
}

type Shared = Arc<OnceLock<DogpileCell<Looker, Arc<GatedClock>>>>;

struct Looker {
    cell: Shared,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Drop for Looker {
    fn drop(&mut self) {
        let cell = self.cell.get().unwrap();
        self.seen.lock().unwrap().push(format!("{:?}", cell.lookup()));
    }
}

#[test]
fn a_drop_during_a_lookup_found_the_lease_taken_without_a_build() {
    let clock = Arc::new(GatedClock::default());
    let shared = Shared::default();
    let seen = Arc::default();
    let cell = shared.get_or_init(|| DogpileCell::with_clock(Policy::ttl(TTL), Arc::clone(&clock)));
    cell.set(Looker { cell: Arc::clone(&shared), seen: Arc::clone(&seen) });
    clock.manual.advance(TTL + TICK);
    let (stop, keeper) = gate();
    thread::scope(|scope| {
        let late = scope.spawn(|| {
            clock.stop_at(thread::current().id(), stop);
            drop(cell.lookup());
        });
        keeper.wait_for_arrival();
        drop(cell.clear());
        keeper.open();
        late.join().unwrap();
    });
    let seen = seen.lock().unwrap();
    assert!(seen[0].starts_with("Elected"), "{seen:?}");
}

#[derive(Default)]
struct PanickingClock {
    time: ManualClock,
    panics: AtomicBool,
}

impl Clock for PanickingClock {
    fn now(&self) -> Tick {
        assert!(!self.panics.swap(false, Ordering::Relaxed), "the clock panics");
        self.time.now()
    }
}

#[test]
fn a_clock_that_panics_at_the_end_of_a_build_took_the_lease_for_ever() {
    let clock = Arc::new(PanickingClock::default());
    let cell = DogpileCell::with_clock(Policy::ttl(TTL), Arc::clone(&clock));
    panic_message(|| {
        cell.get_or_refresh(|| {
            clock.panics.store(true, Ordering::Relaxed);
            1
        })
    });
    assert!(!cell.is_refreshing(), "publish");

    let lease = cell.lookup().elected();
    clock.panics.store(true, Ordering::Relaxed);
    panic_message(|| lease.fail("no"));
    assert!(!cell.is_refreshing(), "fail");

    let lease = cell.lookup().elected();
    let pending = cell.lookup().pending();
    clock.panics.store(true, Ordering::Relaxed);
    drop(lease);
    assert!(!cell.is_refreshing(), "abandon");
    assert!(matches!(pending.wait(), Waited::Abandoned));
}

#[test]
fn a_superseded_no_cache_request_returned_a_value_from_before_its_call() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(SECOND));
    cell.set(0);
    let mut successor = None;
    let value = cell.request().no_cache().get(|| {
        clock.advance(TTL + SECOND);
        successor = Some(cell.lookup().elected());
        1
    });
    assert_eq!(*value, 1);
    drop(successor);
}

#[test]
fn a_superseded_request_for_a_fresh_value_returned_a_stale_one() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(SECOND));
    cell.set(0);
    clock.advance(TTL + TICK);
    let mut successor = None;
    let value = cell.request().max_stale(Duration::ZERO).get(|| {
        clock.advance(SECOND + TICK);
        successor = Some(cell.lookup().elected());
        1
    });
    assert_eq!(*value, 1);
    drop(successor);
}

#[test]
fn a_reader_went_on_serving_a_value_that_was_fenced_off() {
    let (cell, clock) = cell_with(PAUSED);
    cell.set(0);
    clock.advance(TTL + TICK);
    let mut reader = cell.reader();
    let mut successor = None;
    let own = reader.get_or_refresh(|| {
        clock.advance(SECOND + TICK);
        successor = Some(cell.lookup().elected());
        99
    });
    assert_eq!(**own, 99);
    successor.unwrap().fail("no");
    assert_eq!(cell.get().as_deref(), Some(&0));
    assert_eq!(reader.get().map(|value| **value), Some(0));
}

#[test]
fn a_forced_rebuild_took_away_the_value_that_a_retry_pause_lets_be_served() {
    let (cell, clock) = cell_with(PAUSED);
    cell.set(0);
    clock.advance(TTL + TICK);
    cell.lookup().elected().fail("no");
    assert_eq!(cell.freshness(), Freshness::Stale);
    cell.request().no_cache().get(|| {
        assert_eq!(cell.get().as_deref(), Some(&0));
        assert!(matches!(cell.lookup(), Lookup::Stale(_)));
        assert_eq!(cell.freshness(), Freshness::Stale);
        1
    });
}

#[test]
fn a_look_changed_what_may_be_served_in_a_pause_that_began_while_the_value_was_fresh() {
    let (cell, clock) = cell_with(PAUSED);
    cell.set(0);
    panic_message(|| cell.request().no_cache().get(|| panic!("no")));
    clock.advance(TTL + TICK);
    for _ in 0..2 {
        assert_eq!((cell.get().as_deref(), cell.freshness()), (Some(&0), Freshness::Stale));
        assert_eq!(cell.snapshot().unwrap().freshness, Freshness::Stale);
        assert!(matches!(cell.lookup(), Lookup::Stale(_)));
    }
}

#[test]
fn at_the_last_tick_two_leases_were_granted() {
    let (cell, clock) = cell::<u32>();
    clock.advance(Duration::MAX);
    let lease = cell.lookup().elected();
    assert!(matches!(cell.lookup(), Lookup::Pending(_)));
    lease.publish(1);
    assert_eq!(cell.stats().superseded, 0);
}

#[test]
fn at_the_last_tick_a_value_without_a_deadline_expired_for_some() {
    let (cell, clock) = cell_with(Policy::never_expires());
    cell.set(1);
    clock.advance(Duration::MAX);
    assert_eq!(cell.freshness(), Freshness::Fresh);
    assert_eq!(cell.snapshot().unwrap().freshness, Freshness::Fresh);
    assert!(matches!(cell.lookup(), Lookup::Fresh(_)));
}

#[test]
fn at_the_last_tick_a_timeout_never_ended() {
    let (cell, clock) = cell::<u32>();
    clock.advance(Duration::MAX);
    let lease = cell.lookup().elected();
    assert!(cell.lookup().pending().wait_timeout(Duration::ZERO).is_err());
    assert!(cell.request().wait_at_most(TTL).try_get(|| Ok::<_, Down>(2)).is_err());
    lease.publish(1);
}

#[test]
fn a_look_at_a_wait_did_not_see_that_the_lease_was_overdue() {
    let (cell, clock) = cell_with::<u32>(Policy::ttl(TTL).lease_timeout(SECOND));
    std::mem::forget(cell.lookup().elected());
    let pending = cell.lookup().pending().wait_timeout(Duration::ZERO).unwrap_err();
    clock.advance(SECOND + TICK);
    assert!(matches!(pending.wait_timeout(Duration::ZERO), Ok(Waited::Abandoned)));
}

#[test]
fn an_overdue_lease_ended_the_retry_pause() {
    let policy = Policy::ttl(TTL).retry_backoff(100 * SECOND, 100 * SECOND).lease_timeout(SECOND);
    let (cell, clock) = cell_with::<u32>(policy);
    cell.lookup().elected().fail("no");
    cell.get_or_refresh(|| {
        clock.advance(SECOND + TICK);
        assert!(matches!(cell.lookup(), Lookup::Failed(_)));
        1
    });
}

#[test]
fn a_superseded_caller_was_not_served_what_a_retry_pause_lets_be_served() {
    let (cell, clock) = cell_with(PAUSED);
    cell.set(0);
    clock.advance(TTL + TICK);
    let slow = cell.lookup().elected();
    clock.advance(SECOND + TICK);
    cell.lookup().elected().fail("no");
    assert_eq!(*slow.publish(1), 0);
}

#[test]
fn g3_a_late_waiter_was_handed_an_older_value_than_it_had_seen() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let (first, second) = (cell.lookup().pending(), cell.lookup().pending());
    lease.publish(1);
    cell.set(2);
    assert_eq!(cell.get().as_deref(), Some(&2));
    assert!(matches!(first.wait(), Waited::Published(value) if *value == 2));
    cell.clear();
    assert!(matches!(second.wait(), Waited::Abandoned));
}

#[test]
fn the_time_of_a_build_that_was_fenced_off_was_not_noted() {
    let (cell, clock) = cell();
    cell.get_or_refresh(|| {
        clock.advance(SECOND);
        cell.clear();
        1
    });
    assert_eq!(cell.stats().last_build, Some(SECOND));
}

#[test]
fn a_build_from_before_a_set_that_failed_began_a_pause_for_the_value_that_was_set() {
    let (cell, _clock) = cell_with(Policy::ttl(TTL).retry_backoff(SECOND, SECOND));
    let lease = cell.lookup().elected();
    cell.set(1);
    lease.fail("no");
    cell.invalidate();
    assert!(matches!(cell.lookup(), Lookup::Elected(_)));
}

/// A manual clock at which one thread stops when it asks for the coarse time.
struct CoarselyGated {
    time: ManualClock,
    gate: Mutex<Option<(thread::ThreadId, Gate)>>,
}

impl Clock for CoarselyGated {
    fn now(&self) -> Tick {
        self.time.now()
    }

    fn coarse_now(&self) -> Tick {
        let gate = self.gate.lock().unwrap().take_if(|(thread, _)| *thread == thread::current().id());
        if let Some((_, gate)) = gate {
            gate.pass();
        }
        self.time.now()
    }
}

/// The reader has found the old value servable when it is stopped; before it takes the value, one is published that is
/// expired from its first moment, because an invalidation came during its build.
#[test]
fn a_delayed_reader_was_served_a_value_that_never_was_to_be_served() {
    let clock = Arc::new(CoarselyGated { time: ManualClock::new(), gate: Mutex::new(None) });
    let policy = Policy::ttl(TTL).stale_while_refresh(Duration::ZERO);
    let cell = DogpileCell::with_clock(policy, Arc::clone(&clock));
    cell.set(1);
    let (stop, keeper) = gate();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            *clock.gate.lock().unwrap() = Some((thread::current().id(), stop));
            cell.get().as_deref().copied()
        });
        keeper.wait_for_arrival();
        cell.request().no_cache().get(|| {
            cell.invalidate();
            2
        });
        assert_eq!(cell.freshness(), Freshness::Expired);
        keeper.open();
        assert_eq!(reader.join().unwrap(), None);
    });
}

/// A clock that lets something happen between the look at it and the answer.
#[derive(Default)]
struct SlowClock {
    manual: ManualClock,
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Clock for SlowClock {
    fn now(&self) -> Tick {
        let now = self.manual.now();
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        now
    }
}

/// A caller that was delayed after it had looked at the clock, while a build failed at a later tick.
#[test]
fn a_failure_was_shown_as_if_in_a_retry_pause_where_there_is_none() {
    let clock = Arc::new(SlowClock::default());
    let policy = Policy::never_expires().retry_backoff(Duration::ZERO, Duration::ZERO);
    let cell = Arc::new(DogpileCell::<u32, _>::with_clock(policy, Arc::clone(&clock)));
    let (other, manual) = (Arc::clone(&cell), clock.manual.clone());
    *clock.meanwhile.lock().unwrap() = Some(Box::new(move || {
        let lease = other.lookup().elected();
        manual.advance(TICK);
        lease.fail("no");
    }));
    assert!(matches!(cell.lookup(), Lookup::Elected(_)));
    assert_eq!(cell.stats().failed, 1);
}
