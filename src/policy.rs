//! How long a value may be used, as pure functions of ticks and windows.

use std::time::Duration;

use crate::clock::{FOREVER, nanos};

/// What a read finds. The words are those of RFC 5861 and RFC 9111.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// There is no value.
    Empty,
    /// Not older than its time to live.
    Fresh,
    /// Older than that, but may still be served while somebody builds.
    Stale,
    /// Older still: never served, only shown to the next build as the previous value.
    Expired,
}

/// How long a value is fresh, how long it may be served after that, and what happens when builds fail.
///
/// Every method is `const`, so a policy can stand in a `static`, and a nonsensical one does not compile there.
/// Durations that do not fit into 64 bits of nanoseconds (584 years) mean "for ever".
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
/// A nonsensical policy is refused by the compiler:
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
    /// A value is fresh up to and including the age `ttl`, counted from its publication.
    ///
    /// [`Duration::ZERO`] is allowed: every read that finds the clock moved on asks for a new build, still one
    /// at a time, and those who wait for it are served by it.
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

    /// A value is fresh until it is replaced or invalidated. Reads then never ask a clock.
    pub const fn never_expires() -> Self {
        Self::ttl(Duration::MAX)
    }

    /// How long past its ttl a value may be served while somebody builds. Default: without limit.
    ///
    /// Past it, reads wait for the build. RFC 5861's `stale-while-revalidate`.
    pub const fn stale_while_refresh(mut self, window: Duration) -> Self {
        self.stale_while_refresh = nanos(window);
        self
    }

    /// How long past its ttl a value is served when the build fails. Default: as long as
    /// [`stale_while_refresh`](Policy::stale_while_refresh), which is without limit unless it is set.
    ///
    /// Within the window `try_get_or_refresh` returns `Ok` with the stale value although the build failed, to the caller that
    /// built and to the callers that waited; [`last_error`](crate::DogpileCell::last_error) shows the error. While a retry
    /// pause runs, the value is served as long as either window allows. With [`Duration::ZERO`] the caller whose build failed
    /// gets the error. RFC 5861's `stale-if-error`.
    pub const fn stale_if_error(mut self, window: Duration) -> Self {
        self.stale_if_error = nanos(window);
        self.error_follows = false;
        self
    }

    /// After a failed build, no caller is elected for a pause of `first`; after the next failure in a row `2 * first`, then
    /// `4 * first`, up to `max`. Default: 100 ms, up to 10 s. `(Duration::ZERO, Duration::ZERO)`: no pause.
    ///
    /// An error begins a pause. A panic does where there is a value to serve. A lease that is given back unused does not. A
    /// publication or a `set` ends the pause and the row of failures. [`jitter`](Policy::jitter) lengthens the pauses.
    ///
    /// During the pause a stale value is served. Where there is none, `try_get_or_refresh` returns the error of the last
    /// build. `get_or_refresh`, which cannot return an error, builds; so does every caller if the last build panicked.
    ///
    /// # Panics
    ///
    /// If `first` is longer than `max`, or zero while `max` is not. In a `static` or a `const` that is an error of the
    /// compiler.
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

    /// Shortens the ttl of each publication by 0 to `percent` percent, drawn once per publication, and
    /// lengthens each retry pause likewise. Default: 0.
    ///
    /// So a fleet of processes that were started together does not rebuild together.
    ///
    /// # Panics
    ///
    /// If `percent` is more than 100. In a `static` or a `const` that is an error of the compiler.
    pub const fn jitter(mut self, percent: u8) -> Self {
        assert!(percent <= 100, "jitter: `percent` must be from 0 to 100");
        self.jitter = percent;
        self
    }

    /// A build that has run for longer than this may be superseded by a new election. Default: never.
    ///
    /// The late result of the superseded build is not published. Use this where builds may hang or leases may leak.
    ///
    /// # Panics
    ///
    /// If `timeout` is zero. In a `static` or a `const` that is an error of the compiler.
    pub const fn lease_timeout(mut self, timeout: Duration) -> Self {
        assert!(
            !timeout.is_zero(),
            "lease_timeout: must be longer than zero, or every build would be superseded"
        );
        self.lease_timeout = nanos(timeout);
        self
    }

    /// The ttl of a publication that asks for no other; [`Duration::MAX`]: values never expire.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Policy;
    /// use std::time::Duration;
    ///
    /// const MINUTE: Duration = Duration::from_secs(60);
    ///
    /// let policy = Policy::ttl(MINUTE);
    /// assert_eq!(policy.get_ttl(), MINUTE);
    /// assert_eq!(policy.get_stale_while_refresh(), Duration::MAX);
    /// assert_eq!(policy.get_stale_if_error(), Duration::MAX);
    /// assert_eq!(policy.get_retry_backoff(), (Duration::from_millis(100), Duration::from_secs(10)));
    /// assert_eq!((policy.get_jitter(), policy.get_lease_timeout()), (0, Duration::MAX));
    /// assert_eq!(policy.stale_while_refresh(MINUTE).get_stale_if_error(), MINUTE);
    /// ```
    #[must_use]
    pub const fn get_ttl(&self) -> Duration {
        duration(self.ttl)
    }

    /// See [`stale_while_refresh`](Policy::stale_while_refresh). [`Duration::MAX`]: without limit.
    #[must_use]
    pub const fn get_stale_while_refresh(&self) -> Duration {
        duration(self.stale_while_refresh)
    }

    /// See [`stale_if_error`](Policy::stale_if_error). [`Duration::MAX`]: without limit.
    #[must_use]
    pub const fn get_stale_if_error(&self) -> Duration {
        duration(self.error_window())
    }

    /// The first and the longest pause. See [`retry_backoff`](Policy::retry_backoff). Zero: no pause.
    #[must_use]
    pub const fn get_retry_backoff(&self) -> (Duration, Duration) {
        (duration(self.backoff_first), duration(self.backoff_max))
    }

    /// In percent. See [`jitter`](Policy::jitter).
    #[must_use]
    pub const fn get_jitter(&self) -> u8 {
        self.jitter
    }

    /// See [`lease_timeout`](Policy::lease_timeout). [`Duration::MAX`]: a build is never superseded.
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
        let doublings = failures.saturating_sub(1);
        // Up to there no bit is lost.
        let pause = if doublings > self.backoff_first.leading_zeros().min(63) {
            self.backoff_max
        } else {
            (self.backoff_first << doublings).min(self.backoff_max)
        };
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
