//! What the cells of this test hold: numbered tokens, and a ledger that knows which of them are alive and where.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dogpile::SharedError;

use crate::model::{Fault, Kind, NOTHING_TO_KEEP, Number, PANICKED, PANICKED_AS_PLANNED};

/// A value, or what an error is made of. Can be neither cloned nor made a second time with the same number.
pub(crate) struct Token {
    pub(crate) number: Number,
    ledger: Arc<Ledger>,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.ledger.entry(self.number, |entry| entry.drops += 1);
    }
}

/// An error. Each kind is a type of its own.
pub(crate) struct Error<const PARSE: bool>(pub(crate) Token);

pub(crate) type NetworkError = Error<false>;
pub(crate) type ParseError = Error<true>;

impl<const PARSE: bool> Error<PARSE> {
    pub(crate) const KIND: Kind = if PARSE { Kind::Parse } else { Kind::Network };

    pub(crate) fn fault(&self) -> Fault {
        Fault::Error(self.0.number, Self::KIND)
    }
}

impl<const PARSE: bool> fmt::Debug for Error<PARSE> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.fault())
    }
}

impl<const PARSE: bool> fmt::Display for Error<PARSE> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error {}", self.0.number)
    }
}

impl<const PARSE: bool> std::error::Error for Error<PARSE> {}

#[derive(Default)]
pub(crate) struct Ledger {
    entries: Mutex<Vec<Entry>>,
}

struct Entry {
    is_value: bool,
    drops: u32,
    /// Where the `Arc` that holds the token was first seen.
    address: Option<usize>,
}

impl Ledger {
    pub(crate) fn value(self: &Arc<Self>) -> Token {
        self.issue(true)
    }

    pub(crate) fn error<const PARSE: bool>(self: &Arc<Self>) -> Error<PARSE> {
        Error(self.issue(false))
    }

    fn issue(self: &Arc<Self>, is_value: bool) -> Token {
        let mut entries = self.lock();
        entries.push(Entry { is_value, drops: 0, address: None });
        Token { number: entries.len() - 1, ledger: Arc::clone(self) }
    }

    /// The number of a value that a cell has handed out; it must be in the `Arc` in which it was seen before.
    pub(crate) fn number(&self, value: &Arc<Token>) -> Number {
        self.see(value.number, Arc::as_ptr(value).addr());
        value.number
    }

    /// What an error is, which must be the one that was seen under its number before.
    pub(crate) fn fault(&self, error: &SharedError) -> Fault {
        if let Some(error) = error.downcast_ref::<NetworkError>() {
            self.see_error(error)
        } else if let Some(error) = error.downcast_ref::<ParseError>() {
            self.see_error(error)
        } else {
            let text = error.to_string();
            let texts = [PANICKED, PANICKED_AS_PLANNED, NOTHING_TO_KEEP];
            let known = texts.into_iter().find(|fault| matches!(fault, Fault::Text(known) if text == *known));
            known.unwrap_or_else(|| panic!("no build can have failed with {text:?}"))
        }
    }

    fn see_error<const PARSE: bool>(&self, error: &Error<PARSE>) -> Fault {
        self.see(error.0.number, std::ptr::from_ref(error).addr());
        error.fault()
    }

    fn see(&self, number: Number, address: usize) {
        let first = self.entry(number, |entry| *entry.address.get_or_insert(address));
        assert_eq!(first, address, "token {number} has moved to another Arc");
    }

    pub(crate) fn values_alive(&self) -> BTreeSet<Number> {
        let entries = self.lock();
        let alive =
            |(number, entry): (Number, &Entry)| (entry.is_value && entry.drops == 0).then_some(number);
        entries.iter().enumerate().filter_map(alive).collect()
    }

    /// Every token that was not dropped exactly once.
    pub(crate) fn leaked(&self) -> BTreeSet<Number> {
        let entries = self.lock();
        let leaked = |(number, entry): (Number, &Entry)| (entry.drops != 1).then_some(number);
        entries.iter().enumerate().filter_map(leaked).collect()
    }

    fn entry<R>(&self, number: Number, f: impl FnOnce(&mut Entry) -> R) -> R {
        f(&mut self.lock()[number])
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
