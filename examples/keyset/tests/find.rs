//! The search for the key of a token, on a clock that the test moves.

use dogpile::ManualClock;
use keyset::issuer::Issuer;
use keyset::{Keys, MIN_AGE};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

const TICK: Duration = Duration::from_nanos(1);
const MINUTE: Duration = Duration::from_secs(60);
const THREADS: usize = 8;

struct Run {
    issuer: Issuer,
    clock: ManualClock,
    keys: Keys<ManualClock>,
}

impl Run {
    /// The key set was fetched a minute ago.
    fn start() -> Self {
        let (issuer, clock) = (Issuer::start().unwrap(), ManualClock::new());
        let keys = Keys::new(issuer.url(), clock.clone());
        assert_eq!(keys.find("key-1").unwrap().unwrap().kid, "key-1");
        clock.advance(MINUTE);
        let run = Self { issuer, clock, keys };
        assert_eq!(run.fetches(), 1);
        run
    }

    fn fetches(&self) -> usize {
        self.issuer.log().len()
    }

    /// How many of a thousand tokens have a key, if all threads search at the same time.
    fn found(&self, kid: impl Fn(usize) -> String + Sync) -> usize {
        let (start, kid) = (Barrier::new(THREADS), &kid);
        let search = |thread: usize| {
            start.wait();
            (0..1_000 / THREADS).filter(|token| self.is_known(&kid(thread * 1_000 + token))).count()
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || search(thread))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread's panic")).sum()
        })
    }

    fn is_known(&self, kid: &str) -> bool {
        self.keys.find(kid).unwrap().is_some()
    }
}

fn made_up(number: usize) -> String {
    format!("made-up-{number}")
}

#[test]
fn a_thousand_made_up_key_ids_are_one_fetch_and_then_one_in_thirty_seconds() {
    let run = Run::start();
    assert_eq!(run.found(made_up), 0);
    assert_eq!(run.fetches(), 2);
    assert_eq!(run.issuer.log()[1].status, 304, "nothing is transferred again");

    run.clock.advance(MIN_AGE);
    assert_eq!(run.found(made_up), 0);
    assert_eq!(run.fetches(), 2, "the key set is 30 seconds old, and not older");

    for fetches in 3..6 {
        run.clock.advance(MIN_AGE + TICK);
        assert_eq!(run.found(made_up), 0);
        assert_eq!(run.fetches(), fetches);
    }
}

#[test]
fn a_new_key_is_found_at_once_if_the_latest_fetch_is_older_than_thirty_seconds() {
    let run = Run::start();
    run.issuer.rotate();
    assert_eq!(run.found(|_| "key-2".to_owned()), 1_000);
    assert_eq!(run.fetches(), 2);
    assert_eq!(run.issuer.log()[1].status, 200);
}

#[test]
fn a_new_key_is_found_thirty_seconds_after_a_made_up_key_id_at_the_latest() {
    let run = Run::start();
    assert!(!run.is_known("made-up"));
    run.issuer.rotate();
    run.clock.advance(MIN_AGE);
    assert!(!run.is_known("key-2"));
    run.clock.advance(TICK);
    assert!(run.is_known("key-2"));
    assert_eq!(run.fetches(), 3);
}

#[test]
fn while_the_issuer_is_down_known_keys_are_found_and_unknown_ones_are_an_error_that_takes_one_fetch() {
    let run = Run::start();
    run.issuer.set_down(true);
    for number in 0..1_000 {
        let error = run.keys.find(&made_up(number)).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(ureq::Error::StatusCode(503))), "{error}");
        assert!(run.is_known("key-1"));
    }
    assert_eq!(run.fetches(), 2, "the retry pause runs, since the clock stands still");
}
