//! What is reported to `tracing`, where the feature is on.

use std::time::Duration;

use crate::store::StoreError;

/// A store's breaker has opened.
pub(crate) fn breaker_opened(name: &str, pause: Duration, writes: bool, error: &StoreError) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: "dogpile_fleet", name, ?pause, writes, %error, "the store is left alone");
    #[cfg(not(feature = "tracing"))]
    let _ = (name, pause, writes, error);
}

/// A store's breaker has closed.
pub(crate) fn breaker_closed(name: &str, writes: bool) {
    #[cfg(feature = "tracing")]
    tracing::info!(target: "dogpile_fleet", name, writes, "the store is used again");
    #[cfg(not(feature = "tracing"))]
    let _ = (name, writes);
}

/// The connection for hints is gone, and is made anew after a pause.
#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) fn hints_interrupted(pause: Duration, error: Option<&StoreError>) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: "dogpile_fleet", ?pause, error = error.map(tracing::field::display), "no hints for a while");
    #[cfg(not(feature = "tracing"))]
    let _ = (pause, error);
}

/// The store does not pass on hints.
pub(crate) fn hints_refused(name: &str, error: &StoreError) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: "dogpile_fleet", name, %error, "hints are refused: the node polls");
    #[cfg(not(feature = "tracing"))]
    let _ = (name, error);
}

/// An operation: its span is current while `run` runs, and has the error, if there is one.
pub(crate) fn operation<R>(
    operation: &'static str,
    name: &str,
    run: impl FnOnce() -> Result<R, StoreError>,
) -> Result<R, StoreError> {
    #[cfg(feature = "tracing")]
    {
        let span = tracing::debug_span!(
            target: "dogpile_fleet",
            "store",
            operation,
            name,
            error = tracing::field::Empty
        );
        let result = span.in_scope(run);
        if let Err(error) = &result {
            span.record("error", tracing::field::display(error));
        }
        result
    }
    #[cfg(not(feature = "tracing"))]
    {
        let _ = (operation, name);
        run()
    }
}
