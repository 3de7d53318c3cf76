//! What can go wrong.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Why there is no value to return.
#[derive(Debug)]
#[non_exhaustive]
pub enum FleetError<E> {
    /// The caller's own build failed, or that of this process for which it waited.
    Build(Arc<E>),
    /// The latest build, here or on another node, has failed, and the pause after it runs.
    Backoff {
        /// How long it goes on.
        left: Duration,
    },
    /// Called from inside the build of the same cell, with nothing to serve.
    Reentrant,
}

impl<E> Clone for FleetError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Build(error) => Self::Build(Arc::clone(error)),
            Self::Backoff { left } => Self::Backoff { left: *left },
            Self::Reentrant => Self::Reentrant,
        }
    }
}

impl<E> fmt::Display for FleetError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build(_) => f.write_str("the build of the value failed"),
            Self::Backoff { left } => {
                write!(f, "the build of the value failed a moment ago, and is not tried again for {left:?}")
            }
            Self::Reentrant => {
                f.write_str("the caller would wait for itself, as it is inside the build of the same cell")
            }
        }
    }
}

impl<E: Error + 'static> Error for FleetError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Build(error) => Some(&**error),
            Self::Backoff { .. } | Self::Reentrant => None,
        }
    }
}
