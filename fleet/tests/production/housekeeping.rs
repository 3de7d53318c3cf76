//! What stays in a store when nobody uses it any more.

use std::sync::Arc;
use std::time::Duration;

use dogpile::ManualClock;
use dogpile_fleet::{FileStore, FleetCell, FleetPolicy, Plain, PostgresStore, RedisStore, RefreshStore};

use crate::servers::{Kind, Server, number, server_or_skip};
use crate::{HANG, HOUR, PATIENT, SECOND, cell, eventually, hints_so_far, text};

/// The milliseconds that the key of `name` has to live; -1: for ever, -2: there is none.
fn lives(server: &Server) -> i64 {
    let mut connection = redis::Client::open(server.address()).unwrap().get_connection().unwrap();
    redis::cmd("PTTL").arg("dogpile:name").query(&mut connection).unwrap()
}

#[test]
fn redis_entries_of_names_that_nobody_uses_stayed_for_ever() {
    let server = server_or_skip!(Kind::Redis);
    let store = || RedisStore::new(&server.address()).unwrap().timeout(HANG);
    let unused = |time| Arc::new(store().expire_unused(time));
    let days = |days: i64| days * 24 * 3600 * 1000;
    let node = cell(store(), PATIENT);
    node.get_or_refresh(|| text("value"));
    assert!((days(29)..=days(30)).contains(&lives(&server)), "{}", lives(&server));
    node.check().unwrap();
    assert!((days(29)..=days(30)).contains(&lives(&server)), "a check changes nothing");
    drop(node);
    store().delete("name").unwrap();
    assert_eq!(lives(&server), -2);

    let node = cell(unused(None), PATIENT);
    node.check().unwrap();
    node.get_or_refresh(|| text("value"));
    assert_eq!(lives(&server), -1);

    // Each change sets it anew, and an entry that has gone is a loss like any other.
    let store = unused(Some(HOUR));
    store.invalidate("name", dogpile_fleet::Invalidation::Soft).unwrap();
    assert!((1..=3_600_000).contains(&lives(&server)));
    eventually("stale", || node.freshness() != dogpile::Freshness::Fresh);
    let short = cell(unused(Some(SECOND / 5)), PATIENT);
    short.get_or_refresh(|| text("second"));
    eventually("it has gone by itself", || lives(&server) == -2);
    eventually("the node has noticed, and builds", || *short.get_or_refresh(|| text("third")) == "third");
}

fn a_node_noticed_that_its_entry_was_deleted(store: impl RefreshStore + 'static) {
    let store: Arc<dyn RefreshStore> = Arc::new(store);
    let node = cell(Arc::clone(&store), PATIENT);
    node.get_or_refresh(|| text("value"));
    let before = node.snapshot().unwrap().version.unwrap();
    store.delete("name").unwrap();
    eventually("it is built anew", || *node.get_or_refresh(|| text("again")) == "again");
    assert_ne!(node.snapshot().unwrap().version.unwrap().incarnation, before.incarnation);
}

#[test]
fn redis_a_node_noticed_that_its_entry_was_deleted() {
    let server = server_or_skip!(Kind::Redis);
    a_node_noticed_that_its_entry_was_deleted(RedisStore::new(&server.address()).unwrap().timeout(HANG));
}

#[test]
fn postgres_a_node_noticed_that_its_entry_was_deleted() {
    let server = server_or_skip!(Kind::Postgres);
    a_node_noticed_that_its_entry_was_deleted(PostgresStore::new(&server.address()).unwrap().timeout(HANG));
}

#[test]
fn file_a_node_noticed_that_its_entry_was_deleted() {
    let directory = tempfile::tempdir().unwrap();
    a_node_noticed_that_its_entry_was_deleted(FileStore::open(directory.path()).unwrap());
    let left = |entry: std::fs::DirEntry| entry.metadata().unwrap().len();
    FileStore::open(directory.path()).unwrap().delete("name").unwrap();
    let bytes: u64 = std::fs::read_dir(directory.path()).unwrap().map(|entry| left(entry.unwrap())).sum();
    assert_eq!(bytes, 0, "nothing but the lock");
}

#[test]
fn postgres_entries_of_names_that_nobody_uses_stayed_for_ever() {
    let server = server_or_skip!(Kind::Postgres);
    let clock = ManualClock::new();
    clock.advance(HOUR);
    let store =
        Arc::new(PostgresStore::new(&server.address()).unwrap().with_clock(clock.clone()).timeout(HOUR));
    let build = |name: &str, ttl| {
        let policy = FleetPolicy::ttl(ttl).patience(HOUR).no_poll();
        let node = FleetCell::with_clock(name, Arc::clone(&store), Plain, policy, clock.clone());
        node.get_or_refresh(|| text("value"));
    };
    build("unused", SECOND);
    build("fresh", 100 * HOUR);
    store.invalidate("never built", dogpile_fleet::Invalidation::Hard).unwrap();
    clock.advance(10 * HOUR);
    build("used", SECOND);
    assert_eq!(store.delete_unused(11 * HOUR).unwrap(), 0);
    assert_eq!(store.delete_unused(5 * HOUR).unwrap(), 2);
    let left = "SELECT count(*) FROM dogpile_fleet WHERE name IN ('fresh', 'used')";
    assert_eq!(number(&server.address(), left).unwrap(), 2);
    clock.advance(HOUR);
    assert_eq!(store.delete_unused(Duration::ZERO).unwrap(), 1);
}

#[test]
fn redis_two_programs_share_a_server_by_their_prefixes() {
    let server = server_or_skip!(Kind::Redis);
    let store = |prefix: &str| RedisStore::new(&server.address()).unwrap().timeout(HANG).key_prefix(prefix);
    let (shop, office) = (cell(store("shop:"), PATIENT), cell(store("office:"), PATIENT));
    assert_eq!(*shop.get_or_refresh(|| text("shop")), "shop");
    assert_eq!(*office.get_or_refresh(|| text("office")), "office");
    let mut connection = redis::Client::open(server.address()).unwrap().get_connection().unwrap();
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
    keys.sort();
    assert_eq!(keys, ["office:name", "shop:name"]);
    // Hints too.
    eventually("each listens to its own", || {
        let mut channels: Vec<String> =
            redis::cmd("PUBSUB").arg("CHANNELS").arg("*").query(&mut connection).unwrap();
        channels.sort();
        channels == ["office:name", "shop:name"]
    });
    let hints = hints_so_far(&shop);
    store("shop:").invalidate("name", dogpile_fleet::Invalidation::Soft).unwrap();
    eventually("a hint", || shop.stats().hints > hints);
}

#[test]
fn postgres_two_programs_share_a_database_by_their_tables() {
    let server = server_or_skip!(Kind::Postgres);
    crate::servers::query(&server.address(), "CREATE SCHEMA shop").unwrap();
    let store = |table: &str| PostgresStore::new(&server.address()).unwrap().timeout(HANG).table(table);
    let (shop, office) = (cell(store("shop.fleet"), PATIENT), cell(store("office_fleet"), PATIENT));
    shop.check().unwrap();
    assert_eq!(*shop.get_or_refresh(|| text("shop")), "shop");
    assert_eq!(*office.get_or_refresh(|| text("office")), "office");
    let rows = "SELECT (SELECT count(*) FROM shop.fleet) * 10 + (SELECT count(*) FROM office_fleet)";
    assert_eq!(number(&server.address(), rows).unwrap(), 11);
    dogpile_fleet::conformance::check(&store("shop.fleet"), std::thread::sleep);
    assert!(
        number(&server.address(), "SELECT count(*) FROM dogpile_fleet").is_err(),
        "there is no other table"
    );

    let invalidate =
        PostgresStore::invalidation(dogpile_fleet::Invalidation::Soft).replace("dogpile_fleet", "shop.fleet");
    crate::servers::query(&server.address(), &invalidate.replace("$1", "'name'")).unwrap();
    eventually("it is rebuilt", || *shop.get_or_refresh(|| text("again")) == "again");
    assert_eq!(*office.get_or_refresh(|| panic!("it is fresh")), "office");
    for name in ["", "a.b.c", "shop; DROP TABLE x", "Shop", "1st"] {
        let refused = std::panic::catch_unwind(|| PostgresStore::new(&server.address()).unwrap().table(name));
        assert!(refused.is_err(), "{name}");
    }
}
