//! Stores that only compare and swap.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use dogpile::{Clock, ManualClock, SystemClock};
use dogpile_fleet::{
    Acquire, Publish, RefreshStore, Request, Row, StoreError, SwapEntry, SwapStore, conformance,
};
use proptest::prelude::*;

use crate::operations::operations;
use crate::servers::{Kind, server_or_skip};

#[allow(dead_code)] // its `main`
#[path = "../../examples/own_client.rs"]
mod own_client;
#[allow(dead_code)] // its `main`
#[path = "../../examples/sqlx_pool.rs"]
mod sqlx_pool;

struct Table<C> {
    clock: C,
    rows: Mutex<HashMap<String, (u64, Vec<u8>)>>,
    /// Swaps that are refused as if another node had been faster.
    refusals: AtomicU32,
}

impl<C: Clock> SwapEntry for Table<C> {
    fn read(&self, name: &str) -> Result<Row, StoreError> {
        Ok(Row {
            now: self.clock.now().as_nanos() / 1000,
            entry: self.rows.lock().unwrap().get(name).cloned(),
        })
    }

    fn swap(&self, name: &str, from: Option<u64>, to: u64, entry: &[u8]) -> Result<bool, StoreError> {
        assert!((1..1 << 63).contains(&to) && Some(to) != from);
        let fewer = |refusals: u32| refusals.checked_sub(1);
        if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok() {
            return Ok(false);
        }
        let mut rows = self.rows.lock().unwrap();
        let swaps = rows.get(name).map(|(revision, _)| *revision) == from;
        if swaps {
            rows.insert(name.to_owned(), (to, entry.to_vec()));
        }
        Ok(swaps)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_answers_as_the_rules_do(operations in operations()) {
        let clock = ManualClock::new();
        let table = Table { clock: clock.clone(), rows: Mutex::default(), refusals: AtomicU32::new(3) };
        let store = SwapStore::new(table);
        conformance::replay(&store, "name", &clock, || store.rows().rows.lock().unwrap().clear(), &operations);
    }
}

#[test]
fn of_many_that_come_at_once_one_is_elected_and_each_publication_is_seen_by_the_next() {
    let store =
        SwapStore::new(Table { clock: SystemClock, rows: Mutex::default(), refusals: AtomicU32::new(0) });
    let table = store.rows();
    let elected = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let request = Request::new(std::time::Duration::from_secs(3600));
                if let Acquire::Won { .. } = store.acquire("name", &request).unwrap() {
                    elected.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(elected.load(Ordering::SeqCst), 1);
    // A row that somebody has damaged is a lost one, and heals.
    table.rows.lock().unwrap().get_mut("name").unwrap().1[20] ^= 1;
    let request = Request::new(std::time::Duration::from_secs(3600));
    let Acquire::Won { token, .. } = store.acquire("name", &request).unwrap() else { panic!("not elected") };
    let second = std::time::Duration::from_secs(1);
    let publication = dogpile_fleet::Publication { payload: b"x", tag: None, soft: second, hard: second };
    assert!(matches!(store.publish("name", &token, &publication).unwrap(), Publish::Stored(_)));
    // Others that are always faster are an error, and not a loop without end.
    table.refusals.store(1000, Ordering::SeqCst);
    assert!(store.invalidate("name", dogpile_fleet::Invalidation::Soft).unwrap_err().is_busy());
}

#[test]
fn the_example_of_a_client_of_ones_own_keeps_the_rules() {
    let server = server_or_skip!(Kind::Postgres);
    own_client::run(&server.address()).unwrap();
}

#[test]
fn the_example_of_a_pool_of_sqlx_keeps_the_rules() {
    let server = server_or_skip!(Kind::Postgres);
    sqlx_pool::run(&server.address()).unwrap();
}
