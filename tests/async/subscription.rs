//! Subscriptions of tasks: `changed`, and the stream.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use dogpile::{DogpileCell, LazyDogpile, ManualClock, Policy, Subscription, SyncReaderCell};
use futures_lite::StreamExt;

const TTL: Duration = Duration::from_secs(10);

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn poll<F: Future>(future: Pin<&mut F>, count: &Arc<Count>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(count))))
}

fn cell<T>() -> DogpileCell<T, ManualClock> {
    DogpileCell::with_clock(Policy::ttl(TTL), ManualClock::new())
}

#[test]
fn a_task_is_woken_once_by_a_publication_and_by_nothing_else() {
    let (cell, count) = (cell(), Arc::new(Count::default()));
    let mut subscription = cell.subscribe();
    let mut changed = pin!(subscription.changed());
    assert!(poll(changed.as_mut(), &count).is_pending());
    cell.invalidate();
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
    cell.set(1);
    cell.set(2);
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert_eq!(poll(changed.as_mut(), &count).map(|value| *value), Poll::Ready(2));
}

#[test]
fn a_wait_that_is_dropped_loses_nothing_and_is_not_woken() {
    let (cell, count) = (cell(), Arc::new(Count::default()));
    let mut subscription = cell.subscribe();
    {
        let mut changed = pin!(subscription.changed());
        assert!(poll(changed.as_mut(), &count).is_pending());
        cell.set(1);
    }
    assert_eq!(subscription.seen(), 0);
    {
        let mut changed = pin!(subscription.changed());
        assert_eq!(poll(changed.as_mut(), &count).map(|value| *value), Poll::Ready(1));
    }
    for _ in 0..1000 {
        let mut changed = pin!(subscription.changed());
        assert!(poll(changed.as_mut(), &count).is_pending());
    }
    let woken = count.0.load(Ordering::Relaxed);
    cell.set(2);
    assert_eq!(count.0.load(Ordering::Relaxed), woken, "nothing waits any more");
    assert_eq!(Arc::strong_count(&count), 1, "no waker is kept");
}

/// A wait that is given up leaves behind what it has waited for; the next one begins with that.
#[test]
fn waits_that_are_given_up_before_and_after_publications_miss_none() {
    let (cell, count) = (cell(), Arc::new(Count::default()));
    let mut subscription = cell.subscribe();
    let give_up = |subscription: &mut Subscription<'_, usize, ManualClock>| {
        assert!(poll(pin!(subscription.changed()), &count).is_pending());
    };
    for round in 0..3 {
        give_up(&mut subscription);
        cell.invalidate();
        give_up(&mut subscription);
        // Published while it is given up: not woken, and not missed.
        cell.set(2 * round);
        assert_eq!(poll(pin!(subscription.changed()), &count).map(|value| *value), Poll::Ready(2 * round));
        give_up(&mut subscription);
        cell.clear();
        give_up(&mut subscription);
        // Published while it waits: woken.
        {
            let mut changed = pin!(subscription.changed());
            assert!(poll(changed.as_mut(), &count).is_pending());
            assert_eq!(count.0.load(Ordering::Relaxed), round);
            cell.set(2 * round + 1);
            assert_eq!(count.0.load(Ordering::Relaxed), round + 1);
            assert_eq!(poll(changed, &count).map(|value| *value), Poll::Ready(2 * round + 1));
        }
    }
    assert_eq!(cell.stats().waits, 15, "each wait is counted once");
}

#[test]
fn the_latest_waker_is_woken() {
    let cell = cell();
    let counts = [(); 2].map(|()| Arc::new(Count::default()));
    let mut subscription = cell.subscribe();
    let mut changed = pin!(subscription.changed());
    for count in &counts {
        assert!(poll(changed.as_mut(), count).is_pending());
    }
    cell.set(1);
    assert_eq!(counts.map(|count| count.0.load(Ordering::Relaxed)), [0, 1]);
}

#[test]
fn a_stream_yields_the_latest_value_and_never_ends() {
    let cell = Arc::new(cell());
    let mut subscription = cell.subscribe_owned();
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut cx = Context::from_waker(&waker);
    for value in [1, 2] {
        assert!(subscription.poll_next(&mut cx).is_pending());
        assert!(subscription.poll_next(&mut cx).is_pending());
        cell.set(0);
        cell.set(value);
        assert_eq!(count.0.load(Ordering::Relaxed), value);
        let Poll::Ready(Some(yielded)) = subscription.poll_next(&mut cx) else { panic!("it ends or waits") };
        assert_eq!(*yielded, value);
    }
    assert!(subscription.poll_next(&mut cx).is_pending());
    drop(subscription);
    cell.set(3);
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
}

#[test]
fn g10_a_build_does_not_wait_for_itself() {
    let cell = cell::<u32>();
    let message = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        smol::block_on(cell.get_or_refresh_async(|| async { *cell.subscribe().changed().await }))
    }))
    .unwrap_err();
    assert!(message.downcast_ref::<String>().unwrap().contains("inside a build of the same cell"));

    // Nor does it go on with a wait that was given up outside.
    let mut subscription = cell.subscribe();
    assert!(poll(pin!(subscription.changed()), &Arc::default()).is_pending());
    let message = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        cell.get_or_refresh(|| match poll(pin!(subscription.changed()), &Arc::default()) {
            Poll::Ready(value) => *value,
            Poll::Pending => panic!("it waits for itself"),
        })
    }))
    .unwrap_err();
    assert!(message.downcast_ref::<String>().unwrap().contains("inside a build of the same cell"));
}

/// On several executors at once, and beside a thread.
#[test]
fn tasks_and_threads_see_the_last_publication() {
    const LAST: u64 = if cfg!(miri) { 20 } else { 2000 };
    let cell = Arc::new(DogpileCell::new(TTL));
    let follow = |cell: &Arc<DogpileCell<u64>>| {
        let mut subscription = cell.subscribe_owned();
        async move {
            let (mut last, mut count) = (0, 0_u64);
            while last != LAST {
                let value = *subscription.changed().await;
                assert!(value > last, "it goes back");
                (last, count) = (value, count + 1);
            }
            count
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let tasks: Vec<_> = (0..10).map(|_| runtime.spawn(follow(&cell))).collect();
    let other = std::thread::spawn({
        let follow = follow(&cell);
        move || smol::block_on(follow)
    });
    let thread = std::thread::spawn({
        let mut subscription = cell.subscribe_owned();
        move || while *subscription.wait_changed() != LAST {}
    });
    for value in 1..=LAST {
        cell.set(value);
    }
    for task in tasks {
        assert!((1..=LAST).contains(&runtime.block_on(task).unwrap()));
    }
    assert!((1..=LAST).contains(&other.join().unwrap()));
    thread.join().unwrap();
}

#[test]
fn of_every_kind_of_cell() {
    smol::block_on(async {
        let lazy = LazyDogpile::<u32>::new(TTL, || 7);
        lazy.get_or_refresh();
        assert_eq!(*lazy.subscribe().changed().await, 7);
        let cell = SyncReaderCell::new(TTL, drop::<u32>);
        cell.set(8);
        let mut subscription = cell.subscribe();
        assert_eq!(*subscription.next().await.unwrap(), 8);
        assert_eq!(cell.readers(), 0);
    });
}
