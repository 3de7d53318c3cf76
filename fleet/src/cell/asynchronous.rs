//! The same for tasks, on any executor.
//!
//! No task is kept waiting by the store in a way that blocks its thread: what talks to the store is done by the worker,
//! and the task waits for its reply. A future that is dropped gives back what it holds at that point: its place among
//! the waiters, the right to build, or both leases.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use dogpile::{BoxError, Clock, RefreshError, Refreshed};

use super::FleetCell;
use super::build::BuildContext;
use super::job::Job;
use super::node::Caller;
use super::reply::Reply;
use crate::store::{Invalidation, StoreError};

impl<T, C> FleetCell<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// As [`get_or_refresh`](FleetCell::get_or_refresh), for tasks and with a build that is a future.
    ///
    /// Tasks and threads share the cell. A task that is elected waits for the store's answer as a thread does: for the policy's
    /// [`patience`](crate::FleetPolicy::patience) if there is an old value to serve, and else until the store's timeout.
    ///
    /// # Panics
    ///
    /// If `build` panics, or if this is awaited inside the build of the same cell while there is nothing to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// let value = page.get_or_refresh_async(|| async { String::from("<html>") }).await;
    /// assert_eq!(*value, "<html>");
    /// # });
    /// ```
    pub async fn get_or_refresh_async<F, B>(&self, build: F) -> Arc<T>
    where
        F: FnOnce() -> B,
        B: Future<Output = T>,
    {
        if let Some(value) = self.local.get_unless_due() {
            return value;
        }
        let build = async |_: &BuildContext<'_, T>| Ok::<_, Infallible>(build().await.into());
        match self.node.search_async(Caller::Insists, build).await {
            Ok(value) => value,
            Err(RefreshError::Reentrant) => panic!(
                "get_or_refresh_async was awaited inside the build of the same cell, which must not wait for a value of \
                 that cell; inside a build use `get`, or `try_get_or_refresh_async`, which returns \
                 `RefreshError::Reentrant`"
            ),
            Err(_) => unreachable!("a caller that has to return a value gets no error of a build"),
        }
    }

    /// As [`try_get_or_refresh`](FleetCell::try_get_or_refresh), for tasks and with a build that is a future.
    ///
    /// # Errors
    ///
    /// Those of [`try_get_or_refresh`](FleetCell::try_get_or_refresh).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain, RefreshError};
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// let download = || async { Ok::<_, std::io::Error>(String::from("<html>")) };
    /// assert_eq!(*page.try_get_or_refresh_async(download).await?, "<html>");
    /// # Ok::<(), RefreshError>(())
    /// # }).unwrap();
    /// ```
    pub async fn try_get_or_refresh_async<E, F, B>(&self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce() -> B,
        B: Future<Output = Result<T, E>>,
    {
        self.try_get_with_async(async |_: &BuildContext<'_, T>| build().await.map(Refreshed::New)).await
    }

    /// As [`try_get_with`](FleetCell::try_get_with), for tasks and with a build that is a future.
    ///
    /// # Errors
    ///
    /// Those of [`try_get_or_refresh`](FleetCell::try_get_or_refresh).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, MemoryStore, Plain, RefreshError, Refreshed};
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// let build = async |context: &BuildContext<'_, String>| match context.previous() {
    ///     Some(_) => Ok(Refreshed::NotModified),
    ///     None => Ok::<_, std::io::Error>(String::from("<html>").into()),
    /// };
    /// assert_eq!(*page.try_get_with_async(build).await?, "<html>");
    /// # Ok::<(), RefreshError>(())
    /// # }).unwrap();
    /// ```
    pub async fn try_get_with_async<E, F>(&self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: AsyncFnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        match self.local.get_unless_due() {
            Some(value) => Ok(value),
            None => self.node.search_async(Caller::Tries, build).await,
        }
    }

    /// As [`invalidate`](FleetCell::invalidate), for tasks. Once begun it goes on, also if the future is dropped.
    ///
    /// # Errors
    ///
    /// If the store could not be told, or has failed a moment ago and is left alone. This node's value is stale all the same, and the
    /// invalidation is not forgotten, as with [`invalidate`](FleetCell::invalidate).
    pub async fn invalidate_async(&self) -> Result<(), Arc<StoreError>> {
        self.by_worker(|reply| Job::Invalidate(Invalidation::Soft, reply)).await
    }

    /// As [`clear`](FleetCell::clear), for tasks. Once begun it goes on, also if the future is dropped.
    ///
    /// # Errors
    ///
    /// If the store could not be told, or has failed a moment ago and is left alone. This node's value is gone all the same; else as
    /// for [`invalidate_async`](FleetCell::invalidate_async).
    pub async fn clear_async(&self) -> Result<(), Arc<StoreError>> {
        self.by_worker(|reply| Job::Invalidate(Invalidation::Hard, reply)).await
    }

    /// As [`check`](FleetCell::check), for tasks.
    ///
    /// # Errors
    ///
    /// What the store or the system has said.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page: FleetCell<String> = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// page.check_async().await?;
    /// # Ok::<(), std::sync::Arc<dogpile_fleet::StoreError>>(())
    /// # }).unwrap();
    /// ```
    pub async fn check_async(&self) -> Result<(), Arc<StoreError>> {
        self.by_worker(Job::Check).await
    }

    async fn by_worker<R>(&self, job: impl FnOnce(Reply<R>) -> Job<T, C>) -> R {
        let awaited = self.node.hand_over(job);
        match (&awaited).await {
            Some(result) => result,
            None => panic!("the cell's worker has panicked: see its message"),
        }
    }
}
