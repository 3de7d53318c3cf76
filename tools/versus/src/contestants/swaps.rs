//! The value in something that is read without a lock, and a ttl that is checked by hand.

use super::{Coarse, Stamped, Timer};
use crate::contest::{Builds, Contestant, Meanwhile, Source, Traits, Value};
use arc_swap::ArcSwapOption;
use arcshift::ArcShift;
use hazarc::AtomicOptionArc;
use left_right::{Absorb, ReadHandle, ReadHandleFactory, WriteHandle};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Nothing tells a caller that another one builds already.
const fn unprotected<T: Timer>() -> Traits {
    Traits { expires: T::EXPIRES, builds: Builds::Everybody, meanwhile: Meanwhile::Waits }
}

/// `ArcSwapOption::load_full`.
pub(crate) struct SwapFull<V, T: Timer> {
    slot: ArcSwapOption<Stamped<V, T>>,
    ttl: Duration,
    source: Source<V>,
}

/// Builds, whoever else does, and stores the result.
#[cold]
fn replace<V: Value, T: Timer>(
    slot: &ArcSwapOption<Stamped<V, T>>,
    source: &Source<V>,
    ttl: Duration,
) -> u64 {
    let value = Arc::new(Stamped::new(source.build(), ttl));
    let number = value.value.number();
    slot.store(Some(value));
    number
}

impl<V: Value, T: Timer> Contestant<V> for SwapFull<V, T> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = unprotected::<T>();

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { slot: ArcSwapOption::const_empty(), ttl, source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(cell: &mut &Self) -> u64 {
        match cell.slot.load_full() {
            Some(value) if value.is_fresh() => value.value.number(),
            _ => replace(&cell.slot, &cell.source, cell.ttl),
        }
    }
}

/// `ArcSwapOption::load`.
pub(crate) struct SwapLoad<V, T: Timer> {
    slot: ArcSwapOption<Stamped<V, T>>,
    ttl: Duration,
    source: Source<V>,
}

impl<V: Value, T: Timer> Contestant<V> for SwapLoad<V, T> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = unprotected::<T>();

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { slot: ArcSwapOption::const_empty(), ttl, source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(cell: &mut &Self) -> u64 {
        if let Some(value) = &*cell.slot.load()
            && value.is_fresh()
        {
            return value.value.number();
        }
        replace(&cell.slot, &cell.source, cell.ttl)
    }
}

/// `arc_swap::Cache`: each thread keeps the `Arc`.
pub(crate) struct SwapCache<V, T: Timer> {
    slot: ArcSwapOption<Stamped<V, T>>,
    ttl: Duration,
    source: Source<V>,
}

type Cached<'a, S> = arc_swap::Cache<&'a ArcSwapOption<S>, Option<Arc<S>>>;

pub(crate) struct SwapCacheHandle<'a, V, T: Timer> {
    cell: &'a SwapCache<V, T>,
    cache: Cached<'a, Stamped<V, T>>,
}

impl<V: Value, T: Timer> Contestant<V> for SwapCache<V, T> {
    type Handle<'a> = SwapCacheHandle<'a, V, T>;
    const TRAITS: Traits = unprotected::<T>();

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { slot: ArcSwapOption::const_empty(), ttl, source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> SwapCacheHandle<'_, V, T> {
        SwapCacheHandle { cell: self, cache: arc_swap::Cache::new(&self.slot) }
    }

    #[inline(always)]
    fn read(handle: &mut SwapCacheHandle<'_, V, T>) -> u64 {
        if let Some(value) = handle.cache.load()
            && value.is_fresh()
        {
            return value.value.number();
        }
        replace(&handle.cell.slot, &handle.cell.source, handle.cell.ttl)
    }
}

/// `hazarc::AtomicOptionArc::load`.
pub(crate) struct HazarcLoad<V> {
    slot: AtomicOptionArc<Stamped<V, Coarse>>,
    ttl: Duration,
    source: Source<V>,
}

#[cold]
fn replace_in_hazarc<V: Value>(
    slot: &AtomicOptionArc<Stamped<V, Coarse>>,
    source: &Source<V>,
    ttl: Duration,
) -> u64 {
    let value = Arc::new(Stamped::new(source.build(), ttl));
    let number = value.value.number();
    slot.store(Some(value));
    number
}

impl<V: Value> Contestant<V> for HazarcLoad<V> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = unprotected::<Coarse>();

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { slot: AtomicOptionArc::none(), ttl, source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(cell: &mut &Self) -> u64 {
        if let Some(value) = cell.slot.load()
            && value.is_fresh()
        {
            return value.value.number();
        }
        replace_in_hazarc(&cell.slot, &cell.source, cell.ttl)
    }
}

/// `hazarc::Cache`: each thread keeps the `Arc`.
pub(crate) struct HazarcCache<V> {
    slot: AtomicOptionArc<Stamped<V, Coarse>>,
    ttl: Duration,
    source: Source<V>,
}

pub(crate) struct HazarcHandle<'a, V: 'static> {
    cell: &'a HazarcCache<V>,
    cache: hazarc::Cache<&'a AtomicOptionArc<Stamped<V, Coarse>>>,
}

impl<V: Value> Contestant<V> for HazarcCache<V> {
    type Handle<'a> = HazarcHandle<'a, V>;
    const TRAITS: Traits = unprotected::<Coarse>();

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { slot: AtomicOptionArc::none(), ttl, source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> HazarcHandle<'_, V> {
        HazarcHandle { cell: self, cache: hazarc::Cache::new(&self.slot) }
    }

    #[inline(always)]
    fn read(handle: &mut HazarcHandle<'_, V>) -> u64 {
        if let Some(value) = handle.cache.load()
            && value.is_fresh()
        {
            return value.value.number();
        }
        replace_in_hazarc(&handle.cell.slot, &handle.cell.source, handle.cell.ttl)
    }
}

/// `ArcShift`: each thread has an instance of its own, which moves on to the newest value when it is read.
pub(crate) struct Shift<V: 'static> {
    first: ArcShift<Option<Stamped<V, Coarse>>>,
    ttl: Duration,
    source: Source<V>,
}

pub(crate) struct ShiftHandle<'a, V: 'static> {
    cell: &'a Shift<V>,
    own: ArcShift<Option<Stamped<V, Coarse>>>,
}

impl<V: Value> ShiftHandle<'_, V> {
    #[cold]
    fn replace(&mut self) -> u64 {
        let value = Stamped::new(self.cell.source.build(), self.cell.ttl);
        let number = value.value.number();
        self.own.update(Some(value));
        number
    }
}

impl<V: Value> Contestant<V> for Shift<V> {
    type Handle<'a> = ShiftHandle<'a, V>;
    const TRAITS: Traits = unprotected::<Coarse>();

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { first: ArcShift::new(None), ttl, source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> ShiftHandle<'_, V> {
        ShiftHandle { cell: self, own: self.first.clone() }
    }

    #[inline(always)]
    fn read(handle: &mut ShiftHandle<'_, V>) -> u64 {
        match handle.own.get() {
            Some(value) if value.is_fresh() => value.value.number(),
            _ => handle.replace(),
        }
    }
}

/// One of the two copies that left-right keeps: of the `Arc`, not of the value.
pub(crate) struct Copied<V>(Option<Arc<Stamped<V, Coarse>>>);

impl<V> Clone for Copied<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V> Absorb<Arc<Stamped<V, Coarse>>> for Copied<V> {
    fn absorb_first(&mut self, new: &mut Arc<Stamped<V, Coarse>>, _other: &Self) {
        self.0 = Some(Arc::clone(new));
    }

    fn sync_with(&mut self, first: &Self) {
        self.0.clone_from(&first.0);
    }
}

type Writer<V> = WriteHandle<Copied<V>, Arc<Stamped<V, Coarse>>>;

/// `left_right`: the one writer that there can be is behind a mutex, under which the value is built.
pub(crate) struct LeftRight<V> {
    writer: Mutex<Writer<V>>,
    handles: ReadHandleFactory<Copied<V>>,
    ttl: Duration,
    source: Source<V>,
}

pub(crate) struct LeftRightHandle<'a, V> {
    cell: &'a LeftRight<V>,
    own: ReadHandle<Copied<V>>,
}

impl<V: Value> LeftRightHandle<'_, V> {
    #[inline]
    fn fresh(&self) -> Option<u64> {
        let copy = self.own.enter()?;
        copy.0.as_ref().filter(|value| value.is_fresh()).map(|value| value.value.number())
    }

    #[cold]
    fn replace(&self) -> u64 {
        let mut writer = self.cell.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.fresh().unwrap_or_else(|| {
            let value = Arc::new(Stamped::new(self.cell.source.build(), self.cell.ttl));
            let number = value.value.number();
            writer.append(value).publish();
            number
        })
    }
}

impl<V: Value> Contestant<V> for LeftRight<V> {
    type Handle<'a> = LeftRightHandle<'a, V>;
    const TRAITS: Traits = Traits { expires: true, builds: Builds::One, meanwhile: Meanwhile::Waits };

    fn new(ttl: Duration, source: Source<V>) -> Self {
        let (writer, reader) = left_right::new_from_empty(Copied(None));
        Self { writer: Mutex::new(writer), handles: reader.factory(), ttl, source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> LeftRightHandle<'_, V> {
        LeftRightHandle { cell: self, own: self.handles.handle() }
    }

    #[inline(always)]
    fn read(handle: &mut LeftRightHandle<'_, V>) -> u64 {
        match handle.fresh() {
            Some(number) => number,
            None => handle.replace(),
        }
    }
}

/// `tokio::sync::watch`: a receiver for each thread, which looks at the value where it is.
pub(crate) struct Watch<V> {
    sender: watch::Sender<Option<Stamped<V, Coarse>>>,
    ttl: Duration,
    source: Source<V>,
}

pub(crate) struct WatchHandle<'a, V> {
    cell: &'a Watch<V>,
    receiver: watch::Receiver<Option<Stamped<V, Coarse>>>,
}

impl<V: Value> Watch<V> {
    #[cold]
    fn replace(&self) -> u64 {
        let value = Stamped::new(self.source.build(), self.ttl);
        let number = value.value.number();
        self.sender.send_replace(Some(value));
        number
    }
}

impl<V: Value> Contestant<V> for Watch<V> {
    type Handle<'a> = WatchHandle<'a, V>;
    const TRAITS: Traits = unprotected::<Coarse>();

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { sender: watch::Sender::new(None), ttl, source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> WatchHandle<'_, V> {
        WatchHandle { cell: self, receiver: self.sender.subscribe() }
    }

    #[inline(always)]
    fn read(handle: &mut WatchHandle<'_, V>) -> u64 {
        if let Some(value) = &*handle.receiver.borrow()
            && value.is_fresh()
        {
            return value.value.number();
        }
        handle.cell.replace()
    }
}
