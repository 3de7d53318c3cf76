//! Reads that never build, and writes.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use dogpile::Guard;

use super::cell::{Either, Handle, Held, either};
use super::{Reach, Runner, TestClock};
use crate::model::{Hold, Model, Number};
use crate::operations::{Keep, Peek, Set, Which};
use crate::panics::{Called, called};
use crate::tokens::Token;

impl Runner {
    pub(super) fn peek(&self, peek: Peek, keep: Keep, reach: Reach<'_, '_>) {
        let cell = self.cell();
        self.model.borrow_mut().read();
        let got = match (peek, &cell) {
            (Peek::Get, cell) => either!(cell, cell => cell.get().map(Handle::from)),
            (Peek::Snapshot, cell) => either!(cell, cell => cell.snapshot().map(|shot| shot.value.into())),
            (Peek::Load, Either::Dogpile(cell)) => cell.load().map(|guard| Guard::into_arc(guard).into()),
            (Peek::Load, Either::SyncReader(_)) => {
                let Some(Either::SyncReader(cell)) = reach.map(|borrowed| borrowed.cell) else { return };
                if self.has_too_many_guards() {
                    return;
                }
                return self.got(cell.load().map(Held::Guard), peek, Hold::Guard, keep, reach);
            }
            (Peek::GetUnlessDue, Either::Dogpile(cell)) => cell.get_unless_due().map(Handle::from),
            (Peek::GetUnlessDue, Either::SyncReader(_)) => return,
        };
        self.got(got.map(Held::Handle), peek, Hold::Arc, keep, reach);
    }

    fn got<'a>(&self, got: Option<Held<'a>>, peek: Peek, hold: Hold, keep: Keep, reach: Reach<'_, 'a>) {
        let expected = {
            let model = self.model.borrow();
            match peek {
                Peek::Get | Peek::Load => model.get(),
                Peek::GetUnlessDue => model.get_unless_due(),
                Peek::Snapshot => model.value(),
            }
        };
        assert_eq!(got.as_ref().map(|value| self.number(value)), expected, "{peek:?}");
        if let (Some(got), Some(number)) = (got, expected) {
            self.model.borrow_mut().hold(number, hold);
            self.receive(got, number, hold, keep, reach);
        }
    }

    pub(super) fn reader_get(&self, which: usize, reach: Reach<'_, '_>) {
        let Some(Ok(mut handle)) = reader(reach, which).map(RefCell::try_borrow_mut) else {
            return;
        };
        self.model.borrow_mut().read();
        let got = handle.get().map(|value| self.number(value));
        assert_eq!(got, self.model.borrow().get(), "Reader::get");
        self.kept_by_readers[which].set(got);
    }

    pub(super) fn reader_get_unless_due(&self, which: usize, reach: Reach<'_, '_>) {
        let Some(Ok(mut handle)) = reader(reach, which).map(RefCell::try_borrow_mut) else {
            return;
        };
        self.model.borrow_mut().read();
        let got = handle.get_unless_due().map(|value| self.number(value));
        assert_eq!(got, self.model.borrow().get_unless_due(), "Reader::get_unless_due");
        self.kept_by_readers[which].set(got);
    }

    pub(super) fn reader_release(&self, which: usize, reach: Reach<'_, '_>) {
        let Some(Ok(mut handle)) = reader(reach, which).map(RefCell::try_borrow_mut) else {
            return;
        };
        handle.release();
        self.kept_by_readers[which].set(None);
    }

    pub(super) fn changed(&self, keep: Keep, reach: Reach<'_, '_>) {
        let Some(borrowed) = reach else { return };
        let got: Option<Handle> = either!(&mut *borrowed.subscription.borrow_mut(), subscription => {
            subscription.wait_changed_timeout(Duration::ZERO).map(Handle::from)
        });
        let mut model = self.model.borrow_mut();
        let expected = model.published_after(self.seen.get());
        assert_eq!(
            got.as_ref().map(|value| self.number(value)),
            expected.map(|(number, _)| number),
            "changed"
        );
        let has_expired = model.get().is_none();
        model.meet(match expected {
            Some(_) if has_expired => "subscription: something newer, which has expired",
            Some(_) => "subscription: something newer",
            None => "subscription: nothing newer",
        });
        let (Some(got), Some((number, generation))) = (got, expected) else { return };
        model.read();
        model.hold(number, Hold::Arc);
        drop(model);
        self.seen.set(generation);
        self.receive(Held::Handle(got), number, Hold::Arc, keep, reach);
    }

    pub(super) fn set(&self, set: Set, keep: Keep, reach: Reach<'_, '_>) {
        let cell = self.cell();
        let (number, called) = match (set, &cell) {
            (Set::Again, Either::Dogpile(cell)) => {
                let Some(Either::Dogpile(value)) = self.present() else { return };
                (value.number, called(|| cell.set_arc(value).into()))
            }
            (Set::Shared, Either::Dogpile(cell)) => {
                let value = Arc::new(self.ledger.value());
                (value.number, called(|| cell.set_arc(value).into()))
            }
            (Set::New | Set::Shared | Set::Again, cell) => {
                let value = self.ledger.value();
                (value.number, called(|| either!(cell, cell => Handle::from(cell.set(value)))))
            }
            (Set::NewFor(ttl), cell) => {
                let value = self.ledger.value();
                (value.number, called(|| either!(cell, cell => Handle::from(cell.set_for(value, ttl)))))
            }
            (Set::Restored(age), cell) => {
                let value = self.ledger.value();
                (value.number, called(|| either!(cell, cell => Handle::from(cell.restore(value, age)))))
            }
        };
        let is_set = self.with_events(|model| match set {
            Set::New | Set::Shared | Set::Again => model.set(number, None),
            Set::NewFor(ttl) => model.set(number, Some(ttl)),
            Set::Restored(age) => model.restore(number, age),
        });
        match called {
            Called::Returned(handle) => {
                assert!(is_set, "a set from inside a section");
                self.receive(Held::Handle(handle), number, Hold::Arc, keep, reach);
            }
            Called::WouldWait => assert!(!is_set, "a set that does not have to wait panics"),
            Called::Panicked | Called::Overtaken => unreachable!("no build has been asked for"),
        }
    }

    /// The value, whether it may be served or not.
    fn present(&self) -> Option<Handle> {
        self.model.borrow_mut().read();
        either!(self.cell(), cell => cell.snapshot().map(|shot| shot.value.into()))
    }

    /// What a caller has seen, which it lets go of after the call.
    fn seen(&self, which: Which) -> Option<(Number, Handle)> {
        match which {
            Which::Present => self.present().map(|value| (self.number(&value), value)),
            Which::Kept(which) => {
                let handles = self.handles.borrow();
                let (number, handle) = handles.get(which % handles.len().max(1))?;
                Some((*number, handle.clone()))
            }
        }
    }

    pub(super) fn invalidate_if_current(&self, which: Which) {
        let Some((number, seen)) = self.seen(which) else { return };
        let expected = self.model.borrow_mut().invalidate_if_current(number);
        let got = match (self.cell(), &seen) {
            (Either::Dogpile(cell), Either::Dogpile(seen)) => cell.invalidate_if_current(seen),
            (Either::SyncReader(cell), Either::SyncReader(seen)) => cell.invalidate_if_current(seen),
            _ => unreachable!("a handle of the other kind of cell"),
        };
        assert_eq!(got, expected, "invalidate_if_current");
    }

    pub(super) fn clear(&self) {
        match self.cell() {
            Either::Dogpile(cell) => {
                let expected = self.model.borrow_mut().clear();
                assert_eq!(cell.clear().map(|value| self.number(&value)), expected, "clear");
            }
            Either::SyncReader(cell) => {
                cell.clear();
                self.with_events(Model::clear);
            }
        }
    }

    pub(super) fn clear_if_current(&self, which: Which) {
        let Some(cell) = self.dogpile() else { return };
        let Some((number, Either::Dogpile(seen))) = self.seen(which) else { return };
        let expected = self.model.borrow_mut().clear_if_current(number);
        assert_eq!(cell.clear_if_current(&seen), expected, "clear_if_current");
    }
}

/// One of the long-lived readers.
pub(super) fn reader<'b, 'a>(
    reach: Reach<'b, 'a>,
    which: usize,
) -> Option<&'b RefCell<dogpile::Reader<'a, Token, TestClock>>> {
    reach?.readers.get(which)
}
