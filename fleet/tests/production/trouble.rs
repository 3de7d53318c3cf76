//! Rights that are missing, fields that are damaged, and what is said about it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{Freshness, ManualClock};
use dogpile_fleet::{
    FleetCell, FleetKeys, FleetPolicy, MemoryStore, Plain, PostgresStore, RedisStore, RefreshStore,
    StoreError,
};

use crate::servers::{Kind, Server, query, redis_command, server_or_skip};
use crate::{Cell, HANG, HOUR, PATIENT, SECOND, cell, eventually, hints_so_far, text};

fn user(server: &Server, rules: &[&str]) -> RedisStore {
    let words = [&["ACL", "SETUSER", "fleet", "reset", "on", ">secret"], rules].concat();
    redis_command(&server.address(), &words);
    RedisStore::new(&format!("redis://fleet:secret@127.0.0.1:{}/", server.port)).unwrap().timeout(HANG)
}

#[test]
fn redis_a_user_without_channels_stored_and_was_told_that_it_had_failed() {
    let server = server_or_skip!(Kind::Redis);
    let store = Arc::new(user(&server, &["~dogpile:*", "+@all", "resetchannels"]));
    let node = cell(Arc::clone(&store), PATIENT);
    node.get_or_refresh(|| text("value"));
    node.invalidate().unwrap();
    let stats = node.stats();
    assert_eq!((stats.published, stats.local_builds, stats.store_errors), (1, 0, 0), "{stats:?}");
    // Who asks is told.
    let error = node.check().unwrap_err().to_string();
    assert!(error.contains("NOPERM") || error.contains("channel"), "{error}");
}

#[test]
fn redis_the_rights_that_the_documentation_names_are_enough() {
    let server = server_or_skip!(Kind::Redis);
    let rights = "+eval +evalsha +script|load +hmget +hset +hdel +hexists +hget +del +pexpire +pttl +time +ping \
                  +publish +subscribe +unsubscribe";
    let rules: Vec<&str> =
        ["~dogpile:*", "resetchannels", "&dogpile:*"].into_iter().chain(rights.split(' ')).collect();
    let store = Arc::new(user(&server, &rules));
    let node = cell(Arc::clone(&store), PATIENT.no_poll());
    node.check().unwrap();
    node.get_or_refresh(|| text("value"));
    let hints = hints_so_far(&node);
    node.clear().unwrap();
    eventually("a hint", || node.stats().hints > hints);
    node.try_get_with(|_| Err::<dogpile_fleet::Refreshed<String>, _>("no")).unwrap_err();
    assert_eq!(node.stats().store_errors, 0, "{:?}", node.last_store_error());
}

/// Hints that were refused were lost without a word, and nodes went on looking as seldom as if all hints arrived: an invalidation showed
/// two minutes later.
#[test]
fn redis_refused_hints_were_kept_quiet() {
    let server = server_or_skip!(Kind::Redis);
    let policy = FleetPolicy::ttl(HOUR).poll(SECOND).patience(HOUR);
    let clock = ManualClock::new();
    let node = |store: &Arc<RedisStore>, name: &str| {
        let reported = Arc::new(Mutex::new(Vec::new()));
        let report = Arc::clone(&reported);
        let node = FleetCell::with_clock(name, Arc::clone(store), Plain, policy, clock.clone());
        let node = node.on_error(move |error| report.lock().unwrap().push(error.to_string()));
        (node, reported)
    };
    let mute = Arc::new(user(&server, &["~dogpile:*", "&*", "+@all", "-publish"]));
    let hears = Arc::new(RedisStore::new(&server.address()).unwrap().timeout(HANG));
    let ((writer, of_writer), (reader, of_reader)) = (node(&mute, "name"), node(&hears, "name"));
    // Other cells of the same stores.
    let others = [node(&mute, "another"), node(&hears, "another")];
    let nodes = [&writer, &reader, &others[0].0, &others[1].0];
    // Time enough for a look of a node that is given no hints, and not for one of a node that is.
    let often = SECOND * 6 / 5;
    let polls = || nodes.map(|node| node.stats().polls);
    let looks = |after: Duration, nodes: [bool; 4]| {
        let before = polls();
        clock.advance(after);
        eventually("a look of those that poll", || {
            let now = polls();
            (0..4).all(|index| !nodes[index] || now[index] > before[index])
        });
    };
    reader.get_or_refresh(|| text("old"));
    others[1].0.get_or_refresh(|| text("old"));
    for node in nodes {
        assert_eq!(*node.get_or_refresh(|| panic!("it is in the store")), "old");
        eventually("it is given hints", || node.stats().hints > 0);
    }
    // The first look was due before that was known, perhaps. Two cells of a store take turns.
    looks(27 * SECOND, [true; 4]);

    writer.invalidate().unwrap();
    eventually("it is said", || writer.stats().hints_refused == 1);
    let error = writer.last_store_error().unwrap().to_string();
    assert!(error.contains("hints cannot be published"), "{error}");
    for _ in 0..3 {
        looks(often, [true, false, true, false]);
    }
    // Another process learns it at its next look, and its other cells with it.
    clock.advance(27 * SECOND);
    eventually("it is stale", || reader.freshness() == Freshness::Stale);
    for _ in 0..3 {
        looks(often, [true; 4]);
    }
    for node in nodes {
        let stats = node.stats();
        assert_eq!((stats.hints_refused, stats.store_errors), (1, 0), "{stats:?}");
    }
    let (of_writer, of_reader) = (of_writer.lock().unwrap(), of_reader.lock().unwrap());
    assert_eq!(*of_writer, [error]);
    assert!(of_reader.len() == 1 && of_reader[0].contains("hints of another node"), "{of_reader:?}");
}

/// Each process built for itself, and only a field that nobody reads said so.
#[test]
fn redis_a_wrong_password_was_kept_quiet() {
    let server = server_or_skip!(Kind::Redis);
    redis_command(&server.address(), &["CONFIG", "SET", "requirepass", "right"]);
    let reported = Arc::new(Mutex::new(Vec::new()));
    let report = Arc::clone(&reported);
    let store = |password: &str| {
        RedisStore::new(&format!("redis://:{password}@127.0.0.1:{}/", server.port)).unwrap().timeout(HANG)
    };
    let node =
        cell(store("wrong"), PATIENT).on_error(move |error| report.lock().unwrap().push(error.to_string()));
    let error = node.check().unwrap_err().to_string();
    assert!(error.contains("Password authentication failed"), "{error}");
    assert_eq!(*reported.lock().unwrap(), [error]);
    // It is signed in as soon as it can be, on a connection of its own.
    cell(store("right"), PATIENT).check().unwrap();
}

/// Only what looks after a cell said it, which a process that only invalidates does not have, nor a loader of keys.
#[test]
fn redis_hints_of_a_process_that_only_invalidates_were_refused_without_a_word() {
    let server = server_or_skip!(Kind::Redis);
    let policy = FleetPolicy::ttl(HOUR).patience(HOUR);
    let reported = Arc::new(Mutex::new(Vec::new()));
    let report = || {
        let reported = Arc::clone(&reported);
        move |error: &Arc<StoreError>| reported.lock().unwrap().push(error.to_string())
    };
    let mute = Arc::new(user(&server, &["~dogpile:*", "&*", "+@all", "-publish"]));
    let writer = FleetCell::<String>::new("name", Arc::clone(&mute), Plain, policy).on_error(report());
    let keys = FleetKeys::<String>::new("keys", mute, Plain, policy).on_error(report());
    for _ in 0..2 {
        writer.invalidate().unwrap();
        writer.clear().unwrap();
        keys.invalidate("key").unwrap();
    }
    assert_eq!((writer.stats().hints_refused, keys.stats().hints_refused), (1, 1));
    let reported = reported.lock().unwrap();
    assert_eq!(reported.len(), 2, "{reported:?}");
    assert!(reported.iter().all(|error| error.contains("hints cannot be published")), "{reported:?}");
}

#[test]
fn redis_a_refused_command_was_kept_quiet() {
    let server = server_or_skip!(Kind::Redis);
    let node = cell(user(&server, &["~dogpile:*", "&*", "+@all", "-hset"]), PATIENT);
    let error = node.check().unwrap_err().to_string();
    assert!(error.contains("can't run this command") || error.contains("NOPERM"), "{error}");
    let node = cell(user(&server, &["~another:*", "&*", "+@all"]), PATIENT);
    node.check().unwrap_err();
    let prefixed = user(&server, &["~another:*", "&another:*", "+@all"]).key_prefix("another:");
    let node = cell(prefixed, PATIENT);
    node.check().unwrap();
    node.get_or_refresh(|| text("value"));
    assert_eq!(node.stats().published, 1);
}

#[test]
fn postgres_errors_said_db_error() {
    let server = server_or_skip!(Kind::Postgres);
    query(&server.address(), PostgresStore::TABLE).unwrap();
    query(&server.address(), "CREATE ROLE reader LOGIN; GRANT SELECT ON dogpile_fleet TO reader").unwrap();
    let of = |user: &str, port: u16| {
        let address = format!("postgres://{user}@127.0.0.1:{port}/postgres");
        cell(PostgresStore::new(&address).unwrap().timeout(HANG), PATIENT)
    };
    let reader = of("reader", server.port);
    let error = reader.check().unwrap_err().to_string();
    assert!(error.contains("permission denied for table dogpile_fleet (SQLSTATE 42501)"), "{error}");
    let nobody = of("nobody", server.port);
    let error = nobody.check().unwrap_err().to_string();
    assert!(error.contains("role \"nobody\" does not exist"), "{error}");
    let closed = of("postgres", 1);
    let error = closed.check().unwrap_err().to_string();
    assert!(error.contains("Connection refused"), "{error}");
    let node = of("postgres", server.port);
    node.check().unwrap();
    futures_lite::future::block_on(node.check_async()).unwrap();
    assert_eq!(crate::servers::number(&server.address(), "SELECT count(*) FROM dogpile_fleet").unwrap(), 0);
}

#[test]
fn a_payload_that_is_too_large_says_so() {
    let server = server_or_skip!(Kind::Redis);
    let store = RedisStore::new(&server.address()).unwrap().timeout(HANG).largest_payload(1000);
    let node = cell(store, PATIENT);
    assert_eq!(node.get_or_refresh(|| "x".repeat(2000)).len(), 2000);
    let error = node.last_store_error().unwrap().to_string();
    assert!(error.contains("2012 bytes") && error.contains("1000 at most"), "{error}");
}

#[test]
fn a_name_that_no_store_can_keep_was_accepted() {
    for name in ["", "line\nbreak", "nul\0", &"x".repeat(65)] {
        let made = std::panic::catch_unwind(|| {
            let policy = FleetPolicy::ttl(HOUR);
            FleetCell::<String>::new(name, MemoryStore::new(), Plain, policy)
        });
        let panic = made.map(drop).unwrap_err();
        let said = panic.downcast_ref::<String>().unwrap();
        assert!(said.contains("must have 1 to 64 bytes and no control characters"), "{said}");
    }
    let _: Cell = FleetCell::new("x".repeat(64), MemoryStore::new(), Plain, FleetPolicy::ttl(HOUR));
}

/// Until somebody deleted the key.
#[test]
fn redis_a_damaged_field_needed_a_hand() {
    let server = server_or_skip!(Kind::Redis);
    let damages: [&[&str]; 9] = [
        &["HSET", "dogpile:name", "epoch", "many"],
        &["HSET", "dogpile:name", "soft", "-5"],
        &["HSET", "dogpile:name", "lease", "1e300"],
        &["HSET", "dogpile:name", "fence", ""],
        &["HSET", "dogpile:name", "incarnation", "zero"],
        &["HSET", "dogpile:name", "version", "99999999999999999999999"],
        &["HSET", "dogpile:name", "tag", "\u{fffd}"],
        &["HDEL", "dogpile:name", "incarnation"],
        &["SET", "dogpile:name", "a string"],
    ];
    let store = || RedisStore::new(&server.address()).unwrap().timeout(HANG);
    for damage in damages {
        redis_command(&server.address(), &["FLUSHALL"]);
        let policy = PATIENT.breaker(Duration::from_millis(10), Duration::from_millis(20));
        let node = cell(store(), policy);
        node.get_or_refresh(|| text("before"));
        redis_command(&server.address(), damage);
        node.invalidate().unwrap();
        // Not always the first caller: it gets the old value if the cell's own thread looks at the store in that moment.
        eventually(&format!("{damage:?}: it is built"), || *node.get_or_refresh(|| text("after")) == "after");
        let stats = node.stats();
        assert_eq!(
            (stats.published, stats.local_builds, stats.store_errors),
            (2, 0, 0),
            "{damage:?}: {stats:?}"
        );
        let newcomer = cell(store(), PATIENT);
        assert_eq!(*newcomer.get_or_refresh(|| panic!("it is in the store")), "after", "{damage:?}");
    }
}

/// Each look that succeeded closed the breaker, so that its pauses did not grow.
#[test]
fn redis_the_breaker_flapped_when_reads_worked_and_writes_did_not() {
    let server = server_or_skip!(Kind::Redis);
    let store: Arc<dyn RefreshStore> = Arc::new(RedisStore::new(&server.address()).unwrap().timeout(HANG));
    let policy = FleetPolicy::ttl(Duration::from_millis(50))
        .poll(Duration::from_millis(1))
        .patience(HOUR)
        .breaker(Duration::from_millis(20), HOUR);
    let refused = Arc::new(AtomicBool::new(false));
    let report = || {
        let refused = Arc::clone(&refused);
        move |error: &Arc<StoreError>| {
            refused.fetch_or(error.to_string().contains("NOREPLICAS"), Ordering::SeqCst);
        }
    };
    let nodes: Vec<Cell> = (0..2).map(|_| cell(Arc::clone(&store), policy).on_error(report())).collect();
    for node in &nodes {
        node.get_or_refresh(|| text("value"));
    }
    redis_command(&server.address(), &["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let errors = || nodes.iter().map(|node| node.stats().store_errors).sum::<u64>();
    eventually("twelve operations have failed, or both have looked five hundred times", || {
        for node in &nodes {
            node.get_or_refresh(|| text("value"));
        }
        errors() > 12 || nodes.iter().all(|node| node.stats().polls >= 500)
    });
    // Twelve pauses that double: 20 ms to 40 s.
    assert!(errors() <= 12, "{} operations failed: the pauses do not grow", errors());
    assert!(refused.load(Ordering::SeqCst), "{:?}", nodes[0].last_store_error());
}

/// `check` did not listen, and the cell polled for ever without a word.
#[test]
fn redis_a_user_that_may_not_listen_was_not_told() {
    let server = server_or_skip!(Kind::Redis);
    let store = Arc::new(user(&server, &["~dogpile:*", "&*", "+@all", "-subscribe"]).timeout(HANG));
    let said = Arc::new(Mutex::new(Vec::new()));
    let report = Arc::clone(&said);
    let node = cell(Arc::clone(&store), PATIENT)
        .on_error(move |error| report.lock().unwrap().push(error.to_string()));
    let error = node.check().unwrap_err().to_string();
    assert!(error.contains("subscribe") || error.contains("NOPERM"), "{error}");
    node.get_or_refresh(|| text("value"));
    eventually("it is said", || node.stats().hints_refused > 0);
    let said = said.lock().unwrap().clone();
    assert!(said.iter().any(|error| error.contains("hints cannot be listened for")), "{said:?}");
    // The check that was refused is an error; what is refused behind the cell's back is none.
    assert_eq!((node.stats().hints_refused, node.stats().store_errors), (1, 1));
}

/// Each check of a node that started sent a hint to all the others.
#[test]
fn redis_checks_were_hints_for_everybody() {
    let server = server_or_skip!(Kind::Redis);
    let store = || {
        let store = RedisStore::new(&server.address()).unwrap();
        Arc::new(store.timeout(HANG).spread_hints(Duration::ZERO))
    };
    let (node, other) = (cell(store(), PATIENT.no_poll()), cell(store(), PATIENT.no_poll()));
    node.get_or_refresh(|| text("value"));
    eventually("it listens", || node.stats().hints > 0);
    other.invalidate().unwrap();
    eventually("it hears", || node.freshness() == Freshness::Stale);
    let hints = node.stats().hints;
    for _ in 0..10 {
        other.check().unwrap();
    }
    // Hints of one name come in the order in which they were sent.
    other.clear().unwrap();
    eventually("it hears of what came after the checks", || node.get().is_none());
    assert_eq!(node.stats().hints, hints + 1);
}
