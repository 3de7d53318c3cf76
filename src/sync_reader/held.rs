//! Which guards this thread holds, so that it can be told when it would wait for itself.
//!
//! On the way of every read through a guard, so it is an array on the thread, without a destructor and without a
//! lock; a thread that holds more guards than fit notes the others in a list.

use std::cell::{Cell, RefCell};

use crate::sync::thread_local;

const PLACES: usize = 16;

struct Guards {
    count: Cell<usize>,
    addresses: [Cell<usize>; PLACES],
}

thread_local! {
    /// Addresses of the values whose guards this thread holds, in the order in which it took them.
    static HELD: Guards = const { Guards { count: Cell::new(0), addresses: [const { Cell::new(0) }; PLACES] } };
    /// Those that did not fit.
    static MORE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Notes a guard of the value at `address`.
#[inline]
pub(crate) fn enter(address: usize) {
    HELD.with(|held| {
        let count = held.count.get();
        match held.addresses.get(count) {
            Some(place) => {
                place.set(address);
                held.count.set(count + 1);
            }
            None => enter_more(address),
        }
    });
}

/// Notes that a guard of the value at `address` is gone.
#[inline]
pub(crate) fn leave(address: usize) {
    HELD.with(|held| {
        let last = held.count.get().wrapping_sub(1);
        if held.addresses.get(last).is_some_and(|place| place.get() == address) {
            held.count.set(last);
        } else {
            leave_out_of_order(held, address);
        }
    });
}

/// Whether `condition` holds for the address of a value of which this thread holds a guard.
pub(crate) fn any(mut condition: impl FnMut(usize) -> bool) -> bool {
    let noted =
        HELD.with(|held| held.addresses[..held.count.get()].iter().any(|place| condition(place.get())));
    noted || MORE.try_with(|more| more.borrow().iter().any(|address| condition(*address))).unwrap_or(false)
}

#[cold]
#[inline(never)]
fn enter_more(address: usize) {
    // A thread that takes its thread-locals down is not told any more.
    let _ = MORE.try_with(|more| more.borrow_mut().push(address));
}

#[cold]
#[inline(never)]
fn leave_out_of_order(held: &Guards, address: usize) {
    let taken = &held.addresses[..held.count.get()];
    if let Some(place) = taken.iter().rposition(|place| place.get() == address) {
        // Those that came later move down.
        for pair in taken[place..].windows(2) {
            pair[0].set(pair[1].get());
        }
        held.count.set(taken.len() - 1);
    } else {
        let _ = MORE.try_with(|more| {
            let mut more = more.borrow_mut();
            if let Some(place) = more.iter().rposition(|other| *other == address) {
                more.swap_remove(place);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Vec<usize> {
        let mut all = Vec::new();
        any(|address| {
            all.push(address);
            false
        });
        all.sort_unstable();
        all
    }

    #[test]
    fn guards_are_noted_in_whichever_order_they_come_and_go() {
        std::thread::spawn(|| {
            for address in 1..=20 {
                enter(address);
            }
            assert_eq!(held(), (1..=20).collect::<Vec<_>>());
            // From the middle, from those that did not fit, from the beginning; and one twice.
            for address in [7, 19, 1, 16] {
                leave(address);
            }
            enter(2);
            enter(2);
            leave(2);
            assert_eq!(held(), [2, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 20]);
            for address in held() {
                leave(address);
            }
            assert_eq!(held(), []);
            leave(99);
            assert_eq!(held(), []);
        })
        .join()
        .unwrap();
    }
}
