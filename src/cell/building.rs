//! Which builds run on this thread, so that one that waits for itself is told instead of hung (G10).
//!
//! Only closures are noted: a raw [`Lease`](crate::Lease) may have been sent to another thread, and nobody can
//! know.

use std::cell::RefCell;

use crate::sync::thread_local;

thread_local! {
    /// Addresses of the cells whose builds are on this thread's stack, outermost first. A cell that is being
    /// built is borrowed and does not move.
    static BUILDING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Notes, as long as it lives, that this thread runs a build of a cell.
pub(crate) struct Building {
    noted: bool,
}

impl Building {
    pub(crate) fn of<M>(cell: &M) -> Self {
        let address = std::ptr::from_ref(cell).addr();
        // A thread that is taking its thread-locals down can still build, only not be told if it waits for itself.
        let noted = BUILDING.try_with(|cells| cells.borrow_mut().push(address)).is_ok();
        Self { noted }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if self.noted {
            // Builds on one thread are nested, so the last one noted is the one that ends.
            let _ = BUILDING.try_with(|cells| cells.borrow_mut().pop());
        }
    }
}

/// Whether this thread is inside a build of `cell`.
pub(crate) fn is_building<M>(cell: &M) -> bool {
    let address = std::ptr::from_ref(cell).addr();
    BUILDING.try_with(|cells| cells.borrow().contains(&address)).unwrap_or(false)
}
