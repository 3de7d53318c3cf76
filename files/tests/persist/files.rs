//! Files that are not what they should be.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::time::Instant;

use dogpile::DogpileCell;
use dogpile_files::{Persist, PersistErrorKind, Restored};

use super::support::PATIENCE;
use super::{HOUR, NEVER, Place, cell, next_run};

/// Attaches; the file must be ignored, stay as it is without a value, and be replaced by the next one.
#[track_caller]
fn is_ignored(place: &Place, kind: PersistErrorKind, text: &str) {
    let before = place.bytes();
    let cell = cell();
    let persisted = place.attach(&cell);
    let Restored::Ignored(error) = persisted.restored() else { panic!("{persisted:?}") };
    assert_eq!(error.kind(), kind);
    assert!(error.to_string().contains("state.json: ") && error.to_string().contains(text), "{error}");
    assert_eq!(cell.get(), None);
    persisted.flush().unwrap();
    cell.clear();
    persisted.flush().unwrap();
    assert!(cell.try_get_or_refresh(|| Err("connection refused")).is_err());
    persisted.flush().unwrap();
    assert_eq!(place.bytes(), before, "there is no value that could replace it");
    cell.set("good".to_owned());
    persisted.flush().unwrap();
    assert_eq!(next_run(&place.path).1.unwrap(), "good");
}

#[test]
fn torn_at_any_byte() {
    let place = Place::new();
    place.leave("of yesterday");
    let whole = place.bytes();
    for length in 0..whole.len() {
        fs::write(&place.path, &whole[..length]).unwrap();
        let (restored, value) = next_run(&place.path);
        let Restored::Ignored(error) = restored else { panic!("{length} bytes: {restored:?}") };
        assert_eq!((error.kind(), value), (PersistErrorKind::Damaged, None), "{length} bytes: {error}");
    }
    is_ignored(&place, PersistErrorKind::Damaged, "it is cut off");
}

#[test]
fn flipped_at_any_byte() {
    let place = Place::new();
    place.leave("of yesterday");
    let whole = place.bytes();
    for position in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[position] ^= 0x20;
        fs::write(&place.path, flipped).unwrap();
        let (restored, value) = next_run(&place.path);
        assert!(matches!(restored, Restored::Ignored(_)) && value.is_none(), "{position}: {restored:?}");
    }
}

#[test]
fn empty_after_a_crash_of_the_host() {
    let place = Place::new();
    fs::write(&place.path, "").unwrap();
    is_ignored(&place, PersistErrorKind::Damaged, "it is empty");
    fs::write(&place.path, [0; 4096]).unwrap();
    is_ignored(&place, PersistErrorKind::Foreign, "it was not written by this crate");
}

#[test]
fn of_another_program() {
    let place = Place::new();
    fs::write(&place.path, "{\"usd\": 1}").unwrap();
    is_ignored(&place, PersistErrorKind::Foreign, "it was not written by this crate");
}

#[test]
fn of_a_later_version() {
    let place = Place::new();
    place.leave("of yesterday");
    let text = String::from_utf8(place.bytes()).unwrap();
    fs::write(&place.path, text.replacen("dogpile-files 1 ", "dogpile-files 2 new=1 ", 1)).unwrap();
    is_ignored(&place, PersistErrorKind::Newer, "later version of this crate, in format 2");
}

#[test]
fn of_another_schema_codec_or_type() {
    let place = Place::new();
    place.leave("of yesterday");
    let before = place.bytes();

    let cell = cell();
    let persisted = place.persist().schema(1).attach(&cell).unwrap();
    let Restored::Ignored(error) = persisted.restored() else { panic!("{persisted:?}") };
    assert_eq!(error.kind(), PersistErrorKind::Foreign);
    assert!(error.to_string().contains("schema 0 of codec \"json\"; this program reads schema 1"), "{error}");
    drop(persisted);

    let persisted = Persist::postcard(&place.path).interval(NEVER).attach(&cell).unwrap();
    let Restored::Ignored(error) = persisted.restored() else { panic!("{persisted:?}") };
    assert_eq!(error.kind(), PersistErrorKind::Foreign);
    drop(persisted);

    let numbers = Arc::new(DogpileCell::<u32>::new(HOUR));
    let persisted = place.persist().attach(&numbers).unwrap();
    let Restored::Ignored(error) = persisted.restored() else { panic!("{persisted:?}") };
    assert_eq!(error.kind(), PersistErrorKind::Codec);
    drop(persisted);
    assert_eq!(place.bytes(), before);

    // A new schema replaces the old file, however new that is.
    let persisted = place.persist().schema(1).attach(&cell).unwrap();
    cell.restore("older".to_owned(), 2 * HOUR);
    drop(persisted);
    assert!(String::from_utf8(place.bytes()).unwrap().contains("schema=1"));
}

#[test]
fn a_link_is_not_followed() {
    let place = Place::new();
    let target = place.beside("target");
    place.leave("of yesterday");
    fs::rename(&place.path, &target).unwrap();
    let before = fs::read(&target).unwrap();
    symlink(&target, &place.path).unwrap();

    let cell = cell();
    let persisted = place.attach(&cell);
    let Restored::Ignored(error) = persisted.restored() else { panic!("{persisted:?}") };
    assert_eq!(error.kind(), PersistErrorKind::Io);
    // Nor is one in place of the new file.
    symlink(&target, place.beside("state.json.new")).unwrap();
    cell.set("new".to_owned());
    persisted.flush().unwrap();
    assert!(fs::symlink_metadata(&place.path).unwrap().is_file());
    assert_eq!(fs::read(&target).unwrap(), before);

    // Nor one in place of the lock.
    fs::remove_file(place.beside("state.json.lock")).unwrap();
    symlink(&target, place.beside("state.json.lock")).unwrap();
    cell.set("newer".to_owned());
    assert_eq!(persisted.flush().unwrap_err().kind(), PersistErrorKind::Io);
    drop(persisted);
    assert_eq!(fs::read(&target).unwrap(), before);
}

#[test]
fn only_the_owner_may_read_it() {
    let place = Place::new();
    place.leave("secret");
    for name in ["state.json", "state.json.lock"] {
        let mode = fs::metadata(place.beside(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    // Also if the old one was open to all.
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o644)).unwrap();
    place.leave("another");
    assert_eq!(fs::metadata(&place.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_a_killed_process_left_behind_is_replaced() {
    let place = Place::new();
    place.leave("of yesterday");
    fs::write(place.beside("state.json.new"), "half a fi").unwrap();
    assert_eq!(next_run(&place.path).1.unwrap(), "of yesterday");
    place.leave("new");
    assert_eq!(next_run(&place.path).1.unwrap(), "new");
    assert!(!place.beside("state.json.new").exists());
}

#[test]
fn a_fifo_a_folder_and_a_huge_file_are_refused_at_once() {
    let start = Instant::now();
    let place = Place::new();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &place.path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(matches!(next_run(&place.path).0, Restored::Ignored(_)));
    fs::remove_file(&place.path).unwrap();

    fs::create_dir(&place.path).unwrap();
    assert!(matches!(next_run(&place.path).0, Restored::Ignored(_)));
    let cell = cell();
    cell.set("value".to_owned());
    let persisted = place.attach(&cell);
    assert_eq!(persisted.flush().unwrap_err().kind(), PersistErrorKind::Io);
    fs::remove_dir(&place.path).unwrap();
    persisted.flush().unwrap();
    let line = place.bytes();

    // Of which only the beginning is one of this crate's.
    fs::write(&place.path, &line).unwrap();
    File::options().write(true).open(&place.path).unwrap().set_len(10 << 30).unwrap();
    let Restored::Ignored(error) = next_run(&place.path).0 else { panic!("it was read") };
    assert_eq!(error.kind(), PersistErrorKind::Damaged);
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn a_folder_that_is_missing_or_removed_is_made() {
    let place = Place::new();
    let path = place.beside("a/b/state.json");
    let cell = cell();
    let persisted = Persist::json(&path).interval(NEVER).attach(&cell).unwrap();
    for text in ["first", "second"] {
        cell.set(text.to_owned());
        persisted.flush().unwrap();
        assert_eq!(next_run(&path).1.unwrap(), text);
        fs::remove_dir_all(place.beside("a")).unwrap();
    }
    cell.set("third".to_owned());
    drop(persisted);
    assert_eq!(fs::metadata(place.beside("a/b")).unwrap().permissions().mode() & 0o777, 0o700);
}
