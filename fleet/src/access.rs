//! How a store is asked: its breakers, what is counted and reported.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use dogpile::{Clock, Tick};

use crate::breaker::{Breaker, Kind};
use crate::scheduler::contained;
use crate::stats::Counters;
use crate::store::{RefreshStore, StoreError};
use crate::trace;

/// An operation of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Poll,
    Acquire,
    Publish,
    Fail,
    Renew,
    Invalidate,
    Check,
}

impl Operation {
    fn kind(self) -> Kind {
        if self == Self::Poll { Kind::Look } else { Kind::Change }
    }

    /// Whether it is left out while the breaker is open. The others are called for by something that has happened already.
    fn is_gated(self) -> bool {
        matches!(self, Self::Poll | Self::Acquire)
    }

    /// Whether other nodes are given a hint.
    fn is_hinted_at(self) -> bool {
        matches!(self, Self::Publish | Self::Fail | Self::Invalidate)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Acquire => "acquire",
            Self::Publish => "publish",
            Self::Fail => "fail",
            Self::Renew => "renew",
            Self::Invalidate => "invalidate",
            Self::Check => "check",
        }
    }
}

pub(crate) type OnError = Box<dyn Fn(&Arc<StoreError>) + Send + Sync>;

/// A store, and what its user has found out about it.
pub(crate) struct Access<C> {
    pub(crate) store: Arc<dyn RefreshStore>,
    /// For what fails with this user alone, and for stores that have none of their own.
    breaker: Breaker,
    /// The first pause of the breaker, and the longest.
    pauses: (Duration, Duration),
    clock: C,
    pub(crate) counters: Counters,
    last_error: Mutex<Option<Arc<StoreError>>>,
    /// Why hints are refused, as it was said last.
    refusal: Mutex<Option<Arc<StoreError>>>,
    on_error: OnceLock<OnError>,
}

impl<C: Clock> Access<C> {
    pub(crate) fn new(store: Arc<dyn RefreshStore>, pauses: (Duration, Duration), clock: C) -> Self {
        Self {
            store,
            breaker: Breaker::new(),
            pauses,
            clock,
            counters: Counters::default(),
            last_error: Mutex::new(None),
            refusal: Mutex::new(None),
            on_error: OnceLock::new(),
        }
    }

    /// The same number for users of the same store.
    pub(crate) fn store_number(&self) -> usize {
        self.store.identity()
    }

    /// Of several the first one stays.
    pub(crate) fn on_error(&self, report: OnError) {
        let _ = self.on_error.set(report);
    }

    pub(crate) fn last_error(&self) -> Option<Arc<StoreError>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Until when the store is to be left alone, if it is.
    pub(crate) fn open_until(&self, kind: Kind, now: Tick) -> Option<Tick> {
        let shared = self.store.breaker().and_then(|breaker| breaker.open_until(kind, now));
        shared.max(self.breaker.open_until(kind, now))
    }

    /// An error, while the store is left alone because changes of it have failed: for what is done later by itself, so that many such
    /// callers do not wait for its timeout one after another.
    pub(crate) fn left_alone(&self) -> Option<Arc<StoreError>> {
        self.open_until(Kind::Change, self.clock.now())?;
        Some(Arc::new(StoreError::new("it has failed a moment ago, and is left alone for a while")))
    }

    /// Whether an operation may begin.
    pub(crate) fn admits(&self, operation: Operation) -> bool {
        if !operation.is_gated() {
            return true;
        }
        let (now, first) = (self.clock.now(), self.pauses.0);
        let enters = |breaker: &Breaker| breaker.enter(operation.kind(), now, first);
        enters(&self.breaker) && self.store.breaker().is_none_or(enters)
    }

    /// Runs an operation, with all that is to be noted about its outcome.
    pub(crate) fn run<R>(
        &self,
        operation: Operation,
        name: &str,
        run: impl FnOnce(&dyn RefreshStore, &str) -> Result<R, StoreError>,
    ) -> Result<R, Arc<StoreError>> {
        self.counters.store_operations.count();
        let kind = operation.kind();
        match trace::operation(operation.name(), name, || run(&*self.store, name)) {
            Ok(answer) => {
                let shared = self.store.breaker().is_some_and(|breaker| breaker.succeeded(kind));
                if self.breaker.succeeded(kind) || shared {
                    trace::breaker_closed(name, kind == Kind::Change);
                }
                // Here, as not each process has something that looks after the store: one that only invalidates has not.
                if operation.is_hinted_at()
                    && let Some(reason) = self.store.hints_refused()
                {
                    self.hints_are_refused(name, &reason);
                }
                Ok(answer)
            }
            Err(error) => {
                let shared = self.store.breaker().filter(|_| !error.is_busy());
                let breaker = shared.unwrap_or(&self.breaker);
                let pause = breaker.failed(kind, self.clock.now(), self.pauses);
                trace::breaker_opened(name, pause, kind == Kind::Change, &error);
                Err(self.report(error))
            }
        }
    }

    pub(crate) fn report(&self, error: StoreError) -> Arc<StoreError> {
        self.counters.store_errors.count();
        let error = Arc::new(error);
        self.show(&error);
        error
    }

    /// No operation has failed, but hints do not get through. Said once for each reason, which the store has as long as it holds.
    pub(crate) fn hints_are_refused(&self, name: &str, reason: &Arc<StoreError>) {
        let former = {
            let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
            if refusal.as_ref().is_some_and(|said| Arc::ptr_eq(said, reason)) {
                return;
            }
            refusal.replace(Arc::clone(reason))
        };
        contained(|| drop(former));
        trace::hints_refused(name, reason);
        self.show(reason);
        self.counters.hints_refused.count();
    }

    fn show(&self, error: &Arc<StoreError>) {
        let former = {
            let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
            last.replace(Arc::clone(error))
        };
        // Without the lock: it may be the last reference, and its source is an error of the user's store.
        contained(|| drop(former));
        if let Some(on_error) = self.on_error.get() {
            contained(|| on_error(error));
        }
    }
}
