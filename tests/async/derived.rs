//! Derived values that are made in tasks.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dogpile::{Derived, DogpileCell, Freshness, RefreshError};

const TTL: Duration = Duration::from_secs(10);

type Cell = Arc<DogpileCell<u32>>;

fn cell(value: u32) -> Cell {
    let cell = Arc::new(DogpileCell::new(TTL));
    cell.set(value);
    cell
}

#[test]
fn a_chain_and_a_diamond_of_tasks_and_closures() {
    smol::block_on(async {
        let (a, runs) = (cell(1), Arc::new(AtomicU32::new(0)));
        let b = Derived::new_async({
            let (a, runs) = (Arc::clone(&a), Arc::clone(&runs));
            move |cx| {
                let (a, runs) = (Arc::clone(&a), Arc::clone(&runs));
                async move {
                    runs.fetch_add(1, Ordering::Relaxed);
                    let value = *cx.get(&a);
                    smol::future::yield_now().await;
                    Ok::<_, RefreshError>(value * 2)
                }
            }
        });
        let c = Derived::new({
            let a = Arc::clone(&a);
            move |cx| *cx.get(&a) * 3
        });
        let d = Derived::new_async({
            let (b, c, a) = (b.clone(), c.clone(), Arc::clone(&a));
            move |cx| {
                let (b, c, a) = (b.clone(), c.clone(), Arc::clone(&a));
                async move {
                    let first = *cx.get_async(&b).await;
                    // In the middle of the evaluation.
                    if *a.get().unwrap() < 3 {
                        a.set(first / 2 + 1);
                    }
                    Ok::<_, RefreshError>((first, *cx.get(&c), *cx.get(&a), *cx.try_get_async(&b).await?))
                }
            }
        });
        assert_eq!(*d.get_async().await, (2, 3, 1, 2));
        assert_eq!(d.cell().freshness(), Freshness::Stale);
        assert_eq!(*d.get_async().await, (4, 6, 2, 4));
        assert_eq!(*d.get_async().await, (6, 9, 3, 6));
        assert_eq!((*d.get_async().await, d.cell().freshness()), ((6, 9, 3, 6), Freshness::Fresh));
        assert_eq!((*b.get_async().await, *c.get(), runs.load(Ordering::Relaxed)), (6, 9, 3));
    });
}

#[test]
fn an_error_keeps_the_old_value_and_ends_with_a_publication() {
    smol::block_on(async {
        let a = cell(1);
        let made = Derived::new_async({
            let a = Arc::clone(&a);
            move |cx| {
                let value = *cx.get(&a);
                async move { if value == 0 { Err(io::Error::other("down")) } else { Ok(value) } }
            }
        });
        let above = Derived::new_async({
            let made = made.clone();
            move |cx| {
                let made = made.clone();
                async move { Ok::<_, RefreshError>(*cx.try_get_async(&made).await? + 1) }
            }
        });
        assert_eq!(*above.get_async().await, 2);
        a.set(0);
        assert_eq!(*above.try_get_async().await.unwrap(), 2);
        assert!(above.cell().last_error().unwrap().is::<io::Error>());
        a.set(5);
        assert_eq!((*above.get_async().await, *made.get_async().await), (6, 5));
    });
}

#[test]
fn a_cycle_is_an_error() {
    let slot = Arc::new(std::sync::Mutex::new(None));
    let first = Derived::new_async({
        let slot = Arc::clone(&slot);
        move |cx| {
            let itself: Derived<u32, _, _> = slot.lock().unwrap().clone().unwrap();
            async move { Ok::<u32, RefreshError>(*cx.try_get_async(&itself).await?) }
        }
    });
    *slot.lock().unwrap() = Some(first.clone());
    assert!(matches!(smol::block_on(first.try_get_async()), Err(RefreshError::Reentrant)));
    *slot.lock().unwrap() = None;
}

#[test]
fn a_read_that_is_dropped_gives_the_lease_back() {
    let a = cell(1);
    let is_first = Arc::new(AtomicU32::new(0));
    let made = Derived::new_async({
        let (a, is_first) = (Arc::clone(&a), Arc::clone(&is_first));
        move |cx| {
            let value = *cx.get(&a);
            let hangs = is_first.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                Ok::<_, RefreshError>(value)
            }
        }
    });
    {
        let mut read = pin!(made.try_get_async());
        assert!(matches!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
        assert!(made.cell().is_refreshing());
    }
    assert!(!made.cell().is_refreshing());
    assert_eq!(*smol::block_on(made.get_async()), 1);
}

#[test]
fn eager_as_a_task() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let a = cell(1);
    let made = Derived::new_async({
        let a = Arc::clone(&a);
        move |cx| {
            let value = *cx.get(&a);
            async move { Ok::<_, RefreshError>(value * 2) }
        }
    });
    let refresher = made.spawn_refresher_async(|task| runtime.spawn(task)).unwrap();
    let mut subscription = made.subscribe();
    assert_eq!(*runtime.block_on(subscription.changed()), 2);
    for value in 2..20 {
        a.set(value);
        while *subscription.wait_changed() != value * 2 {}
    }
    drop(refresher);
}

/// An executor may move the task.
#[test]
fn its_futures_can_be_sent() {
    fn sent<F: Future + Send>(future: F) -> F {
        future
    }
    let made = Derived::new_async(|_| async { Ok::<_, RefreshError>(7) });
    assert_eq!(*smol::block_on(sent(made.get_async())), 7);
    assert_eq!(*smol::block_on(sent(made.try_get_async())).unwrap(), 7);
    let cell = cell(1);
    let mut subscription = cell.subscribe();
    assert_eq!(*smol::block_on(sent(subscription.changed())), 1);
}
