//! This crate's own reads.

use crate::contest::{Builds, Contestant, Meanwhile, Source, Traits, Value};
use dogpile::{Clock, DogpileCell, LazyDogpile, Policy, Reader, SyncReaderCell, SystemClock, TickClock};
use std::sync::Arc;
use std::time::Duration;

const EXPIRES: Traits = Traits { expires: true, builds: Builds::One, meanwhile: Meanwhile::Stale };

/// `DogpileCell::get_or_refresh`.
pub(crate) struct GetOrRefresh<V, C = SystemClock> {
    pub(crate) cell: DogpileCell<V, C>,
    pub(crate) source: Source<V>,
}

impl<V: Value, C: Clock + Default> Contestant<V> for GetOrRefresh<V, C> {
    type Handle<'a>
        = &'a Self
    where
        C: 'a;
    const TRAITS: Traits = EXPIRES;

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { cell: DogpileCell::with_clock(Policy::ttl(ttl), C::default()), source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(own: &mut &Self) -> u64 {
        own.cell.get_or_refresh(|| own.source.build()).number()
    }
}

/// `DogpileCell::load_or_refresh`.
pub(crate) struct LoadOrRefresh<V, C = SystemClock> {
    pub(crate) cell: DogpileCell<V, C>,
    pub(crate) source: Source<V>,
}

impl<V: Value, C: Clock + Default> Contestant<V> for LoadOrRefresh<V, C> {
    type Handle<'a>
        = &'a Self
    where
        C: 'a;
    const TRAITS: Traits = EXPIRES;

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { cell: DogpileCell::with_clock(Policy::ttl(ttl), C::default()), source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(own: &mut &Self) -> u64 {
        own.cell.load_or_refresh(|| own.source.build()).number()
    }
}

/// `Reader::get_or_refresh`.
pub(crate) struct ReadThrough<V, C, const TIMELESS: bool = false> {
    pub(crate) cell: DogpileCell<V, C>,
    pub(crate) source: Source<V>,
}

pub(crate) type ThroughReader<V> = ReadThrough<V, SystemClock>;
pub(crate) type ThroughTickReader<V> = ReadThrough<V, TickClock>;
pub(crate) type ThroughTimelessReader<V> = ReadThrough<V, SystemClock, true>;

pub(crate) struct ReadThroughHandle<'a, V, C> {
    reader: Reader<'a, V, C>,
    source: &'a Source<V>,
}

impl<V: Value, C: Clock + Default, const TIMELESS: bool> Contestant<V> for ReadThrough<V, C, TIMELESS> {
    type Handle<'a>
        = ReadThroughHandle<'a, V, C>
    where
        C: 'a;
    const TRAITS: Traits = Traits { expires: !TIMELESS, ..EXPIRES };

    fn new(ttl: Duration, source: Source<V>) -> Self {
        let policy = if TIMELESS { Policy::never_expires() } else { Policy::ttl(ttl) };
        Self { cell: DogpileCell::with_clock(policy, C::default()), source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> ReadThroughHandle<'_, V, C> {
        ReadThroughHandle { reader: self.cell.reader(), source: &self.source }
    }

    #[inline(always)]
    fn read(handle: &mut ReadThroughHandle<'_, V, C>) -> u64 {
        handle.reader.get_or_refresh(|| handle.source.build()).number()
    }
}

/// `LazyDogpile::get_or_refresh`.
pub(crate) struct Lazy<V> {
    cell: LazyDogpile<V, Box<dyn Fn() -> V + Send + Sync>>,
    source: Arc<Source<V>>,
}

impl<V: Value> Contestant<V> for Lazy<V> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = EXPIRES;

    fn new(ttl: Duration, source: Source<V>) -> Self {
        let source = Arc::new(source);
        let builder = Arc::clone(&source);
        Self { cell: LazyDogpile::new(ttl, Box::new(move || builder.build())), source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(own: &mut &Self) -> u64 {
        own.cell.get_or_refresh().number()
    }
}

/// `SyncReaderCell::get_or_refresh`, with a finalizer that drops the value.
pub(crate) struct SyncGet<V: 'static> {
    cell: SyncReaderCell<V>,
    source: Source<V>,
}

impl<V: Value> Contestant<V> for SyncGet<V> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = EXPIRES;

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { cell: SyncReaderCell::new(ttl, drop), source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(own: &mut &Self) -> u64 {
        own.cell.get_or_refresh(|| own.source.build()).number()
    }
}

/// `SyncReaderCell::load_or_refresh`, with a finalizer that drops the value.
pub(crate) struct SyncLoad<V: 'static> {
    cell: SyncReaderCell<V>,
    source: Source<V>,
}

impl<V: Value> Contestant<V> for SyncLoad<V> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = EXPIRES;

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { cell: SyncReaderCell::new(ttl, drop), source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(own: &mut &Self) -> u64 {
        own.cell.load_or_refresh(|| own.source.build()).number()
    }
}
