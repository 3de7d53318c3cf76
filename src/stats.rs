//! What a cell has done so far.

use std::time::Duration;

use crate::clock::FOREVER;
use crate::sync::{Ordering, PlainU64};

/// What a cell has done since it was made. Nothing is counted on the fresh path.
///
/// Each number is counted at the moment it begins to be true. They are read one after the other: while builds
/// run, a snapshot may show the end of a build whose beginning it does not show yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Leases that were granted: builds that began.
    pub builds: u64,
    /// Values made visible to readers: by builds, by `renew` and by `set`. The same as the generation.
    pub published: u64,
    /// Builds that ended with an error.
    pub failed: u64,
    /// Builds that ended with a panic.
    pub panicked: u64,
    /// Leases that were given back unused.
    pub abandoned: u64,
    /// Builds that took longer than the lease timeout, and somebody else was elected in their place.
    pub superseded: u64,
    /// Builds whose result the fence kept from counting as fresh: published as stale because of an
    /// `invalidate`, or not published because of a `set` or a `clear`, while they ran.
    pub fenced: u64,
    /// Times that a caller began to wait for somebody else's build.
    pub waits: u64,
    /// Waits that ended, or did not begin, because the time allowed for them was over.
    pub wait_timeouts: u64,
    /// How long the latest build took that ended with a value or an error.
    pub last_build: Option<Duration>,
}

/// The counters behind [`Stats`].
pub(crate) struct Counters {
    pub(crate) builds: Counter,
    pub(crate) published: Counter,
    pub(crate) failed: Counter,
    pub(crate) panicked: Counter,
    pub(crate) abandoned: Counter,
    pub(crate) superseded: Counter,
    pub(crate) fenced: Counter,
    pub(crate) waits: Counter,
    pub(crate) wait_timeouts: Counter,
    /// Nanoseconds; FOREVER while there is none.
    last_build: PlainU64,
}

/// A number that only grows.
pub(crate) struct Counter(PlainU64);

impl Counter {
    const fn new() -> Self {
        Self(PlainU64::new(0))
    }

    pub(crate) fn count(&self) {
        // Relaxed, here and below: a statistic orders nothing.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The same, for a counter that is only counted under the cell's lock: no read-modify-write is needed.
    pub(crate) fn count_locked(&self) {
        self.0.store(self.read() + 1, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) const fn new() -> Self {
        Self {
            builds: Counter::new(),
            published: Counter::new(),
            failed: Counter::new(),
            panicked: Counter::new(),
            abandoned: Counter::new(),
            superseded: Counter::new(),
            fenced: Counter::new(),
            waits: Counter::new(),
            wait_timeouts: Counter::new(),
            last_build: PlainU64::new(FOREVER),
        }
    }

    pub(crate) fn build_took(&self, nanos: u64) {
        self.last_build.store(nanos.min(FOREVER - 1), Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Stats {
        let last_build = self.last_build.load(Ordering::Relaxed);
        Stats {
            builds: self.builds.read(),
            published: self.published.read(),
            failed: self.failed.read(),
            panicked: self.panicked.read(),
            abandoned: self.abandoned.read(),
            superseded: self.superseded.read(),
            fenced: self.fenced.read(),
            waits: self.waits.read(),
            wait_timeouts: self.wait_timeouts.read(),
            last_build: (last_build != FOREVER).then(|| Duration::from_nanos(last_build)),
        }
    }
}
