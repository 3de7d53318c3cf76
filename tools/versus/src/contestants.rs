//! Everybody who takes part, in the order of the tables: what is compared, and nothing else.
//!
//! Each does what a user of that library would write: a value, the moment when it is out of date, and a build by
//! whoever finds that this moment has come. Protection against a stampede is there where the library, or the lock that
//! one needs anyway, gives it. Where a ttl has to be checked by hand, it is checked with the coarse clock that this crate
//! uses too, unless the name says otherwise: with the exact one they would all cost the same, namely the clock.

pub(crate) mod caches;
pub(crate) mod hitbox;
pub(crate) mod kovan;
pub(crate) mod locks;
pub(crate) mod own;
pub(crate) mod swaps;

use crate::contest::{Card, Value};
use rustix::time::{ClockId, clock_gettime};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

pub(crate) use caches::Once;
pub(crate) use hitbox::Kept;

/// Everybody.
pub(crate) fn all<V: Value>() -> Vec<Card<V>> {
    fn other<V: Value, K: crate::contest::Contestant<V> + 'static>(name: &'static str) -> Card<V> {
        Card::of::<K>(name, false)
    }
    fn own<V: Value, K: crate::contest::Contestant<V> + 'static>(name: &'static str) -> Card<V> {
        Card::of::<K>(name, true)
    }
    vec![
        own::<V, own::GetOrRefresh<V>>("get_or_refresh"),
        own::<V, own::LoadOrRefresh<V>>("load_or_refresh"),
        own::<V, own::ThroughReader<V>>("Reader"),
        own::<V, own::ThroughTickReader<V>>("Reader TickClock"),
        own::<V, own::ThroughTimelessReader<V>>("Reader no deadline"),
        own::<V, own::Lazy<V>>("LazyDogpile::get_or_refresh"),
        own::<V, own::SyncGet<V>>("SyncReaderCell get_or_refresh"),
        own::<V, own::SyncLoad<V>>("SyncReaderCell load_or_refresh"),
        other::<V, locks::StdRwLock<V, Exact>>("std RwLock; exact clock"),
        other::<V, locks::StdRwLock<V, Coarse>>("std RwLock; coarse clock"),
        other::<V, locks::ParkingLotRwLock<V, Exact>>("parking_lot RwLock; exact clock"),
        other::<V, locks::ParkingLotRwLock<V, Coarse>>("parking_lot RwLock; coarse clock"),
        other::<V, locks::StdMutex<V, Exact>>("std Mutex; exact clock"),
        other::<V, locks::StdMutex<V, Coarse>>("std Mutex; coarse clock"),
        other::<V, locks::ParkingLotMutex<V, Exact>>("parking_lot Mutex; exact clock"),
        other::<V, locks::ParkingLotMutex<V, Coarse>>("parking_lot Mutex; coarse clock"),
        other::<V, swaps::SwapFull<V, Exact>>("arc_swap load_full; exact clock"),
        other::<V, swaps::SwapLoad<V, Exact>>("arc_swap load; exact clock"),
        other::<V, swaps::SwapFull<V, Coarse>>("arc_swap load_full; coarse clock"),
        other::<V, swaps::SwapLoad<V, Coarse>>("arc_swap load; coarse clock"),
        other::<V, swaps::SwapCache<V, Coarse>>("arc_swap Cache; coarse clock"),
        other::<V, swaps::SwapCache<V, NoClock>>("arc_swap Cache; no expiry"),
        other::<V, swaps::HazarcLoad<V>>("hazarc load; coarse clock"),
        other::<V, swaps::HazarcCache<V>>("hazarc Cache; coarse clock"),
        other::<V, kovan::Kovan<V>>("kovan Atom; coarse clock"),
        other::<V, swaps::Shift<V>>("arcshift; coarse clock"),
        other::<V, swaps::LeftRight<V>>("left-right; coarse clock"),
        other::<V, swaps::Watch<V>>("tokio watch; coarse clock"),
        other::<V, caches::Moka<V>>("moka get_with"),
        other::<V, caches::QuickCache<V>>("quick_cache; coarse clock"),
        other::<V, caches::CachedOnce<V>>("cached #[once]"),
        other::<V, hitbox::Hitbox<V>>("hitbox #[cached]"),
        other::<V, caches::Floor<V>>("once_cell; no expiry"),
    ]
}

/// A clock that a ttl is checked with by hand.
pub(crate) trait Timer: Send + Sync + 'static {
    const EXPIRES: bool = true;

    type Moment: PartialOrd + Copy + Send + Sync + 'static;

    fn now() -> Self::Moment;

    /// When a value that is made now is out of date.
    fn after(ttl: Duration) -> Self::Moment;
}

/// What one reaches for.
pub(crate) struct Exact;

impl Timer for Exact {
    type Moment = Instant;

    #[inline]
    fn now() -> Instant {
        Instant::now()
    }

    fn after(ttl: Duration) -> Instant {
        Instant::now() + ttl
    }
}

/// The kernel's time as of its last tick, in nanoseconds.
pub(crate) struct Coarse;

impl Timer for Coarse {
    type Moment = u64;

    #[inline]
    fn now() -> u64 {
        let time = clock_gettime(ClockId::MonotonicCoarse);
        time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
    }

    fn after(ttl: Duration) -> u64 {
        Self::now().saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// None at all: nothing is ever out of date.
pub(crate) struct NoClock;

impl Timer for NoClock {
    const EXPIRES: bool = false;

    type Moment = bool;

    #[inline]
    fn now() -> bool {
        false
    }

    fn after(_ttl: Duration) -> bool {
        true
    }
}

/// A value and when it is out of date, as one keeps them together.
pub(crate) struct Stamped<V, T: Timer> {
    pub(crate) value: V,
    until: T::Moment,
    clock: PhantomData<T>,
}

impl<V, T: Timer> Stamped<V, T> {
    /// Made now: counted from the end of the build.
    pub(crate) fn new(value: V, ttl: Duration) -> Self {
        Self { value, until: T::after(ttl), clock: PhantomData }
    }

    #[inline]
    pub(crate) fn is_fresh(&self) -> bool {
        T::now() < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::{Builds, Large, Meanwhile, Small, Source};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
    use std::thread;

    const LONG: Duration = Duration::from_hours(1);
    const SHORT: Duration = Duration::from_millis(1);
    /// Only to fail instead of hanging.
    const PATIENCE: Duration = Duration::from_mins(1);

    /// One test at a time: `#[once]` has one static for each type of value.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives way until it is so.
    fn until(what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < PATIENCE, "in vain: {what}");
            thread::yield_now();
        }
    }

    #[test]
    fn each_has_a_name_of_its_own_that_fits_into_the_files() {
        let cards = all::<Small>();
        for (place, card) in cards.iter().enumerate() {
            assert!(!cards[place + 1..].iter().any(|other| other.name == card.name), "{}", card.name);
            assert!(!card.name.contains([',', '|', '"', '\n']), "{}", card.name);
        }
    }

    #[test]
    fn a_value_that_is_up_to_date_is_read_again_and_again() {
        fn check<V: Value>() {
            for card in all::<V>() {
                let entry = card.enter(LONG, Source::idle());
                for _ in 0..2 {
                    let mut runner = entry.runner();
                    for _ in 0..100 {
                        assert_eq!(runner.read(), 1, "{}", card.name);
                    }
                    for variant in 0..crate::contest::WIDTHS.len() {
                        runner.run(variant, crate::contest::STRIDE);
                    }
                }
                assert_eq!((entry.source().began(), entry.source().ended()), (1, 1), "{}", card.name);
            }
        }
        let _alone = alone();
        check::<Small>();
        check::<Large>();
    }

    #[test]
    fn a_value_expires_where_it_is_said_to_and_nowhere_else() {
        let _alone = alone();
        let reference = dogpile::DogpileCell::new(SHORT);
        for card in all::<Small>() {
            let entry = card.enter(SHORT, Source::idle());
            let mut runner = entry.runner();
            assert_eq!(runner.read(), 1, "{}", card.name);
            if card.traits.expires {
                let start = Instant::now();
                while runner.read() < 2 {
                    assert!(start.elapsed() < PATIENCE, "{} does not expire", card.name);
                    thread::yield_now();
                }
                assert!(entry.source().began() >= 2);
            } else {
                // As long as it takes another cell to be built twice with the same ttl.
                let before = reference.generation();
                until("the other cell is built", || {
                    reference.get_or_refresh(|| ());
                    reference.generation() >= before + 2
                });
                assert_eq!(runner.read(), 1, "{}", card.name);
                assert_eq!(entry.source().began(), 1, "{}", card.name);
            }
        }
    }

    #[test]
    fn who_finds_an_empty_cell_builds_or_waits_as_it_is_said() {
        const THREADS: usize = 8;
        let _alone = alone();
        for card in all::<Small>() {
            let arrived = Arc::new(AtomicUsize::new(0));
            let building = Arc::new(AtomicUsize::new(0));
            let builds = card.traits.builds;
            let work = {
                let (arrived, building) = (Arc::clone(&arrived), Arc::clone(&building));
                move |_| {
                    building.fetch_add(1, Ordering::Relaxed);
                    until("all have arrived", || arrived.load(Ordering::Relaxed) == THREADS);
                    match builds {
                        // All of them are in a build at once.
                        Builds::Everybody => {
                            until("everybody builds", || building.load(Ordering::Relaxed) == THREADS);
                        }
                        // Time for the others to come in here too, if they can.
                        Builds::One => (0..1_000).for_each(|_| thread::yield_now()),
                    }
                }
            };
            let entry = card.enter(LONG, Source::new(work));
            let turn = || {
                let mut runner = entry.runner();
                arrived.fetch_add(1, Ordering::Relaxed);
                runner.read()
            };
            let seen: Vec<u64> = thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(turn)).collect();
                threads.into_iter().map(|thread| thread.join().expect(card.name)).collect()
            });
            match builds {
                Builds::One => {
                    assert_eq!(entry.source().began(), 1, "{}", card.name);
                    assert_eq!(seen, [1; THREADS], "{}", card.name);
                }
                Builds::Everybody => assert_eq!(entry.source().began(), THREADS as u64, "{}", card.name),
            }
        }
    }

    #[test]
    fn the_old_value_is_served_during_a_build_where_it_is_said_to() {
        let _alone = alone();
        for card in all::<Small>().into_iter().filter(|card| card.traits.expires) {
            let (begun, wait_for_build) = mpsc::channel();
            let open = Arc::new(AtomicBool::new(false));
            let gate = Arc::clone(&open);
            let entry = card.enter(
                SHORT,
                Source::new(move |number| {
                    if number >= 2 {
                        // Nobody listens any more when a later value has expired too.
                        let _ = begun.send(());
                        until("the gate is open", || gate.load(Ordering::Relaxed));
                    }
                }),
            );
            assert_eq!(entry.runner().read(), 1, "{}", card.name);
            thread::scope(|scope| {
                let builder = scope.spawn(|| {
                    let mut runner = entry.runner();
                    let start = Instant::now();
                    while runner.read() < 2 {
                        assert!(start.elapsed() < PATIENCE, "{} does not expire", card.name);
                    }
                });
                wait_for_build.recv_timeout(PATIENCE).expect("a second build");
                let (arrived, wait_for_arrival) = mpsc::channel();
                let reader = scope.spawn({
                    let entry = &entry;
                    move || {
                        let mut runner = entry.runner();
                        arrived.send(()).expect("the test listens");
                        runner.read()
                    }
                });
                match card.traits.meanwhile {
                    Meanwhile::Stale => {
                        until("the reader is served", || reader.is_finished());
                        assert_eq!(reader.join().expect(card.name), 1, "{}", card.name);
                        open.store(true, Ordering::Relaxed);
                    }
                    Meanwhile::Waits => {
                        wait_for_arrival.recv().expect("it arrives");
                        (0..1_000).for_each(|_| thread::yield_now());
                        assert!(!reader.is_finished(), "{} has served something", card.name);
                        open.store(true, Ordering::Relaxed);
                        assert!(reader.join().expect(card.name) >= 2, "{}", card.name);
                    }
                }
                builder.join().expect(card.name);
            });
        }
    }
}
