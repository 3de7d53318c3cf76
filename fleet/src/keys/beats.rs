//! What prolongs the leases of builds that run, and delivers the invalidations that are owed: an actor of the
//! [scheduler](crate::scheduler), one for all keys of a loader.
//!
//! It is attached with the first build or the first invalidation that fails, takes a step when the next lease is to be prolonged or
//! the store may work again, and ends with the loader.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dogpile::{Clock, Tick};

use crate::scheduler::{Actor, Next, Seat, contained};

/// Prolongs a lease. `Some(false)`: publishing has become pointless.
type Renew = Box<dyn Fn() -> Option<bool> + Send + Sync>;

/// Delivers one invalidation that is owed. Returns when to deliver the next one, if there is one.
type Deliver = Box<dyn Fn() -> Option<Tick> + Send + Sync>;

pub(crate) struct Beat {
    every: Duration,
    next: Tick,
    /// The build has taken too long.
    stop: Tick,
    renew: Arc<Renew>,
    lost: Arc<AtomicBool>,
    /// Whose build it is for. A process that was forked inherits those of its parent.
    process: u32,
}

impl Beat {
    pub(crate) fn new(
        now: Tick,
        every: Duration,
        limit: Duration,
        renew: Renew,
        lost: Arc<AtomicBool>,
    ) -> Self {
        let (next, stop) = (now.saturating_add(every), now.saturating_add(limit));
        Self { every, next, stop, renew: Arc::new(renew), lost, process: std::process::id() }
    }
}

pub(crate) struct Beats<C> {
    clock: C,
    /// What renewals may hang on.
    store: usize,
    deliver: Deliver,
    state: Mutex<State>,
    seat: Seat<C>,
}

#[derive(Default)]
struct State {
    beats: Vec<(u64, Beat)>,
    last: u64,
    closed: bool,
}

/// As long as it lives, the lease is prolonged.
pub(crate) struct Beating<'a, C: Clock + 'static> {
    beats: &'a Beats<C>,
    number: u64,
}

impl<C: Clock + 'static> Drop for Beating<'_, C> {
    fn drop(&mut self) {
        self.beats.lock().beats.retain(|(number, _)| *number != self.number);
    }
}

impl<C: Clock + 'static> Beats<C> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.seat.post();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

impl<C: Clock + Clone + 'static> Beats<C> {
    pub(crate) fn new(clock: C, store: usize, deliver: Deliver) -> Arc<Self> {
        Arc::new(Self { seat: Seat::new(clock.clone()), clock, store, deliver, state: Mutex::default() })
    }

    /// Has it take a step.
    pub(crate) fn rouse(self: &Arc<Self>) {
        self.seat.rouse(|| Some(Arc::clone(self) as Arc<dyn Actor>));
    }

    pub(crate) fn add(self: &Arc<Self>, beat: Beat) -> Beating<'_, C> {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        state.beats.push((number, beat));
        drop(state);
        // Without a thread a build has one lease's time, unless no other node wants to build.
        self.rouse();
        Beating { beats: self, number }
    }
}

impl<C: Clock + 'static> Actor for Beats<C> {
    /// Prolongs the lease that has been due for longest, one in each step, so that it is known anew which ones are still held; and
    /// delivers one invalidation.
    fn step(&self) -> Next {
        let now = self.clock.now();
        let mut state = self.lock();
        if state.closed {
            return Next::Over;
        }
        state.beats.retain(|(_, beat)| now < beat.stop);
        let due = state.beats.iter().filter(|(_, beat)| beat.next <= now).min_by_key(|(_, beat)| beat.next);
        if let Some((number, beat)) = due {
            let (number, renew, lost) = (*number, Arc::clone(&beat.renew), Arc::clone(&beat.lost));
            drop(state);
            let renewed = contained(|| renew()).flatten();
            // A renewal that takes longer than the pause between two of them does not come before the others again.
            let now = self.clock.now();
            state = self.lock();
            if renewed == Some(false) {
                // Relaxed: it carries nothing but itself.
                lost.store(true, Ordering::Relaxed);
                state.beats.retain(|(other, _)| *other != number);
            }
            if let Some((_, beat)) = state.beats.iter_mut().find(|(other, _)| *other == number) {
                beat.next = now.saturating_add(beat.every);
            }
        }
        drop(state);
        let owed = contained(|| (self.deliver)()).flatten();
        Next::At(self.lock().beats.iter().map(|(_, beat)| beat.next).chain(owed).min())
    }

    fn store(&self) -> usize {
        self.store
    }

    fn has_forked(&self) {
        let process = std::process::id();
        // This process holds none of the leases of its parent, whose builds run there or are over.
        let parents =
            self.lock().beats.extract_if(.., |(_, beat)| beat.process != process).collect::<Vec<_>>();
        drop(parents);
    }
}

#[cfg(test)]
mod tests {
    use dogpile::ManualClock;

    use super::*;

    #[test]
    fn a_renewal_that_took_longer_than_its_pause_came_before_all_others_again() {
        const EVERY: Duration = Duration::from_secs(1);
        let clock = ManualClock::new();
        let beats = Beats::new(clock.clone(), 0, Box::new(|| None));
        let renewed = Arc::new(Mutex::new(Vec::new()));
        for number in [1, 2, 3] {
            let (hangs, renewed) = (clock.clone(), Arc::clone(&renewed));
            let renew = move || {
                hangs.advance(2 * EVERY);
                renewed.lock().unwrap().push(number);
                Some(true)
            };
            let beat = Beat::new(clock.now(), EVERY, 100 * EVERY, Box::new(renew), Arc::default());
            // Without a thread: the steps are this test's.
            beats.lock().beats.push((number, beat));
        }
        clock.advance(EVERY);
        for _ in 0..6 {
            beats.step();
        }
        assert_eq!(*renewed.lock().unwrap(), [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn a_child_prolonged_the_leases_of_its_parent() {
        let clock = ManualClock::new();
        let beats = Beats::new(clock.clone(), 0, Box::new(|| None));
        let renewed = Arc::new(Mutex::new(Vec::new()));
        for (number, process) in [(1, std::process::id() + 1), (2, std::process::id())] {
            let renewed = Arc::clone(&renewed);
            let renew = move || {
                renewed.lock().unwrap().push(number);
                Some(true)
            };
            let every = Duration::from_secs(1);
            let mut beat = Beat::new(clock.now(), every, 100 * every, Box::new(renew), Arc::default());
            beat.process = process;
            beats.lock().beats.push((number, beat));
        }
        beats.has_forked();
        clock.advance(Duration::from_secs(1));
        beats.step();
        beats.step();
        assert_eq!(*renewed.lock().unwrap(), [2]);
    }
}
