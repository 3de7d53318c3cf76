//! What the cells of this test hold, and what is known of it.
//!
//! # Numbers in the order of publication
//!
//! A build takes its number when it begins, a `set` takes one and sets its value under the same lock. So if a build
//! has the smaller number, it is published before the `set`, or it began before and is fenced off; if it has the
//! greater one, it began after the `set`, or again is fenced off. Between two builds stands the lease.
//!
//! # Values that never come into the cell
//!
//! A build that is fenced off by a `clear` returns its own value all the same, and nobody can tell. So what a caller
//! has built itself counts as published only if no `set` or `clear` was under way from before the call until after it,
//! or if somebody else has read it.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::harness::{Random, lock};

pub(crate) struct Value {
    number: u64,
    /// How often a write section has changed it.
    changes: u64,
    checksum: u64,
    pub(crate) life: Arc<Life>,
}

/// What others know of a value. The finalizer keeps it, so that whoever reads too late finds out.
pub(crate) struct Life {
    pub(crate) is_over: AtomicBool,
    pub(crate) is_published: AtomicBool,
    pub(crate) readers: AtomicU64,
    census: Arc<Census>,
}

/// All values of a cell.
#[derive(Default)]
pub(crate) struct Census {
    numbers: Mutex<u64>,
    made: AtomicU64,
    dropped: AtomicU64,
    /// The greatest number that anybody has read.
    seen: AtomicU64,
    /// Readers.
    pub(crate) inside: AtomicU64,
    /// Calls of `set` and `clear`.
    displacements: (AtomicU64, AtomicU64),
}

fn checksum(number: u64, changes: u64) -> u64 {
    Random::new(number ^ changes.rotate_left(32)).next()
}

impl Value {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn check(&self) {
        assert_eq!(self.checksum, checksum(self.number, self.changes), "value {} is torn", self.number);
        // SeqCst, here and below: the test shall add no order of its own, and take none away.
        assert!(!self.life.is_over.load(Ordering::SeqCst), "value {} is read and finalised", self.number);
    }

    /// By whoever has it for itself.
    pub(crate) fn change(&mut self, random: &mut Random) {
        self.changes += 1;
        random.dawdle();
        self.checksum = checksum(self.number, self.changes);
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.life.census.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl Census {
    /// The number of a build that begins.
    pub(crate) fn number(&self) -> u64 {
        let mut number = lock(&self.numbers);
        *number += 1;
        *number
    }

    /// The value of a build that has this number.
    pub(crate) fn build(self: &Arc<Self>, number: u64) -> Value {
        self.value(number, false)
    }

    /// Calls `set` with a value, and returns what that returns.
    pub(crate) fn set<R>(self: &Arc<Self>, set: impl FnOnce(Value) -> R) -> R {
        let mut number = lock(&self.numbers);
        *number += 1;
        self.displacing(|| set(self.value(*number, true)))
    }

    /// Calls `set` or `clear`.
    pub(crate) fn displacing<R>(&self, displace: impl FnOnce() -> R) -> R {
        let (begun, ended) = &self.displacements;
        begun.fetch_add(1, Ordering::SeqCst);
        let result = displace();
        ended.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// How many `set`s and `clear`s there have been, if none is under way.
    pub(crate) fn displacements(&self) -> Option<u64> {
        let (begun, ended) = &self.displacements;
        let ended = ended.load(Ordering::SeqCst);
        (begun.load(Ordering::SeqCst) == ended).then_some(ended)
    }

    fn value(self: &Arc<Self>, number: u64, is_published: bool) -> Value {
        self.made.fetch_add(1, Ordering::SeqCst);
        let life = Life {
            is_over: AtomicBool::new(false),
            is_published: AtomicBool::new(is_published),
            readers: AtomicU64::new(0),
            census: Arc::clone(self),
        };
        Value { number, changes: 0, checksum: checksum(number, 0), life: Arc::new(life) }
    }

    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    pub(crate) fn alive(&self) -> u64 {
        let dropped = self.dropped.load(Ordering::SeqCst);
        self.made() - dropped
    }

    /// The greatest number that anybody has read so far.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }
}

/// What one thread has seen.
#[derive(Default)]
pub(crate) struct Witness {
    latest: u64,
}

impl Witness {
    /// A value that came out of the cell, by a read that began when `before` was the greatest number.
    pub(crate) fn sees(&mut self, value: &Value, before: u64) {
        value.check();
        let number = value.number;
        assert!(number >= self.latest, "value {number} after {}, on one thread", self.latest);
        assert!(number >= before, "value {number} after {before}, which another thread had seen");
        self.latest = number;
        value.life.census.seen.fetch_max(number, Ordering::SeqCst);
    }
}

/// Somebody who reads, as long as this lives.
pub(crate) struct Inside<R: Deref<Target = Value>> {
    value: R,
    /// It is known to be or to have been in the cell.
    is_published: bool,
}

impl<R: Deref<Target = Value>> Inside<R> {
    pub(crate) fn new(value: R, is_published: bool) -> Self {
        value.life.readers.fetch_add(1, Ordering::SeqCst);
        value.life.census.inside.fetch_add(1, Ordering::SeqCst);
        if is_published {
            value.life.is_published.store(true, Ordering::SeqCst);
        }
        Self { value, is_published }
    }
}

impl<R: Deref<Target = Value> + Clone> Clone for Inside<R> {
    fn clone(&self) -> Self {
        Self::new(self.value.clone(), self.is_published)
    }
}

impl<R: Deref<Target = Value>> Deref for Inside<R> {
    type Target = Value;
    fn deref(&self) -> &Value {
        &self.value
    }
}

impl<R: Deref<Target = Value>> Drop for Inside<R> {
    /// Before the reader leaves.
    fn drop(&mut self) {
        let life = &self.value.life;
        if !std::thread::panicking() {
            self.value.check();
        }
        life.census.inside.fetch_sub(1, Ordering::SeqCst);
        life.readers.fetch_sub(1, Ordering::SeqCst);
    }
}
