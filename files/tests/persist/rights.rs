//! Where nothing can be written.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use dogpile_files::{Persist, PersistErrorKind};

use super::support::{given_folder, run_as_another_user, run_with_mounts};
use super::{NEVER, cell, next_run};

/// Not as root, which may write everywhere.
#[test]
fn a_folder_that_may_not_be_written_leaves_the_old_file() {
    run_as_another_user("rights::child_in_a_read_only_folder", 61_236);
}

#[test]
#[ignore = "run by another test, as another user"]
fn child_in_a_read_only_folder() {
    let folder = tempfile::tempdir_in(given_folder().unwrap()).unwrap();
    let path = folder.path().join("state.json");
    let cell = cell();
    let persisted = Persist::json(&path).interval(NEVER).attach(&cell).unwrap();
    cell.set("first".to_owned());
    persisted.flush().unwrap();
    let chmod = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o500);
    cell.set("second".to_owned());
    let error = persisted.flush().unwrap_err();
    assert_eq!(error.kind(), PersistErrorKind::Io);
    assert!(error.to_string().contains("Permission denied"), "{error}");
    assert_eq!(next_run(&path).1.unwrap(), "first");
    assert_eq!(*cell.get().unwrap(), "second", "readers do not notice");
    chmod(0o700);
    persisted.flush().unwrap();
    assert!(persisted.last_error().is_none());
    assert_eq!(next_run(&path).1.unwrap(), "second");

    // A folder that may not be read cannot be flushed. That is no reason to write the file again and again.
    chmod(0o300);
    cell.set("third".to_owned());
    persisted.flush().unwrap();
    persisted.flush().unwrap();
    assert_eq!((persisted.writes(), next_run(&path).1.unwrap()), (3, "third".to_owned()));
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let mount = "mount -t tmpfs -o size=256k none .";
    run_with_mounts("rights::child_on_a_full_disk", mount);
}

#[test]
#[ignore = "run by another test, on a disk of its own"]
fn child_on_a_full_disk() {
    let folder = given_folder().unwrap();
    let path = folder.join("state.json");
    let cell = cell();
    let persisted = Persist::json(&path).interval(NEVER).attach(&cell).unwrap();
    let small = "small".repeat(100);
    cell.set(small.clone());
    persisted.flush().unwrap();
    cell.set("large".repeat(100_000));
    let error = persisted.flush().unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(next_run(&path).1.unwrap(), small);
    assert!(!folder.join("state.json.new").exists(), "half a file takes the space");
    cell.set("small again".to_owned());
    persisted.flush().unwrap();
    assert_eq!(next_run(&path).1.unwrap(), "small again");
}
