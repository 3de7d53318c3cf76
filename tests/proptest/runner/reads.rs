//! Reads that may build.

use std::cell::{RefCell, RefMut};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dogpile::{Guard, Job, ReaderArc, RefreshError, Refreshable, Refreshed, Request as CellRequest};

use super::cell::{Either, Held, either};
use super::drain::Writer;
use super::writes::reader;
use super::{Borrowed, Reach, Runner, TestClock, Waiting, quietly, runner};
use crate::model::{
    BuildId, CallId, Demand, Done, Hold, Kind, NOTHING_TO_KEEP, Number, PANICKED, Refused, Step,
};
use crate::operations::{
    Build, Conditions, Does, Finish, Keep, Newer, Operation, Outcome, Peek, Read, Request, Set, Spawner,
};
use crate::panics::{Called, called, panic_as_planned, unless_abandoned};
use crate::tokens::{Error, Token};

/// What a build can return.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Value,
    ValueOrError,
    Conditional,
}

/// What a build is given.
enum Given<'g, 'w> {
    Nothing,
    Previous(Option<Number>),
    Writer(&'g mut Writer<'w>),
}

/// A call that has begun, and what the build does that it may run.
#[derive(Clone, Copy)]
struct Making<'c, 'b, 'a> {
    call: CallId,
    build: &'c Build,
    reach: Reach<'b, 'a>,
}

/// Which errors the builds of a read return, and what those can return.
fn kind_and_shape(read: &Read) -> (Kind, Shape) {
    match read {
        Read::GetOrRefresh | Read::LoadOrRefresh | Read::Reader(_) | Read::Exchange(_) => {
            (Kind::Network, Shape::Value)
        }
        Read::TryGetOrRefresh(kind) | Read::ReaderTry(_, kind) => (*kind, Shape::ValueOrError),
        Read::Request(request) => match request.finish {
            Finish::Get | Finish::GetWithWriter => (Kind::Network, Shape::Value),
            Finish::TryGet(kind) | Finish::TryGetWithWriter(kind) => (kind, Shape::ValueOrError),
            Finish::TryGetWith(kind) => (kind, Shape::Conditional),
        },
    }
}

/// Makes these conditions; `newer_than` is the generation that they name.
pub(super) fn under<'r, K: Refreshable<Value = Token, Clock = TestClock>>(
    mut request: CellRequest<'r, Token, TestClock, K>,
    conditions: &Conditions,
    newer_than: u64,
) -> CellRequest<'r, Token, TestClock, K> {
    if let Some(window) = conditions.max_stale {
        request = request.max_stale(window);
    }
    if let Some(age) = conditions.max_age {
        request = request.max_age(age);
    }
    if conditions.newer_than.is_some() {
        request = request.newer_than(newer_than);
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

/// What a closure returns that can return no error.
fn value<const PARSE: bool>(made: Result<Refreshed<Token>, Error<PARSE>>) -> Token {
    match made {
        Ok(Refreshed::New(value)) => value,
        _ => unreachable!("it can return no error"),
    }
}

/// ... or one that can.
fn value_or_error<const PARSE: bool>(
    made: Result<Refreshed<Token>, Error<PARSE>>,
) -> Result<Token, Error<PARSE>> {
    match made {
        Ok(Refreshed::New(value)) => Ok(value),
        Ok(_) => unreachable!("it can return no other"),
        Err(error) => Err(error),
    }
}

impl Runner {
    pub(super) fn read(&self, read: &Read, build: &Build, keep: Keep, reach: Reach<'_, '_>) {
        let (kind, shape) = kind_and_shape(read);
        match kind {
            Kind::Network => self.read_as::<false>(read, shape, build, keep, reach),
            Kind::Parse => self.read_as::<true>(read, shape, build, keep, reach),
        }
    }

    /// With errors of one of the two kinds.
    fn read_as<const PARSE: bool>(
        &self,
        read: &Read,
        shape: Shape,
        build: &Build,
        keep: Keep,
        reach: Reach<'_, '_>,
    ) {
        let reader = match read {
            Read::Reader(which) | Read::ReaderTry(which, _) => match reader(reach, *which) {
                None => return,
                reader => reader,
            },
            _ => None,
        };
        let Ok(reader) = reader.map(RefCell::try_borrow_mut).transpose() else {
            return; // A build that this handle runs cannot come back to it: the handle is borrowed.
        };
        let loads_a_guard = matches!(read, Read::LoadOrRefresh) && self.dogpile().is_none();
        if loads_a_guard && self.has_too_many_guards() {
            return;
        }
        let demand = match read {
            Read::Request(request) => self.demand(&request.conditions),
            _ => Demand::ANYTHING,
        };
        let can_fail = shape != Shape::Value;
        let mut trial = self.model.borrow().trial();
        let call = trial.begin(demand, can_fail);
        if trial.step(call) == Step::Waits(None) {
            return; // Nothing would end that.
        }
        let given_up = match read {
            Read::Exchange(which) | Read::Request(Request { exchange: Some(which), .. }) => {
                self.give_up(*which)
            }
            _ => None,
        };
        let call = self.model.borrow_mut().begin(demand, can_fail);
        self.waiting.borrow_mut().push(Waiting::Call(call));
        let needs_no_clock = !matches!(read, Read::Request(_)) && self.model.borrow().needs_no_clock();
        let step = self.model.borrow_mut().step(call);
        let must_be_quiet = needs_no_clock && matches!(step, Step::Returns(_));
        if must_be_quiet {
            self.model.borrow_mut().meet("a read that asks no clock");
        }

        let making = Making { call, build, reach };
        let mut returned = None;
        let got = called(|| {
            unless_abandoned(|| {
                let answer = quietly(must_be_quiet, || match read {
                    Read::Request(request) => self.ask::<PARSE>(request, demand, given_up, making),
                    _ => self.read_plainly::<PARSE>(read, reader, given_up, making),
                });
                answer.map(|value| self.number(returned.insert(value)))
            })
        });
        let expected = self.expected_answer(call, can_fail);
        let number = if let Called::Returned(Some(Ok(number))) = expected { Some(number) } else { None };
        let hold = if loads_a_guard { Hold::CountedGuard } else { Hold::Arc };
        self.with_events(|model| model.call_returns(number, hold));
        assert_eq!(got, expected, "{read:?}");
        self.waiting.borrow_mut().pop();
        self.model.borrow_mut().end_call(call);
        if let (Read::Reader(which) | Read::ReaderTry(which, _), Some(number)) = (read, number) {
            self.kept_by_readers[*which].set(Some(number));
        }
        if self.model.borrow().is_unread() {
            // Whether what a call returns counts as read if it did not find it in the cell is left open.
            self.peek(Peek::Get, false, reach);
        }
        if let (Some(value), Some(number)) = (returned, number) {
            self.receive(value, number, hold, keep, reach);
        }
    }

    /// A read that is no request.
    fn read_plainly<'a, const PARSE: bool>(
        &self,
        read: &Read,
        reader: Option<RefMut<'_, dogpile::Reader<'a, Token, TestClock>>>,
        given_up: Option<ReaderArc<Token>>,
        making: Making<'_, '_, 'a>,
    ) -> Result<Held<'a>, Refused> {
        let value = || value(self.make::<PARSE>(making, Shape::Value, Given::Nothing));
        let value_or_error =
            || value_or_error(self.make::<PARSE>(making, Shape::ValueOrError, Given::Nothing));
        Ok(match (read, reader, self.cell()) {
            (Read::Reader(_), Some(mut reader), _) => Held::from(reader.get_or_refresh(value).clone()),
            (Read::ReaderTry(..), Some(mut reader), _) => {
                return self.answer(reader.try_get_or_refresh(value_or_error).cloned());
            }
            (Read::LoadOrRefresh, _, Either::Dogpile(cell)) => {
                Held::from(Guard::into_arc(cell.load_or_refresh(value)))
            }
            (Read::LoadOrRefresh, _, Either::SyncReader(_)) => match making.reach {
                Some(Borrowed { cell: Either::SyncReader(cell), .. }) => {
                    Held::Guard(cell.load_or_refresh(value))
                }
                _ => unreachable!("nothing is done to it that is out of reach"),
            },
            (Read::TryGetOrRefresh(_), _, cell) => {
                return either!(cell, cell => self.answer(cell.try_get_or_refresh(value_or_error)));
            }
            (_, _, Either::SyncReader(cell)) if given_up.is_some() => {
                let given_up = given_up.expect("just looked at");
                Held::from(cell.exchange(given_up, value))
            }
            (_, _, cell) => either!(cell, cell => Held::from(cell.get_or_refresh(value))),
        })
    }

    fn ask<'a, const PARSE: bool>(
        &self,
        request: &Request,
        demand: Demand,
        given_up: Option<ReaderArc<Token>>,
        making: Making<'_, '_, 'a>,
    ) -> Result<Held<'a>, Refused> {
        let Request { conditions, finish, owned, spawner, exchange: _ } = request;
        let cell = self.cell();
        if let (Some(spawner), Either::Dogpile(cell)) = (spawner, &cell) {
            let asked = under(cell.request_owned(), conditions, demand.newer_than);
            return self.ask_a_spawner::<PARSE>(asked, *finish, spawner, making);
        }
        let owned = *owned || making.reach.is_none();
        let asked = match &cell {
            Either::Dogpile(cell) => {
                let asked = if owned { cell.request_owned() } else { cell.request() };
                Either::Dogpile(under(asked, conditions, demand.newer_than))
            }
            Either::SyncReader(cell) => {
                let asked = if owned { cell.request_owned() } else { cell.request() };
                let asked = under(asked, conditions, demand.newer_than);
                Either::SyncReader(match given_up {
                    Some(given_up) => asked.exchange(given_up),
                    None => asked,
                })
            }
        };
        let value = |given: Given<'_, '_>| value(self.make::<PARSE>(making, Shape::Value, given));
        let value_or_error =
            |given: Given<'_, '_>| value_or_error(self.make::<PARSE>(making, Shape::ValueOrError, given));
        match (finish, asked) {
            (Finish::GetWithWriter, Either::SyncReader(asked)) => {
                Ok(Held::from(asked.get_with_writer(|writer| value(Given::Writer(writer)))))
            }
            (Finish::TryGetWithWriter(_), Either::SyncReader(asked)) => {
                self.answer(asked.try_get_with_writer(|writer| value_or_error(Given::Writer(writer))))
            }
            (Finish::Get | Finish::GetWithWriter, asked) => {
                either!(asked, asked => Ok(Held::from(asked.get(|| value(Given::Nothing)))))
            }
            (Finish::TryGet(_) | Finish::TryGetWithWriter(_), asked) => {
                either!(asked, asked => self.answer(asked.try_get(|| value_or_error(Given::Nothing))))
            }
            (Finish::TryGetWith(_), asked) => either!(asked, asked => {
                self.answer(asked.try_get_with(|previous| {
                    let previous = previous.map(|previous| self.number(&previous));
                    self.make::<PARSE>(making, Shape::Conditional, Given::Previous(previous))
                }))
            }),
        }
    }

    fn ask_a_spawner<'a, const PARSE: bool>(
        &self,
        asked: CellRequest<'static, Token, TestClock>,
        finish: Finish,
        spawner: &Spawner,
        Making { call, build, reach }: Making<'_, '_, 'a>,
    ) -> Result<Held<'a>, Refused> {
        let handed_over = Arc::new(OnceLock::new());
        let spawn = {
            let handed_over = Arc::clone(&handed_over);
            move |job: Job| self.spawn(job, spawner, call, &handed_over, reach)
        };
        let asked = asked.spawn_with(spawn);
        let build = build.clone();
        let made = move |shape, given| {
            let id = *handed_over.get().expect("the spawner was called");
            runner().expect("the case is not over").build::<PARSE>(id, &build, shape, given, None)
        };
        match finish {
            Finish::Get | Finish::GetWithWriter => {
                Ok(Held::from(asked.get(move || value(made(Shape::Value, Given::Nothing)))))
            }
            Finish::TryGet(_) | Finish::TryGetWithWriter(_) => {
                self.answer(asked.try_get(move || value_or_error(made(Shape::ValueOrError, Given::Nothing))))
            }
            Finish::TryGetWith(_) => self.answer(asked.try_get_with(move |previous: Option<Arc<Token>>| {
                let previous = previous.map(|previous| previous.number);
                made(Shape::Conditional, Given::Previous(previous))
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
    pub(super) fn unblock(&self, own: BuildId, reach: Reach<'_, '_>) {
        let position = self.jobs.borrow().iter().position(|(build, _)| *build == own);
        match position {
            Some(position) => {
                let (build, job) = self.jobs.borrow_mut().remove(position);
                self.run_job(build, job);
            }
            None => self.set(Set::New, false, reach),
        }
        self.compare(reach);
    }

    pub(super) fn run_job(&self, build: BuildId, job: Job) {
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

    pub(super) fn drop_job(&self, build: BuildId, job: Job) {
        self.model.borrow_mut().abandon(build);
        drop(job);
    }

    pub(super) fn demand(&self, conditions: &Conditions) -> Demand {
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

    fn answer<'a, H>(&self, got: Result<H, RefreshError>) -> Result<Held<'a>, Refused>
    where
        Held<'a>: From<H>,
    {
        match got {
            Ok(value) => Ok(Held::from(value)),
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
                    None => {
                        model.meet("build: an error");
                        Refused::Build(fault)
                    }
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
    fn make<const PARSE: bool>(
        &self,
        Making { call, build, reach }: Making<'_, '_, '_>,
        shape: Shape,
        given: Given<'_, '_>,
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
        given: Given<'_, '_>,
        reach: Reach<'_, '_>,
    ) -> Result<Refreshed<Token>, Error<PARSE>> {
        let mut previous = None;
        let mut writer = None;
        match given {
            Given::Nothing => {}
            Given::Previous(given) => {
                assert_eq!(given, self.model.borrow().previous(id), "the previous value of a build");
                previous = given;
            }
            Given::Writer(given) => writer = Some(given),
        }
        // The call holds on to it, though the closure has dropped it.
        if let Some(number) = previous {
            self.model.borrow_mut().hold(number, Hold::Arc);
        }
        self.model.borrow_mut().enter_closure();
        self.compare(reach);
        for (number, operation) in build.inside.iter().enumerate() {
            match (operation, &mut writer) {
                (Operation::Lock(patience), Some(writer)) => self.lock(id, writer, *patience),
                (Operation::Mark, Some(writer)) => self.mark(id, writer),
                (operation, _) => {
                    self.step(number, operation, reach);
                    continue;
                }
            }
            self.compare(reach);
        }
        let mut model = self.model.borrow_mut();
        model.leave_closure();
        if let Some(number) = previous
            && !(matches!(build.outcome, Outcome::NotModified) && shape == Shape::Conditional)
        {
            model.leave(number, Hold::Arc);
        }
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
            (Outcome::Aged(age, ttl), Shape::Conditional) => {
                model.meet("build: returned a value with its age");
                let value = self.ledger.value();
                model.publish_aged(id, value.number, ttl, age);
                Ok(Refreshed::Aged { value, age, ttl })
            }
            _ => {
                let value = self.ledger.value();
                model.publish(id, value.number, None);
                Ok(Refreshed::New(value))
            }
        }
    }
}
