//! Redis and `PostgreSQL`.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use dogpile::ManualClock;
use dogpile_fleet::conformance;
use dogpile_fleet::{
    Acquire, Current, Invalidation, PostgresStore, Publication, Publish, RedisStore, RefreshStore, Request,
    Token,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::operations::operations;
use crate::servers::{Kind, Server, query, redis_command, server_or_skip};

const HOUR: Duration = Duration::from_secs(3600);
const REQUEST: Request = Request { lease: HOUR, known: None, refuse: None };

fn store(server: &Server, kind: Kind) -> Arc<dyn RefreshStore> {
    match kind {
        Kind::Redis => Arc::new(RedisStore::new(&server.address()).unwrap().timeout(Duration::from_secs(30))),
        Kind::Postgres => {
            Arc::new(PostgresStore::new(&server.address()).unwrap().timeout(Duration::from_secs(30)))
        }
    }
}

fn win(store: &dyn RefreshStore, name: &str) -> Token {
    match store.acquire(name, &REQUEST).unwrap() {
        Acquire::Won { token, .. } => token,
        other => panic!("{other:?}"),
    }
}

fn publish(store: &dyn RefreshStore, name: &str, token: &Token, payload: &[u8]) -> Publish {
    let publication = Publication { payload, tag: None, soft: HOUR, hard: HOUR };
    store.publish(name, token, &publication).unwrap()
}

fn random_operations(
    cases: u32,
    replay: impl Fn(&str, &[conformance::Operation]) -> Result<(), TestCaseError>,
) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let number = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&operations(), |operations| {
            number.set(number.get() + 1);
            // A name for each case, so that no state is left from the one before.
            replay(&format!("case {}", number.get()), &operations)
        })
        .unwrap();
}

#[test]
fn redis_conforms() {
    let server = server_or_skip!(Kind::Redis);
    conformance::check(&*store(&server, Kind::Redis), std::thread::sleep);
}

#[test]
fn redis_answers_as_the_rules_do() {
    let server = server_or_skip!(Kind::Redis);
    random_operations(200, |name, operations| {
        let clock = ManualClock::new();
        // About now: numbers of this size must not lose a digit.
        clock.advance(Duration::from_secs(1_800_000_000));
        let store = RedisStore::new(&server.address()).unwrap().with_clock(clock.clone()).timeout(HOUR);
        let lose = || redis_command(&server.address(), &["DEL", &format!("dogpile:{name}")]);
        conformance::replay(&store, name, &clock, lose, operations);
        Ok(())
    });
}

#[test]
fn postgres_conforms() {
    let server = server_or_skip!(Kind::Postgres);
    conformance::check(&*store(&server, Kind::Postgres), std::thread::sleep);
}

#[test]
fn postgres_answers_as_the_rules_do() {
    let server = server_or_skip!(Kind::Postgres);
    query(&server.address(), PostgresStore::TABLE).unwrap();
    random_operations(100, |name, operations| {
        let clock = ManualClock::new();
        clock.advance(Duration::from_secs(1_800_000_000));
        let store = PostgresStore::new(&server.address()).unwrap().with_clock(clock.clone()).timeout(HOUR);
        let lose =
            || query(&server.address(), &format!("DELETE FROM dogpile_fleet WHERE name = '{name}'")).unwrap();
        conformance::replay(&store, name, &clock, lose, operations);
        Ok(())
    });
}

/// Many connections at once: exactly one is elected, fences are unique, and whoever is not the newest is refused.
fn elects_one(kind: Kind, server: &Server) {
    const THREADS: usize = 8;
    // So that the table is there.
    store(server, kind).invalidate("other", Invalidation::Soft).unwrap();
    for round in 0..20 {
        let name = &format!("round {round}");
        let start = std::sync::Barrier::new(THREADS);
        let won: Vec<Option<Token>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let store = store(server, kind);
                        start.wait();
                        match store.acquire(name, &REQUEST).unwrap() {
                            Acquire::Won { token, .. } => Some(token),
                            Acquire::Busy { .. } => None,
                            other => panic!("{other:?}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let tokens: Vec<Token> = won.into_iter().flatten().collect();
        assert_eq!(tokens.len(), 1, "{tokens:?}");
        assert!(matches!(publish(&*store(server, kind), name, &tokens[0], b"x"), Publish::Stored(_)));
    }
}

#[test]
fn redis_elects_one() {
    elects_one(Kind::Redis, &server_or_skip!(Kind::Redis));
}

#[test]
fn postgres_elects_one() {
    elects_one(Kind::Postgres, &server_or_skip!(Kind::Postgres));
}

/// A server that has been restarted: the connection is made anew, and what was stored is there.
fn survives_a_restart(kind: Kind, server: &mut Server) {
    let store = store(server, kind);
    let token = win(&*store, "name");
    assert!(matches!(publish(&*store, "name", &token, b"value"), Publish::Stored(_)));
    server.kill();
    assert!(store.poll("name", None).is_err());
    server.run().unwrap();
    let Current::Newer(value) = store.poll("name", None).unwrap().current else { panic!("lost") };
    assert_eq!(value.payload, b"value");
    // And a connection that was closed while nobody looked.
    server.kill();
    server.run().unwrap();
    assert!(matches!(store.acquire("name", &REQUEST).unwrap(), Acquire::Fresh(_)));
}

#[test]
fn redis_survives_a_restart() {
    survives_a_restart(Kind::Redis, &mut server_or_skip!(Kind::Redis));
}

#[test]
fn postgres_survives_a_restart() {
    survives_a_restart(Kind::Postgres, &mut server_or_skip!(Kind::Postgres));
}

/// Every change is followed by a hint, also when the server was away in between.
fn gives_hints(kind: Kind, server: &mut Server) {
    const HANG: Duration = Duration::from_secs(60);
    let store = match kind {
        Kind::Redis => Arc::new(RedisStore::new(&server.address()).unwrap()) as Arc<dyn RefreshStore>,
        Kind::Postgres => Arc::new(PostgresStore::new(&server.address()).unwrap()),
    };
    store.invalidate("other", Invalidation::Soft).unwrap();
    let (hint, hints) = channel();
    let hint = std::sync::Mutex::new(hint);
    let subscription =
        store.subscribe("name", Box::new(move || hint.lock().unwrap().send(()).unwrap_or(()))).unwrap();
    hints.recv_timeout(HANG).expect("a hint at the beginning");
    store.invalidate("other", Invalidation::Soft).unwrap();
    let token = win(&*store, "name");
    assert!(hints.try_recv().is_err(), "nothing has changed for the others");
    publish(&*store, "name", &token, b"value");
    hints.recv_timeout(HANG).expect("a hint at a publication");
    store.invalidate("name", Invalidation::Soft).unwrap();
    hints.recv_timeout(HANG).expect("a hint at an invalidation");
    server.kill();
    server.run().unwrap();
    hints.recv_timeout(HANG).expect("a hint at the reconnection");
    drop(subscription);
    // The thread lets go of its end.
    while hints.recv_timeout(HANG).is_ok() {}
    assert_eq!(hints.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected));
}

#[test]
fn redis_gives_hints() {
    gives_hints(Kind::Redis, &mut server_or_skip!(Kind::Redis));
}

#[test]
fn postgres_gives_hints() {
    gives_hints(Kind::Postgres, &mut server_or_skip!(Kind::Postgres));
}

#[test]
fn redis_forgets_its_scripts_and_is_told_them_again() {
    let server = server_or_skip!(Kind::Redis);
    let store = store(&server, Kind::Redis);
    store.invalidate("name", Invalidation::Soft).unwrap();
    redis_command(&server.address(), &["SCRIPT", "FLUSH"]);
    store.invalidate("name", Invalidation::Soft).unwrap();
    assert_eq!(win(&*store, "name").epoch, 2);
}

#[test]
fn a_server_that_stands_still_is_an_error_within_the_timeout() {
    let server = server_or_skip!(Kind::Redis);
    let store = RedisStore::new(&server.address()).unwrap().timeout(Duration::from_millis(50));
    store.poll("name", None).unwrap();
    server.stop();
    store.poll("name", None).unwrap_err();
    store.poll("name", None).unwrap_err();
    server.go_on();
    let patient = RedisStore::new(&server.address()).unwrap().timeout(HOUR);
    patient.poll("name", None).unwrap();
}

#[test]
fn an_invalidation_joins_a_transaction() {
    let server = server_or_skip!(Kind::Postgres);
    let store = store(&server, Kind::Postgres);
    let token = win(&*store, "name");
    assert!(matches!(publish(&*store, "name", &token, b"value"), Publish::Stored(_)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let invalidate = |how, commit: bool| {
        runtime.block_on(async {
            let (mut client, connection) =
                tokio_postgres::connect(&server.address(), tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            let transaction = client.transaction().await.unwrap();
            transaction.execute(&*PostgresStore::invalidation(how), &[&"name"]).await.unwrap();
            if commit { transaction.commit().await } else { transaction.rollback().await }.unwrap();
        });
    };
    invalidate(Invalidation::Soft, false);
    assert!(matches!(store.acquire("name", &REQUEST).unwrap(), Acquire::Fresh(_)));
    invalidate(Invalidation::Soft, true);
    let token = win(&*store, "name");
    assert_eq!(token.epoch, 1);
    // A build that has begun already waits for the transaction, and is then refused.
    invalidate(Invalidation::Hard, true);
    assert_eq!(publish(&*store, "name", &token, b"late"), Publish::Invalidated);
    assert_eq!(store.poll("name", None).unwrap().current, Current::Nothing { cleared: true });
    // Of an entry that is not there yet.
    query(&server.address(), "TRUNCATE dogpile_fleet").unwrap();
    invalidate(Invalidation::Hard, true);
    assert_eq!(store.poll("name", None).unwrap().current, Current::Nothing { cleared: true });
    assert_eq!(win(&*store, "name").epoch, 1);
}
