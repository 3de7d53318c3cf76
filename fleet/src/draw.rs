//! Random numbers, without a generator: each `RandomState` hashes with keys of its own.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::store::LONGEST;

/// A new incarnation: from 1 to 2^63 - 1, which every store can keep.
pub(crate) fn incarnation() -> u64 {
    (number() >> 1).max(1)
}

/// Uniform over all of `u64`.
pub(crate) fn number() -> u64 {
    RandomState::new().hash_one(0)
}

/// Uniform from 0 up to 1.
pub(crate) fn share() -> f64 {
    f64::from(u32::try_from(number() >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
}

/// `duration`, made longer or shorter by up to `percent` percent; at most [`LONGEST`], which leaves room for that.
pub(crate) fn around(duration: Duration, percent: u32) -> Duration {
    // 0 to 2^16 - 1.
    let draw = u32::try_from(number() >> 48).unwrap_or(0);
    let share = f64::from(draw) / 32_768.0 - 1.0;
    duration.min(LONGEST).mul_f64(1.0 + share * f64::from(percent.min(100)) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_within_their_percentage_and_differ() {
        let second = Duration::from_secs(1);
        let draws: Vec<Duration> = (0..100).map(|_| around(second, 10)).collect();
        assert!(draws.iter().all(|draw| (900..=1100).contains(&draw.as_millis())));
        assert!(draws.iter().any(|draw| *draw != draws[0]));
        assert!((0..100).all(|_| (1..1 << 63).contains(&incarnation())));
    }
}
