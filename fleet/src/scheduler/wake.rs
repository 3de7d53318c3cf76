//! What wakes a thread or a task that sleeps by a clock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
#[cfg(feature = "async")]
use std::task::{Context, Poll, Waker};
use std::thread::Thread;

use dogpile::{Clock, Tick};

/// What wakes a thread or a task that sleeps by a clock.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    sleeper: Mutex<Option<Sleeper>>,
    notified: AtomicBool,
}

#[derive(Debug)]
enum Sleeper {
    Thread(Thread),
    /// Until it is woken: it registers at each poll.
    #[cfg(feature = "async")]
    Task(Waker),
}

impl Wake {
    fn sleeper(&self) -> MutexGuard<'_, Option<Sleeper>> {
        self.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify(&self) {
        // Release: pairs with the Acquire in `take`: what the thread is woken for has happened.
        self.notified.store(true, Ordering::Release);
        #[cfg_attr(not(feature = "async"), allow(unused_mut))]
        let mut sleeper = self.sleeper();
        match &*sleeper {
            None => {}
            Some(Sleeper::Thread(thread)) => thread.unpark(),
            #[cfg(feature = "async")]
            Some(Sleeper::Task(_)) => {
                let task = sleeper.take();
                // It is the executor's.
                drop(sleeper);
                if let Some(Sleeper::Task(waker)) = task {
                    waker.wake();
                }
            }
        }
    }

    /// From now on this thread is the one that is woken.
    pub(crate) fn wakes_this_thread(&self) {
        *self.sleeper() = Some(Sleeper::Thread(std::thread::current()));
    }

    /// The next notification wakes this task. One that has come before is not looked at.
    #[cfg(feature = "async")]
    pub(crate) fn wakes_task(&self, waker: &Waker) {
        let task = Sleeper::Task(waker.clone());
        let former = self.sleeper().replace(task);
        drop(former);
    }

    fn take(&self) -> bool {
        // Acquire: pairs with the Release in `notify`.
        self.notified.swap(false, Ordering::Acquire)
    }

    /// Sleeps until it is notified, or until `until`.
    pub(crate) fn sleep<C: Clock>(&self, clock: &C, until: Option<Tick>) {
        while !self.take() {
            let now = clock.now();
            match until {
                None => std::thread::park(),
                Some(until) if until <= now => return,
                Some(until) => clock.park_until(until, now),
            }
        }
    }

    /// The same for a task.
    #[cfg(feature = "async")]
    pub(crate) async fn sleep_async<C: Clock>(&self, clock: &C, until: Option<Tick>) {
        let mut alarm = until.map(|until| clock.sleep_until(until, clock.now()));
        std::future::poll_fn(|task| {
            self.wakes_task(task.waker());
            if self.take() {
                return Poll::Ready(());
            }
            let (Some(until), Some(alarm)) = (until, &mut alarm) else { return Poll::Pending };
            if alarm.as_mut().poll(task).is_pending() {
                return Poll::Pending;
            }
            let now = clock.now();
            if until <= now {
                return Poll::Ready(());
            }
            // It was early. Not in a loop: a clock whose alarms are always early would never yield to other tasks.
            *alarm = clock.sleep_until(until, now);
            task.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// What `future` comes to; `None` if `is_over` before that. To be notified when it is.
    #[cfg(feature = "async")]
    pub(crate) async fn unless<R>(
        &self,
        is_over: impl Fn() -> bool,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<R>,
    ) -> Option<R> {
        std::future::poll_fn(|task| {
            self.wakes_task(task.waker());
            if is_over() { Poll::Ready(None) } else { poll(task).map(Some) }
        })
        .await
    }
}
