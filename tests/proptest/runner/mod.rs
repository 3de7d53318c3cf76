//! Does the operations of a case, to a cell and to the model, and compares.

mod cell;
pub(crate) mod drain;
mod leases;
mod reads;
mod refreshes;
mod waits;
mod writes;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dogpile::{Job, ManualClock, ReadGuard, Snapshot};

pub(crate) use self::cell::Dogpile;
use self::cell::{Either, Handle, Subscription, SyncReader, TestCell, either};
pub(crate) use self::waits::TestClock;
use self::waits::Waiting;
use crate::model::{BuildId, END_OF_TIME, Event, Hold, Model, Number, Place, Reads, Shot, Trouble, View};
use crate::operations::{Case, End, Found, Operation, READERS};
use crate::panics::{annotate, eventually};
use crate::refresher::{Attached, Options, ParkedThread};
use crate::tokens::{Ledger, Token};

type Lease<'a> = dogpile::Lease<'a, Token, TestClock>;
type Pending<'a> = dogpile::Pending<'a, Token, TestClock>;

thread_local! {
    /// How often this thread has asked a clock.
    static ASKED: Cell<u64> = const { Cell::new(0) };
    /// The case that this thread runs: for builds that are handed to a spawner, and for the clock.
    static RUNNER: RefCell<Option<Rc<Runner>>> = const { RefCell::new(None) };
}

fn runner() -> Option<Rc<Runner>> {
    RUNNER.with_borrow(Clone::clone)
}

struct Runner {
    /// `None` when the case is over.
    cell: RefCell<Option<TestCell>>,
    clock: ManualClock,
    ledger: Arc<Ledger>,
    model: RefCell<Model>,
    /// The values that the test keeps.
    handles: RefCell<Vec<(Number, Handle)>>,
    leases: RefCell<Vec<(BuildId, Lease<'static>)>>,
    pendings: RefCell<Vec<(usize, Pending<'static>)>>,
    /// The kept places by number, those that borrow the cell among them.
    places: RefCell<BTreeMap<usize, Place>>,
    /// How many there were.
    placed: Cell<usize>,
    /// Builds that a spawner has kept.
    jobs: RefCell<Vec<(BuildId, Job)>>,
    /// The generation that the subscription has returned last.
    seen: Cell<u64>,
    /// What the readers keep.
    kept_by_readers: [Cell<Option<Number>>; READERS],
    parked: ParkedThread,
    refresher: RefCell<Option<Attached>>,
    /// The calls and waits that have begun.
    waiting: RefCell<Vec<Waiting>>,
    meanwhile: Vec<Vec<Operation>>,
    /// Which of them comes next.
    next: Cell<usize>,
    /// While the one thread waits for readers: the cell's own thread has had nothing to do since before the latest look.
    is_calm: Cell<bool>,
    /// What has happened then.
    happened: RefCell<Vec<Event>>,
    /// Where the run is: the number of the operation, and of those inside its build.
    path: RefCell<Vec<usize>>,
}

/// What borrows the cell: out of reach for builds that are handed to a spawner, and for what happens during a wait.
struct Borrowed<'a> {
    cell: &'a TestCell,
    subscription: RefCell<Subscription<'a>>,
    /// Of a `DogpileCell`.
    readers: Vec<RefCell<dogpile::Reader<'a, Token, TestClock>>>,
    leases: RefCell<Vec<(BuildId, Lease<'a>)>>,
    pendings: RefCell<Vec<(usize, Pending<'a>)>>,
    /// Of a `SyncReaderCell`.
    guards: RefCell<Vec<(Number, Hold, ReadGuard<'a, Token>)>>,
}

type Reach<'b, 'a> = Option<&'b Borrowed<'a>>;

/// Runs a case; panics where cell and model part. Returns what has come up, and how often.
pub(crate) fn run(case: &Case) -> BTreeMap<&'static str, u64> {
    let clock = ManualClock::new();
    let parked = ParkedThread::default();
    let ledger = Arc::default();
    let of_cell = TestClock::new(&clock, case.settings.coarse_period, &parked);
    let cell = TestCell::new(&case.settings, of_cell, &ledger);
    let runner = Rc::new(Runner {
        cell: RefCell::new(Some(cell.clone())),
        clock,
        ledger,
        model: RefCell::new(Model::new(case.settings.clone())),
        handles: RefCell::default(),
        leases: RefCell::default(),
        pendings: RefCell::default(),
        places: RefCell::default(),
        placed: Cell::new(0),
        jobs: RefCell::default(),
        seen: Cell::new(0),
        kept_by_readers: Default::default(),
        parked,
        refresher: RefCell::default(),
        waiting: RefCell::default(),
        meanwhile: case.meanwhile.clone(),
        next: Cell::new(0),
        is_calm: Cell::new(false),
        happened: RefCell::default(),
        path: RefCell::default(),
    });
    RUNNER.set(Some(Rc::clone(&runner)));
    let _epilogue = Epilogue(Rc::clone(&runner));
    let readers = match &cell {
        Either::Dogpile(cell) => (0..READERS).map(|_| RefCell::new(cell.reader())).collect(),
        Either::SyncReader(_) => Vec::new(),
    };
    let subscription = match &cell {
        Either::Dogpile(cell) => Either::Dogpile(cell.subscribe()),
        Either::SyncReader(cell) => Either::SyncReader(cell.subscribe()),
    };
    let borrowed = Borrowed {
        cell: &cell,
        subscription: RefCell::new(subscription),
        readers,
        leases: RefCell::default(),
        pendings: RefCell::default(),
        guards: RefCell::default(),
    };
    runner.compare(Some(&borrowed));
    for (number, operation) in case.operations.iter().enumerate() {
        case.at.store(number, Ordering::Relaxed);
        runner.step(number, operation, Some(&borrowed));
    }
    let refresher = runner.give_back(borrowed, case.cell_goes_first);
    drop(runner.cell.take());
    match cell {
        Either::Dogpile(cell) => runner.end(cell, refresher),
        Either::SyncReader(cell) => {
            runner.model.borrow_mut().drop_cell();
            drop(cell);
            runner.compare_values();
            for (number, operation) in case.afterwards.iter().enumerate() {
                case.at.store(case.operations.len() + number, Ordering::Relaxed);
                runner.perform_afterwards(operation);
            }
            while runner.drop_handle(0) {}
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
    fn cell(&self) -> TestCell {
        self.cell.borrow().clone().expect("the case is not over")
    }

    /// `None`: it is of the other kind.
    fn dogpile(&self) -> Option<Arc<Dogpile>> {
        if let Either::Dogpile(cell) = self.cell() { Some(cell) } else { None }
    }

    fn sync_reader(&self) -> Option<Arc<SyncReader>> {
        if let Either::SyncReader(cell) = self.cell() { Some(cell) } else { None }
    }

    fn step(&self, number: usize, operation: &Operation, reach: Reach<'_, '_>) {
        self.path.borrow_mut().push(number);
        self.perform(operation, reach);
        self.compare(reach);
        self.path.borrow_mut().pop();
    }

    fn perform(&self, operation: &Operation, reach: Reach<'_, '_>) {
        match operation {
            Operation::Read(read, build, keep) => self.read(read, build, *keep, reach),
            Operation::Peek(peek, keep) => self.peek(*peek, *keep, reach),
            Operation::CloneHandle(which) => self.clone_handle(*which),
            Operation::DropHandle(which) => drop(self.drop_handle(*which)),
            Operation::DropGuard(which) => drop(self.drop_guard(*which, reach)),
            Operation::DropAll => while self.drop_handle(0) || self.drop_guard(0, reach) {},
            Operation::Lookup { owned, conditions } => self.lookup(*owned, *conditions, reach),
            Operation::EndLease(which, end) => self.end_lease(*which, *end, reach),
            Operation::Wait(which, patience) => self.wait(*which, *patience, reach),
            Operation::LeavePlace(which) => self.leave_place(*which, reach),
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
            Operation::ReaderGet(which) => self.reader_get(*which, reach),
            Operation::ReaderGetUnlessDue(which) => self.reader_get_unless_due(*which, reach),
            Operation::ReaderRelease(which) => self.reader_release(*which, reach),
            Operation::Changed(keep) => self.changed(*keep, reach),
            Operation::Set(set, keep) => self.set(*set, *keep, reach),
            Operation::Invalidate => {
                self.model.borrow_mut().invalidate();
                either!(self.cell(), cell => cell.invalidate());
            }
            Operation::InvalidateIfCurrent(which) => self.invalidate_if_current(*which),
            Operation::Clear => self.clear(),
            Operation::ClearIfCurrent(which) => self.clear_if_current(*which),
            Operation::Revoke => {
                let expected = self.model.borrow_mut().revoke();
                assert_eq!(either!(self.cell(), cell => cell.revoke()), expected, "revoke");
            }
            Operation::Reset => {
                either!(self.cell(), cell => cell.reset());
                self.with_events(Model::reset);
            }
            Operation::Attach { ahead, task, rests, min_interval } => {
                let is_task = *task && cfg!(feature = "async");
                // A thread that rests is woken by the first look of a call, and acts while that call goes on.
                let rests = *rests && is_task;
                self.attach(*ahead, Options { min_interval: *min_interval, rests, is_task });
            }
            Operation::RefreshNow => self.refresh_now(),
            Operation::WaitReady => self.wait_ready(),
            Operation::Conclude(found) => drop(self.conclude(*found)),
            Operation::Outage(failures) => self.outage(*failures, reach),
            Operation::Detach(found) => self.detach(*found),
            // Only a build that is given a writer can do that.
            Operation::Lock(_) | Operation::Mark => {}
            Operation::Synchronize(patience) => self.synchronize(*patience),
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

    /// Everything that can be seen without changing anything, when the refresher has done what it has to, and the cell's own
    /// thread.
    fn compare(&self, reach: Reach<'_, '_>) {
        self.let_the_refresher_act();
        self.compare_values();
        let expected = self.expected_state();
        if self.refresher.borrow().as_ref().is_some_and(|refresher| !refresher.is_task()) {
            // The end of its build may still be under way on its thread. If it never comes, the comparison below fails.
            eventually(|| self.state() == expected);
        }
        assert_eq!(self.state(), expected, "what can be seen of the cell");

        self.compare_readers(reach);
        for (build, lease) in &*self.leases.borrow() {
            self.compare_lease(*build, lease);
        }
        if let Some(borrowed) = reach {
            let (has_changed, seen) = either!(&*borrowed.subscription.borrow(), subscription => {
                (subscription.has_changed(), subscription.seen())
            });
            let seen_by_model = self.seen.get();
            assert_eq!(seen, seen_by_model, "Subscription::seen");
            let expected = self.model.borrow().published_after(seen_by_model).is_some();
            assert_eq!(has_changed, expected, "Subscription::has_changed");
            for (build, lease) in &*borrowed.leases.borrow() {
                self.compare_lease(*build, lease);
            }
        }
    }

    fn state(&self) -> State {
        let cell = self.cell();
        let is_unread = self.model.borrow().is_unread();
        let (reads, asks) = if is_unread {
            (None, false)
        } else {
            let ((get, load, unless_due), asks) = asking(|| {
                let get = either!(&cell, cell => cell.get().map(|value| self.number(&value)));
                let load = either!(&cell, cell => cell.load().map(|value| self.number(&value)));
                let unless_due = match &cell {
                    Either::Dogpile(cell) => cell.get_unless_due().map(|value| self.number(&value)),
                    Either::SyncReader(_) => None,
                };
                (get, load, unless_due)
            });
            let snapshot = either!(&cell, cell => cell.snapshot().map(|shot| self.shot(&shot)));
            (Some(Reads { get, unless_due, load, snapshot }), asks)
        };
        let view = either!(&cell, cell => View {
            reads,
            freshness: cell.freshness(),
            generation: cell.generation(),
            is_refreshing: cell.is_refreshing(),
            last_error: cell.last_error().map(|error| self.ledger.fault(&error)),
            peek: cell.peek().map(|shot| self.shot(&shot)),
            retired: self.retired(),
            stats: cell.stats(),
        });
        State {
            view,
            alive: self.ledger.values_alive(),
            trouble: self
                .refresher
                .borrow()
                .as_ref()
                .map_or_else(Trouble::default, |refresher| refresher.trouble(&self.ledger)),
            asks_a_clock: asks && self.model.borrow().needs_no_clock(),
        }
    }

    fn shot<S: Deref<Target = Token>>(&self, shot: &Snapshot<Token, S>) -> Shot {
        Shot {
            value: self.number(&shot.value),
            generation: shot.generation,
            age: shot.age,
            freshness: shot.freshness,
            fresh_for: shot.fresh_for,
            servable_for: shot.servable_for,
            stale_for: shot.stale_for,
        }
    }

    fn expected_state(&self) -> State {
        let model = self.model.borrow();
        let mut alive = model.alive();
        alive.extend(self.handles.borrow().iter().map(|(number, _)| *number));
        alive.extend(self.places.borrow().values().filter_map(|place| model.kept_by(*place)));
        alive.extend(self.kept_by_readers.iter().filter_map(Cell::get));
        for waiting in &*self.waiting.borrow() {
            if let Waiting::Place(place, ..) = waiting {
                alive.extend(model.kept_by(*place));
            }
        }
        State { view: model.view(), alive, trouble: model.trouble(), asks_a_clock: false }
    }

    /// Gives back what the test keeps, but for the handles of a `SyncReaderCell`. What is left are the cell and its value, and
    /// perhaps a refresher that sleeps.
    fn give_back(&self, borrowed: Borrowed<'_>, cell_goes_first: bool) -> Option<Attached> {
        while self.drop_guard(0, Some(&borrowed)) {}
        self.pendings.borrow_mut().clear();
        self.places.borrow_mut().clear();
        let Borrowed { subscription, readers, leases, pendings, .. } = borrowed;
        drop((subscription, readers, pendings));
        self.kept_by_readers.iter().for_each(|kept| kept.set(None));
        while let Some((build, job)) = take(&self.jobs, 0) {
            self.drop_job(build, job);
        }
        for (build, lease) in self.leases.take() {
            self.end_with(build, lease, End::Drop);
        }
        for (build, lease) in leases.take() {
            self.end_with(build, lease, End::Drop);
        }
        if self.dogpile().is_some() {
            self.handles.borrow_mut().clear();
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

    fn end(&self, cell: Arc<Dogpile>, refresher: Option<Attached>) {
        match refresher {
            Some(refresher) => {
                drop(cell);
                refresher.ends();
                self.model.borrow_mut().meet("refresher: outlives the cell");
            }
            None => {
                let cell = Arc::into_inner(cell).expect("nothing owns the cell any more");
                let value = cell.into_inner().map(|value| self.number(&value));
                assert_eq!(value, self.model.borrow().value(), "into_inner");
            }
        }
    }

    fn number(&self, value: &Token) -> Number {
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
