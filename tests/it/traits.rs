//! Which types may be sent, shared and carried across a panic; decided, not left to chance.

use std::cell::Cell;
use std::panic::{RefUnwindSafe, UnwindSafe};

use dogpile::markers::{InCaller, SpawnWith};
use dogpile::{
    Change, Cx, Derived, DerivedReader, DogpileCell, DrainTimeout, Freshness, Guard, Hook, Job, LazyDogpile,
    LazyReader, Lease, Local, Lookup, ManualClock, Owned, Pending, Policy, PublishOutcome, Published,
    ReadGuard, Reader, ReaderArc, RefreshError, Refreshed, Request, SharedError, Snapshot, Stats,
    Subscription, SyncReaderCell, SystemClock, Tick, TickClock, Waited,
};

fn send<T: Send>() {}
fn sync<T: Sync>() {}
fn unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}

/// Whether a type implements a trait, as a constant: the inherent one is found first where its bound holds.
macro_rules! implements {
    ($type:ty: $bound:path) => {{
        #[allow(dead_code)]
        trait Otherwise {
            const HOLDS: bool = false;
        }
        impl<T: ?Sized> Otherwise for T {}
        struct Probe<T: ?Sized>(std::marker::PhantomData<T>);
        #[allow(dead_code)]
        impl<T: ?Sized + $bound> Probe<T> {
            const HOLDS: bool = true;
        }
        <Probe<$type>>::HOLDS
    }};
}

/// A value without any trait: nothing of the crate needs `Debug` or `Clone`.
struct Opaque;

#[test]
fn what_can_be_sent_and_shared() {
    macro_rules! both {
        ($($type:ty),* $(,)?) => { $( send::<$type>(); sync::<$type>(); )* };
    }
    both!(
        DogpileCell<Opaque>,
        DogpileCell<Opaque, ManualClock>,
        LazyDogpile<Opaque>,
        LazyReader<'static, Opaque>,
        Local<Opaque>,
        Local<Opaque, Result<Opaque, RefreshError>, TickClock>,
        Lease<'static, Opaque>,
        Pending<'static, Opaque>,
        Lookup<'static, Opaque>,
        Waited<Opaque>,
        Published<Opaque>,
        PublishOutcome,
        Refreshed<Opaque>,
        Request<'static, Opaque>,
        Request<'static, Opaque, SystemClock, LazyDogpile<Opaque>>,
        Request<'static, Opaque, SystemClock, SyncReaderCell<Opaque>>,
        Request<'static, Opaque, SystemClock, DogpileCell<Opaque>, SpawnWith<fn(Job)>>,
        InCaller,
        Guard<'static, Opaque>,
        Reader<'static, Opaque>,
        Owned<Opaque>,
        Snapshot<Opaque>,
        Subscription<'static, Opaque>,
        Subscription<'static, Opaque, SystemClock, LazyDogpile<Opaque>>,
        Subscription<'static, Opaque, SystemClock, SyncReaderCell<Opaque>>,
        Hook,
        Change<Opaque>,
        Derived<Opaque>,
        Derived<Opaque, ManualClock>,
        DerivedReader<'static, Opaque>,
        Cx,
        RefreshError,
        SharedError,
        Policy,
        Freshness,
        Stats,
        Tick,
        SystemClock,
        TickClock,
        ManualClock,
        SyncReaderCell<Opaque>,
        ReaderArc<Opaque>,
        DrainTimeout,
    );
}

#[test]
fn a_cell_is_no_more_shareable_than_its_value() {
    assert!(implements!(DogpileCell<u32>: Sync));
    assert!(!implements!(DogpileCell<Cell<u32>>: Sync));
    assert!(!implements!(DogpileCell<Cell<u32>>: Send));
    assert!(!implements!(Lease<'static, Cell<u32>>: Send));
    assert!(!implements!(Guard<'static, Cell<u32>>: Send));
    assert!(!implements!(Reader<'static, std::rc::Rc<u32>>: Send));
    assert!(!implements!(Owned<Cell<u32>>: Send));
    assert!(!implements!(ReaderArc<Cell<u32>>: Send));
    assert!(!implements!(Subscription<'static, Cell<u32>>: Send));
    assert!(!implements!(Change<Cell<u32>>: Send));
    assert!(!implements!(Derived<Cell<u32>>: Send));
    // A guard stays on its thread, so that a thread that would wait for itself is found out.
    assert!(!implements!(ReadGuard<'static, u32>: Send));
}

#[test]
fn a_cell_may_be_carried_across_a_panic_if_its_value_may() {
    unwind_safe::<DogpileCell<Opaque>>();
    unwind_safe::<&DogpileCell<Opaque>>();
    unwind_safe::<LazyDogpile<Opaque>>();
    unwind_safe::<Reader<'static, Opaque>>();
    unwind_safe::<Owned<Opaque>>();
    unwind_safe::<Lease<'static, Opaque>>();
    unwind_safe::<SyncReaderCell<Opaque>>();
    unwind_safe::<Derived<Opaque>>();
    unwind_safe::<Hook>();
    unwind_safe::<Subscription<'static, Opaque>>();
    unwind_safe::<RefreshError>();
    assert!(!implements!(DogpileCell<Cell<u32>>: UnwindSafe));
    assert!(!implements!(DogpileCell<Cell<u32>>: RefUnwindSafe));
}

#[test]
fn clocks_of_the_system_take_no_space() {
    assert_eq!(size_of::<SystemClock>(), 0);
    assert_eq!(size_of::<TickClock>(), 0);
    assert_eq!(size_of::<DogpileCell<u64, TickClock>>(), size_of::<DogpileCell<u64>>());
}

#[test]
fn values_need_neither_debug_nor_clone() {
    let cell = DogpileCell::new(std::time::Duration::from_secs(60));
    assert!(cell.try_get_or_refresh(|| Err::<Opaque, _>("no")).is_err());
    assert!(cell.request().no_cache().try_get(|| Ok::<Opaque, String>(Opaque)).is_ok());
    let snapshot = cell.snapshot();
    let _ = format!("{cell:?} {snapshot:?} {:?}", cell.request());
    drop((cell.request().clone(), snapshot.clone()));
}

/// The bounds of the calls, not of the types: a struct that keeps a subscription needs only what it names itself.
#[test]
fn a_struct_may_keep_a_subscription_of_a_value_of_any_type() {
    #[allow(dead_code)] // it is to compile
    struct Follower<T: 'static> {
        cell: Subscription<'static, T>,
        derived: dogpile::DerivedSubscription<T>,
    }
    assert!(size_of::<Follower<std::rc::Rc<u32>>>() > 0);
}
