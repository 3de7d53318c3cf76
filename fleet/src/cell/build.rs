//! What a build is given, and what it returns.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::store::Fence;

/// What a build is given.
///
/// # Examples
///
/// A conditional build, and a file beside the value that a builder which has been overtaken cannot overwrite:
///
/// ```
/// use dogpile_fleet::{BuildContext, Built};
///
/// fn download(context: &BuildContext<'_, String>) -> std::io::Result<Built<String>> {
///     let not_modified = context.tag() == Some("v1"); // If-None-Match
///     if not_modified && context.previous().is_some() {
///         return Ok(Built::Unchanged);
///     }
///     let file = match context.fence() {
///         Some(fence) => format!("data.{fence}"),
///         None => format!("data.local-{}", std::process::id()),
///     };
///     // ... write the file ...
///     Ok(Built::New { value: file, tag: Some("v1".to_owned()) })
/// }
/// # let _ = download;
/// ```
pub struct BuildContext<'a, T> {
    pub(crate) fence: Option<Fence>,
    pub(crate) previous: Option<&'a Arc<T>>,
    pub(crate) tag: Option<&'a str>,
    pub(crate) lost: &'a AtomicBool,
}

impl<T> BuildContext<'_, T> {
    /// The fence of this build, for the names of what it makes outside of the cell. No other build of the fleet has the
    /// same. `None` if the store takes no part in the build.
    #[must_use]
    pub fn fence(&self) -> Option<Fence> {
        self.fence
    }

    /// The value that the build is to replace, fresh or not.
    #[must_use]
    pub fn previous(&self) -> Option<&Arc<T>> {
        self.previous
    }

    /// What the builder of the previous value noted about it.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag
    }

    /// Whether it is known already that the result will not be accepted: the value has been invalidated since, or another
    /// node was elected. A long build may look now and then, and give up.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        // Relaxed: it carries nothing but itself.
        self.lost.load(Ordering::Relaxed)
    }
}

impl<T> BuildContext<'_, T> {
    /// A result that makes no sense is the build's mistake.
    pub(crate) fn check<E>(&self, result: &Result<Built<T>, E>) {
        assert!(
            !matches!(result, Ok(Built::Unchanged)) || self.previous.is_some(),
            "a build returned `Built::Unchanged` though there was no previous value; look at `BuildContext::previous` first"
        );
    }
}

impl<T> fmt::Debug for BuildContext<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildContext")
            .field("fence", &self.fence)
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

/// What a build returns.
#[derive(Debug)]
pub enum Built<T> {
    /// A value.
    New {
        /// The value.
        value: T,
        /// A note for the next builder, such as an `ETag`.
        tag: Option<String>,
    },
    /// The previous value is still right. Without a previous value the build counts as failed by a panic.
    Unchanged,
}

impl<T> From<T> for Built<T> {
    fn from(value: T) -> Self {
        Self::New { value, tag: None }
    }
}

thread_local! {
    /// The cells that are being built on this thread, by address.
    static BUILDING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// As long as it lives, the cell counts as being built on this thread.
pub(crate) struct Building(());

impl Building {
    pub(crate) fn of(cell: usize) -> Self {
        BUILDING.with_borrow_mut(|building| building.push(cell));
        Self(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        BUILDING.with_borrow_mut(Vec::pop);
    }
}

pub(crate) fn is_building(cell: usize) -> bool {
    BUILDING.with_borrow(|building| building.contains(&cell))
}
