//! Leases, and places among the waiters.

use std::cell::RefCell;
use std::mem;
use std::sync::Arc;

use dogpile::{Lookup, Waited};

use super::cell::Either;
use super::reads::under;
use super::{Lease, Pending, Reach, Runner, TestClock, Waiting, take};
use crate::model::{BuildId, Demand, Ended, Kind, Model, PANICKED, Patience, Published, Seen};
use crate::operations::{Conditions, End};
use crate::panics::{Called, called, panic_as_planned};
use crate::tokens::Token;

impl Runner {
    pub(super) fn lookup(&self, owned: bool, conditions: Option<Conditions>, reach: Reach<'_, '_>) {
        let demand = conditions.map_or(Demand::ANYTHING, |conditions| self.demand(&conditions));
        let Some(cell) = self.dogpile() else { return };
        let expected = self.model.borrow_mut().lookup(demand);
        match reach.map(|borrowed| (borrowed, borrowed.cell)) {
            Some((borrowed, Either::Dogpile(cell))) if !owned => {
                let found = match conditions {
                    Some(conditions) => under(cell.request(), &conditions, demand.newer_than).lookup(),
                    None => cell.lookup(),
                };
                self.keep_found(found, expected, &borrowed.leases, &borrowed.pendings);
            }
            _ => {
                let found = match conditions {
                    Some(conditions) => under(cell.request_owned(), &conditions, demand.newer_than).lookup(),
                    None => cell.lookup_owned(),
                };
                self.keep_found(found, expected, &self.leases, &self.pendings);
            }
        }
    }

    fn keep_found<'l>(
        &self,
        found: Lookup<'l, Token, TestClock>,
        expected: Seen,
        leases: &RefCell<Vec<(BuildId, Lease<'l>)>>,
        pendings: &RefCell<Vec<(usize, Pending<'l>)>>,
    ) {
        let seen = match found {
            Lookup::Elected(lease) => {
                let Seen::Elected(build) = expected else { panic!("elected, instead of {expected:?}") };
                leases.borrow_mut().push((build, lease));
                return;
            }
            Lookup::Pending(pending) => {
                let place = self.model.borrow_mut().take_place();
                let number = self.placed.get();
                self.placed.set(number + 1);
                self.places.borrow_mut().insert(number, place);
                pendings.borrow_mut().push((number, pending));
                Seen::Pending
            }
            Lookup::Fresh(value) => Seen::Fresh(self.number(&value)),
            Lookup::Stale(value) => Seen::Stale(self.number(&value)),
            Lookup::Failed(error) => Seen::Failed(self.ledger.fault(&error)),
        };
        assert_eq!(seen, expected, "lookup");
    }

    pub(super) fn end_lease(&self, which: usize, end: End, reach: Reach<'_, '_>) {
        let owned = self.leases.borrow().len();
        let borrowed = reach.map_or(0, |borrowed| borrowed.leases.borrow().len());
        if owned + borrowed == 0 {
            return;
        }
        let which = which % (owned + borrowed);
        if which < owned {
            let (build, lease) = self.leases.borrow_mut().remove(which);
            let end = if let End::Forget = end { End::Drop } else { end };
            if let Some(lease) = self.end_with(build, lease, end) {
                self.leases.borrow_mut().push((build, lease));
            }
        } else if let Some(borrowed) = reach {
            let (build, lease) = borrowed.leases.borrow_mut().remove(which - owned);
            if let Some(lease) = self.end_with(build, lease, end) {
                borrowed.leases.borrow_mut().push((build, lease));
            }
        }
    }

    /// Returns the lease if it has not ended.
    pub(super) fn end_with<'l>(&self, build: BuildId, lease: Lease<'l>, end: End) -> Option<Lease<'l>> {
        match end {
            End::Publish | End::PublishFor(_) | End::PublishArc => {
                let ttl = if let End::PublishFor(ttl) = end { Some(ttl) } else { None };
                let value = self.ledger.value();
                let expected = self.model.borrow_mut().publish(build, value.number, ttl).value;
                let got = match end {
                    End::PublishFor(ttl) => lease.publish_for(value, ttl),
                    End::PublishArc => lease.publish_arc(Arc::new(value)),
                    _ => lease.publish(value),
                };
                assert_eq!(self.number(&got), expected, "{end:?}");
            }
            End::PublishSnapshot(ttl) => {
                let value = self.ledger.value();
                let expected = self.model.borrow_mut().publish(build, value.number, ttl);
                let got = lease.publish_snapshot(Arc::new(value), ttl);
                let got = Published {
                    value: self.number(&got.value),
                    generation: got.generation,
                    fresh_for: got.fresh_for,
                    servable_for: got.servable_for,
                    outcome: got.outcome,
                };
                assert_eq!(got, expected, "publish_snapshot");
            }
            End::Renew | End::RenewFor(_) => {
                let ttl = if let End::RenewFor(ttl) = end { Some(ttl) } else { None };
                let expected = self.model.borrow_mut().renew(build, ttl).map(|published| published.value);
                let renewed = match ttl {
                    None => lease.renew(),
                    Some(ttl) => lease.renew_for(ttl),
                };
                match renewed {
                    Ok(got) => assert_eq!(Some(self.number(&got)), expected, "renew"),
                    Err(lease) => {
                        assert_eq!(expected, None, "renew gave the lease back");
                        return Some(lease);
                    }
                }
            }
            End::Fail(Kind::Network) => self.fail::<false>(build, lease),
            End::Fail(Kind::Parse) => self.fail::<true>(build, lease),
            End::DropInAPanic => {
                self.model.borrow_mut().panic(build, PANICKED);
                let unwound = called(|| {
                    let _lease = lease;
                    panic_as_planned();
                });
                assert_eq!(unwound, Called::<()>::Panicked);
            }
            End::Forget => mem::forget(lease),
            End::Drop => {
                self.model.borrow_mut().abandon(build);
                drop(lease);
            }
        }
        None
    }

    fn fail<const PARSE: bool>(&self, build: BuildId, lease: Lease<'_>) {
        let error = self.ledger.error::<PARSE>();
        let fault = error.fault();
        self.model.borrow_mut().fail(build, fault);
        assert_eq!(self.ledger.fault(&lease.fail(error)), fault, "fail");
    }

    pub(super) fn wait(&self, which: usize, patience: Patience, reach: Reach<'_, '_>) {
        let owned = self.pendings.borrow().len();
        let borrowed = reach.map_or(0, |borrowed| borrowed.pendings.borrow().len());
        if owned + borrowed == 0 {
            return;
        }
        let which = which % (owned + borrowed);
        if which < owned {
            let (number, pending) = self.pendings.borrow_mut().remove(which);
            if let Some(pending) = self.wait_at(number, pending, patience) {
                self.pendings.borrow_mut().push((number, pending));
            }
        } else if let Some(borrowed) = reach {
            let (number, pending) = borrowed.pendings.borrow_mut().remove(which - owned);
            if let Some(pending) = self.wait_at(number, pending, patience) {
                borrowed.pendings.borrow_mut().push((number, pending));
            }
        }
    }

    /// Returns the place if the wait has ended before the build.
    fn wait_at<'l>(&self, number: usize, pending: Pending<'l>, patience: Patience) -> Option<Pending<'l>> {
        let place = self.places.borrow()[&number];
        let (limit, ended) = self.model.borrow().trial().wait(place, patience);
        if ended.is_none() && Model::wait_end(place, limit).is_none() {
            return Some(pending); // Nothing would end that.
        }
        let (limit, ended) = self.model.borrow_mut().wait(place, patience);
        self.waiting.borrow_mut().push(Waiting::Place(place, limit, ended));
        self.places.borrow_mut().remove(&number);
        let waited = match patience {
            Patience::Endless => Ok(pending.wait()),
            Patience::For(time) => pending.wait_timeout(time),
        };
        let Some(Waiting::Place(_, _, Some(expected))) = self.waiting.borrow_mut().pop() else {
            panic!("the wait has ended, though the model says that it goes on")
        };
        let (got, left) = match waited {
            Ok(Waited::Published(value)) => (Ended::Published(self.number(&value)), None),
            Ok(Waited::Failed(error)) => (Ended::Failed(self.ledger.fault(&error)), None),
            Ok(Waited::Abandoned) => (Ended::Abandoned, None),
            Ok(Waited::Reentrant) => (Ended::Reentrant, None),
            Ok(waited) => panic!("the test does not know {waited:?}"),
            Err(pending) => (Ended::NotYet, Some(pending)),
        };
        assert_eq!(got, expected, "wait");
        if left.is_some() {
            self.places.borrow_mut().insert(number, place);
        }
        left
    }

    pub(super) fn leave_place(&self, which: usize, reach: Reach<'_, '_>) {
        let owned = take(&self.pendings, which).map(|(number, _)| number);
        let number = owned.or_else(|| {
            let (number, _) = take(&reach?.pendings, which)?;
            Some(number)
        });
        if let Some(number) = number {
            self.places.borrow_mut().remove(&number);
        }
    }

    pub(super) fn compare_lease(&self, build: BuildId, lease: &Lease<'_>) {
        let model = self.model.borrow();
        assert_eq!(
            lease.previous().map(|value| self.number(value)),
            model.previous(build),
            "Lease::previous"
        );
        assert_eq!(lease.generation(), model.generation_of(build), "Lease::generation");
        assert_eq!(lease.is_fenced(), model.is_fenced(build), "Lease::is_fenced");
    }
}
