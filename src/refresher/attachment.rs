//! What a refresher's owner needs of its cell, whose type it does not know.

use std::time::Duration;

use crate::cell::{Kind, Refreshable, WeakHandle};
use crate::sync::Arc;
use crate::time::Clock;

use super::status::Status;

#[cfg(feature = "async")]
use std::pin::Pin;

/// A refresher's cell, its type erased.
pub(super) trait Attached: Send + Sync {
    /// From now on readers build again.
    fn detach(&self);
    /// This thread is about to wait for the end of a build, which may wait for a guard that this thread holds.
    fn give_way(&self);
    /// Asks for a build that begins from now on.
    fn refresh_now(&self);
    /// Waits until there is a value that may be served.
    fn wait_ready(&self, time: Duration) -> bool;
    #[cfg(feature = "async")]
    fn wait_ready_async(&self, time: Duration) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
    fn clock(&self) -> &dyn Clock;
}

/// A refresher's cell, and its status.
pub(super) struct Attachment<K: Kind + 'static> {
    pub(super) cell: WeakHandle<K>,
    pub(super) clock: K::Clock,
    pub(super) status: Arc<Status>,
}

impl<K: Refreshable> Attached for Attachment<K> {
    fn detach(&self) {
        if let Some(cell) = self.cell.upgrade() {
            cell.machine().detach(&self.status);
        }
    }

    fn give_way(&self) {
        if let Some(cell) = self.cell.upgrade() {
            cell.give_way();
        }
    }

    fn refresh_now(&self) {
        if let Some(cell) = self.cell.upgrade() {
            self.status.ask_for(cell.machine().latest_origin());
        }
    }

    fn wait_ready(&self, time: Duration) -> bool {
        self.cell.upgrade().is_some_and(|cell| cell.wait_ready(time))
    }

    #[cfg(feature = "async")]
    fn wait_ready_async(&self, time: Duration) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async move {
            let Some(cell) = self.cell.upgrade() else { return false };
            cell.wait_ready_async(time).await
        })
    }

    fn clock(&self) -> &dyn Clock {
        &self.clock
    }
}
