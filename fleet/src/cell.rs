//! `FleetCell`: thin methods over the local cell and the node.
//!
//! ```text
//! build          what a build is given, and what it has made
//! node           elections, takings-over, ends of builds: what talks to the store
//! job            what the worker does for others, and how it is handed over
//! mailbox        how it is posted
//! reply          an answer from the worker
//! worker         talks to the store where no caller should have to: an actor of the scheduler
//! search         the loop around a look, for threads and for tasks
//! cell           this file
//! asynchronous   the same for tasks (feature `async`)
//! spawned        reads whose builds run elsewhere
//! refresher      rebuilds ahead of expiry
//! ```

#[cfg(feature = "async")]
mod asynchronous;
mod build;
mod job;
mod mailbox;
mod node;
mod refresher;
pub(crate) mod reply;
mod search;
mod spawned;
mod worker;

pub use build::BuildContext;
pub(crate) use build::{IsStored, Made};
pub use refresher::FleetRefresher;
pub use spawned::FleetSpawn;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{BoxError, Clock, DogpileCell, Freshness, Guard, Reader, RefreshError, Refreshed, SystemClock};

use crate::breaker::Kind;
use crate::codec::Codec;
use crate::policy::FleetPolicy;
use crate::stats::FleetStats;
use crate::store::{Invalidation, RefreshStore, StoreError, Version};
use job::Job;
use node::{Caller, Node};
use worker::Worker;

/// A [`DogpileCell`] whose builds are shared by all processes that use the same store.
///
/// When the value goes out of date, one caller of **one** process rebuilds it. All other callers, in that process and
/// elsewhere, go on using the old one, and their processes take the new one over from the store.
///
/// # What readers observe
///
/// What [`DogpileCell`] promises, within the process. And of the fleet: a value whose build began before an
/// [`invalidate`](FleetCell::invalidate) on whatever node is never accepted by the store. Another node notices an
/// invalidation at its next look into the store: after the policy's [`poll`](FleetPolicy::poll), or at a hint.
///
/// # Blocking
///
/// A caller blocks only if there is nothing it may be served: until a value comes from another node, or it has built one
/// itself. The one caller that is elected when a value has gone out of date waits for the store's answer no longer than
/// the policy's [`patience`](FleetPolicy::patience), and then for its own build.
///
/// A store that is down changes this: values are served as long as the policy allows, after that each process builds for
/// itself, one build at a time.
///
/// # Cost
///
/// A read that finds a value which is fresh (or stale, while it is being dealt with) is a read of the local cell. All
/// else is counted in [`stats`](FleetCell::stats). All cells of a process
/// share up to four threads, which are started when they are first needed and end with the last cell.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{FileStore, FleetCell, FleetPolicy, Plain};
/// use std::time::Duration;
///
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// let store = FileStore::open(directory)?;
/// let rates = FleetCell::new("rates", store, Plain, FleetPolicy::ttl(Duration::from_secs(60)));
///
/// let value = rates.get_or_refresh(|| String::from("downloaded"));
/// assert_eq!(*value, "downloaded");
///
/// // Another process:
/// let store = FileStore::open(directory)?;
/// let rates = FleetCell::new("rates", store, Plain, FleetPolicy::ttl(Duration::from_secs(60)));
///
/// let value = rates.get_or_refresh(|| String::from("not built: it is in the store"));
/// assert_eq!(*value, "downloaded");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct FleetCell<T: 'static, C: Clock + 'static = SystemClock> {
    /// The node's. Here too, so that a read has one pointer less to follow.
    local: Arc<DogpileCell<T, C>>,
    node: Arc<Node<T, C>>,
    _end: End<T, C>,
}

/// Keeps the worker, and ends it with the cell.
struct End<T: 'static, C: Clock + 'static>(Arc<Worker<T, C>>);

impl<T: 'static, C: Clock + 'static> Drop for End<T, C> {
    fn drop(&mut self) {
        self.0.node.mailbox.close();
    }
}

/// A value and what belongs to it.
#[non_exhaustive]
pub struct FleetSnapshot<T> {
    /// The value.
    pub value: Arc<T>,
    /// The store's version of it. `None` if it was built for this node alone.
    pub version: Option<Version>,
    /// The number of its publication on this node.
    pub generation: u64,
    /// The time since its publication on this node.
    pub age: Duration,
    /// Fresh, stale or expired.
    pub freshness: Freshness,
}

impl<T> fmt::Debug for FleetSnapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetSnapshot")
            .field("version", &self.version)
            .field("generation", &self.generation)
            .field("age", &self.age)
            .field("freshness", &self.freshness)
            .finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> FleetCell<T> {
    /// An empty cell that shares the builds of `name` with all other cells of that name in the store.
    ///
    /// # Panics
    ///
    /// If the name is one that not every store can keep: it is to have 1 to 64 bytes, and no control characters.
    #[track_caller]
    pub fn new(
        name: impl Into<String>,
        store: impl RefreshStore + 'static,
        codec: impl Codec<T> + 'static,
        policy: FleetPolicy,
    ) -> Self {
        Self::with_clock(name, store, codec, policy, SystemClock)
    }
}

impl<T, C> FleetCell<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// As [`new`](FleetCell::new), with a clock for this node's own deadlines.
    ///
    /// A cell whose clock is a value with data, such as a [`ManualClock`](dogpile::ManualClock), has a thread of its own. Cells with
    /// a clock of a type without data share their threads, as those with a [`SystemClock`] do.
    ///
    /// # Panics
    ///
    /// As [`new`](FleetCell::new).
    #[track_caller]
    pub fn with_clock(
        name: impl Into<String>,
        store: impl RefreshStore + 'static,
        codec: impl Codec<T> + 'static,
        policy: FleetPolicy,
        clock: C,
    ) -> Self {
        let name = name.into();
        assert!(
            (1..=64).contains(&name.len()) && !name.chars().any(char::is_control),
            "the name of a cell must have 1 to 64 bytes and no control characters, which not every store can keep; this one \
             has {} bytes: {name:?}",
            name.len()
        );
        let worker = Worker::new(name, Arc::new(store), Box::new(codec), policy, clock);
        let node = Arc::clone(&worker.node);
        Self { local: Arc::clone(&node.local), node, _end: End(worker) }
    }

    /// Calls `report` with each error of the store, on the thread that came across it: a caller's, or one that all
    /// cells share. It must not use a cell, nor wait for one. If it panics, that is the end of that call, and of nothing
    /// else. Of several the first one stays.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy)
    ///     .on_error(|error| eprintln!("page: {error}"));
    /// assert_eq!(*page.get_or_refresh(|| String::from("<html>")), "<html>");
    /// ```
    #[must_use]
    pub fn on_error(self, report: impl Fn(&Arc<StoreError>) + Send + Sync + 'static) -> Self {
        self.node.access.on_error(Box::new(report));
        self
    }

    /// Whether the store can be reached, with the rights that this cell needs: for the start of a program, where a wrong password is
    /// better reported than lived with.
    ///
    /// Without it a cell whose store cannot be used builds for itself, as during any other outage.
    ///
    /// # Blocking
    ///
    /// Until the store has answered, or its timeout has passed: for each of the two or three questions that it is asked.
    ///
    /// # Errors
    ///
    /// What the store or the system has said.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page: FleetCell<String> = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// page.check()?;
    /// # Ok::<(), std::sync::Arc<dogpile_fleet::StoreError>>(())
    /// ```
    pub fn check(&self) -> Result<(), Arc<StoreError>> {
        self.node.check()
    }

    /// Returns the value, rebuilding it if it is out of date. If it is stale, one caller of the whole fleet runs `build` and
    /// returns the result; all others immediately return the old value.
    ///
    /// # Blocking
    ///
    /// If there is nothing that may be served, until another thread or node has built it.
    ///
    /// # Panics
    ///
    /// If `build` panics, in the caller that runs it. And if this is called from inside the build of the same cell while there
    /// is nothing to serve.
    #[inline]
    #[track_caller]
    pub fn get_or_refresh<F: FnOnce() -> T>(&self, build: F) -> Arc<T> {
        match self.local.get_unless_due() {
            Some(value) => value,
            None => self.build(build),
        }
    }

    /// As [`get_or_refresh`](FleetCell::get_or_refresh), with a build that may fail.
    ///
    /// The callers that waited for a build that fails share its error, whatever error type their own builds have. A build that asks
    /// the source whether the previous value is still right, or makes files, is one for [`try_get_with`](FleetCell::try_get_with).
    ///
    /// # Errors
    ///
    /// * [`RefreshError::Build`]: the caller's own build failed, or the build of this process that it waited for, and the
    ///   policy's [`stale_if_error`](FleetPolicy::stale_if_error) does not allow the old value instead.
    /// * [`RefreshError::Build`] with [`Backoff`](crate::Backoff): there is nothing to serve, the latest build failed, on whatever node,
    ///   and the pause after it runs.
    /// * [`RefreshError::Reentrant`]: called from inside the build of the same cell, with nothing to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// fn download() -> io::Result<String> {
    ///     Ok(String::from("<html>"))
    /// }
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// assert_eq!(*page.try_get_or_refresh(download)?, "<html>");
    /// # Ok::<(), dogpile_fleet::RefreshError>(())
    /// ```
    #[inline]
    pub fn try_get_or_refresh<E, F>(&self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce() -> Result<T, E>,
    {
        self.try_get_with(|_| build().map(Refreshed::New))
    }

    /// As [`try_get_or_refresh`](FleetCell::try_get_or_refresh), with a build that is given what is known of the previous value.
    ///
    /// A build returns a [`Refreshed`]: a value (`map(Refreshed::from)`), a value with a time to live of its own, for which it is fresh on
    /// all nodes, or that the previous value is still right. Without a previous value the latter is a failed build.
    ///
    /// # Errors
    ///
    /// Those of [`try_get_or_refresh`](FleetCell::try_get_or_refresh).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain, Refreshed};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// fn download() -> io::Result<String> {
    ///     Ok(String::from("<html>"))
    /// }
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// let value = page.try_get_with(|_| download().map(Refreshed::from))?;
    /// assert_eq!(*value, "<html>");
    ///
    /// page.invalidate()?;
    /// let value = page.try_get_with(|context| match context.previous() {
    ///     Some(_) => Ok(Refreshed::NotModified),
    ///     None => Err(io::Error::other("no route to host")),
    /// })?;
    /// assert_eq!(*value, "<html>");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_get_with<E, F>(&self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        match self.local.get_unless_due() {
            Some(value) => Ok(value),
            None => self.try_build(build),
        }
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn build(&self, build: impl FnOnce() -> T) -> Arc<T> {
        let mut build = Some(build);
        loop {
            let outcome = self.node.search::<std::convert::Infallible, _>(Caller::Insists, |_| {
                let build = build.take().unwrap_or_else(|| unreachable!("built at most once"));
                Ok(build().into())
            });
            match outcome {
                Ok(value) => return value,
                Err(RefreshError::Reentrant) => panic!(
                    "get_or_refresh was called from inside the build of the same cell, which must not wait for a \
                     value of that cell; inside a build use `get`, or `try_get_or_refresh`, which returns \
                     `RefreshError::Reentrant`"
                ),
                // A caller that has to return a value shares no error: it looks again.
                Err(_) => {}
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn try_build<E, F>(&self, build: F) -> Result<Arc<T>, RefreshError>
    where
        E: Into<BoxError>,
        F: FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        self.node.search(Caller::Tries, build)
    }

    /// What may be served now, fresh or stale. Never builds, never blocks, never talks to the store.
    #[must_use]
    #[inline]
    pub fn get(&self) -> Option<Arc<T>> {
        self.local.get()
    }

    /// As [`get`](FleetCell::get), but touches no reference count.
    #[must_use]
    #[inline]
    pub fn load(&self) -> Option<Guard<'_, T>> {
        self.local.load()
    }

    /// A handle for a thread that reads the cell very often: it keeps the value at hand.
    #[must_use]
    pub fn reader(&self) -> FleetReader<'_, T, C> {
        FleetReader { cell: self, reader: self.local.reader() }
    }

    /// The value with its version and its age: all of one and the same publication.
    #[must_use]
    pub fn snapshot(&self) -> Option<FleetSnapshot<T>> {
        let snapshot = self.local.snapshot()?;
        Some(FleetSnapshot {
            version: self.node.version_of(snapshot.generation),
            value: snapshot.value,
            generation: snapshot.generation,
            age: snapshot.age,
            freshness: snapshot.freshness,
        })
    }

    /// What a read would find now.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        self.local.freshness()
    }

    /// Declares the value stale, on all nodes: what is being built now will not be accepted, and the next caller of
    /// whatever node rebuilds it. Meanwhile it is served.
    ///
    /// To be called after the change of what the value is built from has been committed.
    ///
    /// # Errors
    ///
    /// If the store could not be told. This node's value is stale all the same, and the invalidation is not forgotten: the cell tells
    /// the store before it asks it for anything else, and by itself as soon as the store works again. Until then other nodes
    /// may go on with the old value, and it is lost if this cell ends first.
    ///
    /// # Blocking
    ///
    /// Until the store has answered, or its timeout has passed.
    pub fn invalidate(&self) -> Result<(), Arc<StoreError>> {
        self.node.invalidate(Invalidation::Soft)
    }

    /// Takes the value away, on all nodes: what is being built now will not be accepted, and the next callers wait for a
    /// new one. Another node serves its copy until it looks into the store.
    ///
    /// # Errors
    ///
    /// If the store could not be told. This node's value is gone all the same; else as for [`invalidate`](FleetCell::invalidate).
    pub fn clear(&self) -> Result<(), Arc<StoreError>> {
        self.node.invalidate(Invalidation::Hard)
    }

    /// To be called in a process that was forked, before it uses a cell that its parent had made.
    ///
    /// A fork copies the cell, and none of the threads that look after it: what they hold at that moment is held for ever. This
    /// gives it back, and starts a thread for this process; connections are made anew as well. A cell whose caller waits, is
    /// elected or invalidates finds out by itself; but not one that has a stale value to serve, as its reads do not ask which
    /// process they are in.
    ///
    /// It cannot help where the fork came while another thread of the parent was inside a method of the cell, or a thread of this crate
    /// inside an operation of the store that the child asks first: better make the cells after the fork.
    ///
    /// The timeouts of the `async` methods need a thread of `futures-timer`. If the parent has used these methods, the child does not
    /// have that thread: the timeouts do not pass there, and a task waits until the store has answered.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{FleetCell, FleetPolicy, MemoryStore, Plain};
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// // ... fork; in the child: ...
    /// page.after_fork();
    /// assert_eq!(*page.get_or_refresh(|| String::from("<html>")), "<html>");
    /// ```
    pub fn after_fork(&self) {
        self.node.mailbox.nudge(Job::Kick);
    }

    /// What this node has done so far.
    #[must_use]
    pub fn stats(&self) -> FleetStats {
        self.node.access.counters.read()
    }

    /// The latest error of the store.
    #[must_use]
    pub fn last_store_error(&self) -> Option<Arc<StoreError>> {
        self.node.access.last_error()
    }

    /// Whether the store is left alone at the moment because it has failed.
    #[must_use]
    pub fn is_store_down(&self) -> bool {
        self.node.open_until(Kind::Change, self.node.clock.now()).is_some()
    }
}

impl<T: 'static, C: Clock + 'static> fmt::Debug for FleetCell<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetCell")
            .field("name", &self.node.name)
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

/// A handle that keeps the value, for threads that read it very often. Made by [`FleetCell::reader`].
pub struct FleetReader<'a, T: 'static, C: Clock + 'static = SystemClock> {
    cell: &'a FleetCell<T, C>,
    reader: Reader<'a, T, C>,
}

impl<T, C> FleetReader<'_, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// As [`FleetCell::get`]: what may be served now.
    #[inline]
    pub fn get(&mut self) -> Option<&Arc<T>> {
        self.reader.get()
    }

    /// As [`FleetCell::get_or_refresh`].
    ///
    /// # Panics
    ///
    /// If `build` panics, or if this is called from inside the build of the same cell while there is nothing to serve.
    #[track_caller]
    pub fn get_or_refresh<F: FnOnce() -> T>(&mut self, build: F) -> Arc<T> {
        match self.reader.get_unless_due() {
            Some(value) => Arc::clone(value),
            None => self.cell.build(build),
        }
    }

    /// Lets go of the value that the handle keeps.
    pub fn release(&mut self) {
        self.reader.release();
    }
}

impl<T: 'static, C: Clock + 'static> fmt::Debug for FleetReader<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetReader").finish_non_exhaustive()
    }
}
