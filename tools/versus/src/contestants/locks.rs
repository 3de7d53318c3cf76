//! The value and the moment when it is out of date behind a lock, under which the value is built too.

use crate::contest::{Builds, Contestant, Meanwhile, Source, Traits, Value};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// One builds, since it holds the lock; everybody else waits for the lock.
const LOCKED: Traits = Traits { expires: true, builds: Builds::One, meanwhile: Meanwhile::Waits };

type Kept<V> = Option<(Instant, Arc<V>)>;

/// The value, if it is up to date.
#[inline]
fn fresh<V>(kept: Option<&(Instant, Arc<V>)>) -> Option<Arc<V>> {
    kept.filter(|(until, _)| Instant::now() < *until).map(|(_, value)| Arc::clone(value))
}

/// The value, after a second look by who holds the lock now; built if it is still out of date.
#[cold]
fn renewed<V: Value>(kept: &mut Kept<V>, source: &Source<V>, ttl: Duration) -> Arc<V> {
    fresh(kept.as_ref()).unwrap_or_else(|| {
        let value = Arc::new(source.build());
        *kept = Some((Instant::now() + ttl, Arc::clone(&value)));
        value
    })
}

macro_rules! rw_lock {
    ($Name:ident, $Lock:ty, $read:expr, $write:expr) => {
        pub(crate) struct $Name<V> {
            kept: $Lock,
            ttl: Duration,
            source: Source<V>,
        }

        impl<V: Value> Contestant<V> for $Name<V> {
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
                let value = fresh($read(&cell.kept).as_ref());
                value.unwrap_or_else(|| renewed(&mut $write(&cell.kept), &cell.source, cell.ttl)).number()
            }
        }
    };
}

rw_lock!(
    StdRwLock,
    RwLock<Kept<V>>,
    |lock| RwLock::read(lock).unwrap_or_else(PoisonError::into_inner),
    |lock| RwLock::write(lock).unwrap_or_else(PoisonError::into_inner)
);
rw_lock!(
    ParkingLotRwLock,
    parking_lot::RwLock<Kept<V>>,
    parking_lot::RwLock::read,
    parking_lot::RwLock::write
);

macro_rules! mutex {
    ($Name:ident, $Lock:ty, $lock:expr) => {
        pub(crate) struct $Name<V> {
            kept: $Lock,
            ttl: Duration,
            source: Source<V>,
        }

        impl<V: Value> Contestant<V> for $Name<V> {
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
                let value = match fresh(kept.as_ref()) {
                    Some(value) => value,
                    None => renewed(&mut kept, &cell.source, cell.ttl),
                };
                drop(kept);
                value.number()
            }
        }
    };
}

mutex!(StdMutex, Mutex<Kept<V>>, |lock| Mutex::lock(lock).unwrap_or_else(PoisonError::into_inner));
mutex!(ParkingLotMutex, parking_lot::Mutex<Kept<V>>, parking_lot::Mutex::lock);
