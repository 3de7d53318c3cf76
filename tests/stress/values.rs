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
//! A build that is displaced by a `clear` returns its own value all the same, and no caller can tell. So what a caller
//! has built itself counts as published only if no `set`, `clear`, `revoke` or `reset` was under way from
//! before the call until after it, or if another thread has read it.
//!
//! # Values that are restored
//!
//! A `restore` displaces no build, so one that has a smaller number may be published after it. Therefore this test displaces
//! the build that runs before it restores a value, under the lock that gives the numbers.
//!
//! # The fence
//!
//! When an `invalidate`, a `clear` or a `reset` has returned, every build that had its number before the call had begun before it. So
//! its value, or a smaller one, is not fresh to any read that begins now, or is not in the cell at all. If a build finds that the
//! previous value is still right and renews it, that value is as good as a new one with that build's number.

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
    /// The greatest number of a build that has found it still right.
    vouched: AtomicU64,
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
    /// Nothing up to this number is in the cell any more.
    cleared: AtomicU64,
    /// Nothing up to this number is fresh any more.
    invalidated: AtomicU64,
    /// Readers.
    pub(crate) inside: AtomicU64,
    /// Calls of `set`, `clear`, `revoke` and `reset`.
    displacements: (AtomicU64, AtomicU64),
}

/// What was known when a read began.
#[derive(Clone, Copy)]
pub(crate) struct Before {
    seen: u64,
    cleared: u64,
    invalidated: u64,
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

    /// A build of this number finds the value still right, and is about to renew it.
    pub(crate) fn vouch(&self, number: u64) {
        self.life.vouched.fetch_max(number, Ordering::SeqCst);
    }

    /// The number of the latest build that has made it or found it still right.
    pub(crate) fn origin(&self) -> u64 {
        self.number.max(self.life.vouched.load(Ordering::SeqCst))
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
        // Whoever reads it from now on finds it torn.
        self.checksum = !self.checksum;
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

    /// The same, if no `set` is under way: for tasks, which must not block, and for builds that are readers, for which that
    /// `set` may be waiting.
    pub(crate) fn try_number(&self) -> Option<u64> {
        let mut number = self.numbers.try_lock().ok()?;
        *number += 1;
        Some(*number)
    }

    /// The greatest number so far. Builds and sets up to it have begun.
    pub(crate) fn latest(&self) -> u64 {
        *lock(&self.numbers)
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

    /// Calls `set`, `clear`, `revoke` or `reset`. A build that it overlaps with is counted before and after.
    pub(crate) fn displacing<R>(&self, displace: impl FnOnce() -> R) -> R {
        let (begun, ended) = &self.displacements;
        begun.fetch_add(1, Ordering::SeqCst);
        let result = displace();
        ended.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// Calls `clear`.
    pub(crate) fn clearing<R>(&self, clear: impl FnOnce() -> R) -> R {
        let latest = self.latest();
        let result = self.displacing(clear);
        self.cleared.fetch_max(latest, Ordering::SeqCst);
        result
    }

    /// Calls `clear_if_current`, which returns whether the value was taken away. `latest`: see
    /// [`invalidating_if`](Census::invalidating_if).
    pub(crate) fn clearing_if(&self, latest: u64, clear: impl FnOnce() -> bool) {
        if self.displacing(clear) {
            self.cleared.fetch_max(latest, Ordering::SeqCst);
        }
    }

    /// Calls `invalidate`.
    pub(crate) fn invalidating(&self, invalidate: impl FnOnce()) {
        let latest = self.latest();
        invalidate();
        self.invalidated.fetch_max(latest, Ordering::SeqCst);
    }

    /// Calls `invalidate_if_current`, which returns whether the value was declared stale.
    ///
    /// `latest`: from before the caller got the value, since a thread that holds one must not wait for that.
    pub(crate) fn invalidating_if(&self, latest: u64, invalidate: impl FnOnce() -> bool) {
        if invalidate() {
            self.invalidated.fetch_max(latest, Ordering::SeqCst);
        }
    }

    /// How many displacements have begun, and how many have ended.
    pub(crate) fn displacement_counts(&self) -> (u64, u64) {
        let (begun, ended) = &self.displacements;
        let ended = ended.load(Ordering::SeqCst);
        (begun.load(Ordering::SeqCst), ended)
    }

    /// How many `set`s, `clear`s and `revoke`s there have been, if none is under way.
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
            vouched: AtomicU64::new(0),
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

    /// For a read that begins now.
    pub(crate) fn before(&self) -> Before {
        Before {
            seen: self.seen.load(Ordering::SeqCst),
            cleared: self.cleared.load(Ordering::SeqCst),
            invalidated: self.invalidated.load(Ordering::SeqCst),
        }
    }
}

/// What one thread has seen.
#[derive(Default)]
pub(crate) struct Witness {
    latest: u64,
}

impl Witness {
    /// A value that came out of the cell, by a read that began `before`.
    #[track_caller]
    pub(crate) fn sees(&mut self, value: &Value, before: Before) {
        let number = value.number;
        assert!(number >= self.latest, "value {number} after {}, on one thread", self.latest);
        self.latest = number;
        before.allows(value);
    }

    /// The same, of a value that is said to be fresh.
    #[track_caller]
    pub(crate) fn sees_fresh(&mut self, value: &Value, before: Before) {
        self.sees(value, before);
        before.allows_as_fresh(value);
    }
}

impl Before {
    /// A value that came out of the cell, by a read that began then.
    #[track_caller]
    pub(crate) fn allows(self, value: &Value) {
        value.check();
        let (number, Self { seen, cleared, .. }) = (value.number, self);
        assert!(number >= seen, "value {number} after {seen}, which another thread had seen");
        assert!(number > cleared, "value {number} after a clear that all up to {cleared} had begun before");
        value.life.census.seen.fetch_max(number, Ordering::SeqCst);
    }

    /// It is said to be fresh.
    #[track_caller]
    pub(crate) fn allows_as_fresh(self, value: &Value) {
        let (number, origin, Self { invalidated, .. }) = (value.number, value.origin(), self);
        assert!(
            origin > invalidated,
            "value {number}, of {origin}, fresh after an invalidate that all up to {invalidated} had begun before"
        );
    }
}

/// Somebody who reads, as long as this lives.
pub(crate) struct Inside<R: Deref<Target = Value>> {
    value: R,
    /// It is known to be or to have been in the cell.
    is_published: bool,
    /// Whether a write section must not find it inside.
    is_counted: bool,
}

impl<R: Deref<Target = Value>> Inside<R> {
    pub(crate) fn new(value: R, is_published: bool) -> Self {
        Self::count(value, is_published, true)
    }

    /// The result of a build that may have been superseded or displaced: then it was never in the cell, and a build that has
    /// the write lock by then does not wait for its reader.
    pub(crate) fn apart(value: R) -> Self {
        Self::count(value, false, false)
    }

    /// What the cell has handed out.
    pub(crate) fn held(&self) -> &R {
        &self.value
    }

    fn count(value: R, is_published: bool, is_counted: bool) -> Self {
        value.life.readers.fetch_add(1, Ordering::SeqCst);
        if is_counted {
            value.life.census.inside.fetch_add(1, Ordering::SeqCst);
        }
        if is_published {
            value.life.is_published.store(true, Ordering::SeqCst);
        }
        Self { value, is_published, is_counted }
    }
}

impl<R: Deref<Target = Value> + Clone> Clone for Inside<R> {
    fn clone(&self) -> Self {
        Self::count(self.value.clone(), self.is_published, self.is_counted)
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
        if self.is_counted {
            life.census.inside.fetch_sub(1, Ordering::SeqCst);
        }
        life.readers.fetch_sub(1, Ordering::SeqCst);
    }
}
