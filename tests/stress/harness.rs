//! Threads that start together, draw at random, and are watched.

use std::any::Any;
use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::hint;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One stress at a time: each has more threads than there are processors.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    lock(&ALONE)
}

/// How much to do: `usual`, times `DOGPILE_STRESS`, or `in_miri`, which is a thousand times slower.
pub(crate) fn scaled(usual: u64, in_miri: u64) -> u64 {
    let factor =
        std::env::var("DOGPILE_STRESS").map_or(1, |text| text.parse().expect("DOGPILE_STRESS: a number"));
    factor * if cfg!(miri) { in_miri } else { usual }
}

/// Of `DOGPILE_SEED`, or a new one. Printed, which the test harness shows if the test fails.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("DOGPILE_SEED") {
        Ok(text) => text.parse().expect("DOGPILE_SEED: a number"),
        Err(_) => RandomState::new().hash_one(0),
    };
    println!("DOGPILE_SEED={seed}");
    seed
}

/// `SplitMix64`.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("smaller than a length")
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A moment: mostly a short one, now and then one in which others run.
    pub(crate) fn dawdle(&mut self) {
        if self.one_in(24) {
            thread::yield_now();
        } else {
            for _ in 0..self.below(if cfg!(miri) { 3 } else { 60 }) {
                hint::spin_loop();
            }
        }
    }
}

/// The error of builds that are to fail.
#[derive(Debug)]
pub(crate) struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the build fails")
    }
}

impl Error for Failed {}

/// The payload of the panics that builds and finalizers raise.
struct Planned;

/// Panics without troubling the hook.
pub(crate) fn panic_as_planned() -> ! {
    resume_unwind(Box::new(Planned))
}

/// Runs `f`; `None` if it panicked as planned. Every other panic goes on.
pub(crate) fn unless_it_panics<R>(f: impl FnOnce() -> R) -> Option<R> {
    let go_on = |payload: Box<dyn Any + Send>| {
        if payload.is::<Planned>() { None } else { resume_unwind(payload) }
    };
    catch_unwind(AssertUnwindSafe(f)).map_or_else(go_on, Some)
}

thread_local! {
    /// A panic on this thread is no fault.
    static IS_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`, which may panic with a message that contains one of `messages`, without troubling the hook. Every other
/// panic goes on.
pub(crate) fn unless_it_says<R>(messages: &[&str], f: impl FnOnce() -> R) -> Option<R> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |info| {
            if !IS_EXPECTED.get() {
                hook(info);
            }
        }));
    });
    let was_expected = IS_EXPECTED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    IS_EXPECTED.set(was_expected);
    result.map_err(|payload| expect_payload(payload, messages)).ok()
}

fn expect_payload(payload: Box<dyn Any + Send>, messages: &[&str]) {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    let is_allowed = |text: &str| messages.iter().any(|message| text.contains(message));
    if payload.is::<Planned>() || text.is_some_and(is_allowed) {
        return;
    }
    if let Some(text) = text {
        // The hook has been silenced.
        let _ = writeln!(std::io::stderr(), "unexpected panic: {text}");
    }
    resume_unwind(payload)
}

/// Looks until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "hangs: {what}");
        thread::yield_now();
    }
}

/// Real time, as a guard against a hang, not as a measure.
const PATIENCE: Duration = Duration::from_secs(if cfg!(miri) { 1200 } else { 60 });

/// What a thread was doing at its latest step.
struct Row {
    name: String,
    doing: Mutex<(&'static str, &'static str)>,
    steps: AtomicU64,
    /// It is for others to go on.
    is_idle: AtomicBool,
}

impl Row {
    // Relaxed, all: the watchdog only sees whether something moves.
    fn note(&self, cell: &'static str, what: &'static str, is_idle: bool) {
        *lock(&self.doing) = (cell, what);
        self.is_idle.store(is_idle, Ordering::Relaxed);
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::Relaxed)
    }
}

/// A thread of a team, as it sees itself.
pub(crate) struct Member<'a> {
    pub(crate) random: Random,
    row: &'a Row,
    stop: &'a AtomicBool,
}

impl Member<'_> {
    /// For the watchdog.
    pub(crate) fn doing(&self, what: &'static str) {
        self.row.note("", what, false);
    }

    /// The same, where there are several cells.
    pub(crate) fn doing_with(&self, cell: &'static str, what: &'static str) {
        self.row.note(cell, what, false);
    }

    /// The same, of something that may take long.
    pub(crate) fn waiting(&self, what: &'static str) {
        self.row.note("", what, true);
    }

    pub(crate) fn goes_on(&self) -> bool {
        // Relaxed: what the others have done is looked at when they have been joined.
        !self.stop.load(Ordering::Relaxed)
    }

    /// Everybody is to stop.
    pub(crate) fn stop(&self) {
        // Relaxed: see `goes_on`.
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        // What the others might wait for does not come any more.
        if thread::panicking() {
            self.stop();
        }
        self.waiting("nothing any more");
    }
}

/// What a thread does, and what it is called.
pub(crate) type Task<'a> = (String, Box<dyn FnOnce(&mut Member<'_>) + Send + 'a>);

pub(crate) fn task<'a>(name: impl Into<String>, run: impl FnOnce(&mut Member<'_>) + Send + 'a) -> Task<'a> {
    (name.into(), Box::new(run))
}

/// Runs the tasks, each on a thread of its own; all start together. Panics if one does.
pub(crate) fn together(seed: u64, tasks: Vec<Task<'_>>) {
    let row = |task: &Task<'_>| Row {
        name: task.0.clone(),
        doing: Mutex::new(("", "nothing yet")),
        steps: AtomicU64::new(0),
        is_idle: AtomicBool::new(true),
    };
    let rows: Arc<[Row]> = tasks.iter().map(row).collect();
    let (stop, barrier) = (AtomicBool::new(false), Barrier::new(tasks.len()));
    let _watchdog = Watchdog::over(Arc::clone(&rows));
    let mut seeds = Random::new(seed);
    thread::scope(|scope| {
        let (stop, barrier) = (&stop, &barrier);
        let mut threads = Vec::new();
        for (row, (name, run)) in rows.iter().zip(tasks) {
            let random = Random::new(seeds.next());
            let run = move || {
                let mut member = Member { random, row, stop };
                barrier.wait();
                run(&mut member);
            };
            threads.push(thread::Builder::new().name(name).spawn_scoped(scope, run).expect("a thread"));
        }
        let panics: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().err()).collect();
        if let Some(first) = panics.into_iter().next() {
            resume_unwind(first);
        }
    });
}

/// Ends the process when a thread does not move any more.
struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    fn over(rows: Arc<[Row]>) -> Self {
        let (alive, ended) = channel::<()>();
        thread::spawn(move || {
            let mut before = vec![0; rows.len()];
            while ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let now = rows.iter().map(Row::steps).collect::<Vec<_>>();
                let stands = |row: usize| now[row] == before[row] && !rows[row].is_idle();
                if (0..rows.len()).any(stands) {
                    let mut stderr = std::io::stderr();
                    // Not `eprintln!`, which the test harness captures and would lose.
                    let _ = writeln!(stderr, "a thread hangs; the last that was heard of each:");
                    for (number, row) in rows.iter().enumerate() {
                        let mark = if stands(number) { "=>" } else { "  " };
                        let (cell, what) = *lock(&row.doing);
                        let _ = writeln!(stderr, "{mark} {}: {cell} {what}", row.name);
                    }
                    std::process::abort();
                }
                before = now;
            }
        });
        Self { _alive: alive }
    }
}
