//! What a build is given, and what it has made.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dogpile::{BoxError, Refreshed};

use crate::policy::{FleetPolicy, Life};
use crate::store::Fence;

/// What a build is given: a reference to it, or, by [`FleetRefresher::spawn_async`](crate::FleetRefresher), the context itself.
///
/// # Examples
///
/// A conditional build, and a file beside the value that a builder which has been overtaken cannot overwrite:
///
/// ```
/// use dogpile::ManualClock;
/// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, MemoryStore, Plain, Refreshed};
/// use std::time::Duration;
///
/// fn download(context: &BuildContext<'_, String>) -> std::io::Result<Refreshed<String>> {
///     let not_modified = context.tag() == Some("v1"); // If-None-Match
///     if not_modified && context.previous().is_some() {
///         return Ok(Refreshed::NotModified);
///     }
///     let file = match context.fence() {
///         Some(fence) => format!("data.{fence}"),
///         None => format!("data.local-{}", std::process::id()),
///     };
///     // ... write the file ...
///     context.set_tag("v1");
///     Ok(Refreshed::New(file))
/// }
///
/// let (minute, clock) = (Duration::from_secs(60), ManualClock::new());
/// let store = MemoryStore::with_clock(clock.clone());
/// let file = FleetCell::with_clock("file", store, Plain, FleetPolicy::ttl(minute), clock.clone());
/// let first = file.try_get_with(download)?;
/// clock.advance(2 * minute);
/// assert_eq!(file.try_get_with(download)?, first, "it is not modified");
/// # Ok::<(), dogpile_fleet::RefreshError>(())
/// ```
pub struct BuildContext<'a, T> {
    fence: Option<Fence>,
    previous: Option<Arc<T>>,
    tag: Option<Cow<'a, str>>,
    lost: Arc<AtomicBool>,
    /// What the build has noted about its own value.
    set_tag: Arc<Mutex<Option<String>>>,
}

impl<'a, T> BuildContext<'a, T> {
    pub(crate) fn new(
        fence: Option<Fence>,
        previous: Option<&Arc<T>>,
        tag: Option<&'a str>,
        lost: &Arc<AtomicBool>,
    ) -> Self {
        let (previous, tag, lost) = (previous.cloned(), tag.map(Cow::Borrowed), Arc::clone(lost));
        Self { fence, previous, tag, lost, set_tag: Arc::default() }
    }

    /// The same context, for a build that keeps it: the tag that is set there is set here.
    #[cfg(feature = "async")]
    pub(crate) fn shared(&self) -> BuildContext<'static, T> {
        BuildContext {
            fence: self.fence,
            previous: self.previous.clone(),
            tag: self.tag.as_deref().map(|tag| Cow::Owned(tag.to_owned())),
            lost: Arc::clone(&self.lost),
            set_tag: Arc::clone(&self.set_tag),
        }
    }
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
    pub fn previous(&self) -> Option<Arc<T>> {
        self.previous.clone()
    }

    /// The tag of the previous value, as its build has [set](BuildContext::set_tag) it.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Stores `tag` with the value that this build returns, for the next build: an `ETag`, for instance. The last call counts.
    ///
    /// A new value without a call has no tag. With [`Refreshed::NotModified`] the previous value keeps its tag. If the build sets
    /// another one, the value is stored once more with it.
    pub fn set_tag(&self, tag: impl Into<String>) {
        let tag = Some(tag.into());
        *self.set_tag.lock().unwrap_or_else(PoisonError::into_inner) = tag;
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
    /// What the build has made, or its error.
    pub(crate) fn made<E: Into<BoxError>>(
        &self,
        result: Result<Refreshed<T>, E>,
    ) -> Result<Made<T>, BoxError> {
        let new = |value, ttl, age| Made { value: Arc::new(value), ttl, age, tag: None, is_unchanged: false };
        let made = match result.map_err(Into::into)? {
            Refreshed::New(value) => new(value, None, Duration::ZERO),
            Refreshed::NewFor(value, ttl) => new(value, Some(ttl), Duration::ZERO),
            Refreshed::Aged { value, age, ttl } => new(value, ttl, age),
            // `NotModified`.
            _ => {
                let nothing = "the build returned NotModified, but there is no previous value";
                let value = self.previous().ok_or(nothing)?;
                Made { value, ttl: None, age: Duration::ZERO, tag: None, is_unchanged: true }
            }
        };
        let tag = self.set_tag.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Made { tag, ..made })
    }
}

/// What a build has made.
pub(crate) struct Made<T> {
    pub(crate) value: Arc<T>,
    /// A time to live of its own.
    ttl: Option<Duration>,
    /// How old it is already.
    age: Duration,
    /// What the build has noted.
    tag: Option<String>,
    /// It is the previous value.
    pub(crate) is_unchanged: bool,
}

impl<T> Made<T> {
    pub(crate) fn life(&self, policy: &FleetPolicy) -> Life {
        policy.life(self.ttl.unwrap_or(policy.ttl), self.age)
    }

    /// The tag to be stored with the value; `Err` if the store has both already, the value with the tag `stored`.
    pub(crate) fn tag_to_store(
        &mut self,
        has_value: bool,
        stored: Option<&str>,
    ) -> Result<Option<String>, IsStored> {
        let tag = self.tag.take();
        let is_kept = tag.is_none() || tag.as_deref() == stored;
        if self.is_unchanged && has_value && is_kept { Err(IsStored) } else { Ok(tag) }
    }
}

/// The store has the value of a build already, with its tag.
pub(crate) struct IsStored;

impl<T> fmt::Debug for BuildContext<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildContext")
            .field("fence", &self.fence)
            .field("tag", &self.tag)
            .finish_non_exhaustive()
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
