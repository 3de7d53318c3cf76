//! Builds: what runs while the lease is held, in the caller or in a spawner's job.

use std::time::Duration;

use crate::clock::nanos;
use crate::error::{BoxError, RefreshError, SharedError};
use crate::sync::{Arc, OnceCell};

use super::handle::{Handle, Made, nothing_to_keep, sealed::Kind};
use super::lease::Held;
use super::publish::Ttl;
use super::search::Started;

#[cfg(feature = "async")]
use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::{Pin, pin},
    task::Poll,
};

/// What a conditional build has found. See [`Request::try_get_with`](crate::Request::try_get_with) and
/// [`Refresher`](crate::Refresher).
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
    /// A new value that chooses its own time to live. See [`Lease::publish_for`](crate::Lease::publish_for).
    NewFor(T, Duration),
    /// The previous value is still right, and counts as fresh again. See [`Lease::renew`](crate::Lease::renew).
    NotModified,
}

impl<T> From<T> for Refreshed<T> {
    fn from(value: T) -> Self {
        Self::New(value)
    }
}

/// What a build of a [`Refresher`](crate::Refresher) may return, besides `Result<_, E>` of it: a value, or a [`Refreshed`].
///
/// `M` only tells the two forms apart, and is inferred.
#[diagnostic::on_unimplemented(
    message = "a build cannot return `{Self}`",
    label = "neither the cell's value, nor a `Refreshed` of it, nor a `Result` of one of them",
    note = "the error of a `Result` must be `Into<Box<dyn Error + Send + Sync>>`"
)]
pub trait BuildResult<T, M> {
    #[doc(hidden)]
    fn into_result(self) -> Result<Refreshed<T>, BoxError>;
}

/// Marks [`BuildResult`]s that cannot fail.
#[derive(Debug)]
pub enum CannotFail {}

/// Marks [`BuildResult`]s that can.
#[derive(Debug)]
pub enum CanFail {}

impl<T, R: Into<Refreshed<T>>> BuildResult<T, CannotFail> for R {
    fn into_result(self) -> Result<Refreshed<T>, BoxError> {
        Ok(self.into())
    }
}

impl<T, R: Into<Refreshed<T>>, E: Into<BoxError>> BuildResult<T, CanFail> for Result<R, E> {
    fn into_result(self) -> Result<Refreshed<T>, BoxError> {
        self.map(Into::into).map_err(Into::into)
    }
}

/// What a conditional build is given and returns.
pub(crate) type Conditional<V> = Result<Refreshed<V>, BoxError>;

impl<K: Kind> Held<'_, K> {
    /// Runs `build` and publishes what it returns. If it panics, the lease is given back.
    pub(crate) fn build(mut self, build: impl FnOnce() -> K::Value) -> Arc<K::Stored> {
        K::forget_previous(&mut self);
        let value = self.run(build);
        K::publish(self, Made::New(value, Ttl::Policy))
    }

    /// Runs `build` and publishes what it returns, or fails with its error.
    pub(crate) fn try_build<E: Into<BoxError>>(
        mut self,
        build: impl FnOnce() -> Result<K::Value, E>,
    ) -> Result<Arc<K::Stored>, SharedError> {
        K::forget_previous(&mut self);
        match self.run(build) {
            Ok(value) => Ok(K::publish(self, Made::New(value, Ttl::Policy))),
            Err(error) => Err(self.fail(SharedError::new(error))),
        }
    }

    /// As [`try_build`](Held::try_build), with a build that is given the previous value.
    pub(crate) fn try_build_with(
        mut self,
        build: impl FnOnce(Option<K::Shared>) -> Conditional<K::Value>,
    ) -> Result<Arc<K::Stored>, SharedError> {
        let previous = K::previous(&mut self);
        let given = previous.clone().map(K::share);
        match made::<K>(self.run(|| build(given)), previous) {
            Ok(made) => Ok(K::publish(self, made)),
            Err(error) => Err(self.fail(error)),
        }
    }
}

fn made<K: Kind>(
    found: Conditional<K::Value>,
    previous: Option<Arc<K::Stored>>,
) -> Result<Made<K>, SharedError> {
    match found {
        Ok(Refreshed::New(value)) => Ok(Made::New(value, Ttl::Policy)),
        Ok(Refreshed::NewFor(value, ttl)) => Ok(Made::New(value, Ttl::Own(nanos(ttl)))),
        Ok(Refreshed::NotModified) => previous.map(Made::NotModified).ok_or_else(nothing_to_keep),
        Err(error) => Err(SharedError::new(error)),
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
            K::forget_previous(&mut self);
            let value = self.run_async(build).await;
            K::publish_async(self, Made::New(value, Ttl::Policy)).done().await
        })
    }

    /// As [`try_build`](Held::try_build), for a build that is a future.
    pub(crate) fn try_build_async<E: Into<BoxError>, F: Future<Output = Result<K::Value, E>>>(
        mut self,
        build: impl FnOnce() -> F,
    ) -> Pin<Box<impl Future<Output = Result<Arc<K::Stored>, SharedError>>>> {
        Box::pin(async move {
            K::forget_previous(&mut self);
            let value = match self.run_async(build).await {
                Ok(value) => value,
                Err(error) => return Err(self.fail(SharedError::new(error))),
            };
            Ok(K::publish_async(self, Made::New(value, Ttl::Policy)).done().await)
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
            let previous = K::previous(&mut self);
            let given = previous.clone().map(K::share);
            let found = self.run_async(|| build(given)).await.map_err(Into::into);
            let publishing = match made::<K>(found, previous) {
                Ok(made) => K::publish_async(self, made),
                Err(error) => return Err(self.fail(error)),
            };
            Ok(publishing.done().await)
        })
    }
}

/// A build to be run once, on any thread. See [`Request::spawn_with`](crate::Request::spawn_with).
pub type Job = Box<dyn FnOnce() + Send + 'static>;

/// A build to be polled to its end, on any executor. See [`Request::spawn_with`](crate::Request::spawn_with).
#[cfg(feature = "async")]
pub type Task = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// A build in the hands of a spawner.
pub(crate) struct Spawned<K: Kind + 'static> {
    /// `None` from its beginning on. If the spawner drops it before, or panics with it, the build has not panicked.
    held: Option<Held<'static, K>>,
    handle: Handle<'static, K>,
    started: Started<K::Stored>,
}

impl<K: Kind> Spawned<K> {
    pub(crate) fn new(held: Held<'static, K>) -> (Self, Started<K::Stored>) {
        let started = Arc::new(OnceCell::new());
        let handle = held.handle().clone();
        (Self { held: Some(held), handle, started: Arc::clone(&started) }, started)
    }

    pub(crate) fn begin(&mut self) -> Held<'static, K> {
        self.held.take().expect("a job begins once")
    }

    pub(crate) fn end(self, outcome: Result<Arc<K::Stored>, SharedError>) {
        let _ = self.started.set(outcome.map_err(RefreshError::Build));
    }
}

impl<K: Kind> Drop for Spawned<K> {
    /// The lease has come back by now, or does here. Then its caller is told, if it waits.
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            held.abandon();
        }
        let _ = self.started.set(Err(RefreshError::Abandoned));
        self.handle.machine().wake_waiters();
    }
}
