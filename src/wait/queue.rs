//! The queue of waiting threads and tasks.
//!
//! A thread that waits parks on its own token; a task registers its waker. Both join the same queue, and one publication wakes
//! them all. A waker is user code (an executor's): it is cloned, woken and dropped without a lock (G9). A spurious wake-up
//! costs another check, nothing else.
//!
//! Joining and leaving take the same time however long the queue is (G6): the next waiter reuses the entry of one that has
//! left.

use crate::sync::{Thread, current_thread};

#[cfg(feature = "async")]
use {crate::contain::contain, std::task::Waker};

/// A thread that is parked, or a task that is suspended.
pub(crate) enum Waiter {
    Thread(Thread),
    #[cfg(feature = "async")]
    Task(Waker),
}

impl Waiter {
    pub(crate) fn this_thread() -> Self {
        Self::Thread(current_thread())
    }

    /// Runs user code: do not call under a lock.
    #[cfg(feature = "async")]
    pub(crate) fn task(waker: &Waker) -> Self {
        Self::Task(waker.clone())
    }

    /// Do not call under a lock. The panic of a waker ends here, after the panic hook has reported it, so that the others
    /// are still woken.
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

/// How to wake one waiter. A task's waker is taken out when it is used, because cloning it would run user code under a lock; a
/// task that goes on waiting registers another one at its next poll.
#[derive(Default)]
pub(crate) struct Registration(Option<Waiter>);

impl Registration {
    /// To be woken after unlocking.
    pub(crate) fn waiter(&mut self) -> Option<Waiter> {
        match &self.0 {
            Some(Waiter::Thread(thread)) => Some(Waiter::Thread(thread.clone())),
            #[cfg(feature = "async")]
            Some(Waiter::Task(_)) => self.0.take(),
            None => None,
        }
    }

    /// Returns the former one: drop it after unlocking.
    #[must_use = "drop it after unlocking"]
    pub(crate) fn replace(&mut self, waiter: Waiter) -> Option<Waiter> {
        self.0.replace(waiter)
    }

    #[cfg(feature = "async")]
    pub(crate) fn will_wake(&self, waker: &Waker) -> bool {
        matches!(&self.0, Some(Waiter::Task(former)) if former.will_wake(waker))
    }
}

/// Registers the waker of a task that is polled again, unless the same one is registered already. `at` gives access to its
/// registration, under a lock.
#[cfg(feature = "async")]
pub(crate) fn register_again(waker: &Waker, at: impl Fn(&mut dyn FnMut(&mut Registration))) {
    let mut is_there = true;
    at(&mut |registration| is_there = registration.will_wake(waker));
    if !is_there {
        let mut waiter = Some(Waiter::task(waker));
        let mut former = None;
        at(&mut |registration| former = waiter.take().and_then(|waiter| registration.replace(waiter)));
        // Without a lock; also the new one, if its entry is gone.
        drop((former, waiter));
    }
}

/// The waiters, each with a note on what it waits for. Its owner keeps it under a lock.
pub(crate) struct WaitQueue<N> {
    entries: Vec<Option<(Registration, N)>>,
    /// The numbers of the entries that are `None`.
    free: Vec<usize>,
}

impl<N> Default for WaitQueue<N> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<N> WaitQueue<N> {
    /// Adds a waiter. Returns the number of its entry.
    pub(crate) fn join(&mut self, waiter: Waiter, note: N) -> usize {
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[number] = Some((Registration(Some(waiter)), note));
        number
    }

    /// Removes a waiter, unless [`drain`](WaitQueue::drain) has. Drop the result after unlocking.
    #[must_use = "drop it after unlocking"]
    pub(crate) fn leave(&mut self, number: usize) -> Option<Registration> {
        let (left, _) = self.entries.get_mut(number)?.take()?;
        if self.free.len() + 1 == self.entries.len() {
            self.entries.clear();
            self.free.clear();
        } else {
            self.free.push(number);
        }
        Some(left)
    }

    /// The registration of a waiter that is still in the queue.
    #[cfg(feature = "async")]
    pub(crate) fn get_mut(&mut self, number: usize) -> Option<&mut Registration> {
        self.entries.get_mut(number)?.as_mut().map(|(registration, _)| registration)
    }

    /// Removes all waiters, to be woken after unlocking. Their numbers are no longer valid.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waiter> + use<N> {
        std::mem::take(self).entries.into_iter().flatten().filter_map(|(registration, _)| registration.0)
    }

    /// The waiters whose note meets `condition`, to be woken after unlocking. They stay in the queue.
    pub(crate) fn matching<'a>(
        &'a mut self,
        condition: impl Fn(&N) -> bool + 'a,
    ) -> impl Iterator<Item = Waiter> + 'a {
        let matching = self.entries.iter_mut().flatten().filter(move |(_, note)| condition(note));
        matching.filter_map(|(registration, _)| registration.waiter())
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(queue: &WaitQueue<u32>) -> Vec<u32> {
        queue.entries.iter().flatten().map(|(_, note)| *note).collect()
    }

    #[test]
    fn an_entry_that_was_given_up_is_reused() {
        let mut queue = WaitQueue::default();
        let numbers: Vec<usize> = (0..4).map(|note| queue.join(Waiter::this_thread(), note)).collect();
        assert!(queue.leave(numbers[1]).is_some());
        assert!(queue.leave(numbers[1]).is_none());
        assert!(queue.leave(numbers[2]).is_some());
        assert_eq!(notes(&queue), [0, 3]);
        assert_eq!(queue.join(Waiter::this_thread(), 9), numbers[2]);
        assert_eq!(queue.join(Waiter::this_thread(), 8), numbers[1]);
        assert_eq!(notes(&queue), [0, 8, 9, 3]);
        assert_eq!(queue.matching(|note| *note > 3).count(), 2);
        for number in numbers {
            assert!(queue.leave(number).is_some());
        }
        assert!(queue.entries.is_empty() && queue.free.is_empty());
    }

    #[test]
    fn a_number_is_invalid_after_all_waiters_were_taken() {
        let mut queue = WaitQueue::default();
        let numbers = [0, 1].map(|note| queue.join(Waiter::this_thread(), note));
        assert!(queue.leave(numbers[0]).is_some());
        assert_eq!(queue.drain().count(), 1);
        assert!(queue.leave(numbers[1]).is_none());
        assert_eq!(queue.drain().count(), 0);
    }

    #[cfg(feature = "async")]
    #[test]
    fn a_waker_that_was_used_is_gone_until_the_task_leaves_another() {
        use crate::sync::Arc;

        struct Ignore;
        impl std::task::Wake for Ignore {
            fn wake(self: Arc<Self>) {}
        }
        let waker = Waker::from(Arc::new(Ignore));
        let mut queue = WaitQueue::default();
        let number = queue.join(Waiter::task(&waker), ());
        // Miri gives a clone of a waker another table of functions.
        assert!(cfg!(miri) || queue.get_mut(number).unwrap().will_wake(&waker));
        assert_eq!(queue.matching(|()| true).count(), 1);
        assert_eq!(queue.matching(|()| true).count(), 0);
        assert!(!queue.get_mut(number).unwrap().will_wake(&waker));
        assert!(queue.get_mut(number).unwrap().replace(Waiter::task(&waker)).is_none());
        assert_eq!(queue.matching(|()| true).count(), 1);
        assert_eq!(queue.len(), 1);
    }
}
