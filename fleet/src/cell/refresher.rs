//! Rebuilds a value ahead of expiry, so that no caller builds.
//!
//! # States
//!
//! A refresher plans, and then *sleeps* until the tick that the plan names or until something changes (a publication here, an
//! invalidation, a request, the end of the cell), or *asks* the store for the right to build ahead of expiry, or, where there is no
//! fresh value, does what a caller does. Each of these leads to a new plan.
//!
//! ```text
//!   fresh, not due ----> sleep until `ahead` before the end
//!   fresh, due --------> ask the store: build | taken over | sleep (another node builds, a pause, the store is down)
//!   fresh, requested --> ask the store, as if it was due; again and again until it builds
//!   stale or nothing --> as a caller: build | taken over | sleep (as above, or a caller of this node builds)
//!   just built --------> sleep for 100 ms, unless something was invalidated since the build began, or a build is requested
//! ```
//!
//! On a thread, nothing blocks it but its own builds, and the store for as long as its timeout. As a task it blocks nothing: the
//! worker asks the store, and the task waits for its reply. (If no thread can be started for the worker, the task asks the store.)
//! The plan is the same for both, in [`refresh_loop`]; what the handle shares with them is [`status`].
//!
//! No lease is held between two plans. While this node builds, the local lease is held by the refresher, and readers are served
//! the value, fresh or stale. It is not the core's `Refresher`: the local cell's value is due when the store says so, and a
//! build that another node runs is no build here.

mod refresh_loop;
mod status;

use std::fmt;
#[cfg(feature = "async")]
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

#[cfg(feature = "async")]
use dogpile::Task;
use dogpile::{BuildResult, Clock, Hook, SharedError};

use super::FleetCell;
use super::build::BuildContext;
use super::reply::{Awaited, NoAnswer, reply};
use refresh_loop::{Refreshing, panicked};
use status::{Ended, Status};

/// Rebuilds a cell's value before it expires, once in the whole fleet, so that callers neither build nor see a stale value.
///
/// Each node may have one. When the value has `ahead` left to live, or up to a quarter of that less (so that not all nodes come
/// at once), the refreshers ask the store, which lets one of them build. The others take the new value over, as usual: at a
/// hint, or when they poll. If the builder dies, another one is elected when its lease is over.
///
/// That holds as long as builds succeed and take less than three quarters of `ahead`. During a slower build, the old value is
/// served stale.
///
/// If there is no value or a stale one, the refresher does what a caller does: at the start, after an
/// [`invalidate`](FleetCell::invalidate), and while the store is down.
///
/// # Failures
///
/// A build that fails or panics leaves the value as it is. [`last_error`](FleetRefresher::last_error) shows the error. The next
/// attempt, of whatever node, starts after the policy's [`retry_backoff`](crate::FleetPolicy::retry_backoff), and on this node
/// after 100 ms at the earliest, twice as long after each failure in a row, up to 10 s.
///
/// After a build that succeeds, the next one starts 100 ms later at the earliest, also if its value is stale by then or was stale
/// already ([`Refreshed::Aged`](dogpile::Refreshed::Aged)). An invalidation and [`refresh_now`](FleetRefresher::refresh_now) do not
/// wait for that.
///
/// # Dropping
///
/// Dropping a refresher stops it and joins its thread. If a build runs, the drop waits for it, and its value is published.
/// [`stop_timeout`](FleetRefresher::stop_timeout) limits that wait. A drop inside the refresher's own build does not wait. A refresher
/// does not keep the cell alive, and ends with it.
///
/// A refresher that is a task is only signalled to stop. When the task is next polled it ends. If a build runs, it is dropped then, and
/// the right to build is given back. The same happens if the executor drops the task, at whatever point. If the cell has been dropped
/// before, the right to build is not given back: it ends with its [`lease`](crate::FleetPolicy::lease).
///
/// In a process that was forked there is no refresher: start another one, on a thread. As a task it may sleep for ever: if the parent
/// has used `async` methods of this crate or a refresher that is a task, the thread of `futures-timer`, which wakes it, is the
/// parent's.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain};
/// use std::io;
/// use std::time::Duration;
///
/// let policy = FleetPolicy::ttl(Duration::from_secs(60));
/// let page = FleetCell::<String>::new("page", MemoryStore::new(), Plain, policy);
///
/// let build = |_: &BuildContext<'_, String>| Ok::<_, io::Error>(String::from("<html>"));
/// let refresher = FleetRefresher::spawn(&page, Duration::from_secs(10), build)?;
/// assert!(refresher.wait_ready(Duration::from_secs(10)));
/// assert_eq!(*page.get().unwrap(), "<html>");
/// # Ok::<(), io::Error>(())
/// ```
#[must_use = "dropping it stops it at once; keep it in a variable with a name (`let _refresher`, not `let _`)"]
pub struct FleetRefresher {
    status: Arc<Status>,
    /// `None` for a task.
    thread: Option<JoinHandle<()>>,
    /// There is no answer before the thread or the task has ended.
    ended: Option<Awaited<()>>,
    /// Where it runs: a process that was forked has no such thread or task.
    process: u32,
    _hook: Hook,
}

impl FleetRefresher {
    /// Starts a refresher on a thread of its own, `dogpile-refresher`, which also runs the builds.
    ///
    /// A build returns a value, a [`Refreshed`](dogpile::Refreshed), or a `Result` of one of them.
    ///
    /// # Errors
    ///
    /// * [`io::ErrorKind::InvalidInput`] if `ahead` is not shorter than the policy's ttl, since every value would be due as soon
    ///   as it is published.
    /// * The system's error if the thread cannot be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::<String>::new("page", MemoryStore::new(), Plain, policy);
    /// let too_long = FleetRefresher::spawn(&page, Duration::from_secs(60), |_| String::from("<html>"));
    /// assert_eq!(too_long.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    /// ```
    pub fn spawn<T, C, R, F, const FALLIBLE: bool>(
        cell: &FleetCell<T, C>,
        ahead: Duration,
        mut build: F,
    ) -> io::Result<Self>
    where
        T: Send + Sync + 'static,
        C: Clock + Clone + 'static,
        R: BuildResult<T, FALLIBLE>,
        F: FnMut(&BuildContext<'_, T>) -> R + Send + 'static,
    {
        let (mut refresher, refreshing, end) = Self::attach(cell, ahead)?;
        let thread = std::thread::Builder::new().name("dogpile-refresher".to_owned());
        let thread = thread.spawn(move || {
            // With all that it holds.
            let build = |context: &BuildContext<'_, T>| build(context).into_result();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| refreshing.run(build))) {
                end.status.show(Some(panicked("clock", panic)));
            }
        })?;
        refresher.thread = Some(thread);
        Ok(refresher)
    }

    /// Starts a refresher as a task, which `spawn` hands to an executor (feature `async`).
    ///
    /// `spawn` can be `tokio::spawn`, for example. `cell` and `ahead` are those of [`spawn`](FleetRefresher::spawn). `build` is given a
    /// context that it owns, and returns a future.
    ///
    /// The task does not block its thread, and needs none of its own: the threads that all cells share ask the store. If none of them
    /// can be started, the task asks the store itself.
    ///
    /// # Cancel safety
    ///
    /// If the task is dropped, by `spawn` or with its executor, the refresher ends. A build that ran is dropped, and the right to build
    /// is given back, in the store as well. An answer of the store that comes later is kept for the next caller.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if `ahead` is not shorter than the policy's ttl.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain, Refreshed};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// async fn download(context: &BuildContext<'_, String>) -> io::Result<Refreshed<String>> {
    ///     Ok(match context.previous() {
    ///         Some(_) => Refreshed::NotModified,
    ///         None => Refreshed::New(String::from("<html>")),
    ///     })
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::<String>::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = |context| async move { download(&context).await };
    /// let refresher = FleetRefresher::spawn_async(&page, Duration::from_secs(10), tokio::spawn, build)?;
    /// assert!(refresher.wait_ready_async(Duration::from_secs(10)).await);
    /// assert_eq!(*page.get().unwrap(), "<html>");
    /// # Ok::<(), io::Error>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub fn spawn_async<T, C, R, F, Fut, S, const FALLIBLE: bool>(
        cell: &FleetCell<T, C>,
        ahead: Duration,
        spawn: impl FnOnce(Task) -> S,
        mut build: F,
    ) -> io::Result<Self>
    where
        T: Send + Sync + 'static,
        C: Clock + Clone + 'static,
        R: BuildResult<T, FALLIBLE> + Send,
        F: FnMut(BuildContext<'static, T>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + Send,
    {
        let (refresher, refreshing, end) = Self::attach(cell, ahead)?;
        drop(spawn(Box::pin(async move {
            let end = end;
            let build = |context| {
                let build = build(context);
                async { build.await.into_result() }
            };
            let mut work = std::pin::pin!(refreshing.run_async(build));
            let result = std::future::poll_fn(|task| refresh_loop::contain(work.as_mut(), task)).await;
            if let Err(panic) = result {
                end.status.show(Some(panicked("clock", panic)));
            }
        })));
        Ok(refresher)
    }

    /// A refresher that is not started yet, its loop, and what tells of the end of it.
    fn attach<T, C>(cell: &FleetCell<T, C>, ahead: Duration) -> io::Result<(Self, Refreshing<T, C>, Ended)>
    where
        T: Send + Sync + 'static,
        C: Clock + Clone + 'static,
    {
        if ahead >= cell.node.policy.ttl {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "FleetRefresher: `ahead` must be shorter than the policy's ttl, or every value would be due as soon as it is \
                 published",
            ));
        }
        let status = Arc::new(Status::default());
        let refreshing = Refreshing::new(&cell.node, ahead, &status);
        let wake = Arc::clone(&status.wake);
        let hook = cell.local.on_change(move |_| wake.notify());
        cell.node.mailbox.wakes_at_end(&status.wake);
        let (reply, ended) = reply();
        let end = Ended { status: Arc::clone(&status), _reply: reply };
        let process = std::process::id();
        Ok((Self { status, thread: None, ended: Some(ended), process, _hook: hook }, refreshing, end))
    }

    /// Waits until the cell has had a fresh value since the refresher was started, at most `time`. Returns whether it has.
    ///
    /// Use it at the start of a program, and in readiness probes with [`Duration::ZERO`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::<String>::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = |_: &BuildContext<'_, String>| Ok::<_, io::Error>(String::from("<html>"));
    /// let refresher = FleetRefresher::spawn(&page, Duration::from_secs(10), build)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// # Ok::<(), io::Error>(())
    /// ```
    #[must_use]
    pub fn wait_ready(&self, time: Duration) -> bool {
        if let Some(awaited) = self.status.awaits_value() {
            let _ = awaited.wait(time.min(crate::LONGEST));
        }
        self.status.is_ready()
    }

    /// As [`wait_ready`](FleetRefresher::wait_ready), but suspends the task instead of blocking the thread. The future can be dropped
    /// at any point.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::<String>::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = |_| async { Ok::<_, io::Error>(String::from("<html>")) };
    /// let refresher = FleetRefresher::spawn_async(&page, Duration::from_secs(10), tokio::spawn, build)?;
    /// assert!(refresher.wait_ready_async(Duration::from_secs(10)).await);
    /// # Ok::<(), io::Error>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn wait_ready_async(&self, time: Duration) -> bool {
        if let Some(awaited) = self.status.awaits_value() {
            let _ = awaited.wait_async(time).await;
        }
        self.status.is_ready()
    }

    /// Has this node rebuild the value, even if it is fresh. Returns at once.
    ///
    /// The build begins after this call. If one runs already, here or on another node, another one follows it. Several calls before
    /// that one begins lead to one build. Until this node gets the right to build it asks the store at least once a second: while
    /// the pause after a failed build runs, which counts for the whole fleet, or while the store is down, it does not build.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain, Refreshed};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::<String>::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = |context: &BuildContext<'_, String>| {
    ///     let html = context.previous().map_or(String::from("<html>"), |_| String::from("<html lang=en>"));
    ///     Ok::<_, io::Error>(Refreshed::New(html))
    /// };
    /// let refresher = FleetRefresher::spawn(&page, Duration::from_secs(10), build)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// refresher.refresh_now();
    /// while page.get().unwrap().len() == "<html>".len() {
    ///     std::thread::yield_now();
    /// }
    /// assert_eq!(*page.get().unwrap(), "<html lang=en>");
    /// # Ok::<(), io::Error>(())
    /// ```
    pub fn refresh_now(&self) {
        self.status.request();
    }

    /// Why the latest build of this refresher failed, until one succeeds.
    ///
    /// A panic shows as "the build panicked: ...".
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::<String>::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = |_: &BuildContext<'_, String>| Ok::<_, io::Error>(String::from("<html>"));
    /// let refresher = FleetRefresher::spawn(&page, Duration::from_secs(10), build)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// assert!(refresher.last_error().is_none());
    /// # Ok::<(), io::Error>(())
    /// ```
    #[must_use]
    pub fn last_error(&self) -> Option<SharedError> {
        self.status.last_error()
    }

    /// How many builds of this refresher have failed or panicked since one succeeded, or a value was taken over from another node.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::<String>::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = |_: &BuildContext<'_, String>| Ok::<_, io::Error>(String::from("<html>"));
    /// let refresher = FleetRefresher::spawn(&page, Duration::from_secs(10), build)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// assert_eq!(refresher.consecutive_failures(), 0);
    /// # Ok::<(), io::Error>(())
    /// ```
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.status.failures()
    }

    /// Stops the refresher and waits for its thread or task to end, at most for `time`. Returns whether it has ended.
    ///
    /// If it has not, a build still runs. On a thread it is published when it ends. In a task it is dropped when the task is next
    /// polled. From inside the refresher's own build on a thread this does not wait. On a thread that the task needs to be polled, use
    /// [`stop_timeout_async`](FleetRefresher::stop_timeout_async): this one blocks it.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::<String>::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = |_: &BuildContext<'_, String>| Ok::<_, io::Error>(String::from("<html>"));
    /// let refresher = FleetRefresher::spawn(&page, Duration::from_secs(10), build)?;
    /// assert!(refresher.stop_timeout(Duration::from_secs(10)));
    /// # Ok::<(), io::Error>(())
    /// ```
    // Not `#[must_use]`: what it does is to stop.
    #[allow(clippy::must_use_candidate)]
    pub fn stop_timeout(mut self, time: Duration) -> bool {
        self.status.stop();
        let time = if self.is_own_thread() { Duration::ZERO } else { time.min(crate::LONGEST) };
        let Some(ended) = self.ended.take().filter(|_| self.is_here()) else { return true };
        let has_ended = !matches!(ended.wait(time), Err(NoAnswer::TooLate));
        if !has_ended {
            // Not joined: it ends by itself.
            self.thread = None;
        }
        has_ended
    }

    /// As [`stop_timeout`](FleetRefresher::stop_timeout), but suspends the task instead of blocking the thread. If the future is
    /// dropped, the refresher still stops.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::<String>::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = |_| async { Ok::<_, io::Error>(String::from("<html>")) };
    /// let refresher = FleetRefresher::spawn_async(&page, Duration::from_secs(10), tokio::spawn, build)?;
    /// assert!(refresher.stop_timeout_async(Duration::from_secs(10)).await);
    /// # Ok::<(), io::Error>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn stop_timeout_async(mut self, time: Duration) -> bool {
        self.status.stop();
        let Some(ended) = self.ended.take().filter(|_| self.is_here()) else { return true };
        // It ends by itself, and is not joined: that would block.
        self.thread = None;
        !matches!(ended.wait_async(time).await, Err(NoAnswer::TooLate))
    }

    /// Whether it runs in this process.
    fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    fn is_own_thread(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == std::thread::current().id())
    }
}

impl Drop for FleetRefresher {
    fn drop(&mut self) {
        self.status.stop();
        let (is_here, is_own_thread) = (self.is_here(), self.is_own_thread());
        let Some(thread) = self.thread.take() else { return };
        if !is_here {
            // To detach it could detach a thread of this process, whose control block lies where that of the copy lay.
            std::mem::forget(thread);
        } else if !is_own_thread {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for FleetRefresher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetRefresher")
            .field("consecutive_failures", &self.consecutive_failures())
            .finish_non_exhaustive()
    }
}
