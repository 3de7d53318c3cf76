//! Functions of each kind, as a user writes them.
// Small functions stand for large ones.
#![allow(clippy::items_after_statements, clippy::unnecessary_wraps, clippy::unused_async)]

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dogpile::{DogpileCell, Freshness, ManualClock, Policy, RefreshError, dogpile};
use futures_lite::future::block_on;

/// Something that is neither `Debug` nor `Clone`.
pub struct Rates(u32);

#[test]
fn a_function_that_cannot_fail() {
    static CALLS: AtomicU32 = AtomicU32::new(0);

    #[dogpile(ttl = "60s")]
    fn rates() -> Rates {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Rates(107)
    }

    let first: Arc<Rates> = rates();
    let second = rates();
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(rates::with(|rates| rates.0), 107);
    assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    let cell: &'static DogpileCell<Rates> = rates::cell();
    assert_eq!(cell.stats().builds, 1);
    assert_eq!(rates::build().0, 107);
    assert_eq!(CALLS.load(Ordering::Relaxed), 2);
}

static SOURCE_IS_DOWN: Mutex<bool> = Mutex::new(false);

/// The message of the day.
#[dogpile(ttl = "1h", stale_if_error = "0s", retry_backoff = ("0s", "0s"))]
pub fn motd() -> Result<String, io::Error> {
    if *SOURCE_IS_DOWN.lock().unwrap() { Err(io::ErrorKind::NotFound.into()) } else { Ok("hello".to_owned()) }
}

#[test]
fn a_function_that_may_fail() {
    *SOURCE_IS_DOWN.lock().unwrap() = true;
    let error: RefreshError = motd().unwrap_err();
    assert!(error.is::<io::Error>());
    assert!(motd::with(|_| ()).is_err());
    assert!(motd::build().is_err());
    *SOURCE_IS_DOWN.lock().unwrap() = false;
    let text: Result<Arc<String>, RefreshError> = motd();
    assert_eq!(*text.unwrap(), "hello");
    assert_eq!(motd::with(String::len).unwrap(), 5);
    // It is the text that is kept, not the `Result`.
    *SOURCE_IS_DOWN.lock().unwrap() = true;
    assert_eq!(*motd().unwrap(), "hello");
    motd::cell().invalidate();
    assert!(motd().is_err());
}

mod results {
    use super::*;

    type QueryResult<T> = Result<T, fmt::Error>;

    #[dogpile(never_expires)]
    fn of_io() -> io::Result<u32> {
        Ok(1)
    }

    #[dogpile(never_expires)]
    fn of_anyhow() -> anyhow::Result<u32> {
        anyhow::bail!("no")
    }

    #[dogpile(never_expires)]
    fn of_an_alias() -> QueryResult<u32> {
        Err(fmt::Error)
    }

    #[dogpile(never_expires)]
    fn of_text() -> Result<u32, String> {
        Err("no".to_owned())
    }

    #[dogpile(never_expires)]
    #[allow(clippy::type_complexity)]
    fn of_boxes() -> Result<Box<dyn Fn() -> u32 + Send + Sync>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Box::new(|| 7))
    }

    #[dogpile(never_expires)]
    fn of_nothing() -> fmt::Result {
        Ok(())
    }

    #[test]
    fn an_alias_of_a_result_is_one() {
        let value: Result<Arc<u32>, RefreshError> = of_io();
        assert_eq!(*value.unwrap(), 1);
        assert_eq!(of_io::with(|value| value + 1).unwrap(), 2);
        assert_eq!(of_anyhow().unwrap_err().to_string(), "no");
        assert!(of_an_alias().unwrap_err().is::<fmt::Error>());
        assert!(of_an_alias::with(|_: &u32| ()).is_err());
        assert_eq!(of_text().unwrap_err().to_string(), "no");
        assert_eq!(of_boxes().unwrap()(), 7);
        of_nothing().unwrap();
        let _: [&'static DogpileCell<u32>; 3] = [of_io::cell(), of_anyhow::cell(), of_an_alias::cell()];
    }

    /// Looks like a `Result`, and is none.
    struct PollResult(u32);

    #[dogpile(never_expires)]
    fn of_none() -> PollResult {
        PollResult(7)
    }

    #[dogpile(never_expires)]
    fn of_an_option() -> Option<u32> {
        None
    }

    #[test]
    fn what_only_looks_like_a_result_is_a_value() {
        let value: Arc<PollResult> = of_none();
        assert_eq!((value.0, of_none::with(|value| value.0)), (7, 7));
        let value: Arc<Option<u32>> = of_an_option();
        assert_eq!(*value, None);
    }
}

fn is_send<T: Send>(value: T) -> T {
    value
}

#[test]
fn an_async_function_that_cannot_fail() {
    #[dogpile(ttl = "60s")]
    async fn rates() -> Rates {
        futures_lite::future::yield_now().await;
        Rates(107)
    }

    block_on(async {
        let first: Arc<Rates> = is_send(rates()).await;
        assert!(Arc::ptr_eq(&first, &rates().await));
        rates::cell().clear();
        assert_eq!(is_send(rates::with(|rates| rates.0)).await, 107);
        assert_eq!(rates::with(|rates| rates.0).await, 107);
        assert_eq!(rates::cell().stats().builds, 2);
        assert_eq!(rates::build().await.0, 107);
    });
}

#[test]
fn an_async_function_that_may_fail() {
    #[dogpile(ttl = "60s")]
    async fn number() -> anyhow::Result<u32> {
        Ok("7".parse()?)
    }

    #[dogpile(ttl = "60s")]
    async fn no_number() -> Result<u32, std::num::ParseIntError> {
        futures_lite::future::yield_now().await;
        "seven".parse()
    }

    block_on(async {
        let value: Result<Arc<u32>, RefreshError> = is_send(number()).await;
        assert_eq!(*value.unwrap(), 7);
        assert_eq!(is_send(number::with(|number| *number)).await.unwrap(), 7);
        assert_eq!(no_number().await.unwrap_err().to_string(), "invalid digit found in string");
        assert!(no_number::with(|_| ()).await.is_err());
    });
}

#[tokio::test]
async fn a_task_may_call_it() {
    #[dogpile(ttl = "60s")]
    async fn number() -> u32 {
        tokio::task::yield_now().await;
        7
    }

    let task = tokio::spawn(async { *number().await + number::with(|number| *number).await });
    assert_eq!(task.await.unwrap(), 14);
}

const TTL: Duration = Duration::from_secs(90);

#[dogpile(
    ttl = TTL,
    stale_while_refresh = "1h 30m",
    stale_if_error = Duration::from_secs(7),
    retry_backoff = ("250ms", "1min"),
    jitter = 10,
    lease_timeout = "2days",
    name = "seven",
)]
fn with_settings() -> u32 {
    7
}

#[test]
fn settings_are_those_of_the_policy() {
    let policy = with_settings::cell().policy();
    assert_eq!(policy.get_ttl(), TTL);
    assert_eq!(policy.get_stale_while_refresh(), Duration::from_secs(90 * 60));
    assert_eq!(policy.get_stale_if_error(), Duration::from_secs(7));
    assert_eq!(policy.get_retry_backoff(), (Duration::from_millis(250), Duration::from_secs(60)));
    assert_eq!((policy.get_jitter(), policy.get_lease_timeout()), (10, Duration::from_secs(2 * 86_400)));
    assert!(format!("{:?}", with_settings::cell()).contains("\"seven\""));
}

#[test]
fn the_name_is_the_path_of_the_function() {
    mod inner {
        use super::dogpile;

        /// With a name that is a keyword.
        #[dogpile(ttl = "1s")]
        pub(super) fn r#type() -> u32 {
            7
        }
    }

    assert_eq!(*inner::r#type(), 7);
    let shown = format!("{:?}", inner::r#type::cell());
    assert!(shown.contains("\"run::inner::type\""), "{shown}");
}

#[test]
fn a_thread_rebuilds_it_ahead_of_its_end() {
    static CALLS: AtomicU32 = AtomicU32::new(0);

    #[dogpile(ttl = "1h", ahead = "1min")]
    fn number() -> Result<u32, fmt::Error> {
        Ok(CALLS.fetch_add(1, Ordering::Relaxed))
    }

    assert!(number::refresher().is_none());
    number::cell();
    assert!(number::refresher().is_none(), "to name the cell is no call");
    number().unwrap();
    let refresher = number::refresher().expect("started by the call");
    assert!(refresher.wait_ready(Duration::from_secs(60)));
    number::with(|_| ()).unwrap();
    let generation = number::cell().generation();
    refresher.refresh_now();
    while number::cell().generation() == generation {
        thread::yield_now();
    }
}

mod spawned {
    use super::*;
    use dogpile::Job;
    use std::sync::mpsc;

    /// Where jobs go that a test runs when it likes.
    struct Queue(Mutex<Vec<Job>>);

    impl Queue {
        fn take(&self) -> Vec<Job> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    static QUEUE: Queue = Queue(Mutex::new(Vec::new()));
    static CALLS: AtomicU32 = AtomicU32::new(0);

    #[dogpile(ttl = "60s", retry_backoff = ("0s", "0s"), spawn = |job| QUEUE.0.lock().unwrap().push(job))]
    fn number() -> Result<u32, fmt::Error> {
        Ok(CALLS.fetch_add(1, Ordering::Relaxed))
    }

    #[test]
    fn a_caller_with_an_old_value_waits_for_nobody() {
        number::cell().set(7);
        number::cell().invalidate();
        assert_eq!((*number().unwrap(), number::with(|number| *number).unwrap()), (7, 7));
        assert_eq!(CALLS.load(Ordering::Relaxed), 0, "the build was handed over");
        let jobs = QUEUE.take();
        assert_eq!(jobs.len(), 1, "of both calls, one was elected");
        for job in jobs {
            job();
        }
        assert_eq!((*number().unwrap(), number::with(|number| *number).unwrap()), (0, 0));
        // A job that is dropped gives the lease back.
        number::cell().invalidate();
        assert_eq!(number::with(|number| *number).unwrap(), 0);
        drop(QUEUE.take());
        assert_eq!(*number().unwrap(), 0);
        assert_eq!(QUEUE.take().len(), 1);
    }

    #[test]
    fn the_first_build_runs_elsewhere_too() {
        #[dogpile(ttl = "60s", spawn = thread::spawn)]
        fn builder() -> thread::ThreadId {
            thread::current().id()
        }

        #[dogpile(ttl = "60s", spawn = rayon_like::spawn)]
        fn fallible() -> Result<thread::ThreadId, fmt::Error> {
            Ok(thread::current().id())
        }

        /// A spawner that is no generic function.
        mod rayon_like {
            pub(super) fn spawn(job: dogpile::Job) {
                std::thread::spawn(job);
            }
        }

        assert_ne!(*builder(), thread::current().id());
        builder::reset();
        assert_ne!(builder::with(|builder| *builder), thread::current().id());
        assert_ne!(*fallible().unwrap(), thread::current().id());
    }

    #[test]
    fn a_refresher_and_a_spawner_go_together() {
        #[dogpile(ttl = "1h", ahead = "1min", spawn = thread::spawn)]
        fn number() -> u32 {
            7
        }

        assert_eq!(*number(), 7);
        assert!(number::refresher().expect("started by the call").wait_ready(Duration::from_secs(60)));
    }

    #[tokio::test]
    async fn tasks() {
        #[dogpile(ttl = "60s", spawn = tokio::spawn)]
        async fn task() -> Option<tokio::task::Id> {
            tokio::task::yield_now().await;
            tokio::task::try_id()
        }

        #[dogpile(ttl = "60s", spawn = tokio::spawn)]
        async fn fallible() -> anyhow::Result<u32> {
            tokio::task::yield_now().await;
            Ok("7".parse()?)
        }

        assert_eq!(tokio::task::try_id(), None, "this is no task");
        assert!(is_send(task()).await.is_some());
        task::reset();
        assert!(is_send(task::with(Option::is_some)).await);
        assert_eq!(*is_send(fallible()).await.unwrap(), 7);
        assert_eq!(fallible::with(|number| *number).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_build_goes_on_when_its_caller_gives_up() {
        static STARTED: Mutex<Option<mpsc::Sender<()>>> = Mutex::new(None);

        #[dogpile(ttl = "60s", spawn = tokio::spawn)]
        async fn number() -> u32 {
            if let Some(started) = STARTED.lock().unwrap().take() {
                started.send(()).unwrap();
            }
            tokio::task::yield_now().await;
            7
        }

        let (sender, started) = mpsc::channel();
        *STARTED.lock().unwrap() = Some(sender);
        {
            let mut call = std::pin::pin!(number());
            assert!(futures_lite::future::poll_once(&mut call).await.is_none());
        }
        while number::cell().get().is_none() {
            tokio::task::yield_now().await;
        }
        started.recv().unwrap();
        assert_eq!((*number().await, number::cell().stats().builds), (7, 1));
    }
}

/// Attributes of other macros see the function as it was written.
mod attributes {
    use super::*;

    #[dogpile(never_expires)]
    #[tracing::instrument(err)]
    fn traced() -> Result<u32, fmt::Error> {
        Ok(7)
    }

    #[must_use = "it is expensive"]
    #[dogpile(never_expires)]
    #[allow(clippy::let_and_return)]
    #[expect(unused_variables)]
    #[inline]
    fn linted() -> u32 {
        let unused = 1;
        let x = 7;
        x
    }

    #[dogpile(never_expires)]
    #[cfg(any())]
    fn not_there() -> DoesNotExist {}

    #[dogpile(never_expires)]
    #[cfg_attr(all(), doc = "Documented.", allow(unused_variables))]
    #[cfg_attr(any(), no_mangle)]
    fn conditional() -> u32 {
        #![allow(unused_mut)]
        let unused = 1;
        7
    }

    #[test]
    fn attributes_are_kept() {
        assert_eq!((*traced().unwrap(), *linted(), *conditional()), (7, 7, 7));
    }
}

/// The types of a value are found where the function found them.
#[test]
fn a_function_in_a_function_sees_its_types() {
    struct Local(u32);
    const SECONDS: Duration = Duration::from_secs(7);

    #[dogpile(ttl = SECONDS)]
    fn local() -> Vec<Local> {
        vec![Local(7)]
    }

    assert_eq!(local()[0].0, 7);
}

/// A type parameter of what is written does not hide a type of the user's.
#[test]
fn names_do_not_clash() {
    #[derive(Debug, PartialEq)]
    struct R;
    type T = u32;
    #[allow(dead_code)]
    const READER: u32 = 1;
    #[allow(dead_code)]
    type Result = u32;
    #[allow(dead_code)]
    type Option = u32;

    #[dogpile(never_expires)]
    fn build() -> R {
        R
    }

    #[dogpile(never_expires)]
    fn with() -> T {
        7
    }

    #[dogpile(never_expires)]
    fn cell() -> &'static str {
        "7"
    }

    assert_eq!((build::with(|r| *r == R), *with(), *cell()), (true, 7, "7"));
}

#[test]
fn a_reset_takes_everything_away() {
    static CALLS: AtomicU32 = AtomicU32::new(0);

    #[dogpile(never_expires)]
    fn number() -> u32 {
        CALLS.fetch_add(1, Ordering::Relaxed)
    }

    let old = Arc::downgrade(&number());
    number::with(|_| ());
    number::reset();
    assert!(old.upgrade().is_none());
    assert_eq!(number::cell().stats().builds, 0);
    assert_eq!((*number(), number::with(|number| *number)), (1, 1));
}

#[test]
fn g10_a_build_that_calls_itself_panics_where_it_does() {
    #[dogpile(never_expires)]
    fn number() -> u32 {
        *number() + 1
    }
    let line = line!() - 2;

    static PANICS: Mutex<Vec<u32>> = Mutex::new(Vec::new());
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>();
        if message.is_some_and(|text| text.contains("inside the build of the same cell")) {
            PANICS.lock().unwrap().push(panic.location().unwrap().line());
        }
        default(panic);
    }));
    assert!(thread::spawn(|| number()).join().is_err());
    assert_eq!(*PANICS.lock().unwrap(), [line]);
    number::cell().set(1);
    number::cell().invalidate();
    assert_eq!(*number(), 2);
}

/// The two ways to test code that uses a static, while other tests run: see `docs/one_line.md`.
mod in_parallel {
    use super::*;

    static SOURCE: AtomicU32 = AtomicU32::new(7);

    #[dogpile(ttl = "60s")]
    fn number() -> Result<u32, fmt::Error> {
        Ok(SOURCE.load(Ordering::Relaxed))
    }

    /// Tests of the static itself take turns.
    fn turn() -> impl Drop {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        number::reset();
        turn
    }

    #[test]
    fn the_first_of_two_that_take_turns() {
        let _turn = turn();
        number().unwrap();
        number().unwrap();
        assert_eq!(number::cell().stats().builds, 1);
    }

    #[test]
    fn the_second_of_two_that_take_turns() {
        let _turn = turn();
        assert_eq!(number::cell().stats().builds, 0);
        number::cell().set(8);
        assert_eq!(*number().unwrap(), 8);
    }

    /// Tests of what depends on time have a cell each.
    #[test]
    fn a_cell_per_test() {
        let clock = ManualClock::new();
        let cell = DogpileCell::with_clock(number::cell().policy(), clock.clone());
        assert_eq!(*cell.try_get_or_refresh(number::build).unwrap(), 7);
        clock.advance(Duration::from_secs(61));
        assert_eq!(cell.freshness(), Freshness::Stale);
        let _: Policy = cell.policy();
    }
}

/// Arguments of a `macro_rules!` macro come in invisible groups.
#[test]
fn a_function_that_a_macro_writes() {
    macro_rules! cached {
        ($name:ident, $returns:ty, $ttl:literal, $pauses:expr, $percent:expr, $label:expr, $body:block) => {
            #[dogpile(ttl = $ttl, ahead = ("1s"), retry_backoff = $pauses, jitter = $percent, name = $label)]
            fn $name() -> $returns $body
        };
    }
    const LABEL: &str = "label";
    cached!(plain, u32, "60s", ("1s", "2s"), 10, "one", { 1 });
    cached!(fallible, Result<u32, io::Error>, "60s", (Duration::from_secs(1), ("2s")), 20, LABEL, { Ok(2) });

    assert_eq!(*plain(), 1);
    let two: Result<Arc<u32>, RefreshError> = fallible();
    assert_eq!(*two.unwrap(), 2);
    for (policy, percent) in [(plain::cell().policy(), 10), (fallible::cell().policy(), 20)] {
        assert_eq!(policy.get_ttl(), Duration::from_secs(60));
        assert_eq!(policy.get_retry_backoff(), (Duration::from_secs(1), Duration::from_secs(2)));
        assert_eq!(policy.get_jitter(), percent);
    }
}

/// It compiles without a warning: each expectation is met.
#[test]
#[deny(unfulfilled_lint_expectations, dead_code)]
fn lints_that_are_expected() {
    #[dogpile(ttl = "60s")]
    #[expect(dead_code)]
    fn unused() -> u32 {
        1
    }

    #[dogpile(ttl = "60s")]
    #[expect(dead_code, unused_variables, reason = "as an example")]
    fn unused_too() -> u32 {
        let unused = 2;
        2
    }

    #[dogpile(ttl = "60s")]
    #[cfg_attr(all(), expect(unused_variables))]
    fn used() -> u32 {
        let unused = 3;
        3
    }

    assert_eq!(*used(), 3);
}

/// Constants whose names the code that is written could have had too.
mod names {
    use super::{Duration, dogpile};

    const AHEAD: Duration = Duration::from_secs(5);
    const CELL: Duration = Duration::from_secs(60);
    const SLOT: usize = 1;
    const CLEANER: usize = 2;
    const READER: usize = 3;
    #[allow(non_upper_case_globals)]
    const ttl: Duration = Duration::from_secs(60);
    #[allow(non_upper_case_globals)]
    const ahead: Duration = AHEAD;
    #[allow(dead_code, non_upper_case_globals)]
    const read: usize = 4;

    #[dogpile(ttl = ttl, ahead = ahead)]
    pub(super) fn local() -> u32 {
        7
    }

    #[dogpile(ttl = CELL, ahead = AHEAD)]
    pub(super) fn refreshed() -> u32 {
        7
    }

    #[dogpile(ttl = "60s", stale_while_refresh = CELL)]
    pub(super) fn slot() -> [[[u32; SLOT]; CLEANER]; READER] {
        [[[7; SLOT]; CLEANER]; READER]
    }
}

#[test]
fn constants_of_the_user_may_have_any_name() {
    assert_eq!(*names::refreshed(), 7);
    assert_eq!(names::refreshed::cell().policy().get_ttl(), Duration::from_secs(60));
    names::refreshed::refresher().unwrap();
    assert_eq!((*names::local(), names::local::with(|value| *value)), (7, 7));
    assert_eq!(names::local::cell().policy().get_ttl(), Duration::from_secs(60));
    assert_eq!(names::slot::with(|[[[first], _], _, _]| *first), 7);
}
