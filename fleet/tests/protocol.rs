//! The protocol, checked exhaustively: two or three builders that may pause anywhere, leases and values that may end at
//! any moment, a writer that changes the source and then invalidates, and a store that may lose everything.
//!
//! The same search is let loose on the recipes that are usually given instead; each of them breaks, or starves a builder
//! that is alone. That it finds these schedules is also what shows that the search can find one.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use dogpile_fleet::rules::Entry;
use dogpile_fleet::{Acquire, Fence, Invalidation, Publication, Publish, Request, Token};

/// The model's clock stands still; what ends, ends by an event.
const NOW: u64 = 1_000_000;
const LONG: Duration = Duration::from_secs(1000);

/// When a publication is accepted, and who may release the lease.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Recipe {
    /// `SET lock NX PX`, build, `SET value`, `DEL lock`.
    SetNx,
    /// The same, with a random token that is compared before the `DEL` (Redlock's single instance, advisory locks).
    TokenCheckedUnlock,
    /// The value is only replaced by one with a higher fencing token.
    FencingToken,
    /// The same, and only in the epoch of the builder's election.
    FencingTokenAndEpoch,
    /// Only if the lease is still held, and in the same epoch.
    LeaseStillHeldAndEpoch,
    /// The rules of this crate.
    NewestFenceAndEpoch,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Builder {
    Idle,
    Elected(Token),
    Built(Token, u8),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    source: u8,
    entry: Entry,
    /// The fence under which the value was built.
    value_fence: u64,
    /// What `invalidate` has promised: nothing older than this is fresh.
    floor: u8,
    /// The source has been changed, and `invalidate` not been called yet.
    writing: bool,
    losses: u64,
    builders: Vec<Builder>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Violation {
    /// A value from before an invalidation counts as fresh.
    StaleAfterInvalidate,
    /// A value was replaced by an older one.
    GoesBack,
    /// A builder was refused though nobody else had been elected and nothing was invalidated.
    Starves,
}

#[derive(Clone, Copy)]
struct Limits {
    builders: usize,
    changes: u8,
    elections: u64,
    losses: u64,
}

/// All violations, each with the shortest schedule that leads to it, and the number of states.
fn explore(recipe: Recipe, invalidates: bool, limits: Limits) -> (Vec<(Violation, Vec<String>)>, usize) {
    let start = World {
        source: 0,
        entry: Entry::default(),
        value_fence: 0,
        floor: 0,
        writing: false,
        losses: 0,
        builders: vec![Builder::Idle; limits.builders],
    };
    let mut found: Vec<(Violation, Vec<String>)> = Vec::new();
    let mut seen = HashSet::from([start.clone()]);
    // Each step remembers the one before it, for the schedule.
    let mut steps: Vec<(usize, String)> = vec![(0, String::new())];
    let mut queue = VecDeque::from([(start, 0)]);
    while let Some((world, step)) = queue.pop_front() {
        for (what, next, violation) in successors(&world, recipe, invalidates, limits) {
            if let Some(violation) = violation
                && !found.iter().any(|(known, _)| *known == violation)
            {
                let mut schedule = vec![what.clone()];
                let mut at = step;
                while at != 0 {
                    schedule.push(steps[at].1.clone());
                    at = steps[at].0;
                }
                schedule.reverse();
                found.push((violation, schedule));
            }
            if seen.insert(next.clone()) {
                steps.push((step, what));
                queue.push_back((next, steps.len() - 1));
            }
        }
    }
    (found, seen.len())
}

type Step = (String, World, Option<Violation>);

fn successors(world: &World, recipe: Recipe, invalidates: bool, limits: Limits) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut step = |what: String, change: &dyn Fn(&mut World) -> Option<Violation>| {
        let mut next = world.clone();
        let mut violation = change(&mut next);
        let fresh = next.entry.value.as_ref().filter(|value| value.soft_until > NOW);
        if fresh.is_some_and(|value| value.payload[0] < next.floor) {
            violation = Some(Violation::StaleAfterInvalidate);
        }
        steps.push((what, next, violation));
    };
    if world.source < limits.changes && !world.writing {
        step("the source changes".into(), &|world| {
            world.source += 1;
            world.writing = invalidates;
            None
        });
    }
    if world.writing {
        for how in [Invalidation::Soft, Invalidation::Hard] {
            step(format!("the writer invalidates ({how:?})"), &|world| {
                world.entry.invalidate(NOW, how, world.losses + 1);
                world.floor = world.source;
                world.writing = false;
                None
            });
        }
    }
    if world.entry.lease_until > NOW {
        step("the lease ends".into(), &|world| {
            world.entry.lease_until = NOW;
            None
        });
    }
    if world.entry.value.as_ref().is_some_and(|value| value.soft_until > NOW) {
        step("the value expires".into(), &|world| {
            if let Some(value) = &mut world.entry.value {
                value.soft_until = NOW;
            }
            None
        });
    }
    if world.losses < limits.losses && world.entry.incarnation != 0 {
        step("the store loses everything".into(), &|world| {
            world.entry = Entry::default();
            world.value_fence = 0;
            world.losses += 1;
            None
        });
    }
    for (number, builder) in world.builders.iter().enumerate() {
        match *builder {
            Builder::Idle => {
                if world.entry.fence >= limits.elections {
                    continue;
                }
                let mut elected = world.clone();
                let request = Request::new(LONG);
                if let Acquire::Won { token, .. } = elected.entry.acquire(NOW, &request, world.losses + 1) {
                    let entry = elected.entry;
                    step(format!("P{number} is elected, fence {}", token.fence.number), &|world| {
                        world.entry = entry.clone();
                        world.builders[number] = Builder::Elected(token);
                        None
                    });
                }
            }
            Builder::Elected(token) => {
                step(format!("P{number} reads the source at {}", world.source), &|world| {
                    world.builders[number] = Builder::Built(token, world.source);
                    None
                });
                step(format!("P{number} dies"), &|world| {
                    world.builders[number] = Builder::Idle;
                    None
                });
            }
            Builder::Built(token, value) => {
                step(format!("P{number} publishes {value}, fence {}", token.fence.number), &|world| {
                    world.builders[number] = Builder::Idle;
                    publish(world, recipe, token, value)
                });
            }
        }
    }
    steps
}

fn publish(world: &mut World, recipe: Recipe, token: Token, value: u8) -> Option<Violation> {
    let entry = &mut world.entry;
    let before = entry.value.as_ref().map(|value| value.payload[0]);
    let publication = Publication { payload: &[value], tag: None, soft: LONG, hard: LONG };
    let newest = Fence { incarnation: entry.incarnation, number: entry.fence };
    let alone = token == Token { fence: newest, epoch: entry.epoch };
    let accepted = if recipe == Recipe::NewestFenceAndEpoch {
        matches!(entry.publish(NOW, &token, &publication), Publish::Stored(_))
    } else {
        let holds = token.fence == newest && entry.lease_until > NOW;
        let accepted = match recipe {
            Recipe::SetNx | Recipe::TokenCheckedUnlock | Recipe::NewestFenceAndEpoch => true,
            Recipe::FencingToken => token.fence.number > world.value_fence,
            Recipe::FencingTokenAndEpoch => {
                token.fence.number > world.value_fence && token.epoch == entry.epoch
            }
            Recipe::LeaseStillHeldAndEpoch => holds && token.epoch == entry.epoch,
        };
        let lease_until = if holds || recipe == Recipe::SetNx { 0 } else { entry.lease_until };
        if accepted {
            let forged = Token { fence: newest, epoch: entry.epoch };
            entry.publish(NOW, &forged, &publication);
        }
        entry.lease_until = lease_until;
        accepted
    };
    if !accepted {
        return alone.then_some(Violation::Starves);
    }
    world.value_fence = token.fence.number;
    before.is_some_and(|before| value < before).then_some(Violation::GoesBack)
}

const TWO: Limits = Limits { builders: 2, changes: 2, elections: 4, losses: 0 };

fn violations(recipe: Recipe, invalidates: bool) -> Vec<Violation> {
    let (found, states) = explore(recipe, invalidates, TWO);
    println!("{recipe:?}, the writer invalidates: {invalidates}: {states} states");
    for (violation, schedule) in &found {
        println!("    {violation:?}: {}", schedule.join("; "));
    }
    assert!(states > 1000, "only {states} states");
    let mut found: Vec<Violation> = found.into_iter().map(|(violation, _)| violation).collect();
    found.sort_by_key(|violation| *violation as u8);
    found
}

#[test]
fn the_rules_hold_for_two_builders() {
    assert_eq!(violations(Recipe::NewestFenceAndEpoch, true), []);
    assert_eq!(violations(Recipe::NewestFenceAndEpoch, false), []);
}

#[test]
fn the_rules_hold_for_three_builders() {
    let limits = Limits { builders: 3, changes: 2, elections: 4, losses: 0 };
    let (found, states) = explore(Recipe::NewestFenceAndEpoch, true, limits);
    assert_eq!(found, []);
    println!("{states} states");
    assert!(states > 50_000, "only {states} states");
}

#[test]
fn the_rules_hold_when_the_store_loses_everything() {
    let limits = Limits { losses: 2, elections: 3, ..TWO };
    let (found, states) = explore(Recipe::NewestFenceAndEpoch, true, limits);
    assert_eq!(found, []);
    println!("{states} states");
    assert!(states > 20_000, "only {states} states");
}

#[test]
fn set_nx_breaks() {
    use Violation::{GoesBack, StaleAfterInvalidate};
    assert_eq!(violations(Recipe::SetNx, true), [StaleAfterInvalidate, GoesBack]);
    assert_eq!(violations(Recipe::SetNx, false), [GoesBack]);
}

#[test]
fn a_token_checked_unlock_breaks() {
    use Violation::{GoesBack, StaleAfterInvalidate};
    assert_eq!(violations(Recipe::TokenCheckedUnlock, true), [StaleAfterInvalidate, GoesBack]);
    assert_eq!(violations(Recipe::TokenCheckedUnlock, false), [GoesBack]);
}

#[test]
fn a_fencing_token_alone_breaks() {
    use Violation::{GoesBack, StaleAfterInvalidate};
    let found = violations(Recipe::FencingToken, true);
    assert!(found.contains(&StaleAfterInvalidate) && found.contains(&GoesBack), "{found:?}");
    assert!(violations(Recipe::FencingToken, false).contains(&GoesBack));
}

#[test]
fn a_fencing_token_with_an_epoch_breaks() {
    let found = violations(Recipe::FencingTokenAndEpoch, true);
    assert!(found.contains(&Violation::GoesBack), "{found:?}");
    assert!(!found.contains(&Violation::StaleAfterInvalidate), "{found:?}");
}

#[test]
fn a_lease_that_must_still_be_held_starves() {
    assert_eq!(violations(Recipe::LeaseStillHeldAndEpoch, true), [Violation::Starves]);
    assert_eq!(violations(Recipe::LeaseStillHeldAndEpoch, false), [Violation::Starves]);
}
