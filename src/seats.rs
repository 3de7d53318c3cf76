//! The list of waiting threads and tasks.
//!
//! A thread that waits parks on its own token; a task leaves its waker. One list holds both, and one publication wakes them
//! all. A waker is user code (an executor's): it is cloned, woken and dropped without a lock (G9). A spurious wake-up costs a
//! look, nothing else.
//!
//! Joining and leaving take the same time however long the list is (G6): a place that is given up is reused by the next
//! waiter.

use crate::sync::{Thread, current_thread};

#[cfg(feature = "async")]
use {crate::contain::contain, std::task::Waker};

/// A thread that is parked, or a task that is suspended.
pub(crate) enum Sleeper {
    Thread(Thread),
    #[cfg(feature = "async")]
    Task(Waker),
}

impl Sleeper {
    pub(crate) fn this_thread() -> Self {
        Self::Thread(current_thread())
    }

    /// Runs user code: not to be called under a lock.
    #[cfg(feature = "async")]
    pub(crate) fn task(waker: &Waker) -> Self {
        Self::Task(waker.clone())
    }

    /// Not to be called under a lock. A waker's panic is reported by the panic hook and contained, so that the others are
    /// still woken.
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

/// Where a waiter leaves word how to wake it. A waker is taken out when it is used: the task that it wakes leaves another one
/// when it is polled, if it goes on waiting. (To clone it would be user code under a lock.)
#[derive(Default)]
pub(crate) struct Sleeping(Option<Sleeper>);

impl Sleeping {
    /// To be woken after unlocking.
    pub(crate) fn rouse(&mut self) -> Option<Sleeper> {
        match &self.0 {
            Some(Sleeper::Thread(thread)) => Some(Sleeper::Thread(thread.clone())),
            #[cfg(feature = "async")]
            Some(Sleeper::Task(_)) => self.0.take(),
            None => None,
        }
    }

    /// Returns the former one, to be dropped after unlocking.
    #[must_use = "it is to be dropped without a lock"]
    pub(crate) fn replace(&mut self, sleeper: Sleeper) -> Option<Sleeper> {
        self.0.replace(sleeper)
    }

    #[cfg(feature = "async")]
    pub(crate) fn will_wake(&self, waker: &Waker) -> bool {
        matches!(&self.0, Some(Sleeper::Task(former)) if former.will_wake(waker))
    }
}

/// A task is polled again and goes on waiting: leaves word again, if its waker was used, or is another one by now. `at` gives
/// access to its place, under a lock.
#[cfg(feature = "async")]
pub(crate) fn renew(waker: &Waker, at: impl Fn(&mut dyn FnMut(&mut Sleeping))) {
    let mut is_there = true;
    at(&mut |sleeping| is_there = sleeping.will_wake(waker));
    if !is_there {
        let mut sleeper = Some(Sleeper::task(waker));
        let mut former = None;
        at(&mut |sleeping| former = sleeper.take().and_then(|sleeper| sleeping.replace(sleeper)));
        // Here, without a lock; also the new one, if there was no place any more.
        drop((former, sleeper));
    }
}

/// The waiters, each with a note on what it waits for. Its owner keeps it under a lock.
pub(crate) struct Seats<K> {
    places: Vec<Place<K>>,
    /// The first free place; [`NONE`]: there is none.
    free: usize,
    taken: usize,
}

enum Place<K> {
    Taken(Sleeping, K),
    /// And the next free one.
    Free(usize),
}

const NONE: usize = usize::MAX;

impl<K> Default for Seats<K> {
    fn default() -> Self {
        Self { places: Vec::new(), free: NONE, taken: 0 }
    }
}

impl<K> Seats<K> {
    /// Adds a waiter. Returns the number to leave with.
    pub(crate) fn take(&mut self, sleeper: Sleeper, note: K) -> usize {
        self.taken += 1;
        let place = Place::Taken(Sleeping(Some(sleeper)), note);
        let number = self.free;
        match self.places.get_mut(number) {
            Some(free) => {
                if let Place::Free(next) = std::mem::replace(free, place) {
                    self.free = next;
                }
                number
            }
            None => {
                self.places.push(place);
                self.places.len() - 1
            }
        }
    }

    /// Removes a waiter, unless [`take_all`](Seats::take_all) has. Drop what it returns after unlocking.
    #[must_use = "it is to be dropped without a lock"]
    pub(crate) fn leave(&mut self, number: usize) -> Option<Sleeping> {
        let place = self.places.get_mut(number)?;
        if let Place::Free(_) = place {
            return None;
        }
        let former = std::mem::replace(place, Place::Free(self.free));
        self.free = number;
        self.taken -= 1;
        if self.taken == 0 {
            self.places.clear();
            self.free = NONE;
        }
        match former {
            Place::Taken(sleeping, _) => Some(sleeping),
            Place::Free(_) => None,
        }
    }

    /// Where a waiter that is still in the list has left word.
    #[cfg(feature = "async")]
    pub(crate) fn at(&mut self, number: usize) -> Option<&mut Sleeping> {
        match self.places.get_mut(number) {
            Some(Place::Taken(sleeping, _)) => Some(sleeping),
            _ => None,
        }
    }

    /// Removes all waiters, to be woken after unlocking. No number is valid any more.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Sleeper> + use<K> {
        (self.free, self.taken) = (NONE, 0);
        std::mem::take(&mut self.places).into_iter().filter_map(|place| match place {
            Place::Taken(sleeping, _) => sleeping.0,
            Place::Free(_) => None,
        })
    }

    /// The waiters whose note meets `condition`, to be woken after unlocking. They stay in the list.
    pub(crate) fn those<'a>(
        &'a mut self,
        condition: impl Fn(&K) -> bool + 'a,
    ) -> impl Iterator<Item = Sleeper> + 'a {
        self.places.iter_mut().filter_map(move |place| match place {
            Place::Taken(sleeping, note) if condition(note) => sleeping.rouse(),
            _ => None,
        })
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(seats: &Seats<u32>) -> Vec<u32> {
        let note = |place: &Place<u32>| if let Place::Taken(_, note) = place { Some(*note) } else { None };
        seats.places.iter().filter_map(note).collect()
    }

    #[test]
    fn a_place_that_was_given_up_is_reused() {
        let mut seats = Seats::default();
        let numbers: Vec<usize> = (0..4).map(|note| seats.take(Sleeper::this_thread(), note)).collect();
        assert!(seats.leave(numbers[1]).is_some());
        assert!(seats.leave(numbers[1]).is_none());
        assert!(seats.leave(numbers[2]).is_some());
        assert_eq!(notes(&seats), [0, 3]);
        assert_eq!(seats.take(Sleeper::this_thread(), 9), numbers[2]);
        assert_eq!(seats.take(Sleeper::this_thread(), 8), numbers[1]);
        assert_eq!(notes(&seats), [0, 8, 9, 3]);
        assert_eq!(seats.those(|note| *note > 3).count(), 2);
        for number in numbers {
            assert!(seats.leave(number).is_some());
        }
        assert!(seats.places.is_empty() && seats.free == NONE);
    }

    #[test]
    fn a_number_is_invalid_after_all_waiters_were_taken() {
        let mut seats = Seats::default();
        let numbers = [0, 1].map(|note| seats.take(Sleeper::this_thread(), note));
        assert!(seats.leave(numbers[0]).is_some());
        assert_eq!(seats.take_all().count(), 1);
        assert!(seats.leave(numbers[1]).is_none());
        assert_eq!(seats.take_all().count(), 0);
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
        let mut seats = Seats::default();
        let number = seats.take(Sleeper::task(&waker), ());
        assert!(seats.at(number).unwrap().will_wake(&waker));
        assert_eq!(seats.those(|()| true).count(), 1);
        assert_eq!(seats.those(|()| true).count(), 0);
        assert!(!seats.at(number).unwrap().will_wake(&waker));
        assert!(seats.at(number).unwrap().replace(Sleeper::task(&waker)).is_none());
        assert_eq!(seats.those(|()| true).count(), 1);
        assert_eq!(seats.len(), 1);
    }
}
