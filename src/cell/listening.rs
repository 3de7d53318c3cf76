//! Attaching [listeners](super::listeners), and what they ask of the cell: refreshers, subscriptions and derived values.

use crate::error::SharedError;
use crate::sync::{Arc, MutexGuard, into_arc};
use crate::time::{Clock, FOREVER};

use super::attempt::Attempt;
use super::listeners::Listener;
use super::machine::Machine;
use super::slot::{Reading, Record};
use super::state::{LeaseState, State};

/// What a refresher is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Build, unless a value comes whose build or `set` began after that of this number.
    Build(u64),
    /// Nothing before this tick, or the next change.
    Wait(u64),
}

impl<T, C: Clock> Machine<T, C> {
    /// From now on `listener` is notified of each change. While a refresher is attached, readers leave building to it as long
    /// as there is something to serve.
    pub(crate) fn attach(&self, listener: Arc<dyn Listener<T>>) {
        let mut state = self.state.lock();
        state.listeners.attach(listener);
        self.mirror_listeners(state);
    }

    pub(crate) fn detach<L>(&self, listener: &Arc<L>) {
        let mut state = self.state.lock();
        let detached = state.listeners.detach(listener);
        self.mirror_listeners(state);
        // It may be the last reference.
        drop(detached);
    }

    fn mirror_listeners(&self, mut state: MutexGuard<'_, State<T>>) {
        let former = self.slot.due_at();
        self.mirror(&mut state);
        // Without a refresher the value may be due: what is made from it is to ask for it again. (The one that attaches may be the first
        // to see that a refresher has stopped.)
        let notified = if self.slot.due_at() < former { state.listeners.notified(false) } else { None };
        drop(state);
        if let Some(notified) = notified {
            notified.follow();
            notified.notify();
        }
    }

    /// Settled at the next change that may make a value available. Look at the cell after this call and before the wait: then
    /// no change is missed, as a change before this call is visible to that look, and one after it settles the attempt.
    pub(crate) fn next_change(&self) -> Arc<Attempt<()>> {
        self.state.lock().listeners.next_change()
    }

    /// The newest value, if it was published after this generation and could be served then.
    pub(crate) fn newer_than(&self, generation: u64) -> Option<(Arc<T>, Record)> {
        let Reading { guard, record, due_at } = self.published_after(generation)?;
        let value = into_arc(guard)?;
        self.mark_read_for_certain(due_at);
        Some((value, record))
    }

    /// Whether [`newer_than`](Machine::newer_than) would return a value. It marks no read.
    pub(crate) fn has_newer_than(&self, generation: u64) -> bool {
        self.published_after(generation).is_some()
    }

    fn published_after(&self, generation: u64) -> Option<Reading<T>> {
        let reading = self.slot.read();
        let is_newer = reading.record.generation > generation
            && reading.guard.is_some()
            && self.was_servable(&reading.record);
        is_newer.then_some(reading)
    }

    /// The value, servable or not.
    pub(crate) fn held(&self) -> Option<(Arc<T>, Record)> {
        let reading = self.slot.read();
        into_arc(reading.guard).map(|value| (value, reading.record))
    }

    /// The record of the value, and whether there is one. Runs no user code, so it may be called under another cell's lock.
    pub(crate) fn record(&self) -> (Record, bool) {
        self.slot.read_record()
    }

    /// Whether there is a value of this generation; 0: whether there is none.
    pub(crate) fn holds(&self, generation: u64) -> bool {
        let (record, has_value) = self.record();
        if has_value { record.generation == generation } else { generation == 0 }
    }

    #[cfg(test)]
    pub(crate) fn listener_count(&self) -> usize {
        self.state.lock().listeners.count()
    }

    #[cfg(test)]
    pub(crate) fn has_listeners(&self) -> bool {
        self.state.lock().listeners.are_there()
    }

    /// Whether a build has taken the value out, for the write lock.
    pub(crate) fn is_withheld(&self) -> bool {
        matches!(self.state.lock().lease, LeaseState::Exclusive { .. })
    }

    /// Whether the value, published with this record, is out of date for a reason of its own: it was invalidated, or its time to
    /// live by the policy is over.
    pub(crate) fn is_out_of_date_itself(&self, record: &Record) -> bool {
        let now = self.now();
        let state = self.state.lock();
        now >= self.own_end(record) || state.origin <= state.invalidated_up_to
    }

    /// Up to when a value would be fresh that is made from nothing.
    pub(crate) fn own_end(&self, record: &Record) -> u64 {
        Record { ttl: self.policy.default_ttl(), declared_stale: FOREVER, ..*record }.fresh_end()
    }

    /// The value of this generation is served before the tick that `until` returns, which is called under the lock, and runs no
    /// user code. Until then a build would make the same again, unless something that is notified of changes. Returns whether
    /// that value is still there.
    pub(crate) fn settle(&self, generation: u64, until: impl FnOnce() -> u64) -> bool {
        let mut state = self.state.lock();
        let is_there =
            self.slot.record(&state.key).generation == generation && !self.slot.is_empty(&state.key);
        if is_there && state.lease.is_free() && state.origin > state.invalidated_up_to {
            state.lease = LeaseState::Free { settled_until: until() };
            self.mirror(&mut state);
        }
        is_there
    }

    /// It was settled too early.
    pub(crate) fn unsettle(&self) {
        let mut state = self.state.lock();
        if state.lease.unsettle() {
            self.mirror(&mut state);
        }
    }

    /// See [`Slot::due_at`](super::slot::Slot::due_at).
    pub(crate) fn due_at(&self) -> u64 {
        self.slot.due_at()
    }

    /// The error of the latest build, while a retry pause runs after it.
    pub(crate) fn paused_by(&self) -> Option<SharedError> {
        let now = self.now();
        let state = self.state.lock();
        let failure = state.paused_by(now)?;
        // After a panic there is a pause only beside a value.
        (!failure.is_panic || !self.slot.is_empty(&state.key)).then(|| failure.error.clone())
    }

    /// What is to be done `now`, so that the value is replaced `ahead` of its end: but not before half of its life, and if
    /// it has a time to live of its own, `min_interval` after its publication at the earliest. `rests`: not before it was
    /// read.
    pub(crate) fn plan(&self, ahead: u64, min_interval: u64, rests: bool, now: u64) -> Plan {
        let state = self.state.lock();
        let held_until = state.lease.held_until();
        if !state.lease.is_free() && now < held_until {
            return Plan::Wait(held_until);
        }
        if let Some(failure) = state.paused_by(now) {
            return Plan::Wait(failure.retry_at);
        }
        if self.slot.is_empty(&state.key) {
            return Plan::Build(state.last_origin);
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
        if state.listeners.has_own_ttl() && !record.is_declared_stale() {
            due = due.max(record.published.saturating_add(min_interval));
        }
        if now < due {
            Plan::Wait(due)
        } else if rests && state.listeners.is_unread() {
            // The first read notifies.
            Plan::Wait(FOREVER)
        } else {
            Plan::Build(state.last_origin)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::elect::Decision;
    use super::super::publish::{BuildOutput, Term};
    use super::super::state::Demand;
    use super::*;
    use crate::error::SharedError;
    use crate::policy::Policy;
    use crate::refresher::Status;
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
        machine.attach(Status::new(false));
        assert_eq!(next(&machine, 100, 0), None, "there is no value");

        drop(machine.set(Arc::new(1), Term::POLICY, true, &()));
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
        assert!(machine.fail(&mut ticket, error, None, machine.now()).is_none());
        assert_eq!(next(&machine, 100, 0), Some(20_000_000));
        assert_eq!(next(&machine, 100, 20_000_000), None);
        drop(ticket);

        // A ttl that the source chose leads to at most one build in the least interval.
        clock.advance(ms(20));
        for (ttl, expected) in [
            (Some(1_000_000), Some(120_000_000)),
            (Some(400_000_000), Some(220_000_000)),
            (Some(FOREVER), Some(FOREVER)),
            (None, Some(520_000_000)),
        ] {
            let Decision::Elected(mut ticket) = machine.lookup(&Demand::after(machine.latest_origin()), None)
            else {
                panic!("nobody builds")
            };
            let output = BuildOutput::new(Arc::new(2), Term { ttl, age: 0 });
            drop(machine.conclude(&mut ticket, output, &(), machine.now()).leftover);
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
            drop(machine.set(Arc::new(1), Term { age, ..Term::POLICY }, false, &()));
            assert_eq!(next(&machine, 98, 0), Some(due), "{age}");
        }
    }

    #[test]
    fn a_value_that_was_not_read_is_not_rebuilt() {
        let clock = ManualClock::new();
        let machine = Machine::new(Policy::ttl(Duration::from_nanos(100)), clock.clone());
        let status = Status::new(true);
        machine.attach(Arc::<Status>::clone(&status));
        drop(machine.set(Arc::new(1), Term::POLICY, true, &()));
        assert_eq!(machine.plan(10, 0, true, 91), Plan::Wait(FOREVER));
        assert!(machine.serve().is_none(), "the first read takes the slow path");
        assert!(status.take_notified());
        assert!(machine.servable().is_some());
        assert!(status.take_notified(), "the first read notifies");
        assert!(machine.serve().is_some(), "the second one does not");
        assert!(!status.take_notified());
        assert_eq!(machine.plan(10, 0, true, 91), Plan::Build(machine.latest_origin()));
        machine.detach(&status);
        assert!(machine.serve().is_some());
    }

    /// As a hook that was dropped.
    struct Detached;
    impl<T> Listener<T> for Detached {
        fn notify(&self) {}
        fn is_detached(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_list_of_listeners_goes_away_by_itself() {
        let machine = Machine::new(Policy::never_expires(), ManualClock::new());
        let set = |value| {
            drop(machine.set(Arc::new(value), Term::POLICY, true, &()));
        };
        let next = machine.next_change();
        assert!(Arc::ptr_eq(&next, &machine.next_change()), "one for all that wait");
        machine.invalidate();
        assert!(next.outcome().is_none() && machine.has_listeners());
        set(1_u32);
        assert!(next.outcome().is_some() && !machine.has_listeners());
        for _ in 0..100 {
            machine.attach(Arc::new(Detached));
            assert!(machine.listener_count() <= 4, "they do not pile up");
        }
        set(2);
        assert!(!machine.has_listeners());
    }

    /// A refresher rests until the value was read, and the subscription does not read it again.
    #[test]
    fn what_is_newer_counts_as_read_though_the_lock_is_taken() {
        let machine = Machine::new(Policy::never_expires(), ManualClock::new());
        machine.attach(Status::new(true));
        drop(machine.set(Arc::new(1), Term::POLICY, true, &()));
        assert!(machine.state.lock().listeners.is_unread());
        let locked = machine.state.lock();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| machine.newer_than(0).is_some());
            // A read that only tries to get the lock ends meanwhile.
            for _ in 0..10_000 {
                if reader.is_finished() {
                    break;
                }
                std::thread::yield_now();
            }
            drop(locked);
            assert!(reader.join().unwrap());
        });
        assert!(!machine.state.lock().listeners.is_unread());
    }
}
