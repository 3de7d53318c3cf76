//! What is posted to a node's worker: jobs, hints, the end of the cell. It knows nothing of the node.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use dogpile::Clock;

use crate::scheduler::{Actor, Seat, Wake};
use crate::store::Hint;

pub(crate) struct Mailbox<J, C> {
    jobs: Mutex<VecDeque<J>>,
    hinted: AtomicBool,
    closed: AtomicBool,
    /// What else is to be woken when the cell ends: its refreshers.
    ends: Mutex<Vec<Weak<Wake>>>,
    seat: Seat<C>,
    worker: Weak<dyn Actor>,
}

impl<J, C: Clock + 'static> Mailbox<J, C> {
    pub(crate) fn new(worker: Weak<dyn Actor>, clock: C) -> Self {
        Self {
            jobs: Mutex::default(),
            hinted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            ends: Mutex::default(),
            seat: Seat::new(clock),
            worker,
        }
    }

    fn jobs(&self) -> MutexGuard<'_, VecDeque<J>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.jobs().len()
    }

    pub(crate) fn next(&self) -> Option<J> {
        self.jobs().pop_front()
    }

    /// Drops what has not been begun.
    pub(crate) fn forget(&self) {
        let jobs = std::mem::take(&mut *self.jobs());
        drop(jobs);
    }

    pub(crate) fn take_hint(&self) -> bool {
        // Acquire: pairs with the Release in the hint.
        self.hinted.swap(false, Ordering::Acquire)
    }

    /// The cell ends. Waits for nothing.
    pub(crate) fn close(&self) {
        // Release: pairs with the Acquire in `is_closed`.
        self.closed.store(true, Ordering::Release);
        self.seat.post();
        let ends = std::mem::take(&mut *self.ends.lock().unwrap_or_else(PoisonError::into_inner));
        // Without the lock: a task's waker is user code.
        for end in ends.iter().filter_map(Weak::upgrade) {
            end.notify();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        // Acquire: pairs with the Release in `close`.
        self.closed.load(Ordering::Acquire)
    }

    /// Has the end of the cell wake a thread.
    pub(crate) fn wakes_at_end(&self, wake: &Arc<Wake>) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.retain(|end| end.strong_count() > 0);
        ends.push(Arc::downgrade(wake));
    }
}

impl<J, C> Mailbox<J, C>
where
    J: Send + 'static,
    C: Clock + Clone + 'static,
{
    /// Has the worker look after the node from now on. Returns whether there is a thread for it.
    pub(crate) fn attach(&self) -> bool {
        self.seat.attach(|| self.worker.upgrade())
    }

    /// Has the worker do `job`. Returns what nobody would do, where no thread can be had: it is the caller's from then on.
    #[must_use = "a job that is dropped may leave a lease in the store"]
    pub(crate) fn submit(&self, job: J) -> VecDeque<J> {
        if self.seat.is_of_parent() {
            // Before the job is there: what the parent has posted is forgotten then.
            self.attach();
        }
        self.jobs().push_back(job);
        if self.seat.rouse(|| self.worker.upgrade()) {
            VecDeque::new()
        } else {
            std::mem::take(&mut *self.jobs())
        }
    }

    /// Has the worker do `job`, if the worker has begun to look after the node, in this process or in one that this one
    /// was forked from.
    pub(crate) fn nudge(&self, job: J) {
        if self.seat.is_taken() && self.attach() {
            self.jobs().push_back(job);
            self.seat.post();
        }
    }

    /// What the store is to call when something may have changed.
    pub(crate) fn hint(self: &Arc<Self>) -> Hint {
        let mailbox = Arc::clone(self);
        Box::new(move || {
            // Release: pairs with the Acquire in `take_hint`: what the hint is about has happened.
            mailbox.hinted.store(true, Ordering::Release);
            mailbox.seat.post();
        })
    }
}
