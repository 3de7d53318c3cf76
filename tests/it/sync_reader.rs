//! G11, G12: `SyncReaderCell`.

mod drain;
mod finalizer;
mod reads;
mod regressions;
mod writer;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{Drain, ManualClock, Policy, SyncReaderCell};

use crate::support::TTL;

/// What the finalizer got, in its order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u32>>>);

impl Log {
    fn entries(&self) -> Vec<u32> {
        self.0.lock().unwrap().clone()
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

const WAIT: Duration = Duration::from_secs(5);
