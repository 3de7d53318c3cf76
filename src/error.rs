//! What can go wrong, and errors that are shared by those who waited for the same build.

use std::any::{Any, type_name};
use std::error::Error;
use std::fmt;

use crate::sync::Arc;

/// Why there is no value to return.
///
/// `E` is the error of the build. It reaches the caller that built and those who waited for that build, all
/// as the same [`Arc`].
#[derive(Debug)]
#[non_exhaustive]
pub enum RefreshError<E> {
    /// The build failed, and there is no value that may be served instead.
    Build(Arc<E>),
    /// There is nothing to serve, somebody else builds, and the wait for that build took longer than allowed.
    WaitTimeout,
    /// There is nothing to serve, and the caller would have waited for itself: it was called from inside the build of
    /// the same cell, or by a thread that holds a `ReadGuard` for which a build that has asked for the write lock
    /// waits.
    Reentrant,
}

impl<E> Clone for RefreshError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Build(error) => Self::Build(Arc::clone(error)),
            Self::WaitTimeout => Self::WaitTimeout,
            Self::Reentrant => Self::Reentrant,
        }
    }
}

impl<E> fmt::Display for RefreshError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Build(_) => "the build of the value failed",
            Self::WaitTimeout => "the value was not built within the time allowed for waiting",
            Self::Reentrant => {
                "the caller would wait for itself, as it is inside the build of the same cell or holds a guard that the \
                 build waits for"
            }
        })
    }
}

impl<E: Error + 'static> Error for RefreshError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Build(error) => Some(&**error),
            Self::WaitTimeout | Self::Reentrant => None,
        }
    }
}

/// The error of a failed build, shared by everybody who waited for that build, its type erased.
///
/// One cell may be built by callers whose builds fail with different types; whoever gets a `SharedError` asks
/// for the type it knows with [`downcast`](SharedError::downcast).
#[derive(Clone)]
pub struct SharedError(Arc<dyn Named>);

/// Any type, with its name.
trait Named: Any + Send + Sync {
    fn type_name(&self) -> &'static str;
}

impl<E: Any + Send + Sync> Named for E {
    fn type_name(&self) -> &'static str {
        type_name::<E>()
    }
}

impl SharedError {
    pub(crate) fn new<E: Send + Sync + 'static>(error: Arc<E>) -> Self {
        Self(error)
    }

    /// The error itself, if it is an `E`.
    ///
    /// # Errors
    ///
    /// The `SharedError` back, if it is of another type.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Lookup, Waited};
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::<u32>::new(Duration::from_secs(60));
    /// let Lookup::Elected(lease) = cell.lookup() else { unreachable!() };
    /// let Lookup::Pending(pending) = cell.lookup() else { unreachable!() };
    /// lease.fail("no route to host");
    ///
    /// let Waited::Failed(error) = pending.wait() else { unreachable!() };
    /// let error = error.downcast::<std::io::Error>().unwrap_err();
    /// assert_eq!(*error.downcast::<&str>().unwrap(), "no route to host");
    /// ```
    pub fn downcast<E: Send + Sync + 'static>(self) -> Result<Arc<E>, Self> {
        if !self.is::<E>() {
            return Err(self);
        }
        let error: Arc<dyn Any + Send + Sync> = self.0;
        Ok(error.downcast().unwrap_or_else(|_| unreachable!("its type has just been looked at")))
    }

    /// Whether the error is an `E`.
    #[must_use]
    pub fn is<E: 'static>(&self) -> bool {
        (&*self.0 as &dyn Any).is::<E>()
    }
}

impl fmt::Debug for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedError").field("type", &(*self.0).type_name()).finish_non_exhaustive()
    }
}
