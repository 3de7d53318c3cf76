//! The sides of the pairs that are no contestants of their own: cells in a certain state, and what the reads are held
//! against.

use crate::contest::{Builds, Contestant, Meanwhile, Small, Source, Traits, Value};
use crate::contestants::{Coarse, Timer};
use arc_swap::{ArcSwap, ArcSwapOption};
use dogpile::{Clock, DogpileCell, LazyDogpile, Lease, Lookup, Policy, Reader, SystemClock, Tick, dogpile};
use dogpile_map::DogpileMap;
use parking_lot::Mutex;
use std::error::Error;
use std::fmt;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Not asked of a side.
const NONE: Traits = Traits { expires: false, builds: Builds::One, meanwhile: Meanwhile::Stale };

/// [`SystemClock`] without its coarse reading: each look at a deadline is an exact one.
#[derive(Default)]
pub(super) struct Exact;

impl Clock for Exact {
    #[inline]
    fn now(&self) -> Tick {
        SystemClock.now()
    }
}

/// A cell in a certain state.
pub(super) struct State<C: Clock + 'static> {
    cell: Arc<DogpileCell<Small, C>>,
    source: Source<Small>,
    /// Held, and never used.
    lease: Option<Lease<'static, Small, C>>,
}

/// Over before the next look.
const MOMENT: Duration = Duration::from_nanos(1);

impl<C: Clock + Default> State<C> {
    fn with(policy: Policy) -> Self {
        let cell = Arc::new(DogpileCell::with_clock(policy, C::default()));
        Self { cell, source: Source::idle(), lease: None }
    }

    pub(super) fn timeless() -> Self {
        Self::with(Policy::never_expires())
    }

    /// The value is stale, and a build runs.
    pub(super) fn building() -> Self {
        let mut state = Self::with(Policy::ttl(MOMENT));
        state.cell.set(Small::make(1));
        state.lease = Some(state.elected());
        state
    }

    /// The value is stale, the latest build has failed, and a retry pause runs.
    pub(super) fn pausing() -> Self {
        let state = Self::with(Policy::ttl(MOMENT).retry_backoff(super::LONG, super::LONG));
        state.cell.set(Small::make(1));
        state.elected().fail(fmt::Error);
        state
    }

    /// As soon as the value is stale.
    fn elected(&self) -> Lease<'static, Small, C> {
        loop {
            if let Lookup::Elected(lease) = self.cell.lookup_owned() {
                return lease;
            }
        }
    }
}

/// A read of the cell, however it is.
pub(super) struct Get<C: Clock + 'static>(pub(super) State<C>);
pub(super) struct Load<C: Clock + 'static>(pub(super) State<C>);
pub(super) struct Read<C: Clock + 'static>(pub(super) State<C>);

macro_rules! read_of_cell {
    ($Name:ident, $method:ident) => {
        impl<C: Clock + Default + 'static> Contestant<Small> for $Name<C> {
            type Handle<'a> = &'a Self;
            const TRAITS: Traits = NONE;

            fn new(ttl: Duration, _source: Source<Small>) -> Self {
                Self(State::with(Policy::ttl(ttl)))
            }

            fn source(&self) -> &Source<Small> {
                &self.0.source
            }

            fn handle(&self) -> &Self {
                self
            }

            #[inline(always)]
            fn read(own: &mut &Self) -> u64 {
                own.0.cell.$method(|| own.0.source.build()).number()
            }
        }
    };
}

read_of_cell!(Get, get_or_refresh);
read_of_cell!(Load, load_or_refresh);

pub(super) struct ReadHandle<'a, C> {
    reader: Reader<'a, Small, C>,
    source: &'a Source<Small>,
}

impl<C: Clock + Default + 'static> Contestant<Small> for Read<C> {
    type Handle<'a> = ReadHandle<'a, C>;
    const TRAITS: Traits = NONE;

    fn new(ttl: Duration, _source: Source<Small>) -> Self {
        Self(State::with(Policy::ttl(ttl)))
    }

    fn source(&self) -> &Source<Small> {
        &self.0.source
    }

    fn handle(&self) -> ReadHandle<'_, C> {
        ReadHandle { reader: self.0.cell.reader(), source: &self.0.source }
    }

    #[inline(always)]
    fn read(handle: &mut ReadHandle<'_, C>) -> u64 {
        handle.reader.get_or_refresh(|| handle.source.build()).number()
    }
}

/// An owned value, through a reader.
pub(super) struct Own<C: Clock + 'static>(pub(super) State<C>);

impl<C: Clock + Default + 'static> Contestant<Small> for Own<C> {
    type Handle<'a> = ReadHandle<'a, C>;
    const TRAITS: Traits = NONE;

    fn new(ttl: Duration, _source: Source<Small>) -> Self {
        Self(State::with(Policy::ttl(ttl)))
    }

    fn source(&self) -> &Source<Small> {
        &self.0.source
    }

    fn handle(&self) -> ReadHandle<'_, C> {
        ReadHandle { reader: self.0.cell.reader(), source: &self.0.source }
    }

    #[inline(always)]
    fn read(handle: &mut ReadHandle<'_, C>) -> u64 {
        black_box(handle.reader.get_owned_or_refresh(|| handle.source.build())).number()
    }
}

/// What has no source of its own.
macro_rules! side {
    ($Name:ident { $($field:ident: $Type:ty = $value:expr),* }, |$own:ident| $read:expr) => {
        pub(super) struct $Name {
            source: Source<Small>,
            $($field: $Type,)*
        }

        impl Contestant<Small> for $Name {
            type Handle<'a> = &'a Self;
            const TRAITS: Traits = NONE;

            fn new(_ttl: Duration, source: Source<Small>) -> Self {
                Self { source, $($field: $value,)* }
            }

            fn source(&self) -> &Source<Small> {
                &self.source
            }

            fn handle(&self) -> &Self {
                self
            }

            #[inline(always)]
            fn read($own: &mut &Self) -> u64 {
                $read
            }
        }
    };
}

fn long() -> u64 {
    Coarse::after(super::LONG)
}

// The least that a read with a ttl can be made of: the slot, one reading of the coarse clock, one comparison with a
// deadline that stands beside the slot and is never moved.
side!(BareFull { slot: ArcSwapOption<Small> = ArcSwapOption::from_pointee(Small::make(1)), until: u64 = long() }, |own| {
    match own.slot.load_full() {
        Some(value) if Coarse::now() < own.until => value.number(),
        _ => own.source.build().number(),
    }
});
side!(BareLoad { slot: ArcSwapOption<Small> = ArcSwapOption::from_pointee(Small::make(1)), until: u64 = long() }, |own| {
    match &*own.slot.load() {
        Some(value) if Coarse::now() < own.until => value.number(),
        _ => own.source.build().number(),
    }
});

/// The same through an `arc_swap::Cache`, with or without the clock.
pub(super) struct BareCache<const CLOCK: bool> {
    slot: ArcSwapOption<Small>,
    until: u64,
    source: Source<Small>,
}

pub(super) struct BareCacheHandle<'a> {
    cache: arc_swap::Cache<&'a ArcSwapOption<Small>, Option<Arc<Small>>>,
    until: u64,
    source: &'a Source<Small>,
}

impl<const CLOCK: bool> Contestant<Small> for BareCache<CLOCK> {
    type Handle<'a> = BareCacheHandle<'a>;
    const TRAITS: Traits = NONE;

    fn new(_ttl: Duration, source: Source<Small>) -> Self {
        Self { slot: ArcSwapOption::from_pointee(Small::make(1)), until: long(), source }
    }

    fn source(&self) -> &Source<Small> {
        &self.source
    }

    fn handle(&self) -> BareCacheHandle<'_> {
        let cache = arc_swap::Cache::new(&self.slot);
        BareCacheHandle { cache, until: self.until, source: &self.source }
    }

    #[inline(always)]
    fn read(handle: &mut BareCacheHandle<'_>) -> u64 {
        match handle.cache.load() {
            Some(value) if !CLOCK || Coarse::now() < handle.until => value.number(),
            _ => handle.source.build().number(),
        }
    }
}

/// What a cache by thread comes down to, written by hand, so that nothing of it can be left as a call: a value at hand,
/// and a version that tells whether it is still the right one; with or without the clock.
pub(super) struct ByHand<const CLOCK: bool> {
    version: AtomicU64,
    value: Arc<Small>,
    until: u64,
    source: Source<Small>,
}

pub(super) struct ByHandHandle<'a> {
    version: &'a AtomicU64,
    seen: u64,
    value: Arc<Small>,
    until: u64,
    source: &'a Source<Small>,
}

impl<const CLOCK: bool> Contestant<Small> for ByHand<CLOCK> {
    type Handle<'a> = ByHandHandle<'a>;
    const TRAITS: Traits = NONE;

    fn new(_ttl: Duration, source: Source<Small>) -> Self {
        Self { version: AtomicU64::new(1), value: Arc::new(Small::make(1)), until: long(), source }
    }

    fn source(&self) -> &Source<Small> {
        &self.source
    }

    fn handle(&self) -> ByHandHandle<'_> {
        let value = Arc::clone(&self.value);
        ByHandHandle { version: &self.version, seen: 1, value, until: self.until, source: &self.source }
    }

    #[inline(always)]
    fn read(handle: &mut ByHandHandle<'_>) -> u64 {
        if handle.version.load(Ordering::Acquire) == handle.seen && (!CLOCK || Coarse::now() < handle.until) {
            return handle.value.number();
        }
        handle.source.build().number()
    }
}

// Reads without a handle, of cells in statics.
static LASTING: LazyDogpile<Small> = LazyDogpile::new(super::LONG, || Small::make(1));
dogpile::local!(static LOCAL_LASTING: Small = LASTING);
static EVERLASTING: LazyDogpile<Small> = LazyDogpile::with_policy(Policy::never_expires(), || Small::make(1));
dogpile::local!(static LOCAL_EVERLASTING: Small = EVERLASTING);

#[dogpile(ttl = super::LONG)]
fn lasting() -> Small {
    Small::make(1)
}

/// The same for keys, with the map that is under it, and `cached`'s.
pub(super) const ENTRIES: usize = 1_000;

static KEYED: LazyLock<DogpileMap<u64, Small>> =
    LazyLock::new(|| DogpileMap::builder(Policy::ttl(super::LONG)).max_entries(ENTRIES).build());

#[dogpile_map::dogpile(ttl = super::LONG, max_entries = ENTRIES)]
fn keyed(key: u64) -> Small {
    Small::make(key)
}

#[dogpile_map::dogpile(ttl = super::LONG, max_entries = ENTRIES)]
fn keyed_by_text(key: &str) -> Small {
    Small::make(key.len() as u64)
}

// `sync_writes`, which keeps a second caller from building.
#[cached::macros::cached(ttl_secs = 3600, max_size = 1_000, sync_writes = true, companions = false)]
fn cached_keyed(key: u64) -> Arc<Small> {
    Arc::new(Small::make(key))
}

#[cached::macros::cached(
    ttl_secs = 3600,
    max_size = 1_000,
    sync_writes = true,
    companions = false,
    key = "String",
    convert = "{ key.to_owned() }"
)]
fn cached_keyed_by_text(key: &str) -> Arc<Small> {
    Arc::new(Small::make(key.len() as u64))
}

side!(AttributeKeyed {}, |_own| keyed(black_box(7)).number());
side!(MapKeyed {}, |_own| KEYED.get_or_refresh(&black_box(7), |key| Small::make(*key)).number());
side!(CachedKeyed {}, |_own| cached_keyed(black_box(7)).number());
side!(AttributeKeyedByText {}, |_own| keyed_by_text(black_box("seven")).number());
side!(CachedKeyedByText {}, |_own| cached_keyed_by_text(black_box("seven")).number());

side!(LocalWith {}, |_own| LOCAL_LASTING.with(Value::number));
side!(LocalTimeless {}, |_own| LOCAL_EVERLASTING.with(Value::number));
side!(Attribute {}, |_own| black_box(lasting()).number());
side!(AttributeWith {}, |_own| lasting::with(Value::number));

side!(MokaGet {
    cache: moka::sync::Cache<(), Arc<Small>> = {
        let cache = moka::sync::Cache::builder().max_capacity(1).time_to_live(super::LONG).build();
        cache.insert((), Arc::new(Small::make(1)));
        cache
    }
}, |own| {
    match own.cache.get(&()) {
        Some(value) => value.number(),
        None => own.source.build().number(),
    }
});

// Publications. The number comes from the address of the cell, so that it is nothing the compiler knows.
side!(Set { cell: DogpileCell<Small> = DogpileCell::new(super::LONG) }, |own| {
    own.cell.set(Small::make(seed(own))).number()
});
side!(Swap { slot: ArcSwap<Small> = ArcSwap::from_pointee(Small::make(1)) }, |own| {
    let number = seed(own);
    drop(own.slot.swap(Arc::new(Small::make(number))));
    number
});
side!(Publish { cell: DogpileCell<Small> = DogpileCell::new(Duration::ZERO) }, |own| {
    loop {
        if let Lookup::Elected(lease) = own.cell.lookup() {
            return lease.publish(Small::make(seed(own))).number();
        }
    }
});
// Without retry pauses, so that each lookup is elected.
side!(Fail {
    cell: DogpileCell<Small> =
        DogpileCell::with_policy(Policy::ttl(super::LONG).retry_backoff(Duration::ZERO, Duration::ZERO))
}, |own| {
    let number = seed(*own);
    match own.cell.lookup() {
        Lookup::Elected(lease) => {
            lease.fail(Failed(number)).downcast_ref::<Failed>().map_or(0, |failed| failed.0)
        }
        _ => own.source.build().number(),
    }
});

/// An error as large as a word.
#[derive(Debug)]
struct Failed(u64);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed: {}", self.0)
    }
}

impl Error for Failed {}

fn seed<T>(own: &T) -> u64 {
    std::ptr::from_ref(own).addr() as u64
}

// What all of these are made of.
side!(Nothing {}, |own| seed(*own));
side!(InstantNow { start: Instant = Instant::now() }, |own| u64::from(Instant::now() < own.start));
side!(Now {}, |_own| SystemClock.now().as_nanos());
side!(KernelCoarse {}, |_own| Coarse::now());
side!(CoarseNow {}, |_own| SystemClock.coarse_now().as_nanos());
side!(Lock { kept: Mutex<u64> = Mutex::new(1) }, |own| *own.kept.lock());
side!(Allocation {}, |own| black_box(Arc::new(Small::make(seed(*own)))).number());
side!(Count { kept: Arc<Small> = Arc::new(Small::make(1)) }, |own| {
    black_box(Arc::clone(&own.kept)).number()
});
side!(Arithmetic {}, |own| {
    let mut state = seed(*own);
    for _ in 0..8 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).rotate_left(7);
    }
    state
});
