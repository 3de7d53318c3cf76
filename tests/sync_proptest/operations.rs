//! What is done to a cell. [`strategies`](crate::strategies) draws it at random; so does the fuzz target.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::model::{Settings, Want};

/// One case: a cell, and what is done to it.
pub(crate) struct Case {
    pub(crate) settings: Settings,
    pub(crate) operations: Vec<Operation>,
    /// What happens, one after the other and then from the beginning, while the one thread waits.
    pub(crate) meanwhile: Vec<Meanwhile>,
    /// What its readers do when the cell is gone.
    pub(crate) afterwards: Vec<Afterwards>,
    /// Which operation runs: for the watchdog, which cannot ask the thread that hangs.
    pub(crate) at: AtomicUsize,
}

impl fmt::Debug for Case {
    /// One operation on a line, and a mark at the one that runs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.settings)?;
        let operations = self.operations.iter().map(|operation| operation as &dyn fmt::Debug);
        let afterwards = self.afterwards.iter().map(|operation| operation as &dyn fmt::Debug);
        for (number, operation) in operations.chain(afterwards).enumerate() {
            let mark = if number == self.at.load(Ordering::Relaxed) { "=>" } else { "  " };
            write!(f, "\n{mark}{number:4} {operation:?}")?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// A read that builds if it is elected. What it returns is kept, or dropped at once.
    Refresh(By, Build, Keep),
    /// `get`, kept.
    Get,
    /// `load`, kept.
    Load,
    /// Clones one of the kept `ReaderArc`s. (Here and below: the number is taken modulo how many there are.)
    Clone(usize),
    /// Drops one of the kept `ReaderArc`s.
    Leave(usize),
    /// Drops one of the kept `ReadGuard`s.
    LeaveGuard(usize),
    /// Drops all of both, one after the other.
    LeaveAll,
    Set(Keep),
    Invalidate,
    Clear,
    /// `synchronize_timeout`, and `synchronize` where that does not block.
    Synchronize(Duration),
    Advance(Duration),
    /// To one of the next moments at which something changes by itself, and so many nanoseconds past it.
    AdvanceTo(usize, u64),
}

/// Whether the caller keeps what it got.
pub(crate) type Keep = bool;

/// As if somebody else did it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meanwhile {
    /// One of the kept `ReaderArc`s is dropped.
    Leave(usize),
    /// The time is up. (So it is if there is no such reader.)
    TimePasses,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Afterwards {
    Clone(usize),
    Leave(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    GetOrRefresh,
    GetOrRefreshWith,
    TryGetOrRefresh,
    TryGetOrRefreshWith,
    TryGetOrRefreshTimeout(Duration),
    LoadOrRefresh,
    GetFreshOrRefresh,
    Refresh,
}

impl By {
    pub(crate) fn want(self) -> Want {
        match self {
            By::GetFreshOrRefresh => Want::Fresh,
            By::Refresh => Want::New,
            By::GetOrRefresh | By::GetOrRefreshWith | By::LoadOrRefresh => Want::Value,
            By::TryGetOrRefresh | By::TryGetOrRefreshWith | By::TryGetOrRefreshTimeout(_) => {
                Want::ValueOrError
            }
        }
    }
}

/// A closure that builds.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) steps: Vec<Step>,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Asks for the write lock: with a timeout; or without one, where that does not block.
    Lock(Option<Duration>),
    /// Changes the old value in place, if the build has the lock.
    Mark,
    /// Does this to its own cell.
    Do(Operation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Value,
    /// Only where the closure can return one.
    Error,
    Panic,
}
