//! What becomes of a replaced value: retired, drained, finalised.
//!
//! # States of a value
//!
//! A value is [`Tracked`]: it lives in an `Arc`, and every way to read it (a `ReaderArc`, a `ReadGuard`, the slot)
//! holds a reference to that `Arc`. So "the last reader has left" is `Drop for Tracked`, whichever thread that
//! happens on, and choosing a value and registering as its reader are one step: the step that takes the reference.
//!
//! | state | where the `T` is | who moves it on |
//! |---|---|---|
//! | unpublished, number 0 | in its `Arc` | publication gives it the next number |
//! | current | in its `Arc`, which the slot shares | replacement: it is *retired* |
//! | retired | in its `Arc`, which readers share | the last reader: it is *drained* |
//! | drained | in [`RoomState::drained`] | its turn: it is *finalised*, by value, once |
//!
//! Numbers are given in the order of publication, which is the order of replacement; the finalizer takes them in
//! turn (G11). A value that was fenced off and never published is finalised when its last reader has left, out of
//! turn. The value that is current when the cell is dropped is dropped, not finalised.
//!
//! # Who runs the finalizer
//!
//! Never two at a time: [`RoomState::finalizing`]. Whoever finds the next value drained and nobody finalising does
//! it, and goes on until there is none. That is, in this order: the caller that replaced the value (if nobody reads
//! it any more, or if it waits for the readers); the cell's own thread. A reader that leaves never runs it, except
//! where that thread cannot be started.
//!
//! # Wake-ups
//!
//! The last reader of the value whose turn it is wakes one: a caller that waits for it, or else the thread. The
//! last reader of any other value wakes nobody. The end of a finalizer wakes those who wait for just that.
//!
//! # Locks
//!
//! The room's lock may be taken under the cell's lock (by [`Room::published`] and [`Room::cleared`]), never the other
//! way round. No user code runs under it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::held;
use crate::clock::{Clock, FOREVER, nanos};
use crate::seats::{Seats, wait_until};
use crate::sync::{
    Arc, AtomicU64, JoinHandle, Mutex, Ordering, Thread, ThreadBuilder, ThreadId, Weak, current_thread, park,
};

/// What the caller that replaces a value does while the value is still being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    /// It does not wait. If there is no reader left, it runs the finalizer at once; else the cell's own thread
    /// does, when the last one has left.
    #[default]
    Background,
    /// It waits for the readers of the replaced value, at most for so long, and runs the finalizer itself. What is
    /// left then goes to the background. [`Duration::MAX`] waits without end, as the ancestor did.
    ///
    /// Readers of the new value do not wait. The lease stays taken meanwhile, so at most two generations are alive.
    ///
    /// # Deadlocks
    ///
    /// A thread that holds a `ReaderArc` of the old value and is elected waits for itself, until the time is over.
    /// (With a `ReadGuard` it does not: such a value goes to the background at once.)
    Wait(Duration),
}

/// The readers have not left within the time allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTimeout {
    /// How many `ReaderArc`s of values that are to go there still are; leaked ones are among them.
    pub readers: usize,
}

impl fmt::Display for DrainTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} readers have not left within the time allowed", self.readers)
    }
}

impl Error for DrainTimeout {}

/// A value that knows where to go when its last reader has left.
pub(crate) struct Tracked<T> {
    /// `None` only once it has gone.
    value: Option<T>,
    /// Its place in the order of publication; 0 before that.
    number: AtomicU64,
    room: Arc<Room<T>>,
}

impl<T> Tracked<T> {
    pub(crate) fn new(value: T, room: &Arc<Room<T>>) -> Self {
        Self { value: Some(value), number: AtomicU64::new(0), room: Arc::clone(room) }
    }

    /// A value that was withheld, to be put back into its place.
    pub(crate) fn numbered(value: T, number: u64, room: &Arc<Room<T>>) -> Self {
        Self { value: Some(value), number: AtomicU64::new(number), room: Arc::clone(room) }
    }

    #[inline]
    pub(crate) fn value(&self) -> &T {
        match &self.value {
            Some(value) => value,
            None => unreachable!("a value is there until its last reader has left"),
        }
    }

    pub(crate) fn number(&self) -> u64 {
        // Relaxed: written once, before the value becomes visible; whoever can reach the value sees it.
        self.number.load(Ordering::Relaxed)
    }

    /// The value and its number, for the one who holds the last reference.
    fn into_parts(mut self) -> Option<(u64, T)> {
        let number = self.number();
        self.value.take().map(|value| (number, value))
    }
}

impl<T> Drop for Tracked<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            let number = self.number();
            let room = Arc::clone(&self.room);
            room.drained(number, value);
        }
    }
}

/// Where replaced values wait for their readers to leave, and are finalised.
pub(crate) struct Room<T> {
    state: Mutex<RoomState<T>>,
    finalizer: Box<dyn Fn(T) + Send + Sync>,
    /// How to start the cell's own thread: set where `T` is known to be fit for it.
    start: fn(Arc<Self>) -> std::io::Result<JoinHandle<()>>,
}

struct RoomState<T> {
    /// Numbers given so far.
    published: u64,
    /// All numbers up to this one have been finalised.
    finalized: u64,
    current: Option<Current<T>>,
    /// Retired values that are still being read, or may be.
    retired: BTreeMap<u64, Weak<Tracked<T>>>,
    /// Values whose last reader has left, and whose turn has not come.
    drained: BTreeMap<u64, T>,
    /// Values that were never published, and whose last reader has left.
    strays: Vec<T>,
    /// The number whose readers a writer waits for; the value goes to it.
    claim: Option<Claim<T>>,
    finalizing: Option<ThreadId>,
    thread: Background,
    /// The cell is gone.
    closed: bool,
    waiters: Seats<Until>,
}

struct Current<T> {
    number: u64,
    value: Weak<Tracked<T>>,
    /// Whether the slot holds a reference; not while a writer withholds it.
    in_slot: bool,
}

/// What a writer gets that has waited in vain.
pub(crate) struct StillRead<T> {
    pub(crate) value: Option<Arc<Tracked<T>>>,
    pub(crate) timeout: DrainTimeout,
}

/// A writer's claim to the value that it withholds.
struct Claim<T> {
    number: u64,
    value: Option<T>,
    writer: Thread,
}

/// The cell's own thread.
enum Background {
    NotStarted,
    Running(Thread, Option<JoinHandle<()>>),
    /// It could not be started: last readers run the finalizer.
    Impossible,
}

/// What a waiter waits for.
#[derive(Clone, Copy)]
struct Until {
    finalized: u64,
    /// It runs the finalizer itself where it can.
    helps: bool,
}

impl<T> RoomState<T> {
    /// The number that is to be finalised next.
    fn turn(&self) -> u64 {
        self.finalized + 1
    }

    /// Whether there is something to finalise, and nobody who does.
    fn is_ready(&self) -> bool {
        self.finalizing.is_none() && (self.drained.contains_key(&self.turn()) || !self.strays.is_empty())
    }

    /// The last number that is or will be finalised, as things stand.
    fn last_retired(&self) -> u64 {
        self.current.as_ref().map_or(self.published, |current| current.number - 1)
    }

    /// Whether something is still to be finalised.
    fn is_busy(&self) -> bool {
        self.finalized < self.last_retired() || !self.strays.is_empty() || self.finalizing.is_some()
    }

    fn readers_of_retired(&self) -> usize {
        self.retired.values().map(Weak::strong_count).sum()
    }

    /// Whom to wake because something has become ready.
    fn one_to_finalize(&self) -> Option<Thread> {
        if !self.is_ready() {
            return None;
        }
        match (self.waiters.those(|until| until.helps).next(), &self.thread) {
            (Some(helper), _) => Some(helper),
            (None, Background::Running(thread, _)) => Some(thread.clone()),
            (None, Background::NotStarted | Background::Impossible) => None,
        }
    }
}

impl<T: Send + Sync + 'static> Room<T> {
    pub(crate) fn new(finalizer: impl Fn(T) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(RoomState {
                published: 0,
                finalized: 0,
                current: None,
                retired: BTreeMap::new(),
                drained: BTreeMap::new(),
                strays: Vec::new(),
                claim: None,
                finalizing: None,
                thread: Background::NotStarted,
                closed: false,
                waiters: Seats::default(),
            }),
            finalizer: Box::new(finalizer),
            start: |room| {
                ThreadBuilder::new().name("dogpile-finalizer".into()).spawn(move || room.run_thread())
            },
        })
    }
}

/// Called by the cell's machine, under its lock.
impl<T> Room<T> {
    /// `new` becomes visible and replaces `old`.
    pub(crate) fn published(&self, new: &Arc<Tracked<T>>, old: Option<&Arc<Tracked<T>>>) {
        let mut state = self.state.lock();
        state.published += 1;
        let number = state.published;
        // Relaxed: made visible together with the value.
        new.number.store(number, Ordering::Relaxed);
        Self::retire(&mut state, old);
        state.current = Some(Current { number, value: Arc::downgrade(new), in_slot: true });
    }

    /// `old` is taken away.
    pub(crate) fn cleared(&self, old: Option<&Arc<Tracked<T>>>) {
        let mut state = self.state.lock();
        Self::retire(&mut state, old);
        state.current = None;
    }

    fn retire(state: &mut RoomState<T>, old: Option<&Arc<Tracked<T>>>) {
        if let Some(old) = old {
            state.retired.insert(old.number(), Arc::downgrade(old));
        }
    }
}

/// Values that leave.
impl<T> Room<T> {
    /// The last reader of the value with this number has left.
    fn drained(self: &Arc<Self>, number: u64, value: T) {
        let mut state = self.state.lock();
        if let Some(claim) = state.claim.as_mut().filter(|claim| claim.number == number) {
            claim.value = Some(value);
            let writer = claim.writer.clone();
            drop(state);
            writer.unpark();
            return;
        }
        let is_current = state.current.as_ref().is_some_and(|current| current.number == number);
        if state.closed && is_current {
            state.current = None;
            // Nothing comes after it, and it is not finalised.
            state.published = number - 1;
            drop(state);
            drop(value);
            return;
        }
        Self::put_in_line(&mut state, number, value);
        if state.is_ready() && state.waiters.those(|until| until.helps).next().is_none() {
            self.start_thread(&mut state);
        }
        let wake = state.one_to_finalize();
        let here = matches!(state.thread, Background::Impossible) && wake.is_none();
        drop(state);
        match wake {
            Some(thread) => thread.unpark(),
            None if here => self.finalize_what_is_ready(),
            None => {}
        }
    }

    /// What the caller that has replaced `value` does with it.
    pub(crate) fn let_go<C: Clock>(
        self: &Arc<Self>,
        value: Option<Arc<Tracked<T>>>,
        drain: Drain,
        clock: &C,
    ) {
        match drain {
            Drain::Background => self.release(value),
            Drain::Wait(wait) => self.release_and_wait(value, clock, wait),
        }
    }

    /// [`Drain::Background`].
    pub(crate) fn release(self: &Arc<Self>, value: Option<Arc<Tracked<T>>>) {
        self.leave(value);
        self.finalize_what_is_ready();
        let mut state = self.state.lock();
        if state.finalized < state.last_retired() {
            self.start_thread(&mut state);
            // It looks before it parks; but it may have run already and be parked.
            let wake = state.one_to_finalize();
            drop(state);
            if let Some(thread) = wake {
                thread.unpark();
            }
        }
    }

    /// [`Drain::Wait`].
    fn release_and_wait<C: Clock>(
        self: &Arc<Self>,
        value: Option<Arc<Tracked<T>>>,
        clock: &C,
        wait: Duration,
    ) {
        let number = value.as_ref().map_or(0, |value| value.number());
        self.leave(value);
        if !self.is_read_by_this_thread(number) && !self.is_finalized_by_this_thread() {
            let deadline = deadline(clock, wait);
            self.wait_for(number, true, clock, deadline);
        }
        self.release(None);
    }

    /// Gives up a reference that is not a reader's. If it is the last one, the value waits for its turn.
    fn leave(&self, value: Option<Arc<Tracked<T>>>) {
        let Some((number, value)) = value.and_then(Arc::into_inner).and_then(Tracked::into_parts) else {
            return;
        };
        Self::put_in_line(&mut self.state.lock(), number, value);
    }

    /// Takes a value that a writer has withheld and replaced.
    pub(crate) fn take_in(&self, number: u64, value: T) {
        Self::put_in_line(&mut self.state.lock(), number, value);
    }

    fn put_in_line(state: &mut RoomState<T>, number: u64, value: T) {
        if number == 0 {
            state.strays.push(value);
        } else {
            state.retired.remove(&number);
            state.drained.insert(number, value);
        }
    }
}

/// Finalising.
impl<T> Room<T> {
    /// Runs the finalizer as long as a value's turn has come and nobody else runs it.
    ///
    /// A panic of the finalizer ends here, after the panic hook has reported it: the value is gone, and what the
    /// caller came for and the values behind it shall not be lost as well (G11).
    fn finalize_what_is_ready(&self) {
        while let Some((turn, value)) = self.begin() {
            let _panic = catch_unwind(AssertUnwindSafe(|| {
                let _turn = turn;
                (self.finalizer)(value);
            }));
        }
    }

    /// Takes the value whose turn has come, if nobody finalises another one.
    fn begin(&self) -> Option<(Turn<'_, T>, T)> {
        let mut state = self.state.lock();
        if state.finalizing.is_some() {
            return None;
        }
        let next = state.turn();
        let (finalized, value) = match state.drained.remove(&next) {
            Some(value) => (next, value),
            None => (state.finalized, state.strays.pop()?),
        };
        state.finalizing = Some(current_thread().id());
        Some((Turn { room: self, finalized }, value))
    }

    /// The cell's own thread.
    fn run_thread(self: Arc<Self>) {
        loop {
            self.finalize_what_is_ready();
            let mut state = self.state.lock();
            if state.is_ready() {
                continue;
            }
            if state.closed && !state.is_busy() {
                state.thread = Background::NotStarted;
                return;
            }
            drop(state);
            // Between the look and this there is nothing that could take the thread's token.
            park();
        }
    }

    fn start_thread(self: &Arc<Self>, state: &mut RoomState<T>) {
        if matches!(state.thread, Background::NotStarted) {
            state.thread = match (self.start)(Arc::clone(self)) {
                Ok(handle) => Background::Running(handle.thread().clone(), Some(handle)),
                Err(_) => Background::Impossible,
            };
        }
    }

    fn is_finalized_by_this_thread(&self) -> bool {
        self.state.lock().finalizing == Some(current_thread().id())
    }

    /// The cell is being dropped: what is retired is still finalised, by its own thread, which is joined if that
    /// does not mean waiting for readers.
    pub(crate) fn close(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.closed = true;
        let waits_for_readers = !state.retired.is_empty();
        let Background::Running(thread, handle) = &mut state.thread else { return };
        let is_me = thread.id() == current_thread().id();
        let (thread, handle) = (thread.clone(), handle.take());
        drop(state);
        thread.unpark();
        if let Some(handle) = handle.filter(|_| !waits_for_readers && !is_me) {
            // It contains the panics of finalizers and has none of its own.
            let _ = handle.join();
        }
    }
}

/// Waiting.
impl<T> Room<T> {
    /// Replaced values whose finalizer has not finished.
    pub(crate) fn retired(&self) -> usize {
        let state = self.state.lock();
        usize::try_from(state.last_retired().saturating_sub(state.finalized)).unwrap_or(usize::MAX)
    }

    /// Outstanding `ReaderArc`s.
    pub(crate) fn readers(&self) -> usize {
        let state = self.state.lock();
        let current = state
            .current
            .as_ref()
            .map_or(0, |current| current.value.strong_count().saturating_sub(usize::from(current.in_slot)));
        current + state.readers_of_retired()
    }

    /// Waits until everything that is retired now is finalised, or until `deadline`. `Err`: why it cannot wait.
    pub(crate) fn synchronize<C: Clock>(&self, clock: &C, deadline: u64) -> Result<bool, &'static str> {
        let target = self.state.lock().last_retired();
        match self.why_not_wait(target) {
            Some(reason) => Err(reason),
            None => Ok(self.wait_for(target, false, clock, deadline)),
        }
    }

    pub(crate) fn drain_timeout(&self) -> DrainTimeout {
        DrainTimeout { readers: self.state.lock().readers_of_retired() }
    }

    /// Whether this thread holds a `ReadGuard` of a value with this number or a smaller one.
    pub(crate) fn is_read_by_this_thread(&self, number: u64) -> bool {
        held::any(|address| {
            let state = self.state.lock();
            let current = state.current.as_ref().map(|current| (&current.number, &current.value));
            // A guard keeps its value where it is, so an address belongs to one value only.
            state
                .retired
                .iter()
                .chain(current)
                .any(|(held, value)| *held <= number && value.as_ptr().addr() == address)
        })
    }

    fn why_not_wait(&self, target: u64) -> Option<&'static str> {
        if self.is_finalized_by_this_thread() {
            Some("it was called from inside the finalizer")
        } else if self.is_read_by_this_thread(target) {
            Some("this thread holds a ReadGuard of a value that has been replaced; drop it before")
        } else {
            None
        }
    }

    /// Waits until `number` has been finalised. Returns whether it has.
    fn wait_for<C: Clock>(&self, number: u64, helps: bool, clock: &C, deadline: u64) -> bool {
        let seat =
            Seat { room: self, number: self.state.lock().waiters.take(Until { finalized: number, helps }) };
        let done = wait_until(clock, deadline, || {
            if helps {
                self.finalize_what_is_ready();
            }
            (self.state.lock().finalized >= number).then_some(())
        });
        drop(seat);
        done.is_some()
    }
}

/// The right to run the finalizer; ends with the drop, also when the finalizer panics.
struct Turn<'a, T> {
    room: &'a Room<T>,
    /// Up to where everything is finalised then.
    finalized: u64,
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let mut state = self.room.state.lock();
        state.finalizing = None;
        state.finalized = self.finalized;
        let done: Vec<Thread> = state.waiters.those(|until| until.finalized <= self.finalized).collect();
        drop(state);
        for thread in done {
            thread.unpark();
        }
    }
}

/// A place among those who wait, given up when dropped.
struct Seat<'a, T> {
    room: &'a Room<T>,
    number: u64,
}

impl<T> Drop for Seat<'_, T> {
    fn drop(&mut self) {
        let mut state = self.room.state.lock();
        state.waiters.leave(self.number);
        // A wake-up that has reached this thread is passed on.
        let wake = state.one_to_finalize();
        drop(state);
        if let Some(thread) = wake {
            thread.unpark();
        }
    }
}

/// The write lock.
impl<T> Room<T> {
    /// Waits until nobody reads anything, and takes `withheld`, which is not in the slot any more, out of its `Arc`.
    ///
    /// # Errors
    ///
    /// The value is still being read at the deadline: it is given back.
    pub(crate) fn claim<C: Clock>(
        self: &Arc<Self>,
        withheld: Option<Arc<Tracked<T>>>,
        clock: &C,
        deadline: u64,
    ) -> Result<Option<(u64, T)>, StillRead<T>> {
        let number = withheld.as_ref().map(|value| value.number());
        let weak = withheld.as_ref().map(Arc::downgrade);
        {
            let mut state = self.state.lock();
            if let Some(current) = &mut state.current {
                current.in_slot = false;
            }
            if let Some(number) = number {
                state.claim = Some(Claim { number, value: None, writer: current_thread() });
            }
        }
        // What was retired before goes first.
        let before = number.map_or_else(|| self.state.lock().last_retired(), |number| number - 1);
        let in_time = self.wait_for(before, true, clock, deadline);
        let mut kept = withheld;
        if in_time {
            match kept.map(Arc::try_unwrap) {
                None => return Ok(None),
                Some(Ok(tracked)) => {
                    self.state.lock().claim = None;
                    return Ok(tracked.into_parts());
                }
                Some(Err(still_read)) => kept = Some(still_read),
            }
            // From now on the last reader is the last reference.
            drop(kept.take());
            let value = wait_until(clock, deadline, || self.take_claim());
            if value.is_some() {
                return Ok(value);
            }
            kept = weak.and_then(|weak| weak.upgrade());
            if kept.is_none() {
                // The last reader left at the last moment; it is about to bring the value.
                return Ok(wait_until(clock, FOREVER, || self.take_claim()));
            }
        }
        let mut state = self.state.lock();
        state.claim = None;
        if let Some(current) = &mut state.current {
            current.in_slot = true;
        }
        let own = usize::from(kept.is_some());
        let readers = kept.as_ref().map_or(0, Arc::strong_count) - own + state.readers_of_retired();
        drop(state);
        Err(StillRead { value: kept, timeout: DrainTimeout { readers } })
    }

    fn take_claim(&self) -> Option<(u64, T)> {
        let mut state = self.state.lock();
        let claim = state.claim.as_mut()?;
        let (number, value) = (claim.number, claim.value.take()?);
        state.claim = None;
        Some((number, value))
    }

    /// A withheld value does not come back into the slot: it was cleared.
    pub(crate) fn retire_withheld(&self, value: &Arc<Tracked<T>>) {
        Self::retire(&mut self.state.lock(), Some(value));
    }

    /// A withheld value is in the slot again.
    pub(crate) fn put_back(&self, value: &Arc<Tracked<T>>) {
        let mut state = self.state.lock();
        if let Some(current) = &mut state.current {
            current.value = Arc::downgrade(value);
            current.in_slot = true;
        }
    }
}

pub(crate) fn deadline<C: Clock>(clock: &C, wait: Duration) -> u64 {
    if nanos(wait) == FOREVER { FOREVER } else { clock.now().saturating_add(wait).as_nanos() }
}
