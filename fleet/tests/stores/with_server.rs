//! Redis and `PostgreSQL`.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use dogpile::ManualClock;
use dogpile_fleet::conformance;
use dogpile_fleet::{
    Acquire, Current, FleetCell, FleetPolicy, Invalidation, Plain, PostgresStore, Publication, Publish,
    RedisStore, RefreshStore, Request, Subscription, Token,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::operations::operations;
use crate::servers::{Kind, Server, certificate, free_port, query, redis_command, server_or_skip, skip};

const HOUR: Duration = Duration::from_secs(3600);
const HANG: Duration = Duration::from_secs(60);
const REQUEST: Request = Request::new(HOUR);

fn store(server: &Server, kind: Kind) -> Arc<dyn RefreshStore> {
    match kind {
        Kind::Redis | Kind::Valkey => Arc::new(RedisStore::new(&server.address()).unwrap().timeout(HANG)),
        Kind::Postgres => Arc::new(PostgresStore::new(&server.address()).unwrap().timeout(HANG)),
    }
}

/// Waits for something that the server is about to do.
#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let hang = std::time::Instant::now() + HANG;
    while !condition() {
        assert!(std::time::Instant::now() < hang, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
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

fn answers_as_the_rules_do(server: &Server) {
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
fn redis_answers_as_the_rules_do() {
    answers_as_the_rules_do(&server_or_skip!(Kind::Redis));
}

#[test]
fn valkey_conforms_and_answers_as_the_rules_do() {
    let server = server_or_skip!(Kind::Valkey);
    conformance::check(&*store(&server, Kind::Valkey), std::thread::sleep);
    gives_a_hint(&*store(&server, Kind::Valkey));
    answers_as_the_rules_do(&server);
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

/// A subscription that has begun to give hints, and the hints that come from now on.
fn listen(store: &dyn RefreshStore, name: &str) -> (Subscription, Receiver<()>) {
    let (hint, hints) = channel();
    let hint = std::sync::Mutex::new(hint);
    let subscription =
        store.subscribe(name, Box::new(move || hint.lock().unwrap().send(()).unwrap_or(()))).unwrap();
    hints.recv_timeout(HANG).expect("a hint at the beginning");
    (subscription, hints)
}

/// Every change is followed by a hint, also when the server was away in between.
fn gives_hints(kind: Kind, server: &mut Server) {
    // Without a spread hints come in the order of the changes.
    let store = match kind {
        Kind::Redis | Kind::Valkey => {
            let store = RedisStore::new(&server.address()).unwrap().timeout(HANG);
            Arc::new(store.spread_hints(Duration::ZERO)) as Arc<dyn RefreshStore>
        }
        Kind::Postgres => {
            let store = PostgresStore::new(&server.address()).unwrap().timeout(HANG);
            Arc::new(store.spread_hints(Duration::ZERO))
        }
    };
    store.invalidate("other", Invalidation::Soft).unwrap();
    let ((subscription, hints), (_other, others)) = (listen(&*store, "name"), listen(&*store, "other"));
    let token = win(&*store, "name");
    store.invalidate("other", Invalidation::Soft).unwrap();
    others.recv_timeout(HANG).expect("a hint at an invalidation of the other");
    assert_eq!(hints.try_recv(), Err(TryRecvError::Empty), "nothing has changed for the others");
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
    assert_eq!(hints.try_recv(), Err(TryRecvError::Disconnected));
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
    let connected = RedisStore::new(&server.address()).unwrap().timeout(HOUR);
    connected.poll("name", None).unwrap();
    let store = Arc::new(connected.timeout(Duration::from_millis(50)));
    server.stop();
    // By the connection that it has, and by one that cannot be made.
    for _ in 0..2 {
        let (answer, answers) = channel();
        let store = Arc::clone(&store);
        std::thread::spawn(move || drop(answer.send(store.poll("name", None))));
        let error = answers.recv_timeout(HANG).expect("it is over").unwrap_err().to_string();
        assert!(error.contains("no complete answer within the timeout of 50ms"), "{error}");
    }
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

/// It brings a runtime of its own, and one must not be started, or dropped, within another.
#[test]
fn postgres_panicked_on_a_thread_of_a_runtime() {
    let server = server_or_skip!(Kind::Postgres);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = store(&server, Kind::Postgres);
        let cell = FleetCell::new("name", Arc::clone(&store), Plain, FleetPolicy::ttl(HOUR));
        assert_eq!(*cell.get_or_refresh(|| String::from("value")), "value");
        cell.invalidate().unwrap();
        #[cfg(feature = "async")]
        {
            cell.invalidate_async().await.unwrap();
            assert_eq!(store.poll("name", None).unwrap().epoch.number, 2);
            assert_eq!(*cell.get_or_refresh_async(async || String::from("new")).await, "new");
            cell.clear_async().await.unwrap();
            assert_eq!(store.poll("name", None).unwrap().current, Current::Nothing { cleared: true });
            assert!(cell.get().is_none());
        }
        // The last owner but the cell's thread, and without that the last one.
        drop(cell);
        let alone = PostgresStore::new(&server.address()).unwrap().timeout(HANG);
        alone.poll("name", None).unwrap();
        drop(alone);
    });
}

/// Not every database has `read committed` as its default.
#[test]
fn postgres_failed_where_transactions_are_isolated() {
    let server = server_or_skip!(Kind::Postgres);
    for level in ["repeatable read", "serializable"] {
        let default = format!("ALTER DATABASE postgres SET default_transaction_isolation = '{level}'");
        query(&server.address(), &default).unwrap();
        elects_one(Kind::Postgres, &server);
        query(&server.address(), "TRUNCATE dogpile_fleet").unwrap();
    }
    conformance::check(&*store(&server, Kind::Postgres), std::thread::sleep);
}

/// Somebody's transaction holds the row for longer than an operation may take.
#[test]
fn postgres_elected_who_had_long_given_up() {
    let server = server_or_skip!(Kind::Postgres);
    let patient = store(&server, Kind::Postgres);
    patient.invalidate("name", Invalidation::Soft).unwrap();
    let connected = PostgresStore::new(&server.address()).unwrap().timeout(HANG);
    connected.poll("name", None).unwrap();
    let hasty = connected.timeout(Duration::from_millis(200));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut client, connection) =
        runtime.block_on(tokio_postgres::connect(&server.address(), tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    let transaction = runtime.block_on(client.transaction()).unwrap();
    let invalidate = PostgresStore::invalidation(Invalidation::Soft);
    runtime.block_on(transaction.execute(&*invalidate, &[&"name"])).unwrap();
    // On a machine that is busy the time may be over before the server has begun to wait.
    eventually("the server has waited", || hasty.acquire("name", &REQUEST).unwrap_err().is_busy());
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    eventually("the server does not wait on its behalf any more", || {
        runtime.block_on(transaction.query_one(waiting, &[])).unwrap().get::<_, i64>(0) == 0
    });
    runtime.block_on(transaction.commit()).unwrap();
    assert!(patient.poll("name", None).unwrap().lease_left.is_zero());
    assert_eq!(win(&*patient, "name").fence.number, 1);
}

#[test]
fn postgres_over_an_encrypted_connection() {
    let ssl = |directory: &std::path::Path| {
        let [key, certificate] = certificate(directory)?;
        Ok(["ssl=on".to_owned(), format!("ssl_key_file={key}"), format!("ssl_cert_file={certificate}")]
            .into_iter()
            .flat_map(|setting| ["-c".to_owned(), setting])
            .collect())
    };
    let server = match Server::start_with(Kind::Postgres, ssl) {
        Ok(server) => server,
        Err(reason) => return skip(Kind::Postgres, &reason),
    };
    let certificate = std::fs::read(server.file("certificate.pem")).unwrap();
    let certificate = native_tls::Certificate::from_pem(&certificate).unwrap();
    let connector = |trusts: bool| {
        let mut connector = native_tls::TlsConnector::builder();
        if trusts {
            connector.add_root_certificate(certificate.clone());
        }
        postgres_native_tls::MakeTlsConnector::new(connector.build().unwrap())
    };
    // By the name that the certificate is for, at the address where it listens.
    let mut by_name = tokio_postgres::Config::new();
    by_name.user("postgres").dbname("postgres").host("localhost").port(server.port);
    by_name.hostaddr(std::net::Ipv4Addr::LOCALHOST.into());
    by_name.ssl_mode(tokio_postgres::config::SslMode::Require);
    let plain = PostgresStore::with_tls(by_name.clone(), tokio_postgres::NoTls);
    plain.poll("name", None).expect_err("not without encryption");
    let suspicious = PostgresStore::with_tls(by_name.clone(), connector(false));
    suspicious.poll("name", None).expect_err("not with a certificate that nobody knows");
    let store = PostgresStore::with_tls(by_name, connector(true)).timeout(HANG);
    conformance::check(&store, std::thread::sleep);
    gives_a_hint(&store);
}

#[test]
fn redis_over_an_encrypted_connection() {
    let port = free_port();
    let tls = |directory: &std::path::Path| {
        let [key, certificate] = certificate(directory)?;
        let port = port.to_string();
        let words = ["--tls-port", &port, "--tls-key-file", &key, "--tls-cert-file", &certificate];
        Ok([&words[..], &["--tls-ca-cert-file", &certificate, "--tls-auth-clients", "no"]]
            .concat()
            .into_iter()
            .map(ToOwned::to_owned)
            .collect())
    };
    let _server = match Server::start_with(Kind::Redis, tls) {
        Ok(server) => server,
        Err(reason) => return skip(Kind::Redis, &reason),
    };
    let plain = RedisStore::new(&format!("redis://127.0.0.1:{port}/")).unwrap();
    plain.poll("name", None).expect_err("not without encryption");
    // Nobody has signed its certificate: that is not what is tested here.
    let client = redis::Client::open(format!("rediss://127.0.0.1:{port}/#insecure")).unwrap();
    let store = RedisStore::with_client(client).timeout(HANG);
    conformance::check(&store, std::thread::sleep);
    gives_a_hint(&store);
}

fn gives_a_hint(store: &dyn RefreshStore) {
    let (_subscription, hints) = listen(store, "name");
    store.invalidate("name", Invalidation::Soft).unwrap();
    hints.recv_timeout(HANG).expect("a hint at an invalidation");
}

/// A cluster of one, which checks as strictly as others that a script touches one slot only.
#[test]
fn redis_as_a_cluster() {
    let cluster = |_: &std::path::Path| {
        let port = free_port().to_string();
        Ok(["--cluster-enabled", "yes", "--cluster-port", &port].map(ToOwned::to_owned).to_vec())
    };
    let server = match Server::start_with(Kind::Redis, cluster) {
        Ok(server) => server,
        Err(reason) => return skip(Kind::Redis, &reason),
    };
    redis_command(&server.address(), &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let store = store(&server, Kind::Redis);
    eventually("the cluster is there", || store.poll("name", None).is_ok());
    conformance::check(&*store, std::thread::sleep);
    gives_a_hint(&*store);
}
