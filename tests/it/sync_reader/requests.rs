//! Conditions, and what else a `SyncReaderCell` shares with a `DogpileCell`.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dogpile::{
    Drain, Freshness, ManualClock, Policy, ReaderArc, RefreshError, Refreshed, Refresher, Request,
    SyncReaderCell,
};

use super::{WAIT, background, logged, strict};
use crate::support::{TICK, TTL, eventually, gate};

type Cell = SyncReaderCell<u32, ManualClock>;
type Conditions = fn(Request<'_, u32, ManualClock, Cell>) -> Request<'_, u32, ManualClock, Cell>;

/// Whether a write section runs, and over which old value.
fn section(cell: &Cell, conditions: Conditions) -> Option<u32> {
    let mut old = None;
    let value = conditions(cell.request()).get_with_writer(|writer| {
        old = writer.acquire_write_lock().old().copied();
        9
    });
    assert_eq!(*value == 9, old.is_some());
    old
}

#[test]
fn g12_conditions_reach_the_write_section() {
    let met: [Conditions; 6] = [
        |request| request,
        |request| request.max_stale(Duration::ZERO),
        |request| request.max_age(TTL / 2),
        |request| request.newer_than(1),
        |request| request.wait_at_most(Duration::ZERO),
        |request| request.or_stale().max_stale(Duration::ZERO).max_age(TTL).newer_than(1),
    ];
    let unmet: [Conditions; 5] = [
        |request| request.max_age(TTL / 2 - TICK),
        |request| request.newer_than(2),
        |request| request.no_cache(),
        |request| request.no_cache().or_stale(),
        |request| request.max_stale(Duration::ZERO).max_age(TTL / 4).wait_at_most(Duration::ZERO),
    ];
    // Beside a fresh value of the second generation.
    let fresh = || {
        let (cell, clock, _log) = background();
        cell.set(0);
        cell.set(1);
        clock.advance(TTL / 2);
        cell
    };
    for (number, conditions) in met.into_iter().enumerate() {
        assert_eq!(section(&fresh(), conditions), None, "met: {number}");
    }
    for (number, conditions) in unmet.into_iter().enumerate() {
        assert_eq!(section(&fresh(), conditions), Some(1), "unmet: {number}");
    }
}

#[test]
fn g12_a_section_whose_conditions_cannot_be_met_is_an_error_unless_an_old_value_will_do() {
    let (cell, _clock, log) = background();
    cell.set(1);
    let fails = |request: Request<'_, u32, _, Cell>| {
        request.try_get_with_writer(|writer| {
            *writer.acquire_write_lock().old().unwrap() += 1;
            Err("no")
        })
    };
    // The old value does not meet the condition; with `or_stale` it is served, as the section has left it.
    assert!(matches!(fails(cell.request().no_cache()), Err(RefreshError::Build(_))));
    assert_eq!(*fails(cell.request().no_cache().or_stale()).unwrap(), 3);
    // A retry pause runs, in which only `no_cache` builds.
    let newer = cell.request().newer_than(1);
    assert!(matches!(fails(newer.clone()), Err(RefreshError::Build(_))));
    assert_eq!(*fails(newer.or_stale()).unwrap(), 3);
    assert_eq!((cell.stats().builds, cell.generation(), log.entries()), (2, 1, vec![]));
    assert_eq!(cell.freshness(), Freshness::Fresh);
}

#[test]
fn g12_a_request_does_not_wait_for_a_section_for_longer_than_it_is_to() {
    let (cell, _clock, _log) = background();
    cell.set(1);
    cell.request().no_cache().get_with_writer(|writer| {
        drop(writer.acquire_write_lock());
        thread::scope(|scope| {
            let request = cell.request().wait_at_most(Duration::ZERO);
            let or_stale = request.clone().or_stale();
            for request in [request, or_stale] {
                // Under the write lock there is no old value to serve either.
                let waited = scope.spawn(|| request.try_get(|| Ok::<_, String>(3))).join().unwrap();
                assert!(matches!(waited, Err(RefreshError::WaitTimeout)));
            }
        });
        2
    });
    assert_eq!(cell.stats().wait_timeouts, 2);
}

#[test]
fn g12_no_cache_reaches_the_write_section_after_the_build_that_runs() {
    let (cell, _clock, log) = background();
    cell.set(1);
    cell.invalidate();
    let (building, keeper) = gate();
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            cell.get_or_refresh(|| {
                building.pass();
                2
            })
        });
        keeper.wait_for_arrival();
        let writer = scope.spawn(|| {
            cell.request().no_cache().get_with_writer(|writer| {
                assert_eq!(writer.acquire_write_lock().old(), Some(&mut 2));
                3
            })
        });
        eventually("it waits for the build", || cell.stats().waits == 1);
        keeper.open();
        assert_eq!(*other.join().unwrap(), 2);
        assert_eq!(*writer.join().unwrap(), 3);
    });
    assert_eq!((log.complete(&cell), cell.stats().builds), (vec![1, 2], 2));
}

/// The build is elected beside a fresh value, so that only the invalidation makes it stale.
#[test]
fn g4_an_invalidation_during_a_section_whose_value_is_put_back_is_not_lost() {
    let invalidate: [fn(&Cell); 3] = [
        |cell| cell.invalidate(),
        |cell| {
            cell.invalidate();
            cell.invalidate();
        },
        |cell| thread::scope(|scope| scope.spawn(|| cell.invalidate()).join().unwrap()),
    ];
    for invalidate in invalidate {
        let (cell, _clock, _log) = strict();
        cell.set(1);
        let failed = cell.request().no_cache().try_get_with_writer(|writer| {
            drop(writer.acquire_write_lock());
            invalidate(&cell);
            Err("no")
        });
        assert!(failed.is_err());
        assert_eq!((cell.get().as_deref(), cell.freshness()), (Some(&1), Freshness::Stale));
        assert_eq!(*cell.get_or_refresh(|| 2), 2);
    }
}

/// A cell whose fresh value is read, and withheld while a writer waits for that reader; and what it comes to if the writer
/// gives up.
fn while_a_writer_waits(happens: impl FnOnce(&Cell, &ReaderArc<u32>)) -> (Freshness, u32) {
    let (cell, clock, _log) = strict();
    let reader = cell.set(1);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            cell.request().no_cache().try_get_with_writer(|writer| {
                assert!(writer.acquire_write_lock_timeout(WAIT).is_err());
                Err("no")
            })
        });
        eventually("new readers are held back", || cell.get().is_none());
        happens(&cell, &reader);
        while !writer.is_finished() {
            clock.advance(WAIT);
            thread::yield_now();
        }
        assert!(writer.join().unwrap().is_err());
    });
    (cell.freshness(), cell.get().map_or(0, |value| *value))
}

/// The ttl of `strict` passes too if the writer takes its time, so the cases are compared by what does not depend on it.
#[test]
fn g4_an_invalidation_while_the_write_lock_is_waited_for_is_not_lost() {
    assert_eq!(while_a_writer_waits(|cell, _| cell.invalidate()), (Freshness::Stale, 1));
    let (freshness, value) = while_a_writer_waits(|cell, _| cell.clear());
    assert_eq!((freshness, value), (Freshness::Empty, 0));
}

/// Its reader has found out that it will not do, and must not be served it as fresh again.
#[test]
fn g4_an_invalidation_of_a_withheld_value_by_its_reader_is_not_lost() {
    let (cell, _clock, _log) = logged(Policy::never_expires(), Drain::Background);
    let reader = cell.set(1);
    let (asks, keeper) = gate();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            cell.request().no_cache().try_get_with_writer(|writer| {
                asks.pass();
                drop(writer.acquire_write_lock());
                Err("no")
            })
        });
        keeper.wait_for_arrival();
        keeper.open();
        eventually("new readers are held back", || cell.get().is_none());
        assert!(cell.invalidate_if_current(&reader), "the withheld value is put back if the section fails");
        assert!(!cell.invalidate_if_current(&reader), "it is declared stale already");
        drop(reader);
        assert!(writer.join().unwrap().is_err());
    });
    assert_eq!((cell.get().as_deref(), cell.freshness()), (Some(&1), Freshness::Stale));
}

#[test]
fn a_value_that_is_not_current_any_more_is_not_declared_stale() {
    let (cell, _clock, _log) = background();
    let first = cell.set(1);
    let second = cell.set(2);
    assert!(!cell.invalidate_if_current(&first));
    assert_eq!(cell.freshness(), Freshness::Fresh);
    assert!(cell.invalidate_if_current(&second));
    assert!(!cell.invalidate_if_current(&second));
    assert_eq!(cell.freshness(), Freshness::Stale);
}

#[test]
fn a_value_that_is_set_with_a_ttl_of_its_own_keeps_to_it() {
    let (cell, clock, log) = background();
    cell.set_for(1, 2 * TTL);
    clock.advance(2 * TTL);
    assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
    clock.advance(TICK);
    assert_eq!((*cell.get_or_refresh(|| 2), log.complete(&cell)), (2, vec![1]));
}

#[test]
fn g11_a_value_that_a_restored_one_replaces_is_finalised_and_a_build_that_runs_is_newer() {
    let (cell, _clock, log) = background();
    cell.set(1);
    cell.invalidate();
    let built = cell.get_or_refresh(|| {
        cell.restore(2, TTL + TICK);
        assert_eq!((cell.get().as_deref(), cell.freshness()), (Some(&2), Freshness::Stale));
        3
    });
    assert_eq!((*built, cell.get().as_deref()), (3, Some(&3)));
    assert_eq!(log.complete(&cell), [1, 2]);
}

#[test]
fn g11_a_snapshot_is_a_reader_as_long_as_it_lives() {
    let (cell, clock, log) = logged(Policy::ttl(TTL).stale_while_refresh(TTL), Drain::Background);
    assert!(cell.snapshot().is_none());
    cell.set(1);
    clock.advance(TTL / 2);
    let seen = cell.snapshot().unwrap();
    assert_eq!((*seen.value, seen.generation, seen.age, seen.freshness), (1, 1, TTL / 2, Freshness::Fresh));
    assert_eq!((seen.fresh_for, seen.servable_for), (TTL / 2, TTL / 2 + TTL));
    assert_eq!(cell.readers(), 1);
    cell.set(2);
    assert_eq!((cell.retired(), log.entries()), (1, vec![]));
    drop(seen);
    assert_eq!(log.complete(&cell), [1]);
}

#[test]
fn g11_a_value_that_is_not_modified_is_not_retired() {
    let (cell, _clock, log) = background();
    let first = cell.set(1);
    cell.invalidate();
    let second = cell
        .request()
        .try_get_with(|previous| {
            assert_eq!(previous.as_deref(), Some(&1));
            Ok::<_, String>(Refreshed::NotModified)
        })
        .unwrap();
    assert!(ReaderArc::ptr_eq(&first, &second));
    assert_eq!((cell.freshness(), cell.generation(), cell.retired()), (Freshness::Fresh, 2, 0));
    drop((first, second));
    // With one that is: the build holds the old value, and the caller does not wait for it.
    let (waiting, _clock, waited) = logged(Policy::ttl(TTL), Drain::Wait(Duration::MAX));
    for (cell, log) in [(&cell, &log), (&waiting, &waited)] {
        cell.set(3);
        cell.invalidate();
        let new = cell.request().try_get_with(|_previous| Ok::<_, String>(Refreshed::New(4))).unwrap();
        assert_eq!((*new, log.complete(cell).last()), (4, Some(&3)));
    }
    assert_eq!(log.entries(), [1, 3]);
}

#[test]
fn g13_a_build_that_a_thread_of_its_own_runs_replaces_the_value_for_all() {
    let (cell, _clock, log) = background();
    let cell = Arc::new(cell);
    cell.set(1);
    cell.invalidate();
    let (building, keeper) = gate();
    let build = move || {
        building.pass();
        2
    };
    assert_eq!(*cell.request_owned().spawn_with(thread::spawn).get(build), 1);
    keeper.wait_for_arrival();
    keeper.open();
    eventually("it is published", || cell.get().as_deref() == Some(&2));
    assert_eq!(log.complete(&cell), [1]);
}

/// It may be in the queue of a busy executor for long.
#[test]
fn g12_a_job_that_has_not_begun_is_no_reader() {
    let (cell, _clock, _log) = background();
    let cell = Arc::new(cell);
    cell.set(1);
    cell.invalidate();
    let mut queue = Vec::new();
    let request = cell.request_owned().spawn_with(|job| queue.push(job));
    let build = |previous: Option<ReaderArc<u32>>| {
        assert_eq!(previous.as_deref(), Some(&1));
        Err::<Refreshed<u32>, _>("the source is down")
    };
    assert_eq!(*request.try_get_with(build).unwrap(), 1);
    assert_eq!((queue.len(), cell.is_refreshing(), cell.readers()), (1, true, 0));
    // The build is given the value when it begins.
    queue.pop().unwrap()();
    assert_eq!((cell.is_refreshing(), cell.readers()), (false, 0));
    assert_eq!(cell.last_error().unwrap().to_string(), "the source is down");
}

#[test]
fn g11_what_a_refresher_replaces_is_finalised() {
    let (cell, clock, log) = background();
    let cell = Arc::new(cell);
    let mut built = 0;
    let refresher = Refresher::spawn(&cell, TTL / 2, move |previous: Option<ReaderArc<u32>>| {
        assert_eq!(previous.as_deref(), (built > 0).then_some(&built));
        built += 1;
        built
    })
    .unwrap();
    for round in 1..=3 {
        eventually("it has built", || cell.generation() == u64::from(round));
        assert_eq!(cell.get().as_deref(), Some(&round));
        assert_eq!(log.complete(&cell), (1..round).collect::<Vec<_>>());
        clock.advance(TTL);
    }
    drop(refresher);
}

#[test]
fn g1_before_it_asks_for_the_write_lock_a_build_that_was_cleared_or_reset_holds_no_lease() {
    for empty in [Cell::clear as fn(&Cell), Cell::reset] {
        let (cell, _clock, log) = background();
        cell.set(1);
        let own = cell.request().no_cache().get_with_writer(|writer| {
            empty(&cell);
            assert!(!cell.is_refreshing());
            // Nothing is there to be protected, so it may write; its result is its caller's alone.
            assert!(writer.acquire_write_lock().old().is_none());
            assert!(cell.is_refreshing() && !cell.revoke());
            2
        });
        assert_eq!((*own, cell.get().as_deref(), cell.is_refreshing()), (2, None, false));
        assert_eq!((log.complete(&cell), cell.generation()), (vec![1], 1));
        drop(own);
        eventually("it is finalised", || log.entries() == [1, 2]);
    }
}

#[test]
fn g1_before_it_asks_for_the_write_lock_a_build_can_be_revoked_and_has_no_claim_then() {
    let (cell, _clock, log) = background();
    cell.set(1);
    let value = cell.request().no_cache().get_with_writer(|writer| {
        assert!(cell.revoke());
        assert!(!cell.is_refreshing() && !cell.revoke());
        assert_eq!(writer.acquire_write_lock_timeout(TTL).unwrap_err().readers, 0);
        // Another caller is elected at once.
        assert_eq!(*cell.request().no_cache().get(|| 2), 2);
        assert!(writer.acquire_write_lock_timeout(TTL).is_err());
        3
    });
    assert_eq!((*value, cell.get().as_deref(), cell.generation()), (2, Some(&2), 2));
    eventually("both are finalised", || log.entries().len() == 2);
    assert!(log.entries().contains(&1) && log.entries().contains(&3));
}

#[test]
fn g1_a_build_that_has_the_write_lock_keeps_the_lease() {
    for empty in [Cell::clear as fn(&Cell), Cell::reset] {
        for fails in [false, true] {
            let (cell, _clock, log) = background();
            cell.set(1);
            let built = cell.request().no_cache().try_get_with_writer(|writer| {
                drop(writer.acquire_write_lock());
                assert!(!cell.revoke());
                empty(&cell);
                assert!(!cell.revoke() && cell.is_refreshing());
                assert_eq!((cell.retired(), cell.freshness()), (1, Freshness::Empty));
                // Another caller would have to wait.
                let other = || cell.request().wait_at_most(Duration::ZERO).try_get(|| Ok::<_, String>(7));
                let waited = thread::scope(|scope| scope.spawn(other).join().unwrap());
                assert!(matches!(waited, Err(RefreshError::WaitTimeout)));
                if fails { Err("no") } else { Ok(2) }
            });
            assert_eq!(built.as_deref().ok(), (!fails).then_some(&2));
            assert_eq!((cell.get().as_deref(), cell.is_refreshing(), cell.generation()), (None, false, 1));
            // A failure of a build that could not be published begins no pause.
            assert!(cell.last_error().is_none() && cell.stats().consecutive_failures == 0);
            assert_eq!(log.complete(&cell), [1]);
            assert_eq!(*cell.get_or_refresh(|| 3), 3);
        }
    }
}

#[test]
fn a_cell_that_is_reset_forgets_failures_and_statistics_and_goes_on_counting_generations() {
    let (cell, _clock, log) = background();
    let reader = cell.set(1);
    drop(cell.request().no_cache().or_stale().try_get(|| Err("no")));
    assert!(cell.last_error().is_some());
    cell.reset();
    assert!(cell.last_error().is_none());
    assert_eq!((cell.stats(), cell.retired()), (dogpile::Stats::default(), 1));
    cell.set(2);
    assert_eq!((cell.generation(), cell.stats().published), (2, 1));
    drop(reader);
    assert_eq!(log.complete(&cell), [1]);
}
