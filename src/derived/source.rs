//! What a derived value can be made from.

use crate::cell::{BuildResult, Caller, DogpileCell, Handle, Kind, Listener, Machine, Search};
use crate::error::RefreshError;
use crate::inside::is_building;
use crate::lazy::LazyDogpile;
use crate::policy::Freshness;
use crate::sync::Arc;
use crate::sync_reader::SyncReaderCell;
use crate::time::{Clock, FOREVER};

use super::cx::Cx;
use super::stamp::{AnySource, Gave, Link, Pinned, Stamp};

/// What a [`Derived`](crate::Derived) value can be made from: a [`DogpileCell`](crate::DogpileCell), a
/// [`LazyDogpile`](crate::LazyDogpile), a [`SyncReaderCell`](crate::SyncReaderCell), or another derived value.
///
/// `FALLIBLE` only tells the builds of a `LazyDogpile` apart, and is inferred. The trait is sealed: no other type can implement it.
#[diagnostic::on_unimplemented(
    message = "a derived value cannot be made from `{Self}`",
    label = "neither a cell of a value that is `Send + Sync + 'static`, nor a `Derived`",
    note = "of a cell in a `static` pass `&CELL`, in a `Lazy` or `LazyLock` `&*CELL`, in an `Arc` `&cell`; of a `LazyDogpile` \
            whose build is a future `LAZY.cell()`, which never builds"
)]
pub trait Source<const FALLIBLE: bool>: Followed<FALLIBLE> {
    /// Takes its value for an evaluation.
    #[doc(hidden)]
    fn take(handle: &Handle<'static, Self>, cx: &Cx) -> Result<Pinned, RefreshError> {
        let _ = cx;
        take_from_cell::<Self, FALLIBLE>(handle, FOREVER)
    }
}

/// What a derived value needs to know of a source that it was made from.
#[allow(unreachable_pub)] // sealed, as `Kind` is
pub trait Followed<const FALLIBLE: bool>:
    Kind<Stored: Send + Sync + 'static> + Send + Sync + Sized + 'static
{
    const IS_DERIVED: bool = false;

    /// Up to when what is made without its value is fresh: for ever, if only others can give it one.
    const FRESH_WHEN_EMPTY: u64 = FOREVER;

    /// See [`Stamp::holds_after_refresh`].
    fn refresh(&self, stamp: &Stamp) -> bool {
        self.machine().holds(stamp.generation)
    }

    /// If [`refresh`](Followed::refresh) has returned true at the tick `now`: before which tick it does so again, unless the
    /// source notifies of a change.
    fn settled_until(&self, stamp: &Stamp, now: u64) -> u64 {
        let _ = (stamp, now);
        FOREVER
    }

    /// All that a value of this generation was made from, but for the source itself; [`None`]: there is a later one.
    fn made_from(&self, generation: u64) -> Option<Arc<[Stamp]>> {
        let _ = generation;
        Some(Arc::new([]))
    }
}

pub(super) struct Erased<S: 'static, const FALLIBLE: bool>(Handle<'static, S>);

/// What a value is made from that is made from this source.
pub(super) fn stamp_of<S: Followed<FALLIBLE>, const FALLIBLE: bool>(
    handle: &Handle<'static, S>,
    generation: u64,
    gave: Gave,
) -> Stamp {
    Stamp { source: Arc::new(Erased::<S, FALLIBLE>(handle.clone())), generation, gave }
}

/// See [`AnySource::state`].
pub(super) fn state_of<S: Followed<FALLIBLE>, const FALLIBLE: bool>(source: &S) -> (u64, u64) {
    let (record, has_value) = source.machine().record();
    if has_value { (record.generation, record.fresh_end()) } else { (0, S::FRESH_WHEN_EMPTY) }
}

pub(super) fn id_of<K: Kind>(cell: &K) -> usize {
    std::ptr::from_ref(cell.machine()).addr()
}

impl<S: Followed<FALLIBLE>, const FALLIBLE: bool> AnySource for Erased<S, FALLIBLE> {
    fn id(&self) -> usize {
        id_of(&*self.0)
    }

    fn state(&self) -> (u64, u64) {
        state_of(&*self.0)
    }

    fn holds_after_refresh(&self, stamp: &Stamp) -> bool {
        self.0.refresh(stamp)
    }

    fn settled_until(&self, stamp: &Stamp, now: u64) -> u64 {
        self.0.settled_until(stamp, now)
    }

    fn pin(&self, stamp: &Stamp) -> Option<Pinned> {
        let machine = self.0.machine();
        if stamp.gave == Gave::Nothing {
            // Of a derived value it is not known here what it has failed at.
            let is_known = !S::IS_DERIVED && machine.holds(stamp.generation);
            return is_known.then(|| Pinned::of_source(stamp.clone(), Err(nothing_to_serve(machine))));
        }
        let (value, record) = machine.held()?;
        let made_from = self.0.made_from(stamp.generation)?;
        let pin = Pinned { stamp: stamp.clone(), value: Ok(value), made_from };
        (record.generation == stamp.generation).then_some(pin)
    }

    fn attach(&self, link: &Arc<Link>) {
        self.0.machine().attach(Arc::<Link>::clone(link) as Arc<dyn Listener<S::Stored>>);
    }

    fn detach(&self, link: &Arc<Link>) {
        self.0.machine().detach(link);
    }

    fn is_derived(&self) -> bool {
        S::IS_DERIVED
    }
}

fn nothing_to_serve<T, C: Clock>(machine: &Machine<T, C>) -> RefreshError {
    machine.last_error().map_or(RefreshError::Empty, RefreshError::Build)
}

/// Takes what a cell holds and may serve, or has published since the generation `since`.
fn take_from_cell<S: Source<FALLIBLE>, const FALLIBLE: bool>(
    handle: &Handle<'static, S>,
    since: u64,
) -> Result<Pinned, RefreshError> {
    let machine = handle.machine();
    let mut is_empty = false;
    loop {
        if let Some(seen) = machine.snapshot()
            && (matches!(seen.freshness(), Freshness::Fresh | Freshness::Stale)
                || seen.record.generation > since)
        {
            let stamp = stamp_of::<S, FALLIBLE>(handle, seen.record.generation, Gave::Published);
            return Ok(Pinned::of_source(stamp, Ok(seen.value)));
        }
        if is_empty {
            return Err(nothing_to_serve(machine));
        }
        // While a build has the write lock, the cell only seems to be empty.
        if machine.is_withheld() && !is_building(machine) {
            if handle.has_guard_of_this_thread() {
                return Err(RefreshError::Reentrant);
            }
            let next = machine.next_change();
            if machine.is_withheld() {
                next.wait(&machine.clock, FOREVER);
            }
        } else {
            is_empty = true;
        }
    }
}

impl Cx {
    /// The source's value.
    ///
    /// A [`DogpileCell`](crate::DogpileCell) or [`SyncReaderCell`](crate::SyncReaderCell) gives what it may serve, fresh or stale. A
    /// [`LazyDogpile`](crate::LazyDogpile) is built if it is due, a [`Derived`](crate::Derived) value is made.
    ///
    /// # Blocking
    ///
    /// Waits for a build only as a caller of the source would: where a `LazyDogpile` has nothing to serve, and while a build has the write
    /// lock of a `SyncReaderCell`. It never waits for another evaluation.
    ///
    /// # Panics
    ///
    /// If there is nothing to serve, if the source's build fails or panics, or if a derived value asks for itself.
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
    /// let sum = Derived::new({
    ///     let double = double.clone();
    ///     move |cx| *cx.get(&double) + *cx.get(&NUMBER)
    /// });
    /// assert_eq!(*sum.get(), 3);
    /// ```
    #[track_caller]
    pub fn get<S: Source<FALLIBLE>, const FALLIBLE: bool>(
        &self,
        source: impl Into<Handle<'static, S>>,
    ) -> S::Shared {
        match self.try_get(source) {
            Ok(value) => value,
            Err(error) => cannot(&error),
        }
    }

    /// As [`get`](Cx::get), with an error instead of a panic.
    ///
    /// # Errors
    ///
    /// [`RefreshError::Empty`] if there is nothing to serve; [`RefreshError::Build`] with the error of the source's build, or of its
    /// latest one; [`RefreshError::Reentrant`] if a derived value asks for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Derived, DogpileCell};
    /// use std::time::Duration;
    ///
    /// static NUMBER: DogpileCell<u32> = DogpileCell::new(Duration::from_secs(60));
    ///
    /// let double = Derived::new(|cx| cx.try_get(&NUMBER).map_or(0, |number| *number * 2));
    /// assert_eq!(*double.get(), 0);
    /// NUMBER.set(1);
    /// assert_eq!(*double.get(), 2);
    /// ```
    pub fn try_get<S: Source<FALLIBLE>, const FALLIBLE: bool>(
        &self,
        source: impl Into<Handle<'static, S>>,
    ) -> Result<S::Shared, RefreshError> {
        let handle: Handle<'static, S> = source.into();
        let (before, _) = state_of::<S, FALLIBLE>(&handle);
        let taken = match self.pinned(id_of(&*handle)) {
            Some(pin) => Ok(pin),
            None => S::take(&handle, self),
        };
        self.give(&handle, before, taken)
    }

    /// What was taken from a source, pinned and noted. `before`: the source's generation before that. It is the stamp of what gives no
    /// value: a value that the source gets while it is asked has a later generation, so it is followed.
    pub(super) fn give<S: Followed<FALLIBLE>, const FALLIBLE: bool>(
        &self,
        handle: &Handle<'static, S>,
        before: u64,
        taken: Result<Pinned, RefreshError>,
    ) -> Result<S::Shared, RefreshError> {
        let pin = match taken {
            Ok(pin) => self.pin(pin),
            // It asks for itself. It is no source of its own: a node with a link to itself would keep itself alive.
            Err(error) if self.is_inside(id_of(&**handle)) => return Err(error),
            // What is made without its value is out of date when it has one.
            Err(error) => self
                .pin(Pinned::of_source(stamp_of::<S, FALLIBLE>(handle, before, Gave::Nothing), Err(error))),
        };
        self.note(&pin.made_from);
        self.note(std::slice::from_ref(&pin.stamp));
        let Ok(value) = pin.value?.downcast::<S::Stored>() else { unreachable!("one address, one source") };
        Ok(S::share(value))
    }
}

#[cold]
#[track_caller]
pub(super) fn cannot(error: &RefreshError) -> ! {
    match error {
        RefreshError::Reentrant => panic!(
            "a derived value asks for itself, directly or by way of others, or for a cell of which this thread holds a ReadGuard, \
             and whose build waits for the write lock"
        ),
        error => panic!("a source of a derived value: {error}; `try_get` returns this as an error"),
    }
}

impl<T: Send + Sync + 'static, C: Clock + Send + Sync + 'static> Followed<false> for DogpileCell<T, C> {}

impl<T: Send + Sync + 'static, C: Clock + Send + Sync + 'static> Source<false> for DogpileCell<T, C> {}

impl<T: Send + Sync + 'static, C: Clock + Send + Sync + 'static> Followed<false> for SyncReaderCell<T, C> {}

impl<T: Send + Sync + 'static, C: Clock + Send + Sync + 'static> Source<false> for SyncReaderCell<T, C> {}

impl<T, F, C, R, const FALLIBLE: bool> Followed<FALLIBLE> for LazyDogpile<T, F, C>
where
    T: Send + Sync + 'static,
    F: Fn() -> R + Send + Sync + 'static,
    R: BuildResult<T, FALLIBLE>,
    C: Clock + Send + Sync + 'static,
{
    const FRESH_WHEN_EMPTY: u64 = 0;

    fn refresh(&self, stamp: &Stamp) -> bool {
        match refresh_lazy(self, 0) {
            // Another caller builds, and there is nothing to serve. That is not waited for: the derived value may be served.
            Err(RefreshError::WaitTimeout) => false,
            // If it has failed, it would make no other now.
            _ => self.machine().holds(stamp.generation),
        }
    }

    fn settled_until(&self, _: &Stamp, _: u64) -> u64 {
        self.machine().due_at()
    }
}

impl<T, F, C, R, const FALLIBLE: bool> Source<FALLIBLE> for LazyDogpile<T, F, C>
where
    T: Send + Sync + 'static,
    F: Fn() -> R + Send + Sync + 'static,
    R: BuildResult<T, FALLIBLE>,
    C: Clock + Send + Sync + 'static,
{
    fn take(handle: &Handle<'static, Self>, _: &Cx) -> Result<Pinned, RefreshError> {
        let since = handle.machine().generation();
        refresh_lazy(handle, FOREVER)?;
        take_from_cell::<Self, FALLIBLE>(handle, since)
    }
}

/// As `try_get_or_refresh`, whatever the build returns. Waits at most for `patience`.
fn refresh_lazy<T, F, C, R, const FALLIBLE: bool>(
    lazy: &LazyDogpile<T, F, C>,
    patience: u64,
) -> Result<(), RefreshError>
where
    F: Fn() -> R,
    R: BuildResult<T, FALLIBLE>,
    C: Clock,
{
    if lazy.machine().serve().is_some() {
        return Ok(());
    }
    let mut search = Search::plain(Handle::Borrowed(lazy), Caller::Fallible);
    search.patience = patience;
    search.try_get(|held| held.try_build_with(|_| (lazy.build)().into_result())).map(drop)
}
