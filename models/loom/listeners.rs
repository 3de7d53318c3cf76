//! Subscriptions, hooks and derived values: no publication is missed, and nothing is mixed.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dogpile_under_test::{Derived, RefreshError};
use loom::sync::Mutex;
use loom::sync::atomic::AtomicBool;

use crate::support::{Model, Noon, NoonCell, cell, fork, policy, saw};
use crate::tasks::{block_on, poll_once};

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "a_subscription_misses_no_publication",
        preemptions: Some(2),
        body: a_subscription_misses_no_publication,
        sees: &["waited", "at once", "the latest one only"],
    },
    Model {
        name: "a_wait_that_is_cancelled_costs_another_nothing",
        preemptions: Some(2),
        body: a_wait_that_is_cancelled_costs_another_nothing,
        sees: &["cancelled", "not cancelled", "suspended"],
    },
    Model {
        name: "a_hook_gets_each_publication_in_order",
        preemptions: Some(3),
        body: a_hook_gets_each_publication_in_order,
        sees: &["on another's thread", "each on its own thread"],
    },
    Model {
        name: "the_drop_of_a_hook_waits_for_its_callback",
        preemptions: None,
        body: the_drop_of_a_hook_waits_for_its_callback,
        sees: &["called", "not called"],
    },
    Model {
        name: "g15_a_derived_value_follows_its_source",
        preemptions: Some(2),
        body: a_derived_value_follows_its_source,
        sees: &["made from the old value", "made from the new value"],
    },
    Model {
        name: "g15_a_value_whose_source_had_nothing_newer_follows_it",
        preemptions: Some(2),
        body: a_value_whose_source_had_nothing_newer_follows_it,
        sees: &["the old value", "the new value"],
    },
    Model {
        name: "g15_a_diamond_mixes_nothing",
        preemptions: Some(2),
        body: a_diamond_mixes_nothing,
        sees: &["the first", "the second", "the third"],
    },
];

fn a_subscription_misses_no_publication() {
    let cell = cell();
    cell.set(1);
    let subscriber = fork(&cell, |cell: Arc<NoonCell<u32>>| {
        let mut subscription = cell.subscribe();
        let first = *subscription.wait_changed();
        if first == 2 {
            saw("the latest one only");
        } else {
            assert_eq!((first, *subscription.wait_changed()), (1, 2));
        }
    });
    cell.set(2);
    // Loom fails if it waits for ever.
    subscriber.join().unwrap();
    saw(if cell.stats().waits == 0 { "at once" } else { "waited" });
}

fn a_wait_that_is_cancelled_costs_another_nothing() {
    let cell = cell();
    let fickle = fork(&cell, |cell: Arc<NoonCell<u32>>| {
        let mut subscription = cell.subscribe();
        let is_pending = poll_once(pin!(subscription.changed())).is_pending();
        saw(if is_pending { "cancelled" } else { "not cancelled" });
        // It has lost nothing.
        if is_pending {
            assert_eq!(*block_on(subscription.changed()), 1);
        }
    });
    let thread = fork(&cell, |cell: Arc<NoonCell<u32>>| *cell.subscribe().wait_changed());
    cell.set(1);
    fickle.join().unwrap();
    assert_eq!(thread.join().unwrap(), 1);
}

fn a_hook_gets_each_publication_in_order() {
    let cell = cell();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let hook = cell.on_publish({
        let calls = Arc::clone(&calls);
        move |snapshot| {
            calls.lock().unwrap().push((snapshot.generation, *snapshot.value, loom::thread::current().id()))
        }
    });
    let other = fork(&cell, |cell: Arc<NoonCell<_>>| {
        let this = loom::thread::current().id();
        cell.set(this);
    });
    cell.set(loom::thread::current().id());
    other.join().unwrap();
    drop(hook);
    let calls = calls.lock().unwrap();
    assert_eq!(calls.iter().map(|(generation, ..)| *generation).collect::<Vec<_>>(), [1, 2]);
    let own = calls.iter().all(|(_, publisher, caller)| publisher == caller);
    saw(if own { "each on its own thread" } else { "on another's thread" });
}

fn the_drop_of_a_hook_waits_for_its_callback() {
    let cell = cell();
    // Loom's, so that a switch is possible in the callback.
    let (running, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let hook = cell.on_publish({
        let (running, calls) = (Arc::clone(&running), Arc::clone(&calls));
        move |_| {
            running.store(true, Ordering::Relaxed);
            calls.fetch_add(1, Ordering::Relaxed);
            running.store(false, Ordering::Relaxed);
        }
    });
    let publisher = fork(&cell, |cell: Arc<NoonCell<u32>>| {
        cell.set(1);
    });
    drop(hook);
    assert!(!running.load(Ordering::Relaxed), "it runs after the drop");
    let before = calls.load(Ordering::Relaxed);
    publisher.join().unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), before, "it is called after the drop");
    saw(if before == 0 { "not called" } else { "called" });
}

type Made<T> = Derived<T, Noon>;

fn derived<T: Send + Sync + 'static>(
    make: impl Fn(&dogpile_under_test::Cx) -> T + Send + Sync + 'static,
) -> Made<T> {
    Derived::with_clock(policy(), Noon, move |cx| Ok::<_, RefreshError>(make(cx)))
}

/// A read against a publication: what is read after both is the newest, whatever came first.
fn a_derived_value_follows_its_source() {
    let source = cell();
    source.set(1);
    let double = derived({
        let source = Arc::clone(&source);
        move |cx| *cx.get(&source) * 2
    });
    let reader = fork(&double, |double: Made<u32>| *double.get());
    source.set(2);
    // The publication has ended: by whom this is made, it is made from that, or else it is called stale.
    let after = *double.get();
    if double.cell().freshness() == dogpile_under_test::Freshness::Fresh && !double.cell().is_refreshing() {
        assert_eq!(after.max(*double.get()), 4);
    }
    let read = reader.join().unwrap();
    assert!([2, 4].contains(&read));
    assert_eq!(*double.get(), 4);
    saw(if read == 2 { "made from the old value" } else { "made from the new value" });
}

/// A read that finds that a stale source has nothing newer, so that the next reads do not ask it, against a publication of it.
fn a_value_whose_source_had_nothing_newer_follows_it() {
    let source = cell();
    source.set(1);
    let double = derived({
        let source = Arc::clone(&source);
        move |cx| *cx.get(&source) * 2
    });
    assert_eq!(*double.get(), 2);
    source.invalidate();
    let reader = fork(&double, |double: Made<u32>| *double.get());
    source.set(2);
    let read = reader.join().unwrap();
    assert_eq!(*double.get(), 4);
    saw(if read == 2 { "the old value" } else { "the new value" });
}

fn a_diamond_mixes_nothing() {
    let source = cell();
    source.set(1);
    let sides = [2, 3].map(|factor| {
        let source = Arc::clone(&source);
        derived(move |cx| *cx.get(&source) * factor)
    });
    let both = derived({
        let [left, right] = sides.clone();
        move |cx| (*cx.get(&left), *cx.get(&right))
    });
    let publisher = fork(&source, |source: Arc<NoonCell<u32>>| {
        source.set(2);
        source.set(3);
    });
    let (left, right) = *both.get();
    assert_eq!(left / 2, right / 3);
    saw(["the first", "the second", "the third"][usize::try_from(left / 2 - 1).unwrap()]);
    publisher.join().unwrap();
    assert_eq!(*both.get(), (6, 9));
}
