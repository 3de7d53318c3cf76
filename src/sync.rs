//! The primitives, and the only file that names where they come from.
//!
//! Everything else in the crate imports them from here, so that a model checker can take their place in one
//! spot. `tests/it/source.rs` keeps it so. There are three sets:
//!
//! | `--cfg` | primitives | |
//! |---|---|---|
//! | none | std, `parking_lot`, `once_cell`, arc-swap | what users get |
//! | `dogpile_loom` | loom | each interleaving, and each value that a load may return by its ordering |
//! | `dogpile_shuttle` | shuttle | random interleavings |
//!
//! And `dogpile_oracle`: the first set, with arc-swap's other strategy, a lock, in place of its lock-free one. What tests
//! tell apart then is arc-swap's, not this crate's.
//!
//! The models are in `models/`; what they leave out, by their stand-ins and by what is not replaced, is told in
//! `docs/testing.md`.

// Never replaced: there are methods that take `self: &Arc<Self>`.
pub(crate) use std::sync::{Arc, Weak};

pub(crate) use std::sync::atomic::Ordering;

#[cfg(any(dogpile_loom, dogpile_shuttle))]
pub(crate) use checked::*;
#[cfg(not(any(dogpile_loom, dogpile_shuttle)))]
pub(crate) use real::*;

// Never replaced: for statistics and hints, and for what belongs to the process, not to a cell.
pub(crate) use once_cell::sync::OnceCell as PlainOnceCell;
pub(crate) use std::sync::atomic::{AtomicBool as PlainBool, AtomicU64 as PlainU64};

#[cfg(not(any(dogpile_loom, dogpile_shuttle)))]
mod real {
    use super::Arc;

    pub(crate) use once_cell::sync::OnceCell;
    pub(crate) use parking_lot::{Mutex, MutexGuard};
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    pub(crate) use std::thread::{
        Builder as ThreadBuilder, JoinHandle, Thread, ThreadId, current as current_thread, panicking, park,
        park_timeout, yield_now,
    };
    pub(crate) use std::thread_local;

    #[cfg(not(dogpile_oracle))]
    type Strategy = arc_swap::DefaultStrategy;
    #[cfg(dogpile_oracle)]
    type Strategy = std::sync::RwLock<()>;

    type Swap<T> = arc_swap::ArcSwapAny<Option<Arc<T>>, Strategy>;

    /// A borrow of what the slot held when it was loaded. Usually costs no reference count; see [`ArcSlot::load`].
    pub(crate) type SlotGuard<T> = arc_swap::Guard<Option<Arc<T>>, Strategy>;

    /// An atomically replaceable `Option<Arc<T>>`.
    ///
    /// All operations are sequentially consistent (arc-swap's promise since 1.9.0), so a load also acquires
    /// whatever the thread that stored the pointer had written before.
    #[cfg(not(dogpile_oracle))]
    pub(crate) struct ArcSlot<T>(Swap<T>);
    /// Made by its first use: with a lock it cannot be made at compile time.
    #[cfg(dogpile_oracle)]
    pub(crate) struct ArcSlot<T>(OnceCell<Swap<T>>);

    #[cfg(not(dogpile_oracle))]
    impl<T> ArcSlot<T> {
        pub(crate) const fn empty() -> Self {
            Self(Swap::const_empty())
        }

        #[inline]
        fn swap_cell(&self) -> &Swap<T> {
            &self.0
        }

        pub(crate) fn into_inner(self) -> Option<Arc<T>> {
            self.0.into_inner()
        }
    }

    #[cfg(dogpile_oracle)]
    impl<T> ArcSlot<T> {
        pub(crate) const fn empty() -> Self {
            Self(OnceCell::new())
        }

        fn swap_cell(&self) -> &Swap<T> {
            self.0.get_or_init(|| Swap::with_strategy(None, Strategy::default()))
        }

        pub(crate) fn into_inner(self) -> Option<Arc<T>> {
            self.0.into_inner().and_then(Swap::into_inner)
        }
    }

    impl<T> ArcSlot<T> {
        /// A borrow that costs no reference count, as long as this thread holds fewer than eight of them.
        #[inline]
        pub(crate) fn load(&self) -> SlotGuard<T> {
            self.swap_cell().load()
        }

        /// An owned reference.
        #[inline]
        pub(crate) fn load_full(&self) -> Option<Arc<T>> {
            self.swap_cell().load_full()
        }

        pub(crate) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
            self.swap_cell().swap(value)
        }
    }

    /// Between two tries to get a lock that is held for a few instructions.
    pub(crate) fn spin_a_moment() {
        std::hint::spin_loop();
    }

    /// A guard over a value that did not come out of the slot.
    pub(crate) fn guard_of<T>(value: Arc<T>) -> SlotGuard<T> {
        SlotGuard::from_inner(Some(value))
    }

    /// The value behind a guard, as an owned reference.
    #[inline]
    pub(crate) fn into_arc<T>(guard: SlotGuard<T>) -> Option<Arc<T>> {
        SlotGuard::into_inner(guard)
    }
}

/// A `const fn`, or a plain one under a model checker, whose primitives cannot be made at compile time.
macro_rules! const_fn {
    ($(#[$attribute:meta])* $visibility:vis const fn $($rest:tt)*) => {
        #[cfg(not(any(dogpile_loom, dogpile_shuttle)))]
        $(#[$attribute])* $visibility const fn $($rest)*
        #[cfg(any(dogpile_loom, dogpile_shuttle))]
        $(#[$attribute])* $visibility fn $($rest)*
    };
}
pub(crate) use const_fn;

/// What a model checker checks with.
#[cfg(any(dogpile_loom, dogpile_shuttle))]
mod checked {
    use std::cell::Cell;
    use std::ops::Deref;

    #[cfg(dogpile_loom)]
    use loom as checker;
    #[cfg(dogpile_shuttle)]
    use shuttle as checker;

    use super::{Arc, Ordering, PlainOnceCell, Weak};

    pub(crate) use checked_thread_local as thread_local;
    pub(crate) use checker::sync::MutexGuard;
    pub(crate) use checker::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    pub(crate) use checker::thread::{yield_now, yield_now as spin_a_moment};
    pub(crate) use threads::*;

    /// As std's, with the checker's.
    macro_rules! checked_thread_local {
        ($($(#[$attribute:meta])* static $name:ident: $type:ty = const $value:block;)*) => {
            $crate::sync::checker_thread_local! { $($(#[$attribute])* static $name: $type = $value;)* }
        };
    }
    pub(crate) use checked_thread_local;
    pub(crate) use checker::thread_local as checker_thread_local;

    /// As `parking_lot`'s.
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

    /// As `once_cell`'s, for cells that only one caller sets.
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

    /// Stands for arc-swap: an `Option<Arc<T>>` under a lock that nobody waits for, as the checker runs one thread at a
    /// time and knows of no switch under it.
    ///
    /// It switches at each access, and promises less than arc-swap, whose operations are sequentially consistent: a load finds
    /// what a load with Acquire might find. That is a former value too, as long as somebody still has it and nothing that
    /// the thread has seen before tells of a later one.
    pub(crate) struct ArcSlot<T> {
        /// Loom explores the order of two accesses of a thread and one of another for certain only if all three write.
        accesses: AtomicUsize,
        /// How often the value was swapped.
        turn: AtomicUsize,
        values: parking_lot::Mutex<Values<T>>,
    }

    struct Values<T> {
        current: Option<Arc<T>>,
        /// By turn.
        former: Vec<Option<Weak<T>>>,
    }

    impl<T> Values<T> {
        /// What was there at this turn, if it still exists.
        #[allow(clippy::option_option)] // whether it exists, and whether it was a value
        fn at(&self, turn: usize) -> Option<Option<Arc<T>>> {
            match self.former.get(turn) {
                Some(Some(value)) => value.upgrade().map(Some),
                Some(None) => Some(None),
                None => Some(self.current.clone()),
            }
        }
    }

    /// Holds a reference, which arc-swap's does only when it has to.
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
                // It is gone: so the latest one, which only read-modify-write is sure to see.
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

    /// Threads of a model are coroutines of one thread, where a panic of one would look like a panic of all.
    pub(crate) fn panicking() -> bool {
        AS_IF_PANICKING.try_with(Cell::get).unwrap_or(false)
    }

    pub(crate) fn set_panicking(panicking: bool) {
        AS_IF_PANICKING.with(|flag| flag.set(panicking));
    }

    #[cfg(dogpile_shuttle)]
    mod threads {
        pub(crate) use shuttle::thread::{
            Builder as ThreadBuilder, JoinHandle, Thread, ThreadId, current as current_thread, park,
            park_timeout,
        };
    }

    /// Loom's own `park` loses its token if the thread goes through a lock before. So a token of our own, which also wakes
    /// a thread for nothing, once.
    #[cfg(dogpile_loom)]
    mod threads {
        use std::cell::OnceCell;
        use std::io;
        use std::time::Duration;

        use loom::sync::Notify;
        pub(crate) use loom::thread::ThreadId;

        use super::Arc;

        loom::thread_local! {
            static TOKEN: OnceCell<Arc<Notify>> = OnceCell::new();
        }

        fn token() -> Arc<Notify> {
            TOKEN.with(|token| Arc::clone(token.get_or_init(Arc::default)))
        }

        #[derive(Clone)]
        pub(crate) struct Thread {
            id: ThreadId,
            token: Arc<Notify>,
        }

        impl Thread {
            pub(crate) fn id(&self) -> ThreadId {
                self.id
            }

            pub(crate) fn unpark(&self) {
                self.token.notify();
            }
        }

        pub(crate) fn current_thread() -> Thread {
            Thread { id: loom::thread::current().id(), token: token() }
        }

        pub(crate) fn park() {
            token().wait();
        }

        /// Models have a clock of their own.
        pub(crate) fn park_timeout(_: Duration) {
            unreachable!("a model that waits for the system's clock")
        }

        pub(crate) struct ThreadBuilder(loom::thread::Builder);

        impl ThreadBuilder {
            pub(crate) fn new() -> Self {
                Self(loom::thread::Builder::new())
            }

            pub(crate) fn name(self, name: String) -> Self {
                Self(self.0.name(name))
            }

            pub(crate) fn spawn(self, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
                let token = Arc::new(Notify::new());
                let own = Arc::clone(&token);
                let handle = self.0.spawn(move || {
                    TOKEN.with(|token| token.set(own).expect("before the thread has asked for it"));
                    work();
                })?;
                let thread = Thread { id: handle.thread().id(), token };
                Ok(JoinHandle { handle, thread })
            }
        }

        pub(crate) struct JoinHandle<R> {
            handle: loom::thread::JoinHandle<R>,
            thread: Thread,
        }

        impl<R> JoinHandle<R> {
            pub(crate) fn thread(&self) -> &Thread {
                &self.thread
            }

            pub(crate) fn join(self) -> std::thread::Result<R> {
                self.handle.join()
            }
        }
    }
}
