//! The threads that look after all nodes of the process: `dogpile-fleet`.
//!
//! A node is an [`Actor`]: it does what is due in one *step*, and then sleeps until the tick that the step returned or until it is
//! posted. Operations of stores block, so steps run on a few threads, and each step on one of them:
//!
//! ```text
//!            due, posted               a thread is free
//! sleeping --------------> ready ------------------------> running --> over: it is gone
//!    ^                       ^                                |
//!    |                       +--- posted meanwhile -----------+
//!    +--------------------------------------------------------+
//! ```
//!
//! # Threads
//!
//! All threads are equal. At most one of those with nothing to do is the *leader*: it sleeps by the clock until the next actor is due.
//! The others sleep until they are called. Before a thread runs a step, it sees to it that another one leads during the
//! step, unless there is only one actor. All threads end with the last actor.
//!
//! # Bounds
//!
//! At most [`THREADS`] steps run at a time, and at most one less for the same store. So a store that hangs never holds up the nodes of
//! other stores. If several stores hang at the same time, the nodes of the others wait until one of the steps is over, and come first
//! then. A job in a step takes a few of its store's timeouts at most.
//!
//! # Clocks
//!
//! A thread can sleep by one clock only. All clocks of a type without data (`SystemClock`, `TickClock`, `HostClock`) are the same
//! one, so their actors share threads: up to four for each type. A clock with data (`ManualClock`) may be another one each time:
//! an actor with such a clock has a thread of its own.
//!
//! # Forks
//!
//! A process that was forked has none of these threads. It does not touch the schedulers of its parent, which may be locked, and makes its
//! own: see [`Seat`].
//!
//! No actor, clock or store is called while the lock is held.

mod seat;
mod wake;

use std::any::{Any, TypeId};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dogpile::{Clock, Tick};

pub(crate) use seat::Seat;
pub(crate) use wake::Wake;

/// The most threads that nodes share.
const THREADS: usize = 4;

/// Until a clock that has panicked is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// What a thread does step by step.
pub(crate) trait Actor: Send + Sync {
    /// Does what is due. Runs on one thread at a time, and again if the actor was posted meanwhile.
    fn step(&self) -> Next;

    /// What its steps may hang on: actors with the same number never take all threads.
    fn store(&self) -> usize;

    /// It was attached in the parent of this process, and what its steps held there is held by nobody here.
    fn has_forked(&self) {}
}

/// When the next step is due, unless the actor is posted before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    At(Option<Tick>),
    /// There will be none.
    Over,
}

/// Runs code of the user's, whose panic, which the panic hook has reported, ends here.
pub(crate) fn contained<R>(code: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(result) => Some(result),
        Err(payload) => {
            // Its drop may panic in turn.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(payload);
            }
            None
        }
    }
}

pub(crate) struct Scheduler<C> {
    clock: C,
    /// The most threads.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tasks: HashMap<u64, Task>,
    /// The number of the latest one.
    last: u64,
    sleeping: BTreeSet<(Tick, u64)>,
    /// What the actors that run or are ready may hang on.
    stores: HashMap<usize, Queue>,
    /// How often an actor has become ready.
    turns: u64,
    threads: usize,
    /// Threads with nothing to do, without the leader.
    idle: Vec<Arc<Wake>>,
    /// And until when it sleeps.
    leader: Option<(Arc<Wake>, Option<Tick>)>,
}

/// The actors of one store.
#[derive(Default)]
struct Queue {
    /// How many run.
    running: usize,
    /// Those that are ready, each with its turn.
    ready: VecDeque<(u64, u64)>,
}

struct Task {
    actor: Arc<dyn Actor>,
    store: usize,
    phase: Phase,
}

#[derive(Clone, Copy)]
enum Phase {
    Sleeping(Option<Tick>),
    Ready,
    Running { posted: bool },
}

/// What a thread does next.
enum Turn {
    Step(u64, Arc<dyn Actor>),
    Sleep(Option<Tick>),
    End,
}

/// The schedulers of clocks without data, by their type, and the process that they belong to.
struct Shared {
    process: u32,
    schedulers: Option<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { process: 0, schedulers: None });

impl<C: Clock + Clone + 'static> Scheduler<C> {
    /// The one for actors with this clock, in this process.
    fn of(clock: &C) -> Arc<Self> {
        if size_of::<C>() != 0 {
            return Self::new(clock.clone(), 1);
        }
        let new: Arc<dyn Any + Send + Sync> = Self::new(clock.clone(), THREADS);
        let process = std::process::id();
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.process != process {
            // Not dropped: they are the parent's.
            std::mem::forget(shared.schedulers.take());
            shared.process = process;
        }
        let schedulers = shared.schedulers.get_or_insert_default();
        let scheduler = Arc::clone(schedulers.entry(TypeId::of::<Self>()).or_insert(new));
        drop(shared);
        scheduler.downcast().unwrap_or_else(|_| unreachable!("it is found by its type"))
    }
}

impl<C: Clock + 'static> Scheduler<C> {
    fn new(clock: C, limit: usize) -> Arc<Self> {
        Arc::new(Self { clock, limit, state: Mutex::default() })
    }

    /// Has the threads run an actor, at once for the first time. `None` if no thread can be had.
    ///
    /// `store`: what [`Actor::store`] returns, which asks the user's store, and so is called before any lock is held.
    fn attach(self: &Arc<Self>, actor: Arc<dyn Actor>, store: usize) -> Option<u64> {
        let mut state = self.lock();
        let is_first = state.threads == 0;
        if is_first && !self.start(&mut state) {
            return None;
        }
        state.last += 1;
        let number = state.last;
        state.tasks.insert(number, Task { actor, store, phase: Phase::Ready });
        state.is_ready(number);
        if !is_first {
            self.call(&mut state);
        }
        Some(number)
    }

    /// Whether an actor is still there.
    fn has(&self, number: u64) -> bool {
        self.lock().tasks.contains_key(&number)
    }

    /// Has an actor take a step. Returns whether it is still there.
    fn post(self: &Arc<Self>, number: u64) -> bool {
        let mut state = self.lock();
        let Some(task) = state.tasks.get_mut(&number) else { return false };
        match &mut task.phase {
            Phase::Sleeping(until) => {
                if let Some(until) = *until {
                    state.sleeping.remove(&(until, number));
                }
                state.is_ready(number);
                self.call(&mut state);
            }
            Phase::Ready => {}
            Phase::Running { posted } => *posted = true,
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a thread look for something to do.
    fn call(self: &Arc<Self>, state: &mut State) {
        match state.idle.pop().or_else(|| state.leader.take().map(|(wake, _)| wake)) {
            Some(wake) => wake.notify(),
            // If it cannot be started the others will get to it.
            None => drop(state.threads < self.limit && self.start(state)),
        }
    }

    fn start(self: &Arc<Self>, state: &mut State) -> bool {
        let scheduler = Arc::clone(self);
        let thread = std::thread::Builder::new().name("dogpile-fleet".to_owned());
        let started = thread.spawn(move || scheduler.run()).is_ok();
        state.threads += usize::from(started);
        started
    }

    fn run(self: Arc<Self>) {
        let wake = Arc::new(Wake::default());
        wake.wakes_this_thread();
        loop {
            let Some(now) = contained(|| self.clock.now()) else {
                std::thread::park_timeout(AGAIN);
                continue;
            };
            match self.turn(now, &wake) {
                Turn::Step(number, actor) => {
                    let next = contained(|| actor.step()).unwrap_or(Next::At(None));
                    let gone = self.finish(number, next);
                    // The last owner, perhaps, of values of the user's.
                    contained(move || drop((gone, actor)));
                }
                Turn::Sleep(until) => {
                    if contained(|| wake.sleep(&self.clock, until)).is_none() {
                        std::thread::park_timeout(AGAIN);
                    }
                }
                Turn::End => return,
            }
        }
    }

    /// What the thread does next that is woken by `wake`.
    fn turn(self: &Arc<Self>, now: Tick, wake: &Arc<Wake>) -> Turn {
        let mut state = self.lock();
        // It has woken by itself, or was called.
        state.leader.take_if(|(leader, _)| Arc::ptr_eq(leader, wake));
        state.idle.retain(|idle| !Arc::ptr_eq(idle, wake));
        while let Some((tick, number)) = state.sleeping.first().copied().filter(|(tick, _)| *tick <= now) {
            state.sleeping.remove(&(tick, number));
            state.is_ready(number);
        }
        if let Some((number, actor)) = state.take_ready((self.limit - 1).max(1)) {
            let has_ready = state.stores.values().any(|queue| !queue.ready.is_empty());
            if state.tasks.len() > 1 && (state.leader.is_none() || has_ready) {
                self.call(&mut state);
            }
            return Turn::Step(number, actor);
        }
        if state.tasks.is_empty() {
            state.threads -= 1;
            let leader = state.leader.take().map(|(wake, _)| wake);
            state.idle.drain(..).chain(leader).for_each(|other| other.notify());
            return Turn::End;
        }
        if state.leader.is_some() {
            state.idle.push(Arc::clone(wake));
            return Turn::Sleep(None);
        }
        let until = state.sleeping.first().map(|(tick, _)| *tick);
        state.leader = Some((Arc::clone(wake), until));
        Turn::Sleep(until)
    }

    /// A step is over. Returns the actor if there is no next one.
    fn finish(&self, number: u64, next: Next) -> Option<Task> {
        let mut state = self.lock();
        let Some(task) = state.tasks.get_mut(&number) else { unreachable!("only its step removes an actor") };
        let posted = matches!(task.phase, Phase::Running { posted: true });
        let store = task.store;
        match next {
            Next::Over if !posted => {
                state.has_ended(store);
                return state.tasks.remove(&number);
            }
            Next::At(until) if !posted => {
                task.phase = Phase::Sleeping(until);
                state.sleeping.extend(until.map(|until| (until, number)));
            }
            _ => state.is_ready(number),
        }
        state.has_ended(store);
        // This thread looks for what is due first, and leads from now on if that is earlier than the leader knows.
        let first = state.sleeping.first().map(|(tick, _)| *tick);
        let is_late =
            |until: Option<Tick>| first.is_some_and(|first| until.is_none_or(|until| first < until));
        if let Some((wake, _)) = state.leader.take_if(|(_, until)| is_late(*until)) {
            wake.notify();
        }
        None
    }
}

impl State {
    fn is_ready(&mut self, number: u64) {
        if let Some(task) = self.tasks.get_mut(&number) {
            task.phase = Phase::Ready;
            self.turns += 1;
            self.stores.entry(task.store).or_default().ready.push_back((self.turns, number));
        }
    }

    fn has_ended(&mut self, store: usize) {
        let queue = self.stores.entry(store).or_default();
        queue.running -= 1;
        if queue.running == 0 && queue.ready.is_empty() {
            self.stores.remove(&store);
        }
    }

    /// The actor that runs next: of those whose stores have the fewest threads, and fewer than `limit`, the one that has been ready for
    /// longest.
    fn take_ready(&mut self, limit: usize) -> Option<(u64, Arc<dyn Actor>)> {
        let queues =
            self.stores.values_mut().filter(|queue| queue.running < limit && !queue.ready.is_empty());
        let queue = queues.min_by_key(|queue| (queue.running, queue.ready.front().copied()))?;
        let (_, number) = queue.ready.pop_front()?;
        queue.running += 1;
        let task = self.tasks.get_mut(&number)?;
        task.phase = Phase::Running { posted: false };
        Some((number, Arc::clone(&task.actor)))
    }
}

#[cfg(test)]
mod tests;
