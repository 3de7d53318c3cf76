//! How builds run: with a heart-beat, and with a lease that is given back if they panic or are dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dogpile::{BoxError, Clock, Lease, Refreshed, SharedError};

use super::conclude::Prepared;
use super::state::Began;
use super::{Node, Ticket};
use crate::cell::build::{BuildContext, Building, Made};
use crate::cell::job::{Beat, Job};

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Runs a build.
    pub(crate) fn build<E: Into<BoxError>>(
        self: &Arc<Self>,
        ticket: Ticket<T, C>,
        build: impl FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    ) -> Result<Arc<T>, SharedError> {
        let mut running = Running::new(self, ticket, false);
        let result = running.run(build);
        let Some(ticket) = running.ticket.take() else { unreachable!("taken only here") };
        running.stop_beat();
        match result {
            Ok(made) => Ok(match self.prepare(ticket, made, running.began, false) {
                Prepared::Published(value) => value,
                Prepared::Deliver(concluding, delivery) => {
                    let late = Arc::clone(&concluding.late);
                    let delivered = self.hand_over(|reply| Job::Deliver(delivery, late, reply));
                    self.conclude(concluding, delivered.wait(self.policy.patience))
                }
            }),
            Err(error) => {
                let pause = self.pauses(&ticket);
                if let Some(won) = &ticket.won {
                    let ended = self.hand_over_end(won.token, pause);
                    let _ = ended.wait(self.policy.patience);
                }
                Err(self.fail(ticket, error))
            }
        }
    }

    /// The same, with a build that is a future.
    #[cfg(feature = "async")]
    pub(crate) async fn build_async<E, F>(
        self: &Arc<Self>,
        ticket: Ticket<T, C>,
        build: F,
    ) -> Result<Arc<T>, SharedError>
    where
        E: Into<BoxError>,
        F: AsyncFnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        let mut running = Running::new(self, ticket, true);
        let result = {
            let context = running.context();
            let address = self.address();
            let mut build = std::pin::pin!(build(&context));
            let result = std::future::poll_fn(|task| {
                // Each time it is polled, and only then, this thread builds.
                let _building = Building::of(address);
                running.is_panic_of_build(|| build.as_mut().poll(task))
            })
            .await;
            let _building = Building::of(address);
            running.is_panic_of_build(|| context.made(result))
        };
        let Some(ticket) = running.ticket.take() else { unreachable!("taken only here") };
        running.stop_beat();
        let began = running.began;
        match result {
            Ok(made) => match self.prepare(ticket, made, began, true) {
                Prepared::Published(value) => Ok(value),
                Prepared::Deliver(concluding, delivery) => {
                    let late = Arc::clone(&concluding.late);
                    let delivered = self.hand_over(|reply| Job::Deliver(delivery, late, reply));
                    let answer = delivered.wait_async(self.policy.patience).await;
                    Ok(self.conclude(concluding, answer))
                }
            },
            Err(error) => {
                let pause = self.pauses(&ticket);
                if let Some(won) = &ticket.won {
                    let ended = self.hand_over_end(won.token, pause);
                    let _ = ended.wait_async(self.policy.patience).await;
                }
                Err(self.fail(ticket, error))
            }
        }
    }

    /// The pause after a build that has failed. It runs here from now on.
    pub(super) fn pauses(&self, ticket: &Ticket<T, C>) -> Duration {
        let pause = self.policy.pause(ticket.won.as_ref().map_or(1, |won| won.failures.saturating_add(1)));
        self.set_backoff(pause);
        pause
    }

    pub(super) fn fail(&self, ticket: Ticket<T, C>, error: BoxError) -> SharedError {
        self.access.counters.failed.count();
        match ticket.lease {
            Some(lease) => lease.fail(error),
            None => SharedError::new(error),
        }
    }
}

/// A build that runs. If it panics, the store is told and the lease given back.
struct Running<'a, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    node: &'a Arc<Node<T, C>>,
    ticket: Option<Ticket<T, C>>,
    began: Began,
    done: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
    /// The build's own code runs, or has panicked.
    in_build: AtomicBool,
    /// Not a thread, which may be kept waiting.
    is_task: bool,
}

impl<'a, T, C> Running<'a, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    fn new(node: &'a Arc<Node<T, C>>, ticket: Ticket<T, C>, is_task: bool) -> Self {
        let began = node.clock.now();
        let won = ticket.won.as_ref().map(|won| won.token.epoch());
        let running = Self {
            node,
            began: node.with(|state| Began { epoch: won.or(state.epoch), after: state.invalidations }),
            ticket: Some(ticket),
            done: Arc::new(AtomicBool::new(false)),
            lost: Arc::new(AtomicBool::new(false)),
            in_build: AtomicBool::new(false),
            is_task,
        };
        if let Some(won) = running.ticket.as_ref().and_then(|ticket| ticket.won.as_ref()) {
            let policy = &node.policy;
            node.submit(Job::Beat(Beat {
                token: won.token,
                next: began.saturating_add(policy.lease / 3),
                stop: began.saturating_add(policy.build_limit),
                done: Arc::clone(&running.done),
                lost: Arc::clone(&running.lost),
            }));
        }
        running
    }

    fn context(&self) -> BuildContext<'_, T> {
        let ticket = self.ticket.as_ref();
        let won = ticket.and_then(|ticket| ticket.won.as_ref());
        let local = ticket.and_then(|ticket| ticket.lease.as_ref()).and_then(Lease::previous);
        BuildContext::new(
            won.map(|won| won.token.fence),
            won.map_or(local, |won| won.previous.as_ref()),
            won.and_then(|won| won.tag.as_deref()),
            &self.lost,
        )
    }

    fn run<E: Into<BoxError>>(
        &self,
        build: impl FnOnce(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    ) -> Result<Made<T>, BoxError> {
        let context = self.context();
        // The conversion of the error is the user's code too, which may ask the cell.
        let _building = Building::of(self.node.address());
        self.is_panic_of_build(|| context.made(build(&context)))
    }

    /// Runs code of the build. A panic of it is one of the build; a task can also be dropped by a panic that it has nothing to do
    /// with.
    fn is_panic_of_build<R>(&self, code: impl FnOnce() -> R) -> R {
        // Relaxed: whoever drops this owns it, and what hands a task over between threads orders this too.
        self.in_build.store(true, Ordering::Relaxed);
        let result = code();
        self.in_build.store(false, Ordering::Relaxed);
        result
    }

    fn stop_beat(&self) {
        // Relaxed: it carries nothing; a beat too many is refused or does no harm.
        self.done.store(true, Ordering::Relaxed);
    }
}

impl<T, C> Drop for Running<'_, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    fn drop(&mut self) {
        self.stop_beat();
        if let Some(ticket) = self.ticket.take() {
            let (node, panicked) = (self.node, *self.in_build.get_mut());
            if panicked {
                node.access.counters.panicked.count();
            }
            if self.is_task && !panicked {
                // The worker tells the store.
                if let Some(won) = ticket.won {
                    node.orphaned(won.token);
                }
                return;
            }
            let pause = node.pauses(&ticket);
            if let Some(won) = ticket.won {
                let ended = node.hand_over_end(won.token, pause);
                // A task does not wait for it here.
                if !self.is_task {
                    let _ = ended.wait(node.policy.patience);
                }
            }
        }
    }
}
