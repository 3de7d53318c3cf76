//! A cell that keeps its build.

use std::fmt;
use std::time::Duration;

use crate::cell::{DogpileCell, Guard, Reader};
use crate::clock::{Clock, SystemClock};
use crate::policy::Policy;
use crate::sync::{Arc, const_fn};

/// A [`DogpileCell`] that keeps its build closure: what `once_cell::sync::Lazy` is to `OnceCell`.
///
/// # Examples
///
/// ```
/// use dogpile::LazyDogpile;
/// use std::time::Duration;
///
/// struct Rates(f64);
///
/// fn download_rates() -> Rates {
///     Rates(1.07) // slow
/// }
///
/// static RATES: LazyDogpile<Rates> = LazyDogpile::new(Duration::from_secs(60), download_rates);
///
/// assert_eq!(RATES.get().0, 1.07);
/// ```
pub struct LazyDogpile<T, F = fn() -> T, C = SystemClock> {
    cell: DogpileCell<T, C>,
    build: F,
}

impl<T, F> LazyDogpile<T, F> {
    const_fn! {
        /// A cell whose values are made by `build` and are fresh for `ttl`. See [`DogpileCell::new`].
        #[must_use]
        pub const fn new(ttl: Duration, build: F) -> Self {
            Self::with_policy(Policy::ttl(ttl), build)
        }
    }

    const_fn! {
        /// A cell whose values are made by `build`, with a policy.
        #[must_use]
        pub const fn with_policy(policy: Policy, build: F) -> Self {
            Self::with_clock(policy, SystemClock, build)
        }
    }
}

impl<T, F, C> LazyDogpile<T, F, C> {
    const_fn! {
        /// A cell whose values are made by `build`, with a policy and a clock.
        #[must_use]
        pub const fn with_clock(policy: Policy, clock: C, build: F) -> Self {
            Self { cell: DogpileCell::with_clock(policy, clock), build }
        }
    }

    /// As [`DogpileCell::named`].
    ///
    /// # Examples
    ///
    /// In a `static` the type of the build must be spelled out, since it is not inferred through this call:
    /// `<LazyDogpile<u32>>::new(..)`, or `download_limit as fn() -> u32`.
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// fn download_limit() -> u32 {
    ///     7
    /// }
    ///
    /// static LIMIT: LazyDogpile<u32> =
    ///     <LazyDogpile<u32>>::new(Duration::from_secs(60), download_limit).named("limit");
    ///
    /// assert_eq!(*LIMIT.get(), 7);
    /// ```
    #[must_use]
    pub const fn named(self, name: &'static str) -> Self {
        let mut this = self;
        this.cell.machine_mut().name = Some(name);
        this
    }

    /// The cell, for everything that does not build.
    #[must_use]
    pub const fn cell(&self) -> &DogpileCell<T, C> {
        &self.cell
    }

    /// A handle for a thread that reads the value very often: it keeps it at hand.
    #[must_use]
    pub fn reader(&self) -> LazyReader<'_, T, F, C> {
        LazyReader { reader: self.cell.reader(), build: &self.build }
    }
}

impl<T, F: Fn() -> T, C: Clock> LazyDogpile<T, F, C> {
    /// The value, built if need be. See [`DogpileCell::get_or_refresh`].
    ///
    /// # Panics
    ///
    /// As there: if the build panics, or calls `get` on the same cell while there is nothing to serve.
    #[inline]
    #[track_caller]
    pub fn get(&self) -> Arc<T> {
        self.cell.get_or_refresh(&self.build)
    }

    /// As [`get`](LazyDogpile::get), but touches no reference count if there is a value that may be served. See
    /// [`DogpileCell::load_or_refresh`].
    ///
    /// # Panics
    ///
    /// As there.
    #[inline]
    #[track_caller]
    pub fn load(&self) -> Guard<'_, T> {
        self.cell.load_or_refresh(&self.build)
    }
}

/// With a build that is a future (feature `async`).
#[cfg(feature = "async")]
impl<T, F, Fut, C> LazyDogpile<T, F, C>
where
    F: Fn() -> Fut,
    Fut: Future<Output = T>,
    C: Clock,
{
    /// The value, built if need be. See [`DogpileCell::get_or_refresh_async`].
    ///
    /// # Panics
    ///
    /// As there.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::pin::Pin;
    /// use std::time::Duration;
    ///
    /// type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
    ///
    /// async fn download_limit() -> u32 {
    ///     7
    /// }
    ///
    /// static LIMIT: LazyDogpile<u32, fn() -> Boxed<u32>> =
    ///     LazyDogpile::new(Duration::from_secs(60), || Box::pin(download_limit()));
    ///
    /// # futures_lite::future::block_on(async {
    /// assert_eq!(*LIMIT.get_async().await, 7);
    /// # });
    /// ```
    #[track_caller]
    pub fn get_async(&self) -> impl Future<Output = Arc<T>> + use<'_, T, F, Fut, C> {
        self.cell.get_or_refresh_async(&self.build)
    }
}

impl<T, F, C> fmt::Debug for LazyDogpile<T, F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyDogpile").field("cell", &self.cell).finish_non_exhaustive()
    }
}

/// A [`Reader`] that knows its build. Made by [`LazyDogpile::reader`].
///
/// # Examples
///
/// ```
/// use dogpile::LazyDogpile;
/// use std::time::Duration;
///
/// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
///
/// let mut limit = LIMIT.reader();
/// assert_eq!(**limit.get(), 7);
/// assert_eq!(**limit.get(), 7);
/// ```
pub struct LazyReader<'a, T, F = fn() -> T, C = SystemClock> {
    reader: Reader<'a, T, C>,
    build: &'a F,
}

impl<T, F: Fn() -> T, C: Clock> LazyReader<'_, T, F, C> {
    /// The value, built if need be.
    ///
    /// # Panics
    ///
    /// As [`LazyDogpile::get`].
    #[inline]
    #[track_caller]
    pub fn get(&mut self) -> &Arc<T> {
        self.reader.get_or_refresh(self.build)
    }

    /// Lets go of the value that the handle keeps. See [`Reader::release`].
    pub fn release(&mut self) {
        self.reader.release();
    }
}

impl<T, F, C> fmt::Debug for LazyReader<'_, T, F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyReader").field("reader", &self.reader).finish_non_exhaustive()
    }
}
