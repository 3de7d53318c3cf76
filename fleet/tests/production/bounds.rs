//! Nothing takes longer than the store's timeout, and a caller is not kept waiting even for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dogpile_fleet::{FleetPolicy, Invalidation, PostgresStore, RedisStore, RefreshStore};

use crate::servers::{Kind, address, server_or_skip};
use crate::toxic::{Proxy, trickling};
use crate::{HANG, HOUR, SECOND, another_process, at_once, cell, eventually, library, text};

fn store(kind: Kind, port: u16, timeout: Duration) -> Arc<dyn RefreshStore> {
    let address = address(kind, port);
    match kind {
        Kind::Redis | Kind::Valkey => Arc::new(RedisStore::new(&address).unwrap().timeout(timeout)),
        Kind::Postgres => Arc::new(PostgresStore::new(&address).unwrap().timeout(timeout)),
    }
}

/// The same, connected already: its timeout does not bound that.
fn connected(kind: Kind, port: u16, timeout: Duration) -> Arc<dyn RefreshStore> {
    let address = address(kind, port);
    let connect = |store: &dyn RefreshStore| store.invalidate("another name", Invalidation::Hard).unwrap();
    match kind {
        Kind::Redis | Kind::Valkey => {
            let store = RedisStore::new(&address).unwrap().timeout(HANG);
            connect(&store);
            Arc::new(store.timeout(timeout))
        }
        Kind::Postgres => {
            let store = PostgresStore::new(&address).unwrap().timeout(HANG);
            connect(&store);
            Arc::new(store.timeout(timeout))
        }
    }
}

/// One connection behind one lock, and a breaker for each cell: twenty cells waited for each other's timeouts.
fn twenty_cells_on_a_silent_store(kind: Kind, port: u16) {
    const TIMEOUT: Duration = SECOND;
    let proxy = Proxy::start(port);
    // Its connection is there before the proxy holds up what comes by it.
    let store = connected(kind, proxy.port, TIMEOUT);
    let cells: Vec<_> = (0..20)
        .map(|number| {
            let policy = FleetPolicy::ttl(HOUR).no_poll();
            dogpile_fleet::FleetCell::new(
                format!("cell {number}"),
                Arc::clone(&store),
                dogpile_fleet::Plain,
                policy,
            )
        })
        .collect();
    proxy.hold();
    let start = Instant::now();
    let longest = |run: &(dyn Fn(&crate::Cell) + Sync)| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = cells
                .iter()
                .map(|cell| {
                    scope.spawn(move || {
                        run(cell);
                        start.elapsed()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
        })
    };
    let first_value = longest(&|cell| drop(cell.get_or_refresh(|| text("local"))));
    let invalidated = longest(&|cell| drop(cell.invalidate().unwrap_err()));
    println!(
        "{kind:?}, 20 cells, a timeout of {TIMEOUT:?}: first value {first_value:?}, invalidated {invalidated:?}"
    );
    // In turn they would take 20 timeouts each, and more.
    assert!(first_value < 8 * TIMEOUT, "{first_value:?}");
    assert!(invalidated - first_value < 8 * TIMEOUT, "{invalidated:?}");
    let attempts: u64 = cells.iter().map(|cell| cell.stats().store_errors).sum();
    assert!(attempts <= 3 * 20, "{attempts} operations failed");
}

#[test]
fn redis_twenty_cells_waited_for_each_others_timeouts() {
    let server = server_or_skip!(Kind::Redis);
    twenty_cells_on_a_silent_store(Kind::Redis, server.port);
}

#[test]
fn postgres_twenty_cells_waited_for_each_others_timeouts() {
    let server = server_or_skip!(Kind::Postgres);
    twenty_cells_on_a_silent_store(Kind::Postgres, server.port);
}

/// The timeout was that of each single byte.
#[test]
fn an_answer_that_trickled_was_waited_for_as_long_as_it_did() {
    let redis = trickling(b"$1000000000\r\n");
    // A message of authentication that is as long.
    let postgres = trickling(b"R\x3b\x9a\xca\x00");
    for (kind, port) in [(Kind::Redis, redis), (Kind::Postgres, postgres)] {
        let store = store(kind, port, SECOND / 5);
        let error = at_once("an error", move || store.poll("name", None).unwrap_err());
        assert!(error.to_string().contains("no complete answer within the timeout of 200ms"), "{error}");
    }
}

pub(crate) const SLOW_RESOLVER: &str = "DOGPILE_FLEET_SLOW_RESOLVER";

/// Replaces the resolver by one that takes an hour.
const RESOLVER: &str = "
#include <unistd.h>
#include <netdb.h>
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    sleep(3600);
    return EAI_AGAIN;
}
";

/// In a process of its own: see `a_resolver_that_hangs_hung_its_callers`.
pub(crate) fn resolve_slowly(address: &str) {
    let redis = RedisStore::new(&format!("redis://{address}/")).unwrap().timeout(SECOND / 5);
    println!("answered: {}", redis.poll("name", None).unwrap_err());
    let postgres = PostgresStore::new(&format!("postgres://{address}/")).unwrap().timeout(SECOND / 5);
    println!("answered: {}", postgres.poll("name", None).unwrap_err());
    // The threads that resolve are not waited for either.
}

#[test]
fn a_resolver_that_hangs_hung_its_callers() {
    let Some((_directory, library)) = library(RESOLVER) else { return };
    let said = another_process(SLOW_RESOLVER, "slow.example:1", &library);
    assert_eq!(said.matches("answered: ").count(), 2, "{said}");
    assert_eq!(said.matches("within the timeout of 200ms").count(), 2, "{said}");
}

/// Until the store had taken it, for the store's timeout twice.
fn withheld(kind: Kind, port: u16) {
    let proxy = Proxy::start(port);
    let (direct, through) = (store(kind, port, HOUR), store(kind, proxy.port, HOUR));
    let policy = FleetPolicy::ttl(HOUR).no_poll();
    let node = Arc::new(cell(through, policy));
    let other = cell(Arc::clone(&direct), policy);

    // Threads: the one that builds, and one that waits for it.
    let (built, waited) = at_once("a build that is over", {
        let (node, hold) = (Arc::clone(&node), proxy.holder());
        let building = Arc::new(AtomicBool::new(false));
        let waiter = {
            let (node, building) = (Arc::clone(&node), Arc::clone(&building));
            std::thread::spawn(move || {
                eventually("it builds", || building.load(Ordering::SeqCst));
                node.get_or_refresh(|| panic!("another one builds"))
            })
        };
        move || {
            let built = node.get_or_refresh(|| {
                building.store(true, Ordering::SeqCst);
                hold();
                text("first")
            });
            (built, waiter.join().unwrap())
        }
    });
    assert_eq!((&**built, &**waited), ("first", "first"));
    assert!(node.snapshot().unwrap().version.is_none(), "the store has not answered");
    assert_eq!(node.stats().early, 1);
    proxy.release();
    eventually("it is published behind them", || node.snapshot().unwrap().version.is_some());
    assert_eq!(*other.get_or_refresh(|| panic!("it is in the store")), "first");
    let stats = node.stats();
    assert_eq!((stats.published, stats.local_builds), (1, 0), "{stats:?}");

    // A task.
    node.clear().unwrap();
    let task = at_once("a task whose build is over", {
        let (node, hold) = (Arc::clone(&node), proxy.holder());
        move || {
            futures_lite::future::block_on(node.get_or_refresh_async(|| async {
                hold();
                text("second")
            }))
        }
    });
    assert_eq!(*task, "second");
    proxy.release();
    eventually("it is published behind it", || node.snapshot().unwrap().version.is_some());

    // A build that fails.
    node.clear().unwrap();
    let error = at_once("a build that has failed", {
        let (node, hold) = (Arc::clone(&node), proxy.holder());
        move || {
            node.try_get_with(|_| {
                hold();
                Err::<dogpile_fleet::Refreshed<String>, _>("no route to host")
            })
        }
    });
    assert_eq!(error.unwrap_err().to_string(), "no route to host");
    proxy.release();
    assert_eq!(
        *at_once("the lease", move || other.clear().map(|()| other.get_or_refresh(|| text("third"))))
            .unwrap(),
        "third"
    );
}

#[test]
fn redis_a_finished_build_was_withheld_until_the_store_answered() {
    let server = server_or_skip!(Kind::Redis);
    withheld(Kind::Redis, server.port);
}

#[test]
fn postgres_a_finished_build_was_withheld_until_the_store_answered() {
    let server = server_or_skip!(Kind::Postgres);
    withheld(Kind::Postgres, server.port);
}
