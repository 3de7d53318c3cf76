//! Spans and events for `tracing` (feature `tracing`). Without the feature all functions here are empty.
//!
//! There is a span for each build, and there are events for its end and for the value that it replaces. A subscriber is user
//! code: nothing here is called under a lock. A panic of a subscriber is reported by the panic hook and contained, so that no
//! value and no lease is lost.

#![cfg_attr(
    not(feature = "tracing"),
    allow(
        unused_mut,
        unused_variables,
        clippy::missing_const_for_fn,
        clippy::needless_pass_by_value,
        clippy::unused_self
    )
)]

use std::marker::PhantomData;

use crate::error::SharedError;

#[cfg(feature = "tracing")]
use {crate::contain::contain, crate::time::Instant, std::time::Duration, tracing::Level};

/// As [`tracing::event!`]. Without the feature, nothing.
macro_rules! event {
    ($($event:tt)*) => {
        #[cfg(feature = "tracing")]
        contain(|| tracing::event!(target: "dogpile", $($event)*));
    };
}

/// Whether and how the value of a build was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishOutcome {
    /// It was published.
    Published,
    /// It was published as already stale, because of an `invalidate` during the build, or, for a derived value, of a
    /// publication of a source.
    PublishedStale,
    /// It was not published, because of a `set`, a `clear`, a `revoke` or a `reset` during the build.
    Displaced,
    /// It was not published, because the lease had timed out and another caller was elected.
    Superseded,
}

/// The span of a build.
pub(crate) struct Span {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

// After a panic the state of a subscriber is the subscriber's concern.
impl std::panic::UnwindSafe for Span {}
impl std::panic::RefUnwindSafe for Span {}

#[cfg(feature = "tracing")]
impl Drop for Span {
    fn drop(&mut self) {
        let span = std::mem::replace(&mut self.span, tracing::Span::none());
        contain(|| drop(span));
    }
}

impl Span {
    pub(crate) const fn none() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: tracing::Span::none(),
        }
    }

    pub(crate) fn begin(
        cell: Option<&'static str>,
        cause: &'static str,
        generation: u64,
        supersedes: bool,
    ) -> Self {
        let mut this = Self::none();
        #[cfg(feature = "tracing")]
        contain(|| {
            let cell = cell.unwrap_or_default();
            this.span = tracing::span!(target: "dogpile", Level::INFO, "build", cell, generation, cause);
            if supersedes {
                event!(parent: &this.span, Level::WARN, "supersedes a build that has not ended in time");
            }
        });
        this
    }

    pub(crate) fn enter(&self) -> Inside {
        let mut inside = Inside { span: Self::none(), is_entered: false, thread: PhantomData };
        #[cfg(feature = "tracing")]
        {
            contain(|| inside.span.span = self.span.clone());
            contain(|| {
                inside.span.span.with_subscriber(|(id, subscriber)| subscriber.enter(id));
                inside.is_entered = true;
            });
        }
        inside
    }

    pub(crate) fn end(&self, outcome: PublishOutcome, nanos: u64) {
        match outcome {
            PublishOutcome::Published => {
                event!(parent: &self.span, Level::DEBUG, duration = ?Duration::from_nanos(nanos), "published");
            }
            PublishOutcome::PublishedStale => {
                event!(parent: &self.span, Level::DEBUG, duration = ?Duration::from_nanos(nanos), "published as stale: invalidated, or a source has published, meanwhile");
            }
            PublishOutcome::Displaced => {
                event!(parent: &self.span, Level::DEBUG, duration = ?Duration::from_nanos(nanos), "not published: set, cleared or revoked meanwhile");
            }
            PublishOutcome::Superseded => {
                event!(parent: &self.span, Level::WARN, duration = ?Duration::from_nanos(nanos), "superseded: too late to be published");
            }
        }
    }

    pub(crate) fn give_back(&self, panicked: bool, nanos: u64) {
        if panicked {
            event!(parent: &self.span, Level::WARN, duration = ?Duration::from_nanos(nanos), "panicked");
        } else {
            event!(parent: &self.span, Level::DEBUG, duration = ?Duration::from_nanos(nanos), "abandoned");
        }
    }

    pub(crate) fn fail(&self, error: &SharedError, nanos: u64) {
        event!(parent: &self.span, Level::WARN, duration = ?Duration::from_nanos(nanos), %error, "failed");
    }
}

/// This thread is inside the span until this is dropped.
///
/// Not an `EnteredSpan`: that exits and closes the span in one drop, and a subscriber that panics at both would abort the process.
#[cfg_attr(not(feature = "tracing"), allow(dead_code))]
pub(crate) struct Inside {
    span: Span,
    is_entered: bool,
    /// Stays on its thread.
    thread: PhantomData<*const ()>,
}

#[cfg(feature = "tracing")]
impl Drop for Inside {
    fn drop(&mut self) {
        if self.is_entered {
            contain(|| {
                self.span.span.with_subscriber(|(id, subscriber)| subscriber.exit(id));
            });
        }
    }
}

/// A moment, to measure from.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    #[cfg(feature = "tracing")]
    instant: Instant,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            instant: Instant::now(),
        }
    }
}

/// A build has waited for the write lock for a second, and goes on.
pub(crate) fn write_lock_waits(cell: Option<&'static str>, readers: usize) {
    let cell = cell.unwrap_or_default();
    event!(Level::WARN, cell, readers, "the write lock waits for readers that have not left for a second");
}

/// The last reader of a value that was retired at `since` has left.
pub(crate) fn drained(cell: Option<&'static str>, number: u64, since: Moment) {
    let cell = cell.unwrap_or_default();
    event!(parent: None, Level::DEBUG, cell, number, duration = ?since.instant.elapsed(), "drained");
}

/// A value's finalizer, which began at `since`, has ended.
pub(crate) fn finalized(cell: Option<&'static str>, number: u64, since: Moment) {
    let cell = cell.unwrap_or_default();
    event!(parent: None, Level::DEBUG, cell, number, duration = ?since.instant.elapsed(), "finalized");
}
