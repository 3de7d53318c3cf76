//! A thread of this crate.
//!
//! It exists only in the process that started it. In a process that was forked its handle is a copy: to join it would wait
//! for ever, and to detach it could detach a thread of that process, whose control block lies where that of the copy lay. So
//! a handle knows its process, and in another one its drop does nothing.

use std::io;
use std::thread::{self, JoinHandle};

pub(crate) struct OwnThread {
    /// `None` only while it is dropped.
    handle: Option<JoinHandle<()>>,
    process: u32,
}

impl OwnThread {
    pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let handle = thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Self { handle: Some(handle), process: std::process::id() })
    }

    /// Whether this is the thread that calls.
    pub(crate) fn is_current(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| handle.thread().id() == thread::current().id())
    }

    /// Whether it runs in the process that this one was forked from.
    pub(crate) fn is_of_another_process(&self) -> bool {
        self.process != std::process::id()
    }
}

/// Joins the thread, unless that would wait for ever.
impl Drop for OwnThread {
    fn drop(&mut self) {
        let is_current = self.is_current();
        let is_of_another_process = self.is_of_another_process();
        let Some(handle) = self.handle.take() else { return };
        if is_of_another_process {
            std::mem::forget(handle);
        } else if !is_current {
            // Its panics have been reported by the hook.
            let _ = handle.join();
        }
    }
}
