//! The map's clock, as the flights see it.
//!
//! A flight's cell is given the past of its key when it is made: the value was published at one tick and perhaps declared
//! stale at another. [`at`] replays that. It also lets the map look at a cell under a lock, where the user's clock must not
//! be asked.

use std::cell::Cell;
use std::time::Duration;

use dogpile::{Clock, Tick};

use crate::sync::thread_local;

/// Added to each tick, so that a value which was made before the clock's starting point has a tick too.
const OFFSET: u64 = 1 << 62;

/// "Never", as a moment.
pub(crate) const NEVER: i64 = i64::MAX;

thread_local! {
    /// What the flights' clocks show on this thread, if it is not the time.
    static SHOWN: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs `look` while the flights' clocks show `moment` on this thread.
pub(crate) fn at<R>(moment: i64, look: impl FnOnce() -> R) -> R {
    struct Restore(Option<u64>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SHOWN.with(|shown| shown.set(self.0));
        }
    }
    let tick = OFFSET.saturating_add_signed(moment).max(1);
    let _restore = Restore(SHOWN.with(|shown| shown.replace(Some(tick))));
    look()
}

/// A tick as the map keeps it. Some 292 years after the clock's starting point, time stands still.
#[inline]
pub(crate) fn moment(tick: Tick) -> i64 {
    tick.as_nanos().min((NEVER - 1).cast_unsigned()).cast_signed()
}

/// A duration as the map keeps it; [`NEVER`] if it does not fit.
#[inline]
pub(crate) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

/// For how long a value with this ttl is fresh: up to and including the tick at which its age is the ttl.
pub(crate) fn freshness(ttl: Duration) -> i64 {
    nanos(ttl).saturating_add(1)
}

/// The ttl of a value that is fresh from one moment up to, and not including, another. See [`freshness`].
pub(crate) fn ttl(published: i64, fresh_end: i64) -> Duration {
    if fresh_end == NEVER {
        Duration::MAX
    } else {
        Duration::from_nanos(
            u64::try_from(fresh_end.saturating_sub(published).saturating_sub(1)).unwrap_or(0),
        )
    }
}

/// The clock of a flight's cell: the map's, shifted by [`OFFSET`].
pub(crate) struct FlightClock<C>(pub(crate) C);

impl<C: Clock> Clock for FlightClock<C> {
    fn now(&self) -> Tick {
        shown(|| self.0.now())
    }

    fn coarse_now(&self) -> Tick {
        shown(|| self.0.coarse_now())
    }

    fn coarse_lag(&self) -> Duration {
        self.0.coarse_lag()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        self.0.park_until(unshifted(deadline), unshifted(now));
    }

    #[cfg(feature = "async")]
    fn sleep_until(
        &self,
        deadline: Tick,
        now: Tick,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        self.0.sleep_until(unshifted(deadline), unshifted(now))
    }
}

fn shown(read: impl FnOnce() -> Tick) -> Tick {
    match SHOWN.with(Cell::get) {
        Some(tick) => Tick::from_nanos(tick),
        None => Tick::from_nanos(read().as_nanos().saturating_add(OFFSET)),
    }
}

fn unshifted(tick: Tick) -> Tick {
    match tick.as_nanos() {
        u64::MAX => tick,
        nanos => Tick::from_nanos(nanos.saturating_sub(OFFSET)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dogpile::ManualClock;

    #[test]
    fn a_moment_is_shown_on_this_thread_only_and_until_the_look_ends() {
        let time = ManualClock::new();
        let clock = FlightClock(time.clone());
        let start = clock.now();
        let seen = at(moment(time.now()) - 5, || {
            std::thread::scope(|scope| assert_eq!(scope.spawn(|| clock.now()).join().unwrap(), start));
            clock.now()
        });
        assert_eq!(start.saturating_duration_since(seen), Duration::from_nanos(5));
        assert_eq!(clock.now(), start);
        assert_eq!(unshifted(start), time.now());
    }
}
