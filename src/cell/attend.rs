//! What an attached [`Refresher`](crate::Refresher) asks of the cell.

use crate::signal::{Bell, Signal};
use crate::sync::Arc;
use crate::time::{Clock, FOREVER};

use super::machine::Machine;
use super::state::LeaseState;

/// What a refresher is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Build, unless a value comes whose build or `set` began after that of this number.
    Build(u64),
    /// Nothing before this tick, or the next change.
    Wait(u64),
}

impl<T, C: Clock> Machine<T, C> {
    /// From now on `signal` is rung at each change, and readers leave building to the refresher that it wakes as long as
    /// there is something to serve. `rests`: until a value has been read it is not rebuilt.
    pub(crate) fn attach(&self, signal: Arc<Signal>, rests: bool) {
        let bell = Bell::new(signal);
        let mut state = self.state.lock();
        state.attach(bell, rests);
        self.mirror(&mut state);
    }

    pub(crate) fn detach(&self, signal: &Arc<Signal>, rests: bool) {
        let mut state = self.state.lock();
        let bell = state.detach(signal, rests);
        self.mirror(&mut state);
        drop(state);
        // It rings, which must not be under the lock.
        drop(bell);
    }

    /// What is to be done `now`, so that the value is replaced `ahead` of its end: but not before half of its life, and if
    /// it has a time to live of its own, `min_interval` after its publication at the earliest. `rests`: not before it was
    /// read.
    pub(crate) fn plan(&self, ahead: u64, min_interval: u64, rests: bool, now: u64) -> Plan {
        let state = self.state.lock();
        let held_until = state.lease.held_until();
        if state.lease != LeaseState::Free && now < held_until {
            return Plan::Wait(held_until);
        }
        if let Some(retry_at) = state.pause(now) {
            return Plan::Wait(retry_at);
        }
        if self.slot.is_empty(&state.key) {
            return Plan::Build(state.origins);
        }
        let record = self.slot.record(&state.key);
        let fresh_end = record.fresh_end();
        let mut due = if record.is_declared_stale() || fresh_end == 0 {
            0
        } else if fresh_end == FOREVER {
            FOREVER
        } else {
            // Half of its life, which began before its publication if it was restored.
            let half = record.ttl.saturating_add(1).div_ceil(2);
            fresh_end.saturating_sub(ahead).max(fresh_end.saturating_sub(half))
        };
        if state.has_own_ttl() && !record.is_declared_stale() {
            due = due.max(record.published.saturating_add(min_interval));
        }
        if now < due {
            Plan::Wait(due)
        } else if rests && state.is_unread() {
            // The first read rings.
            Plan::Wait(FOREVER)
        } else {
            Plan::Build(state.origins)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::elect::Decision;
    use super::super::publish::{BuildOutput, Setting, Ttl};
    use super::super::state::Demand;
    use super::*;
    use crate::error::SharedError;
    use crate::policy::Policy;
    use crate::time::ManualClock;

    /// When a refresher that builds `ahead` of the end is to look again; `None`: it is to build at once.
    fn next(machine: &Machine<u32, ManualClock>, ahead: u64, now: u64) -> Option<u64> {
        match machine.plan(ahead, 100_000_000, false, now) {
            Plan::Wait(until) => Some(until),
            Plan::Build(_) => None,
        }
    }

    #[test]
    fn a_plan_names_the_tick_from_which_there_is_something_to_do() {
        const TTL: u64 = 1_000_000_000;
        let clock = ManualClock::new();
        let ms = |number: u64| Duration::from_millis(number);
        let policy = Policy::ttl(ms(1000)).lease_timeout(ms(10)).retry_backoff(ms(20), ms(20));
        let machine = Machine::new(policy, clock.clone());
        machine.attach(Arc::default(), false);
        assert_eq!(next(&machine, 100, 0), None, "there is no value");

        let value = Arc::new(1);
        let setting = Setting { value, ttl: Ttl::Policy, age: None };
        drop(machine.set(setting, |_, _| ()).unwrap_or_else(|_| unreachable!()));
        // Fresh up to and including its ttl.
        let end = TTL + 1;
        assert_eq!(next(&machine, 100, 0), Some(end - 100));
        assert_eq!(next(&machine, 100, end - 101), Some(end - 100));
        assert_eq!(next(&machine, 100, end - 100), None);
        assert_eq!(next(&machine, TTL, 0), Some(end / 2), "not before half of its life");
        machine.invalidate();
        assert_eq!(next(&machine, 100, 0), None, "it is stale");

        // A build runs, until the tick at which it may be superseded.
        let Decision::Elected(mut ticket) = machine.lookup(&Demand { max_stale: 0, ..Demand::ANY }, None)
        else {
            panic!("nobody builds")
        };
        assert_eq!(next(&machine, 100, 0), Some(10_000_001));
        assert_eq!(next(&machine, 100, 10_000_000), Some(10_000_001));
        assert_eq!(next(&machine, 100, 10_000_001), None);
        // It fails, and a pause runs.
        let error = SharedError::new("no");
        assert!(machine.fail(&mut ticket, error, || None).rejected.is_none());
        assert_eq!(next(&machine, 100, 0), Some(20_000_000));
        assert_eq!(next(&machine, 100, 20_000_000), None);
        drop(ticket);

        // A ttl that the source chose leads to at most one build in the least interval.
        clock.advance(ms(20));
        for (ttl, expected) in [
            (Ttl::Own(1_000_000), Some(120_000_000)),
            (Ttl::Own(400_000_000), Some(220_000_000)),
            (Ttl::Own(FOREVER), Some(FOREVER)),
            (Ttl::Policy, Some(520_000_000)),
        ] {
            let Decision::Elected(mut ticket) = machine.lookup(&Demand::after(machine.latest_origin()), None)
            else {
                panic!("nobody builds")
            };
            let output = BuildOutput { value: Arc::new(2), ttl, renews: false, release: true };
            drop(machine.conclude(&mut ticket, output, |_, _| ()).leftover);
            assert_eq!(next(&machine, TTL - 1, 20_000_000), expected);
        }
        machine.invalidate();
        assert_eq!(next(&machine, 100, 20_000_000), None, "it is stale");
    }

    #[test]
    fn half_of_a_restored_values_life_may_be_over() {
        let clock = ManualClock::new();
        clock.advance(Duration::from_micros(1));
        let machine = Machine::new(Policy::ttl(Duration::from_nanos(99)), clock);
        for (age, due) in [(0, 1_050), (20, 1_030), (49, 1_001), (60, 990)] {
            let setting = Setting { value: Arc::new(1), ttl: Ttl::Policy, age: Some(age) };
            drop(machine.set(setting, |_, _| ()).unwrap_or_else(|_| unreachable!()));
            assert_eq!(next(&machine, 98, 0), Some(due), "{age}");
        }
    }

    #[test]
    fn a_value_that_was_not_read_is_not_rebuilt() {
        let clock = ManualClock::new();
        let machine = Machine::new(Policy::ttl(Duration::from_nanos(100)), clock.clone());
        let signal = Arc::new(Signal::default());
        machine.attach(Arc::clone(&signal), true);
        let setting = Setting { value: Arc::new(1), ttl: Ttl::Policy, age: None };
        drop(machine.set(setting, |_, _| ()).unwrap_or_else(|_| unreachable!()));
        assert_eq!(machine.plan(10, 0, true, 91), Plan::Wait(FOREVER));
        assert!(machine.serve().is_none(), "the first read takes the slow path");
        assert!(signal.heard());
        assert!(machine.servable().is_some());
        assert!(signal.heard(), "the first read rings");
        assert!(machine.serve().is_some(), "the second one does not");
        assert!(!signal.heard());
        assert_eq!(machine.plan(10, 0, true, 91), Plan::Build(machine.latest_origin()));
        machine.detach(&signal, true);
        assert!(machine.serve().is_some());
    }
}
