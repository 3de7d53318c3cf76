//! G9, G10: user code may call back into the cell from wherever the cell runs it.

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, DogpileCell, Lookup, ManualClock, Policy, RefreshError, Tick, Waited};

use crate::support::{
    Down, LookupExt, STRICT, TTL, cell, cell_with, eventually, panic_message, stale_cell, stale_cell_with,
};

#[test]
fn g10_a_build_that_calls_back_gets_the_stale_value() {
    let (cell, _clock) = stale_cell(1);
    let value = cell.get_or_refresh(|| {
        assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
        assert_eq!(*cell.try_get_or_refresh(|| -> Result<u32, Down> { unreachable!() }).unwrap(), 1);
        assert_eq!(*cell.load_or_refresh(|| unreachable!()), 1);
        *cell.get().unwrap() + 1
    });
    assert_eq!(*value, 2);
}

#[test]
fn g10_without_a_value_get_or_refresh_panics_and_says_what_to_do() {
    let (cell, _clock) = cell::<u32>();
    let message = panic_message(|| cell.get_or_refresh(|| *cell.get_or_refresh(|| 1)));
    assert!(
        message.contains("get_or_refresh was called from inside the build of the same cell"),
        "{message}"
    );
    assert!(message.contains("use `get`"), "{message}");
    // Nothing is lost, no caller is stranded.
    assert_eq!(cell.stats().panicked, 1);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
}

#[test]
fn g10_without_a_value_try_get_or_refresh_returns_an_error() {
    let (cell, _clock) = cell::<u32>();
    let value = cell.get_or_refresh(|| {
        let result = cell.try_get_or_refresh(|| -> Result<u32, Down> { unreachable!() });
        assert!(matches!(result, Err(RefreshError::Reentrant)));
        let result = cell.request().wait_at_most(TTL).try_get(|| -> Result<u32, Down> { unreachable!() });
        assert!(matches!(result, Err(RefreshError::Reentrant)));
        assert_eq!(cell.get(), None);
        1
    });
    assert_eq!(*value, 1);
    assert_eq!(cell.stats().waits, 0);
}

#[test]
fn g10_a_look_from_inside_a_build_says_so() {
    let (cell, _clock) = cell::<u32>();
    cell.get_or_refresh(|| {
        assert!(matches!(cell.lookup().pending().wait(), Waited::Reentrant));
        assert!(matches!(cell.lookup().pending().wait_timeout(TTL), Ok(Waited::Reentrant)));
        1
    });
}

#[test]
fn g10_a_request_inside_a_build_that_rules_out_the_stale_value_gets_no_value() {
    let (cell, _clock) = stale_cell_with(STRICT, 1);
    for request in [
        cell.request().max_stale(Duration::ZERO),
        cell.request().max_age(Duration::ZERO),
        cell.request().newer_than(1),
        cell.request().no_cache(),
        cell.request().no_cache().wait_at_most(TTL),
    ] {
        let inner = request.clone();
        let message = panic_message(|| cell.get_or_refresh(|| *inner.get(|| 2)));
        assert!(message.starts_with("get was called from inside the build of the same cell"), "{message}");
        // A call that returns a `Result` gets an error, or the stale value if it accepts that.
        let value = cell.try_get_or_refresh(|| {
            let inner = request.clone().try_get(|| Ok::<u32, Down>(2));
            assert!(matches!(inner, Err(RefreshError::Reentrant)), "{inner:?}");
            assert_eq!(*request.or_stale().try_get(|| Ok::<u32, Down>(2)).unwrap(), 1);
            Err(Down(1))
        });
        assert!(value.unwrap_err().is::<Down>());
    }
    assert_eq!(*cell.get_or_refresh(|| 3), 3);
}

#[test]
fn g10_builds_of_other_cells_may_be_nested() {
    let (outer, _clock) = cell();
    let (inner, _clock) = cell();
    let value = outer.get_or_refresh(|| {
        *inner.get_or_refresh(|| {
            let nested = outer.try_get_or_refresh(|| -> Result<u32, Down> { unreachable!() });
            assert!(matches!(nested, Err(RefreshError::Reentrant)));
            1
        }) + 1
    });
    assert_eq!(*value, 2);
}

#[test]
fn g10_a_build_may_wait_for_another_cell() {
    let (outer, _clock) = cell();
    let (inner, _clock) = cell();
    let lease = inner.lookup().elected();
    thread::scope(|scope| {
        let builder = scope.spawn(|| *outer.get_or_refresh(|| *inner.get_or_refresh(|| unreachable!()) + 1));
        eventually("it waits", || inner.stats().waits == 1 || builder.is_finished());
        lease.publish(1);
        assert_eq!(builder.join().unwrap(), 2);
    });
}

#[test]
fn g10_another_thread_inside_the_build_waits_like_any_other() {
    let (cell, _clock) = cell();
    let value = thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let value = cell.get_or_refresh(|| {
            let cell = &cell;
            scope.spawn(move || sender.send(*cell.get_or_refresh(|| unreachable!())));
            1
        });
        assert_eq!(receiver.recv().unwrap(), 1);
        value
    });
    assert_eq!(*value, 1);
}

#[test]
fn g10_after_a_panicking_build_the_thread_is_not_taken_for_building() {
    let (cell, _clock) = cell::<u32>();
    panic_message(|| cell.get_or_refresh(|| panic!("no")));
    let lease = cell.lookup().elected();
    let pending = cell.lookup().pending();
    assert!(pending.wait_timeout(Duration::ZERO).is_err());
    lease.publish(1);
}

#[test]
fn a_build_may_write_to_its_own_cell() {
    let (cell, _clock) = cell();
    assert_eq!(
        *cell.get_or_refresh(|| {
            cell.set(1);
            2
        }),
        1
    );
    cell.invalidate();
    cell.get_or_refresh(|| {
        cell.invalidate();
        3
    });
    assert!(matches!(cell.lookup(), Lookup::Elected(_)));
    assert_eq!(
        *cell.get_or_refresh(|| {
            cell.clear();
            4
        }),
        4
    );
    assert_eq!(cell.get(), None);
}

type Shared<T> = Arc<OnceLock<DogpileCell<T, ManualClock>>>;

/// A value whose drop uses the cell that held it.
struct Meddler {
    number: u32,
    cell: Shared<Meddler>,
    dropped: Arc<AtomicU32>,
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if let Some(cell) = self.cell.get() {
            let _ = (cell.generation(), cell.freshness(), cell.stats(), cell.is_refreshing());
            let _ = cell.snapshot();
            drop(cell.lookup());
            if let Some(newer) = cell.get() {
                assert!(newer.number > self.number, "dropped before the new value was published");
            }
            cell.invalidate();
        }
    }
}

#[test]
fn g9_a_value_may_use_the_cell_when_it_is_dropped() {
    let shared: Shared<Meddler> = Arc::new(OnceLock::new());
    let dropped = Arc::new(AtomicU32::new(0));
    let meddler = |number| Meddler { number, cell: Arc::clone(&shared), dropped: Arc::clone(&dropped) };
    let cell = shared.get_or_init(|| DogpileCell::with_clock(Policy::ttl(TTL), ManualClock::new()));

    cell.set(meddler(1));
    cell.set(meddler(2));
    cell.invalidate();
    cell.get_or_refresh(|| meddler(3));
    cell.invalidate();
    cell.request().no_cache().get(|| meddler(4));
    cell.clear();
    assert_eq!(dropped.load(Ordering::Relaxed), 4);
    // What is fenced off is dropped by its caller.
    drop(cell.get_or_refresh(|| {
        cell.clear();
        meddler(5)
    }));
    assert_eq!(dropped.load(Ordering::Relaxed), 5);
    assert!(!cell.is_refreshing());
}

struct MeddlingError(Shared<u32>);

impl fmt::Debug for MeddlingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeddlingError")
    }
}

impl fmt::Display for MeddlingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an error that uses the cell")
    }
}

impl Error for MeddlingError {}

impl Drop for MeddlingError {
    fn drop(&mut self) {
        let cell = self.0.get().unwrap();
        let _ = cell.get();
        cell.invalidate();
        drop(cell.lookup());
    }
}

#[test]
fn g9_an_error_may_use_the_cell_when_it_is_dropped() {
    let shared: Shared<u32> = Arc::new(OnceLock::new());
    let policy = Policy::ttl(TTL).retry_backoff(Duration::from_nanos(1), Duration::from_nanos(1));
    let clock = ManualClock::new();
    let cell = shared.get_or_init(|| DogpileCell::with_clock(policy, clock.clone()));
    for _ in 0..3 {
        // The error of the failure before is dropped by the next one.
        cell.lookup().elected().fail(MeddlingError(Arc::clone(&shared)));
        clock.advance(Duration::from_nanos(1));
    }
    // And the last one by the publication.
    cell.lookup().elected().publish(1);
    assert_eq!(cell.generation(), 1);
}

/// A clock that uses the cell each time that it is asked.
struct MeddlingClock {
    cell: OnceLock<std::sync::Weak<DogpileCell<u32, MeddlingClock>>>,
    inside: AtomicBool,
}

impl Clock for MeddlingClock {
    fn now(&self) -> Tick {
        // Not within itself.
        if !self.inside.swap(true, Ordering::Relaxed) {
            if let Some(cell) = self.cell.get().and_then(std::sync::Weak::upgrade) {
                cell.invalidate();
                let _ = cell.get();
            }
            self.inside.store(false, Ordering::Relaxed);
        }
        Tick::from_nanos(1)
    }
}

#[test]
fn g9_a_clock_may_use_the_cell() {
    let clock = MeddlingClock { cell: OnceLock::new(), inside: AtomicBool::new(false) };
    let policy = Policy::ttl(TTL).retry_backoff(TTL, TTL).jitter(50);
    let cell = Arc::new_cyclic(|weak: &std::sync::Weak<_>| {
        clock.cell.set(weak.clone()).unwrap();
        DogpileCell::with_clock(policy, clock)
    });
    cell.set(1);
    cell.get_or_refresh(|| 2);
    cell.lookup().elected().fail("no");
    let _ = cell.lookup();
    cell.clear();
    cell.invalidate();
    let _ = (cell.snapshot(), cell.freshness());
    cell.request().no_cache().get(|| 3);
}

/// A panic while the replaced value is dropped: the new one is published, the lease is free, no caller is stranded.
#[test]
fn g5_a_value_whose_drop_panics_loses_nothing() {
    struct Bomb(u32);
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(self.0 != 1, "the drop of 1 panics");
        }
    }
    let (cell, _clock) = stale_cell(Bomb(1));
    let lease = cell.lookup().elected();
    assert_eq!(panic_message(|| lease.publish(Bomb(2))), "the drop of 1 panics");
    assert_eq!(cell.get().unwrap().0, 2);
    assert!(!cell.is_refreshing());

    let (cell, _clock) = stale_cell(Bomb(1));
    assert_eq!(panic_message(|| cell.set(Bomb(2))), "the drop of 1 panics");
    assert_eq!(cell.get().unwrap().0, 2);

    let (cell, _clock) = crate::support::cell::<Bomb>();
    let result = panic_message(|| {
        cell.get_or_refresh(|| {
            cell.set(Bomb(2));
            // Fenced off by the set, and dropped when the caller is given 2.
            Bomb(1)
        })
    });
    assert_eq!(result, "the drop of 1 panics");
    assert_eq!(cell.get().unwrap().0, 2);
    assert!(!cell.is_refreshing());
}

/// A second panic would end the process.
#[test]
fn g5_a_build_that_panics_contains_the_drop_of_a_former_error() {
    #[derive(Debug)]
    struct Bomb;
    impl fmt::Display for Bomb {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an error whose drop panics")
        }
    }
    impl Error for Bomb {}
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the drop of an error panics");
        }
    }
    let (cell, _clock) = cell::<u32>();
    // The cell keeps it, until the next build has ended.
    assert!(cell.try_get_or_refresh(|| Err(Bomb)).is_err());
    assert_eq!(panic_message(|| cell.get_or_refresh(|| panic!("the build"))), "the build");
    assert_eq!(*cell.get_or_refresh(|| 1), 1);
}

#[test]
fn g5_a_value_whose_drop_panics_strands_no_waiter() {
    struct Bomb(u32);
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(self.0 != 1, "the drop of 1 panics");
        }
    }
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(Duration::ZERO));
    cell.set(Bomb(1));
    clock.advance(2 * TTL);
    let lease = cell.lookup().elected();
    let pending = cell.lookup().pending();
    panic_message(|| lease.publish(Bomb(2)));
    assert!(matches!(pending.wait(), Waited::Published(value) if value.0 == 2));
    cell.clear();

    // A lease keeps the previous value until it has ended. Of a value that is restored meanwhile the cell has the only
    // reference.
    let _lease = cell.lookup().elected();
    cell.restore(Bomb(1), Duration::ZERO);
    clock.advance(2 * TTL);
    let pending = cell.lookup().pending();
    panic_message(|| cell.set(Bomb(3)));
    let waited = pending.wait_timeout(Duration::ZERO);
    assert!(matches!(waited, Ok(Waited::Published(value)) if value.0 == 3));
}

/// Runs when its thread takes its thread-locals down.
struct Last(Box<dyn Fn() + Send>);

impl Drop for Last {
    fn drop(&mut self) {
        (self.0)();
    }
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// The thread did not know any more what it built, and waited for itself.
#[test]
fn g10_a_build_of_a_thread_that_ends_hung_if_it_called_back() {
    let (tell, told) = mpsc::channel();
    let last = Last(Box::new(move || {
        let (cell, _clock) = cell::<u32>();
        let built = cell.try_get_or_refresh(|| {
            let inner = cell.try_get_or_refresh(|| Ok::<u32, Down>(1));
            tell.send(matches!(inner, Err(RefreshError::Reentrant))).unwrap();
            Err(Down(1))
        });
        assert!(built.is_err());
    }));
    let thread = thread::spawn(move || {
        // Before any of the crate's, and so dropped after them.
        LAST.set(Some(last));
        let (cell, _clock) = cell();
        assert_eq!(*cell.get_or_refresh(|| 1), 1);
    });
    assert!(told.recv_timeout(Duration::from_secs(30)).expect("hangs"));
    thread.join().unwrap();
}

#[test]
fn g10_of_builds_inside_of_each_other_each_is_known() {
    fn nest(cells: &[DogpileCell<usize>], depth: usize) -> usize {
        *cells[depth].get_or_refresh(|| {
            for inside in &cells[..=depth] {
                let inner = inside.try_get_or_refresh(|| Ok::<usize, Down>(0));
                assert!(matches!(inner, Err(RefreshError::Reentrant)));
            }
            if depth + 1 < cells.len() { nest(cells, depth + 1) } else { depth }
        })
    }
    let cells: Vec<_> = (0..40).map(|_| DogpileCell::new(TTL)).collect();
    assert_eq!(nest(&cells, 0), 39);
    // And when they have ended, none.
    for cell in cells {
        cell.clear();
        assert_eq!(*cell.try_get_or_refresh(|| Ok::<usize, Down>(1)).unwrap(), 1);
    }
}
