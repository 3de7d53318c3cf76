//! The values that the test keeps; and what only a `SyncReaderCell` has: values that are finalised, the write lock, and waits
//! for readers.

use std::path::PathBuf;
use std::time::Duration;

use dogpile::{Drain, ReaderArc, Tick};

use super::cell::{Either, Handle, Held};
use super::{Borrowed, Reach, Runner, TestClock, take};
use crate::model::{BuildId, Event, Hold, Locked, Model, Number, Synchronized};
use crate::operations::{Keep, Operation};
use crate::panics::{Called, called, eventually};
use crate::tokens::{Finalized, Token};

pub(super) type Writer<'w> = dogpile::Writer<'w, Token, TestClock>;

/// A thread has eight places for guards that are not counted; the cell needs some in passing.
const MOST_GUARDS: usize = 5;

/// Handles and guards.
impl Runner {
    /// A value that has been read: the right one, alive, and as its latest build has left it.
    fn check(&self, token: &Token, number: Number) {
        let marks = self.model.borrow().marks(number);
        let seen = (self.number(token), token.marks);
        assert_eq!(seen, (number, marks), "the value, and how often it was changed");
        assert!(self.ledger.is_alive(number), "{number} is being read and has been finalised");
    }

    /// Keeps what a call has returned, which the model holds already, or drops it when all has been looked at.
    pub(super) fn receive<'a>(
        &self,
        got: Held<'a>,
        number: Number,
        hold: Hold,
        keep: Keep,
        reach: Reach<'_, 'a>,
    ) {
        self.check(&got, number);
        match got {
            Held::Handle(handle) => self.handles.borrow_mut().push((number, handle)),
            Held::Guard(guard) => {
                let borrowed = reach.expect("it borrows the cell");
                borrowed.guards.borrow_mut().push((number, hold, guard));
            }
        }
        if !keep {
            if self.dogpile().is_none() {
                // It counts as a reader.
                self.compare(reach);
            }
            // What was kept last.
            if hold == Hold::Arc {
                let handles = self.handles.borrow().len();
                self.drop_handle(handles - 1);
            } else {
                let guards = reach.map_or(0, |borrowed| borrowed.guards.borrow().len());
                self.drop_guard(guards - 1, reach);
            }
        }
    }

    pub(super) fn clone_handle(&self, which: usize) {
        let mut handles = self.handles.borrow_mut();
        let Some(last) = handles.len().checked_sub(1) else { return };
        let (number, handle) = &handles[which % (last + 1)];
        let (number, clone) = (*number, handle.clone());
        if let (Either::SyncReader(handle), Either::SyncReader(clone)) = (handle, &clone) {
            assert!(ReaderArc::ptr_eq(handle, clone));
        }
        self.model.borrow_mut().hold(number, Hold::Arc);
        handles.push((number, clone));
    }

    /// Returns whether there was one.
    pub(super) fn drop_handle(&self, which: usize) -> bool {
        let Some((number, handle)) = take(&self.handles, which) else { return false };
        self.check(&handle, number);
        self.leaving(number, Hold::Arc, || drop(handle));
        true
    }

    pub(super) fn drop_guard(&self, which: usize, reach: Reach<'_, '_>) -> bool {
        let Some((number, hold, guard)) = reach.and_then(|borrowed| take(&borrowed.guards, which)) else {
            return false;
        };
        self.check(&guard, number);
        self.leaving(number, hold, || drop(guard));
        true
    }

    fn leaving(&self, number: Number, hold: Hold, drop: impl FnOnce()) {
        let before = self.ledger.calls();
        drop();
        self.model.borrow_mut().leave(number, hold);
        self.compare_values();
        let calls = self.ledger.finalized();
        assert!(calls[before..].iter().all(|call| call.on_own_thread), "a reader finalises: {calls:?}");
    }

    /// Takes one of the kept handles out, which the call that follows gives up before it looks.
    pub(super) fn give_up(&self, which: usize) -> Option<ReaderArc<Token>> {
        self.sync_reader()?;
        let (number, Either::SyncReader(handle)) = take(&self.handles, which)? else {
            unreachable!("a handle of the other kind of cell")
        };
        self.check(&handle, number);
        let mut model = self.model.borrow_mut();
        model.meet("exchange: a handle");
        model.leave(number, Hold::Arc);
        Some(handle)
    }

    pub(super) fn has_too_many_guards(&self) -> bool {
        self.model.borrow().guards() >= MOST_GUARDS
    }

    /// What is done to the handles when the cell is gone.
    pub(super) fn perform_afterwards(&self, operation: &Operation) {
        match operation {
            Operation::CloneHandle(which) => self.clone_handle(*which),
            Operation::DropHandle(which) => drop(self.drop_handle(*which)),
            operation => panic!("there is no cell to {operation:?}"),
        }
        self.compare_values();
        self.compare_handles(None);
    }

    pub(super) fn compare_readers(&self, reach: Reach<'_, '_>) {
        if let Some(cell) = self.sync_reader() {
            let (readers, expected) = (cell.readers(), self.model.borrow().readers());
            assert!(expected.contains(&readers), "{readers} readers, not {expected:?}");
        }
        self.compare_handles(reach);
    }

    fn compare_handles(&self, reach: Reach<'_, '_>) {
        for (number, handle) in &*self.handles.borrow() {
            self.check(handle, *number);
        }
        if let Some(Borrowed { guards, .. }) = reach {
            for (number, _, guard) in &*guards.borrow() {
                self.check(guard, *number);
            }
        }
    }
}

/// Values that are finalised.
impl Runner {
    /// As long as there is a cell that says so; else 0.
    pub(super) fn retired(&self) -> usize {
        match &*self.cell.borrow() {
            Some(Either::SyncReader(cell)) => cell.retired(),
            _ => 0,
        }
    }

    /// What has become of every value of a `SyncReaderCell`. The cell's own thread is given the time that it needs.
    pub(super) fn compare_values(&self) {
        let model = self.model.borrow();
        if !model.is_of_sync_readers() {
            return;
        }
        let due = model.finalized().len() + model.finalized_strays().len();
        let has_cell = self.cell.borrow().is_some();
        let is_settled = || {
            let calls = self.ledger.calls();
            calls > due || (calls == due && (!has_cell || self.retired() == model.retired()))
        };
        if model.is_left_to_the_background() {
            // If it never does, what follows shows what is amiss.
            eventually(is_settled);
        }
        let calls = self.ledger.finalized();
        let is_stray = |call: &&Finalized| model.finalized_strays().contains(&call.number);
        let numbers = |calls: Vec<&Finalized>| calls.iter().map(|call| call.number).collect::<Vec<_>>();
        let (mut strays, in_order) = {
            let (strays, in_order): (Vec<_>, Vec<_>) = calls.iter().partition(is_stray);
            (numbers(strays), numbers(in_order))
        };
        strays.sort_unstable();
        assert_eq!(in_order, model.finalized(), "the values that are finalised, in their order");
        let due_strays = model.finalized_strays().iter().copied().collect::<Vec<_>>();
        assert_eq!(strays, due_strays, "the values that never came into the cell, and are finalised");
        assert_eq!(self.ledger.values_alive(), model.alive(), "the values that are alive");
        assert!(self.ledger.dropped_twice().is_empty(), "dropped twice: {:?}", self.ledger.dropped_twice());
        assert!(!self.ledger.two_at_a_time(), "two finalizers ran at a time");
        if !model.is_left_to_the_background() {
            // Under `Drain::Wait`, without a reader that stays, the caller that replaces a value finalises it.
            assert!(calls.iter().all(|call| !call.on_own_thread), "left to the cell's thread: {calls:?}");
        }
        if model.drain() == Some(Drain::Background) {
            assert!(calls.iter().all(|call| call.on_own_thread), "a caller finalises: {calls:?}");
        }
    }

    pub(super) fn synchronize(&self, patience: Duration) {
        let Some(cell) = self.sync_reader() else { return };
        let got = cell.synchronize_timeout(patience).map_err(|timeout| timeout.readers);
        match (self.with_events(|model| model.synchronize_within(patience)), got) {
            (Synchronized::Done, Ok(())) => cell.synchronize(),
            (Synchronized::Not(readers), Err(count)) if readers.contains(&count) => {}
            (Synchronized::ForItself(readers), Err(count)) if readers.contains(&count) => {
                assert_eq!(called(|| cell.synchronize()), Called::WouldWait, "synchronize");
            }
            (expected, got) => panic!("synchronize_timeout: {got:?} instead of {expected:?}"),
        }
    }
}

/// The write lock.
impl Runner {
    pub(super) fn lock(&self, build: BuildId, writer: &mut Writer<'_>, patience: Option<Duration>) {
        let would_block = self.model.borrow().would_block(build);
        if patience.is_some() || would_block {
            let patience = patience.unwrap_or(Duration::ZERO);
            // A finalizer that the ledger has seen may not have returned yet, and without patience the lock is not waited for.
            assert!(eventually(finalizers_sleep), "the cell's own thread does not come to rest");
            let got = writer.acquire_write_lock_timeout(patience);
            match (got, self.with_events(|model| model.lock_within(build, patience))) {
                (Ok(mut lock), Locked::Over(number)) => self.check_old(lock.old(), number),
                (
                    Err(timeout),
                    Locked::StillRead(readers) | Locked::ForItself(readers) | Locked::Overtaken(readers),
                ) => assert!(
                    readers.contains(&timeout.readers),
                    "{} readers instead of {readers:?}",
                    timeout.readers
                ),
                (got, expected) => panic!("acquire_write_lock_timeout: {got:?} instead of {expected:?}"),
            }
            // A value without readers was put back in an `Arc` of its own.
            if let Some(current) = self.model.borrow().value() {
                self.ledger.moves(current);
            }
        } else {
            let expected = self.model.borrow_mut().lock(build);
            let got = called(|| {
                let mut lock = writer.acquire_write_lock();
                if let Locked::Over(number) = expected {
                    self.check_old(lock.old(), number);
                }
            });
            let expected = match expected {
                Locked::ForItself(_) => Called::WouldWait,
                Locked::Overtaken(_) => Called::Overtaken,
                Locked::Over(_) | Locked::StillRead(_) => Called::Returned(()),
            };
            assert_eq!(got, expected, "acquire_write_lock");
        }
    }

    fn check_old(&self, old: Option<&mut Token>, expected: Option<Number>) {
        assert_eq!(old.as_ref().map(|old| old.number), expected, "the old value");
        if let Some(old) = old {
            self.ledger.moves(old.number);
            self.check(old, old.number);
            // If it is put back, it moves again.
            self.ledger.moves(old.number);
        }
    }

    pub(super) fn mark(&self, build: BuildId, writer: &mut Writer<'_>) {
        let Some(number) = self.model.borrow_mut().mark(build) else { return };
        let mut lock = writer.acquire_write_lock();
        let old = lock.old().expect("it has been there");
        assert_eq!(old.number, number, "the old value");
        old.marks += 1;
    }
}

/// Waits for readers. There is no other thread that could let them leave.
impl Runner {
    /// The model makes this change, with what has happened since the last time: as much as it has reason to wait for.
    pub(super) fn with_events<R>(&self, change: impl FnOnce(&mut Model) -> R) -> R {
        let mut model = self.model.borrow_mut();
        model.has_seen(self.happened.take());
        self.is_calm.set(false);
        let changed = change(&mut model);
        model.check_events();
        changed
    }

    /// The one thread waits for readers: one of them leaves, or the time is up.
    pub(super) fn let_a_reader_leave(&self, deadline: Tick, now: Tick) {
        if !self.is_calm.replace(false) {
            // The cell's own thread may be about to do what is waited for. When it has, there is another look.
            assert!(eventually(finalizers_sleep), "the cell's own thread does not come to rest");
            self.is_calm.set(true);
            return;
        }
        let next = self.next.get();
        self.next.set(next + 1);
        let leaving = match self.meanwhile.get(next).map(Vec::as_slice) {
            Some([Operation::DropHandle(which), ..]) => take(&self.handles, *which),
            _ => None,
        };
        let event = match leaving {
            Some((number, handle)) => {
                drop::<Handle>(handle);
                Event::Left(number)
            }
            None => {
                self.clock.advance(deadline.saturating_duration_since(now));
                Event::TimeIsUp
            }
        };
        self.happened.borrow_mut().push(event);
    }
}

/// Whether the cells' own threads have nothing to do, where that can be found out.
fn finalizers_sleep() -> bool {
    let myself = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    let mine = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    threads().all(|(path, stat)| {
        // One that has just begun still has the name of the thread that has started it.
        let is_of_a_cell = is_finalizer(&stat) || name(&stat) == name(&mine);
        let is_asleep = stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" S"));
        !is_of_a_cell || is_asleep || path.file_name() == myself.file_name()
    })
}

/// The cells' own threads, where that can be found out.
pub(crate) fn finalizer_threads() -> usize {
    threads().filter(|(_, stat)| is_finalizer(stat)).count()
}

fn is_finalizer(stat: &str) -> bool {
    // The kernel keeps fifteen bytes of a name.
    name(stat) == Some("dogpile-finaliz")
}

/// The name of a thread, which stands in parentheses.
fn name(stat: &str) -> Option<&str> {
    Some(stat.split_once('(')?.1.rsplit_once(')')?.0)
}

/// The threads of this process, and what the kernel says of them: the name in parentheses, then the state.
fn threads() -> impl Iterator<Item = (PathBuf, String)> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    threads.filter_map(|thread| {
        let path = thread.ok()?.path();
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        Some((path, stat))
    })
}
