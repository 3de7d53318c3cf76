//! Panics that are part of the test, panics that are its findings, and hangs.

use std::any::Any;
use std::cell::RefCell;
use std::fmt::Debug;
use std::io::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Once};
use std::time::Duration;

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

/// The payload of the panics that the test raises in builds.
struct Planned;

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
    /// The panic of a method that would have waited for its own build, at the line of its caller.
    Reentrant,
}

/// Calls into a cell. Every panic but the two that a test can expect goes on.
pub(crate) fn called<R>(call: impl FnOnce() -> R) -> Called<R> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(returned) => Called::Returned(returned),
        Err(payload) if payload.is::<Planned>() => Called::Panicked,
        Err(payload) if is_of_reentry(&*payload) => {
            let file = LATEST.with_borrow(|latest| latest.as_ref().map(|begun| begun.file.clone()));
            assert!(
                file.is_some_and(|file| file.contains("tests")),
                "the panic blames a line of the library"
            );
            Called::Reentrant
        }
        Err(payload) => resume_unwind(payload),
    }
}

fn is_of_reentry(payload: &(dyn Any + Send)) -> bool {
    payload
        .downcast_ref::<String>()
        .is_some_and(|message| message.contains("inside the build of the same cell"))
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
        std::thread::spawn(move || {
            if ended.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
                // Not `eprintln!`, which the test harness captures and would lose.
                let _ = writeln!(std::io::stderr(), "this case hangs: {case:?}");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}
