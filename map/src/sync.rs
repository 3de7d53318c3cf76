//! The primitives whose order the protocol of [`flight`](crate::flight) depends on. A model checker replaces them, as it does
//! those of the crate `dogpile`.
//!
//! | `--cfg` | primitives | file |
//! |---|---|---|
//! | none | std, `parking_lot` | `real.rs` |
//! | `dogpile_loom`, `dogpile_shuttle` | the checker's | `checked.rs` |
//!
//! Not replaced: statistics, the queue and the thread of [`batches`](crate::batches), and the store, whose locks no thread holds
//! at a point where a checker may switch. To a checker each operation of the store is one step. The models are in `models/`.

#[cfg(any(dogpile_loom, dogpile_shuttle))]
mod checked;
#[cfg(not(any(dogpile_loom, dogpile_shuttle)))]
mod real;

#[cfg(any(dogpile_loom, dogpile_shuttle))]
pub(crate) use checked::*;
#[cfg(not(any(dogpile_loom, dogpile_shuttle)))]
pub(crate) use real::*;
