//! A reader of each thread's own, beside a cell in a `static`.
//!
//! The thread-local slot holds a [`Reader`], and is borrowed while a value is read through it. Only reads that build nothing go
//! through the slot. Every other read goes to the cell itself, as does every read that finds the slot borrowed or the
//! thread ending. So nothing that a user's closure or `T::drop` does can find the slot in an unexpected state.
//!
//! | the slot | a read |
//! |---|---|
//! | empty | makes a reader, and goes on as below |
//! | a reader; no refresh is due | through the reader |
//! | a reader; a refresh is due, or there is no value | by the cell; it may build, and the slot is not borrowed meanwhile |
//! | borrowed: inside `with`, or inside `T::drop` of the value that the reader replaces | by the cell |
//! | gone: the thread ends | by the cell |

use std::cell::RefCell;
use std::fmt;
use std::thread::LocalKey;

use crate::cell::{DogpileCell, Reader};
use crate::error::{BoxError, RefreshError};
use crate::lazy::LazyDogpile;
use crate::time::{Clock, SystemClock};

/// The slot of a thread.
///
/// Public for the code that macros write.
#[doc(hidden)]
pub struct LocalReader<T: 'static, C: 'static = SystemClock>(RefCell<Option<Reader<'static, T, C>>>);

impl<T, C> LocalReader<T, C> {
    #[doc(hidden)]
    #[must_use]
    #[allow(clippy::new_without_default)] // for macros only
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }

    /// Lets go of the value.
    #[doc(hidden)]
    pub fn release(this: &'static LocalKey<Self>) {
        let reader = this.try_with(|slot| slot.0.try_borrow_mut().ok()?.take());
        // Runs user code (`T::drop`), so after the borrow.
        drop(reader);
    }
}

impl<T, C: Clock> LocalReader<T, C> {
    /// Applies `read` to what may be served without a build. Gives `read` back where the cell must be asked.
    ///
    /// Always inlined: where `this` is not known to the compiler, each access is two calls by pointer.
    #[doc(hidden)]
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub fn read<R, F: FnOnce(&T) -> R>(
        this: &'static LocalKey<Self>,
        cell: impl Fn() -> &'static DogpileCell<T, C>,
        read: F,
    ) -> Result<R, F> {
        let mut read = Some(read);
        let result = this.try_with(|slot| {
            let mut slot = slot.0.try_borrow_mut().ok()?;
            let reader = match &mut *slot {
                Some(reader) => reader,
                empty => Self::make(empty, &cell),
            };
            let value = reader.get_unless_due()?;
            Some(read.take()?(value))
        });
        match (result, read) {
            (Ok(Some(result)), _) => Ok(result),
            (_, Some(read)) => Err(read),
            (_, None) => unreachable!("`read` is taken to be called, and then there is a result"),
        }
    }

    #[cold]
    #[inline(never)]
    fn make<'a>(
        empty: &'a mut Option<Reader<'static, T, C>>,
        cell: impl FnOnce() -> &'static DogpileCell<T, C>,
    ) -> &'a mut Reader<'static, T, C> {
        empty.insert(cell().reader())
    }
}

/// The build of a cell in a `static` is a function pointer: no other type that can be called can be named there.
type Lazy<T, B, C> = &'static LazyDogpile<T, fn() -> B, C>;

/// A [`Reader`] of each thread's own beside a [`LazyDogpile`] in a `static`. Declared by [`local!`](crate::local).
///
/// `B` is what the build returns: `T` or `Result<T, E>`.
///
/// A read costs what a `Reader` in a variable costs, and an access to a thread-local; it touches no memory that other threads
/// write. The value is passed to a closure, because the thread may replace it at its next read.
///
/// # What threads keep alive
///
/// Each thread keeps the value of its latest read alive until its next read, until [`release`](Local::release), or until
/// it ends, even if that value was replaced long ago. With `n` threads that have stopped reading, up to `n` old values
/// may be alive. Where values are large and threads are many (a blocking pool), call `release`
/// when a thread goes idle, or read with [`load_or_refresh`](LazyDogpile::load_or_refresh) instead.
pub struct Local<T: 'static, B: 'static = T, C: 'static = SystemClock> {
    lazy: fn() -> Lazy<T, B, C>,
    slot: &'static LocalKey<LocalReader<T, C>>,
}

impl<T, B, C> Local<T, B, C> {
    #[doc(hidden)]
    #[must_use]
    pub const fn __new(lazy: fn() -> Lazy<T, B, C>, slot: &'static LocalKey<LocalReader<T, C>>) -> Self {
        Self { lazy, slot }
    }

    /// The cell behind it, for everything else.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    /// dogpile::local!(static LOCAL_LIMIT: u32 = LIMIT);
    ///
    /// assert_eq!(LOCAL_LIMIT.lazy().set(8), LIMIT.get().unwrap());
    /// ```
    #[must_use]
    pub fn lazy(&self) -> &'static LazyDogpile<T, fn() -> B, C> {
        (self.lazy)()
    }

    /// Lets go of the value that this thread keeps. Its next read takes the current one.
    ///
    /// Does nothing inside [`with`](Local::with): the value is in use.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32> = LazyDogpile::new(Duration::from_secs(60), || 7);
    /// dogpile::local!(static LOCAL_LIMIT: u32 = LIMIT);
    ///
    /// let old = Arc::downgrade(&LIMIT.get_or_refresh());
    /// assert_eq!(LOCAL_LIMIT.with(|limit| *limit), 7);
    /// LIMIT.set(8);
    /// assert!(old.upgrade().is_some()); // this thread has not read since
    /// LOCAL_LIMIT.release();
    /// assert!(old.upgrade().is_none());
    /// ```
    pub fn release(&self) {
        LocalReader::release(self.slot);
    }
}

#[allow(clippy::mismatching_type_param_order)] // `B` is `T`: the build cannot fail
impl<T, C: Clock> Local<T, T, C> {
    /// Calls `read` with the value, built if need be.
    ///
    /// The value is the one that [`LazyDogpile::load_or_refresh`] would borrow; `read` may do anything, also call `with` of
    /// the same or of another `Local`. Inside itself, inside `T::drop`, inside a build, and while the thread ends, `with` is
    /// `load_or_refresh`.
    ///
    /// # Panics
    ///
    /// If the build or `read` panics, or if the build calls this on its own cell while there is nothing to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::time::Duration;
    ///
    /// static WORDS: LazyDogpile<Vec<&str>> = LazyDogpile::new(Duration::from_secs(60), || vec!["a", "b"]);
    /// dogpile::local!(static LOCAL_WORDS: Vec<&'static str> = WORDS);
    ///
    /// assert_eq!(LOCAL_WORDS.with(|words| words.len()), 2);
    /// ```
    #[inline(always)] // so that `self` is a constant
    #[allow(clippy::inline_always)]
    #[track_caller]
    pub fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        match LocalReader::read(self.slot, || self.lazy().cell(), read) {
            Ok(result) => result,
            Err(read) => self.with_cell(read),
        }
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn with_cell<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.lazy().load_or_refresh())
    }
}

impl<T, E: Into<BoxError>, C: Clock> Local<T, Result<T, E>, C> {
    /// Calls `read` with the value, built if need be, of a cell whose build may fail.
    ///
    /// As [`with`](Local::with) otherwise.
    ///
    /// # Errors
    ///
    /// As [`DogpileCell::try_get_or_refresh`]; `read` is not called then.
    ///
    /// # Panics
    ///
    /// If the build or `read` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::LazyDogpile;
    /// use std::num::ParseIntError;
    /// use std::time::Duration;
    ///
    /// static LIMIT: LazyDogpile<u32, fn() -> Result<u32, ParseIntError>> =
    ///     LazyDogpile::new(Duration::from_secs(60), || "7".parse());
    /// dogpile::local!(static LOCAL_LIMIT: Result<u32, ParseIntError> = LIMIT);
    ///
    /// assert_eq!(LOCAL_LIMIT.try_with(|limit| *limit)?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    #[inline(always)] // so that `self` is a constant
    #[allow(clippy::inline_always)]
    pub fn try_with<R>(&self, read: impl FnOnce(&T) -> R) -> Result<R, RefreshError> {
        match LocalReader::read(self.slot, || self.lazy().cell(), read) {
            Ok(result) => Ok(result),
            Err(read) => self.try_with_cell(read),
        }
    }

    #[cold]
    #[inline(never)]
    fn try_with_cell<R>(&self, read: impl FnOnce(&T) -> R) -> Result<R, RefreshError> {
        Ok(read(&*self.lazy().try_get_or_refresh()?))
    }
}

impl<T, B, C> fmt::Debug for Local<T, B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("lazy", self.lazy()).finish_non_exhaustive()
    }
}

/// Declares a reader of each thread's own beside a [`LazyDogpile`] in a `static`: a [`Local`].
///
/// ```text
/// local!(static NAME: T = LAZY);                       // a build that returns `T`: NAME.with(|value: &T| ..)
/// local!(static NAME: Result<T, E> = LAZY);            // a build that may fail: NAME.try_with(|value: &T| ..)
/// local!(static NAME: T = LAZY, clock: TickClock);     // a cell with another clock
/// ```
///
/// The type is what the build returns, where `Result` is spelled out with both of its types. Attributes and a visibility
/// may stand before `static`, and several declarations may follow each other. As with `thread_local!`, what is declared is a
/// constant; the readers are behind it.
///
/// Not for a [`SyncReaderCell`](crate::SyncReaderCell): a thread that has stopped reading would keep its finalizer waiting.
///
/// # Examples
///
/// ```
/// use dogpile::LazyDogpile;
/// use std::time::Duration;
///
/// struct Rates(f64);
///
/// static RATES: LazyDogpile<Rates> = LazyDogpile::new(Duration::from_secs(60), || Rates(1.07));
///
/// dogpile::local! {
///     /// The rates, for code that reads them very often.
///     pub static LOCAL_RATES: Rates = RATES;
/// }
///
/// assert_eq!(LOCAL_RATES.with(|rates| rates.0), 1.07);
/// ```
#[macro_export]
macro_rules! local {
    () => {};
    (
        $(#[$attribute:meta])* $vis:vis static $name:ident: Result<$value:ty, $error:ty> = $lazy:expr
        $(, clock: $clock:ty)? $(; $($rest:tt)*)?
    ) => {
        $crate::local!(@
            [$(#[$attribute])* $vis] $name, $lazy,
            [$value, ::core::result::Result<$value, $error> $(, $clock)?],
            [$value $(, $clock)?]
        );
        $($crate::local! { $($rest)* })?
    };
    (
        $(#[$attribute:meta])* $vis:vis static $name:ident: $value:ty = $lazy:expr
        $(, clock: $clock:ty)? $(; $($rest:tt)*)?
    ) => {
        $crate::local!(@
            [$(#[$attribute])* $vis] $name, $lazy, [$value, $value $(, $clock)?], [$value $(, $clock)?]
        );
        $($crate::local! { $($rest)* })?
    };
    (@ [$($head:tt)*] $name:ident, $lazy:expr, [$($local:tt)*], [$($reader:tt)*]) => {
        $($head)* const $name: $crate::Local<$($local)*> = {
            ::std::thread_local! {
                static READER: $crate::__private::LocalReader<$($reader)*> =
                    const { $crate::__private::LocalReader::new() };
            }
            $crate::Local::__new(|| &$lazy, &READER)
        };
    };
}
