//! G11, G12: `SyncReaderCell`.

mod drain;
mod exchange;
mod finalizer;
mod reads;
mod regressions;
mod requests;
#[cfg(feature = "tracing")]
mod slow_lock;
mod thread;
mod writer;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{Clock, Drain, ManualClock, Policy, SyncReaderCell};

use crate::support::TTL;

/// What the finalizer got, in its order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u32>>>);

impl Log {
    fn entries(&self) -> Vec<u32> {
        self.0.lock().unwrap().clone()
    }

    /// When everything that has been replaced is finalised.
    fn complete<C: Clock>(&self, cell: &SyncReaderCell<u32, C>) -> Vec<u32> {
        cell.synchronize();
        self.entries()
    }
}

/// A cell of numbers whose finalizer writes a log.
fn logged(policy: Policy, drain: Drain) -> (SyncReaderCell<u32, ManualClock>, ManualClock, Log) {
    let clock = ManualClock::new();
    let log = Log::default();
    let entries = Arc::clone(&log.0);
    let finalizer = move |value| entries.lock().unwrap().push(value);
    (SyncReaderCell::with_clock(policy, clock.clone(), drain, finalizer), clock, log)
}

fn background() -> (SyncReaderCell<u32, ManualClock>, ManualClock, Log) {
    logged(Policy::ttl(TTL), Drain::Background)
}

/// Without retry pauses, and an error of a build is an error of its caller.
const STRICT: Policy =
    Policy::ttl(TTL).retry_backoff(Duration::ZERO, Duration::ZERO).stale_if_error(Duration::ZERO);

fn strict() -> (SyncReaderCell<u32, ManualClock>, ManualClock, Log) {
    logged(STRICT, Drain::Background)
}

const WAIT: Duration = Duration::from_secs(5);
