//! The refresh loop: plan, then sleep, ask or look.
//!
//! [`Refreshing::step`], [`turn`](Refreshing::turn) and [`note`](Refreshing::note) are the same on a thread and in a task. What
//! differs is how each of them waits: for the store, for the build, for the next tick.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dogpile::{BoxError, Clock, Freshness, Lease, Lookup, Refreshed, SharedError, Tick};

#[cfg(feature = "async")]
use {
    crate::error::Backoff,
    std::future::Future,
    std::pin::{Pin, pin},
    std::task::{Context, Poll},
};

use super::status::Status;
use crate::cell::build::BuildContext;
use crate::cell::job::Job;
use crate::cell::node::{Began, Caller, Node, Step, Ticket};
use crate::draw;
use crate::policy::doubled;
use crate::scheduler::contained;
use crate::store::LONGEST;

/// The pause after a build that failed, which doubles, where the policy has none.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Between two builds, if the value has no longer time to live: as the core's `min_interval`.
const INTERVAL: Duration = Duration::from_millis(100);

/// How often what has gone out of date is looked at while another node deals with it, if the policy does not say it.
const LOOK: Duration = Duration::from_secs(1);

/// What the thread or the task has, besides the build.
pub(super) struct Refreshing<T: 'static, C: Clock + 'static> {
    pub(super) node: Weak<Node<T, C>>,
    pub(super) clock: C,
    pub(super) ahead: Duration,
    pub(super) status: Arc<Status>,
    /// For which generation it was drawn, and how much later than `ahead` before its end that one is due.
    spread: (u64, Duration),
    /// Nothing is done before this tick.
    not_before: Tick,
    /// What was known of invalidations when the latest build began. A later one ends the pause after that build, if it succeeded.
    began: Option<Began>,
    /// How many requests have been noticed, and whether a build is still to begin for them.
    requests: u64,
    requested: bool,
}

/// What is to be done now.
enum Next<T: 'static, C: Clock + 'static> {
    Sleep(Option<Tick>),
    /// To ask the store for the right to replace a value that is fresh for no longer than this.
    Ask(Arc<Node<T, C>>, Duration),
    /// To do what a caller does.
    Look(Arc<Node<T, C>>),
    End,
}

/// What an attempt has come to, if it has not failed.
enum Done {
    Built,
    /// Nothing is to be done for so long.
    Pause(Duration),
}

type Outcome = Result<Done, SharedError>;

impl<T, C> Refreshing<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    pub(super) fn new(node: &Arc<Node<T, C>>, ahead: Duration, status: &Arc<Status>) -> Self {
        Self {
            node: Arc::downgrade(node),
            clock: node.clock.clone(),
            ahead,
            status: Arc::clone(status),
            spread: (0, Duration::ZERO),
            not_before: Tick::default(),
            began: None,
            requests: 0,
            requested: false,
        }
    }

    fn step(&mut self) -> Next<T, C> {
        let Some(node) = self.node.upgrade().filter(|node| !is_over(&self.status, node)) else {
            return Next::End;
        };
        let requests = self.status.requests();
        if self.requests != requests {
            // No pause from before keeps it waiting.
            (self.requests, self.requested, self.not_before) = (requests, true, Tick::default());
        }
        if self.began.is_some_and(|began| began != node.invalidations()) {
            (self.began, self.not_before) = (None, Tick::default());
        }
        // Before the age is looked at: if this thread stands still in between, it wakes up too early, and not too late.
        let now = self.clock.now();
        let snapshot = node.local.snapshot();
        let Some(fresh) = snapshot.filter(|snapshot| snapshot.freshness == Freshness::Fresh) else {
            return if self.not_before <= now {
                Next::Look(node)
            } else {
                Next::Sleep(Some(self.not_before))
            };
        };
        self.status.has_value();
        if self.spread.0 != fresh.generation {
            self.spread = (fresh.generation, self.ahead.mul_f64(draw::share() / 4.0));
        }
        // Never before half of its time has passed: a value that was taken over late is not due at once.
        let whole = fresh.age.saturating_add(fresh.fresh_for);
        let due = whole.saturating_sub(self.ahead).max(whole / 2).saturating_add(self.spread.1);
        let left = due.saturating_sub(fresh.age).min(fresh.fresh_for);
        let (left, ahead) = if self.requested { (Duration::ZERO, LONGEST) } else { (left, self.ahead) };
        let due = now.saturating_add(left).max(self.not_before);
        if due <= now { Next::Ask(node, ahead) } else { Next::Sleep(Some(due)) }
    }

    /// What an election has come to: a build, or a pause.
    fn turn(&mut self, node: &Node<T, C>, asked: bool, step: Step<T, C>) -> Result<Ticket<T, C>, Duration> {
        let seldom = seldom(node);
        match step {
            Step::Build(ticket) => {
                // What is asked for from now on is to begin later.
                (self.requests, self.requested) = (self.status.requests(), false);
                self.began = Some(node.invalidations());
                Ok(ticket)
            }
            // A store that does not know of requests ahead of expiry is not asked again and again.
            Step::Again if self.requested && asked => Err(seldom),
            Step::Again => {
                Err(if node.local.freshness() == Freshness::Fresh { Duration::ZERO } else { seldom })
            }
            Step::Backoff(backoff) if self.requested => Err(backoff.left.min(seldom)),
            Step::Backoff(backoff) => Err(backoff.left),
        }
    }

    fn note(&mut self, node: &Node<T, C>, outcome: Result<Outcome, Box<dyn Any + Send>>) {
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked("build", panic)));
        let now = self.clock.now();
        let pause = match outcome {
            // A value that is stale when it is published is not built again and again.
            Ok(Done::Built) => {
                self.status.show(None);
                INTERVAL
            }
            Ok(Done::Pause(pause)) => {
                self.began = None;
                if pause.is_zero() {
                    self.status.show(None);
                }
                pause
            }
            Err(error) => {
                self.began = None;
                let failures = self.status.show(Some(error));
                node.backoff_left(now).max(doubled(PAUSES.0, PAUSES.1, failures))
            }
        };
        self.not_before = now.saturating_add(pause);
    }
}

/// On a thread.
impl<T, C> Refreshing<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    pub(super) fn run<E, F>(mut self, mut build: F)
    where
        E: Into<BoxError>,
        F: FnMut(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
    {
        let status = Arc::clone(&self.status);
        status.wake.wakes_this_thread();
        loop {
            let (node, ahead) = match self.step() {
                Next::End => return,
                Next::Sleep(until) => {
                    status.wake.sleep(&self.clock, until);
                    continue;
                }
                Next::Ask(node, ahead) => (node, Some(ahead)),
                Next::Look(node) => (node, None),
            };
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let step = match ahead {
                    Some(ahead) => node.elected_ahead(ahead),
                    None => looked(&node).unwrap_or_else(|lease| node.acquire(lease, Caller::Tries)),
                };
                match self.turn(&node, ahead.is_some(), step) {
                    Ok(ticket) => node.build(ticket, &mut build).map(|_| Done::Built),
                    Err(pause) => Ok(Done::Pause(pause)),
                }
            }));
            self.note(&node, outcome);
        }
    }
}

/// In a task. Each future that it awaits can be dropped at any point.
#[cfg(feature = "async")]
impl<T, C> Refreshing<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    pub(super) async fn run_async<E, F, Fut>(mut self, mut build: F)
    where
        E: Into<BoxError>,
        F: FnMut(BuildContext<'static, T>) -> Fut,
        Fut: Future<Output = Result<Refreshed<T>, E>>,
    {
        let status = Arc::clone(&self.status);
        loop {
            let (node, ahead) = match self.step() {
                Next::End => return,
                Next::Sleep(until) => {
                    status.wake.sleep_async(&self.clock, until).await;
                    continue;
                }
                Next::Ask(node, ahead) => (node, Some(ahead)),
                Next::Look(node) => (node, None),
            };
            let outcome = {
                let mut attempt = pin!(async {
                    let step = match ahead {
                        Some(ahead) => elected(&node, |reply| Job::Ahead(ahead, reply)).await,
                        None => match looked(&node) {
                            Ok(step) => step,
                            Err(lease) => {
                                elected(&node, |reply| Job::Elected(lease, Caller::Tries, reply)).await
                            }
                        },
                    };
                    match self.turn(&node, ahead.is_some(), step) {
                        Ok(ticket) => {
                            let build = async |context: &BuildContext<'_, T>| build(context.shared()).await;
                            node.build_async(ticket, build).await.map(|_| Done::Built)
                        }
                        Err(pause) => Ok(Done::Pause(pause)),
                    }
                });
                let poll = |task: &mut Context<'_>| contain(attempt.as_mut(), task);
                status.wake.unless(|| is_over(&status, &node), poll).await
            };
            let Some(outcome) = outcome else { return };
            self.note(&node, outcome);
        }
    }
}

fn is_over<T, C>(status: &Status, node: &Node<T, C>) -> bool
where
    C: Clock + 'static,
{
    status.is_stopped() || node.mailbox.is_closed()
}

/// A pause where nothing says when to look again.
fn seldom<T, C: Clock>(node: &Node<T, C>) -> Duration {
    node.policy.poll.unwrap_or(LOOK).min(LOOK)
}

/// A look at the local cell. If the store is to be asked, the lease comes back.
#[allow(clippy::result_large_err)] // with dogpile's feature `tracing`: a lease that comes back
fn looked<T, C>(node: &Arc<Node<T, C>>) -> Result<Step<T, C>, Lease<'static, T, C>>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    match node.local.lookup_owned() {
        Lookup::Fresh(_) => Ok(Step::Again),
        Lookup::Elected(lease) => node.elected_here(lease, Caller::Tries),
        // Another caller deals with it. A publication ends the pause.
        _ => {
            node.mailbox.nudge(Job::Kick);
            Ok(Step::Again)
        }
    }
}

/// What the worker's election comes to. No one waits for the refresher, so it waits for as long as that takes.
#[cfg(feature = "async")]
async fn elected<T, C>(
    node: &Arc<Node<T, C>>,
    election: impl FnOnce(crate::cell::reply::Reply<Step<T, C>>) -> Job<T, C>,
) -> Step<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    // Without an answer: the store has panicked, or the cell is about to end.
    let left = seldom(node);
    node.elected_within(LONGEST, election).await.unwrap_or(Step::Backoff(Backoff { left }))
}

/// Polls `future`. What it panics with is its result.
#[cfg(feature = "async")]
pub(super) fn contain<F: Future>(
    future: Pin<&mut F>,
    task: &mut Context<'_>,
) -> Poll<Result<F::Output, Box<dyn Any + Send>>> {
    match catch_unwind(AssertUnwindSafe(|| future.poll(task))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    }
}

pub(super) fn panicked(what: &str, panic: Box<dyn Any + Send>) -> SharedError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    // It may panic in turn.
    contained(|| drop(panic));
    SharedError::new(format!("the {what} panicked: {text}"))
}
