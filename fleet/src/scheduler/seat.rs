//! An actor's place in a scheduler of the present process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dogpile::Clock;

use super::{Actor, Scheduler};

/// An actor's place in a scheduler; nothing until it is first needed.
pub(crate) struct Seat<C> {
    clock: C,
    place: Mutex<Option<Place<C>>>,
    /// Held while an actor gives back what its parent's threads held: no other thread of this process goes on before that.
    move_in: Mutex<()>,
}

struct Place<C> {
    /// A process that was forked inherits what is here, and no threads.
    process: u32,
    scheduler: Arc<Scheduler<C>>,
    number: u64,
}

impl<C: Clock + 'static> Seat<C> {
    pub(crate) fn new(clock: C) -> Self {
        Self { clock, place: Mutex::new(None), move_in: Mutex::new(()) }
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
        if self.is_of_parent() {
            let _move_in = self.move_in.lock().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have come first.
            if self.is_of_parent() {
                actor.has_forked();
                // Not dropped: it is the parent's.
                std::mem::forget(self.lock().take());
            }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use dogpile::ManualClock;

    use super::super::Next;
    use super::*;

    struct Forked {
        begun: Mutex<Sender<()>>,
        second_is_over: Mutex<Receiver<()>>,
        is_over: AtomicBool,
    }

    impl Actor for Forked {
        fn step(&self) -> Next {
            Next::Over
        }
        fn store(&self) -> usize {
            0
        }
        fn has_forked(&self) {
            self.begun.lock().unwrap().send(()).unwrap();
            // Another thread that does not wait for this one has this long to be noticed.
            let _ = self.second_is_over.lock().unwrap().recv_timeout(Duration::from_millis(100));
            self.is_over.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_second_thread_of_a_child_used_a_cell_before_the_first_had_given_back_what_the_parent_held() {
        let clock = ManualClock::new();
        let seat = Seat::new(clock.clone());
        let scheduler = Scheduler::new(clock, 1);
        *seat.lock() = Some(Place { process: std::process::id() + 1, scheduler, number: 1 });
        let ((begun, has_begun), (over, second_is_over)) = (channel(), channel());
        let (begun, second_is_over) = (Mutex::new(begun), Mutex::new(second_is_over));
        let actor = Arc::new(Forked { begun, second_is_over, is_over: AtomicBool::new(false) });
        let attach = || seat.attach(|| Some(Arc::clone(&actor) as Arc<dyn Actor>));
        std::thread::scope(|scope| {
            scope.spawn(attach);
            has_begun.recv().unwrap();
            assert!(attach());
            let is_over = actor.is_over.load(Ordering::SeqCst);
            let _ = over.send(());
            assert!(is_over);
        });
    }
}
