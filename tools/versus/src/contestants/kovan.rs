//! kovan's `Atom`: a guard costs a fraction of arc-swap's, and replaced values stay alive for a while.

use super::{Coarse, Stamped};
use crate::contest::{Builds, Contestant, Meanwhile, Source, Traits, Value};
use kovan::AtomOption;
use std::time::Duration;

/// `kovan::AtomOption::load`. What is replaced is freed when the library does so by itself, as in its examples: without `flush`.
pub(crate) struct Kovan<V: Value> {
    slot: AtomOption<Stamped<V, Coarse>>,
    ttl: Duration,
    source: Source<V>,
}

impl<V: Value> Kovan<V> {
    #[cold]
    fn replace(&self) -> u64 {
        let value = Stamped::new(self.source.build(), self.ttl);
        let number = value.value.number();
        self.slot.store_some(value);
        number
    }
}

impl<V: Value> Contestant<V> for Kovan<V> {
    type Handle<'a> = &'a Self;
    const TRAITS: Traits = Traits { expires: true, builds: Builds::Everybody, meanwhile: Meanwhile::Waits };

    fn new(ttl: Duration, source: Source<V>) -> Self {
        Self { slot: AtomOption::none(), ttl, source }
    }

    fn source(&self) -> &Source<V> {
        &self.source
    }

    fn handle(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn read(cell: &mut &Self) -> u64 {
        if let Some(value) = cell.slot.load()
            && value.is_fresh()
        {
            return value.value.number();
        }
        cell.replace()
    }
}

#[cfg(test)]
mod tests {
    use kovan::Atom;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static ALIVE: AtomicUsize = AtomicUsize::new(0);

    struct Counted;

    impl Counted {
        fn new() -> Self {
            ALIVE.fetch_add(1, Ordering::Relaxed);
            Self
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What the page says of it.
    #[test]
    fn replaced_values_stay_alive_without_a_flush() {
        const STORES: usize = 400;
        let atom = Atom::new(Counted::new());
        for _ in 0..STORES {
            atom.store(Counted::new());
        }
        assert_eq!(ALIVE.load(Ordering::Relaxed), STORES + 1);
        kovan::flush();
        for _ in 0..STORES {
            atom.store(Counted::new());
            kovan::flush();
        }
        assert!(ALIVE.load(Ordering::Relaxed) < 10, "{ALIVE:?}");
    }
}
