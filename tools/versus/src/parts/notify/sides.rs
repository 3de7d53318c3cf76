//! The operations of the pairs. Each yields a number: that of the value that it reads, or of the one that it has published.

use crate::contest::{Builds, Contestant, Meanwhile, Small, Source, Traits, Value};
use dogpile::{Derived, DerivedReader, DogpileCell, Hook, Policy, Reader, Subscription, SystemClock};
use futures_lite::future::{block_on, poll_once};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Not asked of a side.
const NONE: Traits = Traits { expires: false, builds: Builds::One, meanwhile: Meanwhile::Stale };

/// A side: what it is made of, its handle, and one operation.
macro_rules! side {
    (
        $Name:ident($State:ty = $new:expr), $Handle:ty = |$state:pat_param| $handle:expr,
        |$own:pat_param| $read:expr
    ) => {
        pub(super) struct $Name($State, Source<Small>);

        impl Contestant<Small> for $Name {
            type Handle<'a> = $Handle;
            const TRAITS: Traits = NONE;

            fn new(_ttl: Duration, source: Source<Small>) -> Self {
                Self($new, source)
            }

            fn source(&self) -> &Source<Small> {
                &self.1
            }

            fn handle(&self) -> Self::Handle<'_> {
                let $state = &self.0;
                $handle
            }

            #[inline(always)]
            fn read($own: &mut Self::Handle<'_>) -> u64 {
                $read
            }
        }
    };
}

type Cell = DogpileCell<Small>;
type Sender = watch::Sender<Small>;
type Receiver = watch::Receiver<Small>;

/// A value that does not expire, as those of `watch` do not.
fn cell() -> Cell {
    let cell = DogpileCell::with_policy(Policy::never_expires());
    cell.set(Small::make(1));
    cell
}

fn sender() -> Sender {
    watch::Sender::new(Small::make(1))
}

fn seen(cell: &Cell) -> Subscription<'_, Small> {
    let mut subscription = cell.subscribe();
    drop(subscription.wait_changed());
    subscription
}

side!(Get(Cell = cell()), Reader<'a, Small, SystemClock> = |cell| cell.reader(), |reader| {
    reader.get().map_or(0, |value| value.number())
});
side!(Load(Cell = cell()), &'a Cell = |cell| cell, |cell| cell.load().map_or(0, |value| value.number()));
side!(Borrow(Sender = sender()), Receiver = |sender| sender.subscribe(), |receiver| receiver
    .borrow()
    .number());
side!(BorrowAndUpdate(Sender = sender()), Receiver = |sender| sender.subscribe(), |receiver| {
    receiver.borrow_and_update().number()
});

side!(OwnHasChanged(Cell = cell()), Subscription<'a, Small> = |cell| seen(cell), |subscription| {
    u64::from(subscription.has_changed())
});
side!(WatchHasChanged(Sender = sender()), Receiver = |sender| sender.subscribe(), |receiver| {
    u64::from(receiver.has_changed().unwrap_or(true))
});

// Begins to wait and gives up, as in a `select!` that another branch wins.
side!(OwnGivenUp(Cell = cell()), Subscription<'a, Small> = |cell| seen(cell), |subscription| {
    u64::from(block_on(poll_once(subscription.changed())).is_some())
});
side!(WatchGivenUp(Sender = sender()), Receiver = |sender| sender.subscribe(), |receiver| {
    u64::from(block_on(poll_once(receiver.changed())).is_some())
});

pub(super) struct Following<'a> {
    cell: &'a Cell,
    subscription: Subscription<'a, Small>,
    number: u64,
}

side!(
    OwnRound(Cell = cell()), Following<'a> = |cell| Following { cell, subscription: seen(cell), number: 1 },
    |following| {
        following.number += 1;
        following.cell.set(Small::make(following.number));
        block_on(following.subscription.changed()).number()
    }
);

pub(super) struct Receiving<'a> {
    sender: &'a Sender,
    receiver: Receiver,
    number: u64,
}

side!(
    WatchRound(Sender = sender()), Receiving<'a> = |sender| Receiving { sender, receiver: sender.subscribe(), number: 1 },
    |receiving| {
        receiving.number += 1;
        receiving.sender.send_replace(Small::make(receiving.number));
        let changed = block_on(receiving.receiver.changed());
        changed.map_or(0, |()| receiving.receiver.borrow_and_update().number())
    }
);

/// Publishes numbers.
pub(super) struct Publishing<'a, P> {
    to: &'a P,
    number: u64,
}

fn publishing<P>(to: &P) -> Publishing<'_, P> {
    Publishing { to, number: 1 }
}

macro_rules! publishes {
    ($Name:ident($State:ty = $new:expr), |$to:ident, $value:ident| $publish:expr) => {
        side!($Name($State = $new), Publishing<'a, $State> = |state| publishing(state), |publishing| {
            publishing.number += 1;
            let ($to, $value) = (publishing.to, Small::make(black_box(publishing.number)));
            $publish
        });
    };
}

publishes!(Set(Cell = cell()), |cell, value| cell.set(value).number());
publishes!(Send(Sender = sender()), |sender, value| {
    let number = value.number();
    sender.send_replace(value);
    number
});
publishes!(
    SetFollowed((Arc<Cell>, Subscription<'static, Small>) = {
        let cell = Arc::new(cell());
        let subscription = cell.subscribe_owned();
        (cell, subscription)
    }),
    |to, value| to.0.set(value).number()
);
publishes!(
    SendFollowed(
        (Sender, Receiver) = {
            let sender = sender();
            let receiver = sender.subscribe();
            (sender, receiver)
        }
    ),
    |to, value| {
        let number = value.number();
        to.0.send_replace(value);
        number
    }
);
publishes!(
    SetHooked(
        (Cell, Hook) = {
            let (cell, latest) = (cell(), AtomicU64::new(0));
            // Relaxed: nothing reads it.
            let hook =
                cell.on_publish(move |snapshot| latest.store(snapshot.value.number(), Ordering::Relaxed));
            (cell, hook)
        }
    ),
    |to, value| to.0.set(value).number()
);
publishes!(
    SetDerived((Arc<Cell>, Derived<u64>) = {
        let cell = Arc::new(cell());
        let derived = derived(&cell);
        derived.get();
        (cell, derived)
    }),
    |to, value| to.0.set(value).number()
);

fn derived(cell: &Arc<Cell>) -> Derived<u64> {
    let cell = Arc::clone(cell);
    Derived::new(move |cx| cx.get(&cell).number())
}

/// A cell with a ttl, or without one, and a value that is made from it.
pub(super) struct Pair {
    cell: Arc<Cell>,
    derived: Derived<u64>,
}

impl Pair {
    fn new(policy: Policy) -> Self {
        let cell = Arc::new(DogpileCell::with_policy(policy));
        cell.set(Small::make(1));
        let derived = derived(&cell);
        Self { cell, derived }
    }

    fn expiring() -> Self {
        Self::new(Policy::ttl(super::super::LONG))
    }

    fn timeless() -> Self {
        Self::new(Policy::never_expires())
    }
}

side!(DerivedRead(Pair = Pair::expiring()), DerivedReader<'a, u64> = |pair| pair.derived.reader(), |reader| {
    **reader.get()
});
side!(PlainRead(Pair = Pair::expiring()), Reader<'a, Small, SystemClock> = |pair| pair.cell.reader(), |reader| {
    reader.get_or_refresh(|| Small::make(1)).number()
});
side!(DerivedGet(Pair = Pair::expiring()), &'a Derived<u64> = |pair| &pair.derived, |derived| *derived.get());
side!(PlainGet(Pair = Pair::expiring()), &'a Cell = |pair| &pair.cell, |cell| {
    cell.get_or_refresh(|| Small::make(1)).number()
});

impl DerivedRead {
    pub(super) fn timeless() -> Self {
        Self(Pair::timeless(), Source::idle())
    }
}

impl PlainRead {
    pub(super) fn timeless() -> Self {
        Self(Pair::timeless(), Source::idle())
    }
}
