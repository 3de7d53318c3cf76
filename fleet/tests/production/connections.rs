//! Connections: how many, to which server, and how often they are made.

use std::sync::Arc;
use std::time::Duration;

use dogpile_fleet::{FleetCell, FleetPolicy, Plain, PostgresStore, RedisStore, RefreshStore};

use crate::servers::{Kind, Server, address, redis_command, server_or_skip, skip};
use crate::toxic::{Proxy, hanging_up};
use crate::{Cell, HANG, HOUR, SECOND, cell, eventually, hints_so_far, text};

/// The address stays, the server behind it becomes a replica of the next one, and the connections to it are kept: it goes on
/// answering polls, and refuses changes.
#[test]
fn redis_a_fail_over_behind_a_stable_address_never_healed() {
    let old = server_or_skip!(Kind::Redis);
    let replica_of_old = |_: &std::path::Path| {
        Ok(["--replicaof", "127.0.0.1", &old.port.to_string()].map(ToOwned::to_owned).to_vec())
    };
    let new = match Server::start_with(Kind::Redis, replica_of_old) {
        Ok(server) => server,
        Err(reason) => return skip(Kind::Redis, &reason),
    };
    let proxy = Proxy::start(old.port);
    let through = address(Kind::Redis, proxy.port);
    let policy = FleetPolicy::ttl(Duration::from_millis(200))
        .poll(Duration::from_millis(50))
        .breaker(Duration::from_millis(50), Duration::from_millis(400));
    let nodes: Vec<Cell> = (0..3).map(|_| cell(RedisStore::new(&through).unwrap(), policy)).collect();
    for node in &nodes {
        node.get_or_refresh(|| text("before"));
    }
    let mut replica = redis::Client::open(new.address()).unwrap().get_connection().unwrap();
    eventually("the replica has it", || {
        redis::cmd("EXISTS").arg("dogpile:name").query::<u32>(&mut replica).unwrap() == 1
    });

    redis_command(&new.address(), &["REPLICAOF", "NO", "ONE"]);
    redis_command(&old.address(), &["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
    proxy.exchange(new.port);

    for (number, node) in nodes.iter().enumerate() {
        eventually(&format!("node {number} has a value that was published after the fail-over"), || {
            *node.get_or_refresh(|| text("after")) == "after"
                && node.snapshot().is_some_and(|snapshot| snapshot.version.is_some())
        });
    }
    let published: Vec<u64> = nodes.iter().map(|node| node.stats().published).collect();
    assert!(published.iter().sum::<u64>() >= 2, "{published:?}");
    // The hints come from the new one too: without polls they are all that there is.
    let store = |address: &str| RedisStore::new(address).unwrap().timeout(HANG);
    let listening = cell(store(&through), FleetPolicy::ttl(HOUR).no_poll());
    listening.get_or_refresh(|| text("after"));
    drop(nodes);
    let hints = hints_so_far(&listening);
    store(&new.address()).invalidate("name", dogpile_fleet::Invalidation::Soft).unwrap();
    eventually("a hint", || listening.stats().hints > hints);
}

/// A connection and a thread of each cell: eighty of them locked everybody out of a server with sixty.
fn connections(store: impl RefreshStore + 'static, count: impl Fn() -> usize) {
    let store: Arc<dyn RefreshStore> = Arc::new(store);
    let cells: Vec<Cell> = (0..80)
        .map(|number| {
            let policy = FleetPolicy::ttl(HOUR).patience(HOUR);
            FleetCell::new(format!("cell {number}"), Arc::clone(&store), Plain, policy)
        })
        .collect();
    std::thread::scope(|scope| {
        for cell in &cells {
            scope.spawn(|| assert_eq!(*cell.get_or_refresh(|| text("value")), "value"));
        }
    });
    // All of them listen by the same connection.
    for (number, cell) in cells.iter().enumerate() {
        let hints = hints_so_far(cell);
        store.invalidate(&format!("cell {number}"), dogpile_fleet::Invalidation::Soft).unwrap();
        eventually("a hint", || cell.stats().hints > hints);
    }
    let stats: Vec<_> = cells.iter().map(FleetCell::stats).filter(|stats| stats.store_errors > 0).collect();
    assert!(stats.is_empty(), "{stats:?}");
    let connections = count();
    println!("80 cells: {connections} connections");
    assert!(connections <= 2, "{connections} connections");
}

#[test]
fn redis_had_a_connection_for_the_hints_of_each_cell() {
    let server = server_or_skip!(Kind::Redis);
    let store = RedisStore::new(&server.address()).unwrap().timeout(HANG);
    connections(store, || {
        let mut connection = redis::Client::open(server.address()).unwrap().get_connection().unwrap();
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection).unwrap();
        list.lines().count() - 1
    });
}

#[test]
fn postgres_had_a_connection_for_the_hints_of_each_cell() {
    let few = |_: &std::path::Path| Ok(["-c", "max_connections=8"].map(ToOwned::to_owned).to_vec());
    let server = match Server::start_with(Kind::Postgres, few) {
        Ok(server) => server,
        Err(reason) => return skip(Kind::Postgres, &reason),
    };
    let store = PostgresStore::new(&server.address()).unwrap().timeout(HANG);
    connections(store, || {
        // More may have been made while eighty came at once; no more than four.
        let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
                     AND query NOT LIKE '%LISTEN%' AND query NOT LIKE '%NOTIFY%'";
        let operations = usize::try_from(crate::servers::number(&server.address(), count).unwrap()).unwrap();
        assert!(operations <= 5, "{operations}");
        2
    });
}

/// Four times a second, for ever. A pause may be longer than it should be, on a machine that is busy, and never shorter.
fn listens_less_and_less(store: &impl RefreshStore, calls: &std::sync::Mutex<Vec<std::time::Instant>>) {
    let subscription = store.subscribe("name", Box::new(|| ())).unwrap();
    eventually("six attempts", || calls.lock().unwrap().len() >= 6);
    assert!(!subscription.is_healthy());
    let calls = calls.lock().unwrap();
    let pauses: Vec<Duration> = calls.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("{pauses:?}");
    // 0.25 s, 0.5 s, 1 s, 2 s, 4 s; a quarter more or less.
    for (doublings, pause) in (0..).zip(&pauses) {
        assert!(*pause >= 2u32.pow(doublings) * SECOND * 3 / 16, "{pauses:?}");
    }
    assert!(pauses[4] > 3 * *pauses.iter().min().unwrap(), "{pauses:?}");
}

#[test]
fn redis_listeners_came_back_at_the_same_pace_for_ever() {
    let (port, calls) = hanging_up();
    listens_less_and_less(&RedisStore::new(&address(Kind::Redis, port)).unwrap().timeout(HANG), &calls);
}

#[test]
fn postgres_listeners_came_back_four_times_a_second_for_ever() {
    let (port, calls) = hanging_up();
    let store = PostgresStore::new(&address(Kind::Postgres, port)).unwrap().timeout(HANG);
    listens_less_and_less(&store, &calls);
}

/// As the sessions of a transaction hold a row: operations of the other names go on.
#[test]
fn postgres_a_locked_row_kept_the_other_names_waiting() {
    let server = server_or_skip!(Kind::Postgres);
    let store = Arc::new(PostgresStore::new(&server.address()).unwrap().timeout(HANG));
    store.invalidate("name", dogpile_fleet::Invalidation::Soft).unwrap();
    store.invalidate("other", dogpile_fleet::Invalidation::Soft).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut client, connection) =
        runtime.block_on(tokio_postgres::connect(&server.address(), tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    let transaction = runtime.block_on(client.transaction()).unwrap();
    let invalidate = PostgresStore::invalidation(dogpile_fleet::Invalidation::Soft);
    runtime.block_on(transaction.execute(&*invalidate, &[&"name"])).unwrap();
    let waiting = {
        let store = Arc::clone(&store);
        std::thread::spawn(move || store.invalidate("name", dogpile_fleet::Invalidation::Soft))
    };
    let waits = || {
        let locked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        crate::servers::number(&server.address(), locked).unwrap() == 1
    };
    eventually("it waits for the row", waits);
    for _ in 0..50 {
        store.invalidate("other", dogpile_fleet::Invalidation::Soft).unwrap();
    }
    assert!(waits(), "the operations of the other name have waited until it was stopped");
    // One that has less time is told why it was stopped.
    let hasty = PostgresStore::new(&server.address()).unwrap().timeout(5 * SECOND);
    let error = hasty.invalidate("name", dogpile_fleet::Invalidation::Soft).unwrap_err();
    assert!(error.is_busy(), "{error}");
    assert!(error.to_string().contains("a transaction of others holds the row"), "{error}");
    runtime.block_on(transaction.rollback()).unwrap();
    waiting.join().unwrap().unwrap();
}

/// A server that came back was asked by all nodes at once: only hints of changes were spread.
#[test]
fn redis_hints_after_a_reconnection_were_not_spread() {
    let mut server = server_or_skip!(Kind::Redis);
    let store = RedisStore::new(&server.address()).unwrap().timeout(HANG).spread_hints(1000 * HOUR);
    let (hint, hints) = std::sync::mpsc::channel();
    let subscription = store.subscribe("name", Box::new(move || _ = hint.send(()))).unwrap();
    hints.recv_timeout(HANG).expect("the first one comes at once");
    server.kill();
    server.run().unwrap();
    // Its first connection had been made.
    eventually("it listens again", || {
        store.hint_connection_attempts() > 1 && format!("{subscription:?}").contains("is_healthy: true")
    });
    // By the thread that would have given the hint before.
    store.poll("name", None).unwrap();
    assert!(hints.try_recv().is_err(), "it is to come within a thousand hours");
}
