//! The map with more threads than loom can explore, and too little room for its keys: G1, G3 to G7 for each key.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use dogpile_map_under_test::DogpileMap;
use dogpile_under_test::Policy;
use shuttle::thread::yield_now;

use crate::cell::Noon;
use crate::support::{Builders, Failed, Scenario, below, block_on, fork, join_all, saw, without_pauses};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "map_g1_g3_to_g7_everything_at_once_with_evictions",
    executions: 5_000,
    body: everything_at_once,
    sees: &[
        "cleared",
        "failed",
        "invalidated",
        "left out",
        "nothing there",
        "set",
        "task done",
        "task dropped",
    ],
}];

const KEYS: usize = 3;
const THREADS: u64 = 4;

/// What is behind a key: a version that moves on. A value is the version that its build has found.
#[derive(Default)]
struct Source {
    /// Changed by one thread only, or a `set` could publish an older version than another one.
    version: AtomicU64,
    /// The version of the latest change that was told to the map.
    told: AtomicU64,
    builders: Arc<Builders>,
}

impl Source {
    /// A build of a call before which there had been so many displacements.
    fn read(&self, before: u64) -> u64 {
        let _turn = self.builders.enter(before);
        let version = self.version.load(SeqCst);
        yield_now();
        version
    }

    async fn read_in_a_task(&self, before: u64) -> u64 {
        let _turn = self.builders.enter(before);
        let version = self.version.load(SeqCst);
        let mut has_paused = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut has_paused, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        version
    }
}

struct World {
    map: DogpileMap<u64, u64, Noon>,
    sources: [Source; KEYS],
}

impl World {
    fn source(&self, key: u64) -> &Source {
        &self.sources[usize::try_from(key).expect("a small number")]
    }

    /// Counts as a displacement of all keys' builds.
    fn displacing_all(&self, displace: impl FnOnce()) {
        let [one, two, three] = &self.sources;
        one.builders.displacing(|| two.builders.displacing(|| three.builders.displacing(displace)));
    }

    /// The source of the key changes, and the map is told.
    fn change(&self, key: u64) {
        let (map, source) = (&self.map, self.source(key));
        let version = source.version.fetch_add(1, SeqCst) + 1;
        let what = match below(7) {
            0 => {
                map.invalidate(&key);
                "invalidated"
            }
            1 => {
                map.invalidate_all();
                "invalidated"
            }
            2 => {
                map.invalidate_tag(&key.to_string());
                "invalidated"
            }
            3 => {
                map.invalidate_if(|other, _| *other == key);
                "invalidated"
            }
            4 => {
                source.builders.displacing(|| map.clear(&key));
                "cleared"
            }
            5 => {
                self.displacing_all(|| map.clear_all());
                "cleared"
            }
            _ => {
                source.builders.displacing(|| map.set(key, version));
                "set"
            }
        };
        source.told.store(version, SeqCst);
        saw(what);
    }

    /// A read in one of the ways that there are. Returns the value, if it got one.
    fn read(&self, key: u64) -> Option<u64> {
        let (map, source) = (&self.map, self.source(key));
        let before = source.builders.displacements();
        match below(6) {
            0 => Some(*map.get_or_refresh(&key, |_| source.read(before))),
            1 => {
                let fail = |_: &u64| {
                    source.read(before);
                    Err(Failed)
                };
                let found = map.try_get_or_refresh(&key, fail);
                if found.is_err() {
                    saw("failed");
                }
                found.ok().map(|value| *value)
            }
            2 => {
                let found = map.get(&key).map(|value| *value);
                if found.is_none() {
                    saw("nothing there");
                }
                found
            }
            3 => {
                let told = source.told.load(SeqCst);
                let value = *map.request(&key).max_stale(Duration::ZERO).get(|_| source.read(before));
                assert!(value >= told, "{value} as a fresh one, after {told} (G4)");
                Some(value)
            }
            4 => {
                let patience = (below(2) == 0).then_some(0);
                let read = map.get_or_refresh_async(&key, async |_| source.read_in_a_task(before).await);
                let found = block_on(read, patience);
                saw(if found.is_some() { "task done" } else { "task dropped" });
                found.map(|value| *value)
            }
            _ => self.read_many(key),
        }
    }

    /// One call for all keys; its loader may leave some out.
    fn read_many(&self, key: u64) -> Option<u64> {
        let before = self.sources.each_ref().map(|source| source.builders.displacements());
        let (keys, mut found) = ([0, 1, 2], Vec::new());
        // What is left out is cleared.
        self.displacing_all(|| {
            let loaded = self.map.get_many(&keys, |due| {
                let mut pairs = Vec::new();
                for due in due {
                    if below(3) == 0 {
                        saw("left out");
                    } else {
                        let before = before[usize::try_from(*due).expect("a small number")];
                        pairs.push((*due, self.source(*due).read(before)));
                    }
                }
                Ok::<_, Failed>(pairs)
            });
            found = loaded.unwrap_or_default();
        });
        let position = keys.iter().position(|other| *other == key).expect("one of them");
        found.get(position)?.as_ref().map(|value| **value)
    }
}

fn everything_at_once() {
    let map = DogpileMap::<u64, u64>::builder(without_pauses(Policy::never_expires()))
        .max_entries(2)
        .tags(|key, _| [key.to_string()])
        .clock(Noon)
        .build();
    let world = Arc::new(World { map, sources: std::array::from_fn(|_| Source::default()) });
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            fork(&world, move |world| {
                let mut seen = [0; KEYS];
                for _ in 0..4 {
                    let key = below(KEYS as u64);
                    if key == thread && below(2) == 0 {
                        world.change(key);
                        continue;
                    }
                    let latest = &mut seen[usize::try_from(key).expect("a small number")];
                    if let Some(value) = world.read(key) {
                        assert!(value >= *latest, "{value} after {latest} (G3)");
                        *latest = value;
                    }
                }
            })
        })
        .collect();
    join_all(threads);
    assert!(world.map.len() <= 2);
    assert_eq!(world.map.stats().in_flight, 0, "a flight that nobody uses is still registered");
    for key in 0..KEYS as u64 {
        let source = world.source(key);
        let before = source.builders.displacements();
        let value = *world.map.request(&key).max_stale(Duration::ZERO).get(|_| source.read(before));
        assert_eq!(value, source.version.load(SeqCst), "an old value as a fresh one (G4)");
    }
}
