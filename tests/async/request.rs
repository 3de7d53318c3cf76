//! Reads with conditions, from tasks. Time is a `ManualClock`.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{DogpileCell, Freshness, Lookup, Policy, RefreshError, Refreshed, Task, Waited};

use crate::executors::{Executor, Spawner};
use crate::support::{
    Cell, Door, Hand, LookupExt, TICK, TTL, cell, cell_with, never, plain, run, stale_cell, unbuilt, until,
    untried,
};

const SECOND: Duration = Duration::from_secs(1);
/// More than any real cell has to bear.
const MANY: usize = if cfg!(miri) { 20 } else { 1000 };

type Outcome = Result<Arc<u32>, RefreshError>;

/// A build that waits at `door`.
async fn behind(door: Door, value: u32) -> Result<u32, &'static str> {
    door.pass().await;
    Ok(value)
}

#[track_caller]
fn times_out(outcome: &Outcome) {
    assert!(matches!(outcome, Err(RefreshError::WaitTimeout)), "{outcome:?}");
}

// What the value must be.

#[test]
fn max_stale_rules_out_values_that_are_staler() {
    let (cell, clock) = cell();
    cell.set(1);
    clock.advance(TTL + SECOND);
    // A build runs, so what may be stale is served.
    let mut builder = Hand::new(cell.get_or_refresh_async(never));
    builder.pending();
    assert_eq!(*Hand::new(cell.request().max_stale(SECOND).get_async(unbuilt)).ready(), 1);
    let mut fresh =
        Hand::new(cell.request().max_stale(SECOND - TICK).try_get_async(|| async { Ok::<_, &str>(2) }));
    fresh.pending();
    drop(builder);
    assert_eq!(*fresh.ready().unwrap(), 2);
}

#[test]
fn max_age_accepts_what_others_have_built_meanwhile() {
    let (cell, clock) = cell();
    cell.set(1);
    clock.advance(5 * SECOND);
    let request = || cell.request().max_age(4 * SECOND);
    assert_eq!(*Hand::new(cell.request().max_age(5 * SECOND).get_async(unbuilt)).ready(), 1);
    let door = Door::default();
    let mut builder = Hand::new(request().try_get_async(|| behind(door.clone(), 2)));
    builder.pending();
    let mut others: Vec<_> = (0..100).map(|_| Hand::new(request().get_async(unbuilt))).collect();
    for other in &mut others {
        other.pending();
    }
    door.open();
    let value = builder.ready().unwrap();
    for mut other in others {
        assert!(Arc::ptr_eq(&other.ready(), &value));
    }
    clock.advance(4 * SECOND);
    assert_eq!(*Hand::new(request().get_async(unbuilt)).ready(), 2);
    assert_eq!(cell.stats().builds, 1);
}

/// G14: a thousand tokens with an unknown key are one fetch.
#[test]
fn g14_newer_than_leads_to_one_build_for_all_that_have_seen_the_same_value() {
    let (cell, _clock) = cell();
    cell.set(1);
    let seen = cell.generation();
    let door = Door::default();
    let mut builder = Hand::new(cell.request().newer_than(seen).try_get_async(|| behind(door.clone(), 2)));
    builder.pending();
    // Others are served the value that is fresh.
    assert_eq!(*Hand::new(cell.get_or_refresh_async(unbuilt)).ready(), 1);
    let mut others: Vec<_> =
        (0..MANY).map(|_| Hand::new(cell.request().newer_than(seen).get_async(unbuilt))).collect();
    for other in &mut others {
        other.pending();
    }
    door.open();
    assert_eq!(*builder.ready().unwrap(), 2);
    for mut other in others {
        assert_eq!((other.wakes(), *other.ready()), (1, 2));
    }
    // One that comes late has seen the old one too.
    assert_eq!(*Hand::new(cell.request().newer_than(seen).get_async(unbuilt)).ready(), 2);
    assert_eq!(cell.stats().builds, 1);
}

/// The running build began before the call, so another one follows it; all that wait for that share it.
#[test]
fn no_cache_takes_no_build_that_began_before_the_call() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let door = Door::default();
    let request = || cell.request().no_cache();
    let mut tasks: Vec<_> =
        (0..3).map(|_| Hand::new(request().try_get_async(|| behind(door.clone(), 2)))).collect();
    for task in &mut tasks {
        task.pending();
    }
    let mut plain = Hand::new(cell.get_or_refresh_async(unbuilt));
    plain.pending();
    lease.publish(1);
    assert_eq!(*plain.ready(), 1);
    for task in &mut tasks {
        assert_eq!(task.wakes(), 1);
        task.pending();
    }
    assert_eq!(cell.stats().builds, 2);
    door.open();
    for task in &mut tasks {
        assert_eq!(*task.ready().unwrap(), 2);
    }
    assert_eq!(cell.stats().builds, 2);
}

#[test]
fn no_cache_takes_a_value_that_is_set_after_the_call() {
    let (cell, _clock) = cell();
    cell.set(1);
    let lease = cell.request().no_cache().lookup().elected();
    let mut task = Hand::new(cell.request().no_cache().get_async(unbuilt));
    task.pending();
    cell.set(2);
    assert_eq!(*task.ready(), 2);
    drop(lease);
}

/// What wakes the task would do; what it finds when it looks was begun before the call.
#[test]
fn a_no_cache_waiter_judges_a_value_by_the_build_that_made_it() {
    let (cell, _clock) = cell();
    let older = cell.lookup().elected();
    let mut task = Hand::new(cell.request().no_cache().get_async(|| async { 3 }));
    task.pending();
    cell.restore(1, Duration::ZERO);
    older.publish(2);
    assert_eq!(*task.ready(), 3);
    // The other way round there is nothing to build.
    let older = cell.request().no_cache().lookup().elected();
    let mut task = Hand::new(cell.request().no_cache().get_async(unbuilt));
    task.pending();
    older.publish(4);
    cell.set(5);
    assert_eq!(*task.ready(), 5);
}

#[test]
fn no_cache_is_the_one_condition_that_builds_in_a_retry_pause() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    cell.set(1);
    clock.advance(TTL + TICK);
    let failed = run(cell.request().max_stale(Duration::ZERO).try_get_async(|| async { Err("down") }));
    assert_eq!(failed.unwrap_err().to_string(), "down");
    for request in [
        cell.request().max_stale(Duration::ZERO),
        cell.request().max_age(TTL),
        cell.request().newer_than(cell.generation()),
    ] {
        let error = run(request.clone().try_get_async(untried)).unwrap_err();
        assert_eq!(error.to_string(), "down");
        assert_eq!(*run(request.or_stale().try_get_async(untried)).unwrap(), 1);
    }
    assert_eq!(*run(cell.request().get_async(unbuilt)), 1);
    assert_eq!(*run(cell.request().no_cache().try_get_async(|| async { Ok::<_, &str>(2) })).unwrap(), 2);
    assert_eq!(cell.stats().builds, 2);
}

/// A call that can return no error builds in the pause if nothing meets its conditions.
#[test]
fn get_async_builds_in_a_retry_pause_if_its_conditions_are_not_met() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).retry_backoff(TTL, TTL));
    cell.set(1);
    clock.advance(TTL + TICK);
    let served = run(cell.try_get_or_refresh_async(|| async { Err("down") }));
    assert_eq!(*served.unwrap(), 1);
    assert_eq!(*run(cell.request().max_stale(Duration::ZERO).or_stale().get_async(unbuilt)), 1);
    assert_eq!(*run(cell.request().max_stale(Duration::ZERO).get_async(|| async { 2 })), 2);
}

#[test]
fn conditions_that_no_value_meets_lead_to_one_build_by_each_call() {
    let (cell, _clock) = cell();
    for value in 1..=3 {
        let request = cell.request().newer_than(u64::MAX);
        assert_eq!(*run(request.get_async(|| async { value })), value);
    }
    assert_eq!(cell.stats().builds, 3);
}

/// The value of its own build meets the conditions, whatever happened meanwhile.
#[test]
fn the_value_of_its_own_build_is_accepted_though_it_was_declared_stale() {
    let (cell, _clock) = stale_cell(1);
    let door = Door::default();
    let request = cell.request().max_stale(Duration::ZERO);
    let mut task = Hand::new(request.try_get_async(|| behind(door.clone(), 2)));
    task.pending();
    cell.invalidate();
    door.open();
    assert_eq!((*task.ready().unwrap(), cell.freshness()), (2, Freshness::Stale));
}

// How long it waits.

#[test]
fn wait_at_most_ends_exactly_when_the_time_is_over() {
    let (cell, clock) = cell();
    let lease = cell.lookup().elected();
    let request = || cell.request().wait_at_most(SECOND);
    let mut task = Hand::new(request().try_get_async(untried));
    let mut conditional = Hand::new(request().try_get_with_async(|_| untried()));
    task.pending();
    conditional.pending();
    clock.advance(SECOND - TICK);
    task.pending();
    conditional.pending();
    let before = (task.wakes(), conditional.wakes());
    clock.advance(TICK);
    assert!(task.wakes() > before.0 && conditional.wakes() > before.1);
    times_out(&task.ready());
    times_out(&conditional.ready());
    assert!(!task.is_listed() && !conditional.is_listed());
    assert_eq!((cell.stats().waits, cell.stats().wait_timeouts), (2, 2));
    // It has taken no part in the build.
    assert!(cell.is_refreshing());
    lease.publish(1);
}

#[test]
fn a_build_that_ends_in_time_is_served() {
    let (cell, clock) = cell();
    let lease = cell.lookup().elected();
    let mut task = Hand::new(cell.request().wait_at_most(SECOND).try_get_async(untried));
    task.pending();
    clock.advance(SECOND - TICK);
    lease.publish(1);
    // Though the task is polled when the time is over.
    clock.advance(SECOND);
    assert_eq!(*task.ready().unwrap(), 1);
    assert_eq!(cell.stats().wait_timeouts, 0);
}

#[test]
fn with_no_time_it_does_not_wait_at_all() {
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let mut task = Hand::new(cell.request().wait_at_most(Duration::ZERO).try_get_async(untried));
    times_out(&task.ready());
    assert_eq!((task.wakes(), task.is_listed(), cell.stats().waits), (0, false, 0));
    drop(lease);
    // Its own build is not bounded.
    let mut task = Hand::new(cell.request().wait_at_most(Duration::ZERO).get_async(|| async {
        futures_lite::future::yield_now().await;
        1
    }));
    assert_eq!(*task.pending().ready(), 1);
}

#[test]
fn the_time_is_counted_once_for_all_builds_that_it_waits_for() {
    let (cell, clock) = cell::<u32>();
    let first = cell.lookup().elected();
    let mut task = Hand::new(cell.request().wait_at_most(TTL).no_cache().try_get_async(untried));
    task.pending();
    clock.advance(TTL - SECOND);
    first.publish(1);
    // Another one is elected, before the task looks.
    let second = cell.request().no_cache().lookup().elected();
    task.pending();
    clock.advance(SECOND - TICK);
    task.pending();
    clock.advance(TICK);
    times_out(&task.ready());
    drop(second);
}

#[test]
fn or_stale_serves_the_old_value_when_the_time_is_over() {
    let (cell, clock) = stale_cell(1);
    let lease = cell.lookup().elected();
    let request = || cell.request().max_stale(Duration::ZERO).wait_at_most(SECOND);
    let mut strict = Hand::new(request().try_get_async(untried));
    let mut soft = Hand::new(request().or_stale().try_get_async(untried));
    let mut get = Hand::new(request().or_stale().get_async(unbuilt));
    strict.pending();
    soft.pending();
    get.pending();
    clock.advance(SECOND);
    times_out(&strict.ready());
    assert_eq!((*soft.ready().unwrap(), *get.ready()), (1, 1));
    // At once, if it is to wait for nothing.
    let request = cell.request().max_age(Duration::ZERO).wait_at_most(Duration::ZERO).or_stale();
    clock.advance(TICK);
    assert_eq!(*Hand::new(request.get_async(unbuilt)).ready(), 1);
    lease.publish(2);
}

#[test]
fn or_stale_without_a_value_is_a_timeout() {
    let (cell, clock) = cell();
    let _lease = cell.lookup().elected();
    let mut task = Hand::new(cell.request().wait_at_most(SECOND).or_stale().try_get_async(untried));
    task.pending();
    clock.advance(SECOND);
    times_out(&task.ready());
}

/// There is no error that it could return.
#[test]
fn get_async_goes_on_when_the_time_is_over() {
    let (cell, clock) = cell();
    let lease = cell.lookup().elected();
    let mut task = Hand::new(cell.request().wait_at_most(SECOND).or_stale().get_async(|| async { 2 }));
    task.pending();
    clock.advance(100 * SECOND);
    task.pending();
    drop(lease);
    assert_eq!(*task.ready(), 2);
}

#[test]
fn many_tasks_whose_time_is_over_together_leave_nothing_behind() {
    let (cell, clock) = cell();
    let lease = cell.lookup().elected();
    let request = || cell.request().wait_at_most(SECOND);
    let mut tasks: Vec<_> = (0..MANY).map(|_| Hand::new(request().try_get_async(untried))).collect();
    for task in &mut tasks {
        task.pending();
    }
    let mut patient = Hand::new(cell.get_or_refresh_async(unbuilt));
    patient.pending();
    // Some give up before.
    let dropped: Vec<_> = tasks.drain(..MANY / 10).map(|task| task.wakes_handle()).collect();
    assert!(dropped.iter().all(|wakes| Arc::strong_count(wakes) == 1));
    clock.advance(SECOND);
    for mut task in tasks {
        times_out(&task.ready());
        assert!(!task.is_listed());
    }
    assert!(dropped.iter().all(|wakes| wakes.count() == 0));
    let before = patient.wakes();
    lease.publish(1);
    assert_eq!((patient.wakes(), *patient.ready()), (before + 1, 1));
    assert_eq!((cell.stats().builds, cell.stats().wait_timeouts), (1, (MANY - MANY / 10) as u64));
}

/// A caller that waits at most so long and is elected builds, and gives the lease back when it is dropped.
#[test]
fn a_task_that_is_elected_while_it_waits_builds() {
    let (cell, clock) = cell();
    let lease = cell.lookup().elected();
    let door = Door::default();
    let mut task = Hand::new(cell.request().wait_at_most(SECOND).try_get_async(|| behind(door.clone(), 2)));
    task.pending();
    drop(lease);
    task.pending();
    clock.advance(100 * SECOND);
    task.pending();
    assert!(cell.is_refreshing());
    door.open();
    assert_eq!(*task.ready().unwrap(), 2);
}

// Soft timeout: a fresh value in time, or the old one, and the build goes on.

#[test]
fn a_soft_timeout_serves_the_old_value_and_the_build_goes_on() {
    let (cell, clock) = stale_cell(1);
    let mut tasks = Vec::new();
    let soft = || {
        let request = cell.request_owned().max_stale(Duration::ZERO);
        request.wait_at_most(SECOND).or_stale()
    };
    let door = Door::default();
    let mut caller = {
        let spawn = |task: Task| tasks.push(task);
        let build = {
            let door = door.clone();
            move || behind(door, 2)
        };
        let mut caller = Hand::new(soft().spawn_with(spawn).try_get_async(build));
        caller.pending();
        clock.advance(SECOND);
        assert_eq!(*caller.ready().unwrap(), 1);
        drop(caller);
        Hand::new(soft().spawn_with(|_| unreachable!("a build runs")).try_get_async(untried))
    };
    let mut task = Hand::new(tasks.pop().expect("the caller is elected"));
    task.pending();
    assert!(cell.is_refreshing());
    // The next caller waits for the same build, and this time it is fast enough.
    caller.pending();
    door.open();
    task.ready();
    assert_eq!(*caller.ready().unwrap(), 2);
    assert_eq!(cell.stats().builds, 1);
}

#[test]
fn a_soft_timeout_serves_the_old_value_in_place_of_an_error() {
    let (cell, _clock) = stale_cell(1);
    let request = || cell.request().max_stale(Duration::ZERO).wait_at_most(SECOND);
    let lease = cell.lookup().elected();
    let mut strict = Hand::new(request().try_get_async(untried));
    let mut soft = Hand::new(request().or_stale().try_get_async(untried));
    strict.pending();
    soft.pending();
    let error = lease.fail("down");
    assert!(strict.ready().unwrap_err().build_error().unwrap().ptr_eq(&error));
    assert_eq!(*soft.ready().unwrap(), 1);
    // And in place of the error of its own build.
    let soft = cell.request().no_cache().or_stale();
    assert_eq!(*run(soft.try_get_async(|| async { Err("still down") })).unwrap(), 1);
    assert_eq!(cell.last_error().unwrap().to_string(), "still down");
}

// Builds that are given the previous value.

#[test]
fn try_get_with_async_is_given_the_previous_value() {
    let (cell, clock) = cell();
    let build = |previous: Option<Arc<u32>>| async move {
        futures_lite::future::yield_now().await;
        match previous.as_deref() {
            None => Ok(Refreshed::NewFor(1, 3 * TTL)),
            Some(1) => Ok(Refreshed::NotModified),
            Some(_) => Err("no"),
        }
    };
    let first = run(cell.request().try_get_with_async(build)).unwrap();
    assert_eq!(cell.snapshot().unwrap().fresh_for, 3 * TTL);
    clock.advance(3 * TTL + TICK);
    let second = run(cell.request().try_get_with_async(build)).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    // For the policy's time to live, as any value that is renewed.
    assert_eq!((cell.generation(), cell.snapshot().unwrap().fresh_for), (2, TTL));
    cell.set(2);
    let failed = run(cell.request().no_cache().try_get_with_async(build));
    assert_eq!(failed.unwrap_err().to_string(), "no");
}

#[test]
fn not_modified_without_a_previous_value_is_a_failure() {
    let (cell, _clock) = cell::<u32>();
    let build = |_| async { Ok::<_, &str>(Refreshed::NotModified) };
    let error = run(cell.request().try_get_with_async(build)).unwrap_err();
    assert_eq!(error.to_string(), "the build returned NotModified, but there is no previous value");
    assert_eq!(cell.stats().failed, 1);
}

/// An expired value is no value for a reader, but is shown to the build.
#[test]
fn try_get_with_async_is_given_an_expired_value() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO));
    cell.set(1);
    clock.advance(TTL + TICK);
    let build = |previous: Option<Arc<u32>>| async move {
        assert_eq!(previous.as_deref(), Some(&1));
        Ok::<_, &str>(Refreshed::NotModified)
    };
    assert_eq!(*run(cell.request().try_get_with_async(build)).unwrap(), 1);
}

// Requests as values.

#[test]
fn a_request_can_be_kept_and_used_again() {
    let (cell, clock) = cell();
    let request = cell.request_owned().max_stale(Duration::ZERO).wait_at_most(SECOND);
    assert_eq!(*run(request.clone().get_async(|| async { 1 })), 1);
    clock.advance(TTL + TICK);
    assert_eq!(*run(request.clone().get_async(|| async { 2 })), 2);
    drop(cell);
    assert_eq!(*run(request.get_async(unbuilt)), 2);
}

#[test]
fn of_a_static_cell_the_future_is_static() {
    static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires());
    fn read() -> impl Future<Output = Arc<u32>> + Send + 'static {
        CELL.request().no_cache().get_async(|| async { 1 })
    }
    assert_eq!(*run(read()), 1);
}

/// What a `Pending` under conditions ends with may not meet them: look again.
#[test]
fn a_lookup_with_conditions_is_awaited() {
    let (cell, _clock) = cell();
    cell.set(1);
    let lease = cell.request_owned().no_cache().lookup().elected();
    assert!(matches!(cell.request().lookup(), Lookup::Fresh(_)));
    let mut place = Hand::new(cell.request().no_cache().lookup().pending());
    place.pending();
    lease.publish(2);
    assert!(matches!(place.ready(), Waited::Published(value) if *value == 2));
    assert!(matches!(cell.request().no_cache().lookup(), Lookup::Elected(_)));
}

#[test]
fn g10_inside_a_build_conditions_that_are_not_met_are_an_error() {
    let (cell, _clock) = stale_cell(1);
    let value = run(cell.request().no_cache().get_async(|| async {
        let inside = || cell.request().wait_at_most(TTL);
        assert_eq!(*inside().try_get_async(untried).await.unwrap(), 1);
        let strict = inside().max_stale(Duration::ZERO).try_get_async(untried).await;
        assert!(matches!(strict, Err(RefreshError::Reentrant)));
        assert_eq!(*inside().no_cache().or_stale().try_get_async(untried).await.unwrap(), 1);
        2
    }));
    assert_eq!((*value, cell.stats().waits), (2, 0));
}

// Real executors.

const TASKS: u64 = 12;

async fn conditions_from_tasks(spawner: Spawner) {
    let (cell, clock): (Cell<u32>, _) = cell_with(plain(Policy::ttl(TTL)));
    cell.set(1);
    clock.advance(TTL + TICK);
    let door = Door::default();
    let spawn = |strict: bool| {
        let (request, door) =
            (cell.request_owned().max_stale(Duration::ZERO).wait_at_most(SECOND), door.clone());
        let request = if strict { request } else { request.or_stale() };
        spawner.spawn(async move { request.try_get_async(move || behind(door, 2)).await })
    };
    let builder = spawn(true);
    until("a task builds", || cell.is_refreshing()).await;
    let (strict, soft): (Vec<_>, Vec<_>) = (0..TASKS).map(|_| (spawn(true), spawn(false))).unzip();
    until("all wait", || cell.stats().waits == 2 * TASKS).await;
    clock.advance(SECOND);
    for task in strict {
        times_out(&task.join().await);
    }
    for task in soft {
        assert_eq!(*task.join().await.unwrap(), 1);
    }
    door.open();
    assert_eq!(*builder.join().await.unwrap(), 2);
    assert_eq!((cell.stats().builds, cell.stats().wait_timeouts), (1, 2 * TASKS));
}

#[test]
fn on_every_executor() {
    for executor in [Executor::Threads, Executor::OneThread, Executor::Smol, Executor::Bare] {
        executor.run(conditions_from_tasks);
    }
}
