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
//! Never two at a time: [`RoomState::finalizing`]. Under [`Drain::Wait`] the caller that waits for the readers of the value
//! that it has replaced, or for the write lock; else the cell's own thread, which is started when it is needed and ends when
//! nothing is left to finalise. No other caller and no reader that leaves ever runs it, except where that thread cannot be
//! started.
//!
//! # Wake-ups
//!
//! The last reader of the value whose turn it is wakes one: a caller that waits for it, or else the thread. The
//! last reader of any other value wakes nobody. The end of a finalizer wakes those who wait for just that. A reader that comes
//! to wait for the build which waits for it wakes that build's caller ([`Room::wait_no_more_for_this_thread`]).
//!
//! # Locks
//!
//! The room's lock may be taken under the cell's lock (by [`Room::published`] and [`Room::cleared`]), never the other
//! way round. No user code runs under it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::contain::contain;
use crate::inside::any_guard;
use crate::own_thread::{self, JoinHandle, ThreadBuilder};
use crate::sync::{
    Arc, AtomicU64, Mutex, MutexGuard, OnceCell, Ordering, Thread, ThreadId, Weak, current_thread, park,
    yield_now,
};
use crate::time::{Clock, deadline};
use crate::trace::{self, Stamp};
use crate::wait::{Entry, WaitPoint, WaitQueue, Waiter, wait_until};

#[cfg(feature = "async")]
use crate::time::FOREVER;

/// What the caller that replaces a value does while the value is still being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Drain {
    /// It does not wait, and never runs the finalizer: the cell's own thread does, when the last reader has left. That
    /// thread is started when it is needed, and ends when nothing is left to finalise.
    #[default]
    Background,
    /// It waits for the readers of the replaced value, at most for so long, and runs the finalizer itself. What is
    /// left then goes to the background. [`Duration::MAX`] waits without end, as Python's dogpile did.
    ///
    /// Readers of the new value do not wait. The lease stays taken meanwhile, so builds keep at most two generations alive.
    /// (`set` takes no lease.)
    ///
    /// # Deadlocks
    ///
    /// A thread that holds a `ReaderArc` of the old value waits for itself, until the time is over, if it is elected, calls
    /// `set` or `clear`, or waits for the build that drains (a request that rules out what there is, any read after a `clear`
    /// or of a value that has expired). Give the old handle up first:
    /// [`exchange`](crate::SyncReaderCell::exchange). So does a task with a guard. A thread that holds a `ReadGuard` of it, or of a value
    /// replaced before, does not: the old value goes to the background at once.
    Wait(Duration),
}

/// The readers have not left within the time allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainTimeout {
    /// How many `ReaderArc`s of the values that were waited for are left, leaked ones included. 0 if nobody was in the
    /// way but the caller itself (a build that has been overtaken, or a call from inside the finalizer).
    pub readers: usize,
}

impl fmt::Display for DrainTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.readers {
            0 => f.write_str("the readers could not be waited for"),
            1 => f.write_str("1 reader has not left within the time allowed"),
            readers => write!(f, "{readers} readers have not left within the time allowed"),
        }
    }
}

impl Error for DrainTimeout {}

/// A value that knows where to go when its last reader has left.
#[allow(unreachable_pub, missing_debug_implementations)] // named by a sealed trait
pub struct Tracked<T> {
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
            room.drained(std::ptr::from_ref(self).addr(), number, value);
        }
    }
}

/// Where replaced values wait for their readers to leave, and are finalised.
pub(crate) struct Room<T> {
    state: Mutex<RoomState<T>>,
    finalizer: Box<dyn Fn(T) + Send + Sync>,
    name: OnceCell<&'static str>,
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
    retired: BTreeMap<u64, Retired<T>>,
    /// Values whose last reader has left, and whose turn has not come.
    drained: BTreeMap<u64, T>,
    /// Values that were never published and are not drained yet.
    loose: Vec<Weak<Tracked<T>>>,
    /// Values that were never published, and whose last reader has left.
    strays: Vec<T>,
    /// The number of the value that the latest build under [`Drain::Wait`] has replaced.
    draining: u64,
    /// The number whose readers the build that has replaced it waits for no more: one of them waits for the build.
    unawaited: u64,
    /// The number whose readers a writer waits for; the value goes to it.
    claim: Option<Claim<T>>,
    /// The thread whose build has the write lock, and the number of the value that it has taken out; 0 if there was none.
    inside: Option<(ThreadId, u64)>,
    finalizing: Option<ThreadId>,
    thread: Background,
    /// The cell is gone.
    closed: bool,
    waiters: WaitQueue<Until>,
}

/// A value that has been replaced.
struct Retired<T> {
    value: Weak<Tracked<T>>,
    since: Stamp,
}

struct Current<T> {
    number: u64,
    value: Weak<Tracked<T>>,
    /// Whether there is a reference that is no reader's: the slot's, or that of a writer who still waits for others.
    is_shared: bool,
    /// It was taken away while a writer withheld it, who may be waiting for its readers: it is retired when that writer's
    /// build ends.
    is_cleared: bool,
}

impl<T> Current<T> {
    fn readers(&self) -> usize {
        self.value.strong_count().saturating_sub(usize::from(self.is_shared))
    }
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

/// What a waiter waits for: until this number has been finalised.
#[derive(Clone, Copy)]
pub(crate) struct Until {
    finalized: u64,
    purpose: Purpose,
    /// It runs the finalizer itself where it can.
    helps: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It only waits.
    Synchronize,
    /// It has replaced the value, and finalises it.
    Drain,
    /// It wants the write lock, and finalises what stands in its way.
    Claim,
}

impl Until {
    fn is_over<T>(&self, state: &RoomState<T>) -> bool {
        self.finalized <= state.finalized || (self.drains() && self.finalized == state.unawaited)
    }

    fn drains(&self) -> bool {
        self.purpose == Purpose::Drain
    }
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
        match &self.current {
            Some(current) if !current.is_cleared => current.number - 1,
            _ => self.published,
        }
    }

    fn readers_of_retired(&self) -> usize {
        self.retired.values().map(|retired| retired.value.strong_count()).sum()
    }

    /// Readers of values that were never published.
    fn loose_readers(&self) -> usize {
        self.loose.iter().map(Weak::strong_count).sum()
    }

    /// Whether a value that was never published is still read, or is yet to be finalised, or a finalizer runs.
    fn has_loose_ends(&self) -> bool {
        !self.loose.is_empty() || !self.strays.is_empty() || self.finalizing.is_some()
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
                loose: Vec::new(),
                strays: Vec::new(),
                draining: 0,
                unawaited: 0,
                claim: None,
                inside: None,
                finalizing: None,
                thread: Background::NotStarted,
                closed: false,
                waiters: WaitQueue::default(),
            }),
            finalizer: Box::new(finalizer),
            name: OnceCell::new(),
            start: |room| {
                ThreadBuilder::new().name("dogpile-finalizer".into()).spawn(move || room.run_thread())
            },
        })
    }
}

/// Called by the cell's machine, under its lock.
impl<T> Room<T> {
    /// `new` becomes visible and replaces `old`. `drains`: a build has published it, and waits for the readers of `old`.
    pub(crate) fn published(&self, new: &Arc<Tracked<T>>, old: Option<&Arc<Tracked<T>>>, drains: bool) {
        let mut state = self.state.lock();
        state.published += 1;
        let number = state.published;
        // Relaxed: made visible together with the value.
        new.number.store(number, Ordering::Relaxed);
        state.loose.retain(|value| value.as_ptr() != Arc::as_ptr(new));
        if let Some(cleared) = state.current.take_if(|current| current.is_cleared) {
            // Its writer has given it up, and not retired it yet.
            state.retired.insert(cleared.number, Retired { value: cleared.value, since: Stamp::now() });
        }
        Self::retire(&mut state, old);
        if drains && let Some(old) = old {
            state.draining = old.number();
        }
        state.current =
            Some(Current { number, value: Arc::downgrade(new), is_shared: true, is_cleared: false });
    }

    /// `old` is taken away.
    pub(crate) fn cleared(&self, old: Option<&Arc<Tracked<T>>>) {
        let mut state = self.state.lock();
        match (old, &mut state.current) {
            // A writer has it. It keeps its place here, so that its readers are known.
            (None, Some(withheld)) => withheld.is_cleared = true,
            _ => {
                Self::retire(&mut state, old);
                state.current = None;
            }
        }
    }

    fn retire(state: &mut RoomState<T>, old: Option<&Arc<Tracked<T>>>) {
        if let Some(old) = old {
            state.retired.insert(old.number(), Retired { value: Arc::downgrade(old), since: Stamp::now() });
        }
    }
}

/// Values that leave.
impl<T> Room<T> {
    /// The last reader of the value with this number has left.
    fn drained(self: &Arc<Self>, address: usize, number: u64, value: T) {
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
            // It is not finalised.
            drop(state);
            drop(value);
            return;
        }
        let since = Self::put_in_line(&mut state, address, number, value);
        drop(state);
        self.tell_drained(number, since);
        self.hand_on(self.state.lock());
    }

    /// Sees to it that what has become ready is finalised by somebody.
    fn hand_on(self: &Arc<Self>, mut state: MutexGuard<'_, RoomState<T>>) {
        if !state.is_ready() {
            return;
        }
        // One is enough: whoever leaves without having done it hands it on. When the cell is gone nobody waits any more: a
        // seat that is still taken is a leaked task's.
        let mut finalizer =
            if state.closed { None } else { state.waiters.matching(|until| until.helps).next() };
        if finalizer.is_none() {
            self.start_thread(&mut state);
            if let Background::Running(thread, _) = &state.thread {
                finalizer = Some(Waiter::Thread(thread.clone()));
            }
        }
        drop(state);
        match finalizer {
            Some(finalizer) => finalizer.wake(),
            // The thread could not be started.
            None => self.finalize_what_is_ready(),
        }
    }

    /// What the caller does that has replaced `value`, or the one of this `number` that it had taken out before.
    pub(crate) fn let_go<C: Clock>(
        self: &Arc<Self>,
        value: Option<Arc<Tracked<T>>>,
        number: Option<u64>,
        drain: Drain,
        clock: &C,
    ) {
        match drain {
            Drain::Background => self.release(value),
            Drain::Wait(wait) => {
                // If the clock panics, the value goes to the background.
                let _handing_on = HandingOn(self);
                let number = number.or(value.as_ref().map(|value| value.number())).unwrap_or(0);
                self.give_up(value);
                if !self.is_read_by_this_thread(number) && !self.is_finalized_by_this_thread() {
                    self.wait_for(number, Purpose::Drain, clock, deadline(clock, wait));
                }
                self.release(None);
            }
        }
    }

    /// [`Drain::Background`].
    pub(crate) fn release(self: &Arc<Self>, value: Option<Arc<Tracked<T>>>) {
        self.give_up(value);
        let mut state = self.state.lock();
        if state.finalized < state.last_retired() {
            // It will be needed.
            self.start_thread(&mut state);
        }
        self.hand_on(state);
    }

    /// A value that is not published is in the hands of the one who built it: a reader too, for a writer.
    pub(crate) fn let_loose(&self, value: &Arc<Tracked<T>>) {
        self.state.lock().loose.push(Arc::downgrade(value));
    }

    /// Gives up a reference that is not a reader's. If it is the last one, the value waits for its turn.
    fn give_up(&self, value: Option<Arc<Tracked<T>>>) {
        let address = value.as_ref().map_or(0, |value| Arc::as_ptr(value).addr());
        let Some((number, value)) = value.and_then(Arc::into_inner).and_then(Tracked::into_parts) else {
            return;
        };
        let since = Self::put_in_line(&mut self.state.lock(), address, number, value);
        self.tell_drained(number, since);
    }

    /// Takes a value that a writer has withheld and replaced.
    pub(crate) fn take_in(&self, number: u64, value: T) -> u64 {
        let mut state = self.state.lock();
        Self::forget_withheld(&mut state, number);
        let _ = Self::put_in_line(&mut state, 0, number, value);
        number
    }

    /// The value of this number, which a writer has withheld, is not going to come back into the slot.
    fn forget_withheld(state: &mut RoomState<T>, number: u64) {
        state.current.take_if(|current| current.number == number);
    }

    /// Returns since when it was retired.
    fn put_in_line(state: &mut RoomState<T>, address: usize, number: u64, value: T) -> Option<Stamp> {
        if number == 0 {
            state.loose.retain(|value| value.as_ptr().addr() != address);
            state.strays.push(value);
            None
        } else {
            state.drained.insert(number, value);
            state.retired.remove(&number).map(|retired| retired.since)
        }
    }

    fn tell_drained(&self, number: u64, since: Option<Stamp>) {
        if let Some(since) = since {
            trace::drained(self.name(), number, since);
        }
    }

    fn name(&self) -> Option<&'static str> {
        self.name.get().copied()
    }

    /// For the log. The first one stays.
    pub(crate) fn set_name(&self, name: &'static str) {
        let _ = self.name.set(name);
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
            let (begun, number) = (Stamp::now(), turn.number);
            contain(|| {
                let _turn = turn;
                (self.finalizer)(value);
            });
            trace::finalized(self.name(), number, begun);
        }
    }

    /// Takes the value whose turn has come, if nobody finalises another one.
    fn begin(&self) -> Option<(Finalizing<'_, T>, T)> {
        let mut state = self.state.lock();
        if state.finalizing.is_some() {
            return None;
        }
        let next = state.turn();
        let (number, finalized, value) = match state.drained.remove(&next) {
            Some(value) => (next, next, value),
            None => (0, state.finalized, state.strays.pop()?),
        };
        state.finalizing = Some(current_thread().id());
        Some((Finalizing { room: self, number, finalized }, value))
    }

    /// The cell's own thread. When the cell is gone it does not wait for readers: one that leaves later starts it again.
    fn run_thread(self: Arc<Self>) {
        own_thread::begin(own_thread::Kind::Finalizer);
        loop {
            self.finalize_what_is_ready();
            let mut state = self.state.lock();
            if state.is_ready() {
                continue;
            }
            if state.closed || state.finalized >= state.last_retired() {
                // Nothing is left to finalise. When something is, it is started again.
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

    pub(crate) fn is_finalized_by_this_thread(&self) -> bool {
        self.state.lock().finalizing == Some(current_thread().id())
    }

    /// The cell is being dropped: what is retired is still finalised, by its own thread. That is joined, since it does not
    /// wait for readers any more; but not by another of the crate's threads (see [`own_thread`]).
    pub(crate) fn close(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.closed = true;
        if state.is_ready() {
            self.start_thread(&mut state);
        }
        let Background::Running(thread, handle) = &mut state.thread else {
            let is_impossible = matches!(state.thread, Background::Impossible);
            drop(state);
            if is_impossible {
                self.finalize_what_is_ready();
            }
            return;
        };
        let (thread, handle) = (thread.clone(), handle.take());
        drop(state);
        thread.unpark();
        if let Some(handle) = handle.filter(|_| own_thread::kind() == own_thread::Kind::Foreign) {
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
        let current = state.current.as_ref().map_or(0, Current::readers);
        current + state.readers_of_retired()
    }

    /// Waits until everything that is retired now is finalised, or until `deadline`. `Err`: why it cannot wait.
    pub(crate) fn synchronize<C: Clock>(
        self: &Arc<Self>,
        clock: &C,
        deadline: u64,
    ) -> Result<bool, &'static str> {
        let target = self.state.lock().last_retired();
        match self.why_not_wait(target) {
            Some(reason) => Err(reason),
            None => Ok(self.wait_for(target, Purpose::Synchronize, clock, deadline)),
        }
    }

    pub(crate) fn drain_timeout(&self) -> DrainTimeout {
        let state = self.state.lock();
        let cleared = state.current.as_ref().filter(|current| current.is_cleared).map_or(0, Current::readers);
        DrainTimeout { readers: cleared + state.readers_of_retired() }
    }

    /// Whether this thread holds a `ReadGuard` that a writer would wait for.
    pub(crate) fn is_read_at_all_by_this_thread(&self) -> bool {
        let is_loose = |address| self.state.lock().loose.iter().any(|value| value.as_ptr().addr() == address);
        self.is_read_by_this_thread(u64::MAX) || any_guard(is_loose)
    }

    /// Whether this thread holds a `ReadGuard` of a value with this number or a smaller one.
    fn is_read_by_this_thread(&self, number: u64) -> bool {
        any_guard(|address| {
            let state = self.state.lock();
            let current = state.current.as_ref().map(|current| (&current.number, &current.value));
            // A guard keeps its value where it is, so an address belongs to one value only.
            state
                .retired
                .iter()
                .map(|(number, retired)| (number, &retired.value))
                .chain(current)
                .any(|(held, value)| *held <= number && value.as_ptr().addr() == address)
        })
    }

    /// This thread is about to wait for a build that is over but for the readers of what it has replaced. If this thread
    /// is one of them, that goes to the background, as if there were no time left.
    pub(crate) fn wait_no_more_for_this_thread(&self) {
        // If another build has drained something since, the one that is waited for is over, and a number that has passed
        // does no harm.
        let draining = self.state.lock().draining;
        if !self.is_read_by_this_thread(draining) {
            return;
        }
        let mut state = self.state.lock();
        state.unawaited = draining;
        let drains: Vec<Waiter> =
            state.waiters.matching(|until| until.drains() && until.finalized == draining).collect();
        drop(state);
        for sleeper in drains {
            sleeper.wake();
        }
    }

    fn why_not_wait(&self, target: u64) -> Option<&'static str> {
        let inside = self.state.lock().inside;
        if self.is_finalized_by_this_thread() {
            Some("it was called from inside the finalizer")
        } else if inside.is_some_and(|(writer, number)| {
            writer == current_thread().id() && number != 0 && number <= target
        }) {
            Some("it was called under the write lock, which holds a value that has been cleared")
        } else if self.is_read_by_this_thread(target) {
            Some("this thread holds a ReadGuard of a value that has been replaced; drop it before")
        } else {
            None
        }
    }

    /// Waits until `number` has been finalised, and helps. Returns whether it has, and nobody reads what was never
    /// published.
    fn wait_for_all<C: Clock>(self: &Arc<Self>, number: u64, helps: bool, clock: &C, deadline: u64) -> bool {
        let until = Until { finalized: number, purpose: Purpose::Claim, helps };
        self.wait_while(until, clock, deadline, RoomState::has_loose_ends)
    }

    /// Waits until `number` has been finalised. Returns whether the wait is over before the deadline.
    fn wait_for<C: Clock>(self: &Arc<Self>, number: u64, purpose: Purpose, clock: &C, deadline: u64) -> bool {
        let until = Until { finalized: number, purpose, helps: purpose == Purpose::Drain };
        self.wait_while(until, clock, deadline, |_| false)
    }

    fn wait_while<C: Clock>(
        self: &Arc<Self>,
        until: Until,
        clock: &C,
        deadline: u64,
        condition: impl Fn(&RoomState<T>) -> bool,
    ) -> bool {
        let done = Entry::new(self).wait(until, clock, deadline, |room| {
            if until.helps {
                room.finalize_what_is_ready();
            }
            let state = room.state.lock();
            (until.is_over(&state) && !condition(&state)).then_some(())
        });
        done.is_some()
    }
}

/// The right to run the finalizer; ends with the drop, also when the finalizer panics.
struct Finalizing<'a, T> {
    room: &'a Room<T>,
    /// Of the value; 0 if it was never published.
    number: u64,
    /// Up to where everything is finalised then.
    finalized: u64,
}

impl<T> Drop for Finalizing<'_, T> {
    fn drop(&mut self) {
        let mut state = self.room.state.lock();
        state.finalizing = None;
        state.finalized = self.finalized;
        let done: Vec<Waiter> = state.waiters.matching(|until| until.finalized <= self.finalized).collect();
        drop(state);
        for waiter in done {
            waiter.wake();
        }
    }
}

/// Sees to it, when dropped, that what has become ready is finalised by somebody: for a wait that ends with a panic. One
/// that ends otherwise has seen to it already.
struct HandingOn<'a, T>(&'a Arc<Room<T>>);

impl<T> Drop for HandingOn<'_, T> {
    fn drop(&mut self) {
        self.0.hand_on(self.0.state.lock());
    }
}

impl<T> WaitPoint for Arc<Room<T>> {
    type Note = Until;

    fn with_queue<R>(&self, access: impl FnOnce(&mut WaitQueue<Until>) -> R) -> R {
        access(&mut self.state.lock().waiters)
    }

    fn leave(&self, number: usize) {
        let mut state = self.state.lock();
        let left = state.waiters.leave(number);
        // A wake-up that has reached this waiter is passed on.
        self.hand_on(state);
        drop(left);
    }
}

/// Waiting, for tasks.
#[cfg(feature = "async")]
impl<T> Room<T> {
    /// As [`let_go`](Room::let_go). `building` notes, as long as what it returns lives, that this thread builds.
    pub(crate) async fn let_go_async<C: Clock, B>(
        self: &Arc<Self>,
        value: Option<Arc<Tracked<T>>>,
        number: Option<u64>,
        drain: Drain,
        clock: &C,
        building: impl Fn() -> B,
    ) {
        match drain {
            Drain::Background => self.release(value),
            Drain::Wait(wait) => {
                // If the clock panics, the value goes to the background.
                let _handing_on = HandingOn(self);
                let number = number.or(value.as_ref().map(|value| value.number())).unwrap_or(0);
                self.give_up(value);
                if !self.is_read_by_this_thread(number) && !self.is_finalized_by_this_thread() {
                    let until = Until { finalized: number, purpose: Purpose::Drain, helps: true };
                    self.wait_async(until, clock, deadline(clock, wait), &building).await;
                }
                let _building = building();
                self.release(None);
            }
        }
    }

    /// Waits until everything that is retired now is finalised.
    pub(crate) async fn synchronize_async<C: Clock>(self: &Arc<Self>, clock: &C) {
        let last = self.state.lock().last_retired();
        let until = Until { finalized: last, purpose: Purpose::Synchronize, helps: false };
        self.wait_async(until, clock, FOREVER, || ()).await;
    }

    async fn wait_async<C: Clock, B>(
        self: &Arc<Self>,
        until: Until,
        clock: &C,
        deadline: u64,
        building: impl Fn() -> B,
    ) {
        let mut entry = Entry::new(self);
        std::future::poll_fn(|cx| {
            let _building = building();
            let polled = entry.poll(until, clock, deadline, cx, |room| {
                if until.helps {
                    room.finalize_what_is_ready();
                }
                until.is_over(&room.state.lock()).then_some(())
            });
            polled.map(drop)
        })
        .await;
    }
}

/// A writer's wait for its value. However it ends, the value is in one place.
struct Claiming<'a, T> {
    room: &'a Arc<Room<T>>,
    kept: &'a mut Option<Arc<Tracked<T>>>,
    weak: Weak<Tracked<T>>,
    number: u64,
}

impl<T> Claiming<'_, T> {
    /// Ends the wait: `Some` if the last reader has brought the value, else it is kept.
    fn end(&mut self) -> Option<T> {
        loop {
            let mut state = self.room.state.lock();
            let brought = state.claim.as_mut().and_then(|claim| claim.value.take());
            if self.kept.is_none() {
                // Stays `None` if it has been brought: nothing refers to it any more.
                *self.kept = self.weak.upgrade();
            }
            if brought.is_some() || self.kept.is_some() {
                state.claim = None;
                if let Some(current) = state.current.as_mut().filter(|_| brought.is_none()) {
                    current.is_shared = true;
                }
                return brought;
            }
            drop(state);
            // The last reader has let go of it, and is about to bring it.
            yield_now();
        }
    }
}

impl<T> Drop for Claiming<'_, T> {
    fn drop(&mut self) {
        // Only if the clock has panicked.
        if self.room.state.lock().claim.is_some()
            && let Some(value) = self.end()
        {
            *self.kept = Some(Arc::new(Tracked::numbered(value, self.number, self.room)));
        }
    }
}

/// A wait for the write lock, which is reported when it has taken [`SLOW_LOCK`].
struct SlowLock {
    deadline: u64,
    /// None: it is not reported, or no more.
    report_at: Cell<Option<u64>>,
}

const SLOW_LOCK: Duration = Duration::from_secs(1);

impl SlowLock {
    fn new<C: Clock>(clock: &C, deadline: u64) -> Self {
        let report_at = cfg!(feature = "tracing").then(|| crate::time::deadline(clock, SLOW_LOCK));
        Self { deadline, report_at: Cell::new(report_at.filter(|report_at| *report_at < deadline)) }
    }

    /// Waits until the deadline; on the way there it may have to `report`.
    fn wait(&self, wait: impl Fn(u64) -> bool, report: impl FnOnce()) -> bool {
        if let Some(report_at) = self.report_at.get() {
            if wait(report_at) {
                return true;
            }
            self.report_at.set(None);
            report();
        }
        wait(self.deadline)
    }
}

/// The write lock.
impl<T> Room<T> {
    /// Waits until nobody reads anything, and takes the withheld value, which is not in the slot any more, out of its
    /// `Arc`.
    ///
    /// # Errors
    ///
    /// Something is still being read at the deadline. The withheld value is in `kept` then, as it is if the clock
    /// panics.
    pub(crate) fn claim<C: Clock>(
        self: &Arc<Self>,
        kept: &mut Option<Arc<Tracked<T>>>,
        builder: ThreadId,
        drain: Drain,
        clock: &C,
        deadline: u64,
    ) -> Result<Option<(u64, T)>, DrainTimeout> {
        let helps = drain != Drain::Background;
        let slow = SlowLock::new(clock, deadline);
        let Some(value) = &*kept else {
            let last = self.state.lock().last_retired();
            if !slow.wait(|deadline| self.wait_for_all(last, helps, clock, deadline), || self.slow_lock(0)) {
                let state = self.state.lock();
                return Err(DrainTimeout { readers: state.readers_of_retired() + state.loose_readers() });
            }
            self.state.lock().inside = Some((builder, 0));
            return Ok(None);
        };
        let number = value.number();
        let weak = Arc::downgrade(value);
        self.state.lock().claim = Some(Claim { number, value: None, writer: current_thread() });
        let mut claiming = Claiming { room: self, kept, weak, number };
        // What was retired before goes first.
        let readers_of_kept = claiming.weak.clone();
        let tell = || self.slow_lock(readers_of_kept.strong_count().saturating_sub(1));
        if slow.wait(|deadline| self.wait_for_all(number - 1, helps, clock, deadline), tell) {
            if let Some(current) = &mut self.state.lock().current {
                current.is_shared = false;
            }
            // From now on the last reader is the last reference, and brings the value.
            drop(claiming.kept.take());
            let brought = || self.state.lock().claim.as_ref()?.value.as_ref().map(|_| ());
            let tell = || self.slow_lock(readers_of_kept.strong_count());
            slow.wait(|deadline| wait_until(clock, deadline, brought).is_some(), tell);
        }
        if let Some(value) = claiming.end() {
            self.state.lock().inside = Some((builder, number));
            return Ok(Some((number, value)));
        }
        let readers = claiming.kept.as_ref().map_or(0, |kept| Arc::strong_count(kept) - 1);
        let state = self.state.lock();
        Err(DrainTimeout { readers: readers + state.readers_of_retired() + state.loose_readers() })
    }

    /// A writer has waited for long.
    fn slow_lock(&self, readers: usize) {
        let state = self.state.lock();
        let readers = readers + state.readers_of_retired() + state.loose_readers();
        drop(state);
        trace::write_lock_waits(self.name(), readers);
    }

    /// The writer has left.
    pub(crate) fn leave_section(&self) {
        self.state.lock().inside = None;
    }

    /// A withheld value does not come back into the slot: it was cleared.
    pub(crate) fn retire_withheld(&self, value: &Arc<Tracked<T>>) {
        let mut state = self.state.lock();
        Self::forget_withheld(&mut state, value.number());
        Self::retire(&mut state, Some(value));
    }

    /// A withheld value is in the slot again.
    pub(crate) fn put_back(&self, value: &Arc<Tracked<T>>) {
        let mut state = self.state.lock();
        if let Some(current) = &mut state.current {
            current.value = Arc::downgrade(value);
            current.is_shared = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync_reader::SyncReaderCell;

    fn cell() -> SyncReaderCell<u32> {
        SyncReaderCell::new(Duration::MAX, drop)
    }

    fn is_thread_there(room: &Room<u32>) -> bool {
        matches!(room.state.lock().thread, Background::Running(..))
    }

    #[test]
    fn a_thread_is_there_while_something_is_left_to_finalise_and_no_longer() {
        let cell = cell();
        for value in 0..10 {
            cell.set(value);
        }
        cell.synchronize();
        while is_thread_there(&cell.room) {
            yield_now();
        }
        let reader = cell.get();
        cell.set(10);
        assert!(is_thread_there(&cell.room));
        drop(reader);
        cell.synchronize();
        while is_thread_there(&cell.room) {
            yield_now();
        }
    }

    #[test]
    fn a_cell_that_is_gone_keeps_no_thread_for_a_reader() {
        let cell = cell();
        let room = Arc::clone(&cell.room);
        let reader = cell.set(1);
        cell.set(2);
        assert!(is_thread_there(&room));
        drop(cell);
        while is_thread_there(&room) {
            yield_now();
        }
        drop(reader);
        while room.state.lock().finalized < 1 {
            yield_now();
        }
    }

    /// Without a thread the last reader finalises, or else whoever drops the cell.
    #[test]
    fn a_cell_that_can_have_no_thread_finalises_what_a_leaked_task_was_to() {
        let cell = cell();
        let room = Arc::clone(&cell.room);
        let reader = cell.set(1);
        room.state.lock().thread = Background::Impossible;
        let until = Until { finalized: 1, purpose: Purpose::Drain, helps: true };
        room.state.lock().waiters.join(Waiter::this_thread(), until);
        cell.set(2);
        drop(reader);
        assert_eq!(room.state.lock().finalized, 0);
        drop(cell);
        assert_eq!(room.state.lock().finalized, 1);
    }

    #[test]
    fn values_that_were_never_published_are_forgotten_when_they_are_gone() {
        let cell = cell();
        for value in 0..10 {
            cell.get_or_refresh(|| {
                cell.clear();
                value
            });
        }
        assert!(cell.room.state.lock().loose.is_empty());
    }
}
