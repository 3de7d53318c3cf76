//! Stale keys that are rebuilt together.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, ManualClock, Policy, Tick};
use dogpile_map::DogpileMap;

use crate::support::{MINUTE, SECOND, TICK, map, minute, unexpected, wait_until};

#[test]
fn stale_keys_are_collected_and_rebuilt_by_one_call() {
    // Longer than the clock is advanced below, however slow the thread is.
    const TTL: Duration = Duration::from_secs(1_000_000);
    let (map, clock) = map(Policy::ttl(TTL));
    for key in 0..10 {
        map.set(key, 0);
    }
    clock.advance(TTL + TICK);
    let (call, calls) = mpsc::channel();
    let loader = move |due: &[u64]| {
        call.send(due.to_vec()).unwrap();
        Ok::<_, String>(due.iter().map(|key| (*key, key + 1)).collect::<Vec<_>>())
    };
    let batches = map.refresh_in_batches(4, SECOND, loader).unwrap();
    // Four are a batch, without any time going by.
    for key in 0..4 {
        assert_eq!(*map.get_or_refresh(&key, unexpected), 0);
    }
    assert_eq!(calls.recv_timeout(MINUTE).unwrap(), [0, 1, 2, 3]);
    wait_until(|| (0..4).all(|key| *map.get_or_refresh(&key, unexpected) == key + 1));
    // Fewer wait for the window. Asked for twice, they are noted once.
    for key in [5, 4, 5] {
        assert_eq!(*map.try_get_or_refresh(&key, |_| -> Result<u64, String> { unreachable!() }).unwrap(), 0);
    }
    wait_until(|| {
        clock.advance(SECOND);
        *map.get_or_refresh(&4, unexpected) == 5
    });
    assert_eq!(calls.recv_timeout(MINUTE).unwrap(), [5, 4]);
    drop(batches);
    // Then callers build again.
    assert_eq!(*map.get_or_refresh(&9, |_| 7), 7);
    assert!(calls.try_recv().is_err());
}

#[test]
fn a_key_with_nothing_to_serve_is_built_by_its_caller() {
    let (map, _clock) = minute();
    let loader = |_: &[u64]| -> Result<[(u64, u64); 0], String> { unreachable!("nothing is stale") };
    let _batches = map.refresh_in_batches(4, SECOND, loader).unwrap();
    assert_eq!(*map.get_or_refresh(&1, |_| 10), 10);
}

#[test]
fn there_is_one_at_a_time() {
    let (map, _clock) = minute::<u64>();
    let loader = |_: &[u64]| Ok::<[(u64, u64); 0], String>([]);
    let first = map.refresh_in_batches(4, SECOND, loader).unwrap();
    let second = map.refresh_in_batches(4, SECOND, loader);
    assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    drop(first);
    drop(map.refresh_in_batches(4, SECOND, loader).unwrap());
}

#[test]
fn a_loader_that_fails_or_panics_costs_nobody_the_old_value() {
    let (map, clock) = minute();
    map.set(1, 10);
    clock.advance(MINUTE + TICK);
    let mut calls = 0;
    let loader = move |due: &[u64]| {
        calls += 1;
        match calls {
            1 => panic!("as asked"),
            2 => Err("down"),
            _ => Ok(due.iter().map(|key| (*key, 11)).collect::<Vec<_>>()),
        }
    };
    let _batches = map.refresh_in_batches(1, SECOND, loader).unwrap();
    wait_until(|| {
        // Past the pause, if one runs.
        clock.advance(SECOND);
        thread::yield_now();
        *map.get_or_refresh(&1, unexpected) == 11
    });
    assert_eq!(map.stats().failures, 2);
}

/// A clock that panics on the thread of the batches once it is told to.
#[derive(Clone, Default)]
struct Faulty {
    time: ManualClock,
    is_broken: Arc<AtomicBool>,
}

impl Clock for Faulty {
    fn now(&self) -> Tick {
        let is_there = thread::current().name() == Some("dogpile-map");
        assert!(!is_there || !self.is_broken.load(Ordering::SeqCst), "as asked");
        self.time.now()
    }
}

#[test]
fn a_thread_that_ends_leaves_its_keys_to_their_callers() {
    let clock = Faulty::default();
    let map = DogpileMap::<u64, u64>::builder(Policy::ttl(MINUTE)).clock(clock.clone()).build();
    map.set(1, 10);
    map.invalidate(&1);
    let loader = |_: &[u64]| -> Result<[(u64, u64); 0], String> { unreachable!("the window does not end") };
    let batches = map.refresh_in_batches(4, MINUTE, loader).unwrap();
    clock.is_broken.store(true, Ordering::SeqCst);
    wait_until(|| *map.get_or_refresh(&1, |_| 11) == 11);
    // Others may take its place.
    clock.is_broken.store(false, Ordering::SeqCst);
    let others = map.refresh_in_batches(4, MINUTE, loader).unwrap();
    // Its end is not theirs.
    drop(batches);
    map.invalidate(&1);
    assert_eq!(*map.get_or_refresh(&1, unexpected), 11);
    drop(others);
    assert_eq!(*map.get_or_refresh(&1, |_| 12), 12);
}
