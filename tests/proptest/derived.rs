//! Graphs of derived values, drawn at random, against a model that makes each value anew at each read.
//!
//! Checked after each read: the value is what the model makes from the present values of the sources; it is fresh exactly as long as
//! all that it was made from is; a second read runs no closure. Where a source has no value, the value is an earlier one of the same node, or the error
//! says that there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogpile::{Derived, DogpileCell, Freshness, ManualClock, Policy, RefreshError};
use proptest::prelude::*;

use crate::property::holds_and_meets;

const TTL: Duration = Duration::from_secs(10);
const SOURCES: usize = 3;
const NODES: usize = 5;

/// Sources come first, then the nodes, each made from what comes before it.
#[derive(Clone, Debug)]
struct Inputs {
    /// Always asked for.
    first: usize,
    /// Asked for if the first one is odd, or even.
    others: [usize; 2],
}

#[derive(Clone, Debug)]
enum Operation {
    Set(usize, u32),
    Invalidate(usize),
    Clear(usize),
    InvalidateNode(usize),
    Advance(u64),
    Read(usize),
}

#[derive(Debug)]
struct Case {
    graph: Vec<Inputs>,
    operations: Vec<Operation>,
}

fn cases() -> impl Strategy<Value = Case> {
    let inputs = |node: usize| {
        let any = 0..SOURCES + node;
        (any.clone(), any.clone(), any)
            .prop_map(|(first, left, right)| Inputs { first, others: [left, right] })
    };
    let graph: Vec<_> = (0..NODES).map(inputs).collect();
    let operation = prop_oneof![
        4 => (0..SOURCES, 0..100_u32).prop_map(|(source, value)| Operation::Set(source, value)),
        1 => (0..SOURCES).prop_map(Operation::Invalidate),
        1 => (0..SOURCES).prop_map(Operation::Clear),
        1 => (0..NODES).prop_map(Operation::InvalidateNode),
        1 => (1..12_u64).prop_map(Operation::Advance),
        6 => (0..NODES).prop_map(Operation::Read),
    ];
    (graph, prop::collection::vec(operation, 1..40))
        .prop_map(|(graph, operations)| Case { graph, operations })
}

/// What a node makes of what it has asked for.
fn make(node: usize, first: u32, other: u32) -> u32 {
    first.wrapping_mul(3).wrapping_add(other.rotate_left(5)).wrapping_add(u32::try_from(node).unwrap())
}

type Source = Arc<DogpileCell<u32, ManualClock>>;
type Node = Derived<u32, ManualClock>;

/// The value of an input, and the sources that it was made from; `None`: one of them is empty.
fn model(graph: &[Inputs], sources: &[Source], input: usize) -> Option<(u32, BTreeSet<usize>)> {
    let Some(node) = input.checked_sub(SOURCES) else {
        return Some((*sources[input].get()?, BTreeSet::from([input])));
    };
    let Inputs { first, others } = &graph[node];
    let (first, mut from) = model(graph, sources, *first)?;
    let (other, more) = model(graph, sources, others[usize::from(first % 2 == 0)])?;
    from.extend(more);
    Some((make(node, first, other), from))
}

fn run(case: &Case) -> BTreeMap<&'static str, u64> {
    let clock = ManualClock::new();
    let sources: Vec<Source> =
        (0..SOURCES).map(|_| Arc::new(DogpileCell::with_clock(Policy::ttl(TTL), clock.clone()))).collect();
    let runs = Arc::new(AtomicU64::new(0));
    let mut nodes: Vec<Node> = Vec::new();
    for (number, inputs) in case.graph.iter().enumerate() {
        let (sources, below, inputs) = (sources.clone(), nodes.clone(), inputs.clone());
        let runs = Arc::clone(&runs);
        nodes.push(Derived::with_clock(Policy::never_expires(), clock.clone(), move |cx| {
            runs.fetch_add(1, Ordering::Relaxed);
            let ask = |input: usize| match input.checked_sub(SOURCES) {
                None => cx.try_get(&sources[input]),
                Some(node) => cx.try_get(&below[node]),
            };
            let first = *ask(inputs.first)?;
            let other = *ask(inputs.others[usize::from(first % 2 == 0)])?;
            Ok::<_, RefreshError>(make(number, first, other))
        }));
    }
    let mut met = BTreeMap::new();
    let mut count = |what| *met.entry(what).or_insert(0) += 1;
    let mut before: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); NODES];
    for operation in &case.operations {
        match *operation {
            Operation::Set(source, value) => drop(sources[source].set(value)),
            Operation::Invalidate(source) => sources[source].invalidate(),
            Operation::Clear(source) => drop(sources[source].clear()),
            Operation::InvalidateNode(node) => nodes[node].cell().invalidate(),
            Operation::Advance(seconds) => clock.advance(Duration::from_secs(seconds)),
            Operation::Read(number) => {
                let node = &nodes[number];
                let expected = model(&case.graph, &sources, SOURCES + number);
                let read = node.try_get();
                if let Some((value, from)) = expected {
                    assert_eq!(*read.unwrap(), value, "{operation:?}");
                    let is_fresh = from.iter().all(|source| sources[*source].freshness() == Freshness::Fresh);
                    let freshness = if is_fresh { Freshness::Fresh } else { Freshness::Stale };
                    assert_eq!(node.cell().freshness(), freshness, "{operation:?}");
                    let so_far = runs.load(Ordering::Relaxed);
                    assert_eq!(*node.try_get().unwrap(), value);
                    assert_eq!(runs.load(Ordering::Relaxed), so_far, "made twice: {operation:?}");
                    count(if is_fresh { "fresh" } else { "stale, from what is there" });
                } else {
                    match read {
                        Ok(value) => {
                            assert!(before[number].contains(&value), "{operation:?}: {value}");
                            count("an old value");
                        }
                        Err(RefreshError::Empty) => count("an error"),
                        Err(error) => panic!("{operation:?}: {error:?}"),
                    }
                }
            }
        }
        // What a node may have been at some time, be it read or made on the way.
        for (number, values) in before.iter_mut().enumerate() {
            values.extend(model(&case.graph, &sources, SOURCES + number).map(|(value, _)| value));
        }
    }
    met
}

#[test]
fn a_derived_value_is_what_the_model_makes_of_its_sources() {
    let worth_meeting = ["fresh", "stale, from what is there", "an old value", "an error"];
    holds_and_meets(if cfg!(miri) { 5 } else { 2_000 }, file!(), &worth_meeting, cases(), run);
}
