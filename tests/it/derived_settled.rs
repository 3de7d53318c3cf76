//! Derived values that are out of date because a source is, while no source has anything newer.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use dogpile::{
    Clock, Derived, DogpileCell, LazyDogpile, ManualClock, Policy, RefreshError, Refresher, SyncReaderCell,
    Tick,
};

use crate::derived::{Runs, cells, derived};
use crate::support::{Down, PATIENCE, TICK, TTL, eventually, gate, panic_message};

/// Counts how often it is asked for the time.
#[derive(Clone, Default)]
struct Counting {
    manual: ManualClock,
    asked: Arc<AtomicU32>,
}

impl Counting {
    fn asked(&self) -> u32 {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

impl Clock for Counting {
    fn now(&self) -> Tick {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.manual.now()
    }
}

type CountedCell = Arc<DogpileCell<u32, Counting>>;

/// A cell, and a value that is made from it by a clock that counts.
fn counted(policy: Policy) -> (CountedCell, Derived<u32, Counting>, Runs, Counting) {
    let (clock, runs) = (Counting::default(), Runs::default());
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), clock.clone()));
    let value = Derived::with_clock(policy, clock.clone(), {
        let (cell, runs) = (Arc::clone(&cell), runs.clone());
        move |cx| {
            runs.count();
            cx.try_get(&cell).map(|value| *value * 2)
        }
    });
    (cell, value, runs, clock)
}

/// A read that elects, or asks the sources, asks for the time too.
#[test]
fn g2_only_the_first_read_asks_the_sources_whether_they_have_something_newer() {
    let (cell, value, runs, clock) = counted(Policy::never_expires());
    let mut number = 1;
    cell.set(number);
    assert_eq!((*value.get(), runs.take()), (2, 1));
    let outdate: [&dyn Fn(); 2] = [&|| clock.manual.advance(TTL + TICK), &|| cell.invalidate()];
    for outdate in outdate {
        outdate();
        assert_eq!(*value.get(), 2 * number);
        clock.asked();
        for _ in 0..3 {
            assert_eq!(*value.get(), 2 * number);
            assert_eq!((clock.asked(), runs.take()), (0, 0), "it is served as a fresh one is");
        }
        number += 1;
        cell.set(number);
        assert_eq!((*value.get(), runs.take()), (2 * number, 1), "what is newer ends it");
    }
}

#[test]
fn what_happens_to_the_value_itself_ends_it_too() {
    let policy = Policy::ttl(3 * TTL).stale_while_refresh(4 * TTL);
    let (cell, value, runs, clock) = counted(policy);
    let settle = || {
        value.get();
        runs.take();
        clock.asked();
        value.get();
        runs.take() == 0
    };
    cell.set(1);
    value.get();
    clock.manual.advance(TTL + TICK);
    assert!(settle());
    // It is invalidated, cleared, set, and its own time to live is over.
    value.cell().invalidate();
    assert_eq!((*value.get(), runs.take()), (2, 1));
    assert!(settle());
    value.cell().clear();
    assert_eq!((*value.get(), runs.take()), (2, 1));
    assert!(settle());
    value.cell().set(7);
    assert_eq!((*value.get(), runs.take()), (7, 0));
    clock.manual.advance(3 * TTL);
    assert_eq!(*value.get(), 7, "up to and including its time to live");
    clock.manual.advance(TICK);
    assert_eq!((*value.get(), runs.take()), (2, 1));
    assert!(settle());
    clock.manual.advance(3 * TTL + TICK);
    assert_eq!((*value.get(), runs.take()), (2, 1));
}

#[test]
fn its_limit_to_being_served_stale_holds() {
    let (cell, value, runs, clock) = counted(Policy::never_expires().stale_while_refresh(TTL));
    cell.set(1);
    value.get();
    clock.manual.advance(TTL + TICK);
    assert_eq!((*value.get(), *value.get(), runs.take()), (2, 2, 1));
    assert!(value.cell().get().is_some());
    clock.manual.advance(TTL);
    assert!(value.cell().get().is_none());
    assert_eq!((*value.get(), runs.take()), (2, 1), "it is made from what the source has");
}

type Build = Box<dyn Fn() -> Result<u32, Down> + Send + Sync>;
type Lazy = Arc<LazyDogpile<u32, Build, ManualClock>>;

/// A source that makes the number in the second, and fails at 0.
fn lazy(clock: &ManualClock) -> (Lazy, Arc<AtomicU32>, Runs) {
    let (next, builds) = (Arc::new(AtomicU32::new(1)), Runs::default());
    let policy = Policy::ttl(TTL).retry_backoff(TTL / 10, TTL / 10);
    let build: Build = Box::new({
        let (next, builds) = (Arc::clone(&next), builds.clone());
        move || {
            builds.count();
            match next.load(Ordering::Relaxed) {
                0 => Err(Down(0)),
                number => Ok(number),
            }
        }
    });
    (Arc::new(LazyDogpile::with_clock(policy, clock.clone(), build)), next, builds)
}

#[test]
fn a_source_that_is_down_is_asked_after_its_pause_at_the_tick() {
    let clock = ManualClock::new();
    let (lazy, next, builds) = lazy(&clock);
    let (value, runs) = derived(&clock, {
        let lazy = Arc::clone(&lazy);
        move |cx| *cx.get(&lazy)
    });
    assert_eq!((*value.get(), builds.take()), (1, 1));
    next.store(0, Ordering::Relaxed);
    clock.advance(TTL + TICK);
    for _ in 0..3 {
        assert_eq!((*value.get(), *value.get(), builds.take()), (1, 1, 1));
        clock.advance(TTL / 10 - TICK);
        assert_eq!((*value.get(), builds.take()), (1, 0));
        clock.advance(TICK);
    }
    next.store(2, Ordering::Relaxed);
    runs.take();
    assert_eq!((*value.get(), builds.take(), runs.take()), (2, 1, 1));
}

/// While a refresher is attached to the source, reads leave its builds to that.
#[test]
fn a_source_that_loses_its_refresher_is_asked_again() {
    let clock = ManualClock::new();
    let (lazy, next, builds) = lazy(&clock);
    let (value, _) = derived(&clock, {
        let lazy = Arc::clone(&lazy);
        move |cx| *cx.get(&lazy)
    });
    assert_eq!(*value.get(), 1);
    next.store(0, Ordering::Relaxed);
    let refresher = Refresher::spawn(&lazy, Duration::ZERO, |_| Err::<u32, _>(Down(3))).unwrap();
    clock.advance(TTL + TICK);
    eventually("the refresher's build has failed", || refresher.consecutive_failures() == 1);
    assert_eq!((*value.get(), *value.get()), (1, 1));
    drop(refresher);
    next.store(2, Ordering::Relaxed);
    builds.take();
    clock.advance(TTL / 10);
    assert_eq!((*value.get(), builds.take()), (2, 1));
}

#[test]
fn g2_a_build_of_a_source_is_waited_for_by_one_reader_at_most() {
    let clock = ManualClock::new();
    let (building, gatekeeper) = gate();
    let is_first = AtomicU32::new(1);
    let lazy = Arc::new(LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), move || {
        if is_first.swap(0, Ordering::Relaxed) == 1 {
            return 1;
        }
        building.pass();
        2
    }));
    let (value, _) = derived(&clock, {
        let lazy = Arc::clone(&lazy);
        move |cx| *cx.get(&lazy)
    });
    assert_eq!(*value.get(), 1);
    lazy.clear();
    let (read, reads) = mpsc::channel();
    thread::scope(|scope| {
        let reader = || {
            let (value, read) = (value.clone(), read.clone());
            scope.spawn(move || read.send(*value.get()).unwrap())
        };
        // Builds the source.
        reader();
        gatekeeper.wait_for_arrival();
        // Makes the value, and waits for that build.
        reader();
        eventually("it is elected", || value.cell().is_refreshing());
        for _ in 0..4 {
            reader();
            assert_eq!(reads.recv_timeout(PATIENCE), Ok(1), "there is an old value");
        }
        gatekeeper.open();
    });
    assert_eq!(*value.get(), 2);
}

#[test]
fn g10_an_evaluation_does_not_wait_for_a_build_that_waits_for_its_own_guard() {
    let clock = ManualClock::new();
    let policy = Policy::ttl(TTL);
    let source = SyncReaderCell::with_clock(policy, clock.clone(), dogpile::Drain::Background, drop::<u32>);
    let source = Arc::new(source);
    source.set(1);
    let value: Derived<u32, ManualClock> = Derived::with_clock(Policy::never_expires(), clock, {
        let source = Arc::clone(&source);
        move |cx| cx.try_get(&source).map(|value| *value)
    });
    let panicking: Derived<u32> = Derived::new({
        let source = Arc::clone(&source);
        move |cx| *cx.get(&source)
    });
    thread::scope(|scope| {
        let guard = source.load().unwrap();
        let writer = scope.spawn(|| {
            *source.request().no_cache().get_with_writer(|writer| {
                drop(writer.acquire_write_lock());
                2
            })
        });
        eventually("it waits for the guard", || source.get().is_none());
        assert!(matches!(value.try_get(), Err(RefreshError::Reentrant)));
        let message = panic_message(|| panicking.get());
        assert!(message.contains("holds a ReadGuard"), "{message}");
        drop(guard);
        assert_eq!(writer.join().unwrap(), 2);
    });
    assert_eq!((*value.get(), *panicking.get()), (2, 2));
}

#[test]
fn a_chain_settles_as_a_whole() {
    let ([cell], clock) = cells();
    cell.set(1);
    let (first, first_runs) = derived(&clock, {
        let cell = Arc::clone(&cell);
        move |cx| *cx.get(&cell) + 1
    });
    let (second, second_runs) = derived(&clock, {
        let first = first.clone();
        move |cx| *cx.get(&first) + 1
    });
    assert_eq!(*second.get(), 3);
    clock.advance(TTL + TICK);
    for _ in 0..3 {
        assert_eq!((*second.get(), *first.get()), (3, 2));
    }
    assert_eq!((first_runs.take(), second_runs.take()), (1, 1));
    cell.set(5);
    assert_eq!((*second.get(), *first.get()), (7, 6));
    assert_eq!((first_runs.take(), second_runs.take()), (1, 1));
    // The one in the middle is declared stale by hand: it may be made from something that is no source.
    clock.advance(TTL + TICK);
    assert_eq!((*second.get(), *second.get()), (7, 7));
    first.cell().invalidate();
    assert_eq!((*second.get(), first_runs.take(), second_runs.take()), (7, 1, 1));
}

#[test]
fn the_time_to_live_of_a_value_that_was_set_in_a_derived_source_counts() {
    let clock = ManualClock::new();
    let cell = |policy, value| {
        let cell = Arc::new(DogpileCell::with_clock(policy, clock.clone()));
        cell.set(value);
        cell
    };
    let (base, short) = (cell(Policy::never_expires(), 5), cell(Policy::ttl(TTL / 2), 1));
    let (source, _) = derived(&clock, move |cx| *cx.get(&base));
    let (sum, _) = derived(&clock, {
        let (source, short) = (source.clone(), Arc::clone(&short));
        move |cx| *cx.get(&source) + *cx.get(&short)
    });
    source.get();
    source.cell().set_for(7, TTL);
    assert_eq!(*sum.get(), 8);
    clock.advance(TTL / 2 + TICK);
    assert_eq!((*sum.get(), *sum.get()), (8, 8));
    clock.advance(TTL / 2 - TICK);
    assert_eq!(*sum.get(), 8, "up to and including its time to live");
    clock.advance(TICK);
    assert_eq!(*sum.get(), 6);
}
