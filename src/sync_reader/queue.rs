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
}

/// A published value.
struct Entry<S, T> {
    stage: Stage<T>,
    /// What readers share, while they may.
    shared: Weak<S>,
    /// Whether there is a reference that is no reader's: the slot's or a writer's.
    is_held: bool,
}

/// The stages of a published value, one after the other.
enum Stage<T> {
    /// It is in the slot, or a writer has withheld it and may put it back.
    Current,
    /// It was replaced or cleared at that time. Its readers may still hold it.
    Retired(Moment),
    /// Its last reader has left. `None` while the finalizer runs.
    Drained(Option<Box<T>>),
}

impl<S, T> Entry<S, T> {
    fn readers(&self) -> usize {
        self.shared.strong_count().saturating_sub(usize::from(self.is_held))
    }

    fn is_current(&self) -> bool {
        matches!(self.stage, Stage::Current)
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
        }
    }
}

/// Transitions.
impl<S, T> RetirementQueue<S, T> {
    /// `new` is published, and replaces the current value. Returns its number.
    pub(super) fn publish(&mut self, new: &Arc<S>) -> u64 {
        self.unpublished.retain(|value| value.as_ptr() != Arc::as_ptr(new));
        self.retire_current(false);
        self.published.push_back(Entry { stage: Stage::Current, shared: Arc::downgrade(new), is_held: true });
        self.last_published()
    }

    /// The current value is replaced or cleared. `is_withheld`: a writer has taken it out of the slot before.
    pub(super) fn retire_current(&mut self, is_withheld: bool) {
        if let Some(current) = self.published.back_mut().filter(|last| last.is_current()) {
            current.stage = Stage::Retired(Moment::now());
            current.is_held &= is_withheld;
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
        let stage = Stage::Drained(Some(Box::new(value)));
        let drained = Entry { stage, shared: Weak::new(), is_held: false };
        match std::mem::replace(self.entry(number), drained).stage {
            Stage::Retired(since) => Some(since),
            Stage::Current | Stage::Drained(_) => None,
        }
    }

    /// Whether a value can be finalised now.
    pub(super) fn is_ready(&self) -> bool {
        let is_front_drained =
            self.published.front().is_some_and(|front| matches!(front.stage, Stage::Drained(_)));
        self.finalizing.is_none() && (is_front_drained || !self.unpublished_drained.is_empty())
    }

    /// Takes a value that `thread` is to finalise, and its number (0: unpublished). [`end_finalizer`] must follow.
    ///
    /// [`end_finalizer`]: RetirementQueue::end_finalizer
    pub(super) fn begin_finalizer(&mut self, thread: ThreadId) -> Option<(u64, T)> {
        if self.finalizing.is_some() {
            return None;
        }
        let front = match self.published.front_mut() {
            Some(Entry { stage: Stage::Drained(value), .. }) => value.take(),
            _ => None,
        };
        let taken = match front {
            Some(value) => (self.finalized + 1, *value),
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

    /// Whether there is a reference to the value that is no reader's.
    pub(super) fn set_held(&mut self, number: u64, is_held: bool) {
        self.entry(number).is_held = is_held;
    }

    /// A writer that had withheld the value, or had even taken it out of what readers share, puts it back.
    pub(super) fn put_back(&mut self, number: u64, value: &Arc<S>) {
        let entry = self.entry(number);
        (entry.shared, entry.is_held) = (Arc::downgrade(value), true);
    }

    fn entry(&mut self, number: u64) -> &mut Entry<S, T> {
        let index = number.checked_sub(self.finalized + 1).and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.published.get_mut(index)) {
            Some(entry) => entry,
            None => unreachable!("a published value is in the queue until its finalizer has run"),
        }
    }
}

/// Queries.
impl<S, T> RetirementQueue<S, T> {
    /// Up to which number all values have been finalised.
    pub(super) fn finalized(&self) -> u64 {
        self.finalized
    }

    fn last_published(&self) -> u64 {
        self.finalized + self.published.len() as u64
    }

    /// The number of the current value, if there is one.
    pub(super) fn current(&self) -> Option<u64> {
        self.published.back().filter(|last| last.is_current()).map(|_| self.last_published())
    }

    /// The number of the last value that has been replaced or cleared.
    pub(super) fn last_retired(&self) -> u64 {
        self.current().map_or(self.last_published(), |current| current - 1)
    }

    /// The thread that runs the finalizer.
    pub(super) fn finalizing(&self) -> Option<ThreadId> {
        self.finalizing
    }

    /// Whether there is no unpublished value and no finalizer runs.
    pub(super) fn is_idle(&self) -> bool {
        self.unpublished.is_empty() && self.unpublished_drained.is_empty() && self.finalizing.is_none()
    }

    /// Readers of published values.
    pub(super) fn readers(&self) -> usize {
        self.published.iter().map(Entry::readers).sum()
    }

    /// Readers of values that have been replaced or cleared.
    pub(super) fn readers_of_retired(&self) -> usize {
        self.published.iter().filter(|entry| !entry.is_current()).map(Entry::readers).sum()
    }

    /// Readers of unpublished values.
    pub(super) fn readers_of_unpublished(&self) -> usize {
        self.unpublished.iter().map(Weak::strong_count).sum()
    }

    /// Whether a published value with this number or a smaller one is at `address`.
    pub(super) fn has_published(&self, number: u64, address: usize) -> bool {
        let count = usize::try_from(number.saturating_sub(self.finalized)).unwrap_or(usize::MAX);
        self.published.iter().take(count).any(|entry| entry.shared.as_ptr().addr() == address)
    }

    /// Whether an unpublished value is at `address`.
    pub(super) fn has_unpublished(&self, address: usize) -> bool {
        self.unpublished.iter().any(|value| value.as_ptr().addr() == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::current_thread;

    type Queue = RetirementQueue<(), u32>;

    fn published(queue: &mut Queue) -> (u64, Arc<()>) {
        let value = Arc::new(());
        (queue.publish(&value), value)
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
        assert!(!queue.is_idle());
        assert_eq!((queue.readers_of_unpublished(), queue.readers()), (2, 0));
        let (number, first) = published(&mut queue);
        queue.retire_current(false);
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
            assert!(!queue.is_idle());
            queue.end_finalizer(0);
        }
        assert_eq!((queue.is_idle(), queue.finalized()), (true, 1));
    }

    #[test]
    fn readers_are_counted_without_the_slot_and_the_writer() {
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
        // The reference of the slot is a writer's now. It is dropped before a `clear`, or after.
        let reader = Arc::clone(&slot);
        queue.set_held(2, false);
        drop(slot);
        queue.retire_current(true);
        assert_eq!((queue.readers(), queue.readers_of_retired(), queue.current()), (1, 1, None));
        let (_, writer) = published(&mut queue);
        queue.retire_current(true);
        assert_eq!((queue.readers(), queue.current()), (1, None));
        drop(writer);
        // The value was taken out, and is in another place.
        let again = Arc::new(());
        queue.put_back(3, &again);
        assert_eq!(queue.readers(), 1);
        let address = |value: &Arc<()>| Arc::as_ptr(value).addr();
        assert!(queue.has_published(3, address(&again)) && !queue.has_published(1, address(&again)));
        assert!(queue.has_published(2, address(&reader)));
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
        queue.publish(&value);
        assert!(queue.is_idle() && !queue.has_unpublished(Arc::as_ptr(&value).addr()));
    }
}
