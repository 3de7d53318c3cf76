//! What an outage costs where many cells or keys of one store share a few threads: each of them takes a thread for the store's
//! timeout, and the others wait for it.

#![cfg(feature = "async")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use dogpile_fleet::{
    FleetCell, FleetKeys, FleetPolicy, Plain, Refreshed, Row, StoreError, SwapEntry, SwapStore,
};
use futures_lite::future::block_on;

const HOUR: Duration = Duration::from_secs(3600);
const HANG: Duration = Duration::from_secs(60);
/// Once the store has failed it is left alone for an hour.
const POLICY: FleetPolicy = FleetPolicy::ttl(HOUR).no_poll().patience(HOUR).breaker(HOUR, HOUR);

/// Rows in memory, which cannot be read during an outage.
struct Rows {
    start: Instant,
    entries: Mutex<HashMap<String, (u64, Vec<u8>)>>,
    is_down: AtomicBool,
    /// How many operations have been asked for during the outage.
    asked: AtomicU64,
    /// Until then they hang, but for those of a name that ends with `fails`.
    may_fail: AtomicBool,
}

impl SwapEntry for Rows {
    fn read(&self, name: &str) -> Result<Row, StoreError> {
        if self.is_down.load(Ordering::SeqCst) {
            self.asked.fetch_add(1, Ordering::SeqCst);
            eventually(|| name.ends_with("fails") || self.may_fail.load(Ordering::SeqCst));
            return Err(StoreError::new("down"));
        }
        let now = u64::try_from(self.start.elapsed().as_micros()).map_err(StoreError::new)?;
        Ok(Row { now, entry: self.entries.lock().unwrap().get(name).cloned() })
    }

    fn swap(&self, name: &str, from: Option<u64>, to: u64, entry: &[u8]) -> Result<bool, StoreError> {
        let mut rows = self.entries.lock().unwrap();
        let swaps = rows.get(name).map(|(revision, _)| *revision) == from;
        if swaps {
            rows.insert(name.to_owned(), (to, entry.to_vec()));
        }
        Ok(swaps)
    }
}

type Store = Arc<SwapStore<Rows>>;

fn store() -> Store {
    Arc::new(SwapStore::new(Rows {
        start: Instant::now(),
        entries: Mutex::default(),
        is_down: AtomicBool::new(false),
        asked: AtomicU64::new(0),
        may_fail: AtomicBool::new(false),
    }))
}

fn goes_down(store: &Store) {
    store.rows().is_down.store(true, Ordering::SeqCst);
}

fn lets_fail(store: &Store) {
    store.rows().may_fail.store(true, Ordering::SeqCst);
}

fn asked(store: &Store) -> u64 {
    store.rows().asked.load(Ordering::SeqCst)
}

fn cells(store: &Store, number: u32) -> Vec<FleetCell<String>> {
    let cell = |number| FleetCell::new(format!("cell {number}"), Arc::clone(store), Plain, POLICY);
    (0..number).map(cell).collect()
}

#[track_caller]
fn eventually(condition: impl Fn() -> bool) {
    let hang = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < hang, "never");
        std::thread::yield_now();
    }
}

/// Sixty cells took ten seconds for it, with a timeout of half a second: three at a time.
#[test]
fn invalidations_of_many_cells_by_tasks_waited_for_each_others_timeouts() {
    let store = store();
    let cells = cells(&store, 60);
    for cell in &cells {
        cell.get_or_refresh(|| String::from("value"));
    }
    goes_down(&store);
    std::thread::scope(|scope| {
        for cell in &cells {
            scope.spawn(|| block_on(cell.invalidate_async()).unwrap_err());
        }
        lets_fail(&store);
    });
    assert!((1..=3).contains(&asked(&store)), "by no more than its threads: {}", asked(&store));
    let said = block_on(cells[0].invalidate_async()).unwrap_err().to_string();
    assert!(said.contains("left alone"), "{said}");
    // A thread of the caller's own is not kept from trying.
    let before = asked(&store);
    cells[0].invalidate().unwrap_err();
    assert_eq!(asked(&store), before + 1);
}

/// A hundred builds ended while the store was silent, and the load of another key, whose old value could be served, waited for all of
/// them: 24.7 seconds with a timeout of half a second.
#[test]
fn loads_of_tasks_waited_for_the_timeouts_of_publications() {
    let store = store();
    let keys: FleetKeys<String> = FleetKeys::new("keys", Arc::clone(&store), Plain, POLICY);
    let value = || Ok::<_, &str>(String::from("value"));
    let (Refreshed::NewFor(old, _) | Refreshed::New(old)) = keys.load("old", None, value).unwrap() else {
        panic!("it is new");
    };
    let old = Arc::new(old);
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
        goes_down(&store);
        gate.wait();
        // All threads of the loader hang.
        eventually(|| ended.load(Ordering::SeqCst) == 100 && asked(&store) == 4);
        keys.invalidate("fails").unwrap_err();
        let (done, is_done) = channel();
        let keys = &keys;
        scope.spawn(move || {
            let loaded = block_on(keys.load_async("old", Some(old), async || value()));
            done.send(loaded.is_err()).unwrap();
        });
        let refused = is_done.recv_timeout(HANG);
        lets_fail(&store);
        assert_eq!(refused, Ok(true), "it does not wait for a thread, and the old value may be served");
    });
    // Each of the first four is tried twice, and so are those behind which nobody waits: most often the last four. Before, all hundred.
    assert!(asked(&store) < 100, "{}", asked(&store));
}

/// Each cell of a `SwapStore` had a breaker of its own, and found out for itself that the store was down.
#[test]
fn cells_of_a_store_of_rows_did_not_share_a_breaker() {
    let store = store();
    goes_down(&store);
    lets_fail(&store);
    for cell in cells(&store, 20) {
        assert_eq!(*cell.get_or_refresh(|| String::from("value")), "value");
    }
    assert_eq!(asked(&store), 1);
}
