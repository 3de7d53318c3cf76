//! Waiting for publications, without ever building.
//!
//! # No publication is missed
//!
//! A wait joins the cell's [watchers](crate::cell::Machine::next_change), looks at the cell, and only then sleeps. A publication
//! before the join is visible to that look; one after it wakes the wait, which looks again. What is compared is the generation
//! of the publication, which only grows, so a subscription never goes back and never returns one publication twice.

use std::fmt;
use std::marker::PhantomData;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Duration;

use crate::cell::{DogpileCell, Handle, Kind, Machine, Version};
use crate::inside::is_building;
use crate::sync::Arc;
use crate::time::{Clock, SystemClock, deadline};

#[cfg(feature = "async")]
use {
    crate::cell::Attempt,
    crate::time::FOREVER,
    crate::wait::Entry,
    std::future::poll_fn,
    std::pin::Pin,
    std::task::{Context, Poll},
};

/// Following publications.
impl<T, C> DogpileCell<T, C> {
    /// Follows the cell's publications, without ever building one. See [`Subscription`].
    ///
    /// Of a cell in a `static` it is a `Subscription<'static, _, _>`. Of one in an [`Arc`], for a thread or a task that is spawned, see
    /// [`subscribe_owned`](DogpileCell::subscribe_owned).
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// cell.set(1);
    /// let mut subscription = cell.subscribe();
    /// assert_eq!(*subscription.wait_changed(), 1);
    /// assert!(!subscription.has_changed());
    /// ```
    pub fn subscribe(&self) -> Subscription<'_, T, C>
    where
        C: Clock,
    {
        Subscription::new(Handle::Borrowed(self))
    }

    /// As [`subscribe`](DogpileCell::subscribe); keeps the cell alive.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let cell = Arc::new(DogpileCell::new(Duration::from_secs(60)));
    /// let mut subscription = cell.subscribe_owned();
    /// let waiter = std::thread::spawn(move || *subscription.wait_changed());
    /// cell.set(7);
    /// assert_eq!(waiter.join().unwrap(), 7);
    /// ```
    pub fn subscribe_owned(self: &Arc<Self>) -> Subscription<'static, T, C>
    where
        C: Clock,
    {
        Subscription::new(Handle::Shared(Arc::clone(self)))
    }
}

/// Follows the publications of a cell, without ever building a value. Made by
/// [`DogpileCell::subscribe`](crate::DogpileCell::subscribe) and its twins on the other kinds of cells.
///
/// It returns the latest publication only: a subscriber that is slower than the publisher skips values, but never misses the
/// last one, never gets the same publication twice, and never goes back. A new subscription has seen nothing, so its first
/// wait returns the value that the cell holds already, or else the first one that is published.
///
/// With the feature `async` it is also a `Stream`, which never ends.
///
/// In a struct it is a `Subscription<'static, T>` if the cell is a `DogpileCell<T>`. The last parameter is the kind of cell:
/// `Subscription<'static, T, SystemClock, LazyDogpile<T>>`, or [`DerivedSubscription<T>`](crate::DerivedSubscription).
///
/// # What is a publication
///
/// A build that succeeds, [`set`](crate::DogpileCell::set), [`restore`](crate::DogpileCell::restore), and a renewal (the same
/// value as a new generation). A value is returned even if it has expired since its publication; a value that had expired by
/// then, when it was given to `restore` or returned as [`Refreshed::Aged`](crate::Refreshed::Aged), is not returned. `invalidate`
/// and `clear` publish nothing; [`on_change`](crate::DogpileCell::on_change) reports them.
///
/// # Cost
///
/// Nothing for readers of the cell. A publication wakes all subscriptions that wait; the others cost it nothing.
///
/// # Deadlocks
///
/// A thread that waits while it holds the cell's [`Lease`](crate::Lease), or a reader of a
/// [`SyncReaderCell`](crate::SyncReaderCell) that the next publication waits for, waits for itself. Inside a build that runs as
/// a closure this is detected.
///
/// # Examples
///
/// ```
/// use dogpile::DogpileCell;
/// use std::sync::{Arc, mpsc};
/// use std::thread;
/// use std::time::Duration;
///
/// let config = Arc::new(DogpileCell::new(Duration::from_secs(60)));
/// let mut subscription = config.subscribe_owned();
/// let (send, received) = mpsc::channel();
/// let follower = thread::spawn(move || {
///     while *subscription.wait_changed() != "stop" {
///         send.send(subscription.seen()).unwrap();
///     }
/// });
/// config.set("a value");
/// assert_eq!(received.recv(), Ok(1));
/// config.set("stop");
/// follower.join().unwrap();
/// ```
#[must_use = "a subscription does nothing unless it is asked"]
pub struct Subscription<'a, T, C = SystemClock, K: Kind = DogpileCell<T, C>> {
    handle: Handle<'a, K>,
    /// The generation of the value that it has returned last.
    seen: u64,
    /// While the slot is at this version, there is nothing newer.
    version: Version,
    /// What the latest poll that was pending has waited for, and its place in the queue until it is given up.
    #[cfg(feature = "async")]
    waiting: Waiting,
    cell: PhantomData<fn() -> (T, C)>,
}

// What it has seen changes last, and a place among the watchers is left when it is dropped.
impl<T, C, K: Kind + RefUnwindSafe> UnwindSafe for Subscription<'_, T, C, K> {}
impl<T, C, K: Kind + RefUnwindSafe> RefUnwindSafe for Subscription<'_, T, C, K> {}

impl<'a, T, C, K: Kind> Subscription<'a, T, C, K> {
    pub(crate) fn new(handle: Handle<'a, K>) -> Self {
        Self {
            handle,
            seen: 0,
            version: Version::NEVER,
            #[cfg(feature = "async")]
            waiting: None,
            cell: PhantomData,
        }
    }

    /// Whether the cell holds a value that this subscription has not returned yet.
    ///
    /// # Cost
    ///
    /// One load, as long as nothing has changed since the last value was returned.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let mut subscription = cell.subscribe();
    /// assert!(!subscription.has_changed());
    /// cell.set(1);
    /// assert!(subscription.has_changed());
    /// assert_eq!(*subscription.wait_changed(), 1);
    /// assert!(!subscription.has_changed());
    /// ```
    #[must_use]
    #[inline]
    pub fn has_changed(&self) -> bool {
        let machine = self.handle.machine();
        machine.version() != self.version && machine.has_newer_than(self.seen)
    }

    /// The [generation](crate::DogpileCell::generation) of the value that was returned last; 0: none was.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let mut subscription = cell.subscribe();
    /// cell.set("first");
    /// cell.set("second");
    /// assert_eq!(subscription.seen(), 0);
    /// assert_eq!(*subscription.wait_changed(), "second");
    /// assert_eq!(subscription.seen(), 2);
    /// ```
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Waits until the cell holds a value that this subscription has not returned yet, and returns it: at once, if there is one.
    ///
    /// # Panics
    ///
    /// If it would wait inside a build of the same cell, which would wait for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// static LIMIT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// // Never builds: the value comes from the other thread.
    /// let waiter = std::thread::spawn(|| *LIMIT.subscribe().wait_changed());
    /// LIMIT.set(7);
    /// assert_eq!(waiter.join().unwrap(), 7);
    /// ```
    #[track_caller]
    pub fn wait_changed(&mut self) -> K::Shared {
        match self.wait_for(Duration::MAX) {
            Some(value) => value,
            // Without a deadline there is no other end.
            None => would_wait_for_itself("wait_changed"),
        }
    }

    /// As [`wait_changed`](Subscription::wait_changed), but not for longer than `timeout` on the cell's clock. With
    /// [`Duration::ZERO`] it only looks. [`None`]: there is nothing newer.
    ///
    /// Inside a build of the same cell it only looks.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let mut subscription = cell.subscribe();
    /// assert!(subscription.wait_changed_timeout(Duration::from_millis(1)).is_none());
    /// cell.set(7);
    /// assert_eq!(subscription.wait_changed_timeout(Duration::ZERO).as_deref(), Some(&7));
    /// ```
    pub fn wait_changed_timeout(&mut self, timeout: Duration) -> Option<K::Shared> {
        self.wait_for(timeout)
    }

    fn wait_for(&mut self, time: Duration) -> Option<K::Shared> {
        let Self { handle, seen, version, .. } = self;
        wait_for(handle.machine(), time, || take_newer(&**handle, seen, version))
    }
}

/// What was published after `seen`, if anything; looks only if the slot is not at `version` any more.
fn take_newer<K: Kind>(cell: &K, seen: &mut u64, version: &mut Version) -> Option<K::Shared> {
    let machine = cell.machine();
    // Before the value: if it is settled, and the same at a later look, nothing has changed in between.
    let now = machine.version();
    if now == *version {
        return None;
    }
    let found = machine.newer_than(*seen);
    *version = if now.is_stable() { now } else { Version::NEVER };
    let (value, record) = found?;
    *seen = record.generation;
    Some(K::share(value))
}

#[cold]
#[track_caller]
fn would_wait_for_itself(name: &str) -> ! {
    panic!(
        "{name} was called from inside a build of the same cell, and would wait for the end of that build; \
         `wait_changed_timeout` does not wait there"
    )
}

/// Blocks until `check` yields something, which is called again after each change of the cell. [`None`]: the time is over, or this
/// thread is inside a build of the cell.
fn wait_for<T, C: Clock, R>(
    machine: &Machine<T, C>,
    time: Duration,
    mut check: impl FnMut() -> Option<R>,
) -> Option<R> {
    let found = check();
    if found.is_some() || time.is_zero() {
        return found;
    }
    let deadline = deadline(&machine.clock, time);
    while !is_building(machine) {
        let next = machine.next_change();
        // Again, now that no change is missed.
        if let Some(found) = check() {
            return Some(found);
        }
        machine.counters.waits.count();
        let is_over = !next.wait(&machine.clock, deadline);
        if is_over {
            machine.counters.wait_timeouts.count();
        }
        let found = check();
        if is_over || found.is_some() {
            return found;
        }
    }
    None
}

/// The change that a task waits for, and its place among the watchers while it does.
#[cfg(feature = "async")]
type Waiting = Option<Entry<Arc<Attempt<()>>>>;

/// As [`wait_for`], for a task that is polled.
#[cfg(feature = "async")]
fn poll_for<T, C: Clock, R>(
    machine: &Machine<T, C>,
    waiting: &mut Waiting,
    deadline: u64,
    cx: &mut Context<'_>,
    mut check: impl FnMut() -> Option<R>,
) -> Poll<Option<R>> {
    loop {
        if let Some(found) = check() {
            *waiting = None;
            return Poll::Ready(Some(found));
        }
        match waiting {
            Some(entry) if entry.has_joined() || entry.point().completed().is_none() => {
                if !entry.has_joined() {
                    if is_building(machine) {
                        return Poll::Ready(None);
                    }
                    machine.counters.waits.count();
                }
                match entry.poll((), &machine.clock, deadline, cx, Attempt::completed) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(())) => *waiting = None,
                    Poll::Ready(None) => {
                        machine.counters.wait_timeouts.count();
                        return Poll::Ready(check());
                    }
                }
            }
            // And looks again, now that no change is missed.
            _ => *waiting = Some(Entry::new(machine.next_change())),
        }
    }
}

/// Readiness.
impl<K: Kind> Handle<'_, K> {
    /// Waits until there is a value that may be served. Returns whether there is.
    pub(crate) fn wait_ready(&self, time: Duration) -> bool {
        let machine = self.machine();
        wait_for(machine, time, || machine.is_servable().then_some(())).is_some()
    }

    /// As [`wait_ready`](Handle::wait_ready), for a task.
    #[cfg(feature = "async")]
    pub(crate) async fn wait_ready_async(&self, time: Duration) -> bool {
        let machine = self.machine();
        let is_ready = machine.is_servable();
        if is_ready || time.is_zero() {
            return is_ready;
        }
        let (deadline, mut waiting) = (deadline(&machine.clock, time), None);
        let is_ready = || machine.is_servable().then_some(());
        poll_fn(|cx| poll_for(machine, &mut waiting, deadline, cx, is_ready)).await.is_some()
    }
}

#[cfg(feature = "async")]
impl<T, C, K: Kind> Subscription<'_, T, C, K> {
    /// As [`wait_changed`](Subscription::wait_changed), for a task.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: if the future is dropped before it is ready, no value is lost, and no place among the waiters is kept.
    ///
    /// # Panics
    ///
    /// If it would wait inside a build of the same cell, which would wait for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # smol::block_on(async {
    /// use dogpile::DogpileCell;
    /// use std::time::Duration;
    ///
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let mut subscription = cell.subscribe();
    /// cell.set(7);
    /// assert_eq!(*subscription.changed().await, 7);
    /// # });
    /// ```
    pub async fn changed(&mut self) -> K::Shared {
        /// Gives up the place among the watchers when it is dropped.
        struct Changed<'s, 'a, T, C, K: Kind>(&'s mut Subscription<'a, T, C, K>);

        impl<T, C, K: Kind> Drop for Changed<'_, '_, T, C, K> {
            fn drop(&mut self) {
                // What it has waited for stays, for the next call: a loop around a `select!` waits for the same change again.
                if let Some(waiting) = &mut self.0.waiting {
                    waiting.leave();
                }
            }
        }

        let changed = Changed(self);
        poll_fn(|cx| changed.0.poll_changed(cx)).await
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<K::Shared> {
        let Self { handle, seen, version, waiting, .. } = self;
        let take_newer = || take_newer(&**handle, seen, version);
        let polled = poll_for(handle.machine(), waiting, FOREVER, cx, take_newer);
        // Without a deadline there is no other end.
        polled.map(|found| found.unwrap_or_else(|| would_wait_for_itself("changed")))
    }
}

/// Yields what [`changed`](Subscription::changed) returns, and never ends.
#[cfg(feature = "async")]
impl<T, C, K: Kind> futures_core::Stream for Subscription<'_, T, C, K> {
    type Item = K::Shared;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<K::Shared>> {
        self.get_mut().poll_changed(cx).map(Some)
    }
}

/// Has seen what the original has seen.
impl<T, C, K: Kind> Clone for Subscription<'_, T, C, K> {
    fn clone(&self) -> Self {
        Self { seen: self.seen, version: self.version, ..Self::new(self.handle.clone()) }
    }
}

impl<T, C, K: Kind> fmt::Debug for Subscription<'_, T, C, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("seen", &self.seen)
            .field("has_changed", &self.has_changed())
            .finish_non_exhaustive()
    }
}
