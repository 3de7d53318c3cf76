//! A clock for tests.

use std::fmt;
use std::time::Duration;

use super::clock::{Clock, Tick, nanos};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, PlainOnceCell, const_fn, park};
use crate::wait::{WaitQueue, Waiter};
#[cfg(feature = "async")]
use {
    super::clock::{Alarm, FOREVER},
    crate::wait::{Entry, WaitPoint},
};

/// A clock that stands still until it is advanced: for tests.
///
/// Clones are handles of one clock. It starts at tick 0. Waits that have a timeout follow it too, so a test decides when they
/// time out.
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Freshness, ManualClock, Policy};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let cell = DogpileCell::with_clock(Policy::ttl(Duration::from_secs(60)), clock.clone());
/// cell.get_or_refresh(|| "value");
///
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(cell.freshness(), Freshness::Fresh);
/// clock.advance(Duration::from_nanos(1));
/// assert_eq!(cell.freshness(), Freshness::Stale);
/// ```
///
/// Beside a cell in a `static`, which borrows it:
///
/// ```
/// use dogpile::{DogpileCell, Freshness, ManualClock, Policy};
/// use std::time::Duration;
///
/// static CLOCK: ManualClock = ManualClock::new();
/// static LIMIT: DogpileCell<u32, &ManualClock> =
///     DogpileCell::with_clock(Policy::ttl(Duration::from_secs(60)), &CLOCK);
///
/// LIMIT.set(7);
/// CLOCK.advance(Duration::from_secs(61));
/// assert_eq!(LIMIT.freshness(), Freshness::Stale);
/// ```
pub struct ManualClock {
    /// Made by the first use, as an `Arc` cannot be made at compile time. Set from then on.
    shared: PlainOnceCell<Arc<Shared>>,
}

#[derive(Default)]
struct Shared {
    now: AtomicU64,
    /// The threads inside `park_until` and the tasks inside `sleep_until`.
    queue: Mutex<WaitQueue<()>>,
}

impl ManualClock {
    const_fn! {
        /// A clock that shows tick 0.
        ///
        /// # Examples
        ///
        /// ```
        /// use dogpile::{Clock, ManualClock, Tick};
        ///
        /// static CLOCK: ManualClock = ManualClock::new();
        /// assert_eq!(CLOCK.now(), Tick::from_nanos(0));
        /// ```
        #[must_use]
        pub const fn new() -> Self {
            Self { shared: PlainOnceCell::new() }
        }
    }

    /// Advances the clock, and wakes the waits whose deadline has come. Saturates at the last tick.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Clock, ManualClock, Tick};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// clock.advance(Duration::from_micros(1));
    /// assert_eq!(clock.now(), Tick::from_nanos(1_000));
    /// ```
    pub fn advance(&self, by: Duration) {
        let by = nanos(by);
        let shared = self.shared();
        // Release: pairs with the Acquire in `now`. A thread that sees the new time sees what happened before it was advanced.
        // Acquire: so does one that sees it after a later advance, by another thread. The closure always returns `Some`.
        let _ =
            shared.now.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| Some(now.saturating_add(by)));
        let waiters: Vec<Waiter> = shared.queue.lock().matching(|()| true).collect();
        for waiter in waiters {
            waiter.wake();
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        self.shared.get_or_init(Arc::default)
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for ManualClock {
    fn clone(&self) -> Self {
        Self { shared: PlainOnceCell::with_value(Arc::clone(self.shared())) }
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualClock").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Tick {
        // Acquire: pairs with the Release in `advance`.
        Tick(self.shared().now.load(Ordering::Acquire))
    }

    fn park_until(&self, deadline: Tick, _now: Tick) {
        let shared = self.shared();
        let number = shared.queue.lock().join(Waiter::this_thread(), ());
        // It looks at the clock after it has joined the queue: an `advance` that this look misses finds it there.
        if self.now() < deadline {
            park();
        }
        let left = shared.queue.lock().leave(number);
        drop(left);
    }

    #[cfg(feature = "async")]
    fn sleep_until(&self, deadline: Tick, _now: Tick) -> Alarm {
        let clock = self.clone();
        Box::pin(async move {
            // Acquire: as in `now`.
            let is_over = |shared: &Shared| (shared.now.load(Ordering::Acquire) >= deadline.0).then_some(());
            Entry::new(Arc::clone(clock.shared())).wait_async((), &clock, FOREVER, is_over).await;
        })
    }
}

#[cfg(feature = "async")]
impl WaitPoint for Shared {
    type Note = ();

    fn with_queue<R>(&self, access: impl FnOnce(&mut WaitQueue<()>) -> R) -> R {
        access(&mut self.queue.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_wakes_its_waiters() {
        let clock = ManualClock::new();
        // Not one that comes too late.
        clock.park_until(Tick(0), Tick(0));
        let sleeper = {
            let clock = clock.clone();
            std::thread::spawn(move || {
                let mut parked = 0;
                while clock.now() < Tick(10) {
                    clock.park_until(Tick(10), clock.now());
                    parked += 1;
                }
                parked
            })
        };
        while clock.shared().queue.lock().len() == 0 {
            std::thread::yield_now();
        }
        // Time for many rounds, if it did not sleep.
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        clock.advance(Duration::from_nanos(10));
        let parked = sleeper.join().unwrap();
        assert!(parked < 100, "it slept {parked} times");
        assert_eq!(clock.shared().queue.lock().len(), 0);
    }

    #[test]
    fn clones_show_one_time() {
        static CLOCK: ManualClock = ManualClock::new();
        let clone = CLOCK.clone();
        CLOCK.advance(Duration::from_nanos(3));
        clone.advance(Duration::from_nanos(4));
        assert_eq!((CLOCK.now(), clone.clone().now()), (Tick(7), Tick(7)));
    }

    #[test]
    fn a_manual_clock_shows_its_time() {
        let clock = ManualClock::new();
        clock.advance(Duration::from_nanos(7));
        assert_eq!(format!("{clock:?}"), "ManualClock { now: Tick(7), .. }");
    }
}
