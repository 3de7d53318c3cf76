//! What is done to a cell. [`strategies`](crate::strategies) draws it at random; so does the fuzz target.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::model::{Kind, Patience, Settings};

/// How many long-lived `Reader`s there are.
pub(crate) const READERS: usize = 2;

/// One case: a cell, and what is done to it.
pub(crate) struct Case {
    pub(crate) settings: Settings,
    pub(crate) operations: Vec<Operation>,
    /// A refresher that is still there at the end sees the cell go; else it goes first.
    pub(crate) cell_goes_first: bool,
    /// Which of them runs: for the watchdog, which cannot ask the thread that hangs.
    pub(crate) at: AtomicUsize,
}

impl fmt::Debug for Case {
    /// One operation on a line, and a mark at the one that runs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.settings)?;
        for (number, operation) in self.operations.iter().enumerate() {
            let mark = if number == self.at.load(Ordering::Relaxed) { "=>" } else { "  " };
            write!(f, "\n{mark}{number:4} {operation:?}")?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// A read that cannot report an error.
    Refresh(By, Build),
    /// `try_get_or_refresh`; with a time, `try_get_or_refresh_timeout`.
    TryRefresh(Kind, Option<Duration>, Build),
    /// `lookup` or `lookup_owned`. A lease or a place is kept for later.
    Lookup {
        owned: bool,
    },
    /// Ends one of the kept leases. (Here and below: the number is taken modulo how many there are.)
    EndLease(usize, End),
    /// Waits at one of the kept places. Where nothing has ended yet it stays.
    Wait(usize, Patience),
    /// Drops one of the kept places.
    Leave(usize),
    ReaderGet(usize),
    ReaderGetUnlessDue(usize),
    ReaderRelease(usize),
    Set,
    Invalidate,
    Clear,
    /// A `Refresher`, where there is none yet, that builds so long ahead: on a thread, or as a task (with the feature `async`).
    Attach {
        ahead: Ahead,
        task: bool,
    },
    /// What its running build, if it has one, finds.
    Conclude(Found),
    /// It fails so many times, each time as soon as it tries again.
    Outage(u32),
    /// Drops it: while it sleeps, or from inside its running build, which then finds this. (A task's build is dropped too.)
    Detach(Found),
    Advance(Duration),
    /// To one of the next moments at which something changes by itself, and so many nanoseconds past it.
    AdvanceTo(usize, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    GetOrRefresh,
    LoadOrRefresh,
    GetFreshOrRefresh,
    Refresh,
    Reader(usize),
}

/// A closure that builds.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    /// What it does to its own cell. Steps of the clock make it slow.
    pub(crate) inside: Vec<Operation>,
    pub(crate) result: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Value,
    /// Only where the closure can return one.
    Error,
    Panic,
}

/// How long before the end of a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ahead {
    By(Duration),
    /// So many hundredths of the policy's ttl.
    Percent(u32),
}

/// What a build of a refresher's returns.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    New,
    NewFor(Duration),
    NotModified,
    Error,
    Panic,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Publish,
    PublishFor(Duration),
    Renew,
    RenewFor(Duration),
    Fail(Kind),
    Drop,
    DropInAPanic,
    /// `mem::forget`. An owned lease is dropped instead: it would leak the cell.
    Forget,
}
