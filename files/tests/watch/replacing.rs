//! The ways in which files are replaced.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::Bench;
use super::support::eventually;

#[test]
fn an_editor_writes_beside_and_renames() {
    let bench = Bench::new("first");
    for text in ["second", "third"] {
        fs::write(bench.path(".file.swp"), format!("{text}.")).unwrap();
        fs::rename(bench.path(".file.swp"), &bench.file).unwrap();
        bench.shows(text);
    }
    assert_eq!(bench.cell.generation(), 3);
}

#[test]
fn an_editor_renames_the_old_file_and_writes_a_new_one() {
    let bench = Bench::new("first");
    for text in ["second", "third"] {
        fs::rename(&bench.file, bench.path("file~")).unwrap();
        fs::write(&bench.file, format!("{text}.")).unwrap();
        bench.shows(text);
    }
}

#[test]
fn cp_writes_over_it() {
    let bench = Bench::new("first");
    for text in ["second", "third"] {
        fs::write(bench.path("other"), format!("{text}.")).unwrap();
        let status = Command::new("cp").arg(bench.path("other")).arg(&bench.file).status().unwrap();
        assert!(status.success());
        bench.shows(text);
    }
}

#[test]
fn mv_keeps_an_old_time_of_change() {
    let bench = Bench::new("first");
    let other = bench.path("other");
    fs::write(&other, "olden.").unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH;
    File::options().write(true).open(&other).unwrap().set_modified(long_ago).unwrap();
    let status = Command::new("mv").arg(&other).arg(&bench.file).status().unwrap();
    assert!(status.success());
    bench.shows("olden");
}

#[test]
fn a_file_that_is_written_slowly_is_not_taken_before_it_is_whole() {
    let bench = Bench::new("first");
    let mut file = File::create(&bench.file).unwrap();
    bench.fails("file: line 0: no full stop", "first");
    file.write_all(b"sec").unwrap();
    file.flush().unwrap();
    bench.fails("file: line 1: no full stop", "first");
    file.write_all(b"ond\nline").unwrap();
    bench.fails("file: line 2: no full stop", "first");
    file.write_all(b".").unwrap();
    bench.shows("second\nline");
    assert_eq!(bench.cell.generation(), 2);
}

#[test]
fn a_file_is_deleted_and_created() {
    let bench = Bench::new("first");
    for text in ["second", "third"] {
        let before = bench.cell.get().unwrap();
        fs::remove_file(&bench.file).unwrap();
        bench.fails("file: No such file or directory", &before);
        fs::write(&bench.file, format!("{text}.")).unwrap();
        bench.shows(text);
    }
}

#[test]
fn a_file_that_is_not_there_yet() {
    let bench = Bench::of(tempfile::tempdir().unwrap(), "file", |_| ());
    eventually("an error", || bench.error().is_some());
    assert!(bench.error().unwrap().contains("file: No such file"), "{:?}", bench.error());
    assert!(!bench.watch.wait_ready(std::time::Duration::ZERO));
    fs::write(&bench.file, "first.").unwrap();
    bench.shows("first");
}

#[test]
fn a_folder_that_is_not_there_yet() {
    let bench = Bench::of(tempfile::tempdir().unwrap(), "a/b/c/file", |_| ());
    eventually("an error", || bench.error().is_some());
    // The cell serves a value, so nothing but a notification leads to another try.
    bench.cell.set("set by hand".to_owned());
    fs::create_dir_all(bench.path("a/b/c")).unwrap();
    fs::write(&bench.file, "first.").unwrap();
    bench.shows("first");
    fs::write(&bench.file, "second.").unwrap();
    bench.shows("second");
}

#[test]
fn a_folder_is_removed_and_made_again() {
    let bench = Bench::of(tempfile::tempdir().unwrap(), "sub/file", |file| {
        fs::create_dir(file.parent().unwrap()).unwrap();
        fs::write(file, "first.").unwrap();
    });
    bench.shows("first");
    for text in ["second", "third", "fourth"] {
        let before = bench.cell.get().unwrap();
        fs::remove_dir_all(bench.path("sub")).unwrap();
        bench.fails("sub/file: No such file", &before);
        fs::create_dir(bench.path("sub")).unwrap();
        fs::write(&bench.file, format!("{text}.")).unwrap();
        bench.shows(text);
        // In the new folder, which is perhaps of the same inode.
        fs::write(&bench.file, format!("{text} again.")).unwrap();
        bench.shows(&format!("{text} again"));
    }
}

#[test]
fn a_folder_is_removed_and_made_again_before_anyone_looks() {
    let bench = Bench::of(tempfile::tempdir().unwrap(), "sub/file", |file| {
        fs::create_dir(file.parent().unwrap()).unwrap();
        fs::write(file, "first.").unwrap();
    });
    bench.shows("first");
    for number in 0..5 {
        // Some file systems give the new folder the inode of the old one.
        fs::remove_dir_all(bench.path("sub")).unwrap();
        fs::create_dir(bench.path("sub")).unwrap();
        fs::write(&bench.file, format!("{number}.")).unwrap();
        bench.shows(&number.to_string());
        fs::write(&bench.file, format!("{number} again.")).unwrap();
        bench.shows(&format!("{number} again"));
    }
}

#[test]
fn a_folder_is_replaced_at_once() {
    let bench = Bench::of(tempfile::tempdir().unwrap(), "sub/file", |file| {
        fs::create_dir(file.parent().unwrap()).unwrap();
        fs::write(file, "first.").unwrap();
    });
    bench.shows("first");
    for (number, text) in ["second", "third"].iter().enumerate() {
        let next = bench.path("next");
        fs::create_dir(&next).unwrap();
        fs::write(next.join("file"), format!("{text}.")).unwrap();
        fs::rename(bench.path("sub"), bench.path(&format!("old{number}"))).unwrap();
        fs::rename(&next, bench.path("sub")).unwrap();
        bench.shows(text);
        fs::write(&bench.file, format!("{text} again.")).unwrap();
        bench.shows(&format!("{text} again"));
        // What becomes of the old folder is of no concern.
        fs::write(bench.path(&format!("old{number}/file")), "nothing.").unwrap();
    }
    assert_eq!(bench.cell.generation(), 5);
}

#[test]
fn kubernetes_swaps_the_link_to_the_folder() {
    let bench = Bench::of(tempfile::tempdir().unwrap(), "file", |file| {
        let folder = file.parent().unwrap();
        fs::create_dir(folder.join("..1")).unwrap();
        fs::write(folder.join("..1/file"), "1.").unwrap();
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/file", file).unwrap();
    });
    bench.shows("1");
    for version in 2..5 {
        let folder = bench.path(&format!("..{version}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), format!("{version}.")).unwrap();
        symlink(folder.file_name().unwrap(), bench.path("..data_tmp")).unwrap();
        fs::rename(bench.path("..data_tmp"), bench.path("..data")).unwrap();
        // Not before: that would be a change of its own.
        bench.shows(&version.to_string());
        fs::remove_dir_all(bench.path(&format!("..{}", version - 1))).unwrap();
    }
    assert_eq!(bench.cell.generation(), 4);
}

#[test]
fn a_link_to_another_folder_is_followed_there() {
    let bench = Bench::of(tempfile::tempdir().unwrap(), "conf/file", |file| {
        let folder = file.parent().unwrap();
        fs::create_dir(folder).unwrap();
        fs::create_dir(folder.parent().unwrap().join("elsewhere")).unwrap();
        fs::write(folder.parent().unwrap().join("elsewhere/file"), "first.").unwrap();
        symlink("../elsewhere/file", file).unwrap();
    });
    bench.shows("first");
    fs::write(bench.path("elsewhere/file"), "second.").unwrap();
    bench.shows("second");
    // The link becomes a file; then what it led to does not matter any more.
    fs::remove_file(&bench.file).unwrap();
    fs::write(&bench.file, "third.").unwrap();
    bench.shows("third");
}

#[test]
fn a_folder_further_up_is_replaced_and_found_by_a_poll_and_watched_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let make = |outer: &str, text: &str| {
        fs::create_dir_all(folder.path().join(outer).join("inner/deep")).unwrap();
        fs::write(folder.path().join(outer).join("inner/deep/file"), text).unwrap();
    };
    make("outer", "first.");
    make("next", "second.");
    let path = |name: &str| folder.path().join(name);
    let (outer, old, next) = (path("outer"), path("old"), path("next"));
    let bench = Bench::of(folder, "outer/inner/deep/file", |_| {});
    bench.shows("first");
    fs::rename(&outer, &old).unwrap();
    fs::rename(&next, &outer).unwrap();
    // As a poll.
    bench.watch.reload_now();
    bench.shows("second");
    // By notifications, and of the file that is there now.
    fs::write(old.join("inner/deep/file"), "of no concern.").unwrap();
    fs::write(&bench.file, "third.").unwrap();
    bench.shows("third");
}
