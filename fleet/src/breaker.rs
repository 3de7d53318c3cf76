//! A circuit breaker: a store that does not work is left alone for a while.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dogpile::Tick;

use crate::draw;
use crate::policy::doubled;

/// Closed while the store works. A failed operation opens it for a time that doubles with each further failure; then
/// whoever comes next tries again.
#[derive(Debug)]
pub(crate) struct Breaker {
    first: Duration,
    max: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In a row.
    failures: u32,
    open_until: Tick,
}

impl Breaker {
    pub(crate) fn new((first, max): (Duration, Duration)) -> Self {
        Self { first, max, state: Mutex::default() }
    }

    /// Until when the store is to be left alone, if it is.
    pub(crate) fn open_until(&self, now: Tick) -> Option<Tick> {
        let open_until = self.lock().open_until;
        (now < open_until).then_some(open_until)
    }

    pub(crate) fn succeeded(&self) {
        *self.lock() = State::default();
    }

    pub(crate) fn failed(&self, now: Tick) {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        let pause = draw::around(doubled(self.first, self.max, state.failures), 25);
        state.open_until = state.open_until.max(now.saturating_add(pause));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_for_longer_and_longer_and_closes_at_the_first_success() {
        let second = Duration::from_secs(1);
        let breaker = Breaker::new((second, 3 * second));
        let now = Tick::from_nanos(5);
        assert_eq!(breaker.open_until(now), None);
        let pauses = [1u128, 2, 3, 3].map(|expected| {
            breaker.failed(now);
            let pause = breaker.open_until(now).unwrap().saturating_duration_since(now).as_millis();
            (expected * 750..=expected * 1250).contains(&pause)
        });
        assert_eq!(pauses, [true; 4]);
        breaker.succeeded();
        assert_eq!(breaker.open_until(now), None);
    }
}
