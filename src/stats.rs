//! What a cell has done so far.

use std::time::Duration;

use crate::sync::{Ordering, PlainU64};
use crate::time::FOREVER;

/// Counters of what a cell has done since it was made or reset. Fresh reads count nothing.
///
/// Each counter is incremented when its event happens. The counters are read one after the other, not all at once.
/// While builds run, they may show the end of a build without its beginning.
///
/// # Examples
///
/// ```
/// use dogpile::DogpileCell;
/// use std::time::Duration;
///
/// let cell = DogpileCell::new(Duration::from_secs(60));
/// cell.get_or_refresh(|| 1);
/// cell.invalidate();
/// cell.try_get_or_refresh(|| Err("no route to host")).unwrap(); // the old value
///
/// let stats = cell.stats();
/// assert_eq!((stats.builds, stats.failed), (2, 1));
/// assert_eq!((stats.consecutive_failures, stats.served_stale_on_error), (1, 1));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Builds that began: leases that were granted.
    pub builds: u64,
    /// Values made visible to readers: by builds, by `renew`, by `set` and by `restore`. Equal to the generation,
    /// unless the cell was [`reset`](crate::DogpileCell::reset).
    pub published: u64,
    /// Builds that ended with an error.
    pub failed: u64,
    /// Builds that ended with a panic.
    pub panicked: u64,
    /// Leases that were given back unused.
    pub abandoned: u64,
    /// Builds that ran longer than the lease timeout, so that another caller was elected in their place.
    pub superseded: u64,
    /// Builds whose result did not count as fresh because of a write during the build. After an `invalidate` it was
    /// published as stale. After a `set`, a `clear`, a `revoke` or a `reset` it was not published. Also a
    /// [`Derived`](crate::Derived) value whose source has published during the build, and a value that was to be renewed and
    /// has been replaced by a `restore`.
    pub fenced: u64,
    /// Builds that have failed or panicked since the latest publication.
    pub consecutive_failures: u64,
    /// Calls that returned the old value instead of the error of their own build or of the build that they waited for.
    pub served_stale_on_error: u64,
    /// Times that a caller began to wait for a build that it did not run itself. Includes calls of
    /// [`Refresher::wait_ready`](crate::Refresher::wait_ready).
    pub waits: u64,
    /// Waits that ended because their time limit had passed, including those with a limit of zero.
    pub wait_timeouts: u64,
    /// How long the latest build ran that ended with a value or an error.
    pub last_build: Option<Duration>,
}

/// The counters behind [`Stats`], each listed once: for one more, add it here and to [`Stats`].
macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// See [`Stats`].
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            /// Nanoseconds; FOREVER while there is none.
            last_build: PlainU64,
        }

        impl Counters {
            pub(crate) const fn new() -> Self {
                Self { $($name: Counter::new(),)* last_build: PlainU64::new(FOREVER) }
            }

            /// Sets every counter to zero.
            pub(crate) fn reset(&self) {
                $(self.$name.0.store(0, Ordering::Relaxed);)*
                self.last_build.store(FOREVER, Ordering::Relaxed);
            }

            /// `consecutive_failures`: the cell's state knows it.
            pub(crate) fn read(&self, consecutive_failures: u32) -> Stats {
                let last_build = self.last_build.load(Ordering::Relaxed);
                Stats {
                    $($name: self.$name.read(),)*
                    consecutive_failures: consecutive_failures.into(),
                    last_build: (last_build != FOREVER).then(|| Duration::from_nanos(last_build)),
                }
            }
        }
    };
}

counters! {
    builds,
    published,
    failed,
    panicked,
    abandoned,
    superseded,
    fenced,
    served_stale_on_error,
    waits,
    wait_timeouts,
}

impl Counters {
    pub(crate) fn build_took(&self, nanos: u64) {
        self.last_build.store(nanos.min(FOREVER - 1), Ordering::Relaxed);
    }
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
