//! What this thread is inside of: builds that it runs, and read guards that it holds.
//!
//! A call that would wait for the thread that makes it is refused instead of hanging (G10). Only builds that run as closures
//! are noted: a raw [`Lease`](crate::Lease) may have moved to another thread.
//!
//! Every read through a guard is noted here. So the notes are an array in a thread-local without a destructor and without a
//! lock, which also works while the thread destroys its other thread-locals. Notes that do not fit go into a list.

use std::cell::{Cell, RefCell};

use crate::sync::thread_local;

// What a note is of, in its lowest bit, which the alignment of addresses leaves free: two live objects have two addresses, but a
// value may contain a cell at its own address.
const GUARD: usize = 0;
const BUILD: usize = 1;

/// How many notes fit without an allocation.
const CAPACITY: usize = 8;

thread_local! {
    /// 0: free. Notes are made and removed in whatever order, but mostly there is one at a time, in the first place.
    static NOTES: [Cell<usize>; CAPACITY] = const { [const { Cell::new(0) }; CAPACITY] };
    static OVERFLOW: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Notes, as long as it lives, that this thread runs a build of a cell. The cell is borrowed meanwhile and does not move.
pub(crate) struct Building(usize);

impl Building {
    pub(crate) fn of<M>(cell: &M) -> Self {
        let note = note(BUILD, std::ptr::from_ref(cell).addr());
        enter(note);
        Self(note)
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        leave(self.0);
    }
}

/// Whether this thread is inside a build of `cell`.
pub(crate) fn is_building<M>(cell: &M) -> bool {
    let build = note(BUILD, std::ptr::from_ref(cell).addr());
    any(|note| note == build)
}

/// This thread takes a guard of the value at `address`.
#[inline]
pub(crate) fn guard_taken(address: usize) {
    enter(note(GUARD, address));
}

/// A guard of the value at `address` is dropped, in whatever order.
#[inline]
pub(crate) fn guard_dropped(address: usize) {
    leave(note(GUARD, address));
}

/// Whether `condition` holds for the address of a value of which this thread holds a guard.
pub(crate) fn any_guard(mut condition: impl FnMut(usize) -> bool) -> bool {
    any(|note| note & 1 == GUARD && condition(note))
}

#[inline]
fn note(kind: usize, address: usize) -> usize {
    debug_assert!(address.is_multiple_of(2), "alignment leaves the lowest bit free");
    address | kind
}

#[inline]
fn enter(note: usize) {
    NOTES.with(|all| if all[0].get() == 0 { all[0].set(note) } else { enter_beside(all, note) });
}

#[inline]
fn leave(note: usize) {
    NOTES.with(|all| if all[0].get() == note { all[0].set(0) } else { leave_beside(all, note) });
}

fn any(mut condition: impl FnMut(usize) -> bool) -> bool {
    NOTES.with(|all| all.iter().any(|note| note.get() != 0 && condition(note.get())))
        || OVERFLOW.try_with(|all| all.borrow().iter().any(|note| condition(*note))).unwrap_or(false)
}

#[inline(never)]
fn enter_beside(all: &[Cell<usize>], note: usize) {
    match all.iter().find(|place| place.get() == 0) {
        Some(free) => free.set(note),
        None => {
            // Fails while the thread destroys its thread-locals. A wait for itself is not detected then.
            let _ = OVERFLOW.try_with(|all| all.borrow_mut().push(note));
        }
    }
}

#[inline(never)]
fn leave_beside(all: &[Cell<usize>], note: usize) {
    if let Some(place) = all.iter().find(|place| place.get() == note) {
        place.set(0);
        return;
    }
    let _ = OVERFLOW.try_with(|all| {
        let mut all = all.borrow_mut();
        if let Some(place) = all.iter().rposition(|other| *other == note) {
            all.swap_remove(place);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guards() -> Vec<usize> {
        let mut all = Vec::new();
        any_guard(|address| {
            all.push(address);
            false
        });
        all.sort_unstable();
        all
    }

    #[test]
    fn guards_are_known_in_whichever_order_they_come_and_go() {
        std::thread::spawn(|| {
            for address in 1..=20 {
                guard_taken(2 * address);
            }
            assert_eq!(guards(), (1..=20).map(|address| 2 * address).collect::<Vec<_>>());
            // From the middle, from those that did not fit, from the beginning; and one twice.
            for address in [14, 38, 2, 32] {
                guard_dropped(address);
            }
            guard_taken(4);
            guard_taken(4);
            guard_dropped(4);
            assert_eq!(guards(), [4, 4, 6, 8, 10, 12, 16, 18, 20, 22, 24, 26, 28, 30, 34, 36, 40]);
            for address in guards() {
                guard_dropped(address);
            }
            assert_eq!(guards(), []);
            guard_dropped(198);
            assert_eq!(guards(), []);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn builds_inside_of_each_other_are_known_until_they_end() {
        let cells = [0_u64; 2 * CAPACITY];
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

    /// A value that begins with a cell has the address of that cell.
    #[test]
    fn a_guard_of_a_value_is_not_a_build_of_the_cell_at_its_address() {
        let cell = 0_u64;
        let address = std::ptr::from_ref(&cell).addr();
        guard_taken(address);
        assert!(!is_building(&cell));
        let build = Building::of(&cell);
        guard_dropped(address);
        assert!(is_building(&cell) && guards().is_empty());
        drop(build);
    }
}
