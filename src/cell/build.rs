//! Builds: what runs while the lease is held, in the caller or in a spawner's job.

use std::time::Duration;

use crate::error::{BoxError, RefreshError, SharedError};
use crate::sync::{Arc, OnceCell};
use crate::time::nanos;

use super::handle::{Handle, Kind};
use super::lease::Held;
use super::publish::Term;
use super::search::{Caller, Search, Started};

#[cfg(feature = "async")]
use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::{Pin, pin},
    task::Poll,
};

/// The result of a conditional build.
///
/// [`Request::try_get_with`](crate::Request::try_get_with) and [`Refresher`](crate::Refresher) take builds that return
/// it.
///
/// # Examples
///
/// ```
/// use dogpile::Refreshed;
///
/// assert_eq!(Refreshed::from(7), Refreshed::New(7));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refreshed<T> {
    /// A new value.
    New(T),
    /// A new value with a time to live of its own. See [`Lease::publish_for`](crate::Lease::publish_for).
    NewFor(T, Duration),
    /// A new value that is not of now: a cache or a replica has returned it, with its age.
    ///
    /// The age counts, as in [`DogpileCell::restore`](crate::DogpileCell::restore): such a value is fresh, stale or expired
    /// that much earlier. The caller that ran the build is served it in any case. Callers that wait for the build are served
    /// it if it meets their conditions and has not expired; else they look again, and one of them builds. So a request whose
    /// [`max_age`](crate::Request::max_age) is less than the ages that the source returns is a build for each call.
    ///
    /// # Examples
    ///
    /// The `Age` and the `max-age` of an HTTP response, in seconds:
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refreshed};
    /// use std::time::Duration;
    ///
    /// let (age, max_age) = (Duration::from_secs(40), Duration::from_secs(300));
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.request().try_get_with(|_| {
    ///     Ok::<_, String>(Refreshed::Aged { value: "page", age, ttl: Some(max_age) })
    /// })?;
    /// let seen = cell.snapshot().unwrap();
    /// assert!(seen.age >= age && seen.fresh_for <= max_age - age);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    Aged {
        /// The value.
        value: T,
        /// How long ago it was made, when the build ends.
        age: Duration,
        /// Its own time to live, counted from when it was made. `None`: the policy's.
        ttl: Option<Duration>,
    },
    /// The previous value is still right, and counts as fresh again. See [`Lease::renew`](crate::Lease::renew).
    NotModified,
}

impl<T> From<T> for Refreshed<T> {
    fn from(value: T) -> Self {
        Self::New(value)
    }
}

/// What the build of a [`Refresher`](crate::Refresher) may return: a value, a [`Refreshed`], or a `Result` of one of
/// them.
///
/// The parameter `FALLIBLE` is inferred. It only keeps the implementations apart.
#[diagnostic::on_unimplemented(
    message = "a build cannot return `{Self}`",
    label = "neither the cell's value, nor a `Refreshed` of it, nor a `Result` of one of them",
    note = "the error of a `Result` must be `Into<Box<dyn Error + Send + Sync>>`"
)]
pub trait BuildResult<T, const FALLIBLE: bool> {
    #[doc(hidden)]
    fn into_result(self) -> Result<Refreshed<T>, BoxError>;
}

impl<T, R: Into<Refreshed<T>>> BuildResult<T, false> for R {
    fn into_result(self) -> Result<Refreshed<T>, BoxError> {
        Ok(self.into())
    }
}

impl<T, R: Into<Refreshed<T>>, E: Into<BoxError>> BuildResult<T, true> for Result<R, E> {
    fn into_result(self) -> Result<Refreshed<T>, BoxError> {
        self.map(Into::into).map_err(Into::into)
    }
}

/// The cells that a thread or a task other than the caller's can use.
///
/// These are [`DogpileCell`](crate::DogpileCell), [`LazyDogpile`](crate::LazyDogpile) and
/// [`SyncReaderCell`](crate::SyncReaderCell), if their value is `Send + Sync + 'static`.
///
/// This trait is sealed: no other type can implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a cell that a thread or a task of its own can use",
    label = "neither a `DogpileCell`, nor a `LazyDogpile`, nor a `SyncReaderCell`, of a value that is `Send + Sync + 'static`",
    note = "of a cell in a `static` pass `&CELL`, in a `Lazy` or `LazyLock` `&*CELL`, in an `Arc` `&cell`"
)]
pub trait Refreshable:
    Kind<Stored: Send + Sync, Shared: Send, Value: Send, Clock: 'static> + Send + Sync + 'static
{
}

impl<K> Refreshable for K where
    K: Kind<Stored: Send + Sync, Shared: Send, Value: Send, Clock: 'static> + Send + Sync + 'static
{
}

impl<K: Kind> Held<'_, K> {
    /// Runs `build` and publishes what it returns. If it panics, the lease is given back.
    pub(crate) fn build(mut self, build: impl FnOnce() -> K::Value) -> Arc<K::Stored> {
        let value = self.run(build);
        K::publish(self, value, Term::POLICY)
    }

    /// Runs `build` and publishes what it returns, or fails with its error.
    pub(crate) fn try_build<E: Into<BoxError>>(
        mut self,
        build: impl FnOnce() -> Result<K::Value, E>,
    ) -> Result<Arc<K::Stored>, SharedError> {
        // The conversion of the error is user code too, which may ask the cell.
        let found = self.run(|| build().map(Refreshed::New).map_err(SharedError::new));
        self.end(found, None, K::publish)
    }

    /// As [`try_build`](Held::try_build), with a build that is given the previous value.
    pub(crate) fn try_build_with<E: Into<BoxError>>(
        mut self,
        build: impl FnOnce(Option<K::Shared>) -> Result<Refreshed<K::Value>, E>,
    ) -> Result<Arc<K::Stored>, SharedError> {
        let previous = self.replaceable();
        let given = previous.clone().map(K::share);
        let found = self.run(|| build(given).map_err(SharedError::new));
        self.end(found, previous, K::publish)
    }

    /// The previous value, for a build that may keep it.
    fn replaceable(&self) -> Option<Arc<K::Stored>> {
        if K::LEASE_KEEPS_PREVIOUS { self.previous().cloned() } else { self.machine().stored() }
    }

    /// Ends the build with what it has found. `previous`: what is published again if that is `NotModified`.
    fn end<P: From<Arc<K::Stored>>>(
        self,
        found: Result<Refreshed<K::Value>, SharedError>,
        previous: Option<Arc<K::Stored>>,
        publish: impl FnOnce(Self, K::Value, Term) -> P,
    ) -> Result<P, SharedError> {
        let (value, term) = match found {
            Ok(Refreshed::New(value)) => (value, Term::POLICY),
            Ok(Refreshed::NewFor(value, ttl)) => (value, Term::of(Some(ttl))),
            Ok(Refreshed::Aged { value, age, ttl }) => (value, Term { age: nanos(age), ..Term::of(ttl) }),
            Ok(Refreshed::NotModified) => {
                return match previous {
                    Some(previous) => Ok(self.publish_again(previous, Term::POLICY).into()),
                    None => Err(self.fail(SharedError::new(
                        "the build returned NotModified, but there is no previous value",
                    ))),
                };
            }
            Err(error) => return Err(self.fail(error)),
        };
        // It may count as a reader, for which the publication would wait.
        drop(previous);
        Ok(publish(self, value, term))
    }
}

/// Reads without conditions that have found nothing to serve at once.
impl<'a, K: Kind> Search<'a, K> {
    #[cold]
    #[inline(never)]
    #[track_caller]
    pub(crate) fn refresh(cell: &'a K, build: impl FnOnce() -> K::Value) -> Arc<K::Stored> {
        let search = Self::plain(Handle::Borrowed(cell), Caller::Infallible);
        search.get("get_or_refresh", |held| held.build(build))
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn try_refresh<E: Into<BoxError>>(
        cell: &'a K,
        build: impl FnOnce() -> Result<K::Value, E>,
    ) -> Result<Arc<K::Stored>, RefreshError> {
        let search = Self::plain(Handle::Borrowed(cell), Caller::Fallible);
        search.try_get(|held| held.try_build(build))
    }
}

/// Builds that are futures.
#[cfg(feature = "async")]
impl<K: Kind> Held<'_, K> {
    /// As [`run`](Held::run), for a build that is a future: each time it is polled, and only then, this thread builds.
    pub(crate) async fn run_async<F: Future>(&mut self, build: impl FnOnce() -> F) -> F::Output {
        /// The build; dropped inside too, whether it has ended or not, since what it holds may ask the cell.
        struct Build<'h, 'a, 'f, K: Kind, F> {
            held: &'h mut Held<'a, K>,
            future: Pin<&'f mut Option<F>>,
        }
        impl<K: Kind, F> Drop for Build<'_, '_, '_, K, F> {
            fn drop(&mut self) {
                let _inside = self.held.inside();
                self.future.set(None);
            }
        }
        let future = pin!(Some(self.run(build)));
        let mut build = Build { held: self, future };
        std::future::poll_fn(move |cx| -> Poll<F::Output> {
            let inside = build.held.inside();
            let future = build.future.as_mut().as_pin_mut();
            let polled = catch_unwind(AssertUnwindSafe(|| match future {
                Some(future) => future.poll(cx),
                None => unreachable!("it is there until it is dropped"),
            }));
            drop(inside);
            polled.unwrap_or_else(|panic| {
                build.held.note_panic(&*panic);
                resume_unwind(panic)
            })
        })
        .await
    }

    /// As [`build`](Held::build), for a build that is a future.
    ///
    /// Boxed, like the others, so that a task that waits does not carry the space for a build along.
    pub(crate) fn build_async<F: Future<Output = K::Value>>(
        mut self,
        build: impl FnOnce() -> F,
    ) -> Pin<Box<impl Future<Output = Arc<K::Stored>>>> {
        Box::pin(async move {
            let value = self.run_async(build).await;
            K::publish_async(self, value, Term::POLICY).done().await
        })
    }

    /// As [`try_build`](Held::try_build), for a build that is a future.
    pub(crate) fn try_build_async<E: Into<BoxError>, F: Future<Output = Result<K::Value, E>>>(
        mut self,
        build: impl FnOnce() -> F,
    ) -> Pin<Box<impl Future<Output = Result<Arc<K::Stored>, SharedError>>>> {
        Box::pin(async move {
            // The conversion of the error is user code too, which may ask the cell.
            let build = || {
                let build = build();
                async { build.await.map(Refreshed::New).map_err(SharedError::new) }
            };
            let found = self.run_async(build).await;
            Ok(self.end(found, None, K::publish_async)?.done().await)
        })
    }

    /// As [`try_build_with`](Held::try_build_with), for a build that is a future.
    pub(crate) fn try_build_with_async<E, F>(
        mut self,
        build: impl FnOnce(Option<K::Shared>) -> F,
    ) -> Pin<Box<impl Future<Output = Result<Arc<K::Stored>, SharedError>>>>
    where
        E: Into<BoxError>,
        F: Future<Output = Result<Refreshed<K::Value>, E>>,
    {
        Box::pin(async move {
            let previous = self.replaceable();
            let given = previous.clone().map(K::share);
            let build = || {
                let build = build(given);
                async { build.await.map_err(SharedError::new) }
            };
            let found = self.run_async(build).await;
            Ok(self.end(found, previous, K::publish_async)?.done().await)
        })
    }
}

/// A build, as a closure that runs it once on any thread. See [`Request::spawn_with`](crate::Request::spawn_with).
pub type Job = Box<dyn FnOnce() + Send + 'static>;

/// A build, as a future that runs it on any executor. See [`Request::spawn_with`](crate::Request::spawn_with).
#[cfg(feature = "async")]
pub type Task = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// What a spawner gets: a build. It drops the lease before the user's closure, whose destructor may read the cell.
pub(crate) struct Spawned<K: Kind + 'static, R> {
    /// `None` once the build has begun. If the spawner drops the job before that, or panics, the build has not panicked.
    held: Option<Held<'static, K>>,
    handle: Handle<'static, K>,
    started: Started<K::Stored>,
    /// Last, so that it is dropped last. `None` once the build has begun.
    run: Option<R>,
}

impl<K: Kind, R> Spawned<K, R> {
    pub(crate) fn new(held: Held<'static, K>, run: R) -> (Self, Started<K::Stored>) {
        let started = Arc::new(OnceCell::new());
        let handle = held.handle().clone();
        (Self { held: Some(held), handle, started: Arc::clone(&started), run: Some(run) }, started)
    }

    pub(crate) fn begin(&mut self) -> (Held<'static, K>, R) {
        self.held.take().zip(self.run.take()).expect("a job begins once")
    }

    pub(crate) fn end(self, outcome: Result<Arc<K::Stored>, SharedError>) {
        let _ = self.started.set(outcome.map_err(RefreshError::Build));
    }
}

impl<K: Kind, R> Drop for Spawned<K, R> {
    /// Gives the lease back if the build has not begun, and wakes the caller that waits for the outcome.
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            held.abandon();
        }
        let _ = self.started.set(Err(RefreshError::Abandoned));
        self.handle.machine().wake_waiters();
    }
}
