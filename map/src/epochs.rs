//! Invalidations of many keys at once, in constant time.
//!
//! One counter numbers them. A build notes the counter when it begins; what it publishes carries that number, its *origin*. An
//! invalidation takes the next number and raises a mark to it: the mark of all keys ([`Epochs::floor`]), the mark below which
//! values are gone ([`Epochs::cleared`]), or the mark of a tag. A value is current while its origin is below none of the marks
//! that concern it. So a build that began before an invalidation returned never counts as fresh (G4), without a look at the
//! keys or at the builds that run.
//!
//! # Tags
//!
//! A value holds the marks of its tags. The table of tags holds them too, as long as a value does: it is swept when it has
//! doubled. A tag that is swept, or that is invalidated while no value has it, raises [`Table::pruned`], with which the marks
//! of new tags begin: a build that ran meanwhile publishes a stale value at worst.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sync::{AtomicI64, AtomicU64, RwLock};

/// When a build, or a write, began, as a number of invalidations.
pub(crate) type Origin = u64;

pub(crate) struct Epochs {
    counter: AtomicU64,
    floor: AtomicU64,
    /// When that was raised last.
    floor_raised: AtomicI64,
    cleared: AtomicU64,
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    marks: HashMap<Box<str>, Arc<Mark>>,
    pruned: Origin,
    sweep_at: usize,
}

/// The latest invalidation of a tag.
#[derive(Debug)]
pub(crate) struct Mark {
    origin: AtomicU64,
    /// When it was raised last.
    raised: AtomicI64,
}

/// The marks of a value's tags.
pub(crate) type Marks = Arc<[Arc<Mark>]>;

const FEW: usize = 64;

impl Epochs {
    pub(crate) fn new() -> Self {
        Self {
            counter: AtomicU64::new(1),
            floor: AtomicU64::new(0),
            floor_raised: AtomicI64::new(i64::MIN),
            cleared: AtomicU64::new(0),
            table: RwLock::new(Table { sweep_at: FEW, ..Table::default() }),
        }
    }

    /// What a build that begins now is numbered with.
    pub(crate) fn origin(&self) -> Origin {
        // Acquire: pairs with the Release in `next`. A build with the number of an invalidation reads what was written
        // before that.
        self.counter.load(Ordering::Acquire)
    }

    fn next(&self) -> Origin {
        // Release: pairs with the Acquire in `origin`. Acquire, so that the marks are raised in order.
        self.counter.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(crate) fn invalidate_all(&self, now: i64) {
        // Relaxed: the Release that follows publishes it.
        self.floor_raised.fetch_max(now, Ordering::Relaxed);
        // Release: pairs with the Acquire in `floor`.
        self.floor.fetch_max(self.next(), Ordering::Release);
    }

    pub(crate) fn clear_all(&self) {
        let origin = self.next();
        // Release: pairs with the Acquire in `is_cleared`. Before the floor: a reader that sees the new floor sees this.
        self.cleared.fetch_max(origin, Ordering::Release);
        self.floor.fetch_max(origin, Ordering::Release);
    }

    /// Below this, values are out of date, whatever their key.
    #[inline]
    pub(crate) fn floor(&self) -> Origin {
        // Acquire: pairs with the Release in `clear_all`, for `is_cleared`, and with that in `invalidate_all`.
        self.floor.load(Ordering::Acquire)
    }

    /// Whether all keys were cleared since then.
    pub(crate) fn is_cleared(&self, origin: Origin) -> bool {
        // Acquire: pairs with the Release in `clear_all`.
        origin < self.cleared.load(Ordering::Acquire)
    }

    /// When a value of this origin was declared stale, if it was. Of several invalidations by one mark only the latest is
    /// known.
    pub(crate) fn lapsed_at(&self, origin: Origin, tags: &[Arc<Mark>]) -> Option<i64> {
        // Relaxed, twice: after the Acquire that found the mark raised.
        let floor = (origin < self.floor()).then(|| self.floor_raised.load(Ordering::Relaxed));
        let tags = tags.iter().filter(|mark| !mark.is_current(origin));
        floor.into_iter().chain(tags.map(|mark| mark.raised.load(Ordering::Relaxed))).min()
    }

    /// The marks of these tags.
    pub(crate) fn marks(&self, tags: &[Box<str>]) -> Marks {
        tags.iter().map(|tag| self.mark(tag)).collect()
    }

    fn mark(&self, tag: &str) -> Arc<Mark> {
        if let Some(mark) = self.table.read().marks.get(tag) {
            return Arc::clone(mark);
        }
        let mut table = self.table.write();
        table.sweep();
        let pruned = table.pruned;
        let new = || Arc::new(Mark { origin: AtomicU64::new(pruned), raised: AtomicI64::new(i64::MIN) });
        Arc::clone(table.marks.entry(tag.into()).or_insert_with(new))
    }

    pub(crate) fn invalidate_tag(&self, tag: &str, now: i64) {
        let mut table = self.table.write();
        // Under the lock, so that no mark is made with an older number.
        let origin = self.next();
        match table.marks.get(tag) {
            Some(mark) => {
                // Relaxed: the Release that follows publishes it.
                mark.raised.fetch_max(now, Ordering::Relaxed);
                // Release: pairs with the Acquire in `Mark::is_current`.
                mark.origin.fetch_max(origin, Ordering::Release);
            }
            None => table.pruned = table.pruned.max(origin),
        }
    }

    /// How many tags are known.
    #[cfg(test)]
    fn tags(&self) -> usize {
        self.table.read().marks.len()
    }
}

impl Mark {
    pub(crate) fn is_current(&self, origin: Origin) -> bool {
        // Acquire: pairs with the Release in `invalidate_tag`.
        origin >= self.origin.load(Ordering::Acquire)
    }
}

impl Table {
    /// Forgets the tags that no value has, now and then.
    fn sweep(&mut self) {
        if self.marks.len() < self.sweep_at {
            return;
        }
        let mut pruned = self.pruned;
        self.marks.retain(|_, mark| {
            // Marks are shared under the lock only, so one with a count of one is unused.
            let is_used = Arc::strong_count(mark) > 1;
            if !is_used {
                // Relaxed: raised under the lock only.
                pruned = pruned.max(mark.origin.load(Ordering::Relaxed));
            }
            is_used
        });
        self.pruned = pruned;
        self.sweep_at = (2 * self.marks.len()).max(FEW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(epochs: &Epochs, tag: &str) -> Marks {
        epochs.marks(&[tag.into()])
    }

    #[test]
    fn a_tag_that_was_invalidated_while_unknown_makes_running_builds_stale() {
        let epochs = Epochs::new();
        let origin = epochs.origin();
        epochs.invalidate_tag("red", 0);
        assert!(!marks(&epochs, "red")[0].is_current(origin));
        assert!(marks(&epochs, "red")[0].is_current(epochs.origin()));
    }

    #[test]
    fn unused_tags_are_forgotten_and_their_marks_are_not() {
        let epochs = Epochs::new();
        let origin = epochs.origin();
        let kept = marks(&epochs, "kept");
        drop(marks(&epochs, "unused"));
        epochs.invalidate_tag("unused", 0);
        for number in 0..10 * FEW {
            marks(&epochs, &number.to_string());
        }
        assert!(epochs.tags() <= FEW + 1, "{}", epochs.tags());
        assert!(!marks(&epochs, "unused")[0].is_current(origin));
        assert!(kept[0].is_current(origin));
        epochs.invalidate_tag("kept", 0);
        assert!(!kept[0].is_current(origin));
    }
}
