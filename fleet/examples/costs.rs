//! What a fleet costs: reads, round trips, and the time until a new value is used on the other nodes.
//!
//! ```sh
//! cargo run --release -p dogpile-fleet --all-features --example costs [redis://... | postgres://...]
//! ```

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dogpile::DogpileCell;
use dogpile_fleet::{FileStore, FleetCell, FleetPolicy, FleetStats, MemoryStore, Plain, RefreshStore};

const HOUR: Duration = Duration::from_secs(3600);
const ROUNDS: usize = 11;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    reads();
    let directory = tempfile::tempdir()?;
    measure("memory", &(Arc::new(MemoryStore::new()) as Arc<dyn RefreshStore>));
    measure("file", &(Arc::new(FileStore::open(directory.path())?) as Arc<dyn RefreshStore>));
    for address in std::env::args().skip(1) {
        if let Some(store) = server(&address)? {
            measure(&address, &store);
        }
    }
    Ok(())
}

#[allow(unused_variables, clippy::unnecessary_wraps)]
fn server(address: &str) -> Result<Option<Arc<dyn RefreshStore>>, Box<dyn std::error::Error>> {
    #[cfg(feature = "redis")]
    if address.starts_with("redis:") {
        return Ok(Some(Arc::new(dogpile_fleet::RedisStore::new(address)?)));
    }
    #[cfg(feature = "postgres")]
    if address.starts_with("postgres") {
        return Ok(Some(Arc::new(dogpile_fleet::PostgresStore::new(address)?)));
    }
    Ok(None)
}

/// Fresh reads, in turns, so that whatever slows the machine down slows both.
fn reads() {
    const READS: u32 = 20_000;
    const TURNS: usize = 1001;
    let cell = DogpileCell::new(HOUR);
    cell.set(1u64);
    let fleet = FleetCell::new(
        "reads",
        MemoryStore::new(),
        dogpile_fleet::Functions::new(|value: &u64| Ok(value.to_le_bytes().to_vec()), |_: &[u8]| Ok(1)),
        FleetPolicy::ttl(HOUR).no_poll(),
    );
    fleet.get_or_refresh(|| 1);
    let time = |read: &dyn Fn()| {
        let start = Instant::now();
        read();
        start.elapsed().as_secs_f64() * 1e9 / f64::from(READS)
    };
    let (mut alone, mut shared, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let one = time(&|| (0..READS).for_each(|_| drop(black_box(cell.get_or_refresh(|| 2)))));
        let other = time(&|| (0..READS).for_each(|_| drop(black_box(fleet.get_or_refresh(|| 2)))));
        alone.push(one);
        shared.push(other);
        ratios.push(other / one);
    }
    for list in [&mut alone, &mut shared, &mut ratios] {
        list.sort_by(f64::total_cmp);
    }
    println!(
        "fresh read, ns, best of {TURNS} / median: DogpileCell {:.2} / {:.2}, FleetCell {:.2} / {:.2}; ratio of the best {:.3}, \
         median ratio {:.3}\n",
        alone[0],
        alone[TURNS / 2],
        shared[0],
        shared[TURNS / 2],
        shared[0] / alone[0],
        ratios[TURNS / 2]
    );
}

fn used(name: &str, before: FleetStats, after: FleetStats) {
    println!(
        "    {name}: {} operations of the store ({} acquire, {} poll)",
        after.store_operations - before.store_operations,
        after.acquires - before.acquires,
        after.polls - before.polls
    );
}

fn measure(kind: &str, store: &Arc<dyn RefreshStore>) {
    println!("{kind}");
    for hints in [true, false] {
        let name = format!("costs-{}-{hints}", std::process::id());
        let policy = FleetPolicy::ttl(HOUR).poll(Duration::from_secs(1));
        let node = || FleetCell::new(&*name, Hinted(Arc::clone(store), hints), Plain, policy);
        let (builder, other) = (node(), node());
        builder.get_or_refresh(|| String::from("0"));
        other.get_or_refresh(|| String::from("0"));
        std::thread::sleep(Duration::from_millis(1500));
        let mut times = Vec::new();
        let before = (builder.stats(), other.stats());
        for round in 1..=ROUNDS {
            let text = round.to_string();
            builder.invalidate().expect("invalidated");
            builder.get_or_refresh(|| text.clone());
            let published = Instant::now();
            // Only looks: a caller would be elected, and find the value by itself.
            while other.get().is_none_or(|value| *value != text) {
                std::thread::sleep(Duration::from_micros(50));
            }
            times.push(published.elapsed());
        }
        times.sort();
        println!(
            "  {}: from the publication to its use on another node, ms: best {:.2}, median {:.2}, worst {:.2}",
            if hints { "with hints" } else { "without hints, polling every second" },
            times[0].as_secs_f64() * 1e3,
            times[ROUNDS / 2].as_secs_f64() * 1e3,
            times[ROUNDS - 1].as_secs_f64() * 1e3
        );
        let after = (builder.stats(), other.stats());
        println!("   in {ROUNDS} refreshes, each with an invalidation:");
        used("the node that builds", before.0, after.0);
        used("another node", before.1, after.1);
    }
    // Nothing but an expiry, no polls, no hints: what is the least.
    let name = format!("costs-{}-least", std::process::id());
    let ttl = Duration::from_millis(100);
    let node =
        || FleetCell::new(&*name, Hinted(Arc::clone(store), false), Plain, FleetPolicy::ttl(ttl).no_poll());
    let (builder, other) = (node(), node());
    builder.get_or_refresh(|| String::from("0"));
    other.get_or_refresh(|| String::from("0"));
    std::thread::sleep(2 * ttl);
    let before = (builder.stats(), other.stats());
    builder.get_or_refresh(|| String::from("1"));
    other.get_or_refresh(|| String::from("1"));
    let after = (builder.stats(), other.stats());
    println!("  an expiry, without polls and hints:");
    used("the node that builds", before.0, after.0);
    used("another node", before.1, after.1);
}

mod hinted {
    use std::sync::Arc;
    use std::time::Duration;

    use dogpile_fleet::{
        Acquire, Hint, Invalidation, Poll, Publication, Publish, RefreshStore, Request, StoreError,
        Subscription, Token, Version,
    };

    /// A store that gives hints only if it is to.
    pub(super) struct Hinted(pub(super) Arc<dyn RefreshStore>, pub(super) bool);

    impl RefreshStore for Hinted {
        fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
            self.0.poll(name, known)
        }
        fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
            self.0.acquire(name, request)
        }
        fn publish(
            &self,
            name: &str,
            token: &Token,
            publication: &Publication<'_>,
        ) -> Result<Publish, StoreError> {
            self.0.publish(name, token, publication)
        }
        fn unchanged(
            &self,
            name: &str,
            token: &Token,
            soft: Duration,
            hard: Duration,
        ) -> Result<Publish, StoreError> {
            self.0.unchanged(name, token, soft, hard)
        }
        fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
            self.0.fail(name, token, pause)
        }
        fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
            self.0.renew(name, token, lease)
        }
        fn invalidate(&self, name: &str, how: Invalidation) -> Result<(), StoreError> {
            self.0.invalidate(name, how)
        }
        fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
            if self.1 { self.0.subscribe(name, hint) } else { None }
        }
    }
}
use hinted::Hinted;
