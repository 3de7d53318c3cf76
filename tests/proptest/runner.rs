//! Does the operations of a case, to a cell and to the model, and compares.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dogpile::{
    Clock, DogpileCell, Guard, Job, Lookup, ManualClock, Policy, RefreshError, Refreshed, Tick, Waited,
};

use crate::model::{
    BuildId, CallId, Demand, Done, END_OF_TIME, Ended, Kind, Limit, Model, NOTHING_TO_KEEP, Number, PANICKED,
    Patience, Place, Published, Reads, Refused, Seen, Settings, Shot, Step, Trouble, View,
};
use crate::operations::{
    Ahead, Build, Case, Conditions, Does, End, Finish, Found, Newer, Operation, Outcome, Peek, READERS, Read,
    Request, Set, Spawner,
};
use crate::panics::{Called, annotate, called, eventually, panic_as_planned, unless_abandoned};
use crate::refresher::{self, Attached, Begun, Options, ParkedThread};
use crate::tokens::{Error, Ledger, NetworkError, Token};

thread_local! {
    /// How often this thread has asked a clock.
    static ASKED: Cell<u64> = const { Cell::new(0) };
    /// The case that this thread runs: for builds that are handed to a spawner, and for the clock.
    static RUNNER: RefCell<Option<Rc<Runner>>> = const { RefCell::new(None) };
}

fn runner() -> Option<Rc<Runner>> {
    RUNNER.with_borrow(Clone::clone)
}

/// A `ManualClock` with a coarse reading that lags behind as far as it says. The contract says that results are
/// exact all the same. While the one thread waits on it, the next operations of the case are performed: there is no other
/// thread that could do so.
#[derive(Clone)]
pub(crate) struct CoarseClock {
    exact: ManualClock,
    period: u64,
    parked: ParkedThread,
}

impl Clock for CoarseClock {
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
            Some(runner) => runner.act_meanwhile(deadline),
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

pub(crate) type TestCell = DogpileCell<Token, CoarseClock>;
type Lease<'a> = dogpile::Lease<'a, Token, CoarseClock>;
type Pending<'a> = dogpile::Pending<'a, Token, CoarseClock>;
type CellRequest<'a> = dogpile::Request<'a, Token, CoarseClock>;

/// What waits: the latest call, or a wait at a kept place.
#[derive(Clone, Copy)]
enum Waiting {
    Call(CallId),
    Place(Place, Limit, Option<Ended>),
}

struct Runner {
    /// `None` when the case is over.
    cell: RefCell<Option<Arc<TestCell>>>,
    clock: ManualClock,
    ledger: Arc<Ledger>,
    model: RefCell<Model>,
    leases: RefCell<Vec<(BuildId, Lease<'static>)>>,
    pendings: RefCell<Vec<(usize, Pending<'static>)>>,
    /// The kept places by number, those that borrow the cell among them.
    places: RefCell<BTreeMap<usize, Place>>,
    /// How many there were.
    placed: Cell<usize>,
    /// Builds that a spawner has kept.
    jobs: RefCell<Vec<(BuildId, Job)>>,
    /// What the readers keep.
    kept_by_readers: [Cell<Option<Number>>; READERS],
    remembered: RefCell<Option<Arc<Token>>>,
    parked: ParkedThread,
    refresher: RefCell<Option<Attached>>,
    /// The calls and waits that have begun.
    waiting: RefCell<Vec<Waiting>>,
    meanwhile: Vec<Vec<Operation>>,
    /// Which of them comes next.
    next: Cell<usize>,
    /// Where the run is: the number of the operation, and of those inside its build.
    path: RefCell<Vec<usize>>,
}

/// What borrows the cell: out of reach for builds that are handed to a spawner, and for what happens during a wait.
struct Borrowed<'a> {
    cell: &'a TestCell,
    readers: [RefCell<dogpile::Reader<'a, Token, CoarseClock>>; READERS],
    leases: RefCell<Vec<(BuildId, Lease<'a>)>>,
    pendings: RefCell<Vec<(usize, Pending<'a>)>>,
}

type Reach<'b, 'a> = Option<&'b Borrowed<'a>>;

/// Runs a case; panics where cell and model part. Returns what has come up, and how often.
pub(crate) fn run(case: &Case) -> BTreeMap<&'static str, u64> {
    let clock = ManualClock::new();
    let parked = ParkedThread::default();
    let coarse =
        CoarseClock { exact: clock.clone(), period: case.settings.coarse_period, parked: parked.clone() };
    let cell = Arc::new(DogpileCell::with_clock(policy(&case.settings), coarse));
    assert_eq!(cell.policy(), policy(&case.settings));
    let runner = Rc::new(Runner {
        cell: RefCell::new(Some(Arc::clone(&cell))),
        clock,
        ledger: Arc::default(),
        model: RefCell::new(Model::new(case.settings.clone())),
        leases: RefCell::default(),
        pendings: RefCell::default(),
        places: RefCell::default(),
        placed: Cell::new(0),
        jobs: RefCell::default(),
        kept_by_readers: Default::default(),
        remembered: RefCell::default(),
        parked,
        refresher: RefCell::default(),
        waiting: RefCell::default(),
        meanwhile: case.meanwhile.clone(),
        next: Cell::new(0),
        path: RefCell::default(),
    });
    RUNNER.set(Some(Rc::clone(&runner)));
    let _epilogue = Epilogue(Rc::clone(&runner));
    let borrowed = Borrowed {
        cell: &cell,
        readers: [(); READERS].map(|()| RefCell::new(cell.reader())),
        leases: RefCell::default(),
        pendings: RefCell::default(),
    };
    runner.compare(Some(&borrowed));
    for (number, operation) in case.operations.iter().enumerate() {
        case.at.store(number, Ordering::Relaxed);
        runner.step(number, operation, Some(&borrowed));
    }
    let refresher = runner.finish(borrowed, case.cell_goes_first);
    drop(runner.cell.take());
    match refresher {
        Some(refresher) => {
            drop(cell);
            refresher.ends();
            runner.model.borrow_mut().meet("refresher: outlives the cell");
        }
        None => {
            let cell = Arc::into_inner(cell).expect("nothing owns the cell any more");
            let value = cell.into_inner().map(|value| runner.number(&value));
            assert_eq!(value, runner.model.borrow().value(), "into_inner");
        }
    }
    let model = runner.model.borrow();
    let expected = model.kept_by_builds();
    // The thread of a refresher may still be about to drop its last error.
    eventually(|| runner.ledger.leaked() == expected);
    assert_eq!(runner.ledger.leaked(), expected, "not dropped exactly once, but for what leaked leases keep");
    model.met.clone()
}

/// Says where the run was when it panicked.
struct Epilogue(Rc<Runner>);

impl Drop for Epilogue {
    fn drop(&mut self) {
        if std::thread::panicking() {
            annotate(&format!("\nat operation {:?}; {:?}", self.0.path.borrow(), self.0.model));
        }
        RUNNER.set(None);
    }
}

fn policy(settings: &Settings) -> Policy {
    let mut policy =
        if settings.ttl == Duration::MAX { Policy::never_expires() } else { Policy::ttl(settings.ttl) };
    if let Some(window) = settings.stale_while_refresh {
        policy = policy.stale_while_refresh(window);
    }
    if let Some(window) = settings.stale_if_error {
        policy = policy.stale_if_error(window);
    }
    if let Some((first, max)) = settings.retry_backoff {
        policy = policy.retry_backoff(first, max);
    }
    if let Some(timeout) = settings.lease_timeout {
        policy = policy.lease_timeout(timeout);
    }
    policy
}

/// What can be seen.
#[derive(Debug, PartialEq, Eq)]
struct State {
    view: View,
    /// The values that are alive.
    alive: BTreeSet<Number>,
    /// What the refresher shows.
    trouble: Trouble,
    /// Whether `get`, `get_unless_due` or `load` has asked a clock without need.
    asks_a_clock: bool,
}

/// Looks at the cell, and whether that asks a clock.
fn asking<R>(look: impl FnOnce() -> R) -> (R, bool) {
    let before = ASKED.get();
    let seen = look();
    (seen, ASKED.get() != before)
}

/// Reads, perhaps so that no clock is asked.
fn quietly<R>(must_be_quiet: bool, read: impl FnOnce() -> R) -> R {
    let (got, asks) = asking(read);
    assert!(!(asks && must_be_quiet), "a read asks a clock");
    got
}

impl Runner {
    fn cell(&self) -> Arc<TestCell> {
        self.cell.borrow().clone().expect("the case is not over")
    }

    fn step(&self, number: usize, operation: &Operation, reach: Reach<'_, '_>) {
        self.path.borrow_mut().push(number);
        self.perform(operation, reach);
        self.compare(reach);
        self.path.borrow_mut().pop();
    }

    fn perform(&self, operation: &Operation, reach: Reach<'_, '_>) {
        match operation {
            Operation::Read(read, build) => self.read(read, build, reach),
            Operation::Lookup { owned, conditions } => self.lookup(*owned, *conditions, reach),
            Operation::EndLease(which, end) => self.end_lease(*which, *end, reach),
            Operation::Wait(which, patience) => self.wait(*which, *patience, reach),
            Operation::Leave(which) => self.leave(*which, reach),
            Operation::RunJob(which) => {
                if let Some((build, job)) = take(&self.jobs, *which) {
                    self.run_job(build, job);
                }
            }
            Operation::DropJob(which) => {
                if let Some((build, job)) = take(&self.jobs, *which) {
                    self.drop_job(build, job);
                    self.model.borrow_mut().meet("job: dropped later");
                }
            }
            Operation::Peek(peek) => self.peek(*peek),
            Operation::ReaderGet(which) => self.reader_get(*which, reach),
            Operation::ReaderGetUnlessDue(which) => self.reader_get_unless_due(*which, reach),
            Operation::ReaderRelease(which) => self.reader_release(*which, reach),
            Operation::Set(set) => self.set(*set),
            Operation::Invalidate => {
                self.model.borrow_mut().invalidate();
                self.cell().invalidate();
            }
            Operation::InvalidateIfCurrent { remembered } => self.invalidate_if_current(*remembered),
            Operation::Remember => {
                drop(self.remembered.replace(self.present()));
            }
            Operation::Clear => {
                let expected = self.model.borrow_mut().clear();
                assert_eq!(self.cell().clear().map(|value| self.number(&value)), expected, "clear");
            }
            Operation::Revoke => {
                let expected = self.model.borrow_mut().revoke();
                assert_eq!(self.cell().revoke(), expected, "revoke");
            }
            Operation::Reset => {
                self.model.borrow_mut().reset();
                self.cell().reset();
            }
            Operation::Attach { ahead, task, rests, min_interval } => {
                let is_task = *task && cfg!(feature = "async");
                // A thread that rests is woken by the first look of a call, and acts while that call goes on.
                let rests = *rests && is_task;
                self.attach(*ahead, Options { min_interval: *min_interval, rests, is_task });
            }
            Operation::RefreshNow => {
                if let Some(refresher) = &*self.refresher.borrow() {
                    let mut model = self.model.borrow_mut();
                    // A thread that cannot build at once notices what happens until then at a time of its own. One that
                    // rests is asked only where it does not have to look at the value of another build.
                    if refresher.is_task() && !model.may_rest() || model.can_refresh_at_once() {
                        model.ask_to_build();
                        drop(model);
                        refresher.refresh_now();
                    }
                }
            }
            Operation::WaitReady => {
                if let Some(refresher) = &*self.refresher.borrow() {
                    let expected = self.model.borrow_mut().is_ready();
                    assert_eq!(refresher.wait_ready(), expected, "wait_ready");
                }
            }
            Operation::Conclude(found) => drop(self.conclude(*found)),
            Operation::Outage(failures) => self.outage(*failures, reach),
            Operation::Detach(found) => self.detach(*found),
            Operation::Advance(by) => {
                let now = self.model.borrow().now();
                self.advance_to(now.saturating_add(*by));
            }
            Operation::AdvanceTo(which, past) => {
                let mut moments = self.model.borrow().moments();
                moments.retain(|moment| *moment < END_OF_TIME);
                if !moments.is_empty() {
                    let moment = moments[which % moments.len()];
                    self.advance_to(moment.saturating_add(Duration::from_nanos(*past)));
                }
            }
        }
    }

    fn advance_to(&self, moment: Duration) {
        let now = self.model.borrow().now();
        self.clock.advance(moment - now);
        self.model.borrow_mut().advance_to(moment.min(END_OF_TIME));
    }

    /// Everything that can be seen without changing anything, when the refresher has done what it has to.
    fn compare(&self, reach: Reach<'_, '_>) {
        self.let_the_refresher_act();
        let expected = self.expected_state();
        if self.refresher.borrow().as_ref().is_some_and(|refresher| !refresher.is_task()) {
            // The end of its build may still be under way on its thread. If it never comes, the comparison below fails.
            eventually(|| self.state() == expected);
        }
        assert_eq!(self.state(), expected, "what can be seen of the cell");

        for (build, lease) in &*self.leases.borrow() {
            self.compare_lease(*build, lease);
        }
        if let Some(borrowed) = reach {
            for (build, lease) in &*borrowed.leases.borrow() {
                self.compare_lease(*build, lease);
            }
        }
    }

    fn compare_lease(&self, build: BuildId, lease: &Lease<'_>) {
        let model = self.model.borrow();
        assert_eq!(
            lease.previous().map(|value| self.number(value)),
            model.previous(build),
            "Lease::previous"
        );
        assert_eq!(lease.generation(), model.generation_of(build), "Lease::generation");
        assert_eq!(lease.is_fenced(), model.is_fenced(build), "Lease::is_fenced");
    }

    fn state(&self) -> State {
        let cell = self.cell();
        let is_unread = self.model.borrow().is_unread();
        let (reads, asks) = if is_unread {
            (None, false)
        } else {
            let (reads, asks) = asking(|| (cell.get(), cell.get_unless_due(), cell.load()));
            let (get, unless_due, load) = reads;
            let reads = Reads {
                get: get.map(|value| self.number(&value)),
                unless_due: unless_due.map(|value| self.number(&value)),
                load: load.map(|guard| guard.number),
                snapshot: cell.snapshot().map(|shot| Shot {
                    value: self.number(&shot.value),
                    generation: shot.generation,
                    age: shot.age,
                    freshness: shot.freshness,
                    fresh_for: shot.fresh_for,
                    servable_for: shot.servable_for,
                }),
            };
            (Some(reads), asks)
        };
        State {
            view: View {
                reads,
                freshness: cell.freshness(),
                generation: cell.generation(),
                is_refreshing: cell.is_refreshing(),
                last_error: cell.last_error().map(|error| self.ledger.fault(&error)),
                stats: cell.stats(),
            },
            alive: self.ledger.values_alive(),
            trouble: self
                .refresher
                .borrow()
                .as_ref()
                .map_or_else(Trouble::default, |refresher| refresher.trouble(&self.ledger)),
            asks_a_clock: asks && self.model.borrow().needs_no_clock(),
        }
    }

    fn expected_state(&self) -> State {
        let model = self.model.borrow();
        let mut alive = model.kept_by_builds();
        alive.extend(model.kept_by_calls());
        alive.extend(model.value());
        alive.extend(self.places.borrow().values().filter_map(|place| model.kept_by(*place)));
        alive.extend(self.kept_by_readers.iter().filter_map(Cell::get));
        alive.extend(self.remembered.borrow().as_ref().map(|value| value.number));
        for waiting in &*self.waiting.borrow() {
            if let Waiting::Place(place, ..) = waiting {
                alive.extend(model.kept_by(*place));
            }
        }
        State { view: model.view(), alive, trouble: model.trouble(), asks_a_clock: false }
    }

    /// Gives everything back. What is left are the cell and its value, and perhaps a refresher that sleeps.
    fn finish(&self, borrowed: Borrowed<'_>, cell_goes_first: bool) -> Option<Attached> {
        self.pendings.borrow_mut().clear();
        self.places.borrow_mut().clear();
        drop(self.remembered.take());
        let Borrowed { readers, leases, pendings, .. } = borrowed;
        drop((readers, pendings));
        self.kept_by_readers.iter().for_each(|kept| kept.set(None));
        while let Some((build, job)) = take(&self.jobs, 0) {
            self.drop_job(build, job);
        }
        for (build, lease) in self.leases.take() {
            self.end(build, lease, End::Drop);
        }
        for (build, lease) in leases.take() {
            self.end(build, lease, End::Drop);
        }
        self.compare(None);
        if !cell_goes_first {
            self.detach(Found::New);
            self.compare(None);
        }
        while self.conclude(Found::New) {
            self.compare(None);
        }
        self.refresher.take()
    }

    fn number(&self, value: &Arc<Token>) -> Number {
        self.ledger.number(value)
    }
}

/// Takes one of those that are kept, if any is.
fn take<K>(kept: &RefCell<Vec<K>>, which: usize) -> Option<K> {
    let mut kept = kept.borrow_mut();
    if kept.is_empty() {
        return None;
    }
    let which = which % kept.len();
    Some(kept.remove(which))
}

/// What a build can return.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Value,
    ValueOrError,
    Conditional,
}

/// What a build is given.
#[derive(Clone, Copy)]
enum Given {
    Nothing,
    Previous(Option<Number>),
}

/// Reads that may build.
impl Runner {
    fn read(&self, read: &Read, build: &Build, reach: Reach<'_, '_>) {
        let kind = match read {
            Read::GetOrRefresh | Read::LoadOrRefresh | Read::Reader(_) => Kind::Network,
            Read::TryGetOrRefresh(kind) => *kind,
            Read::Request(request) => match request.finish {
                Finish::Get => Kind::Network,
                Finish::TryGet(kind) | Finish::TryGetWith(kind) => kind,
            },
        };
        match kind {
            Kind::Network => self.read_as::<false>(read, build, reach),
            Kind::Parse => self.read_as::<true>(read, build, reach),
        }
    }

    /// With errors of one of the two kinds.
    fn read_as<const PARSE: bool>(&self, read: &Read, build: &Build, reach: Reach<'_, '_>) {
        let reader = match (read, reach) {
            (Read::Reader(which), Some(borrowed)) => Some(&borrowed.readers[*which]),
            (Read::Reader(_), None) => return,
            _ => None,
        };
        let Ok(mut handle) = reader.map(RefCell::try_borrow_mut).transpose() else {
            return; // A build that this handle runs cannot come back to it: the handle is borrowed.
        };
        let demand = match read {
            Read::Request(request) => self.demand(&request.conditions),
            _ => Demand::ANYTHING,
        };
        let shape = match read {
            Read::GetOrRefresh | Read::LoadOrRefresh | Read::Reader(_) => Shape::Value,
            Read::TryGetOrRefresh(_) => Shape::ValueOrError,
            Read::Request(request) => match request.finish {
                Finish::Get => Shape::Value,
                Finish::TryGet(_) => Shape::ValueOrError,
                Finish::TryGetWith(_) => Shape::Conditional,
            },
        };
        let can_fail = shape != Shape::Value;
        let mut trial = self.model.borrow().trial();
        let call = trial.begin(demand, can_fail);
        if trial.step(call) == Step::Waits(None) {
            return; // Nothing would end that.
        }
        let call = self.model.borrow_mut().begin(demand, can_fail);
        self.waiting.borrow_mut().push(Waiting::Call(call));
        let needs_no_clock = !matches!(read, Read::Request(_)) && self.model.borrow().needs_no_clock();
        let step = self.model.borrow_mut().step(call);
        let must_be_quiet = needs_no_clock && matches!(step, Step::Returns(_));
        if must_be_quiet {
            self.model.borrow_mut().meet("a read that asks no clock");
        }

        let closure = || self.build_of_call::<PARSE>(call, build, shape, Given::Nothing, reach);
        let value = || match closure() {
            Ok(Refreshed::New(value)) => value,
            _ => unreachable!("it can return no error"),
        };
        let value_or_error = || match closure() {
            Ok(Refreshed::New(value)) => Ok(value),
            Ok(_) => unreachable!("it can return no other"),
            Err(error) => Err(error),
        };
        let got = called(|| {
            unless_abandoned(|| {
                quietly(must_be_quiet, || match read {
                    Read::GetOrRefresh => Ok(self.number(&self.cell().get_or_refresh(value))),
                    Read::LoadOrRefresh => {
                        let owner = self.cell();
                        let guard = owner.load_or_refresh(value);
                        Ok(self.number(&Guard::into_arc(guard)))
                    }
                    Read::Reader(_) => {
                        let handle = handle.as_mut().expect("taken above");
                        Ok(self.number(handle.get_or_refresh(value)))
                    }
                    Read::TryGetOrRefresh(_) => self.answer(self.cell().try_get_or_refresh(value_or_error)),
                    Read::Request(request) => self.finish_request::<PARSE>(request, call, build, reach),
                })
            })
        });
        let expected = self.expected_answer(call, can_fail);
        assert_eq!(got, expected, "{read:?}");
        self.waiting.borrow_mut().pop();
        self.model.borrow_mut().end_call(call);
        if self.model.borrow().is_unread() {
            // Whether what a call returns counts as read if it did not find it in the cell is left open.
            self.peek(Peek::Get);
        }
        if let (Read::Reader(which), Called::Returned(Some(Ok(value)))) = (read, got) {
            self.kept_by_readers[*which].set(Some(value));
        }
    }

    fn finish_request<const PARSE: bool>(
        &self,
        request: &Request,
        call: CallId,
        build: &Build,
        reach: Reach<'_, '_>,
    ) -> Result<Number, Refused> {
        let Request { conditions, finish, owned, spawner } = request;
        if let Some(spawner) = spawner {
            return self.finish_spawned::<PARSE>(request, spawner, call, build, reach);
        }
        let asked = match reach {
            Some(borrowed) if !owned => borrowed.cell.request(),
            _ => self.cell().request_owned(),
        };
        let asked = self.under(asked, conditions);
        match finish {
            Finish::Get => Ok(self.number(&asked.get(|| {
                match self.build_of_call::<PARSE>(call, build, Shape::Value, Given::Nothing, reach) {
                    Ok(Refreshed::New(value)) => value,
                    _ => unreachable!("it can return no error"),
                }
            }))),
            Finish::TryGet(_) => self.answer(asked.try_get(|| {
                match self.build_of_call::<PARSE>(call, build, Shape::ValueOrError, Given::Nothing, reach) {
                    Ok(Refreshed::New(value)) => Ok(value),
                    Ok(_) => unreachable!("it can return no other"),
                    Err(error) => Err(error),
                }
            })),
            Finish::TryGetWith(_) => self.answer(asked.try_get_with(|previous: Option<Arc<Token>>| {
                let previous = previous.map(|previous| self.number(&previous));
                self.build_of_call::<PARSE>(call, build, Shape::Conditional, Given::Previous(previous), reach)
            })),
        }
    }

    fn finish_spawned<const PARSE: bool>(
        &self,
        request: &Request,
        spawner: &Spawner,
        call: CallId,
        build: &Build,
        reach: Reach<'_, '_>,
    ) -> Result<Number, Refused> {
        let handed_over = Arc::new(OnceLock::new());
        let spawn = {
            let handed_over = Arc::clone(&handed_over);
            move |job: Job| self.spawn(job, spawner, call, &handed_over, reach)
        };
        let asked = self.under(self.cell().request_owned(), &request.conditions).spawn_with(spawn);
        let build = build.clone();
        let run = move |shape, given| {
            let id = *handed_over.get().expect("the spawner was called");
            runner().expect("the case is not over").build::<PARSE>(id, &build, shape, given, None)
        };
        match request.finish {
            Finish::Get => Ok(self.number(&asked.get(move || match run(Shape::Value, Given::Nothing) {
                Ok(Refreshed::New(value)) => value,
                _ => unreachable!("it can return no error"),
            }))),
            Finish::TryGet(_) => {
                self.answer(asked.try_get(move || match run(Shape::ValueOrError, Given::Nothing) {
                    Ok(Refreshed::New(value)) => Ok(value),
                    Ok(_) => unreachable!("it can return no other"),
                    Err(error) => Err(error),
                }))
            }
            Finish::TryGetWith(_) => self.answer(asked.try_get_with(move |previous: Option<Arc<Token>>| {
                let previous = previous.map(|previous| previous.number);
                run(Shape::Conditional, Given::Previous(previous))
            })),
        }
    }

    /// What a spawner does.
    fn spawn(
        &self,
        job: Job,
        spawner: &Spawner,
        call: CallId,
        handed_over: &OnceLock<BuildId>,
        reach: Reach<'_, '_>,
    ) {
        let build = self.model.borrow_mut().hand_over(call);
        handed_over.set(build).expect("a build is handed over once");
        self.compare(reach);
        for (number, operation) in spawner.before.iter().enumerate() {
            self.step(number, operation, reach);
        }
        match spawner.does {
            Does::Run => {
                self.model.borrow_mut().meet("spawner: runs the build");
                // If the build panics, so does the call.
                job();
            }
            Does::Drop => {
                self.model.borrow_mut().meet("spawner: drops the build");
                self.drop_job(build, job);
            }
            Does::Keep => {
                self.model.borrow_mut().meet("spawner: keeps the build");
                self.jobs.borrow_mut().push((build, job));
            }
            Does::Panic => {
                let mut model = self.model.borrow_mut();
                model.meet("spawner: panics");
                model.abandon(build);
                drop(model);
                panic_as_planned();
            }
        }
        self.compare(reach);
        for (number, operation) in spawner.after.iter().enumerate() {
            self.step(number, operation, reach);
        }
        while self.model.borrow().trial().after_spawner(call) == Step::Waits(None) {
            self.unblock(build, reach);
        }
        self.model.borrow_mut().after_spawner(call);
    }

    /// The one thread is about to wait for this build, and nothing would end that.
    fn unblock(&self, own: BuildId, reach: Reach<'_, '_>) {
        let position = self.jobs.borrow().iter().position(|(build, _)| *build == own);
        match position {
            Some(position) => {
                let (build, job) = self.jobs.borrow_mut().remove(position);
                self.run_job(build, job);
            }
            None => self.set(Set::New),
        }
        self.compare(reach);
    }

    fn run_job(&self, build: BuildId, job: Job) {
        let ended = called(job);
        let mut model = self.model.borrow_mut();
        let expected = match model.done(build) {
            None => panic!("the job does not run the build"),
            Some(Done::Panicked) => {
                model.meet("job: run later, and panics");
                Called::Panicked
            }
            Some(_) => {
                model.meet("job: run later");
                Called::Returned(())
            }
        };
        assert_eq!(ended, expected, "the end of a job");
    }

    fn drop_job(&self, build: BuildId, job: Job) {
        self.model.borrow_mut().abandon(build);
        drop(job);
    }

    fn demand(&self, conditions: &Conditions) -> Demand {
        let generation = self.model.borrow().generation();
        let Conditions { max_stale, max_age, newer_than, no_cache, wait_at_most, or_stale } = *conditions;
        Demand {
            max_stale: max_stale.unwrap_or(Duration::MAX),
            max_age: max_age.unwrap_or(Duration::MAX),
            newer_than: match newer_than {
                None => 0,
                Some(Newer::Before(count)) => generation.saturating_sub(count),
                Some(Newer::After(count)) => generation + count,
                Some(Newer::Last) => u64::MAX,
            },
            no_cache,
            wait_at_most: wait_at_most.unwrap_or(Duration::MAX),
            or_stale,
        }
    }

    /// The same for the cell.
    fn under<'r>(&self, mut request: CellRequest<'r>, conditions: &Conditions) -> CellRequest<'r> {
        if let Some(window) = conditions.max_stale {
            request = request.max_stale(window);
        }
        if let Some(age) = conditions.max_age {
            request = request.max_age(age);
        }
        if conditions.newer_than.is_some() {
            request = request.newer_than(self.demand(conditions).newer_than);
        }
        if conditions.no_cache {
            request = request.no_cache();
        }
        if let Some(time) = conditions.wait_at_most {
            request = request.wait_at_most(time);
        }
        if conditions.or_stale {
            request = request.or_stale();
        }
        request
    }

    fn answer(&self, got: Result<Arc<Token>, RefreshError>) -> Result<Number, Refused> {
        match got {
            Ok(value) => Ok(self.number(&value)),
            Err(RefreshError::Build(error)) => Err(Refused::Build(self.ledger.fault(&error))),
            Err(RefreshError::WaitTimeout) => Err(Refused::WaitTimeout),
            Err(RefreshError::Reentrant) => Err(Refused::Reentrant),
            Err(RefreshError::Abandoned) => Err(Refused::Abandoned),
            Err(error) => panic!("an error that the test does not know: {error}"),
        }
    }

    /// How the call has to come back. `None`: with the panic that its build was abandoned.
    fn expected_answer(&self, call: CallId, can_fail: bool) -> Called<Option<Result<Number, Refused>>> {
        let mut model = self.model.borrow_mut();
        let refused = match model.step_of(call).expect("it has looked") {
            Step::Returns(value) => return Called::Returned(Some(Ok(value))),
            Step::Waits(until) => panic!("it has returned, though it waits until {until:?}"),
            Step::Refuses(refused) => refused,
            Step::Builds(build) => match model.done(build) {
                None => panic!("it is elected, and does not build"),
                Some(Done::Value(value)) => return Called::Returned(Some(Ok(value))),
                Some(Done::Failed(fault)) => match model.instead_of_error(call) {
                    Some(value) => return Called::Returned(Some(Ok(value))),
                    None => Refused::Build(fault),
                },
                // With the panic of the build, or that of the spawner.
                Some(done @ (Done::Panicked | Done::Abandoned)) => {
                    if model.own_build(call).is_some() && done == Done::Panicked {
                        model.meet("spawner: runs the build, which panics");
                    }
                    return Called::Panicked;
                }
            },
        };
        match refused {
            refused if can_fail => Called::Returned(Some(Err(refused))),
            Refused::Reentrant => Called::WouldWait,
            Refused::Abandoned => Called::Returned(None),
            refused => panic!("it can return no error, and has {refused:?}"),
        }
    }

    /// What the closure of a call does that runs its build itself.
    fn build_of_call<const PARSE: bool>(
        &self,
        call: CallId,
        build: &Build,
        shape: Shape,
        given: Given,
        reach: Reach<'_, '_>,
    ) -> Result<Refreshed<Token>, Error<PARSE>> {
        let step = self.model.borrow().step_of(call);
        let Some(Step::Builds(id)) = step else { panic!("it builds, though the model says {step:?}") };
        self.build::<PARSE>(id, build, shape, given, reach)
    }

    /// What closures do that build.
    fn build<const PARSE: bool>(
        &self,
        id: BuildId,
        build: &Build,
        shape: Shape,
        given: Given,
        reach: Reach<'_, '_>,
    ) -> Result<Refreshed<Token>, Error<PARSE>> {
        if let Given::Previous(previous) = given {
            assert_eq!(previous, self.model.borrow().previous(id), "the previous value of a build");
        }
        self.model.borrow_mut().enter_closure();
        self.compare(reach);
        for (number, operation) in build.inside.iter().enumerate() {
            self.step(number, operation, reach);
        }
        let mut model = self.model.borrow_mut();
        model.leave_closure();
        match (build.outcome, shape) {
            (Outcome::Panic, _) => {
                model.panic(id, PANICKED);
                drop(model);
                panic_as_planned();
            }
            (Outcome::Error, Shape::ValueOrError | Shape::Conditional) => {
                let error = self.ledger.error::<PARSE>();
                model.fail(id, error.fault());
                Err(error)
            }
            (Outcome::NotModified, Shape::Conditional) => {
                if model.renew(id, None).is_some() {
                    model.meet("build: returned NotModified");
                } else {
                    model.meet("build: returned NotModified, with nothing to keep");
                    model.fail(id, NOTHING_TO_KEEP);
                }
                Ok(Refreshed::NotModified)
            }
            (Outcome::ValueFor(ttl), Shape::Conditional) => {
                model.meet("build: returned a value with a ttl");
                let value = self.ledger.value();
                model.publish(id, value.number, Some(ttl));
                Ok(Refreshed::NewFor(value, ttl))
            }
            _ => {
                let value = self.ledger.value();
                model.publish(id, value.number, None);
                Ok(Refreshed::New(value))
            }
        }
    }
}

/// What happens while the one thread waits.
impl Runner {
    fn act_meanwhile(&self, deadline: Tick) {
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

/// Reads that never build, and writes.
impl Runner {
    fn peek(&self, peek: Peek) {
        let cell = self.cell();
        let mut model = self.model.borrow_mut();
        model.read();
        let got = match peek {
            Peek::Get => cell.get().map(|value| self.number(&value)),
            Peek::Load => cell.load().map(|guard| guard.number),
            Peek::GetUnlessDue => cell.get_unless_due().map(|value| self.number(&value)),
        };
        let expected = if let Peek::GetUnlessDue = peek { model.get_unless_due() } else { model.get() };
        assert_eq!(got, expected, "{peek:?}");
    }

    fn reader_get(&self, which: usize, reach: Reach<'_, '_>) {
        let Some(Ok(mut handle)) = reach.map(|borrowed| borrowed.readers[which].try_borrow_mut()) else {
            return;
        };
        self.model.borrow_mut().read();
        let got = handle.get().map(|value| self.number(value));
        assert_eq!(got, self.model.borrow().get(), "Reader::get");
        self.kept_by_readers[which].set(got);
    }

    fn reader_get_unless_due(&self, which: usize, reach: Reach<'_, '_>) {
        let Some(Ok(mut handle)) = reach.map(|borrowed| borrowed.readers[which].try_borrow_mut()) else {
            return;
        };
        self.model.borrow_mut().read();
        let got = handle.get_unless_due().map(|value| self.number(value));
        assert_eq!(got, self.model.borrow().get_unless_due(), "Reader::get_unless_due");
        self.kept_by_readers[which].set(got);
    }

    fn reader_release(&self, which: usize, reach: Reach<'_, '_>) {
        let Some(Ok(mut handle)) = reach.map(|borrowed| borrowed.readers[which].try_borrow_mut()) else {
            return;
        };
        handle.release();
        self.kept_by_readers[which].set(None);
    }

    fn set(&self, set: Set) {
        let cell = self.cell();
        let (number, got) = match set {
            Set::Again => {
                let Some(value) = self.present() else { return };
                let number = self.number(&value);
                self.model.borrow_mut().set(number, None);
                (number, cell.set_arc(value))
            }
            Set::Shared => {
                let value = self.ledger.value();
                let number = value.number;
                self.model.borrow_mut().set(number, None);
                (number, cell.set_arc(Arc::new(value)))
            }
            Set::New => {
                let value = self.ledger.value();
                let number = value.number;
                self.model.borrow_mut().set(number, None);
                (number, cell.set(value))
            }
            Set::NewFor(ttl) => {
                let value = self.ledger.value();
                let number = value.number;
                self.model.borrow_mut().set(number, Some(ttl));
                (number, cell.set_for(value, ttl))
            }
            Set::Restored(age) => {
                let value = self.ledger.value();
                let number = value.number;
                self.model.borrow_mut().restore(number, age);
                (number, cell.restore(value, age))
            }
        };
        assert_eq!(self.number(&got), number, "{set:?}");
    }

    /// The value, whether it may be served or not.
    fn present(&self) -> Option<Arc<Token>> {
        self.model.borrow_mut().read();
        self.cell().snapshot().map(|shot| shot.value)
    }

    fn invalidate_if_current(&self, remembered: bool) {
        let cell = self.cell();
        let seen = if remembered { self.remembered.borrow().clone() } else { self.present() };
        let Some(seen) = seen else { return };
        let expected = self.model.borrow_mut().invalidate_if_current(self.number(&seen));
        assert_eq!(cell.invalidate_if_current(&seen), expected, "invalidate_if_current");
    }
}

/// Leases and places.
impl Runner {
    fn lookup(&self, owned: bool, conditions: Option<Conditions>, reach: Reach<'_, '_>) {
        let demand = conditions.map_or(Demand::ANYTHING, |conditions| self.demand(&conditions));
        let expected = self.model.borrow_mut().lookup(demand);
        match reach {
            Some(borrowed) if !owned => {
                let found = match conditions {
                    Some(conditions) => self.under(borrowed.cell.request(), &conditions).lookup(),
                    None => borrowed.cell.lookup(),
                };
                self.keep(found, expected, &borrowed.leases, &borrowed.pendings);
            }
            _ => {
                let found = match conditions {
                    Some(conditions) => self.under(self.cell().request_owned(), &conditions).lookup(),
                    None => self.cell().lookup_owned(),
                };
                self.keep(found, expected, &self.leases, &self.pendings);
            }
        }
    }

    fn keep<'l>(
        &self,
        found: Lookup<'l, Token, CoarseClock>,
        expected: Seen,
        leases: &RefCell<Vec<(BuildId, Lease<'l>)>>,
        pendings: &RefCell<Vec<(usize, Pending<'l>)>>,
    ) {
        let seen = match found {
            Lookup::Elected(lease) => {
                let Seen::Elected(build) = expected else { panic!("elected, instead of {expected:?}") };
                leases.borrow_mut().push((build, lease));
                return;
            }
            Lookup::Pending(pending) => {
                let place = self.model.borrow_mut().take_place();
                let number = self.placed.get();
                self.placed.set(number + 1);
                self.places.borrow_mut().insert(number, place);
                pendings.borrow_mut().push((number, pending));
                Seen::Pending
            }
            Lookup::Fresh(value) => Seen::Fresh(self.number(&value)),
            Lookup::Stale(value) => Seen::Stale(self.number(&value)),
            Lookup::Failed(error) => Seen::Failed(self.ledger.fault(&error)),
        };
        assert_eq!(seen, expected, "lookup");
    }

    fn end_lease(&self, which: usize, end: End, reach: Reach<'_, '_>) {
        let owned = self.leases.borrow().len();
        let borrowed = reach.map_or(0, |borrowed| borrowed.leases.borrow().len());
        if owned + borrowed == 0 {
            return;
        }
        let which = which % (owned + borrowed);
        if which < owned {
            let (build, lease) = self.leases.borrow_mut().remove(which);
            let end = if let End::Forget = end { End::Drop } else { end };
            if let Some(lease) = self.end(build, lease, end) {
                self.leases.borrow_mut().push((build, lease));
            }
        } else if let Some(borrowed) = reach {
            let (build, lease) = borrowed.leases.borrow_mut().remove(which - owned);
            if let Some(lease) = self.end(build, lease, end) {
                borrowed.leases.borrow_mut().push((build, lease));
            }
        }
    }

    /// Returns the lease if it has not ended.
    fn end<'l>(&self, build: BuildId, lease: Lease<'l>, end: End) -> Option<Lease<'l>> {
        match end {
            End::Publish | End::PublishFor(_) | End::PublishArc => {
                let ttl = if let End::PublishFor(ttl) = end { Some(ttl) } else { None };
                let value = self.ledger.value();
                let expected = self.model.borrow_mut().publish(build, value.number, ttl).value;
                let got = match end {
                    End::PublishFor(ttl) => lease.publish_for(value, ttl),
                    End::PublishArc => lease.publish_arc(Arc::new(value)),
                    _ => lease.publish(value),
                };
                assert_eq!(self.number(&got), expected, "{end:?}");
            }
            End::PublishSnapshot(ttl) => {
                let value = self.ledger.value();
                let expected = self.model.borrow_mut().publish(build, value.number, ttl);
                let got = lease.publish_snapshot(Arc::new(value), ttl);
                let got = Published {
                    value: self.number(&got.value),
                    generation: got.generation,
                    fresh_for: got.fresh_for,
                    servable_for: got.servable_for,
                    outcome: got.outcome,
                };
                assert_eq!(got, expected, "publish_snapshot");
            }
            End::Renew | End::RenewFor(_) => {
                let ttl = if let End::RenewFor(ttl) = end { Some(ttl) } else { None };
                let expected = self.model.borrow_mut().renew(build, ttl).map(|published| published.value);
                let renewed = match ttl {
                    None => lease.renew(),
                    Some(ttl) => lease.renew_for(ttl),
                };
                match renewed {
                    Ok(got) => assert_eq!(Some(self.number(&got)), expected, "renew"),
                    Err(lease) => {
                        assert_eq!(expected, None, "renew gave the lease back");
                        return Some(lease);
                    }
                }
            }
            End::Fail(Kind::Network) => self.fail::<false>(build, lease),
            End::Fail(Kind::Parse) => self.fail::<true>(build, lease),
            End::DropInAPanic => {
                self.model.borrow_mut().panic(build, PANICKED);
                let unwound = called(|| {
                    let _lease = lease;
                    panic_as_planned();
                });
                assert_eq!(unwound, Called::<()>::Panicked);
            }
            End::Forget => mem::forget(lease),
            End::Drop => {
                self.model.borrow_mut().abandon(build);
                drop(lease);
            }
        }
        None
    }

    fn fail<const PARSE: bool>(&self, build: BuildId, lease: Lease<'_>) {
        let error = self.ledger.error::<PARSE>();
        let fault = error.fault();
        self.model.borrow_mut().fail(build, fault);
        assert_eq!(self.ledger.fault(&lease.fail(error)), fault, "fail");
    }

    fn wait(&self, which: usize, patience: Patience, reach: Reach<'_, '_>) {
        let owned = self.pendings.borrow().len();
        let borrowed = reach.map_or(0, |borrowed| borrowed.pendings.borrow().len());
        if owned + borrowed == 0 {
            return;
        }
        let which = which % (owned + borrowed);
        if which < owned {
            let (number, pending) = self.pendings.borrow_mut().remove(which);
            if let Some(pending) = self.wait_at(number, pending, patience) {
                self.pendings.borrow_mut().push((number, pending));
            }
        } else if let Some(borrowed) = reach {
            let (number, pending) = borrowed.pendings.borrow_mut().remove(which - owned);
            if let Some(pending) = self.wait_at(number, pending, patience) {
                borrowed.pendings.borrow_mut().push((number, pending));
            }
        }
    }

    /// Returns the place if the wait has ended before the build.
    fn wait_at<'l>(&self, number: usize, pending: Pending<'l>, patience: Patience) -> Option<Pending<'l>> {
        let place = self.places.borrow()[&number];
        let (limit, ended) = self.model.borrow().trial().wait(place, patience);
        if ended.is_none() && Model::wait_end(place, limit).is_none() {
            return Some(pending); // Nothing would end that.
        }
        let (limit, ended) = self.model.borrow_mut().wait(place, patience);
        self.waiting.borrow_mut().push(Waiting::Place(place, limit, ended));
        self.places.borrow_mut().remove(&number);
        let waited = match patience {
            Patience::Endless => Ok(pending.wait()),
            Patience::For(time) => pending.wait_timeout(time),
        };
        let Some(Waiting::Place(_, _, Some(expected))) = self.waiting.borrow_mut().pop() else {
            panic!("the wait has ended, though the model says that it goes on")
        };
        let (got, left) = match waited {
            Ok(Waited::Published(value)) => (Ended::Published(self.number(&value)), None),
            Ok(Waited::Failed(error)) => (Ended::Failed(self.ledger.fault(&error)), None),
            Ok(Waited::Abandoned) => (Ended::Abandoned, None),
            Ok(Waited::Reentrant) => (Ended::Reentrant, None),
            Ok(waited) => panic!("the test does not know {waited:?}"),
            Err(pending) => (Ended::NotYet, Some(pending)),
        };
        assert_eq!(got, expected, "wait");
        if left.is_some() {
            self.places.borrow_mut().insert(number, place);
        }
        left
    }

    fn leave(&self, which: usize, reach: Reach<'_, '_>) {
        let owned = take(&self.pendings, which).map(|(number, _)| number);
        let number = owned.or_else(|| {
            let (number, _) = take(&reach?.pendings, which)?;
            Some(number)
        });
        if let Some(number) = number {
            self.places.borrow_mut().remove(&number);
        }
    }
}

/// The refresher.
impl Runner {
    fn let_the_refresher_act(&self) {
        let mut refresher = self.refresher.borrow_mut();
        let Some(refresher) = &mut *refresher else { return };
        let mut model = self.model.borrow_mut();
        let before = model.refreshers_build();
        let activity = model.let_it_act().expect("there is one");
        let begun = model.refreshers_build().filter(|_| before.is_none());
        let begun = begun.map(|build| Begun { previous: model.previous(build) });
        refresher.run(activity, begun, &self.clock);
    }

    fn attach(&self, ahead: Ahead, options: Options) {
        if self.model.borrow().has_a_refresher() {
            return;
        }
        let ahead = match ahead {
            Ahead::By(ahead) => ahead,
            Ahead::Percent(percent) => self.model.borrow().ttl().saturating_mul(percent) / 100,
        };
        let attached = Attached::attach(&self.cell(), &self.ledger, &self.parked, ahead, options);
        let is_task = attached.as_ref().is_some_and(Attached::is_task);
        let min_interval = options.min_interval.unwrap_or(Duration::from_millis(100));
        let is_accepted = self.model.borrow_mut().attach(ahead, min_interval, options.rests, is_task);
        assert_eq!(attached.is_some(), is_accepted, "accepted");
        *self.refresher.borrow_mut() = attached;
    }

    /// Whether there was a build to conclude.
    fn conclude(&self, found: Found) -> bool {
        let builds = self.model.borrow().refreshers_build().is_some();
        if builds {
            let end = self.end_of_refresh(found);
            self.refresher.borrow().as_ref().expect("it builds").conclude(end);
        }
        builds
    }

    fn outage(&self, failures: u32, reach: Reach<'_, '_>) {
        for _ in 0..failures {
            self.conclude(Found::Error);
            self.compare(reach);
            let until = self.model.borrow().next_attempt();
            if let Some(until) = until {
                self.advance_to(until);
                self.compare(reach);
            }
        }
    }

    fn detach(&self, found: Found) {
        let Some(refresher) = self.refresher.take() else { return };
        let builds = self.model.borrow().refreshers_build().is_some();
        if builds && !refresher.is_task() {
            let end = self.end_of_refresh(found);
            self.model.borrow_mut().detach_from_inside();
            refresher.detach(Some(end));
        } else {
            self.model.borrow_mut().detach();
            refresher.detach(None);
        }
    }

    /// What the running build will find, which the model knows already.
    fn end_of_refresh(&self, found: Found) -> refresher::End {
        let mut model = self.model.borrow_mut();
        let of_value = |model: &mut Model, ttl: Option<Duration>| -> refresher::End {
            let value = self.ledger.value();
            model.conclude_new(value.number, ttl);
            Box::new(move || {
                Ok(match ttl {
                    None => Refreshed::New(value),
                    Some(ttl) => Refreshed::NewFor(value, ttl),
                })
            })
        };
        match found {
            Found::New => of_value(&mut model, None),
            Found::NewFor(ttl) => of_value(&mut model, Some(ttl)),
            Found::NotModified => {
                model.conclude_not_modified();
                Box::new(|| Ok(Refreshed::NotModified))
            }
            Found::Error => {
                let error: NetworkError = self.ledger.error();
                model.conclude_error(error.fault());
                Box::new(move || Err(error))
            }
            Found::Panic => {
                model.conclude_panic();
                Box::new(refresher::panics)
            }
        }
    }
}
