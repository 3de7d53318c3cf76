//! A circuit breaker: a store that does not work is left alone for a while.
//!
//! ```text
//!            failure                        pause over: one operation is let through
//! closed ------------> open, for a pause ------------------------------------------> trial
//!    ^                    ^                                                             |
//!    |                    +------------------- failure: a pause twice as long ----------+
//!    +------------------------------------------ success -------------------------------+
//! ```
//!
//! There are two of these, one for looks ([`RefreshStore::poll`](crate::RefreshStore::poll)) and one for changes: a store that
//! answers looks and refuses changes would else be declared well at each look, and be asked for a change after each. A
//! look that fails opens both, a change that succeeds closes both.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dogpile::Tick;

use crate::draw;
use crate::policy::doubled;

/// The state of a store, as the cells that use it have found it.
///
/// A store that has one shares it among all its cells; see [`RefreshStore::breaker`](crate::RefreshStore::breaker).
#[derive(Debug, Default)]
pub struct Breaker {
    looks: Mutex<State>,
    changes: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In a row.
    failures: u32,
    open_until: Tick,
}

impl State {
    const CLOSED: Self = Self { failures: 0, open_until: Tick::from_nanos(0) };
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Look,
    Change,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub const fn new() -> Self {
        Self { looks: Mutex::new(State::CLOSED), changes: Mutex::new(State::CLOSED) }
    }

    /// Until when the store is to be left alone, if it is.
    pub(crate) fn open_until(&self, kind: Kind, now: Tick) -> Option<Tick> {
        let open_until = self.lock(kind).open_until;
        (now < open_until).then_some(open_until)
    }

    /// Whether an operation may begin. After a pause one may, and the next one when that has ended, or `first` later.
    pub(crate) fn enter(&self, kind: Kind, now: Tick, first: Duration) -> bool {
        let mut state = self.lock(kind);
        if now < state.open_until {
            return false;
        }
        if state.failures > 0 {
            state.open_until = now.saturating_add(first);
        }
        true
    }

    /// Returns whether it was open.
    pub(crate) fn succeeded(&self, kind: Kind) -> bool {
        if kind == Kind::Change {
            *self.lock(Kind::Look) = State::CLOSED;
        }
        std::mem::replace(&mut *self.lock(kind), State::CLOSED).failures > 0
    }

    /// Returns the pause.
    pub(crate) fn failed(&self, kind: Kind, now: Tick, (first, max): (Duration, Duration)) -> Duration {
        let fail = |kind| {
            let mut state = self.lock(kind);
            state.failures = state.failures.saturating_add(1);
            let pause = draw::around(doubled(first, max, state.failures), 25);
            state.open_until = state.open_until.max(now.saturating_add(pause));
            pause
        };
        if kind == Kind::Look {
            fail(Kind::Change);
        }
        fail(kind)
    }

    fn lock(&self, kind: Kind) -> std::sync::MutexGuard<'_, State> {
        let state = if kind == Kind::Look { &self.looks } else { &self.changes };
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_opens_for_longer_and_longer_and_closes_at_the_first_success() {
        let breaker = Breaker::new();
        let now = Tick::from_nanos(5);
        let open_until = || breaker.open_until(Kind::Look, now);
        assert_eq!(open_until(), None);
        let pauses = [1u128, 2, 3, 3].map(|expected| {
            breaker.failed(Kind::Look, now, (SECOND, 3 * SECOND));
            let pause = open_until().unwrap().saturating_duration_since(now).as_millis();
            (expected * 750..=expected * 1250).contains(&pause)
        });
        assert_eq!(pauses, [true; 4]);
        assert!(breaker.succeeded(Kind::Look));
        assert_eq!(open_until(), None);
        assert!(!breaker.succeeded(Kind::Look));
    }

    #[test]
    fn after_a_pause_one_operation_is_let_through() {
        let breaker = Breaker::new();
        let now = Tick::from_nanos(5);
        assert!((0..10).all(|_| breaker.enter(Kind::Change, now, SECOND)));
        breaker.failed(Kind::Change, now, (SECOND, SECOND));
        assert!(!breaker.enter(Kind::Change, now, SECOND));
        let later = now.saturating_add(2 * SECOND);
        assert!(breaker.enter(Kind::Change, later, SECOND));
        assert!(!breaker.enter(Kind::Change, later, SECOND), "one at a time");
        assert!(
            breaker.enter(Kind::Change, later.saturating_add(SECOND), SECOND),
            "nothing was heard of the first"
        );
    }

    #[test]
    fn looks_that_succeed_do_not_close_it_for_changes() {
        let breaker = Breaker::new();
        let now = Tick::from_nanos(5);
        breaker.failed(Kind::Change, now, (SECOND, SECOND));
        breaker.succeeded(Kind::Look);
        assert!(breaker.open_until(Kind::Change, now).is_some());
        assert!(breaker.open_until(Kind::Look, now).is_none());
        breaker.failed(Kind::Look, now, (SECOND, SECOND));
        assert!(breaker.open_until(Kind::Look, now).is_some());
        breaker.succeeded(Kind::Change);
        assert!(breaker.open_until(Kind::Look, now).is_none());
    }
}
