//! What becomes of the values of a cell: published, retired, drained, finalised.
//!
//! Every way to read a [`Tracked`] value holds a reference to its `Arc`: a `ReaderArc`, a `ReadGuard`, the slot. So the last
//! reader has left when `Tracked` is dropped, and choosing a value and registering as its reader are one step: the step that
//! takes the reference.
//!
//! | state | where the `T` is | moved on by |
//! |---|---|---|
//! | unpublished, number 0 | in its `Arc` | publication gives it the next number; else its last reader |
//! | current | in its `Arc`, which the slot shares | the next publication or a `clear`: it is *retired* |
//! | withheld | in its `Arc`, then in the [`RetirementQueue`], then with the writer | the end of the build: it is current again, or *retired*; a `clear`: it is *retired* |
//! | retired | in its `Arc`, which readers share | the last reader: it is *drained* |
//! | drained | in the [`RetirementQueue`] | its turn: it is *finalised*, by value, once |
//!
//! The value that is current when the cell is dropped is dropped, not finalised.
//!
//! # Locks
//!
//! The lock of [`Retirement`] may be taken under the cell's lock (it is an [`Observer`] of the cell),
//! never the other way round. No user code runs under it.

use crate::cell::Observer;
use crate::own_thread::{self, JoinHandle};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering};
use crate::trace;
use crate::wait::WaitQueue;

use super::drain::Drain;
use super::queue::{Awaited, RetirementQueue};

/// A value that reports when its last reader has left.
#[allow(unreachable_pub, missing_debug_implementations)] // named by a sealed trait
pub struct Tracked<T> {
    /// `None` only in its drop.
    value: Option<T>,
    /// Its place in the order of publication; 0 before that.
    number: AtomicU64,
    retirement: Arc<Retirement<T>>,
}

impl<T> Tracked<T> {
    pub(crate) fn new(value: T, retirement: &Arc<Retirement<T>>) -> Self {
        Self::numbered(value, 0, retirement)
    }

    /// A value that a writer had taken out, to be put back into its place.
    pub(crate) fn numbered(value: T, number: u64, retirement: &Arc<Retirement<T>>) -> Self {
        Self { value: Some(value), number: AtomicU64::new(number), retirement: Arc::clone(retirement) }
    }

    #[inline]
    pub(crate) fn value(&self) -> &T {
        match &self.value {
            Some(value) => value,
            None => unreachable!("a value is there until its last reader has left"),
        }
    }

    pub(crate) fn number(&self) -> u64 {
        // Relaxed: written once, before the value becomes visible. Whatever made the value visible orders this too.
        self.number.load(Ordering::Relaxed)
    }
}

impl<T> Drop for Tracked<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            let number = self.number();
            let retirement = Arc::clone(&self.retirement);
            retirement.drained(number, std::ptr::from_ref(self).addr(), value);
            retirement.schedule_finalizer(retirement.state.lock());
        }
    }
}

/// Retires the values of one cell. The cell and each of its values hold a reference to it.
pub(crate) struct Retirement<T> {
    pub(super) state: Mutex<State<T>>,
    pub(super) drain: Drain,
    pub(super) finalizer: Box<dyn Fn(T) + Send + Sync>,
    /// How to start the cell's own thread. Set where `T` is known to be `Send` and `'static`.
    pub(super) start: fn(Arc<Self>) -> std::io::Result<JoinHandle>,
}

pub(super) struct State<T> {
    pub(super) queue: RetirementQueue<Tracked<T>, T>,
    pub(super) waiters: WaitQueue<Awaited>,
    /// The cell's own thread, while it runs.
    pub(super) thread: Option<JoinHandle>,
    /// The cell has been dropped.
    pub(super) is_closed: bool,
    /// The cell's, for the log.
    pub(super) name: Option<&'static str>,
}

impl<T: Send + Sync + 'static> Retirement<T> {
    pub(crate) fn new(drain: Drain, finalizer: impl Fn(T) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                queue: RetirementQueue::default(),
                waiters: WaitQueue::default(),
                thread: None,
                is_closed: false,
                name: None,
            }),
            drain,
            finalizer: Box::new(finalizer),
            start: |retirement| {
                own_thread::spawn(own_thread::Role::Finalizer, "dogpile-finalizer", move || {
                    retirement.run_thread();
                })
            },
        })
    }
}

impl<T> Retirement<T> {
    /// Replaced values whose finalizer has not finished.
    pub(crate) fn retired(&self) -> usize {
        let state = self.state.lock();
        usize::try_from(state.queue.last_retired() - state.queue.finalized()).unwrap_or(usize::MAX)
    }

    /// Outstanding `ReaderArc`s.
    pub(crate) fn readers(&self) -> usize {
        self.state.lock().queue.readers()
    }
}

impl<T> Observer<Tracked<T>> for Retirement<T> {
    fn publishes(&self, value: &Arc<Tracked<T>>, _generation: u64, drains: bool) {
        let number = self.state.lock().queue.publish(value, drains);
        // Relaxed: made visible together with the value.
        value.number.store(number, Ordering::Relaxed);
    }

    fn clears(&self) {
        self.state.lock().queue.retire_current();
    }
}

/// Values that are built, and values that lose their last reference.
impl<T> Retirement<T> {
    /// A build has made `value`. Its caller becomes a reader even if the value is not published, and then the next writer
    /// waits for that reader.
    pub(crate) fn add_unpublished(&self, value: &Arc<Tracked<T>>) {
        self.state.lock().queue.add_unpublished(value);
    }

    /// The last reference to the value with this number and at this address is gone.
    fn drained(&self, number: u64, address: usize, value: T) {
        let mut state = self.state.lock();
        if state.is_closed && state.queue.current() == Some(number) {
            drop(state);
            drop(value);
            return;
        }
        let since = state.queue.drained(number, address, value);
        let name = state.name;
        drop(state);
        if let Some(since) = since {
            trace::drained(name, number, since);
        }
    }

    /// Drops a reference that is no reader's. Unlike the last reader, it leaves a drained value to the caller: no other thread
    /// is woken.
    pub(super) fn release(&self, value: Option<Arc<Tracked<T>>>) {
        let address = value.as_ref().map_or(0, |value| Arc::as_ptr(value).addr());
        if let Some(mut last) = value.and_then(Arc::into_inner)
            && let Some(value) = last.value.take()
        {
            self.drained(last.number(), address, value);
        }
    }

    /// Drops the reference to a value that has been retired, and leaves the rest to the background.
    pub(crate) fn retire(self: &Arc<Self>, value: Option<Arc<Tracked<T>>>) {
        self.release(value);
        let mut state = self.state.lock();
        if state.queue.finalized() < state.queue.last_retired() {
            // It will be needed.
            self.start_thread(&mut state);
        }
        self.schedule_finalizer(state);
    }
}
