//! What a request of a [`SyncReaderCell`] has besides: builds that may ask for the write lock.

use crate::cell::{Caller, Request, Term};
use crate::error::{BoxError, RefreshError, SharedError};
use crate::time::Clock;

use super::SyncReaderCell;
use super::reader::ReaderArc;
use super::writer::Writer;

impl<T: Send + Sync + 'static, C: Clock, S> Request<'_, T, C, SyncReaderCell<T, C>, S> {
    /// Drops `old` before the request looks at the cell, for a handle that is kept. See [`SyncReaderCell::exchange`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// let mut handle = cell.get_or_refresh(|| 1);
    /// handle = cell.request().no_cache().exchange(handle).get(|| 2);
    /// assert_eq!(*handle, 2);
    /// ```
    pub fn exchange(self, old: ReaderArc<T>) -> Self {
        drop(old);
        self
    }
}

/// Builds that may ask for the write lock.
impl<T: Send + Sync + 'static, C: Clock> Request<'_, T, C, SyncReaderCell<T, C>> {
    /// Returns the value, rebuilding it if need be with a build that may acquire the write lock.
    ///
    /// Use it for replacement in place (the same file name, one memory budget), where old and new value cannot coexist.
    /// Waits and builds until the conditions are met, as [`get`](Request::get) does. If the build panics while it holds
    /// the write lock, the old value is put back.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics, or if it calls this method on the same cell while there is no value to serve. Also
    /// panics if this thread holds a [`ReadGuard`](crate::ReadGuard) of the cell and would wait for a build that waits for the write
    /// lock.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// // One buffer, which must not be allocated twice.
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_empty: Vec<u32>| {});
    /// for round in 1..=2 {
    ///     let data = cell.request().no_cache().get_with_writer(|writer| {
    ///         let fresh = round * 100; // slow; stale readers go on reading
    ///         let mut lock = writer.acquire_write_lock(); // waits for them, holds new ones back
    ///         let mut buffer = lock.old().map(std::mem::take).unwrap_or_default();
    ///         buffer.clear();
    ///         buffer.push(fresh);
    ///         buffer
    ///     });
    ///     assert_eq!(*data, [round * 100]);
    /// }
    /// ```
    #[track_caller]
    pub fn get_with_writer<F>(self, build: F) -> ReaderArc<T>
    where
        F: FnOnce(&mut Writer<'_, T, C>) -> T,
    {
        let (search, _) = self.begin(Caller::Infallible);
        ReaderArc(search.get("get_with_writer", |held| {
            // Until the finalizer has run too, which must not wait for this build either.
            let _inside = held.inside();
            let (value, writer) = Writer::run(held, build);
            writer.publish(value, Term::POLICY)
        }))
    }

    /// Returns the value, rebuilding it if need be with a build that may fail and may acquire the write lock.
    ///
    /// If the build fails or panics while it holds the write lock, the old value is put back.
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: the caller's own build failed, or the build that it waited for, or the latest build
    ///   while a retry pause runs; and no value that meets the conditions is within the policy's
    ///   [`stale_if_error`](crate::Policy::stale_if_error).
    /// * [`RefreshError::WaitTimeout`]: the time of [`wait_at_most`](Request::wait_at_most) is over.
    /// * [`RefreshError::Reentrant`]: the caller would wait for itself. It called from inside the build of the same
    ///   cell while there was no value to serve, or it holds a [`ReadGuard`](crate::ReadGuard) that a build waits for which has asked for
    ///   the write lock.
    ///
    /// # Panics
    ///
    /// Panics if `build` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set(1);
    /// let result = cell.request().no_cache().try_get_with_writer(|writer| {
    ///     let mut lock = writer.acquire_write_lock();
    ///     assert_eq!(lock.old(), Some(&mut 1));
    ///     Err(io::Error::other("the disk is full"))
    /// });
    /// assert_eq!(result.unwrap_err().to_string(), "the disk is full");
    /// assert_eq!(*cell.get().unwrap(), 1);
    /// ```
    pub fn try_get_with_writer<E, F>(self, build: F) -> Result<ReaderArc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&mut Writer<'_, T, C>) -> Result<T, E>,
    {
        let (search, _) = self.begin(Caller::Fallible);
        let value = search.try_get(|held| {
            let _inside = held.inside();
            let (result, writer) = Writer::run(held, build);
            match result {
                Ok(value) => Ok(writer.publish(value, Term::POLICY)),
                Err(error) => Err(writer.fail(SharedError::new(error))),
            }
        });
        value.map(ReaderArc)
    }
}
