//! What an outage costs where many cells or keys of one store share a few threads: each of them takes a thread for the store's
//! timeout, and the others wait for it.

#![cfg(feature = "async")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use dogpile_fleet::{
    Acquire, Breaker, Epoch, FleetCell, FleetKeys, FleetPolicy, FleetValue, Invalidation, MemoryStore, Plain,
    Poll, Publication, Publish, RefreshStore, Refreshed, Request, Row, StoreError, SwapEntry, SwapStore,
    Token, Version,
};
use futures_lite::future::block_on;

const HOUR: Duration = Duration::from_secs(3600);
/// Once the store has failed it is left alone for an hour.
const POLICY: FleetPolicy = FleetPolicy::ttl(HOUR).no_poll().patience(HOUR).breaker(HOUR, HOUR);

/// A store that fails, and counts how often it has.
#[derive(Default)]
struct Failing {
    store: MemoryStore,
    breaker: Breaker,
    fails: AtomicBool,
    failures: AtomicU64,
    /// The first failures wait for that.
    may_fail: AtomicBool,
}

#[track_caller]
fn eventually(condition: impl Fn() -> bool) {
    let hang = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < hang, "never");
        std::thread::yield_now();
    }
}

impl Failing {
    fn way(&self) -> Result<&MemoryStore, StoreError> {
        if self.fails.load(Ordering::SeqCst) {
            self.failures.fetch_add(1, Ordering::SeqCst);
            eventually(|| self.may_fail.load(Ordering::SeqCst));
            return Err(StoreError::new("down"));
        }
        Ok(&self.store)
    }

    fn begins_to_fail(&self) {
        self.fails.store(true, Ordering::SeqCst);
    }

    fn comes_to_an_end(&self) {
        self.may_fail.store(true, Ordering::SeqCst);
    }

    fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }
}

impl RefreshStore for Failing {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        self.way()?.poll(name, known)
    }
    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        self.way()?.acquire(name, request)
    }
    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        self.way()?.publish(name, token, publication)
    }
    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        self.way()?.unchanged(name, token, soft, hard)
    }
    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        self.way()?.fail(name, token, pause)
    }
    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        self.way()?.renew(name, token, lease)
    }
    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
        self.way()?.invalidate(name, how)
    }
    fn breaker(&self) -> Option<&Breaker> {
        Some(&self.breaker)
    }
}

/// Sixty cells took ten seconds for it, with a timeout of half a second: three at a time.
#[test]
fn invalidations_of_many_cells_by_tasks_waited_for_each_others_timeouts() {
    let store = Arc::new(Failing::default());
    let cell = |number| FleetCell::new(format!("cell {number}"), Arc::clone(&store), Plain, POLICY);
    let cells: Vec<FleetCell<String>> = (0..60).map(cell).collect();
    for cell in &cells {
        cell.get_or_refresh(|| String::from("value"));
    }
    store.begins_to_fail();
    std::thread::scope(|scope| {
        for cell in &cells {
            scope.spawn(|| block_on(cell.invalidate_async()).unwrap_err());
        }
        store.comes_to_an_end();
    });
    assert!((1..=3).contains(&store.failures()), "no more than its threads: {}", store.failures());
    let said = block_on(cells[0].invalidate_async()).unwrap_err().to_string();
    assert!(said.contains("left alone"), "{said}");
    // A thread of the caller's own is not kept from trying.
    let before = store.failures();
    cells[0].invalidate().unwrap_err();
    assert_eq!(store.failures(), before + 1);
}

/// A hundred builds ended while the store was silent, and the load of another key, whose old value could be served, waited for all of
/// them: 24.7 seconds with a timeout of half a second.
#[test]
fn loads_of_tasks_waited_for_the_timeouts_of_publications() {
    let store = Arc::new(Failing::default());
    let keys: FleetKeys<String> = FleetKeys::new("keys", Arc::clone(&store), Plain, POLICY);
    let value = || Ok::<_, &str>(String::from("value"));
    let (Refreshed::NewFor(old, _) | Refreshed::New(old)) = keys.load("old", None, value).unwrap() else {
        panic!("it is new");
    };
    let old: Arc<FleetValue<String>> = Arc::new(old);
    let (gate, ended) = (Barrier::new(101), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..100 {
            let (keys, gate, ended) = (&keys, &gate, &ended);
            scope.spawn(move || {
                let build = || {
                    gate.wait();
                    gate.wait();
                    ended.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, &str>(String::from("value"))
                };
                drop(keys.load(&number.to_string(), None, build).unwrap());
            });
        }
        gate.wait();
        store.begins_to_fail();
        gate.wait();
        eventually(|| ended.load(Ordering::SeqCst) == 100 && store.failures() == 4);
        store.comes_to_an_end();
    });
    // Each of the first four is tried twice, and so are those behind which nobody waits: most often the last four. Before, all hundred.
    assert!(store.failures() < 100, "{}", store.failures());
    let acquires = keys.stats().acquires;
    let served = block_on(keys.load_async("old", Some(old), async || value()));
    assert!(served.is_err(), "the old value may be served");
    assert_eq!(keys.stats().acquires, acquires, "nothing is queued");
}

/// Each cell of a `SwapStore` had a breaker of its own, and found out for itself that the store was down.
#[test]
fn cells_of_a_store_of_rows_did_not_share_a_breaker() {
    struct Nothing(AtomicU64);
    impl SwapEntry for Nothing {
        fn read(&self, _: &str) -> Result<Row, StoreError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Err(StoreError::new("down"))
        }
        fn swap(&self, _: &str, _: Option<u64>, _: u64, _: &[u8]) -> Result<bool, StoreError> {
            Err(StoreError::new("down"))
        }
    }
    let store = Arc::new(SwapStore::new(Nothing(AtomicU64::new(0))));
    for number in 0..20 {
        let cell = FleetCell::new(format!("cell {number}"), Arc::clone(&store), Plain, POLICY);
        assert_eq!(*cell.get_or_refresh(|| String::from("value")), "value");
    }
    assert_eq!(store.rows().0.load(Ordering::SeqCst), 1);
}
