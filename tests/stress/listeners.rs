//! Subscriptions and hooks: several publishers at once, subscribers that are too slow, hooks that come and go.
//!
//! * A subscriber never goes back, and its last value is the last publication.
//! * A hook gets every publication of its time once, in order, never two at a time; after its drop it is not called.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Policy};

use crate::harness::{Random, alone, scaled, seed};

const PUBLISHERS: u64 = 3;
const SUBSCRIBERS: u64 = if cfg!(miri) { 1 } else { 4 };
/// As a guard against hangs.
const PATIENCE: Duration = Duration::from_secs(if cfg!(miri) { 1200 } else { 120 });

#[test]
fn no_publication_is_missed() {
    let _alone = alone();
    let seed = seed();
    let cell = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    let each = scaled(20_000, 20);
    let last = PUBLISHERS * each;
    // A panic of a callback would be contained, so it counts what is wrong.
    let calls = Arc::new(AtomicU64::new(0));
    let faults = Arc::new([(); 3].map(|()| AtomicU64::new(0)));
    let count = |faults: &[AtomicU64; 3], number: usize, is_wrong: bool| {
        faults[number].fetch_add(u64::from(is_wrong), Ordering::Relaxed);
    };
    let hook = cell.on_publish({
        let (calls, faults, busy) = (Arc::clone(&calls), Arc::clone(&faults), AtomicBool::new(false));
        move |snapshot| {
            count(&faults, 0, busy.swap(true, Ordering::Acquire));
            let number = calls.fetch_add(1, Ordering::Relaxed) + 1;
            count(&faults, 1, snapshot.generation != number);
            busy.store(false, Ordering::Release);
        }
    });
    let (woken, attached) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (cell, woken, attached, is_over, faults) = (&cell, &woken, &attached, &is_over, &faults);
        for subscriber in 0..SUBSCRIBERS {
            scope.spawn(move || {
                let mut random = Random::new(seed ^ (subscriber << 16));
                let mut subscription = cell.subscribe();
                let mut latest = 0;
                while latest < last {
                    let value = subscription.wait_changed_timeout(PATIENCE).expect("a lost wake-up");
                    assert!(subscription.seen() > latest && *value < last);
                    latest = subscription.seen();
                    woken.fetch_add(1, Ordering::Relaxed);
                    random.dawdle();
                }
                assert!(!subscription.has_changed());
            });
        }
        // Hooks that come and go.
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let is_dropped = Arc::new(AtomicBool::new(false));
                let hook = cell.on_change({
                    let (is_dropped, faults) = (Arc::clone(&is_dropped), Arc::clone(faults));
                    move |_| count(&faults, 2, is_dropped.load(Ordering::Acquire))
                });
                attached.fetch_add(1, Ordering::Relaxed);
                thread::yield_now();
                drop(hook);
                is_dropped.store(true, Ordering::Release);
                assert_eq!(Arc::strong_count(&is_dropped), 1, "what it had captured is still there");
            }
        });
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                scope.spawn(move || {
                    let mut random = Random::new(seed ^ publisher);
                    for number in 0..each {
                        cell.set(publisher * each + number);
                        if random.one_in(8) {
                            random.dawdle();
                        }
                    }
                })
            })
            .collect();
        for publisher in publishers {
            publisher.join().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!((calls.load(Ordering::Relaxed), cell.generation()), (last, last));
    let faults = [0, 1, 2].map(|number| faults[number].load(Ordering::Relaxed));
    assert_eq!(faults, [0; 3], "two calls at a time, out of order, after its drop");
    drop(hook);
    println!("{last} publications, {woken:?} wake-ups of {SUBSCRIBERS} subscribers, {attached:?} hooks");
}
