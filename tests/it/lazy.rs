//! The cell that keeps its build.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dogpile::{LazyDogpile, ManualClock, Policy};

use crate::support::{TICK, TTL};

static BUILDS: AtomicU32 = AtomicU32::new(0);
static NUMBER: LazyDogpile<u32> = LazyDogpile::new(TTL, || BUILDS.fetch_add(1, Ordering::Relaxed));

#[test]
fn a_static_one_builds_once_for_all_threads() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert_eq!(*NUMBER.get(), 0);
                assert_eq!(*NUMBER.load(), 0);
                assert_eq!(**NUMBER.reader().get(), 0);
            });
        }
    });
    assert_eq!(BUILDS.load(Ordering::Relaxed), 1);
    assert_eq!(NUMBER.cell().stats().builds, 1);
}

#[test]
fn a_closure_may_capture() {
    let clock = ManualClock::new();
    let count = AtomicU32::new(0);
    let lazy =
        LazyDogpile::with_clock(Policy::ttl(TTL), clock.clone(), || count.fetch_add(1, Ordering::Relaxed));
    let mut reader = lazy.reader();
    assert_eq!((*lazy.get(), **reader.get()), (0, 0));
    clock.advance(TTL + TICK);
    assert_eq!((**reader.get(), *lazy.load()), (1, 1));
    lazy.cell().invalidate();
    assert_eq!(*lazy.get(), 2);
    let kept = Arc::downgrade(reader.get());
    lazy.cell().set(3);
    assert!(kept.upgrade().is_some(), "the reader keeps what it has seen");
    reader.release();
    assert!(kept.upgrade().is_none());
    assert_eq!(**reader.get(), 3);
    assert!(format!("{lazy:?}").contains("generation: 4"));
    assert_eq!(format!("{reader:?}"), "LazyReader { reader: Reader { holds_a_value: true, .. }, .. }");
}
