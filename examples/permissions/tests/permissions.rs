//! What the example shows.

use std::time::Duration;

use dogpile::ManualClock;
use permissions::{Directory, Guard};

const MINUTE: Duration = Duration::from_secs(60);

fn guard() -> (Guard<ManualClock>, ManualClock) {
    let directory = Directory::default();
    directory.assign("Ada", "editor");
    directory.assign("Ada", "reader");
    directory.assign("Bob", "reader");
    directory.allow("editor", "publish");
    directory.allow("reader", "read");
    let clock = ManualClock::new();
    (Guard::new(directory, MINUTE, clock.clone()), clock)
}

#[test]
fn the_directory_is_asked_once_per_user_and_ttl() {
    let (guard, clock) = guard();
    for _ in 0..100 {
        assert!(guard.may("Ada", "publish") && guard.may("Bob", "read") && !guard.may("Bob", "publish"));
    }
    assert_eq!(guard.directory().lookups(), 2);
    clock.advance(2 * MINUTE);
    assert!(guard.may("Ada", "publish"));
    assert_eq!(guard.directory().lookups(), 3);
}

#[test]
fn a_revocation_is_seen_by_the_next_check_and_looks_up_only_those_who_have_the_role() {
    let (guard, _clock) = guard();
    assert!(guard.may("Ada", "publish") && guard.may("Bob", "read"));
    guard.revoke("editor", "publish");
    assert!(!guard.may("Ada", "publish") && guard.may("Ada", "read") && guard.may("Bob", "read"));
    assert_eq!(guard.directory().lookups(), 3);
}

#[test]
fn a_button_may_be_shown_by_what_is_stale() {
    let (guard, _clock) = guard();
    assert!(guard.may_perhaps("Ada", "publish"));
    guard.revoke("editor", "publish");
    // This caller is elected: it looks it up itself.
    assert!(!guard.may_perhaps("Ada", "publish"));
}
