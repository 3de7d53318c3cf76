//! All that a node keeps about its value and the store. One state under one lock, changed by plain functions: no clock, no store and no
//! code of the user's is called in here, and what may be the last owner of a value comes back to be dropped without the lock.
//!
//! | field | since | until |
//! |---|---|---|
//! | `known` | a publication here | the next one |
//! | `stash` | the right to build came when its caller had gone | the next caller is elected, or a quarter of its lease has passed |
//! | `orphans` | a build ended, and the store could not be told | the store works again |
//! | `paused_until` | a build failed, here or elsewhere | then, or a value comes |
//! | `epoch` | the store told it | for ever, as the latest |
//! | `seen` | the store told it | for ever, as the latest of its incarnation |
//! | `owed` | before the store is told of an invalidation | it has acknowledged it |

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::Tick;

use super::Won;
use crate::store::{Epoch, Invalidation, Seen, Token, Version};

/// See the [module](self).
pub(super) struct State<T> {
    known: Known,
    /// And since when.
    pub(super) stash: Option<(Won<T>, Tick)>,
    pub(super) orphans: Vec<Token>,
    pub(super) paused_until: Tick,
    /// The latest epoch that the store has told.
    pub(super) epoch: Option<Epoch>,
    pub(super) seen: Option<Seen>,
    /// One stands for several: a hard one for soft ones too.
    owed: Option<Invalidation>,
    /// How many invalidations this node has begun in all.
    pub(super) invalidations: u64,
    /// Whose turn it is to deliver what is owed. The others wait, as they would have to deliver it too.
    pub(super) turn: Arc<Mutex<()>>,
    /// How many callers of `invalidate` are delivering: what they find here when they come back they make stale themselves.
    delivering: u32,
}

impl<T> State<T> {
    pub(super) fn new() -> Self {
        Self {
            known: Known::default(),
            stash: None,
            orphans: Vec::new(),
            paused_until: Tick::default(),
            epoch: None,
            seen: None,
            owed: None,
            invalidations: 0,
            turn: Arc::default(),
            delivering: 0,
        }
    }
}

/// What is known about the value in the local cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Which publication of the local cell this is about.
    pub(crate) generation: u64,
    pub(crate) version: Option<Version>,
    /// The store has this version, but it cannot be read here: the value was built for this node alone.
    pub(crate) foreign: Option<Version>,
    /// When the build for this node alone had ended, and what was known when it began.
    pub(crate) alone: Option<(Tick, Began)>,
    /// When it stopped or stops being fresh, unless it was invalidated.
    pub(crate) soft_end: Tick,
    /// When it must not be served any more, if that is earlier than the local cell knows.
    pub(crate) hard_end: Option<Tick>,
}

/// What was known of invalidations when a build began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Began {
    pub(crate) epoch: Option<Epoch>,
    /// How many this node had begun.
    pub(crate) after: u64,
}

impl Known {
    /// What the store is told to be known.
    pub(crate) fn to_store(self) -> Option<Version> {
        self.version.or(self.foreign)
    }

    /// Whether the value was built for this node alone, and the store has nothing that could tell whether it still counts.
    pub(crate) fn is_alone(self) -> bool {
        self.alone.is_some() && self.foreign.is_none()
    }

    /// Whether the value was built for this node alone, and something may have been invalidated since.
    pub(crate) fn has_missed(self, epoch: Epoch) -> bool {
        self.is_alone() && self.alone.is_some_and(|(_, began)| began.epoch != Some(epoch))
    }
}

/// The value.
impl<T> State<T> {
    /// What is known about the publication `generation`; nothing about another one.
    pub(super) fn known(&self, generation: Option<u64>) -> Known {
        Some(self.known).filter(|known| generation == Some(known.generation)).unwrap_or_default()
    }

    /// Unless something is known about a later publication.
    pub(super) fn has_published(&mut self, generation: u64, known: Known) {
        if self.known.generation < generation {
            self.known = Known { generation, ..known };
        }
    }

    /// What was published here before the store had answered has been stored.
    pub(super) fn has_stored(&mut self, generation: u64, version: Version) {
        if self.known.generation == generation {
            let soft_end = self.known.soft_end;
            self.known = Known { generation, version: Some(version), soft_end, ..Known::default() };
        }
    }
}

/// Rights to build, and what the store has been seen to be at.
impl<T> State<T> {
    /// Takes the right to build if nobody has come for it in a quarter of its `lease`; else says when that will be.
    pub(super) fn take_stash_if_due(&mut self, now: Tick, lease: Duration) -> (Option<Won<T>>, Option<Tick>) {
        let due = |since: Tick| since.saturating_add(lease / 4);
        let won = self.stash.take_if(|(_, since)| due(*since) <= now);
        (won.map(|(won, _)| won), self.stash.as_ref().map(|(_, since)| due(*since)))
    }

    /// The store has said that it is at this epoch; perhaps before it said that it is at a later one.
    pub(super) fn is_told(&mut self, epoch: Epoch) {
        let later =
            self.epoch.filter(|known| known.incarnation == epoch.incarnation && known.number > epoch.number);
        self.epoch = Some(later.unwrap_or(epoch));
    }

    /// The store is at this epoch, and at this version at least.
    pub(super) fn sees(&mut self, epoch: Epoch, version: Option<Version>) {
        if epoch.incarnation == 0 {
            return;
        }
        let number = version.filter(|version| version.incarnation == epoch.incarnation);
        let number = number.map_or(0, |version| version.number);
        match &mut self.seen {
            Some(seen) if seen.epoch.incarnation == epoch.incarnation => {
                seen.epoch.number = seen.epoch.number.max(epoch.number);
                seen.version = seen.version.max(number);
            }
            other => *other = Some(Seen { epoch, version: number }),
        }
    }
}

/// Invalidations.
impl<T> State<T> {
    /// A caller begins to deliver one.
    pub(super) fn owes(&mut self, how: Invalidation) {
        self.invalidations += 1;
        self.owed = Some(if self.owed == Some(Invalidation::Hard) { Invalidation::Hard } else { how });
        self.delivering += 1;
    }

    /// A caller does not deliver any more, whatever has come of it.
    pub(super) fn has_tried(&mut self) {
        self.delivering -= 1;
    }

    /// Threads of the parent were delivering, perhaps, and do not come back in this process.
    pub(super) fn has_forked(&mut self) {
        self.delivering = 0;
        // Not dropped: it is locked, perhaps.
        std::mem::forget(std::mem::take(&mut self.turn));
    }

    /// Whether there is an invalidation that the store has not acknowledged, and that nobody is delivering.
    pub(super) fn is_owing(&self) -> bool {
        self.owed.is_some() && self.delivering == 0
    }

    /// What is to be delivered.
    pub(super) fn owed(&self) -> Option<Owing> {
        self.owed.map(|how| Owing { how, number: self.invalidations })
    }

    /// The store has acknowledged it: `epoch` has begun.
    pub(super) fn has_delivered(&mut self, Owing { number, .. }: Owing, epoch: Epoch) {
        if self.invalidations == number {
            self.owed = None;
        }
        self.is_told(epoch);
        self.sees(epoch, None);
        // Built here after it had begun: it is not what was invalidated. But it is, if another node has invalidated too.
        if let Some((_, began)) = &mut self.known.alone
            && began.after >= number
            && let Some(before) = &mut began.epoch
            && (before.incarnation, before.number + 1) == (epoch.incarnation, epoch.number)
        {
            *before = epoch;
        }
    }
}

/// Whether an entry is behind what had been `seen` of it before the question.
pub(super) fn has_gone_back(seen: Option<Seen>, epoch: Epoch, version: Option<Version>) -> bool {
    seen.is_some_and(|seen| {
        seen.epoch.incarnation == epoch.incarnation
            && (epoch.number < seen.epoch.number
                || version.is_some_and(|version| version.number < seen.version))
    })
}

/// An invalidation for the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owing {
    pub(super) how: Invalidation,
    /// How many this node had begun, with this one.
    number: u64,
}

#[cfg(test)]
mod tests;
