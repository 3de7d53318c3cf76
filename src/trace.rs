//! Spans and events for `tracing` (feature `tracing`). Without the feature all functions here are empty.
//!
//! There is a span for each build, and there are events for its end and for the value that it replaces. A subscriber is user
//! code: nothing here is called under a lock. A panic of a subscriber is reported by the panic hook and contained, so that no
//! value and no lease is lost.

#![cfg_attr(not(feature = "tracing"), allow(dead_code, clippy::unused_self, clippy::needless_pass_by_value))]

#[cfg(not(feature = "tracing"))]
use crate::error::SharedError;

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

#[cfg(feature = "tracing")]
mod on {
    use std::marker::PhantomData;
    use std::time::Duration;

    use tracing::{Level, event, span};

    use super::PublishOutcome;
    use crate::contain::contain;
    use crate::error::SharedError;
    use crate::time::Instant;

    /// The span of a build.
    pub(crate) struct Span(tracing::Span);

    // After a panic the state of a subscriber is the subscriber's concern.
    impl std::panic::UnwindSafe for Span {}
    impl std::panic::RefUnwindSafe for Span {}

    /// This thread is inside the span until this is dropped.
    ///
    /// Not an `EnteredSpan`: that exits and closes the span in one drop, and a subscriber that panics at both would abort the
    /// process.
    pub(crate) struct Inside {
        span: Span,
        is_entered: bool,
        /// Stays on its thread.
        thread: PhantomData<*const ()>,
    }

    impl Drop for Inside {
        fn drop(&mut self) {
            if self.is_entered {
                contain(|| {
                    self.span.0.with_subscriber(|(id, subscriber)| subscriber.exit(id));
                });
            }
        }
    }

    impl Drop for Span {
        fn drop(&mut self) {
            let span = std::mem::replace(&mut self.0, tracing::Span::none());
            contain(|| drop(span));
        }
    }

    impl Span {
        pub(crate) const fn none() -> Self {
            Self(tracing::Span::none())
        }

        pub(crate) fn begin(
            cell: Option<&'static str>,
            cause: &'static str,
            generation: u64,
            supersedes: bool,
        ) -> Self {
            let mut span = tracing::Span::none();
            contain(|| {
                let cell = cell.unwrap_or_default();
                span = span!(target: "dogpile", Level::INFO, "build", cell, generation, cause);
                if supersedes {
                    event!(target: "dogpile", parent: &span, Level::WARN, "supersedes a build that has not ended in time");
                }
            });
            Self(span)
        }

        pub(crate) fn enter(&self) -> Inside {
            let mut inside = Inside { span: Self::none(), is_entered: false, thread: PhantomData };
            contain(|| inside.span.0 = self.0.clone());
            contain(|| {
                inside.span.0.with_subscriber(|(id, subscriber)| subscriber.enter(id));
                inside.is_entered = true;
            });
            inside
        }

        pub(crate) fn end(&self, outcome: PublishOutcome, nanos: u64) {
            let duration = Duration::from_nanos(nanos);
            contain(|| match outcome {
                PublishOutcome::Published => {
                    event!(target: "dogpile", parent: &self.0, Level::DEBUG, ?duration, "published");
                }
                PublishOutcome::PublishedStale => {
                    event!(target: "dogpile", parent: &self.0, Level::DEBUG, ?duration, "published as stale: invalidated, or a source has published, meanwhile");
                }
                PublishOutcome::Displaced => {
                    event!(target: "dogpile", parent: &self.0, Level::DEBUG, ?duration, "not published: set, cleared or revoked meanwhile");
                }
                PublishOutcome::Superseded => {
                    event!(target: "dogpile", parent: &self.0, Level::WARN, ?duration, "superseded: too late to be published");
                }
            });
        }

        pub(crate) fn give_back(&self, panicked: bool, nanos: u64) {
            let duration = Duration::from_nanos(nanos);
            contain(|| {
                if panicked {
                    event!(target: "dogpile", parent: &self.0, Level::WARN, ?duration, "panicked");
                } else {
                    event!(target: "dogpile", parent: &self.0, Level::DEBUG, ?duration, "abandoned");
                }
            });
        }

        pub(crate) fn fail(&self, error: &SharedError, nanos: u64) {
            let duration = Duration::from_nanos(nanos);
            contain(|| event!(target: "dogpile", parent: &self.0, Level::WARN, ?duration, %error, "failed"));
        }
    }

    /// A moment, to measure from.
    #[derive(Clone, Copy)]
    pub(crate) struct Moment(Instant);

    impl Moment {
        pub(crate) fn now() -> Self {
            Self(Instant::now())
        }
    }

    /// A build has waited for the write lock for a second, and goes on.
    pub(crate) fn write_lock_waits(cell: Option<&'static str>, readers: usize) {
        let cell = cell.unwrap_or_default();
        contain(
            || event!(target: "dogpile", Level::WARN, cell, readers, "the write lock waits for readers that have not left for a second"),
        );
    }

    /// The last reader of a value that was retired at `since` has left.
    pub(crate) fn drained(cell: Option<&'static str>, number: u64, since: Moment) {
        let duration = since.0.elapsed();
        let cell = cell.unwrap_or_default();
        contain(|| event!(target: "dogpile", parent: None, Level::DEBUG, cell, number, ?duration, "drained"));
    }

    /// A value's finalizer, which began at `since`, has ended.
    pub(crate) fn finalized(cell: Option<&'static str>, number: u64, since: Moment) {
        let duration = since.0.elapsed();
        let cell = cell.unwrap_or_default();
        contain(
            || event!(target: "dogpile", parent: None, Level::DEBUG, cell, number, ?duration, "finalized"),
        );
    }
}

#[cfg(not(feature = "tracing"))]
mod off {
    use super::{PublishOutcome, SharedError};

    pub(crate) struct Span;
    pub(crate) struct Inside;

    impl Span {
        pub(crate) const fn none() -> Self {
            Self
        }
        pub(crate) fn begin(
            _cell: Option<&'static str>,
            _cause: &'static str,
            _generation: u64,
            _supersedes: bool,
        ) -> Self {
            Self
        }
        pub(crate) fn enter(&self) -> Inside {
            Inside
        }
        pub(crate) fn end(&self, _outcome: PublishOutcome, _nanos: u64) {}
        pub(crate) fn give_back(&self, _panicked: bool, _nanos: u64) {}
        pub(crate) fn fail(&self, _error: &SharedError, _nanos: u64) {}
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Moment;

    impl Moment {
        pub(crate) fn now() -> Self {
            Self
        }
    }

    pub(crate) fn write_lock_waits(_cell: Option<&'static str>, _readers: usize) {}
    pub(crate) fn drained(_cell: Option<&'static str>, _generation: u64, _since: Moment) {}
    pub(crate) fn finalized(_cell: Option<&'static str>, _generation: u64, _since: Moment) {}
}

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{Inside, Moment, Span, drained, finalized, write_lock_waits};
#[cfg(feature = "tracing")]
pub(crate) use on::{Inside, Moment, Span, drained, finalized, write_lock_waits};
