//! What users may do to a refresher without meaning to.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use dogpile::{Clock, DogpileCell, ManualClock, Policy, Refresher, Tick};

use crate::support::{PATIENCE, TICK, TTL, cell, eventually};

#[test]
fn a_cell_taken_out_of_its_arc_can_be_invalidated_when_the_refresher_is_gone() {
    let (cell, clock) = cell::<u32>();
    let mut cell = Arc::new(cell);
    let refresher = Refresher::spawn(&cell, Duration::from_secs(1), |_| 1).unwrap();
    eventually("it builds", || cell.get().is_some());
    let cell = loop {
        // The refresher holds it from a plan to the end of a build.
        match Arc::try_unwrap(cell) {
            Ok(cell) => break cell,
            Err(shared) => cell = shared,
        }
        std::thread::yield_now();
    };
    drop(refresher);
    clock.advance(100 * TTL);
    cell.invalidate();
    assert_eq!(*cell.get_or_refresh(|| 2), 2, "no refresher is attached any more");
}

/// A clock that cannot be cloned.
struct Unique(ManualClock);

impl Clock for Unique {
    fn now(&self) -> Tick {
        self.0.now()
    }
}

impl Clone for Unique {
    fn clone(&self) -> Self {
        panic!("there is only one")
    }
}

#[test]
fn a_clock_whose_clone_panics_leaves_no_refresher_attached() {
    let clock = ManualClock::new();
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), Unique(clock.clone())));
    cell.set(1);
    let spawned = catch_unwind(AssertUnwindSafe(|| Refresher::spawn(&cell, Duration::ZERO, |_| 2).map(drop)));
    assert!(spawned.is_err());
    clock.advance(TTL + TICK);
    assert_eq!(*cell.get_or_refresh(|| 3), 3);
}

/// An error, or a value, whose drop panics if it is armed.
#[derive(Debug)]
struct Bomb(bool, Arc<AtomicU32>);

impl fmt::Display for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bomb")
    }
}

impl std::error::Error for Bomb {}

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 {
            self.1.fetch_add(1, Ordering::Relaxed);
            panic!("the bomb");
        }
    }
}

#[test]
fn an_error_whose_drop_panics_does_not_end_the_refresher() {
    let (cell, clock) = cell::<u32>();
    let cell = Arc::new(cell);
    let drops = Arc::new(AtomicU32::new(0));
    let (built, builds) = mpsc::channel();
    let mut number = 0;
    let bombs = Arc::clone(&drops);
    let refresher = Refresher::spawn(&cell, Duration::ZERO, move |_| {
        number += 1;
        built.send(number).unwrap();
        if number == 1 { Err(Bomb(true, Arc::clone(&bombs))) } else { Ok(number) }
    })
    .unwrap();
    assert_eq!(builds.recv(), Ok(1));
    eventually("it fails", || refresher.consecutive_failures() == 1);
    clock.advance(TTL);
    assert_eq!(builds.recv(), Ok(2));
    eventually("it is published", || cell.get().as_deref() == Some(&2));
    eventually("the error is dropped", || drops.load(Ordering::Relaxed) == 1);
    cell.invalidate();
    assert_eq!(builds.recv(), Ok(3), "it goes on");
}

#[test]
fn a_build_that_has_been_published_is_no_failure_whatever_it_replaces() {
    let (cell, _clock) = cell::<Bomb>();
    let cell = Arc::new(cell);
    let drops = Arc::new(AtomicU32::new(0));
    let (built, builds) = mpsc::channel();
    let armed = Arc::new(AtomicBool::new(true));
    let bombs = Arc::clone(&drops);
    let refresher = Refresher::spawn(&cell, Duration::ZERO, move |_| {
        built.send(()).unwrap();
        Bomb(armed.swap(false, Ordering::Relaxed), Arc::clone(&bombs))
    })
    .unwrap();
    builds.recv().unwrap();
    eventually("it builds", || cell.generation() == 1);
    cell.invalidate();
    builds.recv().unwrap();
    eventually("it is dropped", || drops.load(Ordering::Relaxed) == 1);
    // Without a pause: had it counted as a failure, the clock, which stands still, would keep it from building.
    cell.invalidate();
    builds.recv().unwrap();
    assert_eq!(refresher.consecutive_failures(), 0);
}

/// It had ended the refresher, as if the clock had panicked.
#[test]
fn a_value_that_is_taken_away_as_it_is_published_and_whose_drop_panics_is_no_failure() {
    let (cell, _clock) = cell::<Bomb>();
    let cell = Arc::new(cell);
    let drops = Arc::new(AtomicU32::new(0));
    let (built, builds) = mpsc::channel();
    let armed = Arc::new(AtomicBool::new(true));
    let bombs = Arc::clone(&drops);
    let weak = Arc::downgrade(&cell);
    let clears = Arc::clone(&armed);
    // The refresher has the last reference to the first value.
    let hook = cell.on_publish(move |_| {
        if clears.swap(false, Ordering::Relaxed) {
            weak.upgrade().unwrap().clear();
        }
    });
    let is_first = AtomicBool::new(true);
    let refresher = Refresher::spawn(&cell, Duration::ZERO, move |_| {
        built.send(()).unwrap();
        Bomb(is_first.swap(false, Ordering::Relaxed), Arc::clone(&bombs))
    })
    .unwrap();
    builds.recv_timeout(PATIENCE).unwrap();
    builds.recv_timeout(PATIENCE).expect("it goes on, since there is no value");
    eventually("it is published", || cell.generation() == 2);
    assert_eq!((drops.load(Ordering::Relaxed), refresher.consecutive_failures()), (1, 0));
    assert!(refresher.last_error().is_none());
    drop(hook);
}

/// Panics if it is looked at by a refresher's thread while it is armed.
#[derive(Clone, Default)]
struct Fragile {
    is_armed: Arc<AtomicBool>,
    time: ManualClock,
}

impl Clock for Fragile {
    fn now(&self) -> Tick {
        if std::thread::current().name() == Some("dogpile-refresher") {
            assert!(!self.is_armed.load(Ordering::SeqCst), "the clock panics");
        }
        self.time.now()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        self.time.park_until(deadline, now);
    }
}

/// It had ended, and nothing showed it.
#[test]
fn a_clock_that_panics_ends_the_refresher_and_is_shown() {
    let clock = Fragile::default();
    let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), clock.clone()));
    let refresher = Refresher::spawn(&cell, Duration::from_secs(1), |_| 1).unwrap();
    eventually("it builds", || cell.get().is_some());
    clock.is_armed.store(true, Ordering::SeqCst);
    cell.invalidate();
    eventually("it is shown", || refresher.consecutive_failures() == 1);
    let error = refresher.last_error().unwrap().to_string();
    assert!(error.contains("the clock panics"), "{error}");
    // Readers build again.
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
}

#[test]
fn refreshers_whose_builds_dropped_each_other_hung() {
    let cells = [Arc::new(DogpileCell::new(TTL)), Arc::new(DogpileCell::new(TTL))];
    let refreshers: [Arc<Mutex<Option<Refresher>>>; 2] = Default::default();
    let both_build = Arc::new(Barrier::new(2));
    let spawn = |this: usize| {
        let (other, both_build) = (Arc::clone(&refreshers[1 - this]), Arc::clone(&both_build));
        let build = move |_| {
            eventually("the other is there", || other.lock().unwrap().is_some());
            let other = other.lock().unwrap().take();
            both_build.wait();
            drop(other);
            1
        };
        Refresher::spawn(&cells[this], Duration::from_secs(1), build).unwrap()
    };
    let both = [spawn(0), spawn(1)];
    for (place, refresher) in refreshers.iter().zip(both) {
        *place.lock().unwrap() = Some(refresher);
    }
    eventually("both have built", || cells.iter().all(|cell| cell.get().is_some()));
}
