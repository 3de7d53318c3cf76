//! What readers see while values are published, and the fence: G2, G3, G4.

use std::sync::Arc;
use std::time::Duration;

use dogpile_under_test::{DogpileCell, Freshness, Lookup, Policy};
use loom::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Model, Noon, NoonCell, Still, cell, elect, fork, saw, stale_cell};

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "g2_stale_reads_find_a_value_while_one_is_published",
        preemptions: Some(3),
        body: stale_reads_find_a_value_while_one_is_published,
        sees: &["the old value", "the new value"],
    },
    Model {
        name: "g2_an_expired_value_is_not_served_while_its_successor_is_published",
        preemptions: Some(3),
        body: an_expired_value_is_not_served_while_its_successor_is_published,
        sees: &["nothing", "the new value"],
    },
    Model {
        name: "g2_what_was_never_to_be_served_is_not_served",
        preemptions: Some(1),
        body: what_was_never_to_be_served_is_not_served,
        sees: &["nothing", "the old value"],
    },
    Model {
        name: "g2_what_was_never_to_be_served_is_not_served_between_two_values",
        preemptions: Some(1),
        body: what_was_never_to_be_served_is_not_served_between_two_values,
        sees: &["nothing", "the old value", "the new value"],
    },
    Model {
        name: "g2_a_value_is_served_by_its_own_tick",
        preemptions: Some(2),
        body: a_value_is_served_by_its_own_tick,
        sees: &["nothing", "the old value"],
    },
    Model {
        name: "g2_what_is_set_for_a_value_is_not_taken_for_its_predecessor",
        preemptions: None,
        body: what_is_set_for_a_value_is_not_taken_for_its_predecessor,
        sees: &["nothing", "the new value"],
    },
    Model {
        name: "g3_generations_do_not_go_back_for_one_thread",
        preemptions: Some(2),
        body: generations_do_not_go_back_for_one_thread,
        sees: &["old and new", "new and newer"],
    },
    Model {
        name: "g3_generations_do_not_go_back_between_threads_that_synchronise",
        preemptions: Some(3),
        body: generations_do_not_go_back_between_threads_that_synchronise,
        sees: &["told"],
    },
    Model {
        name: "g3_a_snapshot_is_of_one_publication",
        preemptions: Some(2),
        body: a_snapshot_is_of_one_publication,
        sees: &["the first", "the second", "the third"],
    },
    Model {
        name: "g3_a_reader_handle_keeps_up",
        preemptions: Some(2),
        body: a_reader_handle_keeps_up,
        sees: &["old", "old and new", "new"],
    },
    Model {
        name: "g5_a_reader_handle_notices_that_a_build_is_given_up",
        preemptions: None,
        body: a_reader_handle_notices_that_a_build_is_given_up,
        sees: &["before", "after", "before and after"],
    },
    Model {
        name: "g3_a_reader_of_a_value_sees_the_writes_before_it",
        preemptions: Some(1),
        body: a_reader_of_a_value_sees_the_writes_before_it,
        sees: &["read", "handed over"],
    },
    Model {
        name: "g3_a_thread_that_sees_the_end_of_a_build_sees_its_value",
        preemptions: None,
        body: a_thread_that_sees_the_end_of_a_build_sees_its_value,
        sees: &["running", "ended"],
    },
    Model {
        name: "g4_invalidate_against_a_running_build",
        preemptions: Some(2),
        body: invalidate_against_a_running_build,
        sees: &["published before", "published after"],
    },
    Model {
        name: "g4_invalidate_against_a_running_build_that_is_waited_for",
        preemptions: Some(3),
        body: invalidate_against_a_running_build_that_is_waited_for,
        sees: &["waited"],
    },
    Model {
        name: "g4_invalidate_against_a_build_that_renews",
        preemptions: Some(3),
        body: invalidate_against_a_build_that_renews,
        sees: &["renewed before", "renewed after"],
    },
    Model {
        name: "g4_no_cache_against_a_running_build",
        preemptions: Some(3),
        body: no_cache_against_a_running_build,
        sees: &["waited"],
    },
    Model {
        name: "g4_invalidate_if_current_against_a_running_build",
        preemptions: Some(3),
        body: invalidate_if_current_against_a_running_build,
        sees: &["one", "none"],
    },
    Model {
        name: "g4_no_cache_against_a_running_build_and_a_restore",
        preemptions: Some(3),
        body: no_cache_against_a_running_build_and_a_restore,
        sees: &["waited", "built at once"],
    },
    Model {
        name: "g4_clear_against_a_running_build",
        preemptions: None,
        body: clear_against_a_running_build,
        sees: &["cleared", "kept out"],
    },
    Model {
        name: "g4_set_against_a_running_build",
        preemptions: None,
        body: set_against_a_running_build,
        sees: &["replaced", "displaced"],
    },
    Model {
        name: "g4_set_and_clear_against_a_running_build",
        preemptions: None,
        body: set_and_clear_against_a_running_build,
        sees: &["set is left", "nothing is left"],
    },
];

/// A reader in each way there is, while the builder is stopped anywhere.
fn stale_reads_find_a_value_while_one_is_published() {
    let cell = stale_cell(1);
    let lease = elect(&cell);
    let reader = fork(&cell, |cell| {
        let value = *cell.get_or_refresh(|| unreachable!("another caller builds"));
        let value = value.max(cell.load().map(|guard| *guard).expect("there is always one"));
        assert!(matches!(cell.freshness(), Freshness::Stale | Freshness::Fresh));
        assert_eq!(cell.stats().waits, 0);
        saw(if value == 1 { "the old value" } else { "the new value" });
    });
    lease.publish(2);
    reader.join().unwrap();
}

const AGE: Duration = Duration::from_nanos(10);

/// A cell that holds 1, which has expired.
fn expired_cell() -> Arc<DogpileCell<u64, Still>> {
    let clock = Still::default();
    let policy = Policy::ttl(AGE / 2).stale_while_refresh(AGE / 5);
    let cell = DogpileCell::with_clock(policy, clock.clone());
    cell.set(1);
    clock.advance(AGE);
    Arc::new(cell)
}

/// The word that says until when to serve without a question is not taken for another value's.
fn an_expired_value_is_not_served_while_its_successor_is_published() {
    let cell = expired_cell();
    let reader = fork(&cell, |cell| {
        saw(match cell.get().as_deref() {
            None => "nothing",
            Some(2) => "the new value",
            other => panic!("{other:?}"),
        });
    });
    cell.set(2);
    reader.join().unwrap();
}

/// The same the other way round: fresh, then replaced by what is out of date when it comes.
fn what_was_never_to_be_served_is_not_served() {
    read_while_2_is_published_as_stale(|_| ());
}

/// Nor if the one after it is served until the same tick as the one before.
fn what_was_never_to_be_served_is_not_served_between_two_values() {
    read_while_2_is_published_as_stale(|cell| drop(cell.set(3)));
}

fn read_while_2_is_published_as_stale(and_then: impl FnOnce(&NoonCell<u64>)) {
    let policy = Policy::never_expires().stale_while_refresh(Duration::ZERO);
    let cell = Arc::new(DogpileCell::with_clock(policy, Noon));
    cell.set(1);
    let reader = fork(&cell, |cell| {
        saw(match cell.get().as_deref() {
            None => "nothing",
            Some(1) => "the old value",
            Some(3) => "the new value",
            other => panic!("{other:?}"),
        });
    });
    let built = cell.request().no_cache().get(|| {
        cell.invalidate();
        2
    });
    assert_eq!(*built, 2);
    and_then(&cell);
    reader.join().unwrap();
}

/// Nor while `sequence` stands still because the value is just being replaced.
fn a_value_is_served_by_its_own_tick() {
    let clock = Still::default();
    let policy = Policy::ttl(Duration::ZERO).stale_while_refresh(Duration::ZERO);
    let cell = Arc::new(DogpileCell::with_clock(policy, clock.clone()));
    elect(&cell).publish_for(1, Duration::MAX);
    let reader = fork(&cell, move |cell| {
        // The other thread has looked at it already: its value has expired before it is there.
        clock.advance(Duration::from_nanos(1));
        saw(match cell.get().as_deref() {
            None => "nothing",
            Some(1) => "the old value",
            other => panic!("{other:?}"),
        });
    });
    cell.set(2);
    reader.join().unwrap();
}

/// Nor if it is set again, by an election.
fn what_is_set_for_a_value_is_not_taken_for_its_predecessor() {
    let cell = expired_cell();
    // So that a load may still find it.
    let kept = cell.snapshot();
    let reader = fork(&cell, |cell| {
        saw(match cell.get_unless_due().as_deref() {
            None => "nothing",
            Some(2) => "the new value",
            other => panic!("{other:?}"),
        });
    });
    cell.set(2);
    cell.invalidate();
    let lease = elect(&cell);
    reader.join().unwrap();
    drop((lease, kept));
}

/// Values that are equal to their generation.
fn numbered() -> Arc<NoonCell<u64>> {
    let cell = cell();
    cell.set(1);
    cell
}

fn generations_do_not_go_back_for_one_thread() {
    let cell = numbered();
    let reader = fork(&cell, |cell| {
        // By different ways.
        let first = *cell.get_or_refresh(|| unreachable!("never stale"));
        let second = cell.generation();
        let third = cell.get().map(|value| *value).expect("never empty");
        assert!(first <= second && second <= third, "{first} {second} {third}");
        match (first, third) {
            (1, 2 | 3) => saw("old and new"),
            (2, 3) => saw("new and newer"),
            _ => {}
        }
    });
    cell.set(2);
    cell.set(3);
    reader.join().unwrap();
}

fn generations_do_not_go_back_between_threads_that_synchronise() {
    let cell = numbered();
    let told = Arc::new(AtomicUsize::new(0));
    let teller = fork(&(Arc::clone(&cell), Arc::clone(&told)), |(cell, told)| {
        let seen = *cell.get_or_refresh(|| unreachable!("never stale"));
        told.store(usize::try_from(seen).unwrap(), Ordering::Release);
    });
    let writer = fork(&cell, |cell| drop(cell.set(2)));
    let seen = told.load(Ordering::Acquire);
    let mine = *cell.get_or_refresh(|| unreachable!("never stale"));
    assert!(mine >= seen as u64, "{mine} after {seen}");
    if seen == 2 {
        saw("told");
    }
    teller.join().unwrap();
    writer.join().unwrap();
}

/// Each word of the record is another one for the first value than for those that come.
fn a_snapshot_is_of_one_publication() {
    let cell = expired_cell();
    let reader = fork(&cell, |cell| {
        let snapshot = cell.snapshot().expect("never empty");
        let (value, generation) = (*snapshot.value, snapshot.generation);
        let expected =
            if value == 1 { (AGE, Freshness::Expired) } else { (Duration::ZERO, Freshness::Fresh) };
        assert_eq!((generation, (snapshot.age, snapshot.freshness)), (value, expected));
        saw(["the first", "the second", "the third"][usize::try_from(value - 1).unwrap()]);
    });
    cell.set(2);
    cell.set(3);
    reader.join().unwrap();
}

fn a_reader_handle_keeps_up() {
    let cell = numbered();
    let reader = fork(&cell, |cell| {
        let mut reader = cell.reader();
        let first = reader.get().map(|value| **value);
        let between = cell.get().map(|value| *value);
        let second = reader.get().map(|value| **value);
        assert!(first <= between && between <= second, "{first:?} {between:?} {second:?}");
        saw(match (first, second) {
            (Some(1), Some(1)) => "old",
            (Some(1), Some(2)) => "old and new",
            (Some(2), Some(2)) => "new",
            other => panic!("{other:?}"),
        });
    });
    cell.set(2);
    reader.join().unwrap();
}

/// While a build runs, it serves the stale value. Not for longer.
fn a_reader_handle_notices_that_a_build_is_given_up() {
    let cell = stale_cell(1);
    let lease = elect(&cell);
    let told = Arc::new(AtomicUsize::new(0));
    let reader = fork(&(Arc::clone(&cell), Arc::clone(&told)), |(cell, told)| {
        let mut reader = cell.reader();
        let is_served = reader.get_unless_due().is_some();
        let is_over = told.load(Ordering::Acquire) == 1;
        if is_over {
            assert_eq!(reader.get_unless_due(), None);
        }
        match (is_served, is_over) {
            (true, true) => saw("before and after"),
            (true, false) => saw("before"),
            (false, _) => saw("after"),
        }
    });
    drop(lease);
    told.store(1, Ordering::Release);
    reader.join().unwrap();
}

fn a_reader_of_a_value_sees_the_writes_before_it() {
    let cell = cell();
    let lease = elect(&cell);
    let trace = Arc::new(AtomicUsize::new(0));
    let others = [(); 2].map(|()| {
        fork(&(Arc::clone(&cell), Arc::clone(&trace)), |(cell, trace)| {
            let value = match cell.get() {
                Some(value) => {
                    saw("read");
                    value
                }
                None => {
                    saw("handed over");
                    cell.get_or_refresh(|| unreachable!("another caller builds"))
                }
            };
            // Relaxed: the order comes with the value.
            assert_eq!((*value, trace.load(Ordering::Relaxed)), (7, 1));
        })
    });
    trace.store(1, Ordering::Relaxed);
    lease.publish(7);
    for other in others {
        other.join().unwrap();
    }
}

fn a_thread_that_sees_the_end_of_a_build_sees_its_value() {
    let cell = cell();
    let lease = elect(&cell);
    let other = fork(&cell, |cell| {
        if cell.is_refreshing() {
            saw("running");
        } else {
            assert_eq!(cell.get().as_deref(), Some(&1));
            saw("ended");
        }
    });
    lease.publish(1);
    other.join().unwrap();
}

fn invalidate_against_a_running_build() {
    let cell = stale_cell(0);
    let lease = elect(&cell);
    let other = fork(&cell, |cell| {
        let before = cell.freshness();
        cell.invalidate();
        assert_eq!(cell.freshness(), Freshness::Stale, "its build began before");
        saw(if before == Freshness::Fresh { "published before" } else { "published after" });
    });
    lease.publish(1);
    other.join().unwrap();
    assert_eq!(cell.freshness(), Freshness::Stale);
    assert_eq!(cell.get().as_deref(), Some(&1));
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
}

fn invalidate_against_a_running_build_that_is_waited_for() {
    let cell = cell();
    let lease = elect(&cell);
    let other = fork(&cell, |cell| {
        cell.invalidate();
        // A build that began before is not good enough, also if its value is handed over.
        assert_eq!(*cell.request().max_stale(Duration::ZERO).get(|| 2), 2);
        if cell.stats().waits > 0 {
            saw("waited");
        }
    });
    lease.publish(1);
    other.join().unwrap();
}

fn invalidate_against_a_build_that_renews() {
    let cell = stale_cell(0);
    let lease = elect(&cell);
    let other = fork(&cell, |cell| {
        let before = cell.freshness();
        cell.invalidate();
        assert_eq!(cell.freshness(), Freshness::Stale, "its build began before");
        saw(if before == Freshness::Fresh { "renewed before" } else { "renewed after" });
    });
    assert!(lease.renew().is_ok_and(|value| *value == 0));
    other.join().unwrap();
    assert_eq!((cell.freshness(), cell.generation()), (Freshness::Stale, 2));
}

fn no_cache_against_a_running_build() {
    let cell = cell();
    let lease = elect(&cell);
    let other = fork(&cell, |cell| {
        assert_eq!(*cell.request().no_cache().get(|| 2), 2, "its build began before");
        if cell.stats().waits > 0 {
            saw("waited");
        }
    });
    lease.publish(1);
    other.join().unwrap();
    assert_eq!(cell.get().as_deref(), Some(&2));
}

/// Two callers find out that what they got is wrong. At most one of them declares it stale, and the value that replaces it
/// is fenced only if that was before.
fn invalidate_if_current_against_a_running_build() {
    let cell = cell();
    let seen = cell.set(1);
    let Lookup::Elected(lease) = cell.request_owned().no_cache().lookup() else { panic!("no build runs") };
    let callers = [(); 2].map(|()| {
        fork(&(Arc::clone(&cell), Arc::clone(&seen)), |(cell, seen)| cell.invalidate_if_current(&seen))
    });
    assert_eq!(*lease.publish(2), 2);
    let declared =
        callers.map(|caller| caller.join().unwrap()).into_iter().filter(|declared| *declared).count();
    assert!(declared <= 1, "it was declared stale twice");
    assert_eq!(cell.get().as_deref(), Some(&2));
    assert_eq!(cell.freshness(), if declared == 1 { Freshness::Stale } else { Freshness::Fresh });
    saw(if declared == 1 { "one" } else { "none" });
}

/// A `restore` displaces no build, so a value whose build began earlier may be published after it. What is restored was made
/// before the call, unless its age is zero; the build began before the call. Neither meets `no_cache`.
fn no_cache_against_a_running_build_and_a_restore() {
    let cell = cell();
    let lease = elect(&cell);
    let other = fork(&cell, |cell| {
        assert_eq!(*cell.request().no_cache().get(|| 2), 2, "made before the call");
        saw(if cell.stats().waits > 0 { "waited" } else { "built at once" });
    });
    cell.restore(9, Duration::from_nanos(1));
    lease.publish(1);
    other.join().unwrap();
}

fn clear_against_a_running_build() {
    let cell = cell();
    let lease = elect(&cell);
    let other = fork(&cell, |cell| {
        let cleared = cell.clear();
        assert!(cell.get().is_none(), "its build began before");
        saw(if cleared.is_some() { "cleared" } else { "kept out" });
    });
    assert_eq!(*lease.publish(1), 1, "its own caller gets it");
    other.join().unwrap();
    assert!(cell.get().is_none());
}

fn set_against_a_running_build() {
    let cell = cell();
    let lease = elect(&cell);
    let other = fork(&cell, |cell| {
        cell.set(9);
        assert_eq!(cell.get().as_deref(), Some(&9));
    });
    match *lease.publish(1) {
        1 => saw("replaced"),
        value => {
            assert_eq!(value, 9);
            saw("displaced");
        }
    }
    other.join().unwrap();
    assert_eq!(cell.get().as_deref(), Some(&9));
    assert_eq!(cell.freshness(), Freshness::Fresh);
}

fn set_and_clear_against_a_running_build() {
    let cell = cell();
    let lease = elect(&cell);
    let sets = fork(&cell, |cell| drop(cell.set(9)));
    let clears = fork(&cell, |cell| drop(cell.clear()));
    lease.publish(1);
    sets.join().unwrap();
    clears.join().unwrap();
    match cell.get().as_deref() {
        Some(9) => saw("set is left"),
        None => saw("nothing is left"),
        Some(value) => panic!("{value} was begun before either"),
    }
}
