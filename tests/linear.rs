//! Whether what threads saw of a cell can have happened in one order.
//!
//! Each round, four threads do eight operations each on a cell of their own, and note what they asked, what they got, and
//! when: between which two numbers of one counter. Then the [`checker`] looks for an order of all operations that keeps to
//! these times (what had returned before another was called comes before it) and in which every answer is the one that the
//! [`model`], a cell without threads, gives. If there is none, two threads have seen two stories.
//!
//! So this checks what the promises G1, G3 and G4 say of sets, publications, invalidations, clears and reads *together*, not
//! each on its own. In the rounds of [`subscribers`], some threads only follow the cell, and wait for what is published next.
//! Time does not pass in it, and no caller waits for a build: that is what `tests/stress.rs` and the state machine tests are for. Since the counter orders the threads more than they would be otherwise, it finds errors of the protocol, not of
//! memory orderings.
//!
//! `DOGPILE_SEED` and `DOGPILE_STRESS` as in `tests/stress.rs`.

#[path = "linear/cells.rs"]
mod cells;
#[path = "linear/checker.rs"]
mod checker;
#[allow(dead_code)] // what the stress tests alone use
#[path = "stress/harness.rs"]
mod harness;
#[path = "linear/model.rs"]
mod model;
#[path = "linear/rounds.rs"]
mod rounds;
#[path = "linear/subscribers.rs"]
mod subscribers;
