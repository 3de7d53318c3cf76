//! Builds that somebody else runs.

use crate::cell::machine::{Demand, Home, Machine};
use crate::cell::{DogpileCell, Held, Turn, turn};
use crate::clock::Clock;
use crate::sync::{Arc, Weak, into_arc};

#[cfg(feature = "async")]
use {crate::cell::turn_async, std::panic::Location, std::pin::Pin};

pub(crate) mod sealed {
    use super::{Clock, Home, Machine};

    /// What the crate needs to know of a cell that is shared.
    #[diagnostic::on_unimplemented(
        message = "`{Self}` is not a cell that a thread or a task of its own can use",
        label = "neither `&Arc<DogpileCell<..>>` nor `&'static DogpileCell<..>`",
        note = "of a cell in a `static` pass `&CELL`, in a `Lazy` or `LazyLock` `&*CELL`, in an `Arc` `&cell`, and of a \
                `LazyDogpile` `LAZY.cell()`; the value must be `Send + Sync + 'static`"
    )]
    pub trait Shared: Copy {
        type Value: Send + Sync + 'static;
        type Clock: Clock + 'static;
        type Owned: Owned<Value = Self::Value, Clock = Self::Clock>;

        fn own(self) -> Self::Owned;
        fn with<R>(self, f: impl FnOnce(&Machine<Self::Value, Self::Clock>) -> R) -> R;
    }

    /// Keeps the cell alive.
    #[allow(unreachable_pub)] // as `Home`
    pub trait Owned: Home<Value: Send + Sync, Clock: 'static> + Send + Sync + 'static {
        /// Does not keep it alive.
        type Weak: Clone + Send + Sync + 'static;

        fn downgrade(&self) -> Self::Weak;
        fn upgrade(weak: &Self::Weak) -> Option<Self>
        where
            Self: Sized;
    }
}

impl<T: Send + Sync + 'static, C: Clock + 'static> sealed::Shared for &Arc<DogpileCell<T, C>> {
    type Value = T;
    type Clock = C;
    type Owned = Arc<DogpileCell<T, C>>;

    fn own(self) -> Self::Owned {
        Arc::clone(self)
    }

    #[inline]
    fn with<R>(self, f: impl FnOnce(&Machine<T, C>) -> R) -> R {
        f(DogpileCell::machine(self))
    }
}

impl<T: Send + Sync + 'static, C: Clock + 'static> sealed::Owned for Arc<DogpileCell<T, C>> {
    type Weak = Weak<DogpileCell<T, C>>;

    fn downgrade(&self) -> Self::Weak {
        Arc::downgrade(self)
    }

    fn upgrade(weak: &Self::Weak) -> Option<Self> {
        weak.upgrade()
    }
}

impl<T: Send + Sync + 'static, C: Clock + 'static> sealed::Shared for &'static DogpileCell<T, C> {
    type Value = T;
    type Clock = C;
    type Owned = Self;

    fn own(self) -> Self {
        self
    }

    #[inline]
    fn with<R>(self, f: impl FnOnce(&Machine<T, C>) -> R) -> R {
        f(DogpileCell::machine(self))
    }
}

impl<T: Send + Sync + 'static, C: Clock + 'static> sealed::Owned for &'static DogpileCell<T, C> {
    type Weak = Self;

    fn downgrade(&self) -> Self {
        self
    }

    fn upgrade(weak: &Self) -> Option<Self> {
        Some(weak)
    }
}

/// A cell that can be handed to a thread or a task of its own: a reference to one in an [`Arc`], or in a `static`.
///
/// # Examples
///
/// The first caller builds; later ones get the old value at once, and a thread builds the new one:
///
/// ```
/// use dogpile::{DogpileCell, SharedCell};
/// use std::time::Duration;
///
/// static REPORT: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
///
/// let spawn = |job| {
///     std::thread::spawn(job);
/// };
/// assert_eq!(*REPORT.get_or_refresh_in_background(spawn, || 1), 1);
/// REPORT.invalidate();
/// let report = REPORT.get_or_refresh_in_background(spawn, || 2);
/// assert!(*report == 1 || *report == 2); // 2 only if the thread was faster than this one
/// # assert_eq!(*REPORT.get_fresh_or_refresh(|| 2), 2);
/// ```
pub trait SharedCell: sealed::Shared {
    /// As [`DogpileCell::get_or_refresh`], but a caller that is elected while there is a value to serve does not build: it
    /// hands the build to `spawn` and gets the old value at once. The first build, and one after the value has expired,
    /// runs in the caller.
    ///
    /// Python's dogpile calls this `async_creator`. `spawn` gets a job to be run once, on whichever thread:
    ///
    /// | where | `spawn` |
    /// |---|---|
    /// | a thread of its own | `\|job\| { std::thread::spawn(job); }` |
    /// | a rayon pool | `\|job\| pool.spawn(job)` |
    /// | tokio | `\|job\| { tokio::task::spawn_blocking(job); }` |
    ///
    /// A job that is dropped instead of run gives the lease back, and the next caller is elected: so a spawner at its
    /// limit may simply drop it. If `spawn` runs the job at once, on the spot, the caller gets the new value, unless that
    /// has expired by then. If `spawn` panics, the lease is given back and the panic reaches the caller.
    ///
    /// # Panics
    ///
    /// As [`DogpileCell::get_or_refresh`], and if `spawn` panics. A panic of the build in the background is `spawn`'s to
    /// report; the lease comes back.
    #[track_caller]
    fn get_or_refresh_in_background(
        self,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>),
        build: impl FnOnce() -> Self::Value + Send + 'static,
    ) -> Arc<Self::Value> {
        if let Some(value) = self.with(Machine::serve) {
            return value;
        }
        match turn(self.own(), Demand::Value, "get_or_refresh_in_background", |_| false) {
            Turn::Served(value) => value,
            Turn::Elected(held) => match self.with(servable) {
                None => held.build(build),
                Some(stale) => {
                    let job = Unrun(Some(held));
                    spawn(Box::new(move || drop(job.held().build(build))));
                    // It may have been run on the spot (G3).
                    self.with(servable).unwrap_or(stale)
                }
            },
        }
    }

    /// As [`get_or_refresh_in_background`](SharedCell::get_or_refresh_in_background), with a build that is a future. The
    /// first build is awaited, later ones are handed to `spawn`, for example `|job| { tokio::spawn(job); }`.
    ///
    /// A job that is dropped before it has ended gives the lease back.
    ///
    /// # Panics
    ///
    /// As there.
    #[cfg(feature = "async")]
    #[track_caller]
    fn get_or_refresh_in_background_async<F, Fut>(
        self,
        spawn: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>) + Send,
        build: F,
    ) -> impl Future<Output = Arc<Self::Value>> + Send
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Self::Value> + Send + 'static,
        Self: Send,
    {
        let called = Location::caller();
        async move {
            if let Some(value) = self.with(Machine::serve) {
                return value;
            }
            let name = "get_or_refresh_in_background_async";
            match turn_async(self.own(), Demand::Value, name, called).await {
                Turn::Served(value) => value,
                Turn::Elected(held) => match self.with(servable) {
                    None => held.build_async(build).await,
                    Some(stale) => {
                        let job = Unrun(Some(held));
                        spawn(Box::pin(async move { drop(job.held().build_async(build).await) }));
                        // As there.
                        self.with(servable).unwrap_or(stale)
                    }
                },
            }
        }
    }
}

impl<S: sealed::Shared> SharedCell for S {}

/// The lease of a job that has not been run: if a spawner panics with it, no build has.
struct Unrun<H: Home>(Option<Held<H>>);

impl<H: Home> Unrun<H> {
    fn held(mut self) -> Held<H> {
        self.0.take().expect("it is taken once")
    }
}

impl<H: Home> Drop for Unrun<H> {
    fn drop(&mut self) {
        if let Some(held) = self.0.take() {
            held.abandon();
        }
    }
}

fn servable<T, C: Clock>(machine: &Machine<T, C>) -> Option<Arc<T>> {
    machine.servable().and_then(into_arc)
}
