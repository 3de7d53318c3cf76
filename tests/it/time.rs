//! G8: ages, deadlines, and clocks that are asked as rarely as possible.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogpile::{Clock, DogpileCell, Freshness, Lookup, ManualClock, Policy, SystemClock, Tick, TickClock};

use crate::support::{Down, LookupExt, TICK, TTL, cell, cell_with};

#[test]
fn g8_a_value_is_fresh_up_to_and_including_its_ttl() {
    let (cell, clock) = cell();
    cell.set(1);
    clock.advance(TTL);
    assert_eq!(cell.freshness(), Freshness::Fresh);
    clock.advance(TICK);
    assert_eq!(cell.freshness(), Freshness::Stale);
}

#[test]
fn g8_a_value_is_stale_up_to_and_including_its_window() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(TTL));
    cell.set(1);
    clock.advance(2 * TTL);
    assert_eq!(cell.freshness(), Freshness::Stale);
    assert!(cell.get().is_some());
    clock.advance(TICK);
    assert_eq!(cell.freshness(), Freshness::Expired);
    assert!(cell.get().is_none());
    // Shown, and called what it is, but not served.
    assert_eq!(cell.snapshot().unwrap().freshness, Freshness::Expired);
    // And shown to the next build.
    assert_eq!(cell.lookup().elected().previous().map(|value| **value), Some(1));
}

#[test]
fn g8_a_build_slower_than_the_ttl_yields_a_fresh_value() {
    let (cell, clock) = cell();
    cell.get_or_refresh(|| {
        clock.advance(5 * TTL);
        1
    });
    assert_eq!(cell.freshness(), Freshness::Fresh);
    assert_eq!(cell.snapshot().unwrap().age, Duration::ZERO);
    assert_eq!(cell.stats().last_build, Some(5 * TTL));
    clock.advance(TTL);
    assert_eq!(cell.freshness(), Freshness::Fresh);
}

#[test]
fn g8_a_value_without_a_deadline_outlives_a_century() {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    for policy in [Policy::never_expires(), Policy::ttl(Duration::MAX)] {
        let (cell, clock) = cell_with(policy);
        cell.set(1);
        clock.advance(CENTURY);
        assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
        assert_eq!(cell.snapshot().unwrap().age, CENTURY);
    }
}

#[test]
fn g8_a_ttl_of_zero_lasts_until_the_clock_moves() {
    let (cell, clock) = cell_with(Policy::ttl(Duration::ZERO));
    assert_eq!(*cell.get_or_refresh(|| 1), 1);
    assert_eq!(*cell.get_or_refresh(|| unreachable!("the age is zero")), 1);
    clock.advance(TICK);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
}

#[test]
fn durations_that_overflow_mean_for_ever() {
    let (cell, clock) = cell_with(
        Policy::ttl(TTL)
            .stale_while_refresh(Duration::MAX)
            .stale_if_error(Duration::MAX)
            .retry_backoff(TTL, Duration::MAX)
            .lease_timeout(Duration::MAX),
    );
    clock.advance(Duration::from_secs(1));
    cell.lookup().elected().publish_for(1, Duration::MAX);
    clock.advance(Duration::MAX);
    assert_eq!(cell.freshness(), Freshness::Fresh);
    assert_eq!(clock.now(), Tick::from_nanos(u64::MAX));
}

#[test]
fn a_value_may_choose_its_own_ttl() {
    let (cell, clock) = cell();
    cell.lookup().elected().publish_for(1, 2 * TTL);
    clock.advance(2 * TTL);
    assert_eq!(cell.freshness(), Freshness::Fresh);
    clock.advance(TICK);
    cell.lookup().elected().publish_for(2, Duration::ZERO);
    clock.advance(TICK);
    assert_eq!(cell.freshness(), Freshness::Stale);
}

#[test]
fn jitter_shortens_each_ttl_by_a_share_drawn_once() {
    const CELLS: usize = if cfg!(miri) { 40 } else { 200 };
    let clock = ManualClock::new();
    let cells: Vec<_> = (0..CELLS)
        .map(|_| {
            let cell =
                DogpileCell::with_clock(Policy::ttl(Duration::from_secs(100)).jitter(10), clock.clone());
            cell.set(());
            cell
        })
        .collect();
    let fresh = || cells.iter().filter(|cell| cell.freshness() == Freshness::Fresh).count();
    clock.advance(Duration::from_secs(90) - TICK);
    assert_eq!(fresh(), CELLS);
    clock.advance(Duration::from_secs(5));
    let half_way = fresh();
    // Both ends have a probability of 2^-200, under Miri of 2^-40.
    assert!(half_way > 0 && half_way < CELLS, "{half_way} of {CELLS} fresh");
    assert_eq!(fresh(), half_way);
    clock.advance(Duration::from_secs(5) + TICK + TICK);
    assert_eq!(fresh(), 0);
}

/// Counts how often it is asked.
#[derive(Default)]
struct CountingClock {
    time: ManualClock,
    exact: AtomicU64,
    coarse: AtomicU64,
}

const LAG: Duration = Duration::from_millis(20);

impl CountingClock {
    fn asked(&self) -> (u64, u64) {
        (self.exact.swap(0, Ordering::Relaxed), self.coarse.swap(0, Ordering::Relaxed))
    }
}

impl Clock for CountingClock {
    fn now(&self) -> Tick {
        self.exact.fetch_add(1, Ordering::Relaxed);
        self.time.now()
    }
    fn coarse_now(&self) -> Tick {
        self.coarse.fetch_add(1, Ordering::Relaxed);
        // Half of what it might.
        Tick::from_nanos(
            self.time.now().as_nanos().saturating_sub(u64::try_from(LAG.as_nanos()).unwrap() / 2),
        )
    }
    fn coarse_lag(&self) -> Duration {
        LAG
    }
}

fn counting_cell(policy: Policy) -> (DogpileCell<u32, Arc<CountingClock>>, Arc<CountingClock>) {
    let clock = Arc::new(CountingClock::default());
    let cell = DogpileCell::with_clock(policy, Arc::clone(&clock));
    cell.set(1);
    clock.asked();
    (cell, clock)
}

fn read_in_every_way(cell: &DogpileCell<u32, Arc<CountingClock>>) {
    assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
    assert_eq!(*cell.load_or_refresh(|| unreachable!()), 1);
    assert_eq!(*cell.try_get_or_refresh(|| -> Result<u32, Down> { unreachable!() }).unwrap(), 1);
    assert_eq!(cell.get().as_deref(), Some(&1));
}

#[test]
fn a_read_away_from_the_deadline_asks_the_coarse_clock_once() {
    let (cell, clock) = counting_cell(Policy::ttl(TTL));
    read_in_every_way(&cell);
    assert_eq!(clock.asked(), (0, 4));
}

#[test]
fn a_read_near_the_deadline_asks_the_exact_clock_too() {
    let (cell, clock) = counting_cell(Policy::ttl(TTL));
    clock.time.advance(TTL);
    read_in_every_way(&cell);
    assert_eq!(clock.asked(), (4, 4));
    // One tick later the coarse clock, lagging, would still call it fresh.
    clock.time.advance(TICK);
    assert_eq!(*cell.get_or_refresh(|| 2), 2);
}

#[test]
fn a_read_of_a_value_without_a_deadline_asks_no_clock() {
    let (cell, clock) = counting_cell(Policy::never_expires());
    read_in_every_way(&cell);
    let mut reader = cell.reader();
    reader.get_or_refresh(|| unreachable!());
    reader.get_or_refresh(|| unreachable!());
    assert!(matches!(cell.lookup(), Lookup::Fresh(_)));
    assert_eq!(cell.freshness(), Freshness::Fresh);
    assert_eq!(clock.asked(), (0, 0));
}

#[test]
fn a_stale_read_during_a_build_asks_no_clock_if_staleness_is_unbounded() {
    let (cell, clock) = counting_cell(Policy::ttl(TTL));
    clock.time.advance(2 * TTL);
    let lease = cell.lookup().elected();
    clock.asked();
    read_in_every_way(&cell);
    assert_eq!(clock.asked(), (0, 0));
    drop(lease);
}

/// A coarse clock that lags by varying amounts never makes a value live longer than the exact one says.
#[test]
fn a_lagging_coarse_clock_lengthens_no_life() {
    struct Lagging {
        time: ManualClock,
        lag: Cell<u64>,
    }
    // SAFETY is not needed: the cell that uses it stays on this thread.
    struct Shared(std::sync::Mutex<Lagging>);
    impl Clock for Shared {
        fn now(&self) -> Tick {
            self.0.lock().unwrap().time.now()
        }
        fn coarse_now(&self) -> Tick {
            let inner = self.0.lock().unwrap();
            let lag = (inner.lag.get() * 7 + 3) % 21;
            inner.lag.set(lag);
            Tick::from_nanos(inner.time.now().as_nanos().saturating_sub(lag))
        }
        fn coarse_lag(&self) -> Duration {
            Duration::from_nanos(20)
        }
    }
    let time = ManualClock::new();
    let clock = Shared(std::sync::Mutex::new(Lagging { time: time.clone(), lag: Cell::new(0) }));
    let cell = DogpileCell::with_clock(Policy::ttl(Duration::from_nanos(100)), clock);
    time.advance(Duration::from_secs(1));
    cell.set(0);
    for age in 0..200_u64 {
        let expected = if age <= 100 { Freshness::Fresh } else { Freshness::Stale };
        assert_eq!(cell.freshness(), expected, "at the age of {age} ns");
        assert_eq!(cell.snapshot().unwrap().freshness, expected);
        time.advance(TICK);
    }
}

/// A `Reader` asks it once, too, and away from the deadline nothing else.
#[test]
fn a_readers_read_away_from_the_deadline_asks_the_coarse_clock_once() {
    let (cell, clock) = counting_cell(Policy::ttl(TTL));
    let mut reader = cell.reader();
    reader.get_or_refresh(|| unreachable!());
    clock.asked();
    assert_eq!(**reader.get_or_refresh(|| unreachable!()), 1);
    assert_eq!(reader.get().map(|value| **value), Some(1));
    assert_eq!(clock.asked(), (0, 2));
}

/// Answers nothing that a default would, and notes what it is asked.
#[derive(Default)]
struct Peculiar(std::sync::Mutex<Vec<&'static str>>);

impl Peculiar {
    fn note<R>(&self, asked: &'static str, answer: R) -> R {
        self.0.lock().unwrap().push(asked);
        answer
    }
}

impl Clock for Peculiar {
    fn now(&self) -> Tick {
        self.note("now", Tick::from_nanos(7))
    }
    fn coarse_now(&self) -> Tick {
        self.note("coarse_now", Tick::from_nanos(5))
    }
    fn coarse_lag(&self) -> Duration {
        self.note("coarse_lag", Duration::from_nanos(3))
    }
    fn is_coarsely_before(&self, tick: Tick) -> bool {
        self.note("is_coarsely_before", tick == Tick::from_nanos(1))
    }
    fn park_until(&self, _: Tick, _: Tick) {
        self.note("park_until", ());
    }
    #[cfg(feature = "async")]
    fn sleep_until(&self, _: Tick, _: Tick) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        self.note("sleep_until", Box::pin(std::future::ready(())))
    }
}

#[test]
fn a_clock_behind_a_pointer_is_that_clock() {
    fn check(clock: impl Clock, told: &Peculiar) {
        let tick = Tick::from_nanos;
        assert_eq!((clock.now(), clock.coarse_now()), (tick(7), tick(5)));
        assert_eq!(clock.coarse_lag(), Duration::from_nanos(3));
        assert!(clock.is_coarsely_before(tick(1)) && !clock.is_coarsely_before(tick(9)));
        clock.park_until(tick(9), tick(7));
        let asked =
            ["now", "coarse_now", "coarse_lag", "is_coarsely_before", "is_coarsely_before", "park_until"];
        #[cfg(feature = "async")]
        drop(clock.sleep_until(tick(9), tick(7)));
        let expected =
            [asked.as_slice(), if cfg!(feature = "async") { &["sleep_until"] } else { &[] }].concat();
        assert_eq!(*told.0.lock().unwrap(), expected);
    }
    let clock = Peculiar::default();
    check(&clock, &clock);
    let clock = Arc::new(Peculiar::default());
    check(Arc::clone(&clock), &clock);
}

/// By default a wait that has a timeout sleeps: it does not look at the clock again and again.
#[test]
fn a_wait_by_a_custom_clock_sleeps() {
    struct Counted(AtomicU64);
    impl Clock for Counted {
        fn now(&self) -> Tick {
            self.0.fetch_add(1, Ordering::Relaxed);
            SystemClock.now()
        }
    }
    let clock = Counted(AtomicU64::new(0));
    let cell: DogpileCell<u32, _> = DogpileCell::with_clock(Policy::never_expires(), &clock);
    let lease = cell.lookup().elected();
    let Lookup::Pending(pending) = cell.lookup() else { panic!("there is nothing to serve") };
    std::thread::scope(|scope| {
        // By another thread, since this one is known to hold the lease.
        scope.spawn(|| assert!(pending.wait_timeout(Duration::from_millis(50)).is_err()));
    });
    // Once for the deadline, and once or twice for each time that the system wakes it.
    let asked = clock.0.load(Ordering::Relaxed);
    assert!(asked < 100, "looked at the clock {asked} times");
    drop(lease);
}

#[test]
fn the_clocks_of_the_system_work() {
    fn check<C: Clock>(clock: C) {
        let cell = DogpileCell::with_clock(Policy::ttl(Duration::from_secs(3600)), clock);
        assert_eq!(*cell.get_or_refresh(|| 1), 1);
        assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
        assert_eq!(cell.freshness(), Freshness::Fresh);
    }
    check(SystemClock);
    check(TickClock);
}
