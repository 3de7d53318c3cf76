//! How long a value may be used, as pure functions of ticks and windows.

use std::time::Duration;

use crate::time::{FOREVER, nanos};

/// What a read finds, in the words of RFC 5861 and RFC 9111.
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Freshness};
/// use std::time::Duration;
///
/// let cell = DogpileCell::new(Duration::from_secs(60));
/// assert_eq!(cell.freshness(), Freshness::Empty);
/// cell.set(1);
/// assert_eq!(cell.freshness(), Freshness::Fresh);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// There is no value.
    Empty,
    /// The value is not older than its time to live.
    Fresh,
    /// The value is older than its time to live, but may still be served while a caller rebuilds it.
    Stale,
    /// The value is older than that. It is never served, only passed to the next build as the previous value.
    Expired,
}

/// How long a value is fresh, how long it may be served after that, and what happens when builds fail.
///
/// Every method is `const`, so a policy can stand in a `static`, and an invalid one does not compile there. Durations
/// of more than 584 years, which do not fit into 64 bits of nanoseconds, mean "for ever".
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Policy};
/// use std::time::Duration;
///
/// const POLICY: Policy = Policy::ttl(Duration::from_secs(60))
///     .stale_while_refresh(Duration::from_secs(600))
///     .stale_if_error(Duration::from_secs(3600))
///     .retry_backoff(Duration::from_secs(1), Duration::from_secs(30))
///     .jitter(10);
/// static PRICES: DogpileCell<Vec<f64>> = DogpileCell::with_policy(POLICY);
///
/// assert_eq!(*PRICES.get_or_refresh(|| vec![9.5]), [9.5]);
/// ```
///
/// The compiler rejects an invalid policy:
///
/// ```compile_fail,E0080
/// use dogpile::{DogpileCell, Policy};
///
/// static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires().jitter(101));
/// # fn main() { CELL.get(); }
/// ```
///
/// ```
/// use dogpile::{DogpileCell, Policy};
///
/// static CELL: DogpileCell<u32> = DogpileCell::with_policy(Policy::never_expires().jitter(100));
/// # fn main() { CELL.get(); }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a policy does nothing until a cell is made with it"]
pub struct Policy {
    ttl: u64,
    stale_while_refresh: u64,
    stale_if_error: u64,
    backoff_first: u64,
    backoff_max: u64,
    lease_timeout: u64,
    jitter: u8,
    /// `stale_if_error` was not set: it follows `stale_while_refresh`.
    error_follows: bool,
}

/// The retry pauses where the policy sets no others.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Policy {
    /// Creates a policy under which a value is fresh up to and including the age `ttl`, counted from its publication.
    ///
    /// [`Duration::ZERO`] is allowed. Then every read that finds the clock moved on asks for a new build, still one at
    /// a time, and the callers that wait for a build get its value.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Freshness, ManualClock, Policy};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// let cell = DogpileCell::with_clock(Policy::ttl(Duration::from_secs(60)), clock.clone());
    /// cell.set(1);
    /// clock.advance(Duration::from_secs(60));
    /// assert_eq!(cell.freshness(), Freshness::Fresh);
    /// clock.advance(Duration::from_nanos(1));
    /// assert_eq!(cell.freshness(), Freshness::Stale);
    /// ```
    pub const fn ttl(ttl: Duration) -> Self {
        Self {
            ttl: nanos(ttl),
            stale_while_refresh: FOREVER,
            stale_if_error: 0,
            backoff_first: nanos(FIRST_PAUSE),
            backoff_max: nanos(LONGEST_PAUSE),
            lease_timeout: FOREVER,
            jitter: 0,
            error_follows: true,
        }
    }

    /// Creates a policy under which a value is fresh until it is replaced or invalidated. Reads then never ask a clock.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Policy};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::with_policy(Policy::never_expires());
    /// cell.set(1);
    /// assert_eq!(cell.snapshot().unwrap().fresh_for, Duration::MAX);
    /// ```
    pub const fn never_expires() -> Self {
        Self::ttl(Duration::MAX)
    }

    /// Sets how long past its ttl a value may be served while it is rebuilt. Default: without limit.
    ///
    /// Past that window, reads wait for the build. RFC 5861 calls this `stale-while-revalidate`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, ManualClock, Policy};
    /// use std::time::Duration;
    ///
    /// const MINUTE: Duration = Duration::from_secs(60);
    ///
    /// let clock = ManualClock::new();
    /// let policy = Policy::ttl(MINUTE).stale_while_refresh(10 * MINUTE);
    /// let cell = DogpileCell::with_clock(policy, clock.clone());
    /// cell.set(1);
    /// clock.advance(11 * MINUTE);
    /// assert_eq!(cell.get().as_deref(), Some(&1));
    /// clock.advance(Duration::from_nanos(1));
    /// assert_eq!(cell.get(), None);
    /// ```
    pub const fn stale_while_refresh(mut self, window: Duration) -> Self {
        self.stale_while_refresh = nanos(window);
        self
    }

    /// Sets how long past its ttl a value is served when the build fails. Default: as long as
    /// [`stale_while_refresh`](Policy::stale_while_refresh), which is without limit unless it is set.
    ///
    /// Within the window `try_get_or_refresh` returns `Ok` with the stale value although the build failed, to the
    /// caller that built and to the callers that waited. [`last_error`](crate::DogpileCell::last_error) returns the
    /// error. While a retry pause runs, the value is served as long as either window allows. With [`Duration::ZERO`]
    /// the caller whose build failed gets the error. RFC 5861 calls this `stale-if-error`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Policy};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set(1);
    /// cell.invalidate();
    /// assert_eq!(*cell.try_get_or_refresh(|| Err("no route to host")).unwrap(), 1);
    ///
    /// let strict = DogpileCell::with_policy(Policy::ttl(Duration::from_secs(60)).stale_if_error(Duration::ZERO));
    /// strict.set(1);
    /// strict.invalidate();
    /// assert!(strict.try_get_or_refresh(|| Err("no route to host")).is_err());
    /// ```
    pub const fn stale_if_error(mut self, window: Duration) -> Self {
        self.stale_if_error = nanos(window);
        self.error_follows = false;
        self
    }

    /// Sets the pause after a failed build: `first` after the first failure, twice as long after each further one in a
    /// row, up to `max`. Default: 100 ms, up to 10 s. `(Duration::ZERO, Duration::ZERO)` means no pause.
    ///
    /// During the pause no caller is elected, and a stale value is served. If there is no value to serve,
    /// `try_get_or_refresh` returns the error of the latest build. `get_or_refresh` cannot return an error, so it
    /// builds. Every caller may build if the latest build panicked.
    ///
    /// An error begins a pause. A panic does so only if there is a value to serve. A lease that is given back unused
    /// does not. A publication or a `set` ends the pause and resets the count of failures. [`jitter`](Policy::jitter)
    /// lengthens the pauses.
    ///
    /// # Panics
    ///
    /// Panics if `first` is longer than `max`, or zero while `max` is not. In a `static` or a `const` that is a compile
    /// error.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, ManualClock, Policy};
    /// use std::time::Duration;
    ///
    /// const SECOND: Duration = Duration::from_secs(1);
    ///
    /// let clock = ManualClock::new();
    /// let policy = Policy::ttl(60 * SECOND).retry_backoff(SECOND, 30 * SECOND);
    /// let cell = DogpileCell::<u32, _>::with_clock(policy, clock.clone());
    /// assert!(cell.try_get_or_refresh(|| Err("no route to host")).is_err());
    /// // In the pause the build does not run:
    /// let error = cell.try_get_or_refresh(|| Ok::<_, &str>(7)).unwrap_err();
    /// assert_eq!(error.to_string(), "no route to host");
    /// clock.advance(SECOND);
    /// assert_eq!(*cell.try_get_or_refresh(|| Ok::<_, &str>(7)).unwrap(), 7);
    /// ```
    pub const fn retry_backoff(mut self, first: Duration, max: Duration) -> Self {
        assert!(
            !first.is_zero() || max.is_zero(),
            "retry_backoff: `first` must be longer than zero; (Duration::ZERO, Duration::ZERO) means no pause"
        );
        self.backoff_first = nanos(first);
        self.backoff_max = nanos(max);
        assert!(
            self.backoff_first <= self.backoff_max,
            "retry_backoff: `first` must not be longer than `max`"
        );
        self
    }

    /// Shortens the ttl of each publication by 0 to `percent` percent, drawn once per publication. Lengthens each retry
    /// pause in the same way. Default: 0.
    ///
    /// Processes that were started together then do not rebuild together.
    ///
    /// # Panics
    ///
    /// Panics if `percent` is more than 100. In a `static` or a `const` that is a compile error.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Policy};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::with_policy(Policy::ttl(Duration::from_secs(1000)).jitter(10));
    /// cell.set(1);
    /// let fresh_for = cell.snapshot().unwrap().fresh_for;
    /// assert!(fresh_for <= Duration::from_secs(1000));
    /// ```
    pub const fn jitter(mut self, percent: u8) -> Self {
        assert!(percent <= 100, "jitter: `percent` must be from 0 to 100");
        self.jitter = percent;
        self
    }

    /// Sets how long a build may run before another caller may be elected in its place. Default: without limit.
    ///
    /// The late result of the superseded build is not published. Use this if builds may hang or leases may leak.
    ///
    /// # Panics
    ///
    /// Panics if `timeout` is zero. In a `static` or a `const` that is a compile error.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup, ManualClock, Policy};
    /// use std::time::Duration;
    ///
    /// const SECOND: Duration = Duration::from_secs(1);
    ///
    /// let clock = ManualClock::new();
    /// let policy = Policy::ttl(60 * SECOND).lease_timeout(30 * SECOND);
    /// let cell = DogpileCell::with_clock(policy, clock.clone());
    /// let Lookup::Elected(hanging) = cell.lookup() else { unreachable!() };
    /// clock.advance(31 * SECOND);
    /// assert_eq!(*cell.get_or_refresh(|| "second build"), "second build");
    /// assert_eq!(*hanging.publish("too late"), "second build");
    /// ```
    pub const fn lease_timeout(mut self, timeout: Duration) -> Self {
        assert!(
            !timeout.is_zero(),
            "lease_timeout: must be longer than zero, or every build would be superseded"
        );
        self.lease_timeout = nanos(timeout);
        self
    }

    /// Returns the ttl of a publication that sets no other. [`Duration::MAX`] means that values never expire.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use std::time::Duration;
    ///
    /// assert_eq!(Policy::ttl(Duration::from_secs(60)).get_ttl(), Duration::from_secs(60));
    /// assert_eq!(Policy::never_expires().get_ttl(), Duration::MAX);
    /// ```
    #[must_use]
    pub const fn get_ttl(&self) -> Duration {
        duration(self.ttl)
    }

    /// Returns how long past its ttl a value may be served while it is rebuilt. [`Duration::MAX`] means without limit.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use std::time::Duration;
    ///
    /// let policy = Policy::ttl(Duration::from_secs(60));
    /// assert_eq!(policy.get_stale_while_refresh(), Duration::MAX);
    /// ```
    #[must_use]
    pub const fn get_stale_while_refresh(&self) -> Duration {
        duration(self.stale_while_refresh)
    }

    /// Returns how long past its ttl a value is served when the build fails. [`Duration::MAX`] means without limit.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use std::time::Duration;
    ///
    /// const MINUTE: Duration = Duration::from_secs(60);
    ///
    /// let policy = Policy::ttl(MINUTE).stale_while_refresh(10 * MINUTE);
    /// assert_eq!(policy.get_stale_if_error(), 10 * MINUTE); // not set, so it is the same
    /// assert_eq!(policy.stale_if_error(MINUTE).get_stale_if_error(), MINUTE);
    /// ```
    #[must_use]
    pub const fn get_stale_if_error(&self) -> Duration {
        duration(self.error_window())
    }

    /// Returns the first and the longest pause after failures. Zero means no pause.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use std::time::Duration;
    ///
    /// let (first, max) = Policy::ttl(Duration::from_secs(60)).get_retry_backoff();
    /// assert_eq!((first, max), (Duration::from_millis(100), Duration::from_secs(10)));
    /// ```
    #[must_use]
    pub const fn get_retry_backoff(&self) -> (Duration, Duration) {
        (duration(self.backoff_first), duration(self.backoff_max))
    }

    /// Returns the jitter in percent.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    ///
    /// assert_eq!(Policy::never_expires().jitter(10).get_jitter(), 10);
    /// ```
    #[must_use]
    pub const fn get_jitter(&self) -> u8 {
        self.jitter
    }

    /// Returns how long a build may run before another caller may be elected in its place. [`Duration::MAX`] means
    /// without limit.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use std::time::Duration;
    ///
    /// let policy = Policy::never_expires().lease_timeout(Duration::from_secs(30));
    /// assert_eq!(policy.get_lease_timeout(), Duration::from_secs(30));
    /// ```
    #[must_use]
    pub const fn get_lease_timeout(&self) -> Duration {
        duration(self.lease_timeout)
    }

    /// The ttl of a publication that asked for no other, in nanoseconds.
    pub(crate) const fn default_ttl(&self) -> u64 {
        self.ttl
    }

    /// When a lease that is taken now may be superseded: when it is older than the timeout.
    pub(crate) const fn supersede_at(&self, now: u64) -> u64 {
        now.saturating_add(self.lease_timeout).saturating_add(1)
    }

    /// A publication's ttl with its jitter. `draw` is uniform over all of `u64`.
    pub(crate) fn jittered_ttl(&self, ttl: u64, draw: u64) -> u64 {
        if ttl == FOREVER { FOREVER } else { ttl - self.share(ttl, draw) }
    }

    /// The pause after the `failures`-th failure in a row, with its jitter; zero if there is none.
    pub(crate) fn retry_pause(&self, failures: u32, draw: u64) -> u64 {
        let factor = 2_u64.saturating_pow(failures.saturating_sub(1));
        let pause = self.backoff_first.saturating_mul(factor).min(self.backoff_max);
        pause.saturating_add(self.share(pause, draw))
    }

    pub(crate) const fn has_jitter(&self) -> bool {
        self.jitter != 0
    }

    /// `draw` / 2^64 of `jitter` percent of `nanos`; at most `nanos`.
    fn share(&self, nanos: u64, draw: u64) -> u64 {
        let most = u128::from(nanos) * u128::from(self.jitter) / 100;
        let share = (most * (u128::from(draw) + 1)) >> 64;
        u64::try_from(share).unwrap_or(nanos)
    }

    /// How long past its ttl a value is served while a build runs.
    pub(crate) const fn stale_window(&self) -> u64 {
        self.stale_while_refresh
    }

    /// How long past its ttl a value is served to the callers of a build that failed.
    pub(crate) const fn error_window(&self) -> u64 {
        if self.error_follows { self.stale_while_refresh } else { self.stale_if_error }
    }

    /// How long past its ttl a value is served while a retry pause runs.
    pub(crate) fn pause_window(&self) -> u64 {
        self.stale_window().max(self.error_window())
    }
}

/// The other way round than [`nanos`].
const fn duration(nanos: u64) -> Duration {
    if nanos == FOREVER { Duration::MAX } else { Duration::from_nanos(nanos) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let policy = Policy::never_expires().retry_backoff(Duration::from_secs(1), Duration::from_secs(5));
        let pauses: Vec<u64> =
            (1..=5).map(|failures| policy.retry_pause(failures, u64::MAX) / SECOND).collect();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
        assert_eq!(policy.retry_pause(u32::MAX, 0), 5 * SECOND);
        let default: Vec<u64> =
            (1..=9).map(|n| Policy::never_expires().retry_pause(n, 0) / 1_000_000).collect();
        assert_eq!(default, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        let none = Policy::never_expires().retry_backoff(Duration::ZERO, Duration::ZERO);
        assert_eq!(none.retry_pause(7, u64::MAX), 0);
    }

    #[test]
    fn a_first_pause_of_three_hundred_years_is_not_the_longest() {
        let first = Duration::from_nanos(1 << 63);
        let policy = Policy::never_expires().retry_backoff(first, Duration::MAX);
        assert_eq!(policy.retry_pause(1, 0), 1 << 63);
        assert_eq!(policy.retry_pause(2, 0), FOREVER);
        let policy = Policy::never_expires().retry_backoff(Duration::from_nanos(1 << 62), Duration::MAX);
        assert_eq!(policy.retry_pause(2, 0), 1 << 63);
    }

    #[test]
    fn pauses_do_not_overflow() {
        let policy =
            Policy::never_expires().retry_backoff(Duration::from_nanos(3), Duration::MAX).jitter(100);
        for failures in [1, 62, 63, 64, 65, u32::MAX] {
            assert!(policy.retry_pause(failures, u64::MAX) >= 3);
        }
        assert_eq!(policy.retry_pause(64, u64::MAX), FOREVER);
    }

    #[test]
    fn jitter_shortens_a_ttl_and_lengthens_a_pause_within_its_percentage() {
        let policy = Policy::ttl(Duration::from_secs(100))
            .jitter(10)
            .retry_backoff(Duration::from_secs(100), Duration::from_secs(100));
        assert_eq!(policy.jittered_ttl(100 * SECOND, 0), 100 * SECOND);
        assert_eq!(policy.jittered_ttl(100 * SECOND, u64::MAX), 90 * SECOND);
        assert_eq!(policy.retry_pause(1, 0), 100 * SECOND);
        assert_eq!(policy.retry_pause(1, u64::MAX), 110 * SECOND);
        assert_eq!(policy.jittered_ttl(FOREVER, u64::MAX), FOREVER);
        assert_eq!(Policy::ttl(Duration::ZERO).jitter(100).jittered_ttl(0, u64::MAX), 0);
        assert_eq!(Policy::never_expires().jitter(100).jittered_ttl(SECOND, u64::MAX), 0);
    }

    #[test]
    fn windows_saturate() {
        let policy = Policy::ttl(Duration::MAX).stale_if_error(Duration::MAX);
        assert_eq!(policy.default_ttl(), FOREVER);
        assert_eq!(policy.error_window(), FOREVER);
        assert_eq!(policy.supersede_at(9), FOREVER);
    }

    #[test]
    fn the_window_for_errors_follows_the_other_one_until_it_is_set() {
        let policy = Policy::ttl(Duration::ZERO);
        assert_eq!((policy.stale_window(), policy.error_window()), (FOREVER, FOREVER));
        let policy = policy.stale_while_refresh(Duration::from_nanos(7));
        assert_eq!((policy.error_window(), policy.pause_window()), (7, 7));
        let policy = policy.stale_if_error(Duration::from_nanos(5));
        assert_eq!((policy.error_window(), policy.pause_window()), (5, 7));
        let policy = policy.stale_while_refresh(Duration::from_nanos(3)).stale_if_error(Duration::ZERO);
        assert_eq!((policy.error_window(), policy.pause_window()), (0, 3));
    }

    #[test]
    #[should_panic(expected = "jitter: `percent` must be from 0 to 100")]
    fn jitter_above_100_percent_is_refused() {
        let _ = Policy::never_expires().jitter(101);
    }

    #[test]
    #[should_panic(expected = "retry_backoff: `first` must not be longer than `max`")]
    fn a_first_pause_above_the_longest_is_refused() {
        let _ = Policy::never_expires().retry_backoff(Duration::from_secs(2), Duration::from_secs(1));
    }

    #[test]
    #[should_panic(expected = "retry_backoff: `first` must be longer than zero")]
    fn a_first_pause_of_zero_is_refused() {
        let _ = Policy::never_expires().retry_backoff(Duration::ZERO, Duration::from_secs(1));
    }

    #[test]
    #[should_panic(expected = "lease_timeout: must be longer than zero")]
    fn a_lease_timeout_of_zero_is_refused() {
        let _ = Policy::never_expires().lease_timeout(Duration::ZERO);
    }

    /// Against arithmetic that cannot overflow, with times of every length, the longest and the shortest above all.
    #[cfg(not(miri))] // Pure functions, and slow there.
    mod properties {
        use proptest::prelude::*;

        use super::*;

        fn edge() -> impl Strategy<Value = u64> {
            let near_the_end = (0..4_u64).prop_map(|less| u64::MAX - less);
            prop_oneof![0..4_u64, near_the_end, 0..1_000_000_u64, any::<u64>()]
        }

        fn window() -> impl Strategy<Value = Duration> {
            let seconds = (any::<u64>(), 0..SECOND).prop_map(|(whole, nanos)| {
                Duration::from_secs(whole).saturating_add(Duration::from_nanos(nanos))
            });
            prop_oneof![4 => edge().prop_map(Duration::from_nanos), 1 => seconds, 1 => Just(Duration::MAX)]
        }

        fn not_zero() -> impl Strategy<Value = Duration> {
            window().prop_map(|window| window.max(Duration::from_nanos(1)))
        }

        /// In nanoseconds; what does not fit is for ever.
        fn exact(window: Duration) -> u128 {
            window.as_nanos().min(u128::from(u64::MAX))
        }

        fn clamped(nanos: u128) -> u64 {
            u64::try_from(nanos).unwrap_or(u64::MAX)
        }

        proptest! {
            #[test]
            fn windows_end_when_they_should(
                (ttl, stale, error, lease) in (window(), window(), window(), not_zero()),
                moment in edge(),
            ) {
                let policy =
                    Policy::ttl(ttl).stale_while_refresh(stale).stale_if_error(error).lease_timeout(lease);
                prop_assert_eq!(u128::from(policy.default_ttl()), exact(ttl));
                prop_assert_eq!(u128::from(policy.stale_window()), exact(stale));
                prop_assert_eq!(u128::from(policy.error_window()), exact(error));
                prop_assert_eq!(u128::from(policy.pause_window()), exact(stale).max(exact(error)));
                // The first tick at which it is older than the timeout.
                prop_assert_eq!(policy.supersede_at(moment), clamped(u128::from(moment) + exact(lease) + 1));
                prop_assert_eq!(Policy::ttl(ttl).supersede_at(moment), FOREVER);
            }

            #[test]
            fn jitter_takes_its_share_of_a_ttl(
                (ttl, percent) in (edge(), 0..=100_u8),
                (less, more) in (any::<u64>(), any::<u64>()).prop_map(|(a, b)| (a.min(b), a.max(b))),
            ) {
                let policy = Policy::never_expires().jitter(percent);
                let most = u128::from(ttl) * u128::from(percent) / 100;
                let drawn = |draw| policy.jittered_ttl(ttl, draw);
                if ttl == FOREVER {
                    prop_assert_eq!(drawn(more), FOREVER);
                } else {
                    prop_assert_eq!(drawn(0), ttl);
                    prop_assert_eq!(u128::from(drawn(u64::MAX)), u128::from(ttl) - most);
                    prop_assert!(drawn(more) <= drawn(less), "{} > {}", drawn(more), drawn(less));
                    // Uniform: at half of the draws, half of the share.
                    let half = u128::from(ttl - drawn(u64::MAX / 2));
                    prop_assert!((most / 2).abs_diff(half) <= 1, "{half} of {most}");
                }
            }

            #[test]
            fn pauses_double_up_to_the_longest(
                (first, max) in (not_zero(), window()).prop_map(|(first, max)| (first, first.max(max))),
                failures in prop_oneof![1..70_u32, any::<u32>()],
                (percent, draw) in (0..=100_u8, any::<u64>()),
            ) {
                let mut pause = exact(first);
                for _ in 1..failures.min(70) {
                    pause = (pause * 2).min(exact(max));
                }
                let policy = Policy::never_expires().retry_backoff(first, max).jitter(percent);
                let most = pause * u128::from(percent) / 100;
                // No failure has the pause of the first.
                prop_assert_eq!(policy.retry_pause(0, 0), clamped(exact(first)));
                prop_assert_eq!(policy.retry_pause(failures, 0), clamped(pause));
                prop_assert_eq!(policy.retry_pause(failures, u64::MAX), clamped(pause + most));
                let drawn = policy.retry_pause(failures, draw);
                prop_assert!((clamped(pause)..=clamped(pause + most)).contains(&drawn), "{drawn}");
                let none = Policy::never_expires().retry_backoff(Duration::ZERO, Duration::ZERO).jitter(percent);
                prop_assert_eq!(none.retry_pause(failures, draw), 0);
            }
        }
    }
}
