//! The program from the command line.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

fn axum_report(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_axum-report")).args(words).output().expect("the program starts")
}

#[test]
fn it_shows_every_answer_and_ends() {
    let output = axum_report(&[]);
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<&str> =
        said.lines().filter_map(|line| Some(line.split_once("GET ")?.1.split_once('{')?.0.trim())).collect();
    let answers: Vec<String> =
        answers.iter().map(|answer| answer.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let mut expected = vec!["/healthz 503"];
    expected.extend(["/report 200"; 5]);
    expected.extend(["/report/latest 200", "/healthz 200", "/report/latest 200", "/healthz 200"]);
    assert_eq!(answers, expected, "{said}");
}

#[test]
fn wrong_arguments_print_the_usage() {
    for words in [&["--serf"][..], &["--serve"], &["--serve", "127.0.0.1:0", "more"]] {
        let output = axum_report(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("usage: axum-report [--serve ADDRESS]"), "{said}");
    }
}

#[cfg(unix)]
#[test]
fn it_serves_until_it_is_interrupted() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_axum-report"))
        .args(["--serve", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    BufReader::new(program.stdout.take().expect("a pipe")).read_line(&mut line).expect("text");
    let url = line.split_whitespace().next().expect("an address");
    let report = ureq::get(url).call().expect("200").body_mut().read_to_string().expect("a report");
    assert_eq!(report, r#"{"number":1,"orders":1000000}"#);
    let id = program.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &id]).status().expect("a command").success());
    assert!(program.wait().expect("it ends").success());
}
