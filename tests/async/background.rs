//! Builds that are futures and are handed to somebody else.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Freshness, ManualClock, Policy, SharedCell};

use crate::support::{
    Cell, Door, Hand, LookupExt, TICK, TTL, cell, cell_with, eventually, guarded, joined, never,
    panic_as_planned, panic_message, panics_as_planned, stale_cell, until,
};

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A spawner for a caller that has nothing to hand over.
fn nobody(_: Job) {
    unreachable!("there is nothing to hand over")
}

async fn unbuilt() -> u32 {
    unreachable!("somebody else builds, or nobody has to")
}

/// What a caller is served at once, who has nothing to hand over.
#[track_caller]
fn served(cell: &Cell<u32>) -> u32 {
    *Hand::new(cell.get_or_refresh_in_background_async(nobody, unbuilt)).ready()
}

/// The job that a caller hands over, who gets the old value at once.
#[track_caller]
fn job<F>(cell: &Cell<u32>, old: u32, build: impl FnOnce() -> F + Send + 'static) -> Hand<'static, ()>
where
    F: Future<Output = u32> + Send + 'static,
{
    let mut job = None;
    {
        let spawn = |spawned| job = Some(spawned);
        assert_eq!(*Hand::new(cell.get_or_refresh_in_background_async(spawn, build)).ready(), old);
    }
    Hand::new(job.expect("the caller should have been elected"))
}

/// Runs a job on the spot.
fn run(job: Job) {
    Hand::new(job).ready();
}

#[test]
fn the_first_build_is_awaited() {
    let (cell, _clock) = cell();
    let door = Door::default();
    let mut first = Hand::new(cell.get_or_refresh_in_background_async(nobody, {
        let door = door.clone();
        || async move {
            door.pass().await;
            1
        }
    }));
    first.pending();
    // Others wait with it.
    let mut second = Hand::new(cell.get_or_refresh_in_background_async(nobody, unbuilt));
    second.pending();
    door.open();
    assert_eq!((*first.ready(), *second.ready()), (1, 1));
    assert_eq!((cell.stats().builds, cell.stats().waits), (1, 1));
}

#[test]
fn g2_a_stale_read_hands_a_job_over_and_is_ready_at_once() {
    let (cell, _clock) = stale_cell(1);
    let door = Door::default();
    let mut job = job(&cell, 1, {
        let door = door.clone();
        || async move {
            door.pass().await;
            2
        }
    });
    // Handed over, not begun; one job, however many ask.
    assert!(cell.is_refreshing());
    assert_eq!(served(&cell), 1);
    job.pending();
    assert_eq!(served(&cell), 1);
    assert_eq!(*cell.get_or_refresh_in_background(|_| unreachable!("there is one"), || 0), 1);
    door.open();
    assert_eq!(job.wakes(), 1);
    job.ready();
    assert_eq!(served(&cell), 2);
    assert_eq!((cell.stats().builds, cell.stats().waits), (1, 0));
}

#[test]
fn nothing_happens_before_the_first_poll() {
    let (cell, _clock) = stale_cell(1);
    drop(cell.get_or_refresh_in_background_async(nobody, unbuilt));
    assert_eq!((cell.stats().builds, cell.is_refreshing()), (0, false));
}

#[test]
fn a_static_cell() {
    static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires());
    let call = |build: u32| {
        *Hand::new((&CELL).get_or_refresh_in_background_async(run, move || async move { build })).ready()
    };
    assert_eq!(call(1), 1);
    assert_eq!(call(2), 1);
    CELL.invalidate();
    assert_eq!(call(3), 3);
}

/// The caller is served while the build is stopped, on a real executor.
async fn served_before_it_is_built(spawn: impl FnOnce(Job) + Send) {
    let (cell, _clock) = stale_cell(1);
    let door = Door::default();
    let begun = Arc::new(AtomicBool::new(false));
    let build = {
        let (door, begun) = (door.clone(), Arc::clone(&begun));
        move || async move {
            begun.store(true, Ordering::SeqCst);
            door.pass().await;
            2
        }
    };
    assert_eq!(*cell.get_or_refresh_in_background_async(spawn, build).await, 1);
    until("the job begins", || begun.load(Ordering::SeqCst)).await;
    assert_eq!(*cell.get_or_refresh_in_background_async(nobody, unbuilt).await, 1);
    door.open();
    until("the job ends", || !cell.is_refreshing()).await;
    assert_eq!(*cell.get_or_refresh_in_background_async(nobody, unbuilt).await, 2);
}

#[test]
fn g2_tasks_of_tokio() {
    guarded(|| {
        let spawn = |job| drop(tokio::spawn(job));
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(served_before_it_is_built(spawn));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(served_before_it_is_built(spawn));
        // The caller is a task too, so the futures can be sent.
        runtime.block_on(runtime.spawn(served_before_it_is_built(spawn))).unwrap();
    });
}

#[test]
fn g2_tasks_of_smol() {
    guarded(|| smol::block_on(served_before_it_is_built(|job| smol::spawn(job).detach())));
}

#[test]
fn g5_a_spawner_that_drops_the_job_gives_the_lease_back() {
    let (cell, _clock) = stale_cell(1);
    for attempt in 1..=3 {
        assert_eq!(*Hand::new(cell.get_or_refresh_in_background_async(drop, unbuilt)).ready(), 1);
        assert!(!cell.is_refreshing());
        assert_eq!((cell.stats().builds, cell.stats().abandoned), (attempt, attempt));
    }
    assert_eq!(*Hand::new(cell.get_or_refresh_in_background_async(run, || async { 2 })).ready(), 2);
}

#[test]
fn g5_a_job_that_is_dropped_midway_gives_the_lease_back() {
    let (cell, _clock) = stale_cell(1);
    let mut midway = job(&cell, 1, never);
    midway.pending();
    drop(midway);
    assert_eq!((cell.is_refreshing(), cell.stats().abandoned), (false, 1));
    job(&cell, 1, || async { 2 }).ready();
    assert_eq!(served(&cell), 2);
}

#[test]
fn g5_a_spawner_that_panics_gives_the_lease_back() {
    let (cell, _clock) = stale_cell(1);
    let mut caller = Hand::new(cell.get_or_refresh_in_background_async(|_| panic_as_planned(), unbuilt));
    panics_as_planned(|| caller.poll());
    assert!(!cell.is_refreshing());
    job(&cell, 1, || async { 2 }).ready();
    assert_eq!(served(&cell), 2);
}

/// As outside of a runtime.
#[test]
fn g5_a_spawner_without_an_executor_gives_the_lease_back() {
    let (cell, _clock) = stale_cell(1);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let handle = runtime.handle().clone();
    drop(runtime);
    let spawn = |job| drop(handle.spawn(job));
    assert_eq!(*Hand::new(cell.get_or_refresh_in_background_async(spawn, unbuilt)).ready(), 1);
    assert_eq!((cell.is_refreshing(), cell.stats().abandoned), (false, 1));
}

#[test]
fn g3_a_job_that_is_run_on_the_spot_serves_what_it_has_built() {
    let (cell, _clock) = stale_cell(1);
    let value = Hand::new(cell.get_or_refresh_in_background_async(run, || async { 2 })).ready();
    assert_eq!(*value, 2);
    assert!(Arc::ptr_eq(&value, &cell.get().unwrap()));
}

#[test]
fn g5_a_panic_in_the_background_leaves_the_value_and_frees_the_lease() {
    let (cell, _clock) = stale_cell(1);
    let door = Door::default();
    let mut panicking = job(&cell, 1, {
        let door = door.clone();
        || async move {
            door.pass().await;
            panic_as_planned()
        }
    });
    panicking.pending();
    door.open();
    panics_as_planned(|| panicking.poll());
    drop(panicking);
    assert_eq!((cell.is_refreshing(), cell.stats().panicked, cell.stats().abandoned), (false, 1, 0));
    // One in the closure that makes the future, which is called by the job.
    let mut panicking = job(&cell, 1, || -> std::future::Ready<u32> { panic_as_planned() });
    panics_as_planned(|| panicking.poll());
    job(&cell, 1, || async { 2 }).ready();
    assert_eq!(served(&cell), 2);
}

#[test]
fn a_panic_in_the_background_begins_the_retry_pause() {
    const PAUSE: Duration = Duration::from_secs(1);
    let (cell, clock) = cell_with(Policy::ttl(TTL).retry_backoff(PAUSE, PAUSE));
    cell.set(1);
    clock.advance(TTL + TICK);
    let mut panicking = job(&cell, 1, || async { panic_as_planned() });
    panics_as_planned(|| panicking.poll());
    clock.advance(PAUSE - TICK);
    assert_eq!(served(&cell), 1);
    clock.advance(TICK);
    job(&cell, 1, || async { 2 }).ready();
    assert_eq!(served(&cell), 2);
}

#[test]
fn an_expired_value_is_rebuilt_by_the_caller() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(TTL));
    cell.set(1);
    clock.advance(2 * TTL);
    drop(job(&cell, 1, unbuilt));
    clock.advance(TICK);
    assert_eq!(*Hand::new(cell.get_or_refresh_in_background_async(nobody, || async { 3 })).ready(), 3);
}

#[test]
fn g6_a_value_that_expires_meanwhile_makes_callers_wait_for_the_job() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(TTL));
    cell.set(1);
    clock.advance(2 * TTL);
    let mut job = job(&cell, 1, || async { 2 });
    clock.advance(TICK);
    let mut task = Hand::new(cell.get_or_refresh_in_background_async(nobody, unbuilt));
    task.pending();
    let thread = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || *cell.get_or_refresh_in_background(|_| unreachable!(), || 0))
    };
    eventually("both wait", || cell.stats().waits == 2);
    job.ready();
    assert_eq!(task.wakes(), 1);
    assert_eq!((*task.ready(), joined(thread)), (2, 2));
}

#[test]
fn g4_a_job_that_is_kept_for_ever_is_superseded() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).lease_timeout(TTL));
    cell.set(1);
    clock.advance(TTL + TICK);
    let door = Door::default();
    let mut kept = job(&cell, 1, {
        let door = door.clone();
        || async move {
            door.pass().await;
            2
        }
    });
    kept.pending();
    clock.advance(TTL);
    assert_eq!(served(&cell), 1);
    clock.advance(TICK);
    let mut next = job(&cell, 1, || async { 3 });
    // It ends after all, first before and then after the one in its place: fenced off.
    door.open();
    kept.ready();
    assert_eq!((served(&cell), cell.is_refreshing()), (1, true));
    next.ready();
    assert_eq!((served(&cell), cell.generation(), cell.stats().superseded), (3, 2, 1));
}

#[test]
fn g4_the_fence_holds_for_jobs() {
    let (cell, _clock) = stale_cell(1);
    let mut first = job(&cell, 1, || async { 2 });
    cell.invalidate();
    first.ready();
    assert_eq!((cell.freshness(), cell.get().as_deref()), (Freshness::Stale, Some(&2)));
    let mut second = job(&cell, 2, || async { 3 });
    cell.set(4);
    second.ready();
    assert_eq!(served(&cell), 4);
}

#[test]
fn a_job_keeps_its_cell_alive() {
    let (cell, _clock) = stale_cell(1);
    let weak = Arc::downgrade(&cell);
    let mut job = job(&cell, 1, || async { 2 });
    drop(cell);
    assert!(weak.upgrade().is_some());
    job.ready();
    // The future still has to be dropped, but has let go.
    assert!(weak.upgrade().is_none());
}

#[test]
fn g10_inside_its_own_build_a_caller_without_a_value_is_told() {
    let (cell, _clock) = cell();
    let inner = Arc::clone(&cell);
    let build = move || async move { *inner.get_or_refresh_in_background_async(nobody, unbuilt).await };
    let message = panic_message(|| Hand::new(cell.get_or_refresh_in_background_async(nobody, build)).poll());
    assert!(message.starts_with("get_or_refresh_in_background_async, at "), "{message}");
    // The call inside is named.
    assert!(message.contains(file!()), "{message}");
}

#[test]
fn g2_other_callers_are_served_while_a_job_is_about() {
    let (cell, _clock) = stale_cell(1);
    let mut job = job(&cell, 1, || async { 2 });
    assert_eq!(*cell.get_or_refresh(|| unreachable!("somebody builds")), 1);
    assert_eq!(*Hand::new(cell.get_or_refresh_async(unbuilt)).ready(), 1);
    let mut fresh = Hand::new(cell.get_fresh_or_refresh_async(unbuilt));
    fresh.pending();
    job.ready();
    assert_eq!(*fresh.ready(), 2);
}

/// A caller that has been waiting and is elected after all has nothing to serve: it builds itself.
#[test]
fn a_caller_that_waited_for_a_build_that_was_abandoned_builds() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut caller = Hand::new(cell.get_or_refresh_in_background_async(nobody, || async { 1 }));
    caller.pending();
    drop(lease);
    assert_eq!(caller.poll().map(|value| *value), Poll::Ready(1));
}

#[test]
fn a_caller_that_is_dropped_midway_gives_the_lease_back() {
    let (cell, _clock): (Arc<DogpileCell<u32, ManualClock>>, _) = cell();
    let mut first = Hand::new(cell.get_or_refresh_in_background_async(nobody, never));
    first.pending();
    drop(first);
    assert_eq!((cell.is_refreshing(), cell.stats().abandoned), (false, 1));
}
