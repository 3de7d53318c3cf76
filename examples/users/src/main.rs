//! Sixty-four clients ask for twenty users at a time, for two seconds: how many queries that is.
//! `cargo run --release -p users`

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use users::{Database, Users};

const CLIENTS: u64 = 64;
const USERS: i64 = 2_000;
const AT_ONCE: usize = 20;

fn main() -> anyhow::Result<()> {
    let ttl = Duration::from_secs(1);
    let users = Users::new(Database::in_memory(USERS)?, 4_000, ttl);
    let (requests, end) = (AtomicU64::new(0), Instant::now() + Duration::from_secs(2));
    thread::scope(|scope| {
        for client in 1..=CLIENTS {
            let (users, requests) = (&users, &requests);
            scope.spawn(move || {
                let mut random = client;
                while Instant::now() < end {
                    let ids: Vec<i64> = (0..AT_ONCE)
                        .map(|_| {
                            random = random
                                .wrapping_mul(6_364_136_223_846_793_005)
                                .wrapping_add(1_442_695_040_888_963_407);
                            let share = i64::from((random >> 33) as u32 >> 1);
                            // Few are asked for often.
                            share % USERS * (share / USERS % USERS) / USERS
                        })
                        .collect();
                    let found = users.get_many(&ids).expect("the database is there");
                    assert!(ids.iter().zip(&found).all(|(id, user)| user.is_none() == (id % 10 == 9)));
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let ((queries, ids), requests) = (users.database().asked(), requests.into_inner());
    println!(
        "{requests} requests for {} users were {queries} queries for {ids} ids.",
        requests * AT_ONCE as u64
    );
    let stats = users.cache().stats();
    println!(
        "{} hits, {} stale hits, {} misses, {} evictions",
        stats.hits, stats.stale_hits, stats.misses, stats.evictions
    );
    Ok(())
}
