//! Bad input and misuse: told at the caller's line, nothing lost.

use std::sync::Mutex;
use std::time::Duration;

use dogpile::{DogpileCell, LazyDogpile, Policy};

use crate::support::{TTL, panic_message};

/// Runs `f`, which panics, and returns the line that is blamed for it.
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
fn g10_waiting_for_oneself_is_blamed_on_the_callers_line() {
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
            *cell.refresh(|| 1)
        });
    });
    assert_eq!(line, expected);

    let line = blamed_line(|| {
        cell.get_or_refresh(|| {
            expected = line!() + 1;
            *cell.get_fresh_or_refresh(|| 1)
        });
    });
    assert_eq!(line, expected);
}

#[test]
fn g10_a_lazy_cell_that_waits_for_itself_is_blamed_on_the_build() {
    static SELFISH: LazyDogpile<u32> = LazyDogpile::new(TTL, selfish);
    const LINE: u32 = line!() + 3;

    fn selfish() -> u32 {
        *SELFISH.get() + 1
    }
    assert_eq!(
        blamed_line(|| {
            SELFISH.get();
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
