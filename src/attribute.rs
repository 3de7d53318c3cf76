//! What the code calls that `#[dogpile]` writes.
//!
//! A cell holds the `T` of a `Result<T, E>`, or all of any other type. A macro cannot know which of the two a type is: it sees
//! `io::Result<T>` or an alias, and only the compiler knows what that stands for. So it writes an expression that the compiler
//! evaluates, [`Probe`], and lets that choose the implementation of [`Returned`].

#[cfg(not(feature = "async"))]
use std::future::Ready;
use std::io;
use std::marker::PhantomData;
use std::thread::LocalKey;
use std::time::Duration;

use crate::cell::{DogpileCell, Refreshed};
use crate::error::{BoxError, RefreshError};
use crate::local::LocalReader;
use crate::refresher::Refresher;
use crate::sync::{Arc, PlainOnceCell};

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
pub trait Returned<const IS_RESULT: bool>: Sized {
    /// What the cell holds.
    type Value: Send + Sync + 'static;
    /// What a read returns.
    type Read;
    /// What a read through a closure returns, where that returns `R`.
    type With<R>;

    /// A call of the function.
    fn read(cell: &'static DogpileCell<Self::Value>, build: fn() -> Self) -> Self::Read;

    /// A read through the thread's own reader.
    fn with<R>(
        reader: &'static LocalKey<LocalReader<Self::Value>>,
        cell: impl Fn() -> &'static DogpileCell<Self::Value> + Copy,
        build: fn() -> Self,
        read: impl FnOnce(&Self::Value) -> R,
    ) -> Self::With<R>;

    /// A call of an `async` function.
    #[cfg(feature = "async")]
    fn read_async<F: Future<Output = Self>>(
        cell: &'static DogpileCell<Self::Value>,
        build: impl FnOnce() -> F,
    ) -> impl Future<Output = Self::Read>;

    /// A read through the thread's own reader, with an `async` function.
    #[cfg(feature = "async")]
    fn with_async<R, F: Future<Output = Self>>(
        reader: &'static LocalKey<LocalReader<Self::Value>>,
        cell: impl Fn() -> &'static DogpileCell<Self::Value> + Copy,
        build: impl FnOnce() -> F,
        read: impl FnOnce(&Self::Value) -> R,
    ) -> impl Future<Output = Self::With<R>>;

    /// In place of those above, so that the only error is that of `__needs_async`.
    #[cfg(not(feature = "async"))]
    fn read_async<F>(_: &'static DogpileCell<Self::Value>, _: impl FnOnce() -> F) -> Ready<Self::Read> {
        unreachable!("does not compile")
    }

    /// As `read_async`.
    #[cfg(not(feature = "async"))]
    fn with_async<R, F>(
        _: &'static LocalKey<LocalReader<Self::Value>>,
        _: impl Fn() -> &'static DogpileCell<Self::Value> + Copy,
        _: impl FnOnce() -> F,
        _: impl FnOnce(&Self::Value) -> R,
    ) -> Ready<Self::With<R>> {
        unreachable!("does not compile")
    }

    /// Starts the refresher.
    fn refresher(
        cell: &'static DogpileCell<Self::Value>,
        ahead: Duration,
        build: fn() -> Self,
    ) -> io::Result<Refresher>;
}

impl<T: Send + Sync + 'static> Returned<false> for T {
    type Value = T;
    type Read = Arc<T>;
    type With<R> = R;

    #[inline]
    #[track_caller]
    fn read(cell: &'static DogpileCell<T>, build: fn() -> T) -> Arc<T> {
        cell.get_or_refresh(build)
    }

    #[inline(always)] // so that `reader` is a constant
    #[allow(clippy::inline_always)]
    #[track_caller]
    fn with<R>(
        reader: &'static LocalKey<LocalReader<T>>,
        cell: impl Fn() -> &'static DogpileCell<T> + Copy,
        build: fn() -> T,
        read: impl FnOnce(&T) -> R,
    ) -> R {
        match LocalReader::read(reader, cell, read) {
            Ok(result) => result,
            Err(read) => with_cell(cell(), build, read),
        }
    }

    #[cfg(feature = "async")]
    fn read_async<F: Future<Output = T>>(
        cell: &'static DogpileCell<T>,
        build: impl FnOnce() -> F,
    ) -> impl Future<Output = Arc<T>> {
        cell.get_or_refresh_async(build)
    }

    #[cfg(feature = "async")]
    async fn with_async<R, F: Future<Output = T>>(
        reader: &'static LocalKey<LocalReader<T>>,
        cell: impl Fn() -> &'static DogpileCell<T> + Copy,
        build: impl FnOnce() -> F,
        read: impl FnOnce(&T) -> R,
    ) -> R {
        match LocalReader::read(reader, cell, read) {
            Ok(result) => result,
            Err(read) => read(&*cell().get_or_refresh_async(build).await),
        }
    }

    fn refresher(cell: &'static DogpileCell<T>, ahead: Duration, build: fn() -> T) -> io::Result<Refresher> {
        Refresher::spawn(cell, ahead, move |_previous| Refreshed::New(build()))
    }
}

impl<T: Send + Sync + 'static, E: Shareable> Returned<true> for Result<T, E> {
    type Value = T;
    type Read = Result<Arc<T>, RefreshError>;
    type With<R> = Result<R, RefreshError>;

    #[inline]
    fn read(cell: &'static DogpileCell<T>, build: fn() -> Self) -> Self::Read {
        cell.try_get_or_refresh(build)
    }

    #[inline(always)] // so that `reader` is a constant
    #[allow(clippy::inline_always)]
    fn with<R>(
        reader: &'static LocalKey<LocalReader<T>>,
        cell: impl Fn() -> &'static DogpileCell<T> + Copy,
        build: fn() -> Self,
        read: impl FnOnce(&T) -> R,
    ) -> Result<R, RefreshError> {
        match LocalReader::read(reader, cell, read) {
            Ok(result) => Ok(result),
            Err(read) => try_with_cell(cell(), build, read),
        }
    }

    #[cfg(feature = "async")]
    fn read_async<F: Future<Output = Self>>(
        cell: &'static DogpileCell<T>,
        build: impl FnOnce() -> F,
    ) -> impl Future<Output = Self::Read> {
        cell.try_get_or_refresh_async(build)
    }

    #[cfg(feature = "async")]
    async fn with_async<R, F: Future<Output = Self>>(
        reader: &'static LocalKey<LocalReader<T>>,
        cell: impl Fn() -> &'static DogpileCell<T> + Copy,
        build: impl FnOnce() -> F,
        read: impl FnOnce(&T) -> R,
    ) -> Result<R, RefreshError> {
        match LocalReader::read(reader, cell, read) {
            Ok(result) => Ok(result),
            Err(read) => Ok(read(&*cell().try_get_or_refresh_async(build).await?)),
        }
    }

    fn refresher(
        cell: &'static DogpileCell<T>,
        ahead: Duration,
        build: fn() -> Self,
    ) -> io::Result<Refresher> {
        Refresher::spawn(cell, ahead, move |_previous| build().map(Refreshed::New))
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn with_cell<T, R>(cell: &'static DogpileCell<T>, build: fn() -> T, read: impl FnOnce(&T) -> R) -> R {
    read(&cell.load_or_refresh(build))
}

#[cold]
#[inline(never)]
fn try_with_cell<T, E: Into<BoxError>, R>(
    cell: &'static DogpileCell<T>,
    build: fn() -> Result<T, E>,
    read: impl FnOnce(&T) -> R,
) -> Result<R, RefreshError> {
    Ok(read(&*cell.try_get_or_refresh(build)?))
}

/// The refresher of a function, started by its first call.
#[derive(Debug)]
pub struct Ahead(PlainOnceCell<Option<Refresher>>);

impl Ahead {
    /// Not started yet.
    #[must_use]
    #[allow(clippy::new_without_default)] // for macros only
    pub const fn new() -> Self {
        Self(PlainOnceCell::new())
    }

    /// Starts it, the first time. Where no thread can be started, callers build.
    #[inline]
    pub fn start(&self, start: impl FnOnce() -> io::Result<Refresher>) {
        if self.0.get().is_none() {
            self.start_now(start);
        }
    }

    #[cold]
    #[inline(never)]
    fn start_now(&self, start: impl FnOnce() -> io::Result<Refresher>) {
        self.0.get_or_init(|| start().ok());
    }

    /// What was started.
    #[must_use]
    pub fn get(&self) -> Option<&Refresher> {
        self.0.get()?.as_ref()
    }
}
