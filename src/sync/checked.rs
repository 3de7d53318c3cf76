//! Primitives of both model checkers: what they offer themselves, and stand-ins for what they do not.

use std::cell::Cell;
use std::ops::Deref;

#[cfg(dogpile_loom)]
use ::loom as checker;
#[cfg(dogpile_shuttle)]
use ::shuttle as checker;

use super::{Arc, Ordering, PlainOnceCell, Weak};

pub(crate) use checked_thread_local as thread_local;
pub(crate) use checker::sync::MutexGuard;
pub(crate) use checker::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub(crate) use checker::thread::{yield_now, yield_now as spin_a_moment};

/// std's `thread_local`, with the checker's thread-locals.
macro_rules! checked_thread_local {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = const $value:block;)*) => {
        $crate::sync::checker_thread_local! { $($(#[$attribute])* static $name: $type = $value;)* }
    };
}
pub(crate) use checked_thread_local;
pub(crate) use checker::thread_local as checker_thread_local;

/// The interface of `parking_lot`'s.
#[derive(Default)]
pub(crate) struct Mutex<T>(checker::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(checker::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("no panic under a lock")
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

/// The interface of `once_cell`'s, for cells that only one caller sets.
pub(crate) struct OnceCell<T> {
    is_set: AtomicBool,
    value: PlainOnceCell<T>,
}

impl<T> OnceCell<T> {
    pub(crate) fn new() -> Self {
        Self { is_set: AtomicBool::new(false), value: PlainOnceCell::new() }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        // Acquire: pairs with the Release in `set`.
        if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        // Release: pairs with the Acquire in `get`.
        self.is_set.store(true, Ordering::Release);
        Ok(())
    }
}

/// Stands for arc-swap: an `Option<Arc<T>>` under a lock. No thread ever waits for that lock, since the checker runs one thread
/// at a time and does not switch while it is held.
///
/// Each access is a point where the checker may switch. It promises less than arc-swap, whose operations are sequentially
/// consistent: a load may return whatever a load with Acquire may return. That includes a former value, if it still exists and
/// the thread has not seen anything that is later than its replacement.
pub(crate) struct ArcSlot<T> {
    /// Loom is certain to explore the order of two accesses by one thread and one by another only if all three write.
    accesses: AtomicUsize,
    /// How often the value has been swapped.
    turn: AtomicUsize,
    values: parking_lot::Mutex<Values<T>>,
}

struct Values<T> {
    current: Option<Arc<T>>,
    /// By turn.
    former: Vec<Option<Weak<T>>>,
}

impl<T> Values<T> {
    /// What the slot held at this turn, if it still exists.
    #[allow(clippy::option_option)] // whether it exists, and whether it was a value
    fn at(&self, turn: usize) -> Option<Option<Arc<T>>> {
        match self.former.get(turn) {
            Some(Some(value)) => value.upgrade().map(Some),
            Some(None) => Some(None),
            None => Some(self.current.clone()),
        }
    }
}

/// Always holds a reference. That of arc-swap does so only if it has to.
pub(crate) struct SlotGuard<T>(Option<Arc<T>>);

impl<T> Deref for SlotGuard<T> {
    type Target = Option<Arc<T>>;

    fn deref(&self) -> &Option<Arc<T>> {
        &self.0
    }
}

impl<T> ArcSlot<T> {
    pub(crate) fn empty() -> Self {
        let values = Values { current: None, former: Vec::new() };
        Self {
            accesses: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            values: parking_lot::Mutex::new(values),
        }
    }

    pub(crate) fn load(&self) -> SlotGuard<T> {
        SlotGuard(self.load_full())
    }

    pub(crate) fn load_full(&self) -> Option<Arc<T>> {
        // Relaxed: orders nothing.
        self.accesses.fetch_add(1, Ordering::Relaxed);
        // Acquire: pairs with the Release in `swap`.
        let turn = self.turn.load(Ordering::Acquire);
        let found = self.values.lock().at(turn);
        found.unwrap_or_else(|| {
            // It is gone: load the latest one. Only a read-modify-write is sure to see it.
            self.turn.fetch_add(0, Ordering::Acquire);
            self.values.lock().current.clone()
        })
    }

    pub(crate) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
        // Relaxed: orders nothing.
        self.accesses.fetch_add(1, Ordering::Relaxed);
        // Release: pairs with the Acquire in `load_full`.
        self.turn.fetch_add(1, Ordering::AcqRel);
        let mut values = self.values.lock();
        let former = std::mem::replace(&mut values.current, value);
        values.former.push(former.as_ref().map(Arc::downgrade));
        former
    }

    pub(crate) fn into_inner(self) -> Option<Arc<T>> {
        self.values.into_inner().current
    }
}

pub(crate) fn guard_of<T>(value: Arc<T>) -> SlotGuard<T> {
    SlotGuard(Some(value))
}

pub(crate) fn into_arc<T>(guard: SlotGuard<T>) -> Option<Arc<T>> {
    guard.0
}

checked_thread_local! {
    static AS_IF_PANICKING: Cell<bool> = const { Cell::new(false) };
}

/// The threads of a model are coroutines of one thread: a panic of one of them would look like a panic of all.
pub(crate) fn panicking() -> bool {
    AS_IF_PANICKING.try_with(Cell::get).unwrap_or(false)
}

pub(crate) fn set_panicking(panicking: bool) {
    AS_IF_PANICKING.with(|flag| flag.set(panicking));
}
