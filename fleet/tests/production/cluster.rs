//! A Redis cluster of three, and Valkey's: names on all nodes, slots that move, a node that dies.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dogpile_fleet::{FleetCell, FleetPolicy, Plain, RedisStore, RefreshStore, conformance};

use crate::servers::{Kind, Server, free_port, redis_command, skip};
use crate::{Cell, HOUR, SECOND, eventually, hints_so_far, text};

fn ask<R: redis::FromRedisValue>(server: &Server, words: &[&str]) -> redis::RedisResult<R> {
    let mut connection = redis::Client::open(server.address())?.get_connection()?;
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(word);
    }
    command.query(&mut connection)
}

fn id(server: &Server) -> String {
    ask(server, &["CLUSTER", "MYID"]).unwrap()
}

/// Three servers that share the slots, and a replica of the first one.
fn cluster(kind: Kind) -> Option<(Vec<Server>, Server)> {
    let settings = |_: &Path| {
        let port = free_port().to_string();
        let words = ["--cluster-enabled", "yes", "--cluster-port", &port, "--cluster-node-timeout", "1000"];
        Ok(words
            .into_iter()
            .chain(["--cluster-replica-validity-factor", "0"])
            .map(ToOwned::to_owned)
            .collect())
    };
    let mut servers = Vec::new();
    for _ in 0..4 {
        match Server::start_with(kind, settings) {
            Ok(server) => servers.push(server),
            Err(reason) => {
                skip(kind, &reason);
                return None;
            }
        }
    }
    for (server, slots) in servers.iter().zip([("0", "5000"), ("5001", "10000"), ("10001", "16383")]) {
        redis_command(&server.address(), &["CLUSTER", "ADDSLOTSRANGE", slots.0, slots.1]);
    }
    let (first, others) = servers.split_first().unwrap();
    for server in others {
        let cluster_port: Vec<String> = ask(server, &["CONFIG", "GET", "cluster-port"]).unwrap();
        let words = ["CLUSTER", "MEET", "127.0.0.1", &server.port.to_string(), &cluster_port[1]];
        redis_command(&first.address(), &words);
    }
    let replica = servers.pop().unwrap();
    let master = id(&servers[0]);
    eventually("the replica knows its master", || {
        ask::<String>(&replica, &["CLUSTER", "REPLICATE", &master]).is_ok()
    });
    eventually("the cluster is whole", || {
        let replicas = ask::<Vec<String>>(&servers[0], &["CLUSTER", "REPLICAS", &master]);
        replicas.is_ok_and(|replicas| replicas.len() == 1)
            && servers.iter().chain([&replica]).all(|server| {
                let info: String = ask(server, &["CLUSTER", "INFO"]).unwrap_or_default();
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:4")
            })
    });
    eventually("the replica is connected", || {
        ask::<String>(&replica, &["INFO", "replication"]).unwrap().contains("master_link_status:up")
    });
    Some((servers, replica))
}

fn works_in_a_cluster(kind: Kind) {
    let Some((mut servers, _replica)) = cluster(kind) else { return };
    // One of them is all that is known.
    let store = |server: &Server| RedisStore::cluster([server.address()]).unwrap().timeout(5 * SECOND);
    conformance::check(&store(&servers[2]), std::thread::sleep);

    // Names on all nodes, by one store.
    let shared: Arc<dyn RefreshStore> = Arc::new(store(&servers[2]));
    let policy = FleetPolicy::ttl(SECOND / 5)
        .poll(Duration::from_millis(50))
        .patience(HOUR)
        .breaker(Duration::from_millis(50), Duration::from_millis(400));
    let cells: Vec<Cell> = (0..12)
        .map(|number| FleetCell::new(format!("cell {number}"), Arc::clone(&shared), Plain, policy))
        .collect();
    for cell in &cells {
        cell.check().unwrap();
        assert_eq!(*cell.get_or_refresh(|| text("before")), "before");
        assert!(cell.snapshot().unwrap().version.is_some(), "{:?}", cell.last_store_error());
    }
    for server in &servers {
        assert!(ask::<u64>(server, &["DBSIZE"]).unwrap() > 0, "no name on one of them");
    }
    // Hints, from whichever node. A subscription to one of them is enough.
    let listening = FleetCell::new("cell 0", store(&servers[1]), Plain, FleetPolicy::ttl(HOUR).no_poll());
    listening.get_or_refresh(|| text("before"));
    let hints = hints_so_far(&listening);
    eventually("a hint", || {
        shared.invalidate("cell 0", dogpile_fleet::Invalidation::Soft).unwrap();
        listening.stats().hints > hints
    });

    // One of the nodes dies, and its replica takes over.
    servers[0].kill();
    for cell in &cells {
        eventually("each name is published again", || {
            *cell.get_or_refresh(|| text("after")) == "after"
                && cell.snapshot().is_some_and(|snapshot| snapshot.version.is_some())
        });
    }
}

#[test]
fn redis_names_of_a_cluster_followed_no_redirection() {
    works_in_a_cluster(Kind::Redis);
}

#[test]
fn valkey_names_of_a_cluster_followed_no_redirection() {
    works_in_a_cluster(Kind::Valkey);
}
