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
use super::stamp::{AnySource, AnyValue, Gave, Link, Pinned, Stamp};

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
    fn refresh(&self, generation: u64, gave: Gave) -> bool {
        let _ = gave;
        self.machine().holds(generation)
    }

    /// If [`refresh`](Followed::refresh) has returned true at the tick `now`: before which tick it does so again, unless the
    /// source notifies of a change.
    fn settled_until(&self, gave: Gave, now: u64) -> u64 {
        let _ = (gave, now);
        FOREVER
    }

    /// All that a value of this generation was made from, but for the source itself; [`None`]: there is a later one.
    fn made_from(&self, generation: u64) -> Option<Arc<[Stamp]>> {
        let _ = generation;
        Some(Arc::new([]))
    }
}

pub(super) struct Erased<S: 'static, const FALLIBLE: bool>(Handle<'static, S>);

pub(super) fn erase<S: Followed<FALLIBLE>, const FALLIBLE: bool>(
    handle: &Handle<'static, S>,
) -> Arc<dyn AnySource> {
    Arc::new(Erased(handle.clone()))
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

    fn holds_after_refresh(&self, generation: u64, gave: Gave) -> bool {
        self.0.refresh(generation, gave)
    }

    fn settled_until(&self, gave: Gave, now: u64) -> u64 {
        self.0.settled_until(gave, now)
    }

    fn pin_at(&self, generation: u64, gave: Gave) -> Option<Pinned> {
        let machine = self.0.machine();
        let id = self.id();
        let own = Stamp { source: erase::<S, FALLIBLE>(&self.0), generation, gave };
        if gave == Gave::Nothing {
            // Of a derived value it is not known here what it has failed at.
            let is_known = !S::IS_DERIVED && machine.holds(generation);
            let value = Err(nothing_to_serve(machine));
            return is_known.then(|| Pinned { id, generation, value, stamps: Arc::new([own]) });
        }
        let (value, record) = machine.held()?;
        let value: AnyValue = value;
        let made_from = self.0.made_from(generation)?;
        let stamps = made_from.iter().cloned().chain([own]).collect();
        (record.generation == generation).then_some(Pinned { id, generation, value: Ok(value), stamps })
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
            let generation = seen.record.generation;
            let stamps =
                Arc::new([Stamp { source: erase::<S, FALLIBLE>(handle), generation, gave: Gave::Published }]);
            let value: AnyValue = seen.value;
            return Ok(Pinned { id: id_of(&**handle), generation, value: Ok(value), stamps });
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

    fn refresh(&self, generation: u64, _: Gave) -> bool {
        match refresh_lazy(self, 0) {
            // Another caller builds, and there is nothing to serve. That is not waited for: the derived value may be served.
            Err(RefreshError::WaitTimeout) => false,
            // If it has failed, it would make no other now.
            _ => self.machine().holds(generation),
        }
    }

    fn settled_until(&self, _: Gave, _: u64) -> u64 {
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
    search.try_get(|held| held.try_build_with(|_| (lazy.builder())().into_result())).map(drop)
}
