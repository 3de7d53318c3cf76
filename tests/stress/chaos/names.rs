//! Whether chaos leaves a public operation out, by `docs/api.txt`.

use std::collections::{BTreeMap, BTreeSet};

/// Clocks other than the one that it moves, cells that use the system's clock, cells in statics, values that do not expire,
/// getters of constants; and what listens, which has stress tests of its own (`listeners.rs`, `derived.rs`).
const LEFT_OUT: &[&str] = &[
    "Clock",
    "Tick",
    "DogpileCell::new",
    "DogpileCell::with_policy",
    "LazyDogpile::new",
    "LazyDogpile::with_name",
    "LazyDogpile::with_policy",
    "Local",
    "SyncReaderCell::with_policy",
    "Policy::never_expires",
    "Change",
    "Cx",
    "Derived",
    "DerivedReader",
    "Hook",
    "Subscription",
    "DogpileCell::subscribe",
    "DogpileCell::subscribe_owned",
    "DogpileCell::on_publish",
    "DogpileCell::on_change",
    "LazyDogpile::subscribe",
    "LazyDogpile::subscribe_owned",
    "LazyDogpile::on_publish",
    "LazyDogpile::on_change",
    "SyncReaderCell::subscribe",
    "SyncReaderCell::subscribe_owned",
    "SyncReaderCell::on_publish",
    "SyncReaderCell::on_change",
];

#[test]
#[cfg_attr(miri, ignore = "reads text, which is slow there")]
fn every_public_method_is_called() {
    let sources = [
        include_str!("mod.rs"),
        include_str!("plain.rs"),
        include_str!("readers.rs"),
        include_str!("tasks.rs"),
    ]
    .concat();
    let mut types_with: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut is_of_a_trait = false;
    for line in include_str!("../../../docs/api.txt").lines() {
        if line.starts_with("impl") || line.starts_with("pub trait ") {
            is_of_a_trait = line.contains(" for ");
        } else if let (false, Some((owner, name))) = (is_of_a_trait, method(line))
            && !LEFT_OUT.contains(&owner)
            && !LEFT_OUT.contains(&&*format!("{owner}::{name}"))
        {
            types_with.entry(name).or_default().insert(owner);
        }
    }
    assert!(types_with.len() > 50, "the list is not read: {types_with:?}");
    // A call does not say of which type it is, so as many are asked for as there are types with the name.
    types_with.retain(|name, types| calls(&sources, name) < types.len());
    assert!(types_with.is_empty(), "too few calls of {types_with:?}");
}

/// Of `pub fn dogpile::Type<T>::name<F>(...)`, the type and the name.
fn method(line: &str) -> Option<(&str, &str)> {
    let (_, path) = line.split_once("fn dogpile::")?;
    // What stands between the brackets may have paths of its own.
    let mut depth = 0;
    let mut parts = vec![(0, 0)];
    let mut start = 0;
    for (at, character) in path.char_indices() {
        match character {
            '<' => depth += 1,
            '>' if !path[..at].ends_with('-') => depth -= 1,
            '(' if depth == 0 => {
                parts.push((start, at));
                break;
            }
            ':' if depth == 0 => {
                if start < at {
                    parts.push((start, at));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    let part = |index: usize| {
        let (from, to) = parts[parts.len().checked_sub(index)?];
        path[from..to].split('<').next().filter(|name| !name.is_empty())
    };
    Some((part(2)?, part(1)?))
}

fn calls(sources: &str, name: &str) -> usize {
    let is_call = |&(at, _): &(usize, &str)| {
        let (before, after) = (&sources[..at], &sources[at + name.len()..]);
        (before.ends_with('.') || before.ends_with("::")) && after.starts_with(['(', ')', ':'])
    };
    sources.match_indices(name).filter(is_call).count()
}
