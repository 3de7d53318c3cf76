//! A per-thread handle that keeps the value at hand.

use std::fmt;

use crate::clock::{Clock, SystemClock};
use crate::sync::Arc;

use super::machine::Machine;

/// A handle that keeps the value, for threads that read it very often.
///
/// A read that finds nothing changed touches no reference count: it costs one load and a compare beyond the
/// freshness check. Each thread makes its own.
///
/// A reader that is not used keeps the value that it saw last alive, though it has long been replaced;
/// [`release`](Reader::release) lets go of it.
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
pub struct Reader<'a, T, C = SystemClock> {
    machine: &'a Machine<T, C>,
    value: Option<Arc<T>>,
    /// The sequence of the slot from before `value` was read, if it was even; else one that never comes.
    sequence: u64,
}

/// Odd, so equal to no sequence at which nothing is changing.
const NEVER: u64 = u64::MAX;

impl<'a, T, C> Reader<'a, T, C> {
    pub(crate) fn new(machine: &'a Machine<T, C>) -> Self {
        Self { machine, value: None, sequence: NEVER }
    }

    /// Lets go of the value that the handle keeps. The next read takes the current one.
    pub fn release(&mut self) {
        self.sequence = NEVER;
        self.value = None;
    }
}

impl<T, C: Clock> Reader<'_, T, C> {
    /// As [`DogpileCell::get_or_refresh`](crate::DogpileCell::get_or_refresh).
    ///
    /// # Panics
    ///
    /// As there.
    #[inline]
    #[track_caller]
    pub fn get_or_refresh<F: FnOnce() -> T>(&mut self, build: F) -> &Arc<T> {
        if !self.is_current() {
            self.reload(build);
        }
        match &self.value {
            Some(value) => value,
            None => unreachable!("a current reader has a value"),
        }
    }

    /// As [`DogpileCell::get`](crate::DogpileCell::get): what may be served now; never builds, never blocks.
    #[inline]
    pub fn get(&mut self) -> Option<&Arc<T>> {
        if !self.is_current() {
            self.sequence = NEVER;
            let sequence = self.machine.sequence();
            self.value = self.machine.servable().and_then(crate::sync::into_arc);
            self.remember(sequence);
        }
        self.value.as_ref()
    }

    /// Whether the value at hand is the cell's and may be served without another question.
    #[inline]
    fn is_current(&self) -> bool {
        // The sequence is loaded after the slot was found quiet. So if a change made it so, the sequence has
        // moved with it; and if this thread has seen a newer value by another way, it has moved too, because it
        // becomes odd before the value is swapped (G3).
        self.machine.is_quiet() && self.machine.sequence() == self.sequence
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn reload(&mut self, build: impl FnOnce() -> T) {
        // If the build panics, the old value is not taken for a current one.
        self.sequence = NEVER;
        let sequence = self.machine.sequence();
        self.value = Some(match self.machine.serve() {
            Some(value) => value,
            None => self.machine.get_or_refresh(build),
        });
        self.remember(sequence);
    }

    /// Notes the sequence from before the value was read: the value is at least as new.
    fn remember(&mut self, sequence: u64) {
        self.sequence = if sequence.is_multiple_of(2) && self.value.is_some() { sequence } else { NEVER };
    }
}

impl<T, C> fmt::Debug for Reader<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("holds_a_value", &self.value.is_some()).finish_non_exhaustive()
    }
}
