//! What stays in a store when nobody uses it any more.

use std::sync::Arc;
use std::time::Duration;

use dogpile::ManualClock;
use dogpile_fleet::{FileStore, FleetCell, FleetPolicy, Plain, PostgresStore, RedisStore, RefreshStore};

use crate::servers::{Kind, Server, number, server_or_skip};
use crate::{HOUR, PATIENT, SECOND, cell, eventually, text};

/// The milliseconds that the key of `name` has to live; -1: for ever, -2: there is none.
fn lives(server: &Server) -> i64 {
    let mut connection = redis::Client::open(server.address()).unwrap().get_connection().unwrap();
    redis::cmd("PTTL").arg("dogpile:name").query(&mut connection).unwrap()
}

#[test]
fn redis_entries_of_names_that_nobody_uses_stayed_for_ever() {
    let server = server_or_skip!(Kind::Redis);
    let store = || RedisStore::new(&server.address()).unwrap();
    let days = |days: i64| days * 24 * 3600 * 1000;
    let node = cell(store(), PATIENT);
    node.get_or_refresh(|| text("value"));
    assert!((days(29)..=days(30)).contains(&lives(&server)), "{}", lives(&server));
    node.check().unwrap();
    assert!((days(29)..=days(30)).contains(&lives(&server)), "a check changes nothing");
    drop(node);
    store().delete("name").unwrap();
    assert_eq!(lives(&server), -2);

    let node = cell(store().expire_unused(None), PATIENT);
    node.check().unwrap();
    node.get_or_refresh(|| text("value"));
    assert_eq!(lives(&server), -1);

    // Each change sets it anew, and an entry that has gone is a loss like any other.
    let store = Arc::new(store().expire_unused(Some(HOUR)));
    store.invalidate("name", dogpile_fleet::Invalidation::Soft).unwrap();
    assert!((1..=3_600_000).contains(&lives(&server)));
    eventually("stale", || node.freshness() != dogpile::Freshness::Fresh);
    let short = cell(RedisStore::new(&server.address()).unwrap().expire_unused(Some(SECOND / 5)), PATIENT);
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
    a_node_noticed_that_its_entry_was_deleted(RedisStore::new(&server.address()).unwrap());
}

#[test]
fn postgres_a_node_noticed_that_its_entry_was_deleted() {
    let server = server_or_skip!(Kind::Postgres);
    a_node_noticed_that_its_entry_was_deleted(PostgresStore::new(&server.address()).unwrap());
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
