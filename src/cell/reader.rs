//! A per-thread handle that keeps the value at hand.

use std::fmt;

use crate::error::{BoxError, RefreshError};
use crate::sync::Arc;
use crate::time::{Clock, FOREVER, SystemClock, Tick, nanos};

use super::DogpileCell;
use super::machine::Machine;
use super::owned::Owned;
use super::slot::Version;

/// A handle that keeps the value, for a thread that reads it very often.
///
/// A read that finds nothing changed touches no reference count: it costs one load and one comparison beyond the
/// freshness check. Each thread makes a `Reader` of its own.
///
/// A reader that is not used keeps alive the value that it saw last, also after that value was replaced.
/// [`release`](Reader::release) drops it.
///
/// `B` is what it builds with: `()`, as a build is passed to each call; or the build of a [`LazyDogpile`](crate::LazyDogpile), so
/// that its calls take none ([`LazyReader`](crate::LazyReader)).
///
/// # Examples
///
/// ```
/// use dogpile::DogpileCell;
/// use std::time::Duration;
///
/// static WORDS: DogpileCell<Vec<&str>> = DogpileCell::new(Duration::from_secs(60));
///
/// let mut words = WORDS.reader();
/// let mut count = 0;
/// for _ in 0..1000 {
///     count += words.get_or_refresh(|| vec!["a", "b"]).len();
/// }
/// assert_eq!(count, 2000);
/// assert_eq!(WORDS.stats().builds, 1);
/// ```
pub struct Reader<'a, T, C = SystemClock, B = ()> {
    cell: &'a DogpileCell<T, C>,
    pub(crate) build: B,
    value: Option<Arc<T>>,
    /// Of `value`, once it was asked for.
    owned: Option<Owned<T>>,
    /// Of `value`.
    currency: Currency,
}

/// What a value that was read of a cell has to be compared with, to know whether it is still the cell's and may be served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Currency {
    /// The slot's version at which the value is the cell's; [`Version::NEVER`] if that is not known.
    version: Version,
    /// The same, if the value may be served at that version without a look at the clock; else [`Version::NEVER`].
    timeless: Version,
    /// At that version the value may be served before this tick.
    due_at: u64,
    /// The same, less what the coarse clock may lag: before this tick the coarse clock is enough.
    sure_end: u64,
}

impl Currency {
    /// Of no value.
    pub(crate) const NONE: Self =
        Self { version: Version::NEVER, timeless: Version::NEVER, due_at: 0, sure_end: 0 };

    /// Whether it is of no value.
    pub(crate) fn is_none(&self) -> bool {
        self.version == Version::NEVER
    }

    /// Of a value that was just read; [`NONE`](Self::NONE) if the cell does not hold it any more.
    pub(crate) fn of<T, C: Clock>(machine: &Machine<T, C>, value: &Arc<T>) -> Self {
        let Some((version, due_at)) = machine.version_of(value) else { return Self::NONE };
        Self {
            version,
            timeless: if due_at == FOREVER { version } else { Version::NEVER },
            due_at,
            sure_end: due_at.saturating_sub(nanos(machine.clock.coarse_lag())),
        }
    }

    /// Whether the value is the cell's and may be served without another question.
    ///
    /// One load: while the version does not change, nothing does. (A tick that changes alone is stored just before the version
    /// is: a read between the two stores goes by the old tick.) If this thread has seen a newer value in another way, the
    /// version has changed, because that happens before the value is swapped (G3).
    #[inline]
    pub(crate) fn holds<T, C: Clock>(&self, machine: &Machine<T, C>) -> bool {
        let version = machine.version();
        version == self.timeless || (version == self.version && self.is_early(machine))
    }

    /// Whether it is still before `due_at`.
    #[inline]
    fn is_early<T, C: Clock>(&self, machine: &Machine<T, C>) -> bool {
        machine.clock.is_coarsely_before(Tick(self.sure_end)) || is_early_after_all(machine, self.due_at)
    }
}

/// The answer near the end and after it, where the coarse clock alone does not give it.
#[cold]
#[inline(never)]
fn is_early_after_all<T, C: Clock>(machine: &Machine<T, C>, due_at: u64) -> bool {
    machine.is_before(due_at)
}

impl<'a, T, C, B> Reader<'a, T, C, B> {
    pub(crate) fn new(cell: &'a DogpileCell<T, C>, build: B) -> Self {
        Self { cell, build, value: None, owned: None, currency: Currency::NONE }
    }

    /// Drops the value that the handle keeps. The next read takes the current one.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let old = cell.set(1);
    /// let mut reader = cell.reader();
    /// reader.get();
    /// cell.set(2);
    /// assert_eq!(Arc::strong_count(&old), 2); // `old` and the reader's
    /// reader.release();
    /// assert_eq!(Arc::strong_count(&old), 1);
    /// ```
    pub fn release(&mut self) {
        self.forget();
        self.owned = None;
        self.value = None;
    }

    fn forget(&mut self) {
        self.currency = Currency::NONE;
    }
}

/// Reads that may build.
impl<T, C: Clock> Reader<'_, T, C> {
    /// Returns the value, rebuilding it if it is out of date. See
    /// [`DogpileCell::get_or_refresh`](crate::DogpileCell::get_or_refresh).
    ///
    /// # Panics
    ///
    /// Panics if `build` panics, or if it calls this method on the same cell while there is no value to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let mut reader = cell.reader();
    /// assert_eq!(**reader.get_or_refresh(|| 7), 7);
    /// cell.set(8);
    /// assert_eq!(**reader.get_or_refresh(|| unreachable!("it is fresh")), 8);
    /// ```
    #[inline]
    #[track_caller]
    pub fn get_or_refresh<F: FnOnce() -> T>(&mut self, build: F) -> &Arc<T> {
        self.read(build)
    }

    /// Returns the value, rebuilding it if it is out of date, with a build that may fail.
    ///
    /// # Errors
    ///
    /// Those of [`DogpileCell::try_get_or_refresh`](crate::DogpileCell::try_get_or_refresh).
    ///
    /// # Panics
    ///
    /// Panics if `build` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let mut limit = LIMIT.reader();
    /// assert_eq!(**limit.try_get_or_refresh(|| "7".parse::<u32>())?, 7);
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    #[inline]
    pub fn try_get_or_refresh<E, F>(&mut self, build: F) -> Result<&Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce() -> Result<T, E>,
    {
        self.try_read(build)
    }

    /// As [`get_or_refresh`](Reader::get_or_refresh), but the value is owned: see [`Owned`].
    ///
    /// # Panics
    ///
    /// Panics if `build` panics, or if it calls this method on the same cell while there is no value to serve.
    ///
    /// # Cost
    ///
    /// Beyond the read: an allocation the first time after a publication, then one reference count that only this reader's
    /// handles share.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// static WORDS: DogpileCell<Vec<&str>> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let mut reader = WORDS.reader();
    /// let words = reader.get_owned_or_refresh(|| vec!["a", "b"]);
    /// WORDS.set(vec!["c"]);
    /// assert_eq!(*words, ["a", "b"]);
    /// assert_eq!(*reader.get_owned_or_refresh(|| unreachable!()), ["c"]);
    /// ```
    #[inline]
    #[track_caller]
    pub fn get_owned_or_refresh<F: FnOnce() -> T>(&mut self, build: F) -> Owned<T> {
        self.read_owned(build)
    }
}

/// Reads that never build, and what all reads are made of.
impl<T, C: Clock, B> Reader<'_, T, C, B> {
    /// Keeps `value`, and finds out for how long it is the right one.
    fn keep(&mut self, value: Option<Arc<T>>) {
        let machine = &self.cell.machine;
        self.currency = value.as_ref().map_or(Currency::NONE, |value| Currency::of(machine, value));
        if value.as_ref().map(Arc::as_ptr) != self.value.as_ref().map(Arc::as_ptr) {
            // Never the last reference to the value, so no user code runs.
            self.owned = None;
        }
        // Runs user code (`T::drop`), so last.
        self.value = value;
    }

    /// As `get_or_refresh`, whatever the handle builds with.
    #[inline]
    #[track_caller]
    pub(crate) fn read(&mut self, build: impl FnOnce() -> T) -> &Arc<T> {
        if !self.is_current() {
            self.reload(build);
        }
        self.at_hand()
    }

    /// As `try_get_or_refresh`, whatever the handle builds with.
    #[inline]
    pub(crate) fn try_read<E: Into<BoxError>>(
        &mut self,
        build: impl FnOnce() -> Result<T, E>,
    ) -> Result<&Arc<T>, RefreshError> {
        let cell = self.cell;
        self.get_or_try(|| cell.try_get_or_refresh(build))
    }

    /// As `get_owned_or_refresh`, whatever the handle builds with.
    #[inline]
    #[track_caller]
    pub(crate) fn read_owned(&mut self, build: impl FnOnce() -> T) -> Owned<T> {
        self.read(build);
        match self.own() {
            Some(owned) => owned,
            None => unreachable!("a current reader has a value"),
        }
    }

    /// `refresh` is called if there is nothing that can be served without an election.
    #[inline]
    pub(crate) fn get_or_try<E>(
        &mut self,
        refresh: impl FnOnce() -> Result<Arc<T>, E>,
    ) -> Result<&Arc<T>, E> {
        if !self.is_current() {
            self.try_reload(refresh)?;
        }
        Ok(self.at_hand())
    }

    /// The value that the handle keeps, if it [is current](Reader::is_current).
    #[inline]
    fn at_hand(&self) -> &Arc<T> {
        match &self.value {
            Some(value) => value,
            None => unreachable!("a current reader has a value"),
        }
    }

    /// As [`get`](Reader::get), but the value is owned: see [`Owned`]. Never builds, never blocks.
    ///
    /// # Cost
    ///
    /// As [`get_owned_or_refresh`](Reader::get_owned_or_refresh).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let mut reader = cell.reader();
    /// assert!(reader.get_owned().is_none());
    /// cell.set(7);
    /// assert_eq!(reader.get_owned().as_deref(), Some(&7));
    /// ```
    #[inline]
    pub fn get_owned(&mut self) -> Option<Owned<T>> {
        self.get();
        self.own()
    }

    /// The value at hand.
    #[inline]
    fn own(&mut self) -> Option<Owned<T>> {
        match &self.owned {
            Some(owned) => Some(owned.clone()),
            None => self.own_first(),
        }
    }

    #[cold]
    #[inline(never)]
    fn own_first(&mut self) -> Option<Owned<T>> {
        let owned = Owned::new(Arc::clone(self.value.as_ref()?));
        self.owned = Some(owned.clone());
        Some(owned)
    }

    /// Returns the value if it may be served now, fresh or stale. It never builds and never blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let mut reader = cell.reader();
    /// assert_eq!(reader.get(), None);
    /// cell.set(7);
    /// assert_eq!(reader.get().map(|value| **value), Some(7));
    /// ```
    #[inline]
    pub fn get(&mut self) -> Option<&Arc<T>> {
        if !self.is_current() {
            self.look(DogpileCell::get);
        }
        self.value.as_ref()
    }

    /// Returns the value if no refresh is due: a fresh value, or a stale one while a build or a retry pause runs or a
    /// [`Refresher`](crate::Refresher) is attached.
    ///
    /// See [`DogpileCell::get_unless_due`](crate::DogpileCell::get_unless_due).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let mut reader = cell.reader();
    /// cell.set(7);
    /// assert_eq!(reader.get_unless_due().map(|value| **value), Some(7));
    /// cell.invalidate();
    /// assert_eq!(reader.get_unless_due(), None);
    /// ```
    #[inline]
    pub fn get_unless_due(&mut self) -> Option<&Arc<T>> {
        if !self.is_current() {
            self.look(DogpileCell::get_unless_due);
        }
        self.value.as_ref()
    }

    /// Whether the value at hand is the cell's and may be served without another question.
    #[inline]
    fn is_current(&self) -> bool {
        self.currency.holds(&self.cell.machine)
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn reload(&mut self, build: impl FnOnce() -> T) {
        // If the build panics, the old value is not taken for a current one.
        self.forget();
        let value = self.cell.get_or_refresh(build);
        self.keep(Some(value));
    }

    #[cold]
    #[inline(never)]
    fn try_reload<E>(&mut self, refresh: impl FnOnce() -> Result<Arc<T>, E>) -> Result<(), E> {
        self.forget();
        let value = match self.cell.machine.serve() {
            Some(value) => value,
            None => refresh()?,
        };
        self.keep(Some(value));
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn look(&mut self, read: impl FnOnce(&DogpileCell<T, C>) -> Option<Arc<T>>) {
        self.keep(read(self.cell));
    }
}

impl<T, C, B> fmt::Debug for Reader<'_, T, C, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("holds_a_value", &self.value.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::time::ManualClock;
    use std::time::Duration;

    /// What it is there for: a read after which nothing has changed looks at nothing but the sequence.
    #[test]
    fn a_value_that_was_read_is_current_until_something_changes() {
        let clock = ManualClock::new();
        for policy in [Policy::ttl(Duration::from_nanos(10)), Policy::never_expires()] {
            let cell = DogpileCell::with_clock(policy, &clock);
            let mut reader = Reader::new(&cell, ());
            assert!(!reader.is_current());
            reader.get_or_refresh(|| 1);
            assert!(reader.is_current());
            cell.set(2);
            assert!(!reader.is_current());
            assert_eq!(reader.get().map(|value| **value), Some(2));
            assert!(reader.is_current());
            reader.release();
            assert!(!reader.is_current());
            assert_eq!(reader.get_unless_due().map(|value| **value), Some(2));
            assert!(reader.is_current());
            cell.invalidate();
            assert_eq!(reader.get_unless_due(), None);
            assert!(!reader.is_current());
        }
    }
    /// Lags by two nanoseconds, and might by four.
    struct Lagging(ManualClock);

    impl Clock for Lagging {
        fn now(&self) -> Tick {
            self.0.now()
        }
        fn coarse_now(&self) -> Tick {
            Tick(self.0.now().0.saturating_sub(2))
        }
        fn coarse_lag(&self) -> Duration {
            Duration::from_nanos(4)
        }
    }

    #[test]
    fn a_value_is_current_up_to_its_last_nanosecond() {
        let clock = Lagging(ManualClock::new());
        let cell = DogpileCell::with_clock(Policy::ttl(Duration::from_nanos(10)), &clock);
        let mut reader = Reader::new(&cell, ());
        reader.get_or_refresh(|| 1);
        for age in 0..20 {
            assert_eq!(reader.is_current(), age <= 10, "at the age of {age} ns");
            clock.0.advance(Duration::from_nanos(1));
        }
    }
}
