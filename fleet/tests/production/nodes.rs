//! A small form of the large fleet of `examples/nodes.rs`: what grows with nodes and values, and what does not.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{Clock, ManualClock, Tick};
use dogpile_fleet::{FleetCell, FleetPolicy, Plain, RedisStore};

use crate::servers::{Kind, server_or_skip};
use crate::{HANG, HOUR, SECOND, eventually, text};

const NODES: usize = 20;
const VALUES: usize = 5;
const IDLE: u64 = 600;

static CLOCK: ManualClock = ManualClock::new();

/// A clock without data, so that all cells share their threads, as with the system's clock.
#[derive(Clone)]
struct Shared;

impl Clock for Shared {
    fn now(&self) -> Tick {
        CLOCK.now()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        CLOCK.park_until(deadline, now);
    }
}

#[test]
fn redis_idle_nodes_polled_once_per_value() {
    let server = server_or_skip!(Kind::Redis);
    CLOCK.advance(HOUR);
    let policy = FleetPolicy::ttl(HOUR).patience(HOUR);
    let nodes: Vec<Vec<FleetCell<String, Shared>>> = (0..NODES)
        .map(|_| {
            let store = Arc::new(RedisStore::new(&server.address()).unwrap().timeout(HANG));
            let cells = (0..VALUES).map(|value| {
                FleetCell::with_clock(format!("value {value}"), Arc::clone(&store), Plain, policy, Shared)
            });
            cells.collect()
        })
        .collect();
    let cells = || nodes.iter().flatten();
    for cell in cells() {
        assert_eq!(*cell.get_or_refresh(|| text("value")), "value");
    }
    eventually("all of them listen", || cells().all(|cell| cell.stats().hints > 0));
    let mut connection = redis::Client::open(server.address()).unwrap().get_connection().unwrap();
    let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection).unwrap();
    let connections = list.lines().count() - 1;
    println!("{NODES} nodes with {VALUES} values: {connections} connections");
    assert_eq!(connections, 2 * NODES);

    // The looks that were due before it was known how many share the hints.
    let polls = || cells().map(|cell| cell.stats().polls).collect::<Vec<u64>>();
    let before = polls();
    CLOCK.advance(140 * SECOND);
    eventually("each has looked", || polls().iter().zip(&before).all(|(now, before)| now > before));
    let before: u64 = polls().iter().sum();
    for _ in 0..IDLE / 2 {
        CLOCK.advance(2 * SECOND);
        // As fast as a slow machine gets to it; if it does not, they poll less often.
        std::thread::sleep(Duration::from_millis(5));
    }
    let polls = polls().iter().sum::<u64>() - before;
    let most = NODES as u64 * IDLE / 10;
    println!("{polls} polls of {NODES} nodes in {IDLE} s");
    assert!(polls > 0 && polls <= most, "{polls} polls; one of each node in 10 s makes {most}");

    // Hints still arrive.
    nodes[0][0].invalidate().unwrap();
    assert_eq!(*nodes[0][0].get_or_refresh(|| text("newer")), "newer");
    eventually("all nodes have it", || nodes.iter().all(|node| *node[0].get().unwrap() == "newer"));
    let failed: u64 = cells().map(|cell| cell.stats().store_errors).sum();
    assert_eq!(failed, 0);
}
