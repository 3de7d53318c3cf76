//! Reads whose builds run elsewhere: on a pool, on a thread of their own.
//!
//! The caller is elected by the local cell as any other is, and hands the lease to a job. The job asks the store, builds and
//! publishes. A job that is dropped drops the lease, and the next caller is elected.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dogpile::{BoxError, Clock, Job, Lease, Lookup, Pending, RefreshError, Refreshed, Waited};

use super::FleetCell;
use super::build::BuildContext;
use super::job::Job as Posted;
use super::node::{Caller, Node, Step};
use super::reply::{Awaited, NoAnswer, reply};

/// A read whose builds run elsewhere. Made by [`FleetCell::spawn_with`].
#[must_use = "it does nothing until `try_get` or `try_get_with` is called"]
pub struct FleetSpawn<'a, T: 'static, C: Clock + 'static, S> {
    cell: &'a FleetCell<T, C>,
    spawner: S,
    wait: Option<Duration>,
}

impl<T, C> FleetCell<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Hands builds to `spawner`, so that a caller with a value to serve gets it at once and never builds, and a caller that
    /// gives up does not stop the build.
    ///
    /// `spawner` is given a [`Job`](dogpile::Job) to run: `std::thread::spawn`, `rayon::spawn` and
    /// `tokio::task::spawn_blocking` fit as they are. The job asks the store as well, so the caller does not wait for that
    /// either. It is called again if the first job finds that another node builds, and that node does not finish. A job that is
    /// dropped gives the right to build back.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let value = page.spawn_with(std::thread::spawn).try_get(|| Ok::<_, io::Error>(String::from("<html>")))?;
    /// assert_eq!(*value, "<html>");
    /// # Ok::<(), dogpile_fleet::RefreshError>(())
    /// ```
    pub fn spawn_with<S>(&self, spawner: S) -> FleetSpawn<'_, T, C, S> {
        FleetSpawn { cell: self, spawner, wait: None }
    }
}

/// What became of a job.
enum Outcome<T, F> {
    Done(Result<Arc<T>, RefreshError>),
    /// There is nothing to be built at the moment. The build comes back.
    Again(F),
}

/// What a caller does next.
enum Next<T: 'static, C: Clock + 'static, F> {
    Return(Result<Arc<T>, RefreshError>),
    /// A build that other callers wait for, too.
    Pending(Pending<'static, T, C>, F),
    /// A job of this caller.
    Job(Awaited<Outcome<T, F>>),
}

impl<T, C, S> FleetSpawn<'_, T, C, S>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Waits at most `time` where there is nothing to serve. The build goes on after that. With [`Duration::ZERO`] the call
    /// starts a build and waits for nothing. By default, a call waits until there is a value or an error.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain, RefreshError};
    /// use std::io;
    /// use std::sync::mpsc::channel;
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// let (go_on, may_go_on) = channel();
    ///
    /// let slow = move || {
    ///     let _ = may_go_on.recv();
    ///     Ok::<_, io::Error>(String::from("<html>"))
    /// };
    /// let outcome = page.spawn_with(std::thread::spawn).wait_at_most(Duration::ZERO).try_get(slow);
    /// assert!(matches!(outcome, Err(RefreshError::WaitTimeout)));
    ///
    /// go_on.send(()).unwrap();
    /// assert_eq!(*page.get_or_refresh(|| unreachable!("it is being built")), "<html>");
    /// ```
    pub fn wait_at_most(mut self, time: Duration) -> Self {
        self.wait = Some(time);
        self
    }

    /// Returns the value. If it is out of date, one caller of the whole fleet has `build` run by the spawner; a caller that
    /// may be served the old value gets it at once.
    ///
    /// # Errors
    ///
    /// Those of [`FleetCell::try_get_or_refresh`], and:
    ///
    /// * [`RefreshError::WaitTimeout`]: there was nothing to serve within the [time](FleetSpawn::wait_at_most).
    /// * [`RefreshError::Abandoned`]: there is nothing to serve, and the spawner has dropped this caller's job, or the build has
    ///   panicked there.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Job;
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain, RefreshError};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// fn build() -> io::Result<String> {
    ///     Ok(String::from("<html>"))
    /// }
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// let refused = page.spawn_with(|job: Job| drop(job)).try_get(build);
    /// assert!(matches!(refused, Err(RefreshError::Abandoned)));
    /// assert_eq!(*page.spawn_with(|job: Job| job()).try_get(build)?, "<html>");
    /// # Ok::<(), RefreshError>(())
    /// ```
    pub fn try_get<E, F, R>(self, build: F) -> Result<Arc<T>, RefreshError>
    where
        S: Fn(Job) -> R,
        E: Into<BoxError>,
        F: FnOnce() -> Result<T, E> + Send + 'static,
    {
        self.try_get_with(|_: &BuildContext<'_, T>| build().map(Refreshed::New))
    }

    /// As [`try_get`](FleetSpawn::try_get), with a build as for [`FleetCell::try_get_with`].
    ///
    /// # Errors
    ///
    /// Those of [`try_get`](FleetSpawn::try_get).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::Job;
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, MemoryStore, Plain, Refreshed};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// fn build(context: &BuildContext<'_, String>) -> io::Result<Refreshed<String>> {
    ///     Ok(context.previous().map_or_else(|| Refreshed::New(String::from("<html>")), |_| Refreshed::NotModified))
    /// }
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// let first = page.spawn_with(|job: Job| job()).try_get_with(build)?;
    /// page.invalidate()?;
    /// assert_eq!(page.spawn_with(|job: Job| job()).try_get_with(build)?, first, "it is not modified");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_get_with<E, F, R>(self, build: F) -> Result<Arc<T>, RefreshError>
    where
        S: Fn(Job) -> R,
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E> + Send + 'static,
    {
        let end = self.end();
        let mut build = build;
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            build = match self.look(build) {
                Next::Return(outcome) => return outcome,
                Next::Pending(pending, unused) => {
                    let waited = match left {
                        None => pending.wait(),
                        Some(left) => pending.wait_timeout(left).map_err(|_| RefreshError::WaitTimeout)?,
                    };
                    match self.has_waited(waited) {
                        Some(outcome) => return outcome,
                        None => unused,
                    }
                }
                Next::Job(awaited) => match awaited.wait(left.unwrap_or(crate::LONGEST)) {
                    Ok(Outcome::Done(outcome)) => return outcome,
                    Ok(Outcome::Again(unused)) => unused,
                    Err(NoAnswer::TooLate) => return Err(RefreshError::WaitTimeout),
                    Err(NoAnswer::Lost) => return Err(RefreshError::Abandoned),
                },
            };
        }
    }

    /// As [`try_get`](FleetSpawn::try_get), for tasks: the build is a function that the spawner runs, and only the waiting is
    /// asynchronous. If the future is dropped the build goes on.
    ///
    /// For a build that is a future, have the executor run
    /// [`try_get_or_refresh_async`](FleetCell::try_get_or_refresh_async) of a cell in an [`Arc`].
    ///
    /// # Errors
    ///
    /// Those of [`try_get`](FleetSpawn::try_get).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = || Ok::<_, io::Error>(String::from("<html>"));
    /// let value = page.spawn_with(tokio::task::spawn_blocking).try_get_async(build).await?;
    /// assert_eq!(*value, "<html>");
    /// # Ok::<(), dogpile_fleet::RefreshError>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn try_get_async<E, F, R>(self, build: F) -> Result<Arc<T>, RefreshError>
    where
        S: Fn(Job) -> R,
        E: Into<BoxError>,
        F: FnOnce() -> Result<T, E> + Send + 'static,
    {
        self.try_get_with_async(|_: &BuildContext<'_, T>| build().map(Refreshed::New)).await
    }

    /// As [`try_get_async`](FleetSpawn::try_get_async), with a build as for [`FleetCell::try_get_with`].
    ///
    /// # Errors
    ///
    /// Those of [`try_get`](FleetSpawn::try_get).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, MemoryStore, Plain, Refreshed};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = |_: &BuildContext<'_, String>| Ok::<_, io::Error>(Refreshed::from(String::from("<html>")));
    /// let value = page.spawn_with(tokio::task::spawn_blocking).try_get_with_async(build).await?;
    /// assert_eq!(*value, "<html>");
    /// # Ok::<(), dogpile_fleet::RefreshError>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "async")]
    pub async fn try_get_with_async<E, F, R>(self, build: F) -> Result<Arc<T>, RefreshError>
    where
        S: Fn(Job) -> R,
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E> + Send + 'static,
    {
        let end = self.end();
        let mut build = build;
        loop {
            let left = end.map_or(crate::LONGEST, |end| end.saturating_duration_since(Instant::now()));
            build = match self.look(build) {
                Next::Return(outcome) => return outcome,
                Next::Pending(pending, unused) => {
                    let Some(waited) = within(left, pending).await else {
                        return Err(RefreshError::WaitTimeout);
                    };
                    match self.has_waited(waited) {
                        Some(outcome) => return outcome,
                        None => unused,
                    }
                }
                Next::Job(awaited) => match awaited.wait_async(left).await {
                    Ok(Outcome::Done(outcome)) => return outcome,
                    Ok(Outcome::Again(unused)) => unused,
                    Err(NoAnswer::TooLate) => return Err(RefreshError::WaitTimeout),
                    Err(NoAnswer::Lost) => return Err(RefreshError::Abandoned),
                },
            };
        }
    }

    fn end(&self) -> Option<Instant> {
        self.wait.and_then(|wait| Instant::now().checked_add(wait))
    }

    /// One look at the local cell.
    fn look<E, F, R>(&self, build: F) -> Next<T, C, F>
    where
        S: Fn(Job) -> R,
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E> + Send + 'static,
    {
        let (local, node) = (&self.cell.local, &self.cell.node);
        match local.lookup_owned() {
            Lookup::Fresh(value) | Lookup::Stale(value) => Next::Return(Ok(value)),
            Lookup::Failed(error) => Next::Return(node.instead_of(error)),
            Lookup::Pending(_) if node.is_building_here() => Next::Return(Err(RefreshError::Reentrant)),
            Lookup::Pending(pending) => {
                node.mailbox.nudge(Posted::Kick);
                Next::Pending(pending, build)
            }
            Lookup::Elected(lease) => {
                let (reply, awaited) = reply();
                let worker = Arc::clone(node);
                let job = move || drop(reply.send(worker.work(lease, build)));
                drop((self.spawner)(Box::new(job)));
                // What a job that was run at once has published, or the old value.
                match local.get() {
                    Some(value) => Next::Return(Ok(value)),
                    None => Next::Job(awaited),
                }
            }
        }
    }

    /// What became of a build that others ran. `None`: it ended without a result.
    fn has_waited(&self, waited: Waited<T>) -> Option<Result<Arc<T>, RefreshError>> {
        match waited {
            Waited::Published(value) => Some(Ok(value)),
            Waited::Failed(error) => Some(self.cell.node.instead_of(error)),
            Waited::Reentrant => Some(Err(RefreshError::Reentrant)),
            _ => None,
        }
    }
}

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// What a job does.
    fn work<E, F>(self: &Arc<Self>, lease: Lease<'static, T, C>, build: F) -> Outcome<T, F>
    where
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        Outcome::Done(match self.elected(lease, Caller::Tries) {
            Step::Again => return Outcome::Again(build),
            Step::Backoff(backoff) => Err(backoff.into()),
            Step::Build(ticket) => self.build(ticket, build).or_else(|error| self.instead_of(error)),
        })
    }
}

/// What `future` comes to within `time`.
#[cfg(feature = "async")]
async fn within<R>(time: Duration, future: impl Future<Output = R>) -> Option<R> {
    use std::pin::{Pin, pin};
    use std::task::Poll;

    let (mut future, mut time) = (pin!(future), futures_timer::Delay::new(time.min(crate::LONGEST)));
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Pin::new(&mut time).poll(context).map(|()| None),
    })
    .await
}

impl<T: 'static, C: Clock + 'static, S> fmt::Debug for FleetSpawn<'_, T, C, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetSpawn").field("wait_at_most", &self.wait).finish_non_exhaustive()
    }
}
