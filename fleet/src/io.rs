//! The thread that drives all connections of the process, and the bound on each operation.
//!
//! Connections of all stores are tasks of one runtime with one thread, `dogpile-fleet-io`, which starts with the first
//! operation and runs as long as the process. A caller hands its operation to that thread and waits for the answer. The
//! deadline covers the whole operation: the queue in front of the connection, name resolution, connecting, signing in, and
//! every byte of the answer. A name resolution that hangs occupies a thread of the runtime's pool, and no caller.
//!
//! A process that was forked has none of the threads of its parent: it is noticed by its id, and gets a runtime of its own.

use std::future::Future;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::store::StoreError;

/// The runtime, and the process that it belongs to.
static CURRENT: Mutex<Option<(u32, &'static Runtime)>> = Mutex::new(None);

/// What a caller waits beyond the deadline, which the thread itself observes: for a machine that is busy.
const GRACE: Duration = Duration::from_secs(1);

/// The runtime of this process. It is never dropped: connections of a store that is dropped end by themselves.
pub(crate) fn runtime() -> Result<&'static Runtime, StoreError> {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if let Some((owner, runtime)) = *current
        && owner == process
    {
        return Ok(runtime);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        // For name resolution. More than one, because one that hangs must not hold up the next.
        .max_blocking_threads(8)
        .thread_name("dogpile-fleet-io")
        .enable_all()
        .build()
        .map_err(|error| {
            StoreError::new(format!("the thread for connections could not be started: {error}"))
        })?;
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    *current = Some((process, runtime));
    Ok(runtime)
}

/// Has the thread carry out an operation, and waits for its result. The operation is given its deadline, and must come
/// back by then.
pub(crate) fn run<R, F>(timeout: Duration, operation: impl FnOnce(Instant) -> F) -> Result<R, StoreError>
where
    R: Send + 'static,
    F: Future<Output = Result<R, StoreError>> + Send + 'static,
{
    let timeout = timeout.min(crate::LONGEST);
    let operation = operation(Instant::now() + timeout);
    let (done, is_done) = sync_channel(1);
    let task = runtime()?.spawn(async move {
        // Fails if the caller has given up.
        let _ = done.send(operation.await);
    });
    match is_done.recv_timeout(timeout.saturating_add(GRACE)) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            task.abort();
            Err(StoreError::slow(timeout))
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(StoreError::new("the operation has panicked: see its message"))
        }
    }
}

/// Something that belongs to one process: made again in a process that was forked, which inherits no threads and must not
/// touch the connections of its parent.
pub(crate) struct PerProcess<S>(Mutex<Option<(u32, S)>>);

impl<S: Clone> PerProcess<S> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub(crate) fn get(&self, make: impl FnOnce() -> S) -> S {
        let process = std::process::id();
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((owner, shared)) = &*slot
            && *owner == process
        {
            return shared.clone();
        }
        let shared = make();
        // Not dropped: its tasks run in the parent.
        std::mem::forget(slot.replace((process, shared.clone())));
        shared
    }
}
