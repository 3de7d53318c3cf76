//! What the code calls that `#[dogpile]` writes for a function with arguments.
//!
//! Whether the function returns a `Result` is decided as for a cell: `src/attribute.rs` of the crate `dogpile`.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;

use dogpile::__private::Returned;
use dogpile::{BoxError, Job, Policy, RefreshError};

use crate::DogpileMap;

#[cfg(feature = "async")]
use dogpile::{SharedError, Task};

/// A key that is made of arguments.
#[diagnostic::on_unimplemented(
    message = "the arguments are kept as a key, and `{Self}` cannot be one",
    label = "not `Hash + Eq + Clone + Send + Sync + 'static`",
    note = "derive what is missing; in place of a float, which is not `Eq`, take its bits, or a whole number of some unit"
)]
pub trait Key: Hash + Eq + Clone + Send + Sync + 'static {}

#[diagnostic::do_not_recommend]
impl<K: Hash + Eq + Clone + Send + Sync + 'static> Key for K {}

/// What a key is looked up by.
#[diagnostic::on_unimplemented(
    message = "the arguments are kept as a key, and `{Self}` cannot be one",
    label = "not `Hash + Eq + Clone + Send + Sync + 'static`",
    note = "derive what is missing; in place of a float, which is not `Eq`, take its bits, or a whole number of some unit"
)]
pub trait Asked<K>: Hash + Eq + ToOwned<Owned = K> {}

#[diagnostic::do_not_recommend]
impl<K: Borrow<Q>, Q: Hash + Eq + ToOwned<Owned = K> + ?Sized> Asked<K> for Q {}

/// Makes the map of a function.
#[must_use]
pub fn new<K: Key, T>(policy: Policy, max_entries: usize, name: &'static str) -> DogpileMap<K, T> {
    DogpileMap::builder(policy).max_entries(max_entries).name(name).build()
}

/// Resets it.
pub fn reset<K: Key, T>(map: &DogpileMap<K, T>) {
    map.reset();
}

/// What a function returns whose values a map keeps.
pub trait Keyed<const IS_RESULT: bool>: Returned<IS_RESULT> {
    /// A call of the function.
    fn read<K, Q>(
        map: &'static DogpileMap<K, Self::Value>,
        key: &Q,
        build: impl FnOnce(&K) -> Self,
    ) -> Self::Read
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized;

    /// The same; the build is handed to a spawner.
    fn read_spawned<K, Q>(
        map: &'static DogpileMap<K, Self::Value>,
        key: &Q,
        spawn: impl FnOnce(Job),
        build: impl FnOnce(&K) -> Self + Send + 'static,
    ) -> Self::Read
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized;

    /// A call of an `async` function.
    #[cfg(feature = "async")]
    fn read_async<K, Q>(
        map: &'static DogpileMap<K, Self::Value>,
        key: &Q,
        build: impl AsyncFnOnce(&K) -> Self,
    ) -> impl Future<Output = Self::Read>
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized;

    /// The same; the build is handed to a spawner.
    #[cfg(feature = "async")]
    fn read_spawned_async<K, Q, F>(
        map: &'static DogpileMap<K, Self::Value>,
        key: &Q,
        spawn: impl FnOnce(Task),
        build: impl FnOnce(K) -> F + Send + 'static,
    ) -> impl Future<Output = Self::Read>
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized,
        F: Future<Output = Self> + Send + 'static;
}

impl<T: Send + Sync + 'static> Keyed<false> for T {
    #[inline]
    #[track_caller]
    fn read<K, Q>(map: &'static DogpileMap<K, T>, key: &Q, build: impl FnOnce(&K) -> T) -> Arc<T>
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized,
    {
        map.get_or_refresh(key, build)
    }

    #[inline]
    #[track_caller]
    fn read_spawned<K, Q>(
        map: &'static DogpileMap<K, T>,
        key: &Q,
        spawn: impl FnOnce(Job),
        build: impl FnOnce(&K) -> T + Send + 'static,
    ) -> Arc<T>
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized,
    {
        map.request(key).spawn_with(spawn).get(build)
    }

    #[cfg(feature = "async")]
    async fn read_async<K, Q>(
        map: &'static DogpileMap<K, T>,
        key: &Q,
        build: impl AsyncFnOnce(&K) -> T,
    ) -> Arc<T>
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized,
    {
        map.get_or_refresh_async(key, build).await
    }

    #[cfg(feature = "async")]
    async fn read_spawned_async<K, Q, F>(
        map: &'static DogpileMap<K, T>,
        key: &Q,
        spawn: impl FnOnce(Task),
        build: impl FnOnce(K) -> F + Send + 'static,
    ) -> Arc<T>
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized,
        F: Future<Output = T> + Send + 'static,
    {
        map.request(key).spawn_with(spawn).get_async(build).await
    }
}

impl<T: Send + Sync + 'static, E: Into<BoxError> + 'static> Keyed<true> for Result<T, E>
where
    Self: Returned<true, Value = T, Read = Result<Arc<T>, RefreshError>>,
{
    #[inline]
    fn read<K, Q>(map: &'static DogpileMap<K, T>, key: &Q, build: impl FnOnce(&K) -> Self) -> Self::Read
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized,
    {
        map.try_get_or_refresh(key, build)
    }

    #[inline]
    fn read_spawned<K, Q>(
        map: &'static DogpileMap<K, T>,
        key: &Q,
        spawn: impl FnOnce(Job),
        build: impl FnOnce(&K) -> Self + Send + 'static,
    ) -> Self::Read
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized,
    {
        map.request(key).spawn_with(spawn).try_get(build)
    }

    #[cfg(feature = "async")]
    async fn read_async<K, Q>(
        map: &'static DogpileMap<K, T>,
        key: &Q,
        build: impl AsyncFnOnce(&K) -> Self,
    ) -> Self::Read
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized,
    {
        map.try_get_or_refresh_async(key, build).await
    }

    #[cfg(feature = "async")]
    async fn read_spawned_async<K, Q, F>(
        map: &'static DogpileMap<K, T>,
        key: &Q,
        spawn: impl FnOnce(Task),
        build: impl FnOnce(K) -> F + Send + 'static,
    ) -> Self::Read
    where
        K: Key + Borrow<Q>,
        Q: Asked<K> + ?Sized,
        F: Future<Output = Self> + Send + 'static,
    {
        // As the job's, the error is of a type that is `Send`.
        let build = |key| {
            let build = build(key);
            async { build.await.map_err(SharedError::new) }
        };
        map.request(key).spawn_with(spawn).try_get_async(build).await
    }
}
