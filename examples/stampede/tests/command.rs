//! The program as one calls it: what it leaves behind when all is well, and the one line that it says when not.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A database and a load so small that a run takes a moment.
const SMALL: &[&str] = &["--clients", "4", "--rate", "50", "--seconds", "0.3", "--ttl", "0.05"];

fn stampede(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_stampede"))
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
    let output = stampede(folder, words);
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success(), "{words:?} succeeded");
    assert!(output.status.code().is_some(), "{words:?} was killed: {}", output.status);
    assert_eq!(said.lines().count(), 1, "one line, not: {said}");
    assert!(said.starts_with("stampede: "), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(output.stdout.is_empty(), "no half a result");
    said
}

#[test]
fn a_wrong_flag_gets_one_line() {
    let folder = folder();
    assert!(complaint(folder.path(), &["--no-such-flag"]).contains("--no-such-flag"));
    assert!(complaint(folder.path(), &["--clients", "none"]).contains("--clients"));
    assert!(complaint(folder.path(), &["--db", "orders.sqlite"]).contains("--query"));
}

#[test]
fn an_unreadable_file_gets_one_line_that_names_it() {
    let folder = folder();
    fs::write(
        folder.path().join("text.sqlite"),
        "this is not a database, but it is long enough to be one\n".repeat(99),
    )
    .expect("a file");
    fs::create_dir(folder.path().join("folder.sqlite")).expect("a folder");
    for file in ["missing.sqlite", "folder.sqlite", "text.sqlite"] {
        let words = ["--db", file, "--query", "SELECT * FROM orders"];
        let said = complaint(folder.path(), &words);
        assert!(said.contains(file), "{said}");
    }
}

#[test]
fn a_failing_query_gets_one_line_that_says_why() {
    let folder = folder();
    for (query, why) in [
        ("SELECT *\nFROM nowhere", "nowhere"),
        ("SELEKT\n1", "SELEKT"),
        ("DELETE FROM orders", "returns rows"),
        ("DELETE FROM orders RETURNING id", "readonly"),
        ("SELECT 1; SELECT 2", "Multiple statements"),
        ("", "returns rows"),
    ] {
        let said = complaint(folder.path(), &[SMALL, &["--rows", "100", "--query", query]].concat());
        assert!(said.contains(why), "{query}: {said}");
    }
}

#[test]
fn a_query_that_fails_during_the_load_ends_it_with_one_line() {
    let folder = folder();
    // One run of it in a hundred overflows: the trial at the beginning is over by then.
    let query = "SELECT abs(-9223372036854775807 - (abs(random() % 100) = 7))";
    // The window is a hang guard.
    let load = ["--clients", "8", "--rate", "1000", "--seconds", "300", "--rows", "100", "--query", query];
    let said = complaint(folder.path(), &load);
    assert!(said.contains("overflow"), "{said}");
}

#[test]
fn a_picture_that_cannot_be_saved_gets_one_line_before_the_work() {
    let folder = folder();
    let said = complaint(folder.path(), &["--svg", "no/such/folder.svg"]);
    assert!(said.contains("no/such"), "{said}");
}

#[test]
fn a_run_prints_the_table_and_saves_it_with_the_picture() {
    let folder = folder();
    let output = stampede(folder.path(), &[SMALL, &["--rows", "2000"]].concat());
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in [
        "no protection",
        "mutex",
        "DogpileCell",
        "nothing shared",
        "requests/s",
        "query runs",
        "p99.9",
        "cores",
    ] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    let saved = fs::read_to_string(folder.path().join("stampede.md")).expect("the table");
    let table = said.split("\nSaved").next().expect("a text");
    assert!(
        saved.ends_with(table) && saved.contains("(stampede.svg)"),
        "what is printed is what is saved: {saved}"
    );
    let svg = fs::read_to_string(folder.path().join("stampede.svg")).expect("the picture");
    assert!(svg.starts_with("<svg"), "{svg:.80}");
}

#[test]
fn where_there_is_a_folder_docs_the_picture_goes_there() {
    let folder = folder();
    fs::create_dir(folder.path().join("docs")).expect("a folder");
    let output = stampede(folder.path(), &[SMALL, &["--rows", "100"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(folder.path().join("docs/stampede.svg").is_file());
    assert!(folder.path().join("docs/stampede.md").is_file());
}

#[test]
fn a_database_of_ones_own_is_read_and_left_as_it_was() {
    let folder = folder();
    let file = folder.path().join("own.sqlite");
    let own = rusqlite::Connection::open(&file).expect("a database");
    own.execute_batch("CREATE TABLE t (n); INSERT INTO t VALUES (1), (2), (3)").expect("a table");
    own.close().expect("it is complete");
    let before = fs::read(&file).expect("a file");
    let words = [
        "--db",
        "own.sqlite",
        "--query",
        "SELECT n, n * 0.5, 'text', x'00ff', NULL FROM t",
        "--svg",
        "own.svg",
    ];
    let output = stampede(folder.path(), &[SMALL, &words].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("a report of 3 rows"));
    assert!(folder.path().join("own.svg").is_file());
    assert_eq!(fs::read(&file).expect("a file"), before);
}
