//! What a node has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a cell has done since it was made. Nothing is counted when a fresh value is read.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct FleetStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The counters behind [`FleetStats`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn read(&self) -> FleetStats {
                FleetStats { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn count(&self) {
        // Relaxed, here and above: a statistic orders nothing.
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

stats! {
    /// Builds for the whole fleet that this node was elected for.
    fleet_builds,
    /// Builds for this node alone: the store was down, or what it has is of no use to this node.
    local_builds,
    /// Builds that the store has accepted.
    published,
    /// Of these, those that found the value unchanged.
    unchanged,
    /// Builds that the store has refused because another node had been elected meanwhile.
    superseded,
    /// Builds that the store has refused because of an invalidation meanwhile.
    invalidated,
    /// Builds that ended with an error.
    failed,
    /// Builds that ended with a panic.
    panicked,
    /// Values taken over from other nodes.
    adopted,
    /// Times that another node was found building.
    busy,
    /// Times that a pause after a failed build was found.
    backoffs,
    /// Operations of the store, of which the following are parts.
    store_operations,
    /// Operations that changed nothing.
    polls,
    /// Requests for the right to build.
    acquires,
    /// Operations that failed.
    store_errors,
    /// Elections in which the store did not answer within the policy's patience.
    impatient,
    /// Builds that were served before the store had answered to their publication.
    early,
    /// Invalidations that had failed, and were delivered later.
    redelivered,
    /// Times that the store's entry was found to have gone back in time.
    gone_back,
    /// Hints that came.
    hints,
    /// Times that hints, of this node or of another one, were found not to be passed on, so that this node polls as without them.
    hints_refused,
    /// Payloads whose checksum was wrong.
    damaged,
    /// Payloads that were written by another version of the program.
    foreign,
    /// Values that could not be encoded.
    not_encoded,
}
