//! The refresher.

use std::time::Duration;

use dogpile::Refreshed;

use super::{Reach, Runner};
use crate::model::Model;
use crate::operations::{Ahead, Found};
use crate::refresher::{self, Attached, Begun, Options};
use crate::tokens::NetworkError;

impl Runner {
    pub(super) fn let_the_refresher_act(&self) {
        let mut refresher = self.refresher.borrow_mut();
        let Some(refresher) = &mut *refresher else { return };
        let mut model = self.model.borrow_mut();
        let before = model.refreshers_build();
        let activity = model.let_it_act().expect("there is one");
        let begun = model.refreshers_build().filter(|_| before.is_none());
        let begun = begun.map(|build| Begun { previous: model.previous(build) });
        refresher.run(activity, begun, &self.clock);
    }

    pub(super) fn attach(&self, ahead: Ahead, options: Options) {
        if self.model.borrow().has_a_refresher() {
            return;
        }
        let ahead = match ahead {
            Ahead::By(ahead) => ahead,
            Ahead::Percent(percent) => self.model.borrow().ttl().saturating_mul(percent) / 100,
        };
        let Some(cell) = self.dogpile() else { return };
        let attached = Attached::attach(&cell, &self.ledger, &self.parked, ahead, options);
        let is_task = attached.as_ref().is_some_and(Attached::is_task);
        let min_interval = options.min_interval.unwrap_or(Duration::from_millis(100));
        let is_accepted = self.model.borrow_mut().attach(ahead, min_interval, options.rests, is_task);
        assert_eq!(attached.is_some(), is_accepted, "accepted");
        *self.refresher.borrow_mut() = attached;
    }

    pub(super) fn refresh_now(&self) {
        let refresher = self.refresher.borrow();
        let Some(refresher) = &*refresher else { return };
        // A thread that cannot build at once notices what happens until then at a time of its own. One that rests is asked only
        // where it does not have to look at the value of another build.
        let mut model = self.model.borrow_mut();
        if refresher.is_task() && !model.may_rest() || model.can_refresh_at_once() {
            model.ask_to_build();
            drop(model);
            refresher.refresh_now();
        }
    }

    pub(super) fn wait_ready(&self) {
        if let Some(refresher) = &*self.refresher.borrow() {
            let expected = self.model.borrow_mut().is_ready();
            assert_eq!(refresher.wait_ready(), expected, "wait_ready");
        }
    }

    /// Whether there was a build to conclude.
    pub(super) fn conclude(&self, found: Found) -> bool {
        let builds = self.model.borrow().refreshers_build().is_some();
        if builds {
            let end = self.end_of_refresh(found);
            self.refresher.borrow().as_ref().expect("it builds").conclude(end);
        }
        builds
    }

    pub(super) fn outage(&self, failures: u32, reach: Reach<'_, '_>) {
        for _ in 0..failures {
            self.conclude(Found::Error);
            self.compare(reach);
            let until = self.model.borrow().next_attempt();
            if let Some(until) = until {
                self.advance_to(until);
                self.compare(reach);
            }
        }
    }

    pub(super) fn detach(&self, found: Found) {
        let Some(refresher) = self.refresher.take() else { return };
        let builds = self.model.borrow().refreshers_build().is_some();
        if builds && !refresher.is_task() {
            let end = self.end_of_refresh(found);
            self.model.borrow_mut().detach_from_inside();
            refresher.detach(Some(end));
        } else {
            self.model.borrow_mut().detach();
            refresher.detach(None);
        }
    }

    /// What the running build will find, which the model knows already.
    fn end_of_refresh(&self, found: Found) -> refresher::End {
        let mut model = self.model.borrow_mut();
        let of_value = |model: &mut Model, ttl: Option<Duration>, age: Option<Duration>| -> refresher::End {
            let value = self.ledger.value();
            model.conclude_new(value.number, ttl, age.unwrap_or_default());
            Box::new(move || {
                Ok(match (ttl, age) {
                    (None, None) => Refreshed::New(value),
                    (Some(ttl), None) => Refreshed::NewFor(value, ttl),
                    (ttl, Some(age)) => Refreshed::Aged { value, age, ttl },
                })
            })
        };
        match found {
            Found::New => of_value(&mut model, None, None),
            Found::NewFor(ttl) => of_value(&mut model, Some(ttl), None),
            Found::Aged(age, ttl) => of_value(&mut model, ttl, Some(age)),
            Found::NotModified => {
                model.conclude_not_modified();
                Box::new(|| Ok(Refreshed::NotModified))
            }
            Found::Error => {
                let error: NetworkError = self.ledger.error();
                model.conclude_error(error.fault());
                Box::new(move || Err(error))
            }
            Found::Panic => {
                model.conclude_panic();
                Box::new(refresher::panics)
            }
        }
    }
}
