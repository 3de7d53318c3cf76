//! Values that are made from the values of cells, and follow them (G15).
//!
//! ```text
//! stamp       what an evaluation has taken from its sources, and how they tell that it is out of date
//! cx          one evaluation
//! source      what a value can be made from
//! node        the cell of a derived value, what it was made from, its links to that
//! evaluate    how it is made: for a read, or in an evaluation that asks for it
//! derived     this file: thin methods over the node
//! ```

mod cx;
mod evaluate;
mod node;
mod source;
mod stamp;

pub use cx::Cx;
#[cfg(feature = "async")]
pub use evaluate::InTask;
pub use evaluate::InThread;
pub use node::Node;
pub use source::Source;

use std::fmt;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Duration;

#[cfg(feature = "async")]
use crate::cell::Task;
use crate::cell::{DogpileCell, Handle, Kind, Reader, Snapshot};
use crate::error::{BoxError, RefreshError};
use crate::hook::{Change, Hook};
use crate::policy::Policy;
use crate::refresher::Refresher;
use crate::subscription::Subscription;
use crate::sync::Arc;
use crate::time::{Clock, SystemClock};

/// A value that is made from the values of cells and of other derived values, and follows them.
///
/// The closure asks for its sources with [`Cx::get`]: what it asks for is what the value depends on, and that may differ from one
/// run to the next. When a source publishes a value, the derived value is stale, and the next read makes it again: by one
/// caller, as in any cell.
///
/// ```text
/// configuration ──► client ──► router      one read of the router makes what it needs, and nothing else
///        └───────────────────────┘
/// ```
///
/// Cheap to clone: all clones are one value.
///
/// # What readers observe
///
/// - **It never mixes an old and a new value of one source**, however many ways lead to that source.
/// - After a source's `set`, `invalidate`, or build has returned, the next read is made from the newest values, or elects a
///   caller that makes it from them (the other callers get the old one meanwhile, as in any cell).
/// - It is stale from the same tick on as the first of its sources. By default it never goes stale by itself.
/// - While a source is stale and has no newer value, the derived value is served as it is, and is not made again. That applies too to
///   what was made without the value of a derived source that fails, during that one's retry pause.
/// - If the closure fails, the old value stays and is served, as [`Policy::stale_if_error`] says; after a pause, or when a source
///   publishes, it is tried again.
///
/// Two values of *different* sources may be from different moments.
///
/// # Lazy or eager
///
/// Nothing runs until a caller reads. [`spawn_refresher`](Derived::spawn_refresher) makes it eager: a thread makes it again at each
/// change. [`subscribe`](Derived::subscribe) waits for a publication, and makes none.
///
/// # Cost
///
/// A read costs what a read of a cell costs, also while a source is stale and has nothing newer: only the first such read asks
/// the sources. (Each read asks a source that is to be built and has no value at all, and one that has failed to give the value
/// one.) A publication of a source notifies each value that was made from it. Two evaluations at the same time may both make a
/// value that both need, if they began with different values of a source.
///
/// # Cycles
///
/// A derived value that asks for itself, directly or by way of others, panics in [`Cx::get`], and gets
/// [`RefreshError::Reentrant`] from [`Cx::try_get`]. A cycle that leads through the build of a [`LazyDogpile`](crate::LazyDogpile)
/// is not noticed if two threads enter it in two places: each waits for the other's build.
///
/// # Examples
///
/// ```
/// use dogpile::{Derived, DogpileCell};
/// use std::time::Duration;
///
/// static CONFIG: DogpileCell<(&str, u16)> = DogpileCell::new(Duration::from_secs(60));
///
/// let client = Derived::new(|cx| format!("a client of {}", cx.get(&CONFIG).0));
/// let router = Derived::new({
///     let client = client.clone();
///     move |cx| format!("{} by port {}", cx.get(&client), cx.get(&CONFIG).1)
/// });
///
/// CONFIG.set(("alpha", 1));
/// assert_eq!(*router.get(), "a client of alpha by port 1");
/// CONFIG.set(("beta", 2));
/// assert_eq!(*router.get(), "a client of beta by port 2"); // never "alpha by port 2"
/// ```
pub struct Derived<T, C = SystemClock, B = InThread<T>>(Arc<Node<T, C, B>>);

/// A [`Derived`] value whose closure returns a future: what [`Derived::new_async`] makes, by a name that fits into a struct.
///
/// # Examples
///
/// ```
/// # smol::block_on(async {
/// use dogpile::{AsyncDerived, Derived, DogpileCell, RefreshError};
/// use std::time::Duration;
///
/// static HOST: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
///
/// struct App {
///     client: AsyncDerived<String>,
/// }
///
/// let client = Derived::new_async(|cx| async move { Ok::<_, RefreshError>(format!("client of {}", cx.try_get(&HOST)?)) });
/// let app = App { client };
/// HOST.set("alpha".to_owned());
/// assert_eq!(*app.client.get_async().await, "client of alpha");
/// # });
/// ```
#[cfg(feature = "async")]
pub type AsyncDerived<T, C = SystemClock> = Derived<T, C, InTask<T>>;

/// What [`Derived::subscribe`] returns, by a name that fits into a struct.
///
/// # Examples
///
/// ```
/// use dogpile::{Derived, DerivedSubscription, DogpileCell};
/// use std::time::Duration;
///
/// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
///
/// struct Follower {
///     doubles: DerivedSubscription<u32>,
/// }
///
/// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
/// let mut follower = Follower { doubles: double.subscribe() };
/// NUMBER.set(1);
/// double.get();
/// assert_eq!(*follower.doubles.wait_changed(), 2);
/// ```
pub type DerivedSubscription<T, C = SystemClock, B = InThread<T>> =
    Subscription<'static, T, C, Node<T, C, B>>;

// As for a cell; what its closure looks like after a panic is the closure's own affair.
impl<T: RefUnwindSafe, C: RefUnwindSafe, B> UnwindSafe for Derived<T, C, B> {}
impl<T: RefUnwindSafe, C: RefUnwindSafe, B> RefUnwindSafe for Derived<T, C, B> {}

impl<T, C, B> Clone for Derived<T, C, B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Making one.
impl<T: Send + Sync + 'static> Derived<T> {
    /// A value that `make` makes.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// assert_eq!(*double.get(), 2);
    /// NUMBER.set(2);
    /// assert_eq!(*double.get(), 4);
    /// ```
    pub fn new(make: impl Fn(&Cx) -> T + Send + Sync + 'static) -> Self {
        Self::try_new(move |cx| Ok::<_, RefreshError>(make(cx)))
    }

    /// A value that `make` makes, which may fail. `?` passes on what [`Cx::try_get`] returns.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{BoxError, Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static PORT: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let port = Derived::try_new(|cx| Ok::<u16, BoxError>(cx.try_get(&PORT)?.parse()?));
    /// assert_eq!(port.try_get().unwrap_err().to_string(), "there is no value, and nothing that could build one");
    /// PORT.set("80".to_owned());
    /// assert_eq!(*port.try_get()?, 80);
    /// PORT.set("eighty".to_owned());
    /// assert_eq!(*port.try_get()?, 80);
    /// assert_eq!(port.cell().last_error().unwrap().to_string(), "invalid digit found in string");
    /// # Ok::<(), dogpile::RefreshError>(())
    /// ```
    pub fn try_new<E: Into<BoxError>>(make: impl Fn(&Cx) -> Result<T, E> + Send + Sync + 'static) -> Self {
        Self::with_policy(Policy::never_expires(), make)
    }

    /// As [`try_new`](Derived::try_new), with a policy: a time to live of its own, limits to being served stale, pauses.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{BoxError, Derived, DogpileCell, Policy};
    /// use std::time::Duration;
    ///
    /// static HOST: DogpileCell<&str> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// // A connection is made again after an hour, and when the host changes.
    /// let policy = Policy::ttl(Duration::from_secs(3600));
    /// let connection = Derived::with_policy(policy, |cx| Ok::<_, BoxError>(format!("to {}", cx.try_get(&HOST)?)));
    /// HOST.set("alpha");
    /// assert_eq!(*connection.get(), "to alpha");
    /// assert_eq!(connection.cell().policy(), policy);
    /// ```
    pub fn with_policy<E: Into<BoxError>>(
        policy: Policy,
        make: impl Fn(&Cx) -> Result<T, E> + Send + Sync + 'static,
    ) -> Self {
        Self::with_clock(policy, SystemClock, make)
    }
}

impl<T: Send + Sync + 'static, C: Clock + Send + Sync + 'static> Derived<T, C> {
    /// As [`with_policy`](Derived::with_policy), with a clock, which must be that of its sources: it inherits the ticks at which they
    /// go stale.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{BoxError, Derived, DogpileCell, Freshness, ManualClock, Policy};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// let number = Arc::new(DogpileCell::with_clock(Policy::ttl(Duration::from_secs(60)), clock.clone()));
    /// number.set(1);
    /// let double = Derived::with_clock(Policy::never_expires(), clock.clone(), {
    ///     let number = Arc::clone(&number);
    ///     move |cx| Ok::<_, BoxError>(*cx.try_get(&number)? * 2)
    /// });
    /// assert_eq!(*double.get(), 2);
    /// clock.advance(Duration::from_secs(61));
    /// assert_eq!(double.cell().freshness(), Freshness::Stale); // at the same tick as its source
    /// ```
    pub fn with_clock<E: Into<BoxError>>(
        policy: Policy,
        clock: C,
        make: impl Fn(&Cx) -> Result<T, E> + Send + Sync + 'static,
    ) -> Self {
        Self(Node::new(policy, clock, InThread(Box::new(move |cx| make(cx).map_err(Into::into)))))
    }

    /// The value: made by this caller, if it is out of date and no other caller makes it.
    ///
    /// # Panics
    ///
    /// If the closure panics; if it fails and there is no value that may be served instead; or if the closure calls this method of its
    /// own value and there is nothing to serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// NUMBER.set(3);
    /// assert_eq!(*double.get(), 6);
    /// ```
    #[allow(clippy::must_use_candidate)] // it may be called to make it
    #[inline]
    #[track_caller]
    pub fn get(&self) -> Arc<T> {
        match self.0.machine().serve() {
            Some(value) => value,
            None => self.refresh(),
        }
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn refresh(&self) -> Arc<T> {
        match self.0.refresh() {
            Ok(value) => value,
            Err(error) => cannot(&error),
        }
    }

    /// The value: made by this caller, if it is out of date and no other caller makes it.
    ///
    /// # Errors
    ///
    /// If the closure fails and there is no value that may be served instead: [`RefreshError::Build`] with its error, or what
    /// [`Cx::try_get`] returned to it, if it passed that on. [`RefreshError::Reentrant`], if it asks for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let double = Derived::try_new(|cx| Ok::<_, RefreshError>(*cx.try_get(&NUMBER)? * 2));
    /// assert!(matches!(double.try_get(), Err(RefreshError::Empty)));
    /// NUMBER.set(3);
    /// assert_eq!(*double.try_get()?, 6);
    /// # Ok::<(), RefreshError>(())
    /// ```
    #[inline]
    pub fn try_get(&self) -> Result<Arc<T>, RefreshError> {
        match self.0.machine().serve() {
            Some(value) => Ok(value),
            None => self.0.refresh(),
        }
    }

    /// A handle that keeps the value, for a thread that reads it very often. See [`Reader`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// let mut reader = double.reader();
    /// assert_eq!(**reader.get(), 2);
    /// ```
    #[must_use]
    pub fn reader(&self) -> DerivedReader<'_, T, C> {
        DerivedReader { reader: self.0.cell().reader(), node: &self.0 }
    }

    /// Starts a [`Refresher`] that makes the value again at each change of a source, on a thread of its own, until it is dropped.
    ///
    /// It makes the value at once. If a source may still be empty then, use [`try_new`](Derived::try_new) and [`Cx::try_get`]:
    /// [`Cx::get`] would panic on that thread, which the panic hook reports, and the value would be made when the source has one.
    ///
    /// After a failure it waits for 100 ms at least (the default [`min_interval`](crate::RefresherOptions::min_interval)), even if a
    /// source publishes meanwhile. While a source is stale without a newer value, it looks every 100 ms.
    ///
    /// # Errors
    ///
    /// The system's, if it cannot start a thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// let refresher = double.spawn_refresher()?;
    /// // No read makes the value.
    /// assert_eq!(*double.subscribe().wait_changed(), 2);
    /// # drop(refresher);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn spawn_refresher(&self) -> io::Result<Refresher>
    where
        C: Clone,
    {
        let node = Arc::downgrade(&self.0);
        Refresher::spawn(&self.0, Duration::ZERO, move |_| match node.upgrade() {
            Some(node) => node.evaluate_alone(),
            None => Err(RefreshError::Abandoned.into()),
        })
    }
}

/// Made in a task (feature `async`).
#[cfg(feature = "async")]
impl<T: Send + Sync + 'static> Derived<T, SystemClock, InTask<T>> {
    /// As [`try_new`](Derived::try_new), with a closure that returns a future.
    ///
    /// The closure asks for its sources as any other, and for derived values that are futures themselves with
    /// [`Cx::get_async`]. A [`LazyDogpile`](crate::LazyDogpile) whose build is a future is asked for by its
    /// [`cell()`](crate::LazyDogpile::cell), which never builds: keep it fresh with a [`Refresher`].
    ///
    /// # Examples
    ///
    /// ```
    /// # smol::block_on(async {
    /// use dogpile::{Derived, DogpileCell};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// static HOST: DogpileCell<String> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// async fn connect(host: &str) -> io::Result<String> {
    ///     Ok(format!("connected to {host}"))
    /// }
    ///
    /// let client = Derived::new_async(|cx| async move { connect(&cx.get(&HOST)).await });
    /// HOST.set("alpha".to_owned());
    /// assert_eq!(*client.try_get_async().await.unwrap(), "connected to alpha");
    /// HOST.set("beta".to_owned());
    /// assert_eq!(*client.get_async().await, "connected to beta");
    /// # });
    /// ```
    pub fn new_async<E, F, Fut>(make: F) -> Self
    where
        E: Into<BoxError>,
        F: Fn(Cx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        Self::with_clock_async(Policy::never_expires(), SystemClock, make)
    }
}

/// Made in a task (feature `async`).
#[cfg(feature = "async")]
impl<T: Send + Sync + 'static, C: Clock + Send + Sync + 'static> Derived<T, C, InTask<T>> {
    /// As [`with_clock`](Derived::with_clock), with a closure that returns a future.
    ///
    /// # Examples
    ///
    /// ```
    /// # smol::block_on(async {
    /// use dogpile::{Derived, DogpileCell, ManualClock, Policy, RefreshError};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// let number = Arc::new(DogpileCell::with_clock(Policy::never_expires(), clock.clone()));
    /// number.set(1);
    /// let double = Derived::with_clock_async(Policy::never_expires(), clock, {
    ///     let number = Arc::clone(&number);
    ///     move |cx| {
    ///         let number = cx.get(&number);
    ///         async move { Ok::<_, RefreshError>(*number * 2) }
    ///     }
    /// });
    /// assert_eq!(*double.get_async().await, 2);
    /// # });
    /// ```
    pub fn with_clock_async<E, F, Fut>(policy: Policy, clock: C, make: F) -> Self
    where
        E: Into<BoxError>,
        F: Fn(Cx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let make = move |cx| -> evaluate::Making<T> {
            let making = make(cx);
            Box::pin(async { making.await.map_err(Into::into) })
        };
        Self(Node::new(policy, clock, InTask(Box::new(make))))
    }

    /// As [`Derived::get`], for a task.
    ///
    /// # Panics
    ///
    /// As [`Derived::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # smol::block_on(async {
    /// use dogpile::{Derived, DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new_async(|cx| async move { Ok::<_, RefreshError>(*cx.get(&NUMBER) * 2) });
    /// assert_eq!(*double.get_async().await, 2);
    /// # });
    /// ```
    pub async fn get_async(&self) -> Arc<T> {
        match self.try_get_async().await {
            Ok(value) => value,
            Err(error) => cannot(&error),
        }
    }

    /// As [`Derived::try_get`], for a task.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, what it makes is given up, and another caller is elected.
    ///
    /// # Errors
    ///
    /// As [`Derived::try_get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # smol::block_on(async {
    /// use dogpile::{Derived, DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let double = Derived::new_async(|cx| async move { Ok::<_, RefreshError>(*cx.try_get(&NUMBER)? * 2) });
    /// assert!(matches!(double.try_get_async().await, Err(RefreshError::Empty)));
    /// NUMBER.set(1);
    /// assert_eq!(*double.try_get_async().await.unwrap(), 2);
    /// # });
    /// ```
    pub async fn try_get_async(&self) -> Result<Arc<T>, RefreshError> {
        match self.0.machine().serve() {
            Some(value) => Ok(value),
            None => Box::pin(Arc::clone(&self.0).refresh()).await,
        }
    }

    /// As [`spawn_refresher`](Derived::spawn_refresher), as a task: `spawn` hands it to the executor.
    ///
    /// # Errors
    ///
    /// None today.
    ///
    /// # Examples
    ///
    /// ```
    /// # smol::block_on(async {
    /// use dogpile::{Derived, DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new_async(|cx| async move { Ok::<_, RefreshError>(*cx.get(&NUMBER) * 2) });
    /// let refresher = double.spawn_refresher_async(|task| smol::spawn(task).detach()).unwrap();
    /// assert_eq!(*double.subscribe().changed().await, 2);
    /// # drop(refresher);
    /// # });
    /// ```
    pub fn spawn_refresher_async<S>(&self, spawn: impl FnOnce(Task) -> S) -> io::Result<Refresher>
    where
        C: Clone,
    {
        let node = Arc::downgrade(&self.0);
        Refresher::spawn_async(&self.0, Duration::ZERO, spawn, move |_| {
            let node = node.upgrade();
            async move {
                match node {
                    Some(node) => node.evaluate_alone().await,
                    None => Err(RefreshError::Abandoned.into()),
                }
            }
        })
    }
}

/// Listening.
impl<T, C, B> Derived<T, C, B>
where
    T: Send + Sync + 'static,
    C: Clock + Send + Sync + 'static,
    B: Send + Sync + 'static,
{
    /// Follows its publications, and makes none: see [`Subscription`]. Keeps the value alive.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// let mut subscription = double.subscribe();
    /// let refresher = double.spawn_refresher()?;
    /// assert_eq!(*subscription.wait_changed(), 2);
    /// NUMBER.set(2);
    /// assert_eq!(*subscription.wait_changed(), 4);
    /// # drop(refresher);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn subscribe(&self) -> DerivedSubscription<T, C, B> {
        Subscription::new(Handle::Shared(Arc::clone(&self.0)))
    }

    /// As [`DogpileCell::on_publish`]. A derived value is made, and the callback called, when a caller reads it; with a
    /// [`Refresher`] at each change of a source.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// let (changes, seen) = std::sync::mpsc::channel();
    /// let hook = double.on_publish(move |snapshot| changes.send(*snapshot.value).unwrap());
    /// double.get();
    /// assert_eq!(seen.recv(), Ok(2));
    /// # drop(hook);
    /// ```
    pub fn on_publish(&self, callback: impl Fn(&Snapshot<T>) + Send + Sync + 'static) -> Hook {
        self.0.cell().on_publish(callback)
    }

    /// As [`DogpileCell::on_change`]. That a source has changed shows as [`Change::Invalidated`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Change, Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// double.get();
    /// let (changes, seen) = std::sync::mpsc::channel();
    /// let hook = double.on_change(move |change| changes.send(matches!(change, Change::Invalidated)).unwrap());
    /// NUMBER.set(2);
    /// assert_eq!(seen.recv(), Ok(true));
    /// # drop(hook);
    /// ```
    pub fn on_change(&self, callback: impl Fn(&Change<T>) + Send + Sync + 'static) -> Hook {
        self.0.cell().on_change(callback)
    }
}

impl<T, C, B> Derived<T, C, B> {
    /// The cell of its value: to look at it, or to do what has no method here. A value that is set there is served until a source
    /// publishes.
    ///
    /// In a closure ask for the derived value, not for this cell: `cx.get(&*CLIENT)`. What is made from the cell takes the value that
    /// is there, which may have been made from other values of its sources than the closure gets.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// assert_eq!(double.cell().generation(), 0);
    /// double.get();
    /// assert_eq!(double.cell().stats().builds, 1);
    /// ```
    #[must_use]
    pub fn cell(&self) -> &DogpileCell<T, C> {
        self.0.cell()
    }
}

#[cold]
#[track_caller]
fn cannot(error: &RefreshError) -> ! {
    match error {
        RefreshError::Reentrant => panic!(
            "a derived value was asked for by its own closure, directly or by way of others, and there is nothing to serve"
        ),
        error => panic!("a derived value cannot be made: {error}; `try_get` returns this as an error"),
    }
}

impl<T, C, B> From<&Derived<T, C, B>> for Handle<'static, Node<T, C, B>> {
    fn from(derived: &Derived<T, C, B>) -> Self {
        Self::Shared(Arc::clone(&derived.0))
    }
}

impl<T, C, B> From<Derived<T, C, B>> for Handle<'static, Node<T, C, B>> {
    fn from(derived: Derived<T, C, B>) -> Self {
        Self::Shared(derived.0)
    }
}

impl<T, C, B> fmt::Debug for Derived<T, C, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Derived").field("cell", self.0.cell()).finish_non_exhaustive()
    }
}

/// A [`Reader`] of a derived value. Made by [`Derived::reader`].
///
/// # Examples
///
/// ```
/// use dogpile::{Derived, DogpileCell};
/// use std::time::Duration;
///
/// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
///
/// NUMBER.set(1);
/// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
/// let mut reader = double.reader();
/// assert_eq!(**reader.get(), 2);
/// ```
pub struct DerivedReader<'a, T, C = SystemClock> {
    reader: Reader<'a, T, C>,
    node: &'a Arc<Node<T, C, InThread<T>>>,
}

impl<T: Send + Sync + 'static, C: Clock + Send + Sync + 'static> DerivedReader<'_, T, C> {
    /// As [`Derived::get`].
    ///
    /// # Panics
    ///
    /// As [`Derived::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// let mut reader = double.reader();
    /// assert_eq!(**reader.get(), 2);
    /// NUMBER.set(2);
    /// assert_eq!(**reader.get(), 4);
    /// ```
    #[inline]
    #[track_caller]
    pub fn get(&mut self) -> &Arc<T> {
        match self.try_get() {
            Ok(value) => value,
            Err(error) => cannot(&error),
        }
    }

    /// As [`Derived::try_get`].
    ///
    /// # Errors
    ///
    /// As [`Derived::try_get`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell, RefreshError};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let double = Derived::try_new(|cx| Ok::<_, RefreshError>(*cx.try_get(&NUMBER)? * 2));
    /// let mut reader = double.reader();
    /// assert!(reader.try_get().is_err());
    /// NUMBER.set(1);
    /// assert_eq!(**reader.try_get()?, 2);
    /// # Ok::<(), RefreshError>(())
    /// ```
    #[inline]
    pub fn try_get(&mut self) -> Result<&Arc<T>, RefreshError> {
        let node = self.node;
        self.reader.get_or_try(|| node.refresh())
    }

    /// Lets go of the value that the handle keeps. See [`Reader::release`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// NUMBER.set(1);
    /// let double = Derived::new(|cx| *cx.get(&NUMBER) * 2);
    /// let mut reader = double.reader();
    /// let old = std::sync::Arc::downgrade(reader.get());
    /// double.cell().clear();
    /// assert!(old.upgrade().is_some());
    /// reader.release();
    /// assert!(old.upgrade().is_none());
    /// ```
    pub fn release(&mut self) {
        self.reader.release();
    }
}

impl<T, C> fmt::Debug for DerivedReader<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DerivedReader").field("reader", &self.reader).finish_non_exhaustive()
    }
}
