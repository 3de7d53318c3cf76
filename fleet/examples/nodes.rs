//! A large fleet on one Redis: how long until all nodes have a new value, how many connections the server has, and how often
//! nodes ask that have nothing to do.
//!
//! Each node has a store of its own, as if it were a process; but all of them, and the server, share one machine.
//!
//! ```sh
//! cargo run --release -p dogpile-fleet --features redis --example nodes -- redis://127.0.0.1:6379/ 1000
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use dogpile_fleet::{FleetCell, FleetPolicy, Plain, RedisStore};

const BYTES: usize = 100_000;
const ROUNDS: u8 = 11;
const IDLE: Duration = Duration::from_secs(30);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let address = arguments
        .next()
        .expect("the address of a Redis that may be flushed, such as redis://127.0.0.1:6379/");
    let count: usize = arguments.next().map_or(1000, |count| count.parse().expect("how many nodes"));
    let mut server = redis::Client::open(&*address).unwrap().get_connection().unwrap();
    redis::cmd("FLUSHALL").exec(&mut server).unwrap();

    let policy = FleetPolicy::ttl(Duration::from_secs(3600))
        .breaker(Duration::from_millis(100), Duration::from_secs(1));
    let start = Instant::now();
    let nodes: Vec<FleetCell<Vec<u8>>> = (0..count)
        .map(|_| {
            let store = RedisStore::new(&address).unwrap().timeout(Duration::from_secs(30));
            let node = FleetCell::new("value", Arc::new(store), Plain, policy);
            node.get_or_refresh(|| vec![0; BYTES]);
            node
        })
        .collect();
    wait_for(&nodes, |node| node.stats().hints > 0);
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut server).unwrap();
    println!(
        "{count} nodes, connected within {:.1?}: {} connections",
        start.elapsed(),
        clients.lines().count() - 1
    );

    let mut times: Vec<Duration> = (1..=ROUNDS)
        .map(|round| {
            nodes[0].invalidate().unwrap();
            let start = Instant::now();
            nodes[0].get_or_refresh(|| vec![round; BYTES]);
            wait_for(&nodes, |node| node.get().is_some_and(|value| value[0] == round));
            start.elapsed()
        })
        .collect();
    times.sort();
    let [best, median, worst] = [0, times.len() / 2, times.len() - 1].map(|index| times[index]);
    println!(
        "a new value of {BYTES} bytes, {ROUNDS} times, until all have it: {best:.1?} to {worst:.1?}, median {median:.1?}"
    );

    let polls = || nodes.iter().map(|node| node.stats().polls).sum::<u64>();
    let before = polls();
    std::thread::sleep(IDLE);
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let each = (polls() - before) as f64 / count as f64;
    println!("with nothing to do for {IDLE:?}: {each:.2} polls of each node");
    let errors: u64 = nodes.iter().map(|node| node.stats().store_errors).sum();
    println!("{errors} operations failed");
}

fn wait_for(nodes: &[FleetCell<Vec<u8>>], condition: impl Fn(&FleetCell<Vec<u8>>) -> bool) {
    let hang = Instant::now() + Duration::from_secs(120);
    while !nodes.iter().all(&condition) {
        assert!(Instant::now() < hang, "not all nodes are there");
        std::thread::sleep(Duration::from_millis(1));
    }
}
