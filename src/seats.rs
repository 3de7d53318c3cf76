//! Threads that wait, and how they wait.
//!
//! A waiter parks on its thread's own token. So waking many of them makes no queue in front of a lock, and any
//! thread that has something else to do with the token is woken for nothing at worst.

use crate::clock::{Clock, FOREVER, Tick};
use crate::sync::{Thread, current_thread, park};

/// A list of threads to be woken, each with a note on what it waits for. Kept under a lock by its owner.
pub(crate) struct Seats<K> {
    next: u64,
    /// Sorted by number, since numbers are given in order.
    taken: Vec<(u64, Thread, K)>,
}

impl<K> Default for Seats<K> {
    fn default() -> Self {
        Self { next: 0, taken: Vec::new() }
    }
}

impl<K> Seats<K> {
    /// Puts the calling thread on the list. Returns the number to leave with.
    pub(crate) fn take(&mut self, note: K) -> u64 {
        let number = self.next;
        self.next += 1;
        self.taken.push((number, current_thread(), note));
        number
    }

    /// Takes a thread off the list, if it is still on it.
    pub(crate) fn leave(&mut self, number: u64) {
        if let Ok(position) = self.taken.binary_search_by_key(&number, |(taken, ..)| *taken) {
            self.taken.remove(position);
        }
    }

    /// Takes all threads off the list, to be woken when the lock has been released.
    pub(crate) fn take_all(&mut self) -> Vec<Thread> {
        std::mem::take(&mut self.taken).into_iter().map(|(_, thread, _)| thread).collect()
    }

    /// Those whose note meets `condition`, to be woken when the lock has been released. They stay on the list.
    pub(crate) fn those(&self, condition: impl Fn(&K) -> bool) -> impl Iterator<Item = Thread> {
        self.taken.iter().filter(move |(.., note)| condition(note)).map(|(_, thread, _)| thread.clone())
    }
}

/// Blocks until `check` yields something, or until `clock` shows `deadline`. The caller has a seat already.
pub(crate) fn wait_until<C: Clock, R>(
    clock: &C,
    deadline: u64,
    mut check: impl FnMut() -> Option<R>,
) -> Option<R> {
    loop {
        // The clock first: between the check and the parking nothing may run that could take the thread's token,
        // with which it may just have been woken.
        let now = if deadline == FOREVER { Tick(0) } else { clock.now() };
        if let Some(result) = check() {
            return Some(result);
        }
        if deadline == FOREVER {
            park();
        } else if now >= Tick(deadline) {
            return None;
        } else {
            clock.park_until(Tick(deadline), now);
        }
    }
}
