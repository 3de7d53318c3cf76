//! The program from the command line; `docs/monitoring.md` shows what it prints.

use std::process::Command;

#[test]
fn it_shows_what_is_logged_and_what_a_scrape_gets() {
    let output = Command::new(env!("CARGO_BIN_EXE_metrics-export")).output().expect("the program starts");
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let (log, scrape) = said.split_once("What a scrape gets:").expect("two parts");

    // Without the durations, which differ from run to run.
    let logged: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("build{"))
        .map(|line| line.split_once(" duration=").expect("a duration").0.trim())
        .collect();
    assert_eq!(
        logged,
        [
            r#"DEBUG build{cell="rates" generation=1 cause="first"}: dogpile: published"#,
            r#"WARN build{cell="rates" generation=2 cause="invalidated"}: dogpile: failed"#,
            r#"DEBUG build{cell="rates" generation=2 cause="invalidated"}: dogpile: published"#,
        ]
    );
    let page = include_str!("../../../docs/monitoring.md");
    for line in logged {
        assert!(page.contains(line), "docs/monitoring.md does not show: {line}");
    }
    for line in [
        r#"dogpile_builds_total{cell="rates"} 3"#,
        r#"dogpile_published_total{cell="rates"} 2"#,
        r#"dogpile_failed_total{cell="rates"} 1"#,
        r#"dogpile_state{cell="rates",state="fresh"} 1"#,
        r#"dogpile_state{cell="rates",state="stale"} 0"#,
    ] {
        assert!(scrape.lines().any(|shown| shown == line), "{line} is missing in: {scrape}");
        assert!(page.contains(line), "docs/monitoring.md does not show: {line}");
    }
    let failing = log.split_once("while builds fail").expect("a scrape in between").1;
    for (scrape, failures, is_latest) in [(failing, 1, 1), (scrape, 0, 0)] {
        for line in [
            format!(r#"dogpile_consecutive_failures{{cell="rates"}} {failures}"#),
            format!(r#"dogpile_last_error{{cell="rates",error="no route to host"}} {is_latest}"#),
        ] {
            assert!(scrape.lines().any(|shown| shown == line), "{line} is missing in: {scrape}");
        }
    }
    let line = r#"dogpile_served_stale_on_error_total{cell="rates"} 1"#;
    assert!(scrape.lines().any(|shown| shown == line), "{line} is missing in: {scrape}");
}
