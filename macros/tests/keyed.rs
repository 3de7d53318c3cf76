//! Functions with arguments, as a user writes them: `dogpile_map::dogpile`.
// Small functions stand for large ones.
#![allow(
    clippy::items_after_statements,
    clippy::needless_pass_by_value,
    clippy::trivially_copy_pass_by_ref,
    clippy::type_complexity,
    clippy::unnecessary_wraps,
    clippy::unused_async
)]

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use dogpile::RefreshError;
use dogpile_map::{DogpileMap, dogpile};
use futures_lite::future::block_on;

/// Something that is neither `Debug` nor `Clone`.
pub struct User {
    name: String,
}

#[test]
fn one_argument_is_the_key() {
    static CALLS: AtomicU32 = AtomicU32::new(0);

    #[dogpile(ttl = "60s", max_entries = 100)]
    fn user(id: u64) -> User {
        CALLS.fetch_add(1, Ordering::Relaxed);
        User { name: format!("user {id}") }
    }

    let first: Arc<User> = user(7);
    assert!(Arc::ptr_eq(&first, &user(7)));
    assert_eq!((&*user(7).name, &*user(8).name), ("user 7", "user 8"));
    assert_eq!(CALLS.load(Ordering::Relaxed), 2);
    assert_eq!(user::with(8, |user| user.name.len()), 6);
    assert_eq!(user::build(9).name, "user 9");
    let map: &'static DogpileMap<u64, User> = user::map();
    assert_eq!((map.len(), map.stats().builds), (2, 2));
}

/// A text that counts how often it is copied.
#[derive(PartialEq, Eq, Hash)]
struct Name(u32);

static COPIES: AtomicU32 = AtomicU32::new(0);

impl Clone for Name {
    fn clone(&self) -> Self {
        COPIES.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

#[test]
fn a_reference_is_kept_as_what_it_refers_to_and_looked_up_as_it_is() {
    #[dogpile(ttl = "60s", max_entries = 100)]
    fn number(name: &Name) -> u32 {
        name.0
    }

    assert_eq!(*number(&Name(7)), 7);
    let copies = COPIES.load(Ordering::Relaxed);
    assert!(copies > 0, "the map keeps a key of its own");
    assert_eq!(*number(&Name(7)), 7);
    assert_eq!(COPIES.load(Ordering::Relaxed), copies, "a hit copies nothing");
    let _: &'static DogpileMap<Name, u32> = number::map();
}

#[test]
fn texts_slices_and_paths_have_owned_forms() {
    #[dogpile(never_expires, max_entries = 100)]
    fn length(text: &str) -> usize {
        text.len()
    }

    #[dogpile(never_expires, max_entries = 100)]
    fn sum(numbers: &[u32]) -> u32 {
        numbers.iter().sum()
    }

    #[dogpile(never_expires, max_entries = 100)]
    fn read(path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    assert_eq!((*length("seven"), *sum(&[3, 4])), (5, 7));
    assert!(read(Path::new("/does/not/exist")).unwrap_err().is::<io::Error>());
    assert!(read::with("/does/not/exist".as_ref(), |_| ()).is_err());
    assert_eq!(length::map().get("seven").as_deref(), Some(&5));
    assert_eq!(sum::map().get(&[3, 4][..]).as_deref(), Some(&7));
    let _: &'static DogpileMap<PathBuf, String> = read::map();
}

#[test]
fn several_arguments_are_a_tuple() {
    #[dogpile(ttl = "60s", max_entries = 100)]
    fn page(path: &str, language: Option<u8>, (width, height): (u32, u32), mut depth: u8) -> String {
        depth += 1;
        format!("{path} {language:?} {width}x{height} {depth}")
    }

    assert_eq!(*page("/", None, (3, 4), 0), "/ None 3x4 1");
    assert_eq!(*page("/", Some(1), (3, 4), 0), "/ Some(1) 3x4 1");
    page::with("/", None, (3, 4), 0, |page| assert_eq!(page.len(), 12));
    let map: &'static DogpileMap<(String, Option<u8>, (u32, u32), u8), String> = page::map();
    assert_eq!((map.len(), map.stats().builds), (2, 2));
}

static SOURCE_IS_DOWN: AtomicBool = AtomicBool::new(false);

/// What a service may do, in some unit.
#[dogpile(ttl = "1h", stale_if_error = "0s", retry_backoff = ("0s", "0s"), max_entries = 1_000)]
pub fn limit(service: String, unit: &'static str) -> Result<u32, io::Error> {
    if SOURCE_IS_DOWN.load(Ordering::Relaxed) {
        Err(io::ErrorKind::NotFound.into())
    } else {
        Ok(u32::try_from(service.len() + unit.len()).unwrap_or(0))
    }
}

#[test]
fn a_function_that_may_fail() {
    SOURCE_IS_DOWN.store(true, Ordering::Relaxed);
    let error: RefreshError = limit("mail".to_owned(), "MB").unwrap_err();
    assert!(error.is::<io::Error>());
    assert!(limit::with("mail".to_owned(), "MB", |_| ()).is_err());
    SOURCE_IS_DOWN.store(false, Ordering::Relaxed);
    let value: Result<Arc<u32>, RefreshError> = limit("mail".to_owned(), "MB");
    assert_eq!(*value.unwrap(), 6);
    // It is the number that is kept, not the `Result`.
    SOURCE_IS_DOWN.store(true, Ordering::Relaxed);
    assert_eq!(*limit("mail".to_owned(), "MB").unwrap(), 6);
    limit::map().invalidate(&("mail".to_owned(), "MB"));
    assert!(limit("mail".to_owned(), "MB").is_err());
}

mod results {
    use super::*;

    type QueryResult<T> = Result<T, fmt::Error>;

    #[dogpile(never_expires, max_entries = 10)]
    fn of_anyhow(text: &str) -> anyhow::Result<u32> {
        Ok(text.parse()?)
    }

    #[dogpile(never_expires, max_entries = 10)]
    fn of_an_alias(_: u32) -> QueryResult<u32> {
        Err(fmt::Error)
    }

    #[test]
    fn an_alias_of_a_result_is_one() {
        assert_eq!(*of_anyhow("7").unwrap(), 7);
        assert_eq!(of_anyhow("seven").unwrap_err().to_string(), "invalid digit found in string");
        assert!(of_an_alias(7).unwrap_err().is::<fmt::Error>());
        assert!(of_an_alias::with(7, |_: &u32| ()).is_err());
        let _: &'static DogpileMap<u32, u32> = of_an_alias::map();
    }
}

fn is_send<T: Send>(value: T) -> T {
    value
}

#[test]
fn async_functions() {
    #[dogpile(ttl = "60s", max_entries = 100)]
    async fn user(id: u64) -> User {
        futures_lite::future::yield_now().await;
        User { name: format!("user {id}") }
    }

    #[dogpile(ttl = "60s", max_entries = 100)]
    async fn number(text: &str) -> Result<u32, std::num::ParseIntError> {
        futures_lite::future::yield_now().await;
        text.parse()
    }

    #[dogpile(ttl = "60s", max_entries = 100)]
    async fn both(text: &str, id: u64) -> anyhow::Result<String> {
        futures_lite::future::yield_now().await;
        Ok(format!("{text} {id}"))
    }

    block_on(async {
        let first: Arc<User> = is_send(user(7)).await;
        assert!(Arc::ptr_eq(&first, &user(7).await));
        assert_eq!(is_send(user::with(7, |user| user.name.len())).await, 6);
        assert_eq!(user::build(8).await.name, "user 8");
        assert_eq!(*is_send(number("7")).await.unwrap(), 7);
        assert!(number("seven").await.unwrap_err().is::<std::num::ParseIntError>());
        assert_eq!(*is_send(both("user", 7)).await.unwrap(), "user 7");
        assert_eq!(both::with("user", 7, String::len).await.unwrap(), 6);
        assert_eq!(both::map().stats().builds, 1);
    });
}

#[tokio::test]
async fn a_task_may_call_it() {
    #[dogpile(ttl = "60s", max_entries = 100)]
    async fn double(number: u32) -> u32 {
        tokio::task::yield_now().await;
        2 * number
    }

    let task = tokio::spawn(async { *double(3).await + double::with(4, |number| *number).await });
    assert_eq!(task.await.unwrap(), 14);
}

const KEYS: usize = 64;

#[dogpile(
    ttl = Duration::from_secs(90),
    stale_while_refresh = "1h 30m",
    stale_if_error = "7s",
    retry_backoff = ("250ms", "1min"),
    jitter = 10,
    lease_timeout = "2days",
    max_entries = 2 * KEYS,
    name = "seven",
)]
fn with_settings(_: u32) -> u32 {
    7
}

#[test]
fn settings_are_those_of_the_policy() {
    let policy = with_settings::map().policy();
    assert_eq!(policy.get_ttl(), Duration::from_secs(90));
    assert_eq!(policy.get_stale_while_refresh(), Duration::from_secs(90 * 60));
    assert_eq!(policy.get_stale_if_error(), Duration::from_secs(7));
    assert_eq!(policy.get_retry_backoff(), (Duration::from_millis(250), Duration::from_secs(60)));
    assert_eq!((policy.get_jitter(), policy.get_lease_timeout()), (10, Duration::from_secs(2 * 86_400)));
    assert!(format!("{:?}", with_settings::map()).contains("\"seven\""));
    for number in 0..1_000 {
        with_settings(number);
    }
    let kept = with_settings::map().len();
    assert!((KEYS..=2 * KEYS).contains(&kept), "{kept}");
}

#[test]
fn the_name_is_the_path_of_the_function() {
    mod inner {
        use super::dogpile;

        /// With a name that is a keyword.
        #[dogpile(ttl = "1s", max_entries = 1)]
        pub(super) fn r#type(r#in: u32) -> u32 {
            r#in
        }
    }

    assert_eq!(*inner::r#type(7), 7);
    let shown = format!("{:?}", inner::r#type::map());
    assert!(shown.contains("\"keyed::inner::type\""), "{shown}");
}

#[test]
fn a_reset_takes_everything_away() {
    static IS_DOWN: AtomicBool = AtomicBool::new(false);

    #[dogpile(never_expires, max_entries = 100)]
    fn double(number: u32) -> Result<u32, &'static str> {
        if IS_DOWN.load(Ordering::Relaxed) { Err("it is down") } else { Ok(2 * number) }
    }

    let old = Arc::downgrade(&double(7).unwrap());
    IS_DOWN.store(true, Ordering::Relaxed);
    double(8).unwrap_err();
    IS_DOWN.store(false, Ordering::Relaxed);
    double(8).unwrap_err(); // a retry pause
    double::reset();
    assert!(old.upgrade().is_none());
    let stats = double::map().stats();
    assert_eq!((double::map().len(), stats.builds, stats.failures, stats.in_flight), (0, 0, 0, 0));
    assert_eq!(*double(8).unwrap(), 16);
}

/// The map's attribute serves functions without arguments too, so a module needs one import.
#[test]
fn a_function_without_arguments_has_a_cell() {
    #[dogpile(ttl = "60s")]
    fn rates() -> Result<u32, fmt::Error> {
        Ok(7)
    }

    #[dogpile(ttl = "60s")]
    async fn plain() -> u32 {
        7
    }

    assert_eq!(rates::with(|rates| *rates).unwrap(), 7);
    let _: &'static dogpile::DogpileCell<u32> = rates::cell();
    assert_eq!(*block_on(plain()), 7);
}

/// A thread that runs jobs in the order in which they come.
fn jobs() -> mpsc::Sender<dogpile::Job> {
    let (sender, jobs) = mpsc::channel::<dogpile::Job>();
    thread::spawn(move || jobs.into_iter().for_each(|job| job()));
    sender
}

#[test]
fn builds_are_handed_to_a_spawner() {
    static POOL: Mutex<Option<mpsc::Sender<dogpile::Job>>> = Mutex::new(None);
    static GATE: Mutex<()> = Mutex::new(());

    fn run(job: dogpile::Job) {
        POOL.lock().unwrap().get_or_insert_with(jobs).send(job).unwrap();
    }

    #[dogpile(ttl = "60s", max_entries = 100, spawn = run)]
    fn builder(name: &str, _: u32) -> Result<(String, thread::ThreadId), fmt::Error> {
        let _open = GATE.lock().unwrap();
        Ok((name.to_owned(), thread::current().id()))
    }

    let first = builder("a", 1).unwrap();
    assert_eq!(first.0, "a");
    assert_ne!(first.1, thread::current().id());
    builder::map().invalidate_all();
    let gate = GATE.lock().unwrap();
    // The gate is closed: if this caller built, or waited, it would wait for itself.
    assert!(Arc::ptr_eq(&first, &builder("a", 1).unwrap()));
    assert_eq!((builder::map().stats().misses, builder::map().stats().stale_hits), (1, 1));
    drop(gate);
    while builder::map().stats().builds < 2 {
        thread::yield_now();
    }
}

#[tokio::test]
async fn builds_of_async_functions_are_handed_to_a_spawner() {
    #[dogpile(ttl = "60s", max_entries = 100, spawn = tokio::spawn)]
    async fn task(id: u64, _text: &str) -> Option<tokio::task::Id> {
        tokio::task::yield_now().await;
        tokio::task::try_id().filter(|_| id == 7)
    }

    #[dogpile(ttl = "60s", max_entries = 100, spawn = tokio::spawn)]
    async fn number(text: &str) -> anyhow::Result<u32> {
        tokio::task::yield_now().await;
        Ok(text.parse()?)
    }

    assert_eq!(tokio::task::try_id(), None, "this is no task");
    assert!(task(7, "a").await.is_some());
    assert_eq!(*is_send(number("7")).await.unwrap(), 7);
    assert!(number::with("seven", |_| ()).await.is_err());
}

/// Functions beside methods.
struct Source;

impl Source {
    /// A table.
    #[dogpile(ttl = "60s", in_impl)]
    fn table() -> Vec<u32> {
        Self::START.into()
    }

    #[dogpile(ttl = "60s", max_entries = 10, in_impl)]
    fn entry(&place: &usize, name: Cow<'static, str>) -> Result<(u32, Cow<'static, str>), fmt::Error> {
        Ok((*Self::START.get(place).ok_or(fmt::Error)?, name))
    }

    #[dogpile(ttl = "60s", in_impl)]
    async fn number() -> u32 {
        7
    }

    const START: [u32; 2] = [3, 4];
}

#[test]
fn a_function_in_an_impl_block() {
    assert_eq!(*Source::table(), [3, 4]);
    assert_eq!(Source::table_with(Vec::len), 2);
    assert_eq!(Source::table_cell().stats().builds, 1);
    Source::table_reset();
    Source::table_release();
    assert_eq!(Source::table_cell().stats().builds, 0);
    assert_eq!(Source::entry(&1, "a".into()).unwrap().0, 4);
    assert!(Source::entry_with(&2, "b".into(), |_| ()).is_err());
    assert_eq!(Source::entry_map().len(), 1);
    Source::entry_reset();
    assert!(Source::entry_build(&2, "b".into()).is_err());
    assert!(format!("{:?}", Source::entry_map()).contains("\"keyed::entry\""));
    assert_eq!(block_on(async { *Source::number().await + Source::number_with(|number| *number).await }), 14);
}

/// Arguments of a `macro_rules!` macro come in invisible groups.
#[test]
fn a_function_that_a_macro_writes() {
    macro_rules! cached {
        ($name:ident, $argument:ident: $type:ty, $returns:ty, $entries:expr, $body:block) => {
            #[dogpile(ttl = "60s", max_entries = $entries)]
            fn $name($argument: $type) -> $returns $body
        };
    }
    cached!(length, text: &str, usize, 10, { text.len() });
    cached!(double, number: u32, Result<u32, io::Error>, KEYS, { Ok(2 * number) });
    assert_eq!((*length("seven"), *double(7).unwrap()), (5, 14));
    let _: &'static DogpileMap<String, usize> = length::map();
}

/// Neither a type parameter of what is written nor its variables hide names of the user's.
#[test]
fn names_do_not_clash() {
    #[derive(Clone, PartialEq, Eq, Hash, Debug)]
    struct R(u32);
    #[allow(dead_code)]
    type Result = u32;

    #[dogpile(never_expires, max_entries = 10)]
    fn build(key: R, read: &R) -> R {
        R(key.0 + read.0)
    }

    #[dogpile(never_expires, max_entries = 10)]
    fn with(result: u32, map: u32) -> u32 {
        result + map
    }

    assert_eq!((build::with(R(3), &R(4), |r| r.0), *with(3, 4)), (7, 7));
}

/// Names that the code that is written could have had too.
mod names {
    use super::{Duration, dogpile};
    use dogpile::Job;

    const MAP: Duration = Duration::from_secs(60);
    const ENTRIES: usize = 9;

    #[dogpile(ttl = MAP, max_entries = ENTRIES)]
    pub(super) fn map(key: [u8; ENTRIES]) -> usize {
        key.len()
    }

    #[dogpile(ttl = "60s", max_entries = 9)]
    pub(super) fn square(square: u64) -> u64 {
        square * square
    }

    fn spawn(job: Job) {
        job();
    }

    #[dogpile(ttl = "60s", max_entries = 9, spawn = spawn)]
    pub(super) fn spawned(spawn: u64, read: u64) -> u64 {
        spawn * read
    }

    #[dogpile(ttl = "60s", max_entries = 9)]
    pub(super) fn pairs(argument_1: u64, (left, right): (u64, u64)) -> u64 {
        argument_1 * left * right
    }

    #[dogpile(ttl = "60s", max_entries = 9)]
    pub(super) fn underscored(read: u64, __read: u64, __key: u64) -> u64 {
        read * __read * __key
    }

    #[dogpile(ttl = "60s", max_entries = 9)]
    pub(super) fn mixed((left, right): (u64, u64), __argument_0: u64) -> u64 {
        __argument_0 * left * right
    }

    /// Constants, where a pattern with such a name would be one of that value.
    pub(super) mod constants {
        #![allow(dead_code, non_upper_case_globals)]

        use dogpile_map::dogpile;

        const read: usize = 1;
        const __key: usize = 2;
        const __argument_0: usize = 3;
        const entries: usize = 4;

        #[allow(non_camel_case_types)]
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub(crate) struct __R(pub(crate) usize);

        #[dogpile(ttl = "60s", max_entries = entries)]
        pub(crate) fn product((left, right): (usize, usize), __R(factor): __R) -> __R {
            __R(left * right * factor)
        }
    }
}

#[test]
fn constants_and_arguments_of_the_user_may_have_any_name() {
    assert_eq!((*names::map([0; 9]), names::map::with([0; 9], |length| *length)), (9, 9));
    assert_eq!(names::map::map().policy().get_ttl(), Duration::from_secs(60));
    assert_eq!((*names::square(7), names::square::with(7, |square| *square)), (49, 49));
    assert_eq!((*names::spawned(2, 3), names::spawned::with(2, 3, |product| *product)), (6, 6));
    assert_eq!((*names::pairs(2, (3, 5)), names::pairs::with(2, (3, 5), |product| *product)), (30, 30));
    assert_eq!(
        (*names::underscored(2, 3, 5), names::underscored::with(2, 3, 5, |product| *product)),
        (30, 30)
    );
    assert_eq!((*names::mixed((2, 3), 5), names::mixed::with((2, 3), 5, |product| *product)), (30, 30));
    let factor = || names::constants::__R(5);
    assert_eq!(names::constants::product((2, 3), factor()).0, 30);
    assert_eq!(names::constants::product::with((2, 3), factor(), |product| product.0), 30);
}
