//! Warnings (feature `tracing`); without the feature they are dropped.

/// A warning of this crate. `path` is what it is about.
pub(crate) fn warn(path: &std::path::Path, message: &str) {
    #[cfg(feature = "tracing")]
    tracing::warn!(path = %path.display(), "{message}");
    #[cfg(not(feature = "tracing"))]
    let _ = (path, message);
}
