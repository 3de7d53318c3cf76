//! What the cells of this test hold: numbered tokens, and a ledger that knows which of them are alive and where, and what the
//! finalizer was called with.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use dogpile::SharedError;

use crate::model::{Fault, Kind, NOTHING_TO_KEEP, Number, PANICKED, PANICKED_AS_PLANNED};
use crate::panics::Planned;

/// A value, or what an error is made of. Can be neither cloned nor made a second time with the same number.
pub(crate) struct Token {
    pub(crate) number: Number,
    /// How often a build has changed it in place.
    pub(crate) marks: u32,
    ledger: Arc<Ledger>,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.ledger.lock().tokens[self.number].drops += 1;
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

/// The finalizer panics over every eighth token.
const PANICS_OVER: Number = 5;

#[derive(Default)]
pub(crate) struct Ledger {
    entries: Mutex<Entries>,
    /// A finalizer runs.
    inside: AtomicBool,
}

#[derive(Default)]
struct Entries {
    tokens: Vec<Entry>,
    finalized: Vec<Finalized>,
    two_at_a_time: bool,
}

struct Entry {
    is_value: bool,
    drops: u32,
    /// Where the token was first seen, in an `Arc` or the like.
    address: Option<usize>,
}

/// A call of the finalizer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finalized {
    pub(crate) number: Number,
    /// On the cell's own thread, not in a caller.
    pub(crate) on_own_thread: bool,
}

impl Ledger {
    pub(crate) fn value(self: &Arc<Self>) -> Token {
        self.issue(true)
    }

    pub(crate) fn error<const PARSE: bool>(self: &Arc<Self>) -> Error<PARSE> {
        Error(self.issue(false))
    }

    fn issue(self: &Arc<Self>, is_value: bool) -> Token {
        let tokens = &mut self.lock().tokens;
        tokens.push(Entry { is_value, drops: 0, address: None });
        Token { number: tokens.len() - 1, marks: 0, ledger: Arc::clone(self) }
    }

    /// The number of a value that a cell has handed out; it must be where it was seen before.
    pub(crate) fn number(&self, value: &Token) -> Number {
        self.see(value.number, std::ptr::from_ref(value).addr());
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
        let first = *self.lock().tokens[number].address.get_or_insert(address);
        assert_eq!(first, address, "token {number} has moved");
    }

    /// The token is about to be somewhere else.
    pub(crate) fn moves(&self, number: Number) {
        self.lock().tokens[number].address = None;
    }

    pub(crate) fn finalizer(self: &Arc<Self>) -> impl Fn(Token) + Send + Sync + 'static {
        let ledger = Arc::clone(self);
        move |token| {
            let overlap = ledger.inside.swap(true, Ordering::SeqCst);
            let number = token.number;
            let on_own_thread = thread::current().name() == Some("dogpile-finalizer");
            drop(token);
            // A chance for another one to come in.
            thread::yield_now();
            ledger.inside.store(false, Ordering::SeqCst);
            let mut entries = ledger.lock();
            entries.two_at_a_time |= overlap;
            // Last, so that a thread that finds this finds the rest.
            entries.finalized.push(Finalized { number, on_own_thread });
            drop(entries);
            if number % 8 == PANICS_OVER {
                resume_unwind(Box::new(Planned));
            }
        }
    }

    /// How often the finalizer has been called.
    pub(crate) fn calls(&self) -> usize {
        self.lock().finalized.len()
    }

    pub(crate) fn finalized(&self) -> Vec<Finalized> {
        self.lock().finalized.clone()
    }

    pub(crate) fn two_at_a_time(&self) -> bool {
        self.lock().two_at_a_time
    }

    pub(crate) fn is_alive(&self, number: Number) -> bool {
        self.lock().tokens[number].drops == 0
    }

    pub(crate) fn values_alive(&self) -> BTreeSet<Number> {
        self.those(|entry| entry.is_value && entry.drops == 0)
    }

    pub(crate) fn dropped_twice(&self) -> BTreeSet<Number> {
        self.those(|entry| entry.drops > 1)
    }

    /// Every token that was not dropped exactly once.
    pub(crate) fn leaked(&self) -> BTreeSet<Number> {
        self.those(|entry| entry.drops != 1)
    }

    fn those(&self, condition: impl Fn(&Entry) -> bool) -> BTreeSet<Number> {
        let entries = self.lock();
        let tokens = entries.tokens.iter().enumerate();
        tokens.filter(|(_, entry)| condition(entry)).map(|(number, _)| number).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
