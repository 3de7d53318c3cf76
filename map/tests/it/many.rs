//! Many keys with one call of a loader.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Barrier, Mutex, Once};
use std::thread;
use std::time::Duration;

use dogpile::{Policy, RefreshError};
use dogpile_map::{DogpileMap, LeftOut};

use crate::support::{MINUTE, SECOND, TICK, gate, map, minute, unexpected};

fn squares(due: &[u64]) -> Result<Vec<(u64, u64)>, String> {
    Ok(due.iter().map(|key| (*key, key * key)).collect())
}

#[test]
fn one_call_loads_what_is_missing_or_due() {
    let (map, clock) = minute();
    map.set(1, 0);
    clock.advance(MINUTE + TICK);
    map.set(2, 0);
    let calls = RefCell::new(Vec::new());
    let found = map.get_many(&[3, 2, 1, 3, 4], |due| {
        calls.borrow_mut().push(due.to_vec());
        squares(due)
    });
    let found: Vec<u64> = found.unwrap().into_iter().map(|value| *value.unwrap()).collect();
    assert_eq!(found, [9, 0, 1, 9, 16]);
    assert_eq!(calls.into_inner(), [[3, 1, 4]]);
    assert_eq!((map.stats().builds, map.stats().in_flight), (3, 0));
    assert!(map.get_many(&[], squares).unwrap().is_empty());
}

#[test]
fn a_key_that_is_left_out_is_none_and_its_old_value_goes() {
    let (map, _clock) = minute();
    map.set(1, 10);
    map.invalidate(&1);
    let found = map.get_many(&[1, 2], |_| Ok::<_, String>([])).unwrap();
    assert_eq!(found, [None, None]);
    assert_eq!((map.get(&1), map.stats().in_flight, map.stats().failures), (None, 0, 0));
    // It is asked for again at once: there is no pause.
    let found = map.get_many(&[1, 2], squares).unwrap();
    assert!(found.iter().all(Option::is_some));
}

#[test]
fn waiters_for_a_key_that_is_left_out_are_told() {
    let (map, _clock) = minute();
    let (gate, build) = gate::<()>();
    let build = Mutex::new(Some(build));
    let load = |_: &[u64]| {
        build.lock().unwrap().take().unwrap()();
        Ok::<[(u64, u64); 0], String>([])
    };
    thread::scope(|scope| {
        let first = scope.spawn(|| map.get_many(&[1], load).unwrap());
        gate.wait_until_started();
        let waiter = scope.spawn(|| map.try_get_or_refresh(&1, |_| Ok::<_, String>(11)));
        gate.finish.send(()).unwrap();
        assert_eq!(first.join().unwrap(), [None]);
        // Whether it came before the end or after it.
        match waiter.join().unwrap() {
            Ok(value) => assert_eq!(*value, 11),
            Err(error) => assert!(error.is::<LeftOut>()),
        }
    });
}

#[test]
fn an_error_is_that_of_all_keys_and_pauses_them() {
    let (map, _clock) = minute();
    map.set(1, 1);
    let error = map.get_many(&[1, 2, 3], |_| Err::<[(u64, u64); 0], _>("down")).unwrap_err();
    assert_eq!(error.to_string(), "down");
    assert!(map.try_get_or_refresh(&2, unexpected::<Result<_, String>>).is_err());
    let paused =
        map.get_many(&[3], |_| -> Result<[(u64, u64); 0], String> { unreachable!("the pause runs") });
    assert!(paused.is_err());
    assert_eq!(map.stats().failures, 2);
}

#[test]
fn old_values_are_served_in_place_of_an_error() {
    let (map, clock) = minute();
    map.set(1, 1);
    map.set(2, 2);
    clock.advance(MINUTE + TICK);
    let found = map.get_many(&[1, 2], |_| Err::<[(u64, u64); 0], _>("down")).unwrap();
    assert_eq!(found.iter().map(|value| **value.as_ref().unwrap()).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_loader_that_panics_gives_its_keys_back() {
    let (map, _clock) = minute();
    let load = |_: &[u64]| -> Result<[(u64, u64); 0], String> { panic!("as asked") };
    assert!(catch_unwind(AssertUnwindSafe(|| map.get_many(&[1, 2], load))).is_err());
    assert_eq!(map.stats().failures, 2);
    assert_eq!(*map.get_or_refresh(&1, |_| 10), 10);
    assert_eq!(map.get_many(&[1, 2], squares).unwrap().len(), 2);
}

#[test]
fn a_loader_that_asks_for_its_own_keys_does_not_hang() {
    let (map, clock) = minute();
    map.set(1, 10);
    clock.advance(MINUTE + TICK);
    let found = map.get_many(&[1, 2], |due| {
        assert_eq!(*map.get_or_refresh(&1, unexpected), 10);
        assert_eq!(map.get_many(&[1], squares).unwrap()[0].as_deref(), Some(&10));
        for error in [
            map.try_get_or_refresh(&2, |_| Ok::<_, String>(0)).unwrap_err(),
            map.request(&2).no_cache().try_get(|_| Ok::<_, String>(0)).unwrap_err(),
            map.get_many(&[2], squares).unwrap_err(),
        ] {
            assert!(matches!(error, RefreshError::Reentrant), "{error}");
        }
        assert!(catch_unwind(AssertUnwindSafe(|| map.get_or_refresh(&2, |_| 0))).is_err());
        assert_eq!(*map.get_or_refresh(&3, |_| 3), 3);
        squares(due)
    });
    assert!(found.unwrap().iter().all(Option::is_some));
    // As a build of one key that asks for many.
    let error = map.try_get_or_refresh(&9, |_| map.get_many(&[9, 8], squares).map(|_| 0)).unwrap_err();
    assert!(matches!(&error, RefreshError::Build(error) if error.is::<RefreshError>()), "{error:?}");
    assert_eq!(map.stats().in_flight - 1, 0); // key 9 pauses
}

#[test]
fn a_loader_that_asks_for_its_own_keys_gets_what_meets_its_conditions() {
    let (map, clock) = minute();
    map.set(1, 10);
    clock.advance(MINUTE + SECOND);
    let found = map.get_many(&[1], |due| {
        let request = || map.request(&1);
        for unmet in [
            request().max_stale(Duration::ZERO),
            request().max_stale(SECOND - TICK),
            request().max_age(MINUTE),
            request().no_cache(),
        ] {
            let error = unmet.clone().try_get(|_| Ok::<_, String>(0)).unwrap_err();
            assert!(matches!(error, RefreshError::Reentrant), "{error}");
            assert_eq!(*unmet.or_stale().try_get(|_| Ok::<_, String>(0)).unwrap(), 10);
        }
        for met in [request(), request().max_stale(SECOND), request().max_age(MINUTE + SECOND)] {
            assert_eq!(*met.try_get(|_| Ok::<_, String>(0)).unwrap(), 10);
        }
        squares(due)
    });
    assert_eq!(found.unwrap()[0].as_deref(), Some(&1));
    assert_eq!((*map.get_or_refresh(&1, unexpected), map.stats().in_flight), (1, 0));
}

#[test]
fn eight_threads_with_overlapping_keys_build_each_key_once() {
    const BATCHES: u64 = if cfg!(miri) { 2 } else { 50 };
    let (map, _clock) = minute();
    let built = Mutex::new(HashMap::<u64, u32>::new());
    let barrier = Barrier::new(8);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (map, built, barrier) = (&map, &built, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for batch in 0..BATCHES {
                    // In an order of its own.
                    let keys: Vec<u64> = (0..64).map(|n| batch * 40 + (n * 17 + thread * 8) % 64).collect();
                    let found = map.get_many(&keys, |due| {
                        for key in due {
                            *built.lock().unwrap().entry(*key).or_default() += 1;
                        }
                        squares(due)
                    });
                    let found = found.unwrap();
                    assert!(keys.iter().zip(found).all(|(key, value)| *value.unwrap() == key * key));
                }
            });
        }
    });
    let built = built.into_inner().unwrap();
    assert!(built.values().all(|count| *count == 1));
    assert_eq!((built.len(), map.stats().in_flight), (usize::try_from(BATCHES - 1).unwrap() * 40 + 64, 0));
}

#[test]
fn a_key_that_was_awaited_and_fails_is_the_error_of_the_call() {
    // Without a pause, in which the key would not be asked for anyway.
    let (map, _clock) = map(Policy::ttl(MINUTE).retry_backoff(Duration::ZERO, Duration::ZERO));
    let (gate, build) = gate::<Result<u64, String>>();
    thread::scope(|scope| {
        let first = scope.spawn(|| map.try_get_or_refresh(&1, |_| build()).is_err());
        gate.wait_until_started();
        let many = scope.spawn(|| {
            map.get_many(&[1, 2], |due| {
                // Key 1 is being built, and the call waits for it after its own load.
                assert_eq!(due, [2]);
                gate.finish.send(Err(String::from("down"))).unwrap();
                squares(due)
            })
        });
        assert_eq!(many.join().unwrap().unwrap_err().to_string(), "down");
        assert!(first.join().unwrap());
    });
    // What was loaded is kept.
    assert_eq!(map.get(&2).as_deref(), Some(&4));
    assert_eq!(map.get_many(&[1, 2], squares).unwrap().len(), 2);
}

#[test]
fn a_key_that_stands_twice_is_served_the_same_twice() {
    let (map, _clock) = minute();
    map.set(1, 0);
    map.invalidate(&1);
    let load = |due: &[u64]| {
        assert_eq!(due, [1, 2]);
        Ok::<_, String>([(1, 10)])
    };
    let found = map.get_many(&[1, 2, 1, 2, 1], load).unwrap();
    let found: Vec<_> = found.iter().map(|value| value.as_deref().copied()).collect();
    assert_eq!(found, [Some(10), None, Some(10), None, Some(10)]);
    map.invalidate(&1);
    let found = map.get_many(&[1, 1], |_| Ok::<_, String>([])).unwrap();
    assert_eq!(found, [None, None]);
}

/// A key whose clones are seen.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Seen(u64);

thread_local! {
    /// Called by the next clone of a key on this thread.
    static ON_CLONE: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

impl Clone for Seen {
    fn clone(&self) -> Self {
        if let Some(call) = ON_CLONE.take() {
            call();
        }
        Self(self.0)
    }
}

/// The pairs of a loader that leaves all keys out. At its end, the moment has come.
struct LeavesAllOut(Option<Box<dyn FnOnce()>>);

impl Iterator for LeavesAllOut {
    type Item = (Seen, u64);

    fn next(&mut self) -> Option<Self::Item> {
        ON_CLONE.set(self.0.take());
        None
    }
}

/// The call clones a key after it has looked at what is there, and before it takes that away: the moment at which a `set` would be
/// undone by an absence that is older.
#[test]
fn a_set_at_the_end_of_a_load_that_leaves_the_key_out_stays() {
    let map = DogpileMap::<Seen, u64>::builder(Policy::ttl(MINUTE)).build();
    map.set(Seen(1), 10);
    map.invalidate(&Seen(1));
    let writer = map.clone();
    let mut set: Option<Box<dyn FnOnce()>> = Some(Box::new(move || drop(writer.set(Seen(1), 11))));
    let found = map.get_many(&[Seen(1)], |_| Ok::<_, String>(LeavesAllOut(set.take())));
    assert_eq!(found.unwrap(), [None]);
    assert!(ON_CLONE.take().is_none(), "it was set");
    assert_eq!(map.get(&Seen(1)).as_deref(), Some(&11));
    assert_eq!(*map.get_or_refresh(&Seen(1), |_| unreachable!("it is fresh")), 11);
    assert_eq!(map.stats().in_flight, 0);
}

/// A stale value is served in place of an error, and not otherwise, for so long.
fn if_error(window: Duration) -> Policy {
    Policy::ttl(MINUTE).stale_while_refresh(Duration::ZERO).stale_if_error(window)
}

#[test]
fn without_a_pause_a_loader_that_fails_is_covered_by_stale_if_error_too() {
    for window in [Duration::MAX, MINUTE] {
        let (map, clock) = map(if_error(window).retry_backoff(Duration::ZERO, Duration::ZERO));
        map.set(1, 1);
        map.invalidate(&1);
        let fail = || map.get_many(&[1], |_| Err::<[(u64, u64); 0], _>("down"));
        for _ in 0..2 {
            assert_eq!(fail().unwrap()[0].as_deref(), Some(&1));
        }
        clock.advance(MINUTE);
        assert_eq!(fail().is_ok(), window == Duration::MAX);
        // As a build of one key.
        assert_eq!(map.try_get_or_refresh(&1, |_| Err("down")).is_ok(), window == Duration::MAX);
    }
}

#[test]
fn stale_if_error_covers_a_call_that_waited_for_the_build_that_failed() {
    for pause in [Duration::ZERO, MINUTE] {
        let (map, _clock) = map(if_error(MINUTE).retry_backoff(pause, pause));
        map.set(1, 1);
        map.invalidate(&1);
        let (gate, build) = gate::<Result<u64, String>>();
        thread::scope(|scope| {
            let first = scope.spawn(|| map.try_get_or_refresh(&1, |_| build()).map(|value| *value));
            gate.wait_until_started();
            let many = map.get_many(&[1, 2], |due| {
                // It waits for key 1 after its own load.
                assert_eq!(due, [2]);
                gate.finish.send(Err(String::from("down"))).unwrap();
                squares(due)
            });
            let found: Vec<u64> = many.unwrap().into_iter().map(|value| *value.unwrap()).collect();
            assert_eq!(found, [1, 4]);
            assert_eq!(first.join().unwrap().unwrap(), 1);
        });
    }
}

/// The message of a panic, and whether it is shown to be of this file.
fn panic_of(call: impl FnOnce()) -> (String, bool) {
    thread_local! {
        static SEEN: RefCell<Option<(String, bool)>> = const { RefCell::new(None) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let message = panic.payload().downcast_ref::<String>().cloned().unwrap_or_default();
            let is_here = panic.location().is_some_and(|at| at.file() == file!());
            SEEN.set(Some((message, is_here)));
            before(panic);
        }));
    });
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    SEEN.take().unwrap()
}

#[test]
fn a_call_that_can_return_no_error_panics_at_its_line_and_says_what_to_call_instead() {
    let (map, _clock) = minute();
    map.get_many(&[1], |due| {
        let calls: [(&dyn Fn(), &str, &str); 3] = [
            (&|| drop(map.get_or_refresh(&1, |_| 0)), "get_or_refresh was called", "`try_get_or_refresh`"),
            (&|| drop(map.request(&1).get(|_| 0)), "get was called", "`try_get`"),
            (&|| drop(map.request(&1).spawn_with(thread::spawn).get(|_| 0)), "get was called", "`try_get`"),
        ];
        for (call, begins, instead) in calls {
            let (message, is_here) = panic_of(call);
            assert!(message.starts_with(begins) && message.contains(instead), "{message}");
            assert!(is_here);
        }
        squares(due)
    })
    .unwrap();
}

#[cfg(feature = "async")]
#[test]
fn an_async_call_that_can_return_no_error_says_what_to_call_instead() {
    use futures_lite::future::block_on;
    let (map, _clock) = minute();
    map.get_many(&[1], |due| {
        let (message, _) = panic_of(|| drop(block_on(map.request(&1).get_async(async |_| 0))));
        assert!(
            message.starts_with("get_async was called") && message.contains("`try_get_async`"),
            "{message}"
        );
        let (message, _) = panic_of(|| drop(block_on(map.get_or_refresh_async(&1, async |_| 0))));
        assert!(
            message.starts_with("get_or_refresh_async was called")
                && message.contains("`try_get_or_refresh_async`"),
            "{message}"
        );
        squares(due)
    })
    .unwrap();
}
