//! The file.

use std::fs;
use std::time::Duration;

use dogpile::ManualClock;
use dogpile_fleet::{
    Acquire, Current, FileStore, Invalidation, Publication, Publish, RefreshStore, Request, conformance,
};
use proptest::prelude::*;

use crate::operations::operations;

const HOUR: Duration = Duration::from_secs(3600);
const REQUEST: Request = Request::new(HOUR);

#[test]
fn it_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conformance::check(&FileStore::open(directory.path()).unwrap(), std::thread::sleep);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_answers_as_the_rules_do(operations in operations()) {
        let directory = tempfile::tempdir().unwrap();
        let clock = ManualClock::new();
        clock.advance(Duration::from_secs(1));
        let store = FileStore::with_clock(directory.path(), clock.clone()).unwrap();
        let lose = || {
            let _ = fs::remove_file(directory.path().join("name.state"));
        };
        conformance::replay(&store, "name", &clock, lose, &operations);
    }
}

fn stored(store: &FileStore, payload: &[u8]) -> u64 {
    let Acquire::Won { token, .. } = store.acquire("name", &REQUEST).unwrap() else { panic!("not won") };
    let publication = Publication { payload, tag: Some("tag"), soft: HOUR, hard: HOUR };
    let answer = store.publish("name", &token, &publication).unwrap();
    let Publish::Stored(version) = answer else { panic!("{answer:?}") };
    version.number
}

#[test]
fn another_handle_sees_what_this_one_does() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) =
        (FileStore::open(directory.path()).unwrap(), FileStore::open(directory.path()).unwrap());
    stored(&one, b"value");
    let Current::Newer(value) = other.poll("name", None).unwrap().current else { panic!("nothing") };
    assert_eq!(value.payload, b"value");
    other.invalidate("name", Invalidation::Hard).unwrap();
    assert_eq!(one.poll("name", None).unwrap().current, Current::Nothing { cleared: true });
}

/// Every single flipped byte, and the file cut off anywhere: never a panic, never a wrong value, always noticed.
#[test]
fn damage_anywhere_is_noticed_and_counts_as_loss() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("name.state");
    stored(&FileStore::open(directory.path()).unwrap(), b"value");
    let whole = fs::read(&state).unwrap();
    let damages = (0..whole.len())
        .map(|position| {
            let mut flipped = whole.clone();
            flipped[position] ^= 0x40;
            flipped
        })
        .chain((0..whole.len()).map(|length| whole[..length].to_vec()))
        .chain([[&whole[..], b"x"].concat()]);
    for damaged in damages {
        fs::write(&state, &damaged).unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        let current = store.poll("name", None).unwrap().current;
        assert_eq!(current, Current::Nothing { cleared: false }, "{} bytes", damaged.len());
        assert_eq!(store.damaged(), 0, "looking changes nothing");
        stored(&store, b"again");
        assert_eq!(store.damaged(), 1);
        assert_eq!(fs::read(directory.path().join("name.damaged")).unwrap(), damaged);
    }
}

#[test]
fn fences_go_on_counting_when_only_the_body_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    assert_eq!(stored(&store, b"value"), 1);
    let state = directory.path().join("name.state");
    let mut bytes = fs::read(&state).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&state, bytes).unwrap();
    let Acquire::Won { token, .. } = store.acquire("name", &REQUEST).unwrap() else { panic!("not won") };
    assert_eq!(token.fence.number, 2);
}

#[test]
fn a_new_file_that_was_never_moved_into_place_is_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    stored(&store, b"value");
    fs::write(directory.path().join("name.new"), b"half a file").unwrap();
    let Current::Newer(value) = store.poll("name", None).unwrap().current else { panic!("nothing") };
    assert_eq!(value.payload, b"value");
    store.invalidate("name", Invalidation::Hard).unwrap();
    assert_eq!(stored(&store, b"new"), 2);
    assert_eq!(store.damaged(), 0);
}

#[test]
fn a_directory_that_was_removed_was_an_error_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("store")).unwrap();
    stored(&store, b"value");
    fs::remove_dir_all(directory.path().join("store")).unwrap();
    assert_eq!(store.poll("name", None).unwrap().current, Current::Nothing { cleared: false });
    assert_eq!(stored(&store, b"again"), 1);
}

#[test]
fn names_in_capitals_shared_a_file_where_capitals_do_not_count() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    for name in ["name", "Name", "NAME"] {
        store.invalidate(name, Invalidation::Soft).unwrap();
    }
    let mut files: Vec<String> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().to_lowercase())
        .collect();
    files.sort();
    files.dedup();
    assert_eq!(files.len(), 6, "{files:?}");
}
