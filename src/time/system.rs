//! The operating system's clock.
//!
//! On Linux and Android the exact reading is `CLOCK_MONOTONIC` and the coarse one is `CLOCK_MONOTONIC_COARSE`: the kernel's
//! time as of one of its last timer ticks. Both count from the same zero and are adjusted at the same rate, so readings of
//! one can be compared with readings of the other, and the coarse one never leads. Other systems have one clock, that of
//! [`std::time::Instant`], which is both. Why these: `docs/internals/clock.md`.

use std::time::Duration;

use super::clock::{Clock, Tick};

/// The operating system's monotonic clock; the default. Takes no space.
///
/// On Linux and Android the coarse reading is `CLOCK_MONOTONIC_COARSE`, on other systems it is the exact one. This clock stands
/// still while the machine is suspended if [`std::time::Instant`] does: on Linux and macOS, for example. The guide has
/// [a clock that does not](crate::guide::suspend).
///
/// # Examples
///
/// ```
/// use dogpile::{Clock, SystemClock};
///
/// let before = SystemClock.now();
/// let coarse = SystemClock.coarse_now();
/// let after = SystemClock.now();
/// assert!(before <= after);
/// assert!(coarse <= after);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[inline]
    fn now(&self) -> Tick {
        Tick(os::exact())
    }

    #[inline]
    fn coarse_now(&self) -> Tick {
        Tick(os::coarse())
    }

    #[inline]
    fn coarse_lag(&self) -> Duration {
        os::coarse_lag()
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod os {
    use std::time::Duration;

    use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

    use crate::sync::{Ordering, PlainU8};

    /// The bound that [`coarse_lag`] returns, in milliseconds: a byte, so that the conversions to a `Duration` and back are
    /// one multiplication.
    ///
    /// It has its greatest value until the first exact reading of the process, which asks the kernel. A bound that is too
    /// large is right too, and no read meets it: a deadline is an exact reading plus a duration.
    static LAG: PlainU8 = PlainU8::new(UNKNOWN);
    const UNKNOWN: u8 = u8::MAX;

    /// What is added to two timer ticks: the interrupt of the tick may be late, on a virtual machine by some milliseconds.
    const MARGIN: u64 = 5_000_000;

    #[inline]
    pub(super) fn exact() -> u64 {
        // Relaxed: the number stands for itself.
        if LAG.load(Ordering::Relaxed) == UNKNOWN {
            ask_for_the_lag();
        }
        nanos(clock_gettime(ClockId::Monotonic))
    }

    // A call, so that a read keeps little in registers around it: inlined it is 5 instructions less, and each read, also one
    // that asks no clock, takes longer (docs/internals/reads.md).
    #[inline(never)]
    pub(super) fn coarse() -> u64 {
        nanos(clock_gettime(ClockId::MonotonicCoarse))
    }

    #[inline]
    pub(super) fn coarse_lag() -> Duration {
        // Relaxed: the number stands for itself.
        Duration::from_millis(LAG.load(Ordering::Relaxed).into())
    }

    #[cold]
    #[inline(never)]
    fn ask_for_the_lag() {
        // Miri has no `clock_getres`. Its coarse clock is the exact one.
        let resolution = if cfg!(miri) { 1 } else { nanos(clock_getres(ClockId::MonotonicCoarse)) };
        // Relaxed: every thread that stores here stores the same.
        LAG.store(bound(resolution), Ordering::Relaxed);
    }

    /// The greatest lag of a coarse clock with this resolution, in milliseconds, rounded up. The resolution is the length of a
    /// timer tick. The kernel moves the clock by whole ticks and keeps the rest, so it can be almost two of them behind.
    pub(super) fn bound(resolution: u64) -> u8 {
        let lag = resolution.saturating_mul(2).saturating_add(MARGIN).div_ceil(1_000_000);
        // It saturates far above what there is: with 24 ticks per second, the fewest that a kernel has, it is 89 ms.
        u8::try_from(lag).unwrap_or(u8::MAX).min(UNKNOWN - 1)
    }

    #[inline]
    fn nanos(time: Timespec) -> u64 {
        // Neither is negative: the clocks count from the start of the machine, forwards.
        time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod os {
    use std::time::Duration;

    use super::Instant;
    use crate::sync::PlainOnceCell;
    use crate::time::clock::nanos;

    /// `Instant` has no zero of its own: ticks count from the first reading of the process.
    static START: PlainOnceCell<Instant> = PlainOnceCell::new();

    #[inline]
    pub(super) fn exact() -> u64 {
        nanos(START.get_or_init(Instant::now).elapsed())
    }

    #[inline]
    pub(super) fn coarse() -> u64 {
        exact()
    }

    #[inline]
    pub(super) fn coarse_lag() -> Duration {
        Duration::ZERO
    }
}

#[cfg(not(all(target_family = "wasm", target_os = "unknown")))]
#[allow(unused_imports)] // on Linux only `tracing` needs it
pub(crate) use std::time::Instant;
/// std's panics there.
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
pub(crate) use web_time::Instant;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coarse_reading_never_leads_and_moves() {
        for _ in 0..10_000 {
            let before = SystemClock.now();
            let coarse = SystemClock.coarse_now();
            let after = SystemClock.now();
            assert!(coarse <= after, "{coarse:?} leads {after:?}");
            assert!(before <= after);
        }
        // How far it lags depends on the scheduler.
        let start = SystemClock.coarse_now();
        while SystemClock.coarse_now() == start {
            std::thread::yield_now();
        }
    }

    /// `Instant` reads `CLOCK_MONOTONIC` on Linux: the distance of two readings is the same.
    #[test]
    fn a_tick_is_a_nanosecond() {
        let outer = Instant::now();
        let first = SystemClock.now();
        let inner = Instant::now();
        while inner.elapsed() < Duration::from_millis(1) {}
        let at_least = inner.elapsed();
        let passed = SystemClock.now().saturating_duration_since(first);
        assert!(at_least <= passed && passed <= outer.elapsed(), "{passed:?}");
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn the_bound_of_the_lag_is_two_ticks_and_a_margin() {
        // 1000, 300, 250, 100 ticks per second; a system whose coarse clock is the exact one.
        for (resolution, bound) in
            [(1_000_000, 7), (3_333_334, 12), (4_000_000, 13), (10_000_000, 25), (1, 6)]
        {
            assert_eq!(os::bound(resolution), bound, "{resolution}");
        }
        // Never the mark for "not asked yet".
        assert_eq!(os::bound(u64::MAX), u8::MAX - 1);
        let _ = SystemClock.now();
        assert!(SystemClock.coarse_lag() < Duration::from_millis(100), "{:?}", SystemClock.coarse_lag());
    }
}
