//! What the store has been seen to be at: its epoch and its version, and whether it has gone back behind them.

use std::sync::PoisonError;

use dogpile::Clock;

use super::Node;
use crate::access::Operation;
use crate::store::{Current, Epoch, Poll, Seen, Version};

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    pub(crate) fn poll(&self, known: Option<Version>) -> Option<Poll> {
        self.access.counters.polls.count();
        let mut poll = self.ask(Operation::Poll, |store, name| store.poll(name, known))?;
        let version = poll.current.newer().map(|value| value.version).or(match poll.current {
            Current::Same { .. } => known,
            _ => None,
        });
        if self.has_gone_back(poll.epoch, version) {
            self.access.counters.gone_back.count();
            poll.current = Current::Nothing { cleared: false };
        } else {
            self.sees(poll.epoch, version);
        }
        self.is_epoch(poll.epoch);
        Some(poll)
    }

    /// Whether an entry is behind what this node has seen of it.
    pub(super) fn has_gone_back(&self, epoch: Epoch, version: Option<Version>) -> bool {
        self.seen().is_some_and(|seen| {
            seen.epoch.incarnation == epoch.incarnation
                && (epoch.number < seen.epoch.number
                    || version.is_some_and(|version| version.number < seen.version))
        })
    }

    pub(super) fn seen(&self) -> Option<Seen> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store is at this epoch, and at this version at least.
    pub(super) fn sees(&self, epoch: Epoch, version: Option<Version>) {
        if epoch.incarnation == 0 {
            return;
        }
        let number = version.filter(|version| version.incarnation == epoch.incarnation);
        let number = number.map_or(0, |version| version.number);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *seen {
            Some(seen) if seen.epoch.incarnation == epoch.incarnation => {
                seen.epoch.number = seen.epoch.number.max(epoch.number);
                seen.version = seen.version.max(number);
            }
            other => *other = Some(Seen { epoch, version: number }),
        }
    }

    pub(super) fn is_epoch(&self, epoch: Epoch) {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch);
    }

    pub(super) fn epoch(&self) -> Option<Epoch> {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
