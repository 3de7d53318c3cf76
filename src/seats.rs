//! Those who wait.
//!
//! A thread that waits parks on its own token, a task leaves its waker. So waking many of them makes no queue in front of
//! a lock, and whoever has something else to do with the token or the waker is woken for nothing at worst.
//!
//! Both stand in the same list: one publish wakes them all, in the order in which they came. A waker is code of the
//! user's, or of an executor's: it is cloned, woken and dropped without a lock (G9).

use crate::sync::{Thread, current_thread};

#[cfg(feature = "async")]
use {crate::contain::contain, crate::sync::Arc, std::task::Waker};

/// A thread that is parked, or a task that is suspended.
#[derive(Clone)]
pub(crate) enum Sleeper {
    Thread(Thread),
    /// In an `Arc`, so that it can be cloned under a lock.
    #[cfg(feature = "async")]
    Task(Arc<Waker>),
}

impl Sleeper {
    pub(crate) fn this_thread() -> Self {
        Self::Thread(current_thread())
    }

    #[cfg(feature = "async")]
    pub(crate) fn task(waker: &Waker) -> Self {
        Self::Task(Arc::new(waker.clone()))
    }

    /// Not to be called under a lock. A waker that panics is reported by the panic hook and keeps nobody else asleep.
    pub(crate) fn wake(self) {
        match self {
            Self::Thread(thread) => thread.unpark(),
            #[cfg(feature = "async")]
            Self::Task(waker) => {
                contain(|| waker.wake_by_ref());
                // It may be the last reference.
                contain(|| drop(waker));
            }
        }
    }
}

/// A list of those to be woken, each with a note on what it waits for. Kept under a lock by its owner.
pub(crate) struct Seats<K> {
    next: u64,
    /// Sorted by number, since numbers are given in order.
    taken: Vec<(u64, Sleeper, K)>,
}

impl<K> Default for Seats<K> {
    fn default() -> Self {
        Self { next: 0, taken: Vec::new() }
    }
}

impl<K> Seats<K> {
    /// Puts a sleeper on the list. Returns the number to leave with.
    pub(crate) fn take(&mut self, sleeper: Sleeper, note: K) -> u64 {
        let number = self.next;
        self.next += 1;
        self.taken.push((number, sleeper, note));
        number
    }

    /// Takes a sleeper off the list, if it is still on it; to be dropped when the lock has been released.
    #[must_use = "it is to be dropped without a lock"]
    pub(crate) fn leave(&mut self, number: u64) -> Option<Sleeper> {
        let position = self.position(number)?;
        Some(self.taken.remove(position).1)
    }

    /// Another sleeper takes the place of one that is still on the list. Returns the one that is not needed, to be
    /// dropped when the lock has been released.
    #[cfg(feature = "async")]
    #[must_use = "it is to be dropped without a lock"]
    pub(crate) fn exchange(&mut self, number: u64, sleeper: Sleeper) -> Sleeper {
        match self.position(number) {
            Some(position) => std::mem::replace(&mut self.taken[position].1, sleeper),
            None => sleeper,
        }
    }

    /// Takes all off the list, to be woken when the lock has been released.
    pub(crate) fn take_all(&mut self) -> Vec<(u64, Sleeper, K)> {
        std::mem::take(&mut self.taken)
    }

    /// Those whose note meets `condition`, to be woken when the lock has been released. They stay on the list.
    pub(crate) fn those(&self, condition: impl Fn(&K) -> bool) -> impl Iterator<Item = Sleeper> {
        self.taken.iter().filter(move |(.., note)| condition(note)).map(|(_, sleeper, _)| sleeper.clone())
    }

    fn position(&self, number: u64) -> Option<usize> {
        self.taken.binary_search_by_key(&number, |(taken, ..)| *taken).ok()
    }
}
