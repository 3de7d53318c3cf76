//! What is done to a cell, of either kind. [`strategies`](crate::strategies) draws it at random; so do the fuzz targets. What the
//! kind of cell cannot do is left out.

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
    /// What happens while the one thread waits: one of these lists before each of its looks, then only time passes. While it
    /// waits for readers: one of them leaves, if a list begins with that.
    pub(crate) meanwhile: Vec<Vec<Operation>>,
    /// What is done to the handles that are kept when a `SyncReaderCell` is gone.
    pub(crate) afterwards: Vec<Operation>,
    /// A refresher that is still there at the end sees the cell go; else it goes first.
    pub(crate) cell_goes_first: bool,
    /// Which of the operations runs: for the watchdog, which cannot ask the thread that hangs.
    pub(crate) at: AtomicUsize,
}

impl fmt::Debug for Case {
    /// One operation on a line, and a mark at the one that runs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.settings)?;
        for (number, operation) in self.operations.iter().chain(&self.afterwards).enumerate() {
            let mark = if number == self.at.load(Ordering::Relaxed) { "=>" } else { "  " };
            write!(f, "\n{mark}{number:4} {operation:?}")?;
        }
        for operations in &self.meanwhile {
            write!(f, "\n  meanwhile {operations:?}")?;
        }
        Ok(())
    }
}

/// (Here and below: a number that selects one of several things is taken modulo how many there are.)
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// A read that may build.
    Read(Read, Build, Keep),
    /// A read that never builds.
    Peek(Peek, Keep),
    /// Clones one of the kept handles.
    CloneHandle(usize),
    /// Drops one of them.
    DropHandle(usize),
    /// Drops one of the kept `ReadGuard`s.
    DropGuard(usize),
    /// Drops all of both, one after the other.
    DropAll,
    /// `lookup`, or that of a request. A lease or a place is kept for later.
    Lookup {
        owned: bool,
        conditions: Option<Conditions>,
    },
    /// Ends one of the kept leases.
    EndLease(usize, End),
    /// Waits at one of the kept places. If the wait ends before the build, the place stays.
    Wait(usize, Patience),
    /// Drops one of the kept places.
    LeavePlace(usize),
    /// Runs one of the builds that a spawner has kept.
    RunJob(usize),
    /// Drops one of them.
    DropJob(usize),
    ReaderGet(usize),
    ReaderGetUnlessDue(usize),
    ReaderRelease(usize),
    /// `wait_changed_timeout` of a long-lived `Subscription`, for no time.
    Changed(Keep),
    Set(Set, Keep),
    Invalidate,
    InvalidateIfCurrent(Which),
    Clear,
    ClearIfCurrent(Which),
    Revoke,
    Reset,
    /// A `Refresher`, where there is none yet, that builds so long ahead: on a thread, or as a task (with the feature `async`).
    Attach {
        ahead: Ahead,
        task: bool,
        rests: bool,
        /// `None`: the default.
        min_interval: Option<Duration>,
    },
    RefreshNow,
    /// For no time.
    WaitReady,
    /// What its running build, if it has one, finds.
    Conclude(Found),
    /// It fails so many times, each time as soon as it tries again.
    Outage(u32),
    /// Drops it: while it sleeps, or from inside its running build, which then finds this. (A task's build is dropped too.)
    Detach(Found),
    /// Asks for the write lock, in a build that is given a writer: with a timeout; or without one, where that does not block.
    Lock(Option<Duration>),
    /// Changes the old value in place, in a build that has the lock.
    Mark,
    /// `synchronize_timeout`, and `synchronize` where that does not block.
    Synchronize(Duration),
    Advance(Duration),
    /// To one of the next moments at which something changes by itself, and so many nanoseconds past it.
    AdvanceTo(usize, u64),
}

/// Whether the caller keeps what it got: a handle, which is an `Arc` or a `ReaderArc`; or a `ReadGuard`.
pub(crate) type Keep = bool;

/// What a caller has seen: the present value, or one that it has kept.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    Present,
    Kept(usize),
}

#[derive(Clone, Debug)]
pub(crate) enum Read {
    GetOrRefresh,
    LoadOrRefresh,
    Reader(usize),
    ReaderTry(usize, Kind),
    TryGetOrRefresh(Kind),
    /// `exchange` of one of the kept `ReaderArc`s; `get_or_refresh` where there is none.
    Exchange(usize),
    Request(Request),
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) conditions: Conditions,
    pub(crate) finish: Finish,
    /// From `request_owned`. With a spawner it always is.
    pub(crate) owned: bool,
    pub(crate) spawner: Option<Spawner>,
    /// Gives one of the kept `ReaderArc`s up.
    pub(crate) exchange: Option<usize>,
}

/// `None` and `false`: the condition is not made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) max_stale: Option<Duration>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) newer_than: Option<Newer>,
    pub(crate) no_cache: bool,
    pub(crate) wait_at_most: Option<Duration>,
    pub(crate) or_stale: bool,
}

/// Newer than which generation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Newer {
    /// So many before the present one.
    Before(u64),
    /// So many after it.
    After(u64),
    /// One that no cell reaches.
    Last,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Finish {
    Get,
    TryGet(Kind),
    TryGetWith(Kind),
    GetWithWriter,
    TryGetWithWriter(Kind),
}

/// A function that builds are handed to, and what happens while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Spawner {
    pub(crate) before: Vec<Operation>,
    pub(crate) does: Does,
    pub(crate) after: Vec<Operation>,
}

/// What it does with the build.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    Run,
    Drop,
    Keep,
    Panic,
}

/// A closure that builds.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    /// What it does to its own cell. Steps of the clock make it slow.
    pub(crate) inside: Vec<Operation>,
    pub(crate) outcome: Outcome,
}

/// What it returns. Where it cannot return that, it returns a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Value,
    ValueFor(Duration),
    /// A value of this age, with this time to live.
    Aged(Duration, Option<Duration>),
    NotModified,
    Error,
    Panic,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Peek {
    Get,
    Load,
    GetUnlessDue,
    /// Its value, which may have expired.
    Snapshot,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Set {
    New,
    NewFor(Duration),
    /// In an `Arc`.
    Shared,
    /// The present value, in the same `Arc`.
    Again,
    /// A new value, restored.
    Restored(Duration),
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
    /// Of this age, with this time to live.
    Aged(Duration, Option<Duration>),
    NotModified,
    Error,
    Panic,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Publish,
    PublishFor(Duration),
    PublishArc,
    /// `publish_snapshot`. `None`: with the policy's ttl.
    PublishSnapshot(Option<Duration>),
    Renew,
    RenewFor(Duration),
    Fail(Kind),
    Drop,
    DropInAPanic,
    /// `mem::forget`. An owned lease is dropped instead: it would leak the cell.
    Forget,
}
