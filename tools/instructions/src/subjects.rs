//! What is counted: each read and write of the crate, and beside them the same done by hand.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwapOption, Cache};
use dogpile::{
    Clock, Derived, DogpileCell, Drain, LazyDogpile, Lookup, Policy, SyncReaderCell, SystemClock, Tick,
    TickClock, dogpile,
};
use rustix::time::{ClockId, clock_gettime};

const HOUR: Duration = Duration::from_secs(3600);

/// The subject that is a loop around nothing: what the others are freed of.
pub(crate) const LOOP: &str = "(the loop alone)";

/// Something that can be done again and again.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    /// The addresses of what other threads read.
    pub(crate) shared: Vec<Range<usize>>,
    /// Does it so many times.
    pub(crate) run: Box<dyn FnMut(u64)>,
}

/// A subject of `each`, compiled together with the loop around it, and apart from all others.
fn subject<R>(name: &'static str, mut each: impl FnMut() -> R + 'static) -> Subject {
    let run = move |times| {
        for _ in 0..times {
            black_box(each());
        }
    };
    Subject { name, shared: Vec::new(), run: Box::new(run) }
}

impl Subject {
    /// Says where the cell and its value are.
    fn on<T, V>(mut self, cell: &T, value: &V) -> Self {
        let cell = addresses_of(cell);
        let value = addresses_of(value);
        // The counts of an `Arc` stand before its value.
        self.shared = vec![cell, value.start - 4 * size_of::<usize>()..value.end];
        self
    }
}

fn addresses_of<T>(place: &T) -> Range<usize> {
    let start = std::ptr::from_ref(place).addr();
    start..start + size_of::<T>()
}

/// Lives as long as the program, as the cells of most users do.
fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// The system's clock without a coarse reading: what a read near its deadline pays for.
struct Exact;

impl Clock for Exact {
    #[inline]
    fn now(&self) -> Tick {
        SystemClock.now()
    }
}

/// The system's clock, moved on at will, so that a value can be overdue without a wait.
#[derive(Default)]
struct Leaping(AtomicU64);

impl Leaping {
    fn leap(&self) {
        // Relaxed: one thread.
        self.0.fetch_add(2 * u64::try_from(HOUR.as_nanos()).expect("an hour is short"), Ordering::Relaxed);
    }

    #[inline]
    fn moved(&self, tick: Tick) -> Tick {
        Tick::from_nanos(tick.as_nanos() + self.0.load(Ordering::Relaxed))
    }
}

impl Clock for Leaping {
    #[inline]
    fn now(&self) -> Tick {
        self.moved(SystemClock.now())
    }

    #[inline]
    fn coarse_now(&self) -> Tick {
        self.moved(SystemClock.coarse_now())
    }

    #[inline]
    fn coarse_lag(&self) -> Duration {
        SystemClock.coarse_lag()
    }
}

fn leaping() -> &'static Leaping {
    leak(Leaping::default())
}

/// A cell with a value that is fresh for longer than the program runs.
fn fresh<C: Clock>(clock: C) -> &'static DogpileCell<u64, C> {
    let cell = leak(DogpileCell::with_clock(Policy::ttl(HOUR), clock));
    cell.set(1);
    cell
}

/// A cell with a value that never expires.
fn everlasting<C: Clock>(clock: C) -> &'static DogpileCell<u64, C> {
    let cell = leak(DogpileCell::with_clock(Policy::never_expires(), clock));
    cell.set(1);
    cell
}

/// A cell with a stale value, which is being rebuilt.
fn building<C: Clock>(policy: Policy, clock: C) -> &'static DogpileCell<u64, C> {
    let cell = leak(DogpileCell::with_clock(policy, clock));
    cell.set(1);
    cell.invalidate();
    let Lookup::Elected(lease) = cell.lookup() else { unreachable!("stale, and no build runs") };
    std::mem::forget(lease);
    cell
}

/// A cell with a stale value whose rebuild has failed, in its retry pause.
fn pausing<C: Clock>(clock: C) -> &'static DogpileCell<u64, C> {
    let cell = leak(DogpileCell::with_clock(Policy::ttl(HOUR).retry_backoff(HOUR, HOUR), clock));
    cell.set(1);
    cell.invalidate();
    let Lookup::Elected(lease) = cell.lookup() else { unreachable!("stale, and no build runs") };
    lease.fail("no");
    cell
}

fn sync_reader(drain: Drain) -> &'static SyncReaderCell<u64> {
    let cell = leak(SyncReaderCell::with_policy(Policy::ttl(HOUR), drain, drop));
    cell.set(1);
    cell
}

fn sync_reader_building() -> &'static SyncReaderCell<u64> {
    let cell = sync_reader(Drain::Background);
    cell.invalidate();
    // The builder sleeps for as long as the program runs.
    let (inside, built) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        cell.get_or_refresh(|| {
            inside.send(()).expect("the receiver waits");
            loop {
                std::thread::park();
            }
        });
    });
    built.recv().expect("the builder comes to its build");
    cell
}

/// `CLOCK_MONOTONIC_COARSE` by rustix, in nanoseconds.
#[inline]
fn coarse() -> u64 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// A slot with a deadline, by hand: what a user without this crate would write, at its shortest.
struct ByHand {
    deadline: AtomicU64,
    slot: ArcSwapOption<u64>,
}

fn by_hand() -> &'static ByHand {
    let deadline = AtomicU64::new(coarse() + 3_600_000_000_000);
    leak(ByHand { deadline, slot: ArcSwapOption::from_pointee(1) })
}

impl ByHand {
    #[inline]
    fn is_fresh(&self) -> bool {
        coarse() < self.deadline.load(Ordering::Acquire)
    }
}

const FRESH: &str = "the value is fresh";

/// Waits until the thread behind `TickClock` has begun: until then each reading is an exact one, never the same twice.
fn start_ticking() {
    while TickClock.coarse_now() != TickClock.coarse_now() {
        std::thread::yield_now();
    }
}

/// The floor: what arc-swap and the clock cost by themselves, and together.
fn floor() -> Vec<Subject> {
    start_ticking();
    let hand = by_hand();
    let mut cache = Cache::new(&hand.slot);
    let mut timed = Cache::new(&hand.slot);
    vec![
        subject(LOOP, || 1_u64),
        subject("CLOCK_MONOTONIC_COARSE", coarse),
        subject("SystemClock::coarse_now", || SystemClock.coarse_now()),
        subject("TickClock::coarse_now", move || TickClock.coarse_now()),
        subject("Instant::now", Instant::now),
        subject("SystemClock::now", move || SystemClock.now()),
        subject("ArcSwapOption::load_full", move || *hand.slot.load_full().expect(FRESH)),
        subject("ArcSwapOption::load", move || **hand.slot.load().as_ref().expect(FRESH)),
        subject("arc_swap::Cache::load", move || **cache.load().as_ref().expect(FRESH)),
        subject("load_full + coarse clock", move || {
            assert!(hand.is_fresh());
            *hand.slot.load_full().expect(FRESH)
        }),
        subject("load + coarse clock", move || {
            assert!(hand.is_fresh());
            **hand.slot.load().as_ref().expect(FRESH)
        }),
        subject("Cache::load + coarse clock", move || {
            assert!(hand.is_fresh());
            **timed.load().as_ref().expect(FRESH)
        }),
    ]
}

/// All that is counted.
pub(crate) fn subjects() -> impl Iterator<Item = Subject> {
    floor().into_iter().chain(reads()).chain(writes())
}

/// Every way to read a `DogpileCell`, in one state of it.
macro_rules! reads_of {
    ($state:literal, $cell:expr) => {{
        let cell = $cell;
        let mut reader = cell.reader();
        let mut looking = cell.reader();
        let mut owning = cell.reader();
        [
            subject(concat!("get_or_refresh, ", $state), move || *cell.get_or_refresh(|| unreachable!())),
            subject(concat!("load_or_refresh, ", $state), move || *cell.load_or_refresh(|| unreachable!())),
            subject(concat!("get, ", $state), move || *cell.get().expect(FRESH)),
            subject(concat!("load, ", $state), move || *cell.load().expect(FRESH)),
            subject(concat!("Reader::get_or_refresh, ", $state), move || {
                **reader.get_or_refresh(|| unreachable!())
            }),
            subject(concat!("Reader::get, ", $state), move || **looking.get().expect(FRESH)),
            subject(concat!("Reader::get_owned_or_refresh, ", $state), move || {
                *owning.get_owned_or_refresh(|| unreachable!())
            }),
        ]
        .map(|subject| subject.on(cell, &*cell.get_or_refresh(|| unreachable!())))
    }};
}

/// Every way to read a `SyncReaderCell`, in one state of it.
macro_rules! sync_reads_of {
    ($state:literal, $cell:expr) => {{
        let cell = $cell;
        [
            subject(concat!("SyncReaderCell::get_or_refresh, ", $state), move || {
                *cell.get_or_refresh(|| unreachable!())
            }),
            subject(concat!("SyncReaderCell::load_or_refresh, ", $state), move || {
                *cell.load_or_refresh(|| unreachable!())
            }),
            subject(concat!("SyncReaderCell::get, ", $state), move || *cell.get().expect(FRESH)),
            subject(concat!("SyncReaderCell::load, ", $state), move || *cell.load().expect(FRESH)),
        ]
        .map(|subject| subject.on(cell, &*cell.get_or_refresh(|| unreachable!())))
    }};
}

/// The reads of the crate.
fn reads() -> Vec<Subject> {
    let mut reads = Vec::new();
    reads.extend(reads_of!("fresh", fresh(SystemClock)));
    reads.extend(reads_of!("no deadline", everlasting(SystemClock)));
    reads.extend(reads_of!("fresh, TickClock", fresh(TickClock)));
    reads.extend(reads_of!("fresh, exact clock", fresh(Exact)));
    reads.extend(reads_of!("stale, build runs", building(Policy::ttl(HOUR), SystemClock)));
    reads.extend(reads_of!(
        "stale for an hour at most, build runs",
        building(Policy::ttl(HOUR).stale_while_refresh(HOUR), SystemClock)
    ));
    reads.extend(reads_of!("stale, retry pause", pausing(SystemClock)));
    let lazy: &'static LazyDogpile<u64> = leak(LazyDogpile::new(HOUR, || 1));
    lazy.set(1);
    let mut reader = lazy.reader();
    let lazy_reads = [
        subject("LazyDogpile::get_or_refresh, fresh", move || *lazy.get_or_refresh()),
        subject("LazyDogpile::load_or_refresh, fresh", move || *lazy.load_or_refresh()),
        subject("LazyReader::get_or_refresh, fresh", move || **reader.get_or_refresh()),
    ];
    reads.extend(lazy_reads.map(|subject| subject.on(lazy, &*lazy.get().expect(FRESH))));
    reads.extend(local_reads());
    let source = fresh(SystemClock);
    let derived: &'static Derived<u64> = leak(Derived::new(move |cx| *cx.get(source)));
    let mut reader = derived.reader();
    let derived_reads = [
        subject("Derived::get, fresh", move || *derived.get()),
        subject("DerivedReader::get, fresh", move || **reader.get()),
    ];
    reads.extend(derived_reads.map(|subject| subject.on(derived.cell(), &*derived.get())));
    reads.extend(sync_reads_of!("fresh", sync_reader(Drain::Background)));
    reads.extend(sync_reads_of!("stale, build runs", sync_reader_building()));
    reads
}

static LASTING: LazyDogpile<u64> = LazyDogpile::new(HOUR, || 1);
dogpile::local!(static LOCAL_LASTING: u64 = LASTING);
static EVERLASTING: LazyDogpile<u64> = LazyDogpile::with_policy(Policy::never_expires(), || 1);
dogpile::local!(static LOCAL_EVERLASTING: u64 = EVERLASTING);

#[dogpile(ttl = "1h")]
fn lasting() -> u64 {
    1
}

#[dogpile(ttl = "1h")]
#[allow(clippy::unnecessary_wraps)] // how such a function is read is what is counted
fn fallible() -> Result<u64, std::fmt::Error> {
    Ok(1)
}

/// Reads without a handle, through a reader of the thread's own.
fn local_reads() -> [Subject; 6] {
    let (lasting_value, fallible_value) = (lasting(), fallible().expect(FRESH));
    let fallible_with = || fallible::with(|value| *value).expect(FRESH);
    [
        subject("Local::with, fresh", || LOCAL_LASTING.with(|value| *value)).on(&LASTING, &*LASTING.set(1)),
        subject("Local::with, no deadline", || LOCAL_EVERLASTING.with(|value| *value))
            .on(&EVERLASTING, &*EVERLASTING.set(1)),
        subject("#[dogpile], fresh", || *lasting()).on(lasting::cell(), &*lasting_value),
        subject("#[dogpile] with, fresh", || lasting::with(|value| *value))
            .on(lasting::cell(), &*lasting_value),
        subject("#[dogpile] that may fail, fresh", || *fallible().expect(FRESH))
            .on(fallible::cell(), &*fallible_value),
        subject("#[dogpile] with that may fail, fresh", fallible_with).on(fallible::cell(), &*fallible_value),
    ]
}

/// The writes of the crate, and what stands at the bottom of each.
fn writes() -> Vec<Subject> {
    let hand = by_hand();
    let set = fresh(SystemClock);
    let hooked = fresh(SystemClock);
    std::mem::forget(hooked.on_publish(|_| ()));
    let followed = fresh(SystemClock);
    let follows: &'static Derived<u64> = leak(Derived::new(move |cx| *cx.get(followed)));
    follows.get();
    let never = everlasting(SystemClock);
    let invalidated = fresh(SystemClock);
    let published_clock = leaping();
    let published = fresh(published_clock);
    let renewed_clock = leaping();
    let renewed = fresh(renewed_clock);
    // Without retry pauses, so that each lookup is elected.
    let failed =
        leak(DogpileCell::with_policy(Policy::ttl(HOUR).retry_backoff(Duration::ZERO, Duration::ZERO)));
    failed.set(1);
    failed.invalidate();
    let built_clock = leaping();
    let built = fresh(built_clock);
    // The caller finalises: how often a thread of the cell's own starts and sleeps differs from run to run.
    let retiring = sync_reader(Drain::Wait(Duration::MAX));
    vec![
        subject("Arc::new + swap + drop", move || hand.slot.swap(Some(Arc::new(1)))),
        subject("set", move || set.set(1)),
        subject("set, one hook", move || hooked.set(1)),
        subject("set, one derived value", move || followed.set(1)),
        subject("set, no deadline", move || never.set(1)),
        subject("invalidate", move || invalidated.invalidate()),
        subject("lookup + publish", move || {
            published_clock.leap();
            let Lookup::Elected(lease) = published.lookup() else { unreachable!("overdue") };
            lease.publish(1)
        }),
        subject("lookup + renew", move || {
            renewed_clock.leap();
            let Lookup::Elected(lease) = renewed.lookup() else { unreachable!("overdue") };
            lease.renew().is_ok()
        }),
        subject("lookup + fail", move || {
            let Lookup::Elected(lease) = failed.lookup() else { unreachable!("stale") };
            lease.fail(std::fmt::Error)
        }),
        subject("get_or_refresh that builds", move || {
            built_clock.leap();
            built.get_or_refresh(|| 1)
        }),
        subject("SyncReaderCell::set, Drain::Wait", move || retiring.set(1)),
    ]
}
