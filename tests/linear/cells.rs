//! Rounds on real cells.

use std::sync::Arc;
use std::time::Duration;

use dogpile::{DogpileCell, Drain, Lease, Lookup, Reader, ReaderArc, Snapshot, SyncReaderCell};

use crate::harness::Member;
use crate::model::Operation;
use crate::rounds::{FAILED, Interrupter, Notes, Subject, policy, read_or_build, rounds};

pub(crate) type TestCell = DogpileCell<u64, Interrupter>;
pub(crate) type TestReaderCell = SyncReaderCell<u64, Interrupter>;

#[test]
fn the_history_of_a_cell_has_an_order() {
    rounds::<TestCell>(20, 2);
}

#[test]
fn the_history_of_a_cell_with_readers_has_an_order() {
    rounds::<TestReaderCell>(10, 1);
}

fn number(value: impl std::ops::Deref<Target = u64>) -> u64 {
    *value
}

impl Subject for TestCell {
    fn new() -> Self {
        Self::with_clock(policy(), Interrupter)
    }

    fn set(&self, value: u64) {
        TestCell::set(self, value);
    }

    fn invalidate(&self) {
        TestCell::invalidate(self);
    }

    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>, steps: usize) {
        let mut handle = self.reader();
        let mut lease: Option<Granted<'_>> = None;
        for _ in 0..steps {
            if let Some(held) = lease.take_if(|_| me.random.one_in(2)) {
                end(me, notes, held);
                continue;
            }
            step(self, me, notes, &mut handle, &mut lease);
        }
        if let Some(held) = lease {
            end(me, notes, held);
        }
    }
}

/// A lease with its number.
struct Granted<'a> {
    id: u64,
    /// Its caller needs a newer value than any that it could find.
    anew: bool,
    lease: Lease<'a, u64, Interrupter>,
}

fn step<'a>(
    cell: &'a TestCell,
    me: &mut Member<'_>,
    notes: &mut Notes<'_>,
    handle: &mut Reader<'a, u64, Interrupter>,
    lease: &mut Option<Granted<'a>>,
) {
    match me.random.below(30) {
        0..3 => drop(notes.note(|| cell.get(), |value| Operation::Get(value.as_deref().copied()))),
        3 | 4 => drop(notes.note(|| cell.load(), |value| Operation::Get(value.as_deref().copied()))),
        5..8 => {
            let shown = |shot: &Option<Snapshot<u64>>| {
                Operation::Snapshot(shot.as_ref().map(|shot| (*shot.value, shot.generation, shot.freshness)))
            };
            drop(notes.note(|| cell.snapshot(), shown));
        }
        8 => drop(notes.note(|| cell.generation(), |now| Operation::Generation(*now))),
        9 => drop(notes.note(|| cell.freshness(), |now| Operation::Looks(*now))),
        10 | 11 => {
            let read = |value: &Option<u64>| Operation::Get(*value);
            notes.note(|| handle.get().map(|value| **value), read);
        }
        12..15 => look_up(cell, me, notes, lease, false),
        15 => look_up(cell, me, notes, lease, true),
        16 | 17 if lease.is_none() => read_or_build::<TestCell>(me, notes, Operation::Pending, |build| {
            cell.request().wait_at_most(Duration::ZERO).try_get(build).map(number)
        }),
        18 if lease.is_none() => {
            read_or_build::<TestCell>(me, notes, Operation::PendingUntilFresh, |build| {
                cell.request()
                    .max_stale(Duration::ZERO)
                    .wait_at_most(Duration::ZERO)
                    .try_get(build)
                    .map(number)
            });
        }
        16..20 => {
            let value = notes.number();
            let set = |_: &Arc<u64>| Operation::Set(value);
            match me.random.below(4) {
                0 => drop(notes.note(|| cell.set_for(value, Duration::MAX), set)),
                1 => drop(notes.note(|| cell.set_arc(Arc::new(value)), set)),
                2 => drop(notes.note(|| cell.restore(value, Duration::ZERO), |_| Operation::Restore(value))),
                _ => drop(notes.note(|| cell.set(value), set)),
            }
        }
        20..23 => notes.note(|| cell.invalidate(), |()| Operation::Invalidate),
        23 => drop(notes.note(|| cell.clear(), |taken| Operation::Clear(taken.as_deref().copied()))),
        24 => notes.note(|| cell.reset(), |()| Operation::ClearUnseen),
        25 => drop(notes.note(|| cell.revoke(), |revoked| Operation::Revoke(*revoked))),
        26 | 27 => {
            let Some(seen) = notes.note(|| cell.get(), |value| Operation::Get(value.as_deref().copied()))
            else {
                return;
            };
            let declared =
                |declared: &bool| Operation::InvalidateIfCurrent { seen: *seen, declared: *declared };
            notes.note(|| cell.invalidate_if_current(&seen), declared);
        }
        28 => drop(notes.note(|| cell.is_refreshing(), |now| Operation::Refreshing(*now))),
        _ => {
            if let Some(Granted { id, lease, .. }) = lease {
                let fenced = |fenced: &bool| Operation::Fenced { id: *id, fenced: *fenced };
                notes.note(|| lease.is_fenced(), fenced);
            }
        }
    }
}

/// `anew`: it needs a newer value than any that it could find.
fn look_up<'a>(
    cell: &'a TestCell,
    me: &mut Member<'_>,
    notes: &mut Notes<'_>,
    lease: &mut Option<Granted<'a>>,
    anew: bool,
) {
    let id = notes.number();
    let looked = |found: &Lookup<'_, u64, Interrupter>| match found {
        // Of a `set` that came between the beginning of the call and its look.
        Lookup::Fresh(value) | Lookup::Stale(value) if anew => Operation::Get(Some(**value)),
        Lookup::Fresh(value) => Operation::Fresh(**value),
        Lookup::Stale(value) => Operation::Stale(**value),
        Lookup::Elected(lease) => {
            let previous = lease.previous().map(|value| **value);
            if anew { Operation::ElectedAnew { id, previous } } else { Operation::Elected { id, previous } }
        }
        Lookup::Pending(_) if anew => Operation::PendingAnew,
        Lookup::Pending(_) => Operation::Pending,
        Lookup::Failed(error) => panic!("there is no retry pause: {error:?}"),
    };
    let look = || if anew { cell.request().no_cache().lookup() } else { cell.lookup() };
    if let Lookup::Elected(granted) = notes.note(look, looked)
        && let Some(displaced) = lease.replace(Granted { id, anew, lease: granted })
    {
        assert!(displaced.lease.is_fenced(), "elected while it holds the lease");
        end(me, notes, displaced);
    }
}

fn end(me: &mut Member<'_>, notes: &mut Notes<'_>, Granted { id, anew, lease }: Granted<'_>) {
    let previous = lease.previous().map(|value| **value);
    match (me.random.below(8), previous) {
        (0, _) => notes.note(|| drop(lease), |()| Operation::GiveBack(id)),
        (1, _) => drop(notes.note(|| lease.fail(FAILED), |_| Operation::GiveBack(id))),
        (2 | 3, Some(previous)) if !anew => {
            let renew = || lease.renew().unwrap_or_else(|_| unreachable!("there is a previous value"));
            let renewed = |served: &Arc<u64>| Operation::Renew { id, previous, served: **served };
            drop(notes.note(renew, renewed));
        }
        (way, _) => {
            let value = notes.number();
            let published = |served: &Arc<u64>| {
                let served = **served;
                if anew {
                    Operation::PublishForNewer { id, value, served }
                } else {
                    Operation::Publish { id, value, served }
                }
            };
            let publish = || if way == 4 { lease.publish_arc(Arc::new(value)) } else { lease.publish(value) };
            drop(notes.note(publish, published));
        }
    }
}

impl Subject for TestReaderCell {
    const RETURNS_NEWEST: bool = true;

    fn new() -> Self {
        Self::with_clock(policy(), Interrupter, Drain::Background, drop)
    }

    fn set(&self, value: u64) {
        drop(TestReaderCell::set(self, value));
    }

    fn invalidate(&self) {
        TestReaderCell::invalidate(self);
    }

    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>, steps: usize) {
        for _ in 0..steps {
            match me.random.below(22) {
                0..3 => drop(notes.note(|| self.get(), |value| Operation::Get(value.as_deref().copied()))),
                3..5 => drop(notes.note(|| self.load(), |value| Operation::Get(value.as_deref().copied()))),
                5 => drop(notes.note(|| self.generation(), |now| Operation::Generation(*now))),
                6 => drop(notes.note(|| self.freshness(), |now| Operation::Looks(*now))),
                7..11 => read_or_build::<Self>(me, notes, Operation::Pending, |build| {
                    self.request().wait_at_most(Duration::ZERO).try_get(build).map(number)
                }),
                11..13 => {
                    let value = notes.number();
                    let set = |_: &ReaderArc<u64>| Operation::Set(value);
                    match me.random.below(3) {
                        0 => drop(notes.note(|| self.set_for(value, Duration::MAX), set)),
                        1 => {
                            let restored = |_: &ReaderArc<u64>| Operation::Restore(value);
                            drop(notes.note(|| self.restore(value, Duration::ZERO), restored));
                        }
                        _ => drop(notes.note(|| TestReaderCell::set(self, value), set)),
                    }
                }
                13 | 14 => notes.note(|| TestReaderCell::invalidate(self), |()| Operation::Invalidate),
                15 => notes.note(|| self.clear(), |()| Operation::ClearUnseen),
                16 => notes.note(|| self.reset(), |()| Operation::ClearUnseen),
                17 => drop(notes.note(|| self.revoke(), |revoked| Operation::Revoke(*revoked))),
                18 => drop(notes.note(|| self.is_refreshing(), |now| Operation::Refreshing(*now))),
                19 => {
                    let read = |value: &Option<ReaderArc<u64>>| Operation::Get(value.as_deref().copied());
                    let Some(seen) = notes.note(|| self.get(), read) else { continue };
                    let declared =
                        |declared: &bool| Operation::InvalidateIfCurrent { seen: *seen, declared: *declared };
                    notes.note(|| self.invalidate_if_current(&seen), declared);
                }
                _ => {
                    let shown = |shot: &Option<Snapshot<u64, ReaderArc<u64>>>| {
                        let shown = |shot: &Snapshot<u64, ReaderArc<u64>>| {
                            (*shot.value, shot.generation, shot.freshness)
                        };
                        Operation::Snapshot(shot.as_ref().map(shown))
                    };
                    drop(notes.note(|| self.snapshot(), shown));
                }
            }
        }
    }
}
