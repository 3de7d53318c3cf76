//! Refreshes a cell ahead of expiry, so that no reader ever builds.
//!
//! # States
//!
//! The refresh loop ([`RefreshLoop`](refresh_loop::RefreshLoop)) asks the cell for its [`Plan`](crate::cell::Plan), and then *sleeps*, until the tick that the plan names or
//! until its [`Status`](status::Status) is notified (something has changed, or it is to stop), or *builds*, with a lease like any other caller. So
//! whatever happens meanwhile (an `invalidate`, a build by another caller, a failure) leads to a new plan, and no state has to
//! be kept in step with the cell's. It runs on a thread or as a task; only the sleep and the build differ.
//!
//! The loop holds the cell only from a plan to the end of a build, and the cell notifies it for the last time when it is dropped.

mod attachment;
mod options;
mod refresh_loop;
mod status;

pub use options::RefresherOptions;

use std::fmt;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Duration;

#[cfg(feature = "async")]
use crate::cell::Task;
use crate::cell::{BuildResult, Handle, Refreshable};
use crate::error::SharedError;
use crate::own_thread::{self, JoinHandle};
use crate::sync::Arc;
use crate::time::deadline;

use attachment::Attached;
pub(crate) use status::Status;

/// Rebuilds a cell's value before it goes out of date, so that readers neither build nor see a stale value.
///
/// That holds as long as builds succeed, and take less than `ahead` and less than half of the value's time to live.
/// During a slower build the old value is served stale.
///
/// If there is no value or a stale one, the refresher builds at once. A rebuild starts `ahead` before the value
/// expires, but never before half its time to live has passed. An [`invalidate`](crate::DogpileCell::invalidate) or a
/// [`clear`](crate::DogpileCell::clear) wakes the refresher early. It works with every kind of cell:
/// [`DogpileCell`](crate::DogpileCell), [`LazyDogpile`](crate::LazyDogpile) and
/// [`SyncReaderCell`](crate::SyncReaderCell).
///
/// A test can advance a [`ManualClock`](crate::ManualClock): see [a refresher in a
/// test](crate::guide::manual_clock#a-refresher-in-a-test).
///
/// # What readers observe
///
/// The cell is used as before. While a refresher is attached, readers that find a value to serve leave building to it.
/// So if staleness is not limited ([`Policy::stale_while_refresh`](crate::Policy::stale_while_refresh)), a read
/// consults no clock, except for reads that distinguish fresh from stale: `lookup`, `freshness`, `snapshot` and
/// `request`. A reader that finds no value to serve builds, or waits for the refresher's build.
///
/// # Failures
///
/// After a build that fails or panics, the value stays. [`last_error`](Refresher::last_error) and
/// [`consecutive_failures`](Refresher::consecutive_failures) show the failure. The next attempt starts after the
/// policy's [retry pause](crate::Policy::retry_backoff), and after [`min_interval`](RefresherOptions::min_interval) at
/// the earliest. The panic hook reports a panic, which then goes no further. A panic of the cell's clock ends the
/// refresher: it is shown in the same way, and readers build again.
///
/// A build that never ends keeps the lease. With a [`lease_timeout`](crate::Policy::lease_timeout) another caller can
/// be elected in its place: one whose request rules out a stale value, or any caller once the value has expired. Limit
/// the staleness if builds may hang.
///
/// # Dropping
///
/// Dropping a refresher stops it and joins its thread, waking the thread if it sleeps. If a build runs, the drop waits
/// for it, and its value is published. [`stop_timeout`](Refresher::stop_timeout) limits that wait. A drop from inside a
/// refresher's build, its own or another's, does not wait; the refresher stops when its build has ended.
///
/// An async refresher is only signalled to stop, and readers build again at once. If a build runs, it keeps the lease
/// until the task is next polled, which drops the build.
///
/// In a forked process there is no refresher thread. Dropping the copy of the refresher waits for nothing, and readers build
/// again: [fork](crate::guide::fork).
///
/// Beside a `SyncReaderCell` under [`Drain::Wait`](crate::Drain::Wait), a build may wait for readers. Do not drop the
/// refresher while this thread holds a [`ReaderArc`](crate::ReaderArc) of the cell. (The cell detects a `ReadGuard`.)
///
/// Given an [`Arc`], a refresher does not keep the cell alive: when the last other reference is dropped, the refresher
/// ends. Drop the refresher before [`Arc::try_unwrap`]. Otherwise readers of the moved cell keep waiting for a
/// refresher that can no longer reach it, until the next `invalidate`, `set` or `clear` after the refresher was
/// dropped.
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Refresher};
/// use std::time::Duration;
///
/// static KEYS: DogpileCell<Vec<u32>> = DogpileCell::new(Duration::from_secs(600));
///
/// fn download_keys() -> Vec<u32> {
///     vec![1, 2, 3] // slow
/// }
///
/// let refresher = Refresher::spawn(&KEYS, Duration::from_secs(60), |_previous| download_keys())?;
/// assert!(refresher.wait_ready(Duration::from_secs(10)));
/// assert_eq!(*KEYS.get().unwrap(), [1, 2, 3]);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// A build that may fail, and that is given the previous value:
///
/// ```
/// use dogpile::{DogpileCell, Refreshed, Refresher};
/// use std::io;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// struct Keys {
///     etag: &'static str,
/// }
///
/// fn fetch(previous: Option<Arc<Keys>>) -> io::Result<Refreshed<Keys>> {
///     match previous {
///         Some(keys) if keys.etag == "v1" => Ok(Refreshed::NotModified),
///         _ => Ok(Refreshed::New(Keys { etag: "v1" })),
///     }
/// }
///
/// let keys = Arc::new(DogpileCell::new(Duration::from_secs(600)));
/// let refresher = Refresher::spawn(&keys, Duration::from_secs(60), fetch)?;
/// assert!(refresher.wait_ready(Duration::from_secs(10)));
/// assert_eq!(keys.get().unwrap().etag, "v1");
/// # Ok::<(), io::Error>(())
/// ```
#[must_use = "dropping it stops it at once; keep it in a variable with a name (`let _refresher`, not `let _`)"]
pub struct Refresher {
    status: Arc<Status>,
    cell: Arc<dyn Attached>,
    thread: Option<JoinHandle>,
}

// What is under its locks is replaced as a whole, so a panic leaves nothing half done.
impl UnwindSafe for Refresher {}
impl RefUnwindSafe for Refresher {}

impl Refresher {
    /// Starts a refresher on a thread of its own, named `dogpile-refresher`.
    ///
    /// `cell` is `&CELL` for a cell in a `static`, `&*CELL` if that is a `Lazy` or `LazyLock`, and `&cell` for a cell
    /// in an [`Arc`].
    ///
    /// `build` is given the previous value, so that it can ask the source whether that is still right. It returns a new
    /// value, a [`Refreshed`](crate::Refreshed), or a `Result` of one of them. It is kept until the refresher is
    /// dropped, and is called again even after it has panicked.
    ///
    /// This returns at once, perhaps before the first build has ended. To wait for a value, use
    /// [`wait_ready`](Refresher::wait_ready).
    ///
    /// # Errors
    ///
    /// * [`io::ErrorKind::InvalidInput`] if `ahead` is not shorter than the policy's ttl, since every value would be
    ///   due as soon as it is published. (A value that is published with a shorter time to live of its own is due at
    ///   half of that.)
    /// * The system's error if the thread cannot be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static KEYS: DogpileCell<Vec<u32>> = DogpileCell::new(Duration::from_secs(600));
    ///
    /// let refresher = Refresher::spawn(&KEYS, Duration::from_secs(60), |_previous| vec![1, 2, 3])?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// assert_eq!(*KEYS.get().unwrap(), [1, 2, 3]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn spawn<K, R, F, const FALLIBLE: bool>(
        cell: impl Into<Handle<'static, K>>,
        ahead: Duration,
        build: F,
    ) -> io::Result<Self>
    where
        K: Refreshable<Clock: Clone>,
        R: BuildResult<K::Value, FALLIBLE>,
        F: FnMut(Option<K::Shared>) -> R + Send + 'static,
    {
        Self::options().spawn(cell, ahead, build)
    }

    /// Starts a refresher as a task, which `spawn` hands to an executor (feature `async`).
    ///
    /// `spawn` can be `tokio::spawn`, for example. `cell` and `build` are those of [`spawn`](Refresher::spawn), with a
    /// build that returns a future. If the task is dropped, by `spawn` or with its executor, the refresher ends, and
    /// readers build again.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if `ahead` is not shorter than the policy's ttl.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static KEYS: DogpileCell<Vec<u32>> = DogpileCell::new(Duration::from_secs(600));
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let build = |_previous| async { vec![1, 2, 3] };
    /// let refresher = Refresher::spawn_async(&KEYS, Duration::from_secs(60), tokio::spawn, build)?;
    /// assert!(refresher.wait_ready_async(Duration::from_secs(10)).await);
    /// assert_eq!(*KEYS.get().unwrap(), [1, 2, 3]);
    /// # Ok::<(), std::io::Error>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub fn spawn_async<K, R, F, Fut, S, const FALLIBLE: bool>(
        cell: impl Into<Handle<'static, K>>,
        ahead: Duration,
        spawn: impl FnOnce(Task) -> S,
        build: F,
    ) -> io::Result<Self>
    where
        K: Refreshable<Clock: Clone>,
        R: BuildResult<K::Value, FALLIBLE> + Send,
        F: FnMut(Option<K::Shared>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + Send,
    {
        Self::options().spawn_async(cell, ahead, spawn, build)
    }

    /// Returns the default options, to be changed before [`spawn`](RefresherOptions::spawn).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(600));
    ///
    /// let options = Refresher::options().min_interval(Duration::from_secs(1));
    /// let refresher = options.spawn(&LIMIT, Duration::from_secs(60), |_previous| 7)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn options() -> RefresherOptions {
        RefresherOptions { min_interval: Duration::from_millis(100), rests: false }
    }

    /// Returns the error of the latest build, or `None` if it succeeded or no build has ended yet.
    ///
    /// A panic shows as "the build panicked: ...". The end of a build is noted just after its value is published, so a
    /// reader of the new value may still see the error before it.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(600));
    ///
    /// let build = |_previous| Err::<u32, _>("no route to host");
    /// let refresher = Refresher::spawn(&LIMIT, Duration::from_secs(60), build)?;
    /// # while refresher.consecutive_failures() == 0 {
    /// #     std::thread::yield_now();
    /// # }
    /// // After the first attempt:
    /// assert_eq!(refresher.last_error().unwrap().to_string(), "no route to host");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn last_error(&self) -> Option<SharedError> {
        self.status.state.lock().last_error.clone()
    }

    /// Returns how many builds have failed or panicked since the last one that succeeded.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(600));
    ///
    /// let refresher = Refresher::spawn(&LIMIT, Duration::from_secs(60), |_previous| 7)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// assert_eq!(refresher.consecutive_failures(), 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.status.state.lock().failures
    }

    /// Starts a rebuild, even if the value is fresh or a retry pause runs. Returns at once.
    ///
    /// If a build already runs, it began before this call, so another one follows it. Several calls before that one
    /// begins lead to one build.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static COUNT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(600));
    ///
    /// let next = |previous: Option<std::sync::Arc<u32>>| previous.map_or(1, |count| *count + 1);
    /// let refresher = Refresher::spawn(&COUNT, Duration::from_secs(60), next)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// refresher.refresh_now();
    /// while COUNT.generation() < 2 {
    ///     std::thread::yield_now();
    /// }
    /// assert_eq!(COUNT.get().as_deref(), Some(&2));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn refresh_now(&self) {
        self.cell.refresh_now();
    }

    /// Waits until the cell holds a value that may be served, at most for `time` on the cell's clock. Returns whether
    /// it does.
    ///
    /// Use it at the start of a program, and in readiness probes with [`Duration::ZERO`].
    /// It does not count as a read: a refresher that [rests](RefresherOptions::rest_when_unused) is not woken.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(600));
    ///
    /// let refresher = Refresher::spawn(&LIMIT, Duration::from_secs(60), |_previous| 7)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn wait_ready(&self, time: Duration) -> bool {
        self.cell.wait_ready(time)
    }

    /// Waits until the cell holds a value that may be served, at most for `time` on the cell's clock. Returns whether
    /// it does.
    ///
    /// Like [`wait_ready`](Refresher::wait_ready), but suspends the task instead of blocking the thread. The future can
    /// be dropped at any point.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(600));
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let build = |_previous| async { 7 };
    /// let refresher = Refresher::spawn_async(&LIMIT, Duration::from_secs(60), tokio::spawn, build)?;
    /// assert!(refresher.wait_ready_async(Duration::from_secs(10)).await);
    /// # Ok::<(), std::io::Error>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn wait_ready_async(&self, time: Duration) -> bool {
        self.cell.wait_ready_async(time).await
    }

    /// Stops the refresher and waits for its thread or task to end, at most for `time` on the cell's clock. Returns
    /// whether it has ended.
    ///
    /// If it has not, a build still runs, and readers build again meanwhile as without a refresher. On a thread, that
    /// build is published when it ends. In a task, it is dropped when the task is next polled. From inside a
    /// refresher's build this does not wait.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(600));
    ///
    /// let refresher = Refresher::spawn(&LIMIT, Duration::from_secs(60), |_previous| 7)?;
    /// assert!(refresher.stop_timeout(Duration::from_secs(10)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    // Not `#[must_use]`: what it does is to stop.
    #[allow(clippy::must_use_candidate)]
    pub fn stop_timeout(mut self, time: Duration) -> bool {
        if self.is_of_another_process() {
            return true;
        }
        self.stop();
        let is_inside = own_thread::role() == own_thread::Role::Refresher;
        let ended = &self.status.ended;
        let clock = &self.cell.clock();
        let has_ended = if is_inside || time.is_zero() {
            ended.outcome().is_some()
        } else {
            ended.wait(clock, deadline(clock, time))
        };
        // Joined where that takes no time; else left to itself.
        if let Some(thread) = self.thread.take().filter(|_| has_ended && !is_inside) {
            let _ = thread.join();
        }
        has_ended
    }

    /// Stops the refresher and waits for its thread or task to end, at most for `time` on the cell's clock. Returns
    /// whether it has ended.
    ///
    /// Like [`stop_timeout`](Refresher::stop_timeout), but suspends the task instead of blocking the thread. If the
    /// future is dropped, the refresher still stops.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{DogpileCell, Refresher};
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(600));
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let build = |_previous| async { 7 };
    /// let refresher = Refresher::spawn_async(&LIMIT, Duration::from_secs(60), tokio::spawn, build)?;
    /// assert!(refresher.stop_timeout_async(Duration::from_secs(10)).await);
    /// # Ok::<(), std::io::Error>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn stop_timeout_async(mut self, time: Duration) -> bool {
        if self.is_of_another_process() {
            return true;
        }
        self.stop();
        // It ends by itself, and is not joined: that would block.
        self.thread = None;
        let clock = &self.cell.clock();
        Arc::clone(&self.status.ended).wait_async(clock, deadline(clock, time)).await
    }

    fn stop(&self) {
        self.status.stop();
        self.cell.give_way();
        // A task may not be polled again for a long time, and readers must not rely on it meanwhile.
        self.cell.detach();
    }

    /// Whether its thread runs in the process that this one was forked from.
    fn is_of_another_process(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_in_this_process())
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        if self.is_of_another_process() {
            // Nothing here is to be stopped or waited for. Readers of this process build again.
            self.cell.detach();
            return;
        }
        self.stop();
        // Its own thread, which cannot wait for itself, is one of these too.
        if let Some(thread) = self.thread.take().filter(|_| own_thread::role() != own_thread::Role::Refresher)
        {
            // It contains the panics of builds and has none of its own.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Refresher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refresher")
            .field("consecutive_failures", &self.consecutive_failures())
            .finish_non_exhaustive()
    }
}
