//! Builds that need the old value for themselves.
//!
//! # States of a build with a [`Writer`]
//!
//! *Open*: the old value is served, and the build has the lease. [`Writer::acquire_write_lock`] withholds the value and
//! *waits* until there is no reader: the cell is empty, new readers wait for the build, and the lease cannot be superseded. Then
//! it takes the `T` out of its `Arc`, and the build is *locked*. From there the build ends in one of two ways. The new value is
//! published and the old one is finalised in its turn. Or, after an error or a panic, the old one is put back, in the same step
//! in which the lease is released.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
#[cfg(feature = "async")]
use std::pin::pin;
use std::time::Duration;

use crate::cell::{BuildOutput, Concluded, Held, Term};
use crate::error::SharedError;
use crate::sync::{Arc, ThreadId, current_thread};
use crate::time::{Clock, FOREVER, SystemClock, deadline};

use super::SyncReaderCell;
use super::drain::{Drain, DrainTimeout};
use super::retirement::{Retirement, Tracked};

/// Passed to a build that may need the old value for itself. See
/// [`Request::get_with_writer`](crate::Request::get_with_writer).
pub struct Writer<'a, T: Send + Sync + 'static, C: Clock = SystemClock> {
    held: Held<'a, SyncReaderCell<T, C>>,
    section: Section<T>,
    /// The thread that builds. It may have the lock taken by another one.
    builder: ThreadId,
}

/// The state of the build.
enum Section<T> {
    Open,
    Waiting,
    /// With what it has taken, and the number of that.
    Locked(Option<(u64, T)>),
}

/// Exclusive access to the old value, while no reader is inside. Held until the build ends, even if it is dropped
/// earlier.
#[must_use = "the write lock is held until the build ends"]
pub struct WriteLock<'w, T> {
    old: Option<&'w mut T>,
}

impl<T> WriteLock<'_, T> {
    /// Returns the value that the build replaces, or `None` if there is none: at the first build, or after a `clear`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// for expected in [None, Some(1)] {
    ///     cell.request().no_cache().get_with_writer(|writer| {
    ///         let mut lock = writer.acquire_write_lock();
    ///         assert_eq!(lock.old().copied(), expected);
    ///         1
    ///     });
    /// }
    /// ```
    pub fn old(&mut self) -> Option<&mut T> {
        self.old.as_deref_mut()
    }
}

impl<T> fmt::Debug for WriteLock<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteLock").field("has_old", &self.old.is_some()).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static, C: Clock> fmt::Debug for Writer<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let locked = matches!(self.section, Section::Locked(_));
        f.debug_struct("Writer").field("locked", &locked).finish_non_exhaustive()
    }
}

impl<'a, T: Send + Sync + 'static, C: Clock> Writer<'a, T, C> {
    pub(super) fn new(held: Held<'a, SyncReaderCell<T, C>>) -> Self {
        Self { held, section: Section::Open, builder: current_thread().id() }
    }

    /// Runs a build that is given a writer. A panic is noted, and goes on.
    pub(super) fn run<R>(
        held: Held<'a, SyncReaderCell<T, C>>,
        build: impl FnOnce(&mut Self) -> R,
    ) -> (R, Self) {
        let mut writer = Self::new(held);
        match catch_unwind(AssertUnwindSafe(|| build(&mut writer))) {
            Ok(result) => (result, writer),
            Err(panic) => {
                writer.held.note_panic(&*panic);
                resume_unwind(panic)
            }
        }
    }

    fn retirement(&self) -> &Arc<Retirement<T>> {
        &self.held.handle().retirement
    }

    /// Waits until no reader is inside, and holds new readers back until the build ends.
    ///
    /// If the build then succeeds, its value is published, and the old one is finalised in its turn. If it fails or
    /// panics, the old value is put back and served again. Calling this again returns the same lock.
    ///
    /// # Blocking
    ///
    /// Blocks until the last reader has left and every value that was replaced before is finalised. Meanwhile, and
    /// until the build ends, new readers wait; [`get`](crate::SyncReaderCell::get) returns `None` at once. One reader
    /// cannot be kept out: if a build that has been superseded ends, its caller still gets what it has built, which no
    /// other reader sees.
    ///
    /// # Panics
    ///
    /// Panics if it would wait for itself: this thread holds a [`ReadGuard`](crate::ReadGuard) of the same cell, or is
    /// inside the cell's finalizer.
    ///
    /// Also panics if the build has been overtaken, since it must not replace what is in the cell now:
    ///
    /// * Another caller was elected in its place after the [`lease_timeout`](crate::Policy::lease_timeout).
    /// * It has lost its lease to a [`set`](crate::SyncReaderCell::set), [`clear`](crate::SyncReaderCell::clear),
    ///   [`revoke`](crate::SyncReaderCell::revoke) or [`reset`](crate::SyncReaderCell::reset), and the cell holds a
    ///   value or another build holds the lease. (While the cell is empty and the lease is free, the build still gets
    ///   the lock. Its value is not published.)
    ///
    /// The panic reaches the caller of the build. The value in the cell is not touched.
    ///
    /// # Deadlocks
    ///
    /// A thread that holds a [`ReaderArc`](crate::ReaderArc) of the cell waits for itself. The cell cannot detect this,
    /// since a `ReaderArc` may have been sent to another thread. A leaked `ReaderArc` is waited for without end.
    /// [`acquire_write_lock_timeout`](Writer::acquire_write_lock_timeout) limits the wait.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// cell.set(1);
    /// let value = cell.request().no_cache().get_with_writer(|writer| {
    ///     let mut lock = writer.acquire_write_lock();
    ///     assert!(cell.get().is_none()); // new readers wait
    ///     lock.old().map_or(0, |old| *old + 1)
    /// });
    /// assert_eq!(*value, 2);
    /// ```
    #[track_caller]
    pub fn acquire_write_lock(&mut self) -> WriteLock<'_, T> {
        assert!(
            !self.retirement().has_guard_of_this_thread(),
            "acquire_write_lock would wait for itself: this thread holds a ReadGuard of the same cell; drop it before"
        );
        assert!(
            !self.retirement().is_finalized_by_this_thread(),
            "acquire_write_lock would wait for itself: it was called from inside the finalizer of the same cell"
        );
        let locked = self.lock(FOREVER).is_ok();
        assert!(
            locked,
            "acquire_write_lock was called by a build that has been overtaken (by `set`, or superseded after its lease \
             timeout) and must not write; acquire_write_lock_timeout returns an error instead"
        );
        self.locked()
    }

    /// Waits until no reader is inside, at most for `wait` on the cell's clock, and holds new readers back until the
    /// build ends.
    ///
    /// Otherwise like [`acquire_write_lock`](Writer::acquire_write_lock).
    ///
    /// # Errors
    ///
    /// [`DrainTimeout`] if some readers have not left in time or a finalizer has not ended, or if
    /// [`acquire_write_lock`](Writer::acquire_write_lock) would panic. The old value is served again at once, and the build goes on. If the build has been overtaken, its
    /// value is not published; its caller gets what the cell serves, or else that value.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::SyncReaderCell;
    /// use std::time::Duration;
    ///
    /// let cell = SyncReaderCell::new(Duration::from_secs(60), |_old: u32| {});
    /// let reader = cell.set(1);
    /// let value = cell.request().no_cache().get_with_writer(|writer| {
    ///     let timeout = writer.acquire_write_lock_timeout(Duration::from_millis(1)).unwrap_err();
    ///     assert_eq!(timeout.readers, 1);
    ///     2 // beside the old value, which `reader` still reads
    /// });
    /// assert_eq!((*reader, *value), (1, 2));
    /// ```
    pub fn acquire_write_lock_timeout(&mut self, wait: Duration) -> Result<WriteLock<'_, T>, DrainTimeout> {
        if self.retirement().has_guard_of_this_thread() {
            // At least the guard of its own.
            return Err(DrainTimeout { readers: self.retirement().readers().max(1) });
        }
        if self.retirement().is_finalized_by_this_thread() {
            return Err(DrainTimeout { readers: 0 });
        }
        let deadline = deadline(&self.held.machine().clock, wait);
        self.lock(deadline)?;
        Ok(self.locked())
    }

    fn locked(&mut self) -> WriteLock<'_, T> {
        match &mut self.section {
            Section::Locked(old) => WriteLock { old: old.as_mut().map(|(_, old)| old) },
            Section::Open | Section::Waiting => unreachable!("it has just been locked"),
        }
    }

    fn lock(&mut self, deadline: u64) -> Result<(), DrainTimeout> {
        if let Section::Locked(_) = self.section {
            return Ok(());
        }
        self.end_wait();
        let machine = self.held.machine();
        let Ok(value) = machine.withhold(self.held.ticket()) else {
            return Err(DrainTimeout { readers: 0 });
        };
        self.section = Section::Waiting;
        self.retirement().withhold(value);
        match self.retirement().take_withheld(self.builder, &machine.clock, deadline) {
            Ok(old) => {
                self.section = Section::Locked(old);
                Ok(())
            }
            Err(timeout) => {
                self.end_wait();
                Err(timeout)
            }
        }
    }

    /// Ends the section. Returns what was withheld.
    fn end_section(&mut self) -> Option<Arc<Tracked<T>>> {
        match std::mem::replace(&mut self.section, Section::Open) {
            Section::Open => None,
            Section::Waiting => self.retirement().end_withholding(),
            Section::Locked(old) => old.map(|(number, old)| self.retirement().put_back(number, old)),
        }
    }

    /// Restores the value if the lock was never acquired: the time was over, or the clock panicked and the build caught that.
    fn end_wait(&mut self) {
        if let Section::Waiting = self.section {
            let value = self.end_section();
            self.retire(self.held.machine().put_back(self.held.ticket(), value));
        }
    }

    /// Publishes `value`, and drains the old one as the cell's [`Drain`] says.
    pub(super) fn publish(mut self, value: T, term: Term) -> Arc<Tracked<T>> {
        let mut concluded = self.conclude(value, term);
        self.retirement().drain(concluded.leftover.replaced.take(), &self.held.machine().clock);
        self.end(concluded)
    }

    /// As [`publish`](Writer::publish), for a task. If the task is dropped while the old value drains, the value goes to the
    /// background and the lease is released.
    #[cfg(feature = "async")]
    pub(super) async fn publish_async(mut self, value: T, term: Term) -> Arc<Tracked<T>> {
        let mut concluded = self.conclude(value, term);
        let replaced = concluded.leftover.replaced.take();
        {
            let mut drained = pin!(self.retirement().drain_async(replaced, &self.held.machine().clock));
            // It may run the finalizer, which must not wait for this build.
            std::future::poll_fn(|cx| {
                let _inside = self.held.inside();
                drained.as_mut().poll(cx)
            })
            .await;
        }
        self.end(concluded)
    }

    /// Publishes the result. What it has replaced is left over, also if the build had taken that out.
    fn conclude(&mut self, value: T, term: Term) -> Concluded<Tracked<T>> {
        self.end_wait();
        let retirement = &Arc::clone(self.retirement());
        let value = Arc::new(Tracked::new(value, retirement));
        // Before the lease may be released: if it is not published, the next writer must wait for its reader.
        retirement.add_unpublished(&value);
        let release = retirement.drain == Drain::Background;
        let output = BuildOutput { release, ..BuildOutput::new(value, term) };
        let mut concluded = self.held.conclude(output, &**retirement);
        // Not both: while the build has the old value, there is none in the slot.
        let replaced = concluded.leftover.replaced.take();
        concluded.leftover.replaced = replaced.or_else(|| self.end_section());
        concluded
    }

    /// What the caller of the build gets when the old value has drained, which may have taken long: what was published
    /// meanwhile, which this thread may have seen (G3).
    fn end(self, Concluded { served, record, leftover, .. }: Concluded<Tracked<T>>) -> Arc<Tracked<T>> {
        let demand = self.held.ticket().demand();
        let newest = match record.and_then(|record| self.held.machine().newer_than(record.generation)) {
            Some((value, record)) if demand.accepts_later(&record) => value,
            _ => served,
        };
        // The lease, if it is still held; then what may panic.
        drop(self);
        drop(leftover);
        newest
    }

    /// The build has failed.
    pub(super) fn fail(mut self, error: SharedError) -> SharedError {
        // Before the value leaves the section: the clock may panic.
        let now = self.held.machine().now();
        let withheld = self.end_section();
        let rejected = self.held.fail_with(&error, withheld, now);
        self.retire(rejected);
        error
    }

    /// Retires a value that is not put back because it was cleared.
    fn retire(&self, cleared: Option<Arc<Tracked<T>>>) {
        if let Some(cleared) = cleared {
            self.retirement().retire(Some(cleared));
        }
    }
}

impl<T: Send + Sync + 'static, C: Clock> Drop for Writer<'_, T, C> {
    /// A build that ends without a result: it panicked.
    fn drop(&mut self) {
        let withheld = self.end_section();
        let rejected = self.held.give_back(withheld);
        self.retire(rejected);
    }
}
