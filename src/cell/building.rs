//! Which builds run on this thread, so that one that waits for itself is told instead of hung (G10).
//!
//! Only closures are noted: a raw [`Lease`](crate::Lease) may have been sent to another thread, and nobody can
//! know.

use std::cell::{Cell, RefCell};

use crate::sync::thread_local;

/// So many builds inside of each other are noted on the thread, without a destructor; so they are known while the thread
/// takes its thread-locals down too.
const PLACES: usize = 16;

struct Builds {
    count: Cell<usize>,
    addresses: [Cell<usize>; PLACES],
}

thread_local! {
    /// Addresses of the cells whose builds are on this thread's stack, outermost first. A cell that is being
    /// built is borrowed and does not move.
    static BUILDING: Builds = const { Builds { count: Cell::new(0), addresses: [const { Cell::new(0) }; PLACES] } };
    /// Those that did not fit.
    static MORE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Notes, as long as it lives, that this thread runs a build of a cell.
pub(crate) struct Building(());

impl Building {
    pub(crate) fn of<M>(cell: &M) -> Self {
        let address = std::ptr::from_ref(cell).addr();
        BUILDING.with(|builds| {
            let count = builds.count.replace(builds.count.get() + 1);
            match builds.addresses.get(count) {
                Some(place) => place.set(address),
                // Not if the thread takes its thread-locals down: so deep in it, nobody is told.
                None => drop(MORE.try_with(|more| more.borrow_mut().push(address))),
            }
        });
        Self(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // Builds on one thread are nested, so the last one noted is the one that ends.
        BUILDING.with(|builds| {
            let count = builds.count.get() - 1;
            builds.count.set(count);
            if count >= PLACES {
                let _ = MORE.try_with(|more| more.borrow_mut().pop());
            }
        });
    }
}

/// Whether this thread is inside a build of `cell`.
pub(crate) fn is_building<M>(cell: &M) -> bool {
    let address = std::ptr::from_ref(cell).addr();
    BUILDING.with(|builds| {
        let noted = builds.count.get().min(PLACES);
        builds.addresses[..noted].iter().any(|place| place.get() == address)
    }) || MORE.try_with(|more| more.borrow().contains(&address)).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_inside_of_each_other_are_known_until_they_end() {
        let cells = [0_u8; 2 * PLACES];
        let mut builds = Vec::new();
        for (number, cell) in cells.iter().enumerate() {
            assert!(!is_building(cell));
            builds.push(Building::of(cell));
            assert!(cells[..=number].iter().all(is_building));
        }
        while builds.pop().is_some() {
            let running = builds.len();
            assert!(cells[..running].iter().all(is_building));
            assert!(!cells[running..].iter().any(is_building));
        }
    }
}
