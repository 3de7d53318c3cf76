//! What the cell's lock guards, what a caller may ask for, and the decision table.
//!
//! # The lease
//!
//! ```text
//!            elect                        publish, fail, panic, give back
//! Free ───────────────► Building ───────────────────────────────────────► Free
//!                          │  ▲ │  set, clear, revoke, reset               ▲
//!                          │  │ └───────────────────────────────────────────┤
//!      acquire_write_lock  │  │ time over                                   │
//!                          ▼  │                    end of the build         │
//!                        Exclusive ─────────────────────────────────────────┤
//!                          publish under Drain::Wait                        │
//! Building, Exclusive ───────────────► Draining ────────────────────────────┘
//! ```
//!
//! A build whose result can no longer be published holds no lease (G1), unless it has the write lock. After a
//! `clear`, the build that it has displaced may still take the write lock, if the cell is still empty (Free to Exclusive). It ends in
//! Free.

use crate::error::SharedError;
use crate::policy::Policy;
use crate::sync::Arc;
use crate::time::FOREVER;

use super::attempt::{Attempt, Outcome};
use super::listeners::Listeners;
use super::slot::{Key, Record};

/// What the lock guards. What readers need of it is mirrored in the [`Slot`](super::slot::Slot).
pub(crate) struct State<T> {
    /// Opens the slot to the holder of the lock.
    pub(super) key: Key,
    pub(super) lease: LeaseState,
    /// Numbers builds and `set`s, in the order in which they begin.
    pub(super) last_origin: u64,
    /// The number of the build or `set` that published the value in the slot.
    pub(super) origin: u64,
    /// Builds up to this number began before the latest `invalidate`.
    pub(super) invalidated_up_to: u64,
    /// Builds up to this number began before the latest `set`, `clear`, `revoke` or `reset`.
    pub(super) displaced_up_to: u64,
    /// Boxed, because it is rare.
    pub(super) failure: Option<Box<Failure>>,
    /// Made by the first waiter; taken by the thread that ends the wait.
    pub(super) attempt: Option<Arc<Attempt<T>>>,
    pub(super) listeners: Listeners<T>,
}

/// The waiters of an attempt that has ended, and what they are to be given.
// Boxed, because most builds have none.
pub(super) type Waiters<T> = Option<Box<(Arc<Attempt<T>>, Outcome<T>)>>;

/// Who holds the lease, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseState {
    /// Before this tick a build would make the same again, so nobody is elected for a stale value: what a derived value was made
    /// from has nothing newer. 0: that is not known, or not so. Any change ends it.
    Free { settled_until: u64 },
    /// A build runs.
    Building { origin: u64, supersede_at: u64 },
    /// A build has taken the value out of the slot, and waits until no reader is inside, or has the write lock.
    Exclusive {
        origin: u64,
        /// Of the value that it has taken out; 0: there was none.
        address: usize,
        /// For when it puts the value back and goes on without the write lock.
        supersede_at: u64,
    },
    /// A build has published, and waits for the readers of the replaced value.
    Draining { origin: u64 },
}

impl LeaseState {
    pub(super) const FREE: Self = Self::Free { settled_until: 0 };

    pub(super) fn is_free(self) -> bool {
        matches!(self, Self::Free { .. })
    }

    /// Something has changed: a build may make something else. Returns whether it would not have before.
    pub(super) fn unsettle(&mut self) -> bool {
        match self {
            Self::Free { settled_until } => std::mem::take(settled_until) != 0,
            _ => false,
        }
    }

    pub(super) fn origin(self) -> Option<u64> {
        match self {
            Self::Free { .. } => None,
            Self::Building { origin, .. } | Self::Exclusive { origin, .. } | Self::Draining { origin } => {
                Some(origin)
            }
        }
    }

    /// From this tick on another caller may be elected. 0: at once.
    pub(super) fn held_until(self) -> u64 {
        match self {
            Self::Free { .. } => 0,
            Self::Building { supersede_at, .. } => supersede_at,
            Self::Exclusive { .. } | Self::Draining { .. } => FOREVER,
        }
    }

    pub(super) fn awaits(self) -> Awaits {
        match self {
            Self::Free { .. } | Self::Building { .. } => Awaits::Nobody,
            Self::Exclusive { .. } => Awaits::Readers,
            Self::Draining { .. } => Awaits::ReadersOfReplaced,
        }
    }
}

/// What the lease holder is blocked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaits {
    /// Nothing that the cell knows of: it builds.
    Nobody,
    /// All readers: it wants the write lock, or has it.
    Readers,
    /// The readers of the value that it has replaced.
    ReadersOfReplaced,
}

/// The failures since the latest publication.
pub(crate) struct Failure {
    pub(super) count: u32,
    /// No caller is elected before this tick. 0: there is no pause.
    pub(super) retry_at: u64,
    /// The latest one.
    pub(super) error: SharedError,
    pub(super) is_panic: bool,
}

impl<T> State<T> {
    pub(super) const fn new() -> Self {
        Self {
            key: Key::new(),
            lease: LeaseState::FREE,
            // So that a request that asks for a later one never asks for 0, which is any.
            last_origin: 1,
            origin: 0,
            invalidated_up_to: 0,
            displaced_up_to: 0,
            failure: None,
            attempt: None,
            listeners: Listeners::new(),
        }
    }

    pub(super) fn next_origin(&mut self) -> u64 {
        self.last_origin += 1;
        self.last_origin
    }

    /// The failure after which a retry pause runs, if one runs.
    pub(super) fn paused_by(&self, now: u64) -> Option<&Failure> {
        self.failure.as_deref().filter(|failure| now < failure.retry_at)
    }

    /// A value with this record is served before this tick, and no caller is elected. From then on, a read elects its caller or
    /// waits: a refresh is due. 0: at once. [`Slot::due_at`](super::slot::Slot::due_at) has it for readers.
    pub(super) fn due_at(&self, policy: &Policy, record: &Record) -> u64 {
        // The next read takes the slow path, and leaves a mark.
        if self.listeners.is_unread() { 0 } else { self.due_at_when_read(policy, record) }
    }

    /// As [`due_at`](State::due_at), also if the next read has to be marked.
    pub(super) fn due_at_when_read(&self, policy: &Policy, record: &Record) -> u64 {
        // A fresh value is served. A stale one is served while another caller builds, or a build would make the same again, ...
        let mut due_at = record.fresh_end();
        let covered_until = match self.lease {
            LeaseState::Free { settled_until } => settled_until,
            lease => lease.held_until(),
        };
        if covered_until != 0 {
            due_at = due_at.max(record.stale_end(policy.stale_window()).min(covered_until));
        }
        // ... in a retry pause, ...
        if let Some(failure) = &self.failure {
            due_at = due_at.max(record.stale_end(policy.pause_window()).min(failure.retry_at));
        }
        // ... and while a refresher is attached, which builds instead.
        if self.listeners.rebuild() {
            due_at = due_at.max(record.stale_end(policy.stale_window()));
        }
        due_at
    }

    /// No build that has begun so far can be published any more. Returns whether a build has lost its lease.
    pub(super) fn displace(&mut self) -> bool {
        self.displaced_up_to = self.last_origin;
        let is_building = matches!(self.lease, LeaseState::Building { .. });
        if is_building {
            self.lease = LeaseState::FREE;
        }
        is_building
    }

    pub(super) fn open_attempt(&mut self) -> Arc<Attempt<T>> {
        Arc::clone(self.attempt.get_or_insert_with(Attempt::open))
    }

    /// Takes the waiters out, to be given `outcome` after unlocking.
    pub(super) fn take_waiters(&mut self, outcome: Outcome<T>) -> Waiters<T> {
        self.attempt.take().map(|attempt| Box::new((attempt, outcome)))
    }
}

/// What a caller asks for: the conditions of a [`Request`](crate::Request).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Not stale for longer than this. [`FOREVER`]: as long as the policy allows.
    pub(crate) max_stale: u64,
    /// Published at most this long ago. [`FOREVER`]: whenever.
    pub(crate) max_age: u64,
    /// Of a later generation than this. 0: of any.
    pub(crate) newer_than: u64,
    /// From a build or `set` of a greater number than this. 0: from any. (What is restored has the number 0.)
    pub(crate) after: u64,
    /// In a retry pause with nothing to serve: build (else: fail with the latest error).
    pub(crate) builds_in_pause: bool,
    /// It may be elected (else: it waits, even if no build runs).
    pub(crate) may_build: bool,
}

impl Demand {
    /// Anything that may be served.
    pub(crate) const ANY: Self = Self {
        max_stale: FOREVER,
        max_age: FOREVER,
        newer_than: 0,
        after: 0,
        builds_in_pause: false,
        may_build: true,
    };

    /// What `get_or_refresh` asks for, which can return no error.
    pub(crate) const VALUE: Self = Self { builds_in_pause: true, ..Self::ANY };

    /// A value whose build or `set` began after that of this number.
    pub(crate) const fn after(origin: u64) -> Self {
        Self { after: origin, ..Self::VALUE }
    }

    /// Whether it accepts all that the policy allows to serve.
    pub(crate) fn is_plain(&self) -> bool {
        self.max_stale == FOREVER && self.max_age == FOREVER && self.newer_than == 0 && self.after == 0
    }

    /// Whether a value that was published after that of the caller's own build met the conditions then.
    pub(crate) fn accepts_later(&self, record: &Record) -> bool {
        let origin = if record.initial_age == 0 { u64::MAX } else { 0 };
        self.accepts(record, origin, record.published)
    }

    /// Whether a value meets the conditions at `now`.
    pub(crate) fn accepts(&self, record: &Record, origin: u64, now: u64) -> bool {
        now < record.stale_end(self.max_stale)
            && record.age(now) <= self.max_age
            && record.generation > self.newer_than
            && (self.after == 0 || origin > self.after)
    }
}

/// What a look leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Serve,
    Elect,
    Wait,
    Fail,
}

/// The decision table. See [`Lookup`](crate::Lookup).
///
/// * `is_served`: there is a value that meets the demand, and no refresh is due ([`State::due_at`]).
/// * `is_held`: a build runs that may not be superseded.
/// * `is_failed`: a retry pause runs after an error.
pub(super) fn verdict(is_served: bool, is_held: bool, is_failed: bool, demand: &Demand) -> Verdict {
    if is_served {
        Verdict::Serve
    } else if is_held {
        Verdict::Wait
    } else if is_failed && !demand.builds_in_pause {
        Verdict::Fail
    } else if demand.may_build {
        Verdict::Elect
    } else {
        Verdict::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decision_table() {
        let waits = Demand { may_build: false, ..Demand::ANY };
        for (is_served, is_held, is_failed, any, value, no_build) in [
            (true, false, false, Verdict::Serve, Verdict::Serve, Verdict::Serve),
            (true, true, false, Verdict::Serve, Verdict::Serve, Verdict::Serve),
            (true, false, true, Verdict::Serve, Verdict::Serve, Verdict::Serve),
            (true, true, true, Verdict::Serve, Verdict::Serve, Verdict::Serve),
            (false, false, false, Verdict::Elect, Verdict::Elect, Verdict::Wait),
            (false, true, false, Verdict::Wait, Verdict::Wait, Verdict::Wait),
            (false, false, true, Verdict::Fail, Verdict::Elect, Verdict::Fail),
            (false, true, true, Verdict::Wait, Verdict::Wait, Verdict::Wait),
        ] {
            let row = (is_served, is_held, is_failed);
            assert_eq!(verdict(is_served, is_held, is_failed, &Demand::ANY), any, "{row:?}");
            assert_eq!(verdict(is_served, is_held, is_failed, &Demand::VALUE), value, "{row:?}");
            assert_eq!(verdict(is_served, is_held, is_failed, &waits), no_build, "{row:?}");
        }
    }

    #[test]
    fn each_condition_is_weighed() {
        // Published at 100 with an age of 10, fresh up to 140, and looked at when it is 20 ns late.
        let record = Record { initial_age: 10, ..Record::fresh(3, 100, 50) };
        let accepts = |demand: Demand| demand.accepts(&record, 7, 160);
        assert!(accepts(Demand::ANY) && Demand::ANY.is_plain() && Demand::VALUE.is_plain());
        for (met, unmet) in [
            (Demand { max_stale: 20, ..Demand::ANY }, Demand { max_stale: 19, ..Demand::ANY }),
            (Demand { max_age: 70, ..Demand::ANY }, Demand { max_age: 69, ..Demand::ANY }),
            (Demand { newer_than: 2, ..Demand::ANY }, Demand { newer_than: 3, ..Demand::ANY }),
            (Demand { after: 6, ..Demand::ANY }, Demand { after: 7, ..Demand::ANY }),
        ] {
            assert!(accepts(met) && !met.is_plain(), "{met:?}");
            assert!(!accepts(unmet) && !unmet.is_plain(), "{unmet:?}");
        }
    }

    #[test]
    fn only_a_build_without_the_write_lock_loses_its_lease() {
        for (lease, loses) in [
            (LeaseState::FREE, false),
            (LeaseState::Building { origin: 1, supersede_at: 9 }, true),
            (LeaseState::Exclusive { origin: 1, address: 0, supersede_at: FOREVER }, false),
            (LeaseState::Draining { origin: 1 }, false),
        ] {
            let mut state = State::<u32>::new();
            state.last_origin = 1;
            state.lease = lease;
            assert_eq!(state.displace(), loses);
            assert_eq!(state.displaced_up_to, 1);
            assert_eq!(state.lease.is_free(), loses || lease.is_free());
        }
    }
}
