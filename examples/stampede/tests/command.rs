//! The program as one calls it: what it leaves behind when all is well, and the one line that it says when not.

use std::fs;
use std::path::{Path, PathBuf};
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

/// The one line on standard error of a call that must fail, after those that told of the progress.
fn complaint(folder: &Path, words: &[&str]) -> String {
    let output = stampede(folder, words);
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success(), "{words:?} succeeded");
    assert!(output.status.code().is_some(), "{words:?} was killed: {}", output.status);
    let is_progress = |line: &&str| line.contains(" of 5, ");
    let said: Vec<&str> = said.lines().skip_while(is_progress).collect();
    assert_eq!(said.len(), 1, "one line, not: {said:?}");
    let said = said[0].to_owned();
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
    // The window is a hang guard; with this ttl nearly every request runs the query.
    let load = [
        "--clients",
        "8",
        "--rate",
        "1000",
        "--seconds",
        "300",
        "--ttl",
        "0.001",
        "--rows",
        "100",
        "--query",
        query,
    ];
    let said = complaint(folder.path(), &load);
    assert!(said.contains("overflow"), "{said}");
}

#[test]
fn a_picture_that_cannot_be_saved_gets_one_line_before_the_work() {
    let folder = folder();
    let said = complaint(folder.path(), &["--save", "no/such/folder.svg"]);
    assert!(said.contains("no/such"), "{said}");
}

/// Nothing is written but the database beside the program.
#[test]
fn a_run_prints_the_results_first_and_leaves_no_files() {
    let folder = folder();
    fs::create_dir(folder.path().join("docs")).expect("a folder");
    let output = stampede(folder.path(), &[SMALL, &["--rows", "2000"]].concat());
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = said.lines().collect();
    for (line, part) in lines.iter().zip(["60 requests: the query runs", "99 of 100", "Refresher"]) {
        assert!(line.contains(part), "{part} is missing in: {line}");
    }
    assert_eq!(lines[3], "");
    assert!(lines[4].starts_with('|'), "the table comes after the results: {}", lines[4]);
    for part in ["nothing", "mutex", "cell", "refresher", "baseline", "query runs", "p99.9", "cores"] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    let command = format!("`cargo run --release -p stampede -- {} --rows 2000`", SMALL.join(" "));
    assert!(said.contains(&command), "{said}");
    for line in lines.iter().filter(|line| !line.starts_with('`')) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let left: Vec<_> = walk(folder.path());
    assert_eq!(left, [folder.path().join("docs")]);
}

/// All that is in a folder and below.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries
        .flat_map(|path| if path.is_dir() { [vec![path.clone()], walk(&path)].concat() } else { vec![path] })
        .collect()
}

#[test]
fn where_there_is_no_terminal_each_run_is_a_line() {
    let folder = folder();
    let output = stampede(folder.path(), &[SMALL, &["--rows", "100"]].concat());
    let said = String::from_utf8(output.stderr).expect("text");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 5, "{said}");
    assert_eq!(lines[2], "3 of 5, DogpileCell: 300 ms");
}

#[test]
fn a_command_is_quoted_as_a_shell_needs_it() {
    let folder = folder();
    let output =
        stampede(folder.path(), &[SMALL, &["--rows", "100", "--query", "SELECT 'it''s', 1"]].concat());
    let said = String::from_utf8(output.stdout).expect("text");
    let command = said.lines().find(|line| line.starts_with('`')).expect("the command").trim_matches('`');
    let words =
        Command::new("sh").arg("-c").arg(format!("printf '%s\n' {command}")).output().expect("a shell");
    let words = String::from_utf8(words.stdout).expect("text");
    assert_eq!(words.lines().last(), Some("SELECT 'it''s', 1"), "{command}");
}

#[test]
fn a_window_in_which_nothing_expires_gets_a_note() {
    let folder = folder();
    let run = |ttl| {
        let load = ["--clients", "1", "--rate", "50", "--seconds", "0.3", "--rows", "100", "--ttl", ttl];
        let output = stampede(folder.path(), &load);
        assert!(output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    let said = run("2");
    assert!(
        said.starts_with("note: no report expires within --seconds 0.3") && said.contains("--ttl is 2 s"),
        "{said}"
    );
    assert!(!run("0.05").contains("note:"));
}

#[test]
fn an_endless_query_gets_one_line() {
    let folder = folder();
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let words = ["--rows", "100", "--query-timeout", "0.05", "--query", endless];
    let said = complaint(folder.path(), &words);
    assert!(said.contains("within 50 ms") && said.contains("--query-timeout"), "{said}");
}

/// There is nothing to divide by.
#[test]
fn a_load_that_is_never_answered_has_its_results_too() {
    let folder = folder();
    // Some hundred milliseconds on any machine, and the run ends after twenty.
    let slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) FROM n";
    let load = [
        "--clients",
        "2",
        "--rate",
        "100",
        "--seconds",
        "0.01",
        "--ttl",
        "0.001",
        "--rows",
        "100",
        "--query",
        slow,
    ];
    let output = stampede(folder.path(), &load);
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[1].matches("> ").count(), 3, "{said}");
    let answered = lines.iter().find(|line| line.starts_with("| answered")).expect("a line of the table");
    let answered: Vec<&str> = answered.split('|').map(str::trim).collect();
    // The cell still has an old report for the client that does not build.
    assert_eq!(answered[2..4], ["0", "0"], "{said}");
    assert!(!said.contains("NaN") && !said.contains("inf"), "{said}");
}

#[test]
fn what_is_asked_for_is_saved() {
    let folder = folder();
    let output = stampede(folder.path(), &[SMALL, &["--rows", "2000", "--save"]].concat());
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let saved = fs::read_to_string(folder.path().join("stampede.md")).expect("the page");
    let (results, table) = said.split_once("\n\n").expect("results and table");
    let table = table.split("\nSaved").next().expect("a text");
    assert!(
        saved.contains(table) && saved.contains("(stampede.svg)"),
        "what is printed is what is saved: {saved}"
    );
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&saved).contains(&words(results)), "{saved}");
    let svg = fs::read_to_string(folder.path().join("stampede.svg")).expect("the picture");
    assert!(svg.starts_with("<svg"), "{svg:.80}");
}

#[test]
fn where_there_is_a_folder_docs_the_picture_goes_there() {
    let folder = folder();
    fs::create_dir(folder.path().join("docs")).expect("a folder");
    let output = stampede(folder.path(), &[SMALL, &["--rows", "100", "--save"]].concat());
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
        "--save",
        "own.svg",
    ];
    let output = stampede(folder.path(), &[SMALL, &words].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("a report of 3 rows"));
    assert!(folder.path().join("own.svg").is_file());
    assert_eq!(fs::read(&file).expect("a file"), before);
}
