//! Redis Sentinel, and Valkey's: a fail-over to another address.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dogpile_fleet::{FleetPolicy, RedisStore, RefreshStore};
use redis::sentinel::{SentinelClient, SentinelServerType};

use crate::servers::{Kind, Server, free_port, skip};
use crate::{Cell, HANG, HOUR, SECOND, cell, eventually, hints_so_far, text};

/// A sentinel, which watches one server.
struct Sentinel {
    port: u16,
    process: Child,
    _directory: tempfile::TempDir,
}

impl Sentinel {
    fn start(kind: Kind, master: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (port, settings) = (free_port(), directory.path().join("sentinel.conf"));
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor shop 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds shop 300\nsentinel failover-timeout shop 3000\n",
            directory.path().display()
        );
        std::fs::write(&settings, text).unwrap();
        let mut command = Command::new(kind.program());
        command.arg(&settings).arg("--sentinel");
        let process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { port, process, _directory: directory }
    }

    fn address(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// How many replicas it knows.
    fn replicas(&self) -> usize {
        let ask = || -> redis::RedisResult<Vec<redis::Value>> {
            let mut connection = redis::Client::open(self.address())?.get_connection()?;
            redis::cmd("SENTINEL").arg("REPLICAS").arg("shop").query(&mut connection)
        };
        ask().map_or(0, |replicas| replicas.len())
    }

    fn store(&self) -> RedisStore {
        let sentinels = vec![self.address()];
        let master = SentinelServerType::Master;
        let client = SentinelClient::build(sentinels, "shop".to_owned(), None, master).unwrap();
        RedisStore::with_sentinel(client).timeout(HANG)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn fails_over(kind: Kind) {
    let mut master = match Server::start(kind) {
        Ok(server) => server,
        Err(reason) => return skip(kind, &reason),
    };
    let of_master =
        |_: &Path| Ok(["--replicaof", "127.0.0.1", &master.port.to_string()].map(ToOwned::to_owned).to_vec());
    let replica = Server::start_with(kind, of_master).unwrap();
    let mut connection = redis::Client::open(replica.address()).unwrap().get_connection().unwrap();
    eventually("the replica is connected", || {
        let info: String = redis::cmd("INFO").arg("replication").query(&mut connection).unwrap();
        info.contains("master_link_status:up")
    });
    let sentinel = Sentinel::start(kind, master.port);
    eventually("the sentinel knows the replica", || sentinel.replicas() == 1);

    let policy = FleetPolicy::ttl(SECOND / 5)
        .poll(Duration::from_millis(50))
        .breaker(Duration::from_millis(50), Duration::from_millis(400));
    let nodes: Vec<Cell> = (0..3).map(|_| cell(sentinel.store(), policy)).collect();
    for node in &nodes {
        node.check().unwrap();
        node.get_or_refresh(|| text("before"));
    }
    eventually("the replica has it", || {
        redis::cmd("EXISTS").arg("dogpile:name").query::<u32>(&mut connection).unwrap() == 1
    });

    master.kill();

    for (number, node) in nodes.iter().enumerate() {
        eventually(&format!("node {number} has a value that the new master has stored"), || {
            *node.get_or_refresh(|| text("after")) == "after"
                && node.snapshot().is_some_and(|snapshot| snapshot.version.is_some())
        });
    }
    // Hints come from the new one: without polls they are all that there is.
    let listening = cell(sentinel.store(), FleetPolicy::ttl(HOUR).no_poll());
    eventually("a value from the store", || {
        listening.get_or_refresh(|| text("after"));
        listening.snapshot().is_some_and(|snapshot| snapshot.version.is_some())
    });
    drop(nodes);
    let hints = hints_so_far(&listening);
    let store = RedisStore::new(&replica.address()).unwrap().timeout(HANG);
    eventually("a hint", || {
        store.invalidate("name", dogpile_fleet::Invalidation::Soft).unwrap();
        listening.stats().hints > hints
    });
}

#[test]
fn redis_sentinel_fails_over() {
    fails_over(Kind::Redis);
}

#[test]
fn valkey_sentinel_fails_over() {
    fails_over(Kind::Valkey);
}
