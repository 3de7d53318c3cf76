//! The crate's own threads: which of them may join which, and what becomes of them in a forked process.
//!
//! # Joins
//!
//! There are two kinds: finalizer threads and refresher threads. Both run user code, which may drop a cell or a
//! [`Refresher`](crate::Refresher), and such a drop joins a thread. A refresher thread joins no other thread; a finalizer
//! thread joins refresher threads only. So drops on these threads cannot deadlock.
//!
//! # Fork
//!
//! A thread exists only in the process that started it. In a child process its [`JoinHandle`] is a copy. To join that would
//! wait for a thread that never ends, or take a result that was never written. So a handle knows its process, and in another
//! one its drop and its `join` do nothing.

use std::cell::Cell;
use std::io;

use crate::sync::{self, Thread, thread_local};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Not started by the crate.
    Foreign,
    Finalizer,
    Refresher,
}

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Foreign) };
}

/// What the calling thread is for.
pub(crate) fn role() -> Role {
    ROLE.with(Cell::get)
}

/// Starts a thread of the crate.
pub(crate) fn spawn(role: Role, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle> {
    let handle = sync::ThreadBuilder::new().name(name.into()).spawn(move || {
        ROLE.with(|this| this.set(role));
        work();
    })?;
    // After the thread has started: where there are no threads, there is no process id either.
    Ok(JoinHandle { handle: Some(handle), process: std::process::id() })
}

/// The interface of [`std::thread::JoinHandle`].
pub(crate) struct JoinHandle {
    /// `None` only while it is consumed.
    handle: Option<sync::JoinHandle<()>>,
    /// The process that the thread runs in.
    process: u32,
}

impl JoinHandle {
    pub(crate) fn thread(&self) -> &Thread {
        match &self.handle {
            Some(handle) => handle.thread(),
            None => unreachable!("taken by `join` and `drop`, which consume the handle"),
        }
    }

    /// Whether the thread runs in this process. If not, this is a copy in a process that was forked.
    pub(crate) fn is_in_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Waits for the thread to end. Returns at once if the thread runs in another process.
    pub(crate) fn join(mut self) -> std::thread::Result<()> {
        match self.handle.take_if(|_| self.process == std::process::id()) {
            Some(handle) => handle.join(),
            None => Ok(()),
        }
    }
}

impl Drop for JoinHandle {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take_if(|_| self.process != std::process::id()) {
            // To detach it could detach a thread of this process, whose control block lies where that of the copy lay.
            std::mem::forget(handle);
        }
    }
}
