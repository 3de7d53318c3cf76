//! What a fleet costs: reads, round trips, and the time until a new value is used on the other nodes. Prints the tables of
//! `docs/costs.md`.
//!
//! ```sh
//! cargo run --release -p dogpile-fleet --all-features --example costs -- [redis://...] [postgres://...]
//! ```

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dogpile::DogpileCell;
use dogpile_fleet::{
    FileStore, FleetCell, FleetPolicy, Functions, MemoryStore, Plain, RefreshStore, Refreshed,
};

use counted::{Counted, Counts};

const HOUR: Duration = Duration::from_secs(3600);
const ROUNDS: usize = 11;
/// No operation is to be counted twice because the machine was busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a fresh read of a fleet's cell may cost, compared with one of a cell alone.
const AT_MOST: f64 = 1.02;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

struct Subject {
    name: &'static str,
    store: Arc<dyn RefreshStore>,
    gives_hints: bool,
}

fn main() -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let mut stores = vec![
        Subject { name: "memory", store: Arc::new(MemoryStore::new()), gives_hints: true },
        Subject { name: "file", store: Arc::new(FileStore::open(directory.path())?), gives_hints: false },
    ];
    for address in std::env::args().skip(1) {
        stores.push(server(&address)?);
    }
    let ratio = reads();
    round_trips(&stores);
    until_used(&stores);
    if ratio > AT_MOST {
        return Err(format!("a fresh read costs {ratio:.3} times as much, not {AT_MOST} at most").into());
    }
    Ok(())
}

fn server(address: &str) -> Outcome<Subject> {
    #[cfg(feature = "redis")]
    if address.starts_with("redis") {
        let store = Arc::new(dogpile_fleet::RedisStore::new(address)?.timeout(PATIENCE));
        return Ok(Subject { name: "Redis", store, gives_hints: true });
    }
    #[cfg(feature = "postgres")]
    if address.starts_with("postgres") {
        let store = Arc::new(dogpile_fleet::PostgresStore::new(address)?.timeout(PATIENCE));
        return Ok(Subject { name: "PostgreSQL", store, gives_hints: true });
    }
    Err(format!("{address}: neither redis://... nor postgres://..., or without the feature").into())
}

/// Fresh reads, in turns, so that whatever slows the machine down slows all; every other turn goes the other way round.
/// Returns the median ratio of neighbouring turns.
fn reads() -> f64 {
    const READS: u32 = 20_000;
    const TURNS: usize = 1001;
    let cell = DogpileCell::new(HOUR);
    cell.set(1u64);
    let shared = Arc::new(DogpileCell::new(HOUR));
    shared.set(1u64);
    let codec = Functions::new(|value: &u64| Ok(value.to_le_bytes().to_vec()), |_: &[u8]| Ok(1));
    let fleet = FleetCell::new("reads", MemoryStore::new(), codec, FleetPolicy::ttl(HOUR).no_poll());
    fleet.get_or_refresh(|| 1);
    let subjects: [(&str, &dyn Fn()); 3] = [
        ("`DogpileCell`", &|| (0..READS).for_each(|_| drop(black_box(cell.get_or_refresh(|| 2))))),
        ("`DogpileCell` in an `Arc`", &|| {
            (0..READS).for_each(|_| drop(black_box(black_box(&shared).get_or_refresh(|| 2))));
        }),
        ("`FleetCell`", &|| (0..READS).for_each(|_| drop(black_box(fleet.get_or_refresh(|| 2))))),
    ];
    let mut times = [const { Vec::new() }; 3];
    for turn in 0..TURNS {
        for subject in if turn % 2 == 0 { [0, 1, 2] } else { [2, 1, 0] } {
            let start = Instant::now();
            subjects[subject].1();
            times[subject].push(start.elapsed().as_secs_f64() * 1e9 / f64::from(READS));
        }
    }
    let mut ratios: Vec<f64> = times[2].iter().zip(&times[0]).map(|(fleet, alone)| fleet / alone).collect();
    for list in times.iter_mut().chain([&mut ratios]) {
        list.sort_by(f64::total_cmp);
    }
    let median = ratios[TURNS / 2];
    println!(
        "## Reads\n\nIn turns of {READS} fresh reads by `get_or_refresh`, {TURNS} of each, one thread:\n"
    );
    println!("| | best, ns | median, ns |\n|---|---|---|");
    for ((name, _), times) in subjects.iter().zip(&times) {
        println!("| {name} | {:.2} | {:.2} |", times[0], times[TURNS / 2]);
    }
    println!(
        "\nThe median of the ratios of neighbouring turns, the last to the first, is {median:.4}; it has to be {AT_MOST} \
         at most.\n"
    );
    median
}

/// A node that counts what it asks of the store.
struct Node {
    cell: FleetCell<String>,
    counts: Arc<Counted>,
}

impl Node {
    fn new(store: &Subject, name: &str, policy: FleetPolicy, hints: bool) -> Self {
        let counts = Arc::new(Counted::new(Arc::clone(&store.store), hints));
        let cell = FleetCell::new(name.to_owned(), Arc::clone(&counts), Plain, policy);
        Self { cell, counts }
    }

    /// What is asked of the store in the course of something.
    fn during(&self, what: impl FnOnce(&FleetCell<String>)) -> Counts {
        let before = self.counts.counts();
        what(&self.cell);
        self.counts.counts() - before
    }
}

fn value() -> String {
    String::from("value")
}

type Row<'a> = (&'a str, &'a dyn Fn(&Subject) -> Counts);

/// Operations of the store, each of which is one round trip; counted, one cell of the table after the other.
fn round_trips(stores: &[Subject]) {
    const TTL: Duration = Duration::from_millis(200);
    let name = |row: &str| format!("costs-{}-{row}", std::process::id());
    let expired = || std::thread::sleep(TTL + TTL / 2);
    let quiet = FleetPolicy::ttl(TTL).no_poll().patience(PATIENCE);
    // Two nodes that have the value, which has expired since.
    let pair = |store: &Subject, row: &str, policy: FleetPolicy| {
        let nodes = [(); 2].map(|()| Node::new(store, &name(row), policy, false));
        for node in &nodes {
            node.cell.get_or_refresh(value);
        }
        expired();
        nodes
    };
    let rows: [Row<'_>; 9] = [
        ("an expiry, the node that builds", &|store| {
            let [builder, _] = pair(store, "builds", quiet);
            builder.during(|cell| drop(cell.get_or_refresh(value)))
        }),
        ("an expiry, another node that asks after that", &|store| {
            let [builder, other] = pair(store, "after", quiet);
            builder.cell.get_or_refresh(value);
            other.during(|cell| drop(cell.get_or_refresh(value)))
        }),
        ("an expiry, another node that asks meanwhile; the build takes 100 ms", &|store| {
            let [builder, other] = pair(store, "meanwhile", quiet);
            let version = |cell: &FleetCell<String>| cell.snapshot().and_then(|snapshot| snapshot.version);
            let old = version(&other.cell);
            other.during(|cell| {
                builder.cell.get_or_refresh(|| {
                    cell.get_or_refresh(value);
                    std::thread::sleep(Duration::from_millis(100));
                    value()
                });
                while version(cell) == old {
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        }),
        ("the same, found unchanged: the node that builds", &|store| {
            let [builder, _] = pair(store, "unchanged", quiet);
            builder.during(|cell| drop(cell.try_get_with::<&str, _>(|_| Ok(Refreshed::NotModified))))
        }),
        ("the same, found unchanged: another node that asks after that", &|store| {
            let [builder, other] = pair(store, "unchanged-after", quiet);
            let _ = builder.cell.try_get_with::<&str, _>(|_| Ok(Refreshed::NotModified));
            other.during(|cell| drop(cell.get_or_refresh(value)))
        }),
        ("a build of one second, the lease being 300 ms", &|store| {
            let [builder, _] = pair(store, "long", quiet.lease(Duration::from_millis(300)));
            builder.during(|cell| {
                cell.get_or_refresh(|| {
                    std::thread::sleep(Duration::from_secs(1));
                    value()
                });
            })
        }),
        ("five seconds with a fresh value, polling every second", &|store| {
            let policy = FleetPolicy::ttl(HOUR).poll(Duration::from_secs(1));
            let node = Node::new(store, &name("polls"), policy, false);
            node.cell.get_or_refresh(value);
            node.during(|_| std::thread::sleep(Duration::from_secs(5)))
        }),
        ("an invalidation, the node that invalidates", &|store| {
            let [node, _] = pair(store, "invalidates", quiet);
            node.during(|cell| cell.invalidate().expect("invalidated"))
        }),
        ("a failed build", &|store| {
            let [node, _] = pair(store, "fails", quiet);
            node.during(|cell| drop(cell.try_get_with(|_| Err("no"))))
        }),
    ];
    println!("## Round trips\n");
    let line = |first: &str, cells: Vec<String>| println!("| {first} | {} |", cells.join(" | "));
    line("", stores.iter().map(|store| store.name.to_owned()).collect());
    println!("|---|{}", "---|".repeat(stores.len()));
    for (row, measure) in rows {
        line(row, stores.iter().map(|store| measure(store).to_string()).collect());
    }
    println!();
}

/// From the publication on one node to the use on another, which only looks.
fn until_used(stores: &[Subject]) {
    println!("## From the publication to its use on another node\n\n{ROUNDS} times, milliseconds:\n");
    println!(
        "| store | | best | median | worst | operations of the other node for each |\n|---|---|---|---|---|---|"
    );
    for store in stores {
        for hints in [true, false] {
            if !hints || store.gives_hints {
                until_used_on(store, hints);
            }
        }
    }
}

fn until_used_on(store: &Subject, hints: bool) {
    let name = format!("costs-{}-use-{hints}", std::process::id());
    let policy = FleetPolicy::ttl(HOUR).poll(Duration::from_secs(1)).patience(PATIENCE);
    let [builder, other] = [(); 2].map(|()| Node::new(store, &name, policy, hints));
    for node in [&builder, &other] {
        node.cell.get_or_refresh(|| String::from("0"));
    }
    // Until both listen.
    std::thread::sleep(Duration::from_millis(1500));
    let mut times = Vec::new();
    let counts = other.during(|cell| {
        for round in 1..=ROUNDS {
            let text = round.to_string();
            builder.cell.invalidate().expect("invalidated");
            builder.cell.get_or_refresh(|| text.clone());
            let published = Instant::now();
            // Only looks: a caller would be elected, and find the value by itself.
            while cell.get().is_none_or(|value| *value != text) {
                std::thread::sleep(Duration::from_micros(50));
            }
            times.push(published.elapsed().as_secs_f64() * 1e3);
        }
    });
    times.sort_by(f64::total_cmp);
    let rounds = u32::try_from(ROUNDS).map_or(1.0, f64::from);
    println!(
        "| {} | {} | {:.2} | {:.2} | {:.2} | {:.1} |",
        store.name,
        if hints { "hints" } else { "polling every second" },
        times[0],
        times[ROUNDS / 2],
        times[ROUNDS - 1],
        f64::from(counts.all()) / rounds
    );
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.named().into_iter().filter(|(_, count)| *count > 0);
        let named: Vec<String> = named.map(|(name, count)| format!("{count} {name}")).collect();
        write!(f, "{} ({})", self.all(), named.join(", "))
    }
}

mod counted {
    use std::ops::Sub;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use dogpile_fleet::{
        Acquire, Epoch, Hint, Invalidation, Poll, Publication, Publish, RefreshStore, Request, StoreError,
        Subscription, Token, Version,
    };

    const NAMES: [&str; 7] = ["acquire", "publish", "unchanged", "poll", "renew", "fail", "invalidate"];

    /// How often each operation was asked for, in the order of the names.
    #[derive(Clone, Copy)]
    pub(super) struct Counts([u32; 7]);

    impl Counts {
        pub(super) fn all(self) -> u32 {
            self.0.iter().sum()
        }

        pub(super) fn named(self) -> [(&'static str, u32); 7] {
            std::array::from_fn(|index| (NAMES[index], self.0[index]))
        }
    }

    impl Sub for Counts {
        type Output = Self;
        fn sub(self, before: Self) -> Self {
            Self(std::array::from_fn(|index| self.0[index] - before.0[index]))
        }
    }

    /// A store that counts, and gives hints only if it is to.
    pub(super) struct Counted {
        store: Arc<dyn RefreshStore>,
        hints: bool,
        counts: [AtomicU32; 7],
    }

    impl Counted {
        pub(super) fn new(store: Arc<dyn RefreshStore>, hints: bool) -> Self {
            Self { store, hints, counts: Default::default() }
        }

        pub(super) fn counts(&self) -> Counts {
            Counts(std::array::from_fn(|index| self.counts[index].load(Ordering::SeqCst)))
        }

        fn count(&self, index: usize) -> &dyn RefreshStore {
            self.counts[index].fetch_add(1, Ordering::SeqCst);
            &*self.store
        }
    }

    impl RefreshStore for Counted {
        fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
            self.count(0).acquire(name, request)
        }
        fn publish(
            &self,
            name: &str,
            token: &Token,
            publication: &Publication<'_>,
        ) -> Result<Publish, StoreError> {
            self.count(1).publish(name, token, publication)
        }
        fn unchanged(
            &self,
            name: &str,
            token: &Token,
            soft: Duration,
            hard: Duration,
        ) -> Result<Publish, StoreError> {
            self.count(2).unchanged(name, token, soft, hard)
        }
        fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
            self.count(3).poll(name, known)
        }
        fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
            self.count(4).renew(name, token, lease)
        }
        fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
            self.count(5).fail(name, token, pause)
        }
        fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
            self.count(6).invalidate(name, how)
        }
        fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
            if self.hints { self.store.subscribe(name, hint) } else { None }
        }
    }
}
