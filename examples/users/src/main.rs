//! Sixty-four clients ask an axum server for twenty users at a time, for two seconds: how many queries that is.
//! `cargo run --release -p users`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use users::{Database, Server, User, Users};

const CLIENTS: u64 = 64;
const USERS: i64 = 2_000;
const AT_ONCE: usize = 20;

#[allow(clippy::cast_precision_loss)] // figures to look at
fn main() -> anyhow::Result<()> {
    let ttl = Duration::from_secs(1);
    let users = Arc::new(Users::new(Database::in_memory(USERS)?, 4_000, ttl));
    let server = Server::start(Arc::clone(&users))?;
    let (requests, begun) = (AtomicU64::new(0), Instant::now());
    let end = begun + Duration::from_secs(2);
    thread::scope(|scope| {
        for client in 1..=CLIENTS {
            let (server, requests) = (&server, &requests);
            scope.spawn(move || {
                let agent = ureq::Agent::new_with_defaults();
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
                    let mut answer = agent.get(server.url(&ids)).call().expect("200");
                    let found: Vec<Option<User>> = answer.body_mut().read_json().expect("users");
                    assert!(ids.iter().zip(&found).all(|(id, user)| user.is_none() == (id % 10 == 9)));
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    let ((queries, ids), requests, stats) =
        (users.database().asked(), requests.into_inner(), users.cache().stats());
    println!(
        "{requests} requests for {} users were {queries} queries for {ids} ids.",
        requests * AT_ONCE as u64
    );
    println!(
        "Per second: {:.0} requests, {:.0} builds. In all: {} hits, {} stale hits, {} misses, {} evictions.",
        requests as f64 / seconds,
        stats.builds as f64 / seconds,
        stats.hits,
        stats.stale_hits,
        stats.misses,
        stats.evictions
    );
    Ok(())
}
