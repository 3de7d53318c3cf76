//! The search for an order.
//!
//! Wing and Gong's: take any operation that was called before every operation that is left had returned, ask the model
//! whether it gives that answer now, and go on with the rest; if there is no way on, go back. A state of the model that has
//! been reached before with the same operations left is not tried again (Lowe's addition), which is what makes it fast
//! enough.

use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::hash::Hash;

/// A cell without threads.
pub(crate) trait Model: Clone + Eq + Hash + Debug {
    /// With its answer.
    type Operation: Debug;

    /// What comes after it, if it can have had that answer. `contended`: whether another thread's operation that changes
    /// something was under way at the same time.
    fn after(&self, operation: &Self::Operation, contended: bool) -> Option<Self>;

    fn changes_something(operation: &Self::Operation) -> bool;

    /// Whether it need not have happened: nothing tells.
    fn is_optional(operation: &Self::Operation) -> bool;
}

/// Something that a thread has done.
#[derive(Debug)]
pub(crate) struct Event<O> {
    pub(crate) thread: usize,
    pub(crate) called: u64,
    pub(crate) returned: u64,
    pub(crate) operation: O,
}

impl<O> Event<O> {
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.thread != other.thread && self.called < other.returned && other.called < self.returned
    }
}

/// No order was found.
pub(crate) struct Impossible {
    /// One of the longest beginnings that are possible, and what the cell was like after it.
    pub(crate) beginning: Vec<usize>,
    state: String,
    history: Vec<String>,
}

impl Debug for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "no order explains these answers:")?;
        for line in &self.history {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "the longest beginning of one: {:?}, and then {}", self.beginning, self.state)
    }
}

/// At most 64 events.
///
/// # Errors
///
/// If there is no order.
pub(crate) fn check<M: Model>(start: &M, events: &[Event<M::Operation>]) -> Result<(), Impossible> {
    assert!(events.len() <= 64, "a set of events is a word");
    let contended: Vec<bool> = events
        .iter()
        .map(|event| {
            events.iter().any(|other| event.overlaps(other) && M::changes_something(&other.operation))
        })
        .collect();
    let optional = (0..events.len())
        .filter(|number| M::is_optional(&events[*number].operation))
        .fold(0, |optional, number| optional | 1 << number);
    let longest = (Vec::new(), start.clone());
    let mut search = Search { events, contended, optional, tried: HashSet::new(), longest };
    let everything = if events.len() == 64 { u64::MAX } else { (1 << events.len()) - 1 };
    if search.find(start, everything, &mut Vec::new()) {
        return Ok(());
    }
    let (beginning, state) = search.longest;
    let line = |(number, event): (usize, &Event<M::Operation>)| {
        let Event { thread, called, returned, operation } = event;
        format!("{number:2}: thread {thread} [{called:3}..{returned:3}] {operation:?}")
    };
    Err(Impossible {
        beginning,
        state: format!("{state:?}"),
        history: events.iter().enumerate().map(line).collect(),
    })
}

struct Search<'a, M: Model> {
    events: &'a [Event<M::Operation>],
    contended: Vec<bool>,
    /// Which events need not have happened.
    optional: u64,
    /// Which events were left, and the state.
    tried: HashSet<(u64, M)>,
    longest: (Vec<usize>, M),
}

impl<M: Model> Search<'_, M> {
    fn find(&mut self, state: &M, left: u64, order: &mut Vec<usize>) -> bool {
        if left & !self.optional == 0 {
            return true;
        }
        if order.len() > self.longest.0.len() {
            self.longest = (order.clone(), state.clone());
        }
        let is_left = |number: &usize| left & (1 << number) != 0;
        let first_return = (0..self.events.len())
            .filter(is_left)
            .map(|number| self.events[number].returned)
            .min()
            .expect("there is one");
        for number in 0..self.events.len() {
            let event = &self.events[number];
            if !is_left(&number) || event.called > first_return {
                continue;
            }
            let Some(next) = state.after(&event.operation, self.contended[number]) else { continue };
            let rest = left & !(1 << number);
            if self.tried.contains(&(rest, next.clone())) {
                continue;
            }
            order.push(number);
            if self.find(&next, rest, order) {
                return true;
            }
            order.pop();
            self.tried.insert((rest, next));
        }
        false
    }
}
