//! What the cells of this test hold: numbered tokens, and a ledger of what has become of them.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::model::Number;
use crate::panics::Planned;

/// A value. Can be neither cloned nor made a second time with the same number.
pub(crate) struct Token {
    pub(crate) number: Number,
    /// How often a build has changed it in place.
    pub(crate) marks: u32,
    ledger: Arc<Ledger>,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.ledger.lock().drops[self.number] += 1;
    }
}

/// The finalizer panics over every eighth value.
const PANICS_OVER: Number = 5;

#[derive(Default)]
pub(crate) struct Ledger {
    entries: Mutex<Entries>,
    /// A finalizer runs.
    inside: AtomicBool,
}

#[derive(Default)]
struct Entries {
    /// How often each token was dropped.
    drops: Vec<u32>,
    finalized: Vec<Finalized>,
    two_at_a_time: bool,
}

/// A call of the finalizer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finalized {
    pub(crate) number: Number,
    /// On the cell's own thread, not in a caller.
    pub(crate) on_own_thread: bool,
}

impl Ledger {
    pub(crate) fn token(self: &Arc<Self>) -> Token {
        let mut entries = self.lock();
        entries.drops.push(0);
        Token { number: entries.drops.len() - 1, marks: 0, ledger: Arc::clone(self) }
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

    pub(crate) fn alive(&self) -> BTreeSet<Number> {
        self.with_drops(|drops| drops == 0)
    }

    pub(crate) fn dropped_twice(&self) -> BTreeSet<Number> {
        self.with_drops(|drops| drops > 1)
    }

    fn with_drops(&self, condition: impl Fn(u32) -> bool) -> BTreeSet<Number> {
        let entries = self.lock();
        let numbers = entries.drops.iter().enumerate();
        numbers.filter(|(_, drops)| condition(**drops)).map(|(number, _)| number).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
