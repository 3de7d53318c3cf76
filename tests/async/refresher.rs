//! A refresher that is a task.
//!
//! Most tests poll it by hand: between two polls nothing happens, so what it does and what it leaves is all there is to
//! see. A wake-up is counted, and a poll that was not woken for would hide a lost one: [`Polled::woken`] insists on it.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::io::ErrorKind;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dogpile::{
    DogpileCell, Freshness, ManualClock, Policy, RefreshError, Refreshed, Refresher, RefresherOptions,
    SharedError, Task,
};

use crate::support::{
    Cell, Door, Hand, PATIENCE, TICK, TTL, Wakes, cell, cell_with, eventually, guarded, never,
    panic_as_planned, panics_as_planned, plain, stale_cell, unbuilt, until, untried,
};

mod control;
mod kinds;
mod rest;

const AHEAD: Duration = Duration::from_secs(4);
/// The age at which it is due: a value is fresh up to and including its ttl.
const DUE: Duration = Duration::from_nanos(6_000_000_001);
const SECOND: Duration = Duration::from_secs(1);

type Ended = Result<Refreshed<u32>, &'static str>;
type End = Box<dyn FnOnce() -> Ended + Send>;

/// The builds of a refresher: each notes the previous value and is pending until it is given its result.
#[derive(Clone, Default)]
struct Builds(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    begun: VecDeque<Option<Arc<u32>>>,
    end: Option<End>,
    waker: Option<Waker>,
    /// Builds that have been dropped, ended or not.
    dropped: u32,
}

/// A build that waits for its result.
struct Build(Arc<Mutex<State>>);

impl Future for Build {
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let mut state = self.0.lock().unwrap();
        match state.end.take() {
            Some(end) => {
                drop(state);
                Poll::Ready(end())
            }
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        self.0.lock().unwrap().dropped += 1;
    }
}

impl Builds {
    fn begin(&self, previous: Option<Arc<u32>>) -> Build {
        self.0.lock().unwrap().begun.push_back(previous);
        Build(Arc::clone(&self.0))
    }

    /// The build that has begun since the last call, by the value that it was given.
    #[track_caller]
    fn begun(&self, previous: Option<u32>) {
        let begun = self.0.lock().unwrap().begun.pop_front().expect("no build has begun");
        assert_eq!(begun.as_deref().copied(), previous);
        self.none();
    }

    #[track_caller]
    fn none(&self) {
        assert!(self.0.lock().unwrap().begun.is_empty(), "there should have been no build");
    }

    fn end_with(&self, end: impl FnOnce() -> Ended + Send + 'static) {
        let waker = {
            let mut state = self.0.lock().unwrap();
            state.end = Some(Box::new(end));
            state.waker.take()
        };
        waker.expect("no build is waiting").wake();
    }

    fn dropped(&self) -> u32 {
        self.0.lock().unwrap().dropped
    }
}

/// A refresher whose task is polled by hand.
struct Polled {
    cell: Cell<u32>,
    clock: ManualClock,
    builds: Builds,
    task: Hand<'static, ()>,
    /// Wake-ups that have been answered by a poll.
    answered: usize,
    refresher: Refresher,
}

fn spawned<R>(spawn: impl FnOnce(&dyn Fn(Task)) -> R) -> (R, Task) {
    let task = Mutex::new(None);
    let result = spawn(&|spawned| *task.lock().unwrap() = Some(spawned));
    (result, task.into_inner().unwrap().expect("a task"))
}

impl Polled {
    fn new(policy: Policy) -> Self {
        let (cell, clock) = cell_with(policy);
        Self::of(cell, clock)
    }

    fn of(cell: Cell<u32>, clock: ManualClock) -> Self {
        Self::with_options(Refresher::options(), cell, clock)
    }

    fn with_options(options: RefresherOptions, cell: Cell<u32>, clock: ManualClock) -> Self {
        let builds = Builds::default();
        let (refresher, task) = spawned(|spawn| {
            let builds = builds.clone();
            options.spawn_async(&cell, AHEAD, spawn, move |previous| builds.begin(previous)).unwrap()
        });
        Self { cell, clock, builds, task: Hand::new(task), answered: 0, refresher }
    }

    /// One that has published 1 at the tick 0 and sleeps.
    #[track_caller]
    fn asleep(policy: Policy) -> Self {
        Self::asleep_with(Refresher::options(), policy)
    }

    #[track_caller]
    fn asleep_with(options: RefresherOptions, policy: Policy) -> Self {
        let (cell, clock) = cell_with(policy);
        let mut task = Self::with_options(options, cell, clock);
        task.task.pending();
        task.builds.begun(None);
        task.ends(Ok(Refreshed::New(1)));
        task
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Polls it; it must have been woken.
    #[track_caller]
    fn woken(&mut self) -> Poll<()> {
        let wakes = self.task.wakes();
        assert!(wakes > self.answered, "it was not woken");
        self.answered = wakes;
        self.task.poll()
    }

    /// The same, and it goes on.
    #[track_caller]
    fn goes_on(&mut self) {
        assert!(self.woken().is_pending(), "it should not have ended");
    }

    /// The running build ends with `result`.
    #[track_caller]
    fn ends(&mut self, result: Ended) {
        self.ends_with(move || result);
    }

    #[track_caller]
    fn ends_with(&mut self, end: impl FnOnce() -> Ended + Send + 'static) {
        self.builds.end_with(end);
        self.goes_on();
    }

    /// The next build begins exactly in `pause`.
    #[track_caller]
    fn begins_after(&mut self, pause: Duration, previous: Option<u32>) {
        self.advance(pause - TICK);
        // On this clock each advance wakes each sleeper.
        self.goes_on();
        self.builds.none();
        self.advance(TICK);
        self.goes_on();
        self.builds.begun(previous);
    }

    #[track_caller]
    fn builds_after(&mut self, pause: Duration, previous: Option<u32>, result: Ended) {
        self.begins_after(pause, previous);
        self.ends(result);
    }

    #[track_caller]
    fn serves(&self, value: u32) {
        serves(&self.cell, value);
    }

    #[track_caller]
    fn error(&self, failures: u32) -> SharedError {
        assert_eq!(self.refresher.consecutive_failures(), failures);
        self.refresher.last_error().expect("there should be an error")
    }

    #[track_caller]
    fn fails(&self, failures: u32, message: &str) {
        assert_eq!(self.error(failures).to_string(), message);
    }

    #[track_caller]
    fn no_error(&self) {
        assert_eq!(self.refresher.consecutive_failures(), 0);
        assert!(self.refresher.last_error().is_none());
    }
}

#[track_caller]
fn serves(cell: &Cell<u32>, value: u32) {
    assert_eq!(*Hand::new(cell.get_or_refresh_async(unbuilt)).ready(), value);
    assert_eq!(*cell.get_or_refresh(|| unreachable!("readers do not build")), value);
}

/// No refresher is attached: a reader builds again as soon as its value is stale.
#[track_caller]
fn is_left_alone(cell: &Cell<u32>) {
    cell.set(100);
    cell.invalidate();
    assert_eq!(*cell.get_or_refresh(|| 101), 101);
}

/// A panic of the build that does not trouble the hook.
fn panicking(payload: impl Any + Send) -> impl FnOnce() -> Ended + Send {
    move || resume_unwind(Box::new(payload))
}

// When it builds.

#[test]
fn nothing_is_built_before_the_first_poll_and_then_at_once() {
    let mut task = Polled::new(Policy::ttl(TTL));
    task.builds.none();
    assert_eq!(task.cell.stats().builds, 0);
    task.task.pending();
    task.builds.begun(None);
    assert!(task.cell.is_refreshing());
    // A reader waits for it.
    let cell = Arc::clone(&task.cell);
    let mut reader = Hand::new(cell.get_or_refresh_async(unbuilt));
    reader.pending();
    task.ends(Ok(Refreshed::New(1)));
    assert_eq!(reader.wakes(), 1);
    assert_eq!(*reader.ready(), 1);
}

#[test]
fn each_next_build_begins_exactly_ahead_of_the_end() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    for value in 1..=3 {
        task.builds_after(DUE, Some(value), Ok(Refreshed::New(value + 1)));
        task.serves(value + 1);
        assert_eq!(task.cell.freshness(), Freshness::Fresh);
    }
    // One that takes as long as it may.
    task.begins_after(DUE, Some(4));
    task.advance(AHEAD - TICK);
    assert_eq!(task.cell.freshness(), Freshness::Fresh);
    task.ends(Ok(Refreshed::New(5)));
    task.builds_after(DUE, Some(5), Ok(Refreshed::New(6)));
    assert_eq!((task.cell.stats().builds, task.cell.stats().waits), (6, 0));
}

#[test]
fn a_value_may_choose_its_own_time_to_live() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    // Shorter than `ahead`: at half of it.
    task.builds_after(DUE, Some(1), Ok(Refreshed::NewFor(2, 2 * SECOND)));
    task.builds_after(SECOND, Some(2), Ok(Refreshed::NewFor(3, 10 * TTL)));
    task.builds_after(10 * TTL + TICK - AHEAD, Some(3), Ok(Refreshed::NewFor(4, Duration::MAX)));
    // Never due: not even the clock wakes it.
    let wakes = task.task.wakes();
    task.advance(1000 * TTL);
    assert_eq!(task.task.wakes(), wakes);
    task.cell.invalidate();
    task.goes_on();
    task.builds.begun(Some(4));
}

#[test]
fn what_never_expires_is_built_once_and_then_after_each_invalidate() {
    let mut task = Polled::new(Policy::never_expires());
    task.task.pending();
    task.builds.begun(None);
    task.ends(Ok(Refreshed::New(0)));
    for round in 0..3 {
        let wakes = task.task.wakes();
        task.advance(1000 * TTL);
        assert_eq!(task.task.wakes(), wakes);
        task.cell.invalidate();
        task.goes_on();
        task.builds.begun(Some(round));
        task.ends(Ok(Refreshed::New(round + 1)));
    }
}

/// Nor does the task keep its executor from everything else.
#[test]
fn a_value_without_any_time_to_live_is_not_rebuilt_in_a_loop() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.builds_after(DUE, Some(1), Ok(Refreshed::NewFor(2, Duration::ZERO)));
    task.builds.none();
    task.builds_after(SECOND / 10, Some(2), Ok(Refreshed::NewFor(3, SECOND)));
    task.begins_after(SECOND / 2, Some(3));
}

// What readers observe.

#[test]
fn readers_never_build_while_it_is_attached() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.begins_after(DUE, Some(1));
    task.advance(TTL);
    assert_eq!(task.cell.freshness(), Freshness::Stale);
    task.serves(1);
    task.ends(Err("down"));
    // The lease is free, and no reader takes it.
    assert!(!task.cell.is_refreshing());
    task.serves(1);
    task.cell.invalidate();
    task.serves(1);
    let Polled { cell, task, refresher, .. } = task;
    drop((task, refresher));
    is_left_alone(&cell);
}

/// From the moment at which it is made, whenever its executor comes to it.
#[test]
fn it_is_attached_before_its_first_poll() {
    let (cell, clock) = stale_cell(7);
    let mut polled = Polled::of(cell, clock);
    assert!(!polled.cell.is_refreshing());
    polled.serves(7);
    assert!(polled.task.poll().is_pending());
    polled.builds.begun(Some(7));
}

#[test]
fn when_staleness_is_bounded_a_reader_takes_over_after_the_bound() {
    let mut task = Polled::asleep(Policy::ttl(TTL).stale_while_refresh(TTL));
    task.begins_after(DUE, Some(1));
    task.advance(2 * TTL - DUE);
    task.ends(Err("down"));
    task.serves(1);
    task.advance(TICK);
    assert_eq!(*Hand::new(task.cell.get_or_refresh_async(|| async { 2 })).ready(), 2);
    task.goes_on();
    task.builds.none();
    task.builds_after(DUE, Some(2), Ok(Refreshed::New(3)));
}

// What builds say.

#[test]
fn not_modified_renews_the_previous_value() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    let value = task.cell.get().unwrap();
    task.builds_after(DUE, Some(1), Ok(Refreshed::NotModified));
    assert!(Arc::ptr_eq(&value, &task.cell.get().unwrap()));
    assert_eq!((task.cell.generation(), task.cell.freshness()), (2, Freshness::Fresh));
    task.cell.clear();
    task.goes_on();
    task.builds.begun(None);
    task.ends(Ok(Refreshed::NotModified));
    assert_eq!(task.error(1).to_string(), "the build returned NotModified, but there is no previous value");
    task.builds_after(SECOND / 10, None, Ok(Refreshed::New(2)));
    task.no_error();
}

#[test]
fn the_last_error_and_the_number_of_failures_are_on_view() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.builds_after(DUE, Some(1), Err("first"));
    task.fails(1, "first");
    task.builds_after(SECOND / 10, Some(1), Err("second"));
    task.fails(2, "second");
    task.builds_after(SECOND / 5, Some(1), Ok(Refreshed::New(2)));
    task.no_error();
}

#[test]
fn g7_a_reader_without_a_value_shares_its_error() {
    let mut task = Polled::new(Policy::ttl(TTL));
    task.task.pending();
    let cell = Arc::clone(&task.cell);
    let mut reader = Hand::new(cell.try_get_or_refresh_async(untried));
    reader.pending();
    task.ends(Err("down"));
    let Err(RefreshError::Build(shared)) = reader.ready() else { panic!("it should have failed") };
    assert!(shared.ptr_eq(&task.error(1)));
}

#[test]
fn without_a_pause_in_the_policy_each_failure_is_followed_by_the_least_interval() {
    let mut task = Polled::asleep(plain(Policy::ttl(TTL)));
    task.builds_after(DUE, Some(1), Err("down"));
    for _ in 0..4 {
        task.builds_after(SECOND / 10, Some(1), Err("down"));
    }
    task.begins_after(SECOND / 10, Some(1));
}

#[test]
fn by_default_pauses_double_from_100_ms_to_10_s() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.builds_after(DUE, Some(1), Err("down"));
    for pause in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
        task.builds_after(Duration::from_millis(pause), Some(1), Err("down"));
    }
    task.builds_after(10 * SECOND, Some(1), Ok(Refreshed::New(2)));
    task.builds_after(DUE, Some(2), Err("down"));
    task.begins_after(SECOND / 10, Some(2));
}

#[test]
fn the_policys_pauses_count() {
    let mut task = Polled::asleep(Policy::ttl(TTL).retry_backoff(SECOND, 4 * SECOND));
    task.builds_after(DUE, Some(1), Err("down"));
    for pause in [1, 2, 4, 4] {
        task.builds_after(pause * SECOND, Some(1), Err("down"));
    }
    task.begins_after(4 * SECOND, Some(1));
    task.ends_with(panicking("no"));
    task.builds_after(4 * SECOND, Some(1), Ok(Refreshed::New(2)));
    task.builds_after(DUE, Some(2), Err("down"));
    task.begins_after(SECOND, Some(2));
}

#[test]
fn a_panic_is_contained_and_reported() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.begins_after(DUE, Some(1));
    task.ends_with(panicking("a literal"));
    task.fails(1, "the build panicked: a literal");
    assert_eq!((task.builds.dropped(), task.cell.is_refreshing()), (2, false));
    task.begins_after(SECOND / 10, Some(1));
    task.ends_with(panicking(format!("formatted {}", 7)));
    task.fails(2, "the build panicked: formatted 7");
    task.begins_after(SECOND / 5, Some(1));
    task.ends_with(panicking(7_u8));
    task.fails(3, "the build panicked");
    assert_eq!((task.cell.stats().panicked, task.cell.stats().abandoned), (3, 0));
    task.serves(1);
    task.builds_after(2 * SECOND / 5, Some(1), Ok(Refreshed::New(2)));
    task.no_error();
}

#[test]
fn a_panic_of_the_closure_is_contained_too() {
    let (cell, clock) = cell::<u32>();
    let mut panics = true;
    let (refresher, task) = spawned(|spawn| {
        Refresher::spawn_async(&cell, AHEAD, spawn, move |_| {
            if std::mem::take(&mut panics) {
                panic_as_planned();
            }
            std::future::ready(1)
        })
        .unwrap()
    });
    let mut task = Hand::new(task);
    task.pending();
    assert_eq!((refresher.consecutive_failures(), cell.stats().panicked), (1, 1));
    clock.advance(SECOND / 10);
    task.pending();
    assert_eq!((refresher.consecutive_failures(), cell.get().as_deref()), (0, Some(&1)));
}

// What wakes it.

#[test]
fn an_invalidate_and_a_clear_wake_it_at_once() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.advance(SECOND);
    task.goes_on();
    task.cell.invalidate();
    task.goes_on();
    task.builds.begun(Some(1));
    task.serves(1);
    task.ends(Ok(Refreshed::New(2)));
    task.cell.clear();
    task.goes_on();
    task.builds.begun(None);
    task.ends(Ok(Refreshed::New(3)));
    task.builds_after(DUE, Some(3), Ok(Refreshed::New(4)));
}

#[test]
fn g4_what_comes_during_its_build_asks_for_another() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.begins_after(DUE, Some(1));
    task.cell.invalidate();
    task.goes_on();
    task.builds.none();
    task.ends(Ok(Refreshed::New(2)));
    task.builds.begun(Some(2));
    task.cell.clear();
    task.ends(Ok(Refreshed::New(3)));
    task.builds.begun(None);
    assert_eq!(task.cell.generation(), 2);
    task.ends(Ok(Refreshed::New(4)));
    task.builds.none();
    task.serves(4);
}

#[test]
fn a_set_moves_the_time_at_which_it_builds() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.advance(SECOND);
    task.goes_on();
    task.cell.set(7);
    task.goes_on();
    task.begins_after(DUE, Some(7));
    // Also during a build, which it wins over.
    task.advance(SECOND);
    task.cell.set(8);
    task.ends(Ok(Refreshed::New(9)));
    task.serves(8);
    task.builds_after(DUE, Some(8), Ok(Refreshed::New(9)));
}

#[test]
fn an_invalidate_does_not_end_a_pause() {
    for policy in [Policy::ttl(TTL), Policy::ttl(TTL).retry_backoff(SECOND / 10, SECOND)] {
        let mut task = Polled::asleep(policy);
        task.builds_after(DUE, Some(1), Err("down"));
        task.cell.invalidate();
        task.goes_on();
        task.builds.none();
        task.begins_after(SECOND / 10, Some(1));
    }
}

/// The wake-ups follow the task from one waker to another, in a sleep and during a build.
#[test]
fn it_is_woken_by_its_latest_waker() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    let moved = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&moved));
    let former = task.task.wakes();
    assert!(task.task.poll_with(&waker).is_pending());
    task.cell.invalidate();
    assert_eq!((task.task.wakes(), moved.count()), (former, 1));
    assert!(task.task.poll_with(&waker).is_pending());
    task.builds.begun(Some(1));
    // The clock's, too.
    let end = task.builds.clone();
    end.end_with(|| Ok(Refreshed::New(2)));
    assert!(task.task.poll_with(&waker).is_pending());
    let before = moved.count();
    task.advance(DUE);
    assert_eq!((task.task.wakes(), moved.count()), (former, before + 1));
    assert!(task.task.poll_with(&waker).is_pending());
    task.builds.begun(Some(2));
    // And the end of the handle.
    let again = Arc::new(Wakes::default());
    assert!(task.task.poll_with(&Waker::from(Arc::clone(&again))).is_pending());
    let before = moved.count();
    drop(task.refresher);
    assert_eq!((task.task.wakes(), moved.count(), again.count()), (former, before, 1));
    assert!(task.task.poll_with(&waker).is_ready());
}

// Other builders.

#[test]
fn the_build_of_another_caller_is_waited_for() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    let cell = Arc::clone(&task.cell);
    let door = Door::default();
    task.advance(DUE - SECOND);
    task.cell.invalidate();
    task.cell.set(5);
    task.goes_on();
    // A reader builds where there is nothing to serve, ahead of the refresher.
    task.cell.clear();
    let mut other = Hand::new(cell.get_or_refresh_async(|| async {
        door.pass().await;
        6
    }));
    other.pending();
    task.goes_on();
    task.builds.none();
    task.advance(10 * TTL);
    door.open();
    assert_eq!(*other.ready(), 6);
    task.goes_on();
    task.builds.none();
    task.builds_after(DUE, Some(6), Ok(Refreshed::New(7)));
}

#[test]
fn g4_a_build_that_never_ends_is_superseded_and_fenced_off() {
    let mut task = Polled::asleep(Policy::ttl(TTL).lease_timeout(SECOND));
    task.begins_after(DUE, Some(1));
    task.advance(TTL);
    task.serves(1);
    assert_eq!(
        *Hand::new(task.cell.request().max_stale(Duration::ZERO).get_async(|| async { 2 })).ready(),
        2
    );
    task.advance(SECOND);
    task.ends(Ok(Refreshed::New(3)));
    task.serves(2);
    assert_eq!((task.cell.generation(), task.cell.stats().superseded), (2, 1));
    task.builds_after(DUE - SECOND, Some(2), Ok(Refreshed::New(4)));
}

#[test]
fn g1_a_thread_and_a_task_on_one_cell_build_once() {
    let task = Polled::asleep(Policy::ttl(TTL));
    let Polled { cell, clock, builds, mut task, refresher, .. } = task;
    let (show, begun) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<u32>();
    let on_a_thread = Refresher::spawn(&cell, AHEAD, move |_| {
        show.send(()).unwrap();
        ended.recv_timeout(PATIENCE).map_err(|_| "no result")
    })
    .unwrap();
    // The thread is the first.
    clock.advance(DUE);
    begun.recv_timeout(PATIENCE).unwrap();
    task.pending();
    builds.none();
    end.send(2).unwrap();
    eventually("it is published", || cell.get().as_deref() == Some(&2));
    task.pending();
    builds.none();
    assert_eq!(cell.stats().builds, 2);
    // The last one out.
    drop(end);
    drop(on_a_thread);
    cell.invalidate();
    serves(&cell, 2);
    task.pending();
    builds.begun(Some(2));
    drop((task, refresher));
    is_left_alone(&cell);
}

// Bad input.

#[test]
fn ahead_must_be_shorter_than_the_ttl() {
    let (cell, _clock) = cell_with::<u32>(Policy::ttl(TTL));
    let (zero, _clock) = cell_with::<u32>(Policy::ttl(Duration::ZERO));
    for (cell, ahead) in [(&cell, TTL), (&cell, Duration::MAX), (&zero, Duration::ZERO)] {
        let spawn = |_| unreachable!("there is nothing to spawn");
        let error = Refresher::spawn_async(cell, ahead, spawn, |_| never::<Ended>())
            .expect_err("it should have been refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("`ahead` must be shorter than the policy's ttl"), "{error}");
        is_left_alone(cell);
    }
}

// How it ends.

#[test]
fn dropping_the_handle_wakes_it_from_a_sleep_and_it_ends() {
    for policy in [Policy::ttl(TTL), Policy::never_expires()] {
        let mut task = Polled::new(policy);
        task.task.pending();
        task.ends(Ok(Refreshed::New(1)));
        let Polled { cell, mut task, answered, refresher, .. } = task;
        drop(refresher);
        assert!(task.wakes() > answered);
        task.ready();
        is_left_alone(&cell);
    }
}

#[test]
fn dropping_the_handle_drops_its_build_at_the_next_poll() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.begins_after(DUE, Some(1));
    let Polled { cell, builds, mut task, answered, refresher, .. } = task;
    drop(refresher);
    assert!(task.wakes() > answered);
    assert_eq!((builds.dropped(), cell.is_refreshing()), (1, true));
    task.ready();
    assert_eq!((builds.dropped(), cell.is_refreshing()), (2, false));
    assert_eq!((cell.stats().abandoned, cell.get().as_deref()), (1, Some(&1)));
    is_left_alone(&cell);
}

#[test]
fn dropping_the_handle_before_the_first_poll_is_in_time() {
    let task = Polled::new(Policy::ttl(TTL));
    let Polled { cell, builds, mut task, refresher, .. } = task;
    drop(refresher);
    task.ready();
    builds.none();
    assert_eq!(cell.stats().builds, 0);
    is_left_alone(&cell);
}

#[test]
fn dropped_from_inside_its_own_build_it_stops() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.begins_after(DUE, Some(1));
    let Polled { cell, builds, mut task, refresher, .. } = task;
    builds.end_with(move || {
        drop(refresher);
        Ok(Refreshed::New(2))
    });
    // It has ended in the same poll, so it is published.
    task.ready();
    assert_eq!((cell.generation(), cell.get().as_deref()), (2, Some(&2)));
    is_left_alone(&cell);
}

#[test]
fn a_task_that_is_dropped_leaves_the_cell_alone() {
    // Before the first poll.
    let Polled { cell, task, refresher, .. } = Polled::new(Policy::ttl(TTL));
    drop(task);
    is_left_alone(&cell);
    drop(refresher);
    // Asleep.
    let Polled { cell, task, refresher, .. } = Polled::asleep(Policy::ttl(TTL));
    drop(task);
    is_left_alone(&cell);
    assert_eq!(refresher.consecutive_failures(), 0);
    // While it builds: the lease comes back first.
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.begins_after(DUE, Some(1));
    let Polled { cell, builds, task, refresher, .. } = task;
    drop(task);
    assert_eq!((builds.dropped(), cell.is_refreshing(), cell.stats().abandoned), (2, false, 1));
    is_left_alone(&cell);
    drop(refresher);
}

#[test]
fn a_spawner_that_drops_the_task_or_panics_leaves_the_cell_alone() {
    let (cell, _clock) = cell::<u32>();
    let build = |_: Option<Arc<u32>>| never::<Ended>();
    let refresher = Refresher::spawn_async(&cell, AHEAD, drop, build).unwrap();
    is_left_alone(&cell);
    drop(refresher);
    panics_as_planned(|| Refresher::spawn_async(&cell, AHEAD, |_| panic_as_planned(), build));
    is_left_alone(&cell);
}

#[test]
fn when_the_last_user_drops_the_cell_it_ends() {
    for policy in [Policy::ttl(TTL), Policy::never_expires()] {
        let mut task = Polled::new(policy);
        task.task.pending();
        task.ends(Ok(Refreshed::New(1)));
        assert_eq!(Arc::strong_count(&task.cell), 1);
        let value = Arc::downgrade(&task.cell.get().unwrap());
        let Polled { cell, mut task, answered, refresher, .. } = task;
        drop(cell);
        assert_eq!(value.strong_count(), 0);
        assert!(task.wakes() > answered);
        task.ready();
        drop(refresher);
    }
}

#[test]
fn when_the_last_user_drops_the_cell_it_ends_after_its_build() {
    let mut task = Polled::asleep(Policy::ttl(TTL));
    task.begins_after(DUE, Some(1));
    let Polled { cell, builds, mut task, refresher, .. } = task;
    let weak: Weak<DogpileCell<u32, ManualClock>> = Arc::downgrade(&cell);
    drop(cell);
    assert_eq!(weak.strong_count(), 1);
    task.pending();
    builds.end_with(|| Ok(Refreshed::New(2)));
    task.ready();
    assert_eq!(weak.strong_count(), 0);
    assert_eq!(refresher.consecutive_failures(), 0);
}

#[test]
fn an_ended_task_keeps_nothing() {
    let kept = Arc::new(());
    let (cell, _clock) = cell::<usize>();
    let (refresher, task) = spawned(|spawn| {
        let kept = Arc::clone(&kept);
        Refresher::spawn_async(&cell, AHEAD, spawn, move |_| {
            let owners = Arc::strong_count(&kept);
            std::future::ready(owners)
        })
        .unwrap()
    });
    let mut task = Hand::new(task);
    task.pending();
    drop(refresher);
    task.ready();
    assert_eq!(Arc::strong_count(&kept), 1);
    // Neither the cell nor the clock has its waker any more.
    assert!(!task.is_listed());
    cell.invalidate();
}

// Real executors.

/// First build, due, invalidated, failed, dropped: on any executor.
async fn goes_round<S>(spawn: impl FnOnce(Task) -> S) {
    let (cell, clock) = cell::<u32>();
    let refresher = Refresher::spawn_async(&cell, AHEAD, spawn, {
        let clock = clock.clone();
        move |previous: Option<Arc<u32>>| {
            let clock = clock.clone();
            async move {
                futures_lite::future::yield_now().await;
                // Some time passes while it builds.
                clock.advance(TICK);
                match previous.map(|value| *value) {
                    Some(2) => Err("no two"),
                    previous => Ok(previous.map_or(1, |value| value + 1)),
                }
            }
        }
    })
    .unwrap();
    let has = |value: u32| cell.get().is_some_and(|held| *held == value);
    until("the first build", || has(1)).await;
    clock.advance(DUE);
    until("it is due", || has(2)).await;
    cell.invalidate();
    until("it fails", || refresher.consecutive_failures() > 0).await;
    assert_eq!(*cell.get_or_refresh_async(unbuilt).await, 2);
    cell.set(5);
    cell.invalidate();
    // When the pause is over, whenever that has begun.
    until("it goes on", || {
        clock.advance(SECOND / 10);
        cell.get().is_some_and(|held| *held >= 6)
    })
    .await;
    cell.clear();
    until("from the beginning", || has(1)).await;
    let weak = Arc::downgrade(&cell);
    drop(refresher);
    until("it has ended", || {
        cell.set(100);
        cell.invalidate();
        *cell.get_or_refresh(|| 101) == 101
    })
    .await;
    drop(cell);
    // The task may be having a last look.
    until("the cell is let go of", || weak.strong_count() == 0).await;
}

#[test]
fn on_tokio() {
    guarded(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(goes_round(tokio::spawn));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(goes_round(tokio::spawn));
    });
}

#[test]
fn on_smol() {
    guarded(|| smol::block_on(goes_round(|task| smol::spawn(task).detach())));
}

#[test]
fn on_a_thread_that_blocks_on_it() {
    guarded(|| {
        smol::block_on(goes_round(|task| drop(std::thread::spawn(|| futures_lite::future::block_on(task)))));
    });
}

/// Real time: nothing is measured, but it has to come round again and again.
#[test]
fn on_the_systems_clock_it_comes_round() {
    guarded(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let cell = Arc::new(DogpileCell::<u32>::new(Duration::from_millis(20)));
            let build = |previous: Option<Arc<u32>>| async move { previous.map_or(0, |value| *value) + 1 };
            let ahead = Duration::from_millis(15);
            let refresher = Refresher::spawn_async(&cell, ahead, tokio::spawn, build).unwrap();
            until("five rounds", || cell.get().is_some_and(|value| *value >= 5)).await;
            drop(refresher);
        });
    });
}

#[test]
fn a_runtime_that_is_shut_down_in_mid_build_leaves_the_cell_alone() {
    guarded(|| {
        let flavours = [
            tokio::runtime::Builder::new_current_thread().build().unwrap(),
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap(),
        ];
        for runtime in flavours {
            let (cell, _clock) = cell::<u32>();
            let builds = Builds::default();
            let refresher = {
                let builds = builds.clone();
                let spawn = |task| drop(runtime.spawn(task));
                Refresher::spawn_async(&cell, AHEAD, spawn, move |previous| builds.begin(previous)).unwrap()
            };
            runtime.block_on(until("it builds", || cell.is_refreshing()));
            drop(runtime);
            assert_eq!((cell.is_refreshing(), cell.stats().abandoned), (false, 1));
            assert_eq!(*cell.get_or_refresh(|| 1), 1);
            is_left_alone(&cell);
            drop(refresher);
        }
    });
}

#[test]
fn a_runtime_that_is_shut_down_in_a_sleep_leaves_the_cell_alone() {
    guarded(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (cell, _clock) = cell::<u32>();
        let spawn = |task| drop(runtime.spawn(task));
        let build = |_| std::future::ready(1);
        let refresher = Refresher::spawn_async(&cell, AHEAD, spawn, build).unwrap();
        runtime.block_on(until("the first build", || cell.get().is_some()));
        drop(runtime);
        is_left_alone(&cell);
        drop(refresher);
    });
}
