//! Derived values: when they are made, from what, and that they never mix (G15).

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dogpile::{
    BoxError, Cx, Derived, DogpileCell, Drain, Freshness, LazyDogpile, ManualClock, Policy, RefreshError,
    SyncReaderCell,
};

use crate::support::{Down, TICK, TTL, eventually, gate, panic_message};

pub(crate) type Cell = Arc<DogpileCell<u32, ManualClock>>;

pub(crate) fn cells<const N: usize>() -> ([Cell; N], ManualClock) {
    let clock = ManualClock::new();
    let cells = std::array::from_fn(|_| Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), clock.clone())));
    (cells, clock)
}

/// How often a closure has run.
#[derive(Clone, Default)]
pub(crate) struct Runs(Arc<AtomicU32>);

impl Runs {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn take(&self) -> u32 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

pub(crate) type OnClock<T> = Derived<T, ManualClock>;

/// Counts its runs.
pub(crate) fn derived<T: Send + Sync + 'static>(
    clock: &ManualClock,
    make: impl Fn(&Cx) -> T + Send + Sync + 'static,
) -> (OnClock<T>, Runs) {
    derived_with(Policy::never_expires(), clock, make)
}

pub(crate) fn derived_with<T: Send + Sync + 'static>(
    policy: Policy,
    clock: &ManualClock,
    make: impl Fn(&Cx) -> T + Send + Sync + 'static,
) -> (OnClock<T>, Runs) {
    let runs = Runs::default();
    let value = Derived::with_clock(policy, clock.clone(), {
        let runs = runs.clone();
        move |cx| {
            runs.count();
            Ok::<_, RefreshError>(make(cx))
        }
    });
    (value, runs)
}

#[test]
fn nothing_runs_until_a_read_and_nothing_runs_twice() {
    let ([a, b], clock) = cells();
    let (sum, runs) = derived(&clock, {
        let (a, b) = (a.clone(), b.clone());
        move |cx| *cx.get(&a) + *cx.get(&b)
    });
    a.set(1);
    b.set(2);
    assert_eq!(runs.take(), 0);
    assert_eq!((*sum.get(), *sum.clone().get(), runs.take()), (3, 3, 1));
    a.set(10);
    b.set(20);
    assert_eq!(runs.take(), 0, "a publication only declares it stale");
    assert_eq!(sum.cell().freshness(), Freshness::Stale);
    assert_eq!((*sum.get(), *sum.get(), runs.take()), (30, 30, 1));
    assert_eq!(sum.cell().freshness(), Freshness::Fresh);
}

/// A configuration with five clients, of which one is used.
#[test]
fn only_what_is_used_is_made() {
    let ([config], clock) = cells();
    config.set(1);
    let clients: Vec<_> = (0..5)
        .map(|number| {
            let config = config.clone();
            derived(&clock, move |cx| *cx.get(&config) * 10 + number)
        })
        .collect();
    assert_eq!(*clients[3].0.get(), 13);
    config.set(2);
    assert_eq!(*clients[3].0.get(), 23);
    assert_eq!(clients.iter().map(|(_, runs)| runs.take()).collect::<Vec<_>>(), [0, 0, 0, 2, 0]);
}

#[test]
#[allow(clippy::many_single_char_names)] // nodes of a graph
fn a_chain_and_a_diamond_make_each_value_once() {
    let ([a], clock) = cells();
    a.set(1);
    let (b, b_runs) = derived(&clock, {
        let a = a.clone();
        move |cx| *cx.get(&a) * 2
    });
    let (c, c_runs) = derived(&clock, {
        let a = a.clone();
        move |cx| *cx.get(&a) * 3
    });
    let (d, d_runs) = derived(&clock, {
        let (b, c, a) = (b.clone(), c.clone(), a.clone());
        move |cx| (*cx.get(&b), *cx.get(&c), *cx.get(&a))
    });
    let (e, e_runs) = derived(&clock, {
        let (d, b) = (d.clone(), b.clone());
        move |cx| (*cx.get(&d), *cx.get(&b))
    });
    let runs = || [b_runs.take(), c_runs.take(), d_runs.take(), e_runs.take()];
    assert_eq!(*e.get(), ((2, 3, 1), 2));
    assert_eq!(runs(), [1, 1, 1, 1]);
    // What an evaluation has made on its way is there for others: it is the same value.
    assert_eq!((*d.get(), *b.get(), *c.get()), ((2, 3, 1), 2, 3));
    assert_eq!(runs(), [0, 0, 0, 0]);
    a.set(10);
    assert_eq!(*b.get(), 20);
    assert_eq!(*e.get(), ((20, 30, 10), 20));
    assert_eq!(runs(), [1, 1, 1, 1]);
    // One in the middle is declared stale by hand.
    b.cell().invalidate();
    assert_eq!(e.cell().freshness(), Freshness::Stale);
    assert_eq!(*e.get(), ((20, 30, 10), 20));
    assert_eq!(runs(), [1, 0, 1, 1]);
}

#[test]
fn dependencies_are_what_the_latest_run_has_asked_for() {
    let ([which, left, right], clock) = cells();
    for (cell, value) in [(&which, 0), (&left, 1), (&right, 2)] {
        cell.set(value);
    }
    let (chosen, runs) = derived(&clock, {
        let (which, left, right) = (which.clone(), left.clone(), right.clone());
        move |cx| if *cx.get(&which) == 0 { *cx.get(&left) } else { *cx.get(&right) }
    });
    assert_eq!((*chosen.get(), runs.take()), (1, 1));
    right.set(20);
    assert_eq!((*chosen.get(), runs.take()), (1, 0));
    left.set(10);
    assert_eq!((*chosen.get(), runs.take()), (10, 1));
    which.set(1);
    assert_eq!((*chosen.get(), runs.take()), (20, 1));
    left.set(100);
    assert_eq!((chosen.cell().freshness(), *chosen.get(), runs.take()), (Freshness::Fresh, 20, 0));
    right.set(200);
    assert_eq!((*chosen.get(), runs.take()), (200, 1));
}

#[test]
fn g15_a_source_has_one_value_in_one_evaluation() {
    let ([a], clock) = cells();
    a.set(1);
    let (b, _) = derived(&clock, {
        let a = a.clone();
        move |cx| *cx.get(&a)
    });
    b.get();
    let (pair, runs) = derived(&clock, {
        let (a, b) = (a.clone(), b.clone());
        move |cx| {
            // Cached, from the present value.
            let first = *cx.get(&b);
            // A publication in the middle of the evaluation.
            if first < 3 {
                a.set(first + 1);
            }
            (first, *cx.get(&a), *cx.get(&a), *cx.get(&b))
        }
    });
    // Each of them of one moment; a value that was overtaken is published as stale.
    assert_eq!(*pair.get(), (1, 1, 1, 1));
    assert_eq!(pair.cell().freshness(), Freshness::Stale);
    assert_eq!(*pair.get(), (2, 2, 2, 2));
    assert_eq!(*pair.get(), (3, 3, 3, 3));
    assert_eq!(pair.cell().freshness(), Freshness::Fresh);
    assert_eq!((*pair.get(), runs.take()), ((3, 3, 3, 3), 3));
}

/// The value of a diamond's one side is cached and newer than what the evaluation has taken: it is made again, for it only.
#[test]
fn g15_a_cached_value_that_is_too_new_is_not_used() {
    let ([a], clock) = cells();
    a.set(1);
    let (b, b_runs) = derived(&clock, {
        let a = a.clone();
        move |cx| *cx.get(&a)
    });
    let (pair, _) = derived(&clock, {
        let (a, b) = (a.clone(), b.clone());
        move |cx| {
            let taken = *cx.get(&a);
            if taken == 1 {
                a.set(2);
                assert_eq!(*b.get(), 2, "an evaluation of its own");
            }
            (taken, *cx.get(&b), *cx.get(&b))
        }
    });
    assert_eq!(*pair.get(), (1, 1, 1));
    assert_eq!(b_runs.take(), 2);
    assert_eq!((*b.get(), b_runs.take()), (2, 0), "what the others see does not go back");
    assert_eq!(*pair.get(), (2, 2, 2));
}

#[test]
fn staleness_is_inherited_at_the_same_tick() {
    let ([a, b], clock) = cells();
    a.set(1);
    clock.advance(TTL / 2);
    b.set(2);
    let (sum, runs) = derived(&clock, {
        let (a, b) = (a.clone(), b.clone());
        move |cx| *cx.get(&a) + *cx.get(&b)
    });
    let (above, _) = derived(&clock, {
        let sum = sum.clone();
        move |cx| *cx.get(&sum)
    });
    assert_eq!(*above.get(), 3);
    let all = || [a.freshness(), sum.cell().freshness(), above.cell().freshness()];
    clock.advance(TTL / 2);
    assert_eq!(all(), [Freshness::Fresh; 3]);
    clock.advance(TICK);
    assert_eq!(all(), [Freshness::Stale; 3]);
    // Nobody gives the source a new value: it is served as it is, and not made again and again.
    assert_eq!((*sum.get(), *sum.get(), *above.get(), runs.take()), (3, 3, 3, 1));
    a.set(10);
    assert_eq!((*above.get(), runs.take()), (12, 1));
    assert_eq!(all(), [Freshness::Fresh; 3]);
    // The other one is now the first to go stale.
    clock.advance(TTL / 2);
    assert_eq!(all(), [Freshness::Fresh, Freshness::Stale, Freshness::Stale]);
}

#[test]
fn a_source_that_is_invalidated_or_cleared_makes_it_stale() {
    let ([a], clock) = cells();
    a.set(1);
    let (b, runs) = derived(&clock, {
        let a = a.clone();
        move |cx| *cx.get(&a)
    });
    b.get();
    a.invalidate();
    assert_eq!((b.cell().freshness(), *b.get(), runs.take()), (Freshness::Stale, 1, 1));
    a.set(2);
    assert_eq!((*b.get(), b.cell().freshness(), runs.take()), (2, Freshness::Fresh, 1));
    a.clear();
    assert_eq!(b.cell().freshness(), Freshness::Stale);
    let message = panic_message(|| b.get());
    assert!(message.contains("there is no value"), "{message}");
    a.set(3);
    assert_eq!(*b.get(), 3);
}

#[test]
fn a_lazy_source_is_built_when_it_is_due() {
    let clock = ManualClock::new();
    let builds = Runs::default();
    let lazy = Arc::new(LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), {
        let (builds, latest) = (builds.clone(), AtomicU32::new(0));
        move || {
            builds.count();
            latest.fetch_add(1, Ordering::Relaxed)
        }
    }));
    let (double, runs) = derived(&clock, {
        let lazy = Arc::clone(&lazy);
        move |cx| *cx.get(&lazy) * 2
    });
    assert_eq!((*double.get(), *double.get(), builds.take(), runs.take()), (0, 0, 1, 1));
    // The build of the source, by this very evaluation, does not make the result stale.
    assert_eq!(double.cell().freshness(), Freshness::Fresh);
    clock.advance(TTL + TICK);
    assert_eq!((*double.get(), *double.get(), builds.take(), runs.take()), (2, 2, 1, 1));
    assert_eq!(double.cell().freshness(), Freshness::Fresh);
}

#[test]
fn a_lazy_source_that_fails_is_asked_again_after_its_pause_only() {
    let clock = ManualClock::new();
    let (builds, is_down) = (Runs::default(), Arc::new(AtomicU32::new(0)));
    let policy = Policy::ttl(TTL).retry_backoff(TTL / 10, TTL / 10);
    let lazy = Arc::new(LazyDogpile::with_clock(policy, clock.clone(), {
        let (builds, is_down) = (builds.clone(), Arc::clone(&is_down));
        move || {
            builds.count();
            match is_down.load(Ordering::Relaxed) {
                0 => Ok(5_u32),
                number => Err(Down(number)),
            }
        }
    }));
    let (value, runs) = derived(&clock, {
        let lazy = Arc::clone(&lazy);
        move |cx| match cx.try_get(&lazy) {
            Ok(value) => Ok(*value),
            Err(error) => Err(error.downcast_ref::<Down>().map(|down| down.0)),
        }
    });
    assert_eq!((*value.get(), builds.take(), runs.take()), (Ok(5), 1, 1));
    is_down.store(7, Ordering::Relaxed);
    clock.advance(TTL + TICK);
    for _ in 0..3 {
        assert_eq!((*value.get(), runs.take()), (Ok(5), 0), "the old value will do");
    }
    assert_eq!(builds.take(), 1);
    // Without an old value the error is what there is to see; it is passed on, and seen anew after the pause.
    lazy.clear();
    assert_eq!((*value.get(), runs.take()), (Err(Some(7)), 1));
    assert_eq!((*value.get(), builds.take()), (Err(Some(7)), 0));
    is_down.store(0, Ordering::Relaxed);
    clock.advance(TTL / 10);
    assert_eq!((*value.get(), builds.take()), (Ok(5), 1));
}

#[test]
fn an_error_keeps_the_old_value_and_a_publication_of_a_source_ends_the_pause() {
    let ([a, b], clock) = cells();
    let runs = Runs::default();
    let ratio = Derived::with_clock(Policy::never_expires(), clock.clone(), {
        let (a, b, runs) = (a.clone(), b.clone(), runs.clone());
        move |cx| {
            runs.count();
            cx.try_get(&a)?.checked_div(*cx.try_get(&b)?).ok_or_else(|| BoxError::from(Down(0)))
        }
    });
    // Nothing to make it from, and no old value.
    assert!(matches!(ratio.try_get(), Err(RefreshError::Empty)));
    assert!(matches!(ratio.try_get(), Err(RefreshError::Empty)));
    assert_eq!(runs.take(), 1, "a pause runs");
    a.set(12);
    assert!(matches!(ratio.try_get(), Err(RefreshError::Empty)));
    b.set(4);
    assert_eq!((*ratio.try_get().unwrap(), runs.take()), (3, 2));
    b.set(0);
    for _ in 0..3 {
        assert_eq!(*ratio.try_get().unwrap(), 3);
    }
    assert_eq!(runs.take(), 1);
    assert!(ratio.cell().last_error().unwrap().is::<Down>());
    // Only the failed run, which had got so far, knew of this source's new value.
    b.set(6);
    assert_eq!((*ratio.try_get().unwrap(), runs.take()), (2, 1));
    assert!(ratio.cell().last_error().is_none());
    // Without a publication the pause has to end.
    b.set(0);
    assert_eq!((*ratio.try_get().unwrap(), runs.take()), (2, 1));
    clock.advance(Duration::from_millis(100));
    assert_eq!((*ratio.try_get().unwrap(), runs.take()), (2, 1));
}

#[test]
fn a_failure_that_was_overtaken_begins_no_pause() {
    let ([a], clock) = cells();
    a.set(0);
    let runs = Runs::default();
    let value = Derived::with_clock(Policy::never_expires(), clock, {
        let (a, runs) = (a.clone(), runs.clone());
        move |cx| {
            runs.count();
            match *cx.get(&a) {
                0 => {
                    a.set(1);
                    Err(Down(0))
                }
                value => Ok(value),
            }
        }
    });
    assert!(value.try_get().unwrap_err().is::<Down>());
    assert_eq!((*value.try_get().unwrap(), runs.take()), (1, 2));
}

#[test]
fn an_error_of_a_derived_source_is_passed_on() {
    let ([a], clock) = cells();
    a.set(0);
    let inner = Derived::with_clock(Policy::never_expires(), clock.clone(), {
        let a = a.clone();
        move |cx| match *cx.get(&a) {
            0 => Err(Down(9)),
            value => Ok(value),
        }
    });
    let outer = Derived::with_clock(Policy::never_expires(), clock, {
        let inner = inner.clone();
        move |cx| Ok::<_, RefreshError>(*cx.try_get(&inner)? + 1)
    });
    assert_eq!(outer.try_get().unwrap_err().downcast_ref::<Down>(), Some(&Down(9)));
    assert_eq!(inner.try_get().unwrap_err().downcast_ref::<Down>(), Some(&Down(9)));
    let message = panic_message(|| outer.get());
    assert!(message.contains("the source is down (9)"), "{message}");
    a.set(1);
    assert_eq!((*outer.try_get().unwrap(), *inner.try_get().unwrap()), (2, 1));
    // An old value of the inner one was made from another value of the source: it is not mixed in.
    a.set(0);
    assert_eq!((*outer.try_get().unwrap(), *inner.try_get().unwrap()), (2, 1));
    assert_eq!(outer.cell().last_error().unwrap().downcast_ref::<Down>(), Some(&Down(9)));
}

#[test]
fn g10_a_cycle_panics_or_is_an_error() {
    let slot = Arc::new(Mutex::new(None::<Derived<u32>>));
    let first = Derived::new({
        let slot = Arc::clone(&slot);
        move |cx| {
            let second = slot.lock().unwrap().clone().unwrap();
            *cx.get(&second) + 1
        }
    });
    let second = Derived::new({
        let first = first.clone();
        move |cx| *cx.get(&first) + 1
    });
    *slot.lock().unwrap() = Some(second.clone());
    for _ in 0..2 {
        let message = panic_message(|| first.get());
        assert!(message.contains("asks for itself"), "{message}");
    }

    let slot = Arc::new(Mutex::new(None::<Derived<u32>>));
    let third = Derived::try_new({
        let slot = Arc::clone(&slot);
        move |cx| {
            let fourth = slot.lock().unwrap().clone().unwrap();
            Ok::<_, RefreshError>(*cx.try_get(&fourth)? + 1)
        }
    });
    let fourth = Derived::try_new({
        let third = third.clone();
        move |cx| Ok::<_, RefreshError>(*cx.try_get(&third)? + 1)
    });
    *slot.lock().unwrap() = Some(fourth.clone());
    assert!(matches!(third.try_get(), Err(RefreshError::Reentrant)));
    assert!(matches!(fourth.try_get(), Err(RefreshError::Reentrant)));

    // Past the evaluation, by its own method.
    let slot = Arc::new(Mutex::new(None::<Derived<u32>>));
    let fifth = Derived::new({
        let slot = Arc::clone(&slot);
        move |_| {
            let itself = slot.lock().unwrap().clone().unwrap();
            *itself.get()
        }
    });
    *slot.lock().unwrap() = Some(fifth.clone());
    let message = panic_message(|| fifth.get());
    assert!(message.contains("asked for by its own closure"), "{message}");
    *slot.lock().unwrap() = None;
}

#[test]
fn a_panic_reaches_its_caller_and_poisons_nothing() {
    let ([a], clock) = cells();
    a.set(0);
    let (checked, _) = derived(&clock, {
        let a = a.clone();
        move |cx| {
            let value = *cx.get(&a);
            assert!(value != 0, "a planned panic");
            value
        }
    });
    let (above, _) = derived(&clock, {
        let checked = checked.clone();
        move |cx| *cx.get(&checked)
    });
    assert!(panic_message(|| above.get()).contains("a planned panic"));
    assert!(panic_message(|| checked.get()).contains("a planned panic"));
    a.set(1);
    assert_eq!((*above.get(), *checked.get()), (1, 1));
    a.set(0);
    assert!(panic_message(|| above.get()).contains("a planned panic"));
    assert_eq!(*above.get(), 1, "in the pause the old value is served");
    a.set(2);
    assert_eq!(*above.get(), 2);
}

#[test]
fn what_is_dropped_is_detached_and_freed() {
    let ([a], clock) = cells();
    a.set(1);
    let captured = Arc::new(());
    let (b, _) = derived(&clock, {
        let (a, captured) = (a.clone(), Arc::clone(&captured));
        move |cx| {
            let _ = &captured;
            *cx.get(&a)
        }
    });
    let (c, _) = derived(&clock, {
        let b = b.clone();
        move |cx| *cx.get(&b)
    });
    c.get();
    drop(b);
    assert_eq!(Arc::strong_count(&captured), 2, "the other one needs it");
    drop(c);
    assert_eq!(Arc::strong_count(&captured), 1);
    assert_eq!(Arc::strong_count(&a), 1, "nothing keeps the source");
    a.set(2);
}

#[test]
fn a_sources_old_value_is_not_kept_alive() {
    let ([], clock) = cells();
    let source = Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), clock.clone()));
    let old = source.set(String::from("old"));
    let (length, _) = derived(&clock, {
        let source = Arc::clone(&source);
        move |cx| cx.get(&source).len()
    });
    length.get();
    source.set(String::from("new"));
    assert_eq!(Arc::strong_count(&old), 1);
}

#[test]
fn from_a_sync_reader_cell_without_keeping_its_reader() {
    let clock = ManualClock::new();
    let source =
        SyncReaderCell::with_clock(Policy::ttl(TTL), clock.clone(), Drain::Wait(Duration::MAX), drop::<u32>);
    let source = Arc::new(source);
    source.set(1);
    let (double, runs) = derived(&clock, {
        let source = Arc::clone(&source);
        move |cx| *cx.get(&source) * 2
    });
    assert_eq!((*double.get(), source.readers()), (2, 0));
    // It would wait for ever for a reader that is kept.
    source.set(2);
    assert_eq!((*double.get(), runs.take()), (4, 2));

    // While a build has the write lock, an evaluation waits for its end.
    let (locked, gatekeeper) = gate();
    thread::scope(|scope| {
        let source = &source;
        scope.spawn(move || {
            source.request().no_cache().get_with_writer(|writer| {
                let lock = writer.acquire_write_lock();
                locked.pass();
                drop(lock);
                3
            })
        });
        gatekeeper.wait_for_arrival();
        let reader = scope.spawn(|| *double.get());
        eventually("it is elected", || double.cell().is_refreshing());
        gatekeeper.open();
        assert_eq!(reader.join().unwrap(), 6);
    });
}

#[test]
fn a_value_that_is_set_by_hand_is_served_until_a_source_publishes() {
    let ([a], clock) = cells();
    a.set(1);
    let (b, runs) = derived(&clock, {
        let a = a.clone();
        move |cx| *cx.get(&a)
    });
    let (c, _) = derived(&clock, {
        let b = b.clone();
        move |cx| *cx.get(&b) + 1
    });
    assert_eq!(*c.get(), 2);
    b.cell().set(100);
    assert_eq!((*b.get(), *c.get(), runs.take()), (100, 101, 1));
    a.set(2);
    assert_eq!((*b.get(), *c.get(), runs.take()), (2, 3, 1));
    // And what it is invalidated for by hand is made again, though no source has changed.
    b.cell().invalidate();
    assert_eq!((*b.get(), runs.take()), (2, 1));
}

#[test]
fn a_policy_of_its_own() {
    let ([a], clock) = cells();
    a.set(1);
    let runs = Runs::default();
    let polled = Derived::with_clock(Policy::ttl(TTL / 4), clock.clone(), {
        let (a, runs) = (a.clone(), runs.clone());
        move |cx| {
            runs.count();
            Ok::<_, RefreshError>(*cx.get(&a))
        }
    });
    let (above, _) = derived(&clock, {
        let polled = polled.clone();
        move |cx| *cx.get(&polled)
    });
    assert_eq!((*above.get(), runs.take()), (1, 1));
    clock.advance(TTL / 4 + TICK);
    assert_eq!(above.cell().freshness(), Freshness::Stale);
    assert_eq!((*above.get(), runs.take()), (1, 1));
    assert_eq!(above.cell().freshness(), Freshness::Fresh);
    // Without sources it depends on nothing but that.
    let constant = Derived::new(|_| 7);
    assert_eq!((*constant.get(), *constant.get()), (7, 7));
    assert_eq!(constant.cell().stats().builds, 1);
}

#[test]
fn a_reader_and_a_subscription_of_it() {
    let ([a], clock) = cells();
    a.set(1);
    let (b, runs) = derived(&clock, {
        let a = a.clone();
        move |cx| *cx.get(&a)
    });
    let mut reader = b.reader();
    let mut subscription = b.subscribe();
    assert!(!subscription.has_changed(), "a subscription makes nothing");
    assert_eq!((**reader.get(), **reader.get(), runs.take()), (1, 1, 1));
    assert_eq!(*subscription.wait_changed(), 1);
    a.set(2);
    assert!(!subscription.has_changed());
    assert_eq!((**reader.get(), *subscription.wait_changed(), runs.take()), (2, 2, 1));
    reader.release();
    assert_eq!(**reader.get(), 2);
    assert!(format!("{b:?} {reader:?}").contains("generation: 2"));
}

#[test]
fn eager_with_a_refresher() {
    let ([a], clock) = cells();
    let (b, _) = derived(&clock, {
        let a = a.clone();
        move |cx| *cx.get(&a) * 2
    });
    let (c, c_runs) = derived(&clock, {
        let b = b.clone();
        move |cx| *cx.get(&b) + 1
    });
    a.set(1);
    let mut subscription = c.subscribe();
    let refresher = c.spawn_refresher().unwrap();
    assert_eq!(*subscription.wait_changed(), 3);
    for value in 2..50 {
        a.set(value);
        // No reader makes it.
        while *subscription.wait_changed() != value * 2 + 1 {}
        assert_eq!(*b.cell().get().unwrap(), value * 2);
    }
    // The source goes stale and stays so: nothing to be made. Then it is published.
    let runs = c_runs.take();
    assert!(runs >= 49);
    clock.advance(TTL + TICK);
    a.set(100);
    while *subscription.wait_changed() != 201 {}
    drop(refresher);
    a.set(200);
    assert_eq!(*c.get(), 401);
}

#[test]
fn an_eager_value_wakes_from_its_pause_when_a_source_publishes() {
    let ([a], clock) = cells();
    a.set(0);
    let value = Derived::with_clock(Policy::never_expires(), clock, {
        let a = a.clone();
        move |cx| match *cx.get(&a) {
            0 => Err(io::Error::other("down")),
            value => Ok(value),
        }
    });
    let mut subscription = value.subscribe();
    let refresher = value.spawn_refresher().unwrap();
    eventually("it has failed", || refresher.consecutive_failures() >= 1);
    // The clock stands still: the pause does not end by itself.
    a.set(3);
    refresher.refresh_now();
    assert_eq!(*subscription.wait_changed(), 3);
}

#[test]
fn from_statics_of_every_kind() {
    static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires());
    static LAZY: LazyDogpile<u32> = LazyDogpile::new(TTL, || 2);
    static FALLIBLE: LazyDogpile<Result<u32, Down>> = LazyDogpile::new(TTL, || Ok(3));
    let sum =
        Derived::new(|cx| *cx.get(&CELL) + *cx.get(&LAZY) + *cx.get(&FALLIBLE).as_ref().as_ref().unwrap());
    let text = Derived::new({
        let sum = sum.clone();
        move |cx| format!("{} of {}", cx.get(&sum), cx.get(LAZY.cell()))
    });
    CELL.set(1);
    assert_eq!(*text.get(), "6 of 2");
}

/// Two threads at once, of which one has the lease of what both need: it is made twice, and nothing waits.
#[test]
fn a_value_that_another_thread_makes_is_not_waited_for() {
    let ([a], clock) = cells();
    a.set(1);
    let (inside, gatekeeper) = gate();
    let is_first = AtomicU32::new(0);
    let (slow, runs) = derived(&clock, {
        let a = a.clone();
        move |cx| {
            if is_first.fetch_add(1, Ordering::Relaxed) == 0 {
                inside.pass();
            }
            *cx.get(&a)
        }
    });
    let (above, _) = derived(&clock, {
        let slow = slow.clone();
        move |cx| *cx.get(&slow) + 1
    });
    thread::scope(|scope| {
        let first = scope.spawn(|| *slow.get());
        gatekeeper.wait_for_arrival();
        assert_eq!(*above.get(), 2);
        gatekeeper.open();
        assert_eq!(first.join().unwrap(), 1);
    });
    assert_eq!(runs.take(), 2);
    a.set(2);
    assert_eq!((*above.get(), runs.take()), (3, 1));
}

/// Whatever a publication wakes or calls finds that what was made from the old value is stale.
#[test]
fn g15_what_a_publication_wakes_reads_derived_values_of_the_new_one() {
    let ([a], clock) = cells();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let slot = Arc::new(Mutex::new(None::<OnClock<u32>>));
    // Attached before the derived value is.
    let hook = a.on_publish({
        let (slot, seen) = (Arc::clone(&slot), Arc::clone(&seen));
        move |snapshot| {
            let above = slot.lock().unwrap().clone().unwrap();
            seen.lock().unwrap().push((*snapshot.value, *above.get()));
        }
    });
    let (b, _) = derived(&clock, {
        let a = a.clone();
        move |cx| *cx.get(&a) * 2
    });
    let (above, _) = derived(&clock, {
        let b = b.clone();
        move |cx| *cx.get(&b) + 1
    });
    *slot.lock().unwrap() = Some(above.clone());
    for value in 1..4 {
        a.set(value);
    }
    assert_eq!(*seen.lock().unwrap(), [(1, 3), (2, 5), (3, 7)]);

    // A hook of a derived value delays nobody that the source's publication wakes.
    let (inside, gatekeeper) = gate();
    let delaying = above.on_change(move |_| inside.pass());
    thread::scope(|scope| {
        let a = &a;
        let subscriber = scope.spawn(move || {
            let mut subscription = a.subscribe();
            while *subscription.wait_changed() != 4 {}
        });
        eventually("it waits", || a.stats().waits == 1);
        scope.spawn(move || a.set(4));
        gatekeeper.wait_for_arrival();
        subscriber.join().unwrap();
        gatekeeper.open();
        gatekeeper.wait_for_arrival();
        gatekeeper.open();
    });
    drop((hook, delaying));
}

/// The inner one is in a retry pause when the outer one asks for it: the outer one was not linked to what the inner one waits for.
#[test]
fn a_value_that_fails_because_a_source_pauses_is_made_when_that_ones_source_publishes() {
    let ([a, b], clock) = cells();
    let inner = Derived::with_clock(Policy::never_expires(), clock.clone(), {
        let a = a.clone();
        move |cx| cx.try_get(&a).map(|value| *value)
    });
    let outer = Derived::with_clock(Policy::never_expires(), clock, {
        let (inner, b) = (inner.clone(), b.clone());
        move |cx| Ok::<_, RefreshError>(*cx.try_get(&b)? + *cx.try_get(&inner)?)
    });
    assert!(inner.try_get().is_err());
    b.set(2);
    assert!(outer.try_get().is_err());
    a.set(1);
    assert_eq!(*outer.try_get().unwrap(), 3);
}

#[test]
fn a_derived_value_is_asked_for_by_reference_and_by_value() {
    let ([source], clock) = cells();
    source.set(1);
    let (first, _) = derived(&clock, {
        let source = Arc::clone(&source);
        move |cx| *cx.get(Arc::clone(&source))
    });
    let (second, _) = derived(&clock, {
        let first = first.clone();
        move |cx| *cx.get(&first) + *cx.get(first.clone())
    });
    assert_eq!(*second.get(), 2);
    source.set(2);
    assert_eq!(*second.get(), 4);
}
