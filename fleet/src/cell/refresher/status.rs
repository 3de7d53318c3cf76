//! What a refresher's owner and its thread or task share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dogpile::SharedError;

use crate::cell::reply::{Awaited, Reply, reply};
use crate::scheduler::{Wake, contained};

/// What a refresher's owner and its thread or task share.
#[derive(Default)]
pub(super) struct Status {
    /// Wakes the thread or the task.
    pub(super) wake: Arc<Wake>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    stopped: bool,
    /// There has been a fresh value.
    ready: bool,
    ended: bool,
    /// How many builds have been asked for.
    requests: u64,
    /// In a row.
    failures: u32,
    last_error: Option<SharedError>,
    /// To be answered when there is a fresh value.
    waiting: Vec<Reply<()>>,
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.wake.notify();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    pub(super) fn request(&self) {
        self.lock().requests += 1;
        self.wake.notify();
    }

    pub(super) fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// There is a fresh value.
    pub(super) fn has_value(&self) {
        let mut progress = self.lock();
        if !progress.ready {
            progress.ready = true;
            let waiting = std::mem::take(&mut progress.waiting);
            drop(progress);
            for reply in waiting {
                let _ = reply.send(());
            }
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.lock().ready
    }

    /// Answered when there is a fresh value, lost when the refresher ends before. `None`: one of these has happened.
    pub(super) fn awaits_value(&self) -> Option<Awaited<()>> {
        let mut progress = self.lock();
        if progress.ready || progress.ended {
            return None;
        }
        progress.waiting.retain(Reply::is_awaited);
        let (reply, awaited) = reply();
        progress.waiting.push(reply);
        Some(awaited)
    }

    pub(super) fn failures(&self) -> u32 {
        self.lock().failures
    }

    pub(super) fn last_error(&self) -> Option<SharedError> {
        self.lock().last_error.clone()
    }

    /// An attempt is over: with this error, or without one. Returns how many have failed in a row.
    pub(super) fn show(&self, error: Option<SharedError>) -> u32 {
        let mut progress = self.lock();
        let failures = if error.is_some() { progress.failures.saturating_add(1) } else { 0 };
        progress.failures = failures;
        let former = std::mem::replace(&mut progress.last_error, error);
        drop(progress);
        // The user's: without the lock, and a panic of its drop does not end the refresher.
        contained(|| drop(former));
        failures
    }
}

/// However the thread or the task ends, no one waits for it.
pub(super) struct Ended {
    pub(super) status: Arc<Status>,
    /// Answered, or lost, when all else has been dropped.
    pub(super) _reply: Reply<()>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut progress = self.status.lock();
        progress.ended = true;
        let waiting = std::mem::take(&mut progress.waiting);
        drop(progress);
        drop(waiting);
    }
}
