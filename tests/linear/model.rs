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

/// The lease of a build that can still be published. One that was displaced holds none (G1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lease {
    id: u64,
    /// The value was declared stale since it was granted.
    invalidated: bool,
}

/// An operation and its answer. Values are numbers, each made once; so are leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Set(u64),
    /// Publishes a value, but displaces no build.
    Restore(u64),
    Invalidate,
    InvalidateIfCurrent {
        seen: u64,
        declared: bool,
    },
    /// With what it has taken away.
    Clear(Option<u64>),
    /// By a call that does not tell: `clear` of a cell with readers, or `reset`.
    ClearUnseen,
    /// With whether a build has lost its lease.
    Revoke(bool),
    /// By any call that reads without building.
    Get(Option<u64>),
    Snapshot(Option<(u64, u64, Freshness)>),
    Generation(u64),
    Looks(Freshness),
    /// Whether a build runs that can still be published.
    Refreshing(bool),
    /// `lookup`: fresh.
    Fresh(u64),
    /// `lookup`: stale, and a build runs.
    Stale(u64),
    /// One of the two.
    Served(u64),
    /// A build runs, and there is nothing to serve.
    Pending,
    /// A build runs, and there is nothing fresh.
    PendingUntilFresh,
    /// A build runs, and there may be a value: the caller needs a newer one.
    PendingAnew,
    /// With the previous value.
    Elected {
        id: u64,
        previous: Option<u64>,
    },
    /// By a call that does not show it.
    ElectedUnseen(u64),
    /// By a caller that needs a newer value than any.
    ElectedAnew {
        id: u64,
        previous: Option<u64>,
    },
    /// Whether the result of this build can no longer be published.
    Fenced {
        id: u64,
        fenced: bool,
    },
    Publish {
        id: u64,
        value: u64,
        served: u64,
    },
    /// By a call that returns what was published after the result, if anything was.
    PublishUnseen {
        id: u64,
        value: u64,
    },
    /// By a caller that accepts fresh values only.
    PublishForFresh {
        id: u64,
        value: u64,
        served: u64,
    },
    Renew {
        id: u64,
        previous: u64,
        served: u64,
    },
    /// By a caller that accepts newer values only: if the result is displaced, it may get what the cell holds, or its own.
    PublishForNewer {
        id: u64,
        value: u64,
        served: u64,
    },
    /// The lease comes back without a value: it was dropped, or the build failed.
    GiveBack(u64),
    /// A subscription has returned a value, and its generation. `seen`: the generation that it had returned before.
    Changed {
        seen: u64,
        value: u64,
        generation: u64,
    },
    /// Nothing has been published since this generation that is still there.
    NothingNewer(u64),
    /// A map has evicted the value, or not.
    Evict,
    /// `has_changed`, and the generation that the subscription has returned.
    HasChanged {
        seen: u64,
        changed: bool,
    },
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

    fn has_newer_than(&self, generation: u64) -> bool {
        self.value.is_some() && self.generation > generation
    }

    fn publish(self, value: u64, is_fresh: bool) -> Self {
        Self { value: Some((value, is_fresh)), generation: self.generation + 1, ..self }
    }

    fn elect(self, id: u64) -> Option<Self> {
        self.lease.is_none().then_some(Self { lease: Some(Lease { id, invalidated: false }), ..self })
    }

    fn elect_if_due(self, id: u64) -> Option<Self> {
        if self.freshness() == Freshness::Fresh { None } else { self.elect(id) }
    }

    fn invalidated(self) -> Self {
        Self {
            value: self.value.map(|(number, _)| (number, false)),
            lease: self.lease.map(|lease| Lease { invalidated: true, ..lease }),
            ..self
        }
    }

    /// A build that runs loses its lease.
    fn displaced(self) -> Self {
        Self { lease: None, ..self }
    }

    fn released(self, id: u64) -> Self {
        Self { lease: self.lease.filter(|lease| lease.id != id), ..self }
    }

    /// The end of a build. `instead`: what its caller gets if the result is not published. `is_gone`: it must not be.
    fn conclude(self, id: u64, value: u64, served: u64, instead: Option<u64>, is_gone: bool) -> Option<Self> {
        let released = self.released(id);
        match self.lease {
            Some(lease) if lease.id == id && !is_gone => {
                (served == value).then(|| released.publish(value, !lease.invalidated))
            }
            _ => (served == instead.unwrap_or(value)).then_some(released),
        }
    }
}

impl Model for State {
    type Operation = Operation;

    fn after(&self, operation: &Operation, contended: bool) -> Option<Self> {
        let here = *self;
        let unchanged_if = |condition: bool| condition.then_some(here);
        // G2: a caller that has something to serve does not wait to find out whether it would be elected.
        let is_served_stale = here.lease.is_some() || contended;
        match *operation {
            Operation::Set(value) => Some(here.displaced().publish(value, true)),
            Operation::Restore(value) => Some(here.publish(value, true)),
            Operation::Invalidate => Some(here.invalidated()),
            Operation::InvalidateIfCurrent { seen, declared } => {
                let is_current = here.value == Some((seen, true));
                (declared == is_current).then_some(if declared { here.invalidated() } else { here })
            }
            Operation::Clear(taken) => {
                (taken == here.number()).then_some(Self { value: None, ..here.displaced() })
            }
            Operation::ClearUnseen => Some(Self { value: None, ..here.displaced() }),
            Operation::Revoke(revoked) => (revoked == here.lease.is_some()).then_some(here.displaced()),
            Operation::Get(value) => unchanged_if(value == here.number()),
            Operation::Snapshot(shot) => {
                unchanged_if(shot == here.number().map(|number| (number, here.generation, here.freshness())))
            }
            Operation::Generation(generation) => unchanged_if(generation == here.generation),
            Operation::Looks(freshness) => unchanged_if(freshness == here.freshness()),
            // It is a word beside the value, which changes a moment earlier or later.
            Operation::Refreshing(refreshing) => {
                unchanged_if(refreshing == here.lease.is_some() || contended)
            }
            Operation::Fresh(value) => unchanged_if(here.value == Some((value, true))),
            Operation::Stale(value) => unchanged_if(here.value == Some((value, false)) && is_served_stale),
            Operation::Served(value) => unchanged_if(
                here.value == Some((value, true)) || (here.value == Some((value, false)) && is_served_stale),
            ),
            Operation::Pending => unchanged_if(here.value.is_none() && here.lease.is_some()),
            Operation::PendingUntilFresh => {
                unchanged_if(here.freshness() != Freshness::Fresh && here.lease.is_some())
            }
            Operation::PendingAnew => unchanged_if(here.lease.is_some()),
            Operation::Elected { id, previous } if previous == here.number() => here.elect_if_due(id),
            Operation::ElectedAnew { id, previous } if previous == here.number() => here.elect(id),
            Operation::Elected { .. } | Operation::ElectedAnew { .. } => None,
            Operation::ElectedUnseen(id) => here.elect_if_due(id),
            Operation::Fenced { id, fenced } => {
                unchanged_if(fenced == here.lease.is_none_or(|lease| lease.id != id))
            }
            Operation::Publish { id, value, served } => {
                here.conclude(id, value, served, here.number(), false)
            }
            Operation::PublishUnseen { id, value } => {
                here.conclude(id, value, value, None, false).or_else(|| Some(here.released(id)))
            }
            Operation::PublishForFresh { id, value, served } => {
                let fresh = here.value.filter(|(_, is_fresh)| *is_fresh).map(|(number, _)| number);
                here.conclude(id, value, served, fresh, false)
            }
            Operation::PublishForNewer { id, value, served } => here
                .conclude(id, value, served, None, false)
                .or_else(|| here.conclude(id, value, served, here.number(), false)),
            Operation::Renew { id, previous, served } => {
                here.conclude(id, previous, served, here.number(), here.number() != Some(previous))
            }
            Operation::GiveBack(id) => Some(here.released(id)),
            Operation::Changed { seen, value, generation } => unchanged_if(
                here.has_newer_than(seen) && here.generation == generation && here.number() == Some(value),
            ),
            Operation::NothingNewer(seen) => unchanged_if(!here.has_newer_than(seen)),
            Operation::HasChanged { seen, changed } => unchanged_if(changed == here.has_newer_than(seen)),
            Operation::Evict => Some(Self { value: None, ..here }),
        }
    }

    fn changes_something(operation: &Operation) -> bool {
        match operation {
            Operation::Get(_)
            | Operation::Snapshot(_)
            | Operation::Generation(_)
            | Operation::Looks(_)
            | Operation::Refreshing(_)
            | Operation::HasChanged { .. }
            | Operation::Evict
            | Operation::Fresh(_) => false,
            Operation::Set(_)
            | Operation::Restore(_)
            | Operation::Invalidate
            | Operation::InvalidateIfCurrent { .. }
            | Operation::Clear(_)
            | Operation::ClearUnseen
            | Operation::Revoke(_)
            | Operation::Elected { .. }
            | Operation::ElectedUnseen(_)
            | Operation::ElectedAnew { .. }
            | Operation::Publish { .. }
            | Operation::PublishUnseen { .. }
            | Operation::PublishForFresh { .. }
            | Operation::PublishForNewer { .. }
            | Operation::Renew { .. }
            | Operation::GiveBack(_)
            // They may look under the lock, which is contention too.
            | Operation::Fenced { .. }
            | Operation::Changed { .. }
            | Operation::NothingNewer(_)
            | Operation::Stale(_)
            | Operation::Served(_)
            | Operation::Pending
            | Operation::PendingUntilFresh
            | Operation::PendingAnew => true,
        }
    }

    fn is_optional(operation: &Operation) -> bool {
        *operation == Operation::Evict
    }
}

/// Histories that cannot have happened, beside similar ones that can: so the checker can tell them apart.
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

    const ELECTED: Operation = ElectedUnseen(1);

    fn published(value: u64) -> Operation {
        Publish { id: 1, value, served: value }
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
        possible(&[&build(Elected { id: 2, previous: Some(1) }), &invalidation]);
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
        let build =
            |served| [(1, 2, ELECTED), (5, 6, Publish { id: 1, value: 1, served }), (7, 8, Get(Some(2)))];
        let set = [(3, 4, Set(2))];
        impossible(&[&build(1), &set]);
        possible(&[&build(2), &set]);
        impossible(&[&[(1, 2, ELECTED), (5, 6, published(1)), (7, 8, Get(Some(1)))], &set]);
    }

    #[test]
    fn no_caller_is_elected_while_a_build_runs() {
        let other = ElectedUnseen(2);
        impossible(&[&[(1, 2, ELECTED), (7, 8, GiveBack(1))], &[(3, 4, other)]]);
        possible(&[&[(1, 2, ELECTED), (3, 8, GiveBack(1))], &[(4, 9, other)]]);
    }

    #[test]
    fn a_build_that_was_displaced_holds_no_lease() {
        let other = ElectedUnseen(2);
        for displaced in [Clear(None), ClearUnseen, Revoke(true)] {
            possible(&[&[(1, 2, ELECTED), (9, 10, GiveBack(1))], &[(3, 4, displaced), (5, 6, other)]]);
            possible(&[&[(1, 2, ELECTED)], &[(3, 4, displaced), (5, 6, Refreshing(false))]]);
            impossible(&[&[(1, 2, ELECTED)], &[(3, 4, displaced), (5, 6, Refreshing(true))]]);
            impossible(&[&[(1, 2, ELECTED), (5, 6, Fenced { id: 1, fenced: false })], &[(3, 4, displaced)]]);
        }
        // What it returns without a lease takes none away from the next build.
        impossible(&[
            &[(1, 2, ELECTED), (7, 8, GiveBack(1))],
            &[(3, 4, Revoke(true)), (5, 6, other), (9, 10, Refreshing(false))],
        ]);
        impossible(&[&[(1, 2, ELECTED)], &[(3, 4, Revoke(false))]]);
        // A restored value displaces no build.
        impossible(&[&[(1, 2, ELECTED)], &[(3, 4, Restore(7)), (5, 6, Refreshing(false))]]);
        possible(&[&[(1, 2, ELECTED), (5, 6, published(1)), (7, 8, Fresh(1))], &[(3, 4, Restore(7))]]);
    }

    #[test]
    fn a_value_is_declared_stale_by_one_caller_and_only_while_it_is_current() {
        let set = [(1, 2, Set(1))];
        let declare = |called, declared| [(called, 9, InvalidateIfCurrent { seen: 1, declared })];
        possible(&[&set, &declare(3, true), &declare(4, false)]);
        impossible(&[&set, &declare(3, true), &declare(4, true)]);
        impossible(&[&set, &declare(3, false)]);
        impossible(&[&[(1, 2, Set(1)), (3, 4, Set(2))], &declare(5, true)]);
    }

    #[test]
    fn no_caller_builds_what_is_fresh() {
        impossible(&[&[(1, 2, Set(1)), (3, 4, ELECTED)]]);
        possible(&[&[(1, 2, Set(1)), (3, 4, Invalidate), (5, 6, Elected { id: 1, previous: Some(1) })]]);
        possible(&[&[(1, 2, Set(1)), (3, 4, ElectedAnew { id: 1, previous: Some(1) })]]);
    }

    #[test]
    fn a_stale_answer_without_an_election_has_a_reason() {
        let stale = [(1, 2, Set(1)), (3, 4, Invalidate)];
        impossible(&[&stale, &[(5, 6, Stale(1))]]);
        // A build runs.
        possible(&[&stale, &[(5, 6, ELECTED)], &[(7, 8, Stale(1))]]);
        // Or its caller is just being elected.
        possible(&[&stale, &[(5, 8, ELECTED)], &[(6, 7, Stale(1))]]);
        impossible(&[&[(1, 2, Pending)]]);
        possible(&[&[(1, 2, ELECTED)], &[(3, 4, Pending)]]);
    }

    #[test]
    fn what_is_renewed_is_a_new_generation_of_the_same_value() {
        let stale = [(1, 2, Set(1)), (3, 4, Invalidate), (5, 6, Elected { id: 1, previous: Some(1) })];
        let renewed = (7, 8, Renew { id: 1, previous: 1, served: 1 });
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
    fn a_subscription_misses_nothing_that_is_there() {
        let set = [(1, 2, Set(1))];
        impossible(&[&set, &[(3, 4, NothingNewer(0))]]);
        impossible(&[&set, &[(3, 4, HasChanged { seen: 0, changed: false })]]);
        possible(&[&set, &[(3, 4, HasChanged { seen: 1, changed: false })]]);
        possible(&[&[(1, 4, Set(1))], &[(2, 3, NothingNewer(0))]]);
        // What was taken away is not there.
        possible(&[&[(1, 2, Set(1)), (3, 4, Clear(Some(1))), (5, 6, NothingNewer(0))]]);
        // It waited, and was served something that had been replaced before the call.
        let changed = |value| Changed { seen: 0, value, generation: value };
        impossible(&[&[(1, 2, Set(1)), (3, 4, Set(2))], &[(5, 6, changed(1))]]);
        possible(&[&[(1, 2, Set(1)), (3, 6, Set(2))], &[(4, 5, changed(1))]]);
        // It waited for a value that was published during the call.
        possible(&[&[(2, 3, Set(1))], &[(1, 4, changed(1))]]);
    }

    #[test]
    fn a_subscription_returns_each_publication_once_and_none_that_there_was_not() {
        let sets = [(1, 2, Set(1)), (3, 4, Set(2))];
        let changed = |seen, value, generation| [(5, 6, Changed { seen, value, generation })];
        possible(&[&sets, &changed(0, 2, 2)]);
        possible(&[&sets, &changed(1, 2, 2)]);
        for wrong in
            [changed(2, 2, 2), changed(0, 2, 1), changed(1, 3, 2), changed(0, 1, 1), changed(2, 2, 3)]
        {
            impossible(&[&sets, &wrong]);
        }
    }

    #[test]
    fn an_eviction_takes_a_value_away_and_brings_none_back() {
        let sets = [(1, 2, Set(1)), (5, 6, Set(2))];
        let evicted = [(0, 100, Evict)];
        possible(&[&sets, &[(3, 4, Get(None)), (7, 8, Get(Some(2)))], &evicted]);
        // It need not have happened.
        possible(&[&sets, &[(3, 4, Get(Some(1))), (7, 8, Get(Some(2)))], &evicted]);
        impossible(&[&sets, &[(3, 4, Get(None)), (7, 8, Get(Some(1)))], &evicted]);
        // And once only.
        impossible(&[&sets, &[(3, 4, Get(None)), (7, 8, Get(None))], &evicted]);
        possible(&[&sets, &[(3, 4, Get(None)), (7, 8, Get(None))], &evicted, &evicted]);
        impossible(&[&sets, &[(3, 4, Get(None))]]);
    }

    #[test]
    fn it_says_how_far_it_came() {
        let fault = history(&[&[(1, 2, Set(1)), (3, 4, Get(Some(2)))]]).unwrap_err();
        assert_eq!(fault.beginning, [0]);
        assert!(format!("{fault:?}").contains("Get(Some(2))"), "{fault:?}");
    }
}
