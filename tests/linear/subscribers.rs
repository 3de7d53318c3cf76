//! Rounds in which some threads only follow the cell.
//!
//! Subscriptions wait, so a round has an end that all of them reach: when the other threads are done, the last of them sets
//! [`LAST`]. A follower that misses it hangs, which the harness reports.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dogpile::Subscription;
#[cfg(feature = "async")]
use futures_lite::future::{block_on, poll_once};

use crate::cells::{TestCell, TestReaderCell};
use crate::harness::Member;
use crate::model::Operation;
use crate::rounds::{Interrupter, Notes, Subject, THREADS, rounds};

const FOLLOWERS: usize = if cfg!(miri) { 1 } else { 2 };
/// Of the other threads. Each makes three events at most, and one publication that each follower may return: a history has
/// 64 events at most.
const STEPS: usize = 5;
/// Looks that do not wait, of a follower.
const LOOKS: usize = 3;
/// The value after which nothing is published.
const LAST: u64 = 999;

#[test]
fn the_history_of_a_cell_with_subscribers_has_an_order() {
    rounds::<Followed<TestCell>>(20, 2);
}

#[test]
fn the_history_of_a_cell_with_readers_and_subscribers_has_an_order() {
    rounds::<Followed<TestReaderCell>>(10, 1);
}

struct Followed<S> {
    cell: S,
    /// Threads that publish and are not done.
    busy: AtomicUsize,
}

impl<S: Subject + Follow> Subject for Followed<S> {
    fn new() -> Self {
        Self { cell: S::new(), busy: AtomicUsize::new(THREADS - FOLLOWERS) }
    }

    fn set(&self, value: u64) {
        self.cell.set(value);
    }

    fn invalidate(&self) {
        self.cell.invalidate();
    }

    fn act(&self, me: &mut Member<'_>, notes: &mut Notes<'_>, _steps: usize) {
        if notes.thread < FOLLOWERS {
            return self.cell.follow(me, notes);
        }
        self.cell.act(me, notes, STEPS);
        if self.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            notes.note(|| self.cell.set(LAST), |()| Operation::Set(LAST));
        }
    }
}

/// A cell that can be followed.
trait Follow {
    /// All that a follower does in a round.
    fn follow(&self, me: &mut Member<'_>, notes: &mut Notes<'_>);
}

macro_rules! impl_follow {
    ($($cell:ty),*) => {$(
        impl Follow for $cell {
            fn follow(&self, me: &mut Member<'_>, notes: &mut Notes<'_>) {
                let mut subscription: Subscription<'_, u64, Interrupter, $cell> = self.subscribe();
                let mut looks = 0;
                loop {
                    let seen = subscription.seen();
                    let way = if looks < LOOKS { me.random.below(7) } else { 3 + me.random.below(4) };
                    looks += usize::from(way < 3);
                    if way == 0 {
                        let looked = |&changed: &bool| Operation::HasChanged { seen, changed };
                        notes.note(|| subscription.has_changed(), looked);
                        continue;
                    }
                    let call = || {
                        let value = match way {
                            1 => subscription.wait_changed_timeout(Duration::ZERO),
                            #[cfg(feature = "async")]
                            2 => block_on(poll_once(subscription.changed())),
                            #[cfg(feature = "async")]
                            3 | 4 => Some(block_on(subscription.changed())),
                            _ => Some(subscription.wait_changed()),
                        };
                        value.map(|value| (*value, subscription.seen()))
                    };
                    let returned = notes.note(call, |returned| match *returned {
                        Some((value, generation)) => Operation::Changed { seen, value, generation },
                        None => Operation::NothingNewer(seen),
                    });
                    if returned.is_some_and(|(value, _)| value == LAST) {
                        return;
                    }
                }
            }
        }
    )*};
}
impl_follow!(TestCell, TestReaderCell);
