//! A property test: a map against a plain sequential model, with eviction anywhere.
//!
//! The model keeps, for each key, what was published, when, and whether it was declared stale since. It does not know what
//! the store has evicted. So where the map serves nothing, that is only wrong for a key that cannot have been evicted: in a
//! map that is large enough. In a small one it may be; but what is served must always be the model's value, and never one that
//! it does not allow.

// Small numbers; one match over all operations.
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::too_many_lines)]

use std::collections::HashMap;
use std::time::Duration;

use dogpile::{ManualClock, Policy};
use dogpile_map::DogpileMap;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Operation {
    /// Builds succeed or fail.
    Read {
        key: u64,
        works: bool,
    },
    Get {
        key: u64,
    },
    Fresh {
        key: u64,
        works: bool,
    },
    MaxAge {
        key: u64,
        age: u64,
        works: bool,
    },
    NoCache {
        key: u64,
        works: bool,
    },
    Many {
        first: u64,
        works: bool,
    },
    Set {
        key: u64,
    },
    SetFor {
        key: u64,
        ttl: u64,
    },
    Restore {
        key: u64,
        age: u64,
    },
    Invalidate {
        key: u64,
    },
    InvalidateAll,
    InvalidateTag {
        tag: u64,
    },
    InvalidateIf {
        remainder: u64,
    },
    Clear {
        key: u64,
    },
    ClearAll,
    Advance {
        time: u64,
    },
}

const KEYS: u64 = 12;
const TAGS: u64 = 3;

fn operation() -> impl Strategy<Value = Operation> {
    let (key, works) = (0..KEYS, prop::bool::weighted(0.8));
    prop_oneof![
        6 => (key.clone(), works).prop_map(|(key, works)| Operation::Read { key, works }),
        3 => key.clone().prop_map(|key| Operation::Get { key }),
        1 => (key.clone(), works).prop_map(|(key, works)| Operation::Fresh { key, works }),
        1 => (key.clone(), 0..15_u64, works).prop_map(|(key, age, works)| Operation::MaxAge { key, age, works }),
        1 => (key.clone(), works).prop_map(|(key, works)| Operation::NoCache { key, works }),
        2 => (key.clone(), works).prop_map(|(first, works)| Operation::Many { first, works }),
        2 => key.clone().prop_map(|key| Operation::Set { key }),
        1 => (key.clone(), 0..30_u64).prop_map(|(key, ttl)| Operation::SetFor { key, ttl }),
        1 => (key.clone(), 0..40_u64).prop_map(|(key, age)| Operation::Restore { key, age }),
        2 => key.clone().prop_map(|key| Operation::Invalidate { key }),
        1 => Just(Operation::InvalidateAll),
        1 => (0..TAGS).prop_map(|tag| Operation::InvalidateTag { tag }),
        1 => (0..3_u64).prop_map(|remainder| Operation::InvalidateIf { remainder }),
        1 => key.prop_map(|key| Operation::Clear { key }),
        1 => Just(Operation::ClearAll),
        4 => (0..12_u64).prop_map(|time| Operation::Advance { time }),
    ]
}

/// In nanoseconds.
const TTL: i64 = 10;
const STALE: i64 = 15;

#[derive(Clone, Copy, Debug)]
struct Published {
    value: u64,
    at: i64,
    ttl: i64,
    /// When it was declared stale first.
    lapsed: Option<i64>,
}

impl Published {
    fn end(&self) -> i64 {
        let natural = self.at + self.ttl + 1;
        self.lapsed.map_or(natural, |lapsed| natural.min(lapsed.max(self.at)))
    }

    fn is_fresh(&self, now: i64) -> bool {
        self.lapsed.is_none() && now < self.end()
    }

    fn is_servable(&self, now: i64) -> bool {
        self.is_fresh(now) || now < self.end() + STALE
    }

    fn lapse(&mut self, now: i64) {
        self.lapsed.get_or_insert(now);
    }
}

struct World {
    map: DogpileMap<u64, u64, ManualClock>,
    clock: ManualClock,
    now: i64,
    next: u64,
    model: HashMap<u64, Published>,
    /// Nothing can have been evicted.
    is_large: bool,
    served: u32,
}

/// What a call saw: whether the build ran, and what it returned.
struct Seen {
    built: Option<u64>,
    returned: Option<u64>,
}

impl World {
    fn new(places: usize) -> Self {
        let clock = ManualClock::new();
        let policy = Policy::ttl(Duration::from_nanos(TTL as u64))
            .stale_while_refresh(Duration::from_nanos(STALE as u64))
            .retry_backoff(Duration::ZERO, Duration::ZERO);
        let map = DogpileMap::<u64, u64>::builder(policy)
            .max_entries(places)
            .clock(clock.clone())
            .tags(|key, _| [(key % TAGS).to_string()])
            .build();
        let is_large = places as u64 > 8 * KEYS;
        Self { map, clock, now: 0, next: 1, model: HashMap::new(), is_large, served: 0 }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn publish(&mut self, key: u64, value: u64) {
        let published = Published { value, at: self.now, ttl: TTL, lapsed: None };
        self.model.insert(key, published);
    }

    /// Judges a read of which the model knows which values it accepts without a build.
    fn judge(
        &mut self,
        key: u64,
        seen: &Seen,
        accepts: impl Fn(&Published, i64) -> bool,
        works: bool,
    ) -> Result<(), TestCaseError> {
        let there = self.model.get(&key).copied();
        let is_accepted = there.is_some_and(|there| accepts(&there, self.now));
        if is_accepted && self.is_large {
            prop_assert!(seen.built.is_none(), "built though {there:?} at {}", self.now);
        }
        if !is_accepted {
            prop_assert!(seen.built.is_some(), "not built though {there:?} at {}", self.now);
        }
        match (seen.built, works) {
            (None, _) => {
                prop_assert_eq!(seen.returned, there.map(|there| there.value));
                self.served += 1;
            }
            (Some(built), true) => {
                prop_assert_eq!(seen.returned, Some(built));
                self.publish(key, built);
            }
            // It failed: the old value or the error, which is looked at where it is known what was asked for.
            (Some(_), false) => {}
        }
        Ok(())
    }

    fn apply(&mut self, operation: Operation) -> Result<(), TestCaseError> {
        let number = self.number();
        let mut built = None;
        let now = self.now;
        macro_rules! build {
            ($works:expr) => {
                |_: &u64| {
                    built = Some(number);
                    if $works { Ok(number) } else { Err("down") }
                }
            };
        }
        match operation {
            Operation::Read { key, works } => {
                let returned = self.map.try_get_or_refresh(&key, build!(works)).ok().map(|value| *value);
                if built.is_some() && !works {
                    self.stale_instead(key, returned)?;
                }
                self.judge(key, &Seen { built, returned }, Published::is_fresh, works)?;
            }
            Operation::Get { key } => {
                let found = self.map.get(&key).map(|value| *value);
                let servable =
                    self.model.get(&key).filter(|there| there.is_servable(now)).map(|there| there.value);
                if self.is_large {
                    prop_assert_eq!(found, servable, "{:?} at {}", self.model.get(&key), now);
                } else if found.is_some() {
                    prop_assert_eq!(found, servable);
                }
            }
            Operation::Fresh { key, works } => {
                let request = self.map.request(&key).max_stale(Duration::ZERO);
                let returned = request.try_get(build!(works)).ok().map(|value| *value);
                if built.is_some() && !works {
                    prop_assert_eq!(returned, None);
                }
                self.judge(key, &Seen { built, returned }, Published::is_fresh, works)?;
            }
            Operation::MaxAge { key, age, works } => {
                let request = self.map.request(&key).max_age(Duration::from_nanos(age));
                let returned = request.try_get(build!(works)).ok().map(|value| *value);
                let accepts = |there: &Published, now| there.is_fresh(now) && now - there.at <= age as i64;
                self.judge(key, &Seen { built, returned }, accepts, works)?;
            }
            Operation::NoCache { key, works } => {
                let returned =
                    self.map.request(&key).no_cache().try_get(build!(works)).ok().map(|value| *value);
                self.judge(key, &Seen { built, returned }, |_, _| false, works)?;
            }
            Operation::Many { first, works } => {
                let keys: Vec<u64> = (first..first + 4).map(|key| key % KEYS).collect();
                let mut due = Vec::new();
                let found = self.map.get_many(&keys, |keys| {
                    due = keys.to_vec();
                    if works {
                        Ok(keys.iter().map(|key| (*key, number * 100 + key)).collect::<Vec<_>>())
                    } else {
                        Err("down")
                    }
                });
                for (position, key) in keys.iter().enumerate() {
                    let built = due.contains(key).then_some(number * 100 + key);
                    let returned = match &found {
                        Ok(values) => values[position].as_ref().map(|value| **value),
                        // Of the whole call.
                        Err(_) if built.is_none() => self.model.get(key).map(|there| there.value),
                        Err(_) => None,
                    };
                    self.judge(*key, &Seen { built, returned }, Published::is_fresh, works)?;
                }
            }
            Operation::Set { key } => {
                self.map.set(key, number);
                self.publish(key, number);
            }
            Operation::SetFor { key, ttl } => {
                self.map.set_for(key, number, Duration::from_nanos(ttl));
                self.model.insert(key, Published { value: number, at: now, ttl: ttl as i64, lapsed: None });
            }
            Operation::Restore { key, age } => {
                self.map.restore(key, number, Duration::from_nanos(age));
                self.model
                    .insert(key, Published { value: number, at: now - age as i64, ttl: TTL, lapsed: None });
            }
            Operation::Invalidate { key } => {
                self.map.invalidate(&key);
                self.lapse(|other, _| other == key);
            }
            Operation::InvalidateAll => {
                self.map.invalidate_all();
                self.lapse(|_, _| true);
            }
            Operation::InvalidateTag { tag } => {
                self.map.invalidate_tag(&tag.to_string());
                self.lapse(|key, _| key % TAGS == tag);
            }
            Operation::InvalidateIf { remainder } => {
                self.map.invalidate_if(|_, value| value % 3 == remainder);
                self.lapse(|_, value| value % 3 == remainder);
            }
            Operation::Clear { key } => {
                let cleared = self.map.clear(&key).map(|value| *value);
                let there = self.model.remove(&key).map(|there| there.value);
                // What cannot be served any more may be gone.
                prop_assert!(cleared.is_none() || cleared == there);
            }
            Operation::ClearAll => {
                self.map.clear_all();
                self.model.clear();
            }
            Operation::Advance { time } => {
                self.clock.advance(Duration::from_nanos(time));
                self.now += time as i64;
            }
        }
        prop_assert_eq!(self.map.stats().in_flight, 0);
        Ok(())
    }

    fn stale_instead(&mut self, key: u64, returned: Option<u64>) -> Result<(), TestCaseError> {
        let servable =
            self.model.get(&key).filter(|there| there.is_servable(self.now)).map(|there| there.value);
        if self.is_large {
            prop_assert_eq!(returned, servable);
        } else if returned.is_some() {
            prop_assert_eq!(returned, servable);
        }
        Ok(())
    }

    fn lapse(&mut self, condition: impl Fn(u64, u64) -> bool) {
        let now = self.now;
        self.model
            .iter_mut()
            .filter(|(key, there)| condition(**key, there.value))
            .for_each(|(_, there)| there.lapse(now));
    }
}

/// `invalidate_all` and tags keep their latest time only: the model and the map agree on stale windows as long as no value
/// is invalidated twice by them. So a second one is left out.
fn without_repeats(operations: &[Operation]) -> Vec<Operation> {
    let mut is_lapsed = false;
    let keep = |operation: &&Operation| match operation {
        Operation::InvalidateAll | Operation::InvalidateTag { .. } => {
            !std::mem::replace(&mut is_lapsed, true)
        }
        _ => true,
    };
    operations.iter().filter(keep).copied().collect()
}

fn run(places: usize, operations: &[Operation]) -> Result<u32, TestCaseError> {
    let mut world = World::new(places);
    for operation in operations {
        world.apply(*operation)?;
    }
    Ok(world.served)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 512 }, ..ProptestConfig::default() })]

    #[test]
    fn a_map_that_evicts_nothing_does_what_the_model_does(operations in prop::collection::vec(operation(), 1..120)) {
        run(1_000, &without_repeats(&operations))?;
    }

    #[test]
    fn a_map_that_evicts_serves_only_what_the_model_allows(
        places in 1_usize..8,
        operations in prop::collection::vec(operation(), 1..120),
    ) {
        run(places, &without_repeats(&operations))?;
    }
}

/// Most reads are hits: the properties are not true for want of values.
#[test]
fn the_model_is_worth_its_time() {
    let operations: Vec<Operation> = (0..1_000)
        .map(|number| match number % 5 {
            0 => Operation::Set { key: number % KEYS },
            1 => Operation::Advance { time: 1 },
            _ => Operation::Read { key: number % KEYS, works: true },
        })
        .collect();
    assert!(run(1_000, &operations).unwrap() > 400);
}
