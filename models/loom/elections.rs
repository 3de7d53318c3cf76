//! Elections, waiting, and the ends of builds: G1, G5, G6, G7.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogpile_under_test::{
    Clock, DogpileCell, Lease, Lookup, ManualClock, Policy, RefreshError, Tick, Waited, model,
};

use crate::support::{Model, Noon, NoonCell, bound, cell, elect, fork, saw, stale_cell};

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "g1_g6_three_callers_of_an_empty_cell_share_one_build",
        preemptions: Some(2),
        body: three_callers_of_an_empty_cell_share_one_build,
        sees: &["one waited", "two waited"],
    },
    Model {
        name: "g1_two_callers_of_a_stale_cell_build_once",
        preemptions: Some(2),
        body: two_callers_of_a_stale_cell_build_once,
        sees: &["the old value", "the new value"],
    },
    Model {
        name: "g2_a_stale_reader_that_meets_the_lock_is_elected",
        preemptions: Some(3),
        body: a_stale_reader_that_meets_the_lock_is_elected,
        sees: &["elected"],
    },
    Model {
        name: "g1_a_late_winner_does_not_build",
        preemptions: Some(1),
        body: a_late_winner_does_not_build,
        sees: &["elected first", "elected for the new value", "came too late to build"],
    },
    Model {
        name: "g5_a_build_that_panics_is_taken_over_by_one",
        preemptions: Some(2),
        body: || {
            taken_over(|lease| {
                model::set_panicking(true);
                drop(lease);
                model::set_panicking(false);
            });
        },
        sees: &["both waited"],
    },
    Model {
        name: "g5_a_build_that_is_abandoned_is_taken_over_by_one",
        preemptions: Some(2),
        body: || taken_over(drop),
        sees: &["both waited"],
    },
    Model {
        name: "g7_waiters_share_the_error",
        preemptions: Some(2),
        body: waiters_share_the_error,
        sees: &["shared", "built"],
    },
    Model {
        name: "g6_a_value_that_is_published_and_cleared_strands_no_waiter",
        preemptions: Some(1),
        body: published_and_cleared,
        sees: &["handed over", "built"],
    },
    Model {
        name: "g6_a_value_that_has_expired_is_handed_to_a_waiter",
        preemptions: Some(1),
        body: a_value_that_has_expired_is_handed_to_a_waiter,
        sees: &["handed over"],
    },
    Model {
        name: "g6_g8_a_wait_ends_with_the_value_or_in_time",
        preemptions: Some(3),
        body: a_wait_ends_with_the_value_or_in_time,
        sees: &["handed over", "timed out"],
    },
    Model {
        name: "g1_a_build_that_hangs_is_superseded",
        preemptions: None,
        body: a_build_that_hangs_is_superseded,
        sees: &["superseded after a wait", "superseded at once"],
    },
    Model {
        name: "g1_g4_a_build_that_is_late_is_published_or_superseded",
        preemptions: Some(3),
        body: a_build_that_is_late_is_published_or_superseded,
        sees: &["published", "superseded, before there was another value", "superseded, and served"],
    },
];

fn three_callers_of_an_empty_cell_share_one_build() {
    let cell = cell();
    let others = [1, 2].map(|number| fork(&cell, move |cell| *cell.get_or_refresh(|| number)));
    let mine = *cell.get_or_refresh(|| 3);
    for other in others {
        assert_eq!(other.join().unwrap(), mine);
    }
    let stats = cell.stats();
    assert_eq!((stats.builds, stats.published), (1, 1));
    match stats.waits {
        1 => saw("one waited"),
        2 => saw("two waited"),
        _ => {}
    }
}

/// A caller that saw the old value as stale, and gets the lock after another one has replaced it, is served.
fn two_callers_of_a_stale_cell_build_once() {
    let cell = stale_cell(0);
    let read = |cell: &NoonCell<u32>| match *cell.get_or_refresh(|| 1) {
        0 => saw("the old value"),
        _ => saw("the new value"),
    };
    let other = fork(&cell, move |cell| read(&cell));
    read(&cell);
    other.join().unwrap();
    let stats = cell.stats();
    assert_eq!((stats.builds, stats.waits), (1, 0));
    assert_eq!(cell.get().as_deref(), Some(&1));
}

/// The value is stale before the `invalidate` and after it, and no build runs: so the reader is elected. It tries four times
/// under loom (`TRIES` in `src/cell/elect.rs`), and each time that it finds the lock taken costs a preemption.
fn a_stale_reader_that_meets_the_lock_is_elected() {
    let cell = stale_cell(0);
    let other = fork(&cell, |cell| cell.invalidate());
    match cell.lookup_owned() {
        Lookup::Elected(lease) => {
            saw("elected");
            drop(lease);
        }
        Lookup::Stale(_) => assert!(bound().is_none_or(|bound| bound > 3), "no caller is elected"),
        other => panic!("{other:?}"),
    }
    other.join().unwrap();
}

loom::thread_local! {
    static FIRST_LOOK: Cell<Option<u64>> = Cell::new(None);
}

/// A clock that moves on with each look at it, and notes the first one of each thread.
#[derive(Clone, Default)]
struct Ticking(Arc<AtomicU64>);

impl Clock for Ticking {
    fn now(&self) -> Tick {
        // Not loom's: it must order nothing and cost a model no step.
        let tick = self.0.fetch_add(1, Ordering::Relaxed);
        FIRST_LOOK.with(|look| look.set(look.get().or(Some(tick))));
        Tick::from_nanos(tick)
    }
}

/// A caller that saw the old value, and gets the lock after another stale one has replaced it, does not build: the value
/// that it would replace was published after it had looked at the clock (G1).
fn a_late_winner_does_not_build() {
    let clock = Ticking::default();
    let cell = Arc::new(DogpileCell::with_clock(Policy::never_expires(), clock.clone()));
    cell.set(0);
    cell.invalidate();
    FIRST_LOOK.with(Cell::take);
    let other = fork(&(Arc::clone(&cell), clock), |(cell, clock)| {
        if let Lookup::Elected(lease) = cell.lookup_owned() {
            // So it is stale from the beginning.
            cell.invalidate();
            lease.publish(clock.now().as_nanos());
        }
    });
    match cell.lookup_owned() {
        Lookup::Elected(lease) => {
            let published_after = **lease.previous().expect("never empty");
            let looked = FIRST_LOOK.with(Cell::get).expect("it is a question of time");
            assert!(published_after <= looked, "a build because of what it has not seen");
            saw(if published_after == 0 { "elected first" } else { "elected for the new value" });
        }
        Lookup::Stale(value) if *value > 0 => saw("came too late to build"),
        _ => {}
    }
    other.join().unwrap();
}

fn taken_over(end: fn(Lease<'static, u32, Noon>)) {
    let cell = cell();
    let lease = elect(&cell);
    let others = [1, 2].map(|number| fork(&cell, move |cell| *cell.get_or_refresh(|| number)));
    end(lease);
    let [one, two] = others.map(|other| other.join().unwrap());
    assert_eq!(one, two);
    let stats = cell.stats();
    assert_eq!((stats.builds, stats.published, stats.panicked + stats.abandoned), (2, 1, 1));
    if stats.waits >= 2 {
        saw("both waited");
    }
}

fn waiters_share_the_error() {
    let cell = cell();
    let lease = elect(&cell);
    let others = [1, 2].map(|number| {
        fork(&cell, move |cell| match cell.try_get_or_refresh(|| Ok::<u32, String>(number)) {
            Err(RefreshError::Build(error)) => Err(error),
            other => Ok(*other.expect("nothing else can go wrong")),
        })
    });
    let error = lease.fail("no route to host");
    let mut built = None;
    for other in others {
        match other.join().unwrap() {
            Err(shared) => {
                assert!(shared.ptr_eq(&error));
                saw("shared");
            }
            Ok(value) => {
                assert_eq!(value, *built.get_or_insert(value));
                saw("built");
            }
        }
    }
    assert_eq!(cell.stats().builds, if built.is_some() { 2 } else { 1 });
}

fn published_and_cleared() {
    let cell = cell();
    let lease = elect(&cell);
    let other = fork(&cell, |cell| *cell.get_or_refresh(|| 2));
    lease.publish(1);
    cell.clear();
    match other.join().unwrap() {
        1 => saw("handed over"),
        _ => saw("built"),
    }
}

fn a_value_that_has_expired_is_handed_to_a_waiter() {
    let policy = Policy::never_expires().stale_while_refresh(Duration::ZERO);
    let cell = Arc::new(DogpileCell::with_clock(policy, Noon));
    let lease = elect(&cell);
    // So what is published is served to no caller but the waiters.
    cell.invalidate();
    let other = fork(&cell, |cell| match cell.lookup_owned() {
        Lookup::Pending(pending) => match pending.wait() {
            Waited::Published(value) => {
                assert_eq!(*value, 1);
                saw("handed over");
            }
            other => panic!("{other:?}"),
        },
        // Too late: the value was there before this thread waited.
        Lookup::Elected(_) | Lookup::Stale(_) => {}
        other => panic!("{other:?}"),
    });
    lease.publish(1);
    other.join().unwrap();
    assert!(cell.get().is_none());
}

const LIMIT: Duration = Duration::from_nanos(10);

fn a_wait_ends_with_the_value_or_in_time() {
    let clock = ManualClock::new();
    let cell = Arc::new(DogpileCell::with_clock(Policy::never_expires(), clock.clone()));
    let lease = elect(&cell);
    let waiter = fork(&cell, |cell| {
        let Lookup::Pending(pending) = cell.lookup_owned() else { return };
        match pending.wait_timeout(LIMIT) {
            Ok(Waited::Published(value)) => {
                assert_eq!(*value, 1);
                saw("handed over");
            }
            Ok(_) => panic!("the build was neither abandoned nor failed"),
            Err(_) => saw("timed out"),
        }
    });
    let timer = fork(&clock, |clock| clock.advance(LIMIT));
    lease.publish(1);
    waiter.join().unwrap();
    timer.join().unwrap();
}

fn timed_out_cell() -> (Arc<DogpileCell<u32, ManualClock>>, ManualClock) {
    let clock = ManualClock::new();
    let policy = Policy::never_expires().lease_timeout(LIMIT);
    (Arc::new(DogpileCell::with_clock(policy, clock.clone())), clock)
}

fn a_build_that_hangs_is_superseded() {
    let (cell, clock) = timed_out_cell();
    let hangs = elect(&cell);
    let other = fork(&cell, |cell| *cell.get_or_refresh(|| 2));
    clock.advance(2 * LIMIT);
    // Whether it has waited before or comes late.
    assert_eq!(other.join().unwrap(), 2);
    let stats = cell.stats();
    assert_eq!((stats.builds, stats.superseded), (2, 1));
    saw(if stats.waits > 0 { "superseded after a wait" } else { "superseded at once" });
    // Too late: its caller gets the value that has taken its place.
    assert_eq!(*hangs.publish(1), 2);
    assert_eq!(cell.get().as_deref(), Some(&2));
    assert_eq!(cell.generation(), 1);
}

fn a_build_that_is_late_is_published_or_superseded() {
    let (cell, clock) = timed_out_cell();
    let late = elect(&cell);
    clock.advance(2 * LIMIT);
    let other = fork(&cell, |cell| *cell.get_or_refresh(|| 2));
    let mine = *late.publish(1);
    let theirs = other.join().unwrap();
    let stats = cell.stats();
    assert_eq!(stats.published, 1);
    assert_eq!(cell.get().as_deref(), Some(&theirs));
    if stats.superseded == 0 {
        assert_eq!((mine, theirs, stats.builds), (1, 1, 1));
        saw("published");
    } else {
        assert_eq!((theirs, stats.builds), (2, 2));
        saw(if mine == 1 { "superseded, before there was another value" } else { "superseded, and served" });
    }
}
