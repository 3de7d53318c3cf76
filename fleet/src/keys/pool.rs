//! Threads that use the store where no caller is to wait for it: `dogpile-fleet-jobs`.
//!
//! A thread is started when a job comes and none is idle, up to [`MOST`], and ends when it has been idle for [`REST`]. So a loader
//! that does nothing has none. What is queued when the loader is dropped is still done.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many threads a loader has at most.
const MOST: usize = 4;

/// How long an idle thread waits for another job.
const REST: Duration = Duration::from_secs(10);

pub(super) type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Pool {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// The process that the threads belong to: one that was forked has none.
    process: u32,
    closed: bool,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether jobs wait for a thread.
    pub(super) fn is_crowded(&self) -> bool {
        !self.lock().jobs.is_empty()
    }

    /// Has a thread run `job`. Where there is none, and none can be started, this one does.
    pub(super) fn submit(self: &Arc<Self>, job: Job) {
        let mut state = self.lock();
        let process = std::process::id();
        let mut of_parent = None;
        if state.process != process {
            let closed = state.closed;
            of_parent = Some(std::mem::replace(&mut *state, State { process, closed, ..State::default() }));
        }
        state.jobs.push_back(job);
        let starts = state.idle < state.jobs.len() && state.threads < MOST;
        if starts {
            state.threads += 1;
        }
        drop(state);
        drop(of_parent);
        if starts {
            self.start();
        } else {
            self.ready.notify_one();
        }
    }

    /// Starts a thread, which is counted already.
    fn start(self: &Arc<Self>) {
        let pool = Arc::clone(self);
        let thread = std::thread::Builder::new().name("dogpile-fleet-jobs".to_owned());
        if thread.spawn(move || pool.run()).is_ok() {
            return;
        }
        let mut state = self.lock();
        state.threads -= 1;
        let jobs = if state.threads == 0 { std::mem::take(&mut state.jobs) } else { VecDeque::new() };
        drop(state);
        for job in jobs {
            job();
        }
    }

    fn run(self: &Arc<Self>) {
        let _running = Running(self);
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            if state.closed {
                return;
            }
            state.idle += 1;
            let waited = self.ready.wait_timeout(state, REST).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            state.idle -= 1;
            if waited.1.timed_out() && state.jobs.is_empty() {
                return;
            }
        }
    }

    /// No thread waits for another job.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }
}

/// A thread that runs. If a job panics, another thread takes the next one.
struct Running<'a>(&'a Arc<Pool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let goes_on = !state.jobs.is_empty();
        if !goes_on {
            state.threads -= 1;
        }
        drop(state);
        if goes_on {
            self.0.start();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn jobs_run_beside_each_other_after_a_panic_and_after_the_end() {
        let pool = Arc::new(Pool::default());
        let (done, is_done) = channel();
        let (go_on, may_go_on) = channel::<()>();
        pool.submit(Box::new(move || may_go_on.recv().unwrap()));
        let sender = done.clone();
        pool.submit(Box::new(move || sender.send("beside the one that waits").unwrap()));
        assert_eq!(is_done.recv().unwrap(), "beside the one that waits");
        go_on.send(()).unwrap();

        for _ in 0..2 * MOST {
            pool.submit(Box::new(|| panic!("as planned")));
        }
        let sender = done.clone();
        pool.submit(Box::new(move || sender.send("after the panics").unwrap()));
        assert_eq!(is_done.recv().unwrap(), "after the panics");

        pool.close();
        pool.submit(Box::new(move || done.send("after the end").unwrap()));
        assert_eq!(is_done.recv().unwrap(), "after the end");
        assert!(pool.lock().threads <= MOST);
    }
}
