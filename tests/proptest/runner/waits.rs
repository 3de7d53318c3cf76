//! What happens while the one thread waits.

use std::time::Duration;

use dogpile::{Clock, ManualClock, Tick};

use super::cell::Either;
use super::{ASKED, Runner, runner};
use crate::model::{BuildId, CallId, Ended, Limit, Model, Place, Step};
use crate::refresher::ParkedThread;

/// A `ManualClock` with a coarse reading that lags behind as far as it says. The contract says that results are
/// exact all the same. While the one thread waits on it, the next operations of the case are performed: there is no other
/// thread that could do so.
#[derive(Clone)]
pub(crate) struct TestClock {
    exact: ManualClock,
    period: u64,
    parked: ParkedThread,
}

impl TestClock {
    pub(super) fn new(exact: &ManualClock, period: u64, parked: &ParkedThread) -> Self {
        Self { exact: exact.clone(), period, parked: parked.clone() }
    }
}

impl Clock for TestClock {
    fn now(&self) -> Tick {
        ASKED.set(ASKED.get() + 1);
        self.exact.now()
    }
    fn coarse_now(&self) -> Tick {
        let now = self.now().as_nanos();
        Tick::from_nanos(now - now.checked_rem(self.period).unwrap_or(0))
    }
    fn coarse_lag(&self) -> Duration {
        Duration::from_nanos(self.period)
    }
    fn park_until(&self, deadline: Tick, now: Tick) {
        match runner() {
            Some(runner) => runner.act_meanwhile(deadline, now),
            None => self.parked.park_until(&self.exact, deadline, now),
        }
    }
    #[cfg(feature = "async")]
    fn sleep_until(
        &self,
        deadline: Tick,
        now: Tick,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        self.exact.sleep_until(deadline, now)
    }
}

/// What waits: the latest call, or a wait at a kept place.
#[derive(Clone, Copy)]
pub(super) enum Waiting {
    Call(CallId),
    Place(Place, Limit, Option<Ended>),
}

impl Runner {
    fn act_meanwhile(&self, deadline: Tick, now: Tick) {
        if let Some(Either::SyncReader(_)) = *self.cell.borrow() {
            // It never waits for a build here: whose build runs is inside that build.
            self.let_a_reader_leave(deadline, now);
            return;
        }
        let waiting = *self.waiting.borrow().last().expect("only calls wait");
        let until = match waiting {
            Waiting::Call(call) => match self.model.borrow().step_of(call) {
                Some(Step::Waits(until)) => until,
                step => panic!("it waits, though the model says {step:?}"),
            },
            Waiting::Place(_, _, Some(ended)) => panic!("it waits, though the wait has ended: {ended:?}"),
            Waiting::Place(place, limit, None) => Model::wait_end(place, limit),
        };
        let until = until.expect("nothing would end this wait");
        assert_eq!(deadline, Tick::default().saturating_add(until), "when the wait ends");

        let next = self.next.get();
        self.next.set(next + 1);
        match self.meanwhile.get(next) {
            Some(operations) => {
                for operation in operations {
                    self.step(next, operation, None);
                }
            }
            None => {
                self.advance_to(until);
                self.compare(None);
            }
        }
        match waiting {
            Waiting::Call(call) => {
                while self.model.borrow().trial().wake(call) == Step::Waits(None) {
                    let own = self.model.borrow().own_build(call);
                    self.unblock(own.unwrap_or(BuildId::MAX), None);
                }
                self.model.borrow_mut().wake(call);
            }
            Waiting::Place(place, limit, _) => {
                let ended = self.model.borrow_mut().wake_place(place, limit);
                let mut all = self.waiting.borrow_mut();
                *all.last_mut().expect("it still waits") = Waiting::Place(place, limit, ended);
            }
        }
    }
}
