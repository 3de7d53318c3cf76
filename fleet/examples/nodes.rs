//! A large fleet on one Redis: how many connections each node has, how often it asks for nothing, and how long it takes until all
//! nodes have a new value.
//!
//! Each node has a store of its own, as a process has, and a cell for each value. But all of them share one process, its four threads,
//! and with the server one machine.
//!
//! ```sh
//! cargo run --release -p dogpile-fleet --features redis --example nodes -- redis://127.0.0.1:6379/ 1000 10
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use dogpile_fleet::{FleetCell, FleetPolicy, FleetStats, Plain, RedisStore};

const BYTES: usize = 100_000;
const ROUNDS: u8 = 11;
const IDLE: Duration = Duration::from_secs(240);

type Node = Vec<FleetCell<Vec<u8>>>;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let address = arguments
        .next()
        .expect("the address of a Redis that may be flushed, such as redis://127.0.0.1:6379/");
    let mut number = |default| {
        arguments.next().map_or(default, |number| number.parse().expect("how many nodes, and values"))
    };
    let (count, values): (u32, u32) = (number(1000), number(10));
    let mut server = redis::Client::open(&*address).unwrap().get_connection().unwrap();
    redis::cmd("FLUSHALL").exec(&mut server).unwrap();

    let policy = FleetPolicy::ttl(Duration::from_secs(3600))
        .breaker(Duration::from_millis(100), Duration::from_secs(1));
    let start = Instant::now();
    let nodes: Vec<Node> = (0..count)
        .map(|_| {
            let store = RedisStore::new(&address).unwrap().timeout(Duration::from_secs(30));
            let store = Arc::new(store);
            let cells = (0..values).map(|value| {
                let cell = FleetCell::new(format!("value {value}"), Arc::clone(&store), Plain, policy);
                cell.get_or_refresh(|| vec![0; BYTES]);
                cell
            });
            cells.collect()
        })
        .collect();
    let all = |what: &str, condition: &dyn Fn(&FleetCell<Vec<u8>>) -> bool| {
        let hang = Instant::now() + Duration::from_secs(120);
        while !nodes.iter().flatten().all(condition) {
            assert!(Instant::now() < hang, "never: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    all("they listen", &|cell| cell.stats().hints > 0);
    println!("{count} nodes x {values} values of {BYTES} bytes, there within {:.1?}", start.elapsed());
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut server).unwrap();
    let connections = u32::try_from(clients.lines().count() - 1).unwrap();
    println!("{:.2} connections of each node", f64::from(connections) / f64::from(count));

    let mut times: Vec<Duration> = (1..=ROUNDS)
        .map(|round| {
            let changed = usize::from(round) % nodes[0].len();
            nodes[0][changed].invalidate().unwrap();
            let start = Instant::now();
            nodes[0][changed].get_or_refresh(|| vec![round; BYTES]);
            let hang = start + Duration::from_secs(120);
            while !nodes.iter().all(|node| node[changed].get().is_some_and(|value| value[0] == round)) {
                assert!(Instant::now() < hang, "never: all nodes have it");
                std::thread::sleep(Duration::from_millis(1));
            }
            start.elapsed()
        })
        .collect();
    times.sort();
    let [best, median, worst] = [0, times.len() / 2, times.len() - 1].map(|index| times[index]);
    println!(
        "a new value, {ROUNDS} times, until all nodes have it: best {best:.1?}, median {median:.1?}, worst {worst:.1?}"
    );

    let sum = |of: fn(FleetStats) -> u64| nodes.iter().flatten().map(|cell| of(cell.stats())).sum::<u64>();
    let before = sum(|stats| stats.polls);
    std::thread::sleep(IDLE);
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let polls = (sum(|stats| stats.polls) - before) as f64 / f64::from(count) / IDLE.as_secs_f64() * 10.0;
    println!("with nothing to do, {IDLE:?}: {polls:.2} polls of each node in 10 s");
    println!("{} operations failed", sum(|stats| stats.store_errors));
    println!("{} threads look after all cells", threads());
}

/// The threads of this process that look after cells.
fn threads() -> usize {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "dogpile-fleet").count()
}
