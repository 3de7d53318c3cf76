//! Waiting for somebody else's build.

use std::fmt;
use std::time::Duration;

use crate::clock::{Clock, FOREVER, SystemClock, deadline};
use crate::error::SharedError;
use crate::sync::Arc;

use super::attempt::{Outcome, Publication};
use super::building::is_building;
use super::machine::{Awaits, Home, Machine, Wait};

#[cfg(feature = "async")]
use {
    super::attempt::TaskSeat,
    std::task::{Context, Poll},
};

/// How a wait for somebody else's build ended.
pub enum Waited<T> {
    /// A value was published while the caller waited: the newest one. It is handed over even if it has expired by now.
    Published(Arc<T>),
    /// The build that the caller waited for failed.
    Failed(SharedError),
    /// The build ended without a result (it panicked, was given back or fenced off), or has run for longer than
    /// the lease timeout: look up again.
    Abandoned,
    /// The caller is inside the build that it would have waited for.
    Reentrant,
}

impl<T> fmt::Debug for Waited<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published(_) => f.debug_tuple("Published").finish_non_exhaustive(),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
            Self::Abandoned => f.write_str("Abandoned"),
            Self::Reentrant => f.write_str("Reentrant"),
        }
    }
}

/// A place among those who wait for a build, because there is nothing that they may be served.
///
/// It has no claim on the lease and can be dropped at any time.
///
/// With the feature `async` it is a future too, on any executor: ready when the build has ended, or when it has run for
/// longer than the lease timeout. Each publish wakes all who wait, threads and tasks alike, so a wake-up that reaches a
/// task which has given up its place was not meant for another.
///
/// # Examples
///
/// ```
/// use dogpile::{DogpileCell, Lookup, Waited};
/// use std::time::Duration;
///
/// let cell = DogpileCell::new(Duration::from_secs(60));
/// let Lookup::Elected(lease) = cell.lookup() else { unreachable!("the first caller is elected") };
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         let Lookup::Pending(pending) = cell.lookup() else { return };
///         assert!(matches!(pending.wait(), Waited::Published(value) if *value == 7));
///     });
///     lease.publish(7);
/// });
/// ```
#[must_use = "nothing is waited for until `wait` is called"]
pub struct Pending<'a, T, C: Clock = SystemClock>(pub(super) Waiting<&'a Machine<T, C>>);

/// What [`Pending`] and [`OwnedPending`](crate::OwnedPending) are made of.
pub(crate) struct Waiting<H: Home> {
    home: H,
    wait: Wait<H::Value>,
    /// The place of the task that polls it.
    #[cfg(feature = "async")]
    seat: Option<TaskSeat<H::Value>>,
}

/// As [`Waited`], with what is known of the publication.
pub(super) enum Ended<T> {
    Published(Publication<T>),
    Failed(SharedError),
    Abandoned,
    Reentrant,
}

impl<T> From<Ended<T>> for Waited<T> {
    fn from(ended: Ended<T>) -> Self {
        match ended {
            Ended::Published(publication) => Self::Published(publication.value),
            Ended::Failed(error) => Self::Failed(error),
            Ended::Abandoned => Self::Abandoned,
            Ended::Reentrant => Self::Reentrant,
        }
    }
}

impl<T> From<Outcome<T>> for Ended<T> {
    fn from(outcome: Outcome<T>) -> Self {
        match outcome {
            Outcome::Published(publication) => Self::Published(publication),
            Outcome::Failed(error) => Self::Failed(error),
            Outcome::Abandoned => Self::Abandoned,
        }
    }
}

impl<H: Home> Waiting<H> {
    pub(crate) fn new(home: H, wait: Wait<H::Value>) -> Self {
        Self {
            home,
            wait,
            #[cfg(feature = "async")]
            seat: None,
        }
    }

    /// For whom the build waits that is waited for.
    pub(crate) fn awaits(&self) -> Awaits {
        self.wait.awaits
    }

    /// The moment that lies `wait` from now on the cell's clock; `None` if that is no wait at all.
    pub(super) fn deadline(&self, wait: Duration) -> Option<u64> {
        (!wait.is_zero()).then(|| deadline(&self.home.machine().clock, wait))
    }

    /// Waits until `deadline`, or only looks if there is none; `None`: the time is over.
    pub(super) fn wait_until(&self, deadline: Option<u64>) -> Option<Ended<H::Value>> {
        let machine = self.home.machine();
        if let Some(outcome) = self.wait.attempt.outcome() {
            return Some(machine.up_to_date(outcome).into());
        }
        if is_building(machine) {
            return Some(Ended::Reentrant);
        }
        let outcome = if let Some(deadline) = deadline {
            machine.counters.waits.count();
            self.wait.wait(machine, deadline)
        } else {
            (machine.now() >= self.wait.look_again_at).then_some(Outcome::Abandoned)
        };
        if outcome.is_none() {
            machine.counters.wait_timeouts.count();
        }
        outcome.map(Ended::from)
    }

    /// As [`wait_until`](Waiting::wait_until) without a deadline, for a task.
    #[cfg(feature = "async")]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended<H::Value>> {
        let Self { home, wait, seat } = self;
        let machine = home.machine();
        let ended = || wait.attempt.outcome().map(|outcome| machine.up_to_date(outcome).into());
        if let Some(ended) = ended() {
            *seat = None;
            return Poll::Ready(ended);
        }
        if is_building(machine) {
            return Poll::Ready(Ended::Reentrant);
        }
        let seat_taken = match seat {
            Some(seat) => {
                seat.renew(cx.waker());
                seat
            }
            None => {
                machine.counters.waits.count();
                seat.insert(TaskSeat::take(&wait.attempt, &machine.clock, wait.look_again_at, cx.waker()))
            }
        };
        // What was settled before the place was taken is seen now, what is settled later wakes the task.
        match ended() {
            Some(ended) => Poll::Ready(ended),
            None if seat_taken.is_over(&machine.clock, cx) => Poll::Ready(Ended::Abandoned),
            None => return Poll::Pending,
        }
        .map(|ended| {
            *seat = None;
            ended
        })
    }

    pub(crate) fn wait(&self) -> Waited<H::Value> {
        // Without a deadline there is always an end.
        self.wait_until(Some(FOREVER)).map_or(Waited::Abandoned, Waited::from)
    }

    pub(crate) fn wait_timeout(self, timeout: Duration) -> Result<Waited<H::Value>, Self> {
        self.wait_until(self.deadline(timeout)).map(Waited::from).ok_or(self)
    }
}

/// The methods of [`Pending`] and [`OwnedPending`](crate::OwnedPending), whose only field is a [`Waiting`].
macro_rules! pending_methods {
    ($Pending:ident $(<$lifetime:lifetime>)?) => {
        impl<$($lifetime,)? T, C: Clock> $Pending<$($lifetime,)? T, C> {
            /// Blocks until the build has ended.
            ///
            /// # Deadlocks
            ///
            /// A thread that holds the lease itself waits for itself; see [`Lease`](crate::Lease). Inside a
            /// build that runs as a closure this is known, and the answer is [`Waited::Reentrant`].
            pub fn wait(self) -> Waited<T> {
                self.0.wait()
            }

            /// Blocks until the build has ended, but not for longer than `timeout` on the cell's clock. With
            /// [`Duration::ZERO`] it only looks.
            ///
            /// # Errors
            ///
            /// The place among those who wait, when the time is over.
            pub fn wait_timeout(self, timeout: Duration) -> Result<Waited<T>, Self> {
                self.0.wait_timeout(timeout).map_err(Self)
            }
        }

        #[cfg(feature = "async")]
        impl<$($lifetime,)? T, C: Clock> Future for $Pending<$($lifetime,)? T, C> {
            type Output = Waited<T>;

            fn poll(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Waited<T>> {
                self.0.poll(cx).map(Waited::from)
            }
        }

        impl<$($lifetime,)? T, C: Clock> fmt::Debug for $Pending<$($lifetime,)? T, C> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($Pending)).finish_non_exhaustive()
            }
        }
    };
}
pub(super) use pending_methods;

pending_methods!(Pending<'a>);
