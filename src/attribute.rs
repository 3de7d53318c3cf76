//! What the code calls that `#[dogpile]` writes.
//!
//! A cell holds the `T` of a `Result<T, E>`, or all of any other type. A macro cannot know which of the two a type is: it sees
//! `io::Result<T>` or an alias, and only the compiler knows what that stands for. So it writes an expression that the compiler
//! evaluates, [`Probe`], and lets that choose the implementation of [`Returned`].

use std::marker::PhantomData;

use crate::cell::{DogpileCell, Job};
use crate::error::{BoxError, RefreshError};
use crate::local::LocalReader;
use crate::sync::Arc;

#[cfg(feature = "async")]
use {crate::cell::Task, crate::error::SharedError};

/// `Probe::<R>::IS_RESULT`: whether `R` is a `Result`, for a known `R`, with [`IsValue`] in scope. An inherent constant is
/// found before that of a trait, but only where its `impl` applies.
#[derive(Debug)]
pub struct Probe<R: ?Sized>(PhantomData<R>);

impl<T, E> Probe<Result<T, E>> {
    /// It is.
    pub const IS_RESULT: bool = true;
}

/// See [`Probe`].
pub trait IsValue {
    /// It is not, unless there is an inherent one.
    const IS_RESULT: bool = false;
}

impl<R: ?Sized> IsValue for Probe<R> {}

/// An error that callers can share.
#[diagnostic::on_unimplemented(
    message = "callers share the error of a build, and cannot share `{Self}`",
    label = "the error is not `Into<Box<dyn Error + Send + Sync>>`",
    note = "it may be an `Error` that is `Send + Sync + 'static`, a `Box<dyn Error + Send + Sync>`, an `anyhow::Error`, or text"
)]
pub trait Shareable: Into<BoxError> + 'static {}

#[diagnostic::do_not_recommend]
impl<E: Into<BoxError> + 'static> Shareable for E {}

/// What a function returns whose value a cell keeps.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `Result`, although that is its name",
    label = "`#[dogpile]` keeps the value of a `Result`, or a value of another name",
    note = "give it another name where the function is: `use path::Result as Answer;`"
)]
#[allow(clippy::inline_always)]
pub trait Returned<const IS_RESULT: bool>: Sized {
    /// What the cell holds.
    type Value: Send + Sync + 'static;
    /// What a read returns.
    type Read;
    /// What a read through a closure returns, where that returns `R`.
    type With<R>;

    /// What a read through a closure returns, if it has succeeded.
    fn wrap<R>(result: R) -> Self::With<R>;

    /// A look at what a call has found.
    fn look<R>(found: Self::Read, read: impl FnOnce(&Self::Value) -> R) -> Self::With<R>;

    /// A read through the thread's own reader.
    #[inline(always)] // so that `reader` is a constant
    #[track_caller]
    fn with<R>(
        reader: LocalReader<Self::Value>,
        cell: impl Fn() -> &'static DogpileCell<Self::Value> + Copy,
        build: fn() -> Self,
        read: impl FnOnce(&Self::Value) -> R,
    ) -> Self::With<R> {
        match reader.read(cell, read) {
            Ok(result) => Self::wrap(result),
            Err(read) => Self::with_cell(cell(), build, read),
        }
    }

    /// The same, where the cell must be asked.
    #[cold]
    #[inline(never)]
    #[track_caller]
    fn with_cell<R>(
        cell: &'static DogpileCell<Self::Value>,
        build: fn() -> Self,
        read: impl FnOnce(&Self::Value) -> R,
    ) -> Self::With<R> {
        Self::look(Self::read(cell, build), read)
    }

    /// The same; the build is handed to a spawner.
    #[inline(always)] // as `with`
    #[track_caller]
    fn with_spawned<R>(
        reader: LocalReader<Self::Value>,
        cell: impl Fn() -> &'static DogpileCell<Self::Value> + Copy,
        spawn: impl FnOnce(Job),
        build: fn() -> Self,
        read: impl FnOnce(&Self::Value) -> R,
    ) -> Self::With<R> {
        match reader.read(cell, read) {
            Ok(result) => Self::wrap(result),
            Err(read) => Self::look(Self::read_spawned(cell(), spawn, build), read),
        }
    }

    /// A read through the thread's own reader, of a function that is `async`: the closure calls it.
    fn with_async<R, F: Future<Output = Self::Read>>(
        reader: LocalReader<Self::Value>,
        cell: impl Fn() -> &'static DogpileCell<Self::Value> + Copy,
        call: impl FnOnce() -> F,
        read: impl FnOnce(&Self::Value) -> R,
    ) -> impl Future<Output = Self::With<R>> {
        async move {
            match reader.read(cell, read) {
                Ok(result) => Self::wrap(result),
                Err(read) => Self::look(call().await, read),
            }
        }
    }

    /// A call of the function.
    fn read(cell: &'static DogpileCell<Self::Value>, build: fn() -> Self) -> Self::Read;

    /// The same; the build is handed to a spawner.
    fn read_spawned(
        cell: &'static DogpileCell<Self::Value>,
        spawn: impl FnOnce(Job),
        build: fn() -> Self,
    ) -> Self::Read;

    /// A call of an `async` function.
    #[cfg(feature = "async")]
    fn read_async<F: Future<Output = Self>>(
        cell: &'static DogpileCell<Self::Value>,
        build: impl FnOnce() -> F,
    ) -> impl Future<Output = Self::Read>;

    /// The same; the build is handed to a spawner.
    #[cfg(feature = "async")]
    fn read_spawned_async<F: Future<Output = Self> + Send + 'static>(
        cell: &'static DogpileCell<Self::Value>,
        spawn: impl FnOnce(Task),
        build: impl FnOnce() -> F + Send + 'static,
    ) -> impl Future<Output = Self::Read>;
}

impl<T: Send + Sync + 'static> Returned<false> for T {
    type Value = T;
    type Read = Arc<T>;
    type With<R> = R;

    #[inline]
    fn wrap<R>(result: R) -> R {
        result
    }

    #[inline]
    fn look<R>(found: Arc<T>, read: impl FnOnce(&T) -> R) -> R {
        read(&found)
    }

    #[inline]
    #[track_caller]
    fn read(cell: &'static DogpileCell<T>, build: fn() -> T) -> Arc<T> {
        cell.get_or_refresh(build)
    }

    #[inline]
    #[track_caller]
    fn read_spawned(cell: &'static DogpileCell<T>, spawn: impl FnOnce(Job), build: fn() -> T) -> Arc<T> {
        cell.request().spawn_with(spawn).get(build)
    }

    #[cfg(feature = "async")]
    fn read_async<F: Future<Output = T>>(
        cell: &'static DogpileCell<T>,
        build: impl FnOnce() -> F,
    ) -> impl Future<Output = Arc<T>> {
        cell.get_or_refresh_async(build)
    }

    #[cfg(feature = "async")]
    fn read_spawned_async<F: Future<Output = T> + Send + 'static>(
        cell: &'static DogpileCell<T>,
        spawn: impl FnOnce(Task),
        build: impl FnOnce() -> F + Send + 'static,
    ) -> impl Future<Output = Arc<T>> {
        cell.request().spawn_with(spawn).get_async(build)
    }
}

impl<T: Send + Sync + 'static, E: Shareable> Returned<true> for Result<T, E> {
    type Value = T;
    type Read = Result<Arc<T>, RefreshError>;
    type With<R> = Result<R, RefreshError>;

    #[inline]
    fn wrap<R>(result: R) -> Result<R, RefreshError> {
        Ok(result)
    }

    #[inline]
    fn look<R>(found: Self::Read, read: impl FnOnce(&T) -> R) -> Result<R, RefreshError> {
        found.map(|value| read(&value))
    }

    #[inline]
    fn read(cell: &'static DogpileCell<T>, build: fn() -> Self) -> Self::Read {
        cell.try_get_or_refresh(build)
    }

    #[inline]
    fn read_spawned(
        cell: &'static DogpileCell<T>,
        spawn: impl FnOnce(Job),
        build: fn() -> Self,
    ) -> Self::Read {
        cell.request().spawn_with(spawn).try_get(build)
    }

    #[cfg(feature = "async")]
    fn read_async<F: Future<Output = Self>>(
        cell: &'static DogpileCell<T>,
        build: impl FnOnce() -> F,
    ) -> impl Future<Output = Self::Read> {
        cell.try_get_or_refresh_async(build)
    }

    #[cfg(feature = "async")]
    async fn read_spawned_async<F: Future<Output = Self> + Send + 'static>(
        cell: &'static DogpileCell<T>,
        spawn: impl FnOnce(Task),
        build: impl FnOnce() -> F + Send + 'static,
    ) -> Self::Read {
        // As the job's, the error is of a type that is `Send`.
        let build = async move || build().await.map_err(SharedError::new);
        cell.request().spawn_with(spawn).try_get_async(build).await
    }
}

/// A spawner of the builds of functions that are not `async`.
pub fn spawns_jobs<R>(spawn: impl FnOnce(Job) -> R) -> impl FnOnce(Job) {
    move |job| drop(spawn(job))
}

/// A spawner of the builds of `async` functions.
#[cfg(feature = "async")]
pub fn spawns_tasks<R>(spawn: impl FnOnce(Task) -> R) -> impl FnOnce(Task) {
    move |task| drop(spawn(task))
}
