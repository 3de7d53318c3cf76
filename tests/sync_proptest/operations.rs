//! What is done to a cell. [`strategies`](crate::strategies) draws it at random; so does the fuzz target.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::model::Settings;

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
    /// `snapshot`, whose value is kept.
    Snapshot,
    /// Clones one of the kept `ReaderArc`s. (Here and below: the number is taken modulo how many there are.)
    Clone(usize),
    /// Drops one of the kept `ReaderArc`s.
    Leave(usize),
    /// Drops one of the kept `ReadGuard`s.
    LeaveGuard(usize),
    /// Drops all of both, one after the other.
    LeaveAll,
    Set(How, Keep),
    Invalidate,
    /// With one of the kept `ReaderArc`s.
    InvalidateIfCurrent(usize),
    Clear,
    Reset,
    Revoke,
    /// `synchronize_timeout`, and `synchronize` where that does not block.
    Synchronize(Duration),
    Advance(Duration),
    /// To one of the next moments at which something changes by itself, and so many nanoseconds past it.
    AdvanceTo(usize, u64),
}

/// Whether the caller keeps what it got.
pub(crate) type Keep = bool;

/// `set`, `set_for` or `restore`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    AsPolicySays,
    For(Duration),
    /// Made so long ago.
    Restored(Duration),
}

/// As if another thread did it.
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
    TryGetOrRefresh,
    LoadOrRefresh,
    /// `exchange` of one of the kept `ReaderArc`s; `get_or_refresh` where there is none.
    Exchange(usize),
    Request(Conditions, Finish),
}

/// The conditions of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conditions {
    pub(crate) max_stale: Option<Duration>,
    pub(crate) max_age: Option<Duration>,
    /// Than the next generation (0), the current one (1), the one before (2) and so on.
    pub(crate) newer_than: Option<u64>,
    pub(crate) no_cache: bool,
    pub(crate) wait_at_most: Option<Duration>,
    pub(crate) or_stale: bool,
    /// Gives one of the kept `ReaderArc`s up.
    pub(crate) exchange: Option<usize>,
}

/// The call that finishes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    Get,
    TryGet,
    TryGetWith,
    GetWithWriter,
    TryGetWithWriter,
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
    /// "Not modified", where the closure can return that.
    NotModified,
    Panic,
}
