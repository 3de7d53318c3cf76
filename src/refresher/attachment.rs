//! What a refresher's owner and its loop share: the status of the loop, and the cell.

use std::any::Any;
use std::time::Duration;

use crate::cell::{Attempt, Kind, Outcome, Refreshable, WeakHandle};
use crate::contain::contain;
use crate::error::SharedError;
use crate::signal::Signal;
use crate::sync::{Arc, Mutex};
use crate::time::deadline;

#[cfg(feature = "async")]
use std::pin::Pin;

/// What a refresher's owner and its thread or task share.
pub(super) struct Status {
    pub(super) signal: Arc<Signal>,
    pub(super) state: Mutex<StatusState>,
    /// Settled when the thread or task has ended.
    pub(super) ended: Arc<Attempt<()>>,
}

#[derive(Default)]
pub(super) struct StatusState {
    /// In a row.
    pub(super) failures: u32,
    pub(super) last_error: Option<SharedError>,
    /// A build is asked for that begins after the build or `set` of this number.
    pub(super) refresh_after: Option<u64>,
}

impl Status {
    pub(super) fn new() -> Self {
        Self { signal: Arc::default(), state: Mutex::new(StatusState::default()), ended: Attempt::open() }
    }

    /// A build has ended: with this error, or without one.
    pub(super) fn show(&self, error: Option<SharedError>) {
        let mut state = self.state.lock();
        state.failures = if error.is_some() { state.failures.saturating_add(1) } else { 0 };
        let former = std::mem::replace(&mut state.last_error, error);
        drop(state);
        // The user's: without a lock, and a panic of its drop does not end the refresher.
        contain(|| drop(former));
    }

    /// The clock has panicked, and the refresher goes no further.
    pub(super) fn ended_by(&self, panic: &(dyn Any + Send)) {
        self.show(Some(SharedError::of_panic("clock", panic)));
    }
}

/// Settles [`Status::ended`] when it is dropped: after all that the thread or task has held.
pub(super) struct Ended(pub(super) Arc<Status>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.complete(Outcome::Abandoned);
    }
}

/// What a refresher's owner needs of its cell, whose type it does not know.
pub(super) trait Attached: Send + Sync {
    /// From now on readers build again.
    fn detach(&self);
    /// This thread is about to wait for the end of a build, which may wait for a guard that this thread holds.
    fn give_way(&self);
    /// Asks for a build that begins from now on.
    fn refresh_now(&self);
    /// Waits until there is a value that may be served.
    fn wait_ready(&self, time: Duration) -> bool;
    /// Waits until the thread or task has ended.
    fn wait_ended(&self, time: Duration) -> bool;
    #[cfg(feature = "async")]
    fn wait_ready_async(&self, time: Duration) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
    #[cfg(feature = "async")]
    fn wait_ended_async(&self, time: Duration) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}

/// A refresher's cell, and its status.
pub(super) struct Attachment<K: Kind + 'static> {
    pub(super) cell: WeakHandle<K>,
    pub(super) clock: K::Clock,
    pub(super) status: Arc<Status>,
    pub(super) rests: bool,
}

impl<K: Refreshable> Attached for Attachment<K> {
    fn detach(&self) {
        if let Some(cell) = self.cell.upgrade() {
            cell.machine().detach(&self.status.signal, self.rests);
        }
    }

    fn give_way(&self) {
        if let Some(cell) = self.cell.upgrade() {
            cell.give_way();
        }
    }

    fn refresh_now(&self) {
        if let Some(cell) = self.cell.upgrade() {
            let origin = cell.machine().latest_origin();
            self.status.state.lock().refresh_after = Some(origin);
            self.status.signal.notify();
        }
    }

    fn wait_ready(&self, time: Duration) -> bool {
        let Some(cell) = self.cell.upgrade() else { return false };
        cell.wait_ready(time)
    }

    fn wait_ended(&self, time: Duration) -> bool {
        let ended = &self.status.ended;
        if time.is_zero() {
            return ended.outcome().is_some();
        }
        ended.wait(&self.clock, deadline(&self.clock, time))
    }

    #[cfg(feature = "async")]
    fn wait_ready_async(&self, time: Duration) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async move {
            let Some(cell) = self.cell.upgrade() else { return false };
            cell.wait_ready_async(time).await
        })
    }

    #[cfg(feature = "async")]
    fn wait_ended_async(&self, time: Duration) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(Arc::clone(&self.status.ended).wait_async(&self.clock, deadline(&self.clock, time)))
    }
}
