//! Bad input and misuse: a panic at the caller's line, and nothing is lost.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{Derived, DogpileCell, Job, LazyDogpile, Policy};

use crate::support::{TTL, panic_message};

/// Runs `f`, which panics, and returns the line of the panic.
fn blamed_line(f: impl FnOnce()) -> u32 {
    static BLAMED: Mutex<Vec<(std::thread::ThreadId, u32)>> = Mutex::new(Vec::new());
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let line =
                info.location().filter(|at| at.file() == file!()).map_or(0, std::panic::Location::line);
            BLAMED.lock().unwrap().push((std::thread::current().id(), line));
            default(info);
        }));
    });
    panic_message(f);
    let me = std::thread::current().id();
    BLAMED.lock().unwrap().iter().rev().find(|(thread, _)| *thread == me).expect("the hook ran").1
}

#[test]
fn g10_a_call_that_would_wait_for_itself_panics_at_its_line() {
    let cell = DogpileCell::<u32>::new(TTL);
    let mut expected = 0;
    let line = blamed_line(|| {
        cell.get_or_refresh(|| {
            expected = line!() + 1;
            *cell.get_or_refresh(|| 1)
        });
    });
    assert_eq!(line, expected);

    let line = blamed_line(|| {
        cell.get_or_refresh(|| {
            expected = line!() + 1;
            *cell.load_or_refresh(|| 1)
        });
    });
    assert_eq!(line, expected);

    let line = blamed_line(|| {
        cell.get_or_refresh(|| {
            expected = line!() + 1;
            **cell.reader().get_or_refresh(|| 1)
        });
    });
    assert_eq!(line, expected);

    let line = blamed_line(|| {
        cell.get_or_refresh(|| {
            expected = line!() + 1;
            *cell.request().no_cache().get(|| 1)
        });
    });
    assert_eq!(line, expected);

    let line = blamed_line(|| {
        cell.get_or_refresh(|| {
            expected = line!() + 1;
            *cell.request().max_stale(Duration::ZERO).get(|| 1)
        });
    });
    assert_eq!(line, expected);

    let shared = Arc::new(DogpileCell::<u32>::new(TTL));
    let line = blamed_line(|| {
        shared.get_or_refresh(|| {
            expected = line!() + 1;
            *shared.request_owned().spawn_with(|job: Job| job()).get(|| 1)
        });
    });
    assert_eq!(line, expected);
}

/// `get` can return no error: it panics, and the panic names the line of the call.
#[test]
fn a_get_whose_job_is_dropped_or_panics_panics_at_its_line() {
    static LAZY: LazyDogpile<u32> = LazyDogpile::new(TTL, || 1);

    let cell = Arc::new(DogpileCell::<u32>::new(TTL));
    let mut expected = 0;
    let line = blamed_line(|| {
        expected = line!() + 1;
        cell.request_owned().spawn_with(drop::<Job>).get(|| 1);
    });
    assert_eq!(line, expected);

    let line = blamed_line(|| {
        let panicking = || std::panic::resume_unwind(Box::new("no"));
        expected = line!() + 1;
        cell.request_owned().spawn_with(std::thread::spawn).get(panicking);
    });
    assert_eq!(line, expected);

    let line = blamed_line(|| {
        expected = line!() + 1;
        LAZY.request().spawn_with(drop::<Job>).get();
    });
    assert_eq!(line, expected);
}

#[test]
fn g10_a_lazy_cell_that_would_wait_for_itself_panics_in_its_build() {
    static SELFISH: LazyDogpile<u32> = LazyDogpile::new(TTL, selfish);
    const LINE: u32 = line!() + 3;

    fn selfish() -> u32 {
        *SELFISH.get_or_refresh() + 1
    }
    assert_eq!(
        blamed_line(|| {
            SELFISH.get_or_refresh();
        }),
        LINE
    );
}

#[test]
fn a_nonsensical_policy_panics_with_a_reason() {
    let second = Duration::from_secs(1);
    let message = panic_message(|| Policy::ttl(second).jitter(101));
    assert!(message.contains("`percent` must be from 0 to 100"), "{message}");
    let message = panic_message(|| Policy::ttl(second).retry_backoff(2 * second, second));
    assert!(message.contains("`first` must not be longer than `max`"), "{message}");
    let message = panic_message(|| Policy::ttl(second).retry_backoff(Duration::ZERO, second));
    assert!(message.contains("`first` must be longer than zero"), "{message}");
    let message = panic_message(|| Policy::ttl(second).lease_timeout(Duration::ZERO));
    assert!(message.contains("must be longer than zero"), "{message}");
}

/// A derived value that cannot be made, where that cannot be returned as an error.
#[test]
fn g10_a_derived_value_that_cannot_be_made_panics_at_the_line_of_the_call() {
    let empty = Arc::new(DogpileCell::<u32>::new(TTL));
    let made = Derived::try_new({
        let empty = Arc::clone(&empty);
        move |cx| cx.try_get(&empty).map(|value| *value)
    });
    let mut expected = line!() + 1;
    assert_eq!(blamed_line(|| drop(made.get())), expected);
    expected = line!() + 1;
    assert_eq!(blamed_line(|| drop(made.reader().get().clone())), expected);
    let asks = line!() + 1;
    let made = Derived::new(move |cx| *cx.get(&empty));
    assert_eq!(blamed_line(|| drop(made.get())), asks);

    let cell = DogpileCell::<u32>::new(TTL);
    let line = blamed_line(|| {
        cell.get_or_refresh(|| {
            expected = line!() + 1;
            *cell.subscribe().wait_changed()
        });
    });
    assert_eq!(line, expected);
}
