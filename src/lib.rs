//! A cell for a value that is expensive to make, read by everybody, and out of date after a while.
//!
//! When such a value expires under load, every caller rebuilds it at once: the dogpile, or cache stampede.
//! [`DogpileCell`] owns the value: **one** caller rebuilds it, everybody else goes on reading the old one, and only
//! the very first callers wait.
//!
//! ```
//! use dogpile::DogpileCell;
//! use std::{sync::Arc, time::Duration};
//!
//! struct Rates(f64);
//!
//! fn download_rates() -> Rates {
//!     Rates(1.07) // slow
//! }
//!
//! static RATES: DogpileCell<Rates> = DogpileCell::new(Duration::from_secs(60));
//!
//! let rates: Arc<Rates> = RATES.get_or_refresh(|| download_rates());
//! assert_eq!(rates.0, 1.07);
//! ```
//!
//! # Which type
//!
//! | need | type |
//! |---|---|
//! | a value, and the build at the place where it is read | [`DogpileCell`] |
//! | a value with its build, as in `once_cell::sync::Lazy` | [`LazyDogpile`] |
//! | how long it is fresh, served stale, and what happens on errors | [`Policy`] |
//! | a read without a reference count | [`DogpileCell::load_or_refresh`], [`Guard`] |
//! | a thread that reads all the time | [`Reader`] |
//! | a value that is to be deleted, closed or recycled when its last reader has left | [`SyncReaderCell`] |
//! | builds that somebody else runs | [`SharedCell::get_or_refresh_in_background`] |
//! | a value that no reader ever waits for | [`Refresher`] |
//! | conditional builds, a ttl that the value chooses, anything else | [`DogpileCell::lookup`], [`Lease`], [`Pending`] |
//! | tests in which time stands still | [`ManualClock`] |
//!
//! # Promises
//!
//! * G1. One build at a time, and a late winner of an election does not build again.
//! * G2. Nobody blocks while there is a value that may be served; a stale read takes no lock.
//! * G3. The generation that a thread sees never goes back.
//! * G4. What began before an [`invalidate`](DogpileCell::invalidate), a [`clear`](DogpileCell::clear) or a
//!   [`set`](DogpileCell::set) never undoes it.
//! * G5. A failed build displaces no value, poisons nothing and strands nobody.
//! * G6. Waiters are handed the value that was published while they waited.
//! * G7. Those who wait for a first build that fails share its error; when it panics, one of them is elected next.
//! * G8. Time is monotonic; a ttl counts from the publication.
//! * G9. No user code runs under a lock of the crate.
//! * G10. A build that calls back into its own cell is served or told, never hung.
//! * G11. A replaced value of a [`SyncReaderCell`] is finalised once, in order, after its last reader has left.
//! * G12. While a [`WriteLock`] is held nobody reads; if the build fails, the old value is put back.
//!
//! # Features
//!
//! * `async`: the same for tasks, on any executor. Threads and tasks share a cell and its one lease.
//! * `tracing`: a span for each build, events for what becomes of it.
//!
//! The default build has neither, and four small dependencies.
//!
//! # Guide
//!
//! [Choosing a policy](guide::policy), [errors](guide::errors), [invalidation](guide::invalidation),
//! [conditional builds](guide::conditional), [background builds](guide::background),
//! [files and `SyncReaderCell`](guide::sync_reader), [statics](guide::statics), [many keys](guide::many_keys),
//! [testing](guide::manual_clock), [monitoring](guide::monitoring), [pitfalls](guide::pitfalls); and pages for those who come from
//! [Python's dogpile](guide::coming_from_python_dogpile), [a lock](guide::coming_from_rwlock),
//! [`cached`](guide::coming_from_cached), [`moka`](guide::coming_from_moka), [Caffeine](guide::coming_from_caffeine) and
//! [`singleflight`](guide::coming_from_singleflight).
//!
//! # Trade-offs
//!
//! A cell is one value: for many keys use a cache. Publishing walks over all threads that ever used `arc-swap`: cells
//! are for values that are built seconds apart. A value may be served past its ttl, unless you ask for a fresh one.

mod background;
mod cell;
mod clock;
mod contain;
mod error;
mod lazy;
mod policy;
mod refresher;
mod seats;
mod signal;
mod stats;
mod sync;
mod sync_reader;
mod trace;
mod wait;

pub use background::SharedCell;
pub use cell::{
    DogpileCell, Guard, Lease, Lookup, OwnedLease, OwnedLookup, OwnedPending, Pending, Reader, Snapshot,
    Waited,
};
pub use clock::{Clock, ManualClock, SystemClock, Tick, TickClock};
pub use error::{RefreshError, SharedError};
pub use lazy::{LazyDogpile, LazyReader};
pub use policy::{Freshness, Policy};
pub use refresher::{Refreshed, Refresher};
pub use stats::Stats;
pub use sync_reader::{Drain, DrainTimeout, ReadGuard, ReaderArc, SyncReaderCell, WriteLock, Writer};

#[cfg(any(doc, doctest))]
pub mod guide;

/// For the models, and in no other build.
#[cfg(any(dogpile_loom, dogpile_shuttle))]
#[doc(hidden)]
pub mod model {
    /// From now on this thread drops things as if it unwound; or no longer.
    pub fn set_panicking(panicking: bool) {
        crate::sync::set_panicking(panicking);
    }
}

/// The examples of the README are compiled and run.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
}
