//! Panics that are part of the test, panics that are its findings, and hangs.

use std::any::Any;
use std::cell::RefCell;
use std::fmt::Debug;
use std::io::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant};

thread_local! {
    /// `Some` while a case runs on this thread: where and why the latest panic began.
    static LATEST: RefCell<Option<Begun>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Begun {
    file: String,
    report: String,
}

/// Runs one case. A panic is returned as a report instead of being printed: a shrinking run has thousands.
pub(crate) fn reported(case: impl FnOnce()) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |info| {
            if !note(info) {
                print(info);
            }
        }));
    });
    LATEST.with_borrow_mut(|latest| *latest = Some(Begun::default()));
    let ended = catch_unwind(AssertUnwindSafe(case));
    let latest = LATEST.take();
    ended.map_err(|_| latest.unwrap_or_default().report)
}

fn note(info: &PanicHookInfo<'_>) -> bool {
    LATEST.with_borrow_mut(|latest| {
        if let Some(latest) = latest {
            latest.file = info.location().map_or_else(String::new, |at| at.file().to_owned());
            latest.report = info.to_string();
        }
        latest.is_some()
    })
}

/// Adds to the report of the panic that is under way.
pub(crate) fn annotate(note: &str) {
    LATEST.with_borrow_mut(|latest| {
        if let Some(latest) = latest {
            latest.report.push_str(note);
        }
    });
}

/// The payload of the panics that the test raises in builds and finalizers.
pub(crate) struct Planned;

/// Panics without troubling the hook.
pub(crate) fn panic_as_planned() -> ! {
    resume_unwind(Box::new(Planned))
}

/// How a call into a cell came back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Called<R> {
    Returned(R),
    /// The panic that the test raised came through.
    Panicked,
    /// The panic of a method that would have waited for its own caller, at that caller's line.
    WouldWait,
    /// The panic of a method that a build has called which was overtaken, at that caller's line.
    Overtaken,
}

/// Calls into a cell. Every panic but those that a test can expect goes on.
pub(crate) fn called<R>(call: impl FnOnce() -> R) -> Called<R> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(returned) => Called::Returned(returned),
        Err(payload) if payload.is::<Planned>() => Called::Panicked,
        Err(payload) if says(&*payload, "would wait for itself") => blamed(Called::WouldWait),
        Err(payload) if says(&*payload, "from inside the build") => blamed(Called::WouldWait),
        Err(payload) if says(&*payload, "has been overtaken") => blamed(Called::Overtaken),
        Err(payload) => resume_unwind(payload),
    }
}

fn says(payload: &(dyn Any + Send), words: &str) -> bool {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| payload.downcast_ref::<&str>().copied()).is_some_and(|message| message.contains(words))
}

fn blamed<R>(called: R) -> R {
    let file = LATEST.with_borrow(|latest| latest.as_ref().map(|begun| begun.file.clone()));
    assert!(file.is_some_and(|file| file.contains("tests")), "the panic blames a line of the library");
    called
}

/// Calls into a cell. `None`: the panic of a method whose spawner has dropped its build, or whose build has panicked there, at
/// that caller's line. Every other panic goes on.
pub(crate) fn unless_abandoned<R>(call: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(returned) => Some(returned),
        Err(payload) if says(&*payload, "dropped or panicked in the spawner") => blamed(None),
        Err(payload) => resume_unwind(payload),
    }
}

/// Looks until `condition` holds. Returns whether it ever did: real time, as a guard against a hang; and looks, so that a
/// machine that stands still for a while is not taken for one.
pub(crate) fn eventually(condition: impl Fn() -> bool) -> bool {
    const ENOUGH_LOOKS: u32 = 10_000;
    /// The verdict is in; what is left is shrinking, which tries the same many times.
    static IMPATIENT: AtomicBool = AtomicBool::new(false);
    // Relaxed: nothing hangs on it but time.
    let patience = Duration::from_secs(if IMPATIENT.load(Ordering::Relaxed) { 1 } else { 30 });
    let start = Instant::now();
    let mut looks = 0;
    while !condition() {
        looks += 1;
        if start.elapsed() > patience && looks > ENOUGH_LOOKS {
            IMPATIENT.store(true, Ordering::Relaxed);
            return false;
        }
        thread::yield_now();
    }
    true
}

/// Ends the process if a case takes longer than any can: the one thread waits for itself. Real time, as a guard
/// against a hang, not as a measure.
pub(crate) struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    pub(crate) fn over<Case: Debug + Send + Sync + 'static>(case: &Arc<Case>) -> Self {
        let (alive, ended) = channel::<()>();
        let case = Arc::clone(case);
        thread::spawn(move || {
            if ended.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout) {
                // Not `eprintln!`, which the test harness captures and would lose.
                let _ = writeln!(std::io::stderr(), "this case hangs: {case:?}");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}
