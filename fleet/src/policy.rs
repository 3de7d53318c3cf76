//! How long values are used, and how a node deals with the others and with the store.

use std::time::Duration;

use dogpile::Policy;

use crate::draw;
use crate::store::LONGEST;

/// How long a value is fresh, how long it may be served after that, and how a node deals with the other nodes and with
/// the store.
///
/// All nodes of a fleet should have the same policy.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::FleetPolicy;
/// use std::time::Duration;
///
/// const POLICY: FleetPolicy = FleetPolicy::ttl(Duration::from_secs(60))
///     .stale_while_refresh(Duration::from_secs(600))
///     .retry_backoff(Duration::from_secs(1), Duration::from_secs(60))
///     .lease(Duration::from_secs(5));
/// # let _ = POLICY;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a policy does nothing until a cell is made with it"]
pub struct FleetPolicy {
    pub(crate) ttl: Duration,
    pub(crate) stale: Duration,
    pub(crate) stale_if_error: Duration,
    pub(crate) backoff: Option<(Duration, Duration)>,
    pub(crate) lease: Duration,
    pub(crate) build_limit: Duration,
    pub(crate) poll: Option<Duration>,
    pub(crate) patience: Duration,
    pub(crate) breaker: (Duration, Duration),
}

impl FleetPolicy {
    /// A value is fresh for `ttl` after its publication, by the store's clock. After that it is served, without limit,
    /// while it is rebuilt.
    ///
    /// # Panics
    ///
    /// If `ttl` is zero: then no node could ever use what another has built.
    pub const fn ttl(ttl: Duration) -> Self {
        assert!(!ttl.is_zero(), "ttl: must be longer than zero, or no node could use what another has built");
        Self {
            ttl,
            stale: Duration::MAX,
            stale_if_error: Duration::ZERO,
            backoff: None,
            lease: Duration::from_secs(5),
            build_limit: Duration::from_secs(300),
            poll: Some(Duration::from_secs(1)),
            patience: Duration::from_millis(50),
            breaker: (Duration::from_millis(500), Duration::from_secs(30)),
        }
    }

    /// How long past its ttl a value may be served, while it is rebuilt or while the store is down. Default: without
    /// limit.
    pub const fn stale_while_refresh(mut self, window: Duration) -> Self {
        self.stale = window;
        self
    }

    /// How long past its ttl a value is served to the callers of a build that failed, in place of its error: to the caller
    /// that ran it and to those that waited for it. Default: zero, which means that they get the error.
    ///
    /// The default differs from that of [`dogpile::Policy`]. No other retry pause or window of the local cell applies.
    pub const fn stale_if_error(mut self, window: Duration) -> Self {
        self.stale_if_error = window;
        self
    }

    /// After a failed build nobody in the whole fleet is elected for a pause of `first`, after the next one in a row
    /// `2 * first`, up to `max`, each made up to a tenth shorter or longer. Default: no pause.
    ///
    /// # Panics
    ///
    /// If `first` is zero or longer than `max`.
    pub const fn retry_backoff(mut self, first: Duration, max: Duration) -> Self {
        assert!(!first.is_zero(), "retry_backoff: `first` must be longer than zero");
        assert!(first.as_nanos() <= max.as_nanos(), "retry_backoff: `first` must not be longer than `max`");
        self.backoff = Some((first, max));
        self
    }

    /// For how long an elected node is believed to be alive without having been heard of. Default: 5 seconds.
    ///
    /// The cell prolongs the lease by itself, three times in that time, for as long as the build runs, but not beyond the
    /// [`build_limit`](FleetPolicy::build_limit). So this is not the time that a build takes, but the time after which
    /// another node takes over from one that died.
    ///
    /// # Panics
    ///
    /// If it is shorter than a millisecond.
    pub const fn lease(mut self, lease: Duration) -> Self {
        assert!(lease.as_millis() >= 1, "lease: must be a millisecond at least");
        self.lease = lease;
        self
    }

    /// How long a build may take before its lease is not prolonged any more, and another node may be elected. Default: 5
    /// minutes. What a build brings that took longer is accepted if no other node was elected meanwhile.
    pub const fn build_limit(mut self, limit: Duration) -> Self {
        self.build_limit = limit;
        self
    }

    /// How often a node looks into the store while it has a fresh value, to find out about invalidations. Default: every
    /// second. It is also the longest pause between two looks of a node that waits for another.
    ///
    /// While hints are known to arrive, a cell looks once per `12 * interval`, at most twelve seconds, times the number of cells that
    /// share the store; once in two minutes at least; and never more often than `interval`. Hints that are known to be refused do
    /// not count ([`FleetStats::hints_refused`](crate::FleetStats::hints_refused)).
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub const fn poll(mut self, interval: Duration) -> Self {
        assert!(!interval.is_zero(), "poll: must be longer than zero");
        self.poll = Some(interval);
        self
    }

    /// Not to look into the store while the value is fresh: what other nodes invalidate is noticed when the value's ttl
    /// is over, or by a hint.
    pub const fn no_poll(mut self) -> Self {
        self.poll = None;
        self
    }

    /// How long a caller that has a value to fall back on waits for the store's answer. Default: 50 ms.
    ///
    /// At its election: after that it is served the stale value, and the next caller goes on where this one stopped. At the end of
    /// its build: after that it and all others are served what was built, and the publication goes on behind them. Until the
    /// store has accepted it, the value counts as built for this node alone.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// After an operation of the store has failed, it is left alone for `first`, then `2 * first`, up to `max`, each made
    /// up to a quarter shorter or longer. Default: half a second, 30 seconds. Cells that share a store share what they have found
    /// out about it; see [`RefreshStore::breaker`](crate::RefreshStore::breaker).
    ///
    /// # Panics
    ///
    /// If `first` is zero or longer than `max`.
    pub const fn breaker(mut self, first: Duration, max: Duration) -> Self {
        assert!(!first.is_zero(), "breaker: `first` must be longer than zero");
        assert!(first.as_nanos() <= max.as_nanos(), "breaker: `first` must not be longer than `max`");
        self.breaker = (first, max);
        self
    }

    pub(crate) const fn local(&self) -> Policy {
        // Retry pauses and `stale_if_error` are the fleet's: the store and the node keep them.
        Policy::ttl(self.ttl)
            .stale_while_refresh(self.stale)
            .stale_if_error(Duration::ZERO)
            .retry_backoff(Duration::ZERO, Duration::ZERO)
    }

    /// For how long a value may be used from now on that was made `age` ago, and is fresh for `ttl` from then on.
    pub(crate) fn life(&self, ttl: Duration, age: Duration) -> Life {
        let hard = if self.stale >= LONGEST { LONGEST } else { self.hard(ttl).saturating_sub(age) };
        Life { soft: ttl.saturating_sub(age), hard }
    }

    /// How long past its publication a value may be served that is fresh for `ttl`.
    fn hard(&self, ttl: Duration) -> Duration {
        ttl.saturating_add(self.stale).min(LONGEST)
    }

    /// The pause after the `failures`-th failure in a row.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        self.backoff.map_or(Duration::ZERO, |(first, max)| draw::around(doubled(first, max, failures), 10))
    }
}

/// For how long a value may be used.
#[derive(Clone, Copy)]
pub(crate) struct Life {
    /// For how long it is fresh.
    pub(crate) soft: Duration,
    /// For how long it may be served.
    pub(crate) hard: Duration,
}

/// `first`, doubled with each of `times` after the first, up to `max`.
pub(crate) fn doubled(first: Duration, max: Duration, times: u32) -> Duration {
    let factor = 1u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let second = Duration::from_secs(1);
        let pauses: Vec<u64> = (0..6).map(|times| doubled(second, 5 * second, times).as_secs()).collect();
        assert_eq!(pauses, [1, 1, 2, 4, 5, 5]);
        assert_eq!(doubled(second, Duration::MAX, 40).as_secs(), u64::from(u32::MAX));
        assert_eq!(FleetPolicy::ttl(second).pause(3), Duration::ZERO);
        let pause = FleetPolicy::ttl(second).retry_backoff(second, 5 * second).pause(2);
        assert!((1800..=2200).contains(&pause.as_millis()), "{pause:?}");
    }

    #[test]
    fn the_hard_bound_saturates() {
        let second = Duration::from_secs(1);
        assert_eq!(FleetPolicy::ttl(second).hard(second), LONGEST);
        let policy = FleetPolicy::ttl(second).stale_while_refresh(second);
        assert_eq!(policy.hard(second), 2 * second);
        for (age, soft, hard) in [(0, 1000, 2000), (400, 600, 1600), (1500, 0, 500), (3000, 0, 0)] {
            let life = policy.life(second, Duration::from_millis(age));
            assert_eq!((life.soft.as_millis(), life.hard.as_millis()), (soft, hard));
        }
        // However old it is.
        let life = FleetPolicy::ttl(second).life(second, Duration::MAX);
        assert_eq!((life.soft, life.hard), (Duration::ZERO, LONGEST));
    }
}
