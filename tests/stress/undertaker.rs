//! The finalizer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::harness::{Random, lock, panic_as_planned};
use crate::values::{Life, Value};

/// It cannot panic where it finds a fault, since the cell contains its panics.
#[derive(Default)]
pub(crate) struct Undertaker {
    /// Whether somebody buries. Not told by the lock below, which others take to look.
    at_work: AtomicBool,
    register: Mutex<Register>,
    faults: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Register {
    /// The number of the latest value that was known to have been in the cell.
    latest: u64,
    in_order: u64,
    lives: Vec<Arc<Life>>,
}

impl Undertaker {
    pub(crate) fn bury(&self, value: Value) {
        let number = value.number();
        let life = Arc::clone(&value.life);
        if self.at_work.swap(true, Ordering::SeqCst) {
            self.fault(format!("value {number} is finalised while another one is"));
        }
        let mut register = lock(&self.register);
        if life.is_over.swap(true, Ordering::SeqCst) {
            self.fault(format!("value {number} is finalised twice"));
        }
        let readers = life.readers.load(Ordering::SeqCst);
        if readers != 0 {
            self.fault(format!("value {number} is finalised under {readers} readers"));
        }
        if life.is_published.load(Ordering::SeqCst) {
            if number <= register.latest {
                self.fault(format!("value {number} is finalised after value {}", register.latest));
            }
            register.latest = number;
            register.in_order += 1;
        }
        register.lives.push(life);
        drop(value);
        let mut random = Random::new(number);
        random.dawdle();
        drop(register);
        self.at_work.store(false, Ordering::SeqCst);
        if random.one_in(50) {
            panic_as_planned();
        }
    }

    fn fault(&self, fault: String) {
        lock(&self.faults).push(fault);
    }

    /// How many values have been finalised.
    pub(crate) fn count(&self) -> u64 {
        lock(&self.register).lives.len() as u64
    }

    /// How many of them were known to have been in the cell.
    pub(crate) fn in_order(&self) -> u64 {
        lock(&self.register).in_order
    }

    #[track_caller]
    pub(crate) fn check(&self) {
        assert_eq!(*lock(&self.faults), Vec::<String>::new());
    }
}
