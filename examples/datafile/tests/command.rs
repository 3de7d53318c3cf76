//! The program as one calls it: what it prints when all is well, and the one line that it says when not.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A run that takes a moment.
const SHORT: &[&str] = &["--seconds", "1", "--every", "100ms"];

fn datafile(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_datafile"))
        .args(words)
        .current_dir(folder)
        .output()
        .expect("the program starts")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The one line on standard error of a call that must fail.
fn complaint(folder: &Path, words: &[&str]) -> String {
    let output = datafile(folder, words);
    assert!(output.stdout.is_empty(), "no half a result");
    one_line(&output)
}

fn one_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it succeeded");
    assert!(output.status.code().is_some(), "it was killed: {}", output.status);
    assert_eq!(said.lines().count(), 1, "one line, not: {said}");
    assert!(said.starts_with("datafile: "), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The numbers of a line of the table, as they are printed.
fn cells<'a>(said: &'a str, label: &str) -> Vec<&'a str> {
    let line = said.lines().find(|line| line.starts_with(&format!("| {label} ")));
    line.unwrap_or_else(|| panic!("{label} is missing in: {said}"))
        .trim_matches('|')
        .split('|')
        .skip(1)
        .map(str::trim)
        .collect()
}

#[test]
fn a_wrong_flag_gets_one_line() {
    let folder = folder();
    assert!(complaint(folder.path(), &["--no-such-flag"]).contains("--no-such-flag"));
    assert!(complaint(folder.path(), &["--threads", "none"]).contains("--threads"));
    assert!(complaint(folder.path(), &["--seconds", "1"]).contains("--every"));
}

#[test]
fn an_unreadable_file_gets_one_line_that_names_it() {
    let folder = folder();
    fs::create_dir(folder.path().join("folder.txt")).expect("a folder");
    fs::write(folder.path().join("good.txt"), "words").expect("a file");
    for file in ["missing.txt", "folder.txt", "line\nbreak.txt"] {
        let said = complaint(folder.path(), &["good.txt", file]);
        assert!(said.contains(file.lines().last().unwrap_or_default()), "{said}");
    }
}

#[test]
fn texts_without_words_get_one_line() {
    let folder = folder();
    fs::write(folder.path().join("empty.txt"), "").expect("a file");
    fs::write(folder.path().join("signs.txt"), "-- !\n...").expect("a file");
    let said = complaint(folder.path(), &["empty.txt", "signs.txt"]);
    assert!(said.contains("no words") && said.contains("empty.txt"), "{said}");
}

#[test]
fn a_folder_that_cannot_be_written_to_gets_one_line_that_names_it() {
    let folder = folder();
    let said = complaint(folder.path(), &["--dir", "no/such/folder"]);
    assert!(said.contains("no/such/folder"), "{said}");
}

#[test]
fn a_short_run_over_the_repositorys_docs_ends_with_no_bad_lookup() {
    let folder = folder();
    let said = printed(datafile(folder.path(), SHORT));
    let last = said.lines().last().expect("a line");
    assert!(last.starts_with("0 bad lookups of "), "{last}");
    assert_eq!(cells(&said, "bad lookups [2]"), ["0", "0"]);
    assert_eq!(cells(&said, "files at most [12]"), ["2", "1"]);
    let numbers = |label| -> Vec<u64> {
        cells(&said, label).iter().map(|cell| cell.replace(',', "").parse().expect("a number")).collect()
    };
    assert!(numbers("lookups").iter().all(|lookups| *lookups > 0));
    let generations = numbers("generations [3]");
    assert!(generations.iter().all(|generations| *generations > 1), "{generations:?}");
    let all_but_one: Vec<u64> = generations.iter().map(|generations| generations - 1).collect();
    assert_eq!(numbers("finalised [4]"), all_but_one);
    for label in
        ["lookups/s [1]", "longest reader wait [7]", "longest drain [10]", "bytes on disk at most [12]"]
    {
        assert_eq!(cells(&said, label).len(), 2, "{label}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0, "it leaves nothing behind");
}

#[test]
fn the_data_files_go_where_the_user_says_and_are_removed_at_the_end() {
    let folder = folder();
    fs::create_dir(folder.path().join("data")).expect("a folder");
    let text = "one text with eight words or even nine\n";
    fs::write(folder.path().join("own.txt"), text).expect("a file");
    let words = [SHORT, &["--dir", "data", "--threads", "2", "own.txt"]].concat();
    let said = printed(datafile(folder.path(), &words));
    assert!(said.contains("1 file named by the user: 8 words, 8 different ones"), "{said}");
    assert!(said.ends_with('\n') && said.contains("\n0 bad lookups of "), "{said}");
    assert_eq!(fs::read_dir(folder.path().join("data")).expect("a folder").count(), 0);
    assert_eq!(fs::read_to_string(folder.path().join("own.txt")).expect("a file"), text);
}

#[test]
fn in_the_repositorys_root_folder_the_page_is_saved() {
    let root = folder();
    for folder in ["docs", "examples/datafile"] {
        fs::create_dir_all(root.path().join(folder)).expect("a folder");
    }
    fs::write(root.path().join("examples/datafile/Cargo.toml"), "").expect("a file");
    let said = printed(datafile(root.path(), SHORT));
    let saved = fs::read_to_string(root.path().join("docs/datafile.md")).expect("the page");
    assert!(saved.starts_with("# ") && saved.ends_with(&said), "what is printed is what is saved: {saved}");
    assert!(said.contains("`cargo run --release -p datafile -- --seconds 1 --every 100ms`"), "{said}");
}

/// What the runs above rest on: that bad lookups would be counted and reported. Somebody else writes zeros over the
/// first page of whatever data file there is, as long as the program runs.
#[cfg(unix)]
#[test]
fn a_run_whose_data_file_is_damaged_ends_with_an_error_that_says_so() {
    use std::os::unix::fs::FileExt;

    /// Files that come and go meanwhile are none of its business.
    fn damage_all(folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                damage_all(&path);
            } else if let Ok(file) = fs::File::options().write(true).open(path) {
                let _ = file.write_all_at(&[0; 4096], 0);
            }
        }
    }

    let folder = folder();
    let data = folder.path().join("data");
    fs::create_dir(&data).expect("a folder");
    let mut program = Command::new(env!("CARGO_BIN_EXE_datafile"))
        .args(SHORT)
        .args(["--dir", "data"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    while program.try_wait().expect("it is ours").is_none() {
        damage_all(&data);
    }
    let output = program.wait_with_output().expect("it has ended");
    let said = one_line(&output);
    assert!(said.contains("bad lookups; the first one: page 0 "), "{said}");
    let printed = String::from_utf8_lossy(&output.stdout);
    let last = printed.lines().last().expect("a line");
    assert!(last.contains(" bad lookups of ") && !last.starts_with("0 "), "{last}");
}
