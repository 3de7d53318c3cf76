//! Invalidations and checks for tasks, on any executor.
//!
//! No thread of the executor waits for the store: a job of the [pool](super::pool) does, and goes on when its task has been dropped.
//! (Where no thread can be started, the job runs in the caller.)

use std::sync::Arc;

use dogpile::Clock;

use super::FleetKeys;
use super::owed::Delivering;
use crate::access::Operation;
use crate::cell::reply::reply;
use crate::store::{Invalidation, StoreError};

impl<T, C> FleetKeys<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// As [`invalidate`](FleetKeys::invalidate), for tasks.
    ///
    /// # Cancel safety
    ///
    /// Once the future has been polled, the invalidation goes on, also if the future is dropped. If it fails then, it is delivered
    /// as one that [`invalidate`](FleetKeys::invalidate) has returned an error for.
    ///
    /// # Errors
    ///
    /// As for [`invalidate`](FleetKeys::invalidate); at once, if the store has failed a moment ago and is left alone.
    ///
    /// # Panics
    ///
    /// If the store panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, policy);
    /// keys.load_async("7", None, async || Ok::<_, &str>(String::from("old"))).await?;
    ///
    /// // After the change of the source:
    /// keys.invalidate_async("7").await?;
    /// keys.load_async("7", None, async || Ok::<_, &str>(String::from("new"))).await?;
    /// assert_eq!(keys.stats().fleet_builds, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn invalidate_async(&self, key: &str) -> Result<(), Arc<StoreError>> {
        self.invalidate_by_thread(key, Invalidation::Soft).await
    }

    /// As [`clear`](FleetKeys::clear), for tasks.
    ///
    /// # Cancel safety
    ///
    /// As for [`invalidate_async`](FleetKeys::invalidate_async).
    ///
    /// # Errors
    ///
    /// As for [`invalidate`](FleetKeys::invalidate).
    ///
    /// # Panics
    ///
    /// If the store panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain, Refreshed};
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let keys = FleetKeys::new("users", MemoryStore::new(), Plain, policy);
    /// keys.load_async("7", None, async || Ok::<_, &str>(String::from("old"))).await?;
    ///
    /// keys.clear_async("7").await?;
    /// let build = async |context: &dogpile_fleet::BuildContext<'_, String>| {
    ///     assert!(context.previous().is_none());
    ///     Ok::<_, &str>(Refreshed::New(String::from("new")))
    /// };
    /// keys.load_with_async("7", None, build).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn clear_async(&self, key: &str) -> Result<(), Arc<StoreError>> {
        self.invalidate_by_thread(key, Invalidation::Hard).await
    }

    /// As [`check`](FleetKeys::check), for tasks.
    ///
    /// # Errors
    ///
    /// What the store or the system has said.
    ///
    /// # Panics
    ///
    /// If the store panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetKeys, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// # futures_lite::future::block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let keys: FleetKeys<String> = FleetKeys::new("users", MemoryStore::new(), Plain, policy);
    /// assert!(keys.check_async().await.is_ok());
    /// # });
    /// ```
    pub async fn check_async(&self) -> Result<(), Arc<StoreError>> {
        let name = self.shared.name_of("check")?;
        let shared = Arc::clone(&self.shared);
        let check = move || shared.access.run(Operation::Check, &name, |store, name| store.check(name));
        self.by_thread(check).await
    }

    async fn invalidate_by_thread(&self, key: &str, how: Invalidation) -> Result<(), Arc<StoreError>> {
        // Here, so that what this task asks for after it is awaited comes after it. If this future is dropped before, the job goes on
        // delivering, and what is asked for meanwhile may overtake it.
        let delivering = Delivering::begin(&self.shared, &self.beats, key, how)?;
        self.by_thread(|| delivering.run_soon()).await
    }

    async fn by_thread<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        let (reply, awaited) = reply();
        self.shared.pool.submit(Box::new(move || drop(reply.send(job()))));
        match (&awaited).await {
            Some(result) => result,
            None => panic!("the store has panicked on a thread of the loader: see its message"),
        }
    }
}
