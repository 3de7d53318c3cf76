//! The value and the moment when it is out of date behind a lock, under which the value is built too.

use super::Timer;
use crate::contest::{Builds, Contestant, Meanwhile, Source, Traits, Value};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// One builds, since it holds the lock; everybody else waits for the lock.
const LOCKED: Traits = Traits { expires: true, builds: Builds::One, meanwhile: Meanwhile::Waits };

type Kept<V, T> = Option<(<T as Timer>::Moment, Arc<V>)>;

/// The value, if it is up to date.
#[inline]
fn fresh<V, T: Timer>(kept: Option<&(T::Moment, Arc<V>)>) -> Option<Arc<V>> {
    kept.filter(|(until, _)| T::now() < *until).map(|(_, value)| Arc::clone(value))
}

/// The value, after a second look by who holds the lock now; built if it is still out of date.
#[cold]
fn renewed<V: Value, T: Timer>(kept: &mut Kept<V, T>, source: &Source<V>, ttl: Duration) -> Arc<V> {
    fresh::<V, T>(kept.as_ref()).unwrap_or_else(|| {
        let value = Arc::new(source.build());
        *kept = Some((T::after(ttl), Arc::clone(&value)));
        value
    })
}

macro_rules! rw_lock {
    ($Name:ident, $Lock:ty, $read:expr, $write:expr) => {
        pub(crate) struct $Name<V, T: Timer> {
            kept: $Lock,
            ttl: Duration,
            source: Source<V>,
        }

        impl<V: Value, T: Timer> Contestant<V> for $Name<V, T> {
            type Handle<'a> = &'a Self;
            const TRAITS: Traits = LOCKED;

            fn new(ttl: Duration, source: Source<V>) -> Self {
                Self { kept: <$Lock>::new(None), ttl, source }
            }

            fn source(&self) -> &Source<V> {
                &self.source
            }

            fn handle(&self) -> &Self {
                self
            }

            #[inline(always)]
            fn read(cell: &mut &Self) -> u64 {
                let value = fresh::<V, T>($read(&cell.kept).as_ref());
                value
                    .unwrap_or_else(|| renewed::<V, T>(&mut $write(&cell.kept), &cell.source, cell.ttl))
                    .number()
            }
        }
    };
}

rw_lock!(
    StdRwLock,
    RwLock<Kept<V, T>>,
    |lock| RwLock::read(lock).unwrap_or_else(PoisonError::into_inner),
    |lock| RwLock::write(lock).unwrap_or_else(PoisonError::into_inner)
);
rw_lock!(
    ParkingLotRwLock,
    parking_lot::RwLock<Kept<V, T>>,
    parking_lot::RwLock::read,
    parking_lot::RwLock::write
);

macro_rules! mutex {
    ($Name:ident, $Lock:ty, $lock:expr) => {
        pub(crate) struct $Name<V, T: Timer> {
            kept: $Lock,
            ttl: Duration,
            source: Source<V>,
        }

        impl<V: Value, T: Timer> Contestant<V> for $Name<V, T> {
            type Handle<'a> = &'a Self;
            const TRAITS: Traits = LOCKED;

            fn new(ttl: Duration, source: Source<V>) -> Self {
                Self { kept: <$Lock>::new(None), ttl, source }
            }

            fn source(&self) -> &Source<V> {
                &self.source
            }

            fn handle(&self) -> &Self {
                self
            }

            #[inline(always)]
            fn read(cell: &mut &Self) -> u64 {
                let mut kept = $lock(&cell.kept);
                let value = match fresh::<V, T>(kept.as_ref()) {
                    Some(value) => value,
                    None => renewed::<V, T>(&mut kept, &cell.source, cell.ttl),
                };
                drop(kept);
                value.number()
            }
        }
    };
}

mutex!(StdMutex, Mutex<Kept<V, T>>, |lock| Mutex::lock(lock).unwrap_or_else(PoisonError::into_inner));
mutex!(ParkingLotMutex, parking_lot::Mutex<Kept<V, T>>, parking_lot::Mutex::lock);
