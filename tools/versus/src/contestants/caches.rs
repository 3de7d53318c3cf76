//! Caches of keys with one key, and memoisation.

use super::{Coarse, Stamped};
use crate::contest::{Builds, Contestant, Large, Meanwhile, Small, Source, Traits, Value};
use cached::macros::once;
use once_cell::sync::OnceCell;
use quick_cache::sync::{EntryAction, EntryResult};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The library elects one caller; the others wait for it.
const ELECTED: Traits = Traits { expires: true, builds: Builds::One, meanwhile: Meanwhile::Waits };

/// `moka::sync::Cache` with `time_to_live`.
pub(crate) struct Moka<V> {
    cache: moka::sync::Cache<(), Arc<V>>,
    source: Source<V>,
}

impl<V: Value> Contestant<V> for Moka<V> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = ELECTED;

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { cache: moka::sync::Cache::builder().max_capacity(1).time_to_live(ttl).build(), source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(cell: &mut &Self) -> u64 {
        cell.cache.get_with((), || Arc::new(cell.source.build())).number()
    }
}

/// `quick_cache`, which has no ttl: the moment is kept with the value, and the library elects who replaces it.
pub(crate) struct QuickCache<V> {
    cache: quick_cache::sync::Cache<(), Arc<Stamped<V, Coarse>>>,
    ttl: Duration,
    source: Source<V>,
}

impl<V: Value> QuickCache<V> {
    #[cold]
    fn replace(&self) -> u64 {
        let look = |(): &(), value: &mut Arc<Stamped<V, Coarse>>| {
            if value.is_fresh() {
                EntryAction::Retain(Arc::clone(value))
            } else {
                EntryAction::ReplaceWithGuard
            }
        };
        match self.cache.entry(&(), None, look) {
            EntryResult::Retained(value) => value.value.number(),
            EntryResult::Replaced(guard, _) | EntryResult::Vacant(guard) => {
                let value = Arc::new(Stamped::new(self.source.build(), self.ttl));
                // The value comes back if the cache was cleared meanwhile, which nobody does here.
                let _ = guard.insert(Arc::clone(&value));
                value.value.number()
            }
            EntryResult::Removed(..) | EntryResult::Timeout => {
                unreachable!("nothing is removed, and there is no timeout")
            }
        }
    }
}

impl<V: Value> Contestant<V> for QuickCache<V> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = ELECTED;

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { cache: quick_cache::sync::Cache::new(16), ttl, source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(cell: &mut &Self) -> u64 {
        match cell.cache.get(&()) {
            Some(value) if value.is_fresh() => value.value.number(),
            _ => cell.replace(),
        }
    }
}

/// A function under `#[once]`. The macro keeps its value in a static, so there is one for each type of value, and one
/// contestant at a time that uses it.
pub(crate) trait Once: Sized {
    fn once(source: &Source<Self>) -> Arc<Self>;

    fn forget();

    fn ttl() -> &'static Ttl;
}

/// The ttl of such a function, which a user would write down as a number. In two words, so that no division is added
/// to each read.
pub(crate) struct Ttl {
    seconds: AtomicU64,
    nanos: AtomicU32,
}

impl Ttl {
    const fn new() -> Self {
        Self { seconds: AtomicU64::new(0), nanos: AtomicU32::new(0) }
    }

    fn set(&self, ttl: Duration) {
        // Relaxed, here and below: set before the threads that read it are started.
        self.seconds.store(ttl.as_secs(), Ordering::Relaxed);
        self.nanos.store(ttl.subsec_nanos(), Ordering::Relaxed);
    }

    #[inline]
    fn get(&self) -> Duration {
        Duration::new(self.seconds.load(Ordering::Relaxed), self.nanos.load(Ordering::Relaxed))
    }
}

macro_rules! once_for {
    ($Value:ty, $module:ident) => {
        mod $module {
            use super::*;

            pub(super) static TTL: Ttl = Ttl::new();

            #[once(ttl = "TTL.get()", sync_writes = true, companions = false)]
            pub(super) fn value(source: &Source<$Value>) -> Arc<$Value> {
                Arc::new(source.build())
            }
        }

        impl Once for $Value {
            #[inline]
            fn once(source: &Source<Self>) -> Arc<Self> {
                $module::value(source)
            }

            fn forget() {
                *$module::VALUE.write() = None;
            }

            fn ttl() -> &'static Ttl {
                &$module::TTL
            }
        }
    };
}

once_for!(Small, small);
once_for!(Large, large);

/// `cached`'s `#[once]` with `ttl`, and with `sync_writes`, which keeps a second caller from building.
pub(crate) struct CachedOnce<V> {
    source: Source<V>,
    values: PhantomData<V>,
}

impl<V: Value> Contestant<V> for CachedOnce<V> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = ELECTED;

    fn new(ttl: Duration, source: Source<V>) -> Self {
        V::forget();
        V::ttl().set(ttl);
        Self { source, values: PhantomData }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(cell: &mut &Self) -> u64 {
        V::once(&cell.source).number()
    }
}

/// `once_cell::sync::OnceCell`: built once, never out of date.
pub(crate) struct Floor<V> {
    cell: OnceCell<V>,
    source: Source<V>,
}

impl<V: Value> Contestant<V> for Floor<V> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = Traits { expires: false, builds: Builds::One, meanwhile: Meanwhile::Waits };

    fn new(_ttl: Duration, source: Source<V>) -> Self {
        Self { cell: OnceCell::new(), source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(cell: &mut &Self) -> u64 {
        cell.cell.get_or_init(|| cell.source.build()).number()
    }
}
