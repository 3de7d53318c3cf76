//! The reads that may build, and the wait for the finalizer, for tasks.

use std::panic::Location;

use crate::cell::machine::Demand;
use crate::cell::{Turn, try_turn_async, turn_async};
use crate::clock::Clock;
use crate::error::RefreshError;

use super::{ReaderArc, SyncReaderCell, Writer};

/// Reads from async code (feature `async`). As those of [`DogpileCell`](crate::DogpileCell), with the old value's drain
/// awaited, not blocked on: a task that is elected under [`Drain::Wait`](crate::Drain::Wait) is suspended until the
/// readers have left. If it is dropped meanwhile, the drain goes on in the background.
///
/// The finalizer runs where it does without async, perhaps in the task that is elected: one that takes long belongs on a
/// thread for blocking work. So does a build that needs the write lock
/// ([`get_or_refresh_with`](SyncReaderCell::get_or_refresh_with)): it blocks until the readers have left.
///
/// # Deadlocks
///
/// A task that holds a [`ReaderArc`] or a [`ReadGuard`](crate::ReadGuard) while it waits for a build that needs the write
/// lock waits for itself. (A thread is told so where it holds a `ReadGuard`; among tasks it may be another one's.)
impl<T, C: Clock> SyncReaderCell<T, C> {
    /// As [`DogpileCell::get_or_refresh_async`](crate::DogpileCell::get_or_refresh_async).
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub fn get_or_refresh_async<F, Fut>(
        &self,
        build: F,
    ) -> impl Future<Output = ReaderArc<T>> + use<'_, T, C, F, Fut>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        let called = Location::caller();
        async move {
            match self.machine().serve() {
                Some(value) => ReaderArc(value),
                None => self.refresh_async(Demand::Value, "get_or_refresh_async", called, build).await,
            }
        }
    }

    /// As [`DogpileCell::try_get_or_refresh_async`](crate::DogpileCell::try_get_or_refresh_async).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn try_get_or_refresh_async<E, F, Fut>(&self, build: F) -> Result<ReaderArc<T>, RefreshError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        if let Some(value) = self.machine().serve() {
            return Ok(ReaderArc(value));
        }
        let held = match try_turn_async(self.machine()).await? {
            Turn::Served(value) => return Ok(ReaderArc(value)),
            Turn::Elected(held) => held,
        };
        let writer = Writer::new(&self.room, held);
        let result = match writer.held().run_async(build).await {
            Ok(value) => Ok(writer.publish_async(value, self.drain).await),
            Err(error) => Err(writer.fail(error)),
        };
        self.machine().or_instead(result).map(ReaderArc)
    }

    /// As [`DogpileCell::get_fresh_or_refresh_async`](crate::DogpileCell::get_fresh_or_refresh_async).
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub fn get_fresh_or_refresh_async<F, Fut>(
        &self,
        build: F,
    ) -> impl Future<Output = ReaderArc<T>> + use<'_, T, C, F, Fut>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        self.refresh_async(Demand::Fresh, "get_fresh_or_refresh_async", Location::caller(), build)
    }

    /// As [`synchronize`](SyncReaderCell::synchronize), for a task.
    ///
    /// # Deadlocks
    ///
    /// A task that holds a [`ReaderArc`] or a [`ReadGuard`](crate::ReadGuard) of a value that has been replaced waits for
    /// itself; so does a finalizer that blocks on it. Unlike [`synchronize`](SyncReaderCell::synchronize) it does not tell.
    pub async fn synchronize_async(&self) {
        self.room.synchronize_async(&self.machine().clock).await;
    }

    async fn refresh_async<F, Fut>(
        &self,
        demand: Demand,
        name: &str,
        called: &'static Location<'static>,
        build: F,
    ) -> ReaderArc<T>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        match turn_async(self.machine(), demand, name, called).await {
            Turn::Served(value) => ReaderArc(value),
            Turn::Elected(held) => {
                let writer = Writer::new(&self.room, held);
                let value = writer.held().run_async(build).await;
                ReaderArc(writer.publish_async(value, self.drain).await)
            }
        }
    }
}
