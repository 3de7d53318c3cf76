//! The epochs of keys that this process has invalidated.
//!
//! Of a key that was cleared the map has nothing, and so nothing else in a request could tell a store which has gone back to before
//! that, from a snapshot or after a fail-over, that it has. Kept of the latest [`MOST`] keys.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::{Mutex, PoisonError};

use crate::store::{Epoch, Seen};

/// Of so many keys, which have at most 64 bytes each.
const MOST: usize = 10_000;

#[derive(Default)]
pub(super) struct SeenEpochs(Mutex<State>);

#[derive(Default)]
struct State {
    epochs: HashMap<String, Epoch>,
    /// The keys of `epochs`, by when they came.
    names: VecDeque<String>,
}

impl SeenEpochs {
    /// The store has acknowledged an invalidation, with which `epoch` began.
    pub(super) fn note(&self, name: &str, epoch: Epoch) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { epochs, names } = &mut *state;
        match epochs.entry(name.to_owned()) {
            Entry::Occupied(mut known) => {
                // Acknowledgements of two threads may come in any order.
                let is_later =
                    known.get().incarnation != epoch.incarnation || known.get().number < epoch.number;
                if is_later {
                    known.insert(epoch);
                }
            }
            Entry::Vacant(unknown) => {
                unknown.insert(epoch);
                names.push_back(name.to_owned());
                if names.len() > MOST
                    && let Some(first) = names.pop_front()
                {
                    epochs.remove(&first);
                }
            }
        }
    }

    /// For a request.
    pub(super) fn of(&self, name: &str) -> Option<Seen> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.epochs.get(name).map(|epoch| Seen { epoch: *epoch, version: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_epochs_of_the_latest_keys_are_kept() {
        let seen = SeenEpochs::default();
        let epoch = |incarnation, number| Epoch { incarnation, number };
        let of = |name: &str| seen.of(name).map(|seen| (seen.epoch.incarnation, seen.epoch.number));
        for (told, kept) in [((1, 2), (1, 2)), ((1, 1), (1, 2)), ((1, 3), (1, 3)), ((2, 1), (2, 1))] {
            seen.note("first", epoch(told.0, told.1));
            assert_eq!(of("first"), Some(kept));
        }
        (1..MOST).for_each(|number| seen.note(&number.to_string(), epoch(1, 1)));
        assert!(of("first").is_some() && of("1").is_some());
        seen.note("last", epoch(1, 1));
        assert_eq!((of("first"), of("1"), of("last")), (None, Some((1, 1)), Some((1, 1))));
        let State { epochs, names } = &*seen.0.lock().unwrap();
        assert_eq!((epochs.len(), names.len()), (MOST, MOST));
    }
}
