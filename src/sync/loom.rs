//! Threads under loom.
//!
//! loom's own `park` loses its token if the thread takes a lock before it parks. So each thread has a token of this module's,
//! which may also wake it once for nothing.

use std::cell::OnceCell;
use std::io;
use std::time::Duration;

use ::loom::sync::Notify;
pub(crate) use ::loom::thread::ThreadId;

use super::Arc;

::loom::thread_local! {
    static TOKEN: OnceCell<Arc<Notify>> = OnceCell::new();
}

fn token() -> Arc<Notify> {
    TOKEN.with(|token| Arc::clone(token.get_or_init(Arc::default)))
}

#[derive(Clone)]
pub(crate) struct Thread {
    id: ThreadId,
    token: Arc<Notify>,
}

impl Thread {
    pub(crate) fn id(&self) -> ThreadId {
        self.id
    }

    pub(crate) fn unpark(&self) {
        self.token.notify();
    }
}

pub(crate) fn current_thread() -> Thread {
    Thread { id: ::loom::thread::current().id(), token: token() }
}

pub(crate) fn park() {
    token().wait();
}

/// Models have a clock of their own, which does not sleep.
pub(crate) fn park_timeout(_: Duration) {
    unreachable!("a model that waits for the system's clock")
}

pub(crate) struct ThreadBuilder(::loom::thread::Builder);

impl ThreadBuilder {
    pub(crate) fn new() -> Self {
        Self(::loom::thread::Builder::new())
    }

    pub(crate) fn name(self, name: String) -> Self {
        Self(self.0.name(name))
    }

    pub(crate) fn spawn(self, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let token = Arc::new(Notify::new());
        let own = Arc::clone(&token);
        let handle = self.0.spawn(move || {
            TOKEN.with(|token| token.set(own).expect("before the thread has asked for it"));
            work();
        })?;
        let thread = Thread { id: handle.thread().id(), token };
        Ok(JoinHandle { handle, thread })
    }
}

pub(crate) struct JoinHandle<R> {
    handle: ::loom::thread::JoinHandle<R>,
    thread: Thread,
}

impl<R> JoinHandle<R> {
    pub(crate) fn thread(&self) -> &Thread {
        &self.thread
    }

    pub(crate) fn join(self) -> std::thread::Result<R> {
        self.handle.join()
    }
}
