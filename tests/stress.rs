//! Many threads, no order: what holds whichever way they come to run.
//!
//! Values carry a number, and a checksum that a torn read would not match. Numbers are given in the order in which
//! values can be published, see [`values`], so "never goes back" is a comparison of two numbers, for readers and for
//! the finalizer.
//!
//! # `SyncReaderCell`
//!
//! Readers of every kind, who hold on for a moment or hand over to another thread, against sets, clears, builds that
//! succeed, fail and panic, and write sections that do. The finalizer poisons what it gets, and panics over some of
//! it. Checked on the way:
//!
//! * a value that is being read is alive, and nobody changes it meanwhile (G11, G12);
//! * the numbers that a thread sees do not go back, and are not smaller than what others had seen before (G3);
//! * the finalizer gets every value once, without a reader, in order, never two at a time (G11);
//! * in a write section nobody is inside, and the old value is there (G12).
//!
//! And at the end: nothing but the current value was spared, nothing is alive, and the cell's thread is gone, also if
//! the cell is dropped under its readers.
//!
//! # `DogpileCell`
//!
//! The same for values that are only dropped, with the clock of the system and windows so short that values lapse and
//! builds are superseded all the time.
//!
//! # Listeners
//!
//! Subscriptions and hooks against several publishers; a graph of derived values against two, in which a mixture would show.
//!
//! # Running it
//!
//! `DOGPILE_SEED` repeats the draws of a run, which prints its seed, though not what the scheduler does.
//! `DOGPILE_STRESS=10` takes ten times as long. A run in which a thread stands still is ended, and says
//! who was doing what.

#[path = "stress/cell.rs"]
mod cell;
#[path = "stress/chaos/mod.rs"]
mod chaos;
#[path = "stress/derived.rs"]
mod derived;
#[path = "stress/harness.rs"]
mod harness;
#[path = "stress/listeners.rs"]
mod listeners;
#[path = "stress/sync_reader.rs"]
mod sync_reader;
#[path = "stress/undertaker.rs"]
mod undertaker;
#[path = "stress/values.rs"]
mod values;
