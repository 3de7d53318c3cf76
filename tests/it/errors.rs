//! The errors: what they show, where `?` takes them, and what is left of the build's error.

use std::error::Error;
use std::fmt;
use std::io;
use std::num::ParseIntError;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{BoxError, DogpileCell, Lookup, Policy, RefreshError, SharedError};

use crate::support::{
    Down, LookupExt, STRICT, TTL, cell, cell_with, not_tried, panic_message, stale_cell_with,
};

/// An error with a cause.
#[derive(Debug)]
struct Refused(io::Error);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the source refused to answer")
    }
}

impl Error for Refused {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

fn refused() -> Refused {
    Refused(io::Error::new(io::ErrorKind::ConnectionRefused, "port 443 is closed"))
}

/// What the caller of a build gets that fails with `error`.
fn failed<E: Into<BoxError>>(error: E) -> RefreshError {
    let cell = DogpileCell::<u32>::new(TTL);
    cell.try_get_or_refresh(|| Err(error)).unwrap_err()
}

/// The texts of an error and its causes.
fn chain(error: &dyn Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    texts
}

fn read<E: Into<BoxError>>(error: E) -> Result<u32, RefreshError> {
    let cell = DogpileCell::new(TTL);
    Ok(*cell.try_get_or_refresh(|| Err(error))?)
}

#[test]
fn a_question_mark_converts_into_anyhow() {
    fn outer() -> anyhow::Result<u32> {
        Ok(read(refused())?)
    }
    let error = outer().unwrap_err();
    assert_eq!(error.to_string(), "the source refused to answer");
    // No text appears twice in the chain.
    assert_eq!(format!("{error:#}"), "the source refused to answer: port 443 is closed");
    let inner = error.downcast_ref::<RefreshError>().unwrap();
    assert_eq!(inner.downcast_ref::<Refused>().unwrap().0.kind(), io::ErrorKind::ConnectionRefused);
    let error = error.context("no rates");
    assert_eq!(format!("{error:#}"), "no rates: the source refused to answer: port 443 is closed");
    assert!(error.downcast_ref::<RefreshError>().is_some());
}

#[test]
fn a_question_mark_converts_into_eyre() {
    fn outer() -> eyre::Result<u32> {
        Ok(read(refused())?)
    }
    let error = outer().unwrap_err();
    assert_eq!(error.to_string(), "the source refused to answer");
    assert_eq!(error.chain().count(), 2);
    assert!(error.downcast_ref::<RefreshError>().unwrap().is::<Refused>());
}

#[test]
fn a_question_mark_converts_into_a_boxed_error() {
    fn outer() -> Result<u32, Box<dyn Error + Send + Sync>> {
        Ok(read(refused())?)
    }
    fn outer_on_one_thread() -> Result<u32, Box<dyn Error>> {
        Ok(read(refused())?)
    }
    let error = outer().unwrap_err();
    assert_eq!(chain(&*error), ["the source refused to answer", "port 443 is closed"]);
    assert!(error.downcast::<RefreshError>().unwrap().is::<Refused>());
    assert!(outer_on_one_thread().unwrap_err().is::<RefreshError>());
}

#[derive(Debug, thiserror::Error)]
enum AppError {
    #[error("no rates")]
    Rates(#[from] RefreshError),
    #[error(transparent)]
    Shared(#[from] SharedError),
}

#[test]
fn a_question_mark_converts_into_an_enum_of_thiserror() {
    fn outer() -> Result<u32, AppError> {
        Ok(read(refused())?)
    }
    fn of_a_lease() -> Result<u32, AppError> {
        let cell = DogpileCell::<u32>::new(TTL);
        Err(cell.lookup().elected().fail(refused()))?
    }
    let error = outer().unwrap_err();
    assert_eq!(chain(&error), ["no rates", "the source refused to answer", "port 443 is closed"]);
    assert!(matches!(error, AppError::Rates(error) if error.is::<Refused>()));
    let error = of_a_lease().unwrap_err();
    assert_eq!(chain(&error), ["the source refused to answer", "port 443 is closed"]);
    assert!(matches!(error, AppError::Shared(error) if error.is::<Refused>()));
}

#[test]
fn builds_may_fail_with_errors_of_every_usual_type() {
    // `std`'s.
    assert_eq!(
        failed(io::Error::other("no disk")).downcast_ref::<io::Error>().unwrap().to_string(),
        "no disk"
    );
    assert!(failed("seven".parse::<u32>().unwrap_err()).is::<ParseIntError>());
    assert!(failed(fmt::Error).is::<fmt::Error>());
    // thiserror's.
    let error = failed(AppError::Rates(RefreshError::WaitTimeout));
    assert!(matches!(error.downcast_ref(), Some(AppError::Rates(RefreshError::WaitTimeout))));
    // A boxed one keeps its type.
    let error = failed(Box::new(Down(7)) as Box<dyn Error + Send + Sync>);
    assert_eq!(error.downcast_ref(), Some(&Down(7)));
    // Texts have none.
    for error in [failed("no route"), failed(String::from("no route"))] {
        assert_eq!(error.to_string(), "no route");
        assert!(!error.is::<Down>() && error.source().is_none());
    }
}

/// Its chain of causes and its text are kept, its type is not.
#[test]
fn an_error_of_anyhow_or_eyre_keeps_its_chain_but_not_its_type() {
    let of_anyhow = failed(anyhow::Error::new(refused()).context("no rates"));
    let of_eyre = failed(eyre::Report::new(refused()).wrap_err("no rates"));
    for error in [of_anyhow, of_eyre] {
        assert_eq!(chain(&error), ["no rates", "the source refused to answer", "port 443 is closed"]);
        assert!(!error.is::<Refused>() && !error.is::<io::Error>());
        // The causes have their types.
        let cause = error.source().and_then(Error::source).unwrap();
        assert_eq!(cause.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::ConnectionRefused);
    }
    assert!(!failed(anyhow::Error::new(Down(7))).is::<Down>());
}

#[test]
fn a_build_that_reads_another_cell_passes_its_error_on() {
    let inner = DogpileCell::<u32>::new(TTL);
    let outer = DogpileCell::<u32>::new(TTL);
    let error = outer
        .try_get_or_refresh(|| -> Result<u32, RefreshError> {
            Ok(*inner.try_get_or_refresh(|| Err(refused()))? + 1)
        })
        .unwrap_err();
    assert_eq!(chain(&error), ["the source refused to answer", "port 443 is closed"]);
    // It is that error itself, not one that wraps it.
    assert!(error.build_error().unwrap().ptr_eq(&inner.last_error().unwrap()));
    assert!(error.is::<Refused>() && !error.is::<RefreshError>());
}

#[test]
fn the_error_of_a_build_is_transparent() {
    let error = failed(refused());
    let original = refused();
    assert_eq!(error.to_string(), original.to_string());
    assert_eq!(format!("{error:?}"), format!("Build({original:?})"));
    assert_eq!(format!("{:?}", error.build_error().unwrap()), format!("{original:?}"));
    assert_eq!(chain(&error), chain(&original));
    assert_eq!(chain(error.build_error().unwrap()), chain(&original));
    // With the alignment and the like that its own text has.
    assert_eq!(format!("{:>24}|", failed("no route")), "                no route|");
}

#[test]
fn every_error_shows_what_has_happened() {
    for (error, name, text) in [
        (RefreshError::WaitTimeout, "WaitTimeout", "no value was built within the time allowed for waiting"),
        (
            RefreshError::Reentrant,
            "Reentrant",
            "the caller would wait for itself: it is inside the build of the same cell, or holds a ReadGuard that the build \
             waits for",
        ),
        (
            RefreshError::Abandoned,
            "Abandoned",
            "the build was dropped or panicked in the spawner that it was handed to",
        ),
        (RefreshError::Empty, "Empty", "there is no value, and nothing that could build one"),
    ] {
        assert_eq!((format!("{error:?}"), error.to_string()), (name.to_owned(), text.to_owned()));
        assert!(error.source().is_none() && error.build_error().is_none());
        assert!(!error.is::<Down>() && error.downcast_ref::<Down>().is_none());
        assert_eq!(error.clone().to_string(), text);
    }
}

#[test]
fn clones_are_one_error_and_others_are_not() {
    let (first, second) = (failed(Down(1)), failed(Down(1)));
    let (first, second) = (first.build_error().unwrap(), second.build_error().unwrap());
    assert!(first.ptr_eq(&first.clone()) && !first.ptr_eq(second));
    let RefreshError::Build(same) = RefreshError::from(first.clone()) else { panic!("it is one of a build") };
    assert!(same.ptr_eq(first));
    // The error itself is not copied.
    let there = std::ptr::from_ref(first.downcast_ref::<Down>().unwrap());
    assert!(std::ptr::eq(there, same.downcast_ref::<Down>().unwrap()));
}

/// An error without contents has no address of its own, but is not that of another build all the same.
#[test]
fn errors_of_two_builds_without_contents_are_two() {
    let (first, second) = (failed(fmt::Error), failed(fmt::Error));
    assert!(!first.build_error().unwrap().ptr_eq(second.build_error().unwrap()));
}

#[test]
fn an_error_is_dropped_with_its_last_clone() {
    #[derive(Debug)]
    struct Counted(#[allow(dead_code)] Arc<()>);
    impl fmt::Display for Counted {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("counted")
        }
    }
    impl Error for Counted {}

    let count = Arc::new(());
    let (cell, _clock) = cell_with::<u32>(STRICT);
    let error = cell.try_get_or_refresh(|| Err(Counted(Arc::clone(&count)))).unwrap_err();
    assert_eq!(Arc::strong_count(&count), 2);
    drop(error);
    assert_eq!(Arc::strong_count(&count), 2, "it is the cell's last error");
    cell.set(1);
    assert_eq!(Arc::strong_count(&count), 1);
}

#[test]
fn last_error_is_that_of_the_latest_build_until_one_succeeds() {
    let (cell, _clock) = stale_cell_with(STRICT, 1);
    assert!(cell.last_error().is_none());
    let first = cell.try_get_or_refresh(|| Err(Down(1))).unwrap_err();
    assert!(cell.last_error().unwrap().ptr_eq(first.build_error().unwrap()));
    // The next one replaces it, whichever way it fails.
    let second = cell.lookup().elected().fail(Down(2));
    assert!(cell.last_error().unwrap().ptr_eq(&second));
    panic_message(|| cell.get_or_refresh(|| panic!("{} keys", 7)));
    assert_eq!(cell.last_error().unwrap().to_string(), "the build panicked: 7 keys");
    // None of these is a build that failed.
    drop(cell.lookup().elected());
    cell.invalidate();
    cell.clear();
    assert!(!cell.revoke());
    assert_eq!(cell.last_error().unwrap().to_string(), "the build panicked: 7 keys");
    cell.get_or_refresh(|| 2);
    assert!(cell.last_error().is_none());
    // Nor is what has been displaced, superseded or forgotten.
    let _ = cell.request().no_cache().try_get(|| Err(Down(3)));
    cell.set(3);
    assert!(cell.last_error().is_none());
    let _ = cell.request().no_cache().try_get(|| Err(Down(4)));
    cell.reset();
    assert!(cell.last_error().is_none());
    let doomed = cell.lookup().elected();
    cell.set(4);
    doomed.fail(Down(5));
    assert!(cell.last_error().is_none());
}

/// A caller that was served a stale value can find out why.
#[test]
fn last_error_shows_why_a_stale_value_is_served() {
    let (cell, _clock) = stale_cell_with(Policy::ttl(TTL), 1);
    assert_eq!(*cell.try_get_or_refresh(|| Err(refused())).unwrap(), 1);
    let error = cell.last_error().unwrap();
    assert_eq!(chain(&error), ["the source refused to answer", "port 443 is closed"]);
    assert!(error.is::<Refused>());
    // During the pause too.
    assert_eq!(*cell.try_get_or_refresh(not_tried).unwrap(), 1);
    assert!(cell.last_error().unwrap().ptr_eq(&error));
}

#[test]
fn the_error_of_a_panic_shows_its_message_if_it_has_one() {
    type Build = fn() -> u32;
    let (cell, _clock) = cell::<u32>();
    let builds: [(Build, &str); 4] = [
        (|| panic!("no route"), "the build panicked: no route"),
        (|| panic!("{} keys", 7), "the build panicked: 7 keys"),
        (|| std::panic::resume_unwind(Box::new(7_u8)), "the build panicked"),
        (|| std::panic::panic_any(Duration::ZERO), "the build panicked"),
    ];
    for (build, text) in builds {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cell.get_or_refresh(build)));
        assert!(panicked.is_err());
        let error = cell.last_error().unwrap();
        assert_eq!(error.to_string(), text);
        assert!(error.source().is_none() && !error.is::<Down>());
        // It is passed on to no other caller: the next one builds.
        assert!(matches!(cell.lookup(), Lookup::Elected(_)));
    }
}
