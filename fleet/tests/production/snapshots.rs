//! Nothing acknowledged is undone, nothing failed is forgotten.

use std::sync::Arc;
use std::time::Duration;

use dogpile::Freshness;
use dogpile_fleet::{
    FleetKeys, FleetPolicy, FleetValue, Invalidation, Plain, PostgresStore, RedisStore, RefreshStore,
    Refreshed,
};

use crate::servers::{Kind, Server, query, server_or_skip};
use crate::{Cell, HANG, HOUR, PATIENT, cell, eventually, text};

/// The entry of a name as it is, or put back as it was.
fn snapshot(server: &Server, name: &str) -> Vec<u8> {
    let mut connection = redis::Client::open(server.address()).unwrap().get_connection().unwrap();
    redis::cmd("DUMP").arg(format!("dogpile:{name}")).query(&mut connection).unwrap()
}

fn restore(server: &Server, name: &str, snapshot: &[u8]) {
    let mut connection = redis::Client::open(server.address()).unwrap().get_connection().unwrap();
    let mut command = redis::cmd("RESTORE");
    command.arg(format!("dogpile:{name}")).arg(0).arg(snapshot).arg("REPLACE").exec(&mut connection).unwrap();
}

#[test]
fn redis_a_restored_snapshot_undid_a_clear_that_was_acknowledged() {
    let server = server_or_skip!(Kind::Redis);
    let store = || RedisStore::new(&server.address()).unwrap().timeout(HANG);
    let node = cell(store(), PATIENT.no_poll());
    node.get_or_refresh(|| text("secret"));
    let before = snapshot(&server, "name");
    node.clear().unwrap();
    restore(&server, "name", &before);
    let value = node.get_or_refresh(|| text("without it"));
    assert_eq!(*value, "without it");
    // The others agree, whatever they have seen.
    let newcomer = cell(store(), PATIENT);
    assert_eq!(*newcomer.get_or_refresh(|| panic!("it is in the store")), "without it");
}

/// As with cells; but of a key that was cleared, a loader and its map have nothing.
#[test]
fn redis_a_restored_snapshot_undid_what_had_been_acknowledged_of_a_key() {
    let server = server_or_skip!(Kind::Redis);
    let store = || Arc::new(RedisStore::new(&server.address()).unwrap().timeout(HANG));
    let keys = FleetKeys::<String>::new("users", store(), Plain, PATIENT.no_poll());
    let load = |keys: &FleetKeys<String>, held: Option<Arc<FleetValue<String>>>, value: &str| {
        let loaded = keys.load("7", held, || Ok::<_, &str>(text(value))).unwrap();
        let (Refreshed::New(value) | Refreshed::NewFor(value, _)) = loaded else { panic!("it has a value") };
        Arc::new(value)
    };
    // Cleared, and only declared stale; the latter with the value and without it.
    for (how, keeps) in [(Invalidation::Hard, false), (Invalidation::Soft, false), (Invalidation::Soft, true)]
    {
        let held = load(&keys, None, "secret");
        let before = snapshot(&server, "users:7");
        match how {
            Invalidation::Hard => keys.clear("7").unwrap(),
            Invalidation::Soft => keys.invalidate("7").unwrap(),
        }
        restore(&server, "users:7", &before);
        let value = load(&keys, keeps.then_some(held), "without it");
        assert_eq!(**value, "without it", "{how:?} {keeps}");
        let others = FleetKeys::<String>::new("users", store(), Plain, PATIENT.no_poll());
        assert_eq!(**load(&others, None, "it is in the store"), "without it");
        keys.clear("7").unwrap();
    }
}

#[test]
fn redis_a_restored_snapshot_brought_an_older_version_after_a_newer_one() {
    let server = server_or_skip!(Kind::Redis);
    let store = || RedisStore::new(&server.address()).unwrap().timeout(HANG);
    let node = cell(store(), PATIENT);
    node.get_or_refresh(|| text("v1"));
    let before = snapshot(&server, "name");
    node.invalidate().unwrap();
    eventually("the second version", || *node.get_or_refresh(|| text("v2")) == "v2");
    restore(&server, "name", &before);
    eventually("it is noticed", || node.freshness() == Freshness::Stale);
    assert!(node.stats().gone_back > 0);
    assert_eq!(*node.get().unwrap(), "v2");
    let newcomer = cell(store(), PATIENT);
    assert_eq!(*node.get_or_refresh(|| text("v3")), "v3");
    eventually("the others have it", || *newcomer.get_or_refresh(|| panic!("it is in the store")) == "v3");
}

/// What was built before is taken over as fresh when the store is back.
fn forgotten(store: impl Fn() -> Arc<dyn RefreshStore>, server: &mut Server) {
    let policy = FleetPolicy::ttl(HOUR)
        .poll(Duration::from_millis(20))
        .patience(HOUR)
        .breaker(Duration::from_millis(20), Duration::from_millis(50));
    let (node, other): (Cell, Cell) = (cell(store(), policy), cell(store(), policy));
    node.get_or_refresh(|| text("old"));
    assert_eq!(*other.get_or_refresh(|| panic!("it is in the store")), "old");
    server.kill();
    node.invalidate().unwrap_err();
    assert_eq!(node.freshness(), Freshness::Stale);
    server.run().unwrap();
    eventually("the others hear of it", || other.freshness() == Freshness::Stale);
    eventually("it is delivered, once", || node.stats().redelivered == 1);
    eventually("it is built", || *node.get_or_refresh(|| text("new")) == "new");
    eventually("it arrives", || other.get().is_some_and(|value| *value == "new"));
}

#[test]
fn redis_a_failed_invalidation_was_forgotten() {
    let mut server = server_or_skip!(Kind::Redis);
    let address = server.address();
    forgotten(|| Arc::new(RedisStore::new(&address).unwrap().timeout(HANG)), &mut server);
}

#[test]
fn postgres_a_failed_invalidation_was_forgotten() {
    let mut server = server_or_skip!(Kind::Postgres);
    let address = server.address();
    query(&address, PostgresStore::TABLE).unwrap();
    forgotten(|| Arc::new(PostgresStore::new(&address).unwrap().timeout(HANG)), &mut server);
}
