//! Time as the cells see it: nanoseconds on a monotonic clock that can be replaced.
//!
//! A read that has to know whether a deadline has passed asks the *coarse* clock first, which is several times
//! cheaper and may lag behind, and the exact one only where the answer could depend on that lag.

use std::fmt;
use std::time::Duration;

use crate::sync::{Arc, AtomicU64, Mutex, Ordering, PlainOnceCell, PlainU64, park, park_timeout};
use crate::wait::{WaitQueue, Waiter};

/// "Never", as a deadline or a window in nanoseconds.
pub(crate) const FOREVER: u64 = u64::MAX;

/// A duration in nanoseconds; more than 584 years become [`FOREVER`].
#[allow(clippy::cast_possible_truncation)] // compared before; `try_from` is not const
pub(crate) const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > FOREVER as u128 { FOREVER } else { nanos as u64 }
}

/// A moment on a [`Clock`], in nanoseconds since a starting point of that clock's own choosing.
///
/// Ticks of different clocks have nothing to do with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub(crate) u64);

impl Tick {
    /// The tick that lies `nanos` nanoseconds after the clock's starting point.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's starting point.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The tick that lies `duration` after this one, or the last one there is.
    #[must_use]
    pub const fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// The time from `earlier` to this tick, or zero if `earlier` is the later one.
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The moment at which a wait that begins now and takes `wait` is over: FOREVER only if it is to have no end.
pub(crate) fn deadline<C: Clock>(clock: &C, wait: Duration) -> u64 {
    if nanos(wait) == FOREVER { FOREVER } else { clock.now().saturating_add(wait).0.min(FOREVER - 1) }
}

/// A monotonic clock.
///
/// Only [`now`](Clock::now) has to be written. No method is ever called while the cell holds a lock, and
/// [`now`](Clock::now) must not go backwards, on one thread or between threads that synchronise. A clock that shows
/// the last tick there is (584 years) is taken to show the one before it, since the last one stands for "never".
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
pub trait Clock: Send + Sync {
    /// The exact time.
    fn now(&self) -> Tick;

    /// A cheaper reading that may lag behind [`now`](Clock::now) but never leads it. Default: the exact time.
    #[inline]
    fn coarse_now(&self) -> Tick {
        self.now()
    }

    /// The most that [`coarse_now`](Clock::coarse_now) lags behind. Nearer to a deadline than this, a read asks
    /// the exact clock. Default: zero, which is right for a `coarse_now` that is exact.
    #[inline]
    fn coarse_lag(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether [`coarse_now`](Clock::coarse_now) is before `tick`. Part of the crate, not of its interface: it lets
    /// [`TickClock`] answer with one compare whether its thread runs and whether it is early enough.
    #[doc(hidden)]
    #[inline]
    fn is_coarsely_before(&self, tick: Tick) -> bool {
        self.coarse_now() < tick
    }

    /// Blocks the calling thread until it is unparked, or until this clock shows `deadline`. `now` is what the
    /// clock showed a moment ago, earlier than `deadline`.
    ///
    /// May return early for no reason, as [`std::thread::park`] may; callers look at the clock again. Waits
    /// that have a timeout use it. The default parks for the time that is left, on the system's clock.
    ///
    /// An implementation parks the thread itself, and nothing that it does before may consume the thread's
    /// token (as waiting for a channel does), or a wake-up would be lost.
    fn park_until(&self, deadline: Tick, now: Tick) {
        park_timeout(deadline.saturating_duration_since(now));
    }

    /// A future that is ready when this clock shows `deadline`: what [`park_until`](Clock::park_until) is to a thread, for
    /// a task. `now` is what the clock showed a moment ago.
    ///
    /// May be ready early; callers look at the clock again. Tasks that wait for a build that may be
    /// [superseded](crate::Policy::lease_timeout), or for readers for a limited time, and those of
    /// [`Refresher::spawn_async`](crate::Refresher::spawn_async) use it. The default sleeps for the
    /// time that is left, on the system's clock: with `futures-timer`, whose thread serves every executor.
    #[cfg(feature = "async")]
    fn sleep_until(&self, deadline: Tick, now: Tick) -> Alarm {
        Box::pin(futures_timer::Delay::new(deadline.saturating_duration_since(now)))
    }
}

/// What [`Clock::sleep_until`] returns.
#[cfg(feature = "async")]
pub(crate) type Alarm = std::pin::Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl<C: Clock + ?Sized> Clock for &C {
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

impl<C: Clock + ?Sized> Clock for Arc<C> {
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

/// The most that the kernel's coarse clock is taken to lag. It moves by whole ticks and can be almost two of
/// them behind; a tick is 10 ms at the slowest usual setting (`CONFIG_HZ=100`), 1 ms or 4 ms at the others.
const KERNEL_LAG: u64 = 20_000_000;

/// How far apart the coarse readings may be between which the anchor is taken. Not zero: on some systems the coarse
/// clock is the exact one and never reads the same twice.
const ANCHOR_SLACK: u64 = 1_000_000;

const ANCHOR_TRIES: u32 = 100;

/// The operating system's monotonic clock; the default. Takes no space.
///
/// On Linux and Android the coarse reading is `CLOCK_MONOTONIC_COARSE`, elsewhere it is the exact one. Where
/// [`std::time::Instant`] stands still while the machine is suspended, so does this clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// Ties the two readings to one time line: `Instant` tells no absolute time, the coarse clock does.
struct Anchor {
    instant: std::time::Instant,
    tick: u64,
}

static ANCHOR: PlainOnceCell<Anchor> = PlainOnceCell::new();

impl Anchor {
    fn get() -> &'static Self {
        ANCHOR.get_or_init(|| Self::take(kernel_coarse))
    }

    /// Between two coarse readings that are close together, so that a pause of this thread cannot shift the anchor.
    fn take(mut coarse: impl FnMut() -> u64) -> Self {
        let mut tick = coarse();
        for _ in 0..ANCHOR_TRIES {
            let instant = std::time::Instant::now();
            let after = coarse();
            if after - tick < ANCHOR_SLACK {
                return Self::at(instant, tick);
            }
            tick = after;
        }
        // A machine as busy as that is given what it has.
        Self::at(std::time::Instant::now(), tick)
    }

    /// `coarse`: what the coarse clock showed just before `instant`. It is late by what that clock lags and by
    /// `ANCHOR_SLACK` at most, and never early. The exact time line is moved on by the most that this can be, so
    /// that the coarse reading never leads it; here, once, so that no coarse reading has to be moved back.
    fn at(instant: std::time::Instant, coarse: u64) -> Self {
        Self { instant, tick: coarse.saturating_add(KERNEL_LAG + ANCHOR_SLACK) }
    }
}

impl Clock for SystemClock {
    #[inline]
    fn now(&self) -> Tick {
        let anchor = Anchor::get();
        Tick(anchor.tick.saturating_add(nanos(anchor.instant.elapsed())))
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[inline]
    fn coarse_now(&self) -> Tick {
        Tick(kernel_coarse())
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[inline]
    fn coarse_lag(&self) -> Duration {
        Duration::from_nanos(2 * KERNEL_LAG + ANCHOR_SLACK)
    }
}

/// Nanoseconds on `CLOCK_MONOTONIC_COARSE`.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[allow(clippy::cast_possible_truncation)] // less than 2^32 seconds are less than 2^62 nanoseconds
#[inline]
fn kernel_coarse() -> u64 {
    // Fixed point: seconds above, 2^-32 seconds below. Not `Instant::now`, which also writes to a shared word.
    let ticks = coarsetime::Instant::now_without_cache_update().as_ticks();
    // One multiplication: seconds and fraction apart would be two, and three instructions more.
    ((u128::from(ticks) * 1_000_000_000) >> 32) as u64
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn kernel_coarse() -> u64 {
    0
}

/// A clock whose coarse reading is one load of an atomic that a thread of its own moves on each millisecond.
///
/// For programs that read cells a hundred million times a second. The first use in the process starts the
/// thread, `dogpile-tick`, which then runs until the process ends; if it cannot be started, the coarse reading
/// is the exact one. Takes no space. The exact reading is [`SystemClock`]'s.
///
/// On a machine that leaves the thread without a processor for longer than 20 ms, deadlines are noticed that
/// much later. And the thread does not survive a `fork`: in the child deadlines are never noticed. A program that
/// forks after its first use must take [`SystemClock`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TickClock;

/// What [`TickClock`] reads; FOREVER, which is before nothing, until its thread runs.
static TICK: PlainU64 = PlainU64::new(FOREVER);

impl TickClock {
    #[cold]
    #[inline(never)]
    fn start() -> Tick {
        static STARTED: PlainOnceCell<()> = PlainOnceCell::new();
        STARTED.get_or_init(|| {
            let ticker = || loop {
                // Relaxed: the number is all there is to see, and one thread writes it.
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
        // Relaxed: an old reading is what "coarse" allows, and a thread never sees it go back.
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
        // Relaxed: as above. Without the thread the answer is no, and the caller asks `coarse_now`, which starts it.
        TICK.load(Ordering::Relaxed) < tick.0
    }
}

/// A clock that stands still until it is told to move: for tests.
///
/// Clones are handles of one clock. It starts at tick 0. Waits that have a timeout follow it too, so a test
/// decides when they time out.
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
#[derive(Clone, Default)]
pub struct ManualClock {
    shared: Arc<Manual>,
}

#[derive(Default)]
struct Manual {
    now: AtomicU64,
    /// Those inside `park_until` and `sleep_until`.
    sleepers: Mutex<WaitQueue<()>>,
}

impl ManualClock {
    /// A clock that shows tick 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock on and wakes those who wait for a moment that has come. Saturates at the last tick.
    pub fn advance(&self, by: Duration) {
        let by = nanos(by);
        // Release: pairs with the Acquire in `now`, so that who sees the new time sees what led to it.
        // The closure always returns `Some`.
        let _ = self
            .shared
            .now
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| Some(now.saturating_add(by)));
        let sleepers: Vec<Waiter> = self.shared.sleepers.lock().matching(|()| true).collect();
        for sleeper in sleepers {
            sleeper.wake();
        }
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Tick {
        // Acquire: pairs with the Release in `advance`.
        Tick(self.shared.now.load(Ordering::Acquire))
    }

    fn park_until(&self, deadline: Tick, _now: Tick) {
        let number = self.shared.sleepers.lock().join(Waiter::this_thread(), ());
        // Listed before it looks: an `advance` that this look misses finds the thread in the list.
        if self.now() < deadline {
            park();
        }
        let left = self.shared.sleepers.lock().leave(number);
        drop(left);
    }

    #[cfg(feature = "async")]
    fn sleep_until(&self, deadline: Tick, _now: Tick) -> Alarm {
        Box::pin(ManualSleep { clock: self.clone(), deadline, seat: None })
    }
}

/// A task that waits for a [`ManualClock`].
#[cfg(feature = "async")]
struct ManualSleep {
    clock: ManualClock,
    deadline: Tick,
    seat: Option<usize>,
}

#[cfg(feature = "async")]
impl Future for ManualSleep {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        self.leave();
        let sleeper = Waiter::task(cx.waker());
        let number = self.clock.shared.sleepers.lock().join(sleeper, ());
        self.seat = Some(number);
        // Listed before it looks, as above.
        if self.clock.now() < self.deadline { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    }
}

#[cfg(feature = "async")]
impl ManualSleep {
    fn leave(&mut self) {
        let left = self.seat.take().and_then(|number| self.clock.shared.sleepers.lock().leave(number));
        drop(left);
    }
}

#[cfg(feature = "async")]
impl Drop for ManualSleep {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualClock").field("now", &self.now()).finish_non_exhaustive()
    }
}

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

    #[test]
    fn the_coarse_reading_never_leads_and_lags_at_most_as_stated() {
        fn check(clock: &impl Clock) {
            for _ in 0..10_000 {
                let before = clock.now();
                let coarse = clock.coarse_now();
                let after = clock.now();
                assert!(coarse <= after, "{coarse:?} leads {after:?}");
                assert!(before <= after);
            }
        }
        check(&SystemClock);
        check(&TickClock);
        // How far it lags is the scheduler's business; that it moves at all is ours.
        let start = SystemClock.coarse_now();
        while SystemClock.coarse_now() == start {
            std::thread::yield_now();
        }
        let start = TickClock.coarse_now();
        while TickClock.coarse_now() == start {
            std::thread::yield_now();
        }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn the_kernels_coarse_clock_is_read_in_nanoseconds() {
        // Again if the machine stood still in between: another unit is never right, and the right one nearly always.
        let agrees = (0..20).any(|_| {
            let outer = std::time::Instant::now();
            let before = kernel_coarse();
            let inner = std::time::Instant::now();
            // Several times what it lags.
            std::thread::sleep(Duration::from_millis(120));
            let at_least = inner.elapsed() / 2;
            let passed = Duration::from_nanos(kernel_coarse() - before);
            passed >= at_least && passed <= 2 * outer.elapsed()
        });
        assert!(agrees, "`CLOCK_MONOTONIC_COARSE` and `Instant` differ by more than a factor of two");
    }

    #[test]
    fn the_anchor_is_taken_between_readings_that_are_close_together() {
        // A pause of just too long, then none.
        let mut readings = [7, 7 + ANCHOR_SLACK, 8 + ANCHOR_SLACK].into_iter();
        let anchor = Anchor::take(|| readings.next().expect("two close readings are enough"));
        assert_eq!(anchor.tick, Anchor::at(anchor.instant, 7 + ANCHOR_SLACK).tick);
        // Nothing but pauses: the last reading.
        let mut reading = 0;
        let anchor = Anchor::take(|| {
            reading += ANCHOR_SLACK;
            reading
        });
        assert_eq!(anchor.tick, Anchor::at(anchor.instant, u64::from(ANCHOR_TRIES + 1) * ANCHOR_SLACK).tick);
    }

    /// The exact time line is ahead of the coarse reading that it was tied to, and a later one may lag as much as the kernel
    /// lets it, while that one did not.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn the_lag_that_is_stated_is_the_greatest_that_there_can_be() {
        let ahead = Anchor::at(std::time::Instant::now(), 0).tick;
        assert!(ahead > KERNEL_LAG);
        assert_eq!(SystemClock.coarse_lag(), Duration::from_nanos(ahead + KERNEL_LAG));
        // That of the other one: several of its thread's rounds.
        assert!(TickClock.coarse_lag() >= Duration::from_millis(5));
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri takes a thread that never ends for a fault")]
    fn the_tick_clock_answers_as_it_reads() {
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

    #[test]
    fn a_manual_clock_wakes_its_sleepers() {
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
        while clock.shared.sleepers.lock().len() == 0 {
            std::thread::yield_now();
        }
        // Time for many rounds, if it did not sleep.
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        clock.advance(Duration::from_nanos(10));
        let parked = sleeper.join().unwrap();
        assert!(parked < 100, "it slept {parked} times");
        assert_eq!(clock.shared.sleepers.lock().len(), 0);
    }

    #[test]
    fn a_manual_clock_shows_its_time() {
        let clock = ManualClock::new();
        clock.advance(Duration::from_nanos(7));
        assert_eq!(format!("{clock:?}"), "ManualClock { now: Tick(7), .. }");
    }
}
