//! An actor's place in a scheduler of the present process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dogpile::Clock;

use super::{Actor, Scheduler};

/// An actor's place in a scheduler; nothing until it is first needed.
pub(crate) struct Seat<C> {
    clock: C,
    place: Mutex<Option<Place<C>>>,
}

struct Place<C> {
    /// A process that was forked inherits what is here, and no threads.
    process: u32,
    scheduler: Arc<Scheduler<C>>,
    number: u64,
}

impl<C: Clock + 'static> Seat<C> {
    pub(crate) fn new(clock: C) -> Self {
        Self { clock, place: Mutex::new(None) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Place<C>>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was attached, in this process or in one that this one was forked from.
    pub(crate) fn is_taken(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether it was attached in a process that this one was forked from, and not in this one.
    pub(crate) fn is_of_parent(&self) -> bool {
        self.lock().as_ref().is_some_and(|place| place.process != std::process::id())
    }

    /// Has the actor take a step, if it is attached.
    pub(crate) fn post(&self) -> bool {
        let place = self.lock();
        place
            .as_ref()
            .is_some_and(|place| place.process == std::process::id() && place.scheduler.post(place.number))
    }
}

impl<C: Clock + Clone + 'static> Seat<C> {
    /// Has the actor take a step, and attaches it before if it is not. Returns whether there is a thread for it.
    pub(crate) fn rouse(&self, actor: impl FnOnce() -> Option<Arc<dyn Actor>>) -> bool {
        self.post() || self.attach(actor)
    }

    /// Attaches the actor if it is not, and has it take a first step then. Returns whether there is a thread for it.
    pub(crate) fn attach(&self, actor: impl FnOnce() -> Option<Arc<dyn Actor>>) -> bool {
        let is_here =
            |place: &Place<C>| place.process == std::process::id() && place.scheduler.has(place.number);
        if self.lock().as_ref().is_some_and(is_here) {
            return true;
        }
        let Some(actor) = actor() else { return false };
        let process = std::process::id();
        let parents = self.lock().take_if(|place| place.process != process);
        if parents.is_some() {
            // Not dropped: it is the parent's.
            std::mem::forget(parents);
            actor.has_forked();
        }
        let scheduler = Scheduler::of(&self.clock);
        let store = actor.store();
        let mut place = self.lock();
        // Another thread may have come first.
        if place.as_ref().is_some_and(is_here) {
            return true;
        }
        let number = scheduler.attach(actor, store);
        let place_now = number.map(|number| Place { process, scheduler, number });
        let before = std::mem::replace(&mut *place, place_now);
        let is_attached = place.is_some();
        drop(place);
        drop(before);
        is_attached
    }
}
