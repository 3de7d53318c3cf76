//! A clock that is one load of an atomic.

use std::time::Duration;

use super::clock::{Clock, FOREVER, Tick};
use super::system::SystemClock;
use crate::sync::{Ordering, PlainOnceCell, PlainU64};

/// A clock whose coarse reading is one load of an atomic. A thread stores the time into it once per millisecond.
///
/// For programs that read cells a hundred million times per second. The first use in the process starts the thread,
/// `dogpile-tick`, which runs until the process ends. If it cannot be started, the coarse reading is the exact one. Takes no
/// space. The exact reading is that of [`SystemClock`].
///
/// If the machine leaves the thread without a processor for longer than 20 ms, a value may be served that much longer than
/// its deadline.
///
/// The thread does not survive a `fork`: in the child the coarse reading stands still, and deadlines are never noticed. A
/// program that forks after the first use of this clock must use [`SystemClock`] in the child
/// ([fork](crate::guide::fork)).
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Policy, TickClock};
/// use std::time::Duration;
///
/// static LIMIT: DogpileCell<u32, TickClock> =
///     DogpileCell::with_clock(Policy::ttl(Duration::from_secs(60)), TickClock);
///
/// assert_eq!(*LIMIT.get_or_refresh(|| 7), 7);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct TickClock;

/// The latest reading. [`FOREVER`], which is before no tick, until the thread runs.
static TICK: PlainU64 = PlainU64::new(FOREVER);

impl TickClock {
    #[cold]
    #[inline(never)]
    fn start() -> Tick {
        static STARTED: PlainOnceCell<()> = PlainOnceCell::new();
        STARTED.get_or_init(|| {
            let ticker = || loop {
                // Relaxed: the number stands for itself, and one thread writes it.
                TICK.store(SystemClock.now().0.min(FOREVER - 1), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            };
            // Without the thread TICK stays FOREVER and every reading comes here: slower, never wrong.
            let _ = std::thread::Builder::new().name("dogpile-tick".into()).spawn(ticker);
        });
        SystemClock.now()
    }
}

impl Clock for TickClock {
    #[inline]
    fn now(&self) -> Tick {
        SystemClock.now()
    }

    #[inline]
    fn coarse_now(&self) -> Tick {
        // Relaxed: a coarse reading may be old, and the readings of one thread never go back.
        match TICK.load(Ordering::Relaxed) {
            FOREVER => Self::start(),
            tick => Tick(tick),
        }
    }

    #[inline]
    fn coarse_lag(&self) -> Duration {
        Duration::from_millis(20)
    }

    #[inline]
    fn is_coarsely_before(&self, tick: Tick) -> bool {
        // Relaxed: the tick stands for itself. Without the thread the answer is no, and the caller asks `coarse_now`, which starts it.
        TICK.load(Ordering::Relaxed) < tick.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri reports a thread that never ends")]
    fn the_coarse_reading_never_leads_and_moves() {
        for _ in 0..10_000 {
            let coarse = TickClock.coarse_now();
            let after = TickClock.now();
            assert!(coarse <= after, "{coarse:?} leads {after:?}");
        }
        let start = TickClock.coarse_now();
        while TickClock.coarse_now() == start {
            std::thread::yield_now();
        }
        // Several rounds of its thread.
        assert!(TickClock.coarse_lag() >= Duration::from_millis(5));
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri reports a thread that never ends")]
    fn the_comparison_agrees_with_the_reading() {
        assert!(TickClock.coarse_now() < Tick(FOREVER));
        while TICK.load(Ordering::Relaxed) == FOREVER {
            std::thread::yield_now();
        }
        assert!(TickClock.is_coarsely_before(Tick(FOREVER)));
        for _ in 0..1000 {
            let coarse = TickClock.coarse_now();
            assert!(!TickClock.is_coarsely_before(coarse));
            assert!(!TickClock.is_coarsely_before(Tick(coarse.0 - 1)));
        }
    }
}
