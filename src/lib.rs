//! A cell for a value that is expensive to make, read by everybody, and out of date after a while.

mod cell;
mod clock;
mod error;
mod lazy;
mod policy;
mod stats;
mod sync;

pub use cell::{
    DogpileCell, Guard, Lease, Lookup, OwnedLease, OwnedLookup, OwnedPending, Pending, Reader, Snapshot,
    Waited,
};
pub use clock::{Clock, ManualClock, SystemClock, Tick, TickClock};
pub use error::{RefreshError, SharedError};
pub use lazy::{LazyDogpile, LazyReader};
pub use policy::{Freshness, Policy};
pub use stats::Stats;
