//! How threads and tasks wait for something that is announced by a wake-up, or for a deadline.

use crate::clock::{Clock, FOREVER, Tick};
use crate::sync::park;

#[cfg(feature = "async")]
use {crate::clock::Alarm, std::task::Context};

/// Blocks until `check` yields something, or until `clock` shows `deadline`. The caller has a seat already.
pub(crate) fn wait_until<C: Clock, R>(
    clock: &C,
    deadline: u64,
    mut check: impl FnMut() -> Option<R>,
) -> Option<R> {
    loop {
        // The clock first: between the check and the parking nothing may run that could take the thread's token,
        // with which it may just have been woken.
        let now = if deadline == FOREVER { Tick(0) } else { clock.now() };
        if let Some(result) = check() {
            return Some(result);
        }
        if deadline == FOREVER {
            park();
        } else if now >= Tick(deadline) {
            return None;
        } else {
            clock.park_until(Tick(deadline), now);
        }
    }
}

/// The deadline of a task that waits.
#[cfg(feature = "async")]
pub(crate) struct Nap {
    alarm: Option<(Tick, Alarm)>,
}

#[cfg(feature = "async")]
impl Nap {
    /// With an alarm at `deadline`, if there is one.
    pub(crate) fn begin<C: Clock>(clock: &C, deadline: u64) -> Self {
        let alarm =
            (deadline != FOREVER).then(|| (Tick(deadline), clock.sleep_until(Tick(deadline), clock.now())));
        Self { alarm }
    }

    /// Whether the deadline has come; if not, the task is woken when it does.
    pub(crate) fn is_over<C: Clock>(&mut self, clock: &C, cx: &mut Context<'_>) -> bool {
        let Some((deadline, alarm)) = &mut self.alarm else { return false };
        if alarm.as_mut().poll(cx).is_pending() {
            return false;
        }
        let now = clock.now();
        if now >= *deadline {
            return true;
        }
        // It was early. Another one, which the next poll asks: a clock whose alarms are always early stops no other task.
        *alarm = clock.sleep_until(*deadline, now);
        cx.waker().wake_by_ref();
        false
    }
}
