//! Does the operations of a case, to a cell and to the model, and compares.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dogpile::{
    Clock, Drain, ManualClock, Policy, ReadGuard, ReaderArc, RefreshError, Refreshed, Request, SharedError,
    SyncReaderCell, Tick,
};

use crate::model::{
    BuildId, Event, FAILED, Hold, Locked, Model, Number, Seen, Settings, Snapshot, Synchronized, View,
};
use crate::operations::{
    Afterwards, Build, By, Case, Conditions, Finish, How, Keep, Meanwhile, Operation, Outcome, Step,
};
use crate::panics::{Called, annotate, called, eventually, panic_as_planned};
use crate::tokens::{Finalized, Ledger, Token};

type TestCell = SyncReaderCell<Token, EventfulClock>;
type Writer<'w> = dogpile::Writer<'w, Token, EventfulClock>;

thread_local! {
    /// What happens while this thread waits.
    static EVENTS: RefCell<Option<Rc<Events>>> = const { RefCell::new(None) };
}

/// A `ManualClock` on which things happen as soon as a thread waits: there is no other thread to do them.
struct EventfulClock(ManualClock);

impl Clock for EventfulClock {
    fn now(&self) -> Tick {
        self.0.now()
    }
    fn park_until(&self, deadline: Tick, now: Tick) {
        let events = EVENTS.with_borrow(Clone::clone).expect("no other thread waits on a clock");
        if !events.is_calm.replace(false) {
            // A cell's own thread may be about to do what is waited for. When it has, there is another look.
            assert!(eventually(all_others_sleep), "another thread does not come to rest");
            events.is_calm.set(true);
            return;
        }
        let event = events.let_happen();
        if event == Event::TimeIsUp {
            self.0.advance(deadline.saturating_duration_since(now));
        }
        events.happened.borrow_mut().push(event);
    }
}

/// What is to happen during waits, and what has.
struct Events {
    shared: Rc<Shared>,
    planned: Vec<Meanwhile>,
    next: Cell<usize>,
    /// No other thread has had anything to do since before the latest look.
    is_calm: Cell<bool>,
    happened: RefCell<Vec<Event>>,
}

impl Events {
    fn let_happen(&self) -> Event {
        let next = self.next.get();
        self.next.set(next + 1);
        match self.planned.get(next.checked_rem(self.planned.len()).unwrap_or(0)) {
            Some(Meanwhile::Leave(which)) => match take(&self.shared.arcs, *which) {
                Some((number, arc)) => {
                    drop(arc);
                    Event::Left(number)
                }
                None => Event::TimeIsUp,
            },
            _ => Event::TimeIsUp,
        }
    }
}

/// Whether no other thread of the process has anything to do, where that can be found out.
fn all_others_sleep() -> bool {
    let myself = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    threads().all(|(path, stat)| {
        path.file_name() == myself.file_name()
            || stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" S"))
    })
}

/// The cells' own threads, where that can be found out.
pub(crate) fn finalizer_threads() -> usize {
    // The kernel keeps fifteen bytes of a name.
    threads().filter(|(_, stat)| stat.contains("(dogpile-finaliz)")).count()
}

/// The threads of this process, and what the kernel says of them: the name in parentheses, then the state.
fn threads() -> impl Iterator<Item = (PathBuf, String)> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    threads.filter_map(|thread| {
        let path = thread.ok()?.path();
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        Some((path, stat))
    })
}

/// Takes the events away from the thread again.
struct Uneventful;

impl Drop for Uneventful {
    fn drop(&mut self) {
        EVENTS.take();
    }
}

/// A thread has eight places for guards that are not counted; the cell needs some in passing.
const MOST_GUARDS: usize = 5;

/// The error of a build.
#[derive(Debug)]
struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FAILED)
    }
}

impl std::error::Error for Failed {}

#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Build(String),
    Reentrant,
}

fn text_of(error: &SharedError) -> String {
    assert_eq!(error.is::<Failed>(), error.to_string() == FAILED, "the type of {error}");
    error.to_string()
}

/// What a call into the cell has returned.
enum Held<'a> {
    Arc(ReaderArc<Token>),
    Guard(ReadGuard<'a, Token>),
}

struct Runner<'a> {
    cell: &'a TestCell,
    clock: &'a ManualClock,
    shared: &'a Shared,
    events: &'a Events,
    guards: RefCell<Vec<(Number, Hold, ReadGuard<'a, Token>)>>,
    /// Where the run is: the number of the operation, and of those inside its build.
    path: &'a RefCell<Vec<usize>>,
}

/// What outlives the cell.
struct Shared {
    ledger: Arc<Ledger>,
    model: RefCell<Model>,
    arcs: RefCell<Vec<(Number, ReaderArc<Token>)>>,
}

/// Runs a case; panics where cell and model part. Returns what has come up, and how often.
pub(crate) fn run(case: &Case) -> BTreeMap<&'static str, u64> {
    let clock = ManualClock::new();
    let shared = Rc::new(Shared {
        ledger: Arc::default(),
        model: RefCell::new(Model::new(case.settings.clone())),
        arcs: RefCell::default(),
    });
    let events = Rc::new(Events {
        shared: Rc::clone(&shared),
        planned: case.meanwhile.clone(),
        next: Cell::new(0),
        is_calm: Cell::new(false),
        happened: RefCell::default(),
    });
    EVENTS.set(Some(Rc::clone(&events)));
    let _uneventful = Uneventful;
    let path = RefCell::new(Vec::new());
    let _epitaph = Epitaph { path: &path, model: &shared.model };
    let settings = &case.settings;
    let finalizer = shared.ledger.finalizer();
    let cell =
        SyncReaderCell::with_clock(policy(settings), EventfulClock(clock.clone()), settings.drain, finalizer);

    let runner = Runner {
        cell: &cell,
        clock: &clock,
        shared: &shared,
        events: &events,
        guards: RefCell::default(),
        path: &path,
    };
    runner.compare();
    for (number, operation) in case.operations.iter().enumerate() {
        case.at.store(number, Ordering::Relaxed);
        runner.step(number, operation);
    }
    while runner.leave_guard(0) {}
    drop(runner);

    shared.model.borrow_mut().drop_cell();
    drop(cell);
    shared.compare();
    for (number, operation) in case.afterwards.iter().enumerate() {
        case.at.store(case.operations.len() + number, Ordering::Relaxed);
        match *operation {
            Afterwards::Clone(which) => shared.clone_arc(which),
            Afterwards::Leave(which) => drop(shared.leave(which, || None)),
        }
        shared.compare();
    }
    while shared.leave(usize::MAX, || None) {}
    assert_eq!(shared.ledger.alive(), BTreeSet::new(), "what is left at the end");
    std::mem::take(&mut shared.model.borrow_mut().met)
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

impl Shared {
    /// A value that has been read: the right one, alive, and as its latest build has left it.
    fn check(&self, token: &Token, number: Number) {
        let marks = self.model.borrow().marks(number);
        assert_eq!((token.number, token.marks), (number, marks), "the value, and how often it was changed");
        assert!(self.ledger.alive().contains(&number), "{number} is being read and has been finalised");
    }

    /// What has become of every value. The cell's own thread is given the time that it needs.
    fn compare_values(&self, retired: impl Fn() -> Option<usize>) {
        let model = self.model.borrow();
        let due = model.finalized().len() + model.finalized_strays().len();
        let is_settled = || {
            let calls = self.ledger.calls();
            calls > due || (calls == due && retired().is_none_or(|retired| retired == model.retired()))
        };
        if model.is_left_to_the_background() {
            // If it never does, what follows shows what is amiss.
            eventually(is_settled);
        }
        let calls = self.ledger.finalized();
        let is_stray = |call: &&Finalized| model.finalized_strays().contains(&call.number);
        let numbers = |calls: Vec<&Finalized>| calls.iter().map(|call| call.number).collect::<Vec<_>>();
        let (mut strays, in_order) = {
            let (strays, in_order): (Vec<_>, Vec<_>) = calls.iter().partition(is_stray);
            (numbers(strays), numbers(in_order))
        };
        strays.sort_unstable();
        assert_eq!(in_order, model.finalized(), "the values that are finalised, in their order");
        let due_strays = model.finalized_strays().iter().copied().collect::<Vec<_>>();
        assert_eq!(strays, due_strays, "the values that never came into the cell, and are finalised");
        assert_eq!(self.ledger.alive(), model.alive(), "the values that are alive");
        assert_eq!(self.ledger.dropped_twice(), BTreeSet::new());
        assert!(!self.ledger.two_at_a_time(), "two finalizers ran at a time");
        if !model.is_left_to_the_background() {
            // Under `Drain::Wait`, without a reader that stays, the caller that replaces a value finalises it.
            assert!(calls.iter().all(|call| !call.on_own_thread), "left to the cell's thread: {calls:?}");
        }
        if model.drain() == Drain::Background {
            assert!(calls.iter().all(|call| call.on_own_thread), "a caller finalises: {calls:?}");
        }
    }

    fn compare(&self) {
        self.compare_values(|| None);
        for (number, arc) in &*self.arcs.borrow() {
            self.check(arc, *number);
        }
    }

    fn clone_arc(&self, which: usize) {
        let mut arcs = self.arcs.borrow_mut();
        if let Some((number, arc)) = arcs.len().checked_sub(1).map(|last| &arcs[which % (last + 1)]) {
            let clone = (*number, arc.clone());
            assert!(ReaderArc::ptr_eq(arc, &clone.1));
            self.model.borrow_mut().hold(clone.0, Hold::Arc);
            arcs.push(clone);
        }
    }

    /// Drops one of the kept `ReaderArc`s. Returns whether there was one.
    fn leave(&self, which: usize, retired: impl Fn() -> Option<usize>) -> bool {
        let Some((number, arc)) = take(&self.arcs, which) else { return false };
        self.check(&arc, number);
        self.leaving(number, Hold::Arc, || drop(arc), retired);
        true
    }

    fn leaving(&self, number: Number, hold: Hold, drop: impl FnOnce(), retired: impl Fn() -> Option<usize>) {
        let before = self.ledger.calls();
        drop();
        self.model.borrow_mut().leave(number, hold);
        self.compare_values(retired);
        let calls = self.ledger.finalized();
        assert!(calls[before..].iter().all(|call| call.on_own_thread), "a reader finalises: {calls:?}");
    }
}

fn take<R>(list: &RefCell<Vec<R>>, which: usize) -> Option<R> {
    let mut list = list.borrow_mut();
    let count = list.len();
    (count > 0).then(|| list.swap_remove(which % count))
}

impl<'a> Runner<'a> {
    fn step(&self, number: usize, operation: &Operation) {
        self.path.borrow_mut().push(number);
        self.perform(operation);
        self.compare();
        self.path.borrow_mut().pop();
    }

    fn perform(&self, operation: &Operation) {
        let model = &self.shared.model;
        match operation {
            Operation::Refresh(by, build, keep) => self.refresh(*by, build, *keep),
            Operation::Get => {
                let expected = model.borrow().get();
                let got = self.cell.get().map(Held::Arc);
                self.receive(got, expected, Hold::Arc);
            }
            Operation::Load => {
                let expected = model.borrow().get();
                if model.borrow().guards() < MOST_GUARDS {
                    let got = self.cell.load().map(Held::Guard);
                    self.receive(got, expected, Hold::Guard);
                }
            }
            Operation::Snapshot => {
                let expected = model.borrow().snapshot().map(|seen| seen.value);
                let got = self.cell.snapshot().map(|seen| Held::Arc(seen.value));
                self.receive(got, expected, Hold::Arc);
            }
            Operation::Clone(which) => self.shared.clone_arc(*which),
            Operation::Leave(which) => drop(self.leave(*which)),
            Operation::LeaveGuard(which) => drop(self.leave_guard(*which)),
            Operation::LeaveAll => while self.leave(0) || self.leave_guard(0) {},
            Operation::Set(how, keep) => self.set(*how, *keep),
            Operation::Invalidate => {
                model.borrow_mut().invalidate();
                self.cell.invalidate();
            }
            Operation::InvalidateIfCurrent(which) => {
                let arcs = self.shared.arcs.borrow();
                if let Some((number, seen)) = arcs.get(which % arcs.len().max(1)) {
                    let expected = model.borrow_mut().invalidate_if_current(*number);
                    assert_eq!(self.cell.invalidate_if_current(seen), expected, "invalidate_if_current");
                }
            }
            Operation::Clear => {
                self.cell.clear();
                self.model_with_events().clear();
                self.shared.model.borrow().check_events();
            }
            Operation::Reset => {
                self.cell.reset();
                self.model_with_events().reset();
                self.shared.model.borrow().check_events();
            }
            Operation::Revoke => {
                let expected = model.borrow_mut().revoke();
                assert_eq!(self.cell.revoke(), expected, "revoke");
            }
            Operation::Synchronize(wait) => self.synchronize(*wait),
            Operation::Advance(by) => {
                let now = model.borrow().now();
                self.advance_to(now + *by);
            }
            Operation::AdvanceTo(which, past) => {
                let mut moments = model.borrow().moments();
                let soon = model.borrow().now() + Duration::from_secs(1);
                moments.retain(|moment| *moment < soon);
                if !moments.is_empty() {
                    let moment = moments[which % moments.len()];
                    self.advance_to(moment + Duration::from_nanos(*past));
                }
            }
        }
    }

    fn advance_to(&self, moment: Duration) {
        let mut model = self.shared.model.borrow_mut();
        self.clock.advance(moment - model.now());
        model.advance_to(moment);
    }

    /// Everything that can be seen without changing anything.
    fn compare(&self) {
        let cell = self.cell;
        self.shared.compare_values(self.retired());
        let model = self.shared.model.borrow();
        let view = View {
            get: cell.get().map(|value| value.number),
            load: cell.load().map(|value| value.number),
            freshness: cell.freshness(),
            generation: cell.generation(),
            is_refreshing: cell.is_refreshing(),
            retired: cell.retired(),
            last_error: cell.last_error().as_ref().map(text_of),
            snapshot: cell.snapshot().map(|seen| Snapshot {
                value: seen.value.number,
                generation: seen.generation,
                age: seen.age,
                freshness: seen.freshness,
                fresh_for: seen.fresh_for,
                servable_for: seen.servable_for,
            }),
            stats: cell.stats(),
        };
        assert_eq!(view, model.view(), "what can be seen of the cell");
        let readers = cell.readers();
        assert!(model.readers().contains(&readers), "{readers} readers, not {:?}", model.readers());
        drop(model);
        for (number, arc) in &*self.shared.arcs.borrow() {
            self.shared.check(arc, *number);
        }
        for (number, _, guard) in &*self.guards.borrow() {
            self.shared.check(guard, *number);
        }
    }

    /// The model, with what has happened since the last time.
    fn model_with_events(&self) -> RefMut<'_, Model> {
        let mut model = self.shared.model.borrow_mut();
        model.has_seen(self.events.happened.take());
        self.events.is_calm.set(false);
        model
    }

    fn retired(&self) -> impl Fn() -> Option<usize> {
        || Some(self.cell.retired())
    }

    /// Keeps what a read has returned. The model holds it already, unless `hold` says how it is to.
    fn receive(&self, got: Option<Held<'a>>, expected: Option<Number>, hold: Hold) {
        assert_eq!(got.is_some(), expected.is_some(), "it returns {expected:?}");
        if let (Some(got), Some(number)) = (got, expected) {
            self.shared.model.borrow_mut().hold(number, hold);
            self.keep(got, number, hold);
        }
    }

    fn keep(&self, got: Held<'a>, number: Number, hold: Hold) {
        match got {
            Held::Arc(arc) => {
                self.shared.check(&arc, number);
                self.shared.arcs.borrow_mut().push((number, arc));
            }
            Held::Guard(guard) => {
                self.shared.check(&guard, number);
                self.guards.borrow_mut().push((number, hold, guard));
            }
        }
    }

    fn leave(&self, which: usize) -> bool {
        self.shared.leave(which, self.retired())
    }

    fn leave_guard(&self, which: usize) -> bool {
        let Some((number, hold, guard)) = take(&self.guards, which) else { return false };
        self.shared.check(&guard, number);
        self.shared.leaving(number, hold, || drop(guard), self.retired());
        true
    }

    /// Drops what was received last.
    fn leave_last(&self, hold: Hold) {
        match hold {
            Hold::Arc => {
                let last = self.shared.arcs.borrow().len() - 1;
                self.leave(last);
            }
            Hold::Guard | Hold::CountedGuard => {
                let last = self.guards.borrow().len() - 1;
                self.leave_guard(last);
            }
        }
    }

    fn set(&self, how: How, keep: Keep) {
        let token = self.shared.ledger.token();
        let number = token.number;
        let set = called(|| match how {
            How::AsPolicySays => self.cell.set(token),
            How::For(ttl) => self.cell.set_for(token, ttl),
            How::Restored(age) => self.cell.restore(token, age),
        });
        let is_set = self.model_with_events().set(number, how);
        self.shared.model.borrow().check_events();
        match set {
            Called::Returned(arc) => {
                assert!(is_set, "a set from inside a section");
                self.keep(Held::Arc(arc), number, Hold::Arc);
                self.compare();
                if !keep {
                    self.leave_last(Hold::Arc);
                }
            }
            Called::WouldWait => assert!(!is_set, "a set that does not have to wait panics"),
            Called::Panicked | Called::Overtaken => unreachable!("no build has been asked for"),
        }
    }

    fn synchronize(&self, wait: Duration) {
        let got = self.cell.synchronize_timeout(wait).map_err(|timeout| timeout.readers);
        let mut model = self.model_with_events();
        let expected = model.synchronize_within(wait);
        model.check_events();
        drop(model);
        match (expected, got) {
            (Synchronized::Done, Ok(())) => self.cell.synchronize(),
            (Synchronized::Not(readers), Err(count)) if readers.contains(&count) => {}
            (Synchronized::ForItself(readers), Err(count)) if readers.contains(&count) => {
                assert_eq!(called(|| self.cell.synchronize()), Called::WouldWait, "synchronize");
            }
            (expected, got) => panic!("synchronize_timeout: {got:?} instead of {expected:?}"),
        }
    }
}

/// Builds.
impl Runner<'_> {
    fn refresh(&self, by: By, build: &Build, keep: Keep) {
        let (cell, model) = (self.cell, &self.shared.model);
        if by == By::LoadOrRefresh && model.borrow().guards() >= MOST_GUARDS {
            return;
        }
        let given_up = match by {
            By::Exchange(which) | By::Request(Conditions { exchange: Some(which), .. }, _) => {
                self.give_up(which)
            }
            _ => None,
        };
        let request = match by {
            By::Request(conditions, _) => {
                let newer_than = |back| model.borrow().newer_than(back);
                Some(with_conditions(cell.request(), conditions, newer_than))
            }
            _ => None,
        };
        let demand = model.borrow().demand(by);
        let (previous, seen) = {
            let mut model = model.borrow_mut();
            let previous = model.current();
            (previous, model.lookup(demand))
        };
        let made = Cell::new(None);
        let value = |writer: Option<&mut Writer<'_>>| match self.build(seen, build, writer, &made) {
            Some(value) => value,
            None => panic_as_planned(),
        };
        let result = |writer: Option<&mut Writer<'_>>| match self.build(seen, build, writer, &made) {
            Some(value) => Ok(value),
            None if build.outcome == Outcome::Error => Err(Failed),
            None => panic_as_planned(),
        };
        let conditional =
            |given: Option<ReaderArc<Token>>| self.build_with(seen, build, (given, previous), &made);
        let got = called(|| {
            let got = match (by, given_up) {
                (By::Exchange(_), Some(old)) => Ok(cell.exchange(old, || value(None))),
                (By::GetOrRefresh | By::Exchange(_), _) => Ok(cell.get_or_refresh(|| value(None))),
                (By::LoadOrRefresh, _) => return Ok(Held::Guard(cell.load_or_refresh(|| value(None)))),
                (By::TryGetOrRefresh, _) => cell.try_get_or_refresh(|| result(None)),
                (By::Request(_, finish), given_up) => {
                    let request = request.expect("it is made of the conditions");
                    let request = match given_up {
                        Some(old) => request.exchange(old),
                        None => request,
                    };
                    match finish {
                        Finish::Get => Ok(request.get(|| value(None))),
                        Finish::TryGet => request.try_get(|| result(None)),
                        Finish::TryGetWith => request.try_get_with(conditional),
                        Finish::GetWithWriter => Ok(request.get_with_writer(|writer| value(Some(writer)))),
                        Finish::TryGetWithWriter => {
                            request.try_get_with_writer(|writer| result(Some(writer)))
                        }
                    }
                }
            };
            match got {
                Ok(arc) => Ok(Held::Arc(arc)),
                Err(RefreshError::Build(error)) => Err(Refused::Build(text_of(&error))),
                Err(RefreshError::Reentrant) => Err(Refused::Reentrant),
                Err(error) => panic!("not an error for a caller that is alone: {error}"),
            }
        });
        let expected = self.expected(by, build, seen, previous, made.get());
        match (got, expected) {
            (Called::Returned(Ok(got)), Called::Returned(Ok(number))) => {
                let hold = hold_of(by);
                self.keep(got, number, hold);
                self.compare();
                if !keep {
                    self.leave_last(hold);
                }
            }
            (Called::Returned(Err(got)), Called::Returned(Err(expected))) => {
                assert_eq!(got, expected, "{by:?}");
            }
            (Called::Panicked, Called::Panicked) | (Called::WouldWait, Called::WouldWait) => {}
            (got, expected) => {
                let got = match got {
                    Called::Returned(Ok(Held::Arc(held))) => format!("value {}", held.number),
                    Called::Returned(Ok(Held::Guard(held))) => format!("value {}", held.number),
                    Called::Returned(Err(refused)) => format!("{refused:?}"),
                    Called::Panicked => "the build's panic".to_owned(),
                    Called::WouldWait => "a panic because it would wait for itself".to_owned(),
                    Called::Overtaken => "a panic because it was overtaken".to_owned(),
                };
                panic!("{by:?}: {got} instead of {expected:?}");
            }
        }
    }

    /// Takes one of the kept `ReaderArc`s out, which the call that follows gives up before it looks.
    fn give_up(&self, which: usize) -> Option<ReaderArc<Token>> {
        let (number, arc) = take(&self.shared.arcs, which)?;
        self.shared.check(&arc, number);
        let mut model = self.shared.model.borrow_mut();
        model.meet("exchange: a handle");
        model.leave(number, Hold::Arc);
        Some(arc)
    }

    /// What comes of a read, and of its build, which has `made` a value or has not.
    fn expected(
        &self,
        by: By,
        build: &Build,
        seen: Seen,
        previous: Option<Number>,
        made: Option<Number>,
    ) -> Called<Result<Number, Refused>> {
        let mut model = self.model_with_events();
        let hold = hold_of(by);
        let refused = |error: &str| Refused::Build(error.to_owned());
        let expected = match (seen, made) {
            (Seen::Value(number), _) => {
                model.hold(number, hold);
                Called::Returned(Ok(number))
            }
            (Seen::Pending, _) => {
                assert!(model.is_inside_a_build(), "no other thread could build");
                if model.demand(by).is_fallible() {
                    Called::Returned(Err(Refused::Reentrant))
                } else {
                    Called::WouldWait
                }
            }
            (Seen::Failed(error), _) => Called::Returned(Err(refused(error))),
            (Seen::Elected(id), Some(value)) => Called::Returned(Ok(model.publish(id, value, hold))),
            (Seen::Elected(id), None) => match (build.outcome, previous) {
                (Outcome::Error, _) => Called::Returned(model.fail(id).map_err(refused)),
                (Outcome::NotModified, Some(previous)) => Called::Returned(Ok(model.renew(id, previous))),
                (Outcome::NotModified, None) => Called::Returned(model.renew_nothing(id).map_err(refused)),
                (Outcome::Value | Outcome::Panic, _) => {
                    model.panic(id);
                    Called::Panicked
                }
            },
        };
        model.check_events();
        expected
    }

    /// What the closures do. `None`: they do not return a new value.
    fn build(
        &self,
        seen: Seen,
        build: &Build,
        mut writer: Option<&mut Writer<'_>>,
        made: &Cell<Option<Number>>,
    ) -> Option<Token> {
        let Seen::Elected(id) = seen else { panic!("builds, though {seen:?}") };
        self.shared.model.borrow_mut().enter_closure();
        self.compare();
        for (number, step) in build.steps.iter().enumerate() {
            match (step, &mut writer) {
                (Step::Do(operation), _) => self.step(number, operation),
                (Step::Lock(wait), Some(writer)) => self.lock(id, writer, *wait),
                (Step::Mark, Some(writer)) => self.mark(id, writer),
                (Step::Lock(_) | Step::Mark, None) => {}
            }
            self.compare();
        }
        self.shared.model.borrow_mut().leave_closure();
        (build.outcome == Outcome::Value).then(|| {
            let token = self.shared.ledger.token();
            made.set(Some(token.number));
            token
        })
    }

    /// As [`build`](Runner::build), for a closure that is given the value before. The call holds on to that meanwhile.
    fn build_with(
        &self,
        seen: Seen,
        build: &Build,
        (given, previous): (Option<ReaderArc<Token>>, Option<Number>),
        made: &Cell<Option<Number>>,
    ) -> Result<Refreshed<Token>, Failed> {
        assert_eq!(given.as_ref().map(|given| given.number), previous, "the value before");
        drop(given);
        if let Some(number) = previous {
            self.shared.model.borrow_mut().hold(number, Hold::Arc);
        }
        let token = self.build(seen, build, None, made);
        let is_kept = build.outcome == Outcome::NotModified;
        if let Some(number) = previous.filter(|_| !is_kept) {
            self.shared.model.borrow_mut().leave(number, Hold::Arc);
        }
        match (token, build.outcome) {
            (Some(token), _) => Ok(Refreshed::New(token)),
            (None, Outcome::NotModified) => Ok(Refreshed::NotModified),
            (None, Outcome::Error) => Err(Failed),
            (None, _) => panic_as_planned(),
        }
    }

    fn lock(&self, build: BuildId, writer: &mut Writer<'_>, wait: Option<Duration>) {
        let would_block = self.shared.model.borrow().would_block(build);
        if wait.is_some() || would_block {
            let wait = wait.unwrap_or(Duration::ZERO);
            let got = writer.acquire_write_lock_timeout(wait);
            let mut model = self.model_with_events();
            let expected = model.lock_within(build, wait);
            model.check_events();
            drop(model);
            match (got, expected) {
                (Ok(mut lock), Locked::Over(number)) => self.check_old(lock.old(), number),
                (
                    Err(timeout),
                    Locked::StillRead(readers) | Locked::ForItself(readers) | Locked::Overtaken(readers),
                ) => assert!(
                    readers.contains(&timeout.readers),
                    "{} readers instead of {readers:?}",
                    timeout.readers
                ),
                (got, expected) => panic!("acquire_write_lock_timeout: {got:?} instead of {expected:?}"),
            }
        } else {
            let expected = self.shared.model.borrow_mut().lock(build);
            let got = called(|| {
                let mut lock = writer.acquire_write_lock();
                if let Locked::Over(number) = expected {
                    self.check_old(lock.old(), number);
                }
            });
            let expected = match expected {
                Locked::ForItself(_) => Called::WouldWait,
                Locked::Overtaken(_) => Called::Overtaken,
                Locked::Over(_) | Locked::StillRead(_) => Called::Returned(()),
            };
            assert_eq!(got, expected, "acquire_write_lock");
        }
    }

    fn check_old(&self, old: Option<&mut Token>, expected: Option<Number>) {
        assert_eq!(old.as_ref().map(|old| old.number), expected, "the old value");
        if let Some(old) = old {
            self.shared.check(old, old.number);
        }
    }

    fn mark(&self, build: BuildId, writer: &mut Writer<'_>) {
        let Some(number) = self.shared.model.borrow_mut().mark(build) else { return };
        let mut lock = writer.acquire_write_lock();
        let old = lock.old().expect("it has been there");
        assert_eq!(old.number, number, "the old value");
        old.marks += 1;
    }
}

fn hold_of(by: By) -> Hold {
    if by == By::LoadOrRefresh { Hold::CountedGuard } else { Hold::Arc }
}

/// `newer_than` turns what a condition says into a generation.
fn with_conditions(
    mut request: Request<'_, Token, EventfulClock, TestCell>,
    conditions: Conditions,
    newer_than: impl Fn(u64) -> u64,
) -> Request<'_, Token, EventfulClock, TestCell> {
    let Conditions { max_stale, max_age, newer_than: back, no_cache, wait_at_most, or_stale, exchange: _ } =
        conditions;
    if let Some(window) = max_stale {
        request = request.max_stale(window);
    }
    if let Some(age) = max_age {
        request = request.max_age(age);
    }
    if let Some(back) = back {
        request = request.newer_than(newer_than(back));
    }
    if no_cache {
        request = request.no_cache();
    }
    if let Some(time) = wait_at_most {
        request = request.wait_at_most(time);
    }
    if or_stale {
        request = request.or_stale();
    }
    request
}
