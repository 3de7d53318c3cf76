//! `DogpileCell`.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use dogpile::{DogpileCell, Guard, Lease, Lookup, Policy, Reader, RefreshError, Waited};

use crate::harness::{
    Failed, Member, Random, Task, alone, eventually, panic_as_planned, scaled, seed, task, together,
    unless_it_panics,
};
use crate::values::{Before, Census, Value, Witness};

const READERS: usize = if cfg!(miri) { 2 } else { 6 };
/// Threads to which leases are sent.
const BUILDERS: usize = 2;
const WRITERS: usize = if cfg!(miri) { 1 } else { 2 };

const MICROSECOND: Duration = Duration::from_micros(1);

#[test]
fn generations_grow_where_nothing_is_timed() {
    stress(Policy::never_expires().retry_backoff(Duration::ZERO, Duration::ZERO));
}

#[test]
fn generations_grow_where_values_expire() {
    let policy = Policy::ttl(100 * MICROSECOND)
        .stale_while_refresh(200 * MICROSECOND)
        .stale_if_error(Duration::ZERO)
        .retry_backoff(Duration::ZERO, Duration::ZERO)
        .jitter(20);
    stress(policy);
}

#[test]
fn generations_grow_where_builds_are_superseded() {
    let policy = Policy::ttl(100 * MICROSECOND)
        .stale_while_refresh(300 * MICROSECOND)
        .stale_if_error(500 * MICROSECOND)
        .retry_backoff(10 * MICROSECOND, 100 * MICROSECOND)
        .lease_timeout(50 * MICROSECOND);
    stress(policy);
}

type TestCell = DogpileCell<Value>;
type SentLease = Lease<'static, Value>;

struct Stage {
    cell: Arc<TestCell>,
    census: Arc<Census>,
    /// Sets, and builds that have ended.
    refreshes: AtomicU64,
    target: u64,
}

fn stress(policy: Policy) {
    let _alone = alone();
    let seed = seed();
    let stage = Stage {
        cell: Arc::new(TestCell::with_policy(policy)),
        census: Arc::default(),
        refreshes: AtomicU64::new(0),
        target: scaled(40_000, 40),
    };
    {
        let stage = &stage;
        let (builders, inboxes): (Vec<_>, Vec<_>) = (0..BUILDERS).map(|_| sync_channel(2)).unzip();
        let mut tasks: Vec<Task<'_>> = Vec::new();
        for number in 0..READERS {
            let builders = builders.clone();
            tasks.push(task(format!("reader {number}"), move |me| stage.read(me, &builders)));
        }
        for (number, inbox) in inboxes.into_iter().enumerate() {
            tasks.push(task(format!("builder {number}"), move |me| stage.build_for_others(me, &inbox)));
        }
        for number in 0..WRITERS {
            tasks.push(task(format!("writer {number}"), move |me| stage.write(me)));
        }
        drop(builders);
        together(seed, tasks);
    }
    let Stage { cell, census, refreshes, target } = stage;
    let refreshes = refreshes.into_inner();
    println!("{refreshes} refreshes, {} values, {:?}", census.made(), cell.stats());
    assert!(refreshes >= target);
    assert!(!cell.is_refreshing());
    let current = Arc::into_inner(cell).expect("no thread has it any more").into_inner();
    assert_eq!(census.alive(), u64::from(current.is_some()));
    drop(current);
    eventually("nothing is alive", || census.alive() == 0);
}

/// A build, from before the call that may be elected to run it.
struct Build<'a> {
    stage: &'a Stage,
    random: Cell<Option<Random>>,
    number: Cell<Option<u64>>,
    /// The greatest number that anybody had read when the call began.
    before: Before,
}

impl<'a> Build<'a> {
    fn new(stage: &'a Stage, me: &mut Member<'_>) -> Self {
        Self {
            stage,
            random: Cell::new(Some(Random::new(me.random.next()))),
            number: Cell::new(None),
            before: stage.census.before(),
        }
    }

    fn run(&self) -> Value {
        self.try_run().unwrap_or_else(|Failed| panic_as_planned())
    }

    fn try_run(&self) -> Result<Value, Failed> {
        let mut random = self.random.take().expect("it runs once");
        let number = self.stage.census.number();
        self.number.set(Some(number));
        random.dawdle();
        self.stage.refreshes.fetch_add(1, Ordering::SeqCst);
        match random.below(12) {
            0 => Err(Failed),
            1 => panic_as_planned(),
            _ => Ok(self.stage.census.build(number)),
        }
    }

    /// What the call has returned. Its own value may never have been in the cell.
    fn returned(&self, value: &Value, witness: &mut Witness) {
        if self.number.get() == Some(value.number()) {
            value.check();
        } else {
            witness.sees(value, self.before);
        }
    }
}

/// Reading.
impl Stage {
    fn read(&self, me: &mut Member<'_>, builders: &[SyncSender<SentLease>]) {
        let mut witness = Witness::default();
        let mut generation = 0;
        let mut reader = self.cell.reader();
        while me.goes_on() {
            match me.random.below(16) {
                0..3 => {
                    me.doing("get");
                    self.see(me, &mut witness, || self.cell.get());
                }
                3..6 => {
                    me.doing("load");
                    self.see(me, &mut witness, || self.cell.load());
                }
                6 => {
                    me.doing("load, and into_arc");
                    self.see(me, &mut witness, || self.cell.load().map(Guard::into_arc));
                }
                7 => self.look(me, &mut witness, &mut generation),
                8..10 => self.read_by_handle(me, &mut witness, &mut reader),
                10..14 => self.read_or_build(me, &mut witness),
                14 => self.look_up(me, &mut witness),
                _ => self.look_up_for_others(me, &mut witness, builders),
            }
            me.random.dawdle();
        }
    }

    fn see<R: Deref<Target = Value>>(
        &self,
        me: &mut Member<'_>,
        witness: &mut Witness,
        read: impl FnOnce() -> Option<R>,
    ) {
        let before = self.census.before();
        if let Some(value) = read() {
            witness.sees(&value, before);
            me.random.dawdle();
            value.check();
        }
    }

    fn look(&self, me: &mut Member<'_>, witness: &mut Witness, generation: &mut u64) {
        me.doing("looking");
        let now = self.cell.generation();
        assert!(now >= *generation, "generation {now} after {generation}");
        let _ = (self.cell.freshness(), self.cell.is_refreshing(), format!("{:?}", self.cell));
        me.doing("snapshot");
        let before = self.census.before();
        *generation = now;
        if let Some(shot) = self.cell.snapshot() {
            assert!(shot.generation >= now, "a snapshot of generation {} after {now}", shot.generation);
            // It may be expired, and so not to be had otherwise; but it is what is in the cell.
            witness.sees(&shot.value, before);
            *generation = shot.generation;
        }
        assert!(self.cell.stats().published >= *generation);
    }

    fn read_by_handle(&self, me: &mut Member<'_>, witness: &mut Witness, reader: &mut Reader<'_, Value>) {
        match me.random.below(8) {
            0 => {
                me.doing("Reader::release");
                reader.release();
            }
            1 | 2 => {
                me.doing("Reader::get_or_refresh");
                let build = Build::new(self, me);
                if let Some(value) = unless_it_panics(|| Arc::clone(reader.get_or_refresh(|| build.run()))) {
                    build.returned(&value, witness);
                }
            }
            _ => {
                me.doing("Reader::get");
                self.see(me, witness, || reader.get().map(|value| &**value));
            }
        }
    }

    fn read_or_build(&self, me: &mut Member<'_>, witness: &mut Witness) {
        let (cell, build) = (&self.cell, Build::new(self, me));
        let value = match me.random.below(9) {
            0 | 1 => {
                me.doing("get_or_refresh");
                unless_it_panics(|| cell.get_or_refresh(|| build.run()))
            }
            2 => {
                me.doing("load_or_refresh");
                unless_it_panics(|| Guard::into_arc(cell.load_or_refresh(|| build.run())))
            }
            3 => {
                me.doing("request: max_stale");
                unless_it_panics(|| cell.request().max_stale(Duration::ZERO).get(|| build.run()))
            }
            4 => {
                me.doing("request: no_cache");
                unless_it_panics(|| cell.request().no_cache().get(|| build.run()))
            }
            5 => {
                me.doing("try_get_or_refresh");
                unless_it_panics(|| cell.try_get_or_refresh(|| build.try_run())).and_then(allowed)
            }
            6 => {
                me.doing("request: newer_than");
                let request = cell.request().newer_than(cell.generation().saturating_sub(1)).or_stale();
                unless_it_panics(|| request.try_get(|| build.try_run())).and_then(allowed)
            }
            7 => {
                me.doing("request: max_age");
                let request = cell.request().max_age(Duration::from_micros(me.random.below(300)));
                unless_it_panics(|| request.try_get(|| build.try_run())).and_then(allowed)
            }
            _ => {
                me.doing("request: wait_at_most");
                let request = cell.request().wait_at_most(Duration::from_micros(me.random.below(100)));
                unless_it_panics(|| request.try_get(|| build.try_run())).and_then(allowed)
            }
        };
        if let Some(value) = value {
            build.returned(&value, witness);
        }
    }

    fn look_up(&self, me: &mut Member<'_>, witness: &mut Witness) {
        me.doing("lookup");
        let before = self.census.before();
        match self.cell.lookup() {
            Lookup::Fresh(value) => witness.sees_fresh(&value, before),
            Lookup::Stale(value) => witness.sees(&value, before),
            Lookup::Elected(lease) => self.end(me, lease),
            Lookup::Pending(pending) => {
                me.doing("Pending::wait");
                let waited = if me.random.one_in(2) {
                    pending.wait()
                } else {
                    match pending.wait_timeout(Duration::from_micros(me.random.below(100))) {
                        Ok(waited) => waited,
                        Err(pending) => return drop(pending),
                    }
                };
                if let Waited::Published(value) = waited {
                    witness.sees(&value, before);
                }
            }
            Lookup::Failed(_) => {}
        }
    }

    fn end(&self, me: &mut Member<'_>, lease: Lease<'_, Value>) {
        me.doing("ending a lease");
        let number = self.census.number();
        me.random.dawdle();
        self.refreshes.fetch_add(1, Ordering::SeqCst);
        match me.random.below(8) {
            0 => drop(lease),
            1 => drop(lease.fail(Failed)),
            2 => {
                if let Some(previous) = lease.previous() {
                    previous.vouch(number);
                }
                match lease.renew() {
                    Ok(value) => value.check(),
                    Err(lease) => drop(lease),
                }
            }
            3 => lease.publish_for(self.census.build(number), MICROSECOND).check(),
            _ => lease.publish(self.census.build(number)).check(),
        }
    }

    fn look_up_for_others(
        &self,
        me: &mut Member<'_>,
        witness: &mut Witness,
        builders: &[SyncSender<SentLease>],
    ) {
        me.doing("lookup_owned");
        let before = self.census.before();
        match self.cell.lookup_owned() {
            Lookup::Fresh(value) => witness.sees_fresh(&value, before),
            Lookup::Stale(value) => witness.sees(&value, before),
            // If no builder takes it, it is given back.
            Lookup::Elected(lease) => drop(builders[me.random.index(builders.len())].try_send(lease)),
            Lookup::Pending(_) | Lookup::Failed(_) => {}
        }
    }

    /// Ends the leases of other threads.
    fn build_for_others(&self, me: &mut Member<'_>, inbox: &Receiver<SentLease>) {
        loop {
            me.waiting("waiting for a lease");
            let Ok(lease) = inbox.recv() else { return };
            me.doing("ending a lease of another thread");
            let number = self.census.number();
            me.random.dawdle();
            self.refreshes.fetch_add(1, Ordering::SeqCst);
            match me.random.below(4) {
                0 => drop(lease),
                _ => lease.publish(self.census.build(number)).check(),
            }
        }
    }
}

fn allowed(result: Result<Arc<Value>, RefreshError>) -> Option<Arc<Value>> {
    match result {
        Ok(value) => Some(value),
        Err(RefreshError::Build(_) | RefreshError::WaitTimeout) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Writing.
impl Stage {
    fn write(&self, me: &mut Member<'_>) {
        let mut witness = Witness::default();
        while me.goes_on() {
            match me.random.below(10) {
                0..3 => {
                    me.doing("set");
                    let before = self.census.before();
                    let way = me.random.below(6);
                    let value = self.census.set(|value| match way {
                        0 => self.cell.set_for(value, 50 * MICROSECOND),
                        1 => self.cell.set_arc(Arc::new(value)),
                        2 => {
                            // See `values`.
                            self.cell.revoke();
                            self.cell.restore(value, 50 * MICROSECOND)
                        }
                        _ => self.cell.set(value),
                    });
                    self.refreshes.fetch_add(1, Ordering::SeqCst);
                    witness.sees(&value, before);
                }
                3..6 => {
                    me.doing("invalidate");
                    self.census.invalidating(|| self.cell.invalidate());
                }
                7 => {
                    me.doing("revoke");
                    self.census.displacing(|| self.cell.revoke());
                }
                8 => {
                    me.doing("invalidate_if_current");
                    let latest = self.census.latest();
                    if let Some(seen) = self.cell.get() {
                        self.census.invalidating_if(latest, || self.cell.invalidate_if_current(&seen));
                    }
                }
                6 => {
                    me.doing("clear");
                    drop(self.census.clearing(|| self.cell.clear()));
                }
                _ => self.read_or_build(me, &mut witness),
            }
            me.random.dawdle();
            if self.refreshes.load(Ordering::SeqCst) >= self.target {
                me.stop();
            }
        }
    }
}
