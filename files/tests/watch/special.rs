//! What is no readable regular file.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use dogpile::SharedError;
use dogpile_files::FileError;
use std::io;

use super::support::{given_folder, run_as_another_user};
use super::{Bench, cell, options, parse};

fn kind(error: Option<SharedError>) -> Option<io::ErrorKind> {
    error?.downcast_ref::<FileError>()?.kind()
}

#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    let bench = Bench::new("first");
    fs::remove_file(&bench.file).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &bench.file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    bench.fails("file: is a FIFO, not a regular file", "first");
    assert_eq!(kind(bench.watch.last_error()), Some(io::ErrorKind::InvalidInput));
    fs::remove_file(&bench.file).unwrap();
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
}

#[test]
fn a_folder_is_refused() {
    let bench = Bench::new("first");
    fs::remove_file(&bench.file).unwrap();
    fs::create_dir(&bench.file).unwrap();
    bench.fails("file: is a folder, not a regular file", "first");
    fs::remove_dir(&bench.file).unwrap();
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
}

#[test]
fn a_socket_and_a_device_are_refused() {
    let bench = Bench::new("first");
    fs::remove_file(&bench.file).unwrap();
    let _listener = UnixListener::bind(&bench.file).unwrap();
    bench.fails("file: is a socket, not a regular file", "first");
    fs::remove_file(&bench.file).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &bench.file).unwrap();
    bench.fails("file: is a device, not a regular file", "first");
}

#[test]
fn a_huge_file_is_refused_before_it_is_read() {
    let bench = Bench::new("first");
    File::create(bench.path("sparse")).unwrap().set_len(10 << 30).unwrap();
    fs::rename(bench.path("sparse"), &bench.file).unwrap();
    bench.fails("file: has 10737418240 bytes, and 67108864 are allowed: see `max_size`", "first");
    assert_eq!(kind(bench.watch.last_error()), Some(io::ErrorKind::FileTooLarge));
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
}

#[test]
fn the_limit_is_the_largest_size() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "1234.").unwrap();
    let cell = cell();
    let watch = options(&file).max_size(5).spawn(&cell, parse).unwrap();
    let bench = Bench { folder, file, cell, watch };
    bench.shows("1234");
    fs::write(&bench.file, "12345.").unwrap();
    bench.fails("file: has 6 bytes, and 5 are allowed", "1234");
}

#[test]
fn a_file_that_says_it_has_no_bytes_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let cell = cell();
    let path = std::path::Path::new("/proc/sys/kernel/ostype");
    if !path.exists() {
        super::support::skip("there is no /proc");
        return;
    }
    let watch = options(path)
        .spawn(&cell, |files: &dogpile_files::Files| files.text(0).map(|text| text.trim().to_owned()))
        .unwrap();
    let bench = Bench { folder, file: path.to_owned(), cell, watch };
    bench.shows("Linux");
}

#[test]
fn text_that_is_no_utf_8() {
    let bench = Bench::new("first");
    fs::write(&bench.file, b"\xff.").unwrap();
    bench.fails("file: invalid utf-8", "first");
}

/// Not as root, which may read everything.
#[test]
fn chmod_takes_a_file_away() {
    run_as_another_user("special::child_without_rights", 61_234);
}

#[test]
#[ignore = "run by another test, as another user"]
fn child_without_rights() {
    let folder = tempfile::tempdir_in(given_folder().unwrap()).unwrap();
    let bench = Bench::of(folder, "file", |file| fs::write(file, "first.").unwrap());
    bench.shows("first");
    let chmod = |mode| fs::set_permissions(&bench.file, fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o000);
    bench.fails("file: Permission denied", "first");
    chmod(0o600);
    bench.shows("first");

    // The folder.
    let chmod = |mode| fs::set_permissions(bench.folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o000);
    bench.watch.reload_now();
    bench.fails("file: Permission denied", "first");
    chmod(0o700);
    fs::write(&bench.file, "second.").unwrap();
    bench.watch.reload_now();
    bench.shows("second");
}
