//! The rules of a store, as a pure state machine: no clock, no I/O, no randomness of its own.
//!
//! `MemoryStore` is this machine under a lock, `FileStore` is this machine in a file; what `RedisStore` does in a script
//! and `PostgresStore` in a statement is tested against it, operation by operation.
//!
//! # Rules
//!
//! * A lease is granted if the value is due (or will be before long, and that is asked for), no lease is live and no pause runs.
//!   Each grant has the next *fence*.
//! * A publication is accepted if its fence is the **newest that was granted** and its *epoch* is the present one. That
//!   the lease has lapsed meanwhile does not matter: a builder that is slower than its lease, but alone, succeeds.
//! * An invalidation begins a new epoch and voids the lease, so that a build which may have read what is no longer true
//!   is never accepted, and a new one can begin at once.
//! * An *incarnation* is drawn when the entry is made. Whoever shows another one has dealt with an entry that is lost:
//!   its publication counts as invalidated. A node that has seen a later epoch or version than the entry has, of the same
//!   incarnation, shows that the store has gone back in time (a fail-over, a restored backup), and when it asks for the lease
//!   the entry becomes a new incarnation.

use std::time::Duration;

use crate::store::{
    Acquire, Current, Epoch, Fence, Invalidation, LONGEST, Poll, Publication, Publish, Request, Seen, Token,
    Value, Version,
};

/// Microseconds by the store's clock.
pub type Micros = u64;

/// A duration in microseconds, at most [`LONGEST`].
#[must_use]
pub fn micros(duration: Duration) -> Micros {
    duration.min(LONGEST).as_micros().try_into().unwrap_or(Micros::MAX)
}

/// All that a store keeps for one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Drawn when the entry is made; 0 before.
    pub incarnation: u64,
    /// Invalidations.
    pub epoch: u64,
    /// The newest fence that was granted.
    pub fence: u64,
    /// When it was granted.
    pub elected: Micros,
    /// Publications.
    pub version: u64,
    /// The value.
    pub value: Option<Stored>,
    /// There is no value because of an [`Invalidation::Hard`].
    pub cleared: bool,
    /// When the lease of the newest fence ends; 0 if it has been given back.
    pub lease_until: Micros,
    /// Before this nobody is elected.
    pub retry_at: Micros,
    /// Failures in a row.
    pub failures: u32,
}

/// A value in an [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    /// The bytes.
    pub payload: Vec<u8>,
    /// The builder's note.
    pub tag: Option<String>,
    /// When its builder was elected, or the one who found it unchanged.
    pub began: Micros,
    /// When it stops being fresh.
    pub soft_until: Micros,
    /// When it stops being served.
    pub hard_until: Micros,
}

impl Entry {
    /// See [`RefreshStore::poll`](crate::RefreshStore::poll).
    #[must_use]
    pub fn poll(&self, now: Micros, known: Option<Version>) -> Poll {
        Poll {
            current: self.current(now, known),
            epoch: self.epoch(),
            lease_left: left(self.lease_until, now),
            retry_left: left(self.retry_at, now),
        }
    }

    /// See [`RefreshStore::acquire`](crate::RefreshStore::acquire). `draw`: a random number, not 0, for a new incarnation.
    pub fn acquire(&mut self, now: Micros, request: &Request, draw: u64) -> Acquire {
        if self.incarnation == 0 {
            self.incarnation = draw;
        } else if self.has_gone_back(request.known) || self.is_behind(request.seen) {
            // What else has been lost is not known: invalidations, perhaps.
            let known = request.known.filter(|known| known.incarnation == self.incarnation);
            let seen = request.seen.filter(|seen| seen.epoch.incarnation == self.incarnation);
            *self = Self {
                incarnation: draw,
                epoch: self.epoch.max(seen.map_or(0, |seen| seen.epoch.number)) + 1,
                fence: self.fence,
                version: self
                    .version
                    .max(known.map_or(0, |known| known.number))
                    .max(seen.map_or(0, |seen| seen.version)),
                ..Self::default()
            };
        }
        let refused = request.refuse.is_some() && request.refuse == self.value_version();
        let current = self.current(now, request.known);
        if micros(current.soft_left()) > micros(request.ahead) && !refused {
            return Acquire::Fresh(current);
        }
        if self.lease_until > now {
            return Acquire::Busy { left: left(self.lease_until, now), current };
        }
        if self.retry_at > now {
            return Acquire::Backoff { left: left(self.retry_at, now), epoch: self.epoch(), current };
        }
        self.fence += 1;
        self.elected = now;
        self.lease_until = now + micros(request.lease);
        let fence = Fence { incarnation: self.incarnation, number: self.fence };
        Acquire::Won {
            token: Token { fence, epoch: self.epoch },
            tag: self.value.as_ref().and_then(|value| value.tag.clone()),
            failures: self.failures,
            current,
        }
    }

    /// See [`RefreshStore::publish`](crate::RefreshStore::publish).
    pub fn publish(&mut self, now: Micros, token: &Token, publication: &Publication<'_>) -> Publish {
        if let Some(refusal) = self.refusal(token) {
            return refusal;
        }
        self.version += 1;
        self.value = Some(Stored {
            payload: publication.payload.to_vec(),
            tag: publication.tag.map(ToOwned::to_owned),
            began: self.elected,
            soft_until: now + micros(publication.soft),
            hard_until: now + micros(publication.hard.max(publication.soft)),
        });
        self.cleared = false;
        self.conclude()
    }

    /// See [`RefreshStore::unchanged`](crate::RefreshStore::unchanged).
    pub fn unchanged(&mut self, now: Micros, token: &Token, soft: Duration, hard: Duration) -> Publish {
        if let Some(refusal) = self.refusal(token) {
            return refusal;
        }
        let Some(value) = &mut self.value else { return Publish::Invalidated };
        value.began = self.elected;
        value.soft_until = now + micros(soft);
        value.hard_until = now + micros(hard.max(soft));
        self.conclude()
    }

    /// See [`RefreshStore::fail`](crate::RefreshStore::fail).
    pub fn fail(&mut self, now: Micros, token: &Token, pause: Duration) -> bool {
        if !self.is_newest(token) {
            return false;
        }
        self.lease_until = 0;
        let pause = micros(pause);
        if pause > 0 {
            self.retry_at = now + pause;
            self.failures = self.failures.saturating_add(1);
        }
        true
    }

    /// See [`RefreshStore::renew`](crate::RefreshStore::renew).
    pub fn renew(&mut self, now: Micros, token: &Token, lease: Duration) -> bool {
        let lives = self.is_newest(token) && self.epoch == token.epoch && self.lease_until != 0;
        if lives {
            self.lease_until = now + micros(lease);
        }
        lives
    }

    /// See [`RefreshStore::invalidate`](crate::RefreshStore::invalidate). `draw`: as for [`acquire`](Entry::acquire).
    pub fn invalidate(&mut self, now: Micros, how: Invalidation, draw: u64) -> Epoch {
        if self.incarnation == 0 {
            self.incarnation = draw;
        }
        self.epoch += 1;
        self.lease_until = 0;
        match how {
            Invalidation::Soft => {
                if let Some(value) = &mut self.value {
                    value.soft_until = value.soft_until.min(now);
                }
            }
            Invalidation::Hard => {
                self.value = None;
                self.cleared = true;
            }
        }
        Epoch { incarnation: self.incarnation, number: self.epoch }
    }

    fn current(&self, now: Micros, known: Option<Version>) -> Current {
        let (Some(value), Some(version)) = (&self.value, self.value_version()) else {
            return Current::Nothing { cleared: self.cleared };
        };
        let (soft_left, hard_left) = (left(value.soft_until, now), left(value.hard_until, now));
        if known == Some(version) {
            Current::Same { soft_left, hard_left }
        } else if self.has_gone_back(known) {
            Current::Nothing { cleared: false }
        } else {
            Current::Newer(Value {
                version,
                payload: value.payload.clone(),
                tag: value.tag.clone(),
                age: left(now, value.began),
                soft_left,
                hard_left,
            })
        }
    }

    fn epoch(&self) -> Epoch {
        Epoch { incarnation: self.incarnation, number: self.epoch }
    }

    fn value_version(&self) -> Option<Version> {
        self.value.as_ref().map(|_| Version { incarnation: self.incarnation, number: self.version })
    }

    fn has_gone_back(&self, known: Option<Version>) -> bool {
        known.is_some_and(|known| known.incarnation == self.incarnation && known.number > self.version)
    }

    /// Whether it lacks something that a node has seen of this incarnation.
    fn is_behind(&self, seen: Option<Seen>) -> bool {
        seen.is_some_and(|seen| {
            self.incarnation == seen.epoch.incarnation
                && (self.epoch < seen.epoch.number || self.version < seen.version)
        })
    }

    fn is_newest(&self, token: &Token) -> bool {
        token.fence == Fence { incarnation: self.incarnation, number: self.fence } && self.incarnation != 0
    }

    /// Why a publication with this token is not accepted.
    fn refusal(&self, token: &Token) -> Option<Publish> {
        if self.incarnation == 0 || token.epoch() != self.epoch() {
            Some(Publish::Invalidated)
        } else if token.fence.number != self.fence {
            Some(Publish::Superseded)
        } else {
            None
        }
    }

    /// The build was accepted.
    fn conclude(&mut self) -> Publish {
        (self.lease_until, self.retry_at, self.failures) = (0, 0, 0);
        Publish::Stored(Version { incarnation: self.incarnation, number: self.version })
    }
}

/// The time from `now` until `until`.
fn left(until: Micros, now: Micros) -> Duration {
    Duration::from_micros(until.saturating_sub(now))
}
