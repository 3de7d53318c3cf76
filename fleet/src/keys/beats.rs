//! The thread that prolongs the leases of builds that run: `dogpile-fleet-keys`, one for all keys of a loader.
//!
//! It is started with the first build, sleeps until the next lease is to be prolonged, and ends with the loader.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Prolongs a lease. `Some(false)`: publishing has become pointless.
type Renew = Box<dyn Fn() -> Option<bool> + Send + Sync>;

pub(crate) struct Beat {
    every: Duration,
    next: Instant,
    /// The build has taken too long.
    stop: Option<Instant>,
    renew: Arc<Renew>,
    lost: Arc<AtomicBool>,
}

impl Beat {
    pub(crate) fn new(every: Duration, limit: Duration, renew: Renew, lost: Arc<AtomicBool>) -> Self {
        let now = Instant::now();
        // A lease beyond what the clock can tell is never to be prolonged.
        let next = now.checked_add(every).unwrap_or(now + Duration::from_secs(3600));
        Self { every, next, stop: now.checked_add(limit), renew: Arc::new(renew), lost }
    }
}

#[derive(Default)]
pub(crate) struct Beats {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    beats: Vec<(u64, Beat)>,
    last: u64,
    /// The process in which the thread runs: one that was forked has none.
    runs_in: Option<u32>,
    closed: bool,
}

/// As long as it lives, the lease is prolonged.
pub(crate) struct Beating {
    beats: Arc<Beats>,
    number: u64,
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.beats.lock().beats.retain(|(number, _)| *number != self.number);
    }
}

impl Beats {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(self: &Arc<Self>, beat: Beat) -> Beating {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        state.beats.push((number, beat));
        let process = std::process::id();
        if state.runs_in != Some(process) {
            let beats = Arc::clone(self);
            let thread = std::thread::Builder::new().name("dogpile-fleet-keys".to_owned());
            // Without a thread a build has one lease's time, unless no other node wants to build.
            state.runs_in = thread.spawn(move || beats.run()).is_ok().then_some(process);
        }
        drop(state);
        self.changed.notify_one();
        Beating { beats: Arc::clone(self), number }
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if state.closed {
                return;
            }
            let now = Instant::now();
            state.beats.retain(|(_, beat)| beat.stop.is_none_or(|stop| now < stop));
            let due = state.beats.iter_mut().find(|(_, beat)| beat.next <= now);
            if let Some((number, beat)) = due {
                beat.next = now + beat.every;
                let (number, renew, lost) = (*number, Arc::clone(&beat.renew), Arc::clone(&beat.lost));
                drop(state);
                let renewed = renew();
                state = self.lock();
                if renewed == Some(false) {
                    // Relaxed: it carries nothing but itself.
                    lost.store(true, Ordering::Relaxed);
                    state.beats.retain(|(other, _)| *other != number);
                }
                continue;
            }
            let next = state.beats.iter().map(|(_, beat)| beat.next).min();
            state = match next {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(next) => {
                    let wait = next.saturating_duration_since(now);
                    self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}
