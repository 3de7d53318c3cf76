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
    /// To clone the waker runs user code: not under a lock.
    #[cfg(feature = "async")]
    Task(Waker),
}

impl Waiter {
    pub(crate) fn this_thread() -> Self {
        Self::Thread(current_thread())
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

/// The waiters, each with a note on what it waits for. Its owner keeps it under a lock.
pub(crate) struct WaitQueue<N> {
    /// A task's waker is taken out when it is used, because cloning it would run user code under a lock; a task that goes on
    /// waiting registers another one at its next poll.
    entries: Vec<Option<(Option<Waiter>, N)>>,
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
        self.entries[number] = Some((Some(waiter), note));
        number
    }

    /// Removes a waiter, unless [`drain`](WaitQueue::drain) has. Drop the result after unlocking.
    #[must_use = "drop it after unlocking"]
    pub(crate) fn leave(&mut self, number: usize) -> Option<Waiter> {
        let (left, _) = self.entries.get_mut(number)?.take()?;
        if self.free.len() + 1 == self.entries.len() {
            self.entries.clear();
            self.free.clear();
        } else {
            self.free.push(number);
        }
        left
    }

    /// Whether this waker is registered for a waiter.
    #[cfg(feature = "async")]
    pub(crate) fn will_wake(&self, number: usize, waker: &Waker) -> bool {
        matches!(self.entries.get(number), Some(Some((Some(Waiter::Task(former)), _))) if former.will_wake(waker))
    }

    /// Registers another waker for a waiter. Returns the former one, or this one if the waiter is not in the queue any more: drop it
    /// after unlocking.
    #[cfg(feature = "async")]
    #[must_use = "drop it after unlocking"]
    pub(crate) fn register(&mut self, number: usize, waiter: Waiter) -> Option<Waiter> {
        match self.entries.get_mut(number) {
            Some(Some((former, _))) => former.replace(waiter),
            _ => Some(waiter),
        }
    }

    /// Removes all waiters, to be woken after unlocking. Their numbers are no longer valid.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waiter> + use<N> {
        std::mem::take(self).entries.into_iter().flatten().filter_map(|(waiter, _)| waiter)
    }

    /// The waiters whose note meets `condition`, to be woken after unlocking. They stay in the queue.
    pub(crate) fn matching<'a>(
        &'a mut self,
        condition: impl Fn(&N) -> bool + 'a,
    ) -> impl Iterator<Item = Waiter> + 'a {
        let matching = self.entries.iter_mut().flatten().filter(move |(_, note)| condition(note));
        matching.filter_map(|(waiter, _)| match waiter {
            Some(Waiter::Thread(thread)) => Some(Waiter::Thread(thread.clone())),
            #[cfg(feature = "async")]
            Some(Waiter::Task(_)) => waiter.take(),
            None => None,
        })
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
        let number = queue.join(Waiter::Task(waker.clone()), ());
        // Miri gives a clone of a waker another table of functions.
        assert!(cfg!(miri) || queue.will_wake(number, &waker));
        assert_eq!(queue.matching(|()| true).count(), 1);
        assert_eq!(queue.matching(|()| true).count(), 0);
        assert!(!queue.will_wake(number, &waker));
        assert!(queue.register(number, Waiter::Task(waker.clone())).is_none());
        assert_eq!(queue.matching(|()| true).count(), 1);
        assert_eq!(queue.len(), 1);
    }
}
