//! Ticks, and what the crate requires of a clock.
//!
//! A read that has to know whether a deadline has passed asks the *coarse* clock first. It is several times cheaper than the
//! exact clock, and may lag behind it. The exact clock is asked only where the answer could depend on that lag.

use std::time::Duration;

use crate::sync::{Arc, park_timeout};

/// "Never", as a deadline or a window in nanoseconds.
pub(crate) const FOREVER: u64 = u64::MAX;

/// A duration in nanoseconds. More than 584 years become [`FOREVER`].
#[allow(clippy::cast_possible_truncation)] // compared before; `try_from` is not const
pub(crate) const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > FOREVER as u128 { FOREVER } else { nanos as u64 }
}

/// A point in time on a [`Clock`], in nanoseconds since a starting point that the clock chooses.
///
/// Ticks of different clocks cannot be compared.
///
/// # Examples
///
/// ```
/// use dogpile::Tick;
/// use std::time::Duration;
///
/// let start = Tick::from_nanos(1_000);
/// let end = start.saturating_add(Duration::from_nanos(500));
/// assert!(start < end);
/// assert_eq!(end.saturating_duration_since(start), Duration::from_nanos(500));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub(crate) u64);

impl Tick {
    /// The tick `nanos` nanoseconds after the clock's starting point.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Tick;
    ///
    /// assert_eq!(Tick::from_nanos(7).as_nanos(), 7);
    /// ```
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's starting point.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Tick;
    ///
    /// assert_eq!(Tick::default().as_nanos(), 0);
    /// ```
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The tick `duration` after this one. Saturates at the last tick.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Tick;
    /// use std::time::Duration;
    ///
    /// assert_eq!(Tick::from_nanos(7).saturating_add(Duration::from_micros(1)), Tick::from_nanos(1_007));
    /// assert_eq!(Tick::from_nanos(7).saturating_add(Duration::MAX), Tick::from_nanos(u64::MAX));
    /// ```
    #[must_use]
    pub const fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// The time from `earlier` to this tick, or zero if `earlier` is later than this tick.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Tick;
    /// use std::time::Duration;
    ///
    /// let (earlier, later) = (Tick::from_nanos(5), Tick::from_nanos(7));
    /// assert_eq!(later.saturating_duration_since(earlier), Duration::from_nanos(2));
    /// assert_eq!(earlier.saturating_duration_since(later), Duration::ZERO);
    /// ```
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The tick at which a wait of length `wait` that begins now is over. [`FOREVER`] only if `wait` has no end.
pub(crate) fn deadline<C: Clock>(clock: &C, wait: Duration) -> u64 {
    if nanos(wait) == FOREVER { FOREVER } else { clock.now().saturating_add(wait).0.min(FOREVER - 1) }
}

/// A monotonic clock.
///
/// Only [`now`](Clock::now) is required. It must not go backwards, neither on one thread nor between threads that
/// synchronise. No method is called while the cell holds a lock. The last tick (after 584 years) stands for "never": a clock
/// that shows it is taken to show the tick before it.
///
/// # Examples
///
/// ```
/// use dogpile::{Clock, Tick};
///
/// /// A clock on which it is always noon.
/// struct Noon;
///
/// impl Clock for Noon {
///     fn now(&self) -> Tick {
///         Tick::from_nanos(12 * 3_600_000_000_000)
///     }
/// }
/// assert_eq!(Noon.coarse_now(), Noon.now());
/// ```
///
/// A clock that also counts the time for which the machine is suspended: [suspend](crate::guide::suspend).
pub trait Clock: Send + Sync {
    /// The exact time.
    fn now(&self) -> Tick;

    /// A cheaper reading that may lag behind [`now`](Clock::now) but never leads it. Default: the exact time.
    #[inline]
    fn coarse_now(&self) -> Tick {
        self.now()
    }

    /// An upper bound of the lag of [`coarse_now`](Clock::coarse_now). Default: zero, which is right for a `coarse_now` that is
    /// exact.
    ///
    /// A read that is closer to a deadline than this asks the exact clock. So a bound that is too large costs exact
    /// readings. If the actual lag is larger than the bound, a read may take a value for fresh after its deadline, for as
    /// long as the lag exceeds the bound.
    #[inline]
    fn coarse_lag(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether [`coarse_now`](Clock::coarse_now) is before `tick`. Not part of the public API: it lets [`TickClock`]
    /// check with one comparison that its thread runs and that it is early enough.
    ///
    /// [`TickClock`]: crate::TickClock
    #[doc(hidden)]
    #[inline]
    fn is_coarsely_before(&self, tick: Tick) -> bool {
        self.coarse_now() < tick
    }

    /// Blocks the calling thread until it is unparked, or until this clock shows `deadline`. `now` is a recent reading of
    /// this clock, earlier than `deadline`.
    ///
    /// Called by waits that have a timeout. May return early for no reason, as [`std::thread::park`] may: callers look at the
    /// clock again. The default parks for the time that is left, on the system's clock.
    ///
    /// An implementation must park the thread itself. It must not do anything before that consumes the thread's token
    /// (waiting for a channel does), or it loses a wake-up.
    fn park_until(&self, deadline: Tick, now: Tick) {
        park_timeout(deadline.saturating_duration_since(now));
    }

    /// A future that is ready when this clock shows `deadline`: the counterpart of [`park_until`](Clock::park_until) for
    /// tasks. `now` is a recent reading of this clock.
    ///
    /// Used by tasks that wait for a build that may be [superseded](crate::Policy::lease_timeout), by tasks that wait for
    /// readers for a limited time, and by those of [`Refresher::spawn_async`](crate::Refresher::spawn_async). May be ready
    /// early: callers look at the clock again. The default sleeps for the time that is left, on the system's clock, with
    /// `futures-timer`, whose thread serves every executor.
    #[cfg(feature = "async")]
    fn sleep_until(&self, deadline: Tick, now: Tick) -> Alarm {
        Box::pin(timer(deadline.saturating_duration_since(now)))
    }
}

/// The result of [`Clock::sleep_until`].
#[cfg(feature = "async")]
pub(crate) type Alarm = std::pin::Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

#[cfg(feature = "async")]
fn timer(wait: Duration) -> futures_timer::Delay {
    // There it is JavaScript's `setTimeout`, which takes less than 2^31 milliseconds and fires at once for more. To be early is
    // allowed.
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    let wait = wait.min(Duration::from_millis(i32::MAX.unsigned_abs().into()));
    futures_timer::Delay::new(wait)
}

/// A clock behind a pointer is that clock.
macro_rules! forward_to_pointee {
    ($($pointer:ty),*) => {$(
        impl<C: Clock + ?Sized> Clock for $pointer {
            #[inline]
            fn now(&self) -> Tick {
                (**self).now()
            }
            #[inline]
            fn coarse_now(&self) -> Tick {
                (**self).coarse_now()
            }
            #[inline]
            fn coarse_lag(&self) -> Duration {
                (**self).coarse_lag()
            }
            #[inline]
            fn is_coarsely_before(&self, tick: Tick) -> bool {
                (**self).is_coarsely_before(tick)
            }
            fn park_until(&self, deadline: Tick, now: Tick) {
                (**self).park_until(deadline, now);
            }
            #[cfg(feature = "async")]
            fn sleep_until(&self, deadline: Tick, now: Tick) -> Alarm {
                (**self).sleep_until(deadline, now)
            }
        }
    )*};
}

forward_to_pointee!(&C, Arc<C>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_saturate() {
        assert_eq!(nanos(Duration::MAX), FOREVER);
        assert_eq!(nanos(Duration::from_nanos(7)), 7);
        assert_eq!(Tick(5).saturating_add(Duration::MAX), Tick(FOREVER));
        assert_eq!(Tick(5).saturating_duration_since(Tick(7)), Duration::ZERO);
    }
}
