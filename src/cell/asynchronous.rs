//! The loops around a lookup, for tasks; and builds that are futures.
//!
//! What a task waits for is a place among the waiters, like a thread's: the same publish wakes both. A future that is
//! dropped gives back what it holds at that point, a place or the lease, since both are RAII values in it.

use std::panic::Location;
use std::pin::{Pin, pin};
use std::task::Poll;

use crate::error::RefreshError;
use crate::sync::Arc;

use super::lease::Held;
use super::machine::{Decision, Demand, Home};
use super::pending::{Ended, Waiting};
use super::refresh::{Turn, Verdict, reentrant};

/// Waits for the end of a build.
async fn end<H: Home>(mut waiting: Waiting<H>) -> Ended<H::Value> {
    std::future::poll_fn(|cx| waiting.poll(cx)).await
}

/// As [`turn`](super::refresh::turn), for a task. `called`: where, for the message of a panic.
pub(crate) async fn turn_async<H: Home>(
    home: H,
    demand: Demand,
    name: &str,
    called: &'static Location<'static>,
) -> Turn<H> {
    loop {
        let pending = match home.machine().lookup(demand) {
            Decision::Fresh(value) | Decision::Stale(value) => return Turn::Served(value),
            Decision::Elected(ticket) => return Turn::Elected(Held::new(home, ticket)),
            Decision::Pending(wait) => Waiting::new(home.machine(), wait),
            // No demand but `Servable` is answered so.
            Decision::Failed(_) => continue,
        };
        match demand.weigh(end(pending).await) {
            Verdict::Served(value) => return Turn::Served(value),
            Verdict::Reentrant => reentrant(format_args!("{name}, at {called},")),
            Verdict::LookAgain => {}
        }
    }
}

/// As [`try_turn`](super::refresh::try_turn), for a task, which sets itself a limit by other means.
pub(crate) async fn try_turn_async<H: Home, E: Send + Sync + 'static>(
    home: H,
) -> Result<Turn<H>, RefreshError<E>> {
    let mut demand = Demand::Servable;
    loop {
        let error = match home.machine().lookup(demand) {
            Decision::Fresh(value) | Decision::Stale(value) => return Ok(Turn::Served(value)),
            Decision::Elected(ticket) => return Ok(Turn::Elected(Held::new(home, ticket))),
            Decision::Failed(error) => error,
            Decision::Pending(wait) => match end(Waiting::new(home.machine(), wait)).await {
                Ended::Published(publication) => return Ok(Turn::Served(publication.value)),
                Ended::Reentrant => return Err(RefreshError::Reentrant),
                Ended::Abandoned => continue,
                Ended::Failed(error) => error,
            },
        };
        match home.machine().instead_of(error) {
            Ok(value) => return Ok(Turn::Served(value)),
            Err(Some(error)) => return Err(RefreshError::Build(error)),
            // As there.
            Err(None) => demand = Demand::Value,
        }
    }
}

impl<H: Home> Held<H> {
    /// As [`run`](Held::run), for a build that is a future: each time it is polled, and only then, this thread builds.
    pub(crate) async fn run_async<F: Future>(&self, build: impl FnOnce() -> F) -> F::Output {
        /// The build; dropped inside too, whether it has ended or not, since what it holds may ask the cell.
        struct Build<'a, H: Home, F> {
            held: &'a Held<H>,
            future: Pin<&'a mut Option<F>>,
        }
        impl<H: Home, F> Drop for Build<'_, H, F> {
            fn drop(&mut self) {
                let _inside = self.held.inside();
                self.future.set(None);
            }
        }
        let future = pin!(Some(self.run(build)));
        let mut build = Build { held: self, future };
        std::future::poll_fn(move |cx| -> Poll<F::Output> {
            let _inside = build.held.inside();
            match build.future.as_mut().as_pin_mut() {
                Some(future) => future.poll(cx),
                None => unreachable!("it is there until it is dropped"),
            }
        })
        .await
    }

    /// As [`build`](Held::build), for a build that is a future.
    pub(crate) async fn build_async<F: Future<Output = H::Value>>(
        self,
        build: impl FnOnce() -> F,
    ) -> Arc<H::Value> {
        let value = self.run_async(build).await;
        self.publish(value, None)
    }

    /// As [`try_build`](Held::try_build), for a build that is a future.
    pub(crate) async fn try_build_async<E, F>(
        self,
        build: impl FnOnce() -> F,
    ) -> Result<Arc<H::Value>, Arc<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<H::Value, E>>,
    {
        match self.run_async(build).await {
            Ok(value) => Ok(self.publish(value, None)),
            Err(error) => Err(self.fail(error)),
        }
    }
}

impl<H: Home> Turn<H> {
    /// As [`build`](Turn::build), with a build that is a future.
    pub(crate) async fn build_async<F: Future<Output = H::Value>>(
        self,
        build: impl FnOnce() -> F,
    ) -> Arc<H::Value> {
        match self {
            Self::Served(value) => value,
            Self::Elected(held) => held.build_async(build).await,
        }
    }
}
