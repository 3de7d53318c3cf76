//! The retirement queue: the published values of a cell in order, from the oldest that is not finalised to the newest.
//!
//! Values are numbered from 1 in the order of their publication, which is the order of their replacement. Only the front of the
//! queue is finalised, and it leaves the queue when its finalizer has run. So values are finalised in order and one at a time
//! (G11). Unpublished values have no place in the order. They are finalised between two others.
//!
//! A data structure without a lock and without user code: its owner keeps it under a lock.

use std::collections::VecDeque;

use crate::sync::{Arc, ThreadId, Weak};
use crate::trace::Moment;

/// `S` is what readers share, `T` the value that is taken out of it when the last reader has left.
pub(super) struct RetirementQueue<S, T> {
    /// How many values have been finalised, which is the number of the last one.
    finalized: u64,
    /// The values after that one.
    published: VecDeque<Entry<S, T>>,
    /// Values that a build has made and that are not published. Their readers may still hold them.
    unpublished: Vec<Weak<S>>,
    /// Unpublished values whose last reader has left.
    unpublished_drained: Vec<T>,
    /// The thread that runs the finalizer.
    finalizing: Option<ThreadId>,
    /// The value whose readers the latest build under [`Drain::Wait`](super::Drain::Wait) waits for, or has waited for; 0: none.
    build_drain: u64,
    /// The latest value of these whose readers are waited for no longer: one of them waits for the build.
    abandoned_drain: u64,
}

/// A published value.
struct Entry<S, T> {
    stage: Stage,
    place: Place<S, T>,
}

/// The stages of a published value.
enum Stage {
    /// It is in the slot, which has a reference.
    Current,
    /// A writer has taken it out of the slot, and may put it back.
    Withheld,
    /// It was replaced or cleared at that time.
    Retired(Moment),
}

/// Where a published value is.
enum Place<S, T> {
    /// In what readers share.
    Shared(Weak<S>),
    /// Here: its last reader has left.
    Drained(Box<T>),
    /// With the thread that finalises it, whose build has the write lock, or that puts it back.
    Taken(ThreadId),
}

/// What a waiter waits for.
#[derive(Clone, Copy)]
pub(crate) enum Awaited {
    /// All values up to this number are finalised.
    Finalized(u64),
    /// The same, or the drain of a build that waits for this number is abandoned.
    Drained(u64),
    /// There is no reader: no value is left but the one that a writer has withheld, and its last reader has left.
    Exclusive,
}

impl<S, T> Entry<S, T> {
    fn readers(&self) -> usize {
        let Place::Shared(shared) = &self.place else { return 0 };
        shared.strong_count().saturating_sub(usize::from(matches!(self.stage, Stage::Current)))
    }

    fn is_retired(&self) -> bool {
        matches!(self.stage, Stage::Retired(_))
    }

    fn is_drained(&self) -> bool {
        matches!(self.place, Place::Drained(_))
    }

    /// Takes the value, if its last reader has left.
    fn take(&mut self, thread: ThreadId) -> Option<T> {
        match std::mem::replace(&mut self.place, Place::Taken(thread)) {
            Place::Drained(value) => Some(*value),
            other => {
                self.place = other;
                None
            }
        }
    }
}

impl<S, T> Default for RetirementQueue<S, T> {
    fn default() -> Self {
        Self {
            finalized: 0,
            published: VecDeque::new(),
            unpublished: Vec::new(),
            unpublished_drained: Vec::new(),
            finalizing: None,
            build_drain: 0,
            abandoned_drain: 0,
        }
    }
}

/// Transitions.
impl<S, T> RetirementQueue<S, T> {
    /// `new` is published, and replaces the current value. Returns its number. `drains`: its build waits for the readers of the
    /// value that it replaces.
    pub(super) fn publish(&mut self, new: &Arc<S>, drains: bool) -> u64 {
        self.unpublished.retain(|value| value.as_ptr() != Arc::as_ptr(new));
        if drains && let Some(replaced) = self.current() {
            self.build_drain = replaced;
        }
        self.retire_current();
        self.published.push_back(Entry { stage: Stage::Current, place: Place::Shared(Arc::downgrade(new)) });
        self.last_published()
    }

    /// The current value is replaced or cleared, also if a writer has withheld it.
    pub(super) fn retire_current(&mut self) {
        if let Some(current) = self.published.back_mut().filter(|last| !last.is_retired()) {
            current.stage = Stage::Retired(Moment::now());
        }
    }

    /// A build has made `value`.
    pub(super) fn add_unpublished(&mut self, value: &Arc<S>) {
        self.unpublished.push(Arc::downgrade(value));
    }

    /// The last reference to the value with this number (0: unpublished) and at this address is gone. Returns when it was
    /// retired.
    pub(super) fn drained(&mut self, number: u64, address: usize, value: T) -> Option<Moment> {
        if number == 0 {
            self.unpublished.retain(|value| value.as_ptr().addr() != address);
            self.unpublished_drained.push(value);
            return None;
        }
        let entry = self.entry(number);
        entry.place = Place::Drained(Box::new(value));
        if let Stage::Retired(since) = entry.stage { Some(since) } else { None }
    }

    /// Whether a value can be finalised now.
    pub(super) fn is_ready(&self) -> bool {
        let is_front_ready =
            self.published.front().is_some_and(|front| front.is_retired() && front.is_drained());
        self.finalizing.is_none() && (is_front_ready || !self.unpublished_drained.is_empty())
    }

    /// Takes a value that `thread` is to finalise, and its number (0: unpublished). [`end_finalizer`] must follow.
    ///
    /// [`end_finalizer`]: RetirementQueue::end_finalizer
    pub(super) fn begin_finalizer(&mut self, thread: ThreadId) -> Option<(u64, T)> {
        if self.finalizing.is_some() {
            return None;
        }
        let front = self.published.front_mut().filter(|front| front.is_retired());
        let taken = match front.and_then(|front| front.take(thread)) {
            Some(value) => (self.finalized + 1, value),
            None => (0, self.unpublished_drained.pop()?),
        };
        self.finalizing = Some(thread);
        Some(taken)
    }

    /// The finalizer of the value with this number has ended.
    pub(super) fn end_finalizer(&mut self, number: u64) {
        self.finalizing = None;
        if number != 0 {
            self.published.pop_front();
            self.finalized = number;
        }
    }

    /// The latest build under [`Drain::Wait`](super::Drain::Wait) no longer waits for readers.
    pub(super) fn abandon_build_drain(&mut self) {
        self.abandoned_drain = self.build_drain;
    }

    fn entry(&mut self, number: u64) -> &mut Entry<S, T> {
        let index = number.checked_sub(self.finalized + 1).and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.published.get_mut(index)) {
            Some(entry) => entry,
            None => unreachable!("a published value is in the queue until its finalizer has run"),
        }
    }
}

/// Transitions of a value that a writer withholds.
impl<S, T> RetirementQueue<S, T> {
    /// A writer has taken the current value out of the slot. It may have been cleared since.
    pub(super) fn withhold(&mut self) {
        if let Some(current) = self.published.back_mut().filter(|last| !last.is_retired()) {
            current.stage = Stage::Withheld;
        }
    }

    /// The number of the value that is withheld, and what readers share, if there are any.
    pub(super) fn withheld(&self) -> Option<(u64, Option<Arc<S>>)> {
        let last = self.published.back().filter(|last| matches!(last.stage, Stage::Withheld))?;
        let shared = if let Place::Shared(shared) = &last.place { shared.upgrade() } else { None };
        Some((self.last_published(), shared))
    }

    /// Takes the value with this number for a build of `thread`, if its last reader has left.
    pub(super) fn take(&mut self, number: u64, thread: ThreadId) -> Option<T> {
        self.entry(number).take(thread)
    }

    /// The value with this number is in the hands of readers again. If it has been cleared meanwhile, it stays retired.
    pub(super) fn put_back(&mut self, number: u64, value: &Arc<S>) {
        let entry = self.entry(number);
        entry.place = Place::Shared(Arc::downgrade(value));
        if !entry.is_retired() {
            entry.stage = Stage::Current;
        }
    }
}

/// Queries.
impl<S, T> RetirementQueue<S, T> {
    pub(super) fn is_over(&self, awaited: Awaited) -> bool {
        match awaited {
            Awaited::Finalized(number) => number <= self.finalized,
            Awaited::Drained(number) => number <= self.finalized || number == self.abandoned_drain,
            Awaited::Exclusive => {
                let is_unshared =
                    |entry: &Entry<S, T>| matches!(entry.stage, Stage::Withheld) && entry.is_drained();
                self.published.iter().all(is_unshared)
                    && self.unpublished.is_empty()
                    && self.unpublished_drained.is_empty()
                    && self.finalizing.is_none()
            }
        }
    }

    /// Up to which number all values have been finalised.
    pub(super) fn finalized(&self) -> u64 {
        self.finalized
    }

    fn last_published(&self) -> u64 {
        self.finalized + self.published.len() as u64
    }

    /// The number of the value that is current or withheld, if there is one.
    pub(super) fn current(&self) -> Option<u64> {
        self.published.back().filter(|last| !last.is_retired()).map(|_| self.last_published())
    }

    /// The number of the last value that has been replaced or cleared.
    pub(super) fn last_retired(&self) -> u64 {
        self.current().map_or(self.last_published(), |current| current - 1)
    }

    /// See [`abandon_build_drain`](RetirementQueue::abandon_build_drain).
    pub(super) fn build_drain(&self) -> u64 {
        self.build_drain
    }

    /// The thread that runs the finalizer.
    pub(super) fn finalizing(&self) -> Option<ThreadId> {
        self.finalizing
    }

    /// Readers of published values.
    pub(super) fn readers(&self) -> usize {
        self.published.iter().map(Entry::readers).sum()
    }

    /// Readers of values that have been replaced or cleared.
    pub(super) fn readers_of_retired(&self) -> usize {
        self.published.iter().filter(|entry| entry.is_retired()).map(Entry::readers).sum()
    }

    /// Readers of unpublished values.
    pub(super) fn readers_of_unpublished(&self) -> usize {
        self.unpublished.iter().map(Weak::strong_count).sum()
    }

    /// The published values up to this number.
    fn up_to(&self, number: u64) -> impl Iterator<Item = &Entry<S, T>> {
        let count = usize::try_from(number.saturating_sub(self.finalized)).unwrap_or(usize::MAX);
        self.published.iter().take(count)
    }

    /// Whether a published value with this number or a smaller one is at `address`.
    pub(super) fn has_published(&self, number: u64, address: usize) -> bool {
        self.up_to(number)
            .any(|entry| matches!(&entry.place, Place::Shared(shared) if shared.as_ptr().addr() == address))
    }

    /// Whether an unpublished value is at `address`.
    pub(super) fn has_unpublished(&self, address: usize) -> bool {
        self.unpublished.iter().any(|value| value.as_ptr().addr() == address)
    }

    /// Whether `thread` finalises a value with this number or a smaller one, or has it under the write lock.
    pub(super) fn has_taken(&self, number: u64, thread: ThreadId) -> bool {
        self.up_to(number).any(|entry| matches!(entry.place, Place::Taken(by) if by == thread))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::current_thread;

    type Queue = RetirementQueue<(), u32>;

    fn published(queue: &mut Queue) -> (u64, Arc<()>) {
        let value = Arc::new(());
        (queue.publish(&value, false), value)
    }

    /// The last reference to a value that stands for `content` is dropped.
    fn drop_last(queue: &mut Queue, number: u64, value: Arc<()>, content: u32) -> Option<Moment> {
        let address = Arc::as_ptr(&value).addr();
        drop(value);
        queue.drained(number, address, content)
    }

    fn begin(queue: &mut Queue) -> Option<(u64, u32)> {
        queue.begin_finalizer(current_thread().id())
    }

    #[test]
    fn only_the_front_is_finalised() {
        let mut queue = Queue::default();
        let [(_, first), (_, second), (_, _third)] = [(); 3].map(|()| published(&mut queue));
        assert_eq!((queue.current(), queue.last_retired(), queue.finalized()), (Some(3), 2, 0));
        assert!(drop_last(&mut queue, 2, second, 20).is_some());
        assert!(!queue.is_ready() && begin(&mut queue).is_none());
        assert!(drop_last(&mut queue, 1, first, 10).is_some());
        assert!(queue.is_ready());
        assert_eq!(begin(&mut queue), Some((1, 10)));
        assert_eq!((queue.finalizing(), queue.finalized()), (Some(current_thread().id()), 0));
        queue.end_finalizer(1);
        assert_eq!(begin(&mut queue), Some((2, 20)));
        queue.end_finalizer(2);
        assert_eq!((queue.finalized(), queue.last_retired(), queue.is_ready()), (2, 2, false));
    }

    #[test]
    fn one_finalizer_runs_at_a_time() {
        let mut queue = Queue::default();
        let unpublished = [(); 2].map(|()| Arc::new(()));
        for value in &unpublished {
            queue.add_unpublished(value);
        }
        assert!(!queue.is_over(Awaited::Exclusive));
        assert_eq!((queue.readers_of_unpublished(), queue.readers()), (2, 0));
        let (number, first) = published(&mut queue);
        queue.retire_current();
        drop_last(&mut queue, number, first, 10);
        for (value, content) in unpublished.into_iter().zip([7, 8]) {
            assert!(queue.has_unpublished(Arc::as_ptr(&value).addr()));
            assert!(drop_last(&mut queue, 0, value, content).is_none());
        }
        assert!(queue.unpublished.is_empty());
        assert_eq!(begin(&mut queue), Some((1, 10)));
        assert!(!queue.is_ready() && begin(&mut queue).is_none());
        queue.end_finalizer(1);
        for _ in 0..2 {
            assert!(queue.is_ready());
            assert!(matches!(begin(&mut queue), Some((0, 7 | 8))));
            assert!(!queue.is_over(Awaited::Exclusive));
            queue.end_finalizer(0);
        }
        assert_eq!((queue.is_over(Awaited::Exclusive), queue.finalized()), (true, 1));
    }

    #[test]
    fn readers_are_counted_without_the_slot() {
        let mut queue = Queue::default();
        let (_, slot) = published(&mut queue);
        let reader = Arc::clone(&slot);
        assert_eq!((queue.readers(), queue.readers_of_retired()), (1, 0));
        // The slot has dropped its reference when the value is replaced.
        drop(slot);
        let (_, slot) = published(&mut queue);
        assert_eq!((queue.readers(), queue.readers_of_retired()), (1, 1));
        drop(reader);
        assert_eq!(queue.readers(), 0);
        // And when the value is withheld, which may be cleared then.
        let reader = Arc::clone(&slot);
        queue.withhold();
        drop(slot);
        assert_eq!((queue.readers(), queue.readers_of_retired(), queue.current()), (1, 0, Some(2)));
        queue.retire_current();
        assert_eq!((queue.readers(), queue.readers_of_retired(), queue.current()), (1, 1, None));
        drop(reader);
        assert_eq!(queue.readers(), 0);
    }

    #[test]
    fn a_withheld_value_is_taken_and_put_back() {
        let mut queue = Queue::default();
        let thread = current_thread().id();
        let (number, reader) = published(&mut queue);
        queue.withhold();
        assert!(queue.withheld().is_some_and(|(of, shared)| of == number && shared.is_some()));
        assert!(queue.take(number, thread).is_none() && !queue.is_over(Awaited::Exclusive));
        // It is current, so it is not finalised.
        assert!(drop_last(&mut queue, number, reader, 10).is_none());
        assert!(begin(&mut queue).is_none() && !queue.is_ready() && queue.is_over(Awaited::Exclusive));
        assert!(queue.withheld().is_some_and(|(of, shared)| of == number && shared.is_none()));
        assert_eq!(queue.take(number, thread), Some(10));
        assert!(queue.has_taken(number, thread) && !queue.has_taken(number - 1, thread));
        // In another place.
        let again = Arc::new(());
        queue.put_back(number, &again);
        assert!(queue.withheld().is_none() && !queue.has_taken(number, thread));
        assert_eq!((queue.current(), queue.readers()), (Some(number), 0));
        assert!(queue.has_published(number, Arc::as_ptr(&again).addr()));
        // If it is cleared meanwhile, it is finalised.
        queue.withhold();
        queue.retire_current();
        assert!(queue.withheld().is_none());
        queue.put_back(number, &again);
        assert_eq!(queue.current(), None);
        assert!(drop_last(&mut queue, number, again, 10).is_some());
        assert_eq!(begin(&mut queue), Some((number, 10)));
    }

    #[test]
    fn a_value_is_found_by_its_address_up_to_a_number() {
        let mut queue = Queue::default();
        let values = [(); 3].map(|()| published(&mut queue).1);
        let addresses = values.each_ref().map(|value| Arc::as_ptr(value).addr());
        let [first, ..] = values;
        drop_last(&mut queue, 1, first, 10);
        begin(&mut queue);
        queue.end_finalizer(1);
        let found = |number| addresses.map(|address| queue.has_published(number, address));
        assert_eq!(found(1), [false, false, false]);
        assert_eq!(found(2), [false, true, false]);
        assert_eq!(found(u64::MAX), [false, true, true]);
    }

    #[test]
    fn a_published_value_is_no_longer_unpublished() {
        let mut queue = Queue::default();
        let value = Arc::new(());
        queue.add_unpublished(&value);
        queue.publish(&value, false);
        assert!(queue.unpublished.is_empty() && !queue.has_unpublished(Arc::as_ptr(&value).addr()));
    }
}
