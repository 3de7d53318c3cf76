//! What the notifier, the watching thread and the builds tell each other.
//!
//! A *change* is a notification about a name on one of the trails, or a call of `reload_now`. Changes are counted. A read of
//! the files *covers* the changes that were counted before it began: whatever they were about, the read has seen it. So a
//! change that is not covered is a reason to read again, and one that is covered is not.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
pub(super) struct Changes {
    state: Mutex<State>,
    /// Notified when there is an uncovered change, and when the watch is to stop.
    condvar: Condvar,
}

#[derive(Default)]
struct State {
    count: u64,
    /// The changes up to this number are covered.
    covered: u64,
    latest: Option<Instant>,
    /// The change of this number is a call of `reload_now`.
    forced: u64,
    /// A build has begun.
    has_begun: bool,
    is_stopped: bool,
}

/// The watch is being dropped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped;

impl Changes {
    pub(super) fn add(&self) {
        let mut state = self.state.lock();
        state.count += 1;
        state.latest = Some(Instant::now());
        self.condvar.notify_all();
    }

    pub(super) fn force(&self) {
        let mut state = self.state.lock();
        state.count += 1;
        state.forced = state.count;
        self.condvar.notify_all();
    }

    /// A build begins.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        if !state.has_begun {
            state.has_begun = true;
            self.condvar.notify_all();
        }
    }

    /// Waits until a build has begun, until `deadline` at the latest.
    pub(super) fn wait_for_build(&self, deadline: Instant) -> Result<(), Stopped> {
        let mut state = self.state.lock();
        while !state.has_begun && !state.is_stopped {
            if self.condvar.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        if state.is_stopped { Err(Stopped) } else { Ok(()) }
    }

    pub(super) fn stop(&self) {
        self.state.lock().is_stopped = true;
        self.condvar.notify_all();
    }

    /// To be asked before a read begins, and given to [`cover`](Changes::cover) after it has ended well.
    pub(super) fn count(&self) -> u64 {
        self.state.lock().count
    }

    /// Returns whether a call of `reload_now` is among the changes that are covered now, and were not before.
    pub(super) fn cover(&self, count: u64) -> bool {
        let mut state = self.state.lock();
        let is_forced = (state.covered + 1..=count).contains(&state.forced);
        state.covered = state.covered.max(count);
        is_forced
    }

    pub(super) fn are_covered(&self) -> bool {
        let state = self.state.lock();
        state.covered == state.count
    }

    pub(super) fn latest(&self) -> Option<Instant> {
        self.state.lock().latest
    }

    /// Waits for a change that is not covered, until `deadline` at the latest (`None`: for ever).
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Result<(), Stopped> {
        let mut state = self.state.lock();
        while !state.is_stopped && state.count <= state.covered {
            match deadline {
                Some(deadline) if self.condvar.wait_until(&mut state, deadline).timed_out() => break,
                Some(_) => {}
                None => self.condvar.wait(&mut state),
            }
        }
        if state.is_stopped { Err(Stopped) } else { Ok(()) }
    }

    /// Waits until `deadline`, whatever changes meanwhile.
    pub(super) fn sleep_until(&self, deadline: Instant) -> Result<(), Stopped> {
        let mut state = self.state.lock();
        loop {
            if state.is_stopped {
                return Err(Stopped);
            }
            if self.condvar.wait_until(&mut state, deadline).timed_out() {
                return if state.is_stopped { Err(Stopped) } else { Ok(()) };
            }
        }
    }
}

/// `None`: later than the clock can tell, which is never.
pub(super) fn after(time: Duration) -> Option<Instant> {
    Instant::now().checked_add(time)
}
