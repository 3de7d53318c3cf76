//! A thread's own reader beside a static.

use std::cell::{Cell, RefCell};
use std::num::ParseIntError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock};
use std::thread;

use dogpile::{LazyDogpile, ManualClock, Policy, RefreshError, TickClock};

use crate::support::{LookupExt, TICK, TTL, panic_message};

fn seven() -> u32 {
    7
}

#[test]
fn each_thread_reads_through_a_reader_of_its_own() {
    static NUMBER: LazyDogpile<u32> = LazyDogpile::new(TTL, seven);
    dogpile::local!(static LOCAL: u32 = NUMBER);

    assert_eq!(LOCAL.with(|number| *number), 7);
    let value = NUMBER.get().unwrap();
    // The read that builds keeps nothing; the next one does.
    assert_eq!(LOCAL.with(|number| *number), 7);
    // The cell, `value` and this thread's reader; reading again takes no further reference.
    for _ in 0..3 {
        assert_eq!((LOCAL.with(|number| *number), Arc::strong_count(&value)), (7, 3));
    }
    let shared = Arc::clone(&value);
    let reader = thread::spawn(move || (LOCAL.with(|number| *number), Arc::strong_count(&shared)));
    // Not a scoped one, of which the locals may be there for a moment longer.
    assert_eq!(reader.join().unwrap(), (7, 5));
    NUMBER.set(8);
    assert_eq!((LOCAL.with(|number| *number), Arc::strong_count(&value)), (8, 1));
    assert_eq!(NUMBER.cell().stats().builds, 1);
}

#[test]
fn several_may_be_declared_at_once() {
    type Fails = fn() -> Result<u32, ParseIntError>;
    static NUMBER: LazyDogpile<u32> = LazyDogpile::new(TTL, seven);
    static FALLIBLE: LazyDogpile<u32, Fails> = LazyDogpile::new(TTL, || "8".parse());
    static TICKING: LazyDogpile<u32, fn() -> u32, TickClock> =
        LazyDogpile::with_clock(Policy::ttl(TTL), TickClock, || 9);
    dogpile::local! {
        static LOCAL: u32 = NUMBER;
        static LOCAL_FALLIBLE: Result<u32, ParseIntError> = FALLIBLE;
        static LOCAL_TICKING: u32 = TICKING, clock: TickClock;
    }

    let read = |number: &u32| *number;
    assert_eq!(
        (LOCAL.with(read), LOCAL_FALLIBLE.try_with(read).unwrap(), LOCAL_TICKING.with(read)),
        (7, 8, 9)
    );
}

#[test]
fn a_release_lets_go_of_this_threads_value() {
    static NUMBER: LazyDogpile<u32> = LazyDogpile::new(TTL, seven);
    dogpile::local!(static LOCAL: u32 = NUMBER);

    LOCAL.release();
    let value = NUMBER.get_or_refresh();
    LOCAL.with(|_| {
        assert_eq!(Arc::strong_count(&value), 3);
        LOCAL.release();
        assert_eq!(Arc::strong_count(&value), 3, "in use");
    });
    LOCAL.release();
    assert_eq!(Arc::strong_count(&value), 2);
    assert_eq!(LOCAL.with(|number| *number), 7);
}

#[test]
fn a_stale_value_is_rebuilt_by_one_and_read_by_the_others() {
    static BUILDS: AtomicU32 = AtomicU32::new(0);
    type Timed = LazyDogpile<u32, fn() -> u32, ManualClock>;
    static CLOCK: LazyLock<ManualClock> = LazyLock::new(ManualClock::new);
    // Not a static itself: what derefs to the cell will do.
    static NUMBER: LazyLock<Timed> = LazyLock::new(|| {
        LazyDogpile::with_clock(Policy::ttl(TTL), CLOCK.clone(), || BUILDS.fetch_add(1, Ordering::Relaxed))
    });
    dogpile::local!(static LOCAL: u32 = NUMBER, clock: ManualClock);

    assert_eq!(LOCAL.with(|number| *number), 0);
    CLOCK.advance(TTL + TICK);
    let lease = NUMBER.cell().lookup().elected();
    assert_eq!(LOCAL.with(|number| *number), 0);
    drop(lease);
    assert_eq!(LOCAL.with(|number| *number), 1);
}

#[test]
fn a_build_may_fail_and_the_clock_may_be_another() {
    static TEXT: std::sync::Mutex<&str> = std::sync::Mutex::new("no number");
    type Build = fn() -> Result<u32, ParseIntError>;
    static NUMBER: LazyDogpile<u32, Build, TickClock> =
        LazyDogpile::with_clock(Policy::ttl(TTL), TickClock, || TEXT.lock().unwrap().parse());
    dogpile::local! {
        /// Documented.
        pub(crate) static LOCAL: Result<u32, ParseIntError> = NUMBER, clock: TickClock;
    }

    let error = LOCAL.try_with(|_| unreachable!("there is no value")).unwrap_err();
    assert!(error.is::<ParseIntError>());
    *TEXT.lock().unwrap() = "7";
    NUMBER.cell().reset();
    assert_eq!(LOCAL.try_with(|number| *number).unwrap(), 7);
    assert!(format!("{LOCAL:?}").starts_with("Local"));
}

#[test]
fn inside_itself_it_reads_the_cell() {
    static NUMBER: LazyDogpile<u32> = LazyDogpile::new(TTL, seven);
    dogpile::local!(static LOCAL: u32 = NUMBER);

    let sum = LOCAL.with(|outer| {
        NUMBER.set(8);
        // The outer one is still the one that was read; the inner one is the current one.
        outer + LOCAL.with(|inner| inner + LOCAL.with(|innermost| *innermost))
    });
    assert_eq!(sum, 7 + 8 + 8);
    // Borrowed by the reader this time, where the first read was the cell's.
    let sum = LOCAL.with(|outer| {
        NUMBER.set(9);
        outer + LOCAL.with(|inner| inner + LOCAL.with(|innermost| *innermost))
    });
    assert_eq!(sum, 8 + 9 + 9);
}

#[test]
fn a_panic_of_the_closure_leaves_the_reader_usable() {
    static NUMBER: LazyDogpile<u32> = LazyDogpile::with_policy(Policy::never_expires(), seven);
    dogpile::local!(static LOCAL: u32 = NUMBER);

    for _ in 0..3 {
        assert_eq!(panic_message(|| LOCAL.with(|_| panic!("no"))), "no");
    }
    let value = NUMBER.get().unwrap();
    LOCAL.with(|_| assert_eq!(Arc::strong_count(&value), 3));
}

#[test]
fn g10_a_build_that_reads_its_own_cell_gets_the_old_value_or_a_panic() {
    static NUMBER: LazyDogpile<u32> = LazyDogpile::new(TTL, || LOCAL.with(|number| number + 1));
    dogpile::local!(static LOCAL: u32 = NUMBER);
    static FALLIBLE: LazyDogpile<u32, fn() -> Result<u32, RefreshError>> =
        LazyDogpile::new(TTL, || LOCAL_FALLIBLE.try_with(|number| number + 1));
    dogpile::local!(static LOCAL_FALLIBLE: Result<u32, RefreshError> = FALLIBLE);

    let message = panic_message(|| LOCAL.with(|number| *number));
    assert!(message.contains("inside the build of the same cell"), "{message}");
    NUMBER.set(1);
    NUMBER.invalidate();
    assert_eq!(LOCAL.with(|number| *number), 2);
    assert!(LOCAL_FALLIBLE.try_with(|_| ()).is_err());
    FALLIBLE.set(1);
    FALLIBLE.invalidate();
    assert_eq!(LOCAL_FALLIBLE.try_with(|number| *number).unwrap(), 2);
}

thread_local! {
    /// What `Nosy::drop` has read.
    static SEEN: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Reads the cell of which it is a value when it is dropped.
struct Nosy(u32);

static NOSY: LazyDogpile<Nosy> = LazyDogpile::new(TTL, || Nosy(7));
dogpile::local!(static LOCAL_NOSY: Nosy = NOSY);

impl Drop for Nosy {
    fn drop(&mut self) {
        let seen = LOCAL_NOSY.with(|nosy| nosy.0);
        let _ = SEEN.try_with(|all| all.borrow_mut().push(seen));
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

static DROPPED: AtomicU32 = AtomicU32::new(0);

/// One test, as all of it is about one static: `drop` of a value may read, while a reader replaces it, releases it, or goes away
/// with its thread.
#[test]
fn a_drop_of_the_value_may_read() {
    LOCAL_NOSY.with(|_| ());
    LOCAL_NOSY.with(|nosy| assert_eq!(nosy.0, 7));
    // The reader of this thread is the last owner of the old value, and replaces it at its next read.
    NOSY.set(Nosy(8));
    assert_eq!(SEEN.take(), []);
    assert_eq!(LOCAL_NOSY.with(|nosy| nosy.0), 8);
    assert_eq!(SEEN.take(), [8]);

    NOSY.set(Nosy(9));
    LOCAL_NOSY.release();
    assert_eq!(SEEN.take(), [9]);
    LOCAL_NOSY.release();

    // A thread that ends is the last owner, and there is a newer value, or none.
    for clear in [false, true] {
        let dropped = DROPPED.load(Ordering::Relaxed);
        let (was_read, reads) = channel();
        let (go, goes) = channel::<()>();
        let reader = thread::spawn(move || {
            assert_eq!(LOCAL_NOSY.with(|nosy| nosy.0), 9);
            was_read.send(()).unwrap();
            goes.recv().unwrap();
        });
        reads.recv().unwrap();
        if clear {
            drop(NOSY.clear());
        } else {
            NOSY.set(Nosy(9));
        }
        go.send(()).unwrap();
        reader.join().unwrap();
        assert_eq!(DROPPED.load(Ordering::Relaxed), dropped + 1);
    }
    assert_eq!(LOCAL_NOSY.with(|nosy| nosy.0), 7);
}

#[test]
fn a_thread_that_ends_reads_the_cell() {
    static NUMBER: LazyDogpile<u32> = LazyDogpile::new(TTL, seven);
    dogpile::local!(static LOCAL: u32 = NUMBER);

    /// Reads while the thread's locals are dropped, before and after the reader's slot.
    struct AtTheEnd(Cell<Option<std::sync::mpsc::Sender<u32>>>);
    impl Drop for AtTheEnd {
        fn drop(&mut self) {
            let read = LOCAL.with(|number| *number);
            self.0.take().unwrap().send(read).unwrap();
            LOCAL.release();
        }
    }
    thread_local! {
        static FIRST: AtTheEnd = const { AtTheEnd(Cell::new(None)) };
        static SECOND: AtTheEnd = const { AtTheEnd(Cell::new(None)) };
    }
    let (read, reads) = channel();
    thread::spawn(move || {
        FIRST.with(|end| end.0.set(Some(read.clone())));
        LOCAL.with(|_| ());
        LOCAL.with(|_| ());
        SECOND.with(|end| end.0.set(Some(read)));
    })
    .join()
    .unwrap();
    assert_eq!(reads.iter().collect::<Vec<_>>(), [7, 7]);
}

#[test]
fn a_cell_and_constants_of_the_user_may_have_any_name() {
    static READER: LazyDogpile<u32> = LazyDogpile::new(TTL, seven);
    static SLOT: LazyDogpile<u32> = LazyDogpile::new(TTL, seven);
    const CLEANER: usize = 2;
    static CELL: LazyDogpile<[u32; CLEANER]> = LazyDogpile::new(TTL, || [7; CLEANER]);
    dogpile::local! {
        static LOCAL_READER: u32 = READER;
        static LOCAL_SLOT: u32 = SLOT;
        static LOCAL_CELL: [u32; CLEANER] = CELL;
    }
    assert_eq!(LOCAL_READER.with(|number| *number), 7);
    assert_eq!(LOCAL_SLOT.with(|number| *number), 7);
    assert_eq!(LOCAL_CELL.with(|numbers| *numbers), [7, 7]);
}
