//! G3 and the reads that never build.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{
    Clock, DogpileCell, Drain, Freshness, Guard, ManualClock, Policy, SyncReaderCell, Tick, Waited,
};

use crate::support::{Down, LookupExt, TICK, TTL, cell, cell_with, stale_cell};

#[test]
fn an_empty_cell_has_nothing_to_show() {
    let (cell, _clock) = cell::<u32>();
    assert_eq!(cell.get(), None);
    assert!(cell.load().is_none());
    assert!(cell.snapshot().is_none());
    assert_eq!(cell.freshness(), Freshness::Empty);
    assert_eq!(cell.generation(), 0);
    assert!(!cell.is_refreshing());
    assert_eq!(cell.stats(), dogpile::Stats::default());
    assert_eq!(cell.into_inner(), None);
}

#[test]
fn what_may_be_served_is_served_without_building() {
    let (cell, clock) = cell_with(Policy::ttl(TTL).stale_while_refresh(TTL));
    cell.set(1);
    for _ in 0..2 {
        assert_eq!(cell.get().as_deref(), Some(&1));
        assert_eq!(cell.load().as_deref(), Some(&1));
        clock.advance(2 * TTL);
    }
    clock.advance(TICK);
    assert_eq!(cell.get(), None);
    assert!(cell.load().is_none());
    assert_eq!(cell.stats().builds, 0);
    assert_eq!(cell.into_inner().as_deref(), Some(&1));
}

/// Each state of a cell, and what `get_unless_due` serves in it: a value, or nothing where a caller would be elected or wait.
#[test]
fn what_is_due_is_not_served_and_no_caller_is_elected() {
    let policy = Policy::ttl(TTL).stale_while_refresh(TTL).retry_backoff(TTL / 2, TTL / 2);
    let (cell, clock) = cell_with(policy);
    let mut reader = cell.reader();
    let mut unless_due = || {
        let value = cell.get_unless_due();
        assert_eq!(reader.get_unless_due(), value.as_ref());
        value.map(|value| *value)
    };
    assert_eq!(unless_due(), None, "empty");
    let first = cell.lookup().elected();
    assert_eq!(unless_due(), None, "the caller would have to wait");
    first.publish(1);
    assert_eq!(unless_due(), Some(1), "fresh");
    clock.advance(TTL);
    assert_eq!(unless_due(), Some(1), "fresh to the last");
    clock.advance(TICK);
    assert_eq!((unless_due(), cell.is_refreshing()), (None, false), "stale");
    let lease = cell.lookup().elected();
    assert_eq!(unless_due(), Some(1), "stale, but a build runs");
    lease.fail("no");
    assert_eq!(unless_due(), Some(1), "stale, but a pause runs");
    clock.advance(TTL / 2);
    assert_eq!((unless_due(), cell.is_refreshing()), (None, false), "the pause is over");
    let _lease = cell.lookup().elected();
    clock.advance(TTL);
    assert_eq!(unless_due(), None, "expired: the caller would have to wait");
    cell.set(2);
    assert_eq!(unless_due(), Some(2));
    cell.clear();
    assert_eq!(unless_due(), None);
    assert_eq!(cell.stats().builds, 3, "only those of this test");
}

#[test]
fn a_snapshot_belongs_to_one_publication() {
    let (cell, clock) = cell();
    cell.set(1);
    clock.advance(Duration::from_secs(3));
    let snapshot = cell.snapshot().unwrap();
    assert_eq!((*snapshot.value, snapshot.generation), (1, 1));
    assert_eq!((snapshot.fresh_for, snapshot.servable_for), (TTL - Duration::from_secs(3), Duration::MAX));
    assert_eq!((snapshot.age, snapshot.freshness), (Duration::from_secs(3), Freshness::Fresh));
    cell.invalidate();
    let snapshot = cell.snapshot().unwrap();
    assert_eq!((snapshot.generation, snapshot.freshness), (1, Freshness::Stale));
    assert_eq!((snapshot.fresh_for, snapshot.servable_for), (Duration::ZERO, Duration::MAX));
    assert_eq!((snapshot.age, snapshot.stale_for), (Duration::from_secs(3), Duration::ZERO));
    clock.advance(TTL);
    assert_eq!(cell.snapshot().unwrap().stale_for, TTL);
    cell.clear();
    assert!(cell.snapshot().is_none());
    assert_eq!(cell.generation(), 1);
}

#[test]
fn a_snapshot_tells_since_when_its_value_is_stale() {
    let (cell, clock) = cell();
    cell.set(1);
    clock.advance(TTL);
    let stale_for = || cell.snapshot().unwrap().stale_for;
    assert_eq!((stale_for(), cell.freshness()), (Duration::ZERO, Freshness::Fresh), "fresh to the last");
    clock.advance(TICK);
    assert_eq!((stale_for(), cell.freshness()), (Duration::ZERO, Freshness::Stale));
    clock.advance(TTL);
    assert_eq!(stale_for(), TTL);
    cell.invalidate();
    assert_eq!(stale_for(), TTL, "it was stale before");
    cell.restore(2, 3 * TTL + TICK);
    assert_eq!(stale_for(), 2 * TTL, "also from before the clock's beginning");
}

#[test]
fn g3_no_thread_sees_a_generation_go_back_in_whichever_way_it_looks() {
    const LAST: u64 = if cfg!(miri) { 30 } else { 20_000 };
    let (cell, _clock) = cell_with(Policy::never_expires());
    cell.set(1_u64);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut seen = 0;
                let mut see = |generation: u64, way: &str| {
                    assert!(generation >= seen, "{way} shows {generation} after {seen}");
                    seen = generation;
                };
                let mut reader = cell.reader();
                while !done.load(Ordering::Relaxed) {
                    // The value is its own generation.
                    see(*cell.get().unwrap(), "get");
                    see(cell.generation(), "generation");
                    see(**reader.get_or_refresh(|| unreachable!()), "Reader");
                    see(*cell.load().unwrap(), "load");
                    let snapshot = cell.snapshot().unwrap();
                    assert_eq!(
                        *snapshot.value, snapshot.generation,
                        "value and generation of two publications"
                    );
                    see(snapshot.generation, "snapshot");
                    see(**reader.get().unwrap(), "Reader::get");
                    see(*cell.get_or_refresh(|| unreachable!()), "get_or_refresh");
                }
            });
        }
        for generation in 2..=LAST {
            cell.set(generation);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(cell.generation(), LAST);
}

#[test]
fn a_guard_keeps_its_value() {
    let (cell, _clock) = stale_cell(String::from("old"));
    let guard = cell.load().unwrap();
    cell.set(String::from("new"));
    assert_eq!(*guard, "old");
    let kept = Guard::into_arc(guard);
    assert_eq!(Arc::strong_count(&kept), 1);
}

#[test]
fn many_guards_at_once_are_fine() {
    let (cell, _clock) = cell_with(Policy::never_expires());
    let mut guards = Vec::new();
    for generation in 0..100 {
        cell.set(generation);
        guards.push((generation, cell.load_or_refresh(|| unreachable!())));
    }
    for (generation, guard) in guards {
        assert_eq!(*guard, generation);
    }
}

#[test]
fn a_guard_of_a_build_is_a_guard_like_any_other() {
    let (cell, _clock) = cell();
    let guard = cell.load_or_refresh(|| 1);
    assert_eq!(*guard, 1);
    assert!(Arc::ptr_eq(&Guard::into_arc(guard), &cell.get().unwrap()));
}

#[test]
fn looking_at_a_cell_in_a_debugger_shows_no_value_and_does_not_block() {
    struct Opaque;
    let (cell, _clock) = cell();
    let lease = cell.lookup().elected();
    let text = format!("{cell:?} {lease:?} {:?} {:?}", cell.lookup(), cell.reader());
    assert!(text.contains("has_value: false, is_refreshing: true"), "{text}");
    lease.publish(Opaque);
    assert!(format!("{cell:?}").contains("has_value: true, is_refreshing: false"));
    assert_eq!(format!("{:?}", cell.load().unwrap()), "Guard { .. }");
    let text = format!("{:?} {:?} {:?}", cell.lookup(), cell.load().unwrap(), cell.snapshot().unwrap());
    assert!(text.contains("generation: 1"), "{text}");
}

#[test]
fn what_a_look_finds_shows_what_it_is() {
    let cell = Arc::new(cell::<u32>().0);
    let text = |cell: &Arc<DogpileCell<u32, ManualClock>>| {
        let text = format!("{:?}", cell.lookup());
        assert_eq!(format!("{:?}", cell.lookup_owned()), text);
        assert_eq!(format!("{:?}", cell.request().lookup()), text);
        text
    };
    assert_eq!(text(&cell), "Elected(Lease { .. })");
    let lease = cell.lookup().elected();
    assert_eq!(text(&cell), "Pending(Pending { .. })");
    lease.publish(1);
    assert_eq!(text(&cell), "Fresh(..)");
    cell.invalidate();
    let lease = cell.lookup().elected();
    assert_eq!(text(&cell), "Stale(..)");
    drop(lease);

    assert_eq!(format!("{:?}", Waited::Published(Arc::new(()))), "Published(..)");
    assert_eq!(format!("{:?} {:?}", Waited::<()>::Abandoned, Waited::<()>::Reentrant), "Abandoned Reentrant");
}

/// A manual clock that knows how often it has been asked.
#[derive(Default)]
struct CountingClock {
    manual: ManualClock,
    exact: AtomicU32,
    coarse: AtomicU32,
}

const LAG: Duration = Duration::from_millis(1);

impl Clock for CountingClock {
    fn now(&self) -> Tick {
        self.exact.fetch_add(1, Ordering::Relaxed);
        self.manual.now()
    }

    fn coarse_now(&self) -> Tick {
        self.coarse.fetch_add(1, Ordering::Relaxed);
        self.manual.now()
    }

    fn coarse_lag(&self) -> Duration {
        LAG
    }
}

impl CountingClock {
    /// How often the exact and the coarse one have been asked since the last call.
    fn asked(&self) -> (u32, u32) {
        (self.exact.swap(0, Ordering::Relaxed), self.coarse.swap(0, Ordering::Relaxed))
    }
}

type CountedCell = DogpileCell<u32, Arc<CountingClock>>;

/// How often all reads of a cell together ask the exact and the coarse clock, after `lead` has led it into a state.
fn asked_by_reads(policy: Policy, lead: impl Fn(&CountedCell, &ManualClock)) -> (u32, u32) {
    let clock = Arc::new(CountingClock::default());
    let cell = DogpileCell::with_clock(policy, Arc::clone(&clock));
    cell.set(1);
    lead(&cell, &clock.manual);
    clock.asked();
    assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
    assert_eq!(*cell.try_get_or_refresh(|| -> Result<u32, Down> { unreachable!() }).unwrap(), 1);
    assert_eq!(*cell.load_or_refresh(|| unreachable!()), 1);
    assert_eq!(cell.get().as_deref(), Some(&1));
    assert_eq!(cell.load().as_deref(), Some(&1));
    let mut reader = cell.reader();
    // The first read of a handle takes the value, the others find it there.
    for _ in 0..3 {
        assert_eq!(**reader.get_or_refresh(|| unreachable!()), 1);
        assert_eq!(reader.get().map(|value| **value), Some(1));
    }
    clock.asked()
}

/// The value has become stale, and a build runs for ever.
fn stale_while_a_build_runs(cell: &CountedCell, clock: &ManualClock) {
    clock.advance(TTL + TICK);
    std::mem::forget(cell.lookup().elected());
}

fn stale_after_a_failure(cell: &CountedCell, clock: &ManualClock) {
    clock.advance(TTL + TICK);
    cell.lookup().elected().fail("no");
}

#[test]
fn no_clock_is_asked_where_no_answer_could_depend_on_it() {
    assert_eq!(asked_by_reads(Policy::never_expires(), |_, _| ()), (0, 0));
    // Staleness is not bounded: the value is served however old it is.
    assert_eq!(asked_by_reads(Policy::ttl(TTL), stale_while_a_build_runs), (0, 0));
}

#[test]
fn away_from_the_deadline_only_the_coarse_clock_is_asked() {
    let bounded = Policy::ttl(TTL).stale_while_refresh(TTL);
    let pausing = Policy::ttl(TTL).retry_backoff(TTL, TTL);
    for (state, (exact, coarse)) in [
        ("fresh", asked_by_reads(Policy::ttl(TTL), |_, _| ())),
        ("stale while a build runs", asked_by_reads(bounded, stale_while_a_build_runs)),
        ("stale during a retry pause", asked_by_reads(pausing, stale_after_a_failure)),
    ] {
        assert_eq!(exact, 0, "{state}");
        assert!(coarse > 0, "{state}: nothing was counted");
    }
}

#[test]
fn near_the_deadline_the_exact_clock_decides() {
    // Each read does: five of the cell, six of the handle.
    let near = |_: &CountedCell, clock: &ManualClock| clock.advance(TTL - LAG / 2);
    let (exact, coarse) = asked_by_reads(Policy::ttl(TTL), near);
    assert_eq!(exact, 11, "of {coarse} coarse readings");
}

#[test]
fn a_sync_reader_cell_asks_no_clock_either() {
    let read = |cell: &SyncReaderCell<u32, Arc<CountingClock>>| {
        assert_eq!(*cell.get_or_refresh(|| unreachable!()), 1);
        assert_eq!(*cell.load_or_refresh(|| unreachable!()), 1);
        assert_eq!(cell.get().map(|value| *value), Some(1));
        assert_eq!(cell.load().map(|value| *value), Some(1));
    };
    for policy in [Policy::never_expires(), Policy::ttl(TTL)] {
        let clock = Arc::new(CountingClock::default());
        let cell = SyncReaderCell::with_clock(policy, Arc::clone(&clock), Drain::Background, drop);
        cell.set(1);
        clock.asked();
        read(&cell);
        assert_eq!(clock.asked().0, 0);
        cell.invalidate();
        // Inside the build, which is as good as beside it: reads do not depend on which thread builds.
        cell.get_or_refresh(|| {
            clock.asked();
            read(&cell);
            assert_eq!(clock.asked(), (0, 0));
            2
        });
    }
}
