//! A reader of each thread's own, beside a cell in a `static`.
//!
//! The thread-local slot keeps the value of the thread's latest read. While the value is read, it is taken out of the slot.
//! Only reads that build nothing go through the slot. Every other read goes to the cell itself, as does every read that
//! finds the value taken out or the thread ending. So nothing that a user's closure or `T::drop` does can find the slot in
//! an unexpected state.
//!
//! | `currency` | `value` | state of the slot | a read |
//! |---|---|---|---|
//! | `NONE` | `None` | empty | takes what may be served without a build, and keeps it; else by the cell, which may build |
//! | of a value | that value | at rest | through the slot if the value is current; else as if the slot were empty |
//! | of a value | `None` | in use: inside `with` | through the slot not at all: by the cell |
//!
//! # Cost
//!
//! `std` guards a thread-local that has a destructor: each access looks whether the destructor is registered already, and
//! whether it has run. The slot has none (`ManuallyDrop`), and is never out of reach. It is emptied when the thread ends by the
//! destructor of a second thread-local, the [`Cleaner`], which only a read that keeps a value touches. Once the cleaner
//! is gone, reads keep nothing. The slot does not hold the cell either: that is known where the read is compiled.

use std::cell::Cell;
use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::thread::LocalKey;

use crate::cell::{Currency, DogpileCell};
use crate::error::{BoxError, RefreshError};
use crate::lazy::LazyDogpile;
use crate::sync::Arc;
use crate::time::{Clock, SystemClock};

/// The slot of a thread.
///
/// Public for the code that macros write.
#[doc(hidden)]
pub struct LocalSlot<T: 'static> {
    value: ManuallyDrop<Cell<Option<Arc<T>>>>,
    currency: Cell<Currency>,
}

impl<T> LocalSlot<T> {
    #[doc(hidden)]
    #[must_use]
    #[allow(clippy::new_without_default)] // for macros only
    pub const fn new() -> Self {
        Self { value: ManuallyDrop::new(Cell::new(None)), currency: Cell::new(Currency::NONE) }
    }

    /// Empties it, unless it is in use.
    fn release(&self) {
        if let Some(value) = self.value.take() {
            self.currency.set(Currency::NONE);
            // Runs user code (`T::drop`), so last.
            drop(value);
        }
    }
}

/// Where the compiler has no thread-locals of its own, `std` frees all of them in an order that is not known. (Where it has, one
/// without a destructor outlives all others of its thread.)
#[cfg(not(any(target_os = "linux", target_vendor = "apple", all(windows, target_env = "msvc"))))]
impl<T> Drop for LocalSlot<T> {
    fn drop(&mut self) {
        self.release();
    }
}

/// A value that is taken out of its slot. It is put back when the read ends, also by a panic.
struct Lent<'a, T: 'static> {
    slot: &'a LocalSlot<T>,
    value: Option<Arc<T>>,
}

impl<T> Drop for Lent<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Nothing is put into a slot that is in use, so there is nothing to drop.
        mem::forget(self.slot.value.replace(self.value.take()));
    }
}

/// Empties a slot when the thread ends.
#[doc(hidden)]
pub struct Cleaner<T: 'static>(&'static LocalKey<LocalSlot<T>>);

impl<T> Cleaner<T> {
    #[doc(hidden)]
    #[must_use]
    pub const fn new(slot: &'static LocalKey<LocalSlot<T>>) -> Self {
        Self(slot)
    }
}

impl<T> Drop for Cleaner<T> {
    fn drop(&mut self) {
        release(self.0);
    }
}

fn release<T>(slot: &'static LocalKey<LocalSlot<T>>) {
    // Out of reach: it has been emptied.
    let _ = slot.try_with(LocalSlot::release);
}

/// Both, of each thread.
///
/// Public for the code that macros write.
#[doc(hidden)]
pub struct LocalReader<T: 'static> {
    slot: &'static LocalKey<LocalSlot<T>>,
    cleaner: &'static LocalKey<Cleaner<T>>,
}

impl<T> Clone for LocalReader<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for LocalReader<T> {}

impl<T> LocalReader<T> {
    #[doc(hidden)]
    #[must_use]
    pub const fn new(slot: &'static LocalKey<LocalSlot<T>>, cleaner: &'static LocalKey<Cleaner<T>>) -> Self {
        Self { slot, cleaner }
    }

    /// Lets go of the value.
    #[doc(hidden)]
    pub fn release(self) {
        release(self.slot);
    }

    /// Applies `read` to what may be served without a build. Gives `read` back where the cell must be asked.
    ///
    /// Always inlined: where `self` is not known to the compiler, each access is a call by pointer.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(crate) fn read<R, C: Clock + 'static, F: FnOnce(&T) -> R>(
        self,
        cell: impl Fn() -> &'static DogpileCell<T, C>,
        read: F,
    ) -> Result<R, F> {
        let mut read = Some(read);
        let result = self.slot.try_with(|slot| {
            let cell = cell();
            if !slot.currency.get().holds(&cell.machine) && !self.renew(slot, cell) {
                return None;
            }
            let lent = Lent { slot, value: slot.value.take() };
            let value = lent.value.as_ref()?;
            Some(read.take()?(value))
        });
        match (result, read) {
            (Ok(Some(result)), _) => Ok(result),
            (_, Some(read)) => Err(read),
            (_, None) => unreachable!("`read` is taken to be called, and then there is a result"),
        }
    }

    /// Puts into the slot what may be served without a build. `false`: there is no such value, or it cannot be kept.
    #[cold]
    #[inline(never)]
    fn renew<C: Clock>(self, slot: &LocalSlot<T>, cell: &'static DogpileCell<T, C>) -> bool {
        let old = slot.value.take();
        if old.is_none() && !slot.currency.get().is_none() {
            return false; // in use
        }
        slot.currency.set(Currency::NONE);
        // The clock is user code too: it may have read meanwhile, and filled the slot.
        let is_kept = match cell.get_unless_due() {
            Some(value) => {
                let currency = Currency::of(&cell.machine, &value);
                // Without a currency it would look as if the slot were empty while it is in use.
                let is_kept = !currency.is_none() && self.cleaner.try_with(|_| ()).is_ok();
                if is_kept {
                    slot.currency.set(currency);
                    drop(slot.value.replace(Some(value)));
                }
                is_kept
            }
            None => false,
        };
        // Runs user code (`T::drop`), so last.
        drop(old);
        is_kept
    }
}

/// The build of a cell in a `static` is a function pointer: no other type that can be called can be named there.
type Lazy<T, B, C> = &'static LazyDogpile<T, fn() -> B, C>;

/// A [`Reader`](crate::Reader) of each thread's own beside a [`LazyDogpile`] in a `static`. Declared by
/// [`local!`](crate::local).
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
    reader: LocalReader<T>,
}

impl<T, B, C> Local<T, B, C> {
    #[doc(hidden)]
    #[must_use]
    pub const fn __new(lazy: fn() -> Lazy<T, B, C>, reader: LocalReader<T>) -> Self {
        Self { lazy, reader }
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
        self.reader.release();
    }
}

#[allow(clippy::mismatching_type_param_order)] // `B` is `T`: the build cannot fail
impl<T, C: Clock> Local<T, T, C> {
    /// Calls `read` with the value, built if need be.
    ///
    /// The value is the one that [`LazyDogpile::load_or_refresh`] would borrow; `read` may do anything, also call `with` of
    /// the same or of another `Local`. Inside itself, while a build is due, and while the thread ends, `with` is
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
        match self.reader.read(|| self.lazy().cell(), read) {
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
        match self.reader.read(|| self.lazy().cell(), read) {
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
/// `LAZY` is an expression that names the same cell at each read: the thread keeps a value, not which cell it came from.
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
            $value
        );
        $($crate::local! { $($rest)* })?
    };
    (
        $(#[$attribute:meta])* $vis:vis static $name:ident: $value:ty = $lazy:expr
        $(, clock: $clock:ty)? $(; $($rest:tt)*)?
    ) => {
        $crate::local!(@
            [$(#[$attribute])* $vis] $name, $lazy, [$value, $value $(, $clock)?], $value
        );
        $($crate::local! { $($rest)* })?
    };
    (@ [$($head:tt)*] $name:ident, $lazy:expr, [$($local:tt)*], $value:ty) => {
        $($head)* const $name: $crate::Local<$($local)*> =
            $crate::Local::__new(|| &$lazy, $crate::__local_reader!($value));
    };
}

/// The [`LocalReader`] of a place in a program: a constant.
// Names of items are not hygienic: these are names that no type of the user's has.
#[doc(hidden)]
#[macro_export]
macro_rules! __local_reader {
    ($value:ty) => {
        const {
            ::std::thread_local! {
                static __DOGPILE_SLOT: $crate::__private::LocalSlot<$value> = const { $crate::__private::LocalSlot::new() };
                static __DOGPILE_CLEANER: $crate::__private::Cleaner<$value> =
                    const { $crate::__private::Cleaner::new(&__DOGPILE_SLOT) };
            }
            $crate::__private::LocalReader::new(&__DOGPILE_SLOT, &__DOGPILE_CLEANER)
        }
    };
}
