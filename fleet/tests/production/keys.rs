//! Many keys on real servers: how many connections that takes, and how soon waiters have the value.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

use dogpile_fleet::{
    BuildContext, FleetKeys, FleetPolicy, FleetValue, Plain, PostgresStore, RedisStore, RefreshStore,
    Refreshed,
};
use dogpile_map::DogpileMap;

use crate::servers::{Kind, number, server_or_skip};
use crate::{HANG, HOUR, SECOND, eventually, text};

const KEYS: u64 = 300;

struct Node {
    keys: FleetKeys<String>,
    map: DogpileMap<u64, FleetValue<String>>,
}

impl Node {
    fn new(store: impl RefreshStore + 'static) -> Self {
        let policy = FleetPolicy::ttl(HOUR).poll(HOUR).patience(HOUR).lease(HOUR);
        let keys = FleetKeys::new("users", store, Plain, policy);
        let map = DogpileMap::builder(keys.policy()).max_entries(10_000).build();
        Self { keys, map }
    }

    fn read(&self, id: u64, build: impl FnOnce() -> String) -> Arc<FleetValue<String>> {
        let build = |_: &BuildContext<'_, String>| Ok::<_, io::Error>(Refreshed::from(build()));
        let load = |id: &u64, previous: Option<Arc<FleetValue<String>>>| {
            self.keys.load_with(&id.to_string(), previous, build)
        };
        self.map.request(&id).try_get_with(load).unwrap()
    }
}

/// Whether a caller that waits for the other node's build has its value before it would look again by itself.
fn is_woken([a, b]: &[Node; 2], id: u64) -> bool {
    let (begun, has_begun) = channel();
    let (end, may_end) = channel::<()>();
    let before = b.keys.stats().busy;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            a.read(id, || {
                begun.send(()).unwrap();
                may_end.recv().unwrap();
                text("late")
            })
        });
        has_begun.recv().unwrap();
        let waiter = scope.spawn(|| b.read(id, || panic!("the other node builds")));
        // The first answer has it ask for hints, and after the second one it waits for 2 ms, after each other one for twice as long:
        // after this one for 2048 ms.
        eventually("it waits", || b.keys.stats().busy - before >= 12);
        let waits = Instant::now();
        end.send(()).unwrap();
        assert_eq!(**waiter.join().unwrap(), "late");
        waits.elapsed() < SECOND
    })
}

fn many_keys(stores: [Arc<dyn RefreshStore>; 2], connections: impl Fn() -> usize) {
    let nodes = stores.map(Node::new);
    let builds = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (nodes, builds) = (&nodes, &builds);
            scope.spawn(move || {
                for id in 0..KEYS {
                    let node = &nodes[(thread + usize::try_from(id).unwrap()) % 2];
                    let build = || {
                        builds.fetch_add(1, Ordering::SeqCst);
                        format!("user {id}")
                    };
                    assert_eq!(***node.read(id, build), format!("user {id}"));
                }
            });
        }
    });
    assert_eq!(u64::from(builds.load(Ordering::SeqCst)), KEYS, "one build per key in the whole fleet");
    for node in &nodes {
        let stats = node.keys.stats();
        assert_eq!((stats.store_errors, stats.local_builds), (0, 0), "{stats:?}");
        assert_eq!(stats.published, stats.fleet_builds);
    }
    // Once is enough: a machine that is busy may take as long as the waiter's own pause.
    assert!(
        (KEYS..KEYS + 5).any(|id| is_woken(&nodes, id)),
        "the waiters looked when their pauses were over"
    );
    let connections = connections();
    println!("{KEYS} keys, 2 nodes: {connections} connections");
    // Two stores.
    assert!(connections <= 4, "{connections} connections");
}

#[test]
fn redis_many_keys_share_their_connections() {
    let server = server_or_skip!(Kind::Redis);
    let store =
        || -> Arc<dyn RefreshStore> { Arc::new(RedisStore::new(&server.address()).unwrap().timeout(HANG)) };
    many_keys([store(), store()], || {
        let mut connection = redis::Client::open(server.address()).unwrap().get_connection().unwrap();
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection).unwrap();
        list.lines().count() - 1
    });
}

#[test]
fn postgres_many_keys_share_their_connections() {
    let server = server_or_skip!(Kind::Postgres);
    let store = || -> Arc<dyn RefreshStore> {
        Arc::new(PostgresStore::new(&server.address()).unwrap().timeout(HANG))
    };
    many_keys([store(), store()], || {
        // One for hints and one for operations of each; up to three more while operations wait for each other.
        let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let all = usize::try_from(number(&server.address(), count).unwrap()).unwrap();
        assert!(all <= 10, "{all}");
        4
    });
}
