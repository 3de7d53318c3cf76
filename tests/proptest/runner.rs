//! Does the operations of a case, to a cell and to the model, and compares.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dogpile::{
    Clock, DogpileCell, Guard, Lookup, ManualClock, OwnedLookup, Policy, RefreshError, Refreshed,
    SharedError, Tick, Waited,
};

use crate::model::{
    BuildId, END_OF_TIME, Ended, Fault, Kind, Model, Number, Patience, Place, Seen, Settings, Shot, Trouble,
    View, Want,
};
use crate::operations::{Ahead, Build, By, Case, End, Found, Operation, Outcome, READERS};
use crate::panics::{Called, annotate, called, eventually, panic_as_planned};
use crate::refresher::{self, Attached, Bed, Begun};
use crate::tokens::{Error, Ledger, NetworkError, ParseError, Token};

thread_local! {
    /// How often this thread has asked a clock.
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

/// A `ManualClock` with a coarse reading that lags behind as far as it says. The contract says that results are
/// exact all the same.
#[derive(Clone)]
pub(crate) struct CoarseClock {
    exact: ManualClock,
    period: u64,
    bed: Bed,
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
        self.bed.park_until(&self.exact, deadline, now);
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

/// A kept lease.
enum Lease<'a> {
    Borrowed(dogpile::Lease<'a, Token, CoarseClock>),
    Owned(dogpile::OwnedLease<Token, CoarseClock>),
}

/// A kept place among those who wait.
enum Pending<'a> {
    Borrowed(dogpile::Pending<'a, Token, CoarseClock>),
    Owned(dogpile::OwnedPending<Token, CoarseClock>),
}

/// The same for either form.
macro_rules! either {
    ($of:ident, $either:expr, $it:ident => $same:expr) => {
        match $either {
            $of::Borrowed($it) => $same,
            $of::Owned($it) => $same,
        }
    };
}

/// A `Reader` and the value that it keeps.
struct Reader<'a> {
    reader: RefCell<dogpile::Reader<'a, Token, CoarseClock>>,
    keeps: Cell<Option<Number>>,
}

struct Runner<'a> {
    cell: &'a Arc<TestCell>,
    clock: &'a ManualClock,
    ledger: &'a Arc<Ledger>,
    model: &'a RefCell<Model>,
    leases: RefCell<Vec<(BuildId, Lease<'a>)>>,
    pendings: RefCell<Vec<(Place, Pending<'a>)>>,
    readers: [Reader<'a>; READERS],
    bed: &'a Bed,
    refresher: RefCell<Option<Attached>>,
    /// Where the run is: the number of the operation, and of those inside its build.
    path: &'a RefCell<Vec<usize>>,
}

/// Runs a case; panics where cell and model part. Returns what has come up, and how often.
pub(crate) fn run(case: &Case) -> BTreeMap<&'static str, u64> {
    let clock = ManualClock::new();
    let ledger = Arc::new(Ledger::default());
    let model = RefCell::new(Model::new(case.settings.clone()));
    let bed = Bed::default();
    let coarse = CoarseClock { exact: clock.clone(), period: case.settings.coarse_period, bed: bed.clone() };
    let cell = Arc::new(DogpileCell::with_clock(policy(&case.settings), coarse));
    let path = RefCell::new(Vec::new());
    let _epitaph = Epitaph { path: &path, model: &model };
    let runner = Runner {
        cell: &cell,
        clock: &clock,
        ledger: &ledger,
        model: &model,
        leases: RefCell::default(),
        pendings: RefCell::default(),
        readers: [(); READERS]
            .map(|()| Reader { reader: RefCell::new(cell.reader()), keeps: Cell::new(None) }),
        bed: &bed,
        refresher: RefCell::default(),
        path: &path,
    };
    runner.compare();
    for (number, operation) in case.operations.iter().enumerate() {
        case.at.store(number, Ordering::Relaxed);
        runner.step(number, operation);
    }
    match runner.finish(case.cell_goes_first) {
        Some(refresher) => {
            drop(cell);
            refresher.ends();
            model.borrow_mut().meet("refresher: outlives the cell");
        }
        None => {
            let cell = Arc::into_inner(cell).expect("nothing owns the cell any more");
            let value = cell.into_inner().map(|value| ledger.number(&value));
            assert_eq!(value, model.borrow().value(), "into_inner");
        }
    }
    let model = model.borrow();
    assert_eq!(
        ledger.leaked(),
        model.kept_by_builds(),
        "not dropped exactly once, but for what leaked leases keep"
    );
    model.met.clone()
}

/// Says where the run was when it panicked.
struct Epitaph<'a> {
    path: &'a RefCell<Vec<usize>>,
    model: &'a RefCell<Model>,
}

impl Drop for Epitaph<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            annotate(&format!("\nat operation {:?}; {:?}", self.path.borrow(), self.model));
        }
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
    /// What the refresher tells.
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

/// What the cell answers, in the model's words.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Build(Number),
    WaitTimeout,
    Reentrant,
}

impl Runner<'_> {
    fn step(&self, number: usize, operation: &Operation) {
        self.path.borrow_mut().push(number);
        self.perform(operation);
        self.compare();
        self.path.borrow_mut().pop();
    }

    fn perform(&self, operation: &Operation) {
        match operation {
            Operation::Refresh(by, build) => self.refresh(*by, build),
            Operation::TryRefresh(Kind::Network, wait, build) => self.try_refresh::<false>(*wait, build),
            Operation::TryRefresh(Kind::Parse, wait, build) => self.try_refresh::<true>(*wait, build),
            Operation::Lookup { owned } => self.lookup(*owned),
            Operation::EndLease(which, end) => self.end_lease(*which, *end),
            Operation::Wait(which, patience) => self.wait(*which, *patience),
            Operation::Leave(which) => drop(take(&self.pendings, *which)),
            Operation::ReaderGet(which) => self.reader_get(*which),
            Operation::ReaderGetUnlessDue(which) => self.reader_get_unless_due(*which),
            Operation::ReaderRelease(which) => self.reader_release(*which),
            Operation::Set => {
                let value = self.ledger.value();
                self.model.borrow_mut().set(value.number);
                let number = value.number;
                assert_eq!(self.number(&self.cell.set(value)), number, "set");
            }
            Operation::Invalidate => {
                self.model.borrow_mut().invalidate();
                self.cell.invalidate();
            }
            Operation::Clear => {
                let expected = self.model.borrow_mut().clear();
                assert_eq!(self.cell.clear().map(|value| self.number(&value)), expected, "clear");
            }
            Operation::Attach { ahead, task } => self.attach(*ahead, *task),
            Operation::Conclude(found) => drop(self.conclude(*found)),
            Operation::Outage(failures) => self.outage(*failures),
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
    fn compare(&self) {
        self.let_the_refresher_act();
        let expected = self.expected_state();
        if self.refresher.borrow().as_ref().is_some_and(|refresher| !refresher.is_task()) {
            // The end of its build may still be under way on its thread. If it never comes, what follows shows what is
            // amiss.
            eventually(|| self.state() == expected);
        }
        assert_eq!(self.state(), expected, "what can be seen of the cell");

        let leases = self.leases.borrow();
        for (build, lease) in &*leases {
            let previous = either!(Lease, lease, lease => lease.previous());
            let expected = self.model.borrow().previous(*build);
            assert_eq!(previous.map(|value| self.number(value)), expected, "previous");
        }
    }

    fn state(&self) -> State {
        let cell = self.cell;
        let ((get, unless_due, load), asks) = asking(|| (cell.get(), cell.get_unless_due(), cell.load()));
        State {
            view: View {
                get: get.map(|value| self.number(&value)),
                unless_due: unless_due.map(|value| self.number(&value)),
                load: load.map(|guard| guard.number),
                freshness: cell.freshness(),
                snapshot: cell.snapshot().map(|shot| Shot {
                    value: self.number(&shot.value),
                    generation: shot.generation,
                    age: shot.age,
                    freshness: shot.freshness,
                }),
                generation: cell.generation(),
                is_refreshing: cell.is_refreshing(),
                stats: cell.stats(),
            },
            alive: self.ledger.values_alive(),
            trouble: self
                .refresher
                .borrow()
                .as_ref()
                .map_or_else(Trouble::default, |refresher| refresher.trouble(self.ledger)),
            asks_a_clock: asks && self.model.borrow().needs_no_clock(),
        }
    }

    fn expected_state(&self) -> State {
        let model = self.model.borrow();
        let mut alive = model.kept_by_builds();
        alive.extend(model.value());
        alive.extend(self.pendings.borrow().iter().filter_map(|(place, _)| model.kept_by(*place)));
        alive.extend(self.readers.iter().filter_map(|reader| reader.keeps.get()));
        State { view: model.view(), alive, trouble: model.trouble(), asks_a_clock: false }
    }

    /// Gives everything back. What is left are the cell and its value, and perhaps a refresher that sleeps.
    fn finish(self, cell_goes_first: bool) -> Option<Attached> {
        while take(&self.pendings, 0).is_some() {}
        for reader in &self.readers {
            reader.reader.borrow_mut().release();
            reader.keeps.set(None);
        }
        while !self.leases.borrow().is_empty() {
            self.end_lease(0, End::Drop);
        }
        self.compare();
        if !cell_goes_first {
            self.detach(Found::New);
            self.compare();
        }
        while self.conclude(Found::New) {
            self.compare();
        }
        self.refresher.take()
    }

    fn number(&self, value: &Arc<Token>) -> Number {
        self.ledger.number(value)
    }

    fn fault(&self, error: SharedError) -> Fault {
        match error.downcast::<NetworkError>() {
            Ok(error) => self.ledger.fault(&error),
            Err(error) => match error.downcast::<ParseError>() {
                Ok(error) => self.ledger.fault(&error),
                Err(error) => refresher::text(error),
            },
        }
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

/// Reads that may build.
impl Runner<'_> {
    fn refresh(&self, by: By, build: &Build) {
        let reader = match by {
            By::Reader(which) => Some(&self.readers[which]),
            _ => None,
        };
        let Ok(mut handle) = reader.map(|reader| reader.reader.try_borrow_mut()).transpose() else {
            return; // A build that this handle runs cannot come back to it: the handle is borrowed.
        };
        let seen = self.model.borrow_mut().lookup(match by {
            By::GetFreshOrRefresh => Want::Fresh,
            By::Refresh => Want::New,
            By::GetOrRefresh | By::LoadOrRefresh | By::Reader(_) => Want::Value,
        });
        if seen == Seen::Pending && !self.model.borrow().is_inside_a_build() {
            return; // It would wait for ever.
        }
        let needs_no_clock = self.needs_no_clock(seen, by != By::GetFreshOrRefresh);
        let made = Cell::new(None);
        let closure = || match self.build(seen, build) {
            Some(value) => {
                made.set(Some(value.number));
                value
            }
            None => panic_as_planned(),
        };
        let got = called(|| {
            quietly(needs_no_clock, || match by {
                By::GetOrRefresh => self.number(&self.cell.get_or_refresh(closure)),
                By::LoadOrRefresh => self.number(&Guard::into_arc(self.cell.load_or_refresh(closure))),
                By::GetFreshOrRefresh => self.number(&self.cell.get_fresh_or_refresh(closure)),
                By::Refresh => self.number(&self.cell.refresh(closure)),
                By::Reader(_) => {
                    let handle = handle.as_mut().expect("taken above");
                    self.number(handle.get_or_refresh(closure))
                }
            })
        });
        let expected = match seen {
            Seen::Fresh(value) | Seen::Stale(value) => Called::Returned(value),
            Seen::Pending => {
                self.model.borrow_mut().meet("reentry: a panic");
                Called::WouldWait
            }
            Seen::Elected(id) => {
                let mut model = self.model.borrow_mut();
                if let Some(value) = made.get() {
                    Called::Returned(model.publish(id, value, None))
                } else {
                    model.panic(id);
                    Called::Panicked
                }
            }
            Seen::Failed(_) => unreachable!("these methods cannot report an error"),
        };
        assert_eq!(got, expected, "{by:?}");
        if let (Some(reader), Called::Returned(value)) = (reader, got) {
            reader.keeps.set(Some(value));
        }
    }

    fn try_refresh<const PARSE: bool>(&self, wait: Option<Duration>, build: &Build) {
        let seen = self.model.borrow_mut().lookup(Want::ValueOrError);
        let seen = match seen {
            // An error of somebody else's type: this caller builds, pause or not.
            Seen::Failed(fault) if fault.kind != Some(Error::<PARSE>::KIND) => {
                self.model.borrow_mut().lookup(Want::Value)
            }
            seen => seen,
        };
        let is_inside = self.model.borrow().is_inside_a_build();
        if seen == Seen::Pending && !is_inside && wait != Some(Duration::ZERO) {
            return; // It would wait for ever.
        }
        let needs_no_clock = self.needs_no_clock(seen, true);
        let made = Cell::new(None);
        let closure = || match (build.result, self.build(seen, build)) {
            (_, Some(value)) => {
                made.set(Some(value.number));
                Ok(value)
            }
            (Outcome::Error, None) => {
                let error = self.ledger.error::<PARSE>();
                made.set(Some(error.0.number));
                Err(error)
            }
            _ => panic_as_planned(),
        };
        let got = called(|| {
            let got = quietly(needs_no_clock, || match wait {
                None => self.cell.try_get_or_refresh(closure),
                Some(wait) => self.cell.try_get_or_refresh_timeout(wait, closure),
            });
            match got {
                Ok(value) => Ok(self.number(&value)),
                Err(RefreshError::Build(error)) => Err(Refused::Build(self.ledger.fault(&error).number)),
                Err(RefreshError::WaitTimeout) => Err(Refused::WaitTimeout),
                Err(RefreshError::Reentrant) => Err(Refused::Reentrant),
                Err(error) => panic!("an error that the test does not know: {error}"),
            }
        });
        let mut model = self.model.borrow_mut();
        let expected = match (seen, made.get()) {
            (Seen::Fresh(value) | Seen::Stale(value), _) => Called::Returned(Ok(value)),
            (Seen::Failed(fault), _) => Called::Returned(Err(Refused::Build(fault.number))),
            (Seen::Pending, _) if is_inside => {
                model.meet("reentry: an error");
                Called::Returned(Err(Refused::Reentrant))
            }
            (Seen::Pending, _) => {
                model.give_up_waiting();
                Called::Returned(Err(Refused::WaitTimeout))
            }
            (Seen::Elected(id), None) => {
                model.panic(id);
                Called::Panicked
            }
            (Seen::Elected(id), Some(value)) if build.result == Outcome::Value => {
                Called::Returned(Ok(model.publish(id, value, None)))
            }
            (Seen::Elected(id), Some(number)) => {
                model.fail(id, Fault { number, kind: Some(Error::<PARSE>::KIND) });
                Called::Returned(model.instead_of_error().ok_or(Refused::Build(number)))
            }
        };
        assert_eq!(got, expected, "try_get_or_refresh");
    }

    /// Whether a read that sees this must not ask a clock, if it takes a stale value.
    fn needs_no_clock(&self, seen: Seen, takes_stale: bool) -> bool {
        let is_served = matches!(seen, Seen::Fresh(_) | Seen::Stale(_));
        let mut model = self.model.borrow_mut();
        let needs_none = is_served && takes_stale && model.needs_no_clock();
        if needs_none {
            model.meet("a read that asks no clock");
        }
        needs_none
    }

    /// What the closures do. `None`: they are to fail or to panic.
    fn build(&self, seen: Seen, build: &Build) -> Option<Token> {
        assert!(matches!(seen, Seen::Elected(_)), "builds, though {seen:?}");
        self.model.borrow_mut().enter_closure();
        self.compare();
        for (number, operation) in build.inside.iter().enumerate() {
            self.step(number, operation);
        }
        self.model.borrow_mut().leave_closure();
        (build.result == Outcome::Value).then(|| self.ledger.value())
    }

    fn reader_get(&self, which: usize) {
        let reader = &self.readers[which];
        let Ok(mut handle) = reader.reader.try_borrow_mut() else { return };
        let got = handle.get().map(|value| self.number(value));
        assert_eq!(got, self.model.borrow().get(), "Reader::get");
        reader.keeps.set(got);
    }

    fn reader_get_unless_due(&self, which: usize) {
        let reader = &self.readers[which];
        let Ok(mut handle) = reader.reader.try_borrow_mut() else { return };
        let got = handle.get_unless_due().map(|value| self.number(value));
        assert_eq!(got, self.model.borrow().get_unless_due(), "Reader::get_unless_due");
        reader.keeps.set(got);
    }

    fn reader_release(&self, which: usize) {
        let reader = &self.readers[which];
        let Ok(mut handle) = reader.reader.try_borrow_mut() else { return };
        handle.release();
        reader.keeps.set(None);
    }
}

/// Leases and places.
impl<'a> Runner<'a> {
    fn lookup(&self, owned: bool) {
        let expected = self.model.borrow_mut().lookup(Want::ValueOrError);
        let cell: &'a Arc<TestCell> = self.cell;
        /// Both have the same variants.
        macro_rules! sort {
            ($lookup:expr, $Lookup:ident, $form:ident) => {
                match $lookup {
                    $Lookup::Fresh(value) => (Some(Seen::Fresh(self.number(&value))), None, None),
                    $Lookup::Stale(value) => (Some(Seen::Stale(self.number(&value))), None, None),
                    $Lookup::Elected(lease) => (None, Some(Lease::$form(lease)), None),
                    $Lookup::Pending(pending) => (Some(Seen::Pending), None, Some(Pending::$form(pending))),
                    $Lookup::Failed(error) => (Some(Seen::Failed(self.fault(error))), None, None),
                }
            };
        }
        let (seen, lease, pending) = if owned {
            sort!(cell.lookup_owned(), OwnedLookup, Owned)
        } else {
            sort!(cell.lookup(), Lookup, Borrowed)
        };
        match (expected, lease) {
            (Seen::Elected(build), Some(lease)) => self.leases.borrow_mut().push((build, lease)),
            (expected, lease) => {
                assert!(lease.is_none(), "elected, instead of {expected:?}");
                assert_eq!(seen, Some(expected), "lookup");
            }
        }
        if let Some(pending) = pending {
            let place = self.model.borrow().take_place();
            self.pendings.borrow_mut().push((place, pending));
        }
    }

    fn end_lease(&self, which: usize, end: End) {
        let Some((build, lease)) = take(&self.leases, which) else { return };
        match end {
            End::Publish => {
                let value = self.ledger.value();
                let expected = self.model.borrow_mut().publish(build, value.number, None);
                let got = either!(Lease, lease, lease => lease.publish(value));
                assert_eq!(self.number(&got), expected, "publish");
            }
            End::PublishFor(ttl) => {
                let value = self.ledger.value();
                let expected = self.model.borrow_mut().publish(build, value.number, Some(ttl));
                let got = either!(Lease, lease, lease => lease.publish_for(value, ttl));
                assert_eq!(self.number(&got), expected, "publish_for");
            }
            End::Renew | End::RenewFor(_) => {
                let ttl = if let End::RenewFor(ttl) = end { Some(ttl) } else { None };
                let expected = self.model.borrow_mut().renew(build, ttl);
                let renewed = match (lease, ttl) {
                    (Lease::Borrowed(lease), None) => lease.renew().map_err(Lease::Borrowed),
                    (Lease::Owned(lease), None) => lease.renew().map_err(Lease::Owned),
                    (Lease::Borrowed(lease), Some(ttl)) => lease.renew_for(ttl).map_err(Lease::Borrowed),
                    (Lease::Owned(lease), Some(ttl)) => lease.renew_for(ttl).map_err(Lease::Owned),
                };
                match renewed {
                    Ok(got) => assert_eq!(Some(self.number(&got)), expected, "renew"),
                    Err(lease) => {
                        assert_eq!(expected, None, "renew gave the lease back");
                        self.leases.borrow_mut().push((build, lease));
                    }
                }
            }
            End::Fail(Kind::Network) => self.fail::<false>(build, lease),
            End::Fail(Kind::Parse) => self.fail::<true>(build, lease),
            End::DropInAPanic => {
                self.model.borrow_mut().panic(build);
                let unwound = called(|| {
                    let _lease = lease;
                    panic_as_planned();
                });
                assert_eq!(unwound, Called::<()>::Panicked);
            }
            End::Forget if matches!(lease, Lease::Borrowed(_)) => mem::forget(lease),
            End::Drop | End::Forget => {
                self.model.borrow_mut().abandon(build);
                drop(lease);
            }
        }
    }

    fn fail<const PARSE: bool>(&self, build: BuildId, lease: Lease<'_>) {
        let error = self.ledger.error::<PARSE>();
        let fault = Fault { number: error.0.number, kind: Some(Error::<PARSE>::KIND) };
        self.model.borrow_mut().fail(build, fault);
        let got = either!(Lease, lease, lease => lease.fail(error));
        assert_eq!(self.ledger.fault(&got), fault, "fail");
    }

    fn wait(&self, which: usize, patience: Patience) {
        let Some((place, pending)) = take(&self.pendings, which) else { return };
        let Some(expected) = self.model.borrow_mut().wait(place, patience) else {
            self.pendings.borrow_mut().push((place, pending)); // It would wait for ever.
            return;
        };
        let waited = match (patience, pending) {
            (Patience::Endless, pending) => Ok(either!(Pending, pending, pending => pending.wait())),
            (Patience::For(time), Pending::Borrowed(pending)) => {
                pending.wait_timeout(time).map_err(Pending::Borrowed)
            }
            (Patience::For(time), Pending::Owned(pending)) => {
                pending.wait_timeout(time).map_err(Pending::Owned)
            }
        };
        let got = match waited {
            Ok(Waited::Published(value)) => Ended::Published(self.number(&value)),
            Ok(Waited::Failed(error)) => Ended::Failed(self.fault(error)),
            Ok(Waited::Abandoned) => Ended::Abandoned,
            Ok(Waited::Reentrant) => Ended::Reentrant,
            Err(pending) => {
                self.pendings.borrow_mut().push((place, pending));
                Ended::NotYet
            }
        };
        assert_eq!(got, expected, "wait");
    }
}

/// The refresher.
impl Runner<'_> {
    fn let_the_refresher_act(&self) {
        let mut refresher = self.refresher.borrow_mut();
        let Some(refresher) = &mut *refresher else { return };
        let mut model = self.model.borrow_mut();
        let before = model.refreshers_build();
        let activity = model.let_it_act().expect("there is one");
        let begun = model.refreshers_build().filter(|_| before.is_none());
        let begun = begun.map(|build| Begun { previous: model.previous(build) });
        refresher.run(activity, begun, self.clock);
    }

    fn attach(&self, ahead: Ahead, task: bool) {
        if self.model.borrow().is_looked_after() {
            return;
        }
        let ahead = match ahead {
            Ahead::By(ahead) => ahead,
            Ahead::Percent(percent) => self.model.borrow().ttl().saturating_mul(percent) / 100,
        };
        let attached = Attached::attach(self.cell, self.ledger, self.bed, ahead, task);
        let is_task = attached.as_ref().is_some_and(Attached::is_task);
        let is_accepted = self.model.borrow_mut().attach(ahead, is_task);
        assert_eq!(attached.is_some(), is_accepted, "accepted");
        *self.refresher.borrow_mut() = attached;
    }

    /// Whether there was a build to conclude.
    fn conclude(&self, found: Found) -> bool {
        let builds = self.model.borrow().refreshers_build().is_some();
        if builds {
            let end = self.end(found);
            self.refresher.borrow().as_ref().expect("it builds").conclude(end);
        }
        builds
    }

    fn outage(&self, failures: u32) {
        for _ in 0..failures {
            self.conclude(Found::Error);
            self.compare();
            let until = self.model.borrow().next_attempt();
            if let Some(until) = until {
                self.advance_to(until);
                self.compare();
            }
        }
    }

    fn detach(&self, found: Found) {
        let Some(refresher) = self.refresher.take() else { return };
        let builds = self.model.borrow().refreshers_build().is_some();
        if builds && !refresher.is_task() {
            let end = self.end(found);
            self.model.borrow_mut().detach_from_inside();
            refresher.detach(Some(end));
        } else {
            self.model.borrow_mut().detach();
            refresher.detach(None);
        }
    }

    /// What the running build is to find, which the model knows already.
    fn end(&self, found: Found) -> refresher::End {
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
                model.conclude_error(Fault { number: error.0.number, kind: Some(Kind::Network) });
                Box::new(move || Err(error))
            }
            Found::Panic => {
                model.conclude_panic();
                Box::new(refresher::panics)
            }
        }
    }
}
