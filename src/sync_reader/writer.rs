//! Builds that need the old value for themselves.
//!
//! # States of a build with a [`Writer`]
//!
//! *Open*: the old value is in service, the build has the lease. [`Writer::acquire_write_lock`] withholds the value,
//! waits until nobody reads anything, takes the `T` out of its `Arc`, and the build is *locked*: the cell is empty,
//! new readers wait for the build, the lease cannot be superseded. From there the build ends in one of two ways:
//! the new value is published and the old one finalised in its turn, or (error, panic) the old one is put back.

use std::fmt;
use std::time::Duration;

use crate::cell::machine::{Concluded, Place};
use crate::cell::{Held, Machine};
use crate::clock::{Clock, FOREVER, SystemClock};
use crate::sync::Arc;

use super::drain::{Drain, DrainTimeout, Room, Tracked, deadline};

/// What a build gets that may need the old value for itself. See
/// [`SyncReaderCell::get_or_refresh_with`](crate::SyncReaderCell::get_or_refresh_with).
pub struct Writer<'a, T, C: Clock = SystemClock> {
    room: &'a Arc<Room<T>>,
    held: Held<&'a Machine<Tracked<T>, C>>,
    section: Section<T>,
}

enum Section<T> {
    Open,
    Locked { old: Option<(u64, T)>, place: Place },
}

/// Under it nobody reads. The room stays empty until the build ends, also when this is dropped before.
#[must_use = "the write lock is held until the build ends"]
pub struct WriteLock<'w, T> {
    old: Option<&'w mut T>,
}

impl<T> WriteLock<'_, T> {
    /// The value that the build is to replace. `None` if there is none: at the first build, or after a `clear`.
    pub fn old(&mut self) -> Option<&mut T> {
        self.old.as_deref_mut()
    }
}

impl<T> fmt::Debug for WriteLock<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteLock").field("has_old", &self.old.is_some()).finish_non_exhaustive()
    }
}

impl<T, C: Clock> fmt::Debug for Writer<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let locked = matches!(self.section, Section::Locked { .. });
        f.debug_struct("Writer").field("locked", &locked).finish_non_exhaustive()
    }
}

impl<'a, T, C: Clock> Writer<'a, T, C> {
    pub(super) fn new(room: &'a Arc<Room<T>>, mut held: Held<&'a Machine<Tracked<T>, C>>) -> Self {
        // It would count as a reader.
        held.forget_previous();
        Self { room, held, section: Section::Open }
    }

    /// Waits until nobody reads, and holds new readers back until the build ends.
    ///
    /// If the build then succeeds, its value is published, and the old one is finalised in its turn. If it fails or
    /// panics, the old one is put back and served again. Calling it again returns the same lock.
    ///
    /// # Blocking
    ///
    /// Until the last reader has left. Readers who come meanwhile wait for the end of the build;
    /// [`get`](crate::SyncReaderCell::get) returns `None` at once.
    ///
    /// # Panics
    ///
    /// If this thread holds a [`ReadGuard`](crate::ReadGuard) of the same cell: it would wait for itself. And if
    /// the build has been superseded (see [`Policy::lease_timeout`](crate::Policy::lease_timeout)): somebody else may
    /// write now. The value in the cell is not touched.
    ///
    /// # Deadlocks
    ///
    /// A thread that holds a [`ReaderArc`](crate::ReaderArc) of the cell waits for itself, which cannot be known,
    /// since such a handle may have been sent elsewhere. So does one whose `ReaderArc` was leaked. See
    /// [`acquire_write_lock_timeout`](Writer::acquire_write_lock_timeout).
    #[track_caller]
    pub fn acquire_write_lock(&mut self) -> WriteLock<'_, T> {
        assert!(
            !self.room.is_read_by_this_thread(u64::MAX),
            "acquire_write_lock would wait for itself: this thread holds a ReadGuard of the same cell; drop it before"
        );
        let locked = self.lock(FOREVER).is_ok();
        assert!(
            locked,
            "acquire_write_lock was called by a build that has been superseded after its lease timeout; \
             somebody else builds in its place and may be writing"
        );
        self.locked()
    }

    /// As [`acquire_write_lock`](Writer::acquire_write_lock), but waits for the readers at most for `wait`, on the
    /// cell's clock.
    ///
    /// # Errors
    ///
    /// The readers have not left in time, or never could because this thread holds a
    /// [`ReadGuard`](crate::ReadGuard) of the cell, or the build has been superseded. The old value is back in
    /// service; the build goes on.
    pub fn acquire_write_lock_timeout(&mut self, wait: Duration) -> Result<WriteLock<'_, T>, DrainTimeout> {
        if self.room.is_read_by_this_thread(u64::MAX) {
            return Err(DrainTimeout { readers: self.room.readers() });
        }
        let deadline = deadline(&self.held.machine().clock, wait);
        self.lock(deadline)?;
        Ok(self.locked())
    }

    fn locked(&mut self) -> WriteLock<'_, T> {
        match &mut self.section {
            Section::Open => unreachable!("it has just been locked"),
            Section::Locked { old, .. } => WriteLock { old: old.as_mut().map(|(_, old)| old) },
        }
    }

    fn lock(&mut self, deadline: u64) -> Result<(), DrainTimeout> {
        if let Section::Locked { .. } = self.section {
            return Ok(());
        }
        let machine = self.held.machine();
        let Some(withheld) = machine.withhold(self.held.ticket()) else {
            return Err(DrainTimeout { readers: self.room.readers() });
        };
        match self.room.claim(withheld.value, &machine.clock, deadline) {
            Ok(old) => {
                self.section = Section::Locked { old, place: withheld.place };
                Ok(())
            }
            Err(still_read) => {
                self.put_back(still_read.value, withheld.place);
                Err(still_read.timeout)
            }
        }
    }

    fn put_back(&self, value: Option<Arc<Tracked<T>>>, place: Place) {
        let machine = self.held.machine();
        if let Some(value) = &value {
            self.room.put_back(value);
        }
        if let Some(cleared) = machine.put_back(self.held.ticket(), value, place) {
            self.room.retire_withheld(&cleared);
            self.room.release(Some(cleared));
        }
    }

    /// Publishes `value`, and lets go of the old one as the cell's `drain` says.
    pub(super) fn publish(mut self, value: T, drain: Drain) -> Arc<Tracked<T>> {
        let machine = self.machine();
        let value = Arc::new(Tracked::new(value, self.room));
        let room = self.room;
        let hold = matches!(drain, Drain::Wait(_));
        let Concluded { served, replaced } =
            self.held.conclude(value, None, !hold, |new, slot| room.published(new, slot.load().as_ref()));
        if let Section::Locked { old: Some((number, old)), .. } =
            std::mem::replace(&mut self.section, Section::Open)
        {
            room.take_in(number, old);
        }
        room.let_go(replaced, drain, &machine.clock);
        served
    }

    /// The build has failed.
    pub(super) fn fail<E: Send + Sync + 'static>(mut self, error: E) -> Arc<E> {
        self.unlock();
        self.held.fail_with(error)
    }

    /// If it is locked: puts the old value back.
    fn unlock(&mut self) {
        if let Section::Locked { old, place } = std::mem::replace(&mut self.section, Section::Open) {
            let value = old.map(|(number, old)| Arc::new(Tracked::numbered(old, number, self.room)));
            self.put_back(value, place);
        }
    }

    pub(super) fn machine(&self) -> &'a Machine<Tracked<T>, C> {
        self.held.home()
    }
}

impl<T, C: Clock> Drop for Writer<'_, T, C> {
    /// A build that ends without a result: it panicked.
    fn drop(&mut self) {
        self.unlock();
    }
}
