use super::*;
use crate::store::Fence;

const INCARNATION: u64 = 7;

fn at(seconds: u64) -> Tick {
    Tick::default().saturating_add(Duration::from_secs(seconds))
}

fn epoch(number: u64) -> Epoch {
    Epoch { incarnation: INCARNATION, number }
}

fn version(number: u64) -> Version {
    Version { incarnation: INCARNATION, number }
}

fn token(number: u64) -> Token {
    Token { fence: Fence { incarnation: INCARNATION, number }, epoch: 0 }
}

fn won(number: u64) -> Won<u32> {
    Won { token: token(number), tag: None, failures: 0, previous: None, has_value: false }
}

fn state() -> State<u32> {
    State::new()
}

/// Built for this node alone, in an epoch and after so many invalidations of its own.
fn alone(epoch: Option<Epoch>, after: u64) -> Known {
    Known { alone: Some((at(1), Began { epoch, after })), ..Known::default() }
}

#[test]
fn what_is_known_is_about_the_latest_publication() {
    // Registered one after the other; what is known about publication 2 then.
    let table: [(&[u64], Option<u64>); 5] =
        [(&[], None), (&[1], None), (&[2], Some(2)), (&[2, 1], Some(2)), (&[1, 2, 3], None)];
    for (generations, known) in table {
        let mut state = state();
        for generation in generations {
            state.has_published(
                *generation,
                Known { version: Some(version(*generation)), ..Known::default() },
            );
        }
        assert_eq!(state.known(Some(2)).version, known.map(version), "{generations:?}");
        assert_eq!(state.known(None), Known::default());
    }
}

#[test]
fn a_late_answer_is_about_the_publication_that_it_answers_to() {
    for (generation, stored) in [(1, false), (2, true), (3, false)] {
        let mut state = state();
        state.has_published(2, Known { soft_end: at(9), ..alone(None, 0) });
        state.has_stored(generation, version(5));
        let known = state.known(Some(2));
        assert_eq!((known.version.is_some(), known.is_alone()), (stored, !stored), "{generation}");
        assert_eq!(known.soft_end, at(9));
    }
}

#[test]
fn what_a_value_of_this_node_alone_may_have_missed() {
    let foreign = Known { foreign: Some(version(1)), ..alone(Some(epoch(1)), 0) };
    // What is known; whether something is missed if the store is at epoch 2.
    let table = [
        (Known::default(), false),
        (alone(Some(epoch(2)), 0), false),
        (alone(Some(epoch(1)), 0), true),
        (alone(None, 0), true),
        (foreign, false),
    ];
    for (known, missed) in table {
        assert_eq!(known.has_missed(epoch(2)), missed, "{known:?}");
    }
}

type Row<'a> = (&'a [(Epoch, Option<Version>)], Option<(Epoch, u64)>);

#[test]
fn the_latest_of_an_incarnation_is_seen() {
    let other = Epoch { incarnation: 8, number: 0 };
    // What is seen one after the other, and what has been seen then.
    let table: [Row<'_>; 6] = [
        (&[], None),
        (&[(Epoch::default(), None)], None),
        (&[(epoch(3), Some(version(5)))], Some((epoch(3), 5))),
        (&[(epoch(3), Some(version(5))), (epoch(2), Some(version(6)))], Some((epoch(3), 6))),
        (&[(epoch(3), Some(version(5))), (other, Some(version(9)))], Some((other, 0))),
        (&[(epoch(3), Some(version(5))), (Epoch::default(), None)], Some((epoch(3), 5))),
    ];
    for (row, seen) in table {
        let mut state = state();
        for (epoch, version) in row {
            state.sees(*epoch, *version);
        }
        assert_eq!(state.seen, seen.map(|(epoch, version)| Seen { epoch, version }), "{row:?}");
    }
}

#[test]
fn an_entry_behind_what_was_seen_has_gone_back() {
    let table = [
        (epoch(3), Some(version(5)), false),
        (epoch(3), None, false),
        (epoch(4), Some(version(6)), false),
        (epoch(2), Some(version(5)), true),
        (epoch(2), None, true),
        (epoch(3), Some(version(4)), true),
        (Epoch { incarnation: 8, number: 0 }, None, false),
    ];
    for (epoch_now, version_now, gone_back) in table {
        let mut state = state();
        assert!(!has_gone_back(state.seen, epoch_now, version_now), "nothing was seen");
        state.sees(epoch(3), Some(version(5)));
        assert_eq!(
            has_gone_back(state.seen, epoch_now, version_now),
            gone_back,
            "{epoch_now:?} {version_now:?}"
        );
    }
}

#[test]
fn a_right_to_build_is_kept_for_a_quarter_of_its_lease() {
    // Now; whether it is taken, and else when it will be.
    for (now, taken, due) in [(2, false, Some(4)), (3, false, Some(4)), (4, true, None), (5, true, None)] {
        let mut state = state();
        let lease = Duration::from_secs(8);
        assert!(matches!(state.take_stash_if_due(at(now), lease), (None, None)));
        state.stash = Some((won(1), at(2)));
        let (won, until) = state.take_stash_if_due(at(now), lease);
        assert_eq!((won.is_some(), until), (taken, due.map(at)), "{now}");
        assert_eq!(state.stash.is_some(), !taken);
    }
}

#[test]
fn what_is_owed() {
    use Invalidation::{Hard, Soft};
    // Callers that begin, of which so many have come back without success; what is owed to others then.
    let table: [(&[Invalidation], u32, Option<Invalidation>); 6] = [
        (&[], 0, None),
        (&[Soft], 0, None),
        (&[Soft], 1, Some(Soft)),
        (&[Hard, Soft], 2, Some(Hard)),
        (&[Soft, Hard], 2, Some(Hard)),
        (&[Soft, Hard], 1, None),
    ];
    for (callers, back, owed) in table {
        let mut state = state();
        for how in callers {
            state.owes(*how);
        }
        (0..back).for_each(|_| state.has_tried());
        assert_eq!(state.is_owing(), owed.is_some(), "{callers:?} {back}");
        assert_eq!(state.owed().map(|owing| owing.how).filter(|_| state.is_owing()), owed);
        assert_eq!(state.invalidations, callers.len() as u64);
    }
}

#[test]
fn what_is_delivered_is_not_owed_and_the_store_is_one_epoch_further() {
    // The invalidations begun, the number that is acknowledged, and whether something is still owed.
    for (begun, number, owing) in [(1, 1, false), (2, 2, false), (2, 1, true)] {
        // A value that was built after so many of them has missed what was begun later.
        for after in 0..=begun {
            let mut state = state();
            state.is_told(epoch(3));
            state.sees(epoch(3), Some(version(5)));
            (0..number).for_each(|_| state.owes(Invalidation::Soft));
            let acknowledged = state.owed().unwrap();
            (number..begun).for_each(|_| state.owes(Invalidation::Soft));
            (0..begun).for_each(|_| state.has_tried());
            state.has_published(1, alone(Some(epoch(3)), after));
            state.has_delivered(acknowledged, epoch(4));
            assert_eq!((state.is_owing(), state.epoch), (owing, Some(epoch(4))));
            assert_eq!(state.seen, Some(Seen { epoch: epoch(4), version: 5 }));
            assert_eq!(state.known(Some(1)).has_missed(epoch(4)), after < number, "{begun} {number} {after}");
        }
    }
}

/// An answer that comes before the acknowledgement may have the invalidation in it already, and a later one.
#[test]
fn an_epoch_that_the_store_has_told_meanwhile_is_not_taken_back() {
    // What the store tells while it is asked to invalidate, what it acknowledges, and where this node believes it to be then.
    for (told, acknowledged, expected) in [(3, 4, 4), (4, 4, 4), (5, 4, 5), (3, 5, 5)] {
        let mut state = state();
        state.is_told(epoch(3));
        state.sees(epoch(3), None);
        state.owes(Invalidation::Soft);
        let owing = state.owed().unwrap();
        state.is_told(epoch(told));
        state.sees(epoch(told), None);
        state.has_delivered(owing, epoch(acknowledged));
        assert_eq!(state.epoch, Some(epoch(expected)), "{told}");
        assert_eq!(state.seen, Some(Seen { epoch: epoch(expected), version: 0 }), "{told}");
    }

    // What another node has invalidated meanwhile is not taken for what this one has: a build from before both has missed it.
    let mut state = state();
    state.owes(Invalidation::Soft);
    state.has_published(1, alone(Some(epoch(5)), 1));
    state.is_told(epoch(6));
    let owing = state.owed().unwrap();
    state.has_delivered(owing, epoch(7));
    assert!(state.known(Some(1)).has_missed(epoch(7)));
    // And an answer that comes late takes nothing back.
    state.is_told(epoch(6));
    assert_eq!(state.epoch, Some(epoch(7)));
}
