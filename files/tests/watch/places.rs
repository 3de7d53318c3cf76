//! Where the files are, and how the paths lead there.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{DogpileCell, Policy};
use dogpile_files::{FileError, Files, Watch};

use super::support::{eventually, given_folder, run_as_another_user, run_with_mounts, test_process};
use super::{Bench, cell, options, parse};

#[test]
fn on_a_tmpfs() {
    run_with_mounts(
        "places::child_with_a_file_system",
        "mkdir here && mount -t tmpfs none here && echo first. > here/file",
    );
}

/// As the files of an image are in a container: a file that is written is copied first.
#[test]
fn on_an_overlay() {
    let mount = "mkdir lower upper work here && echo first. > lower/file \
        && mount -t overlay none -o lowerdir=lower,upperdir=upper,workdir=work here";
    run_with_mounts("places::child_with_a_file_system", mount);
}

#[test]
#[ignore = "run by other tests, with a file system of its own"]
fn child_with_a_file_system() {
    let file = given_folder().unwrap().join("here/file");
    let cell = cell();
    let trimmed = |files: &Files| files.text(0).map(|text| text.trim().to_owned());
    // By notifications alone.
    let watch = options(&file).spawn(&cell, trimmed).unwrap();
    let shows = |text: &str| {
        eventually(text, || cell.get().is_some_and(|value| *value == text) && watch.last_error().is_none());
    };
    shows("first.");
    fs::write(&file, "second").unwrap();
    shows("second");
    fs::write(file.with_extension("new"), "third").unwrap();
    fs::rename(file.with_extension("new"), &file).unwrap();
    shows("third");
    fs::remove_file(&file).unwrap();
    eventually("it is missing", || watch.last_error().is_some());
    fs::write(&file, "fourth").unwrap();
    shows("fourth");
    assert_eq!(watch.polls_because(), None);
}

#[test]
fn a_path_that_is_no_utf_8() {
    let folder = tempfile::tempdir().unwrap();
    let sub = folder.path().join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&sub).unwrap();
    let file = sub.join(OsStr::from_bytes(b"\xff"));
    let bench = Bench::of(folder, "caf", |_| fs::write(&file, "first.").unwrap());
    let cell = cell();
    let watch = options(&file).spawn(&cell, parse).unwrap();
    let bench = Bench { file, cell, watch, ..bench };
    bench.shows("first");
    fs::write(&bench.file, "half").unwrap();
    bench.fails("\u{fffd}/\u{fffd}: line 1", "first");
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
}

/// A process has one current folder, so this one is a process of its own.
#[test]
fn a_relative_path_means_what_it_meant_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let output = test_process("places::child_that_goes_elsewhere", folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_that_goes_elsewhere() {
    let folder = given_folder().unwrap();
    fs::create_dir(folder.join("elsewhere")).unwrap();
    fs::write(folder.join("elsewhere/file"), "elsewhere.").unwrap();
    fs::write(folder.join("file"), "first.").unwrap();
    std::env::set_current_dir(&folder).unwrap();
    let cell = cell();
    let watch = Watch::file("./file").debounce(Duration::from_millis(20)).spawn(&cell, parse).unwrap();
    std::env::set_current_dir("elsewhere").unwrap();
    eventually("the first", || cell.get().is_some_and(|value| *value == "first"));
    fs::write(folder.join("file"), "half").unwrap();
    eventually("an error", || watch.last_error().is_some());
    assert!(watch.last_error().unwrap().to_string().starts_with("./file: line 1"));
    fs::write(folder.join("file"), "second.").unwrap();
    eventually("the second", || *cell.get().unwrap() == "second");
}

#[test]
fn links_in_a_circle_are_an_error_until_one_of_them_is_replaced() {
    let bench = Bench::new("first");
    symlink("a", bench.path("b")).unwrap();
    symlink("b", bench.path("a")).unwrap();
    symlink("a", bench.path("new")).unwrap();
    fs::rename(bench.path("new"), &bench.file).unwrap();
    bench.fails("file: Too many levels of symbolic links", "first");
    fs::write(bench.path("new"), "second.").unwrap();
    fs::rename(bench.path("new"), bench.path("b")).unwrap();
    bench.shows("second");
}

/// The system notifies of the name that was used.
#[test]
fn a_file_that_is_written_by_another_name_of_its_is_found_by_polling() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["here", "there"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let (file, other) = (folder.path().join("here/file"), folder.path().join("there/file"));
    fs::write(&file, "first.").unwrap();
    fs::hard_link(&file, &other).unwrap();
    let cell = cell();
    let watch = options(&file).poll_every(Duration::from_millis(20)).spawn(&cell, parse).unwrap();
    let bench = Bench { folder, file, cell, watch };
    bench.shows("first");
    fs::write(&other, "second.").unwrap();
    bench.shows("second");
}

#[test]
fn a_thousand_files_in_as_many_folders() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: usize| folder.path().join(format!("{number}/file"));
    for number in 0..1000 {
        fs::create_dir(path(number).parent().unwrap()).unwrap();
        fs::write(path(number), "1").unwrap();
    }
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let sum: Arc<DogpileCell<u32>> = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
    let watch = Watch::files((0..1000).map(path))
        .debounce(Duration::from_millis(50))
        .poll_every(Duration::MAX)
        .spawn(&sum, |files: &Files| {
            (0..files.len())
                .map(|number| files.parse(number, str::parse::<u32>))
                .sum::<Result<u32, FileError>>()
        })
        .unwrap();
    eventually("the sum", || sum.get().is_some_and(|sum| *sum == 1000));
    assert_eq!(watch.polls_because(), None);
    for (number, expected) in [(0, 1001), (500, 1002), (999, 1003)] {
        fs::write(path(number), "2").unwrap();
        eventually("the next sum", || *sum.get().unwrap() == expected);
    }
    fs::remove_file(path(7)).unwrap();
    eventually("an error", || watch.last_error().is_some());
    assert!(watch.last_error().unwrap().to_string().starts_with(path(7).to_str().unwrap()));
    // Other tests have some too.
    assert!(descriptors() < 500, "{}", descriptors());
}

#[test]
fn two_watches_of_one_file() {
    let bench = Bench::new("first");
    let second = cell();
    let watch = options(&bench.file).spawn(&second, parse).unwrap();
    eventually("the second cell's", || second.get().is_some());
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
    eventually("the second cell's", || *second.get().unwrap() == "second");
    drop(watch);
    fs::write(&bench.file, "third.").unwrap();
    bench.shows("third");
    assert_eq!(*second.get().unwrap(), "second");
}

#[test]
fn a_file_that_is_replaced_while_the_parser_runs_is_parsed_next() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "first.").unwrap();
    let cell = cell();
    let mut subscription = cell.subscribe_owned();
    let (path, beside): (PathBuf, PathBuf) = (file.clone(), folder.path().join("new"));
    let watch = options(&file)
        .spawn(&cell, move |files: &Files| {
            let text = parse(files)?;
            if text == "first" {
                fs::write(&beside, "second.").unwrap();
                fs::rename(&beside, &path).unwrap();
            }
            Ok::<_, FileError>(text)
        })
        .unwrap();
    let seen: Vec<_> = (0..2)
        .map(|_| subscription.wait_changed_timeout(super::support::PATIENCE).map(|text| String::clone(&text)))
        .collect();
    assert_eq!(seen, [Some("first".to_owned()), Some("second".to_owned())]);
    drop(watch);
}

/// Not as root, which may look into every folder.
#[test]
fn a_folder_that_may_not_be_entered_or_not_be_read() {
    run_as_another_user("places::child_without_rights", 61_237);
}

#[test]
#[ignore = "run by another test, as another user"]
fn child_without_rights() {
    let folder = tempfile::tempdir_in(given_folder().unwrap()).unwrap();
    let chmod = |name: &str, mode| {
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    fs::create_dir_all(folder.path().join("outer/inner")).unwrap();
    let file = folder.path().join("outer/inner/file");
    fs::write(&file, "first.").unwrap();
    let cell = cell();
    let watch = options(&file).spawn(&cell, parse).unwrap();
    eventually("the first", || cell.get().is_some());
    // Each is notified of.
    for mode in [0o600, 0o000] {
        chmod("outer/inner", mode);
        eventually("an error", || watch.last_error().is_some());
        let error = watch.last_error().unwrap().to_string();
        assert!(error.ends_with("inner/file: Permission denied (os error 13)"), "{error}");
        chmod("outer/inner", 0o700);
        eventually("no error", || watch.last_error().is_none());
    }
    // It can be entered, but not be read: what is in it cannot be notified of.
    chmod("outer/inner", 0o300);
    watch.reload_now();
    eventually("a reason", || watch.polls_because().is_some());
    let reason = watch.polls_because().unwrap();
    assert!(reason.contains("inner cannot be watched: "), "{reason}");
    fs::write(&file, "second.").unwrap();
    watch.reload_now();
    eventually("the second", || *cell.get().unwrap() == "second");
    chmod("outer/inner", 0o700);
    eventually("it is notified again", || watch.polls_because().is_none());
}
