//! What a node's worker does for others, and how it is handed over.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dogpile::{Clock, Lease, Tick};

use super::node::{Caller, Delivered, Delivery, Late, Node, Step};
use super::reply::{Awaited, NoAnswer, Reply, reply};
use crate::draw;
use crate::store::Token;
#[cfg(feature = "async")]
use crate::store::{Invalidation, StoreError};

/// Those that have a reply talk to the store, for a caller that may run out of patience or that is a task.
pub(crate) enum Job<T: 'static, C: Clock + 'static> {
    Watch(Watch<T, C>),
    Beat(Beat),
    /// A caller waits.
    Kick,
    /// Look at what is watched: this node has changed what is in the store. Or look once more, if the last look was too early.
    Look,
    /// An election. If nobody waits for it any more, whatever it comes to is kept for the next caller.
    Elected(Lease<'static, T, C>, Caller, Reply<Step<T, C>>),
    /// An election ahead of expiry, for a value that is fresh for no longer than this.
    #[cfg(feature = "async")]
    Ahead(Duration, Reply<Step<T, C>>),
    /// A build to be published, whose caller may have gone when the answer is there.
    Deliver(Delivery, Arc<Late>, Reply<Delivered>),
    /// A build that has ended without a value.
    End(Token, Duration, Reply<()>),
    #[cfg(feature = "async")]
    Invalidate(Invalidation, Reply<Result<(), Arc<StoreError>>>),
    #[cfg(feature = "async")]
    Check(Reply<Result<(), Arc<StoreError>>>),
}

/// The local lease, held while another node builds, a pause runs or the store is down.
pub(crate) struct Watch<T: 'static, C: Clock + 'static> {
    pub(crate) lease: Lease<'static, T, C>,
    /// When to look next.
    pub(crate) next: Tick,
    pub(crate) pause: Duration,
    /// Nobody builds: a pause runs, or this node has something newer than the store.
    pub(crate) is_idle: bool,
}

impl<T: 'static, C: Clock + 'static> Watch<T, C> {
    /// To be looked after soon, when `left` is over at the latest.
    pub(crate) fn new(lease: Lease<'static, T, C>, now: Tick, left: Duration, is_idle: bool) -> Self {
        Self { lease, next: now, pause: Duration::from_millis(2), is_idle }.later(now, left)
    }

    /// The same, to be looked after later, but when `left` is over at the latest.
    pub(crate) fn later(mut self, now: Tick, left: Duration) -> Self {
        let pause = draw::around(self.pause, 20).min(left.saturating_add(Duration::from_millis(1)));
        self.next = now.saturating_add(pause);
        self.pause = (self.pause * 2).min(Duration::from_secs(5));
        self
    }
}

/// A lease in the store to be prolonged.
pub(crate) struct Beat {
    pub(crate) token: Token,
    pub(crate) next: Tick,
    pub(crate) stop: Tick,
    pub(crate) done: Arc<AtomicBool>,
    pub(crate) lost: Arc<AtomicBool>,
}

impl<T, C> Node<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    /// Has the worker do something, whatever becomes of the caller. Where no thread can be had it is done here and now.
    pub(crate) fn hand_over<R>(self: &Arc<Self>, job: impl FnOnce(Reply<R>) -> Job<T, C>) -> Awaited<R> {
        let (reply, awaited) = reply();
        self.submit(job(reply));
        awaited
    }

    /// The same, without an answer. Returns whether there is a thread.
    pub(crate) fn submit(self: &Arc<Self>, job: Job<T, C>) -> bool {
        let not_taken = self.mailbox.submit(job);
        let is_taken = not_taken.is_empty();
        for job in not_taken {
            self.carry_out(job);
        }
        is_taken
    }

    /// Has the worker tell the store that a build has ended without a value.
    pub(crate) fn hand_over_end(self: &Arc<Self>, token: Token, pause: Duration) -> Awaited<()> {
        self.hand_over(|reply| Job::End(token, pause, reply))
    }

    pub(crate) fn carry_out(self: &Arc<Self>, job: Job<T, C>) {
        match job {
            Job::Elected(lease, caller, reply) => {
                if let Some(step) = reply.send(self.elected(lease, caller)) {
                    self.unclaimed(step);
                }
            }
            #[cfg(feature = "async")]
            Job::Ahead(ahead, reply) => {
                if let Some(step) = reply.send(self.elected_ahead(ahead)) {
                    self.unclaimed(step);
                }
            }
            Job::Deliver(delivery, late, reply) => {
                if let Some(delivered) = reply.send(self.deliver_build(&delivery)) {
                    self.answered_late(&late, delivered);
                }
            }
            Job::End(token, pause, reply) => {
                self.end_build(token, pause);
                let _ = reply.send(());
            }
            #[cfg(feature = "async")]
            Job::Invalidate(how, reply) => drop(reply.send(self.invalidate_soon(how))),
            #[cfg(feature = "async")]
            Job::Check(reply) => drop(reply.send(self.check())),
            // Nobody looks after these here: the lease is given back.
            Job::Watch(_) | Job::Beat(_) | Job::Kick | Job::Look => {}
        }
    }

    /// Has the worker deal with an election, for the policy's patience.
    pub(crate) fn elected_patiently(
        self: &Arc<Self>,
        lease: Lease<'static, T, C>,
        caller: Caller,
    ) -> Step<T, C> {
        let awaited = self.hand_over(|reply| Job::Elected(lease, caller, reply));
        self.step_of(awaited.wait(self.policy.patience))
    }

    /// The same for a task, which waits for as long as it takes if there is nothing to serve.
    #[cfg(feature = "async")]
    pub(crate) async fn elected_async(
        self: &Arc<Self>,
        lease: Lease<'static, T, C>,
        caller: Caller,
    ) -> Step<T, C> {
        let patience = if self.can_serve() { self.policy.patience } else { crate::LONGEST };
        self.step_of(self.elected_within(patience, |reply| Job::Elected(lease, caller, reply)).await)
    }

    /// What an election comes to within `patience`. If the future is dropped, it is kept for the next caller.
    #[cfg(feature = "async")]
    pub(crate) async fn elected_within(
        self: &Arc<Self>,
        patience: Duration,
        election: impl FnOnce(Reply<Step<T, C>>) -> Job<T, C>,
    ) -> Result<Step<T, C>, NoAnswer> {
        let claim = Claim { node: self, awaited: self.hand_over(election) };
        claim.awaited.wait_async(patience).await
    }

    fn step_of(&self, answer: Result<Step<T, C>, NoAnswer>) -> Step<T, C> {
        answer.unwrap_or_else(|none| {
            if let NoAnswer::TooLate = none {
                self.access.counters.impatient.count();
            }
            Step::Again
        })
    }
}

/// A task that waits for the answer to its election. If it is dropped, what has come is kept for the next caller.
#[cfg(feature = "async")]
struct Claim<'a, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    node: &'a Node<T, C>,
    awaited: Awaited<Step<T, C>>,
}

#[cfg(feature = "async")]
impl<T, C> Drop for Claim<'_, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    fn drop(&mut self) {
        if let Some(step) = self.awaited.give_up() {
            self.node.unclaimed(step);
            // The worker looks when a right to build is to be given back.
            self.node.mailbox.nudge(Job::Kick);
        }
    }
}
