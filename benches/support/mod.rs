//! Cells in the states in which they are read, for both benches.

// Each bench uses a part of it.
#![allow(dead_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use dogpile::{Clock, DogpileCell, Drain, Lookup, Policy, SyncReaderCell, SystemClock, Tick};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const THREADS: [usize; 4] = [1, 2, 4, 8];
pub(crate) const FRESH: &str = "there is something to serve";

/// In which state a value is read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    Fresh,
    /// It never expires.
    NoDeadline,
    /// Stale without limit, while a build runs.
    BuildRuns,
    /// Stale for an hour at most, while a build runs.
    BuildRunsBounded,
    /// Stale, and the latest build failed a moment ago.
    RetryPause,
}

pub(crate) const STATES: [State; 5] =
    [State::Fresh, State::NoDeadline, State::BuildRuns, State::BuildRunsBounded, State::RetryPause];

/// Lives as long as the program, as the cells of most users do.
pub(crate) fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

impl State {
    fn policy(self) -> Policy {
        match self {
            Self::NoDeadline => Policy::never_expires(),
            Self::Fresh | Self::BuildRuns => Policy::ttl(HOUR),
            Self::BuildRunsBounded => Policy::ttl(HOUR).stale_while_refresh(HOUR),
            Self::RetryPause => Policy::ttl(HOUR).retry_backoff(HOUR, HOUR),
        }
    }

    /// A cell in this state, with the value 1.
    pub(crate) fn cell<C: Clock>(self, clock: C) -> &'static DogpileCell<u64, C> {
        let cell = leak(DogpileCell::with_clock(self.policy(), clock));
        cell.set(1);
        match self {
            Self::Fresh | Self::NoDeadline => {}
            // The lease is never given back.
            Self::BuildRuns | Self::BuildRunsBounded => std::mem::forget(elected(cell)),
            Self::RetryPause => drop(elected(cell).fail("no")),
        }
        cell
    }

    pub(crate) fn sync_cell(self) -> &'static SyncReaderCell<u64> {
        let cell = leak(SyncReaderCell::with_policy(self.policy(), Drain::Background, drop));
        cell.set(1);
        match self {
            Self::Fresh | Self::NoDeadline => {}
            Self::BuildRuns | Self::BuildRunsBounded => {
                cell.invalidate();
                let (building, begun) = channel();
                thread::spawn(move || {
                    cell.get_or_refresh(|| {
                        building.send(()).expect("the receiver waits");
                        loop {
                            thread::park();
                        }
                    });
                });
                begun.recv().expect("the thread comes to its build");
            }
            Self::RetryPause => {
                cell.invalidate();
                // It returns the stale value.
                let result = cell.try_get_or_refresh(|| Err("no"));
                assert!(result.is_ok() && cell.last_error().is_some(), "the build fails");
            }
        }
        cell
    }
}

fn elected<C: Clock>(cell: &DogpileCell<u64, C>) -> dogpile::Lease<'_, u64, C> {
    cell.invalidate();
    let Lookup::Elected(lease) = cell.lookup() else { unreachable!("stale, and no build runs") };
    lease
}

/// The system's clock, moved on at will, so that a value can be overdue without a wait.
#[derive(Default)]
pub(crate) struct Leaping(AtomicU64);

impl Leaping {
    pub(crate) fn leap(&self) {
        // Relaxed: used by one thread.
        self.0.fetch_add(2 * 3_600_000_000_000, Ordering::Relaxed);
    }

    fn moved(&self, tick: Tick) -> Tick {
        Tick::from_nanos(tick.as_nanos() + self.0.load(Ordering::Relaxed))
    }
}

impl Clock for Leaping {
    fn now(&self) -> Tick {
        self.moved(SystemClock.now())
    }

    fn coarse_now(&self) -> Tick {
        self.moved(SystemClock.coarse_now())
    }

    fn coarse_lag(&self) -> Duration {
        SystemClock.coarse_lag()
    }
}
