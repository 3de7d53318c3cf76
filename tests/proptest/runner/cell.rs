//! The two kinds of cells, and what both of them can do.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{DogpileCell, Policy, ReadGuard, ReaderArc, SyncReaderCell};

use super::TestClock;
use crate::model::Settings;
use crate::tokens::{Ledger, Token};

/// What belongs to a `DogpileCell`, or to a `SyncReaderCell`.
#[derive(Clone)]
pub(crate) enum Either<D, S> {
    Dogpile(D),
    SyncReader(S),
}

/// Does the same with what belongs to either kind. The methods that both have are named alike.
macro_rules! either {
    ($either:expr, $name:ident => $then:expr) => {
        match $either {
            $crate::runner::cell::Either::Dogpile($name) => $then,
            $crate::runner::cell::Either::SyncReader($name) => $then,
        }
    };
}
pub(super) use either;

pub(crate) type Dogpile = DogpileCell<Token, TestClock>;
pub(super) type SyncReader = SyncReaderCell<Token, TestClock>;
/// Follows the publications of a cell.
pub(super) type Subscription<'a> = Either<
    dogpile::Subscription<'a, Token, TestClock>,
    dogpile::Subscription<'a, Token, TestClock, SyncReader>,
>;
pub(super) type TestCell = Either<Arc<Dogpile>, Arc<SyncReader>>;
/// Keeps a value.
pub(super) type Handle = Either<Arc<Token>, ReaderArc<Token>>;

impl From<Arc<Token>> for Handle {
    fn from(value: Arc<Token>) -> Self {
        Self::Dogpile(value)
    }
}

impl From<ReaderArc<Token>> for Handle {
    fn from(value: ReaderArc<Token>) -> Self {
        Self::SyncReader(value)
    }
}

impl Deref for Handle {
    type Target = Token;

    fn deref(&self) -> &Token {
        either!(self, value => value)
    }
}

/// What a call has returned.
pub(super) enum Held<'a> {
    Handle(Handle),
    Guard(ReadGuard<'a, Token>),
}

impl<H> From<H> for Held<'_>
where
    Handle: From<H>,
{
    fn from(value: H) -> Self {
        Self::Handle(value.into())
    }
}

impl Deref for Held<'_> {
    type Target = Token;

    fn deref(&self) -> &Token {
        match self {
            Self::Handle(value) => value,
            Self::Guard(value) => value,
        }
    }
}

impl TestCell {
    pub(super) fn new(settings: &Settings, clock: TestClock, ledger: &Arc<Ledger>) -> Self {
        let policy = policy(settings);
        let cell = match settings.drain {
            None => Self::Dogpile(Arc::new(DogpileCell::with_clock(policy, clock))),
            Some(drain) => {
                let cell = SyncReaderCell::with_clock(policy, clock, drain, ledger.finalizer());
                Self::SyncReader(Arc::new(cell))
            }
        };
        assert_eq!(either!(&cell, cell => cell.policy()), policy);
        cell
    }
}

fn policy(settings: &Settings) -> Policy {
    let mut policy =
        if settings.ttl == Duration::MAX { Policy::never_expires() } else { Policy::ttl(settings.ttl) };
    if let Some(window) = settings.stale_while_refresh {
        policy = policy.stale_while_refresh(window);
    }
    if let Some(window) = settings.stale_if_error {
        policy = policy.stale_if_error(window);
    }
    if let Some((first, max)) = settings.retry_backoff {
        policy = policy.retry_backoff(first, max);
    }
    if let Some(timeout) = settings.lease_timeout {
        policy = policy.lease_timeout(timeout);
    }
    policy
}
