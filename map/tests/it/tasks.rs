//! Builds that are futures.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use dogpile::{Policy, RefreshError, Refreshed, Task};
use dogpile_map::{DogpileMap, LeftOut};
use futures_lite::future::block_on;
use tokio::sync::oneshot;

use crate::support::{MINUTE, SECOND, TICK, does_not_hang, map, minute, unexpected};

fn poll_once<F: Future + ?Sized>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_build_that_is_cancelled_leaves_no_flight() {
    let (map, clock) = minute::<u64>();
    {
        let mut building = pin!(map.get_or_refresh_async(&1, async |_| pending().await));
        assert!(poll_once(building.as_mut()).is_pending());
        assert_eq!(map.stats().in_flight, 1);
        let mut waiting = pin!(map.get_or_refresh_async(&1, async |_| 11));
        assert!(poll_once(waiting.as_mut()).is_pending());
    }
    assert_eq!((map.stats().in_flight, map.stats().abandoned), (0, 1));
    {
        let mut loading =
            pin!(map.get_many_async(&[1, 2], async |_: &[u64]| pending::<Result<[_; 0], String>>().await));
        assert!(poll_once(loading.as_mut()).is_pending());
        assert_eq!(map.stats().in_flight, 2);
    }
    assert_eq!(map.stats().in_flight, 0);
    // Also of a key with an old value, which stays.
    map.set(3, 10);
    clock.advance(MINUTE + TICK);
    {
        let mut building = pin!(map.request(&3).no_cache().get_async(async |_| pending().await));
        assert!(poll_once(building.as_mut()).is_pending());
    }
    assert_eq!((map.stats().in_flight, map.get(&3).as_deref()), (0, Some(&10)));
}

#[test]
fn a_waiter_of_a_cancelled_build_builds() {
    let (map, _clock) = minute::<u64>();
    let mut waiting = pin!(map.get_or_refresh_async(&1, async |_| 11));
    {
        let mut building = pin!(map.get_or_refresh_async(&1, async |_| pending().await));
        assert!(poll_once(building.as_mut()).is_pending());
        assert!(poll_once(waiting.as_mut()).is_pending());
    }
    assert_eq!(*block_on(waiting), 11);
    assert_eq!(map.stats().in_flight, 0);
}

#[tokio::test]
async fn tasks_and_threads_share_a_build() {
    let (map, _clock) = minute::<u64>();
    let (finish, finished) = oneshot::channel();
    let (map2, builds) = (map.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&builds);
    let task = tokio::spawn(async move {
        let build = async |_: &u64| {
            counted.fetch_add(1, Ordering::Relaxed);
            finished.await.unwrap()
        };
        *map2.get_or_refresh_async(&1, build).await
    });
    while builds.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let map2 = map.clone();
    let thread = thread::spawn(move || *map2.get_or_refresh(&1, unexpected));
    let waiters: Vec<_> = (0..100)
        .map(|_| {
            let map = map.clone();
            tokio::spawn(async move {
                map.try_get_or_refresh_async(&1, async |_| Err::<u64, _>("not elected")).await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    finish.send(10_u64).unwrap();
    assert_eq!(task.await.unwrap(), 10);
    for waiter in waiters {
        assert_eq!(*waiter.await.unwrap().unwrap(), 10);
    }
    assert_eq!(thread.join().unwrap(), 10);
    assert_eq!((builds.load(Ordering::Relaxed), map.stats().in_flight), (1, 0));
}

#[test]
fn errors_and_conditions_are_as_for_threads() {
    let (map, clock) = map::<u64>(Policy::ttl(MINUTE));
    block_on(async {
        let failed = map.try_get_or_refresh_async(&1, async |_| Err::<u64, _>("down")).await;
        assert_eq!(failed.unwrap_err().to_string(), "down");
        map.set(1, 10);
        assert_eq!(*map.request(&1).no_cache().get_async(async |key| key + 10).await, 11);
        clock.advance(MINUTE + TICK);
        let fresh = map.request(&1).max_stale(Duration::ZERO);
        assert!(fresh.clone().try_get_async(async |_| Err("down")).await.is_err());
        assert_eq!(*fresh.or_stale().try_get_async(async |_| Err("down")).await.unwrap(), 11);
        clock.advance(MINUTE + TICK);
        let renewed = map.request(&1).try_get_with_async(async |_: &u64, previous: Option<Arc<u64>>| {
            assert_eq!(previous.as_deref(), Some(&11));
            Ok::<_, String>(Refreshed::NotModified)
        });
        assert_eq!(*renewed.await.unwrap(), 11);
        assert_eq!(*map.get_or_refresh(&1, unexpected), 11);
    });
}

#[test]
fn many_keys_are_loaded_by_a_future_that_may_ask_for_others() {
    let (map, _clock) = minute::<u64>();
    block_on(async {
        let found = map.get_many_async(&[1, 2], async |due: &[u64]| {
            let own = map.try_get_or_refresh_async(&1, async |_| Ok::<_, String>(0)).await;
            assert!(matches!(own, Err(RefreshError::Reentrant)));
            let other = map.get_or_refresh_async(&3, async |_| 3).await;
            Ok::<_, String>(due.iter().map(|key| (*key, key + *other)).collect::<Vec<_>>())
        });
        let found: Vec<u64> = found.await.unwrap().into_iter().map(|value| *value.unwrap()).collect();
        assert_eq!(found, [4, 5]);
    });
    assert_eq!(map.stats().in_flight, 0);
}

/// As the documentation of `LeftOut` says.
#[test]
fn a_key_that_is_left_out_is_asked_for_at_once_when_no_call_of_it_is_under_way() {
    let (map, _clock) = minute::<u64>();
    {
        let mut waiting = pin!(map.get_or_refresh_async(&1, async |_| 11));
        let found = map.get_many(&[1], |_| {
            // On a thread that loads nothing.
            let poll = || assert!(poll_once(waiting.as_mut()).is_pending());
            thread::scope(|scope| scope.spawn(poll).join().unwrap());
            Ok::<[(u64, u64); 0], String>([])
        });
        assert_eq!(found.unwrap(), [None]);
        let overlapping = map.try_get_or_refresh(&1, unexpected::<Result<_, String>>);
        assert!(overlapping.unwrap_err().is::<LeftOut>());
    }
    assert_eq!(*map.try_get_or_refresh(&1, |_| Ok::<_, String>(12)).unwrap(), 12);
}

/// Also if its build failed before that, and the call that leaves last has waited.
#[test]
fn a_key_that_is_left_out_after_a_failure_is_asked_for_at_once_when_no_call_of_it_is_under_way() {
    let (map, clock) = map::<u64>(Policy::ttl(MINUTE).retry_backoff(SECOND, SECOND));
    assert!(map.try_get_or_refresh(&1, |_| Err("down")).is_err());
    clock.advance(SECOND);
    {
        let mut waiting = pin!(map.try_get_or_refresh_async(&1, async |_| Ok::<_, String>(11)));
        let left_out = map.try_get_or_refresh(&1, |_| {
            // On a thread that builds nothing.
            let poll = || assert!(poll_once(waiting.as_mut()).is_pending());
            thread::scope(|scope| scope.spawn(poll).join().unwrap());
            Err(LeftOut::new())
        });
        assert!(left_out.unwrap_err().is::<LeftOut>());
        let Poll::Ready(shared) = poll_once(waiting.as_mut()) else { panic!("the build has ended") };
        assert!(shared.unwrap_err().is::<LeftOut>());
    }
    assert_eq!(map.stats().in_flight, 0);
    assert_eq!(*map.try_get_or_refresh(&1, |_| Ok::<_, String>(12)).unwrap(), 12);
}

static WEIGHED: std::sync::OnceLock<DogpileMap<u64, u64>> = std::sync::OnceLock::new();
static ASKED: AtomicUsize = AtomicUsize::new(0);

/// Asks for a key that this thread loads.
fn asks_for_its_own_key() {
    let map = WEIGHED.get().unwrap();
    let own = map.try_get_or_refresh(&1, |_| Err::<u64, _>("not to be built"));
    assert!(matches!(own, Err(RefreshError::Reentrant)));
    ASKED.fetch_add(1, Ordering::Relaxed);
}

struct AsksAtItsEnd;

impl Drop for AsksAtItsEnd {
    fn drop(&mut self) {
        asks_for_its_own_key();
    }
}

#[test]
fn what_runs_while_a_loader_of_many_holds_its_keys_does_not_wait_for_them() {
    let weigh = |_: &u64, _: &u64| {
        asks_for_its_own_key();
        1
    };
    let map = WEIGHED.get_or_init(|| DogpileMap::builder(Policy::ttl(MINUTE)).max_weight(9, weigh).build());
    does_not_hang(|| {
        // A future that is dropped before its end.
        let mut loading = pin!(map.get_many_async(&[1], async |_: &[u64]| {
            let _asks = AsksAtItsEnd;
            pending::<Result<[(u64, u64); 1], String>>().await
        }));
        assert!(poll_once(loading.as_mut()).is_pending());
    });
    assert_eq!(ASKED.load(Ordering::Relaxed), 1);
    does_not_hang(|| {
        block_on(map.get_many_async(&[1], async |_: &[u64]| Ok::<_, String>([(1, 10)]))).unwrap();
    });
    assert_eq!((ASKED.load(Ordering::Relaxed), map.get(&1).as_deref()), (2, Some(&10)));
}

#[tokio::test]
async fn a_spawned_build_outlives_its_caller() {
    let map = DogpileMap::<String, String>::builder(Policy::ttl(MINUTE)).build();
    let (finish, finished) = oneshot::channel();
    let request = map.request("key").wait_at_most(Duration::ZERO).spawn_with(tokio::spawn);
    let waited = request.try_get_async(|key| async move {
        finished.await.unwrap();
        Ok::<_, String>(format!("value of {key}"))
    });
    assert!(matches!(waited.await, Err(RefreshError::WaitTimeout)));
    assert_eq!(map.stats().in_flight, 1);
    finish.send(()).unwrap();
    let value = map.get_or_refresh_async("key", async |_| unreachable!("it is being built")).await;
    assert_eq!(*value, "value of key");
}

#[test]
fn a_task_that_is_dropped_leaves_a_fresh_value_fresh() {
    for is_polled in [false, true] {
        let (map, _clock) = map(Policy::ttl(MINUTE).stale_while_refresh(Duration::ZERO));
        map.set(1, 10);
        let (tasks, queue) = mpsc::channel::<Task>();
        let request =
            map.request(&1).no_cache().wait_at_most(Duration::ZERO).spawn_with(|task| tasks.send(task));
        let waited = block_on(request.try_get_async(async |_| pending::<Result<u64, String>>().await));
        assert!(matches!(waited, Err(RefreshError::WaitTimeout)));
        let mut task = queue.recv().unwrap();
        if is_polled {
            assert!(poll_once(task.as_mut()).is_pending());
        }
        drop(task);
        assert_eq!((*map.get_or_refresh(&1, unexpected), map.stats().in_flight), (10, 0));
    }
}

#[test]
fn the_futures_are_send() {
    fn is_send<T: Send>(_: &T) {}
    let (map, _clock) = minute::<u64>();
    is_send(&map.get_or_refresh_async(&1, async |key| *key));
    is_send(&map.try_get_or_refresh_async(&1, async |_| Err::<u64, _>("down")));
    is_send(&map.request(&1).no_cache().get_async(async |key| *key));
    is_send(&map.request(&1).try_get_async(async |_| Err::<u64, _>("down")));
    is_send(&map.get_many_async(&[1], async |_: &[u64]| Ok::<[(u64, u64); 0], String>([])));
    is_send(&map.request(&1).spawn_with(tokio::spawn).get_async(async |key| key));
}
