//! Callbacks at each change, on the publisher's thread.
//!
//! # States
//!
//! A hook has a queue of changes, and a callback that at most one thread runs.
//!
//! ```text
//!            note (under the cell's lock)
//!        ┌────────────────────────────────┐
//!        ▼                                │
//! idle, queue ──── notify ────► running, queue ──── the callback returns ────► idle, or the next change
//!        │                                │
//!        └─────────── drop ───────────────┴──► detached: no callback, no queue
//! ```
//!
//! Changes are queued under the cell's lock, so their order is that of the generations. The publisher runs the callback after
//! unlocking. If it is running already, on another thread or further up on this one, the publisher returns: the thread that
//! runs it takes the change from the queue afterwards. So a callback that sets its own cell neither recurses nor deadlocks.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};

use crate::cell::{Attempt, DogpileCell, Kind, Listener, Noted, Outcome, Snapshot};
use crate::contain::contain;
use crate::sync::{Arc, Mutex, ThreadId, current_thread};
use crate::time::{Clock, FOREVER, SystemClock};

/// A change of a cell, as [`on_change`](crate::DogpileCell::on_change) reports it.
#[non_exhaustive]
pub enum Change<T, S = Arc<T>> {
    /// A value was published: by a build, a `set`, a `restore`, or a renewal. At the time of its publication.
    Published(Snapshot<T, S>),
    /// The value was declared stale: `invalidate`, or `invalidate_if_current`.
    Invalidated,
    /// The value was taken away: `clear`, or `reset`.
    Cleared,
}

impl<T, S: Clone> Clone for Change<T, S> {
    fn clone(&self) -> Self {
        match self {
            Self::Published(snapshot) => Self::Published(snapshot.clone()),
            Self::Invalidated => Self::Invalidated,
            Self::Cleared => Self::Cleared,
        }
    }
}

impl<T, S> fmt::Debug for Change<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published(snapshot) => f.debug_tuple("Published").field(snapshot).finish(),
            Self::Invalidated => f.write_str("Invalidated"),
            Self::Cleared => f.write_str("Cleared"),
        }
    }
}

/// A callback of a cell, detached when dropped. Made by [`on_publish`](crate::DogpileCell::on_publish) and
/// [`on_change`](crate::DogpileCell::on_change).
///
/// # The callback
///
/// It runs on the thread that made the change, after the cell is unlocked, and unless it is running already, before the call that
/// made the change returns.
/// A hook gets each change once, in the order in which they were made, and never two at a time: if changes overlap, a change
/// may be reported by a thread that is still busy with an earlier one. A panic is reported by the panic hook and goes no
/// further.
///
/// It may use its own cell in every way: read it, drop it, drop its hook. If it changes the cell, that change is reported after
/// the callback has returned, by the same thread. So a callback that sets its cell at each publication runs for ever.
///
/// It delays the publisher, and a callback that waits for another publisher of the same cell may wait for itself: hand long work
/// to another thread.
///
/// # Dropping
///
/// Detaches the callback, and waits until it has returned if another thread is running it. If the hook is dropped inside its
/// own callback, that is the last call. It does not keep the cell alive; if the cell is gone, nothing is called. To keep one for
/// the lifetime of its cell, pass it to [`std::mem::forget`].
///
/// # Examples
///
/// ```
/// use dogpile::DogpileCell;
/// use std::sync::{Arc, Mutex};
/// use std::time::Duration;
///
/// let seen = Arc::new(Mutex::new(Vec::new()));
/// let cell = DogpileCell::new(Duration::from_secs(60));
/// let hook = cell.on_publish({
///     let seen = Arc::clone(&seen);
///     move |snapshot| seen.lock().unwrap().push(*snapshot.value)
/// });
/// cell.set(1);
/// cell.get_or_refresh(|| unreachable!("the value is fresh"));
/// cell.set(2);
/// drop(hook);
/// cell.set(3);
/// assert_eq!(*seen.lock().unwrap(), [1, 2]);
/// ```
#[must_use = "dropping it detaches the callback at once; keep it in a variable with a name (`let _hook`, not `let _`)"]
pub struct Hook(Box<dyn Fn() + Send + Sync>);

// What is under its lock is replaced as a whole, and a panic of the callback is contained.
impl UnwindSafe for Hook {}
impl RefUnwindSafe for Hook {}

impl Drop for Hook {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").finish_non_exhaustive()
    }
}

/// What a hook and its cell share.
struct Hooked<T> {
    /// [`None`]: detached.
    callback: Option<Arc<dyn Fn(Noted<T>) + Send + Sync>>,
    queue: VecDeque<Noted<T>>,
    /// The thread that runs the callback.
    running: Option<ThreadId>,
    /// Settled when it has returned: the hook's drop waits for it.
    returned: Option<Arc<Attempt<()>>>,
}

/// Hooks.
impl<T, C> DogpileCell<T, C> {
    /// Calls `callback` after each publication, on the thread that published, without a lock. See [`Hook`].
    ///
    /// It is not called for the value that the cell holds already. To take one action at the start too, do it after this call.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::DogpileCell;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use std::time::Duration;
    ///
    /// let latest = Arc::new(AtomicU64::new(0));
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let hook = cell.on_publish({
    ///     let latest = Arc::clone(&latest);
    ///     move |snapshot| latest.store(snapshot.generation, Ordering::Relaxed)
    /// });
    /// cell.get_or_refresh(|| "a value");
    /// assert_eq!(latest.load(Ordering::Relaxed), 1);
    /// # drop(hook);
    /// ```
    pub fn on_publish(&self, callback: impl Fn(&Snapshot<T>) + Send + Sync + 'static) -> Hook
    where
        T: Send + Sync + 'static,
        C: Clock,
    {
        hook_on_publish::<Self, _>(self, callback)
    }

    /// As [`on_publish`](DogpileCell::on_publish), also after `invalidate`, `clear` and `reset`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile::{Change, DogpileCell};
    /// use std::sync::{Arc, Mutex};
    /// use std::time::Duration;
    ///
    /// let changes = Arc::new(Mutex::new(Vec::new()));
    /// let cell = DogpileCell::new(Duration::from_secs(60));
    /// let hook = cell.on_change({
    ///     let changes = Arc::clone(&changes);
    ///     move |change| {
    ///         changes.lock().unwrap().push(match change {
    ///             Change::Published(snapshot) => format!("published {}", snapshot.value),
    ///             Change::Invalidated => "invalidated".to_owned(),
    ///             Change::Cleared => "cleared".to_owned(),
    ///             _ => "something new".to_owned(),
    ///         });
    ///     }
    /// });
    /// cell.set(1);
    /// cell.invalidate();
    /// cell.clear();
    /// assert_eq!(*changes.lock().unwrap(), ["published 1", "invalidated", "cleared"]);
    /// # drop(hook);
    /// ```
    pub fn on_change(&self, callback: impl Fn(&Change<T>) + Send + Sync + 'static) -> Hook
    where
        T: Send + Sync + 'static,
        C: Clock,
    {
        hook_on_change::<Self, _>(self, callback)
    }
}

/// See [`DogpileCell::on_publish`](crate::DogpileCell::on_publish).
pub(crate) fn hook_on_publish<K, F>(cell: &K, callback: F) -> Hook
where
    K: Kind<Stored: Send + Sync + 'static>,
    F: Fn(&Snapshot<K::Value, K::Shared>) + Send + Sync + 'static,
{
    hook_on_change(cell, move |change: &Change<_, _>| {
        if let Change::Published(snapshot) = change {
            callback(snapshot);
        }
    })
}

/// See [`DogpileCell::on_change`](crate::DogpileCell::on_change).
pub(crate) fn hook_on_change<K, F>(cell: &K, callback: F) -> Hook
where
    K: Kind<Stored: Send + Sync + 'static>,
    F: Fn(&Change<K::Value, K::Shared>) + Send + Sync + 'static,
{
    let callback = move |change| {
        callback(&match change {
            Noted::Published(seen) => Change::Published(Snapshot::new(seen, K::share)),
            Noted::Invalidated => Change::Invalidated,
            Noted::Cleared => Change::Cleared,
        });
    };
    let hooked = Arc::new(Mutex::new(Hooked {
        callback: Some(Arc::new(callback)),
        queue: VecDeque::new(),
        running: None,
        returned: None,
    }));
    cell.machine().attach(Arc::<Mutex<Hooked<K::Stored>>>::clone(&hooked));
    Hook(Box::new(move || detach(&hooked)))
}

impl<T: Send + Sync> Listener<T> for Mutex<Hooked<T>> {
    fn note(&self, change: &Noted<T>) {
        let mut state = self.lock();
        if state.callback.is_some() {
            state.queue.push_back(change.clone());
        }
    }

    fn notify(&self) {
        loop {
            let mut state = self.lock();
            if state.running.is_some() {
                return;
            }
            // Detached, it has no queue.
            let Some(change) = state.queue.pop_front() else { return };
            let Some(callback) = state.callback.clone() else {
                unreachable!("only an attached hook has a queue")
            };
            state.running = Some(current_thread().id());
            drop(state);
            contain(|| callback(change));
            // It is the last reference if the hook was dropped meanwhile.
            contain(|| drop(callback));
            let mut state = self.lock();
            state.running = None;
            let returned = state.returned.take();
            drop(state);
            if let Some(returned) = returned {
                returned.complete(Outcome::Abandoned);
            }
        }
    }

    fn is_detached(&self) -> bool {
        self.lock().callback.is_none()
    }
}

fn detach<T>(hooked: &Mutex<Hooked<T>>) {
    let mut state = hooked.lock();
    let callback = state.callback.take();
    let queue = std::mem::take(&mut state.queue);
    let runs_elsewhere = state.running.is_some_and(|thread| thread != current_thread().id());
    let returned = runs_elsewhere.then(|| Arc::clone(state.returned.get_or_insert_with(Attempt::open)));
    drop(state);
    if let Some(returned) = returned {
        returned.wait(&SystemClock, FOREVER);
    }
    // Both are the user's, and may panic.
    drop(queue);
    drop(callback);
}
