//! Derived values whose sources are empty, fail, are set by hand, or change in the middle of an evaluation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use dogpile::{
    Clock, Cx, Derived, DogpileCell, Freshness, LazyDogpile, ManualClock, Policy, RefreshError, Tick,
};

use crate::derived::{Cell, OnClock, Runs, cells, derived, derived_with};
use crate::support::{Down, Gate, TICK, TTL, eventually, gate, panic_message};

/// One more than the source.
fn next_of(source: &OnClock<u32>, clock: &ManualClock) -> OnClock<u32> {
    let source = source.clone();
    derived(clock, move |cx| *cx.get(&source) + 1).0
}

/// The cell's value, or 7 without one.
fn or_seven(policy: Policy, cell: &Cell, clock: &ManualClock) -> (OnClock<u32>, Runs) {
    let cell = cell.clone();
    derived_with(policy, clock, move |cx| cx.try_get(&cell).map_or(7, |value| *value))
}

/// Fails while the cell holds 0.
fn fails_at_zero(cell: &Cell, clock: &ManualClock) -> OnClock<u32> {
    let cell = cell.clone();
    Derived::with_clock(Policy::never_expires(), clock.clone(), move |cx| match *cx.get(&cell) {
        0 => Err(Down(0)),
        value => Ok(value),
    })
}

type Action = Box<dyn FnOnce() + Send>;

/// A clock that does something when it has been asked for the time so many times.
#[derive(Clone, Default)]
struct Doing {
    manual: ManualClock,
    armed: Arc<Mutex<Option<(u32, Action)>>>,
}

impl Doing {
    fn arm(&self, asked: u32, action: impl FnOnce() + Send + 'static) {
        *self.armed.lock().unwrap() = Some((asked, Box::new(action)));
    }

    /// Whether it has been done.
    fn disarm(&self) -> bool {
        self.armed.lock().unwrap().take().is_none()
    }
}

impl Clock for Doing {
    fn now(&self) -> Tick {
        let now = self.manual.now();
        let mut armed = self.armed.lock().unwrap();
        match armed.take() {
            Some((0, action)) => {
                drop(armed);
                action();
            }
            Some((asked, action)) => *armed = Some((asked - 1, action)),
            None => {}
        }
        now
    }
}

#[test]
fn g15_a_source_that_is_set_while_it_is_found_empty_is_followed() {
    let mut done = 0;
    for asked in 0..20 {
        let clock = Doing::default();
        let policy = Policy::ttl(TTL).stale_while_refresh(Duration::ZERO);
        let source = Arc::new(DogpileCell::with_clock(policy, clock.clone()));
        source.set(0);
        clock.manual.advance(TTL + TICK);
        let is_first = AtomicBool::new(true);
        let value = Derived::with_clock(Policy::never_expires(), clock.manual.clone(), {
            let (source, clock) = (Arc::clone(&source), clock.clone());
            move |cx: &Cx| {
                if is_first.swap(false, Ordering::Relaxed) {
                    clock.arm(asked, {
                        let source = Arc::clone(&source);
                        move || drop(source.set(1))
                    });
                    let taken = cx.try_get(&source).map_or(7, |value| *value);
                    return Ok::<_, RefreshError>((taken, clock.disarm()));
                }
                Ok((cx.try_get(&source).map_or(7, |value| *value), false))
            }
        });
        let (taken, was_set) = *value.get();
        if was_set {
            assert!(taken == 7 || taken == 1, "{taken}");
            assert_eq!(value.get().0, 1, "set when the clock was asked for the time {asked}");
            done += 1;
        } else {
            assert_eq!(taken, 7);
        }
    }
    assert!(done > 1, "{done}");
}

/// The one source is invalidated while the other one is asked whether it has anything newer.
#[test]
fn g15_a_derived_source_that_is_invalidated_after_it_was_asked_is_followed() {
    let clock = Doing::default();
    let cell = |number| {
        let cell = Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), clock.manual.clone()));
        cell.set(number);
        cell
    };
    let [left, right] = [cell(1), cell(2)];
    let (first, runs) = derived(&clock.manual, move |_| *left.get().unwrap());
    let second = Derived::with_clock(Policy::never_expires(), clock.clone(), move |cx: &Cx| {
        cx.try_get(&right).map(|value| *value)
    });
    let (both, _) = derived(&clock.manual, {
        let (first, second) = (first.clone(), second.clone());
        move |cx| *cx.get(&first) + *cx.get(&second)
    });
    assert_eq!((*both.get(), runs.take()), (3, 1));
    clock.manual.advance(TTL + TICK);
    clock.arm(0, {
        let first = first.clone();
        move || first.cell().invalidate()
    });
    assert_eq!(*both.get(), 3);
    assert!(clock.disarm());
    assert_eq!((*both.get(), runs.take()), (3, 1), "it is made again");
}

#[test]
fn g3_a_build_of_a_source_that_leads_to_a_newer_value_does_not_hide_it() {
    let clock = ManualClock::new();
    let slot = Arc::new(OnceLock::<OnClock<(u32, u32)>>::new());
    let second = Arc::new(DogpileCell::with_clock(Policy::never_expires(), clock.clone()));
    second.set(1);
    let seen = Arc::new(Mutex::new(None));
    let lazy = Arc::new(LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), {
        let (slot, second, seen) = (Arc::clone(&slot), Arc::clone(&second), Arc::clone(&seen));
        move || match slot.get() {
            None => Ok(1),
            Some(value) => {
                second.set(2);
                *seen.lock().unwrap() = Some(*value.get());
                Err(Down(1))
            }
        }
    }));
    let (value, _) = derived(&clock, {
        let (second, lazy) = (Arc::clone(&second), Arc::clone(&lazy));
        move |cx| (*cx.get(&second), *cx.get(&lazy))
    });
    assert_eq!(*value.get(), (1, 1));
    assert!(slot.set(value.clone()).is_ok());
    clock.advance(TTL + TICK);
    assert_eq!(*value.get(), (2, 1));
    assert_eq!(*seen.lock().unwrap(), Some((2, 1)));
}

#[test]
fn g15_a_derived_source_that_is_set_while_it_fails_is_followed() {
    let clock = ManualClock::new();
    let slot = Arc::new(OnceLock::<OnClock<u32>>::new());
    let source = Derived::with_clock(Policy::never_expires(), clock.clone(), {
        let slot = Arc::clone(&slot);
        move |_| {
            slot.get().unwrap().cell().set(99);
            Err::<u32, _>(Down(1))
        }
    });
    slot.set(source.clone()).unwrap();
    let (value, _) = derived(&clock, {
        let source = source.clone();
        move |cx| cx.try_get(&source).map_or(7, |value| *value)
    });
    assert_eq!(*value.get(), 7);
    assert_eq!((*source.get(), *value.get()), (99, 99));
}

/// A derived value and one that is made from it. While another thread makes the first one, the second one makes it too, for itself.
fn made_twice() -> (OnClock<u32>, OnClock<u32>, Cell, ManualClock) {
    let ([cell], clock) = cells();
    cell.set(1);
    let (gate, gatekeeper) = gate();
    let is_first = AtomicBool::new(true);
    let (source, _) = derived_with(Policy::ttl(TTL / 4), &clock, {
        let cell = cell.clone();
        move |cx| {
            if is_first.swap(false, Ordering::Relaxed) {
                gate.pass();
            }
            *cx.get(&cell)
        }
    });
    let value = next_of(&source, &clock);
    thread::scope(|scope| {
        let first = scope.spawn(|| *source.get());
        gatekeeper.wait_for_arrival();
        assert_eq!(*value.get(), 2);
        gatekeeper.open();
        assert_eq!(first.join().unwrap(), 1);
    });
    (source, value, cell, clock)
}

#[test]
fn a_derived_source_that_was_not_published_is_followed() {
    let (source, value, _cell, clock) = made_twice();
    clock.advance(TTL / 4 + TICK);
    assert_eq!((source.cell().freshness(), value.cell().freshness()), (Freshness::Stale, Freshness::Stale));

    let (source, value, _cell, _clock) = made_twice();
    source.cell().set(99);
    assert_eq!(*value.get(), 100);
}

#[test]
fn a_derived_source_that_is_set_while_it_is_made_is_followed() {
    let ([cell], clock) = cells();
    cell.set(1);
    let slot = Arc::new(OnceLock::<OnClock<u32>>::new());
    let (source, _) = derived(&clock, {
        let (cell, slot) = (cell.clone(), Arc::clone(&slot));
        move |cx| {
            slot.get().unwrap().cell().set(99);
            *cx.get(&cell)
        }
    });
    slot.set(source.clone()).unwrap();
    let value = next_of(&source, &clock);
    assert_eq!(*value.get(), 2);
    assert_eq!((*source.get(), *value.get()), (99, 100));
}

/// Panics at 0, after it has published 2 in its source.
fn panics_at_zero(cell: &Cell, clock: &ManualClock) -> OnClock<u32> {
    let cell = cell.clone();
    let policy = Policy::never_expires().retry_backoff(TTL, TTL);
    let (value, _) = derived_with(policy, clock, move |cx| {
        let value = *cx.get(&cell);
        if value == 0 {
            cell.set(2);
            panic!("planned");
        }
        value
    });
    value
}

#[test]
fn a_panic_that_was_overtaken_begins_no_pause() {
    let ([cell], clock) = cells();
    cell.set(1);
    let value = panics_at_zero(&cell, &clock);
    assert_eq!(*value.get(), 1);
    cell.set(0);
    assert!(panic_message(|| value.get()).contains("planned"));
    assert_eq!(*value.get(), 2);
}

#[test]
fn a_panic_of_a_derived_source_that_was_overtaken_begins_no_pause() {
    let ([cell], clock) = cells();
    cell.set(1);
    let source = panics_at_zero(&cell, &clock);
    let value = next_of(&source, &clock);
    assert_eq!(*value.get(), 2);
    cell.set(0);
    assert!(panic_message(|| value.get()).contains("planned"));
    assert_eq!((*source.get(), *value.get()), (2, 3));
}

#[test]
fn a_panic_of_a_refreshers_build_that_was_overtaken_begins_no_pause() {
    let ([cell], clock) = cells();
    cell.set(1);
    let value = panics_at_zero(&cell, &clock);
    let refresher = value.spawn_refresher().unwrap();
    eventually("it is made", || value.cell().generation() == 1);
    cell.set(0);
    // Shown when its wait has begun.
    eventually("it panics", || refresher.consecutive_failures() == 1);
    // A refresher waits between two attempts, for less than a pause of this policy.
    clock.advance(TTL / 2);
    eventually("it is made again", || value.cell().generation() == 2);
    assert_eq!(*value.get(), 2);
    drop(refresher);
}

/// Two evaluations make it from different values of the first source, and both fail: the one without the lease later.
#[test]
fn a_failure_of_another_evaluation_hides_no_source_that_a_pause_waits_for() {
    let ([which, left, right], clock) = cells();
    which.set(0);
    left.set(1);
    right.set(0);
    let (at_left, left_keeper) = gate();
    let (at_right, right_keeper) = gate();
    let is_gated = Arc::new(AtomicBool::new(true));
    let source = Derived::with_clock(Policy::never_expires(), clock.clone(), {
        let (which, left, right, is_gated) =
            (which.clone(), left.clone(), right.clone(), Arc::clone(&is_gated));
        move |cx: &Cx| {
            if *cx.get(&which) == 0 {
                cx.get(&left);
                at_left.pass();
                return Err(Down(1));
            }
            let value = *cx.get(&right);
            if is_gated.load(Ordering::Relaxed) {
                at_right.pass();
            }
            if value == 0 { Err(Down(2)) } else { Ok(value) }
        }
    });
    let (has_begun, begin_keeper) = gate();
    let value = Derived::with_clock(Policy::never_expires(), clock, {
        let (which, source) = (which.clone(), source.clone());
        move |cx: &Cx| {
            cx.get(&which);
            has_begun.pass();
            Ok::<_, RefreshError>(*cx.try_get(&source)?)
        }
    });
    thread::scope(|scope| {
        let without_lease = scope.spawn(|| value.try_get().is_err());
        begin_keeper.wait_for_arrival();
        which.set(1);
        let with_lease = scope.spawn(|| source.try_get().is_err());
        right_keeper.wait_for_arrival();
        begin_keeper.open();
        left_keeper.wait_for_arrival();
        right_keeper.open();
        assert!(with_lease.join().unwrap());
        left_keeper.open();
        assert!(without_lease.join().unwrap());
    });
    is_gated.store(false, Ordering::Relaxed);
    right.set(5);
    assert_eq!(*source.try_get().unwrap(), 5);
}

/// While another thread makes `first` again, an evaluation makes one for itself. What is made from that does not go together
/// with the `first` that is published.
#[test]
fn g15_what_was_made_from_an_unpublished_value_is_not_mixed_with_the_published_one() {
    let ([cell], clock) = cells();
    cell.set(1);
    let (making, keeper) = gate();
    let waits: Arc<Mutex<Option<Gate>>> = Arc::default();
    let first = {
        let (cell, waits) = (cell.clone(), Arc::clone(&waits));
        derived(&clock, move |cx| {
            let value = *cx.get(&cell);
            let gate = waits.lock().unwrap().take();
            if let Some(gate) = gate {
                gate.pass();
            }
            value
        })
        .0
    };
    let (second, _) = derived(&clock, {
        let first = first.clone();
        move |cx| *cx.get(&first)
    });
    let (both, _) = derived(&clock, {
        let (first, second) = (first.clone(), second.clone());
        move |cx| (*cx.get(&second), *cx.get(&first))
    });
    assert_eq!(*both.get(), (1, 1));
    cell.set(2);
    *waits.lock().unwrap() = Some(making);
    thread::scope(|scope| {
        let slow = scope.spawn(|| *first.get());
        keeper.wait_for_arrival();
        let found = (*second.get(), *both.get());
        keeper.open();
        assert_eq!(slow.join().unwrap(), 2);
        assert_eq!(found, (2, (2, 2)));
    });
    assert_eq!(*both.get(), (2, 2));
}

#[test]
fn g15_a_source_has_no_value_throughout_an_evaluation_or_one_value() {
    let ([cell], clock) = cells();
    let (twice, _) = derived(&clock, {
        let cell = cell.clone();
        move |cx| {
            let first = cx.try_get(&cell).ok().map(|value| *value);
            cell.set(5);
            (first, cx.try_get(&cell).ok().map(|value| *value))
        }
    });
    assert_eq!(*twice.get(), (None, None));
    assert_eq!(*twice.get(), (Some(5), Some(5)));

    // By way of another derived value.
    let ([cell], clock) = cells();
    let (source, _) = or_seven(Policy::never_expires(), &cell, &clock);
    let (both, _) = derived(&clock, {
        let cell = cell.clone();
        move |cx| {
            let source = *cx.get(&source);
            cell.set(5);
            (source, cx.try_get(&cell).map_or(7, |value| *value))
        }
    });
    assert_eq!(*both.get(), (7, 7));
    assert_eq!(*both.get(), (5, 5));
}

#[test]
fn g15_a_source_whose_value_has_expired_has_none_for_what_was_made_without_it() {
    let clock = ManualClock::new();
    let policy = Policy::ttl(TTL).stale_while_refresh(Duration::ZERO);
    let cell = Arc::new(DogpileCell::with_clock(policy, clock.clone()));
    cell.set(5);
    let (source, runs) = or_seven(Policy::never_expires(), &cell, &clock);
    clock.advance(TTL + TICK);
    assert_eq!((*source.get(), runs.take()), (7, 1));
    let (both, _) =
        derived(&clock, move |cx| (*cx.get(&source), cx.try_get(&cell).map_or(7, |value| *value)));
    assert_eq!((*both.get(), runs.take()), ((7, 7), 0));
}

#[test]
fn g15_a_derived_source_that_fails_in_an_evaluation_has_no_value_throughout_it() {
    let ([cell], clock) = cells();
    cell.set(0);
    let source = fails_at_zero(&cell, &clock);
    let (twice, _) = derived(&clock, {
        let source = source.clone();
        move |cx| {
            let first = cx.try_get(&source).ok().map(|value| *value);
            source.cell().set(5);
            (first, cx.try_get(&source).ok().map(|value| *value))
        }
    });
    assert_eq!(*twice.get(), (None, None));
    assert_eq!(*twice.get(), (Some(5), Some(5)));
}

#[test]
fn what_is_made_without_a_value_is_used_by_others() {
    let ([cell], clock) = cells();
    let (source, runs) = or_seven(Policy::never_expires(), &cell, &clock);
    assert_eq!((*source.get(), runs.take()), (7, 1));
    let value = next_of(&source, &clock);
    assert_eq!((*value.get(), runs.take()), (8, 0));
    source.cell().set(99);
    assert_eq!(*value.get(), 100);
    cell.set(1);
    assert_eq!((*value.get(), runs.take()), (2, 1));
}

/// It asks for itself, and goes on without itself or fails.
#[test]
fn what_asks_for_itself_is_freed() {
    for goes_on in [true, false] {
        let ([cell], clock) = cells();
        cell.set(1);
        let captured = Arc::new(());
        let slot = Arc::new(Mutex::new(None::<OnClock<u32>>));
        let runs = Runs::default();
        let value = Derived::with_clock(Policy::never_expires(), clock, {
            let (cell, slot, captured, runs) =
                (cell.clone(), Arc::downgrade(&slot), Arc::clone(&captured), runs.clone());
            move |cx: &Cx| {
                let _ = &captured;
                runs.count();
                let number = *cx.get(&cell);
                let itself = slot.upgrade().and_then(|slot| slot.lock().unwrap().clone()).unwrap();
                match cx.try_get(&itself) {
                    Err(RefreshError::Reentrant) if goes_on => Ok(number + 10),
                    other => other.map(|value| *value),
                }
            }
        });
        *slot.lock().unwrap() = Some(value.clone());
        for _ in 0..2 {
            assert_eq!(value.try_get().ok().as_deref(), goes_on.then_some(&11));
        }
        assert_eq!(runs.take(), 1, "no source has changed, or a pause runs");
        drop((slot, value));
        assert_eq!((Arc::strong_count(&captured), Arc::strong_count(&cell)), (1, 1));
    }
}

#[test]
fn the_time_to_live_of_a_derived_source_is_inherited() {
    // Of the policy, and beside a source without a value.
    let ([cell], clock) = cells();
    let (source, _) = or_seven(Policy::ttl(TTL / 4), &cell, &clock);
    let value = next_of(&source, &clock);
    source.get();
    assert_eq!(*value.get(), 8);
    clock.advance(TTL / 4 + TICK);
    assert_eq!((source.cell().freshness(), value.cell().freshness()), (Freshness::Stale, Freshness::Stale));

    // Of `set_for`.
    let ([cell], clock) = cells();
    cell.set(1);
    let (source, _) = or_seven(Policy::never_expires(), &cell, &clock);
    let value = next_of(&source, &clock);
    source.cell().set_for(100, TTL / 8);
    assert_eq!(*value.get(), 101);
    clock.advance(TTL / 8 + TICK);
    assert_eq!(value.cell().freshness(), Freshness::Stale);
    assert_eq!(*value.get(), 2);

    // Drawn.
    let ([cell], clock) = cells();
    cell.set(1);
    let (source, runs) = or_seven(Policy::ttl(TTL / 2).jitter(50), &cell, &clock);
    let value = next_of(&source, &clock);
    value.get();
    while source.cell().freshness() == Freshness::Fresh {
        clock.advance(TTL / 1000);
    }
    runs.take();
    assert_eq!(value.cell().freshness(), Freshness::Stale);
    assert_eq!((*value.get(), runs.take()), (2, 1));
}

#[test]
fn a_fallback_for_a_derived_source_that_fails_is_kept_during_its_pause() {
    let ([cell], clock) = cells();
    let is_down = Arc::new(AtomicBool::new(true));
    cell.set(1);
    let source = Derived::with_clock(Policy::never_expires(), clock.clone(), {
        let (cell, is_down) = (cell.clone(), Arc::clone(&is_down));
        move |cx| if is_down.load(Ordering::Relaxed) { Err(Down(9)) } else { Ok(*cx.get(&cell)) }
    });
    let (value, runs) = derived(&clock, {
        let (source, cell) = (source.clone(), cell.clone());
        move |cx| (*cx.get(&cell), cx.try_get(&source).map_or(7, |value| *value))
    });
    // The first time without an old value of the source, then beside one.
    for number in 1..3 {
        cell.set(number);
        is_down.store(true, Ordering::Relaxed);
        source.cell().invalidate();
        for _ in 0..3 {
            assert_eq!(*value.get(), (number, 7));
        }
        assert_eq!(runs.take(), 1);
        is_down.store(false, Ordering::Relaxed);
        assert_eq!((*value.get(), runs.take()), ((number, 7), 0), "the pause runs");
        clock.advance(Duration::from_secs(1));
        assert_eq!((*value.get(), runs.take()), ((number, number), 1));
    }
}

#[test]
fn a_fallback_is_made_again_when_the_source_of_what_fails_publishes() {
    let ([cell], clock) = cells();
    cell.set(0);
    let source = fails_at_zero(&cell, &clock);
    let (value, _) = derived(&clock, move |cx| cx.try_get(&source).map_or(7, |value| *value));
    assert_eq!(*value.get(), 7);
    cell.set(3);
    assert_eq!(*value.get(), 3);
    cell.set(0);
    assert_eq!(*value.get(), 7);
    cell.set(4);
    assert_eq!(*value.get(), 4);
}

#[test]
fn a_value_that_is_set_by_hand_outlives_failures_of_its_sources() {
    let ([cell], clock) = cells();
    cell.set(1);
    let (value, _) = or_seven(Policy::never_expires(), &cell, &clock);
    value.get();
    cell.set(2);
    value.cell().set(99);
    cell.request().no_cache().try_get(|| Err::<u32, _>(Down(1))).unwrap_err();
    assert_eq!(*value.get(), 99);
    assert!(catch_unwind(AssertUnwindSafe(|| cell.request().no_cache().get(|| panic!("planned")))).is_err());
    assert_eq!(*value.get(), 99);
    cell.set(3);
    assert_eq!(*value.get(), 3);
}

/// Sets a flag when it is dropped, and panics if it is armed.
struct Bomb {
    is_dropped: Arc<AtomicBool>,
    is_armed: Arc<AtomicBool>,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::Relaxed);
        assert!(!self.is_armed.swap(false, Ordering::Relaxed), "a planned panic of a drop");
    }
}

/// A publisher keeps none of the derived values alive that it notifies: the last handle that is dropped drops the value, and what a
/// panic of that drop ends is the call that has dropped the handle.
#[test]
fn a_derived_value_whose_handles_are_dropped_during_a_publication_is_dropped_with_them() {
    for panics in [false, true] {
        let ([source], clock) = cells();
        source.set(1);
        let bomb = || (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(panics)));
        let (is_dropped, is_armed) = bomb();
        let first = {
            let (source, dropped, armed) = (source.clone(), Arc::clone(&is_dropped), Arc::clone(&is_armed));
            Derived::with_clock(Policy::never_expires(), clock.clone(), move |cx: &Cx| {
                cx.get(&source);
                Ok::<_, RefreshError>(Bomb { is_dropped: Arc::clone(&dropped), is_armed: Arc::clone(&armed) })
            })
        };
        let second = {
            let first = first.clone();
            derived(&clock, move |cx| {
                cx.get(&first);
                1_u32
            })
            .0
        };
        let (other, _) = derived(&clock, {
            let source = source.clone();
            move |cx| *cx.get(&source)
        });
        drop(second.get());
        drop(other.get());
        let changes = Runs::default();
        let of_other = other.on_change({
            let changes = changes.clone();
            move |_| changes.count()
        });
        let handles = Mutex::new(Some((first, second)));
        let found = Arc::new(Mutex::new(None));
        let drops = source.on_publish({
            let found = Arc::clone(&found);
            move |_| {
                let handles = handles.lock().unwrap().take();
                let dropped = catch_unwind(AssertUnwindSafe(|| drop(handles)));
                *found.lock().unwrap() = Some((is_dropped.load(Ordering::Relaxed), dropped.is_err()));
            }
        });
        source.set(2);
        assert_eq!(*found.lock().unwrap(), Some((true, panics)));
        assert_eq!(changes.take(), 1, "the other one goes stale");
        assert!(!is_armed.load(Ordering::Relaxed));
        drop((of_other, drops));
    }
}

/// If the cell is gone, nothing is called: also where a change of it was noted already.
#[test]
fn a_hook_of_a_derived_value_that_is_dropped_during_a_publication_is_not_called() {
    let ([source], clock) = cells();
    source.set(1);
    let (derived, _) = derived(&clock, {
        let source = source.clone();
        move |cx| *cx.get(&source)
    });
    let changes = Runs::default();
    let of_derived = derived.on_change({
        let changes = changes.clone();
        move |_| changes.count()
    });
    let handle = Mutex::new(Some(derived.clone()));
    let of_source = source.on_publish(move |_| drop(handle.lock().unwrap().take()));
    derived.get();
    drop(derived);
    assert_eq!(changes.take(), 1, "it is published");
    source.set(2);
    assert_eq!(changes.take(), 0, "it is gone");
    drop((of_derived, of_source));
}
