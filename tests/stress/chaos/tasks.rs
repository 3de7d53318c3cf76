//! Reads from async code: a few tasks at a time on the actor's own thread, some of which are dropped wherever they are.
//!
//! The actor polls those that have been woken, and parks when none has. So a task that is not woken is a thread that hangs,
//! which the watchdog sees. Tasks wait for nothing but cells: a thread that has suspended one that holds a lease must not
//! block on what that lease is needed for.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use dogpile::{Clock, LazyDogpile, Lookup, ManualClock, RefreshError, Refreshed, Refresher, Task, Waited};

use crate::harness::{Failed, lock, panic_as_planned, unless_it_panics};
use crate::values::{Census, Value};

use super::plain::{LAZILY_BUILT, LAZILY_CALLED, Plain, is_known};
use super::readers::Readers;
use super::{Actor, Building, Draws, Number, OtherError, with_conditions};

type Job<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;
/// What tasks have spawned.
type Spawned = Mutex<Vec<Task>>;

/// What a run of a second or two comes to many times.
pub(super) const RARE: &[&str] = &[
    "an async build",
    "an async build that fails",
    "an async build that panics",
    "get_or_refresh_async",
    "request: get_async",
    "request: try_get_async",
    "request: try_get_with_async",
    "request: spawn_with, async",
    "LazyDogpile::get_or_refresh_async",
    "LazyDogpile::request, async",
    "try_get_or_refresh_async",
    "synchronize_async",
    "awaited: published",
    "Refresher::spawn_async",
    "an async refresher that builds",
    "a task that is told that it would wait for itself",
    "a task that is dropped",
    "a task that panics",
    "waiting for a task to be woken",
];

pub(super) type LazyAsyncCell = LazyDogpile<Value, LazyAsyncBuild, ManualClock>;
type LazyAsyncBuild = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Value> + Send>> + Send + Sync>;

/// What a `LazyDogpile` builds.
pub(super) fn lazy_build(census: &Arc<Census>, building: &Arc<Building>) -> LazyAsyncBuild {
    let (census, building) = (Arc::clone(census), Arc::clone(building));
    Box::new(move || {
        let (census, building) = (Arc::clone(&census), Arc::clone(&building));
        Box::pin(async move {
            let called = LAZILY_CALLED.get();
            let number = number(&census).await;
            let _alone = building.enter(false, &census, called);
            let random = Draws::new(number);
            for _ in 0..random.below(4) {
                give_way().await;
            }
            if random.one_in(10) {
                panic_as_planned();
            }
            LAZILY_BUILT.set(number);
            census.build(number)
        })
    })
}

/// Wakes the thread that polls a task.
struct Woken {
    is_called: AtomicBool,
    thread: Thread,
    /// A waker is user code, which may panic.
    panics: bool,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_called.store(true, Ordering::SeqCst);
        self.thread.unpark();
        if self.panics {
            panic_as_planned();
        }
    }
}

/// Lets the other tasks go first.
async fn give_way() {
    let mut has_waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A number, without blocking on a `set` that is under way: that may wait for a reader that a suspended task is.
async fn number(census: &Census) -> u64 {
    loop {
        match census.try_number() {
            Some(number) => return number,
            None => give_way().await,
        }
    }
}

impl Actor<'_> {
    pub(super) fn run_tasks(&self) {
        let spawned: Spawned = Mutex::default();
        let mut jobs: Vec<Option<(Job<'_>, Arc<Woken>)>> = Vec::new();
        for _ in 0..=self.random.below(4) {
            let job: Job<'_> = match self.random.below(9) {
                0..5 => Box::pin(self.ask_plain(self.random.index(self.stage.plain.len()), &spawned)),
                5..8 => Box::pin(self.ask_readers(self.random.index(self.stage.readers.len()))),
                _ => Box::pin(self.keep_refreshed(self.random.index(self.stage.plain.len()), &spawned)),
            };
            jobs.push(Some((job, self.waker())));
        }
        // Others are dropped when all that were begun here have ended, and sooner or later at random.
        let own = jobs.len();
        while jobs[..own].iter().any(Option::is_some) {
            self.me.doing("polling tasks");
            let mut has_polled = false;
            for slot in &mut jobs {
                let Some((job, woken)) = slot else { continue };
                if !woken.is_called.swap(false, Ordering::SeqCst) {
                    continue;
                }
                has_polled = true;
                let waker = Waker::from(Arc::clone(woken));
                let poll = unless_it_panics(|| job.as_mut().poll(&mut Context::from_waker(&waker)));
                if poll.is_none() {
                    self.tally("", "a task that panics");
                }
                if !matches!(poll, Some(Poll::Pending)) {
                    *slot = None;
                } else if self.random.one_in(16) {
                    // A waker of another make.
                    *woken = self.waker();
                }
            }
            jobs.extend(
                std::mem::take(&mut *lock(&spawned))
                    .into_iter()
                    .map(|job| Some((job as Job<'_>, self.waker()))),
            );
            if self.random.one_in(12) {
                self.tally("", "a task that is dropped");
                let which = self.random.index(jobs.len());
                jobs[which] = None;
            } else if !has_polled {
                self.doing("", "waiting for a task to be woken");
                thread::park();
            }
        }
        self.me.doing("dropping tasks");
    }

    fn waker(&self) -> Arc<Woken> {
        // To be polled at once.
        let (is_called, thread) = (AtomicBool::new(true), thread::current());
        Arc::new(Woken { is_called, thread, panics: self.random.one_in(50) })
    }

    /// A build. It notes its number when it has one.
    async fn build_plain<E>(
        &self,
        plain: &Plain,
        random: &Draws,
        noted: &Number,
        displaced: u64,
        error: E,
    ) -> Result<Value, E> {
        let number = number(&plain.census).await;
        noted.0.set(number);
        let _alone = plain.enter(displaced);
        self.tally(plain.name, "an async build");
        for _ in 0..random.below(4) {
            give_way().await;
        }
        if random.one_in(8) {
            // Its own cell (G10).
            match plain.cell().try_get_or_refresh_async(async || Err::<Value, _>(OtherError)).await {
                Err(RefreshError::Reentrant) => {
                    self.tally(plain.name, "a task that is told that it would wait for itself");
                }
                Ok(_) => {}
                Err(error) => {
                    let (begun, _) = plain.census.displacement_counts();
                    assert!(plain.may_overlap || begun > displaced, "inside a build: {error}");
                }
            }
        }
        match random.below(10) {
            0 => {
                self.tally(plain.name, "an async build that fails");
                Err(error)
            }
            1 => {
                self.tally(plain.name, "an async build that panics");
                panic_as_planned()
            }
            _ => Ok(plain.census.build(number)),
        }
    }

    async fn ask_plain(&self, which: usize, spawned: &Spawned) {
        let plain = &self.stage.plain[which];
        let (cell, name) = (plain.cell(), plain.name);
        let (random, noted, before) = (self.random.fork(), Number::default(), plain.census.before());
        let displaced = plain.displaced();
        let try_build = async || self.build_plain(plain, &random, &noted, displaced, Failed).await;
        let build = async || match try_build().await {
            Ok(value) => value,
            Err(Failed) => panic_as_planned(),
        };
        let value = match self.random.below(10) {
            0 | 1 => {
                self.doing(name, "get_or_refresh_async");
                if let (Some(lazy), true) = (plain.lazy_async_cell(), self.random.one_in(2)) {
                    // It may be polled on, and build, when others have called: 0 allows all.
                    LAZILY_CALLED.set(0);
                    let value = if self.random.one_in(2) {
                        self.doing(name, "LazyDogpile::get_or_refresh_async");
                        lazy.get_or_refresh_async().await
                    } else {
                        self.doing(name, "LazyDogpile::request, async");
                        with_conditions!(self, lazy.request(), cell.generation()).get_async().await
                    };
                    // Built in this very poll, if it is its own.
                    noted.0.set(LAZILY_BUILT.get());
                    value
                } else {
                    cell.get_or_refresh_async(build).await
                }
            }
            2 => {
                self.doing(name, "request: get_async");
                let value = cell.request().max_stale(Duration::ZERO).get_async(build).await;
                if !noted.is_of(&value) {
                    before.allows_as_fresh(&value);
                }
                value
            }
            3 | 4 => {
                self.doing(name, "try_get_or_refresh_async");
                match cell.try_get_or_refresh_async(try_build).await {
                    Ok(value) => value,
                    Err(RefreshError::Build(_)) => return,
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            5 | 6 => {
                self.doing(name, "Pending, awaited");
                let found = match plain.shared_cell() {
                    Some(cell) if random.one_in(2) => cell.lookup_owned(),
                    _ => cell.lookup(),
                };
                let Lookup::Pending(pending) = found else { return };
                match pending.await {
                    Waited::Published(value) => {
                        self.tally(name, "awaited: published");
                        value
                    }
                    Waited::Reentrant => panic!("{name}: told that it waits for itself"),
                    _ => return,
                }
            }
            7 => {
                self.doing(name, "request: try_get_async");
                let request = with_conditions!(self, cell.request(), cell.generation());
                match request.try_get_async(try_build).await {
                    Ok(value) => value,
                    Err(RefreshError::Build(_) | RefreshError::WaitTimeout) => return,
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            8 => {
                self.doing(name, "request: try_get_with_async");
                let request = with_conditions!(self, cell.request(), cell.generation());
                let build = async |_: Option<Arc<Value>>| {
                    let value = try_build().await?;
                    let ttl = Duration::from_nanos(random.below(1_000_000));
                    Ok(if random.one_in(2) { Refreshed::NewFor(value, ttl) } else { Refreshed::New(value) })
                };
                match request.try_get_with_async::<Failed, _, _>(build).await {
                    Ok(value) => value,
                    Err(RefreshError::Build(_) | RefreshError::WaitTimeout) => return,
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            _ => match self.ask_with_a_spawner(plain, displaced, spawned).await {
                Some(value) => value,
                None => return,
            },
        };
        if noted.is_of(&value) {
            value.check();
        } else {
            // Found in this very poll, so the thread has seen nothing newer meanwhile.
            self.plain[which].borrow_mut().sees(&value, before);
        }
    }

    /// The build is a task of its own. Returns a value that others have built.
    async fn ask_with_a_spawner(
        &self,
        plain: &Arc<Plain>,
        displaced: u64,
        spawned: &Spawned,
    ) -> Option<Arc<Value>> {
        let cell = plain.shared_cell()?;
        self.doing(plain.name, "request: spawn_with, async");
        let (made, plain) = (Arc::new(AtomicU64::new(0)), Arc::clone(plain));
        let build = {
            let (made, fails) = (Arc::clone(&made), self.random.one_in(4));
            move || async move {
                let number = number(&plain.census).await;
                let alone = plain.enter(displaced);
                give_way().await;
                drop(alone);
                made.store(number, Ordering::SeqCst);
                if fails { Err(Failed) } else { Ok(plain.census.build(number)) }
            }
        };
        let request = with_conditions!(self, cell.request_owned(), cell.generation());
        let request = request.spawn_with(|task: Task| lock(spawned).push(task));
        match request.try_get_async(build).await {
            Ok(value) if made.load(Ordering::SeqCst) == value.number() => value.check(),
            Ok(value) => return Some(value),
            Err(RefreshError::WaitTimeout | RefreshError::Abandoned) => {}
            Err(error) => assert!(error.build_error().is_some_and(is_known), "{error}"),
        }
        None
    }

    async fn ask_readers(&self, which: usize) {
        let readers = &self.stage.readers[which];
        let Readers { name, cell, census, .. } = &**readers;
        let (random, noted, before) = (self.random.fork(), Number::default(), census.before());
        let displaced = readers.displaced();
        let try_build = async || {
            let number = number(census).await;
            noted.0.set(number);
            let _alone = readers.building.enter(readers.may_overlap, census, displaced);
            self.tally(name, "an async build");
            for _ in 0..random.below(4) {
                give_way().await;
            }
            match random.below(10) {
                0 => Err(Failed),
                1 => panic_as_planned(),
                _ => Ok(census.build(number)),
            }
        };
        let build = async || try_build().await.unwrap_or_else(|Failed| panic_as_planned());
        let value = match self.random.below(6) {
            0 | 1 => {
                self.doing(name, "get_or_refresh_async");
                cell.get_or_refresh_async(build).await
            }
            2 => {
                self.doing(name, "request: get_async");
                let value = cell.request().max_stale(Duration::ZERO).get_async(build).await;
                if !noted.is_of(&value) {
                    before.allows_as_fresh(&value);
                }
                value
            }
            3 | 4 => {
                self.doing(name, "try_get_or_refresh_async");
                match cell.try_get_or_refresh_async(try_build).await {
                    Ok(value) => value,
                    Err(RefreshError::Build(_)) => return,
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            _ => {
                self.doing(name, "synchronize_async");
                return cell.synchronize_async().await;
            }
        };
        if noted.0.get() == 0 {
            before.allows(&value);
        } else {
            // It may have been suspended since, for the readers of what it has replaced.
            value.check();
        }
    }

    /// A refresher that lives as long as this task.
    async fn keep_refreshed(&self, which: usize, spawned: &Spawned) {
        let plain = &self.stage.plain[which];
        let Some(cell) = plain.shared_cell() else { return };
        self.doing(plain.name, "Refresher::spawn_async");
        let (weak, ahead) = (Arc::downgrade(plain), self.some_time(900));
        // Before the first election; a smaller number than a later one only allows more.
        let displaced = plain.displaced();
        let (seeds, builds) = (self.random.fork(), Arc::new(AtomicU64::new(0)));
        let begun = Arc::clone(&builds);
        let spawn = |task| lock(spawned).push(task);
        let build = move |_previous: Option<Arc<Value>>| {
            let (weak, random) = (weak.clone(), seeds.fork());
            begun.fetch_add(1, Ordering::SeqCst);
            async move {
                let plain = weak.upgrade().ok_or(Failed)?;
                let (ends, number) = (random.below(6), number(&plain.census).await);
                let alone = plain.enter(displaced);
                give_way().await;
                drop(alone);
                match ends {
                    0 => Err(Failed),
                    1 => panic_as_planned(),
                    2 => Ok(Refreshed::NewFor(plain.census.build(number), Duration::from_micros(100))),
                    _ => Ok(Refreshed::New(plain.census.build(number))),
                }
            }
        };
        let refresher = if self.random.one_in(2) {
            Refresher::spawn_async(cell, ahead, spawn, build)
        } else {
            let options = Refresher::options().min_interval(self.some_time(200)).rest_when_unused();
            options.spawn_async(cell, ahead, spawn, build)
        };
        let refresher = refresher.expect("`ahead` is shorter than the ttl");
        if refresher.wait_ready_async(self.some_time(100)).await {
            self.tally(plain.name, "an async refresher that is ready");
        }
        let end = self.stage.clock.now().saturating_add(Duration::from_micros(500));
        while self.stage.clock.now() < end {
            if builds.swap(0, Ordering::SeqCst) > 0 {
                self.tally(plain.name, "an async refresher that builds");
            }
            give_way().await;
        }
        let _ = (refresher.last_error(), refresher.consecutive_failures());
        if self.random.one_in(2) {
            refresher.stop_timeout_async(self.some_time(100)).await;
        }
    }
}
