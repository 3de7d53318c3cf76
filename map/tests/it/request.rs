//! Reads with conditions.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, Job, ManualClock, Policy, RefreshError, Refreshed, Tick};
use dogpile_map::DogpileMap;

use crate::support::{Gate, MINUTE, Map, SECOND, TICK, gate, map, minute, unexpected, wait_until};

#[test]
fn max_age_asks_the_source_once_in_that_time() {
    let (map, clock) = map(Policy::never_expires());
    let builds = AtomicUsize::new(0);
    for _ in 0..1_000 {
        map.request(&1).max_age(30 * SECOND).get(|_| builds.fetch_add(1, Ordering::Relaxed));
        clock.advance(SECOND);
    }
    // At 0, 31, 62, ...
    assert_eq!(builds.into_inner(), 33);
    assert_eq!(map.stats().in_flight, 0);
}

#[test]
fn no_cache_does_not_take_the_result_of_a_build_that_runs() {
    let (map, _clock) = minute();
    map.set(1, 9);
    let (gate, build) = gate();
    thread::scope(|scope| {
        let first = scope.spawn(|| *map.request(&1).no_cache().get(|_| build()));
        gate.wait_until_started();
        // The old value is served meanwhile, though it is fresh.
        assert_eq!(*map.get_or_refresh(&1, unexpected), 9);
        let second = scope.spawn(|| *map.request(&1).no_cache().get(|_| 11));
        gate.finish.send(10).unwrap();
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (10, 11));
    });
    assert_eq!((map.get(&1).as_deref(), map.stats().in_flight), (Some(&11), 0));
}

#[test]
fn a_fresh_value_or_an_error() {
    let (map, clock) = minute();
    map.set(1, 10);
    let fresh = || map.request(&1).max_stale(Duration::ZERO);
    assert_eq!(*fresh().get(unexpected), 10);
    clock.advance(MINUTE + TICK);
    assert_eq!(fresh().try_get(|_| Err("down")).unwrap_err().to_string(), "down");
    assert_eq!(*fresh().or_stale().try_get(|_| Err("down")).unwrap(), 10);
    map.invalidate_all();
    clock.advance(MINUTE + TICK);
    assert_eq!(*fresh().get(|_| 11), 11);
}

/// A clock that writes down until when threads wait, and, once it is armed, does something else when a thread that has waited
/// reads it next.
#[derive(Clone, Default)]
struct Meddler(Arc<Meddling>);

#[derive(Default)]
struct Meddling {
    time: ManualClock,
    deadlines: Mutex<Vec<Tick>>,
    /// Armed for the thread that waits.
    waiter: Mutex<Option<thread::ThreadId>>,
    meddle: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Clock for Meddler {
    fn now(&self) -> Tick {
        if *self.0.waiter.lock().unwrap() == Some(thread::current().id()) {
            let meddle = self.0.meddle.lock().unwrap().take();
            if let Some(meddle) = meddle {
                meddle();
            }
        }
        self.0.time.now()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        self.0.deadlines.lock().unwrap().push(deadline);
        self.0.time.park_until(deadline, now);
    }
}

#[test]
fn the_time_to_wait_is_that_of_the_call_and_not_of_each_build_that_it_waits_for() {
    let clock = Meddler::default();
    let map = DogpileMap::<u64, u64>::builder(Policy::ttl(MINUTE)).clock(clock.clone()).build();
    let end = clock.0.time.now().saturating_add(10 * SECOND);
    let waits = |count| wait_until(|| clock.0.deadlines.lock().unwrap().len() >= count);
    let (first, build_first) = gate();
    let (Gate { started, finish }, build_second) = gate();
    let (begun, second) = mpsc::channel();
    let (other, time) = (map.clone(), clock.0.time.clone());
    let begin_second = move || {
        time.advance(6 * SECOND);
        begun.send(thread::spawn(move || *other.request(&1).no_cache().get(|_| build_second()))).unwrap();
        started.recv_timeout(MINUTE).unwrap();
    };
    thread::scope(|scope| {
        let one = scope.spawn(|| *map.get_or_refresh(&1, |_| build_first()));
        first.wait_until_started();
        let waiter = scope.spawn(|| {
            *clock.0.waiter.lock().unwrap() = Some(thread::current().id());
            let request = map.request(&1).max_stale(Duration::ZERO).wait_at_most(10 * SECOND);
            *request.try_get(|_| Ok::<_, String>(12)).unwrap()
        });
        waits(1);
        // What the first build publishes is out of date. When the waiter finds that out, another build runs, whose value is
        // then out of date too.
        map.invalidate_all();
        *clock.0.meddle.lock().unwrap() = Some(Box::new(begin_second));
        first.finish.send(10).unwrap();
        waits(2);
        finish.send(11).unwrap();
        assert_eq!((one.join().unwrap(), waiter.join().unwrap()), (10, 12));
    });
    assert_eq!(second.recv().unwrap().join().unwrap(), 11);
    assert!(clock.0.deadlines.lock().unwrap().iter().all(|deadline| *deadline == end));
}

#[test]
fn a_spawned_build_goes_on_without_its_caller() {
    let (map, _clock) = minute();
    let (jobs, queue) = mpsc::channel::<Job>();
    let request = map.request(&1).wait_at_most(Duration::ZERO).spawn_with(|job| jobs.send(job));
    let waited = request.try_get(|key| Ok::<_, String>(key * 10));
    assert!(matches!(waited, Err(RefreshError::WaitTimeout)));
    assert_eq!(map.stats().in_flight, 1);
    let job = queue.recv().unwrap();
    // The job outlives all handles of the map.
    let second = map.clone();
    drop(map);
    job();
    assert_eq!((second.get(&1).as_deref(), second.stats().in_flight), (Some(&10), 0));
}

#[test]
fn a_job_that_is_dropped_gives_the_key_back() {
    let (map, _clock) = minute();
    let dropped = map.request(&1).spawn_with(|job: Job| drop(job)).try_get(|_| Ok::<_, String>(10));
    assert!(matches!(dropped, Err(RefreshError::Abandoned)));
    assert_eq!(map.stats().in_flight, 0);
    assert_eq!(*map.get_or_refresh(&1, |_| 11), 11);
}

#[test]
fn a_job_that_is_dropped_leaves_a_fresh_value_fresh() {
    let (map, _clock) = map(Policy::ttl(MINUTE).stale_while_refresh(Duration::ZERO));
    map.set(1, 10);
    let (jobs, queue) = mpsc::channel::<Job>();
    let request = map.request(&1).no_cache().wait_at_most(Duration::ZERO).spawn_with(|job| jobs.send(job));
    assert!(matches!(request.try_get(|_| Ok::<_, String>(11)), Err(RefreshError::WaitTimeout)));
    drop(queue.recv().unwrap());
    assert_eq!((*map.get_or_refresh(&1, unexpected), map.stats().in_flight), (10, 0));
}

#[test]
fn a_spawned_build_of_a_stale_key_serves_the_old_value_and_is_fenced() {
    let (map, clock) = minute();
    map.set(1, 9);
    clock.advance(MINUTE + TICK);
    let (jobs, queue) = mpsc::channel::<Job>();
    assert_eq!(*map.request(&1).spawn_with(|job| jobs.send(job)).get(|_| 10), 9);
    map.set(1, 11);
    queue.recv().unwrap()();
    assert_eq!((*map.get_or_refresh(&1, unexpected), map.stats().in_flight), (11, 0));
}

#[test]
fn a_spawned_build_is_given_what_was_there_and_may_choose_its_ttl() {
    let (map, clock) = minute();
    let first = map.set(1, 9);
    map.invalidate(&1);
    let request = map.request(&1).max_stale(Duration::ZERO).spawn_with(thread::spawn);
    let found = request.try_get_with(move |_, previous| {
        assert!(Arc::ptr_eq(&previous.unwrap(), &first));
        Ok::<_, String>(Refreshed::NewFor(10, 60 * MINUTE))
    });
    assert_eq!(*found.unwrap(), 10);
    clock.advance(59 * MINUTE);
    assert_eq!(*map.get_or_refresh(&1, unexpected), 10);
}

#[test]
fn not_modified_without_a_value_is_an_error() {
    let (map, _clock) = minute::<u64>();
    let found = map.request(&1).try_get_with(|_, _| Ok::<_, String>(Refreshed::NotModified));
    assert!(matches!(found, Err(RefreshError::Build(_))));
    assert_eq!(map.stats().failures, 1);
}

/// What a read is counted as: hits, stale hits, misses.
fn counted<T>(map: &Map<T>, read: impl FnOnce()) -> [u64; 3] {
    let before = map.stats();
    read();
    let after = map.stats();
    [after.hits - before.hits, after.stale_hits - before.stale_hits, after.misses - before.misses]
}

const HIT: [u64; 3] = [1, 0, 0];
const STALE_HIT: [u64; 3] = [0, 1, 0];
const MISS: [u64; 3] = [0, 0, 1];

#[test]
fn reads_are_counted_by_what_they_were_served() {
    let (map, clock) = minute::<u64>();
    assert_eq!(counted(&map, || drop(map.request(&1).get(|_| 10))), MISS);
    assert_eq!(counted(&map, || drop(map.request(&1).get(unexpected))), HIT);
    clock.advance(MINUTE + TICK);
    // In a retry pause.
    let failed = || drop(map.request(&1).try_get(|_| Err("down")));
    assert_eq!(counted(&map, failed), MISS);
    assert_eq!(counted(&map, || drop(map.request(&1).try_get(unexpected::<Result<_, String>>))), STALE_HIT);
    let fresh = || map.request(&1).max_stale(Duration::ZERO).try_get(unexpected::<Result<_, String>>);
    assert_eq!(counted(&map, || assert!(fresh().is_err())), MISS);
    clock.advance(SECOND);
    // A build was begun elsewhere.
    let (jobs, queue) = mpsc::channel::<Job>();
    let spawning = || assert_eq!(*map.request(&1).spawn_with(|job| jobs.send(job)).get(|_| 11), 10);
    assert_eq!(counted(&map, spawning), STALE_HIT);
    queue.recv().unwrap()();
    // There and then.
    map.invalidate(&1);
    let spawning = || assert_eq!(*map.request(&1).spawn_with(|job: Job| job()).get(|_| 12), 12);
    assert_eq!(counted(&map, spawning), MISS);
}

#[test]
fn a_fresh_value_that_is_served_by_a_flight_is_a_hit() {
    let (map, _clock) = minute();
    map.set(1, 10);
    let rebuilt = map.request(&1).no_cache().get(|_| {
        // The value is replaced though it is fresh.
        for read in [
            &|| drop(map.get(&1)),
            &|| drop(map.get_or_refresh(&1, unexpected)),
            &|| drop(map.try_get_or_refresh(&1, unexpected::<Result<_, String>>)),
            &|| drop(map.request(&1).max_stale(Duration::ZERO).get(unexpected)),
            &|| drop(map.request(&1).max_age(MINUTE).get(unexpected)),
            &|| drop(map.get_many(&[1], |_| Ok::<_, String>([]))),
        ] as [&dyn Fn(); 6]
        {
            assert_eq!(counted(&map, read), HIT);
        }
        map.invalidate(&1);
        for read in [
            &|| drop(map.get(&1)),
            &|| drop(map.get_or_refresh(&1, unexpected)),
            &|| drop(map.request(&1).get(unexpected)),
            &|| drop(map.get_many(&[1], |_| Ok::<_, String>([]))),
        ] as [&dyn Fn(); 4]
        {
            assert_eq!(counted(&map, read), STALE_HIT);
        }
        11
    });
    assert_eq!(*rebuilt, 11);
}
