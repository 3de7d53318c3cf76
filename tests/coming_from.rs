//! The claims of the pages `docs/coming_from/*.md`: a test for each row, which goes red if the row is false.
//!
//! Above each test stand the rows that it is about, as `// page | first column`. That none is missing is a test too.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::num::ParseIntError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use dogpile::{
    Change, Clock, Derived, DogpileCell, Drain, Freshness, Hook, Job, LazyDogpile, Lease, Lookup,
    ManualClock, Policy, RefreshError, Refreshed, Refresher, SyncReaderCell,
};

const TTL: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_nanos(1);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Real time, as a guard against hangs.
const PATIENCE: Duration = Duration::from_secs(if cfg!(miri) { 1200 } else { 120 });

type Cell<T> = DogpileCell<T, ManualClock>;

fn cell_with<T>(policy: Policy) -> (Arc<Cell<T>>, ManualClock) {
    let clock = ManualClock::new();
    (Arc::new(DogpileCell::with_clock(policy, clock.clone())), clock)
}

fn cell<T>() -> (Arc<Cell<T>>, ManualClock) {
    cell_with(Policy::ttl(TTL))
}

/// A cell that holds `value`, which has just become stale.
fn stale_cell<T>(value: T) -> (Arc<Cell<T>>, ManualClock) {
    let (cell, clock) = cell();
    cell.set(value);
    clock.advance(TTL + TICK);
    (cell, clock)
}

fn unbuildable<T>() -> T {
    unreachable!("this call must not build")
}

fn cannot_build<T>() -> io::Result<T> {
    unreachable!("this call must not build")
}

fn down<T>() -> io::Result<T> {
    Err(io::Error::other("connection refused"))
}

#[track_caller]
fn elected<T, C: Clock>(cell: &DogpileCell<T, C>) -> Lease<'_, T, C> {
    match cell.lookup() {
        Lookup::Elected(lease) => lease,
        other => panic!("expected to be elected, got {other:?}"),
    }
}

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "hangs: {what}");
        thread::yield_now();
    }
}

/// A read on a thread of its own.
type Read<'a, R> = Box<dyn FnOnce() -> R + Send + 'a>;

/// Starts a thread for each of the `reads`, waits until all of them wait for another caller's build, and then calls `end`.
/// Returns what the reads returned.
fn waiting<T: Send + Sync, R: Send>(cell: &Cell<T>, reads: Vec<Read<'_, R>>, end: impl FnOnce()) -> Vec<R> {
    let waits = cell.stats().waits + u64::try_from(reads.len()).unwrap();
    thread::scope(|scope| {
        let threads: Vec<_> = reads.into_iter().map(|read| scope.spawn(read)).collect();
        eventually("all reads wait", || cell.stats().waits == waits);
        end();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// `number` times the same read, for [`waiting`].
fn times<'a, R>(number: usize, read: impl Fn() -> R + Send + Clone + 'a) -> Vec<Read<'a, R>> {
    (0..number).map(|_| Box::new(read.clone()) as Read<'a, R>).collect()
}

/// Runs a build of `cell` that panics as soon as `number` reads wait for it, and returns what they get.
fn after_a_panic(cell: &Cell<u32>, number: usize, read: impl Fn() -> u32 + Send + Clone) -> Vec<u32> {
    let (send, begun) = channel();
    let (finish, finished) = channel::<()>();
    thread::scope(|scope| {
        let builder = scope.spawn(move || {
            cell.get_or_refresh(|| {
                send.send(()).unwrap();
                let _ = finished.recv();
                panic!("this panic is part of the test")
            })
        });
        begun.recv_timeout(PATIENCE).unwrap();
        let got = waiting(cell, times(number, read), || drop(finish));
        assert!(builder.join().is_err(), "a panic reaches its own caller");
        got
    })
}

#[track_caller]
/// What the cell's hook is called with.
fn changes(cell: &Cell<u32>) -> (Hook, Arc<Mutex<Vec<String>>>) {
    let changes = Arc::new(Mutex::new(Vec::new()));
    let hook = cell.on_change({
        let changes = Arc::clone(&changes);
        move |change| {
            changes.lock().unwrap().push(match change {
                Change::Published(snapshot) => snapshot.value.to_string(),
                Change::Invalidated => "invalidated".to_owned(),
                Change::Cleared => "cleared".to_owned(),
                _ => "something else".to_owned(),
            });
        }
    });
    (hook, changes)
}

fn assert_build_error<T: Debug>(result: Result<T, RefreshError>, text: &str) -> RefreshError {
    let error = result.unwrap_err();
    assert!(matches!(error, RefreshError::Build(_)), "{error:?}");
    assert_eq!(error.to_string(), text);
    error
}

#[test]
fn every_row_of_every_page_has_a_test() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = std::fs::read_to_string(folder.join("tests/coming_from.rs")).unwrap();
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(folder.join("docs/coming_from")).unwrap() {
        let path = entry.unwrap().path();
        let page = path.file_stem().unwrap().to_str().unwrap().to_owned();
        for line in std::fs::read_to_string(path).unwrap().lines() {
            // A separator within code is escaped, and stands in the second column only.
            if let Some((first, _)) = line.strip_prefix("| ").and_then(|line| line.split_once(" | "))
                && first != "there"
            {
                rows.push(format!("// {page} | {first}\n"));
            }
        }
    }
    assert!(rows.len() > 50, "only {} rows were found", rows.len());
    let missing: Vec<_> = rows.iter().filter(|row| !tests.contains(&***row)).collect();
    assert!(missing.is_empty(), "rows without a test: {missing:#?}");
    let gone: Vec<_> = tests
        .lines()
        .map(str::trim_start)
        .filter(|line| {
            line.starts_with("// ") && line.contains(" | ") && !rows.contains(&format!("{line}\n"))
        })
        .collect();
    assert!(gone.is_empty(), "tests of rows that are gone: {gone:#?}");
}

mod singleflight {
    use super::*;

    /// The policy of the page.
    const DO: Policy = Policy::ttl(Duration::ZERO)
        .stale_while_refresh(Duration::ZERO)
        .retry_backoff(Duration::ZERO, Duration::ZERO);

    // singleflight | `Do`
    #[test]
    fn calls_that_overlap_share_one_build_and_later_calls_begin_another() {
        let (cell, clock) = cell_with(DO);
        for round in [1, 2] {
            let lease = elected(&cell);
            let got = waiting(&cell, times(3, || *cell.get_or_refresh(unbuildable)), || {
                clock.advance(TICK);
                lease.publish(round);
            });
            assert_eq!(got, [round; 3]);
            clock.advance(TICK);
        }
        assert_eq!(cell.stats().builds, 2);
        let lease = elected(&cell);
        lease.fail("no route to host");
        assert_eq!(*cell.try_get_or_refresh(|| Ok::<_, io::Error>(3)).unwrap(), 3, "the error is not kept");
    }

    #[test]
    fn without_its_other_two_settings_the_old_value_and_the_old_error_are_served() {
        let (cell, clock) = cell_with(Policy::ttl(Duration::ZERO));
        cell.set(1);
        clock.advance(TICK);
        let lease = elected(&cell);
        assert_eq!(*cell.get_or_refresh(unbuildable), 1);
        drop(lease);
        cell.clear();
        elected(&cell).fail("no route to host");
        assert_build_error(cell.try_get_or_refresh(cannot_build), "no route to host");
        clock.advance(FIRST_PAUSE);
        assert_eq!(*cell.try_get_or_refresh(|| Ok::<_, io::Error>(2)).unwrap(), 2);
    }

    #[test]
    fn the_cell_holds_the_latest_value_until_it_is_cleared() {
        let (cell, clock) = cell_with(DO);
        let kept = Arc::downgrade(&cell.get_or_refresh(|| 1));
        clock.advance(TICK);
        assert!(kept.upgrade().is_some());
        drop(cell.clear());
        assert!(kept.upgrade().is_none());
    }

    // singleflight | `DoChan` and a `select` with a timeout
    #[test]
    fn when_the_time_is_over_the_call_goes_on_and_later_callers_share_it() {
        let (cell, clock) = cell_with(DO);
        let (finish, finished) = channel();
        let impatient = Arc::clone(&cell);
        let caller = thread::spawn(move || {
            let request = impatient.request_owned().spawn_with(thread::spawn).wait_at_most(TTL);
            request.try_get(move || finished.recv_timeout(PATIENCE))
        });
        eventually("the caller waits", || cell.stats().waits == 1);
        clock.advance(TTL);
        assert!(matches!(caller.join().unwrap(), Err(RefreshError::WaitTimeout)));
        assert!(cell.is_refreshing());
        let got = waiting(&cell, times(1, || *cell.get_or_refresh(unbuildable)), || finish.send(7).unwrap());
        assert_eq!((got, cell.stats().builds), (vec![7], 1));
    }

    // singleflight | the error goes to all callers that shared the call
    // caffeine | a first load that fails: each waiting reader loads in turn
    #[test]
    fn callers_that_waited_for_a_first_build_share_its_error() {
        for policy in [DO, Policy::ttl(TTL)] {
            let (cell, _clock) = cell_with::<u32>(policy);
            let lease = elected(&cell);
            let mut own = None;
            let got = waiting(&cell, times(3, || cell.try_get_or_refresh(cannot_build)), || {
                own = Some(lease.fail("no route to host"));
            });
            for error in got {
                let error = assert_build_error(error, "no route to host");
                assert!(error.build_error().unwrap().ptr_eq(own.as_ref().unwrap()));
            }
            assert_eq!(cell.stats().builds, 1);
        }
    }

    // singleflight | a panic is thrown in all of them
    #[test]
    fn a_panic_reaches_its_own_caller_and_one_waiter_is_elected_next() {
        let (cell, _clock) = cell_with(DO);
        let builds = AtomicU32::new(0);
        let read = || *cell.get_or_refresh(|| builds.fetch_add(1, Ordering::SeqCst) + 1);
        assert_eq!(after_a_panic(&cell, 3, read), [1; 3]);
        assert_eq!(cell.stats().panicked, 1);
    }

    // singleflight | the first caller's context cancels the call for all
    #[cfg(feature = "async")]
    #[test]
    fn a_future_that_is_dropped_gives_the_lease_back_and_a_waiter_builds() {
        use futures_lite::future::{block_on, pending, poll_once};
        block_on(async {
            let (cell, _clock) = cell_with(DO);
            let mut first = Box::pin(cell.get_or_refresh_async(pending::<u32>));
            assert!(poll_once(&mut first).await.is_none());
            let mut second = Box::pin(cell.get_or_refresh_async(|| async { 2 }));
            assert!(poll_once(&mut second).await.is_none());
            assert!(cell.is_refreshing());
            drop(first);
            assert_eq!(*second.await, 2);
        });
    }

    #[cfg(feature = "async")]
    #[test]
    fn a_build_that_was_spawned_goes_on_when_its_future_is_dropped() {
        use futures_lite::future::{block_on, poll_once};
        block_on(async {
            let (cell, _clock) = cell_with(DO);
            let (spawn, spawned) = channel();
            let request =
                cell.request_owned().spawn_with(move |task: dogpile::Task| spawn.send(task).unwrap());
            let mut first = Box::pin(request.get_async(|| async { 1 }));
            assert!(poll_once(&mut first).await.is_none());
            drop(first);
            assert!(cell.is_refreshing());
            spawned.recv().unwrap().await;
            assert_eq!((cell.get().as_deref(), cell.stats().builds), (Some(&1), 1));
        });
    }

    // singleflight | `Forget(key)`
    #[test]
    fn after_revoke_the_next_caller_begins_anew_and_the_revoked_build_keeps_its_result() {
        let (cell, clock) = cell_with(DO);
        let revoked = elected(&cell);
        assert!(cell.revoke());
        let without_waiting = cell.request().wait_at_most(Duration::ZERO);
        assert_eq!(*without_waiting.try_get(|| Ok::<_, io::Error>(2)).unwrap(), 2);
        clock.advance(TICK);
        assert_eq!(*revoked.publish(1), 1, "there is nothing newer that may be served");

        let revoked = elected(&cell);
        assert!(cell.revoke());
        cell.get_or_refresh(|| 4);
        assert_eq!(*revoked.publish(3), 4, "there is something newer");
    }

    #[test]
    fn the_waiters_of_a_revoked_build_join_the_new_one() {
        let (cell, _clock) = cell_with(DO);
        let revoked = elected(&cell);
        let builds = AtomicU32::new(0);
        let read = || *cell.get_or_refresh(|| builds.fetch_add(1, Ordering::SeqCst) + 10);
        let got = waiting(&cell, times(3, read), || assert!(cell.revoke()));
        assert_eq!(got, [10; 3]);
        drop(revoked);
    }

    // singleflight | `DoChan`, to hear of a result that others ask for
    #[test]
    fn a_subscription_gets_what_another_caller_has_built() {
        let (cell, _clock) = cell_with(DO);
        let got = waiting(&cell, vec![Box::new(|| *cell.subscribe().wait_changed())], || {
            cell.get_or_refresh(|| 1);
        });
        assert_eq!((got, cell.stats().builds), (vec![1], 1));
    }

    // singleflight | `shared`
    #[test]
    fn stats_count_builds_and_waits() {
        let (cell, _clock) = cell_with(DO);
        let lease = elected(&cell);
        waiting(&cell, times(2, || cell.get_or_refresh(unbuildable)), || drop(lease.publish(1)));
        assert_eq!((cell.stats().builds, cell.stats().waits), (1, 2));
    }
}

// singleflight | many keys in a `Group`
// python_dogpile | `NameRegistry`
// python_dogpile | dogpile.cache's `region.get_or_create(key, creator)`, `@region.cache_on_arguments()`
#[test]
fn in_a_map_of_cells_each_key_has_a_build_of_its_own() {
    let cells = Mutex::new(HashMap::<&str, Arc<DogpileCell<u32>>>::new());
    let cell =
        |key| Arc::clone(cells.lock().unwrap().entry(key).or_insert_with(|| Arc::new(DogpileCell::new(TTL))));
    let rates = cell("rates");
    let lease = elected(&rates);
    assert_eq!(*cell("limits").get_or_refresh(|| 2), 2, "beside the build of another key");
    lease.publish(1);
    assert_eq!(*cell("rates").get_or_refresh(unbuildable), 1, "the same cell");
    // A function without arguments.
    let lazy = LazyDogpile::new(TTL, || 7);
    assert_eq!((*lazy.get_or_refresh(), *lazy.get_or_refresh()), (7, 7));
    assert_eq!(lazy.cell().stats().builds, 1);
}

mod moka {
    use super::*;

    // moka | `get_with(key, init)`
    // cached | `sync_writes`
    // rwlock | a build under the write lock: readers wait
    #[test]
    fn one_caller_builds_and_all_others_get_the_old_value_meanwhile() {
        let (cell, _clock) = stale_cell(1);
        let lease = elected(&cell);
        for _ in 0..3 {
            assert_eq!(*cell.get_or_refresh(unbuildable), 1);
        }
        assert_eq!(cell.stats().waits, 0);
        lease.publish(2);
        assert_eq!(*cell.get_or_refresh(unbuildable), 2);

        let (cell, _clock) = super::cell();
        let lease = elected(&cell);
        let got = waiting(&cell, times(3, || *cell.get_or_refresh(unbuildable)), || drop(lease.publish(3)));
        assert_eq!((got, cell.stats().builds), (vec![3; 3], 1));
    }

    // moka | `try_get_with` and its shared `Arc<E>`
    #[test]
    fn callers_share_one_error_also_if_their_error_types_differ() {
        let (cell, _clock) = cell::<u32>();
        let lease = elected(&cell);
        let reads: Vec<Read<'_, Result<Arc<u32>, RefreshError>>> = vec![
            Box::new(|| cell.try_get_or_refresh(cannot_build)),
            Box::new(|| cell.try_get_or_refresh(|| -> Result<u32, String> { unbuildable() })),
        ];
        let got = waiting(&cell, reads, || drop(lease.fail("many".parse::<u32>().unwrap_err())));
        let errors: Vec<_> = got.into_iter().map(Result::unwrap_err).collect();
        assert!(errors.iter().all(RefreshError::is::<ParseIntError>));
        assert!(errors[0].build_error().unwrap().ptr_eq(errors[1].build_error().unwrap()));
    }

    #[test]
    fn where_there_is_an_old_value_it_is_returned_instead_unless_the_request_rules_it_out() {
        let (cell, _clock) = stale_cell(1);
        assert_eq!(*cell.try_get_or_refresh(down).unwrap(), 1);
        assert_eq!(cell.stats().failed, 1);
        let (cell, _clock) = stale_cell(1);
        assert_build_error(cell.request().max_stale(Duration::ZERO).try_get(down), "connection refused");
    }

    // moka | ... an error is not kept: the next call tries again
    #[test]
    fn after_a_failure_there_is_a_pause_of_100_ms_to_10_s_or_none() {
        let (cell, clock) = cell::<u32>();
        let mut pause = FIRST_PAUSE;
        for _ in 0..10 {
            assert_build_error(cell.try_get_or_refresh(down), "connection refused");
            clock.advance(pause - TICK);
            assert_build_error(cell.try_get_or_refresh(cannot_build), "connection refused");
            clock.advance(TICK);
            pause = (2 * pause).min(Duration::from_secs(10));
        }
        assert_eq!(*cell.try_get_or_refresh(|| Ok::<_, io::Error>(1)).unwrap(), 1);

        let (cell, _clock) = cell_with(Policy::ttl(TTL).retry_backoff(Duration::ZERO, Duration::ZERO));
        assert_build_error(cell.try_get_or_refresh(down), "connection refused");
        assert_eq!(*cell.try_get_or_refresh(|| Ok::<_, io::Error>(1)).unwrap(), 1);
    }

    // moka | `optionally_get_with`
    #[test]
    fn none_is_an_error_for_all_waiters_or_a_lease_that_is_dropped() {
        let (cell, _clock) = cell::<u32>();
        let lease = elected(&cell);
        let got =
            waiting(&cell, times(2, || cell.try_get_or_refresh(cannot_build)), || drop(lease.fail("none")));
        for error in got {
            assert_build_error(error, "none");
        }

        let (cell, _clock) = super::cell();
        let lease = elected(&cell);
        let builds = AtomicU32::new(0);
        let read = || *cell.get_or_refresh(|| builds.fetch_add(1, Ordering::SeqCst) + 1);
        assert_eq!(waiting(&cell, times(2, read), || drop(lease)), [1; 2], "one of the waiters builds");
    }

    // moka | `time_to_live`
    #[test]
    fn past_its_ttl_a_value_is_served_while_it_is_rebuilt_unless_the_window_is_zero() {
        let (cell, clock) = cell();
        cell.set(1);
        clock.advance(TTL);
        assert_eq!(*cell.get_or_refresh(unbuildable), 1);
        clock.advance(TICK);
        let lease = elected(&cell);
        assert_eq!(*cell.get_or_refresh(unbuildable), 1);
        drop(lease);

        let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO));
        cell.set(1);
        clock.advance(TTL + TICK);
        assert!(cell.get().is_none());
        let lease = elected(&cell);
        let got = waiting(&cell, times(1, || *cell.get_or_refresh(unbuildable)), || drop(lease.publish(2)));
        assert_eq!(got, [2]);
    }

    // moka | `Expiry` (a ttl for each entry)
    // caffeine | `expireAfter(Expiry)`
    // cached | `expires = true`: the value says when it is out of date
    #[test]
    fn a_value_can_have_a_ttl_of_its_own() {
        let (cell, _clock) = cell();
        let left = || cell.snapshot().unwrap().fresh_for;
        cell.request().try_get_with(|_| Ok::<_, io::Error>(Refreshed::NewFor(1, 2 * TTL))).unwrap();
        assert_eq!(left(), 2 * TTL);
        cell.set_for(2, 3 * TTL);
        assert_eq!(left(), 3 * TTL);
        cell.invalidate();
        elected(&cell).publish_for(3, 4 * TTL);
        assert_eq!(left(), 4 * TTL);
    }

    // moka | `invalidate(key)`
    // rwlock | `*cache.write().unwrap() = None`
    // python_dogpile | ... `region.invalidate(hard=False)`
    // python_dogpile | ... `region.invalidate()`
    #[test]
    fn after_clear_callers_wait_and_after_invalidate_they_get_the_old_value() {
        let (cell, _clock) = cell();
        cell.set(1);
        cell.invalidate();
        let lease = elected(&cell);
        assert_eq!((*cell.get_or_refresh(unbuildable), cell.get().as_deref()), (1, Some(&1)));
        lease.publish(2);
        cell.clear();
        assert!(cell.get().is_none());
        let lease = elected(&cell);
        let got = waiting(&cell, times(2, || *cell.get_or_refresh(unbuildable)), || drop(lease.publish(3)));
        assert_eq!(got, [3; 2]);
    }

    // moka | `insert` during a `get_with`
    // caffeine | `put(key, value)` during a reload discards the reload
    // rwlock | `Some((Instant::now(), value))`
    #[test]
    fn a_build_does_not_displace_what_was_set_meanwhile() {
        let (cell, _clock) = cell();
        let built = cell.get_or_refresh(|| {
            cell.set("set");
            "built"
        });
        assert_eq!(
            (*built, cell.get().as_deref(), cell.freshness()),
            ("set", Some(&"set"), Freshness::Fresh)
        );
    }

    // moka | `or_insert_with_if`
    #[test]
    fn a_request_replaces_a_fresh_value_that_is_too_old_or_was_seen_already() {
        let (cell, clock) = cell();
        cell.set(1);
        clock.advance(TTL / 2);
        assert_eq!(*cell.request().max_age(TTL / 2).get(unbuildable), 1);
        assert_eq!(*cell.request().max_age(TTL / 2 - TICK).get(|| 2), 2);
        let seen = cell.snapshot().unwrap().generation;
        assert_eq!(*cell.request().newer_than(seen - 1).get(unbuildable), 2);
        assert_eq!(*cell.request().newer_than(seen).get(|| 3), 3);
    }

    // moka | an eviction listener
    #[test]
    fn the_finalizer_waits_for_the_last_reader() {
        let (send, finalized) = channel();
        let cell = SyncReaderCell::new(TTL, move |old| send.send(old).unwrap());
        let readers = [cell.get_or_refresh(|| 1), cell.get().unwrap()];
        cell.set(2);
        for reader in readers {
            assert!(finalized.try_recv().is_err());
            assert_eq!(cell.retired(), 1);
            drop(reader);
        }
        assert_eq!(finalized.recv_timeout(PATIENCE), Ok(1));
    }

    // moka | ... which also hears of `insert` and `invalidate`
    #[test]
    fn a_hook_is_called_for_each_change() {
        let (cell, _clock) = cell();
        let (hook, changes) = changes(&cell);
        cell.set(1);
        cell.invalidate();
        cell.get_or_refresh(|| 2);
        cell.clear();
        assert_eq!(*changes.lock().unwrap(), ["1", "invalidated", "2", "cleared"]);
        drop(hook);
    }
}

mod caffeine {
    use super::*;

    /// The job of a build, handed over without running it.
    fn reload(cell: &Arc<Cell<u32>>, value: u32) -> (Arc<u32>, Job) {
        let (spawn, spawned) = sync_channel::<Job>(1);
        let served = cell.request_owned().spawn_with(|job| spawn.send(job)).get(move || value);
        (served, spawned.recv().unwrap())
    }

    // caffeine | `refreshAfterWrite`
    #[test]
    fn the_first_read_past_the_ttl_starts_a_reload_and_gets_the_old_value() {
        let (cell, clock) = cell();
        cell.set(1);
        clock.advance(TTL);
        assert_eq!(*cell.request_owned().spawn_with(|_job| unreachable!("still fresh")).get(unbuildable), 1);
        clock.advance(TICK);
        let (served, job) = reload(&cell, 2);
        assert_eq!((*served, cell.is_refreshing()), (1, true));
        job();
        assert_eq!(cell.get().as_deref(), Some(&2));
    }

    // caffeine | `expireAfterWrite`
    #[test]
    fn past_ttl_and_window_reads_wait() {
        let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(9 * TTL));
        cell.set(1);
        clock.advance(10 * TTL);
        let (served, job) = reload(&cell, 2);
        assert_eq!(*served, 1);
        clock.advance(TICK);
        assert!(cell.get().is_none());
        let got = waiting(&cell, times(2, || *cell.get_or_refresh(unbuildable)), job);
        assert_eq!(got, [2; 2]);
    }

    // caffeine | `executor(...)`
    #[test]
    fn the_first_build_is_handed_over_too_and_its_caller_waits_for_it() {
        let (cell, _clock) = cell();
        let (spawn, spawned) = channel::<Job>();
        let request = cell.request_owned().spawn_with(move |job| spawn.send(job));
        let read = Mutex::new(Some(request));
        let read = || read.lock().unwrap().take().unwrap();
        let got = waiting(&cell, vec![Box::new(|| *read().get(|| 1))], || spawned.recv().unwrap()());
        assert_eq!(got, [1]);
    }

    #[test]
    fn with_get_or_refresh_the_elected_caller_builds_itself() {
        let (cell, _clock) = stale_cell(thread::current().id());
        let here = thread::current().id();
        thread::scope(|scope| {
            let builder =
                scope.spawn(|| (*cell.get_or_refresh(|| thread::current().id()), thread::current().id()));
            let (built_on, of_caller) = builder.join().unwrap();
            assert_eq!(built_on, of_caller);
            assert_ne!(built_on, here);
        });
    }

    // caffeine | `CacheLoader.reload(key, oldValue)`
    #[test]
    fn a_build_is_given_the_old_value() {
        let (cell, _clock) = stale_cell(1);
        let build = |previous: Option<Arc<u32>>| Ok::<_, io::Error>(Refreshed::New(*previous.unwrap() + 1));
        assert_eq!(*cell.request().try_get_with(build).unwrap(), 2);

        cell.invalidate();
        let (send, given) = channel();
        let refresher = Refresher::spawn(&cell, TTL / 10, move |previous: Option<Arc<u32>>| {
            send.send(previous.as_deref().copied()).unwrap();
            7
        });
        assert_eq!(given.recv_timeout(PATIENCE), Ok(Some(2)));
        drop(refresher);
    }

    // caffeine | a reload that fails is logged, the old value stays
    // cached | `result_fallback` (of `#[cached]`)
    #[test]
    fn when_a_build_fails_all_callers_get_the_old_value_and_the_cell_shows_why() {
        let (cell, clock) = stale_cell(1);
        let lease = elected(&cell);
        let request = || cell.try_get_or_refresh(cannot_build).map(|value| *value);
        assert_eq!(request().unwrap(), 1, "while the build runs");
        lease.fail("no route to host");
        assert_eq!(request().unwrap(), 1, "in the pause");
        clock.advance(100 * TTL);
        assert_eq!(*cell.try_get_or_refresh(down).unwrap(), 1, "without limit");
        assert_eq!(cell.last_error().unwrap().to_string(), "connection refused");
        assert_eq!(cell.stats().served_stale_on_error, 1);
    }

    #[test]
    fn stale_if_error_limits_how_long_the_old_value_is_returned() {
        let (cell, clock) = cell_with(Policy::ttl(TTL).stale_if_error(TTL));
        cell.set(1);
        clock.advance(2 * TTL);
        assert_eq!(*cell.try_get_or_refresh(down).unwrap(), 1);
        clock.advance(FIRST_PAUSE);
        assert_build_error(cell.try_get_or_refresh(down), "connection refused");
    }

    // caffeine | ... and the next read tries again
    #[test]
    fn after_a_failed_reload_the_next_one_begins_after_a_pause() {
        let (cell, clock) = stale_cell(1);
        let mut pause = FIRST_PAUSE;
        for _ in 0..10 {
            assert_eq!(*cell.try_get_or_refresh(down).unwrap(), 1);
            clock.advance(pause - TICK);
            assert_eq!(*cell.try_get_or_refresh(cannot_build).unwrap(), 1);
            clock.advance(TICK);
            pause = (2 * pause).min(Duration::from_secs(10));
        }
        assert_eq!(cell.stats().failed, 10);
    }

    // caffeine | `refresh(key)`
    #[test]
    fn no_cache_reloads_a_fresh_value_while_readers_get_the_old_one() {
        let (cell, _clock) = cell();
        cell.set(1);
        let (spawn, spawned) = channel::<Job>();
        let to_pool = || {
            let spawn = spawn.clone();
            cell.request_owned().no_cache().spawn_with(move |job| spawn.send(job))
        };

        let at_once = to_pool().wait_at_most(Duration::ZERO).or_stale().get(|| 2);
        assert_eq!((*at_once, *cell.get_or_refresh(unbuildable)), (1, 1));
        spawned.recv().unwrap()();
        assert_eq!(cell.get().as_deref(), Some(&2));

        let request = to_pool();
        let got = waiting(&cell, vec![Box::new(|| *request.get(|| 3))], || {
            let job = spawned.recv().unwrap();
            assert_eq!(*cell.get_or_refresh(unbuildable), 2);
            job();
        });
        assert_eq!(got, [3]);
    }

    // caffeine | `invalidate(key)` during a reload discards the reload
    #[test]
    fn what_was_built_before_a_clear_is_not_published_and_before_an_invalidate_as_stale() {
        let (cell, _clock) = stale_cell(1);
        let (_, job) = reload(&cell, 2);
        cell.clear();
        job();
        assert!(cell.get().is_none());

        let (cell, _clock) = stale_cell(1);
        let (_, job) = reload(&cell, 2);
        cell.invalidate();
        job();
        assert_eq!((cell.get().as_deref(), cell.freshness()), (Some(&2), Freshness::Stale));
    }

    // caffeine | `removalListener(...)`
    // caffeine | a `CompletableFuture` of `refresh(key)`, to act when it is there
    #[test]
    fn a_reload_is_reported_to_hooks_and_subscriptions() {
        let (cell, _clock) = stale_cell(1);
        let mut subscription = cell.subscribe();
        assert_eq!(*subscription.wait_changed(), 1);
        let (hook, changes) = changes(&cell);
        let (_, job) = reload(&cell, 2);
        assert!(!subscription.has_changed());
        let waiter = thread::spawn({
            let mut subscription = cell.subscribe_owned();
            move || while *subscription.wait_changed() != 2 {}
        });
        job();
        waiter.join().unwrap();
        assert_eq!(*subscription.wait_changed(), 2);
        cell.clear();
        assert_eq!(*changes.lock().unwrap(), ["2", "cleared"]);
        assert_eq!(cell.stats().builds, 1, "a subscription builds nothing");
        drop(hook);
    }

    // caffeine | `recordStats()`
    #[test]
    fn what_happened_is_counted_without_being_asked_for() {
        let (cell, _clock) = stale_cell(1);
        cell.try_get_or_refresh(down).unwrap();
        cell.set(2);
        let stats = cell.stats();
        assert_eq!((stats.builds, stats.failed, stats.published), (1, 1, 2));
    }

    // caffeine | `Ticker`
    #[test]
    fn a_manual_clock_moves_a_value_out_of_date() {
        let (cell, clock) = cell();
        cell.set(1);
        clock.advance(TTL);
        assert_eq!(cell.freshness(), Freshness::Fresh);
        clock.advance(TICK);
        assert_eq!(cell.freshness(), Freshness::Stale);
    }

    #[test]
    fn a_refresher_reloads_before_a_value_is_stale() {
        let (cell, clock) = cell();
        let ahead = TTL / 10;
        let next = |previous: Option<Arc<u32>>| previous.map_or(1, |value| *value + 1);
        let _refresher = Refresher::spawn(&cell, ahead, next).unwrap();
        eventually("the first build has ended", || cell.generation() == 1);
        clock.advance(TTL - ahead + TICK);
        eventually("the second build has ended", || cell.generation() == 2);
        assert_eq!(cell.get().as_deref(), Some(&2));
    }
}

mod cached {
    use super::*;

    // cached | `#[once(ttl_secs = ...)]`
    #[test]
    fn a_lazy_cell_runs_its_function_once_per_ttl() {
        let clock = ManualClock::new();
        let runs = AtomicU32::new(0);
        let lazy =
            LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), || runs.fetch_add(1, Ordering::SeqCst));
        for run in 0..3 {
            assert_eq!((*lazy.get_or_refresh(), *lazy.get_or_refresh()), (run, run));
            clock.advance(TTL + TICK);
        }
    }

    // cached | a clone of the value for each caller
    #[test]
    fn a_value_that_cannot_be_cloned_is_shared_or_borrowed() {
        struct NotClone(u32);
        let lazy = LazyDogpile::new(TTL, || NotClone(7));
        assert!(Arc::ptr_eq(&lazy.get_or_refresh(), &lazy.get_or_refresh()));
        assert_eq!(lazy.load_or_refresh().0, 7);
    }

    // cached | a function that returns a `Result`: errors are not kept (but for `cache_err = true`)
    #[test]
    fn an_error_is_kept_for_the_retry_pause_only_and_never_replaces_a_value() {
        let clock = ManualClock::new();
        let is_up = AtomicU32::new(0);
        let build = || if is_up.load(Ordering::SeqCst) == 1 { Ok(1) } else { down() };
        let lazy = LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), build);
        let first = assert_build_error(lazy.try_get_or_refresh(), "connection refused");
        is_up.store(1, Ordering::SeqCst);
        let kept = assert_build_error(lazy.try_get_or_refresh(), "connection refused");
        assert!(kept.build_error().unwrap().ptr_eq(first.build_error().unwrap()));
        clock.advance(FIRST_PAUSE);
        assert_eq!(*lazy.try_get_or_refresh().unwrap(), 1);
        is_up.store(0, Ordering::SeqCst);
        clock.advance(TTL + TICK);
        assert_eq!(*lazy.try_get_or_refresh().unwrap(), 1);
        assert_eq!(lazy.cell().stats().failed, 2);
    }

    // cached | a function that calls another cached one: each is out of date by itself
    #[test]
    fn a_derived_value_is_out_of_date_when_its_source_is() {
        let (rates, clock) = cell();
        let doubled = Derived::with_clock(Policy::never_expires(), clock.clone(), {
            let rates = Arc::clone(&rates);
            move |cx| Ok::<_, RefreshError>(*cx.get(&rates) * 2)
        });
        rates.set(1);
        assert_eq!((*doubled.get(), doubled.cell().freshness()), (2, Freshness::Fresh));
        clock.advance(TTL + TICK);
        assert_eq!(doubled.cell().freshness(), Freshness::Stale);
        rates.get_or_refresh(|| 2);
        assert_eq!(*doubled.get(), 4);
    }

    // cached | `rates_prime_cache()`
    #[test]
    fn priming_builds_although_the_value_is_fresh() {
        static LIMIT: LazyDogpile<u32> = LazyDogpile::new(TTL, || 7);

        let runs = AtomicU32::new(0);
        let clock = ManualClock::new();
        let lazy = LazyDogpile::with_clock(Policy::ttl(TTL), clock, || runs.fetch_add(1, Ordering::SeqCst));
        assert_eq!((*lazy.get_or_refresh(), *lazy.request().no_cache().get()), (0, 1));

        let refresher = LIMIT.spawn_refresher(TTL / 10).unwrap();
        assert!(refresher.wait_ready(PATIENCE));
        assert_eq!(LIMIT.get().as_deref(), Some(&7));
    }
}

mod rwlock {
    use super::*;

    // rwlock | a `Condvar` beside it, for threads that wait for the next value
    #[test]
    fn a_thread_waits_for_the_next_value() {
        let (cell, _clock) = cell();
        let got = waiting(&cell, vec![Box::new(|| *cell.subscribe().wait_changed())], || drop(cell.set(1)));
        assert_eq!(got, [1]);
        assert_eq!(cell.stats().builds, 0);
    }

    // rwlock | a second lock with something that is made from the value
    #[test]
    fn what_is_made_from_the_value_changes_with_it() {
        let (cell, clock) = cell();
        let words = Derived::with_clock(Policy::never_expires(), clock, {
            let cell = Arc::clone(&cell);
            move |cx| {
                let report: Arc<String> = cx.get(&cell);
                Ok::<_, RefreshError>((report.split(' ').count(), report))
            }
        });
        for (report, count) in [("one", 1), ("two words", 2)] {
            cell.set(report.to_owned());
            let words = words.get();
            assert_eq!((words.0, words.1.as_str()), (count, report));
        }
    }

    // rwlock | a read without building
    #[test]
    fn get_never_builds() {
        let (cell, _clock) = cell();
        assert!(cell.get().is_none());
        cell.set(1);
        cell.invalidate();
        assert_eq!(cell.get().as_deref(), Some(&1));
        assert_eq!(cell.stats().builds, 0);
    }

    // rwlock | `made.elapsed()`
    #[test]
    fn a_snapshot_shows_the_age() {
        let (cell, clock) = cell();
        cell.set(1);
        clock.advance(TTL / 2);
        assert_eq!(cell.snapshot().unwrap().age, TTL / 2);
    }

    // rwlock | a build that panics poisons the lock
    #[test]
    fn after_a_panic_the_next_caller_builds() {
        let (cell, _clock) = cell();
        assert_eq!(after_a_panic(&cell, 1, || *cell.get_or_refresh(|| 1)), [1]);
        cell.clear();
        assert!(after_a_panic(&cell, 0, unbuildable).is_empty());
        assert_eq!(*cell.get_or_refresh(|| 2), 2);
    }
}

mod python_dogpile {
    use super::*;

    fn sync_reader(drain: Drain) -> (SyncReaderCell<u32, ManualClock>, ManualClock) {
        let clock = ManualClock::new();
        (SyncReaderCell::with_clock(Policy::ttl(TTL), clock.clone(), drain, |_| {}), clock)
    }

    // python_dogpile | `Dogpile(expiretime)`
    #[test]
    fn a_value_is_fresh_up_to_and_including_the_expiry_time_or_for_ever() {
        let (cell, clock) = cell();
        cell.get_or_refresh(|| 1);
        clock.advance(TTL);
        assert_eq!(*cell.get_or_refresh(unbuildable), 1);
        clock.advance(TICK);
        assert_eq!(*cell.get_or_refresh(|| 2), 2);

        let (cell, clock) = cell_with(Policy::never_expires());
        cell.get_or_refresh(|| 1);
        clock.advance(Duration::from_secs(1 << 32));
        assert_eq!(*cell.get_or_refresh(unbuildable), 1);
    }

    // python_dogpile | `Dogpile(..., init=True)`
    // python_dogpile | `acquire(creator, value_and_created_fn=...)`
    #[test]
    fn a_value_can_be_put_in_with_its_age() {
        let (cell, _clock) = cell();
        cell.set(1);
        assert_eq!(*cell.get_or_refresh(unbuildable), 1);
        cell.restore(2, TTL);
        assert_eq!((*cell.get_or_refresh(unbuildable), cell.snapshot().unwrap().age), (2, TTL));
        cell.restore(3, TTL + TICK);
        assert_eq!(cell.freshness(), Freshness::Stale);
        assert_eq!(*cell.get_or_refresh(|| 4), 4);
    }

    // python_dogpile | `Dogpile(..., lock=...)`
    // python_dogpile | dogpile.core's `Lock(mutex, creator, value_and_created_fn, expiretime)`
    #[test]
    fn one_caller_has_the_lease_and_may_be_another_thread_by_the_time_it_ends() {
        let (cell, _clock) = cell();
        let lease = elected(&cell);
        assert!(matches!(cell.lookup(), Lookup::Pending(_)));
        thread::scope(|scope| {
            scope.spawn(|| lease.publish(1));
        });
        assert_eq!(*cell.get_or_refresh(unbuildable), 1);
    }

    // python_dogpile | `dogpile.acquire(creator)`
    #[test]
    fn get_or_refresh_returns_the_value() {
        let (cell, _clock) = cell();
        assert_eq!(*cell.get_or_refresh(|| "created"), "created");
        assert_eq!(*cell.get_or_refresh(unbuildable), "created");
    }

    // python_dogpile | `acquire(creator, value_fn)`, `NeedRegenerationException`
    #[test]
    fn callers_that_find_the_same_value_unusable_share_one_build() {
        let (cell, _clock) = cell();
        cell.set("unusable");
        let seen = cell.snapshot().unwrap().generation;
        let Lookup::Elected(lease) = cell.request().newer_than(seen).lookup() else { panic!("not elected") };
        let read = || *cell.request().newer_than(seen).get(unbuildable);
        let got = waiting(&cell, times(2, read), || drop(lease.publish("usable")));
        assert_eq!(got, ["usable"; 2]);
        assert_eq!(*cell.request().newer_than(seen).get(unbuildable), "usable", "a late one too");
        cell.clear();
        assert!(cell.get().is_none());
    }

    // python_dogpile | ... a `ProxyBackend` whose `set` and `delete` are noted
    #[test]
    fn hooks_are_called_and_subscriptions_wait_for_what_is_set() {
        let (cell, _clock) = cell();
        let (hook, changes) = changes(&cell);
        let got = waiting(&cell, vec![Box::new(|| *cell.subscribe().wait_changed())], || drop(cell.set(1)));
        cell.clear();
        assert_eq!((got, changes.lock().unwrap().join(", ")), (vec![1], "1, cleared".to_owned()));
        drop(hook);
    }

    // python_dogpile | `dogpile.is_expired`, `has_value`, `createdtime`
    #[test]
    fn freshness_and_age_show_what_there_is() {
        let (cell, clock) = cell();
        assert_eq!(cell.freshness(), Freshness::Empty);
        cell.set(1);
        assert_eq!(cell.freshness(), Freshness::Fresh);
        clock.advance(TTL + TICK);
        assert_eq!((cell.freshness(), cell.snapshot().unwrap().age), (Freshness::Stale, TTL + TICK));
    }

    // python_dogpile | `SyncReaderDogpile(expiretime)`, its `acquire(creator)`
    #[test]
    fn a_sync_reader_cell_knows_its_readers() {
        let (cell, clock) = sync_reader(Drain::Background);
        let reader = cell.get_or_refresh(|| 1);
        assert_eq!(cell.readers(), 1);
        clock.advance(TTL + TICK);
        assert_eq!((*cell.get_or_refresh(|| 2), *reader), (2, 1));
    }

    // python_dogpile | `with dogpile.acquire_write_lock():`
    #[test]
    fn the_write_lock_waits_for_readers_and_holds_new_ones_back_and_hands_out_the_old_value() {
        let (cell, clock) = sync_reader(Drain::Background);
        let reader = cell.get_or_refresh(|| 1);
        clock.advance(TTL + TICK);
        let (got_lock, has_lock) = channel();
        let (finish, finished) = channel::<()>();
        thread::scope(|scope| {
            let cell = &cell;
            let writer = scope.spawn(move || {
                *cell.request().get_with_writer(|writer| {
                    let mut lock = writer.acquire_write_lock();
                    got_lock.send(lock.old().copied()).unwrap();
                    let _ = finished.recv();
                    2
                })
            });
            eventually("new readers are held back", || cell.get().is_none());
            assert!(has_lock.try_recv().is_err(), "the old value is read");
            let late = scope.spawn(|| *cell.get_or_refresh(unbuildable));
            eventually("a new reader waits", || cell.stats().waits == 1);
            drop(reader);
            assert_eq!(has_lock.recv_timeout(PATIENCE), Ok(Some(1)));
            assert!(cell.get().is_none());
            drop(finish);
            assert_eq!((writer.join().unwrap(), late.join().unwrap()), (2, 2));
        });
    }

    #[test]
    fn if_a_write_section_fails_the_old_value_is_put_back() {
        let (cell, clock) = sync_reader(Drain::Background);
        cell.set(1);
        clock.advance(TTL + TICK);
        let section = cell.request().max_stale(Duration::ZERO).try_get_with_writer(|writer| {
            let _lock = writer.acquire_write_lock();
            down()
        });
        assert_build_error(section.map(|value| *value), "connection refused");
        assert_eq!(cell.get().as_deref(), Some(&1));
    }

    // python_dogpile | ... outside of a creator, to replace the value now
    #[test]
    fn no_cache_reaches_the_write_section_although_the_value_is_fresh() {
        let (cell, _clock) = sync_reader(Drain::Background);
        cell.set(1);
        assert_eq!(cell.get().as_deref(), Some(&1));
        let written = cell
            .request()
            .no_cache()
            .get_with_writer(|writer| writer.acquire_write_lock().old().copied().unwrap() + 1);
        assert_eq!((*written, cell.freshness()), (2, Freshness::Fresh));
    }

    // python_dogpile | `ReadWriteMutex`
    #[test]
    fn a_read_write_lock_lets_readers_in_together_and_a_writer_alone() {
        let lock = parking_lot::RwLock::new(1);
        let readers = (lock.read(), lock.read());
        assert!(lock.try_write().is_none());
        drop(readers);
        assert!(lock.try_write().is_some());
    }

    // python_dogpile | dogpile.core's `async_creator(mutex)`
    #[test]
    fn a_build_that_was_handed_over_releases_the_lease_by_itself() {
        let (cell, _clock) = cell();
        let first = cell.request_owned().spawn_with(thread::spawn).get(|| 1);
        assert_eq!(*first, 1, "the first build is handed over too");
        eventually("the lease is free", || !cell.is_refreshing());
        cell.invalidate();
        let (spawn, spawned) = channel::<Job>();
        assert_eq!(*cell.request_owned().spawn_with(|job| spawn.send(job)).get(|| 2), 1);
        assert!(cell.is_refreshing());
        drop(spawned.recv().unwrap());
        assert!(!cell.is_refreshing(), "also if it never runs");
    }

    // python_dogpile | ... with an `expiration_time` of the call, shorter than the usual one
    #[test]
    fn under_max_age_one_caller_builds_and_others_get_the_old_value_or_wait_if_there_is_none() {
        let (cell, clock) = cell();
        let read = || cell.request().max_age(TTL / 2).wait_at_most(Duration::ZERO).or_stale();
        cell.set(1);
        clock.advance(TTL / 2);
        assert_eq!(*read().get(unbuildable), 1);
        clock.advance(TICK);
        let Lookup::Elected(lease) = read().lookup() else { panic!("not elected") };
        assert_eq!(*read().get(unbuildable), 1);
        lease.publish(2);
        assert_eq!(*read().get(unbuildable), 2);

        cell.clear();
        let lease = elected(&cell);
        let looks = cell.stats().wait_timeouts;
        thread::scope(|scope| {
            let waiter = scope.spawn(|| *read().get(unbuildable));
            eventually("the caller waits", || {
                cell.stats().waits == 1 && cell.stats().wait_timeouts == looks + 1
            });
            lease.publish(3);
            assert_eq!(waiter.join().unwrap(), 3);
        });
    }

    // python_dogpile | ... `region.get(key)`, `region.set(key, value)`
    #[test]
    fn get_may_serve_a_stale_value_and_a_snapshot_shows_that() {
        let (cell, clock) = cell();
        assert!(cell.get().is_none());
        cell.set(1);
        clock.advance(TTL + TICK);
        assert_eq!(cell.get().as_deref(), Some(&1));
        assert_eq!(cell.snapshot().unwrap().freshness, Freshness::Stale);
    }

    // python_dogpile | ... `region.key_is_locked(key)`
    #[test]
    fn is_refreshing_shows_whether_a_build_runs() {
        let (cell, _clock) = cell::<u32>();
        assert!(!cell.is_refreshing());
        let lease = elected(&cell);
        assert!(cell.is_refreshing());
        drop(lease);
        assert!(!cell.is_refreshing());
    }

    // python_dogpile | ... `should_cache_fn`
    #[test]
    fn a_lease_that_is_dropped_keeps_a_value_out_of_the_cell() {
        let (cell, _clock) = stale_cell(1);
        drop(elected(&cell)); // its caller has made a value, and keeps it
        assert_eq!((cell.get().as_deref(), cell.generation()), (Some(&1), 1));

        let (cell, _clock) = super::cell();
        let lease = elected(&cell);
        let builds = AtomicU32::new(0);
        let read = || *cell.get_or_refresh(|| builds.fetch_add(1, Ordering::SeqCst) + 1);
        assert_eq!(waiting(&cell, times(2, read), || drop(lease)), [1; 2], "one of the waiters builds");
    }

    #[test]
    fn a_value_with_a_ttl_of_zero_replaces_the_old_one_and_is_served_as_stale() {
        let (cell, clock) = stale_cell(1);
        elected(&cell).publish_for(2, Duration::ZERO);
        clock.advance(TICK);
        assert_eq!((cell.freshness(), cell.get().as_deref()), (Freshness::Stale, Some(&2)));
    }

    // What is different. (That waiters share an error, and that all callers get the old value: see above.)

    #[test]
    fn an_invalidation_during_a_creation_is_not_lost() {
        let (cell, _clock) = cell();
        cell.get_or_refresh(|| {
            cell.invalidate();
            1
        });
        assert_eq!(cell.freshness(), Freshness::Stale);
        assert_eq!(*cell.get_or_refresh(|| 2), 2);
    }

    #[test]
    fn a_creator_that_asks_its_own_cell_the_first_time_gets_an_error() {
        let (cell, _clock) = cell::<u32>();
        let outer = cell.try_get_or_refresh(|| cell.try_get_or_refresh(cannot_build).map(|value| *value));
        let error = outer.unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(RefreshError::Reentrant)), "{error:?}");
    }

    #[test]
    fn waiters_get_the_value_that_was_built_even_if_it_has_expired() {
        let (cell, clock) = cell_with(Policy::ttl(Duration::ZERO).stale_while_refresh(Duration::ZERO));
        let lease = elected(&cell);
        let got = waiting(&cell, times(10, || *cell.get_or_refresh(unbuildable)), || {
            lease.publish(1);
            clock.advance(TTL);
        });
        assert_eq!((got, cell.stats().builds), (vec![1; 10], 1));
    }
}

mod watch {
    use super::*;

    // watch | `channel(initial)`
    // watch | `receiver_count()`, `closed()`: whether anything listens
    // watch | `sender.send(value)` fails without receivers
    // watch | `receiver.has_changed()`
    // watch | a new receiver has seen the current value
    #[test]
    fn a_cell_is_set_without_subscriptions_and_a_new_one_has_seen_nothing() {
        let (cell, _clock) = cell();
        cell.set(1);
        cell.set(2);
        let mut subscription = cell.subscribe();
        assert!(subscription.has_changed());
        assert_eq!(*subscription.wait_changed(), 2);
        assert!(!subscription.has_changed());
    }

    // watch | `send_modify(f)` changes the value in place
    #[test]
    fn a_value_that_is_held_stays_what_it_is() {
        let (cell, _clock) = cell();
        let held = cell.set(vec![1]);
        cell.set(held.iter().copied().chain([2]).collect());
        assert_eq!((held.as_slice(), cell.get().unwrap().as_slice()), (&[1][..], &[1, 2][..]));
    }

    // watch | `receiver.mark_unchanged()`
    #[test]
    fn what_is_there_can_be_taken_without_waiting() {
        let (cell, _clock) = cell();
        cell.set(1);
        let mut subscription = cell.subscribe();
        let _ = subscription.wait_changed_timeout(Duration::ZERO);
        assert!(!subscription.has_changed());
        cell.set(2);
        assert_eq!(*subscription.wait_changed(), 2);
    }

    // watch | `send_if_modified`
    #[test]
    fn a_renewal_is_the_same_value_as_a_new_generation() {
        let (cell, _clock) = cell();
        let value = cell.set(1);
        let mut subscription = cell.subscribe();
        subscription.wait_changed();
        elected(stale(&cell)).renew().unwrap();
        assert!(Arc::ptr_eq(&subscription.wait_changed(), &value));
        assert_eq!(subscription.seen(), 2);
        cell.invalidate();
        cell.request().try_get_with(|_| Ok::<_, io::Error>(Refreshed::NotModified)).unwrap();
        assert!(Arc::ptr_eq(&subscription.wait_changed(), &value));
    }

    fn stale<T>(cell: &Cell<T>) -> &Cell<T> {
        cell.invalidate();
        cell
    }

    // watch | `sender.subscribe()`, `receiver.clone()`
    #[test]
    fn a_clone_has_seen_what_the_original_has() {
        let (cell, _clock) = cell();
        cell.set(1);
        let mut owned = cell.subscribe_owned();
        assert!(cell.subscribe().has_changed());
        owned.wait_changed();
        assert!(!owned.clone().has_changed());
    }

    // watch | `receiver.borrow()` holds a lock: a slow reader stops the sender
    #[test]
    fn a_reader_stops_no_publisher() {
        let (cell, _clock) = cell();
        cell.set(1);
        let guard = cell.load().unwrap();
        cell.set(2);
        assert_eq!((*guard, cell.get().as_deref()), (1, Some(&2)));
    }

    // watch | `receiver.changed().await`, then `borrow_and_update()`
    // watch | only the latest value is seen
    #[test]
    fn a_thread_gets_the_latest_value_and_a_hook_each_one() {
        let (cell, _clock) = cell();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let hook = cell.on_publish({
            let seen = Arc::clone(&seen);
            move |snapshot| seen.lock().unwrap().push(*snapshot.value)
        });
        let mut subscription = cell.subscribe();
        cell.set(1);
        cell.set(2);
        assert_eq!((*subscription.wait_changed(), subscription.has_changed()), (2, false));
        assert_eq!(*seen.lock().unwrap(), [1, 2]);
        drop(hook);
    }

    // watch | ... is cancel-safe
    // watch | `WatchStream` of `tokio-stream`
    // watch | `wait_for(predicate)`
    #[cfg(feature = "async")]
    #[test]
    fn changed_loses_nothing_when_it_is_dropped_and_is_a_stream() {
        use futures_lite::{StreamExt, future};

        let (cell, _clock) = cell();
        let mut subscription = cell.subscribe();
        future::block_on(async {
            assert!(future::poll_once(subscription.changed()).await.is_none());
            cell.set(1);
            assert!(future::poll_once(subscription.changed()).await.is_some());
            cell.set(2);
            assert_eq!(subscription.next().await.as_deref(), Some(&2));
            cell.set(10);
            while *subscription.changed().await < 10 {}
        });
    }

    // watch | `changed()` fails when all senders are gone
    #[test]
    fn an_owned_subscription_keeps_its_cell() {
        let (cell, _clock) = cell::<u32>();
        let subscription = cell.subscribe_owned();
        assert_eq!(Arc::strong_count(&cell), 2);
        drop(subscription);
        assert_eq!(Arc::strong_count(&cell), 1);
    }
}

mod observer {
    use super::*;

    fn made<T: Send + Sync + 'static>(
        clock: &ManualClock,
        make: impl Fn(&dogpile::Cx) -> T + Send + Sync + 'static,
    ) -> Derived<T, ManualClock> {
        Derived::with_clock(Policy::never_expires(), clock.clone(), move |cx| Ok::<_, RefreshError>(make(cx)))
    }

    // observer | `SimpleObservable<T>`, `setValue`
    // observer | `makeObserver([] { ... })`
    // observer | dependencies are what the closure reads
    // observer | computed eagerly, on the manager's threads
    // observer | `observer.getSnapshot()`
    // observer | `TLObserver`, `AtomicObserver`
    #[test]
    fn it_is_made_by_the_next_read_from_what_it_asks_for() {
        let (source, clock) = cell();
        let (other, _) = cell();
        let runs = Arc::new(AtomicU32::new(0));
        let twice = made(&clock, {
            let (source, runs) = (Arc::clone(&source), Arc::clone(&runs));
            move |cx| {
                runs.fetch_add(1, Ordering::SeqCst);
                *cx.get(&source) * 2
            }
        });
        source.set(1);
        assert_eq!(runs.load(Ordering::SeqCst), 0);
        assert_eq!((*twice.get(), **twice.reader().get()), (2, 2));
        other.set(1);
        source.set(2);
        assert_eq!((*twice.get(), runs.load(Ordering::SeqCst)), (4, 2));

        let mut subscription = twice.subscribe();
        subscription.wait_changed();
        let refresher = twice.spawn_refresher().unwrap();
        source.set(3);
        while *subscription.wait_changed() != 6 {}
        drop(refresher);
    }

    // observer | `ObserverManager::waitForAllUpdates()`
    #[test]
    fn a_read_of_a_chain_is_made_from_what_has_been_set() {
        let (source, clock) = cell();
        let twice = made(&clock, {
            let source = Arc::clone(&source);
            move |cx| *cx.get(&source) * 2
        });
        let fourfold = made(&clock, {
            let twice = twice.clone();
            move |cx| *cx.get(&twice) * 2
        });
        for value in 1..4 {
            source.set(value);
            assert_eq!(*fourfold.get(), 4 * value);
        }
    }

    // observer | a snapshot never mixes two versions
    #[test]
    fn a_source_has_one_value_in_one_evaluation() {
        let (source, clock) = cell();
        source.set(1);
        let same = made(&clock, {
            let source = Arc::clone(&source);
            move |cx| *cx.get(&source)
        });
        let pair = made(&clock, {
            let (source, same) = (Arc::clone(&source), same.clone());
            move |cx| {
                let first = *cx.get(&source);
                if first == 1 {
                    source.set(2);
                }
                (first, *cx.get(&same))
            }
        });
        assert_eq!((*pair.get(), *pair.get()), ((1, 1), (2, 2)));
    }

    // observer | a creator that throws keeps the old value
    #[test]
    fn an_error_keeps_the_old_value_until_a_source_changes() {
        let (source, clock) = cell();
        let checked = Derived::with_clock(Policy::never_expires(), clock, {
            let source = Arc::clone(&source);
            move |cx| if *cx.get(&source) == 0 { down() } else { Ok(*cx.get(&source)) }
        });
        source.set(1);
        assert_eq!(*checked.get(), 1);
        source.set(0);
        assert_eq!(*checked.get(), 1);
        assert_eq!(checked.cell().last_error().unwrap().to_string(), "connection refused");
        source.set(2);
        assert_eq!(*checked.get(), 2);
    }

    // observer | `addCallback`
    #[test]
    fn a_derived_value_has_hooks_and_subscriptions() {
        let (source, clock) = cell();
        source.set(1);
        let same = made(&clock, {
            let source = Arc::clone(&source);
            move |cx| *cx.get(&source)
        });
        let calls = Arc::new(AtomicU32::new(0));
        let hook = same.on_publish({
            let calls = Arc::clone(&calls);
            move |snapshot| calls.store(*snapshot.value, Ordering::SeqCst)
        });
        let _ = same.get();
        assert_eq!((calls.load(Ordering::SeqCst), *same.subscribe().wait_changed()), (1, 1));
        drop(hook);
    }

    // observer | `ObserverCreator` for an external source
    #[test]
    fn a_lazy_cell_is_a_source_that_builds_itself() {
        let clock = ManualClock::new();
        let builds = Arc::new(AtomicU32::new(0));
        let lazy = Arc::new(LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), {
            let builds = Arc::clone(&builds);
            move || builds.fetch_add(1, Ordering::SeqCst)
        }));
        let same = made(&clock, {
            let lazy = Arc::clone(&lazy);
            move |cx| *cx.get(&lazy)
        });
        assert_eq!(*same.get(), 0);
        clock.advance(TTL + TICK);
        assert_eq!(*same.get(), 1);
    }

    // observer | `makeValueObserver`: equal values are not propagated
    #[test]
    fn an_equal_value_is_a_new_publication() {
        let (source, clock) = cell();
        source.set(1);
        let parity = made(&clock, {
            let source = Arc::clone(&source);
            move |cx| *cx.get(&source) % 2
        });
        let mut subscription = parity.subscribe();
        assert_eq!((*parity.get(), *subscription.wait_changed()), (1, 1));
        source.set(3);
        assert_eq!(*parity.get(), 1);
        assert!(subscription.has_changed());
    }

    // observer | a cycle is an error
    #[test]
    fn a_cycle_is_an_error() {
        let slot = Arc::new(Mutex::new(None::<Derived<u32>>));
        let itself = Derived::try_new({
            let slot = Arc::clone(&slot);
            move |cx| {
                let itself = slot.lock().unwrap().clone().unwrap();
                cx.try_get(&itself).map(|value| *value)
            }
        });
        *slot.lock().unwrap() = Some(itself.clone());
        assert!(matches!(itself.try_get(), Err(RefreshError::Reentrant)));
        *slot.lock().unwrap() = None;
    }
}
