//! An answer from the worker, for a thread that may run out of patience or for a task that may be dropped.

#[cfg(feature = "async")]
use std::future::Future;
#[cfg(feature = "async")]
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
#[cfg(feature = "async")]
use std::task::{Context, Poll};
use std::time::Duration;

enum State<R> {
    Awaited(Option<Waker>),
    Ready(R),
    /// No one waits any more, or there will be no answer.
    Over,
}

struct Slot<R> {
    state: Mutex<State<R>>,
    ready: Condvar,
}

impl<R> Slot<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an end to the waiting, if it goes on. Returns what was not taken.
    fn settle(&self, end: State<R>) -> Option<State<R>> {
        let mut state = self.lock();
        let State::Awaited(waker) = &mut *state else { return Some(end) };
        let waker = waker.take();
        *state = end;
        drop(state);
        self.ready.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }
}

/// The worker's end. If it is dropped without an answer, there will be none.
pub(crate) struct Reply<R>(Arc<Slot<R>>);

/// The end of whoever waits. If it is dropped, the answer comes back to the worker.
pub(crate) struct Awaited<R>(Arc<Slot<R>>);

pub(crate) fn reply<R>() -> (Reply<R>, Awaited<R>) {
    let slot = Arc::new(Slot { state: Mutex::new(State::Awaited(None)), ready: Condvar::new() });
    (Reply(Arc::clone(&slot)), Awaited(slot))
}

impl<R> Reply<R> {
    /// Returns the answer if nobody waits for it any more.
    pub(crate) fn send(self, answer: R) -> Option<R> {
        match self.0.settle(State::Ready(answer)) {
            Some(State::Ready(answer)) => Some(answer),
            _ => None,
        }
    }

    /// Whether anyone waits for it.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(*self.0.lock(), State::Awaited(_))
    }
}

impl<R> Drop for Reply<R> {
    fn drop(&mut self) {
        drop(self.0.settle(State::Over));
    }
}

/// There is no answer.
pub(crate) enum NoAnswer {
    /// Not yet, and now it is not waited for any more.
    TooLate,
    /// There never will be.
    Lost,
}

impl<R> Awaited<R> {
    pub(crate) fn wait(self, patience: Duration) -> Result<R, NoAnswer> {
        let state = self.0.lock();
        let awaited = |state: &mut State<R>| matches!(state, State::Awaited(_));
        let mut state = self
            .0
            .ready
            .wait_timeout_while(state, patience, awaited)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        match std::mem::replace(&mut *state, State::Over) {
            State::Ready(answer) => Ok(answer),
            State::Awaited(_) => Err(NoAnswer::TooLate),
            State::Over => Err(NoAnswer::Lost),
        }
    }
}

impl<R> Drop for Awaited<R> {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut *self.0.lock(), State::Over);
        // Without the lock: an answer that has come, but was not taken, may do things when it is dropped.
        drop(state);
    }
}

#[cfg(feature = "async")]
impl<R> Awaited<R> {
    /// As [`wait`](Awaited::wait), for a task.
    pub(crate) async fn wait_async(&self, patience: Duration) -> Result<R, NoAnswer> {
        let mut patience = futures_timer::Delay::new(patience.min(crate::LONGEST));
        std::future::poll_fn(|context| {
            if let Poll::Ready(answer) = self.poll_answer(context) {
                return Poll::Ready(answer.ok_or(NoAnswer::Lost));
            }
            Pin::new(&mut patience).poll(context).map(|()| self.give_up().ok_or(NoAnswer::TooLate))
        })
        .await
    }

    fn poll_answer(&self, context: &mut Context<'_>) -> Poll<Option<R>> {
        let mut state = self.0.lock();
        if let State::Awaited(waker) = &mut *state {
            *waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, State::Over) {
            State::Ready(answer) => Poll::Ready(Some(answer)),
            State::Awaited(_) | State::Over => Poll::Ready(None),
        }
    }

    /// Gives up waiting, and returns what has come nevertheless.
    pub(crate) fn give_up(&self) -> Option<R> {
        match std::mem::replace(&mut *self.0.lock(), State::Over) {
            State::Ready(answer) => Some(answer),
            State::Awaited(_) | State::Over => None,
        }
    }
}

#[cfg(feature = "async")]
impl<R> Future for &Awaited<R> {
    type Output = Option<R>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<R>> {
        self.poll_answer(context)
    }
}
