//! Whether what threads saw of one key can have happened in one order, also while its value is evicted.
//!
//! The rounds, the checker and the model of a cell are those of the crate `dogpile` (`tests/linear.rs` there): of one key a map
//! promises what a cell promises. In the crowded rounds, other keys come and go, and the value may be evicted at any time: a
//! read may find none, but never an older one, nor an invalidated one as fresh.

#[path = "../../tests/linear/checker.rs"]
mod checker;
#[allow(dead_code)] // what other tests use
#[path = "../../tests/stress/harness.rs"]
mod harness;
#[allow(dead_code)] // as above
#[path = "../../tests/linear/model.rs"]
mod model;
#[allow(dead_code)] // as above
#[path = "../../tests/linear/rounds.rs"]
mod rounds;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogpile_map::DogpileMap;

use harness::Member;
use model::Operation;
use rounds::{Interrupter, Notes, Subject, policy, read_or_build, rounds};

const KEY: u64 = 0;

/// One key of a map that has places for all.
struct Alone(DogpileMap<u64, u64, Interrupter>);

/// One key of a map that has places for two.
struct Crowded(Alone, AtomicU64);

fn map(places: usize) -> Alone {
    let builder = DogpileMap::builder(policy()).clock(Interrupter).max_entries(places);
    Alone(builder.tags(|key: &u64, _| [key.to_string()]).build())
}

fn number(value: Option<&Arc<u64>>) -> Option<u64> {
    value.map(|value| **value)
}

impl Subject for Alone {
    fn new() -> Self {
        map(100)
    }

    fn set(&self, value: u64) {
        self.0.set(KEY, value);
    }

    fn invalidate(&self) {
        self.0.invalidate(&KEY);
    }

    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>, steps: usize) {
        for _ in 0..steps {
            self.step::<Self>(me, notes);
        }
    }
}

impl Subject for Crowded {
    const EVICTIONS: u64 = 4;

    fn new() -> Self {
        Self(map(2), AtomicU64::new(KEY))
    }

    fn set(&self, value: u64) {
        self.0.set(value);
    }

    fn invalidate(&self) {
        self.0.invalidate();
    }

    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>, steps: usize) {
        for _ in 0..steps {
            if me.random.one_in(4) {
                let other = self.1.fetch_add(1, Ordering::Relaxed) + 1;
                self.0.0.set(other, 0);
            } else {
                self.0.step::<Self>(me, notes);
            }
        }
    }
}

impl Alone {
    fn step<S: Subject>(&self, me: &mut Member<'_>, notes: &mut Notes<'_>) {
        let map = &self.0;
        match me.random.below(20) {
            0..4 => drop(notes.note(|| map.get(&KEY), |value| Operation::Get(number(value.as_ref())))),
            4 | 5 => {
                notes.note(|| map.with(&KEY, |value| *value), |value| Operation::Get(*value));
            }
            6..10 => read_or_build::<S>(me, notes, Operation::Pending, |build| {
                let request = map.request(&KEY).wait_at_most(Duration::ZERO);
                request.try_get(|_| build()).map(|value| *value)
            }),
            10..12 => read_or_build::<S>(me, notes, Operation::PendingUntilFresh, |build| {
                let request = map.request(&KEY).max_stale(Duration::ZERO).wait_at_most(Duration::ZERO);
                request.try_get(|_| build()).map(|value| *value)
            }),
            12..15 => {
                let value = notes.number();
                match me.random.below(3) {
                    0 => {
                        let restored = |_: &Arc<u64>| Operation::Restore(value);
                        drop(notes.note(|| map.restore(KEY, value, Duration::ZERO), restored));
                    }
                    1 => {
                        let set = || map.set_for(KEY, value, Duration::MAX);
                        drop(notes.note(set, |_| Operation::Set(value)));
                    }
                    _ => drop(notes.note(|| map.set(KEY, value), |_| Operation::Set(value))),
                }
            }
            15 | 16 => notes.note(|| map.invalidate(&KEY), |()| Operation::Invalidate),
            17 => drop(notes.note(|| map.clear(&KEY), |taken| Operation::Clear(number(taken.as_ref())))),
            _ => {
                let got = |value: &Option<Arc<u64>>| Operation::Get(number(value.as_ref()));
                let Some(seen) = notes.note(|| map.get(&KEY), got) else { return };
                let declared =
                    |declared: &bool| Operation::InvalidateIfCurrent { seen: *seen, declared: *declared };
                notes.note(|| map.invalidate_if_current(&KEY, &seen), declared);
            }
        }
    }
}

#[test]
fn the_history_of_a_key_has_an_order() {
    rounds::<Alone>(20, 1);
}

#[test]
fn the_history_of_a_key_that_is_evicted_has_an_order() {
    rounds::<Crowded>(20, 1);
}
