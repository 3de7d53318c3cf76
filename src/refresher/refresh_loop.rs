//! The refresh loop: plan, then sleep or build.
//!
//! [`RefreshLoop::step`] is the same on a thread and in a task. What differs, the sleep and the build, is written where the loop is
//! started ([`RefresherOptions`](super::RefresherOptions)).

use std::any::Any;

use crate::cell::{Decision, Demand, Held, Kind, Plan, Refreshable};
use crate::contain::contain;
use crate::error::SharedError;
use crate::sync::Arc;
use crate::time::{Clock, FOREVER};

use super::attachment::{Attached, Attachment};

#[cfg(feature = "async")]
use {
    super::status::Status,
    crate::wait::Entry,
    std::panic::{AssertUnwindSafe, catch_unwind},
    std::pin::{Pin, pin},
    std::task::Poll,
};

/// The refresh loop.
pub(super) struct RefreshLoop<K: Refreshable> {
    pub(super) attachment: Arc<Attachment<K>>,
    pub(super) ahead: u64,
    pub(super) min_interval: u64,
    /// After a failure: no attempt before this tick.
    pub(super) pause_end: u64,
}

/// What the loop does next.
pub(super) enum Step<K: Kind + 'static> {
    Build(Held<'static, K>),
    /// Until this tick, or until the status is notified.
    Sleep(u64),
    End,
}

impl<K: Refreshable> RefreshLoop<K> {
    pub(super) fn step(&self) -> Step<K> {
        loop {
            let Attachment { cell, status, .. } = &*self.attachment;
            if status.is_stopped() {
                return Step::End;
            }
            let Some(cell) = cell.upgrade() else { return Step::End };
            let machine = cell.machine();
            let now = machine.now();
            let after = status.state.lock().refresh_after;
            let demand = if let Some(after) = after {
                Demand::after(after)
            } else {
                match machine.plan(self.ahead, self.min_interval, status.rests, now) {
                    Plan::Wait(until) => return Step::Sleep(until),
                    Plan::Build(_) if now < self.pause_end => return Step::Sleep(self.pause_end),
                    Plan::Build(_) if !cell.has_news() => {
                        return Step::Sleep(now.saturating_add(self.min_interval).min(FOREVER - 1));
                    }
                    Plan::Build(origin) => Demand::after(origin),
                }
            };
            match machine.lookup(&demand, None) {
                Decision::Elected(ticket) => {
                    status.answered(after);
                    return Step::Build(Held::new(cell, ticket));
                }
                // Another caller builds. Its end notifies.
                Decision::Pending(wait) => return Step::Sleep(wait.look_again_at),
                // Another caller was faster. What it has built may be replaced by now, and this the last reference.
                faster @ (Decision::Fresh(_) | Decision::Stale(_) | Decision::Failed(_)) => {
                    contain(|| drop(faster));
                    status.answered(after);
                }
            }
        }
    }

    /// Notes how a build has ended: with a value, an error or a panic.
    pub(super) fn note<V>(&mut self, result: Result<Result<V, SharedError>, Box<dyn Any + Send>>) {
        // The drops of the value, which may have been replaced by now, and of what the build has panicked with may panic in turn.
        let error = match result {
            Ok(Ok(value)) => {
                contain(|| drop(value));
                None
            }
            Ok(Err(error)) => Some(error),
            Err(panic) => {
                let error = SharedError::of_panic("build", &*panic);
                contain(|| drop(panic));
                Some(error)
            }
        };
        // As the cell sees the last tick that there is.
        let now = self.attachment.clock.now().0.min(FOREVER - 1);
        self.pause_end = if error.is_some() { now.saturating_add(self.min_interval) } else { 0 };
        // The pause has begun when the failure is seen.
        self.attachment.status.show(error);
    }
}

#[cfg(feature = "async")]
impl<K: Refreshable> RefreshLoop<K> {
    pub(super) async fn sleep(&self, until: u64) {
        let Attachment { clock, status, .. } = &*self.attachment;
        let is_over = |status: &Status| status.take_notified().then_some(());
        Entry::new(&**status).wait_async((), clock, until, is_over).await;
    }

    /// What the build returns, or what it panics with; `None` if the refresher is to stop before it has ended.
    pub(super) async fn unless_stopped<R>(
        &self,
        build: impl Future<Output = R>,
    ) -> Option<Result<R, Box<dyn Any + Send>>> {
        let build = pin!(build);
        let mut build = contained(build);
        let Attachment { clock, status, .. } = &*self.attachment;
        let mut entry = Entry::new(&**status);
        std::future::poll_fn(|cx| {
            let stopped = |status: &Status| status.is_stopped().then_some(());
            if entry.poll((), clock, FOREVER, cx, stopped).is_ready() {
                return Poll::Ready(None);
            }
            Pin::new(&mut build).poll(cx).map(Some)
        })
        .await
    }
}

/// What the future comes to, or what it panics with.
#[cfg(feature = "async")]
pub(super) fn contained<F: Future>(
    mut future: Pin<&mut F>,
) -> impl Future<Output = Result<F::Output, Box<dyn Any + Send>>> + Unpin {
    std::future::poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
}

impl<K: Refreshable> Drop for RefreshLoop<K> {
    fn drop(&mut self) {
        self.attachment.detach();
    }
}
