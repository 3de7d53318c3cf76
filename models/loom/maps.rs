//! The map's flights against the store, writes, invalidations and each other: G1, G3 to G7 for each key.
//!
//! An operation of the store is one step, and the keys are in one shard: see `map/src/sync.rs`.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use dogpile_map_under_test::DogpileMap;
use dogpile_under_test::{Job, Policy, RefreshError};
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::support::{Model, Noon, Still, fork, policy, saw};

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "map_g1_g3_a_key_that_is_evicted_in_mid_build_is_built_once",
        preemptions: Some(2),
        body: evicted_in_mid_build,
        sees: &["built once", "built again, since it had been evicted", "the old value, which is evicted"],
    },
    Model {
        name: "map_g1_a_caller_that_gives_up_leaves_the_flight_to_the_others",
        preemptions: Some(3),
        body: a_caller_that_gives_up,
        sees: &["did not give up", "gave up", "shared the error"],
    },
    Model {
        name: "map_g4_invalidate_against_a_build",
        preemptions: Some(2),
        body: || invalidated::<false>(|map| map.invalidate(&1)),
        sees: OVERTAKEN,
    },
    Model {
        name: "map_g4_invalidate_all_against_a_build",
        preemptions: Some(2),
        body: || invalidated::<false>(DogpileMap::invalidate_all),
        sees: OVERTAKEN,
    },
    Model {
        name: "map_g4_invalidate_tag_against_a_build",
        preemptions: Some(2),
        body: || invalidated::<false>(|map| map.invalidate_tag("odd")),
        sees: OVERTAKEN,
    },
    Model {
        name: "map_g4_invalidate_if_against_a_build",
        preemptions: Some(2),
        body: || {
            invalidated::<false>(|map| {
                map.invalidate_if(|_, _| true);
            });
        },
        sees: OVERTAKEN,
    },
    Model {
        name: "map_g4_clear_against_a_build",
        preemptions: Some(2),
        body: || {
            invalidated::<true>(|map| {
                map.clear(&1);
            });
        },
        sees: OVERTAKEN,
    },
    Model {
        name: "map_g4_clear_all_against_a_build",
        preemptions: Some(2),
        body: || invalidated::<true>(DogpileMap::clear_all),
        sees: OVERTAKEN,
    },
    Model {
        name: "map_g4_set_against_a_build",
        preemptions: Some(3),
        body: set_against_a_build,
        sees: &["the build's value, for its caller", "what was set"],
    },
    Model {
        name: "map_g4_set_against_a_loader_that_leaves_the_key_out",
        preemptions: Some(3),
        body: set_against_a_loader_that_leaves_the_key_out,
        sees: &["left out", "what was set"],
    },
    Model {
        name: "map_g5_g7_the_last_user_of_a_flight_removes_it",
        preemptions: Some(3),
        body: the_last_user_of_a_flight_removes_it,
        sees: &["shared", "built twice"],
    },
    Model {
        name: "map_g5_a_flight_that_is_forgotten_while_it_is_used_is_removed",
        preemptions: Some(4),
        body: forgotten_while_it_is_used,
        sees: &["served the error", "asked again"],
    },
    Model {
        name: "map_g3_a_reader_does_not_go_back_while_a_fresh_value_is_replaced",
        preemptions: Some(2),
        body: replaced_while_it_is_fresh,
        sees: &["another thread's", "its own"],
    },
    Model {
        name: "map_g3_a_reader_does_not_go_back_while_two_changes_end",
        preemptions: Some(2),
        body: two_changes,
        sees: &["the old value, then a new one", "one new value, then the other"],
    },
];

type Map = DogpileMap<u64, u64, Noon>;

fn map(policy: Policy, entries: usize) -> Map {
    DogpileMap::<u64, u64>::builder(policy).max_entries(entries).clock(Noon).build()
}

/// Key 1 has a stale value, 0.
fn stale_map(entries: usize) -> Map {
    let map = map(policy(), entries);
    map.set(1, 0);
    map.invalidate(&1);
    map
}

fn nothing_in_flight(map: &Map) {
    assert_eq!(map.stats().in_flight, 0);
}

/// The builds of a key, counted in steps that loom sees.
#[derive(Default)]
struct Builds {
    running: AtomicU64,
    ended: AtomicU64,
}

impl Builds {
    fn build(&self) -> u64 {
        // Relaxed, all: they order nothing.
        assert_eq!(self.running.fetch_add(1, Ordering::Relaxed), 0, "two builds of a key at a time (G1)");
        let number = self.ended.fetch_add(1, Ordering::Relaxed) + 1;
        self.running.fetch_sub(1, Ordering::Relaxed);
        number
    }
}

/// There is one place. While key 1 is rebuilt, another thread puts key 2 there, and asks for key 1.
fn evicted_in_mid_build() {
    let (map, builds) = (stale_map(1), Arc::new(Builds::default()));
    let other = fork(&(map.clone(), Arc::clone(&builds)), |(map, builds)| {
        map.set(2, 2);
        *map.get_or_refresh(&1, |_| builds.build())
    });
    let mine = *map.get_or_refresh(&1, |_| builds.build());
    let later = *map.get_or_refresh(&1, |_| builds.build());
    assert!(later >= mine, "{later} after {mine} (G3)");
    let others = other.join().unwrap();
    match builds.ended.load(Ordering::Relaxed) {
        1 => saw("built once"),
        2 => saw("built again, since it had been evicted"),
        _ => {}
    }
    if others == 0 {
        saw("the old value, which is evicted");
    }
    assert_eq!(map.len(), 1);
    nothing_in_flight(&map);
}

/// It leaves the flight while another caller joins it and builds there. Then it asks again.
fn a_caller_that_gives_up() {
    let (map, builds) = (map(policy(), 10), Arc::new(Builds::default()));
    let other = fork(&(map.clone(), Arc::clone(&builds)), |(map, builds)| {
        drop(map.try_get_or_refresh(&1, |_| Err::<u64, _>(builds.build().to_string())));
        *map.get_or_refresh(&1, |_| builds.build())
    });
    let hasty = map.request(&1).wait_at_most(Duration::ZERO);
    let hurried = hasty.try_get(|_| Ok::<_, String>(builds.build()));
    let mine = *map.get_or_refresh(&1, |_| builds.build());
    saw(match hurried {
        Ok(value) if *value == mine => "did not give up",
        Err(RefreshError::WaitTimeout) => "gave up",
        _ => "shared the error",
    });
    assert_eq!(other.join().unwrap(), mine);
    nothing_in_flight(&map);
}

const OVERTAKEN: &[&str] = &["overtaken", "built after it"];

/// What is built before the source changes does not count as fresh afterwards. `CLEARS`: it is not served any more.
fn invalidated<const CLEARS: bool>(invalidate: fn(&Map)) {
    let map = DogpileMap::<u64, u64>::builder(policy()).clock(Noon).tags(|_, _| ["odd"]).build();
    map.set(1, 0);
    map.invalidate(&1);
    let source = Arc::new(AtomicU64::new(1));
    let other = fork(&(map.clone(), Arc::clone(&source)), |(map, source)| {
        // Relaxed, both: the map orders them.
        *map.get_or_refresh(&1, |_| source.load(Ordering::Relaxed))
    });
    source.store(2, Ordering::Relaxed);
    invalidate(&map);
    if CLEARS {
        assert_ne!(map.get(&1).as_deref(), Some(&1), "what was cleared is served (G4)");
    }
    let request = map.request(&1).max_stale(Duration::ZERO);
    assert_eq!(
        *request.clone().get(|_| source.load(Ordering::Relaxed)),
        2,
        "an old value as a fresh one (G4)"
    );
    match other.join().unwrap() {
        1 => saw("overtaken"),
        2 => saw("built after it"),
        _ => {}
    }
    assert_eq!(*request.get(|_| 3), 2, "an old value displaces a fresh one (G4)");
    nothing_in_flight(&map);
}

fn set_against_a_build() {
    let map = stale_map(10);
    let other = fork(&map, |map| *map.get_or_refresh(&1, |_| 1));
    map.set(1, 2);
    assert_eq!(map.get(&1).as_deref(), Some(&2));
    match other.join().unwrap() {
        1 => saw("the build's value, for its caller"),
        2 => saw("what was set"),
        _ => {}
    }
    assert_eq!(*map.get_or_refresh(&1, |_| 3), 2, "what was set is displaced (G4)");
    nothing_in_flight(&map);
}

fn set_against_a_loader_that_leaves_the_key_out() {
    let map = stale_map(10);
    let other = fork(&map, |map| {
        let found = map.get_many(&[1], |_| Ok::<_, String>([])).expect("the loader does not fail");
        match found[..] {
            [None] => saw("left out"),
            _ => saw("what was set"),
        }
    });
    map.set(1, 2);
    other.join().unwrap();
    assert_eq!(map.get(&1).as_deref(), Some(&2), "an absence that is older than what was set");
    nothing_in_flight(&map);
}

/// The builds fail, without a pause: nothing is left in the store, and each call needs a flight.
fn the_last_user_of_a_flight_removes_it() {
    let (map, builds) = (map(policy(), 10), Arc::new(Builds::default()));
    let read = |(map, builds): (Map, Arc<Builds>)| {
        let error = map.try_get_or_refresh(&1, |_| Err::<u64, _>(builds.build().to_string())).unwrap_err();
        error.to_string()
    };
    let other = fork(&(map.clone(), Arc::clone(&builds)), read);
    let mine = read((map.clone(), Arc::clone(&builds)));
    saw(if other.join().unwrap() == mine { "shared" } else { "built twice" });
    nothing_in_flight(&map);
}

/// One failing key is remembered. Key 1 is, until key 2 fails too, perhaps while a caller is served key 1's error.
fn forgotten_while_it_is_used() {
    let pause = Duration::from_secs(1);
    let policy = Policy::never_expires().retry_backoff(pause, pause);
    let map = DogpileMap::<u64, u64>::builder(policy).max_failing(1).clock(Noon).build();
    let fail = |map: &Map, key: u64, error| {
        map.try_get_or_refresh(&key, |_| Err::<u64, _>(error)).unwrap_err().to_string()
    };
    fail(&map, 1, "first");
    let other = fork(&map, move |map| fail(&map, 1, "second"));
    fail(&map, 2, "another key");
    saw(if other.join().unwrap() == "first" { "served the error" } else { "asked again" });
    let in_flight = map.stats().in_flight;
    assert_eq!(in_flight, 1, "a flight that nobody uses, and that is not remembered, is still registered");
}

/// A reader that does not take the value at rest, for its age, gets the new one from the flight. It does not find the old one at
/// rest afterwards.
fn replaced_while_it_is_fresh() {
    let clock = Still::default();
    let map = DogpileMap::<u64, u64>::builder(policy()).clock(clock.clone()).build();
    map.set(1, 0);
    clock.advance(Duration::from_secs(60));
    let request = |map: &DogpileMap<u64, u64, Still>, value| {
        *map.request(&1).max_age(Duration::from_secs(30)).get(|_| value)
    };
    let other = fork(&map, move |map| {
        let seen = [request(&map, 1), *map.get(&1).expect("there is always a value")];
        assert_eq!(seen[0], seen[1], "back to the old value (G3)");
    });
    let seen = request(&map, 2);
    assert_eq!(map.get(&1).as_deref(), Some(&seen), "back to the old value (G3)");
    saw(if seen == 1 { "another thread's" } else { "its own" });
    other.join().unwrap();
    assert_eq!(map.stats().in_flight, 0);
}

/// The last of the changes to end copies to the store. What is there at the end is what was published last, and a reader sees it
/// last.
fn two_changes() {
    let map = stale_map(10);
    // A build that is put off keeps the key in flight.
    let job = RefCell::new(None);
    let put_off = map.request(&1).max_stale(Duration::ZERO).wait_at_most(Duration::ZERO).or_stale();
    let old = put_off
        .spawn_with(|build: Job| drop(job.replace(Some(build))))
        .get(|_| unreachable!("it is put off"));
    assert_eq!(*old, 0);
    let sets = [1, 2].map(|value| fork(&map, move |map| drop(map.set(1, value))));
    let seen = [(); 2].map(|()| *map.get(&1).expect("there is always a value"));
    for set in sets {
        set.join().unwrap();
    }
    let last = *map.get(&1).expect("there is always a value");
    drop(job);
    assert_eq!(map.get(&1).as_deref(), Some(&last), "the store holds another value than the flight did");
    match seen {
        [0, 0] => {}
        [0, _] => saw("the old value, then a new one"),
        [one, other] if one == other => {}
        [one, other] => {
            assert_eq!(other, last, "{one} was published last (G3)");
            assert_ne!(other, 0, "back to the old value (G3)");
            saw("one new value, then the other");
        }
    }
    nothing_in_flight(&map);
}
