//! A cell without threads and without time, as DESIGN's table has it.

use dogpile::Freshness;

use crate::checker::Model;

/// What the cell is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The number of the value, and whether it is fresh.
    pub(crate) value: Option<(u64, bool)>,
    generation: u64,
    lease: Option<Lease>,
}

/// What has happened since it was granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Lease {
    invalidated: bool,
    displaced: bool,
}

/// An operation and its answer. Values are numbers, each made once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Set(u64),
    Invalidate,
    /// With what it has taken away.
    Clear(Option<u64>),
    /// By a cell whose `clear` does not tell.
    ClearUnseen,
    /// By whatever reads without building.
    Get(Option<u64>),
    Snapshot(Option<(u64, u64, Freshness)>),
    Generation(u64),
    Looks(Freshness),
    /// `lookup`: fresh.
    Fresh(u64),
    /// `lookup`: stale, and somebody else builds.
    Stale(u64),
    /// One of the two.
    Served(u64),
    /// Somebody else builds, and there is nothing to serve.
    Pending,
    /// With the previous value.
    Elected(Option<u64>),
    /// By a call that does not show it.
    ElectedUnseen,
    Publish {
        value: u64,
        served: u64,
    },
    Renew {
        previous: u64,
        served: u64,
    },
    /// The lease comes back without a value: dropped, or the build failed.
    GiveBack,
}

impl State {
    pub(crate) const EMPTY: Self = Self { value: None, generation: 0, lease: None };

    /// A cell that holds a value, which was set.
    pub(crate) const fn holding(value: u64, is_fresh: bool) -> Self {
        Self { value: Some((value, is_fresh)), generation: 1, lease: None }
    }

    fn number(&self) -> Option<u64> {
        self.value.map(|(number, _)| number)
    }

    fn freshness(&self) -> Freshness {
        match self.value {
            None => Freshness::Empty,
            Some((_, true)) => Freshness::Fresh,
            Some((_, false)) => Freshness::Stale,
        }
    }

    fn publish(self, value: u64, is_fresh: bool) -> Self {
        Self { value: Some((value, is_fresh)), generation: self.generation + 1, ..self }
    }

    fn elect(self) -> Option<Self> {
        let is_due = self.freshness() != Freshness::Fresh && self.lease.is_none();
        is_due.then_some(Self { lease: Some(Lease::default()), ..self })
    }

    fn displaced(self) -> Self {
        Self { lease: self.lease.map(|lease| Lease { displaced: true, ..lease }), ..self }
    }

    /// The end of a build whose value is served unless the cell has another one that is not to be displaced.
    fn conclude(self, value: u64, served: u64) -> Option<Self> {
        let lease = self.lease?;
        let released = Self { lease: None, ..self };
        let (instead, next) = if lease.displaced {
            (self.number(), released)
        } else {
            (None, released.publish(value, !lease.invalidated))
        };
        (served == instead.unwrap_or(value)).then_some(next)
    }
}

impl Model for State {
    type Operation = Operation;

    fn after(&self, operation: &Operation, contended: bool) -> Option<Self> {
        let here = *self;
        let unchanged_if = |condition: bool| condition.then_some(here);
        // G2: who has something to serve does not wait to find out whether it would be elected.
        let is_served_stale = here.lease.is_some() || contended;
        match *operation {
            Operation::Set(value) => Some(here.displaced().publish(value, true)),
            Operation::Invalidate => Some(Self {
                value: here.value.map(|(number, _)| (number, false)),
                lease: here.lease.map(|lease| Lease { invalidated: true, ..lease }),
                ..here
            }),
            Operation::Clear(taken) => {
                (taken == here.number()).then_some(Self { value: None, ..here.displaced() })
            }
            Operation::ClearUnseen => Some(Self { value: None, ..here.displaced() }),
            Operation::Get(value) => unchanged_if(value == here.number()),
            Operation::Snapshot(shot) => {
                unchanged_if(shot == here.number().map(|number| (number, here.generation, here.freshness())))
            }
            Operation::Generation(generation) => unchanged_if(generation == here.generation),
            Operation::Looks(freshness) => unchanged_if(freshness == here.freshness()),
            Operation::Fresh(value) => unchanged_if(here.value == Some((value, true))),
            Operation::Stale(value) => unchanged_if(here.value == Some((value, false)) && is_served_stale),
            Operation::Served(value) => unchanged_if(
                here.value == Some((value, true)) || (here.value == Some((value, false)) && is_served_stale),
            ),
            Operation::Pending => unchanged_if(here.value.is_none() && here.lease.is_some()),
            Operation::Elected(previous) => {
                if previous == here.number() {
                    here.elect()
                } else {
                    None
                }
            }
            Operation::ElectedUnseen => here.elect(),
            Operation::Publish { value, served } => here.conclude(value, served),
            Operation::Renew { previous, served } => here.conclude(previous, served),
            Operation::GiveBack => here.lease.is_some().then_some(Self { lease: None, ..here }),
        }
    }

    fn changes_something(operation: &Operation) -> bool {
        match operation {
            Operation::Get(_)
            | Operation::Snapshot(_)
            | Operation::Generation(_)
            | Operation::Looks(_)
            | Operation::Fresh(_) => false,
            Operation::Set(_)
            | Operation::Invalidate
            | Operation::Clear(_)
            | Operation::ClearUnseen
            | Operation::Elected(_)
            | Operation::ElectedUnseen
            | Operation::Publish { .. }
            | Operation::Renew { .. }
            | Operation::GiveBack
            // They may look under the lock, which is contention too.
            | Operation::Stale(_)
            | Operation::Served(_)
            | Operation::Pending => true,
        }
    }
}

/// Histories that cannot have happened, and their neighbours that can: what the checker is worth.
mod tests {
    use super::Operation::*;
    use super::*;
    use crate::checker::{Event, Impossible, check};

    /// One line per thread: what it did, each with the times of call and return.
    fn history(threads: &[&[(u64, u64, Operation)]]) -> Result<(), Impossible> {
        let events: Vec<Event<Operation>> = threads
            .iter()
            .enumerate()
            .flat_map(|(thread, done)| {
                done.iter().map(move |&(called, returned, operation)| Event {
                    thread,
                    called,
                    returned,
                    operation,
                })
            })
            .collect();
        check(&State::EMPTY, &events)
    }

    #[track_caller]
    fn possible(threads: &[&[(u64, u64, Operation)]]) {
        history(threads).expect("it is possible");
    }

    #[track_caller]
    fn impossible(threads: &[&[(u64, u64, Operation)]]) {
        assert!(history(threads).is_err(), "it was taken for possible: {threads:?}");
    }

    const ELECTED: Operation = ElectedUnseen;

    fn published(value: u64) -> Operation {
        Publish { value, served: value }
    }

    #[test]
    fn a_read_sees_a_set_that_had_returned() {
        impossible(&[&[(1, 2, Set(1))], &[(3, 4, Get(None))]]);
        // They overlap, so either.
        possible(&[&[(1, 3, Set(1))], &[(2, 4, Get(None))]]);
        possible(&[&[(1, 3, Set(1))], &[(2, 4, Get(Some(1)))]]);
    }

    #[test]
    fn a_thread_does_not_see_the_old_value_after_the_new_one() {
        let sets = [(1, 2, Set(1)), (3, 10, Set(2))];
        impossible(&[&sets, &[(4, 5, Get(Some(2))), (6, 7, Get(Some(1)))]]);
        possible(&[&sets, &[(4, 5, Get(Some(1))), (6, 7, Get(Some(2)))]]);
    }

    #[test]
    fn nor_does_another_one_that_looks_later() {
        let sets = [(1, 2, Set(1)), (3, 10, Set(2))];
        impossible(&[&sets, &[(4, 5, Get(Some(2)))], &[(6, 7, Get(Some(1)))]]);
        possible(&[&sets, &[(4, 6, Get(Some(2)))], &[(5, 7, Get(Some(1)))]]);
    }

    #[test]
    fn two_threads_do_not_see_two_sets_in_two_orders() {
        let writers = |first, second| {
            [[(1, 20, Set(1))], [(1, 20, Set(2))], [(2, 3, Get(Some(first)))], [(4, 5, Get(Some(second)))]]
        };
        for [a, b, c, d] in [writers(1, 2), writers(2, 1)] {
            possible(&[&a, &b, &c, &d]);
        }
        let a = [(2, 3, Get(Some(1))), (6, 7, Get(Some(2)))];
        let b = [(4, 5, Get(Some(2))), (8, 9, Get(Some(1)))];
        impossible(&[&[(1, 20, Set(1))], &[(1, 20, Set(2))], &a, &b]);
    }

    #[test]
    fn the_generation_counts_publications_and_does_not_go_back() {
        impossible(&[&[(1, 2, Set(1)), (3, 10, Set(2))], &[(4, 5, Generation(2)), (6, 7, Generation(1))]]);
        impossible(&[&[(1, 2, Set(1)), (3, 4, Generation(2))]]);
        possible(&[&[(1, 2, Set(1)), (3, 4, Clear(Some(1))), (5, 6, Generation(1))]]);
    }

    #[test]
    fn a_snapshot_is_of_one_publication() {
        let sets = [(1, 2, Set(7)), (3, 10, Set(8))];
        let shot = |number, generation| [(4, 5, Snapshot(Some((number, generation, Freshness::Fresh))))];
        possible(&[&sets, &shot(7, 1)]);
        possible(&[&sets, &shot(8, 2)]);
        impossible(&[&sets, &shot(7, 2)]);
        impossible(&[&sets, &shot(8, 1)]);
    }

    #[test]
    fn the_fence_stands_before_an_invalidation_that_had_returned() {
        let build = |then| [(1, 2, ELECTED), (5, 6, published(1)), (7, 8, then)];
        let invalidation = [(3, 4, Invalidate)];
        impossible(&[&build(Fresh(1)), &invalidation]);
        impossible(&[&build(Looks(Freshness::Fresh)), &invalidation]);
        possible(&[&build(Looks(Freshness::Stale)), &invalidation]);
        possible(&[&build(Elected(Some(1))), &invalidation]);
        // One that is under way when the build begins may have come before it.
        possible(&[&build(Fresh(1)), &[(1, 4, Invalidate)]]);
    }

    #[test]
    fn the_fence_stands_before_a_clear() {
        let build = |then| [(1, 2, ELECTED), (5, 6, published(1)), (7, 8, then)];
        let clear = [(3, 4, Clear(None))];
        impossible(&[&build(Get(Some(1))), &clear]);
        possible(&[&build(Get(None)), &clear]);
    }

    #[test]
    fn the_fence_stands_before_a_set_and_the_build_is_served_that() {
        let build = |served| [(1, 2, ELECTED), (5, 6, Publish { value: 1, served }), (7, 8, Get(Some(2)))];
        let set = [(3, 4, Set(2))];
        impossible(&[&build(1), &set]);
        possible(&[&build(2), &set]);
        impossible(&[&[(1, 2, ELECTED), (5, 6, published(1)), (7, 8, Get(Some(1)))], &set]);
    }

    #[test]
    fn nobody_is_elected_while_somebody_builds() {
        impossible(&[&[(1, 2, ELECTED), (7, 8, GiveBack)], &[(3, 4, ELECTED)]]);
        possible(&[&[(1, 2, ELECTED), (3, 8, GiveBack)], &[(4, 9, ELECTED)]]);
    }

    #[test]
    fn nobody_builds_what_is_fresh() {
        impossible(&[&[(1, 2, Set(1)), (3, 4, ELECTED)]]);
        possible(&[&[(1, 2, Set(1)), (3, 4, Invalidate), (5, 6, Elected(Some(1)))]]);
    }

    #[test]
    fn who_is_not_elected_has_a_reason() {
        let stale = [(1, 2, Set(1)), (3, 4, Invalidate)];
        impossible(&[&stale, &[(5, 6, Stale(1))]]);
        // Somebody builds.
        possible(&[&stale, &[(5, 6, ELECTED)], &[(7, 8, Stale(1))]]);
        // Or is just being elected.
        possible(&[&stale, &[(5, 8, ELECTED)], &[(6, 7, Stale(1))]]);
        impossible(&[&[(1, 2, Pending)]]);
        possible(&[&[(1, 2, ELECTED)], &[(3, 4, Pending)]]);
    }

    #[test]
    fn what_is_renewed_is_a_new_generation_of_the_same_value() {
        let stale = [(1, 2, Set(1)), (3, 4, Invalidate), (5, 6, Elected(Some(1)))];
        let renewed = (7, 8, Renew { previous: 1, served: 1 });
        let then = |operation| [stale[0], stale[1], stale[2], renewed, (9, 10, operation)];
        possible(&[&then(Snapshot(Some((1, 2, Freshness::Fresh))))]);
        impossible(&[&then(Snapshot(Some((1, 1, Freshness::Fresh))))]);
        impossible(&[&then(Fresh(2))]);
    }

    #[test]
    fn a_value_is_taken_away_once() {
        let set = [(1, 2, Set(1))];
        impossible(&[&set, &[(3, 6, Clear(Some(1)))], &[(4, 5, Clear(Some(1)))]]);
        possible(&[&set, &[(3, 6, Clear(Some(1)))], &[(4, 5, Clear(None))]]);
    }

    #[test]
    fn it_says_how_far_it_came() {
        let fault = history(&[&[(1, 2, Set(1)), (3, 4, Get(Some(2)))]]).unwrap_err();
        assert_eq!(fault.beginning, [0]);
        assert!(format!("{fault:?}").contains("Get(Some(2))"), "{fault:?}");
    }
}
